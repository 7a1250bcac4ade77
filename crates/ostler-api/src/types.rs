//! What the management API sends and takes. Wire types only: the daemon converts its own at the edge.

pub mod process_pool;
pub mod tasks;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a server of the configuration is called in [`ServerView::kind`] and [`InstanceView::kind`].
pub const KIND_SERVER: &str = "server";

/// What a process started by hand is called there.
pub const KIND_PROCESS: &str = "process";

/// The kind of the event that stands for those a follower has missed: see [`EventView::kind`].
pub const KIND_GAP: &str = "gap";

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
    /// Alerts that are active now.
    pub alerts: u64,
    /// Trees of processes that did not end when they were asked to, and are being killed.
    pub cleanups: Vec<CleanupView>,
    /// How often each limit refused or dropped something since the start.
    pub counters: BTreeMap<String, u64>,
    /// What all instances use together.
    pub usage: UsageView,
    /// How near the daemon's limits are, and the disk to being full.
    pub gauges: Vec<GaugeView>,
}

/// What all instances used together when they were last measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct UsageView {
    /// Milliseconds since then; absent: nothing was measured yet.
    pub measured_ago_ms: Option<u64>,
    /// Instances that had processes.
    pub instances: u32,
    /// Their processes.
    pub processes: u32,
    /// Their threads.
    pub threads: u32,
    /// Their memory in bytes; what processes share counts once, as far as that is known.
    pub memory_bytes: u64,
    /// Their share of one CPU since the look before, in per cent.
    pub cpu_percent: f64,
    /// Memory of the machine in bytes, once looked at.
    pub machine_bytes: Option<u64>,
    /// What of it new processes could have, in bytes.
    pub machine_available_bytes: Option<u64>,
    /// Share of the last ten seconds in which something on the machine waited for memory, in per cent, where the kernel
    /// tells it.
    pub stall_percent: Option<f64>,
}

/// How near a limit of the daemon is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GaugeView {
    /// The key of the limit; `stall` or `machine` for a machine that is short of memory; `disk` and a folder.
    pub name: String,
    /// So much is used.
    pub used: u64,
    /// Of so much. Of a disk only its last part counts.
    pub limit: u64,
    /// `bytes`, `instances`, `inodes` or `per mille` (of the last ten seconds).
    pub unit: String,
    /// `normal`, `warning` or `critical`.
    pub level: String,
}

/// One limit of an instance, and what holds it to that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LimitView {
    /// `memory`, `cpu`, `pids`, `open_files` or `nice`.
    pub resource: String,
    /// What it may use, in the unit.
    pub limit: f64,
    /// What it used when it was last measured, where that is known.
    pub used: Option<f64>,
    /// `bytes`, `cores`, `processes and threads`, `files of one process`, or nothing.
    pub unit: String,
    /// What holds it to that: `cgroup-v2`, `cgroup-v1`, `rlimit`, `priority`, or `sampled`: the daemon measures.
    pub rung: String,
}

/// A tree of processes in the clean-up queue.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CleanupView {
    /// The instance it belongs to.
    pub instance: String,
    /// `waiting` for its turn, `killing`, or `stuck`: the kernel holds what is left of it, and it is tried again.
    pub progress: String,
    /// The processes that survived SIGKILL so far, where some did.
    pub stuck: Vec<u32>,
    /// How often it was killed.
    pub tries: u32,
    /// Milliseconds since it was put into the queue.
    pub age_ms: u64,
}

/// One configured server.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ServerView {
    /// Its name.
    pub name: String,
    /// `server`, or `process` for one that was started by hand and is in no configuration.
    pub kind: String,
    /// The server whose instances it uses, where it is only another name for the same thing.
    #[serde(default)]
    pub same_as: Option<String>,
    /// Address of its MCP endpoint, where it has one: a plain process has none.
    pub endpoint: Option<String>,
    /// Who shares an instance: `shared`, `principal`, `project` or `session`.
    pub scope: String,
    /// The program and its arguments; of a server that runs elsewhere, its address without the query.
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
    /// How its pool stands, where it has one.
    #[serde(default)]
    pub pool: Option<PoolView>,
    /// Its instances.
    pub instances: Vec<InstanceView>,
}

/// How the pool of a server stands: its instances by what they are doing, and the line.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct PoolView {
    /// Most instances there may be (`pool.max`).
    pub max: usize,
    /// On their way up.
    pub starting: usize,
    /// Ready for any session.
    pub spare: usize,
    /// Held by a session.
    pub leased: usize,
    /// Being made clean for the next session.
    pub resetting: usize,
    /// On their way down.
    pub leaving: usize,
    /// Sessions in line.
    pub waiting: usize,
}

/// One instance of a server; also a row of `ostler ps`. A server without an instance has one row too, with
/// the server's name as `id` and generation 0.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceView {
    /// Its name, `<server>.<number>`.
    pub id: String,
    /// The server it belongs to.
    pub server: String,
    /// `server`, or `process` for one that was started by hand and is in no configuration.
    pub kind: String,
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
    /// The same with what processes share counted once, in bytes, where that was read: now and then, and when it
    /// decides about something.
    pub pss_bytes: Option<u64>,
    /// Share of one CPU its tree used since the last look, in per cent.
    pub cpu_percent: f64,
    /// Processor time that its tree has used, in milliseconds.
    pub cpu_ms: u64,
    /// Threads in its tree.
    pub threads: u32,
    /// Files that its tree has open, where they could be counted.
    pub fds: Option<u64>,
    /// The most that one of its processes has open.
    pub fds_of_one: Option<u64>,
    /// Milliseconds since it was measured; absent where it was not yet.
    pub measured_ago_ms: Option<u64>,
    /// What it may use.
    pub limits: Vec<LimitView>,
    /// Milliseconds since its process started; 0 without one.
    pub uptime_ms: u64,
    /// Ports it was given, by name.
    pub ports: BTreeMap<String, u16>,
    /// Milliseconds until the next try, while it waits for one.
    pub next_try_ms: Option<u64>,
    /// How the latest of its processes that ended did so, where one has.
    pub ended: Option<EndView>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndView {
    /// Its status, if it exited by itself.
    pub code: Option<i32>,
    /// The number of the signal that ended it, if one did.
    pub signal: Option<i32>,
    /// The same in words.
    pub text: String,
    /// Milliseconds since then.
    pub ago_ms: u64,
}

/// A process that is to be started by hand. A field that is not listed here is refused, so that none is
/// misspelt in vain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewProcess {
    /// Its name; absent: its program's, with a number where that is taken.
    #[serde(default)]
    pub name: Option<String>,
    /// The program and its arguments, given as they are. With `shell` one text, which `sh` reads.
    pub command: Vec<String>,
    /// Whether the command is a text for the shell.
    #[serde(default)]
    pub shell: bool,
    /// Its working directory, absolute; the daemon's own when absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Variables set for it, beyond those that every server inherits.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Further variables of the daemon's environment that it may inherit, by name.
    #[serde(default)]
    pub inherit_env: Vec<String>,
    /// Which exits are followed by a restart.
    #[serde(default)]
    pub restart: RestartWhen,
    /// Restarts within ten minutes after which it counts as broken and is tried slowly; absent: 5.
    #[serde(default)]
    pub max_restarts: Option<u32>,
    /// What it may use.
    #[serde(default)]
    pub limits: ProcessLimits,
}

/// Which exits of a process are followed by a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartWhen {
    /// None.
    Never,
    /// All but an exit with status 0.
    #[default]
    OnFailure,
    /// Every exit that was not asked for.
    Always,
}

/// What a process may use, its whole tree taken together unless said otherwise. What is absent has no bound of
/// its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProcessLimits {
    /// Memory in bytes.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// CPU time in cores: 1.5 is one and a half.
    #[serde(default)]
    pub cpu: Option<f64>,
    /// Processes and threads at once.
    #[serde(default)]
    pub pids: Option<u32>,
    /// Files each of its processes may have open.
    #[serde(default)]
    pub open_files: Option<u32>,
    /// Its nice value, -20 (first) to 19 (last).
    #[serde(default)]
    pub nice: Option<i8>,
}

/// A process that was started by hand. One that has ended stays listed until it is removed, or until a new one
/// needs its place (`limits.adhoc`).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProcessView {
    /// Its name.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Its working directory, where it has not the daemon's.
    pub cwd: Option<String>,
    /// Which exits are followed by a restart.
    pub restart: RestartWhen,
    /// What it may use.
    pub limits: ProcessLimits,
    /// How it is.
    pub instance: InstanceView,
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
    /// The server it is about; absent for a modern one, which may use several.
    pub server: Option<String>,
    /// Name and version the client gave, or the name it chose for the session.
    pub client: Option<String>,
    /// Who it belongs to.
    pub principal: String,
    /// `active`, or `draining`: it takes no new calls, and ends when those that run are done.
    pub state: String,
    /// Whether it gets instances for itself of servers with scope `session`.
    pub isolated: bool,
    /// The instances it holds.
    pub instances: Vec<HeldView>,
    /// Servers of which it uses the shared instance, as it could get none for itself.
    pub shares: Vec<String>,
    /// Milliseconds since it began, restarts of the daemon included.
    pub age_ms: u64,
    /// Milliseconds since it was last heard of.
    pub idle_ms: u64,
    /// Calls of it that are running.
    pub calls: u32,
    /// Calls of it so far, since the daemon was started.
    pub calls_begun: u64,
    /// The tasks of it that are running, by their ids.
    pub tasks: Vec<String>,
    /// Restarts of the daemon that it has outlived.
    pub restarts: u32,
}

/// An instance that a session holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HeldView {
    /// The instance, `<server>.<number>`.
    pub id: String,
    /// The server.
    pub server: String,
    /// Whether the session has it for itself.
    pub own: bool,
    /// Its state.
    pub state: String,
    /// Counts its processes.
    pub generation: u64,
    /// The server's first process.
    pub pid: Option<u32>,
    /// The ports of its process on 127.0.0.1, by name.
    pub ports: BTreeMap<String, u16>,
}

/// A session that is to end, and of which something still runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DrainingView {
    /// The session.
    pub id: String,
    /// `draining`.
    pub state: String,
    /// Calls of it that are running.
    pub calls: u32,
    /// The tasks of it that are running, by their ids.
    pub tasks: Vec<String>,
    /// Milliseconds until what runs is cut; absent where nothing is.
    pub cut_in_ms: Option<u64>,
}

/// A session that is wanted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSession {
    /// Its name: 1 to 128 visible ASCII characters, as in the header `Ostler-Session`. The session of this name where
    /// there is one. Absent: a new session, with a handle.
    #[serde(default)]
    pub key: Option<String>,
    /// Whether it gets instances for itself of servers with scope `session`; false: it uses those that such sessions of
    /// its principal share. Absent: true, or as the session is that is there already.
    #[serde(default)]
    pub isolated: Option<bool>,
}

/// A session that was found or opened.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OpenedSession {
    /// Names it in listings and in this API.
    pub id: String,
    /// What its client shows, in the header `Ostler-Session` or in the path: its name, or the handle made for it.
    pub key: String,
}

/// An instance that a session has for itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct OwnInstanceView {
    /// The session.
    pub session: String,
    /// The server.
    pub server: String,
    /// The instance, `<server>.<number>`.
    pub instance: String,
    /// Counts its processes.
    pub generation: u64,
    /// The number of the lease, where the instance is of a pool: a later one is greater.
    pub fence: Option<u64>,
    /// The server's first process.
    pub pid: Option<u32>,
    /// Its state.
    pub state: String,
    /// The ports of its process on 127.0.0.1, by name.
    pub ports: BTreeMap<String, u16>,
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
    /// What kind of thing happened, for programs. `gap` stands for events that a follower of the stream has
    /// missed, because they were dropped before it could read them: its `seq` is that of the last of them.
    pub kind: String,
    /// What it happened to: an instance, a server, a session or `daemon`.
    pub subject: String,
    /// What happened, for people.
    pub message: String,
}

/// How what Ostler believes to run compares with what the kernel says.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditView {
    /// Instances with a process.
    pub instances: u64,
    /// Ports that are held.
    pub ports: u64,
    /// What did not agree. There should never be anything; it is repaired.
    pub findings: Vec<FindingView>,
}

/// Something that was not as it should be, and is repaired.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FindingView {
    /// `dead-entry`, `unknown-child` or `leaked-port`.
    pub kind: String,
    /// What it was about: an instance or `daemon`.
    pub subject: String,
    /// What was found and done, for people.
    pub message: String,
}

/// Something that needs a person, and is not over.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AlertView {
    /// What kind of trouble, for programs: `process-limit`, `memory-pressure`, `process-failure`,
    /// `resource-violation`, `cleanup-failure`, `disk` or `table-full`.
    pub kind: String,
    /// Whose: an instance, a server, a limit or `daemon`.
    pub subject: String,
    /// `info`, `warning` or `error`.
    pub severity: String,
    /// What is wrong and what to do, for people.
    pub message: String,
    /// Milliseconds since it began.
    pub age_ms: u64,
    /// How often it was noticed since.
    pub count: u64,
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ApiError {
    /// What failed and why.
    pub error: String,
    /// What to do about it, where there is something.
    pub hint: Option<String>,
}

/// What a reload did, or with `dry_run` would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReloadView {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// Keys of the whole daemon that differ.
    pub daemon: Vec<KeyChangeView>,
    /// Each server: those of the new configuration in its order, then those that are gone.
    pub servers: Vec<ServerReloadView>,
    /// Servers that were removed or replaced and of which something still runs, though their time to end is over. They
    /// go on ending, and what is to come in their places starts after that.
    #[serde(default)]
    pub ending: Vec<String>,
}

/// What a reload does to one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerReloadView {
    /// Its name.
    pub name: String,
    /// `unchanged`, `added`, `removed`, `changed` (while it runs) or `replaced` (its instances drain, stop and are
    /// started anew).
    pub change: String,
    /// The keys that differ. None, and `replaced`, where it only ceases to share the instances of another, or begins to.
    pub keys: Vec<KeyChangeView>,
}

/// A key of the configuration that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyChangeView {
    /// Its path: `restart.max` of a server, or `limits.processes`.
    pub key: String,
    /// Its value before, as it is shown; absent for what may hold a secret.
    pub old: Option<String>,
    /// Its value now.
    pub new: Option<String>,
    /// How it takes effect: `live`, `replace` (with the server's next instances, which a reload brings about) or
    /// `daemon-restart` (not before the daemon is started again).
    pub apply: String,
}
