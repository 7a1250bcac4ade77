//! Revision 2026-07-28: every request stands for itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use ostler_domain::Scope;
use ostler_mcp::headers::{self as mirrored, Missing};
use ostler_mcp::mux::{Answer, CallKind, Request, Ticket};
use ostler_mcp::{Envelope, Kind, rpc, version};
use ostler_supervisor::connection::{CallSink, CallStream, First, SendError};
use ostler_supervisor::session::Busy;
use ostler_supervisor::{Connection, InstanceHandle, Lease, ServedBy, Session};
use tokio::sync::{mpsc, oneshot};

use super::session_tools::{self, Found, Listing};
use super::{Context, Edit, header, legacy, sse};
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
    let (session, taken) = match session_tools::find(context, &body, &envelope).await? {
        Found::Answered(reply) => return Ok(reply),
        Found::Passed(session, taken) => (session, taken),
    };
    let served = serve(context, session).await?;
    let (connection, _) = served.instance().connection(context.server.patience()).await?;
    check_params(context, &connection, &body, &envelope)?;
    let ticket = connection.ticket();
    let (sink, mut first) = CallSink::new();
    let listing = Listing::of(context, &body, &envelope);
    let told = super::told(context, &body, &envelope, served.session())?;
    let edits: Vec<Edit> = told.into_iter().chain(taken).collect();
    let request = request(ticket, (&body, &edits), &envelope, sink);
    drop(body);
    connection.call(request, context.server.spec.call_idle).await.map_err(|error| Refusal {
        retry_after: Some(1),
        ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, rpc::INSTANCE_LOST, error.to_string())
    })?;
    // A client that hangs up drops this future, and with it the call.
    let call = HangUp { connection, ticket, is_done: false, listing, _served: served };
    let keepalive = context.gateway.supervisor.config().gateway.keepalive;
    match tokio::time::timeout(keepalive, &mut first).await {
        Ok(Ok(First::Answer(answer))) => Ok(answered(call, answer)),
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

async fn serve(context: &Context<'_>, session: Option<Arc<Session>>) -> Result<Served, Refusal> {
    let Context { gateway, server, caller, .. } = context;
    let Some(session) = session else {
        return Ok(Served::Shared(gateway.supervisor.modern(server, caller).await?, None));
    };
    let busy = legacy::begin_call(context, &session)?;
    if server.spec.scope != Scope::Session {
        return Ok(Served::Shared(gateway.supervisor.modern(server, caller).await?, Some(busy)));
    }
    Ok(match gateway.supervisor.instance_for(&session, server, caller).await? {
        ServedBy::Own(own) => Served::Own(own.handle, busy),
        ServedBy::Shared(lease) => Served::Shared(lease, Some(busy)),
    })
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
    (body, edits): (&Bytes, &[Edit]),
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
        wire: super::with_ticket(body, id, token, text.as_bytes(), edits),
        sink,
    }
}

/// Cancels a call when it is dropped before the call is done: a dropped connection is the cancellation.
struct HangUp {
    connection: Arc<Connection>,
    ticket: Ticket,
    is_done: bool,
    listing: Option<Listing>,
    _served: Served,
}

impl HangUp {
    /// The answer as the client is to see it.
    fn shown(&self, answer: Answer) -> Answer {
        match &self.listing {
            Some(listing) => listing.answer(&self.connection, answer),
            None => answer,
        }
    }

    fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for HangUp {
    fn drop(&mut self) {
        if !self.is_done {
            self.connection.hung_up(self.ticket);
        }
    }
}

fn answered(call: HangUp, answer: Answer) -> Reply {
    let answer = call.shown(answer);
    call.done();
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
        if send_all(&sender, &call, heard, first, keepalive).await.is_ok() {
            call.done();
        }
    });
    events(receiver)
}

/// Sends a call's messages and its answer; an error when the client is gone, which cancels the call.
async fn send_all(
    out: &mpsc::Sender<Bytes>,
    call: &HangUp,
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
        First::Answer(answer) => sse::send(out, None, &call.shown(answer).message).await,
        First::Stream(stream) => send_stream(out, call, stream, keepalive).await,
    }
}

async fn send_stream(
    out: &mpsc::Sender<Bytes>,
    call: &HangUp,
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
        Ok(answer) => sse::send(out, None, &call.shown(answer).message).await,
        Err(_) => Ok(()),
    }
}
