//! Many seeds, each a life of the daemon.

use ostler_testkit::sim;

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..50 {
        let (once, again) = (sim::run(seed, true), sim::run(seed, true));
        if once.hash != again.hash {
            let differ = once.trace.iter().zip(&again.trace).position(|(one, other)| one != other);
            let at = differ.unwrap_or(once.trace.len().min(again.trace.len()));
            let around = |trace: &[String]| trace[at.saturating_sub(5)..trace.len().min(at + 5)].join("\n");
            panic!(
                "seed {seed} differs at line {at}:\n{}\n-----\n{}",
                around(&once.trace),
                around(&again.trace)
            );
        }
    }
}
