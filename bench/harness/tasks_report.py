"""Turns what was measured of task queues and pools into Markdown: a table, the bars with their verdicts, and who leads."""

import statistics

from .report import figure, machine_line, ratio

# The bars, as the project states them.
DURABLE_OF_QUEUES = 5.0
MEMORY_OF_EXECUTOR = 1.0
MEMORY_OF_PUEUE = 10.0
MOST_OF_ECHO = 5.0

# Key, what it is, what it is divided by for that, and whether less is better.
FIGURES = [
    ("noop_per_s", "no-op/s", 1, False),
    ("noop_p50_us", "no-op p50 us", 1, True),
    ("noop_p99_us", "no-op p99 us", 1, True),
    ("noop_busy_p50_us", "p50 us, 64 under way", 1, True),
    ("noop_busy_p99_us", "p99 us, 64 under way", 1, True),
    ("batch_per_s", "no-op/s, batches of 1,000", 1, False),
    ("true_per_s", "`true`/s", 1, False),
    ("true_p50_us", "`true` p50 us", 1, True),
    ("true_p99_us", "`true` p99 us", 1, True),
    ("rss_kib", "RSS MB", 1024, True),
    ("pss_kib", "PSS MB", 1024, True),
    ("processes", "processes", 1, True),
]
# The one the ratios are to, and the one of those that survive a crash of the machine.
BASE, DURABLE = "ostler-memory", "ostler-durable"
LASTING = ["bullmq-always", "celery-always"]
# Where somebody else is ahead is told of these.
COMPARED = {"noop_per_s", "noop_p50_us", "noop_p99_us", "batch_per_s", "true_per_s", "true_p50_us", "true_p99_us", "rss_kib"}


def medians(runs):
    """One row out of the rounds of one peer: the median of each figure, the sum of errors, the most of what was left."""
    row = {"rounds": len(runs), "errors": sum(run["errors"] for run in runs), "left": max(run["left"] for run in runs)}
    row["first_error"] = next((run["first_error"] for run in runs if run["first_error"]), None)
    for key, *_ in FIGURES:
        values = [run[key] for run in runs if key in run]
        if values:
            row[key] = statistics.median(values)
    return row


def echo_medians(runs):
    """Worker and echo over each medium, on one processor and apart, out of some rounds: medians of p50 and p99."""
    return {
        medium: {
            who: {key: statistics.median(run[medium][who][key] for run in runs) for key in ("p50_us", "p99_us")}
            for who in ("worker", "echo")
        }
        for medium in runs[0]
    }


def short(run):
    """A row while the benchmark runs."""
    shown = [("no-op/s", "noop_per_s"), ("p50 us", "noop_p50_us"), ("`true`/s", "true_per_s"), ("errors", "errors"), ("left", "left")]
    return ", ".join(f"{what} {figure(run[key])}" for what, key in shown if key in run)


def bars(rows, echo):
    """The bars: (what, figure, bound, kept). Only those whose rows were measured without an error."""
    def clean(name, key):
        row = rows.get(name, {})
        return row.get(key) if not row.get("errors") else None

    found = []

    def at_least(what, own, key, peer, times):
        value, base = clean(own, key), clean(peer, key)
        if value is not None and base is not None:
            # "Ahead" is more than level.
            kept = value >= base * times if times > 1 else value > base
            found.append((what, value, base * times, kept))

    for peer in LASTING:
        at_least(f"no-op/s, durable, at least 5x `{peer.split('-')[0]}`, appendfsync always", DURABLE, "noop_per_s", peer, DURABLE_OF_QUEUES)
    for key, what in (("noop_per_s", "no-op/s"), ("true_per_s", "`true`/s")):
        at_least(f"{what}, in memory, ahead of `ProcessPoolExecutor`", BASE, key, "executor", MEMORY_OF_EXECUTOR)
    at_least("`true`/s, in memory, at least 10x `pueue`", BASE, "true_per_s", "pueue", MEMORY_OF_PUEUE)
    for where, what in (("socketpair", "on one processor"), ("socketpair, apart", "on two")):
        if echo and where in echo:
            value, bound = echo[where]["worker"]["p50_us"], echo[where]["echo"]["p50_us"] * MOST_OF_ECHO
            found.append((f"a warm worker's round trip, p50 us, at most 5x a socketpair echo, {what}", value, bound, value <= bound))
    return found


def leads(rows):
    """Where another is ahead: (its name, whom of Ostler it is compared to, what, its figure, Ostler's, how many times)."""
    found = []
    for name, row in rows.items():
        own = DURABLE if name in LASTING else BASE
        if name.startswith("ostler") or own not in rows or row["errors"] or rows[own]["errors"]:
            continue
        for key, what, divisor, less in FIGURES:
            theirs, ours = row.get(key), rows[own].get(key)
            if key not in COMPARED or not theirs or not ours:
                continue
            times = ours / theirs if less else theirs / ours
            if times > 1:
                found.append((name, own, what, theirs / divisor, ours / divisor, times))
    return found


def table(rows, labels):
    lines = ["| | " + " | ".join(what for _, what, _, _ in FIGURES) + " | errors | left |", "|---|" + "---:|" * (len(FIGURES) + 2)]
    base = rows.get(BASE, {})
    for name, row in rows.items():
        cells = []
        for key, _, divisor, _ in FIGURES:
            if key not in row:
                cells.append("-")
            elif key == "processes":
                cells.append(f"{row[key]:.0f}")
            elif name == BASE or not base.get(key):
                cells.append(figure(row[key] / divisor))
            else:
                cells.append(f"{figure(row[key] / divisor)} ({ratio(row[key], base[key])})")
        lines.append(f"| {labels[name]} | " + " | ".join(cells) + f" | {row['errors']} | {row['left']} |")
    return lines


def echo_table(echo):
    lines = ["### A warm worker's round trip", "", "| | worker p50 us | p99 us | echo p50 us | p99 us | ratio of p50 |", "|---|---:|---:|---:|---:|---:|"]
    for medium, seen in echo.items():
        worker, base = seen["worker"], seen["echo"]
        figures = [figure(seen[who][key]) for who in ("worker", "echo") for key in ("p50_us", "p99_us")]
        lines.append(f"| {medium} | " + " | ".join(figures) + f" | {ratio(worker['p50_us'], base['p50_us'])} |")
    return lines + [""]


def markdown(seen, rows, echo, labels, settings):
    lines = ["## Tasks: a function that does nothing, and the program `true`", "", machine_line(seen) + ".", ""]
    lines += [
        f"{settings['cores']} cores for everything, {settings['rounds']} interleaved round{'s' if settings['rounds'] > 1 else ''} of "
        f"{settings['seconds']} s for each figure, medians; ratios to Ostler in memory in brackets. Throughput with {settings['window']} tasks "
        f"under way, latency with one. A sync of 4 KiB to this disk takes {figure(settings['sync_us'])} us (median).",
        "",
        *table(rows, labels),
        "",
    ]
    lines += echo_table(echo) if echo else []
    verdicts = bars(rows, echo)
    if verdicts:
        lines += ["### Bars", "", "| | measured | bound | |", "|---|---:|---:|---|"]
        lines += [f"| {what} | {figure(value)} | {figure(bound)} | {'kept' if kept else '**missed**'} |" for what, value, bound, kept in verdicts]
        lines.append("")
    ahead = leads(rows)
    if ahead:
        lines += ["### Where others lead", "", "| | | theirs | Ostler's | ahead by |", "|---|---|---:|---:|---:|"]
        for name, own, what, theirs, ours, times in ahead:
            against = "" if own == BASE else ", against Ostler durable"
            lines.append(f"| {labels[name]} | {what}{against} | {figure(theirs)} | {figure(ours)} | {figure(times)}x |")
        lines.append("")
    lines += [f"- {labels[name]}: {row['errors']} errors, the first: {row['first_error']}" for name, row in rows.items() if row["errors"]]
    if settings["redis"]:
        lines.append(f"- Redis is version {settings['redis']}")
    return "\n".join(lines) + "\n"
