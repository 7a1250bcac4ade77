//! What was acknowledged survives SIGKILL of the writer, exactly once.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use ostler_store::journal::{Change, Journal, JournalOptions, Outcome, TaskState};

use super::{NOW, begin, commit, open, quick, task};
use crate::dir;

/// Tells the child, which is this test binary again, where to write.
pub(super) const DIR_VARIABLE: &str = "OSTLER_JOURNAL_TEST_DIR";

fn given_dir() -> PathBuf {
    PathBuf::from(std::env::var_os(DIR_VARIABLE).expect("started by its parent"))
}

#[test]
#[ignore = "a child, which its parent starts"]
fn child_that_opens() {
    match Journal::open(&given_dir(), quick(), NOW) {
        Ok(_) => println!("opened"),
        Err(error) => println!("{error}"),
    }
}

/// Submits, begins, commits, in groups of changing size, and says what was done once `apply` has returned.
#[test]
#[ignore = "a child, which its parent starts"]
fn child_that_works_until_killed() {
    let (mut journal, report) = open(&given_dir());
    assert_eq!((report.loss, report.notes), (None, vec![]));
    let mut out = std::io::stdout().lock();
    for interrupted in report.interrupted {
        let seq = interrupted.id.seq;
        let retry = Change::Retry {
            seq,
            attempt: interrupted.attempt,
            why: "interrupted".to_owned(),
            not_before_unix_ms: 0,
        };
        assert!(matches!(super::one(&mut journal, retry), Outcome::Done { .. }));
    }
    for round in 0_u64.. {
        let submits: Vec<_> = (0..=round % 7).map(|n| Change::Submit(task("p", n))).collect();
        let mut said = String::from("\n");
        for outcome in journal.apply(&submits, NOW).expect("applies") {
            let Outcome::Accepted(id) = outcome else { panic!("{outcome:?}") };
            said += &format!("accepted {}\n", id.seq);
        }
        out.write_all(said.as_bytes()).expect("the parent reads");
        let mut waiting = Vec::new();
        journal.queued(|task| waiting.push((task.id.seq, task.attempt + 1))).expect("reads");
        let begins: Vec<_> = waiting.iter().map(|(seq, attempt)| begin(*seq, *attempt)).collect();
        journal.apply(&begins, NOW).expect("applies");
        // Some results are files.
        let result = |seq: u64| format!("{seq}:{}", "r".repeat(if seq.is_multiple_of(5) { 300 } else { 3 }));
        let commits: Vec<_> =
            waiting.iter().map(|(seq, attempt)| commit(*seq, *attempt, result(*seq).as_bytes())).collect();
        let mut said = String::from("\n");
        for (outcome, (seq, attempt)) in
            journal.apply(&commits, NOW).expect("applies").into_iter().zip(waiting)
        {
            assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
            said += &format!("committed {seq} {attempt}\n");
        }
        out.write_all(said.as_bytes()).expect("the parent reads");
    }
}

#[test]
fn what_was_acknowledged_survives_sigkill_exactly_once() {
    let dir = dir();
    let (mut accepted, mut committed) = (Vec::new(), BTreeMap::new());
    for lines_before_kill in [1, 40, 3, 300] {
        let mut child = Command::new(std::env::current_exe().expect("a path"))
            .args(["--ignored", "--exact", "--nocapture", "journal::crash::child_that_works_until_killed"])
            .env(DIR_VARIABLE, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut seen = 0;
        for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
            let line = line.expect("reads");
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["accepted", seq] => accepted.push(seq.parse::<u64>().expect("a number")),
                ["committed", seq, attempt] => {
                    let attempt: u32 = attempt.parse().expect("a number");
                    let before = committed.insert(seq.parse::<u64>().expect("a number"), attempt);
                    assert_eq!(before, None, "{line}: committed twice");
                }
                _ => continue,
            }
            seen += 1;
            if seen == lines_before_kill {
                child.kill().expect("SIGKILL");
            }
        }
        child.wait().expect("is reaped");
    }
    let (journal, report) = open(dir.path());
    assert_eq!((report.loss, &report.damaged[..], &report.notes[..]), (None, &[][..], &[][..]));
    let unique: std::collections::BTreeSet<_> = accepted.iter().collect();
    assert_eq!(unique.len(), accepted.len(), "no number is given twice");
    for seq in &accepted {
        let task = journal.task(*seq).expect("reads").expect("what was accepted is there");
        if let Some(attempt) = committed.get(seq) {
            assert_eq!((task.state, task.attempt), (TaskState::Succeeded, *attempt));
            let result = journal.result(&task).expect("reads").expect("is there");
            assert!(result.starts_with(format!("{seq}:r").as_bytes()));
        }
    }
    let verdict = journal.check().expect("checks");
    assert_eq!(verdict.problems, []);
    assert!(verdict.tasks[TaskState::Succeeded as usize] >= committed.len() as u64);
    assert!(accepted.len() > 100 && committed.len() > 100, "{} {}", accepted.len(), committed.len());
    drop(journal);
    let (_, report) = Journal::open(dir.path(), JournalOptions::default(), NOW).expect("opens");
    assert_eq!(report.orphans, 0, "the first opening has tidied up");
}
