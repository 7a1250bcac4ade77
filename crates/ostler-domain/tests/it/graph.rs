//! The order of servers, against a slow and obvious model.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ostler_domain::graph::{CAUSES_MAX, Graph, GraphError, Plan, Standing, find_cycle};
use ostler_domain::{ServerName, ServerSpec};
use proptest::prelude::*;

use crate::support::secs;

fn name(text: &str) -> ServerName {
    text.parse().unwrap()
}

/// Servers from lines such as `web: db, auth; cache`: whom it depends on, and whom it wants.
fn specs(lines: &[&str]) -> Vec<ServerSpec> {
    let list = |text: &str| text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(name).collect();
    let spec = |line: &&str| {
        let (server, rest) = line.split_once(':').unwrap();
        let (needs, wants) = rest.split_once(';').unwrap_or((rest, ""));
        let mut spec = ServerSpec::new(name(server), "x");
        (spec.depends_on, spec.wants) = (list(needs), list(wants));
        spec
    };
    lines.iter().map(spec).collect()
}

fn graph(lines: &[&str]) -> Graph {
    Graph::new(&specs(lines)).unwrap_or_else(|e| panic!("{e}"))
}

fn texts(names: &[&ServerName]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// Three waves of twelve servers.
const TWELVE: &[&str] = &[
    "web1: api1",
    "api1: db, queue",
    "db:",
    "queue:",
    "cache:",
    "api2: db; cache",
    "api3: queue",
    "web2: api2",
    "web3: api1, api3",
    "log:",
    "api4: cache",
    "web4: api4; log",
];

/// The plan with these servers in these standings, all others waiting.
fn plan(graph: &Graph, known: &[(&str, Standing)]) -> Plan {
    graph.plan(|server| {
        known.iter().find(|(n, _)| *n == server.as_str()).map_or(Standing::Waiting, |(_, s)| *s)
    })
}

fn starts(plan: &Plan) -> Vec<String> {
    plan.start.iter().map(ToString::to_string).collect()
}

#[test]
fn waves_hold_those_that_wait_only_for_earlier_ones() {
    let graph = graph(TWELVE);
    let waves: Vec<_> = graph.waves().iter().map(|wave| texts(wave).join(" ")).collect();
    assert_eq!(waves, ["db queue cache log", "api1 api2 api3 api4", "web1 web2 web3 web4"]);
    let stops: Vec<_> = graph.stop_waves().iter().map(|wave| texts(wave).join(" ")).collect();
    assert_eq!(stops, ["web1 web2 web3 web4", "api1 api2 api3 api4", "db queue cache log"]);
}

#[test]
fn a_start_takes_the_longest_path() {
    let graph = graph(TWELVE);
    let takes = |server: &ServerName| match server.as_str() {
        "cache" => secs(7),
        "api3" => secs(5),
        _ => secs(2),
    };
    let (time, path) = graph.longest_path(takes);
    assert_eq!((time, texts(&path).join(" ").as_str()), (secs(11), "cache api4 web4"));
    assert_eq!(Graph::default().longest_path(takes), (Duration::ZERO, Vec::new()));
}

#[test]
fn a_cycle_an_unknown_name_and_a_double_one_are_said() {
    let text = |lines: &[&str]| Graph::new(&specs(lines)).unwrap_err().to_string();
    assert_eq!(
        text(&["z:", "a: b", "b:; c", "c: z, a"]),
        "servers wait for each other, so none could start first: a -> b -> c -> a"
    );
    assert_eq!(text(&["a:; b"]), "server `a` waits for `b`, which is not there: add it or take that out");
    assert_eq!(Graph::new(&specs(&["a:", "a:"])).unwrap_err(), GraphError::Twice(name("a")));
}

#[test]
fn a_long_chain_is_no_trouble() {
    let mut edges: Vec<Vec<usize>> = (1..=200_000).map(|next| vec![next]).collect();
    edges.push(Vec::new());
    assert_eq!(find_cycle(&edges), None);
    edges[200_000].push(199_998);
    assert_eq!(find_cycle(&edges), Some(vec![199_998, 199_999, 200_000]));
}

#[test]
fn a_server_starts_when_all_it_needs_is_ready_not_merely_started() {
    use Standing::{Ready, Starting};
    let graph = graph(TWELVE);
    assert_eq!(starts(&plan(&graph, &[])), ["db", "queue", "cache", "log"]);
    let some = plan(&graph, &[("db", Ready), ("queue", Starting), ("cache", Starting), ("log", Starting)]);
    assert_eq!(starts(&some), [""; 0], "api2 wants the cache, which may still come");
    let held: Vec<_> = some.held.iter().map(ToString::to_string).collect();
    assert_eq!(held[0], "`api1` is not started: `queue` is starting");
    assert_eq!(held[4], "`web1` is not started: `api1` waits to be started for `queue`");
    assert!(some.held.iter().all(|h| !h.blocked));
}

#[test]
fn a_failure_blocks_who_depends_and_not_who_only_wants() {
    use Standing::{Failed, Ready};
    let graph = graph(TWELVE);
    let plan = plan(&graph, &[("db", Ready), ("queue", Ready), ("cache", Failed), ("log", Ready)]);
    assert_eq!(starts(&plan), ["api1", "api2", "api3"]);
    let blocked: Vec<_> = plan.held.iter().filter(|h| h.blocked).map(ToString::to_string).collect();
    assert_eq!(
        blocked,
        [
            "`api4` is not started: `cache` has failed",
            "`web4` is not started: `api4` waits to be started for `cache`"
        ]
    );
}

#[test]
fn who_wants_one_that_is_held_by_a_failure_does_not_wait_for_ever() {
    let graph = graph(&["root:", "mid: root", "top:; mid"]);
    assert_eq!(starts(&plan(&graph, &[("root", Standing::Failed)])), ["top"]);
    assert_eq!(starts(&plan(&graph, &[("root", Standing::Starting)])), [""; 0]);
}

#[test]
fn a_death_degrades_those_above_and_says_because_of_whom() {
    use Standing::{Failed, Ready};
    let graph = graph(&["db:", "cache:", "api: db; cache", "web: api", "side:; api"]);
    let all = |db, cache| {
        plan(&graph, &[("db", db), ("cache", cache), ("api", Ready), ("web", Ready), ("side", Ready)])
    };
    assert_eq!(all(Ready, Ready), Plan::default());
    let texts: Vec<_> = all(Failed, Ready).degraded.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["`api` is degraded: `db` has failed", "`web` is degraded: `api` is degraded by `db`"]);
    let texts: Vec<_> = all(Ready, Failed).degraded.iter().map(ToString::to_string).collect();
    assert_eq!(texts[0], "`api` is degraded: `cache` has failed");
}

#[test]
fn causes_are_bounded() {
    let mut lines: Vec<String> = (0..50).map(|i| format!("d{i}:")).collect();
    let all: Vec<String> = (0..50).map(|i| format!("d{i}")).collect();
    lines.push(format!("top: {}", all.join(",")));
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let plan = graph(&lines).plan(|s| if s.as_str() == "top" { Standing::Waiting } else { Standing::Failed });
    assert_eq!(plan.held[0].because.len(), CAUSES_MAX);
    assert!(plan.held[0].to_string().ends_with(", and 42 more"));
}

#[test]
fn a_stop_takes_those_on_top_first() {
    let graph = graph(&["db:", "api: db", "web: api", "side:; db"]);
    let stoppable = |running: &[&str]| texts(&graph.stoppable(|server| running.contains(&server.as_str())));
    assert_eq!(stoppable(&["db", "api", "web", "side"]), ["web", "side"]);
    assert_eq!(stoppable(&["db", "web"]), ["web"], "through one that does not run, too");
    assert_eq!(stoppable(&["db"]), ["db"]);
    assert_eq!(texts(&graph.dependants(&name("db"))), ["api", "side", "web"]);
    assert_eq!(texts(&graph.closure([&name("web")])), ["db", "api", "web"]);
}

/// A graph without cycles: each node may wait for earlier ones, then all are shuffled.
fn acyclic() -> impl Strategy<Value = Vec<ServerSpec>> {
    let node = (prop::collection::vec(any::<prop::sample::Index>(), 0..4), any::<u8>());
    prop::collection::vec(node, 1..14)
        .prop_map(|nodes| {
            let mut specs = Vec::new();
            for (number, (edges, kinds)) in nodes.iter().enumerate() {
                let mut spec = ServerSpec::new(name(&format!("s{number}")), "x");
                for (bit, edge) in edges.iter().enumerate().filter(|_| number > 0) {
                    let other = name(&format!("s{}", edge.index(number)));
                    if kinds >> bit & 1 == 0 { &mut spec.depends_on } else { &mut spec.wants }.push(other);
                }
                specs.push(spec);
            }
            specs
        })
        .prop_shuffle()
}

/// Whether one can be reached from itself, tried from every node by walking everywhere.
fn has_cycle(edges: &[Vec<usize>]) -> bool {
    (0..edges.len()).any(|start| {
        let mut seen = BTreeSet::new();
        let mut todo = edges[start].clone();
        while let Some(node) = todo.pop() {
            if seen.insert(node) {
                todo.extend(&edges[node]);
            }
        }
        seen.contains(&start)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cycle_is_found_exactly_when_there_is_one(
        edges in (1_usize..9).prop_flat_map(|n| prop::collection::vec(prop::collection::vec(0..n, 0..3), n)),
    ) {
        match find_cycle(&edges) {
            None => prop_assert!(!has_cycle(&edges)),
            Some(cycle) => {
                prop_assert_eq!(cycle.iter().collect::<BTreeSet<_>>().len(), cycle.len());
                prop_assert_eq!(cycle.iter().min(), cycle.first());
                for (at, node) in cycle.iter().enumerate() {
                    prop_assert!(edges[*node].contains(&cycle[(at + 1) % cycle.len()]));
                }
            }
        }
    }

    /// Any graph, started and stopped by its plans while servers fail at random: nobody starts before what it
    /// depends on is ready, nobody is forgotten, nobody stops before those above.
    #[test]
    fn plans_lead_to_the_end_and_never_break_the_order(
        specs in acyclic(),
        fate in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 64),
    ) {
        let graph = Graph::new(&specs).unwrap();
        let by_name: BTreeMap<_, _> = specs.iter().map(|s| (s.name.clone(), s)).collect();
        let mut standing: BTreeMap<ServerName, Standing> =
            by_name.keys().map(|n| (n.clone(), Standing::Waiting)).collect();
        for (pick, works) in fate {
            let plan = graph.plan(|n| standing[n]);
            for server in &plan.start {
                let spec = by_name[server];
                prop_assert!(spec.depends_on.iter().all(|d| standing[d] == Standing::Ready));
                prop_assert!(spec.wants.iter().all(|d| standing[d] != Standing::Starting));
                standing.insert(server.clone(), Standing::Starting);
            }
            let starting: Vec<_> =
                standing.iter().filter(|(_, s)| **s == Standing::Starting).map(|(n, _)| n.clone()).collect();
            if starting.is_empty() {
                break;
            }
            let end = if works { Standing::Ready } else { Standing::Failed };
            standing.insert(starting[pick.index(starting.len())].clone(), end);
        }
        let plan = graph.plan(|n| standing[n]);
        prop_assert!(plan.start.is_empty());
        let waiting: BTreeSet<_> =
            standing.iter().filter(|(_, s)| **s == Standing::Waiting).map(|(n, _)| n.clone()).collect();
        prop_assert_eq!(&waiting, &plan.held.iter().map(|h| h.server.clone()).collect());
        for held in &plan.held {
            prop_assert!(held.blocked, "{} waits for nothing that failed", held);
        }
        for (server, spec) in &by_name {
            let without = spec.depends_on.iter().chain(&spec.wants).any(|d| standing[d] != Standing::Ready);
            let told = plan.degraded.iter().any(|d| d.server == *server);
            prop_assert!(!(standing[server] == Standing::Ready && without) || told, "{} is silent", server);
        }
        let mut running: BTreeSet<_> =
            standing.iter().filter(|(_, s)| **s == Standing::Ready).map(|(n, _)| n.clone()).collect();
        while !running.is_empty() {
            let next: Vec<_> = graph.stoppable(|n| running.contains(n)).into_iter().cloned().collect();
            prop_assert!(!next.is_empty(), "{:?} can never be stopped", running);
            for server in next {
                prop_assert!(graph.dependants(&server).iter().all(|d| !running.contains(*d)));
                running.remove(&server);
            }
        }
    }

    /// The waves are a partition, and the path is one along edges.
    #[test]
    fn waves_and_paths_follow_the_edges(specs in acyclic(), times in prop::collection::vec(1_u64..50, 14)) {
        let graph = Graph::new(&specs).unwrap();
        let by_name: BTreeMap<_, _> = specs.iter().map(|s| (s.name.clone(), s)).collect();
        let before = |n: &ServerName| by_name[n].depends_on.iter().chain(&by_name[n].wants).cloned().collect::<BTreeSet<_>>();
        let mut done: BTreeSet<ServerName> = BTreeSet::new();
        let mut last: BTreeSet<ServerName> = BTreeSet::new();
        for wave in graph.waves() {
            for server in &wave {
                prop_assert!(before(server).is_subset(&done));
                prop_assert!(last.is_empty() || !before(server).is_disjoint(&last));
            }
            last = wave.into_iter().cloned().collect();
            done.extend(last.iter().cloned());
        }
        prop_assert_eq!(done.len(), specs.len());
        let takes = |n: &ServerName| secs(times[n.as_str()[1..].parse::<usize>().unwrap()]);
        let (total, path) = graph.longest_path(takes);
        prop_assert_eq!(total, path.iter().map(|n| takes(n)).sum::<Duration>());
        for pair in path.windows(2) {
            prop_assert!(before(pair[1]).contains(pair[0]));
        }
        // The same by trying: when each would be ready if all start as soon as they may.
        let mut ready: BTreeMap<ServerName, Duration> = BTreeMap::new();
        for server in graph.waves().into_iter().flatten() {
            let from = before(server).iter().map(|d| ready[d]).max().unwrap_or_default();
            ready.insert(server.clone(), from + takes(server));
        }
        prop_assert_eq!(Some(&total), ready.values().max());
    }
}
