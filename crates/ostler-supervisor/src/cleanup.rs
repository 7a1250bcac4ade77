//! The clean-up queue: trees that did not end when they were asked to, and are killed.
//!
//! So many at once and no more: killing walks `/proc`, and a hundred trees that are killed in one moment would do
//! that a hundred times side by side. A tree that survives SIGKILL (its processes are held by the kernel) gives its
//! slot to the next and comes back later: see [`ostler_domain::instance`], which says when.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Whether it survived SIGKILL: nobody knows when it will be gone.
    pub survived: bool,
    /// Since when it is in the queue, in milliseconds of [`now_ms`].
    pub since_ms: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Cleanup {
    slots: Arc<Semaphore>,
    /// How many there are, and how many of those in use are to go when they come back.
    size: Mutex<Size>,
    jobs: Mutex<BTreeMap<InstanceId, Job>>,
}

#[derive(Debug)]
struct Size {
    slots: usize,
    surplus: usize,
}

/// The right to kill one tree now. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    cleanup: Arc<Cleanup>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut size = self.cleanup.size();
        if let Some(permit) = self.permit.take_if(|_| size.surplus > 0) {
            size.surplus -= 1;
            permit.forget();
        }
    }
}

impl Cleanup {
    /// A queue that has `slots` trees killed at once (`limits.cleanups`).
    pub fn new(slots: usize) -> Arc<Self> {
        let slots = slots.max(1);
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(slots)),
            size: Mutex::new(Size { slots, surplus: 0 }),
            jobs: Mutex::default(),
        })
    }

    /// Has so many trees killed at once from now on; of more that are being killed already, none is interrupted.
    pub(crate) fn set_slots(&self, slots: usize) {
        let slots = slots.max(1);
        let mut size = self.size();
        let more = slots.saturating_sub(size.slots);
        let kept = more.min(size.surplus);
        size.surplus -= kept;
        self.slots.add_permits(more - kept);
        let fewer = size.slots.saturating_sub(slots);
        size.surplus += fewer - self.slots.forget_permits(fewer);
        size.slots = slots;
    }

    /// The trees in the queue.
    pub fn jobs(&self) -> Vec<Job> {
        self.lock().values().cloned().collect()
    }

    /// Puts a tree into the queue, or notes that it is to be killed once more; resolves when it may be.
    pub(crate) async fn slot(self: &Arc<Self>, instance: InstanceId) -> Slot {
        self.lock()
            .entry(instance.clone())
            .or_insert_with(|| Job {
                instance,
                progress: Progress::Waiting,
                tries: 0,
                survived: false,
                since_ms: now_ms(),
            })
            .progress = Progress::Waiting;
        let permit = Arc::clone(&self.slots).acquire_owned().await;
        let permit = Some(permit.expect("the semaphore is never closed"));
        Slot { permit, cleanup: Arc::clone(self) }
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
            job.survived = true;
        }
    }

    /// Those that survived SIGKILL, and are tried again.
    pub(crate) fn survivors(&self) -> BTreeSet<InstanceId> {
        self.lock().values().filter(|job| job.survived).map(|job| job.instance.clone()).collect()
    }

    /// Nothing is left of it.
    pub(crate) fn done(&self, instance: &InstanceId) {
        self.lock().remove(instance);
    }

    fn size(&self) -> MutexGuard<'_, Size> {
        // Counts are whole whatever a panicking holder was doing.
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
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
        assert!(cleanup.survivors().is_empty());
        cleanup.stuck(&id(1), &[7]);
        drop(first);
        let _second = second.await.expect("it does not panic");
        cleanup.killing(&id(2));
        assert_eq!(progress(), [Progress::Stuck(vec![7]), Progress::Killing]);
        cleanup.killing(&id(1));
        assert_eq!(cleanup.survivors(), BTreeSet::from([id(1)]), "also while it is tried again");
        cleanup.done(&id(2));
        cleanup.done(&id(1));
        assert_eq!(progress(), []);
    }

    #[tokio::test]
    async fn slots_come_and_go_while_some_are_in_use() {
        let cleanup = Cleanup::new(3);
        let mut held = [cleanup.slot(id(1)).await, cleanup.slot(id(2)).await].map(Some);
        // Of three one is free and goes at once; another goes when it comes back.
        cleanup.set_slots(1);
        assert_eq!(cleanup.slots.available_permits(), 0);
        held[0] = None;
        assert_eq!(cleanup.slots.available_permits(), 0, "one too many was in use");
        held[1] = None;
        assert_eq!(cleanup.slots.available_permits(), 1);
        let _in_use = (cleanup.slot(id(1)).await, cleanup.set_slots(4));
        assert_eq!(cleanup.slots.available_permits(), 3);
    }
}
