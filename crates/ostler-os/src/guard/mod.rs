//! The guard: a small process between the daemon and one server, which makes orphans impossible.
//!
//! It is a subreaper, so every descendant of the server stays below it however it forks, and when the kernel
//! answers `ECHILD` to its `waitpid(-1)`, no descendant is left: that, and nothing else, is "the tree is empty".
//!
//! ```text
//!             Terminate                     Kill
//!   Running ────────────▶ Asked ──────────────────────────────▶ Killing ──▶ TreeEmpty, exit 0
//!      │  leader ended (200 ms)                                    ▲
//!      │  daemon gone  (500 ms) ┌────────┐ time is up, or Kill     │
//!      └───────────────────────▶│ Ending │─────────────────────────┘
//!                               └────────┘
//!   In every state: no child left (ECHILD) ──▶ TreeEmpty, exit 0.
//!   In Asked the daemon decides when to kill; its end leads from there to Ending as well.
//! ```
//!
//! One thread, one poll: the control socket (standard input), a signalfd for SIGCHLD, and the files of the tree's
//! cgroups that tell when a limit is hit.
//!
//! Guards are forked from one process that has loaded the program once (`forge`), or, where that does not work,
//! started as a program each.

mod birth;
pub(crate) mod forge;
mod start;

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};

use crate::cgroup::leaf::Leaf;
use crate::kill::{Freeze, Killer, Pause};
use crate::spawn::SpawnFailure;
use crate::tree;
use crate::wire::{self, MAX_ORDER_BYTES, Order, Received, Report};
use forge::Role;

/// The control socket, the signalfd, and what the tree's cgroups give to watch.
const MAX_POLLED: usize = 2 + crate::cgroup::leaf::MAX_WATCHED;

/// The word after the program name that makes the binary a guard.
pub const GUARD_ARGUMENT: &str = "guard";

/// The word after the program name that makes the binary a forge, the process that guards are forked from. As long
/// as [`GUARD_ARGUMENT`], which takes its place in the guards.
pub const FORGE_ARGUMENT: &str = "forge";

/// From SIGTERM to SIGKILL for what a leader that ended by itself has left behind.
pub const LEFTOVER_GRACE: Duration = Duration::from_millis(200);

/// From SIGTERM to SIGKILL when the daemon is gone.
pub const DAEMON_GONE_GRACE: Duration = Duration::from_millis(500);

/// Killing for this long without an empty tree is reported, once.
pub const STUCK_AFTER: Duration = Duration::from_secs(2);

/// The least that a process may ask for (`setpriority(2)`).
const LOWEST_PRIORITY: i32 = 19;

/// How often a guard reports limits at most, however often they are hit.
pub const MAX_HITS: usize = crate::cgroup::leaf::MAX_HITS;

/// Whether the first argument says that this process is a guard or makes guards: then it is [`main`]'s.
pub fn is_meant(argument: &OsStr) -> bool {
    argument == GUARD_ARGUMENT || argument == FORGE_ARGUMENT
}

/// The file that a guard would execute for `program`, in a server's environment and working directory: for telling
/// a mistake to whoever made it, before anything is started. What it says may have changed by then. It asks the
/// file system, and so may block.
///
/// # Errors
/// What the guard would report: the working directory is not one, or the program is not there or not executable.
pub fn look_up(
    program: &OsStr,
    env: &[(OsString, OsString)],
    cwd: Option<&Path>,
) -> Result<PathBuf, SpawnFailure> {
    start::look_up(program, env, cwd).map_err(|failure| {
        let kind =
            failure.errno.map_or(io::ErrorKind::Other, |errno| io::Error::from_raw_os_error(errno).kind());
        SpawnFailure { kind, errno: failure.errno, message: failure.message }
    })
}

/// Runs this process as a guard, or as the forge that guards are made by: the `ostler` binary calls it first thing
/// when its first argument is one that [`is_meant`], before a runtime or a second thread exists. Standard input is
/// the control socket, or the forge's.
///
/// Exits with 0 when no process of the tree is left, with 1 when it never had one because it was not started as
/// a guard is; a forge with 0 when the daemon is gone.
pub fn main() -> ! {
    let status = match run() {
        Ok(()) => 0,
        Err(error) => {
            log(&error);
            1
        }
    };
    // SAFETY: it has no preconditions. Without what libc and Rust do at an exit: it would only copy pages that are shared
    // with other guards, and nothing here waits in a buffer to be written.
    unsafe { libc::_exit(status) }
}

fn run() -> io::Result<()> {
    let forged = std::env::args_os().nth(1).is_some_and(|argument| argument == FORGE_ARGUMENT);
    if forged && let Role::Forge = forge::serve()? {
        return Ok(());
    }
    let (control, signals) = start::prepare(forged)?;
    let Some((spec, stdio)) = wire::recv_spec(&control)? else {
        return Ok(()); // the daemon ended before it said what to start: there is nothing to guard
    };
    let (leader, leaf) = match start::launch(&spec, stdio) {
        Ok(started) => started,
        Err(failure) => {
            report(
                &control,
                &Report::SpawnFailed { errno: failure.errno, message: wire::cut(failure.message) },
            );
            report(&control, &Report::TreeEmpty);
            return Ok(());
        }
    };
    if !forged {
        // Before the report: once it is out, the guard has nothing open that is not its own.
        crate::shrink::shrink();
    }
    report(
        &control,
        &Report::Started { pid: leader.pid.as_raw_nonzero().get(), start_time: leader.start_time },
    );
    Guard {
        control: Some(control),
        signals,
        me: Pid::as_raw(Some(rustix::process::getpid())),
        leader: Some(leader.pid),
        leaf,
        phase: Phase::Running,
        killer: Killer::default(),
    }
    .watch();
    Ok(())
}

/// Standard error is the daemon's: the guard says there only what the daemon cannot learn otherwise.
fn log(what: &dyn Display) {
    use io::Write as _;
    // Nobody to tell when this fails.
    let _ = writeln!(io::stderr(), "ostler guard {}: {what}", std::process::id());
}

/// A report that cannot be sent has no reader: the daemon is gone, and end of file says so to [`Guard::watch`].
fn report(control: &OwnedFd, report: &Report) {
    if let Err(error) = wire::send(control, report)
        && !matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN))
    {
        log(&format_args!("cannot report {report:?}: {error}"));
    }
}

struct Guard {
    /// Until its end of file.
    control: Option<OwnedFd>,
    signals: OwnedFd,
    me: i32,
    /// Until it is reaped.
    leader: Option<Pid>,
    leaf: Leaf,
    phase: Phase,
    killer: Killer,
}

#[derive(Debug)]
enum Phase {
    /// The server does its work.
    Running,
    /// The daemon has asked the tree to end, and will say when to kill it.
    Asked,
    /// The guard has asked the tree to end by its own decision.
    Ending { kill_at: Instant },
    /// Rounds of SIGKILL.
    Killing { next_round: Instant, pause: Pause, stuck_at: Option<Instant> },
}

impl Guard {
    /// Until no descendant is left.
    fn watch(&mut self) {
        loop {
            if self.reap() {
                self.tell_hits(true);
                if let Err(error) = self.leaf.remove() {
                    log(&format_args!("cannot remove the cgroup of an ended tree: {error}"));
                }
                if let Some(control) = &self.control {
                    report(control, &Report::TreeEmpty);
                }
                if let Phase::Asked = self.phase {
                    // Where many trees are ended at once, those that still run come before what is left of this one: to
                    // give a guard's memory back takes longer than all else that it does. It has nothing to guard any more.
                    let _ = rustix::process::setpriority_process(None, LOWEST_PRIORITY);
                    // A kernel may not interrupt what follows.
                    rustix::thread::sched_yield();
                }
                return;
            }
            self.act(Instant::now());
            self.wait(Instant::now());
            self.obey();
        }
    }

    /// Collects what has ended; whether nothing is left.
    fn reap(&mut self) -> bool {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if let Phase::Killing { pause, .. } = &mut self.phase {
                        pause.reset();
                    }
                    if self.leader == Some(pid) {
                        self.leader = None;
                        self.tell_hits(true);
                        self.say(&Report::LeaderExited {
                            code: status.exit_status(),
                            signal: status.terminating_signal(),
                        });
                    }
                }
                Ok(None) => return false,
                Err(Errno::CHILD) => return true,
                Err(Errno::INTR) => {}
                Err(error) => {
                    log(&format_args!("cannot wait for children: {error}"));
                    return false;
                }
            }
        }
    }

    /// What the clock and the state of the tree call for.
    fn act(&mut self, now: Instant) {
        match self.phase {
            Phase::Running if self.leader.is_none() => self.end(now + LEFTOVER_GRACE),
            Phase::Ending { kill_at } if now >= kill_at => self.kill(now),
            _ => {}
        }
        if let Phase::Killing { next_round, stuck_at, .. } = self.phase
            && now >= next_round
        {
            let alone = self.kill_round();
            if stuck_at.is_some_and(|at| now >= at) {
                let found = self.killer.last().iter().map(|process| process.pid);
                let pids = match alone {
                    Some(leader) => vec![leader.as_raw_nonzero().get()],
                    None => found.take(wire::MAX_PIDS).collect(),
                };
                self.say(&Report::Stuck { pids });
            }
            if let Phase::Killing { next_round, pause, stuck_at } = &mut self.phase {
                *next_round = Instant::now() + Duration::from_millis(u64::from(pause.next_ms()));
                *stuck_at = stuck_at.filter(|&at| now < at);
            }
        }
    }

    /// Sleeps until a child ends, the daemon says something, or the clock calls.
    fn wait(&mut self, now: Instant) {
        let until = match self.phase {
            Phase::Running | Phase::Asked => None,
            Phase::Ending { kill_at } => Some(kill_at),
            Phase::Killing { next_round, .. } => Some(next_round),
        };
        let timeout = until.map(|at| {
            let left = at.saturating_duration_since(now);
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        // Without allocating: a guard ends its tree when there is no memory, too.
        let signals = PollFd::new(&self.signals, PollFlags::IN);
        let mut polled: [_; MAX_POLLED] = std::array::from_fn(|_| signals.clone());
        let control = self.control.iter().map(|control| PollFd::new(control, PollFlags::IN));
        let limits = self.leaf.watched().map(|file| PollFd::from_borrowed_fd(file, PollFlags::PRI));
        let first_limit = 1 + usize::from(self.control.is_some());
        let mut count = 1;
        for one in control.chain(limits) {
            polled[count] = one;
            count += 1;
        }
        if let Err(error) = rustix::event::poll(&mut polled[..count], timeout.as_ref())
            && error != Errno::INTR
        {
            log(&format_args!("cannot wait for events: {error}"));
        }
        let hit = polled[first_limit..count].iter().any(|file| !file.revents().is_empty());
        start::drain(self.signals.as_fd());
        if hit {
            self.tell_hits(false);
        }
    }

    /// Follows what the daemon says.
    fn obey(&mut self) {
        while let Some(control) = &self.control {
            match wire::recv::<Order, MAX_ORDER_BYTES>(control) {
                Ok(Received::Message(Order::Terminate)) => {
                    if let Phase::Running = self.phase {
                        self.phase = Phase::Asked;
                    }
                    self.terminate();
                }
                Ok(Received::Message(Order::Kill)) => self.kill(Instant::now()),
                Ok(Received::Nothing) => return,
                Ok(Received::End) => self.daemon_gone(),
                Err(error) => {
                    log(&format_args!("cannot understand the daemon, ending: {error}"));
                    self.daemon_gone();
                }
            }
        }
    }

    fn daemon_gone(&mut self) {
        self.control = None;
        let kill_at = Instant::now() + DAEMON_GONE_GRACE;
        match &mut self.phase {
            Phase::Running | Phase::Asked => self.end(kill_at),
            Phase::Ending { kill_at: at } => *at = kill_at.min(*at),
            Phase::Killing { .. } => {}
        }
    }

    fn end(&mut self, kill_at: Instant) {
        self.terminate();
        self.phase = Phase::Ending { kill_at };
    }

    /// SIGTERM to every descendant, then SIGCONT, without which a stopped one would not see it.
    fn terminate(&mut self) {
        // A hundred guards that look at every process of the machine take longer than all servers take to end.
        if let Some(leader) = self.leader.filter(|leader| tree::is_alone(*leader)) {
            // Not reaped, so the number is its own. It fails when it runs as somebody else, as it would below.
            let _ = rustix::process::kill_process(leader, Signal::TERM);
            let _ = rustix::process::kill_process(leader, Signal::CONT);
            return;
        }
        let me = self.me;
        let below = |scan: &crate::tree::Scan, into: &mut Vec<_>| scan.descendants(me, into);
        if let Err(error) = self.killer.signal(&[Signal::TERM, Signal::CONT], below) {
            log(&format_args!("cannot list the tree to terminate it, telling its first group only: {error}"));
            self.signal_group(Signal::TERM);
            self.signal_group(Signal::CONT);
        }
    }

    fn kill(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Killing { .. }) {
            return;
        }
        self.leaf.kill();
        // Most trees are one process group: this ends them without a look at /proc, atomically.
        self.signal_group(Signal::KILL);
        let mut pause = Pause::new();
        let next_round = now + Duration::from_millis(u64::from(pause.next_ms()));
        self.phase = Phase::Killing { next_round, pause, stuck_at: Some(now + STUCK_AFTER) };
    }

    /// Kills what is there. Gives the leader where that is all.
    fn kill_round(&mut self) -> Option<Pid> {
        // As in `terminate`: a thousand guards that look at every process until theirs has gone would starve those.
        if let Some(leader) = self.leader.filter(|leader| tree::is_alone(*leader)) {
            let _ = rustix::process::kill_process(leader, Signal::KILL);
            return Some(leader);
        }
        let me = self.me;
        let round = self.killer.round(Freeze::Once, |scan, into| scan.descendants(me, into));
        if let Err(error) = round {
            log(&format_args!("cannot list the tree to kill it, trying again: {error}"));
            self.signal_group(Signal::KILL);
        }
        None
    }

    /// Signals the leader's process group. Only while the leader is not reaped: its number is not free till then.
    fn signal_group(&self, signal: Signal) {
        if let Some(leader) = self.leader {
            // It fails when the group has no member that could be signalled, which the next round will tell.
            let _ = rustix::process::kill_process_group(leader, signal);
        }
    }

    /// Reports limits that were hit.
    fn tell_hits(&mut self, last: bool) {
        for hit in self.leaf.hits(last) {
            self.say(&Report::LimitHit(hit));
        }
    }

    fn say(&self, what: &Report) {
        if let Some(control) = &self.control {
            report(control, what);
        }
    }
}
