//! How long to wait before a restart, and when to stop trying quickly.

use std::collections::VecDeque;
use std::time::Duration;

use super::Now;
use crate::server::Restart;

/// The most restarts remembered per instance: a larger `Restart::max` counts as this.
pub const HISTORY_MAX: u32 = 1000;

/// The pause between the slow tries of a broken instance is this many times `Restart::backoff_max`.
pub const BROKEN_FACTOR: u32 = 10;

/// The shortest pause between the slow tries, for policies whose `backoff_max` is next to nothing.
pub const BROKEN_PAUSE_MIN: Duration = Duration::from_secs(1);

/// The delay before the restart that follows the `failures`-th failure in a row (0 counts as 1):
/// `backoff_min` doubled with each failure, up to `backoff_max`, and spread by `jitter` to both sides.
///
/// The result is drawn evenly, `entropy` being 64 random bits. It never exceeds `backoff_max`: near the cap
/// the spread is cut there rather than moved onto it, so that many instances do not come back in one moment.
pub fn backoff_delay(restart: &Restart, failures: u32, entropy: u64) -> Duration {
    spread(restart.backoff_min, restart.backoff_max, restart.jitter, failures, entropy)
}

/// The same, of bare figures.
pub(crate) fn spread(min: Duration, max: Duration, jitter: f64, failures: u32, entropy: u64) -> Duration {
    let doublings = failures.saturating_sub(1).min(31);
    let base = min.saturating_mul(1 << doublings).min(max);
    let jitter = if jitter.is_nan() { 0.0 } else { jitter.clamp(0.0, 1.0) };
    if jitter == 0.0 {
        return base;
    }
    let low = base.as_secs_f64() * (1.0 - jitter);
    let high = (base.as_secs_f64() * (1.0 + jitter)).min(max.as_secs_f64());
    let share = entropy as f64 / u64::MAX as f64;
    Duration::try_from_secs_f64(low + share * (high - low)).unwrap_or(base).min(max)
}

/// The pause before the next slow try of a broken instance.
pub fn broken_pause(restart: &Restart) -> Duration {
    restart.backoff_max.saturating_mul(BROKEN_FACTOR).max(BROKEN_PAUSE_MIN)
}

/// What is remembered of earlier restarts.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    /// When restarts were scheduled, oldest first; at most [`HISTORY_MAX`].
    restarts: VecDeque<Now>,
    /// Failures in a row.
    pub(super) failures: u32,
    /// Whether the instance was broken and has not been well for a whole window since.
    pub(super) on_trial: bool,
}

impl History {
    /// Forgives everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether there is anything to forgive.
    pub(super) fn is_clear(&self) -> bool {
        self.restarts.is_empty() && self.failures == 0 && !self.on_trial
    }

    /// Counts one more restart, unless that would be one too many within the window: then false.
    pub(super) fn admit(&mut self, restart: &Restart, now: Now) -> bool {
        while self.restarts.front().is_some_and(|at| now.since(*at) >= restart.window) {
            self.restarts.pop_front();
        }
        let full = self.restarts.len() >= restart.max.min(HISTORY_MAX) as usize;
        if !full {
            self.restarts.push_back(now);
        }
        !full
    }
}
