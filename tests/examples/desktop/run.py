#!/usr/bin/env python3
"""Tests of examples/desktop: see ../README.md.

    run.py [alone|pool]...     both without an argument; needs scripts/setup-test-deps.sh

The last line is `N passed, M failed`; the exit status is 0 when M is 0.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

if __name__ == "__main__":
    harness.use("desktop")
    for name in sys.argv[1:] or ("alone", "pool"):
        importlib.import_module(name).test()
    harness.Count.end()
