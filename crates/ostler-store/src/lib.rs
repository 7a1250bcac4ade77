//! SQLite in the state directory: the ledger of running trees, what was learnt about servers, and the sessions that
//! outlive the daemon.
//!
//! [`Store`] blocks and starts no thread. It is `Send` and not `Sync`: its user gives it a thread of its own
//! and sends it work through a bounded channel.
//!
//! # What survives what
//! A change is durable when its method has returned `Ok`: it survives the daemon's death by any signal, because
//! it is in the kernel's page cache by then (write-ahead log, `synchronous = NORMAL`). It may not survive a
//! power failure. That is enough here: a power failure ends every process the ledger speaks of, and what was
//! learnt about a server is learnt again. The file itself stays sound through a power failure.
//!
//! # Limits
//! | limit | what happens there |
//! |---|---|
//! | [`TREES_MAX`] trees in the ledger | the insert is refused: [`StoreError::Full`] |
//! | [`TRAITS_MAX`] servers remembered | the longest unchanged are forgotten, and counted |
//! | [`SESSIONS_MAX`] sessions | further ones are left out, and counted |
//! | [`TEXT_MAX`] bytes in a key or id | the write is refused: [`StoreError::TooLong`] |
//! | [`BUSY_TIMEOUT`] wait for another process's write | [`StoreError::Busy`] |

mod error;
pub mod journal;
mod open;
mod schema;
mod sessions;
mod traits;
mod trees;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

pub use error::StoreError;
pub use sessions::{SESSIONS_MAX, SessionChange, SessionRecord};
pub use traits::TRAITS_MAX;
pub use trees::{ProcessKey, TREES_MAX, TreeRecord};

/// The name of the database in the state directory.
pub const FILE_NAME: &str = "ostler.db";

/// The version of the tables this build writes and the newest it can read.
pub const SCHEMA_VERSION: u32 = schema::MIGRATIONS.len() as u32;

/// How long a write waits for another process that is writing, for example `ostler doctor`.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest mark, identity or id, in bytes.
pub const TEXT_MAX: usize = 256;

/// The open database.
#[derive(Debug)]
pub struct Store {
    conn: Connection,
    path: PathBuf,
}

impl Store {
    /// Opens the database in this state directory; creates the directory (mode 0700), the file (mode 0600)
    /// and its tables where they are missing, and brings older tables up to date.
    ///
    /// # Errors
    /// When the directory cannot be made or others may write to it, when the file is damaged, not Ostler's,
    /// or written by a newer Ostler, and when it cannot be read or written. Each says what to do; nothing is
    /// changed then.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        open::open(state_dir)
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Turns an error of SQLite into ours.
    fn failed(&self, doing: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
        StoreError::sqlite(&self.path, doing)
    }
}

/// Refuses a text that is longer than [`TEXT_MAX`].
fn check_length(what: &'static str, text: &str) -> Result<(), StoreError> {
    if text.len() > TEXT_MAX {
        return Err(StoreError::TooLong { what, len: text.len() });
    }
    Ok(())
}
