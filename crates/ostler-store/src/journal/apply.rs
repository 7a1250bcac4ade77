//! Changes, many in one transaction.

use rusqlite::types::ToSql;
use rusqlite::{Connection, OptionalExtension, params};
use twox_hash::XxHash3_64;

use super::change::{Change, Outcome, Refusal};
use super::error::JournalError;
use super::files::ResultFiles;
use super::head::Head;
use super::record::{
    AttemptRecord, BatchRecord, Body, Evidence, Id, NewBatch, NewTask, Stamp, TaskRecord, TaskState,
};
use super::row::{self, LimitRecord, Meta, Read, attempt_key};
use super::tally::{self, Shift};
use super::{
    ATTEMPTS_MAX, BATCHES_MAX, CHANGES_MAX, EVIDENCE_BYTES, EVIDENCE_MAX, Journal, JournalOptions,
    LIMITS_MAX, WHY_MAX,
};
use crate::TEXT_MAX;
use crate::trees::signed;

const UPDATE: &str = "UPDATE tasks SET state = ?2, body = ?5, sum = ?6 WHERE seq = ?1";

impl Journal {
    /// Makes these changes in their order, all in one transaction, and returns when they are on disk. What is not possible
    /// is refused by its outcome and keeps none of the others from being made.
    ///
    /// # Errors
    /// When the group as a whole failed, for example for want of space; nothing is changed then.
    pub fn apply(&mut self, changes: &[Change], now_unix_ms: u64) -> Result<Vec<Outcome>, JournalError> {
        let count = changes.iter().map(Change::weight).sum();
        if count > CHANGES_MAX {
            return Err(JournalError::TooMany { count });
        }
        let last = changes.iter().any(Change::must_last);
        self.transact(last, now_unix_ms, |work| changes.iter().map(|change| work.change(change)).collect())
    }

    /// Runs `make` in a transaction. Memory follows once it is on disk.
    pub(super) fn transact<T>(
        &mut self,
        last: bool,
        now_unix_ms: u64,
        make: impl FnOnce(&mut Work<'_>) -> Result<T, Failure>,
    ) -> Result<T, JournalError> {
        let last = last || !self.options.durable;
        self.synchronous(last && self.options.durable)?;
        let failed = |error| match error {
            Failure::Sqlite(error) => JournalError::sqlite(&self.path, "writing")(error),
            Failure::Journal(error) => error,
        };
        let transaction = Transaction::begin(&self.conn).map_err(|error| failed(Failure::Sqlite(error)))?;
        let mut work = Work {
            conn: transaction.conn,
            meta: self.meta,
            now_unix_ms,
            options: &self.options,
            nonces: self.nonces,
            files: self.files.as_ref(),
            known: &self.known,
            made: Made::default(),
        };
        let made = make(&mut work).and_then(|value| {
            if work.meta != self.meta {
                row::put::<Meta>(work.conn.prepare_cached(Meta::UPDATE)?, Meta::SEED, &work.meta)?;
            }
            Ok((value, work.meta, std::mem::take(&mut work.made)))
        });
        let written = std::mem::take(&mut work.made.files_written);
        let done = made.and_then(|(value, meta, made)| {
            transaction.commit()?;
            Ok((value, meta, made))
        });
        match done {
            Ok((value, meta, made)) => {
                self.meta = meta;
                self.take_in(made);
                self.after_commit(last);
                Ok(value)
            }
            Err(error) => {
                if let Some(files) = &self.files {
                    files.remove(&written);
                }
                Err(failed(error))
            }
        }
    }

    /// What is tried again with the next group where it fails: the changes are on disk, and whoever was told otherwise would
    /// make them once more.
    fn after_commit(&mut self, last: bool) {
        let written = match &self.head {
            Some(head) if last => head
                .write(Head::of(&self.meta))
                .map_err(JournalError::file(&self.path.with_file_name(super::HEAD_NAME), "writing")),
            _ => Ok(()),
        };
        for done in [written, self.checkpoint_if_long()] {
            if let Err(error) = done {
                self.stats.troubles += 1;
                self.trouble = Some(error);
            }
        }
    }

    fn take_in(&mut self, made: Made) {
        for shift in made.shifts {
            self.tally.enter(shift);
        }
        for (project, running) in made.limits {
            self.known.limits.insert(project, running);
        }
        for seq in &made.late {
            *self.known.late.entry(*seq).or_default() += 1;
        }
        for seq in &made.late_dropped {
            if let Some(count) = self.known.late.get_mut(seq) {
                *count -= 1;
                if *count == 0 {
                    self.known.late.remove(seq);
                }
            }
        }
        for batch in made.batches {
            self.tally.batches.entry(batch).or_default();
        }
        for batch in made.batches_gone {
            self.tally.batches.remove(&batch);
        }
        self.known.batches = self.tally.batches.len();
        self.known.evidence = self.known.evidence + made.late.len() - made.late_dropped.len();
        self.known.limit_rows = self.known.limit_rows + made.limit_rows - made.limit_rows_dropped;
        self.stats.late += made.late.len() as u64;
        self.stats.evidence_dropped += made.late_dropped.len() as u64;
        if let Some(files) = &self.files {
            files.remove(&made.files_gone);
        }
    }

    /// How a commit is made to last from now on; told to SQLite only where it changes.
    fn synchronous(&mut self, full: bool) -> Result<(), JournalError> {
        if self.head.is_some() && self.full != Some(full) {
            self.conn
                .pragma_update(None, "synchronous", if full { "FULL" } else { "NORMAL" })
                .map_err(JournalError::sqlite(&self.path, "writing"))?;
            self.full = Some(full);
        }
        Ok(())
    }
}

/// A transaction, undone where it is not committed. Its words are prepared once: rusqlite's are read anew each time.
struct Transaction<'c> {
    conn: &'c Connection,
    committed: bool,
}

impl<'c> Transaction<'c> {
    fn begin(conn: &'c Connection) -> rusqlite::Result<Self> {
        conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Self { conn, committed: false })
    }

    fn commit(mut self) -> rusqlite::Result<()> {
        self.conn.prepare_cached("COMMIT")?.execute([])?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.committed {
            // Where the disk failed, SQLite has undone it already.
            let _ = self.conn.prepare_cached("ROLLBACK").and_then(|mut sql| sql.execute([]));
        }
    }
}

/// Why a transaction is not made.
#[derive(Debug)]
pub(super) enum Failure {
    Sqlite(rusqlite::Error),
    Journal(JournalError),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        Self::Journal(error)
    }
}

/// What memory takes in once a transaction is on disk.
#[derive(Default)]
pub(super) struct Made {
    pub(super) shifts: Vec<Shift>,
    limits: Vec<(String, Option<u32>)>,
    batches: Vec<u64>,
    pub(super) batches_gone: Vec<u64>,
    /// The tasks whose late results were written, or removed to make room.
    late: Vec<u64>,
    late_dropped: Vec<u64>,
    limit_rows: usize,
    limit_rows_dropped: usize,
    files_written: Vec<String>,
    pub(super) files_gone: Vec<String>,
}

/// What is known in memory of the smaller tables.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) limits: std::collections::HashMap<String, Option<u32>>,
    pub(super) limit_rows: usize,
    pub(super) evidence: usize,
    /// Of which tasks those are, and how many of each.
    pub(super) late: std::collections::HashMap<u64, u32>,
    pub(super) batches: usize,
}

/// A transaction under way.
pub(super) struct Work<'a> {
    pub(super) conn: &'a Connection,
    pub(super) meta: Meta,
    now_unix_ms: u64,
    options: &'a JournalOptions,
    nonces: u64,
    files: Option<&'a ResultFiles>,
    known: &'a Known,
    pub(super) made: Made,
}

type Made1<T> = Result<T, Failure>;

impl Work<'_> {
    fn change(&mut self, change: &Change) -> Made1<Outcome> {
        match change {
            Change::Submit(task) => self.submit(task, task.batch),
            Change::SubmitBatch { batch, tasks } => self.submit_batch(batch, tasks),
            Change::Begin { seq, attempt, worker } => self.begin(*seq, *attempt, worker),
            Change::Commit { seq, attempt, result } => self.commit(*seq, *attempt, result),
            Change::Retry { seq, attempt, why, not_before_unix_ms } => {
                self.retry(*seq, *attempt, why, *not_before_unix_ms)
            }
            Change::Bury { seq, attempt, why } => self.bury(*seq, *attempt, why),
            Change::Cancel { seq, why } => self.cancel(*seq, why),
            Change::Revive { seq, not_before_unix_ms, deadline_unix_ms } => {
                self.revive(*seq, *not_before_unix_ms, *deadline_unix_ms)
            }
            Change::Limit { project, running } => self.limit(project, *running),
        }
    }

    pub(super) fn stamp(&mut self) -> Stamp {
        self.meta.no += 1;
        Stamp { no: self.meta.no, unix_ms: self.now_unix_ms }
    }

    fn submit(&mut self, task: &NewTask, batch: Option<u64>) -> Made1<Outcome> {
        if let Some(refusal) = self.unfit(task) {
            return Ok(Outcome::Refused(refusal));
        }
        if let Some(named) = task.batch
            && !self.has_batch(named, &task.project)?
        {
            return Ok(Outcome::Refused(Refusal::NoBatch(named)));
        }
        if let Some(key) = &task.key
            && let Some(outcome) = self.earlier(task, key)?
        {
            return Ok(outcome);
        }
        let at = self.stamp();
        self.meta.task_last += 1;
        let seq = self.meta.task_last;
        let record = TaskRecord {
            id: Id { seq, nonce: nonce(self.nonces, seq) },
            state: TaskState::Queued,
            project: task.project.clone(),
            lane: task.lane.clone(),
            kind: task.kind.clone(),
            priority: task.priority,
            principal: task.principal.clone(),
            session: task.session.clone(),
            key: task.key.clone(),
            batch,
            submitted_unix_ms: at.unix_ms,
            ready_unix_ms: task.ready_unix_ms.max(at.unix_ms),
            deadline_unix_ms: task.deadline_unix_ms,
            attempts_max: task.attempts_max.max(1),
            base: 0,
            attempt: 0,
            worker: None,
            begun: None,
            ended: None,
            why: None,
            payload: self.body(seq, &task.payload),
            result: None,
            changed_no: at.no,
        };
        let hash = row::insert(self.conn, self.meta.journal, &record)?;
        self.meta.tasks.add(hash);
        self.conn
            .prepare_cached("INSERT INTO payloads VALUES (?1, ?2)")?
            .execute(params![signed(seq), task.payload])?;
        self.made.shifts.push(Shift::new(&record, None, Some(TaskState::Queued)));
        Ok(Outcome::Accepted(record.id))
    }

    /// What keeps a task from being accepted at all.
    fn unfit(&self, task: &NewTask) -> Option<Refusal> {
        let texts = [
            ("project name", Some(&task.project)),
            ("lane", Some(&task.lane)),
            ("type", Some(&task.kind)),
            ("principal", Some(&task.principal)),
            ("session id", task.session.as_ref()),
            ("key", task.key.as_ref()),
        ];
        too_long(&texts).or_else(|| {
            let (len, max) = (task.payload.len(), self.options.payload_max);
            (len > max).then_some(Refusal::TooLong { what: "payload", len, max })
        })
    }

    /// The task that this project has under this key.
    fn earlier(&self, task: &NewTask, key: &str) -> Made1<Option<Outcome>> {
        let found = self
            .conn
            .prepare_cached("SELECT * FROM tasks WHERE project = ?1 AND key = ?2")?
            .query_row([&task.project, key], |row| row::read::<TaskRecord>(self.meta.journal, row))
            .optional()?;
        Ok(found.map(|read| match read {
            Read::Damaged(seq) => Outcome::Refused(Refusal::Damaged(seq)),
            Read::Sound(record, _) => {
                let same = record.kind == task.kind
                    && record.lane == task.lane
                    && record.priority == task.priority
                    && record.attempts_max == task.attempts_max.max(1)
                    && record.payload == self.body(record.id.seq, &task.payload);
                if same { Outcome::Earlier(record.id) } else { Outcome::Refused(Refusal::KeyUsed(record.id)) }
            }
        }))
    }

    fn submit_batch(&mut self, batch: &NewBatch, tasks: &[NewTask]) -> Made1<Outcome> {
        let texts = [
            ("project name", Some(&batch.project)),
            ("key", batch.key.as_ref()),
            ("batch name", batch.name.as_ref()),
            ("principal", Some(&batch.principal)),
        ];
        if let Some(refusal) = too_long(&texts) {
            return Ok(Outcome::Refused(refusal));
        }
        let tasks_sum = self.sum_of(tasks);
        if let Some(key) = &batch.key
            && let Some(outcome) = self.earlier_batch(&batch.project, key, tasks_sum)?
        {
            return Ok(outcome);
        }
        if self.known.batches + self.made.batches.len() >= BATCHES_MAX {
            return Ok(Outcome::Refused(Refusal::Batches));
        }
        let (before, shifts) = (self.meta, self.made.shifts.len());
        let at = self.stamp();
        self.meta.batch_last += 1;
        let seq = self.meta.batch_last;
        let record = BatchRecord {
            id: Id { seq, nonce: nonce(self.nonces, !seq) },
            project: batch.project.clone(),
            key: batch.key.clone(),
            name: batch.name.clone(),
            principal: batch.principal.clone(),
            created_unix_ms: at.unix_ms,
            tasks_sum,
            changed_no: at.no,
        };
        self.conn.execute_batch("SAVEPOINT batch")?;
        let hash = row::insert(self.conn, self.meta.journal, &record)?;
        self.meta.batches.add(hash);
        self.made.batches.push(seq);
        let mut outcomes = Vec::with_capacity(tasks.len());
        for (index, task) in tasks.iter().enumerate() {
            match self.submit(task, Some(seq))? {
                Outcome::Refused(why) => {
                    self.conn.execute_batch("ROLLBACK TO batch; RELEASE batch")?;
                    self.meta = before;
                    self.made.shifts.truncate(shifts);
                    self.made.batches.pop();
                    return Ok(Outcome::Refused(Refusal::InBatch { index, why: Box::new(why) }));
                }
                outcome => outcomes.push(outcome),
            }
        }
        self.conn.execute_batch("RELEASE batch")?;
        Ok(Outcome::Batch { id: record.id, earlier: false, tasks: outcomes })
    }

    fn earlier_batch(&self, project: &str, key: &str, tasks_sum: u64) -> Made1<Option<Outcome>> {
        let found = self
            .conn
            .prepare_cached("SELECT * FROM batches WHERE project = ?1 AND key = ?2")?
            .query_row([project, key], |row| row::read::<BatchRecord>(self.meta.journal, row))
            .optional()?;
        Ok(found.map(|read| match read {
            Read::Damaged(seq) => Outcome::Refused(Refusal::Damaged(seq)),
            Read::Sound(record, _) if record.tasks_sum == tasks_sum => {
                Outcome::Batch { id: record.id, earlier: true, tasks: Vec::new() }
            }
            Read::Sound(record, _) => Outcome::Refused(Refusal::KeyUsed(record.id)),
        }))
    }

    /// A hash of what the tasks of a batch are.
    fn sum_of(&self, tasks: &[NewTask]) -> u64 {
        let mut bytes = Vec::new();
        for task in tasks {
            for text in [&task.project, &task.lane, &task.kind] {
                bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
                bytes.extend_from_slice(text.as_bytes());
            }
            bytes.push(task.priority);
            bytes.extend_from_slice(&self.meta.journal.body(0, &task.payload).to_le_bytes());
        }
        self.meta.journal.body(1, &bytes)
    }

    fn has_batch(&self, seq: u64, project: &str) -> Made1<bool> {
        let read = row::get::<BatchRecord>(self.conn, self.meta.journal, SELECT_BATCH, seq)?;
        Ok(matches!(read, Some(Read::Sound(batch, _)) if batch.project == project))
    }

    fn begin(&mut self, seq: u64, attempt: u32, worker: &str) -> Made1<Outcome> {
        if let Some(refusal) = too_long(&[("worker's name", Some(&worker.to_owned()))]) {
            return Ok(Outcome::Refused(refusal));
        }
        self.with(
            seq,
            |task| {
                if task.state != TaskState::Queued || task.attempt.checked_add(1) != Some(attempt) {
                    return Err(None);
                }
                if attempt > ATTEMPTS_MAX { Err(Some(Refusal::Attempts)) } else { Ok(()) }
            },
            |_, task, at| {
                task.state = TaskState::Running;
                task.attempt = attempt;
                task.worker = Some(worker.to_owned());
                task.begun = Some(at);
                Ok(())
            },
        )
    }

    fn commit(&mut self, seq: u64, attempt: u32, result: &[u8]) -> Made1<Outcome> {
        let (len, max) = (result.len(), self.options.result_max);
        if len > max {
            return Ok(Outcome::Refused(Refusal::TooLong { what: "result", len, max }));
        }
        let outcome = self.with(seq, running(attempt), |work, task, at| {
            task.state = TaskState::Succeeded;
            task.ended = Some(at);
            task.why = None;
            let mut body = work.body(seq, result);
            match work.files.filter(|_| len > work.options.result_inline) {
                Some(files) => {
                    let name = ResultFiles::name(seq, attempt);
                    work.made.files_written.push(name.clone());
                    files.write(&name, result)?;
                    body.in_file = true;
                }
                None => {
                    // A row may be there where the journal was repaired.
                    work.conn
                        .prepare_cached("INSERT OR REPLACE INTO results VALUES (?1, ?2)")?
                        .execute(params![signed(seq), result])?;
                }
            }
            task.result = Some(body);
            Ok(())
        })?;
        match outcome {
            Outcome::Refused(Refusal::State { state, attempt: current }) => {
                self.keep_evidence(seq, attempt, state, current, result)?;
                Ok(Outcome::Late { state, attempt: current })
            }
            other => Ok(other),
        }
    }

    fn keep_evidence(
        &mut self,
        seq: u64,
        attempt: u32,
        state: TaskState,
        current: u32,
        result: &[u8],
    ) -> Made1<()> {
        let at = self.stamp();
        let body = result[..result.len().min(EVIDENCE_BYTES)].to_vec();
        let evidence = Evidence { at, seq, attempt, state, current, len: result.len() as u64, body };
        row::insert(self.conn, self.meta.journal, &evidence)?;
        self.made.late.push(seq);
        if self.known.evidence + self.made.late.len() - self.made.late_dropped.len() > EVIDENCE_MAX {
            let sql = "DELETE FROM evidence WHERE no = (SELECT min(no) FROM evidence) RETURNING seq";
            let seq: i64 = self.conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
            self.made.late_dropped.push(seq.cast_unsigned());
        }
        Ok(())
    }

    fn retry(&mut self, seq: u64, attempt: u32, why: &str, not_before_unix_ms: u64) -> Made1<Outcome> {
        self.with(seq, running(attempt), |work, task, at| {
            work.archive(task, at, why)?;
            task.state = TaskState::Queued;
            task.ready_unix_ms = not_before_unix_ms.max(at.unix_ms);
            task.why = Some(reason(why));
            Ok(())
        })
    }

    fn bury(&mut self, seq: u64, attempt: Option<u32>, why: &str) -> Made1<Outcome> {
        let may = move |task: &TaskRecord| match attempt {
            Some(attempt) => running(attempt)(task),
            None if task.state == TaskState::Queued => Ok(()),
            None => Err(None),
        };
        self.with(seq, may, |_, task, at| {
            task.state = TaskState::Dead;
            task.ended = Some(at);
            task.why = Some(reason(why));
            Ok(())
        })
    }

    fn cancel(&mut self, seq: u64, why: &str) -> Made1<Outcome> {
        let may = |task: &TaskRecord| if task.state.has_ended() { Err(None) } else { Ok(()) };
        self.with(seq, may, |_, task, at| {
            task.state = TaskState::Cancelled;
            task.ended = Some(at);
            task.why = Some(reason(why));
            Ok(())
        })
    }

    fn revive(&mut self, seq: u64, not_before_unix_ms: u64, deadline: Option<u64>) -> Made1<Outcome> {
        let may = |task: &TaskRecord| match task.state {
            TaskState::Dead | TaskState::Cancelled if task.attempt >= ATTEMPTS_MAX => {
                Err(Some(Refusal::Attempts))
            }
            TaskState::Dead | TaskState::Cancelled => Ok(()),
            _ => Err(None),
        };
        self.with(seq, may, |work, task, at| {
            if let Some(ended) = task.ended
                && task.begun.is_some()
            {
                let why = task.why.take().unwrap_or_default();
                work.archive(task, ended, &why)?;
            }
            task.state = TaskState::Queued;
            task.base = task.attempt;
            task.ended = None;
            task.why = None;
            task.ready_unix_ms = not_before_unix_ms.max(at.unix_ms);
            task.deadline_unix_ms = deadline;
            Ok(())
        })
    }

    /// Moves the task's last attempt from its row to the table of attempts.
    fn archive(&mut self, task: &mut TaskRecord, ended: Stamp, why: &str) -> Made1<()> {
        let Some(begun) = task.begun.take() else { return Ok(()) };
        let attempt = AttemptRecord {
            seq: task.id.seq,
            attempt: task.attempt,
            worker: task.worker.take().unwrap_or_default(),
            begun,
            ended,
            why: reason(why),
        };
        let hash = row::insert(self.conn, self.meta.journal, &attempt)?;
        self.meta.attempts.add(hash);
        Ok(())
    }

    fn limit(&mut self, project: &str, running: Option<u32>) -> Made1<Outcome> {
        if let Some(refusal) = too_long(&[("project name", Some(&project.to_owned()))]) {
            return Ok(Outcome::Refused(refusal));
        }
        let made =
            self.made.limits.iter().rev().find(|(name, _)| name == project).map(|(_, running)| running);
        if made.or_else(|| self.known.limits.get(project)) == Some(&running) {
            return Ok(Outcome::Noted);
        }
        let record =
            LimitRecord { at: self.stamp(), project: project.to_owned(), running: running.map(u64::from) };
        row::insert(self.conn, self.meta.journal, &record)?;
        self.made.limit_rows += 1;
        self.made.limits.push((record.project, running));
        if self.known.limit_rows + self.made.limit_rows - self.made.limit_rows_dropped > LIMITS_MAX {
            self.made.limit_rows_dropped += self
                .conn
                .prepare_cached("DELETE FROM limits WHERE no = (SELECT min(no) FROM limits)")?
                .execute([])?;
        }
        Ok(Outcome::Noted)
    }

    /// Changes a task where `may` says so (no refusal of its own is [`Refusal::State`]).
    fn with(
        &mut self,
        seq: u64,
        may: impl FnOnce(&TaskRecord) -> Result<(), Option<Refusal>>,
        make: impl FnOnce(&mut Self, &mut TaskRecord, Stamp) -> Made1<()>,
    ) -> Made1<Outcome> {
        let (mut task, old) = match row::get::<TaskRecord>(self.conn, self.meta.journal, SELECT_TASK, seq)? {
            None => return Ok(Outcome::Refused(Refusal::NoTask(seq))),
            Some(Read::Damaged(_)) => return Ok(Outcome::Refused(Refusal::Damaged(seq))),
            Some(Read::Sound(task, hash)) => (task, hash),
        };
        let (was, attempt) = (task.state, task.attempt);
        if let Err(refusal) = may(&task) {
            return Ok(Outcome::Refused(refusal.unwrap_or(Refusal::State { state: was, attempt })));
        }
        let from = Some((was, tally::bytes(&task)));
        let at = self.stamp();
        make(self, &mut task, at)?;
        task.changed_no = at.no;
        let hash = row::put(self.conn.prepare_cached(UPDATE)?, self.meta.journal, &task)?;
        self.meta.tasks.remove(old);
        self.meta.tasks.add(hash);
        self.made.shifts.push(Shift::new(&task, from, Some(task.state)));
        Ok(Outcome::Done { was, attempt: task.attempt })
    }

    /// Strikes out an ended task with all that belongs to it.
    pub(super) fn forget(&mut self, task: &TaskRecord, hash: u64) -> Made1<()> {
        let seq = signed(task.id.seq);
        let delete = |sql: &str, key: &[&dyn ToSql]| self.conn.prepare_cached(sql)?.execute(key);
        delete("DELETE FROM tasks WHERE seq = ?1", &[&seq])?;
        delete("DELETE FROM payloads WHERE seq = ?1", &[&seq])?;
        self.meta.tasks.remove(hash);
        match task.result {
            Some(Body { in_file: true, .. }) => {
                self.made.files_gone.push(ResultFiles::name(task.id.seq, task.attempt));
            }
            Some(_) => drop(delete("DELETE FROM results WHERE seq = ?1", &[&seq])?),
            None => {}
        }
        if task.attempt > 1 || task.base > 0 {
            self.forget_attempts(task.id.seq)?;
        }
        self.stamp();
        self.made.shifts.push(Shift::new(task, Some((task.state, tally::bytes(task))), None));
        Ok(())
    }

    fn forget_attempts(&mut self, seq: u64) -> Made1<()> {
        let range = [signed(attempt_key(seq, 0)), signed(attempt_key(seq + 1, 0) - 1)];
        let mut select = self.conn.prepare_cached("SELECT * FROM attempts WHERE id BETWEEN ?1 AND ?2")?;
        let rows = select.query_map(range, |row| row::read::<AttemptRecord>(self.meta.journal, row))?;
        for read in rows {
            if let Read::Sound(_, hash) = read? {
                self.meta.attempts.remove(hash);
            }
        }
        self.conn.prepare_cached("DELETE FROM attempts WHERE id BETWEEN ?1 AND ?2")?.execute(range)?;
        Ok(())
    }

    /// Strikes out a batch that has no tasks any more.
    pub(super) fn forget_batch(&mut self, seq: u64) -> Made1<()> {
        if let Some(Read::Sound(_, hash)) =
            row::get::<BatchRecord>(self.conn, self.meta.journal, SELECT_BATCH, seq)?
        {
            self.conn.prepare_cached("DELETE FROM batches WHERE seq = ?1")?.execute([signed(seq)])?;
            self.meta.batches.remove(hash);
            self.stamp();
        }
        self.made.batches_gone.push(seq);
        Ok(())
    }

    fn body(&self, seq: u64, bytes: &[u8]) -> Body {
        Body { len: bytes.len() as u64, sum: self.meta.journal.body(seq, bytes), in_file: false }
    }
}

pub(super) const SELECT_TASK: &str = "SELECT * FROM tasks WHERE seq = ?1";
pub(super) const SELECT_BATCH: &str = "SELECT * FROM batches WHERE seq = ?1";

/// Only where exactly this attempt is running.
fn running(attempt: u32) -> impl Fn(&TaskRecord) -> Result<(), Option<Refusal>> {
    move |task| {
        let is = task.state == TaskState::Running && task.attempt == attempt;
        if is { Ok(()) } else { Err(None) }
    }
}

/// A reason, cut to its length and never empty.
fn reason(why: &str) -> String {
    if why.is_empty() {
        "no reason given".to_owned()
    } else {
        why[..why.floor_char_boundary(WHY_MAX)].to_owned()
    }
}

fn too_long(texts: &[(&'static str, Option<&String>)]) -> Option<Refusal> {
    texts.iter().find_map(|(what, text)| {
        let len = text.map_or(0, String::len);
        (len > TEXT_MAX).then_some(Refusal::TooLong { what, len, max: TEXT_MAX })
    })
}

/// Random as long as the seed is.
fn nonce(seed: u64, seq: u64) -> u32 {
    let hash = XxHash3_64::oneshot_with_seed(seed, &seq.to_le_bytes());
    u32::try_from(hash >> 32).expect("32 bits are left")
}

#[cfg(test)]
mod tests;
