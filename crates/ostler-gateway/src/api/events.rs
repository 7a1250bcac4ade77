//! Events: once, as a JSON array, or as they happen, as server-sent events.
//!
//! A stream reads the event log at the pace of its reader and keeps nothing for it: who falls behind further than the
//! log reaches back is told which events it missed, by an event of kind `gap`. What the log does not keep, as there may be
//! so much of it, comes between, without an id: a reader resumes at what is kept.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{HeaderName, StatusCode};
use ostler_api::EventView;
use ostler_api::types::KIND_GAP;
use ostler_domain::Severity;
use ostler_supervisor::clock::unix_ms;
use ostler_supervisor::events::{Entry, Events};
use serde::Deserialize;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc};

use super::{App, Failure, views};

/// Events sent when the caller does not say how many.
const DEFAULT_EVENTS: usize = 200;

/// Events read from the log at once, and so in memory for one reader.
const BATCH: usize = 64;

/// Pieces of a stream that may wait for the connection. Small: what a slow reader has not read waits in the log.
const PIECES: usize = 1;

/// The header with which a reader resumes a stream (WHATWG HTML, "Server-sent events").
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

#[derive(Debug, Deserialize)]
pub(super) struct EventQuery {
    since: Option<u64>,
    n: Option<usize>,
    kind: Option<String>,
    subject: Option<String>,
    severity: Option<String>,
}

/// Which events are wanted.
#[derive(Clone, Debug)]
struct Filter {
    kinds: Vec<String>,
    subject: Option<String>,
    least: Severity,
}

impl Filter {
    fn of(query: &EventQuery) -> Result<Self, Failure> {
        let known = [Severity::Info, Severity::Warning, Severity::Error];
        let least = match &query.severity {
            None => Severity::Info,
            Some(word) => {
                *known.iter().find(|severity| severity.as_str() == word).ok_or_else(|| Failure {
                    status: StatusCode::BAD_REQUEST,
                    error: format!("`{word}` is no severity"),
                    hint: Some(
                        "use info, warning or error: each stands for itself and what is worse".to_owned(),
                    ),
                })?
            }
        };
        let kinds = query.kind.iter().flat_map(|kinds| kinds.split(',')).map(|kind| kind.trim().to_owned());
        Ok(Self { kinds: kinds.collect(), subject: query.subject.clone(), least })
    }

    fn wants(&self, entry: &Entry) -> bool {
        let of_kind = self.kinds.is_empty() || self.kinds.iter().any(|kind| kind == entry.kind);
        let subject = self.subject.as_ref().is_none_or(|subject| about(&entry.subject, subject));
        of_kind && subject && entry.severity >= self.least
    }
}

/// Whether an event's subject is `wanted`, or an instance of the server with that name.
fn about(subject: &str, wanted: &str) -> bool {
    let instance_of = |rest: &str| {
        let number = rest.strip_prefix('.');
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    subject.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || instance_of(rest))
}

/// `GET /api/v1/events`.
pub(super) async fn events(
    State(gateway): App,
    Query(query): Query<EventQuery>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let filter = Filter::of(&query)?;
    let log = gateway.supervisor.events();
    let newest = query.n.unwrap_or(DEFAULT_EVENTS);
    if !wants_stream(&headers) {
        let mut entries = log.after(query.since.unwrap_or(0), usize::MAX);
        entries.retain(|entry| filter.wants(entry));
        let entries = entries.split_off(entries.len().saturating_sub(newest));
        return Ok(Json(entries.into_iter().map(views::event).collect::<Vec<_>>()).into_response());
    }
    let resumed = match headers.get(LAST_EVENT_ID) {
        Some(id) => Some(last_id(id)?),
        None => query.since,
    };
    let seen = resumed.unwrap_or_else(|| before_the_newest(log, &filter, newest));
    let keepalive = gateway.supervisor.config().gateway.keepalive;
    let (sender, receiver) = mpsc::channel(PIECES);
    tokio::spawn(follow(Arc::clone(log), filter, seen, keepalive, sender));
    Ok(reply(receiver))
}

pub(super) fn wants_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|item| {
        item.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/event-stream")
    })
}

fn last_id(id: &HeaderValue) -> Result<u64, Failure> {
    let number = id.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.ok_or_else(|| Failure {
        status: StatusCode::BAD_REQUEST,
        error: "`Last-Event-ID` is not the `seq` of an event".to_owned(),
        hint: Some("send the id of the last event that was read, or no such header".to_owned()),
    })
}

/// The number after which the newest `most` of the wanted events come.
fn before_the_newest(log: &Events, filter: &Filter, most: usize) -> u64 {
    let latest = *log.watch().borrow();
    let kept = log.after(0, usize::MAX);
    let wanted = kept.iter().rev().filter(|entry| entry.seq <= latest && filter.wants(entry));
    wanted.take(most).last().map_or(latest, |entry| entry.seq - 1)
}

pub(super) fn reply(receiver: mpsc::Receiver<Bytes>) -> Response {
    let pieces = stream::unfold(receiver, |mut receiver: mpsc::Receiver<Bytes>| async move {
        receiver.recv().await.map(|piece| (Ok::<_, std::io::Error>(piece), receiver))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    response
}

/// Sends the wanted events after `seen` and every further one, until the reader is gone.
async fn follow(
    log: Arc<Events>,
    filter: Filter,
    mut seen: u64,
    keepalive: Duration,
    out: mpsc::Sender<Bytes>,
) {
    let mut latest = log.watch();
    let mut passing = log.passing();
    // Headers alone do not reach every reader before the first byte of a body.
    let mut text = ":\n\n".to_owned();
    if *latest.borrow() < seen {
        text += &restarted(seen);
        seen = 0;
    }
    loop {
        latest.borrow_and_update();
        let entries = log.following(seen, BATCH);
        let idle = entries.is_empty();
        for entry in entries {
            if entry.seq > seen + 1 {
                text += &missed(seen + 1, entry.seq - 1);
            }
            seen = entry.seq;
            if filter.wants(&entry) {
                text += &event(&views::event(entry));
            }
        }
        if !text.is_empty() && out.send(std::mem::take(&mut text).into()).await.is_err() {
            return;
        }
        if !idle {
            continue;
        }
        tokio::select! {
            // The log lives as long as this task holds it.
            _ = latest.changed() => {}
            passed = passing.recv() => gather(passed, &mut passing, &filter, &mut text),
            () = tokio::time::sleep(keepalive) => text.push_str(":\n\n"),
            () = out.closed() => return,
        }
    }
}

/// What there is of events that are not kept: the first, and what waits behind it.
fn gather(
    first: Result<Arc<Entry>, RecvError>,
    passing: &mut broadcast::Receiver<Arc<Entry>>,
    filter: &Filter,
    text: &mut String,
) {
    let mut told = first;
    for left in (0..BATCH).rev() {
        match told {
            Ok(entry) if filter.wants(&entry) => *text += &unkept(&views::event(Entry::clone(&entry))),
            Ok(_) | Err(RecvError::Closed) => {}
            Err(RecvError::Lagged(count)) => {
                let message =
                    format!("{count} events that are not kept were dropped before they could be read");
                *text += &unkept(&gap_of(0, message));
            }
        }
        if left == 0 {
            return;
        }
        told = match passing.try_recv() {
            Ok(entry) => Ok(entry),
            Err(TryRecvError::Lagged(count)) => Err(RecvError::Lagged(count)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => return,
        };
    }
}

/// One server-sent event of what is not kept: without an id, so that it is no place to resume at.
fn unkept(view: &EventView) -> String {
    let name = if view.kind == KIND_GAP { "event: gap\n" } else { "" };
    format!("{name}data: {}\n\n", serde_json::to_string(view).unwrap_or_default())
}

/// One server-sent event.
fn event(view: &EventView) -> String {
    // Plain data: it always has a JSON form, and that has no line ends.
    format!("id: {}\n{}", view.seq, unkept(view))
}

fn missed(first: u64, last: u64) -> String {
    let count = last - first + 1;
    let message = format!(
        "{count} events ({first} to {last}) were dropped before they could be read: the log keeps the newest only"
    );
    gap(last, message)
}

fn restarted(seen: u64) -> String {
    let message =
        format!("event {seen} is not of this daemon, which counts from 1 since its start; all it has follow");
    gap(0, message)
}

fn gap(seq: u64, message: String) -> String {
    event(&gap_of(seq, message))
}

fn gap_of(seq: u64, message: String) -> EventView {
    EventView {
        seq,
        unix_ms: unix_ms(),
        severity: Severity::Warning.as_str().to_owned(),
        kind: KIND_GAP.to_owned(),
        subject: "daemon".to_owned(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ostler_domain::Happening;

    const LONG: Duration = Duration::from_secs(3600);

    fn query() -> EventQuery {
        EventQuery { since: None, n: None, kind: None, subject: None, severity: None }
    }

    fn all() -> Filter {
        Filter::of(&query()).expect("nothing to refuse")
    }

    fn record(log: &Events, subject: &str, what: &str) {
        log.record(subject, Happening::StopAsked { reason: what.to_owned() });
    }

    /// The ids and names of the events in a piece of a stream.
    fn heads(piece: &[u8]) -> Vec<String> {
        let text = std::str::from_utf8(piece).expect("text");
        let blocks = text.split("\n\n").filter(|block| block.starts_with("id: "));
        blocks.map(|block| block.split("\ndata: ").next().expect("a head").to_owned()).collect()
    }

    #[test]
    fn filters_take_kinds_subjects_and_severities() {
        let entry = |subject: &str, happening: &Happening| Entry {
            seq: 1,
            unix_ms: 0,
            kind: happening.kind(),
            severity: happening.severity(),
            subject: subject.to_owned(),
            message: String::new(),
        };
        let refused = Happening::Refused { what: "x".to_owned(), why: "y".to_owned() };
        let stop = Happening::StopAsked { reason: "x".to_owned() };
        let wants = |query: EventQuery, subject: &str, happening: &Happening| {
            Filter::of(&query).expect("sound").wants(&entry(subject, happening))
        };
        let kind = |kinds: &str| EventQuery { kind: Some(kinds.to_owned()), ..query() };
        assert!(wants(kind("ready, refused"), "a", &refused) && !wants(kind("ready"), "a", &refused));
        let severity = |word: &str| EventQuery { severity: Some(word.to_owned()), ..query() };
        assert!(wants(severity("warning"), "a", &refused) && !wants(severity("warning"), "a", &stop));
        assert!(!wants(severity("error"), "a", &refused) && wants(severity("info"), "a", &stop));
        assert!(
            Filter::of(&severity("bad"))
                .expect_err("unknown")
                .hint
                .is_some_and(|hint| hint.contains("error"))
        );
        for (subject, wanted, is_it) in [
            ("db", "db", true),
            ("db.12", "db", true),
            ("db.12", "db.12", true),
            ("db.12", "db.1", false),
            ("dbx", "db", false),
            ("db.x", "db", false),
            ("db.", "db", false),
        ] {
            assert_eq!(about(subject, wanted), is_it, "{subject} {wanted}");
        }
    }

    #[tokio::test]
    async fn a_reader_gets_what_is_kept_and_then_what_happens() {
        let log = Arc::new(Events::default());
        for number in 1..=5 {
            record(&log, "a", &number.to_string());
        }
        assert_eq!(before_the_newest(&log, &all(), 2), 3);
        assert_eq!(before_the_newest(&log, &all(), 0), 5);
        let (sender, mut pieces) = mpsc::channel(PIECES);
        let following = tokio::spawn(follow(Arc::clone(&log), all(), 3, LONG, sender));
        assert_eq!(heads(&pieces.recv().await.expect("a piece")), ["id: 4", "id: 5"]);
        record(&log, "a", "6");
        assert_eq!(heads(&pieces.recv().await.expect("a piece")), ["id: 6"]);
        drop(pieces);
        following.await.expect("it ends with its reader");
    }

    #[tokio::test]
    async fn a_reader_that_falls_behind_is_told_what_it_missed() {
        let log = Arc::new(Events::default());
        record(&log, "a", "1");
        let (sender, mut pieces) = mpsc::channel(PIECES);
        tokio::spawn(follow(Arc::clone(&log), all(), 0, LONG, sender));
        assert_eq!(heads(&pieces.recv().await.expect("a piece")), ["id: 1"]);
        let most = ostler_supervisor::events::MAX_EVENTS as u64;
        for number in 2..=most + 11 {
            record(&log, "a", &number.to_string());
        }
        let mut seen = Vec::new();
        while seen.last() != Some(&format!("id: {}", most + 11)) {
            seen.extend(heads(&pieces.recv().await.expect("a piece")));
        }
        // What is kept begins with event 12; 2 to 11 are gone.
        assert_eq!(seen[..2], ["id: 11\nevent: gap", "id: 12"]);
        assert_eq!(seen.len() as u64, most + 1);
    }

    #[tokio::test]
    async fn what_is_not_kept_comes_between_and_is_no_place_to_resume_at() {
        let log = Arc::new(Events::default());
        record(&log, "a", "1");
        let (sender, mut pieces) = mpsc::channel(PIECES);
        let kind = EventQuery { kind: Some("task-complete".to_owned()), ..query() };
        let filter = Filter::of(&kind).expect("sound");
        tokio::spawn(follow(Arc::clone(&log), filter, 0, LONG, sender));
        assert_eq!(pieces.recv().await.expect("the first"), ":\n\n");
        // It listens: it has said so.
        log.pass("t7-00000000", &Happening::TaskComplete);
        log.pass("x", &Happening::StopAsked { reason: "not wanted".to_owned() });
        let piece = pieces.recv().await.expect("a piece");
        let text = std::str::from_utf8(&piece).expect("text");
        assert!(text.starts_with("data: {\"seq\":1,") && text.contains("t7-00000000"), "{text}");
        let most = ostler_supervisor::events::MAX_PASSING;
        for _ in 0..=most + 1 {
            log.pass("t8-00000000", &Happening::TaskComplete);
        }
        let piece = pieces.recv().await.expect("a piece");
        assert!(piece.starts_with(b"event: gap\ndata: {\"seq\":0,"), "{piece:?}");
    }

    #[tokio::test]
    async fn a_number_of_an_earlier_daemon_is_said_to_be_one() {
        let log = Arc::new(Events::default());
        record(&log, "a", "1");
        let (sender, mut pieces) = mpsc::channel(PIECES);
        tokio::spawn(follow(Arc::clone(&log), all(), 500, LONG, sender));
        assert_eq!(heads(&pieces.recv().await.expect("a piece")), ["id: 0\nevent: gap", "id: 1"]);
    }

    #[tokio::test]
    async fn a_silent_stream_is_kept_open() {
        let log = Arc::new(Events::default());
        let (sender, mut pieces) = mpsc::channel(PIECES);
        tokio::spawn(follow(log, all(), 0, Duration::from_millis(1), sender));
        assert_eq!(pieces.recv().await.expect("the first"), ":\n\n");
        assert_eq!(pieces.recv().await.expect("after a while"), ":\n\n");
    }
}
