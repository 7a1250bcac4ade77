//! The last lines of an instance's streams, bounded in number and size.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::watch;

use crate::clock::unix_ms;

/// Longest line kept, in bytes; the rest of a longer one is cut off.
pub const MAX_LINE: usize = 8 * 1024;

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

#[derive(Debug, Default)]
struct Rings {
    /// One ring per stream, so that a flood on one does not push out the others.
    rings: [VecDeque<Line>; 3],
    next: u64,
    dropped: u64,
}

/// A bounded log that can be followed.
#[derive(Debug)]
pub struct Log {
    lines: usize,
    rings: Mutex<Rings>,
    latest: watch::Sender<u64>,
}

impl Log {
    /// A log of at most `lines` lines per stream.
    pub fn new(lines: usize) -> Self {
        Self { lines: lines.max(1), rings: Mutex::default(), latest: watch::Sender::new(0) }
    }

    /// Adds a line; the oldest of its stream is dropped and counted when there is no room.
    pub fn push(&self, stream: Stream, text: &str) {
        let mut rings = self.lock();
        rings.next += 1;
        let seq = rings.next;
        let line = Line { seq, unix_ms: unix_ms(), stream, text: clip(text).into() };
        let ring = &mut rings.rings[stream as usize];
        let full = ring.len() >= self.lines;
        if full {
            ring.pop_front();
        }
        ring.push_back(line);
        rings.dropped += u64::from(full);
        drop(rings);
        self.latest.send_replace(seq);
    }

    /// The lines after `seq`, oldest first, at most the last `most` of them.
    pub fn after(&self, seq: u64, most: usize) -> Vec<Line> {
        let rings = self.lock();
        let mut lines: Vec<Line> =
            rings.rings.iter().flatten().filter(|line| line.seq > seq).cloned().collect();
        drop(rings);
        lines.sort_unstable_by_key(|line| line.seq);
        lines.split_off(lines.len().saturating_sub(most))
    }

    /// How many lines were dropped for lack of room.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Tells the number of the latest line, now and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Rings> {
        self.rings.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Cuts a text to [`MAX_LINE`] bytes and says that it did.
fn clip(text: &str) -> String {
    if text.len() <= MAX_LINE {
        return text.to_owned();
    }
    let end = (0..=MAX_LINE).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{} [cut: {} more bytes]", &text[..end], text.len() - end)
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
}
