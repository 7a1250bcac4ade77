//! Files to desired state: ostler.toml and every mcpServers JSON, with errors that point at the place.
//!
//! ```text
//!  ostler.toml ─ toml ─┐                  ┌─ check (against `keys`) ─┐                          config
//!                      ├─ node (a tree ───┤                          ├─ overrides ── values ── server
//!  mcpServers ─ json ──┘  with places)    └─ foreign (other shapes) ─┘  (OSTLER_..)            tasks, workers, projects
//! ```
//!
//! `keys` is the one table of keys: checks, environment variables, the JSON schema and the reference in the
//! documentation come from it. To add a key, add it there and read it in `config`, `sections`, `server`, `health`,
//! `tasks`, `workers` or `projects`.
//!
//! Nothing here starts anything, and nothing but [`load`] touches the file system, apart from looking whether
//! a folder exists, and asking how many processors there are.

mod check;
mod config;
mod diagnostic;
mod diff;
mod expand;
mod foreign;
mod health;
mod json;
mod keys;
mod load;
mod node;
mod order;
mod overrides;
mod pool;
mod projects;
mod replicas;
mod schema;
mod sections;
mod server;
mod source;
mod tasks;
mod toml;
mod units;
mod upstream;
mod values;
mod workers;

pub use config::{Config, Gateway};
pub use diagnostic::{
    ConfigError, ConfigErrors, ConfigWarning, Diagnostic, MAX_FOUND, MAX_RENDERED, Severity,
};
pub use diff::{Apply, Diff, KeyChange, ServerChange, diff, in_force};
pub use load::{load, load_str, load_with};
pub use projects::Project;
pub use schema::json_schema;
pub use sections::{Alerts, Limits, Metrics, Ports, Registry, Reload, Sessions};
pub use source::{Format, MAX_FILE_BYTES};
pub use tasks::{JournalMode, TASK_BYTES_MAX, Tasks};
pub use workers::{Sandbox, StockWorkers, WorkerServer, WorkerSettings, Workers};
