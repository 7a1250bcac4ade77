//! Every route of the management API, in one table. The OpenAPI document is built from it and the client
//! takes its paths from it, so neither can name a route the other does not know.

mod tasks;

use hyper::Method;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::run::{RunEvent, RunMany, RunReport};
use crate::types::{
    AlertView, ApiError, AuditView, DaemonStatus, DrainingView, EventView, InstanceView, LogLine, NewProcess,
    NewSession, OpenedSession, OwnInstanceView, ProcessView, ReloadView, ServerView, SessionView,
};

pub use tasks::{
    BATCH, BATCH_CANCEL, BATCH_SUBMIT, BATCHES, POOL, PROCESS_POOL_LIMIT, PROCESS_POOL_STATS,
    PROCESS_POOL_USAGE, PROJECT_LIMIT, PROJECTS, TASK, TASK_CANCEL, TASK_EVENTS, TASK_LOGS, TASK_RESULT,
    TASK_RETRY, TASK_SUBMIT, TASKS,
};

/// Where a parameter stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// A `{name}` of the path template; always required.
    Path,
    /// The query string; always optional.
    Query,
    /// A header; always optional.
    Header,
}

/// What a parameter holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ParamKind {
    /// Text.
    Text,
    /// A whole number from 0.
    Count,
    /// `true` or `false`.
    Flag,
}

/// One parameter of a route.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// Where it stands.
    pub place: Place,
    /// What it holds.
    pub kind: ParamKind,
    /// What it means.
    pub description: &'static str,
}

/// A type of [`crate::types`], as the OpenAPI document names and describes it.
#[derive(Clone, Copy)]
pub struct TypeRef {
    /// Its name among the document's components.
    pub name: &'static str,
    /// Its schema.
    pub schema: fn() -> RefOr<Schema>,
    /// Collects the schemas of the types it contains.
    pub dependencies: fn(&mut Vec<(String, RefOr<Schema>)>),
}

impl TypeRef {
    const fn of<T: ToSchema>(name: &'static str) -> Self {
        Self { name, schema: <T as PartialSchema>::schema, dependencies: <T as ToSchema>::schemas }
    }
}

impl std::fmt::Debug for TypeRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// What a route answers when it succeeds.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// 200 with one object.
    One(TypeRef),
    /// 201 with the object that was made.
    Created(TypeRef),
    /// 200 with an array of objects.
    List(TypeRef),
    /// As [`Answer::List`], or for those who accept `text/event-stream` one event for each object, as they come.
    Feed(TypeRef),
    /// 200 with one object; or for those who accept `text/event-stream` events, the last of which holds it.
    Followed(TypeRef, TypeRef),
    /// 200 with newline-delimited objects, as they come.
    Lines(TypeRef),
    /// 202 with an empty object: it was begun.
    Accepted,
    /// 202 with one object: it was accepted, and is done later.
    AcceptedAs(TypeRef),
    /// 200 with events, as they come.
    Events(TypeRef),
    /// 200 with JSON of any kind.
    Json,
    /// 204 without a body.
    NoContent,
    /// The same, or 202 with one object: it was begun, and is not done yet.
    NoContentOr(TypeRef),
    /// 200 with the OpenAPI document.
    OpenApi,
}

/// One route.
#[derive(Clone, Debug)]
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path, with `{name}` where a path parameter stands. Routers that use the same notation take it as it is.
    pub template: &'static str,
    /// Its name for programs, unique in the table.
    pub operation_id: &'static str,
    /// What it does, in one sentence.
    pub summary: &'static str,
    /// Its parameters.
    pub params: &'static [Param],
    /// What its body holds, as JSON, where it has one.
    pub body: Option<TypeRef>,
    /// What it answers.
    pub answer: Answer,
}

/// The error body's type, which every route can answer.
pub const ERROR: TypeRef = TypeRef::of::<ApiError>("ApiError");

const STATUS_T: TypeRef = TypeRef::of::<DaemonStatus>("DaemonStatus");
const SERVER_T: TypeRef = TypeRef::of::<ServerView>("ServerView");
const INSTANCE_T: TypeRef = TypeRef::of::<InstanceView>("InstanceView");
const NEW_SESSION_T: TypeRef = TypeRef::of::<NewSession>("NewSession");
const OPENED_SESSION_T: TypeRef = TypeRef::of::<OpenedSession>("OpenedSession");
const OWN_INSTANCE_T: TypeRef = TypeRef::of::<OwnInstanceView>("OwnInstanceView");
const DRAINING_T: TypeRef = TypeRef::of::<DrainingView>("DrainingView");
const SESSION_T: TypeRef = TypeRef::of::<SessionView>("SessionView");
const ALERT_T: TypeRef = TypeRef::of::<AlertView>("AlertView");
const AUDIT_T: TypeRef = TypeRef::of::<AuditView>("AuditView");
const EVENT_T: TypeRef = TypeRef::of::<EventView>("EventView");
const NEW_PROCESS_T: TypeRef = TypeRef::of::<NewProcess>("NewProcess");
const PROCESS_T: TypeRef = TypeRef::of::<ProcessView>("ProcessView");
const RELOAD_T: TypeRef = TypeRef::of::<ReloadView>("ReloadView");
const RUN_MANY_T: TypeRef = TypeRef::of::<RunMany>("RunMany");
const RUN_REPORT_T: TypeRef = TypeRef::of::<RunReport>("RunReport");
const RUN_EVENT_T: TypeRef = TypeRef::of::<RunEvent>("RunEvent");
const LINE_T: TypeRef = TypeRef::of::<LogLine>("LogLine");

const fn param(name: &'static str, place: Place, kind: ParamKind, description: &'static str) -> Param {
    Param { name, place, kind, description }
}

const NAME: Param = param("name", Place::Path, ParamKind::Text, "The server's name.");
const PROCESS_NAME: Param = param("name", Place::Path, ParamKind::Text, "The process's name.");
const INSTANCE_ID: Param = param("id", Place::Path, ParamKind::Text, "The instance, `<server>.<number>`.");
const SESSION_ID: Param = param("id", Place::Path, ParamKind::Text, "The session's short handle.");
const PID: Param =
    param("pid", Place::Query, ParamKind::Count, "Only the instance to whose tree this process belongs.");
const LINES: Param =
    param("n", Place::Query, ParamKind::Count, "Send at most this many of the newest kept lines.");
const FOLLOW: Param =
    param("follow", Place::Query, ParamKind::Flag, "Keep sending new lines until the client goes.");
const SINCE: Param = param("since", Place::Query, ParamKind::Count, "Only events with a greater `seq`.");
const EVENTS: Param = param(
    "n",
    Place::Query,
    ParamKind::Count,
    "Begin with at most this many, the newest. A stream that is resumed begins where it was left.",
);
const EVENT_KIND: Param = param(
    "kind",
    Place::Query,
    ParamKind::Text,
    "Only events of this kind, or of these, with commas between.",
);
const EVENT_SUBJECT: Param = param(
    "subject",
    Place::Query,
    ParamKind::Text,
    "Only what happened to this; a server's name stands for its instances, too.",
);
const EVENT_SEVERITY: Param =
    param("severity", Place::Query, ParamKind::Text, "Only what is at least `info`, `warning` or `error`.");
const LAST_EVENT_ID: Param = param(
    "Last-Event-ID",
    Place::Header,
    ParamKind::Count,
    "Of a stream: the last `seq` that was read; it wins over `since`.",
);

const DRY_RUN: Param =
    param("dry_run", Place::Query, ParamKind::Flag, "Only say what would change; nothing is done.");

const fn route(
    method: Method,
    template: &'static str,
    operation_id: &'static str,
    summary: &'static str,
    params: &'static [Param],
    answer: Answer,
) -> Route {
    Route { method, template, operation_id, summary, params, body: None, answer }
}

const fn with_body(mut route: Route, body: TypeRef) -> Route {
    route.body = Some(body);
    route
}

/// The daemon as a whole.
pub const STATUS: Route =
    route(Method::GET, "/api/v1/status", "status", "The daemon as a whole.", &[], Answer::One(STATUS_T));
/// All servers.
pub const SERVERS: Route = route(
    Method::GET,
    "/api/v1/servers",
    "listServers",
    "All servers with their instances: the configured ones, then the processes started by hand.",
    &[],
    Answer::List(SERVER_T),
);
/// One server.
pub const SERVER: Route = route(
    Method::GET,
    "/api/v1/servers/{name}",
    "getServer",
    "One server with its instances.",
    &[NAME],
    Answer::One(SERVER_T),
);
/// Start a server.
pub const SERVER_START: Route = route(
    Method::POST,
    "/api/v1/servers/{name}/start",
    "startServer",
    "Start a server; answers when it is ready or has failed.",
    &[NAME],
    Answer::One(SERVER_T),
);
/// Stop a server.
pub const SERVER_STOP: Route = route(
    Method::POST,
    "/api/v1/servers/{name}/stop",
    "stopServer",
    "Stop every instance of a server; answers when no process of it is left.",
    &[NAME],
    Answer::One(SERVER_T),
);
/// Restart a server.
pub const SERVER_RESTART: Route = route(
    Method::POST,
    "/api/v1/servers/{name}/restart",
    "restartServer",
    "Stop and start a server; answers when it is ready or has failed.",
    &[NAME],
    Answer::One(SERVER_T),
);
/// Log lines of all instances of a server.
pub const SERVER_LOGS: Route = route(
    Method::GET,
    "/api/v1/servers/{name}/logs",
    "serverLogs",
    "Log lines of all instances of a server, in the order they were read.",
    &[NAME, LINES, FOLLOW],
    Answer::Lines(LINE_T),
);
/// All instances: the rows of `ostler ps`.
pub const INSTANCES: Route = route(
    Method::GET,
    "/api/v1/instances",
    "listInstances",
    "All instances, and one row for each server without one.",
    &[PID],
    Answer::List(INSTANCE_T),
);
/// One instance.
pub const INSTANCE: Route = route(
    Method::GET,
    "/api/v1/instances/{id}",
    "getInstance",
    "One instance.",
    &[INSTANCE_ID],
    Answer::One(INSTANCE_T),
);
/// Start an instance.
pub const INSTANCE_START: Route = route(
    Method::POST,
    "/api/v1/instances/{id}/start",
    "startInstance",
    "Start an instance; answers when it is ready or has failed.",
    &[INSTANCE_ID],
    Answer::One(INSTANCE_T),
);
/// Stop an instance.
pub const INSTANCE_STOP: Route = route(
    Method::POST,
    "/api/v1/instances/{id}/stop",
    "stopInstance",
    "Stop an instance; answers when no process of it is left.",
    &[INSTANCE_ID],
    Answer::One(INSTANCE_T),
);
/// Restart an instance.
pub const INSTANCE_RESTART: Route = route(
    Method::POST,
    "/api/v1/instances/{id}/restart",
    "restartInstance",
    "Stop and start an instance; answers when it is ready or has failed.",
    &[INSTANCE_ID],
    Answer::One(INSTANCE_T),
);
/// Log lines of one instance.
pub const INSTANCE_LOGS: Route = route(
    Method::GET,
    "/api/v1/instances/{id}/logs",
    "instanceLogs",
    "Log lines of one instance.",
    &[INSTANCE_ID, LINES, FOLLOW],
    Answer::Lines(LINE_T),
);
/// All client sessions.
pub const SESSIONS: Route = route(
    Method::GET,
    "/api/v1/sessions",
    "listSessions",
    "All client sessions.",
    &[],
    Answer::List(SESSION_T),
);
/// Find or open a session.
pub const SESSION_OPEN: Route = with_body(
    route(
        Method::POST,
        "/api/v1/sessions",
        "openSession",
        "The session of a name, opened where there is none; or a new one with a handle of its own.",
        &[],
        Answer::One(OPENED_SESSION_T),
    ),
    NEW_SESSION_T,
);
/// One session.
pub const SESSION: Route = route(
    Method::GET,
    "/api/v1/sessions/{id}",
    "getSession",
    "One client session.",
    &[SESSION_ID],
    Answer::One(SESSION_T),
);
/// The instance of a server that a session has for itself.
pub const SESSION_INSTANCE: Route = route(
    Method::POST,
    "/api/v1/sessions/{id}/instances/{name}",
    "sessionInstance",
    "The instance of a server that a session has for itself, found or started; answers when it serves.",
    &[SESSION_ID, NAME],
    Answer::One(OWN_INSTANCE_T),
);
/// Give it up.
pub const SESSION_INSTANCE_REMOVE: Route = route(
    Method::DELETE,
    "/api/v1/sessions/{id}/instances/{name}",
    "removeSessionInstance",
    "Give up the instance of a server that a session has for itself.",
    &[SESSION_ID, NAME],
    Answer::NoContent,
);
/// End a session.
pub const SESSION_REMOVE: Route = route(
    Method::DELETE,
    "/api/v1/sessions/{id}",
    "removeSession",
    "End a client session, once its running calls and tasks are done or the grace is over; its client gets 404 and \
     starts a new one.",
    &[SESSION_ID],
    Answer::NoContentOr(DRAINING_T),
);
/// The processes started by hand.
pub const PROCESSES: Route = route(
    Method::GET,
    "/api/v1/processes",
    "listProcesses",
    "The processes started by hand, those that have ended included.",
    &[],
    Answer::List(PROCESS_T),
);
/// Start a process by hand.
pub const PROCESS_SPAWN: Route = with_body(
    route(
        Method::POST,
        "/api/v1/processes",
        "spawnProcess",
        "Start a process; answers when it runs or has failed to.",
        &[],
        Answer::Created(PROCESS_T),
    ),
    NEW_PROCESS_T,
);
/// One process started by hand.
pub const PROCESS: Route = route(
    Method::GET,
    "/api/v1/processes/{name}",
    "getProcess",
    "One process started by hand.",
    &[PROCESS_NAME],
    Answer::One(PROCESS_T),
);
/// Stop a process started by hand.
pub const PROCESS_STOP: Route = route(
    Method::POST,
    "/api/v1/processes/{name}/stop",
    "stopProcess",
    "Stop a process; answers when nothing of its tree is left. It stays listed.",
    &[PROCESS_NAME],
    Answer::One(PROCESS_T),
);
/// Log lines of a process started by hand.
pub const PROCESS_LOGS: Route = route(
    Method::GET,
    "/api/v1/processes/{name}/logs",
    "processLogs",
    "Log lines of a process started by hand.",
    &[PROCESS_NAME, LINES, FOLLOW],
    Answer::Lines(LINE_T),
);
/// Stop a process started by hand and forget it.
pub const PROCESS_REMOVE: Route = route(
    Method::DELETE,
    "/api/v1/processes/{name}",
    "removeProcess",
    "Stop a process and forget it and its log; answers when nothing of its tree is left.",
    &[PROCESS_NAME],
    Answer::NoContent,
);
/// Many calls of tools.
pub const RUN: Route = with_body(
    route(
        Method::POST,
        "/api/v1/run",
        "runMany",
        "Call many tools, one after another or at the same time; answers when all are over. One that fails stops no \
         other. For those who accept `text/event-stream` progress comes as events. Who hangs up cancels what is left.",
        &[],
        Answer::Followed(RUN_REPORT_T, RUN_EVENT_T),
    ),
    RUN_MANY_T,
);
/// Events.
pub const EVENTS_LIST: Route = route(
    Method::GET,
    "/api/v1/events",
    "listEvents",
    "What happened, oldest first; as a stream for those who accept `text/event-stream`.",
    &[SINCE, EVENTS, EVENT_KIND, EVENT_SUBJECT, EVENT_SEVERITY, LAST_EVENT_ID],
    Answer::Feed(EVENT_T),
);
/// Compare the registry with the kernel.
pub const AUDIT: Route = route(
    Method::POST,
    "/api/v1/audit",
    "audit",
    "Compare what the daemon believes to run with what the kernel says, and repair what does not agree.",
    &[],
    Answer::One(AUDIT_T),
);
/// What needs a person.
pub const ALERTS: Route = route(
    Method::GET,
    "/api/v1/alerts",
    "listAlerts",
    "The alerts that are active now, the worst first.",
    &[],
    Answer::List(ALERT_T),
);
/// Read the configuration again.
pub const RELOAD: Route = route(
    Method::POST,
    "/api/v1/reload",
    "reload",
    "Read the configuration again and take it in. Returns when everything that goes is gone; what is new is on its way. \
     422 when the configuration cannot be used: nothing was changed then.",
    &[DRY_RUN],
    Answer::One(RELOAD_T),
);
/// Drain and stop the daemon.
pub const SHUTDOWN: Route = route(
    Method::POST,
    "/api/v1/shutdown",
    "shutdown",
    "Drain, stop every server and end the daemon; answers when that has begun.",
    &[],
    Answer::Accepted,
);
/// The OpenAPI document.
pub const OPENAPI: Route = route(
    Method::GET,
    "/api/v1/openapi.json",
    "openapi",
    "This API as an OpenAPI document.",
    &[],
    Answer::OpenApi,
);

/// Every route, each once.
pub const ALL: &[Route] = &[
    STATUS,
    SERVERS,
    SERVER,
    SERVER_START,
    SERVER_STOP,
    SERVER_RESTART,
    SERVER_LOGS,
    INSTANCES,
    INSTANCE,
    INSTANCE_START,
    INSTANCE_STOP,
    INSTANCE_RESTART,
    INSTANCE_LOGS,
    SESSIONS,
    SESSION_OPEN,
    SESSION,
    SESSION_INSTANCE,
    SESSION_INSTANCE_REMOVE,
    SESSION_REMOVE,
    PROCESSES,
    PROCESS_SPAWN,
    PROCESS,
    PROCESS_STOP,
    PROCESS_LOGS,
    PROCESS_REMOVE,
    RUN,
    TASKS,
    TASK_SUBMIT,
    TASK,
    TASK_RESULT,
    TASK_LOGS,
    TASK_EVENTS,
    TASK_CANCEL,
    TASK_RETRY,
    BATCHES,
    BATCH_SUBMIT,
    BATCH,
    BATCH_CANCEL,
    PROJECTS,
    PROJECT_LIMIT,
    POOL,
    PROCESS_POOL_STATS,
    PROCESS_POOL_LIMIT,
    PROCESS_POOL_USAGE,
    EVENTS_LIST,
    AUDIT,
    ALERTS,
    RELOAD,
    SHUTDOWN,
    OPENAPI,
];

impl Route {
    /// The path with its `{...}` replaced, in order, by `values`, each percent-encoded so that no value can
    /// reach another route.
    ///
    /// # Panics
    ///
    /// If the number of values is not the number of path parameters: the caller's mistake.
    pub fn path(&self, values: &[&str]) -> String {
        let mut left = values.iter();
        let mut path = String::with_capacity(self.template.len() + 16);
        for segment in self.template.split('/').skip(1) {
            path.push('/');
            if segment.starts_with('{') {
                let value = left.next().unwrap_or_else(|| panic!("{} lacks a value", self.operation_id));
                encode_segment(&mut path, value);
            } else {
                path.push_str(segment);
            }
        }
        assert!(left.next().is_none(), "{} got too many values", self.operation_id);
        path
    }
}

/// Appends `value` to `path` as one segment of a URL path: what RFC 3986 calls unreserved stays, all else is
/// percent-encoded. `.` and `..` as a whole segment are encoded too, since they would be resolved away.
pub fn encode_segment(path: &mut String, value: &str) {
    use std::fmt::Write as _;
    let dots_only = value.bytes().all(|b| b == b'.');
    for byte in value.bytes() {
        let plain = byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'_' | b'~')
            || (byte == b'.' && !dots_only);
        if plain {
            path.push(char::from(byte));
        } else {
            let _ = write!(path, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_route_is_named_once_and_declares_its_path_parameters() {
        let ids: BTreeSet<_> = ALL.iter().map(|r| r.operation_id).collect();
        assert_eq!(ids.len(), ALL.len());
        let places: BTreeSet<_> = ALL.iter().map(|r| (r.method.to_string(), r.template)).collect();
        assert_eq!(places.len(), ALL.len());
        for route in ALL {
            let in_template: Vec<_> =
                route.template.split('/').filter_map(|s| s.strip_prefix('{')?.strip_suffix('}')).collect();
            let declared: Vec<_> =
                route.params.iter().filter(|p| p.place == Place::Path).map(|p| p.name).collect();
            assert_eq!(in_template, declared, "{}", route.operation_id);
        }
    }

    #[test]
    fn a_value_stays_inside_its_segment() {
        assert_eq!(SERVER.path(&["git-hub_1.x"]), "/api/v1/servers/git-hub_1.x");
        assert_eq!(SERVER.path(&["a/b?c#d é"]), "/api/v1/servers/a%2Fb%3Fc%23d%20%C3%A9");
        assert_eq!(SERVER_STOP.path(&[".."]), "/api/v1/servers/%2E%2E/stop");
    }
}
