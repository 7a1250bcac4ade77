//! Streamable HTTP, of both eras: a POST for each message, answered by JSON or by a stream of the call's own.
//!
//! | | legacy (2025-03-26 to 2025-11-25) | modern (2026-07-28) |
//! |---|---|---|
//! | a session | `Mcp-Session-Id`, given with the answer to `initialize`, ended by DELETE | none |
//! | headers | `MCP-Protocol-Version` | that, `Mcp-Method`, `Mcp-Name`, `Mcp-Param-*`, made from the body |
//! | cancelling | a notification; the answer is not waited for much longer | closing the call's stream |
//! | a stream that breaks off | taken up again with `Last-Event-ID`, if its events have ids | the call fails |
//! | what belongs to no call | on the stream of a GET ([`super::listen`]) | on the stream of `subscriptions/listen` |
//!
//! Which it is, each request says itself, so both may pass while the handshake finds the era out.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use hyper::Response;
use hyper::body::Incoming;
use ostler_mcp::mux::Ticket;
use ostler_mcp::{Envelope, Kind, Message, Sse, headers, rpc};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use super::body::{Events, Unread, is, refusal, whole};
use super::client::{Client, Pieces};
use super::listen::{self, Backoff};
use super::session::{SESSION_ID, Session};
use super::{Context, FAREWELL, Target, lane};
use crate::connection::Frame;

/// How long the answer to a cancelled legacy call is waited for: as long as the call may still ask back.
const LINGER: Duration = Duration::from_millis(ostler_mcp::mux::Mux::<()>::LINGER_MS);
/// Attempts in a row to take up a call's stream that brought nothing, after which the call fails.
const FRUITLESS: u32 = 5;
/// How long calls wait for the first answer to the request for a stream. Some servers send no head before there is
/// something to say.
const STREAM_PATIENCE: Duration = Duration::from_millis(250);
/// Cancelled legacy calls whose answers are waited for at a time; of more, the oldest are let go.
const LINGERING: usize = 64;

/// What is told when the server does not know its session any more.
const SESSION_LOST: &str = "the server ended its session (HTTP 404)";

/// What the tasks of one courier share.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) client: Client,
    pub(super) uri: Uri,
    pub(super) session: Arc<Session>,
    pub(super) context: Context,
}

/// A request that is under way.
#[derive(Debug)]
struct Running {
    modern: bool,
    /// How long it is still waited for.
    cancel: Option<oneshot::Sender<Duration>>,
    task: AbortHandle,
}

/// How a request's task ended.
struct Ended {
    id: Bytes,
    /// The server knows the session no more.
    session_lost: bool,
}

/// Carries messages until there are none to come, then ends the session.
///
/// # Errors
/// Why it could not begin, or not go on.
pub(super) async fn run(
    target: Target,
    first: Message,
    messages: mpsc::Receiver<Message>,
    context: Context,
) -> Result<(), String> {
    let client = Client::new(&target.uri, target.headers).await?;
    let frames = context.frames.clone();
    let way = Way { client, uri: target.uri, session: Arc::default(), context };
    let mut courier = Courier::new(way);
    crate::select::select! {
        ended = courier.carry(first, messages) => ended?,
        () = frames.closed() => courier.requests.abort_all(),
    }
    courier.part().await;
    // What still runs may end by itself, as long as anybody takes its answer.
    frames.closed().await;
    Ok(())
}

struct Courier {
    way: Way,
    running: HashMap<Bytes, Running>,
    /// The cancelled ones of them whose answers are still waited for, oldest first.
    lingering: VecDeque<Bytes>,
    requests: JoinSet<Ended>,
    lane: mpsc::Sender<lane::Item>,
    /// The lane, and the stream of what belongs to no call; they say whether the session is lost.
    helpers: JoinSet<bool>,
}

impl Courier {
    fn new(way: Way) -> Self {
        let (lane, items) = mpsc::channel(lane::WAITING);
        let mut helpers = JoinSet::new();
        let lane_of = lane::run(way.client.clone(), way.uri.clone(), items, way.context.clone());
        helpers.spawn(lane_of);
        let (running, lingering) = (HashMap::new(), VecDeque::new());
        Self { way, running, lingering, requests: JoinSet::new(), lane, helpers }
    }

    /// Carries messages until there are none to come.
    async fn carry(&mut self, first: Message, mut messages: mpsc::Receiver<Message>) -> Result<(), String> {
        let mut next = Some(first);
        loop {
            let session_lost = match next.take() {
                Some(message) => self.take(message).await,
                None => crate::select::select! {
                    message = messages.recv() => match message {
                        Some(message) => {
                            next = Some(message);
                            false
                        }
                        None => return Ok(()),
                    },
                    Some(ended) = self.requests.join_next(), if !self.requests.is_empty() => {
                        // One that was let go is forgotten already.
                        ended.is_ok_and(|ended| self.ended(&ended))
                    }
                    Some(ended) = self.helpers.join_next(), if !self.helpers.is_empty() => {
                        ended.unwrap_or_default()
                    }
                },
            };
            if session_lost {
                return Err(SESSION_LOST.to_owned());
            }
        }
    }

    /// Forgets a request; whether the session was lost with it.
    fn ended(&mut self, ended: &Ended) -> bool {
        self.running.remove(&ended.id);
        self.lingering.retain(|id| *id != ended.id);
        ended.session_lost
    }

    /// Sends a message on its way; whether the session turned out to be lost.
    async fn take(&mut self, message: Message) -> bool {
        let text = message.to_bytes();
        let envelope = match Envelope::parse(&text) {
            Ok(envelope) => envelope,
            Err(error) => {
                self.way.context.note(&format!("a message was not sent: {error}"));
                return false;
            }
        };
        match (envelope.kind, &*envelope.method) {
            (Kind::Request, _) => self.request(message, &text, &envelope),
            (Kind::Notification, "notifications/cancelled") => {
                let of = envelope.inner.request_id.clone().map(|span| &text[span]);
                if !self.cancel(of.unwrap_or_default()) {
                    self.pass(message).await;
                }
            }
            (Kind::Notification, "notifications/initialized") => return self.initialized(message).await,
            _ => self.pass(message).await,
        }
        false
    }

    /// To be delivered in its turn.
    async fn pass(&self, message: Message) {
        let _ = self.lane.send((self.way.session.headers(), message)).await;
    }

    fn request(&mut self, message: Message, text: &[u8], envelope: &Envelope) {
        let Some(id) = envelope.id_text(text).map(Bytes::copy_from_slice) else { return };
        let modern = envelope.is_modern();
        let headers = match modern {
            true => modern_headers(envelope, text, &self.way.context),
            false => self.way.session.headers(),
        };
        let (cancel, cancelled) = oneshot::channel();
        let request = Request {
            way: self.way.clone(),
            ticket: std::str::from_utf8(&id).ok().and_then(|id| id.parse().ok()),
            id: id.clone(),
            modern,
            initialize: !modern && &*envelope.method == "initialize",
            probe: modern && &*envelope.method == "server/discover",
        };
        let task = self.requests.spawn(async move {
            let id = request.id.clone();
            let session_lost = crate::select::select! {
                lost = request.run(headers, message) => lost,
                () = given_up(cancelled) => false,
            };
            Ended { id, session_lost }
        });
        self.running.insert(id, Running { modern, cancel: Some(cancel), task });
    }

    /// The call is not waited for much longer; whether its cancellation is thereby said (2026-07-28, Streamable HTTP,
    /// "Cancellation": closing the stream is the way to say it).
    fn cancel(&mut self, id: &[u8]) -> bool {
        let Some((id, _)) = self.running.get_key_value(id) else { return false };
        let id = id.clone();
        let Some(running) = self.running.get_mut(&id) else { return false };
        let modern = running.modern;
        if let Some(cancel) = running.cancel.take() {
            let _ = cancel.send(if modern { Duration::ZERO } else { LINGER });
            if !modern {
                self.lingering.push_back(id);
            }
        }
        // Each has a connection of its own, which a server that says nothing would keep.
        if self.lingering.len() > LINGERING
            && let Some(oldest) = self.lingering.pop_front()
            && let Some(running) = self.running.remove(&oldest)
        {
            running.task.abort();
        }
        modern
    }

    /// What comes after it must not overtake it. From then on the server may speak by itself, and calls wait a moment
    /// for the stream on which it does: what it said before that would be lost.
    /// Whether the server does not know the session any more.
    async fn initialized(&mut self, message: Message) -> bool {
        let Way { client, uri, session, context } = &self.way;
        if let Err(undelivered) = lane::post(client, uri, session.headers(), message).await {
            let why = undelivered.why;
            context.note(&format!("`notifications/initialized` could not be delivered: {why}"));
            if undelivered.session_lost {
                return true;
            }
        }
        let (answered, heard) = oneshot::channel();
        self.helpers.spawn(listen::run(self.way.clone(), answered));
        let _ = tokio::time::timeout(STREAM_PATIENCE, heard).await;
        false
    }

    /// Ends the session.
    async fn part(&mut self) {
        self.helpers.abort_all();
        let Way { client, uri, session, .. } = &self.way;
        if session.is_named() {
            let headers = session.headers();
            let ended = client.send(Method::DELETE, uri, &headers, Pieces::default());
            // A server may refuse that, and one that is gone has no session.
            let _ = tokio::time::timeout(FAREWELL, ended).await;
        }
    }
}

fn modern_headers(envelope: &Envelope, text: &[u8], context: &Context) -> HeaderMap {
    let made = headers::of_request(envelope, text, &context.shared.param_headers());
    let pair = |(name, value): (String, String)| {
        Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
    };
    made.into_iter().filter_map(pair).collect()
}

/// Resolves once the call was cancelled, so long ago that its answer is not waited for any more.
async fn given_up(cancelled: oneshot::Receiver<Duration>) {
    match cancelled.await {
        Ok(linger) => tokio::time::sleep(linger).await,
        Err(_) => std::future::pending().await,
    }
}

/// One request, from its POST to its answer.
struct Request {
    way: Way,
    id: Bytes,
    ticket: Option<Ticket>,
    modern: bool,
    initialize: bool,
    /// The question that tells the eras apart.
    probe: bool,
}

/// How far a stream of the call got.
enum Followed {
    /// To the answer.
    Answered,
    /// It ended or broke off before; where it can be taken up again.
    Cut(String),
}

impl Request {
    /// Whether the server does not know the session any more.
    async fn run(&self, headers: HeaderMap, message: Message) -> bool {
        let Way { client, uri, session, context } = &self.way;
        let had_session = headers.contains_key(SESSION_ID);
        let answer = match client.post(uri, headers, message).await {
            Ok(answer) => answer,
            Err(why) => {
                context.broken(&self.id, &format!("the server could not be reached: {why}")).await;
                return false;
            }
        };
        let status = answer.status();
        if self.initialize && status.is_success() {
            session.named(answer.headers());
        }
        if status == StatusCode::OK && is(answer.headers(), "text/event-stream") {
            return self.stream(answer.into_body()).await;
        } else if status == StatusCode::OK && is(answer.headers(), "application/json") {
            self.json(answer.into_body()).await;
        } else if status.is_success() {
            let (why, _) = refusal(answer).await;
            self.fail(&format!("{why}, which is no answer to a request")).await;
        } else {
            return self.refused(answer, had_session).await;
        }
        false
    }

    async fn refused(&self, answer: Response<Incoming>, had_session: bool) -> bool {
        let status = answer.status();
        let (why, body) = refusal(answer).await;
        // It may say more, in the protocol's own words; of requests it did not read it says so without their ids.
        let said: Option<Value> = serde_json::from_slice(&body).ok();
        let error = said.as_ref().and_then(|said| said.get("error"));
        let id = said.as_ref().and_then(|said| said.get("id"));
        // Some servers give such an answer an id of their own invention.
        let of_this = id.is_some_and(|id| id.to_string().as_bytes() == &self.id[..]);
        if had_session && status == StatusCode::NOT_FOUND && !of_this {
            self.way.context.broken(&self.id, &why).await;
            return true;
        }
        // Whoever is not let in learns nothing of the server's era.
        let shut = matches!(status.as_u16(), 401 | 403);
        if shut && (self.initialize || self.probe) {
            self.fail(&why).await;
            return false;
        }
        match error
            .and_then(|error| Some((error["code"].as_i64()?, error["message"].as_str()?, error.get("data"))))
        {
            Some((code, message, data)) => {
                let data = data.map(Value::to_string);
                let answer = rpc::error_with_data(Some(&self.id), code, message, data.as_deref());
                self.give(answer.to_bytes()).await;
            }
            None if self.initialize && matches!(status.as_u16(), 404 | 405) => {
                let help = "a server of the older transport is reached with `transport = \"sse\"`";
                self.fail(&format!("{why} ({help})")).await;
            }
            // A server that does not know the modern era need not say so in JSON-RPC (2026-07-28, Streamable HTTP,
            // "Backward Compatibility").
            None if self.probe && matches!(status.as_u16(), 400 | 404 | 405 | 406 | 415 | 422) => {
                self.give(rpc::error(Some(&self.id), rpc::PROBE_REFUSED, &why).to_bytes()).await;
            }
            None => self.fail(&why).await,
        }
        false
    }

    async fn json(&self, body: Incoming) {
        let Context { max_message, budget, .. } = &self.way.context;
        match whole(body, *max_message, budget).await {
            Ok(text) => match self.is_answer(&text) {
                true => self.give(text).await,
                false => self.fail("the server's answer to the POST is not one to this request").await,
            },
            Err(unread) => self.unread(unread).await,
        }
    }

    async fn unread(&self, unread: Unread) {
        match unread {
            Unread::Broken(why) => {
                self.way.context.broken(&self.id, &format!("the server's answer broke off: {why}")).await;
            }
            Unread::TooLong(bytes) => self.fail(&self.way.context.too_long(bytes)).await,
            Unread::NoMemory => {
                self.fail("there is no memory for the server's answer (gateway.body_memory)").await
            }
        }
    }

    /// Follows the call's stream, and takes it up again where it breaks off, as far as the server lets it. Whether the
    /// server does not know the session any more.
    async fn stream(&self, body: Incoming) -> bool {
        let Context { max_message, budget, .. } = &self.way.context;
        let mut backoff = Backoff::default();
        let (mut last_id, mut fruitless) = (None::<String>, 0);
        let mut body = Some(body);
        loop {
            let cut = match body.take() {
                Some(body) => {
                    let mut events = Events::new(body, *max_message, budget);
                    let before = last_id.clone();
                    let mut brought = false;
                    match self.follow(&mut events, &mut backoff, &mut brought).await {
                        Ok(Followed::Answered) => return false,
                        Ok(Followed::Cut(why)) => {
                            last_id = events.last_id().map(str::to_owned).or(last_id);
                            if brought || last_id != before {
                                (backoff, fruitless) = (backoff.fresh(), 0);
                            }
                            why
                        }
                        Err(unread) => {
                            self.unread(unread).await;
                            return false;
                        }
                    }
                }
                None => "it could not be taken up again".to_owned(),
            };
            let Some(id) = last_id.as_deref().filter(|_| !self.modern && fruitless < FRUITLESS) else {
                let why = format!("the server's stream ended before the answer: {cut}");
                self.way.context.broken(&self.id, &why).await;
                return false;
            };
            fruitless += 1;
            tokio::time::sleep(backoff.next()).await;
            match listen::open(&self.way, Some(id)).await {
                Ok(again) if again.status() == StatusCode::OK => body = Some(again.into_body()),
                Ok(refused) if refused.status().is_client_error() && !listen::passing(refused.status()) => {
                    let session_lost =
                        refused.status() == StatusCode::NOT_FOUND && self.way.session.is_named();
                    let why = format!("the stream cannot be taken up again: {}", refusal(refused).await.0);
                    self.way.context.broken(&self.id, &why).await;
                    return session_lost;
                }
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Passes on what the stream says; `brought` is set when that is anything.
    async fn follow(
        &self,
        events: &mut Events,
        backoff: &mut Backoff,
        brought: &mut bool,
    ) -> Result<Followed, Unread> {
        loop {
            match events.next().await {
                Ok(Some(Sse::Event { data, .. })) if data.is_empty() => {}
                Ok(Some(Sse::Event { data, .. })) => {
                    *brought = true;
                    let answered = self.is_answer(&data);
                    self.give(data).await;
                    if answered {
                        return Ok(Followed::Answered);
                    }
                }
                Ok(Some(Sse::Retry(ms))) => backoff.asked(ms),
                // It may have been the answer.
                Ok(Some(Sse::TooLong(bytes))) => return Err(Unread::TooLong(bytes)),
                Ok(None) => return Ok(Followed::Cut("the server closed it".to_owned())),
                Err(Unread::Broken(why)) => return Ok(Followed::Cut(why)),
                Err(unread) => return Err(unread),
            }
        }
    }

    fn is_answer(&self, text: &[u8]) -> bool {
        let Ok(envelope) = Envelope::parse(text) else { return false };
        let answers = matches!(envelope.kind, Kind::Result | Kind::Error(_));
        let mine = answers && envelope.id_text(text) == Some(&self.id[..]);
        if mine && self.initialize {
            self.way.session.agreed(text);
        }
        mine
    }

    /// What came on the call's own way.
    async fn give(&self, text: Bytes) {
        self.way.context.give(Frame::Message { text, of: self.ticket }).await;
    }

    async fn fail(&self, why: &str) {
        self.give(rpc::error(Some(&self.id), rpc::INSTANCE_LOST, why).to_bytes()).await;
    }
}
