//! The daemon's side of the forge (see [`crate::guard`]): starting it, asking it for guards, replacing it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions};

use crate::guard::forge::{arguments, is_impossible};
use crate::mark::Mark;
use crate::pidfd;
use crate::sweep::{self, Guards, REGISTRY};
use crate::wire::{self, Forged, Received};

/// How long a forge may take to make a guard. It takes a quarter of a millisecond; one that takes this long was
/// stopped, and is replaced.
const ANSWER: Duration = Duration::from_secs(2);

/// What asking for a guard came to.
pub(crate) enum Outcome {
    /// A guard: a child of this process, not reaped.
    Made(i32),
    /// There is no forge, and nobody has the socket: a guard has to be started as a program.
    Without,
    /// The kernel has no room for another process.
    Failed(io::Error),
    /// The forge died, or did not answer. Whether a guard has the socket is not known.
    Lost,
}

/// One forge, started by [`Forge::warm`] or when it is first needed, and again when it was lost.
#[derive(Debug, Default)]
pub(crate) struct Forge(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    None,
    Running(Process),
    /// This machine does not let it work.
    Impossible,
}

impl State {
    /// A failure is not told here: a guard that is started as a program will meet the same, and say so.
    fn start_if_none(&mut self, exe: &Path, registry: &mut Guards) {
        if let Self::None = self
            && let Ok(process) = Process::start(exe, registry)
        {
            *self = Self::Running(process);
        }
    }
}

#[derive(Debug)]
struct Process {
    socket: OwnedFd,
    pidfd: OwnedFd,
    pid: i32,
}

impl Forge {
    /// Asks for a guard with this control socket. The registry is locked by the caller, who registers what was made
    /// before he unlocks it.
    pub(crate) fn make(&self, exe: &Path, control: &OwnedFd, mark: Mark, registry: &mut Guards) -> Outcome {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.start_if_none(exe, registry);
        let State::Running(process) = &*state else { return Outcome::Without };
        match process.ask(control.as_fd(), mark) {
            Ok(Forged::Guard { pid }) => Outcome::Made(pid),
            Ok(Forged::Failed { errno }) if is_impossible(errno) => {
                process.end(registry);
                *state = State::Impossible;
                Outcome::Without
            }
            Ok(Forged::Failed { errno }) => Outcome::Failed(io::Error::from_raw_os_error(errno)),
            Err(error) => {
                tracing::warn!(%error, forge = process.pid, "the forge of guards is lost; starting another");
                let last = process.end(registry);
                *state = State::None;
                last.map_or(Outcome::Lost, Outcome::Made)
            }
        }
    }

    /// Starts it, unless there is one.
    pub(crate) fn warm(&self, exe: &Path, registry: &mut Guards) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).start_if_none(exe, registry);
    }

    /// The pid of the forge, while there is one.
    pub(crate) fn pid(&self) -> Option<i32> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Running(process) => Some(process.pid),
            State::None | State::Impossible => None,
        }
    }
}

impl Drop for Forge {
    fn drop(&mut self) {
        if let State::Running(process) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            process.end(&mut REGISTRY.lock());
        }
    }
}

impl Process {
    fn start(exe: &Path, registry: &mut Guards) -> io::Result<Self> {
        let (socket, theirs) = wire::socket_pair()?;
        let mut command = Command::new(exe);
        command.arg0("ostler").args(arguments()).env_clear();
        command.stdin(theirs).stdout(Stdio::null()).stderr(Stdio::inherit());
        let pid = command.spawn()?.id().cast_signed();
        // Of another session and not to be swept up, as guards are.
        registry.insert(pid);
        match pidfd::open(pid) {
            Ok(pidfd) => Ok(Self { socket, pidfd, pid }),
            Err(error) => {
                registry.end_unwatched(pid);
                Err(error)
            }
        }
    }

    fn ask(&self, control: BorrowedFd<'_>, mark: Mark) -> io::Result<Forged> {
        wire::send_guard(&self.socket, mark, control)?;
        let timeout =
            Timespec { tv_sec: ANSWER.as_secs().cast_signed(), tv_nsec: ANSWER.subsec_nanos().into() };
        loop {
            match rustix::event::poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            match wire::recv::<Forged, { wire::MAX_ORDER_BYTES }>(&self.socket)? {
                Received::Message(answer) => return Ok(answer),
                Received::Nothing => {}
                Received::End => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// Ends and reaps it; the guard that it had made at last, if it got that far.
    fn end(&self, registry: &mut Guards) -> Option<i32> {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        while let Err(Errno::INTR) =
            rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED)
        {}
        registry.remove(self.pid);
        match wire::recv::<Forged, { wire::MAX_ORDER_BYTES }>(&self.socket) {
            Ok(Received::Message(Forged::Guard { pid })) => Some(pid),
            _ => None,
        }
    }
}

/// A lost forge may have made a guard without having said so. It has no command, ends at the end of its control
/// socket, and is reaped by a sweep, which spares all that is registered.
pub(crate) fn sweep_up() {
    let swept = std::thread::Builder::new().name("ostler-sweep".into()).spawn(|| sweep::sweep(&mut |_| {}));
    if let Err(error) = swept {
        tracing::warn!(%error, "no thread for sweeping up after a lost forge; the next sweep does it");
    }
}
