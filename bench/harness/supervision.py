"""Measures one supervisor: its life, its crashes, its log. Each on a daemon freshly started.

Children say themselves when they run, on a named pipe, with the time; that they end is seen on their pidfds. So it
is not the harness's speed that is measured, and it is measured for all in the same way.
"""

import os
import select
import shutil
import signal
import statistics
import tempfile
import time
from pathlib import Path

from . import tree
from .processes import STOP_GRACE_S, TargetFailed, new_mark
from .supervisors import Service

START_DEADLINE_S = 120
STOP_DEADLINE_S = 60
RESPAWN_DEADLINE_S = 30
FLOOD_SLACK_S = 30
# After the last child runs, before memory and idle time are looked at: a start's aftermath is over.
SETTLE_S = 5
# Every supervisor here holds a child that ended within its first second for failing, and delays it. So each child
# that is killed has lived longer than that.
SEASON_S = 2.5
# After SIGKILL of the daemon, until those that are left are counted.
LEFT_AFTER_S = 10
LOOK_EVERY_S = 0.02
# Some look around every five seconds only.
IDLE_S = 20
# Children killed in a round.
CRASHES = 20


class Said:
    """The named pipe on which children speak."""

    def __init__(self, folder):
        self.path = folder / "said"
        os.mkfifo(self.path, 0o600)
        # For reading and writing, so that it is never at its end.
        self.pipe = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        self.rest = b""

    def close(self):
        os.close(self.pipe)

    def lines(self, timeout_s):
        """What was said, as words, after waiting for something for at most so long."""
        if not select.select([self.pipe], [], [], timeout_s)[0]:
            return []
        *lines, self.rest = (self.rest + os.read(self.pipe, 1 << 20)).split(b"\n")
        return [line.decode().split() for line in lines]


class Bench:
    """One supervisor that runs, with its children."""

    def __init__(self, supervisor, child, count, quick=False, logs=False, flood_s=None):
        self.supervisor = supervisor
        self.child = child
        self.count = count
        self.mark = new_mark()
        self.folder = Path(tempfile.mkdtemp(prefix="bench-said-"))
        self.said = Said(self.folder)
        # Name to (pid, nanoseconds) of those that run.
        self.running = {}
        self.flooded = {}
        self.peak_kib = 0
        extra = [] if flood_s is None else [flood_s]
        services = [Service(f"c{n:03}", [child, f"c{n:03}", self.said.path, *extra]) for n in range(count)]
        self.begin_ns = time.monotonic_ns()
        self.target = supervisor.start(services, self.mark, quick=quick, logs=logs)
        self.root = (self.target.pid, (tree.stat(self.target.pid) or (0, None))[1])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """Ends what is left, by pid: the supervisor's processes first, or they start their children again."""
        end = time.monotonic() + STOP_GRACE_S
        known = self.family()
        while True:
            left = tree.alive(known | self.family())
            if not left:
                break
            if time.monotonic() > end:
                raise TargetFailed(f"{self.supervisor.name} left processes that SIGKILL does not end: {left}")
            known |= left
            for pid, start in sorted(left, key=lambda process: tree.runs(process[0], self.child)):
                end_process(pid, start)
            time.sleep(LOOK_EVERY_S)
        self.target.process.wait(STOP_GRACE_S)
        self.said.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.target.home, ignore_errors=True)

    def family(self):
        return tree.family(self.root, self.mark)

    def split(self):
        """Children, and all the others: the supervisor's own."""
        members = self.family()
        children = {process for process in members if tree.runs(process[0], self.child)}
        return children, members - children

    def hear(self, timeout_s):
        for kind, name, *words in self.said.lines(timeout_s):
            first, second = map(int, words)
            if kind == "run":
                self.running[name] = (first, second)
            else:
                self.flooded[name] = (first, second)

    def wait_for(self, done, deadline_s, what):
        end = time.monotonic() + deadline_s
        while not done():
            if time.monotonic() > end:
                raise TargetFailed(f"{what} took more than {deadline_s} s:\n{self.target.last_words()}")
            self.hear(LOOK_EVERY_S)

    def wait_until_all_run(self):
        """Answers the seconds from starting the supervisor to the last child's first word."""
        self.wait_for(lambda: len(self.running) == self.count, START_DEADLINE_S, "starting all")
        return (max(ns for _, ns in self.running.values()) - self.begin_ns) / tree.NS_PER_S


def end_process(pid, start):
    """SIGKILL through a pidfd, if the number still means the same process."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if tree.alive({(pid, start)}):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def measure(supervisor, child, arguments):
    """One supervisor in one round."""
    count = arguments.children
    row = life(supervisor, child, count, IDLE_S)
    row |= crashes(supervisor, child, count, min(count, 5 if arguments.quick else CRASHES))
    if supervisor.logs:
        row |= log(supervisor, child, arguments.seconds)
    return row


def life(supervisor, child, count, idle_s):
    """Start, rest, stop."""
    with Bench(supervisor, child, count) as bench:
        row = {"running_s": bench.wait_until_all_run()}
        time.sleep(SETTLE_S)
        children, own = bench.split()
        pids = [pid for pid, _ in own]
        row["processes"] = len(own)
        row["pss_kib"] = tree.pss_kib(pids)
        row["daemon_pss_kib"] = tree.pss_kib([bench.supervisor.daemon(bench.target)])
        before, begin = tree.cpu_ns(pids), time.monotonic_ns()
        time.sleep(idle_s)
        row["idle_cpu_percent"] = 100 * (tree.cpu_ns(pids) - before) / (time.monotonic_ns() - begin)
        return row | stop(bench, children, own) if supervisor.stops else row


def stop(bench, children, own):
    """From asking the supervisor to stop, to the end of the last child and to the end of everything."""
    watched = [os.pidfd_open(pid) for pid, _ in children]
    try:
        poll = select.poll()
        for descriptor in watched:
            poll.register(descriptor, select.POLLIN)
        begin = time.monotonic_ns()
        bench.supervisor.ask_to_stop(bench.target)
        left = len(watched)
        while left:
            ended = poll.poll(STOP_DEADLINE_S * 1000)
            if not ended:
                raise TargetFailed(f"{left} children run {STOP_DEADLINE_S} s after the order to stop")
            for descriptor, _ in ended:
                poll.unregister(descriptor)
            left -= len(ended)
        stopped_s = (time.monotonic_ns() - begin) / tree.NS_PER_S
    finally:
        for descriptor in watched:
            os.close(descriptor)
    end = time.monotonic() + STOP_DEADLINE_S
    while tree.alive(own) and time.monotonic() < end:
        bench.target.process.poll()
        time.sleep(LOOK_EVERY_S)
    gone_s = (time.monotonic_ns() - begin) / tree.NS_PER_S
    return {"stopped_s": stopped_s, "gone_s": gone_s, "left_after_stop": len(bench.family())}


def crashes(supervisor, child, count, number):
    """Children killed one after the other, each another one; then the daemon."""
    with Bench(supervisor, child, count, quick=True) as bench:
        bench.wait_until_all_run()
        time.sleep(SEASON_S)
        took = [respawn_ns(bench, name) / 1e6 for name in list(bench.running)[:number]]
        _, own = bench.split()
        before = len(own)
        daemon = bench.supervisor.daemon(bench.target)
        begin = time.monotonic()
        end_process(daemon, tree.stat(daemon)[1])
        first_gone = None
        # To the end, though all may be gone before: what comes back counts as well.
        while time.monotonic() - begin < LEFT_AFTER_S:
            bench.target.process.poll()
            children, _ = bench.split()
            if first_gone is None and not children and not tree.alive(own):
                first_gone = time.monotonic() - begin
            time.sleep(LOOK_EVERY_S * 10)
        children, _ = bench.split()
        return {
            "respawned_ms": statistics.median(took),
            "respawned_worst_ms": max(took),
            "left_after_kill": len(children),
            "own_left_after_kill": len(tree.alive(own)),
            "own_before_kill": before,
            "all_gone_after_kill_s": first_gone,
        }


def respawn_ns(bench, name):
    """From SIGKILL of a child to the first word of its successor."""
    pid, _ = bench.running[name]
    descriptor = os.pidfd_open(pid)
    try:
        if not tree.runs(pid, bench.child):
            raise TargetFailed(f"{name} (pid {pid}) is no child any more")
        begin = time.monotonic_ns()
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    finally:
        os.close(descriptor)
    bench.wait_for(lambda: bench.running[name][0] != pid, RESPAWN_DEADLINE_S, f"starting {name} again")
    return bench.running[name][1] - begin


def log(supervisor, child, seconds):
    """One child that writes to its standard output as fast as it can."""
    with Bench(supervisor, child, 1, logs=True, flood_s=seconds) as bench:
        bench.wait_until_all_run()
        rest = 0

        def done():
            nonlocal rest
            _, own = bench.split()
            now = tree.pss_kib([pid for pid, _ in own])
            rest = rest or now
            bench.peak_kib = max(bench.peak_kib, now)
            return bench.flooded

        bench.wait_for(done, seconds + FLOOD_SLACK_S, "writing the log")
        written, took_ns = bench.flooded["c000"]
        return {"log_mb_s": written / 1e6 / (took_ns / tree.NS_PER_S), "log_peak_pss_kib": bench.peak_kib}
