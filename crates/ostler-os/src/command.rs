//! Starting a command at little cost: the child borrows this process's memory until it has become the program.
//!
//! `posix_spawn` does so too, and makes a stack for each child and looks at all 64 signals in it, one by one. Of a command
//! that is over in half a millisecond that is a tenth; here the stack is made once, and the signals that this process has
//! changed are known.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::ptr::{null, null_mut};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use rustix::process::{Pid, WaitOptions, waitpid};

/// The child calls a dozen functions of the C library, none of which needs more than a few KiB.
const STACK: usize = 64 << 10;
/// Below the stack: whoever would go beyond it is ended, and writes over nothing.
const MARGIN: usize = 64 << 10;
/// What this process has changed and its program is not to find changed: Rust ignores the first, and catches the others to
/// tell of an overflow of the stack.
const CHANGED: [c_int; 3] = [libc::SIGPIPE, libc::SIGSEGV, libc::SIGBUS];

/// A command as it is to be started.
#[derive(Debug)]
pub struct Command<'a> {
    /// The program's file.
    pub program: &'a CStr,
    /// Its arguments, its own name first.
    pub argv: &'a [CString],
    /// Its variables, `NAME=value`; it has no others.
    pub env: &'a [CString],
    /// The folder it starts in.
    pub cwd: &'a CStr,
    /// Its standard input, output and error; none of them may be 0, 1 or 2 of this process.
    pub stdio: [BorrowedFd<'a>; 3],
}

/// Starts commands, one after another; each is the leader of a process group of its own.
#[derive(Debug)]
pub struct Starter {
    memory: *mut c_void,
}

// SAFETY: the memory belongs to this value alone, and only `start` uses it, which borrows the value mutably.
unsafe impl Send for Starter {}

impl Starter {
    /// Makes the stack that the children use.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new() -> io::Result<Self> {
        let both = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new memory, at a place that the kernel chooses.
        let memory = unsafe { mmap_anonymous(null_mut(), MARGIN + STACK, both, MapFlags::PRIVATE) }?;
        let made = Self { memory };
        // SAFETY: the lower part of what was just made; nothing uses it.
        unsafe { mprotect(memory, MARGIN, MprotectFlags::empty()) }?;
        Ok(made)
    }

    /// Starts a command; returns when it is running its program. Its end is the caller's to wait for. For processes that
    /// handle no signals but those that Rust's library does.
    ///
    /// # Errors
    /// Why the child could not be made, or could not become the program; nothing is left of it then.
    pub fn start(&mut self, command: &Command<'_>) -> io::Result<Pid> {
        let pointers = |texts: &[CString]| -> Vec<*const c_char> {
            texts.iter().map(|text| text.as_ptr()).chain([null()]).collect()
        };
        let (argv, env) = (pointers(command.argv), pointers(command.env));
        let stdio = command.stdio.map(|end| end.as_raw_fd());
        if stdio.iter().any(|end| *end <= libc::STDERR_FILENO) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "its pipes would be closed by each other",
            ));
        }
        let mut birth = Birth {
            program: command.program.as_ptr(),
            argv: argv.as_ptr(),
            env: env.as_ptr(),
            cwd: command.cwd.as_ptr(),
            stdio,
            failed: 0,
        };
        let made = {
            // A handler of this process must not run in the child, which has its memory.
            let _quiet = Quiet::begin()?;
            let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
            // SAFETY: within the memory that `new` made.
            let top = unsafe { self.memory.byte_add(MARGIN + STACK) };
            // SAFETY: this thread waits until the child has become its program or ended, so that `birth` and all that it
            // points to live on, and nobody else uses the stack, which `&mut self` lends. Other threads go on; what the
            // child does is what may be done between `fork` and `exec` of a process with threads.
            unsafe { libc::clone(become_program, top, flags, (&raw mut birth).cast()) }
        };
        let pid = Pid::from_raw(made).filter(|_| made > 0).ok_or_else(io::Error::last_os_error)?;
        if birth.failed == 0 {
            return Ok(pid);
        }
        // It has ended already.
        while matches!(waitpid(Some(pid), WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
        Err(io::Error::from_raw_os_error(birth.failed))
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        // SAFETY: nobody uses it: `start` returns when its child does not any more. What cannot be given back stays.
        let _ = unsafe { munmap(self.memory, MARGIN + STACK) };
    }
}

/// What the child reads, and where it says why it could not become the program.
struct Birth {
    program: *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
    cwd: *const c_char,
    stdio: [RawFd; 3],
    /// An `errno`.
    failed: c_int,
}

/// The child, from its first step on.
extern "C" fn become_program(birth: *mut c_void) -> c_int {
    // SAFETY: the one that `start` made; its thread does not touch it meanwhile.
    let birth = unsafe { &mut *birth.cast::<Birth>() };
    // SAFETY: only functions that may be called between `fork` and `exec`, with pointers that `start` keeps alive.
    unsafe {
        if prepare(birth) {
            libc::execve(birth.program, birth.argv, birth.env);
        }
        birth.failed = *libc::__errno_location();
        libc::_exit(127)
    }
}

/// Everything before the program; false where something failed.
///
/// # Safety
/// In a child that nobody else is in.
unsafe fn prepare(birth: &Birth) -> bool {
    // SAFETY: as the caller says; the mask is a value of this function.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::setpgid(0, 0) == 0
            && (0..).zip(birth.stdio).all(|(end, own)| libc::dup2(own, end) == end)
            && libc::chdir(birth.cwd) == 0
            // Before signals may come again: a handler would run in this process's memory.
            && CHANGED.iter().all(|signal| libc::signal(*signal, libc::SIG_DFL) != libc::SIG_ERR)
            && libc::sigprocmask(libc::SIG_SETMASK, &raw const none, null_mut()) == 0
    }
}

/// As long as it lives, no signal comes to this thread.
struct Quiet(libc::sigset_t);

impl Quiet {
    fn begin() -> io::Result<Self> {
        // SAFETY: both sets are this function's own.
        let (failed, before) = unsafe {
            let mut all = std::mem::zeroed::<libc::sigset_t>();
            let mut before = std::mem::zeroed::<libc::sigset_t>();
            libc::sigfillset(&raw mut all);
            (libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before), before)
        };
        if failed == 0 { Ok(Self(before)) } else { Err(io::Error::from_raw_os_error(failed)) }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // SAFETY: the set that was there before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::os::fd::{AsFd as _, OwnedFd};

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn texts(all: &[&str]) -> Vec<CString> {
        all.iter().map(|text| CString::new(*text).expect("no NUL")).collect()
    }

    fn shell(line: &str) -> (CString, Vec<CString>) {
        (CString::new("/bin/sh").expect("no NUL"), texts(&["sh", "-c", line]))
    }

    /// What a command prints, and how it ends.
    fn run(starter: &mut Starter, line: &str) -> (String, Option<i32>) {
        let (program, argv) = shell(line);
        let null = File::open("/dev/null").expect("it is there");
        let (read, write): (OwnedFd, OwnedFd) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        let stdio = [null.as_fd(), write.as_fd(), write.as_fd()];
        let command =
            Command { program: &program, argv: &argv, env: &texts(&["ONLY=this"]), cwd: c"/usr", stdio };
        let pid = starter.start(&command).expect("it starts");
        drop(write);
        let mut said = String::new();
        File::from(read).read_to_string(&mut said).expect("it is read");
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).expect("a child").expect("its end");
        (said, status.exit_status())
    }

    #[test]
    fn a_command_has_what_it_was_given_and_nothing_else() {
        let mut starter = Starter::new().expect("memory");
        for _ in 0..3 {
            let line = "echo $(pwd) $ONLY; cat; for end in /proc/$$/fd/*; do test $end -ef /proc/$$/fd/1 && echo $end; done; exit 7";
            let (said, status) = run(&mut starter, line);
            let (first, rest) = said.split_once('\n').expect("a line");
            assert_eq!((first, status), ("/usr this", Some(7)));
            // The pipe is its output and its errors, and was inherited by no other way.
            let ends: Vec<&str> = rest.lines().filter_map(|line| line.rsplit('/').next()).collect();
            assert_eq!(ends, ["1", "2"]);
        }
    }

    #[test]
    fn no_signal_that_rust_changes_is_changed_and_it_leads_a_group() {
        let mut starter = Starter::new().expect("memory");
        let line =
            "cat /proc/self/status; read pid name state parent group rest < /proc/$$/stat; test $$ = $group";
        let (said, status) = run(&mut starter, line);
        assert_eq!(status, Some(0), "{said}");
        let set = |status: &str, name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
            u64::from_str_radix(line.trim(), 16).expect("a number")
        };
        let own = std::fs::read_to_string("/proc/thread-self/status").expect("it is there");
        let pipe = 1 << (libc::SIGPIPE - 1);
        assert_eq!(set(&own, "SigIgn:") & pipe, pipe, "Rust ignores it");
        assert_eq!(set(&said, "SigIgn:") & pipe, 0, "{said}");
        assert_eq!((set(&said, "SigCgt:"), set(&said, "SigBlk:")), (0, 0), "{said}");
        // And here all is as it was.
        assert_eq!(set(&own, "SigBlk:"), 0);
    }

    #[test]
    fn what_cannot_start_says_why_and_leaves_nothing() {
        let mut starter = Starter::new().expect("memory");
        let null = File::open("/dev/null").expect("it is there");
        let stdio = [null.as_fd(); 3];
        for (program, cwd, why) in [
            (c"/nowhere", c"/", libc::ENOENT),
            (c"/etc/passwd", c"/", libc::EACCES),
            (c"/bin/true", c"/nowhere", libc::ENOENT),
        ] {
            let command = Command { program, argv: &texts(&["x"]), env: &[], cwd, stdio };
            let failed = starter.start(&command).expect_err("it cannot");
            assert_eq!(failed.raw_os_error(), Some(why), "{program:?} in {cwd:?}");
        }
        let own = std::io::stdin();
        let stdio = [own.as_fd(), null.as_fd(), null.as_fd()];
        let command = Command { program: c"/bin/true", argv: &texts(&["true"]), env: &[], cwd: c"/", stdio };
        assert_eq!(starter.start(&command).expect_err("refused").kind(), io::ErrorKind::InvalidInput);
    }
}
