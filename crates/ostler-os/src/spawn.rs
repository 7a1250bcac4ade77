//! The daemon's side: starting a server through a guard, hearing from the guard, giving it orders.
//!
//! The guard is forked from a small process that does nothing else (the forge, see [`crate::guard`]), or, where
//! that does not work, started by `posix_spawn`: the cost of neither grows with the daemon's memory. Every
//! descriptor made here is close-on-exec and the server's are passed over the control socket, so nothing leaks into
//! a process that another thread starts at the same time.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::pipe::PipeFlags;
use rustix::process::{Signal, WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use crate::cgroup::home;
use crate::forge::{self, Forge, Outcome};
use crate::guard::GUARD_ARGUMENT;
use crate::limits::{LimitHit, Limits};
use crate::mark::{MARK_VARIABLE, Mark};
use crate::sweep::{self, REGISTRY};
use crate::wire::{self, Order, Received, Report, Spec};
use crate::{reap, tree};

/// Events waiting for their reader. A guard has at most seven and [`crate::guard::MAX_HITS`] to tell in its life, so none is ever
/// dropped.
const EVENT_QUEUE: usize = 16;

/// How often the tree is told SIGTERM at most, however often that is asked for. Each is a packet in the guard's
/// queue, and a guard that does not read must not run out of room for the order to kill.
pub const MAX_TERMINATES: u32 = 8;

/// How long a guard that has reported an empty tree may take to end before it is killed. A thousand that end at the same time
/// wait for each other.
const GUARD_EXIT: Duration = Duration::from_secs(10);

/// Makes this process a subreaper: processes whose guard has died become its children, and [`sweep`] finds them.
/// [`Spawner::new`] does it too; a daemon calls it first, to hear of a failure.
///
/// # Errors
/// On kernels before 3.4.
pub fn become_subreaper() -> io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    Ok(())
}

/// What to start.
#[derive(Clone, Debug)]
pub struct SpawnRequest {
    /// A path, or a name looked up in the `PATH` of `env`.
    pub program: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its whole environment (see [`crate::env::clean`]); the mark is added.
    pub env: Vec<(OsString, OsString)>,
    /// Its working directory; the daemon's own when absent.
    pub cwd: Option<PathBuf>,
    /// The mark its processes will carry as `OSTLER_INSTANCE`.
    pub mark: Mark,
    /// What it may use. The guard puts the server under it before the server's first instruction.
    pub limits: Limits,
}

/// Why no guard could be started. What goes wrong later comes as an event.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// No pipe for the server's standard streams, or no control socket.
    #[error(
        "cannot make the pipes and the control socket of a new server: {0}; the daemon may have too many open files (ulimit -n)"
    )]
    Channels(#[source] io::Error),
    /// The guard's program did not start.
    #[error(
        "cannot start the guard `{program}`: {source}; it is Ostler's own binary, which must stay where it is and executable"
    )]
    Guard {
        /// The guard's program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The guard started but could not be told what to run. It has ended, or will at once.
    #[error("cannot hand the command to its guard: {0}; arguments and environment may take up to 2 MiB")]
    Handover(#[source] io::Error),
}

/// Starts servers, each behind its own guard.
#[derive(Clone, Debug)]
pub struct Spawner {
    guard_exe: PathBuf,
    /// What guards are made by; ends with the last clone.
    forge: Arc<Forge>,
}

impl Default for Spawner {
    /// Guards run the program that is running now, even when its file has been replaced by an upgrade.
    fn default() -> Self {
        Self::new("/proc/self/exe")
    }
}

impl Spawner {
    /// Guards are `guard_exe guard <mark>`, a program that calls [`crate::guard::main`].
    pub fn new(guard_exe: impl Into<PathBuf>) -> Self {
        if let Err(error) = become_subreaper() {
            tracing::error!(%error, "not a subreaper: what a killed guard leaves is found by its mark only");
        }
        // Before the first guard: those live where the daemon lives.
        home::claim();
        Self { guard_exe: guard_exe.into(), forge: Arc::default() }
    }

    /// Starts the forge now instead of with the first server, which is then there sooner; and a daemon has as many
    /// processes before its first server as after its last.
    pub fn warm(&self) {
        self.forge.warm(&self.guard_exe, &mut REGISTRY.lock());
    }

    /// The pid of the process that guards are forked from, once the first was: of the daemon's processes the one
    /// that is neither itself nor a guard.
    pub fn forge_pid(&self) -> Option<i32> {
        self.forge.pid()
    }

    /// Starts a guard and tells it to start the server; does not wait for that. Dropping the last
    /// [`GuardControl`] ends the tree.
    ///
    /// # Errors
    /// When no guard could be started. That the server itself cannot be started is an event.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub fn spawn(&self, request: SpawnRequest) -> Result<Guarded, SpawnError> {
        let (channels, guard_pid, pidfd) = self.start_guard(request.mark)?;
        // From here on the driver reaps the guard, and dropping `control` ends it.
        let link = Arc::new(Link { socket: channels.daemon_end, pidfd });
        let control = GuardControl(Arc::new(Hold {
            link: Arc::clone(&link),
            terminates: AtomicU32::new(0),
            killed: AtomicBool::new(false),
        }));
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        tokio::spawn(Driver { link: Arc::clone(&link), guard_pid, mark: request.mark, events }.run());
        let server = [&channels.server_stdin, &channels.server_stdout, &channels.server_stderr];
        // The guard's end is its own now: it must not seem to live because the daemon holds it.
        drop(channels.guard_end);
        wire::send_spec(link.socket.get_ref(), &spec(&request), server.map(|fd| fd.as_fd()))
            .map_err(SpawnError::Handover)?;
        // Readable even if the guard has ended: where the driver runs, it is reaped later than this, or the
        // number is of no use any more.
        let guard_start = tree::read(guard_pid).ok().flatten().map_or(0, |process| process.start_time);
        Ok(Guarded {
            stdin: channels.stdin,
            stdout: channels.stdout,
            stderr: channels.stderr,
            control,
            events: receiver,
            guard_pid,
            guard_start,
            mark: request.mark,
        })
    }

    /// A guard that runs, and the channels to it and to its server.
    fn start_guard(&self, mark: Mark) -> Result<(Channels, i32, AsyncFd<OwnedFd>), SpawnError> {
        let failed = |source| SpawnError::Guard { program: self.guard_exe.display().to_string(), source };
        let mut channels = Channels::open().map_err(SpawnError::Channels)?;
        // Held until the guard is registered, so that no sweep takes it for an orphan.
        let mut registry = REGISTRY.lock();
        let pid = match self.forge.make(&self.guard_exe, &channels.guard_end, mark, &mut registry) {
            Outcome::Made(pid) => pid,
            Outcome::Failed(source) => return Err(failed(source)),
            Outcome::Without => self.execute_guard(&channels.guard_end, mark).map_err(failed)?,
            Outcome::Lost => {
                // Of a guard that may hear what goes over them, these are the last it hears of.
                channels = Channels::open().map_err(SpawnError::Channels)?;
                forge::sweep_up();
                self.execute_guard(&channels.guard_end, mark).map_err(failed)?
            }
        };
        registry.insert(pid);
        // It is our child and not reaped, so the pid is its own still.
        match crate::pidfd::open(pid).and_then(watch) {
            Ok(pidfd) => Ok((channels, pid, pidfd)),
            Err(source) => {
                // Cannot be watched, so it must not stay. It has no command yet and dies at once.
                registry.end_unwatched(pid);
                Err(failed(source))
            }
        }
    }

    /// Starts a guard as a program.
    fn execute_guard(&self, control: &OwnedFd, mark: Mark) -> io::Result<i32> {
        // No `pre_exec` and a path as program: this keeps the standard library on posix_spawn.
        let mut command = Command::new(&self.guard_exe);
        command.arg0("ostler").arg(GUARD_ARGUMENT).arg(mark.to_string()).env_clear();
        command.stdin(control.try_clone()?).stdout(Stdio::null()).stderr(Stdio::inherit());
        Ok(command.spawn()?.id().cast_signed())
    }
}

/// A descriptor that tells when it can be read.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the `AsyncFd` from here on, so it stays open and the same for as long as
    // it is registered; nobody replaces it under its number.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(|error| error.into_parts().1)
}

/// The environment of the guard is empty, the server's is exactly this.
fn spec(request: &SpawnRequest) -> Spec {
    let mut env = request.env.clone();
    env.retain(|(name, _)| name != MARK_VARIABLE);
    env.push((MARK_VARIABLE.into(), request.mark.to_string().into()));
    Spec {
        program: request.program.clone(),
        args: request.args.clone(),
        env,
        cwd: request.cwd.clone().map(PathBuf::into_os_string),
        limits: request.limits,
        plan: home::claim().plan.clone(),
    }
}

struct Channels {
    stdin: pipe::Sender,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    server_stdin: OwnedFd,
    server_stdout: OwnedFd,
    server_stderr: OwnedFd,
    daemon_end: AsyncFd<OwnedFd>,
    guard_end: OwnedFd,
}

impl Channels {
    fn open() -> io::Result<Self> {
        // Pipes, because some programs reopen /dev/stdin or want `S_ISFIFO`; only the daemon's ends do not block.
        let (server_stdin, stdin) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (stdout, server_stdout) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, server_stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (daemon_end, guard_end) = wire::socket_pair()?;
        Ok(Self {
            stdin: pipe::Sender::from_owned_fd(stdin)?,
            stdout: pipe::Receiver::from_owned_fd(stdout)?,
            stderr: pipe::Receiver::from_owned_fd(stderr)?,
            server_stdin,
            server_stdout,
            server_stderr,
            daemon_end: watch(daemon_end)?,
            guard_end,
        })
    }
}

/// A server behind its guard.
#[derive(Debug)]
pub struct Guarded {
    /// The server's standard input. Dropping it is end of file for the server.
    pub stdin: pipe::Sender,
    /// The server's standard output: at end when every process that held it has closed it.
    pub stdout: pipe::Receiver,
    /// The server's standard error.
    pub stderr: pipe::Receiver,
    /// Orders to the guard.
    pub control: GuardControl,
    /// What happens, in order, ending with [`GuardEvent::TreeEmpty`]. `None` after it, or at once after it.
    pub events: mpsc::Receiver<GuardEvent>,
    /// The guard's pid, for the ledger and for [`crate::meter`].
    pub guard_pid: i32,
    /// The guard's start time in clock ticks since boot; 0 when it had ended before it could be read.
    pub guard_start: u64,
    /// The mark of the tree.
    pub mark: Mark,
}

/// How a process ended: by itself with a code, or by a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// With this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// The kernel no longer knows.
    Unknown,
}

impl Exit {
    fn new(code: Option<i32>, signal: Option<i32>) -> Self {
        match (code, signal) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Unknown,
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with status {code}"),
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
            Self::Unknown => f.write_str("ended; how is not known"),
        }
    }
}

/// Why the server's program did not start.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct SpawnFailure {
    /// What kind of failure it is: `NotFound` and `PermissionDenied` will not heal by trying again.
    pub kind: io::ErrorKind,
    /// The kernel's number for it, where there is one.
    pub errno: Option<i32>,
    /// What failed, why, and what to do, naming the program.
    pub message: String,
}

/// What happened to a tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GuardEvent {
    /// The server's first process runs its program.
    Started {
        /// Its pid.
        pid: i32,
        /// Its start time in clock ticks since boot.
        start_time: u64,
    },
    /// It did not start. [`GuardEvent::TreeEmpty`] follows.
    SpawnFailed(SpawnFailure),
    /// The first process has ended; others may live. Unless [`GuardControl::terminate`] came before, the guard
    /// now ends the rest within moments. After it, the guard waits for [`GuardControl::kill`].
    LeaderExited(Exit),
    /// The tree hit a limit of its own, or was hit by the machine's shortage of memory. Comes before
    /// [`GuardEvent::LeaderExited`] when the leader was killed for it. At most [`crate::guard::MAX_HITS`] times for a tree;
    /// [`crate::limits::readings`] has the count at any time.
    LimitHit(LimitHit),
    /// Two seconds of SIGKILL were not enough for these (uninterruptible, or another user's). It goes on.
    Stuck {
        /// Some of the pids, at most 64.
        pids: Vec<i32>,
    },
    /// The guard ended before its tree was empty. What it left is being killed; `TreeEmpty` follows.
    GuardDied(Exit),
    /// No process of the tree is left, and neither is its guard. The last event.
    TreeEmpty,
}

/// Orders to one guard. Clones are the same; when the last is dropped, the guard ends the tree: SIGTERM, half a
/// second, SIGKILL. No method waits.
#[derive(Clone, Debug)]
pub struct GuardControl(Arc<Hold>);

#[derive(Debug)]
struct Hold {
    link: Arc<Link>,
    terminates: AtomicU32,
    killed: AtomicBool,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // End of file for the guard; its reports can still be read. Not connected: it has ended already.
        let _ = rustix::net::shutdown(self.link.socket.get_ref(), Shutdown::Write);
        self.link.wake();
    }
}

impl GuardControl {
    /// SIGTERM, then SIGCONT, to every process of the tree. From the [`MAX_TERMINATES`]th time on it does nothing.
    pub fn terminate(&self) {
        if self.0.terminates.fetch_add(1, Ordering::Relaxed) < MAX_TERMINATES {
            self.0.link.order(Order::Terminate);
        }
    }

    /// SIGKILL to every process of the tree until none is left. Once is enough; more does nothing.
    pub fn kill(&self) {
        if !self.0.killed.swap(true, Ordering::Relaxed) {
            self.0.link.order(Order::Kill);
        }
        self.0.link.wake();
    }

    /// Kills the guard itself: the last step for one that does not answer. The daemon then kills the tree.
    pub fn kill_guard(&self) {
        self.0.link.signal(Signal::KILL);
    }
}

/// The daemon's two holds on a guard.
#[derive(Debug)]
struct Link {
    socket: AsyncFd<OwnedFd>,
    pidfd: AsyncFd<OwnedFd>,
}

impl Link {
    fn order(&self, order: Order) {
        match wire::send(self.socket.get_ref(), &order) {
            Ok(()) => {}
            // It has ended, or is about to: the driver will say so.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => {}
            Err(error) => tracing::warn!(%error, ?order, "a guard could not be given an order"),
        }
        self.wake();
    }

    /// A server could have stopped its guard.
    fn wake(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        // It fails when the guard has ended: then there is nothing to signal.
        let _ = rustix::process::pidfd_send_signal(self.pidfd.get_ref(), signal);
    }
}

/// Follows one guard from its start to its end.
struct Driver {
    link: Arc<Link>,
    guard_pid: i32,
    mark: Mark,
    events: mpsc::Sender<GuardEvent>,
}

impl Driver {
    /// Ends with the guard reaped and its tree empty.
    async fn run(self) {
        let empty = self.hear().await;
        if empty && tokio::time::timeout(GUARD_EXIT, self.ended()).await.is_err() {
            tracing::warn!(guard = self.guard_pid, "a guard without a tree did not end; killing it");
            self.link.signal(Signal::KILL);
        }
        self.ended().await;
        let exit = self.reap();
        if !empty {
            self.tell(GuardEvent::GuardDied(exit));
            self.sweep().await;
        }
        self.tell(GuardEvent::TreeEmpty);
    }

    /// Passes reports on until the last; whether the tree was reported empty.
    async fn hear(&self) -> bool {
        loop {
            let Ok(mut ready) = self.link.socket.readable().await else {
                return false;
            };
            match wire::recv::<Report, { wire::MAX_PACKET_BYTES }>(self.link.socket.get_ref()) {
                Ok(Received::Message(Report::TreeEmpty)) => return true,
                Ok(Received::Message(report)) => self.tell(event(report)),
                Ok(Received::Nothing) => ready.clear_ready(),
                Ok(Received::End) => return false,
                Err(error) => {
                    tracing::error!(%error, guard = self.guard_pid, "a guard said what cannot be understood; killing it");
                    self.link.signal(Signal::KILL);
                    return false;
                }
            }
        }
    }

    async fn ended(&self) {
        // A pidfd becomes readable once and stays so.
        if let Err(error) = self.link.pidfd.readable().await {
            tracing::error!(%error, "cannot watch a guard: the runtime is shutting down");
        }
    }

    fn reap(&self) -> Exit {
        // Under the lock: a sweep sees the guard registered, or does not see it at all.
        let mut registry = REGISTRY.lock();
        registry.remove(self.guard_pid);
        loop {
            match rustix::process::waitid(
                WaitId::PidFd(self.link.pidfd.get_ref().as_fd()),
                WaitIdOptions::EXITED,
            ) {
                Ok(Some(status)) => return Exit::new(status.exit_status(), status.terminating_signal()),
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return Exit::Unknown,
            }
        }
    }

    /// Kills what the guard left, and comes back when nothing of it is there.
    async fn sweep(&self) {
        let (done, finished) = tokio::sync::oneshot::channel();
        let (mark, events) = (self.mark, self.events.clone());
        // A thread, not a blocking task: a runtime waits for those at its end, and this may take long.
        let work = move || {
            let mut stuck = |pids| drop(events.try_send(GuardEvent::Stuck { pids }));
            home::kill(mark);
            sweep::sweep(&mut stuck);
            // Empty already, unless this process was no subreaper when the guard died.
            reap::kill_marked(mark);
            home::remove_leaves(mark);
            let _ = done.send(());
        };
        if let Err(error) = std::thread::Builder::new().name("ostler-sweep".into()).spawn(work) {
            tracing::error!(%error, "no thread for sweeping up after a dead guard; doing it in place");
            sweep::sweep(&mut |_| {});
            return;
        }
        if finished.await.is_err() {
            tracing::error!("the sweep after a dead guard broke off; what it left is ended with the daemon");
        }
    }

    fn tell(&self, event: GuardEvent) {
        // Nobody listens any more: the tree is ended all the same.
        let _ = self.events.try_send(event);
    }
}

fn event(report: Report) -> GuardEvent {
    match report {
        Report::Started { pid, start_time } => GuardEvent::Started { pid, start_time },
        Report::SpawnFailed { errno, message } => {
            let kind = errno.map_or(io::ErrorKind::Other, |errno| io::Error::from_raw_os_error(errno).kind());
            GuardEvent::SpawnFailed(SpawnFailure { kind, errno, message })
        }
        Report::LeaderExited { code, signal } => GuardEvent::LeaderExited(Exit::new(code, signal)),
        Report::LimitHit(hit) => GuardEvent::LimitHit(hit),
        Report::Stuck { pids } => GuardEvent::Stuck { pids },
        Report::TreeEmpty => GuardEvent::TreeEmpty,
    }
}
