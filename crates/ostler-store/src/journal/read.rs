//! Reading. Each row and body is compared with its hash; what does not fit is never shown.

use rusqlite::OptionalExtension;

use super::apply::{SELECT_BATCH, SELECT_TASK};
use super::error::JournalError;
use super::files::ResultFiles;
use super::record::{AttemptRecord, BatchRecord, Evidence, Id, TaskRecord, TaskState};
use super::row::{self, Glance, Read, Row, attempt_key};
use super::tally::{BatchTally, Counts};
use super::{EVIDENCE_SHOWN, Journal, LIST_SCAN};
use crate::trees::signed;

/// What the queue needs of a task that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueuedTask<'a> {
    /// Its name.
    pub id: Id,
    /// Its project.
    pub project: &'a str,
    /// Its lane.
    pub lane: &'a str,
    /// Its priority.
    pub priority: u8,
    /// The session it ends with.
    pub session: Option<&'a str>,
    /// When it was accepted.
    pub submitted_unix_ms: u64,
    /// Not before then.
    pub ready_unix_ms: u64,
    /// Of no use after.
    pub deadline_unix_ms: Option<u64>,
    /// The attempts it has had.
    pub attempt: u32,
    /// Those of them that were before it was last revived.
    pub base: u32,
    /// So many at most, those before a revival not counted.
    pub attempts_max: u32,
}

/// Which tasks are listed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TaskFilter {
    /// Of this project.
    pub project: Option<String>,
    /// In this state.
    pub state: Option<TaskState>,
    /// Of this batch.
    pub batch: Option<u64>,
    /// Of this session.
    pub session: Option<String>,
    /// Of this type.
    pub kind: Option<String>,
}

/// A part of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// The tasks, newest first.
    pub tasks: Vec<TaskRecord>,
    /// Numbers of tasks that would be looked at but are damaged.
    pub damaged: Vec<u64>,
    /// Go on below this number. There may be more even where `tasks` is short or empty: a page looks at a bounded number
    /// of rows ([`LIST_SCAN`]), so that a list of few among many keeps no change waiting.
    pub below: Option<u64>,
}

/// A batch with how far it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchStatus {
    /// The batch.
    pub batch: BatchRecord,
    /// Its tasks by state, in the order of [`TaskState::ALL`]. Pruned ones are not counted.
    pub counts: Counts,
    /// The lowest and highest number among its tasks.
    pub range: Option<(u64, u64)>,
}

impl Journal {
    /// The task of this name.
    ///
    /// # Errors
    /// [`JournalError::TaskDamaged`], and what SQLite may say.
    pub fn get(&self, id: Id) -> Result<Option<TaskRecord>, JournalError> {
        Ok(self.task(id.seq)?.filter(|task| task.id == id))
    }

    /// The task of this number.
    ///
    /// # Errors
    /// As [`Journal::get`].
    pub fn task(&self, seq: u64) -> Result<Option<TaskRecord>, JournalError> {
        match row::get::<TaskRecord>(&self.conn, self.meta.journal, SELECT_TASK, seq)
            .map_err(self.failed("reading a task"))?
        {
            None => Ok(None),
            Some(Read::Sound(task, _)) if task.id.seq == seq => Ok(Some(task)),
            Some(_) => Err(JournalError::TaskDamaged { seq, what: "record" }),
        }
    }

    /// A task's payload, as it was submitted.
    ///
    /// # Errors
    /// [`JournalError::TaskDamaged`] where it is not that any more: such a task cannot be done. What SQLite may say.
    pub fn payload(&self, task: &TaskRecord) -> Result<Vec<u8>, JournalError> {
        let seq = task.id.seq;
        let body = self.body("SELECT body FROM payloads WHERE seq = ?1", seq)?;
        body.filter(|body| self.meta.journal.body(seq, body) == task.payload.sum)
            .ok_or(JournalError::TaskDamaged { seq, what: "payload" })
    }

    /// What a worker needs of these tasks: their records and payloads, in their order. None for a number without a task.
    ///
    /// # Errors
    /// What SQLite may say. A damaged task is an error in its own place.
    #[expect(clippy::type_complexity, reason = "each task for itself")]
    pub fn payloads(
        &self,
        seqs: &[u64],
    ) -> Result<Vec<Result<Option<(TaskRecord, Vec<u8>)>, JournalError>>, JournalError> {
        seqs.iter()
            .map(|seq| {
                let found = self.task(*seq).and_then(|task| match task {
                    None => Ok(None),
                    Some(task) => self.payload(&task).map(|payload| Some((task, payload))),
                });
                match found {
                    Err(error @ JournalError::TaskDamaged { .. }) => Ok(Err(error)),
                    Err(error) => Err(error),
                    Ok(found) => Ok(Ok(found)),
                }
            })
            .collect()
    }

    /// A task's committed result; none where it has none.
    ///
    /// # Errors
    /// [`JournalError::TaskDamaged`] where it is not what was committed any more. What SQLite may say.
    pub fn result(&self, task: &TaskRecord) -> Result<Option<Vec<u8>>, JournalError> {
        let Some(result) = task.result else { return Ok(None) };
        let seq = task.id.seq;
        let body = if result.in_file {
            let name = ResultFiles::name(seq, task.attempt);
            self.files.as_ref().and_then(|files| files.read(&name).ok())
        } else {
            self.body("SELECT body FROM results WHERE seq = ?1", seq)?
        };
        body.filter(|body| self.meta.journal.body(seq, body) == result.sum)
            .map(Some)
            .ok_or(JournalError::TaskDamaged { seq, what: "result" })
    }

    fn body(&self, sql: &str, seq: u64) -> Result<Option<Vec<u8>>, JournalError> {
        let read = self.conn.prepare_cached(sql).and_then(|mut select| {
            select
                .query_row([signed(seq)], |row| Ok(row.get_ref(0)?.as_blob().ok().map(<[u8]>::to_vec)))
                .optional()
        });
        match read {
            Ok(body) => Ok(body.flatten()),
            // The page is damaged, and with it this body.
            Err(error) if super::open::is_damage(&error) => Ok(None),
            Err(error) => Err(self.failed("reading a task")(error)),
        }
    }

    /// The attempts of a task that were followed by others, oldest first. The last one is in its record.
    ///
    /// # Errors
    /// [`JournalError::TaskDamaged`], and what SQLite may say.
    pub fn attempts(&self, seq: u64) -> Result<Vec<AttemptRecord>, JournalError> {
        let range = [signed(attempt_key(seq, 0)), signed(attempt_key(seq + 1, 0) - 1)];
        self.rows::<AttemptRecord>("SELECT * FROM attempts WHERE id BETWEEN ?1 AND ?2", range, "attempts")
    }

    /// Results of a task that came late, oldest first, [`EVIDENCE_SHOWN`] at most. Looks through all evidence, where it has any.
    ///
    /// # Errors
    /// [`JournalError::TaskDamaged`], and what SQLite may say.
    pub fn evidence(&self, seq: u64) -> Result<Vec<Evidence>, JournalError> {
        if !self.known.late.contains_key(&seq) {
            return Ok(Vec::new());
        }
        let bounds = [signed(seq), signed(EVIDENCE_SHOWN as u64)];
        self.rows::<Evidence>(
            "SELECT * FROM evidence WHERE seq = ?1 ORDER BY no LIMIT ?2",
            bounds,
            "late results",
        )
    }

    fn rows<R: Row>(&self, sql: &str, keys: [i64; 2], what: &'static str) -> Result<Vec<R>, JournalError> {
        let read = self.conn.prepare_cached(sql).and_then(|mut select| {
            let rows = select.query_map(keys, |row| row::read::<R>(self.meta.journal, row))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        });
        let sound = |read| match read {
            Read::Sound(row, _) => Ok(row),
            Read::Damaged(key) => Err(JournalError::TaskDamaged { seq: key, what }),
        };
        read.map_err(self.failed("reading a task"))?.into_iter().map(sound).collect()
    }

    /// Tells `each` every task that waits, lowest number first, and returns how many there are.
    ///
    /// # Errors
    /// [`JournalError::TaskDamaged`], and what SQLite may say.
    pub fn queued(&self, mut each: impl FnMut(QueuedTask<'_>)) -> Result<u64, JournalError> {
        let failed = || self.failed("reading the queue");
        let mut select =
            self.conn.prepare_cached("SELECT * FROM tasks WHERE state = 0 ORDER BY seq").map_err(failed())?;
        let mut rows = select.query([]).map_err(failed())?;
        let mut count = 0;
        while let Some(row) = rows.next().map_err(failed())? {
            let read = row::with_cells::<TaskRecord, _>(self.meta.journal, row, |cells| {
                let task = Glance::from_cells(cells)?;
                each(queued(&task));
                Some(())
            });
            if let Read::Damaged(seq) = read.map_err(failed())? {
                return Err(JournalError::TaskDamaged { seq, what: "record" });
            }
            count += 1;
        }
        Ok(count)
    }

    /// Tasks that fit, newest first: those with numbers below `below`, `limit` at most.
    ///
    /// # Errors
    /// What SQLite may say.
    pub fn list(&self, filter: &TaskFilter, below: Option<u64>, limit: usize) -> Result<Page, JournalError> {
        let failed = || self.failed("listing tasks");
        let (mut floor, mut top) = (0, below.unwrap_or(u64::MAX >> 1));
        if let Some(batch) = filter.batch {
            let tally = self.tally.batches.get(&batch).copied().unwrap_or_default();
            (floor, top) = (tally.first, top.min(tally.last.saturating_add(1)));
        }
        let mut page = Page { tasks: Vec::new(), damaged: Vec::new(), below: None };
        if floor >= top {
            return Ok(page);
        }
        let mut select = self
            .conn
            .prepare_cached("SELECT * FROM tasks WHERE seq < ?1 AND seq >= ?2 ORDER BY seq DESC")
            .map_err(failed())?;
        let mut rows = select.query([signed(top), signed(floor)]).map_err(failed())?;
        let mut looked_at = 0;
        while let Some(row) = rows.next().map_err(failed())? {
            let seq = row.get::<_, i64>(0).map_err(failed())?.cast_unsigned();
            if page.tasks.len() >= limit || looked_at >= LIST_SCAN {
                page.below = Some(seq + 1);
                break;
            }
            looked_at += 1;
            match row::read::<TaskRecord>(self.meta.journal, row).map_err(failed())? {
                Read::Sound(task, _) if filter.fits(&task) => page.tasks.push(task),
                Read::Sound(..) => {}
                Read::Damaged(_) => page.damaged.push(seq),
            }
        }
        Ok(page)
    }

    /// A batch and how far it is.
    ///
    /// # Errors
    /// [`JournalError::TaskDamaged`] where its record is, and what SQLite may say.
    pub fn batch(&self, id: Id) -> Result<Option<BatchStatus>, JournalError> {
        match row::get::<BatchRecord>(&self.conn, self.meta.journal, SELECT_BATCH, id.seq)
            .map_err(self.failed("reading a batch"))?
        {
            Some(Read::Sound(batch, _)) if batch.id == id => Ok(Some(self.status(batch))),
            None | Some(Read::Sound(..)) => Ok(None),
            Some(Read::Damaged(_)) => Err(JournalError::TaskDamaged { seq: id.seq, what: "batch" }),
        }
    }

    /// What each project was last said to be limited to, those without limit included.
    pub fn limits(&self) -> Vec<(String, Option<u32>)> {
        self.known.limits.iter().map(|(project, running)| (project.clone(), *running)).collect()
    }

    /// Batches, newest first: those with numbers below `below`, `limit` at most.
    ///
    /// # Errors
    /// As [`Journal::batch`].
    pub fn batches(&self, below: Option<u64>, limit: usize) -> Result<Vec<BatchStatus>, JournalError> {
        let keys = [signed(below.unwrap_or(u64::MAX >> 1)), signed(limit as u64)];
        let sql = "SELECT * FROM batches WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2";
        let rows = self.rows::<BatchRecord>(sql, keys, "batch")?;
        Ok(rows.into_iter().map(|batch| self.status(batch)).collect())
    }

    fn status(&self, batch: BatchRecord) -> BatchStatus {
        let tally = self.tally.batches.get(&batch.id.seq).copied().unwrap_or_default();
        let BatchTally { counts, first, last } = tally;
        BatchStatus { batch, counts, range: (first <= last).then_some((first, last)) }
    }

    /// All tasks by state, in the order of [`TaskState::ALL`].
    pub fn counts(&self) -> Counts {
        self.tally.states
    }

    /// The tasks of each project by state.
    pub fn projects(&self) -> impl Iterator<Item = (&str, Counts)> {
        self.tally.projects.iter().map(|(project, counts)| (project.as_str(), *counts))
    }
}

fn queued<'a>(task: &Glance<'a>) -> QueuedTask<'a> {
    QueuedTask {
        id: Id { seq: task.seq, nonce: task.nonce },
        project: task.project,
        lane: task.lane,
        priority: task.priority,
        session: task.session,
        submitted_unix_ms: task.submitted_unix_ms,
        ready_unix_ms: task.ready_unix_ms,
        deadline_unix_ms: task.deadline_unix_ms,
        attempt: task.attempt,
        base: task.base,
        attempts_max: task.attempts_max,
    }
}

impl TaskFilter {
    fn fits(&self, task: &TaskRecord) -> bool {
        self.project.as_ref().is_none_or(|project| *project == task.project)
            && self.state.is_none_or(|state| state == task.state)
            && self.batch.is_none_or(|batch| task.batch == Some(batch))
            && self.session.as_ref().is_none_or(|session| task.session.as_ref() == Some(session))
            && self.kind.as_ref().is_none_or(|kind| *kind == task.kind)
    }
}
