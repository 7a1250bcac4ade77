//! The routes of tasks, batches, projects and the pool of workers.

use hyper::Method;

use super::{Answer, Param, ParamKind, Place, Route, TypeRef, param, route, with_body};
use crate::types::process_pool::{ProcessPoolLimit, ProcessPoolLimitSet, ProcessPoolStats, ProcessPoolUsage};
use crate::types::tasks::{
    BatchPage, BatchView, NewBatch, NewTask, ProjectLimit, ProjectView, SubmittedBatch, SubmittedTask,
    TaskLogLine, TaskNews, TaskPage, TaskPoolView, TaskView,
};

const NEW_TASK_T: TypeRef = TypeRef::of::<NewTask>("NewTask");
const SUBMITTED_T: TypeRef = TypeRef::of::<SubmittedTask>("SubmittedTask");
const TASK_T: TypeRef = TypeRef::of::<TaskView>("TaskView");
const TASK_PAGE_T: TypeRef = TypeRef::of::<TaskPage>("TaskPage");
const LINE_T: TypeRef = TypeRef::of::<TaskLogLine>("TaskLogLine");
const NEWS_T: TypeRef = TypeRef::of::<TaskNews>("TaskNews");
const NEW_BATCH_T: TypeRef = TypeRef::of::<NewBatch>("NewBatch");
const SUBMITTED_BATCH_T: TypeRef = TypeRef::of::<SubmittedBatch>("SubmittedBatch");
const BATCH_T: TypeRef = TypeRef::of::<BatchView>("BatchView");
const BATCH_PAGE_T: TypeRef = TypeRef::of::<BatchPage>("BatchPage");
const PROJECT_T: TypeRef = TypeRef::of::<ProjectView>("ProjectView");
const LIMIT_T: TypeRef = TypeRef::of::<ProjectLimit>("ProjectLimit");
const POOL_T: TypeRef = TypeRef::of::<TaskPoolView>("TaskPoolView");
const STATS_T: TypeRef = TypeRef::of::<ProcessPoolStats>("ProcessPoolStats");
const SET_T: TypeRef = TypeRef::of::<ProcessPoolLimit>("ProcessPoolLimit");
const WAS_SET_T: TypeRef = TypeRef::of::<ProcessPoolLimitSet>("ProcessPoolLimitSet");
const USAGE_T: TypeRef = TypeRef::of::<ProcessPoolUsage>("ProcessPoolUsage");

const ID: Param = param("id", Place::Path, ParamKind::Text, "The task, `t<number>-<8 hexadecimal digits>`.");
const BATCH_ID: Param =
    param("id", Place::Path, ParamKind::Text, "The batch, `b<number>-<8 hexadecimal digits>`.");
const PROJECT_NAME: Param = param("name", Place::Path, ParamKind::Text, "The project's name.");
const PROJECT: Param = param("project", Place::Query, ParamKind::Text, "Only tasks of this project.");
const STATE: Param = param(
    "state",
    Place::Query,
    ParamKind::Text,
    "Only tasks that are `queued`, `running`, `succeeded`, `dead` or `cancelled`.",
);
const KIND: Param = param("type", Place::Query, ParamKind::Text, "Only tasks of this type.");
const OF_BATCH: Param = param("batch", Place::Query, ParamKind::Text, "Only tasks of this batch.");
const SESSION: Param =
    param("session", Place::Query, ParamKind::Text, "Only tasks of the session with this handle.");
const BELOW: Param =
    param("below", Place::Query, ParamKind::Count, "Only those with numbers below this one, to go on.");
const LIMIT: Param =
    param("limit", Place::Query, ParamKind::Count, "So many at most; 100 without it, 1000 at most.");
const WAIT: Param = param(
    "wait_ms",
    Place::Query,
    ParamKind::Count,
    "Answer when it has ended, or after so many milliseconds, 60000 at most; at once without it.",
);
const LINES: Param =
    param("n", Place::Query, ParamKind::Count, "At most this many of the newest kept lines.");
const WHY: Param = param("why", Place::Query, ParamKind::Text, "The reason that is written down.");

/// All tasks that the journal keeps.
pub const TASKS: Route = route(
    Method::GET,
    "/api/v1/tasks",
    "listTasks",
    "Tasks, newest first; those that have ended are kept for a while (`tasks.keep`).",
    &[PROJECT, STATE, KIND, OF_BATCH, SESSION, BELOW, LIMIT],
    Answer::One(TASK_PAGE_T),
);
/// Submit a task.
pub const TASK_SUBMIT: Route = with_body(
    route(
        Method::POST,
        "/api/v1/tasks",
        "submitTask",
        "Submit a task; answers when it is in the journal. 429 with `Retry-After` and the limit's name where there is no \
         room, 409 where its key was used for another task. With `wait_ms` also when it has ended, with its result.",
        &[WAIT],
        Answer::AcceptedAs(SUBMITTED_T),
    ),
    NEW_TASK_T,
);
/// One task.
pub const TASK: Route = route(
    Method::GET,
    "/api/v1/tasks/{id}",
    "getTask",
    "One task with its attempts; with `wait_ms` once it has ended.",
    &[ID, WAIT],
    Answer::One(TASK_T),
);
/// The result of a task.
pub const TASK_RESULT: Route = route(
    Method::GET,
    "/api/v1/tasks/{id}/result",
    "taskResult",
    "The result of a task, exactly as it was committed. 409 where there is none: it has not ended, or ended without one.",
    &[ID, WAIT],
    Answer::Json,
);
/// What a task wrote.
pub const TASK_LOGS: Route = route(
    Method::GET,
    "/api/v1/tasks/{id}/logs",
    "taskLogs",
    "What the attempts of a task wrote, oldest first, while it runs and for a while after (`tasks.logs`).",
    &[ID, LINES],
    Answer::List(LINE_T),
);
/// News of a task.
pub const TASK_EVENTS: Route = route(
    Method::GET,
    "/api/v1/tasks/{id}/events",
    "taskEvents",
    "A stream of a task's news: first its state, then progress, lines and further states as they come, until it has \
     ended.",
    &[ID],
    Answer::Events(NEWS_T),
);
/// Cancel a task.
pub const TASK_CANCEL: Route = route(
    Method::POST,
    "/api/v1/tasks/{id}/cancel",
    "cancelTask",
    "Cancel a task; what runs of it is ended. 409 where it has ended.",
    &[ID, WHY],
    Answer::One(TASK_T),
);
/// Try a task again.
pub const TASK_RETRY: Route = route(
    Method::POST,
    "/api/v1/tasks/{id}/retry",
    "retryTask",
    "Put a task that is dead or cancelled into the queue again, with all its attempts. 409 where it is neither.",
    &[ID],
    Answer::One(TASK_T),
);
/// All batches that the journal keeps.
pub const BATCHES: Route = route(
    Method::GET,
    "/api/v1/batches",
    "listBatches",
    "Batches, newest first.",
    &[BELOW, LIMIT],
    Answer::One(BATCH_PAGE_T),
);
/// Submit tasks together.
pub const BATCH_SUBMIT: Route = with_body(
    route(
        Method::POST,
        "/api/v1/batches",
        "submitBatch",
        "Submit many tasks, all or none; answers when they are in the journal. 429 and 409 as for one task.",
        &[],
        Answer::AcceptedAs(SUBMITTED_BATCH_T),
    ),
    NEW_BATCH_T,
);
/// One batch.
pub const BATCH: Route = route(
    Method::GET,
    "/api/v1/batches/{id}",
    "getBatch",
    "One batch, and how many of its tasks are in which state; with `wait_ms` once all have ended.",
    &[BATCH_ID, WAIT],
    Answer::One(BATCH_T),
);
/// Cancel a batch.
pub const BATCH_CANCEL: Route = route(
    Method::POST,
    "/api/v1/batches/{id}/cancel",
    "cancelBatch",
    "Cancel the tasks of a batch that have not ended.",
    &[BATCH_ID, WHY],
    Answer::One(BATCH_T),
);
/// All projects.
pub const PROJECTS: Route = route(
    Method::GET,
    "/api/v1/projects",
    "listProjects",
    "The projects that have tasks or limits of their own.",
    &[],
    Answer::List(PROJECT_T),
);
/// Limit a project.
pub const PROJECT_LIMIT: Route = with_body(
    route(
        Method::PUT,
        "/api/v1/projects/{name}/limit",
        "limitProject",
        "Set how many tasks of a project may run, until the daemon ends. What runs already goes on.",
        &[PROJECT_NAME],
        Answer::One(PROJECT_T),
    ),
    LIMIT_T,
);
/// The pool of workers.
pub const POOL: Route = route(
    Method::GET,
    "/api/v1/pool",
    "getPool",
    "The pool of workers, and what it has done.",
    &[],
    Answer::One(POOL_T),
);
/// The pool of workers, as clients of an earlier system read it.
pub const PROCESS_POOL_STATS: Route = route(
    Method::GET,
    "/api/process-pool/stats",
    "processPoolStats",
    "The pool of workers, as clients of an earlier system read it.",
    &[],
    Answer::One(STATS_T),
);
/// Limit a project, as clients of an earlier system do.
pub const PROCESS_POOL_LIMIT: Route = with_body(
    route(
        Method::POST,
        "/api/process-pool/project-limit",
        "processPoolProjectLimit",
        "Set how many tasks of a project may run, as clients of an earlier system do.",
        &[],
        Answer::One(WAS_SET_T),
    ),
    SET_T,
);
/// The projects, as clients of an earlier system read them.
pub const PROCESS_POOL_USAGE: Route = route(
    Method::GET,
    "/api/process-pool/project-usage",
    "processPoolProjectUsage",
    "The running count and the limit of each project, as clients of an earlier system read them.",
    &[],
    Answer::One(USAGE_T),
);
