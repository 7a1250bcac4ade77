//! `log_files`: the output of a server's instances in files that are rotated by size.
//!
//! One set of files for a server, whatever number of instances it has, so that the number of files is bounded too:
//! `<server>.log`, and before it `<server>.log.1` to `.log.<log_files - 1>`. A line is
//! `<moment> <instance> <stream> <text>`. Lines wait in memory for a thread that writes; a slow disk holds nobody up: what
//! there is no room for is dropped, counted, and said in the file.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, UNIX_EPOCH};

use humantime::format_rfc3339_millis;
use ostler_domain::ServerSpec;
use ostler_domain::event::Happening;
use tokio::sync::Notify;

use crate::events::Events;
use crate::log::Stream;
use crate::wait::until;

/// Bytes of lines that wait to be written to one server's files. What comes then is dropped, and counted as
/// `log_files.waiting`.
pub const MAX_WAITING: usize = 1024 * 1024;

/// After a write that failed, how long until lines that have come meanwhile are tried, where none comes after them.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Longest wait for the last lines to be written at the end of the daemon.
const FLUSH_LIMIT: Duration = Duration::from_secs(10);

/// The files of all servers that keep some.
#[derive(Debug)]
pub struct LogFiles {
    /// None: nobody keeps any.
    dir: Option<PathBuf>,
    events: Arc<Events>,
    /// By server: two writers would not know of each other's rotations.
    open: Mutex<BTreeMap<String, Weak<LogFile>>>,
}

impl LogFiles {
    /// Files in `dir`, which is made when it is needed; without it, none are kept.
    pub fn new(dir: Option<PathBuf>, events: Arc<Events>) -> Self {
        Self { dir, events, open: Mutex::default() }
    }

    /// The files of this server, if it keeps any.
    pub(crate) fn of(&self, spec: &ServerSpec) -> Option<Arc<LogFile>> {
        let dir = self.dir.as_ref().filter(|_| spec.log_files > 0)?;
        let bounds = Bounds { files: spec.log_files, bytes: spec.log_file_bytes };
        let name = spec.name.as_str();
        let mut open = lock(&self.open);
        open.retain(|_, file| file.strong_count() > 0);
        if let Some(file) = open.get(name).and_then(Weak::upgrade) {
            lock(&file.waiting).bounds = bounds;
            return Some(file);
        }
        let file = Arc::new(LogFile {
            path: dir.join(format!("{name}.log")),
            server: name.to_owned(),
            events: Arc::clone(&self.events),
            waiting: Mutex::new(Waiting::new(bounds)),
            writer: Mutex::default(),
            idle: Notify::new(),
        });
        open.insert(name.to_owned(), Arc::downgrade(&file));
        Some(file)
    }

    /// Returns when all lines so far are written, or after a while that is long enough for a disk that works.
    pub(crate) async fn flush(&self) {
        let files: Vec<_> = lock(&self.open).values().filter_map(Weak::upgrade).collect();
        let all = futures_util::future::join_all(files.iter().map(|file| file.flushed()));
        if tokio::time::timeout(FLUSH_LIMIT, all).await.is_err() {
            tracing::warn!(
                "the disk is slow: the last lines of some servers are not in their files (log_files)"
            );
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    files: u32,
    bytes: u64,
}

#[derive(Debug)]
struct Waiting {
    bounds: Bounds,
    lines: Vec<u8>,
    /// Not written since the last line that says so.
    dropped: u64,
    /// A thread is at it.
    writing: bool,
    /// Lines were dropped for want of room, and that was told; until the thread has caught up.
    full: bool,
    /// A failed write is tried again in a while.
    retrying: bool,
}

impl Waiting {
    fn new(bounds: Bounds) -> Self {
        Self { bounds, lines: Vec::new(), dropped: 0, writing: false, full: false, retrying: false }
    }
}

/// The file that is being written, and how long it is.
#[derive(Debug, Default)]
struct Writer {
    file: Option<(File, u64)>,
    /// The latest try failed, and that was told.
    failing: bool,
}

/// The files of one server.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    server: String,
    events: Arc<Events>,
    waiting: Mutex<Waiting>,
    /// Locked by the one thread that writes.
    writer: Mutex<Writer>,
    idle: Notify,
}

impl LogFile {
    /// Adds lines of `instance`. Does not wait for the disk.
    pub(crate) fn add<'a>(
        self: &Arc<Self>,
        instance: &str,
        stream: Stream,
        unix_ms: u64,
        lines: impl Iterator<Item = &'a [u8]>,
    ) {
        let moment = format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(unix_ms));
        let prefix = format!("{moment} {instance} {} ", stream.as_str());
        let mut waiting = lock(&self.waiting);
        let mut dropped = 0;
        for line in lines {
            if waiting.lines.len() + prefix.len() + line.len() >= MAX_WAITING {
                dropped += 1;
                continue;
            }
            waiting.lines.extend_from_slice(prefix.as_bytes());
            waiting.lines.extend_from_slice(line);
            waiting.lines.push(b'\n');
        }
        waiting.dropped += dropped;
        let first = dropped > 0 && !std::mem::replace(&mut waiting.full, true);
        drop(waiting);
        if dropped > 0 {
            self.events.count("log_files.waiting");
        }
        if first {
            let what = format!("lines for {}: the disk is slow (log_files)", self.path.display());
            self.events.record(&self.server, Happening::Dropped { what, count: dropped });
        }
        self.begin();
    }

    /// Has a thread write, where none does.
    fn begin(self: &Arc<Self>) {
        if !std::mem::replace(&mut lock(&self.waiting).writing, true) {
            let file = Arc::clone(self);
            tokio::task::spawn_blocking(move || file.write());
        }
    }

    /// Has what waits written in a while.
    fn retry(self: &Arc<Self>) {
        let file = Arc::clone(self);
        // The thread that writes is one of the runtime's.
        tokio::spawn(async move {
            tokio::time::sleep(RETRY_AFTER).await;
            lock(&file.waiting).retrying = false;
            file.begin();
        });
    }

    /// Writes until nothing waits.
    fn write(self: &Arc<Self>) {
        let mut writer = lock(&self.writer);
        loop {
            let (lines, dropped, bounds) = {
                let mut waiting = lock(&self.waiting);
                let lines = std::mem::take(&mut waiting.lines);
                let dropped = std::mem::take(&mut waiting.dropped);
                if lines.is_empty() && dropped == 0 {
                    (waiting.writing, waiting.full) = (false, false);
                    break;
                }
                (lines, dropped, waiting.bounds)
            };
            let result = self.append(&mut writer, &lines, dropped, bounds);
            if !self.outcome(&mut writer, &lines, dropped, result) {
                break;
            }
        }
        drop(writer);
        self.idle.notify_waiters();
    }

    /// Takes note of how a write went; false when it failed, and what waits is to wait on.
    fn outcome(
        self: &Arc<Self>,
        writer: &mut Writer,
        lines: &[u8],
        dropped: u64,
        result: io::Result<()>,
    ) -> bool {
        let Err(error) = result else {
            writer.failing = false;
            return true;
        };
        let lost = memchr::memchr_iter(b'\n', lines).count() as u64;
        // Perhaps it was taken away or renamed.
        writer.file = None;
        let first = !std::mem::replace(&mut writer.failing, true);
        let mut waiting = lock(&self.waiting);
        waiting.dropped += dropped + lost;
        // With the next line it is tried again, or in a while for those that have come already.
        waiting.writing = false;
        let retry = !waiting.lines.is_empty() && !std::mem::replace(&mut waiting.retrying, true);
        drop(waiting);
        if retry {
            self.retry();
        }
        if first {
            let what = format!("lines for {}: {error} (log_files)", self.path.display());
            self.events.record(&self.server, Happening::Dropped { what, count: lost });
        }
        false
    }

    /// Whole lines, into as many files as they take.
    fn append(&self, writer: &mut Writer, lines: &[u8], dropped: u64, bounds: Bounds) -> io::Result<()> {
        let note = format!("[{dropped} lines were dropped here: the disk was slow, full or gone]\n");
        let note = if dropped > 0 { note.as_bytes() } else { b"" };
        for text in [note, lines] {
            let mut left = text;
            while !left.is_empty() {
                let (file, length) = match &mut writer.file {
                    Some(file) => file,
                    None => writer.file.insert(open(&self.path, bounds.files)?),
                };
                let room = usize::try_from(bounds.bytes.saturating_sub(*length)).unwrap_or(usize::MAX);
                let fits = fitting(left, room);
                if fits == 0 && *length > 0 {
                    writer.file = None;
                    rotate(&self.path, bounds.files)?;
                    continue;
                }
                // A line that is longer than a file has one of its own.
                let take = if fits > 0 { fits } else { first_line(left) };
                file.write_all(&left[..take])?;
                *length += take as u64;
                left = &left[take..];
            }
        }
        Ok(())
    }

    async fn flushed(self: &Arc<Self>) {
        if !lock(&self.waiting).lines.is_empty() {
            self.begin();
        }
        until(&self.idle, || (!lock(&self.waiting).writing).then_some(())).await;
    }
}

/// The length of the whole lines that begin `text` and are no longer than `room` together.
fn fitting(text: &[u8], room: usize) -> usize {
    if text.len() <= room {
        return text.len();
    }
    memchr::memrchr(b'\n', &text[..room]).map_or(0, |end| end + 1)
}

fn first_line(text: &[u8]) -> usize {
    memchr::memchr(b'\n', text).map_or(text.len(), |end| end + 1)
}

/// The name of the file before the `number`-th last.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Opens the file at its end, for nobody else to read, and removes those that are more than may be kept.
fn open(path: &Path, files: u32) -> io::Result<(File, u64)> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    // They were numbered without a gap.
    let excess = (files..).map(|number| numbered(path, number)).take_while(|path| path.exists());
    for old in excess.collect::<Vec<_>>() {
        std::fs::remove_file(old)?;
    }
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

/// Every file becomes one older; the oldest goes.
fn rotate(path: &Path, files: u32) -> io::Result<()> {
    if files <= 1 {
        return std::fs::remove_file(path);
    }
    for number in (1..files - 1).rev() {
        let from = numbered(path, number);
        if from.exists() {
            std::fs::rename(from, numbered(path, number + 1))?;
        }
    }
    std::fs::rename(path, numbered(path, 1))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each holder leaves it whole at every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path, log_files: u32, log_file_bytes: u64) -> (LogFiles, Arc<LogFile>) {
        let files = LogFiles::new(Some(dir.to_owned()), Arc::default());
        let mut spec = ServerSpec::new("one".parse().expect("a name"), "x");
        (spec.log_files, spec.log_file_bytes) = (log_files, log_file_bytes);
        let file = files.of(&spec).expect("it keeps files");
        (files, file)
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).expect("a directory");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn files_are_rotated_by_size_between_lines_and_the_oldest_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let (files, file) = files(dir.path(), 3, 200);
        // Each is 24 bytes of a moment, " one.1 stderr ", 2 digits and a line end: 4 of them fit.
        for number in 10..30 {
            let text = number.to_string();
            file.add("one.1", Stream::Stderr, 0, [text.as_bytes()].into_iter());
        }
        files.flush().await;
        assert_eq!(names(dir.path()), ["one.log", "one.log.1", "one.log.2"]);
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("a file");
        assert!(
            read("one.log.2").starts_with("1970-01-01T00:00:00.000Z one.1 stderr "),
            "{}",
            read("one.log.2")
        );
        let kept: String = ["one.log.2", "one.log.1", "one.log"].map(read).concat();
        let numbers: Vec<u32> = kept
            .lines()
            .map(|line| line.rsplit(' ').next().expect("a word").parse().expect("a number"))
            .collect();
        let expected: Vec<u32> = (30 - u32::try_from(numbers.len()).expect("few")..30).collect();
        assert_eq!(numbers, expected, "the latest, each once and in order");
        for name in names(dir.path()) {
            assert!(read(&name).len() <= 200 && !read(&name).is_empty(), "{name}");
        }
        // Fewer are to be kept from now on.
        let (files, file) = self::files(dir.path(), 1, 200);
        file.add("one.1", Stream::Stderr, 0, [b"x".repeat(300).as_slice()].into_iter());
        files.flush().await;
        assert_eq!(names(dir.path()), ["one.log"]);
        assert!(read("one.log").ends_with(&format!("{}\n", "x".repeat(300))), "whole, though too long");
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_told_once_counted_and_said_in_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        // A file where the directory should be.
        let place = dir.path().join("logs");
        std::fs::write(&place, "in the way").expect("written");
        let (files, file) = files(&place, 2, 10_000);
        for _ in 0..3 {
            file.add("one.1", Stream::Stdout, 0, [b"lost".as_slice(), b"too"].into_iter());
            files.flush().await;
        }
        let told: Vec<_> = files.events.after(0, 10).into_iter().map(|event| event.message).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("dropped 2: lines for ") && told[0].contains("one.log"), "{}", told[0]);
        std::fs::remove_file(&place).expect("removed");
        file.add("one.1", Stream::Stdout, 0, [b"kept".as_slice()].into_iter());
        files.flush().await;
        let text = std::fs::read_to_string(place.join("one.log")).expect("a file");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("[6 lines were dropped here"), "{text}");
        assert!(lines[1].ends_with("one.1 stdout kept"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_during_a_write_that_failed_is_written_when_that_is_over() {
        let dir = tempfile::tempdir().expect("a directory");
        // A file where the directory should be.
        let place = dir.path().join("logs");
        std::fs::write(&place, "in the way").expect("written");
        let (_files, file) = files(&place, 2, 10_000);
        lock(&file.waiting).lines.extend_from_slice(b"late\n");
        // As it is after a write that failed.
        let (lost, mut writer) = (vec![b'\n'], Writer::default());
        assert!(!file.outcome(&mut writer, &lost, 0, Err(io::ErrorKind::StorageFull.into())));
        std::fs::remove_file(&place).expect("removed");
        let written = async {
            while !place.join("one.log").exists() || lock(&file.waiting).writing {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), written).await.expect("it is tried again");
        let text = std::fs::read_to_string(place.join("one.log")).expect("a file");
        assert!(text.starts_with("[1 lines were dropped here") && text.ends_with("\nlate\n"), "{text}");
    }

    #[tokio::test]
    async fn no_more_than_so_much_waits() {
        let dir = tempfile::tempdir().expect("a directory");
        let (files, file) = files(dir.path(), 1, u64::MAX);
        let line = b"x".repeat(1000);
        // As if the disk stood still.
        let standing = lock(&file.writer);
        for _ in 0..2000 {
            file.add("one.1", Stream::Stdout, 0, std::iter::once(line.as_slice()));
        }
        let (waits, dropped) = {
            let waiting = lock(&file.waiting);
            (waiting.lines.len(), waiting.dropped)
        };
        drop(standing);
        assert!(waits <= MAX_WAITING && dropped > 900, "{waits} bytes wait, {dropped} lines were dropped");
        assert!(files.events.counters()["log_files.waiting"] > 0);
        let told: Vec<_> = files.events.after(0, 10).into_iter().map(|event| event.message).collect();
        assert!(told.len() == 1 && told[0].contains("the disk is slow"), "once: {told:?}");
        files.flush().await;
        let text = std::fs::read_to_string(dir.path().join("one.log")).expect("a file");
        assert!(text.contains("lines were dropped here"), "it is said");
    }
}
