//! Identifiers: what things are called in every listing, log line and error.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The name of a server: the key of its table in the configuration and the last segment of its endpoint.
///
/// One to 64 characters of `A-Z a-z 0-9 _ - .`, not starting with a dot or a dash, so that a name is safe in
/// a path, a file name, an environment variable's value and a terminal.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerName(Arc<str>);

/// Why a text is not a [`ServerName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a server name: use 1 to 64 of A-Z a-z 0-9 _ - . and start with a letter, digit or _")]
pub struct InvalidServerName(pub String);

impl ServerName {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 64;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServerName {
    type Err = InvalidServerName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        let first_ok = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
        if first_ok && text.len() <= Self::MAX_LEN && text.bytes().all(legal) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidServerName(text.to_owned()))
        }
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// One instance of a server: `<server>.<number>`, the number counted per server since the daemon started.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct InstanceId {
    /// The server this is an instance of.
    pub server: ServerName,
    /// Which of its instances, from 1.
    pub number: u32,
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.server, self.number)
    }
}

/// Counts the processes an instance has had: 1 for the first spawn, one more for each spawn after it.
/// Everything a process says or does carries its generation; what is older than the current one is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Generation(pub u64);

impl Generation {
    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
