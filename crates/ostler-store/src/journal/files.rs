//! Results that are too large for the database: one file each, on disk before the row that names it.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::JournalError;

/// The directory of the results.
#[derive(Debug)]
pub(super) struct ResultFiles {
    dir: PathBuf,
    durable: bool,
}

impl ResultFiles {
    pub(super) fn open(dir: PathBuf, durable: bool) -> Result<Self, JournalError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(JournalError::file(&dir, "making the directory"))?;
        Ok(Self { dir, durable })
    }

    /// For reading.
    pub(super) fn at(dir: PathBuf) -> Self {
        Self { dir, durable: false }
    }

    pub(super) fn name(seq: u64, attempt: u32) -> String {
        format!("{seq}-{attempt}")
    }

    /// Writes a file so that it lasts.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), JournalError> {
        let path = self.dir.join(name);
        let written = || -> io::Result<()> {
            // One that is there already was left by a transaction that was not made.
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            file.write_all(bytes)?;
            if self.durable {
                file.sync_data()?;
                File::open(&self.dir)?.sync_all()?;
            }
            Ok(())
        };
        written().map_err(JournalError::file(&path, "writing the result"))
    }

    /// What is in the file, if it can be read.
    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.dir.join(name))
    }

    /// Removes these; one that stays is removed at the next opening.
    pub(super) fn remove(&self, names: &[String]) {
        for name in names {
            let _ = fs::remove_file(self.dir.join(name));
        }
    }

    /// Removes all files but these, or moves them to where a damaged journal is kept. Returns how many there were.
    pub(super) fn keep_only(
        &self,
        names: &HashSet<String>,
        aside: Option<&Path>,
    ) -> Result<u64, JournalError> {
        let failed = || JournalError::file(&self.dir, "tidying up");
        let mut others = 0;
        for entry in fs::read_dir(&self.dir).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let name = entry.file_name();
            let keep = name.to_str().is_some_and(|name| names.contains(name));
            if keep || !entry.file_type().map_err(failed())?.is_file() {
                continue;
            }
            others += 1;
            match aside {
                Some(aside) => fs::rename(entry.path(), aside.join(name)),
                None => fs::remove_file(entry.path()),
            }
            .map_err(failed())?;
        }
        Ok(others)
    }
}

/// Makes what was done to a directory's entries last.
pub(super) fn sync_dir(dir: &Path) -> Result<(), JournalError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(JournalError::file(dir, "writing the directory"))
}
