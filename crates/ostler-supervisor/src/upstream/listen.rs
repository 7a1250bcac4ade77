//! The stream on which a legacy server says what belongs to no call (2025-11-25, Streamable HTTP, "Listening for
//! Messages from the Server").
//!
//! A server need not offer it. One that does is asked for it again when it is lost, ever more slowly; meanwhile the
//! instance counts as degraded, because nothing that the server says by itself can arrive.

use std::time::Duration;

use http::header::ACCEPT;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use hyper::body::Incoming;
use ostler_mcp::Sse;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::body::{Events, Unread, is};
use super::client::{EVENTS, Pieces};
use super::http::Way;
use crate::connection::{Frame, News};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// The first and the longest pause before a stream is asked for again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// A stream that held for so long was a good one: the next is asked for soon.
const GOOD: Duration = Duration::from_secs(10);
/// Answers that neither give a stream nor say that there is none, after which a server that never gave one is taken
/// to offer none.
const ODD: u32 = 5;

/// The pauses between attempts: each twice the one before, unless the server asks for another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    next: Duration,
    /// What the server asked for.
    least: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: PAUSE.0, least: Duration::ZERO }
    }
}

impl Backoff {
    /// The pause before the next attempt.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.next.max(self.least);
        self.next = (self.next * 2).min(PAUSE.1);
        pause
    }

    /// The server asks to be left alone for so long; no longer than it would be anyway.
    pub(super) fn asked(&mut self, ms: u64) {
        self.least = Duration::from_millis(ms).min(PAUSE.1);
    }

    /// The same with the pauses starting over.
    pub(super) fn fresh(self) -> Self {
        Self { next: PAUSE.0, ..self }
    }
}

/// Asks for a stream, or for the rest of one after the event with this id.
///
/// # Errors
/// What went wrong on the way.
pub(super) async fn open(way: &Way, after: Option<&str>) -> Result<Response<Incoming>, String> {
    let mut headers: HeaderMap = way.session.headers();
    headers.insert(ACCEPT, EVENTS);
    if let Some(id) = after.and_then(|id| HeaderValue::try_from(id).ok()) {
        headers.insert(LAST_EVENT_ID, id);
    }
    way.client.send(Method::GET, &way.uri, &headers, Pieces::default()).await
}

/// Whether a refusal says nothing for good: the next attempt may fare better.
pub(super) fn passing(status: StatusCode) -> bool {
    let code = status.as_u16();
    matches!(code, 408 | 409 | 425 | 429) || (status.is_server_error() && code != 501)
}

/// What has become of the stream so far.
#[derive(Debug, Default)]
struct Course {
    /// There was one.
    had: bool,
    /// It could not be had again, which was told.
    lost: bool,
    /// Where it can be taken up again.
    last_id: Option<String>,
    /// Odd answers so far.
    odd: u32,
}

/// Follows the stream for as long as it is offered; whether it ended because the server knows its session no more.
/// `answered` hears of the first answer, whatever it is.
pub(super) async fn run(way: Way, answered: oneshot::Sender<()>) -> bool {
    let mut answered = Some(answered);
    let (mut backoff, mut course) = (Backoff::default(), Course::default());
    loop {
        let opened = open(&way, course.last_id.as_deref()).await;
        drop(answered.take());
        match opened {
            Ok(answer) if answer.status() == StatusCode::OK && is(answer.headers(), "text/event-stream") => {
                if std::mem::take(&mut course.lost) {
                    way.context.tell(News::StreamBack).await;
                }
                course.had = true;
                let began = Instant::now();
                let mut events =
                    Events::new(answer.into_body(), way.context.max_message, &way.context.budget);
                let why = follow(&way, &mut events, &mut backoff).await;
                course.last_id = events.last_id().map(str::to_owned).or(course.last_id);
                if began.elapsed() >= GOOD {
                    backoff = backoff.fresh();
                }
                tracing::debug!(instance = %way.context.instance, why, "the stream of a server ended");
            }
            Ok(answer) => match course.refused(&way, answer.status()).await {
                After::Again => {}
                After::AtOnce => continue,
                After::End { session_lost } => return session_lost,
            },
            Err(why) => course.report(&way, &why).await,
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// What follows when there was no stream.
enum After {
    /// It is asked for again after a pause.
    Again,
    /// It is asked for again, differently.
    AtOnce,
    /// There is none to be had.
    End { session_lost: bool },
}

impl Course {
    async fn refused(&mut self, way: &Way, status: StatusCode) -> After {
        if self.had && status == StatusCode::NOT_FOUND && way.session.is_named() {
            return After::End { session_lost: true };
        }
        // It offers none: 405 says so, and where nothing answers to GET at all the others mean it.
        if !self.had && matches!(status.as_u16(), 404 | 405 | 501) {
            return After::End { session_lost: false };
        }
        let why = format!("HTTP {status}");
        if passing(status) {
            self.report(way, &why).await;
            return After::Again;
        }
        // A server that does not know the event any more must not be asked for it for ever.
        if self.last_id.take().is_some() {
            way.context.events.count("upstream.stream_gap");
            way.context.note(&format!(
                "the server does not take up its stream where it broke off ({why}): what it said meanwhile is lost"
            ));
            return After::AtOnce;
        }
        if self.had {
            self.report(way, &why).await;
            return After::Again;
        }
        self.odd += 1;
        if self.odd < ODD {
            return After::Again;
        }
        way.context.note(&format!(
            "the server gives no stream for what belongs to no call ({why} {ODD} times): it is taken to offer none"
        ));
        After::End { session_lost: false }
    }

    /// It is lost once it could not be had again: a server may close it now and then.
    async fn report(&mut self, way: &Way, why: &str) {
        way.context.events.count("upstream.stream_lost");
        if !std::mem::replace(&mut self.lost, true) {
            way.context.note(&format!("the server's stream is lost: {why}; it is asked for again"));
            way.context.tell(News::StreamLost).await;
        }
    }
}

/// Passes on what it says; returns why it ended.
async fn follow(way: &Way, events: &mut Events, backoff: &mut Backoff) -> String {
    loop {
        match events.next().await {
            Ok(Some(Sse::Event { data, .. })) if data.is_empty() => {}
            Ok(Some(Sse::Event { data, .. })) => {
                way.context.give(Frame::Message { text: data, of: None }).await
            }
            Ok(Some(Sse::Retry(ms))) => backoff.asked(ms),
            Ok(Some(Sse::TooLong(bytes))) => drop(way.context.too_long(bytes)),
            Ok(None) => return "the server closed it".to_owned(),
            Err(Unread::Broken(why)) => return why,
            Err(_) => return "there is no memory for what it says (gateway.body_memory)".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_the_server_may_ask_for_longer_ones() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..12).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000, 30_000]);
        backoff.asked(5_000);
        let mut fresh = backoff.fresh();
        assert_eq!((fresh.next().as_millis(), fresh.next().as_millis()), (5_000, 5_000));
        fresh.asked(u64::MAX);
        assert_eq!(fresh.next(), PAUSE.1, "but not for ever");
    }
}
