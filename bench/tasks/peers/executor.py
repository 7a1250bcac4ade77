"""Python's ProcessPoolExecutor."""

import os
import queue
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor

import driver


def noop(n):
    return n


def true(_):
    return subprocess.call(["true"])


def main():
    done = queue.SimpleQueue()
    with ProcessPoolExecutor(int(os.environ.get("BENCH_WORKERS") or len(os.sched_getaffinity(0)))) as pool:

        def start(kind, n):
            future = pool.submit(noop if kind == "noop" else true, n)
            future.add_done_callback(lambda ended: done.put((n, ended.exception() or ended.result(), time.perf_counter())))

        driver.serve(start, done.get)


if __name__ == "__main__":
    main()
