"""What belongs to a supervisor, and what it costs: read from /proc."""

import os
import time

from .processes import marked

NS_PER_S = 1_000_000_000


def stat(pid):
    """Parent and start time of a living process; None for one that is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    # Counted as in proc_pid_stat(5), where the state is field 3: ppid 4, starttime 22.
    return None if fields[0] in (b"Z", b"X") else (int(fields[1]), int(fields[19]))


def family(root, mark):
    """All processes that carry the mark, that descend from `root`, or that descend from one that carries it: a pid
    and its start time each, which together name a process for good. So is `root`, which may have ended."""
    seen = {int(name): stat(name) for name in os.listdir("/proc") if name.isdigit()}
    below = {}
    for pid, known in seen.items():
        if known:
            below.setdefault(known[0], []).append(pid)
    members, waiting = set(), marked(mark)
    if (seen.get(root[0]) or (0, None))[1] == root[1]:
        waiting.append(root[0])
    while waiting:
        pid = waiting.pop()
        if seen.get(pid) and (pid, seen[pid][1]) not in members:
            members.add((pid, seen[pid][1]))
            waiting += below.get(pid, [])
    return members


def alive(members):
    """Those that still live."""
    return {(pid, start) for pid, start in members if (stat(pid) or (0, None))[1] == start}


def runs(pid, program):
    """Whether a process executes this file."""
    try:
        return os.path.samefile(f"/proc/{pid}/exe", program)
    except OSError:
        return False


def pss_kib(pids):
    """Their memory in proportional shares: a page shared by n processes counts 1/n in each."""
    return sum(rolled_up(pid, "Pss:") for pid in pids)


def rss_kib(pids):
    """Their resident memory, each in full."""
    return sum(rolled_up(pid, "Rss:") for pid in pids)


def rolled_up(pid, name):
    """One figure of a process' memory; 0 of one that is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(name))
    except (OSError, StopIteration):
        return 0


def cpu_ns(pids):
    """Processor time they have used so far, in nanoseconds, threads that have ended included."""
    total = 0
    for pid in pids:
        try:
            # The clock of another process, as clock_getcpuclockid(3) makes its number.
            total += time.clock_gettime_ns((~pid << 3) | 2)
        except OSError:
            continue
    return total
