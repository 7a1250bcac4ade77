//! Leases: who holds an instance. One that is held is not retired for want of use, and one that is being retired is
//! leased to nobody.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::InstanceHandle;
use crate::pool::Grip;

/// Set once the instance is going for good; below it is the number of holds.
const RETIRED: usize = 1 << (usize::BITS - 1);

/// The holds on one instance. Both questions, whether it may be leased and whether it may be retired, are answered by
/// one word, so that of two who ask at the same time one sees the other.
#[derive(Debug, Default)]
pub(crate) struct Holds(AtomicUsize);

impl Holds {
    /// One more; false, and none, when it is going for good.
    fn take(&self) -> bool {
        let free = |holds: usize| (holds & RETIRED == 0).then_some(holds + 1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).is_ok()
    }

    fn is_retired(&self) -> bool {
        self.0.load(Ordering::Acquire) & RETIRED != 0
    }

    fn release(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Acquire) & !RETIRED
    }

    /// Lets nobody hold it any more, unless somebody does; whether that is so now.
    pub(super) fn retire_if_free(&self) -> bool {
        let free = |holds: usize| (holds & !RETIRED == 0).then_some(RETIRED);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).is_ok()
    }

    /// Lets nobody hold it any more. Who does holds on to what is going.
    pub(super) fn retire(&self) {
        self.0.fetch_or(RETIRED, Ordering::AcqRel);
    }
}

/// A hold on an instance: a session's while it lasts, a caller's while it waits for the instance or calls it.
#[derive(Debug)]
pub struct Lease {
    handle: Arc<InstanceHandle>,
    /// Where the instance is of a pool, and goes back there.
    pub(crate) grip: Option<Grip>,
}

impl Lease {
    /// The instance.
    pub fn handle(&self) -> &Arc<InstanceHandle> {
        &self.handle
    }

    /// Whether the instance is of a pool, and goes back there.
    pub(crate) fn is_of_pool(&self) -> bool {
        self.grip.is_some()
    }

    /// The number of the lease, where the instance is of a pool: later ones are greater.
    pub fn fence(&self) -> Option<u64> {
        self.grip.as_ref().map(Grip::fence)
    }
}

impl Deref for Lease {
    type Target = InstanceHandle;

    fn deref(&self) -> &InstanceHandle {
        &self.handle
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // First the time, so that it is not found both free and long unused.
        self.handle.touch();
        self.handle.holds.release();
    }
}

/// The same for one who has the handle only for a moment.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a InstanceHandle);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.touch();
        self.0.holds.release();
    }
}

impl InstanceHandle {
    /// A hold on it; `None` when it is going for good.
    pub(crate) fn lease(self: &Arc<Self>) -> Option<Lease> {
        self.holds.take().then(|| Lease { handle: Arc::clone(self), grip: None })
    }

    /// Whether it is going for good.
    pub(crate) fn is_retired(&self) -> bool {
        self.holds.is_retired()
    }

    /// How many hold it.
    pub(crate) fn holders(&self) -> usize {
        self.holds.count()
    }

    pub(super) fn wait_for_it(&self) -> Option<Waiting<'_>> {
        self.holds.take().then_some(Waiting(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_not_retired_and_what_is_retired_is_not_held() {
        let holds = Holds::default();
        assert!(holds.take() && holds.take());
        assert!(!holds.retire_if_free());
        holds.release();
        assert!(!holds.retire_if_free());
        holds.release();
        assert!(holds.retire_if_free());
        assert!(!holds.take());
        assert_eq!(holds.count(), 0);
    }

    #[test]
    fn who_holds_what_is_retired_all_the_same_may_let_go() {
        let holds = Holds::default();
        assert!(holds.take());
        holds.retire();
        assert!(!holds.take());
        assert_eq!(holds.count(), 1);
        holds.release();
        assert_eq!(holds.count(), 0);
        assert!(!holds.take());
    }
}
