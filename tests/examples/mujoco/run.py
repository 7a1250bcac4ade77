#!/usr/bin/env python3
"""Tests of examples/mujoco that need no Ostler: the protocol on the real viewer and on the mock, and the MCP server on
an Ostler that is played by `fake_ostler.py`.

    run.py      needs scripts/setup-test-deps.sh

The last line is `N passed, M failed`; the exit status is 0 when M is 0.
"""

from __future__ import annotations

from support import Count, use_the_example

if __name__ == "__main__":
    use_the_example()
    import mcp_server
    import viewers

    for name in ("mock_viewer.py", "viewer.py"):
        viewers.test(name)
    mcp_server.test()
    Count.end()
