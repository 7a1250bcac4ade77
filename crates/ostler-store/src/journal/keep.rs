//! What is done beside the changes: old tasks are forgotten, bodies are looked through, the log is folded in.

use super::error::JournalError;
use super::record::TaskRecord;
use super::row::{self, Read};
use super::{Journal, PRUNE_SCAN, WAL_PAGES_MAX};
use crate::trees::signed;

/// What a step of pruning did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pruned {
    /// Tasks forgotten.
    pub tasks: u64,
    /// Batches forgotten.
    pub batches: u64,
    /// Whether the step went through to the end of the journal: nothing is due until more has ended or time has passed.
    pub through: bool,
}

/// What a step of looking through found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scrubbed {
    /// Damaged bodies: the task's number, and `payload` or `result`.
    pub damaged: Vec<(u64, &'static str)>,
    /// Whether all have been looked at since the journal was opened.
    pub through: bool,
}

impl Journal {
    /// Forgets ended tasks that are older than `keep`, and the lowest numbers beyond `keep_size`. Looks at a bounded number of rows; each call
    /// goes on where the last one stopped, and begins again behind the last row.
    ///
    /// # Errors
    /// What SQLite may say; nothing is forgotten then.
    pub fn prune(&mut self, now_unix_ms: u64) -> Result<Pruned, JournalError> {
        let keep = u64::try_from(self.options.keep.as_millis()).unwrap_or(u64::MAX);
        let (due, next) = self.due(now_unix_ms.saturating_sub(keep))?;
        let batch = self.oldest_empty_batch();
        if !due.is_empty() || batch.is_some() {
            // To last, since the files of results are removed after it.
            self.transact(true, now_unix_ms, |work| {
                for (task, hash) in &due {
                    work.forget(task, *hash)?;
                }
                batch.map_or(Ok(()), |batch| work.forget_batch(batch))
            })?;
        }
        self.prune_from = next.unwrap_or(0);
        self.stats.pruned += due.len() as u64;
        Ok(Pruned { tasks: due.len() as u64, batches: batch.is_some().into(), through: next.is_none() })
    }

    /// Tasks that are to be forgotten, with their hashes, and where to go on.
    #[expect(clippy::type_complexity, reason = "used once")]
    fn due(&self, before_unix_ms: u64) -> Result<(Vec<(TaskRecord, u64)>, Option<u64>), JournalError> {
        let failed = || self.failed("looking for old tasks");
        let mut excess = self.tally.ended_bytes.saturating_sub(self.options.keep_size);
        let from = if excess > 0 { 0 } else { self.prune_from };
        let sql = "SELECT * FROM tasks WHERE seq >= ?1 ORDER BY seq";
        let mut select = self.conn.prepare_cached(sql).map_err(failed())?;
        let mut rows = select.query([signed(from)]).map_err(failed())?;
        let mut due = Vec::new();
        let mut looked_at = 0;
        while let Some(row) = rows.next().map_err(failed())? {
            if looked_at >= PRUNE_SCAN {
                return Ok((due, Some(row.get::<_, i64>(0).map_err(failed())?.cast_unsigned())));
            }
            looked_at += 1;
            let read = row::read::<TaskRecord>(self.meta.journal, row).map_err(failed())?;
            if let Read::Sound(task, hash) = read
                && is_due(&task, before_unix_ms, &mut excess)
            {
                due.push((task, hash));
            }
        }
        Ok((due, None))
    }

    /// A batch without tasks, other than the newest: that one may still get some.
    fn oldest_empty_batch(&self) -> Option<u64> {
        let empty = |counts: &super::Counts| counts.iter().all(|count| *count == 0);
        let batches = self.tally.batches.iter().filter(|(seq, _)| **seq != self.meta.batch_last);
        batches.filter(|(_, tally)| empty(&tally.counts)).map(|(seq, _)| *seq).min()
    }

    /// Compares the payloads of waiting and running tasks and the results of so many tasks with their hashes. Goes on where it
    /// stopped; once it has been through, it does nothing more.
    ///
    /// # Errors
    /// What SQLite may say.
    pub fn scrub(&mut self, tasks: usize) -> Result<Scrubbed, JournalError> {
        let mut scrubbed = Scrubbed { through: true, ..Scrubbed::default() };
        let Some(from) = self.scrub_from else { return Ok(scrubbed) };
        let failed = || self.failed("looking through the journal");
        let mut next = None;
        {
            let sql = "SELECT * FROM tasks WHERE seq >= ?1 ORDER BY seq";
            let mut select = self.conn.prepare_cached(sql).map_err(failed())?;
            let mut rows = select.query([signed(from)]).map_err(failed())?;
            let mut looked_at = 0;
            while let Some(row) = rows.next().map_err(failed())? {
                if looked_at >= tasks {
                    next = Some(row.get::<_, i64>(0).map_err(failed())?.cast_unsigned());
                    scrubbed.through = false;
                    break;
                }
                looked_at += 1;
                let Read::Sound(task, _) =
                    row::read::<TaskRecord>(self.meta.journal, row).map_err(failed())?
                else {
                    continue;
                };
                scrubbed.damaged.extend(self.damaged_bodies(&task)?);
            }
        }
        self.scrub_from = next;
        self.stats.damaged += scrubbed.damaged.len() as u64;
        Ok(scrubbed)
    }

    fn damaged_bodies(&self, task: &TaskRecord) -> Result<Vec<(u64, &'static str)>, JournalError> {
        let mut damaged = Vec::new();
        for error in [self.payload(task).err(), self.result(task).err()].into_iter().flatten() {
            match error {
                JournalError::TaskDamaged { seq, what } => damaged.push((seq, what)),
                other => return Err(other),
            }
        }
        Ok(damaged)
    }

    /// Folds the write-ahead log into the journal's file when it is long. [`Journal::apply`] does the same at
    /// [`WAL_PAGES_MAX`]; whoever calls this in a quiet moment, with a smaller number, keeps changes from waiting for it.
    ///
    /// # Errors
    /// What SQLite may say.
    pub fn checkpoint(&mut self, pages: u64) -> Result<bool, JournalError> {
        if self.head.is_none() {
            return Ok(false);
        }
        let failed = || JournalError::sqlite(&self.path, "folding the log in");
        let log = |sql: &str| -> rusqlite::Result<i64> {
            self.conn.prepare_cached(sql)?.query_row([], |row| row.get(1))
        };
        let long = u64::try_from(log("PRAGMA wal_checkpoint(NOOP)").map_err(failed())?).unwrap_or(0);
        if long < pages.max(1) {
            return Ok(false);
        }
        log("PRAGMA wal_checkpoint(PASSIVE)").map_err(failed())?;
        self.stats.checkpoints += 1;
        Ok(true)
    }

    pub(super) fn checkpoint_if_long(&mut self) -> Result<(), JournalError> {
        self.checkpoint(WAL_PAGES_MAX).map(drop)
    }
}

/// Whether a task is to be forgotten now: for its age, or for what all take up.
fn is_due(task: &TaskRecord, before_unix_ms: u64, excess: &mut u64) -> bool {
    let Some(ended) = task.ended.filter(|_| task.state.has_ended()) else { return false };
    if *excess > 0 {
        *excess = excess.saturating_sub(super::tally::bytes(task));
        return true;
    }
    ended.unix_ms < before_unix_ms
}
