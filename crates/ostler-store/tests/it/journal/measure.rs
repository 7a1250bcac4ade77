//! Measures the journal. Not a test: `cargo test --release -p ostler-store -- --ignored --nocapture measure`.

use std::path::Path;
use std::time::Instant;

use ostler_store::journal::{Change, Journal, JournalOptions};

use super::{NOW, begin, commit, task};

fn rate(what: &str, count: usize, begun: Instant) {
    let took = begun.elapsed();
    let each = took.as_secs_f64() * 1e6 / count as f64;
    eprintln!(
        "{what:<48} {count:>8} in {:>7.3} s, {:>9.0}/s, {each:>8.2} us each",
        took.as_secs_f64(),
        1e6 / each
    );
}

/// Submits, begins and commits, in groups.
fn groups(journal: &mut Journal, group: usize, total: usize, what: &str) {
    let first = journal.counts().iter().sum::<u64>() + 1;
    let begun = Instant::now();
    for start in (0..total).step_by(group) {
        let changes: Vec<_> = (0..group).map(|n| Change::Submit(task("p", (start + n) as u64))).collect();
        journal.apply(&changes, NOW).expect("applies");
    }
    rate(&format!("{what}: submit, groups of {group}"), total, begun);
    let seqs: Vec<u64> = (first..).take(total).collect();
    let begun = Instant::now();
    for seqs in seqs.chunks(group) {
        let changes: Vec<_> = seqs.iter().map(|seq| begin(*seq, 1)).collect();
        journal.apply(&changes, NOW).expect("applies");
    }
    rate(&format!("{what}: begin, groups of {group}"), total, begun);
    let begun = Instant::now();
    for seqs in seqs.chunks(group) {
        let changes: Vec<_> = seqs.iter().map(|seq| commit(*seq, 1, br#"{"ok":true,"code":0}"#)).collect();
        journal.apply(&changes, NOW).expect("applies");
    }
    rate(&format!("{what}: commit, groups of {group}"), total, begun);
}

#[test]
#[ignore = "measures"]
fn measure_groups() {
    let base =
        std::env::var("OSTLER_MEASURE_DIR").unwrap_or_else(|_| std::env::temp_dir().display().to_string());
    for (group, total) in [(1, 300), (10, 3_000), (100, 20_000), (1_000, 100_000)] {
        let dir = tempfile::tempdir_in(&base).expect("a directory");
        let (mut journal, _) = Journal::open(dir.path(), JournalOptions::default(), NOW).expect("opens");
        groups(&mut journal, group, total, "durable");
    }
    for group in [1, 100] {
        let dir = tempfile::tempdir_in(&base).expect("a directory");
        let options = JournalOptions { durable: false, ..JournalOptions::default() };
        let (mut journal, _) = Journal::open(dir.path(), options, NOW).expect("opens");
        groups(&mut journal, group, 50_000, "not durable");
        let mut journal = Journal::in_memory(JournalOptions::default()).expect("opens");
        groups(&mut journal, group, 50_000, "in memory");
    }
}

fn open(dir: &Path, what: &str) -> Journal {
    let begun = Instant::now();
    let (journal, report) = Journal::open(dir, JournalOptions::default(), NOW).expect("opens");
    rate(what, 1_000_000, begun);
    assert_eq!(report.loss, None);
    journal
}

#[test]
#[ignore = "measures"]
fn measure_a_million() {
    let base =
        std::env::var("OSTLER_MEASURE_DIR").unwrap_or_else(|_| std::env::temp_dir().display().to_string());
    let dir = tempfile::tempdir_in(&base).expect("a directory");
    let (mut journal, _) = Journal::open(dir.path(), JournalOptions::default(), NOW).expect("opens");
    let begun = Instant::now();
    for start in (0..1_000_000).step_by(1000) {
        let changes: Vec<_> =
            (start..start + 1000).map(|n| Change::Submit(task(&format!("p{}", n % 20), n))).collect();
        journal.apply(&changes, NOW).expect("applies");
    }
    rate("submit a million", 1_000_000, begun);
    groups(&mut journal, 1, 200, "at a million");
    groups(&mut journal, 100, 10_000, "at a million");
    drop(journal);
    let journal = open(dir.path(), "open after a crash");
    let begun = Instant::now();
    let mut bytes = 0;
    let count = journal.queued(|task| bytes += task.project.len()).expect("reads");
    rate("load the queue", usize::try_from(count).expect("small"), begun);
    let begun = Instant::now();
    journal.close().expect("closes");
    rate("close", 1, begun);
    for entry in std::fs::read_dir(dir.path()).expect("lists") {
        let entry = entry.expect("reads");
        eprintln!("{:?} {} MB", entry.file_name(), entry.metadata().expect("is there").len() >> 20);
    }
    let journal = open(dir.path(), "open after closing");
    let begun = Instant::now();
    let page = journal.list(&ostler_store::journal::TaskFilter::default(), None, 100).expect("lists");
    rate("list a page", page.tasks.len(), begun);
    drop(journal);
    let raw = rusqlite::Connection::open(dir.path().join("tasks.db")).expect("opens");
    for sql in [
        "PRAGMA quick_check",
        "SELECT sum(length(body)) FROM payloads",
        "SELECT sum(length(body)) FROM tasks",
    ] {
        let begun = Instant::now();
        let mut select = raw.prepare(sql).expect("prepares");
        let mut rows = select.query([]).expect("runs");
        while rows.next().expect("runs").is_some() {}
        rate(sql, 1_000_000, begun);
    }
}
