//! A point in time, as the machine sees it: handed in, never asked for.

use std::time::Duration;

/// Time since an origin the driver chooses once, for example its own start. Only differences mean anything.
///
/// It must come from a monotonic clock; a value that runs backwards only makes timers be armed again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Now(pub Duration);

impl Now {
    /// The time `delay` after this one; the far end of time when that cannot be expressed.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(delay))
    }

    /// How long ago `earlier` was; zero when it lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}
