"""The supervisors of the comparison: how each is installed, configured, started and told to stop.

Each runs the same hundred services, every one the benchmark's own child. Each has its defaults, but for what
`configure` says; `quick` is the least back-off it allows after a crash.
"""

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

from .installers import CACHE, debian_unpack, debian_version, npm_install, pip_install
from .processes import Running, TargetFailed
from .targets import OUT, ostler_binary, target_directory

PYPI = ["supervisor==4.3.0", "circus==0.19.0"]
NPM = ["pm2@7.0.4"]
# Unpacked, not installed: a Debian machine with runit installed has a supervisor that nobody asked for. A version
# that the machine's Debian release does not have is replaced by the one it has, and the report says which.
DEBIAN = ["runit", "s6", "libs6-2.11", "libskarnet2.13", "libexecline2.9"]
DEBIAN_ROOT = CACHE / "debian"
# s6-svscan starts s6-supervise by its absolute path. The copy in the cache has a path of the same length or less,
# relative to the scan directory it works in, where the harness puts a link.
S6_INSTALLED = b"/usr/bin/s6-supervise\0"
S6_LINK = ".s6-svscan/supervise"
CIRCUS_QUICK_S = 0.001


class Service:
    """One service: its name, and what it runs."""

    def __init__(self, name, command):
        self.name = name
        self.command = [str(word) for word in command]


class Supervisor:
    """One row. `files` writes its configuration to `home`; `command` starts it in the foreground."""

    stop_signal = signal.SIGTERM
    # Whether it ends its children when it is told to stop, and takes what they write.
    stops = True
    logs = True

    def __init__(self, name, label):
        self.name = name
        self.label = label

    def files(self, home, services, quick, logs):
        raise NotImplementedError

    def command(self, home):
        raise NotImplementedError

    def environment(self, home):
        return {}

    def start(self, services, mark, quick=False, logs=False):
        """Starts it. `logs`: it is to keep what services write to standard output."""
        # Short: a unix socket's path may have 107 bytes.
        home = Path(tempfile.mkdtemp(prefix="bench-sv-"))
        try:
            self.files(home, services, quick, logs)
            log = OUT / "logs" / f"{self.name}.log"
            running = Running(self.name, self.command(home), mark, log, self.environment(home))
        except OSError:
            shutil.rmtree(home)
            raise
        running.home = home
        return running

    def daemon(self, running):
        """The pid of the daemon."""
        return running.pid

    def ask_to_stop(self, running):
        os.kill(self.daemon(running), self.stop_signal)


class Floor(Supervisor):
    stops = False
    logs = False

    def files(self, home, services, quick, logs):
        child, _, pipe = services[0].command[:3]
        (home / "command").write_text(json.dumps([str(len(services)), child, pipe]))

    def command(self, home):
        return [target_directory() / "release/bench-floor", *json.loads((home / "command").read_text())]


class Ostler(Supervisor):
    def files(self, home, services, quick, logs):
        # As the peers: so many services, started again whatever they ended with.
        text = f'[gateway]\nlisten = "127.0.0.1:0"\n[limits]\nprocesses = {len(services) + 1}\n'
        text += '[defaults.restart]\npolicy = "always"\nmax = 1000\n'
        if quick:
            text += '[defaults.restart.backoff]\nmin = "0s"\nmax = "1ms"\njitter = 0.0\n'
        for service in services:
            text += f'[servers.{service.name}]\ntransport = "none"\nscope = "shared"\n'
            text += f"command = {json.dumps(service.command[0])}\nargs = {json.dumps(service.command[1:])}\n"
            text += 'inherit_env = ["OSTLER_BENCH_MARK"]\n'
        (home / "ostler.toml").write_text(text)
        for folder in self.environment(home).values():
            os.mkdir(folder, mode=0o700)

    def command(self, home):
        return [ostler_binary(), "up", home / "ostler.toml"]

    def environment(self, home):
        return {"OSTLER_RUNTIME_DIR": str(home / "run"), "OSTLER_STATE_DIR": str(home / "state")}


class Supervisord(Supervisor):
    def files(self, home, services, quick, logs):
        text = f"[supervisord]\nnodaemon=true\nlogfile={home}/supervisord.log\n"
        text += f"pidfile={home}/supervisord.pid\nchildlogdir={home}\n"
        for service in services:
            text += f"[program:{service.name}]\ncommand={' '.join(service.command)}\nautorestart=true\n"
        (home / "supervisord.conf").write_text(text)

    def command(self, home):
        return [CACHE / "supervisors/bin/supervisord", "-c", home / "supervisord.conf"]


class Circus(Supervisor):
    def files(self, home, services, quick, logs):
        # Sockets in its own folder, not on fixed ports.
        text = f"[circus]\nendpoint = ipc://{home}/endpoint\npubsub_endpoint = ipc://{home}/pubsub\n"
        # It looks for ended children every five seconds otherwise.
        text += f"check_delay = {CIRCUS_QUICK_S}\n" if quick else ""
        for service in services:
            text += f"[watcher:{service.name}]\ncmd = {service.command[0]}\n"
            text += f"args = {' '.join(service.command[1:])}\ncopy_env = True\n"
            if logs:
                text += f"stdout_stream.class = FileStream\nstdout_stream.filename = {home}/{service.name}.log\n"
        (home / "circus.ini").write_text(text)

    def command(self, home):
        return [CACHE / "supervisors/bin/circusd", home / "circus.ini"]


class Pm2(Supervisor):
    """Its command line starts the daemon, tells it the services one by one, and ends."""

    def files(self, home, services, quick, logs):
        apps = [
            {
                "name": service.name,
                "script": service.command[0],
                "args": service.command[1:],
                "interpreter": "none",
                # No search for a repository around each service, and no statistics from inside it.
                "vizion": False,
                "pmx": False,
            }
            for service in services
        ]
        (home / "services.json").write_text(json.dumps({"apps": apps}))

    def command(self, home):
        return [CACHE / "npm-supervisors/node_modules/.bin/pm2", "start", home / "services.json"]

    def environment(self, home):
        return {"PM2_HOME": str(home / "pm2"), "PM2_DISABLE_VERSION_CHECK": "true"}

    def daemon(self, running):
        try:
            return int((running.home / "pm2/pm2.pid").read_text())
        except (OSError, ValueError) as error:
            raise TargetFailed(f"{self.name} has no daemon: {error}:\n{running.last_words()}") from error


class Runit(Supervisor):
    # To runsvdir: tell every runsv to stop its service and end; SIGTERM would leave them.
    stop_signal = signal.SIGHUP

    logger = "exec svlogd {folder}"

    def files(self, home, services, quick, logs):
        for service in services:
            folder = home / "services" / service.name
            script(folder / "run", f"exec {' '.join(service.command)}")
            if logs:
                kept = home / "logs" / service.name
                kept.mkdir(parents=True)
                script(folder / "log/run", self.logger.format(folder=kept))

    def command(self, home):
        return [DEBIAN_ROOT / "usr/bin/runsvdir", "-P", home / "services"]

    def environment(self, home):
        return {"PATH": f"{DEBIAN_ROOT}/usr/bin:{os.environ['PATH']}"}


class S6(Runit):
    stop_signal = signal.SIGTERM

    # Ten files of 1 MB, as svlogd keeps.
    logger = "exec s6-log n10 s1000000 {folder}"

    def files(self, home, services, quick, logs):
        super().files(home, services, quick, logs)
        link = home / "services" / S6_LINK
        link.parent.mkdir()
        link.symlink_to(DEBIAN_ROOT / "usr/bin/s6-supervise")

    def command(self, home):
        return [DEBIAN_ROOT / "usr/bin/s6-svscan", home / "services"]

    def environment(self, home):
        libraries = next(DEBIAN_ROOT.glob("usr/lib/*/libskarnet.so.*")).parent
        return super().environment(home) | {"LD_LIBRARY_PATH": str(libraries)}


def script(path, line):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


ALL = [
    Floor("floor", "floor (fork and wait)"),
    Ostler("ostler", "**Ostler**"),
    Supervisord("supervisord", "PyPI `supervisor` 4.3.0"),
    Circus("circus", "PyPI `circus` 0.19.0"),
    Pm2("pm2", "npm `pm2` 7.0.4"),
    Runit("runit", "Debian `runit`"),
    S6("s6", "Debian `s6`"),
]


def install(names):
    """Installs what the named supervisors need and is not installed yet, into bench/.cache."""
    CACHE.mkdir(exist_ok=True)
    if {"supervisord", "circus"} & set(names) and not (CACHE / "supervisors/bin/circusd").exists():
        pip_install(CACHE / "supervisors", PYPI)
    if "pm2" in names and not (CACHE / "npm-supervisors/node_modules/.bin/pm2").exists():
        npm_install(CACHE / "npm-supervisors", NPM)
    if {"runit", "s6"} & set(names) and not (DEBIAN_ROOT / "usr/bin/s6-svscan").exists():
        debian_unpack(DEBIAN_ROOT, DEBIAN, relink_s6)


def relink_s6(root):
    """Makes s6-svscan start s6-supervise by the link."""
    svscan = root / "usr/bin/s6-svscan"
    program = svscan.read_bytes()
    if program.count(S6_INSTALLED) != 1:
        raise TargetFailed("s6-svscan does not name s6-supervise as expected; another version than 2.11?")
    svscan.write_bytes(program.replace(S6_INSTALLED, S6_LINK.encode().ljust(len(S6_INSTALLED), b"\0")))


def debian_versions():
    """The versions of the Debian packages that were unpacked, by name; empty where there is no such machine."""
    versions = {package: debian_version(DEBIAN_ROOT, package) for package in ("runit", "s6")}
    return {package: version for package, version in versions.items() if version}
