//! What may be changed, and what came of it.

use bytes::Bytes;

use super::record::{Id, NewBatch, NewTask, TaskState};

/// A change. All changes of one group are on disk together or not at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Accepts a task.
    Submit(NewTask),
    /// Accepts a batch and its first tasks: all, or none where one is refused.
    SubmitBatch {
        /// The batch.
        batch: NewBatch,
        /// Its tasks. [`NewTask::batch`] may name it later for more.
        tasks: Vec<NewTask>,
    },
    /// An attempt begins: only for a queued task and only with the number after its last.
    Begin {
        /// The task.
        seq: u64,
        /// The attempt's number.
        attempt: u32,
        /// Who makes it.
        worker: String,
    },
    /// An attempt succeeded: only where exactly this attempt is running. A late result is kept as evidence.
    Commit {
        /// The task.
        seq: u64,
        /// The attempt.
        attempt: u32,
        /// The result as it is: JSON.
        result: Bytes,
    },
    /// An attempt failed and is to be repeated: only where exactly this attempt is running.
    Retry {
        /// The task.
        seq: u64,
        /// The attempt.
        attempt: u32,
        /// Why it failed.
        why: String,
        /// Not before then, in milliseconds since 1970.
        not_before_unix_ms: u64,
    },
    /// The task ends without success.
    Bury {
        /// The task.
        seq: u64,
        /// The attempt that must be running, or none for a task that must be queued.
        attempt: Option<u32>,
        /// Why.
        why: String,
    },
    /// The task ends by somebody's wish, queued or running.
    Cancel {
        /// The task.
        seq: u64,
        /// Whose wish, and why.
        why: String,
    },
    /// A dead letter or cancelled task is queued again, with all its attempts before it.
    Revive {
        /// The task.
        seq: u64,
        /// Not before then, in milliseconds since 1970; 0 is at once.
        not_before_unix_ms: u64,
        /// Its new deadline.
        deadline_unix_ms: Option<u64>,
    },
    /// So many tasks of a project may run at once from now on. Written down for [`super::check`].
    Limit {
        /// The project.
        project: String,
        /// How many; none is without limit.
        running: Option<u32>,
    },
}

impl Change {
    /// How much of a group it takes: each task of a batch is one.
    #[must_use]
    pub fn weight(&self) -> usize {
        match self {
            Self::SubmitBatch { tasks, .. } => tasks.len().max(1),
            _ => 1,
        }
    }

    /// Whether somebody is told that it is done, so that it must outlast a power failure. An attempt that begins
    /// need not: the power failure ends it too.
    pub(super) fn must_last(&self) -> bool {
        !matches!(self, Self::Begin { .. } | Self::Limit { .. })
    }
}

/// What came of a change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The task is accepted.
    Accepted(Id),
    /// The project has this task already, under the same key with the same content.
    Earlier(Id),
    /// The batch, and what came of its tasks in their order.
    Batch {
        /// Its name.
        id: Id,
        /// Whether it was there already; then no task was accepted.
        earlier: bool,
        /// [`Outcome::Accepted`] or [`Outcome::Earlier`] for each.
        tasks: Vec<Outcome>,
    },
    /// It is done.
    Done {
        /// The state before.
        was: TaskState,
        /// The task's last attempt.
        attempt: u32,
    },
    /// A limit is written down.
    Noted,
    /// The result came late: the task is not at this attempt any more. It is kept as evidence and changes nothing.
    Late {
        /// Where the task is.
        state: TaskState,
        /// Its last attempt.
        attempt: u32,
    },
    /// Nothing was changed by it.
    Refused(Refusal),
}

/// Why a change was not made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no such task.
    #[error("there is no task with the number {0}")]
    NoTask(u64),
    /// There is no such batch in this project.
    #[error("the project has no batch with the number {0}")]
    NoBatch(u64),
    /// The task is not where this change can be made.
    #[error("the task is {state}, at attempt {attempt}")]
    State {
        /// Where it is.
        state: TaskState,
        /// Its last attempt.
        attempt: u32,
    },
    /// The project has used this key for something else.
    #[error("the key was used before in this project with another content (number {}); use another key", .0.seq)]
    KeyUsed(Id),
    /// Something is longer than it may be.
    #[error("a {what} of {len} bytes is too long; at most {max} are possible")]
    TooLong {
        /// What.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The task has had as many attempts as can be numbered.
    #[error("the task has had {} attempts (ATTEMPTS_MAX); submit it anew", super::ATTEMPTS_MAX)]
    Attempts,
    /// So many batches are kept.
    #[error(
        "the journal keeps {} batches (BATCHES_MAX); wait until older ones are pruned",
        super::BATCHES_MAX
    )]
    Batches,
    /// The task's record is damaged.
    #[error("the record of task number {0} is damaged in the journal")]
    Damaged(u64),
    /// One task of a batch was refused, and with it the batch.
    #[error("task {index} of the batch: {why}")]
    InBatch {
        /// Its place, from 0.
        index: usize,
        /// Why.
        why: Box<Refusal>,
    },
}
