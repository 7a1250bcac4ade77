//! A gateway in miniature: sessions, JSON and event answers, one stream per session, and a socket that can go
//! and come back. What a request gets is decided by its method.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::DEADLINE;
use crate::connect::core::lock;

/// A request the gateway got.
#[derive(Clone, Debug)]
pub(super) struct Got {
    /// The message's method, `answer` for an answer, or `GET`, `resume`, `DELETE`, `closed`.
    what: String,
    headers: HeaderMap,
    /// The message.
    pub(super) body: Value,
}

impl Got {
    /// A header's value; empty if it was not there.
    pub(super) fn header(&self, name: &str) -> String {
        self.headers.get(name).map(|v| v.to_str().expect("text").to_owned()).unwrap_or_default()
    }
}

#[derive(Default)]
struct State {
    sessions: BTreeSet<String>,
    opened: u32,
    /// Where the current session's own stream is written to.
    stream: Option<mpsc::UnboundedSender<Bytes>>,
    /// Calls that hang, with their answers.
    hanging: Vec<(mpsc::UnboundedSender<Bytes>, Bytes)>,
    /// The answer that a resumed stream brings.
    cut: Option<Bytes>,
}

struct Shared {
    state: Mutex<State>,
    got: watch::Sender<Vec<Got>>,
}

/// The gateway.
pub(super) struct Gateway {
    dir: tempfile::TempDir,
    shared: Arc<Shared>,
    listener: Mutex<Option<JoinHandle<()>>>,
}

impl Gateway {
    pub(super) async fn start() -> Self {
        let shared = Shared { state: Mutex::default(), got: watch::Sender::new(Vec::new()) };
        let dir = tempfile::tempdir().expect("temporary directory");
        let gateway = Self { dir, shared: Arc::new(shared), listener: Mutex::default() };
        gateway.listen().await;
        gateway
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    /// Takes connections, knowing no session.
    pub(super) async fn listen(&self) {
        let listener = UnixListener::bind(self.socket()).expect("bound");
        *lock(&self.listener) = Some(tokio::spawn(accept(listener, self.shared.clone())));
    }

    /// Ends as a killed daemon does: every connection breaks, nothing is remembered.
    pub(super) async fn stop(&self) {
        let task = lock(&self.listener).take().expect("listening");
        task.abort();
        let _ = task.await;
        std::fs::remove_file(self.socket()).expect("the socket was there");
        let mut state = lock(&self.shared.state);
        *state = State { opened: state.opened, ..State::default() };
    }

    /// Ends every session without telling anyone.
    pub(super) fn forget_sessions(&self) {
        lock(&self.shared.state).sessions.clear();
    }

    /// Sends a message on the current session's own stream.
    pub(super) fn push(&self, message: &Value) {
        let state = lock(&self.shared.state);
        let stream = state.stream.as_ref().expect("a stream is open");
        stream.send(format!("data: {message}\n\n").into()).expect("the stream is read");
    }

    /// Answers one of the calls that hang.
    pub(super) fn release_one_hang(&self) {
        let (stream, answer) = lock(&self.shared.state).hanging.pop().expect("a call hangs");
        stream.send(answer).expect("the call still waits");
    }

    /// How many requests of a kind came.
    pub(super) fn count(&self, what: &str) -> usize {
        self.shared.got.borrow().iter().filter(|got| got.what == what).count()
    }

    /// The first request of a kind, once it came.
    pub(super) async fn wait_for(&self, what: &str) -> Got {
        self.wait_for_count(what, 1).await
    }

    /// The `n`th request of a kind, once it came.
    pub(super) async fn wait_for_count(&self, what: &str, n: usize) -> Got {
        let nth = |all: &Vec<Got>| all.iter().filter(|got| got.what == what).nth(n - 1).cloned();
        let mut all = self.shared.got.subscribe();
        let came = timeout(DEADLINE, all.wait_for(|all| nth(all).is_some())).await;
        let came =
            came.unwrap_or_else(|_| panic!("{what} did not come {n} times: {:?}", self.shared.got.borrow()));
        nth(&came.expect("the gateway lives")).expect("it came")
    }
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("accepts");
        let shared = shared.clone();
        let service = service_fn(move |request| handle(shared.clone(), request));
        connections.spawn(async move {
            // A client that closes early is what some tests are about.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn answer(status: u16, media: &str, body: impl Into<Bytes>) -> Answer {
    Response::builder()
        .status(status)
        .header("content-type", media)
        .body(Full::new(body.into()).boxed())
        .expect("a response")
}

fn events(body: impl Body<Data = Bytes, Error = Infallible> + Send + Sync + 'static) -> Answer {
    Response::builder().header("content-type", "text/event-stream").body(body.boxed()).expect("a response")
}

/// A stream fed by a channel; tells when it is closed by the other side.
struct Fed {
    pieces: mpsc::UnboundedReceiver<Bytes>,
    shared: Arc<Shared>,
}

impl Body for Fed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.pieces.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

impl Drop for Fed {
    fn drop(&mut self) {
        self.shared.note("closed", &HeaderMap::new(), Value::Null);
    }
}

impl Shared {
    fn note(&self, what: &str, headers: &HeaderMap, body: Value) {
        self.got.send_modify(|all| all.push(Got { what: what.to_owned(), headers: headers.clone(), body }));
    }

    fn known(&self, headers: &HeaderMap) -> bool {
        let id = headers.get("mcp-session-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
        lock(&self.state).sessions.contains(id)
    }

    fn fed(self: &Arc<Self>) -> (mpsc::UnboundedSender<Bytes>, Answer) {
        let (feed, pieces) = mpsc::unbounded_channel();
        (feed, events(Fed { pieces, shared: self.clone() }))
    }
}

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    assert_eq!(request.uri().path(), "/mcp/demo");
    let (parts, body) = request.into_parts();
    let headers = parts.headers;
    let modern = headers.contains_key("mcp-method");
    let unknown = answer(404, "text/plain", "unknown session");
    if parts.method == Method::GET {
        if !shared.known(&headers) {
            return Ok(unknown);
        }
        return Ok(get(&shared, &headers));
    }
    if parts.method == Method::DELETE {
        shared.note("DELETE", &headers, Value::Null);
        return Ok(answer(200, "text/plain", ""));
    }
    let body = body.collect().await.expect("a body").to_bytes();
    let message: Value = serde_json::from_slice(&body).expect("JSON");
    let method = message["method"].as_str().unwrap_or("answer").to_owned();
    if method != "initialize" && !modern && !shared.known(&headers) {
        return Ok(unknown);
    }
    let reply = post(&shared, &method, &message);
    shared.note(&method, &headers, message);
    Ok(reply)
}

fn get(shared: &Arc<Shared>, headers: &HeaderMap) -> Answer {
    let resumed = headers.contains_key("last-event-id");
    let reply = if resumed {
        let rest = lock(&shared.state).cut.take().expect("a stream was cut");
        events(Full::new(rest))
    } else {
        let (feed, reply) = shared.fed();
        lock(&shared.state).stream = Some(feed);
        reply
    };
    shared.note(if resumed { "resume" } else { "GET" }, headers, Value::Null);
    reply
}

fn post(shared: &Arc<Shared>, method: &str, message: &Value) -> Answer {
    let id = &message["id"];
    let ok = json!({"jsonrpc": "2.0", "id": id, "result": {"ok": true}});
    let progress = json!({"jsonrpc": "2.0", "method": "notifications/progress"});
    match method {
        "initialize" => {
            let mut state = lock(&shared.state);
            state.opened += 1;
            let session = format!("s{}", state.opened);
            state.sessions.insert(session.clone());
            let version = &message["params"]["protocolVersion"];
            let hello = json!({"jsonrpc": "2.0", "id": id, "result": {"protocolVersion": version}});
            let mut reply = answer(200, "application/json", hello.to_string());
            reply.headers_mut().insert("mcp-session-id", session.parse().expect("a value"));
            reply
        }
        "stream" => events(Full::from(format!(
            "id: 1\r\ndata:\r\n\r\nid: 2\r\ndata: {progress}\r\n\r\nid: 3\r\ndata: {ok}\r\n\r\n"
        ))),
        "cut" => {
            lock(&shared.state).cut = Some(format!("id: e-3\ndata: {ok}\n\n").into());
            let first =
                format!("id: e-1\nretry: 10\ndata:\n\nid: e-2\ndata: {progress}\n\nid: e-3\ndata: {{\"cu");
            events(Full::from(first))
        }
        "hang" => {
            let (feed, reply) = shared.fed();
            lock(&shared.state).hanging.push((feed, format!("data: {ok}\n\n").into()));
            reply
        }
        "refuse-text" => answer(403, "text/plain", "the Origin is not allowed\n"),
        "refuse-json" => {
            let body =
                json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "no such method"}});
            answer(404, "application/json", body.to_string())
        }
        // Over several lines, as no message on stdio may be.
        _ if !id.is_null() && method != "answer" => {
            let body = serde_json::to_string_pretty(&ok).expect("JSON");
            answer(200, "application/json; charset=utf-8", body)
        }
        _ => answer(202, "text/plain", ""),
    }
}
