//! The last lines of an instance's streams, bounded in number and size.

use std::sync::{Arc, Mutex};

use crate::clock::unix_ms;
use crate::log_file::LogFile;
use crate::ring::TextRing;
use crate::watch;

/// Longest line kept, in bytes; the rest of a longer one is cut off.
pub const MAX_LINE: usize = 8 * 1024;

/// Most bytes kept per stream; the oldest lines go first.
pub const MAX_STREAM_BYTES: usize = 4 * 1024 * 1024;

/// Where a line came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Standard error of the server.
    Stderr,
    /// Standard output of the server, where it was no message of the protocol.
    Stdout,
    /// Ostler itself.
    Ostler,
}

impl Stream {
    /// The word used in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stderr => "stderr",
            Self::Stdout => "stdout",
            Self::Ostler => "ostler",
        }
    }
}

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    /// Counts the lines of this log from 1.
    pub seq: u64,
    /// When it was read, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Where it came from.
    pub stream: Stream,
    /// Its text.
    pub text: Box<str>,
}

/// What is known of a line besides its text and its stream.
#[derive(Debug)]
struct Slot {
    seq: u64,
    unix_ms: u64,
}

#[derive(Debug)]
struct Rings {
    /// One ring per stream, so that a flood on one does not push out the others.
    rings: [TextRing<Slot>; 3],
    next: u64,
    dropped: u64,
}

impl Rings {
    fn push(&mut self, stream: Stream, unix_ms: u64, text: &str) {
        if text.len() <= MAX_LINE {
            return self.push_short(stream, unix_ms, text);
        }
        let end = text.floor_char_boundary(MAX_LINE);
        self.push_short(stream, unix_ms, &cut(&text[..end], text.len() - end));
    }

    fn push_short(&mut self, stream: Stream, unix_ms: u64, text: &str) {
        self.next += 1;
        let gone = self.rings[stream as usize].push(Slot { seq: self.next, unix_ms }, text);
        self.dropped += gone as u64;
    }
}

/// A bounded log that can be followed.
#[derive(Debug)]
pub struct Log {
    rings: Mutex<Rings>,
    /// Where its lines go besides, and under what name.
    file: Option<(Arc<LogFile>, String)>,
    latest: watch::Sender<u64>,
}

impl Log {
    /// A log of at most `lines` lines per stream.
    pub fn new(lines: usize) -> Self {
        let rings = std::array::from_fn(|_| TextRing::new(lines, MAX_STREAM_BYTES));
        let rings = Mutex::new(Rings { rings, next: 0, dropped: 0 });
        Self { rings, file: None, latest: watch::Sender::new(0) }
    }

    /// The same, whose lines go into a file as well, as those of `instance`.
    pub(crate) fn with_file(self, file: Option<Arc<LogFile>>, instance: String) -> Self {
        Self { file: file.map(|file| (file, instance)), ..self }
    }

    /// Adds a line; the oldest of its stream is dropped and counted when there is no room. What is longer than
    /// [`MAX_LINE`] is cut, and says so.
    pub fn push(&self, stream: Stream, text: &str) {
        self.file(stream, || std::iter::once(&text.as_bytes()[..text.floor_char_boundary(MAX_LINE)]));
        self.change(|rings| rings.push(stream, unix_ms(), text));
    }

    /// Adds the beginning of a line of which `more` bytes were dropped.
    pub(crate) fn push_cut(&self, stream: Stream, head: &str, more: usize) {
        let line = cut(head, more);
        self.file(stream, || std::iter::once(line.as_bytes()));
        self.change(|rings| rings.push_short(stream, unix_ms(), &line));
    }

    /// Adds the lines of a piece of output, which ends with a line end. Of more lines than the ring has room for
    /// only the last are copied; the others count as dropped.
    pub(crate) fn push_lines(&self, stream: Stream, piece: &[u8]) {
        self.file(stream, || {
            let lines = piece.strip_suffix(b"\n").unwrap_or(piece).split(|byte| *byte == b'\n');
            lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        });
        self.change(|rings| {
            let room = rings.rings[stream as usize].max_texts();
            // The line end that ends the piece is found, too.
            let begin = memchr::memrchr_iter(b'\n', piece).nth(room).map_or(0, |end| end + 1);
            let skipped = memchr::memchr_iter(b'\n', &piece[..begin]).count() as u64;
            rings.next += skipped;
            rings.dropped += skipped;
            let now = unix_ms();
            let lines = memchr::memchr_iter(b'\n', &piece[begin..]).count();
            let gone = rings.rings[stream as usize].make_room(lines, piece.len() - begin);
            rings.dropped += gone as u64;
            // Once for all of them is much cheaper than for each, and nearly all output is UTF-8.
            let text = std::str::from_utf8(&piece[begin..]).ok();
            let mut at = 0;
            while let Some(length) = memchr::memchr(b'\n', &piece[begin + at..]) {
                let line = &piece[begin + at..begin + at + length];
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                match text {
                    Some(text) => rings.push(stream, now, &text[at..at + line.len()]),
                    None => rings.push(stream, now, &String::from_utf8_lossy(line)),
                }
                at += length + 1;
            }
        });
    }

    /// The lines after `seq`, oldest first, at most the last `most` of them.
    pub fn after(&self, seq: u64, most: usize) -> Vec<Line> {
        let rings = self.lock();
        let mut lines = Vec::new();
        for (ring, stream) in rings.rings.iter().zip([Stream::Stderr, Stream::Stdout, Stream::Ostler]) {
            lines.extend(ring.last(
                most,
                |slot| slot.seq > seq,
                |slot, text| Line { seq: slot.seq, unix_ms: slot.unix_ms, stream, text: text.into() },
            ));
        }
        drop(rings);
        lines.sort_unstable_by_key(|line| line.seq);
        lines.split_off(lines.len().saturating_sub(most))
    }

    /// The number of the latest line that a process wrote, 0 before the first.
    pub(crate) fn latest_output(&self) -> u64 {
        let rings = self.lock();
        let latest = |stream: Stream| rings.rings[stream as usize].latest().map_or(0, |slot| slot.seq);
        latest(Stream::Stderr).max(latest(Stream::Stdout))
    }

    /// How many lines were dropped for lack of room.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Tells the number of the latest line, now and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    fn file<'a, I: Iterator<Item = &'a [u8]>>(&self, stream: Stream, lines: impl FnOnce() -> I) {
        if let Some((file, instance)) = &self.file {
            file.add(instance, stream, unix_ms(), lines());
        }
    }

    fn change(&self, change: impl FnOnce(&mut Rings)) {
        let mut rings = self.lock();
        change(&mut rings);
        let seq = rings.next;
        drop(rings);
        self.latest.send_replace(seq);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Rings> {
        self.rings.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn cut(head: &str, more: usize) -> String {
    format!("{head} [cut: {more} more bytes]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_on_one_stream_leaves_the_others_alone() {
        let log = Log::new(3);
        log.push(Stream::Stderr, "kept");
        for n in 0..10 {
            log.push(Stream::Stdout, &n.to_string());
        }
        let texts: Vec<String> = log.after(0, 100).iter().map(|line| line.text.to_string()).collect();
        assert_eq!(texts, ["kept", "7", "8", "9"]);
        assert_eq!(log.dropped(), 7);
        assert_eq!(log.after(0, 2).len(), 2);
        assert_eq!(log.after(10, 100).len(), 1);
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let log = Log::new(3);
        log.push(Stream::Stderr, &"ä".repeat(MAX_LINE));
        assert!(log.after(0, 1)[0].text.ends_with("[cut: 8192 more bytes]"));
    }

    #[test]
    fn what_is_no_text_costs_no_line() {
        let log = Log::new(10);
        log.push_lines(Stream::Stdout, "ä\r\nö\n".as_bytes());
        log.push_lines(Stream::Stdout, b"\xff one\r\n\xc3\xa4 two\n");
        let texts: Vec<String> = log.after(0, 100).iter().map(|line| line.text.to_string()).collect();
        assert_eq!(texts, ["ä", "ö", "\u{fffd} one", "ä two"]);
    }

    #[test]
    fn a_piece_of_output_is_taken_line_by_line_and_only_the_last_are_copied() {
        let log = Log::new(3);
        log.push_lines(Stream::Stdout, b"1\r\n\n3\n");
        log.push_lines(Stream::Stdout, b"4\n");
        let kept = |log: &Log| {
            log.after(0, 100).iter().map(|line| (line.seq, line.text.to_string())).collect::<Vec<_>>()
        };
        assert_eq!(kept(&log), [(2, String::new()), (3, "3".to_owned()), (4, "4".to_owned())]);
        assert_eq!(log.dropped(), 1);
        log.push_lines(Stream::Stdout, b"5\n6\n7\n8\n9\n");
        assert_eq!(kept(&log), [(7, "7".to_owned()), (8, "8".to_owned()), (9, "9".to_owned())]);
        assert_eq!(log.dropped(), 6);
        assert_eq!(log.after(8, 100).len(), 1);
    }
}
