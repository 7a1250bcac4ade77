"""A worker of Ostler in Python: the protocol of docs/worker-protocol.md, and nothing but the standard library.

    from ostler_worker import Worker

    worker = Worker("thumbnails 1.0")

    @worker.task("thumbnail")
    def thumbnail(payload, task):
        task.progress(1, 2, "reading")
        return {"size": make(payload["path"])}

    worker.run()

Each task runs in a process forked from this one: it starts with everything that is loaded here, and what it changes
ends with it. It can be ended at any moment, and its memory is limited. ``Worker(isolate=False)`` runs tasks in this
process instead, for what does not survive a fork (threads, connections, a GPU); then a task is ended by an exception
at the next bytecode, and by the end of the whole worker where it does not come to one.
"""

from .task import Invalid, Refused, Task, TaskError
from .worker import Worker

__all__ = ["Invalid", "Refused", "Task", "TaskError", "Worker"]
