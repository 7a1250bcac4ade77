//! `/mcp/ostler`: Ostler's own MCP server, in both eras.
//!
//! It answers by itself: nothing is started for it, and it keeps nothing of who asks. A legacy client gets an id for its
//! session, by which it can cancel what runs; there is no stream to come back to, so whoever hangs up cancels.
//! What it does is in [`tools`] and [`resources`]; who may have what done is the door's ([`desk`]).

mod desk;
mod resources;
mod schemas;
mod tasks;
mod tools;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{HeaderMap, HeaderValue};
use http::{HeaderName, Method, Request, StatusCode};
use hyper::body::Incoming;
use ostler_api::RunProgress;
use ostler_mcp::{Envelope, Kind, Message, rpc, version};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

use self::desk::Desk;
use super::{SESSION_ID, caller, header, is_modern, key, message, modern, sse};
use crate::reply::{Refusal, Reply, empty, events, json as json_reply};
use crate::serve::Door;
use crate::{Gateway, origin};

/// The name under which it is reached; no server of the configuration may have it.
pub(super) const NAME: &str = "ostler";

/// Notes of progress that may wait for a client to read them; further ones are left out, since the next says more.
const NOTES: usize = 16;

/// How long a modern client may keep what does not change while the daemon runs, in milliseconds.
const KEEP_MS: u64 = 300_000;

/// What a client is told that asks what this is.
const INSTRUCTIONS: &str = "Ostler supervises processes, most of them MCP servers, and lets clients share them. These \
    tools list, start and stop processes, show sessions and pools, call tools of several servers in one go, and have tasks \
    (code, commands, requests) done by workers.";

/// The requests that run and can be cancelled by another: those of legacy clients that have an id for their session.
#[derive(Debug, Default)]
pub(crate) struct Running(Mutex<HashMap<(Bytes, Bytes), Arc<Notify>>>);

impl Running {
    fn begin(&self, session: &[u8], id: &Bytes) -> Cancellable<'_> {
        let key = (Bytes::copy_from_slice(session), Bytes::copy_from_slice(id));
        let cancelled = Arc::new(Notify::new());
        self.lock().insert(key.clone(), Arc::clone(&cancelled));
        Cancellable { of: self, key, cancelled }
    }

    /// Cancels a request of this session.
    fn cancel(&self, session: &[u8], id: &[u8]) {
        let key = (Bytes::copy_from_slice(session), Bytes::copy_from_slice(id));
        if let Some(cancelled) = self.lock().get(&key) {
            cancelled.notify_one();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(Bytes, Bytes), Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that can be cancelled until this is dropped.
struct Cancellable<'a> {
    of: &'a Running,
    key: (Bytes, Bytes),
    cancelled: Arc<Notify>,
}

impl Drop for Cancellable<'_> {
    fn drop(&mut self) {
        let mut running = self.of.lock();
        // A client may have given the same id to another request meanwhile.
        if running.get(&self.key).is_some_and(|other| Arc::ptr_eq(other, &self.cancelled)) {
            running.remove(&self.key);
        }
    }
}

/// An error of JSON-RPC.
struct RpcError(i64, String);

/// Answers a request for `/mcp/{path}`, which names this server.
pub(super) async fn handle(
    gateway: &Arc<Gateway>,
    door: Door,
    path: &str,
    request: Request<Incoming>,
) -> Reply {
    let (head, body) = request.into_parts();
    let desk = match desk(gateway, door, path, &head.headers) {
        Ok(desk) => desk,
        Err(refusal) => return refusal.reply(None),
    };
    match head.method {
        Method::POST => post(desk, &head.headers, body).await,
        // There is no stream to read and, since nothing is kept of a session, none to delete.
        other => Refusal::method("POST", format!("{other} is not served here")).reply(None),
    }
}

fn desk(gateway: &Arc<Gateway>, door: Door, path: &str, headers: &HeaderMap) -> Result<Desk, Refusal> {
    if door == Door::Tcp {
        origin::check(headers, &gateway.supervisor.config().gateway)?;
    }
    let key = key::find(key::of_path(path).1, headers)?;
    Ok(Desk { gateway: Arc::clone(gateway), door, caller: caller(gateway, headers)?, key })
}

async fn post(desk: Desk, headers: &HeaderMap, body: Incoming) -> Reply {
    let gateway = Arc::clone(&desk.gateway);
    let (body, envelope) = match message(&gateway, headers, body).await {
        Ok(read) => read,
        Err(refusal) => return refusal.reply(None),
    };
    let is_modern = is_modern(headers, &envelope);
    match envelope.kind {
        Kind::Notification => {
            if let (Some(session), Some(id)) = (header(headers, SESSION_ID), &envelope.inner.request_id)
                && &*envelope.method == "notifications/cancelled"
            {
                gateway.running.cancel(session, &body[id.clone()]);
            }
            empty(StatusCode::ACCEPTED)
        }
        // Nobody was asked anything.
        Kind::Result | Kind::Error(_) => {
            let message = "no request waits for this answer";
            Refusal::new(StatusCode::BAD_REQUEST, rpc::INVALID_REQUEST, message).reply(None)
        }
        Kind::Request => {
            let id = envelope.id.clone().map(|span| body.slice(span)).unwrap_or_default();
            let allowed = match is_modern {
                true => modern::check(headers, desk.door, &envelope),
                false => Ok(()),
            };
            if let Err(refusal) = allowed {
                gateway.supervisor.events().count(&format!("http {}", refusal.status.as_u16()));
                return refusal.reply(Some(&id));
            }
            let asked = Asked { desk, body, envelope, id, is_modern };
            asked.answer(header(headers, SESSION_ID).map(Bytes::copy_from_slice)).await
        }
    }
}

/// One request.
struct Asked {
    desk: Desk,
    body: Bytes,
    envelope: Envelope,
    id: Bytes,
    is_modern: bool,
}

impl Asked {
    async fn answer(self, session: Option<Bytes>) -> Reply {
        match &*self.envelope.method {
            "tools/call" => self.call(session).await,
            "initialize" => {
                let mut reply = json_reply(StatusCode::OK, self.written(Ok(self.initialize())).0);
                let id = format!("{:032x}", ostler_supervisor::random::bits128());
                if let Ok(value) = HeaderValue::from_str(&id) {
                    reply.headers_mut().insert(HeaderName::from_static(SESSION_ID), value);
                }
                reply
            }
            _ => {
                let (message, kind) = self.written(self.look_up().await);
                json_reply(self.status(kind), message)
            }
        }
    }

    fn status(&self, kind: Kind) -> StatusCode {
        if self.is_modern { modern::status(kind) } else { StatusCode::OK }
    }

    /// What is answered from what is there.
    async fn look_up(&self) -> Result<Value, RpcError> {
        let Self { desk, envelope, .. } = self;
        let method = &*envelope.method;
        match method {
            "server/discover" => Ok(self.discover()),
            "ping" => Ok(json!({})),
            "tools/list" => {
                self.no_cursor()?;
                Ok(self.kept(json!({"tools": tools::listed(desk.door)}), KEEP_MS))
            }
            "resources/list" if desk.has_resources() => {
                self.no_cursor()?;
                Ok(self.kept(json!({"resources": resources::listed()}), KEEP_MS))
            }
            "resources/templates/list" if desk.has_resources() => {
                self.no_cursor()?;
                Ok(self.kept(json!({"resourceTemplates": resources::templates()}), KEEP_MS))
            }
            "resources/read" if desk.has_resources() => {
                let missing = || RpcError(rpc::INVALID_PARAMS, "`uri` is missing".to_owned());
                let uri = envelope.inner.uri.as_deref().ok_or_else(missing)?;
                let contents = resources::read(desk, uri).await.map_err(|why| {
                    // What is not there has a code of its own in the legacy era ("Resources", "Error Handling").
                    let code = if self.is_modern { rpc::INVALID_PARAMS } else { resources::NOT_FOUND };
                    RpcError(code, why)
                })?;
                Ok(self.kept(json!({"contents": [contents]}), 0))
            }
            _ if method.starts_with("resources/") && !desk.has_resources() => {
                Err(RpcError(rpc::METHOD_NOT_FOUND, desk::elsewhere("its resources are")))
            }
            _ => Err(RpcError(rpc::METHOD_NOT_FOUND, format!("no method `{method}`"))),
        }
    }

    /// All lists are one page.
    fn no_cursor(&self) -> Result<(), RpcError> {
        let params = self.envelope.params.clone().map(|span| &self.body[span]).unwrap_or_default();
        let params: Value = serde_json::from_slice(params).unwrap_or_default();
        match params.get("cursor") {
            None => Ok(()),
            Some(_) => Err(RpcError(rpc::INVALID_PARAMS, "`cursor` is none that was given out".to_owned())),
        }
    }

    fn initialize(&self) -> Value {
        let params = self.envelope.params.clone().map(|span| &self.body[span]).unwrap_or_default();
        let (asked, _) = version::initialize_request_info(params);
        let latest = version::LEGACY[version::LEGACY.len() - 1];
        let version = asked.filter(|asked| version::is_legacy(asked)).unwrap_or_else(|| latest.to_owned());
        json!({
            "protocolVersion": version,
            "capabilities": self.desk.capabilities(),
            "serverInfo": info(),
            "instructions": INSTRUCTIONS,
        })
    }

    fn discover(&self) -> Value {
        let result = json!({
            "supportedVersions": [version::MODERN],
            "capabilities": self.desk.capabilities(),
            "instructions": INSTRUCTIONS,
            "_meta": {"io.modelcontextprotocol/serverInfo": info()},
        });
        self.kept(result, KEEP_MS)
    }

    /// A result that a modern client may keep so long. It depends on the door, so nobody may keep it for others.
    fn kept(&self, mut result: Value, ttl_ms: u64) -> Value {
        if self.is_modern {
            result["ttlMs"] = ttl_ms.into();
            result["cacheScope"] = "private".into();
        }
        result
    }

    fn written(&self, result: Result<Value, RpcError>) -> (Message, Kind) {
        match result {
            Ok(mut result) => {
                if self.is_modern {
                    result["resultType"] = "complete".into();
                }
                (rpc::result(&self.id, &result.to_string()), Kind::Result)
            }
            Err(RpcError(code, why)) => (rpc::error(Some(&self.id), code, &why), Kind::Error(code)),
        }
    }

    /// A call of a tool: its answer as JSON, or as a stream where there is more to say or it takes long.
    async fn call(self, session: Option<Bytes>) -> Reply {
        let name = self.envelope.inner.name.as_deref();
        let Some(tool) = name.and_then(tools::find) else {
            let why = name.map_or("`name` is missing".to_owned(), |name| format!("Unknown tool: `{name}`"));
            let (message, kind) = self.written(Err(RpcError(rpc::INVALID_PARAMS, why)));
            return json_reply(self.status(kind), message);
        };
        let keepalive = self.desk.gateway.supervisor.config().gateway.keepalive;
        let token = self.envelope.inner.meta.progress_token.clone().map(|span| self.body.slice(span));
        let follows = token.is_some();
        let (notes, heard) = mpsc::channel(NOTES);
        let tell = Box::new(move |progress: RunProgress| {
            if let Some(token) = &token {
                let _ = notes.try_send(note(token, &progress));
            }
        });
        let mut work: BoxFuture<'static, Message> = Box::pin(async move {
            let session = session.filter(|_| !self.is_modern);
            let running = session.map(|session| self.desk.gateway.running.begin(&session, &self.id));
            let cancelled = async {
                match &running {
                    Some(running) => running.cancelled.notified().await,
                    None => std::future::pending().await,
                }
            };
            let arguments = self.envelope.inner.arguments.clone().map(|span| self.body.slice(span));
            tokio::select! {
                result = self.desk.call(tool, arguments.as_deref().unwrap_or(b"{}"), tell) => self.told(result),
                () = cancelled => {
                    let why = "the client cancelled the call";
                    rpc::error(Some(&self.id), rpc::CALL_CANCELLED, why)
                }
            }
        });
        if !follows && let Ok(answer) = tokio::time::timeout(keepalive, &mut work).await {
            return json_reply(StatusCode::OK, answer);
        }
        let (out, receiver) = sse::channel();
        tokio::spawn(async move {
            // An error means that the client is gone; what runs is cancelled with this task.
            let _ = send(&out, work, heard, keepalive).await;
        });
        events(receiver)
    }

    /// The result of a tool: JSON, and the same as text for clients that know only that; or why there is none.
    fn told(&self, result: Result<String, String>) -> Message {
        let kind = if self.is_modern { ",\"resultType\":\"complete\"" } else { "" };
        let (text, structured, is_error) = match &result {
            Ok(json) => (json, format!(",\"structuredContent\":{json}"), false),
            Err(why) => (why, String::new(), true),
        };
        let text = Value::from(text.as_str());
        rpc::result(
            &self.id,
            &format!(
                "{{\"content\":[{{\"type\":\"text\",\"text\":{text}}}]{structured},\"isError\":{is_error}{kind}}}"
            ),
        )
    }
}

fn info() -> Value {
    json!({"name": NAME, "title": "Ostler", "version": env!("CARGO_PKG_VERSION")})
}

/// `notifications/progress` for the request that gave this token.
fn note(token: &Bytes, further: &RunProgress) -> Message {
    let RunProgress { progress, total, message, .. } = further;
    let (token, message) = (String::from_utf8_lossy(token), Value::from(message.as_str()));
    Message::from(format!(
        "{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{{\"progressToken\":{token},\
         \"progress\":{progress},\"total\":{total},\"message\":{message}}}}}"
    ))
}

/// Sends what a call says, and its answer.
async fn send(
    out: &mpsc::Sender<Bytes>,
    mut work: BoxFuture<'static, Message>,
    mut heard: mpsc::Receiver<Message>,
    keepalive: Duration,
) -> Result<(), sse::Gone> {
    // Headers alone do not reach every client before the first byte of a body.
    sse::keep_alive(out).await?;
    let answer = loop {
        tokio::select! {
            // Before the answer comes what was said before it.
            biased;
            Some(note) = heard.recv() => sse::send(out, None, &note).await?,
            answer = &mut work => break answer,
            () = out.closed() => return Err(sse::Gone),
            () = tokio::time::sleep(keepalive) => sse::keep_alive(out).await?,
        }
    };
    while let Ok(note) = heard.try_recv() {
        sse::send(out, None, &note).await?;
    }
    sse::send(out, None, &answer).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_runs_is_cancelled_by_its_own_session_alone() {
        let running = Running::default();
        let one = running.begin(b"mine", &Bytes::from_static(b"1"));
        let two = running.begin(b"mine", &Bytes::from_static(b"\"1\""));
        let other = running.begin(b"other", &Bytes::from_static(b"1"));
        let is_cancelled = |request: &Cancellable<'_>| {
            let cancelled = Arc::clone(&request.cancelled);
            async move { tokio::time::timeout(Duration::ZERO, cancelled.notified()).await.is_ok() }
        };
        running.cancel(b"mine", b"1");
        assert!(is_cancelled(&one).await && !is_cancelled(&two).await && !is_cancelled(&other).await);
        drop((one, two, other));
        assert!(running.lock().is_empty(), "nothing is kept of what is over");
    }
}
