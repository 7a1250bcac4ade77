//! What trees use: many trees from one pass over `/proc`, again and again into the same memory.
//!
//! Processor time is exact however short processes live: what a process used goes to the parent that reaps it
//! (`cutime`, `cstime` of proc_pid_stat(5)), and orphans are reaped by the guard. So the time of a tree is that of its
//! processes with their reaped children, and that of the guard's reaped children.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, openat, statat};

use crate::tree::{Process, Scan};

/// Descriptors counted of one process on kernels that do not say their number (before Linux 6.2).
const MAX_FDS_COUNTED: u64 = 65_536;

/// Processes of one tree whose descriptors and PSS are read: each costs system calls of its own.
pub const MAX_READ: usize = 1024;

/// The guard of a tree to measure.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TreeRoot {
    /// Its pid.
    pub guard_pid: i32,
    /// Its start time in clock ticks since boot; 0 when not known, and then its pid alone has to do.
    pub guard_start: u64,
}

/// What to read beyond the one pass, which is free of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Detail {
    /// Open files: one more system call for each process.
    pub fds: bool,
    /// PSS: the kernel walks all page tables of each process, a millisecond for each hundred megabytes or so.
    pub pss: bool,
}

/// What the processes of one tree use together. The guard is not one of them.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TreeUsage {
    /// How many there are, ended but unreaped ones not counted. 0: there is no such tree any more.
    pub processes: u32,
    /// Their threads.
    pub threads: u32,
    /// Their open files, when asked for; those of processes that may not be looked into are missing.
    pub fds: Option<u64>,
    /// The open files of the process that has most: limits of open files are for each process.
    pub fds_of_one: Option<u64>,
    /// Resident memory in bytes. Pages that processes share count for each of them. Exact when PSS is asked for;
    /// otherwise it lags behind by up to some hundred kilobytes a thread, because the kernel counts in batches
    /// (proc_pid_stat(5) calls it inaccurate).
    pub rss_bytes: u64,
    /// Resident memory in which a page shared by n processes counts 1/n for each, when asked for. A process that may not
    /// be looked into, or is one too many, counts with all that is resident.
    pub pss_bytes: Option<u64>,
    /// Share of one processor since the last sample, in per cent; 0 at the first.
    pub cpu_percent: f64,
    /// Processor time since the tree was started, in milliseconds, that of ended processes included.
    pub cpu_ms: u64,
    /// Resident memory of the guard, in bytes; most of it is the program file and shared with the daemon.
    pub guard_rss_bytes: u64,
    /// Their pids, parents before children.
    pub pids: Vec<i32>,
}

/// Measures trees. Keep one: processor shares are since its last sample.
#[derive(Debug)]
pub struct Meter {
    scan: Scan,
    below: Vec<Process>,
    /// Processor time of each tree at the last sample, in ticks; of the trees of that sample only.
    last: HashMap<(i32, u64), (Instant, u64)>,
    next: HashMap<(i32, u64), (Instant, u64)>,
    text: Vec<u8>,
    page_bytes: u64,
    ticks_per_second: u64,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            scan: Scan::default(),
            below: Vec::new(),
            last: HashMap::new(),
            next: HashMap::new(),
            text: Vec::new(),
            page_bytes: rustix::param::page_size() as u64,
            ticks_per_second: rustix::param::clock_ticks_per_second().max(1),
        }
    }
}

impl Meter {
    /// Measures these trees, in this order: one pass over `/proc`, milliseconds for hundreds of processes, and what
    /// `detail` costs. Blocks: not for a thread of the runtime.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn sample(&mut self, trees: &[TreeRoot], detail: Detail) -> io::Result<Vec<TreeUsage>> {
        self.scan.refresh()?;
        let now = Instant::now();
        let usage = trees.iter().map(|&root| self.tree(root, detail, now)).collect();
        std::mem::swap(&mut self.last, &mut self.next);
        self.next.clear();
        Ok(usage)
    }

    /// All processes as the last sample saw them.
    pub fn scan(&self) -> &Scan {
        &self.scan
    }

    fn tree(&mut self, root: TreeRoot, detail: Detail, now: Instant) -> TreeUsage {
        let mut usage = TreeUsage::default();
        let is_it = |guard: &&Process| root.guard_start == 0 || guard.start_time == root.guard_start;
        let Some(&guard) = self.scan.get(root.guard_pid).filter(is_it) else { return usage };
        self.below.clear();
        self.scan.descendants(root.guard_pid, &mut self.below);
        // What a zombie used is its parent's only when it is reaped.
        let used: u64 = self.below.iter().map(|process| process.cpu_ticks + process.reaped_ticks).sum();
        self.below.retain(|process| !process.is_zombie());
        usage.processes = u32::try_from(self.below.len()).unwrap_or(u32::MAX);
        usage.threads = self.below.iter().map(|process| process.threads).sum();
        usage.rss_bytes = self.below.iter().map(|process| process.rss_pages).sum::<u64>() * self.page_bytes;
        usage.guard_rss_bytes = guard.rss_pages * self.page_bytes;
        usage.pids = self.below.iter().map(|process| process.pid).collect();
        self.processor(guard, used + guard.reaped_ticks, now, &mut usage);
        self.detail(detail, &mut usage);
        usage
    }

    fn processor(&mut self, guard: Process, ticks: u64, now: Instant, usage: &mut TreeUsage) {
        let last = self.last.get(&guard.id()).copied();
        // A process that was reaped while the pass went by may be missing from both sides: time does not go back.
        let ticks = last.map_or(ticks, |(_, before)| ticks.max(before));
        self.next.insert(guard.id(), (now, ticks));
        usage.cpu_ms = u64::try_from(duration(ticks, self.ticks_per_second).as_millis()).unwrap_or(u64::MAX);
        if let Some((at, before)) = last {
            let wall = now.saturating_duration_since(at).as_secs_f64();
            let used = duration(ticks - before, self.ticks_per_second).as_secs_f64();
            usage.cpu_percent = if wall > 0.0 { used / wall * 100.0 } else { 0.0 };
        }
    }

    /// Reads more of a tree that the last sample measured: for what is only worth its cost where the sample says so.
    /// Blocks, as [`Self::sample`].
    pub fn detail(&mut self, detail: Detail, usage: &mut TreeUsage) {
        if detail.fds {
            let counts = usage.pids.iter().take(MAX_READ).filter_map(|&pid| open_files(pid));
            let (sum, most) = counts.fold((0, 0), |(sum, most), count| (sum + count, most.max(count)));
            (usage.fds, usage.fds_of_one) = (Some(sum), Some(most));
        }
        if detail.pss {
            let mut sum = 0;
            for (read, &pid) in usage.pids.iter().enumerate() {
                let rough = self.scan.get(pid).map_or(0, |process| process.rss_pages * self.page_bytes);
                match (read < MAX_READ).then(|| rollup(pid, &mut self.text)).flatten() {
                    Some((rss, pss)) => {
                        sum += pss;
                        usage.rss_bytes = (usage.rss_bytes + rss).saturating_sub(rough);
                    }
                    // A limit is no limit where a process need only hide, or be one of many.
                    None => sum += rough,
                }
            }
            usage.pss_bytes = Some(sum);
        }
    }
}

fn duration(ticks: u64, per_second: u64) -> Duration {
    let nanoseconds = ticks % per_second * 1_000_000_000 / per_second;
    Duration::from_secs(ticks / per_second) + Duration::from_nanos(nanoseconds)
}

/// How many descriptors a process has open; `None` when it is gone or another user's.
fn open_files(pid: i32) -> Option<u64> {
    let path = format!("/proc/{pid}/fd");
    // Since Linux 6.2 the directory's size is their number.
    match statat(CWD, path.as_str(), AtFlags::empty()).ok()?.st_size {
        0 => count_files(&path),
        count => count.try_into().ok(),
    }
}

fn count_files(path: &str) -> Option<u64> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, path, flags, Mode::empty()).ok()?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut count = 0;
    while count < MAX_FDS_COUNTED
        && let Some(entry) = entries.next()
    {
        count += u64::from(!entry.ok()?.file_name().to_bytes().starts_with(b"."));
    }
    Some(count)
}

/// RSS and PSS in bytes, from `smaps_rollup`, Linux 4.14 and later.
fn rollup(pid: i32, text: &mut Vec<u8>) -> Option<(u64, u64)> {
    use std::io::Read as _;
    text.clear();
    std::fs::File::open(format!("/proc/{pid}/smaps_rollup")).ok()?.take(8192).read_to_end(text).ok()?;
    let text = std::str::from_utf8(text).ok()?;
    let bytes = |key: &str| -> Option<u64> {
        let kib = text.lines().find_map(|line| line.strip_prefix(key))?.trim().strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some((bytes("Rss:")?, bytes("Pss:")?))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    const EVERYTHING: Detail = Detail { fds: true, pss: true };

    fn me() -> TreeRoot {
        TreeRoot { guard_pid: std::process::id().cast_signed(), guard_start: 0 }
    }

    #[test]
    fn ticks_become_time() {
        assert_eq!(duration(250, 100), Duration::from_millis(2500));
        assert_eq!(duration(0, 100), Duration::ZERO);
    }

    #[test]
    fn a_tree_that_is_not_there_is_empty() {
        let mut meter = Meter::default();
        let gone = TreeRoot { guard_pid: i32::MAX, guard_start: 0 };
        let another = TreeRoot { guard_start: 1, ..me() };
        let usage = meter.sample(&[gone, another], EVERYTHING).expect("/proc");
        assert_eq!(usage, [TreeUsage::default(), TreeUsage::default()], "a recycled number is another's");
        assert_eq!(meter.last.len(), 0, "and nothing is remembered of it");
    }

    #[test]
    fn both_ways_of_counting_files_agree() {
        let mut child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("sleep starts");
        let pid = child.id().cast_signed();
        // A child between fork and exec still has what this process has.
        while std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| !exe.ends_with("sleep")) {
            std::thread::yield_now();
        }
        assert!(std::fs::read_dir(format!("/proc/{pid}/fd")).expect("ours").count() >= 3);
        assert_eq!(open_files(pid), count_files(&format!("/proc/{pid}/fd")));
        child.kill().and_then(|()| child.wait()).expect("ends");
        assert_eq!(open_files(pid), None);
    }

    /// Burns in children of a shell that end; the shell is there until the end of its input.
    const BURN: &str = "for i in 1 2 3; do sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done'; done";

    /// What those children have used, far from what their parents use to start them, in milliseconds.
    const BURNT_MS: u64 = 40;

    /// Measures the tree below a shell that runs `script`, before and after it says a line.
    fn before_and_after(script: &str) -> (TreeUsage, TreeUsage) {
        let mut command = Command::new("sh");
        command.args(["-c", script, BURN]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = command.spawn().expect("sh starts");
        let root = TreeRoot { guard_pid: shell.id().cast_signed(), guard_start: 0 };
        let mut meter = Meter::default();
        let mut measure = || meter.sample(&[root], Detail::default()).expect("/proc").remove(0);
        let first = measure();
        std::io::Read::read_exact(&mut shell.stdout.take().expect("piped"), &mut [0]).expect("it says so");
        let second = measure();
        drop(shell.stdin.take());
        shell.wait().expect("ends");
        (first, second)
    }

    #[test]
    fn time_of_processes_that_ended_is_not_lost() {
        // Reaped by the root, as a guard reaps; then by a process of the tree.
        let burn = r#"eval "$0"; echo; read x"#;
        for (script, left) in [(burn, 0), (r#"sh -c 'eval "$0"; echo; read x' "$0"; exit 0"#, 1)] {
            let (first, second) = before_and_after(script);
            assert_eq!(first.cpu_percent.to_bits(), 0.0_f64.to_bits(), "nothing to compare with");
            assert_eq!(second.processes, left, "those that burnt are gone");
            assert!(second.cpu_ms >= first.cpu_ms + BURNT_MS, "{first:?} {second:?}");
            assert!(second.cpu_percent > 0.0, "{second:?}");
        }
    }
}
