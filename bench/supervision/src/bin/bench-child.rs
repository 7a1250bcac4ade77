//! The child that every supervisor of the benchmark runs: `bench-child NAME PIPE [FLOOD_SECONDS]`.
//!
//! It says `run NAME PID NANOSECONDS` on the pipe and then does nothing until it is killed. With `FLOOD_SECONDS` it
//! first writes lines of [`LINE_BYTES`] to its standard output as fast as they are taken, for that long, and says
//! `flooded NAME BYTES NANOSECONDS`, the time from its first write to the end of its last.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use bench_supervision::{monotonic_ns, say};

/// Length of a line, with its end: about what a log line of a server has.
const LINE_BYTES: usize = 100;

/// Written at once: as much as a pipe takes.
const BLOCK_LINES: usize = 64 * 1024 / LINE_BYTES;

fn main() -> io::Result<()> {
    let now = monotonic_ns();
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(pipe)) = (arguments.next(), arguments.next().map(PathBuf::from)) else {
        return Err(io::Error::other("usage: bench-child NAME PIPE [FLOOD_SECONDS]"));
    };
    say(&pipe, &format!("run {name} {} {now}", std::process::id()))?;
    if let Some(seconds) = arguments.next() {
        let seconds: f64 = seconds.parse().map_err(io::Error::other)?;
        let (bytes, took) = flood(seconds)?;
        say(&pipe, &format!("flooded {name} {bytes} {took}"))?;
    }
    loop {
        std::thread::park();
    }
}

/// Writes lines for `seconds`; answers how many bytes and in how many nanoseconds.
fn flood(seconds: f64) -> io::Result<(u64, u64)> {
    let mut line = [b'x'; LINE_BYTES];
    line[LINE_BYTES - 1] = b'\n';
    let block = line.repeat(BLOCK_LINES);
    // Unbuffered: standard output would look for the last end of line in every block.
    let mut output = std::fs::File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let begin = monotonic_ns();
    let end = std::time::Duration::from_secs_f64(seconds);
    let mut bytes = 0_u64;
    loop {
        output.write_all(&block)?;
        bytes += block.len() as u64;
        let took = monotonic_ns() - begin;
        if u128::from(took) >= end.as_nanos() {
            return Ok((bytes, took));
        }
    }
}
