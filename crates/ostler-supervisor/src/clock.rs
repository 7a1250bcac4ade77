//! The two clocks: milliseconds since the daemon started, for deadlines, and since 1970, for people.
//!
//! All time of this crate comes from here or from [`tokio::time`], which are one clock: where the runtime's is
//! paused, so is this one.

use std::time::Duration;

use ostler_domain::instance::Now;
use tokio::time::Instant;

#[cfg(not(feature = "sim"))]
use real::{origin, since_1970};
#[cfg(feature = "sim")]
use simulated::{origin, since_1970};

mod real {
    use std::sync::OnceLock;
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use tokio::time::Instant;

    pub(super) fn origin() -> Instant {
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        // Not the runtime's own word for now: that of a test with virtual time may lie far ahead of another's.
        *ORIGIN.get_or_init(|| Instant::from_std(std::time::Instant::now()))
    }

    pub(super) fn since_1970() -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// For simulations: a thread may have an origin of its own.
#[cfg(feature = "sim")]
pub mod simulated {
    use std::cell::Cell;
    use std::time::Duration;

    use tokio::time::Instant;

    /// The wall clock of every simulation begins here: 2026-01-01, in seconds since 1970.
    const EPOCH: Duration = Duration::from_secs(1_767_225_600);

    thread_local! {
        static ORIGIN: Cell<Option<Instant>> = const { Cell::new(None) };
    }

    /// Both clocks of this thread begin now, by its runtime's time; until [`end`].
    pub fn begin() {
        ORIGIN.set(Some(Instant::now()));
    }

    /// This thread has the daemon's clocks again.
    pub fn end() {
        ORIGIN.set(None);
    }

    pub(super) fn origin() -> Instant {
        ORIGIN.get().unwrap_or_else(super::real::origin)
    }

    pub(super) fn since_1970() -> Duration {
        ORIGIN.get().map_or_else(super::real::since_1970, |origin| EPOCH + origin.elapsed())
    }
}

/// Time since the first call, on the monotonic clock.
pub fn now() -> Now {
    Now(origin().elapsed())
}

/// The same in milliseconds.
pub fn now_ms() -> u64 {
    u64::try_from(origin().elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The runtime's instant that stands for `now`.
pub fn instant(now: Now) -> Instant {
    origin().checked_add(now.0).unwrap_or_else(far_future)
}

fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(86_400 * 365)
}

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX)
}
