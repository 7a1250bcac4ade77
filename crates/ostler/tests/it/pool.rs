//! Pools, with real processes: started ahead, leased to one session at a time, clean for the next.

use std::sync::Arc;

use hyper::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::cli::over_socket;
use crate::client::{Http, JSON, Session, initialize, text, why};
use crate::support::{Daemon, wait_until};

const NOBODY: &str = "nobody yet";

fn daemon(pool: &str) -> Daemon {
    let fake = ostler_testkit::fake::path();
    let config = format!(
        "[servers.fake]\ncommand = \"{}\"\nargs = [\"legacy\"]\nscope = \"session\"\npool = {{ {pool} }}\n",
        fake.display()
    );
    Daemon::start(&config, &[])
}

/// Pids of the instances that serve, by owner.
fn pids(daemon: &Daemon, of: impl Fn(&str) -> bool) -> Vec<i64> {
    let rows = daemon.ps();
    let ready = rows.iter().filter(|row| row["state"] == "ready" && row["owner"].as_str().is_some_and(&of));
    ready.filter_map(|row| row["pid"].as_i64()).collect()
}

fn spares(daemon: &Daemon) -> Vec<i64> {
    pids(daemon, |owner| owner == NOBODY)
}

fn leased(daemon: &Daemon) -> Vec<i64> {
    pids(daemon, |owner| owner.starts_with("session"))
}

fn waiting_in_line(daemon: &Daemon) -> u64 {
    let (_, body) = over_socket(daemon, "GET", "/api/v1/servers/fake", "");
    let view: Value = serde_json::from_str(&body).expect("an object");
    view["pool"]["waiting"].as_u64().expect("a number")
}

fn wait_spares(daemon: &Daemon, count: usize) -> Vec<i64> {
    wait_until("there are as many spares as wanted", || spares(daemon).len() == count);
    spares(daemon)
}

fn signal(pid: i64, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    kill_process(pid, signal).expect("it runs");
}

fn is_gone(pid: i64) -> bool {
    !std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// What opening a session is answered with, where that is no session.
async fn refused(http: &Arc<Http>) -> (u16, Value) {
    let mut reply = http.post("fake", &[], &initialize()).await;
    let status = reply.status;
    (status, reply.rest().await.pop().expect("an answer"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_session_gets_a_spare_and_the_next_gets_another() {
    let daemon = daemon("spare = 2, max = 4");
    let ahead = wait_spares(&daemon, 2);
    let http = Http::new(daemon.address());
    let first = Session::open(&http, "fake").await;
    assert_eq!(text(&first.call(1, "echo", &json!({"text": "hello"})).await), "hello");
    let [mine] = leased(&daemon)[..] else { panic!("one session, one lease: {:?}", daemon.ps()) };
    assert!(ahead.contains(&mine), "{mine} was not started ahead: {ahead:?}");
    // Taken ones are followed by others.
    assert!(!wait_spares(&daemon, 2).contains(&mine));
    assert_eq!(first.end().await, 200);
    wait_until("what one session had is nobody's any more", || is_gone(mine));
    let second = Session::open(&http, "fake").await;
    assert_ne!(leased(&daemon), [mine]);
    assert_eq!(text(&second.call(1, "echo", &json!({"text": "again"})).await), "again");
    let events = daemon.events();
    let leases: Vec<&str> = events
        .iter()
        .filter(|event| event["kind"] == "leased")
        .filter_map(|e| e["message"].as_str())
        .collect();
    assert_eq!(leases.len(), 2, "{leases:?}");
    assert!(leases[0].contains("lease 1 ") && leases[1].contains("lease 2 "), "{leases:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_waits_in_line_gets_what_is_given_back() {
    let daemon = daemon("spare = 0, max = 1, wait = '60s'");
    let http = Http::new(daemon.address());
    let first = Session::open(&http, "fake").await;
    let before = leased(&daemon);
    let waiting = tokio::spawn({
        let http = Arc::clone(&http);
        async move { Session::open(&http, "fake").await }
    });
    wait_until("one waits in line", || waiting_in_line(&daemon) == 1);
    assert!(!waiting.is_finished());
    first.end().await;
    let second = waiting.await.expect("it gets one");
    assert_eq!(text(&second.call(1, "echo", &json!({"text": "mine"})).await), "mine");
    let after = leased(&daemon);
    assert_eq!(after.len(), 1);
    assert_ne!(before, after, "a process that one session used is not another's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_waits_too_long_is_told_his_place() {
    let daemon = daemon("spare = 0, max = 1, wait = '200ms', waiting = 1");
    let http = Http::new(daemon.address());
    let first = Session::open(&http, "fake").await;
    let (status, answer) = refused(&http).await;
    assert_eq!(status, 503);
    assert!(why(&answer).contains("place 1 in line, 1 of at most 1 are held (pool.max)"), "{answer}");
    assert_eq!(text(&first.call(1, "echo", &json!({"text": "still"})).await), "still");
}

/// A client that hangs up while it waits leaves its place to others, and takes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_vanishes_from_the_line_leaves_his_place() {
    let daemon = daemon("spare = 0, max = 1, wait = '60s', waiting = 1");
    let http = Http::new(daemon.address());
    let first = Session::open(&http, "fake").await;
    let vanishing = tokio::spawn({
        let http = Http::new(daemon.address());
        async move { http.send(Method::POST, "/mcp/fake", &JSON, initialize().to_string()).await }
    });
    wait_until("one waits in line", || waiting_in_line(&daemon) == 1);
    let (_, answer) = refused(&http).await;
    assert!(why(&answer).contains("1 sessions wait in line already (pool.waiting)"), "{answer}");
    vanishing.abort();
    let third = tokio::spawn({
        let http = Arc::clone(&http);
        async move {
            loop {
                let mut reply = http.post("fake", &[], &initialize()).await;
                if reply.status == 200 {
                    return reply.header("mcp-session-id").expect("a session").to_owned();
                }
                // Its place is free a moment after it hung up.
                assert!(why(&reply.rest().await.pop().expect("an answer")).contains("pool.waiting"));
            }
        }
    });
    wait_until("the next waits in line", || waiting_in_line(&daemon) == 1 && !third.is_finished());
    first.end().await;
    let id = third.await.expect("it gets one");
    let third = Session { http: Arc::clone(&http), server: "fake".to_owned(), id };
    assert_eq!(text(&third.call(1, "echo", &json!({"text": "mine"})).await), "mine");
    assert_eq!(daemon.status()["sessions"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_reused_is_the_same_process_until_it_is_worn() {
    let daemon = daemon("spare = 0, max = 1, wait = '60s', on_return = 'reuse', max_uses = 2, jitter = 0");
    let http = Http::new(daemon.address());
    let mut seen = Vec::new();
    for _ in 0..3 {
        let session = Session::open(&http, "fake").await;
        assert_eq!(text(&session.call(1, "echo", &json!({"text": "x"})).await), "x");
        seen.extend(leased(&daemon));
        session.end().await;
    }
    assert_eq!(seen.len(), 3);
    assert!(seen[0] == seen[1] && seen[1] != seen[2], "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reset_that_fails_costs_the_process_and_one_that_does_not_keeps_it() {
    let clean = "spare = 0, max = 1, wait = '60s', on_return = 'command'";
    for (reset, same) in [("['sh', '-c', 'test -n \"$OSTLER_PID\"']", true), ("['false']", false)] {
        let daemon = daemon(&format!("{clean}, reset = {reset}"));
        let http = Http::new(daemon.address());
        let first = Session::open(&http, "fake").await;
        let before = leased(&daemon);
        first.end().await;
        let _second = Session::open(&http, "fake").await;
        assert_eq!(before == leased(&daemon), same, "{reset}");
        let failed = daemon.events().iter().any(|event| event["kind"] == "reset-failed");
        assert_eq!(failed, !same, "{reset}");
    }
}

/// One spare was killed, and one reads nothing any more: neither is handed out.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_spare_that_does_not_answer_is_not_handed_out() {
    let daemon = daemon("spare = 2, max = 4");
    let ahead = wait_spares(&daemon, 2);
    signal(ahead[0], Signal::STOP);
    signal(ahead[1], Signal::STOP);
    let http = Http::new(daemon.address());
    let session = Session::open(&http, "fake").await;
    assert_eq!(text(&session.call(1, "echo", &json!({"text": "well"})).await), "well");
    assert!(leased(&daemon).iter().all(|pid| !ahead.contains(pid)));
    wait_until("the stopped ones are gone, and others there", || {
        ahead.iter().all(|pid| is_gone(*pid)) && spares(&daemon).len() == 2
    });
}

/// The process of a lease may crash: its session keeps the lease, and the others are not touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_crash_within_a_lease_is_its_holders_alone() {
    let daemon = daemon("spare = 1, max = 3");
    let http = Http::new(daemon.address());
    let (one, other) = (Session::open(&http, "fake").await, Session::open(&http, "fake").await);
    let before = leased(&daemon);
    one.call(1, "crash", &json!({"code": 3})).await;
    wait_until("its process is back", || leased(&daemon).len() == 2 && leased(&daemon) != before);
    assert_eq!(leased(&daemon).iter().filter(|pid| before.contains(pid)).count(), 1);
    for session in [&one, &other] {
        assert_eq!(text(&session.call(2, "echo", &json!({"text": "x"})).await), "x");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_of_a_pool_is_left_after_the_daemon() {
    let mut daemon = daemon("spare = 2, max = 4");
    let ahead = wait_spares(&daemon, 2);
    let http = Http::new(daemon.address());
    let _session = Session::open(&http, "fake").await;
    let all: Vec<i64> = wait_spares(&daemon, 2).into_iter().chain(ahead).collect();
    assert!(daemon.cli(&["down"]).status.success());
    daemon.wait();
    assert!(all.iter().all(|pid| is_gone(*pid)));
}
