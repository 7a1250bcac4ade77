//! Worlds that are arranged, not rolled.

use std::time::Duration;

use ostler_domain::{Scope, StartMode};
use ostler_testkit::sim::plan::{Plan, Temperament};
use ostler_testkit::sim::run_plan;

/// A world in which nothing goes wrong and nobody wants anything, with these servers: eager, one instance each.
fn world(servers: &[(&str, Temperament)]) -> Plan {
    let mut plan = Plan::of(0);
    let mut like = plan.config.servers[0].clone();
    like.scope = Scope::Shared;
    like.start = StartMode::Eager;
    (like.transport, like.depends_on, like.wants) = (ostler_domain::Transport::Stdio, vec![], vec![]);
    like.deadlines = ostler_domain::Deadlines::default();
    plan.config.servers.clear();
    plan.temperaments.clear();
    for (name, temperament) in servers {
        let mut spec = like.clone();
        spec.name = name.parse().expect("a name");
        spec.type_name = (*name).to_owned();
        spec.launch.args = vec![(*name).to_owned()];
        plan.config.servers.push(spec);
        plan.temperaments.insert((*name).to_owned(), temperament.clone());
    }
    plan.config.limits.processes = 10;
    plan.config.limits.per_type = 10;
    plan.horizon = Duration::from_secs(5);
    (plan.clients, plan.people, plan.quiet, plan.kind, plan.disk_full, plan.disk_slow) =
        (0, 0, false, false, 0, 0);
    plan
}

/// Two trees that the kernel holds for hours, one slot, and a third that has to be killed later than they.
#[test]
fn trees_that_cannot_be_killed_do_not_keep_others_from_it() {
    let deaf = Temperament { ignores_eof: 100, ignores_term: 100, handshake_ms: 1, ..Temperament::default() };
    let held = Temperament { held: 100, held_ms: 36_000_000, ..deaf.clone() };
    let mut plan = world(&[("held1", held.clone()), ("held2", held), ("deaf", deaf)]);
    plan.config.limits.cleanups = 1;
    for spec in &mut plan.config.servers {
        let late = spec.name.as_str() == "deaf";
        spec.deadlines.stdin_grace = Duration::ZERO;
        spec.deadlines.term_grace = Duration::from_secs(if late { 15 } else { 0 });
    }
    let report = run_plan(plan, true);
    assert_eq!(report.violation, None, "{}", report.trace.join("\n"));
    let said = |what: &str| report.trace.iter().any(|line| line.ends_with(what));
    assert!(said("shutdown: gave up"), "two cannot end: {}", report.trace.join("\n"));
    assert!(said("deaf.1 g1 is stopped, removed"), "{}", report.trace.join("\n"));
}
