"""A task in a process forked from this one."""

import ctypes
import os
import resource
import select
import signal
import sys
import time

from .task import KINDS
from .wire import HEARTBEAT, MAX_LINE, BrokenRules, Lines, parse

# prctl(2): what loses its parent below this process becomes its child.
PR_SET_CHILD_SUBREAPER = 36
# How long killed processes may take to be gone.
GONE = 5.0


def adopt_descendants():
    try:
        return ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False


def run_forked(wire, worker, task):
    """Runs a task to its end and answers. True: the worker is to end after it."""
    adopt_descendants()
    sys.stdout.flush()
    sys.stderr.flush()
    talk, out, err = os.pipe(), os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(wire, worker, task, talk, out, err)
    try:
        os.setpgid(pid, pid)
    except OSError:
        pass
    for _, end in (talk, out, err):
        os.close(end)
    parent = _Parent(wire, task, pid, talk[0], out[0], err[0])
    try:
        parent.attend()
    finally:
        status = parent.end()
    parent.answer(status)
    return parent.last or wire.ended


def _child(wire, worker, task, talk, out, err):
    """The rest of this process's life."""
    status = 1
    try:
        os.setpgid(0, 0)
        wire.close()
        os.dup2(out[1], 1)
        os.dup2(err[1], 2)
        for end in (*out, *err, talk[0]):
            os.close(end)
        sys.stdin = open(os.devnull)
        sys.stdout = open(1, "w", buffering=1, closefd=False, errors="replace")
        sys.stderr = open(2, "w", buffering=1, closefd=False, errors="replace")
        # All goes to the parent, which counts.
        task._say, task.max_logs = (lambda line: _write(talk[1], line)), sys.maxsize
        _limit(task.memory)
        line = _perform(worker, task)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass
        _write(talk[1], line)
        status = 0
    finally:
        os._exit(status)


def _perform(worker, task):
    try:
        return task.value(worker.handle(task))
    except BaseException as error:
        # The limit is lifted to tell of it: telling needs memory too.
        resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)
        return task.raised(error)


def _limit(memory):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = used + memory
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def _write(end, line):
    rest = memoryview(line.encode("utf-8") + b"\n")
    while rest:
        rest = rest[os.write(end, rest):]


class _Prints:
    """What a task prints, as log messages, a line each."""

    def __init__(self, task, level):
        self._task, self._level, self._held = task, level, b""

    def push(self, data):
        *lines, self._held = (self._held + data).split(b"\n")
        if len(self._held) > 65536:
            lines.append(self._held)
            self._held = b""
        for line in lines:
            self._task.log(line.decode("utf-8", "replace"), self._level)

    def close(self):
        if self._held:
            self.push(b"\n")


class _Parent:
    """Hears the child and the daemon until the child is done or is to be ended."""

    def __init__(self, wire, task, pid, talk, out, err):
        self.wire, self.task, self.pid = wire, task, pid
        self.talk, self.lines = talk, Lines()
        self.prints = {out: _Prints(task, "info"), err: _Prints(task, "warn")}
        self.deadline = time.monotonic() + task.time
        self.beat = time.monotonic() + HEARTBEAT
        self.result = None
        self.stopped = None
        self.last = False

    def attend(self):
        ends = [self.talk, *self.prints]
        while self.talk in ends and self.result is None and self.stopped is None:
            now = time.monotonic()
            if now >= self.deadline:
                message = "not done in %d ms" % (self.task.time * 1000)
                self.stopped = self.task.error("timeout", message)
                return
            if now >= self.beat:
                self.wire.send({"msg": "heartbeat", "id": self.task.id, "attempt": self.task.attempt})
                self.beat = now + HEARTBEAT
            wait = max(0.0, min(self.beat, self.deadline) - now)
            ready, _, _ = select.select([*ends, self.wire.input], [], [], wait)
            for end in ready:
                if end == self.wire.input:
                    self._hear()
                elif not self._take(end):
                    ends.remove(end)

    def _take(self, end):
        data = os.read(end, 1 << 16)
        if end in self.prints:
            self.prints[end].push(data)
            return bool(data)
        try:
            self.lines.push(data)
            while self.result is None:
                line = self.lines.next()
                if line is None:
                    break
                self._told(line)
        except BrokenRules:
            self.stopped = self.task.error("output", "the result is larger than a line may be (%d bytes)" % MAX_LINE)
        return bool(data)

    def _told(self, line):
        """What the child says. Its code may have written there too: only what is of this attempt is passed on."""
        try:
            message = parse(line)
        except BrokenRules:
            return
        if message.get("id") != self.task.id or message.get("attempt") != self.task.attempt:
            return
        kind = message["msg"]
        if kind == "log":
            self.task.log(message.get("text", ""), message.get("level"))
        elif kind == "progress":
            try:
                self.task.progress(message.get("done"), message.get("total"), message.get("note"))
            except TypeError:
                pass
        elif kind == "result" and _is_result(message, len(line), self.task):
            self.result = line.decode("utf-8")
        elif kind == "result":
            self.stopped = self.task.error("failed", "its code wrote where only its worker writes")

    def _hear(self):
        self.wire.read()
        while True:
            message = self.wire.held()
            if message is None:
                break
            hear(message, self.wire, self.task, self)
        if self.wire.ended:
            self.stopped = self.task.error("cancelled", "the daemon is gone")

    def cancel(self):
        self.stopped = self.task.error("cancelled", "cancelled while it ran")

    def end(self):
        """Ends the child and all that it started; how it ended."""
        if self.result is None and self.stopped is None:
            # It closed its end, and is about to be gone by itself.
            _wait_for(self.pid, GONE)
        _signal(os.killpg, self.pid)
        until, status = time.monotonic() + GONE, None
        while True:
            try:
                pid, how = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == self.pid:
                status = how
            if pid == 0:
                if time.monotonic() >= until:
                    os._exit(3)
                for child in _children():
                    _signal(os.kill, child)
                    _wait_for(child, 0.1)
        self._drain()
        return status

    def _drain(self):
        for end, prints in self.prints.items():
            os.set_blocking(end, False)
            try:
                while True:
                    data = os.read(end, 1 << 16)
                    if not data:
                        break
                    prints.push(data)
            except BlockingIOError:
                pass
            prints.close()
            os.close(end)
        os.close(self.talk)

    def answer(self, status):
        self.task.settle()
        line = self.stopped or self.result
        if line is None:
            line = self.task.error("failed", "its process ended without a result: %s" % _how(status))
        self.wire.send_line(line)


def hear(message, wire, task, running):
    """A message that comes while a task runs."""
    kind = message["msg"]
    if kind == "cancel":
        if message.get("id") == task.id and message.get("attempt") == task.attempt:
            running.cancel()
    elif kind == "shutdown":
        running.last = True
    elif kind == "task":
        if not isinstance(message.get("id"), str) or type(message.get("attempt")) is not int:
            raise BrokenRules("a `task` without a text `id` and a number `attempt`")
        why = "this worker is busy with %s; it does one task at a time" % task.id
        wire.refuse(message["id"], message["attempt"], "refused", why, True)


def _is_result(message, size, task):
    """Whether it is one that the child's worker made. Its head and an error are never as long as this."""
    if size > task.output + (64 << 10):
        return False
    error = message.get("error")
    if message.get("ok") is True:
        return "value" in message and "error" not in message
    return (message.get("ok") is False and "value" not in message and isinstance(error, dict)
            and error.get("kind") in KINDS and isinstance(error.get("message"), str)
            and isinstance(error.get("trace", ""), str) and isinstance(error.get("retry"), bool))


def _signal(how, pid):
    try:
        how(pid, signal.SIGKILL)
    except OSError:
        pass


def _children():
    try:
        with open("/proc/self/task/%d/children" % os.getpid()) as children:
            return [int(pid) for pid in children.read().split()]
    except OSError:
        return []


def _wait_for(pid, seconds):
    try:
        end = os.pidfd_open(pid)
    except (OSError, AttributeError):
        return
    try:
        select.select([end], [], [], seconds)
    finally:
        os.close(end)


def _how(status):
    if status is None:
        return "nobody knows how"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        hint = " (by the kernel, where memory was short?)" if number == signal.SIGKILL else ""
        return "signal %d%s" % (number, hint)
    return "exit status %d" % os.WEXITSTATUS(status)
