"""The loop: one task at a time."""

import asyncio
import inspect
import sys

from .forked import run_forked
from .inline import Inline
from .task import Invalid, Task
from .wire import HEARTBEAT, VERSION, BrokenRules, Wire, bounded


class Worker:
    """A worker with a name for people. `isolate`: each task in a process of its own."""

    def __init__(self, name, isolate=True):
        self.name, self.isolate = name, isolate
        self._handlers = {}

    def task(self, kind):
        """Decorates the function that does the tasks of a type: `(payload, task)` gives the result."""
        def keep(handler):
            self._handlers[kind] = handler
            return handler
        return keep

    def handle(self, task):
        """Does a task, in whichever process this is."""
        handler = self._handlers.get(task.type)
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            raise Invalid("this worker does no `%s`; it does %s" % (task.type, known))
        value = handler(task.payload, task)
        return asyncio.run(_whole(value)) if inspect.isawaitable(value) else value

    def run(self):
        """Does tasks until there are no more. Ends the process."""
        wire = Wire()
        try:
            inline = None if self.isolate else Inline(wire, self)
            wire.send({"msg": "ready", "protocol": VERSION, "name": self.name, "types": sorted(self._handlers),
                       "at_once": 1, "heartbeat_ms": int(HEARTBEAT * 1000)})
            self._serve(wire, inline)
            status = 0
        except BrokenRules as broken:
            text = bounded("this worker ends: it was sent %s" % broken, 4096)
            wire.send({"msg": "log", "level": "error", "text": text})
            status = 2
        except BrokenPipeError:
            status = 0
        sys.exit(status)

    def _serve(self, wire, inline):
        receive = inline.next if inline else wire.next
        while True:
            message = receive()
            if message is None or message["msg"] == "shutdown":
                return
            if message["msg"] != "task":
                continue
            task = begin(message, wire)
            if task is None:
                continue
            last = inline.run(task) if inline else run_forked(wire, self, task)
            if last:
                return


async def _whole(value):
    return await value


def begin(message, wire):
    """The task of a message; one that is not as it should be is answered."""
    named = isinstance(message.get("id"), str) and type(message.get("attempt")) is int
    if not named:
        raise BrokenRules("a `task` without a text `id` and a number `attempt`")
    try:
        return Task(message, wire.send_line)
    except Invalid as invalid:
        wire.refuse(message["id"], message["attempt"], "invalid", str(invalid), False)
        return None
