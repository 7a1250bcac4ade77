"""The verdicts on supervisors, and what is found in /proc."""

import os
import subprocess
import unittest

from harness import supervision_report as report
from harness import tree
from harness.processes import MARK, new_mark


def row(**figures):
    return {
        "running_s": 1.0,
        "stopped_s": 1.0,
        "pss_kib": 1024,
        "idle_cpu_percent": 0.1,
        "respawned_ms": 5.0,
        "log_mb_s": 500.0,
        "log_peak_pss_kib": 1024,
        "left_after_kill": 100,
    } | figures


BETTER = {
    "running_s": 0.9,
    "stopped_s": 0.9,
    "pss_kib": 1023,
    "idle_cpu_percent": 0.09,
    "respawned_ms": 4.0,
    "log_mb_s": 501.0,
    "log_peak_pss_kib": 1023,
    "left_after_kill": 0,
}


class Bars(unittest.TestCase):
    def kept(self, **own):
        rows = {"floor": row(respawned_ms=0.1), "ostler": row(**(BETTER | own))}
        rows |= {"supervisord": row(), "circus": row(), "pm2": row(), "runit": row(running_s=0.1, respawned_ms=4.5)}
        return [verdict[4] for verdict in report.bars(rows)]

    def test_ahead_of_the_three_is_enough_but_for_crashes(self):
        self.assertEqual(self.kept(), [True] * 8)
        self.assertEqual(self.kept(respawned_ms=4.6), [True] * 4 + [False] + [True] * 3)

    def test_level_is_not_ahead(self):
        for number, key in enumerate(BETTER):
            with self.subTest(key):
                expected = [at != number for at in range(len(BETTER))]
                self.assertEqual(self.kept(**{key: row()[key]}), expected)

    def test_one_child_left_is_one_too_many(self):
        self.assertEqual(self.kept(left_after_kill=1), [True] * 7 + [False])

    def test_the_best_elsewhere_is_named(self):
        verdicts = report.bars({"ostler": row(), "pm2": row(log_mb_s=900), "s6": row(running_s=0.3)})
        self.assertEqual([(what[5], what[6]) for what in verdicts if what[0] == "all running"], [(0.3, "s6")])
        self.assertEqual([what[6] for what in verdicts if what[0] == "log capture"], ["pm2"])


class Medians(unittest.TestCase):
    def test_what_was_left_is_not_averaged_away(self):
        merged = report.medians([{"left_after_kill": left, "running_s": left} for left in (0, 0, 3)])
        self.assertEqual((merged["left_after_kill"], merged["running_s"]), (3, 0))


class Family(unittest.TestCase):
    def test_the_marked_and_their_descendants_and_nobody_else(self):
        mark = new_mark()
        # The inner one clears its environment: only its parent leads to it.
        command = ["/bin/sh", "-c", "env -i sleep 60 & wait"]
        with subprocess.Popen(command, env={**os.environ, MARK: mark}, start_new_session=True) as shell:
            try:
                members = set()
                while len(members) != 2:
                    members = tree.family((0, None), mark)
                    self.assertLessEqual(len(members), 2)
                self.assertIn(shell.pid, {pid for pid, _ in members})
                self.assertEqual(tree.alive(members), members)
                self.assertGreater(tree.pss_kib([shell.pid]), 0)
                self.assertGreater(tree.cpu_ns([shell.pid]), 0)
            finally:
                os.killpg(shell.pid, 9)
        self.assertEqual(tree.family((shell.pid, None), mark), set())


if __name__ == "__main__":
    unittest.main()
