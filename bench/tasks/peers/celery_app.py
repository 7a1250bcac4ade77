"""Celery: the tasks, and how they are kept."""

import os
import subprocess

from celery import Celery

URL = f"redis+socket://{os.environ['BENCH_REDIS']}"
app = Celery("bench", broker=URL, backend=URL)
app.conf.update(
    # What its guide recommends for many short tasks.
    worker_prefetch_multiplier=64,
    # A task that is acknowledged before it is done is lost with its worker, whatever the disk holds.
    task_acks_late=os.environ.get("BENCH_ACKS") == "late",
)


@app.task
def noop(n):
    return n


@app.task
def true(_):
    return subprocess.call(["true"])
