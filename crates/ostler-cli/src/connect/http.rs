//! HTTP to the daemon: one connection per request, so that closing a request's connection is exactly that.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::AbortHandle;

use super::framing::MAX_MESSAGE;
use super::sse::Parser;

/// What every request accepts; MCP requires both of a POST.
const ACCEPT_BOTH: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");
/// What a stream request accepts.
const ACCEPT_EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Messages up to this many bytes are held freely while they arrive.
const SMALL: usize = 1 << 20;
/// How many larger messages may be arriving at once; the others wait unread in the daemon. Bounds the memory
/// for what arrives to 64 x 1 MiB + 2 x 64 MiB.
const LARGE_AT_ONCE: usize = 2;

/// Where the daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// Its socket in the runtime directory.
    Unix(PathBuf),
    /// Its HTTP listener, `host:port`.
    Tcp(String),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(authority) => authority.fmt(f),
        }
    }
}

/// A server's MCP endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Where the daemon is.
    pub(crate) address: Address,
    /// For the `Host` header.
    pub(crate) host: HeaderValue,
    /// The path, percent-encoded.
    pub(crate) path: String,
    /// Limits how many large messages arrive at once.
    pub(crate) large: Arc<Semaphore>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Endpoint {
    pub(crate) fn new(address: Address, host: HeaderValue, path: String) -> Self {
        Self { address, host, path, large: Arc::new(Semaphore::new(LARGE_AT_ONCE)) }
    }

    /// Opens a connection. When this fails, nothing was sent.
    pub(crate) async fn connect(&self) -> io::Result<Connection> {
        let stream: Box<dyn Stream> = match &self.address {
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Address::Tcp(authority) => {
                let stream = TcpStream::connect(authority).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
        let (sender, driver) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        Ok(Connection {
            sender,
            driver: Driver(tokio::spawn(driver).abort_handle()),
            host: self.host.clone(),
            path: self.path.clone(),
            large: self.large.clone(),
        })
    }
}

/// Closes the connection when dropped.
#[derive(Debug)]
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A request body that tells when it was handed to the connection, by dropping the other half of a channel.
#[derive(Debug)]
pub(crate) struct Outgoing {
    data: Option<Bytes>,
    _sent: Option<oneshot::Sender<()>>,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.data.take().filter(|data| !data.is_empty()).map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.as_ref().is_none_or(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.as_ref().map_or(0, |data| data.len() as u64))
    }
}

/// A fresh connection, good for one request.
pub(crate) struct Connection {
    sender: SendRequest<Outgoing>,
    driver: Driver,
    host: HeaderValue,
    path: String,
    large: Arc<Semaphore>,
}

impl Connection {
    /// Posts a message. `sent` is dropped when the message was handed to the connection. An error means that
    /// the daemon may or may not have acted on it.
    pub(crate) async fn post(
        self,
        headers: HeaderMap,
        body: Bytes,
        sent: Option<oneshot::Sender<()>>,
    ) -> Result<Reply, hyper::Error> {
        let mut headers = headers;
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(ACCEPT, ACCEPT_BOTH);
        self.send(Method::POST, headers, Outgoing { data: Some(body), _sent: sent }).await
    }

    /// Opens the stream of a session.
    pub(crate) async fn get(self, headers: HeaderMap) -> Result<Reply, hyper::Error> {
        let mut headers = headers;
        headers.insert(ACCEPT, ACCEPT_EVENTS);
        self.send(Method::GET, headers, Outgoing { data: None, _sent: None }).await
    }

    /// Ends a session.
    pub(crate) async fn delete(self, headers: HeaderMap) -> Result<Reply, hyper::Error> {
        self.send(Method::DELETE, headers, Outgoing { data: None, _sent: None }).await
    }

    async fn send(
        mut self,
        method: Method,
        headers: HeaderMap,
        body: Outgoing,
    ) -> Result<Reply, hyper::Error> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = self.path.parse().unwrap_or_default();
        *request.headers_mut() = headers;
        request.headers_mut().insert(HOST, self.host);
        let response = self.sender.send_request(request).await?;
        let (parts, body) = response.into_parts();
        Ok(Reply {
            status: parts.status,
            headers: parts.headers,
            body,
            large: self.large,
            driver: self.driver,
        })
    }
}

/// What an answer's body holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Media {
    /// One message.
    Json,
    /// A stream of events, each a message.
    Events,
    /// Something else, or nothing.
    Other,
}

/// An answer whose body has not been read yet. Dropping it closes its connection.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The status.
    pub(crate) status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
    large: Arc<Semaphore>,
    driver: Driver,
}

/// Why a body cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The connection ended first.
    #[error("the connection ended before the answer did")]
    Cut,
    /// It is over the limit.
    #[error("the answer is larger than {MAX_MESSAGE} bytes")]
    TooLarge,
}

impl Reply {
    /// A header's value.
    pub(crate) fn header(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.headers.get(name)
    }

    /// What the body holds, by its `Content-Type`.
    pub(crate) fn media(&self) -> Media {
        let text = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/json" => Media::Json,
            "text/event-stream" => Media::Events,
            _ => Media::Other,
        }
    }

    /// The whole body.
    pub(crate) async fn whole(mut self) -> Result<Bytes, BodyError> {
        let mut whole: Vec<u8> = Vec::new();
        let mut permit = None;
        while let Some(frame) = self.body.frame().await {
            let Ok(data) = frame.map_err(|_| BodyError::Cut)?.into_data() else {
                continue;
            };
            if whole.len() + data.len() > MAX_MESSAGE {
                return Err(BodyError::TooLarge);
            }
            whole.extend_from_slice(&data);
            allow(&self.large, &mut permit, whole.len()).await;
        }
        Ok(whole.into())
    }

    /// The body as events.
    pub(crate) fn events(self) -> Events {
        Events {
            body: self.body,
            parser: Parser::new(MAX_MESSAGE),
            ready: std::collections::VecDeque::new(),
            large: self.large,
            permit: None,
            _driver: self.driver,
        }
    }
}

/// Waits for leave to hold more than [`SMALL`], and gives it back when that is no longer so.
async fn allow(large: &Arc<Semaphore>, permit: &mut Option<OwnedSemaphorePermit>, held: usize) {
    if held <= SMALL {
        *permit = None;
    } else if permit.is_none() {
        // The semaphore is never closed.
        *permit = large.clone().acquire_owned().await.ok();
    }
}

/// A stream of events. Dropping it closes its connection.
#[derive(Debug)]
pub(crate) struct Events {
    body: Incoming,
    parser: Parser,
    ready: std::collections::VecDeque<Bytes>,
    large: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
    _driver: Driver,
}

impl Events {
    /// The next message; `None` when the stream ended in good order.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Ok(Some(message));
            }
            allow(&self.large, &mut self.permit, self.parser.held()).await;
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            let Ok(data) = frame.map_err(|_| BodyError::Cut)?.into_data() else {
                continue;
            };
            let ready = &mut self.ready;
            self.parser.push(&data, |message| ready.push_back(message)).map_err(|_| BodyError::TooLarge)?;
        }
    }

    /// What is known for resuming: the last id, and the pause that was asked for.
    pub(crate) fn position(&self) -> (Option<String>, Option<std::time::Duration>) {
        (self.parser.last_id().map(str::to_owned), self.parser.retry())
    }
}
