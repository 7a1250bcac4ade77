//! The tools that are about tasks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ostler_api::{NewBatch, NewTask, RunProgress, TaskView};
use ostler_domain::task::{BatchId, TaskId};
use ostler_supervisor::tasks::{Came, Tasks};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::desk::{Desk, written};
use crate::api::tasks::{self, batches, views};
use crate::run::Tell;

/// Most tasks of one `run_tasks`.
pub(super) const MAX_TASKS: usize = 100;
/// Most bytes of results in one answer: they are held until it is sent.
const MAX_RESULTS: usize = 16 << 20;
/// How often it is told how far `run_tasks` is, at most.
const STEP: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GetArgs {
    id: String,
    #[serde(default)]
    wait_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CancelArgs {
    id: String,
    #[serde(default)]
    why: Option<String>,
}

/// A task and what came of it.
#[derive(Serialize)]
struct Seen {
    task: TaskView,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
    /// Whether there is a result, which is larger than what is left of the answer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    result_left_out: bool,
}

#[derive(Serialize)]
struct Ran {
    batch: ostler_api::BatchView,
    tasks: Vec<Seen>,
}

impl Desk {
    /// `submit_task`: in the session of the request where it names none.
    pub(super) async fn submit_task(&self, mut task: NewTask) -> Result<String, String> {
        task.session_id = task.session_id.or_else(|| self.key.clone());
        written(&tasks::submit_one(&self.gateway, &self.caller, task).await?)
    }

    /// `get_task`.
    pub(super) async fn get_task(&self, GetArgs { id, wait_ms }: GetArgs) -> Result<String, String> {
        let id: TaskId = tasks::id(&id)?;
        let task = tasks::waited(&self.gateway, id, wait_ms).await?;
        written(&self.seen(id, task, &mut { MAX_RESULTS }).await?)
    }

    /// `cancel_task`.
    pub(super) async fn cancel_task(&self, CancelArgs { id, why }: CancelArgs) -> Result<String, String> {
        let why = why.as_deref().unwrap_or("`cancel_task` cancelled it");
        let task = tasks::cancelled(&self.gateway, tasks::id(&id)?, Some(why)).await?;
        written(&Seen { task, result: None, result_left_out: false })
    }

    /// `run_tasks`: submits a batch and waits for all of it. Whoever hangs up cancels what is left.
    pub(super) async fn run_tasks(&self, mut wanted: NewBatch, mut tell: Tell) -> Result<String, String> {
        if !(1..=MAX_TASKS).contains(&wanted.tasks.len()) {
            return Err(format!(
                "`tasks` holds {} tasks, and may hold 1 to {MAX_TASKS}; submit more as a batch: `ostler task submit \
                 --batch FILE`",
                wanted.tasks.len()
            ));
        }
        let session = &mut wanted.batch.session_id;
        *session = session.take().or_else(|| self.key.clone());
        let submitted = tasks::submit_many(&self.gateway, &self.caller, wanted).await?;
        let id: BatchId = tasks::id(&submitted.id)?;
        let tasks = tasks::tasks(&self.gateway)?;
        let mut left = Left { tasks: Arc::clone(tasks), id, is_over: false };
        let batch = loop {
            let batch = batches::ended(&self.gateway, id, STEP).await?;
            tell(further(&batch));
            if batch.ended {
                break batch;
            }
        };
        left.is_over = true;
        let mut room = MAX_RESULTS;
        let mut seen = Vec::new();
        for task in batches::tasks_of(tasks, id, true).await.map_err(tasks::refused)? {
            let found = tasks.get(task).await.map_err(tasks::refused)?;
            let view = views::task(tasks, found).await.map_err(tasks::refused)?;
            seen.push(self.seen(task, view, &mut room).await?);
        }
        written(&Ran { batch, tasks: seen })
    }

    /// A task with its result, where that fits into the `room` that is left.
    async fn seen(&self, id: TaskId, task: TaskView, room: &mut usize) -> Result<Seen, String> {
        let Some(bytes) = task.result_bytes else {
            return Ok(Seen { task, result: None, result_left_out: false });
        };
        let left = usize::try_from(bytes).ok().and_then(|bytes| room.checked_sub(bytes));
        let Some(left) = left else {
            self.gateway.supervisor.events().count("run_tasks.results");
            return Ok(Seen { task, result: None, result_left_out: true });
        };
        *room = left;
        let result =
            match tasks::tasks(&self.gateway)?.result(id, Duration::ZERO).await.map_err(tasks::refused)? {
                Came::Result(json) => {
                    String::from_utf8(json.into()).ok().and_then(|json| RawValue::from_string(json).ok())
                }
                Came::Nothing { .. } => None,
            };
        Ok(Seen { task, result, result_left_out: false })
    }
}

/// How far a batch is, as a run tells it.
fn further(batch: &ostler_api::BatchView) -> RunProgress {
    let small = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let (done, total) = (small(batch.tasks.ended()), small(batch.tasks.total()));
    let failed = batch.tasks.dead + batch.tasks.cancelled;
    let message = format!("{done} of {total} tasks have ended, {failed} of them without a result");
    RunProgress { progress: f64::from(done), total, done, message }
}

/// What is left of a run is cancelled when this is dropped before the run is over: nobody waits for it any more.
struct Left {
    tasks: Arc<Tasks>,
    id: BatchId,
    is_over: bool,
}

impl Drop for Left {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let (tasks, id) = (Arc::clone(&self.tasks), self.id);
        tokio::spawn(async move {
            if let Err(error) = batches::cancel_all(&tasks, id, "whoever ran it has gone").await {
                tracing::warn!(%id, %error, "what is left of a run could not be cancelled");
            }
        });
    }
}

/// The properties of a task as it is shown with its result, for schemas.
pub(super) fn seen(
    component: impl Fn(&str) -> serde_json::Value,
) -> BTreeMap<&'static str, serde_json::Value> {
    let flag = serde_json::json!({"type": "boolean",
        "description": "There is a result, which is too large for this answer: `ostler task wait ID` prints it."});
    let result = serde_json::json!({"description": "What came of it, exactly as it was committed."});
    BTreeMap::from([("task", component("TaskView")), ("result", result), ("result_left_out", flag)])
}
