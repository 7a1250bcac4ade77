//! Reading server-sent events (HTML Living Standard, "Interpreting an event stream"), as the transports of MCP over
//! HTTP use them: bounded, and with the data of an event as it came.

use bytes::{Bytes, BytesMut};

/// Longest name or id of an event, in bytes; a longer one is ignored, as an id that is sent back must not be cut.
const MAX_FIELD: usize = 4096;
/// The byte order mark, which a stream may begin with.
const MARK: &[u8] = b"\xEF\xBB\xBF";

/// What a stream of events said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sse {
    /// An event.
    Event {
        /// Its type; `message` where the stream names none.
        name: Box<str>,
        /// Its data, lines joined by `\n`; empty for an event that only sets the id.
        data: Bytes,
    },
    /// After the stream's end the client is to wait so many milliseconds before it comes back.
    Retry(u64),
    /// An event was longer than the limit and was dropped; this many bytes of it were seen.
    TooLong(usize),
}

/// Takes a stream of events apart; bytes go in by [`SseReader::push`], what they say comes out of
/// [`SseReader::next`].
#[derive(Debug)]
pub struct SseReader {
    /// Bytes that are no complete line yet, and complete lines not looked at yet.
    buffer: BytesMut,
    /// Bytes of `buffer` known to hold no line end.
    searched: usize,
    /// The line before ended with a carriage return, so that a line feed right behind it ends no further line.
    after_return: bool,
    first_line: bool,
    max: usize,
    name: Box<str>,
    data: BytesMut,
    /// Whether a `data` field came since the last event.
    has_data: bool,
    /// What `id` fields said since the last event: an event that breaks off before its end does not count.
    next_id: Option<Option<Box<str>>>,
    last_id: Option<Box<str>>,
    /// The event at hand is over the limit: its rest is dropped.
    skipping: bool,
    skipped: usize,
}

impl SseReader {
    /// Events of at most `max` bytes of data.
    pub fn new(max: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            searched: 0,
            after_return: false,
            first_line: true,
            max,
            name: Box::default(),
            data: BytesMut::new(),
            has_data: false,
            next_id: None,
            last_id: None,
            skipping: false,
            skipped: 0,
        }
    }

    /// Takes the next bytes of the stream in.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes held that are no complete event yet.
    pub fn held(&self) -> usize {
        self.buffer.len() + self.data.len()
    }

    /// The id of the last event that had one: where the stream can be taken up again.
    pub fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    /// What the stream says next, or `None` until more bytes have come.
    #[expect(clippy::should_implement_trait, reason = "its end is not that of the stream")]
    pub fn next(&mut self) -> Option<Sse> {
        loop {
            let Some(line) = self.line() else {
                self.bound();
                return None;
            };
            if line.is_empty() {
                match self.dispatch() {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            if let Some(retry) = self.field(line) {
                return Some(retry);
            }
        }
    }

    /// The next line, without its end.
    fn line(&mut self) -> Option<BytesMut> {
        if self.after_return && !self.buffer.is_empty() {
            self.after_return = false;
            if self.buffer[0] == b'\n' {
                drop(self.buffer.split_to(1));
                self.searched = 0;
            }
        }
        let Some(offset) = memchr::memchr2(b'\n', b'\r', &self.buffer[self.searched..]) else {
            self.searched = self.buffer.len();
            return None;
        };
        let end = self.searched + offset;
        self.after_return = self.buffer[end] == b'\r';
        self.searched = 0;
        let mut line = self.buffer.split_to(end + 1);
        line.truncate(end);
        if std::mem::take(&mut self.first_line) && line.starts_with(MARK) {
            drop(line.split_to(MARK.len()));
        }
        Some(line)
    }

    /// Drops what is over the limit, be its line complete or not.
    fn bound(&mut self) {
        // Room for the field's name.
        if self.skipping || self.held() > self.max.saturating_add("data: ".len()) {
            self.skipping = true;
            self.skipped += self.held();
            self.data = BytesMut::new();
            // The kept byte stands for the line that goes on: what follows must not look like a new one.
            if !self.buffer.is_empty() {
                self.skipped -= 1;
                self.buffer = BytesMut::from(&b":"[..]);
                self.searched = 1;
            }
        }
    }

    /// Takes a line that is not empty in.
    fn field(&mut self, mut line: BytesMut) -> Option<Sse> {
        let colon = memchr::memchr(b':', &line).unwrap_or(line.len());
        let name = line.split_to(colon);
        if !line.is_empty() {
            drop(line.split_to(if line.starts_with(b": ") { 2 } else { 1 }));
        }
        match &*name {
            b"data" if self.skipping => self.skipped += line.len(),
            b"data" if !self.has_data => {
                self.has_data = true;
                // Most events have one line: it is not copied.
                self.data = line;
                self.check();
            }
            b"data" => {
                self.data.extend_from_slice(b"\n");
                self.data.extend_from_slice(&line);
                self.check();
            }
            b"event" if line.len() <= MAX_FIELD => self.name = String::from_utf8_lossy(&line).into(),
            b"id" if line.len() <= MAX_FIELD && memchr::memchr(0, &line).is_none() => {
                // The empty id takes the last one back.
                self.next_id = Some((!line.is_empty()).then(|| String::from_utf8_lossy(&line).into()));
            }
            b"retry" => return std::str::from_utf8(&line).ok()?.parse().ok().map(Sse::Retry),
            _ => {}
        }
        None
    }

    fn check(&mut self) {
        if self.data.len() > self.max {
            self.skipping = true;
            self.skipped += self.data.len();
            self.data = BytesMut::new();
        }
    }

    /// An empty line ends an event.
    fn dispatch(&mut self) -> Option<Sse> {
        let name = std::mem::take(&mut self.name);
        let data = std::mem::take(&mut self.data).freeze();
        let has_id = self.next_id.is_some();
        if let Some(id) = self.next_id.take() {
            self.last_id = id;
        }
        let has_data = std::mem::take(&mut self.has_data);
        if std::mem::take(&mut self.skipping) {
            return Some(Sse::TooLong(std::mem::take(&mut self.skipped)));
        }
        // One without data is none, but its id counts, and whoever follows the stream is to know of it.
        (has_data || has_id).then(|| {
            let name = if name.is_empty() { "message".into() } else { name };
            Sse::Event { name, data }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(chunks: &[&[u8]], max: usize) -> (Vec<Sse>, Option<String>) {
        let mut reader = SseReader::new(max);
        let mut found = Vec::new();
        for chunk in chunks {
            reader.push(chunk);
            while let Some(said) = reader.next() {
                found.push(said);
            }
        }
        (found, reader.last_id().map(str::to_owned))
    }

    fn event(name: &str, data: &str) -> Sse {
        Sse::Event { name: name.into(), data: Bytes::copy_from_slice(data.as_bytes()) }
    }

    #[test]
    fn events_as_the_standard_reads_them() {
        let stream = "\u{feff}: a comment\nid: 7\r\nretry: 250\rdata: one\ndata:two\ndata\n\nevent: endpoint\ndata: /m\n\n\
                      id\nretry: soon\ndata:  {\"a\": 1}\n\nid: 9\ndata:\n\nevent: lost\n\ndata: cut off";
        let (found, last) = read(&[stream.as_bytes()], 100);
        assert_eq!(
            found,
            [
                Sse::Retry(250),
                event("message", "one\ntwo\n"),
                event("endpoint", "/m"),
                event("message", " {\"a\": 1}"),
                event("message", ""),
            ]
        );
        assert_eq!(last.as_deref(), Some("9"));
    }

    #[test]
    fn the_id_of_an_event_that_breaks_off_does_not_count() {
        let (found, last) = read(&[b"id: 6\ndata: a\n\nid: 7\ndata: {\"half"], 1000);
        assert_eq!((found.as_slice(), last.as_deref()), ([event("message", "a")].as_slice(), Some("6")));
        let (_, last) = read(&[b"id: 6\ndata: a\n\nid: 7\ndata: b\n"], 1000);
        assert_eq!(last.as_deref(), Some("6"), "its lines are whole, and it is not");
    }

    #[test]
    fn an_event_over_the_limit_is_dropped_and_the_next_one_is_not() {
        let long = format!("data: {}\nevent: x\n\ndata: ok\n\ndata: 1234\ndata: 5678901\n\n", "x".repeat(50));
        let (found, _) = read(&[long.as_bytes()], 10);
        assert!(matches!(found[..], [Sse::TooLong(50), _, Sse::TooLong(_)]), "{found:?}");
        assert_eq!(found[1], event("message", "ok"));
        // Nothing of it is held while it comes.
        let mut reader = SseReader::new(1000);
        reader.push(b"data: ");
        for _ in 0..100 {
            reader.push(&[b'x'; 1000]);
            assert_eq!(reader.next(), None);
            assert!(reader.held() <= 2000, "{}", reader.held());
        }
        reader.push(b"data: y\n\n");
        assert!(
            matches!(reader.next(), Some(Sse::TooLong(length)) if length > 99_000),
            "the end of that line"
        );
    }

    proptest! {
        #[test]
        fn reading_does_not_depend_on_the_chunks(
            text in "(data|id|event|retry|:|: |x|1|\n|\r|\r\n|\n\n){0,40}",
            cuts in proptest::collection::vec(0usize..80, 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let (mut chunks, mut at) = (Vec::new(), 0);
            for cut in cuts.into_iter().chain([text.len()]) {
                chunks.push(&text.as_bytes()[at..cut]);
                at = cut;
            }
            prop_assert_eq!(read(&chunks, 1000), read(&[text.as_bytes()], 1000));
        }
    }
}
