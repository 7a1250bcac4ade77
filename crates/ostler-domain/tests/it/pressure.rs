//! Pressure: levels, refusals, and what makes room.

use std::collections::BTreeMap;
use std::time::Duration;

use ostler_domain::InstanceId;
use ostler_domain::pressure::{
    Action, Candidate, Gauge, HYSTERESIS, Level, Load, Need, Occupation, Over, OwnLimits, OwnSample, OwnUse,
    Refusal, Thresholds, Used, Verdict, admit, relieve,
};
use ostler_domain::text::human_bytes;
use proptest::prelude::*;

use crate::support::at;

const MIB: u64 = 1 << 20;

#[test]
fn bytes_read_like_speech() {
    let cases = [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (500 * MIB, "500 MiB"),
        (4 << 30, "4 GiB"),
        (3_328_599_655, "3.1 GiB"),
        (10 * MIB + MIB / 2, "10 MiB"),
        (u64::MAX, "15 EiB"),
    ];
    for (bytes, text) in cases {
        assert_eq!(human_bytes(bytes), text);
    }
}

#[test]
fn levels_rise_at_once_and_fall_late() {
    let mut gauge = Gauge::new(Thresholds::default());
    assert_eq!(gauge.measure(74, 100), None);
    assert_eq!(gauge.measure(75, 100), Some(Level::Warning));
    assert_eq!(gauge.measure(72, 100), None, "not yet 5 % below");
    assert_eq!(gauge.measure(90, 100), Some(Level::Critical));
    assert_eq!(gauge.measure(86, 100), None);
    assert_eq!(gauge.measure(85, 100), Some(Level::Warning));
    assert_eq!(gauge.measure(71, 100), Some(Level::Normal));
    assert_eq!(gauge.measure(100, 100), Some(Level::Critical));
    assert_eq!(gauge.measure(0, 100), Some(Level::Normal));
}

#[test]
fn odd_limits_have_levels_too() {
    let mut gauge = Gauge::default();
    assert_eq!(gauge.measure(0, 0), None);
    assert_eq!(gauge.measure(1, 0), Some(Level::Critical));
    assert_eq!(gauge.measure_share(f64::NAN), None);
    let mut stall = Gauge::new(Thresholds::STALL);
    assert_eq!(stall.measure_share(0.25), Some(Level::Warning));
    assert_eq!(stall.measure_share(0.6), Some(Level::Critical));
}

fn load() -> Load {
    Load {
        processes: Used { used: 14, limit: 15 },
        of_type: Used { used: 2, limit: 3 },
        type_name: "git".into(),
        memory: Used { used: 3 << 30, limit: 4 << 30 },
        memory_level: Level::Warning,
        expected: 1 << 30,
    }
}

#[test]
fn a_process_is_admitted_up_to_every_limit_and_not_beyond() {
    assert_eq!(admit(&load()), Ok(()));
    let refused = |change: &dyn Fn(&mut Load)| {
        let mut load = load();
        change(&mut load);
        admit(&load).unwrap_err()
    };
    let full = refused(&|l| l.processes.used = 15);
    assert_eq!(
        full.to_string(),
        "15 instances exist already, 15 are allowed (limits.processes): end a session, stop a server or raise the limit"
    );
    let full = refused(&|l| l.of_type.used = 3);
    assert!(
        full.to_string()
            .starts_with("3 instances of type `git` exist already, 3 are allowed (limits.per_type)")
    );
    let full = refused(&|l| l.expected += 1);
    assert!(
        full.to_string()
            .starts_with("all instances together use 3 GiB of 4 GiB, and 1 GiB more are expected")
    );
    assert_eq!(full.limit(), "limits.memory");
    assert!(matches!(refused(&|l| l.memory_level = Level::Critical), Refusal::Memory { .. }));
    assert!(matches!(refused(&|l| l.memory.used = u64::MAX), Refusal::Memory { .. }));
}

fn candidate(name: &str, occupation: Occupation, mib: u64) -> Candidate {
    Candidate {
        id: InstanceId { server: name.parse().unwrap(), number: 1 },
        type_name: name.into(),
        occupation,
        since: at(100),
        memory: mib * MIB,
        own_limit: None,
        kept: false,
    }
}

fn names(actions: &[Action]) -> Vec<String> {
    actions.iter().map(ToString::to_string).collect()
}

#[test]
fn room_is_made_in_the_order_of_harm() {
    use Occupation::{Busy, Idle, Leased, Spare};
    let all = [
        candidate("busy", Busy, 900),
        Candidate { own_limit: Some(500 * MIB), ..candidate("hungry", Busy, 600) },
        Candidate { own_limit: Some(100 * MIB), ..candidate("fat", Leased, 300) },
        candidate("held", Leased, 800),
        candidate("small", Idle, 10),
        candidate("large", Idle, 200),
        Candidate { since: at(50), ..candidate("old", Idle, 200) },
        Candidate { kept: true, ..candidate("required", Idle, 999) },
        candidate("spare", Spare, 5),
    ];
    let everything = Need::Bytes(u64::MAX);
    let mild = [
        "stop the spare instance spare.1 (5 MiB)",
        "stop the unused instance old.1 (200 MiB)",
        "stop the unused instance large.1 (200 MiB)",
        "stop the unused instance small.1 (10 MiB)",
        "restart fat.1 (300 MiB, its own limit is 100 MiB)",
    ];
    assert_eq!(names(&relieve(&everything, &all, false).actions), mild);
    let hard = names(&relieve(&everything, &all, true).actions);
    assert_eq!(hard[..5], mild);
    assert_eq!(
        hard[5..],
        [
            "emergency: stop the instance that sessions hold, held.1 (800 MiB)",
            "emergency: restart in the middle of calls hungry.1 (600 MiB, its own limit is 500 MiB)",
            "emergency: stop in the middle of calls busy.1 (900 MiB)",
        ]
    );
    let some = relieve(&Need::Bytes(205 * MIB), &all, true);
    assert_eq!((some.actions.len(), some.short), (2, 0), "no more than needed");
}

#[test]
fn room_among_the_instances_disturbs_nobody() {
    use Occupation::{Busy, Idle, Leased};
    let all = [
        candidate("git", Idle, 1),
        candidate("npm", Idle, 2),
        candidate("git", Busy, 3),
        Candidate { own_limit: Some(1), ..candidate("git", Leased, 4) },
    ];
    let slots = |count, type_name: Option<&str>| {
        relieve(&Need::Slots { count, type_name: type_name.map(str::to_owned) }, &all, true)
    };
    assert_eq!(names(&slots(1, Some("git")).actions), ["stop the unused instance git.1 (1 MiB)"]);
    assert_eq!(names(&slots(1, None).actions), ["stop the unused instance npm.1 (2 MiB)"]);
    assert_eq!((slots(5, None).actions.len(), slots(5, None).short), (2, 3));
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    use Occupation::{Busy, Idle, Leased, Spare};
    let occupation = prop::sample::select(vec![Spare, Idle, Leased, Busy]);
    let kind = prop::sample::select(vec!["git", "npm"]);
    (kind, occupation, 0_u64..500, prop::option::of(0_u64..500), any::<bool>(), 0_u64..100).prop_map(
        |(kind, occupation, memory, own_limit, kept, since)| Candidate {
            own_limit,
            kept,
            memory,
            since: at(since),
            ..candidate(kind, occupation, 0)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn relief_is_enough_needed_and_never_too_hard(
        mut candidates in prop::collection::vec(any_candidate(), 0..14),
        bytes in prop::option::of(0_u64..3_000),
        slots in 0_usize..8,
        of_type: bool,
        emergency: bool,
    ) {
        for (number, candidate) in candidates.iter_mut().enumerate() {
            candidate.id.number = u32::try_from(number).unwrap();
        }
        let type_name = of_type.then(|| "git".to_owned());
        let need = bytes.map_or(Need::Slots { count: slots, type_name }, Need::Bytes);
        let needed = bytes.unwrap_or(slots as u64);
        let relief = relieve(&need, &candidates, emergency);
        let by_number: BTreeMap<u32, &Candidate> = candidates.iter().map(|c| (c.id.number, c)).collect();
        let mut gained = 0;
        let mut touched = Vec::new();
        for action in &relief.actions {
            let candidate = by_number[&action.id.number];
            prop_assert!(gained < needed, "{} is needless", action);
            prop_assert!(!touched.contains(&action.id.number), "twice");
            touched.push(action.id.number);
            prop_assert!(emergency || candidate.occupation != Occupation::Busy, "a busy one: {}", action);
            prop_assert!(emergency || !action.measure.is_emergency());
            prop_assert!(!candidate.kept || action.measure.restarts(), "a kept one: {}", action);
            prop_assert!(bytes.is_some() || !of_type || candidate.type_name == "git");
            prop_assert!(bytes.is_some() || candidate.occupation <= Occupation::Idle);
            let excess = candidate.own_limit.map_or(0, |limit| candidate.memory.saturating_sub(limit));
            prop_assert!(!action.measure.restarts() || excess > 0);
            let gain = match (bytes, action.measure.restarts()) {
                (None, _) => 1,
                (Some(_), true) => excess,
                (Some(_), false) => candidate.memory,
            };
            prop_assert!(gain > 0, "{} gains nothing", action);
            gained += gain;
        }
        prop_assert_eq!(relief.short, needed.saturating_sub(gained));
        for pair in relief.actions.windows(2) {
            prop_assert!(pair[0].measure <= pair[1].measure, "out of order");
            let (a, b) = (by_number[&pair[0].id.number], by_number[&pair[1].id.number]);
            let size = |c: &Candidate| match pair[0].measure.restarts() {
                true => c.memory - c.own_limit.unwrap(),
                false => c.memory,
            };
            if pair[0].measure == pair[1].measure {
                prop_assert!(size(a) > size(b) || (size(a) == size(b) && a.since <= b.since));
            }
        }
        if relief.short > 0 {
            // Then nobody that could have been stopped without harm was left.
            let left = |c: &&Candidate| !touched.contains(&c.id.number) && !c.kept
                && c.occupation <= Occupation::Idle && (bytes.is_none() || c.memory > 0)
                && (bytes.is_some() || !of_type || c.type_name == "git");
            prop_assert_eq!(candidates.iter().find(left), None);
        }
    }

    /// The level is never lower than the share asks for, and higher only within the hysteresis.
    #[test]
    fn levels_follow_the_share(
        shares in prop::collection::vec(0.0_f64..1.3, 1..50),
        warning in 0.05_f64..0.8,
        gap in 0.01_f64..0.3,
    ) {
        let thresholds = Thresholds { warning, critical: warning + gap };
        let mut gauge = Gauge::new(thresholds);
        let plain = |share: f64| match share {
            s if s >= thresholds.critical => Level::Critical,
            s if s >= thresholds.warning => Level::Warning,
            _ => Level::Normal,
        };
        for share in shares {
            let before = gauge.level();
            let changed = gauge.measure_share(share);
            let level = gauge.level();
            prop_assert_eq!(changed, (before != level).then_some(level));
            prop_assert!(level >= plain(share));
            prop_assert!(level <= plain(share / (1.0 - HYSTERESIS) + 1e-9));
            prop_assert!(level == plain(share) || before >= level, "it rose too early");
        }
    }
}

/// Limits that only measuring holds: 100 MiB warned of at 80, nine processes, half a core.
const OWN: OwnLimits =
    OwnLimits { memory_warning: 80 * MIB, memory: Some(100 * MIB), pids: Some(9), cpu: Some(0.5) };

/// A measurement after so many seconds: memory in MiB, processes, processor time in milliseconds.
fn own_sample(seconds: u64, memory: u64, pids: u32, cpu_ms: u64) -> OwnSample {
    OwnSample { at: at(seconds), memory: memory * MIB, pids, cpu_ms }
}

#[test]
fn high_memory_is_said_when_it_begins_and_when_it_is_well_over() {
    let mut own = OwnUse::default();
    let mut said = |seconds, memory| own.measure(&OWN, &own_sample(seconds, memory, 1, 0));
    assert_eq!(said(0, 79), []);
    let [Verdict::High(Some(reason))] = &said(5, 80)[..] else { panic!("it begins") };
    assert_eq!(reason, "it uses 80 MiB of memory (limits.memory_warning: 80 MiB)");
    assert_eq!(said(10, 90), [], "known");
    assert_eq!(said(15, 77), [], "not yet 5 % below");
    assert_eq!(said(20, 75), [Verdict::High(None)]);
}

#[test]
fn memory_and_processes_over_a_limit_that_nothing_holds_are_acted_on_at_once() {
    let over = |sample| OwnUse::default().measure(&OWN, &sample).pop();
    assert_eq!(over(own_sample(0, 1, 9, 0)), None, "at the limit is not over it");
    let Some(Verdict::Over(pids)) = over(own_sample(0, 1, 10, 0)) else { panic!("over it") };
    assert!(pids.to_string().starts_with("over its limit of processes and threads: 10 of 9; "), "{pids}");
    let Some(Verdict::Over(memory)) = over(own_sample(0, 101, 10, 0)) else { panic!("over it") };
    assert!(memory.to_string().starts_with("over its memory limit: 101 MiB of 100 MiB; "), "{memory}");
    assert!(pids.is_urgent() && memory.is_urgent());
    let held = OwnLimits { memory: None, pids: None, cpu: None, ..OWN };
    let verdicts = OwnUse::default().measure(&held, &own_sample(0, 101, 10, 0));
    assert!(matches!(verdicts[..], [Verdict::High(Some(_))]), "the kernel holds it: {verdicts:?}");
}

#[test]
fn a_cpu_hog_is_acted_on_when_it_goes_on_and_a_burst_is_not() {
    let mut own = OwnUse::default();
    let mut said = |seconds, cpu_ms| own.measure(&OWN, &own_sample(seconds, 1, 1, cpu_ms));
    assert_eq!(said(0, 60_000), [], "nothing to compare with");
    // A whole core for ten seconds, a pause, and then again.
    assert_eq!((said(5, 65_000), said(10, 70_000), said(15, 72_500)), (vec![], vec![], vec![]));
    assert_eq!((said(20, 77_500), said(25, 82_500)), (vec![], vec![]));
    let [Verdict::Over(over)] = said(30, 87_500)[..] else { panic!("three in a row") };
    assert_eq!(over, Over::Cpu { used: 1.0, limit: 0.5, over: Duration::from_secs(15) });
    assert!(over.to_string().starts_with("over its cpu limit: 1.00 of 0.5 cores for 15 s; "), "{over}");
    assert!(!over.is_urgent());
    assert_eq!(said(35, 92_500), [], "said once; it begins anew");
    assert_eq!(said(35, 99_000), [], "no time has passed");
}
