//! An MCP client that keeps nothing back: what it gets is what came over the wire.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// How long one message may take to come before a test counts as failed.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const LEGACY: &str = "2025-11-25";
pub(crate) const MODERN: &str = "2026-07-28";

type Sender = SendRequest<Full<Bytes>>;

/// Connections to one daemon, used again where that is possible.
pub(crate) struct Http {
    address: String,
    idle: Mutex<Vec<Sender>>,
}

impl Http {
    pub(crate) fn new(address: String) -> Arc<Self> {
        Arc::new(Self { address, idle: Mutex::default() })
    }

    /// Connections that are open and not in use.
    pub(crate) fn connections(&self) -> usize {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn idle(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(sender) = idle.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    async fn connect(&self) -> Sender {
        let stream = TcpStream::connect(&self.address).await.expect("the daemon listens");
        stream.set_nodelay(true).expect("a socket option");
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a connection");
        tokio::spawn(connection);
        sender
    }

    /// Sends one request with these headers besides `Host`.
    pub(crate) async fn send(
        self: &Arc<Self>,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        let mut sender = match self.idle() {
            Some(sender) => sender,
            None => self.connect().await,
        };
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(HOST.as_str())) {
            request = request.header(HOST, &self.address);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a valid request");
        let sent = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
        let (head, body) = sent.expect("an answer in time").expect("an answer").into_parts();
        let stream = head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream");
        Reply {
            status: head.status.as_u16(),
            headers: head.headers,
            last_event_id: None,
            http: Arc::clone(self),
            sender: Some(sender),
            body,
            stream,
            buffer: BytesMut::new(),
        }
    }

    /// POSTs JSON as a client that knows the rules.
    pub(crate) async fn post(
        self: &Arc<Self>,
        server: &str,
        headers: &[(&str, &str)],
        message: &Value,
    ) -> Reply {
        let all = [&JSON[..], headers].concat();
        self.send(Method::POST, &format!("/mcp/{server}"), &all, message.to_string()).await
    }
}

/// What every POST of a client says.
pub(crate) const JSON: [(&str, &str); 2] =
    [(CONTENT_TYPE_NAME, "application/json"), (ACCEPT_NAME, "application/json, text/event-stream")];
const CONTENT_TYPE_NAME: &str = "content-type";
const ACCEPT_NAME: &str = "accept";

/// An answer, read message by message.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// The id of the last event, the empty ones included.
    pub(crate) last_event_id: Option<String>,
    http: Arc<Http>,
    sender: Option<Sender>,
    body: Incoming,
    stream: bool,
    buffer: BytesMut,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The next message; `None` at the end. A body that breaks off ends, too.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if self.stream
                && let Some(message) = self.event()
            {
                return Some(message);
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("a message in time");
            match frame {
                Some(Ok(frame)) => self.buffer.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Some(Err(_)) => return None,
                None => {
                    if let Some(sender) = self.sender.take() {
                        self.http.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
                    }
                    let rest = self.buffer.split();
                    return (!self.stream && !rest.is_empty())
                        .then(|| serde_json::from_slice(&rest).expect("an answer is JSON"));
                }
            }
        }
    }

    /// Takes the next complete event with data out of the buffer.
    fn event(&mut self) -> Option<Value> {
        loop {
            let end = self.buffer.windows(2).position(|two| two == b"\n\n")?;
            let event = self.buffer.split_to(end + 2);
            let text = std::str::from_utf8(&event).expect("events are UTF-8");
            let mut data = "";
            for line in text.lines() {
                if let Some(id) = line.strip_prefix("id: ") {
                    self.last_event_id = Some(id.to_owned());
                } else if let Some(rest) = line.strip_prefix("data: ") {
                    data = rest;
                }
            }
            if !data.is_empty() {
                return Some(serde_json::from_str(data).expect("an event is JSON"));
            }
        }
    }

    /// All messages that are left.
    pub(crate) async fn rest(&mut self) -> Vec<Value> {
        let mut all = Vec::new();
        while let Some(message) = self.next().await {
            all.push(message);
        }
        all
    }

    /// The last message: of a call, its answer.
    pub(crate) async fn answer(mut self) -> Value {
        let status = self.status;
        self.rest().await.pop().unwrap_or_else(|| panic!("an answer without a message (status {status})"))
    }
}

/// A legacy session.
pub(crate) struct Session {
    pub(crate) http: Arc<Http>,
    pub(crate) server: String,
    pub(crate) id: String,
}

impl Session {
    pub(crate) async fn open(http: &Arc<Http>, server: &str) -> Self {
        let mut reply = http.post(server, &[], &initialize()).await;
        let answer = reply.rest().await;
        assert_eq!(reply.status, 200, "{answer:?}");
        let id = reply.header("mcp-session-id").expect("a session").to_owned();
        let session = Self { http: Arc::clone(http), server: server.to_owned(), id };
        let done = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        session.tell(&done).await;
        session
    }

    fn headers(&self) -> [(&str, &str); 2] {
        [("mcp-session-id", &self.id), ("mcp-protocol-version", LEGACY)]
    }

    /// POSTs a message of any kind.
    pub(crate) async fn send(&self, message: &Value) -> Reply {
        self.http.post(&self.server, &self.headers(), message).await
    }

    /// POSTs a notification or an answer.
    pub(crate) async fn tell(&self, message: &Value) {
        let mut reply = self.send(message).await;
        let said = reply.rest().await;
        assert_eq!((reply.status, said), (202, vec![]), "{message}");
    }

    /// Calls a tool and waits for the answer.
    pub(crate) async fn call(&self, id: impl Into<Value>, tool: &str, arguments: &Value) -> Value {
        self.send(&tool_call(id, tool, arguments)).await.answer().await
    }

    /// GETs the session's stream, or the rest of one.
    pub(crate) async fn listen(&self, last_event_id: Option<&str>) -> Reply {
        let mut headers = self.headers().to_vec();
        headers.push((ACCEPT.as_str(), "text/event-stream"));
        headers.extend(last_event_id.map(|id| ("last-event-id", id)));
        self.http.send(Method::GET, &format!("/mcp/{}", self.server), &headers, "").await
    }

    /// DELETEs the session; the status.
    pub(crate) async fn end(&self) -> u16 {
        let path = format!("/mcp/{}", self.server);
        self.http.send(Method::DELETE, &path, &self.headers(), "").await.status
    }
}

pub(crate) fn initialize() -> Value {
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": LEGACY,
        "capabilities": {"sampling": {}, "elicitation": {}, "roots": {}},
        "clientInfo": {"name": "test", "version": "1"},
    }})
}

pub(crate) fn request(id: impl Into<Value>, method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id.into(), "method": method, "params": params})
}

pub(crate) fn tool_call(id: impl Into<Value>, tool: &str, arguments: &Value) -> Value {
    request(id, "tools/call", &json!({"name": tool, "arguments": arguments}))
}

/// The same request with a progress token.
pub(crate) fn with_token(mut request: Value, token: &Value) -> Value {
    request["params"]["_meta"]["progressToken"] = token.clone();
    request
}

/// The text of a tool's result.
pub(crate) fn text(answer: &Value) -> &str {
    answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("no result: {answer}"))
}

/// The code of an error; 0 where it is none.
pub(crate) fn code(answer: &Value) -> i64 {
    answer["error"]["code"].as_i64().unwrap_or_default()
}

/// The text of an error.
pub(crate) fn why(answer: &Value) -> &str {
    answer["error"]["message"].as_str().unwrap_or_else(|| panic!("no error: {answer}"))
}

/// A request as a modern client sends it: what it must say in every request is added.
pub(crate) fn modern(mut request: Value) -> Value {
    let meta = &mut request["params"]["_meta"];
    meta["io.modelcontextprotocol/protocolVersion"] = MODERN.into();
    meta["io.modelcontextprotocol/clientCapabilities"] = json!({});
    meta["io.modelcontextprotocol/clientInfo"] = json!({"name": "test", "version": "1"});
    request
}

/// POSTs a request of [`modern`] with the headers that go with it.
pub(crate) async fn post_modern(http: &Arc<Http>, server: &str, request: &Value) -> Reply {
    let method = request["method"].as_str().expect("a method");
    let mut headers = vec![("mcp-protocol-version", MODERN), ("mcp-method", method)];
    headers.extend(request["params"]["name"].as_str().map(|name| ("mcp-name", name)));
    http.post(server, &headers, request).await
}
