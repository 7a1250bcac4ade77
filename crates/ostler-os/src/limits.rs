//! What a tree may use, which means of the kernel hold it to that, and what it is called when it hits a limit.
//!
//! | resource   | best                          | next                               | else                            |
//! |------------|-------------------------------|------------------------------------|---------------------------------|
//! | memory     | v2 `memory.max`               | v1 `memory.limit_in_bytes`         | sampled: the daemon measures    |
//! | cpu        | v2 `cpu.max`                  | v1 `cpu.cfs_quota_us`              | sampled                         |
//! | pids       | v2 `pids.max`                 | v1 `pids.max`                      | sampled                         |
//! | open files | `RLIMIT_NOFILE`, each process |                                    |                                 |
//! | nice       | `setpriority`, each process   |                                    |                                 |
//!
//! Niceness of processes counts within their session or their cgroup only, where the kernel shares out processors by those
//! (`sched(7)`): the tree's session (autogroup) and its v2 cgroup (`cpu.weight.nice`) are given the same.
//!
//! Not used: `RLIMIT_NPROC`, because it counts all processes of the *user*, the daemon's and the neighbours' among
//! them, and does not hold for root at all (setrlimit(2)); and `RLIMIT_AS`, because runtimes such as Node reserve
//! address space that they never use, by the hundred gigabytes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cgroup::{self, home};
use crate::mark::Mark;

/// What one tree may use. The default is no limit at all.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Memory of the whole tree, in bytes, page cache included that cannot be given back. Swap counts.
    pub memory: Option<u64>,
    /// Processor time of the whole tree, in cores: 0.5 is half of one.
    pub cpu: Option<f64>,
    /// Processes and threads of the whole tree.
    pub pids: Option<u32>,
    /// Open files of each process. Never above the hard limit that the daemon was started with, unless it is root.
    pub open_files: Option<u64>,
    /// Niceness, -20 to 19, of each process and of the tree beside others. Below the daemon's own it needs a privilege (`CAP_SYS_NICE`), and without that the
    /// server does not start.
    pub nice: Option<i32>,
}

/// The niceness of this process.
pub fn own_nice() -> i32 {
    // It cannot fail for the process that asks (getpriority(2)).
    rustix::process::getpriority_process(None).unwrap_or_default()
}

/// A resource that can be limited.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitKind {
    /// Memory, in bytes.
    Memory,
    /// Processes and threads.
    Pids,
    /// Open files of one process.
    OpenFiles,
    /// Processor time, in thousandths of a core.
    Cpu,
}

/// A limit was hit. `Display` says it for a person, with the figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LimitHit {
    /// Which.
    pub limit: LimitKind,
    /// What was allowed, in the unit of the kind; `None` when nothing was set and the machine ran out.
    pub allowed: Option<u64>,
    /// The most that was used, in the same unit, where the kernel says it.
    pub reached: Option<u64>,
    /// How often since the tree was started: processes killed, forks refused, periods in which it was held back.
    pub times: u64,
    /// Memory only: it was not the tree's own limit, but the machine's memory or a cgroup's above it.
    pub from_above: bool,
}

impl fmt::Display for LimitHit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { allowed, reached, times, .. } = *self;
        match self.limit {
            LimitKind::Memory => {
                f.write_str("killed for memory")?;
                if self.from_above {
                    f.write_str(" because the machine, or a cgroup above, ran out of it")?;
                }
                let mut mark = ": ";
                for (word, bytes) in [("limit", allowed), ("peak", reached)] {
                    if let Some(bytes) = bytes {
                        write!(f, "{mark}{word} {}", Bytes(bytes))?;
                        mark = ", ";
                    }
                }
                Ok(())
            }
            LimitKind::Pids => {
                write!(f, "kept from starting processes {times} times: limit {}", Or(allowed, "not known"))
            }
            LimitKind::OpenFiles => write!(
                f,
                "out of open files: limit {} a process, {} open",
                Or(allowed, "not known"),
                Or(reached, "all")
            ),
            LimitKind::Cpu => {
                let cores =
                    f64::from(u32::try_from(allowed.unwrap_or_default()).unwrap_or(u32::MAX)) / 1000.0;
                write!(f, "held back by its cpu limit of {cores} cores in {times} periods")
            }
        }
    }
}

/// A number, or a word when it is not known.
struct Or(Option<u64>, &'static str);

impl fmt::Display for Or {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => write!(f, "{number}"),
            None => f.write_str(self.1),
        }
    }
}

/// Bytes in the largest unit of which there is at least one, with one decimal where that is not zero.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = match self.0 {
            0x4000_0000.. => ("GiB", 0x4000_0000),
            0x10_0000.. => ("MiB", 0x10_0000),
            _ => ("KiB", 0x400),
        };
        let (whole, tenths) = (self.0 / size, self.0 % size * 10 / size);
        if tenths == 0 { write!(f, "{whole} {unit}") } else { write!(f, "{whole}.{tenths} {unit}") }
    }
}

/// The means that hold a tree to a limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// A control group of version 2.
    CgroupV2,
    /// A control group of version 1.
    CgroupV1,
    /// A resource limit of each process.
    Rlimit,
    /// The scheduling priority.
    Priority,
    /// Nothing in the kernel: the daemon measures, and acts when it is too much.
    Sampled,
    /// The guard's rounds of signals.
    Signals,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CgroupV2 => "cgroup-v2",
            Self::CgroupV1 => "cgroup-v1",
            Self::Rlimit => "rlimit",
            Self::Priority => "priority",
            Self::Sampled => "sampled",
            Self::Signals => "signals",
        })
    }
}

/// The rung in force for each resource. `Display` has a line for each, and one for each note.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rungs {
    /// Memory.
    pub memory: Rung,
    /// Processor time.
    pub cpu: Rung,
    /// Processes.
    pub pids: Rung,
    /// Open files.
    pub open_files: Rung,
    /// Niceness.
    pub nice: Rung,
    /// The first shot of a kill: `CgroupV2` for `cgroup.kill`. The guard's rounds follow in any case.
    pub kill: Rung,
    /// Why it is not a better one, for a person.
    pub notes: Vec<String>,
}

impl Rungs {
    fn of(found: &home::Found) -> Self {
        let plan = &found.plan;
        let rung = |name, v1: bool| match (plan.v2_has(name), v1) {
            (true, _) => Rung::CgroupV2,
            (false, true) => Rung::CgroupV1,
            (false, false) => Rung::Sampled,
        };
        Self {
            memory: rung("memory", plan.memory.is_some()),
            cpu: rung("cpu", plan.cpu.is_some()),
            pids: rung("pids", plan.pids.is_some()),
            open_files: Rung::Rlimit,
            nice: Rung::Priority,
            kill: if plan.v2.is_some() { Rung::CgroupV2 } else { Rung::Signals },
            notes: found.notes.clone(),
        }
    }
}

impl fmt::Display for Rungs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sampled =
            |rung, otherwise| if rung == Rung::Sampled { "measured every few seconds" } else { otherwise };
        let lines = [
            ("memory", self.memory, sampled(self.memory, "the kernel kills within the tree at its limit")),
            ("cpu", self.cpu, sampled(self.cpu, "the kernel holds the tree back")),
            ("pids", self.pids, sampled(self.pids, "the kernel refuses further processes")),
            ("open_files", self.open_files, "each process is refused further files"),
            ("nice", self.nice, "inherited by all of the tree"),
        ];
        for (name, rung, what) in lines {
            writeln!(f, "{name:<10} {rung}: {what}")?;
        }
        let kill = if self.kill == Rung::CgroupV2 { "cgroup.kill first, then rounds" } else { "rounds" };
        write!(f, "{:<10} {}: {kill} until the kernel says that nobody is left", "kill", self.kill)?;
        self.notes.iter().try_for_each(|note| write!(f, "\n{:<10} {note}", ""))
    }
}

/// Finds what this machine lets this daemon use, once, and takes it: removes the cgroups of daemons that have ended
/// and, where cgroup v2 is delegated, moves this process into a cgroup of its own below the one it is in.
/// The first [`crate::Spawner`] does it too. Later calls only say what was found.
pub fn claim() -> Rungs {
    Rungs::of(home::claim())
}

/// What [`claim`] found; before it, what it would find. Changes nothing.
pub fn rungs() -> Rungs {
    home::claimed().map_or_else(|| Rungs::of(&home::look()), Rungs::of)
}

/// What the kernel counted for one tree. `None` where the rung in force does not count it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Readings {
    /// Memory charged to the tree now, in bytes, page cache included.
    pub memory_bytes: Option<u64>,
    /// The most it ever was.
    pub memory_peak_bytes: Option<u64>,
    /// Processes of the tree that the kernel killed for memory.
    pub oom_kills: Option<u64>,
    /// How often the tree's own limit of memory was in the way: 0 when it was killed for somebody else's shortage.
    pub memory_refused: Option<u64>,
    /// Processes and threads now.
    pub pids: Option<u64>,
    /// Forks refused.
    pub pids_refused: Option<u64>,
    /// Periods (of 100 ms) in which the tree was held back by its cpu limit.
    pub throttled_periods: Option<u64>,
    /// For how long, in milliseconds, summed over processors.
    pub throttled_ms: Option<u64>,
}

impl Readings {
    /// The limits hit between an earlier look and this one: for what the guard is not told of while it happens
    /// (cpu, and everything in version 1). Memory is told by the guard as well, when the leader ends.
    pub fn hits_since(&self, before: &Self, limits: &Limits) -> Vec<LimitHit> {
        let millicores = limits.cpu.map(|cores| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
            let whole = (cores * 1000.0).round() as u64;
            whole
        });
        let processes = limits.pids.map(u64::from);
        let counts = [
            (LimitKind::Memory, self.oom_kills, before.oom_kills, limits.memory, self.memory_peak_bytes),
            (LimitKind::Pids, self.pids_refused, before.pids_refused, processes, processes),
            (LimitKind::Cpu, self.throttled_periods, before.throttled_periods, millicores, millicores),
        ];
        let risen = counts.into_iter().filter_map(|(limit, now, before, allowed, reached)| {
            let times = now.filter(|&now| now > before.unwrap_or(0))?;
            let from_above = limit == LimitKind::Memory && self.memory_refused == Some(0);
            Some(LimitHit { limit, allowed, reached, times, from_above })
        });
        risen.collect()
    }
}

/// Reads the counters of a tree's cgroups: a handful of small files.
pub fn readings(mark: Mark) -> Readings {
    let Some(found) = home::claimed() else { return Readings::default() };
    let (plan, mark) = (&found.plan, mark.to_string());
    let mut readings = Readings::default();
    let leaf = |v1: &Option<std::path::PathBuf>, controller: &str| {
        let own =
            v1.clone().or_else(|| plan.v2.clone().filter(|_| plan.v2_has(controller)).map(|(own, _)| own))?;
        Some((own.join(&plan.home).join(&mark), v1.is_none()))
    };
    if let Some((leaf, v2)) = leaf(&plan.memory, "memory") {
        let (now, peak, events) = if v2 {
            ("memory.current", "memory.peak", "memory.events")
        } else {
            ("memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control")
        };
        readings.memory_bytes = cgroup::number(&leaf.join(now));
        readings.memory_peak_bytes = cgroup::number(&leaf.join(peak));
        readings.oom_kills =
            cgroup::read(&leaf.join(events)).ok().and_then(|text| cgroup::keyed(&text, "oom_kill"));
        readings.memory_refused = cgroup::leaf::memory_refused(&leaf, v2);
    }
    if let Some((leaf, _)) = leaf(&plan.pids, "pids") {
        readings.pids = cgroup::number(&leaf.join("pids.current"));
        readings.pids_refused =
            cgroup::read(&leaf.join("pids.events")).ok().and_then(|text| cgroup::keyed(&text, "max"));
    }
    if let Some((leaf, v2)) = leaf(&plan.cpu, "cpu") {
        let text = cgroup::read(&leaf.join("cpu.stat")).unwrap_or_default();
        readings.throttled_periods = cgroup::keyed(&text, "nr_throttled");
        readings.throttled_ms = if v2 {
            cgroup::keyed(&text, "throttled_usec").map(|us| us / 1000)
        } else {
            cgroup::keyed(&text, "throttled_time").map(|ns| ns / 1_000_000)
        };
    }
    readings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hit(limit: LimitKind) -> LimitHit {
        LimitHit { limit, allowed: Some(500 << 20), reached: Some(512 << 20), times: 1, from_above: false }
    }

    #[test]
    fn a_hit_is_said_with_its_figures() {
        assert_eq!(hit(LimitKind::Memory).to_string(), "killed for memory: limit 500 MiB, peak 512 MiB");
        let above = LimitHit { from_above: true, allowed: None, ..hit(LimitKind::Memory) };
        assert_eq!(
            above.to_string(),
            "killed for memory because the machine, or a cgroup above, ran out of it: peak 512 MiB"
        );
        let pids = LimitHit { allowed: Some(64), times: 3, ..hit(LimitKind::Pids) };
        assert_eq!(pids.to_string(), "kept from starting processes 3 times: limit 64");
        let files = LimitHit { allowed: Some(64), reached: None, ..hit(LimitKind::OpenFiles) };
        assert_eq!(files.to_string(), "out of open files: limit 64 a process, all open");
        let cpu = LimitHit { allowed: Some(1500), times: 9, ..hit(LimitKind::Cpu) };
        assert_eq!(cpu.to_string(), "held back by its cpu limit of 1.5 cores in 9 periods");
    }

    #[test]
    fn what_rose_between_two_looks_was_hit() {
        let limits = Limits { memory: Some(1 << 20), cpu: Some(0.5), pids: Some(9), ..Limits::default() };
        let before = Readings { oom_kills: Some(1), pids_refused: Some(4), ..Readings::default() };
        assert_eq!(before.hits_since(&before, &limits), []);
        let now = Readings { throttled_periods: Some(2), pids_refused: Some(7), ..before };
        let kinds: Vec<_> =
            now.hits_since(&before, &limits).iter().map(|hit| (hit.limit, hit.allowed, hit.times)).collect();
        assert_eq!(kinds, [(LimitKind::Pids, Some(9), 7), (LimitKind::Cpu, Some(500), 2)]);
        let killed = Readings { oom_kills: Some(2), memory_refused: Some(0), ..before };
        assert!(killed.hits_since(&before, &limits)[0].from_above);
        assert_eq!(Readings::default().hits_since(&before, &limits), [], "the tree is gone");
    }

    #[test]
    fn bytes_are_said_in_a_unit_of_their_size() {
        for (bytes, text) in [(0, "0 KiB"), (1536, "1.5 KiB"), (1 << 30, "1 GiB"), ((5 << 29) + 1, "2.5 GiB")]
        {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn each_rung_has_a_line_and_each_note() {
        let mut found = home::Found::default();
        found.plan.memory = Some("/m".into());
        found.plan.v2 = Some(("/u".into(), vec!["pids".into()]));
        found.notes.push("why".into());
        let rungs = Rungs::of(&found);
        assert_eq!((rungs.memory, rungs.cpu, rungs.pids), (Rung::CgroupV1, Rung::Sampled, Rung::CgroupV2));
        let text = rungs.to_string();
        assert_eq!(text.lines().count(), 7, "{text}");
        assert!(text.starts_with("memory     cgroup-v1: "), "{text}");
        assert!(text.ends_with(" why"), "{text}");
    }
}
