//! What changes from one configuration to the next: a pure comparison, from which a reload is carried out and
//! its dry run is printed.
//!
//! Each key says how a change of it takes effect ([`Apply`]). The structs are taken apart field by field, so
//! that a new field that is not compared here does not compile.

mod daemon;
mod server;
mod tasks;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ostler_domain::{ServerName, ServerSpec};

use crate::config::Config;

/// How a changed key takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Apply {
    /// At once, with everything going on as it does.
    Live,
    /// When the server's instances are replaced: each drains, stops, and is started anew. Of workers: when each has
    /// ended what it does.
    Replace,
    /// When the daemon is started again.
    DaemonRestart,
}

/// One key that differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyChange {
    /// Its path in its table: `restart.max`, or `limits.processes` for a section's.
    pub key: String,
    /// Old and new value as they are shown. Absent for what may hold a secret, such as arguments.
    pub values: Option<(String, String)>,
    /// How it takes effect.
    pub apply: Apply,
}

/// What becomes of one server, or of the workers of one lane.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerChange {
    /// Nothing: it is not to be touched.
    Unchanged,
    /// It is new, or newly enabled.
    Added,
    /// It is gone, or no longer enabled: its instances drain and stop.
    Removed,
    /// Some of its keys differ; at least one.
    Changed(Vec<KeyChange>),
}

impl ServerChange {
    /// Whether its running instances are to be replaced.
    pub fn replaces(&self) -> bool {
        matches!(self, Self::Changed(keys) if keys.iter().any(|k| k.apply == Apply::Replace))
    }
}

/// What changes from one configuration to the next.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Diff {
    /// Each server of either: those of the new one in its order, then those that are gone.
    pub servers: Vec<(ServerName, ServerChange)>,
    /// Each lane of workers of either, with what differs of its workers, be it said of all or of them alone: Ostler's own
    /// first, then the others by name. All of it is told in `daemon` as well, by the keys that are said.
    pub lanes: Vec<(String, ServerChange)>,
    /// Keys of the whole daemon that differ.
    pub daemon: Vec<KeyChange>,
}

/// Compares two configurations. Where they came from and what was warned of does not count.
pub fn diff(old: &Config, new: &Config) -> Diff {
    let before: BTreeMap<&ServerName, &ServerSpec> = old.servers.iter().map(|s| (&s.name, s)).collect();
    let after: BTreeMap<&ServerName, &ServerSpec> = new.servers.iter().map(|s| (&s.name, s)).collect();
    let kept = new.servers.iter().map(|spec| {
        let change = match before.get(&spec.name) {
            None => ServerChange::Added,
            Some(was) => match server::changes(was, spec) {
                keys if keys.is_empty() => ServerChange::Unchanged,
                keys => ServerChange::Changed(keys),
            },
        };
        (spec.name.clone(), change)
    });
    let gone = old.servers.iter().filter(|spec| !after.contains_key(&spec.name));
    let servers = kept.chain(gone.map(|spec| (spec.name.clone(), ServerChange::Removed))).collect();
    Diff { servers, lanes: tasks::lanes(&old.workers, &new.workers), daemon: daemon::changes(old, new) }
}

/// The configuration in force once `new` is taken in while the daemon runs on: each key of the whole daemon that
/// only a restart changes ([`Apply::DaemonRestart`]) is as in `old`.
pub fn in_force(old: &Config, new: Config) -> Config {
    daemon::in_force(old, new)
}

impl Diff {
    /// Whether nothing changes at all.
    pub fn is_empty(&self) -> bool {
        self.daemon.is_empty() && self.servers.iter().all(|(_, change)| *change == ServerChange::Unchanged)
    }

    /// Keys that take effect only when the daemon is started again.
    pub fn needs_daemon_restart(&self) -> impl Iterator<Item = &KeyChange> {
        self.daemon.iter().filter(|key| key.apply == Apply::DaemonRestart)
    }
}

impl fmt::Display for KeyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.values {
            Some((old, new)) => write!(f, "{} {old} -> {new}", self.key),
            None => write!(f, "{} changed", self.key),
        }
    }
}

impl fmt::Display for ServerChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unchanged => f.write_str("unchanged"),
            Self::Added => f.write_str("added"),
            Self::Removed => f.write_str("removed: its instances drain and stop"),
            Self::Changed(keys) => {
                f.write_str(if self.replaces() { "replaced: " } else { "changed while it runs: " })?;
                for (index, key) in keys.iter().enumerate() {
                    write!(f, "{}{key}", if index == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
        }
    }
}

/// A line for each thing that changes, and one that counts what does not.
impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for key in &self.daemon {
            let how = match key.apply {
                Apply::Live => "",
                Apply::Replace => ": workers are replaced, each once it is free",
                Apply::DaemonRestart => ": only when the daemon is restarted",
            };
            writeln!(f, "daemon: {key}{how}")?;
        }
        let mut unchanged = 0;
        for (name, change) in &self.servers {
            match change {
                ServerChange::Unchanged => unchanged += 1,
                _ => writeln!(f, "server {name}: {change}")?,
            }
        }
        write!(f, "{unchanged} server{} unchanged", if unchanged == 1 { "" } else { "s" })
    }
}

/// Collects the keys that differ.
struct Compare {
    /// Before each key: a section and a dot, or nothing.
    prefix: String,
    found: Vec<KeyChange>,
}

impl Compare {
    fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), found: Vec::new() }
    }

    fn note(&mut self, key: &str, apply: Apply, values: Option<(String, String)>) {
        self.found.push(KeyChange { key: format!("{}{key}", self.prefix), values, apply });
    }

    /// A value that anybody may see.
    fn shown<T: PartialEq + Show + ?Sized>(&mut self, key: &str, apply: Apply, old: &T, new: &T) {
        if old != new {
            self.note(key, apply, Some((old.show(), new.show())));
        }
    }

    /// A value that may hold a secret.
    fn hidden<T: PartialEq + ?Sized>(&mut self, key: &str, apply: Apply, old: &T, new: &T) {
        if old != new {
            self.note(key, apply, None);
        }
    }
}

/// A number of bytes.
#[derive(PartialEq)]
struct Bytes(u64);

/// How a value is shown, near to how it is written in a file.
trait Show {
    fn show(&self) -> String;
}

macro_rules! show_as_displayed {
    ($($type:ty),+) => {$(
        impl Show for $type {
            fn show(&self) -> String {
                self.to_string()
            }
        }
    )+};
}

show_as_displayed!(bool, usize, u32, u64, i8, f64, str, String, ServerName, std::net::SocketAddr);
show_as_displayed!(ostler_domain::PortRange, ostler_domain::PortWish);

impl Show for Duration {
    fn show(&self) -> String {
        crate::server::show(*self)
    }
}

impl Show for Bytes {
    fn show(&self) -> String {
        ostler_domain::text::human_bytes(self.0)
    }
}

impl<T: Show> Show for Option<T> {
    fn show(&self) -> String {
        self.as_ref().map_or_else(|| "none".into(), Show::show)
    }
}

impl<T: Show> Show for Vec<T> {
    fn show(&self) -> String {
        format!("[{}]", self.iter().map(Show::show).collect::<Vec<_>>().join(", "))
    }
}

impl<T: Show> Show for BTreeMap<String, T> {
    fn show(&self) -> String {
        let entries: Vec<_> = self.iter().map(|(key, value)| format!("{key} = {}", value.show())).collect();
        if entries.is_empty() { "{}".into() } else { format!("{{ {} }}", entries.join(", ")) }
    }
}
