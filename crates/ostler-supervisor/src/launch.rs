//! Where the drivers meet the operating system: what starts a server, and the ends of its pipes.
//!
//! [`ostler_os::Spawner`] is the one way that production has. With the feature `sim` there may be another, so that
//! the same drivers run on simulated processes; without it an end of a pipe is exactly tokio's.

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::{Mutex, PoisonError};

use bytes::BytesMut;
use ostler_os::meter::TreeRoot;
use ostler_os::{Exit, GuardControl, GuardEvent, Guarded, Mark, SpawnError, SpawnRequest, Spawner};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

/// Starts servers.
pub trait Launcher: fmt::Debug + Send + Sync {
    /// Starts a server's guard; does not wait for the server. See [`Spawner::spawn`].
    ///
    /// # Errors
    /// When no guard could be started. That the server itself cannot be started is an event.
    fn launch(&self, request: SpawnRequest) -> Result<Launched, SpawnError>;

    /// What the kernel says of these trees, and of children that belong to none. Blocks.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    fn look(&self, trees: &[TreeRoot]) -> io::Result<KernelView>;

    /// Ends the children that belong to no tree, with all that they started. Blocks until none is left.
    fn end_strays(&self);

    /// Ends every process that carries this mark. Blocks until none is left.
    fn end_marked(&self, mark: Mark);
}

/// What the kernel says.
#[derive(Clone, Debug, Default)]
pub struct KernelView {
    /// Of each tree in turn, whether its guard lives.
    pub living: Vec<bool>,
    /// Pids of children of this process that belong to no tree.
    pub strays: Vec<u32>,
}

/// Orders to one tree. Dropping it ends the tree. No method waits.
pub trait Control: fmt::Debug + Send + Sync {
    /// SIGTERM, then SIGCONT, to every process of the tree.
    fn terminate(&self);
    /// SIGKILL to every process of the tree until none is left. May be said again.
    fn kill(&self);
}

/// A server that was started; see [`Guarded`], whose fields these are.
#[derive(Debug)]
pub struct Launched {
    /// The server's standard input.
    pub stdin: Input,
    /// The server's standard output.
    pub stdout: Output,
    /// The server's standard error.
    pub stderr: Output,
    /// Orders to the tree.
    pub control: Box<dyn Control>,
    /// What happens, in order, ending with [`GuardEvent::TreeEmpty`].
    pub events: mpsc::Receiver<GuardEvent>,
    /// The guard's pid.
    pub guard_pid: i32,
    /// The guard's start time in clock ticks since boot.
    pub guard_start: u64,
    /// The mark of the tree.
    pub mark: Mark,
}

/// What stands for the process of a server that runs elsewhere: a tree of no process, which runs from now until it
/// is told to end, so that everything else about such a server is as it is for any other.
pub(crate) fn elsewhere(mark: Mark) -> Launched {
    // Room for everything that is ever said.
    let (sender, events) = mpsc::channel(3);
    let _ = sender.try_send(GuardEvent::Started { pid: 0, start_time: 0 });
    let control = Box::new(Elsewhere(Mutex::new(Some(sender))));
    let (stdin, stdout, stderr) = (Input::Nobody, Output::Nobody, Output::Nobody);
    Launched { stdin, stdout, stderr, control, events, guard_pid: 0, guard_start: 0, mark }
}

/// See [`elsewhere`]. Says its end once.
#[derive(Debug)]
struct Elsewhere(Mutex<Option<mpsc::Sender<GuardEvent>>>);

impl Elsewhere {
    fn end(&self, exit: Exit) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            let _ = sender.try_send(GuardEvent::LeaderExited(exit));
            let _ = sender.try_send(GuardEvent::TreeEmpty);
        }
    }
}

impl Control for Elsewhere {
    fn terminate(&self) {
        self.end(Exit::Code(0));
    }

    /// Nobody kills what goes well: to the restart policy this is a failure.
    fn kill(&self) {
        self.end(Exit::Unknown);
    }
}

impl Launcher for Spawner {
    fn launch(&self, request: SpawnRequest) -> Result<Launched, SpawnError> {
        self.spawn(request).map(Launched::from)
    }

    fn look(&self, trees: &[TreeRoot]) -> io::Result<KernelView> {
        let lives = |tree: &TreeRoot| {
            let guard = ostler_os::tree::read(tree.guard_pid)?;
            Ok(guard.is_some_and(|guard| guard.start_time == tree.guard_start && !guard.is_zombie()))
        };
        let living = trees.iter().map(lives).collect::<io::Result<_>>()?;
        let strays = ostler_os::sweep::orphans()?.into_iter().map(i32::unsigned_abs).collect();
        Ok(KernelView { living, strays })
    }

    fn end_strays(&self) {
        ostler_os::sweep::end_orphans();
    }

    fn end_marked(&self, mark: Mark) {
        ostler_os::reap::kill_marked(mark);
    }
}

impl Control for GuardControl {
    fn terminate(&self) {
        GuardControl::terminate(self);
    }

    fn kill(&self) {
        GuardControl::kill(self);
    }
}

impl From<Guarded> for Launched {
    fn from(guarded: Guarded) -> Self {
        Self {
            stdin: guarded.stdin.into(),
            stdout: guarded.stdout.into(),
            stderr: guarded.stderr.into(),
            control: Box::new(guarded.control),
            events: guarded.events,
            guard_pid: guarded.guard_pid,
            guard_start: guarded.guard_start,
            mark: guarded.mark,
        }
    }
}

/// The end of a pipe that a server reads from.
#[derive(Debug)]
pub enum Input {
    /// A pipe.
    Pipe(pipe::Sender),
    /// Nobody reads: the server runs elsewhere.
    Nobody,
    /// Not one.
    #[cfg(feature = "sim")]
    Simulated(Box<dyn simulated::Input>),
}

/// The end of a pipe that a server writes to.
#[derive(Debug)]
pub enum Output {
    /// A pipe.
    Pipe(pipe::Receiver),
    /// Nobody writes, so it is at its end: the server runs elsewhere.
    Nobody,
    /// Not one.
    #[cfg(feature = "sim")]
    Simulated(Box<dyn simulated::Output>),
}

impl From<pipe::Sender> for Input {
    fn from(pipe: pipe::Sender) -> Self {
        Self::Pipe(pipe)
    }
}

impl From<pipe::Receiver> for Output {
    fn from(pipe: pipe::Receiver) -> Self {
        Self::Pipe(pipe)
    }
}

impl Input {
    /// Resolves when it may take bytes. Cancel-safe.
    ///
    /// # Errors
    /// As [`pipe::Sender::writable`].
    pub async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.writable().await,
            Self::Nobody => Ok(()),
            #[cfg(feature = "sim")]
            Self::Simulated(end) => std::future::poll_fn(|context| end.poll_writable(context)).await,
        }
    }

    /// Gives it what it takes now, and says how much that was.
    ///
    /// # Errors
    /// `WouldBlock` when it takes nothing now, `BrokenPipe` when nobody reads it any more.
    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.try_write_vectored(slices),
            Self::Nobody => Err(io::ErrorKind::BrokenPipe.into()),
            #[cfg(feature = "sim")]
            Self::Simulated(end) => end.try_write_vectored(slices),
        }
    }
}

impl Output {
    /// Resolves when there may be bytes, or the end. Cancel-safe.
    ///
    /// # Errors
    /// As [`pipe::Receiver::readable`].
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.readable().await,
            Self::Nobody => Ok(()),
            #[cfg(feature = "sim")]
            Self::Simulated(end) => std::future::poll_fn(|context| end.poll_readable(context)).await,
        }
    }

    /// Appends what is there now; 0 is the end.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there now.
    pub fn try_read_buf(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.try_read_buf(buffer),
            Self::Nobody => Ok(0),
            #[cfg(feature = "sim")]
            Self::Simulated(end) => end.try_read_buf(buffer),
        }
    }

    /// Has the pipe hold so many bytes; whether it does now.
    pub(crate) fn hold(&self, bytes: usize) -> bool {
        match self {
            Self::Pipe(pipe) => ostler_os::pipe::set_capacity(pipe, bytes).is_ok(),
            Self::Nobody => false,
            #[cfg(feature = "sim")]
            Self::Simulated(_) => false,
        }
    }

    /// Reads what is there now into `buffer`, as far as that has room, and says how much that was; 0 is the end.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there now.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.try_read(buffer),
            Self::Nobody => Ok(0),
            #[cfg(feature = "sim")]
            Self::Simulated(end) => end.try_read(buffer),
        }
    }
}

/// For simulations: what stands for an end of a pipe.
#[cfg(feature = "sim")]
pub mod simulated {
    use std::fmt;
    use std::io::{self, IoSlice};
    use std::task::{Context, Poll};

    use bytes::BytesMut;

    /// See [`Input`](super::Input). Dropping it is end of file for the server.
    pub trait Input: fmt::Debug + Send + Sync {
        /// Ready when it may take bytes; one task waits at a time.
        fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
        /// See [`Input::try_write_vectored`](super::Input::try_write_vectored).
        ///
        /// # Errors
        /// As there.
        fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    }

    /// See [`Output`](super::Output).
    pub trait Output: fmt::Debug + Send + Sync {
        /// Ready when there may be bytes, or the end; one task waits at a time.
        fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
        /// See [`Output::try_read_buf`](super::Output::try_read_buf).
        ///
        /// # Errors
        /// As there.
        fn try_read_buf(&self, buffer: &mut BytesMut) -> io::Result<usize>;
        /// See [`Output::try_read`](super::Output::try_read).
        ///
        /// # Errors
        /// As there.
        fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    }
}
