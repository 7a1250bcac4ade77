//! One instance against what it may use itself: what is warned of, and what is over a limit that nothing in the
//! kernel holds it to.

use std::fmt;
use std::time::Duration;

use super::HYSTERESIS;
use crate::instance::Now;
use crate::text::{human, human_bytes};

/// Measurements in a row that must be over the cpu limit before that counts: a kernel would only hold the instance
/// back, so a burst is no reason to end it.
pub const CPU_SAMPLES: u32 = 3;

/// What one instance may use, as far as measuring has to see to it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct OwnLimits {
    /// Memory in bytes from which it is not well.
    pub memory_warning: u64,
    /// Memory in bytes; absent where there is no limit, or the kernel holds it.
    pub memory: Option<u64>,
    /// Processes and threads; absent as above.
    pub pids: Option<u32>,
    /// Cores; absent as above.
    pub cpu: Option<f64>,
}

/// What it uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnSample {
    /// When that was measured.
    pub at: Now,
    /// Memory of its tree in bytes.
    pub memory: u64,
    /// Processes and threads of its tree.
    pub pids: u32,
    /// Processor time since its tree was started, in milliseconds.
    pub cpu_ms: u64,
}

/// What it is over. `Display` says it with the figures.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Over {
    /// Its memory limit.
    Memory {
        /// Bytes used.
        used: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// Its limit of processes and threads.
    Pids {
        /// How many there are.
        used: u32,
        /// How many are allowed.
        limit: u32,
    },
    /// Its cpu limit, for [`CPU_SAMPLES`] measurements in a row.
    Cpu {
        /// Cores used in that time.
        used: f64,
        /// Cores allowed.
        limit: f64,
        /// How long that time was.
        over: Duration,
    },
}

impl Over {
    /// Whether it grows until it is ended, so that it is ended at once. What only takes time from others may end
    /// its calls first.
    pub fn is_urgent(&self) -> bool {
        !matches!(self, Self::Cpu { .. })
    }
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { used, limit } => {
                write!(f, "over its memory limit: {} of {}", human_bytes(*used), human_bytes(*limit))?;
            }
            Self::Pids { used, limit } => {
                write!(f, "over its limit of processes and threads: {used} of {limit}")?;
            }
            Self::Cpu { used, limit, over } => {
                write!(f, "over its cpu limit: {used:.2} of {limit} cores for {}", human(*over))?;
            }
        }
        f.write_str("; nothing in the kernel holds it back here (see `ostler doctor`)")
    }
}

/// What came of a measurement.
#[derive(Clone, PartialEq, Debug)]
pub enum Verdict {
    /// It uses so much memory that it is not well, for this reason, or no longer.
    High(Option<String>),
    /// It is over a limit of its own, and is to be ended.
    Over(Over),
}

/// Follows one process tree. A new tree has a new one.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct OwnUse {
    high: bool,
    /// The last measurement: when, and the processor time by then.
    last: Option<(Now, u64)>,
    /// The measurement before the first of those in a row that were over the cpu limit, and how many there were.
    hot: Option<(Now, u64, u32)>,
}

impl OwnUse {
    /// Takes a measurement. An `Over` is said once for each reason to act: whoever is told of one ends the tree.
    pub fn measure(&mut self, limits: &OwnLimits, sample: &OwnSample) -> Vec<Verdict> {
        let mut verdicts: Vec<Verdict> = self.warn(limits, sample.memory).into_iter().collect();
        let memory = limits.memory.filter(|&limit| sample.memory > limit);
        let pids = limits.pids.filter(|&limit| sample.pids > limit);
        let over = memory
            .map(|limit| Over::Memory { used: sample.memory, limit })
            .or_else(|| pids.map(|limit| Over::Pids { used: sample.pids, limit }));
        let cpu = limits.cpu.and_then(|limit| self.processor(limit, sample));
        self.last = Some((sample.at, sample.cpu_ms));
        verdicts.extend(over.or(cpu).map(Verdict::Over));
        verdicts
    }

    fn warn(&mut self, limits: &OwnLimits, memory: u64) -> Option<Verdict> {
        let from = limits.memory_warning;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of what fits")]
        let until = (from as f64 * (1.0 - HYSTERESIS)) as u64;
        let high = memory >= if self.high { until } else { from };
        let changed = high != self.high;
        self.high = high;
        let reason = || {
            format!(
                "it uses {} of memory (limits.memory_warning: {})",
                human_bytes(memory),
                human_bytes(from)
            )
        };
        changed.then(|| Verdict::High(high.then(reason)))
    }

    fn processor(&mut self, limit: f64, sample: &OwnSample) -> Option<Over> {
        let (at, before) = self.last?;
        if cores(at, before, sample) <= limit {
            self.hot = None;
            return None;
        }
        let (began, used, samples) = self.hot.map_or((at, before, 1), |(at, used, n)| (at, used, n + 1));
        self.hot = Some((began, used, samples));
        if samples < CPU_SAMPLES {
            return None;
        }
        self.hot = None;
        Some(Over::Cpu { used: cores(began, used, sample), limit, over: sample.at.since(began) })
    }
}

/// Cores used between a measurement and a later one; 0 where no time has passed.
fn cores(at: Now, cpu_ms: u64, later: &OwnSample) -> f64 {
    let wall = later.at.since(at).as_secs_f64() * 1000.0;
    let used = later.cpu_ms.saturating_sub(cpu_ms) as f64;
    if wall > 0.0 { used / wall } else { 0.0 }
}
