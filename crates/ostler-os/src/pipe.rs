//! Pipes: how much they hold.

use std::io;
use std::os::fd::AsFd;

/// What a pipe holds that nobody has changed, in bytes (pipe(7), "Pipe capacity").
pub const USUAL: usize = 64 * 1024;

/// What a user without privileges may make a pipe hold, in bytes: the usual `/proc/sys/fs/pipe-max-size`.
pub const WIDE: usize = 1024 * 1024;

/// How many bytes a pipe holds.
///
/// # Errors
/// When it is none.
pub fn capacity(pipe: impl AsFd) -> io::Result<usize> {
    Ok(rustix::pipe::fcntl_getpipe_size(pipe)?)
}

/// Has a pipe hold at least so many bytes.
///
/// # Errors
/// When the user's pipes hold as much as they may (`/proc/sys/fs/pipe-user-pages-soft`), or more than that is in the pipe.
pub fn set_capacity(pipe: impl AsFd, bytes: usize) -> io::Result<()> {
    rustix::pipe::fcntl_setpipe_size(pipe, bytes)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_made_wide_and_usual_again() {
        let (read, _write) = rustix::pipe::pipe().expect("a pipe");
        for bytes in [WIDE, USUAL] {
            set_capacity(&read, bytes).expect("as wide as anybody may");
            assert_eq!(capacity(&read).expect("its size"), bytes);
        }
    }
}
