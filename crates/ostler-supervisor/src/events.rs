//! The event log: what happened, to what, and why; and how often each limit said no.
//!
//! What happens to servers and sessions is kept, the newest of it. Tasks and their workers are another matter: a thousand
//! of them come and go in a second, and would push all else out. Of these, those who follow the log hear each, as far as
//! they keep up; it keeps one a minute of each kind ([`Events::record_seldom`]), or none ([`Events::pass`]).

use std::collections::{BTreeMap, btree_map};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::watch;
use ostler_domain::event::{Happening, Severity};
use tokio::sync::broadcast;
use tokio::time::Instant;

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

/// Of what happens often, one of a kind is kept in so long.
pub const SELDOM: Duration = Duration::from_secs(60);

/// Most kinds and groups of which it is known when one was kept; what is beyond counts as one group.
const MAX_SELDOM: usize = 500;

/// Events that are not kept, and wait for one who follows and reads slowly; the oldest go first, and he is told.
pub const MAX_PASSING: usize = 256;

/// One event.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Counts the events since the daemon started that were kept, from 1, without gaps. One that is not has the number of
    /// the one before it.
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

/// When one of a kind and group was kept, and how many were not since.
#[derive(Debug)]
struct Seldom {
    kept: Instant,
    passed: u64,
}

#[derive(Debug)]
struct Inner {
    entries: TextRing<Slot>,
    next: u64,
    counters: BTreeMap<String, u64>,
    seldom: BTreeMap<(&'static str, String), Seldom>,
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

    /// Whether another of this kind and group is to be kept: then how many were not since the last one.
    fn is_due(&mut self, kind: &'static str, group: &str, now: Instant) -> Option<u64> {
        let known = self.seldom.len() < MAX_SELDOM || self.seldom.contains_key(&(kind, group.to_owned()));
        let group = if known { group } else { "" };
        match self.seldom.entry((kind, group.to_owned())) {
            btree_map::Entry::Vacant(first) => {
                first.insert(Seldom { kept: now, passed: 0 });
                Some(0)
            }
            btree_map::Entry::Occupied(mut last) => {
                let last = last.get_mut();
                if now.saturating_duration_since(last.kept) < SELDOM {
                    last.passed += 1;
                    return None;
                }
                last.kept = now;
                Some(std::mem::take(&mut last.passed))
            }
        }
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
    passing: broadcast::Sender<Arc<Entry>>,
}

impl Default for Events {
    fn default() -> Self {
        let entries = TextRing::new(MAX_EVENTS, MAX_EVENT_BYTES);
        Self {
            inner: Mutex::new(Inner { entries, next: 0, counters: BTreeMap::new(), seldom: BTreeMap::new() }),
            latest: watch::Sender::new(0),
            passing: broadcast::Sender::new(MAX_PASSING),
        }
    }
}

impl Events {
    /// Records that something happened to `subject`.
    pub fn record(&self, subject: &str, happening: Happening) {
        self.write(subject, &happening, &happening.to_string());
    }

    fn write(&self, subject: &str, happening: &Happening, message: &str) {
        match happening.severity() {
            Severity::Info => tracing::info!(subject, "{message}"),
            Severity::Warning => tracing::warn!(subject, "{message}"),
            Severity::Error => tracing::error!(subject, "{message}"),
        }
        let seq = self.lock().push(happening, subject, message);
        self.latest.send_replace(seq);
    }

    /// Tells those who follow the log that something happened to `subject`; it is not kept. For what happens to each of
    /// very many, and is to be found elsewhere: so with nobody there it costs next to nothing.
    pub fn pass(&self, subject: &str, happening: &Happening) {
        if self.passing.receiver_count() == 0 {
            return;
        }
        let entry = Entry {
            seq: *self.latest.borrow(),
            unix_ms: unix_ms(),
            kind: happening.kind(),
            severity: happening.severity(),
            subject: subject.to_owned(),
            message: happening.to_string(),
        };
        // They may have gone in this moment.
        let _ = self.passing.send(Arc::new(entry));
    }

    /// Records that something happened to `subject`, unless another of its kind was kept of this group in the last
    /// [`SELDOM`]: then it is passed on, and counted in the one that is kept next.
    pub fn record_seldom(&self, group: &str, subject: &str, happening: Happening) {
        let kind = happening.kind();
        // A statement of its own, so that nothing is done under the lock.
        let due = self.lock().is_due(kind, group, Instant::now());
        let Some(passed) = due else {
            tracing::debug!(subject, "{happening}");
            self.count(&format!("events.not_kept.{kind}"));
            return self.pass(subject, &happening);
        };
        let more = match passed {
            0 => String::new(),
            more => format!(" ({more} more of this kind since the last that is kept)"),
        };
        self.write(subject, &happening, &format!("{happening}{more}"));
    }

    /// What comes from now on of that which is not kept.
    pub fn passing(&self) -> broadcast::Receiver<Arc<Entry>> {
        self.passing.subscribe()
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

    #[tokio::test(start_paused = true)]
    async fn of_what_happens_often_one_a_minute_is_kept_and_followers_hear_all() {
        let events = Events::default();
        let failed = |why: &str| Happening::TaskError { why: why.to_owned() };
        let kept = || events.after(0, usize::MAX).into_iter().map(|entry| entry.message).collect::<Vec<_>>();
        let mut passing = events.passing();
        for why in ["one", "two", "three"] {
            events.record_seldom("tasks", "t1", failed(why));
        }
        events.record_seldom("others", "t1", failed("four"));
        events.pass("t2", &Happening::TaskComplete);
        assert_eq!(kept(), ["one", "four"]);
        let mut heard = Vec::new();
        while let Ok(entry) = passing.try_recv() {
            heard.push((entry.seq, entry.kind, entry.message.clone()));
        }
        let heard: Vec<(u64, &str, &str)> =
            heard.iter().map(|(seq, kind, what)| (*seq, *kind, what.as_str())).collect();
        assert_eq!(
            heard,
            [
                (1, "task-error", "two"),
                (1, "task-error", "three"),
                (2, "task-complete", "the task succeeded")
            ]
        );
        tokio::time::advance(SELDOM).await;
        events.record_seldom("tasks", "t1", failed("five"));
        assert_eq!(kept()[2], "five (2 more of this kind since the last that is kept)");
        assert_eq!(events.counters()["events.not_kept.task-error"], 2);
    }

    #[test]
    fn groups_beyond_the_most_are_one() {
        let events = Events::default();
        for group in 0..MAX_SELDOM + 10 {
            events.record_seldom(&group.to_string(), "x", stop_asked("x"));
        }
        assert_eq!(events.after(0, usize::MAX).len(), MAX_SELDOM + 1);
        assert_eq!(events.lock().seldom.len(), MAX_SELDOM + 1);
    }
}
