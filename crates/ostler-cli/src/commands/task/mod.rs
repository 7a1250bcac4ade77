//! `task`: submit, list, show, cancel, retry and read tasks; `wait` is in [`wait`], what is submitted in [`submit`].

mod submit;
mod wait;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ostler_api::{BatchView, Client, TaskNews, TaskQuery, TaskView, routes, types};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{print, print_json};
use crate::args::{TaskCommand, TaskListArgs, TaskLogsArgs};
use crate::exit::Failure;
use crate::render;

/// Results up to so many bytes are shown with their task.
const SHOWN: u64 = 1024;

pub(super) async fn run(client: &Client, command: TaskCommand) -> Result<(), Failure> {
    match command {
        TaskCommand::Submit(args) => submit::submit(client, *args).await,
        TaskCommand::Ls(args) if args.batches => list_batches(client, &args).await,
        TaskCommand::Ls(args) => list(client, &args).await,
        TaskCommand::Show { id, json } => show(client, &id, json).await,
        TaskCommand::Wait(args) => wait::wait(client, &args).await,
        TaskCommand::Cancel { ids, why, json } => cancel(client, &ids, why.as_deref(), json).await,
        TaskCommand::Retry { ids, json } => retry(client, &ids, json).await,
        TaskCommand::Logs(args) => logs(client, &args).await,
    }
}

/// Whether an id is that of a batch: those begin with `b`, tasks' with `t`.
fn is_batch(id: &str) -> bool {
    id.starts_with('b')
}

/// How long it is since 1970. A clock before that is as good as none.
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn now() -> u64 {
    u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX)
}

/// Prints what was understood of an answer, as JSON on one line.
fn print_view<T: Serialize>(view: &T) -> Result<(), Failure> {
    print_json(&serde_json::to_vec(view).map_err(std::io::Error::from)?)
}

/// A page of the list with its tasks as the daemon sent them.
#[derive(Debug, Deserialize, Serialize)]
struct RawPage {
    tasks: Vec<Box<RawValue>>,
    damaged: Vec<u64>,
    below: Option<u64>,
}

/// Reads on until there are as many as are wanted: the daemon looks at a bounded number of tasks for each page.
async fn page(client: &Client, args: &TaskListArgs) -> Result<RawPage, Failure> {
    let mut all = RawPage { tasks: Vec::new(), damaged: Vec::new(), below: args.below };
    loop {
        let left = args.lines - all.tasks.len();
        let query = TaskQuery {
            project: args.project.clone(),
            state: args.state.map(|state| state.as_str().to_owned()),
            kind: args.kind.clone(),
            batch: args.batch.clone(),
            session: args.session.clone(),
            below: all.below,
            limit: Some(left.min(types::tasks::LISTED_MAX)),
        };
        let page: RawPage = read(&client.raw(&routes::TASKS, &[], &query.to_string()).await?)?;
        // A page that does not get on would be asked for for ever.
        let gets_on = page.below.is_some_and(|next| all.below.is_none_or(|below| next < below));
        all.tasks.extend(page.tasks);
        all.damaged.extend(page.damaged);
        all.below = page.below;
        if !gets_on || all.tasks.len() >= args.lines {
            return Ok(all);
        }
    }
}

fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(json).map_err(|error| ostler_api::ClientError::Protocol(error.to_string()).into())
}

async fn list(client: &Client, args: &TaskListArgs) -> Result<(), Failure> {
    let page = page(client, args).await?;
    if args.json {
        return print_view(&page);
    }
    let tasks: Vec<TaskView> =
        page.tasks.iter().map(|task| read(task.get().as_bytes())).collect::<Result<_, _>>()?;
    if args.quiet {
        return print(ids(tasks.iter().map(|task| task.id.as_str())).as_bytes());
    }
    let mut text = render::tasks(&tasks, now());
    if !page.damaged.is_empty() {
        text.push_str(&format!(
            "{} tasks are not shown, as their records are damaged in the journal: numbers {}\n",
            page.damaged.len(),
            page.damaged.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
        ));
    }
    text.push_str(&further(page.below));
    print(text.as_bytes())
}

async fn list_batches(client: &Client, args: &TaskListArgs) -> Result<(), Failure> {
    let limit = args.lines.min(types::tasks::LISTED_MAX);
    let page = client.batches(args.below, Some(limit)).await?;
    if args.json {
        return print_view(&page);
    }
    if args.quiet {
        return print(ids(page.batches.iter().map(|batch| batch.id.as_str())).as_bytes());
    }
    print((render::batches(&page.batches, now()) + &further(page.below)).as_bytes())
}

fn ids<'a>(ids: impl Iterator<Item = &'a str>) -> String {
    ids.map(|id| format!("{id}\n")).collect()
}

fn further(below: Option<u64>) -> String {
    below.map_or_else(String::new, |below| format!("there may be more: `--below {below}`\n"))
}

async fn show(client: &Client, id: &str, json: bool) -> Result<(), Failure> {
    if is_batch(id) {
        return match json {
            true => print_json(&client.raw(&routes::BATCH, &[id], "").await?),
            false => print(render::batch(&client.batch(id).await?).as_bytes()),
        };
    }
    if json {
        return print_json(&client.raw(&routes::TASK, &[id], "").await?);
    }
    let task = client.task(id).await?;
    let result = match task.result_bytes {
        Some(bytes) if bytes <= SHOWN => Some(client.task_result(id).await?),
        _ => None,
    };
    let result = result.as_deref().map(String::from_utf8_lossy);
    print(render::task(&task, result.as_deref(), now()).as_bytes())
}

async fn cancel(client: &Client, ids: &[String], why: Option<&str>, json: bool) -> Result<(), Failure> {
    for id in ids {
        if is_batch(id) {
            let batch = client.cancel_batch(id, why).await?;
            done(&batch, json, || batch_said(&batch))?;
        } else {
            let task = client.cancel_task(id, why).await?;
            done(&task, json, || format!("{} is {}\n", task.id, task.state))?;
        }
    }
    Ok(())
}

fn batch_said(batch: &BatchView) -> String {
    format!("{}: {}\n", batch.id, render::far(&batch.tasks))
}

async fn retry(client: &Client, ids: &[String], json: bool) -> Result<(), Failure> {
    if let Some(batch) = ids.iter().find(|id| is_batch(id)) {
        return Err(Failure::Usage {
            error: format!("{batch} is a batch, and tasks are retried one by one"),
            hint: Some(format!("`ostler task retry $(ostler task ls -q --batch {batch} --state dead)`")),
        });
    }
    for id in ids {
        let task = client.retry_task(id).await?;
        done(&task, json, || format!("{} is {}\n", task.id, task.state))?;
    }
    Ok(())
}

fn done<T: Serialize>(view: &T, json: bool, said: impl FnOnce() -> String) -> Result<(), Failure> {
    if json { print_view(view) } else { print(said().as_bytes()) }
}

async fn logs(client: &Client, args: &TaskLogsArgs) -> Result<(), Failure> {
    // Followed from before the first look, so that no line falls in between.
    let news = if args.follow { Some(client.follow_task(&args.id).await?) } else { None };
    let lines = client.task_logs(&args.id, args.lines).await?;
    let mut last = 0;
    for line in &lines {
        last = line.seq;
        done(line, args.json, || render::task_log_line(line))?;
    }
    let Some(mut news) = news else { return Ok(()) };
    while let Some(news) = news.next().await? {
        match news {
            TaskNews::Log(line) if line.seq > last => {
                last = line.seq;
                done(&line, args.json, || render::task_log_line(&line))?;
            }
            TaskNews::Gap(gap) => wait::tell(&format!("{} pieces of news were dropped here", gap.missed)),
            TaskNews::State(_) | TaskNews::Progress(_) | TaskNews::Log(_) => {}
        }
    }
    Ok(())
}
