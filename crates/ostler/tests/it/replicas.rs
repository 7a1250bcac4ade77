//! Replicas: several instances of a shared server, more under load and fewer without.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::client::{Http, Session, modern, post_modern, text, tool_call};
use crate::support::{Daemon, wait_until};

fn daemon(era: &str, replicas: &str) -> Daemon {
    let fake = ostler_testkit::fake::path();
    let config = format!(
        "[servers.fake]\ncommand = \"{}\"\nargs = [\"{era}\"]\nscope = \"shared\"\nreplicas = {{ {replicas} }}\n",
        fake.display()
    );
    Daemon::start(&config, &[])
}

fn ready(daemon: &Daemon) -> usize {
    daemon.ps().iter().filter(|row| row["state"] == "ready").count()
}

fn kinds(daemon: &Daemon, kind: &str) -> usize {
    daemon.events().iter().filter(|event| event["kind"] == kind).count()
}

/// A call that runs until it is hung up on.
fn busy(http: &Arc<Http>, id: usize) -> tokio::task::JoinHandle<Value> {
    let http = Arc::clone(http);
    tokio::spawn(async move {
        let request = modern(tool_call(id, "sleep", &json!({"ms": 600_000, "tag": "t"})));
        post_modern(&http, "fake", &request).await.answer().await
    })
}

async fn pid(http: &Arc<Http>) -> u64 {
    let answer = post_modern(http, "fake", &modern(tool_call(1, "state", &json!({})))).await.answer().await;
    let state: Value = serde_json::from_str(text(&answer)).expect("JSON");
    state["pid"].as_u64().expect("a pid")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn load_brings_replicas_and_its_end_takes_them() {
    let daemon = daemon("modern", "max = 3, calls = 2, interval = '100ms'");
    let http = Http::new(daemon.address());
    wait_until("one serves", || ready(&daemon) == 1);
    let alone = pid(&http).await;
    let calls: Vec<_> = (0..6).map(|id| busy(&http, id)).collect();
    wait_until("as many as there may be", || ready(&daemon) == 3);
    // The first is as busy as it was; the next goes to one that is not.
    assert_ne!(pid(&http).await, alone);
    assert!(calls.iter().all(|call| !call.is_finished()), "nobody's call was touched");
    for call in calls {
        call.abort();
    }
    wait_until("one is enough", || daemon.ps().len() == 1 && ready(&daemon) == 1);
    assert_eq!((kinds(&daemon, "scaled-up"), kinds(&daemon, "scaled-down")), (2, 2));
    pid(&http).await;
}

/// A legacy session stays with its replica, whose state it has; new ones go where the fewest are, whatever runs there
/// just then.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sessions_are_shared_out_and_stay_where_they_are() {
    let daemon = daemon("legacy", "min = 2, max = 2, interval = '100ms'");
    wait_until("both serve", || ready(&daemon) == 2);
    let http = Http::new(daemon.address());
    let state = async |session: &Session| {
        let answer = session.call(7, "state", &json!({})).await;
        let state: Value = serde_json::from_str(text(&answer)).expect("JSON");
        state["pid"].as_u64().expect("a pid")
    };
    let mut pids = Vec::new();
    let mut sessions = Vec::new();
    let mut busy = None;
    for _ in 0..4 {
        let session = Arc::new(Session::open(&http, "fake").await);
        pids.push(state(&session).await);
        sessions.push(Arc::clone(&session));
        busy.get_or_insert_with(|| {
            let hold = json!({"ms": 600_000, "tag": "t"});
            tokio::spawn(async move { session.call(8, "sleep", &hold).await })
        });
        wait_until("the first one's call runs", || daemon.ps().iter().any(|row| row["calls"] == 1));
    }
    assert_eq!(pids.iter().collect::<BTreeSet<_>>().len(), 2, "{pids:?}");
    let of_one = pids.iter().filter(|pid| **pid == pids[0]).count();
    assert_eq!(of_one, 2, "{pids:?}");
    for (session, pid) in sessions.iter().zip(&pids) {
        assert_eq!(state(session).await, *pid);
    }
    busy.expect("a call").abort();
}
