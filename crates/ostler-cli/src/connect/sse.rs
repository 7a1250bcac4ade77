//! Server-sent events, parsed as they come. The rules are those of the WHATWG HTML standard, section
//! "Interpreting an event stream": lines end with LF, CR or CR LF; `data` lines are joined with LF; an id
//! counts once its event is complete.

use std::time::Duration;

use bytes::Bytes;
use memchr::memchr2;

/// An event or a line is longer than the limit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {0} bytes")]
pub(crate) struct TooLong(pub(crate) usize);

/// An incremental parser. What it yields does not depend on how the stream was cut into pieces.
#[derive(Debug)]
pub(crate) struct Parser {
    /// The line that is not complete yet.
    line: Vec<u8>,
    /// The `data` of the event that is not complete yet, each line with its LF.
    data: Vec<u8>,
    pending_id: Option<String>,
    last_id: Option<String>,
    retry: Option<Duration>,
    /// The last byte was a CR, so an LF that follows belongs to it.
    after_cr: bool,
    at_start: bool,
    limit: usize,
}

impl Parser {
    /// A parser that refuses an event of more than `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            line: Vec::new(),
            data: Vec::new(),
            pending_id: None,
            last_id: None,
            retry: None,
            after_cr: false,
            at_start: true,
            limit,
        }
    }

    /// The id of the last complete event that had one. Survives events without an id.
    pub(crate) fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    /// The pause before reconnecting that the stream last asked for.
    pub(crate) fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// Bytes held for the event that is not complete yet.
    pub(crate) fn held(&self) -> usize {
        self.line.len() + self.data.len()
    }

    /// Takes the next piece of the stream and gives the data of each event it completes to `event`. Events
    /// without data (those that only carry an id) are not given.
    pub(crate) fn push(&mut self, mut piece: &[u8], mut event: impl FnMut(Bytes)) -> Result<(), TooLong> {
        while !piece.is_empty() {
            if std::mem::take(&mut self.after_cr) && piece[0] == b'\n' {
                piece = &piece[1..];
                continue;
            }
            let Some(end) = memchr2(b'\n', b'\r', piece) else {
                self.line.extend_from_slice(piece);
                return self.check();
            };
            self.line.extend_from_slice(&piece[..end]);
            self.check()?;
            self.after_cr = piece[end] == b'\r';
            piece = &piece[end + 1..];
            self.end_line(&mut event)?;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TooLong> {
        // The allowance is for the name of the field; the limit is of the data.
        if self.held() > self.limit.saturating_add(64) { Err(TooLong(self.limit)) } else { Ok(()) }
    }

    fn end_line(&mut self, event: &mut impl FnMut(Bytes)) -> Result<(), TooLong> {
        let whole = std::mem::take(&mut self.line);
        let mut line = whole.as_slice();
        if std::mem::take(&mut self.at_start) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            self.end_event(event);
            return Ok(());
        }
        let (field, value) = match memchr::memchr(b':', line) {
            Some(colon) => {
                let value = &line[colon + 1..];
                (&line[..colon], value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, &line[line.len()..]),
        };
        match field {
            b"data" => {
                self.data.extend_from_slice(value);
                self.data.push(b'\n');
                self.check()?;
            }
            b"id" if !value.contains(&0) => {
                self.pending_id = Some(String::from_utf8_lossy(value).into_owned());
            }
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                let ms = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                self.retry = ms.map(Duration::from_millis).or(self.retry);
            }
            _ => {} // comments, `event` (MCP uses only the default) and unknown fields
        }
        Ok(())
    }

    fn end_event(&mut self, event: &mut impl FnMut(Bytes)) {
        if let Some(id) = self.pending_id.take() {
            self.last_id = Some(id).filter(|id| !id.is_empty());
        }
        let mut data = std::mem::take(&mut self.data);
        data.pop();
        if !data.is_empty() {
            event(data.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Outcome {
        events: Vec<Bytes>,
        last_id: Option<String>,
        retry: Option<Duration>,
        failed: bool,
    }

    fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limit: usize) -> Outcome {
        let mut parser = Parser::new(limit);
        let mut events = Vec::new();
        let failed = pieces.into_iter().any(|piece| parser.push(piece, |event| events.push(event)).is_err());
        Outcome { events, last_id: parser.last_id().map(str::to_owned), retry: parser.retry(), failed }
    }

    #[test]
    fn fields_line_ends_and_incomplete_events() {
        let stream = b"\xef\xbb\xbf: hello\nid: 1\ndata:\n\ndata: {\"a\":\rdata:  1}\r\rretry: 250\r\nretry: x\r\nevent: message\r\nid:2\r\ndata:{}\r\n\r\nid: 3\ndata: cut";
        let outcome = parse([stream.as_slice()], 1000);
        assert_eq!(outcome.events, ["{\"a\":\n 1}", "{}"]);
        assert_eq!(outcome.last_id.as_deref(), Some("2"));
        assert_eq!(outcome.retry, Some(Duration::from_millis(250)));
        assert!(!outcome.failed);
    }

    #[test]
    fn a_priming_event_sets_the_id_and_yields_nothing() {
        let outcome = parse([b"id: p-1\ndata: \n\n".as_slice()], 1000);
        assert_eq!((outcome.events.len(), outcome.last_id.as_deref()), (0, Some("p-1")));
    }

    #[test]
    fn an_event_over_the_limit_is_refused() {
        assert!(!parse([format!("data: {}\n\n", "x".repeat(1000)).as_bytes()], 1000).failed);
        assert!(parse([format!("data: {}", "x".repeat(2000)).as_bytes()], 1000).failed);
        assert!(parse([format!("data: {}\n", "x".repeat(400)).repeat(3).as_bytes()], 1000).failed);
    }

    /// Text made of what matters to the parser, so that short inputs meet every rule.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let token = prop_oneof![
            Just("data"),
            Just("data:"),
            Just("data: "),
            Just("id: 7"),
            Just("id:"),
            Just("retry: 9"),
            Just(":"),
            Just(" "),
            Just("\n"),
            Just("\n"),
            Just("\r"),
            Just("\r\n"),
            Just("\n\n"),
            Just("{\"x\":1}"),
            Just("\u{feff}"),
            Just("é"),
        ];
        prop::collection::vec(token, 0..60).prop_map(|tokens| tokens.concat().into_bytes())
    }

    /// The same rules on the whole text at once: normalise line ends, split, interpret.
    fn reference(stream: &[u8]) -> (Vec<String>, Option<String>) {
        let text = String::from_utf8(stream.to_vec()).expect("the strategy makes text");
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let complete = text.rfind('\n').map_or("", |end| &text[..=end]);
        let (mut events, mut last_id) = (Vec::new(), None);
        let (mut data, mut id) = (Vec::new(), None);
        for line in complete.lines() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                _ if line.is_empty() => {
                    if let Some(id) = id.take() {
                        last_id = Some(id).filter(|id: &String| !id.is_empty());
                    }
                    let joined = std::mem::take(&mut data).join("\n");
                    events.extend((!joined.is_empty()).then_some(joined));
                }
                "data" => data.push(value.to_owned()),
                "id" => id = Some(value.to_owned()),
                _ => {}
            }
        }
        (events, last_id)
    }

    proptest! {
        #[test]
        fn how_the_stream_is_cut_does_not_matter(stream in stream(), cuts in prop::collection::vec(0usize..200, 0..12)) {
            let whole = parse([stream.as_slice()], 64);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut start = 0;
            for cut in cuts.into_iter().chain([stream.len()]) {
                pieces.push(&stream[start..cut]);
                start = cut;
            }
            prop_assert_eq!(&parse(pieces, 64), &whole);
            let bytes: Vec<&[u8]> = stream.chunks(1).collect();
            prop_assert_eq!(&parse(bytes, 64), &whole);
        }

        #[test]
        fn the_result_is_that_of_the_rules_on_the_whole_text(stream in stream()) {
            let (events, last_id) = reference(&stream);
            let outcome = parse([stream.as_slice()], 10_000);
            prop_assert_eq!(outcome.events, events);
            prop_assert_eq!(outcome.last_id, last_id);
        }
    }
}
