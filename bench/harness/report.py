"""Turns what was measured into Markdown: tables with ratios, and the bars with their verdicts."""

import datetime
import os
import platform
import statistics

from .targets import PEERS

# The bars, as the project states them.
ADDED_P50_SHARE_OF_BEST_PEER = 0.5
CALLS_OF_BEST_PEER = 2.0
CALLS_SHARE_OF_FLOOR = 0.5
MOST_RSS_MB = 16
# The session count at which throughput and memory are judged; latency is judged at one session.
MANY = 64


def machine():
    """What it was measured on, and when."""
    model = "unknown"
    with open("/proc/cpuinfo") as cpuinfo:
        for line in cpuinfo:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def machine_line(seen):
    return (
        f"{seen['date']}, {seen['cpu']}, {seen['cores']} cores, {seen['memory_gib']} GiB, Linux "
        f"{seen['kernel']}, load average before the run {seen['load_average'][0]}"
    )


def medians(runs):
    """One row out of the rounds of one target at one session count: the median of each figure."""
    row = {"rounds": len(runs), "errors": sum(run["errors"] for run in runs)}
    row["first_error"] = next((run["first_error"] for run in runs if run["first_error"]), None)
    row["left"] = max(run.get("left", 0) for run in runs)
    for key in runs[0]:
        if key not in row and isinstance(runs[0][key], (int, float)):
            row[key] = statistics.median(run[key] for run in runs)
    for key in runs[0]["after"]:
        row[key] = statistics.median(run["after"][key] for run in runs)
    return row


def figure(value):
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(value, base):
    return f"{figure(value / base)}x" if base else "-"


def gateway_table(rows, labels, sessions):
    """One table: all targets at one session count, ratios to Ostler (or to the floor where it was not run)."""
    cells = {name: row for (name, count), row in rows.items() if count == sessions}
    base = cells.get("ostler") or cells.get("floor")
    lines = [
        f"### {sessions} session{'s' if sessions > 1 else ''}",
        "",
        "| | p50 us | ratio | p99 us | calls/s | ratio | gateway CPU us/call | all CPU us/call | RSS MB | PSS MB "
        "| processes | open ms | errors | left |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in cells.items():
        cpu = row["gateway_cpu_us_per_call"]
        own = base if base else row
        lines.append(
            f"| {labels[name]} | {figure(row['p50_us'])} | {ratio(row['p50_us'], own['p50_us'])} "
            f"| {figure(row['p99_us'])} | {row['calls_per_s']:,.0f} | {ratio(row['calls_per_s'], own['calls_per_s'])} "
            f"| {figure(cpu)} | {figure(cpu + row['server_cpu_us_per_call'])} "
            f"| {figure(row['gateway_rss_kib'] / 1024)} | {figure(row['gateway_pss_kib'] / 1024)} "
            f"| {row['gateway_processes']:.0f} + {row['server_processes']:.0f} | {figure(row['open_ms'])} "
            f"| {row['errors']} | {row['left']} |"
        )
    return lines


def bars(rows):
    """The bars: (what, figure, bound, kept). Only those whose rows were measured without an error."""
    def clean(name, count):
        row = rows.get((name, count))
        return row if row and row["calls"] and not row["errors"] else None

    found = []
    direct, ostler = clean("direct", 1), clean("ostler", 1)
    peers = [clean(peer, 1) for peer in PEERS]
    peers = [peer for peer in peers if peer]
    if direct and ostler and peers:
        best = min(peer["p50_us"] for peer in peers) - direct["p50_us"]
        added, bound = ostler["p50_us"] - direct["p50_us"], best * ADDED_P50_SHARE_OF_BEST_PEER
        found.append(("p50 added to direct stdio, 1 session, us, at most half of the best peer's", added, bound, added <= bound))
    ostler, floor = clean("ostler", MANY), clean("floor", MANY)
    peers = [clean(peer, MANY) for peer in PEERS]
    peers = [peer for peer in peers if peer]
    if ostler and peers:
        bound = max(peer["calls_per_s"] for peer in peers) * CALLS_OF_BEST_PEER
        calls = ostler["calls_per_s"]
        found.append((f"calls/s at {MANY} sessions, at least twice the best peer's", calls, bound, calls >= bound))
    if ostler and floor:
        bound = floor["calls_per_s"] * CALLS_SHARE_OF_FLOOR
        calls = ostler["calls_per_s"]
        found.append((f"calls/s at {MANY} sessions, at least half of the floor's", calls, bound, calls >= bound))
    if ostler:
        memory = ostler["gateway_rss_kib"] / 1024
        found.append((f"RSS at {MANY} sessions, MB, all of Ostler's processes", memory, MOST_RSS_MB, memory <= MOST_RSS_MB))
    return found


def gateway_markdown(seen, rows, labels, settings):
    lines = ["## Gateway: echo calls", "", machine_line(seen) + ".", ""]
    lines += [
        f"{settings['rounds']} interleaved round{'s' if settings['rounds'] > 1 else ''} of {settings['seconds']} s "
        "each, medians. Ratios are to Ostler, shared (where it was not run, to the floor). Processes: gateway + servers; left: processes alive 8 s after SIGTERM.",
        "",
    ]
    for sessions in settings["sessions"]:
        lines += gateway_table(rows, labels, sessions) + [""]
    verdicts = bars(rows)
    if verdicts:
        lines += ["### Bars", "", "| | measured | bound | |", "|---|---:|---:|---|"]
        lines += [f"| {what} | {figure(value)} | {figure(bound)} | {'kept' if kept else '**missed**'} |" for what, value, bound, kept in verdicts]
        lines.append("")
    failures = {f"{labels[name]} at {count}: {row['first_error']}" for (name, count), row in rows.items() if row["errors"]}
    lines += [f"- {failure}" for failure in sorted(failures)]
    return "\n".join(lines) + "\n"


def churn_markdown(seen, results, labels):
    lines = ["## Churn: clients that connect, call and vanish", "", machine_line(seen) + ".", ""]
    for name, result in results.items():
        back = result["back_after_s"]
        lines += [
            f"### {labels[name]}",
            "",
            f"{result['clients']} clients, {result['served']} served, {result['refused']} refused"
            + (f" (first: {result['first_refusal']})" if result["refused"] else "")
            + f". Processes back at the start: {'never' if back is None else f'{back:.1f} s after the last client vanished'}"
            + f" (expected within {result['promised_s']:.0f} s). Left 8 s after SIGTERM: {result['left']}.",
            "",
            "| | s | processes | RSS MB | of it the gateway |",
            "|---|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {point['when']} | {point['at_s']:.1f} | {point['processes']} | {figure(point['rss_kib'] / 1024)} "
            f"| {figure(point['gateway_rss_kib'] / 1024)} |"
            for point in result["series"]
        ]
        lines.append("")
    return "\n".join(lines) + "\n"
