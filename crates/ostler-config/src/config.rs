//! The desired state: what the rest of Ostler is built from.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ostler_domain::ServerSpec;

use crate::check::Checked;
use crate::diagnostic::{ConfigWarning, Diagnostic, Findings};
use crate::keys;
use crate::projects::Project;
use crate::sections::{Alerts, Limits, Metrics, Ports, Registry, Reload, Sessions};
use crate::tasks::Tasks;
use crate::values::{Values, defaults};
use crate::workers::Workers;

/// A configuration, complete: every key with its value or its default.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The HTTP side.
    pub gateway: Gateway,
    /// Bounds of the whole daemon.
    pub limits: Limits,
    /// Clients' conversations.
    pub sessions: Sessions,
    /// Where servers' ports come from.
    pub ports: Ports,
    /// What is measured of processes.
    pub metrics: Metrics,
    /// Who is told when something needs a person.
    pub alerts: Alerts,
    /// The account of processes and ports.
    pub registry: Registry,
    /// Taking in a changed configuration.
    pub reload: Reload,
    /// What tasks are accepted, how often they are tried, how long they are kept.
    pub tasks: Tasks,
    /// Who does the tasks.
    pub workers: Workers,
    /// What the tasks of a project may do, by its name; one that is not here may what [`Project::default`] says.
    pub projects: BTreeMap<String, Project>,
    /// The servers that are enabled, in the order of the files and of each file.
    pub servers: Vec<ServerSpec>,
    /// The files this was read from.
    pub sources: Vec<PathBuf>,
    /// What did not keep the configuration from being used, but should be told.
    pub warnings: Vec<ConfigWarning>,
}

/// `[gateway]`: the HTTP side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gateway {
    /// Address and port clients connect to; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whether `listen` may be an address that other machines reach.
    pub allow_remote: bool,
    /// Values of `Host` accepted besides the loopback names and the address listened on.
    pub allowed_hosts: Vec<String>,
    /// Values of `Origin` accepted besides loopback origins.
    pub allowed_origins: Vec<String>,
    /// Largest body of one request, in bytes.
    pub max_body: usize,
    /// Memory for all request bodies held at once, in bytes; at least `max_body`.
    pub body_memory: usize,
    /// Longest a client may take to send a request's headers.
    pub header_timeout: Duration,
    /// Longest silence while a request's body arrives.
    pub body_timeout: Duration,
    /// Longest a client may leave an answer unread.
    pub write_timeout: Duration,
    /// A legacy answer that takes longer than this becomes a resumable event stream; zero: every answer does.
    pub sse_after: Duration,
    /// A legacy call's event stream is closed after this and the client resumes it; zero: never.
    pub stream_hold: Duration,
    /// Events kept per stream for a client that resumes.
    pub replay_events: usize,
    /// Bytes of events kept per stream for a client that resumes.
    pub replay_bytes: usize,
    /// Pause after which a silent event stream gets a comment.
    pub keepalive: Duration,
    /// Connections open at once.
    pub max_connections: usize,
}

impl Gateway {
    pub(crate) fn build(checked: &Checked, out: &mut Findings) -> Self {
        let base = defaults(keys::GATEWAY);
        let values = Values { layers: &[checked, &base] };
        let gateway = Self {
            listen: values.address("listen"),
            allow_remote: values.flag("allow_remote"),
            allowed_hosts: values.texts("allowed_hosts"),
            allowed_origins: values.texts("allowed_origins"),
            max_body: values.count("max_body"),
            body_memory: values.count("body_memory"),
            header_timeout: values.duration("header_timeout"),
            body_timeout: values.duration("body_timeout"),
            write_timeout: values.duration("write_timeout"),
            sse_after: values.duration("sse_after"),
            stream_hold: values.duration("stream_hold"),
            replay_events: values.count("replay_events"),
            replay_bytes: values.count("replay_bytes"),
            keepalive: values.duration("keepalive"),
            max_connections: values.count("max_connections"),
        };
        gateway.check(checked, &values, out);
        gateway
    }

    fn check(&self, checked: &Checked, values: &Values<'_>, out: &mut Findings) {
        if !self.listen.ip().is_loopback() && !self.allow_remote {
            let error = Diagnostic::at(
                values.place("listen"),
                format!("`listen` is {}, which other machines can reach", self.listen),
            );
            let help = "set `allow_remote = true` in [gateway] if that is meant";
            out.error(error.expected("a loopback address such as `127.0.0.1:7320`").help(help));
        }
        if self.body_memory < self.max_body {
            let said = if checked.contains_key("body_memory") { "body_memory" } else { "max_body" };
            let message = "`body_memory` is less than `max_body`, so the largest request could never be read";
            let error = Diagnostic::at(values.place(said), message);
            out.error(error.help("raise `body_memory` or lower `max_body`"));
        }
        for (host, place) in values.list("allowed_hosts") {
            if host.is_empty() || host.contains(['/', '*', ' ', '@']) {
                let error = Diagnostic::at(place.clone(), format!("`{host}` is not a host"));
                out.error(error.expected("a name, or a name and port, such as `mcp.example.org`"));
            }
        }
        for (origin, place) in values.list("allowed_origins") {
            let host = origin.split_once("://").map(|(_, host)| host).unwrap_or_default();
            if host.is_empty() || host.contains(['/', '*', ' ', '@']) {
                let error = Diagnostic::at(place.clone(), format!("`{origin}` is not an origin"));
                out.error(error.expected("scheme and host, such as `https://example.org`"));
            }
        }
    }
}

impl Default for Gateway {
    /// The documented defaults.
    fn default() -> Self {
        Self::build(&Checked::new(), &mut Findings::default())
    }
}
