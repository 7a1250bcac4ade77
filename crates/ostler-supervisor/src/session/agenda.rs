//! When each session is to be looked at next. One timer serves all of them, and one that is idle costs nothing until its
//! time has come: no pass goes over all of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ostler_mcp::mux::SessionKey;
use tokio::sync::Notify;

use super::Session;
use crate::clock::now_ms;

/// No look is due.
const NEVER: u64 = u64::MAX;
/// No look will ever be due again: it has ended.
const OVER: u64 = 0;

/// When one session is to be looked at, in milliseconds of [`now_ms`]. Changed by [`Agenda`] only, under its lock.
#[derive(Debug)]
pub(super) struct Appointment(AtomicU64);

impl Default for Appointment {
    fn default() -> Self {
        Self(NEVER.into())
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    queue: Mutex<BTreeMap<(u64, SessionKey), Weak<Session>>>,
    /// Told when the first of the queue is another.
    earlier: Notify,
}

impl Agenda {
    /// The session is to be looked at by then; where that is so already, nothing changes.
    pub(super) fn by(&self, session: &Arc<Session>, due: u64) {
        let due = due.max(OVER + 1);
        let appointment = &session.appointment.0;
        // After each call: mostly without the lock. What was ended or opened before is seen by who takes the session out
        // of the queue (`take`) after this look, and what is taken before shows here.
        if appointment.load(Ordering::SeqCst) <= due {
            return;
        }
        let mut queue = self.lock();
        let before = appointment.load(Ordering::SeqCst);
        if before <= due {
            return;
        }
        queue.remove(&(before, session.key));
        queue.insert((due, session.key), Arc::downgrade(session));
        appointment.store(due, Ordering::SeqCst);
        let is_first = queue.first_key_value().is_some_and(|(first, _)| *first == (due, session.key));
        drop(queue);
        if is_first {
            self.earlier.notify_one();
        }
    }

    /// The session has ended.
    pub(super) fn strike(&self, session: &Session) {
        let mut queue = self.lock();
        let before = session.appointment.0.swap(OVER, Ordering::SeqCst);
        queue.remove(&(before, session.key));
    }

    /// A session whose time has come, out of the queue.
    pub(super) fn take(&self) -> Option<Arc<Session>> {
        let now = now_ms();
        let mut queue = self.lock();
        while let Some(first) = queue.first_entry().filter(|first| first.key().0 <= now) {
            if let Some(session) = first.remove().upgrade() {
                session.appointment.0.store(NEVER, Ordering::SeqCst);
                return Some(session);
            }
        }
        None
    }

    /// Resolves when the time of one may have come.
    pub(super) async fn until_due(&self) {
        let next = self.lock().first_key_value().map(|((due, _), _)| *due);
        match next {
            None => self.earlier.notified().await,
            Some(due) => {
                let left = Duration::from_millis(due.saturating_sub(now_ms()));
                crate::select::select! {
                    () = tokio::time::sleep(left) => {}
                    () = self.earlier.notified() => {}
                }
            }
        }
    }

    /// How many are in it.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(u64, SessionKey), Weak<Session>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
