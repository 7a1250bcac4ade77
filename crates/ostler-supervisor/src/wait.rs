//! Waiting for what others tell of.

use std::pin::pin;

use tokio::sync::Notify;

/// Waits until `look` finds something, and gives that. It looks now, and whenever all who wait are told.
pub(crate) async fn until<T>(told: &Notify, mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        // Listening before the look, so that nothing falls in between.
        let mut next = pin!(told.notified());
        next.as_mut().enable();
        if let Some(found) = look() {
            return found;
        }
        next.await;
    }
}
