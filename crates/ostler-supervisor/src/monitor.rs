//! The monitor: measures what runs, says so, and acts when it is too much.
//!
//! One task. Every `metrics.interval`, and when somebody looks, it makes one pass:
//!
//! ```text
//!   instances ─▶ Ask ─▶ Machine (one pass over /proc, on a thread that may block) ─▶ Look
//!                         ┌──────────────┬───────────────────┬────────────────────────┤
//!                         ▼              ▼                   ▼                        ▼
//!                  Reading of each   own limits         gauges of the daemon     Overview
//!                  (InstanceHandle)  (trees.rs)         (pressure.rs)            (Monitor)
//!                                    │ to its driver     │ Admission: refuse
//!                                    ▼                   ▼ drivers: make room (relief.rs)
//!                                    warned, ended, named
//! ```
//!
//! A pass for somebody who looks only measures; what is decided follows the regular ones, which have the interval
//! between them. While nothing runs there is only the timer, and now and then a look at the disk.

pub mod machine;
mod pressure;
mod relief;
mod rest;
#[cfg(test)]
mod tests;
mod trees;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use ostler_domain::Generation;
use ostler_domain::pressure::{Level, Need};
use ostler_os::pressure::{Memory, MemoryStall};
use ostler_os::{Readings, Rungs};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::clock::now_ms;
use crate::core::Core;
use crate::session::Sessions;
use crate::watch;
use machine::{Ask, Machine};
use pressure::{Coming, Pressure};
use rest::Rest;
pub(crate) use trees::Found;
use trees::Trees;

/// In one of so many regular passes the PSS of all trees that have run is read: a minute at the default interval.
const THOROUGH_EVERY: u64 = 12;

/// In one of so many regular passes the disk is looked at, also while nothing runs.
const SPACE_EVERY: u64 = 12;

/// What is never left out.
const REGULARLY: [u64; 2] = [THOROUGH_EVERY, SPACE_EVERY];

/// So long after a pass none is begun for somebody who looks: each is a walk over `/proc`, and many may look.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// How long somebody who looks waits for a pass. After that, what is known is shown.
const PATIENCE: Duration = Duration::from_secs(2);

/// What one instance used when it was last measured.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Reading {
    /// Which of its processes that was.
    pub generation: Generation,
    /// When, in milliseconds of [`now_ms`].
    pub at_ms: u64,
    /// Processes of its tree, the guard not counted.
    pub processes: u32,
    /// Their threads.
    pub threads: u32,
    /// Share of one processor since the last pass, in per cent.
    pub cpu_percent: f64,
    /// Processor time since its tree was started, in milliseconds.
    pub cpu_ms: u64,
    /// Resident memory in bytes; what processes share counts for each.
    pub rss_bytes: u64,
    /// The same with what is shared counted once, in bytes, where it was read; and the resident memory, and the
    /// processor time in milliseconds, at that time.
    pub pss: Option<Pss>,
    /// Open files, where they could be counted, and the most that one process has.
    pub fds: Option<Fds>,
    /// Resident memory of its guard, in bytes.
    pub guard_rss_bytes: u64,
    /// What the kernel counted, where it holds the tree to a limit.
    pub kernel: Readings,
}

/// Proportional memory, as it was read at one time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pss {
    /// Bytes.
    pub bytes: u64,
    /// Resident memory in bytes then.
    pub of_rss: u64,
    /// Processor time in milliseconds by then.
    pub at_cpu_ms: u64,
}

/// Open files, as they were counted at one time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fds {
    /// Of all its processes.
    pub all: u64,
    /// Of the process that has most: the limit is for each.
    pub of_one: u64,
    /// Processor time in milliseconds by then.
    pub at_cpu_ms: u64,
}

impl Reading {
    /// Memory in bytes as limits take it: what is shared counts once, as far as that is known.
    pub fn memory_bytes(&self) -> u64 {
        match self.pss {
            // What it has grown or shrunk by since then counts in full.
            Some(pss) if self.rss_bytes >= pss.of_rss => pss.bytes + (self.rss_bytes - pss.of_rss),
            Some(pss) => pss.bytes.saturating_sub(pss.of_rss - self.rss_bytes),
            None => self.rss_bytes,
        }
    }
}

/// How near one limit of the whole daemon is, or a disk to being full.
#[derive(Clone, PartialEq, Debug)]
pub struct Measured {
    /// The key of the limit, `machine` for the memory of the machine, `stall` for waiting for it, or `disk PATH`.
    pub name: String,
    /// So much of it.
    pub used: u64,
    /// Of so much.
    pub limit: u64,
    /// Of what: `bytes`, `instances` or `per mille`.
    pub unit: &'static str,
    /// How near that is.
    pub level: Level,
}

/// What all instances used together, and how near the limits are.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Overview {
    /// When, in milliseconds of [`now_ms`]; 0: not yet.
    pub at_ms: u64,
    /// Trees that were measured.
    pub trees: u32,
    /// Their processes, guards not counted.
    pub processes: u32,
    /// Their threads.
    pub threads: u32,
    /// Their memory in bytes, as limits take it.
    pub memory_bytes: u64,
    /// Their share of one processor since the last pass, in per cent.
    pub cpu_percent: f64,
    /// Each limit that is watched.
    pub gauges: Vec<Measured>,
    /// The memory of the machine, once looked at.
    pub machine: Option<Memory>,
    /// Stalls for memory, where the kernel tells them.
    pub stall: Option<MemoryStall>,
}

/// What the monitor shares with the rest of the daemon.
#[derive(Debug, Default)]
pub struct Monitor {
    overview: ArcSwap<Overview>,
    wanted: Notify,
    begun: AtomicU64,
    done: watch::Sender<u64>,
    /// Somebody was refused a place.
    shortage: Mutex<Option<(Need, u64)>>,
    refused: Notify,
    /// Changes of instances, and of what holds them, so far.
    changes: AtomicU64,
    /// The next regular pass is further away than the interval, and comes in time again when this is woken.
    dozes: AtomicBool,
    woken: Notify,
}

impl Monitor {
    /// An instance is not what it was, or is held to something else: what was measured may not be so any more.
    pub(crate) fn changed(&self) {
        // In one order with what `rests` does, so that one of the two sees the other.
        self.changes.fetch_add(1, Ordering::SeqCst);
        if self.dozes.load(Ordering::SeqCst) && self.dozes.swap(false, Ordering::SeqCst) {
            self.woken.notify_one();
        }
    }

    /// What the last pass saw of everything.
    pub fn overview(&self) -> Arc<Overview> {
        self.overview.load_full()
    }

    /// Resolves when everything was measured after this was called, or after two seconds.
    pub async fn measured(&self) {
        let mut done = self.done.subscribe();
        let wanted = self.begun.load(Ordering::Acquire) + 1;
        self.wanted.notify_one();
        let _ = timeout(PATIENCE, done.wait_for(|done| *done >= wanted)).await;
    }

    /// Somebody was refused for this; what nobody uses is stopped, so that the next try may succeed.
    pub(crate) fn make_room(&self, need: Need, let_in: u64) {
        *self.shortage.lock().unwrap_or_else(PoisonError::into_inner) = Some((need, let_in));
        self.refused.notify_one();
    }

    fn take_shortage(&self) -> Option<(Need, u64)> {
        self.shortage.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The task.
pub(crate) struct Watcher {
    core: Arc<Core>,
    sessions: Arc<Sessions>,
    machine: Arc<dyn Machine>,
    /// Asked for when the first tree runs: by then it is settled which they are.
    rungs: OnceLock<Rungs>,
    trees: Trees,
    pressure: Pressure,
    /// Regular passes so far, those left out included.
    passes: u64,
    /// How it was at the latest regular pass that was made.
    rest: Option<Rest>,
}

impl Watcher {
    /// Measures by `machine`; watches the space where these folders are.
    pub(crate) fn new(
        core: Arc<Core>,
        sessions: Arc<Sessions>,
        machine: Arc<dyn Machine>,
        folders: Vec<std::path::PathBuf>,
    ) -> Self {
        let pressure = Pressure::new(&core.config().limits, folders);
        let (rungs, trees) = (OnceLock::new(), Trees::default());
        Self { core, sessions, machine, rungs, trees, pressure, passes: 0, rest: None }
    }

    /// Passes without end.
    pub(crate) async fn run(mut self) {
        let core = Arc::clone(&self.core);
        let after = |intervals: u32| Instant::now() + core.config().metrics.interval * intervals;
        let mut due = after(1);
        let mut rested = Instant::now();
        loop {
            let looked = async {
                sleep_until(rested).await;
                core.monitor.wanted.notified().await;
            };
            let regular = crate::select::select! {
                () = sleep_until(due) => true,
                () = core.monitor.woken.notified() => {
                    due = due.min(after(1));
                    continue;
                }
                // Who makes room is chosen by what is known.
                () = core.monitor.refused.notified() => {
                    if let Some((need, let_in)) = core.monitor.take_shortage() {
                        relief::slots(&core, &need, let_in).await;
                    }
                    continue;
                }
                () = looked => false,
            };
            if regular && let Some(intervals) = self.rests() {
                due = after(intervals);
                continue;
            }
            self.pass(regular).await;
            rested = Instant::now() + LOOK_PAUSE;
            if regular {
                due = after(1);
            }
        }
    }

    /// Whether the regular pass that is due can be left out, and in how many intervals the next is.
    fn rests(&mut self) -> Option<u32> {
        // Whoever changes something from here on wakes this task; what changed before is seen below.
        self.core.monitor.dozes.store(true, Ordering::SeqCst);
        let before = self.rest.take();
        let is_due = REGULARLY.iter().any(|every| self.passes.is_multiple_of(*every));
        let now = Rest::now(&self.core, &*self.machine, before.as_ref());
        let same = before.as_ref().zip(now.as_ref()).is_some_and(|(before, now)| before.lasts(now));
        match (before, now) {
            (Some(before), Some(now)) if same && !is_due && !self.pressure.is_short() => {
                let until_due = REGULARLY.iter().map(|every| every - self.passes % every).min();
                let intervals = before.doze().min(until_due.unwrap_or(1));
                self.passes += intervals;
                self.rest = Some(before.longer(&now, intervals));
                u32::try_from(intervals).ok()
            }
            (_, now) => {
                self.rest = now;
                None
            }
        }
    }

    async fn pass(&mut self, regular: bool) {
        let begun = self.core.monitor.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let let_in = trees::let_in(&self.core);
        let subjects = trees::subjects(&self.core);
        let spaces = regular && self.passes.is_multiple_of(SPACE_EVERY);
        if !subjects.is_empty() || spaces || self.pressure.is_pressed() {
            let ask = self.ask(&subjects, regular, spaces);
            match self.machine.look(ask).await {
                Ok(look) => {
                    let total = self.trees.publish(&subjects, &look);
                    if regular {
                        if !subjects.is_empty() {
                            let rungs = self.rungs.get_or_init(|| self.machine.rungs());
                            self.trees.judge(&self.core, &subjects, rungs).await;
                        }
                        self.trees.forget_others(&subjects);
                        let free_soon = trees::on_their_way_out(&self.core, &subjects);
                        let coming = Coming { free_soon, seen: trees::seen(&let_in) };
                        self.pressure.judge(&self.core, &self.sessions, &total, &look, &coming).await;
                    }
                    self.show(&total, &look);
                }
                Err(error) => tracing::warn!(%error, "process trees cannot be measured"),
            }
        } else {
            let (nothing, look) = (trees::Total::default(), machine::Look::default());
            if regular {
                self.trees.forget_others(&[]);
                let coming = Coming { free_soon: 0, seen: trees::seen(&let_in) };
                self.pressure.judge(&self.core, &self.sessions, &nothing, &look, &coming).await;
            }
            self.show(&nothing, &look);
        }
        self.passes += u64::from(regular);
        self.core.monitor.done.send_replace(begun);
    }

    fn ask(&self, subjects: &[trees::Subject], regular: bool, spaces: bool) -> Ask {
        let trees = if subjects.is_empty() {
            Vec::new()
        } else {
            self.trees.ask(subjects, self.rungs.get_or_init(|| self.machine.rungs()))
        };
        let thorough = regular && self.passes.is_multiple_of(THOROUGH_EVERY);
        Ask {
            trees,
            pss_from: self.pressure.memory_warning_bytes(),
            thorough,
            memory: !subjects.is_empty() || self.pressure.is_pressed(),
            folders: if spaces { self.pressure.folders() } else { Vec::new() },
        }
    }

    fn show(&self, total: &trees::Total, look: &machine::Look) {
        let before = self.core.monitor.overview();
        self.core.monitor.overview.store(Arc::new(Overview {
            at_ms: now_ms(),
            trees: total.trees,
            processes: total.processes,
            threads: total.threads,
            memory_bytes: total.memory_bytes,
            cpu_percent: total.cpu_percent,
            gauges: self.pressure.show(&self.core, total),
            machine: look.memory.or(before.machine),
            stall: look.stall.or(before.stall),
        }));
    }
}
