//! Ports: how a server asks for them, how they are named to it, and who has which.
//!
//! | file | subject |
//! |---|---|
//! | `allocator.rs` | who has which port |
//! | `name.rs` | names of ports, `{port.NAME}`, the variables that give them |

mod allocator;
mod name;

use std::fmt;
use std::str::FromStr;

pub use allocator::{Allocator, PortError, PortFigures, QUARANTINE};
pub use name::{NAME_MAX, PortRefs, is_port_name, port_refs, port_variable, substitute};

/// How a server asks for one of its ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum PortWish {
    /// Any free one of `[ports]` (the default).
    #[default]
    Auto,
    /// This one and no other.
    Fixed(u16),
}

impl fmt::Display for PortWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(port) => port.fmt(f),
        }
    }
}

/// A stretch of ports, both ends included; never empty, never port 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// Why a text is not a [`PortRange`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a range of ports: write the first and the last, from 1 to 65535, as in `8001-9000`")]
pub struct InvalidPortRange(pub String);

impl PortRange {
    /// The range from `first` to `last`; `None` where it would be empty or hold port 0.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first != 0 && first <= last).then_some(Self { first, last })
    }

    /// The first port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The last port.
    pub fn last(self) -> u16 {
        self.last
    }

    /// How many ports it has: 1 to 65535.
    pub fn count(self) -> usize {
        usize::from(self.last - self.first) + 1
    }

    /// Whether a port lies in it.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Whether the two have a port in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl Default for PortRange {
    /// 8001-9000.
    fn default() -> Self {
        Self { first: 8001, last: 9000 }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = InvalidPortRange;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // `u16::from_str` takes a sign, which a range must not have.
        let number = |t: &str| {
            let t = t.trim();
            t.bytes().all(|b| b.is_ascii_digit()).then(|| t.parse().ok()).flatten()
        };
        text.split_once('-')
            .and_then(|(first, last)| Self::new(number(first)?, number(last)?))
            .ok_or_else(|| InvalidPortRange(text.to_owned()))
    }
}
