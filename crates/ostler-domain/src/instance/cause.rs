//! Why an instance ended or did not start.

use std::fmt;
use std::time::Duration;

use crate::text::human;

/// How the leader of a tree ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Exit {
    /// It exited with this status.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It is gone and nobody could say how, for example because the guard was killed with it.
    Unknown,
}

impl Exit {
    /// Whether it exited by itself with status 0.
    pub fn is_clean(self) -> bool {
        self == Self::Code(0)
    }
}

/// Names of the signals whose numbers are the same on every Unix.
fn signal_name(number: i32) -> Option<&'static str> {
    Some(match number {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        _ => return None,
    })
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with status {code}"),
            Self::Signal(number) => match signal_name(*number) {
                Some(name) => write!(f, "was ended by {name}"),
                None => write!(f, "was ended by signal {number}"),
            },
            Self::Unknown => f.write_str("ended, its status is not known"),
        }
    }
}

/// Why an instance is not running although nobody stopped it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Cause {
    /// The program could not be started.
    SpawnFailed {
        /// What the operating system or the guard said.
        why: String,
    },
    /// Nothing was heard of the program within the spawn deadline.
    SpawnTimeout {
        /// That deadline.
        after: Duration,
    },
    /// The process runs, but the protocol's handshake went wrong.
    HandshakeFailed {
        /// What went wrong.
        why: String,
    },
    /// The process runs, but did not finish the handshake within its deadline.
    HandshakeTimeout {
        /// That deadline.
        after: Duration,
    },
    /// The process ended before it was ready: a failure whatever its status.
    ExitedEarly(Exit),
    /// The process ended after it had been ready.
    Exited(Exit),
    /// The process ran, but served nobody well any more, and was ended for that.
    Unhealthy {
        /// What was wrong.
        why: String,
    },
}

impl Cause {
    /// Whether this counts as a failure: everything but an exit with status 0 after having been ready.
    pub fn is_failure(&self) -> bool {
        !matches!(self, Self::Exited(exit) if exit.is_clean())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SpawnFailed { why } => write!(f, "the program could not be started: {why}"),
            Self::SpawnTimeout { after } => {
                write!(f, "the program was not running after {}", human(*after))
            }
            Self::HandshakeFailed { why } => write!(f, "the handshake failed: {why}"),
            Self::HandshakeTimeout { after } => {
                write!(f, "the server did not answer the handshake within {}", human(*after))
            }
            Self::ExitedEarly(exit) => write!(f, "the server {exit} before it was ready"),
            Self::Exited(exit) => write!(f, "the server {exit}"),
            Self::Unhealthy { why } => write!(f, "the server was unhealthy: {why}"),
        }
    }
}
