//! Workers as real processes: the one that is built in, and those of `workers/`.

mod builtin;
mod driver;
mod fuzz;
mod http;
mod js;
mod libraries;
mod shell;
