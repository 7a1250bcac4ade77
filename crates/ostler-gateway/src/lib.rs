//! HTTP: the MCP endpoints and the management API.
//!
//! | path | file |
//! |---|---|
//! | connections, limits, time-outs | [`serve`] |
//! | `/mcp/{server}` | [`mcp`]: `legacy` and `modern` requests, `sse` streams |
//! | `/mcp/ostler` | `mcp::own`: Ostler's own MCP server |
//! | many calls in one go | `run` |
//! | `/api/v1/…`, `/healthz`, `/readyz` | [`api`] |
//! | `Host` and `Origin` | [`origin`] |
//! | request bodies | [`body`] |
//! | answers, errors | [`reply`] |
//!
//! Tasks it starts: one per connection, one per event stream being sent, one per legacy call that has become
//! a stream, one per answer of Ostler's own MCP server that is a stream. Nothing here knows a process: that is the supervisor's.

pub mod api;
pub mod body;
pub mod mcp;
pub mod origin;
pub mod reply;
mod run;
pub mod serve;

use std::sync::Arc;

use ostler_supervisor::{Caller, Reloader, Supervisor};
use tokio::sync::Notify;

/// What every request handler needs.
#[derive(Debug)]
pub struct Gateway {
    /// The servers and sessions.
    pub supervisor: Arc<Supervisor>,
    /// Reads the configuration again.
    pub reloader: Arc<Reloader>,
    /// Who calls on this machine. There is one principal until tokens come: the user the daemon runs for.
    pub local: Caller,
    /// The address of the HTTP listener, as `http://host:port`.
    pub base: String,
    /// Told when somebody asks the daemon to stop.
    pub shutdown: Arc<Notify>,
    /// When the daemon started.
    pub started: std::time::Instant,
    /// Requests to Ostler's own MCP server that can be cancelled.
    pub(crate) running: mcp::Running,
}

impl Gateway {
    /// A gateway for this supervisor, reachable at `base`.
    pub fn new(
        supervisor: Arc<Supervisor>,
        reloader: Arc<Reloader>,
        local: Caller,
        base: String,
    ) -> Arc<Self> {
        Arc::new(Self {
            supervisor,
            reloader,
            local,
            base,
            shutdown: Arc::new(Notify::new()),
            started: std::time::Instant::now(),
            running: mcp::Running::default(),
        })
    }
}
