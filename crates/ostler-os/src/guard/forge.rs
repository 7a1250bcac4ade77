//! The forge: a process that makes guards by forking, so that a hundred guards share their pages and none costs the
//! time of starting a program.
//!
//! A guard that is started as a program of its own has 0.4 MB that it shares with nobody, most of it addresses that
//! the dynamic linker writes into every copy, and takes longer to load than a small server takes to start. A fork
//! of a guard that has loaded already has nothing but the pages it writes to.
//!
//! The guards it makes are the *daemon's* children (`CLONE_PARENT`), as if the daemon had started them: it reaps
//! them, and what they leave comes to it. The forge has no children, holds no server, and may die at any time:
//! guards live on, and the daemon starts another. It ends with the daemon, by end of file of its socket.

use std::io;
use std::os::fd::{IntoRawFd as _, OwnedFd};

use crate::mark::Mark;
use crate::wire::{self, Forged};

use super::{FORGE_ARGUMENT, GUARD_ARGUMENT, start};

/// What this process is when [`serve`] returns.
pub(super) enum Role {
    /// The forge still: the daemon is gone.
    Forge,
    /// A guard, with its control socket as standard input.
    Guard,
}

/// Makes guards until the daemon is gone. Comes back in each of them as well.
pub(super) fn serve() -> io::Result<Role> {
    let socket = start::prepare_forge()?;
    let title = Title::find();
    crate::shrink::shrink();
    while let Some((mark, control)) = wire::recv_guard(&socket)? {
        match fork_sibling() {
            Ok(Some(pid)) => answer(&socket, Forged::Guard { pid }),
            Ok(None) => {
                rustix::stdio::dup2_stdin(&control)?;
                // Closed with all else that a guard does not own, under numbers that may then be others'.
                let _ = (control.into_raw_fd(), OwnedFd::into_raw_fd(socket));
                if let Some(title) = title {
                    title.set(mark);
                }
                return Ok(Role::Guard);
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                answer(&socket, Forged::Failed { errno });
            }
        }
    }
    Ok(Role::Forge)
}

/// An answer that cannot be sent has no reader: the daemon is gone, and end of file says so.
fn answer(socket: &OwnedFd, answer: Forged) {
    let _ = wire::send(socket, &answer);
}

/// Forks; the child is this process's sibling. `None` in the child.
fn fork_sibling() -> io::Result<Option<i32>> {
    // SAFETY: all zero is a valid `clone_args`: no flags, no pointers.
    let mut arguments = unsafe { std::mem::zeroed::<libc::clone_args>() };
    // The exit signal has to be 0 with this flag: it is that of the forge, SIGCHLD.
    arguments.flags = libc::CLONE_PARENT as u64;
    // SAFETY: without CLONE_VM the child has its own copy of all memory and returns here on a copy of this stack,
    // as after fork(2). This process has one thread, so no lock of the C library is held by another at this
    // moment. What fork(3) does beyond that is to tell the library its thread's new number; a guard makes no call
    // that needs it: it has no other threads, and a fork of its own sets it right in the child.
    let result =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match i32::try_from(result) {
        Ok(0) => Ok(None),
        Ok(pid) if pid > 0 => Ok(Some(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The command line as others see it, which is memory of this process.
#[derive(Clone, Copy)]
struct Title {
    start: *mut u8,
    length: usize,
}

impl Title {
    /// Where it is; `None` when the kernel does not say, or it has not the length that a guard's has.
    fn find() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        // Fields as proc_pid_stat(5) counts them, the state being the third: arg_start 48, arg_end 49.
        let field = |number: usize| fields.get(number - 3)?.parse::<usize>().ok();
        let (start, end) = (field(48)?, field(49)?);
        let length = end.checked_sub(start)?;
        (length == Self::text(Mark::random()).len()).then_some(Self { start: start as *mut u8, length })
    }

    fn text(mark: Mark) -> Vec<u8> {
        format!("ostler\0{GUARD_ARGUMENT}\0{mark}\0").into_bytes()
    }

    /// Says whose guard this is, as the command line of one that was started as a program does.
    fn set(self, mark: Mark) {
        let text = Self::text(mark);
        debug_assert_eq!(text.len(), self.length, "a mark has always the same length");
        // SAFETY: the kernel has named these bytes as this process's arguments; they are writable, belong to its
        // stack for all its life, and are as many. Nothing holds a reference to them: the standard library copies
        // arguments when it is asked for them, in this only thread.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), self.start, self.length.min(text.len())) };
    }
}

/// The arguments that make the program a forge: as long as a guard's, so that a guard's can take their place.
pub(crate) fn arguments() -> [String; 2] {
    [FORGE_ARGUMENT.to_owned(), "0".repeat(Mark::random().to_string().len())]
}

/// Whether a failure to fork says that it is not possible here at all, rather than not now.
pub(crate) fn is_impossible(errno: i32) -> bool {
    // Sandboxes refuse clone3 with the first two; a kernel that knows the flag only from fork's elder, with the third.
    matches!(errno, libc::ENOSYS | libc::EPERM | libc::EINVAL)
}
