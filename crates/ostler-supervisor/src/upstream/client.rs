//! HTTP as a client of MCP servers: their headers, and messages as bodies.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use ostler_mcp::Message;

use crate::web::WebClient;

/// Connections without a request are closed after this: before the server does it (Node and uvicorn after 5 s), or a
/// request might meet a connection that is being closed, and must not be sent again.
const IDLE: Duration = Duration::from_secs(4);

/// What a message is posted with, and what its answer may be.
pub(super) const BOTH: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");
/// What a stream is asked for with.
pub(super) const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A client of one server.
#[derive(Clone, Debug)]
pub(super) struct Client {
    inner: WebClient<Pieces>,
    /// Sent with every request.
    headers: HeaderMap,
}

impl Client {
    /// A client for servers at addresses like this one.
    ///
    /// # Errors
    /// As [`WebClient::new`].
    pub(super) async fn new(uri: &Uri, headers: HeaderMap) -> Result<Self, String> {
        Ok(Self { inner: WebClient::new(uri, IDLE).await?, headers })
    }

    /// Sends a request; resolves with the head of its answer.
    ///
    /// # Errors
    /// What went wrong on the way, for people.
    pub(super) async fn send(
        &self,
        method: Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: Pieces,
    ) -> Result<Response<Incoming>, String> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri.clone();
        // What the transport says goes over what was configured.
        request.headers_mut().extend(self.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        for (name, value) in headers {
            request.headers_mut().insert(name, value.clone());
        }
        self.inner.send(request).await
    }

    /// Posts a message.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(super) async fn post(
        &self,
        uri: &Uri,
        mut headers: HeaderMap,
        message: Message,
    ) -> Result<Response<Incoming>, String> {
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(ACCEPT, BOTH);
        self.send(Method::POST, uri, &headers, Pieces::of(message)).await
    }
}

/// A message as a body: its pieces as they are.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    left: VecDeque<Bytes>,
    bytes: u64,
}

impl Pieces {
    fn of(message: Message) -> Self {
        Self { bytes: message.len() as u64, left: message.into_parts().into() }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.left.pop_front();
        self.bytes -= next.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(next.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes)
    }
}
