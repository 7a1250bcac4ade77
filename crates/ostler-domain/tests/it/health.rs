//! Health, by scenarios and at random.

use std::time::Duration;

use ostler_domain::health::{
    Condition, Health, HealthEffect as Effect, HealthEvent as Event, HealthPolicy, LATE, ProbeId,
};
use ostler_domain::{HealthSpec, Now, Probe};
use proptest::prelude::*;

use crate::support::{at, secs};

/// Every 30 s, late after 5, unhealthy after 3 failures or 180 s, well after 2 successes; pauses for calls.
const POLICY: HealthPolicy = HealthPolicy {
    interval: Duration::from_secs(30),
    timeout: Duration::from_secs(5),
    failures: 3,
    successes: 2,
    unhealthy_after: Duration::from_secs(180),
    pauses_for_calls: true,
};

struct Bench {
    it: Health,
    now: Now,
}

impl Bench {
    /// Ready at 100 s.
    fn ready(policy: HealthPolicy) -> Self {
        let mut bench = Self { it: Health::new(policy), now: at(100) };
        let effects = bench.send(Event::Ready);
        assert_eq!(effects, [Effect::Timer(Some(bench.now.after(policy.interval)))]);
        bench
    }

    fn send(&mut self, event: Event) -> Vec<Effect> {
        self.it.decide(event, self.now)
    }

    /// Moves to the timer and fires it.
    fn fire(&mut self) -> Vec<Effect> {
        self.now = self.it.timer().expect("a timer is armed");
        self.send(Event::Timer)
    }

    /// Fires until a probe goes out.
    fn probe(&mut self) -> ProbeId {
        for _ in 0..3 {
            if let Some(Effect::Probe(id)) = self.fire().into_iter().find(|e| matches!(e, Effect::Probe(_))) {
                return id;
            }
        }
        panic!("no probe was sent");
    }

    /// What an answer to the next probe leads to, the timer left out.
    fn answer(&mut self, result: Result<(), &str>) -> Vec<Effect> {
        let probe = self.probe();
        let mut effects = self.send(Event::Answered { probe, result: result.map_err(str::to_owned) });
        effects.retain(|e| !matches!(e, Effect::Timer(_)));
        effects
    }
}

#[test]
fn one_failure_degrades_so_many_in_a_row_make_unhealthy_and_successes_make_well() {
    let mut bench = Bench::ready(POLICY);
    assert_eq!(bench.answer(Ok(())), []);
    let reason = |n: u32| format!("probe {n} of 3 failed in a row: refused");
    assert_eq!(bench.answer(Err("refused")), [Effect::Degraded { reason: reason(1) }]);
    assert_eq!(bench.answer(Err("refused")), []);
    assert_eq!(bench.answer(Ok(())), []);
    assert_eq!(bench.answer(Err("refused")), [], "in a row: it counts from the start");
    assert_eq!(bench.answer(Err("refused")), []);
    assert_eq!(bench.answer(Err("refused")), [Effect::Unhealthy { reason: reason(3) }]);
    assert_eq!((bench.it.condition(), bench.it.failures()), (Condition::Unhealthy, 3));
    assert_eq!(bench.answer(Err("refused")), [], "said once");
    assert_eq!(bench.answer(Ok(())), []);
    assert_eq!(bench.answer(Ok(())), [Effect::Recovered { after: secs(240) }]);
    assert_eq!(bench.it.condition(), Condition::Healthy);
}

#[test]
fn with_one_failure_allowed_degraded_still_comes_before_unhealthy() {
    let mut bench = Bench::ready(HealthPolicy { failures: 1, ..POLICY });
    let effects = bench.answer(Err("x"));
    assert!(matches!(effects[..], [Effect::Degraded { .. }, Effect::Unhealthy { .. }]), "{effects:?}");
}

#[test]
fn a_late_probe_is_given_up_and_its_late_answer_dropped() {
    let mut bench = Bench::ready(POLICY);
    let probe = bench.probe();
    assert_eq!(bench.it.timer(), Some(bench.now.after(secs(5))));
    let effects = bench.fire();
    let reason = "probe 1 of 3 failed in a row: no answer within 5 s".to_owned();
    assert_eq!(effects[..2], [Effect::Abort(probe), Effect::Degraded { reason }]);
    assert_eq!(bench.send(Event::Answered { probe, result: Ok(()) }), []);
    assert_eq!(bench.it.condition(), Condition::Degraded);
}

#[test]
fn time_without_success_makes_unhealthy_before_the_count_does() {
    let mut bench = Bench::ready(HealthPolicy { failures: 1000, ..POLICY });
    let mut said = Vec::new();
    while bench.now < at(100 + 180) {
        said.extend(bench.fire().into_iter().filter(|e| matches!(e, Effect::Unhealthy { .. })));
    }
    assert_eq!(said, [Effect::Unhealthy { reason: "no probe has succeeded for 3 min".into() }]);
    assert_eq!(bench.now, at(280));
}

#[test]
fn an_impossible_patience_is_that_of_one_probe() {
    let mut bench = Bench::ready(HealthPolicy { unhealthy_after: secs(1), ..POLICY });
    for _ in 0..10 {
        assert_eq!(bench.answer(Ok(())), []);
    }
    bench.answer(Err("x"));
    assert_eq!(bench.it.condition(), Condition::Degraded, "30 s without a success are no reason yet");
}

#[test]
fn running_calls_put_probes_off_and_stop_the_clock() {
    let mut bench = Bench::ready(POLICY);
    assert_eq!(bench.send(Event::Calls { running: true }), [Effect::Timer(None)]);
    bench.now = bench.now.after(secs(3600));
    let effects = bench.send(Event::Calls { running: false });
    assert!(matches!(effects[..], [Effect::Probe(_), Effect::Timer(Some(_))]), "{effects:?}");
    assert_eq!(bench.it.condition(), Condition::Healthy);
    bench.fire();
    assert_eq!(bench.it.condition(), Condition::Degraded, "an hour of calls is no hour without success");
}

#[test]
fn a_probe_overtaken_by_a_call_may_succeed_but_not_fail() {
    let mut bench = Bench::ready(POLICY);
    let probe = bench.probe();
    bench.send(Event::Calls { running: true });
    bench.now = bench.now.after(secs(600));
    assert_eq!(bench.send(Event::Answered { probe, result: Err("busy".into()) }), []);
    let effects = bench.send(Event::Calls { running: false });
    assert!(matches!(effects[..], [Effect::Probe(_), ..]), "asked again at once: {effects:?}");
    bench.send(Event::Calls { running: true });
    bench.now = bench.now.after(secs(600));
    bench.send(Event::Calls { running: false });
    assert_eq!(bench.it.timer(), Some(bench.now.after(secs(5))), "it has its time back");
}

#[test]
fn a_policy_that_does_not_pause_probes_through_calls() {
    let mut bench = Bench::ready(HealthPolicy { pauses_for_calls: false, ..POLICY });
    assert_eq!(bench.send(Event::Calls { running: true }), []);
    bench.probe();
}

#[test]
fn an_answered_call_is_a_success() {
    let mut bench = Bench::ready(POLICY);
    bench.answer(Err("x"));
    bench.send(Event::Alive);
    let effects = bench.send(Event::Alive);
    assert_eq!(effects[0], Effect::Recovered { after: secs(0) });
}

#[test]
fn the_end_of_a_process_ends_its_probes_and_the_next_starts_afresh() {
    let mut bench = Bench::ready(POLICY);
    bench.answer(Err("x"));
    bench.answer(Err("x"));
    let probe = bench.probe();
    bench.send(Event::Calls { running: true });
    assert_eq!(bench.send(Event::Ended), [Effect::Abort(probe)]);
    assert_eq!((bench.it.condition(), bench.it.timer()), (Condition::Off, None));
    assert_eq!(bench.send(Event::Answered { probe, result: Err("x".into()) }), []);
    assert_eq!(bench.send(Event::Alive), []);
    bench.send(Event::Ready);
    assert_eq!((bench.it.condition(), bench.it.failures()), (Condition::Healthy, 0));
    assert_ne!(bench.probe(), probe, "nor are its calls those of the next");
}

#[test]
fn a_daemon_that_was_stopped_blames_nobody() {
    let mut bench = Bench::ready(POLICY);
    bench.answer(Err("x"));
    let probe = bench.probe();
    bench.now = bench.now.after(secs(10_000));
    let effects = bench.send(Event::Timer);
    assert!(matches!(effects[..], [Effect::Timer(Some(_))]), "{effects:?}");
    assert_eq!(bench.it.timer(), Some(bench.now.after(secs(5))));
    bench.send(Event::Answered { probe, result: Ok(()) });
    assert_eq!(bench.it.condition(), Condition::Degraded);
}

#[test]
fn the_policy_is_that_of_the_configuration() {
    let mut spec = HealthSpec::default();
    let policy = HealthPolicy::of(&spec).unwrap();
    assert_eq!(policy, HealthPolicy { successes: 1, ..POLICY });
    spec.probe = Probe::Tcp { address: "x:1".into() };
    assert!(!HealthPolicy::of(&spec).unwrap().pauses_for_calls);
    spec.probe = Probe::None;
    assert_eq!(HealthPolicy::of(&spec), None);
}

/// A step of a random life: how long after the one before, and what.
#[derive(Clone, Debug)]
enum Step {
    Fire,
    Answer { current: bool, ok: bool },
    Calls(bool),
    Alive,
    Wait(u64),
    Ready,
    Ended,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => Just(Step::Fire),
        6 => (prop::bool::weighted(0.9), prop::bool::weighted(0.4))
            .prop_map(|(current, ok)| Step::Answer { current, ok }),
        2 => any::<bool>().prop_map(Step::Calls),
        1 => Just(Step::Alive),
        3 => (0_u64..900).prop_map(Step::Wait),
        1 => Just(Step::Ready),
        1 => Just(Step::Ended),
    ]
}

/// What an observer of the effects alone knows.
#[derive(Default)]
struct Seen {
    out: Option<ProbeId>,
    latest: ProbeId,
    timer: Option<Now>,
    degraded: bool,
    unhealthy: bool,
    /// Probes that failed since the latest success, as far as failures count.
    failed: u32,
}

impl Seen {
    fn check(&mut self, effects: &[Effect], policy: &HealthPolicy, busy: bool) -> Result<(), TestCaseError> {
        for effect in effects {
            match effect {
                Effect::Probe(id) => {
                    prop_assert!(self.out.is_none(), "two probes are out");
                    prop_assert!(*id > self.latest, "a number is used twice");
                    prop_assert!(!(busy && policy.pauses_for_calls), "probed during a call");
                    (self.out, self.latest) = (Some(*id), *id);
                }
                Effect::Abort(id) => prop_assert_eq!(self.out.take(), Some(*id)),
                Effect::Degraded { .. } => {
                    prop_assert!(!self.degraded);
                    self.degraded = true;
                }
                Effect::Unhealthy { .. } => {
                    prop_assert!(self.degraded && !self.unhealthy, "unhealthy without degraded, or twice");
                    prop_assert!(self.failed > 0, "unhealthy, and nothing failed");
                    self.unhealthy = true;
                }
                Effect::Recovered { .. } => {
                    prop_assert!(self.degraded && self.failed == 0);
                    (self.degraded, self.unhealthy) = (false, false);
                }
                Effect::Timer(at) => self.timer = *at,
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_lives_keep_the_promises(
        steps in prop::collection::vec(step(), 1..120),
        (failures, successes) in (0_u32..5, 0_u32..4),
        (interval, timeout, patience) in (1_u64..60, 1_u64..20, 1_u64..300),
        pauses_for_calls: bool,
    ) {
        let policy = HealthPolicy {
            interval: secs(interval), timeout: secs(timeout), unhealthy_after: secs(patience),
            failures, successes, pauses_for_calls,
        };
        let mut it = Health::new(policy);
        let (mut now, mut seen) = (at(1000), Seen::default());
        let (mut busy, mut on) = (false, false);
        for step in steps {
            let event = match step {
                Step::Fire => match it.timer() {
                    Some(timer) => { now = now.max(timer); Event::Timer }
                    None => continue,
                },
                Step::Wait(tenths) => { now = now.after(Duration::from_millis(tenths * 100)); Event::Timer }
                Step::Answer { current, ok } => {
                    let probe = if current { seen.out.unwrap_or_default() } else { ProbeId(seen.latest.0 / 2) };
                    Event::Answered { probe, result: if ok { Ok(()) } else { Err("x".into()) } }
                }
                Step::Calls(running) => { busy = running; Event::Calls { running } }
                Step::Alive => Event::Alive,
                Step::Ready => Event::Ready,
                Step::Ended => { busy = false; Event::Ended }
            };
            match &event {
                Event::Ready | Event::Ended => {
                    on = matches!(event, Event::Ready);
                    (seen.degraded, seen.unhealthy, seen.failed) = (false, false, 0);
                }
                Event::Alive if on => seen.failed = 0,
                Event::Answered { probe, result } if seen.out == Some(*probe) => {
                    seen.out = None;
                    seen.failed = if result.is_ok() { 0 } else { seen.failed + 1 };
                }
                _ => {}
            }
            let effects = it.decide(event, now);
            let aborted = effects.iter().filter(|e| matches!(e, Effect::Abort(_))).count();
            seen.failed += if on { u32::try_from(aborted).unwrap() } else { 0 };
            seen.check(&effects, &policy, busy)?;
            prop_assert_eq!(it.timer(), seen.timer);
            let condition = match (on, seen.degraded, seen.unhealthy) {
                (false, ..) => Condition::Off,
                (true, false, _) => Condition::Healthy,
                (true, true, false) => Condition::Degraded,
                (true, true, true) => Condition::Unhealthy,
            };
            prop_assert_eq!(it.condition(), condition);
            let waits = on && !(busy && policy.pauses_for_calls);
            prop_assert_eq!(seen.timer.is_some(), waits, "no wait is for ever, and none without a reason");
        }
    }

    /// However a server fails, it is unhealthy in time; and one that answers in time never is.
    #[test]
    fn silence_is_found_in_time_and_health_is_never_doubted(
        (failures, patience) in (1_u32..50, 1_u64..300),
        (interval, timeout) in (1_u64..60, 1_u64..20),
        answers in prop::collection::vec(0_u64..20, 200),
        alive: bool,
    ) {
        let policy = HealthPolicy {
            interval: secs(interval), timeout: secs(timeout), unhealthy_after: secs(patience),
            failures, successes: 1, pauses_for_calls: true,
        };
        let mut it = Health::new(policy);
        let start = at(1000);
        let mut now = start;
        let mut effects = it.decide(Event::Ready, now);
        let limit = secs(patience.max(interval + timeout));
        for delay in answers {
            let probe = effects.iter().find_map(|e| if let Effect::Probe(id) = e { Some(*id) } else { None });
            effects = match probe {
                Some(probe) if alive => {
                    // Just in time at the latest.
                    now = now.after(secs(delay).min(secs(timeout) - Duration::from_millis(1)));
                    it.decide(Event::Answered { probe, result: Ok(()) }, now)
                }
                _ => {
                    now = it.timer().unwrap();
                    it.decide(Event::Timer, now)
                }
            };
            if alive {
                prop_assert_eq!(it.condition(), Condition::Healthy);
            } else if it.condition() == Condition::Unhealthy {
                break;
            }
        }
        prop_assert!(alive || it.condition() == Condition::Unhealthy);
        prop_assert!(alive || now.since(start) <= limit, "{:?} after, limit {:?}", now.since(start), limit);
    }

    /// Being looked at late makes nobody unhealthy who answers as soon as asked.
    #[test]
    fn delays_of_the_daemon_are_forgiven(late in prop::collection::vec(0_u64..2_000, 1..60)) {
        let mut it = Health::new(HealthPolicy { pauses_for_calls: false, ..POLICY });
        let mut now = at(1000);
        let mut effects = it.decide(Event::Ready, now);
        for seconds in late {
            match effects.iter().find_map(|e| if let Effect::Probe(id) = e { Some(*id) } else { None }) {
                // The timer and the answer are there when the daemon wakes, the timer first.
                Some(probe) => {
                    let before = it.timer().unwrap();
                    now = now.after(secs(seconds)).max(now);
                    if now > before.after(LATE) || now < before {
                        effects = it.decide(Event::Timer, now);
                        prop_assert!(!effects.contains(&Effect::Abort(probe)));
                        effects = it.decide(Event::Answered { probe, result: Ok(()) }, now);
                    } else {
                        now = before.after(Duration::ZERO);
                        effects = it.decide(Event::Answered { probe, result: Ok(()) }, now);
                    }
                }
                None => {
                    now = it.timer().unwrap().after(secs(seconds));
                    effects = it.decide(Event::Timer, now);
                }
            }
            prop_assert_eq!(it.condition(), Condition::Healthy);
        }
    }
}
