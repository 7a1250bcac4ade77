//! Whether and when a task that failed is tried again.

use std::time::Duration;

use crate::chance;
use crate::instance::backoff::spread;

/// Most attempts that a task may be given.
pub const ATTEMPTS_MAX: u32 = 1000;

/// How often and after what pauses a task is tried, as the configuration or its submitter says.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RetrySpec {
    /// Attempts in all, the first included; 0 counts as 1.
    pub attempts: u32,
    /// The pause after the first attempt; doubled after each further one.
    pub min: Duration,
    /// The longest pause.
    pub max: Duration,
    /// The share, from 0 to 1, by which a pause is shorter or longer at most, by chance; never longer than `max`.
    pub jitter: f64,
}

impl Default for RetrySpec {
    fn default() -> Self {
        Self { attempts: 3, min: Duration::from_secs(1), max: Duration::from_secs(60), jitter: 0.2 }
    }
}

impl RetrySpec {
    /// How long a task whose attempt of this number failed waits for the next; `None` when that was the last one.
    ///
    /// Chance follows from the two numbers: after a crash of the daemon the same pause comes out again.
    pub fn pause(&self, seq: u64, attempt: u32) -> Option<Duration> {
        let entropy = chance::mix(seq ^ chance::mix(u64::from(attempt)));
        (attempt < self.attempts).then(|| spread(self.min, self.max, self.jitter, attempt, entropy))
    }
}
