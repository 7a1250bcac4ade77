//! Random lives against a model of the operating system that is slow, mute and obstinate as it pleases.
//!
//! The model knows nothing of the machine's inside: it performs effects, keeps its own account of which
//! generation has processes, which calls wait and which timer is armed, and compares after every event.

use std::collections::VecDeque;
use std::time::Duration;

use ostler_domain::{
    Deadlines, Effect, Event, Exit, Generation, Happening, Instance, Now, Policy, Restart, RestartPolicy,
    State, StopStep, TimerKind,
};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::support::{names, secs, state_name};

/// One thing that happens to an instance.
#[derive(Clone, Debug)]
enum Op {
    Start,
    Stop,
    Restart,
    /// The operating system or the server does the n-th of the things it could do now.
    World(u8),
    /// The armed timer fires when due.
    Fire,
    /// A timer of the current generation fires that is not due, or not armed.
    Echo(TimerKind),
    /// Time passes.
    Wait(u32),
    /// A late report about a generation that has ended.
    Stale(u8),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let kinds = [
        TimerKind::Spawn,
        TimerKind::Handshake,
        TimerKind::StopStep,
        TimerKind::Backoff,
        TimerKind::Retry,
        TimerKind::Settled,
    ];
    let op = prop_oneof![
        3 => Just(Op::Start),
        1 => Just(Op::Stop),
        1 => Just(Op::Restart),
        12 => any::<u8>().prop_map(Op::World),
        5 => Just(Op::Fire),
        1 => prop::sample::select(kinds.to_vec()).prop_map(Op::Echo),
        2 => (0..200_000u32).prop_map(Op::Wait),
        1 => any::<u8>().prop_map(Op::Stale),
    ];
    prop::collection::vec(op, 1..120)
}

prop_compose! {
    fn policies()(
        policy in prop::sample::select(vec![RestartPolicy::Never, RestartPolicy::OnFailure, RestartPolicy::Always]),
        max in 0..6u32,
        window in 0..200u64,
        min_ms in 0..2_000u64,
        max_ms in prop_oneof![1 => Just(0), 5 => 0..60_000u64],
        jitter in 0.0..=1.0f64,
        graces in prop::array::uniform6(0..10_000u64),
    ) -> Policy {
        let [spawn, handshake, drain, stdin_grace, term_grace, kill] = graces.map(Duration::from_millis);
        Policy {
            restart: Restart {
                policy, max, window: secs(window), jitter,
                backoff_min: Duration::from_millis(min_ms), backoff_max: Duration::from_millis(max_ms),
            },
            deadlines: Deadlines { spawn, handshake, drain, stdin_grace, term_grace, kill },
        }
    }
}

/// What the model knows about the processes of one generation.
#[derive(Clone, Debug, Default)]
struct Tree {
    generation: Generation,
    answered: bool,
    leader_gone: bool,
    handshake: bool,
    drain: bool,
    killed: bool,
    /// The highest rung of the ladder taken.
    rung: Option<StopStep>,
    /// Calls wait for an answer.
    pending: bool,
}

struct World {
    it: Instance,
    now: Now,
    entropy: u64,
    /// The one generation that may have processes.
    tree: Option<Tree>,
    timer: Option<(TimerKind, Now)>,
    /// When restarts were scheduled since the last forgiveness.
    restarts: VecDeque<Now>,
}

type Check = Result<(), TestCaseError>;

impl World {
    fn new(policy: Policy, entropy: u64) -> Self {
        Self {
            it: Instance::new(policy),
            now: Now(secs(5)),
            entropy,
            tree: None,
            timer: None,
            restarts: VecDeque::new(),
        }
    }

    fn random(&mut self) -> u64 {
        // splitmix64 (Steele, Lea, Flood 2014): the decisions need bits, not quality.
        self.entropy = self.entropy.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.entropy;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn step(&mut self, op: &Op) -> Check {
        match op {
            Op::Start => self.send(Event::Start),
            Op::Stop => self.send(Event::Stop { reason: "op".into() }),
            Op::Restart => self.send(Event::Restart { reason: "op".into() }),
            Op::World(choice) => self.world_acts(*choice),
            Op::Fire => self.fire(),
            Op::Echo(kind) => {
                // A firing that nobody armed, or that comes before its time.
                let due = self.timer.is_some_and(|(armed, at)| armed == *kind && at <= self.now);
                if due {
                    self.fire()
                } else {
                    self.send(Event::Timer { generation: self.it.generation(), kind: *kind })
                }
            }
            Op::Wait(ms) => {
                self.now = self.now.after(Duration::from_millis(u64::from(*ms)));
                Ok(())
            }
            Op::Stale(choice) => self.stale(*choice),
        }
    }

    fn fire(&mut self) -> Check {
        let Some((kind, at)) = self.timer.take() else {
            return Ok(());
        };
        self.now = self.now.max(at);
        self.send(Event::Timer { generation: self.it.generation(), kind })
    }

    /// Reports about generations that have ended, the latest included, must change nothing.
    fn stale(&mut self, choice: u8) -> Check {
        let latest = self.it.generation().0;
        let ended = if self.tree.is_some() { latest.saturating_sub(1) } else { latest };
        let generation = Generation(ended - ended.min(u64::from(choice % 3)));
        for event in reports(generation) {
            let before = self.it.clone();
            let effects = self.it.decide(event.clone(), self.now, 0);
            prop_assert!(effects.is_empty(), "stale {event:?} had effects {:?}", names(&effects));
            prop_assert_eq!(before.state(), self.it.state(), "stale {:?} changed the state", event);
            prop_assert_eq!(before.timer(), self.it.timer());
        }
        Ok(())
    }

    /// What could happen now, as events, in no order of likelihood.
    fn possibilities(&self) -> Vec<Event> {
        let Some(tree) = &self.tree else { return Vec::new() };
        let generation = tree.generation;
        let mut can = Vec::new();
        if !tree.answered {
            can.push(Event::Spawned { generation, pid: 100 });
            can.push(Event::Spawned { generation, pid: 100 });
            can.push(Event::SpawnFailed { generation, why: "no such file".into() });
            if tree.killed {
                can.push(Event::TreeEmpty { generation });
            }
            return can;
        }
        if tree.handshake && !tree.leader_gone {
            can.push(Event::HandshakeDone { generation });
            can.push(Event::HandshakeDone { generation });
            can.push(Event::HandshakeFailed { generation, why: "bad answer".into() });
        }
        if tree.drain {
            can.push(Event::Drained { generation });
        }
        // Also without a word about the leader: the guard may have been killed.
        can.push(Event::TreeEmpty { generation });
        // A driver that contradicts itself must not talk a living tree away.
        can.push(Event::SpawnFailed { generation, why: "late".into() });
        if !tree.leader_gone {
            for exit in [Exit::Code(0), Exit::Code(1), Exit::Signal(9)] {
                can.push(Event::LeaderExited { generation, exit });
            }
        }
        if tree.killed {
            can.push(Event::Stuck { generation, pids: vec![100] });
            can.push(Event::TreeEmpty { generation });
        }
        can.push(Event::Degraded { generation, reason: "slow".into() });
        can.push(Event::Unhealthy { generation, reason: "three pings unanswered".into() });
        can.push(Event::Recovered { generation });
        can
    }

    fn world_acts(&mut self, choice: u8) -> Check {
        let mut can = self.possibilities();
        if can.is_empty() {
            return Ok(());
        }
        let event = can.swap_remove(usize::from(choice) % can.len());
        self.account(&event);
        self.send(event)
    }

    /// Books what the world is about to report.
    fn account(&mut self, event: &Event) {
        let Some(tree) = &mut self.tree else { return };
        match event {
            Event::Spawned { .. } => tree.answered = true,
            Event::HandshakeDone { .. } | Event::HandshakeFailed { .. } => tree.handshake = false,
            Event::Drained { .. } => (tree.drain, tree.pending) = (false, false),
            Event::LeaderExited { .. } => tree.leader_gone = true,
            _ => {}
        }
    }

    fn send(&mut self, event: Event) -> Check {
        let entropy = self.random();
        let before = self.it.clone();
        let ends = match event {
            Event::TreeEmpty { .. } => true,
            Event::SpawnFailed { .. } => self.tree.as_ref().is_some_and(|tree| !tree.answered),
            _ => false,
        };
        let forgiven = matches!(event, Event::Stop { .. }) && before.state().is_empty();
        let effects = self.it.decide(event.clone(), self.now, entropy);
        let story = || {
            format!(
                "{} + {event:?} -> {}: {:?}",
                state_name(before.state()),
                state_name(self.it.state()),
                names(&effects)
            )
        };

        let again = before.clone().decide(event.clone(), self.now, entropy);
        prop_assert_eq!(&again, &effects, "not deterministic: {}", story());
        if let Event::LeaderExited { .. } = event {
            let failed = effects.iter().any(|effect| matches!(effect, Effect::FailPending { .. }));
            prop_assert!(failed, "calls of a dead server were left waiting: {}", story());
        }
        let killed_before = self.tree.as_ref().is_some_and(|tree| tree.killed);
        if killed_before && matches!(event, Event::Spawned { .. }) {
            let killed = effects.iter().any(|effect| matches!(effect, Effect::Kill { .. }));
            prop_assert!(killed, "a process that came after its SIGKILL lives: {}", story());
        }
        let told = effects.iter().any(|effect| matches!(effect, Effect::Record(_)));
        let changed = state_name(before.state()) != state_name(self.it.state());
        prop_assert!(told || !changed, "silent: {}", story());

        let story = story();
        let mut ended = None;
        if ends {
            ended = self.tree.take();
        }
        if forgiven {
            self.restarts.clear();
        }
        for effect in &effects {
            self.perform(effect, &mut ended, &story)?;
        }
        prop_assert!(!ended.is_some_and(|tree| tree.pending), "calls wait for a tree that is gone: {story}");
        self.compare(&before, &story)
    }

    fn perform(&mut self, effect: &Effect, ended: &mut Option<Tree>, story: &str) -> Check {
        match effect {
            Effect::Spawn { generation } => {
                prop_assert!(self.tree.is_none(), "two generations alive: {story}");
                prop_assert_eq!(*generation, self.it.generation());
                self.tree = Some(Tree { generation: *generation, ..Tree::default() });
            }
            Effect::Handshake { .. } => self.with_tree(story, |tree| tree.handshake = true)?,
            Effect::Drain { .. } => {
                self.rung(StopStep::Drain, story)?;
                self.with_tree(story, |tree| tree.drain = true)?;
            }
            Effect::CloseStdin { .. } => self.rung(StopStep::CloseStdin, story)?,
            Effect::Terminate { .. } => self.rung(StopStep::Terminate, story)?,
            Effect::Kill { .. } => {
                self.rung(StopStep::Kill, story)?;
                self.with_tree(story, |tree| tree.killed = true)?;
            }
            Effect::FailPending { .. } => {
                for tree in self.tree.iter_mut().chain(ended.iter_mut()) {
                    tree.pending = false;
                }
            }
            Effect::Timer { generation, kind, at } => {
                prop_assert_eq!(*generation, self.it.generation(), "{}", story);
                self.timer = Some((*kind, *at));
            }
            Effect::CancelTimer => self.timer = None,
            Effect::Record(happening) => self.note(happening, story)?,
        }
        Ok(())
    }

    fn with_tree(&mut self, story: &str, act: impl FnOnce(&mut Tree)) -> Check {
        let Some(tree) = &mut self.tree else {
            return Err(TestCaseError::fail(format!("an effect on a tree that is gone: {story}")));
        };
        act(tree);
        Ok(())
    }

    /// The ladder is only climbed up, and nobody is killed who could have been asked.
    fn rung(&mut self, step: StopStep, story: &str) -> Check {
        let mut sound = true;
        self.with_tree(story, |tree| {
            sound = tree.rung.is_none_or(|rung| rung <= step);
            sound &= step != StopStep::Kill || !tree.answered || tree.rung >= Some(StopStep::Terminate);
            tree.rung = Some(step);
        })?;
        prop_assert!(sound, "{step:?} out of turn: {story}");
        Ok(())
    }

    fn note(&mut self, happening: &Happening, story: &str) -> Check {
        let restart = self.it.policy().restart.clone();
        match happening {
            Happening::Settled { after } => {
                prop_assert!(*after >= restart.window, "forgiven too early: {story}");
                self.restarts.clear();
            }
            Happening::Stopped { reason } if reason == "op" => self.restarts.clear(),
            Happening::RestartScheduled { in_, attempt, .. } => {
                self.restarts.push_back(self.now);
                self.restarts.retain(|at| self.now.since(*at) < restart.window || *at == self.now);
                let within = self.restarts.iter().filter(|at| self.now.since(**at) < restart.window).count();
                prop_assert!(within <= restart.max as usize, "{within} restarts in the window: {story}");
                // Computed another way than the machine does: step by step.
                let mut base = restart.backoff_min.min(restart.backoff_max);
                for _ in 1..*attempt {
                    base = (base * 2).min(restart.backoff_max);
                }
                let grain = Duration::from_nanos(10);
                let low = base.mul_f64(1.0 - restart.jitter).saturating_sub(grain);
                let high = (base.mul_f64(1.0 + restart.jitter) + grain).min(restart.backoff_max);
                prop_assert!((low..=high).contains(in_), "{in_:?} is not in {low:?}..={high:?}: {story}");
            }
            _ => {}
        }
        Ok(())
    }

    /// What must hold after every event.
    fn compare(&mut self, before: &Instance, story: &str) -> Check {
        let state = self.it.state().clone();
        prop_assert_eq!(
            state.is_empty(),
            self.tree.is_none(),
            "the state is wrong about processes: {}",
            story
        );
        prop_assert_eq!(self.it.timer(), self.timer, "the timers differ: {}", story);
        let shown = match &state {
            State::Starting { deadline, .. } | State::Stopping { deadline, .. } => Some(*deadline),
            State::Backoff { until, .. } => Some(*until),
            State::Broken { next_try, .. } => Some(*next_try),
            State::Stopped | State::Ready { .. } | State::Degraded { .. } | State::Failed { .. } => None,
        };
        if matches!(state, State::Stopped | State::Failed { .. }) {
            prop_assert!(self.timer.is_none(), "a timer outlives its purpose: {story}");
        }
        if let Some(shown) = shown {
            prop_assert_eq!(self.timer.map(|(_, at)| at), Some(shown), "this wait never ends: {}", story);
        }
        if let (State::Broken { next_try, .. }, false) =
            (&state, matches!(before.state(), State::Broken { .. }))
        {
            prop_assert!(*next_try > self.now, "the next try is not ahead: {story}");
        }
        prop_assert!(self.it.generation() >= before.generation(), "generations run backwards: {story}");
        if let Some(tree) = self.tree.as_mut().filter(|_| state.serves()) {
            tree.pending = true;
        }
        Ok(())
    }

    /// After a stop the system answers nothing but SIGKILL, and that only at the `patience`-th time.
    fn comes_to_rest(&mut self, patience: u32) -> Check {
        self.send(Event::Stop { reason: "end".into() })?;
        let mut kills = 0;
        for _ in 0..patience + 16 {
            if *self.it.state() == State::Stopped {
                return Ok(());
            }
            let before = self.tree.as_ref().is_some_and(|tree| tree.killed);
            self.fire()?;
            kills += u32::from(before || self.tree.as_ref().is_some_and(|tree| tree.killed));
            if kills >= patience {
                let generation = self.it.generation();
                self.send(Event::TreeEmpty { generation })?;
            }
        }
        Err(TestCaseError::fail(format!("a stop ended in {}", state_name(self.it.state()))))
    }
}

/// Every report there is, about one generation.
fn reports(generation: Generation) -> Vec<Event> {
    vec![
        Event::Spawned { generation, pid: 1 },
        Event::SpawnFailed { generation, why: "late".into() },
        Event::HandshakeDone { generation },
        Event::HandshakeFailed { generation, why: "late".into() },
        Event::Drained { generation },
        Event::LeaderExited { generation, exit: Exit::Code(1) },
        Event::TreeEmpty { generation },
        Event::Stuck { generation, pids: vec![1] },
        Event::Degraded { generation, reason: "late".into() },
        Event::Unhealthy { generation, reason: "late".into() },
        Event::Recovered { generation },
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn no_life_breaks_a_rule(policy in policies(), entropy in any::<u64>(), ops in ops()) {
        let mut world = World::new(policy, entropy);
        for op in &ops {
            world.step(op)?;
        }
    }

    #[test]
    fn a_stop_always_ends_in_stopped(
        policy in policies(), entropy in any::<u64>(), ops in ops(), patience in 1..20u32,
    ) {
        let mut world = World::new(policy, entropy);
        for op in &ops {
            world.step(op)?;
        }
        world.comes_to_rest(patience)?;
    }

    #[test]
    fn jitter_uses_the_whole_spread(min_ms in 1..1_000u64, failures in 1..8u32, jitter in 0.05..=1.0f64) {
        let restart = Restart {
            jitter, backoff_min: Duration::from_millis(min_ms), backoff_max: secs(3600), ..Restart::default()
        };
        let delay = |entropy| ostler_domain::instance::backoff_delay(&restart, failures, entropy);
        let base = restart.backoff_min * (1 << (failures - 1));
        prop_assert!(delay(0) < base && base < delay(u64::MAX));
        prop_assert!(delay(0) <= delay(u64::MAX / 3) && delay(u64::MAX / 3) < delay(u64::MAX / 3 * 2));
    }
}

/// The random lives reach every state; otherwise they would prove nothing about the ones they miss.
#[test]
fn random_lives_visit_every_state() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..500 {
        let (policy, ops) =
            (policies(), ops()).new_tree(&mut runner).expect("strategies do not reject").current();
        let mut world = World::new(policy, 1);
        for op in &ops {
            world.step(op).expect("the rules hold");
            seen.insert(state_name(world.it.state()));
        }
    }
    for state in [
        "stopped",
        "starting/spawn",
        "starting/handshake",
        "ready",
        "degraded",
        "backoff",
        "failed",
        "broken",
        "stopping/drain/stop",
        "stopping/drain/restart",
        "stopping/close-stdin/stop",
        "stopping/terminate/policy",
        "stopping/terminate/stop",
        "stopping/kill/stop",
        "stopping/kill/policy",
        "stopping/kill/restart",
    ] {
        assert!(seen.contains(state), "{state} was never visited; visited: {seen:?}");
    }
}
