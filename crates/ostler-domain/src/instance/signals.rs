//! What goes into a decision and what comes out of it.

use super::{Exit, Now};
use crate::event::Happening;
use crate::ids::Generation;

/// What an instance is told: wishes of people and clients, and reports of the driver.
///
/// Reports carry the generation they are about. One of another generation, or of a generation that has ended
/// (`SpawnFailed` or `TreeEmpty` was reported), has no effect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// It is needed. Waits of `Backoff` and `Broken` are kept, so that callers cannot defeat them; a person
    /// who wants it now uses [`Event::Restart`].
    Start,
    /// It is to stop and stay stopped.
    Stop {
        /// Why, for the event log.
        reason: String,
    },
    /// It is to be stopped and started again, at once and without counting as a failure. Starts it when
    /// nothing runs, also in the middle of a back-off.
    Restart {
        /// Why, for the event log.
        reason: String,
    },
    /// The process runs its program.
    Spawned {
        /// Of this generation.
        generation: Generation,
        /// The leader's process id.
        pid: u32,
    },
    /// It could not be started. To be reported only when no process of this generation exists or can appear.
    SpawnFailed {
        /// Of this generation.
        generation: Generation,
        /// What the system said.
        why: String,
    },
    /// The handshake is done.
    HandshakeDone {
        /// Of this generation.
        generation: Generation,
    },
    /// The handshake went wrong.
    HandshakeFailed {
        /// Of this generation.
        generation: Generation,
        /// What went wrong.
        why: String,
    },
    /// No call is running any more.
    Drained {
        /// Of this generation.
        generation: Generation,
    },
    /// The leader ended; others of its tree may live. To be reported before `TreeEmpty`, or its status is lost.
    LeaderExited {
        /// Of this generation.
        generation: Generation,
        /// How.
        exit: Exit,
    },
    /// It is verified that no process of the tree is alive and that none can appear. The last report of a
    /// generation; while the spawn is still outstanding it also says that the spawn will not happen.
    TreeEmpty {
        /// Of this generation.
        generation: Generation,
    },
    /// These processes were alive some time after SIGKILL.
    Stuck {
        /// Of this generation.
        generation: Generation,
        /// Their ids.
        pids: Vec<u32>,
    },
    /// It serves, but is not well.
    Degraded {
        /// Of this generation.
        generation: Generation,
        /// What is wrong.
        reason: String,
    },
    /// It serves nobody well any more and is to be ended; the restart policy decides what follows.
    Unhealthy {
        /// Of this generation.
        generation: Generation,
        /// What is wrong.
        reason: String,
    },
    /// It is well again.
    Recovered {
        /// Of this generation.
        generation: Generation,
    },
    /// The armed timer fired.
    Timer {
        /// The generation it was armed with.
        generation: Generation,
        /// Its kind.
        kind: TimerKind,
    },
}

impl Event {
    /// The generation a report is about; none for a wish.
    pub fn generation(&self) -> Option<Generation> {
        match self {
            Self::Start | Self::Stop { .. } | Self::Restart { .. } => None,
            Self::Spawned { generation, .. }
            | Self::SpawnFailed { generation, .. }
            | Self::HandshakeDone { generation }
            | Self::HandshakeFailed { generation, .. }
            | Self::Drained { generation }
            | Self::LeaderExited { generation, .. }
            | Self::TreeEmpty { generation }
            | Self::Stuck { generation, .. }
            | Self::Degraded { generation, .. }
            | Self::Unhealthy { generation, .. }
            | Self::Recovered { generation }
            | Self::Timer { generation, .. } => Some(*generation),
        }
    }
}

/// What the driver is to do, in this order, without waiting for one before the next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Start a process; report `Spawned` or `SpawnFailed`, then `LeaderExited` and `TreeEmpty` in their time.
    Spawn {
        /// Its generation.
        generation: Generation,
    },
    /// Do the protocol's handshake; report `HandshakeDone` or `HandshakeFailed`.
    Handshake {
        /// Of this generation.
        generation: Generation,
    },
    /// Refuse new calls; report `Drained` when none runs.
    Drain {
        /// Of this generation.
        generation: Generation,
    },
    /// Close the process's standard input.
    CloseStdin {
        /// Of this generation.
        generation: Generation,
    },
    /// Send SIGTERM to the tree.
    Terminate {
        /// Of this generation.
        generation: Generation,
    },
    /// Send SIGKILL to the tree, give up a spawn under way; report `TreeEmpty`, or `Stuck` and who is left.
    /// Repeated until the tree is empty, so doing it twice must do no harm.
    Kill {
        /// Of this generation.
        generation: Generation,
    },
    /// Every call that waits for this instance gets this error.
    FailPending {
        /// Of this generation.
        generation: Generation,
        /// The error's text.
        reason: String,
    },
    /// Report `Timer` at this time. Replaces the instance's earlier timer: at most one is armed.
    Timer {
        /// Comes back in the event.
        generation: Generation,
        /// Comes back in the event.
        kind: TimerKind,
        /// When.
        at: Now,
    },
    /// Disarm the instance's timer.
    CancelTimer,
    /// Write this to the event log.
    Record(Happening),
}

/// What the instance's one timer stands for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TimerKind {
    /// The spawn deadline.
    Spawn,
    /// The handshake deadline.
    Handshake,
    /// The next rung of the stop ladder.
    StopStep,
    /// The end of a back-off.
    Backoff,
    /// The next slow try of a broken instance.
    Retry,
    /// Well for the whole restart window: earlier failures are forgiven.
    Settled,
}
