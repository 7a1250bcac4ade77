//! The pure core of Ostler: what things are called, the states an instance goes through and the decisions
//! about them. Time comes in as an argument and effects go out as values; nothing here knows a runtime, a
//! file, a clock, a process or a random number, so every decision can be tested by calling it.

pub mod alert;
mod chance;
pub mod event;
pub mod graph;
pub mod health;
pub mod ids;
pub mod instance;
pub mod pool;
pub mod ports;
pub mod pressure;
pub mod replicas;
pub mod server;
pub mod session;
pub mod task;
pub mod text;
mod wear;

pub use event::{Happening, Severity};
pub use ids::{Generation, InstanceId, InvalidServerName, ServerName};
pub use instance::{
    AfterStop, Cause, Effect, Event, Exit, Instance, Now, Policy, StartPhase, State, StopStep, TimerKind,
};
pub use ports::{PortRange, PortWish};
pub use server::{
    Concurrency, Deadlines, Era, Fallback, HealthSpec, Heartbeat, Launch, Probe, ResourceLimits, Restart,
    RestartPolicy, Scope, ServerSpec, StartMode, Traits, Transport, Upstream, UpstreamAt,
};
