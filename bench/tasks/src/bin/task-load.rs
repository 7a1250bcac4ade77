//! The load on Ostler's task API, over its unix socket: reads a cell to measure from each line of its standard input
//! and answers with a line of what came of it, until the input ends.
//!
//! One thread, so that it takes little of the machine it shares with the daemon. Each task under way has a connection
//! of its own: it is submitted, answered when it has ended, and its result is checked.

use std::cell::RefCell;
use std::error::Error;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use bench_tasks::cell::{Cell, Kind, Tally};
use bench_tasks::http::Connection;
use clap::Parser;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::task::{JoinSet, LocalSet};

/// Longest that a poll waits. A task that has no result by then is an error; a batch is asked for again.
const WAIT_MS: u64 = 30_000;

#[derive(Parser)]
struct Arguments {
    /// The daemon's socket.
    #[arg(long)]
    socket: PathBuf,
}

/// As much of a task's or a batch's record as is needed.
#[derive(Deserialize)]
struct Record {
    id: String,
    /// Of a batch: whether all of its tasks have ended.
    #[serde(default)]
    ended: bool,
    /// Of a batch: its tasks by state.
    #[serde(default)]
    tasks: serde_json::Value,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    // Whatever workers a kind of task needs are there before anything is measured.
    let mut first = Connection::open(&arguments.socket).await?;
    for kind in [Kind::Noop, Kind::True] {
        one(&mut first, kind, 1).await?;
    }
    answer(r#"{"ready":true}"#)?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let cell: Cell = serde_json::from_str(&line)?;
        let tally = LocalSet::new().run_until(measure(&arguments.socket, &cell)).await?;
        answer(&serde_json::to_string(&tally.measured(&cell))?)?;
    }
    Ok(())
}

fn answer(line: &str) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}

async fn measure(socket: &Path, cell: &Cell) -> Result<Tally, Box<dyn Error>> {
    let mut connections = Vec::new();
    for _ in 0..if cell.batch > 0 { 1 } else { cell.window } {
        connections.push(Connection::open(socket).await?);
    }
    let tally = Rc::new(RefCell::new(Tally::begin(cell)));
    let mut loops = JoinSet::new();
    for (number, connection) in connections.into_iter().enumerate() {
        loops.spawn_local(in_a_loop(connection, cell.clone(), number, Rc::clone(&tally)));
    }
    while let Some(ended) = loops.join_next().await {
        ended?;
    }
    Ok(Rc::into_inner(tally).ok_or("a loop goes on")?.into_inner())
}

/// One task or batch after the other, until the time is over.
async fn in_a_loop(mut connection: Connection, cell: Cell, number: usize, tally: Rc<RefCell<Tally>>) {
    let mut n = number;
    loop {
        let begun = Instant::now();
        if tally.borrow().is_over(begun) {
            return;
        }
        let done = match cell.batch {
            0 => one(&mut connection, cell.kind, n).await,
            many => batch(&mut connection, cell.kind, many).await,
        };
        let (mut tally, now) = (tally.borrow_mut(), Instant::now());
        match done {
            Ok(()) if cell.batch == 0 => tally.ended(begun, now),
            Ok(()) => tally.batch_ended(begun, now, cell.batch),
            Err(why) => tally.fail(why),
        }
        n += cell.window;
    }
}

/// A task as it is submitted.
fn task(kind: Kind, n: usize) -> String {
    match kind {
        Kind::Noop => {
            format!(r#"{{"type":"execute-function","payload":{{"function":"n => n","args":[{n}]}}}}"#)
        }
        Kind::True => r#"{"type":"shell-command","payload":{"argv":["true"]}}"#.to_owned(),
    }
}

/// What is read of a task that was submitted and waited for.
#[derive(Deserialize)]
struct Done<'a> {
    #[serde(borrow)]
    result: Option<&'a RawValue>,
}

/// Submits one task, waits for its result and checks it.
async fn one(connection: &mut Connection, kind: Kind, n: usize) -> Result<(), String> {
    let path = format!("/api/v1/tasks?wait_ms={WAIT_MS}");
    let status = connection.post(&path, task(kind, n).as_bytes()).await;
    let body = answered(connection, status, "submitting a task")?;
    let done: Done<'_> =
        serde_json::from_slice(body).map_err(|error| format!("{error}: {}", excerpt(body)))?;
    let result = done.result.map_or("", RawValue::get);
    let right = match kind {
        Kind::Noop => result == n.to_string(),
        Kind::True => result.contains(r#""status":0"#),
    };
    if right { Ok(()) } else { Err(format!("a wrong result of {n}: {}", excerpt(body))) }
}

/// Submits many at once and waits until all have succeeded.
async fn batch(connection: &mut Connection, kind: Kind, many: usize) -> Result<(), String> {
    let tasks: Vec<String> = (0..many).map(|n| task(kind, n)).collect();
    let body = format!(r#"{{"tasks":[{}]}}"#, tasks.join(","));
    let status = connection.post("/api/v1/batches", body.as_bytes()).await;
    let id = record(connection, status, "submitting a batch")?.id;
    let path = format!("/api/v1/batches/{id}?wait_ms={WAIT_MS}");
    loop {
        let status = connection.get(&path).await;
        let seen = record(connection, status, "waiting for a batch")?;
        if seen.ended {
            let succeeded = seen.tasks.get("succeeded").and_then(serde_json::Value::as_u64);
            return if succeeded == Some(many as u64) {
                Ok(())
            } else {
                Err(format!("not all of a batch succeeded: {}", excerpt(connection.body())))
            };
        }
    }
}

fn record(connection: &Connection, status: std::io::Result<u16>, what: &str) -> Result<Record, String> {
    let body = answered(connection, status, what)?;
    serde_json::from_slice(body).map_err(|error| format!("{what}: {error}: {}", excerpt(body)))
}

fn answered<'c>(
    connection: &'c Connection,
    status: std::io::Result<u16>,
    what: &str,
) -> Result<&'c [u8], String> {
    match status.map_err(|error| format!("{what}: {error}"))? {
        200..=299 => Ok(connection.body()),
        status => Err(format!("{what}: status {status}: {}", excerpt(connection.body()))),
    }
}

fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned()
}
