//! The event log: what happened, to what, and why; and how often each limit said no.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ostler_domain::event::{Happening, Severity};
use tokio::sync::watch;

use crate::clock::unix_ms;

/// Most events kept; the oldest go first.
pub const MAX_EVENTS: usize = 2_000;

/// Most distinct counters; further names are counted under `other`.
const MAX_COUNTERS: usize = 200;

/// One event.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Counts the events since the daemon started, from 1, without gaps.
    pub seq: u64,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// What it happened to.
    pub subject: Arc<str>,
    /// What happened.
    pub happening: Happening,
}

#[derive(Debug, Default)]
struct Inner {
    entries: VecDeque<Entry>,
    next: u64,
    counters: BTreeMap<String, u64>,
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
        match happening.severity() {
            Severity::Info => tracing::info!(subject, "{happening}"),
            Severity::Warning => tracing::warn!(subject, "{happening}"),
            Severity::Error => tracing::error!(subject, "{happening}"),
        }
        let mut inner = self.lock();
        inner.next += 1;
        let seq = inner.next;
        if inner.entries.len() >= MAX_EVENTS {
            inner.entries.pop_front();
        }
        inner.entries.push_back(Entry { seq, unix_ms: unix_ms(), subject: subject.into(), happening });
        drop(inner);
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
        let inner = self.lock();
        let newer: Vec<Entry> = inner.entries.iter().filter(|entry| entry.seq > seq).cloned().collect();
        let skip = newer.len().saturating_sub(most);
        newer.into_iter().skip(skip).collect()
    }

    /// Tells the number of the latest event, now and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
