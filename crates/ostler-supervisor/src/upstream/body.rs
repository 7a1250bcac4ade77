//! Bodies that a server sends: bounded in size, and held against the budget of all bodies while they come and until
//! the last piece of them is dropped.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use ostler_domain::text::without_secrets;
use ostler_mcp::{SHARE_FROM, Sse, SseReader, on_one_line};

use crate::budget::{Budget, Reservation};
use crate::web::describe;

/// How long a body waits for memory (`gateway.body_memory`) before it is given up. Bodies that wait for each other's
/// would else wait for good.
const MEMORY: Duration = Duration::from_secs(10);
/// The steps in which memory is taken for what grows.
const STEP: usize = 256 * 1024;
/// Bytes of an error's body that are looked at.
const MAX_ERROR: usize = 64 * 1024;
/// Characters of such a body, or of an address in its head, that people are told.
const MAX_EXCERPT: usize = 300;

/// Why no body came.
#[derive(Debug)]
pub(super) enum Unread {
    /// It broke off.
    Broken(String),
    /// It is longer than a message may be; this many bytes were seen.
    TooLong(usize),
    /// There was no memory for it.
    NoMemory,
}

/// What one body has taken of the budget.
struct Account {
    budget: Arc<Budget>,
    held: Vec<Reservation>,
    bytes: usize,
}

impl Account {
    fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), held: Vec::new(), bytes: 0 }
    }

    /// Takes what is missing for `length` bytes.
    async fn cover(&mut self, length: usize) -> Result<(), Unread> {
        if length < SHARE_FROM || length <= self.bytes {
            return Ok(());
        }
        // Small bodies take what they need, large ones take steps.
        let more = if self.bytes == 0 && length < STEP { length } else { length - self.bytes + STEP };
        let reserved = tokio::time::timeout(MEMORY, self.budget.reserve(more)).await;
        self.held.push(reserved.map_err(|_| Unread::NoMemory)?);
        self.bytes += more;
        Ok(())
    }

    /// Ties what was taken to `bytes`, if those are to be counted.
    fn hold(&mut self, bytes: Bytes) -> Bytes {
        self.bytes = 0;
        let held = std::mem::take(&mut self.held);
        if bytes.len() < SHARE_FROM {
            return bytes;
        }
        held.into_iter().fold(bytes, |bytes, reservation| reservation.hold(bytes))
    }
}

/// Counts bytes that are there already against the budget.
///
/// # Errors
/// When there is no memory for them.
pub(super) async fn count(bytes: Bytes, budget: &Arc<Budget>) -> Result<Bytes, Unread> {
    let mut account = Account::new(budget);
    account.cover(bytes.len()).await?;
    Ok(account.hold(bytes))
}

/// Whether the answer is of this kind, whatever parameters it has.
pub(super) fn is(headers: &HeaderMap, kind: &str) -> bool {
    let said = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    said.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(kind)
}

/// Reads a whole body of at most `max` bytes, as one line.
///
/// # Errors
/// See [`Unread`].
pub(super) async fn whole(mut body: Incoming, max: usize, budget: &Arc<Budget>) -> Result<Bytes, Unread> {
    let mut account = Account::new(budget);
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    while let Some(chunk) = chunk(&mut body).await.map_err(Unread::Broken)? {
        let length = first.len() + rest.len() + chunk.len();
        if length > max {
            return Err(Unread::TooLong(length));
        }
        account.cover(length).await?;
        if first.is_empty() && rest.is_empty() {
            first = chunk;
            continue;
        }
        if rest.is_empty() {
            rest.extend_from_slice(&std::mem::take(&mut first));
        }
        rest.extend_from_slice(&chunk);
    }
    Ok(account.hold(on_one_line(if rest.is_empty() { first } else { rest.freeze() })))
}

/// The next bytes of a body.
async fn chunk(body: &mut Incoming) -> Result<Option<Bytes>, String> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(error)) => return Err(describe(&error)),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// What an answer that is none says, for people: its status and the beginning of its body.
pub(super) async fn refusal(answer: Response<Incoming>) -> (String, Bytes) {
    let status = answer.status();
    let elsewhere = answer.headers().get(LOCATION).and_then(|place| place.to_str().ok());
    // The server has its secrets from the configuration.
    let elsewhere =
        elsewhere.map(|place| without_secrets(place).chars().take(MAX_EXCERPT).collect::<String>());
    let mut body = answer.into_body();
    let mut bytes = BytesMut::new();
    while bytes.len() < MAX_ERROR
        && let Ok(Some(chunk)) = chunk(&mut body).await
    {
        bytes.extend_from_slice(&chunk[..chunk.len().min(MAX_ERROR - bytes.len())]);
    }
    let bytes = bytes.freeze();
    let text = String::from_utf8_lossy(&bytes);
    let excerpt: String = text.trim().chars().take(MAX_EXCERPT).collect();
    let colon = if excerpt.is_empty() { "" } else { ": " };
    let help = match status.as_u16() {
        401 => " (give credentials in `headers`)".to_owned(),
        // Not followed: see `WebClient`.
        300..=399 => elsewhere.map(|place| format!(" (give its address as {place})")).unwrap_or_default(),
        _ => String::new(),
    };
    (format!("the server answered HTTP {status}{help}{colon}{excerpt}"), bytes)
}

/// A stream of events as it comes.
pub(super) struct Events {
    body: Incoming,
    reader: SseReader,
    account: Account,
}

impl Events {
    pub(super) fn new(body: Incoming, max: usize, budget: &Arc<Budget>) -> Self {
        Self { body, reader: SseReader::new(max), account: Account::new(budget) }
    }

    /// The id of the last event: where the stream can be taken up again.
    pub(super) fn last_id(&self) -> Option<&str> {
        self.reader.last_id()
    }

    /// What the stream says next, data on one line; `None` at its end. Not cancel-safe: a stream is read by one task.
    ///
    /// # Errors
    /// When it breaks off, or there is no memory for what it says.
    pub(super) async fn next(&mut self) -> Result<Option<Sse>, Unread> {
        loop {
            match self.reader.next() {
                Some(Sse::Event { name, data }) => {
                    let data = self.account.hold(on_one_line(data));
                    return Ok(Some(Sse::Event { name, data }));
                }
                Some(said) => return Ok(Some(said)),
                None => {}
            }
            match chunk(&mut self.body).await.map_err(Unread::Broken)? {
                None => return Ok(None),
                Some(chunk) => {
                    self.account.cover(self.reader.held() + chunk.len()).await?;
                    self.reader.push(&chunk);
                }
            }
        }
    }
}
