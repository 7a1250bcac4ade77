//! Alerts: told once, again, and over.

use std::collections::BTreeMap;

use ostler_domain::alert::{ALERTS_MAX, AlertKind, Alerts, Change, Notify, REPEAT_MIN, Stage, meaning};
use ostler_domain::event::Happening;
use ostler_domain::{Now, Severity};
use proptest::prelude::*;

use crate::support::{at, secs};

const MEMORY: AlertKind = AlertKind::MemoryPressure;

/// The stages told.
fn stages(told: &[Notify]) -> Vec<Stage> {
    told.iter().map(|n| n.stage).collect()
}

fn raise(alerts: &mut Alerts, severity: Severity, now: u64) -> Vec<Stage> {
    stages(&alerts.raise(MEMORY, "daemon", severity, "3.1 GiB of 4 GiB", at(now)))
}

#[test]
fn an_alert_is_told_once_again_after_a_while_and_when_it_is_over() {
    let mut alerts = Alerts::new(secs(300));
    let told = alerts.raise(MEMORY, "daemon", Severity::Warning, "3.1 GiB of 4 GiB", at(0));
    assert_eq!(told[0].to_string(), "memory-pressure raised of daemon: 3.1 GiB of 4 GiB");
    assert_eq!(raise(&mut alerts, Severity::Warning, 10), []);
    assert_eq!(alerts.due(), Some(at(300)));
    assert_eq!(alerts.tick(at(299)), []);
    let told = alerts.tick(at(300));
    assert_eq!(told[0].to_string(), "memory-pressure repeated of daemon: 3.1 GiB of 4 GiB (2 times)");
    assert_eq!(alerts.active().count(), 1);
    assert_eq!(stages(&alerts.resolve(MEMORY, "daemon", at(310))), [Stage::Resolved]);
    assert_eq!(alerts.resolve(MEMORY, "daemon", at(311)), []);
    assert_eq!(alerts.active().count(), 0);
    assert_eq!(alerts.tick(at(600)), []);
    assert_eq!(alerts.due(), None, "forgotten");
}

#[test]
fn one_that_comes_and_goes_is_told_no_more_often() {
    let mut alerts = Alerts::new(secs(300));
    assert_eq!(raise(&mut alerts, Severity::Warning, 0), [Stage::Raised]);
    for second in 1..100 {
        let told = alerts.resolve(MEMORY, "daemon", at(2 * second));
        assert_eq!(told.len(), usize::from(second == 1), "{told:?}");
        assert_eq!(raise(&mut alerts, Severity::Warning, 2 * second + 1), []);
    }
    assert_eq!(stages(&alerts.tick(at(300))), [Stage::Raised]);
}

#[test]
fn one_that_gets_worse_is_told_at_once() {
    let mut alerts = Alerts::new(secs(300));
    assert_eq!(raise(&mut alerts, Severity::Warning, 0), [Stage::Raised]);
    assert_eq!(raise(&mut alerts, Severity::Error, 1), [Stage::Repeated]);
    assert_eq!(raise(&mut alerts, Severity::Warning, 2), []);
    assert_eq!(raise(&mut alerts, Severity::Error, 3), [], "that bad it was before");
}

#[test]
fn subjects_and_kinds_do_not_mix() {
    let mut alerts = Alerts::new(secs(300));
    for (kind, subject) in [(MEMORY, "a"), (MEMORY, "b"), (AlertKind::Disk, "a")] {
        assert_eq!(stages(&alerts.raise(kind, subject, Severity::Error, "x", at(0))), [Stage::Raised]);
    }
    assert_eq!(alerts.resolve_subject("a", at(1)).len(), 2);
    let left: Vec<_> = alerts.active().map(|a| (a.kind, a.subject.as_str())).collect();
    assert_eq!(left, [(MEMORY, "b")]);
}

#[test]
fn a_full_table_drops_counts_and_says_so_once() {
    let mut alerts = Alerts::new(secs(300));
    let add = |alerts: &mut Alerts, n: usize| {
        alerts.raise(AlertKind::ProcessFailure, &format!("s{n}"), Severity::Error, "x", at(1))
    };
    for n in 0..ALERTS_MAX {
        assert_eq!(add(&mut alerts, n).len(), 1);
    }
    let told = add(&mut alerts, ALERTS_MAX);
    assert_eq!(
        told[0].to_string(),
        "table-full raised of alerts: more than 1000 alerts at once; 1 were dropped, so look at the servers themselves"
    );
    assert_eq!(add(&mut alerts, ALERTS_MAX + 1), []);
    assert_eq!((alerts.dropped(), alerts.active().count()), (2, ALERTS_MAX + 1));
    let told = alerts.resolve(AlertKind::ProcessFailure, "s0", at(2));
    assert_eq!(stages(&told), [Stage::Resolved, Stage::Resolved], "the one, and the table is full no more");
    assert_eq!(add(&mut alerts, ALERTS_MAX + 2).len(), 1, "in the place of a recent one");
}

#[test]
fn a_moment_of_trouble_is_over_when_it_does_not_come_again() {
    let mut alerts = Alerts::new(secs(300));
    let hit = |alerts: &mut Alerts, now| {
        stages(&alerts.raise(AlertKind::ResourceViolation, "hog.1", Severity::Warning, "x", at(now)))
    };
    assert_eq!(hit(&mut alerts, 0), [Stage::Raised]);
    assert_eq!(hit(&mut alerts, 200), []);
    assert_eq!(stages(&alerts.tick(at(300))), [Stage::Repeated]);
    assert_eq!(alerts.due(), Some(at(500)));
    assert_eq!(alerts.tick(at(499)), []);
    assert_eq!(stages(&alerts.tick(at(500))), [Stage::Resolved]);
    assert_eq!(alerts.active().count(), 0);
}

#[test]
fn trouble_that_is_there_at_each_look_stays_however_seldom_one_looks() {
    let mut alerts = Alerts::new(secs(1));
    alerts.set_looks(secs(5));
    let mut told = Vec::new();
    for now in 0..30 {
        if now % 5 == 0 {
            told.extend(alerts.raise(AlertKind::ResourceViolation, "hog.1", Severity::Warning, "x", at(now)));
        }
        told.extend(alerts.tick(at(now)));
    }
    let (first, later) = told.split_first().expect("it is told");
    assert_eq!(first.stage, Stage::Raised);
    assert!(later.iter().all(|told| told.stage == Stage::Repeated), "{later:?}");
    assert_eq!(stages(&alerts.tick(at(34))), [Stage::Repeated]);
    assert_eq!(stages(&alerts.tick(at(35))), [Stage::Resolved], "10 s after the last");
}

#[test]
fn what_happens_to_an_instance_raises_and_resolves() {
    use ostler_domain::instance::StopStep;
    let killed = |kills| Happening::StopStep { step: StopStep::Kill, kills, reason: "x".into() };
    let cleanup = [Change::Raise(AlertKind::CleanupFailure, Severity::Error)];
    assert_eq!(meaning(&killed(3), 3), []);
    assert_eq!(meaning(&killed(4), 3), cleanup);
    let stopped = meaning(&Happening::Stopped { reason: "x".into() }, 3);
    assert!(stopped.contains(&Change::Resolve(AlertKind::CleanupFailure)), "{stopped:?}");
    assert!(stopped.contains(&Change::Resolve(AlertKind::ProcessFailure)), "{stopped:?}");
    let ready = meaning(&Happening::Ready { after: secs(1) }, 3);
    assert_eq!(ready, [Change::Resolve(AlertKind::ProcessFailure)]);
}

#[test]
fn kinds_have_names_of_their_own() {
    let names: std::collections::BTreeSet<_> = AlertKind::ALL.iter().map(|k| k.as_str()).collect();
    assert_eq!(names.len(), AlertKind::ALL.len());
    assert_eq!(Alerts::new(secs(0)).due(), None);
    let mut alerts = Alerts::new(secs(0));
    raise(&mut alerts, Severity::Error, 0);
    assert_eq!(alerts.due(), Some(Now(REPEAT_MIN)));
}

#[derive(Clone, Debug)]
enum Step {
    Raise(u8, Severity),
    Resolve(u8),
    Tick(u64),
    /// Ticks when it is due.
    Due,
}

fn step() -> impl Strategy<Value = Step> {
    let severity = prop::sample::select(vec![Severity::Info, Severity::Warning, Severity::Error]);
    prop_oneof![
        6 => (0_u8..6, severity).prop_map(|(s, severity)| Step::Raise(s, severity)),
        3 => (0_u8..6).prop_map(Step::Resolve),
        2 => (0_u64..15).prop_map(Step::Tick),
        2 => Just(Step::Due),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nobody_is_flooded_and_nothing_is_kept_silent(
        steps in prop::collection::vec(step(), 1..150),
        repeat in 1_u64..30,
        max in 2_usize..8,
    ) {
        let mut alerts = Alerts::with_max(secs(repeat), max);
        let mut now = at(100);
        // By subject: the times and severities told, and whether the beginning was told and not the end.
        let mut told: BTreeMap<String, Vec<(Now, Severity)>> = BTreeMap::new();
        let mut open: BTreeMap<String, bool> = BTreeMap::new();
        for step in steps {
            let ticked = matches!(step, Step::Tick(_) | Step::Due);
            let notices = match step {
                Step::Raise(subject, severity) => {
                    now = now.after(secs(1));
                    alerts.raise(MEMORY, &subject.to_string(), severity, "x", now)
                }
                Step::Resolve(subject) => alerts.resolve(MEMORY, &subject.to_string(), now),
                Step::Tick(seconds) => {
                    now = now.after(secs(seconds));
                    alerts.tick(now)
                }
                Step::Due => {
                    let Some(due) = alerts.due() else { continue };
                    now = now.max(due);
                    alerts.tick(now)
                }
            };
            for Notify { stage, alert } in notices {
                let is_open = open.entry(alert.subject.clone()).or_default();
                prop_assert_eq!(*is_open, stage != Stage::Raised, "{:?} of {}", stage, alert.subject);
                *is_open = stage != Stage::Resolved;
                if stage != Stage::Resolved {
                    let history = told.entry(alert.subject.clone()).or_default();
                    let recent = history.iter().filter(|(t, _)| now.since(*t) < secs(repeat));
                    // A full table may forget a recent one; then it knows no better.
                    if max > 6 {
                        for (_, severity) in recent {
                            prop_assert!(*severity < alert.severity, "told twice in {} s", repeat);
                        }
                    }
                    history.push((now, alert.severity));
                }
            }
            let active: Vec<_> = alerts.active().collect();
            prop_assert!(active.len() <= max + 1);
            for (subject, is_open) in &open {
                let is_active = active.iter().any(|a| a.subject == *subject);
                prop_assert!(!is_open || is_active, "{} is over and nobody was told", subject);
            }
            if ticked {
                prop_assert!(alerts.due().is_none_or(|due| due > now), "due again at once");
                for alert in active {
                    let silent = now.since(alert.since) >= secs(repeat);
                    prop_assert!(!silent || open[&alert.subject], "{} is kept silent", alert.subject);
                }
            }
        }
    }
}
