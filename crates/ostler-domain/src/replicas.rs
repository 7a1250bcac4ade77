//! Replicas: how many instances of a shared server serve side by side.
//!
//! Once in an interval the calls that run are compared with those that the replicas are meant for. Above `up` one more is
//! started; below `down`, twice in a row, one is ended. One step at a time, and none up while an earlier one is still
//! starting: what it will take on is not known yet. A step down that would call for a step up at once is not made.

use std::time::Duration;

/// Looks in a row that must find little to do before a replica is ended.
const PATIENCE: u32 = 2;

/// How many replicas a server has, as the configuration says.
#[derive(Clone, PartialEq, Debug)]
pub struct ReplicasSpec {
    /// Replicas at the least.
    pub min: usize,
    /// Replicas at most.
    pub max: usize,
    /// Calls at the same time that one replica is meant for.
    pub calls: usize,
    /// Share of these, from 0 to 1, from which there is one more.
    pub up: f64,
    /// Share up to which there is one less.
    pub down: f64,
    /// From one look to the next.
    pub interval: Duration,
}

impl Default for ReplicasSpec {
    fn default() -> Self {
        Self { min: 1, max: 4, calls: 4, up: 0.8, down: 0.2, interval: Duration::from_secs(10) }
    }
}

/// What one look saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// Replicas, those that are starting included.
    pub replicas: usize,
    /// Of these, the ones that do not serve yet.
    pub starting: usize,
    /// Calls that run.
    pub calls: usize,
}

/// What follows from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// So many more.
    Up(usize),
    /// One less.
    Down,
    /// As many as there are.
    Stay,
}

/// Decides step by step.
#[derive(Clone, Debug, Default)]
pub struct Scaler {
    /// Looks in a row that found little to do.
    quiet: u32,
}

impl Scaler {
    /// What follows from what was seen.
    pub fn decide(&mut self, spec: &ReplicasSpec, seen: Seen) -> Step {
        let Seen { replicas, starting, calls } = seen;
        let share = |replicas: usize| share(calls, replicas.saturating_mul(spec.calls));
        let is_quiet = replicas > 1 && share(replicas) <= spec.down && share(replicas - 1) < spec.up;
        self.quiet = if is_quiet { self.quiet + 1 } else { 0 };
        if replicas < spec.min {
            return Step::Up(spec.min - replicas);
        }
        // More than there may be since the configuration was changed.
        if replicas > spec.max {
            return Step::Down;
        }
        if starting == 0 && replicas < spec.max && share(replicas) >= spec.up {
            return Step::Up(1);
        }
        if replicas > spec.min && self.quiet >= PATIENCE {
            self.quiet = 0;
            return Step::Down;
        }
        Step::Stay
    }
}

/// Of no capacity, everything is all of it.
fn share(calls: usize, of: usize) -> f64 {
    if of == 0 {
        return 1.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "calls are few enough")]
    let share = calls as f64 / of as f64;
    share
}
