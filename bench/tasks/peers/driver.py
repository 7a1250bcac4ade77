"""The part of a driver that is the same for all peers in Python: reads a cell to measure from each line of its input,
keeps so many tasks under way, and answers with a line of what came of it."""

import json
import math
import sys
import time

MOST_ERRORS = 100


def serve(start, finished, bulk=None, kinds=("noop", "true")):
    """`start(kind, n)` submits task `n`; `finished()` waits for one that was submitted and answers its number, its
    result (or the exception) and when that was there; `bulk(kind, many)`, where the peer has that, submits many at once
    and answers the results of all."""
    # Whatever workers there are to be are there before anything is measured.
    for kind in kinds:
        start(kind, 1)
        n, result, _ = finished()
        check(kind, n, result)
    say({"ready": True})
    for line in sys.stdin:
        cell = json.loads(line)
        say(batches(cell, bulk) if cell.get("batch") else window(cell, start, finished))


def say(message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def check(kind, n, result):
    if isinstance(result, BaseException):
        raise result
    if result != (n if kind == "noop" else 0):
        raise ValueError(f"a wrong result of {n}: {result!r}")


class Tally:
    """What is measured, while it is."""

    def __init__(self, cell):
        self.kind, self.seconds, self.in_batches = cell["kind"], cell["seconds"], bool(cell.get("batch"))
        self.start = time.perf_counter() + cell["warmup"]
        self.until = self.start + self.seconds
        self.took, self.tasks, self.errors, self.first = [], 0, 0, None

    def is_over(self):
        return time.perf_counter() >= self.until or self.errors >= MOST_ERRORS

    def ended(self, begun, at, results):
        """These tasks have these results, by number."""
        for n, result in results:
            try:
                check(self.kind, n, result)
            except Exception as error:
                self.errors += 1
                self.first = self.first or f"{type(error).__name__}: {error}"
                return
        # A batch counts if it began in the measured time: one may take longer than all of that.
        if self.start <= (begun if self.in_batches else at) <= self.until:
            self.took.append(at - begun)
            self.tasks += len(results)

    def measured(self):
        took = sorted(self.took)

        def quantile(share):
            return took[max(0, math.ceil(len(took) * share) - 1)] * 1e6 if took else 0.0

        return {
            "tasks": self.tasks,
            "per_s": self.tasks / (self.in_batches and sum(self.took) or self.seconds),
            "p50_us": quantile(0.5),
            "p99_us": quantile(0.99),
            "max_us": quantile(1),
            "errors": self.errors,
            "first_error": self.first,
        }


def window(cell, start, finished):
    """So many tasks under way at any time."""
    tally, begun, number = Tally(cell), {}, 0
    while begun or not tally.is_over():
        while len(begun) < cell["window"] and not tally.is_over():
            begun[number] = time.perf_counter()
            start(cell["kind"], number)
            number += 1
        if begun:
            n, result, at = finished()
            tally.ended(begun.pop(n), at, [(n, result)])
    return tally.measured()


def batches(cell, bulk):
    """One batch after the other."""
    tally = Tally(cell)
    while not tally.is_over():
        begun = time.perf_counter()
        results = bulk(cell["kind"], cell["batch"])
        tally.ended(begun, time.perf_counter(), list(enumerate(results)))
    return tally.measured()
