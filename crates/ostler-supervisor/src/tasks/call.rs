//! Tasks of type `mcp-tool`: a call of a tool of a supervised server. They need no worker, only a place.

use std::sync::Arc;
use std::time::Duration;

use ostler_domain::task::WorkerId;
use ostler_domain::task::queue::Event;
use ostler_worker::protocol::{ErrorKind, MAX_MESSAGE, Progress, bounded};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Tasks;
use super::attempt::{self, Ending, Job};
use super::follow::TaskNews;
use crate::supervisor::Caller;
use crate::tool_call::ToolCall;

/// What such a task is about.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Payload {
    pub(super) server: String,
    pub(super) tool: String,
    #[serde(default)]
    pub(super) arguments: Option<Box<RawValue>>,
    #[serde(default)]
    pub(super) session_id: Option<String>,
}

/// Makes the attempt; aborted where the task is cancelled, which cancels the call.
pub(super) async fn make(tasks: Arc<Tasks>, (seq, number): (u64, u32), worker: WorkerId) {
    let slot = format!("call#{}", worker.number());
    let Some(job) = attempt::begin(&tasks, seq, number, &slot).await else { return };
    let limit = Duration::from_millis(job.stored.timeout_ms);
    let ending = match tokio::time::timeout(limit, call(&tasks, &job)).await {
        Ok(ending) => ending,
        Err(_) => Ending::failed(ErrorKind::Timeout, format!("no answer after {limit:?}"), true),
    };
    attempt::end(&tasks, seq, job.attempt, None, ending).await;
}

async fn call(tasks: &Arc<Tasks>, job: &Job) -> Ending {
    let payload: Payload = match serde_json::from_str(job.stored.payload.get()) {
        Ok(payload) => payload,
        Err(error) => return Ending::failed(ErrorKind::Invalid, error.to_string(), false),
    };
    let Some(supervisor) = tasks.supervisor() else {
        return Ending::failed(ErrorKind::Failed, "the daemon is ending", true);
    };
    let caller =
        Caller { principal: Arc::clone(&job.record.principal), project: job.record.project.as_str().into() };
    let Payload { server, tool, arguments, session_id } = payload;
    let call = ToolCall { server, tool, arguments, session: session_id };
    // One that says none is of the session that its task belongs to.
    let session = call.session.is_none().then(|| tasks.session_of(job.record.id.seq)).flatten();
    let follow = tasks.follow_of(job.record.id.seq);
    let (id, attempt) = (tasks.shown(job.record.id.seq), job.attempt);
    let mut heard = |progress: crate::tool_call::Progress| {
        follow.say(TaskNews::Progress(Progress {
            id: id.clone(),
            attempt,
            done: progress.progress,
            total: progress.total,
            note: progress.message.map(|text| bounded(&text, MAX_MESSAGE)),
        }));
    };
    let made = match &session {
        Some(session) => call.run_in(&supervisor, &caller, session, &mut heard).await,
        None => call.run(&supervisor, &caller, &mut heard).await,
    };
    match made {
        Ok(result) if result.is_error => {
            let said = bounded(&String::from_utf8_lossy(&result.result), MAX_MESSAGE);
            Ending::failed(ErrorKind::Failed, format!("the tool says that it failed: {said}"), false)
        }
        Ok(result) => match job.stored.output {
            Some(most) if result.result.len() as u64 > most => {
                let bytes = result.result.len();
                let why = format!("the result has {bytes} bytes, and may have {most} (`output_bytes`)");
                Ending::failed(ErrorKind::Output, why, false)
            }
            _ => Ending::Success(result.result),
        },
        Err(error) => {
            let retry = error.may_pass();
            Ending::failed(ErrorKind::Failed, error.to_string(), retry)
        }
    }
}

impl Tasks {
    /// A call is over, whatever came of it: its place is free.
    pub(super) async fn call_over(self: &Arc<Self>, seq: u64, attempt: u32, worker: WorkerId, aborted: bool) {
        self.forget_call(seq, attempt);
        if aborted {
            attempt::end(self, seq, attempt, None, Ending::failed(ErrorKind::Cancelled, "cancelled", false))
                .await;
            // It may have been aborted while it began.
            self.has_begun(seq);
        }
        if self.has_call_place(worker) {
            self.tell(Event::WorkerFree { lane: super::lanes::call_lane(), worker });
        }
    }
}
