//! The tables, as the steps that made them. A step that was released is never changed; a new one is added.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use crate::{SCHEMA_VERSION, StoreError};

/// Marks a file as Ostler's, in SQLite's `application_id`: "OSTL".
pub(crate) const APPLICATION_ID: i32 = i32::from_be_bytes(*b"OSTL");

/// Step `n` leads from version `n` to `n + 1`.
pub(crate) const MIGRATIONS: &[&str] = &[
    "CREATE TABLE trees (
        mark            TEXT PRIMARY KEY NOT NULL,
        server          TEXT NOT NULL,
        number          INTEGER NOT NULL,
        generation      INTEGER NOT NULL,
        guard_pid       INTEGER,
        guard_start     INTEGER,
        leader_pid      INTEGER,
        leader_start    INTEGER,
        boot_id         TEXT NOT NULL,
        daemon_id       TEXT NOT NULL,
        started_unix_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID",
    "CREATE TABLE traits (
        identity        TEXT PRIMARY KEY NOT NULL,
        legacy          INTEGER,
        modern          INTEGER,
        asks_back       INTEGER NOT NULL,
        updated_unix_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX traits_by_age ON traits (updated_unix_ms, identity)",
    // A key that opens a session is here as its hash only.
    "CREATE TABLE sessions (
        number          INTEGER PRIMARY KEY NOT NULL,
        id              TEXT NOT NULL,
        principal       TEXT NOT NULL,
        name            TEXT,
        isolated        INTEGER NOT NULL,
        owned           INTEGER NOT NULL,
        restarts        INTEGER NOT NULL,
        created_unix_ms INTEGER NOT NULL,
        heard_unix_ms   INTEGER NOT NULL
    ) STRICT",
];

/// Whose file this is and how far its tables are. Reads only; to be called within a transaction.
pub(crate) fn check(conn: &Connection, path: &Path) -> Result<(), StoreError> {
    let failed = || StoreError::sqlite(path, "reading its version");
    let application: i32 = pragma(conn, "application_id").map_err(failed())?;
    let version: u32 = pragma(conn, "user_version").map_err(failed())?;
    let objects: i64 =
        conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed())?;
    let untouched = application == 0 && version == 0 && objects == 0;
    if application != APPLICATION_ID && !untouched {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    if version > SCHEMA_VERSION {
        return Err(StoreError::TooNew { path: path.to_owned(), found: version, supported: SCHEMA_VERSION });
    }
    Ok(())
}

/// Takes the steps that are missing, all or none.
pub(crate) fn migrate(conn: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let failed = || StoreError::sqlite(path, "bringing its tables up to date");
    if pragma::<u32>(conn, "user_version").map_err(failed())? == SCHEMA_VERSION {
        return Ok(());
    }
    // Another process may be doing the same: the version counts once the write lock is ours.
    let step = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed())?;
    check(&step, path)?;
    let from: u32 = pragma(&step, "user_version").map_err(failed())?;
    for sql in &MIGRATIONS[from as usize..] {
        step.execute_batch(sql).map_err(failed())?;
    }
    step.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed())?;
    step.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(failed())?;
    step.commit().map_err(failed())
}

fn pragma<T: rusqlite::types::FromSql>(conn: &Connection, name: &str) -> rusqlite::Result<T> {
    conn.pragma_query_value(None, name, |row| row.get(0))
}
