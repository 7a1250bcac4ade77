//! The task journal: what was accepted, what was tried, what came of it.
//!
//! A database of its own beside `ostler.db`. [`Journal`] blocks and starts no thread; it is `Send` and not `Sync`: its user
//! gives it a thread and sends it what gathers meanwhile as one group ([`Journal::apply`]), so that one write to the disk
//! serves many. It knows no clock: it is told the time.
//!
//! # What survives what
//! When `apply` has returned, what it did survives the daemon's death by any signal, and (`durable`) a power failure too.
//! Only that an attempt has begun and a project's limit need not survive a power failure, which ends the attempt itself.
//! [`Journal::in_memory`] survives nothing.
//!
//! # What is trusted
//! Nothing that was read: see `docs/tasks-journal.md` for how damage is noticed, told and repaired.
//!
//! # Limits
//! | limit | what happens there |
//! |---|---|
//! | [`CHANGES_MAX`] changes in a group | the group is refused: [`JournalError::TooMany`] |
//! | `payload_max`, `result_max` bytes; [`crate::TEXT_MAX`] bytes in a name or key | [`Refusal::TooLong`] |
//! | [`WHY_MAX`] bytes in a reason | it is cut |
//! | [`ATTEMPTS_MAX`] attempts of a task, [`BATCHES_MAX`] batches | [`Refusal::Attempts`], [`Refusal::Batches`] |
//! | [`EVIDENCE_MAX`] late results | the oldest is dropped, and counted |
//! | [`LIMITS_MAX`] changes of limits, [`STARTS_MAX`] starts | the oldest is dropped; the checker knows less of old times |
//! | `keep`, `keep_size` | ended tasks are forgotten by [`Journal::prune`], and counted |
//! | [`WAL_PAGES_MAX`] pages in the log | it is folded in after the group |
//! | [`DAMAGED_KEPT`] damaged journals kept | the oldest is removed |

mod apply;
mod change;
pub mod check;
mod error;
mod files;
mod head;
mod keep;
mod open;
mod pack;
mod read;
mod record;
mod repair;
mod row;
mod salvage;
mod schema;
mod tally;
mod wal;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

pub use change::{Change, Outcome, Refusal};
pub use error::JournalError;
pub use keep::{Pruned, Scrubbed};
pub use open::{Interrupted, OpenReport};
pub use read::{BatchStatus, Page, QueuedTask, TaskFilter};
pub use record::{
    AttemptRecord, BatchRecord, Body, Evidence, Id, NewBatch, NewTask, Stamp, TaskRecord, TaskState,
};
pub use repair::Loss;
pub use schema::JOURNAL_VERSION;
pub use tally::Counts;

/// The journal's name in the state directory.
pub const JOURNAL_NAME: &str = "tasks.db";
/// The name of its write-ahead log.
pub const WAL_NAME: &str = "tasks.db-wal";
/// The name of the file that says how far the journal goes.
pub const HEAD_NAME: &str = "tasks.head";
/// The directory of large results.
pub const RESULTS_NAME: &str = "results";
/// What the directories begin with in which damaged journals are kept.
pub const DAMAGED_PREFIX: &str = "tasks.damaged-";

/// Most changes in one group; each task of a batch is one.
pub const CHANGES_MAX: usize = 100_000;
/// The longest reason, in bytes.
pub const WHY_MAX: usize = 4096;
/// The highest number of an attempt.
pub const ATTEMPTS_MAX: u32 = (1 << row::ATTEMPT_BITS) - 1;
/// Most batches that are kept.
pub const BATCHES_MAX: usize = 100_000;
/// Most late results that are kept.
pub const EVIDENCE_MAX: usize = 10_000;
/// So much of a late result is kept, in bytes.
pub const EVIDENCE_BYTES: usize = 4096;
/// Most late results of one task that are shown.
pub const EVIDENCE_SHOWN: usize = 100;
/// Most changes of limits that are kept.
pub const LIMITS_MAX: usize = 10_000;
/// Most starts that are kept.
pub const STARTS_MAX: u32 = 1_000;
/// Rows that a page of [`Journal::list`] looks at.
pub const LIST_SCAN: usize = 5_000;
/// Rows that a step of [`Journal::prune`] looks at.
pub const PRUNE_SCAN: usize = 1_000;
/// Pages in the write-ahead log at which it is folded in, whoever waits: 64 MiB.
pub const WAL_PAGES_MAX: u64 = 16_384;
/// Most damaged journals that are kept.
pub const DAMAGED_KEPT: usize = 3;

/// What an ended task counts in `keep_size` beside its payload and result, in bytes.
const ROW_BYTES: u64 = 256;

/// How a journal is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalOptions {
    /// Whether [`Journal::apply`] waits for the disk.
    pub durable: bool,
    /// Results up to so many bytes are in the database, larger ones in files (`tasks.result_inline`).
    pub result_inline: usize,
    /// The largest result, in bytes.
    pub result_max: usize,
    /// The largest payload, in bytes.
    pub payload_max: usize,
    /// So long ended tasks are kept (`tasks.keep`).
    pub keep: Duration,
    /// So many bytes ended tasks may take up (`tasks.keep_size`).
    pub keep_size: u64,
    /// So many tasks' payloads and results are compared with their hashes while the journal is opened; the others are
    /// [`Journal::scrub`]'s, and each is compared when it is read.
    pub scrub_at_open: usize,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            durable: true,
            result_inline: 64 << 10,
            result_max: 64 << 20,
            payload_max: 1 << 20,
            keep: Duration::from_secs(7 * 24 * 3600),
            keep_size: 1 << 30,
            scrub_at_open: 20_000,
        }
    }
}

/// What has been counted since the journal was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct JournalStats {
    /// Results that came late.
    pub late: u64,
    /// Late results dropped for newer ones.
    pub evidence_dropped: u64,
    /// Tasks forgotten for age or size.
    pub pruned: u64,
    /// Damaged payloads and results found by looking through.
    pub damaged: u64,
    /// How often the write-ahead log was folded in.
    pub checkpoints: u64,
    /// How often something failed after a group was on disk: writing the head, folding the log in.
    pub troubles: u64,
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    conn: Connection,
    path: PathBuf,
    options: JournalOptions,
    files: Option<files::ResultFiles>,
    /// None in memory.
    head: Option<head::HeadFile>,
    meta: row::Meta,
    tally: tally::Tally,
    known: apply::Known,
    stats: JournalStats,
    /// What failed after a group was on disk, and was not told yet.
    trouble: Option<JournalError>,
    /// Whether SQLite was told to wait for the disk.
    full: Option<bool>,
    /// Names are made from this.
    nonces: u64,
    prune_from: u64,
    scrub_from: Option<u64>,
}

impl Journal {
    /// Opens the journal in this state directory, or makes it. Looks through it first: where it is damaged, what is sound
    /// becomes a new journal, the damaged one is kept in a directory of its own, and the report says what was lost.
    ///
    /// One process may have it open at a time.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] and [`JournalError::Gone`] where nothing sound is left: nothing is changed then. The rest as
    /// [`crate::Store::open`].
    pub fn open(
        state_dir: &Path,
        options: JournalOptions,
        now_unix_ms: u64,
    ) -> Result<(Self, OpenReport), JournalError> {
        open::open(state_dir, options, now_unix_ms)
    }

    /// A journal that is gone with the process.
    ///
    /// # Errors
    /// What SQLite may say.
    pub fn in_memory(options: JournalOptions) -> Result<Self, JournalError> {
        open::in_memory(options)
    }

    /// The journal's file; `:memory:` where it has none.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What has been counted.
    pub fn stats(&self) -> JournalStats {
        self.stats
    }

    /// What failed lately after a group was on disk. It loses nothing, and is tried again with the next group.
    pub fn take_trouble(&mut self) -> Option<JournalError> {
        self.trouble.take()
    }

    /// The number of the last change.
    pub fn last_change(&self) -> u64 {
        self.meta.no
    }

    /// What ended tasks take up, in bytes: what `keep_size` bounds.
    pub fn ended_bytes(&self) -> u64 {
        self.tally.ended_bytes
    }

    /// Folds the write-ahead log in and closes. A journal that is only dropped loses nothing, and takes longer to open.
    ///
    /// # Errors
    /// What SQLite may say.
    pub fn close(mut self) -> Result<(), JournalError> {
        self.checkpoint(1).map(drop)
    }

    /// Turns an error of SQLite into ours.
    fn failed(&self, doing: &'static str) -> impl FnOnce(rusqlite::Error) -> JournalError {
        JournalError::sqlite(&self.path, doing)
    }
}
