//! Many calls of tools in one go, by every way in.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::cli::{err, over_socket};
use crate::client::{Http, modern, post_modern, request, text, tool_call, with_token};
use crate::support::{Daemon, wait_until};

/// A server of each era that all share, and one of each for single sessions.
fn daemon() -> Daemon {
    let fake = ostler_testkit::fake::path();
    let server = |name: &str, era: &str, scope: &str| {
        format!(
            "[servers.{name}]\ncommand = \"{}\"\nargs = [\"{era}\"]\nscope = \"{scope}\"\n",
            fake.display()
        )
    };
    let config = server("old", "legacy", "shared")
        + &server("new", "modern", "principal")
        + &server("own-old", "legacy", "session")
        + &server("own-new", "modern", "session");
    Daemon::start(&config, &[])
}

fn call(server: &str, tool: &str, arguments: Value) -> Value {
    json!({"server": server, "tool": tool, "arguments": arguments})
}

/// Runs by the MCP tool; its report.
async fn run(http: &Arc<Http>, arguments: &Value) -> Value {
    let request = modern(tool_call(1, "run_many", arguments));
    let answer = post_modern(http, "ostler", &request).await.answer().await;
    assert_eq!(answer["result"]["isError"], false, "{answer}");
    answer["result"]["structuredContent"].clone()
}

/// The text that a call's tool gave.
fn said(report: &Value, index: usize) -> &str {
    text(&report["results"][index])
}

/// What a fake server has seen.
async fn state(http: &Arc<Http>, server: &str, session: Option<&str>) -> Value {
    let mut asked = json!({"calls": [call(server, "state", json!({}))]});
    if let Some(session) = session {
        asked["session_id"] = session.into();
    }
    serde_json::from_str(said(&run(http, &asked).await, 0)).expect("JSON")
}

/// Calls that run on a server now.
fn running(daemon: &Daemon, server: &str) -> u64 {
    daemon.ps().iter().filter(|row| row["server"] == server).filter_map(|row| row["calls"].as_u64()).sum()
}

#[tokio::test]
async fn results_stand_in_order_and_one_failure_stops_no_other() {
    let daemon = daemon();
    let http = Http::new(daemon.address());
    let calls = json!([
        call("new", "echo", json!({"text": "first"})),
        call("old", "no-such-tool", json!({})),
        call("nobody", "echo", json!({})),
        call("old", "progress", json!({"steps": 4, "gap_ms": 0, "tag": "steps"})),
        // A server that asks back gets an answer at once: nobody can be asked.
        call("old", "ask", json!({"kind": "elicitation", "tag": "asked"})),
        call("own-old", "echo", json!({"text": "last"})),
    ]);
    for concurrent in [false, true] {
        let asked = json!({"calls": calls, "concurrent": concurrent});
        let request = with_token(modern(tool_call(1, "run_many", &asked)), &json!("p"));
        let mut messages = post_modern(&http, "ostler", &request).await.rest().await;
        let answer = messages.pop().expect("an answer");
        let report = &answer["result"]["structuredContent"];
        assert_eq!((&report["ok"], &report["failed"]), (&json!(4), &json!(2)), "{report}");
        let indices: Vec<&Value> =
            report["results"].as_array().expect("results").iter().map(|r| &r["index"]).collect();
        assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
        assert_eq!((said(report, 0), said(report, 3), said(report, 5)), ("first", "steps", "last"));
        assert_eq!(report["results"][1]["error"]["code"], -32602);
        let unknown = report["results"][2]["error"]["message"].as_str().expect("an error");
        assert!(unknown.contains("no server is called `nobody`"), "{unknown}");
        let told: Value = serde_json::from_str(said(report, 4)).expect("JSON");
        assert_eq!(told["error"]["code"], -32601, "{told}");
        assert!(
            told["error"]["message"].as_str().is_some_and(|why| why.contains("cannot be asked")),
            "{told}"
        );

        assert!(messages.iter().all(|note| note["params"]["progressToken"] == "p"), "{messages:?}");
        let progress: Vec<f64> =
            messages.iter().filter_map(|note| note["params"]["progress"].as_f64()).collect();
        assert!(progress.is_sorted_by(|one, next| one < next), "it only grows: {progress:?}");
        assert_eq!((progress.last(), &messages[0]["params"]["total"]), (Some(&6.0), &json!(6)));
        let text = messages.last().expect("progress")["params"]["message"].as_str().expect("a text");
        assert!(text.starts_with("6 of 6 done: call "), "{text}");
    }
}

/// A legacy process of a session is the session's, from one run to the next, and ends with it.
#[tokio::test]
async fn a_session_has_its_own_process_in_either_era() {
    let daemon = daemon();
    let http = Http::new(daemon.address());
    for server in ["own-old", "own-new"] {
        let mut pids = Vec::new();
        for session in ["one", "two", "one"] {
            pids.push(state(&http, server, Some(session)).await["pid"].as_u64().expect("a pid"));
        }
        assert!(pids[0] == pids[2] && pids[0] != pids[1], "{server}: {pids:?}");
    }
    let (_, sessions) = over_socket(&daemon, "GET", "/api/v1/sessions", "");
    let sessions: Value = serde_json::from_str(&sessions).expect("JSON");
    let ids: BTreeSet<&str> =
        sessions.as_array().expect("a list").iter().filter_map(|s| s["id"].as_str()).collect();
    assert_eq!(ids.len(), 2, "a session is one for both servers: {sessions}");
    for id in ids {
        assert_eq!(over_socket(&daemon, "DELETE", &format!("/api/v1/sessions/{id}"), "").0, 204);
    }
    wait_until("their processes are gone with them", || {
        daemon.ps().iter().all(|row| {
            !row["server"].as_str().is_some_and(|name| name.starts_with("own")) || row["pid"].is_null()
        })
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_run_at_once_and_hanging_up_cancels_all() {
    let daemon = daemon();
    let http = Http::new(daemon.address());
    let sleeps = |server: &str, ms: u64, count: usize| -> Vec<Value> {
        (0..count).map(|n| call(server, "sleep", json!({"ms": ms, "tag": format!("{server}-{n}")}))).collect()
    };
    run(&http, &json!({"calls": sleeps("own-new", 1, 5), "session_id": "s"})).await;
    assert_eq!(state(&http, "own-new", Some("s")).await["most_at_once"], 1);
    let at_once = json!({"calls": sleeps("new", 500, 6), "concurrent": true, "limit": 3});
    assert_eq!(run(&http, &at_once).await["ok"], 6);
    assert_eq!(state(&http, "new", None).await["most_at_once"], 3);

    let mut calls = sleeps("old", 600_000, 2);
    calls.extend(sleeps("new", 600_000, 4));
    let asked = json!({"calls": calls, "concurrent": true, "limit": 4});
    let leaving = tokio::spawn({
        let http = Http::new(daemon.address());
        async move { run(&http, &asked).await }
    });
    wait_until("two run on each", || running(&daemon, "old") == 2 && running(&daemon, "new") == 2);
    leaving.abort();
    wait_until("none runs", || running(&daemon, "old") == 0 && running(&daemon, "new") == 0);
    for (server, before) in [("old", 0), ("new", 7)] {
        let (mut looks, mut cancelled) = (0, Vec::new());
        let mut seen = Value::Null;
        // A cancelled call ends on a thread of its own.
        while cancelled.len() < 2 {
            looks += 1;
            seen = state(&http, server, None).await;
            cancelled = seen["cancelled"].as_array().cloned().unwrap_or_default();
        }
        cancelled.sort_by_key(ToString::to_string);
        assert_eq!(cancelled, [format!("{server}-0"), format!("{server}-1")], "the server was told");
        assert_eq!(seen["calls"], before + 2 + looks, "the others were never begun: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_session_reaches_all_calls() {
    let daemon = daemon();
    let http = Http::new(daemon.address());
    let sleep = |server| call(server, "sleep", json!({"ms": 600_000, "tag": "x"}));
    let calls = json!([sleep("own-old"), sleep("new"), sleep("new"), sleep("old")]);
    let asked = json!({"calls": calls, "concurrent": true, "limit": 2, "session_id": "k"});
    let ending = tokio::spawn({
        let http = Http::new(daemon.address());
        async move { run(&http, &asked).await }
    });
    wait_until("two run", || running(&daemon, "own-old") == 1 && running(&daemon, "new") == 1);
    let ended = modern(tool_call(2, "cleanup_session", &json!({"session_id": "k"})));
    assert_eq!(post_modern(&http, "ostler", &ended).await.answer().await["result"]["isError"], false);
    let report = ending.await.expect("it ends");
    let outcome = |index: usize| {
        let result = &report["results"][index];
        let why = result["error"]["message"].as_str().unwrap_or_else(|| panic!("no error: {result}"));
        (result["begun"] == true, why.split(':').next().unwrap_or_default().to_owned())
    };
    let cancelled = (true, "cancelled".to_owned());
    let not_begun = (false, "not begun".to_owned());
    assert_eq!([outcome(0), outcome(1)], [cancelled.clone(), cancelled], "{report}");
    assert_eq!([outcome(2), outcome(3)], [not_begun.clone(), not_begun], "{report}");
    wait_until("none runs", || running(&daemon, "own-old") == 0 && running(&daemon, "new") == 0);
    assert_eq!(daemon.status()["sessions"], 0, "no other of its name was opened");
}

/// A legacy client of Ostler's own server cancels by a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_legacy_client_cancels_its_own_request() {
    let daemon = daemon();
    let http = Http::new(daemon.address());
    let reply = http.post("ostler", &[], &crate::client::initialize()).await;
    let session = reply.header("mcp-session-id").expect("an id").to_owned();
    let asked = json!({"calls": [call("new", "sleep", json!({"ms": 600_000, "tag": "x"}))]});
    let waiting = tokio::spawn({
        let (http, session) = (Http::new(daemon.address()), session.clone());
        async move {
            let call = tool_call("mine", "run_many", &asked);
            http.post("ostler", &[("mcp-session-id", &session)], &call).await.answer().await
        }
    });
    wait_until("it runs", || running(&daemon, "new") == 1);
    let cancel =
        json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "mine"}});
    assert_eq!(http.post("ostler", &[("mcp-session-id", "another")], &cancel).await.status, 202);
    assert_eq!(running(&daemon, "new"), 1, "it is not the other's");
    assert_eq!(http.post("ostler", &[("mcp-session-id", &session)], &cancel).await.status, 202);
    assert_eq!(waiting.await.expect("it ends")["error"]["code"], -31004);
    wait_until("it does not run", || running(&daemon, "new") == 0);
    let pinged = http.post("ostler", &[], &request(1, "ping", &json!({}))).await;
    assert_eq!(pinged.status, 200);
}

/// The API and the command line are the same thing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_and_the_command_line_run_the_same() {
    let daemon = daemon();
    let calls = json!({"calls": [
        call("new", "echo", json!({"text": "one"})),
        call("old", "echo", json!({"text": "two"})),
        call("old", "no-such-tool", json!({})),
    ]});
    let (status, report) = over_socket(&daemon, "POST", "/api/v1/run", &calls.to_string());
    let report: Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!((status, said(&report, 1), &report["failed"]), (200, "two", &json!(1)), "{report}");
    let many = json!({"calls": vec![call("new", "echo", json!({})); 101]});
    let (status, refused) = over_socket(&daemon, "POST", "/api/v1/run", &many.to_string());
    assert!(status == 400 && refused.contains("1 to 100"), "{status} {refused}");

    let cli = |args: &[&str], calls: &Value| {
        let mut child = daemon.ostler();
        child.arg("run-many").args(args).arg("-");
        let mut child = child
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        child.stdin.take().expect("its input").write_all(calls.to_string().as_bytes()).expect("it reads");
        child.wait_with_output().expect("it ends")
    };
    let output = cli(&["--concurrent=2", "--json", "--session", "k"], &calls);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((said(&report, 0), &report["ok"]), ("one", &json!(2)));
    assert!(
        err(&output).contains("3 of 3 done: call ") && err(&output).contains("error: 1 of 3 calls failed")
    );
    let well = json!({"calls": [call("new", "echo", json!({"text": "well"}))]});
    let output = cli(&[], &well);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let table = String::from_utf8(output.stdout).expect("text");
    assert!(table.contains("new/echo") && table.contains("well"), "{table}");
    assert_eq!(cli(&[], &json!({"calls": [{"server": "new"}]})).status.code(), Some(2));
}
