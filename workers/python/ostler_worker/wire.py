"""Lines on standard input and output. Nothing else in the process can read or write there once this has them."""

import json
import os
import re
import threading

VERSION = 1
MAX_LINE = 16 << 20
MAX_VALUE = MAX_LINE - (64 << 10)
MAX_LOG_TEXT = 16 << 10
MAX_LOGS = 1000
MAX_MESSAGE = 4 << 10
MAX_TRACE = 8 << 10
HEARTBEAT = 1.0


class BrokenRules(Exception):
    """What came is no message. What follows could not be trusted."""


def bounded(text, most):
    """A text of at most so many bytes, which says what was left out."""
    data = text.encode("utf-8", "replace")
    if len(data) <= most:
        return data.decode("utf-8")
    kept = data[: most - 48].decode("utf-8", "ignore")
    return "%s [%d bytes left out]" % (kept, len(data) - len(kept.encode("utf-8")))


def bounded_end(text, most):
    """As `bounded`, but the end is kept: the end of a trace says where."""
    data = text.encode("utf-8", "replace")
    if len(data) <= most:
        return data.decode("utf-8")
    kept = data[-(most - 48):].decode("utf-8", "ignore")
    return "[%d bytes left out] %s" % (len(data) - len(kept.encode("utf-8")), kept)


class Lines:
    """Splits what comes into lines, within MAX_LINE."""

    def __init__(self):
        self._held = bytearray()
        self._looked = 0

    def push(self, data):
        self._held += data

    def next(self):
        while True:
            end = self._held.find(b"\n", self._looked)
            if end < 0:
                self._looked = len(self._held)
                if len(self._held) >= MAX_LINE:
                    raise BrokenRules("a line of more than %d bytes" % MAX_LINE)
                return None
            line = bytes(self._held[:end])
            del self._held[: end + 1]
            self._looked = 0
            if len(line) >= MAX_LINE:
                raise BrokenRules("a line of more than %d bytes" % MAX_LINE)
            if line.strip():
                return line


class Unreadable(Exception):
    """A task whose payload Python does not read (too deep, a number of too many digits), but that can be answered."""

    def __init__(self, task, attempt, why):
        super().__init__("the task cannot be read: %s" % why)
        self.task, self.attempt = task, attempt


# How a daemon begins a task.
_BEGINNING = re.compile(rb'\{"msg":"task","id":"([\w.:-]+)","attempt":(\d{1,9}),')


def _no_constant(name):
    raise ValueError("%s is no JSON" % name)


def parse(line):
    try:
        message = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        begun = _BEGINNING.match(line)
        if begun:
            raise Unreadable(begun[1].decode(), int(begun[2]), error) from None
        raise BrokenRules("no message: %s" % error) from None
    if not isinstance(message, dict) or not isinstance(message.get("msg"), str):
        raise BrokenRules("no message: a line is a JSON object with a text member `msg`")
    return message


def dump(value):
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


class Wire:
    """The two ends. Whatever else reads standard input finds it empty; whatever else writes to standard output writes
    to standard error."""

    def __init__(self):
        self.input = os.dup(0)
        self._output = os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        self._lock = threading.RLock()
        self.lines = Lines()
        self.ended = False

    def read(self):
        """Reads once; False at the end."""
        data = os.read(self.input, 1 << 16)
        self.ended = self.ended or not data
        self.lines.push(data)
        return bool(data)

    def held(self):
        while True:
            line = self.lines.next()
            try:
                return None if line is None else parse(line)
            except Unreadable as task:
                self.refuse(task.task, task.attempt, "invalid", str(task), False)

    def refuse(self, task, attempt, kind, message, retry):
        """Answers a task that is not begun."""
        error = {"kind": kind, "message": bounded(message, MAX_MESSAGE), "retry": retry}
        self.send({"msg": "result", "id": task, "attempt": attempt, "ok": False, "error": error})

    def next(self):
        """The next message, waiting for it; None at the end."""
        while True:
            message = self.held()
            if message is not None:
                return message
            if not self.read():
                return None

    def send(self, message):
        self.send_line(dump(message))

    def send_line(self, line):
        rest = memoryview(line.encode("utf-8") + b"\n")
        with self._lock:
            while rest:
                rest = rest[os.write(self._output, rest):]

    def close(self):
        """In a child, which has other ends."""
        os.close(self.input)
        os.close(self._output)
