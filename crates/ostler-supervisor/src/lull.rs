//! What a burst of clients took goes back to the system once the burst is over.

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// A burst is over when nothing more has been freed for this long.
const QUIET: Duration = Duration::from_secs(1);

/// A burst without a pause is interrupted after this time.
const LONGEST: Duration = Duration::from_secs(30);

/// Told what was freed; waits for the lull.
#[derive(Debug, Default)]
pub struct Lull(Notify);

impl Lull {
    /// A session or an instance is gone, with all that it held.
    pub(crate) fn freed(&self) {
        self.0.notify_one();
    }

    /// Gives memory back in every lull. Never returns.
    pub(crate) async fn follow(&self) {
        loop {
            self.next().await;
            // It takes milliseconds, and the allocator's locks: not on a thread that serves.
            let given_back = tokio::task::spawn_blocking(ostler_os::own::give_back_memory);
            // It fails only when the runtime is going, and everything with it.
            let _ = given_back.await;
        }
    }

    /// Resolves when something was freed and the burst it belongs to is over.
    async fn next(&self) {
        self.0.notified().await;
        let begun = Instant::now();
        while begun.elapsed() < LONGEST && timeout(QUIET, self.0.notified()).await.is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_lull_ends_a_burst_and_an_endless_burst_is_interrupted() {
        let lull = Lull::default();
        let begun = Instant::now();
        let burst = async {
            for _ in 0..5 {
                lull.freed();
                tokio::time::sleep(QUIET / 2).await;
            }
        };
        tokio::join!(burst, lull.next());
        assert_eq!(begun.elapsed(), QUIET * 2 + QUIET, "after the last of it, and a quiet while");
        assert!(timeout(LONGEST * 2, lull.next()).await.is_err(), "nothing was freed since");

        let begun = Instant::now();
        let endless = async {
            loop {
                lull.freed();
                tokio::time::sleep(QUIET / 2).await;
            }
        };
        tokio::select! { () = endless => {}, () = lull.next() => {} }
        assert_eq!(begun.elapsed(), LONGEST);
    }
}
