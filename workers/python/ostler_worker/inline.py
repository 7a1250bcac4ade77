"""Tasks in this process: `Worker(isolate=False)`."""

import io
import os
import queue
import signal
import sys
import threading
import time

from .forked import hear
from .wire import HEARTBEAT, BrokenRules

# A task that is to stop has so long before the worker answers for it and ends.
GRACE = 2.0


class _Stopped(BaseException):
    """Raised in a task that is to stop. No `Exception`: it is not to be caught by accident."""


class _Prints(io.TextIOBase):
    """Takes what is printed, a log message a line."""

    def __init__(self, inline, level):
        self._inline, self._level, self._held = inline, level, ""

    def writable(self):
        return True

    def write(self, text):
        *lines, self._held = (self._held + text).split("\n")
        for line in lines:
            self._inline.printed(line, self._level)
        return len(text)

    def finish(self):
        if self._held:
            self.write("\n")


class Inline:
    """One thread hears the daemon and keeps the time; this one does the tasks."""

    def __init__(self, wire, worker):
        self._wire, self._worker = wire, worker
        self._lock = threading.RLock()
        self._inbox = queue.SimpleQueue()
        self._woken = threading.Event()
        self._task = None
        self._stop_line = None
        self._interruptible = False
        self.last = False
        self._prints = [_Prints(self, "info"), _Prints(self, "warn")]
        sys.stdout, sys.stderr = self._prints
        signal.signal(signal.SIGUSR1, self._interrupt)
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    def next(self):
        message = self._inbox.get()
        if isinstance(message, BaseException):
            raise message
        return message

    def printed(self, line, level):
        task = self._task
        if task is not None:
            task.log(line, level)
        else:
            os.write(2, (line + "\n").encode("utf-8", "replace"))

    def run(self, task):
        with self._lock:
            self._task, self._stop_line = task, None
            self._deadline = time.monotonic() + task.time
        self._woken.set()
        try:
            self._interruptible = True
            if self._stop_line is not None:
                raise _Stopped
            line = task.value(self._worker.handle(task))
            self._interruptible = False
        except BaseException as error:
            self._interruptible = False
            line = task.raised(error)
        self._interruptible = False
        for prints in self._prints:
            prints.finish()
        with self._lock:
            self._task = None
            task.settle()
            self._wire.send_line(self._stop_line or line)
        return self.last

    def _interrupt(self, *_):
        if self._interruptible:
            self._interruptible = False
            raise _Stopped

    def _stop(self, line):
        with self._lock:
            if self._task is None or self._stop_line is not None:
                return
            self._stop_line = line
            self._deadline = time.monotonic() + GRACE
            self._task.cancelled = True
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    def cancel(self):
        self._stop(self._task.error("cancelled", "cancelled while it ran"))
        self._woken.set()

    def _listen(self):
        try:
            while True:
                message = self._wire.next()
                with self._lock:
                    task = self._task
                    if task is not None and message is not None:
                        hear(message, self._wire, task, self)
                        continue
                if message is None:
                    break
                self._inbox.put(message)
            self._inbox.put(None)
        except (BrokenRules, OSError) as broken:
            self._inbox.put(broken)
        # Nobody is there any more who would hear the answer.
        with self._lock:
            if self._task is not None:
                self._stop(self._task.error("cancelled", "the daemon is gone"))
        self._woken.set()

    def _watch(self):
        """Says that the worker is alive, and ends what is over its time."""
        beat = time.monotonic() + HEARTBEAT
        while True:
            if self._task is None:
                self._woken.wait()
                beat = time.monotonic() + HEARTBEAT
            self._woken.clear()
            with self._lock:
                task, now = self._task, time.monotonic()
                if task is None:
                    continue
                if now >= self._deadline:
                    if self._stop_line is not None:
                        # It does not come to its next bytecode: nothing but the end of the process stops it.
                        self._wire.send_line(self._stop_line)
                        os._exit(3)
                    self._stop(task.error("timeout", "not done in %d ms" % (task.time * 1000)))
                if now >= beat:
                    self._wire.send({"msg": "heartbeat", "id": task.id, "attempt": task.attempt})
                    beat = now + HEARTBEAT
                wait = max(0.0, min(beat, self._deadline) - now)
            self._woken.wait(wait)
