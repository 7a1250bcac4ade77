//! The states of an instance. They are published to readers, so each carries what a listing shows.

use super::{Cause, Now};

/// Where an instance is in its life. Drawn at the top of the [module](super).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// Nothing runs and nothing is planned.
    Stopped,
    /// On the way to ready.
    Starting {
        /// What is waited for.
        phase: StartPhase,
        /// When it is given up.
        deadline: Now,
    },
    /// The handshake is done: calls are served.
    Ready {
        /// Since when.
        since: Now,
    },
    /// Calls are served, but the instance is not well.
    Degraded {
        /// Since when.
        since: Now,
        /// What is wrong.
        reason: String,
    },
    /// Nothing runs; a restart is scheduled.
    Backoff {
        /// When it is started again.
        until: Now,
        /// Failures in a row, the latest included.
        failures: u32,
        /// The latest of them.
        cause: Cause,
    },
    /// On the way down the stop ladder. Something may still run.
    Stopping {
        /// The rung it stands on.
        step: StopStep,
        /// When the next rung is taken.
        deadline: Now,
        /// What follows once the tree is verified empty.
        then: AfterStop,
    },
    /// Nothing runs and, by its policy, it is not restarted.
    Failed {
        /// What happened.
        cause: Cause,
    },
    /// Nothing runs: too many restarts in too short a time. It is tried again slowly.
    Broken {
        /// When the next single try is made.
        next_try: Now,
        /// The latest failure.
        cause: Cause,
    },
}

impl State {
    /// The word used in listings.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting { .. } => "starting",
            Self::Ready { .. } => "ready",
            Self::Degraded { .. } => "degraded",
            Self::Backoff { .. } => "backoff",
            Self::Stopping { .. } => "stopping",
            Self::Failed { .. } => "failed",
            Self::Broken { .. } => "broken",
        }
    }

    /// Whether calls are served.
    pub fn serves(&self) -> bool {
        matches!(self, Self::Ready { .. } | Self::Degraded { .. })
    }

    /// Whether no process of the instance is alive: it never had one, or its tree was verified empty.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Stopped | Self::Backoff { .. } | Self::Failed { .. } | Self::Broken { .. } => true,
            Self::Starting { .. } | Self::Ready { .. } | Self::Degraded { .. } | Self::Stopping { .. } => {
                false
            }
        }
    }
}

/// The two waits of a start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StartPhase {
    /// For the process to run its program.
    Spawn,
    /// For the protocol's handshake.
    Handshake,
}

impl StartPhase {
    /// The word used in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spawn => "spawn",
            Self::Handshake => "handshake",
        }
    }
}

/// The rungs of the stop ladder, from polite to final.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum StopStep {
    /// New calls are refused, running ones may finish.
    Drain,
    /// Standard input is closed: how the protocol says goodbye. Also stands for "close it as soon as it is
    /// there" while the process is still being spawned.
    CloseStdin,
    /// SIGTERM to the tree.
    Terminate,
    /// SIGKILL to the tree, repeated until it is empty.
    Kill,
}

impl StopStep {
    /// The word used in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::CloseStdin => "close-stdin",
            Self::Terminate => "terminate",
            Self::Kill => "kill",
        }
    }
}

/// What follows once the tree of a stopping instance is verified empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AfterStop {
    /// It stays stopped.
    Stop {
        /// Why it was stopped.
        reason: String,
    },
    /// It is started again at once; this does not count as a failure.
    Restart {
        /// Why it is restarted.
        reason: String,
    },
    /// It ended by itself or did not start: the restart policy decides.
    ByPolicy {
        /// What happened.
        cause: Cause,
    },
}
