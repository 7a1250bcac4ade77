"""One attempt, and how it ends."""

import json
import traceback

from .wire import MAX_LOG_TEXT, MAX_LOGS, MAX_MESSAGE, MAX_TRACE, MAX_VALUE, bounded, bounded_end, dump

TIME_MS = 300_000
MEMORY = 256 << 20
OUTPUT = 1 << 20
KINDS = ("failed", "invalid", "timeout", "memory", "refused", "output", "cancelled")
RETRIED = ("failed", "timeout", "memory")


class TaskError(Exception):
    """Ends a task with an error of a kind; `retry`: whether another attempt may end better."""

    kind = "failed"

    def __init__(self, message, kind=None, retry=None):
        if kind is not None and kind not in KINDS:
            raise ValueError("an error is of one of the kinds %s" % ", ".join(KINDS))
        super().__init__(message)
        self.kind = kind or self.kind
        self.retry = self.kind in RETRIED if retry is None else retry


class Invalid(TaskError):
    """What was asked for makes no sense."""

    kind = "invalid"


class Refused(TaskError):
    """It is not allowed, or not done here."""

    kind = "refused"


def _number(value, default, name):
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Invalid("`limits.%s` is no number of 0 or more" % name)
    return value


class Task:
    """What a handler gets beside its payload."""

    def __init__(self, message, say):
        limits, allow = message.get("limits", {}), message.get("allow", {})
        if not isinstance(message.get("type"), str) or "payload" not in message:
            raise Invalid("the task is not as it should be: it has a text `type` and a `payload`")
        if not isinstance(limits, dict) or not isinstance(allow, dict):
            raise Invalid("the task is not as it should be: `limits` and `allow` are objects")
        self.id, self.attempt = message["id"], message["attempt"]
        self.type, self.payload = message["type"], message["payload"]
        self.time = min(_number(limits.get("time_ms"), TIME_MS, "time_ms") / 1000, 366 * 86400)
        self.memory = _number(limits.get("memory"), MEMORY, "memory")
        self.output = min(_number(limits.get("output"), OUTPUT, "output"), MAX_VALUE)
        folders = allow.get("folders", [])
        if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
            raise Invalid("the task is not as it should be: `allow.folders` is a list of texts")
        self.folders = folders
        self.cancelled = False
        self._say = say
        self._logs = 0
        self.max_logs = MAX_LOGS

    def log(self, text, level="info"):
        """Writes something down: level debug, info, warn or error."""
        self._logs += 1
        if self._logs <= self.max_logs:
            level = level if level in ("debug", "info", "warn", "error") else "info"
            self._tell({"msg": "log", "level": level, "text": bounded(str(text), MAX_LOG_TEXT)})

    def progress(self, done, total=None, note=None):
        """Says how far it is."""
        for number in (done, 0 if total is None else total):
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise TypeError("progress is told in numbers")
        message = {"msg": "progress", "done": done}
        if total is not None:
            message["total"] = total
        if note is not None:
            message["note"] = bounded(str(note), MAX_MESSAGE)
        self._tell(message)

    def settle(self):
        """Tells what was not written down."""
        if self._logs > self.max_logs:
            text = "%d more messages were dropped: a task may write %d" % (self._logs - MAX_LOGS, MAX_LOGS)
            self._tell({"msg": "log", "level": "warn", "text": text})

    def _tell(self, message):
        message.update(id=self.id, attempt=self.attempt)
        self._say(dump(message))

    def value(self, value):
        """The line of a result."""
        try:
            text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            return self.error("output", "the result is no JSON: %s" % error)
        size = len(text)
        if size > self.output:
            message = "the result has %d bytes as JSON; %d are allowed (`limits.output`)" % (size, self.output)
            return self.error("output", message)
        return '{"msg":"result","id":%s,"attempt":%d,"ok":true,"value":%s}' % (
            json.dumps(self.id), self.attempt, text)

    def error(self, kind, message, trace=None, retry=None):
        """The line of an error."""
        error = {"kind": kind, "message": bounded(message, MAX_MESSAGE)}
        if trace:
            error["trace"] = bounded_end(trace, MAX_TRACE)
        error["retry"] = kind in RETRIED if retry is None else retry
        return dump({"msg": "result", "id": self.id, "attempt": self.attempt, "ok": False, "error": error})

    def raised(self, error):
        """The line of an exception."""
        if isinstance(error, TaskError):
            return self.error(error.kind, str(error), retry=error.retry)
        if isinstance(error, MemoryError):
            return self.error("memory", "it needs more memory than it may have (`limits.memory`)")
        try:
            said = "".join(traceback.format_exception_only(type(error), error)).strip()
        except Exception:
            said = type(error).__name__
        return self.error("failed", said, trace_of(error))


def trace_of(error):
    """Where it was raised, without the library's own frames."""
    try:
        frames = traceback.extract_tb(error.__traceback__)
        here = __file__.rsplit("/", 1)[0] + "/"
        frames = [frame for frame in frames if not frame.filename.startswith(here)]
        return "".join(traceback.format_list(frames[-50:]))
    except Exception:
        return None
