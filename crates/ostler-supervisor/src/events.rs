//! The event log: what happened, to what, and why; and how often each limit said no.
//!
//! The texts lie in one ring of bytes. As 2,000 small strings, made while a burst of clients was served, they would
//! keep nearly as many pages of that burst's memory resident for as long as they are remembered.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ostler_domain::event::{Happening, Severity};
use tokio::sync::watch;

use crate::clock::unix_ms;

/// Most events kept; the oldest go first.
pub const MAX_EVENTS: usize = 2_000;

/// Most bytes of subjects and messages kept; the oldest events go first.
pub const MAX_EVENT_BYTES: usize = 1024 * 1024;

/// The longest subject and the longest message kept, in bytes; what is longer is cut there.
const MAX_TEXT_BYTES: usize = 16 * 1024;

/// Most distinct counters; further names are counted under `other`.
const MAX_COUNTERS: usize = 200;

/// One event.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Counts the events since the daemon started, from 1, without gaps.
    pub seq: u64,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The short, stable name of what happened.
    pub kind: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What it happened to.
    pub subject: String,
    /// What happened and why, in words.
    pub message: String,
}

/// An event whose texts are the next in the ring.
#[derive(Debug)]
struct Slot {
    seq: u64,
    unix_ms: u64,
    kind: &'static str,
    severity: Severity,
    subject: usize,
    message: usize,
}

#[derive(Debug, Default)]
struct Inner {
    slots: VecDeque<Slot>,
    /// The subject and the message of each slot, one behind the other.
    texts: VecDeque<u8>,
    next: u64,
    counters: BTreeMap<String, u64>,
}

impl Inner {
    fn push(&mut self, happening: &Happening, subject: &str, message: &str) -> u64 {
        let subject = &subject[..subject.floor_char_boundary(MAX_TEXT_BYTES)];
        let message = &message[..message.floor_char_boundary(MAX_TEXT_BYTES)];
        while self.slots.len() >= MAX_EVENTS
            || self.texts.len() + subject.len() + message.len() > MAX_EVENT_BYTES
        {
            let Some(oldest) = self.slots.pop_front() else {
                break;
            };
            self.texts.drain(..oldest.subject + oldest.message);
        }
        self.next += 1;
        self.texts.extend(subject.as_bytes());
        self.texts.extend(message.as_bytes());
        self.slots.push_back(Slot {
            seq: self.next,
            unix_ms: unix_ms(),
            kind: happening.kind(),
            severity: happening.severity(),
            subject: subject.len(),
            message: message.len(),
        });
        self.next
    }

    /// The last `most` slots after `seq`, with their texts.
    fn after(&self, seq: u64, most: usize) -> Vec<Entry> {
        let known = self.slots.partition_point(|slot| slot.seq <= seq);
        let first = known.max(self.slots.len().saturating_sub(most));
        let length = |slot: &Slot| slot.subject + slot.message;
        let mut at: usize = self.slots.range(..first).map(length).sum();
        let mut text = |length: usize| {
            let bytes = self.texts.range(at..at + length).copied().collect();
            at += length;
            String::from_utf8(bytes).expect("whole texts went in")
        };
        let entry = |slot: &Slot| Entry {
            seq: slot.seq,
            unix_ms: slot.unix_ms,
            kind: slot.kind,
            severity: slot.severity,
            subject: text(slot.subject),
            message: text(slot.message),
        };
        self.slots.range(first..).map(entry).collect()
    }
}

/// A bounded log of happenings; each is written to the daemon's own log as well.
#[derive(Debug)]
pub struct Events {
    inner: Mutex<Inner>,
    latest: watch::Sender<u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self { inner: Mutex::default(), latest: watch::Sender::new(0) }
    }
}

impl Events {
    /// Records that something happened to `subject`.
    pub fn record(&self, subject: &str, happening: Happening) {
        let message = happening.to_string();
        match happening.severity() {
            Severity::Info => tracing::info!(subject, "{message}"),
            Severity::Warning => tracing::warn!(subject, "{message}"),
            Severity::Error => tracing::error!(subject, "{message}"),
        }
        let seq = self.lock().push(&happening, subject, &message);
        self.latest.send_replace(seq);
    }

    /// Counts one more refusal or drop of the kind `name`.
    pub fn count(&self, name: &str) {
        let mut inner = self.lock();
        let known = inner.counters.len() < MAX_COUNTERS || inner.counters.contains_key(name);
        *inner.counters.entry(if known { name } else { "other" }.to_owned()).or_default() += 1;
    }

    /// The counters by name.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        self.lock().counters.clone()
    }

    /// The events after `seq`, oldest first, at most the last `most`.
    pub fn after(&self, seq: u64, most: usize) -> Vec<Entry> {
        self.lock().after(seq, most)
    }

    /// Tells the number of the latest event, now and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop_asked(reason: &str) -> Happening {
        Happening::StopAsked { reason: reason.to_owned() }
    }

    #[test]
    fn the_latest_are_kept_whole_and_in_order() {
        let events = Events::default();
        for number in 1..=MAX_EVENTS + 5 {
            events.record(&format!("echo.{number}"), stop_asked(&format!("é{number}")));
        }
        let all = events.after(0, usize::MAX);
        assert_eq!(all.len(), MAX_EVENTS);
        for (entry, number) in all.iter().zip(6..) {
            assert_eq!((entry.seq, entry.subject.as_str()), (number, format!("echo.{number}").as_str()));
            assert_eq!(entry.message, format!("stop: é{number}"));
        }
        let seqs = |seq, most| events.after(seq, most).iter().map(|entry| entry.seq).collect::<Vec<_>>();
        assert_eq!(seqs(0, 2), [2004, 2005]);
        assert_eq!(seqs(2003, 100), [2004, 2005]);
        assert_eq!(seqs(2005, 100), [0; 0]);
        assert_eq!(events.after(2004, 100)[0].message, "stop: é2005");
    }

    #[test]
    fn long_texts_are_cut_and_push_the_oldest_out() {
        let events = Events::default();
        let long = "é".repeat(MAX_TEXT_BYTES);
        for _ in 0..100 {
            events.record("a", stop_asked(&long));
        }
        let all = events.after(0, usize::MAX);
        assert!(all.len() >= MAX_EVENT_BYTES / (MAX_TEXT_BYTES + 1) && all.len() < 100, "{}", all.len());
        let bytes: usize = all.iter().map(|entry| entry.subject.len() + entry.message.len()).sum();
        assert!(bytes <= MAX_EVENT_BYTES, "{bytes}");
        assert_eq!(all.last().map(|entry| entry.seq), Some(100));
    }
}
