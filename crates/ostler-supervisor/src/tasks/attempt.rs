//! How an attempt begins and ends, in the journal and in the queue.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use ostler_domain::event::Happening;
use ostler_domain::task::queue::{Event, How};
use ostler_domain::task::retry::RetrySpec;
use ostler_domain::task::{Lane, ProjectName, TaskId};
use ostler_store::journal::{Change, Id, Journal, Outcome, Refusal, TaskRecord, TaskState};
use ostler_worker::protocol::{ErrorKind, TaskError as Failure};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::clerk::{self, Answer, ClerkError};
use super::desk::Desk;
use super::follow::TaskNews;
use super::shelf::READ;
use super::{TaskError, Tasks};
use crate::clock;
use crate::session::Busy;

/// Between two tries to write down how an attempt ended, while the journal cannot be written.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// What is kept of a task in memory takes so much beside its payload, in bytes.
const KEPT_BYTES: usize = 300;

/// Tasks that are buried together when their deadlines have passed.
const EXPIRED: usize = 1000;

/// What the journal keeps of a task for its worker, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    /// What it is about.
    pub(super) payload: Box<RawValue>,
    /// How long an attempt may take, in milliseconds.
    pub(super) timeout_ms: u64,
    /// Bytes of memory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) memory: Option<u64>,
    /// Bytes of its result.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) output: Option<u64>,
}

/// What of a task's record an attempt needs.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) id: Id,
    pub(super) kind: Arc<str>,
    pub(super) lane: Lane,
    pub(super) project: ProjectName,
    pub(super) principal: Arc<str>,
}

/// What begins a task, kept in memory from its submission where there is room.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) head: Head,
    pub(super) stored: Stored,
}

impl Kept {
    /// About what it takes, in bytes.
    pub(super) fn size(&self) -> usize {
        self.stored.payload.get().len() + KEPT_BYTES
    }
}

/// An attempt that may begin.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) record: Head,
    pub(super) stored: Stored,
    pub(super) attempt: u32,
    /// Where the journal has not said yet that it begins.
    pub(super) begun: Option<Begun>,
    /// The session that the task belongs to shows it as one that runs.
    _busy: Option<Busy>,
}

impl Job {
    fn new(tasks: &Tasks, Kept { head, stored }: Kept, attempt: u32, begun: Option<Begun>) -> Self {
        let session = tasks.session_of(head.id.seq);
        let busy = session.map(|session| session.begin_task(&TaskId::from(head.id).to_string()));
        Self { record: head, stored, attempt, begun, _busy: busy }
    }
}

/// The journal's word that an attempt has begun, which need not have come yet.
#[derive(Debug)]
pub(super) struct Begun {
    worker: String,
    answer: Answer<Outcome>,
}

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// With this result, JSON.
    Success(Bytes),
    Failure(Failure),
}

impl Ending {
    /// One that its worker did not tell.
    pub(super) fn failed(kind: ErrorKind, message: impl Into<String>, retry: bool) -> Self {
        Self::Failure(Failure { kind, message: message.into(), trace: None, detail: None, retry })
    }
}

/// What came of a task that is to be begun.
enum Found {
    Task(Kept),
    /// Why it can never begin.
    Broken(ErrorKind, String),
}

/// Reads what was not kept.
fn find(journal: &Journal, seq: u64) -> Found {
    let broken = |why: String| Found::Broken(ErrorKind::Failed, why);
    let record = match journal.task(seq) {
        Ok(Some(record)) => record,
        Ok(None) => return broken("its record is gone".to_owned()),
        Err(error) => return broken(error.to_string()),
    };
    let payload = match journal.payload(&record) {
        Ok(payload) => payload,
        Err(error) => return broken(error.to_string()),
    };
    let (lane, project) = match (record.lane.parse::<Lane>(), record.project.parse::<ProjectName>()) {
        (Ok(lane), Ok(project)) => (lane, project),
        (Err(error), _) => return broken(error.to_string()),
        (_, Err(error)) => return broken(error.to_string()),
    };
    let TaskRecord { id, kind, principal, .. } = record;
    let head = Head { id, kind: kind.into(), lane, project, principal: principal.into() };
    match serde_json::from_slice(&payload) {
        Ok(stored) => Found::Task(Kept { head, stored }),
        Err(error) => Found::Broken(ErrorKind::Invalid, error.to_string()),
    }
}

/// Reads a task that is not at hand, and those that follow it: a long queue is read in parts, not task by task.
async fn read(tasks: &Arc<Tasks>, seq: u64) -> Option<Kept> {
    let following = {
        let mut desk = tasks.desk();
        let Desk { shelf, queue, .. } = &mut *desk;
        shelf.ask_with(queue, seq)
    };
    let asked = following.clone();
    let looked = tasks.clerk.look(move |journal| {
        let own = find(journal, seq);
        let mut bytes = 0;
        let mut others = Vec::with_capacity(following.len());
        for seq in following {
            if bytes >= READ {
                break;
            }
            // What cannot be read is told when it begins.
            if let Found::Task(kept) = find(journal, seq) {
                bytes += kept.size();
                others.push((seq, kept));
            }
        }
        Ok((own, others))
    });
    let (own, others) = looked.await.ok().unzip();
    let mut desk = tasks.desk();
    let Desk { shelf, queue, .. } = &mut *desk;
    shelf.put_read(queue, &asked, others.unwrap_or_default());
    match own {
        Some(Found::Task(kept)) => Some(kept),
        _ => None,
    }
}

/// Has it written down that an attempt begins, and gives what it is at once where that is at hand: the journal has the
/// beginning before the end, whenever that is. With the daemon nothing is lost by it but the count of an attempt.
pub(super) async fn begin_at_once(tasks: &Arc<Tasks>, seq: u64, attempt: u32, worker: &str) -> Option<Job> {
    let at_hand = tasks.desk().shelf.take(seq);
    let kept = match at_hand {
        Some(kept) => Some(kept),
        None => read(tasks, seq).await,
    };
    // Also what is broken, which is said once it has begun.
    let Some(kept) = kept else { return begin(tasks, seq, attempt, worker).await };
    let change = Change::Begin { seq, attempt, worker: worker.to_owned() };
    let told = Arc::clone(tasks);
    let answer = tasks.clerk.ask(vec![change], move |_, outcomes| {
        told.has_begun(seq);
        clerk::only(outcomes)
    });
    match answer.await {
        Ok(answer) => {
            tasks.follow_of(seq).say(TaskNews::Began(attempt));
            let begun = Some(Begun { worker: worker.to_owned(), answer });
            Some(Job::new(tasks, kept, attempt, begun))
        }
        Err(error) => {
            put_off(tasks, seq, attempt, &error);
            None
        }
    }
}

/// Writes down that an attempt begins, and gives what it is then. `None` where it is not to begin: the queue knows then.
pub(super) async fn begin(tasks: &Arc<Tasks>, seq: u64, attempt: u32, worker: &str) -> Option<Job> {
    let kept = tasks.desk().shelf.take(seq);
    let change = Change::Begin { seq, attempt, worker: worker.to_owned() };
    let begun = tasks.clerk.change_then(change, move |journal, outcome| match outcome {
        Outcome::Done { .. } => Ok(kept.map_or_else(|| find(journal, seq), Found::Task)),
        other => Err(other),
    });
    let found = match begun.await {
        Ok(found) => found,
        Err(error) => {
            put_off(tasks, seq, attempt, &error);
            return None;
        }
    };
    tasks.has_begun(seq);
    match found {
        Ok(Found::Task(kept)) => {
            tasks.follow_of(seq).say(TaskNews::Began(attempt));
            Some(Job::new(tasks, kept, attempt, None))
        }
        Ok(Found::Broken(kind, why)) => {
            end(tasks, seq, attempt, None, Ending::failed(kind, why, false)).await;
            None
        }
        Err(why) if is_begun(&why, attempt) => {
            // The journal wrote it, and said then that it could not.
            let why = "the journal could not be written when it began";
            end(tasks, seq, attempt, None, Ending::failed(ErrorKind::Failed, why, true)).await;
            None
        }
        Err(why) => {
            refused(tasks, seq, attempt, why).await;
            None
        }
    }
}

/// Whether the journal has an attempt as one that runs.
fn is_begun(outcome: &Outcome, number: u32) -> bool {
    match outcome {
        Outcome::Done { .. } => true,
        Outcome::Refused(Refusal::State { state: TaskState::Running, attempt }) => *attempt == number,
        _ => false,
    }
}

/// An attempt does not begin.
async fn refused(tasks: &Arc<Tasks>, seq: u64, attempt: u32, why: Outcome) {
    match why {
        // It was cancelled in this moment.
        Outcome::Refused(Refusal::State { state, .. }) if state.has_ended() => {}
        Outcome::Refused(Refusal::NoTask(_)) => {}
        other => {
            let why = match other {
                Outcome::Refused(why) => why.to_string(),
                other => format!("{other:?}"),
            };
            let bury = Change::Bury { seq, attempt: None, why: format!("{}: {why}", ErrorKind::Failed) };
            write(tasks, bury).await;
            tasks.ended(seq, None);
        }
    }
    tasks.over(seq, attempt, How::Over);
}

/// What the journal knows of the beginning of an attempt that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Beginning {
    Known,
    /// It could not be written when it was to be, and has been now.
    OnlyNow,
    /// It did not begin, and the queue knows.
    Never,
}

/// Waits for the journal's word that an attempt has begun.
async fn has_begun(tasks: &Arc<Tasks>, seq: u64, attempt: u32, begun: Option<Begun>) -> Beginning {
    let Some(Begun { worker, answer }) = begun else { return Beginning::Known };
    let (outcome, beginning) = match answer.await {
        Ok(Ok(outcome)) => (Some(outcome), Beginning::Known),
        Ok(Err(ClerkError::Journal(_))) => {
            (write(tasks, Change::Begin { seq, attempt, worker }).await, Beginning::OnlyNow)
        }
        Ok(Err(ClerkError::Closed)) | Err(_) => (None, Beginning::Never),
    };
    match outcome {
        Some(outcome) if is_begun(&outcome, attempt) => beginning,
        Some(outcome) => {
            refused(tasks, seq, attempt, outcome).await;
            Beginning::Never
        }
        None => {
            tasks.over(seq, attempt, How::Over);
            Beginning::Never
        }
    }
}

/// The journal could not say that an attempt begins, so it does not, and its number is used by the next.
fn put_off(tasks: &Arc<Tasks>, seq: u64, attempt: u32, error: &ClerkError) {
    tracing::warn!(seq, %error, "an attempt was put off");
    tasks.core.events.count("tasks put off by the journal");
    tasks.has_begun(seq);
    let ready = tasks.now().after(WRITE_AGAIN);
    tasks.over(seq, attempt, How::NotBegun { ready });
}

/// An attempt was given to a worker that was gone: it never began.
pub(super) fn lost(tasks: &Arc<Tasks>, seq: u64, attempt: u32) {
    tasks.has_begun(seq);
    tasks.over(seq, attempt, How::NotBegun { ready: tasks.now() });
}

/// Writes something down, however often that has to be tried; none once the daemon ends.
async fn write(tasks: &Tasks, change: Change) -> Option<Outcome> {
    write_all(tasks, vec![change]).await.and_then(|mut outcomes| outcomes.pop())
}

/// The same of several.
pub(super) async fn write_all(tasks: &Tasks, changes: Vec<Change>) -> Option<Vec<Outcome>> {
    loop {
        match tasks.clerk.changes(changes.clone()).await {
            Ok(outcomes) => return Some(outcomes),
            Err(ClerkError::Closed) => return None,
            Err(ClerkError::Journal(error)) => {
                tracing::error!(%error, "what became of tasks cannot be written down; trying again");
                tasks.core.events.count("task journal errors");
                tokio::time::sleep(WRITE_AGAIN).await;
            }
        }
    }
}

/// Writes down how an attempt ended, and goes on from there. Returns when that is on disk.
pub(super) async fn end(tasks: &Arc<Tasks>, seq: u64, attempt: u32, begun: Option<Begun>, ending: Ending) {
    let (mut change, mut early) = match ending {
        Ending::Success(result) => {
            let change = Change::Commit { seq, attempt, result };
            // The journal has the beginning before it: both are in one group where the task was quick.
            let early = tasks.clerk.ask(vec![change.clone()], |_, outcomes| clerk::only(outcomes)).await.ok();
            match has_begun(tasks, seq, attempt, begun).await {
                Beginning::Known => (change, early),
                // Then the journal had the end first, and did not take it.
                Beginning::OnlyNow => (change, None),
                Beginning::Never => {
                    // The journal has both after all, and had said of the first that it could not be written.
                    if matches!(said(early).await, Some(Outcome::Done { .. })) {
                        told(tasks, seq, attempt, change);
                    }
                    return;
                }
            }
        }
        Ending::Failure(failure) => {
            if has_begun(tasks, seq, attempt, begun).await == Beginning::Never {
                return;
            }
            (next_step(tasks, seq, attempt, &failure).await, None)
        }
    };
    let how = loop {
        let outcome = match said(early.take()).await {
            Some(outcome) => Some(outcome),
            None => write(tasks, change.clone()).await,
        };
        match outcome {
            Some(Outcome::Done { .. }) => break told(tasks, seq, attempt, change),
            // The journal had said that it could not be written, and it was: nobody else commits this attempt.
            Some(Outcome::Late { state: TaskState::Succeeded, attempt: own }) if own == attempt => {
                break told(tasks, seq, attempt, change);
            }
            Some(Outcome::Refused(why @ Refusal::TooLong { .. }))
                if matches!(change, Change::Commit { .. }) =>
            {
                let why = format!("{}: its result cannot be kept: {why}", ErrorKind::Output);
                change = Change::Bury { seq, attempt: Some(attempt), why };
            }
            // It came late: the task was cancelled, and whoever did that has said so.
            _ => break How::Over,
        }
    };
    tasks.over(seq, attempt, how);
}

/// What the journal said of a change that was asked for; none where it could not be made.
async fn said(answer: Option<Answer<Outcome>>) -> Option<Outcome> {
    answer?.await.ok()?.ok()
}

/// Says what the journal has: who waits for the task finds it so.
fn told(tasks: &Tasks, seq: u64, attempt: u32, change: Change) -> How {
    match change {
        Change::Retry { not_before_unix_ms, why, .. } => {
            tasks.retried(seq, attempt, why);
            return How::Retry { ready: tasks.moment(not_before_unix_ms) };
        }
        Change::Bury { why, .. } => failed(tasks, seq, why),
        Change::Commit { result, .. } => {
            tasks.core.events.pass(&tasks.shown(seq), &Happening::TaskComplete);
            tasks.ended(seq, Some(result));
            return How::Over;
        }
        _ => {}
    }
    tasks.ended(seq, None);
    How::Over
}

/// Tells of a dead letter. There may be very many, and all are listed.
fn failed(tasks: &Tasks, seq: u64, why: String) {
    tasks.core.events.record_seldom("tasks", &tasks.shown(seq), Happening::TaskError { why });
}

/// Whether a failed attempt is followed by another.
async fn next_step(tasks: &Arc<Tasks>, seq: u64, attempt: u32, failure: &Failure) -> Change {
    let why = format!("{}: {}", failure.kind, failure.message);
    let record = tasks.clerk.look(move |journal| journal.task(seq)).await;
    let retry = match record {
        // What the end of the daemon interrupted is no failure of its own.
        Ok(Some(_)) if failure.retry && tasks.closing.load(Ordering::Acquire) => tasks.retry().pause(seq, 0),
        Ok(Some(record)) if failure.retry => {
            let spec = RetrySpec { attempts: record.attempts_max, ..tasks.retry() };
            spec.pause(seq, attempt.saturating_sub(record.base))
        }
        // What cannot be looked up is not held against the task.
        Err(_) if failure.retry => tasks.retry().pause(seq, 0),
        _ => None,
    };
    match retry {
        Some(pause) => {
            let pause = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            let not_before_unix_ms = clock::unix_ms().saturating_add(pause);
            Change::Retry { seq, attempt, why, not_before_unix_ms }
        }
        None => Change::Bury { seq, attempt: Some(attempt), why },
    }
}

/// Tasks that had not begun by their deadlines, until there are no more of them.
pub(super) async fn expire(tasks: Arc<Tasks>) {
    let why = "timeout: its deadline passed before it could begin";
    loop {
        let taken = tasks.desk().take_expired(EXPIRED);
        let Some(seqs) = taken else { return };
        let bury = |seq: &u64| Change::Bury { seq: *seq, attempt: None, why: why.to_owned() };
        let changes: Vec<Change> = seqs.iter().map(bury).collect();
        let Some(outcomes) = write_all(&tasks, changes).await else { return };
        for (seq, outcome) in seqs.into_iter().zip(outcomes) {
            // One that was cancelled meanwhile has been told so.
            if matches!(outcome, Outcome::Done { .. }) {
                failed(&tasks, seq, why.to_owned());
                tasks.ended(seq, None);
            }
        }
    }
}

impl Tasks {
    /// Nothing runs of an attempt any more.
    fn over(self: &Arc<Self>, seq: u64, attempt: u32, how: How) {
        self.tell(Event::Ended { seq, attempt, how });
    }
}

impl From<ClerkError> for TaskError {
    fn from(error: ClerkError) -> Self {
        Self::Journal(error.to_string())
    }
}
