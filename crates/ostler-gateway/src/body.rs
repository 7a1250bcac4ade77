//! Request bodies: bounded in size, in time and in memory over all requests together.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use ostler_mcp::{SHARE_FROM, rpc};
use ostler_supervisor::Budget;
use tokio::time::Instant;

use crate::reply::Refusal;

/// The slowest a body may come on average, in bytes a second. A client that sends a byte now and then is never
/// silent, and would else hold its connection for ever.
const SLOWEST: u64 = 1024;

/// The bounds of a body.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Most bytes (`gateway.max_body`).
    pub max: usize,
    /// Longest silence while it arrives (`gateway.body_timeout`); it may fall behind `SLOWEST` by twice
    /// as long.
    pub silence: Duration,
    /// The bytes that bodies may hold together (`gateway.body_memory`).
    pub budget: Arc<Budget>,
}

/// Reads a body. Its bytes count against the budget until the last piece of it is dropped.
///
/// # Errors
/// 413 when it is too large, 408 when it stops coming, 503 when there is no memory for it, 400 when the client
/// breaks off.
pub async fn read(headers: &HeaderMap, mut body: Incoming, bounds: &Bounds) -> Result<Bytes, Refusal> {
    let too_large = || {
        let message = format!("the body is larger than {} bytes (gateway.max_body)", bounds.max);
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, rpc::LIMIT_REACHED, message)
    };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: usize| length > bounds.max) {
        return Err(too_large());
    }
    let mut account = Account { bounds, held: Vec::new(), bytes: 0 };
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    let started = Instant::now();
    loop {
        let received = first.len() + rest.len();
        let Some(chunk) = next_chunk(&mut body, bounds.silence, started, received as u64).await? else {
            break;
        };
        let length = first.len() + rest.len() + chunk.len();
        if length > bounds.max {
            return Err(too_large());
        }
        account.cover(length)?;
        if first.is_empty() && rest.is_empty() {
            first = chunk;
            continue;
        }
        if rest.is_empty() {
            // What was announced is reserved at once, but never more than has a right to come.
            rest.reserve(announced.unwrap_or(length).min(bounds.max).min(4 * length));
            rest.extend_from_slice(&first);
            first = Bytes::new();
        }
        rest.extend_from_slice(&chunk);
    }
    let body = if rest.is_empty() { first } else { rest.freeze() };
    Ok(account.hold(body))
}

async fn next_chunk(
    body: &mut Incoming,
    silence: Duration,
    started: Instant,
    received: u64,
) -> Result<Option<Bytes>, Refusal> {
    // Twice, so that a body that does not come at all is called silent.
    let too_slow = started + 2 * silence + Duration::from_millis(received * 1000 / SLOWEST);
    let silent = Instant::now() + silence;
    loop {
        if body.is_end_stream() {
            return Ok(None);
        }
        let frame = match tokio::time::timeout_at(silent.min(too_slow), body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => {
                let message = format!("the body broke off: {error}");
                return Err(Refusal::new(StatusCode::BAD_REQUEST, rpc::PARSE_ERROR, message));
            }
            Err(_) => {
                let message = if silent <= too_slow {
                    format!("nothing of the body came for {silence:?} (gateway.body_timeout)")
                } else {
                    format!("the body comes at less than {SLOWEST} bytes a second (gateway.body_timeout)")
                };
                return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, rpc::LIMIT_REACHED, message));
            }
        };
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
}

/// What one body has taken of the budget, in steps as it grows.
struct Account<'a> {
    bounds: &'a Bounds,
    held: Vec<ostler_supervisor::budget::Reservation>,
    bytes: usize,
}

impl Account<'_> {
    /// The step in which memory is taken.
    const STEP: usize = 256 * 1024;

    fn cover(&mut self, length: usize) -> Result<(), Refusal> {
        if length < SHARE_FROM || length <= self.bytes {
            return Ok(());
        }
        // Small bodies take what they need, large ones take steps.
        let more =
            if self.bytes == 0 && length < Self::STEP { length } else { length - self.bytes + Self::STEP };
        match self.bounds.budget.try_reserve(more) {
            Some(reservation) => {
                self.held.push(reservation);
                self.bytes += more;
                Ok(())
            }
            None => Err(Refusal::limit(format!(
                "{} bytes of bodies are held already (gateway.body_memory)",
                self.bounds.budget.used()
            ))),
        }
    }

    fn hold(self, body: Bytes) -> Bytes {
        self.held.into_iter().fold(body, |body, reservation| reservation.hold(body))
    }
}
