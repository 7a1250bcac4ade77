//! The reaper: at its start a daemon ends what an earlier daemon left, from the trees that one had recorded.
//!
//! A process belongs to a recorded tree when
//! * it carries the tree's mark in its environment, or as a resource limit (see [`crate::mark`]), or
//! * it is the recorded guard or leader: same pid, same start time, same boot, or
//! * it lives in the tree's cgroup, where there is one (see [`crate::limits`]), or
//! * it is below one of these, or in the leader's session while the leader's number is nobody else's.
//!
//! Never by name. Everything found is stopped first, then looked for again, and killed only when no more is
//! found, so that nobody is lost by losing its parent; and all that is repeated until nothing is found.
//! What a process that cleared its environment, changed that limit, left its session and lost all its ancestors
//! is, cannot be told from outside without a cgroup.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::boot;
use crate::cgroup::home;
use crate::kill::{Freeze, Killer, Pause};
use crate::mark::{MARK_VARIABLE, Mark};
use crate::pidfd;
use crate::tree::{Process, Scan};

/// The most rounds of killing. With pauses up to 100 ms between them: six seconds and more.
pub const MAX_ROUNDS: u32 = 64;

/// The longest environment looked at. The kernel allows 6 MiB for arguments and environment together.
const MAX_ENVIRON_BYTES: u64 = 8 * 1024 * 1024;

/// How many threads of a process without a readable environment are asked for one. Kernel threads have neither.
const MAX_THREADS_ASKED: usize = 16;

/// What is written down of a tree, so that a later daemon can end it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TreeRecord {
    /// The mark of its processes, as text (see [`Mark`]).
    pub mark: String,
    /// The guard's pid; 0 when not known yet.
    pub guard_pid: i32,
    /// The guard's start time in clock ticks since boot.
    pub guard_start: u64,
    /// The leader's pid, once it was started.
    pub leader_pid: Option<i32>,
    /// The leader's start time in clock ticks since boot.
    pub leader_start: Option<u64>,
    /// The boot in which it ran (see [`boot::boot_id`]).
    pub boot_id: String,
}

/// What the reaper did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReapReport {
    /// The processes it killed: pid and start time.
    pub killed: Vec<(i32, u64)>,
    /// The processes still there after [`MAX_ROUNDS`]: uninterruptible, or another user's.
    pub remaining: Vec<i32>,
    /// Rounds until nothing was found.
    pub rounds: u32,
    /// Records of an earlier boot: nothing of theirs can live.
    pub other_boot: usize,
}

/// Ends every recorded tree and comes back when none of their processes is found. Blocks for as long as that
/// takes, [`MAX_ROUNDS`] at most. Call it before anything is spawned.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn reap(records: &[TreeRecord]) -> io::Result<ReapReport> {
    let boot_id = boot::boot_id()?;
    let (current, other): (Vec<_>, Vec<_>) = records.iter().partition(|record| record.boot_id == boot_id);
    let mut report = ReapReport { other_boot: other.len(), ..ReapReport::default() };
    if !current.is_empty() {
        end(&Wanted::new(current), &mut report)?;
    }
    home::remove_ended();
    Ok(report)
}

/// The living processes that carry one of these marks, the calling process and its ancestors excepted.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn find_marked(marks: &[Mark]) -> io::Result<Vec<Process>> {
    let mut wanted = Wanted::default();
    marks.iter().for_each(|mark| wanted.add(*mark));
    let scan = Scan::take()?;
    let mut found = Vec::new();
    let spared = spared(&scan);
    wanted.roots(&scan, &spared, &mut found);
    found.retain(|process| !process.is_zombie());
    Ok(found)
}

/// Ends all processes that carry this mark: after a sweep there are none, unless orphans went elsewhere. Blocks for
/// as long as that takes, [`MAX_ROUNDS`] at most.
pub fn kill_marked(mark: Mark) {
    let mut wanted = Wanted::default();
    wanted.add(mark);
    let mut report = ReapReport::default();
    if let Err(error) = end(&wanted, &mut report) {
        tracing::warn!(%error, %mark, "cannot look for marked processes of a dead guard");
    }
    if !report.killed.is_empty() {
        tracing::warn!(%mark, killed = ?report.killed, "a dead guard's processes had to be found by their mark");
    }
}

fn end(wanted: &Wanted, report: &mut ReapReport) -> io::Result<()> {
    let mut killer = Killer::default();
    let mut pause = Pause::new();
    let mut killed = HashSet::new();
    while report.rounds < MAX_ROUNDS {
        report.rounds += 1;
        let round = killer.round(Freeze::UntilStable, |scan, into| wanted.select(scan, into))?;
        if round.found == 0 {
            report.killed = killed.into_iter().collect();
            report.killed.sort_unstable();
            return Ok(());
        }
        killed.extend(killer.last().iter().map(Process::id));
        let watched: Vec<OwnedFd> = killer
            .last()
            .iter()
            .take(pidfd::MAX_WAIT_FDS)
            .filter_map(|process| pidfd::open(process.pid).ok())
            .collect();
        pidfd::wait_any(&watched, pause.next_ms())?;
    }
    report.remaining = killer.last().iter().map(|process| process.pid).collect();
    killed.retain(|(pid, _)| !report.remaining.contains(pid));
    report.killed = killed.into_iter().collect();
    report.killed.sort_unstable();
    Ok(())
}

/// What to look for.
#[derive(Default)]
struct Wanted {
    /// Whole entries of an environment: `OSTLER_INSTANCE=<mark>`.
    marks: HashSet<Vec<u8>>,
    /// The same marks as soft limits of file locks.
    limits: HashSet<u64>,
    /// The same marks as names of cgroups.
    leaves: Vec<String>,
    /// Guards: pid and start time.
    guards: Vec<(i32, u64)>,
    /// Leaders: pid and start time.
    leaders: Vec<(i32, u64)>,
}

impl Wanted {
    fn new(records: Vec<&TreeRecord>) -> Self {
        let mut wanted = Self::default();
        for record in records {
            match record.mark.parse::<Mark>() {
                Ok(mark) => wanted.add(mark),
                Err(error) => tracing::warn!(%error, "a recorded tree is looked for by its pids only"),
            }
            if record.guard_pid > 0 {
                wanted.guards.push((record.guard_pid, record.guard_start));
            }
            if let (Some(pid), Some(start)) = (record.leader_pid, record.leader_start) {
                wanted.leaders.push((pid, start));
            }
        }
        wanted
    }

    fn add(&mut self, mark: Mark) {
        self.marks.insert(mark.environ_entry().into_bytes());
        self.limits.insert(mark.limit());
        self.leaves.push(mark.to_string());
    }

    /// Everything to kill now. A guard comes only when it is alone: as long as it lives, what loses its parent
    /// stays below it and can be found.
    fn select(&self, scan: &Scan, into: &mut Vec<Process>) {
        let spared = spared(scan);
        self.roots(scan, &spared, into);
        let guards: Vec<Process> = self.guards.iter().filter_map(|&id| alive(scan, id)).copied().collect();
        let mut found = std::mem::take(into);
        for root in found.clone().iter().chain(&guards) {
            scan.descendants(root.pid, &mut found);
        }
        let mut seen = HashSet::new();
        found.retain(|process| {
            !process.is_zombie()
                && !spared.contains(&process.pid)
                && !self.guards.contains(&process.id())
                && seen.insert(process.id())
        });
        if found.is_empty() {
            found.extend(guards.iter().filter(|guard| !spared.contains(&guard.pid)));
        }
        *into = found;
    }

    /// Marked processes, recorded leaders, and members of their sessions.
    fn roots(&self, scan: &Scan, spared: &HashSet<i32>, into: &mut Vec<Process>) {
        let sessions: Vec<(i32, u64)> = self
            .leaders
            .iter()
            // When another process has the leader's number now, a session of that number is the other's.
            .filter(|&&(pid, start)| scan.get(pid).is_none_or(|process| process.start_time == start))
            .copied()
            .collect();
        let in_leaf: HashSet<i32> = home::members_of(&self.leaves).into_iter().collect();
        let mut environ = Vec::new();
        for process in scan.processes() {
            if spared.contains(&process.pid) || process.is_zombie() {
                continue;
            }
            let in_session =
                sessions.iter().any(|&(sid, start)| process.session == sid && process.start_time >= start);
            let known = in_session || in_leaf.contains(&process.pid) || self.leaders.contains(&process.id());
            if known || self.marked(process, &mut environ) {
                into.push(*process);
            }
        }
    }

    fn marked(&self, process: &Process, environ: &mut Vec<u8>) -> bool {
        if self.marks.is_empty() {
            return false;
        }
        let pid = process.pid;
        if read_limit(pid).is_some_and(|limit| self.limits.contains(&limit)) {
            return true;
        }
        if read_environ(format!("/proc/{pid}/environ"), environ) {
            return has_entry(environ, &self.marks);
        }
        // Its first thread has ended while others run: these still show the environment.
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        threads.take(MAX_THREADS_ASKED).any(|thread| {
            read_environ(thread.path().join("environ"), environ) && has_entry(environ, &self.marks)
        })
    }
}

/// Whether there was something to read. Not readable means gone, or another user's, whom we could not signal.
fn read_environ(path: impl AsRef<Path>, into: &mut Vec<u8>) -> bool {
    into.clear();
    let read = File::open(path).and_then(|file| file.take(MAX_ENVIRON_BYTES).read_to_end(into));
    read.is_ok_and(|length| length > 0)
}

/// The soft limit of file locks (proc_pid_limits(5)); `None` when it is unlimited, or there is nothing to read.
fn read_limit(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max file locks"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn has_entry(environ: &[u8], wanted: &HashSet<Vec<u8>>) -> bool {
    environ
        .split(|&byte| byte == 0)
        .filter(|entry| entry.starts_with(MARK_VARIABLE.as_bytes()))
        .any(|entry| wanted.contains(entry))
}

/// The process with this pid and start time, if it lives.
fn alive(scan: &Scan, (pid, start): (i32, u64)) -> Option<&Process> {
    scan.get(pid).filter(|process| process.start_time == start && !process.is_zombie())
}

/// This process and its ancestors: a daemon may have been started from within a server of an earlier one, and so
/// carry its mark.
fn spared(scan: &Scan) -> HashSet<i32> {
    let mut spared = HashSet::new();
    let mut next = std::process::id().cast_signed();
    while next > 0 && spared.insert(next) {
        next = scan.get(next).map_or(0, |process| process.ppid);
    }
    spared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_entry_is_a_mark() {
        let mark = Mark::random();
        let wanted = HashSet::from([mark.environ_entry().into_bytes()]);
        let environ = |entry: String| format!("A=1\0{entry}\0B=2\0").into_bytes();
        assert!(has_entry(&environ(format!("OSTLER_INSTANCE={mark}")), &wanted));
        assert!(!has_entry(&environ(format!("OSTLER_INSTANCE={mark}0")), &wanted), "longer");
        assert!(!has_entry(&environ(format!("XOSTLER_INSTANCE={mark}")), &wanted), "another name");
        assert!(!has_entry(&environ(format!("X=OSTLER_INSTANCE={mark}")), &wanted), "within a value");
        assert!(!has_entry(&environ(Mark::random().environ_entry()), &wanted), "another mark");
    }

    #[test]
    fn records_of_another_boot_are_left_alone() {
        let me = Scan::take().expect("/proc").get(std::process::id().cast_signed()).copied().expect("myself");
        let record = TreeRecord {
            mark: Mark::random().to_string(),
            guard_pid: me.pid,
            guard_start: me.start_time,
            leader_pid: Some(me.pid),
            leader_start: Some(me.start_time),
            boot_id: "another".into(),
        };
        let report = reap(&[record]).expect("reaped");
        assert_eq!(report, ReapReport { other_boot: 1, ..ReapReport::default() });
    }

    #[test]
    fn the_reaper_spares_itself_whatever_is_recorded() {
        let me = Scan::take().expect("/proc").get(std::process::id().cast_signed()).copied().expect("myself");
        let record = TreeRecord {
            mark: Mark::random().to_string(),
            guard_pid: me.pid,
            guard_start: me.start_time,
            leader_pid: None,
            leader_start: None,
            boot_id: boot::boot_id().expect("a boot id"),
        };
        let wanted = Wanted::new(vec![&record]);
        let mut found = Vec::new();
        wanted.select(&Scan::take().expect("/proc"), &mut found);
        assert!(found.iter().all(|process| process.pid != me.pid));
    }
}
