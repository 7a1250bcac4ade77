"""The targets of the comparison: how each is installed and how it is started beside the others.

Every peer runs with its own defaults; only its log is turned down, so that none is measured writing lines to a
file. All bind the loopback address.
"""

import json
import os
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path

from .installers import CACHE, call, npm_install, pip_install
from .processes import Running, TargetFailed, answers, free_port, new_mark

BENCH = Path(__file__).resolve().parent.parent
ROOT = BENCH.parent
OUT = BENCH / "out"

NPM = ["supergateway@4.0.0", "mcp-proxy@6.7.19"]
PYPI = ["mcp-proxy==0.13.0"]
CARGO = ["turbomcp-proxy@3.6.0", "mcp-proxy@0.6.0"]

# Whatever proxy the environment names is not for the loopback address.
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))

START_DEADLINE_S = 60
START_TRIES = 3
# How long a client may be silent in the churn before its session is given up, where a target can be told.
CHURN_IDLE_S = 5


class Target:
    """One row of the comparison. `per_session` says whether each session has a server process of its own."""

    def __init__(self, name, label, per_session, tool="echo"):
        self.name = name
        self.label = label
        self.per_session = per_session
        self.tool = tool

    def start(self, tools, churn):
        """Starts it in front of the echo server; answers the running target and its URL."""
        failure = None
        for _ in range(START_TRIES):
            port, mark = free_port(), new_mark()
            running = self.launch(tools, port, mark, churn)
            try:
                return running, running.wait_until(lambda: self.url(running, port), START_DEADLINE_S)
            except TargetFailed as error:
                failure = error
                self.stop(running)
        raise failure

    def stop(self, running):
        """Stops it; answers how many processes it left behind."""
        return running.stop()

    def url(self, running, port):
        """Where it answers, once it does."""
        return f"http://127.0.0.1:{port}{self.path}" if answers(port) else None

    def server(self, tools):
        """The program that stands behind it."""
        return tools / "echo-server"

    # Further lines of the server's table in Ostler's configuration.
    more = ""

    def run(self, command, mark, environment=None):
        return Running(self.name, command, mark, OUT / "logs" / f"{self.name}.log", environment or {})

    path = "/mcp"

    def launch(self, tools, port, mark, churn):
        raise NotImplementedError


class Floor(Target):
    def launch(self, tools, port, mark, churn):
        return self.run([tools / "floor-proxy", "--port", port, "--", tools / "echo-server"], mark)


class Supergateway(Target):
    def launch(self, tools, port, mark, churn):
        program = CACHE / "npm/node_modules/.bin/supergateway"
        command = [program, "--stdio", self.server(tools), "--outputTransport", "streamableHttp"]
        command += ["--port", port, "--stateful", "--logLevel", "none"]
        if churn and self.name != "supergateway-defaults":
            command += ["--sessionTimeout", CHURN_IDLE_S * 1000]
        return self.run(command, mark, {"NODE_OPTIONS": f"--require {BENCH / 'loopback.cjs'}"})


class NpmMcpProxy(Target):
    def launch(self, tools, port, mark, churn):
        command = [CACHE / "npm/node_modules/.bin/mcp-proxy", "--host", "127.0.0.1", "--port", port]
        command += ["--server", "stream"]
        if churn:
            command += ["--sessionIdleTimeout", CHURN_IDLE_S * 1000]
        return self.run(command + ["--", tools / "echo-server"], mark)


class PypiMcpProxy(Target):
    def launch(self, tools, port, mark, churn):
        command = [CACHE / "py/bin/mcp-proxy", "--host", "127.0.0.1", "--port", port, "--pass-environment"]
        return self.run(command + ["--log-level", "ERROR", "--", tools / "echo-server"], mark)


class TurboMcpProxy(Target):
    def launch(self, tools, port, mark, churn):
        command = [CACHE / "cargo/bin/turbomcp-proxy", "serve", "--backend", "stdio"]
        command += ["--cmd", tools / "echo-server", "--frontend", "http", "--bind", f"127.0.0.1:{port}"]
        return self.run(command, mark, {"RUST_LOG": "error"})


class CargoMcpProxy(Target):
    path = "/"

    def launch(self, tools, port, mark, churn):
        config = OUT / "mcp-proxy.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(
            f'[proxy]\nname = "bench"\n[proxy.listen]\nhost = "127.0.0.1"\nport = {port}\n'
            f'[[backends]]\nname = "echo"\ntransport = "stdio"\ncommand = "{tools / "echo-server"}"\n'
        )
        command = [CACHE / "cargo/bin/mcp-proxy", "--config", config]
        return self.run(command, mark, {"RUST_LOG": "error"})


class Ostler(Target):
    def launch(self, tools, port, mark, churn):
        # Short: a unix socket's path may have 107 bytes.
        home = Path(tempfile.mkdtemp(prefix="ostler-bench-"))
        config = home / "ostler.toml"
        config.write_text(
            f'[gateway]\nlisten = "127.0.0.1:0"\n'
            f"[limits]\nprocesses = {1000 if churn else 200}\nsessions = 2000\nsession_instances = 2000\n"
            + (f'[sessions]\nidle = "{CHURN_IDLE_S}s"\n' if churn else "")
            + f'[servers.echo]\ncommand = "{self.server(tools)}"\n{self.more}'
            # The peers that share one process have started it before they listen; so it is waited for here too.
            f'scope = "{"session" if self.per_session else "shared"}"\nrequired = {json.dumps(not self.per_session)}\n'
            f'env = {{ OSTLER_BENCH_MARK = "{mark}" }}\n'
        )
        environment = {"OSTLER_RUNTIME_DIR": str(home / "run"), "OSTLER_STATE_DIR": str(home / "state")}
        for folder in environment.values():
            os.mkdir(folder, mode=0o700)
        try:
            running = self.run([ostler_binary(), "up", config], mark, environment)
        except OSError:
            shutil.rmtree(home)
            raise
        running.home = home
        return running

    def url(self, running, port):
        try:
            endpoint = json.loads((running.home / "run/endpoint.json").read_text())
        except (OSError, ValueError):
            return None
        try:
            LOCAL.open(endpoint["http"] + "/readyz", timeout=1).close()
        except OSError:
            return None
        return f"{endpoint['http']}/mcp/echo"

    def stop(self, running):
        left = super().stop(running)
        shutil.rmtree(running.home, ignore_errors=True)
        return left


ALL = [
    Floor("floor", "floor (hyper to stdio)", per_session=False),
    Ostler("ostler", "**Ostler**, shared", per_session=False),
    Ostler("ostler-session", "**Ostler**, session", per_session=True),
    TurboMcpProxy("turbomcp-proxy", "crates.io `turbomcp-proxy` 3.6.0", per_session=False),
    CargoMcpProxy("cargo-mcp-proxy", "crates.io `mcp-proxy` 0.6.0", per_session=False, tool="echo/echo"),
    NpmMcpProxy("npm-mcp-proxy", "npm `mcp-proxy` 6.7.19", per_session=False),
    Supergateway("supergateway", "npm `supergateway` 4.0.0, stateful", per_session=True),
    PypiMcpProxy("pypi-mcp-proxy", "PyPI `mcp-proxy` 0.13.0", per_session=False),
]
PEERS = ["turbomcp-proxy", "cargo-mcp-proxy", "npm-mcp-proxy", "supergateway", "pypi-mcp-proxy"]
# The churn runs supergateway twice: told to give sessions up as soon as Ostler does, and with its default time.
CHURN_ONLY = [
    Supergateway("supergateway-defaults", "npm `supergateway` 4.0.0, stateful, default timeout", per_session=True)
]


def install_peers(names):
    """Installs what the named targets need and is not installed yet, into bench/.cache."""
    CACHE.mkdir(exist_ok=True)
    if {"supergateway", "supergateway-defaults", "npm-mcp-proxy"} & set(names):
        if not (CACHE / "npm/node_modules/.bin/supergateway").exists():
            npm_install(CACHE / "npm", NPM)
    if "pypi-mcp-proxy" in names and not (CACHE / "py/bin/mcp-proxy").exists():
        pip_install(CACHE / "py", PYPI)
    for package in CARGO:
        program = package.split("@")[0]
        target = "cargo-mcp-proxy" if program == "mcp-proxy" else program
        if target in names and not (CACHE / "cargo/bin" / program).exists():
            call(["cargo", "install", "--locked", "--root", CACHE / "cargo", package])


def build_tools(package="bench-gateway"):
    """Builds a benchmark's own programs; answers the folder they are in."""
    call(["cargo", "build", "--release", "--package", package], cwd=ROOT)
    return target_directory() / "release"


def build_ostler():
    """Builds Ostler, unless OSTLER_BIN names a binary."""
    if not os.environ.get("OSTLER_BIN"):
        call(["cargo", "build", "--release", "--package", "ostler"], cwd=ROOT)


def ostler_binary():
    """The Ostler that is measured."""
    return Path(os.environ.get("OSTLER_BIN") or target_directory() / "release/ostler")


def target_directory():
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps"]
    described = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    return Path(json.loads(described)["target_directory"])
