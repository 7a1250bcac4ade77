"""What a long queue costs: Ostler with a thousand tasks that wait, and with a million."""

import http.client
import json
import os
import shutil
import socket
import statistics
import tempfile
import time
from pathlib import Path

from . import targets, tasks, tree
from .processes import TargetFailed, new_mark, Running
from .report import machine_line

FEW, MANY = 1_000, 1_000_000
# Submitted at once while the queue is filled, and while that is measured.
FILL, BATCH, BATCHES = 10_000, 1_000, 10
# What is timed as it is done: so many tasks, in batches whose ends are waited for one after the other.
DRAIN, DRAIN_BATCH, DRAINS = 1_000, 50, 10
# Of those that waited first, so many are done.
OLDEST = 500
TIMEOUT_S = 120
# What the queue may cost.
MOST_MB, MOST_RATIO, MOST_RESTART_S = 300, 1.5, 5.0
PROJECT = "backlog"
FIGURES = {
    "submit_one": "submitted one by one, tasks/s",
    "submit_batch": f"submitted by {BATCH:,}, tasks/s",
    "round_trips": "no-op/s, 64 under way",
    "drained": "urgent ones of theirs done, tasks/s",
    "oldest": "done of those that wait longest, tasks/s",
}


class Api:
    """The management API, on a connection of its own."""

    def __init__(self, path):
        self.connection = http.client.HTTPConnection("localhost", timeout=TIMEOUT_S)
        self.connection.sock = socket.socket(socket.AF_UNIX)
        self.connection.sock.settimeout(TIMEOUT_S)
        self.connection.sock.connect(str(path))

    def ask(self, method, path, body=None):
        self.connection.request(method, path, json.dumps(body) if body is not None else None)
        response = self.connection.getresponse()
        text = response.read()
        if response.status >= 300:
            raise TargetFailed(f"{method} {path}: status {response.status}: {text[:300]!r}")
        return json.loads(text)

    def submit(self, count, priority):
        """A batch of tasks that do nothing; its name."""
        task = {"type": "execute-code", "payload": {"code": "return 1"}, "project": PROJECT, "priority": priority}
        body = {"tasks": [task] * count, "batch": {"project": PROJECT}}
        return self.ask("POST", "/api/v1/batches", body)["id"]

    def until_ended(self, batch):
        while not self.ask("GET", f"/api/v1/batches/{batch}?wait_ms=30000")["ended"]:
            pass

    def limit(self, running):
        self.ask("PUT", f"/api/v1/projects/{PROJECT}/limit", {"running": running})


class Ostler(tasks.Ostler):
    """One whose queue is as long as it is to be, and whose urgent tasks stay urgent."""

    def parts(self, home, data):
        parts = super().parts(home, data)
        text = (home / "ostler.toml").read_text().replace("[tasks]\n", '[tasks]\nqueued = 4000000\nageing = "0s"\n')
        text += f"[projects.{PROJECT}]\nrunning = 1\nqueued = 2000000\n"
        (home / "ostler.toml").write_text(text)
        return parts


def measure(waiting, tools, arguments):
    """One run with so many tasks that wait."""
    home = Path(tempfile.mkdtemp(prefix="bench-b-"))
    data = Path(tempfile.mkdtemp(prefix="backlog-data-", dir=targets.OUT))
    peer = Ostler("ostler-backlog", "", "durable")
    ((command, environment, _),) = peer.parts(home, data)
    log = targets.OUT / "logs" / "ostler-backlog.log"

    def start():
        running = Running("ostler", command, new_mark(), log, environment)
        running.wait_until(lambda: tasks.serves(home), tasks.START_DEADLINE_S)
        return running

    running = start()
    try:
        oldest, row = fill(Api(home / "run/api.sock"), waiting)
        row["rss_mb"] = tree.rss_kib([running.pid]) / 1024
        row |= beside(home, tools, arguments)
        row |= drain(Api(home / "run/api.sock"), oldest)
        row["rss_after_mb"] = tree.rss_kib([running.pid]) / 1024
        os.kill(running.pid, 9)
        running.stop()
        begin = time.perf_counter()
        running = start()
        api = Api(home / "run/api.sock")
        while not api.ask("GET", "/api/process-pool/project-usage").get(PROJECT, {}).get("used"):
            time.sleep(0.005)
        row["restart_s"] = time.perf_counter() - begin
        row["rss_again_mb"] = tree.rss_kib([running.pid]) / 1024
    finally:
        left = running.stop()
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(data, ignore_errors=True)
    return row | {"left": left}


def fill(api, waiting):
    """Has so many tasks wait, behind one that holds the only place of their project; the batches that came first."""
    hold = {"type": "shell-command", "payload": {"argv": ["sleep", "3600"]}, "timeout_ms": 7_200_000}
    api.ask("POST", "/api/v1/tasks", {**hold, "project": PROJECT, "priority": 10})
    while not api.ask("GET", "/api/process-pool/project-usage").get(PROJECT, {}).get("used"):
        time.sleep(0.01)
    oldest = [api.submit(DRAIN_BATCH, 0) for _ in range(OLDEST // DRAIN_BATCH)]
    for done in range(OLDEST, waiting, FILL):
        api.submit(min(FILL, waiting - done), 0)
    rates = []
    for _ in range(BATCHES):
        begin = time.perf_counter()
        batch = api.submit(BATCH, 0)
        rates.append(BATCH / (time.perf_counter() - begin))
        api.ask("POST", f"/api/v1/batches/{batch}/cancel")
    return oldest, {"submit_batch": statistics.median(rates), "waiting": waiting}


def beside(home, tools, arguments):
    """What others notice of those that wait."""
    api = Api(home / "run/api.sock")
    took = []
    task = {"type": "execute-code", "payload": {"code": "return 1"}, "project": PROJECT, "priority": 0}
    for _ in range(300):
        begin = time.perf_counter()
        api.ask("POST", "/api/v1/tasks", task)
        took.append(time.perf_counter() - begin)
    driver = tasks.Driver("ostler-backlog", [tools / "task-load", "--socket", home / "run/api.sock"], new_mark(), {})
    try:
        driver.says(tasks.START_DEADLINE_S)
        cell = {"kind": "noop", "window": tasks.WINDOW, "seconds": arguments.seconds, "warmup": tasks.WARMUP_S}
        many = driver.measure(**cell)
    finally:
        driver.stop()
    if many["errors"]:
        raise TargetFailed(f"{many['errors']} wrong results: {many['first_error']}")
    return {"submit_one": 1 / statistics.median(took), "round_trips": many["per_s"]}


def drain(api, oldest):
    """How quickly those that wait are done, once they may: those that came first, and urgent ones that came last."""
    # First, as some more of them begin until the limit is back each time.
    first = done_per_s(api, oldest)
    rates = []
    for _ in range(DRAINS):
        rates.append(done_per_s(api, [api.submit(DRAIN_BATCH, 9) for _ in range(DRAIN // DRAIN_BATCH)]))
    return {"drained": statistics.median(rates), "oldest": first}


def done_per_s(api, batches):
    """Has these batches done, which are next; what was done in a second."""
    begin = time.perf_counter()
    # One place is held, and each worker has another.
    api.limit(1 + tasks.CORES)
    for batch in batches:
        api.until_ended(batch)
    took = time.perf_counter() - begin
    api.limit(1)
    return len(batches) * DRAIN_BATCH / took


def medians(runs):
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def bars(rows):
    """What is to hold: in words, the figure, the bar, whether it does."""
    few, many = rows.get(FEW), rows.get(MANY)
    found = []
    if few and many:
        for key, words in FIGURES.items():
            ratio = few[key] / many[key]
            found.append((f"{words}: with {FEW:,} by with {MANY:,}", ratio, MOST_RATIO, ratio <= MOST_RATIO))
    if many:
        found.append((f"memory of the daemon with {MANY:,}, MB", many["rss_mb"], MOST_MB, many["rss_mb"] <= MOST_MB))
        again = many["rss_again_mb"]
        found.append((f"the same after a restart, MB", again, MOST_MB, again <= MOST_MB))
        took = many["restart_s"]
        found.append((f"killed, and started again until a task runs, s", took, MOST_RESTART_S, took <= MOST_RESTART_S))
    return found


def markdown(seen, rows, settings):
    """The page."""
    lines = ["# A long queue", "", machine_line(seen) + ".", ""]
    lines.append(
        f"Durable tasks that do nothing wait behind one that holds their project's only place. Medians of {settings['rounds']} rounds; "
        f"{tasks.CORES} processors, the drivers' included."
    )
    heads = [*FIGURES.values(), "memory, MB", "after a restart, MB", "restart, s", "left"]
    lines += ["", "| waiting | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for waiting, row in rows.items():
        figures = [f"{row[key]:,.0f}" for key in FIGURES]
        figures += [f"{row['rss_mb']:.0f}", f"{row['rss_again_mb']:.0f}", f"{row['restart_s']:.2f}", f"{row['left']:.0f}"]
        lines.append(f"| {waiting:,} | " + " | ".join(figures) + " |")
    lines.append("")
    for words, value, bar, kept in bars(rows):
        lines.append(f"- {words}: {value:.2f}, at most {bar}: {'kept' if kept else '**missed**'}")
    return "\n".join(lines) + "\n"
