//! How many workers a lane has.
//!
//! Once in an interval the time that the workers spent on tasks is compared with the time that they had: the *load*. From
//! `up` there are more: one, or as many as there are tasks that wait for a worker, but at most twice as many as before.
//! Up to `down`, or where one had nothing to do for its idle time, there is one less, if the others would have done for
//! the last few looks in a row (two, to begin with).
//!
//! Why so: the tasks that wait now tell how many more are of use, and one at a time would take a minute and a half to
//! bring up eight; but what waits may be over in a moment, so no step more than doubles what is there. Down is cheap to
//! put off and dear to take back, so it goes slowly.
//!
//! Why it does not swing: a step up leaves at least half of the load, which is above `down`, and a step down is not made
//! where the load would then be `up`; so no load that stays the same calls for both. Work that comes in bursts may still:
//! then each step down that was soon taken back doubles the looks that the next one takes, up to twenty minutes' worth.

use std::time::Duration;

pub use crate::replicas::Step;

/// Looks in a row by which the others would have done, before there is one less.
const PATIENCE: u32 = 2;
/// The most that this becomes.
const PATIENCE_MAX: u32 = 128;
/// A step down that is followed by one up within so many looks was one too many.
const SOON: u32 = 60;

/// How many workers a lane has, as the configuration says.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ScaleSpec {
    /// Workers at the least.
    pub min: usize,
    /// Workers at most.
    pub max: usize,
    /// Load, from 0 to 1, from which there are more.
    pub up: f64,
    /// Load up to which there is one less.
    pub down: f64,
    /// From one look to the next.
    pub interval: Duration,
}

impl ScaleSpec {
    /// The defaults, on a machine with so many processors.
    pub fn of(processors: usize) -> Self {
        Self { min: 1, max: processors.max(1), up: 0.8, down: 0.2, interval: Duration::from_secs(10) }
    }
}

/// What one look saw.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Seen {
    /// Workers, those that are starting included.
    pub workers: usize,
    /// Of these, the ones that do not serve yet.
    pub starting: usize,
    /// How many had a task, as a mean over the time since the last look.
    pub busy: f64,
    /// Tasks that another worker could begin now ([`super::queue::Queue::startable`]).
    pub waiting: usize,
    /// Whether one of them had nothing to do for its whole idle time.
    pub idle: bool,
}

/// Decides step by step.
#[derive(Clone, Debug)]
pub struct Scaler {
    /// Looks in a row by which one less would have done.
    spare: u32,
    /// So many of these, and there is one less.
    patience: u32,
    /// Looks since the last step down, and since any.
    since_down: u32,
    since_step: u32,
}

impl Default for Scaler {
    fn default() -> Self {
        Self { spare: 0, patience: PATIENCE, since_down: u32::MAX, since_step: 0 }
    }
}

impl Scaler {
    /// What follows from what was seen.
    pub fn decide(&mut self, spec: &ScaleSpec, seen: Seen) -> Step {
        let step = self.choose(spec, seen);
        self.since_down = self.since_down.saturating_add(1);
        self.since_step = self.since_step.saturating_add(1);
        match step {
            Step::Up(_) if self.since_down <= SOON => self.patience = (self.patience * 2).min(PATIENCE_MAX),
            Step::Down => self.since_down = 0,
            Step::Up(_) | Step::Stay => {}
        }
        if step != Step::Stay {
            (self.spare, self.since_step) = (0, 0);
        } else if self.since_step >= 2 * SOON.max(self.patience) {
            // It has been at rest for so long that what was before says nothing any more.
            (self.patience, self.since_step) = ((self.patience / 2).max(PATIENCE), 0);
        }
        step
    }

    fn choose(&mut self, spec: &ScaleSpec, seen: Seen) -> Step {
        let Seen { workers, starting, busy, waiting, idle } = seen;
        let load = |workers: usize| load(busy, waiting, workers);
        let can_spare = workers > 0 && waiting == 0 && load(workers - 1) < spec.up;
        self.spare = if can_spare { self.spare.saturating_add(1) } else { 0 };
        if workers < spec.min {
            return Step::Up(spec.min - workers);
        }
        // More than there may be since the configuration was changed.
        if workers > spec.max.max(spec.min) {
            return Step::Down;
        }
        // While some are starting, it is not known yet what they will take on.
        if starting == 0 && workers < spec.max && load(workers) >= spec.up {
            return Step::Up(waiting.clamp(1, workers.max(1)).min(spec.max - workers));
        }
        let has_little = load(workers) <= spec.down || idle;
        if workers > spec.min && has_little && self.spare >= self.patience { Step::Down } else { Step::Stay }
    }
}

/// Where there are no workers, anything to do is too much.
fn load(busy: f64, waiting: usize, workers: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "workers are few enough")]
    let workers = workers as f64;
    match (workers > 0.0, busy > 0.0 || waiting > 0) {
        (true, _) => busy / workers,
        (false, true) => f64::INFINITY,
        (false, false) => 0.0,
    }
}
