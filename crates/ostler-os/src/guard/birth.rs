//! The server's first process: born in its cgroup, limited, and then the server's program.
//!
//! Not by the standard library's `spawn`, because that can neither start a child in a cgroup of version 2 nor say
//! which step failed. Moving a child there after it was born takes a lock of the whole machine, up to 10 ms; being born
//! there (`CLONE_INTO_CGROUP`, Linux 5.7) takes none.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, WaitOptions};

use crate::cgroup::leaf::Entry;
use crate::limits::Limits;

/// `CLONE_INTO_CGROUP` of linux/sched.h.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What the child was doing when it failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Not even born.
    Fork,
    Cgroup,
    OpenFiles,
    Nice,
    /// Everything from its session on to its program.
    Exec,
}

impl Step {
    /// As it is told from the child to the guard.
    const TOLD: [Self; 4] = [Self::Cgroup, Self::OpenFiles, Self::Nice, Self::Exec];
}

/// A child that did not become the server.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) step: Step,
    pub(super) error: io::Error,
}

/// Starts `command` where `entry` leads, under `limits`; gives its pid when its program runs.
pub(super) fn start(mut command: Command, entry: &Entry, limits: Limits) -> Result<Pid, Failed> {
    let unborn = |error| Failed { step: Step::Fork, error };
    let (news, tell) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| unborn(error.into()))?;
    let (child, inside) = fork(entry.v2.as_ref().map(|(directory, _)| directory)).map_err(unborn)?;
    let Some(child) = child else {
        let failed = become_server(&mut command, entry, inside, limits);
        die(tell, &failed)
    };
    drop(tell);
    let mut word = [0_u8; 5];
    // Nothing comes when the program runs: the pipe was closed by that.
    match File::from(news).read_exact(&mut word) {
        Err(_) => Ok(child),
        Ok(()) => {
            // It is on its way out, by itself.
            let _ = rustix::process::waitpid(Some(child), WaitOptions::empty());
            let [step, errno @ ..] = word;
            let step = Step::TOLD.get(usize::from(step)).copied().unwrap_or(Step::Exec);
            Err(Failed { step, error: io::Error::from_raw_os_error(i32::from_ne_bytes(errno)) })
        }
    }
}

/// Forks; `None` in the child. With it, whether the child was born in the cgroup.
fn fork(directory: Option<&OwnedFd>) -> io::Result<(Option<Pid>, bool)> {
    if let Some(directory) = directory {
        match clone_into(directory) {
            Ok(child) => return Ok((child, true)),
            // Old kernels, and the system call filters of some containers, do not know it.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOSYS | libc::EINVAL | libc::E2BIG | libc::EPERM)
                ) => {}
            Err(error) => return Err(error),
        }
    }
    // SAFETY: a guard has one thread, so no lock of the C library or of this program is held in the child.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok((Pid::from_raw(pid), false)),
    }
}

fn clone_into(directory: &OwnedFd) -> io::Result<Option<Pid>> {
    // SAFETY: all zero is a valid value of this structure of integers: no flag, no stack, no thread area.
    let mut arguments = unsafe { std::mem::zeroed::<libc::clone_args>() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    arguments.cgroup = u64::from(directory.as_raw_fd().cast_unsigned());
    // SAFETY: without CLONE_VM and with no stack given this is a fork: the child goes on with a copy of everything. A
    // guard has one thread, so no lock is held in the copy; the child executes a program or exits. The kernel reads
    // as many bytes of `arguments` as it is told, and `directory` is open.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match i32::try_from(pid) {
        Ok(-1) | Err(_) => Err(io::Error::last_os_error()),
        Ok(pid) => Ok(Pid::from_raw(pid)),
    }
}

/// In the child; comes back only when something failed.
fn become_server(command: &mut Command, entry: &Entry, inside: bool, limits: Limits) -> Failed {
    let failed = |step| move |error: io::Error| Failed { step, error };
    let limited = enter(entry, inside).map_err(failed(Step::Cgroup)).and_then(|()| {
        open_files(limits.open_files).map_err(failed(Step::OpenFiles))?;
        nice(limits.nice).map_err(failed(Step::Nice))
    });
    match limited {
        Ok(()) => Failed { step: Step::Exec, error: command.exec() },
        Err(failed) => failed,
    }
}

/// Moves this process, which has one thread, into its cgroups: 0 stands for the writer.
fn enter(entry: &Entry, inside: bool) -> io::Result<()> {
    let v2 = entry.v2.iter().filter(|_| !inside).map(|(_, list)| list);
    for list in v2.chain(&entry.v1) {
        rustix::io::write(list, b"0")?;
    }
    Ok(())
}

fn open_files(limit: Option<u64>) -> io::Result<()> {
    let Some(limit) = limit else { return Ok(()) };
    // Both, so that the server cannot raise it again. Above the hard limit only root may go.
    let wanted = Rlimit { current: Some(limit), maximum: Some(limit) };
    match rustix::process::setrlimit(Resource::Nofile, wanted) {
        Err(rustix::io::Errno::PERM) => {
            let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
            Ok(rustix::process::setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?)
        }
        other => Ok(other?),
    }
}

fn nice(nice: Option<i32>) -> io::Result<()> {
    let Some(nice) = nice else { return Ok(()) };
    Ok(rustix::process::setpriority_process(None, nice)?)
}

/// Tells the guard, and ends without running anything of the guard's.
fn die(tell: OwnedFd, failed: &Failed) -> ! {
    let step = Step::TOLD.iter().position(|&step| step == failed.step).unwrap_or(Step::TOLD.len());
    let mut word = [u8::try_from(step).unwrap_or(u8::MAX); 5];
    word[1..].copy_from_slice(&failed.error.raw_os_error().unwrap_or(libc::EINVAL).to_ne_bytes());
    // When it cannot be told, the exit status has to do.
    let _ = File::from(tell).write_all(&word);
    // SAFETY: ends this process at once; no destructor or exit handler of the guard's runs twice.
    unsafe { libc::_exit(127) }
}
