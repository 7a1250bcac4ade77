//! A server that crashes hurts nobody but its callers, and those not for long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::client::{Http, Reply, Session, code, text, tool_call, why, with_token};
use crate::support::{Daemon, wait_until};

/// The pending calls, spread over sessions.
const SESSIONS: usize = 4;
const CALLS_EACH: usize = 8;

/// Ostler's own code for a call whose instance ended.
const INSTANCE_LOST: i64 = -31001;
const BACKOFF_MS: u64 = 300;

fn daemon() -> Daemon {
    let fake = ostler_testkit::fake::path();
    let server = |name: &str| {
        format!(
            // With its name: two names for the same thing would be one process.
            "[servers.{name}]\ncommand = \"{}\"\nargs = [\"legacy\", \"{name}\"]\nscope = \"shared\"\n\
             restart = {{ backoff = {{ min = \"{BACKOFF_MS}ms\", jitter = 0 }} }}\n",
            fake.display()
        )
    };
    Daemon::start(&(server("fake") + &server("other")), &[])
}

/// A call that certainly runs.
async fn sleeping(session: Arc<Session>, id: usize) -> Reply {
    let call = tool_call(id, "sleep", &json!({"ms": 300_000, "tag": "t"}));
    let mut reply = session.send(&with_token(call, &json!(id))).await;
    let first = reply.next().await.expect("progress says that it runs");
    assert_eq!(first["method"], "notifications/progress", "{first}");
    reply
}

/// Calls a server without a pause until told to stop; every call must come out right.
async fn load(session: Session, calls: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let number = calls.fetch_add(1, Ordering::Relaxed).to_string();
        let answer = session.call(1, "echo", &json!({"text": number})).await;
        assert_eq!(text(&answer), number);
    }
}

/// Lets 32 calls wait, has the server end, and checks everything that is promised then. `said` is how it ended.
async fn check(crash: impl AsyncFnOnce(&Daemon, &Session), said: &str) {
    let daemon = daemon();
    let http = Http::new(daemon.address());
    let (done, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
    let other = Session::open(&http, "other").await;
    let loading = tokio::spawn(load(other, Arc::clone(&done), Arc::clone(&stop)));

    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(Arc::new(Session::open(&http, "fake").await));
    }
    let mut pending = JoinSet::new();
    for session in &sessions {
        for id in 0..CALLS_EACH {
            pending.spawn(sleeping(Arc::clone(session), id));
        }
    }
    let pending = pending.join_all().await;
    assert_eq!(pending.len(), 32);
    let before = daemon.wait_row("fake", "32 calls run", |row| row["calls"] == 32);
    assert_eq!((&before["generation"], &before["restarts"]), (&json!(1), &json!(0)), "{before}");

    crash(&daemon, &sessions[0]).await;
    for reply in pending {
        let answer = reply.answer().await;
        assert_eq!(code(&answer), INSTANCE_LOST, "{answer}");
        assert_eq!(why(&answer), said);
    }
    // One that comes while the server is down waits for it.
    let answer = sessions[1].call("meanwhile", "echo", &json!({"text": "back"})).await;
    assert_eq!(text(&answer), "back");
    let after = daemon.wait_row("fake", "it is ready again", |row| row["state"] == "ready");
    let now = ["generation", "restarts", "calls"].map(|field| &after[field]);
    assert_eq!(now, [&json!(2), &json!(1), &json!(0)], "{after}");
    assert_ne!(after["pid"], before["pid"]);
    check_backoff(&daemon.events());
    // The sessions are what they were.
    for session in &sessions {
        let answer = session.call(0, "echo", &json!({"text": "still here"})).await;
        assert_eq!(text(&answer), "still here");
    }
    // Others never noticed, and went on meanwhile.
    let so_far = done.load(Ordering::Relaxed);
    wait_until("the other server goes on", || done.load(Ordering::Relaxed) > so_far);
    stop.store(true, Ordering::Relaxed);
    loading.await.expect("no call of the other server failed");
    let other = daemon.wait_row("other", "it is listed", |_| true);
    assert_eq!((&other["generation"], &other["restarts"]), (&json!(1), &json!(0)), "{other}");
}

/// The restart waited for its back-off, and said so.
fn check_backoff(events: &[Value]) {
    let at = |kind: &str, which: usize| {
        let of_kind = |event: &&Value| event["kind"] == kind && event["subject"] == "fake.1";
        events.iter().filter(of_kind).nth(which).unwrap_or_else(|| panic!("no event {kind}: {events:?}"))
    };
    let scheduled = at("restart-scheduled", 0);
    assert!(scheduled["message"].as_str().is_some_and(|text| text.contains("300 ms")), "{scheduled}");
    let since = |event: &Value| event["unix_ms"].as_u64().expect("a time");
    let waited = since(at("starting", 1)).saturating_sub(since(scheduled));
    // The clocks of events and timers may round differently.
    assert!(waited + 5 >= BACKOFF_MS, "it waited {waited} ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_exits_under_32_calls() {
    let crash = async |_: &Daemon, session: &Session| {
        let answer = session.call("crash", "crash", &json!({"code": 7})).await;
        assert_eq!((code(&answer), why(&answer)), (INSTANCE_LOST, "the server exited with status 7"));
    };
    check(crash, "the server exited with status 7").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_under_32_calls() {
    let crash = async |daemon: &Daemon, _: &Session| {
        let pid = daemon.wait_row("fake", "it has a pid", |row| row["pid"].is_u64())["pid"].as_i64();
        let pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).expect("a pid");
        kill_process(pid, Signal::KILL).expect("it runs");
    };
    check(crash, "the server was ended by SIGKILL").await;
}
