//! What fails after a group is on disk.

use super::*;
use crate::journal::head::HeadFile;

/// Whoever is told that a task was not accepted submits it once more.
#[test]
fn what_is_on_disk_is_accepted_whatever_fails_after_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut journal = Journal::open(dir.path(), JournalOptions::default(), 1).expect("opens").0;
    let writable = journal.head.replace(HeadFile::unwritable());
    let submit = Change::Submit(NewTask { project: "p".to_owned(), ..NewTask::default() });
    let outcomes = journal.apply(std::slice::from_ref(&submit), 1).expect("it is on disk");
    assert!(matches!(outcomes[..], [Outcome::Accepted(Id { seq: 1, .. })]), "{outcomes:?}");
    let trouble = journal.take_trouble().expect("it is told");
    assert!(trouble.to_string().contains(crate::journal::HEAD_NAME), "{trouble}");
    assert!(journal.take_trouble().is_none());
    journal.head = writable;
    journal.apply(&[submit], 1).expect("applies");
    assert_eq!((journal.counts()[0], journal.stats().troubles), (2, 1));
    drop(journal);
    let report = Journal::open(dir.path(), JournalOptions::default(), 1).expect("opens").1;
    assert_eq!((report.loss, report.notes), (None, vec![]));
}
