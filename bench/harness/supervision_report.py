"""Turns what was measured of supervisors into Markdown: one table of ratios, and the bars with their verdicts."""

import statistics

from .report import figure, machine_line, ratio

# Key, what it is, its unit, what it is divided by for that, whether less is better, and whether it is a bar.
FIGURES = [
    ("running_s", "all running", "s", 1, True, True),
    ("stopped_s", "all stopped", "s", 1, True, True),
    ("gone_s", "all stopped, supervisor gone", "s", 1, True, False),
    ("pss_kib", "memory of all but the children", "MB PSS", 1024, True, True),
    ("daemon_pss_kib", "of it the daemon", "MB PSS", 1024, True, False),
    ("processes", "processes besides the children", "", 1, True, False),
    ("idle_cpu_percent", "idle CPU", "% of a core", 1, True, True),
    ("respawned_ms", "crash to respawned, median", "ms", 1, True, True),
    ("respawned_worst_ms", "crash to respawned, worst", "ms", 1, True, False),
    ("log_mb_s", "log capture", "MB/s", 1, False, True),
    ("log_peak_pss_kib", "memory meanwhile, at most", "MB PSS", 1024, True, True),
    ("left_after_stop", "processes left after SIGTERM", "", 1, True, False),
    ("left_after_kill", "children left after SIGKILL of the daemon", "", 1, True, True),
]
# Ostler is to be ahead of these in every bar.
RIVALS = ["supervisord", "circus", "pm2"]
# In these, ahead of all that were measured.
AHEAD_OF_ALL = {"respawned_ms", "left_after_kill"}
# What no supervisor can beat is no rival.
NO_PEERS = {"floor", "ostler"}


def medians(runs):
    """One row out of the rounds of one supervisor: the median of each figure, the most of what was left."""
    row = {"rounds": len(runs)}
    for key in {key for run in runs for key in run}:
        values = [run[key] for run in runs if run.get(key) is not None]
        if values:
            row[key] = max(values) if key.startswith("left") else statistics.median(values)
    return row


def shown(value, unit):
    """A figure; a count as a whole number."""
    return figure(value) if unit else f"{value:.0f}"


def short(run):
    """A row while the benchmark runs."""
    figures = [(what, unit, run[key] / divisor) for key, what, unit, divisor, _, is_bar in FIGURES if is_bar and key in run]
    return ", ".join(f"{what} {shown(value, unit)} {unit}".strip() for what, unit, value in figures)


def table(rows, labels):
    own = rows.get("ostler", {})
    lines = ["| | " + " | ".join(labels[name] for name in rows) + " |", "|---|" + "---:|" * len(rows)]
    for key, what, unit, divisor, _, _ in FIGURES:
        cells = []
        for name, row in rows.items():
            if key not in row:
                cells.append("-")
            elif not unit or name == "ostler" or not own.get(key):
                cells.append(shown(row[key] / divisor, unit))
            else:
                cells.append(f"{shown(row[key] / divisor, unit)} ({ratio(row[key], own[key])})")
        lines.append(f"| {what}{', ' + unit if unit else ''} | " + " | ".join(cells) + " |")
    return lines


def bars(rows):
    """The bars: (what, unit, figure, bound, kept, best elsewhere, its name). Ahead means strictly ahead."""
    own = rows.get("ostler", {})
    found = []
    for key, what, unit, divisor, less, is_bar in FIGURES:
        peers = {name: row[key] for name, row in rows.items() if name not in NO_PEERS and key in row}
        rivals = [value for name, value in peers.items() if key in AHEAD_OF_ALL or name in RIVALS]
        if not is_bar or key not in own or not rivals:
            continue
        pick = min if less else max
        best = pick(peers, key=peers.get)
        bound, value = pick(rivals), own[key]
        kept = value < bound if less else value > bound
        kept = kept and (key != "left_after_kill" or value == 0)
        found.append((what, unit, value / divisor, bound / divisor, kept, peers[best] / divisor, best))
    return found


def markdown(seen, rows, labels, settings, versions):
    lines = ["## Supervision: a hundred children", "", machine_line(seen) + ".", ""]
    lines += [
        f"{settings['children']} children, {settings['rounds']} interleaved round{'s' if settings['rounds'] > 1 else ''}, "
        "medians; ratios to Ostler in brackets. Figures of all but the children count everything the supervisor runs, "
        "guards and loggers included.",
        "",
        *table(rows, labels),
        "",
    ]
    verdicts = bars(rows)
    if verdicts:
        lines += ["### Bars", "", "| | Ostler | to be ahead of | | best elsewhere | Ostler is at |", "|---|---:|---:|---|---:|---:|"]
        for what, unit, value, bound, kept, best, name in verdicts:
            lines.append(
                f"| {what}{', ' + unit if unit else ''} | {shown(value, unit)} | {shown(bound, unit)} | {'kept' if kept else '**missed**'} "
                f"| {shown(best, unit)} ({name}) | {ratio(value, best)} |"
            )
        lines.append("")
    lines += [f"- {package} is version {version}" for package, version in versions.items()]
    return "\n".join(lines) + "\n"
