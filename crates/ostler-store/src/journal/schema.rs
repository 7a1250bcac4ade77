//! The journal's tables, as the steps that made them. A step that was released is never changed; a new one is added.
//!
//! Each row of a table with a column `sum` carries a hash over all its other columns, seeded with the journal's id and
//! the table. What is large (payloads, results) is in tables of its own, so that a task's change writes little; its hash
//! is in the task's row. `meta` has the sum of all hashes of a table: a row that is missing, or older than it should
//! be, is noticed without a second copy.
//!
//! What SQL need not look into is packed (`pack.rs`).
//!
//! There are few indexes, since each is written with every task. What is listed is found by walking back over the rows,
//! a bounded number at a time.

use std::path::Path;

use rusqlite::Connection;

use super::error::JournalError;

/// Marks a file as a task journal, in SQLite's `application_id`: "OSTJ".
const APPLICATION_ID: i32 = i32::from_be_bytes(*b"OSTJ");

/// The version of the tables this build writes and the newest it can read.
pub const JOURNAL_VERSION: u32 = MIGRATIONS.len() as u32;

/// Step `n` leads from version `n` to `n + 1`.
const MIGRATIONS: &[&str] = &["CREATE TABLE meta (
        id INTEGER PRIMARY KEY, journal INTEGER, no INTEGER, task_last INTEGER, batch_last INTEGER,
        tasks INTEGER, tasks_sum INTEGER, attempts INTEGER, attempts_sum INTEGER, batches INTEGER, batches_sum INTEGER,
        sum INTEGER
    );
    CREATE TABLE tasks (
        seq INTEGER PRIMARY KEY, state INTEGER, project TEXT, key TEXT, body BLOB, sum INTEGER
    );
    CREATE UNIQUE INDEX tasks_by_key ON tasks (project, key) WHERE key IS NOT NULL;
    CREATE TABLE payloads (seq INTEGER PRIMARY KEY, body BLOB);
    CREATE TABLE results (seq INTEGER PRIMARY KEY, body BLOB);
    CREATE TABLE attempts (
        id INTEGER PRIMARY KEY, worker TEXT, begun_no INTEGER, begun_unix_ms INTEGER, ended_no INTEGER,
        ended_unix_ms INTEGER, why TEXT, sum INTEGER
    );
    CREATE TABLE batches (
        seq INTEGER PRIMARY KEY, nonce INTEGER, project TEXT, key TEXT, name TEXT, principal TEXT,
        created_unix_ms INTEGER, tasks_sum INTEGER, no INTEGER, sum INTEGER
    );
    CREATE UNIQUE INDEX batches_by_key ON batches (project, key) WHERE key IS NOT NULL;
    CREATE TABLE evidence (
        no INTEGER PRIMARY KEY, unix_ms INTEGER, seq INTEGER, attempt INTEGER, state INTEGER, current INTEGER,
        len INTEGER, body BLOB, sum INTEGER
    );
    CREATE TABLE limits (no INTEGER PRIMARY KEY, unix_ms INTEGER, project TEXT, running INTEGER, sum INTEGER);
    CREATE TABLE starts (no INTEGER PRIMARY KEY, unix_ms INTEGER, sum INTEGER);"];

/// How a file that is open looks.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// Nothing was ever written to it.
    Fresh,
    /// A journal of this version, with exactly its tables.
    Journal,
}

/// Whose file this is and whether its tables are as they were made.
pub(super) fn look(conn: &Connection, path: &Path) -> Result<Found, JournalError> {
    use crate::StoreError::{Foreign, TooNew};
    let failed = || JournalError::sqlite(path, "reading its version");
    let damaged = |detail: &str| JournalError::Damaged { path: path.to_owned(), detail: detail.to_owned() };
    let application: i32 = pragma(conn, "application_id").map_err(failed())?;
    let version: u32 = pragma(conn, "user_version").map_err(failed())?;
    let objects = objects(conn).map_err(failed())?;
    match (application, version) {
        (0, 0) if objects.is_empty() => Ok(Found::Fresh),
        (APPLICATION_ID, JOURNAL_VERSION) if objects == expected().map_err(failed())? => Ok(Found::Journal),
        (APPLICATION_ID, JOURNAL_VERSION) => Err(damaged("its tables are not as they were made")),
        (APPLICATION_ID, found) if found > JOURNAL_VERSION => {
            Err(TooNew { path: path.to_owned(), found, supported: JOURNAL_VERSION }.into())
        }
        (APPLICATION_ID, _) => Err(damaged("its version is none that ever was")),
        // The tables are ours, so it is the mark that is wrong.
        _ if objects == expected().map_err(failed())? => Err(damaged("the mark in its header is wrong")),
        _ => Err(Foreign { path: path.to_owned() }.into()),
    }
}

/// Whether the tables are as they were made, whatever the header says.
pub(super) fn fits(conn: &Connection) -> rusqlite::Result<bool> {
    Ok(objects(conn)? == expected()?)
}

/// Makes the tables in an empty database.
pub(super) fn create(conn: &Connection) -> rusqlite::Result<()> {
    for sql in MIGRATIONS {
        conn.execute_batch(sql)?;
    }
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    conn.pragma_update(None, "user_version", JOURNAL_VERSION)
}

/// The words that made each table and index.
fn objects(conn: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    let mut select = conn.prepare("SELECT name, sql FROM sqlite_schema ORDER BY name")?;
    select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn expected() -> rusqlite::Result<Vec<(String, String)>> {
    let conn = Connection::open_in_memory()?;
    create(&conn)?;
    objects(&conn)
}

fn pragma<T: rusqlite::types::FromSql>(conn: &Connection, name: &str) -> rusqlite::Result<T> {
    conn.pragma_query_value(None, name, |row| row.get(0))
}
