"""pueue: who submits, by the daemon's own protocol (a length in eight bytes, then CBOR) over its unix socket. Its
command line does the same, one process and one connection for each command."""

import os
import socket
import struct
import sys
import time
from pathlib import Path

import cbor2

import driver

# From one look at the state to the next. The daemon itself looks after its tasks each 300 ms.
LOOK_EVERY_S = 0.005
# Tasks that have ended make each look and each change of the state dearer: they are cleaned when there are so many.
CLEAN_AT = 64


class Daemon:
    """A connection that the daemon has accepted."""

    def __init__(self, folder):
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.connect(str(folder / "pueue.socket"))
        self.send((folder / "shared_secret").read_bytes())
        self.receive()

    def send(self, payload):
        self.stream.sendall(struct.pack(">Q", len(payload)) + payload)

    def receive(self):
        (length,) = struct.unpack(">Q", self.read(8))
        return self.read(length)

    def read(self, length):
        whole = bytearray()
        while len(whole) < length:
            part = self.stream.recv(length - len(whole))
            if not part:
                sys.exit("the daemon closed the connection")
            whole += part
        return bytes(whole)

    def ask(self, request):
        """The answer to a request: its kind, and what is in it."""
        self.send(cbor2.dumps(request))
        answer = cbor2.loads(self.receive())
        return next(iter(answer.items())) if isinstance(answer, dict) else (answer, None)


def main():
    daemon = Daemon(Path(os.environ["BENCH_PUEUE"]))
    daemon.ask({"Parallel": {"group": "default", "parallel_tasks": int(os.environ["BENCH_AT_ONCE"])}})
    numbers, done, over = {}, [], 0
    add = {
        "command": "true",
        "path": "/",
        "envs": {"PATH": os.environ["PATH"]},
        "start_immediately": False,
        "stashed": False,
        "group": "default",
        "enqueue_at": None,
        "dependencies": [],
        "priority": None,
        "label": None,
    }

    def start(_, n):
        kind, added = daemon.ask({"Add": add})
        if kind != "AddedTask":
            sys.exit(f"the daemon answered {kind}: {added}")
        numbers[added["task_id"]] = n

    def finished():
        nonlocal over
        while not done:
            _, state = daemon.ask("Status")
            now = time.perf_counter()
            for key, task in state["tasks"].items():
                status = task["status"]
                if int(key) in numbers and isinstance(status, dict) and "Done" in status:
                    result = status["Done"]["result"]
                    done.append((numbers.pop(int(key)), 0 if result == "Success" else result, now))
                    over += 1
            if over >= CLEAN_AT:
                daemon.ask({"Clean": {"successful_only": False, "group": None}})
                over = 0
            elif not done:
                time.sleep(LOOK_EVERY_S)
        return done.pop()

    driver.serve(start, finished, kinds=("true",))


if __name__ == "__main__":
    main()
