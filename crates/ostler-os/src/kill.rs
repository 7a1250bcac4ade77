//! One round of killing a set of processes that may be forking while it is killed.
//!
//! Everything found is stopped first and killed after: a stopped process neither forks nor reacts to the death of
//! its neighbours by starting them again. Rounds are repeated by the caller until its own proof of emptiness.
//! Nothing here forks, and memory is bounded by the number of processes of the machine.

use std::collections::HashSet;
use std::io;

use rustix::process::Signal;

use crate::pidfd::{self, Sent};
use crate::tree::{Process, Scan};

/// How often a round looks for newcomers among the stopped before it kills what it has.
const MAX_FREEZE_PASSES: usize = 16;

/// What a round did.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Round {
    /// Living processes found.
    pub(crate) found: usize,
    /// Of these, the ones that may not be signalled.
    pub(crate) denied: usize,
}

/// How thoroughly a round looks before it kills.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Freeze {
    /// One pass: for a subreaper, to whom whatever was missed comes back.
    Once,
    /// Until a pass finds nobody new: for trees whose orphans go elsewhere once their parent is dead.
    UntilStable,
}

/// Kills in rounds, with memory reused between them.
#[derive(Default)]
pub(crate) struct Killer {
    scan: Scan,
    targets: Vec<Process>,
    frozen: Vec<Process>,
    seen: HashSet<(i32, u64)>,
}

impl Killer {
    /// Stops, then kills, all living processes that `select` names from a scan.
    pub(crate) fn round(
        &mut self,
        freeze: Freeze,
        mut select: impl FnMut(&Scan, &mut Vec<Process>),
    ) -> io::Result<Round> {
        self.frozen.clear();
        self.seen.clear();
        let passes = if freeze == Freeze::Once { 1 } else { MAX_FREEZE_PASSES };
        for _ in 0..passes {
            self.find(&mut select)?;
            let before = self.frozen.len();
            for process in self.targets.drain(..) {
                if self.seen.insert(process.id()) {
                    pidfd::signal(&process, &[Signal::STOP])?;
                    self.frozen.push(process);
                }
            }
            if self.frozen.len() == before {
                break;
            }
        }
        let mut round = Round { found: self.frozen.len(), denied: 0 };
        for process in &self.frozen {
            if pidfd::signal(process, &[Signal::KILL])? == Sent::Denied {
                round.denied += 1;
            }
        }
        Ok(round)
    }

    /// Sends `signals` to each living process that `select` names, once, and says how many there were.
    pub(crate) fn signal(
        &mut self,
        signals: &[Signal],
        mut select: impl FnMut(&Scan, &mut Vec<Process>),
    ) -> io::Result<usize> {
        self.find(&mut select)?;
        for process in &self.targets {
            pidfd::signal(process, signals)?;
        }
        Ok(self.targets.len())
    }

    fn find(&mut self, select: &mut impl FnMut(&Scan, &mut Vec<Process>)) -> io::Result<()> {
        self.scan.refresh()?;
        self.targets.clear();
        select(&self.scan, &mut self.targets);
        self.targets.retain(|process| !process.is_zombie());
        Ok(())
    }

    /// The processes of the last round, or of the last call of [`Self::signal`] when there was no round.
    pub(crate) fn last(&self) -> &[Process] {
        &self.frozen
    }
}

/// The pause between two rounds: short at first, longer while nothing ends, so that an unkillable process
/// (state D) costs little for as long as it is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pause(u32);

impl Pause {
    /// The first and shortest pause.
    pub(crate) const MIN_MS: u32 = 1;
    /// The longest.
    pub(crate) const MAX_MS: u32 = 100;

    /// Starts with the shortest.
    pub(crate) fn new() -> Self {
        Self(Self::MIN_MS)
    }

    /// This pause in milliseconds; the next is twice as long.
    pub(crate) fn next_ms(&mut self) -> u32 {
        let now = self.0;
        self.0 = (now * 2).min(Self::MAX_MS);
        now
    }

    /// Something ended: be quick again.
    pub(crate) fn reset(&mut self) {
        self.0 = Self::MIN_MS;
    }
}
