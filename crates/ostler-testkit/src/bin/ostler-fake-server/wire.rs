//! What the fake server speaks over: its standard output, or a port.
//!
//! Over Streamable HTTP each request has a stream of its own, and what the thread of a call says goes to that call's;
//! everything else, and everything over the other transports, goes to the one stream there is.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, Write as _};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock};

use serde_json::Value;

use crate::lock;

/// What a stream is told.
pub(crate) enum Said {
    Message(Value),
    /// Close the connection without an answer; the rest is for whoever takes the stream up again.
    Cut,
}

/// The streams of a server at a port.
#[derive(Default)]
pub(crate) struct Streams {
    /// Whether requests have streams of their own.
    pub(crate) of_requests: bool,
    own: Mutex<HashMap<String, Sender<Said>>>,
    common: Mutex<Option<Sender<Said>>>,
}

static STREAMS: OnceLock<Streams> = OnceLock::new();

thread_local! {
    static CALL: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on messages go to streams.
pub(crate) fn listen(of_requests: bool) -> &'static Streams {
    STREAMS.get_or_init(|| Streams { of_requests, ..Streams::default() })
}

/// What this thread says from now on belongs to the call with this id.
pub(crate) fn speak_for(id: &Value) {
    CALL.set(Some(id.to_string()));
}

/// Says something on this thread's behalf.
pub(crate) fn send(message: &Value) {
    let call = CALL.with_borrow(Clone::clone);
    send_for(call.as_deref(), message);
}

/// Says something on behalf of the request with this id, as JSON text.
pub(crate) fn send_for(id: Option<&str>, message: &Value) {
    match STREAMS.get() {
        None => {
            let mut line = message.to_string();
            line.push('\n');
            let mut stdout = io::stdout().lock();
            let _ = stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush());
        }
        Some(streams) => streams.say(id, Said::Message(message.clone())),
    }
}

/// Has this thread's call lose its connection; false where there is none to lose.
pub(crate) fn cut() -> bool {
    let (Some(streams), Some(call)) = (STREAMS.get(), CALL.with_borrow(Clone::clone)) else { return false };
    streams.say(Some(&call), Said::Cut);
    streams.of_requests
}

/// Has the stream of everything else lose its connection.
pub(crate) fn cut_common() {
    if let Some(streams) = STREAMS.get() {
        lock(&streams.common).take();
    }
}

impl Streams {
    fn say(&self, id: Option<&str>, said: Said) {
        let own = id.filter(|_| self.of_requests).and_then(|id| lock(&self.own).get(id).cloned());
        let stream = own.or_else(|| lock(&self.common).clone());
        // Nobody listens: it is lost, as it would be on a real one.
        let _ = stream.map(|stream| stream.send(said));
    }

    /// The stream of a request.
    pub(crate) fn open(&self, id: &str) -> Receiver<Said> {
        let (sender, receiver) = channel();
        lock(&self.own).insert(id.to_owned(), sender);
        receiver
    }

    /// The request was answered.
    pub(crate) fn close(&self, id: &str) {
        lock(&self.own).remove(id);
    }

    /// The stream of everything else; the one before it ends.
    pub(crate) fn open_common(&self) -> Receiver<Said> {
        let (sender, receiver) = channel();
        *lock(&self.common) = Some(sender);
        receiver
    }
}
