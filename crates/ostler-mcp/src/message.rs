//! Messages on their way: replacing parts of a body without touching the rest, and splitting a byte stream
//! into lines.

use bytes::{Buf, Bytes, BytesMut};

use crate::envelope::Span;

/// From this size on a body is shared, never copied; a smaller one is copied when it changes, which is cheaper
/// than carrying several pieces. Whoever accounts for memory counts bodies from this size on.
pub const SHARE_FROM: usize = 4 * 1024;

/// A message as the pieces it is made of, in order. Large bodies are shared, not copied.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Message {
    parts: Vec<Bytes>,
}

impl Message {
    /// `body` with each of `edits` replaced; they must be in order and must not overlap.
    ///
    /// # Panics
    /// When an edit lies outside `body`, or before the one in front of it.
    pub fn splice(body: &Bytes, edits: &[(Span, &[u8])]) -> Self {
        if edits.is_empty() {
            return Self::from(body.clone());
        }
        let mut at = 0;
        if body.len() < SHARE_FROM {
            let grown: usize = edits.iter().map(|(_, new)| new.len()).sum();
            let mut copy = Vec::with_capacity(body.len() + grown);
            for (span, new) in edits {
                copy.extend_from_slice(&body[at..span.start]);
                copy.extend_from_slice(new);
                at = span.end;
            }
            copy.extend_from_slice(&body[at..]);
            return Self::from(Bytes::from(copy));
        }
        let mut parts = Vec::with_capacity(edits.len() * 2 + 1);
        for (span, new) in edits {
            parts.push(body.slice(at..span.start));
            parts.push(Bytes::copy_from_slice(new));
            at = span.end;
        }
        parts.push(body.slice(at..));
        parts.retain(|part| !part.is_empty());
        Self { parts }
    }

    /// Its pieces, in order.
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// Its pieces, in order.
    pub fn into_parts(self) -> Vec<Bytes> {
        self.parts
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(Bytes::is_empty)
    }

    /// The message in one piece; copies only where it has several.
    pub fn to_bytes(&self) -> Bytes {
        match self.parts.as_slice() {
            [one] => one.clone(),
            parts => parts.concat().into(),
        }
    }
}

impl From<Bytes> for Message {
    fn from(body: Bytes) -> Self {
        Self { parts: vec![body] }
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Self::from(Bytes::from(text))
    }
}

/// A small piece of a larger buffer, as a buffer of its own: what is kept for long must not keep a message of
/// 64 MiB, or the buffer it was read into, for the sake of an id. A large piece stays shared.
pub(crate) fn unpinned(piece: Bytes) -> Bytes {
    if piece.len() < SHARE_FROM { Bytes::copy_from_slice(&piece) } else { piece }
}

/// Makes a valid JSON body fit for one line: raw line ends, which JSON allows between tokens only, become
/// spaces. The body is changed in place where nobody else holds it.
pub fn on_one_line(body: Bytes) -> Bytes {
    if memchr::memchr2(b'\n', b'\r', &body).is_none() {
        return body;
    }
    let mut body = body.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    for byte in body.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')) {
        *byte = b' ';
    }
    body.freeze()
}

/// Splits a stream of bytes into lines of bounded length.
#[derive(Debug)]
pub struct Lines {
    buffer: BytesMut,
    /// Bytes of `buffer` known to hold no line end.
    searched: usize,
    max: usize,
    /// Inside a line that is over the limit: its rest is dropped up to the line end.
    skipping: bool,
    /// Bytes of the over-long line dropped so far.
    skipped: usize,
}

/// What [`Lines::next_line`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A complete line, without its line end.
    Complete(Bytes),
    /// A line was longer than the limit and was dropped; this many bytes of it were seen.
    TooLong(usize),
}

impl Lines {
    /// Room kept free for the next read.
    const READ: usize = 64 * 1024;

    /// Lines of at most `max` bytes.
    pub fn new(max: usize) -> Self {
        Self { buffer: BytesMut::new(), searched: 0, max, skipping: false, skipped: 0 }
    }

    /// Where the next bytes read are to be appended.
    pub fn space(&mut self) -> &mut BytesMut {
        if self.buffer.capacity() - self.buffer.len() < Self::READ / 4 {
            self.buffer.reserve(Self::READ);
        }
        &mut self.buffer
    }

    /// Bytes held that are no complete line yet.
    pub fn held(&self) -> usize {
        self.buffer.len()
    }

    /// Takes the next line out, or `None` until more bytes have come.
    pub fn next_line(&mut self) -> Option<Line> {
        let Some(offset) = memchr::memchr(b'\n', &self.buffer[self.searched..]) else {
            if self.skipping || self.buffer.len() > self.max {
                self.skipping = true;
                self.skipped += self.buffer.len();
                self.buffer = BytesMut::new();
            }
            self.searched = self.buffer.len();
            self.release();
            return None;
        };
        let end = self.searched + offset;
        self.searched = 0;
        let mut line = self.buffer.split_to(end + 1);
        if self.skipping || line.len() > self.max + 1 {
            self.skipping = false;
            return Some(Line::TooLong(std::mem::take(&mut self.skipped) + line.len() - 1));
        }
        line.truncate(end);
        if line.last() == Some(&b'\r') {
            line.truncate(end - 1);
        }
        Some(Line::Complete(line.freeze()))
    }

    /// What is left when the stream has ended: a last line without a line end.
    pub fn rest(mut self) -> Option<Bytes> {
        (!self.skipping && self.buffer.has_remaining()).then(|| self.buffer.split().freeze())
    }

    /// An empty buffer that once held a large line gives its memory back.
    fn release(&mut self) {
        if self.buffer.is_empty() && self.buffer.capacity() > 4 * Self::READ {
            self.buffer = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines_of(chunks: &[Vec<u8>], max: usize) -> (Vec<Line>, Option<Bytes>) {
        let mut lines = Lines::new(max);
        let mut found = Vec::new();
        for chunk in chunks {
            lines.space().extend_from_slice(chunk);
            while let Some(line) = lines.next_line() {
                found.push(line);
            }
        }
        (found, lines.rest())
    }

    proptest! {
        #[test]
        fn splitting_does_not_depend_on_the_chunks(
            text in "[a-c\n]{0,60}", cuts in proptest::collection::vec(0usize..60, 0..6), max in 1usize..20,
        ) {
            let whole = vec![text.clone().into_bytes()];
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut at = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                chunks.push(text.as_bytes()[at..cut].to_vec());
                at = cut;
            }
            prop_assert_eq!(lines_of(&chunks, max).0, lines_of(&whole, max).0);
        }

        #[test]
        fn splicing_equals_editing_the_text(
            before in "[a-z]{0,9}", old in "[0-9]{1,4}", mid in "[a-z]{0,40000}", old2 in "[0-9]{1,4}", new in "[A-Z]{0,5}",
        ) {
            let body = Bytes::from(format!("{before}{old}{mid}{old2}"));
            let first = before.len()..before.len() + old.len();
            let second = body.len() - old2.len()..body.len();
            let spliced = Message::splice(&body, &[(first, new.as_bytes()), (second, b"x")]);
            prop_assert_eq!(spliced.to_bytes(), format!("{before}{new}{mid}x"));
            prop_assert_eq!(spliced.len(), before.len() + new.len() + mid.len() + 1);
        }
    }

    #[test]
    fn an_over_long_line_is_dropped_and_the_next_one_is_not() {
        let (found, rest) =
            lines_of(&[b"123456\nok\r\n12345".to_vec(), b"6789".to_vec(), b"\nend".to_vec()], 5);
        assert_eq!(found, [Line::TooLong(6), Line::Complete("ok".into()), Line::TooLong(9)]);
        assert_eq!(rest.unwrap(), "end");
    }
}
