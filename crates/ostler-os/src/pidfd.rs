//! Process file descriptors: the only way a signal is sent here. A pid can be recycled between looking at it and
//! signalling it; a pidfd cannot.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::tree::{self, Process};

/// What became of a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// The kernel took it for exactly this process.
    Delivered,
    /// The process had ended, or only its exit status was left to be read.
    Gone,
    /// The process runs as somebody else (a set-user-id program, for example) and may not be signalled.
    Denied,
}

/// Opens a pidfd of the process that has `pid` now. The descriptor is close-on-exec.
///
/// # Errors
/// `ESRCH` when there is none; `EMFILE`, `ENFILE`, `ENOMEM` when descriptors or memory are short.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).filter(|pid| pid.as_raw_nonzero().get() > 0).ok_or(Errno::SRCH)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Sends `signals` in order to the process that was scanned as `process`: opens a pidfd, checks that the start
/// time is still the scanned one, then signals through the pidfd. A stranger is never hit.
///
/// # Errors
/// When descriptors or memory are short, or `/proc` cannot be read.
pub fn signal(process: &Process, signals: &[Signal]) -> io::Result<Sent> {
    let fd = match open(process.pid) {
        Ok(fd) => fd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(Sent::Gone),
        // A pid that is now a thread of somebody else: our process is gone, its number went to a thread.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
            return Ok(Sent::Gone);
        }
        Err(error) => return Err(error),
    };
    // The pidfd holds on to one process; if the start time read after opening is the scanned one, it is ours.
    match tree::read(process.pid)? {
        Some(now) if now.start_time == process.start_time && !now.is_zombie() => {}
        _ => return Ok(Sent::Gone),
    }
    for &signal in signals {
        match rustix::process::pidfd_send_signal(&fd, signal) {
            Ok(()) => {}
            Err(Errno::SRCH) => return Ok(Sent::Gone),
            Err(Errno::PERM) => return Ok(Sent::Denied),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Sent::Delivered)
}

/// Waits until one of the processes behind `fds` has ended, at most `timeout_ms`. At most [`MAX_WAIT_FDS`] of
/// them are looked at.
///
/// # Errors
/// When memory is short. An interrupting signal counts as a wake-up.
pub fn wait_any(fds: &[OwnedFd], timeout_ms: u32) -> io::Result<()> {
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().take(MAX_WAIT_FDS).map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let timeout =
        Timespec { tv_sec: i64::from(timeout_ms / 1000), tv_nsec: i64::from(timeout_ms % 1000) * 1_000_000 };
    match rustix::event::poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How many processes [`wait_any`] looks at: waking for one of many is enough, its callers look again anyway.
pub const MAX_WAIT_FDS: usize = 64;
