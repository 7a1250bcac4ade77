//! Real processes, real signals. Every test counts processes by a mark that they inherit.

mod daemon;
mod forge;
mod guard;
mod ladder;
mod launch;
mod limits;
mod reaper;
mod sandbox;

use std::path::{Path, PathBuf};
use std::time::Duration;

use ostler_os::tree::{self, Process};
use ostler_os::{GuardEvent, Guarded, Limits, Mark, SpawnRequest, Spawner};
use ostler_testkit::evil;
use ostler_testkit::mark::{Mark as TestMark, Marked};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::{RwLock, mpsc};

/// For what has to happen; a loaded machine may be slow, and an emulated one is.
const DEADLINE: Duration = Duration::from_secs(60);

/// A step of the ladder that an evil child is expected to ignore.
const STEP: Duration = Duration::from_millis(150);

type Events = mpsc::Receiver<GuardEvent>;

/// A sweep of this process takes what the daemons that other tests kill leave here for orphans. Those that cause
/// sweeps hold this for writing, those that leave orphans for reading.
static SWEEPS: RwLock<()> = RwLock::const_new(());

/// Overrides where the testbed is: for running these tests on another machine than the one that built them.
const TESTBED_VARIABLE: &str = "OSTLER_OS_TESTBED";

fn testbed() -> PathBuf {
    std::env::var_os(TESTBED_VARIABLE)
        .map_or_else(|| env!("CARGO_BIN_EXE_ostler-os-testbed").into(), PathBuf::from)
}

fn spawner() -> Spawner {
    Spawner::new(testbed())
}

fn request(mark: &TestMark, program: impl AsRef<Path>, args: &[&str]) -> SpawnRequest {
    let (name, value) = mark.env();
    let path = std::env::var_os("PATH").expect("PATH is set");
    SpawnRequest {
        program: program.as_ref().into(),
        args: args.iter().map(Into::into).collect(),
        env: vec![(name.into(), value.into()), ("PATH".into(), path)],
        cwd: None,
        mark: Mark::random(),
        limits: Limits::default(),
    }
}

fn spawn(mark: &TestMark, program: impl AsRef<Path>, args: &[&str]) -> Guarded {
    spawner().spawn(request(mark, program, args)).expect("a guard starts")
}

async fn spawn_evil(mark: &TestMark, words: &[&str]) -> Guarded {
    let program = tokio::task::spawn_blocking(evil::path).await.expect("built");
    spawn(mark, program, words)
}

/// The next event, which must come.
async fn next(events: &mut Events) -> GuardEvent {
    let event = tokio::time::timeout(DEADLINE, events.recv()).await;
    event.expect("an event before the deadline").expect("not the end of events")
}

/// The leader's pid and start time.
async fn started(events: &mut Events) -> (i32, u64) {
    match next(events).await {
        GuardEvent::Started { pid, start_time } => (pid, start_time),
        other => panic!("{other:?} instead of Started"),
    }
}

/// All events up to `TreeEmpty`, that not included.
async fn until_empty(events: &mut Events) -> Vec<GuardEvent> {
    let mut seen = Vec::new();
    loop {
        match next(events).await {
            GuardEvent::TreeEmpty => return seen,
            event => seen.push(event),
        }
    }
}

/// Reads and forgets, as long as there is something.
fn drain(mut from: impl AsyncRead + Unpin + Send + 'static) {
    tokio::spawn(async move { tokio::io::copy(&mut from, &mut tokio::io::sink()).await });
}

async fn read_all(mut from: impl AsyncRead + Unpin) -> String {
    let mut text = String::new();
    let read = from.read_to_string(&mut text);
    tokio::time::timeout(DEADLINE, read).await.expect("ends").expect("text");
    text
}

/// Waits for marked processes without blocking the runtime.
async fn see(mark: &TestMark, what: &str, wanted: impl Fn(&[Marked]) -> bool) -> Vec<Marked> {
    tokio::task::block_in_place(|| mark.wait_for(DEADLINE, wanted))
        .unwrap_or_else(|seen| panic!("waited for {what}, saw {seen:#?}"))
}

fn is_orphan(marked: &Marked) -> bool {
    marked.command.contains(" orphan") && !marked.command.starts_with("sh ")
}

/// What must hold at the very moment a tree is said to be empty: no waiting here.
fn assert_nothing_left(mark: &TestMark, guard: (i32, u64)) {
    assert_eq!(mark.processes(), [], "said to be empty");
    assert!(!is_alive(guard), "the guard is gone, too");
}

fn is_alive((pid, start_time): (i32, u64)) -> bool {
    let process = tree::read(pid).expect("/proc is readable");
    process.is_some_and(|process: Process| process.start_time == start_time && !process.is_zombie())
}

/// A signal from outside, as a person would send it.
fn kill(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("may be signalled");
}

/// Says `initialize` and waits for the answer.
async fn handshake(tree: &mut Guarded) {
    let line = br#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#;
    tree.stdin.write_all(line).await.expect("it reads");
    tree.stdin.write_all(b"\n").await.expect("it reads");
    let mut lines = BufReader::new(&mut tree.stdout).lines();
    let answer = async {
        loop {
            let line = lines.next_line().await.expect("text").expect("not the end");
            if line.contains("serverInfo") {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, answer).await.expect("an answer before the deadline");
}
