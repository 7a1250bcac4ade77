#!/usr/bin/env python3
"""Runs the gateway, the churn, the supervision, the hogs, the sessions, the tasks or the backlog benchmark; see README.md beside this file."""

import argparse
import json
import subprocess
import sys

from harness import backlog, hogs, report, sessions, supervision, supervision_report, supervisors, targets, tasks, tasks_report
from harness.processes import TargetFailed

LOAD_DEADLINE_S = 300
# Seconds within which the processes of a vanished client are expected to be gone: the idle time, and as much
# again for noticing and stopping.
CHURN_PROMISED_S = 2 * targets.CHURN_IDLE_S


def main():
    arguments = parse()
    (targets.OUT / "logs").mkdir(parents=True, exist_ok=True)
    names = chosen(arguments)
    seen = report.machine()
    run, install, package = BENCHMARKS[arguments.benchmark]
    tools = targets.build_tools(package)
    if not arguments.no_install:
        install(names)
    if any(name.startswith("ostler") for name in names) or arguments.benchmark in ("hogs", "backlog"):
        targets.build_ostler()
    kept = run(arguments, names, tools, seen)
    return 0 if kept or not arguments.strict else 1


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", choices=list(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="one short round: a smoke test, not figures")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default 3)")
    parser.add_argument("--seconds", type=float, help="seconds measured per cell (default 5)")
    parser.add_argument("--children", type=int, default=100, help="children of each supervisor (default 100)")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 8, 64], help="session counts")
    parser.add_argument("--only", nargs="+", metavar="TARGET", help="only these: " + ", ".join(["direct", *all_targets(), *supervisors_by_name(), *tasks_by_name()]))
    parser.add_argument("--no-install", action="store_true", help="install nothing; a missing peer is left out")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a bar is missed")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    arguments.seconds = arguments.seconds or (1.0 if arguments.quick else 5.0)
    return arguments


def all_targets():
    return {target.name: target for target in targets.ALL + targets.CHURN_ONLY}


def supervisors_by_name():
    return {supervisor.name: supervisor for supervisor in supervisors.ALL}


def tasks_by_name():
    return {peer.name: peer for peer in tasks.ALL}


def chosen(arguments):
    """The names of the targets to run, in order."""
    if arguments.benchmark == "supervision":
        known = list(supervisors_by_name())
    elif arguments.benchmark == "hogs":
        known = ["alone", "hogs"]
    elif arguments.benchmark == "sessions":
        known = list(sessions.rows())
    elif arguments.benchmark == "backlog":
        known = [str(backlog.FEW), str(backlog.MANY)]
    elif arguments.benchmark == "tasks":
        known = [*tasks_by_name(), "ostler-worker"]
    elif arguments.benchmark == "gateway":
        known = ["direct"] + [target.name for target in targets.ALL]
    else:
        known = [target.name for target in targets.ALL + targets.CHURN_ONLY]
    unknown = set(arguments.only or []) - set(known)
    if unknown:
        sys.exit(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [name for name in known if not arguments.only or name in arguments.only]


def tool(command):
    """Runs one of the benchmark's programs and reads the JSON it prints."""
    done = subprocess.run([str(word) for word in command], capture_output=True, timeout=LOAD_DEADLINE_S)
    if done.returncode != 0:
        raise TargetFailed(done.stderr.decode(errors="replace").strip())
    return json.loads(done.stdout)


def say(text):
    print(text, file=sys.stderr, flush=True)


def gateway(arguments, names, tools, seen):
    """Round by round, each target at each session count, always freshly started: whatever the machine does
    meanwhile, it does to all of them."""
    runs, failures = {}, {}
    for number in range(1, arguments.rounds + 1):
        for sessions in arguments.sessions:
            for name in names:
                try:
                    run = measure(name, tools, sessions, arguments)
                except (TargetFailed, OSError, subprocess.TimeoutExpired) as error:
                    failures[f"{name}, {sessions} sessions"] = str(error)
                    say(f"round {number} {name:16} {sessions:3}: FAILED: {error}")
                    continue
                runs.setdefault((name, sessions), []).append(run)
                say(
                    f"round {number} {name:16} {sessions:3}: p50 {run['p50_us']:8.1f} us  p99 {run['p99_us']:9.1f} us"
                    f"  {run['calls_per_s']:9,.0f} calls/s  {run['errors']} errors  {run['left']} left"
                )
    rows = {
        (name, sessions): report.medians(runs[name, sessions])
        for sessions in arguments.sessions
        for name in names
        if (name, sessions) in runs
    }
    labels = {"direct": "direct stdio, a server per session"} | {n: t.label for n, t in all_targets().items()}
    settings = {"rounds": arguments.rounds, "seconds": arguments.seconds, "sessions": arguments.sessions}
    text = report.gateway_markdown(seen, rows, labels, settings)
    text += "".join(f"- not measured: {cell}: {reason}\n" for cell, reason in failures.items())
    raw = [{"target": name, "runs": cells} for (name, _), cells in runs.items()]
    write("gateway", {"machine": seen, "settings": settings, "results": raw, "failures": failures}, text)
    return not failures and all(kept for _, _, _, kept in report.bars(rows))


def measure(name, tools, sessions, arguments):
    """One cell of one round."""
    warmup = 0.3 if arguments.quick else 1.0
    load = [tools / "load", "--sessions", sessions, "--seconds", arguments.seconds, "--warmup", warmup]
    if name == "direct":
        return tool(load + ["--stdio", "--", tools / "echo-server"]) | {"left": 0}
    target = all_targets()[name]
    running, url = target.start(tools, churn=False)
    try:
        run = tool(load + ["--url", url, "--pid", running.pid, "--mark", running.mark, "--tool", target.tool])
    finally:
        left = target.stop(running)
    return run | {"left": left}


def churn(arguments, names, tools, seen):
    """Each target once: 600 clients in rounds of 100."""
    results, failures = {}, {}
    for name in names:
        target = all_targets()[name]
        try:
            running, url = target.start(tools, churn=True)
            try:
                command = [tools / "churn", "--url", url, "--pid", running.pid, "--mark", running.mark]
                result = tool(command + ["--tool", target.tool, "--promised", CHURN_PROMISED_S])
            finally:
                left = target.stop(running)
        except (TargetFailed, OSError, subprocess.TimeoutExpired) as error:
            failures[name] = str(error)
            say(f"{name:22}: FAILED: {error}")
            continue
        results[name] = result | {"left": left}
        start, end = result["series"][0], result["series"][-1]
        say(
            f"{name:22}: processes {start['processes']} -> {end['processes']}, RSS {start['rss_kib'] / 1024:.1f} -> "
            f"{end['rss_kib'] / 1024:.1f} MB, {result['refused']} refused, {left} left after SIGTERM"
        )
    labels = {name: target.label for name, target in all_targets().items()}
    text = report.churn_markdown(seen, results, labels)
    text += "".join(f"- not measured: {name}: {reason}\n" for name, reason in failures.items())
    write("churn", {"machine": seen, "results": results, "failures": failures}, text)
    own = [result for name, result in results.items() if name.startswith("ostler")]
    return not failures and all(result["back_after_s"] is not None and not result["refused"] for result in own)


def supervise(arguments, names, tools, seen):
    """Round by round, each supervisor: its life, its crashes and its log, on a fresh daemon each."""
    runs, failures = {}, {}
    for number in range(1, arguments.rounds + 1):
        for name in names:
            supervisor = supervisors_by_name()[name]
            try:
                run = supervision.measure(supervisor, tools / "bench-child", arguments)
            except (TargetFailed, OSError, subprocess.TimeoutExpired) as error:
                failures[name] = str(error)
                say(f"round {number} {name:12}: FAILED: {error}")
                continue
            runs.setdefault(name, []).append(run)
            say(f"round {number} {name:12}: " + supervision_report.short(run))
    rows = {name: supervision_report.medians(runs[name]) for name in names if name in runs}
    labels = {name: supervisor.label for name, supervisor in supervisors_by_name().items()}
    settings = {"rounds": arguments.rounds, "seconds": arguments.seconds, "children": arguments.children}
    versions = supervisors.debian_versions()
    text = supervision_report.markdown(seen, rows, labels, settings, versions)
    text += "".join(f"- not measured: {name}: {reason}\n" for name, reason in failures.items())
    raw = [{"target": name, "runs": cells} for name, cells in runs.items()]
    data = {"machine": seen, "settings": settings, "versions": versions, "results": raw, "failures": failures}
    write("supervision", data, text)
    return not failures and all(kept for _, _, _, _, kept, _, _ in supervision_report.bars(rows))


def beside_hogs(arguments, names, tools, seen):
    """Round by round, the quiet server alone and beside the hogs."""
    targets.build_tools("ostler-testkit")
    runs, failures, named = {}, {}, {}
    for number in range(1, arguments.rounds + 1):
        for name in names:
            try:
                run = hogs.measure(tools, arguments, name == "hogs", tool)
            except (TargetFailed, OSError, subprocess.TimeoutExpired) as error:
                failures[name] = str(error)
                say(f"round {number} {name:6}: FAILED: {error}")
                continue
            named |= run["named"]
            runs.setdefault(name, []).append(run)
            say(f"round {number} {name:6}: p50 {run['p50_us']:8.1f} us  p99 {run['p99_us']:9.1f} us  {run['errors']} errors")
    rows = {name: hogs.medians(runs[name]) for name in names if name in runs}
    settings = {"rounds": arguments.rounds, "seconds": arguments.seconds}
    text = hogs.markdown(seen, rows, named, settings)
    text += "".join(f"- not measured: {name}: {reason}\n" for name, reason in failures.items())
    write("hogs", {"machine": seen, "settings": settings, "results": runs, "named": named, "failures": failures}, text)
    return not failures and hogs.kept(rows)


def check_out(arguments, names, tools, seen):
    """Round by round, sessions with a process of their own; then what an idle one holds."""
    runs, failures = {}, {}
    for number in range(1, arguments.rounds + 1):
        for name in names:
            try:
                run = sessions.measure(name, tools, arguments)
            except (TargetFailed, OSError, subprocess.TimeoutExpired) as error:
                failures[name] = str(error)
                say(f"round {number} {name:14}: FAILED: {error}")
                continue
            runs.setdefault(name, []).append(run)
            say(f"round {number} {name:14}: p50 {sessions.medians([run])['p50_ms']:8.2f} ms")
    rows = {name: sessions.medians(runs[name]) for name in names if name in runs}
    idle_kib = sessions.idle(tools)
    settings = {"rounds": arguments.rounds, "sessions": 5 if arguments.quick else sessions.SESSIONS}
    text = sessions.markdown(seen, rows, idle_kib, settings)
    text += "".join(f"- not measured: {name}: {reason}\n" for name, reason in failures.items())
    data = {"machine": seen, "settings": settings, "results": runs, "idle_kib": idle_kib, "failures": failures}
    write("sessions", data, text)
    return not failures and sessions.kept(rows, idle_kib)


def pooled(arguments, names, tools, seen):
    """Round by round, each task queue or pool, and a warm worker beside an echo."""
    tasks.on_two_cores()
    runs, round_trips, failures = {}, [], {}
    for number in range(1, arguments.rounds + 1):
        for name in names:
            try:
                if name == "ostler-worker":
                    worker = [targets.ostler_binary(), "worker"]
                    run = tool([tools / "round-trip", "--seconds", arguments.seconds, "--", *worker])
                    round_trips.append(run)
                    shown = " ".join(f"{who} {figures['p50_us']:.1f} us" for who, figures in run["socketpair"].items())
                else:
                    run = tasks.measure(tasks_by_name()[name], tools, arguments)
                    runs.setdefault(name, []).append(run)
                    shown = tasks_report.short(run)
            except (TargetFailed, OSError, subprocess.TimeoutExpired) as error:
                failures[name] = str(error)
                say(f"round {number} {name:14}: FAILED: {error}")
                continue
            say(f"round {number} {name:14}: {shown}")
    rows = {name: tasks_report.medians(runs[name]) for name in names if name in runs}
    echo = tasks_report.echo_medians(round_trips) if round_trips else None
    labels = {name: peer.label for name, peer in tasks_by_name().items()}
    settings = {"rounds": arguments.rounds, "seconds": arguments.seconds, "cores": tasks.CORES, "window": tasks.WINDOW}
    settings |= {"sync_us": tasks.sync_us(), "redis": tasks.redis_version()}
    text = tasks_report.markdown(seen, rows, echo, labels, settings)
    text += "".join(f"- not measured: {name}: {reason}\n" for name, reason in failures.items())
    results = {"results": runs, "round_trips": round_trips, "failures": failures}
    write("tasks", {"machine": seen, "settings": settings} | results, text)
    return not failures and all(kept for _, _, _, kept in tasks_report.bars(rows, echo))


def queued(arguments, names, tools, seen):
    """Round by round, few tasks that wait, and many."""
    tasks.on_two_cores()
    runs, failures = {}, {}
    for number in range(1, arguments.rounds + 1):
        for waiting in map(int, names):
            try:
                run = backlog.measure(waiting, tools, arguments)
            except (TargetFailed, OSError, subprocess.TimeoutExpired) as error:
                failures[str(waiting)] = str(error)
                say(f"round {number} {waiting:9,}: FAILED: {error}")
                continue
            runs.setdefault(waiting, []).append(run)
            shown = "  ".join(f"{key} {value:,.1f}" for key, value in run.items())
            say(f"round {number} {waiting:9,}: {shown}")
    rows = {waiting: backlog.medians(cells) for waiting, cells in runs.items()}
    settings = {"rounds": arguments.rounds, "seconds": arguments.seconds}
    text = backlog.markdown(seen, rows, settings)
    text += "".join(f"- not measured: {name}: {reason}\n" for name, reason in failures.items())
    write("backlog", {"machine": seen, "settings": settings, "results": runs, "failures": failures}, text)
    return not failures and all(kept for _, _, _, kept in backlog.bars(rows))


def write(name, data, text):
    (targets.OUT / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    (targets.OUT / f"{name}.md").write_text(text)
    print(text)
    say(f"written to {targets.OUT / name}.md and .json")


# What each runs, what installs its peers, and the package of its programs.
BENCHMARKS = {
    "gateway": (gateway, targets.install_peers, "bench-gateway"),
    "churn": (churn, targets.install_peers, "bench-gateway"),
    "supervision": (supervise, supervisors.install, "bench-supervision"),
    # It compares Ostler with itself.
    "hogs": (beside_hogs, lambda names: None, "bench-gateway"),
    "sessions": (check_out, targets.install_peers, "bench-gateway"),
    "tasks": (pooled, tasks.install, "bench-tasks"),
    "backlog": (queued, lambda names: None, "bench-tasks"),
}

if __name__ == "__main__":
    sys.exit(main())
