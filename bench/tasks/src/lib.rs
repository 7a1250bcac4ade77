//! The measuring half of the task benchmark, as far as it is not a peer's own language.
//!
//! [`http`] is the lean client of Ostler's API over its unix socket, [`cell`] is what a run is asked to measure and
//! what it answers; the same of all peers' drivers in `bench/tasks/peers`. `bench/README.md` says what each figure means.

pub mod cell;
pub mod http;
