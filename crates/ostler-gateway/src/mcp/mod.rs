//! `/mcp/{server}`: Streamable HTTP in both eras.
//!
//! ```text
//!   POST ── checks ── body ── envelope ──┬── names a modern version ── modern.rs
//!                                        └── else ──────────────────── legacy.rs
//!   GET, DELETE ──────────────────────────────────────────────────────── legacy.rs (modern: 405)
//! ```
//!
//! `/mcp/ostler` is no server of the configuration but Ostler's own: `own`.

mod key;
mod legacy;
mod modern;
mod own;
mod session_tools;
mod sse;

use std::sync::Arc;

use bytes::Bytes;

use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use ostler_domain::Transport;
use ostler_mcp::envelope::Span;
use ostler_mcp::{Envelope, EnvelopeError, Message, on_one_line, rpc, tell, version};
use ostler_supervisor::{Caller, Server, Session};

pub(crate) use self::key::check_key;
pub(crate) use self::own::Running;
use crate::body::{self, Bounds};
use crate::reply::{Refusal, Reply};
use crate::serve::Door;
use crate::{Gateway, origin};

/// The header that carries a legacy session's secret.
const SESSION_ID: &str = "mcp-session-id";
/// The header that names the revision.
const PROTOCOL_VERSION: &str = "mcp-protocol-version";
/// The header that names the caller's project.
const PROJECT: &str = "ostler-project";
/// The longest project name.
const PROJECT_MAX: usize = 64;

/// One request's surroundings.
struct Context<'a> {
    gateway: &'a Arc<Gateway>,
    server: Arc<Server>,
    door: Door,
    caller: Caller,
    /// The key of the session that it says it is of, in its path or in a header of its own.
    key: Option<String>,
    /// The one that its cookie says.
    cookie: Option<String>,
    headers: &'a HeaderMap,
}

/// Answers a request for `/mcp/{path}`.
pub(crate) async fn handle(
    gateway: &Arc<Gateway>,
    door: Door,
    path: &str,
    request: Request<Incoming>,
) -> Reply {
    if key::of_path(path).0 == own::NAME {
        return own::handle(gateway, door, path, request).await;
    }
    let (head, body) = request.into_parts();
    match prepare(gateway, door, path, &head.headers) {
        Ok(context) => match head.method {
            Method::POST => post(&context, body).await,
            Method::GET => legacy::listen(&context).unwrap_or_else(|refusal| refusal.reply(None)),
            Method::DELETE => legacy::end(&context).await.unwrap_or_else(|refusal| refusal.reply(None)),
            other => Refusal::method("POST, GET, DELETE", format!("{other} is not served here")).reply(None),
        },
        Err(refusal) => refusal.reply(None),
    }
}

fn prepare<'a>(
    gateway: &'a Arc<Gateway>,
    door: Door,
    path: &str,
    headers: &'a HeaderMap,
) -> Result<Context<'a>, Refusal> {
    let (name, key) = key::of_path(path);
    if door == Door::Tcp {
        origin::check(headers, &gateway.supervisor.config().gateway)?;
    }
    let server = gateway.supervisor.server(name).ok_or_else(|| unknown_server(gateway, name, headers))?;
    if !server.spec.transport.is_mcp() {
        let message = format!("`{name}` offers no MCP here: {}", elsewhere(&server));
        return Err(Refusal::new(StatusCode::NOT_FOUND, rpc::INVALID_REQUEST, message));
    }
    let (key, cookie) = (key::find(key, headers)?, key::of_cookie(headers)?);
    Ok(Context { gateway, server, door, caller: caller(gateway, headers)?, key, cookie, headers })
}

/// Where to find a server whose traffic Ostler does not carry.
fn elsewhere(server: &Server) -> String {
    let instances = server.instances();
    let snapshot = instances.iter().map(|handle| handle.snapshot()).find(|snapshot| snapshot.state.serves());
    match (server.spec.transport, snapshot) {
        (Transport::Socket, Some(snapshot)) if !snapshot.ports.is_empty() => {
            let address = |(port, number): (&String, &u16)| format!("`{port}` at 127.0.0.1:{number}");
            let addresses: Vec<String> = snapshot.ports.iter().map(address).collect();
            format!("it listens by itself, {}", addresses.join(", "))
        }
        (transport, _) => format!("its transport is `{}`", transport.as_str()),
    }
}

fn unknown_server(gateway: &Gateway, name: &str, headers: &HeaderMap) -> Refusal {
    let session = header(headers, SESSION_ID).and_then(|id| std::str::from_utf8(id).ok());
    if let Some(reason) = session.and_then(|id| gateway.supervisor.sessions().farewell(id)) {
        let message = format!("no such session: it ended, because {reason}");
        return Refusal::new(StatusCode::NOT_FOUND, rpc::INVALID_REQUEST, message);
    }
    let servers = gateway.supervisor.servers();
    let nearest = servers
        .all()
        .iter()
        .map(|known| (strsim::jaro_winkler(known.spec.name.as_str(), name), &known.spec.name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|one, other| one.0.total_cmp(&other.0));
    let hint = nearest.map(|(_, known)| format!("; did you mean `{known}`?")).unwrap_or_default();
    let name: String = name.chars().take(64).collect();
    let message = format!("no server is called `{name}`{hint} (`ostler ps` lists them)");
    Refusal::new(StatusCode::NOT_FOUND, rpc::INVALID_REQUEST, message)
}

fn caller(gateway: &Gateway, headers: &HeaderMap) -> Result<Caller, Refusal> {
    let Some(project) = headers.get(PROJECT) else { return Ok(gateway.local.clone()) };
    match project.to_str() {
        Ok(project) if !project.is_empty() && project.len() <= PROJECT_MAX => {
            Ok(Caller { project: project.into(), ..gateway.local.clone() })
        }
        _ => {
            let message = format!("{PROJECT} must be 1 to {PROJECT_MAX} visible ASCII characters");
            Err(Refusal::new(StatusCode::BAD_REQUEST, rpc::INVALID_REQUEST, message))
        }
    }
}

/// Reads the message of a POST.
async fn message(
    gateway: &Gateway,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<(Bytes, Envelope), Refusal> {
    let config = gateway.supervisor.config();
    let settings = &config.gateway;
    check_content(headers)?;
    let bounds = Bounds {
        max: settings.max_body,
        silence: settings.body_timeout,
        budget: Arc::clone(gateway.supervisor.budget()),
    };
    let body = body::read(headers, body, &bounds).await.inspect_err(|refusal| {
        gateway.supervisor.events().count(&format!("http {}", refusal.status.as_u16()));
    })?;
    let body = on_one_line(body);
    let envelope = Envelope::parse(&body).map_err(|error| {
        let code = match &error {
            EnvelopeError::Syntax(_) => rpc::PARSE_ERROR,
            EnvelopeError::Invalid(_) => rpc::INVALID_REQUEST,
        };
        Refusal::new(StatusCode::BAD_REQUEST, code, error.to_string())
    })?;
    Ok((body, envelope))
}

async fn post(context: &Context<'_>, body: Incoming) -> Reply {
    let (body, envelope) = match message(context.gateway, context.headers, body).await {
        Ok(read) => read,
        Err(refusal) => return refusal.reply(None),
    };
    let id = envelope.id.clone().map(|span| body.slice(span));
    let answer = if is_modern(context.headers, &envelope) {
        modern::post(context, body, envelope).await
    } else {
        legacy::post(context, body, envelope).await
    };
    answer.unwrap_or_else(|refusal| {
        context.gateway.supervisor.events().count(&format!("http {}", refusal.status.as_u16()));
        refusal.reply(id.as_deref())
    })
}

/// A client must accept both forms of an answer, and send JSON (both revisions, "Sending Messages").
fn check_content(headers: &HeaderMap) -> Result<(), Refusal> {
    let accepts = |wanted: &str| accepts(headers, wanted);
    if !accepts("application/json") || !accepts("text/event-stream") {
        let message = "`Accept` must list both application/json and text/event-stream";
        return Err(Refusal::new(StatusCode::NOT_ACCEPTABLE, rpc::INVALID_REQUEST, message));
    }
    let is_json = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
    if is_json {
        return Ok(());
    }
    let message = "`Content-Type` must be application/json";
    Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, rpc::INVALID_REQUEST, message))
}

/// Whether the `Accept` headers list this type, or a pattern that covers it.
fn accepts(headers: &HeaderMap, wanted: &str) -> bool {
    let kind = wanted.split('/').next().unwrap_or_default();
    headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(',')).any(
        |item| {
            let item = item.split(';').next().unwrap_or_default().trim();
            item.eq_ignore_ascii_case(wanted) || item == "*/*" || item.strip_suffix("/*") == Some(kind)
        },
    )
}

/// A request is modern when it, or its header, names a version that is not legacy. A header with a session is
/// a legacy client's mistake.
fn is_modern(headers: &HeaderMap, envelope: &Envelope) -> bool {
    if envelope.is_modern() || &*envelope.method == "server/discover" {
        return true;
    }
    match header(headers, PROTOCOL_VERSION) {
        Some(version) if version == version::MODERN.as_bytes() => true,
        Some(version) => {
            !headers.contains_key(SESSION_ID) && !std::str::from_utf8(version).is_ok_and(version::is_legacy)
        }
        None => false,
    }
}

/// The value of a header.
fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    headers.get(name).map(|value| value.as_bytes())
}

/// What of a request is replaced, by what.
type Edit = (Span, Vec<u8>);

/// The request as the process reads it: its id, and its progress token where it has one, are the ticket; and `more` edits,
/// which touch neither.
fn with_ticket(body: &Bytes, id: Span, token: Option<Span>, ticket: &[u8], more: &[Edit]) -> Message {
    let mut edits: Vec<(Span, &[u8])> = Vec::with_capacity(4);
    edits.push((id, ticket));
    edits.extend(token.map(|token| (token, ticket)));
    edits.extend(more.iter().map(|(at, new)| (at.clone(), new.as_slice())));
    edits.sort_unstable_by_key(|(at, _)| at.start);
    Message::splice(body, &edits)
}

/// What a request is to say of its session, where the server wants to be told.
fn told(
    context: &Context<'_>,
    body: &Bytes,
    envelope: &Envelope,
    session: Option<&Session>,
) -> Result<Option<Edit>, Refusal> {
    let Some(session) = session.filter(|_| context.server.spec.tell_session) else { return Ok(None) };
    match tell::session_edit(body, envelope, &session.handle) {
        Ok(edit) => Ok(Some(edit)),
        Err(error) => Err(Refusal::new(StatusCode::BAD_REQUEST, rpc::INVALID_REQUEST, error.to_string())),
    }
}
