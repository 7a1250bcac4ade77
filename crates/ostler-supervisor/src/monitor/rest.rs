//! When a regular pass over `/proc` can be left out: the trees are those of the last one, and the machine as a whole says
//! that they cannot use much else than they did. A hundred idle servers would otherwise cost a pass of milliseconds every few
//! seconds, for figures that nobody looks at and that are the same. Who looks (`ostler ps`) has a pass of his own.

use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::machine::{Machine, Pulse};
use super::trees::{Subject, subjects};
use crate::core::Core;

/// Most regular passes that are left out in a row: one in a minute is made, at the default interval.
const RESTS: u64 = 11;
/// The same while an instance has limits of its own.
const ATTENTIVE_RESTS: u64 = 5;
/// Intervals after which is looked again whether the rest lasts: each look wakes a processor. While an instance has
/// limits of its own, every interval; and as soon as an instance changes, in any case.
const DOZE: u64 = 4;

/// By how many bytes the machine's free memory may have become less than it was at most: no tree can have grown by much
/// more, unless another program gave as much back at the same time.
const MEMORY: u64 = 16 << 20;
/// The part of its memory that must be free: of one that is short of it, nothing is known by that.
const FREE: u64 = 4;
/// By how many the machine's processes and threads may have changed.
const THREADS: u16 = 32;
/// Share of the time of one processor for which all of them may have worked, while an instance has limits of its own.
const WORK: f64 = 0.02;

/// What a regular pass found of all this.
#[derive(Debug)]
pub(super) struct Rest {
    pulse: Pulse,
    at: Instant,
    /// Changes of instances so far.
    changes: u64,
    /// Something was on its way up or out, or there was nothing.
    unsettled: bool,
    /// An instance has limits of its own.
    attentive: bool,
    /// Passes left out since.
    left_out: u64,
}

impl Rest {
    /// How it is now; `None` where that cannot be told. `before` knows of the instances already, if nothing has changed.
    pub(super) fn now(core: &Core, machine: &dyn Machine, before: Option<&Self>) -> Option<Self> {
        let changes = core.monitor.changes.load(Ordering::SeqCst);
        let (unsettled, attentive) = match before.filter(|before| before.changes == changes) {
            Some(before) => (before.unsettled, before.attentive),
            None => {
                let subjects = subjects(core);
                let unsettled = subjects.is_empty() || subjects.iter().any(Subject::is_changing);
                (unsettled, subjects.iter().any(Subject::is_limited))
            }
        };
        let pulse = machine.pulse(attentive)?;
        Some(Self { pulse, at: Instant::now(), changes, unsettled, attentive, left_out: 0 })
    }

    /// In how many intervals to look again.
    pub(super) fn doze(&self) -> u64 {
        if self.attentive { 1 } else { RESTS.saturating_sub(self.left_out).clamp(1, DOZE) }
    }

    /// When the passes of so many more intervals are left out.
    pub(super) fn longer(mut self, now: &Self, intervals: u64) -> Self {
        let (most, free) = (&mut self.pulse.memory.available_bytes, now.pulse.memory.available_bytes);
        *most = free.max(*most);
        self.left_out += intervals;
        self
    }

    /// Whether what was found then is still so.
    pub(super) fn lasts(&self, now: &Self) -> bool {
        let (before, after) = (&self.pulse.memory, &now.pulse.memory);
        let rests = if self.attentive { ATTENTIVE_RESTS } else { RESTS };
        self.left_out < rests
            && self.changes == now.changes
            && !self.unsettled
            && before.available_bytes.saturating_sub(after.available_bytes) <= MEMORY
            && after.available_bytes >= after.total_bytes / FREE
            && self.pulse.threads.abs_diff(now.pulse.threads) <= THREADS
            && self.has_worked_little(now)
    }

    fn has_worked_little(&self, now: &Self) -> bool {
        let (Some(before), Some(after)) = (self.pulse.busy_ms, now.pulse.busy_ms) else {
            return !self.attentive;
        };
        let time = now.at.duration_since(self.at).as_secs_f64() * 1000.0;
        #[expect(clippy::cast_precision_loss, reason = "milliseconds are few enough")]
        let work = after.saturating_sub(before) as f64;
        work <= time * WORK
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use ostler_os::pressure::Memory;

    use super::*;

    const GIB: u64 = 1 << 30;

    pub(in crate::monitor) fn pulse() -> Pulse {
        let memory = Memory { total_bytes: 8 * GIB, available_bytes: 4 * GIB };
        Pulse { memory, threads: 500, busy_ms: None }
    }

    /// One that began with 7 changes.
    pub(in crate::monitor) fn rest(pulse: Pulse, after: u64, left_out: u64) -> Rest {
        let (at, attentive) = (Instant::now() + Duration::from_secs(after), pulse.busy_ms.is_some());
        Rest { pulse, at, changes: 7, unsettled: false, attentive, left_out }
    }

    #[tokio::test(start_paused = true)]
    async fn it_lasts_while_nothing_changes_and_not_for_ever() {
        let before = rest(pulse(), 0, 0);
        assert!(before.lasts(&rest(pulse(), 5, 0)));
        assert!(rest(pulse(), 0, RESTS - 1).lasts(&rest(pulse(), 5, 0)));
        assert!(!rest(pulse(), 0, RESTS).lasts(&rest(pulse(), 5, 0)), "long enough");
        assert_eq!((before.doze(), rest(pulse(), 0, RESTS - 1).doze()), (DOZE, 1), "and no longer than that");
        assert_eq!(before.longer(&rest(pulse(), 5, 0), DOZE).left_out, DOZE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_be_a_trees_doing_ends_it() {
        let before = rest(pulse(), 0, 0);
        let free =
            |available_bytes| Pulse { memory: Memory { available_bytes, ..pulse().memory }, ..pulse() };
        assert!(before.lasts(&rest(free(4 * GIB - MEMORY), 5, 0)));
        assert!(!before.lasts(&rest(free(4 * GIB - MEMORY - 1), 5, 0)));
        let freed = rest(pulse(), 0, 0).longer(&rest(free(5 * GIB), 5, 0), 1);
        assert!(freed.lasts(&rest(free(5 * GIB), 10, 0)) && !freed.lasts(&rest(pulse(), 10, 0)));
        assert!(!rest(free(GIB), 0, 0).lasts(&rest(free(GIB), 5, 0)), "the machine is short of memory");
        assert!(!before.lasts(&rest(Pulse { threads: 500 + THREADS + 1, ..pulse() }, 5, 0)));
        assert!(!before.lasts(&Rest { changes: 8, ..rest(pulse(), 5, 0) }), "another process");
        let starting = Rest { unsettled: true, ..rest(pulse(), 0, 0) };
        assert!(!starting.lasts(&Rest { unsettled: true, ..rest(pulse(), 5, 0) }));
    }

    #[tokio::test(start_paused = true)]
    async fn with_limits_of_its_own_work_counts_too() {
        let worked = |busy_ms| Pulse { busy_ms: Some(busy_ms), ..pulse() };
        let before = rest(worked(1000), 0, 0);
        assert_eq!(before.doze(), 1);
        assert!(before.lasts(&rest(worked(1100), 5, 0)), "2 % of 5 s are 100 ms");
        assert!(!before.lasts(&rest(worked(1101), 5, 0)));
        assert!(!rest(worked(1000), 0, ATTENTIVE_RESTS).lasts(&rest(worked(1000), 5, 0)));
    }
}
