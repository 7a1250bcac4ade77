//! The management API, `/api/v1`, and the health checks.
//!
//! It is served on the unix socket only, whose peers are known; the network listener has the health checks
//! and says where the API is.

mod events;
pub(crate) mod logs;
mod pool;
pub(crate) mod processes;
mod reload;
pub(crate) mod run;
pub(crate) mod sessions;
pub(crate) mod tasks;
mod usage;
pub(crate) mod views;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderValue, RETRY_AFTER};
use ostler_api::{ApiError, DaemonStatus, ServerView};
use ostler_supervisor::{InstanceHandle, Server};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::Gateway;
use crate::serve::Door;

type App = State<Arc<Gateway>>;

/// The state of an instance on its way down.
const ENDING: &str = "stopping";

/// Largest body that is read, in bytes: what the kernel takes of arguments and environment together, at most
/// (execve(2), "Limits on size of arguments and environment", with the usual stack of 8 MiB).
const MAX_BODY: usize = 2 << 20;

/// How long a server that was started and has ended already may take to be verified empty.
const ENDING_PATIENCE: Duration = Duration::from_secs(10);

/// The routes behind a door.
pub fn router(gateway: &Arc<Gateway>, door: Door) -> Router {
    let health = Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz));
    let router = match door {
        Door::Unix => health.merge(v1()),
        Door::Tcp => {
            let all = get(elsewhere).post(elsewhere).put(elsewhere).delete(elsewhere);
            health.route("/api/{*path}", all)
        }
    };
    router.fallback(not_found).with_state(Arc::clone(gateway))
}

fn v1() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/servers", get(servers))
        .route("/api/v1/servers/{name}", get(server))
        .route("/api/v1/servers/{name}/start", post(start_server))
        .route("/api/v1/servers/{name}/stop", post(stop_server))
        .route("/api/v1/servers/{name}/restart", post(restart_server))
        .route("/api/v1/servers/{name}/logs", get(server_logs))
        .route("/api/v1/instances", get(instances))
        .route("/api/v1/instances/{id}", get(instance))
        .route("/api/v1/instances/{id}/start", post(start_instance))
        .route("/api/v1/instances/{id}/stop", post(stop_instance))
        .route("/api/v1/instances/{id}/restart", post(restart_instance))
        .route("/api/v1/instances/{id}/logs", get(instance_logs))
        .route("/api/v1/sessions", get(sessions::list).post(sessions::open))
        .route("/api/v1/sessions/{id}", get(sessions::one).delete(sessions::end))
        .route("/api/v1/sessions/{id}/instances/{name}", post(sessions::instance).delete(sessions::give_up))
        .route("/api/v1/processes", get(processes::list).post(processes::spawn))
        .route("/api/v1/processes/{name}", get(processes::one).delete(processes::remove))
        .route("/api/v1/processes/{name}/stop", post(processes::stop))
        .route("/api/v1/processes/{name}/logs", get(processes::logs))
        .route("/api/v1/run", post(run::run))
        .merge(of_tasks())
        .route("/api/v1/events", get(events::events))
        .route("/api/v1/audit", post(audit))
        .route("/api/v1/alerts", get(alerts))
        .route("/api/v1/reload", post(reload::reload))
        .route("/api/v1/shutdown", post(shutdown))
        .route("/api/v1/openapi.json", get(openapi))
}

fn of_tasks() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/api/v1/tasks", get(tasks::list).post(tasks::submit))
        .route("/api/v1/tasks/{id}", get(tasks::one))
        .route("/api/v1/tasks/{id}/result", get(tasks::result))
        .route("/api/v1/tasks/{id}/logs", get(tasks::logs))
        .route("/api/v1/tasks/{id}/events", get(tasks::events))
        .route("/api/v1/tasks/{id}/cancel", post(tasks::cancel))
        .route("/api/v1/tasks/{id}/retry", post(tasks::retry))
        .route("/api/v1/batches", get(tasks::batches::list).post(tasks::batches::submit))
        .route("/api/v1/batches/{id}", get(tasks::batches::one))
        .route("/api/v1/batches/{id}/cancel", post(tasks::batches::cancel))
        .route("/api/v1/projects", get(pool::projects))
        .route("/api/v1/projects/{name}/limit", put(pool::limit))
        .route("/api/v1/pool", get(pool::pool))
        .route("/api/process-pool/stats", get(pool::stats))
        .route("/api/process-pool/project-limit", post(pool::project_limit))
        .route("/api/process-pool/project-usage", get(pool::project_usage))
}

/// An error of the API.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    pub(crate) error: String,
    pub(crate) hint: Option<String>,
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut answer = (self.status, Json(ApiError { error: self.error, hint: self.hint })).into_response();
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        answer
    }
}

fn missing(what: &str, name: &str) -> Failure {
    Failure {
        status: StatusCode::NOT_FOUND,
        error: format!("there is no {what} `{name}`"),
        hint: Some("`ostler ps` lists servers and instances".to_owned()),
    }
}

/// The same, with the name that resembles it most, where one does.
fn missing_among<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a Arc<Server>>) -> Failure {
    let nearest = known
        .map(|server| server.spec.name.as_str())
        .map(|known| (strsim::damerau_levenshtein(known, name), known))
        .min()
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4);
    let failure = missing(what, name);
    match nearest {
        Some((_, known)) => Failure { hint: Some(format!("did you mean `{known}`?")), ..failure },
        None => failure,
    }
}

pub(crate) fn find_server(gateway: &Gateway, name: &str) -> Result<Arc<Server>, Failure> {
    let table = gateway.supervisor.servers();
    table.get(name).cloned().ok_or_else(|| missing_among("server", name, table.all().iter()))
}

pub(crate) fn find_instance(gateway: &Gateway, id: &str) -> Result<Arc<InstanceHandle>, Failure> {
    gateway.supervisor.instance(id).ok_or_else(|| missing("instance", id))
}

/// Reads a body of JSON: bounded in size and, by `gateway.body_timeout`, in time.
async fn read<T: DeserializeOwned>(gateway: &Gateway, body: Body) -> Result<T, Failure> {
    decode(&read_bytes(gateway, body, MAX_BODY).await?)
}

/// The same for a body of up to `most` bytes that is not read as JSON yet.
async fn read_bytes(gateway: &Gateway, body: Body, most: usize) -> Result<Bytes, Failure> {
    let patience = gateway.supervisor.config().gateway.body_timeout;
    let failure = |status, error| Failure { status, error, hint: None };
    let whole = tokio::time::timeout(patience, axum::body::to_bytes(body, most)).await.map_err(|_| {
        let error = format!("the body did not come within {patience:?} (gateway.body_timeout)");
        failure(StatusCode::REQUEST_TIMEOUT, error)
    })?;
    whole.map_err(|error| {
        let error = format!("the body broke off, or is larger than {most} bytes: {error}");
        failure(StatusCode::PAYLOAD_TOO_LARGE, error)
    })
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure {
        status: StatusCode::BAD_REQUEST,
        error: format!("the body is not what is wanted here: {error}"),
        hint: Some("/api/v1/openapi.json describes it".to_owned()),
    })
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(gateway): App) -> Response {
    let missing = gateway.supervisor.not_ready();
    if missing.is_empty() {
        return "ready\n".into_response();
    }
    let body = format!("not ready: {} (`ostler ps` says more)\n", missing.join("; "));
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}

async fn elsewhere() -> Failure {
    Failure {
        status: StatusCode::FORBIDDEN,
        error: "the management API is not served over the network".to_owned(),
        hint: Some("use the `ostler` command, or the unix socket in the runtime directory".to_owned()),
    }
}

async fn not_found(uri: http::Uri) -> Failure {
    let error = format!("nothing is served at {}", uri.path());
    Failure {
        status: StatusCode::NOT_FOUND,
        error,
        hint: Some("MCP endpoints are at /mcp/{server}".to_owned()),
    }
}

async fn status(State(gateway): App) -> Json<DaemonStatus> {
    let supervisor = &gateway.supervisor;
    supervisor.monitor().measured().await;
    let overview = supervisor.monitor().overview();
    Json(DaemonStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_ms: u64::try_from(gateway.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        http: gateway.base.clone(),
        rung: "guard and subreaper".to_owned(),
        ready: supervisor.ready(),
        sessions: supervisor.sessions().len() as u64,
        max_sessions: supervisor.sessions().limit() as u64,
        rss_bytes: ostler_os::own::rss_bytes().unwrap_or(0),
        ports_held: supervisor.ports().held as u64,
        alerts: supervisor.alerts().count() as u64,
        cleanups: supervisor.cleanups().into_iter().map(views::cleanup).collect(),
        body_bytes: supervisor.budget().used() as u64,
        counters: supervisor.events().counters(),
        usage: usage::all(&overview),
        gauges: overview.gauges.iter().map(usage::gauge).collect(),
    })
}

async fn servers(State(gateway): App) -> Response {
    Json(views::servers(&gateway, gateway.supervisor.servers().all()).await).into_response()
}

async fn server_view(gateway: &Gateway, server: &Arc<Server>) -> Result<ServerView, Failure> {
    let mut views = views::servers(gateway, std::slice::from_ref(server)).await;
    views.pop().ok_or_else(|| missing("server", server.spec.name.as_str()))
}

async fn one_server(gateway: &Gateway, server: &Arc<Server>) -> Result<Response, Failure> {
    server_view(gateway, server).await.map(|view| Json(view).into_response())
}

async fn server(State(gateway): App, Path(name): Path<String>) -> Result<Response, Failure> {
    one_server(&gateway, &find_server(&gateway, &name)?).await
}

async fn start_server(State(gateway): App, Path(name): Path<String>) -> Result<Response, Failure> {
    let server = find_server(&gateway, &name)?;
    gateway.supervisor.start_server(&server, &gateway.local).await.map_err(|error| Failure {
        status: StatusCode::SERVICE_UNAVAILABLE,
        error: error.to_string(),
        hint: None,
    })?;
    begun(&gateway, &server).await
}

/// A server that was just started. One that came to its end at once, as a small program does, is shown once that is
/// verified: on its way there it is neither up nor down.
async fn begun(gateway: &Gateway, server: &Arc<Server>) -> Result<Response, Failure> {
    let view = server_view(gateway, server).await?;
    if view.instances.iter().all(|instance| instance.state != ENDING) {
        return Ok(Json(view).into_response());
    }
    let instances = server.instances();
    futures_util::future::join_all(instances.iter().map(|handle| past_its_end(handle))).await;
    one_server(gateway, server).await
}

/// The same for an instance.
async fn begun_instance(gateway: &Gateway, handle: &InstanceHandle) -> Result<Response, Failure> {
    past_its_end(handle).await;
    one_instance(gateway, &handle.id.to_string()).await
}

/// Returns when an instance is not on its way down. One that the kernel holds is shown as it is.
async fn past_its_end(handle: &InstanceHandle) {
    let ended = handle.until(|snapshot| snapshot.state.as_str() != ENDING);
    let _ = tokio::time::timeout(ENDING_PATIENCE, ended).await;
}

async fn stop_server(State(gateway): App, Path(name): Path<String>) -> Result<Response, Failure> {
    let server = find_server(&gateway, &name)?;
    gateway.supervisor.stop_server(&server).await;
    one_server(&gateway, &server).await
}

async fn restart_server(State(gateway): App, Path(name): Path<String>) -> Result<Response, Failure> {
    let server = find_server(&gateway, &name)?;
    let handles = server.instances();
    if handles.is_empty() || server.stopped() {
        return start_server(State(Arc::clone(&gateway)), Path(name)).await;
    }
    let restarts = handles.iter().map(|handle| gateway.supervisor.restart_instance(handle));
    futures_util::future::join_all(restarts).await;
    begun(&gateway, &server).await
}

#[derive(Debug, Deserialize)]
struct InstanceQuery {
    pid: Option<u32>,
}

async fn instances(State(gateway): App, Query(query): Query<InstanceQuery>) -> Response {
    let mut rows = views::instances(&gateway).await;
    if let Some(pid) = query.pid {
        let registry = Arc::clone(gateway.supervisor.registry());
        // It fails only when the runtime is going.
        let found = tokio::task::spawn_blocking(move || registry.by_pid(pid)).await.ok().flatten();
        let id = found.map(|handle| handle.id.to_string());
        rows.retain(|row| Some(&row.id) == id.as_ref());
    }
    Json(rows).into_response()
}

async fn one_instance(gateway: &Gateway, id: &str) -> Result<Response, Failure> {
    let view = views::instances(gateway).await.into_iter().find(|view| view.id == id);
    view.map(|view| Json(view).into_response()).ok_or_else(|| missing("instance", id))
}

async fn instance(State(gateway): App, Path(id): Path<String>) -> Result<Response, Failure> {
    one_instance(&gateway, &id).await
}

async fn start_instance(State(gateway): App, Path(id): Path<String>) -> Result<Response, Failure> {
    let handle = find_instance(&gateway, &id)?;
    gateway.supervisor.start_instance(&handle).await;
    begun_instance(&gateway, &handle).await
}

async fn stop_instance(State(gateway): App, Path(id): Path<String>) -> Result<Response, Failure> {
    gateway.supervisor.stop_instance(&*find_instance(&gateway, &id)?).await;
    one_instance(&gateway, &id).await
}

async fn restart_instance(State(gateway): App, Path(id): Path<String>) -> Result<Response, Failure> {
    let handle = find_instance(&gateway, &id)?;
    gateway.supervisor.restart_instance(&handle).await;
    begun_instance(&gateway, &handle).await
}

#[derive(Debug, Deserialize)]
struct LogQuery {
    n: Option<usize>,
    #[serde(default)]
    follow: bool,
}

async fn instance_logs(
    State(gateway): App,
    Path(id): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Response, Failure> {
    let handle = find_instance(&gateway, &id)?;
    Ok(logs::reply(vec![handle], query.n.unwrap_or(logs::DEFAULT_LINES), query.follow))
}

async fn server_logs(
    State(gateway): App,
    Path(name): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Response, Failure> {
    let handles = find_server(&gateway, &name)?.instances();
    Ok(logs::reply(handles, query.n.unwrap_or(logs::DEFAULT_LINES), query.follow))
}

async fn audit(State(gateway): App) -> Result<Response, Failure> {
    let audit = gateway.supervisor.audit().await.map_err(|error| Failure {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        error: format!("the processes of this machine cannot be listed: {error}"),
        hint: None,
    })?;
    Ok(Json(views::audit(&audit)).into_response())
}

async fn alerts(State(gateway): App) -> Response {
    let active = gateway.supervisor.alerts().active();
    Json(active.into_iter().map(views::alert).collect::<Vec<_>>()).into_response()
}

async fn shutdown(State(gateway): App) -> Response {
    gateway.shutdown.notify_one();
    (StatusCode::ACCEPTED, Json(serde_json::json!({}))).into_response()
}

async fn openapi() -> Response {
    let json = ostler_api::openapi_json();
    ([(http::header::CONTENT_TYPE, "application/json")], json).into_response()
}
