//! Revisions up to 2025-11-25: `initialize`, sessions, resumable streams.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use http::{HeaderName, StatusCode};
use ostler_mcp::mux::{CallKind, Request};
use ostler_mcp::{Envelope, Kind, rpc, version};
use ostler_supervisor::Connection;
use ostler_supervisor::connection::{CallSink, First, SendError, special};
use ostler_supervisor::session::{Busy, CallRefused, Session};
use ostler_supervisor::stream::ReplayStream;
use tokio::sync::oneshot;

use super::sse::{self, Manner};
use super::{Context, Edit, PROTOCOL_VERSION, SESSION_ID, accepts, header};
use crate::reply::{Refusal, Reply, empty, events, json};

/// The revision from which clients understand an empty priming event (2025-11-25, "Sending Messages").
const PRIMED_FROM: &str = "2025-11-25";

pub(super) async fn post(context: &Context<'_>, body: Bytes, envelope: Envelope) -> Result<Reply, Refusal> {
    if envelope.kind == Kind::Request && &*envelope.method == "initialize" {
        return initialize(context, &body, &envelope).await;
    }
    let session = session(context)?;
    let patience = context.server.patience();
    match envelope.kind {
        Kind::Request => call(context, session, body, envelope).await,
        Kind::Notification => {
            let _busy = session.busy();
            let connection = session.connection(patience).await?;
            if &*envelope.method == "notifications/cancelled" {
                if let Some(id) = envelope.inner.request_id {
                    connection.cancel(session.key, body.slice(id)).await;
                }
            } else {
                // One that concerns nothing of this session came too late or was made up: not an error.
                let told = connection.notification(session.key, body, envelope, patience).await;
                let _ = told.map_err(lost)?;
            }
            Ok(empty(StatusCode::ACCEPTED))
        }
        Kind::Result | Kind::Error(_) => {
            let _busy = session.busy();
            let connection = session.connection(patience).await?;
            let answered = connection.answer(session.key, body, envelope, patience).await;
            let _ = answered.map_err(lost)?;
            Ok(empty(StatusCode::ACCEPTED))
        }
    }
}

fn lost(error: SendError) -> Refusal {
    Refusal {
        retry_after: Some(1),
        ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, rpc::INSTANCE_LOST, error.to_string())
    }
}

async fn initialize(context: &Context<'_>, body: &Bytes, envelope: &Envelope) -> Result<Reply, Refusal> {
    if context.headers.contains_key(SESSION_ID) {
        let message =
            "this session is initialised already; send `initialize` without Mcp-Session-Id for a new one";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, rpc::INVALID_REQUEST, message));
    }
    let params = envelope.params.clone().map_or(&b"{}"[..], |span| &body[span]);
    // The envelope was read as UTF-8.
    let params = String::from_utf8_lossy(params);
    let supervisor = &context.gateway.supervisor;
    let (session, initialized) = supervisor.open_session(&context.server, &context.caller, &params).await?;
    let id = envelope.id_text(body).unwrap_or(b"null");
    let (asked, _) = version::initialize_request_info(params.as_bytes());
    let mut reply = json(StatusCode::OK, initialized.answer(id, asked.as_deref().unwrap_or_default()));
    if let Ok(value) = HeaderValue::from_str(&session.id) {
        reply.headers_mut().insert(HeaderName::from_static(SESSION_ID), value);
    }
    Ok(reply)
}

/// The session a request names, if it is the caller's and this server's.
fn session(context: &Context<'_>) -> Result<Arc<Session>, Refusal> {
    let Some(id) = header(context.headers, SESSION_ID) else {
        let message = "Mcp-Session-Id is missing; send `initialize` first and use the id it answers with";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, rpc::INVALID_REQUEST, message));
    };
    let known = std::str::from_utf8(id).ok().and_then(|id| context.gateway.supervisor.sessions().get(id));
    let mine = known.filter(|session| {
        session.server() == Some(&context.server.spec.name) && session.principal == context.caller.principal
    });
    let Some(session) = mine else {
        // 404 makes a client initialise anew ("Session Management").
        let message = format!("no such session: {}; send `initialize` again", why_ended(context, id));
        return Err(Refusal::new(StatusCode::NOT_FOUND, rpc::INVALID_REQUEST, message));
    };
    match header(context.headers, PROTOCOL_VERSION).map(std::str::from_utf8) {
        None => Ok(session),
        Some(Ok(named)) if version::is_legacy(named) => Ok(session),
        Some(named) => {
            let named = named.unwrap_or("?");
            let message =
                format!("MCP-Protocol-Version `{named}` is not one of {}", version::LEGACY.join(", "));
            Err(Refusal::new(StatusCode::BAD_REQUEST, rpc::INVALID_REQUEST, message))
        }
    }
}

/// Why a session that was asked for is not there.
fn why_ended(context: &Context<'_>, id: &[u8]) -> String {
    let farewell = |id| context.gateway.supervisor.sessions().farewell(id);
    match std::str::from_utf8(id).ok().and_then(farewell) {
        Some(reason) => format!("it ended, because {reason}"),
        None => "it ended, or the daemon was restarted".to_owned(),
    }
}

/// Counts a call of a session until that is dropped.
pub(super) fn begin_call(context: &Context<'_>, session: &Arc<Session>) -> Result<Busy, Refusal> {
    let supervisor = &context.gateway.supervisor;
    let limit = supervisor.config().limits.session_calls;
    session.begin_call(limit).map_err(|why| call_refused(context, session, &why))
}

fn call_refused(context: &Context<'_>, session: &Session, why: &CallRefused) -> Refusal {
    let events = context.gateway.supervisor.events();
    match why {
        CallRefused::Calls(_) => {
            events.count("limits.session_calls");
            Refusal { status: StatusCode::TOO_MANY_REQUESTS, ..Refusal::limit(why.to_string()) }
        }
        // Its client is to begin anew, as when it has ended.
        CallRefused::Draining(_) if session.server().is_some() || session.has_handle() => {
            events.count("calls of draining sessions");
            Refusal::new(
                StatusCode::NOT_FOUND,
                rpc::INVALID_REQUEST,
                format!("no such session any more: {why}"),
            )
        }
        // Another of the same name takes its place when it has ended.
        CallRefused::Draining(_) => {
            events.count("calls of draining sessions");
            Refusal { retry_after: Some(1), ..Refusal::limit(why.to_string()) }
        }
    }
}

async fn call(
    context: &Context<'_>,
    session: Arc<Session>,
    body: Bytes,
    envelope: Envelope,
) -> Result<Reply, Refusal> {
    let supervisor = &context.gateway.supervisor;
    let busy = begin_call(context, &session)?;
    let patience = context.server.patience();
    let connection = session.connection(patience).await?;
    let (sink, mut first) = CallSink::new();
    let told = super::told(context, &body, &envelope, Some(&session))?;
    let request = request(&connection, &session, (&body, told), &envelope, sink);
    drop(body);
    connection.call(request, context.server.spec.call_idle).await.map_err(lost)?;
    match tokio::time::timeout(supervisor.config().gateway.sse_after, &mut first).await {
        Ok(Ok(First::Answer(answer))) => Ok(json(StatusCode::OK, answer.message)),
        Ok(Err(_)) => Err(lost(SendError::Closed)),
        Ok(Ok(First::Stream(stream))) => {
            Ok(stream_call(context, &session, Some(First::Stream(stream)), first, busy))
        }
        Err(_) => Ok(stream_call(context, &session, None, first, busy)),
    }
}

fn request(
    connection: &Connection,
    session: &Session,
    (body, told): (&Bytes, Option<Edit>),
    envelope: &Envelope,
    sink: CallSink,
) -> Request<CallSink> {
    let ticket = connection.ticket();
    let text = ticket.to_string();
    let id = envelope.id.clone().unwrap_or(0..0);
    let token = envelope.inner.meta.progress_token.clone();
    Request {
        ticket,
        session: Some(session.key),
        client_id: body.slice(id.clone()),
        client_token: token.clone().map(|span| body.slice(span)),
        kind: CallKind::of(&envelope.method),
        special: special(envelope),
        wants_log: false,
        wire: super::with_ticket(body, id, token, text.as_bytes(), told.as_slice()),
        sink,
    }
}

/// The call goes on as a stream that the client can leave and come back to: its messages are gathered by a
/// task of their own, which does not depend on this connection.
fn stream_call(
    context: &Context<'_>,
    session: &Arc<Session>,
    heard: Option<First>,
    first: oneshot::Receiver<First>,
    call: Busy,
) -> Reply {
    let (number, stream) = session.open_stream();
    let reader = stream.read();
    tokio::spawn(gather(Arc::clone(session), number, stream, heard, first, call));
    respond(context, session, number, reader)
}

fn respond(
    context: &Context<'_>,
    session: &Arc<Session>,
    number: u64,
    reader: ostler_supervisor::stream::Reader,
) -> Reply {
    let config = context.gateway.supervisor.config();
    let settings = &config.gateway;
    let manner = Manner {
        number,
        primed: session.version.as_str() >= PRIMED_FROM,
        hold: if number == 0 { Duration::ZERO } else { settings.stream_hold },
        keepalive: settings.keepalive,
    };
    let (sender, receiver) = sse::channel();
    tokio::spawn(sse::pump(Arc::clone(session), reader, manner, sender, session.listen()));
    events(receiver)
}

/// Moves what a call hears into its stream, up to the answer.
async fn gather(
    session: Arc<Session>,
    number: u64,
    stream: Arc<ReplayStream>,
    heard: Option<First>,
    first: oneshot::Receiver<First>,
    call: Busy,
) {
    let first = match heard {
        Some(first) => Ok(first),
        None => first.await,
    };
    match first {
        Ok(First::Answer(answer)) => stream.push(answer.message),
        Ok(First::Stream(mut messages)) => {
            while let Some(message) = messages.messages.recv().await {
                stream.push(message);
            }
            if let Ok(answer) = messages.answer.await {
                stream.push(answer.message);
            }
        }
        // The connection ended without an answer, which it does not while the daemon lives.
        Err(_) => {}
    }
    session.stream_ended(number);
    drop(call);
}

/// GET: the session's own stream, or the rest of one that was broken off.
pub(super) fn listen(context: &Context<'_>) -> Result<Reply, Refusal> {
    if !context.headers.contains_key(SESSION_ID)
        && header(context.headers, PROTOCOL_VERSION) == Some(version::MODERN.as_bytes())
    {
        return Err(Refusal::method(
            "POST",
            "revision 2026-07-28 has no GET stream; send `subscriptions/listen`",
        ));
    }
    if !accepts(context.headers, "text/event-stream") {
        let message = "`Accept` must list text/event-stream";
        return Err(Refusal::new(StatusCode::NOT_ACCEPTABLE, rpc::INVALID_REQUEST, message));
    }
    let session = session(context)?;
    let Some(last) = header(context.headers, "last-event-id") else {
        return Ok(respond(context, &session, 0, session.outbox.read()));
    };
    let resumed = sse::parse_event_id(last).and_then(|(number, after)| {
        session.stream(number).and_then(|stream| stream.read_after(after)).map(|reader| (number, reader))
    });
    match resumed {
        Some((number, reader)) => Ok(respond(context, &session, number, reader)),
        None => {
            let last = String::from_utf8_lossy(last);
            let message = format!("the stream cannot be resumed after `{last}`: it is not kept any more");
            Err(Refusal::new(StatusCode::BAD_REQUEST, rpc::INVALID_REQUEST, message))
        }
    }
}

/// DELETE: the client ends its session.
pub(super) async fn end(context: &Context<'_>) -> Result<Reply, Refusal> {
    if !context.headers.contains_key(SESSION_ID) {
        return Err(match header(context.headers, PROTOCOL_VERSION) {
            Some(named) if named == version::MODERN.as_bytes() => {
                Refusal::method("POST", "revision 2026-07-28 has no sessions to delete")
            }
            _ => Refusal::new(StatusCode::BAD_REQUEST, rpc::INVALID_REQUEST, "Mcp-Session-Id is missing"),
        });
    }
    let session = session(context)?;
    context.gateway.supervisor.end_session(&session, "its client ended it").await;
    Ok(empty(StatusCode::OK))
}
