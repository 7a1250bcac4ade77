//! `shell-command`: a program, and the whole tree of processes that comes of it.
//!
//! A command is over when its first process is; what it left behind is ended then, as it is when its time is over or
//! it is cancelled. This process is a subreaper, so whatever lost its parent became its child: "ended" is said when
//! the kernel says that there is no child any more.

mod output;
mod spec;
mod tree;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ostler_os::command::{Started, Starter};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitStatus, pidfd_open};
use serde::Serialize;

use crate::job::{Job, Outcome, error, payload, traced};
use crate::protocol::{ErrorKind, Task, TaskError};
use crate::wire::Wire;
use output::Captured;
use spec::Spec;

pub(crate) use output::Encoding;
pub(crate) use tree::{LEFT, adopt_descendants};

/// When a command's memory is looked at for the first time, and then as often. The hard wall is the worker's own.
const WEIGH: Duration = Duration::from_millis(200);

/// So long nobody looks at what a command prints: one that is over by then is noticed once, and not when it closes each of its
/// outputs too. One that prints more than a pipe holds is held up for no longer.
const QUICK: Duration = Duration::from_millis(2);

/// What all commands of this worker are started with.
struct Means {
    starter: Starter,
    /// What those read that are given nothing.
    nothing: File,
}

static MEANS: Mutex<Option<Means>> = Mutex::new(None);

impl Means {
    fn have(means: &mut Option<Self>) -> io::Result<&mut Self> {
        match means {
            Some(means) => Ok(means),
            none => Ok(none.insert(Self { starter: Starter::new()?, nothing: File::open("/dev/null")? })),
        }
    }
}

fn means() -> MutexGuard<'static, Option<Means>> {
    MEANS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins a command; gives it with the own ends of its pipes: input, where there is something for it, output and errors.
fn begin(spec: &Spec) -> io::Result<(Started, Option<OwnedFd>, OwnedFd, OwnedFd)> {
    let mut means = means();
    let means = Means::have(&mut means)?;
    let (out, err) = (pipe_with(PipeFlags::CLOEXEC)?, pipe_with(PipeFlags::CLOEXEC)?);
    let given = if spec.stdin.is_empty() { None } else { Some(pipe_with(PipeFlags::CLOEXEC)?) };
    // Its own ends are closed here when it has them.
    let (theirs, stdin) = given.unzip();
    for own in [Some(&out.0), Some(&err.0), stdin.as_ref()].into_iter().flatten() {
        fcntl_setfl(own, OFlags::NONBLOCK)?;
    }
    let input = theirs.as_ref().map_or(means.nothing.as_fd(), AsFd::as_fd);
    let started = means.starter.start(Arc::clone(&spec.command), [input, out.1.as_fd(), err.1.as_fd()])?;
    Ok((started, stdin, out.0, err.0))
}

/// What came of a command.
#[derive(Serialize)]
struct Report {
    /// Its exit status; none: a signal ended it.
    status: Option<i32>,
    /// The signal that ended it.
    signal: Option<i32>,
    stdout: String,
    stderr: String,
    /// Bytes of each that are not here.
    stdout_dropped: u64,
    stderr_dropped: u64,
}

/// Runs a command to its end.
pub(crate) fn command(job: &Job, task: &Task) -> Outcome {
    let spec = Spec::of(payload(task)?, &job.allow)?;
    let mut running = Running::start(&spec)?;
    let why = running.attend(job);
    let status = tree::end(running.leader)?;
    running.became().map_err(|why| spec.not_started(&why))?;
    running.drain();
    match why {
        Some(Why::Stop(stop)) => return Err(job.stopped(stop)),
        Some(Why::Memory(bytes)) => {
            let max = job.memory;
            return Err(error(
                ErrorKind::Memory,
                &format!("its processes used {bytes} bytes; {max} are allowed (`limits.memory`)"),
            ));
        }
        None => {}
    }
    let report = running.report(status, spec.encoding);
    if !spec.check || report.status == Some(0) {
        return job.value_of(&report);
    }
    let how = match (report.status, report.signal) {
        (Some(status), _) => format!("the command ended with status {status}"),
        (None, signal) => format!("the command was ended by signal {}", signal.unwrap_or_default()),
    };
    let trace = if spec.encoding == Encoding::Text { report.stderr.as_str() } else { "" };
    let detail = job.value_of(&report).ok();
    Err(TaskError { detail, ..traced(ErrorKind::Failed, &how, trace) })
}

/// Why a command is ended before it ends.
enum Why {
    Stop(crate::job::Stop),
    /// Bytes that it uses.
    Memory(u64),
}

/// A command that was started.
struct Running<'s> {
    leader: Pid,
    /// What says whether it became the program; none once it was asked.
    started: Option<Started>,
    /// Tells when the leader has ended.
    pidfd: OwnedFd,
    stdin: Option<OwnedFd>,
    /// What is still to be written to it.
    given: &'s [u8],
    stdout: Captured,
    stderr: Captured,
}

impl<'s> Running<'s> {
    fn start(spec: &'s Spec) -> Result<Self, TaskError> {
        let (started, stdin, stdout, stderr) = begin(spec).map_err(|why| spec.not_started(&why))?;
        let leader = started.pid();
        let pidfd = pidfd_open(leader, PidfdFlags::empty()).map_err(|why| {
            // It is not left running.
            let _ = tree::end(leader);
            error(ErrorKind::Failed, &format!("the command started, but cannot be watched: {why}"))
        })?;
        Ok(Self {
            leader,
            started: Some(started),
            pidfd,
            stdin,
            given: &spec.stdin,
            stdout: Captured::new(stdout, spec.max_output),
            stderr: Captured::new(stderr, spec.max_output),
        })
    }

    /// Once it has been waited for: whether it was the command.
    fn became(&mut self) -> io::Result<()> {
        let started = self.started.take();
        started.map_or(Ok(()), |started| Means::have(&mut means())?.starter.ended(started))
    }

    /// Until its first process has ended; or says why it is to be ended.
    fn attend(&mut self, job: &Job) -> Option<Why> {
        let begun = Instant::now();
        let mut weigh = begun + WEIGH;
        loop {
            if let Some(stop) = job.check() {
                return Some(Why::Stop(stop));
            }
            if Instant::now() >= weigh {
                weigh = Instant::now() + WEIGH;
                let bytes = tree::memory();
                if bytes > job.memory {
                    return Some(Why::Memory(bytes));
                }
            }
            let now = Instant::now();
            let wait = job.quiet().min(weigh.saturating_duration_since(now));
            let ready = match QUICK.checked_sub(now - begun) {
                Some(left) if !left.is_zero() => self.wait(wait.min(left), false),
                _ => self.wait(wait, true),
            };
            if ready.message {
                job.listen();
            }
            if ready.stdin {
                self.feed();
            }
            if ready.stdout {
                self.stdout.read();
            }
            if ready.stderr {
                self.stderr.read();
            }
            if ready.ended {
                return None;
            }
        }
    }

    fn wait(&self, at_most: Duration, for_output: bool) -> Ready {
        let closed: [Option<BorrowedFd<'_>>; 5] = [
            Some(Wire::input()),
            Some(self.pidfd.as_fd()),
            self.stdin.as_ref().map(AsFd::as_fd),
            self.stdout.end().filter(|_| for_output),
            self.stderr.end().filter(|_| for_output),
        ];
        let flags = [PollFlags::IN, PollFlags::IN, PollFlags::OUT, PollFlags::IN, PollFlags::IN];
        let asked = closed.iter().zip(flags).filter_map(|(end, flags)| Some((*end.as_ref()?, flags)));
        let mut asked: Vec<PollFd<'_>> =
            asked.map(|(end, flags)| PollFd::from_borrowed_fd(end, flags)).collect();
        // To the next millisecond: not before the time that is waited for.
        let at_most = Timespec::try_from(at_most + Duration::from_micros(500)).ok();
        if poll(&mut asked, at_most.as_ref()).is_err() {
            return Ready::default();
        }
        let mut answers = asked.iter().map(|asked| !asked.revents().is_empty());
        let mut each = closed.iter().map(|end| end.is_some() && answers.next().unwrap_or(false));
        let mut next = || each.next().unwrap_or(false);
        Ready { message: next(), ended: next(), stdin: next(), stdout: next(), stderr: next() }
    }

    fn feed(&mut self) {
        let Some(stdin) = &self.stdin else { return };
        match rustix::io::write(stdin, self.given) {
            Ok(written) => self.given = &self.given[written..],
            Err(Errno::INTR | Errno::AGAIN) => return,
            // It does not want any more.
            Err(_) => self.given = &[],
        }
        if self.given.is_empty() {
            self.stdin = None;
        }
    }

    /// What is left in the pipes; nobody writes to them any more.
    fn drain(&mut self) {
        while self.stdout.read() {}
        while self.stderr.read() {}
    }

    fn report(&self, status: Option<WaitStatus>, encoding: Encoding) -> Report {
        Report {
            status: status.and_then(WaitStatus::exit_status),
            signal: status.and_then(WaitStatus::terminating_signal),
            stdout: self.stdout.text(encoding),
            stderr: self.stderr.text(encoding),
            stdout_dropped: self.stdout.dropped(),
            stderr_dropped: self.stderr.dropped(),
        }
    }
}

/// What there is to be done.
#[derive(Default)]
struct Ready {
    message: bool,
    ended: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
}
