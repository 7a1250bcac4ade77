//! The guard's side: the leaves of one tree, from before its first process to after its last.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::home::{self, Plan};
use super::{keyed, number, read, write};
use crate::limits::{LimitHit, LimitKind, Limits};

/// A period of cpu limits, in microseconds: the kernel's own default.
const CPU_PERIOD_US: u64 = 100_000;

/// The least time in a period that the kernel takes for a limit, in microseconds.
const MIN_QUOTA_US: u64 = 1_000;

/// Tries to make a leaf whose home another guard removes at the same moment, because its tree was the last.
const MAKE_TRIES: u32 = 16;

/// The cgroups of one tree.
#[derive(Debug)]
pub(crate) struct Leaf {
    plan: Plan,
    limits: Limits,
    /// The leaf of version 2.
    v2: Option<PathBuf>,
    /// The leaves of version 1, each directory once.
    v1: Vec<PathBuf>,
    /// `memory.max`, whose hits are counted, is in which directory.
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
    /// `cgroup.kill`, open: killing must not need memory or descriptors.
    kill: Option<OwnedFd>,
    /// Files that tell when a limit is hit, with what they are about.
    watched: Vec<(LimitKind, OwnedFd)>,
    told: Told,
}

/// What was told of one resource.
#[derive(Default, Debug)]
struct Told {
    /// Processes killed for memory, and how often that was told.
    memory: (u64, usize),
    /// Forks refused, and how often that was told.
    pids: (u64, usize),
}

/// How often a limit of one kind is told while the server runs. A fork bomb hits its limit without end.
const LIVE_HITS: usize = 2;

/// How often limits are told of one tree at most: two kinds, while it runs, when its leader ends, when all have.
pub(crate) const MAX_HITS: usize = 2 * (LIVE_HITS + 2);

/// How many files are watched at most.
pub(crate) const MAX_WATCHED: usize = 2;

/// How a child comes into its leaves.
pub(crate) struct Entry {
    /// Of version 2: the directory, for clone3, and its list of processes, for kernels without that.
    pub(crate) v2: Option<(OwnedFd, OwnedFd)>,
    /// Of version 1: the lists of threads. A thread that moves itself there needs no lock of the whole machine.
    pub(crate) v1: Vec<OwnedFd>,
}

impl Leaf {
    /// Makes the leaves with their limits, empty. On failure none is left.
    ///
    /// # Errors
    /// When a limit that was asked for, and that the plan says can be set, cannot. What is only of use for killing
    /// is left out instead.
    pub(crate) fn make(plan: &Plan, mark: &str, limits: Limits) -> io::Result<Self> {
        let mut leaf = Self {
            plan: plan.clone(),
            limits,
            v2: None,
            v1: Vec::new(),
            memory: None,
            pids: None,
            kill: None,
            watched: Vec::new(),
            told: Told::default(),
        };
        match leaf.fill(mark) {
            Ok(()) => Ok(leaf),
            Err(error) => {
                // Its own failure would only hide the first.
                let _ = leaf.remove();
                Err(error)
            }
        }
    }

    fn fill(&mut self, mark: &str) -> io::Result<()> {
        let limited = self.limits.memory.is_some() || self.limits.pids.is_some() || self.limits.cpu.is_some();
        let v2 = self.plan.v2.clone();
        if let Some((own, controllers)) = &v2
            && let Err(error) = self.fill_v2(own, controllers, mark)
            && limited
            && !controllers.is_empty()
        {
            return Err(error);
        }
        let v1 = [
            (self.plan.memory.clone(), self.limits.memory.is_some(), LimitKind::Memory),
            (self.plan.pids.clone(), self.limits.pids.is_some(), LimitKind::Pids),
            (self.plan.cpu.clone(), self.limits.cpu.is_some(), LimitKind::Cpu),
        ];
        for (own, wanted, kind) in v1 {
            if let Some(own) = own.filter(|_| wanted) {
                self.fill_v1(&own, mark, kind)?;
            }
        }
        // Version 1 tells nobody: for memory it has no file to watch, for pids it notifies a file that is not there.
        // The daemon's measuring sees those while they happen (`limits::readings`).
        for (kind, leaf, file) in
            [(LimitKind::Memory, &self.memory, "memory.events"), (LimitKind::Pids, &self.pids, "pids.events")]
        {
            if let Some(leaf) = leaf.as_ref().filter(|leaf| self.v2.as_ref() == Some(leaf)) {
                self.watched.push((kind, watch(&leaf.join(file))?));
            }
        }
        Ok(())
    }

    fn fill_v2(&mut self, own: &Path, controllers: &[String], mark: &str) -> io::Result<()> {
        let home = own.join(&self.plan.home);
        let leaf = make_leaf(&home, mark)?;
        self.v2 = Some(leaf.clone());
        // The home may be a new one: the last tree takes it away, the next makes it again.
        for controller in controllers {
            named(&home, home::hand_out(&home, controller))?;
        }
        // Since Linux 5.14; without it the rounds of signals have to do.
        let kill = openat(CWD, leaf.join("cgroup.kill"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        self.kill = kill.ok();
        let has = |controller: &str| controllers.iter().any(|one| one == controller);
        if has("memory") {
            // Watched without a limit as well: the machine's own shortage kills here, too.
            self.memory = Some(leaf.clone());
            if let Some(bytes) = self.limits.memory {
                set(&leaf, "memory.max", &bytes.to_string())?;
                // Absent where there is no swap. With swap, a limit of memory would only move the hog there.
                set_if_there(&leaf, "memory.swap.max", "0")?;
                // A server that lost one of its processes is of no use to anybody. Since Linux 4.19.
                set_if_there(&leaf, "memory.oom.group", "1")?;
            }
        }
        if has("pids")
            && let Some(pids) = self.limits.pids
        {
            set(&leaf, "pids.max", &pids.to_string())?;
            self.pids = Some(leaf.clone());
        }
        if has("cpu") {
            if let Some(cores) = self.limits.cpu {
                set(&leaf, "cpu.max", &format!("{} {CPU_PERIOD_US}", quota_us(cores)))?;
            }
            if let Some(nice) = self.limits.nice {
                // Beside other leaves that of a process counts for nothing. Since Linux 4.15.
                set_if_there(&leaf, "cpu.weight.nice", &nice.to_string())?;
            }
        }
        Ok(())
    }

    fn fill_v1(&mut self, own: &Path, mark: &str, kind: LimitKind) -> io::Result<()> {
        let leaf = make_leaf(&own.join(&self.plan.home), mark)?;
        if !self.v1.contains(&leaf) {
            self.v1.push(leaf.clone());
        }
        match kind {
            LimitKind::Memory => {
                let bytes = self.limits.memory.unwrap_or(u64::MAX).to_string();
                set(&leaf, "memory.limit_in_bytes", &bytes)?;
                // Memory and swap together; absent where swap is not accounted for.
                set_if_there(&leaf, "memory.memsw.limit_in_bytes", &bytes)?;
                self.memory = Some(leaf);
            }
            LimitKind::Pids => {
                set(&leaf, "pids.max", &self.limits.pids.unwrap_or(u32::MAX).to_string())?;
                self.pids = Some(leaf);
            }
            LimitKind::Cpu => {
                set(&leaf, "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
                set(&leaf, "cpu.cfs_quota_us", &quota_us(self.limits.cpu.unwrap_or(1.0)).to_string())?;
            }
            LimitKind::OpenFiles => {}
        }
        Ok(())
    }

    /// The ways in, open.
    ///
    /// # Errors
    /// When they cannot be opened.
    pub(crate) fn entry(&self) -> io::Result<Entry> {
        let list = OFlags::WRONLY | OFlags::CLOEXEC;
        let open =
            |path: &Path, flags| named(path, openat(CWD, path, flags, Mode::empty()).map_err(Into::into));
        let v2 = self.v2.as_ref().map(|leaf| {
            let directory = open(leaf, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)?;
            io::Result::Ok((directory, open(&leaf.join("cgroup.procs"), list)?))
        });
        let v1 = self.v1.iter().map(|leaf| open(&leaf.join("tasks"), list));
        Ok(Entry { v2: v2.transpose()?, v1: v1.collect::<io::Result<_>>()? })
    }

    /// Descriptors whose exceptional readiness means that a limit may have been hit: for poll(2). None is left when
    /// all that will be told of a running server has been told.
    pub(crate) fn watched(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.watched.iter().map(|(_, fd)| fd.as_fd())
    }

    /// The limits hit since it was last asked, and quiet again for [`Self::watched`]. With `last`, because the leader
    /// or the tree has ended, however often that was told before.
    pub(crate) fn hits(&mut self, last: bool) -> Vec<LimitHit> {
        for (_, file) in &self.watched {
            // Reading is what makes the kernel tell again.
            let mut buffer = [0_u8; 512];
            let _ = rustix::io::pread(file, &mut buffer, 0);
        }
        let mut hits = Vec::new();
        if let Some(memory) = &self.memory {
            let hit = memory_hit(memory, self.limits.memory, self.v2.as_ref() == Some(memory));
            hits.extend(is_news(&mut self.told.memory, hit.times, last).then_some(hit));
        }
        if let Some(pids) = &self.pids {
            let times =
                read(&pids.join("pids.events")).ok().and_then(|text| keyed(&text, "max")).unwrap_or(0);
            let allowed = self.limits.pids.map(u64::from);
            let hit =
                LimitHit { limit: LimitKind::Pids, allowed, reached: allowed, times, from_above: false };
            hits.extend(is_news(&mut self.told.pids, times, last).then_some(hit));
        }
        let (memory, pids) = (self.told.memory.1, self.told.pids.1);
        self.watched.retain(|(kind, _)| LIVE_HITS > if *kind == LimitKind::Memory { memory } else { pids });
        hits
    }

    /// Kills everything in the leaf of version 2 at once. No fork, no memory, no new descriptor.
    pub(crate) fn kill(&self) {
        if let Some(kill) = &self.kill {
            // The rounds of signals come after it in any case.
            let _ = rustix::io::write(kill, b"1");
        }
    }

    /// Removes the leaves of an empty tree, and the home with the last of them.
    ///
    /// # Errors
    /// When somebody else was moved there.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let mut result = Ok(());
        for directory in self.v2.iter().chain(&self.v1) {
            let removed = named(directory, home::remove_patiently(directory));
            result = result.and(removed);
        }
        home::remove_home(&self.plan);
        result
    }
}

/// Whether a count is to be told, and then notes that it was.
fn is_news((count, tellings): &mut (u64, usize), now: u64, last: bool) -> bool {
    if now <= *count || (*tellings >= LIVE_HITS && !last) {
        return false;
    }
    (*count, *tellings) = (now, *tellings + 1);
    true
}

/// What the kernel says of memory: how many it killed, and whether that was for this leaf's own limit.
fn memory_hit(leaf: &Path, allowed: Option<u64>, v2: bool) -> LimitHit {
    let (events, peak) = if v2 {
        ("memory.events", "memory.peak")
    } else {
        ("memory.oom_control", "memory.max_usage_in_bytes")
    };
    let times = read(&leaf.join(events)).ok().and_then(|text| keyed(&text, "oom_kill"));
    LimitHit {
        limit: LimitKind::Memory,
        allowed,
        reached: number(&leaf.join(peak)),
        times: times.unwrap_or(0),
        from_above: memory_refused(leaf, v2) == Some(0),
    }
}

/// How often an allocation ran into this leaf's own limit, in version 1 just whether; a shortage of the machine or of
/// a cgroup above is not counted here.
pub(crate) fn memory_refused(leaf: &Path, v2: bool) -> Option<u64> {
    if v2 {
        return keyed(&read(&leaf.join("memory.events")).ok()?, "oom");
    }
    // Newer kernels have stopped counting in `memory.failcnt` (6.18 shows 0 whatever happens), so the peak has to
    // tell: nothing is killed for a limit before the memory is used up to it.
    let peak = number(&leaf.join("memory.max_usage_in_bytes"))?;
    let limit = number(&leaf.join("memory.limit_in_bytes"))?;
    Some(u64::from(peak.saturating_add(V1_PEAK_MARGIN) >= limit))
}

/// The largest single piece that the kernel may want when it finds the limit in the way, generously: below it by
/// less than this counts as having reached it.
const V1_PEAK_MARGIN: u64 = 1 << 20;

fn make_leaf(home: &Path, mark: &str) -> io::Result<PathBuf> {
    let leaf = home.join(mark);
    let mut tries = 0;
    loop {
        match home::make(home).and_then(|()| home::make(&leaf)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < MAKE_TRIES => tries += 1,
            other => return named(&leaf, other).map(|()| leaf),
        }
    }
}

fn set(leaf: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = leaf.join(file);
    write(&path, value).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot write {value} to `{}`: {error}", path.display()))
    })
}

fn set_if_there(leaf: &Path, file: &str, value: &str) -> io::Result<()> {
    match set(leaf, file, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn named<T>(path: &Path, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("`{}`: {error}", path.display())))
}

/// Microseconds in a period.
fn quota_us(cores: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` saturates, which is meant"
    )]
    let quota = (cores * CPU_PERIOD_US as f64).round() as u64;
    quota.max(MIN_QUOTA_US)
}

/// A file that poll(2) watches: the kernel tells of changes after the last read only.
fn watch(path: &Path) -> io::Result<OwnedFd> {
    let file = named(path, File::open(path))?;
    let mut buffer = [0_u8; 512];
    named(path, rustix::io::pread(&file, &mut buffer, 0).map_err(Into::into))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_hit_without_end_is_told_a_bounded_number_of_times() {
        let mut told = (0, 0);
        assert!(!is_news(&mut told, 0, true), "nothing happened");
        let live = (1..100).filter(|&count| is_news(&mut told, count, false)).count();
        assert_eq!(live, LIVE_HITS);
        assert!(is_news(&mut told, 100, true), "the last word is said");
        assert!(!is_news(&mut told, 100, true), "once");
    }

    #[test]
    fn cores_become_a_quota() {
        assert_eq!(quota_us(1.5), 150_000);
        assert_eq!(quota_us(0.0), MIN_QUOTA_US);
        assert_eq!(quota_us(-1.0), MIN_QUOTA_US);
        assert_eq!(quota_us(f64::NAN), MIN_QUOTA_US);
    }
}
