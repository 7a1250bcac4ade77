//! A resumable stream of messages to one client: what was sent is kept, within bounds, until the client can
//! no longer ask for it again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ostler_mcp::Message;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How much of a stream is kept for a client that comes back.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Most messages (`gateway.replay_events`).
    pub events: usize,
    /// Most bytes (`gateway.replay_bytes`); the latest message is kept whatever its size.
    pub bytes: usize,
}

#[derive(Debug, Default)]
struct Inner {
    /// Messages with their numbers, oldest first.
    kept: VecDeque<(u64, Message)>,
    bytes: usize,
    last: u64,
    ended: bool,
    /// Which reader is the current one; an older one stops.
    reader: u64,
    connected: bool,
    /// The highest number any reader has taken.
    taken: u64,
    dropped: u64,
}

/// Whether a client reads any of the streams that share this.
#[derive(Debug)]
pub struct Presence(Mutex<Readers>);

#[derive(Debug)]
struct Readers {
    count: usize,
    /// When the last of them left; at first, when there was none yet.
    left: Instant,
}

impl Default for Presence {
    fn default() -> Self {
        Self(Mutex::new(Readers { count: 0, left: Instant::now() }))
    }
}

impl Presence {
    /// Since when nobody has read any of the streams; `None` while somebody does.
    pub fn absent_since(&self) -> Option<Instant> {
        let readers = self.lock();
        (readers.count == 0).then_some(readers.left)
    }

    fn enter(&self) {
        self.lock().count += 1;
    }

    fn leave(&self) {
        let mut readers = self.lock();
        readers.count -= 1;
        readers.left = Instant::now();
    }

    fn lock(&self) -> MutexGuard<'_, Readers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct ReplayStream {
    keep: Keep,
    presence: Arc<Presence>,
    inner: Mutex<Inner>,
    changed: Notify,
}

/// What a reader finds next.
#[derive(Debug)]
pub enum Next {
    /// This message, under this number.
    Message(u64, Message),
    /// Nothing more will come.
    End,
    /// Another reader took over.
    Superseded,
}

impl ReplayStream {
    /// An empty stream.
    pub fn new(keep: Keep) -> Self {
        Self::of(keep, Arc::default())
    }

    /// An empty stream of the client whose presence this is.
    pub fn of(keep: Keep, presence: Arc<Presence>) -> Self {
        Self { keep, presence, inner: Mutex::default(), changed: Notify::new() }
    }

    /// Whether its client reads this stream or another of its own.
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// Appends a message. The oldest ones are dropped when the bounds are reached.
    pub fn push(&self, message: Message) {
        let mut inner = self.lock();
        inner.last += 1;
        inner.bytes += message.len();
        let number = inner.last;
        inner.kept.push_back((number, message));
        while inner.kept.len() > self.keep.events || (inner.bytes > self.keep.bytes && inner.kept.len() > 1) {
            let Some((_, old)) = inner.kept.pop_front() else { break };
            inner.bytes -= old.len();
            inner.dropped += 1;
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Nothing more will come.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_waiters();
    }

    /// Whether a client reads it now.
    pub fn connected(&self) -> bool {
        self.lock().connected
    }

    /// Whether it has ended.
    pub fn ended(&self) -> bool {
        self.lock().ended
    }

    /// Bytes kept.
    pub fn kept_bytes(&self) -> usize {
        self.lock().bytes
    }

    /// How many messages were dropped for lack of room.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// A reader starts after the message with this number and replaces an earlier reader. `None` when what it
    /// asks for was dropped already or never sent.
    pub fn read_after(self: &Arc<Self>, number: u64) -> Option<Reader> {
        let inner = self.lock();
        let oldest = inner.kept.front().map_or(inner.last + 1, |(first, _)| *first);
        if number > inner.last || number + 1 < oldest {
            return None;
        }
        Some(self.reader(inner, number))
    }

    /// A reader starts with the first message that no reader has taken, or the oldest one kept after it.
    pub fn read(self: &Arc<Self>) -> Reader {
        let inner = self.lock();
        let oldest = inner.kept.front().map_or(inner.last, |(first, _)| first - 1);
        let at = oldest.max(inner.taken);
        self.reader(inner, at)
    }

    fn reader(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>, at: u64) -> Reader {
        inner.reader += 1;
        if !std::mem::replace(&mut inner.connected, true) {
            self.presence.enter();
        }
        let reader = Reader { stream: Arc::clone(self), at, me: inner.reader };
        drop(inner);
        self.changed.notify_waiters();
        reader
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one reader of a stream.
#[derive(Debug)]
pub struct Reader {
    stream: Arc<ReplayStream>,
    at: u64,
    me: u64,
}

impl Reader {
    /// The number of the message read last.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Waits for the next message. Cancel-safe.
    pub async fn next(&mut self) -> Next {
        let stream = Arc::clone(&self.stream);
        let mut changed = std::pin::pin!(stream.changed.notified());
        loop {
            changed.as_mut().enable();
            if let Some(next) = self.poll() {
                return next;
            }
            changed.as_mut().await;
            changed.set(stream.changed.notified());
        }
    }

    fn poll(&mut self) -> Option<Next> {
        let mut inner = self.stream.lock();
        if inner.reader != self.me {
            return Some(Next::Superseded);
        }
        let first = inner.kept.front().map(|(number, _)| *number);
        if let Some(first) = first
            && self.at < inner.last
        {
            let index = usize::try_from((self.at + 1).saturating_sub(first)).unwrap_or(0);
            let (number, message) = inner.kept[index].clone();
            self.at = number;
            inner.taken = inner.taken.max(number);
            return Some(Next::Message(number, message));
        }
        inner.ended.then_some(Next::End)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut inner = self.stream.lock();
        if inner.reader == self.me {
            inner.connected = false;
            self.stream.presence.leave();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Message {
        Message::from(text.to_owned())
    }

    async fn texts(reader: &mut Reader) -> Vec<String> {
        let mut found = Vec::new();
        while let Next::Message(_, text) = reader.next().await {
            found.push(String::from_utf8(text.to_bytes().to_vec()).unwrap());
        }
        found
    }

    #[tokio::test]
    async fn a_client_that_comes_back_gets_what_it_missed_and_nothing_twice() {
        let stream = Arc::new(ReplayStream::new(Keep { events: 10, bytes: 1000 }));
        for text in ["a", "b", "c"] {
            stream.push(message(text));
        }
        let mut first = stream.read();
        assert!(matches!(first.next().await, Next::Message(1, _)));
        let mut second = stream.read_after(1).unwrap();
        assert!(matches!(first.next().await, Next::Superseded));
        drop(first);
        assert!(stream.connected(), "dropping an old reader does not disconnect the new one");
        stream.end();
        assert_eq!(texts(&mut second).await, ["b", "c"]);
        drop(second);
        assert!(!stream.connected());
    }

    #[tokio::test]
    async fn a_client_is_present_while_it_reads_any_of_its_streams() {
        let presence = Arc::new(Presence::default());
        let keep = Keep { events: 10, bytes: 1000 };
        let [one, other] = [(); 2].map(|()| Arc::new(ReplayStream::of(keep, Arc::clone(&presence))));
        assert!(one.presence().absent_since().is_some());
        let first = one.read();
        let second = one.read_after(0).unwrap();
        let third = other.read();
        drop(first);
        drop(second);
        assert!(one.presence().absent_since().is_none(), "the other stream is read");
        let before = Instant::now();
        drop(third);
        assert!(one.presence().absent_since().is_some_and(|since| since >= before));
    }

    #[tokio::test]
    async fn what_was_dropped_cannot_be_resumed_silently() {
        let stream = Arc::new(ReplayStream::new(Keep { events: 2, bytes: 1000 }));
        for text in ["a", "b", "c", "d"] {
            stream.push(message(text));
        }
        assert!(stream.read_after(1).is_none(), "2 is gone");
        assert!(stream.read_after(5).is_none(), "5 was never sent");
        stream.end();
        assert_eq!(texts(&mut stream.read_after(2).unwrap()).await, ["c", "d"]);
        assert_eq!(stream.dropped(), 2);
    }
}
