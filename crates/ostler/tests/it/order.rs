//! Order: servers start when what they depend on serves, and stop when nothing that depends on them runs.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde_json::Value;

use crate::support::{Daemon, get, wait_until};

/// Twelve servers in three waves of four: `a` needs nobody, each `b` two `a`, each `c` two `b`.
const GRAPH: [(&str, &[&str]); 12] = [
    ("a1", &[]),
    ("a2", &[]),
    ("a3", &[]),
    ("a4", &[]),
    ("b1", &["a1", "a2"]),
    ("b2", &["a2", "a3"]),
    ("b3", &["a3", "a1"]),
    ("b4", &["a4", "a1"]),
    ("c1", &["b1", "b2"]),
    ("c2", &["b2", "b3"]),
    ("c3", &["b3", "b1"]),
    ("c4", &["b4", "b3"]),
];

/// A server that says in the folder `here` that it runs, and goes on to its handshake once all of `first` run.
fn meeting(name: &str, depends_on: &[&str], first: &[&str]) -> String {
    let program = ostler_testkit::fake::path();
    let waits: String = first.iter().fold(String::new(), |mut text, other| {
        let _ = write!(text, "until [ -e {other} ]; do sleep 0.02; done; ");
        text
    });
    format!(
        "[servers.{name}]\ncommand = \"sh\"\nargs = [\"-c\", ': > {name}; {waits}exec \"$0\"', \"{}\"]\n\
         cwd = \"here\"\nscope = \"shared\"\ndepends_on = {depends_on:?}\n",
        program.display()
    )
}

fn daemon(config: &str) -> Daemon {
    // The folder is made by the test: `cwd` starts from the configuration's folder.
    Daemon::start_with(config, &[("OSTLER_LOG", "info")], |dir| {
        std::fs::create_dir(dir.join("here")).expect("a new folder");
    })
}

/// The number of the first event of this kind for each server.
fn firsts(events: &[Value], kind: &str) -> HashMap<String, u64> {
    let mut first = HashMap::new();
    for event in events.iter().filter(|event| event["kind"] == kind) {
        let subject = event["subject"].as_str().expect("a subject");
        let server = subject.split('.').next().expect("one part at least").to_owned();
        first.entry(server).or_insert(event["seq"].as_u64().expect("a number"));
    }
    first
}

fn all_ready(daemon: &Daemon, count: usize) {
    wait_until("all are ready", || daemon.ps().iter().filter(|row| row["state"] == "ready").count() == count);
}

/// Each server of a wave waits, before it is ready, until the others of its wave run: were they started one after
/// the other, none would ever be. And `a4` waits for `b1`, of the next wave, which does not need it: were the
/// waves kept apart, it would wait in vain.
#[test]
fn twelve_servers_start_in_dependency_order_and_side_by_side() {
    let wave =
        |prefix: char| GRAPH.iter().map(|(name, _)| *name).filter(move |name| name.starts_with(prefix));
    let config: String = GRAPH
        .iter()
        .map(|(name, depends_on)| {
            let mut first: Vec<&str> = wave(name.chars().next().expect("named")).collect();
            if *name == "a4" {
                first = vec!["b1"];
            }
            if name.starts_with('b') {
                first.retain(|other| *other != "b4");
            }
            meeting(name, depends_on, &first)
        })
        .collect();
    let mut daemon = daemon(&config);
    all_ready(&daemon, 12);
    let events = daemon.events();
    let (starting, ready) = (firsts(&events, "starting"), firsts(&events, "ready"));
    for (name, depends_on) in GRAPH {
        for on in depends_on {
            assert!(starting[name] > ready[*on], "`{name}` started before `{on}` was ready: {events:#?}");
        }
    }
    assert!(daemon.cli(&["down"]).status.success());
    assert!(daemon.wait().success());
    stopped_in_reverse(&daemon.stderr());
}

/// From the daemon's own log: nothing begins to stop before all that depends on it has stopped.
fn stopped_in_reverse(log: &str) {
    let line_of = |name: &str, what: &str| {
        let subject = format!("subject=\"{name}.1\"");
        let found = log.lines().position(|line| line.contains(what) && line.contains(&subject));
        found.unwrap_or_else(|| panic!("`{name}`: nothing says `{what}`: {log}"))
    };
    for (name, depends_on) in GRAPH {
        for on in depends_on {
            let (stopped, stopping) = (line_of(name, "nothing of it runs"), line_of(on, "stopping:"));
            assert!(stopped < stopping, "`{on}` began to stop before `{name}` had stopped: {log}");
        }
    }
}

/// A required server that cannot start: what needs it is not started and says why; the rest serves; the daemon
/// is not ready and says so.
#[test]
fn a_required_server_that_fails_holds_up_what_needs_it_and_nothing_else() {
    let fake = ostler_testkit::fake::path();
    let fake = fake.display();
    let config = format!(
        "[limits]\nstartup = \"1s\"\n\
         [servers.db]\ncommand = \"/no/such/program\"\nrequired = true\nscope = \"shared\"\n\
         [servers.web]\ncommand = \"{fake}\"\nscope = \"shared\"\ndepends_on = [\"db\"]\n\
         [servers.page]\ncommand = \"{fake}\"\nscope = \"shared\"\nwants = [\"db\"]\n\
         [servers.other]\ncommand = \"{fake}\"\nscope = \"shared\"\n"
    );
    let daemon = daemon(&config);
    daemon.wait_row("other", "the other serves", |row| row["state"] == "ready");
    daemon.wait_row("page", "what only wants it serves, degraded", |row| {
        row["state"] == "degraded" && row["reason"].as_str().is_some_and(|reason| reason.contains("`db`"))
    });
    let mut why = String::new();
    wait_until("it is told why `web` is held up", || {
        let events = daemon.events();
        let told = events.iter().find(|event| event["subject"] == "web" && event["kind"] == "refused");
        why = told.map(|event| event["message"].as_str().unwrap_or_default().to_owned()).unwrap_or_default();
        !why.is_empty()
    });
    for part in ["limits.startup", "needs `db`", "/no/such/program"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert!(!daemon.ps().iter().any(|row| row["server"] == "web" && row["generation"] != 0), "not started");
    let (status, body) = get(&daemon.address(), "/readyz");
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("db"), "it names the server: {body}");
}

/// A dependency that dies degrades what depends on it, until it is back.
#[test]
fn a_dependency_that_dies_degrades_its_dependants_visibly() {
    let fake = ostler_testkit::fake::path();
    let fake = fake.display();
    let config = format!(
        "[servers.db]\ncommand = \"{fake}\"\nscope = \"shared\"\n\
         [servers.web]\ncommand = \"{fake}\"\nscope = \"shared\"\ndepends_on = [\"db\"]\n"
    );
    let daemon = daemon(&config);
    all_ready(&daemon, 2);
    assert!(daemon.cli(&["stop", "db"]).status.success());
    let row = daemon.wait_row("web", "it is degraded", |row| row["state"] == "degraded");
    let reason = row["reason"].as_str().expect("a reason");
    assert!(reason.contains("needs `db`, which is stopped"), "{reason}");
    assert!(daemon.cli(&["start", "db"]).status.success());
    let row = daemon.wait_row("web", "it is well again", |row| row["state"] == "ready");
    assert_eq!(row["generation"], 1, "it was never restarted: {row}");
}
