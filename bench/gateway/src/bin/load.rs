//! The load generator: sessions that call `echo` in a closed loop, and what that cost.
//!
//! One thread, so that it takes little of the machine it shares with its target. It opens all sessions at once
//! (timed), lets them call for the warm-up, then measures for a fixed time. Every answer is checked. It prints one
//! JSON object; it fails when the sessions cannot be opened, and reports errors of calls in `errors`.

use bench_gateway::histogram::Histogram;
use bench_gateway::mcp::Caller;
use bench_gateway::session::{Session, Target};
use bench_gateway::tree::{self, Sample, Tree};
use clap::Parser;
use serde::Serialize;
use std::error::Error;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::{Barrier, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep_until, timeout, timeout_at};

/// All sessions must be open within this time.
const OPEN_DEADLINE: Duration = Duration::from_secs(120);
/// How long after the measured time a last call may still be under way before its session counts as stalled.
const STALL_DEADLINE: Duration = Duration::from_secs(10);
/// A session that failed this often in the protocol stops calling.
const MOST_WRONG_ANSWERS: u64 = 100;

#[derive(Parser)]
struct Arguments {
    /// Streamable HTTP endpoint: http://ADDRESS:PORT/PATH.
    #[arg(long, required_unless_present = "stdio", conflicts_with = "stdio")]
    url: Option<String>,
    /// Start a server per session and speak to it directly; the command follows `--`.
    #[arg(long)]
    stdio: bool,
    /// Concurrent sessions, each with one call in flight.
    #[arg(long, default_value_t = 1)]
    sessions: usize,
    /// Seconds measured.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Seconds of load before the measured ones.
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Milliseconds that a session waits between an answer and its next call.
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    /// The echo tool's name (a front that prefixes names changes it).
    #[arg(long, default_value = "echo")]
    tool: String,
    /// Root of the process tree whose cost is measured.
    #[arg(long)]
    pid: Option<u32>,
    /// The value of OSTLER_BENCH_MARK that marks members of the tree which no longer hang from the root.
    #[arg(long)]
    mark: Option<String>,
    /// The stdio server and its arguments.
    #[arg(last = true)]
    command: Vec<String>,
}

/// What is printed.
#[derive(Serialize)]
struct Report {
    sessions: usize,
    open_ms: f64,
    seconds: f64,
    calls: u64,
    calls_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    mean_us: f64,
    max_us: f64,
    errors: u64,
    first_error: Option<String>,
    gateway_cpu_us_per_call: f64,
    server_cpu_us_per_call: f64,
    client_cpu_us_per_call: f64,
    after: Sample,
}

/// When to measure; the same for all sessions.
#[derive(Clone, Copy)]
struct Window {
    from: Instant,
    until: Instant,
}

#[derive(Default)]
struct Tally {
    latencies: Histogram,
    errors: u64,
    first_error: Option<String>,
}

impl Tally {
    fn fail(&mut self, reason: String) {
        self.errors += 1;
        self.first_error.get_or_insert(reason);
    }

    fn merge(&mut self, other: Self) {
        self.latencies.merge(&other.latencies);
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let own_mark = format!("direct-{}", std::process::id());
    let target = match &arguments.url {
        Some(url) => Target::from_url(url)?,
        None => Target::Stdio { command: arguments.command.clone(), mark: own_mark.clone() },
    };
    // Measuring directly, the servers are this process's children: the mark alone leads to them.
    let tree = match (arguments.stdio, arguments.pid) {
        (true, _) => Tree { root: u32::MAX, mark: Some(own_mark) },
        (false, pid) => Tree { root: pid.unwrap_or(u32::MAX), mark: arguments.mark.clone() },
    };
    let report = LocalSet::new().run_until(run(&arguments, target, tree)).await?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

async fn run(arguments: &Arguments, target: Target, tree: Tree) -> Result<Report, Box<dyn Error>> {
    let opening = Instant::now();
    let sessions = timeout(OPEN_DEADLINE, open_all(arguments.sessions, target))
        .await
        .map_err(|_| format!("not all sessions were open after {} s", OPEN_DEADLINE.as_secs()))??;
    let open_ms = opening.elapsed().as_secs_f64() * 1_000.0;

    let barrier = Rc::new(Barrier::new(arguments.sessions + 1));
    let (announce, window) = watch::channel(None);
    let mut callers = JoinSet::new();
    for (number, session) in sessions.into_iter().enumerate() {
        let caller = Caller::new(number, &arguments.tool);
        let pause = Duration::from_millis(arguments.pause_ms);
        callers.spawn_local(call_in_a_loop(session, caller, pause, Rc::clone(&barrier), window.clone()));
    }
    barrier.wait().await;
    let from = Instant::now() + Duration::from_secs_f64(arguments.warmup);
    let until = from + Duration::from_secs_f64(arguments.seconds);
    announce.send_replace(Some(Window { from, until }));

    sleep_until(from.into()).await;
    let (before, own_before) = (sample(&tree).await?, tree::own_cpu_ns()?);
    sleep_until(until.into()).await;
    let (after, own_after) = (sample(&tree).await?, tree::own_cpu_ns()?);
    let tally = collect(callers, until + STALL_DEADLINE).await;

    let calls = tally.latencies.count();
    let per_call = |before: u64, after: u64| after.saturating_sub(before) as f64 / calls.max(1) as f64 / 1e3;
    Ok(Report {
        sessions: arguments.sessions,
        open_ms,
        seconds: arguments.seconds,
        calls,
        calls_per_s: calls as f64 / arguments.seconds,
        p50_us: tally.latencies.quantile_us(0.5),
        p99_us: tally.latencies.quantile_us(0.99),
        mean_us: tally.latencies.mean_us(),
        max_us: tally.latencies.max_us(),
        errors: tally.errors,
        first_error: tally.first_error,
        gateway_cpu_us_per_call: per_call(before.gateway_cpu_ns, after.gateway_cpu_ns),
        server_cpu_us_per_call: per_call(before.server_cpu_ns, after.server_cpu_ns),
        client_cpu_us_per_call: per_call(own_before, own_after),
        after,
    })
}

/// Opens all sessions at the same time.
async fn open_all(count: usize, target: Target) -> Result<Vec<Session>, String> {
    let target = Rc::new(target);
    let mut opening = JoinSet::new();
    for _ in 0..count {
        let target = Rc::clone(&target);
        opening.spawn_local(async move { Session::open(&target).await });
    }
    let mut sessions = Vec::with_capacity(count);
    while let Some(opened) = opening.join_next().await {
        sessions.push(opened.map_err(|error| error.to_string())??);
    }
    Ok(sessions)
}

/// One session's closed loop; counts the calls that began and ended in the window. It gives the session back, so
/// that everything is still alive when the last sample is taken.
async fn call_in_a_loop(
    mut session: Session,
    mut caller: Caller,
    pause: Duration,
    barrier: Rc<Barrier>,
    mut window: watch::Receiver<Option<Window>>,
) -> (Session, Tally) {
    let mut tally = Tally::default();
    barrier.wait().await;
    let Window { from, until } = match window.wait_for(Option::is_some).await.map(|announced| *announced) {
        Ok(Some(window)) => window,
        _ => return (session, tally),
    };
    loop {
        let begun = Instant::now();
        if begun >= until || tally.errors >= MOST_WRONG_ANSWERS {
            return (session, tally);
        }
        let ended = match session.call(caller.next_call()).await {
            Ok(ended) => ended,
            Err(error) => {
                tally.fail(format!("call: {error}"));
                return (session, tally);
            }
        };
        match caller.check(session.message()) {
            Err(reason) => tally.fail(reason),
            Ok(()) if begun >= from && ended <= until => tally.latencies.record(ended - begun),
            Ok(()) => {}
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

/// Adds up all sessions; one that has not ended by the deadline is stalled, and an error.
async fn collect(mut callers: JoinSet<(Session, Tally)>, deadline: Instant) -> Tally {
    let mut total = Tally::default();
    while !callers.is_empty() {
        match timeout_at(deadline.into(), callers.join_next()).await {
            Ok(Some(Ok((_, tally)))) => total.merge(tally),
            Ok(Some(Err(error))) => total.fail(format!("a session's task failed: {error}")),
            Ok(None) => break,
            Err(_) => {
                for _ in 0..callers.len() {
                    total.fail(format!("a call had no answer {} s after the end", STALL_DEADLINE.as_secs()));
                }
                break;
            }
        }
    }
    total
}

/// Looks at the tree from another thread, so that no call waits for it.
async fn sample(tree: &Tree) -> Result<Sample, Box<dyn Error>> {
    let tree = tree.clone();
    Ok(tokio::task::spawn_blocking(move || tree.sample()).await??)
}
