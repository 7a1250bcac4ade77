//! One instance, as a pure state machine: [`Instance::decide`] takes an event, the time and some random bits,
//! changes the state and returns the effects for the driver to perform.
//!
//! ```text
//!                    Start                Spawned                 HandshakeDone
//!     ┌─────────┐ ─────────▶ ┌──────────┐ ───────▶ ┌────────────┐ ────────▶ ┌─────────┐ Degraded  ┌──────────┐
//!     │ Stopped │            │ Starting │          │  Starting  │           │  Ready  │ ────────▶ │ Degraded │
//!     └─────────┘            │  Spawn   │          │ Handshake  │           │         │ ◀──────── │          │
//!          ▲                 └──────────┘          └────────────┘           └─────────┘ Recovered └──────────┘
//!          │                   ▲  │ │ SpawnFailed     │ failed, late,          │ Stop, Restart,       │
//!          │                   │  │ ▼                 │ exited, Stop           │ exited               │
//!          │                   │  │ (policy)          ▼                        ▼                      ▼
//!          │                   │  │ late, Stop   ┌─────────────────────────────────────────────────────────┐
//!          │                   │  └────────────▶ │ Stopping                                                │
//!          │                   │                 │   Drain ──▶ CloseStdin ──▶ Terminate ──▶ Kill ─┐        │
//!          │                   │                 │   (ready                                   ▲   │ for    │
//!          │                   │                 │    only)                                   └───┘ ever   │
//!          │                   │                 └────────────────────────────┬────────────────────────────┘
//!          │                   │                                              │ TreeEmpty, and only that
//!          │       then: Stop  │ then: Restart                                │ (or SpawnFailed)
//!          ├───────────────────┼──────────────────────────────────────────────┤
//!          │                   │                                              │ then: ByPolicy (policy)
//!          │                   │                                              │
//!          │                   │  timer      ┌─────────┐  few restarts        │
//!          │                   ├──────────── │ Backoff │ ◀────────────────────┤
//!          │                   │             └─────────┘                      │
//!          │                   │  timer:     ┌─────────┐  more than `max`     │
//!          │                   ├──────────── │ Broken  │ ◀────────────────────┤ within `window`,
//!          │                   │  one try    └─────────┘                      │ or the one try failed
//!          │                   │  Start      ┌─────────┐  policy `never`      │
//!          │                   └──────────── │ Failed  │ ◀────────────────────┤
//!          │                                 └─────────┘                      │
//!          └──────────────────────────────────────────────────────────────────┘
//!            a clean exit that the policy does not answer with a restart;
//!            Stop in Backoff, Broken, Failed
//! ```
//!
//! What holds in every state:
//! - At most one generation has processes. `Spawn` of the next comes after `TreeEmpty` (or `SpawnFailed`) of
//!   the one before, whatever happened to its leader.
//! - `Starting`, `Stopping`, `Backoff` and `Broken` have the one timer armed, so no wait is for ever.
//! - An event of another generation, or of one that has ended, changes nothing.
//! - `Kill` is repeated at a growing interval until the tree is empty. There is no state for giving up.
//! - What happens and why is recorded: see [`Happening`](crate::event::Happening).
//!
//! | file | subject |
//! |---|---|
//! | `signals.rs` | events, effects, timers |
//! | `state.rs` | the states |
//! | `cause.rs` | why an instance ended |
//! | `decide.rs` | which event does what |
//! | `stop.rs` | the stop ladder |
//! | `settle.rs` | what follows an empty tree: restart policy, back-off, broken |
//! | `backoff.rs` | the arithmetic of delays and restart counts |

pub(crate) mod backoff;
mod cause;
mod decide;
mod now;
mod settle;
mod signals;
mod state;
mod stop;

pub use backoff::{BROKEN_FACTOR, BROKEN_PAUSE_MIN, HISTORY_MAX, backoff_delay, broken_pause};
pub use cause::{Cause, Exit};
pub use now::Now;
pub use signals::{Effect, Event, TimerKind};
pub use state::{AfterStop, StartPhase, State, StopStep};
pub use stop::{KILL_RETRY_MAX, KILL_RETRY_MIN};

use crate::ids::Generation;
use crate::server::{Deadlines, Restart};

/// The part of a server's definition that decisions depend on.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Policy {
    /// Restarting.
    pub restart: Restart,
    /// Deadlines of the phases.
    pub deadlines: Deadlines,
}

/// What is owned of the current generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tree {
    /// Nothing: never spawned, or verified empty.
    Empty,
    /// A spawn that has not answered.
    Asked,
    /// A running leader.
    Alive,
    /// The leader is gone, the rest may live.
    Leaderless,
}

/// One instance: its policy, state, generation and what is remembered of earlier restarts.
#[derive(Clone, Debug)]
pub struct Instance {
    policy: Policy,
    state: State,
    generation: Generation,
    tree: Tree,
    timer: Option<(TimerKind, Now)>,
    history: backoff::History,
    restarts: u32,
    /// When the current generation was asked for, for "ready after".
    spawned_at: Now,
    /// How often the current generation was sent SIGKILL.
    kills: u32,
    /// Who was last reported to have survived it.
    stuck: Vec<u32>,
    /// Whether it is recorded that the current generation did not start.
    start_failed: bool,
}

impl Instance {
    /// An instance that was never started.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            state: State::Stopped,
            generation: Generation::default(),
            tree: Tree::Empty,
            timer: None,
            history: backoff::History::default(),
            restarts: 0,
            spawned_at: Now::default(),
            kills: 0,
            stuck: Vec::new(),
            start_failed: false,
        }
    }

    /// Takes an event and says what is to be done about it, in order. The same instance, event, time and
    /// `entropy` (64 random bits, used for jitter only) always give the same answer.
    pub fn decide(&mut self, event: Event, now: Now, entropy: u64) -> Vec<Effect> {
        decide::decide(self, event, now, entropy)
    }

    /// Where it is in its life.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The latest generation: 0 before the first spawn.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// How often it was restarted without anybody asking, since it exists.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// The armed timer. It always equals the latest `Effect::Timer` that was not cancelled or fired.
    pub fn timer(&self) -> Option<(TimerKind, Now)> {
        self.timer
    }

    /// The policy it follows.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Follows another policy from the next decision on; timers that are armed stay as they are.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }
}
