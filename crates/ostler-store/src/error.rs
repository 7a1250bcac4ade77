//! What can go wrong with the database, and the way out of it.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use crate::{BUSY_TIMEOUT, TEXT_MAX, TREES_MAX};

/// Why something could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state directory could not be made or looked at.
    #[error("the state directory {} cannot be used: {source}; make it writable for the user Ostler runs as", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Other users may write to the state directory, so they could exchange the database.
    #[error("the state directory {} may be written by other users (mode {mode:03o}); run `chmod 700 {}`, or choose another", path.display(), path.display())]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The database file could not be made or given its mode.
    #[error("the database {} cannot be made private to its owner: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is damaged, or no database at all.
    #[error(
        "the database {} is damaged ({detail}); move it aside with its -wal and -shm files and start again: a new one \
         is made, but trees that an earlier daemon left running are then no longer known from it",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The file is a database of another program.
    #[error("{} is a database of another program; move it aside, or choose another state directory", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a newer Ostler.
    #[error(
        "the database {} has version {found} and this Ostler knows versions up to {supported}; run the newer Ostler, \
         or move the file aside with its -wal and -shm files",
        path.display()
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// The version of its tables.
        found: u32,
        /// The newest version this build can read.
        supported: u32,
    },
    /// Another process was writing for longer than [`BUSY_TIMEOUT`].
    #[error(
        "{doing}: the database {} was locked by another process for {} s; is a second Ostler using this state \
         directory?",
        path.display(), BUSY_TIMEOUT.as_secs()
    )]
    Busy {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
    },
    /// The disk or the quota is full.
    #[error("{doing}: no space left for the database {}; free some", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
    },
    /// The ledger holds as many trees as it may.
    #[error("the ledger of running trees is full (TREES_MAX = {TREES_MAX}); stop some instances")]
    Full,
    /// A tree with this mark is in the ledger already.
    #[error("a tree with the mark `{mark}` is in the ledger already; marks are used once")]
    Duplicate {
        /// The mark.
        mark: String,
    },
    /// A key or id is longer than it may be.
    #[error("a {what} of {len} bytes is too long for the database (TEXT_MAX = {TEXT_MAX})")]
    TooLong {
        /// Which.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
    },
    /// Anything else SQLite may say.
    #[error("{doing} failed with the database {}: {source}", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

impl StoreError {
    /// Classifies an error of SQLite by what a person can do about it.
    pub(crate) fn sqlite(path: &Path, doing: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| {
            let path = path.to_owned();
            match source.sqlite_error_code() {
                Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                    Self::Corrupt { path, detail: source.to_string() }
                }
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy { path, doing },
                Some(ErrorCode::DiskFull) => Self::NoSpace { path, doing },
                _ => Self::Sqlite { path, doing, source },
            }
        }
    }
}
