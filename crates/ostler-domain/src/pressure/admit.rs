//! Whether one more process may be started.

use std::fmt;

use super::Level;
use crate::text::human_bytes;

/// How much of a limit is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Used {
    /// So much.
    pub used: u64,
    /// Of so much.
    pub limit: u64,
}

impl Used {
    /// Whether so much more goes in.
    fn has_room_for(self, more: u64) -> bool {
        self.used.saturating_add(more) <= self.limit
    }
}

/// What a new process would come on top of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Load {
    /// Instances of all servers, those on their way included (`limits.processes`).
    pub processes: Used,
    /// Instances of the new one's type, those on their way included (`limits.per_type`).
    pub of_type: Used,
    /// That type.
    pub type_name: String,
    /// Memory of all processes in bytes (`limits.memory`).
    pub memory: Used,
    /// How near the memory is to its limit, or the machine to being out of it.
    pub memory_level: Level,
    /// Memory in bytes that the new process is expected to take, 0 where nothing is known: for example what
    /// others of its type take.
    pub expected: u64,
}

/// Why no process is started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// There are as many instances as there may be.
    Processes(Used),
    /// There are as many of this type as there may be.
    OfType {
        /// Which.
        type_name: String,
        /// How many.
        used: Used,
    },
    /// Memory is, or would be, too short.
    Memory {
        /// How much is used.
        used: Used,
        /// What was expected on top.
        expected: u64,
    },
}

impl Refusal {
    /// The key of the limit, under which refusals are counted.
    pub fn limit(&self) -> &'static str {
        match self {
            Self::Processes(_) => "limits.processes",
            Self::OfType { .. } => "limits.per_type",
            Self::Memory { .. } => "limits.memory",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Processes(Used { used, limit }) => {
                write!(f, "{used} instances exist already, {limit} are allowed")?;
            }
            Self::OfType { type_name, used: Used { used, limit } } => {
                write!(f, "{used} instances of type `{type_name}` exist already, {limit} are allowed")?;
            }
            Self::Memory { used: Used { used, limit }, expected } => {
                write!(f, "all instances together use {} of {}", human_bytes(*used), human_bytes(*limit))?;
                if *expected > 0 {
                    write!(f, ", and {} more are expected", human_bytes(*expected))?;
                }
            }
        }
        write!(f, " ({}): end a session, stop a server or raise the limit", self.limit())
    }
}

impl std::error::Error for Refusal {}

/// Whether one more process may be started.
///
/// # Errors
///
/// The first limit that speaks against it. [`relieve`](super::relieve()) may make room for it.
pub fn admit(load: &Load) -> Result<(), Refusal> {
    if !load.processes.has_room_for(1) {
        Err(Refusal::Processes(load.processes))
    } else if !load.of_type.has_room_for(1) {
        Err(Refusal::OfType { type_name: load.type_name.clone(), used: load.of_type })
    } else if load.memory_level == Level::Critical || !load.memory.has_room_for(load.expected) {
        Err(Refusal::Memory { used: load.memory, expected: load.expected })
    } else {
        Ok(())
    }
}
