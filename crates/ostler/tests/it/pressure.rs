//! When there is not enough for all: who is refused, who makes room, and who is left alone.

use serde_json::{Value, json};

use crate::cli::{done, err, json_of};
use crate::client::{Http, Reply, Session, initialize, text, why};
use crate::support::{Daemon, PATIENCE, wait_until};

/// A server that takes so many MiB after its handshake.
fn hog(name: &str, mib: u64, more: &str) -> String {
    format!(
        "[servers.{name}]\ncommand = \"{}\"\nargs = [\"late\", \"legacy\", \"hog-memory\", \"{mib}\"]\n\
         scope = \"shared\"\nstop = {{ grace = \"200ms\" }}\n{more}\n",
        ostler_testkit::evil::path().display()
    )
}

/// A small server that starts on demand, and is not the same as another: two names of one thing share a process.
fn small(name: &str, more: &str) -> String {
    format!(
        "[servers.{name}]\ncommand = \"{}\"\nargs = [\"legacy\"]\nscope = \"shared\"\nstart = \"on-demand\"\n\
         env = {{ CALLED = \"{name}\" }}\n{more}\n",
        ostler_testkit::fake::path().display()
    )
}

/// Memory for one hog of 100 MiB and no more, measured often.
fn tight(limits: &str) -> String {
    format!("[metrics]\ninterval = \"100ms\"\n[limits]\nmemory = \"100MiB\"\n{limits}\n")
}

fn message_of(daemon: &Daemon, kind: &str, subject: &str) -> Option<String> {
    let is_it = |event: &&Value| event["kind"] == kind && event["subject"] == subject;
    daemon.events().iter().find(is_it).and_then(|event| Some(event["message"].as_str()?.to_owned()))
}

/// Waits for such an event, and gives its message.
fn told(daemon: &Daemon, kind: &str, subject: &str) -> String {
    let mut message = None;
    wait_until(&format!("`{kind}` of {subject} is told"), || {
        message = message_of(daemon, kind, subject);
        message.is_some()
    });
    message.expect("it was told")
}

fn level(daemon: &Daemon, gauge: &str) -> String {
    let status = daemon.status();
    let gauges = status["gauges"].as_array().expect("gauges");
    let found =
        gauges.iter().find(|one| one["name"] == gauge).unwrap_or_else(|| panic!("no {gauge}: {status}"));
    found["level"].as_str().expect("a word").to_owned()
}

/// Is refused a session, and says how.
async fn refused(http: &std::sync::Arc<Http>, server: &str) -> String {
    let reply = try_to_open(http, server).await;
    assert_eq!(reply.status, 503);
    why(&reply.answer().await).to_owned()
}

/// Asks until it has a session: who was refused before may have had room made already.
async fn asked_until_let_in(http: &std::sync::Arc<Http>, server: &str) -> Session {
    let began = std::time::Instant::now();
    while try_to_open(http, server).await.status != 200 {
        assert!(began.elapsed() < PATIENCE, "there was never room for `{server}`");
        tokio::task::yield_now().await;
    }
    Session::open(http, server).await
}

async fn try_to_open(http: &std::sync::Arc<Http>, server: &str) -> Reply {
    http.post(server, &[], &initialize()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_uses_makes_room_and_comes_back_when_it_is_asked_for() {
    let daemon = Daemon::start(&(tight("") + &small("used", "") + &hog("big", 120, "")), &[]);
    let http = Http::new(daemon.address());
    let session = Session::open(&http, "used").await;
    let relief = told(&daemon, "relief", "big.1");
    assert!(
        relief.starts_with("to make room: stop the unused instance big.1 (")
            && relief.contains("of 100 MiB (limits.memory)"),
        "{relief}"
    );
    let pressure = told(&daemon, "pressure", "daemon");
    assert!(
        pressure.contains(": all instances together use ") && pressure.contains("of 100 MiB"),
        "{pressure}"
    );
    daemon.wait_row("big", "it is gone", |row| row["generation"] == 0);
    wait_until("there is room again", || level(&daemon, "limits.memory") == "normal");
    let answer = session.call(1, "echo", &json!({"text": "undisturbed"})).await;
    assert_eq!(text(&answer), "undisturbed");
    // It was nobody's fault: whoever wants it gets it.
    let again = Session::open(&http, "big").await;
    assert_eq!(again.call(1, "echo", &json!({"message": "back"})).await["result"]["isError"], false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_not_be_stopped_stays_and_others_are_refused_with_the_figures() {
    let config = tight("") + &small("other", "") + &hog("big", 120, "required = true");
    let daemon = Daemon::start(&config, &[]);
    let http = Http::new(daemon.address());
    wait_until("memory is short", || level(&daemon, "limits.memory") == "critical");
    let refusal = try_to_open(&http, "other").await;
    assert_eq!(refusal.status, 503);
    assert_eq!(refusal.header("retry-after"), Some("10"));
    let refusal = refusal.answer().await;
    assert!(
        why(&refusal).contains("all instances together use ")
            && why(&refusal).contains("MiB of 100 MiB (limits.memory)"),
        "{refusal}"
    );
    let spawn = daemon.cli(&["spawn", "--", "sleep", "1000"]);
    assert!(!spawn.status.success() && err(&spawn).contains("limits.memory"), "{}", err(&spawn));
    let short = told(&daemon, "relief", "daemon");
    assert!(short.contains(" more would be needed; "), "{short}");
    let alerts = json_of(&daemon, &["alerts", "--json"]);
    let alert = alerts.as_array().expect("an array").iter().find(|alert| alert["kind"] == "memory-pressure");
    assert_eq!(alert.expect("raised")["subject"], "limits.memory", "{alerts}");
    assert_eq!(message_of(&daemon, "relief", "big.1"), None, "it is required");

    done(&daemon, &["stop", "big"]);
    wait_until("there is room again", || level(&daemon, "limits.memory") == "normal");
    assert!(!json_of(&daemon, &["alerts", "--json"]).to_string().contains("memory-pressure"));
    Session::open(&http, "other").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_an_emergency_what_is_used_is_stopped_and_its_clients_begin_anew() {
    let config = tight("emergency = true") + &hog("big", 120, "start = \"on-demand\"");
    let daemon = Daemon::start(&config, &[]);
    let session = Session::open(&Http::new(daemon.address()), "big").await;
    let relief = told(&daemon, "relief", "big.1");
    assert!(relief.contains("emergency: stop the instance that sessions hold, big.1 ("), "{relief}");
    daemon.wait_row("big", "it is gone", |row| row["generation"] == 0);
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
    assert_eq!(session.send(&call).await.status, 404, "which tells a client to begin anew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_emergency_what_is_used_is_left_alone() {
    let config = tight("") + &hog("big", 120, "start = \"on-demand\"");
    let daemon = Daemon::start(&config, &[]);
    let session = Session::open(&Http::new(daemon.address()), "big").await;
    let short = told(&daemon, "relief", "daemon");
    assert!(short.contains("what is left is in use: ") && short.contains("limits.emergency"), "{short}");
    assert_eq!(text(&session.call(1, "echo", &json!({"message": "still here"})).await), "still here");
    assert_eq!(message_of(&daemon, "relief", "big.1"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_nobody_uses_is_given_to_whoever_asks_again() {
    let limits = "[limits]\nprocesses = 3\nper_type = 1\n";
    let of_x = ["a", "b"].map(|name| small(name, "type = \"x\"")).concat();
    let config = limits.to_owned() + &of_x + &["c", "d", "e"].map(|name| small(name, "")).concat();
    let daemon = Daemon::start(&config, &[]);
    let http = Http::new(daemon.address());
    let (first, held) = (Session::open(&http, "a").await, Session::open(&http, "c").await);
    let refusal = refused(&http, "b").await;
    assert!(
        refusal.contains("1 instances of type `x` exist already, 1 are allowed (limits.per_type)"),
        "{refusal}"
    );
    assert_eq!(message_of(&daemon, "relief", "a.1"), None, "it is in use");
    assert_eq!(first.end().await, 200);
    let used = asked_until_let_in(&http, "b").await;
    let relief = told(&daemon, "relief", "a.1");
    assert!(relief.ends_with(": another instance of type `x` was asked for (limits.per_type)"), "{relief}");

    let idle = Session::open(&http, "d").await;
    let refusal = refused(&http, "e").await;
    assert!(refusal.contains("3 instances exist already, 3 are allowed (limits.processes)"), "{refusal}");
    assert_eq!(message_of(&daemon, "relief", "d.1"), None, "all are in use");
    assert_eq!(idle.end().await, 200);
    asked_until_let_in(&http, "e").await;
    let relief = told(&daemon, "relief", "d.1");
    assert!(relief.ends_with(": another instance was asked for (limits.processes)"), "{relief}");
    for (session, server) in [(used, "b"), (held, "c")] {
        assert_eq!(text(&session.call(1, "echo", &json!({"text": server})).await), server);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_again_while_a_place_is_coming_stops_nobody_else() {
    // They take their time to end.
    let slow = |name: &str| {
        format!(
            "[servers.{name}]\ncommand = \"{}\"\nargs = [\"legacy\", \"ignore-eof\"]\nscope = \"shared\"\n\
             start = \"on-demand\"\nenv = {{ CALLED = \"{name}\" }}\nstop = {{ grace = \"500ms\" }}\n",
            ostler_testkit::evil::path().display()
        )
    };
    let idle = ["a", "b", "c"];
    let config = "[limits]\nprocesses = 3\n".to_owned() + &idle.map(slow).concat() + &small("new", "");
    let daemon = Daemon::start(&config, &[]);
    let http = Http::new(daemon.address());
    for name in idle {
        let session = Session::open(&http, name).await;
        assert_eq!(session.end().await, 200);
    }
    asked_until_let_in(&http, "new").await;
    let relieved = daemon.events().iter().filter(|event| event["kind"] == "relief").count();
    assert_eq!(relieved, 1, "{:#?}", daemon.events());
}

#[test]
fn memory_above_the_warning_is_an_ailment_and_an_alert() {
    let config = "[metrics]\ninterval = \"100ms\"\n".to_owned()
        + &hog("big", 60, "limits = { memory_warning = \"40MiB\", memory = \"1GiB\" }");
    let daemon = Daemon::start(&config, &[]);
    let row = daemon.wait_row("big", "it is not well", |row| row["state"] == "degraded");
    let reason = row["reason"].as_str().expect("a reason");
    assert!(
        reason.starts_with("it uses ") && reason.ends_with("(limits.memory_warning: 40 MiB)"),
        "{reason}"
    );
    let alerts = json_of(&daemon, &["alerts", "--json"]);
    assert_eq!(
        (&alerts[0]["kind"], &alerts[0]["subject"]),
        (&json!("resource-violation"), &json!("big.1")),
        "{alerts}"
    );
    let status = done(&daemon, &["status", "big.1"]);
    assert!(status.contains("limit memory") && status.contains("of 1.0G ("), "{status}");
    assert!(row["pss_bytes"].as_u64() > Some(40 << 20) && row["fds"].as_u64() > Some(2), "{row}");
    assert_eq!(row["generation"], 1, "it is warned of and not ended: {row}");
}
