//! `ostler`: one binary for the daemon, its guards and the command line.
//!
//! Read top to bottom: a guard, a worker on its last step into a sandbox, and a worker are recognised before anything else
//! exists; then the command line is parsed and handed to whoever runs it.

mod config;
mod daemon;
mod doctor;
mod lock;
mod progress;
mod watch;

use std::process::ExitCode;

use clap::Parser as _;
use ostler_cli::{Cli, Command, Exit};
use ostler_os::sandbox::confine;

fn main() -> ExitCode {
    // A guard, and what makes guards, must stay small and single-threaded: decided before a runtime or a parser
    // exists.
    if std::env::args_os().nth(1).is_some_and(|argument| ostler_os::guard::is_meant(&argument)) {
        ostler_os::guard::main();
    }
    // So must this: it becomes another program, and takes what it has done to itself along.
    if std::env::args_os().nth(1).is_some_and(|argument| confine::is_meant(&argument)) {
        confine::main();
    }
    // A worker is to be small and fast to start, and has no children or threads yet.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "worker") {
        return ostler_worker::run();
    }
    let cli = Cli::parse();
    let exit = match cli.command {
        Command::Up(args) => daemon::up(&cli.global, &args),
        Command::Config(command) => config::run(command),
        Command::Doctor(args) => doctor::run(&cli.global, &args),
        Command::Client(command) => ostler_cli::run(&cli.global, command),
        Command::Guard(_) => Exit::Usage,
    };
    exit.into()
}
