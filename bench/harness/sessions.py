"""What a session of one's own costs: how long its client waits for it, and what it holds of the daemon's memory."""

import http.client
import json
import stat
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from . import targets, tree
from .processes import TargetFailed, marked
from .report import figure, machine_line

# A server that takes this long before it answers anything, as real ones do that load a model or a browser.
START_S = 0.5
# Between two sessions: longer than a start, so that a pool has its spare again. What a pool cannot keep up with waits in line.
PAUSE_S = 0.7
SESSIONS = 20
# Clients that come at the same time: twice what the pool may have, so that half of them wait in line.
THRONG = 16
# Sessions that are open while memory is looked at: as many as the pool may have.
OPEN = 8
# An instance that is ready is to be had within this, at the median.
MOST_P50_MS = 5.0
IDLE_SESSIONS = 1000
MOST_IDLE_KIB = 16
TIMEOUT_S = 30
PROTOCOL = "2025-11-25"


def slow(target_class, *arguments, more=""):
    """A target with the slow server behind it."""

    class Slow(target_class):
        def server(self, tools):
            return slow_server(tools)

    made = Slow(*arguments)
    made.more = more
    return made


def slow_server(tools):
    """A program that is the echo server after some time."""
    program = targets.OUT / "slow-echo-server"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!/bin/sh\nsleep {START_S}\nexec '{tools / 'echo-server'}'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def rows():
    """The targets by name, in order; `direct` starts the server itself."""
    pool = "pool = { spare = 2, max = 8 }\n"
    return {
        "direct": None,
        "ostler-pool": slow(targets.Ostler, "ostler-pool", "**Ostler**, pool: 2 spares, 8 at most", True, more=pool),
        "ostler-session": slow(targets.Ostler, "ostler-session", "**Ostler**, no pool", True),
        "supergateway": slow(targets.Supergateway, "supergateway", "npm `supergateway` 4.0.0, stateful", True),
    }


def initialize():
    params = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
    return {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}


class Client:
    """One client with a connection of its own."""

    def __init__(self, url):
        parts = urlsplit(url)
        self.path = parts.path
        self.session = None
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_S)
        self.connection.connect()

    def send(self, method, message=None):
        headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        if self.session:
            headers |= {"Mcp-Session-Id": self.session, "Mcp-Protocol-Version": PROTOCOL}
        body = json.dumps(message) if message is not None else None
        self.connection.request(method, self.path, body, headers)
        return self.connection.getresponse()

    def ask(self, message):
        """The answer to a request, from JSON or from an event stream."""
        response = self.send("POST", message)
        if response.status != 200:
            raise TargetFailed(f"{message['method']}: status {response.status}: {response.read(300)!r}")
        self.session = response.headers.get("Mcp-Session-Id") or self.session
        if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
            return json.loads(response.read())
        found = None
        for line in response:
            if line.startswith(b"data:") and (data := line[5:].strip()):
                read = json.loads(data)
                found = read if read.get("id") == message["id"] else found
        if found is None:
            raise TargetFailed(f"{message['method']}: a stream without an answer")
        return found

    def open(self):
        """Opens a session; milliseconds until it was open."""
        begin = time.perf_counter()
        self.ask(initialize())
        took = (time.perf_counter() - begin) * 1000
        self.send("POST", {"jsonrpc": "2.0", "method": "notifications/initialized"}).read()
        return took

    def whole_life(self):
        """Opens a session, calls once, ends it; milliseconds until it was open."""
        took = self.open()
        self.call()
        self.end()
        return took

    def call(self):
        """One call, with its own answer."""
        call = {"name": "echo", "arguments": {"text": "mine"}}
        answer = self.ask({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call})
        if answer["result"]["content"][0]["text"] != "mine":
            raise TargetFailed(f"answered {answer}")

    def end(self):
        """Ends the session."""
        self.send("DELETE").read()
        self.connection.close()


class Direct:
    """The server started by its client: what nobody without a pool can beat."""

    def __init__(self, program):
        self.program = program

    def open(self):
        """Starts it; milliseconds until it has answered."""
        begin = time.perf_counter()
        self.server = subprocess.Popen([self.program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.server.stdin.write(json.dumps(initialize()).encode() + b"\n")
        self.server.stdin.flush()
        self.server.stdout.readline()
        return (time.perf_counter() - begin) * 1000

    def whole_life(self):
        """Starts it and ends it; milliseconds until it had answered."""
        took = self.open()
        self.end()
        return took

    def end(self):
        """Ends it."""
        self.server.stdin.close()
        self.server.wait(TIMEOUT_S)
        self.server.stdout.close()


def measure(name, tools, arguments):
    """One cell of one round."""
    count = 5 if arguments.quick else SESSIONS
    target = rows()[name]
    if target is None:
        program = slow_server(tools)
        servers = []

        def client():
            servers.append(Direct(program))
            return servers[-1]

        return cell(client, count, lambda: [made.server.pid for made in servers if made.server.poll() is None]) | {"left": 0}
    running, url = target.start(tools, churn=False)
    try:
        run = cell(lambda: Client(url), count, lambda: marked(running.mark))
    finally:
        left = target.stop(running)
    return run | {"left": left}


def cell(client, count, processes):
    """One session after the other, then many at the same time, then some that stay open."""
    alone = []
    for _ in range(count):
        # Also before the first: spares are started with the daemon.
        time.sleep(PAUSE_S)
        alone.append(client().whole_life())
    time.sleep(PAUSE_S)
    with ThreadPoolExecutor(THRONG) as threads:
        throng = list(threads.map(lambda _: client().whole_life(), range(THRONG)))
    time.sleep(2 * PAUSE_S)
    held = [client() for _ in range(OPEN)]
    for one in held:
        one.open()
    time.sleep(PAUSE_S)
    pss = tree.pss_kib(processes())
    for one in held:
        one.end()
    return {"took_ms": alone, "throng_ms": throng, "pss_kib": pss}


def idle(tools):
    """What an idle session holds of the daemon's memory, in KiB; all of them use one shared process."""
    target = targets.Ostler("ostler", "**Ostler**", False)
    running, url = target.start(tools, churn=False)
    try:
        for _ in range(50):
            Client(url).ask(initialize())
        before = rss_kib(running.pid)
        for _ in range(IDLE_SESSIONS):
            Client(url).ask(initialize())
        return (rss_kib(running.pid) - before) / IDLE_SESSIONS
    finally:
        target.stop(running)


def rss_kib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def medians(runs):
    """One row out of some rounds."""
    percentile = lambda values, at: statistics.quantiles(values, n=100, method="inclusive")[at - 1]
    return {
        "p50_ms": statistics.median(statistics.median(run["took_ms"]) for run in runs),
        "p99_ms": statistics.median(percentile(run["took_ms"], 99) for run in runs),
        "throng_p50_ms": statistics.median(statistics.median(run["throng_ms"]) for run in runs),
        "throng_last_ms": statistics.median(max(run["throng_ms"]) for run in runs),
        "pss_kib": statistics.median(run["pss_kib"] for run in runs),
        "left": max(run["left"] for run in runs),
    }


def kept(table, idle_kib):
    """Whether the bars are."""
    pool = table.get("ostler-pool")
    return bool(pool and pool["p50_ms"] <= MOST_P50_MS and not pool["left"] and idle_kib <= MOST_IDLE_KIB)


def markdown(seen, table, idle_kib, settings):
    """The page."""
    lines = ["# Sessions", "", machine_line(seen) + ".", ""]
    lines.append(
        f"A client opens a session with a process of its own, of a server that takes {START_S} s to start; it calls once and ends "
        f"it. {settings['sessions']} one after the other, {PAUSE_S} s apart; then {THRONG} at the same time; then {OPEN} that stay open, "
        f"for memory. Medians of {settings['rounds']} rounds; ratios are to Ostler with a pool."
    )
    heads = ["", "p50 ms", "ratio", "p99 ms", f"{THRONG} at once: p50 ms", "the last, ms", f"{OPEN} open: MB PSS", "left"]
    lines += ["", "| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    base = table.get("ostler-pool", {}).get("p50_ms")
    labels = {name: target.label if target else "direct, started by the client" for name, target in rows().items()}
    for name, row in table.items():
        ratio = f"{row['p50_ms'] / base:.2f}x" if base else "-"
        cells = [labels[name], figure(row["p50_ms"]), ratio, figure(row["p99_ms"]), figure(row["throng_p50_ms"])]
        cells += [figure(row["throng_last_ms"]), figure(row["pss_kib"] / 1024), str(row["left"])]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"p50 with a spare that is ready, at most {MOST_P50_MS} ms; an idle session of Ostler holds {idle_kib:.1f} KiB "]
    lines[-1] += f"({IDLE_SESSIONS} on one shared process), at most {MOST_IDLE_KIB}: "
    lines[-1] += "kept" if kept(table, idle_kib) else "missed"
    return "\n".join(lines) + "\n"
