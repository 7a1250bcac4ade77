//! Opening the conversation with a new process, in the era it is needed in.

use std::sync::Arc;
use std::time::Duration;

use ostler_domain::Era;
use ostler_mcp::Kind;
use ostler_mcp::mux::Answer;
use ostler_mcp::rpc;
use ostler_mcp::session_tools::OwnNames;
use ostler_mcp::session_tools::list::Page;
use ostler_mcp::version::{self, Discovery, InitializeResult};

use crate::connection::{Connection, SendError};
use crate::ports::Theft;

/// How long a process of unknown era is given to answer the modern probe before the legacy handshake is tried
/// as well. Both may wait in its pipe while a slow program starts: a modern server answers the first and
/// refuses the second, a legacy one the other way round.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);

/// Most pages of `tools/list` read for header parameters, and for names that may be Ostler's.
const MAX_PAGES: usize = 50;

/// What a process is wanted for.
#[derive(Clone, Debug)]
pub enum Need {
    /// Legacy sessions; these are the parameters of its `initialize`.
    Legacy(Arc<str>),
    /// Modern requests.
    Modern,
    /// Whichever it turns out to be; the parameters are for a legacy one.
    Either(Arc<str>),
}

/// A finished handshake.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The era the process now has.
    pub era: Era,
    /// What a legacy process answered to `initialize`.
    pub initialized: Option<Arc<InitializeResult>>,
    /// Whether the server is modern, where the handshake showed it.
    pub modern: Option<bool>,
    /// What a modern process said of its tools.
    pub tools: Option<Heard>,
}

/// What a process said of its tools.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// The names that it has itself.
    pub names: OwnNames,
    /// Whether it listed all of them.
    pub whole: bool,
}

/// Why a handshake did not work out.
#[derive(Clone, Debug)]
pub enum Failed {
    /// The server does not serve the era it was needed in, and said so; trying again will not help.
    WrongEra(Era),
    /// Somebody else listens on one of its ports; it is to be started again on another.
    Theft(Theft),
    /// Anything else.
    Other(String),
}

impl From<SendError> for Failed {
    fn from(error: SendError) -> Self {
        Self::Other(error.to_string())
    }
}

/// Opens the conversation. The caller sets the deadline.
pub async fn open(connection: &Connection, need: &Need) -> Result<Opened, Failed> {
    match need {
        Need::Legacy(params) => legacy(connection, params).await,
        Need::Modern => {
            let answer = discover(connection).await?;
            match version::discovery(&answer) {
                Discovery::Modern => modern(connection).await,
                // It was modern before: more likely it is not there than another now.
                _ if answer.kind == Kind::Error(rpc::PROBE_REFUSED) => Err(Failed::Other(told(&answer))),
                Discovery::Legacy | Discovery::OtherModern(_) => Err(Failed::WrongEra(Era::Modern)),
            }
        }
        Need::Either(params) => either(connection, params).await,
    }
}

async fn probe(connection: &Connection) -> Result<Discovery, Failed> {
    discover(connection).await.map(|answer| version::discovery(&answer))
}

async fn discover(connection: &Connection) -> Result<Answer, Failed> {
    let answer = connection.ask(|ticket| version::modern_request(ticket, "server/discover", "")).await?;
    reached(&answer)?;
    Ok(answer)
}

/// Whether an answer is the server's own. One of Ostler's says that the server was not reached, or went away, and
/// nothing of its era.
fn reached(answer: &Answer) -> Result<(), Failed> {
    if answer.kind != Kind::Error(rpc::INSTANCE_LOST) {
        return Ok(());
    }
    Err(Failed::Other(told(answer)))
}

/// The text of an error.
pub(super) fn told(answer: &Answer) -> String {
    let said: Option<serde_json::Value> = serde_json::from_slice(&answer.message.to_bytes()).ok();
    let why = said.as_ref().and_then(|said| said["error"]["message"].as_str());
    why.map_or_else(|| excerpt(answer), str::to_owned)
}

/// A legacy server answers `initialize`. One that refuses it is asked whether it is modern, so that "wrong
/// era" is told from a server that cannot work.
async fn legacy(connection: &Connection, params: &str) -> Result<Opened, Failed> {
    connection.settle_era(Era::Legacy).await;
    let answer = connection.ask(|ticket| version::initialize(ticket, params)).await?;
    reached(&answer)?;
    if let Some(opened) = initialized(connection, &answer).await {
        return Ok(opened);
    }
    if answer.kind == Kind::Error(rpc::UNSUPPORTED_VERSION) || probe(connection).await? == Discovery::Modern {
        return Err(Failed::WrongEra(Era::Legacy));
    }
    Err(Failed::Other(format!("`initialize` was refused: {}", excerpt(&answer))))
}

async fn initialized(connection: &Connection, answer: &Answer) -> Option<Opened> {
    let result = InitializeResult::read(answer)?;
    connection.tell(version::initialized()).await;
    Some(Opened { era: Era::Legacy, initialized: Some(Arc::new(result)), modern: None, tools: None })
}

async fn modern(connection: &Connection) -> Result<Opened, Failed> {
    connection.settle_era(Era::Modern).await;
    let tools = Some(learn_tools(connection).await?);
    Ok(Opened { era: Era::Modern, initialized: None, modern: Some(true), tools })
}

/// Reads what the tools are before the first call: it has to be checked against their header parameters, and an argument
/// that names a session told from one of the server's.
async fn learn_tools(connection: &Connection) -> Result<Heard, Failed> {
    let mut heard = Heard::default();
    let mut params = String::new();
    for _ in 0..MAX_PAGES {
        let answer = connection.ask(|ticket| version::modern_request(ticket, "tools/list", &params)).await?;
        if answer.kind != Kind::Result {
            return Ok(heard);
        }
        let listed = answer.message.to_bytes();
        let page = Page::read(&listed);
        match &page {
            Some(page) => heard.names.learn(page),
            None => heard.names.miss_page(),
        }
        match connection.learn_tools(&listed) {
            Some(cursor) => params = format!("\"cursor\":{},", serde_json::Value::from(cursor)),
            None => return Ok(Heard { whole: true, ..heard }),
        }
    }
    Ok(heard)
}

async fn either(connection: &Connection, params: &str) -> Result<Opened, Failed> {
    let mut probe = std::pin::pin!(probe(connection));
    match tokio::time::timeout(PROBE_PATIENCE, probe.as_mut()).await {
        Ok(Ok(Discovery::Modern)) => return modern(connection).await,
        Ok(Ok(Discovery::Legacy | Discovery::OtherModern(_))) => {
            let opened = legacy(connection, params).await?;
            return Ok(Opened { modern: Some(false), ..opened });
        }
        Ok(Err(failed)) => return Err(failed),
        Err(_silent) => {}
    }
    let mut initialize = std::pin::pin!(connection.ask(|ticket| version::initialize(ticket, params)));
    crate::select::select! {
        found = probe.as_mut() => match found? {
            Discovery::Modern => modern(connection).await,
            Discovery::Legacy | Discovery::OtherModern(_) => {
                after_initialize(connection, &initialize.await?).await
            }
        },
        answer = initialize.as_mut() => {
            let answer = answer?;
            if answer.kind == Kind::Result {
                return after_initialize(connection, &answer).await;
            }
            match probe.await? {
                Discovery::Modern => modern(connection).await,
                _ => Err(Failed::Other(format!("`initialize` was refused: {}", excerpt(&answer)))),
            }
        }
    }
}

async fn after_initialize(connection: &Connection, answer: &Answer) -> Result<Opened, Failed> {
    connection.settle_era(Era::Legacy).await;
    match initialized(connection, answer).await {
        Some(opened) => Ok(Opened { modern: Some(false), ..opened }),
        None => Err(Failed::Other(format!("`initialize` was refused: {}", excerpt(answer)))),
    }
}

/// The beginning of an answer, for an error message.
fn excerpt(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.message.to_bytes()).chars().take(300).collect()
}
