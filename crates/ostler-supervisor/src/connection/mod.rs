//! The connection to one process, or to one server on the network: one task owns the way there (`ends`), the way
//! back and the account of who waits for what ([`ostler_mcp::mux`]).
//!
//! ```text
//!   callers ──ToProcess (bounded)──► task ──► stdin
//!      ▲                              │ ▲
//!      └──CallSink / ReplayStream─────┘ └──── stdout
//! ```
//!
//! The task is all of the data plane: it takes no lock that the control plane takes, and never waits for a
//! client. What comes over the network is carried by tasks of `upstream`, which wait in its place. A client that does
//! not read has its stream cut; a process that does not read has its callers wait, and of what it asks itself only
//! so much is answered (`replies`).

mod ends;
mod outgoing;
mod replies;
mod sink;
mod task;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use ostler_domain::{Era, Generation, InstanceId};
use ostler_mcp::headers::ParamHeaders;
use ostler_mcp::mux::{Answer, CallKind, NotWaiting, Note, Request, SessionKey, Settings, Special, Ticket};
use ostler_mcp::{Envelope, Message};
use tokio::sync::{mpsc, oneshot};

pub(crate) use ends::{Frame, LINK, Link};
pub use sink::{CallSink, CallStream, First, STREAM_QUEUE, Undelivered};

use crate::budget::Budget;
use crate::events::Events;
use crate::launch::{Input, Output};
use crate::log::Log;
use crate::stream::ReplayStream;
use crate::upstream::Target;
use ends::{Reader, Writer};
use outgoing::Outgoing;

/// Messages that may wait for the task of a connection.
const QUEUE: usize = 1024;

/// What the task is told.
#[derive(Debug)]
enum ToProcess {
    /// A request.
    Call(Request<CallSink>),
    /// A session begins to use the process; messages that belong to no call of it go to the stream.
    Attach(SessionKey, Arc<ReplayStream>),
    /// A session ends.
    Detach(SessionKey),
    /// `notifications/cancelled` of a session for its own id.
    Cancel(SessionKey, Bytes),
    /// A modern client hung up.
    HungUp(Ticket),
    /// Any other notification of a session.
    Notification(SessionKey, Bytes, Envelope, oneshot::Sender<Result<(), NotWaiting>>),
    /// A session's answer to a request of the process.
    Answer(SessionKey, Bytes, Envelope, oneshot::Sender<Result<(), NotWaiting>>),
    /// A notification of the gateway's own.
    Tell(Message),
    /// The handshake found the era out.
    Era(Era),
}

/// Orders of the driver; they go ahead of everything else.
#[derive(Debug)]
enum Order {
    /// Refuse new calls and tell when none runs.
    Drain(oneshot::Sender<()>),
    /// Calls may be silent, and last, for so long from now on, in milliseconds.
    Deadlines(u64, u64),
    /// Close standard input.
    CloseStdin,
    /// Every waiting call gets this error, and every later one too.
    Fail(String),
}

/// Why a message did not reach the process.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendError {
    /// The connection is closed: the process is gone or stopping.
    #[error("the instance is not there any more")]
    Closed,
    /// The process has not taken anything for too long.
    #[error("the server has not read its input for {0:?}")]
    NotReading(Duration),
}

/// What a connection is made of.
#[derive(Debug)]
pub struct Parts {
    /// The instance.
    pub instance: InstanceId,
    /// Which of its processes.
    pub generation: Generation,
    /// How it is shared.
    pub settings: Settings,
    /// Longest message of the process, in bytes.
    pub max_message: usize,
    /// The bytes that bodies may hold.
    pub budget: Arc<Budget>,
    /// Where what it writes besides messages goes.
    pub log: Arc<Log>,
    /// Where refusals and drops are recorded.
    pub events: Arc<Events>,
    /// Where the driver hears of it.
    pub news: mpsc::Sender<News>,
}

/// What a connection tells the driver of its instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum News {
    /// The server sends requests of its own.
    AsksBack,
    /// The server closed its output: no answer can come any more.
    OutputClosed,
    /// The server closed its input: no request can reach it any more.
    InputClosed,
    /// The stream on which the server says what belongs to no call is lost, and being asked for again.
    StreamLost,
    /// That stream is there again.
    StreamBack,
}

/// A connection, as its users hold it. Dropping the last handle does not end it; the driver does.
#[derive(Debug)]
pub struct Connection {
    generation: Generation,
    sender: mpsc::Sender<ToProcess>,
    orders: mpsc::Sender<Order>,
    tickets: AtomicU64,
    state: Arc<Shared>,
}

/// What the task publishes for readers.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    open_calls: AtomicUsize,
    attached: AtomicUsize,
    param_headers: RwLock<Arc<ParamHeaders>>,
}

impl Shared {
    /// See [`Connection::param_headers`].
    pub(crate) fn param_headers(&self) -> Arc<ParamHeaders> {
        Arc::clone(&self.param_headers.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// A request of the gateway's own that somebody waits for.
struct Asked<'a> {
    connection: &'a Connection,
    ticket: Ticket,
    answered: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.connection.hung_up(self.ticket);
        }
    }
}

impl Connection {
    /// Starts the task of a connection on the process's standard input and output.
    pub fn open(stdin: Input, stdout: Output, parts: Parts) -> Arc<Self> {
        let writer = Writer::Pipe(stdin, Outgoing::default());
        Self::start(writer, Reader::Pipe(stdout), parts, Arc::default())
    }

    /// Starts the task of a connection to a server on the network, and those that carry its messages.
    pub(crate) fn open_upstream(target: Target, parts: Parts) -> Arc<Self> {
        let state = Arc::new(Shared::default());
        let Link { to_server, from_server } = crate::upstream::start(target, &parts, Arc::clone(&state));
        let writer = Writer::Queue(to_server, VecDeque::new(), 0);
        Self::start(writer, Reader::Queue(from_server, Vec::new()), parts, state)
    }

    fn start(writer: Writer, reader: Reader, parts: Parts, state: Arc<Shared>) -> Arc<Self> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (orders, order_receiver) = mpsc::channel(8);
        let generation = parts.generation;
        let task = task::Task::new(parts, writer, Arc::clone(&state));
        tokio::spawn(task.run(reader, receiver, order_receiver));
        Arc::new(Self { generation, sender, orders, tickets: AtomicU64::new(0), state })
    }

    /// Which of the instance's processes it leads to.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Calls of clients that run or wait; what the gateway asks on its own account is not counted.
    pub fn open_calls(&self) -> usize {
        self.state.open_calls.load(Ordering::Relaxed)
    }

    /// Sessions attached.
    pub fn attached(&self) -> usize {
        self.state.attached.load(Ordering::Relaxed)
    }

    /// The parameters that this server's tools mirror into headers.
    pub fn param_headers(&self) -> Arc<ParamHeaders> {
        self.state.param_headers()
    }

    /// Learns from an answer to `tools/list`; returns the cursor of the next page.
    pub fn learn_tools(&self, answer: &[u8]) -> Option<String> {
        let mut slot = self.state.param_headers.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::make_mut(&mut slot).learn(answer)
    }

    /// A new ticket: the id of a call on the wire.
    pub fn ticket(&self) -> Ticket {
        self.tickets.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Sends a request of a client.
    ///
    /// # Errors
    /// When it did not reach the connection within `patience`.
    pub async fn call(&self, call: Request<CallSink>, patience: Duration) -> Result<(), SendError> {
        self.send(ToProcess::Call(call), patience).await
    }

    /// Sends a request of the gateway's own and waits for its answer. When nobody waits any more, it is cancelled.
    ///
    /// # Errors
    /// When the connection closes first.
    pub async fn ask(&self, message: impl FnOnce(Ticket) -> Message) -> Result<Answer, SendError> {
        let (sink, first) = CallSink::new();
        let ticket = self.ticket();
        let request = Request {
            ticket,
            session: None,
            client_id: Bytes::from(ticket.to_string()),
            client_token: None,
            kind: CallKind::Internal,
            special: None,
            wants_log: false,
            wire: message(ticket),
            sink,
        };
        let mut asked = Asked { connection: self, ticket, answered: false };
        self.sender.send(ToProcess::Call(request)).await.map_err(|_| SendError::Closed)?;
        let answer = match first.await {
            Ok(First::Answer(answer)) => Ok(answer),
            Ok(First::Stream(stream)) => stream.answer.await.map_err(|_| SendError::Closed),
            Err(_) => Err(SendError::Closed),
        };
        asked.answered = true;
        answer
    }

    /// Sends a notification of the gateway's own.
    pub async fn tell(&self, message: Message) {
        let _ = self.sender.send(ToProcess::Tell(message)).await;
    }

    /// Tells the connection which era its process has.
    pub async fn settle_era(&self, era: Era) {
        let _ = self.sender.send(ToProcess::Era(era)).await;
    }

    /// A session begins to use the process. What the process tells it outside its calls goes to `stream`.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn attach(&self, session: SessionKey, stream: Arc<ReplayStream>) -> Result<(), SendError> {
        self.sender.send(ToProcess::Attach(session, stream)).await.map_err(|_| SendError::Closed)
    }

    /// A session ends: its calls are cancelled.
    pub async fn detach(&self, session: SessionKey) {
        let _ = self.sender.send(ToProcess::Detach(session)).await;
    }

    /// A session cancels its own call.
    pub async fn cancel(&self, session: SessionKey, client_id: Bytes) {
        let _ = self.sender.send(ToProcess::Cancel(session, client_id)).await;
    }

    /// A modern client hung up. Does not wait: where the queue is full, a task of its own waits.
    pub fn hung_up(&self, ticket: Ticket) {
        if let Err(mpsc::error::TrySendError::Full(message)) = self.sender.try_send(ToProcess::HungUp(ticket))
        {
            let sender = self.sender.clone();
            tokio::spawn(async move { sender.send(message).await });
        }
    }

    /// A notification of a session other than a cancellation.
    ///
    /// # Errors
    /// `Ok(Err(NotWaiting))` when it concerns a request that is not this session's.
    pub async fn notification(
        &self,
        session: SessionKey,
        body: Bytes,
        envelope: Envelope,
        patience: Duration,
    ) -> Result<Result<(), NotWaiting>, SendError> {
        let (done, heard) = oneshot::channel();
        self.send(ToProcess::Notification(session, body, envelope, done), patience).await?;
        heard.await.map_err(|_| SendError::Closed)
    }

    /// A session's answer to a request of the process.
    ///
    /// # Errors
    /// `Ok(Err(NotWaiting))` when no such request waits for this session.
    pub async fn answer(
        &self,
        session: SessionKey,
        body: Bytes,
        envelope: Envelope,
        patience: Duration,
    ) -> Result<Result<(), NotWaiting>, SendError> {
        let (done, heard) = oneshot::channel();
        self.send(ToProcess::Answer(session, body, envelope, done), patience).await?;
        heard.await.map_err(|_| SendError::Closed)
    }

    async fn send(&self, message: ToProcess, patience: Duration) -> Result<(), SendError> {
        let message = match self.sender.try_send(message) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(SendError::Closed),
            Err(mpsc::error::TrySendError::Full(message)) => message,
        };
        match tokio::time::timeout(patience, self.sender.send(message)).await {
            Ok(sent) => sent.map_err(|_| SendError::Closed),
            Err(_) => Err(SendError::NotReading(patience)),
        }
    }

    /// Refuses new calls; resolves when none runs.
    pub(crate) async fn drain(&self) {
        let (done, drained) = oneshot::channel();
        if self.orders.send(Order::Drain(done)).await.is_ok() {
            let _ = drained.await;
        }
    }

    /// Calls may be silent, and last, for so long from now on; also those that run.
    pub(crate) fn set_deadlines(&self, idle_ms: u64, max_ms: u64) {
        self.order(Order::Deadlines(idle_ms, max_ms));
    }

    /// Closes the process's standard input.
    pub(crate) fn close_stdin(&self) {
        self.order(Order::CloseStdin);
    }

    /// Ends every call with this error, and refuses later ones.
    pub(crate) fn fail(&self, reason: String) {
        self.order(Order::Fail(reason));
    }

    fn order(&self, order: Order) {
        if let Err(mpsc::error::TrySendError::Full(order)) = self.orders.try_send(order) {
            let orders = self.orders.clone();
            tokio::spawn(async move { orders.send(order).await });
        }
    }
}

/// The legacy methods that a shared process is not simply passed.
pub fn special(envelope: &Envelope) -> Option<Special> {
    let inner = &envelope.inner;
    match &*envelope.method {
        "ping" => Some(Special::Ping),
        "logging/setLevel" => inner.level.clone().map(Special::SetLevel),
        "resources/subscribe" => inner.uri.clone().map(Special::Subscribe),
        "resources/unsubscribe" => inner.uri.clone().map(Special::Unsubscribe),
        _ => None,
    }
}

/// The name under which a [`Note`] is counted.
fn counter(note: &Note) -> String {
    match note {
        Note::Rubbish(_) => "stdout_rubbish".to_owned(),
        Note::Stray(what) => format!("stray {what}"),
        Note::Unheard => "unheard".to_owned(),
        Note::AsksBack => "asks_back".to_owned(),
        Note::RequestRefused { .. } => "request_refused".to_owned(),
        Note::NotificationDropped { .. } => "notification_dropped".to_owned(),
        Note::LimitReached(limit) => (*limit).to_owned(),
    }
}
