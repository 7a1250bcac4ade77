"""A quiet server under steady calls, alone and beside four hogs: how much of them its callers feel."""

import json
import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

from . import targets
from .processes import Running, new_mark
from .report import figure, machine_line

# The words of the evil child, and the limits that it runs into.
HOGS = {
    "memory": (["hog-memory", "4000"], 'memory = "64MiB"'),
    "forks": (["fork-bomb", "3000"], "pids = 40"),
    "cpu": (["hog-cpu"], "cpu = 0.25"),
    "files": (["hog-files"], "open_files = 64"),
}

# What the issue allows: the p99 beside the hogs, at most so many times the p99 alone.
MOST_P99_RATIO = 2.0
START_DEADLINE_S = 60
# Steady, and far from what the machine can do: what the hogs take shows, and not what the load itself does.
PAUSE_MS = 5


def config(tools, mark, with_hogs):
    """The configuration of a daemon with the quiet server, and the hogs or none."""
    marked = f'env = {{ OSTLER_BENCH_MARK = "{mark}" }}\n'
    text = '[gateway]\nlisten = "127.0.0.1:0"\n[servers.echo]\nscope = "shared"\nrequired = true\n'
    text += f'command = "{tools / "echo-server"}"\n' + marked
    for name, (words, limits) in HOGS.items() if with_hogs else ():
        arguments = json.dumps(["late", "legacy", *words])
        text += f'[servers.{name}]\ncommand = "{tools / "ostler-evil"}"\nargs = {arguments}\nscope = "shared"\n'
        text += f"limits = {{ {limits} }}\n" + marked
    return text


class Daemon:
    """Ostler with that configuration, in folders of its own."""

    def __init__(self, tools, with_hogs):
        self.home = Path(tempfile.mkdtemp(prefix="ostler-bench-"))
        mark = new_mark()
        (self.home / "ostler.toml").write_text(config(tools, mark, with_hogs))
        self.environment = {"OSTLER_RUNTIME_DIR": str(self.home / "run"), "OSTLER_STATE_DIR": str(self.home / "state")}
        for folder in self.environment.values():
            os.mkdir(folder, mode=0o700)
        command = [targets.ostler_binary(), "up", self.home / "ostler.toml"]
        log = targets.OUT / "logs" / "ostler-hogs.log"
        self.running = Running("ostler", command, mark, log, self.environment)

    def url(self):
        """Where the quiet server is, once it serves."""
        try:
            endpoint = json.loads((self.home / "run/endpoint.json").read_text())
            targets.LOCAL.open(endpoint["http"] + "/readyz", timeout=1).close()
        except (OSError, ValueError):
            return None
        return f"{endpoint['http']}/mcp/echo"

    def cli(self, *words):
        """What `ostler WORDS --json` prints."""
        command = [str(targets.ostler_binary()), *words, "--json"]
        done = subprocess.run(command, capture_output=True, timeout=30, env={**os.environ, **self.environment})
        return json.loads(done.stdout)

    def hogs(self):
        """How each hog was named in an event."""
        named = {}
        for event in self.cli("events", "-n", "2000"):
            server = event["subject"].rsplit(".", 1)[0]
            if event["kind"] == "limit-hit" and server in HOGS:
                named.setdefault(server, event["message"])
        return named

    def stop(self):
        """Stops it; answers how many processes it left behind."""
        try:
            return self.running.stop()
        finally:
            shutil.rmtree(self.home, ignore_errors=True)


def measure(tools, arguments, with_hogs, tool):
    """One run: the load on the quiet server, and what became of the hogs."""
    daemon = Daemon(tools, with_hogs)
    try:
        url = daemon.running.wait_until(daemon.url, START_DEADLINE_S)
        if with_hogs:
            daemon.running.wait_until(lambda: len(daemon.hogs()) == len(HOGS), START_DEADLINE_S)
        command = [tools / "load", "--url", url, "--sessions", 1, "--pause-ms", PAUSE_MS]
        run = tool([*command, "--seconds", arguments.seconds, "--warmup", 1.0])
        run["named"] = daemon.hogs() if with_hogs else {}
    finally:
        left = daemon.stop()
    return run | {"left": left}


def medians(runs):
    """One row out of some rounds."""
    keys = ["p50_us", "p99_us", "max_us", "calls"]
    row = {key: statistics.median(run[key] for run in runs) for key in keys}
    row["errors"] = sum(run["errors"] for run in runs)
    row["left"] = max(run["left"] for run in runs)
    return row


def kept(rows):
    """Whether the neighbour felt as little as it may."""
    alone, beside = rows.get("alone"), rows.get("hogs")
    return bool(
        alone and beside and not beside["errors"] and beside["p99_us"] <= MOST_P99_RATIO * alone["p99_us"]
    )


def markdown(seen, rows, named, settings):
    """The page."""
    lines = ["# Hogs", "", machine_line(seen) + ".", ""]
    lines.append(
        f"One session calls `echo` every {PAUSE_MS} ms: with nothing else, and beside a memory hog, a fork bomb, a cpu "
        f"hog and a hog of open files. Medians of {settings['rounds']} rounds of {settings['seconds']} s."
    )
    lines += ["", "| | p50 us | p99 us | max us | calls | errors | left |", "|---|---:|---:|---:|---:|---:|---:|"]
    for name, row in rows.items():
        figures = " | ".join(figure(row[key]) for key in ("p50_us", "p99_us", "max_us"))
        lines.append(f"| {name} | {figures} | {row['calls']:.0f} | {row['errors']} | {row['left']} |")
    if {"alone", "hogs"} <= set(rows):
        ratio = rows["hogs"]["p99_us"] / rows["alone"]["p99_us"]
        lines += ["", f"p99 beside the hogs: {ratio:.2f} times that alone; at most {MOST_P99_RATIO}: "]
        lines[-1] += "kept" if kept(rows) else "missed"
    lines += ["", "How each hog was named:", ""] + [f"- {name}: {message}" for name, message in named.items()]
    return "\n".join(lines) + "\n"
