//! `/api/v1/processes`: processes started by hand.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::{Request, StatusCode};
use ostler_api::{NewProcess, ProcessView, RestartWhen};
use ostler_domain::{ResourceLimits, RestartPolicy};
use ostler_supervisor::{AdHocSpec, Server, SpawnRefused};

use super::{App, Failure, LogQuery, missing_among, read, views};
use crate::Gateway;

fn find(gateway: &Gateway, name: &str) -> Result<Arc<Server>, Failure> {
    if let Some(process) = gateway.supervisor.process(name) {
        return Ok(process);
    }
    let table = gateway.supervisor.servers();
    if table.get(name).is_some() {
        return Err(Failure {
            status: StatusCode::NOT_FOUND,
            error: format!("`{name}` is a server of the configuration, not a process started by hand"),
            hint: Some(format!("`ostler stop {name}` stops it; the configuration decides whether it exists")),
        });
    }
    let known = table.all().iter().filter(|server| server.is_by_hand());
    Err(missing_among("process", name, known))
}

async fn view(gateway: &Gateway, server: &Arc<Server>) -> Result<ProcessView, Failure> {
    let mut views = views::processes(gateway, std::slice::from_ref(server)).await;
    views.pop().ok_or_else(|| Failure {
        status: StatusCode::NOT_FOUND,
        error: format!("the process `{}` has just been removed", server.spec.name),
        hint: None,
    })
}

/// Starts a process; what it is like when it runs, or has failed to.
pub(crate) async fn spawned(gateway: &Gateway, wanted: NewProcess) -> Result<ProcessView, Failure> {
    let server = gateway.supervisor.spawn_process(spec(wanted)).await.map_err(refused)?;
    view(gateway, &server).await
}

/// `GET /api/v1/processes`.
pub(super) async fn list(State(gateway): App) -> Response {
    let table = gateway.supervisor.servers();
    let processes: Vec<_> = table.all().iter().filter(|server| server.is_by_hand()).cloned().collect();
    Json(views::processes(&gateway, &processes).await).into_response()
}

/// `GET /api/v1/processes/{name}`.
pub(super) async fn one(State(gateway): App, Path(name): Path<String>) -> Result<Response, Failure> {
    Ok(Json(view(&gateway, &find(&gateway, &name)?).await?).into_response())
}

/// `POST /api/v1/processes`.
pub(super) async fn spawn(State(gateway): App, request: Request<Body>) -> Result<Response, Failure> {
    let wanted: NewProcess = read(&gateway, request.into_body()).await?;
    Ok((StatusCode::CREATED, Json(spawned(&gateway, wanted).await?)).into_response())
}

/// `POST /api/v1/processes/{name}/stop`.
pub(super) async fn stop(State(gateway): App, Path(name): Path<String>) -> Result<Response, Failure> {
    let server = find(&gateway, &name)?;
    gateway.supervisor.stop_server(&server).await;
    Ok(Json(view(&gateway, &server).await?).into_response())
}

/// `DELETE /api/v1/processes/{name}`.
pub(super) async fn remove(State(gateway): App, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    gateway.supervisor.remove_process(&find(&gateway, &name)?).await;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /api/v1/processes/{name}/logs`.
pub(super) async fn logs(
    State(gateway): App,
    Path(name): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Response, Failure> {
    let handles = find(&gateway, &name)?.instances();
    Ok(super::logs::reply(handles, query.n.unwrap_or(super::logs::DEFAULT_LINES), query.follow))
}

fn spec(wanted: NewProcess) -> AdHocSpec {
    AdHocSpec {
        name: wanted.name,
        command: wanted.command,
        shell: wanted.shell,
        cwd: wanted.cwd.map(Into::into),
        env: wanted.env,
        inherit_env: wanted.inherit_env,
        restart: match wanted.restart {
            RestartWhen::Never => RestartPolicy::Never,
            RestartWhen::OnFailure => RestartPolicy::OnFailure,
            RestartWhen::Always => RestartPolicy::Always,
        },
        max_restarts: wanted.max_restarts,
        limits: ResourceLimits {
            memory: wanted.limits.memory_bytes,
            cpu: wanted.limits.cpu,
            pids: wanted.limits.pids,
            open_files: wanted.limits.open_files,
            nice: wanted.limits.nice,
            ..ResourceLimits::default()
        },
    }
}

fn refused(refused: SpawnRefused) -> Failure {
    let (status, hint) = match &refused {
        SpawnRefused::Invalid(_) => (StatusCode::BAD_REQUEST, None),
        SpawnRefused::Taken(_) => (StatusCode::CONFLICT, None),
        SpawnRefused::Full(_) => (
            StatusCode::TOO_MANY_REQUESTS,
            Some("`ostler ps` lists what runs; an ended one makes room by itself"),
        ),
        SpawnRefused::Closed(_) => (StatusCode::SERVICE_UNAVAILABLE, None),
    };
    Failure { status, error: refused.to_string(), hint: hint.map(str::to_owned) }
}
