//! The mark of an instance: 128 random bits that its processes inherit, so that they can be found again when
//! every process that knew their pids is gone.
//!
//! They carry it twice. In their environment, as a whole; and, as many servers start others with an environment of
//! its own choice, 63 bits of it as their soft limit of file locks. Linux has not enforced that limit since 2.4.25
//! (setrlimit(2)), it is unlimited everywhere, and neither a new environment, nor a new session, nor closed
//! files, nor another program take it away.

use std::fmt;
use std::str::FromStr;

/// The variable that carries the mark into every process of an instance.
pub const MARK_VARIABLE: &str = "OSTLER_INSTANCE";

/// The mark of one spawned tree. Written as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mark(u128);

/// Why a text is not a [`Mark`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an instance mark: expected 32 lower-case hexadecimal digits")]
pub struct InvalidMark(pub String);

impl Mark {
    /// A mark no other tree has.
    ///
    /// # Panics
    /// When the kernel gives no random bytes, which it always does once it has booted.
    pub fn random() -> Self {
        let mut bytes = [0_u8; 16];
        getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
        Self(u128::from_be_bytes(bytes))
    }

    /// The soft `RLIMIT_LOCKS` of a marked process: 63 bits, so never "unlimited".
    pub(crate) fn limit(self) -> u64 {
        u64::try_from(self.0 & u128::from(u64::MAX >> 1)).unwrap_or_default()
    }

    /// The entry as it stands in the environment of a marked process: `OSTLER_INSTANCE=<mark>`.
    pub fn environ_entry(self) -> String {
        format!("{MARK_VARIABLE}={self}")
    }
}

impl From<u128> for Mark {
    /// A mark of these bits, which must be random and used once; [`Mark::random`] draws them.
    fn from(bits: u128) -> Self {
        Self(bits)
    }
}

impl FromStr for Mark {
    type Err = InvalidMark;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match u128::from_str_radix(text, 16) {
            Ok(bits) if digits => Ok(Self(bits)),
            _ => Err(InvalidMark(text.to_owned())),
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_back_as_written() {
        let mark = Mark::random();
        assert_eq!(mark.to_string().parse(), Ok(mark));
        assert_eq!(mark.to_string().len(), 32);
        assert_eq!(Mark(7).to_string().parse(), Ok(Mark(7)), "leading zeros are kept");
    }

    #[test]
    fn what_is_not_a_mark_is_refused() {
        for text in ["", "7", "+0000000000000000000000000000007", "0000000000000000000000000000000G"] {
            assert_eq!(text.parse::<Mark>(), Err(InvalidMark(text.to_owned())), "{text}");
        }
        assert!("0000000000000000000000000000000A".parse::<Mark>().is_err(), "upper case");
    }

    #[test]
    fn a_limit_is_never_unlimited() {
        assert_eq!(Mark(u128::MAX).limit(), u64::MAX >> 1);
        assert_eq!(Mark(1 << 63 | 7).limit(), 7);
    }

    #[test]
    fn marks_differ() {
        assert_ne!(Mark::random(), Mark::random());
    }
}
