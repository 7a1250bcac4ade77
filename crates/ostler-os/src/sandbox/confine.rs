//! The last step into a sandbox, taken inside: `ostler confine PIDS PROGRAM [ARGUMENT...]`.
//!
//! It refuses the system calls of `filter.rs`, bounds the number of processes where the kernel counts them by
//! namespace, sets SIGTERM back (see `view.rs`), and becomes the program.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Resource, Rlimit};

/// The word after the program name that makes the binary take this step.
pub const CONFINE_ARGUMENT: &str = "confine";

/// The exit status when the program was not found, and when anything else went wrong: those of shells.
const NOT_FOUND: i32 = 127;
const NOT_STARTED: i32 = 126;

/// The first kernel that counts processes by user *and* user namespace. An older one would count all of the user's.
const COUNTED_BY_NAMESPACE: (u32, u32) = (5, 14);

/// Whether the first argument says that this process is to take the step: then it is [`main`]'s.
pub fn is_meant(argument: &OsStr) -> bool {
    argument == CONFINE_ARGUMENT
}

/// Takes the step: the `ostler` binary calls it first thing when its first argument is one that [`is_meant`], before a runtime or a
/// second thread exists. What goes wrong is said on standard error.
pub fn main() -> ! {
    let (status, why) = run(std::env::args_os().skip(2));
    eprintln!("ostler confine: {why}");
    std::process::exit(status)
}

/// Comes back only when something failed: the exit status, and why.
fn run(mut arguments: impl Iterator<Item = OsString>) -> (i32, String) {
    let pids = arguments.next().and_then(|pids| pids.to_str()?.parse::<u64>().ok());
    let (Some(pids), Some(program)) = (pids, arguments.next()) else {
        return (NOT_STARTED, "expected PIDS PROGRAM [ARGUMENT...]; it is for Ostler itself".to_owned());
    };
    // SAFETY: SIG_DFL runs no code, and SIGTERM can be set. One thread.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_DFL) };
    if let Err(error) = limit(pids) {
        return (NOT_STARTED, format!("its limits cannot be set: {error}"));
    }
    // SAFETY: marks only; nothing is closed before the program runs. What bubblewrap was given must not go along.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if let Err(why) = refuse() {
        return (NOT_STARTED, format!("the system call filter cannot be set: {why}"));
    }
    let error = Command::new(&program).args(arguments).exec();
    let status = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_STARTED };
    (status, format!("`{}` cannot be started in the sandbox: {error}", program.display()))
}

fn limit(pids: u64) -> io::Result<()> {
    let at_most = |limit: u64| Rlimit { current: Some(limit), maximum: Some(limit) };
    // An image of its memory in a folder is nobody's wish.
    rustix::process::setrlimit(Resource::Core, at_most(0))?;
    if pids > 0 && counts_by_namespace(&rustix::system::uname().release().to_string_lossy()) {
        let hard = rustix::process::getrlimit(Resource::Nproc).maximum.unwrap_or(u64::MAX);
        rustix::process::setrlimit(Resource::Nproc, at_most(pids.min(hard)))?;
    }
    Ok(())
}

/// By the text of `uname -r`.
fn counts_by_namespace(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= COUNTED_BY_NAMESPACE,
        _ => false,
    }
}

fn refuse() -> Result<(), String> {
    let programs = super::filter::programs().map_err(|error| error.to_string())?;
    programs
        .iter()
        .try_for_each(|program| seccompiler::apply_filter(program))
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_known_by_their_numbers() {
        for (release, counts) in [
            ("6.18.44-fc-v595", true),
            ("5.14.0-427.el9", true),
            ("5.10.0-30-amd64", false),
            ("4.19", false),
            ("", false),
            ("next", false),
        ] {
            assert_eq!(counts_by_namespace(release), counts, "{release}");
        }
    }

    #[test]
    fn what_is_no_order_is_refused() {
        for words in [&[][..], &["9"], &["many", "true"]] {
            let (status, why) = run(words.iter().map(Into::into));
            assert_eq!(status, NOT_STARTED);
            assert!(why.starts_with("expected PIDS PROGRAM"), "{why}");
        }
    }
}
