//! Legacy conversations (revisions up to 2025-11-25): a session that begins with `initialize`, a stream for
//! what the server says unasked, and a new session in place of one the daemon no longer knows.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::core::{Absent, BROKEN, Call, Core, StreamEnd, lock, tell};
use super::http::{BodyError, Connection, Media, Reply};
use super::message::{self, Id, Kind};
use super::modern::PROTOCOL_VERSION;

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// How often a call is tried in a new session when the daemon does not know the last one.
const MAX_SESSIONS_PER_CALL: u32 = 3;
/// How often in a row a call's stream is resumed without bringing anything new.
const MAX_RESUMES: u32 = 100;
/// The pause before a stream is opened again, where the stream did not say.
const RETRY: Duration = Duration::from_secs(1);
/// The bounds of that pause, whatever the stream says.
const RETRY_MIN: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// A session with the daemon.
#[derive(Debug)]
pub(crate) struct Session {
    /// Its number in this process, from 1; a later session has a greater one.
    pub(crate) epoch: u64,
    /// The headers every later request carries.
    headers: HeaderMap,
}

/// Why no session could be opened.
enum OpenError {
    /// The daemon is not there.
    Absent(Absent),
    /// The connection broke: `initialize` has no side effects, so it may be tried again.
    Broken,
    /// The daemon or the server says no, in this message; `later` if it may say yes soon.
    Refused { answer: Bytes, later: bool },
}

/// How the stream of a session ended.
enum ListenEnd {
    /// The daemon has none for it.
    NotOffered,
    /// The session is gone, with the daemon or without.
    Lost,
}

/// The legacy side of the shim.
#[derive(Debug)]
pub(crate) struct Legacy {
    core: Arc<Core>,
    /// The client's `initialize` and its id, to begin again with.
    hello: Mutex<Option<(Id, Bytes)>>,
    /// The client's `notifications/initialized`.
    ready: Mutex<Option<Bytes>>,
    session: watch::Sender<Option<Arc<Session>>>,
    epochs: AtomicU64,
    /// Held while a session is opened in place of a lost one.
    reopening: tokio::sync::Mutex<()>,
    listener: Mutex<Option<JoinHandle<()>>>,
    /// Whether a lost session was already spoken of.
    told: AtomicBool,
}

impl Legacy {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            hello: Mutex::new(None),
            ready: Mutex::new(None),
            session: watch::Sender::new(None),
            epochs: AtomicU64::new(0),
            reopening: tokio::sync::Mutex::new(()),
            listener: Mutex::new(None),
            told: AtomicBool::new(false),
        }
    }

    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.session.borrow().clone()
    }

    /// The client's `initialize`: begins a session and passes the answer on.
    pub(crate) async fn initialize(&self, id: Id, body: Bytes) {
        if let Some(old) = self.session.send_replace(None) {
            self.end(&old).await;
        }
        *lock(&self.hello) = Some((id.clone(), body.clone()));
        *lock(&self.ready) = None;
        match self.open_patiently(&id, &body, false).await {
            Ok((session, answer)) => {
                self.core.deliver(answer, session.epoch).await;
                self.session.send_replace(Some(session));
            }
            Err(OpenError::Refused { answer, .. }) => self.core.out.send(answer).await,
            Err(OpenError::Absent(absent)) => self.core.refuse(&id, &absent.to_string()).await,
            Err(OpenError::Broken) => self.core.refuse(&id, "the daemon keeps closing the connection").await,
        }
    }

    /// The client's `notifications/initialized`: passed on, and the session's stream is opened.
    pub(crate) async fn initialized(self: &Arc<Self>, body: Bytes) {
        *lock(&self.ready) = Some(body.clone());
        self.notify(body, true).await;
        let mut listener = lock(&self.listener);
        if listener.is_none() {
            *listener = Some(tokio::spawn(self.clone().listen()));
        }
    }

    /// Makes a call and answers it.
    pub(crate) async fn call(&self, mut call: Call) {
        let mut sent = call.sent.take();
        for _ in 0..MAX_SESSIONS_PER_CALL {
            let connection = match self.core.connect().await {
                Ok(connection) => connection,
                Err(absent) => return self.core.refuse(&call.id, &absent.to_string()).await,
            };
            let session = self.session();
            let Ok(reply) =
                connection.post(headers(session.as_deref()), call.body.clone(), sent.take()).await
            else {
                return self.core.refuse(&call.id, BROKEN).await;
            };
            let lost = session.as_ref().filter(|_| reply.status == StatusCode::NOT_FOUND);
            let Some(lost) = lost else {
                let epoch = session.as_ref().map_or(0, |session| session.epoch);
                return self.finish(&call, reply, session.as_deref(), epoch).await;
            };
            // 404 says that the session is not known, so nothing was done: the call may be made in a new one.
            drop(reply);
            if let Err(reason) = self.reopen(lost.epoch).await {
                return self.core.refuse(&call.id, &reason).await;
            }
        }
        self.core.refuse(&call.id, "the daemon forgets each new session at once").await;
    }

    async fn finish(&self, call: &Call, reply: Reply, session: Option<&Session>, epoch: u64) {
        let Some(mut events) = self.core.answer(call, reply, epoch).await else {
            return;
        };
        let mut seen = None;
        let mut barren = 0;
        loop {
            let (last_id, retry) = match self.core.follow(&call.id, events, epoch).await {
                StreamEnd::Answered => return,
                StreamEnd::TooLarge => {
                    return self.core.refuse(&call.id, "the answer is over the limit of 64 MiB").await;
                }
                StreamEnd::Unanswered { last_id, retry } => (last_id, retry),
            };
            // A resumed stream that brought no new id goes on from the old one.
            let position = last_id.or_else(|| seen.clone());
            barren = if position == seen { barren + 1 } else { 0 };
            seen = position;
            let Some(id) = seen.as_deref().filter(|_| barren <= MAX_RESUMES) else {
                return self.core.refuse(&call.id, BROKEN).await;
            };
            match self.resume(session, id, retry).await {
                Some(reply) => events = reply.events(),
                None => return self.core.refuse(&call.id, BROKEN).await,
            }
        }
    }

    /// Opens a call's stream again after `last_id`. `None` if it cannot be: the daemon that ran the call is
    /// gone, and nobody else knows its answer.
    async fn resume(
        &self,
        session: Option<&Session>,
        last_id: &str,
        retry: Option<Duration>,
    ) -> Option<Reply> {
        sleep(pause(retry)).await;
        let connection = self.core.dial().await.ok()?;
        let mut headers = headers(session);
        headers.insert(LAST_EVENT_ID, HeaderValue::from_str(last_id).ok()?);
        let reply = connection.get(headers).await.ok()?;
        (reply.status.is_success() && reply.media() == Media::Events).then_some(reply)
    }

    /// Sends a notification. `keep` says whether it still means something in a session that replaced the one
    /// it was written for.
    pub(crate) async fn notify(&self, body: Bytes, keep: bool) {
        for _ in 0..MAX_SESSIONS_PER_CALL {
            let Ok(connection) = self.core.connect().await else {
                return;
            };
            let session = self.session();
            match self.post_note(connection, session.as_deref(), body.clone()).await {
                Some(StatusCode::NOT_FOUND) if keep => {
                    let Some(lost) = session else { return };
                    if self.reopen(lost.epoch).await.is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    }

    /// Sends the client's answer to a request of the server, unless the session it was asked in is gone: in
    /// another session the same id can be another question.
    pub(crate) async fn respond(&self, id: Option<&str>, body: Bytes) {
        let asked_in = id.and_then(|id| self.core.answered(id));
        let session = self.session();
        if asked_in.is_none() || asked_in != session.as_ref().map(|session| session.epoch) {
            return tell("dropped an answer to a request that no longer waits for one");
        }
        if let Ok(connection) = self.core.connect().await {
            self.post_note(connection, session.as_deref(), body).await;
        }
    }

    /// Posts what wants no answer; says what the daemon said, if it was not a success.
    async fn post_note(
        &self,
        connection: Connection,
        session: Option<&Session>,
        body: Bytes,
    ) -> Option<StatusCode> {
        let reply = match connection.post(headers(session), body, None).await {
            Ok(reply) => reply,
            Err(error) => {
                tell(&format!("a notification may not have reached the daemon: {error}"));
                return None;
            }
        };
        let status = reply.status;
        if !status.is_success() && status != StatusCode::NOT_FOUND {
            let said = reply.whole().await.unwrap_or_default();
            let said: String = String::from_utf8_lossy(&said).chars().take(300).collect();
            tell(&format!("the daemon refused a notification with {status}: {said}"));
        }
        Some(status)
    }

    /// The session that replaces the one of epoch `lost`: whoever comes first opens it with the client's own
    /// `initialize` and swallows the answer.
    async fn reopen(&self, lost: u64) -> Result<Arc<Session>, String> {
        let _one_at_a_time = self.reopening.lock().await;
        if let Some(session) = self.session().filter(|session| session.epoch > lost) {
            return Ok(session);
        }
        let Some((id, body)) = lock(&self.hello).clone() else {
            return Err("the session is gone and the client never sent `initialize`".to_owned());
        };
        if !self.told.swap(true, Ordering::Relaxed) {
            tell("the daemon no longer knows this session; beginning a new one");
        }
        match self.open_patiently(&id, &body, true).await {
            Ok((session, _swallowed)) => {
                self.session.send_replace(Some(session.clone()));
                self.told.store(false, Ordering::Relaxed);
                let ready = lock(&self.ready).clone();
                if let Some(ready) = ready
                    && let Ok(connection) = self.core.connect().await
                {
                    self.post_note(connection, Some(&session), ready).await;
                }
                Ok(session)
            }
            Err(OpenError::Absent(absent)) => Err(absent.to_string()),
            Err(OpenError::Broken) => Err("the daemon keeps closing the connection".to_owned()),
            Err(OpenError::Refused { answer, .. }) => Err(format!(
                "the session was lost and a new one was refused: {}",
                String::from_utf8_lossy(&answer)
            )),
        }
    }

    /// Opens a session; tries again within the patience what may work later. A refusal is final, except that
    /// with `insist` one for lack of room or readiness is tried again.
    async fn open_patiently(
        &self,
        id: &str,
        body: &Bytes,
        insist: bool,
    ) -> Result<(Arc<Session>, Bytes), OpenError> {
        let deadline = Instant::now() + self.core.limits.patience;
        let mut wait = self.core.limits.first_pause;
        loop {
            let error = match self.open(id, body).await {
                Ok(opened) => return Ok(opened),
                Err(error) => error,
            };
            let again = match &error {
                OpenError::Absent(_) => false,
                OpenError::Broken => true,
                OpenError::Refused { later, .. } => insist && *later,
            };
            if !again || Instant::now() + wait > deadline {
                return Err(error);
            }
            sleep(wait).await;
            wait = (wait * 2).min(self.core.limits.longest_pause);
        }
    }

    async fn open(&self, id: &str, body: &Bytes) -> Result<(Arc<Session>, Bytes), OpenError> {
        let connection = self.core.connect().await.map_err(OpenError::Absent)?;
        let reply =
            connection.post(HeaderMap::new(), body.clone(), None).await.map_err(|_| OpenError::Broken)?;
        let status = reply.status;
        let session_id = reply.header(&SESSION_ID).cloned();
        let epoch = self.epochs.fetch_add(1, Ordering::Relaxed) + 1;
        let answer = self.hello_answer(id, reply, epoch).await?;
        let version = message::negotiated_version(&answer).filter(|_| status.is_success());
        let Some(version) = version.and_then(|version| HeaderValue::from_str(&version).ok()) else {
            let later = status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS;
            return Err(OpenError::Refused { answer, later });
        };
        let mut headers = HeaderMap::new();
        headers.insert(PROTOCOL_VERSION, version);
        if let Some(session_id) = session_id {
            headers.insert(SESSION_ID, session_id);
        }
        Ok((Arc::new(Session { epoch, headers }), answer))
    }

    /// The answer to `initialize`, from either kind of body. Anything else on the stream is passed on.
    async fn hello_answer(&self, id: &str, reply: Reply, epoch: u64) -> Result<Bytes, OpenError> {
        let status = reply.status;
        if !status.is_success() || reply.media() != Media::Events {
            let body = reply.whole().await.map_err(|_| OpenError::Broken)?;
            return Ok(if is_answer(&body, id) {
                body
            } else {
                message::error_from_http(id, status.as_u16(), &body)
            });
        }
        let mut events = reply.events();
        loop {
            match events.next().await {
                Ok(Some(body)) if is_answer(&body, id) => return Ok(body),
                Ok(Some(body)) => drop(self.core.deliver(body, epoch).await),
                Ok(None) | Err(BodyError::Cut | BodyError::TooLarge) => return Err(OpenError::Broken),
            }
        }
    }

    /// Keeps the stream of the current session open, whichever that is. Ends only by being aborted.
    async fn listen(self: Arc<Self>) {
        let mut sessions = self.session.subscribe();
        loop {
            let session = sessions.borrow_and_update().clone();
            if let Some(session) = session {
                let lost = matches!(self.listen_to(&session).await, ListenEnd::Lost);
                if lost && self.reopen(session.epoch).await.is_ok() {
                    continue;
                }
            }
            if sessions.changed().await.is_err() {
                return;
            }
        }
    }

    async fn listen_to(&self, session: &Session) -> ListenEnd {
        let mut last_id: Option<String> = None;
        loop {
            let Ok(connection) = self.core.connect().await else {
                return ListenEnd::Lost;
            };
            let mut headers = session.headers.clone();
            if let Some(id) = last_id.as_deref().and_then(|id| HeaderValue::from_str(id).ok()) {
                headers.insert(LAST_EVENT_ID, id);
            }
            let mut retry = None;
            match connection.get(headers).await {
                Ok(reply) if reply.status.is_success() && reply.media() == Media::Events => {
                    let mut events = reply.events();
                    while let Ok(Some(body)) = events.next().await {
                        self.core.deliver(body, session.epoch).await;
                    }
                    let (id, asked) = events.position();
                    last_id = id.or(last_id);
                    retry = asked;
                }
                Ok(reply) if reply.status == StatusCode::NOT_FOUND => return ListenEnd::Lost,
                // An earlier stream of this session may still be held, or the daemon is short of something.
                Ok(reply) if reply.status == StatusCode::CONFLICT || reply.status.is_server_error() => {}
                Ok(_) => return ListenEnd::NotOffered,
                Err(_) => {}
            }
            sleep(pause(retry)).await;
        }
    }

    /// Stops listening and ends the session, so that the daemon need not wait for it to expire.
    pub(crate) async fn close(&self) {
        if let Some(listener) = lock(&self.listener).take() {
            listener.abort();
        }
        if let Some(session) = self.session.send_replace(None) {
            self.end(&session).await;
        }
    }

    async fn end(&self, session: &Session) {
        if !session.headers.contains_key(SESSION_ID) {
            return;
        }
        let goodbye = async {
            if let Ok(connection) = self.core.dial().await {
                // Whatever it answers, there is nothing more to do for this session.
                let _ = connection.delete(session.headers.clone()).await;
            }
        };
        let _ = timeout(self.core.limits.grace, goodbye).await;
    }
}

fn headers(session: Option<&Session>) -> HeaderMap {
    session.map(|session| session.headers.clone()).unwrap_or_default()
}

fn is_answer(body: &[u8], id: &str) -> bool {
    matches!(message::kind(body), Ok(Kind::Response { id: Some(theirs), .. }) if *theirs == *id)
}

fn pause(retry: Option<Duration>) -> Duration {
    retry.unwrap_or(RETRY).clamp(RETRY_MIN, RETRY_MAX)
}
