//! Servers that are reached over the network: Streamable HTTP ([`http`]), HTTP with server-sent events ([`sse`]) and
//! WebSocket ([`websocket`]).
//!
//! ```text
//!   connection's task ──messages──► courier ──POST──────────────► server
//!            ▲                         │ ├─ one task a request ◄── its answer: JSON, or a stream of its own
//!            └─────────frames──────────┘ ├─ one for what needs no answer, in order
//!                                        └─ one for the stream of everything else (GET)
//! ```
//!
//! The courier carries and decides nothing: whose a message is, which ids it has and what is refused stays with the
//! connection, to which a server on the network looks like one on a pipe. What only the network has is told in its
//! own words ([`Frame`](crate::connection::Frame)): the call a message belongs to, because it came on that call's
//! stream; a request that came to nothing; the end, with its reason.
//!
//! A courier begins with the first message it is given, since only then the server is known to listen, and ends
//! when the connection does, with all its tasks. Nothing waits without a bound: queues are short, bodies are held
//! against the budget of all bodies, and the clocks of calls are the connection's, which cancels a call here as it
//! does on a pipe.

mod body;
mod client;
mod http;
mod lane;
mod listen;
mod session;
mod sse;
#[cfg(test)]
mod tests;
mod websocket;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use ostler_domain::event::Happening;
use ostler_domain::{InstanceId, ServerSpec, Transport, Upstream, UpstreamAt};
use ostler_mcp::{Message, rpc};
use tokio::sync::mpsc;

use crate::budget::Budget;
use crate::connection::{Frame, LINK, Link, News, Parts, Shared};
use crate::events::Events;
use crate::log::{Log, Stream};

/// How long saying farewell to a server may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a courier may go on once nobody takes what it brings: for its farewell, and no more.
const LEAVING: Duration = Duration::from_secs(2);

/// Where a server on the network is, and how it is spoken with.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    transport: Transport,
    uri: Uri,
    headers: HeaderMap,
}

impl Target {
    /// What a server's specification says, with the ports that its process was given; `None` for one that is not
    /// on the network.
    ///
    /// # Errors
    /// When the address is none, or the port was not given.
    pub(crate) fn of(spec: &ServerSpec, ports: &BTreeMap<String, u16>) -> Result<Option<Self>, String> {
        let Some(Upstream { at, headers }) = &spec.upstream else { return Ok(None) };
        let address = match at {
            UpstreamAt::Url(url) => url.clone(),
            UpstreamAt::Port { name, path } => {
                let scheme = if spec.transport == Transport::WebSocket { "ws" } else { "http" };
                let port = ports.get(name).ok_or_else(|| format!("it was given no port `{name}`"))?;
                format!("{scheme}://127.0.0.1:{port}{path}")
            }
        };
        let uri = address.parse().map_err(|error| format!("its address cannot be used: {error}"))?;
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let wrong = || format!("the header `{name}` cannot be sent");
            let name = HeaderName::try_from(name).map_err(|_| wrong())?;
            let mut value = HeaderValue::try_from(value).map_err(|_| wrong())?;
            // Kept out of what is shown of a request.
            value.set_sensitive(true);
            map.insert(name, value);
        }
        Ok(Some(Self { transport: spec.transport, uri, headers: map }))
    }
}

/// What every task of a courier needs.
#[derive(Clone, Debug)]
struct Context {
    instance: InstanceId,
    max_message: usize,
    budget: Arc<Budget>,
    log: Arc<Log>,
    events: Arc<Events>,
    news: mpsc::Sender<News>,
    frames: mpsc::Sender<Frame>,
    shared: Arc<Shared>,
}

impl Context {
    /// Gives the connection something; waits while it is busy. Not needed any more when nobody takes it.
    async fn give(&self, frame: Frame) {
        let _ = self.frames.send(frame).await;
    }

    /// The answer to a request that came to nothing on its way.
    async fn broken(&self, id: &[u8], why: &str) {
        self.give(Frame::Broken(rpc::error(Some(id), rpc::INSTANCE_LOST, why).to_bytes())).await;
    }

    /// Tells the driver; its forwarder takes everything at once.
    async fn tell(&self, news: News) {
        let _ = self.news.send(news).await;
    }

    /// A line for the instance's own log.
    fn note(&self, text: &str) {
        self.log.push(Stream::Ostler, text);
    }

    /// A message of the server was over the limit; what its call is told.
    fn too_long(&self, bytes: usize) -> String {
        self.events.count("gateway.max_body");
        let what = format!("a message of the server of {bytes} bytes (gateway.max_body)");
        self.events.record(&self.instance.to_string(), Happening::Dropped { what: what.clone(), count: 1 });
        format!("{what} was dropped")
    }
}

/// Starts the courier of a connection; its tasks end with the link.
pub(crate) fn start(target: Target, parts: &Parts, shared: Arc<Shared>) -> Link {
    let (to_server, messages) = mpsc::channel(LINK);
    let (frames, from_server) = mpsc::channel(LINK);
    let context = Context {
        instance: parts.instance.clone(),
        max_message: parts.max_message,
        budget: Arc::clone(&parts.budget),
        log: Arc::clone(&parts.log),
        events: Arc::clone(&parts.events),
        news: parts.news.clone(),
        frames,
        shared,
    };
    tokio::spawn(carry(target, messages, context));
    Link { to_server, from_server }
}

async fn carry(target: Target, mut messages: mpsc::Receiver<Message>, context: Context) {
    let frames = context.frames.clone();
    // Nobody is reached before there is something to say.
    if let Some(first) = messages.recv().await {
        let carried = async {
            match target.transport {
                Transport::Http => http::run(target, first, messages, context).await,
                Transport::Sse => sse::run(target, first, messages, context).await,
                _ => websocket::run(target, first, messages, context).await,
            }
        };
        let ended = crate::select::select! {
            ended = carried => ended,
            () = over(&frames) => Ok(()),
        };
        if let Err(why) = ended {
            let _ = frames.send(Frame::Closed(why)).await;
        }
    }
    // That there is nothing more to come must not look like the server's doing.
    frames.closed().await;
}

/// Resolves when the connection is gone and everything that could still be said to the server had its time: whatever
/// it is that does not end by then, an instance that is gone must not have it.
async fn over(frames: &mpsc::Sender<Frame>) {
    frames.closed().await;
    tokio::time::sleep(LEAVING).await;
}
