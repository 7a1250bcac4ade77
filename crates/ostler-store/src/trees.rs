//! The ledger: one row for each tree that may be running, written before it can be lost.

use ostler_domain::{Generation, InstanceId, ServerName};
use rusqlite::{ErrorCode, Row, params};

use crate::{Store, StoreError, check_length};

/// The most trees in the ledger, far above what one daemon may run.
pub const TREES_MAX: u32 = 10_000;

/// A process, told apart from later ones with the same id. Valid within one boot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ProcessKey {
    /// The process id.
    pub pid: u32,
    /// When it started, in whatever unit the operating system counts it since boot.
    pub start: u64,
}

/// A tree that was, or is about to be, started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TreeRecord {
    /// The mark its processes inherit: unique, used once.
    pub mark: String,
    /// The instance it belongs to.
    pub instance: InstanceId,
    /// Which of its processes.
    pub generation: Generation,
    /// The guard, once it runs.
    pub guard: Option<ProcessKey>,
    /// The server's first process, once it runs.
    pub leader: Option<ProcessKey>,
    /// The boot it was started in: process ids of another boot mean nothing.
    pub boot_id: String,
    /// The daemon that started it.
    pub daemon_id: String,
    /// When, in milliseconds since 1970.
    pub started_unix_ms: u64,
}

const INSERT: &str =
    "INSERT INTO trees (mark, server, number, generation, guard_pid, guard_start, leader_pid,
    leader_start, boot_id, daemon_id, started_unix_ms)
    SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11 WHERE (SELECT count(*) FROM trees) < ?12";

const SELECT: &str =
    "SELECT mark, server, number, generation, guard_pid, guard_start, leader_pid, leader_start,
    boot_id, daemon_id, started_unix_ms FROM trees ORDER BY started_unix_ms, mark";

impl Store {
    /// Writes a tree down. Do this before the spawn, so that no moment exists in which it runs unknown.
    ///
    /// # Errors
    /// [`StoreError::Full`] at [`TREES_MAX`], [`StoreError::Duplicate`] for a mark that is there,
    /// [`StoreError::TooLong`], and what SQLite may say.
    pub fn trees_insert(&mut self, tree: &TreeRecord) -> Result<(), StoreError> {
        check_length("mark", &tree.mark)?;
        check_length("boot id", &tree.boot_id)?;
        check_length("daemon id", &tree.daemon_id)?;
        let row = params![
            tree.mark,
            tree.instance.server.as_str(),
            tree.instance.number,
            signed(tree.generation.0),
            tree.guard.map(|key| key.pid),
            tree.guard.map(|key| signed(key.start)),
            tree.leader.map(|key| key.pid),
            tree.leader.map(|key| signed(key.start)),
            tree.boot_id,
            tree.daemon_id,
            signed(tree.started_unix_ms),
            TREES_MAX,
        ];
        let inserted = self.conn.prepare_cached(INSERT).and_then(|mut insert| insert.execute(row));
        match inserted {
            Ok(0) => Err(StoreError::Full),
            Ok(_) => Ok(()),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                Err(StoreError::Duplicate { mark: tree.mark.clone() })
            }
            Err(error) => Err(self.failed("entering a tree")(error)),
        }
    }

    /// Adds the guard to a tree. False when there is no such tree.
    ///
    /// # Errors
    /// What SQLite may say.
    pub fn trees_set_guard(&mut self, mark: &str, guard: ProcessKey) -> Result<bool, StoreError> {
        self.set(mark, guard, "UPDATE trees SET guard_pid = ?2, guard_start = ?3 WHERE mark = ?1")
    }

    /// Adds the leader to a tree. False when there is no such tree.
    ///
    /// # Errors
    /// What SQLite may say.
    pub fn trees_set_leader(&mut self, mark: &str, leader: ProcessKey) -> Result<bool, StoreError> {
        self.set(mark, leader, "UPDATE trees SET leader_pid = ?2, leader_start = ?3 WHERE mark = ?1")
    }

    /// Strikes a tree out. Do this only once it is verified empty. False when there is no such tree.
    ///
    /// # Errors
    /// What SQLite may say.
    pub fn trees_remove(&mut self, mark: &str) -> Result<bool, StoreError> {
        let delete = self.conn.prepare_cached("DELETE FROM trees WHERE mark = ?1");
        let count = delete.and_then(|mut delete| delete.execute([mark]));
        count.map(|count| count > 0).map_err(self.failed("removing a tree"))
    }

    /// Every tree in the ledger, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a row makes no sense, and what SQLite may say.
    pub fn trees_all(&mut self) -> Result<Vec<TreeRecord>, StoreError> {
        let reading = || self.failed("reading the ledger");
        let mut select = self.conn.prepare_cached(SELECT).map_err(reading())?;
        let rows = select.query_map([], from_row).map_err(reading())?;
        rows.map(|row| row.map_err(|error| self.nonsense(error))).collect()
    }

    fn set(&mut self, mark: &str, key: ProcessKey, sql: &'static str) -> Result<bool, StoreError> {
        let row = params![mark, key.pid, signed(key.start)];
        let count = self.conn.prepare_cached(sql).and_then(|mut update| update.execute(row));
        count.map(|count| count > 0).map_err(self.failed("adding a process to a tree"))
    }

    /// A value that cannot be what its column says is damage; anything else is SQLite's own error.
    fn nonsense(&self, error: rusqlite::Error) -> StoreError {
        use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType};
        match error {
            FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) => {
                let detail = format!("a row of the table `trees`: {error}");
                StoreError::Corrupt { path: self.path.clone(), detail }
            }
            other => self.failed("reading the ledger")(other),
        }
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<TreeRecord> {
    let server: String = row.get(1)?;
    let server: ServerName = server.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(error))
    })?;
    Ok(TreeRecord {
        mark: row.get(0)?,
        instance: InstanceId { server, number: row.get(2)? },
        generation: Generation(unsigned(row.get(3)?)),
        guard: key(row.get(4)?, row.get(5)?),
        leader: key(row.get(6)?, row.get(7)?),
        boot_id: row.get(8)?,
        daemon_id: row.get(9)?,
        started_unix_ms: unsigned(row.get(10)?),
    })
}

fn key(pid: Option<u32>, start: Option<i64>) -> Option<ProcessKey> {
    Some(ProcessKey { pid: pid?, start: unsigned(start?) })
}

/// SQLite's integers are signed: the same 64 bits, read the other way.
pub(crate) fn signed(value: u64) -> i64 {
    value.cast_signed()
}

pub(crate) fn unsigned(value: i64) -> u64 {
    value.cast_unsigned()
}
