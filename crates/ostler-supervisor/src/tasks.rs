//! Tasks: accepted into the journal, decided on by the queue, done by workers.
//!
//! ```text
//!   submit ──► clerk (journal, on disk) ──► desk ──► queue, crews: decisions ──► effects
//!                        ▲                                             │
//!                        └── begin, end ── crew: one worker each ◄─────┘ Assign
//! ```
//!
//! | file | subject |
//! |---|---|
//! | `clerk.rs` | the journal on its thread, in groups |
//! | `desk.rs` | the decisions, told and done |
//! | `crew.rs` | one worker: pipes, protocol, time |
//! | `attempt.rs` | how an attempt begins and ends |
//! | `call.rs` | tasks that are calls of tools |
//! | `lanes.rs` | which workers do what |
//! | `parts.rs` | which lanes have workers |
//! | `shelf.rs` | what tasks begin with, at hand |
//! | `follow.rs` | what those hear who wait |
//! | `start.rs` | what an earlier daemon left |
//! | `limits.rs` | what projects may, changed |
//! | `ask.rs` | what is there to see |
//! | `belong.rs` | tasks of a session |

mod ask;
mod attempt;
mod belong;
mod call;
mod clerk;
mod crew;
mod desk;
mod follow;
mod lanes;
mod limits;
pub(crate) mod link;
mod parts;
mod shelf;
mod start;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use ostler_config::Config;
use ostler_domain::event::Happening;
use ostler_domain::instance::Now;
use ostler_domain::task::queue::{Event, Full, Queued};
use ostler_domain::task::retry::{ATTEMPTS_MAX, RetrySpec};
use ostler_domain::task::{BatchId, Lane, Priority, ProjectName, TaskId};
use ostler_store::journal::{Change, NewBatch, NewTask, Outcome, Refusal};
use ostler_worker::protocol::{Allow, Level};
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio::time::Instant;

pub use ask::{BatchView, Came, Following, LaneView, PoolStats, ProjectView, TaskPage, TaskView};
use attempt::{Head, Kept, Stored};
use clerk::Clerk;
use desk::Desk;
use follow::Follow;
pub use follow::{TaskLogLine, TaskNews};
use lanes::{Staff, Workers};
pub use start::TasksError;

use crate::clock;
use crate::core::Core;
use crate::quarters::{House, Quarters};
use crate::session::Session;
use crate::supervisor::{Caller, Supervisor};

/// Largest result that is told to who waits for it, in bytes; a larger one is looked up.
const TOLD: usize = 64 << 10;
/// Ended tasks whose log is kept for who asks late.
const RECENT: usize = 1000;

/// A task as somebody wants it done.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Its type: `shell-command`, ...
    pub kind: String,
    /// What it is about; its shape is the type's.
    pub payload: Box<RawValue>,
    /// Whose limits it counts in; the caller's where it is not said.
    pub project: Option<String>,
    /// How urgent it is.
    pub priority: Priority,
    /// Not before then, in milliseconds since 1970.
    pub not_before_unix_ms: Option<u64>,
    /// Of no use after.
    pub deadline_unix_ms: Option<u64>,
    /// How long an attempt may take.
    pub timeout: Option<Duration>,
    /// So many attempts at most.
    pub attempts: Option<u32>,
    /// Submitting the same under the same key of a project again finds this task.
    pub key: Option<String>,
    /// The session that it belongs to and ends with.
    pub session: Option<Arc<Session>>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of its result.
    pub output: Option<u64>,
}

/// A batch as somebody wants it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BatchWish {
    /// What a person calls it.
    pub name: Option<String>,
    /// Making the same under the same key of a project again finds this batch.
    pub key: Option<String>,
    /// Whose it is; of its tasks those that say none are this one's.
    pub project: Option<String>,
}

/// What was accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Submitted {
    /// The batch.
    pub batch: Option<BatchId>,
    /// Each task, and whether it was there before.
    pub tasks: Vec<(TaskId, bool)>,
}

/// Why something of a task cannot be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TaskError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A limit is reached; nothing of it was accepted.
    #[error("{0}")]
    Full(String),
    /// There is no such task or batch.
    #[error("there is no {0}; it may have been forgotten (tasks.keep)")]
    Unknown(String),
    /// It is not where this can be done.
    #[error("{0}")]
    State(String),
    /// This machine cannot do it as it is.
    #[error("{0}")]
    Unable(String),
    /// The journal.
    #[error("the task journal: {0}")]
    Journal(String),
}

/// All tasks of a daemon.
#[derive(Debug)]
pub struct Tasks {
    core: Arc<Core>,
    supervisor: Weak<Supervisor>,
    clerk: Clerk,
    desk: Mutex<Desk>,
    recent: Mutex<std::collections::VecDeque<u64>>,
    /// Milliseconds since 1970 when `began` was: so that what an earlier daemon accepted lies in the past.
    origin_unix_ms: u64,
    began: Instant,
    house: Arc<House>,
    /// Names shown for numbers: the nonces of tasks that wait or run.
    nonces: Mutex<BTreeMap<u64, u32>>,
    belongings: Mutex<belong::Belongings>,
    /// The configuration that holds for limits, which change one after the other.
    limiting: tokio::sync::Mutex<Arc<Config>>,
    /// How many tasks of a project may run, where a person has said so since the start.
    by_hand: Mutex<HashMap<ProjectName, usize>>,
    /// The projects of which the journal says how many of their tasks may run.
    written: Mutex<HashSet<ProjectName>>,
    /// Told when an assigned attempt has begun in the journal.
    begun: Notify,
    /// The daemon is ending.
    closing: AtomicBool,
    /// Told when an attempt is over and the queue knows.
    quiet: Notify,
}

impl Tasks {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn supervisor(&self) -> Option<Arc<Supervisor>> {
        self.supervisor.upgrade()
    }

    fn now(&self) -> Now {
        Now(Duration::from_millis(self.origin_unix_ms) + self.began.elapsed())
    }

    /// A moment of the clock on the wall, as the queue counts it: so far from now as it is by that clock, which may have been set
    /// since the start.
    fn moment(&self, unix_ms: u64) -> Now {
        let (now, now_ms) = (self.now(), clock::unix_ms());
        let away = Duration::from_millis(unix_ms.abs_diff(now_ms));
        if unix_ms >= now_ms { now.after(away) } else { Now(now.0.saturating_sub(away)) }
    }

    fn instant(&self, at: Now) -> Instant {
        self.began + at.0.saturating_sub(Duration::from_millis(self.origin_unix_ms))
    }

    fn retry(&self) -> RetrySpec {
        self.core.config().tasks.retry
    }

    /// What a task may reach: requests are what the network is for, in the lane of these.
    fn allowed(&self, lane: &str, project: &str) -> Allow {
        let config = self.core.config();
        let network = lanes::have_network(&config, lane, Some(project));
        match config.projects.get(project) {
            Some(project) => Allow {
                network,
                private: project.private,
                folders: project.folders.iter().map(|folder| folder.display().to_string()).collect(),
            },
            None => Allow { network, ..Allow::default() },
        }
    }

    /// The task as it is shown.
    fn shown(&self, seq: u64) -> String {
        let nonce = self.nonces.lock().unwrap_or_else(PoisonError::into_inner).get(&seq).copied();
        nonce.map_or_else(|| format!("t{seq}"), |nonce| TaskId { seq, nonce }.to_string())
    }

    fn know(&self, id: TaskId) {
        self.nonces.lock().unwrap_or_else(PoisonError::into_inner).insert(id.seq, id.nonce);
    }

    /// What those hear who follow a task.
    fn follow_of(&self, seq: u64) -> Arc<Follow> {
        let lines = self.core.config().tasks.logs;
        Arc::clone(self.desk().follows.entry(seq).or_insert_with(|| Follow::new(lines)))
    }

    /// An attempt failed, and there will be another.
    fn retried(&self, seq: u64, attempt: u32, why: String) {
        let follow = self.desk().follows.get(&seq).cloned();
        if let Some(follow) = follow {
            follow.write(attempt, Level::Warn, why);
            follow.say(TaskNews::Retry);
        }
    }

    /// It has ended: told, and its log is kept for a while.
    fn ended(&self, seq: u64, result: Option<Bytes>) {
        self.nonces.lock().unwrap_or_else(PoisonError::into_inner).remove(&seq);
        self.belongs_no_more(seq);
        let follow = self.desk().follows.get(&seq).cloned();
        let Some(follow) = follow else { return };
        // Who waits for it need not look it up.
        let result = result.filter(|result| follow.is_awaited() && result.len() <= TOLD);
        follow.end(result);
        if follow.log().is_empty() && follow.progress().is_none() {
            self.desk().follows.remove(&seq);
            return;
        }
        let oldest = {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            recent.push_back(seq);
            (recent.len() > RECENT).then(|| recent.pop_front()).flatten()
        };
        if let Some(oldest) = oldest {
            let mut desk = self.desk();
            // Revived since, it runs again.
            if desk.follows.get(&oldest).is_some_and(|follow| follow.has_ended()) {
                desk.follows.remove(&oldest);
            }
        }
    }

    /// The staff of a lane, by what the configuration says.
    fn staff(&self, lane: &Lane) -> Result<Staff, TaskError> {
        let config = self.core.config();
        if *lane == lanes::call_lane() {
            let at_once = u32::try_from(config.tasks.calls).unwrap_or(u32::MAX);
            return Ok(Staff::Calls { at_once });
        }
        let none = || TaskError::Invalid(format!("there are no workers for `{}`", lane.as_str()));
        let settings = config.workers.settings(lane.base()).ok_or_else(none)?;
        let launch = match config.workers.own.get(lane.base()) {
            Some(own) => own.launch.clone(),
            None => {
                let mut launch = lanes::built_in(lane.base(), &self.house.workers).ok_or_else(none)?;
                if let Some(said) = config.workers.stock.get(lane.base()) {
                    launch.command = said.command.clone().unwrap_or(launch.command);
                    lanes::add_env(&mut launch.env, &said.env);
                    launch.inherit_env.extend(said.inherit_env.iter().cloned());
                }
                launch
            }
        };
        Ok(Staff::Workers(Box::new(Workers {
            launch,
            spec: settings.spec.clone(),
            limits: lanes::limits(settings),
            ready: settings.ready,
            heartbeat: settings.heartbeat,
            quarters: Arc::new(Quarters {
                house: Arc::clone(&self.house),
                terms: lanes::terms(&config, lane, settings),
            }),
        })))
    }

    /// Accepts tasks: all of them, or none where a limit is reached. Returns when they are on disk.
    ///
    /// # Errors
    /// [`TaskError`], with the limit or the reason.
    pub async fn submit(
        self: &Arc<Self>,
        by: &Caller,
        submissions: Vec<Submission>,
        batch: Option<BatchWish>,
    ) -> Result<Submitted, TaskError> {
        let (tasks, by) = (Arc::clone(self), by.clone());
        // On its own: a client that goes away leaves nothing half accepted.
        let accepting = tokio::spawn(async move { tasks.accept(&by, submissions, batch).await });
        accepting.await.unwrap_or_else(|_| Err(TaskError::State("the daemon is ending".to_owned())))
    }

    async fn accept(
        self: &Arc<Self>,
        by: &Caller,
        submissions: Vec<Submission>,
        batch: Option<BatchWish>,
    ) -> Result<Submitted, TaskError> {
        let most = self.core.config().tasks.batch;
        if submissions.len() > most {
            return Err(TaskError::Invalid(format!(
                "{} tasks at once are more than {most} (tasks.batch): submit them in parts",
                submissions.len()
            )));
        }
        let home = batch.as_ref().and_then(|batch| batch.project.clone());
        let mut new = Vec::with_capacity(submissions.len());
        for (index, submission) in submissions.into_iter().enumerate() {
            let read = self.read(by, submission, home.as_deref(), new.last());
            new.push(read.map_err(|error| in_batch(batch.is_some(), index, error))?);
        }
        self.must_have_walls(&new).await?;
        let mut reserved = self.reserve(&new)?;
        let written = self.write(by, &mut new, batch, home).await;
        let (batch, outcomes) = match written {
            Ok(written) => written,
            Err(error) => {
                reserved.give_back(self);
                return Err(error);
            }
        };
        let (tasks, refused) = self.enter(by, new, outcomes, &mut reserved);
        reserved.give_back(self);
        match refused {
            Some(why) => Err(why),
            None => Ok(Submitted { batch, tasks }),
        }
    }

    /// What is asked for, as the journal has it. What is as in the one before it is kept once for both.
    fn read(
        &self,
        by: &Caller,
        submission: Submission,
        home: Option<&str>,
        before: Option<&New>,
    ) -> Result<New, TaskError> {
        let config = self.core.config();
        if let Some(session) = &submission.session {
            belong::check(session)?;
        }
        let invalid = |why: String| TaskError::Invalid(why);
        check(&submission, &config).map_err(invalid)?;
        let lane = lanes::of(&submission.kind, &submission.payload, &config.workers)?;
        let project = submission.project.as_deref().or(home).unwrap_or(&by.project);
        let project: ProjectName =
            project.parse().map_err(|error| invalid(format!("the project: {error}")))?;
        let own = config.projects.get(project.as_str());
        let longest = own.and_then(|own| own.timeout_max).unwrap_or(config.tasks.timeout_max);
        let timeout = submission.timeout.unwrap_or(config.tasks.timeout.min(longest));
        if timeout > longest {
            return Err(invalid(format!(
                "an attempt may take {longest:?} at most (tasks.timeout_max), not {timeout:?}"
            )));
        }
        // A project's holds for all its tasks.
        let memory = submission.memory.into_iter().chain(own.and_then(|own| own.memory)).min();
        let stored = Stored {
            payload: submission.payload,
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            memory,
            output: submission.output.or(Some(config.tasks.result_max as u64)),
        };
        let payload = serde_json::to_vec(&stored).map_err(|error| invalid(error.to_string()))?;
        let task = NewTask {
            project: project.as_str().to_owned(),
            lane: lane.as_str().to_owned(),
            kind: submission.kind,
            priority: submission.priority.get(),
            principal: by.principal.to_string(),
            session: submission.session.as_ref().map(|session| session.handle.to_string()),
            key: submission.key,
            batch: None,
            ready_unix_ms: submission.not_before_unix_ms.unwrap_or(0),
            deadline_unix_ms: submission.deadline_unix_ms,
            attempts_max: submission.attempts.unwrap_or(config.tasks.retry.attempts),
            payload,
        };
        Ok(New {
            kind: same(task.kind.as_str().into(), before.map(|before| &before.kind)),
            lane: same(lane, before.map(|before| &before.lane)),
            project: same(project, before.map(|before| &before.project)),
            priority: submission.priority,
            ready_unix_ms: task.ready_unix_ms,
            deadline_unix_ms: task.deadline_unix_ms,
            session: submission.session,
            task,
            stored,
        })
    }

    /// Refuses what needs a sandbox where there is none.
    async fn must_have_walls(&self, new: &[New]) -> Result<(), TaskError> {
        let needed = {
            let config = self.core.config();
            let kinds: BTreeSet<&str> = new.iter().map(|new| new.lane.as_str()).collect();
            kinds
                .into_iter()
                .filter_map(|kind| kind.parse().ok())
                .any(|kind| lanes::need_walls(&config, &kind))
        };
        if needed && let Err(why) = self.house.sandboxes().get(&*self.core.launcher).await {
            self.core.events.count("tasks refused for want of a sandbox");
            return Err(TaskError::Unable(why.to_string()));
        }
        Ok(())
    }

    fn reserve(&self, new: &[New]) -> Result<Reserved, TaskError> {
        let mut wanted: BTreeMap<ProjectName, usize> = BTreeMap::new();
        for New { project, .. } in new {
            *wanted.entry(project.clone()).or_default() += 1;
        }
        let mut desk = self.desk();
        let mut reserved = Reserved(BTreeMap::new());
        for (project, count) in wanted {
            if let Err(full) = desk.queue.reserve(&project, count) {
                for (project, count) in &reserved.0 {
                    desk.queue.release(project, *count);
                }
                drop(desk);
                self.refused(&full);
                return Err(TaskError::Full(full.to_string()));
            }
            reserved.0.insert(project, count);
        }
        Ok(reserved)
    }

    fn refused(&self, full: &Full) {
        self.core.events.count("tasks refused");
        self.core.events.record_seldom("tasks", "tasks", Happening::QueueFull { why: full.to_string() });
    }

    async fn write(
        &self,
        by: &Caller,
        new: &mut [New],
        batch: Option<BatchWish>,
        home: Option<String>,
    ) -> Result<(Option<BatchId>, Vec<Outcome>), TaskError> {
        self.name_projects(new.iter().map(|new| new.project.clone()).collect()).await?;
        let tasks: Vec<NewTask> = new.iter_mut().map(|new| std::mem::take(&mut new.task)).collect();
        let Some(BatchWish { name, key, .. }) = batch else {
            let changes = tasks.into_iter().map(Change::Submit).collect();
            return Ok((None, self.clerk.changes(changes).await?));
        };
        let project = home.unwrap_or_else(|| by.project.to_string());
        let batch = NewBatch { project, key, name, principal: by.principal.to_string() };
        match self.clerk.change(Change::SubmitBatch { batch, tasks }).await? {
            Outcome::Batch { id, tasks, .. } => Ok((Some(id.into()), tasks)),
            Outcome::Refused(why) => Err(refusal(&why)),
            other => Err(TaskError::Journal(format!("{other:?}"))),
        }
    }

    /// What was accepted enters the queue. Says which those are, and why one was refused, if one was.
    fn enter(
        self: &Arc<Self>,
        by: &Caller,
        new: Vec<New>,
        outcomes: Vec<Outcome>,
        reserved: &mut Reserved,
    ) -> (Vec<(TaskId, bool)>, Option<TaskError>) {
        let (mut tasks, mut entering, mut refused) = (Vec::new(), Vec::new(), None);
        let (now_ms, now) = (clock::unix_ms(), self.now());
        for (new, outcome) in new.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Accepted(found) => {
                    let New { kind, lane, project, .. } = new;
                    let waits_in = parts::lane_of(&lane, &project);
                    let principal = Arc::clone(&by.principal);
                    let head = Head { id: found, kind, lane, project: project.clone(), principal };
                    let found = TaskId::from(found);
                    self.know(found);
                    if let Some(session) = new.session {
                        self.belongs(found, &session);
                    }
                    tasks.push((found, false));
                    let late = new.ready_unix_ms > now_ms;
                    reserved.take(&project);
                    entering.push((
                        Queued {
                            seq: found.seq,
                            lane: waits_in,
                            project,
                            priority: new.priority,
                            ready: if late { self.moment(new.ready_unix_ms) } else { now },
                            deadline: new.deadline_unix_ms.map(|at| self.moment(at)),
                            attempt: 1,
                        },
                        Kept { head, stored: new.stored },
                    ));
                }
                Outcome::Earlier(found) => tasks.push((found.into(), true)),
                Outcome::Refused(why) => refused = refused.or(Some(refusal(&why))),
                other => refused = refused.or(Some(TaskError::Journal(format!("{other:?}")))),
            }
        }
        let mut queued = Vec::with_capacity(entering.len());
        {
            let mut desk = self.desk();
            for (entry, kept) in entering {
                desk.shelf.keep(entry.seq, kept);
                queued.push(entry);
            }
        }
        self.tell(Event::Submitted(queued));
        (tasks, refused)
    }
}

/// What is asked for, read and not yet accepted.
struct New {
    /// The journal takes this.
    task: NewTask,
    kind: Arc<str>,
    stored: Stored,
    project: ProjectName,
    lane: Lane,
    priority: Priority,
    ready_unix_ms: u64,
    deadline_unix_ms: Option<u64>,
    session: Option<Arc<Session>>,
}

/// The value, or the earlier one where that is the same: what is shared is kept once.
fn same<T: PartialEq + Clone>(value: T, earlier: Option<&T>) -> T {
    earlier.filter(|earlier| **earlier == value).cloned().unwrap_or(value)
}

/// Places kept in the queue, by project.
struct Reserved(BTreeMap<ProjectName, usize>);

impl Reserved {
    fn take(&mut self, project: &ProjectName) {
        if let Some(count) = self.0.get_mut(project) {
            *count = count.saturating_sub(1);
        }
    }

    fn give_back(self, tasks: &Tasks) {
        let mut desk = tasks.desk();
        for (project, count) in self.0 {
            desk.queue.release(&project, count);
        }
    }
}

/// Whether what is said of a task makes sense, whatever its type and project; else what does not.
fn check(submission: &Submission, config: &Config) -> Result<(), String> {
    let tasks = &config.tasks;
    let (length, most) = (submission.payload.get().len(), tasks.payload_max);
    if length > most {
        return Err(format!("the payload has {length} bytes, and may have {most} (tasks.payload_max)"));
    }
    if submission.timeout.is_some_and(|timeout| timeout.is_zero()) {
        return Err("`timeout_ms` is 0: no attempt could end in time".to_owned());
    }
    if submission.memory == Some(0) {
        return Err("`memory_bytes` is 0: no attempt could begin".to_owned());
    }
    let most = tasks.result_max as u64;
    if let Some(output) = submission.output.filter(|output| !(1..=most).contains(output)) {
        return Err(format!("`output_bytes` is {output}, and may be 1 to {most} (tasks.result_max)"));
    }
    if let Some(attempts) = submission.attempts.filter(|attempts| !(1..=ATTEMPTS_MAX).contains(attempts)) {
        return Err(format!("`attempts` is {attempts}, and may be 1 to {ATTEMPTS_MAX}"));
    }
    match (submission.not_before_unix_ms, submission.deadline_unix_ms) {
        (Some(begin), Some(end)) if begin >= end => {
            Err("`deadline_unix_ms` is over before the task may begin (`delay_ms`, `not_before_unix_ms`)"
                .to_owned())
        }
        _ => Ok(()),
    }
}

fn in_batch(is_batch: bool, index: usize, error: TaskError) -> TaskError {
    match error {
        TaskError::Invalid(why) if is_batch => TaskError::Invalid(format!("task {index}: {why}")),
        error => error,
    }
}

fn refusal(why: &Refusal) -> TaskError {
    match why {
        Refusal::NoTask(_) | Refusal::NoBatch(_) | Refusal::TooLong { .. } => {
            TaskError::Invalid(why.to_string())
        }
        Refusal::Batches => TaskError::Full(why.to_string()),
        Refusal::InBatch { index, why } => match refusal(why) {
            TaskError::Invalid(why) => TaskError::Invalid(format!("task {index}: {why}")),
            TaskError::State(why) => TaskError::State(format!("task {index}: {why}")),
            other => other,
        },
        Refusal::State { .. } | Refusal::KeyUsed(_) | Refusal::Attempts | Refusal::Damaged(_) => {
            TaskError::State(why.to_string())
        }
    }
}
