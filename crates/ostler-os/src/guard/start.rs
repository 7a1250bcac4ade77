//! How a guard begins: preparing its own process, then starting the server.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Access, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, Signal};
use rustix::thread::Timespec;

use super::birth::{self, Step};
use crate::cgroup::home::Plan;
use crate::cgroup::leaf::Leaf;
use crate::limits::Limits;
use crate::mark::{MARK_VARIABLE, Mark};
use crate::tree;
use crate::wire::Spec;

/// Where a bare program name is looked up when the server's environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// How often a session's niceness is tried, and how long after each: two tenths of a second, twice what the kernel keeps
/// between two.
const AUTOGROUP_TRIES: usize = 10;
const AUTOGROUP_PAUSE_NS: i64 = 20_000_000;

/// Signals a guard must survive: from the terminal, from a logging-out user, from a daemon's service manager.
/// It ends when its tree has ended, and not before.
const IGNORED: [libc::c_int; 9] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGPIPE,
    libc::SIGQUIT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGUSR1,
];

/// Makes this process a guard; gives the control socket and the signalfd. One that a forge made stays in the session that
/// the forge began, with a process group of its own: where each session has the same share of the processors (autogroup,
/// `sched(7)`), a hundred guards with something to do would have a hundred times the daemon's.
pub(super) fn prepare(forged: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    if forged {
        rustix::process::setpgid(None, None)?;
    } else {
        leave_session();
    }
    detach()?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    // The name in listings only.
    let _ = rustix::thread::set_name(c"ostler-guard");
    let signals = signalfd()?;
    Ok((take_stdin()?, signals))
}

/// Makes this process a forge; gives its socket. What it opens and sets, a guard closes and sets for itself.
pub(super) fn prepare_forge() -> io::Result<OwnedFd> {
    leave_session();
    detach()?;
    let _ = rustix::thread::set_name(c"ostler-forge");
    take_stdin()
}

fn leave_session() {
    // It fails only for the leader of a process group, which then has no terminal's group to fear either.
    let _ = rustix::process::setsid();
}

/// Out of reach of what may happen to the daemon, but for its end.
fn detach() -> io::Result<()> {
    for signal in IGNORED {
        set_disposition(signal, libc::SIG_IGN);
    }
    // If SIGCHLD came ignored, children would vanish without a status.
    set_disposition(libc::SIGCHLD, libc::SIG_DFL);
    // Whatever the daemon's parent left open in it must not reach a server.
    close_range(3, 0)?;
    // One that was stopped would not see its daemon end. SIGCONT does nothing to a running one, so it does
    // not matter that this also fires when only the daemon's thread that started it ends.
    rustix::process::set_parent_process_death_signal(Some(Signal::CONT))?;
    Ok(())
}

/// The socket that came as standard input, which then is empty.
fn take_stdin() -> io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(socket)
}

/// The server's first process.
pub(super) struct Leader {
    pub(super) pid: Pid,
    pub(super) start_time: u64,
}

/// Why a server could not be started, for the person who configured it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) errno: Option<i32>,
    pub(super) message: String,
}

impl Failure {
    fn new(error: &io::Error, message: impl Display) -> Self {
        Self { errno: error.raw_os_error(), message: message.to_string() }
    }

    fn of(errno: i32, message: impl Display) -> Self {
        Self { errno: Some(errno), message: message.to_string() }
    }
}

/// Starts the server under its limits and gives up this process's copies of its standard streams, so that their end
/// of file means what it says. On failure no cgroup of it is left.
pub(super) fn launch(spec: &Spec, stdio: [OwnedFd; 3]) -> Result<(Leader, Leaf), Failure> {
    let cwd = spec.cwd.as_deref().map(working_directory).transpose()?;
    let program = resolve(&spec.program, spec.env.iter(), cwd.as_deref())?;
    let mark = mark_of(spec);
    let leaf = match mark {
        Some(mark) => Leaf::make(&spec.plan, &mark.to_string(), spec.limits),
        None => Leaf::make(&Plan::default(), "", spec.limits),
    };
    let leaf = leaf.map_err(|error| {
        Failure::new(
            &error,
            format_args!("cannot limit `{}`: {error}; see `ostler doctor`", program.display()),
        )
    })?;
    let command = command(spec, &program, cwd.as_deref(), stdio, mark);
    let pid = leaf
        .entry()
        .map_err(|error| Failure::new(&error, format_args!("cannot enter the server's cgroup: {error}")))
        .and_then(|entry| {
            birth::start(command, &entry, spec.limits)
                .map_err(|failed| explain(&program, spec.limits, &failed))
        });
    match pid.and_then(leader) {
        Ok(leader) => Ok((leader, leaf)),
        Err(failure) => {
            if let Err(error) = leaf.remove() {
                super::log(&format_args!("cannot remove the cgroup of a server that did not start: {error}"));
            }
            Err(failure)
        }
    }
}

fn command(
    spec: &Spec,
    program: &Path,
    cwd: Option<&Path>,
    [stdin, stdout, stderr]: [OwnedFd; 3],
    mark: Option<Mark>,
) -> Command {
    let mut command = Command::new(program);
    command.arg0(&spec.program).args(&spec.args);
    command.env_clear().envs(spec.env.iter().map(|(name, value)| (name, value)));
    command.stdin(stdin).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
    if let Some(cwd) = cwd {
        command.current_dir(cwd);
    }
    let guard = rustix::process::getpid();
    let locks = mark.map(locks_limit);
    let nice = spec.limits.nice.map(|nice| nice.to_string());
    // SAFETY: `become_leader` only makes system calls that are async-signal-safe; it allocates only for an error
    // it returns from an `errno`, which does not allocate.
    unsafe { command.pre_exec(move || become_leader(guard, locks, nice.as_deref())) };
    command
}

fn leader(pid: Pid) -> Result<Leader, Failure> {
    // Not reaped yet, so its entry is there even if it has ended.
    match tree::read(pid.as_raw_nonzero().get()) {
        Ok(Some(process)) => Ok(Leader { pid, start_time: process.start_time }),
        other => {
            // Without a start time the process cannot be named for good, so it must not stay.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            let why = other.err().map_or_else(|| "no entry".to_owned(), |error| error.to_string());
            Err(Failure {
                errno: None,
                message: format!("cannot read /proc/{pid:?}/stat: {why}; mount /proc"),
            })
        }
    }
}

fn mark_of(spec: &Spec) -> Option<Mark> {
    let (_, value) = spec.env.iter().find(|(name, _)| name == MARK_VARIABLE)?;
    value.to_str()?.parse().ok()
}

/// The mark as a limit, for what clears its environment. The hard limit stays as it is.
fn locks_limit(mark: Mark) -> Rlimit {
    Rlimit { current: Some(mark.limit()), ..rustix::process::getrlimit(Resource::Locks) }
}

/// Between fork and exec, in the child.
fn become_leader(guard: Pid, locks: Option<Rlimit>, nice: Option<&str>) -> io::Result<()> {
    rustix::process::setsid()?;
    if let Some(nice) = nice {
        yield_as_session(nice);
    }
    // Set before looking at the parent: a guard that dies in between is seen by one of the two.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() != Some(guard) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    if let Some(locks) = locks {
        // It fails below a lower hard limit: then the environment has to do.
        let _ = rustix::process::setrlimit(Resource::Locks, locks);
    }
    reset_dispositions();
    set_mask(&[])?;
    // Only 0, 1 and 2 go along. Marked, not closed: the standard library still reports an exec error on one.
    close_range(3, libc::CLOSE_RANGE_CLOEXEC)
}

/// Gives the session that was just begun its niceness: where each session has the same share of the processors (autogroup,
/// `sched(7)`), that of a process counts within its session only. It fails where the kernel has no such shares, and then
/// that of the process is enough. To all but root it says so when another was set within the last tenth of a second.
fn yield_as_session(nice: &str) {
    let open = || rustix::fs::open(c"/proc/self/autogroup", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    let pause = Timespec { tv_sec: 0, tv_nsec: AUTOGROUP_PAUSE_NS };
    for _ in 0..AUTOGROUP_TRIES {
        let told = open().and_then(|file| rustix::io::write(file, nice.as_bytes()));
        if told != Err(Errno::AGAIN) {
            return;
        }
        let _ = rustix::thread::nanosleep(&pause);
    }
}

/// See [`super::look_up`].
pub(super) fn look_up(
    program: &OsStr,
    env: &[(OsString, OsString)],
    cwd: Option<&Path>,
) -> Result<PathBuf, Failure> {
    let cwd = cwd.map(|cwd| working_directory(cwd.as_os_str())).transpose()?;
    resolve(program, env.iter(), cwd.as_deref())
}

fn working_directory(cwd: &OsStr) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(cwd)
        .map_err(|error| Failure::new(&error, format_args!("the working directory {cwd:?}: {error}")))?;
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => Ok(path),
        Ok(_) => Err(Failure::of(
            libc::ENOTDIR,
            format_args!("the working directory `{}` is not a directory; set `cwd` to one", path.display()),
        )),
        Err(error) => Err(Failure::new(
            &error,
            format_args!("the working directory `{}`: {error}; create it or change `cwd`", path.display()),
        )),
    }
}

/// Finds the file to execute as execvp(3) would, but says what was looked for and where when it is not there.
fn resolve<'a>(
    program: &OsStr,
    mut env: impl Iterator<Item = &'a (OsString, OsString)>,
    cwd: Option<&Path>,
) -> Result<PathBuf, Failure> {
    let base = cwd.unwrap_or(Path::new(""));
    let shown = program.display();
    if program.is_empty() {
        return Err(Failure::of(libc::ENOENT, "the program's name is empty; set `command`"));
    }
    if program.as_encoded_bytes().contains(&b'/') {
        let path = base.join(program);
        return match executable(&path) {
            Ok(()) => Ok(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::new(
                &error,
                format_args!("`{}` does not exist; install it or correct `command`", path.display()),
            )),
            Err(error) => Err(Failure::new(&error, not_executable(&path, &error))),
        };
    }
    let search = env.find(|(name, _)| name == "PATH").map_or(OsStr::new(DEFAULT_PATH), |(_, value)| value);
    let mut refused = None;
    for directory in std::env::split_paths(search) {
        let path = base.join(directory).join(program);
        match executable(&path) {
            // A path, not a name, so that nothing is searched again.
            Ok(()) => {
                return Ok(if path == Path::new(program) { Path::new(".").join(path) } else { path });
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {}
            Err(error) => refused = refused.or(Some((path, error))),
        }
    }
    if let Some((path, error)) = refused {
        return Err(Failure::new(&error, not_executable(&path, &error)));
    }
    Err(Failure::of(
        libc::ENOENT,
        format_args!(
            "`{shown}` was not found in PATH={}; install it, or give its full path as `command`",
            search.display()
        ),
    ))
}

fn executable(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path)?.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    Ok(rustix::fs::access(path, Access::EXEC_OK)?)
}

fn not_executable(path: &Path, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EISDIR) => format!("`{}` is a directory; name a program as `command`", path.display()),
        Some(libc::EACCES) => format!("`{}` may not be executed; check it with `chmod +x`", path.display()),
        _ => format!("`{}` cannot be executed: {error}", path.display()),
    }
}

/// The file is there and may be executed, and yet it did not start.
fn explain(program: &Path, limits: Limits, failed: &birth::Failed) -> Failure {
    let shown = program.display();
    let error = &failed.error;
    match failed.step {
        Step::Exec => {}
        Step::Fork => {
            let message =
                format!("`{shown}`: {error}: no memory or process number is left for it (see ulimit -u)");
            return Failure::new(error, message);
        }
        Step::Cgroup => {
            return Failure::new(
                error,
                format_args!("`{shown}` could not enter its cgroup: {error}; see `ostler doctor`"),
            );
        }
        Step::OpenFiles => {
            let limit = limits.open_files.unwrap_or_default();
            return Failure::new(
                error,
                format_args!("`{shown}`: open_files = {limit} cannot be set: {error}"),
            );
        }
        Step::Nice => {
            let nice = limits.nice.unwrap_or_default();
            let message = format!(
                "`{shown}`: nice = {nice} cannot be set: {error}; below the daemon's own it needs CAP_SYS_NICE"
            );
            return Failure::new(error, message);
        }
    }
    let message = match error.raw_os_error() {
        Some(libc::ENOENT) => {
            format!(
                "`{shown}` is there, but the interpreter it names (its #! line or loader) is not; install that"
            )
        }
        Some(libc::ENOEXEC) => {
            format!("`{shown}` is neither a program for this machine nor a script that starts with #!")
        }
        Some(libc::EACCES) => {
            format!("`{shown}` may not be executed: its interpreter or a directory above it forbids it")
        }
        Some(libc::E2BIG) => {
            format!("`{shown}`: arguments and environment are longer than the kernel allows; shorten them")
        }
        Some(libc::EAGAIN | libc::ENOMEM) => {
            format!("`{shown}`: {error}: no memory or process number is left for it (see ulimit -u)")
        }
        _ => format!("`{shown}` could not be started: {error}"),
    };
    Failure::new(error, message)
}

/// Every signal to its default, the two that libc keeps to itself (32, 33) included: some launchers leave those
/// ignored, and `libc::signal` refuses to touch them.
fn reset_dispositions() {
    /// Larger than the kernel's `struct sigaction` on every architecture; all zero is SIG_DFL, no flags, no mask.
    const DEFAULT: [u64; 8] = [0; 8];
    /// Signals are 1 to 64, so a set of them takes 8 bytes.
    const SIGNALS: libc::c_long = 64;
    for signal in 1..=SIGNALS {
        // SAFETY: the kernel reads a `struct sigaction` from `DEFAULT`, writes nothing back, and installs no code.
        // It refuses SIGKILL and SIGSTOP, which cannot be changed anyway.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                DEFAULT.as_ptr(),
                std::ptr::null_mut::<u64>(),
                SIGNALS / 8,
            )
        };
    }
}

fn set_disposition(signal: libc::c_int, disposition: libc::sighandler_t) {
    // SAFETY: SIG_IGN and SIG_DFL run no code of ours, and the signals given here can all be set.
    unsafe { libc::signal(signal, disposition) };
}

/// Blocks exactly `signals` in this thread.
fn set_mask(signals: &[libc::c_int]) -> io::Result<libc::sigset_t> {
    // SAFETY: the set is initialised by sigemptyset before use, and all pointers are to it.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        for &signal in signals {
            libc::sigaddset(&raw mut set, signal);
        }
        match libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) {
            0 => Ok(set),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// A descriptor that is readable while a SIGCHLD is pending. Blocks SIGCHLD, and nothing else.
fn signalfd() -> io::Result<OwnedFd> {
    let set = set_mask(&[libc::SIGCHLD])?;
    // SAFETY: `set` is initialised; the descriptor returned is new and owned by nobody else.
    unsafe {
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Empties a signalfd. What the signals say is not needed: they only mean "look".
pub(super) fn drain(signals: BorrowedFd<'_>) {
    let mut info = [0_u8; 16 * size_of::<libc::signalfd_siginfo>()];
    while rustix::io::read(signals, &mut info).is_ok_and(|length| length > 0) {}
}

/// Closes, or marks close-on-exec, all descriptors from `first` on.
fn close_range(first: libc::c_uint, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: callers close only before they own a descriptor above `first`; marking invalidates none.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(program: &str, path: &str, cwd: Option<&Path>) -> Result<PathBuf, Failure> {
        resolve(OsStr::new(program), [("PATH".into(), path.into())].iter(), cwd)
    }

    #[test]
    fn a_name_is_found_in_the_path_of_the_server() {
        assert_eq!(check("sh", "/nowhere:/bin", None).expect("found"), Path::new("/bin/sh"));
        assert_eq!(check("/bin/sh", "", None).expect("found"), Path::new("/bin/sh"));
        assert_eq!(check("./sh", "", Some(Path::new("/bin"))).expect("found"), Path::new("/bin/./sh"));
    }

    #[test]
    fn what_is_missing_is_named_with_the_place_searched() {
        let failure = check("no-such-program", "/bin:/usr/bin", None).expect_err("missing");
        assert_eq!(failure.errno, Some(libc::ENOENT));
        assert!(failure.message.contains("no-such-program"), "{}", failure.message);
        assert!(failure.message.contains("PATH=/bin:/usr/bin"), "{}", failure.message);
        let failure = check("/no/such/program", "/bin", None).expect_err("missing");
        assert!(failure.message.contains("`/no/such/program` does not exist"), "{}", failure.message);
    }

    #[test]
    fn a_directory_and_a_plain_file_are_not_programs() {
        let failure = check("/bin", "", None).expect_err("a directory");
        assert!(failure.message.contains("is a directory"), "{}", failure.message);
        let failure = check("passwd", "/etc", None).expect_err("not executable");
        assert_eq!(failure.errno, Some(libc::EACCES), "{}", failure.message);
        assert!(failure.message.contains("chmod +x"), "{}", failure.message);
    }

    #[test]
    fn a_working_directory_must_be_one() {
        assert_eq!(
            working_directory(OsStr::new("/etc/passwd")).expect_err("a file").errno,
            Some(libc::ENOTDIR)
        );
        assert_eq!(working_directory(OsStr::new("/nowhere")).expect_err("missing").errno, Some(libc::ENOENT));
    }
}
