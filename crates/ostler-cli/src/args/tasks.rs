//! The grammar of `task`, `pool` and `projects`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::text::{self, Moment};

/// `ostler task ...`
#[derive(Clone, Debug, Subcommand)]
pub enum TaskCommand {
    /// Submit a task, or a batch of them; prints its id once it is in the journal
    Submit(Box<SubmitArgs>),
    /// List tasks, newest first
    #[command(visible_alias = "list")]
    Ls(TaskListArgs),
    /// Show a task with its attempts, or a batch
    Show {
        /// The id of a task or a batch
        id: String,
        /// Print the API's JSON object
        #[arg(long)]
        json: bool,
    },
    /// Wait until tasks or batches have ended; prints results, fails if one of them did not succeed
    Wait(TaskWaitArgs),
    /// Cancel tasks or batches; returns when nothing of them runs
    Cancel {
        /// Ids of tasks or batches
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        /// The reason that is written down
        #[arg(long, value_name = "TEXT")]
        why: Option<String>,
        /// Print the API's JSON objects, one per line
        #[arg(long)]
        json: bool,
    },
    /// Put dead or cancelled tasks into the queue again
    Retry {
        /// Ids of tasks
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        /// Print the API's JSON objects, one per line
        #[arg(long)]
        json: bool,
    },
    /// Print what a task wrote
    Logs(TaskLogsArgs),
}

/// Arguments of `ostler task submit`.
#[derive(Clone, Debug, Default, Args)]
#[command(after_help = "Examples:
  ostler task submit shell-command --wait -- echo hi
  ostler task submit execute-code --code 'return 1 + 1' --wait
  ostler task submit execute-function --function '(a, b) => a + b' --args '[1, 2]'
  ostler task submit http-request '{\"url\": \"https://example.org/\"}'
  ostler task submit --batch tasks.jsonl --project p --wait")]
pub struct SubmitArgs {
    /// Its type: execute-code, execute-function, execute-module, http-request, shell-command, mcp-tool, or your own
    #[arg(value_name = "TYPE", required_unless_present = "batch")]
    pub kind: Option<String>,
    /// What it is about: JSON, @FILE, or - for standard input
    #[arg(value_name = "PAYLOAD", conflicts_with_all = ["batch", "argv", "Short"])]
    pub payload: Option<String>,
    /// Submit the tasks of a file, one JSON object ({"type": ..., "payload": ...}) per line, all or none; - for standard
    /// input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kind", "argv", "Short"])]
    pub batch: Option<PathBuf>,
    /// What a person calls the batch
    #[arg(long, conflicts_with_all = ["kind", "Short"])]
    pub name: Option<String>,
    /// What it is about, by its parts
    #[command(flatten)]
    pub short: Short,
    /// The project whose limits it counts in
    #[arg(long, value_name = "NAME")]
    pub project: Option<String>,
    /// How urgent it is, 0 to 10, 10 first [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=10))]
    pub priority: Option<u8>,
    /// Do not begin before so much time has passed, such as 90s or 2h
    #[arg(long, value_name = "TIME", value_parser = text::span, conflicts_with = "not_before")]
    pub delay: Option<Duration>,
    /// Do not begin before this moment, such as 2026-07-28T09:30:00Z
    #[arg(long, value_name = "MOMENT", value_parser = text::when)]
    pub not_before: Option<Moment>,
    /// It is of no use from this moment, or when so much time has passed
    #[arg(long, value_name = "MOMENT|TIME", value_parser = text::when)]
    pub deadline: Option<Moment>,
    /// How long an attempt may take [default: tasks.timeout]
    #[arg(long, value_name = "TIME", value_parser = text::span)]
    pub timeout: Option<Duration>,
    /// So many attempts at most [default: tasks.attempts]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub attempts: Option<u32>,
    /// Find the first one when the same is submitted under this key again; of a batch, for all of it
    #[arg(long)]
    pub key: Option<String>,
    /// The session that it ends with
    #[arg(long, value_name = "KEY")]
    pub session: Option<String>,
    /// Limit of the memory of an attempt, such as 64MiB
    #[arg(long, value_name = "SIZE", value_parser = text::bytes)]
    pub memory: Option<u64>,
    /// Limit of the size of its result, such as 1MiB
    #[arg(long, value_name = "SIZE", value_parser = text::bytes)]
    pub output: Option<u64>,
    /// Return when it has ended: print its result, fail if it did not succeed
    #[arg(long)]
    pub wait: bool,
    /// Print the API's JSON object
    #[arg(long)]
    pub json: bool,
    /// Of shell-command: the program and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub argv: Vec<String>,
}

/// The parts of a payload that have options of their own.
#[derive(Clone, Debug, Default, Args)]
#[group(id = "Short", multiple = true)]
pub struct Short {
    /// Of execute-code: the source, or @FILE
    #[arg(long, value_name = "SOURCE", help_heading = "Payload")]
    pub code: Option<String>,
    /// Of execute-function: the source, or @FILE; of execute-module: the exported function's name
    #[arg(long, value_name = "SOURCE|NAME", help_heading = "Payload")]
    pub function: Option<String>,
    /// Of execute-module: a path or a package
    #[arg(long, value_name = "MODULE", help_heading = "Payload")]
    pub module: Option<String>,
    /// Arguments, as JSON: a list for a function, an object for a tool
    #[arg(long, value_name = "JSON", help_heading = "Payload")]
    pub args: Option<String>,
    /// javascript, python or node
    #[arg(long, value_name = "LANGUAGE", help_heading = "Payload")]
    pub language: Option<String>,
    /// Of http-request: the address
    #[arg(long, value_name = "URL", help_heading = "Payload")]
    pub url: Option<String>,
    /// Of shell-command: a line for the shell, instead of a program and its arguments
    #[arg(long, value_name = "LINE", help_heading = "Payload")]
    pub shell: Option<String>,
    /// Of mcp-tool: the server's name
    #[arg(long, value_name = "NAME", help_heading = "Payload")]
    pub server: Option<String>,
    /// Of mcp-tool: the tool's name
    #[arg(long, value_name = "NAME", help_heading = "Payload")]
    pub tool: Option<String>,
}

/// Arguments of `ostler task ls`.
#[derive(Clone, Debug, Default, Args)]
pub struct TaskListArgs {
    /// Only tasks of this project
    #[arg(long, value_name = "NAME")]
    pub project: Option<String>,
    /// Only tasks in this state
    #[arg(long, value_enum)]
    pub state: Option<StateArg>,
    /// Only tasks of this type
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,
    /// Only tasks of this batch
    #[arg(long, value_name = "ID")]
    pub batch: Option<String>,
    /// Only tasks of this session
    #[arg(long, value_name = "ID")]
    pub session: Option<String>,
    /// Print at most the newest N
    #[arg(short = 'n', long = "lines", value_name = "N", default_value_t = 100)]
    pub lines: usize,
    /// Only tasks with numbers below this one
    #[arg(long, value_name = "NUMBER")]
    pub below: Option<u64>,
    /// List batches instead
    #[arg(long, conflicts_with_all = ["project", "state", "kind", "batch", "session"])]
    pub batches: bool,
    /// Print ids only
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
    /// Print the API's JSON object
    #[arg(long)]
    pub json: bool,
}

/// Where a task is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum StateArg {
    /// It waits for a worker, or until its time has come
    Queued,
    /// An attempt runs
    Running,
    /// It has a result
    Succeeded,
    /// It ended without success
    Dead,
    /// It ended by somebody's wish
    Cancelled,
}

impl StateArg {
    /// The word that the API has for it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Arguments of `ostler task wait`.
#[derive(Clone, Debug, Default, Args)]
pub struct TaskWaitArgs {
    /// Ids of tasks or batches
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,
    /// Give up after so much time, such as 90s
    #[arg(long = "for", value_name = "TIME", value_parser = text::span)]
    pub longest: Option<Duration>,
    /// Print the API's JSON objects, one per line, instead of results
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `ostler task logs`.
#[derive(Clone, Debug, Default, Args)]
pub struct TaskLogsArgs {
    /// The task's id
    pub id: String,
    /// Keep printing new lines until it has ended
    #[arg(short, long)]
    pub follow: bool,
    /// Print at most the newest N kept lines
    #[arg(short = 'n', long = "lines", value_name = "N")]
    pub lines: Option<u64>,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `ostler projects`.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ProjectsArgs {
    /// Print the API's JSON array
    #[arg(long)]
    pub json: bool,
    /// What to do instead of listing.
    #[command(subcommand)]
    pub command: Option<ProjectsCommand>,
}

/// `ostler projects ...`
#[derive(Clone, Debug, Subcommand)]
pub enum ProjectsCommand {
    /// Set how many tasks of a project may run, until the daemon ends
    Set {
        /// The project's name
        name: String,
        /// So many; 0: none begins; `default` for what the configuration says
        #[arg(long, value_name = "N", value_parser = running)]
        max_running: Running,
        /// Print the API's JSON object
        #[arg(long)]
        json: bool,
    },
}

/// How many tasks of a project may run; none: as the configuration says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Running(pub Option<u64>);

fn running(text: &str) -> Result<Running, String> {
    match text {
        "default" => Ok(Running(None)),
        number => number
            .parse()
            .map(|number| Running(Some(number)))
            .map_err(|_| "it is neither a number nor `default`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, ClientCommand, Command};

    fn client(line: &str) -> ClientCommand {
        match Cli::try_parse_from(line.split(' ')).expect(line).command {
            Command::Client(command) => command,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_documented_commands_are_understood() {
        let task = |line: &str| match client(line) {
            ClientCommand::Task(command) => command,
            other => panic!("{line}: {other:?}"),
        };
        let submit = |line: &str| match task(line) {
            TaskCommand::Submit(args) => *args,
            other => panic!("{line}: {other:?}"),
        };
        let shell = submit("ostler task submit shell-command --wait --delay 5s -- echo --priority 3 hi");
        assert_eq!(shell.argv, ["echo", "--priority", "3", "hi"], "arguments stay arguments");
        assert_eq!((shell.wait, shell.delay, shell.priority), (true, Some(Duration::from_secs(5)), None));
        let code = submit("ostler task submit execute-code --code 1+1 --priority 10 --project p");
        assert_eq!((code.short.code.as_deref(), code.priority), (Some("1+1"), Some(10)));
        assert_eq!(submit("ostler task submit resize -").payload.as_deref(), Some("-"));
        assert_eq!(
            submit("ostler task submit --batch x.jsonl --key k").batch,
            Some(PathBuf::from("x.jsonl"))
        );
        assert!(matches!(
            task("ostler task ls --state dead --type x -n 5 -q"),
            TaskCommand::Ls(args) if args.state == Some(StateArg::Dead) && args.quiet && args.lines == 5
        ));
        assert!(matches!(
            task("ostler task wait t1-00000000 b2-00000000 --for 1m"),
            TaskCommand::Wait(args) if args.ids.len() == 2 && args.longest == Some(Duration::from_secs(60))
        ));
        let project = |line: &str| match client(line) {
            ClientCommand::Projects(args) => match args.command {
                Some(ProjectsCommand::Set { name, max_running, .. }) => (name, max_running.0),
                None => panic!("{line}"),
            },
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(project("ostler projects set p --max-running 5"), ("p".to_owned(), Some(5)));
        assert_eq!(project("ostler projects set p --max-running default"), ("p".to_owned(), None));
        assert!(matches!(client("ostler pool --json"), ClientCommand::Pool { json: true }));
    }

    #[test]
    fn what_does_not_go_together_is_a_usage_error() {
        for wrong in [
            "ostler task submit",
            "ostler task submit x --priority 11",
            "ostler task submit x --attempts 0",
            "ostler task submit x --delay 5",
            "ostler task submit x --delay 5s --not-before 2026-07-28T09:30:00Z",
            "ostler task submit x {} --code 1",
            "ostler task submit x {} -- echo",
            "ostler task submit x --batch y",
            "ostler task submit x --name y",
            "ostler task ls --state gone",
            "ostler task ls -q --json",
            "ostler task wait",
            "ostler task cancel",
            "ostler projects set p",
            "ostler projects set p --max-running -1",
            "ostler projects limit p 1",
            "ostler projects --json set p --max-running 1",
        ] {
            assert_eq!(Cli::try_parse_from(wrong.split(' ')).expect_err(wrong).exit_code(), 2, "{wrong}");
        }
    }
}
