//! Many seeds, each a life of the daemon.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use ostler_testkit::sim::{self, Report};

/// Seeds in every run of the tests; `make simulate` runs 100,000.
const SEEDS: u64 = 2_000;

/// Runs `0..SEEDS` on all processors, each seed on one; gives what came of those that failed, and of the others the
/// sums.
fn run_all() -> (Vec<Report>, u64, usize) {
    let next = AtomicU64::new(0);
    let sums = Mutex::new((Vec::new(), 0, 0));
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let seed @ 0..SEEDS = next.fetch_add(1, Ordering::Relaxed) {
                    let report = sim::run(seed, false);
                    let mut sums = sums.lock().expect("no other has panicked");
                    sums.1 += report.steps;
                    sums.2 += report.spawns;
                    if report.violation.is_some() {
                        sums.0.push(report);
                    }
                }
            });
        }
    });
    sums.into_inner().expect("nobody has panicked")
}

#[test]
fn every_promise_holds_after_every_step_of_every_schedule() {
    let (failed, steps, spawns) = run_all();
    let told: Vec<String> = failed
        .iter()
        .take(5)
        .map(|report| {
            let violation = report.violation.as_deref().unwrap_or_default();
            format!("seed {}: {violation}\n{}", report.seed, report.trace.join("\n"))
        })
        .collect();
    let help = "follow one with `ostler-simulate --trace SEED` (docs/simulation.md)";
    assert!(failed.is_empty(), "{} of {SEEDS} seeds failed; {help}\n{}", failed.len(), told.join("\n\n"));
    // Else the promises hold because nothing happens.
    assert!(steps > SEEDS * 200, "only {steps} steps");
    assert!(spawns as u64 > SEEDS * 5, "only {spawns} trees");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..60 {
        let (once, again) = (sim::run(seed, true), sim::run(seed, true));
        let differ = once.trace.iter().zip(&again.trace).position(|(one, other)| one != other);
        let at = differ.unwrap_or(once.trace.len().min(again.trace.len()));
        let around = |trace: &[String]| trace[at.saturating_sub(5)..trace.len().min(at + 5)].join("\n");
        assert!(
            once == again,
            "seed {seed} differs at line {at}:\n{}\n-----\n{}",
            around(&once.trace),
            around(&again.trace)
        );
        assert_ne!(once.hash, 0);
    }
}

#[test]
fn two_seeds_are_two_worlds() {
    let hashes: std::collections::BTreeSet<u64> = (0..60).map(|seed| sim::run(seed, false).hash).collect();
    assert_eq!(hashes.len(), 60);
}
