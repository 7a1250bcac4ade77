"""The task queues and pools of the comparison: how each is installed and started, and what is measured of it.

Each has a *driver*, a program of `bench/tasks` that submits tasks and notices results; all drivers do the same when they
are told the same. Where the pool lives in the program that uses it, the driver is what is measured; else it is what is
beside it: a daemon, or Redis and workers.
"""

import json
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import tree
from .installers import CACHE, call, debian_unpack, debian_version, npm_install, pip_install
from .processes import MARK, Running, TargetFailed, new_mark
from .targets import BENCH, LOCAL, OUT, ostler_binary

NPM = ["piscina@5.3.2", "workerpool@10.0.3", "bullmq@6.7.0", "ioredis@6.0.0"]
PYPI = ["celery[redis]==5.7.0", "cbor2==5.7.0"]
CARGO = "pueue@4.0.4"
# Unpacked, not installed, as the supervisors: no service is started, nothing of the system changes.
DEBIAN = ["redis-server", "redis-tools", "libjemalloc2", "liblzf1"]
NODE_MODULES = CACHE / "npm-tasks/node_modules"
PYTHON = CACHE / "py-tasks/bin/python"
REDIS_ROOT = CACHE / "debian-redis"
PEERS = BENCH / "tasks/peers"

# All have so many processors, the drivers' included.
CORES = 2
# Tasks under way while throughput is measured; while latency is, one.
WINDOW = 64
# Tasks of one submission, where there is such a thing.
BATCH = 1000
START_DEADLINE_S = 60
# Beyond a cell's own time: what is under way at its end, at the worst a batch.
SLACK_S = 90
QUICK_WARMUP_S, WARMUP_S = 0.3, 1.0


class Driver:
    """A program that submits tasks."""

    def __init__(self, name, command, mark, environment):
        self.name = name
        self.mark = mark
        self.rest = b""
        log = OUT / "logs" / f"tasks-{name}-driver.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with open(log, "wb") as errors:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **environment, MARK: mark},
                start_new_session=True,
            )
        self.pid = self.process.pid

    def says(self, deadline_s):
        """The next line it says."""
        end = time.monotonic() + deadline_s
        while b"\n" not in self.rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise TargetFailed(f"{self.name}: its driver said nothing for {deadline_s} s:\n{self.last_words()}")
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                raise TargetFailed(f"{self.name}: its driver ended:\n{self.last_words()}")
            self.rest += part
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)

    def measure(self, **cell):
        """What comes of a cell."""
        self.process.stdin.write(json.dumps(cell).encode() + b"\n")
        self.process.stdin.flush()
        return self.says(cell["warmup"] + cell["seconds"] + SLACK_S)

    last_words = Running.last_words

    def stop(self):
        """Ends it by ending its input; answers how many of its processes were left, which are killed."""
        try:
            self.process.stdin.close()
            self.process.wait(START_DEADLINE_S)
        except (OSError, subprocess.TimeoutExpired):
            pass
        try:
            return Running.stop(self)
        finally:
            self.process.stdout.close()


class Peer:
    """One row. Its folders: `home`, whose path is short, for sockets; `data`, on the repository's disk, for what is to last."""

    kinds = ("noop", "true")
    batches = False

    def __init__(self, name, label):
        self.name = name
        self.label = label

    def parts(self, home, data):
        """What runs beside the driver: a command, its environment, and what tells that it is ready."""
        return []

    def driver(self, home, tools):
        """The driver's command and environment."""
        raise NotImplementedError

    def is_installed(self):
        return True


class Node(Peer):
    """A pool in the process that uses it."""

    def __init__(self, name, label, program, **environment):
        super().__init__(name, label)
        self.program = program
        self.more = environment

    def driver(self, home, tools):
        return ["node", PEERS / self.program], {"NODE_PATH": str(NODE_MODULES), **self.more}

    def is_installed(self):
        return NODE_MODULES.exists()


class Executor(Peer):
    def driver(self, home, tools):
        return [sys.executable, PEERS / "executor.py"], {}


class OnRedis(Peer):
    """A queue on a Redis of its own."""

    batches = True

    def __init__(self, name, label, durable):
        super().__init__(name, label)
        self.durable = durable

    def socket(self, home):
        return home / "redis.sock"

    def parts(self, home, data):
        command = [REDIS_ROOT / "usr/bin/redis-server", "--port", 0, "--unixsocket", self.socket(home), "--dir", data]
        if self.durable:
            # A snapshot beside the log of all commands has no purpose.
            command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        libraries = next(REDIS_ROOT.glob("usr/lib/*/libjemalloc.so.*"), REDIS_ROOT).parent
        ready = lambda running: self.socket(home).exists()
        return [(command, {"LD_LIBRARY_PATH": str(libraries)}, ready)] + [(*worker, None) for worker in self.workers(home)]

    def workers(self, home):
        raise NotImplementedError

    def is_installed(self):
        return (REDIS_ROOT / "usr/bin/redis-server").exists()


class BullMq(OnRedis):
    def environment(self, home):
        return {"NODE_PATH": str(NODE_MODULES), "BENCH_REDIS": str(self.socket(home)), "BENCH_AT_ONCE": str(WINDOW)}

    def workers(self, home):
        return [(["node", PEERS / "bullmq-worker.cjs"], self.environment(home))]

    def driver(self, home, tools):
        return ["node", PEERS / "bullmq.cjs"], self.environment(home)

    def is_installed(self):
        return super().is_installed() and NODE_MODULES.exists()


class Celery(OnRedis):
    def environment(self, home):
        acks = {"BENCH_ACKS": "late"} if self.durable else {}
        return {"PYTHONPATH": str(PEERS), "PYTHONDONTWRITEBYTECODE": "1", "BENCH_REDIS": str(self.socket(home)), **acks}

    def workers(self, home):
        command = [PYTHON, "-m", "celery", "--app", "celery_app", "worker", "--pool", "prefork", "--concurrency", CORES]
        # What only many workers together need.
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
        return [(command, self.environment(home))]

    def driver(self, home, tools):
        return [PYTHON, PEERS / "celery_submit.py"], self.environment(home)

    def is_installed(self):
        return super().is_installed() and PYTHON.exists()


class Pueue(Peer):
    kinds = ("true",)

    def parts(self, home, data):
        # JSON is YAML.
        shared = {
            "pueue_directory": str(data),
            "runtime_directory": str(home),
            "unix_socket_path": str(home / "pueue.socket"),
            "shared_secret_path": str(home / "shared_secret"),
        }
        (home / "pueue.yml").write_text(json.dumps({"shared": shared, "client": {}, "daemon": {}}))
        command = [CACHE / "cargo/bin/pueued", "--config", home / "pueue.yml"]
        return [(command, {}, lambda running: (home / "pueue.socket").exists())]

    def driver(self, home, tools):
        return [PYTHON, PEERS / "pueue_submit.py"], {"BENCH_PUEUE": str(home), "BENCH_AT_ONCE": str(WINDOW)}

    def is_installed(self):
        return (CACHE / "cargo/bin/pueued").exists() and PYTHON.exists()


class Ostler(Peer):
    batches = True

    def __init__(self, name, label, journal, by_cli=False):
        super().__init__(name, label)
        self.journal = journal
        self.by_cli = by_cli
        self.batches = not by_cli

    def parts(self, home, data):
        (home / "ostler.toml").write_text(
            f'[gateway]\nlisten = "127.0.0.1:0"\n[tasks]\njournal = "{self.journal}"\n'
            # As the peers: all workers from the beginning, and none replaced by a fresh one from time to time.
            f"[workers]\nmin = {CORES}\nmax = {CORES}\nmax_tasks = 0\n"
        )
        return [([ostler_binary(), "up", home / "ostler.toml"], self.environment(home, data), lambda running: serves(home))]

    def environment(self, home, data):
        (home / "run").mkdir(mode=0o700, exist_ok=True)
        data.chmod(0o700)
        return {"OSTLER_RUNTIME_DIR": str(home / "run"), "OSTLER_STATE_DIR": str(data)}

    def driver(self, home, tools):
        if self.by_cli:
            environment = {"BENCH_OSTLER": str(ostler_binary()), "OSTLER_RUNTIME_DIR": str(home / "run")}
            return [sys.executable, PEERS / "ostler_cli.py"], environment
        return [tools / "task-load", "--socket", home / "run/api.sock"], {}


def serves(home):
    """Whether the daemon is ready."""
    try:
        endpoint = json.loads((home / "run/endpoint.json").read_text())
        LOCAL.open(endpoint["http"] + "/readyz", timeout=1).close()
    except (OSError, ValueError):
        return False
    return True


ALL = [
    Ostler("ostler-memory", "**Ostler**, in memory", "memory"),
    Ostler("ostler-durable", "**Ostler**, durable", "durable"),
    Ostler("ostler-cli", "**Ostler**, durable, by its command line", "durable", by_cli=True),
    Node("piscina", "npm `piscina` 5.3.2", "piscina.cjs"),
    Node("workerpool", "npm `workerpool` 10.0.3", "workerpool.cjs"),
    Executor("executor", f"Python {sys.version_info[0]}.{sys.version_info[1]} `ProcessPoolExecutor`"),
    BullMq("bullmq-always", "npm `bullmq` 6.7.0, appendfsync always", durable=True),
    BullMq("bullmq", "npm `bullmq` 6.7.0, Redis' default", durable=False),
    Celery("celery-always", "PyPI `celery` 5.7.0, appendfsync always", durable=True),
    Celery("celery", "PyPI `celery` 5.7.0, Redis' default", durable=False),
    Pueue("pueue", "crates.io `pueue` 4.0.4"),
]


def install(names):
    """Installs what the named peers need and is not installed yet, into bench/.cache."""
    names = set(names)
    CACHE.mkdir(exist_ok=True)
    on_redis = {"bullmq", "bullmq-always", "celery", "celery-always"}
    if names & {"piscina", "workerpool", "bullmq", "bullmq-always"} and not NODE_MODULES.exists():
        npm_install(NODE_MODULES.parent, NPM)
    if names & {"celery", "celery-always", "pueue"} and not (PYTHON.parent / "celery").exists():
        pip_install(CACHE / "py-tasks", PYPI)
    if "pueue" in names and not (CACHE / "cargo/bin/pueued").exists():
        call(["cargo", "install", "--locked", "--root", CACHE / "cargo", CARGO])
    if names & on_redis and not REDIS_ROOT.exists():
        debian_unpack(REDIS_ROOT, DEBIAN)


def redis_version():
    """The version of the Redis that was unpacked; empty where there is none."""
    return debian_version(REDIS_ROOT, "redis-server")


def on_two_cores():
    """From now on this process and all it starts have two processors, whatever the machine has."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def sync_us():
    """What it takes to have four KiB on the disk that everything durable is on, in microseconds."""
    took = []
    with tempfile.TemporaryFile(dir=OUT) as file:
        for _ in range(100):
            file.write(b"x" * 4096)
            file.flush()
            begin = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(took)


def measure(peer, tools, arguments):
    """One peer in one round."""
    if not peer.is_installed():
        raise TargetFailed(f"{peer.name} is not installed")
    home = Path(tempfile.mkdtemp(prefix="bench-t-"))
    OUT.mkdir(parents=True, exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix="tasks-data-", dir=OUT))
    started, left = [], 0
    try:
        try:
            for number, (command, environment, ready) in enumerate(peer.parts(home, data)):
                log = OUT / "logs" / f"tasks-{peer.name}-{number}.log"
                started.append(Running(peer.name, command, new_mark(), log, environment))
                if ready:
                    running = started[-1]
                    running.wait_until(lambda: ready(running), START_DEADLINE_S)
            command, environment = peer.driver(home, tools)
            driver = Driver(peer.name, command, new_mark(), environment)
            beside = list(started) or [driver]
            started.append(driver)
            driver.says(START_DEADLINE_S)
            row = cells(peer, driver, beside, arguments)
        finally:
            # The driver first, the database last.
            for running in reversed(started):
                left += running.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(data, ignore_errors=True)
    return row | {"left": left}


def cells(peer, driver, beside, arguments):
    """All figures of a peer that runs."""
    time_of = {"seconds": arguments.seconds, "warmup": QUICK_WARMUP_S if arguments.quick else WARMUP_S}
    row = {"errors": 0, "first_error": None}

    def cell(**what):
        answer = driver.measure(**what, **time_of)
        row["errors"] += answer["errors"]
        row["first_error"] = row["first_error"] or answer["first_error"]
        return answer

    for kind in peer.kinds:
        one = cell(kind=kind, window=1)
        many = cell(kind=kind, window=WINDOW)
        row |= {f"{kind}_per_s": many["per_s"], f"{kind}_p50_us": one["p50_us"], f"{kind}_p99_us": one["p99_us"]}
        row |= {f"{kind}_busy_p50_us": many["p50_us"], f"{kind}_busy_p99_us": many["p99_us"]}
        # What `true` needs is the same for all; the rest is to be seen when it has been under load.
        row |= memory(beside)
    if peer.batches:
        row["batch_per_s"] = cell(kind="noop", window=1, batch=BATCH)["per_s"]
    return row


def memory(beside):
    """What the processes of these hold."""
    members = set()
    for running in beside:
        members |= tree.family((running.pid, (tree.stat(running.pid) or (0, None))[1]), running.mark)
    pids = [pid for pid, _ in members]
    return {"rss_kib": tree.rss_kib(pids), "pss_kib": tree.pss_kib(pids), "processes": len(pids)}
