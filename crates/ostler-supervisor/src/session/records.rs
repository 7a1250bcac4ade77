//! What of sessions outlives the daemon: those with a key of their own. Written behind what happens, many at once: nobody
//! waits for it.
//!
//! A handle is written down as a hash, so that who reads the state directory, or a copy of it, cannot use it: a session is
//! only looked for by its key, never the other way round, and a hash serves that as well. Names are no secrets.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ostler_domain::session::Overdue;
use ostler_mcp::mux::SessionKey;
use ostler_store::{SessionChange, SessionRecord};
use tokio::sync::Notify;

use super::{Session, Sessions, handle_of};
use crate::clock::{now_ms, unix_ms};
use crate::events::Events;
use crate::ledger::Ledger;

/// Changes that may wait to be written; further ones of other sessions are dropped.
const WAITING: usize = 65_536;
/// Changes that are written together, so that what else waits for the store waits for no more.
const BATCH: usize = 512;
/// Pause between two batches: what comes meanwhile is written together.
const PAUSE: Duration = Duration::from_millis(50);
/// Of `sessions.idle`: what is written down of the last word may be older by this.
const COARSE: u32 = 10;
/// The counter of what could not be written down.
const LOST: &str = "sessions not written down";

/// What is to be written: of each session the latest.
type Waiting = BTreeMap<SessionKey, SessionChange>;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Records {
    waiting: Mutex<Waiting>,
    wake: Notify,
    /// Whether somebody writes them.
    kept: AtomicBool,
    dropped: AtomicU64,
}

impl Records {
    /// The session is like this now.
    pub(super) fn note(&self, session: &Session) {
        if session.bound.is_some() || !self.kept.load(Ordering::Relaxed) {
            return;
        }
        session.noted_ms.store(now_ms(), Ordering::Relaxed);
        let record = session.record();
        let mut waiting = self.lock();
        // Of one that ends meanwhile, the end counts: it is told to be over before it is struck out.
        if !session.ended() {
            self.push(&mut waiting, session.key, SessionChange::Put(record));
        }
    }

    /// The session was heard of.
    pub(super) fn touch(&self, session: &Session) {
        let coarse = session.common.life.idle / COARSE;
        let age = now_ms().saturating_sub(session.noted_ms.load(Ordering::Relaxed));
        if Duration::from_millis(age) > coarse {
            self.note(session);
        }
    }

    /// The session has ended.
    pub(super) fn strike(&self, session: &Session) {
        if session.bound.is_none() && self.kept.load(Ordering::Relaxed) {
            self.push(&mut self.lock(), session.key, SessionChange::Remove(session.key));
        }
    }

    fn push(&self, waiting: &mut Waiting, key: SessionKey, change: SessionChange) {
        if waiting.len() >= WAITING && !waiting.contains_key(&key) {
            // A record that stays though its session is over is found silent at the next start.
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.insert(key, change);
        self.wake.notify_one();
    }

    fn take(&self) -> Vec<SessionChange> {
        let mut waiting = self.lock();
        let mut batch = Vec::with_capacity(waiting.len().min(BATCH));
        while batch.len() < BATCH
            && let Some((_, change)) = waiting.pop_first()
        {
            batch.push(change);
        }
        batch
    }

    async fn write(&self, batch: Vec<SessionChange>, ledger: &Ledger, events: &Events) {
        let count = batch.len();
        let lost = match ledger.write_sessions(batch).await {
            Ok(left_out) => left_out,
            Err(error) => {
                tracing::warn!(%error, "{count} changes of sessions could not be written down");
                count
            }
        };
        let dropped = usize::try_from(self.dropped.swap(0, Ordering::Relaxed)).unwrap_or(usize::MAX);
        for _ in 0..lost.saturating_add(dropped) {
            events.count(LOST);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn record(&self) -> SessionRecord {
        let now = unix_ms();
        SessionRecord {
            number: self.key,
            id: self.id.to_string(),
            principal: self.principal.to_string(),
            name: self.client.clone(),
            isolated: self.isolated,
            owned: self.owns.load(Ordering::Relaxed),
            restarts: self.restarts,
            created_unix_ms: now.saturating_sub(self.age_ms()),
            heard_unix_ms: now.saturating_sub(self.silent_ms()),
        }
    }
}

/// What became of the sessions of an earlier daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TakenUp {
    /// They go on.
    pub kept: usize,
    /// They would have ended meanwhile, or there is no room for them.
    pub ended: usize,
}

impl Sessions {
    /// Takes up the sessions of an earlier daemon, those first that were heard of last. From now on sessions are written
    /// down, by whoever runs [`Self::write_down`].
    pub(crate) fn take_up(&self, mut records: Vec<SessionRecord>) -> TakenUp {
        self.common.records.kept.store(true, Ordering::Relaxed);
        records.sort_by_key(|record| (std::cmp::Reverse(record.heard_unix_ms), record.number));
        let (now, mut found) = (unix_ms(), TakenUp::default());
        for record in records {
            self.next_key.fetch_max(record.number, Ordering::Relaxed);
            let number = record.number;
            match self.take_up_one(record, now) {
                Ok(()) => found.kept += 1,
                Err((id, reason)) => {
                    found.ended += 1;
                    self.bid_farewell(&id, &reason.into());
                    let records = &self.common.records;
                    records.push(&mut records.lock(), number, SessionChange::Remove(number));
                }
            }
        }
        found
    }

    fn take_up_one(&self, record: SessionRecord, now: u64) -> Result<(), (String, String)> {
        let life = &self.common.life;
        let age = now.saturating_sub(record.created_unix_ms);
        let silent = Duration::from_millis(now.saturating_sub(record.heard_unix_ms));
        let overdue = if silent > life.idle.saturating_add(life.idle / COARSE) {
            Some(Overdue::Idle(life.idle))
        } else {
            (record.owned && Duration::from_millis(age) >= life.max_age).then_some(Overdue::Age(life.max_age))
        };
        if let Some(why) = overdue {
            return Err((record.id, format!("{why}, by the time the daemon was started again")));
        }
        let Some(place) = self.reserve() else {
            let reason =
                format!("the daemon was started again with room for {} (limits.sessions)", self.limit);
            return Err((record.id, reason));
        };
        let id: Box<str> = record.id.into();
        let session = Arc::new(Session {
            client: record.name,
            isolated: record.isolated,
            restarts: record.restarts.saturating_add(1),
            earlier_ms: age,
            lost: AtomicBool::new(record.owned),
            ..self.blank(record.number, id.clone(), record.principal.into())
        });
        debug_assert_eq!(session.handle, handle_of(record.number));
        // The place now belongs to the session, until it ends.
        std::mem::forget(place);
        self.write().insert(id, Arc::clone(&session));
        self.common.records.note(&session);
        session.look();
        Ok(())
    }

    /// Writes down what becomes of sessions. Never returns.
    pub(crate) async fn write_down(&self, ledger: &Ledger, events: &Events) {
        let records = &self.common.records;
        loop {
            records.wake.notified().await;
            loop {
                let batch = records.take();
                if batch.is_empty() {
                    break;
                }
                records.write(batch, ledger, events).await;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Writes down when each was last heard of, and whatever else waits.
    pub(crate) async fn write_all(&self, ledger: &Ledger, events: &Events) {
        let records = &self.common.records;
        self.all().iter().for_each(|session| records.note(session));
        loop {
            let batch = records.take();
            if batch.is_empty() {
                return;
            }
            records.write(batch, ledger, events).await;
        }
    }
}
