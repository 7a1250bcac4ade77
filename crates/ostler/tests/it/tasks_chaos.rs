//! Thousands of tasks of many projects while the daemon, its workers and their guards are killed at random: each accepted one
//! ends exactly once, and no project ever runs more than it may. The journal is what proves it.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ostler_store::journal::check;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{Daemon, PATIENCE, wait_until};

/// Tasks, if `OSTLER_TASKS` does not say how many.
const TASKS: usize = 5_000;
const PROJECTS: usize = 20;
const BATCH: usize = 100;
/// Between two kills.
const PAUSE: Duration = Duration::from_millis(150);

fn config() -> String {
    let limits: String =
        (0..PROJECTS).map(|number| format!("[projects.p{number}]\nrunning = {}\n", 1 + number % 3)).collect();
    format!(
        "[tasks]\nattempts = 100\nbackoff = {{ min = \"1ms\", max = \"10ms\" }}\n[workers]\nmin = 3\nmax = 5\nmax_tasks = 200\n{limits}"
    )
}

/// One request; an error where the daemon was killed meanwhile.
fn ask(socket: &Path, method: &str, path: &str, body: &str) -> std::io::Result<(u16, Value)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: ostler\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let broken = || std::io::Error::other("no whole answer");
    let status = answer.get(9..12).and_then(|status| status.parse().ok()).ok_or_else(broken)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(broken)?;
    Ok((status, serde_json::from_str(body).map_err(|_| broken())?))
}

/// The tasks of one batch: each says which it is. Those of one batch are of few projects, which so come upon their limits.
fn batch(number: usize) -> String {
    let task = |at: usize| {
        let which = number * BATCH + at;
        let payload = match which % 50 {
            0 => json!({"argv": ["sh", "-c", format!("sleep 0.01; echo {which}")]}),
            _ => {
                json!({"code": format!("let n = 0; for (let i = 0; i < 20000; i++) n += i; return {which}")})
            }
        };
        let kind = if which.is_multiple_of(50) { "shell-command" } else { "execute-code" };
        json!({"type": kind, "payload": payload, "project": format!("p{}", (number * 2 + at % 4) % PROJECTS), "priority": which % 11})
    };
    let tasks: Vec<Value> = (0..BATCH).map(task).collect();
    json!({"tasks": tasks, "batch": {"project": "p0", "key": format!("batch {number}")}}).to_string()
}

/// Submits until all are accepted; their batches. The same key finds the same batch, where an answer was lost.
fn submit_all(socket: &Path, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..count / BATCH {
        let body = batch(number);
        let mut id = None;
        wait_until("a batch is accepted", || {
            match ask(socket, "POST", "/api/v1/batches", &body) {
                Ok((202, answer)) => id = answer["id"].as_str().map(str::to_owned),
                Ok((status, answer)) => assert!(status >= 500, "{status} {answer}"),
                Err(_) => {}
            }
            id.is_some()
        });
        ids.extend(id);
    }
    ids
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % most.max(1)
    }
}

/// How many have ended.
fn ended_of(socket: &Path) -> Option<usize> {
    let (_, stats) = ask(socket, "GET", "/api/process-pool/stats", "").ok()?;
    let count = |which: &str| stats["tasks"][which].as_u64().and_then(|count| usize::try_from(count).ok());
    Some(count("completed")? + count("failed")?)
}

/// Kills come whenever they come: there is nothing to wait for.
#[expect(clippy::disallowed_methods, reason = "between two kills")]
fn pause() {
    std::thread::sleep(PAUSE);
}

/// Kills a worker, or its guard.
fn kill_one(daemon: &Daemon, dice: &mut Dice, killed: &mut BTreeMap<&'static str, usize>) {
    let rows = daemon.ps();
    let workers: Vec<i64> = rows
        .iter()
        .filter(|row| row["server"].as_str().is_some_and(|server| server.starts_with("worker-")))
        .filter_map(|row| row["pid"].as_i64())
        .collect();
    if workers.is_empty() {
        return;
    }
    let pid = i32::try_from(workers[dice.below(workers.len())]).expect("a pid");
    let guard = ostler_os::tree::read(pid).ok().flatten().map(|process| process.ppid);
    let (what, pid) = match guard.filter(|_| dice.below(3) == 0) {
        Some(guard) => ("guards", guard),
        None => ("workers", pid),
    };
    // It may have ended meanwhile.
    if pid > 1 && Pid::from_raw(pid).is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok()) {
        *killed.entry(what).or_default() += 1;
    }
}

#[test]
fn each_accepted_task_ends_exactly_once_whatever_is_killed() {
    let count = std::env::var("OSTLER_TASKS").ok().and_then(|count| count.parse().ok()).unwrap_or(TASKS);
    let mut daemon = Daemon::start(&config(), &[]);
    let socket: PathBuf = daemon.socket();
    let mut dice = Dice(u64::from(std::process::id()));
    let mut killed = BTreeMap::new();
    let batches = std::thread::scope(|threads| {
        let submitting = threads.spawn(|| submit_all(&socket, count));
        // The last tenth ends in peace: what is killed all the time may never end.
        while ended_of(&socket).is_none_or(|ended| ended < count * 9 / 10) {
            pause();
            if dice.below(8) == 0 {
                daemon.signal(Signal::KILL);
                daemon.wait();
                daemon.start_again(&[]);
                *killed.entry("daemons").or_default() += 1;
            } else {
                kill_one(&daemon, &mut dice, &mut killed);
            }
        }
        submitting.join().expect("all are accepted")
    });
    assert_eq!(batches.len(), count / BATCH);
    let mut ended = 0;
    while ended < count {
        let before = ended;
        wait_until("more have ended", || {
            ended = ended_of(&socket).unwrap_or(ended);
            ended > before || ended == count
        });
    }
    for id in &batches {
        let (_, batch) = ask(&socket, "GET", &format!("/api/v1/batches/{id}"), "").expect("an answer");
        assert_eq!(batch["ended"], true, "{batch}");
    }
    let state = daemon.state_dir();
    daemon.signal(Signal::TERM);
    daemon.wait();
    let verdict = check::check(&state).expect("the journal can be read");
    println!("{count} tasks; killed: {killed:?}; {verdict:?}");
    for what in ["daemons", "guards", "workers"] {
        assert!(killed.contains_key(what), "no {what} were killed: {killed:?}");
    }
    assert!(verdict.is_proof(), "{verdict:?}");
    assert_eq!(verdict.tasks.iter().sum::<u64>(), u64::try_from(count).expect("few"));
}
