//! What was learnt about servers by running them, by the identity of their program.

use ostler_domain::Traits;
use rusqlite::{OptionalExtension, params};

use crate::trees::signed;
use crate::{Store, StoreError, check_length};

/// The most servers remembered.
pub const TRAITS_MAX: u32 = 10_000;

const PUT: &str = "INSERT INTO traits (identity, legacy, modern, asks_back, updated_unix_ms)
    VALUES (?1, ?2, ?3, ?4, ?5)
    ON CONFLICT (identity) DO UPDATE SET legacy = excluded.legacy, modern = excluded.modern,
        asks_back = excluded.asks_back, updated_unix_ms = excluded.updated_unix_ms";

// The row just written stays even when a clock that was set back makes it look the oldest.
const TRIM: &str = "DELETE FROM traits WHERE identity IN (
    SELECT identity FROM traits WHERE identity != ?2 ORDER BY updated_unix_ms, identity
    LIMIT max(0, (SELECT count(*) FROM traits) - ?1))";

impl Store {
    /// What is remembered of the server with this identity (a hash of what is run, made by the caller).
    ///
    /// # Errors
    /// What SQLite may say.
    pub fn traits_get(&mut self, identity: &str) -> Result<Option<Traits>, StoreError> {
        let sql = "SELECT legacy, modern, asks_back FROM traits WHERE identity = ?1";
        let found = self.conn.prepare_cached(sql).and_then(|mut select| {
            let read = |row: &rusqlite::Row<'_>| {
                Ok(Traits { legacy: row.get(0)?, modern: row.get(1)?, asks_back: row.get(2)? })
            };
            select.query_row([identity], read).optional()
        });
        found.map_err(self.failed("reading what was learnt about a server"))
    }

    /// Remembers this of the server with this identity, in place of what was remembered before.
    /// `now_unix_ms` is the wall clock. Returns how many others were forgotten to stay at [`TRAITS_MAX`]:
    /// those whose last change is the longest ago.
    ///
    /// # Errors
    /// [`StoreError::TooLong`], and what SQLite may say; nothing is changed then.
    pub fn traits_put(
        &mut self,
        identity: &str,
        traits: Traits,
        now_unix_ms: u64,
    ) -> Result<usize, StoreError> {
        check_length("server identity", identity)?;
        let row = params![identity, traits.legacy, traits.modern, traits.asks_back, signed(now_unix_ms)];
        let change = self.conn.transaction().and_then(|change| {
            change.prepare_cached(PUT)?.execute(row)?;
            let forgotten = change.prepare_cached(TRIM)?.execute(params![TRAITS_MAX, identity])?;
            change.commit()?;
            Ok(forgotten)
        });
        change.map_err(StoreError::sqlite(&self.path, "remembering what was learnt about a server"))
    }
}
