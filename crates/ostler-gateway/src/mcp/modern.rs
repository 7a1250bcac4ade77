//! Revision 2026-07-28: every request stands for itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use ostler_domain::Scope;
use ostler_mcp::envelope::Span;
use ostler_mcp::headers::{self as mirrored, Missing};
use ostler_mcp::mux::{Answer, CallKind, Request, Ticket};
use ostler_mcp::{Envelope, Kind, rpc, version};
use ostler_supervisor::connection::{CallSink, CallStream, First, SendError};
use ostler_supervisor::session::{Busy, NoSession};
use ostler_supervisor::{Connection, InstanceHandle, Lease, Session};
use tokio::sync::{mpsc, oneshot};

use super::{Context, header, legacy, sse};
use crate::reply::{Refusal, Reply, empty, events, json};
use crate::serve::Door;

/// Methods of earlier revisions that this one removed ("Changelog"). Answered here, so that no server is
/// tempted to serve them the old way.
const REMOVED: [&str; 5] =
    ["initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"];

pub(super) async fn post(context: &Context<'_>, body: Bytes, envelope: Envelope) -> Result<Reply, Refusal> {
    match envelope.kind {
        Kind::Request => {}
        // "On Streamable HTTP, closing the SSE response stream is itself the cancellation signal".
        Kind::Notification => return Ok(empty(StatusCode::ACCEPTED)),
        Kind::Result | Kind::Error(_) => {
            let message =
                "a client sends no answers in this revision; retry the request with `inputResponses`";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, rpc::INVALID_REQUEST, message));
        }
    }
    check(context.headers, context.door, &envelope)?;
    let served = serve(context).await?;
    let (connection, _) = served.instance().connection(context.server.patience()).await?;
    check_params(context, &connection, &body, &envelope)?;
    let ticket = connection.ticket();
    let (sink, mut first) = CallSink::new();
    let learns_tools = &*envelope.method == "tools/list";
    let told = super::told(context, &body, &envelope, served.session())?;
    let request = request(ticket, (&body, told), &envelope, sink);
    drop(body);
    connection.call(request, context.server.spec.call_idle).await.map_err(|error| Refusal {
        retry_after: Some(1),
        ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, rpc::INSTANCE_LOST, error.to_string())
    })?;
    // A client that hangs up drops this future, and with it the call.
    let call = HangUp { connection: Some(connection), ticket, _served: served };
    let keepalive = context.gateway.supervisor.config().gateway.keepalive;
    match tokio::time::timeout(keepalive, &mut first).await {
        Ok(Ok(First::Answer(answer))) => Ok(answered(call.done(), answer, learns_tools)),
        Ok(Ok(First::Stream(stream))) => Ok(streamed(call, Some(First::Stream(stream)), first, keepalive)),
        Ok(Err(_)) => Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            rpc::INSTANCE_LOST,
            SendError::Closed.to_string(),
        )),
        Err(_) => Ok(streamed(call, None, first, keepalive)),
    }
}

/// By whom a request is served. It counts as in use until this is dropped.
enum Served {
    /// By an instance that others use, too; with the session, where it matters which.
    Shared(Lease, Option<Busy>),
    /// By the session's own.
    Own(Arc<InstanceHandle>, Busy),
}

impl Served {
    fn instance(&self) -> &InstanceHandle {
        match self {
            Self::Shared(lease, _) => lease,
            Self::Own(handle, _) => handle,
        }
    }

    fn session(&self) -> Option<&Session> {
        match self {
            Self::Shared(_, busy) => busy.as_ref().map(Busy::session),
            Self::Own(_, busy) => Some(busy.session()),
        }
    }
}

async fn serve(context: &Context<'_>) -> Result<Served, Refusal> {
    let Context { gateway, server, caller, .. } = context;
    let is_own = server.spec.scope == Scope::Session;
    if !is_own && !server.spec.tell_session {
        return Ok(Served::Shared(gateway.supervisor.modern(server, caller).await?, None));
    }
    // Who shows no key has one session with this server and all others.
    let session = gateway.supervisor.session(caller, context.key.as_deref().unwrap_or_default());
    let session = session.map_err(|why| match why {
        NoSession::Full(_) => Refusal { retry_after: Some(10), ..Refusal::limit(why.to_string()) },
        NoSession::Ended(_) => Refusal::new(StatusCode::NOT_FOUND, rpc::INVALID_REQUEST, why.to_string()),
    })?;
    let busy = legacy::begin_call(context, &session)?;
    if !is_own {
        return Ok(Served::Shared(gateway.supervisor.modern(server, caller).await?, Some(busy)));
    }
    let own = gateway.supervisor.own_instance(&session, server, caller).await?;
    Ok(Served::Own(own.handle, busy))
}

/// What can be said of a request before it has a server ("Request Metadata", "Versioning").
pub(super) fn check(headers: &HeaderMap, door: Door, envelope: &Envelope) -> Result<(), Refusal> {
    let meta = &envelope.inner.meta;
    let bad = |code: i64, message: String| Refusal::new(StatusCode::BAD_REQUEST, code, message);
    let missing = |key: &str| {
        bad(
            rpc::INVALID_PARAMS,
            format!("`_meta` lacks `io.modelcontextprotocol/{key}`, which every request must have"),
        )
    };
    let Some(version) = meta.protocol_version.as_deref() else { return Err(missing("protocolVersion")) };
    if !meta.client_capabilities {
        return Err(missing("clientCapabilities"));
    }
    let find = |name: &str| header(headers, name);
    mirrored::check_standard(envelope, find, missing_headers(door))
        .map_err(|mismatch| bad(rpc::HEADER_MISMATCH, mismatch.to_string()))?;
    if version != version::MODERN {
        let requested = serde_json::Value::from(version);
        return Err(Refusal {
            data: Some(format!("{{\"supported\":[\"{}\"],\"requested\":{requested}}}", version::MODERN)),
            ..bad(rpc::UNSUPPORTED_VERSION, "Unsupported protocol version".to_owned())
        });
    }
    if REMOVED.contains(&&*envelope.method) {
        let message = format!("`{}` was removed in revision {}", envelope.method, version::MODERN);
        return Err(Refusal::new(StatusCode::NOT_FOUND, rpc::METHOD_NOT_FOUND, message));
    }
    Ok(())
}

fn missing_headers(door: Door) -> Missing {
    match door {
        Door::Tcp => Missing::Refuse,
        // The shim speaks for a stdio client, which has no headers.
        Door::Unix => Missing::Allow,
    }
}

/// The headers that mirror a tool's arguments.
fn check_params(
    context: &Context<'_>,
    connection: &Connection,
    body: &Bytes,
    envelope: &Envelope,
) -> Result<(), Refusal> {
    let Some(tool) = envelope.inner.name.as_deref().filter(|_| &*envelope.method == "tools/call") else {
        return Ok(());
    };
    let known = connection.param_headers();
    if known.is_empty() || context.door == Door::Unix {
        return Ok(());
    }
    let arguments = envelope.inner.arguments.clone().map(|span| &body[span]);
    known
        .check(tool, arguments, |name| header(context.headers, name))
        .map_err(|mismatch| Refusal::new(StatusCode::BAD_REQUEST, rpc::HEADER_MISMATCH, mismatch.to_string()))
}

fn request(
    ticket: Ticket,
    (body, told): (&Bytes, Option<(Span, Vec<u8>)>),
    envelope: &Envelope,
    sink: CallSink,
) -> Request<CallSink> {
    let text = ticket.to_string();
    let id = envelope.id.clone().unwrap_or(0..0);
    let token = envelope.inner.meta.progress_token.clone();
    Request {
        ticket,
        session: None,
        client_id: body.slice(id.clone()),
        client_token: token.clone().map(|span| body.slice(span)),
        kind: CallKind::of(&envelope.method),
        special: None,
        wants_log: envelope.inner.meta.log_level,
        wire: super::with_ticket(body, id, token, text.as_bytes(), told.as_ref()),
        sink,
    }
}

/// Cancels a call when it is dropped before the call is done: a dropped connection is the cancellation.
struct HangUp {
    connection: Option<Arc<Connection>>,
    ticket: Ticket,
    _served: Served,
}

impl HangUp {
    fn done(mut self) -> Option<Arc<Connection>> {
        self.connection.take()
    }
}

impl Drop for HangUp {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.hung_up(self.ticket);
        }
    }
}

fn answered(connection: Option<Arc<Connection>>, answer: Answer, learns_tools: bool) -> Reply {
    if let Some(connection) = connection.filter(|_| learns_tools && answer.kind == Kind::Result) {
        connection.learn_tools(&answer.message.to_bytes());
    }
    json(status(answer.kind), answer.message)
}

/// The HTTP status that goes with a JSON-RPC answer ("Protocol Version Header", "Error Codes").
pub(super) fn status(kind: Kind) -> StatusCode {
    match kind {
        Kind::Error(rpc::METHOD_NOT_FOUND) => StatusCode::NOT_FOUND,
        Kind::Error(rpc::HEADER_MISMATCH | rpc::MISSING_CAPABILITY | rpc::UNSUPPORTED_VERSION) => {
            StatusCode::BAD_REQUEST
        }
        Kind::Error(rpc::INSTANCE_LOST | rpc::LIMIT_REACHED) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    }
}

fn streamed(
    call: HangUp,
    heard: Option<First>,
    first: oneshot::Receiver<First>,
    keepalive: Duration,
) -> Reply {
    let (sender, receiver) = sse::channel();
    tokio::spawn(async move {
        if send_all(&sender, heard, first, keepalive).await.is_ok() {
            call.done();
        }
    });
    events(receiver)
}

/// Sends a call's messages and its answer; an error when the client is gone, which cancels the call.
async fn send_all(
    out: &mpsc::Sender<Bytes>,
    heard: Option<First>,
    mut first: oneshot::Receiver<First>,
    keepalive: Duration,
) -> Result<(), sse::Gone> {
    let first = match heard {
        Some(first) => first,
        None => loop {
            tokio::select! {
                heard = &mut first => match heard {
                    Ok(heard) => break heard,
                    Err(_) => return Ok(()),
                },
                () = out.closed() => return Err(sse::Gone),
                () = tokio::time::sleep(keepalive) => sse::keep_alive(out).await?,
            }
        },
    };
    match first {
        First::Answer(answer) => sse::send(out, None, &answer.message).await,
        First::Stream(stream) => send_stream(out, stream, keepalive).await,
    }
}

async fn send_stream(
    out: &mpsc::Sender<Bytes>,
    stream: CallStream,
    keepalive: Duration,
) -> Result<(), sse::Gone> {
    let CallStream { mut messages, answer } = stream;
    loop {
        tokio::select! {
            message = messages.recv() => match message {
                Some(message) => sse::send(out, None, &message).await?,
                None => break,
            },
            () = out.closed() => return Err(sse::Gone),
            () = tokio::time::sleep(keepalive) => sse::keep_alive(out).await?,
        }
    }
    match answer.await {
        Ok(answer) => sse::send(out, None, &answer.message).await,
        Err(_) => Ok(()),
    }
}
