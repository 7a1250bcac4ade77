//! `/api/v1/batches`: tasks that were submitted together.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt as _, stream};
use http::{Request, StatusCode};
use ostler_api::types::tasks::{BATCH_BODY_MAX, LISTED, LISTED_MAX, WAIT_MAX_MS};
use ostler_api::{BatchPage, BatchView};
use ostler_domain::task::{BatchId, TaskId};
use ostler_store::journal::{TaskFilter, TaskState};
use ostler_supervisor::tasks::{TaskError, Tasks};
use tokio::time::Instant;

use super::{NO_REASON, PageQuery, WaitQuery, WhyQuery, id, read_large, refused, submit_many, tasks, views};
use crate::Gateway;
use crate::api::{App, Failure};

/// Tasks cancelled at the same time: the journal writes them down as one group.
const AT_ONCE: usize = 256;
/// How long until the next look where none of the tasks can be waited for, which is a moment's matter.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// `GET /api/v1/batches`.
pub(in crate::api) async fn list(
    State(gateway): App,
    Query(query): Query<PageQuery>,
) -> Result<Response, Failure> {
    let limit = query.limit.unwrap_or(LISTED).min(LISTED_MAX);
    let found = tasks(&gateway)?.batches(query.below, limit).await.map_err(refused)?;
    let below = found.last().filter(|_| found.len() == limit).map(|last| last.batch.id.seq);
    let batches: Vec<BatchView> = found.into_iter().map(views::batch).collect();
    Ok(Json(BatchPage { batches, below }).into_response())
}

/// `POST /api/v1/batches`.
pub(in crate::api) async fn submit(State(gateway): App, request: Request<Body>) -> Result<Response, Failure> {
    let (batch, _held) = read_large(&gateway, request, BATCH_BODY_MAX).await?;
    Ok((StatusCode::ACCEPTED, Json(submit_many(&gateway, &gateway.local, batch).await?)).into_response())
}

/// `GET /api/v1/batches/{id}`.
pub(in crate::api) async fn one(
    State(gateway): App,
    Path(text): Path<String>,
    Query(query): Query<WaitQuery>,
) -> Result<Response, Failure> {
    let patience = Duration::from_millis(query.wait_ms.unwrap_or(0).min(WAIT_MAX_MS));
    Ok(Json(ended(&gateway, id(&text)?, patience).await?).into_response())
}

/// A batch, once all its tasks have ended or so much time has passed.
pub(crate) async fn ended(gateway: &Gateway, id: BatchId, patience: Duration) -> Result<BatchView, Failure> {
    let until = Instant::now() + patience;
    let tasks = tasks(gateway)?;
    loop {
        let batch = views::batch(tasks.batch(id).await.map_err(refused)?);
        let left = until.saturating_duration_since(Instant::now());
        if batch.ended || left.is_zero() {
            return Ok(batch);
        }
        match last_open(tasks, id).await.map_err(refused)? {
            Some(task) => drop(tasks.wait(task, left).await.map_err(refused)?),
            None => tokio::time::sleep(left.min(LOOK_AGAIN)).await,
        }
    }
}

/// The newest task of a batch that has not ended: with luck the last to end.
async fn last_open(tasks: &Tasks, id: BatchId) -> Result<Option<TaskId>, TaskError> {
    for state in [TaskState::Queued, TaskState::Running] {
        let filter = TaskFilter { batch: Some(id.seq), state: Some(state), ..TaskFilter::default() };
        let mut below = None;
        loop {
            let page = tasks.list(filter.clone(), below, 1).await?;
            if let Some(task) = page.tasks.first() {
                return Ok(Some(task.id.into()));
            }
            let Some(next) = page.below else { break };
            below = Some(next);
        }
    }
    Ok(None)
}

/// All tasks of a batch, in the order in which they were given; those that have ended, too, where they are wanted.
pub(crate) async fn tasks_of(tasks: &Tasks, id: BatchId, all: bool) -> Result<Vec<TaskId>, TaskError> {
    let filter = TaskFilter { batch: Some(id.seq), ..TaskFilter::default() };
    let (mut found, mut below) = (Vec::new(), None);
    loop {
        let page = tasks.list(filter.clone(), below, LISTED_MAX).await?;
        let wanted = page.tasks.iter().filter(|task| all || !task.state.has_ended());
        found.extend(wanted.map(|task| TaskId::from(task.id)));
        let Some(next) = page.below else { break };
        below = Some(next);
    }
    found.reverse();
    Ok(found)
}

/// `POST /api/v1/batches/{id}/cancel`.
pub(in crate::api) async fn cancel(
    State(gateway): App,
    Path(text): Path<String>,
    Query(query): Query<WhyQuery>,
) -> Result<Response, Failure> {
    let id = id(&text)?;
    let tasks = tasks(&gateway)?;
    // First whether there is one.
    tasks.batch(id).await.map_err(refused)?;
    cancel_all(tasks, id, query.why.as_deref().unwrap_or(NO_REASON)).await.map_err(refused)?;
    Ok(Json(views::batch(tasks.batch(id).await.map_err(refused)?)).into_response())
}

/// Cancels the tasks of a batch that have not ended.
pub(crate) async fn cancel_all(tasks: &Arc<Tasks>, id: BatchId, why: &str) -> Result<(), TaskError> {
    let open = tasks_of(tasks, id, false).await?;
    let mut cancelling = stream::iter(open).map(|task| tasks.cancel(task, why)).buffer_unordered(AT_ONCE);
    while let Some(cancelled) = cancelling.next().await {
        match cancelled {
            // It has ended meanwhile.
            Ok(_) | Err(TaskError::State(_) | TaskError::Unknown(_)) => {}
            Err(why) => return Err(why),
        }
    }
    Ok(())
}
