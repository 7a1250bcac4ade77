//! Runs seeds: `ostler-simulate [FIRST] [COUNT]`, or `ostler-simulate --trace SEED`.
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "--trace") {
        let report = ostler_testkit::sim::run(args[1].parse().expect("a seed"), true);
        for line in &report.trace {
            println!("{line}");
        }
        println!("{:?} steps {} spawns {}", report.violation, report.steps, report.spawns);
        return;
    }
    let first: u64 = args.first().map_or(0, |a| a.parse().expect("a number"));
    let count: u64 = args.get(1).map_or(100, |a| a.parse().expect("a number"));
    let (mut steps, mut spawns, mut bad) = (0, 0, 0);
    let t = std::time::Instant::now();
    for seed in first..first + count {
        let report = ostler_testkit::sim::run(seed, false);
        steps += report.steps;
        spawns += report.spawns;
        if let Some(v) = report.violation {
            bad += 1;
            println!("{seed}: {v}");
        }
    }
    println!("{count} seeds, {steps} steps, {spawns} spawns, {bad} bad, {:?}", t.elapsed());
}
