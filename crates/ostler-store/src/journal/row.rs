//! Rows: each is written with a hash over all its columns, and read only where that fits.

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, OptionalExtension, Row as SqlRow, params_from_iter};
use twox_hash::XxHash3_64;

use super::pack::{Packer, Unpacker};
use super::record::{AttemptRecord, BatchRecord, Body, Evidence, Id, Stamp, TaskRecord, TaskState};
use crate::trees::{signed, unsigned};

/// The most columns of a table.
const COLUMNS_MAX: usize = 12;

/// The place of an attempt's number in the key of `attempts`: the task's number is above it.
pub(super) const ATTEMPT_BITS: u32 = 16;

/// What all hashes of a journal are seeded with: its id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seed(pub(super) u64);

impl Seed {
    /// The hash of a payload or result. It is another one for another task, so that no body is taken for its neighbour's.
    pub(super) fn body(self, seq: u64, bytes: &[u8]) -> u64 {
        XxHash3_64::oneshot_with_seed(self.0 ^ seq.wrapping_mul(0x9E37_79B9_7F4A_7C15), bytes)
    }

    fn row(self, table: u64, cells: &[ValueRef<'_>]) -> u64 {
        let mut bytes = Vec::with_capacity(512);
        for cell in cells {
            match cell {
                ValueRef::Null => bytes.push(0),
                ValueRef::Integer(value) => {
                    bytes.push(1);
                    bytes.extend_from_slice(&value.to_le_bytes());
                }
                ValueRef::Real(value) => {
                    bytes.push(2);
                    bytes.extend_from_slice(&value.to_le_bytes());
                }
                ValueRef::Text(text) | ValueRef::Blob(text) => {
                    bytes.push(if matches!(cell, ValueRef::Text(_)) { 3 } else { 4 });
                    bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
                    bytes.extend_from_slice(text);
                }
            }
        }
        XxHash3_64::oneshot_with_seed(self.0 ^ table, &bytes)
    }
}

/// A kind of row.
pub(super) trait Row: Sized {
    /// Its table's part in the seed: its letters.
    const TABLE: u64;
    /// `SELECT` of all columns, up to the `WHERE`.
    const SELECT: &'static str;
    /// Writes a new one.
    const INSERT: &'static str;
    /// All columns but the hash, in the table's order. What is packed is packed into `body`, which is empty.
    fn cells<'a>(&'a self, body: &'a mut Packer) -> Vec<ValueRef<'a>>;
    /// The same, back; none where they make no sense.
    fn from_cells(cells: &Cells<'_>) -> Option<Self>;
}

/// What a row turned out to be. The number is the hash.
pub(super) enum Read<R> {
    /// As it was written.
    Sound(R, u64),
    /// Not as it was written. The key, as far as it can be told.
    Damaged(u64),
}

/// The columns of a row that was read.
pub(super) struct Cells<'a>(&'a [ValueRef<'a>]);

impl<'a> Cells<'a> {
    fn signed(&self, at: usize) -> Option<i64> {
        match self.0[at] {
            ValueRef::Integer(value) => Some(value),
            _ => None,
        }
    }

    fn number(&self, at: usize) -> Option<u64> {
        self.signed(at).map(unsigned)
    }

    fn small<T: TryFrom<i64>>(&self, at: usize) -> Option<T> {
        T::try_from(self.signed(at)?).ok()
    }

    /// None where there is rubbish, `Some(None)` where there is NULL.
    #[expect(clippy::option_option, reason = "nonsense and absence are two things")]
    fn text(&self, at: usize) -> Option<Option<&'a str>> {
        match self.0[at] {
            ValueRef::Text(text) => std::str::from_utf8(text).ok().map(Some),
            ValueRef::Null => Some(None),
            _ => None,
        }
    }

    fn owned(&self, at: usize) -> Option<String> {
        self.text(at)?.map(str::to_owned)
    }

    #[expect(clippy::option_option, reason = "nonsense and absence are two things")]
    fn maybe(&self, at: usize) -> Option<Option<String>> {
        self.text(at).map(|text| text.map(str::to_owned))
    }

    fn stamp(&self, at: usize) -> Option<Stamp> {
        Some(Stamp { no: self.number(at)?, unix_ms: self.number(at + 1)? })
    }
}

/// A row of the table as SQLite holds it now, if it is sound: its columns are handed to `use_cells`.
pub(super) fn with_cells<R: Row, T>(
    seed: Seed,
    row: &SqlRow<'_>,
    use_cells: impl FnOnce(&Cells<'_>) -> Option<T>,
) -> rusqlite::Result<Read<T>> {
    let mut cells = [ValueRef::Null; COLUMNS_MAX];
    let columns = row.as_ref().column_count();
    for (at, cell) in cells[..columns].iter_mut().enumerate() {
        *cell = row.get_ref(at)?;
    }
    let (body, sum) = cells[..columns].split_at(columns - 1);
    let hash = seed.row(R::TABLE, body);
    let key = || Cells(body).number(0).unwrap_or(0);
    if sum[0] != ValueRef::Integer(signed(hash)) {
        return Ok(Read::Damaged(key()));
    }
    Ok(use_cells(&Cells(body)).map_or_else(|| Read::Damaged(key()), |value| Read::Sound(value, hash)))
}

/// A row, if it is sound.
pub(super) fn read<R: Row>(seed: Seed, row: &SqlRow<'_>) -> rusqlite::Result<Read<R>> {
    with_cells::<R, R>(seed, row, R::from_cells)
}

/// The row with this key.
pub(super) fn get<R: Row>(
    conn: &Connection,
    seed: Seed,
    sql: &str,
    key: u64,
) -> rusqlite::Result<Option<Read<R>>> {
    conn.prepare_cached(sql)?.query_row([signed(key)], |row| read::<R>(seed, row)).optional()
}

/// Writes a new row and returns its hash.
pub(super) fn insert<R: Row>(conn: &Connection, seed: Seed, record: &R) -> rusqlite::Result<u64> {
    put::<R>(conn.prepare_cached(R::INSERT)?, seed, record)
}

/// Runs a statement that has all columns as its parameters, and returns the row's hash.
pub(super) fn put<R: Row>(mut sql: CachedStatement<'_>, seed: Seed, record: &R) -> rusqlite::Result<u64> {
    let mut body = Packer::default();
    let mut cells = record.cells(&mut body);
    let hash = seed.row(R::TABLE, &cells);
    cells.push(ValueRef::Integer(signed(hash)));
    sql.execute(params_from_iter(cells.into_iter().map(ToSqlOutput::Borrowed)))?;
    Ok(hash)
}

fn int(value: u64) -> ValueRef<'static> {
    ValueRef::Integer(signed(value))
}

fn maybe_int(value: Option<u64>) -> ValueRef<'static> {
    value.map_or(ValueRef::Null, int)
}

fn text(value: &str) -> ValueRef<'_> {
    ValueRef::Text(value.as_bytes())
}

fn maybe_text(value: Option<&String>) -> ValueRef<'_> {
    value.map_or(ValueRef::Null, |value| text(value))
}

impl Row for TaskRecord {
    const TABLE: u64 = u64::from_be_bytes(*b"\0\0\0tasks");
    const SELECT: &'static str = "SELECT * FROM tasks";
    const INSERT: &'static str = "INSERT INTO tasks VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

    fn cells<'a>(&'a self, body: &'a mut Packer) -> Vec<ValueRef<'a>> {
        // What the queue needs comes first.
        body.0.reserve(256);
        body.number(self.id.nonce.into());
        body.text(&self.lane);
        body.number(self.priority.into());
        body.maybe(self.session.as_deref(), Packer::text);
        body.maybe(self.batch, Packer::number);
        for number in [self.submitted_unix_ms, self.ready_unix_ms] {
            body.number(number);
        }
        body.maybe(self.deadline_unix_ms, Packer::number);
        for number in [self.attempts_max, self.base, self.attempt] {
            body.number(number.into());
        }
        for number in [self.payload.len, self.payload.sum] {
            body.number(number);
        }
        body.maybe(self.result, |body, result| {
            for number in [result.len, result.sum, result.in_file.into()] {
                body.number(number);
            }
        });
        body.text(&self.kind);
        body.text(&self.principal);
        body.maybe(self.worker.as_deref(), Packer::text);
        for stamp in [self.begun, self.ended] {
            body.maybe(stamp, |body, stamp| {
                body.number(stamp.no);
                body.number(stamp.unix_ms);
            });
        }
        body.maybe(self.why.as_deref(), Packer::text);
        body.number(self.changed_no);
        let mut cells = Vec::with_capacity(6);
        cells.extend([
            int(self.id.seq),
            ValueRef::Integer(self.state.number()),
            text(&self.project),
            maybe_text(self.key.as_ref()),
            ValueRef::Blob(&body.0),
        ]);
        cells
    }

    fn from_cells(cells: &Cells<'_>) -> Option<Self> {
        let (glance, mut rest) = Glance::unpack(cells)?;
        let kind = rest.text()?.to_owned();
        let principal = rest.text()?.to_owned();
        let worker = rest.maybe(Unpacker::text)?.map(str::to_owned);
        let mut stamp = || rest.maybe(|rest| Some(Stamp { no: rest.number()?, unix_ms: rest.number()? }));
        let (begun, ended) = (stamp()?, stamp()?);
        let why = rest.maybe(Unpacker::text)?.map(str::to_owned);
        let changed_no = rest.number()?;
        rest.end()?;
        Some(Self {
            id: Id { seq: glance.seq, nonce: glance.nonce },
            state: glance.state,
            project: glance.project.to_owned(),
            lane: glance.lane.to_owned(),
            kind,
            priority: glance.priority,
            principal,
            session: glance.session.map(str::to_owned),
            key: glance.key.map(str::to_owned),
            batch: glance.batch,
            submitted_unix_ms: glance.submitted_unix_ms,
            ready_unix_ms: glance.ready_unix_ms,
            deadline_unix_ms: glance.deadline_unix_ms,
            attempts_max: glance.attempts_max,
            base: glance.base,
            attempt: glance.attempt,
            worker,
            begun,
            ended,
            why,
            payload: glance.payload,
            result: glance.result,
            changed_no,
        })
    }
}

/// What opening and the queue need of a task, borrowed from the row.
pub(super) struct Glance<'a> {
    pub(super) seq: u64,
    pub(super) nonce: u32,
    pub(super) state: TaskState,
    pub(super) project: &'a str,
    pub(super) lane: &'a str,
    pub(super) priority: u8,
    pub(super) key: Option<&'a str>,
    pub(super) session: Option<&'a str>,
    pub(super) batch: Option<u64>,
    pub(super) submitted_unix_ms: u64,
    pub(super) ready_unix_ms: u64,
    pub(super) deadline_unix_ms: Option<u64>,
    pub(super) attempts_max: u32,
    pub(super) base: u32,
    pub(super) attempt: u32,
    pub(super) payload: Body,
    pub(super) result: Option<Body>,
}

impl<'a> Glance<'a> {
    pub(super) fn from_cells(cells: &Cells<'a>) -> Option<Self> {
        Self::unpack(cells).map(|(glance, _)| glance)
    }

    /// And what comes behind it.
    fn unpack(cells: &Cells<'a>) -> Option<(Self, Unpacker<'a>)> {
        let ValueRef::Blob(body) = cells.0[4] else { return None };
        let mut body = Unpacker(body);
        let glance = Self {
            seq: cells.number(0)?,
            state: TaskState::from_number(cells.signed(1)?)?,
            project: cells.text(2)??,
            key: cells.text(3)?,
            nonce: body.small()?,
            lane: body.text()?,
            priority: body.small()?,
            session: body.maybe(Unpacker::text)?,
            batch: body.maybe(Unpacker::number)?,
            submitted_unix_ms: body.number()?,
            ready_unix_ms: body.number()?,
            deadline_unix_ms: body.maybe(Unpacker::number)?,
            attempts_max: body.small()?,
            base: body.small()?,
            attempt: body.small()?,
            payload: Body { len: body.number()?, sum: body.number()?, in_file: false },
            result: body.maybe(|body| {
                Some(Body { len: body.number()?, sum: body.number()?, in_file: body.number()? == 1 })
            })?,
        };
        Some((glance, body))
    }
}

/// The key of an attempt in its table.
pub(super) fn attempt_key(seq: u64, attempt: u32) -> u64 {
    seq << ATTEMPT_BITS | u64::from(attempt)
}

impl Row for AttemptRecord {
    const TABLE: u64 = u64::from_be_bytes(*b"attempts");
    const SELECT: &'static str = "SELECT * FROM attempts";
    const INSERT: &'static str = "INSERT INTO attempts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

    fn cells<'a>(&'a self, _: &'a mut Packer) -> Vec<ValueRef<'a>> {
        vec![
            int(attempt_key(self.seq, self.attempt)),
            text(&self.worker),
            int(self.begun.no),
            int(self.begun.unix_ms),
            int(self.ended.no),
            int(self.ended.unix_ms),
            text(&self.why),
        ]
    }

    fn from_cells(cells: &Cells<'_>) -> Option<Self> {
        let key = cells.number(0)?;
        Some(Self {
            seq: key >> ATTEMPT_BITS,
            attempt: u32::try_from(key & ((1 << ATTEMPT_BITS) - 1)).ok()?,
            worker: cells.owned(1)?,
            begun: cells.stamp(2)?,
            ended: cells.stamp(4)?,
            why: cells.owned(6)?,
        })
    }
}

impl Row for BatchRecord {
    const TABLE: u64 = u64::from_be_bytes(*b"\0batches");
    const SELECT: &'static str = "SELECT * FROM batches";
    const INSERT: &'static str = "INSERT INTO batches VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";

    fn cells<'a>(&'a self, _: &'a mut Packer) -> Vec<ValueRef<'a>> {
        vec![
            int(self.id.seq),
            int(self.id.nonce.into()),
            text(&self.project),
            maybe_text(self.key.as_ref()),
            maybe_text(self.name.as_ref()),
            text(&self.principal),
            int(self.created_unix_ms),
            int(self.tasks_sum),
            int(self.changed_no),
        ]
    }

    fn from_cells(cells: &Cells<'_>) -> Option<Self> {
        Some(Self {
            id: Id { seq: cells.number(0)?, nonce: cells.small(1)? },
            project: cells.owned(2)?,
            key: cells.maybe(3)?,
            name: cells.maybe(4)?,
            principal: cells.owned(5)?,
            created_unix_ms: cells.number(6)?,
            tasks_sum: cells.number(7)?,
            changed_no: cells.number(8)?,
        })
    }
}

impl Row for Evidence {
    const TABLE: u64 = u64::from_be_bytes(*b"evidence");
    const SELECT: &'static str = "SELECT * FROM evidence";
    const INSERT: &'static str = "INSERT INTO evidence VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

    fn cells<'a>(&'a self, _: &'a mut Packer) -> Vec<ValueRef<'a>> {
        vec![
            int(self.at.no),
            int(self.at.unix_ms),
            int(self.seq),
            int(self.attempt.into()),
            ValueRef::Integer(self.state.number()),
            int(self.current.into()),
            int(self.len),
            ValueRef::Blob(&self.body),
        ]
    }

    fn from_cells(cells: &Cells<'_>) -> Option<Self> {
        let ValueRef::Blob(body) = cells.0[7] else { return None };
        Some(Self {
            at: cells.stamp(0)?,
            seq: cells.number(2)?,
            attempt: cells.small(3)?,
            state: TaskState::from_number(cells.signed(4)?)?,
            current: cells.small(5)?,
            len: cells.number(6)?,
            body: body.to_owned(),
        })
    }
}

/// A project's limit from a change on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LimitRecord {
    pub(super) at: Stamp,
    pub(super) project: String,
    pub(super) running: Option<u64>,
}

impl Row for LimitRecord {
    const TABLE: u64 = u64::from_be_bytes(*b"\0\0limits");
    const SELECT: &'static str = "SELECT * FROM limits";
    const INSERT: &'static str = "INSERT INTO limits VALUES (?1, ?2, ?3, ?4, ?5)";

    fn cells<'a>(&'a self, _: &'a mut Packer) -> Vec<ValueRef<'a>> {
        vec![int(self.at.no), int(self.at.unix_ms), text(&self.project), maybe_int(self.running)]
    }

    fn from_cells(cells: &Cells<'_>) -> Option<Self> {
        Some(Self { at: cells.stamp(0)?, project: cells.owned(2)?, running: cells.number(3) })
    }
}

/// The journal was opened to be written: what had been running until then was not running any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct StartRecord(pub(super) Stamp);

impl Row for StartRecord {
    const TABLE: u64 = u64::from_be_bytes(*b"\0\0starts");
    const SELECT: &'static str = "SELECT * FROM starts";
    const INSERT: &'static str = "INSERT INTO starts VALUES (?1, ?2, ?3)";

    fn cells<'a>(&'a self, _: &'a mut Packer) -> Vec<ValueRef<'a>> {
        vec![int(self.0.no), int(self.0.unix_ms)]
    }

    fn from_cells(cells: &Cells<'_>) -> Option<Self> {
        cells.stamp(0).map(Self)
    }
}

/// How many rows a table has and the sum of their hashes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Sum {
    pub(super) rows: u64,
    pub(super) sum: u64,
}

impl Sum {
    pub(super) fn add(&mut self, hash: u64) {
        self.rows += 1;
        self.sum = self.sum.wrapping_add(hash);
    }

    pub(super) fn remove(&mut self, hash: u64) {
        self.rows = self.rows.saturating_sub(1);
        self.sum = self.sum.wrapping_sub(hash);
    }
}

/// The journal's account of itself: one row, written with every group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Meta {
    /// The journal's id and the seed of its hashes.
    pub(super) journal: Seed,
    /// The number of the last change.
    pub(super) no: u64,
    /// The highest number given to a task.
    pub(super) task_last: u64,
    /// The highest number given to a batch.
    pub(super) batch_last: u64,
    pub(super) tasks: Sum,
    pub(super) attempts: Sum,
    pub(super) batches: Sum,
}

impl Meta {
    pub(super) const SELECT_ONE: &'static str = "SELECT * FROM meta WHERE id = ?1";
    pub(super) const UPDATE: &'static str = "UPDATE meta SET journal = ?2, no = ?3, task_last = ?4, batch_last = ?5,
        tasks = ?6, tasks_sum = ?7, attempts = ?8, attempts_sum = ?9, batches = ?10, batches_sum = ?11, sum = ?12
        WHERE id = ?1";
    /// Its own hash is not seeded: the seed is in it.
    pub(super) const SEED: Seed = Seed(0);
}

impl Row for Meta {
    const TABLE: u64 = u64::from_be_bytes(*b"\0\0\0\0meta");
    const SELECT: &'static str = "SELECT * FROM meta";
    const INSERT: &'static str =
        "INSERT INTO meta VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";

    fn cells<'a>(&'a self, _: &'a mut Packer) -> Vec<ValueRef<'a>> {
        let sums = [self.tasks, self.attempts, self.batches];
        let mut cells =
            vec![int(1), int(self.journal.0), int(self.no), int(self.task_last), int(self.batch_last)];
        cells.extend(sums.iter().flat_map(|sum| [int(sum.rows), int(sum.sum)]));
        cells
    }

    fn from_cells(cells: &Cells<'_>) -> Option<Self> {
        let sum = |at| Some(Sum { rows: cells.number(at)?, sum: cells.number(at + 1)? });
        Some(Self {
            journal: Seed(cells.number(1)?),
            no: cells.number(2)?,
            task_last: cells.number(3)?,
            batch_last: cells.number(4)?,
            tasks: sum(5)?,
            attempts: sum(7)?,
            batches: sum(9)?,
        })
    }
}
