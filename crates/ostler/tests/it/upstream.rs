//! Servers on the network: reached at a port of their process, or elsewhere.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::client::{Http, Session, code, modern, post_modern, request, text, tool_call, why, with_token};
use crate::support::{Daemon, wait_until};

/// Ostler's own code for an instance that is lost.
const LOST: i64 = -31001;

/// A range that the machine gives to nobody by itself; each test has a tenth of it.
pub(crate) fn range(test: u16) -> (u16, u16) {
    let first = 30_000 + u16::try_from(std::process::id() % 20).expect("small") * 100 + test * 10;
    (first, first + 9)
}

/// A fake server at a port: the word that says how it is spoken with, and further words.
fn server(name: &str, wire: &str, words: &[&str], keys: &str) -> String {
    let transport = if wire == "ws" { "websocket" } else { wire };
    let words: String = words.iter().map(|word| format!(", \"{word}\"")).collect();
    format!(
        "[servers.{name}]\ncommand = \"{}\"\nargs = [\"{wire}\", \"{{port.mcp}}\"{words}]\ntransport = \"{transport}\"\n\
         scope = \"shared\"\nports = {{ mcp = \"auto\" }}\nrestart = {{ backoff = {{ min = \"10ms\", jitter = 0 }} }}\n{keys}",
        ostler_testkit::fake::path().display()
    )
}

fn daemon(test: u16, servers: &[String]) -> Daemon {
    let (first, last) = range(test);
    Daemon::start(&format!("[ports]\nrange = \"{first}-{last}\"\n{}", servers.concat()), &[])
}

async fn state(session: &Session) -> Value {
    let answer = session.call("state", "state", &json!({})).await;
    serde_json::from_str(text(&answer)).expect("JSON")
}

/// Waits until the server itself says so; looks often.
async fn wait_state(session: &Session, what: &str, wanted: impl Fn(&Value) -> bool) {
    for _ in 0..500 {
        if wanted(&state(session).await) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("waited in vain until {what}: {}", state(session).await);
}

fn is_ready(row: &Value) -> bool {
    row["state"] == "ready"
}

/// What a session can do: a call, progress on it, questions of the server, cancelling.
async fn everything_works(http: &Arc<Http>, name: &str) {
    let session = Session::open(http, name).await;
    assert_eq!(text(&session.call(1, "echo", &json!({"text": "one"})).await), "one");
    let mut progress = session
        .send(&with_token(
            tool_call(2, "progress", &json!({"steps": 3, "gap_ms": 1, "tag": "t"})),
            &json!("mine"),
        ))
        .await;
    let told = progress.rest().await;
    assert_eq!(told.len(), 4, "{name}: {told:?}");
    assert!(told[..3].iter().all(|message| message["params"]["progressToken"] == "mine"), "{told:?}");
    let mut asking = session.send(&tool_call(3, "ask", &json!({"kind": "sampling", "tag": "q"}))).await;
    let asked = asking.next().await.expect("a question");
    assert_eq!(asked["method"], "sampling/createMessage", "{name}: {asked}");
    session.tell(&json!({"jsonrpc": "2.0", "id": asked["id"], "result": {"said": "yes"}})).await;
    let answer = asking.answer().await;
    let said: Value = serde_json::from_str(text(&answer)).expect("JSON");
    assert_eq!(said["result"]["said"], "yes");
    let mut sleeping = session
        .send(&with_token(tool_call(4, "sleep", &json!({"ms": 300_000, "tag": "asleep"})), &json!(4)))
        .await;
    sleeping.next().await.expect("progress says that it runs");
    session
        .tell(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 4}}))
        .await;
    assert_eq!(code(&sleeping.answer().await), -31004);
    wait_state(&session, "the server knows of the cancellation", |seen| {
        seen["cancelled"] == json!(["asleep"])
    })
    .await;
    assert_eq!(session.end().await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_transport_carries_everything() {
    let servers = [
        server("http", "http", &["legacy"], ""),
        server("json", "http", &["legacy", "json", "no-stream"], ""),
        server("slow", "http", &["legacy", "slow"], ""),
        server("sse", "sse", &["legacy"], ""),
        server("ws", "ws", &["legacy"], ""),
    ];
    let mut daemon = daemon(0, &servers);
    let http = Http::new(daemon.address());
    for name in ["http", "slow", "sse", "ws"] {
        everything_works(&http, name).await;
    }
    // What answers with JSON has no way to ask; whole bodies of several lines pass as one.
    let session = Session::open(&http, "json").await;
    assert_eq!(text(&session.call(1, "echo", &json!({"text": "line\nline"})).await), "line\nline");
    assert!(daemon.cli(&["down"]).status.success());
    assert!(daemon.wait().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_over_http_is_ended_with_its_instance() {
    let daemon = daemon(1, &[server("http", "http", &["legacy"], "")]);
    daemon.wait_row("http", "it is ready", is_ready);
    assert!(daemon.cli(&["stop", "http"]).status.success());
    let logs = String::from_utf8(daemon.cli(&["logs", "http"]).stdout).expect("text");
    assert!(logs.contains("session ended"), "the server got a DELETE: {logs}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_eras_over_http() {
    let daemon = daemon(2, &[server("new", "http", &["modern"], ""), server("both", "http", &[], "")]);
    let http = Http::new(daemon.address());
    for name in ["new", "both"] {
        let call = modern(tool_call(1, "echo", &json!({"text": "modern"})));
        let answer = post_modern(&http, name, &call).await.answer().await;
        assert_eq!(text(&answer), "modern");
    }
    let session = Session::open(&http, "both").await;
    assert_eq!(text(&session.call(1, "echo", &json!({"text": "legacy"})).await), "legacy");
    // Whoever hangs up has cancelled, and the server hears of it in its own way: its stream is closed.
    let sleep = modern(with_token(tool_call(2, "sleep", &json!({"ms": 300_000, "tag": "z"})), &json!(2)));
    let mut reply = post_modern(&http, "new", &sleep).await;
    reply.next().await.expect("it runs");
    drop(reply);
    let mut seen = Value::Null;
    for _ in 0..500 {
        let call = modern(tool_call(3, "state", &json!({})));
        let answer = post_modern(&http, "new", &call).await.answer().await;
        seen = serde_json::from_str(text(&answer)).expect("JSON");
        if seen["cancelled"] == json!(["z"]) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(seen["cancelled"], json!(["z"]));
    assert_eq!(seen["running"], 1, "nothing but the call that looks: {seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_dies_fails_its_calls_and_comes_back() {
    let servers = ["http", "sse", "ws"].map(|wire| server(wire, wire, &["legacy"], ""));
    let daemon = daemon(3, &servers);
    let http = Http::new(daemon.address());
    for name in ["http", "sse", "ws"] {
        let row = daemon.wait_row(name, "it is ready", is_ready);
        let session = Session::open(&http, name).await;
        let waiting = session
            .send(&with_token(tool_call(1, "sleep", &json!({"ms": 300_000, "tag": "z"})), &json!(1)))
            .await;
        let crashed = session.call(2, "crash", &json!({"code": 7})).await;
        for answer in [crashed, waiting.answer().await] {
            assert_eq!(code(&answer), LOST, "{answer}");
            assert!(why(&answer).contains("status 7"), "{name}: {answer}");
        }
        let again = daemon.wait_row(name, "it is back", |row| is_ready(row) && row["restarts"] == 1);
        assert_ne!(again["pid"], row["pid"]);
        let session = Session::open(&http, name).await;
        assert_eq!(text(&session.call(1, "echo", &json!({"text": "again"})).await), "again");
    }
}

/// Whoever holds the port gets nothing: no request is sent before the listening socket is the process's own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thief_on_the_port_is_passed_by() {
    let (first, _) = range(4);
    let thief = TcpListener::bind(("127.0.0.1", first)).expect("a free port");
    thief.set_nonblocking(true).expect("a socket option");
    let daemon = daemon(4, &[server("http", "http", &["legacy"], "")]);
    let row = daemon.wait_row("http", "it is ready elsewhere", is_ready);
    assert_ne!(row["ports"]["mcp"], first);
    assert!(thief.accept().is_err(), "nobody called the thief");
    everything_works(&Http::new(daemon.address()), "http").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_fails_its_call_and_nothing_else() {
    let servers = [
        "[gateway]\nmax_body = \"64KiB\"\n".to_owned(),
        server("http", "http", &["legacy"], ""),
        server("json", "http", &["legacy", "json"], ""),
    ];
    let daemon = daemon(5, &servers);
    let http = Http::new(daemon.address());
    for name in ["http", "json"] {
        let session = Session::open(&http, name).await;
        let large = session.call(1, "big", &json!({"bytes": 60_000})).await;
        assert_eq!(text(&large).len(), 60_000);
        let answer = session.call(2, "big", &json!({"bytes": 200_000})).await;
        assert_eq!(code(&answer), LOST, "{name}: {answer}");
        assert!(why(&answer).contains("gateway.max_body"), "{name}: {answer}");
        assert_eq!(text(&session.call(3, "echo", &json!({"text": "on"})).await), "on");
        assert_eq!(daemon.wait_row(name, "it serves", is_ready)["restarts"], 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_stream_breaks_off_is_taken_up_again() {
    let daemon = daemon(6, &[server("http", "http", &["legacy"], "")]);
    let http = Http::new(daemon.address());
    let session = Session::open(&http, "http").await;
    let mut reply = session.send(&with_token(tool_call(1, "cut", &json!({"tag": "whole"})), &json!(1))).await;
    let heard = reply.rest().await;
    assert_eq!(heard.len(), 3, "both sides of the cut, each once: {heard:?}");
    assert_eq!((&heard[0]["params"]["progress"], &heard[1]["params"]["progress"]), (&json!(1), &json!(2)));
    assert_eq!(text(&heard[2]), "whole");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_stream_degrades_until_it_is_back_and_a_lost_session_ends_the_instance() {
    let daemon = daemon(7, &[server("http", "http", &["legacy"], "")]);
    let http = Http::new(daemon.address());
    let session = Session::open(&http, "http").await;
    session.call(1, "cut-stream", &json!({"times": 4})).await;
    let row = daemon.wait_row("http", "it is degraded", |row| row["state"] == "degraded");
    assert!(row["reason"].as_str().is_some_and(|reason| reason.contains("stream")), "{row}");
    assert_eq!(text(&session.call(2, "echo", &json!({"text": "still"})).await), "still");
    daemon.wait_row("http", "it is well again", |row| is_ready(row) && row["restarts"] == 0);
    let subscribe = request(3, "resources/subscribe", &json!({"uri": "test://a"}));
    assert_eq!(session.send(&subscribe).await.answer().await["result"], json!({}));
    let mut stream = session.listen(None).await;
    session.call(4, "touch", &json!({"uri": "test://a"})).await;
    let told = stream.next().await.expect("the stream that is back carries it");
    assert_eq!(told["params"]["uri"], "test://a");

    assert_eq!(text(&session.call(5, "forget", &json!({})).await), "forgot");
    let refused = session.call(6, "echo", &json!({"text": "who?"})).await;
    assert_eq!(code(&refused), LOST, "{refused}");
    daemon.wait_row("http", "it has a session again", |row| is_ready(row) && row["restarts"] == 1);
}

/// Over one stream the end of the connection is the end, of a server elsewhere too, and it is looked for again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_to_elsewhere_that_ends_is_made_again() {
    let (port, _) = range(9);
    let there = Elsewhere::start("ws", port, &[]);
    let backoff = "restart = { backoff = { min = \"10ms\", max = \"100ms\", jitter = 0 }, max = 1000 }";
    let config = format!("[servers.far]\nurl = \"ws://127.0.0.1:{port}/\"\nscope = \"shared\"\n{backoff}\n");
    let daemon = Daemon::start(&config, &[]);
    let http = Http::new(daemon.address());
    everything_works(&http, "far").await;
    let session = Session::open(&http, "far").await;
    let waiting = tool_call(1, "sleep", &json!({"ms": 300_000, "tag": "z"}));
    let mut waiting = session.send(&with_token(waiting, &json!(1))).await;
    waiting.next().await.expect("it runs");
    drop(there);
    let answer = waiting.answer().await;
    assert_eq!(code(&answer), LOST, "{answer}");
    let _there = Elsewhere::start("ws", port, &[]);
    daemon.wait_row("far", "it is found again", |row| is_ready(row) && row["restarts"].as_u64() > Some(0));
    everything_works(&http, "far").await;
}

/// A fake server that is nobody's instance. Ended when dropped.
pub(crate) struct Elsewhere(Child);

impl Elsewhere {
    pub(crate) fn start(wire: &str, port: u16, words: &[&str]) -> Self {
        let mut command = Command::new(ostler_testkit::fake::path());
        command.args([wire, &port.to_string(), "legacy"]).args(words).stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        wait_until("it listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self(child)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_elsewhere_is_used_lost_and_found_again() {
    let (port, _) = range(8);
    let there = Elsewhere::start("http", port, &["secret", "s3cret"]);
    let remote = |name: &str, header: &str| {
        format!(
            "[servers.{name}]\nurl = \"http://127.0.0.1:{port}/mcp\"\nscope = \"shared\"\nheaders = {{ Authorization = \"{header}\" }}\n\
             restart = {{ backoff = {{ min = \"10ms\", max = \"100ms\", jitter = 0 }}, max = 1000 }}\n\
             health = {{ interval = \"50ms\", timeout = \"5s\", failures = 2 }}\n"
        )
    };
    let config = [remote("far", "${env:KEY}"), remote("shut", "wrong")].concat();
    let daemon = Daemon::start(&config, &[("KEY", "s3cret")]);
    let row = daemon.wait_row("far", "it is ready", is_ready);
    assert_eq!(row["pid"], Value::Null, "there is no process: {row}");
    let http = Http::new(daemon.address());
    everything_works(&http, "far").await;
    let told = |row: &Value| row["reason"].as_str().is_some_and(|reason| reason.contains("401"));
    let shut = daemon.wait_row("shut", "it says why it is refused", told);
    assert!(!shut.to_string().contains("wrong"), "secrets are not told: {shut}");

    let session = Session::open(&http, "far").await;
    drop(there);
    daemon.wait_row("far", "its loss is noticed by its probes", |row| row["restarts"].as_u64() > Some(0));
    // A call waits for a server that is tried again soon.
    let arguments = json!({"text": "patience"});
    let (answer, _there) = tokio::join!(session.call(1, "echo", &arguments), async {
        Elsewhere::start("http", port, &["secret", "s3cret"])
    });
    assert_eq!(text(&answer), "patience");
    daemon.wait_row("far", "it is found again", is_ready);
    everything_works(&http, "far").await;
    assert!(daemon.cli(&["stop", "far"]).status.success());
}
