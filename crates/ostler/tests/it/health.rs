//! Health: each kind of probe, what its failures lead to, and what a late one leaves behind.

use std::net::TcpListener;
use std::path::Path;

use ostler_testkit::mark::Mark;
use serde_json::Value;

use crate::support::{Daemon, PATIENCE, wait_until};

/// Quick probes: two failures in a row are enough.
const QUICK: &str = "interval = \"50ms\", timeout = \"2s\", failures = 2";

fn server(name: &str, script: &str, health: &str) -> String {
    format!(
        "[servers.{name}]\ncommand = \"sh\"\nargs = [\"-c\", '{script}']\ntransport = \"none\"\nscope = \"shared\"\n\
         restart = {{ backoff = {{ min = \"10ms\" }}, max = 1000 }}\nhealth = {{ {health} }}\n"
    )
}

/// Waits until this server was degraded, then unhealthy, then came back as another generation; gives the reason.
fn wait_restarted(daemon: &Daemon, server: &str) -> String {
    let events = |kind: &str| {
        let is_it = |event: &Value| {
            event["kind"] == kind
                && event["subject"].as_str().is_some_and(|subject| subject.starts_with(&format!("{server}.")))
        };
        daemon.events().into_iter().find(is_it)
    };
    wait_until(&format!("`{server}` is unhealthy"), || events("unhealthy").is_some());
    daemon.wait_row(server, "it is restarted", |row| row["generation"].as_u64() > Some(1));
    let (degraded, unhealthy) =
        (events("degraded").expect("degraded before"), events("unhealthy").expect("told"));
    assert!(degraded["seq"].as_u64() < unhealthy["seq"].as_u64(), "{degraded} {unhealthy}");
    unhealthy["message"].as_str().expect("a message").to_owned()
}

#[test]
fn a_stopped_mcp_server_is_found_out_and_replaced() {
    let fake = ostler_testkit::fake::path();
    let mut config = String::new();
    for era in ["legacy", "modern"] {
        config += &format!(
            "[servers.{era}]\ncommand = \"{}\"\nargs = [\"{era}\"]\nscope = \"shared\"\nstop = {{ grace = \"500ms\" }}\n\
             health = {{ interval = \"50ms\", timeout = \"1s\", failures = 2 }}\n",
            fake.display()
        );
    }
    let daemon = Daemon::start(&config, &[]);
    for era in ["legacy", "modern"] {
        let row = daemon.wait_row(era, "it serves", |row| row["state"] == "ready");
        let pid = row["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a pid");
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("a server of this test");
        let reason = wait_restarted(&daemon, era);
        assert!(reason.contains("no answer"), "it says what it waited for: {reason}");
    }
}

#[test]
fn a_port_that_nobody_serves_is_found_out() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let tcp = format!("probe = \"tcp\", address = \"{address}\", {QUICK}");
    let daemon = Daemon::start(&server("tcp", "sleep 1000", &tcp), &[]);
    let row = daemon.wait_row("tcp", "it is ready", |row| row["state"] == "ready");
    assert_eq!(row["generation"], 1, "{row}");
    drop(listener);
    let reason = wait_restarted(&daemon, "tcp");
    assert!(reason.contains(&address.to_string()) && reason.contains("refused"), "{reason}");
}

#[test]
fn an_http_answer_that_is_an_error_is_found_out() {
    // The daemon itself is the page that is looked at: one address of it exists, the other does not.
    let page = Daemon::start("", &[]);
    let http = |path: &str| format!("probe = \"http\", url = \"http://{}{path}\", {QUICK}", page.address());
    let config = server("good", "sleep 1000", &http("/healthz"))
        + &server("bad", "sleep 1000", &http("/nothing/here"));
    let daemon = Daemon::start(&config, &[]);
    let reason = wait_restarted(&daemon, "bad");
    assert!(reason.contains("404"), "{reason}");
    let row = daemon.wait_row("good", "it is ready", |row| row["state"] == "ready");
    assert_eq!(row["generation"], 1, "{row}");
}

#[test]
fn a_command_says_how_it_is_and_a_late_one_is_killed_with_all_it_started() {
    let mark = Mark::new();
    let (name, value) = mark.env();
    let exec = |script: &str| format!("probe = \"exec\", command = [\"sh\", \"-c\", \"{script}\"], {QUICK}");
    let late = "probe = \"exec\", command = [\"sh\", \"-c\", \"sleep 1000 & sleep 1000\"], interval = \"50ms\", \
                timeout = \"300ms\", failures = 2";
    let config = server("says", "sleep 1000", &exec("echo it hurts >&2; exit 7"))
        + &server("late", "sleep 1000", late)
        + &format!("env = {{ {name} = \"{value}\" }}\n");
    let mut daemon = Daemon::start(&config, &[]);
    let reason = wait_restarted(&daemon, "says");
    assert!(reason.contains("exited with status 7") && reason.contains("it hurts"), "{reason}");
    let reason = wait_restarted(&daemon, "late");
    assert!(reason.contains("300 ms"), "{reason}");
    assert!(daemon.cli(&["down"]).status.success());
    assert!(daemon.wait().success());
    let left = mark.wait_for(PATIENCE, <[_]>::is_empty);
    assert!(left.is_ok(), "of the late probes: {left:#?}");
}

#[test]
fn a_heart_that_stops_beating_is_found_out() {
    let script = |beat: &str| format!("while :; do [ -e stopped ] || {beat}; sleep 0.01; done");
    let health = |what: &str| format!("probe = \"heartbeat\", {what} interval = \"300ms\", failures = 2");
    let config = server("line", &script("echo beat"), &health(""))
        + "cwd = \"here\"\n"
        + &server("file", &script(": > pulse"), &health("file = \"pulse\","))
        + "cwd = \"here\"\n";
    let daemon = Daemon::start_with(&config, &[], |dir: &Path| {
        std::fs::create_dir(dir.join("here")).expect("a new folder");
        std::fs::write(dir.join("here/pulse"), "").expect("a new file");
    });
    for name in ["line", "file"] {
        daemon.wait_row(name, "it beats", |row| {
            row["state"] == "ready" && row["uptime_ms"].as_u64() > Some(1500)
        });
    }
    std::fs::write(daemon.dir().join("here/stopped"), "").expect("a new file");
    for name in ["line", "file"] {
        let reason = wait_restarted(&daemon, name);
        assert!(reason.contains("since the last look"), "{reason}");
    }
}
