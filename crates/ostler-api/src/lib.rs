//! The management API: its types, its routes and OpenAPI document, a typed client, and where its socket is.
//! No logic: the daemon answers in `ostler-gateway`, people ask through `ostler-cli`.
//!
//! - [`types`]: what is sent and taken.
//! - [`routes`]: one table of every route; the OpenAPI document ([`openapi()`]) and [`Client`] both follow it.
//! - [`paths`]: the runtime directory with the socket, and the state directory.

mod client;
mod error;
mod events;
mod openapi;
pub mod paths;
mod query;
pub mod routes;
mod run;
pub mod types;

pub use client::{Client, LogQuery, LogStream, PeerProcess, Verb};
pub use error::ClientError;
pub use events::{EventQuery, EventStream, RunStream, TaskStream};
pub use openapi::{openapi, openapi_json};
pub use paths::{PathError, RuntimeDir, StateDir};
pub use run::{RunCall, RunError, RunEvent, RunMany, RunProgress, RunReport, RunResult};
pub use types::process_pool::{
    ProcessPoolLimit, ProcessPoolLimitSet, ProcessPoolProject, ProcessPoolStats, ProcessPoolTasks,
    ProcessPoolUsage, ProcessPoolWorkers,
};
pub use types::tasks::{
    AttemptView, BatchOptions, BatchPage, BatchView, LaneView, LateResultView, NewBatch, NewTask,
    ProjectLimit, ProjectView, SubmittedBatch, SubmittedTask, TaskCounts, TaskFigures, TaskGapView,
    TaskLogLine, TaskNews, TaskPage, TaskPoolView, TaskProgressView, TaskQuery, TaskView,
};
pub use types::{
    AlertView, ApiError, AuditView, CleanupView, DaemonStatus, DrainingView, EndView, EventView, FindingView,
    GaugeView, HeldView, InstanceView, KeyChangeView, LimitView, LogLine, NewProcess, NewSession,
    OpenedSession, OwnInstanceView, PoolView, ProcessLimits, ProcessView, ReloadView, RestartWhen,
    ServerReloadView, ServerView, SessionView, UsageView,
};
