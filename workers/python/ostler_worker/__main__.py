"""The stock worker: `python3 -m ostler_worker`."""

from .stock import worker

worker.run()
