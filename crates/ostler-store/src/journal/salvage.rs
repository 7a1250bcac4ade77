//! Reads what is sound from a damaged journal.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use super::apply::SELECT_TASK;
use super::error::JournalError;
use super::head::Head;
use super::open::{connect, create, is_damage};
use super::record::{AttemptRecord, BatchRecord, Evidence, TaskRecord, TaskState};
use super::repair::NAMED_MAX;
use super::row::{self, LimitRecord, Meta, Read, Row, Seed, StartRecord, Sum, attempt_key};
use super::schema;
use crate::trees::signed;

/// How many keys in a row are tried where a table cannot be read, before the rest of it is given up.
const TRIES_MAX: u64 = 2_000_000;

/// What was found.
#[derive(Default)]
pub(super) struct Salvaged {
    /// The damaged journal's account of itself, if that is sound.
    pub(super) meta: Option<Meta>,
    /// Tasks.
    pub(super) tasks: u64,
    /// Tasks of which there are traces only.
    pub(super) lost: Vec<u64>,
    /// Payloads and results that are not there or not what they were.
    pub(super) bodies: Vec<(u64, &'static str)>,
    /// There must have been tasks.
    some: bool,
}

impl Salvaged {
    /// Whether there is nothing to go on with.
    pub(super) fn hopeless(&self) -> bool {
        self.tasks == 0 && self.some
    }
}

/// Copies all sound rows of `from` to `to`, which is empty.
pub(super) fn salvage(from: &Path, to: &Path, head: Option<Head>) -> Result<Salvaged, JournalError> {
    let old = connect(from).map_err(JournalError::sqlite(from, "reading"))?;
    let new = Connection::open(to).map_err(JournalError::sqlite(to, "opening"))?;
    let done = (|| {
        // It counts once it is whole and synced.
        new.pragma_update(None, "synchronous", "OFF")?;
        new.pragma_update_and_check(None, "journal_mode", "OFF", |_| Ok(()))?;
        create(&new)?;
        let transaction = new.unchecked_transaction()?;
        let salvaged = copy(&old, &transaction, head)?;
        transaction.commit()?;
        Ok(salvaged)
    })();
    done.map_err(JournalError::sqlite(from, "repairing"))
}

fn copy(old: &Connection, new: &Connection, head: Option<Head>) -> rusqlite::Result<Salvaged> {
    let mut salvaged = Salvaged::default();
    if unless_damaged(schema::fits(old))? != Some(true) {
        salvaged.some = true;
        return Ok(salvaged);
    }
    let read = unless_damaged(row::get::<Meta>(old, Meta::SEED, Meta::SELECT_ONE, 1))?.flatten();
    salvaged.meta = if let Some(Read::Sound(meta, _)) = read { Some(meta) } else { None };
    // The seed is in either; without it nothing can be told from rubbish.
    let Some(seed) = salvaged.meta.map(|meta| meta.journal).or(head.map(|head| head.journal)) else {
        salvaged.some = true;
        return Ok(salvaged);
    };
    let head = head.filter(|head| head.journal == seed);
    let mut meta = Meta {
        journal: seed,
        no: salvaged.meta.map_or(0, |meta| meta.no).max(head.map_or(0, |head| head.no)),
        task_last: salvaged.meta.map_or(0, |meta| meta.task_last).max(head.map_or(0, |head| head.task_last)),
        batch_last: salvaged
            .meta
            .map_or(0, |meta| meta.batch_last)
            .max(head.map_or(0, |head| head.batch_last)),
        tasks: Sum::default(),
        attempts: Sum::default(),
        batches: Sum::default(),
    };
    salvaged.some = salvaged.meta.map_or(meta.task_last > 0, |meta| meta.tasks.rows > 0);
    tasks(old, new, &mut meta, &mut salvaged)?;
    bodies(old, new, seed, &mut salvaged)?;
    others(old, new, &mut meta)?;
    meta.no += 1;
    row::put::<Meta>(new.prepare_cached(Meta::UPDATE)?, Meta::SEED, &meta)?;
    Ok(salvaged)
}

fn tasks(
    old: &Connection,
    new: &Connection,
    meta: &mut Meta,
    salvaged: &mut Salvaged,
) -> rusqlite::Result<()> {
    let (mut sum, mut no, mut last) = (Sum::default(), meta.no, meta.task_last);
    walk(old, &Table::all("tasks", "seq", meta.task_last), |key, row| {
        match row::read::<TaskRecord>(meta.journal, row)? {
            Read::Sound(task, _) => {
                // Two with one idempotency key: one is older than the damage lets know. Neither is shown as the other.
                match unless_constraint(row::insert(new, meta.journal, &task))? {
                    Some(hash) => sum.add(hash),
                    None => note_lost(salvaged, task.id.seq),
                }
                no = no.max(task.changed_no);
                last = last.max(task.id.seq);
            }
            Read::Damaged(_) => note_lost(salvaged, key),
        }
        Ok(())
    })?;
    salvaged.tasks = sum.rows;
    (meta.tasks, meta.no, meta.task_last) = (sum, no, last);
    Ok(())
}

fn note_lost(salvaged: &mut Salvaged, seq: u64) {
    if salvaged.lost.len() < NAMED_MAX && !salvaged.lost.contains(&seq) {
        salvaged.lost.push(seq);
    }
}

/// Payloads and results go to tasks whose hashes they have. A payload without a task is the trace of a lost one.
fn bodies(old: &Connection, new: &Connection, seed: Seed, salvaged: &mut Salvaged) -> rusqlite::Result<()> {
    let task = |seq: u64| -> rusqlite::Result<Option<TaskRecord>> {
        Ok(match row::get::<TaskRecord>(new, seed, SELECT_TASK, seq)? {
            Some(Read::Sound(task, _)) => Some(task),
            _ => None,
        })
    };
    let last: u64 = new
        .query_row("SELECT max(seq) FROM tasks", [], |row| row.get::<_, Option<i64>>(0))?
        .map_or(0, i64::cast_unsigned);
    for table in ["payloads", "results"] {
        let insert = format!("INSERT OR IGNORE INTO {table} VALUES (?1, ?2)");
        walk(old, &Table::all(table, "seq", last), |seq, row| {
            let Some(task) = task(seq)? else {
                // A key beyond all that were given is rubbish itself.
                if seq <= last {
                    note_lost(salvaged, seq);
                }
                return Ok(());
            };
            let expected =
                if table == "payloads" { Some(task.payload) } else { task.result.filter(|r| !r.in_file) };
            if let (Some(expected), Ok(body)) = (expected, row.get_ref(1)?.as_blob())
                && seed.body(seq, body) == expected.sum
            {
                new.prepare_cached(&insert)?.execute(params![signed(seq), body])?;
            }
            Ok(())
        })?;
    }
    missing(new, seed, salvaged)
}

/// What is not there now, whatever the reason.
fn missing(new: &Connection, seed: Seed, salvaged: &mut Salvaged) -> rusqlite::Result<()> {
    let mut select = new.prepare(
        "SELECT t.*, p.seq IS NOT NULL, r.seq IS NOT NULL FROM tasks t LEFT JOIN payloads p ON p.seq = t.seq
         LEFT JOIN results r ON r.seq = t.seq WHERE p.seq IS NULL OR (t.state = ?1 AND r.seq IS NULL) ORDER BY t.seq",
    )?;
    let mut rows = select.query([TaskState::Succeeded.number()])?;
    while let Some(row) = rows.next()? {
        if salvaged.bodies.len() >= NAMED_MAX {
            break;
        }
        let seq = row.get::<_, i64>(0)?.cast_unsigned();
        let (payload, result): (bool, bool) = (row.get(6)?, row.get(7)?);
        if !payload {
            salvaged.bodies.push((seq, "payload"));
        }
        if let Some(Read::Sound(task, _)) = row::get::<TaskRecord>(new, seed, SELECT_TASK, seq)?
            && task.result.is_some_and(|body| !body.in_file)
            && !result
        {
            salvaged.bodies.push((seq, "result"));
        }
    }
    Ok(())
}

/// Attempts, batches, and what only the checker reads.
fn others(old: &Connection, new: &Connection, meta: &mut Meta) -> rusqlite::Result<()> {
    let seed = meta.journal;
    let known = |seq: u64| -> rusqlite::Result<bool> {
        let found =
            new.prepare_cached("SELECT 1 FROM tasks WHERE seq = ?1")?.query_row([signed(seq)], |_| Ok(()));
        found.optional().map(|found| found.is_some())
    };
    let (mut sum, mut no) = (Sum::default(), meta.no);
    copy_sound::<AttemptRecord>(
        old,
        new,
        seed,
        &Table {
            step: attempt_key(1, 0),
            ..Table::all("attempts", "id", attempt_key(meta.task_last + 1, 0))
        },
        |attempt, insert| {
            no = no.max(attempt.ended.no);
            if known(attempt.seq)?
                && let Some(hash) = insert()?
            {
                sum.add(hash);
            }
            Ok(())
        },
    )?;
    meta.attempts = sum;
    let (mut sum, mut last) = (Sum::default(), meta.batch_last);
    copy_sound::<BatchRecord>(
        old,
        new,
        seed,
        &Table::all("batches", "seq", meta.batch_last),
        |batch, insert| {
            last = last.max(batch.id.seq);
            if let Some(hash) = insert()? {
                sum.add(hash);
            }
            Ok(())
        },
    )?;
    (meta.batches, meta.batch_last) = (sum, last);
    copy_sound::<Evidence>(
        old,
        new,
        seed,
        &Table { sparse: true, ..Table::all("evidence", "no", no) },
        |_, insert| insert().map(drop),
    )?;
    copy_sound::<LimitRecord>(
        old,
        new,
        seed,
        &Table { sparse: true, ..Table::all("limits", "no", no) },
        |_, insert| insert().map(drop),
    )?;
    copy_sound::<StartRecord>(
        old,
        new,
        seed,
        &Table { sparse: true, ..Table::all("starts", "no", no) },
        |_, insert| insert().map(drop),
    )?;
    meta.no = no;
    Ok(())
}

type Insert<'a> = &'a dyn Fn() -> rusqlite::Result<Option<u64>>;

fn copy_sound<R: Row>(
    old: &Connection,
    new: &Connection,
    seed: Seed,
    table: &Table<'_>,
    mut each: impl FnMut(&R, Insert<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    walk(old, table, |_, row| match row::read::<R>(seed, row)? {
        Read::Sound(record, _) => each(&record, &|| unless_constraint(row::insert(new, seed, &record))),
        Read::Damaged(_) => Ok(()),
    })
}

/// A table, and which of its keys are tried where it cannot be read.
struct Table<'a> {
    name: &'a str,
    key: &'a str,
    /// The last key there may be.
    last: u64,
    /// From one key to the next.
    step: u64,
    /// Most keys have no row: what looks like the end is taken for it.
    sparse: bool,
}

impl<'a> Table<'a> {
    fn all(name: &'a str, key: &'a str, last: u64) -> Self {
        Self { name, key, last, step: 1, sparse: false }
    }
}

/// Hands over all rows of a table that can be reached, each once. Where it cannot be read, the next key is tried.
fn walk(
    conn: &Connection,
    table: &Table<'_>,
    mut each: impl FnMut(u64, &rusqlite::Row<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let Table { name, key, last, step, sparse } = *table;
    let select = conn.prepare(&format!("SELECT * FROM {name} WHERE {key} >= ?1 ORDER BY {key}"));
    let Some(mut select) = unless_damaged(select)? else { return Ok(()) };
    let (mut from, mut tries) = (0, 0);
    loop {
        let mut rows = select.query([signed(from)])?;
        let ended = loop {
            let Some(next) = unless_damaged(rows.next())? else { break false };
            let Some(row) = next else { break true };
            let this = row.get::<_, i64>(0)?.cast_unsigned();
            // Behind the last one, whatever a damaged page says: so it comes to an end.
            if this < from {
                break false;
            }
            each(this, row)?;
            from = this + 1;
        };
        drop(rows);
        tries += 1;
        from = (from / step + 1) * step;
        if from > last || tries > TRIES_MAX || (ended && sparse) {
            return Ok(());
        }
    }
}

fn unless_damaged<T>(result: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_damage(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn unless_constraint(result: rusqlite::Result<u64>) -> rusqlite::Result<Option<u64>> {
    match result {
        Ok(hash) => Ok(Some(hash)),
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => Ok(None),
        Err(error) => Err(error),
    }
}
