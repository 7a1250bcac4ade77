//! `ostler connect SERVER`: a stdio shim for clients that only speak stdio. It starts no server: it talks MCP
//! Streamable HTTP to the daemon and survives the daemon's restarts.
//!
//! ```text
//!  client --stdin--> Lines --> dispatch -+-> a task per call ---+--HTTP, one connection each--> daemon
//!                                        +-> notes, in order ---+
//!  client <-stdout-- Out <---- answers, streams, the session's own stream <--------------------- daemon
//! ```
//!
//! Tasks: one that writes ([`framing::Out`]; in: a queue of messages), one that sends notifications and
//! answers in order (in: a queue), one per call (out: `Out`), one that keeps a legacy session's stream
//! ([`legacy`]). [`framing`] are lines, [`http`] connections, [`sse`] event streams, [`message`] what is read of
//! a message, [`core`] what both eras need, [`legacy`] and [`modern`] the eras.

mod core;
mod framing;
mod http;
mod legacy;
mod message;
mod modern;
mod sse;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderValue;
use ostler_api::RuntimeDir;
use ostler_api::routes::encode_segment;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use self::core::{Call, Core, Limits, lock, tell};
use self::framing::{Line, Lines, MAX_MESSAGE, Out};
use self::http::{Address, Endpoint};
use self::legacy::Legacy;
use self::message::{FromClient, Id, Kind, ModernHead};
use crate::args::{ConnectArgs, Global};
use crate::exit::{Exit, Failure};

/// Calls that run at once; more wait in the shim.
const RUNNING: usize = 64;
/// Calls that run or wait. With as many, standard input is not read: the client feels the back-pressure. It is
/// more than [`RUNNING`] so that the client's answers to the server's own requests still come through while
/// the calls that asked are running.
const ADMITTED: usize = 320;
/// Bytes of calls that run or wait, in KiB: four of the largest. With more, standard input is not read.
const ADMITTED_KIB: usize = 4 * (MAX_MESSAGE >> 10);
/// `subscriptions/listen` streams open at once; they do not count as calls since they last.
const LISTENS: usize = 16;
/// Notifications and answers that wait to be sent.
const NOTES: usize = 64;
/// Longest a cancellation waits for its call to be sent first.
const CANCEL_WAIT: Duration = Duration::from_secs(1);

/// Runs the shim on standard input and output until the client ends the input, or a signal comes.
pub(crate) async fn run(global: &Global, args: &ConnectArgs) -> Result<Exit, Failure> {
    let endpoint = endpoint(global, args)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Ok(serve(tokio::io::stdin(), tokio::io::stdout(), endpoint, Limits::default(), stop).await)
}

fn endpoint(global: &Global, args: &ConnectArgs) -> Result<Endpoint, Failure> {
    let mut path = "/mcp/".to_owned();
    encode_segment(&mut path, &args.server);
    let Some(base) = &args.url else {
        let socket = RuntimeDir::resolve(global.runtime_dir.as_deref())?.socket();
        return Ok(Endpoint::new(Address::Unix(socket), HeaderValue::from_static("ostler"), path));
    };
    let authority = base
        .strip_prefix("http://")
        .map(|rest| rest.strip_suffix('/').unwrap_or(rest))
        .filter(|rest| !rest.is_empty() && !rest.contains(['/', '?', '#', '@']))
        .map(|rest| if has_port(rest) { rest.to_owned() } else { format!("{rest}:80") });
    let parsed = authority.and_then(|authority| {
        let host = HeaderValue::from_str(&authority).ok()?;
        Some(Endpoint::new(Address::Tcp(authority), host, path))
    });
    parsed.ok_or_else(|| Failure::Usage {
        error: format!("`{base}` is not the base address of a daemon"),
        hint: Some("give it as http://HOST:PORT, such as http://127.0.0.1:7320".to_owned()),
    })
}

fn has_port(authority: &str) -> bool {
    authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Serves one client until its input ends, it stops reading, or `stop` completes.
async fn serve<R, W>(
    input: R,
    output: W,
    endpoint: Endpoint,
    limits: Limits,
    stop: impl Future<Output = ()>,
) -> Exit
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let (out, writer) = Out::start(output);
    let core = Arc::new(Core::new(endpoint, out.clone(), limits));
    let mut shim = Shim::new(core.clone());
    let ended = tokio::select! {
        () = shim.feed(Lines::new(input)) => true,
        () = out.closed() => false,
        () = stop => false,
    };
    let never_reached = shim.finish(if ended { limits.grace } else { Duration::ZERO }).await;
    drop((core, out));
    // The writer ends once what is queued is written; a client that does not read is not waited for.
    let _ = timeout(limits.grace, writer).await;
    if never_reached { Exit::NoDaemon } else { Exit::Done }
}

/// A call on its way.
#[derive(Debug)]
struct Flight {
    /// Resolves when the call was handed to a connection.
    sent: oneshot::Receiver<()>,
    /// For a modern call: ends it by closing its connection.
    abort: Option<AbortHandle>,
    /// Tells this call from another that was given the same id.
    mark: Arc<()>,
}

/// The calls on their way, by id, for cancellation. Bounded by [`ADMITTED`] and [`LISTENS`].
type Flights = Arc<Mutex<HashMap<Id, Flight>>>;

/// What is sent without an answer, in the order the client wrote it.
enum Note {
    Notification(Bytes),
    Cancellation { of: Option<oneshot::Receiver<()>>, body: Bytes },
    Answer { id: Option<Id>, body: Bytes },
}

struct Shim {
    core: Arc<Core>,
    legacy: Arc<Legacy>,
    calls: JoinSet<()>,
    listens: JoinSet<()>,
    flights: Flights,
    running: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
    admitted_kib: Arc<Semaphore>,
    listening: Arc<Semaphore>,
    notes: mpsc::Sender<Note>,
    notes_task: tokio::task::JoinHandle<()>,
}

/// Leave to hold a call: one of [`ADMITTED`], and its size of [`ADMITTED_KIB`].
type Leave = (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>);

impl Shim {
    fn new(core: Arc<Core>) -> Self {
        let legacy = Arc::new(Legacy::new(core.clone()));
        let (notes, queue) = mpsc::channel(NOTES);
        Self {
            notes_task: tokio::spawn(send_notes(legacy.clone(), queue)),
            core,
            legacy,
            calls: JoinSet::new(),
            listens: JoinSet::new(),
            flights: Flights::default(),
            running: Arc::new(Semaphore::new(RUNNING)),
            admitted: Arc::new(Semaphore::new(ADMITTED)),
            admitted_kib: Arc::new(Semaphore::new(ADMITTED_KIB)),
            listening: Arc::new(Semaphore::new(LISTENS)),
            notes,
        }
    }

    /// Reads and dispatches until the input ends.
    async fn feed<R: AsyncRead + Unpin>(&mut self, mut lines: Lines<R>) {
        loop {
            match lines.next().await {
                Ok(Some(Line::Text(body))) => match FromClient::parse(body) {
                    Ok(message) => self.dispatch(message).await,
                    Err(malformed) => {
                        self.core.out.send(message::error(None, malformed.code, &malformed.reason)).await;
                    }
                },
                Ok(Some(Line::TooLong)) => {
                    let reason = format!("the message is longer than {MAX_MESSAGE} bytes");
                    self.core.out.send(message::error(None, message::INVALID_REQUEST, &reason)).await;
                }
                Ok(None) => return,
                Err(error) => return tell(&format!("cannot read standard input: {error}")),
            }
            while self.calls.try_join_next().is_some() {}
            while self.listens.try_join_next().is_some() {}
        }
    }

    async fn dispatch(&mut self, message: FromClient) {
        let FromClient { body, kind, modern, cancels } = message;
        match kind {
            Kind::Request { id, method } => match modern {
                Some(head) => self.modern_call(id, body, head).await,
                None if method == "initialize" => self.legacy.initialize(id, body).await,
                None => self.legacy_call(id, body).await,
            },
            Kind::Notification { method } if method == "notifications/initialized" => {
                self.legacy.initialized(body).await;
            }
            Kind::Notification { method } if method == "notifications/cancelled" => {
                self.cancel(cancels, body).await;
            }
            Kind::Notification { .. } => self.note(Note::Notification(body)).await,
            Kind::Response { id, .. } => self.note(Note::Answer { id, body }).await,
        }
    }

    /// Queues a note. The task that sends them lives as long as the shim.
    async fn note(&self, note: Note) {
        let _ = self.notes.send(note).await;
    }

    async fn cancel(&self, id: Option<Id>, body: Bytes) {
        let flight = id.and_then(|id| lock(&self.flights).remove(&id));
        match flight {
            // Closing the connection is the cancellation; a cancelled call gets no answer.
            Some(Flight { abort: Some(abort), .. }) => abort.abort(),
            Some(Flight { sent, abort: None, .. }) => {
                self.note(Note::Cancellation { of: Some(sent), body }).await
            }
            // Answered meanwhile, perhaps; without a legacy session there is nobody to tell.
            None if self.legacy.session().is_some() => {
                self.note(Note::Cancellation { of: None, body }).await;
            }
            None => {}
        }
    }

    /// Waits for leave to hold a call of this size: here standard input is not read on.
    async fn admit(&self, size: usize) -> Leave {
        let kib = u32::try_from((size >> 10) + 1).unwrap_or(u32::MAX);
        let slot = self.admitted.clone().acquire_owned().await.ok();
        (slot, self.admitted_kib.clone().acquire_many_owned(kib).await.ok())
    }

    async fn legacy_call(&mut self, id: Id, body: Bytes) {
        let leave = self.admit(body.len()).await;
        let (sent, receiver) = oneshot::channel();
        let ticket = Ticket::new(&self.flights, &id, receiver, None);
        let (legacy, running) = (self.legacy.clone(), self.running.clone());
        self.calls.spawn(async move {
            let _held = (leave, ticket, running.acquire_owned().await);
            legacy.call(Call { id, body, sent: Some(sent) }).await;
        });
    }

    async fn modern_call(&mut self, id: Id, body: Bytes, head: ModernHead) {
        let listen = head.method == "subscriptions/listen";
        let leave = if listen {
            let Ok(slot) = self.listening.clone().try_acquire_owned() else {
                let reason = format!("{LISTENS} subscriptions are open; cancel one first");
                return self.core.refuse(&id, &reason).await;
            };
            (Some(slot), None)
        } else {
            self.admit(body.len()).await
        };
        let (sent, receiver) = oneshot::channel();
        let (start, started) = oneshot::channel::<Ticket>();
        let (core, running) = (self.core.clone(), self.running.clone());
        let key = id.clone();
        let call = async move {
            let _held = (leave, started.await);
            let _running = if listen { None } else { running.acquire_owned().await.ok() };
            modern::call(&core, Call { id, body, sent: Some(sent) }, &head).await;
        };
        let abort = if listen { self.listens.spawn(call) } else { self.calls.spawn(call) };
        // The ticket needs the task's handle, and the task holds the ticket.
        let ticket = Ticket::new(&self.flights, &key, receiver, Some(abort));
        drop(start.send(ticket));
    }

    /// Lets what runs finish within `grace`, ends the session, and says whether the daemon was never reached.
    async fn finish(mut self, grace: Duration) -> bool {
        self.listens.shutdown().await;
        let Self { core, legacy, mut calls, flights, notes, mut notes_task, .. } = self;
        drop(notes);
        let settle = async {
            let _ = (&mut notes_task).await;
            while calls.join_next().await.is_some() {}
        };
        let _ = timeout(grace, settle).await;
        let left: Vec<Id> = lock(&flights).keys().cloned().collect();
        notes_task.abort();
        calls.shutdown().await;
        if !left.is_empty() && !grace.is_zero() {
            let reason = core.left_behind();
            let answers = async {
                for id in &left {
                    core.refuse(id, &reason).await;
                }
            };
            // A client that ended its input may have stopped reading too.
            let _ = timeout(grace, answers).await;
        }
        legacy.close().await;
        core.never_reached()
    }
}

/// A call's entry among the flights; gone when dropped. A second call with the same id has none.
struct Ticket {
    flights: Flights,
    id: Id,
    mark: Arc<()>,
}

impl Ticket {
    fn new(flights: &Flights, id: &Id, sent: oneshot::Receiver<()>, abort: Option<AbortHandle>) -> Self {
        let mark = Arc::new(());
        lock(flights).entry(id.clone()).or_insert_with(|| Flight { sent, abort, mark: mark.clone() });
        Self { flights: flights.clone(), id: id.clone(), mark }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut flights = lock(&self.flights);
        if flights.get(&self.id).is_some_and(|flight| Arc::ptr_eq(&flight.mark, &self.mark)) {
            flights.remove(&self.id);
        }
    }
}

/// Sends notes one after another, so that they arrive in the client's order.
async fn send_notes(legacy: Arc<Legacy>, mut queue: mpsc::Receiver<Note>) {
    while let Some(note) = queue.recv().await {
        match note {
            Note::Notification(body) => legacy.notify(body, true).await,
            Note::Cancellation { of, body } => {
                if let Some(sent) = of {
                    // A cancellation that overtakes its call would cancel nothing.
                    let _ = timeout(CANCEL_WAIT, sent).await;
                }
                legacy.notify(body, false).await;
            }
            Note::Answer { id, body } => legacy.respond(id.as_deref(), body).await,
        }
    }
}
