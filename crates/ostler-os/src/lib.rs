//! Processes on Linux: spawning through the guard, exact process trees, signals, the sweep, `/proc`.
//! Nothing above this crate touches a pid, and all `unsafe` code of the workspace lives here.
//!
//! ```text
//!   daemon (subreaper)                 guard (subreaper, own group)          leader (own session) ...
//!   Spawner::spawn ──asks the forge───▶ guard::main ──fork, exec───────────▶ the server
//!      control socket ◀──reports/orders──▶                                     │ descendants, however
//!      stdin/stdout/stderr pipes ═════════ handed through, then closed ════════╡ they fork, stay below
//!      pidfd of the guard                 waitpid(-1): ECHILD = nobody left ◀──┘ the guard
//! ```
//!
//! What keeps the promise "no orphan":
//!
//! | who dies            | who cleans up                                                                    |
//! |---------------------|----------------------------------------------------------------------------------|
//! | the leader          | the guard, at once ([`guard`])                                                   |
//! | the daemon          | the guard, on end of file of its control socket ([`guard`])                      |
//! | the guard           | the daemon: orphans come to it because it is a subreaper ([`sweep`])             |
//! | the forge           | nobody needs to: it has no children; the daemon starts another                     |
//! | daemon and guard    | the next daemon, from recorded trees: pid + start time + boot id, mark ([`reap`]) |
//!
//! Threads and tasks this crate starts:
//! * one tokio task for each spawned tree ([`spawn`]): reads the guard's reports, waits for its pidfd, reaps it,
//!   feeds [`spawn::Guarded::events`]; ends with the guard;
//! * one thread for each guard that died before its time ([`sweep`]); ends when no adopted process is left.
#![allow(
    unsafe_code,
    reason = "this is the one crate of the workspace that may; each block says why it is sound"
)]

pub mod boot;
mod cgroup;
pub mod command;
pub mod env;
pub mod files;
mod forge;
pub mod guard;
mod kill;
pub mod limits;
pub mod mark;
pub mod meter;
pub mod own;
pub mod peercred;
pub mod pidfd;
pub mod pipe;
pub mod pressure;
pub mod reap;
pub mod sandbox;
mod shrink;
pub mod sockets;
pub mod spawn;
pub mod sweep;
pub mod tree;
mod wire;

pub use limits::{LimitHit, LimitKind, Limits, Readings, Rung, Rungs};
pub use mark::Mark;
pub use spawn::{
    Exit, GuardControl, GuardEvent, Guarded, SpawnError, SpawnFailure, SpawnRequest, Spawner,
    become_subreaper,
};
