//! When something that is used again and again has had enough: after so many uses, so long, or so much memory.

use std::time::Duration;

use crate::chance;
use crate::instance::Now;

/// The bounds, as the configuration says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) max_uses: Option<u32>,
    pub(crate) max_age: Option<Duration>,
    pub(crate) max_rss: Option<u64>,
    /// The share, from 0 to 1, by which uses and age are less at most, by chance.
    pub(crate) jitter: f64,
}

/// Which bound is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Worn {
    Uses(u32),
    Age(Duration),
    Rss(u64),
}

/// What one has been through.
#[derive(Clone, Debug)]
pub(crate) struct Wear {
    born: Now,
    uses: u32,
    rss: u64,
    /// From 0 to 1, by chance.
    luck: f64,
}

impl Wear {
    /// Of one that begins now; its number decides how much less than the bounds it is allowed.
    pub(crate) fn new(number: u64, now: Now) -> Self {
        Self { born: now, uses: 0, rss: 0, luck: chance::share(number) }
    }

    pub(crate) fn used(&mut self) {
        self.uses = self.uses.saturating_add(1);
    }

    pub(crate) fn measured(&mut self, rss: u64) {
        self.rss = rss;
    }

    /// The bound it has reached, if it has.
    pub(crate) fn is_due(&self, bounds: &Bounds, now: Now) -> Option<Worn> {
        let age = now.since(self.born);
        if bounds.max_uses.is_some_and(|max| self.uses >= self.uses_allowed(max, bounds.jitter)) {
            return Some(Worn::Uses(self.uses));
        }
        if bounds.max_age.is_some_and(|max| age >= self.age_allowed(max, bounds.jitter)) {
            return Some(Worn::Age(age));
        }
        bounds.max_rss.is_some_and(|max| self.rss > max).then_some(Worn::Rss(self.rss))
    }

    /// When its age is up, where that is bounded.
    pub(crate) fn age_is_up(&self, bounds: &Bounds) -> Option<Now> {
        bounds.max_age.map(|max| self.born.after(self.age_allowed(max, bounds.jitter)))
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
}
