//! Repair: what is sound in a damaged journal becomes a new one.
//!
//! ```text
//! tasks.repair/         a copy to read from (SQLite writes to what it opens), the new journal, the report
//! tasks.repair/ready    all of that is on disk: from here on the rest is done at the next opening if not now
//! tasks.damaged-<time>/ the damaged files, as they were, and the report
//! ```

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::JournalError;
use super::files::sync_dir;
use super::head;
use super::open::{self, Evidence, Findings};
use super::salvage::{self, Salvaged};
use super::{DAMAGED_KEPT, DAMAGED_PREFIX, HEAD_NAME, JOURNAL_NAME, WAL_NAME};
use crate::open::private_file;

const WORK: &str = "tasks.repair";
const READY: &str = "ready";
const FRESH: &str = "fresh.db";
const REPORT: &str = "report.txt";

/// Numbers of lost tasks that are told one by one.
pub(super) const NAMED_MAX: usize = 1000;

/// What a repair lost.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Loss {
    /// What was wrong, in words.
    pub findings: Vec<String>,
    /// Changes at the journal's end that were acknowledged and are lost, so that as many tasks at most are older than
    /// they were or not there; none where that cannot be told.
    pub changes: Option<u64>,
    /// Tasks that were accepted and of which nothing is left, at most; none where that cannot be told.
    pub tasks: Option<u64>,
    /// The numbers of lost tasks that are known, 1,000 at most.
    pub lost: Vec<u64>,
    /// Payloads and results that are lost or damaged, 1,000 at most: the task's number, and which.
    pub bodies: Vec<(u64, &'static str)>,
    /// Tasks in the new journal.
    pub kept_tasks: u64,
    /// Where the damaged journal is kept.
    pub kept: PathBuf,
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number =
            |number: Option<u64>| number.map_or("an unknown number".to_owned(), |number| number.to_string());
        write!(
            f,
            "the task journal was damaged ({}); lost: {} of the last changes, {} tasks at most",
            self.findings.join("; "),
            number(self.changes),
            number(self.tasks),
        )?;
        if !self.lost.is_empty() {
            write!(
                f,
                " (numbers {}{})",
                listed(&self.lost),
                if self.lost.len() > 20 { ", ..." } else { "" }
            )?;
        }
        if !self.bodies.is_empty() {
            write!(f, ", the payload or result of {} more", self.bodies.len())?;
        }
        write!(f, "; {} tasks are kept; the damaged journal is in {}", self.kept_tasks, self.kept.display())
    }
}

fn listed(numbers: &[u64]) -> String {
    let numbers: Vec<_> = numbers.iter().take(20).map(u64::to_string).collect();
    numbers.join(", ")
}

/// Makes a new journal from what is sound in this one. Where nothing is, nothing is changed.
pub(super) fn repair(
    dir: &Path,
    evidence: &Evidence,
    findings: Findings,
    now_unix_ms: u64,
) -> Result<Loss, JournalError> {
    let work = dir.join(WORK);
    let salvaged = prepare(dir, &work, evidence);
    let path = dir.join(JOURNAL_NAME);
    let salvaged = match salvaged {
        Ok(salvaged) if salvaged.hopeless() => Err(open::damaged(&path, &findings.words)),
        other => other,
    };
    let salvaged = match salvaged {
        Ok(salvaged) => salvaged,
        Err(error) => {
            let _ = fs::remove_dir_all(&work);
            return Err(error);
        }
    };
    let kept = free_name(dir, now_unix_ms);
    let loss = account(&salvaged, findings, evidence, &kept);
    let name = kept.file_name().and_then(|name| name.to_str()).expect("made above");
    write(&work.join(REPORT), format!("{loss}\n").as_bytes())?;
    sync_dir(&work)?;
    write(&work.join(READY), name.as_bytes())?;
    sync_dir(&work)?;
    finish(dir)?;
    Ok(loss)
}

/// Brings a repair to its end that has come so far.
pub(super) fn finish(dir: &Path) -> Result<(), JournalError> {
    let work = dir.join(WORK);
    let name = match fs::read_to_string(work.join(READY)) {
        Ok(name) => name,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(JournalError::file(&work, "reading")(error)),
    };
    let kept = dir.join(&name);
    let failed = || JournalError::file(&kept, "keeping the damaged journal in");
    private_dir(&kept).map_err(failed())?;
    // The log first: it must never stand beside another journal than its own.
    for (from, to) in [(WAL_NAME, WAL_NAME), (JOURNAL_NAME, JOURNAL_NAME)] {
        let (from, to) = (dir.join(from), kept.join(to));
        if !to.exists() && from.exists() {
            fs::rename(&from, &to).map_err(failed())?;
        }
        sync_dir(dir)?;
    }
    for (from, to) in [(dir.join(HEAD_NAME), HEAD_NAME), (work.join(REPORT), REPORT)] {
        if from.exists() {
            fs::copy(&from, kept.join(to)).map_err(failed())?;
        }
    }
    if work.join(FRESH).exists() {
        fs::rename(work.join(FRESH), dir.join(JOURNAL_NAME)).map_err(failed())?;
    }
    sync_dir(&kept)?;
    sync_dir(dir)?;
    // The mark first: without it, what is left of the directory is nothing.
    fs::remove_file(work.join(READY)).map_err(failed())?;
    fs::remove_dir_all(&work).map_err(failed())?;
    forget_old(dir).map_err(failed())
}

/// Copies the journal, reads what is sound from the copy, writes it to a new one.
fn prepare(dir: &Path, work: &Path, evidence: &Evidence) -> Result<Salvaged, JournalError> {
    let failed = || JournalError::file(work, "repairing in");
    match fs::remove_dir_all(work) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
        _ => private_dir(work).map_err(failed())?,
    }
    let copy = work.join(JOURNAL_NAME);
    fs::copy(dir.join(JOURNAL_NAME), &copy).map_err(failed())?;
    if dir.join(WAL_NAME).exists() {
        fs::copy(dir.join(WAL_NAME), work.join(WAL_NAME)).map_err(failed())?;
    }
    mend_size(&copy).map_err(failed())?;
    let fresh = work.join(FRESH);
    private_file(&fresh).map_err(failed())?;
    let head = if let head::Found::Head(head) = evidence.head { Some(head) } else { None };
    let salvaged = salvage::salvage(&copy, &fresh, head)?;
    File::open(&fresh).and_then(|fresh| fresh.sync_all()).map_err(failed())?;
    Ok(salvaged)
}

/// Makes the size in a copy's header and that of the file the same: SQLite reads nothing of a file that is shorter, and
/// only as much as the header says of a longer one.
fn mend_size(copy: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(copy)?;
    let mut header = [0; 100];
    if file.read_exact(&mut header).is_err() {
        return Ok(());
    }
    let page = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        size if size.is_power_of_two() && size >= 512 => u64::from(size),
        _ => return Ok(()),
    };
    let len = file.metadata()?.len();
    let stated = u64::from(u32::from_be_bytes(header[28..32].try_into().expect("four bytes"))) * page;
    // A size beyond reason is damage itself.
    let size = if stated > len && stated - len <= (64 << 20) + 8 * len {
        stated
    } else {
        len.next_multiple_of(page)
    };
    file.set_len(size)?;
    if let Ok(pages) = u32::try_from(size / page) {
        header[28..32].copy_from_slice(&pages.to_be_bytes());
        // The size counts where this equals the change counter.
        let counter: [u8; 4] = header[24..28].try_into().expect("four bytes");
        header[92..96].copy_from_slice(&counter);
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header)?;
    }
    Ok(())
}

fn account(salvaged: &Salvaged, findings: Findings, evidence: &Evidence, kept: &Path) -> Loss {
    let head = if let head::Found::Head(head) = evidence.head { Some(head) } else { None };
    // Accepted in the changes that are lost, and not in the journal's own account.
    let after = match (head, &salvaged.meta) {
        (Some(head), Some(meta)) if head.journal == meta.journal => {
            Some(head.task_last.saturating_sub(meta.task_last))
        }
        _ => None,
    };
    let before = salvaged.meta.map(|meta| meta.tasks.rows.saturating_sub(salvaged.tasks));
    Loss {
        changes: match (head, &salvaged.meta) {
            (Some(head), Some(meta)) if head.journal == meta.journal => Some(head.no.saturating_sub(meta.no)),
            _ => None,
        },
        tasks: match (after, before) {
            (Some(after), Some(before)) => Some(after + before),
            // Nothing is known but how many there ever were.
            _ => head.map(|head| head.task_last.saturating_sub(salvaged.tasks)),
        },
        findings: findings.words,
        lost: salvaged.lost.clone(),
        bodies: salvaged.bodies.clone(),
        kept_tasks: salvaged.tasks,
        kept: kept.to_owned(),
    }
}

fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), JournalError> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    })
    .map_err(JournalError::file(path, "writing"))
}

/// A name for what is kept that nothing has yet.
fn free_name(dir: &Path, now_unix_ms: u64) -> PathBuf {
    let mut name = format!("{DAMAGED_PREFIX}{now_unix_ms:016}");
    while dir.join(&name).exists() {
        write!(name, "-again").expect("writes to memory");
    }
    dir.join(name)
}

/// Keeps the newest damaged journals only.
fn forget_old(dir: &Path) -> io::Result<()> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(DAMAGED_PREFIX)) {
            kept.push(entry.path());
        }
    }
    kept.sort();
    let excess = kept.len().saturating_sub(DAMAGED_KEPT);
    kept[..excess].iter().try_for_each(fs::remove_dir_all)
}
