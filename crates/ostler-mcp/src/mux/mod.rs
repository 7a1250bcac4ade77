//! Who owns which message on one process.
//!
//! Sessions come and go on a process that knows nothing of them. The mux gives each call an id of its own on
//! the wire (its *ticket*) and keeps what is needed to bring everything about it back to its session:
//!
//! ```text
//!   session 7   id "a", token 1 ─┐                                 ┌─ ticket 41, token 41 ─►
//!   session 9   id "a", token 1 ─┴─► tickets 41, 42 ──► one pipe ──┴─ ticket 42, token 42 ─►  process
//!
//!   answer 42        ─► session 9, id "a"          exact: the ticket
//!   progress 41      ─► session 7, token 1         exact: the ticket
//!   request "s1"     ─► whose?                     exact only with one session or one call in flight,
//!                                                  else refused with -32601: never guessed, never broadcast
//! ```
//!
//! A legacy process that was seen to send requests of its own is given one call at a time while several
//! sessions share it, so that what it asks has one owner. A call whose client gave up stays *in flight* for
//! attribution (the process may still ask on its behalf) until it answers or [`Mux::LINGER_MS`] passes.
//!
//! Over Streamable HTTP each call has a stream of its own, and what comes on it belongs to that call (2025-11-25,
//! "Sending Messages to the Server"): there the owner is known, whatever else runs, and such a server need not be
//! given one call at a time.
//!
//! A request of the process is tied to a call only where that call was the only one. It outlives the call's
//! answer, since a process may ask for something (`roots/list`) that no call needs; it ends with its own answer,
//! its cancellation, its session, or after `timeouts.call_max`.
//!
//! Pure: time comes in, actions go out as [`Out`]. The connection's task performs them.

mod client;
mod server;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
pub use client::NotWaiting;
use ostler_domain::{Concurrency, Era};

use crate::envelope::Kind;
use crate::message::Message;
use crate::rpc;

/// Names a session on a mux; never given twice in the life of the daemon.
pub type SessionKey = u64;
/// Names a call on a process: its id on the wire.
pub type Ticket = u64;
/// Names a request of the process on its way to a session: its id on the client's side.
pub type ReverseId = u64;

/// How a process is shared, and what bounds it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The era of the process.
    pub era: Era,
    /// Whether one session alone has the process for all its life.
    pub exclusive: bool,
    /// When calls of several sessions may overlap.
    pub concurrency: Concurrency,
    /// Whether the server is known to send requests of its own.
    pub asks_back: bool,
    /// Whether each call has a stream of its own from the server. What comes on another then belongs to no certain call,
    /// however many run: the two are not in one order.
    pub streams_per_call: bool,
    /// Most calls in flight and waiting together (`limits.instance_calls`).
    pub max_calls: usize,
    /// Longest silence of a call, in milliseconds (`timeouts.call_idle`).
    pub call_idle_ms: u64,
    /// Longest duration of a call, in milliseconds (`timeouts.call_max`).
    pub call_max_ms: u64,
    /// Ids of reverse requests start above this; distinct for each generation of an instance.
    pub reverse_base: ReverseId,
}

/// What sort of call it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallKind {
    /// A client's request.
    Call,
    /// A client's request of a kind that is answered from what the server knows (lists, completions): no server
    /// asks back for it, so it does not linger when its client gives up.
    Quiet,
    /// `subscriptions/listen`: it is answered when it ends, so no clock runs against it.
    Listen,
    /// A request of the gateway itself (handshake, probe); it has no session.
    Internal,
}

impl CallKind {
    /// The kind of a client's request with this method.
    pub fn of(method: &str) -> Self {
        match method {
            "subscriptions/listen" => Self::Listen,
            "ping"
            | "tools/list"
            | "prompts/list"
            | "resources/list"
            | "resources/templates/list"
            | "resources/subscribe"
            | "resources/unsubscribe"
            | "logging/setLevel"
            | "completion/complete" => Self::Quiet,
            _ => Self::Call,
        }
    }

    /// Whether it is a client's request that is answered in its time.
    fn is_call(self) -> bool {
        matches!(self, Self::Call | Self::Quiet)
    }
}

/// A request on its way to the process.
#[derive(Debug)]
pub struct Request<S> {
    /// Its id on the wire; [`Request::wire`] carries it already.
    pub ticket: Ticket,
    /// The session it belongs to; none for modern requests, whose calls have no conversation.
    pub session: Option<SessionKey>,
    /// The client's own id, exactly as sent.
    pub client_id: Bytes,
    /// The client's own progress token, exactly as sent.
    pub client_token: Option<Bytes>,
    /// What sort of call it is.
    pub kind: CallKind,
    /// Methods that change what a session is told, handled apart on a shared process.
    pub special: Option<Special>,
    /// Whether a modern request asked for log messages.
    pub wants_log: bool,
    /// The request as the process is to read it.
    pub wire: Message,
    /// Where its answer goes.
    pub sink: S,
}

/// Legacy methods whose effect a shared process cannot tell apart by session, so that the mux keeps the account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Special {
    /// `ping`: answered here where calls wait for one another.
    Ping,
    /// `logging/setLevel`.
    SetLevel(Box<str>),
    /// `resources/subscribe` to this address.
    Subscribe(Box<str>),
    /// `resources/unsubscribe` from this address.
    Unsubscribe(Box<str>),
}

/// The answer to a call.
#[derive(Clone, Debug)]
pub struct Answer {
    /// [`Kind::Result`] or [`Kind::Error`].
    pub kind: Kind,
    /// The answer with the client's own id.
    pub message: Message,
}

/// What the connection is to do.
#[derive(Debug)]
pub enum Out<S> {
    /// Write this to the process.
    Write(Message),
    /// Write this to the process: an answer to a request of its own that no client gave. It decides how many there are
    /// of these, so they are to be bounded where it does not read them.
    Reply(Message),
    /// The call is over: give its answer to its sink.
    Finish(S, Answer),
    /// Give this to the running call's sink, ahead of its answer. With `reverse`, it is a request of the
    /// process: if it cannot be delivered, say so with [`Mux::undeliverable`].
    Emit {
        /// The call.
        ticket: Ticket,
        /// The message for its client.
        message: Message,
        /// Set for a request of the process.
        reverse: Option<ReverseId>,
    },
    /// Give this to the session itself: it belongs to no running call.
    ToSession {
        /// The session.
        session: SessionKey,
        /// The message for its client.
        message: Message,
        /// Set for a request of the process.
        reverse: Option<ReverseId>,
    },
    /// Something to count or to say.
    Note(Note),
}

/// Something the mux noticed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// The process wrote a line that is no message.
    Rubbish(Bytes),
    /// An answer, progress or cancellation for something that is not running.
    Stray(&'static str),
    /// A request or notification of a process that no session uses: as it starts, a server may ask for roots or
    /// tell of its tools, and there is nobody to hear it.
    Unheard,
    /// The server sends requests of its own: to be remembered.
    AsksBack,
    /// A request of the process had no certain owner and was refused.
    RequestRefused {
        /// Its method.
        method: Box<str>,
        /// Why nobody could be said to own it.
        reason: &'static str,
    },
    /// A notification of the process had no certain owner and was dropped.
    NotificationDropped {
        /// Its method.
        method: Box<str>,
        /// Why nobody could be said to own it.
        reason: &'static str,
    },
    /// A call was refused or ended by a limit.
    LimitReached(&'static str),
}

/// A call in flight.
#[derive(Debug)]
struct Call<S> {
    session: Option<SessionKey>,
    client_id: Bytes,
    client_token: Option<Bytes>,
    kind: CallKind,
    started_ms: u64,
    active_ms: u64,
    /// `None` once its client gave up: it only counts for attribution.
    sink: Option<S>,
}

/// A call that waits for its turn.
#[derive(Debug)]
struct Waiting<S> {
    since_ms: u64,
    request: Request<S>,
}

/// What a session is owed.
#[derive(Debug, Default)]
struct Session {
    /// The log level it asked for, as a rank of [`severity`].
    level: Option<u8>,
    /// Its share of [`Mux::in_flight`].
    in_flight: usize,
    /// Those of its calls in flight that it still waits for.
    open: BTreeSet<Ticket>,
}

/// A request of the process that waits for a session's answer.
#[derive(Debug)]
struct Reverse {
    session: SessionKey,
    /// The process's own id, exactly as sent.
    server_id: Bytes,
    /// The process's own progress token in it, exactly as sent.
    server_token: Option<Bytes>,
    /// The call it was sent for, where that is certain.
    ticket: Option<Ticket>,
    asked_ms: u64,
}

/// The account of one process; see the module's documentation.
#[derive(Debug)]
pub struct Mux<S> {
    settings: Settings,
    calls: HashMap<Ticket, Call<S>>,
    by_client: HashMap<(SessionKey, Bytes), Ticket>,
    waiting: VecDeque<Waiting<S>>,
    sessions: HashMap<SessionKey, Session>,
    reverse: HashMap<ReverseId, Reverse>,
    next_reverse: ReverseId,
    /// Who subscribed to which resource (legacy).
    resources: HashMap<Box<str>, Vec<SessionKey>>,
    /// The log level last asked of the process, as a rank.
    process_level: Option<u8>,
    /// Calls in flight that count for attribution: neither internal ones nor subscriptions.
    in_flight: usize,
    /// Those of them whose clients gave up.
    lingering: usize,
    /// Modern calls in flight that asked for log messages.
    loggers: BTreeSet<Ticket>,
    /// When the first clock of a call or of a request of the process may run out.
    next_expiry_ms: u64,
    /// The call on whose own stream the message came that is looked at, over a transport that has such streams.
    on_stream_of: Option<Ticket>,
    /// Who left last, and when, in milliseconds.
    left: Option<(SessionKey, u64)>,
    /// When anybody else left last.
    left_before_ms: Option<u64>,
}

impl<S> Mux<S> {
    /// How long a call that its client gave up still counts as possibly running, in milliseconds.
    pub const LINGER_MS: u64 = 15_000;
    /// Most requests of the process that may wait for answers of clients.
    pub const MAX_REVERSE: usize = 256;
    /// Most resource subscriptions kept for a process.
    pub const MAX_RESOURCES: usize = 10_000;

    /// An empty account.
    pub fn new(settings: Settings) -> Self {
        let next_reverse = settings.reverse_base;
        Self {
            settings,
            calls: HashMap::new(),
            by_client: HashMap::new(),
            waiting: VecDeque::new(),
            sessions: HashMap::new(),
            reverse: HashMap::new(),
            next_reverse,
            resources: HashMap::new(),
            process_level: None,
            in_flight: 0,
            lingering: 0,
            loggers: BTreeSet::new(),
            next_expiry_ms: u64::MAX,
            on_stream_of: None,
            left: None,
            left_before_ms: None,
        }
    }

    /// The sink of a running call.
    pub fn sink(&mut self, ticket: Ticket) -> Option<&mut S> {
        self.calls.get_mut(&ticket).and_then(|call| call.sink.as_mut())
    }

    /// Calls whose clients wait for them, in flight or in line.
    pub fn open_calls(&self) -> usize {
        self.in_flight - self.lingering + self.waiting.len()
    }

    /// Sessions attached.
    pub fn attached(&self) -> usize {
        self.sessions.len()
    }

    /// Whether nothing is kept of anybody: no call, nothing that waits, no session.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        let counts = (self.in_flight, self.lingering) == (0, 0);
        let calls = self.calls.is_empty() && self.by_client.is_empty() && self.waiting.is_empty();
        let sessions = self.sessions.is_empty() && self.resources.is_empty() && self.reverse.is_empty();
        counts && calls && sessions && self.loggers.is_empty()
    }

    /// Tells the era once the handshake has found it out.
    pub fn set_era(&mut self, era: Era) {
        self.settings.era = era;
    }

    /// Calls may be silent, and last, for so long from now on; also those that run. Whoever calls this asks
    /// [`Self::next_expiry_ms`] again.
    pub fn set_deadlines(&mut self, call_idle_ms: u64, call_max_ms: u64, now_ms: u64) {
        (self.settings.call_idle_ms, self.settings.call_max_ms) = (call_idle_ms, call_max_ms);
        // The next look at the clocks reckons with these.
        self.wake_at(now_ms);
    }

    /// Whether calls go one at a time now.
    fn serial(&self) -> bool {
        self.settings.era == Era::Legacy
            && !self.settings.exclusive
            && match self.settings.concurrency {
                Concurrency::Serial => true,
                Concurrency::Auto => self.settings.asks_back && self.sessions.len() > 1,
                Concurrency::Concurrent => false,
            }
    }

    fn register(&mut self, request: Request<S>, now_ms: u64) -> Message {
        if request.kind.is_call() {
            self.in_flight += 1;
            if let Some(session) = request.session.and_then(|session| self.sessions.get_mut(&session)) {
                session.in_flight += 1;
                session.open.insert(request.ticket);
            }
        }
        if request.kind != CallKind::Listen {
            let clock = self.settings.call_idle_ms.min(self.settings.call_max_ms);
            self.wake_at(now_ms.saturating_add(clock));
        }
        if request.wants_log {
            self.loggers.insert(request.ticket);
        }
        let call = Call {
            session: request.session,
            client_id: request.client_id,
            client_token: request.client_token,
            kind: request.kind,
            started_ms: now_ms,
            active_ms: now_ms,
            sink: Some(request.sink),
        };
        self.calls.insert(request.ticket, call);
        request.wire
    }

    /// Has [`Mux::expire`] called at this time at the latest.
    fn wake_at(&mut self, due_ms: u64) {
        self.next_expiry_ms = self.next_expiry_ms.min(due_ms);
    }

    /// Forgets a call; the caller ends its sink.
    fn remove(&mut self, ticket: Ticket) -> Option<Call<S>> {
        let call = self.calls.remove(&ticket)?;
        if call.kind.is_call() {
            self.in_flight -= 1;
            self.lingering -= usize::from(call.sink.is_none());
            if let Some(session) = call.session.and_then(|session| self.sessions.get_mut(&session)) {
                session.in_flight -= 1;
            }
        }
        if call.sink.is_some() {
            self.not_open(ticket, call.session, &call.client_id);
        }
        Some(call)
    }

    /// Nobody waits for this call any more.
    fn not_open(&mut self, ticket: Ticket, session: Option<SessionKey>, client_id: &Bytes) {
        self.loggers.remove(&ticket);
        let Some(session) = session else { return };
        self.by_client.remove(&(session, client_id.clone()));
        if let Some(session) = self.sessions.get_mut(&session) {
            session.open.remove(&ticket);
        }
    }

    /// Ends the sink of a call in flight without an answer of the process, which is told so. On a legacy process
    /// the call lingers: the process may go on with it, and ask on its behalf.
    fn abandon(&mut self, ticket: Ticket, code: i64, reason: &str, now_ms: u64, out: &mut Vec<Out<S>>) {
        let Some(call) = self.calls.get_mut(&ticket) else { return };
        let Some(sink) = call.sink.take() else { return };
        call.active_ms = now_ms;
        let (client_id, session, kind) = (call.client_id.clone(), call.session, call.kind);
        self.lingering += usize::from(kind.is_call());
        self.not_open(ticket, session, &client_id);
        out.push(Out::Write(rpc::cancelled(&ticket.to_string(), reason)));
        out.push(finish_error(sink, &client_id, code, reason));
        if self.settings.era == Era::Legacy && kind == CallKind::Call {
            self.wake_at(now_ms.saturating_add(Self::LINGER_MS));
        } else {
            self.remove(ticket);
        }
        let asked = |reverse: &Reverse| reverse.ticket == Some(ticket);
        self.refuse_waiting(asked, reason, out);
    }

    /// Refuses those requests of the process that wait for a client.
    fn refuse_waiting(&mut self, which: impl Fn(&Reverse) -> bool, reason: &str, out: &mut Vec<Out<S>>) {
        if self.reverse.is_empty() {
            return;
        }
        let mut asked: Vec<ReverseId> =
            self.reverse.iter().filter(|(_, reverse)| which(reverse)).map(|(id, _)| *id).collect();
        asked.sort_unstable();
        for id in asked {
            self.undeliverable(id, reason, out);
        }
    }

    /// Lets waiting calls go where the process may have them now.
    fn admit(&mut self, now_ms: u64, out: &mut Vec<Out<S>>) {
        while self.in_flight == 0 || !self.serial() {
            let Some(waiting) = self.waiting.pop_front() else { return };
            out.push(Out::Write(self.register(waiting.request, now_ms)));
        }
    }

    /// Ends every call and everything that waits, in the order in which they came, with the reason; for a process
    /// that is gone.
    pub fn fail_all(&mut self, reason: &str, out: &mut Vec<Out<S>>) {
        let mut calls: Vec<(Ticket, Call<S>)> = self.calls.drain().collect();
        calls.sort_unstable_by_key(|(ticket, _)| *ticket);
        for (_, call) in calls {
            if let Some(sink) = call.sink {
                out.push(finish_error(sink, &call.client_id, rpc::INSTANCE_LOST, reason));
            }
        }
        for Waiting { request, .. } in std::mem::take(&mut self.waiting) {
            out.push(finish_error(request.sink, &request.client_id, rpc::INSTANCE_LOST, reason));
        }
        self.by_client.clear();
        self.reverse.clear();
        self.loggers.clear();
        for session in self.sessions.values_mut() {
            session.in_flight = 0;
            session.open.clear();
        }
        (self.in_flight, self.lingering) = (0, 0);
        self.next_expiry_ms = u64::MAX;
    }

    /// When [`Mux::expire`] is due next, in milliseconds of the caller's clock.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        (self.next_expiry_ms != u64::MAX).then_some(self.next_expiry_ms)
    }

    /// Ends the calls whose time is over: silent for too long, running or waiting for too long, or given up long
    /// ago; and refuses the requests of the process that no client answered in time.
    pub fn expire(&mut self, now_ms: u64, out: &mut Vec<Out<S>>) {
        let mut over: Vec<Ticket> = self
            .calls
            .iter()
            .filter(|(_, call)| self.due_ms(call) <= now_ms)
            .map(|(ticket, _)| *ticket)
            .collect();
        over.sort_unstable();
        for ticket in over {
            self.time_out(ticket, now_ms, out);
        }
        let max_ms = self.settings.call_max_ms;
        while let Some(Waiting { request, .. }) =
            self.waiting.pop_front_if(|first| first.since_ms.saturating_add(max_ms) <= now_ms)
        {
            if let Some(session) = request.session {
                self.by_client.remove(&(session, request.client_id.clone()));
            }
            let reason =
                format!("the call was ended after waiting {max_ms} ms for its turn (timeouts.call_max)");
            out.push(finish_error(request.sink, &request.client_id, rpc::CALL_TIMED_OUT, &reason));
            out.push(Out::Note(Note::LimitReached("timeouts.call_max")));
        }
        let unanswered = format!("the client did not answer within {max_ms} ms (timeouts.call_max)");
        self.refuse_waiting(|asked| asked.asked_ms.saturating_add(max_ms) <= now_ms, &unanswered, out);
        let calls = self.calls.values().map(|call| self.due_ms(call));
        let waiting = self.waiting.front().map(|first| first.since_ms.saturating_add(max_ms));
        let asked = self.reverse.values().map(|asked| asked.asked_ms.saturating_add(max_ms));
        self.next_expiry_ms = calls.chain(waiting).chain(asked).min().unwrap_or(u64::MAX);
        self.admit(now_ms, out);
    }

    /// When the first of a call's clocks runs out.
    fn due_ms(&self, call: &Call<S>) -> u64 {
        let longest = call.started_ms.saturating_add(self.settings.call_max_ms);
        match (call.kind, &call.sink) {
            (CallKind::Listen, _) => u64::MAX,
            // Progress keeps it lingering, but not for ever.
            (_, None) => call.active_ms.min(longest).saturating_add(Self::LINGER_MS),
            (_, Some(_)) => call.active_ms.saturating_add(self.settings.call_idle_ms).min(longest),
        }
    }

    /// Ends a call whose clock ran out. A legacy one lingers: the process may go on with it.
    fn time_out(&mut self, ticket: Ticket, now_ms: u64, out: &mut Vec<Out<S>>) {
        let Some(call) = self.calls.get(&ticket) else { return };
        if call.sink.is_none() {
            self.remove(ticket);
            return;
        }
        let (limit, name) = if call.started_ms.saturating_add(self.settings.call_max_ms) <= now_ms {
            (self.settings.call_max_ms, "timeouts.call_max")
        } else {
            (self.settings.call_idle_ms, "timeouts.call_idle")
        };
        let reason = format!("the call was ended after {limit} ms ({name})");
        self.abandon(ticket, rpc::CALL_TIMED_OUT, &reason, now_ms, out);
        out.push(Out::Note(Note::LimitReached(name)));
    }
}

/// The end of a call that did not get an answer from the process.
fn finish_error<S>(sink: S, client_id: &[u8], code: i64, reason: &str) -> Out<S> {
    Out::Finish(sink, Answer { kind: Kind::Error(code), message: rpc::error(Some(client_id), code, reason) })
}

/// The rank of a log level, from 0 for `debug` (RFC 5424 severities, reversed); `None` for any other word.
fn severity(level: &str) -> Option<u8> {
    const LEVELS: [&str; 8] =
        ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];
    LEVELS.iter().position(|known| *known == level).and_then(|rank| u8::try_from(rank).ok())
}
