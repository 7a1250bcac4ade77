//! Runs the simulation by hand; see `docs/simulation.md`.
//!
//! ```text
//! ostler-simulate [FIRST [COUNT]]    runs the seeds FIRST..FIRST+COUNT (0, 1000), names those that fail
//! ostler-simulate --trace SEED       runs one seed and prints all that happens in it
//! ```
//!
//! Exits with 0 when every promise held, with 1 when one was broken, with 2 when it was called wrongly.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ostler_testkit::sim;

const USAGE: &str = "usage: ostler-simulate [FIRST [COUNT]] | --trace SEED";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().ok();
    let (first, count) = match args.as_slice() {
        ["--trace", seed] => match number(seed) {
            Some(seed) => return trace(seed),
            None => return usage(),
        },
        [] => (Some(0), Some(1_000)),
        [first] => (number(first), Some(1_000)),
        [first, count] => (number(first), number(count)),
        _ => return usage(),
    };
    match (first, count) {
        (Some(first), Some(count)) => run(first, count),
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn trace(seed: u64) -> ExitCode {
    let report = sim::run(seed, true);
    for line in &report.trace {
        println!("{line}");
    }
    println!("seed {seed}: {} steps, {} trees, trace {:016x}", report.steps, report.spawns, report.hash);
    ExitCode::from(u8::from(report.violation.is_some()))
}

fn run(first: u64, count: u64) -> ExitCode {
    let begun = Instant::now();
    let next = AtomicU64::new(first);
    let sums = Mutex::new((0_u64, 0_u64, 0_usize));
    let end = first.saturating_add(count);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let report = sim::run(seed, false);
                    let mut sums = sums.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    sums.1 += report.steps;
                    sums.2 += report.spawns;
                    if let Some(violation) = report.violation {
                        sums.0 += 1;
                        println!("seed {seed}: {violation}");
                    }
                }
            });
        }
    });
    let (failed, steps, spawns) = sums.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let seconds = begun.elapsed().as_secs_f64();
    println!("{count} seeds, {steps} steps, {spawns} trees, {failed} failed, {seconds:.1} s");
    ExitCode::from(u8::from(failed > 0))
}
