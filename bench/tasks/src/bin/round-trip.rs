//! How long a warm worker takes for a task that does nothing, beside a process that gives back what it gets.
//!
//! Both are at the other end of a socket pair, and of two pipes (as the daemon has its workers). They take turns, a
//! block of round trips each, so that what the machine does meanwhile, it does to both. And both are where they are told to
//! be, on this process's processor or on another: to wake one that sleeps can take ten times a round trip, and where the
//! scheduler puts a process is chance. It prints one JSON object.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bench_gateway::histogram::Histogram;
use clap::Parser;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::json;

/// Round trips of one, before the other has its turn.
const BLOCK: u64 = 500;
/// The longest line: a result that does nothing is far below.
const LONGEST_LINE: usize = 64 << 10;

#[derive(Parser)]
struct Arguments {
    /// Be the process that gives back what it gets.
    #[arg(long)]
    echo: bool,
    /// Seconds measured, of each medium.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// The worker.
    #[arg(last = true)]
    worker: Vec<String>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    if arguments.echo {
        return Ok(echo()?);
    }
    let itself = std::env::current_exe()?;
    let mut report = serde_json::Map::new();
    let allowed = sched_getaffinity(None)?;
    let mut processors = (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor));
    let own = processors.next().ok_or("there is no processor")?;
    let media = [("socketpair", true), ("pipes", false)];
    let mut cells: Vec<_> = media.map(|(medium, sockets)| (medium.to_owned(), sockets, own)).into();
    if let Some(other) = processors.next() {
        cells.extend(media.map(|(medium, sockets)| (format!("{medium}, apart"), sockets, other)));
    }
    for (cell, over_sockets, processor) in cells {
        let [program, words @ ..] = &arguments.worker[..] else {
            return Err("no worker was given".into());
        };
        // What is started now stays there.
        stay_on(processor)?;
        let mut worker = Peer::start(Command::new(program).args(words), over_sockets)?;
        let ready = worker.line()?;
        if memchr::memmem::find(ready, br#""msg":"ready""#).is_none() {
            return Err(format!("the worker said {}", String::from_utf8_lossy(ready)).into());
        }
        let mut echo = Peer::start(Command::new(&itself).arg("--echo"), over_sockets)?;
        stay_on(own)?;
        let measured = take_turns(&mut worker, &mut echo, Duration::from_secs_f64(arguments.seconds))?;
        report.insert(cell, measured);
    }
    println!("{}", serde_json::Value::from(report));
    Ok(())
}

fn stay_on(processor: usize) -> io::Result<()> {
    let mut only = CpuSet::new();
    only.set(processor);
    Ok(sched_setaffinity(None, &only)?)
}

/// Gives back what comes, as it comes.
fn echo() -> io::Result<()> {
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut buffer = vec![0; LONGEST_LINE];
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(()),
            read => output.write_all(&buffer[..read])?,
        }
    }
}

fn take_turns(worker: &mut Peer, echo: &mut Peer, time: Duration) -> io::Result<serde_json::Value> {
    let mut number = 0;
    // Warm.
    block(worker, &mut number, is_result)?;
    block(echo, &mut number, is_the_same)?;
    let (mut of_worker, mut of_echo) = (Histogram::default(), Histogram::default());
    let until = Instant::now() + time;
    while Instant::now() < until {
        of_worker.merge(&block(worker, &mut number, is_result)?);
        of_echo.merge(&block(echo, &mut number, is_the_same)?);
    }
    let figures = |of: &Histogram| json!({"p50_us": of.quantile_us(0.5), "p99_us": of.quantile_us(0.99), "round_trips": of.count()});
    Ok(json!({"worker": figures(&of_worker), "echo": figures(&of_echo)}))
}

/// Some round trips of one.
fn block(
    peer: &mut Peer,
    number: &mut u64,
    is_right: fn(&[u8], &[u8], u64) -> bool,
) -> io::Result<Histogram> {
    let mut took = Histogram::default();
    for _ in 0..BLOCK {
        *number += 1;
        let task = format!(
            "{{\"msg\":\"task\",\"id\":\"t{number}-0123abcd\",\"attempt\":1,\"type\":\"execute-function\",\
             \"payload\":{{\"function\":\"n => n\",\"args\":[{number}]}},\"limits\":{{\"time_ms\":300000}}}}\n"
        );
        let begun = Instant::now();
        peer.output.write_all(task.as_bytes())?;
        let line = peer.line()?;
        took.record(begun.elapsed());
        if !is_right(line, task.as_bytes(), *number) {
            let line = String::from_utf8_lossy(line);
            return Err(io::Error::other(format!("task {number} was answered with {line}")));
        }
    }
    Ok(took)
}

fn is_the_same(line: &[u8], task: &[u8], _: u64) -> bool {
    line == task
}

/// Whether a line is the result of a task that gives back its number.
fn is_result(line: &[u8], _: &[u8], number: u64) -> bool {
    serde_json::from_slice::<serde_json::Value>(line).is_ok_and(|said| {
        said["msg"] == "result" && said["ok"] == true && said["value"].as_u64() == Some(number)
    })
}

/// A process and the lines it writes.
struct Peer {
    child: Child,
    output: File,
    input: File,
    buffer: Vec<u8>,
    filled: usize,
    consumed: usize,
}

impl Peer {
    fn start(command: &mut Command, over_sockets: bool) -> io::Result<Self> {
        let (child, output, input) = if over_sockets {
            let (ours, theirs) = UnixStream::pair()?;
            command.stdin(OwnedFd::from(theirs.try_clone()?)).stdout(OwnedFd::from(theirs));
            (command.spawn()?, OwnedFd::from(ours.try_clone()?), OwnedFd::from(ours))
        } else {
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let pipes = child.stdin.take().zip(child.stdout.take());
            let (output, input) = pipes.ok_or_else(|| io::Error::other("the pipes were not made"))?;
            (child, OwnedFd::from(output), OwnedFd::from(input))
        };
        // The command keeps its ends of the pair open otherwise, and who is at the other would not see ours close.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let (output, input) = (File::from(output), File::from(input));
        Ok(Self { child, output, input, buffer: vec![0; LONGEST_LINE], filled: 0, consumed: 0 })
    }

    /// The next line, with its end.
    fn line(&mut self) -> io::Result<&[u8]> {
        self.buffer.copy_within(self.consumed..self.filled, 0);
        self.filled -= self.consumed;
        self.consumed = 0;
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer[..self.filled]) {
                self.consumed = end + 1;
                return Ok(&self.buffer[..=end]);
            }
            match self.input.read(&mut self.buffer[self.filled..])? {
                0 => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the process closed its output",
                    ));
                }
                read => self.filled += read,
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
