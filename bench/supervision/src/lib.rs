//! What the programs of the supervision benchmark share: the clock, and how a child says what happened to it.
//!
//! A child tells the harness itself when it runs, through a named pipe, with the time in its line: so every
//! supervisor is measured in the same way, and how busy the harness is does not matter. Linux only.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::time::ClockId;

/// Nanoseconds of `CLOCK_MONOTONIC`, which is one clock for all processes of the machine.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    // Neither is negative: the clock counts from the start of the machine.
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Writes one line to the harness's named pipe. A line is far below `PIPE_BUF` (4096 bytes), so lines of several
/// children do not mix.
///
/// # Errors
/// When nobody reads the pipe, or it is full: then the benchmark is over, or has lost count.
pub fn say(pipe: &Path, line: &str) -> io::Result<()> {
    // A pipe without a reader is an error then, not a wait.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut pipe = OpenOptions::new().write(true).custom_flags(flags).open(pipe)?;
    pipe.write_all(format!("{line}\n").as_bytes())
}
