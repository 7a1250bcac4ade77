//! The task journal.

mod changes;
mod crash;
mod damage;
mod measure;
mod model;

use std::path::Path;

use bytes::Bytes;
use ostler_store::journal::{Change, Id, Journal, JournalOptions, NewTask, OpenReport, Outcome};

/// A moment after 1970.
const NOW: u64 = 1_790_000_000_000;

/// Survives the process, not a power failure: what the tests need.
fn quick() -> JournalOptions {
    JournalOptions { durable: false, result_inline: 200, ..JournalOptions::default() }
}

fn open(dir: &Path) -> (Journal, OpenReport) {
    Journal::open(dir, quick(), NOW).expect("the journal opens")
}

fn open_sound(dir: &Path) -> Journal {
    let (journal, report) = open(dir);
    assert_eq!((report.loss, report.damaged, report.notes), (None, vec![], vec![]));
    journal
}

fn task(project: &str, number: u64) -> NewTask {
    NewTask {
        project: project.to_owned(),
        lane: "builtin".to_owned(),
        kind: "shell-command".to_owned(),
        priority: u8::try_from(number % 11).expect("small"),
        principal: "local".to_owned(),
        attempts_max: 3,
        payload: format!(r#"{{"argv":["echo","{number}"]}}"#).into_bytes(),
        ..NewTask::default()
    }
}

fn one(journal: &mut Journal, change: Change) -> Outcome {
    journal.apply(&[change], NOW).expect("applies").remove(0)
}

fn submit(journal: &mut Journal, task: NewTask) -> Id {
    match one(journal, Change::Submit(task)) {
        Outcome::Accepted(id) => id,
        other => panic!("not accepted: {other:?}"),
    }
}

fn begin(seq: u64, attempt: u32) -> Change {
    Change::Begin { seq, attempt, worker: format!("w{}", seq % 4) }
}

fn commit(seq: u64, attempt: u32, result: &[u8]) -> Change {
    Change::Commit { seq, attempt, result: Bytes::copy_from_slice(result) }
}
