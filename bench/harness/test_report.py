"""The verdicts: run with `python3 -m unittest discover --start-directory bench --pattern 'test_*.py'`."""

import unittest

from harness import hogs, report


def row(p50=100.0, calls_per_s=1000.0, rss_kib=8 * 1024, errors=0):
    return {
        "p50_us": p50,
        "calls_per_s": calls_per_s,
        "calls": 10,
        "gateway_rss_kib": rss_kib,
        "errors": errors,
    }


class Bars(unittest.TestCase):
    def rows(self, **ostler):
        rows = {("direct", 1): row(p50=50), ("turbomcp-proxy", 1): row(p50=250), ("supergateway", 1): row(p50=900)}
        rows |= {("floor", 64): row(calls_per_s=100_000), ("turbomcp-proxy", 64): row(calls_per_s=20_000)}
        return rows | {("ostler", 1): row(p50=150), ("ostler", 64): row(**({"calls_per_s": 50_000} | ostler))}

    def kept(self, rows):
        return [kept for _, _, _, kept in report.bars(rows)]

    def test_exactly_on_the_bars_is_kept(self):
        self.assertEqual(self.kept(self.rows(rss_kib=16 * 1024)), [True] * 4)

    def test_each_can_be_missed(self):
        self.assertEqual(self.kept(self.rows() | {("ostler", 1): row(p50=151)}), [False, True, True, True])
        self.assertEqual(self.kept(self.rows(calls_per_s=45_000)), [True, True, False, True])
        self.assertEqual(self.kept(self.rows(calls_per_s=39_999)), [True, False, False, True])
        self.assertEqual(self.kept(self.rows(rss_kib=16 * 1024 + 1)), [True, True, True, False])

    def test_a_row_with_errors_counts_for_nothing(self):
        rows = self.rows() | {("turbomcp-proxy", 1): row(p50=60, errors=1)}
        added = report.bars(rows)[0]
        self.assertEqual(added[2], (900 - 50) / 2, "the best peer is the best without errors")
        self.assertEqual(self.kept(self.rows(errors=1)), [True])


class Medians(unittest.TestCase):
    def test_the_median_of_each_figure_and_the_sum_of_errors(self):
        runs = [
            {"p50_us": value, "errors": 1, "first_error": None, "left": 0, "after": {"gateway_rss_kib": value}}
            for value in (3, 1, 2)
        ]
        merged = report.medians(runs)
        self.assertEqual((merged["p50_us"], merged["errors"], merged["gateway_rss_kib"]), (2, 3, 2))


class Hogs(unittest.TestCase):
    def rows(self, p99, errors=0):
        def one(p99, errors=0):
            return {"p50_us": 1, "p99_us": p99, "max_us": 1, "calls": 1, "errors": errors, "left": 0}

        return {"alone": one(100), "hogs": one(p99, errors)}

    def test_twice_the_p99_is_the_most(self):
        self.assertTrue(hogs.kept(self.rows(200)))
        self.assertFalse(hogs.kept(self.rows(201)))
        self.assertFalse(hogs.kept(self.rows(100, errors=1)))
        self.assertFalse(hogs.kept({"alone": self.rows(1)["alone"]}))
        self.assertIn("2.01 times", hogs.markdown(report.machine(), self.rows(201), {}, {"rounds": 1, "seconds": 1}))


if __name__ == "__main__":
    unittest.main()
