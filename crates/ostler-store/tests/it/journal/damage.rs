//! A journal that is truncated or has a wrong byte never shows anything wrong, and says what it lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ostler_store::journal::{
    Change, HEAD_NAME, JOURNAL_NAME, Journal, JournalError, NewTask, OpenReport, Outcome, TaskFilter,
    TaskRecord, WAL_NAME,
};
use tempfile::TempDir;

use super::{NOW, begin, commit, one, open, open_sound, quick, task};

/// In memory, where there is such a place: the tests copy much.
fn dir() -> TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).expect("a directory") } else { crate::dir() }
}

/// Everything that was ever true of each task, oldest first.
type History = BTreeMap<u64, Vec<Seen>>;

#[derive(Clone, PartialEq, Eq, Debug)]
struct Seen {
    record: TaskRecord,
    payload: Vec<u8>,
    result: Option<Vec<u8>>,
}

fn see(journal: &Journal, record: TaskRecord) -> Result<Seen, JournalError> {
    let payload = journal.payload(&record)?;
    let result = journal.result(&record)?;
    Ok(Seen { record, payload, result })
}

fn note(journal: &Journal, history: &mut History, seq: u64) {
    let record = journal.task(seq).expect("reads").expect("is there");
    history.entry(seq).or_default().push(see(journal, record).expect("sound"));
}

/// A small journal with everything in it. A part is folded in, the rest is in the log, whose first frames are of a round
/// before (as it is in a journal that has run for a while).
fn make(dir: &Path) -> History {
    let mut history = History::new();
    let mut journal = open_sound(dir);
    for round in 0..6_u64 {
        let submits: Vec<_> = (0..25)
            .map(|n| {
                let number = round * 25 + n;
                let key = number.is_multiple_of(3).then(|| format!("key-{number}"));
                // Some go over several pages.
                let payload =
                    format!("{number}:{}", "p".repeat(if number.is_multiple_of(40) { 9000 } else { 60 }));
                Change::Submit(NewTask {
                    key,
                    payload: payload.into_bytes(),
                    ..task(&format!("p{}", n % 3), number)
                })
            })
            .collect();
        journal.apply(&submits, NOW + round).expect("applies");
        (round * 25 + 1..=round * 25 + 25).for_each(|seq| note(&journal, &mut history, seq));
        for seq in (round * 25 + 1)..=(round * 25 + 22) {
            let retry = Change::Retry { seq, attempt: 1, why: "hung".to_owned(), not_before_unix_ms: NOW };
            let life = match seq % 6 {
                0 => vec![Change::Bury { seq, attempt: Some(1), why: "failed".to_owned() }],
                1 => vec![
                    retry,
                    begin(seq, 2),
                    commit(seq, 2, format!("two-{seq}").as_bytes()),
                    commit(seq, 1, b"late"),
                ],
                2 => vec![],
                // A few are files.
                _ => {
                    let len = if seq % 20 == 3 { 3000 } else { 150 };
                    vec![commit(seq, 1, format!("{seq}:{}", "r".repeat(len)).as_bytes())]
                }
            };
            for change in std::iter::once(begin(seq, 1)).chain(life) {
                one(&mut journal, change);
                note(&journal, &mut history, seq);
            }
        }
        if round == 2 || round == 4 {
            journal.checkpoint(1).expect("folds in");
        }
    }
    history
}

fn copy(from: &Path, to: &Path) {
    for name in [JOURNAL_NAME, WAL_NAME, HEAD_NAME] {
        fs::copy(from.join(name), to.join(name)).expect("copies");
    }
    fs::create_dir_all(to.join("results")).expect("makes");
    for entry in fs::read_dir(from.join("results")).expect("lists") {
        let entry = entry.expect("reads");
        fs::copy(entry.path(), to.join("results").join(entry.file_name())).expect("copies");
    }
}

/// How opening a damaged journal may end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum End {
    Whole,
    Bodies,
    Repaired,
    Refused,
}

/// Opens, and compares each row with what was written.
fn examine(dir: &Path, history: &History, what: &str) -> End {
    let (mut journal, report) = match Journal::open(dir, quick(), NOW) {
        Ok(opened) => opened,
        Err(error) => {
            let words = error.to_string();
            eprintln!("{what}: {words}");
            assert!(words.contains(JOURNAL_NAME), "{what}: names no file: {words}");
            assert!(
                words.contains("begin with an empty one") || words.contains("move it aside"),
                "{what}: no way out: {words}"
            );
            return End::Refused;
        }
    };
    let told = told(&report);
    let (mut missing, mut older) = (0, 0);
    for (seq, versions) in history {
        let last = versions.last().expect("one at least");
        let Some(record) = journal.task(*seq).expect("an opened journal has no damaged record") else {
            missing += 1;
            continue;
        };
        let version = versions.iter().rposition(|version| version.record == record);
        let version = &versions[version.unwrap_or_else(|| panic!("{what}: {record:?} was never written"))];
        older += u64::from(version != last);
        match see(&journal, record) {
            Ok(seen) => assert_eq!(&seen, version, "{what}"),
            Err(JournalError::TaskDamaged { seq, what: body }) => {
                assert!(
                    told.contains(&(seq, body)),
                    "{what}: the damaged {body} of {seq} was not told: {report:?}"
                );
            }
            Err(other) => panic!("{what}: {other}"),
        }
    }
    keys_find_their_tasks(&mut journal, what);
    let shown = journal.counts().iter().sum::<u64>();
    assert_eq!(shown, history.len() as u64 - missing, "{what}: a task that never was");
    assert_eq!(
        journal
            .check()
            .expect("checks")
            .problems
            .iter()
            .filter(|p| p.to_string().contains("journal"))
            .count(),
        0
    );
    let Some(loss) = &report.loss else {
        assert_eq!((missing, older), (0, 0), "{what}: lost in silence");
        return if report.damaged.is_empty() { End::Whole } else { End::Bodies };
    };
    let (tasks, changes) = (loss.tasks.expect("the head is whole"), loss.changes);
    assert!(missing <= tasks, "{what}: {missing} are missing and {tasks} were told: {loss}");
    if let Some(changes) = changes {
        assert!(older <= changes, "{what}: {older} are older and {changes} changes were told: {loss}");
    }
    assert!(loss.kept.join(JOURNAL_NAME).exists() && loss.kept.join("report.txt").exists(), "{what}");
    drop(journal);
    let (_, again) = open(dir);
    assert_eq!((again.loss, again.notes), (None, vec![]), "{what}: it is whole now");
    End::Repaired
}

/// A key that is not found would let a task be accepted twice.
fn keys_find_their_tasks(journal: &mut Journal, what: &str) {
    let tasks = journal.list(&TaskFilter::default(), None, 1000).expect("lists").tasks;
    let (mut again, mut expected) = (Vec::new(), Vec::new());
    for record in tasks.into_iter().filter(|record| record.key.is_some()) {
        let Ok(payload) = journal.payload(&record) else { continue };
        let number = record.key.as_ref().and_then(|key| key.strip_prefix("key-")).expect("made so");
        let task = task(&record.project, number.parse().expect("a number"));
        again.push(Change::Submit(NewTask { key: record.key.clone(), payload, ..task }));
        expected.push(Outcome::Earlier(record.id));
    }
    assert_eq!(journal.apply(&again, NOW).expect("applies"), expected, "{what}");
}

fn told(report: &OpenReport) -> BTreeSet<(u64, &'static str)> {
    let lost = report.loss.iter().flat_map(|loss| &loss.bodies);
    report.damaged.iter().chain(lost).copied().collect()
}

/// Numbers that look random and are the same each time.
fn numbers(mut seed: u64) -> impl FnMut(u64) -> u64 {
    move |below| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    }
}

/// Cuts a file, or changes the byte there.
fn damage(dir: &Path, name: &str, offset: u64, flip: Option<u8>) {
    let file = OpenOptions::new().read(true).write(true).open(dir.join(name)).expect("opens");
    match flip {
        None => file.set_len(offset).expect("cuts"),
        Some(bits) => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset).expect("reads");
            byte[0] ^= bits;
            file.write_all_at(&byte, offset).expect("writes");
        }
    }
}

/// What may be damaged: the journal and its log much more often than what is beside them.
fn place_of_damage(dir: &Path, results: &[String], number: &mut impl FnMut(u64) -> u64) -> (String, u64) {
    let name = match number(10) {
        0..4 => JOURNAL_NAME.to_owned(),
        4..8 => WAL_NAME.to_owned(),
        8 => results[usize::try_from(number(results.len() as u64)).expect("small")].clone(),
        _ => HEAD_NAME.to_owned(),
    };
    let len = fs::metadata(dir.join(&name)).expect("is there").len();
    (name, number(len))
}

/// At each of so many offsets: a byte is another one, and the file ends there.
fn at_random_offsets(base: &Path, history: &History, seed: u64, count: u64) -> BTreeMap<End, u64> {
    let results = fs::read_dir(base.join("results")).expect("lists").map(|entry| {
        let name = entry.expect("reads").file_name();
        format!("results/{}", name.to_str().expect("ours"))
    });
    let mut results: Vec<String> = results.collect();
    results.sort();
    assert!(results.len() > 3, "{results:?}");
    let mut number = numbers(seed);
    let mut ends = BTreeMap::new();
    for round in 0..count {
        let (name, offset) = place_of_damage(base, &results, &mut number);
        let bits = u8::try_from(1 + number(255)).expect("small");
        for flip in [Some(bits), None] {
            let place = dir();
            copy(base, place.path());
            damage(place.path(), &name, offset, flip);
            let what = format!("seed {seed} round {round}: {name} at {offset}, {flip:?}");
            *ends.entry(examine(place.path(), history, &what)).or_default() += 1;
        }
    }
    ends
}

/// Done-when 2 of the pool: at each of 1,000 offsets truncated, and with a wrong byte; in the journal, its log, its head and the
/// files of results.
#[test]
fn never_a_wrong_result_at_a_thousand_random_offsets() {
    let base = dir();
    let history = make(base.path());
    let ends = std::thread::scope(|scope| {
        let (base, history) = (base.path(), &history);
        let parts = [1, 2, 3, 4].map(|seed| scope.spawn(move || at_random_offsets(base, history, seed, 250)));
        let mut ends: BTreeMap<End, u64> = BTreeMap::new();
        for (end, count) in parts.into_iter().flat_map(|part| part.join().expect("no offset fails")) {
            *ends.entry(end).or_default() += count;
        }
        ends
    });
    eprintln!("{ends:?}");
    assert_eq!(ends.values().sum::<u64>(), 2000);
    for end in [End::Whole, End::Bodies, End::Repaired] {
        assert!(ends.contains_key(&end), "{end:?} did not happen: {ends:?}");
    }
}

/// The end of a log that was cut between two transactions looks as if nothing had come after it.
#[test]
fn a_log_cut_between_transactions_is_noticed() {
    let base = dir();
    let mut journal = open_sound(base.path());
    let mut lens = Vec::new();
    for number in 0..6 {
        super::submit(&mut journal, task("p", number));
        lens.push(fs::metadata(base.path().join(WAL_NAME)).expect("is there").len());
    }
    drop(journal);
    let place = dir();
    copy(base.path(), place.path());
    damage(place.path(), WAL_NAME, lens[3], None);
    let (mut journal, report) = open(place.path());
    let loss = report.loss.expect("it is noticed");
    assert_eq!((loss.changes, loss.tasks, loss.kept_tasks), (Some(2), Some(2), 4));
    assert!(loss.to_string().contains("lost: 2 of the last changes, 2 tasks at most"), "{loss}");
    assert_eq!(
        super::submit(&mut journal, task("p", 9)).seq,
        7,
        "numbers that were given are not given again"
    );
    drop(journal);

    // Without the head only the log itself can tell, and at this place it cannot.
    copy(base.path(), place.path());
    fs::remove_file(place.path().join(HEAD_NAME)).expect("removes");
    damage(place.path(), WAL_NAME, lens[1] + 50, Some(1));
    let (_, report) = open(place.path());
    assert!(report.notes.is_empty() && report.loss.is_some_and(|loss| loss.changes.is_none()));
}

#[test]
fn a_journal_that_is_gone_is_refused() {
    for (name, cut) in [(JOURNAL_NAME, true), (JOURNAL_NAME, false)] {
        let place = dir();
        drop(open_sound(place.path()));
        if cut {
            damage(place.path(), name, 0, None);
        } else {
            fs::remove_file(place.path().join(name)).expect("removes");
        }
        let error = Journal::open(place.path(), quick(), NOW).expect_err("it was there");
        assert!(matches!(error, JournalError::Gone { .. }), "{error}");
        assert!(error.to_string().contains(HEAD_NAME), "{error}");
        fs::remove_file(place.path().join(HEAD_NAME)).expect("removes");
        fs::remove_file(place.path().join(WAL_NAME)).expect("removes");
        open_sound(place.path());
    }
}

/// A repair that was interrupted is brought to its end, or begun again.
#[test]
fn a_repair_may_be_interrupted_anywhere() {
    let base = dir();
    let history = make(base.path());
    damage(base.path(), JOURNAL_NAME, 28, Some(8));
    damage(base.path(), WAL_NAME, 40_000, None);
    let done = dir();
    copy(base.path(), done.path());
    assert_eq!(examine(done.path(), &history, "whole"), End::Repaired);
    // As if it had been killed after the copies, and after the new journal and its mark were written.
    let work = |place: &Path| {
        let work = place.join("tasks.repair");
        fs::create_dir(&work).expect("makes");
        work
    };
    let place = dir();
    copy(base.path(), place.path());
    fs::write(work(place.path()).join("fresh.db"), "half").expect("writes");
    assert_eq!(examine(place.path(), &history, "half"), End::Repaired);
    for moved in 0..3 {
        let place = dir();
        copy(base.path(), place.path());
        let work = work(place.path());
        fs::copy(done.path().join(JOURNAL_NAME), work.join("fresh.db")).expect("copies");
        fs::write(work.join("report.txt"), "lost").expect("writes");
        fs::write(work.join("ready"), "tasks.damaged-x").expect("writes");
        let kept = place.path().join("tasks.damaged-x");
        fs::create_dir(&kept).expect("makes");
        for name in [WAL_NAME, JOURNAL_NAME].iter().take(moved) {
            fs::rename(place.path().join(name), kept.join(name)).expect("moves");
        }
        let _ = Journal::open(place.path(), quick(), NOW);
        assert!(!place.path().join("tasks.repair").exists());
        for name in [WAL_NAME, JOURNAL_NAME, HEAD_NAME, "report.txt"] {
            assert!(kept.join(name).exists(), "{moved} moved: {name}");
        }
    }
}

#[test]
fn so_many_damaged_journals_are_kept() {
    let place = dir();
    drop(open_sound(place.path()));
    for number in 0..5 {
        let mut journal = open_sound(place.path());
        super::submit(&mut journal, task("p", number));
        super::submit(&mut journal, task("p", number));
        drop(journal);
        let len = fs::metadata(place.path().join(WAL_NAME)).expect("is there").len();
        damage(place.path(), WAL_NAME, len - 100, Some(2));
        assert!(open(place.path()).1.loss.is_some());
    }
    let kept = fs::read_dir(place.path()).expect("lists").filter(|entry| {
        entry.as_ref().expect("reads").file_name().to_string_lossy().starts_with("tasks.damaged-")
    });
    assert_eq!(kept.count(), ostler_store::journal::DAMAGED_KEPT);
}
