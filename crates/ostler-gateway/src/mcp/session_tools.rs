//! Sessions as arguments of tools (ADR 9), for modern requests to servers that have instances for single sessions.
//!
//! ```text
//!   tools/call ──┬── create_session, cleanup_session ── answered here
//!                └── of the server ── without `session_id`, to the instance of the session that it named
//!   tools/list ───── its answer is shown with `session_id` on every tool, and the two tools
//! ```

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use ostler_domain::Scope;
use ostler_mcp::mux::Answer;
use ostler_mcp::session_tools::answer as answers;
use ostler_mcp::session_tools::argument::{NoName, Taken, take};
use ostler_mcp::session_tools::list::Page;
use ostler_mcp::session_tools::{ARGUMENT, CREATE, OwnNames};
use ostler_mcp::{Envelope, Kind, Message, SHARE_FROM, rpc};
use ostler_supervisor::session::{NoSession, is_handle};
use ostler_supervisor::{Budget, Connection, Server, Session, Supervisor};
use serde::Deserialize;

use super::{Context, Edit, check_key};
use crate::reply::{Refusal, Reply, json};

/// Under which a list of tools is counted that is too long to know what names they have (`session_tools::MAX_TOOLS`).
const TOO_MANY: &str = "session_tools.tools";

/// What a request says of its session.
pub(super) enum Found {
    /// Ostler has answered it.
    Answered(Reply),
    /// It is for the server: in this session, where it matters which; without what named that.
    Passed(Option<Arc<Session>>, Option<Edit>),
}

/// Finds the session of a request, or answers it.
pub(super) async fn find(context: &Context<'_>, body: &Bytes, envelope: &Envelope) -> Result<Found, Refusal> {
    let spec = &context.server.spec;
    if spec.scope != Scope::Session {
        let session = spec.tell_session.then(|| open(context, shown(context))).transpose();
        return Ok(Found::Passed(session.map_err(refuse)?, None));
    }
    let tool = envelope.inner.name.as_deref().filter(|_| &*envelope.method == "tools/call");
    let Some(tool) = tool else {
        return Ok(Found::Passed(Some(open(context, shown(context)).map_err(refuse)?), None));
    };
    let id = envelope.id_text(body).unwrap_or(b"null");
    let refused = |why: &str| {
        context.gateway.supervisor.events().count("session argument refused");
        Ok(Found::Answered(json(StatusCode::OK, answers::failed(id, why))))
    };
    let mut own = context.server.own_names();
    let mut made = None;
    if !own.is_known() {
        let taken = take(body, envelope, &own);
        made = ask(context, where_to_ask(context, tool, taken.as_ref())).await?;
        own = context.server.own_names();
    }
    if own.is_ostlers(tool) {
        let arguments = envelope.inner.arguments.clone().map_or(&b"{}"[..], |span| &body[span]);
        let done = if tool == CREATE { create(context, made) } else { clean_up(context, arguments).await };
        return match done {
            Ok(key) => Ok(Found::Answered(json(StatusCode::OK, answers::session(id, &key)))),
            Err(why) => refused(&why),
        };
    }
    let (named, edit) = match take(body, envelope, &own) {
        Ok(taken) => taken.map_or((None, None), |Taken { key, edit }| (key, Some((edit, Vec::new())))),
        Err(error) => return refused(&error.to_string()),
    };
    // What a person or a program wrote into the address or a header counts before what a model says.
    let Some(named) = named.filter(|_| context.key.is_none()) else {
        return Ok(Found::Passed(Some(open(context, shown(context)).map_err(refuse)?), edit));
    };
    if let Err(why) = check_key(&named) {
        return refused(&why);
    }
    match open(context, &named) {
        Ok(session) => Ok(Found::Passed(Some(session), edit)),
        Err(why @ NoSession::Full(_)) => Err(refuse(why)),
        Err(why @ NoSession::Ended(_)) if own.is_ostlers(CREATE) => {
            refused(&format!("{why}. Call `{CREATE}` for another."))
        }
        Err(why @ NoSession::Ended(_)) => refused(&format!("{why}.")),
    }
}

/// The key that a request shows outside its body; empty for its principal's default session.
fn shown<'c>(context: &'c Context<'_>) -> &'c str {
    context.key.as_deref().or(context.cookie.as_deref()).unwrap_or_default()
}

fn open(context: &Context<'_>, key: &str) -> Result<Arc<Session>, NoSession> {
    context.gateway.supervisor.session(&context.caller, key)
}

fn refuse(why: NoSession) -> Refusal {
    match why {
        NoSession::Full(_) => Refusal { retry_after: Some(10), ..Refusal::limit(why.to_string()) },
        NoSession::Ended(_) => Refusal::new(StatusCode::NOT_FOUND, rpc::INVALID_REQUEST, why.to_string()),
    }
}

/// Where a server is asked which names it has itself, as a call uses one that may be Ostler's.
enum Ask<'c> {
    /// It need not be.
    Nowhere,
    /// In the session of this key: the call is of that one in any case.
    In(&'c str),
    /// In a session made for it.
    Apart,
}

fn where_to_ask<'c>(
    context: &'c Context<'_>,
    tool: &str,
    taken: Result<&'c Option<Taken>, &NoName>,
) -> Ask<'c> {
    let sessions = context.gateway.supervisor.sessions();
    let is_ours = OwnNames::default().is_ostlers(tool);
    match taken {
        Ok(None) if !is_ours => Ask::Nowhere,
        _ if context.key.is_some() => Ask::In(shown(context)),
        _ if is_ours => Ask::Apart,
        Ok(Some(Taken { key: Some(key), .. })) if check_key(key).is_ok() => {
            match sessions.find(&context.caller.principal, key) {
                Some(_) => Ask::In(key),
                // Nobody but Ostler makes such a key, and to start something for one that is refused is no use.
                None if is_handle(key) => Ask::Nowhere,
                None => Ask::Apart,
            }
        }
        _ => Ask::In(shown(context)),
    }
}

/// A session that ends when this is dropped, unless somebody is given it.
struct Made {
    supervisor: Arc<Supervisor>,
    session: Arc<Session>,
    key: Option<String>,
}

impl Made {
    fn keep(mut self) -> Option<String> {
        self.key.take()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.key.is_some() {
            let (supervisor, session) = (Arc::clone(&self.supervisor), Arc::clone(&self.session));
            tokio::spawn(async move {
                supervisor.end_session(&session, "it served to learn what tools a server has").await;
            });
        }
    }
}

/// Has the server asked what tools it has, which nobody did since the daemon began: each new process is. Gives the session
/// that was made for it.
async fn ask(context: &Context<'_>, place: Ask<'_>) -> Result<Option<Made>, Refusal> {
    let Context { gateway, server, caller, .. } = context;
    let supervisor = &gateway.supervisor;
    let (session, made) = match place {
        Ask::Nowhere => return Ok(None),
        Ask::In(key) => (open(context, key).map_err(refuse)?, None),
        Ask::Apart => {
            let (session, key) = supervisor.session_with_handle(caller).map_err(refuse)?;
            let supervisor = Arc::clone(supervisor);
            (Arc::clone(&session), Some(Made { supervisor, session, key: Some(key) }))
        }
    };
    let _busy = session.busy();
    supervisor.instance_for(&session, server, caller).await?;
    Ok(made)
}

/// `create_session`: the handle of a new session, or why there is none.
fn create(context: &Context<'_>, made: Option<Made>) -> Result<String, String> {
    if let Some(key) = made.and_then(Made::keep) {
        return Ok(key);
    }
    let opened = context.gateway.supervisor.session_with_handle(&context.caller);
    opened
        .map(|(_, key)| key)
        .map_err(|why| format!("{why}; end one with `cleanup_session`, or try again later."))
}

/// `cleanup_session`: the key of the session that is ended, or why none is.
async fn clean_up(context: &Context<'_>, arguments: &[u8]) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Arguments {
        session_id: Option<String>,
    }
    let read = serde_json::from_slice(arguments).map_err(|error| format!("in `arguments`: {error}"));
    let Some(key) = read.map(|Arguments { session_id }| session_id)? else {
        return Err(format!("`{ARGUMENT}` is missing: it says which session is to end."));
    };
    check_key(&key)?;
    let supervisor = &context.gateway.supervisor;
    let Some(session) = supervisor.sessions().find(&context.caller.principal, &key) else {
        let why = NoSession::Ended(supervisor.sessions().why_ended(&context.caller.principal, &key));
        return Err(format!("{why}."));
    };
    // What runs in it has its time to end.
    supervisor.drain_session(&session, "its client ended it").await;
    Ok(key)
}

/// What an answer to `tools/list` teaches, and what is made of it for the client.
pub(super) struct Listing {
    server: Arc<Server>,
    supervisor: Arc<Supervisor>,
    /// The request's, exactly as sent.
    id: Bytes,
}

impl Listing {
    /// Of this request; `None` where it is another.
    pub(super) fn of(context: &Context<'_>, body: &Bytes, envelope: &Envelope) -> Option<Self> {
        let id = envelope.id_text(body).filter(|_| &*envelope.method == "tools/list")?;
        let supervisor = Arc::clone(&context.gateway.supervisor);
        Some(Self { server: Arc::clone(&context.server), supervisor, id: Bytes::copy_from_slice(id) })
    }

    /// The answer as the client is to see it.
    pub(super) fn answer(&self, connection: &Connection, answer: Answer) -> Answer {
        if answer.kind != Kind::Result {
            return answer;
        }
        if self.server.spec.scope != Scope::Session {
            connection.learn_tools(&answer.message.to_bytes());
            return answer;
        }
        let Some(whole) = whole(answer.message, self.supervisor.budget()) else {
            let why = "there is no memory for the list of tools (gateway.body_memory); try again later";
            self.supervisor.events().count("gateway.body_memory");
            return Answer {
                kind: Kind::Error(rpc::LIMIT_REACHED),
                message: rpc::error(Some(&self.id), rpc::LIMIT_REACHED, why),
            };
        };
        connection.learn_tools(&whole);
        let page = Page::read(&whole);
        self.server.listed_tools(page.as_ref());
        let own = self.server.own_names();
        if own.has_more() {
            self.supervisor.events().count(TOO_MANY);
        }
        let message = page.map_or_else(|| Message::from(whole.clone()), |page| page.show(&whole, &own));
        Answer { kind: answer.kind, message }
    }
}

/// A message in one piece. A copy of a large one counts as a body like all others; `None` where there is no memory for it.
fn whole(message: Message, budget: &Arc<Budget>) -> Option<Bytes> {
    if message.parts().len() == 1 || message.len() < SHARE_FROM {
        return Some(message.to_bytes());
    }
    let reservation = budget.try_reserve(message.len())?;
    Some(reservation.hold(message.to_bytes()))
}
