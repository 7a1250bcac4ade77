//! A bound on the bytes of bodies held in memory, over the whole daemon.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::Notify;

/// Counts the bytes of requests and answers that are held; see `gateway.body_memory`.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    limit: usize,
    freed: Notify,
    waiting: AtomicUsize,
}

/// Bytes held against a [`Budget`]; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            limit,
            freed: Notify::new(),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Takes `bytes`, or nothing when that is more than is left. A single body over the whole limit passes
    /// while nothing else is held, so that the limit can never stop everything for good.
    pub fn try_reserve(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        let fits = |used: usize| (used == 0 || used + bytes <= self.limit).then_some(used + bytes);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Reservation { budget: Arc::clone(self), bytes })
    }

    /// Takes `bytes` as soon as they are there. Cancel-safe.
    pub async fn reserve(self: &Arc<Self>, bytes: usize) -> Reservation {
        let mut freed = std::pin::pin!(self.freed.notified());
        loop {
            freed.as_mut().enable();
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let _waiting = Waiting(&self.waiting);
            if let Some(reservation) = self.try_reserve(bytes) {
                return reservation;
            }
            freed.as_mut().await;
            freed.set(self.freed.notified());
        }
    }

    /// Bytes held now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The limit, in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::SeqCst);
        if self.budget.waiting.load(Ordering::SeqCst) > 0 {
            self.budget.freed.notify_waiters();
        }
    }
}

/// A body together with its account; see [`Reservation::hold`].
struct HeldBytes {
    bytes: Bytes,
    _reservation: Reservation,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Reservation {
    /// Ties the reservation to `bytes`: it is given back when the last piece of them is dropped, wherever that
    /// piece has travelled by then.
    pub fn hold(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(HeldBytes { bytes, _reservation: self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_waiter_gets_what_another_gives_back() {
        let budget = Budget::new(100);
        let first = budget.try_reserve(80).unwrap();
        assert!(budget.try_reserve(30).is_none());
        let waiter = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move { budget.reserve(30).await }
        });
        drop(first);
        let second = waiter.await.unwrap();
        assert_eq!(budget.used(), 30);
        let body = second.hold(Bytes::from_static(b"a body"));
        let piece = body.slice(2..);
        drop(body);
        assert_eq!(budget.used(), 30, "a piece still lives");
        drop(piece);
        assert_eq!(budget.used(), 0);
        assert!(budget.try_reserve(1_000).is_some(), "one large body passes while nothing is held");
    }
}
