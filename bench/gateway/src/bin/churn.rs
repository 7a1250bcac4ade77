//! Churn: clients that connect, call once and vanish without a DELETE, in rounds; what they leave behind.
//!
//! It prints one JSON object: a series of samples of the gateway's whole tree, and how long after the last client
//! vanished the number of processes was back at the start. A client that is refused is counted, with the first
//! reason.

use bench_gateway::mcp::Caller;
use bench_gateway::session::{Session, Target};
use bench_gateway::tree::{Sample, Tree};
use clap::Parser;
use serde::Serialize;
use std::error::Error;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, timeout};

/// A client that has no answer by then gives up.
const CLIENT_DEADLINE: Duration = Duration::from_secs(60);
/// How often the tree is looked at while waiting for it to shrink.
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Parser)]
struct Arguments {
    /// Streamable HTTP endpoint: http://ADDRESS:PORT/PATH.
    #[arg(long)]
    url: String,
    /// Root of the gateway's process tree.
    #[arg(long)]
    pid: u32,
    /// The value of OSTLER_BENCH_MARK that marks members of the tree which no longer hang from the root.
    #[arg(long)]
    mark: String,
    /// Rounds of clients.
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// Clients in a round, all connected at the same time.
    #[arg(long, default_value_t = 100)]
    clients: usize,
    /// Seconds between the end of one round and the next.
    #[arg(long, default_value_t = 1.0)]
    gap: f64,
    /// Seconds after which the gateway promises to have let go of a vanished client.
    #[arg(long)]
    promised: f64,
    /// Seconds to go on looking when the promise was not kept.
    #[arg(long, default_value_t = 20.0)]
    patience: f64,
    /// The echo tool's name.
    #[arg(long, default_value = "echo")]
    tool: String,
}

/// One line of the series.
#[derive(Serialize)]
struct Point {
    when: String,
    at_s: f64,
    processes: usize,
    rss_kib: u64,
    gateway_rss_kib: u64,
}

#[derive(Serialize)]
struct Report {
    clients: usize,
    served: usize,
    refused: usize,
    first_refusal: Option<String>,
    promised_s: f64,
    /// Seconds after the last client vanished until the processes were back at the start; none if never.
    back_after_s: Option<f64>,
    series: Vec<Point>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let report = LocalSet::new().run_until(run(&arguments)).await?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

async fn run(arguments: &Arguments) -> Result<Report, Box<dyn Error>> {
    let tree = Tree { root: arguments.pid, mark: Some(arguments.mark.clone()) };
    let target = Rc::new(Target::from_url(&arguments.url)?);
    let begun = Instant::now();
    let mut series = Vec::new();
    let mut look = |when: String| -> std::io::Result<usize> {
        let sample = tree.sample()?;
        let processes = sample.processes();
        series.push(point(when, begun.elapsed(), &sample));
        Ok(processes)
    };
    let at_start = look("start".into())?;
    let (mut served, mut first_refusal) = (0, None);
    for round in 1..=arguments.rounds {
        let (sessions, refusal) = connect_all(arguments, &target, round).await?;
        served += sessions.len();
        first_refusal = first_refusal.or(refusal);
        look(format!("round {round}, connected"))?;
        drop(sessions);
        if round < arguments.rounds {
            sleep(Duration::from_secs_f64(arguments.gap)).await;
        }
    }
    let vanished = Instant::now();
    look("all vanished".into())?;
    let mut back_after_s = None;
    let mut promise_looked_at = false;
    while vanished.elapsed().as_secs_f64() < arguments.promised + arguments.patience {
        sleep(LOOK_EVERY).await;
        let elapsed = vanished.elapsed().as_secs_f64();
        if back_after_s.is_none() && tree.sample()?.processes() <= at_start {
            back_after_s = Some(elapsed);
        }
        if !promise_looked_at && elapsed >= arguments.promised {
            look("promised time over".into())?;
            promise_looked_at = true;
        }
        if promise_looked_at && back_after_s.is_some() {
            break;
        }
    }
    look("end".into())?;
    let clients = arguments.rounds * arguments.clients;
    Ok(Report {
        clients,
        served,
        refused: clients - served,
        first_refusal,
        promised_s: arguments.promised,
        back_after_s,
        series,
    })
}

/// Connects one round's clients at the same time; each makes one call, whose answer must be its own.
async fn connect_all(
    arguments: &Arguments,
    target: &Rc<Target>,
    round: usize,
) -> Result<(Vec<Session>, Option<String>), Box<dyn Error>> {
    let mut clients = JoinSet::new();
    for number in 0..arguments.clients {
        let target = Rc::clone(target);
        let mut caller = Caller::new(round * arguments.clients + number, &arguments.tool);
        clients.spawn_local(async move {
            let served = async {
                let mut session = Session::open(&target).await?;
                session.call(caller.next_call()).await.map_err(|error| format!("call: {error}"))?;
                caller.check(session.message())?;
                Ok::<_, String>(session)
            };
            timeout(CLIENT_DEADLINE, served)
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {} s", CLIENT_DEADLINE.as_secs())))
        });
    }
    let (mut sessions, mut refusal) = (Vec::new(), None);
    while let Some(client) = clients.join_next().await {
        match client? {
            Ok(session) => sessions.push(session),
            Err(reason) => refusal = refusal.or(Some(reason)),
        }
    }
    Ok((sessions, refusal))
}

fn point(when: String, at: Duration, sample: &Sample) -> Point {
    Point {
        when,
        at_s: at.as_secs_f64(),
        processes: sample.processes(),
        rss_kib: sample.rss_kib(),
        gateway_rss_kib: sample.gateway_rss_kib,
    }
}
