//! The checker finds what is wrong in journals whose rows are all in order.

use bytes::Bytes;

use super::*;
use crate::journal::record::Stamp;
use crate::journal::{Change, JournalOptions, NewTask, Outcome};

fn journal() -> Journal {
    Journal::in_memory(JournalOptions::default()).expect("opens")
}

fn apply(journal: &mut Journal, change: Change) {
    let outcome = journal.apply(&[change], 1).expect("applies").remove(0);
    assert!(matches!(outcome, Outcome::Accepted(_) | Outcome::Done { .. } | Outcome::Noted), "{outcome:?}");
}

fn submit(journal: &mut Journal) {
    apply(journal, Change::Submit(NewTask { project: "p".to_owned(), ..NewTask::default() }));
}

fn begin(journal: &mut Journal, seq: u64, attempt: u32) {
    apply(journal, Change::Begin { seq, attempt, worker: "w".to_owned() });
}

fn retry(journal: &mut Journal, seq: u64, attempt: u32) {
    apply(journal, Change::Retry { seq, attempt, why: "hung".to_owned(), not_before_unix_ms: 0 });
}

fn bury(journal: &mut Journal, seq: u64, attempt: u32) {
    apply(journal, Change::Bury { seq, attempt: Some(attempt), why: "failed".to_owned() });
}

fn commit(journal: &mut Journal, seq: u64, attempt: u32) {
    apply(journal, Change::Commit { seq, attempt, result: Bytes::from_static(b"{}") });
}

fn limit(journal: &mut Journal, running: u32) {
    apply(journal, Change::Limit { project: "p".to_owned(), running: Some(running) });
}

/// Two tasks: the first succeeds with its third attempt, the second dies of its first.
fn two() -> Journal {
    let mut journal = journal();
    submit(&mut journal);
    submit(&mut journal);
    for attempt in 1..=2 {
        begin(&mut journal, 1, attempt);
        retry(&mut journal, 1, attempt);
    }
    begin(&mut journal, 2, 1);
    bury(&mut journal, 2, 1);
    begin(&mut journal, 1, 3);
    commit(&mut journal, 1, 3);
    journal
}

fn sql(journal: &Journal, sql: &str) {
    assert_eq!(journal.conn.execute(sql, []).expect("runs"), 1);
}

/// Changes a task's record with everything that vouches for it.
fn forge(journal: &mut Journal, seq: u64, change: impl FnOnce(&mut TaskRecord)) {
    let mut task = journal.task(seq).expect("reads").expect("is there");
    change(&mut task);
    journal
        .transact(false, 1, |work| {
            let old = row::get::<TaskRecord>(work.conn, work.meta.journal, SELECT_TASK, seq)?;
            let Some(Read::Sound(_, hash)) = old else { panic!() };
            work.meta.tasks.remove(hash);
            work.conn.execute("DELETE FROM tasks WHERE seq = ?1", [seq.cast_signed()])?;
            work.meta.tasks.add(row::insert(work.conn, work.meta.journal, &task)?);
            Ok(())
        })
        .expect("is written");
}

/// The same with an attempt; none removes it.
fn forge_attempt(journal: &mut Journal, seq: u64, attempt: u32, change: Option<fn(&mut AttemptRecord)>) {
    let mut record =
        journal.attempts(seq).expect("reads").into_iter().find(|a| a.attempt == attempt).expect("is there");
    let key = row::attempt_key(seq, attempt);
    journal
        .transact(false, 1, |work| {
            let sql = "SELECT * FROM attempts WHERE id = ?1";
            let Some(Read::Sound(_, hash)) =
                row::get::<AttemptRecord>(work.conn, work.meta.journal, sql, key)?
            else {
                panic!()
            };
            work.meta.attempts.remove(hash);
            work.conn.execute("DELETE FROM attempts WHERE id = ?1", [key.cast_signed()])?;
            if let Some(change) = change {
                change(&mut record);
                work.meta.attempts.add(row::insert(work.conn, work.meta.journal, &record)?);
            }
            Ok(())
        })
        .expect("is written");
}

fn problems(journal: &Journal) -> Vec<Problem> {
    journal.check().expect("checks").problems
}

#[test]
fn a_journal_in_order_is_proof() {
    let mut journal = two();
    let verdict = journal.check().expect("checks");
    assert!(verdict.is_proof(), "{:?}", verdict.problems);
    assert_eq!((verdict.tasks, verdict.attempts), ([0, 0, 1, 1, 0], 4));
    submit(&mut journal);
    let verdict = journal.check().expect("checks");
    assert_eq!((verdict.is_proof(), verdict.unended(), verdict.problems), (false, 1, vec![]));
}

#[test]
fn exactly_one_result() {
    let journal = two();
    sql(&journal, "DELETE FROM results WHERE seq = 1");
    let what = "the result that was committed is not there";
    assert_eq!(problems(&journal), [Problem::Task { seq: 1, state: TaskState::Succeeded, what }]);

    let journal = two();
    sql(&journal, "UPDATE results SET body = x'7B5D' WHERE seq = 1");
    assert_eq!(problems(&journal), [Problem::Task { seq: 1, state: TaskState::Succeeded, what }]);

    let journal = two();
    sql(&journal, "INSERT INTO results VALUES (2, x'7B7D')");
    assert_eq!(problems(&journal), [Problem::StrayResult(2)]);
}

/// One whose result is a file.
fn with_a_file(dir: &Path) -> Journal {
    let options = JournalOptions { durable: false, result_inline: 1, ..JournalOptions::default() };
    let mut journal = Journal::open(dir, options, 1).expect("opens").0;
    submit(&mut journal);
    begin(&mut journal, 1, 1);
    commit(&mut journal, 1, 1);
    journal
}

#[test]
fn a_result_that_is_a_file_is_the_one_that_was_committed() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = with_a_file(dir.path());
    assert_eq!(problems(&journal), []);
    let file = dir.path().join(RESULTS_NAME).join(ResultFiles::name(1, 1));
    let what = "the result that was committed is not there";
    for broken in [Some("{]"), None] {
        match broken {
            Some(text) => std::fs::write(&file, text).expect("writes"),
            None => std::fs::remove_file(&file).expect("removes"),
        }
        assert_eq!(problems(&journal), [Problem::Task { seq: 1, state: TaskState::Succeeded, what }]);
    }
    sql(&journal, "INSERT INTO results VALUES (1, x'7B7D')");
    assert!(problems(&journal).contains(&Problem::StrayResult(1)), "one in the table beside the file");
}

#[test]
fn nothing_is_numbered_after_the_last_change() {
    let mut journal = two();
    forge(&mut journal, 2, |task| task.ended = Some(Stamp { no: 99, unix_ms: 1 }));
    let last = journal.last_change();
    assert_eq!(problems(&journal), [Problem::Journal(format!("change 99 is after the last one, {last}"))]);
}

#[test]
fn records_that_contradict_themselves() {
    type Forgery = fn(&mut TaskRecord);
    let cases: [(u64, Forgery, &str); 9] = [
        (2, |task| task.why = None, "there is no reason"),
        (2, |task| task.ended = None, "when it ended does not fit to that"),
        (1, |task| task.result = None, "its result does not fit to that"),
        (1, |task| task.begun = None, "no attempt began"),
        (2, |task| task.base = 2, "it was revived after more attempts than it had"),
        (2, |task| task.state = TaskState::Succeeded, "its result does not fit to that"),
        (2, |task| task.state = TaskState::Queued, "an attempt is running"),
        (2, |task| task.attempt = 0, "an attempt without a number began"),
        (1, |task| task.attempt = 0, "no attempt began"),
    ];
    for (seq, change, expected) in cases {
        let mut journal = two();
        forge(&mut journal, seq, change);
        let found = problems(&journal);
        let named = |problem: &Problem| matches!(problem, Problem::Task { what, .. } if *what == expected);
        assert!(found.iter().any(named), "{expected}: {found:?}");
    }
}

#[test]
fn attempts_follow_each_other() {
    let mut journal = two();
    forge_attempt(&mut journal, 1, 2, None);
    assert_eq!(problems(&journal), [Problem::Gap { seq: 1, before: 1, found: 3 }]);

    let mut journal = two();
    forge(&mut journal, 2, |task| task.attempt = 2);
    assert_eq!(problems(&journal), [Problem::Gap { seq: 2, before: 0, found: 2 }]);

    let mut journal = two();
    forge(&mut journal, 2, |task| task.begun = None);
    assert_eq!(problems(&journal), [Problem::Gap { seq: 2, before: 0, found: 1 }], "its last one is nowhere");

    let mut journal = two();
    forge_attempt(&mut journal, 1, 2, Some(|attempt| attempt.ended.no = 99));
    let found = problems(&journal);
    assert!(matches!(found[0], Problem::Overlap { seq: 1, attempt: 3, ended: 99, .. }), "{found:?}");

    let mut journal = two();
    forge_attempt(&mut journal, 1, 1, Some(|attempt| attempt.ended.no = attempt.begun.no - 1));
    assert_eq!(problems(&journal), [Problem::Backwards { seq: 1, attempt: 1 }]);

    let mut journal = two();
    let begun = journal.task(2).expect("reads").expect("is there").begun.expect("began").no;
    forge(&mut journal, 1, |task| task.begun = Some(Stamp { no: begun, unix_ms: 1 }));
    assert_eq!(problems(&journal), [Problem::Twice(begun)]);
}

#[test]
fn limits_hold_at_the_time_of_each_beginning() {
    let mut journal = journal();
    for _ in 0..4 {
        submit(&mut journal);
    }
    limit(&mut journal, 2);
    begin(&mut journal, 1, 1);
    begin(&mut journal, 2, 1);
    limit(&mut journal, 1);
    assert_eq!(problems(&journal), [], "a lower limit ends nothing");
    commit(&mut journal, 1, 1);
    limit(&mut journal, 2);
    begin(&mut journal, 3, 1);
    assert_eq!(problems(&journal), []);
    assert_eq!(journal.check().expect("checks").peaks["p"], 2);
    begin(&mut journal, 4, 1);
    let begun = journal.last_change();
    let project = "p".to_owned();
    assert_eq!(
        problems(&journal),
        [Problem::Limit { seq: 4, attempt: 1, begun, project, running: 2, limit: 2 }]
    );
}

#[test]
fn a_start_ends_what_was_running() {
    let dir = tempfile::tempdir().expect("a directory");
    let open =
        || Journal::open(dir.path(), JournalOptions { durable: false, ..JournalOptions::default() }, 1);
    let mut journal = open().expect("opens").0;
    submit(&mut journal);
    submit(&mut journal);
    limit(&mut journal, 1);
    begin(&mut journal, 1, 1);
    drop(journal);
    let mut journal = open().expect("opens").0;
    begin(&mut journal, 2, 1);
    retry(&mut journal, 1, 1);
    drop(journal);
    assert_eq!(check(dir.path()).expect("checks").problems, [], "the first attempt ended with its daemon");
    let mut journal = open().expect("opens").0;
    commit_and_exceed(&mut journal);
    assert!(matches!(problems(&journal)[..], [Problem::Limit { seq: 3, .. }]));
}

fn commit_and_exceed(journal: &mut Journal) {
    begin(journal, 1, 2);
    submit(journal);
    begin(journal, 3, 1);
}

#[test]
fn rows_that_are_not_as_they_were_written() {
    for (broken, table) in [
        ("UPDATE tasks SET state = 4 WHERE seq = 2", "tasks"),
        ("UPDATE attempts SET worker = 'v' WHERE id = 65537", "attempts"),
        ("UPDATE evidence SET attempt = 2", "evidence"),
        ("UPDATE limits SET running = 99", "limits"),
    ] {
        let mut journal = two();
        limit(&mut journal, 9);
        let late = Change::Commit { seq: 2, attempt: 1, result: Bytes::from_static(b"{}") };
        assert!(matches!(journal.apply(&[late], 1).expect("applies")[..], [Outcome::Late { .. }]));
        sql(&journal, broken);
        let found = problems(&journal);
        assert!(
            found.iter().any(|problem| matches!(problem, Problem::Row { table: it, .. } if *it == table)),
            "{found:?}"
        );
    }
    for gone in ["DELETE FROM tasks WHERE seq = 2", "DELETE FROM attempts WHERE id = 65537"] {
        let journal = two();
        sql(&journal, gone);
        let found = problems(&journal);
        assert!(found.iter().any(|problem| matches!(problem, Problem::Journal(_))), "{found:?}");
    }
}
