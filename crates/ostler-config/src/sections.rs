//! The sections of the whole daemon but `[gateway]`.

use std::time::Duration;

use ostler_domain::PortRange;

use crate::check::Checked;
use crate::diagnostic::{Diagnostic, Findings};
use crate::keys;
use crate::values::{Values, defaults};

/// `[limits]`: bounds of the whole daemon.
#[derive(Clone, PartialEq, Debug)]
pub struct Limits {
    /// Sessions at once.
    pub sessions: usize,
    /// Calls of one session in flight at once; tasks of it are as many at most.
    pub session_calls: usize,
    /// Instances of one server, without a pool, that sessions have for themselves.
    pub session_instances: usize,
    /// Calls of one instance in flight or waiting at once.
    pub instance_calls: usize,
    /// Instances of all servers at once.
    pub processes: usize,
    /// Instances of one type at once; one that a session has for itself is not counted here.
    pub per_type: usize,
    /// Memory of all servers' processes together, in bytes.
    pub memory: u64,
    /// Ad-hoc processes at once.
    pub adhoc: usize,
    /// The part of a limit from which a warning is raised, 0.0 to 1.0; less than `critical`.
    pub warning: f64,
    /// The part of a limit from which room is made, 0.0 to 1.0.
    pub critical: f64,
    /// Whether an instance with running calls may be stopped when nothing else makes room.
    pub emergency: bool,
    /// Longest for all that starts with the daemon to be ready.
    pub startup: Duration,
    /// Longest for a graceful end of everything.
    pub shutdown: Duration,
    /// Trees cleaned up at once.
    pub cleanups: usize,
    /// Longest for one try at cleaning up a tree.
    pub cleanup_time: Duration,
    /// Tries at cleaning up a tree before that is an alert.
    pub cleanup_tries: u32,
}

/// `[sessions]`: clients' conversations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sessions {
    /// A session without a call, a stream or a message for this long is ended.
    pub idle: Duration,
    /// One that has an instance for itself and calls nothing for this long is ended, though its client listens.
    pub stale: Duration,
    /// One that has an instance for itself is ended at this age, once nothing of it runs.
    pub max_age: Duration,
    /// How long what runs of a session may go on when somebody ends it.
    pub grace: Duration,
}

/// `[ports]`: where servers' ports come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ports {
    /// The ports that are given to servers.
    pub range: PortRange,
    /// Further ports, for when those are all taken; none of `range`.
    pub expand: Option<PortRange>,
}

/// `[metrics]`: what is measured of processes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Metrics {
    /// Pause between two measurements.
    pub interval: Duration,
}

/// `[alerts]`: who is told when something needs a person.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alerts {
    /// An `http://` or `https://` address that each alert is posted to.
    pub webhook: Option<String>,
    /// Program and arguments that are run for each alert; empty: none.
    pub command: Vec<String>,
    /// An alert that stays is told again after this, and none more often.
    pub repeat: Duration,
    /// Further tries at telling an alert when the first fails.
    pub retries: u32,
}

/// `[registry]`: the account of processes and ports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registry {
    /// Pause between two comparisons with what the kernel says.
    pub check: Duration,
}

/// `[reload]`: taking in a changed configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reload {
    /// Whether a change of a file is taken in by itself.
    pub watch: bool,
}

/// A count of the table of keys, whose bounds fit.
pub(crate) fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Limits {
    pub(crate) fn build(checked: &Checked, out: &mut Findings) -> Self {
        let base = defaults(keys::LIMITS);
        let values = Values { layers: &[checked, &base] };
        let limits = Self {
            sessions: values.count("sessions"),
            session_calls: values.count("session_calls"),
            session_instances: values.count("session_instances"),
            instance_calls: values.count("instance_calls"),
            processes: values.count("processes"),
            per_type: values.count("per_type"),
            memory: values.count("memory") as u64,
            adhoc: values.count("adhoc"),
            warning: values.fraction("warning"),
            critical: values.fraction("critical"),
            emergency: values.flag("emergency"),
            startup: values.duration("startup"),
            shutdown: values.duration("shutdown"),
            cleanups: values.count("cleanups"),
            cleanup_time: values.duration("cleanup_time"),
            cleanup_tries: small(values.count("cleanup_tries")),
        };
        if limits.warning >= limits.critical {
            let said = if checked.contains_key("warning") { "warning" } else { "critical" };
            let message = "`warning` is not below `critical`, so nobody would be warned";
            let error = Diagnostic::at(values.place(said), message);
            let help = format!("`warning` is {}, `critical` is {}", limits.warning, limits.critical);
            out.error(error.help(help));
        }
        limits
    }
}

impl Sessions {
    pub(crate) fn build(checked: &Checked) -> Self {
        let base = defaults(keys::SESSIONS);
        let values = Values { layers: &[checked, &base] };
        Self {
            idle: values.duration("idle"),
            stale: values.duration("stale"),
            max_age: values.duration("max_age"),
            grace: values.duration("grace"),
        }
    }
}

impl Ports {
    pub(crate) fn build(checked: &Checked, out: &mut Findings) -> Self {
        let base = defaults(keys::PORTS);
        let values = Values { layers: &[checked, &base] };
        let ports = Self { range: values.port_range("range"), expand: values.optional_range("expand") };
        if let Some(expand) = ports.expand.filter(|expand| expand.overlaps(ports.range)) {
            let error = Diagnostic::at(
                values.place("expand"),
                format!("`expand` ({expand}) and `range` ({}) have ports in common", ports.range),
            );
            out.error(error.help("give `expand` ports that `range` does not have"));
        }
        ports
    }
}

impl Metrics {
    pub(crate) fn build(checked: &Checked) -> Self {
        let base = defaults(keys::METRICS);
        Self { interval: Values { layers: &[checked, &base] }.duration("interval") }
    }
}

impl Alerts {
    pub(crate) fn build(checked: &Checked, out: &mut Findings) -> Self {
        let base = defaults(keys::ALERTS);
        let values = Values { layers: &[checked, &base] };
        if let Some((url, place)) = values.text("webhook") {
            let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
            if !host.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')) {
                let error = Diagnostic::at(place.clone(), "`webhook` is not an address");
                out.error(error.expected("an address such as `https://example.org/hook`"));
            }
        }
        if let Some((program, place)) = values.list("command").first()
            && program.trim().is_empty()
        {
            let error = Diagnostic::at(place.clone(), "the command of the alerts is empty");
            out.error(error.expected("the program to run, then its arguments"));
        }
        Self {
            webhook: values.text("webhook").map(|(url, _)| url.to_owned()),
            command: values.texts("command"),
            repeat: values.duration("repeat"),
            retries: small(values.count("retries")),
        }
    }
}

impl Registry {
    pub(crate) fn build(checked: &Checked) -> Self {
        let base = defaults(keys::REGISTRY);
        Self { check: Values { layers: &[checked, &base] }.duration("check") }
    }
}

impl Reload {
    pub(crate) fn build(checked: &Checked) -> Self {
        let base = defaults(keys::RELOAD);
        Self { watch: Values { layers: &[checked, &base] }.flag("watch") }
    }
}

/// The documented defaults of a section.
macro_rules! documented_defaults {
    ($($section:ident ($($findings:expr)?)),+ $(,)?) => {$(
        impl Default for $section {
            /// The documented defaults.
            fn default() -> Self {
                Self::build(&Checked::new() $(, &mut $findings)?)
            }
        }
    )+};
}

documented_defaults!(
    Limits(Findings::default()),
    Sessions(),
    Ports(Findings::default()),
    Metrics(),
    Alerts(Findings::default()),
    Registry(),
    Reload(),
);
