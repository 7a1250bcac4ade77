//! Each instance: what it uses, and what is done when that is more than it may use itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ostler_domain::alert::AlertKind;
use ostler_domain::event::Severity;
use ostler_domain::instance::Now;
use ostler_domain::pressure::{OwnLimits, OwnSample, OwnUse, Verdict};
use ostler_domain::{Generation, InstanceId, ResourceLimits, State};
use ostler_os::meter::TreeUsage;
use ostler_os::{LimitHit, LimitKind, Limits, Readings, Rung, Rungs};

use super::machine::{AskTree, Look};
use super::{Fds, Pss, Reading};
use crate::admission::{BY_HAND, Seen};
use crate::clock::now_ms;
use crate::core::Core;
use crate::instance::driver::Inbox;
use crate::instance::{GuardedTree, InstanceHandle};
use crate::server::Server;

/// A limit that is hit all the time is told again after this.
const TELL_AGAIN: Duration = Duration::from_secs(300);

/// The part of the time between two passes in which an instance must have been held back by its cpu limit before
/// that is worth telling: the limit is there to be used.
const HELD_BACK: f64 = 0.5;

/// Milliseconds of a period of cpu limits, in which an instance is held back at most once.
const PERIOD_MS: f64 = 100.0;

/// What the monitor has to tell an instance's driver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// It uses so much memory that it is not well, for this reason, or no longer.
    High(Option<String>),
    /// It was held back, or refused something, by a limit of its own.
    Hit(String),
    /// It is over a limit that nothing else holds it to, and is to be ended: at once, or after its calls.
    Over { what: String, at_once: bool },
}

/// An instance that has processes.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) server: Arc<Server>,
    pub(super) handle: Arc<InstanceHandle>,
    pub(super) tree: GuardedTree,
    pub(super) generation: Generation,
    /// It is on its way up, and has yet to grow to its size.
    pub(super) starting: bool,
    /// It is on its way out, and what it uses will be free soon.
    pub(super) stopping: bool,
}

impl Subject {
    /// Whether it is on its way up or out.
    pub(super) fn is_changing(&self) -> bool {
        self.starting || self.stopping
    }

    /// Whether it has limits of its own, which it may come to.
    pub(super) fn is_limited(&self) -> bool {
        let limits = &self.server.spec.limits;
        limits.memory.is_some()
            || limits.pids.is_some()
            || limits.cpu.is_some()
            || limits.open_files.is_some()
    }
}

/// All instances that have processes, in the order of the table.
pub(super) fn subjects(core: &Core) -> Vec<Subject> {
    let table = core.registry.table();
    let subjects = table.all().iter().flat_map(|server| {
        server.instances().into_iter().filter_map(|handle| {
            let snapshot = handle.snapshot();
            let (tree, generation) = (snapshot.tree?, snapshot.generation);
            let starting = matches!(snapshot.state, State::Starting { .. });
            let stopping = matches!(snapshot.state, State::Stopping { .. });
            Some(Subject { server: Arc::clone(server), handle, tree, generation, starting, stopping })
        })
    });
    subjects.collect()
}

/// All instances that hold a place, and whether each is past its start, as far as it has begun one.
pub(super) fn let_in(core: &Core) -> Vec<(Arc<InstanceHandle>, bool)> {
    let table = core.registry.table();
    let handles = table.all().iter().flat_map(|server| server.instances());
    let far = handles.filter_map(|handle| {
        let snapshot = handle.snapshot();
        let starting = matches!(snapshot.state, State::Starting { .. });
        (!snapshot.is_new()).then_some((handle, !starting))
    });
    far.collect()
}

/// What is free soon, in bytes: of those that are being stopped. One that SIGKILL did not end may stay for ever.
pub(super) fn on_their_way_out(core: &Core, subjects: &[Subject]) -> u64 {
    let survivors = core.cleanup.survivors();
    let stopping =
        subjects.iter().filter(|subject| subject.stopping && !survivors.contains(&subject.handle.id));
    stopping.filter_map(Subject::reading).map(|reading| reading.memory_bytes()).sum()
}

/// What has become of those, by the numbers of their places, now that they were measured.
pub(super) fn seen(let_in: &[(Arc<InstanceHandle>, bool)]) -> Vec<(u64, Seen)> {
    let seen = let_in.iter().map(|(handle, settled)| {
        let bytes = || handle.reading().map_or(0, |reading| reading.memory_bytes());
        (handle.place, if *settled { Seen::Settled } else { Seen::Starting(bytes()) })
    });
    seen.collect()
}

/// What all of them used together.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Total {
    pub(super) trees: u32,
    pub(super) processes: u32,
    pub(super) threads: u32,
    pub(super) memory_bytes: u64,
    pub(super) cpu_percent: f64,
    /// Memory in bytes of all of a type that have started, and how many there are.
    pub(super) by_type: BTreeMap<String, (u64, u64)>,
}

/// What is remembered of one process tree between passes.
#[derive(Debug, Default)]
struct Watched {
    generation: Generation,
    own: OwnUse,
    /// Why it is not well, while it uses too much memory.
    high: Option<String>,
    /// The limit that it was at between the last two passes.
    hit: Option<String>,
    before: Option<Readings>,
    /// When the counters were read last, in milliseconds of [`now_ms`].
    at_ms: u64,
    /// When each kind of hit was last told, likewise.
    told: BTreeMap<&'static str, u64>,
}

/// What is remembered of all of them.
#[derive(Debug, Default)]
pub(super) struct Trees(BTreeMap<InstanceId, Watched>);

impl Trees {
    /// What is to be measured of them.
    pub(super) fn ask(&self, subjects: &[Subject], rungs: &Rungs) -> Vec<AskTree> {
        let ask = |subject: &Subject| {
            let limits = &subject.server.spec.limits;
            let own = own_limits(limits, rungs);
            let reading = subject.reading();
            AskTree {
                root: subject.tree.root,
                mark: subject.tree.mark,
                counted: is_counted(limits, rungs),
                fds_at: reading.as_ref().and_then(|reading| Some(reading.fds?.at_cpu_ms)),
                pss_at: reading.as_ref().and_then(|reading| Some(reading.pss?.at_cpu_ms)),
                pss_from: own.memory.map_or(own.memory_warning, |limit| limit.min(own.memory_warning)),
            }
        };
        subjects.iter().map(ask).collect()
    }

    /// Shows each instance what it uses; gives what they use together.
    pub(super) fn publish(&self, subjects: &[Subject], look: &Look) -> Total {
        let mut total = Total::default();
        for (subject, (usage, kernel)) in subjects.iter().zip(&look.trees) {
            let reading = reading(subject, usage, *kernel);
            total.trees += 1;
            total.processes += reading.processes;
            total.threads += reading.threads;
            total.cpu_percent += reading.cpu_percent;
            let memory = reading.memory_bytes();
            total.memory_bytes += memory;
            if !subject.starting {
                let server = &subject.server;
                let name = if server.is_by_hand() { BY_HAND } else { &server.spec.type_name };
                let of_type = total.by_type.entry(name.to_owned()).or_default();
                *of_type = (of_type.0 + memory, of_type.1 + 1);
            }
            subject.handle.set_reading(reading);
            if let Some(pool) = subject.server.pool() {
                pool.measured(&subject.handle.id, memory);
            }
        }
        total
    }

    /// Acts on what each uses.
    pub(super) async fn judge(&mut self, core: &Core, subjects: &[Subject], rungs: &Rungs) {
        for subject in subjects.iter().filter(|subject| !subject.stopping) {
            let Some(reading) = subject.reading() else { continue };
            for found in self.findings(subject, &reading, rungs) {
                subject.handle.wish(Inbox::Measured(subject.generation, found)).await;
            }
            self.alert(core, &subject.handle.id);
        }
    }

    /// Says that it uses much, or is at a limit, as long as that is so. Events of the latter its driver tells. That it
    /// is over nobody says: the same alert may be about a kill.
    fn alert(&self, core: &Core, id: &InstanceId) {
        let Some(watched) = self.0.get(id) else { return };
        if let Some(what) = watched.hit.as_deref().or(watched.high.as_deref()) {
            core.alerts.raise(AlertKind::ResourceViolation, &id.to_string(), Severity::Warning, what);
        }
    }

    /// Forgets those that are gone.
    pub(super) fn forget_others(&mut self, subjects: &[Subject]) {
        let there: BTreeSet<&InstanceId> = subjects.iter().map(|subject| &subject.handle.id).collect();
        self.0.retain(|id, _| there.contains(id));
    }

    fn findings(&mut self, subject: &Subject, reading: &Reading, rungs: &Rungs) -> Vec<Found> {
        let watched = self.0.entry(subject.handle.id.clone()).or_default();
        if watched.generation != subject.generation {
            *watched = Watched { generation: subject.generation, ..Watched::default() };
        }
        let limits = &subject.server.spec.limits;
        let sample = OwnSample {
            at: Now(Duration::from_millis(reading.at_ms)),
            memory: reading.memory_bytes(),
            // The kernel's limit of processes counts threads, too.
            pids: reading.threads,
            cpu_ms: reading.cpu_ms,
        };
        let verdicts = watched.own.measure(&own_limits(limits, rungs), &sample);
        let mut found: Vec<Found> = watched.hits(reading, limits).into_iter().map(Found::Hit).collect();
        found.extend(verdicts.into_iter().map(|verdict| match verdict {
            Verdict::High(reason) => {
                watched.high.clone_from(&reason);
                Found::High(reason)
            }
            Verdict::Over(over) => Found::Over { what: over.to_string(), at_once: over.is_urgent() },
        }));
        found
    }
}

impl Watched {
    /// The limits that the kernel has enforced since the last pass, as far as that is to be told now.
    fn hits(&mut self, reading: &Reading, limits: &ResourceLimits) -> Vec<String> {
        let allowed = Limits {
            memory: limits.memory,
            cpu: limits.cpu,
            pids: limits.pids,
            open_files: limits.open_files.map(u64::from),
            nice: None,
        };
        let before = self.before.replace(reading.kernel).unwrap_or_default();
        let since = reading.at_ms.saturating_sub(std::mem::replace(&mut self.at_ms, reading.at_ms));
        let mut hits = reading.kernel.hits_since(&before, &allowed);
        let periods = reading.kernel.throttled_periods.unwrap_or(0)
            - before.throttled_periods.unwrap_or(0).min(reading.kernel.throttled_periods.unwrap_or(0));
        let steadily = periods as f64 * PERIOD_MS >= since as f64 * HELD_BACK;
        // Of memory the guard tells, who knows whether it was the leader that was killed.
        hits.retain(|hit| hit.limit != LimitKind::Memory && (hit.limit != LimitKind::Cpu || steadily));
        hits.extend(out_of_files(reading, &allowed));
        self.hit = hits.first().map(ToString::to_string);
        let now = reading.at_ms;
        let again = u64::try_from(TELL_AGAIN.as_millis()).unwrap_or(u64::MAX);
        let is_news = |hit: &&LimitHit| {
            let told = self.told.get(name(hit.limit)).copied();
            told.is_none_or(|at| now.saturating_sub(at) >= again)
        };
        let news: Vec<LimitHit> = hits.iter().filter(is_news).copied().collect();
        self.told.extend(news.iter().map(|hit| (name(hit.limit), now)));
        news.iter().map(ToString::to_string).collect()
    }
}

fn name(limit: LimitKind) -> &'static str {
    match limit {
        LimitKind::Memory => "memory",
        LimitKind::Pids => "pids",
        LimitKind::OpenFiles => "open_files",
        LimitKind::Cpu => "cpu",
    }
}

/// One of its processes has as many files open as it may have.
fn out_of_files(reading: &Reading, limits: &Limits) -> Option<LimitHit> {
    let allowed = limits.open_files?;
    let reached = reading.fds?.of_one;
    let hit = LimitHit {
        limit: LimitKind::OpenFiles,
        allowed: Some(allowed),
        reached: Some(reached),
        times: 1,
        from_above: false,
    };
    (reached >= allowed).then_some(hit)
}

impl Subject {
    /// What its present process used when it was last measured.
    fn reading(&self) -> Option<Arc<Reading>> {
        self.handle.reading().filter(|reading| reading.generation == self.generation)
    }
}

/// Which limits measuring has to hold it to.
fn own_limits(limits: &ResourceLimits, rungs: &Rungs) -> OwnLimits {
    let sampled = |rung| rung == Rung::Sampled;
    OwnLimits {
        memory_warning: limits.memory_warning,
        memory: limits.memory.filter(|_| sampled(rungs.memory)),
        pids: limits.pids.filter(|_| sampled(rungs.pids)),
        cpu: limits.cpu.filter(|_| sampled(rungs.cpu)),
    }
}

/// Whether the kernel holds it to a limit.
fn is_counted(limits: &ResourceLimits, rungs: &Rungs) -> bool {
    (limits.memory.is_some() && rungs.memory != Rung::Sampled)
        || (limits.pids.is_some() && rungs.pids != Rung::Sampled)
        || (limits.cpu.is_some() && rungs.cpu != Rung::Sampled)
}

/// What is shown of one measurement. What was not read this time is as it was.
fn reading(subject: &Subject, usage: &TreeUsage, kernel: Readings) -> Reading {
    let before = subject.reading();
    let pss = usage.pss_bytes.map(|bytes| Pss { bytes, of_rss: usage.rss_bytes, at_cpu_ms: usage.cpu_ms });
    let counted = usage.fds.zip(usage.fds_of_one);
    let fds = counted.map(|(all, of_one)| Fds { all, of_one, at_cpu_ms: usage.cpu_ms });
    Reading {
        generation: subject.generation,
        at_ms: now_ms(),
        processes: usage.processes,
        threads: usage.threads,
        cpu_percent: (usage.cpu_percent * 10.0).round() / 10.0,
        cpu_ms: usage.cpu_ms,
        rss_bytes: usage.rss_bytes,
        pss: pss.or_else(|| before.as_ref()?.pss),
        fds: fds.or_else(|| before.as_ref()?.fds),
        guard_rss_bytes: usage.guard_rss_bytes,
        kernel,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> ResourceLimits {
        ResourceLimits { cpu: Some(0.5), pids: Some(9), open_files: Some(64), ..ResourceLimits::default() }
    }

    fn at(ms: u64, kernel: Readings, of_one: u64) -> Reading {
        let fds = Some(Fds { all: of_one, of_one, at_cpu_ms: 0 });
        Reading { at_ms: ms, kernel, fds, ..Reading::default() }
    }

    #[test]
    fn a_limit_that_is_hit_all_the_time_is_told_now_and_then() {
        let mut watched = Watched::default();
        let refused = |count| Readings { pids_refused: Some(count), ..Readings::default() };
        assert_eq!(watched.hits(&at(0, refused(0), 1), &limits()), [""; 0]);
        let told: usize =
            (1..=120).map(|n| watched.hits(&at(n * 5000, refused(n), 1), &limits()).len()).sum();
        assert_eq!(told, 2, "in ten minutes");
    }

    #[tokio::test(start_paused = true)]
    async fn an_alert_stays_while_a_limit_is_hit_and_is_not_over_with_the_memory_of_the_next_process() {
        let supervisor = super::super::tests::supervisor().await;
        let core = &supervisor.core;
        let id = InstanceId { server: "hog".parse().expect("a name"), number: 1 };
        let mut trees = Trees::default();
        let refused = |count| Readings { pids_refused: Some(count), ..Readings::default() };
        let interval = core.config().metrics.interval;
        for n in 0..200 {
            let watched = trees.0.entry(id.clone()).or_default();
            watched.hits(&at(now_ms(), refused(n), 1), &limits());
            trees.alert(core, &id);
            tokio::time::sleep(interval).await;
        }
        let told = |kind: &str| super::super::tests::told(&supervisor, kind).len();
        assert_eq!((told("alert-raised"), told("alert-resolved")), (1, 0), "in a quarter of an hour");

        // Its memory is back to normal: that it was at a limit is not over with that.
        trees.0.insert(id.clone(), Watched { high: Some("much".to_owned()), ..Watched::default() });
        trees.alert(core, &id);
        trees.0.insert(id.clone(), Watched::default());
        trees.alert(core, &id);
        assert_eq!((supervisor.alerts().count(), told("alert-resolved")), (1, 0));
        tokio::time::sleep(core.config().alerts.repeat * 2).await;
        assert_eq!(told("alert-resolved"), 1);
    }

    #[test]
    fn being_held_back_now_and_then_is_what_a_cpu_limit_is_for() {
        let mut watched = Watched::default();
        let throttled = |count| Readings { throttled_periods: Some(count), ..Readings::default() };
        let mut hits = |ms, count| watched.hits(&at(ms, throttled(count), 1), &limits());
        assert_eq!(hits(0, 0), [""; 0]);
        assert_eq!(hits(5000, 24), [""; 0], "in less than half of the fifty periods");
        assert_eq!(hits(10_000, 50), ["held back by its cpu limit of 0.5 cores in 50 periods"]);
    }

    #[test]
    fn a_process_that_has_all_its_files_open_is_named() {
        let mut watched = Watched::default();
        assert_eq!(watched.hits(&at(0, Readings::default(), 63), &limits()), [""; 0]);
        let hits = watched.hits(&at(1, Readings::default(), 64), &limits());
        assert_eq!(hits, ["out of open files: limit 64 a process, 64 open"]);
    }

    #[test]
    fn measuring_holds_what_nothing_else_does() {
        let mut rungs = ostler_os::limits::rungs();
        (rungs.memory, rungs.cpu, rungs.pids) = (Rung::CgroupV1, Rung::Sampled, Rung::CgroupV2);
        let limits = ResourceLimits { memory: Some(1), ..limits() };
        let own = own_limits(&limits, &rungs);
        assert_eq!((own.memory, own.pids, own.cpu), (None, None, Some(0.5)));
        assert!(is_counted(&limits, &rungs));
        assert!(!is_counted(&ResourceLimits { memory: None, pids: None, ..limits }, &rungs));
    }
}
