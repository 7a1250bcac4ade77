//! What is there to see of tasks, and what may be said to them.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ostler_domain::task::queue::{Event, Figures, Place, ProjectFigures, Queued};
use ostler_domain::task::worker;
use ostler_domain::task::{BatchId, Lane, Priority, ProjectName, TaskId};
use ostler_store::journal::{
    AttemptRecord, BatchStatus, Change, Counts, Evidence, Outcome, TaskFilter, TaskRecord, TaskState,
};
use ostler_worker::protocol::Progress;
use tokio::sync::broadcast;

use super::follow::{Expecting, Follow, TaskLogLine, TaskNews};
use super::parts::lane_of;
use super::{TaskError, Tasks, attempt, refusal};
use crate::wait::until;

/// Tasks that are cancelled in one group.
const TOGETHER: usize = 1000;
/// The longest that who cancels waits for the attempt to end.
const STOPPING: Duration = Duration::from_secs(10);

/// A task as it is to be seen.
#[derive(Clone, PartialEq, Debug)]
pub struct TaskView {
    /// What the journal has of it.
    pub record: TaskRecord,
    /// Its attempts before the last one.
    pub attempts: Vec<AttemptRecord>,
    /// Results that came late.
    pub evidence: Vec<Evidence>,
    /// How far the attempt is that runs.
    pub progress: Option<Progress>,
    /// Where it is in the queue, while it is there.
    pub place: Option<Place>,
}

/// What came of a task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Came {
    /// Its result as it was committed, JSON.
    Result(Bytes),
    /// It has none.
    Nothing {
        /// How it stands.
        state: TaskState,
        /// What went wrong last.
        why: Option<String>,
    },
}

/// A part of a list of tasks.
#[derive(Clone, PartialEq, Debug)]
pub struct TaskPage {
    /// The tasks, newest first.
    pub tasks: Vec<TaskRecord>,
    /// Go on below this number; there may be more.
    pub below: Option<u64>,
    /// Numbers of tasks whose records are damaged.
    pub damaged: Vec<u64>,
}

/// A batch and how far it is.
pub type BatchView = BatchStatus;

/// A lane.
#[derive(Clone, PartialEq, Debug)]
pub struct LaneView {
    /// Its name.
    pub name: String,
    /// Its workers; none where it needs none.
    pub workers: Option<worker::Figures>,
    /// Tasks that wait.
    pub queued: usize,
    /// Attempts that run.
    pub running: usize,
    /// What went wrong with its workers lately.
    pub trouble: Option<String>,
}

/// All of it in figures.
#[derive(Clone, PartialEq, Debug)]
pub struct PoolStats {
    /// The queue.
    pub queue: Figures,
    /// The lanes that anything was ever in.
    pub lanes: Vec<LaneView>,
    /// All tasks by state, in the order of [`ostler_store::journal::TaskState::ALL`].
    pub counts: Counts,
    /// How long the daemon has had them.
    pub uptime: Duration,
}

/// A project.
#[derive(Clone, PartialEq, Debug)]
pub struct ProjectView {
    /// Its name.
    pub name: String,
    /// How it stands.
    pub figures: ProjectFigures,
    /// Whether its limit was set by hand, and is not what the configuration says.
    pub is_set: bool,
}

/// Somebody who follows a task.
#[derive(Debug)]
pub struct Following {
    // The order matters: only a task that nobody listens to is let go.
    news: broadcast::Receiver<TaskNews>,
    _let_go: LetGo,
}

impl Following {
    /// What comes next. Cancel-safe.
    ///
    /// # Errors
    /// When some was missed.
    pub async fn next(&mut self) -> Result<TaskNews, broadcast::error::RecvError> {
        self.news.recv().await
    }

    /// What has come already, or how much of it was missed; `None` where nothing has.
    pub fn at_hand(&mut self) -> Option<Result<TaskNews, u64>> {
        match self.news.try_recv() {
            Ok(news) => Some(Ok(news)),
            Err(broadcast::error::TryRecvError::Lagged(missed)) => Some(Err(missed)),
            Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => None,
        }
    }
}

/// Somebody who waits for a task's end.
struct Awaiting {
    // The order matters, as above.
    end: Expecting,
    _let_go: LetGo,
}

/// What nobody listens to is let go when this is dropped.
#[derive(Debug)]
struct LetGo {
    tasks: Arc<Tasks>,
    seq: u64,
}

impl Drop for LetGo {
    fn drop(&mut self) {
        self.tasks.unfollow(self.seq);
    }
}

impl Tasks {
    /// A task.
    ///
    /// # Errors
    /// [`TaskError::Unknown`], and what the journal says.
    pub async fn get(&self, id: TaskId) -> Result<TaskView, TaskError> {
        let found = self.clerk.look(move |journal| {
            let Some(record) = journal.get(id.into())? else { return Ok(None) };
            Ok(Some((record, journal.attempts(id.seq)?, journal.evidence(id.seq)?)))
        });
        let Some((record, attempts, evidence)) = found.await? else { return Err(unknown(id)) };
        let desk = self.desk();
        let progress = desk.follows.get(&id.seq).and_then(|follow| follow.progress());
        Ok(TaskView { record, attempts, evidence, progress, place: desk.queue.place(id.seq) })
    }

    /// What came of a task once it has ended, or how it stands when this time is over.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn result(self: &Arc<Self>, id: TaskId, patience: Duration) -> Result<Came, TaskError> {
        if let Some(result) = self.until_ended(id, patience).await {
            return Ok(Came::Result(result));
        }
        let found = self.clerk.look(move |journal| {
            let Some(record) = journal.get(id.into())? else { return Ok(None) };
            Ok(Some(match journal.result(&record)? {
                Some(result) => Came::Result(result.into()),
                None => Came::Nothing { state: record.state, why: record.why },
            }))
        });
        found.await?.ok_or_else(|| unknown(id))
    }

    /// A task when it has ended, or as it is when this time is over.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn wait(self: &Arc<Self>, id: TaskId, patience: Duration) -> Result<TaskView, TaskError> {
        self.until_ended(id, patience).await;
        self.get(id).await
    }

    /// Waits until a task has ended in the journal, or this time is over; its result, where it was told. Does not wait for one
    /// that is not open.
    async fn until_ended(self: &Arc<Self>, id: TaskId, patience: Duration) -> Option<Bytes> {
        if patience.is_zero() || !self.is_open(id) {
            return None;
        }
        let awaiting = self.expect(id);
        // It was looked for the end before this: one that is open now has its end before it.
        if !self.is_open(id) {
            return None;
        }
        tokio::time::timeout(patience, awaiting.end.end()).await.ok().flatten()
    }

    fn expect(self: &Arc<Self>, id: TaskId) -> Awaiting {
        let lines = self.core.config().tasks.logs;
        let mut desk = self.desk();
        let follow = desk.follows.entry(id.seq).or_insert_with(|| Follow::new(lines));
        // Under the lock: one that nobody listens to may be let go.
        Awaiting { end: follow.expect(), _let_go: LetGo { tasks: Arc::clone(self), seq: id.seq } }
    }

    fn is_open(&self, id: TaskId) -> bool {
        self.nonces.lock().unwrap_or_else(PoisonError::into_inner).get(&id.seq) == Some(&id.nonce)
    }

    /// What becomes of a task from now on, until this is dropped.
    pub fn follow(self: &Arc<Self>, id: TaskId) -> Following {
        let lines = self.core.config().tasks.logs;
        let mut desk = self.desk();
        let follow = desk.follows.entry(id.seq).or_insert_with(|| Follow::new(lines));
        // Under the lock: one that nobody listens to may be let go.
        Following { news: follow.listen(), _let_go: LetGo { tasks: Arc::clone(self), seq: id.seq } }
    }

    /// What nobody listens to and nothing is known of beside the record goes.
    fn unfollow(&self, seq: u64) {
        let mut desk = self.desk();
        let is_of_use = matches!(desk.queue.place(seq), Some(Place::Running { .. }));
        let follow = desk.follows.get(&seq);
        if !is_of_use && follow.is_some_and(|follow| !follow.is_heard() && follow.log().is_empty()) {
            desk.follows.remove(&seq);
        }
    }

    /// The lines of a task's log that are kept: while it runs, and for a while afterwards.
    pub fn logs(&self, id: TaskId) -> Vec<TaskLogLine> {
        self.desk().follows.get(&id.seq).map(|follow| follow.log()).unwrap_or_default()
    }

    /// Tasks that fit, newest first.
    ///
    /// # Errors
    /// What the journal says.
    pub async fn list(
        &self,
        filter: TaskFilter,
        below: Option<u64>,
        limit: usize,
    ) -> Result<TaskPage, TaskError> {
        let page = self.clerk.look(move |journal| journal.list(&filter, below, limit)).await?;
        Ok(TaskPage { tasks: page.tasks, below: page.below, damaged: page.damaged })
    }

    /// Ends a task, queued or running; returns when no attempt of it runs, which a worker is given some seconds for. One
    /// that has ended stays as it is.
    ///
    /// # Errors
    /// [`TaskError::State`] where it has ended, and as [`Self::get`].
    pub async fn cancel(self: &Arc<Self>, id: TaskId, why: &str) -> Result<TaskView, TaskError> {
        self.known(id).await?;
        match self.clerk.change(Change::Cancel { seq: id.seq, why: why.to_owned() }).await? {
            Outcome::Done { .. } => {}
            Outcome::Refused(why) => return Err(refusal(&why)),
            other => return Err(TaskError::Journal(format!("{other:?}"))),
        }
        self.cancelled(id.seq);
        // One that does not stop is ended with its worker: then this is over as well.
        let _ = tokio::time::timeout(STOPPING, self.until_quiet(id.seq)).await;
        self.get(id).await
    }

    async fn until_quiet(&self, seq: u64) {
        let runs = || matches!(self.desk().queue.place(seq), Some(Place::Running { .. }));
        until(&self.quiet, || (!runs()).then_some(())).await;
    }

    /// The journal has it as cancelled.
    pub(super) fn cancelled(self: &Arc<Self>, seq: u64) {
        self.tell(Event::Cancelled(seq));
        self.ended(seq, None);
    }

    /// Ends tasks of which it does not matter whether they have ended meanwhile, however often that has to be tried.
    pub(super) async fn cancel_all(self: &Arc<Self>, seqs: &[u64], why: &str) {
        for some in seqs.chunks(TOGETHER) {
            let cancel = |seq: &u64| Change::Cancel { seq: *seq, why: why.to_owned() };
            let changes: Vec<Change> = some.iter().map(cancel).collect();
            let Some(outcomes) = attempt::write_all(self, changes).await else { return };
            for (seq, outcome) in some.iter().zip(outcomes) {
                if matches!(outcome, Outcome::Done { .. }) {
                    self.cancelled(*seq);
                }
            }
        }
    }

    /// Has a dead letter or a cancelled task done again.
    ///
    /// # Errors
    /// [`TaskError::State`] where it is neither, and as [`Self::get`].
    pub async fn again(self: &Arc<Self>, id: TaskId) -> Result<TaskView, TaskError> {
        let record = self.known(id).await?;
        let (Ok(lane), Ok(project)) = (record.lane.parse::<Lane>(), record.project.parse::<ProjectName>())
        else {
            return Err(TaskError::State("its lane or project is none any more".to_owned()));
        };
        let lane = lane_of(&lane, &project);
        self.staff(&lane)?;
        let change = Change::Revive { seq: id.seq, not_before_unix_ms: 0, deadline_unix_ms: None };
        let attempt = match self.clerk.change(change).await? {
            Outcome::Done { attempt, .. } => attempt,
            Outcome::Refused(why) => return Err(refusal(&why)),
            other => return Err(TaskError::Journal(format!("{other:?}"))),
        };
        self.know(id);
        let follow = self.desk().follows.get(&id.seq).cloned();
        if let Some(follow) = follow {
            follow.say(TaskNews::Retry);
        }
        self.tell(Event::Restored(vec![Queued {
            seq: id.seq,
            lane,
            project,
            priority: Priority::try_from(record.priority).unwrap_or_default(),
            ready: self.now(),
            deadline: None,
            attempt: attempt + 1,
        }]));
        self.get(id).await
    }

    async fn known(&self, id: TaskId) -> Result<TaskRecord, TaskError> {
        let found = self.clerk.look(move |journal| journal.get(id.into())).await?;
        found.ok_or_else(|| unknown(id))
    }

    /// A batch and how far it is.
    ///
    /// # Errors
    /// [`TaskError::Unknown`], and what the journal says.
    pub async fn batch(&self, id: BatchId) -> Result<BatchView, TaskError> {
        let found = self.clerk.look(move |journal| journal.batch(id.into())).await?;
        found.ok_or_else(|| TaskError::Unknown(format!("batch {id}")))
    }

    /// Batches, newest first.
    ///
    /// # Errors
    /// What the journal says.
    pub async fn batches(&self, below: Option<u64>, limit: usize) -> Result<Vec<BatchView>, TaskError> {
        Ok(self.clerk.look(move |journal| journal.batches(below, limit)).await?)
    }

    /// All of it in figures.
    ///
    /// # Errors
    /// What the journal says.
    pub async fn stats(&self) -> Result<PoolStats, TaskError> {
        let counts = self.clerk.look(|journal| Ok(journal.counts())).await?;
        let desk = self.desk();
        Ok(PoolStats {
            queue: desk.queue.figures(),
            lanes: self.lane_views(&desk),
            counts,
            uptime: self.began.elapsed(),
        })
    }

    /// The projects that have tasks or limits.
    pub fn projects(&self) -> Vec<ProjectView> {
        let by_hand = self.by_hand.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let desk = self.desk();
        let mut all: Vec<ProjectView> = desk
            .queue
            .projects()
            .map(|(name, figures)| ProjectView {
                name: name.as_str().to_owned(),
                figures,
                is_set: by_hand.contains_key(name),
            })
            .collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }
}

fn unknown(id: TaskId) -> TaskError {
    TaskError::Unknown(format!("task {id}"))
}
