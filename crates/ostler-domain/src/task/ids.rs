//! What tasks, batches, projects, lanes and workers are called.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A task: `t<seq>-<nonce in 8 hexadecimal digits>`.
///
/// The number comes from the journal, ascends and is never used twice. The nonce is random: when a journal lost its
/// end and gives the same number again, an old id does not find another's task.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// Its number.
    pub seq: u64,
    /// Random bits.
    pub nonce: u32,
}

/// A batch of tasks: `b<seq>-<nonce in 8 hexadecimal digits>`, as [`TaskId`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId {
    /// Its number.
    pub seq: u64,
    /// Random bits.
    pub nonce: u32,
}

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not the id of a {what}: it looks like `{letter}17-0badcafe`")]
pub struct InvalidId {
    text: String,
    what: &'static str,
    letter: char,
}

/// Reads what [`fmt::Display`] writes, and nothing else: one thing has one id.
fn parse_id(text: &str, letter: char) -> Option<(u64, u32)> {
    let (seq, nonce) = text.strip_prefix(letter)?.split_once('-')?;
    let digits = |text: &str, of: fn(u8) -> bool| !text.is_empty() && text.bytes().all(of);
    let plain = digits(seq, |b| b.is_ascii_digit()) && (seq == "0" || !seq.starts_with('0'));
    let hex = nonce.len() == 8 && digits(nonce, |b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !(plain && hex) {
        return None;
    }
    Some((seq.parse().ok()?, u32::from_str_radix(nonce, 16).ok()?))
}

macro_rules! id {
    ($name:ident, $letter:literal, $what:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}-{:08x}", $letter, self.seq, self.nonce)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let invalid = || InvalidId { text: clip(text), what: $what, letter: $letter };
                parse_id(text, $letter).map(|(seq, nonce)| Self { seq, nonce }).ok_or_else(invalid)
            }
        }
    };
}

id!(TaskId, 't', "task");
id!(BatchId, 'b', "batch");

/// How urgent a task is, from 0 to 10; 10 goes first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Priority(u8);

/// Why a number or text is no [`Priority`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a priority: use a whole number from 0 to 10, 10 being first")]
pub struct InvalidPriority(String);

impl Priority {
    /// The least urgent.
    pub const MIN: Self = Self(0);
    /// The most urgent.
    pub const MAX: Self = Self(10);
    /// How many there are.
    pub const COUNT: usize = 11;

    /// As a number.
    pub fn get(self) -> u8 {
        self.0
    }
}

/// In the middle, so that there is room on both sides.
impl Default for Priority {
    fn default() -> Self {
        Self(5)
    }
}

impl TryFrom<u8> for Priority {
    type Error = InvalidPriority;

    fn try_from(number: u8) -> Result<Self, Self::Error> {
        if number <= Self::MAX.0 { Ok(Self(number)) } else { Err(InvalidPriority(number.to_string())) }
    }
}

impl FromStr for Priority {
    type Err = InvalidPriority;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidPriority(clip(text));
        text.parse::<u8>().map_err(|_| invalid())?.try_into().map_err(|_| invalid())
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! name {
    ($name:ident, $error:ident, $is_legal:expr) => {
        impl $name {
            /// The longest name, in bytes.
            pub const MAX_LEN: usize = 64;

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let is_legal: fn(&str) -> bool = $is_legal;
                if !text.is_empty() && text.len() <= Self::MAX_LEN && is_legal(text) {
                    Ok(Self(text.into()))
                } else {
                    Err($error(clip(text)))
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

/// The name of a project: what the header `Ostler-Project` carries, 1 to 64 visible ASCII characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProjectName(Arc<str>);

/// Why a text is no [`ProjectName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a project: use 1 to 64 visible ASCII characters")]
pub struct InvalidProject(String);

name!(ProjectName, InvalidProject, |text| text.bytes().all(|b| b.is_ascii_graphic()));

/// A lane: the workers of one kind, and what waits for them. Its name is one of [`Lane::STOCK`], `call`, or that of a
/// custom kind of workers.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(Arc<str>);

/// Between a lane and the project that a part of it is for: no name of a lane has it.
const PART: char = '@';

/// Why a text is no [`Lane`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a kind of worker: use 1 to 64 of A-Z a-z 0-9 _ - .")]
pub struct InvalidLane(String);

name!(Lane, InvalidLane, |text| {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
});

impl Lane {
    /// The built-in workers that run JavaScript.
    pub const CODE: &'static str = "code";
    /// The built-in workers that run commands.
    pub const SHELL: &'static str = "shell";
    /// The built-in workers that make HTTP requests.
    pub const HTTP: &'static str = "http";
    /// The workers that run Python.
    pub const PYTHON: &'static str = "python";
    /// The workers that run Node.
    pub const NODE: &'static str = "node";
    /// Calls of the tools of supervised servers: these have no worker process, only places.
    pub const CALL: &'static str = "call";
    /// The lanes whose workers are part of Ostler.
    pub const STOCK: [&'static str; 5] = [Self::CODE, Self::SHELL, Self::HTTP, Self::PYTHON, Self::NODE];

    /// The part of this lane that is for one project alone, `LANE@PROJECT`: no other lane is called so.
    pub fn part(&self, project: &ProjectName) -> Self {
        Self(format!("{}{PART}{project}", self.0).into())
    }

    /// The name of the lane that this is a part of; its own where it is none.
    pub fn base(&self) -> &str {
        self.0.split_once(PART).map_or(&*self.0, |(base, _)| base)
    }

    /// The project that this is a part for.
    pub fn project(&self) -> Option<&str> {
        self.0.split_once(PART).map(|(_, project)| project)
    }
}

/// A worker, or a place in a lane without workers; named by the driver, never twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct WorkerId(pub u64);

impl WorkerId {
    /// Bits that count the workers of one crew; those above name the crew.
    const NUMBER_BITS: u32 = 32;

    /// The worker of this number in this crew.
    pub fn of(crew: u32, number: u32) -> Self {
        Self(u64::from(crew) << Self::NUMBER_BITS | u64::from(number))
    }

    /// The crew that it is of.
    pub fn crew(self) -> u32 {
        u32::try_from(self.0 >> Self::NUMBER_BITS).expect("32 bits are left")
    }

    /// Its number in its crew.
    pub fn number(self) -> u32 {
        u32::try_from(self.0 & u64::from(u32::MAX)).expect("32 bits are left")
    }
}

/// What a message repeats of a text that was not understood.
fn clip(text: &str) -> String {
    const MAX: usize = 80;
    let cut = &text[..text.floor_char_boundary(MAX)];
    if cut.len() < text.len() { format!("{cut}...") } else { cut.to_owned() }
}
