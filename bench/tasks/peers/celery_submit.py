"""Celery: who submits. Results are taken in the order in which their tasks were submitted: with many under way, one
that is there before an earlier one is noticed later."""

import time
from collections import deque

from celery import group

import celery_app
import driver

TIMEOUT_S = 60
TASKS = {"noop": celery_app.noop, "true": celery_app.true}


def main():
    under_way = deque()

    def start(kind, n):
        under_way.append((n, TASKS[kind].delay(n)))

    def finished():
        n, task = under_way.popleft()
        try:
            result = task.get(timeout=TIMEOUT_S)
        except Exception as error:
            result = error
        return n, result, time.perf_counter()

    def bulk(kind, many):
        return group(TASKS[kind].s(n) for n in range(many)).apply_async().get(timeout=TIMEOUT_S)

    driver.serve(start, finished, bulk)


if __name__ == "__main__":
    main()
