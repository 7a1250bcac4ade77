//! Tasks: what they are called, which is next and on which worker, when a failed one is tried again, and how many
//! workers there are.
//!
//! ```text
//!  (reserve) ──► Submitted ──► delayed ──► ready ──► Assign ──► running ──► Ended: over
//!                                 ▲          │ Expire, Dropped      │
//!                                 └──────────┼── Ended: retry ◄─────┘
//! ```
//!
//! What is here decides and remembers nothing on disk: the journal does, and the queue is filled from it at start.

mod ids;
pub mod queue;
pub mod retry;
pub mod scale;
pub mod worker;

pub use ids::{
    BatchId, InvalidId, InvalidLane, InvalidPriority, InvalidProject, Lane, Priority, ProjectName, TaskId,
    WorkerId,
};

/// The types of tasks that Ostler does itself; a custom one has another name.
pub const STOCK_TYPES: [&str; 6] =
    ["execute-code", "execute-function", "execute-module", "http-request", "shell-command", "mcp-tool"];
