//! The clean-up queue: trees that did not end when they were asked to, and are killed.
//!
//! So many at once and no more: killing walks `/proc`, and a hundred trees that are killed in one moment would do
//! that a hundred times side by side. A tree that survives SIGKILL (its processes are held by the kernel) gives its
//! slot to the next and comes back later: see [`ostler_domain::instance`], which says when.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ostler_domain::InstanceId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock::now_ms;

/// What a tree in the queue is waiting for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// For a slot.
    Waiting,
    /// To be verified empty.
    Killing,
    /// These processes survived SIGKILL so far; it is tried again.
    Stuck(Vec<u32>),
}

/// One tree in the queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// Whose tree it is.
    pub instance: InstanceId,
    /// How far it is.
    pub progress: Progress,
    /// How often it was killed.
    pub tries: u32,
    /// Since when it is in the queue, in milliseconds of [`now_ms`].
    pub since_ms: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Cleanup {
    slots: Arc<Semaphore>,
    jobs: Mutex<BTreeMap<InstanceId, Job>>,
}

/// The right to kill one tree now. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot(#[expect(dead_code, reason = "held, never read")] OwnedSemaphorePermit);

impl Cleanup {
    /// A queue that has `slots` trees killed at once (`limits.cleanups`).
    pub fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self { slots: Arc::new(Semaphore::new(slots.max(1))), jobs: Mutex::default() })
    }

    /// The trees in the queue.
    pub fn jobs(&self) -> Vec<Job> {
        self.lock().values().cloned().collect()
    }

    /// Puts a tree into the queue, or notes that it is to be killed once more; resolves when it may be.
    pub(crate) async fn slot(&self, instance: InstanceId) -> Slot {
        self.lock()
            .entry(instance.clone())
            .or_insert_with(|| Job { instance, progress: Progress::Waiting, tries: 0, since_ms: now_ms() })
            .progress = Progress::Waiting;
        let permit = Arc::clone(&self.slots).acquire_owned().await;
        Slot(permit.expect("the semaphore is never closed"))
    }

    /// It is being killed.
    pub(crate) fn killing(&self, instance: &InstanceId) {
        if let Some(job) = self.lock().get_mut(instance) {
            job.progress = Progress::Killing;
            job.tries += 1;
        }
    }

    /// It survived so far.
    pub(crate) fn stuck(&self, instance: &InstanceId, pids: &[u32]) {
        if let Some(job) = self.lock().get_mut(instance) {
            job.progress = Progress::Stuck(pids.to_vec());
        }
    }

    /// Nothing is left of it.
    pub(crate) fn done(&self, instance: &InstanceId) {
        self.lock().remove(instance);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Job>> {
        // A job is whole whatever a panicking holder was doing.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> InstanceId {
        InstanceId { server: "one".parse().expect("a name"), number }
    }

    #[tokio::test]
    async fn so_many_at_once_and_one_that_is_stuck_gives_way() {
        let cleanup = Cleanup::new(1);
        let first = cleanup.slot(id(1)).await;
        cleanup.killing(&id(1));
        let second = tokio::spawn({
            let cleanup = Arc::clone(&cleanup);
            async move { cleanup.slot(id(2)).await }
        });
        tokio::task::yield_now().await;
        let progress = || cleanup.jobs().into_iter().map(|job| job.progress).collect::<Vec<_>>();
        assert_eq!(progress(), [Progress::Killing, Progress::Waiting]);
        cleanup.stuck(&id(1), &[7]);
        drop(first);
        let _second = second.await.expect("it does not panic");
        cleanup.killing(&id(2));
        assert_eq!(progress(), [Progress::Stuck(vec![7]), Progress::Killing]);
        cleanup.done(&id(2));
        cleanup.done(&id(1));
        assert_eq!(progress(), []);
    }
}
