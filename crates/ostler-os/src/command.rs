//! Starting a command at little cost: the child borrows this process's memory until it has become the program, and this
//! process goes on meanwhile.
//!
//! `posix_spawn` borrows, too, and waits, makes a stack for each child and looks at all 64 signals in it, one by one. Of a
//! command that is over in half a millisecond that is a tenth, and the wait, which puts a processor to sleep and wakes it, about
//! as much; here the stack is made once, and the signals that this process has changed are known.

use std::convert::Infallible;
use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::ptr::{from_ref, null, null_mut};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use rustix::process::Pid;
use rustix::thread::futex;
use syscalls::{Errno, Sysno, syscall};

/// The child calls nothing but the kernel, which has a stack of its own.
const STACK: usize = 64 << 10;
/// Below the stack: whoever would go beyond it is ended, and writes over nothing.
const MARGIN: usize = 64 << 10;
/// What this process has changed and its program is not to find changed: Rust ignores the first, and catches the others to
/// tell of an overflow of the stack.
const CHANGED: [c_int; 3] = [libc::SIGPIPE, libc::SIGSEGV, libc::SIGBUS];
/// Bytes of the kernel's set of signals.
const SIGNALS: usize = 8;
/// The kernel's `struct sigaction` for the default: all zero, and no longer than this on any machine.
const DEFAULT: [u64; 4] = [0; 4];

/// A command as it is to be started.
#[derive(Debug)]
pub struct Command {
    /// The program's file.
    pub program: CString,
    /// Its arguments, its own name first.
    pub argv: Vec<CString>,
    /// Its variables, `NAME=value`; it has no others.
    pub env: Vec<CString>,
    /// The folder it starts in.
    pub cwd: CString,
}

/// Starts commands; each is the leader of a process group of its own.
#[derive(Debug)]
pub struct Starter {
    /// Where nobody uses it just now.
    free: Option<Stack>,
}

impl Starter {
    /// Makes the stack that the children use.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new() -> io::Result<Self> {
        Ok(Self { free: Some(Stack::new()?) })
    }

    /// Starts a command; returns as soon as there is a process, whose end is the caller's to wait for. [`Self::ended`] says
    /// then whether it was the command's. For processes that handle no signals but those that Rust's library does.
    ///
    /// # Errors
    /// Why there is no process.
    pub fn start(&mut self, command: Arc<Command>, stdio: [BorrowedFd<'_>; 3]) -> io::Result<Started> {
        let stdio = stdio.map(|end| end.as_raw_fd());
        if stdio.iter().any(|end| *end <= libc::STDERR_FILENO) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "its pipes would be closed by each other",
            ));
        }
        let stack = match self.free.take() {
            Some(stack) => stack,
            None => Stack::new()?,
        };
        let birth = Rc::new(Birth::new(command, stdio));
        let made = {
            // A handler of this process must not run in the child, which has its memory.
            let _quiet = Quiet::begin()?;
            let flags = libc::CLONE_VM | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
            let (argument, gone) = (Rc::as_ptr(&birth).cast_mut().cast(), birth.gone.as_ptr());
            let (no_parent, no_storage) = (null_mut::<c_int>(), null_mut::<c_void>());
            // SAFETY: what the child uses lives until it does not use it any more: `Started` has the stack and `birth`, which
            // owns all that it points to, and gives none of them up before `gone` is 0, to which the kernel sets it when
            // the child has left this process's memory. Nobody writes to them but the child, and it to atomics only. It calls
            // nothing but the kernel, so what this thread and others do meanwhile, with errno among it, is theirs alone.
            unsafe { libc::clone(become_program, stack.top(), flags, argument, no_parent, no_storage, gone) }
        };
        match Pid::from_raw(made).filter(|_| made > 0) {
            Some(pid) => Ok(Started { pid, birth, stack: Some(stack) }),
            None => {
                let why = io::Error::last_os_error();
                self.free = Some(stack);
                Err(why)
            }
        }
    }

    /// For one that has been waited for.
    ///
    /// # Errors
    /// Why it did not become the program, and ended instead.
    pub fn ended(&mut self, mut started: Started) -> io::Result<()> {
        started.until_gone();
        self.free = started.stack.take();
        match started.birth.failed.load(Ordering::Acquire) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// A process that was started, and may not have become its program yet.
#[derive(Debug)]
pub struct Started {
    pid: Pid,
    birth: Rc<Birth>,
    /// None once it was given back.
    stack: Option<Stack>,
}

impl Started {
    /// Its number, which is nobody else's before it was waited for.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Until it has left this process's memory, by becoming a program or by ending.
    fn until_gone(&self) {
        loop {
            let still = self.birth.gone.load(Ordering::Acquire);
            if still == 0 {
                return;
            }
            // The kernel wakes who waits for a word of shared memory. Whatever this says, it is looked at again.
            let _ = futex::wait(&self.birth.gone, futex::Flags::empty(), still, None);
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.until_gone();
    }
}

/// The memory that a child uses as its stack.
#[derive(Debug)]
struct Stack(*mut c_void);

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Stack {}

impl Stack {
    fn new() -> io::Result<Self> {
        let both = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new memory, at a place that the kernel chooses.
        let made = Self(unsafe { mmap_anonymous(null_mut(), MARGIN + STACK, both, MapFlags::PRIVATE) }?);
        // SAFETY: the lower part of what was just made; nothing uses it.
        unsafe { mprotect(made.0, MARGIN, MprotectFlags::empty()) }?;
        Ok(made)
    }

    /// Where it begins: it grows downwards.
    fn top(&self) -> *mut c_void {
        // SAFETY: the end of the memory that `new` made.
        unsafe { self.0.byte_add(MARGIN + STACK) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: nobody uses it: whoever has given it to a child has it back when that does not any more. What cannot be
        // given back stays.
        let _ = unsafe { munmap(self.0, MARGIN + STACK) };
    }
}

/// What the child reads, and where it says why it could not become the program.
#[derive(Debug)]
struct Birth {
    /// What the pointers lead to.
    command: Arc<Command>,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    stdio: [RawFd; 3],
    /// An `errno`.
    failed: AtomicI32,
    /// 0 once the child has left this process's memory.
    gone: AtomicU32,
}

impl Birth {
    fn new(command: Arc<Command>, stdio: [RawFd; 3]) -> Self {
        let pointers = |texts: &[CString]| -> Vec<*const c_char> {
            texts.iter().map(|text| text.as_ptr()).chain([null()]).collect()
        };
        let (argv, env) = (pointers(&command.argv), pointers(&command.env));
        Self { command, argv, env, stdio, failed: AtomicI32::new(0), gone: AtomicU32::new(1) }
    }

    /// In the child: becomes the program.
    ///
    /// # Safety
    /// In a process that nobody else is in, whose memory may be another's.
    unsafe fn go_on(&self) -> Result<Infallible, Errno> {
        let nothing_blocked = 0_u64;
        // SAFETY: all pointers are to what `self` owns, or to constants, and the kernel only reads there.
        unsafe {
            syscall!(Sysno::setpgid, 0, 0)?;
            for (end, own) in self.stdio.iter().enumerate() {
                syscall!(Sysno::dup3, *own, end, 0)?;
            }
            syscall!(Sysno::chdir, self.command.cwd.as_ptr())?;
            // Before signals may come again: a handler would run in the other's memory.
            for signal in CHANGED {
                syscall!(Sysno::rt_sigaction, signal, DEFAULT.as_ptr(), 0, SIGNALS)?;
            }
            syscall!(Sysno::rt_sigprocmask, libc::SIG_SETMASK, from_ref(&nothing_blocked), 0, SIGNALS)?;
            syscall!(Sysno::execve, self.command.program.as_ptr(), self.argv.as_ptr(), self.env.as_ptr())?;
        }
        Err(Errno::ENOEXEC)
    }
}

/// The child, from its first step on.
extern "C" fn become_program(birth: *mut c_void) -> c_int {
    // SAFETY: the one that `start` made, which lives on; both sides write to its atomics only.
    let birth = unsafe { &*birth.cast::<Birth>() };
    // SAFETY: this is the child.
    let Err(why) = unsafe { birth.go_on() };
    birth.failed.store(why.into_raw(), Ordering::Release);
    loop {
        // SAFETY: it ends this process, and runs nothing of the other's.
        let _ = unsafe { syscall!(Sysno::exit_group, 127) };
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
    use rustix::process::{WaitOptions, waitpid};

    use super::*;

    fn texts(all: &[&str]) -> Vec<CString> {
        all.iter().map(|text| CString::new(*text).expect("no NUL")).collect()
    }

    fn command(program: &str, argv: &[&str], cwd: &str) -> Arc<Command> {
        let text = |text: &str| CString::new(text).expect("no NUL");
        Arc::new(Command {
            program: text(program),
            argv: texts(argv),
            env: texts(&["ONLY=this"]),
            cwd: text(cwd),
        })
    }

    /// What a command prints, and how it ends.
    fn run(starter: &mut Starter, line: &str) -> (String, Option<i32>) {
        let null = File::open("/dev/null").expect("it is there");
        let (read, write): (OwnedFd, OwnedFd) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        let stdio = [null.as_fd(), write.as_fd(), write.as_fd()];
        let started =
            starter.start(command("/bin/sh", &["sh", "-c", line], "/usr"), stdio).expect("it starts");
        drop(write);
        let mut said = String::new();
        File::from(read).read_to_string(&mut said).expect("it is read");
        let status = end_of(&started);
        starter.ended(started).expect("it was the program");
        (said, status)
    }

    fn end_of(started: &Started) -> Option<i32> {
        let ended = waitpid(Some(started.pid()), WaitOptions::empty()).expect("a child");
        ended.expect("its end").1.exit_status()
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
            ("/nowhere", "/", libc::ENOENT),
            ("/etc/passwd", "/", libc::EACCES),
            ("/bin/true", "/nowhere", libc::ENOENT),
        ] {
            let started = starter.start(command(program, &["x"], cwd), stdio).expect("a process");
            assert_eq!(end_of(&started), Some(127), "{program} in {cwd}");
            let failed = starter.ended(started).expect_err("it cannot");
            assert_eq!(failed.raw_os_error(), Some(why), "{program} in {cwd}");
        }
        let own = std::io::stdin();
        let stdio = [own.as_fd(), null.as_fd(), null.as_fd()];
        let failed = starter.start(command("/bin/true", &["true"], "/"), stdio).expect_err("refused");
        assert_eq!(failed.kind(), io::ErrorKind::InvalidInput);
    }

    /// Several at once, and one that is forgotten as soon as it was begun: each has memory of its own.
    #[test]
    fn what_a_child_uses_is_there_until_it_does_not_use_it() {
        let mut starter = Starter::new().expect("memory");
        let null = File::open("/dev/null").expect("it is there");
        let all: Vec<Started> = (0..50)
            .map(|n| {
                let line = format!("exit {n}");
                let started = starter.start(command("/bin/sh", &["sh", "-c", &line], "/"), [null.as_fd(); 3]);
                started.expect("it starts")
            })
            .collect();
        for (n, started) in all.into_iter().enumerate() {
            let pid = started.pid();
            if n % 2 == 0 {
                drop(started);
                let ended = waitpid(Some(pid), WaitOptions::empty()).expect("a child").expect("its end");
                assert_eq!(ended.1.exit_status(), i32::try_from(n).ok());
            } else {
                assert_eq!(end_of(&started), i32::try_from(n).ok());
                starter.ended(started).expect("it was the program");
            }
        }
    }
}
