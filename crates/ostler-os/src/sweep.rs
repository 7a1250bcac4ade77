//! The sweep: what a killed guard leaves behind becomes the daemon's own children, and is killed here.
//!
//! A child of the daemon is such an orphan when it is no registered guard and lives in another session than the
//! daemon: every tree begins with `setsid`, and no process can move back into an older session. Children that
//! other code of the same program started in the daemon's session are left alone.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use crate::guard::STUCK_AFTER;
use crate::kill::{Freeze, Killer, Pause};
use crate::pidfd;
use crate::tree::{Process, Scan};
use crate::wire::MAX_PIDS;

/// The guards that are children of this process and not reaped. One for the process, as its children are.
pub(crate) static REGISTRY: Registry = Registry { guards: LazyLock::new(Mutex::default) };

pub(crate) struct Registry {
    guards: LazyLock<Mutex<Guards>>,
}

/// The pids in it are exact while the lock is held.
#[derive(Default)]
pub(crate) struct Guards(HashSet<i32>);

impl Registry {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Guards> {
        // A set of numbers is whole whatever a panicking holder was doing.
        self.guards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guards {
    pub(crate) fn insert(&mut self, guard: i32) {
        self.0.insert(guard);
    }

    pub(crate) fn remove(&mut self, guard: i32) {
        self.0.remove(&guard);
    }

    /// This process's children that a dead guard left, as the scan shows them; zombies included.
    ///
    /// Its own session is read from the scan, not from `getsid`: that is 0 where the session began outside of
    /// this pid namespace, a number that `rustix` takes for impossible and `/proc` shows like any other.
    fn orphans<'a>(&'a self, scan: &'a Scan) -> impl Iterator<Item = &'a Process> {
        let me = Pid::as_raw(Some(rustix::process::getpid()));
        let own = scan.get(me).map(|process| process.session);
        scan.children(me).filter(move |child| Some(child.session) != own && !self.0.contains(&child.pid))
    }

    /// Ends a guard that was just started, has no command yet and cannot be watched.
    pub(crate) fn end_unwatched(&mut self, guard: i32) {
        if let Some(pid) = Pid::from_raw(guard) {
            // Our child and not reaped: the number is its own.
            let killed = rustix::process::kill_process(pid, Signal::KILL);
            let reaped = || rustix::io::retry_on_intr(|| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED));
            if let Err(error) = killed.and_then(|()| reaped()) {
                tracing::error!(%error, guard, "cannot end a guard that cannot be watched");
            }
        }
        self.remove(guard);
    }
}

/// Kills every orphan and everything below it until none is left. `stuck` is told once, with at most 64 pids,
/// if that takes long. Blocks: not for a thread of the runtime.
pub(crate) fn sweep(stuck: &mut dyn FnMut(Vec<i32>)) {
    let mut killer = Killer::default();
    let mut pause = Pause::new();
    let mut tell = Some(stuck);
    let began = Instant::now();
    loop {
        let (left, watched) = round(&mut killer);
        if left.is_empty() {
            return;
        }
        if began.elapsed() >= STUCK_AFTER
            && let Some(tell) = tell.take()
        {
            tell(left.into_iter().take(MAX_PIDS).collect());
        }
        if let Err(error) = pidfd::wait_any(&watched, pause.next_ms()) {
            tracing::warn!(%error, "cannot wait for orphans to end; looking again at once");
        }
    }
}

/// Ends every child that a dead guard left, with all that it started. Blocks until none is left.
pub fn end_orphans() {
    sweep(&mut |pids| tracing::warn!(?pids, "orphans of a dead guard survive SIGKILL so far"));
}

/// Reaps, stops and kills once; gives the orphans (children only) that are left, and pidfds of some of them.
fn round(killer: &mut Killer) -> (Vec<i32>, Vec<OwnedFd>) {
    // Held for the whole round, so that a guard that starts or ends now is not mistaken for an orphan.
    let guards = REGISTRY.lock();
    let mut left = Vec::new();
    let outcome = killer.round(Freeze::Once, |scan: &Scan, into: &mut Vec<Process>| {
        left.clear();
        for orphan in guards.orphans(scan) {
            if reap(orphan) {
                continue;
            }
            left.push(orphan.pid);
            into.push(*orphan);
            scan.descendants(orphan.pid, into);
        }
    });
    if let Err(error) = outcome {
        tracing::warn!(%error, "cannot list the orphans of a dead guard; trying again");
        // What the failed scan showed is not to be relied on: not empty, look again.
        left.push(0);
    }
    let watched = left.iter().take(pidfd::MAX_WAIT_FDS).filter_map(|&pid| pidfd::open(pid).ok()).collect();
    (left, watched)
}

/// Reaps a child if it has ended; whether it is gone.
fn reap(child: &Process) -> bool {
    let Some(pid) = Pid::from_raw(child.pid) else {
        return true;
    };
    loop {
        match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::CHILD) => return true,
            Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return false,
        }
    }
}

/// Whether this process has children that a dead guard left: for a daemon's self-check. Ended ones count until
/// they are reaped.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn orphans() -> std::io::Result<Vec<i32>> {
    let guards = REGISTRY.lock();
    let scan = Scan::take()?;
    Ok(guards.orphans(&scan).map(|child| child.pid).collect())
}
