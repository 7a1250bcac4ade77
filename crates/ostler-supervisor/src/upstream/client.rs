//! HTTP as a client: hyper's pooled client, plain or with TLS, and messages as bodies.

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
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use ostler_mcp::Message;

use crate::web::{describe, tls};

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Connections without a request are closed after this: before the server does it (Node and uvicorn after 5 s), or a
/// request might meet a connection that is being closed, and must not be sent again.
const IDLE: Duration = Duration::from_secs(4);
/// Most connections kept without a request.
const MAX_IDLE: usize = 32;

/// What a message is posted with, and what its answer may be.
pub(super) const BOTH: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");
/// What a stream is asked for with.
pub(super) const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A client of one server. Redirections are not followed: they could lead elsewhere with the headers' secrets.
#[derive(Clone, Debug)]
pub(super) struct Client {
    inner: Inner,
    /// Sent with every request.
    headers: HeaderMap,
}

#[derive(Clone, Debug)]
enum Inner {
    Plain(legacy::Client<HttpConnector, Pieces>),
    Tls(legacy::Client<HttpsConnector<HttpConnector>, Pieces>),
}

impl Client {
    /// A client for servers at addresses like this one.
    ///
    /// # Errors
    /// When TLS is needed and the system's certificates cannot be read.
    pub(super) async fn new(uri: &Uri, headers: HeaderMap) -> Result<Self, String> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE).pool_max_idle_per_host(MAX_IDLE);
        let inner = if uri.scheme_str() == Some("https") {
            tcp.enforce_http(false);
            let config = tls().await?;
            let https = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1();
            Inner::Tls(builder.build(https.wrap_connector(tcp)))
        } else {
            Inner::Plain(builder.build(tcp))
        };
        Ok(Self { inner, headers })
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
        let sent = match &self.inner {
            Inner::Plain(client) => client.request(request).await,
            Inner::Tls(client) => client.request(request).await,
        };
        sent.map_err(|error| describe(&error))
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
