//! `spawn` and `rm`: processes started by hand.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ostler_api::{Client, EventQuery, NewProcess, ProcessLimits, ProcessView, RestartWhen, routes};

use super::lifecycle::{because, ended_well};
use super::{print, print_json};
use crate::args::{RestartArg, SpawnArgs};
use crate::exit::Failure;

/// Longest pause between two looks at a process that is waited for. Events say when to look; but an event is told a
/// moment before the state that follows from it.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

pub(super) async fn spawn(client: &Client, args: SpawnArgs) -> Result<(), Failure> {
    let (json, wait) = (args.json, args.wait);
    let process = client.spawn(&wanted(args)?).await?;
    if wait {
        return waited(client, &process.name, json).await;
    }
    if json {
        print_json(&client.raw(&routes::PROCESS, &[&process.name], "").await?)?;
    } else {
        print(format!("{}\n", process.name).as_bytes())?;
    }
    began(&process)
}

pub(super) async fn remove(client: &Client, name: &str) -> Result<(), Failure> {
    client.remove_process(name).await?;
    print(format!("{name} removed: no process of it is left\n").as_bytes())
}

/// What the command line asks for, with what only this process knows: where it is, and its environment.
fn wanted(args: SpawnArgs) -> Result<NewProcess, Failure> {
    let here = std::env::current_dir().map_err(|error| Failure::Usage {
        error: format!("the current directory cannot be read: {error}"),
        hint: Some("name a directory: `--cwd DIR`".to_owned()),
    });
    let cwd = match args.cwd {
        Some(cwd) if cwd.is_absolute() => cwd,
        Some(cwd) => here?.join(cwd),
        None => here?,
    };
    let env = args.env.iter().map(|text| variable(text)).collect::<Result<BTreeMap<_, _>, _>>()?;
    Ok(NewProcess {
        name: args.name,
        command: args.command,
        shell: args.shell,
        cwd: Some(text_of(cwd)?),
        env,
        inherit_env: args.inherit_env,
        restart: match args.restart {
            RestartArg::Never => RestartWhen::Never,
            RestartArg::OnFailure => RestartWhen::OnFailure,
            RestartArg::Always => RestartWhen::Always,
        },
        max_restarts: args.max_restarts,
        limits: ProcessLimits {
            memory_bytes: args.memory,
            cpu: args.cpu,
            pids: args.pids,
            open_files: args.open_files,
            nice: args.nice,
        },
    })
}

fn text_of(path: PathBuf) -> Result<String, Failure> {
    path.into_os_string().into_string().map_err(|path| Failure::Usage {
        error: format!("the working directory {} is not UTF-8", path.display()),
        hint: Some("name another one: `--cwd DIR`".to_owned()),
    })
}

/// `NAME=VALUE`, or `NAME` for the value it has here.
fn variable(text: &str) -> Result<(String, String), Failure> {
    if let Some((name, value)) = text.split_once('=') {
        return Ok((name.to_owned(), value.to_owned()));
    }
    match std::env::var(text) {
        Ok(value) => Ok((text.to_owned(), value)),
        Err(error) => Err(Failure::Usage {
            error: format!("`--env {text}` takes the variable from here, but: {error}"),
            hint: Some(format!("give it a value: `--env {text}=VALUE`")),
        }),
    }
}

/// Whether its program was run, whatever became of it since.
fn began(process: &ProcessView) -> Result<(), Failure> {
    let instance = &process.instance;
    if instance.pid.is_some() || instance.ended.is_some() {
        return Ok(());
    }
    Err(Failure::Outcome {
        error: format!("{} is {}{}", process.name, instance.state, because(instance)),
        hint: Some(format!("see `ostler logs {0}`; `ostler rm {0}` forgets it", process.name)),
    })
}

/// Returns when nothing of the process runs and nothing is planned.
async fn waited(client: &Client, name: &str, json: bool) -> Result<(), Failure> {
    let query = EventQuery { n: Some(0), subject: Some(name.to_owned()), ..EventQuery::default() };
    // Followed from before the first look, so that no end falls in between.
    let mut events = client.follow_events(&query).await?;
    let process = loop {
        let process = client.process(name).await?;
        if matches!(process.instance.state.as_str(), "stopped" | "failed") {
            break process;
        }
        let event = tokio::time::timeout(LOOK_AGAIN, events.next()).await;
        if matches!(event, Ok(Ok(None))) {
            return Err(Failure::Outcome {
                error: format!("the daemon has ended, and `{name}` with it"),
                hint: None,
            });
        }
    };
    if json {
        print_json(&client.raw(&routes::PROCESS, &[name], "").await?)?;
    } else {
        print(format!("{name}\n").as_bytes())?;
    }
    if ended_well(&process.instance).is_some() {
        return Ok(());
    }
    let how = process.instance.ended.as_ref().map(|end| format!(": it {}", end.text));
    Err(Failure::Outcome {
        error: format!(
            "{name} is {}{}",
            process.instance.state,
            how.unwrap_or_else(|| because(&process.instance))
        ),
        hint: Some(format!("see what it said with `ostler logs {name}`")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn variables_have_a_value_or_take_it_from_here() {
        assert_eq!(variable("A=b=c").expect("given"), ("A".to_owned(), "b=c".to_owned()));
        let here = std::env::var("PATH").expect("a path");
        assert_eq!(variable("PATH").expect("taken"), ("PATH".to_owned(), here));
        let missing = variable("OSTLER_NO_SUCH_VARIABLE").expect_err("not set");
        assert_eq!(missing.exit(), crate::exit::Exit::Usage);
        assert!(missing.report().contains("--env OSTLER_NO_SUCH_VARIABLE=VALUE"), "{}", missing.report());
    }

    #[test]
    fn a_program_that_never_ran_is_a_failure() {
        let view = |instance| ProcessView {
            name: "job".to_owned(),
            command: vec!["job".to_owned()],
            cwd: None,
            restart: RestartWhen::OnFailure,
            limits: ProcessLimits::default(),
            instance,
        };
        assert!(began(&view(samples::job())).is_ok(), "it ran and has ended");
        assert!(began(&view(samples::instance("job.1", "ready"))).is_ok());
        let mut never = samples::rows().remove(1);
        never.ended = None;
        never.reason = Some("the program could not be started: x".to_owned());
        let report = began(&view(never)).expect_err("it never ran").report();
        assert!(report.contains("job is backoff: the program could not be started"), "{report}");
    }
}
