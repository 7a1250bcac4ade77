//! The event log: what happened, to what, and why; and how often each limit said no.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::watch;
use ostler_domain::event::{Happening, Severity};

use crate::clock::unix_ms;
use crate::ring::TextRing;

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

/// What is known of an event besides its texts: the subject, and behind it the message.
#[derive(Debug)]
struct Slot {
    seq: u64,
    unix_ms: u64,
    kind: &'static str,
    severity: Severity,
    subject: usize,
}

#[derive(Debug)]
struct Inner {
    entries: TextRing<Slot>,
    next: u64,
    counters: BTreeMap<String, u64>,
}

impl Inner {
    fn push(&mut self, happening: &Happening, subject: &str, message: &str) -> u64 {
        let subject = &subject[..subject.floor_char_boundary(MAX_TEXT_BYTES)];
        let message = &message[..message.floor_char_boundary(MAX_TEXT_BYTES)];
        self.next += 1;
        let slot = Slot {
            seq: self.next,
            unix_ms: unix_ms(),
            kind: happening.kind(),
            severity: happening.severity(),
            subject: subject.len(),
        };
        self.entries.push(slot, &[subject, message].concat());
        self.next
    }

    fn after(&self, seq: u64, most: usize) -> Vec<Entry> {
        self.entries.last(most, |slot| slot.seq > seq, entry)
    }

    fn following(&self, seq: u64, most: usize) -> Vec<Entry> {
        self.entries.first(most, |slot| slot.seq > seq, entry)
    }
}

fn entry(slot: &Slot, mut subject: String) -> Entry {
    let message = subject.split_off(slot.subject);
    let Slot { seq, unix_ms, kind, severity, .. } = *slot;
    Entry { seq, unix_ms, kind, severity, subject, message }
}

/// A bounded log of happenings; each is written to the daemon's own log as well.
#[derive(Debug)]
pub struct Events {
    inner: Mutex<Inner>,
    latest: watch::Sender<u64>,
}

impl Default for Events {
    fn default() -> Self {
        let entries = TextRing::new(MAX_EVENTS, MAX_EVENT_BYTES);
        Self {
            inner: Mutex::new(Inner { entries, next: 0, counters: BTreeMap::new() }),
            latest: watch::Sender::new(0),
        }
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

    /// The first `most` of the events after `seq`, oldest first. When the first of them is not the one that comes
    /// after `seq`, those between were dropped.
    pub fn following(&self, seq: u64, most: usize) -> Vec<Entry> {
        self.lock().following(seq, most)
    }

    /// Tells the number of the latest event, now and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether one that comes after so many of its kind, itself included, is worth an event: the first, the tenth, the
/// hundredth, and so on.
pub(crate) fn is_power_of_ten(count: u64) -> bool {
    count > 0 && 10u64.pow(count.ilog10()) == count
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
        let following: Vec<u64> = events.following(3, 2).iter().map(|entry| entry.seq).collect();
        assert_eq!(following, [6, 7], "what came between is gone");
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
