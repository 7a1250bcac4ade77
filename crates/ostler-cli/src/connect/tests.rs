//! The shim against a small gateway on a unix socket: the wire as the daemon speaks it, with restarts.

mod gateway;

use std::time::Duration;

use hyper::header::HeaderValue;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::gateway::Gateway;
use super::core::{BROKEN, Limits};
use super::framing::{Line, Lines};
use super::http::{Address, Endpoint};
use super::{RUNNING, serve};
use crate::exit::Exit;

/// Far beyond what any step takes; reached only when something never comes.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

const INITIALIZE: &str =
    r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18"}}"#;
const INITIALIZED: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

/// A client that speaks stdio only, and the shim it runs.
struct Client {
    input: Option<DuplexStream>,
    output: Lines<DuplexStream>,
    shim: JoinHandle<Exit>,
    _stop: oneshot::Sender<()>,
}

impl Client {
    fn start(gateway: &Gateway) -> Self {
        Self::with_limits(gateway, Limits::default())
    }

    fn with_limits(gateway: &Gateway, limits: Limits) -> Self {
        let host = HeaderValue::from_static("ostler");
        let endpoint = Endpoint::new(Address::Unix(gateway.socket()), host, "/mcp/demo".to_owned());
        let (input, shim_input) = duplex(1 << 20);
        let (shim_output, output) = duplex(1 << 20);
        let (stop, stopped) = oneshot::channel::<()>();
        let shim = tokio::spawn(serve(shim_input, shim_output, endpoint, limits, async {
            let _ = stopped.await;
        }));
        Self { input: Some(input), output: Lines::new(output), shim, _stop: stop }
    }

    async fn send(&mut self, line: &str) {
        let input = self.input.as_mut().expect("input is open");
        input.write_all(format!("{line}\n").as_bytes()).await.expect("the shim reads");
    }

    async fn request(&mut self, id: Value, method: &str) {
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method}).to_string()).await;
    }

    async fn modern(&mut self, id: Value, method: &str, name: &str) {
        let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28"});
        let params = json!({"name": name, "_meta": meta});
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()).await;
    }

    async fn next(&mut self) -> Value {
        match timeout(DEADLINE, self.output.next()).await.expect("a message in time").expect("readable") {
            Some(Line::Text(line)) => serde_json::from_slice(&line).expect("one JSON message a line"),
            other => panic!("expected a message, got {other:?}"),
        }
    }

    async fn hello(&mut self) {
        self.send(INITIALIZE).await;
        assert_eq!(self.next().await["result"]["protocolVersion"], "2025-06-18");
        self.send(INITIALIZED).await;
    }

    /// Ends the input; returns what the shim still wrote, and how it exited.
    async fn end(mut self) -> (Vec<Value>, Exit) {
        drop(self.input.take());
        let mut rest = Vec::new();
        while let Some(line) =
            timeout(DEADLINE, self.output.next()).await.expect("in time").expect("readable")
        {
            let Line::Text(line) = line else { panic!("a line is too long") };
            rest.push(serde_json::from_slice(&line).expect("JSON"));
        }
        (rest, timeout(DEADLINE, self.shim).await.expect("exits in time").expect("no panic"))
    }
}

fn result(id: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "result": {"ok": true}})
}

#[tokio::test]
async fn a_legacy_conversation_from_hello_to_goodbye() {
    let gateway = Gateway::start().await;
    let mut client = Client::start(&gateway);
    client.hello().await;
    client.request(json!("a"), "json").await;
    assert_eq!(client.next().await, result(json!("a")));
    client.request(json!(2), "stream").await;
    assert_eq!(client.next().await["method"], "notifications/progress");
    assert_eq!(client.next().await, result(json!(2)));

    let posted = gateway.wait_for("json").await;
    assert_eq!(posted.header("mcp-session-id"), "s1");
    assert_eq!(posted.header("mcp-protocol-version"), "2025-06-18");
    assert_eq!(posted.header("host"), "ostler");
    assert_eq!(posted.header("accept"), "application/json, text/event-stream");
    assert_eq!(gateway.wait_for("initialize").await.header("mcp-session-id"), "");

    let (rest, exit) = client.end().await;
    assert_eq!((rest, exit), (vec![], Exit::Done));
    assert_eq!(gateway.wait_for("DELETE").await.header("mcp-session-id"), "s1");
}

#[tokio::test]
async fn the_servers_own_requests_come_and_their_answers_go_back() {
    let gateway = Gateway::start().await;
    let mut client = Client::start(&gateway);
    client.hello().await;
    gateway.wait_for("GET").await;
    let ask = json!({"jsonrpc": "2.0", "id": "r1", "method": "roots/list"});
    gateway.push(&ask);
    assert_eq!(client.next().await, ask);
    client.send(r#"{"jsonrpc":"2.0","id":"r1","result":{"roots":[]}}"#).await;
    assert_eq!(gateway.wait_for("answer").await.body["id"], "r1");
}

#[tokio::test]
async fn a_stream_that_was_cut_is_resumed_after_its_last_event() {
    let gateway = Gateway::start().await;
    let mut client = Client::start(&gateway);
    client.hello().await;
    client.request(json!(5), "cut").await;
    assert_eq!(client.next().await["method"], "notifications/progress");
    assert_eq!(client.next().await, result(json!(5)));
    assert_eq!(gateway.wait_for("resume").await.header("last-event-id"), "e-2");
}

#[tokio::test]
async fn a_restart_breaks_running_calls_and_nothing_else() {
    let gateway = Gateway::start().await;
    let mut client = Client::start(&gateway);
    client.hello().await;
    gateway.wait_for("notifications/initialized").await;
    client.request(json!(7), "hang").await;
    gateway.wait_for("hang").await;
    gateway.stop().await;
    let broken = client.next().await;
    assert_eq!((&broken["id"], &broken["error"]["code"]), (&json!(7), &json!(-32000)));
    assert_eq!(broken["error"]["message"], BROKEN);

    // Written while the daemon is away: sent when it is back, in a session of its own.
    client.request(json!(8), "json").await;
    gateway.listen().await;
    assert_eq!(client.next().await, result(json!(8)));
    gateway.wait_for_count("notifications/initialized", 2).await;
    assert_eq!(gateway.count("initialize"), 2);
    assert_eq!(gateway.count("hang"), 1, "a call that may have run is never sent again");
    let (rest, exit) = client.end().await;
    assert_eq!((rest, exit), (vec![], Exit::Done), "the second answer to initialize is swallowed");
}

#[tokio::test]
async fn an_answer_does_not_reach_a_session_that_did_not_ask() {
    let gateway = Gateway::start().await;
    let mut client = Client::start(&gateway);
    client.hello().await;
    gateway.wait_for("GET").await;
    gateway.push(&json!({"jsonrpc": "2.0", "id": 1, "method": "roots/list"}));
    assert_eq!(client.next().await["method"], "roots/list");
    gateway.stop().await;
    gateway.listen().await;
    gateway.wait_for_count("GET", 2).await;
    client.send(r#"{"jsonrpc":"2.0","id":1,"result":{"roots":["of the old session"]}}"#).await;
    gateway.push(&json!({"jsonrpc": "2.0", "id": 1, "method": "roots/list"}));
    assert_eq!(client.next().await["method"], "roots/list");
    client.send(r#"{"jsonrpc":"2.0","id":1,"result":{"roots":["of the new session"]}}"#).await;
    let answer = gateway.wait_for("answer").await;
    assert_eq!(answer.body["result"]["roots"][0], "of the new session");
    assert_eq!(gateway.count("answer"), 1);
}

#[tokio::test]
async fn a_forgotten_session_is_replaced_without_the_client_noticing() {
    let gateway = Gateway::start().await;
    let mut client = Client::start(&gateway);
    client.hello().await;
    gateway.wait_for("GET").await;
    gateway.forget_sessions();
    for id in 0..20 {
        client.request(json!(id), "json").await;
    }
    let mut answered: Vec<i64> = Vec::new();
    for _ in 0..20 {
        answered.push(client.next().await["id"].as_i64().expect("a number"));
    }
    answered.sort_unstable();
    assert_eq!(answered, (0..20).collect::<Vec<_>>());
    assert_eq!(gateway.count("initialize"), 2, "one new session for all");
}

#[tokio::test]
async fn modern_calls_carry_their_headers_and_no_session() {
    let gateway = Gateway::start().await;
    let mut client = Client::start(&gateway);
    client.modern(json!(1), "tools/call", "größe").await;
    assert_eq!(client.next().await, result(json!(1)));
    let posted = gateway.wait_for("tools/call").await;
    assert_eq!(posted.header("mcp-protocol-version"), "2026-07-28");
    assert_eq!(posted.header("mcp-method"), "tools/call");
    assert_eq!(posted.header("mcp-name"), "=?base64?Z3LDtsOfZQ==?=");
    assert_eq!(posted.header("mcp-session-id"), "");
    let (rest, exit) = client.end().await;
    assert_eq!((rest, exit), (vec![], Exit::Done));
    assert_eq!(gateway.count("DELETE"), 0);
}

#[tokio::test]
async fn cancelling_a_modern_call_closes_its_connection_and_posts_nothing() {
    let gateway = Gateway::start().await;
    let mut client = Client::start(&gateway);
    client.modern(json!("x"), "hang", "").await;
    gateway.wait_for("hang").await;
    client.send(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"x"}}"#).await;
    gateway.wait_for("closed").await;
    client.modern(json!("y"), "tools/call", "z").await;
    assert_eq!(client.next().await, result(json!("y")), "the cancelled call has no answer");
    assert_eq!(gateway.count("notifications/cancelled"), 0);
}

#[tokio::test]
async fn cancelling_a_legacy_call_posts_the_notification() {
    let gateway = Gateway::start().await;
    let mut client = Client::start(&gateway);
    client.hello().await;
    client.request(json!(1), "hang").await;
    client.send(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#).await;
    assert_eq!(gateway.wait_for("notifications/cancelled").await.body["params"]["requestId"], 1);
    assert_eq!(gateway.count("hang"), 1, "it came before its cancellation");
}

#[tokio::test]
async fn refusals_are_answers_to_the_call() {
    let gateway = Gateway::start().await;
    let mut client = Client::start(&gateway);
    client.hello().await;
    client.request(json!("p"), "refuse-text").await;
    let told = client.next().await;
    assert_eq!(told["id"], "p");
    assert_eq!(
        told["error"]["message"],
        "the daemon answered with HTTP status 403: the Origin is not allowed"
    );
    client.modern(json!("q"), "refuse-json", "").await;
    let told = client.next().await;
    assert_eq!((&told["id"], &told["error"]["code"]), (&json!("q"), &json!(-32601)));
}

#[tokio::test]
async fn rubbish_is_answered_and_does_not_end_the_conversation() {
    let gateway = Gateway::start().await;
    let mut client = Client::start(&gateway);
    client.send("this is not JSON").await;
    assert_eq!(client.next().await["error"]["code"], -32700);
    client.send("[]").await;
    assert_eq!(client.next().await["error"]["code"], -32600);
    client.hello().await;
}

#[tokio::test]
async fn without_a_daemon_each_call_is_told_how_to_start_one() {
    let gateway = Gateway::start().await;
    gateway.stop().await;
    let limits = Limits { patience: Duration::from_millis(50), ..Limits::default() };
    let mut client = Client::with_limits(&gateway, limits);
    client.send(INITIALIZE).await;
    client.request(json!(1), "json").await;
    client.modern(json!(2), "tools/call", "x").await;
    for _ in 0..3 {
        let told = client.next().await["error"]["message"].to_string();
        assert!(told.contains("start it with `ostler up FILE`"), "{told}");
    }
    let (rest, exit) = client.end().await;
    assert_eq!((rest, exit), (vec![], Exit::NoDaemon));
}

#[tokio::test]
async fn a_daemon_that_comes_late_is_waited_for() {
    let gateway = Gateway::start().await;
    gateway.stop().await;
    let mut client = Client::start(&gateway);
    client.send(INITIALIZE).await;
    gateway.listen().await;
    assert_eq!(client.next().await["result"]["protocolVersion"], "2025-06-18");
}

#[tokio::test]
async fn calls_beyond_the_limit_wait_but_answers_and_cancellations_pass() {
    let gateway = Gateway::start().await;
    let mut client = Client::start(&gateway);
    client.hello().await;
    gateway.wait_for("GET").await;
    for id in 0..RUNNING {
        client.request(json!(id), "hang").await;
    }
    client.request(json!("last"), "json").await;
    gateway.wait_for_count("hang", RUNNING).await;
    gateway.push(&json!({"jsonrpc": "2.0", "id": "r", "method": "roots/list"}));
    assert_eq!(client.next().await["method"], "roots/list");
    client.send(r#"{"jsonrpc":"2.0","id":"r","result":{}}"#).await;
    gateway.wait_for("answer").await;
    assert_eq!(gateway.count("json"), 0, "it waits for a place");
    gateway.release_one_hang();
    let mut ids = [client.next().await["id"].clone(), client.next().await["id"].clone()];
    ids.sort_by_key(Value::is_string);
    assert_eq!(ids[1], json!("last"));
}

#[tokio::test]
async fn a_call_that_outlasts_the_input_is_told_so() {
    let gateway = Gateway::start().await;
    let limits = Limits { grace: Duration::from_millis(50), ..Limits::default() };
    let mut client = Client::with_limits(&gateway, limits);
    client.hello().await;
    client.request(json!("slow"), "hang").await;
    gateway.wait_for("hang").await;
    let (rest, exit) = client.end().await;
    assert_eq!((rest.len(), &rest[0]["id"], exit), (1, &json!("slow"), Exit::Done));
    let told = rest[0]["error"]["message"].as_str().expect("a message");
    assert!(told.contains("may or may not have been carried out"), "{told}");
    gateway.wait_for("DELETE").await;
}
