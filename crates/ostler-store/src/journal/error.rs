//! What can go wrong with the task journal, and the way out of it.

use std::io;
use std::path::{Path, PathBuf};

use super::{CHANGES_MAX, HEAD_NAME};
use crate::StoreError;

/// Why the journal could not be opened, changed or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// What may happen to any database of Ostler's; nothing was changed.
    #[error(transparent)]
    Store(StoreError),
    /// Another process has the journal open.
    #[error("another process has the task journal {} open; is a second Ostler using this state directory?", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The journal is damaged in a way that cannot be repaired; nothing was changed.
    #[error(
        "the task journal {} is damaged and cannot be repaired ({detail}); to begin with an empty one, move it, its \
         -wal file and {HEAD_NAME} to another directory: the tasks in it are then not known any more",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The journal is not there, but was.
    #[error(
        "the task journal {} is {how}, and according to {HEAD_NAME} it held tasks up to number {last}; put it back, or \
         remove {HEAD_NAME} and {} to begin with an empty one",
        path.display(), wal.display()
    )]
    Gone {
        /// The file.
        path: PathBuf,
        /// Its write-ahead log.
        wal: PathBuf,
        /// `missing` or `empty`.
        how: &'static str,
        /// The highest number given to a task.
        last: u64,
    },
    /// What was read of a task is not what was written; it is not shown.
    #[error(
        "the {what} of task number {seq} is damaged in the journal; it is not shown, since it would be wrong"
    )]
    TaskDamaged {
        /// Which.
        seq: u64,
        /// Its `record`, `payload`, `result`, ...
        what: &'static str,
    },
    /// A file beside the database could not be read or written.
    #[error("{doing} {} failed: {source}; look at the disk's space and the file's permissions", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// More changes than one group may have.
    #[error("{count} changes are too many for one group (CHANGES_MAX = {CHANGES_MAX}); make several groups")]
    TooMany {
        /// How many there were.
        count: usize,
    },
}

impl JournalError {
    /// Classifies an error of SQLite by what a person can do about it.
    pub(super) fn sqlite(path: &Path, doing: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| StoreError::sqlite(path, doing)(source).into()
    }

    /// An error of the file system.
    pub(super) fn file(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { path: path.to_owned(), doing, source }
    }
}

impl From<StoreError> for JournalError {
    fn from(error: StoreError) -> Self {
        match error {
            // Its words speak of the ledger, and its way out is another one.
            StoreError::Corrupt { path, detail } => Self::Damaged { path, detail },
            // Whoever has it keeps it: there is no use in waiting.
            StoreError::Busy { path, .. } => Self::InUse { path },
            other => Self::Store(other),
        }
    }
}
