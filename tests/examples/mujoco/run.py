#!/usr/bin/env python3
"""Tests of examples/mujoco: see ../README.md.

    run.py [viewers|mcp_server|end_to_end]...     all three without an argument; needs scripts/setup-test-deps.sh

The last line is `N passed, M failed`; the exit status is 0 when M is 0.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

if __name__ == "__main__":
    harness.use("mujoco")
    for name in sys.argv[1:] or ("viewers", "mcp_server", "end_to_end"):
        importlib.import_module(name).test()
    harness.Count.end()
