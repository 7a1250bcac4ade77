"""Ostler by its command line: a process for each task, which waits for its result."""

import json
import os
import queue
import subprocess
import threading
import time

import driver

COMMAND = [os.environ["BENCH_OSTLER"], "task", "submit"]
KINDS = {
    "noop": lambda n: ["execute-function", "--wait", "--function", "n => n", "--args", f"[{n}]"],
    "true": lambda n: ["shell-command", "--wait", "--", "true"],
}


def main():
    done = queue.SimpleQueue()

    def run(kind, n):
        ended = subprocess.run(COMMAND + KINDS[kind](n), stdin=subprocess.DEVNULL, capture_output=True)
        at = time.perf_counter()
        try:
            if ended.returncode:
                raise OSError(ended.stderr.decode(errors="replace")[-300:])
            value = json.loads(ended.stdout)
            done.put((n, value if kind == "noop" else value["status"], at))
        except Exception as error:
            done.put((n, error, at))

    def start(kind, n):
        threading.Thread(target=run, args=(kind, n)).start()

    driver.serve(start, done.get)


if __name__ == "__main__":
    main()
