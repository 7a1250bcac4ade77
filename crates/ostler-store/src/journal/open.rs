//! Opening: is the journal what it was when it was last written?

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use twox_hash::XxHash3_64;

use super::apply::Known;
use super::error::JournalError;
use super::files::ResultFiles;
use super::head::{self, Head, HeadFile};
use super::record::{AttemptRecord, BatchRecord, Id, Stamp, TaskRecord, TaskState};
use super::repair::{self, Loss};
use super::row::{self, Glance, LimitRecord, Meta, Read, Row, Seed, StartRecord, Sum};
use super::tally::Tally;
use super::wal::{self, Chain};
use super::{
    HEAD_NAME, JOURNAL_NAME, Journal, JournalOptions, JournalStats, RESULTS_NAME, STARTS_MAX, WAL_NAME,
    schema,
};
use crate::StoreError;
use crate::open::{private_directory, private_file};

/// SQLite's page cache, in KiB.
const CACHE_KIB: i64 = 8 << 10;
/// How long another process is waited for, which may just be reading the file.
const BUSY: Duration = Duration::from_millis(200);
/// Statements that are kept prepared.
const STATEMENTS: usize = 48;
/// Findings that are told; the first one is what counts.
const FINDINGS_MAX: usize = 10;

/// A task whose attempt was running when the journal was last written. It is for the driver to say what becomes of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interrupted {
    /// Its name.
    pub id: Id,
    /// Its project.
    pub project: String,
    /// The attempt that was interrupted.
    pub attempt: u32,
    /// The attempts it had when it was last revived.
    pub base: u32,
    /// So many at most, those before a revival not counted.
    pub attempts_max: u32,
}

/// What was found when the journal was opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OpenReport {
    /// Tasks that were running.
    pub interrupted: Vec<Interrupted>,
    /// The journal was damaged: what was lost.
    pub loss: Option<Loss>,
    /// Damaged payloads and results, as far as they have been looked at: the task's number, and which.
    pub damaged: Vec<(u64, &'static str)>,
    /// What is not as it should be, and lost nothing that is known of.
    pub notes: Vec<String>,
    /// Files of results that belonged to no task and were removed.
    pub orphans: u64,
}

/// See [`Journal::open`].
pub(super) fn open(
    dir: &Path,
    options: JournalOptions,
    now_unix_ms: u64,
) -> Result<(Journal, OpenReport), JournalError> {
    private_directory(dir)?;
    repair::finish(dir)?;
    let path = dir.join(JOURNAL_NAME);
    let mut report = OpenReport::default();
    let evidence = look_beside(dir)?;
    present(dir, &path, &evidence)?;
    private_file(&path).map_err(|source| StoreError::File { path: path.clone(), source })?;
    let (conn, sound) = match examine(&path, &evidence, &mut report.notes)? {
        Examined::Sound(conn, sound) => (conn, *sound),
        Examined::Unsound(findings) => {
            let loss = repair::repair(dir, &evidence, findings, now_unix_ms)?;
            let again = Evidence { chain: None, ..evidence };
            let (conn, sound) = match examine(&path, &again, &mut report.notes)? {
                Examined::Sound(conn, sound) => (conn, *sound),
                Examined::Unsound(findings) => return Err(damaged(&path, &findings.words)),
            };
            // What was to be noted is in the findings.
            report.notes.clear();
            report.loss = Some(loss);
            (conn, sound)
        }
    };
    let files = ResultFiles::open(dir.join(RESULTS_NAME), options.durable)?;
    let aside = report.loss.as_ref().map(|loss| loss.kept.as_path());
    report.orphans = files.keep_only(&sound.files, aside)?;
    report.interrupted = sound.interrupted;
    let head = HeadFile::open(&dir.join(HEAD_NAME), Head::of(&sound.meta))
        .map_err(JournalError::file(&dir.join(HEAD_NAME), "writing"))?;
    super::files::sync_dir(dir)?;
    let known = known(&conn, sound.meta.journal, sound.tally.batches.len())
        .map_err(JournalError::sqlite(&path, "reading its limits"))?;
    let mut journal = Journal {
        known,
        files: Some(files),
        head: Some(head),
        tally: sound.tally,
        ..empty(conn, path, options, sound.meta)
    };
    journal.note_start(now_unix_ms)?;
    report.damaged = journal.scrub(journal.options.scrub_at_open)?.damaged;
    Ok((journal, report))
}

/// See [`Journal::in_memory`].
pub(super) fn in_memory(options: JournalOptions) -> Result<Journal, JournalError> {
    let path = PathBuf::from(":memory:");
    let conn = Connection::open_in_memory().map_err(JournalError::sqlite(&path, "opening"))?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    let meta = create(&conn).map_err(JournalError::sqlite(&path, "making its tables"))?;
    Ok(empty(conn, path, options, meta))
}

/// One that has nothing in it and nothing beside it.
fn empty(conn: Connection, path: PathBuf, options: JournalOptions, meta: Meta) -> Journal {
    Journal {
        conn,
        path,
        options,
        files: None,
        head: None,
        meta,
        tally: Tally::default(),
        known: Known::default(),
        stats: JournalStats::default(),
        trouble: None,
        full: None,
        nonces: random(),
        prune_from: 0,
        scrub_from: Some(0),
    }
}

impl Journal {
    fn note_start(&mut self, now_unix_ms: u64) -> Result<(), JournalError> {
        self.transact(true, now_unix_ms, |work| {
            let at = work.stamp();
            row::insert(work.conn, work.meta.journal, &StartRecord(at))?;
            work.conn.execute(
                "DELETE FROM starts WHERE no <= (SELECT no FROM starts ORDER BY no DESC LIMIT 1 OFFSET ?1)",
                [i64::from(STARTS_MAX)],
            )?;
            Ok(())
        })
    }
}

/// What lies beside the database, looked at before SQLite touches anything.
pub(super) struct Evidence {
    pub(super) head: head::Found,
    pub(super) chain: Option<Chain>,
}

fn look_beside(dir: &Path) -> Result<Evidence, JournalError> {
    let (head, wal) = (dir.join(HEAD_NAME), dir.join(WAL_NAME));
    Ok(Evidence {
        head: head::read(&head).map_err(JournalError::file(&head, "reading"))?,
        chain: wal::chain(&wal).map_err(JournalError::file(&wal, "reading"))?,
    })
}

/// Refuses where there was a journal and is none: SQLite would make a new one, and remove the log beside it.
fn present(dir: &Path, path: &Path, evidence: &Evidence) -> Result<(), JournalError> {
    let len = match fs::metadata(path) {
        Ok(metadata) => Some(metadata.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(JournalError::file(path, "looking at")(error)),
    };
    let how = match len {
        None => "missing",
        Some(0) => "empty",
        Some(_) => return Ok(()),
    };
    let last = match evidence.head {
        head::Found::Head(head) => head.task_last,
        _ if evidence.chain.is_some() => 0,
        _ => return Ok(()),
    };
    Err(JournalError::Gone { path: path.to_owned(), wal: dir.join(WAL_NAME), how, last })
}

/// What the examination came to.
enum Examined {
    Sound(Connection, Box<Sound>),
    Unsound(Findings),
}

/// What a sound journal holds.
pub(super) struct Sound {
    pub(super) meta: Meta,
    tally: Tally,
    interrupted: Vec<Interrupted>,
    files: HashSet<String>,
}

/// What is wrong with a journal.
#[derive(Default, Debug)]
pub(super) struct Findings {
    pub(super) words: Vec<String>,
}

impl Findings {
    fn say(&mut self, words: impl Into<String>) {
        if self.words.len() < FINDINGS_MAX {
            self.words.push(words.into());
        }
    }
}

/// Opens the file and looks through it. Nothing is changed where it turns out unsound.
fn examine(path: &Path, evidence: &Evidence, notes: &mut Vec<String>) -> Result<Examined, JournalError> {
    let mut findings = Findings::default();
    let conn = match connect(path) {
        Ok(conn) => conn,
        // A header that does not fit to the file is in the way already here.
        Err(error) if is_damage(&error) => {
            findings.say(error.to_string());
            compare_end(None, evidence, &mut findings, notes);
            return Ok(Examined::Unsound(findings));
        }
        Err(error) => return Err(JournalError::sqlite(path, "opening")(error)),
    };
    let found = match schema::look(&conn, path) {
        Ok(found) => found,
        // Perhaps only its header is.
        Err(JournalError::Damaged { detail, .. }) => {
            findings.say(detail);
            compare_end(None, evidence, &mut findings, notes);
            return Ok(Examined::Unsound(findings));
        }
        Err(error) => return Err(error),
    };
    if found == schema::Found::Fresh {
        if let head::Found::Head(head) = evidence.head {
            return Err(JournalError::Gone {
                path: path.to_owned(),
                wal: path.with_file_name(WAL_NAME),
                how: "empty",
                last: head.task_last,
            });
        }
        // In a transaction and without a log, so that a log never stands beside an empty file.
        create(&conn).map_err(JournalError::sqlite(path, "making its tables"))?;
    }
    match look_through(&conn, &mut findings) {
        Ok(sound) => {
            compare_end(sound.as_ref().map(|sound| &sound.meta), evidence, &mut findings, notes);
            if let (true, Some(sound)) = (findings.words.is_empty(), sound) {
                write_ahead(&conn).map_err(JournalError::sqlite(path, "switching to the write-ahead log"))?;
                return Ok(Examined::Sound(conn, Box::new(sound)));
            }
        }
        Err(error) if is_damage(&error) => {
            findings.say(error.to_string());
            compare_end(None, evidence, &mut findings, notes);
        }
        Err(error) => return Err(JournalError::sqlite(path, "checking")(error)),
    }
    Ok(Examined::Unsound(findings))
}

/// Whether SQLite says that the file is at fault.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{FromSqlConversionFailure, InvalidColumnType, Utf8Error};
    // A page behind the end of a file that was cut.
    let cut = error
        .sqlite_error()
        .is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHORT_READ);
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
        || cut
        || matches!(error, FromSqlConversionFailure(..) | InvalidColumnType(..) | Utf8Error(..))
}

pub(super) fn damaged(path: &Path, words: &[String]) -> JournalError {
    JournalError::Damaged { path: path.to_owned(), detail: words.join("; ") }
}

/// A connection that has the file to itself and folds nothing in when it is closed.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Then the log's index is in memory, where nothing can damage it, and a second daemon is kept out.
    conn.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
    conn.pragma_update(None, "cell_size_check", true)?;
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    Ok(conn)
}

fn write_ahead(conn: &Connection) -> rusqlite::Result<()> {
    conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0)).map(drop)
}

/// Makes the tables and the journal's account, all or none.
pub(super) fn create(conn: &Connection) -> rusqlite::Result<Meta> {
    let meta = Meta {
        journal: Seed(random()),
        no: 0,
        task_last: 0,
        batch_last: 0,
        tasks: Sum::default(),
        attempts: Sum::default(),
        batches: Sum::default(),
    };
    let transaction = conn.unchecked_transaction()?;
    schema::create(&transaction)?;
    row::insert(&transaction, Meta::SEED, &meta)?;
    transaction.commit()?;
    Ok(meta)
}

/// Sixty-four random bits, from the keys that every hash map of the standard library gets.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// Compares the end of the journal with what the head and the log's chain say.
fn compare_end(meta: Option<&Meta>, evidence: &Evidence, findings: &mut Findings, notes: &mut Vec<String>) {
    match (evidence.head, meta) {
        (head::Found::Head(head), Some(meta)) if head.journal == meta.journal => {
            if head.no > meta.no {
                findings.say(format!("its last {} changes are missing", head.no - meta.no));
            }
            return;
        }
        (head::Found::Head(_), Some(_)) => {
            notes.push(format!("{HEAD_NAME} belongs to another journal; a new one is written"));
        }
        (head::Found::Head(_), None) => {}
        (head::Found::Damaged, _) => notes.push(format!("{HEAD_NAME} is damaged; a new one is written")),
        (head::Found::Missing, Some(Meta { no: 0, .. })) => return,
        (head::Found::Missing, _) => notes.push(format!("{HEAD_NAME} is missing; a new one is written")),
    }
    // Only the chain can tell.
    match evidence.chain {
        Some(Chain { headless: true, .. }) => findings.say("the header of its write-ahead log does not fit"),
        Some(Chain { dropped, .. }) if dropped > 0 => {
            findings.say(format!(
                "{dropped} pages at the end of its write-ahead log do not fit to what is before them"
            ));
        }
        _ => {}
    }
}

/// Reads everything but the bodies.
pub(super) fn look_through(conn: &Connection, findings: &mut Findings) -> rusqlite::Result<Option<Sound>> {
    structure(conn, findings)?;
    let meta = match row::get::<Meta>(conn, Meta::SEED, Meta::SELECT_ONE, 1)? {
        Some(Read::Sound(meta, _)) => meta,
        _ => {
            findings.say("its account of itself does not fit");
            return Ok(None);
        }
    };
    let mut sound = Sound { meta, tally: Tally::default(), interrupted: Vec::new(), files: HashSet::new() };
    let (mut keys, mut batch_keys) = (Sum::default(), Sum::default());
    let tasks = scan::<TaskRecord>(conn, &meta, |cells| {
        take_in(&mut sound, &mut keys, &Glance::from_cells(cells)?);
        Some(())
    })?;
    told(findings, "tasks", tasks, meta.tasks);
    let batches = scan::<BatchRecord>(conn, &meta, |cells| {
        let batch = BatchRecord::from_cells(cells)?;
        sound.tally.batches.entry(batch.id.seq).or_default();
        if let Some(key) = &batch.key {
            batch_keys.add(key_hash(&batch.project, key, batch.id.seq));
        }
        Some(())
    })?;
    told(findings, "batches", batches, meta.batches);
    let attempts = scan::<AttemptRecord>(conn, &meta, |cells| AttemptRecord::from_cells(cells).map(drop))?;
    told(findings, "attempts", attempts, meta.attempts);
    index(conn, "tasks", keys, findings)?;
    index(conn, "batches", batch_keys, findings)?;
    Ok(Some(sound))
}

fn take_in(sound: &mut Sound, keys: &mut Sum, task: &Glance<'_>) {
    sound.tally.count(task);
    if let Some(key) = task.key {
        keys.add(key_hash(task.project, key, task.seq));
    }
    if task.state == TaskState::Running {
        sound.interrupted.push(Interrupted {
            id: Id { seq: task.seq, nonce: task.nonce },
            project: task.project.to_owned(),
            attempt: task.attempt,
            base: task.base,
            attempts_max: task.attempts_max,
        });
    }
    if task.result.is_some_and(|result| result.in_file) {
        sound.files.insert(ResultFiles::name(task.seq, task.attempt));
    }
}

/// SQLite's own check of how pages hang together.
fn structure(conn: &Connection, findings: &mut Findings) -> rusqlite::Result<()> {
    let mut check = conn.prepare(&format!("PRAGMA quick_check({FINDINGS_MAX})"))?;
    let mut rows = check.query([])?;
    while let Some(row) = rows.next()? {
        let found: String = row.get(0)?;
        if found != "ok" {
            findings.say(found);
        }
    }
    Ok(())
}

/// Reads all rows of a table in the order of their keys, and hands the sound ones to `each`.
fn scan<R: Row>(
    conn: &Connection,
    meta: &Meta,
    mut each: impl FnMut(&row::Cells<'_>) -> Option<()>,
) -> rusqlite::Result<Sum> {
    let mut select = conn.prepare(R::SELECT)?;
    let mut rows = select.query([])?;
    let mut sum = Sum::default();
    while let Some(row) = rows.next()? {
        if let Read::Sound((), hash) = row::with_cells::<R, ()>(meta.journal, row, &mut each)? {
            sum.add(hash);
        }
    }
    Ok(sum)
}

fn told(findings: &mut Findings, table: &str, found: Sum, told: Sum) {
    if found.rows != told.rows {
        findings.say(format!("{} of its {} {table} are sound", found.rows, told.rows));
    } else if found.sum != told.sum {
        findings.say(format!("some of its {table} are older than they should be"));
    }
}

fn key_hash(project: &str, key: &str, seq: u64) -> u64 {
    let bytes = [&(project.len() as u64).to_le_bytes(), project.as_bytes(), key.as_bytes()].concat();
    XxHash3_64::oneshot_with_seed(seq, &bytes)
}

/// Compares an index over keys with the rows: SQLite's quick check does not.
fn index(conn: &Connection, table: &str, expected: Sum, findings: &mut Findings) -> rusqlite::Result<()> {
    let sql = format!(
        "SELECT project, key, seq FROM {table} INDEXED BY {table}_by_key WHERE key IS NOT NULL ORDER BY project, key"
    );
    let mut select = conn.prepare(&sql)?;
    let mut rows = select.query([])?;
    let (mut found, mut before, mut ordered) = (Sum::default(), None, true);
    while let Some(row) = rows.next()? {
        let (project, key): (String, String) = (row.get(0)?, row.get(1)?);
        found.add(key_hash(&project, &key, row.get::<_, i64>(2)?.cast_unsigned()));
        let this = Some((project, key));
        ordered &= before < this;
        before = this;
    }
    if found != expected || !ordered {
        findings.say(format!("the index over the keys of {table} does not fit"));
    }
    Ok(())
}

/// The tasks that have late results.
fn late(conn: &Connection) -> rusqlite::Result<HashMap<u64, u32>> {
    let mut late = HashMap::new();
    let mut select = conn.prepare("SELECT seq FROM evidence")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        *late.entry(row.get::<_, i64>(0)?.cast_unsigned()).or_default() += 1;
    }
    Ok(late)
}

/// What memory keeps of the smaller tables.
fn known(conn: &Connection, seed: Seed, batches: usize) -> rusqlite::Result<Known> {
    let count = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, u32>(0).map(|count| count as usize));
    let mut known = Known {
        evidence: count("SELECT count(*) FROM evidence")?,
        late: late(conn)?,
        limit_rows: count("SELECT count(*) FROM limits")?,
        batches,
        ..Known::default()
    };
    let mut select = conn.prepare("SELECT * FROM limits ORDER BY no")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        if let Read::Sound(LimitRecord { project, running, at: Stamp { .. } }, _) = row::read(seed, row)? {
            known.limits.insert(project, running.and_then(|running| u32::try_from(running).ok()));
        }
    }
    Ok(known)
}
