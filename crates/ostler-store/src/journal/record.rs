//! What the journal knows of tasks, their attempts and their batches.

use std::fmt;

use ostler_domain::task::{BatchId, TaskId};

/// Where a task is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum TaskState {
    /// Waits for a worker, perhaps until its time has come.
    Queued,
    /// An attempt has begun and not ended.
    Running,
    /// One attempt's result is committed. The end.
    Succeeded,
    /// Ended without success, with a reason: a dead letter, which can be revived.
    Dead,
    /// Ended by somebody's wish; can be revived.
    Cancelled,
}

impl TaskState {
    /// All of them, in the order of their numbers in the journal.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Succeeded, Self::Dead, Self::Cancelled];

    /// Whether nothing happens to such a task by itself any more.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Dead | Self::Cancelled)
    }

    /// Its word in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }

    pub(super) fn number(self) -> i64 {
        self as i64
    }

    pub(super) fn from_number(number: i64) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A moment in the journal: its place in the one order of all changes, and the time on the clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stamp {
    /// The change's number; each is given once, and later changes have greater ones.
    pub no: u64,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
}

/// Names a row that has a number and a nonce: a task or a batch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Id {
    /// Ascending, never given twice.
    pub seq: u64,
    /// Random: where a journal lost its end, an old id finds nobody else's task.
    pub nonce: u32,
}

macro_rules! same_as_id {
    ($($public:ident),*) => {$(
        impl From<$public> for Id {
            fn from($public { seq, nonce }: $public) -> Self {
                Self { seq, nonce }
            }
        }

        impl From<Id> for $public {
            fn from(Id { seq, nonce }: Id) -> Self {
                Self { seq, nonce }
            }
        }
    )*};
}

same_as_id!(TaskId, BatchId);

/// A task that is to be accepted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NewTask {
    /// Whose limits it counts in.
    pub project: String,
    /// The workers that may do it.
    pub lane: String,
    /// Its type: `shell-command`, ...
    pub kind: String,
    /// 0 to 10, 10 first.
    pub priority: u8,
    /// Who submitted it.
    pub principal: String,
    /// The session that it ends with.
    pub session: Option<String>,
    /// Submitting the same under the same key of a project again finds this task.
    pub key: Option<String>,
    /// The batch it belongs to (an earlier one; [`super::Change::SubmitBatch`] fills its own in).
    pub batch: Option<u64>,
    /// Not before then, in milliseconds since 1970; 0 is at once.
    pub ready_unix_ms: u64,
    /// Of no use after.
    pub deadline_unix_ms: Option<u64>,
    /// So many attempts at most.
    pub attempts_max: u32,
    /// What the worker gets, as it is: JSON.
    pub payload: Vec<u8>,
}

/// A batch that is to be made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NewBatch {
    /// Whose it is.
    pub project: String,
    /// Making the same under the same key of a project again finds this batch.
    pub key: Option<String>,
    /// What a person calls it.
    pub name: Option<String>,
    /// Who made it.
    pub principal: String,
}

/// Bytes that are kept beside a record, and how they are recognised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Body {
    /// So many bytes.
    pub len: u64,
    /// Their hash.
    pub(super) sum: u64,
    /// In a file of its own.
    pub(super) in_file: bool,
}

/// What the journal knows of a task, without payload and result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TaskRecord {
    /// Its name.
    pub id: Id,
    /// Where it is in its life.
    pub state: TaskState,
    /// See [`NewTask::project`].
    pub project: String,
    /// See [`NewTask::lane`].
    pub lane: String,
    /// See [`NewTask::kind`].
    pub kind: String,
    /// See [`NewTask::priority`].
    pub priority: u8,
    /// See [`NewTask::principal`].
    pub principal: String,
    /// See [`NewTask::session`].
    pub session: Option<String>,
    /// See [`NewTask::key`].
    pub key: Option<String>,
    /// Its batch's number.
    pub batch: Option<u64>,
    /// When it was accepted.
    pub submitted_unix_ms: u64,
    /// Not before then; a retry moves it.
    pub ready_unix_ms: u64,
    /// Of no use after.
    pub deadline_unix_ms: Option<u64>,
    /// So many attempts at most since it was submitted or revived.
    pub attempts_max: u32,
    /// The attempts it had when it was last revived.
    pub base: u32,
    /// The number of its last attempt; 0 when none has begun.
    pub attempt: u32,
    /// Who made or makes the last attempt.
    pub worker: Option<String>,
    /// When the last attempt began; none between attempts.
    pub begun: Option<Stamp>,
    /// When the task ended.
    pub ended: Option<Stamp>,
    /// Why it is dead or cancelled, or why its last attempt is to be repeated.
    pub why: Option<String>,
    /// Its payload.
    pub payload: Body,
    /// Its committed result.
    pub result: Option<Body>,
    /// The last change of this record.
    pub changed_no: u64,
}

/// An attempt that was followed by another, or by a revival.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttemptRecord {
    /// The task.
    pub seq: u64,
    /// Which try, from 1.
    pub attempt: u32,
    /// Who made it.
    pub worker: String,
    /// When it began.
    pub begun: Stamp,
    /// When it ended.
    pub ended: Stamp,
    /// How.
    pub why: String,
}

/// A batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchRecord {
    /// Its name.
    pub id: Id,
    /// Whose it is.
    pub project: String,
    /// See [`NewBatch::key`].
    pub key: Option<String>,
    /// What a person calls it.
    pub name: Option<String>,
    /// Who made it.
    pub principal: String,
    /// When it was made.
    pub created_unix_ms: u64,
    /// A hash of the tasks it was made with: the same key must come with the same.
    pub(super) tasks_sum: u64,
    /// The change that made it.
    pub changed_no: u64,
}

/// A result that came when its attempt was not the running one any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evidence {
    /// Its place in the order of changes.
    pub at: Stamp,
    /// The task.
    pub seq: u64,
    /// The attempt whose result it is.
    pub attempt: u32,
    /// The task's state when it came.
    pub state: TaskState,
    /// The attempt the task was at.
    pub current: u32,
    /// The result's length.
    pub len: u64,
    /// Its beginning ([`super::EVIDENCE_BYTES`]).
    pub body: Vec<u8>,
}
