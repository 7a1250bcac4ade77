//! Calls of tools that Ostler makes itself, for a person, a model or a task: without a network, in whichever era the
//! server speaks.
//!
//! A modern server gets one request, as any modern client's. A legacy one gets the same from a session of its
//! connection: that of the session which has the process for itself, or on a process that is shared a guest that
//! comes for this call alone, so that whatever the process sends has an owner, and never another client.
//!
//! Nobody can be asked back: what a server wants to know of its client is refused at once.

use std::sync::Arc;

use bytes::Bytes;
use ostler_domain::{Era, Scope};
use ostler_mcp::mux::{Answer, CallKind, Request, SessionKey, Ticket};
use ostler_mcp::{Envelope, Kind, Message, SHARE_FROM, on_one_line, rpc, tell, version};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::connection::{CallSink, Connection, First, SendError};
use crate::instance::{InstanceHandle, Lease, Unavailable};
use crate::own::ServedBy;
use crate::select::select;
use crate::server::Server;
use crate::session::{Busy, CallRefused, NoSession, Session};
use crate::stream::{Keep, ReplayStream};
use crate::supervisor::{Caller, Supervisor};

/// A guest's stream of what belongs to no call keeps nothing: nobody will read it.
const NOTHING: Keep = Keep { events: 0, bytes: 0 };

/// What a server is told that asks the caller something.
const NOBODY_TO_ASK: &str = "this call was made by Ostler for a program, which cannot be asked";

/// A call of a tool of a supervised server. Dropping its future cancels it, at the server as well.
#[derive(Clone, Debug)]
pub struct ToolCall {
    /// The server's name.
    pub server: String,
    /// The tool's name.
    pub tool: String,
    /// Its arguments, a JSON object, exactly as they are to be sent; none where absent.
    pub arguments: Option<Box<RawValue>>,
    /// The key of the session that it is of, as in the header `Ostler-Session`. Absent: the one that the caller has
    /// without saying a key, where the server has to do with sessions.
    pub session: Option<String>,
}

/// How far a call is, in its server's words.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct Progress {
    /// Grows with each.
    pub progress: f64,
    /// What it grows to, where that is known.
    #[serde(default)]
    pub total: Option<f64>,
    /// In words.
    #[serde(default)]
    pub message: Option<String>,
}

/// What a tool answered.
#[derive(Clone, Debug)]
pub struct ToolResult {
    /// The result, a JSON object exactly as the server sent it. A large one counts against
    /// [`Supervisor::budget`] while it lives.
    pub result: Bytes,
    /// Whether the tool says that it failed (`isError`).
    pub is_error: bool,
}

/// Why a call has no result.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct CallFailed {
    /// The code of JSON-RPC: the server's, or one of [`rpc`].
    pub code: i64,
    /// What failed, why, what to do.
    pub message: String,
    /// What the server added.
    pub data: Option<Box<RawValue>>,
}

impl CallFailed {
    /// A failure with nothing but the essentials.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    /// Whether it was for want of something that may be there another time.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self.code, rpc::INSTANCE_LOST | rpc::LIMIT_REACHED | rpc::CALL_TIMED_OUT)
    }
}

impl From<Unavailable> for CallFailed {
    fn from(unavailable: Unavailable) -> Self {
        let code = match unavailable {
            Unavailable::Limit(_) => rpc::LIMIT_REACHED,
            _ => rpc::INSTANCE_LOST,
        };
        Self::new(code, unavailable.to_string())
    }
}

impl From<SendError> for CallFailed {
    fn from(error: SendError) -> Self {
        Self::new(rpc::INSTANCE_LOST, error.to_string())
    }
}

impl From<NoSession> for CallFailed {
    fn from(why: NoSession) -> Self {
        let code = match why {
            NoSession::Full(_) => rpc::LIMIT_REACHED,
            NoSession::Ended(_) => rpc::INVALID_PARAMS,
        };
        Self::new(code, why.to_string())
    }
}

impl ToolCall {
    /// Makes the call for `caller` and waits for its answer; tells `heard` what the server says meanwhile of how far it
    /// is. Bounded by the server's `timeouts.call_idle` and `call_max`, and in size by `gateway.max_body`. It is made
    /// once: whether a call that failed had an effect is the server's to say.
    ///
    /// # Errors
    /// [`CallFailed`]: the server refused it, cannot be had, or the session ended.
    pub async fn run(
        &self,
        supervisor: &Supervisor,
        caller: &Caller,
        heard: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<ToolResult, CallFailed> {
        let server = self.find(supervisor)?;
        let concerned =
            self.session.is_some() || server.spec.scope == Scope::Session || server.spec.tell_session;
        if !concerned {
            return self.on(supervisor, caller, &server, None, heard).await;
        }
        let session = supervisor.session(caller, self.session.as_deref().unwrap_or_default())?;
        self.run_in(supervisor, caller, &session, heard).await
    }

    /// The same, of this session.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) async fn run_in(
        &self,
        supervisor: &Supervisor,
        caller: &Caller,
        session: &Arc<Session>,
        heard: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<ToolResult, CallFailed> {
        let server = self.find(supervisor)?;
        let limit = supervisor.config().limits.session_calls;
        let busy = session.begin_call(limit).map_err(|why| {
            if !matches!(why, CallRefused::Draining(_)) {
                supervisor.events().count("limits.session_calls");
            }
            CallFailed::new(rpc::LIMIT_REACHED, why.to_string())
        })?;
        select! {
            result = self.on(supervisor, caller, &server, Some(&busy), heard) => result,
            () = session.until_ended() => {
                let why = format!("cancelled: its session {} ended", session.handle);
                Err(CallFailed::new(rpc::CALL_CANCELLED, why))
            }
        }
    }

    fn find(&self, supervisor: &Supervisor) -> Result<Arc<Server>, CallFailed> {
        let invalid = |why: String| CallFailed::new(rpc::INVALID_PARAMS, why);
        let name = &self.server;
        let server = supervisor
            .server(name)
            .ok_or_else(|| invalid(format!("no server is called `{name}` (`ostler ps` lists them)")))?;
        if !server.spec.transport.is_mcp() {
            let transport = server.spec.transport.as_str();
            return Err(invalid(format!("`{name}` has no tools: its transport is `{transport}`")));
        }
        if self.arguments.as_ref().is_some_and(|arguments| !arguments.get().starts_with('{')) {
            return Err(invalid(format!("the arguments of `{}` must be an object", self.tool)));
        }
        Ok(server)
    }

    /// The call on an instance of this server, for this session where it matters which.
    async fn on(
        &self,
        supervisor: &Supervisor,
        caller: &Caller,
        server: &Arc<Server>,
        busy: Option<&Busy>,
        heard: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<ToolResult, CallFailed> {
        let held = Held::of(supervisor, caller, server, busy).await?;
        let (connection, snapshot) = held.instance().connection(server.patience()).await?;
        let era = snapshot.era.unwrap_or(Era::Legacy);
        let speaker = match (era, &held) {
            (Era::Modern, _) => None,
            (Era::Legacy, Held::Own(_, session)) => {
                connection.attach(session.key, Arc::clone(&session.outbox)).await?;
                Some(session.key)
            }
            (Era::Legacy, Held::Shared(_)) => Some(supervisor.sessions().next_key()),
        };
        // Declared before the call, so that it leaves after that is cancelled.
        let guest = match (speaker, &held) {
            (Some(key), Held::Shared(_)) => Some(Guest::attach(&connection, key).await?),
            _ => None,
        };
        let ticket = connection.ticket();
        let (sink, first) = CallSink::new();
        let told = busy.filter(|_| server.spec.tell_session).map(Busy::session);
        let request = self.request(ticket, (era, speaker), told, sink);
        let mut call = Running { connection: &connection, ticket, over: false };
        connection.call(request, server.spec.call_idle).await?;
        let answer = match first.await {
            Ok(First::Answer(answer)) => Some(answer),
            Ok(First::Stream(mut stream)) => {
                while let Some(message) = stream.messages.recv().await {
                    let patience = server.patience();
                    overheard(&message.to_bytes(), &connection, speaker, patience, heard).await;
                }
                stream.answer.await.ok()
            }
            Err(_) => None,
        };
        call.over = true;
        drop((call, guest));
        let answer = answer.ok_or(SendError::Closed)?;
        read(supervisor, &self.tool, &answer)
    }

    fn request(
        &self,
        ticket: Ticket,
        (era, speaker): (Era, Option<SessionKey>),
        told: Option<&Session>,
        sink: CallSink,
    ) -> Request<CallSink> {
        let id = Bytes::from(ticket.to_string());
        Request {
            ticket,
            session: speaker,
            client_id: id.clone(),
            client_token: Some(id),
            kind: CallKind::Call,
            special: None,
            wants_log: false,
            wire: self.wire(ticket, era, told),
            sink,
        }
    }

    /// The request as the server reads it.
    fn wire(&self, ticket: Ticket, era: Era, told: Option<&Session>) -> Message {
        let mut meta = json!({"progressToken": ticket});
        if era == Era::Modern {
            meta["io.modelcontextprotocol/protocolVersion"] = version::MODERN.into();
            meta["io.modelcontextprotocol/clientInfo"] =
                json!({"name": "ostler", "version": env!("CARGO_PKG_VERSION")});
            meta["io.modelcontextprotocol/clientCapabilities"] = json!({});
        }
        if let Some(session) = told {
            meta[tell::SESSION] = (*session.handle).into();
        }
        let arguments = self.arguments.as_deref().map_or("{}", RawValue::get);
        let tool = Value::from(self.tool.as_str());
        // The arguments are not parsed: they may hold what a number or an order of members would lose.
        let text = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{ticket},\"method\":\"tools/call\",\
             \"params\":{{\"name\":{tool},\"arguments\":{arguments},\"_meta\":{meta}}}}}"
        );
        Message::from(on_one_line(Bytes::from(text)))
    }
}

/// A hold on the instance that serves a call.
enum Held {
    /// One that others use, too.
    Shared(Lease),
    /// The session's own, which stays the session's.
    Own(Arc<InstanceHandle>, Arc<Session>),
}

impl Held {
    async fn of(
        supervisor: &Supervisor,
        caller: &Caller,
        server: &Arc<Server>,
        busy: Option<&Busy>,
    ) -> Result<Self, Unavailable> {
        match busy.filter(|_| server.spec.scope == Scope::Session) {
            Some(busy) => {
                let session = busy.shared_session();
                Ok(match supervisor.instance_of_any_era(session, server, caller).await? {
                    ServedBy::Own(own) => Self::Own(own.handle, Arc::clone(session)),
                    ServedBy::Shared(lease) => Self::Shared(lease),
                })
            }
            None => supervisor.shared_of_any_era(server, caller).await.map(Self::Shared),
        }
    }

    fn instance(&self) -> &InstanceHandle {
        match self {
            Self::Shared(lease) => lease,
            Self::Own(handle, _) => handle,
        }
    }
}

/// A session of a shared legacy process for the sake of one call; it leaves when this is dropped.
struct Guest {
    connection: Arc<Connection>,
    key: SessionKey,
}

impl Guest {
    async fn attach(connection: &Arc<Connection>, key: SessionKey) -> Result<Self, SendError> {
        let guest = Self { connection: Arc::clone(connection), key };
        connection.attach(key, Arc::new(ReplayStream::new(NOTHING))).await?;
        Ok(guest)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let (connection, key) = (Arc::clone(&self.connection), self.key);
        tokio::spawn(async move { connection.detach(key).await });
    }
}

/// A call on its way; cancelled when this is dropped before it is over.
struct Running<'a> {
    connection: &'a Connection,
    ticket: Ticket,
    over: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.connection.hung_up(self.ticket);
        }
    }
}

/// What comes ahead of the answer: progress is told, a request of the server refused; anything else is for people.
async fn overheard(
    message: &Bytes,
    connection: &Connection,
    speaker: Option<SessionKey>,
    patience: std::time::Duration,
    heard: &mut (dyn FnMut(Progress) + Send),
) {
    let Ok(envelope) = Envelope::parse(message) else { return };
    match (envelope.kind, speaker) {
        (Kind::Notification, _) if &*envelope.method == "notifications/progress" => {
            let params = envelope.params.map(|span| &message[span]).unwrap_or_default();
            if let Ok(progress) = serde_json::from_slice::<Progress>(params) {
                heard(progress);
            }
        }
        (Kind::Request, Some(key)) => {
            let no = rpc::error(envelope.id_text(message), rpc::METHOD_NOT_FOUND, NOBODY_TO_ASK).to_bytes();
            if let Ok(envelope) = Envelope::parse(&no) {
                // A connection that is closed, or a question taken back meanwhile: nobody waits for it then.
                let _ = connection.answer(key, no, envelope, patience).await;
            }
        }
        _ => {}
    }
}

/// Of a result, what says how it went.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    #[serde(default)]
    is_error: bool,
    #[serde(default)]
    result_type: Option<String>,
}

#[derive(Deserialize)]
struct Refused {
    error: RpcError,
}

#[derive(Deserialize)]
struct RpcError {
    code: i64,
    message: String,
    #[serde(default)]
    data: Option<Box<RawValue>>,
}

fn read(supervisor: &Supervisor, tool: &str, answer: &Answer) -> Result<ToolResult, CallFailed> {
    let mut body = answer.message.to_bytes();
    if answer.kind != Kind::Result {
        let refused = serde_json::from_slice::<Refused>(&body);
        return Err(refused.map_or_else(
            |_| {
                CallFailed::new(rpc::INVALID_REQUEST, "the server answered with an error that cannot be read")
            },
            |Refused { error }| CallFailed { code: error.code, message: error.message, data: error.data },
        ));
    }
    if body.len() >= SHARE_FROM {
        let Some(reservation) = supervisor.budget().try_reserve(body.len()) else {
            supervisor.events().count("gateway.body_memory");
            let why = format!("no memory for a result of {} bytes (gateway.body_memory)", body.len());
            return Err(CallFailed::new(rpc::LIMIT_REACHED, why));
        };
        body = reservation.hold(body);
    }
    let span = Envelope::parse(&body).ok().and_then(|envelope| envelope.result);
    let result = span.map(|span| body.slice(span)).unwrap_or_default();
    let outcome: Outcome = serde_json::from_slice(&result).unwrap_or_default();
    if outcome.result_type.as_deref() == Some("input_required") {
        let why = format!("`{tool}` asks for input, and {NOBODY_TO_ASK}");
        return Err(CallFailed::new(rpc::MISSING_CAPABILITY, why));
    }
    Ok(ToolResult { result, is_error: outcome.is_error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(arguments: &str) -> ToolCall {
        ToolCall {
            server: "s".to_owned(),
            tool: "a \"b\"".to_owned(),
            arguments: Some(RawValue::from_string(arguments.to_owned()).expect("JSON")),
            session: None,
        }
    }

    #[test]
    fn arguments_go_out_as_they_came_and_on_one_line() {
        let wire = call("{\n \"n\": 1180591620717411303424 }").wire(7, Era::Legacy, None).to_bytes();
        let text = std::str::from_utf8(&wire).expect("text");
        assert!(text.contains("{  \"n\": 1180591620717411303424 }") && !text.contains('\n'), "{text}");
        let envelope = Envelope::parse(&wire).expect("a request");
        assert_eq!(envelope.inner.name.as_deref(), Some("a \"b\""));
        assert!(!envelope.is_modern());
        let token = envelope.inner.meta.progress_token.expect("a token");
        assert_eq!(&wire[token], b"7");
        let modern = call("{}").wire(7, Era::Modern, None).to_bytes();
        let meta = Envelope::parse(&modern).expect("a request").inner.meta;
        assert!(meta.client_capabilities && meta.protocol_version.as_deref() == Some(version::MODERN));
    }
}
