//! Random changes do to the journal what they do to a plain model in memory, whenever it is opened anew.

use std::collections::BTreeMap;

use ostler_store::journal::{
    Change, Journal, JournalOptions, NewBatch, NewTask, Outcome, Refusal, TaskFilter, TaskState,
};
use proptest::prelude::*;

use super::{NOW, open, quick, task};
use crate::dir;

#[derive(Clone, PartialEq, Eq, Debug)]
struct Model {
    task: NewTask,
    batch: Option<u64>,
    state: TaskState,
    attempt: u32,
    base: u32,
    ended_ms: u64,
    result: Option<Vec<u8>>,
}

#[derive(Default)]
struct World {
    tasks: BTreeMap<u64, Model>,
    last: u64,
    batches: u64,
    late: BTreeMap<u64, usize>,
}

#[derive(Clone, Debug)]
enum Step {
    Group(Vec<Change>),
    Reopen,
    Close,
    Fold,
    Prune(u64),
}

impl World {
    fn submit(&mut self, new: &NewTask, batch: Option<u64>) -> Expected {
        let same = |model: &&mut Model| {
            model.task.key.is_some() && (&model.task.project, &model.task.key) == (&new.project, &new.key)
        };
        if let Some((seq, model)) = self.tasks.iter_mut().find(|(_, model)| same(model)) {
            return if model.task.payload == new.payload {
                Expected::Earlier(*seq)
            } else {
                Expected::KeyUsed(*seq)
            };
        }
        self.last += 1;
        let model = Model {
            task: new.clone(),
            batch,
            state: TaskState::Queued,
            attempt: 0,
            base: 0,
            ended_ms: 0,
            result: None,
        };
        self.tasks.insert(self.last, model);
        Expected::Accepted(self.last)
    }

    /// What a change must come to.
    fn make(&mut self, change: &Change, now: u64) -> Expected {
        let seq = match change {
            Change::Submit(new) => return self.submit(new, None),
            Change::SubmitBatch { tasks, .. } => {
                let before = (self.tasks.clone(), self.last);
                let batch = self.batches + 1;
                let made: Vec<_> = tasks.iter().map(|new| self.submit(new, Some(batch))).collect();
                if let Some(at) = made.iter().position(|one| matches!(one, Expected::KeyUsed(_))) {
                    (self.tasks, self.last) = before;
                    return Expected::InBatch(at);
                }
                self.batches = batch;
                return Expected::Batch(batch, made);
            }
            Change::Limit { .. } => return Expected::Noted,
            Change::Begin { seq, .. } | Change::Commit { seq, .. } | Change::Retry { seq, .. } => *seq,
            Change::Bury { seq, .. } | Change::Cancel { seq, .. } | Change::Revive { seq, .. } => *seq,
        };
        let Some(task) = self.tasks.get_mut(&seq) else { return Expected::NoTask };
        let was = task.state;
        let running = |attempt: u32| was == TaskState::Running && task.attempt == attempt;
        let to = match change {
            Change::Begin { attempt, .. } if was == TaskState::Queued && *attempt == task.attempt + 1 => {
                task.attempt += 1;
                TaskState::Running
            }
            Change::Commit { attempt, result, .. } => {
                if !running(*attempt) {
                    *self.late.entry(seq).or_default() += 1;
                    return Expected::Late(was);
                }
                task.result = Some(result.to_vec());
                TaskState::Succeeded
            }
            Change::Retry { attempt, .. } if running(*attempt) => TaskState::Queued,
            Change::Bury { attempt: Some(attempt), .. } if running(*attempt) => TaskState::Dead,
            Change::Bury { attempt: None, .. } if was == TaskState::Queued => TaskState::Dead,
            Change::Cancel { .. } if !was.has_ended() => TaskState::Cancelled,
            Change::Revive { .. } if matches!(was, TaskState::Dead | TaskState::Cancelled) => {
                task.base = task.attempt;
                TaskState::Queued
            }
            _ => return Expected::State(was),
        };
        task.state = to;
        task.ended_ms = if to.has_ended() { now } else { 0 };
        Expected::Done(was)
    }
}

#[derive(PartialEq, Eq, Debug)]
enum Expected {
    Accepted(u64),
    Earlier(u64),
    KeyUsed(u64),
    Batch(u64, Vec<Expected>),
    InBatch(usize),
    Done(TaskState),
    Late(TaskState),
    State(TaskState),
    NoTask,
    Noted,
}

fn plain(outcome: &Outcome) -> Expected {
    match outcome {
        Outcome::Accepted(id) => Expected::Accepted(id.seq),
        Outcome::Earlier(id) => Expected::Earlier(id.seq),
        Outcome::Batch { id, tasks, .. } => Expected::Batch(id.seq, tasks.iter().map(plain).collect()),
        Outcome::Done { was, .. } => Expected::Done(*was),
        Outcome::Late { state, .. } => Expected::Late(*state),
        Outcome::Noted => Expected::Noted,
        Outcome::Refused(Refusal::KeyUsed(id)) => Expected::KeyUsed(id.seq),
        Outcome::Refused(Refusal::State { state, .. }) => Expected::State(*state),
        Outcome::Refused(Refusal::NoTask(_)) => Expected::NoTask,
        Outcome::Refused(Refusal::InBatch { index, .. }) => Expected::InBatch(*index),
        Outcome::Refused(other) => panic!("{other}"),
    }
}

fn compare(journal: &Journal, world: &World) {
    let mut counts = [0; 5];
    let mut batches: BTreeMap<u64, [u64; 5]> = BTreeMap::new();
    let mut listed = Vec::new();
    for seq in 1..=world.last {
        let found = journal.task(seq).expect("reads");
        let Some(model) = world.tasks.get(&seq) else {
            assert_eq!(found, None);
            continue;
        };
        let found = found.expect("is there");
        counts[model.state as usize] += 1;
        if let Some(batch) = model.batch {
            batches.entry(batch).or_default()[model.state as usize] += 1;
        }
        listed.insert(0, seq);
        assert_eq!(
            (found.state, found.attempt, found.base),
            (model.state, model.attempt, model.base),
            "{seq}"
        );
        assert_eq!(
            (&found.project, &found.key, found.batch),
            (&model.task.project, &model.task.key, model.batch)
        );
        assert_eq!(journal.payload(&found).expect("reads"), model.task.payload);
        assert_eq!(journal.result(&found).expect("reads"), model.result);
        assert_eq!(journal.evidence(seq).expect("reads").len(), world.late.get(&seq).copied().unwrap_or(0));
    }
    assert_eq!(journal.counts(), counts);
    for status in journal.batches(None, 1000).expect("reads") {
        assert_eq!(status.counts, batches.get(&status.batch.id.seq).copied().unwrap_or_default());
    }
    let page = journal.list(&TaskFilter::default(), None, 10_000).expect("lists");
    assert_eq!(page.tasks.iter().map(|task| task.id.seq).collect::<Vec<_>>(), listed);
    let mut queued = 0;
    journal
        .queued(|task| queued += u64::from(world.tasks[&task.id.seq].state == TaskState::Queued))
        .expect("reads");
    assert_eq!(queued, counts[0]);
    assert_eq!(journal.check().expect("checks").problems, []);
}

fn new_task() -> impl Strategy<Value = NewTask> {
    (0..3_u64, prop::option::of(0..4_u8), 0..3_u64).prop_map(|(project, key, number)| NewTask {
        key: key.map(|key| key.to_string()),
        priority: 5,
        payload: number.to_string().into_bytes(),
        ..task(&format!("p{project}"), 0)
    })
}

fn change() -> impl Strategy<Value = Change> {
    let why = || "because".to_owned();
    // Few numbers, so that changes meet.
    let (seq, attempt) = (1..12_u64, 1..4_u32);
    prop_oneof![
        4 => new_task().prop_map(Change::Submit),
        1 => prop::collection::vec(new_task(), 0..4).prop_map(|tasks| Change::SubmitBatch { batch: NewBatch::default(), tasks }),
        8 => (seq.clone(), attempt.clone()).prop_map(|(seq, attempt)| super::begin(seq, attempt)),
        // Some results are files.
        6 => (seq.clone(), attempt.clone(), prop_oneof![0..20_usize, 190..230_usize])
            .prop_map(|(seq, attempt, len)| super::commit(seq, attempt, &vec![b'r'; len])),
        4 => (seq.clone(), attempt.clone())
            .prop_map(move |(seq, attempt)| Change::Retry { seq, attempt, why: why(), not_before_unix_ms: 0 }),
        3 => (seq.clone(), prop::option::of(attempt)).prop_map(move |(seq, attempt)| Change::Bury { seq, attempt, why: why() }),
        1 => seq.clone().prop_map(move |seq| Change::Cancel { seq, why: why() }),
        3 => seq.prop_map(|seq| Change::Revive { seq, not_before_unix_ms: 0, deadline_unix_ms: None }),
        1 => (0..3_u64).prop_map(|project| Change::Limit { project: format!("p{project}"), running: None }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => prop::collection::vec(change(), 1..12).prop_map(Step::Group),
        1 => Just(Step::Reopen),
        1 => Just(Step::Close),
        1 => Just(Step::Fold),
        1 => (0..40_u64).prop_map(Step::Prune),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_journal_is_as_its_model(steps in prop::collection::vec(step(), 1..40), in_memory in any::<bool>()) {
        let dir = dir();
        let options = || JournalOptions { keep: std::time::Duration::from_millis(20), ..quick() };
        let start = || Journal::open(dir.path(), options(), NOW).expect("opens");
        let mut world = World::default();
        let mut journal = if in_memory { Journal::in_memory(options()).expect("opens") } else { start().0 };
        for (at, step) in (0..).zip(steps) {
            let now = NOW + at;
            match step {
                Step::Group(changes) => {
                    let outcomes = journal.apply(&changes, now).expect("applies");
                    for (change, outcome) in changes.iter().zip(&outcomes) {
                        prop_assert_eq!(plain(outcome), world.make(change, now), "{:?}", change);
                    }
                }
                Step::Prune(after) => {
                    let pruned = journal.prune(now + after).expect("prunes");
                    let before = world.tasks.len();
                    world.tasks.retain(|_, task| !task.state.has_ended() || task.ended_ms >= now + after - 20);
                    prop_assert_eq!(pruned.tasks, (before - world.tasks.len()) as u64);
                }
                Step::Fold => drop(journal.checkpoint(1).expect("folds")),
                Step::Reopen | Step::Close if in_memory => {}
                Step::Reopen | Step::Close => {
                    if matches!(step, Step::Close) { journal.close().expect("closes") } else { drop(journal) }
                    let (again, report) = start();
                    prop_assert_eq!((report.loss, report.damaged, report.notes, report.orphans), (None, vec![], vec![], 0));
                    let running = world.tasks.iter().filter(|(_, task)| task.state == TaskState::Running);
                    let told: Vec<_> = report.interrupted.iter().map(|task| (task.id.seq, task.attempt)).collect();
                    prop_assert_eq!(told, running.map(|(seq, task)| (*seq, task.attempt)).collect::<Vec<_>>());
                    journal = again;
                }
            }
        }
        compare(&journal, &world);
        if !in_memory {
            drop(journal);
            compare(&open(dir.path()).0, &world);
        }
    }
}
