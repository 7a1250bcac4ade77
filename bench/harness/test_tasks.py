"""The verdicts on task queues and pools, and what the drivers in Python count."""

import io
import sys
import time
import unittest
from unittest import mock

from harness import report, tasks, tasks_report
from harness.targets import BENCH

sys.path.insert(0, str(BENCH / "tasks/peers"))
import driver  # noqa: E402


def row(noop=1000.0, true=100.0, errors=0, **more):
    figures = {"noop_per_s": noop, "true_per_s": true, "noop_p50_us": 100.0, "rss_kib": 10 * 1024}
    return figures | {"errors": errors, "first_error": None, "left": 0, "rounds": 1} | more


def echo(worker=50.0, echo=10.0):
    seen = {"worker": {"p50_us": worker, "p99_us": worker}, "echo": {"p50_us": echo, "p99_us": echo}}
    return {"socketpair": seen, "pipes": seen}


def rows(**own):
    figures = {"memory": row(noop=1001, true=1000), "durable": row(noop=5000)} | own
    peers = {"executor": row(), "bullmq-always": row(), "celery-always": row(noop=900), "bullmq": row(noop=4000)}
    peers |= {"pueue": {"true_per_s": 100.0, "errors": 0, "first_error": None, "left": 0, "rounds": 1}}
    return {f"ostler-{name}": figure for name, figure in figures.items()} | peers


class Bars(unittest.TestCase):
    def kept(self, measured, round_trip=None):
        return [kept for _, _, _, kept in tasks_report.bars(measured, round_trip or echo())]

    def test_exactly_on_the_bars_is_kept(self):
        self.assertEqual(self.kept(rows()), [True] * 6)

    def test_each_can_be_missed(self):
        self.assertEqual(self.kept(rows(durable=row(noop=4999))), [False] + [True] * 5)
        self.assertEqual(self.kept(rows() | {"celery-always": row(noop=1001)}), [True, False] + [True] * 4)
        self.assertEqual(self.kept(rows(memory=row(noop=1000, true=1000))), [True, True, False] + [True] * 3)
        self.assertEqual(self.kept(rows() | {"executor": row(true=1000)}), [True] * 3 + [False] + [True] * 2)
        self.assertEqual(self.kept(rows(memory=row(noop=1001, true=999))), [True] * 4 + [False, True])
        self.assertEqual(self.kept(rows(), echo(worker=50.1)), [True] * 5 + [False])
        apart = echo() | {"socketpair, apart": echo(worker=50.1)["socketpair"]}
        self.assertEqual(self.kept(rows(), apart), [True] * 6 + [False])

    def test_a_row_with_errors_counts_for_nothing(self):
        self.assertEqual(self.kept(rows(durable=row(noop=5000, errors=1))), [True] * 4)
        self.assertEqual(len(self.kept(rows() | {"pueue": row(errors=1)})), 5)
        self.assertEqual(tasks_report.bars({}, None), [])

    def test_the_default_of_redis_is_no_equal_durability(self):
        self.assertEqual(self.kept(rows() | {"bullmq": row(noop=1e9)}), [True] * 6)


class Leads(unittest.TestCase):
    def test_who_is_ahead_is_named_with_by_how_much(self):
        measured = rows() | {"piscina": row(noop=2002, true=1, noop_p50_us=50.0, rss_kib=20 * 1024)}
        ahead = {(name, what): times for name, _, what, _, _, times in tasks_report.leads(measured) if name == "piscina"}
        self.assertEqual(ahead, {("piscina", "no-op/s"): 2.0, ("piscina", "no-op p50 us"): 2.0})

    def test_the_lasting_are_compared_to_the_lasting(self):
        measured = rows() | {"bullmq-always": row(noop=4000)}
        self.assertNotIn("bullmq-always", [name for name, *_ in tasks_report.leads(measured)])
        measured = rows() | {"bullmq-always": row(noop=6000)}
        self.assertIn(("bullmq-always", "ostler-durable"), [lead[:2] for lead in tasks_report.leads(measured)])

    def test_errors_are_no_lead(self):
        measured = rows() | {"piscina": row(noop=2002, errors=1)}
        self.assertNotIn("piscina", [name for name, *_ in tasks_report.leads(measured)])


class Medians(unittest.TestCase):
    def test_of_each_figure_and_what_may_not_be_averaged_away(self):
        runs = [row(noop=value, errors=value, left=value) for value in (3, 1, 2)]
        merged = tasks_report.medians(runs)
        self.assertEqual((merged["noop_per_s"], merged["errors"], merged["left"]), (2, 6, 3))

    def test_of_the_round_trip(self):
        merged = tasks_report.echo_medians([echo(worker=value) for value in (3.0, 1.0, 2.0)])
        self.assertEqual(merged["pipes"]["worker"]["p50_us"], 2.0)


class Page(unittest.TestCase):
    def test_all_that_was_measured_is_on_it(self):
        settings = {"cores": 2, "rounds": 1, "seconds": 1, "window": 64, "sync_us": 500.0, "redis": "7"}
        labels = {peer.name: peer.label for peer in tasks.ALL}
        measured = rows(durable=row(noop=4999)) | {"piscina": row(noop=2002)}
        text = tasks_report.markdown(report.machine(), measured, echo(), labels, settings)
        self.assertIn("| no-op/s, durable, at least 5x `bullmq`, appendfsync always | 4,999 | 5,000 | **missed** |", text)
        self.assertIn("| npm `piscina` 5.3.2 | no-op/s | 2,002 | 1,001 | 2.00x |", text)
        self.assertIn("| socketpair | 50.0 | 50.0 | 10.0 | 10.0 | 5.00x |", text)
        self.assertIn("500 us", text)
        tasks_report.markdown(report.machine(), {}, None, labels, settings)


class Driver(unittest.TestCase):
    """Tasks that are done as soon as they are asked about."""

    def run_cell(self, result, **cell):
        waiting = []
        most = 0

        def start(kind, n):
            nonlocal most
            waiting.append((kind, n))
            most = max(most, len(waiting))

        def finished():
            kind, n = waiting.pop(0)
            time.sleep(0.0005)
            return n, result(kind, n), time.perf_counter()

        cell = {"kind": "noop", "window": 4, "seconds": 0.1, "warmup": 0.05} | cell
        measured = driver.window(cell, start, finished)
        self.assertEqual((waiting, most), ([], cell["window"]))
        return measured

    def test_so_many_are_under_way_and_only_the_measured_time_counts(self):
        seen = []
        measured = self.run_cell(lambda kind, n: seen.append(n) or n)
        self.assertEqual((measured["errors"], seen), (0, list(range(len(seen)))))
        self.assertTrue(0 < measured["tasks"] < len(seen), (measured, len(seen)))
        self.assertAlmostEqual(measured["per_s"], measured["tasks"] / 0.1)
        self.assertTrue(0 < measured["p50_us"] <= measured["p99_us"] <= measured["max_us"])

    def test_a_wrong_result_is_an_error(self):
        measured = self.run_cell(lambda kind, n: n + 1)
        self.assertEqual(measured["tasks"], 0)
        self.assertGreaterEqual(measured["errors"], driver.MOST_ERRORS)
        self.assertIn("a wrong result of 0: 1", measured["first_error"])

    def test_so_is_an_exception_and_a_status(self):
        self.assertIn("KeyError", self.run_cell(lambda kind, n: KeyError("x"), kind="true")["first_error"])
        self.assertIn("a wrong result", self.run_cell(lambda kind, n: 1, kind="true")["first_error"])

    def test_batches_count_their_tasks(self):
        cell = {"kind": "noop", "batch": 10, "seconds": 0.05, "warmup": 0}
        measured = driver.batches(cell, lambda kind, many: time.sleep(0.001) or range(many))
        self.assertEqual((measured["errors"], measured["tasks"] % 10), (0, 0))
        self.assertGreater(measured["tasks"], 0)

    def test_a_batch_that_takes_longer_than_the_measured_time_counts(self):
        cell = {"kind": "noop", "batch": 10, "seconds": 0.01, "warmup": 0}
        measured = driver.batches(cell, lambda kind, many: time.sleep(0.05) or range(many))
        self.assertEqual(measured["tasks"], 10)
        self.assertLessEqual(measured["per_s"], 200)

    def test_it_answers_line_by_line(self):
        done = []
        lines = io.StringIO('{"kind": "noop", "window": 2, "seconds": 0.01, "warmup": 0}\n')
        with mock.patch.object(sys, "stdin", lines), mock.patch.object(driver, "say") as say:
            driver.serve(lambda kind, n: done.append((n, n if kind == "noop" else 0, time.perf_counter())), lambda: done.pop(0))
        said = [call.args[0] for call in say.call_args_list]
        self.assertEqual(said[0], {"ready": True})
        self.assertEqual((len(said), said[1]["errors"]), (2, 0))


if __name__ == "__main__":
    unittest.main()
