//! Answers: their bodies, and the errors that HTTP and JSON-RPC carry together.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use ostler_mcp::{Message, rpc};
use ostler_supervisor::Unavailable;
use tokio::sync::mpsc;

/// The body of an answer.
#[derive(Debug)]
pub enum ReplyBody {
    /// All of it is there, in these pieces.
    Parts(VecDeque<Bytes>),
    /// It is sent as it comes.
    Stream(mpsc::Receiver<Bytes>),
    /// Another part of the program made it.
    Api(axum::body::Body),
}

/// An answer.
pub type Reply = Response<ReplyBody>;

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self.get_mut() {
            Self::Parts(parts) => Poll::Ready(parts.pop_front().map(|part| Ok(Frame::data(part)))),
            Self::Stream(receiver) => {
                receiver.poll_recv(context).map(|piece| piece.map(|p| Ok(Frame::data(p))))
            }
            Self::Api(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Parts(parts) => parts.is_empty(),
            Self::Stream(_) => false,
            Self::Api(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Parts(parts) => SizeHint::with_exact(parts.iter().map(|part| part.len() as u64).sum()),
            Self::Stream(_) => SizeHint::default(),
            Self::Api(body) => body.size_hint(),
        }
    }
}

impl From<axum::body::Body> for ReplyBody {
    fn from(body: axum::body::Body) -> Self {
        Self::Api(body)
    }
}

/// An answer without a body.
pub fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(ReplyBody::Parts(VecDeque::new()));
    *reply.status_mut() = status;
    reply
}

/// One JSON message.
pub fn json(status: StatusCode, message: Message) -> Reply {
    let mut reply = Response::new(ReplyBody::Parts(message.into_parts().into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// A stream of events.
pub fn events(receiver: mpsc::Receiver<Bytes>) -> Reply {
    let mut reply = Response::new(ReplyBody::Stream(receiver));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    reply
}

/// A refusal: an HTTP status with a JSON-RPC error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// The JSON-RPC code.
    pub code: i64,
    /// What failed, why, what to do.
    pub message: String,
    /// The error's `data`, as JSON.
    pub data: Option<String>,
    /// Seconds after which trying again may help.
    pub retry_after: Option<u64>,
    /// The methods that are allowed, where this one is not.
    pub allow: Option<&'static str>,
}

impl Refusal {
    /// A refusal with nothing but the essentials.
    pub fn new(status: StatusCode, code: i64, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), data: None, retry_after: None, allow: None }
    }

    /// A limit was reached; trying again may help.
    pub fn limit(message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(1),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, rpc::LIMIT_REACHED, message)
        }
    }

    /// The method is not served here.
    pub fn method(allow: &'static str, message: impl Into<String>) -> Self {
        Self {
            allow: Some(allow),
            ..Self::new(StatusCode::METHOD_NOT_ALLOWED, rpc::INVALID_REQUEST, message)
        }
    }

    /// The answer, for the request with this id.
    pub fn reply(self, id: Option<&[u8]>) -> Reply {
        let body = rpc::error_with_data(id, self.code, &self.message, self.data.as_deref());
        let mut reply = json(self.status, body);
        if let Some(seconds) = self.retry_after {
            reply.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        if let Some(allow) = self.allow {
            reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        }
        reply
    }
}

impl From<Unavailable> for Refusal {
    fn from(unavailable: Unavailable) -> Self {
        let message = unavailable.to_string();
        match unavailable {
            Unavailable::Waiting { next_try, .. } => Self {
                retry_after: Some(next_try.as_secs() + 1),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, rpc::INSTANCE_LOST, message)
            },
            Unavailable::Down { .. } | Unavailable::Slow { .. } | Unavailable::Held { .. } => Self {
                retry_after: Some(10),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, rpc::INSTANCE_LOST, message)
            },
            Unavailable::Limit(_) => Self { retry_after: Some(10), ..Self::limit(message) },
            Unavailable::WrongEra(_, era) => wrong_era(era, message),
        }
    }
}

/// What the specification itself answers where the eras differ (2026-07-28, "Compatibility Matrix"): a modern
/// server names its versions; a legacy one gives an error that is not a modern one, on which a client that
/// knows both eras falls back to `initialize`.
fn wrong_era(client: ostler_domain::Era, message: String) -> Refusal {
    use ostler_mcp::version::{LEGACY, MODERN};
    match client {
        ostler_domain::Era::Legacy => Refusal {
            data: Some(format!("{{\"supported\":[\"{MODERN}\"]}}")),
            ..Refusal::new(
                StatusCode::BAD_REQUEST,
                rpc::UNSUPPORTED_VERSION,
                format!("{message}: it speaks {MODERN} only"),
            )
        },
        ostler_domain::Era::Modern => Refusal::new(
            StatusCode::BAD_REQUEST,
            rpc::INVALID_REQUEST,
            format!("{message}: it speaks {} and older; send `initialize` first", LEGACY[3]),
        ),
    }
}
