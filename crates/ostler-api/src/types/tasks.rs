//! Tasks, batches, projects and workers, as they are asked for and shown.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::query;

/// The longest that a request waits for a task or a batch to end, in milliseconds; a longer wait counts as this one.
pub const WAIT_MAX_MS: u64 = 60_000;
/// Tasks or batches of a page, where the request does not say.
pub const LISTED: usize = 100;
/// Most of them.
pub const LISTED_MAX: usize = 1_000;
/// Most bytes of a request that submits one task.
pub const TASK_BODY_MAX: usize = 16 << 20;
/// Most bytes of a request that submits a batch.
pub const BATCH_BODY_MAX: usize = 64 << 20;

/// A task that is to be done. A field that is not listed here is refused.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTask {
    /// Its type: `execute-code`, `execute-function`, `execute-module`, `http-request`, `shell-command`, `mcp-tool`, or a
    /// type of the configuration.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it is about, passed on exactly as it is; its shape is the type's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value)]
    pub payload: Option<Box<RawValue>>,
    /// The project whose limits it counts in; absent: that of who submits it, else `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// How urgent it is, 0 to 10, 10 first; absent: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 10)]
    pub priority: Option<u8>,
    /// Milliseconds from now before which it does not begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// The same as a moment, in milliseconds since 1970. Not with `delay_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_unix_ms: Option<u64>,
    /// The moment from which it is of no use, in milliseconds since 1970: it ends without success if it has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_unix_ms: Option<u64>,
    /// Milliseconds that an attempt may take; absent: `tasks.timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// So many attempts at most; absent: `tasks.attempts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub attempts: Option<u32>,
    /// An idempotency key: submitting the same task under the same key of its project again finds the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The session that it ends with: a key, as in the header `Ostler-Session`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Bytes of memory that an attempt may use; absent: its workers' (`workers.memory`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Bytes that its result may have as JSON; absent: `tasks.result_max`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
}

/// A task that was accepted: it is in the journal.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SubmittedTask {
    /// Names it from now on.
    pub id: String,
    /// Its state, as in [`TaskView::state`].
    pub state: String,
    /// Whether it was there before, under the same key.
    pub earlier: bool,
    /// Its result, where that was waited for and came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value)]
    pub result: Option<Box<RawValue>>,
    /// What went wrong, where it was waited for and has ended without a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Tasks that are submitted together: all of them are accepted, or none.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBatch {
    /// The tasks, 1 to `tasks.batch`.
    pub tasks: Vec<NewTask>,
    /// What holds for the batch.
    #[serde(default)]
    pub batch: BatchOptions,
}

/// What holds for a batch as a whole.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchOptions {
    /// What a person calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The project of the batch, and of the tasks that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// An idempotency key: submitting the same batch under the same key of its project again finds the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The session of the tasks that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
}

/// A batch that was accepted.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SubmittedBatch {
    /// Names it from now on.
    pub id: String,
    /// Whether it was there before, under the same key.
    pub earlier: bool,
    /// Its tasks, in the order in which they were given; none where it was there before.
    pub tasks: Vec<SubmittedTask>,
}

/// One task.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TaskView {
    /// Its name, `t<number>-<8 hexadecimal digits>`.
    pub id: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// `queued`, `running`, `succeeded`, `dead` (it ended without success, and can be retried) or `cancelled`.
    pub state: String,
    /// The project whose limits it counts in.
    pub project: String,
    /// The workers that do such tasks.
    pub lane: String,
    /// How urgent it is, 0 to 10, 10 first.
    pub priority: u8,
    /// Who submitted it.
    pub principal: String,
    /// The session that it ends with.
    pub session: Option<String>,
    /// Its idempotency key.
    pub key: Option<String>,
    /// The batch it belongs to.
    pub batch: Option<String>,
    /// When it was accepted, in milliseconds since 1970.
    pub submitted_unix_ms: u64,
    /// It does not begin before this moment; between two attempts the moment of the next one.
    pub ready_unix_ms: u64,
    /// It is of no use from this moment.
    pub deadline_unix_ms: Option<u64>,
    /// When its last attempt began, while it runs or where it has ended.
    pub begun_unix_ms: Option<u64>,
    /// When it ended.
    pub ended_unix_ms: Option<u64>,
    /// The number of its last attempt; 0 where none has begun.
    pub attempt: u32,
    /// So many attempts at most since it was submitted or retried by hand.
    pub attempts_max: u32,
    /// Who makes or made the last attempt.
    pub worker: Option<String>,
    /// Why it is dead or cancelled, or why its last attempt is to be repeated.
    pub why: Option<String>,
    /// How far its running attempt says it is.
    pub progress: Option<TaskProgressView>,
    /// Bytes of its payload.
    pub payload_bytes: u64,
    /// Bytes of its result, where it has one.
    pub result_bytes: Option<u64>,
    /// Its earlier attempts, oldest first; left out of listings and of news.
    #[serde(default)]
    pub attempts: Vec<AttemptView>,
    /// Results that came when their attempt was not the running one any more: kept to be looked at, and never taken for
    /// the task's. Left out of listings and of news.
    #[serde(default)]
    pub late: Vec<LateResultView>,
}

impl TaskView {
    /// Whether nothing happens to it by itself any more.
    pub fn has_ended(&self) -> bool {
        matches!(self.state.as_str(), "succeeded" | "dead" | "cancelled")
    }
}

/// An attempt that was followed by another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct AttemptView {
    /// Which try, from 1.
    pub attempt: u32,
    /// Who made it.
    pub worker: String,
    /// When it began, in milliseconds since 1970.
    pub begun_unix_ms: u64,
    /// When it ended.
    pub ended_unix_ms: u64,
    /// How it ended.
    pub why: String,
}

/// A result that came too late.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LateResultView {
    /// The attempt whose result it is.
    pub attempt: u32,
    /// When it came, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The task's state when it came.
    pub state: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its beginning.
    pub text: String,
}

/// How far an attempt is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TaskProgressView {
    /// Which attempt.
    pub attempt: u32,
    /// How much is done.
    pub done: f64,
    /// Of how much, where that is known.
    pub total: Option<f64>,
    /// The same for people.
    pub note: Option<String>,
}

/// One line that an attempt wrote.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TaskLogLine {
    /// Counts the lines of a task, from 1, over all its attempts.
    pub seq: u64,
    /// When it came, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Which attempt.
    pub attempt: u32,
    /// `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// The text, without its line end.
    pub text: String,
}

/// What is told of a task to who follows it. First comes its state; the stream ends after a state in which the task
/// has ended.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskNews {
    /// How it stands now.
    State(Box<TaskView>),
    /// Its running attempt is further than before.
    Progress(TaskProgressView),
    /// Its running attempt wrote something.
    Log(TaskLogLine),
    /// News was dropped before it could be read.
    Gap(TaskGapView),
}

/// News of a task that a follower has missed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TaskGapView {
    /// How much of it.
    pub missed: u64,
}

/// A part of the list of tasks.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct TaskPage {
    /// The tasks, newest first.
    pub tasks: Vec<TaskView>,
    /// The numbers of tasks whose records are damaged in the journal: they are not shown, since it would be wrong.
    pub damaged: Vec<u64>,
    /// Ask for what is below this number to go on; absent: that was all. There may be more even where this page is short.
    pub below: Option<u64>,
}

/// Which tasks are listed. It is shown as the query string that says so, without its `?`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TaskQuery {
    /// Of this project.
    pub project: Option<String>,
    /// In this state.
    pub state: Option<String>,
    /// Of this type.
    pub kind: Option<String>,
    /// Of this batch.
    pub batch: Option<String>,
    /// Of this session.
    pub session: Option<String>,
    /// With numbers below this one.
    pub below: Option<u64>,
    /// So many at most.
    pub limit: Option<usize>,
}

impl fmt::Display for TaskQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = [
            ("project", &self.project),
            ("state", &self.state),
            ("type", &self.kind),
            ("batch", &self.batch),
            ("session", &self.session),
        ];
        let texts = texts.into_iter().filter_map(|(name, value)| Some((name, value.clone()?)));
        let below = self.below.map(|below| ("below", below.to_string()));
        let limit = self.limit.map(|limit| ("limit", limit.to_string()));
        f.write_str(&query::written(texts.chain(below).chain(limit)))
    }
}

/// Tasks by state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct TaskCounts {
    /// They wait.
    pub queued: u64,
    /// An attempt runs.
    pub running: u64,
    /// They have a result.
    pub succeeded: u64,
    /// They ended without success.
    pub dead: u64,
    /// They ended by somebody's wish.
    pub cancelled: u64,
}

impl TaskCounts {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.queued + self.running + self.ended()
    }

    /// Those to which nothing happens by itself any more.
    pub fn ended(&self) -> u64 {
        self.succeeded + self.dead + self.cancelled
    }
}

/// One batch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct BatchView {
    /// Its name, `b<number>-<8 hexadecimal digits>`.
    pub id: String,
    /// What a person calls it.
    pub name: Option<String>,
    /// The project it was made in.
    pub project: String,
    /// Its idempotency key.
    pub key: Option<String>,
    /// Who made it.
    pub principal: String,
    /// When it was accepted, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Its tasks by state. Those that were forgotten by age or size (`tasks.keep`, `tasks.keep_size`) are not counted.
    pub tasks: TaskCounts,
    /// Whether all of them have ended.
    pub ended: bool,
}

/// A part of the list of batches.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct BatchPage {
    /// The batches, newest first.
    pub batches: Vec<BatchView>,
    /// Ask for what is below this number to go on; absent: that was all.
    pub below: Option<u64>,
}

/// One project that has tasks or limits of its own.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProjectView {
    /// Its name.
    pub name: String,
    /// Its tasks that run.
    pub running: u64,
    /// Most of its tasks that run.
    pub running_max: u64,
    /// Where that limit comes from: `set` (by hand, until the daemon ends), `project` (`projects.NAME.running`) or
    /// `default` (`tasks.project_running`).
    pub running_max_from: String,
    /// Its tasks that wait.
    pub queued: u64,
    /// Most of its tasks that wait.
    pub queued_max: u64,
    /// Its share beside others: one of weight 2 begins two tasks where one of weight 1 begins one.
    pub weight: u32,
    /// Attempts of its tasks that began since the daemon knows it.
    pub begun: u64,
}

/// How many tasks of a project may run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectLimit {
    /// So many; 0: none begins. Absent: as the configuration says.
    #[serde(default)]
    pub running: Option<u64>,
}

/// The pool of workers, and what it has done since the daemon started.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TaskPoolView {
    /// `durable`: what is accepted survives; or `memory` (`tasks.journal`).
    pub journal: String,
    /// Milliseconds since it was started.
    pub uptime_ms: u64,
    /// Share of the workers that have a task, from 0 to 1.
    pub load: f64,
    /// Tasks by state, as far as the journal keeps them.
    pub tasks: TaskCounts,
    /// Tasks that wait.
    pub queued: u64,
    /// Of these, the ones that may not begin yet.
    pub delayed: u64,
    /// Most tasks that wait (`tasks.queued`).
    pub queued_max: u64,
    /// What was done since it was started.
    pub done: TaskFigures,
    /// The kinds of workers that had something to do.
    pub lanes: Vec<LaneView>,
}

/// What was done since the daemon started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct TaskFigures {
    /// Attempts begun.
    pub begun: u64,
    /// Attempts that were followed by another.
    pub retried: u64,
    /// Tasks whose deadline passed before they could begin.
    pub expired: u64,
    /// Tasks that were cancelled.
    pub cancelled: u64,
    /// Tasks that were not accepted, as a limit was reached.
    pub refused: u64,
    /// Mean time of an attempt, of the newest tasks that ended with a result, in milliseconds.
    pub mean_ms: u64,
}

/// The workers of one kind, and what waits for them. Each is an instance of the server `worker-<name>`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LaneView {
    /// Its name: `code`, `shell`, `http`, `python`, `node`, `call` (calls of tools, which need no worker), or that of a
    /// custom type.
    pub name: String,
    /// Tasks that wait for these workers.
    pub queued: u64,
    /// Tasks that they run.
    pub running: u64,
    /// Workers that there are to be now.
    pub target: u64,
    /// Workers at the least, once there was a task for them.
    pub min: u64,
    /// Workers at most; of `call`, calls at once.
    pub max: u64,
    /// Workers on their way up.
    pub starting: u64,
    /// Workers without a task.
    pub free: u64,
    /// Workers with one.
    pub busy: u64,
    /// Workers on their way down.
    pub leaving: u64,
    /// Share of its workers, or of its places, that have a task, from 0 to 1.
    pub load: f64,
    /// What went wrong with its workers lately, where something did.
    pub trouble: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_kept_as_it_is() {
        let text = r#"{"type":"execute-function","payload":{"n": 1180591620717411303424, "b":1,"a":2},"project":"p","priority":9}"#;
        let task: NewTask = serde_json::from_str(text).expect("a task");
        assert_eq!(
            task.payload.as_ref().expect("there").get(),
            r#"{"n": 1180591620717411303424, "b":1,"a":2}"#
        );
        assert_eq!(serde_json::to_string(&task).expect("JSON"), text);
        let batch = format!(r#"{{"tasks":[{text}],"batch":{{"name":"nightly"}}}}"#);
        let read: NewBatch = serde_json::from_str(&batch).expect("a batch");
        assert_eq!(serde_json::to_string(&read).expect("JSON"), batch);
    }

    #[test]
    fn absent_and_null_are_the_same_and_a_slip_is_refused() {
        let task: NewTask =
            serde_json::from_str(r#"{"type":"x","payload":null,"not_before_unix_ms":null,"key":null}"#)
                .expect("a task");
        assert!(task.payload.is_none() && task.key.is_none());
        assert_eq!(serde_json::to_string(&task).expect("JSON"), r#"{"type":"x"}"#);
        for wrong in [
            r#"{"type":"x","prioritty":1}"#,
            r#"{"payload":{}}"#,
            r#"{"type":"x","priority":-1}"#,
            r#"{"type":"x","type":"y"}"#,
        ] {
            assert!(serde_json::from_str::<NewTask>(wrong).is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<NewBatch>(r#"{"tasks":[],"name":"x"}"#).is_err());
        let limit: ProjectLimit = serde_json::from_str(r#"{"running":null}"#).expect("no limit");
        assert_eq!(limit.running, None);
    }

    #[test]
    fn only_what_is_asked_for_is_in_the_query() {
        assert_eq!(TaskQuery::default().to_string(), "");
        let query = TaskQuery {
            project: Some("a&b".to_owned()),
            kind: Some("execute-code".to_owned()),
            below: Some(7),
            ..TaskQuery::default()
        };
        assert_eq!(query.to_string(), "project=a%26b&type=execute-code&below=7");
    }

    #[test]
    fn news_names_what_it_is() {
        let log =
            TaskLogLine { seq: 1, unix_ms: 2, attempt: 1, level: "info".to_owned(), text: "x".to_owned() };
        let text = r#"{"log":{"seq":1,"unix_ms":2,"attempt":1,"level":"info","text":"x"}}"#;
        assert_eq!(serde_json::to_string(&TaskNews::Log(log.clone())).expect("JSON"), text);
        assert_eq!(serde_json::from_str::<TaskNews>(text).expect("news"), TaskNews::Log(log));
    }

    #[test]
    fn counts_add_up() {
        let counts = TaskCounts { queued: 1, running: 2, succeeded: 3, dead: 4, cancelled: 5 };
        assert_eq!((counts.total(), counts.ended()), (15, 12));
    }
}
