//! The worker's side of tasks.
//!
//! [`protocol`] is what daemon and workers say to each other, in any language. [`run`] is the worker that is built
//! in, `ostler worker`: a process that takes one task at a time from standard input and answers on standard output.
//!
//! ```text
//!   stdin ──► wire ──► builtin ──► js      execute-code, execute-function: QuickJS in this process
//!   stdout ◄── wire ◄── job  ◄──┤  shell   shell-command: a tree of processes, gone when its task is over
//!                               └─ http    http-request: one connection a request
//! ```
//!
//! One thread does all of it, so a task passes from line to answer without waiting for another. While a task runs,
//! `Job::check` is asked now and then whether it is to stop; it reads what has come meanwhile, and says that
//! the worker is alive. Only looking up the name of a host needs a thread, which tokio starts and ends.
//!
//! A worker forbids little: what its process may reach is for who starts it to limit.

mod builtin;
mod http;
mod job;
mod js;
pub mod protocol;
mod shell;
mod wire;

pub use builtin::run;
