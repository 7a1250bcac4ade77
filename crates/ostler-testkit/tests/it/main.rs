//! The evil child speaks enough MCP to be taken for a server, in both eras.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ostler_testkit::evil;
use ostler_testkit::mark::Mark;
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(10);

fn start(mark: &Mark, words: &[&str]) -> Child {
    let (name, value) = mark.env();
    let mut command = Command::new(evil::path());
    command.args(words).env(name, value).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().expect("starts")
}

/// Asks all at once, ends the input, and gives the answers.
fn answers(words: &[&str], requests: &[Value]) -> Vec<Value> {
    let mark = Mark::new();
    let mut child = start(&mark, words);
    let mut stdin = child.stdin.take().expect("piped");
    for request in requests {
        writeln!(stdin, "{request}").expect("it reads");
    }
    drop(stdin);
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let answers = lines.map(|line| serde_json::from_str(&line.expect("text")).expect("JSON")).collect();
    assert!(child.wait().expect("ends").success());
    answers
}

fn request(id: i32, method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

#[test]
fn it_answers_both_eras() {
    let answers = answers(
        &[],
        &[
            request(1, "initialize", &json!({"protocolVersion": "2025-06-18"})),
            json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
            request(2, "server/discover", &json!({})),
            request(3, "tools/list", &json!({})),
            request(4, "tools/call", &json!({"name": "echo", "arguments": {"message": "hello"}})),
            request(5, "tools/call", &json!({"name": "other"})),
            request(6, "ping", &json!({})),
        ],
    );
    assert_eq!(
        answers.iter().map(|answer| answer["id"].as_i64()).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 6].map(Some)
    );
    assert_eq!(answers[0]["result"]["protocolVersion"], "2025-06-18");
    assert_eq!(answers[1]["result"]["supportedVersions"], json!(["2026-07-28"]));
    assert_eq!(answers[2]["result"]["tools"][0]["name"], "echo");
    assert_eq!(answers[3]["result"]["content"][0]["text"], "hello");
    assert_eq!(answers[4]["error"]["code"], -32602);
    assert_eq!(answers[5]["result"], json!({}));
}

#[test]
fn a_legacy_one_does_not_know_discover() {
    let answers = answers(&["--legacy"], &[request(1, "server/discover", &json!({}))]);
    assert_eq!(answers[0]["error"]["code"], -32601);
}

#[test]
fn one_that_never_answers_does_not() {
    assert_eq!(answers(&["never-answer"], &[request(1, "ping", &json!({}))]), Vec::<Value>::new());
}

#[test]
fn wrappers_pass_the_conversation_through() {
    for word in ["wrapper", "npx-like"] {
        assert_eq!(answers(&[word], &[request(1, "ping", &json!({}))])[0]["result"], json!({}), "{word}");
    }
}

#[test]
fn an_orphan_outlives_its_server_with_and_without_an_environment() {
    for word in ["double-fork", "clean-env-fork"] {
        let mark = Mark::new();
        let mut child = start(&mark, &[word]);
        let orphaned = |marked: &[ostler_testkit::mark::Marked]| {
            marked
                .iter()
                .any(|marked| marked.command.contains(" orphan") && !marked.command.starts_with("sh"))
        };
        mark.wait_for(DEADLINE, orphaned).expect(word);
        drop(child.stdin.take());
        assert!(child.wait().expect("ends").success());
        assert!(orphaned(&mark.processes()), "{word}");
    }
}

#[test]
fn late_evil_waits_for_the_handshake() {
    let mark = Mark::new();
    let mut child = start(&mark, &["late", "exit-early"]);
    let mut stdin = child.stdin.take().expect("piped");
    writeln!(stdin, "{}", request(1, "ping", &json!({}))).expect("it reads");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("it answers first");
    writeln!(stdin, "{}", request(2, "initialize", &json!({}))).expect("it reads");
    assert_eq!(child.wait().expect("ends").code(), Some(3));
}

#[test]
fn many_start_again_what_dies() {
    let mark = Mark::new();
    let mut child = start(&mark, &["fork-many", "6"]);
    let many = mark.wait_count(7, DEADLINE).expect("the server and six");
    let victim =
        many.iter().find(|marked| marked.command.ends_with("forker 3")).expect("one with two below it");
    let pid = rustix::process::Pid::from_raw(victim.pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    let replaced = |marked: &[ostler_testkit::mark::Marked]| {
        marked
            .iter()
            .filter(|marked| marked.command.ends_with("forker 3"))
            .any(|marked| marked.pid != victim.pid)
    };
    let killed =
        |marked: &[ostler_testkit::mark::Marked]| marked.iter().all(|marked| marked.pid != victim.pid);
    mark.wait_for(DEADLINE, |marked| killed(marked) && replaced(marked)).expect("started again");
    drop(mark);
    child.wait().expect("killed with the mark");
}
