//! The command line: its grammar ([`Cli`]), the commands that ask a running daemon ([`run`]), and the stdio
//! shim `ostler connect`. It speaks the management API and MCP over the daemon's socket, and nothing else:
//! what needs the daemon's own parts (`up`, `config`, `doctor`, `guard`) is parsed here and run by the binary.

mod args;
mod commands;
mod connect;
mod exit;
mod render;
mod target;
mod text;

pub use args::{
    Cli, ClientCommand, Command, ConfigCommand, ConnectArgs, DoctorArgs, EventsArgs, Global, GuardArgs,
    LogsArgs, ProjectsArgs, ProjectsCommand, RunManyArgs, Running, SessionsArgs, SessionsCommand, Short,
    StateArg, StatusArgs, SubmitArgs, TaskCommand, TaskListArgs, TaskLogsArgs, TaskWaitArgs, UpArgs,
};
pub use commands::run;
pub use exit::{Exit, Failure};
pub use text::Moment;
