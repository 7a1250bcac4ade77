"""Start a target, find all that belongs to it, stop it, and make sure nothing of it is left.

Everything a target starts inherits a mark in its environment. What carries the mark is the target's, wherever it
hangs in the process tree; what does not is never signalled.
"""

import os
import secrets
import signal
import socket
import subprocess
import time

MARK = "OSTLER_BENCH_MARK"
STOP_GRACE_S = 8.0
LOOK_EVERY_S = 0.05


class TargetFailed(Exception):
    """The target did not start, with what it wrote last."""


def new_mark():
    """A mark no other process carries."""
    return secrets.token_hex(8)


def free_port():
    """A port of the loopback address that is free now. Another may take it before the target does: then the
    target fails to start, and is started again with another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def marked(mark):
    """The pids of all processes that carry the mark, zombies left out."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as environment:
                if wanted in environment.read().split(b"\0"):
                    found.append(int(name))
        except OSError:
            continue
    return found


class Running:
    """A target that was started, and its log."""

    def __init__(self, name, command, mark, log, environment):
        self.name = name
        self.mark = mark
        self.log = log
        self.started_at = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, MARK: mark},
                start_new_session=True,
            )
        self.pid = self.process.pid

    def wait_until(self, ready, deadline_s):
        """Waits until `ready()` answers something true, and answers that."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise TargetFailed(f"{self.name} ended with {self.process.returncode}:\n{self.last_words()}")
            answer = ready()
            if answer:
                return answer
            time.sleep(LOOK_EVERY_S)
        raise TargetFailed(f"{self.name} was not ready after {deadline_s} s:\n{self.last_words()}")

    def last_words(self):
        """The end of its log."""
        with open(self.log, "rb") as log:
            return log.read()[-2000:].decode(errors="replace")

    def stop(self):
        """SIGTERM to the target itself, as a service manager would; answers how many of its processes were
        left after the grace, which are then killed one by one."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + STOP_GRACE_S
        while time.monotonic() < end and (self.process.poll() is None or marked(self.mark)):
            time.sleep(LOOK_EVERY_S)
        left = marked(self.mark)
        end = time.monotonic() + STOP_GRACE_S
        while marked(self.mark):
            for pid in marked(self.mark):
                kill(pid, self.mark)
            if time.monotonic() > end:
                raise TargetFailed(f"{self.name} left processes that SIGKILL does not end: {marked(self.mark)}")
            time.sleep(LOOK_EVERY_S)
        self.process.wait(STOP_GRACE_S)
        return len(left)


def kill(pid, mark):
    """SIGKILL to a process, if it still carries the mark; through a pidfd, so never to a recycled pid."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if pid in marked(mark):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def answers(port):
    """Whether something accepts connections on the loopback port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
