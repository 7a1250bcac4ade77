//! One instance of a pool.

use std::time::Duration;

use super::{Fence, Figures, PoolSpec, Slot, Why};
use crate::instance::Now;

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
    born: Now,
    uses: u32,
    rss: u64,
    /// From 0 to 1, by chance.
    luck: f64,
}

impl<K> Member<K> {
    pub(super) fn new(slot: Slot, kind: K, now: Now) -> Self {
        Self { kind, doing: Doing::Starting, since: now, born: now, uses: 0, rss: 0, luck: luck_of(slot) }
    }

    pub(super) fn turn(&mut self, doing: Doing, now: Now) {
        (self.doing, self.since) = (doing, now);
    }

    pub(super) fn lease(&mut self, fence: Fence, now: Now) {
        self.uses = self.uses.saturating_add(1);
        self.turn(Doing::Leased(fence), now);
    }

    pub(super) fn measured(&mut self, rss: u64) {
        self.rss = rss;
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
        let age = now.since(self.born);
        if spec.max_uses.is_some_and(|max| self.uses >= self.uses_allowed(max, spec.jitter)) {
            return Some(Why::Worn(self.uses));
        }
        if spec.max_age.is_some_and(|max| age >= self.age_allowed(max, spec.jitter)) {
            return Some(Why::Old(age));
        }
        spec.max_rss.is_some_and(|max| self.rss > max).then_some(Why::Large(self.rss))
    }

    /// When its age is up, where that is bounded.
    pub(super) fn age_is_up(&self, spec: &PoolSpec) -> Option<Now> {
        spec.max_age.map(|max| self.born.after(self.age_allowed(max, spec.jitter)))
    }

    /// At least one: else it would be replaced before anybody had it.
    fn uses_allowed(&self, max: u32, jitter: f64) -> u32 {
        let less = f64::from(max) * jitter * self.luck;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to `max`")]
        let less = less as u32;
        max.saturating_sub(less).max(1)
    }

    fn age_allowed(&self, max: Duration, jitter: f64) -> Duration {
        max.mul_f64((1.0 - jitter * self.luck).clamp(0.0, 1.0))
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

/// Chance that needs no dice: SplitMix64 (Steele and others, 2014) of the slot's number, as a share of 1.
fn luck_of(slot: Slot) -> f64 {
    let mut mixed = slot.0.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let top = u32::try_from((mixed ^ (mixed >> 31)) >> 32).unwrap_or(u32::MAX);
    f64::from(top) / f64::from(u32::MAX)
}
