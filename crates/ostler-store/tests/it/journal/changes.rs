//! What each change does, and what it refuses.

use ostler_store::TEXT_MAX;
use ostler_store::journal::{
    ATTEMPTS_MAX, CHANGES_MAX, Change, EVIDENCE_MAX, Journal, JournalError, JournalOptions, NewBatch,
    NewTask, Outcome, Refusal, TaskFilter, TaskState, WHY_MAX,
};

use super::{NOW, begin, commit, one, open, open_sound, quick, submit, task};
use crate::dir;

fn state(journal: &Journal, seq: u64) -> (TaskState, u32) {
    let task = journal.task(seq).expect("reads").expect("is there");
    (task.state, task.attempt)
}

fn refused(journal: &mut Journal, change: Change) -> Refusal {
    match one(journal, change) {
        Outcome::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_task_comes_back_as_it_was_submitted() {
    let dir = dir();
    let mut journal = open_sound(dir.path());
    let new = NewTask {
        session: Some("s".to_owned()),
        key: Some("k".to_owned()),
        ready_unix_ms: NOW + 5,
        deadline_unix_ms: Some(u64::MAX),
        ..task("p", 7)
    };
    let id = submit(&mut journal, new.clone());
    drop(journal);
    let journal = open_sound(dir.path());
    let task = journal.get(id).expect("reads").expect("is there");
    assert_eq!(
        (&task.project, &task.lane, &task.kind, task.priority, &task.principal, &task.session, &task.key),
        (&new.project, &new.lane, &new.kind, new.priority, &new.principal, &new.session, &new.key)
    );
    assert_eq!(
        (task.ready_unix_ms, task.deadline_unix_ms, task.submitted_unix_ms),
        (NOW + 5, Some(u64::MAX), NOW)
    );
    assert_eq!(journal.payload(&task).expect("reads"), new.payload);
    let stranger = ostler_store::journal::Id { nonce: id.nonce ^ 1, ..id };
    assert_eq!(journal.get(stranger).expect("reads"), None, "an old id finds nobody else's task");
    let found = journal.payloads(&[id.seq, 99]).expect("reads");
    assert!(matches!(&found[..], [Ok(Some((_, payload))), Ok(None)] if *payload == new.payload), "{found:?}");
}

#[test]
fn only_the_running_attempt_commits_and_a_late_one_is_evidence() {
    let mut journal = Journal::in_memory(JournalOptions::default()).expect("opens");
    let seq = submit(&mut journal, task("p", 1)).seq;
    assert_eq!(refused(&mut journal, begin(seq, 2)), Refusal::State { state: TaskState::Queued, attempt: 0 });
    assert!(matches!(
        one(&mut journal, commit(seq, 1, b"early")),
        Outcome::Late { state: TaskState::Queued, .. }
    ));
    assert_eq!(one(&mut journal, begin(seq, 1)), Outcome::Done { was: TaskState::Queued, attempt: 1 });
    assert!(matches!(
        refused(&mut journal, begin(seq, 2)),
        Refusal::State { state: TaskState::Running, attempt: 1 }
    ));
    let retry = Change::Retry { seq, attempt: 1, why: "hung".to_owned(), not_before_unix_ms: NOW + 9 };
    one(&mut journal, retry.clone());
    assert!(matches!(refused(&mut journal, retry), Refusal::State { state: TaskState::Queued, attempt: 1 }));
    one(&mut journal, begin(seq, 2));
    let late = one(&mut journal, commit(seq, 1, b"late"));
    assert_eq!(late, Outcome::Late { state: TaskState::Running, attempt: 2 });
    assert_eq!(
        one(&mut journal, commit(seq, 2, b"right")),
        Outcome::Done { was: TaskState::Running, attempt: 2 }
    );
    assert_eq!(
        one(&mut journal, commit(seq, 2, b"again")),
        Outcome::Late { state: TaskState::Succeeded, attempt: 2 }
    );
    let task = journal.task(seq).expect("reads").expect("is there");
    assert_eq!(journal.result(&task).expect("reads").as_deref(), Some(&b"right"[..]));
    let bodies: Vec<_> = journal.evidence(seq).expect("reads").into_iter().map(|late| late.body).collect();
    assert_eq!(bodies, [b"early".to_vec(), b"late".to_vec(), b"again".to_vec()]);
    let attempts = journal.attempts(seq).expect("reads");
    assert_eq!((attempts.len(), attempts[0].why.as_str()), (1, "hung"));
    assert_eq!(journal.stats().late, 3);
    assert_eq!(journal.check().expect("checks").problems, []);
}

#[test]
fn a_dead_letter_is_revived_with_its_attempts_before_it() {
    let mut journal = Journal::in_memory(JournalOptions::default()).expect("opens");
    let seq = submit(&mut journal, task("p", 1)).seq;
    one(&mut journal, begin(seq, 1));
    let bury = |attempt, why: &str| Change::Bury { seq, attempt, why: why.to_owned() };
    assert!(matches!(refused(&mut journal, bury(None, "x")), Refusal::State { .. }), "it is not queued");
    assert!(matches!(refused(&mut journal, bury(Some(2), "x")), Refusal::State { .. }), "not this attempt");
    one(&mut journal, bury(Some(1), &"w".repeat(WHY_MAX + 1)));
    let dead = journal.task(seq).expect("reads").expect("is there");
    assert_eq!((dead.state, dead.why.map(|why| why.len())), (TaskState::Dead, Some(WHY_MAX)));
    let revive = Change::Revive { seq, not_before_unix_ms: 0, deadline_unix_ms: None };
    assert_eq!(one(&mut journal, revive.clone()), Outcome::Done { was: TaskState::Dead, attempt: 1 });
    assert!(matches!(refused(&mut journal, revive), Refusal::State { state: TaskState::Queued, .. }));
    let task = journal.task(seq).expect("reads").expect("is there");
    assert_eq!((task.base, task.attempt, task.why), (1, 1, None));
    one(&mut journal, begin(seq, 2));
    let cancel = Change::Cancel { seq, why: "by hand".to_owned() };
    assert_eq!(one(&mut journal, cancel.clone()), Outcome::Done { was: TaskState::Running, attempt: 2 });
    assert!(matches!(refused(&mut journal, cancel), Refusal::State { state: TaskState::Cancelled, .. }));
    assert_eq!(journal.counts(), [0, 0, 0, 0, 1]);
    assert!(journal.check().expect("checks").is_proof());
    assert_eq!(refused(&mut journal, begin(77, 1)), Refusal::NoTask(77));
}

#[test]
fn a_key_finds_the_earlier_task_and_nothing_else() {
    let dir = dir();
    let mut journal = open_sound(dir.path());
    let keyed = |project: &str, number| NewTask { key: Some("k".to_owned()), ..task(project, number) };
    // Within one group too.
    let both = [Change::Submit(keyed("p", 1)), Change::Submit(keyed("p", 1))];
    let outcomes = journal.apply(&both, NOW).expect("applies");
    let Outcome::Accepted(id) = outcomes[0] else { panic!("{outcomes:?}") };
    assert_eq!(outcomes[1], Outcome::Earlier(id));
    drop(journal);
    let mut journal = open_sound(dir.path());
    assert_eq!(one(&mut journal, Change::Submit(keyed("p", 1))), Outcome::Earlier(id));
    assert_eq!(refused(&mut journal, Change::Submit(keyed("p", 2))), Refusal::KeyUsed(id));
    let other = submit(&mut journal, keyed("q", 2));
    assert_eq!(other.seq, id.seq + 1, "another project's key is another key, and a refusal takes no number");
}

#[test]
fn a_batch_is_counted_listed_and_made_once() {
    let dir = dir();
    let mut journal = open_sound(dir.path());
    let batch = NewBatch { project: "p".to_owned(), key: Some("b".to_owned()), ..NewBatch::default() };
    let tasks: Vec<_> = (0..5).map(|number| task("p", number)).collect();
    let change = Change::SubmitBatch { batch: batch.clone(), tasks: tasks.clone() };
    let Outcome::Batch { id, earlier: false, tasks: made } = one(&mut journal, change.clone()) else {
        panic!()
    };
    assert_eq!(made.len(), 5);
    assert_eq!(one(&mut journal, change), Outcome::Batch { id, earlier: true, tasks: vec![] });
    let other = Change::SubmitBatch { batch, tasks: tasks[1..].to_vec() };
    assert_eq!(refused(&mut journal, other), Refusal::KeyUsed(id));
    // One that is refused keeps the others out, and takes no number.
    let long = NewTask { lane: "l".repeat(10_000), ..task("p", 7) };
    let half = Change::SubmitBatch { batch: NewBatch::default(), tasks: vec![task("p", 6), long] };
    let why = refused(&mut journal, half);
    assert!(why.to_string().starts_with("task 1 of the batch: a lane of 10000 bytes is too long"), "{why}");
    assert_eq!(
        (journal.counts().iter().sum::<u64>(), journal.batches(None, 9).expect("lists").len()),
        (5, 1)
    );
    submit(&mut journal, task("p", 9));
    let more = NewTask { batch: Some(id.seq), ..task("p", 10) };
    let sixth = submit(&mut journal, more.clone()).seq;
    assert_eq!(
        refused(&mut journal, Change::Submit(NewTask { project: "q".to_owned(), ..more })),
        Refusal::NoBatch(id.seq)
    );
    one(&mut journal, begin(1, 1));
    one(&mut journal, commit(1, 1, b"{}"));
    for reopened in [false, true] {
        if reopened {
            drop(journal);
            journal = open_sound(dir.path());
        }
        let status = journal.batch(id).expect("reads").expect("is there");
        assert_eq!((status.counts, status.range), ([5, 0, 1, 0, 0], Some((1, sixth))));
        let page = journal
            .list(&TaskFilter { batch: Some(id.seq), ..TaskFilter::default() }, None, 100)
            .expect("lists");
        let seqs: Vec<_> = page.tasks.iter().map(|task| task.id.seq).collect();
        assert_eq!((seqs, page.below), (vec![sixth, 5, 4, 3, 2, 1], None));
        assert_eq!(journal.batches(None, 10).expect("reads").len(), 1);
    }
}

#[test]
fn lists_go_in_pages() {
    let mut journal = Journal::in_memory(JournalOptions::default()).expect("opens");
    let changes: Vec<_> =
        (0..12_000).map(|n| Change::Submit(task(if n % 4000 == 0 { "rare" } else { "p" }, n))).collect();
    journal.apply(&changes, NOW).expect("applies");
    let filter = TaskFilter {
        project: Some("rare".to_owned()),
        state: Some(TaskState::Queued),
        ..TaskFilter::default()
    };
    let (mut below, mut pages, mut seqs) = (None, 0, Vec::new());
    loop {
        let page = journal.list(&filter, below, 100).expect("lists");
        pages += 1;
        seqs.extend(page.tasks.iter().map(|task| task.id.seq));
        below = page.below;
        if below.is_none() {
            break;
        }
    }
    assert_eq!((pages, seqs), (3, vec![8001, 4001, 1]), "a page looks at a bounded number of rows");
    assert_eq!(journal.queued(|_| {}).expect("reads"), 12_000);
    let mut projects: Vec<_> =
        journal.projects().map(|(name, counts)| (name.to_owned(), counts[0])).collect();
    projects.sort();
    assert_eq!(projects, [("p".to_owned(), 11_997), ("rare".to_owned(), 3)]);
}

#[test]
fn large_results_are_files_that_go_with_their_tasks() {
    let dir = dir();
    let files = || std::fs::read_dir(dir.path().join("results")).expect("lists").count();
    let mut journal = open_sound(dir.path());
    let large = vec![b'x'; 201];
    for (seq, result) in [(1, &large[..]), (2, &large[1..]), (3, &large[..])] {
        submit(&mut journal, task("p", seq));
        one(&mut journal, begin(seq, 1));
        one(&mut journal, commit(seq, 1, result));
    }
    assert_eq!(files(), 2);
    std::fs::write(dir.path().join("results/9-9"), "left").expect("writes");
    drop(journal);
    let (mut journal, report) = open(dir.path());
    assert_eq!((report.orphans, files()), (1, 2));
    for seq in 1..=2 {
        let task = journal.task(seq).expect("reads").expect("is there");
        assert_eq!(journal.result(&task).expect("reads").as_deref(), Some(&large[seq as usize - 1..]));
    }
    std::fs::write(dir.path().join("results/3-1"), vec![b'y'; 201]).expect("writes");
    let task = journal.task(3).expect("reads").expect("is there");
    let shown = journal.result(&task).expect_err("it is not what was committed");
    assert!(matches!(shown, JournalError::TaskDamaged { seq: 3, what: "result" }), "{shown}");
    let week = 7 * 24 * 3600 * 1000;
    assert_eq!(journal.prune(NOW + week).expect("prunes").tasks, 0, "not yet old");
    assert_eq!(journal.prune(NOW + week + 1).expect("prunes").tasks, 3);
    assert_eq!((files(), journal.counts(), journal.ended_bytes()), (0, [0; 5], 0));
    drop(journal);
    assert_eq!(open_sound(dir.path()).counts(), [0; 5]);
}

#[test]
fn size_makes_the_lowest_numbers_go_and_batches_follow() {
    let options = JournalOptions { keep_size: 2_000, ..quick() };
    let mut journal = Journal::in_memory(options).expect("opens");
    let tasks = vec![task("p", 0); 10];
    one(
        &mut journal,
        Change::SubmitBatch { batch: NewBatch { project: "p".to_owned(), ..NewBatch::default() }, tasks },
    );
    let newest = Change::SubmitBatch {
        batch: NewBatch { project: "p".to_owned(), ..NewBatch::default() },
        tasks: vec![],
    };
    one(&mut journal, newest);
    submit(&mut journal, task("p", 0));
    for seq in 1..=10 {
        one(&mut journal, Change::Cancel { seq, why: "no".to_owned() });
    }
    let pruned = journal.prune(NOW).expect("prunes");
    let left = journal.counts()[TaskState::Cancelled as usize];
    assert_eq!((pruned.tasks + left, journal.ended_bytes() <= 2_000), (10, true));
    assert_eq!(journal.task(1).expect("reads"), None);
    assert_eq!(state(&journal, 11).0, TaskState::Queued, "what has not ended stays");
    journal.prune(NOW + (8 << 40)).expect("prunes");
    assert_eq!(journal.prune(NOW + (8 << 40)).expect("prunes").batches, 1);
    assert_eq!(journal.batches(None, 10).expect("reads").len(), 1, "the newest may still get tasks");
    assert_eq!(journal.check().expect("checks").problems, []);
}

#[test]
fn everything_is_bounded() {
    let options = JournalOptions { payload_max: 100, result_max: 50, ..JournalOptions::default() };
    let mut journal = Journal::in_memory(options).expect("opens");
    let long = "x".repeat(TEXT_MAX + 1);
    for new in [
        NewTask { project: long.clone(), ..task("p", 1) },
        NewTask { lane: long.clone(), ..task("p", 1) },
        NewTask { key: Some(long.clone()), ..task("p", 1) },
        NewTask { payload: vec![b' '; 101], ..task("p", 1) },
    ] {
        assert!(matches!(refused(&mut journal, Change::Submit(new)), Refusal::TooLong { .. }));
    }
    let seq = submit(&mut journal, task("p", 1)).seq;
    let worker = Change::Begin { seq, attempt: 1, worker: long };
    assert!(matches!(refused(&mut journal, worker), Refusal::TooLong { .. }));
    one(&mut journal, begin(seq, 1));
    assert!(matches!(refused(&mut journal, commit(seq, 1, &[b'1'; 51])), Refusal::TooLong { max: 50, .. }));
    let many = vec![Change::Cancel { seq, why: String::new() }; CHANGES_MAX + 1];
    let error = journal.apply(&many, NOW).expect_err("too many");
    assert!(error.to_string().contains("CHANGES_MAX = 100000"), "{error}");
    assert_eq!(state(&journal, seq), (TaskState::Running, 1), "nothing was changed");
    let late: Vec<_> = (0..=EVIDENCE_MAX).map(|_| commit(seq, 9, b"late")).collect();
    journal.apply(&late, NOW).expect("applies");
    assert_eq!(journal.stats().evidence_dropped, 1);
    assert_eq!(ATTEMPTS_MAX, 65_535);
}

#[test]
fn what_was_running_is_told_at_the_next_opening() {
    let dir = dir();
    let mut journal = open_sound(dir.path());
    for number in 1..=3 {
        submit(&mut journal, task("p", number));
    }
    one(&mut journal, begin(2, 1));
    drop(journal);
    let (journal, report) = open(dir.path());
    let told: Vec<_> =
        report.interrupted.iter().map(|task| (task.id.seq, task.attempt, task.attempts_max)).collect();
    assert_eq!(told, [(2, 1, 3)]);
    assert_eq!(state(&journal, 2), (TaskState::Running, 1), "what becomes of it is the driver's to say");
}

#[test]
fn one_process_has_it_at_a_time() {
    let dir = dir();
    let journal = open_sound(dir.path());
    // In another process, since locks belong to processes: SQLite's own shell would do, this test binary is at hand.
    let child = std::process::Command::new(std::env::current_exe().expect("a path"))
        .args(["--ignored", "--exact", "--nocapture", "journal::crash::child_that_opens"])
        .env(super::crash::DIR_VARIABLE, dir.path())
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(said.contains("another process has the task journal"), "{said}");
    drop(journal);
    open_sound(dir.path());
}
