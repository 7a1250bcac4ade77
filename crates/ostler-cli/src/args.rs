//! The grammar of the command line.

mod tasks;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub use tasks::{
    ProjectsArgs, ProjectsCommand, Running, Short, StateArg, SubmitArgs, TaskCommand, TaskListArgs,
    TaskLogsArgs, TaskWaitArgs,
};

use crate::text;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 no daemon.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "ostler", version, about, long_about = None, after_help = EXIT_CODES)]
#[command(about = "Runs MCP servers as supervised processes and lets many clients share them")]
#[command(disable_help_subcommand = true, propagate_version = false)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Directory with the daemon's socket [env: OSTLER_RUNTIME_DIR] [default: $XDG_RUNTIME_DIR/ostler]
    #[arg(long, global = true, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
}

/// What to do. `Client` holds the commands that [`crate::run`] runs; the binary runs the others.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground
    Up(UpArgs),
    /// Commands that ask a running daemon.
    #[command(flatten)]
    Client(ClientCommand),
    /// Check or describe the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Say what this machine offers for killing whole process trees, and what that guarantees
    Doctor(DoctorArgs),
    /// The guard of one instance; started by the daemon only
    #[command(hide = true, disable_help_flag = true)]
    Guard(GuardArgs),
}

/// Arguments of `ostler up`.
#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// ostler.toml, or any JSON file with mcpServers [default: ostler.toml here, else the user's]
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Start no server before a client asks for it
    #[arg(long)]
    pub no_eager: bool,
}

/// Arguments of `ostler doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// End what a daemon that was killed together with its guards has left
    #[arg(long)]
    pub reap: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of the hidden `ostler guard`. The binary decides before the command line is parsed; this only
/// keeps the word from being taken for a mistake.
#[derive(Clone, Debug, Args)]
pub struct GuardArgs {
    /// What the daemon passes.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}

/// `ostler config ...`
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check configuration files; says file, line, column, what was expected
    Check {
        /// The files, as for `ostler up`
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Print the JSON schema of ostler.toml
    Schema,
}

/// The commands that ask a running daemon.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Drain and stop the daemon; returns when every process is gone
    Down,
    /// Read the configuration again and take in what changed; prints a line for each change
    Reload(ReloadArgs),
    /// List servers and instances
    Ps {
        /// Print the API's JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show a server, an instance or, without ID, the daemon
    Status(StatusArgs),
    /// Start a server or an instance; returns when it is ready
    Start {
        /// Server name or instance id
        id: String,
    },
    /// Stop a server or an instance; returns when no process of it is left
    Stop {
        /// Server name or instance id
        id: String,
    },
    /// Stop and start a server or an instance; returns when it is ready
    Restart {
        /// Server name or instance id
        id: String,
    },
    /// Start a process by hand, supervised as a server is; prints its name
    Spawn(Box<SpawnArgs>),
    /// Stop a process that was started by hand, and forget it and its log
    Rm {
        /// Its name
        name: String,
    },
    /// Call many tools of servers in one go; fails if one of the calls does
    RunMany(RunManyArgs),
    /// Submit, list and follow tasks
    #[command(subcommand)]
    Task(TaskCommand),
    /// Show the pool of workers, and what it has done
    Pool {
        /// Print the API's JSON object
        #[arg(long)]
        json: bool,
    },
    /// List or limit the projects that tasks belong to
    Projects(ProjectsArgs),
    /// Print what a server's processes wrote
    Logs(LogsArgs),
    /// List or end client sessions
    Sessions(SessionsArgs),
    /// Print what happened, and why
    Events(EventsArgs),
    /// List what is wrong and needs a person
    Alerts {
        /// Print the API's JSON array
        #[arg(long)]
        json: bool,
    },
    /// Speak MCP on standard input and output, for clients that only do that
    Connect(ConnectArgs),
    /// Print a completion script
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Arguments of `ostler reload`.
#[derive(Clone, Debug, Args)]
pub struct ReloadArgs {
    /// Only say what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Print the API's JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `ostler status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Server name, instance id, or the pid of any process of one
    pub id: Option<String>,
    /// Print the API's JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `ostler spawn`.
#[derive(Clone, Debug, Args)]
pub struct SpawnArgs {
    /// Its name [default: the program's, with a number where that is taken]
    #[arg(long)]
    pub name: Option<String>,
    /// Its working directory [default: this one]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Set a variable; without a value, to the value it has here
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Let it inherit a variable of the daemon's environment
    #[arg(long, value_name = "NAME")]
    pub inherit_env: Vec<String>,
    /// Which exits are followed by a restart
    #[arg(long, value_enum, default_value_t = RestartArg::OnFailure)]
    pub restart: RestartArg,
    /// Restarts within 10 minutes after which it is tried slowly [default: 5]
    #[arg(long, value_name = "N")]
    pub max_restarts: Option<u32>,
    /// Limit of its memory, such as 500MiB
    #[arg(long, value_name = "SIZE", value_parser = text::bytes)]
    pub memory: Option<u64>,
    /// Limit of its CPU time, in cores
    #[arg(long, value_name = "CORES")]
    pub cpu: Option<f64>,
    /// Limit of its processes and threads
    #[arg(long, value_name = "N")]
    pub pids: Option<u32>,
    /// Limit of the files each of its processes may have open
    #[arg(long, value_name = "N")]
    pub open_files: Option<u32>,
    /// Its nice value, -20 (first) to 19 (last)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub nice: Option<i8>,
    /// Give the command, one text, to `sh`
    #[arg(long)]
    pub shell: bool,
    /// Return when it has ended for good; fails unless its status was 0
    #[arg(long)]
    pub wait: bool,
    /// Print the API's JSON object
    #[arg(long)]
    pub json: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Which exits of a process are followed by a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum RestartArg {
    /// None
    Never,
    /// All but an exit with status 0
    OnFailure,
    /// Every exit that was not asked for
    Always,
}

/// Arguments of `ostler run-many`.
#[derive(Clone, Debug, Args)]
pub struct RunManyArgs {
    /// The calls: {"calls": [{"server": ..., "tool": ..., "arguments": {...}}]}; - for standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Several at the same time, N at most [default: 4]
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true)]
    pub concurrent: Option<Option<u32>>,
    /// The session of the calls that name none
    #[arg(long, value_name = "KEY")]
    pub session: Option<String>,
    /// Print the API's JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `ostler logs`.
#[derive(Clone, Debug, Args)]
pub struct LogsArgs {
    /// Server name or instance id
    pub id: String,
    /// Keep printing new lines
    #[arg(short, long)]
    pub follow: bool,
    /// Print at most the newest N kept lines
    #[arg(short = 'n', long = "lines", value_name = "N")]
    pub lines: Option<u64>,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `ostler sessions`.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct SessionsArgs {
    /// Print the API's JSON array
    #[arg(long)]
    pub json: bool,
    /// What to do instead of listing.
    #[command(subcommand)]
    pub command: Option<SessionsCommand>,
}

/// `ostler sessions ...`
#[derive(Clone, Debug, Subcommand)]
pub enum SessionsCommand {
    /// End a session; its client starts a new one
    Rm {
        /// The session's id, as `ostler sessions` lists it
        id: String,
    },
}

/// Arguments of `ostler events`.
#[derive(Clone, Debug, Args)]
pub struct EventsArgs {
    /// Print the API's JSON array; with --follow one JSON object per line
    #[arg(long)]
    pub json: bool,
    /// Keep printing new events
    #[arg(short, long)]
    pub follow: bool,
    /// Print at most the newest N kept events
    #[arg(short = 'n', long = "lines", value_name = "N")]
    pub lines: Option<u64>,
    /// Only events with a greater number
    #[arg(long, value_name = "SEQ")]
    pub since: Option<u64>,
    /// Only events of this kind, or of these, with commas between
    #[arg(long)]
    pub kind: Option<String>,
    /// Only what happened to this; a server's name stands for its instances, too
    #[arg(long)]
    pub subject: Option<String>,
    /// Only what is at least so bad: info, warning or error
    #[arg(long)]
    pub severity: Option<String>,
}

/// Arguments of `ostler connect`.
#[derive(Clone, Debug, Args)]
pub struct ConnectArgs {
    /// The server's name
    pub server: String,
    /// Base address of a daemon's HTTP listener, instead of the local socket, such as http://127.0.0.1:7320
    #[arg(long, value_name = "BASE")]
    pub url: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documented_commands_are_understood() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.command);
        assert!(matches!(parse("ostler up a.toml b.json"), Ok(Command::Up(up)) if up.files.len() == 2));
        assert!(matches!(
            parse("ostler config check x.toml"),
            Ok(Command::Config(ConfigCommand::Check { .. }))
        ));
        assert!(matches!(
            parse("ostler guard --fd 3 -- sh -c x"),
            Ok(Command::Guard(guard)) if guard.args.len() >= 5
        ));
        let client = |line: &str| match parse(line) {
            Ok(Command::Client(command)) => command,
            other => panic!("{line}: {other:?}"),
        };
        assert!(matches!(client("ostler ps --json"), ClientCommand::Ps { json: true }));
        assert!(matches!(client("ostler status"), ClientCommand::Status(args) if args.id.is_none()));
        let ClientCommand::Logs(logs) = client("ostler logs github -f -n 20") else { panic!("not logs") };
        assert_eq!((logs.follow, logs.lines), (true, Some(20)));
        let ClientCommand::Spawn(spawn) =
            client("ostler spawn --nice -5 --memory 64MiB --env A=b=c -- sh -c x --name")
        else {
            panic!("not spawn")
        };
        assert_eq!((spawn.nice, spawn.memory, spawn.name), (Some(-5), Some(64 << 20), None));
        assert_eq!(spawn.command, ["sh", "-c", "x", "--name"], "arguments stay arguments");
        for wrong in ["ostler spawn", "ostler spawn --nmae x sleep 1", "ostler spawn --memory 64 x"] {
            assert_eq!(parse(wrong).expect_err("wrong").exit_code(), 2, "{wrong}");
        }
        let run = |line: &str| match client(line) {
            ClientCommand::RunMany(run) => (run.concurrent, run.session.is_some(), run.json),
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(run("ostler run-many calls.json"), (None, false, false));
        assert_eq!(run("ostler run-many --concurrent - --json"), (Some(None), false, true));
        assert_eq!(run("ostler run-many --concurrent=2 --session k -"), (Some(Some(2)), true, false));
        let ClientCommand::Sessions(sessions) = client("ostler sessions rm s7") else {
            panic!("not sessions")
        };
        assert!(matches!(sessions.command, Some(SessionsCommand::Rm { id }) if id == "s7"));
        let with_dir = Cli::try_parse_from(["ostler", "down", "--runtime-dir", "/x"]).expect("global");
        assert_eq!(with_dir.global.runtime_dir, Some(PathBuf::from("/x")));
        assert_eq!(parse("ostler pss").expect_err("unknown").exit_code(), 2);
    }
}
