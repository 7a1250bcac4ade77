//! The head: a small file beside the journal that says how far it goes.
//!
//! A write-ahead log that was cut at the end of a transaction looks like one that never was longer; SQLite cannot tell.
//! So the number of the last change that was made to last is written here too, once it is on disk. It is not itself
//! made to last: after a power failure it may be behind, never ahead.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use twox_hash::XxHash3_64;

use super::row::{Meta, Seed};

const MAGIC: [u8; 8] = *b"OSTLHEAD";
const LEN: usize = 48;

/// What the head says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    /// Of which journal.
    pub(super) journal: Seed,
    /// The last change that was made to last.
    pub(super) no: u64,
    /// The highest numbers given.
    pub(super) task_last: u64,
    pub(super) batch_last: u64,
}

impl Head {
    pub(super) fn of(meta: &Meta) -> Self {
        Self { journal: meta.journal, no: meta.no, task_last: meta.task_last, batch_last: meta.batch_last }
    }

    fn bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        for (field, value) in
            [self.journal.0, self.no, self.task_last, self.batch_last].into_iter().enumerate()
        {
            bytes[8 * (field + 1)..8 * (field + 2)].copy_from_slice(&value.to_le_bytes());
        }
        let hash = XxHash3_64::oneshot(&bytes[..40]);
        bytes[40..].copy_from_slice(&hash.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != LEN || bytes[..8] != MAGIC {
            return None;
        }
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if word(40) != XxHash3_64::oneshot(&bytes[..40]) {
            return None;
        }
        Some(Self { journal: Seed(word(8)), no: word(16), task_last: word(24), batch_last: word(32) })
    }
}

/// What is found when the head is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    Missing,
    Damaged,
    Head(Head),
}

pub(super) fn read(path: &Path) -> io::Result<Found> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Head::parse(&bytes).map_or(Found::Damaged, Found::Head)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Missing),
        Err(error) => Err(error),
    }
}

/// The open head.
#[derive(Debug)]
pub(super) struct HeadFile(File);

impl HeadFile {
    /// Opens or makes it, with this content on disk.
    pub(super) fn open(path: &Path, head: Head) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let this = Self(file);
        this.write(head)?;
        this.0.set_len(LEN as u64)?;
        this.0.sync_all()?;
        Ok(this)
    }

    /// One that cannot be written.
    #[cfg(test)]
    pub(super) fn unwritable() -> Self {
        Self(File::open("/dev/null").expect("opens"))
    }

    pub(super) fn write(&self, head: Head) -> io::Result<()> {
        self.0.write_all_at(&head.bytes(), 0)
    }
}
