//! The supervisor's view of tasks, as the API shows it.

use std::collections::BTreeMap;
use std::sync::Arc;

use ostler_api::{
    AttemptView, BatchView, LateResultView, TaskCounts, TaskLogLine, TaskPage, TaskProgressView, TaskView,
};
use ostler_domain::task::{BatchId, TaskId};
use ostler_store::journal::{AttemptRecord, BatchStatus, Counts, Evidence, TaskRecord};
use ostler_supervisor::tasks::{self, TaskError, Tasks};
use ostler_worker::protocol::{Level, Progress};

/// A task with its attempts.
pub(crate) async fn task(tasks: &Arc<Tasks>, task: tasks::TaskView) -> Result<TaskView, TaskError> {
    let attempts = task.attempts.iter().map(attempt).collect();
    let late = task.evidence.iter().map(late).collect();
    Ok(TaskView { attempts, late, ..brief(tasks, task).await? })
}

/// A task without its attempts.
pub(super) async fn brief(tasks: &Arc<Tasks>, task: tasks::TaskView) -> Result<TaskView, TaskError> {
    let names = batch_names(tasks, std::slice::from_ref(&task.record)).await?;
    Ok(TaskView { progress: task.progress.map(progress), ..record(task.record, &names) })
}

/// A part of a list.
pub(super) async fn page(tasks: &Arc<Tasks>, page: tasks::TaskPage) -> Result<TaskPage, TaskError> {
    let names = batch_names(tasks, &page.tasks).await?;
    let shown = page.tasks.into_iter().map(|task| record(task, &names)).collect();
    Ok(TaskPage { tasks: shown, damaged: page.damaged, below: page.below })
}

/// The names of the batches that these tasks are of: a task's record has the number only.
async fn batch_names(tasks: &Arc<Tasks>, records: &[TaskRecord]) -> Result<BTreeMap<u64, String>, TaskError> {
    let mut names = BTreeMap::new();
    for seq in records.iter().filter_map(|task| task.batch) {
        if names.contains_key(&seq) {
            continue;
        }
        // The newest below the next number is this one, where it is still there.
        let found = tasks.batches(Some(seq + 1), 1).await?;
        let id = found.first().map(|found| found.batch.id).filter(|id| id.seq == seq);
        if let Some(id) = id {
            names.insert(seq, BatchId { seq, nonce: id.nonce }.to_string());
        }
    }
    Ok(names)
}

fn record(task: TaskRecord, batches: &BTreeMap<u64, String>) -> TaskView {
    TaskView {
        id: TaskId::from(task.id).to_string(),
        kind: task.kind,
        state: task.state.as_str().to_owned(),
        project: task.project,
        lane: task.lane,
        priority: task.priority,
        principal: task.principal,
        session: task.session,
        key: task.key,
        batch: task.batch.and_then(|batch| batches.get(&batch).cloned()),
        submitted_unix_ms: task.submitted_unix_ms,
        ready_unix_ms: task.ready_unix_ms,
        deadline_unix_ms: task.deadline_unix_ms,
        begun_unix_ms: task.begun.map(|at| at.unix_ms),
        ended_unix_ms: task.ended.map(|at| at.unix_ms),
        attempt: task.attempt,
        attempts_max: task.attempts_max,
        worker: task.worker,
        why: task.why,
        progress: None,
        payload_bytes: task.payload.len,
        result_bytes: task.result.map(|result| result.len),
        attempts: Vec::new(),
        late: Vec::new(),
    }
}

fn attempt(attempt: &AttemptRecord) -> AttemptView {
    AttemptView {
        attempt: attempt.attempt,
        worker: attempt.worker.clone(),
        begun_unix_ms: attempt.begun.unix_ms,
        ended_unix_ms: attempt.ended.unix_ms,
        why: attempt.why.clone(),
    }
}

fn late(late: &Evidence) -> LateResultView {
    LateResultView {
        attempt: late.attempt,
        unix_ms: late.at.unix_ms,
        state: late.state.as_str().to_owned(),
        bytes: late.len,
        text: String::from_utf8_lossy(&late.body).into_owned(),
    }
}

/// How far an attempt is.
pub(super) fn progress(progress: Progress) -> TaskProgressView {
    let Progress { attempt, done, total, note, .. } = progress;
    TaskProgressView { attempt, done, total, note }
}

/// A line that an attempt wrote.
pub(super) fn line(line: tasks::TaskLogLine) -> TaskLogLine {
    let level = match line.level {
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    };
    TaskLogLine {
        seq: line.seq,
        unix_ms: line.unix_ms,
        attempt: line.attempt,
        level: level.to_owned(),
        text: line.text,
    }
}

/// Tasks by state.
pub(crate) fn counts([queued, running, succeeded, dead, cancelled]: Counts) -> TaskCounts {
    TaskCounts { queued, running, succeeded, dead, cancelled }
}

/// A batch and how far it is.
pub(crate) fn batch(found: BatchStatus) -> BatchView {
    let BatchStatus { batch, counts, .. } = found;
    let tasks = self::counts(counts);
    BatchView {
        id: BatchId::from(batch.id).to_string(),
        name: batch.name,
        project: batch.project,
        key: batch.key,
        principal: batch.principal,
        created_unix_ms: batch.created_unix_ms,
        ended: tasks.ended() == tasks.total(),
        tasks,
    }
}
