//! The two clocks: milliseconds since the daemon started, for deadlines, and since 1970, for people.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ostler_domain::instance::Now;

fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(Instant::now)
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
pub fn instant(now: Now) -> tokio::time::Instant {
    tokio::time::Instant::from_std(origin().checked_add(now.0).unwrap_or_else(far_future))
}

fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(86_400 * 365)
}

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
