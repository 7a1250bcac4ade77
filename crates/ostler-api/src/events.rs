//! Events as they come: which are wanted, and the stream of them.

use std::collections::VecDeque;
use std::fmt;

use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};

use crate::client::{ConnectionGuard, decode};
use crate::error::ClientError;
use crate::query;
use crate::run::RunEvent;
use crate::types::EventView;
use crate::types::tasks::TaskNews;

/// Longest event that is taken, in bytes; the daemon cuts texts far below this.
const MAX_EVENT: usize = 1 << 20;
/// The same of a run, whose last event holds all results.
const MAX_RUN_EVENT: usize = 64 << 20;

/// Which events are wanted. It is shown as the query string that says so, without its `?`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EventQuery {
    /// Only those with a greater `seq`.
    pub since: Option<u64>,
    /// Begin with at most this many, the newest.
    pub n: Option<u64>,
    /// Only those of this kind, or of these, with commas between.
    pub kind: Option<String>,
    /// Only what happened to this; a server's name stands for its instances, too.
    pub subject: Option<String>,
    /// Only what is at least `info`, `warning` or `error`.
    pub severity: Option<String>,
}

impl fmt::Display for EventQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = [("since", self.since), ("n", self.n)];
        let figures = figures.into_iter().filter_map(|(name, value)| Some((name, value?.to_string())));
        let texts = [("kind", &self.kind), ("subject", &self.subject), ("severity", &self.severity)];
        let texts = texts.into_iter().filter_map(|(name, value)| Some((name, value.clone()?)));
        f.write_str(&query::written(figures.chain(texts)))
    }
}

/// Events as they happen. Dropping it ends the request.
#[derive(Debug)]
pub struct EventStream {
    body: Incoming,
    parser: Parser,
    ready: VecDeque<Bytes>,
    _connection: ConnectionGuard,
}

impl EventStream {
    pub(crate) fn new(body: Incoming, connection: ConnectionGuard) -> Self {
        Self::of(body, connection, MAX_EVENT)
    }

    fn of(body: Incoming, connection: ConnectionGuard, longest: usize) -> Self {
        Self { body, parser: Parser::new(longest), ready: VecDeque::new(), _connection: connection }
    }

    /// The next event, waiting for it without a bound; `None` when the daemon has ended.
    ///
    /// # Errors
    ///
    /// [`ClientError::Protocol`] when what came is no event.
    pub async fn next(&mut self) -> Result<Option<EventView>, ClientError> {
        match self.next_raw().await? {
            Some(event) => decode(&event).map(Some),
            None => Ok(None),
        }
    }

    /// The next event as the daemon sent it: a JSON object on one line.
    ///
    /// # Errors
    ///
    /// As [`EventStream::next`].
    pub async fn next_raw(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            // A daemon that ends cuts the connection: that is how such a stream ends.
            let Some(Ok(frame)) = self.body.frame().await else { return Ok(None) };
            if let Ok(piece) = frame.into_data() {
                let ready = &mut self.ready;
                self.parser.push(&piece, |event| ready.push_back(event))?;
            }
        }
    }
}

/// What a run says as it goes on. Dropping it ends the request, and cancels what is left of the run.
#[derive(Debug)]
pub struct RunStream(EventStream);

impl RunStream {
    pub(crate) fn new(body: Incoming, connection: ConnectionGuard) -> Self {
        Self(EventStream::of(body, connection, MAX_RUN_EVENT))
    }

    /// The next event, waiting for it without a bound.
    ///
    /// # Errors
    ///
    /// [`ClientError::Protocol`] when the daemon ended before the run did, or what came is no event.
    pub async fn next(&mut self) -> Result<RunEvent, ClientError> {
        match self.0.next_raw().await? {
            Some(event) => decode(&event),
            None => Err(ClientError::Protocol("the daemon ended before the run did".to_owned())),
        }
    }
}

/// News of a task as it comes. Dropping it ends the request; the task goes on.
#[derive(Debug)]
pub struct TaskStream(EventStream);

impl TaskStream {
    pub(crate) fn new(body: Incoming, connection: ConnectionGuard) -> Self {
        Self(EventStream::new(body, connection))
    }

    /// The next news, waiting for it without a bound; `None` when there is no more: the task has ended, as the last
    /// state said, or the daemon has.
    ///
    /// # Errors
    ///
    /// [`ClientError::Protocol`] when what came is no news.
    pub async fn next(&mut self) -> Result<Option<TaskNews>, ClientError> {
        match self.next_raw().await? {
            Some(news) => decode(&news).map(Some),
            None => Ok(None),
        }
    }

    /// The next news as the daemon sent it: a JSON object on one line.
    ///
    /// # Errors
    ///
    /// As [`TaskStream::next`].
    pub async fn next_raw(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.0.next_raw().await
    }
}

/// Reads what the daemon sends of the event stream format: lines ending with LF, `data` in one line, comments, and
/// fields that are of no use here.
#[derive(Debug)]
struct Parser {
    /// Longest line that is taken, in bytes.
    longest: usize,
    /// The line that is not complete yet.
    line: Vec<u8>,
    /// The data of the event that is not complete yet.
    data: Option<Bytes>,
}

impl Parser {
    fn new(longest: usize) -> Self {
        Self { longest, line: Vec::new(), data: None }
    }

    fn push(&mut self, piece: &[u8], mut event: impl FnMut(Bytes)) -> Result<(), ClientError> {
        let mut rest = piece;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.line);
            if line.is_empty() {
                self.data.take().into_iter().for_each(&mut event);
            } else if let Some(data) = line.strip_prefix(b"data:") {
                self.data = Some(Bytes::copy_from_slice(data.trim_ascii()));
            }
        }
        self.line.extend_from_slice(rest);
        let longest = self.longest;
        if self.line.len() > longest {
            return Err(ClientError::Protocol(format!("an event is longer than {longest} bytes")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_for_is_in_the_query() {
        assert_eq!(EventQuery::default().to_string(), "");
        let query = EventQuery { n: Some(0), severity: Some("error".to_owned()), ..EventQuery::default() };
        assert_eq!(query.to_string(), "n=0&severity=error");
    }

    #[test]
    fn events_are_the_same_however_the_stream_is_cut() {
        let stream =
            b":\n\nretry: 5\n\nid: 1\ndata: {\"a\":1}\n\n:\n\nid: 2\nevent: gap\ndata:{}\n\ndata: cut";
        for size in 1..stream.len() {
            let mut parser = Parser::new(MAX_EVENT);
            let mut events = Vec::new();
            for piece in stream.chunks(size) {
                parser.push(piece, |event| events.push(event)).expect("short");
            }
            assert_eq!(events, ["{\"a\":1}", "{}"], "pieces of {size}");
        }
    }

    #[test]
    fn a_line_without_an_end_is_refused() {
        let mut parser = Parser::new(MAX_EVENT);
        let long = vec![b'x'; MAX_EVENT + 1];
        assert!(matches!(parser.push(&long, |_| {}), Err(ClientError::Protocol(_))));
    }
}
