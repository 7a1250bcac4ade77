//! Sessions that outlive the daemon: one row for each, written behind what happens.

use rusqlite::{Connection, Row, params};

use crate::trees::{signed, unsigned};
use crate::{Store, StoreError, TEXT_MAX};

/// The most sessions remembered: as many as `limits.sessions` may allow.
pub const SESSIONS_MAX: u32 = 1_000_000;

/// What is remembered of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionRecord {
    /// Names it in listings; never given twice.
    pub number: u64,
    /// What it is found by, as its keeper made it. Where a secret opens it, a hash of that.
    pub id: String,
    /// Whose it is.
    pub principal: String,
    /// The name its client chose for it.
    pub name: Option<String>,
    /// Whether it gets instances for itself.
    pub isolated: bool,
    /// Whether it has had one since the daemon was started.
    pub owned: bool,
    /// How many restarts of the daemon it has outlived.
    pub restarts: u32,
    /// When it began, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// When its client was last heard of.
    pub heard_unix_ms: u64,
}

/// What is to be changed in the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionChange {
    /// It is like this now.
    Put(SessionRecord),
    /// The one with this number has ended.
    Remove(u64),
}

const PUT: &str = "INSERT INTO sessions
    (number, id, principal, name, isolated, owned, restarts, created_unix_ms, heard_unix_ms)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
    ON CONFLICT (number) DO UPDATE SET owned = excluded.owned, restarts = excluded.restarts,
        heard_unix_ms = excluded.heard_unix_ms";

const SELECT: &str = "SELECT number, id, principal, name, isolated, owned, restarts, created_unix_ms,
    heard_unix_ms FROM sessions ORDER BY number";

impl Store {
    /// Makes these changes, all or none. Returns how many sessions were left out: for their number ([`SESSIONS_MAX`]) or
    /// because a text is longer than [`TEXT_MAX`].
    ///
    /// # Errors
    /// What SQLite may say; nothing is changed then.
    pub fn sessions_write(&mut self, changes: &[SessionChange]) -> Result<usize, StoreError> {
        let written = self.conn.transaction().and_then(|transaction| {
            // Once, and not for each row: it reads the whole table.
            let count: u32 = transaction.query_row("SELECT count(*) FROM sessions", [], |row| row.get(0))?;
            let mut room = SESSIONS_MAX.saturating_sub(count);
            let mut left_out = 0;
            for change in changes {
                match change {
                    SessionChange::Put(record) if room > 0 && fits(record) => {
                        put(&transaction, record)?;
                        room -= 1;
                    }
                    SessionChange::Put(_) => left_out += 1,
                    SessionChange::Remove(number) => {
                        let mut delete =
                            transaction.prepare_cached("DELETE FROM sessions WHERE number = ?1")?;
                        delete.execute([signed(*number)])?;
                    }
                }
            }
            transaction.commit()?;
            Ok(left_out)
        });
        written.map_err(StoreError::sqlite(&self.path, "writing down sessions"))
    }

    /// Every session that is remembered, by number.
    ///
    /// # Errors
    /// What SQLite may say.
    pub fn sessions_all(&mut self) -> Result<Vec<SessionRecord>, StoreError> {
        let read = self.conn.prepare_cached(SELECT).and_then(|mut select| {
            let rows = select.query_map([], from_row)?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        });
        read.map_err(self.failed("reading the sessions"))
    }
}

fn put(conn: &Connection, record: &SessionRecord) -> rusqlite::Result<usize> {
    conn.prepare_cached(PUT)?.execute(params![
        signed(record.number),
        record.id,
        record.principal,
        record.name,
        record.isolated,
        record.owned,
        record.restarts,
        signed(record.created_unix_ms),
        signed(record.heard_unix_ms),
    ])
}

fn fits(record: &SessionRecord) -> bool {
    let name = record.name.as_deref().unwrap_or_default();
    [record.id.as_str(), record.principal.as_str(), name].iter().all(|text| text.len() <= TEXT_MAX)
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<SessionRecord> {
    Ok(SessionRecord {
        number: unsigned(row.get(0)?),
        id: row.get(1)?,
        principal: row.get(2)?,
        name: row.get(3)?,
        isolated: row.get(4)?,
        owned: row.get(5)?,
        restarts: row.get(6)?,
        created_unix_ms: unsigned(row.get(7)?),
        heard_unix_ms: unsigned(row.get(8)?),
    })
}
