//! The commands that ask a running daemon: one file per verb or family of verbs.

mod down;
mod lifecycle;
mod listings;
mod logs;
mod pool;
mod reload;
mod run_many;
mod spawn;
mod task;

use std::io::{self, Write};

use clap::CommandFactory;
use ostler_api::{Client, RuntimeDir, Verb};

use crate::args::{Cli, ClientCommand, Global};
use crate::connect;
use crate::exit::{Exit, Failure};

/// Runs a command to its end: prints what it has to say and returns how it went. Blocks the calling thread;
/// must not be called from within an asynchronous runtime.
pub fn run(global: &Global, command: ClientCommand) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::Output(error)),
    };
    let outcome = runtime.block_on(perform(global, command));
    // Standard input may still be blocked in a read; the process is about to end, so nobody waits for it.
    runtime.shutdown_background();
    match outcome {
        Ok(exit) => exit,
        Err(failure) => report(&failure),
    }
}

/// Prints the failure on standard error and returns its exit code. Standard error may be gone; there is then
/// nobody to tell.
fn report(failure: &Failure) -> Exit {
    let _ = io::stderr().lock().write_all(failure.report().as_bytes());
    failure.exit()
}

async fn perform(global: &Global, command: ClientCommand) -> Result<Exit, Failure> {
    if let ClientCommand::Completions { shell } = command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "ostler", &mut script);
        print(&script)?;
        return Ok(Exit::Done);
    }
    if let ClientCommand::Connect(args) = command {
        return connect::run(global, &args).await;
    }
    let client = Client::new(RuntimeDir::resolve(global.runtime_dir.as_deref())?.socket());
    match command {
        ClientCommand::Down => down::down(&client).await?,
        ClientCommand::Reload(args) => reload::reload(&client, &args).await?,
        ClientCommand::Ps { json } => listings::ps(&client, json).await?,
        ClientCommand::Status(args) => listings::status(&client, args).await?,
        ClientCommand::Start { id } => lifecycle::act(&client, &id, Verb::Start).await?,
        ClientCommand::Stop { id } => lifecycle::act(&client, &id, Verb::Stop).await?,
        ClientCommand::Restart { id } => lifecycle::act(&client, &id, Verb::Restart).await?,
        ClientCommand::Spawn(args) => spawn::spawn(&client, *args).await?,
        ClientCommand::Rm { name } => spawn::remove(&client, &name).await?,
        ClientCommand::RunMany(args) => run_many::run_many(&client, args).await?,
        ClientCommand::Task(command) => task::run(&client, command).await?,
        ClientCommand::Pool { json } => pool::pool(&client, json).await?,
        ClientCommand::Projects(args) => pool::projects(&client, args).await?,
        ClientCommand::Logs(args) => logs::logs(&client, args).await?,
        ClientCommand::Sessions(args) => listings::sessions(&client, args).await?,
        ClientCommand::Events(args) => logs::events(&client, args).await?,
        ClientCommand::Alerts { json } => listings::alerts(&client, json).await?,
        ClientCommand::Connect(_) | ClientCommand::Completions { .. } => unreachable!("handled above"),
    }
    Ok(Exit::Done)
}

/// Writes to standard output. `println!` would panic when the reader has gone (`ostler ps | head`).
fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(())
}

/// Writes JSON from the daemon, byte for byte, and a line end.
fn print_json(json: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(json.trim_ascii_end())?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}
