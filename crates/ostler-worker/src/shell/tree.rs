//! The processes of a command: everything below this one.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rustix::event::{PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, kill_process_group, pidfd_open,
    pidfd_send_signal, set_child_subreaper, wait,
};

use crate::job::error;
use crate::protocol::{ErrorKind, TaskError};
use crate::wire::is_ready;

/// How long killed processes may take to be gone.
const GONE: Duration = Duration::from_secs(5);
/// How the error begins that says that they were not. The worker ends after it: whoever started it has the means.
pub(crate) const LEFT: &str = "processes of the command could not be ended";

/// Makes whatever loses its parent below this process a child of it.
///
/// # Errors
/// When the kernel does not know that.
pub(crate) fn adopt_descendants() -> rustix::io::Result<()> {
    set_child_subreaper(Some(getpid()))
}

/// Ends the group of a command that has not been waited for, and all that it started; how its first process ended.
///
/// # Errors
/// When some of them are still there after [`GONE`].
pub(super) fn end(leader: Pid) -> Result<Option<WaitStatus>, TaskError> {
    let until = Instant::now() + GONE;
    let mut status = None;
    // Its number is nobody else's as long as it was not waited for.
    let _ = kill_process_group(leader, Signal::KILL);
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, how))) if pid == leader => status = Some(how),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Err(_) => return Ok(status),
            Ok(None) => {
                if Instant::now() >= until {
                    let names: Vec<String> = below().iter().map(|one| one.pid.to_string()).collect();
                    return Err(error(
                        ErrorKind::Failed,
                        &format!("{LEFT} within {} s: {}", GONE.as_secs(), names.join(", ")),
                    ));
                }
                kill_all(until);
            }
        }
    }
}

/// Bytes of memory that they use.
pub(super) fn memory() -> u64 {
    let pages: u64 = below().iter().map(|one| one.rss_pages).sum();
    pages * rustix::param::page_size() as u64
}

/// Stops all before it kills them, so that none can start another meanwhile; then waits for one to be gone.
fn kill_all(until: Instant) {
    let mut stopped = HashSet::new();
    while Instant::now() < until {
        let fresh: Vec<Process> = below().into_iter().filter(|one| stopped.insert(one.key())).collect();
        if fresh.is_empty() {
            break;
        }
        for one in fresh {
            one.signal(Signal::STOP);
        }
    }
    let all = below();
    for one in &all {
        one.signal(Signal::KILL);
    }
    let own = getpid().as_raw_pid();
    let child = all.iter().find(|one| one.parent == own).and_then(|one| Pid::from_raw(one.pid));
    if let Some(child) = child.and_then(|child| pidfd_open(child, PidfdFlags::empty()).ok()) {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).ok();
        is_ready(child, PollFlags::IN, left.as_ref());
    }
}

/// What `/proc` says of one process.
#[derive(Clone, Debug)]
struct Process {
    pid: i32,
    parent: i32,
    /// When it was started, in ticks: with its number, nobody else.
    started: u64,
    rss_pages: u64,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Its name may hold anything, so after its end.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let started = fields.nth(17)?.parse().ok()?;
        let rss_pages = fields.nth(1)?.parse::<i64>().ok()?.max(0).unsigned_abs();
        // One that is waited for needs no ending.
        (state != "Z" && state != "X").then_some(Self { pid, parent, started, rss_pages })
    }

    fn key(&self) -> (i32, u64) {
        (self.pid, self.started)
    }

    /// Signals this process, and no other that has its number by now.
    fn signal(&self, signal: Signal) {
        let Some(pid) = Pid::from_raw(self.pid) else { return };
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return };
        if Self::read(self.pid).is_some_and(|now| now.key() == self.key()) {
            let _ = pidfd_send_signal(&pidfd, signal);
        }
    }
}

/// All that are below this process.
fn below() -> Vec<Process> {
    let Ok(proc) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = proc.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut rest: Vec<Process> = pids.filter_map(Process::read).collect();
    let mut found = Vec::new();
    let mut parents = HashSet::from([getpid().as_raw_pid()]);
    loop {
        let (mine, others): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|one| parents.contains(&one.parent));
        if mine.is_empty() {
            return found;
        }
        parents.extend(mine.iter().map(|one| one.pid));
        found.extend(mine);
        rest = others;
    }
}
