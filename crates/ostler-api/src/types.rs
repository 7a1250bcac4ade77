//! What the management API sends and takes. Wire types only: the daemon converts its own at the edge.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The daemon as a whole.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DaemonStatus {
    /// Version of the running daemon.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Base address of its HTTP listener, for example `http://127.0.0.1:7320`.
    pub http: String,
    /// Which means of killing whole process trees is in force, and what it guarantees.
    pub rung: String,
    /// Whether every required server is ready.
    pub ready: bool,
    /// Sessions of clients held now, and the most there may be.
    pub sessions: u64,
    /// The limit on `sessions`.
    pub max_sessions: u64,
    /// Resident memory of the daemon itself, in bytes.
    pub rss_bytes: u64,
    /// Ports that instances hold now.
    pub ports_held: u64,
    /// Bytes of requests and answers held in memory now.
    pub body_bytes: u64,
    /// How often each limit refused or dropped something since the start.
    pub counters: std::collections::BTreeMap<String, u64>,
}

/// One configured server.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ServerView {
    /// Its name.
    pub name: String,
    /// Address of its MCP endpoint.
    pub endpoint: String,
    /// Who shares an instance: `shared`, `principal`, `project` or `session`.
    pub scope: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Whether the daemon counts as ready only with it.
    pub required: bool,
    /// Whether it serves legacy clients, if that is known.
    pub legacy: Option<bool>,
    /// Whether it serves modern clients, if that is known.
    pub modern: Option<bool>,
    /// Whether it was seen to send requests of its own; such a server is served one call at a time.
    pub asks_back: bool,
    /// `on-demand` where no instance is wanted yet, else the state of the first instance.
    pub state: String,
    /// Its instances.
    pub instances: Vec<InstanceView>,
}

/// One instance of a server; also a row of `ostler ps`. A server without an instance has one row too, with
/// the server's name as `id` and generation 0.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceView {
    /// Its name, `<server>.<number>`.
    pub id: String,
    /// The server it belongs to.
    pub server: String,
    /// Counts its processes; 0 before the first.
    pub generation: u64,
    /// `starting`, `ready`, `degraded`, `backoff`, `stopping`, `stopped`, `failed`, `broken`; `idle` for a
    /// server that starts on demand and has no instance.
    pub state: String,
    /// Why it is in that state, where there is a reason to give.
    pub reason: Option<String>,
    /// Who shares it: `shared`, `principal`, `project` or `session`.
    pub scope: String,
    /// Whose it is: `all`, a principal, a project or a session.
    pub owner: String,
    /// The era of its process, `legacy` or `modern`, once known.
    pub era: Option<String>,
    /// The server's process, while there is one.
    pub pid: Option<u32>,
    /// Processes in its tree.
    pub processes: u32,
    /// Sessions that use it.
    pub sessions: u32,
    /// Calls running on it.
    pub calls: u32,
    /// Restarts since it was created.
    pub restarts: u32,
    /// Resident memory of its tree, in bytes.
    pub rss_bytes: u64,
    /// Share of one CPU its tree used since the last look, in per cent.
    pub cpu_percent: f64,
    /// Milliseconds since its process started; 0 without one.
    pub uptime_ms: u64,
    /// Ports it was given, by name.
    pub ports: std::collections::BTreeMap<String, u16>,
    /// Milliseconds until the next try, while it waits for one.
    pub next_try_ms: Option<u64>,
}

/// One line a server's process wrote, or one that Ostler wrote about it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// Counts the lines of an instance, from 1, over all its streams.
    pub seq: u64,
    /// When it was read, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The instance.
    pub instance: String,
    /// `stderr`, `stdout` (what was not a message of the protocol) or `ostler`.
    pub stream: String,
    /// The text, without its line end; a line over the limit is cut and says so.
    pub text: String,
}

/// One client session.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionView {
    /// A short handle for listings; the session's secret key is never shown.
    pub id: String,
    /// The server it talks to.
    pub server: String,
    /// Name and version the client gave.
    pub client: Option<String>,
    /// Who it belongs to.
    pub principal: String,
    /// The instance that serves it.
    pub instance: Option<String>,
    /// Milliseconds since it began.
    pub age_ms: u64,
    /// Milliseconds since it was last heard of.
    pub idle_ms: u64,
    /// Calls of it that are running.
    pub calls: u32,
}

/// Something that happened, with its reason.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// Counts events since the daemon started, from 1, without gaps.
    pub seq: u64,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// `info`, `warning` or `error`.
    pub severity: String,
    /// What kind of thing happened, for programs.
    pub kind: String,
    /// What it happened to: an instance, a server, a session or `daemon`.
    pub subject: String,
    /// What happened, for people.
    pub message: String,
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ApiError {
    /// What failed and why.
    pub error: String,
    /// What to do about it, where there is something.
    pub hint: Option<String>,
}
