//! How sessions end, what they leave, and what of them outlives the daemon.

use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cli::{done, over_socket};
use crate::client::{Http, JSON, LEGACY, MODERN, Reply, Session, initialize, modern, text, tool_call, why};
use crate::support::{Daemon, PATIENCE, wait_until};

/// A server with an instance for each session.
fn server(name: &str, era: &str, more: &str) -> String {
    let fake = ostler_testkit::fake::path();
    format!(
        "[servers.{name}]\ncommand = \"{}\"\nargs = [\"{era}\"]\nscope = \"session\"\n{more}\n",
        fake.display()
    )
}

fn api(daemon: &Daemon, method: &str, path: &str, body: &str) -> (u16, Value) {
    let (status, answer) = over_socket(daemon, method, path, body);
    (status, serde_json::from_str(&answer).unwrap_or(Value::Null))
}

fn sessions(daemon: &Daemon) -> Vec<Value> {
    api(daemon, "GET", "/api/v1/sessions", "").1.as_array().expect("an array").clone()
}

/// The session of this name.
fn named(daemon: &Daemon, name: &str) -> Option<Value> {
    sessions(daemon).into_iter().find(|session| session["client"] == name)
}

fn headers<'a>(tool: &'a str, key: &'a str) -> Vec<(&'static str, &'a str)> {
    let mut headers = JSON.to_vec();
    headers.extend([("mcp-protocol-version", MODERN), ("mcp-method", "tools/call")]);
    headers.extend([("mcp-name", tool), ("ostler-session", key)]);
    headers
}

/// Calls a tool in the session of this key.
async fn call(http: &Arc<Http>, server: &str, key: &str, tool: &str, arguments: &Value) -> Reply {
    let request = modern(tool_call(1, tool, arguments));
    http.send(Method::POST, &format!("/mcp/{server}"), &headers(tool, key), request.to_string()).await
}

async fn echoed(http: &Arc<Http>, server: &str, key: &str) {
    let answer = call(http, server, key, "echo", &json!({"text": "hello"})).await.answer().await;
    assert_eq!(text(&answer), "hello", "{answer}");
}

/// What a call is refused with: status, how long to wait, and why.
async fn refused(http: &Arc<Http>, server: &str, key: &str) -> (u16, Option<String>, String) {
    let mut reply = call(http, server, key, "echo", &json!({"text": "hello"})).await;
    let (status, later) = (reply.status, reply.header("retry-after").map(str::to_owned));
    let answer = reply.rest().await.pop().expect("an answer");
    (status, later, why(&answer).to_owned())
}

/// Whose the instances are that serve, and their pids.
fn serving(daemon: &Daemon) -> Vec<(String, i64)> {
    let rows = daemon.ps();
    let ready = rows.iter().filter(|row| row["state"] == "ready");
    let mut found: Vec<_> = ready
        .map(|row| (row["owner"].as_str().expect("an owner").to_owned(), row["pid"].as_i64().expect("a pid")))
        .collect();
    found.sort();
    found
}

/// Waits until `done` says so, while the tasks of this thread go on.
async fn meanwhile(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn is_gone(pid: i64) -> bool {
    !std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn instances_for_one_session_each_are_bounded_and_a_pool_bounds_its_own() {
    let config = "[limits]\nsession_instances = 1\n".to_owned()
        + &server("fake", "modern", "")
        + &server("pooled", "modern", "pool = { spare = 0, max = 2 }");
    let daemon = Daemon::start(&config, &[]);
    let http = Http::new(daemon.address());
    echoed(&http, "fake", "one").await;
    let (status, later, why) = refused(&http, "fake", "two").await;
    assert_eq!((status, later.is_some()), (503, true));
    assert!(
        why.starts_with(
            "1 sessions have an instance of `fake` for themselves already (limits.session_instances)"
        ),
        "{why}"
    );
    assert_eq!(daemon.status()["counters"]["limits.session_instances"], 1);
    echoed(&http, "pooled", "one").await;
    echoed(&http, "pooled", "two").await;
    echoed(&http, "fake", "one").await;
    done(
        &daemon,
        &["sessions", "rm", named(&daemon, "one").expect("it is there")["id"].as_str().expect("an id")],
    );
    wait_until("its instance is gone, and with it what counted", || {
        daemon.ps().iter().all(|row| row["server"] != "fake" || row["pid"].is_null())
    });
    echoed(&http, "fake", "two").await;
}

/// A session that is not isolated, and those that get no instance for themselves, use their principal's.
#[tokio::test]
async fn what_sessions_share_is_told_and_stays_so() {
    let config = "[limits]\nsession_instances = 1\n".to_owned()
        + &server("fake", "modern", "fallback = \"shared\"")
        + &server("old", "legacy", "fallback = \"shared\"");
    let daemon = Daemon::start(&config, &[]);
    let http = Http::new(daemon.address());
    let (status, open) = api(&daemon, "POST", "/api/v1/sessions", r#"{"key":"open","isolated":false}"#);
    assert_eq!(status, 200, "{open}");
    let (status, answer) = api(&daemon, "POST", "/api/v1/sessions", r#"{"key":"open","isolated":true}"#);
    assert_eq!(status, 409, "{answer}");
    echoed(&http, "fake", "open").await;
    let [(shared, pid)] = &serving(&daemon)[..] else { panic!("{:?}", daemon.ps()) };
    assert!(!shared.starts_with("session"), "{shared}");
    let path = format!("/api/v1/sessions/{}/instances/fake", open["id"].as_str().expect("an id"));
    let (status, answer) = api(&daemon, "POST", &path, "");
    assert!(status == 503 && answer["error"].as_str().expect("why").contains("not isolated"), "{answer}");

    echoed(&http, "fake", "one").await;
    for _ in 0..2 {
        echoed(&http, "fake", "two").await;
    }
    assert_eq!(serving(&daemon).len(), 2, "its own, and the shared one: {:?}", daemon.ps());
    let views = ["open", "one", "two"].map(|name| named(&daemon, name).expect("it is there"));
    assert_eq!(views.each_ref().map(|view| view["isolated"] == true), [false, true, true]);
    assert_eq!(views.each_ref().map(|view| view["shares"].clone()), [json!([]), json!([]), json!(["fake"])]);
    assert_eq!(views[1]["instances"][0]["own"], true, "{}", views[1]);
    assert!(serving(&daemon).iter().any(|(_, own)| views[1]["instances"][0]["pid"] == *own && own != pid));
    let told = || daemon.events().into_iter().filter(|event| event["kind"] == "session-shares").count();
    assert_eq!(told(), 1, "once, and not with each call");
    // What is free again is not what it used so far.
    done(&daemon, &["sessions", "rm", views[1]["id"].as_str().expect("an id")]);
    wait_until("it is gone", || serving(&daemon).len() == 1);
    echoed(&http, "fake", "two").await;
    assert_eq!(serving(&daemon).len(), 1);

    let (own, second) = (Session::open(&http, "old").await, Session::open(&http, "old").await);
    for session in [&own, &second] {
        assert_eq!(text(&session.call(1, "echo", &json!({"text": "x"})).await), "x");
    }
    assert_eq!(told(), 2);
}

#[tokio::test]
async fn one_that_is_ended_takes_no_calls_and_finishes_those_it_has() {
    let config = "[sessions]\ngrace = \"60s\"\n".to_owned() + &server("fake", "modern", "");
    let daemon = Daemon::start(&config, &[]);
    let http = Http::new(daemon.address());
    let (_, opened) = api(&daemon, "POST", "/api/v1/sessions", "{}");
    let handle = opened["key"].as_str().expect("a key").to_owned();
    let mut ids = Vec::new();
    let mut running = Vec::new();
    for key in ["one", &handle] {
        let (http, key) = (Arc::clone(&http), key.to_owned());
        echoed(&http, "fake", &key).await;
        let arguments = json!({"ms": 1500, "tag": "t"});
        running.push(tokio::spawn(async move {
            call(&http, "fake", &key, "sleep", &arguments).await.answer().await
        }));
    }
    let busy = || sessions(&daemon).into_iter().filter(|session| session["calls"] == 1).collect::<Vec<_>>();
    meanwhile("both calls run", || busy().len() == 2).await;
    let seen = busy();
    for session in &seen {
        let id = session["id"].as_str().expect("an id").to_owned();
        let (status, view) = api(&daemon, "DELETE", &format!("/api/v1/sessions/{id}"), "");
        assert_eq!((status, &view["state"], &view["calls"]), (202, &json!("draining"), &json!(1)), "{view}");
        assert!(view["cut_in_ms"].as_u64().expect("a time") <= 60_000);
        ids.push(id);
    }
    assert!(done(&daemon, &["sessions", "rm", &ids[0]]).contains("is ending: it takes no new calls"));
    let (status, later, why) = refused(&http, "fake", "one").await;
    assert_eq!((status, later.as_deref()), (503, Some("1")), "{why}");
    assert!(why.contains("this session is ending and takes no new calls: a person ended it"), "{why}");
    assert_eq!(refused(&http, "fake", &handle).await.0, 404, "a handle does not come back");
    for call in running {
        let answer = call.await.expect("it ends");
        assert!(answer["result"].is_object(), "it was not cut: {answer}");
    }
    wait_until("they are over", || sessions(&daemon).is_empty());
    wait_until("and what they had", || daemon.ps().iter().all(|row| row["pid"].is_null()));
    let (_, _, why) = refused(&http, "fake", &handle).await;
    assert_eq!(why, "no such session: it ended, because a person ended it");
}

#[tokio::test]
async fn what_runs_when_the_grace_is_over_is_cut() {
    let config =
        "[sessions]\ngrace = \"200ms\"\n".to_owned() + &server("fake", "modern", "stop = { drain = \"0s\" }");
    let daemon = Daemon::start(&config, &[]);
    let http = Http::new(daemon.address());
    echoed(&http, "fake", "one").await;
    let running = tokio::spawn({
        let http = Arc::clone(&http);
        async move {
            call(&http, "fake", "one", "sleep", &json!({"ms": 600_000, "tag": "t"})).await.answer().await
        }
    });
    meanwhile("it runs", || named(&daemon, "one").is_some_and(|session| session["calls"] == 1)).await;
    let id = named(&daemon, "one").expect("it is there")["id"].as_str().expect("an id").to_owned();
    assert_eq!(api(&daemon, "DELETE", &format!("/api/v1/sessions/{id}"), "").0, 202);
    let answer = running.await.expect("it ends");
    assert!(why(&answer).contains("session ended"), "{answer}");
    wait_until("nothing is left", || daemon.ps().iter().all(|row| row["pid"].is_null()));
}

/// By `ostler down` and by SIGKILL: a handle opens the same session, whose process is another.
#[tokio::test]
async fn a_handle_outlives_the_daemon() {
    let config = server("fake", "modern", "") + &server("old", "legacy", "");
    let mut daemon = Daemon::start(&config, &[]);
    let (_, opened) = api(&daemon, "POST", "/api/v1/sessions", "{}");
    let (id, handle) = (opened["id"].clone(), opened["key"].as_str().expect("a key").to_owned());
    let http = Http::new(daemon.address());
    echoed(&http, "fake", &handle).await;
    echoed(&http, "fake", "by-its-name").await;
    let legacy = Session::open(&http, "old").await;
    let database = |daemon: &Daemon| {
        let files = ["ostler.db", "ostler.db-wal"].map(|name| std::fs::read(daemon.state_dir().join(name)));
        files.into_iter().flat_map(Result::unwrap_or_default).collect::<Vec<u8>>()
    };
    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    for (restart, by_signal) in [(1, true), (2, false)] {
        wait_until("it is written down", || has(&database(&daemon), "by-its-name"));
        if by_signal {
            daemon.signal(Signal::KILL);
        } else {
            done(&daemon, &["down"]);
        }
        daemon.wait();
        assert!(!has(&database(&daemon), &handle), "who reads the file cannot use the handle");
        daemon.start_again(&[]);
        let http = Http::new(daemon.address());
        let (_, view) = api(&daemon, "GET", &format!("/api/v1/sessions/{}", id.as_str().expect("an id")), "");
        assert_eq!((&view["restarts"], &view["instances"]), (&json!(restart), &json!([])), "{view}");
        echoed(&http, "fake", &handle).await;
        echoed(&http, "fake", "by-its-name").await;
        assert_eq!(sessions(&daemon).len(), 2, "no others: {:?}", sessions(&daemon));
        let owner = format!("session {}", id.as_str().expect("an id"));
        assert!(serving(&daemon).iter().any(|(name, _)| *name == owner), "{:?}", daemon.ps());
        let events = daemon.events();
        let told = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
        assert_eq!((told("sessions-taken-up"), told("session-renewed")), (1, 2), "{events:?}");
        if by_signal {
            let gone = Session { http: Arc::clone(&http), server: "old".to_owned(), id: legacy.id.clone() };
            assert_eq!(gone.send(&tool_call(1, "echo", &json!({"text": "x"}))).await.status, 404);
        }
    }
    let mode = |path: &std::path::Path| path.metadata().expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&daemon.state_dir()), 0o700);
    assert_eq!(mode(&daemon.state_dir().join("ostler.db")), 0o600);
}

#[tokio::test]
async fn one_that_was_silent_while_the_daemon_was_down_has_ended() {
    let config = |idle: &str| format!("[sessions]\nidle = \"{idle}\"\n") + &server("fake", "modern", "");
    let mut daemon = Daemon::start(&config("10m"), &[]);
    let (_, opened) = api(&daemon, "POST", "/api/v1/sessions", "{}");
    let handle = opened["key"].as_str().expect("a key").to_owned();
    done(&daemon, &["down"]);
    daemon.wait();
    daemon.rewrite(&config("1ms"));
    daemon.start_again(&[]);
    let (status, _, why) = refused(&Http::new(daemon.address()), "fake", &handle).await;
    assert_eq!(status, 404);
    assert!(why.contains("(sessions.idle), by the time the daemon was started again"), "{why}");
}

/// A client that sends a request, and may hang up.
struct Hasty(TcpStream);

impl Hasty {
    fn send(daemon: &Daemon, path: &str, headers: &[(&str, &str)], body: &Value) -> Self {
        let address = daemon.address();
        let mut stream = TcpStream::connect(&address).expect("the daemon listens");
        let body = body.to_string();
        let mut text =
            format!("POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{text}\r\n{body}").as_bytes()).expect("it is sent");
        Self(stream)
    }

    /// A modern call of a tool.
    fn call(daemon: &Daemon, server: &str, key: &str, tool: &str, arguments: &Value) -> Self {
        let request = modern(tool_call(1, tool, arguments));
        Self::send(daemon, &format!("/mcp/{server}"), &headers(tool, key), &request)
    }

    fn vanish(self) {
        drop(self.0);
    }
}

/// The process of a server that is on its way.
fn starting(daemon: &Daemon, server: &str) -> i64 {
    daemon.wait_row(server, "it starts", |row| row["state"] == "starting" && row["pid"].is_u64())["pid"]
        .as_i64()
        .expect("a pid")
}

/// The instance goes at once: its session would keep it for nobody.
#[test]
fn a_client_that_vanishes_while_its_instance_starts_leaves_no_process() {
    let silent = "[servers.silent]\ncommand = \"sleep\"\nargs = [\"1000\"]\nscope = \"session\"\n\
                  timeouts = { handshake = \"10m\" }\nstop = { grace = \"100ms\" }\n";
    let daemon = Daemon::start(silent, &[]);
    let echo = json!({"text": "hello"});
    for is_modern in [true, false] {
        let client = match is_modern {
            true => Hasty::call(&daemon, "silent", "one", "echo", &echo),
            false => Hasty::send(&daemon, "/mcp/silent", &JSON, &initialize()),
        };
        let pid = starting(&daemon, "silent");
        client.vanish();
        wait_until("nothing runs for it", || {
            is_gone(pid) && daemon.ps().iter().all(|row| row["pid"].is_null())
        });
    }
    // One of two that wait for the same instance: the other goes on waiting.
    let (first, second) = (
        Hasty::call(&daemon, "silent", "one", "echo", &echo),
        Hasty::call(&daemon, "silent", "one", "echo", &echo),
    );
    let pid = starting(&daemon, "silent");
    wait_until("both wait", || named(&daemon, "one").is_some_and(|session| session["calls"] == 2));
    first.vanish();
    wait_until("it is gone", || named(&daemon, "one").is_some_and(|session| session["calls"] == 1));
    assert!(!is_gone(pid), "somebody waits for it");
    second.vanish();
    wait_until("nothing runs for it", || is_gone(pid));
}

/// A modern call is cancelled at once; a legacy one goes on to its end, as its client may come back for the answer. Then
/// the session is silent, and what it had goes with it after `sessions.idle`.
#[test]
fn a_client_that_vanishes_while_a_call_runs_leaves_no_process() {
    let config = "[sessions]\nidle = \"1s\"\n".to_owned()
        + &server("new", "modern", "")
        + &server("old", "legacy", "");
    let daemon = Daemon::start(&config, &[]);
    let client = Hasty::call(&daemon, "new", "one", "sleep", &json!({"ms": 600_000, "tag": "t"}));
    wait_until("it runs", || {
        named(&daemon, "one").is_some_and(|session| session["calls"] == 1) && serving(&daemon).len() == 1
    });
    client.vanish();
    wait_until("it is cancelled", || named(&daemon, "one").is_none_or(|session| session["calls"] == 0));
    wait_until("nothing is left", || {
        sessions(&daemon).is_empty() && daemon.ps().iter().all(|row| row["pid"].is_null())
    });

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let session = runtime.block_on(async { Session::open(&Http::new(daemon.address()), "old").await });
    drop(runtime);
    let mut headers = JSON.to_vec();
    headers.extend([("mcp-session-id", session.id.as_str()), ("mcp-protocol-version", LEGACY)]);
    let request = tool_call(1, "sleep", &json!({"ms": 500, "tag": "t"}));
    let client = Hasty::send(&daemon, "/mcp/old", &headers, &request);
    wait_until("it runs", || sessions(&daemon).iter().any(|session| session["calls"] == 1));
    client.vanish();
    wait_until("nothing is left", || {
        sessions(&daemon).is_empty() && daemon.ps().iter().all(|row| row["pid"].is_null())
    });
}

/// Its place is another's at once, and it takes nothing.
#[tokio::test]
async fn a_client_that_vanishes_from_the_line_leaves_nothing() {
    let daemon = Daemon::start(&server("fake", "modern", "pool = { spare = 0, max = 1, wait = '10m' }"), &[]);
    let http = Http::new(daemon.address());
    echoed(&http, "fake", "one").await;
    let waiting = || api(&daemon, "GET", "/api/v1/servers/fake", "").1["pool"]["waiting"].as_u64();
    let client = Hasty::call(&daemon, "fake", "two", "echo", &json!({"text": "hello"}));
    wait_until("it waits in line", || waiting() == Some(1));
    client.vanish();
    wait_until("its place is free", || waiting() == Some(0));
    let id = named(&daemon, "one").expect("it is there")["id"].as_str().expect("an id").to_owned();
    assert_eq!(api(&daemon, "DELETE", &format!("/api/v1/sessions/{id}"), "").0, 204);
    wait_until("nobody has it", || serving(&daemon).iter().all(|(owner, _)| !owner.starts_with("session")));
    echoed(&http, "fake", "three").await;
}
