//! The benchmark's programs against each other: what they print is what happened.

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

const ECHO_SERVER: &str = env!("CARGO_BIN_EXE_echo-server");

/// The floor proxy on a port of its own; killed when dropped.
struct Floor {
    process: Child,
    url: String,
}

impl Floor {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_floor-proxy"))
            .args(["--port", "0", "--", ECHO_SERVER])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the floor proxy starts");
        let mut address = String::new();
        let stdout = process.stdout.take().expect("its output is a pipe");
        BufReader::new(stdout).read_line(&mut address).expect("it prints its address");
        Self { process, url: format!("http://{}/mcp", address.trim()) }
    }

    fn pid(&self) -> String {
        self.process.id().to_string()
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn report(program: &str, arguments: &[&str]) -> Value {
    let output = Command::new(program).args(arguments).output().expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} failed: {errors}");
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}

#[test]
fn load_through_the_floor_makes_no_errors() {
    let floor = Floor::start();
    let arguments = [
        "--url",
        &floor.url,
        "--pid",
        &floor.pid(),
        "--sessions",
        "8",
        "--seconds",
        "0.3",
        "--warmup",
        "0.1",
    ];
    let report = report(env!("CARGO_BIN_EXE_load"), &arguments);
    assert_eq!(report["errors"], 0, "{report}");
    assert!(report["calls"].as_u64() > Some(0), "{report}");
    assert_eq!(report["after"]["gateway_processes"], 1, "{report}");
    assert_eq!(report["after"]["server_processes"], 1, "{report}");
}

#[test]
fn load_directly_starts_a_server_per_session() {
    let arguments = ["--stdio", "--sessions", "3", "--seconds", "0.2", "--warmup", "0.1", "--", ECHO_SERVER];
    let report = report(env!("CARGO_BIN_EXE_load"), &arguments);
    assert_eq!(report["errors"], 0, "{report}");
    assert!(report["calls"].as_u64() > Some(0), "{report}");
    assert_eq!(report["after"]["server_processes"], 3, "{report}");
}

#[test]
fn an_unknown_tool_is_an_error_for_every_call() {
    let floor = Floor::start();
    let arguments = ["--url", &floor.url, "--seconds", "0.2", "--warmup", "0.0", "--tool", "nothing"];
    let report = report(env!("CARGO_BIN_EXE_load"), &arguments);
    assert_eq!(report["calls"], 0, "{report}");
    assert!(report["errors"].as_u64() > Some(0), "{report}");
    let first = report["first_error"].as_str().unwrap_or_default();
    assert!(first.contains("unknown tool"), "{report}");
}

#[test]
fn churn_counts_clients_and_looks_at_the_tree() {
    let floor = Floor::start();
    let arguments = ["--url", &floor.url, "--pid", &floor.pid(), "--mark", "none", "--rounds", "2"];
    let arguments = [&arguments[..], &["--clients", "5", "--gap", "0", "--promised", "0"]].concat();
    let report = report(env!("CARGO_BIN_EXE_churn"), &arguments);
    assert_eq!(
        (&report["clients"], &report["served"], &report["refused"]),
        (&10.into(), &10.into(), &0.into())
    );
    assert!(report["back_after_s"].is_number(), "the floor never has more than two processes: {report}");
    let series = report["series"].as_array().expect("a series");
    assert!(series.iter().all(|point| point["processes"] == 2), "{report}");
}
