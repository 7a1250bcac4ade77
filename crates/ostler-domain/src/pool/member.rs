//! One instance of a pool.

use super::{Fence, Figures, PoolSpec, Slot, Why};
use crate::instance::Now;
use crate::wear::{Bounds, Wear, Worn};

/// What a member is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Doing {
    Starting,
    Spare,
    /// A spare that is to be replaced, and serves until the replacement is ready.
    Outgoing(Why),
    Checking,
    Leased(Fence),
    Resetting,
    Leaving,
}

#[derive(Clone, Debug)]
pub(super) struct Member<K> {
    pub(super) kind: K,
    pub(super) doing: Doing,
    /// Since when it does that.
    pub(super) since: Now,
    wear: Wear,
}

impl<K> Member<K> {
    pub(super) fn new(slot: Slot, kind: K, now: Now) -> Self {
        Self { kind, doing: Doing::Starting, since: now, wear: Wear::new(slot.0, now) }
    }

    pub(super) fn turn(&mut self, doing: Doing, now: Now) {
        (self.doing, self.since) = (doing, now);
    }

    pub(super) fn lease(&mut self, fence: Fence, now: Now) {
        self.wear.used();
        self.turn(Doing::Leased(fence), now);
    }

    pub(super) fn measured(&mut self, rss: u64) {
        self.wear.measured(rss);
    }

    pub(super) fn fence(&self) -> Option<Fence> {
        match self.doing {
            Doing::Leased(fence) => Some(fence),
            _ => None,
        }
    }

    /// Whether it is, or is about to be, of use to who waits or comes.
    pub(super) fn is_coming(&self) -> bool {
        matches!(self.doing, Doing::Starting | Doing::Spare | Doing::Checking | Doing::Resetting)
    }

    /// Why it is to be replaced, if it is.
    pub(super) fn is_due(&self, spec: &PoolSpec, now: Now) -> Option<Why> {
        self.wear.is_due(&bounds(spec), now).map(|worn| match worn {
            Worn::Uses(uses) => Why::Worn(uses),
            Worn::Age(age) => Why::Old(age),
            Worn::Rss(rss) => Why::Large(rss),
        })
    }

    /// When its age is up, where that is bounded.
    pub(super) fn age_is_up(&self, spec: &PoolSpec) -> Option<Now> {
        self.wear.age_is_up(&bounds(spec))
    }

    pub(super) fn place_in<'f>(&self, figures: &'f mut Figures) -> &'f mut usize {
        match self.doing {
            Doing::Starting => &mut figures.starting,
            Doing::Spare | Doing::Outgoing(_) | Doing::Checking => &mut figures.spare,
            Doing::Leased(_) => &mut figures.leased,
            Doing::Resetting => &mut figures.resetting,
            Doing::Leaving => &mut figures.leaving,
        }
    }
}

fn bounds(spec: &PoolSpec) -> Bounds {
    let PoolSpec { max_uses, max_age, max_rss, jitter, .. } = *spec;
    Bounds { max_uses, max_age, max_rss, jitter }
}
