//! Stories of one instance, told event by event.

use std::time::Duration;

use ostler_domain::instance::{
    BROKEN_FACTOR, BROKEN_PAUSE_MIN, HISTORY_MAX, KILL_RETRY_MAX, backoff_delay, broken_pause,
};
use ostler_domain::{
    AfterStop, Cause, Effect, Event, Exit, Happening, Instance, Policy, Restart, RestartPolicy, Severity,
    State, StopStep, TimerKind,
};

use crate::support::{Bench, armed, happenings, names, policy, secs, state_name};

#[test]
fn an_ordinary_life() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    assert_eq!(names(&it.send(Event::Start)), ["[starting]", "Spawn(1)", "Timer(Spawn)"]);
    it.advance(secs(1));
    assert_eq!(names(&it.spawned()), ["[started]", "Handshake", "Timer(Handshake)"]);
    it.advance(secs(2));
    let effects = it.ready();
    assert_eq!(names(&effects), ["[ready]", "CancelTimer"]);
    assert_eq!(happenings(&effects), [Happening::Ready { after: secs(3) }]);
    assert_eq!(names(&it.stop()), ["Drain", "Timer(StopStep)", "[stop-step]"]);
    let generation = it.generation();
    let drained = it.send(Event::Drained { generation });
    assert_eq!(names(&drained), ["CloseStdin", "Timer(StopStep)", "[stop-step]"]);
    assert_eq!(names(&it.exits(Exit::Code(0))), ["FailPending", "[exited]"]);
    assert!(!it.it.state().is_empty(), "the leader's exit is not the tree's end");
    assert_eq!(names(&it.empty()), ["CancelTimer", "[stopped]"]);
    assert_eq!(*it.it.state(), State::Stopped);
    assert_eq!(it.it.restarts(), 0);
}

#[test]
fn each_rung_of_the_ladder_has_its_grace_and_kill_never_ends() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.bring_up();
    it.stop();
    let mut rungs = Vec::new();
    for _ in 0..4 {
        let (_, due) = it.it.timer().expect("each rung has a deadline");
        rungs.push((state_name(it.it.state()), due.since(it.now).as_secs()));
        it.fire();
    }
    let expected = [("drain", 5), ("close-stdin", 2), ("terminate", 8), ("kill", 10)];
    let expected: Vec<_> = expected.map(|(step, grace)| (format!("stopping/{step}/stop"), grace)).into();
    assert_eq!(rungs, expected);

    let mut intervals = Vec::new();
    for _ in 0..10 {
        let before = it.now;
        let effects = it.fire();
        assert_eq!(names(&effects), ["Kill", "Timer(StopStep)", "[stop-step]"]);
        assert_eq!(happenings(&effects)[0].severity(), Severity::Error);
        intervals.push(it.now.since(before));
    }
    assert!(intervals.is_sorted() && intervals[0] < intervals[3], "the interval grows: {intervals:?}");
    assert_eq!(*intervals.last().expect("ten"), KILL_RETRY_MAX);
    it.empty();
    assert_eq!(*it.it.state(), State::Stopped);
}

#[test]
fn calls_that_outlast_the_drain_are_failed_before_standard_input_closes() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.bring_up();
    it.stop();
    assert_eq!(names(&it.fire()), ["FailPending", "CloseStdin", "Timer(StopStep)", "[stop-step]"]);
}

#[test]
fn a_crash_fails_pending_calls_at_once_and_restarts_only_after_the_tree_is_empty() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.bring_up();
    let effects = it.exits(Exit::Signal(9));
    assert_eq!(names(&effects), ["[exited]", "FailPending", "Terminate", "Timer(StopStep)", "[stop-step]"]);
    let Effect::FailPending { reason, .. } = &effects[1] else { panic!("{effects:?}") };
    assert_eq!(reason, "the server was ended by SIGKILL");
    // Nobody reports an empty tree: SIGKILL follows by itself.
    assert_eq!(names(&it.fire()), ["Kill", "Timer(StopStep)", "[stop-step]"]);
    let effects = it.empty();
    assert_eq!(armed(&effects), Some((TimerKind::Backoff, it.now.after(secs(1)))));
    assert_eq!(names(&it.fire()), ["[starting]", "Spawn(2)", "Timer(Spawn)"]);
    assert_eq!(it.it.restarts(), 1);
}

#[test]
fn an_exit_before_ready_is_a_failure_even_with_status_0() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.send(Event::Start);
    it.spawned();
    it.exits(Exit::Code(0));
    it.empty();
    assert!(
        matches!(it.it.state(), State::Backoff { failures: 1, cause: Cause::ExitedEarly(Exit::Code(0)), .. }),
        "{:?}",
        it.it.state()
    );
}

#[test]
fn an_exit_with_status_0_when_ready_follows_the_policy() {
    let cases = [
        (RestartPolicy::Never, "stopped"),
        (RestartPolicy::OnFailure, "stopped"),
        (RestartPolicy::Always, "backoff"),
    ];
    for (restart, expected) in cases {
        let mut it = Bench::new(restart);
        it.bring_up();
        it.exits(Exit::Code(0));
        it.empty();
        assert_eq!(it.it.state().as_str(), expected, "{restart:?}");
        if let State::Backoff { failures, .. } = it.it.state() {
            assert_eq!(*failures, 0, "a clean exit is not a failure");
        }
    }
}

#[test]
fn a_failure_follows_the_policy() {
    let cases = [
        (RestartPolicy::Never, "failed"),
        (RestartPolicy::OnFailure, "backoff"),
        (RestartPolicy::Always, "backoff"),
    ];
    for (restart, expected) in cases {
        for exit in [Exit::Code(1), Exit::Signal(15), Exit::Unknown] {
            let mut it = Bench::new(restart);
            it.bring_up();
            it.exits(exit);
            it.empty();
            assert_eq!(it.it.state().as_str(), expected, "{restart:?} {exit}");
        }
    }
}

#[test]
fn a_handshake_that_never_ends_is_stopped_and_counted() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.send(Event::Start);
    it.spawned();
    let effects = it.fire();
    let expected =
        ["[start-failed]", "FailPending", "CloseStdin", "Terminate", "Timer(StopStep)", "[stop-step]"];
    assert_eq!(names(&effects), expected);
    it.fire();
    assert_eq!(state_name(it.it.state()), "stopping/kill/policy");
    it.empty();
    let State::Backoff { failures: 1, cause, .. } = it.it.state() else { panic!("{:?}", it.it.state()) };
    assert_eq!(*cause, Cause::HandshakeTimeout { after: secs(60) });
}

#[test]
fn a_spawn_that_never_answers_is_killed_until_it_does() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.send(Event::Start);
    it.fire();
    assert_eq!(state_name(it.it.state()), "stopping/kill/policy");
    it.fire();
    assert_eq!(names(&it.spawned()), ["[started]", "Kill"], "a late process is killed at once");
    assert_eq!(state_name(it.it.state()), "stopping/kill/policy");
    it.empty();
    assert_eq!(it.it.state().as_str(), "backoff");
}

#[test]
fn a_stop_during_the_spawn_owns_what_is_being_spawned() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.send(Event::Start);
    assert_eq!(names(&it.stop()), ["[stop-asked]", "FailPending", "Timer(StopStep)"]);
    let mut fails = it.it.clone();
    assert_eq!(names(&it.spawned()), ["[started]", "CloseStdin", "Timer(StopStep)", "[stop-step]"]);
    it.empty();
    assert_eq!(*it.it.state(), State::Stopped);

    let generation = fails.generation();
    fails.decide(Event::SpawnFailed { generation, why: "no".into() }, it.now, 0);
    assert_eq!(*fails.state(), State::Stopped);
}

#[test]
fn a_stop_during_a_spawn_that_never_answers_ends_in_kill() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.send(Event::Start);
    it.stop();
    assert_eq!(names(&it.fire()), ["Kill", "Timer(StopStep)", "[stop-step]"]);
}

#[test]
fn a_failed_spawn_cannot_vouch_for_a_tree_that_was_alive() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.send(Event::Start);
    it.spawned();
    let generation = it.generation();
    assert_eq!(it.send(Event::SpawnFailed { generation, why: "late".into() }), vec![]);
    assert_eq!(state_name(it.it.state()), "starting/handshake");
}

#[test]
fn a_start_while_stopping_is_remembered() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.bring_up();
    it.stop();
    assert_eq!(names(&it.send(Event::Start)), ["[restart-asked]"]);
    assert_eq!(it.send(Event::Start), vec![], "once is enough");
    assert_eq!(names(&it.empty()), ["FailPending", "[starting]", "Spawn(2)", "Timer(Spawn)"]);
    assert_eq!(it.it.restarts(), 0, "it was asked for");
}

#[test]
fn a_start_while_a_clean_exit_is_cleared_away_is_remembered() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.bring_up();
    it.exits(Exit::Code(0));
    it.send(Event::Start);
    it.empty();
    assert_eq!(state_name(it.it.state()), "starting/spawn");
}

#[test]
fn a_start_while_a_crash_is_cleared_away_does_not_skip_the_back_off() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.bring_up();
    it.exits(Exit::Code(1));
    assert_eq!(it.send(Event::Start), vec![]);
    it.empty();
    assert_eq!(it.it.state().as_str(), "backoff");
}

#[test]
fn the_last_wish_wins_while_stopping() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.bring_up();
    it.restart();
    assert_eq!(names(&it.stop()), ["[stop-asked]"]);
    it.restart();
    it.stop();
    it.empty();
    assert_eq!(*it.it.state(), State::Stopped);
}

#[test]
fn a_restart_does_not_count_as_a_failure() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.bring_up();
    for _ in 0..20 {
        it.restart();
        it.empty();
        it.spawned();
        it.ready();
    }
    assert_eq!((it.generation().0, it.it.restarts()), (21, 0));
    it.crash();
    assert!(matches!(it.it.state(), State::Backoff { failures: 1, .. }), "{:?}", it.it.state());
}

#[test]
fn a_start_waits_for_the_back_off_and_a_restart_does_not() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.bring_up();
    it.crash();
    let effects = it.send(Event::Start);
    assert_eq!(names(&effects), ["[refused]"]);
    assert!(happenings(&effects)[0].to_string().contains("1 s"), "{}", happenings(&effects)[0]);
    assert_eq!(names(&it.restart()), ["[restart-asked]", "[starting]", "Spawn(2)", "Timer(Spawn)"]);
}

#[test]
fn stop_is_immediate_where_nothing_runs() {
    for crashes in [1, 4] {
        let mut it = Bench::new(RestartPolicy::OnFailure);
        for _ in 0..crashes {
            it.bring_up();
            it.crash();
        }
        let before = it.it.state().as_str();
        assert_eq!(names(&it.stop()), ["CancelTimer", "[stopped]"], "in {before}");
        assert_eq!(*it.it.state(), State::Stopped);
    }
    let mut it = Bench::new(RestartPolicy::Never);
    it.bring_up();
    it.crash();
    assert_eq!(names(&it.stop()), ["[stopped]"], "in failed");
}

#[test]
fn too_many_restarts_in_the_window_break_it_and_one_slow_try_at_a_time_follows() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    for failures in 1..=3 {
        it.bring_up();
        it.crash();
        let State::Backoff { failures: seen, until, .. } = *it.it.state() else {
            panic!("{:?}", it.it.state())
        };
        assert_eq!((seen, until.since(it.now)), (failures, secs(1 << (failures - 1))));
    }
    for _ in 0..3 {
        it.bring_up();
        it.crash();
        let State::Broken { next_try, .. } = *it.it.state() else { panic!("{:?}", it.it.state()) };
        assert_eq!(next_try, it.now.after(secs(80)), "ten times the longest back-off");
    }
}

#[test]
fn a_slow_try_that_stays_well_for_the_window_closes_the_matter() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    for _ in 0..4 {
        it.bring_up();
        it.crash();
    }
    it.bring_up();
    assert_eq!(it.it.timer(), Some((TimerKind::Settled, it.now.after(secs(100)))));
    assert_eq!(names(&it.fire()), ["[settled]"]);
    assert_eq!(it.it.timer(), None);
    it.crash();
    assert!(matches!(it.it.state(), State::Backoff { failures: 1, .. }), "{:?}", it.it.state());
}

#[test]
fn failures_are_forgiven_even_when_the_timer_is_late() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.bring_up();
    it.crash();
    it.bring_up();
    it.crash();
    it.bring_up();
    it.advance(secs(100));
    it.crash();
    assert!(matches!(it.it.state(), State::Backoff { failures: 1, .. }), "{:?}", it.it.state());
}

#[test]
fn time_spent_degraded_is_not_health() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.bring_up();
    it.crash();
    it.bring_up();
    let generation = it.generation();
    let effects = it.send(Event::Degraded { generation, reason: "three pings unanswered".into() });
    assert_eq!(names(&effects), ["CancelTimer", "[degraded]"]);
    assert_eq!(
        it.send(Event::Degraded { generation, reason: "four".into() }),
        vec![],
        "shown, not logged again"
    );
    assert!(matches!(it.it.state(), State::Degraded { reason, .. } if reason == "four"));
    it.advance(secs(500));
    let effects = it.send(Event::Recovered { generation });
    assert_eq!(names(&effects), ["[recovered]", "Timer(Settled)"]);
    it.crash();
    assert!(matches!(it.it.state(), State::Backoff { failures: 2, .. }), "{:?}", it.it.state());
}

#[test]
fn restarts_spread_over_more_than_the_window_never_break_it() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    for _ in 0..50 {
        it.bring_up();
        it.advance(secs(40));
        it.crash();
        assert_eq!(it.it.state().as_str(), "backoff");
    }
}

#[test]
fn a_timer_that_comes_early_is_armed_again() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.send(Event::Start);
    let (kind, due) = it.it.timer().expect("armed");
    let generation = it.generation();
    let effects = it.send(Event::Timer { generation, kind });
    assert_eq!(effects, [Effect::Timer { generation, kind, at: due }]);
    assert_eq!(state_name(it.it.state()), "starting/spawn");
}

#[test]
fn an_exit_while_draining_skips_to_what_is_left() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.bring_up();
    it.stop();
    let effects = it.exits(Exit::Code(1));
    assert_eq!(names(&effects), ["FailPending", "[exited]", "Terminate", "Timer(StopStep)", "[stop-step]"]);
    assert_eq!(it.exits(Exit::Code(1)), vec![], "an exit happens once");
    it.empty();
    assert_eq!(*it.it.state(), State::Stopped);
}

#[test]
fn a_tree_that_vanishes_without_a_word_is_a_failure() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.bring_up();
    let effects = it.empty();
    assert_eq!(names(&effects), ["[exited]", "FailPending", "[restart-scheduled]", "Timer(Backoff)"]);
    assert_eq!(it.exits(Exit::Code(0)), vec![], "too late to change the verdict");
}

#[test]
fn stuck_processes_are_named_once() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.bring_up();
    it.stop();
    for _ in 0..3 {
        it.fire();
    }
    let generation = it.generation();
    let stuck = |pids: &[u32]| Event::Stuck { generation, pids: pids.to_vec() };
    assert_eq!(names(&it.send(stuck(&[4, 5]))), ["[stuck]"]);
    assert_eq!(it.send(stuck(&[4, 5])), vec![]);
    assert_eq!(names(&it.send(stuck(&[5]))), ["[stuck]"]);
    assert!(matches!(it.it.state(), State::Stopping { step: StopStep::Kill, .. }));
}

#[test]
fn reasons_are_cut_to_their_limit() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.bring_up();
    let generation = it.generation();
    it.send(Event::Degraded { generation, reason: "ä".repeat(1_000_000) });
    let State::Degraded { reason, .. } = it.it.state() else { panic!("{:?}", it.it.state()) };
    assert!(reason.len() <= ostler_domain::text::REASON_MAX && reason.ends_with("[cut]"), "{}", reason.len());
}

#[test]
fn another_policy_counts_from_the_next_decision() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.bring_up();
    it.it.set_policy(policy(RestartPolicy::Never));
    it.crash();
    assert_eq!(it.it.state().as_str(), "failed");
}

#[test]
fn delays_double_up_to_the_cap() {
    let restart = Restart { jitter: 0.0, ..Restart::default() };
    let delays: Vec<_> = (0..=12).map(|n| backoff_delay(&restart, n, 0).as_millis()).collect();
    assert_eq!(delays, [100, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000, 30000]);
    assert_eq!(backoff_delay(&restart, u32::MAX, 0), restart.backoff_max);
}

#[test]
fn a_broken_instance_of_a_hasty_policy_still_waits() {
    let hasty =
        Restart { backoff_min: Duration::ZERO, backoff_max: Duration::ZERO, max: 0, ..Restart::default() };
    assert_eq!(broken_pause(&hasty), BROKEN_PAUSE_MIN);
    assert_eq!(broken_pause(&Restart::default()), secs(30) * BROKEN_FACTOR);
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.it.set_policy(Policy { restart: hasty, ..Policy::default() });
    it.bring_up();
    it.crash();
    let State::Broken { next_try, .. } = *it.it.state() else { panic!("{:?}", it.it.state()) };
    assert_eq!(next_try.since(it.now), BROKEN_PAUSE_MIN, "no restart is allowed at all");
}

#[test]
fn the_memory_of_restarts_is_bounded() {
    let boundless =
        Restart { max: u32::MAX, window: secs(1 << 40), ..policy(RestartPolicy::OnFailure).restart };
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.it.set_policy(Policy { restart: boundless, ..Policy::default() });
    for _ in 0..HISTORY_MAX {
        it.bring_up();
        it.crash();
        assert_eq!(it.it.state().as_str(), "backoff");
    }
    it.bring_up();
    it.crash();
    assert_eq!(it.it.state().as_str(), "broken");
}

#[test]
fn the_reason_of_a_stop_is_in_the_state_for_readers() {
    let mut it = Bench::new(RestartPolicy::OnFailure);
    it.bring_up();
    it.send(Event::Stop { reason: "idle for 5 min".into() });
    let State::Stopping { then: AfterStop::Stop { reason }, .. } = it.it.state() else {
        panic!("{:?}", it.it.state())
    };
    assert_eq!(reason, "idle for 5 min");
}

#[test]
fn a_new_instance_has_done_nothing() {
    let it = Instance::new(Policy::default());
    assert_eq!((it.generation().0, it.restarts(), it.timer()), (0, 0, None));
    assert_eq!(*it.state(), State::Stopped);
}
