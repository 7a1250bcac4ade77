//! Whatever a client sends or fails to send: it gets an error that says what is wrong, and the daemon keeps
//! nothing of it.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::client::{
    Http, JSON, LEGACY, MODERN, Session, code, initialize, modern, post_modern, request, text, tool_call,
    why, with_token,
};
use crate::support::{Daemon, PATIENCE, wait_until};

const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const HEADER_MISMATCH: i64 = -32020;
const UNSUPPORTED_VERSION: i64 = -32022;
const LIMIT_REACHED: i64 = -31002;

const MAX_BODY: usize = 1024 * 1024;

/// How much more memory the daemon may hold after an abuse than before it, in bytes. 1 to 3 MiB were seen: what
/// the allocator keeps of many small pieces. Each abuse that moves bytes moves at least 30 MB, so that a tenth of
/// them kept would show in most, and all of `gateway.body_memory` (8 MiB here) in any.
const SLACK: u64 = 6 * 1024 * 1024;

/// A daemon whose limits are small enough to be reached.
fn daemon(limits: &str) -> Daemon {
    daemon_with("1s", limits)
}

fn daemon_with(write_timeout: &str, limits: &str) -> Daemon {
    let fake = ostler_testkit::fake::path();
    let config = format!(
        "[gateway]\nmax_body = \"1MiB\"\nbody_memory = \"8MiB\"\nbody_timeout = \"500ms\"\nheader_timeout = \"500ms\"\n\
         write_timeout = \"{write_timeout}\"\n{limits}\n\
         [servers.fake]\ncommand = \"{fake}\"\nargs = [\"legacy\"]\nscope = \"shared\"\n\
         [servers.other]\ncommand = \"{fake}\"\nargs = [\"legacy\"]\nscope = \"shared\"\nstart = \"on-demand\"\n\
         [servers.modern]\ncommand = \"{fake}\"\nargs = [\"modern\"]\nscope = \"shared\"\n",
        fake = fake.display()
    );
    let daemon = Daemon::start(&config, &[]);
    for server in ["fake", "modern"] {
        daemon.wait_row(server, "it is ready", |row| row["state"] == "ready");
    }
    daemon
}

// ---- one mistake at a time ------------------------------------------------------------------------------------

/// A request and what is to come of it.
struct Case {
    name: &'static str,
    method: Method,
    path: &'static str,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    status: u16,
    code: i64,
    /// Part of the error's text.
    says: &'static str,
}

impl Case {
    /// A POST of this body to the legacy server, with the usual headers.
    fn post(name: &'static str, body: impl AsRef<[u8]>, status: u16, code: i64, says: &'static str) -> Self {
        let headers = JSON.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self {
            name,
            method: Method::POST,
            path: "/mcp/fake",
            headers,
            body: body.as_ref().to_vec(),
            status,
            code,
            says,
        }
    }

    fn without_body(name: &'static str, method: Method, status: u16, code: i64, says: &'static str) -> Self {
        let accept = ("accept".to_owned(), "text/event-stream".to_owned());
        Self { method, headers: vec![accept], ..Self::post(name, "", status, code, says) }
    }

    /// A modern request, with the headers that go with it.
    fn modern(name: &'static str, body: &Value, status: u16, code: i64, says: &'static str) -> Self {
        let method = body["method"].as_str().unwrap_or_default().to_owned();
        let case = Self { path: "/mcp/modern", ..Self::post(name, body.to_string(), status, code, says) };
        let case = case.with("mcp-protocol-version", MODERN).with("mcp-method", &method);
        match body["params"]["name"].as_str() {
            Some(tool) => case.with("mcp-name", tool),
            None => case,
        }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self = self.without(name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self
    }

    fn at(self, path: &'static str) -> Self {
        Self { path, ..self }
    }

    async fn check(self, http: &Arc<Http>) {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        let mut reply = http.send(self.method, self.path, &headers, self.body).await;
        let messages = reply.rest().await;
        let name = self.name;
        assert_eq!(reply.status, self.status, "{name}: {messages:?}");
        if self.code == 0 {
            assert_eq!(messages, Vec::<Value>::new(), "{name}");
            return;
        }
        let [error] = &messages[..] else { panic!("{name}: {messages:?}") };
        assert_eq!(code(error), self.code, "{name}: {error}");
        assert!(why(error).contains(self.says), "{name}: `{}` is not in {error}", self.says);
        assert_eq!(error["jsonrpc"], "2.0", "{name}");
    }
}

fn no_messages() -> Vec<Case> {
    let parse = |name, body: &[u8], says| Case::post(name, body, 400, PARSE_ERROR, says);
    let invalid = |name, body: &str, says| Case::post(name, body, 400, INVALID_REQUEST, says);
    let nested =
        format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"x\",\"params\":{{\"a\":{}", "[".repeat(100_000));
    vec![
        parse("nothing", b"", "not JSON"),
        parse("half a message", br#"{"jsonrpc": "2.0", "id": 1"#, "not JSON"),
        parse(
            "two messages",
            br#"{"jsonrpc":"2.0","method":"a"} {"jsonrpc":"2.0","method":"b"}"#,
            "not JSON",
        ),
        parse("not UTF-8", b"{\"jsonrpc\": \"2.0\", \"id\": \"\xff\", \"method\": \"ping\"}", "not UTF-8"),
        parse("nested without end", nested.as_bytes(), "not JSON"),
        invalid("a batch", r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, "send each message by itself"),
        invalid("no version", r#"{"id":1,"method":"ping"}"#, "`jsonrpc` must be \"2.0\""),
        invalid("an old version", r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, ""),
        invalid("neither of the three", r#"{"jsonrpc":"2.0","id":1}"#, "neither a request"),
        invalid("an id of null", r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, "a string or a number"),
        invalid(
            "an object for an id",
            r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#,
            "a string or a number",
        ),
        invalid("two ids", r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#, "twice"),
        invalid("two methods", r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/list"}"#, "twice"),
        invalid("another id in capitals", r#"{"jsonrpc":"2.0","id":1,"ID":2,"method":"ping"}"#, "`ID`"),
        invalid("a list of parameters", r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}"#, ""),
    ]
}

fn wrong_headers() -> Vec<Case> {
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}).to_string();
    let refused = |name, status, says| Case::post(name, &ping, status, INVALID_REQUEST, says);
    vec![
        refused("no Accept", 406, "`Accept` must list both").without("accept"),
        refused("Accept without streams", 406, "`Accept` must list both").with("accept", "application/json"),
        refused("no Content-Type", 415, "`Content-Type` must be").without("content-type"),
        refused("another Content-Type", 415, "`Content-Type` must be").with("content-type", "text/plain"),
        refused("a page of another host", 403, "Origin `http://evil.example`")
            .with("origin", "http://evil.example"),
        refused("an opaque origin", 403, "Origin `null`").with("origin", "null"),
        refused("a rebound name", 403, "Host `evil.example`").with("host", "evil.example"),
        refused("an address that looks local", 403, "Host").with("host", "127.0.0.1.evil.example"),
        refused("an unknown server", 404, "did you mean `fake`?").at("/mcp/fakee"),
        refused("a server far from any", 404, "no server is called `xyz`").at("/mcp/xyz"),
        refused("no session", 400, "Mcp-Session-Id is missing"),
        refused("an unknown session", 404, "no such session")
            .with("mcp-session-id", "00000000000000000000000000000000"),
        refused("a rubbish session", 404, "no such session").with("mcp-session-id", "../../etc"),
        refused("a project without a name", 400, "ostler-project must be").with("ostler-project", ""),
        Case { method: Method::PUT, ..refused("another method", 405, "PUT is not served here") },
        Case::without_body(
            "GET without a session",
            Method::GET,
            400,
            INVALID_REQUEST,
            "Mcp-Session-Id is missing",
        ),
        Case::without_body(
            "GET for an unknown session",
            Method::GET,
            404,
            INVALID_REQUEST,
            "no such session",
        )
        .with("mcp-session-id", "1"),
        Case::without_body("GET without Accept", Method::GET, 406, INVALID_REQUEST, "text/event-stream")
            .without("accept"),
        Case::without_body("DELETE without a session", Method::DELETE, 400, INVALID_REQUEST, "is missing"),
        Case::without_body(
            "DELETE of an unknown session",
            Method::DELETE,
            404,
            INVALID_REQUEST,
            "no such session",
        )
        .with("mcp-session-id", "1"),
    ]
}

fn modern_mistakes() -> Vec<Case> {
    let list = || modern(request(1, "tools/list", &json!({})));
    let call = || modern(tool_call(1, "echo", &json!({"text": "x"})));
    let lacking = |key: &str| {
        let mut request = list();
        request["params"]["_meta"].as_object_mut().expect("an object").remove(key);
        request
    };
    let mut later = list();
    later["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = "2027-01-01".into();
    let mismatch = |name, request: &Value, says| Case::modern(name, request, 400, HEADER_MISMATCH, says);
    let mut cases = vec![
        Case::modern(
            "no version",
            &lacking("io.modelcontextprotocol/protocolVersion"),
            400,
            INVALID_PARAMS,
            "protocolVersion",
        ),
        Case::modern(
            "no capabilities",
            &lacking("io.modelcontextprotocol/clientCapabilities"),
            400,
            INVALID_PARAMS,
            "clientCapabilities",
        ),
        mismatch("no version header", &list(), "MCP-Protocol-Version is missing")
            .without("mcp-protocol-version"),
        mismatch("another version header", &list(), "does not match").with("mcp-protocol-version", LEGACY),
        mismatch("no method header", &list(), "Mcp-Method is missing").without("mcp-method"),
        mismatch("another method header", &list(), "does not match").with("mcp-method", "tools/call"),
        mismatch("no name header", &call(), "Mcp-Name is missing").without("mcp-name"),
        mismatch("another name header", &call(), "does not match").with("mcp-name", "crash"),
        mismatch("a name that is no Base64", &call(), "not valid Base64").with("mcp-name", "=?base64?%%%?="),
        Case::modern("a version to come", &later, 400, UNSUPPORTED_VERSION, "Unsupported protocol version")
            .with("mcp-protocol-version", "2027-01-01"),
        Case::modern(
            "a method nobody knows",
            &modern(request(1, "no/such", &json!({}))),
            404,
            METHOD_NOT_FOUND,
            "no/such",
        ),
        Case::modern(
            "a notification",
            &modern(json!({"jsonrpc": "2.0", "method": "notifications/x", "params": {}})),
            202,
            0,
            "",
        ),
        Case::modern(
            "an answer",
            &json!({"jsonrpc": "2.0", "id": 1, "result": {}}),
            400,
            INVALID_REQUEST,
            "sends no answers",
        ),
        Case::without_body("GET", Method::GET, 405, INVALID_REQUEST, "no GET stream")
            .with("mcp-protocol-version", MODERN),
        Case::without_body("DELETE", Method::DELETE, 405, INVALID_REQUEST, "no sessions")
            .with("mcp-protocol-version", MODERN),
    ];
    for method in ["initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"] {
        let request = modern(request(1, method, &json!({})));
        cases.push(Case::modern("a method that was removed", &request, 404, METHOD_NOT_FOUND, "was removed"));
    }
    cases
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mistake_gets_an_error_of_its_own() {
    let daemon = daemon("");
    let http = Http::new(daemon.address());
    for case in no_messages().into_iter().chain(wrong_headers()).chain(modern_mistakes()) {
        case.check(&http).await;
    }
    let session = Session::open(&http, "fake").await;
    let in_session = |case: Case| case.with("mcp-session-id", &session.id);
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}).to_string();
    let refused = |name, status, says| in_session(Case::post(name, &ping, status, INVALID_REQUEST, says));
    refused("a version nobody knows", 400, "MCP-Protocol-Version `1999-01-01`")
        .with("mcp-protocol-version", "1999-01-01")
        .check(&http)
        .await;
    refused("another server's session", 404, "no such session").at("/mcp/other").check(&http).await;
    in_session(Case::post(
        "a second opening",
        initialize().to_string(),
        400,
        INVALID_REQUEST,
        "initialised already",
    ))
    .check(&http)
    .await;
    for last in ["rubbish", "0-99999", "7-1", "-", "0-18446744073709551616", "0--1"] {
        in_session(Case::without_body(
            "a place to resume from",
            Method::GET,
            400,
            INVALID_REQUEST,
            "cannot be resumed",
        ))
        .with("last-event-id", last)
        .check(&http)
        .await;
    }
    assert_eq!([session.end().await, session.end().await], [200, 404], "DELETE twice");
    assert_eq!(daemon.status()["body_bytes"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_gets_with_405_and_an_unsupported_version() {
    let daemon = daemon("");
    let http = Http::new(daemon.address());
    let reply = http.send(Method::PATCH, "/mcp/fake", &[], "").await;
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST, GET, DELETE")));
    let reply = http.send(Method::GET, "/mcp/modern", &[("mcp-protocol-version", MODERN)], "").await;
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    let mut later = modern(request(1, "tools/list", &json!({})));
    later["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = "2027-01-01".into();
    let headers = [("mcp-protocol-version", "2027-01-01"), ("mcp-method", "tools/list")];
    let answer = http.post("modern", &headers, &later).await.answer().await;
    assert_eq!(answer["error"]["data"], json!({"supported": [MODERN], "requested": "2027-01-01"}));
    assert_eq!(answer["id"], 1, "the error answers the request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_request_with_an_id_in_flight_is_refused_and_the_first_goes_on() {
    let daemon = daemon("");
    let session = Session::open(&Http::new(daemon.address()), "fake").await;
    let sleep = with_token(tool_call("same", "sleep", &json!({"ms": 300_000, "tag": "t"})), &json!(1));
    let mut first = session.send(&sleep).await;
    assert_eq!(first.next().await.expect("it runs")["method"], "notifications/progress");
    let second = session.call("same", "echo", &json!({"text": "x"})).await;
    assert_eq!((code(&second), &second["id"]), (INVALID_REQUEST, &json!("same")));
    assert!(why(&second).contains("another request of this session with the same id is still running"));
    session
        .tell(
            &json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "same"}}),
        )
        .await;
    assert_eq!(code(&first.answer().await), -31004);
    assert_eq!(text(&session.call("same", "echo", &json!({"text": "free again"})).await), "free again");
}

// ---- limits ---------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_limit_says_its_name_and_lets_go_again() {
    let daemon = daemon("[limits]\nsessions = 2\nsession_calls = 3\ninstance_calls = 5\n");
    let http = Http::new(daemon.address());
    let sessions = [Session::open(&http, "fake").await, Session::open(&http, "fake").await];

    let mut reply = http.post("fake", &[], &initialize()).await;
    let error = reply.rest().await.remove(0);
    assert_eq!((reply.status, code(&error), &error["id"]), (503, LIMIT_REACHED, &json!(0)));
    assert!(reply.header("retry-after").is_some() && why(&error).contains("limits.sessions"), "{error}");

    let sleep =
        |id: usize| with_token(tool_call(id, "sleep", &json!({"ms": 300_000, "tag": "t"})), &json!(id));
    let mut running = Vec::new();
    for (session, id) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)] {
        let mut reply = sessions[session].send(&sleep(id)).await;
        reply.next().await.expect("it runs");
        running.push(reply);
    }
    let mut reply = sessions[0].send(&sleep(3)).await;
    let error = reply.rest().await.remove(0);
    assert_eq!((reply.status, code(&error)), (429, LIMIT_REACHED));
    assert!(reply.header("retry-after").is_some() && why(&error).contains("limits.session_calls"), "{error}");
    let error = sessions[1].call(2, "echo", &json!({"text": "x"})).await;
    assert_eq!(code(&error), LIMIT_REACHED);
    assert!(why(&error).contains("limits.instance_calls"), "{error}");

    assert_eq!(sessions[0].end().await, 200);
    for reply in running.drain(..3) {
        assert_eq!(code(&reply.answer().await), -31004, "the end of a session ends its calls");
    }
    // A cancelled call counts until the server has let go of it, which is soon.
    let third = Session::open(&http, "fake").await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while code(&third.call(1, "echo", &json!({"text": "x"})).await) != 0 {
        assert!(tokio::time::Instant::now() < deadline, "the instance stayed full");
    }
    let counters = &daemon.status()["counters"];
    for limit in ["limits.sessions", "limits.session_calls", "limits.instance_calls"] {
        assert!(counters[limit].as_u64() >= Some(1), "{counters}");
    }
}

// ---- what is left afterwards ----------------------------------------------------------------------------------

/// What the daemon holds.
struct Footprint {
    rss: u64,
    files: usize,
    sessions: u64,
}

impl Footprint {
    fn of(daemon: &Daemon) -> Self {
        let status = daemon.status();
        let number = |name: &str| status[name].as_u64().expect("a number");
        let files = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("its files").count();
        // The connection that asked for the status may or may not be closed by now.
        Self { rss: number("rss_bytes"), files, sessions: number("sessions") }
    }

    /// After ordinary use, so that what is allocated once is there.
    async fn after_warming_up(daemon: &Daemon) -> Self {
        let http = Http::new(daemon.address());
        let session = Session::open(&http, "fake").await;
        for id in 0..50 {
            let big = session.call(id, "big", &json!({"bytes": 100_000})).await;
            assert_eq!(text(&big).len(), 100_000);
        }
        session.end().await;
        drop(http);
        wait_until("the session ends", || daemon.status()["sessions"] == 0);
        Self::of(daemon)
    }

    /// Waits until the daemon holds no more than it did, and serves as it did.
    async fn returns(&self, daemon: &Daemon) {
        wait_until("connections, sessions and bodies are gone", || {
            let now = Self::of(daemon);
            now.files <= self.files && now.sessions <= self.sessions && daemon.status()["body_bytes"] == 0
        });
        let now = Self::of(daemon);
        println!(
            "rss: {} KiB before, {} KiB after; files: {}, {}",
            self.rss / 1024,
            now.rss / 1024,
            self.files,
            now.files
        );
        assert!(now.rss <= self.rss + SLACK, "{} bytes of memory before, {} after", self.rss, now.rss);
        let session = Session::open(&Http::new(daemon.address()), "fake").await;
        assert_eq!(text(&session.call(1, "echo", &json!({"text": "well"})).await), "well");
        assert_eq!(session.end().await, 200);
    }
}

async fn connect(daemon: &Daemon) -> TcpStream {
    TcpStream::connect(daemon.address()).await.expect("it listens")
}

/// Everything the daemon says until it closes the connection.
async fn said(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let read =
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("it closes the connection");
    // A reset after an answer is as good as an end.
    let _ = read;
    String::from_utf8_lossy(&all).into_owned()
}

fn head(daemon: &Daemon, server: &str, more: &str) -> String {
    format!(
        "POST /mcp/{server} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\n{more}\r\n",
        daemon.address()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_malformed_bodies_leave_nothing() {
    let daemon = daemon("");
    let before = Footprint::after_warming_up(&daemon).await;
    let http = Http::new(daemon.address());
    let body = format!("{{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"{}", "x".repeat(32 * 1024));
    let mut senders = JoinSet::new();
    for _ in 0..8 {
        let (http, body) = (Arc::clone(&http), body.clone());
        senders.spawn(async move {
            for _ in 0..250 {
                let mut reply = http.send(Method::POST, "/mcp/fake", &JSON, body.clone()).await;
                assert_eq!((reply.status, code(&reply.rest().await[0])), (400, PARSE_ERROR));
            }
        });
    }
    senders.join_all().await;
    drop(http);
    before.returns(&daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_over_the_limit_are_refused_whether_announced_or_not() {
    let daemon = daemon("");
    let before = Footprint::after_warming_up(&daemon).await;
    let mut announced = connect(&daemon).await;
    let request = head(&daemon, "fake", &format!("Content-Length: {}\r\n", MAX_BODY + 1));
    announced.write_all(request.as_bytes()).await.expect("sent");
    let mut start = [0; 12];
    tokio::time::timeout(PATIENCE, announced.read_exact(&mut start))
        .await
        .expect("before any body")
        .expect("an answer");
    assert_eq!(&start, b"HTTP/1.1 413");
    drop(announced);

    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let mut senders = JoinSet::new();
    for _ in 0..40 {
        let (mut stream, chunk) = (connect(&daemon).await, chunk.clone());
        let request = head(&daemon, "fake", "Transfer-Encoding: chunked\r\n");
        senders.spawn(async move {
            stream.write_all(request.as_bytes()).await.expect("sent");
            for _ in 0..=MAX_BODY / 0x10000 {
                if stream.write_all(chunk.as_bytes()).await.is_err() {
                    break;
                }
            }
            let mut start = [0; 12];
            // All of them at once are more than `body_memory`: some are refused for that.
            match tokio::time::timeout(PATIENCE, stream.read_exact(&mut start))
                .await
                .expect("an answer in time")
            {
                Ok(_) => String::from_utf8_lossy(&start).into_owned(),
                Err(_) => "reset".to_owned(),
            }
        });
    }
    let answers = senders.join_all().await;
    let count = |wanted: &str| answers.iter().filter(|answer| *answer == wanted).count();
    assert!(count("HTTP/1.1 413") > 0, "{answers:?}");
    assert_eq!(count("HTTP/1.1 413") + count("HTTP/1.1 503") + count("reset"), 40, "{answers:?}");
    before.returns(&daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_send_slowly_are_sent_away() {
    let daemon = daemon("");
    let before = Footprint::after_warming_up(&daemon).await;
    let mut slow = JoinSet::new();
    let silent = head(&daemon, "fake", "Content-Length: 100000\r\n") + "{";
    let slow_head = head(&daemon, "fake", "");
    for number in 0..60 {
        let (mut stream, silent, slow_head) = (connect(&daemon).await, silent.clone(), slow_head.clone());
        slow.spawn(async move {
            match number % 3 {
                // Headers that never end.
                0 => {
                    stream.write_all(&slow_head.as_bytes()[..40]).await.expect("sent");
                    assert_eq!(said(&mut stream).await, "", "there is no request to answer");
                }
                // A body that does not go on.
                1 => {
                    stream.write_all(silent.as_bytes()).await.expect("sent");
                    let answer = said(&mut stream).await;
                    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
                    assert!(
                        answer.contains("nothing of the body came for 500ms (gateway.body_timeout)"),
                        "{answer}"
                    );
                }
                // A body that goes on for ever, a byte at a time.
                _ => {
                    stream.write_all(silent.as_bytes()).await.expect("sent");
                    let (mut reading, mut writing) = stream.split();
                    let mut answer = Vec::new();
                    let drip = async {
                        while writing.write_all(b"x").await.is_ok() {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                    };
                    tokio::select! {
                        read = tokio::time::timeout(PATIENCE, reading.read_to_end(&mut answer)) => {
                            let _ = read.expect("it closes the connection");
                        }
                        () = drip => {}
                    }
                    let answer = String::from_utf8_lossy(&answer);
                    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
                    assert!(answer.contains("less than 1024 bytes a second"), "{answer}");
                }
            }
        });
    }
    slow.join_all().await;
    before.returns(&daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_never_read_are_cut_off() {
    /// Eight answers of a client together are more than the 4 MiB that a socket may hold (tcp(7), `tcp_wmem`).
    const EACH: usize = 8;
    const BIG: usize = 900_000;
    let daemon = daemon("");
    let before = Footprint::after_warming_up(&daemon).await;
    let big = modern(tool_call(1, "big", &json!({"bytes": BIG}))).to_string();
    let more = format!(
        "MCP-Protocol-Version: {MODERN}\r\nMcp-Method: tools/call\r\nMcp-Name: big\r\nContent-Length: {}\r\n",
        big.len()
    );
    let request = head(&daemon, "modern", &more) + &big;
    let mut deaf = Vec::new();
    for _ in 0..20 {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a socket option");
        let mut stream =
            socket.connect(daemon.address().parse().expect("an address")).await.expect("it listens");
        stream.write_all(request.repeat(EACH).as_bytes()).await.expect("sent");
        deaf.push(stream);
    }
    // Others are served meanwhile.
    let session = Session::open(&Http::new(daemon.address()), "fake").await;
    for id in 0..20 {
        assert_eq!(text(&session.call(id, "echo", &json!({"text": "x"})).await), "x");
    }
    session.end().await;
    drop(session);
    before.returns(&daemon).await;
    for mut stream in deaf {
        let mut all = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("it was closed");
        assert!(read.is_err() || all.len() < EACH * BIG, "a client that did not read got everything");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_reads_does_not_fill_memory_while_it_is_open() {
    // It is not cut off during the test.
    let daemon = daemon_with("60s", "");
    let before = Footprint::after_warming_up(&daemon).await;
    let http = Http::new(daemon.address());
    let session = Session::open(&http, "fake").await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a socket option");
    let mut deaf = socket.connect(daemon.address().parse().expect("an address")).await.expect("it listens");
    let request = format!(
        "GET /mcp/fake HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\nMcp-Session-Id: {}\r\n\r\n",
        daemon.address(),
        session.id
    );
    deaf.write_all(request.as_bytes()).await.expect("sent");
    let mut start = [0; 12];
    deaf.read_exact(&mut start).await.expect("an answer");
    assert_eq!(&start, b"HTTP/1.1 200");
    // 40 MB of notifications for a stream that keeps 1 MiB (`gateway.replay_bytes`).
    let uri = format!("test://{}", "x".repeat(100_000));
    let subscribe = crate::client::request("subscribe", "resources/subscribe", &json!({"uri": uri}));
    assert_eq!(session.send(&subscribe).await.answer().await["result"], json!({}));
    for id in 0..400 {
        assert_eq!(text(&session.call(id, "touch", &json!({"uri": uri})).await), uri);
    }
    let now = Footprint::of(&daemon);
    println!("rss: {} KiB before, {} KiB with 40 MB unread", before.rss / 1024, now.rss / 1024);
    assert!(
        now.rss <= before.rss + SLACK,
        "{} bytes of memory before, {} while it is open",
        before.rss,
        now.rss
    );
    drop(deaf);
    assert_eq!(session.end().await, 200);
    drop((session, http));
    before.returns(&daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_and_streams_of_clients_that_vanish_are_gone_after_their_time() {
    let daemon = daemon("[sessions]\nidle = \"1s\"\n");
    let before = Footprint::after_warming_up(&daemon).await;
    let http = Http::new(daemon.address());
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        let http = Arc::clone(&http);
        clients.spawn(async move {
            for _ in 0..50 {
                let session = Session::open(&http, "fake").await;
                let mut stream = session.listen(None).await;
                assert_eq!(stream.status, 200);
                assert_eq!(text(&session.call(1, "log", &json!({"tag": "t"})).await), "t");
                let big = session.call(2, "big", &json!({"bytes": 200_000})).await;
                assert_eq!(text(&big).len(), 200_000);
                // A call that streams, left in the middle.
                let call = tool_call(3, "progress", &json!({"steps": 3, "gap_ms": 10, "tag": "t"}));
                let mut reply = session.send(&with_token(call, &json!(3))).await;
                reply.next().await.expect("it runs");
                drop((stream.headers.drain(), reply));
            }
        });
    }
    clients.join_all().await;
    drop(http);
    before.returns(&daemon).await;
}

// ---- streams that break off ------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_off_is_resumed_and_each_message_comes_once() {
    let daemon = daemon("");
    let session = Session::open(&Http::new(daemon.address()), "fake").await;
    let steps = 40;
    let call = tool_call("call", "progress", &json!({"steps": steps, "gap_ms": 10, "tag": "t"}));
    let mut reply = session.send(&with_token(call, &json!("token"))).await;
    let mut got = Vec::new();
    let mut breaks = 0;
    loop {
        // Five messages, then the connection is gone.
        for _ in 0..5 {
            got.extend(reply.next().await);
        }
        let last = reply.last_event_id.clone().expect("each event has an id");
        if got.last().is_some_and(|message| message.get("method").is_none()) {
            let mut again = session.listen(Some(&last)).await;
            assert_eq!((again.status, again.rest().await), (200, vec![]), "nothing is left of it");
            break;
        }
        drop(reply);
        breaks += 1;
        reply = session.listen(Some(&last)).await;
        assert_eq!(reply.status, 200);
    }
    assert!(breaks >= 7, "it broke off {breaks} times");
    let answer = got.pop().expect("the answer");
    assert_eq!((&answer["id"], text(&answer)), (&json!("call"), "t"));
    let seen: Vec<_> =
        got.iter().map(|message| message["params"]["progress"].as_u64().unwrap_or(0)).collect();
    assert_eq!(seen, (1..=steps).collect::<Vec<_>>());
    assert!(got.iter().all(|message| message["params"]["progressToken"] == "token"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_modern_client_that_hangs_up_cancels_its_call_alone() {
    let daemon = daemon("");
    let http = Http::new(daemon.address());
    let sleep =
        |id: &str| modern(with_token(tool_call(id, "sleep", &json!({"ms": 300_000, "tag": id})), &json!(id)));
    let mut stays = post_modern(&http, "modern", &sleep("stays")).await;
    let mut leaves = post_modern(&http, "modern", &sleep("leaves")).await;
    for reply in [&mut stays, &mut leaves] {
        assert_eq!(reply.next().await.expect("it runs")["method"], "notifications/progress");
    }
    drop(leaves);
    let state = async || {
        let call = modern(tool_call("state", "state", &json!({})));
        let answer = post_modern(&http, "modern", &call).await.answer().await;
        serde_json::from_str::<Value>(text(&answer)).expect("JSON")
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let seen = state().await;
        if seen["cancelled"] == json!(["leaves"]) {
            // This call itself, and the one that stays.
            assert_eq!(seen["running"], 2);
            break;
        }
        assert_eq!(seen["cancelled"], json!([]));
        assert!(tokio::time::Instant::now() < deadline, "{seen}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
