//! What a server's configuration says about its health: which probe, how often, and when it counts as unwell.

use std::path::PathBuf;
use std::time::Duration;

/// How a running instance is asked whether it is well.
///
/// Texts may hold `{port.NAME}`, replaced by the instance's port when it is probed: see
/// [`ports::substitute`](crate::ports::substitute).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum Probe {
    /// Not at all: only the end of its process counts.
    None,
    /// Over its live MCP connection, while it serves no call (the default of stdio servers).
    #[default]
    Mcp,
    /// A TCP connection to this address and port is accepted.
    Tcp {
        /// `host:port`.
        address: String,
    },
    /// A GET of this address is answered with a status from 200 to 399.
    Http {
        /// An `http://` address.
        url: String,
    },
    /// This command exits with status 0; it is killed when late.
    Exec {
        /// Program and arguments; no shell is involved.
        command: Vec<String>,
    },
    /// The server gives a sign of life by itself at least once an interval.
    Heartbeat(Heartbeat),
}

/// What counts as a sign of life.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Heartbeat {
    /// A line on standard output or standard error.
    Line,
    /// A change of this file's modification time.
    File(PathBuf),
}

impl Probe {
    /// The word used in configuration and listings.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mcp => "mcp",
            Self::Tcp { .. } => "tcp",
            Self::Http { .. } => "http",
            Self::Exec { .. } => "exec",
            Self::Heartbeat(_) => "heartbeat",
        }
    }
}

/// `[servers.NAME.health]`: the probe and what its answers mean.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HealthSpec {
    /// How it is asked.
    pub probe: Probe,
    /// From one probe to the next.
    pub interval: Duration,
    /// A probe without an answer for this long has failed.
    pub timeout: Duration,
    /// Failures in a row after which an instance is unhealthy, and restarted; at least 1. The first of them
    /// degrades it.
    pub failures: u32,
    /// Successes in a row after which a degraded instance is well again; at least 1.
    pub successes: u32,
    /// Time without a success after which it is unhealthy, however few probes have failed.
    pub unhealthy_after: Duration,
}

impl Default for HealthSpec {
    fn default() -> Self {
        Self {
            probe: Probe::default(),
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            failures: 3,
            successes: 1,
            unhealthy_after: Duration::from_secs(180),
        }
    }
}
