//! What a tree uses, from one pass over `/proc` shared by all trees.

use std::io;
use std::time::Duration;

use crate::tree::{Process, Scan};

/// What the processes of one tree use together. The guard is not one of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TreeStats {
    /// How many there are, ended but unreaped ones not counted.
    pub processes: u32,
    /// Their threads.
    pub threads: u32,
    /// Resident memory in bytes. Pages that processes share count for each of them.
    pub rss_bytes: u64,
    /// User and system time of the living ones. It falls when one of them ends.
    pub cpu_time: Duration,
    /// Resident memory of the guard, in bytes; most of it is the program file and shared with the daemon.
    pub guard_rss_bytes: u64,
    /// Their pids, parents before children.
    pub pids: Vec<i32>,
}

/// All processes at one moment.
pub struct Snapshot {
    scan: Scan,
    page_bytes: u64,
    ticks_per_second: u64,
}

impl Snapshot {
    /// One pass over `/proc`: milliseconds for hundreds of processes. Blocks.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn take() -> io::Result<Self> {
        Ok(Self {
            scan: Scan::take()?,
            page_bytes: rustix::param::page_size() as u64,
            ticks_per_second: rustix::param::clock_ticks_per_second().max(1),
        })
    }

    /// The tree below this guard; all zero when there is none.
    pub fn tree(&self, guard_pid: i32) -> TreeStats {
        let mut below = Vec::new();
        self.scan.descendants(guard_pid, &mut below);
        below.retain(|process| !process.is_zombie());
        let rss = |process: &Process| process.rss_pages * self.page_bytes;
        TreeStats {
            processes: u32::try_from(below.len()).unwrap_or(u32::MAX),
            threads: below.iter().map(|process| process.threads).sum(),
            rss_bytes: below.iter().map(rss).sum(),
            cpu_time: self.duration(below.iter().map(|process| process.cpu_ticks).sum()),
            guard_rss_bytes: self.scan.get(guard_pid).map_or(0, rss),
            pids: below.iter().map(|process| process.pid).collect(),
        }
    }

    fn duration(&self, ticks: u64) -> Duration {
        let nanoseconds = ticks % self.ticks_per_second * 1_000_000_000 / self.ticks_per_second;
        Duration::from_secs(ticks / self.ticks_per_second) + Duration::from_nanos(nanoseconds)
    }
}

/// [`Snapshot::tree`] for one tree.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn tree_stats(guard_pid: i32) -> io::Result<TreeStats> {
    Ok(Snapshot::take()?.tree(guard_pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_time() {
        let snapshot = Snapshot { scan: Scan::default(), page_bytes: 4096, ticks_per_second: 100 };
        assert_eq!(snapshot.duration(250), Duration::from_millis(2500));
        assert_eq!(snapshot.duration(0), Duration::ZERO);
    }

    #[test]
    fn a_tree_that_is_not_there_is_empty() {
        assert_eq!(Snapshot::take().expect("/proc").tree(i32::MAX), TreeStats::default());
    }
}
