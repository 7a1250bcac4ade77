//! A server as the configuration describes it, after defaults: how to start it and how it may be used.

mod health;
mod resources;
mod upstream;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub use health::{HealthSpec, Heartbeat, Probe};
pub use resources::{MEMORY_WARNING, ResourceLimits};
pub use upstream::{Upstream, UpstreamAt};

use crate::ids::ServerName;
use crate::pool::PoolSpec;
use crate::ports::PortWish;
use crate::replicas::ReplicasSpec;

/// Who shares an instance of a server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Scope {
    /// Everyone: one instance for all.
    Shared,
    /// All sessions of one principal (the default).
    #[default]
    Principal,
    /// All sessions of one project.
    Project,
    /// One session only; the instance ends with it.
    Session,
}

impl Scope {
    /// The word used in configuration and listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Principal => "principal",
            Self::Project => "project",
            Self::Session => "session",
        }
    }
}

/// What a session gets when no instance of its own can be had.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Fallback {
    /// Nothing: its call is refused (the default).
    #[default]
    Refuse,
    /// The instance that sessions of its principal share.
    Shared,
}

impl Fallback {
    /// The word used in configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Shared => "shared",
        }
    }
}

/// The two families of protocol revisions. A stdio process serves one of them: its first request decides.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Era {
    /// Revisions up to 2025-11-25: an `initialize` handshake, sessions.
    Legacy,
    /// Revisions from 2026-07-28: no handshake, metadata in each request.
    Modern,
}

impl Era {
    /// The word used in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Modern => "modern",
        }
    }
}

/// What Ostler may learn about a server's program by running it, remembered across restarts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traits {
    /// Whether it serves legacy clients: it answered `initialize`.
    pub legacy: Option<bool>,
    /// Whether it serves modern clients: it answered `server/discover`.
    pub modern: Option<bool>,
    /// Whether it was seen to send requests of its own (sampling, elicitation, roots). Such a legacy server
    /// is served one call at a time where several sessions share it, so that its requests have one owner.
    pub asks_back: bool,
}

/// When calls of several sessions may run at the same time on one legacy instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Concurrency {
    /// Many at once, until the server is seen to ask back; then one at a time (the default).
    #[default]
    Auto,
    /// Always one at a time.
    Serial,
    /// Always many at once: ambiguous requests of the server are refused.
    Concurrent,
}

/// When an instance is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StartMode {
    /// With the daemon, where the scope allows an instance that no client has asked for yet.
    #[default]
    Eager,
    /// When the first client needs it.
    OnDemand,
}

/// How clients reach what a server offers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Transport {
    /// Ostler speaks MCP with it over its standard input and output (the default).
    #[default]
    Stdio,
    /// Ostler speaks MCP with it over Streamable HTTP: a POST for each message.
    Http,
    /// Ostler speaks MCP with it over HTTP with server-sent events, the transport of 2024-11-05.
    Sse,
    /// Ostler speaks MCP with it over a WebSocket: a text frame for each message.
    WebSocket,
    /// It listens by itself: its address is handed to the client, and Ostler carries none of its traffic.
    Socket,
    /// A plain process: it offers clients nothing.
    None,
    /// A worker of tasks: Ostler speaks the worker protocol with it over its standard input and output.
    Worker,
}

impl Transport {
    /// The word used in configuration and listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdio => "stdio",
            Self::Http => "http",
            Self::Sse => "sse",
            Self::WebSocket => "websocket",
            Self::Socket => "socket",
            Self::None => "none",
            Self::Worker => "worker",
        }
    }

    /// Whether Ostler speaks MCP with it, so that it has a handshake and an endpoint.
    pub fn is_mcp(self) -> bool {
        self == Self::Stdio || self.is_network()
    }

    /// Whether Ostler reaches it over the network: at a port of its process, or at an address.
    pub fn is_network(self) -> bool {
        matches!(self, Self::Http | Self::Sse | Self::WebSocket)
    }
}

/// Which exits are followed by a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RestartPolicy {
    /// None.
    Never,
    /// All but an exit with status 0 (the default).
    #[default]
    OnFailure,
    /// Every exit that was not asked for.
    Always,
}

/// How a server is restarted.
#[derive(Clone, PartialEq, Debug)]
pub struct Restart {
    /// Which exits are followed by a restart.
    pub policy: RestartPolicy,
    /// Restarts within `window` after which the server counts as broken and is retried slowly.
    pub max: u32,
    /// The window in which restarts are counted; as long in health, and the back-off starts over.
    pub window: Duration,
    /// The first delay.
    pub backoff_min: Duration,
    /// The longest delay; also the pause between the slow retries of a broken server is ten times this.
    pub backoff_max: Duration,
    /// Part of the delay that is random, 0.0 to 1.0.
    pub jitter: f64,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            policy: RestartPolicy::OnFailure,
            max: 5,
            window: Duration::from_secs(600),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(30),
            jitter: 0.2,
        }
    }
}

/// Deadlines of an instance's phases. Each phase has one, so nothing half-started or half-stopped stays.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deadlines {
    /// From asking the guard to the server's process running its program.
    pub spawn: Duration,
    /// From the process running to the protocol's handshake done. Generous: a cold `npx` downloads first.
    pub handshake: Duration,
    /// Stopping: how long running calls may finish before standard input is closed.
    pub drain: Duration,
    /// Stopping: from closing standard input to SIGTERM.
    pub stdin_grace: Duration,
    /// Stopping: from SIGTERM to SIGKILL.
    pub term_grace: Duration,
    /// From SIGKILL until an unkillable tree is reported. It stays owned and is tried again.
    pub kill: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            spawn: Duration::from_secs(10),
            handshake: Duration::from_secs(60),
            drain: Duration::from_secs(5),
            stdin_grace: Duration::from_secs(2),
            term_grace: Duration::from_secs(8),
            kill: Duration::from_secs(10),
        }
    }
}

/// How a process of the server is started.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Launch {
    /// The program: a path, or a name looked up in the `PATH` the server will have.
    pub command: String,
    /// Its arguments, given as they are; no shell is involved.
    pub args: Vec<String>,
    /// Variables set for it, beyond the allow-list taken from the daemon's environment.
    pub env: BTreeMap<String, String>,
    /// Further variables of the daemon's environment that it may inherit, by name.
    pub inherit_env: Vec<String>,
    /// Working directory; the daemon's own when absent.
    pub cwd: Option<PathBuf>,
}

/// A server, complete: every key of its table with the defaults filled in.
#[derive(Clone, PartialEq, Debug)]
pub struct ServerSpec {
    /// Its name.
    pub name: ServerName,
    /// What it is an example of: instances are counted by it (`limits.per_type`). Its name unless said.
    pub type_name: String,
    /// How a process of it is started.
    pub launch: Launch,
    /// How clients reach it.
    pub transport: Transport,
    /// Where it is reached, for a transport over the network; `None` for every other.
    pub upstream: Option<Upstream>,
    /// Servers that are started before it and must be ready.
    pub depends_on: Vec<ServerName>,
    /// Servers that are started before it if they can be; without them it is degraded.
    pub wants: Vec<ServerName>,
    /// Its ports, by name. It finds them in its environment and where `{port.NAME}` stands.
    pub ports: BTreeMap<String, PortWish>,
    /// How it is asked whether it is well.
    pub health: HealthSpec,
    /// What one instance may use.
    pub limits: ResourceLimits,
    /// Who shares an instance.
    pub scope: Scope,
    /// When it is started.
    pub start: StartMode,
    /// Whether the daemon counts as ready only with it.
    pub required: bool,
    /// When calls of several sessions may overlap on one legacy instance.
    pub concurrency: Concurrency,
    /// Restarting.
    pub restart: Restart,
    /// Deadlines of the phases.
    pub deadlines: Deadlines,
    /// Longest silence of a running call: progress restarts this clock.
    pub call_idle: Duration,
    /// Longest duration of a call, whatever progress it makes.
    pub call_max: Duration,
    /// An instance that was started on demand and serves no session is stopped after this.
    pub idle: Duration,
    /// Lines kept per stream of the process.
    pub log_lines: usize,
    /// Files the output is kept in, the one being written included; 0: none.
    pub log_files: u32,
    /// Size in bytes at which the next file is begun.
    pub log_file_bytes: u64,
    /// Whether each request names the session that it is of, and the processes know where the daemon is.
    pub tell_session: bool,
    /// What a session gets when no instance of its own can be had.
    pub fallback: Fallback,
    /// How instances are started ahead and shared out, where sessions have one each.
    pub pool: Option<PoolSpec>,
    /// How many instances serve side by side, where all share them; one where it does not say.
    pub replicas: Option<ReplicasSpec>,
}

impl ServerSpec {
    /// Whether it is started with the daemon: it is meant to be, and its scope or its pool allows an instance that no
    /// client has asked for yet.
    pub fn is_eager(&self) -> bool {
        let has_spares = self.pool.as_ref().is_some_and(|pool| pool.spare > 0);
        self.start == StartMode::Eager
            && (has_spares || matches!(self.scope, Scope::Shared | Scope::Principal))
    }

    /// Whether it runs elsewhere: it has an address, and no process of Ostler's.
    pub fn is_remote(&self) -> bool {
        matches!(&self.upstream, Some(Upstream { at: UpstreamAt::Url(_), .. }))
    }

    /// A server with nothing said but its name and program: every default of the documentation.
    pub fn new(name: ServerName, command: impl Into<String>) -> Self {
        Self {
            type_name: name.to_string(),
            name,
            launch: Launch { command: command.into(), ..Launch::default() },
            transport: Transport::default(),
            upstream: None,
            depends_on: Vec::new(),
            wants: Vec::new(),
            ports: BTreeMap::new(),
            health: HealthSpec::default(),
            limits: ResourceLimits::default(),
            scope: Scope::default(),
            start: StartMode::default(),
            required: false,
            concurrency: Concurrency::default(),
            restart: Restart::default(),
            deadlines: Deadlines::default(),
            call_idle: Duration::from_secs(300),
            call_max: Duration::from_secs(3600),
            idle: Duration::from_secs(300),
            log_lines: 1000,
            log_files: 0,
            log_file_bytes: 10 << 20,
            tell_session: false,
            fallback: Fallback::default(),
            pool: None,
            replicas: None,
        }
    }
}
