//! The table of keys. It alone says which keys there are, what they take, what they default to and what they
//! mean: the checks, the JSON schema, the environment variables and the reference in the documentation all
//! come from it.
//!
//! | file | subject |
//! |---|---|
//! | `keys/daemon.rs` | the tables of the whole daemon |
//! | `keys/server.rs` | a server's table, and `[defaults]` |
//! | `keys/tasks.rs` | tasks, their workers and projects |

mod daemon;
mod server;
mod tasks;

pub(crate) use daemon::{ALERTS, GATEWAY, LIMITS, METRICS, PORTS, REGISTRY, RELOAD, SESSIONS};
pub(crate) use server::{DEFAULTS, SERVER};
pub(crate) use tasks::{PROJECT, TASKS, WORKER, WORKERS};

use crate::node::Entry;

/// One key of a table.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// The default as TOML; `None` where absence means something of its own, which `doc` then says.
    pub(crate) default: Option<&'static str>,
    /// What it means, in one or two sentences.
    pub(crate) doc: &'static str,
}

/// Keys of one table, in the groups they are shared by.
pub(crate) type Groups = &'static [&'static [Key]];

/// What a key takes.
pub(crate) enum Kind {
    Text,
    TextList,
    TextMap,
    /// A table of texts by the names of HTTP headers.
    HeaderMap,
    Bool,
    Count {
        min: u64,
        max: u64,
    },
    /// A number from 0 to 1.
    Fraction,
    /// A number, whole or not.
    Number {
        min: f64,
        max: f64,
    },
    /// A whole number that may be negative.
    Integer {
        min: i64,
        max: i64,
    },
    Duration {
        zero: bool,
    },
    Size {
        min: u64,
        max: u64,
    },
    /// IP address and port.
    Address,
    /// The first and the last of a stretch of ports.
    PortRange,
    /// A table of ports by name: a number or "auto".
    Ports,
    Choice(&'static [Choice]),
    Table(Groups),
    /// A table of tables, by name.
    Named(&'static Named),
    /// Defined by the design, not available in this version.
    Later,
}

/// Tables by name, all with the same keys.
pub(crate) struct Named {
    /// What each is, as messages call it.
    pub(crate) what: &'static str,
    /// What names look like, as a regular expression.
    pub(crate) pattern: &'static str,
    /// Keys that the table around them has itself.
    pub(crate) around: Groups,
    /// Keys of each.
    pub(crate) each: Groups,
}

impl Named {
    /// Whether this is one of the tables by name, and no key of the table around them.
    pub(crate) fn is_one(&self, entry: &Entry) -> bool {
        self.around.is_empty() || (entry.node.entries().is_some() && find(self.around, &entry.key).is_none())
    }
}

/// One word of a choice.
pub(crate) struct Choice {
    pub(crate) word: &'static str,
    pub(crate) doc: &'static str,
    /// Whether this version has it.
    pub(crate) available: bool,
}

const fn key(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default: Some(default), doc }
}

const fn bare(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, default: None, doc }
}

const fn later(name: &'static str) -> Key {
    Key { name, kind: Kind::Later, default: None, doc: "Not available in this version yet." }
}

const fn choice(word: &'static str, doc: &'static str) -> Choice {
    Choice { word, doc, available: true }
}

const DURATION: Kind = Kind::Duration { zero: false };
const DURATION_OR_ZERO: Kind = Kind::Duration { zero: true };
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What a name looks like that is part of addresses and paths.
const NAME: &str = "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$";

/// `[servers.NAME]`.
pub(crate) const SERVERS: Named = Named { what: "server", pattern: NAME, around: &[], each: SERVER };

/// `[workers]` and `[workers.NAME]`.
pub(crate) const ALL_WORKERS: Named =
    Named { what: "kind of workers", pattern: NAME, around: WORKERS, each: WORKER };

/// `[projects.NAME]`.
pub(crate) const PROJECTS: Named =
    Named { what: "project", pattern: "^[!-~]{1,64}$", around: &[], each: PROJECT };

/// The whole file.
pub(crate) const ROOT: Groups = &[&[
    bare("gateway", Kind::Table(GATEWAY), "The HTTP side: where clients connect."),
    bare("limits", Kind::Table(LIMITS), "Bounds of the whole daemon."),
    bare("sessions", Kind::Table(SESSIONS), "Clients' conversations."),
    bare("defaults", Kind::Table(DEFAULTS), "What a server gets that does not say otherwise."),
    bare("servers", Kind::Named(&SERVERS), "The MCP servers, by name."),
    bare("ports", Kind::Table(PORTS), "Where servers' ports come from."),
    bare("metrics", Kind::Table(METRICS), "What is measured of processes."),
    bare("alerts", Kind::Table(ALERTS), "Who is told when something needs a person."),
    bare("registry", Kind::Table(REGISTRY), "The account of processes and ports."),
    bare("reload", Kind::Table(RELOAD), "Taking in a changed configuration."),
    bare("tasks", Kind::Table(TASKS), "Tasks: what is accepted, how often it is tried, how long it is kept."),
    bare(
        "workers",
        Kind::Named(&ALL_WORKERS),
        "Who does the tasks: the workers of all kinds, and each by name.",
    ),
    bare("projects", Kind::Named(&PROJECTS), "What the tasks of a project may do, by name."),
]];

/// All keys of a table.
pub(crate) fn all(groups: Groups) -> impl Iterator<Item = &'static Key> {
    groups.iter().flat_map(|group| group.iter())
}

/// The keys of a table that this version has.
pub(crate) fn available(groups: Groups) -> impl Iterator<Item = &'static Key> {
    all(groups).filter(|k| !matches!(k.kind, Kind::Later))
}

/// One key of a table.
pub(crate) fn find(groups: Groups, name: &str) -> Option<&'static Key> {
    all(groups).find(|k| k.name == name)
}

/// Every key below a table that takes a value, with its path: `restart.backoff.min`. Tables of named tables
/// are left out, as their paths depend on the names.
pub(crate) fn leaves(groups: Groups) -> Vec<(String, &'static Key)> {
    let mut found = Vec::new();
    for key in all(groups) {
        match key.kind {
            Kind::Table(inner) => {
                found.extend(leaves(inner).into_iter().map(|(path, k)| (format!("{}.{path}", key.name), k)));
            }
            Kind::Named(_) => {}
            _ => found.push((key.name.to_owned(), key)),
        }
    }
    found
}
