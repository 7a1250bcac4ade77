//! What both eras need: reaching the daemon, passing messages to the client, answering calls that failed.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::framing::Out;
use super::http::{BodyError, Connection, Endpoint, Events, Media, Reply};
use super::message::{self, Id, Kind, UNAVAILABLE};

/// Reverse requests (the server asks the client) that wait for the client's answer; the oldest are forgotten.
const MAX_ASKED: usize = 1024;
/// Longest wait for one attempt to connect.
const DIAL_LIMIT: Duration = Duration::from_secs(5);

/// What a call gets whose connection broke after it was sent. It is never sent again: it may have side effects.
pub(crate) const BROKEN: &str =
    "the daemon restarted while this call ran; it may or may not have been carried out";

/// The waits of the shim.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How long a daemon that is not there is waited for.
    pub(crate) patience: Duration,
    /// The first pause between attempts; it doubles.
    pub(crate) first_pause: Duration,
    /// The longest pause between attempts.
    pub(crate) longest_pause: Duration,
    /// How long running calls may finish after the client's end of input, and how long saying goodbye may take.
    pub(crate) grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(30),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(2),
            grace: Duration::from_secs(2),
        }
    }
}

/// The daemon did not come (back) in time.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no Ostler daemon answers on {address} ({reason}); start it with `ostler up FILE`")]
pub(crate) struct Absent {
    address: String,
    reason: String,
}

/// A call that waits for its answer.
#[derive(Debug)]
pub(crate) struct Call {
    /// Its id, as the client wrote it.
    pub(crate) id: Id,
    /// The message.
    pub(crate) body: Bytes,
    /// Dropped when the message was handed to a connection.
    pub(crate) sent: Option<oneshot::Sender<()>>,
}

/// How a stream ended.
pub(crate) enum StreamEnd {
    /// The call was answered.
    Answered,
    /// It ended without the answer; from where it can be resumed.
    Unanswered { last_id: Option<String>, retry: Option<Duration> },
    /// A message on it was over the limit.
    TooLarge,
}

/// Shared by every task of the shim.
#[derive(Debug)]
pub(crate) struct Core {
    endpoint: Endpoint,
    pub(crate) out: Out,
    pub(crate) limits: Limits,
    /// The daemon was waited for in vain; until it is seen again it is tried once per call.
    absent: AtomicBool,
    /// An attempt to reach the daemon failed.
    missed: AtomicBool,
    /// An attempt to reach the daemon succeeded.
    reached: AtomicBool,
    /// Reverse requests and the session they came in, by its epoch.
    asked: Mutex<VecDeque<(Id, u64)>>,
}

/// A panic elsewhere does not make these plain values wrong.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line for people, on standard error. The client shows or drops it; a closed standard error is no reason
/// to fail.
pub(crate) fn tell(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "ostler connect: {text}");
}

impl Core {
    pub(crate) fn new(endpoint: Endpoint, out: Out, limits: Limits) -> Self {
        Self {
            endpoint,
            out,
            limits,
            absent: AtomicBool::new(false),
            missed: AtomicBool::new(false),
            reached: AtomicBool::new(false),
            asked: Mutex::new(VecDeque::new()),
        }
    }

    /// Whether the daemon was tried and never reached.
    pub(crate) fn never_reached(&self) -> bool {
        self.missed.load(Ordering::Relaxed) && !self.reached.load(Ordering::Relaxed)
    }

    /// Why a call is not answered that still runs or waits when the client has ended its input.
    pub(crate) fn left_behind(&self) -> String {
        if !self.never_reached() {
            return "the input ended before this call did; it may or may not have been carried out"
                .to_owned();
        }
        let absent = Absent {
            address: self.endpoint.address.to_string(),
            reason: "not waited for longer, since the input ended".to_owned(),
        };
        if !self.absent.load(Ordering::Relaxed) {
            tell(&absent.to_string());
        }
        absent.to_string()
    }

    /// One attempt to reach the daemon.
    pub(crate) async fn dial(&self) -> Result<Connection, Absent> {
        let reason = match timeout(DIAL_LIMIT, self.endpoint.connect()).await {
            Ok(Ok(connection)) => {
                self.absent.store(false, Ordering::Relaxed);
                self.reached.store(true, Ordering::Relaxed);
                return Ok(connection);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {} s", DIAL_LIMIT.as_secs()),
        };
        self.missed.store(true, Ordering::Relaxed);
        Err(Absent { address: self.endpoint.address.to_string(), reason })
    }

    /// Reaches the daemon, waiting for it if it is not there. After it was waited for in vain it is only tried
    /// once, so that a client with many calls does not wait for each.
    pub(crate) async fn connect(&self) -> Result<Connection, Absent> {
        let patience =
            if self.absent.load(Ordering::Relaxed) { Duration::ZERO } else { self.limits.patience };
        let deadline = Instant::now() + patience;
        let mut pause = self.limits.first_pause;
        loop {
            let absent = match self.dial().await {
                Ok(connection) => return Ok(connection),
                Err(absent) => absent,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if !self.absent.swap(true, Ordering::Relaxed) {
                    tell(&absent.to_string());
                }
                return Err(absent);
            }
            sleep(pause.min(left)).await;
            pause = (pause * 2).min(self.limits.longest_pause);
        }
    }

    /// Answers a call with an error of the shim's own.
    pub(crate) async fn refuse(&self, id: &str, reason: &str) {
        self.out.send(message::error(Some(id), UNAVAILABLE, reason)).await;
    }

    /// Passes a message to the client and says what it was. What is no message is dropped: standard output
    /// carries nothing else.
    pub(crate) async fn deliver(&self, body: Bytes, epoch: u64) -> Option<Kind> {
        let kind = match message::kind(&body) {
            Ok(kind) => kind,
            Err(malformed) => {
                tell(&format!("dropped something of the daemon that is no message: {}", malformed.reason));
                return None;
            }
        };
        if let Kind::Request { id, .. } = &kind {
            let mut asked = lock(&self.asked);
            if asked.len() == MAX_ASKED {
                asked.pop_front();
            }
            asked.push_back((id.clone(), epoch));
        }
        self.out.send(body).await;
        Some(kind)
    }

    /// The epoch of the session in which the server asked what the client now answers.
    pub(crate) fn answered(&self, id: &str) -> Option<u64> {
        let mut asked = lock(&self.asked);
        let place = asked.iter().position(|(theirs, _)| **theirs == *id)?;
        asked.remove(place).map(|(_, epoch)| epoch)
    }

    /// Passes a whole answer on. Returns what is left to do: a stream to follow.
    pub(crate) async fn answer(&self, call: &Call, reply: Reply, epoch: u64) -> Option<Events> {
        let status = reply.status;
        let media = reply.media();
        if status.is_success() && media == Media::Events {
            return Some(reply.events());
        }
        let body = match reply.whole().await {
            Ok(body) => body,
            Err(BodyError::Cut) => {
                self.refuse(&call.id, BROKEN).await;
                return None;
            }
            Err(error @ BodyError::TooLarge) => {
                self.refuse(&call.id, &error.to_string()).await;
                return None;
            }
        };
        let ours = match message::kind(&body) {
            Ok(Kind::Response { id, .. }) => id.as_deref() == Some(&*call.id),
            _ => false,
        };
        if status.is_success() && ours {
            self.deliver(body, epoch).await;
        } else {
            self.out.send(message::error_from_http(&call.id, status.as_u16(), &body)).await;
        }
        None
    }

    /// Passes on a call's stream until the call is answered or the stream ends.
    pub(crate) async fn follow(&self, id: &str, mut events: Events, epoch: u64) -> StreamEnd {
        loop {
            match events.next().await {
                Ok(Some(body)) => {
                    if let Some(Kind::Response { id: Some(theirs), .. }) = self.deliver(body, epoch).await
                        && *theirs == *id
                    {
                        return StreamEnd::Answered;
                    }
                }
                Ok(None) | Err(BodyError::Cut) => {
                    let (last_id, retry) = events.position();
                    return StreamEnd::Unanswered { last_id, retry };
                }
                Err(BodyError::TooLarge) => return StreamEnd::TooLarge,
            }
        }
    }
}
