//! Short ways to say what the tests say often.

use std::time::Duration;

use ostler_domain::{
    AfterStop, Deadlines, Effect, Event, Exit, Generation, Happening, Instance, Now, Policy, Restart,
    RestartPolicy, State, TimerKind,
};

pub(crate) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// The time `n` seconds after the origin.
pub(crate) fn at(n: u64) -> Now {
    Now(secs(n))
}

/// Round figures: min 1 s, max 8 s, no jitter, 3 restarts in 100 s; deadlines 10, 60, 5, 2, 8, 2 s.
pub(crate) fn policy(policy: RestartPolicy) -> Policy {
    Policy {
        restart: Restart {
            policy,
            max: 3,
            window: secs(100),
            backoff_min: secs(1),
            backoff_max: secs(8),
            jitter: 0.0,
        },
        deadlines: Deadlines::default(),
    }
}

/// An instance and a clock that only moves when told to.
pub(crate) struct Bench {
    pub(crate) it: Instance,
    pub(crate) now: Now,
}

impl Bench {
    pub(crate) fn new(restart: RestartPolicy) -> Self {
        Self { it: Instance::new(policy(restart)), now: at(1000) }
    }

    pub(crate) fn generation(&self) -> Generation {
        self.it.generation()
    }

    pub(crate) fn send(&mut self, event: Event) -> Vec<Effect> {
        self.it.decide(event, self.now, 0)
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.now = self.now.after(by);
    }

    /// Moves the clock to the armed timer and fires it.
    pub(crate) fn fire(&mut self) -> Vec<Effect> {
        let (kind, at) = self.it.timer().expect("a timer is armed");
        self.now = self.now.max(at);
        self.send(Event::Timer { generation: self.generation(), kind })
    }

    pub(crate) fn stop(&mut self) -> Vec<Effect> {
        self.send(Event::Stop { reason: "test".into() })
    }

    pub(crate) fn restart(&mut self) -> Vec<Effect> {
        self.send(Event::Restart { reason: "test".into() })
    }

    pub(crate) fn spawned(&mut self) -> Vec<Effect> {
        let generation = self.generation();
        self.send(Event::Spawned { generation, pid: 7 })
    }

    pub(crate) fn ready(&mut self) -> Vec<Effect> {
        let generation = self.generation();
        self.send(Event::HandshakeDone { generation })
    }

    pub(crate) fn exits(&mut self, exit: Exit) -> Vec<Effect> {
        let generation = self.generation();
        self.send(Event::LeaderExited { generation, exit })
    }

    pub(crate) fn empty(&mut self) -> Vec<Effect> {
        let generation = self.generation();
        self.send(Event::TreeEmpty { generation })
    }

    /// From any resting state to ready; `Start`, or the armed timer when one waits.
    pub(crate) fn bring_up(&mut self) {
        if self.it.timer().is_some() {
            self.fire();
        } else {
            self.send(Event::Start);
        }
        self.spawned();
        self.ready();
        assert!(matches!(self.it.state(), State::Ready { .. }), "{:?}", self.it.state());
    }

    /// The process dies by itself and its tree is verified empty.
    pub(crate) fn crash(&mut self) {
        self.exits(Exit::Signal(11));
        self.empty();
    }
}

/// The effects by name, in order, with what tells them apart.
pub(crate) fn names(effects: &[Effect]) -> Vec<String> {
    effects.iter().map(name).collect()
}

fn name(effect: &Effect) -> String {
    match effect {
        Effect::Spawn { generation } => format!("Spawn({generation})"),
        Effect::Handshake { .. } => "Handshake".into(),
        Effect::Drain { .. } => "Drain".into(),
        Effect::CloseStdin { .. } => "CloseStdin".into(),
        Effect::Terminate { .. } => "Terminate".into(),
        Effect::Kill { .. } => "Kill".into(),
        Effect::FailPending { .. } => "FailPending".into(),
        Effect::Timer { kind, .. } => format!("Timer({kind:?})"),
        Effect::CancelTimer => "CancelTimer".into(),
        Effect::Record(happening) => format!("[{}]", happening.kind()),
    }
}

/// The state in a word or three.
pub(crate) fn state_name(state: &State) -> String {
    match state {
        State::Starting { phase, .. } => format!("starting/{}", phase.as_str()),
        State::Stopping { step, then, .. } => {
            let then = match then {
                AfterStop::Stop { .. } => "stop",
                AfterStop::Restart { .. } => "restart",
                AfterStop::ByPolicy { .. } => "policy",
            };
            format!("stopping/{}/{then}", step.as_str())
        }
        other => other.as_str().into(),
    }
}

/// The happenings among the effects.
pub(crate) fn happenings(effects: &[Effect]) -> Vec<Happening> {
    let happening = |effect: &Effect| match effect {
        Effect::Record(happening) => Some(happening.clone()),
        _ => None,
    };
    effects.iter().filter_map(happening).collect()
}

/// When the timer armed among the effects is due.
pub(crate) fn armed(effects: &[Effect]) -> Option<(TimerKind, Now)> {
    effects.iter().rev().find_map(|effect| match effect {
        Effect::Timer { kind, at, .. } => Some((*kind, *at)),
        _ => None,
    })
}

/// Numbers that follow from a seed (SplitMix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..count`.
    pub(crate) fn below(&mut self, count: u64) -> u64 {
        self.bits() % count
    }

    /// One of `0..count`, for what has places.
    pub(crate) fn index(&mut self, count: usize) -> usize {
        usize::try_from(self.below(count as u64)).expect("below a usize")
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
