//! Modern sessions: found by keys, each with instances of its own.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::TcpStream;
use std::sync::Arc;

use hyper::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::cli::{done, over_socket};
use crate::client::{Http, JSON, MODERN, Reply, Session, modern, text, tool_call, why};
use crate::support::{Daemon, PATIENCE, wait_until};

fn daemon(more: &str) -> Daemon {
    let fake = ostler_testkit::fake::path();
    let config = format!(
        "[servers.fake]\ncommand = \"{}\"\nargs = [\"modern\"]\nscope = \"session\"\n{more}",
        fake.display()
    );
    Daemon::start(&config, &[])
}

/// Calls `echo` at this path with this header.
async fn echo(http: &Arc<Http>, path: &str, header: Option<(&str, &str)>) -> Reply {
    let request = modern(tool_call(1, "echo", &json!({"text": "hello"})));
    let mut headers = JSON.to_vec();
    headers.extend([("mcp-protocol-version", MODERN), ("mcp-method", "tools/call"), ("mcp-name", "echo")]);
    headers.extend(header);
    http.send(Method::POST, path, &headers, request.to_string()).await
}

async fn echoed(http: &Arc<Http>, path: &str, header: Option<(&str, &str)>) {
    let answer = echo(http, path, header).await.answer().await;
    assert_eq!(text(&answer), "hello", "{answer}");
}

fn owners(daemon: &Daemon) -> BTreeSet<String> {
    let rows = daemon.ps();
    let ready = rows.iter().filter(|row| row["state"] == "ready");
    ready.map(|row| row["owner"].as_str().expect("an owner").to_owned()).collect()
}

fn api(daemon: &Daemon, method: &str, path: &str, body: &str) -> (u16, Value) {
    let (status, answer) = over_socket(daemon, method, path, body);
    (status, serde_json::from_str(&answer).unwrap_or(Value::Null))
}

/// One connection, four conversations: by header, by path, by cookie, and without a key.
#[tokio::test]
async fn conversations_are_told_apart_by_their_keys_alone() {
    let daemon = daemon("");
    let http = Http::new(daemon.address());
    for _ in 0..2 {
        echoed(&http, "/mcp/fake", Some(("ostler-session", "one"))).await;
        echoed(&http, "/mcp/fake/s/two", None).await;
        echoed(&http, "/mcp/fake", Some(("cookie", "x=y; ostler_session=three"))).await;
        echoed(&http, "/mcp/fake", None).await;
    }
    assert_eq!(daemon.ps().len(), 4, "a process for each, used again: {:?}", daemon.ps());
    assert_eq!(owners(&daemon).len(), 4);
    // By whichever way the key comes, it is the same session.
    echoed(&http, "/mcp/fake/s/one", None).await;
    assert_eq!(daemon.ps().len(), 4);
    let (_, sessions) = api(&daemon, "GET", "/api/v1/sessions", "");
    let ids: Vec<&Value> = sessions.as_array().expect("an array").iter().map(|one| &one["id"]).collect();
    assert_eq!(ids.len(), 4, "{sessions}");
    let (status, _) =
        api(&daemon, "DELETE", &format!("/api/v1/sessions/{}", ids[0].as_str().expect("text")), "");
    assert_eq!(status, 204);
    wait_until("its process is gone with it", || daemon.ps().len() == 3);
}

#[tokio::test]
async fn a_handle_is_made_used_and_ends() {
    let daemon = daemon("");
    let http = Http::new(daemon.address());
    let (status, opened) = api(&daemon, "POST", "/api/v1/sessions", "{}");
    let key = opened["key"].as_str().expect("a key");
    assert!(status == 200 && key.starts_with("ses_") && key.len() == 36, "{opened}");
    echoed(&http, "/mcp/fake", Some(("ostler-session", key))).await;
    let owner = format!("session {}", opened["id"].as_str().expect("an id"));
    assert_eq!(owners(&daemon), BTreeSet::from([owner]));
    let path = format!("/api/v1/sessions/{}", opened["id"].as_str().expect("an id"));
    assert_eq!(api(&daemon, "DELETE", &path, "").0, 204);
    for gone in [key, &format!("ses_{:032x}", 7)] {
        let mut reply = echo(&http, "/mcp/fake", Some(("ostler-session", gone))).await;
        assert_eq!(reply.status, 404);
        let answer = reply.next().await.expect("an answer");
        assert!(why(&answer).starts_with("no such session: it ended"), "{answer}");
    }
    wait_until("nothing is left of it", || daemon.ps().iter().all(|row| row["pid"].is_null()));
}

#[tokio::test]
async fn what_is_no_key_is_refused_and_nothing_is_opened() {
    let daemon = daemon("");
    let http = Http::new(daemon.address());
    for (path, header) in [("/mcp/fake/s/a%20b", None), ("/mcp/fake", Some(("ostler-session", "a b")))] {
        let mut reply = echo(&http, path, header).await;
        assert_eq!(reply.status, 400);
        let answer = reply.next().await.expect("an answer");
        assert!(why(&answer).contains("1 to 128 visible ASCII characters"), "{answer}");
    }
    assert_eq!(daemon.status()["sessions"], 0);
}

/// Two calls of a session at the same time start one instance.
#[tokio::test]
async fn a_session_has_one_instance_however_many_ask() {
    let daemon = daemon("");
    let http = Http::new(daemon.address());
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let http = Arc::clone(&http);
            tokio::spawn(async move { echoed(&http, "/mcp/fake/s/one", None).await })
        })
        .collect();
    for call in calls {
        call.await.expect("it is answered");
    }
    assert_eq!(daemon.ps().len(), 1, "{:?}", daemon.ps());
}

fn viewer(pool: &str) -> String {
    let first = 40_000 + u16::try_from(std::process::id() % 20).expect("small") * 100;
    let fake = ostler_testkit::fake::path();
    format!(
        "[ports]\nrange = \"{first}-{}\"\n[servers.viewer]\ncommand = \"{}\"\nargs = [\"listen\", \"{{port.main}}\"]\n\
         transport = \"socket\"\nscope = \"session\"\nports = {{ main = \"auto\" }}\n{pool}\n\
         restart = {{ backoff = {{ min = \"10ms\" }} }}\n",
        first + 99,
        fake.display()
    )
}

/// Who answers on a port: the fake server says its process id.
fn said_at(port: &Value) -> Option<u64> {
    let port = u16::try_from(port.as_u64()?).ok()?;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut said = String::new();
    stream.read_to_string(&mut said).ok()?;
    said.trim().parse().ok()
}

/// A process and a port for each session, of a server that speaks no MCP.
#[test]
fn a_session_has_a_process_and_a_port_of_its_own() {
    for pool in ["", "pool = { spare = 1, max = 4 }"] {
        let daemon = daemon(&viewer(pool));
        let open = |key: &str| {
            let (_, opened) = api(&daemon, "POST", "/api/v1/sessions", &json!({"key": key}).to_string());
            format!("/api/v1/sessions/{}/instances/viewer", opened["id"].as_str().expect("an id"))
        };
        let (one, two) = (open("one"), open("two"));
        let (status, first) = api(&daemon, "POST", &one, "");
        assert_eq!(status, 200, "{first}");
        let (_, second) = api(&daemon, "POST", &two, "");
        assert_ne!(first["ports"], second["ports"]);
        assert_eq!(said_at(&first["ports"]["main"]), first["pid"].as_u64(), "{first}");
        assert_eq!(said_at(&second["ports"]["main"]), second["pid"].as_u64(), "{second}");
        assert_eq!(api(&daemon, "POST", &one, "").1, first, "it is the session's until it ends");
        assert_eq!(first["fence"].is_u64(), !pool.is_empty());

        // Its end is its session's alone, and it comes back on another port.
        let pid = Pid::from_raw(first["pid"].as_i64().expect("a pid") as i32).expect("a pid");
        kill_process(pid, Signal::KILL).expect("it runs");
        let mut again = Value::Null;
        wait_until("it is back", || {
            again = api(&daemon, "POST", &one, "").1;
            // A port may be another's by then: it tries again on the next, as it may have done the first time.
            again["generation"].as_u64() > first["generation"].as_u64()
        });
        assert_ne!(again["ports"], first["ports"]);
        assert_eq!(api(&daemon, "POST", &two, "").1, second);

        assert_eq!(api(&daemon, "DELETE", &one, "").0, 204);
        assert_eq!(api(&daemon, "DELETE", &one, "").0, 404);
        wait_until("what was given up is gone", || said_at(&again["ports"]["main"]) != again["pid"].as_u64());
    }
}

#[test]
fn what_is_shared_is_no_sessions_own() {
    let fake = ostler_testkit::fake::path();
    let shared =
        format!("[servers.all]\ncommand = \"{}\"\nargs = [\"legacy\"]\nscope = \"shared\"\n", fake.display());
    let daemon = daemon(&shared);
    let (_, opened) = api(&daemon, "POST", "/api/v1/sessions", "{}");
    let path = format!("/api/v1/sessions/{}/instances/all", opened["id"].as_str().expect("an id"));
    let (status, answer) = api(&daemon, "POST", &path, "");
    assert_eq!(status, 503);
    let error = answer["error"].as_str().expect("an error");
    assert!(error.contains("its scope is `shared`, not `session`"), "{answer}");
}

/// A shared server learns which session a call is of, in both eras, and where to ask for what that has.
#[tokio::test]
async fn a_server_that_asks_for_it_is_told_the_session() {
    let fake = ostler_testkit::fake::path();
    let told = |name: &str| {
        format!(
            "[servers.{name}]\ncommand = \"{}\"\nargs = [\"{name}\"]\nscope = \"shared\"\ntell_session = true\n",
            fake.display()
        )
    };
    let says = "[servers.says]\ncommand = \"sh\"\nargs = [\"-c\", \"echo at $OSTLER_SOCKET; exec sleep 1000\"]\n\
         transport = \"none\"\nscope = \"shared\"\ntell_session = true\n";
    let daemon = daemon(&(told("legacy") + &told("modern") + says));
    let http = Http::new(daemon.address());
    let named = |answer: &Value| {
        let meta: Value = serde_json::from_str(text(answer)).expect("JSON");
        meta["io.ostler/session"].as_str().unwrap_or_else(|| panic!("no session: {meta}")).to_owned()
    };
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        let session = Session::open(&http, "legacy").await;
        seen.insert(named(&session.call(1, "meta", &json!({})).await));
    }
    for key in ["one", "two"] {
        let request = modern(tool_call(1, "meta", &json!({})));
        let mut headers = JSON.to_vec();
        headers.extend([
            ("mcp-protocol-version", MODERN),
            ("mcp-method", "tools/call"),
            ("mcp-name", "meta"),
        ]);
        let path = format!("/mcp/modern/s/{key}");
        let reply = http.send(Method::POST, &path, &headers, request.to_string()).await;
        seen.insert(named(&reply.answer().await));
    }
    let (_, sessions) = api(&daemon, "GET", "/api/v1/sessions", "");
    let ids =
        sessions.as_array().expect("an array").iter().map(|one| one["id"].as_str().expect("text").to_owned());
    assert_eq!(seen, ids.collect::<BTreeSet<_>>());
    let socket = format!("at {}", daemon.socket().display());
    wait_until("it says where the daemon is", || done(&daemon, &["logs", "says"]).contains(&socket));
}
