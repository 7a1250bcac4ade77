//! Files to desired state: ostler.toml and every mcpServers JSON, with errors that point at the place.
//!
//! ```text
//!  ostler.toml ─ toml ─┐                  ┌─ check (against `keys`) ─┐
//!                      ├─ node (a tree ───┤                          ├─ overrides ── values ── config
//!  mcpServers ─ json ──┘  with places)    └─ foreign (other shapes) ─┘  (OSTLER_..)            server
//! ```
//!
//! `keys` is the one table of keys: checks, environment variables, the JSON schema and the reference in the
//! documentation come from it. To add a key, add it there and read it in `config`, `sections`, `server` or `health`.
//!
//! Nothing here starts anything, and nothing but [`load`] touches the file system, apart from looking whether
//! a working directory exists.

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
mod replicas;
mod schema;
mod sections;
mod server;
mod source;
mod toml;
mod units;
mod upstream;
mod values;

pub use config::{Config, Gateway};
pub use diagnostic::{
    ConfigError, ConfigErrors, ConfigWarning, Diagnostic, MAX_FOUND, MAX_RENDERED, Severity,
};
pub use diff::{Apply, Diff, KeyChange, ServerChange, diff, in_force};
pub use load::{load, load_str, load_with};
pub use schema::json_schema;
pub use sections::{Alerts, Limits, Metrics, Ports, Registry, Reload, Sessions};
pub use source::{Format, MAX_FILE_BYTES};
