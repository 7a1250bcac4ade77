//! `/api/v1/pool` and `/api/v1/projects`: the workers, and whose tasks they do; and `/api/process-pool/*`, which says the
//! same in the words of an earlier system, for its clients.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::Request;
use ostler_api::{
    LaneView, ProcessPoolLimit, ProcessPoolLimitSet, ProcessPoolProject, ProcessPoolStats, ProcessPoolTasks,
    ProcessPoolUsage, ProcessPoolWorkers, ProjectLimit, ProjectView, TaskFigures, TaskPoolView,
};
use ostler_domain::task::queue::Figures;
use ostler_store::journal::{TaskFilter, TaskState};
use ostler_supervisor::tasks::{self as driver, Tasks};

use super::tasks::{refused, tasks, views};
use super::{App, Failure, read};
use crate::Gateway;

/// So many of the newest tasks with a result tell how long one takes.
const RECENT: usize = 100;

/// `GET /api/v1/pool`.
pub(super) async fn pool(State(gateway): App) -> Result<Response, Failure> {
    Ok(Json(overview(&gateway).await?).into_response())
}

async fn overview(gateway: &Gateway) -> Result<TaskPoolView, Failure> {
    let tasks = tasks(gateway)?;
    let stats = tasks.stats().await.map_err(refused)?;
    let mean = mean(tasks).await?;
    let config = gateway.supervisor.config();
    let lanes: Vec<LaneView> = stats.lanes.into_iter().map(|lane| self::lane(gateway, lane)).collect();
    // Calls of tools need no workers.
    let (busy, serving) = lanes.iter().fold((0, 0), |(busy, serving), lane| {
        let workers = lane.free + lane.busy + lane.starting;
        if workers == 0 { (busy, serving) } else { (busy + lane.busy, serving + workers) }
    });
    Ok(TaskPoolView {
        journal: config.tasks.journal.as_str().to_owned(),
        uptime_ms: millis(stats.uptime),
        load: share(busy, serving),
        tasks: views::counts(stats.counts),
        queued: stats.queue.queued as u64,
        delayed: stats.queue.delayed as u64,
        queued_max: config.tasks.queue.queued as u64,
        done: figures(&stats.queue, mean),
        lanes,
    })
}

fn figures(queue: &Figures, mean: Duration) -> TaskFigures {
    TaskFigures {
        begun: queue.assigned,
        retried: queue.retried,
        expired: queue.expired,
        cancelled: queue.cancelled,
        refused: queue.refused_by_queue + queue.refused_by_project,
        mean_ms: millis(mean),
    }
}

fn lane(gateway: &Gateway, lane: driver::LaneView) -> LaneView {
    let config = gateway.supervisor.config();
    // A part of a lane is as that is.
    let kind = lane.name.split('@').next().unwrap_or_default();
    let scale = lane.workers.and_then(|_| config.workers.settings(kind)).map(|own| own.spec.scale);
    let (queued, running) = (lane.queued as u64, lane.running as u64);
    match (lane.workers, scale) {
        (Some(workers), scale) => {
            let (starting, free, busy) = (workers.starting as u64, workers.free as u64, workers.busy as u64);
            LaneView {
                name: lane.name,
                queued,
                running,
                target: workers.target as u64,
                min: scale.map_or(0, |scale| scale.min as u64),
                max: scale.map_or(0, |scale| scale.max as u64),
                starting,
                free,
                busy,
                leaving: workers.leaving as u64,
                load: share(busy, starting + free + busy),
                trouble: lane.trouble,
            }
        }
        (None, _) => {
            let max = config.tasks.calls as u64;
            LaneView {
                name: lane.name,
                queued,
                running,
                target: 0,
                min: 0,
                max,
                starting: 0,
                free: 0,
                busy: 0,
                leaving: 0,
                load: share(running, max),
                trouble: lane.trouble,
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share, of counts far below 2^53")]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How long the last attempts took of the newest tasks that have a result.
async fn mean(tasks: &Tasks) -> Result<Duration, Failure> {
    let filter = TaskFilter { state: Some(TaskState::Succeeded), ..TaskFilter::default() };
    let page = tasks.list(filter, None, RECENT).await.map_err(refused)?;
    let took = |task: &ostler_store::journal::TaskRecord| {
        Some(task.ended?.unix_ms.saturating_sub(task.begun?.unix_ms))
    };
    let all: Vec<u64> = page.tasks.iter().filter_map(took).collect();
    let sum: u64 = all.iter().sum();
    Ok(Duration::from_millis(sum.checked_div(all.len() as u64).unwrap_or(0)))
}

/// `GET /api/v1/projects`.
pub(super) async fn projects(State(gateway): App) -> Result<Response, Failure> {
    let all = tasks(&gateway)?.projects();
    Ok(Json(all.into_iter().map(|one| project(&gateway, one)).collect::<Vec<_>>()).into_response())
}

fn project(gateway: &Gateway, project: driver::ProjectView) -> ProjectView {
    let config = gateway.supervisor.config();
    let driver::ProjectView { name, figures, is_set } = project;
    let own = config.projects.get(&name).and_then(|own| own.limits.running);
    let from = match own {
        _ if is_set => "set",
        Some(_) => "project",
        None => "default",
    };
    ProjectView {
        name,
        running: figures.running as u64,
        running_max: figures.running_max as u64,
        running_max_from: from.to_owned(),
        queued: figures.queued as u64,
        queued_max: figures.queued_max as u64,
        weight: figures.weight,
        begun: figures.assigned,
    }
}

/// `PUT /api/v1/projects/{name}/limit`.
pub(super) async fn limit(
    State(gateway): App,
    Path(name): Path<String>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let ProjectLimit { running } = read(&gateway, request.into_body()).await?;
    let limited = set(&gateway, &name, running).await?;
    Ok(Json(project(&gateway, limited)).into_response())
}

/// Sets how many tasks of a project may run. More than can be counted is as many as there are.
async fn set(gateway: &Gateway, name: &str, running: Option<u64>) -> Result<driver::ProjectView, Failure> {
    let running = running.map(|running| usize::try_from(running).unwrap_or(usize::MAX));
    tasks(gateway)?.set_project_limit(name, running).await.map_err(refused)
}

/// `GET /api/process-pool/stats`.
pub(super) async fn stats(State(gateway): App) -> Result<Response, Failure> {
    let pool = overview(&gateway).await?;
    let busy = pool.lanes.iter().map(|lane| lane.busy).sum();
    let available = pool.lanes.iter().map(|lane| lane.free).sum();
    let starting: u64 = pool.lanes.iter().map(|lane| lane.starting).sum();
    let total = starting + busy + available;
    let running = tasks(&gateway)?.projects().into_iter().filter(|project| project.figures.running > 0);
    let stats = ProcessPoolStats {
        workers: ProcessPoolWorkers { total, available, busy },
        tasks: ProcessPoolTasks {
            queued: pool.queued,
            total: pool.tasks.total(),
            completed: pool.tasks.succeeded,
            failed: pool.tasks.dead,
            avg_time: pool.done.mean_ms,
        },
        load: ProcessPoolStats::load(busy, pool.queued, total),
        project_usage: running.map(|project| (project.name, project.figures.running as u64)).collect(),
        uptime: pool.uptime_ms,
    };
    Ok(Json(stats).into_response())
}

/// `POST /api/process-pool/project-limit`.
pub(super) async fn project_limit(State(gateway): App, request: Request<Body>) -> Result<Response, Failure> {
    let ProcessPoolLimit { project_id, limit } = read(&gateway, request.into_body()).await?;
    set(&gateway, &project_id, Some(limit)).await?;
    let message = format!("at most {limit} tasks of project {project_id} run from now on");
    Ok(Json(ProcessPoolLimitSet { message, project_id, limit }).into_response())
}

/// `GET /api/process-pool/project-usage`.
pub(super) async fn project_usage(State(gateway): App) -> Result<Response, Failure> {
    let all = tasks(&gateway)?.projects().into_iter().map(|driver::ProjectView { name, figures, .. }| {
        (name, ProcessPoolProject::of(figures.running as u64, figures.running_max as u64))
    });
    Ok(Json(ProcessPoolUsage(all.collect())).into_response())
}
