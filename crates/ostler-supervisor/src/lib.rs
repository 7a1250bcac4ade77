//! Drivers: instances, their connections, and the sessions that use them.
//!
//! Tasks and threads this crate starts, with what goes in and what comes out:
//!
//! | task | one per | in | out |
//! |---|---|---|---|
//! | [`instance`] driver | instance | wishes, guard reports, results, a timer | effects, snapshots, events |
//! | [`connection`] task | process | requests of callers, lines of the process | lines to the process, answers |
//! | couriers | process or server on the network | messages of the connection, what the server says | HTTP, WebSocket (`upstream`) |
//! | capture | stream of a process | its output | [`log`] |
//! | report forwarders | process | guard reports, connection news | the driver |
//! | effect tasks | effect | a spawn, a handshake, draining | one message to the driver |
//! | pool followers, checks, resets | instance of a pool | its snapshots, a probe, a program | the pool's decisions (`pool`) |
//! | [`monitor`] | daemon | a timer, who looks | readings, refusals, wishes to drivers |
//! | dependencies | server that has some | how they stand, [`reload`] | its trouble |
//! | [`reload`] | reload | a configuration | another table of servers |
//! | sessions' ends | daemon | [`session`], a timer | ended and draining sessions |
//! | sessions' records | daemon | [`session`] | jobs for the store |
//! | lull | daemon | freed sessions and instances | memory for the system ([`lull`]) |
//! | alerts | daemon | what somebody noticed ([`alerts`]) | events, and one queue for each sink |
//! | alert sink | webhook, command | tellings | requests, programs run |
//! | audit | daemon | the registry and the kernel ([`audit`]) | repairs, events |
//! | journal thread | daemon | changes and questions ([`tasks`]) | SQLite |
//! | workers | worker process | orders of the queue | lines to the process, how attempts end |
//! | attempts' ends | attempt | how it ended | the journal, then the queue |
//! | store thread | daemon | jobs ([`ledger`]) | SQLite |
//!
//! The channel graph has no cycle that waits: a driver never waits for a connection, a connection never waits
//! for anybody.

pub mod adhoc;
pub mod admission;
pub mod alerts;
pub mod audit;
pub mod budget;
mod capture;
pub mod cleanup;
pub mod clock;
pub mod connection;
mod core;
pub mod events;
mod identity;
pub mod instance;
pub mod launch;
pub mod ledger;
pub mod log;
pub mod log_file;
pub mod lull;
pub mod monitor;
mod order;
mod own;
mod pool;
pub mod ports;
mod program;
mod quarters;
pub mod random;
pub mod registry;
pub mod reload;
mod replicas;
mod ring;
pub mod sandbox;
mod select;
pub mod server;
pub mod session;
pub mod stream;
pub mod supervisor;
pub mod tasks;
pub mod tool_call;
mod upstream;
mod wait;
pub mod watch;
mod web;

pub use adhoc::{AdHocSpec, SpawnRefused};
pub use budget::Budget;
pub use connection::Connection;
pub use instance::{Ended, GuardedTree, InstanceHandle, Lease, Owner, Snapshot, Unavailable};
pub use monitor::{Monitor, Overview, Reading};
pub use own::{Own, ServedBy};
pub use registry::{Registry, Table};
pub use reload::{ReloadRefused, Reloader, Report};
pub use server::Server;
pub use session::{Session, Sessions};
pub use supervisor::{Caller, StartError, Supervisor, reap_left};
pub use tool_call::{CallFailed, ToolCall, ToolResult};
