//! Every event against every state. What the table does not list has no effect and changes nothing.

use ostler_domain::{Event, Exit, Generation, Restart, RestartPolicy, TimerKind};

use crate::support::{Bench, names, state_name};

type Step = fn(&mut Bench);

const START: Step = |it| drop(it.send(Event::Start));
const SPAWNED: Step = |it| drop(it.spawned());
const UP: Step = Bench::bring_up;
const STOP: Step = |it| drop(it.stop());
const FIRE: Step = |it| drop(it.fire());
const EXIT: Step = |it| drop(it.exits(Exit::Signal(11)));
const CRASH: Step = Bench::crash;
const DEGRADE: Step = |it| {
    let generation = it.generation();
    it.send(Event::Degraded { generation, reason: "slow".into() });
};

/// The states, each with a way to get there.
fn states() -> Vec<(&'static str, Bench)> {
    let ways: [(&str, RestartPolicy, &[Step]); 14] = [
        ("stopped", RestartPolicy::OnFailure, &[]),
        ("starting/spawn", RestartPolicy::OnFailure, &[START]),
        ("starting/handshake", RestartPolicy::OnFailure, &[START, SPAWNED]),
        ("ready", RestartPolicy::OnFailure, &[UP]),
        ("degraded", RestartPolicy::OnFailure, &[UP, DEGRADE]),
        ("backoff", RestartPolicy::OnFailure, &[UP, CRASH]),
        ("stopping/spawning", RestartPolicy::OnFailure, &[START, STOP]),
        ("stopping/drain", RestartPolicy::OnFailure, &[UP, STOP]),
        ("stopping/close-stdin", RestartPolicy::OnFailure, &[START, SPAWNED, STOP]),
        ("stopping/terminate", RestartPolicy::OnFailure, &[START, SPAWNED, STOP, FIRE]),
        ("stopping/kill", RestartPolicy::OnFailure, &[START, SPAWNED, STOP, FIRE, FIRE]),
        ("stopping/crashed", RestartPolicy::OnFailure, &[UP, EXIT]),
        ("failed", RestartPolicy::Never, &[UP, CRASH]),
        ("broken", RestartPolicy::OnFailure, &[UP, CRASH, UP, CRASH, UP, CRASH, UP, CRASH]),
    ];
    let reach = |(name, policy, steps): (&'static str, RestartPolicy, &[Step])| {
        let mut bench = Bench::new(policy);
        steps.iter().for_each(|step| step(&mut bench));
        (name, bench)
    };
    ways.into_iter().map(reach).collect()
}

/// The events, each for the generation the instance is at.
fn events(generation: Generation) -> Vec<(&'static str, Event)> {
    let timer = |kind| Event::Timer { generation, kind };
    vec![
        ("Start", Event::Start),
        ("Stop", Event::Stop { reason: "asked".into() }),
        ("Restart", Event::Restart { reason: "asked".into() }),
        ("Spawned", Event::Spawned { generation, pid: 9 }),
        ("SpawnFailed", Event::SpawnFailed { generation, why: "no such file".into() }),
        ("HandshakeDone", Event::HandshakeDone { generation }),
        ("HandshakeFailed", Event::HandshakeFailed { generation, why: "bad answer".into() }),
        ("Drained", Event::Drained { generation }),
        ("LeaderExited(0)", Event::LeaderExited { generation, exit: Exit::Code(0) }),
        ("LeaderExited(1)", Event::LeaderExited { generation, exit: Exit::Code(1) }),
        ("TreeEmpty", Event::TreeEmpty { generation }),
        ("Stuck", Event::Stuck { generation, pids: vec![9] }),
        ("Degraded", Event::Degraded { generation, reason: "slow".into() }),
        ("Recovered", Event::Recovered { generation }),
        ("Timer(Spawn)", timer(TimerKind::Spawn)),
        ("Timer(Handshake)", timer(TimerKind::Handshake)),
        ("Timer(StopStep)", timer(TimerKind::StopStep)),
        ("Timer(Backoff)", timer(TimerKind::Backoff)),
        ("Timer(Retry)", timer(TimerKind::Retry)),
        ("Timer(Settled)", timer(TimerKind::Settled)),
    ]
}

/// The table as text: a line for each pair that does something.
fn table() -> String {
    let mut lines = Vec::new();
    for (name, bench) in states() {
        for (event_name, event) in events(bench.generation()) {
            let mut it = bench.it.clone();
            let now = it.timer().map_or(bench.now, |(_, at)| at);
            let effects = it.decide(event, now, 0);
            let (before, after) = (state_name(bench.it.state()), state_name(it.state()));
            if effects.is_empty() {
                assert_eq!(bench.it.state(), it.state(), "{event_name} in {name} changed the state silently");
                continue;
            }
            let arrow = if before == after { "=".to_owned() } else { after };
            lines.push(format!("{name:20} | {event_name:16} | {arrow:28} | {}", names(&effects).join(" ")));
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn every_event_in_every_state_does_what_the_table_says() {
    let (actual, expected) = (table(), include_str!("decisions.txt"));
    let missing: Vec<_> = expected.lines().filter(|line| !actual.lines().any(|have| have == *line)).collect();
    let new: Vec<_> = actual.lines().filter(|line| !expected.lines().any(|want| want == *line)).collect();
    assert!(
        actual == expected,
        "the decisions differ from tests/it/decisions.txt.\nexpected:\n{}\nfound:\n{}",
        missing.join("\n"),
        new.join("\n")
    );
}

#[test]
fn each_state_of_the_table_is_the_state_it_is_called() {
    for (name, bench) in states() {
        let found = state_name(bench.it.state());
        let word = name.split('/').next().unwrap_or(name);
        assert!(found.starts_with(word), "{name} is {found}");
    }
}

#[test]
fn reports_of_another_generation_do_nothing_in_any_state() {
    for (name, bench) in states() {
        let generation = bench.generation();
        let others = [generation.next()].into_iter().chain(generation.0.checked_sub(1).map(Generation));
        for other in others {
            for (event_name, event) in events(other) {
                if event.generation().is_none() {
                    continue;
                }
                let mut it = bench.it.clone();
                let now = it.timer().map_or(bench.now, |(_, at)| at);
                assert_eq!(it.decide(event, now, 0), vec![], "{event_name} of generation {other} in {name}");
                assert_eq!(it.state(), bench.it.state(), "{event_name} of generation {other} in {name}");
            }
        }
    }
}

#[test]
fn the_default_policy_is_the_documented_one() {
    let restart = Restart::default();
    assert_eq!(restart.policy, RestartPolicy::OnFailure);
    assert_eq!((restart.max, restart.window.as_secs()), (5, 600));
}
