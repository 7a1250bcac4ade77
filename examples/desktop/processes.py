"""The processes and the private directory of one desktop: none of them outlives it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
from pathlib import Path

# How long children may take to end after SIGTERM before they get SIGKILL, in seconds. Below the 2 s that Ostler
# leaves between closing standard input and its own SIGTERM (`stop.grace` is 10 s).
END_GRACE_S = 1.0
# How long they may take after SIGKILL.
KILL_LIMIT_S = 5.0

# The longest path of a socket that the kernel takes, and the part that Chromium adds to its directory.
SOCKET_LIMIT = 107
SOCKET_CHARS = len("/org.chromium.Chromium.XXXXXX/SingletonSocket")

PR_SET_CHILD_SUBREAPER = 36


class DesktopError(Exception):
    """What failed, why, and what to do: told to the client as it is."""


def start_ticks(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot; None if there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


NAME = re.compile(r"ostler-desktop-(\d+)-(\d+)-([0-9a-f]+)")


def private_directory() -> Path:
    """A new directory that only this user can read. Its name says whose it is: pid, start time, pid namespace."""
    pid = os.getpid()
    path = Path(tempfile.gettempdir()) / f"ostler-desktop-{pid}-{start_ticks(pid)}-{pid_namespace():x}"
    if len(os.fsencode(path)) + SOCKET_CHARS > SOCKET_LIMIT:
        raise DesktopError(f"{path} is too long: Chromium makes a socket in it, whose path may have {SOCKET_LIMIT} "
                           "characters. Set TMPDIR to a shorter one, such as /tmp")
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        raise DesktopError(f"cannot make {path}: {error.strerror}. Set TMPDIR to a folder that can be written") from None
    return path


def remove_stale(parent: Path) -> list[Path]:
    """
    Removes what killed desktops left in `parent`: directories of this user whose name says that their process has
    ended. One of another pid namespace (a container with the same /tmp) is left alone: its process cannot be seen.
    """
    removed = []
    for path in parent.glob("ostler-desktop-*"):
        name = NAME.fullmatch(path.name)
        if not name or int(name[3], 16) != pid_namespace() or start_ticks(int(name[1])) == int(name[2]):
            continue
        try:
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            remove_stale_lock(path)
        except OSError:
            continue  # somebody else removes it, too
        shutil.rmtree(path, ignore_errors=True)
        removed.append(path)
    return removed


def remove_stale_lock(directory: Path) -> None:
    """
    A killed X server leaves /tmp/.X<n>-lock. The next one takes it over by itself, but not if its pid has gone to
    another process since; so it is removed here if it is still that server's and that server has ended.
    """
    try:
        number, pid, ticks = (int(word) for word in (directory / "display").read_text().split())
        lock = Path(f"/tmp/.X{number}-lock")
        if int(lock.read_text()) == pid and start_ticks(pid) != ticks:
            lock.unlink()
    except (OSError, ValueError):
        pass  # it never got so far, or has been cleaned up


class Children:
    """All processes of a desktop. Orphans come to this process, so that `end` finds them."""

    def __init__(self) -> None:
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise DesktopError(f"cannot adopt orphans (PR_SET_CHILD_SUBREAPER): {os.strerror(ctypes.get_errno())}")

    def start(self, command: list[str], env: dict[str, str], fds: dict[int, int] | None = None) -> int:
        """
        Starts a program; gives its pid. Its output goes to standard error (standard output is the protocol's). It is
        killed when the thread that starts it ends. `fds`: which descriptor of its becomes which of ours.
        """
        program = shutil.which(command[0])
        if program is None:
            raise DesktopError(f"{command[0]} is not installed. Install what README.md lists: "
                               "sudo apt-get install -y --no-install-recommends chromium fonts-dejavu-core openbox xvfb")
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
        # Out of the way first, as one of ours may have the number that another becomes.
        high = {its: fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 10) for its, ours in (fds or {}).items()}
        actions += [(os.POSIX_SPAWN_DUP2, ours, its) for its, ours in high.items()]
        try:
            # Signals as a program expects them: Python ignores SIGPIPE, and that is inherited.
            return os.posix_spawnp("setpriv", ["setpriv", "--pdeathsig", "KILL", "--", program, *command[1:]], env,
                                   file_actions=actions, setsigdef=[signal.SIGPIPE], setsigmask=[])
        except FileNotFoundError:
            raise DesktopError("setpriv is not installed: sudo apt-get install -y util-linux") from None
        finally:
            for ours in high.values():
                os.close(ours)

    def has_ended(self, pid: int) -> bool:
        """Whether a child of ours has ended. It stays a zombie, so that its pid stays its own, until `reap`."""
        try:
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        except ChildProcessError:
            return True

    def wait(self, pid: int) -> None:
        """Returns when a child of ours has ended, without removing what remains of it."""
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            pass

    def reap(self) -> bool:
        """Removes what remains of children that have ended; says whether any child is left."""
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    return True
            except ChildProcessError:
                return False

    def end(self) -> bool:
        """Ends every child, and theirs as they come to us; says whether none is left."""
        begun = time.monotonic()
        signalled: set[tuple[int, int]] = set()
        while self.reap():
            spent = time.monotonic() - begun
            if spent > END_GRACE_S + KILL_LIMIT_S:
                return False
            signum = signal.SIGTERM if spent < END_GRACE_S else signal.SIGKILL
            for pid in own_children():
                if (pid, signum) not in signalled:
                    signalled.add((pid, signum))
                    # A child that was not reaped keeps its pid, so this can hit nobody else.
                    os.kill(pid, signum)
            time.sleep(0.01)
        return True


def own_children() -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == os.getpid():
                found.append(int(entry))
    return found


def say(text: str) -> None:
    """A line for Ostler's log of this server."""
    print(f"desktop: {text}", file=sys.stderr, flush=True)
