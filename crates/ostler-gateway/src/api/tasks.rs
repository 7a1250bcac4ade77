//! `/api/v1/tasks`: tasks as they are submitted, seen, waited for and ended. [`batches`] has those submitted together.

pub(crate) mod batches;
mod follow;
pub(crate) mod views;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{Request, StatusCode};
use ostler_api::types::tasks::{LISTED, LISTED_MAX, TASK_BODY_MAX, WAIT_MAX_MS};
use ostler_api::{BatchOptions, NewBatch, NewTask, SubmittedBatch, SubmittedTask, TaskView};
use ostler_domain::task::{BatchId, InvalidId, Priority, TaskId};
use ostler_store::journal::{TaskFilter, TaskState};
use ostler_supervisor::Caller;
use ostler_supervisor::budget::Reservation;
use ostler_supervisor::clock::unix_ms;
use ostler_supervisor::tasks::{BatchWish, Came, Submission, TaskError, Tasks};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::{App, Failure, read_bytes, sessions};
use crate::Gateway;
use crate::mcp::check_key;

/// The reason that is written down where nobody gives one.
const NO_REASON: &str = "a person cancelled it";

pub(super) fn wrong(error: impl Into<String>) -> Failure {
    Failure { status: StatusCode::BAD_REQUEST, error: error.into(), hint: None }
}

pub(crate) fn refused(why: TaskError) -> Failure {
    let (status, hint) = match &why {
        TaskError::Invalid(_) => (StatusCode::BAD_REQUEST, None),
        TaskError::Full(_) => {
            (StatusCode::TOO_MANY_REQUESTS, Some("`ostler pool` shows what waits and runs"))
        }
        TaskError::Unknown(_) => (StatusCode::NOT_FOUND, Some("`ostler task ls` lists those that are kept")),
        TaskError::State(_) => (StatusCode::CONFLICT, None),
        TaskError::Unable(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, Some("`ostler doctor` tries out what this machine can"))
        }
        TaskError::Journal(_) => (StatusCode::INTERNAL_SERVER_ERROR, None),
    };
    Failure { status, error: why.to_string(), hint: hint.map(str::to_owned) }
}

/// The tasks of this daemon.
pub(crate) fn tasks(gateway: &Gateway) -> Result<&Arc<Tasks>, Failure> {
    gateway.supervisor.tasks().ok_or_else(|| Failure {
        status: StatusCode::SERVICE_UNAVAILABLE,
        error: "tasks are not there yet, or could not be started".to_owned(),
        hint: Some("`ostler events` says why".to_owned()),
    })
}

pub(crate) fn id<T: FromStr<Err = InvalidId>>(text: &str) -> Result<T, Failure> {
    text.parse().map_err(|error: InvalidId| wrong(error.to_string()))
}

/// Reads a body of up to `most` bytes; what it holds counts as held until the second part is dropped.
async fn read_large<T: DeserializeOwned>(
    gateway: &Gateway,
    request: Request<Body>,
    most: usize,
) -> Result<(T, Reservation), Failure> {
    let announced =
        request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let length: usize = announced.unwrap_or(most);
    if length > most {
        return Err(Failure {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            error: format!("the body has {length} bytes, and may have {most}"),
            hint: Some("submit the tasks in parts, or put what is large into a file".to_owned()),
        });
    }
    let budget = gateway.supervisor.budget();
    let held = budget.try_reserve(length).ok_or_else(|| Failure {
        status: StatusCode::SERVICE_UNAVAILABLE,
        error: format!(
            "there is no room for a body of {length} bytes: {} of {} are held (gateway.body_memory)",
            budget.used(),
            budget.limit()
        ),
        hint: None,
    })?;
    let whole = read_bytes(gateway, request.into_body(), most).await?;
    Ok((super::decode(&whole)?, held))
}

/// What is asked for, as the supervisor takes it.
fn submission(gateway: &Gateway, by: &Caller, task: NewTask) -> Result<Submission, Failure> {
    let priority = task.priority.map(Priority::try_from).transpose();
    let priority = priority.map_err(|error| wrong(format!("`priority`: {error}")))?;
    let not_before_unix_ms = match (task.delay_ms, task.not_before_unix_ms) {
        (Some(_), Some(_)) => return Err(wrong("`delay_ms` and `not_before_unix_ms` are one too many")),
        (Some(delay), None) => Some(unix_ms().saturating_add(delay)),
        (None, at) => at,
    };
    let session = match task.session_id {
        None => None,
        Some(key) => {
            check_key(&key).map_err(|why| wrong(format!("`session_id`: {why}")))?;
            Some(gateway.supervisor.session(by, &key).map_err(sessions::refused)?)
        }
    };
    Ok(Submission {
        kind: task.kind,
        payload: task.payload.unwrap_or_else(|| RawValue::NULL.to_owned()),
        project: task.project,
        priority: priority.unwrap_or_default(),
        not_before_unix_ms,
        deadline_unix_ms: task.deadline_unix_ms,
        timeout: task.timeout_ms.map(Duration::from_millis),
        attempts: task.attempts,
        key: task.key,
        session,
        memory: task.memory_bytes,
        output: task.output_bytes,
    })
}

/// Submits a task for a caller.
pub(crate) async fn submit_one(
    gateway: &Gateway,
    by: &Caller,
    task: NewTask,
) -> Result<SubmittedTask, Failure> {
    let submission = submission(gateway, by, task)?;
    let submitted = tasks(gateway)?.submit(by, vec![submission], None).await.map_err(refused)?;
    let (id, earlier) = submitted.tasks.first().copied().ok_or_else(|| Failure {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        error: "the task was neither accepted nor refused".to_owned(),
        hint: None,
    })?;
    accepted(gateway, id, earlier).await
}

/// An accepted task; one that was there before has a state of its own.
async fn accepted(gateway: &Gateway, id: TaskId, earlier: bool) -> Result<SubmittedTask, Failure> {
    let state = match earlier {
        true => tasks(gateway)?.get(id).await.map_err(refused)?.record.state,
        false => TaskState::Queued,
    };
    Ok(SubmittedTask {
        id: id.to_string(),
        state: state.as_str().to_owned(),
        earlier,
        result: None,
        why: None,
    })
}

/// Submits tasks for a caller, all or none.
pub(crate) async fn submit_many(
    gateway: &Gateway,
    by: &Caller,
    wanted: NewBatch,
) -> Result<SubmittedBatch, Failure> {
    let NewBatch { tasks: new, batch: BatchOptions { name, project, key, session_id } } = wanted;
    if new.is_empty() {
        return Err(wrong("`tasks` is empty: a batch has one task at least"));
    }
    let mut submissions = Vec::with_capacity(new.len());
    for (index, mut task) in new.into_iter().enumerate() {
        task.session_id = task.session_id.or_else(|| session_id.clone());
        let read = submission(gateway, by, task);
        submissions
            .push(read.map_err(|why| Failure { error: format!("task {index}: {}", why.error), ..why })?);
    }
    let wish = BatchWish { name, key, project };
    let submitted = tasks(gateway)?.submit(by, submissions, Some(wish)).await.map_err(refused)?;
    let id = submitted.batch.ok_or_else(|| Failure {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        error: "the batch was neither accepted nor refused".to_owned(),
        hint: None,
    })?;
    let mut all = Vec::with_capacity(submitted.tasks.len());
    for (id, earlier) in &submitted.tasks {
        all.push(accepted(gateway, *id, *earlier).await?);
    }
    Ok(SubmittedBatch { id: id.to_string(), earlier: all.is_empty(), tasks: all })
}

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    project: Option<String>,
    state: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    batch: Option<String>,
    session: Option<String>,
    below: Option<u64>,
    limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
pub(super) struct PageQuery {
    below: Option<u64>,
    limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
pub(super) struct WaitQuery {
    wait_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct LinesQuery {
    n: Option<usize>,
}

#[derive(Debug, Deserialize)]
pub(super) struct WhyQuery {
    why: Option<String>,
}

fn state_of(word: &str) -> Result<TaskState, Failure> {
    let known = TaskState::ALL.into_iter().find(|state| state.as_str() == word);
    known.ok_or_else(|| {
        let all: Vec<&str> = TaskState::ALL.iter().map(|state| state.as_str()).collect();
        wrong(format!("`{word}` is no state of a task: use one of {}", all.join(", ")))
    })
}

/// `GET /api/v1/tasks`.
pub(super) async fn list(State(gateway): App, Query(query): Query<ListQuery>) -> Result<Response, Failure> {
    let batch: Option<BatchId> = query.batch.as_deref().map(id).transpose()?;
    if let Some(batch) = batch {
        // A number alone could be another's.
        tasks(&gateway)?.batch(batch).await.map_err(refused)?;
    }
    let filter = TaskFilter {
        project: query.project,
        state: query.state.as_deref().map(state_of).transpose()?,
        batch: batch.map(|batch| batch.seq),
        session: query.session,
        kind: query.kind,
    };
    let limit = query.limit.unwrap_or(LISTED).min(LISTED_MAX);
    let page = tasks(&gateway)?.list(filter, query.below, limit).await.map_err(refused)?;
    Ok(Json(views::page(tasks(&gateway)?, page).await.map_err(refused)?).into_response())
}

/// `POST /api/v1/tasks`.
pub(super) async fn submit(
    State(gateway): App,
    Query(query): Query<WaitQuery>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let (task, _held) = read_large(&gateway, request, TASK_BODY_MAX).await?;
    let mut submitted = submit_one(&gateway, &gateway.local, task).await?;
    let patience = patience(query.wait_ms);
    if !patience.is_zero() {
        let came = tasks(&gateway)?.result(id(&submitted.id)?, patience).await.map_err(refused)?;
        match came {
            Came::Result(json) => {
                submitted.state = TaskState::Succeeded.as_str().to_owned();
                submitted.result =
                    String::from_utf8(json.into()).ok().and_then(|json| RawValue::from_string(json).ok());
            }
            Came::Nothing { state, why } => {
                submitted.state = state.as_str().to_owned();
                submitted.why = why;
            }
        }
    }
    Ok((StatusCode::ACCEPTED, Json(submitted)).into_response())
}

fn patience(wait_ms: Option<u64>) -> Duration {
    Duration::from_millis(wait_ms.unwrap_or(0).min(WAIT_MAX_MS))
}

/// A task, once it has ended or so much time has passed.
pub(crate) async fn waited(gateway: &Gateway, id: TaskId, wait_ms: Option<u64>) -> Result<TaskView, Failure> {
    let tasks = tasks(gateway)?;
    let task = tasks.wait(id, patience(wait_ms)).await.map_err(refused)?;
    views::task(tasks, task).await.map_err(refused)
}

/// `GET /api/v1/tasks/{id}`.
pub(super) async fn one(
    State(gateway): App,
    Path(text): Path<String>,
    Query(query): Query<WaitQuery>,
) -> Result<Response, Failure> {
    Ok(Json(waited(&gateway, id(&text)?, query.wait_ms).await?).into_response())
}

/// `GET /api/v1/tasks/{id}/result`.
pub(super) async fn result(
    State(gateway): App,
    Path(text): Path<String>,
    Query(query): Query<WaitQuery>,
) -> Result<Response, Failure> {
    let id: TaskId = id(&text)?;
    let came = tasks(&gateway)?.result(id, patience(query.wait_ms)).await.map_err(refused)?;
    let (state, why) = match came {
        Came::Result(result) => return Ok(([(CONTENT_TYPE, "application/json")], result).into_response()),
        Came::Nothing { state, why } => (state, why),
    };
    let why = why.map_or_else(String::new, |why| format!(": {why}"));
    let hint = match state.has_ended() {
        false => format!("wait for it with `?wait_ms=30000` or `ostler task wait {id}`"),
        true => format!("`ostler task retry {id}` tries it again"),
    };
    Err(Failure {
        status: StatusCode::CONFLICT,
        error: format!("task {id} has no result: it is {}{why}", state.as_str()),
        hint: Some(hint),
    })
}

/// `GET /api/v1/tasks/{id}/logs`.
pub(super) async fn logs(
    State(gateway): App,
    Path(text): Path<String>,
    Query(query): Query<LinesQuery>,
) -> Result<Response, Failure> {
    let id = id(&text)?;
    let tasks = tasks(&gateway)?;
    // One that is not there has no log; that is said as what it is.
    tasks.get(id).await.map_err(refused)?;
    let mut lines = tasks.logs(id);
    let lines = lines.split_off(lines.len().saturating_sub(query.n.unwrap_or(usize::MAX)));
    Ok(Json(lines.into_iter().map(views::line).collect::<Vec<_>>()).into_response())
}

/// `GET /api/v1/tasks/{id}/events`.
pub(super) async fn events(State(gateway): App, Path(text): Path<String>) -> Result<Response, Failure> {
    follow::reply(&gateway, id(&text)?).await
}

/// Cancels a task, with a reason.
pub(crate) async fn cancelled(gateway: &Gateway, id: TaskId, why: Option<&str>) -> Result<TaskView, Failure> {
    let tasks = tasks(gateway)?;
    let task = tasks.cancel(id, why.unwrap_or(NO_REASON)).await.map_err(refused)?;
    views::task(tasks, task).await.map_err(refused)
}

/// `POST /api/v1/tasks/{id}/cancel`.
pub(super) async fn cancel(
    State(gateway): App,
    Path(text): Path<String>,
    Query(query): Query<WhyQuery>,
) -> Result<Response, Failure> {
    Ok(Json(cancelled(&gateway, id(&text)?, query.why.as_deref()).await?).into_response())
}

/// `POST /api/v1/tasks/{id}/retry`.
pub(super) async fn retry(State(gateway): App, Path(text): Path<String>) -> Result<Response, Failure> {
    let tasks = tasks(&gateway)?;
    let task = tasks.again(id(&text)?).await.map_err(refused)?;
    Ok(Json(views::task(tasks, task).await.map_err(refused)?).into_response())
}
