//! Many sessions: what one costs, that nothing is done for those that rest, and that those that ended left nothing.

use std::sync::Arc;

use serde_json::json;

use crate::client::{Http, JSON, MODERN, Session, initialize, modern, text, tool_call};
use crate::support::{Daemon, wait_until};

/// What an idle session may cost the daemon, in bytes.
const PER_SESSION: u64 = 16 << 10;

/// Clients at the same time.
const AT_ONCE: usize = 8;

fn daemon(idle: &str) -> Daemon {
    let fake = ostler_testkit::fake::path();
    let server = |era: &str| {
        format!(
            "[servers.{era}]\ncommand = \"{}\"\nargs = [\"{era}\"]\nscope = \"shared\"\ntell_session = true\n",
            fake.display()
        )
    };
    let more = format!("[limits]\nsessions = 20000\n[sessions]\nidle = \"{idle}\"\n");
    Daemon::start(&(server("legacy") + &server("modern") + &more), &[])
}

fn rss(daemon: &Daemon) -> u64 {
    daemon.status()["rss_bytes"].as_u64().expect("bytes")
}

fn sessions(daemon: &Daemon) -> u64 {
    daemon.status()["sessions"].as_u64().expect("a number")
}

/// Times that a thread of the daemon has given up a processor of its own accord: to wait, after each bit of work.
fn rests(daemon: &Daemon) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("/proc");
    let of_task = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or_default()
    };
    tasks.filter_map(Result::ok).map(of_task).sum()
}

/// Does something `count` times, several at once.
async fn many<F: Future<Output = ()> + Send + 'static>(count: usize, act: impl Fn(usize) -> F) {
    let mut set = tokio::task::JoinSet::new();
    for number in 0..count {
        if set.len() == AT_ONCE {
            set.join_next().await.expect("one").expect("it is answered");
        }
        set.spawn(act(number));
    }
    while let Some(done) = set.join_next().await {
        done.expect("it is answered");
    }
}

async fn open_legacy(http: &Arc<Http>, count: usize) {
    many(count, |_| {
        let http = Arc::clone(http);
        async move {
            let reply = http.post("legacy", &[], &initialize()).await;
            assert_eq!(reply.status, 200);
            reply.answer().await;
        }
    })
    .await;
}

async fn open_modern(http: &Arc<Http>, name: &'static str, count: usize) {
    many(count, move |number| {
        let http = Arc::clone(http);
        async move {
            let request = modern(tool_call(number, "echo", &json!({"text": "x"})));
            let mut headers = JSON.to_vec();
            headers.extend([
                ("mcp-protocol-version", MODERN),
                ("mcp-method", "tools/call"),
                ("mcp-name", "echo"),
            ]);
            let path = format!("/mcp/modern/s/{name}-{number}");
            let answer =
                http.send(hyper::Method::POST, &path, &headers, request.to_string()).await.answer().await;
            assert_eq!(text(&answer), "x");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn two_thousand_idle_sessions_cost_little_memory_and_no_work() {
    let daemon = daemon("1h");
    let http = Http::new(daemon.address());
    // What the first calls bring with them is no session's.
    open_legacy(&http, 50).await;
    open_modern(&http, "first", 50).await;
    let before = rss(&daemon);
    open_legacy(&http, 1000).await;
    open_modern(&http, "name", 1000).await;
    assert_eq!(sessions(&daemon), 2100);
    let each = rss(&daemon).saturating_sub(before) / 2000;
    println!("a session costs {each} bytes");
    assert!(each <= PER_SESSION, "{each} bytes for a session");
    // Looks, answers and timers of the daemon itself: a few. For each session only one would be 2,100.
    let begun = rests(&daemon);
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let worked = rests(&daemon) - begun;
    assert!(worked < 200, "{worked} times at work in two seconds of rest");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ten_thousand_sessions_that_ended_leave_nothing() {
    let daemon = daemon("500ms");
    let http = Http::new(daemon.address());
    let rounds = async |round: &'static str| {
        many(1000, |_| {
            let http = Arc::clone(&http);
            async move {
                let session = Session::open(&http, "legacy").await;
                assert_eq!(session.end().await, 200);
            }
        })
        .await;
        open_modern(&http, round, 1000).await;
        wait_until("all have ended", || sessions(&daemon) == 0);
    };
    rounds("a").await;
    let before = rss(&daemon);
    for round in ["b", "c", "d", "e"] {
        rounds(round).await;
    }
    // Given back in the lull that follows.
    let bound = before + (1 << 20);
    wait_until("the memory is what it was", || rss(&daemon) <= bound);
}
