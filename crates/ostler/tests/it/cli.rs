//! The command line and the management API behind it, as scripts rely on them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use ostler_api::routes;
use serde_json::{Value, json};

use crate::client::{Http, Session, text};
use crate::support::{Daemon, PATIENCE, wait_until};

fn daemon() -> Daemon {
    daemon_with("")
}

/// The same, with further tables; `FAKE` in them is the fake server.
fn daemon_with(more: &str) -> Daemon {
    let fake = ostler_testkit::fake::path();
    let config = format!(
        "[servers.fake]\ncommand = \"{0}\"\nargs = [\"legacy\"]\nscope = \"shared\"\n\
         [servers.later]\ncommand = \"{0}\"\nargs = [\"legacy\"]\nstart = \"on-demand\"\n{1}",
        fake.display(),
        more.replace("FAKE", &fake.display().to_string())
    );
    let daemon = Daemon::start(&config, &[]);
    daemon.wait_row("fake", "it is ready", |row| row["state"] == "ready");
    daemon
}

/// `ostler ARGS` in directories where no daemon runs.
fn alone(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ostler"));
    command.env("OSTLER_RUNTIME_DIR", dir.join("run")).env("OSTLER_STATE_DIR", dir.join("state"));
    command.args(args).stdin(Stdio::null()).output().expect("ostler runs")
}

pub(crate) fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a command that must succeed; what it printed.
pub(crate) fn done(daemon: &Daemon, args: &[&str]) -> String {
    let output = daemon.cli(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", err(&output));
    out(&output)
}

pub(crate) fn json_of(daemon: &Daemon, args: &[&str]) -> Value {
    serde_json::from_str(&done(daemon, args)).expect("JSON")
}

pub(crate) fn alive(pid: &Value) -> bool {
    Path::new(&format!("/proc/{}", pid.as_u64().expect("a pid"))).exists()
}

#[test]
fn a_configuration_error_exits_2_and_starts_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("ostler.toml");
    let witness = dir.path().join("started");
    // The first server is sound: were anything started, it would leave its mark.
    let text = format!(
        "[servers.sound]\ncommand = \"touch\"\nargs = [\"{}\"]\n\n[servers.broken]\ncomand = \"x\"\n",
        witness.display()
    );
    std::fs::write(&file, text).expect("written");
    let file = file.to_str().expect("a plain path");
    for args in [["config", "check", file].as_slice(), &["up", file]] {
        let output = alone(dir.path(), args);
        let said = err(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains("ostler.toml:6:1"), "file, line and column: {said}");
        assert!(
            said.contains("comand") && said.contains("did you mean `command`"),
            "the nearest name: {said}"
        );
    }
    assert!(!witness.exists() && !dir.path().join("run").exists() && !dir.path().join("state").exists());
    std::fs::write(file, "[servers.sound]\ncommand = \"true\"\n").expect("written");
    assert_eq!(alone(dir.path(), &["config", "check", file]).status.code(), Some(0));
    assert_eq!(alone(dir.path(), &["no-such-verb"]).status.code(), Some(2));
}

#[test]
fn without_a_daemon_every_command_exits_3_and_says_what_to_do() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let commands: [&[&str]; 22] = [
        &["task", "submit", "shell-command", "--", "true"],
        &["task", "ls"],
        &["task", "wait", "t1-00000000"],
        &["task", "cancel", "b1-00000000"],
        &["pool"],
        &["pool", "--json"],
        &["projects"],
        &["projects", "set", "p", "--max-running", "1"],
        &["reload"],
        &["spawn", "true"],
        &["rm", "true"],
        &["ps"],
        &["ps", "--json"],
        &["status"],
        &["status", "fake"],
        &["start", "fake"],
        &["stop", "fake"],
        &["restart", "fake"],
        &["logs", "fake"],
        &["sessions"],
        &["events"],
        &["down"],
    ];
    for args in commands {
        let output = alone(dir.path(), args);
        assert_eq!(output.status.code(), Some(3), "{args:?}: {}", err(&output));
        assert_eq!(out(&output), "", "{args:?}");
        assert!(err(&output).contains("ostler up"), "{args:?}: {}", err(&output));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ps_has_every_field_scripts_rely_on() {
    let daemon = daemon();
    let _session = Session::open(&Http::new(daemon.address()), "fake").await;
    let row = daemon.wait_row("fake", "its session is counted", |row| row["sessions"] == 1);
    let texts = ["id", "server", "state", "scope", "owner"];
    let numbers =
        ["generation", "pid", "processes", "sessions", "restarts", "rss_bytes", "cpu_percent", "uptime_ms"];
    assert!(texts.iter().all(|name| row[name].is_string()), "{row}");
    assert!(numbers.iter().all(|name| row[name].is_number()), "{row}");
    assert!(row["ports"].is_object(), "{row}");
    let fields = ["id", "state", "scope", "owner", "generation", "restarts"].map(|name| row[name].clone());
    assert_eq!(fields, [json!("fake.1"), json!("ready"), json!("shared"), json!("all"), json!(1), json!(0)]);
    assert!(alive(&row["pid"]));
    // The guard counts as one of them.
    assert!(row["processes"].as_u64() >= Some(1) && row["rss_bytes"].as_u64() > Some(100_000), "{row}");
    let later = daemon.wait_row("later", "it is listed", |_| true);
    assert_eq!(
        (&later["id"], &later["state"], &later["pid"]),
        (&json!("later"), &json!("idle"), &Value::Null)
    );
    let table = done(&daemon, &["ps"]);
    assert!(table.contains("fake.1") && table.contains("later"), "{table}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_print_the_newest_lines_and_follow() {
    let daemon = daemon();
    let session = Session::open(&Http::new(daemon.address()), "fake").await;
    let say = async |what: &str| {
        assert_eq!(text(&session.call(what, "say", &json!({"text": what})).await), "said");
    };
    for what in ["one", "two", "three"] {
        say(what).await;
    }
    wait_until("the lines are there", || done(&daemon, &["logs", "fake"]).contains("three"));
    let newest = done(&daemon, &["logs", "fake.1", "-n", "2"]);
    let lines: Vec<_> = newest.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("two") && lines[1].contains("three"), "{newest}");
    let json = done(&daemon, &["logs", "fake", "-n", "1", "--json"]);
    let line: Value = serde_json::from_str(&json).expect("one object");
    assert_eq!(
        (&line["text"], &line["stream"], &line["instance"]),
        (&json!("three"), &json!("stderr"), &json!("fake.1"))
    );

    let mut command = daemon.ostler();
    command.args(["logs", "fake", "-f", "-n", "1"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut follower = command.spawn().expect("ostler runs");
    let stdout = follower.stdout.take().expect("piped");
    let (sender, heard) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let _ = sender.send(line.expect("text"));
        }
    });
    let next = || heard.recv_timeout(PATIENCE).expect("a line");
    assert!(next().contains("three"));
    for what in ["four", "five"] {
        say(what).await;
        let line = next();
        assert!(line.contains(what), "{line}");
    }
    follower.kill().expect("it runs");
    follower.wait().expect("it ends");
    reader.join().expect("it read");
    let unknown = daemon.cli(&["logs", "fkae"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(err(&unknown).contains("did you mean `fake`?"), "{}", err(&unknown));
}

#[test]
fn status_of_the_daemon_a_server_and_an_instance() {
    let daemon = daemon();
    let status = json_of(&daemon, &["status", "--json"]);
    assert_eq!(status["pid"], daemon.pid());
    assert_eq!(status["http"], format!("http://{}", daemon.address()));
    assert_eq!((&status["ready"], &status["sessions"]), (&json!(true), &json!(0)));
    let server = json_of(&daemon, &["status", "fake", "--json"]);
    assert_eq!((&server["name"], &server["instances"][0]["id"]), (&json!("fake"), &json!("fake.1")));
    assert_eq!(server["endpoint"], format!("http://{}/mcp/fake", daemon.address()));
    let instance = json_of(&daemon, &["status", "fake.1", "--json"]);
    assert_eq!((&instance["id"], &instance["state"]), (&json!("fake.1"), &json!("ready")));
    for args in [["status"].as_slice(), &["status", "fake"], &["status", "fake.1"]] {
        assert!(!done(&daemon, args).is_empty());
    }
    assert_eq!(daemon.cli(&["status", "nobody"]).status.code(), Some(1));
}

#[test]
fn start_stop_and_restart_return_when_it_is_done() {
    let daemon = daemon();
    let row = || daemon.wait_row("fake", "it is listed", |_| true);
    let (mut pid, mut generation) = (row()["pid"].clone(), 1);
    for id in ["fake", "fake.1"] {
        let said = done(&daemon, &["stop", id]);
        assert!(said.contains("no process of it is left"), "{said}");
        let stopped = row();
        assert_eq!(
            (&stopped["state"], &stopped["processes"], &stopped["pid"]),
            (&json!("stopped"), &json!(0), &Value::Null)
        );
        assert!(!alive(&pid));
        done(&daemon, &["start", id]);
        generation += 1;
        let started = row();
        assert_eq!(
            (&started["state"], &started["generation"]),
            (&json!("ready"), &json!(generation)),
            "{id}"
        );
        done(&daemon, &["restart", id]);
        generation += 1;
        let restarted = row();
        assert_eq!(
            (&restarted["state"], &restarted["generation"]),
            (&json!("ready"), &json!(generation)),
            "{id}"
        );
        assert!(!alive(&started["pid"]) && alive(&restarted["pid"]));
        pid = restarted["pid"].clone();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_listed_and_ended() {
    let daemon = daemon();
    let session = Session::open(&Http::new(daemon.address()), "fake").await;
    let listed = json_of(&daemon, &["sessions", "--json"]);
    assert_eq!((&listed[0]["server"], &listed[0]["client"]), (&json!("fake"), &json!("test 1")));
    assert!(!listed.to_string().contains(&session.id), "the secret is not shown");
    let id = listed[0]["id"].as_str().expect("an id");
    done(&daemon, &["sessions", "rm", id]);
    assert_eq!(json_of(&daemon, &["sessions", "--json"]), json!([]));
    assert_eq!(session.end().await, 404);
    assert_eq!(daemon.cli(&["sessions", "rm", id]).status.code(), Some(1));
    let kinds: Vec<Value> = daemon.events().iter().map(|event| event["kind"].clone()).collect();
    assert!(
        ["session-started", "session-ended"].iter().all(|kind| kinds.contains(&json!(kind))),
        "{kinds:?}"
    );
}

#[test]
fn one_daemon_a_directory_and_nothing_of_it_left_behind() {
    let mut daemon = daemon();
    let run = daemon.dir().join("run");
    let mode = |path: &Path| path.metadata().expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(&daemon.socket()), mode(&run)), (0o600, 0o700));
    let second = daemon.cli(&["up", daemon.dir().join("ostler.toml").to_str().expect("a plain path")]);
    assert_eq!(second.status.code(), Some(1), "{}", err(&second));
    assert!(err(&second).contains(&format!("(pid {})", daemon.pid())), "{}", err(&second));
    assert_eq!(daemon.ps().len(), 2, "the first goes on");
    let table = daemon.stdout();
    assert!(
        table.contains(&format!("http://{}/mcp/fake", daemon.address())),
        "the endpoints are told: {table}"
    );
    let pid = daemon.wait_row("fake", "it runs", |row| row["pid"].is_u64())["pid"].clone();
    done(&daemon, &["down"]);
    assert!(!alive(&pid));
    assert!(daemon.wait().success());
    assert!(!daemon.socket().exists() && !run.join("endpoint.json").exists());
    assert_eq!(daemon.cli(&["down"]).status.code(), Some(3));
}

// ---- the API itself -------------------------------------------------------------------------------------------

/// One request over the unix socket: status and body.
pub(crate) fn over_socket(daemon: &Daemon, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(daemon.socket()).expect("the socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: ostler\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.get(9..12).and_then(|status| status.parse().ok()).expect("a status");
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_is_described_and_answered() {
    let own = "[servers.own]\ncommand = \"FAKE\"\nargs = [\"modern\"]\nscope = \"session\"\n";
    let mut daemon = daemon_with(own);
    let _session = Session::open(&Http::new(daemon.address()), "fake").await;
    let session = json_of(&daemon, &["sessions", "--json"])[0]["id"].as_str().expect("an id").to_owned();
    let (status, document) = over_socket(&daemon, "GET", routes::OPENAPI.template, "");
    assert_eq!(status, 200);
    let document: Value = serde_json::from_str(&document).expect("JSON");
    let submit = |more: &[&str]| {
        let task = [&["task", "submit", "execute-code", "--code", "return 1"], more].concat();
        done(&daemon, &task).trim().to_owned()
    };
    let ended = submit(&[]);
    done(&daemon, &["task", "wait", &ended]);
    let (waiting, cancelled) = (submit(&["--delay", "1h"]), submit(&["--delay", "1h"]));
    done(&daemon, &["task", "cancel", &cancelled]);
    std::fs::write(daemon.dir().join("batch"), "{\"type\":\"execute-code\",\"payload\":{\"code\":\"\"}}\n")
        .expect("written");
    let file = daemon.dir().join("batch");
    let batch =
        done(&daemon, &["task", "submit", "--batch", file.to_str().expect("plain")]).trim().to_owned();
    let described = document["paths"].as_object().expect("paths");
    let operations: usize = described.values().filter_map(Value::as_object).map(|path| path.len()).sum();
    assert_eq!(operations, routes::ALL.len(), "each once, and no others");
    let (last, others): (Vec<_>, Vec<_>) =
        routes::ALL.iter().partition(|route| route.operation_id == routes::SHUTDOWN.operation_id);
    for route in others.into_iter().chain(last) {
        let operation = &described[route.template][route.method.as_str().to_lowercase()];
        assert_eq!(operation["operationId"], route.operation_id, "{}", route.template);
        let values: &[&str] = match route.template {
            template if template.contains("/sessions/{id}/instances/") => &[&session, "own"],
            template if template.contains("/servers/{") => &["fake"],
            template if template.contains("/instances/{") => &["fake.1"],
            template if template.contains("/sessions/{") => &[&session],
            template if template.contains("/processes/{") => &["job"],
            template if template.ends_with("/tasks/{id}/cancel") => &[&waiting],
            template if template.ends_with("/tasks/{id}/retry") => &[&cancelled],
            template if template.contains("/tasks/{") => &[&ended],
            template if template.contains("/batches/{") => &[&batch],
            template if template.contains("/projects/{") => &["p"],
            _ => &[],
        };
        let path = route.path(values);
        let body = match route.body {
            Some(_) if route.template.contains("/sessions") => "{}",
            Some(_) if route.template.ends_with("/tasks") => {
                r#"{"type":"execute-code","payload":{"code":""}}"#
            }
            Some(_) if route.template.ends_with("/batches") => {
                r#"{"tasks":[{"type":"execute-code","payload":{"code":""}}]}"#
            }
            Some(_) if route.template.ends_with("/project-limit") => r#"{"projectId":"p","limit":5}"#,
            Some(_) if route.template.ends_with("/limit") => r#"{"running":5}"#,
            Some(_) if route.template.ends_with("/run") => r#"{"calls":[{"server":"fake","tool":"echo"}]}"#,
            Some(_) => r#"{"name":"job","command":["sleep","1000"]}"#,
            None => "",
        };
        let (status, body) = over_socket(&daemon, route.method.as_str(), &path, body);
        assert!((200..300).contains(&status), "{} {path}: {status} {body}", route.method);
    }
    assert!(daemon.wait().success(), "the last of them ended it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_network_there_is_health_and_no_management() {
    let daemon = daemon();
    let http = Http::new(daemon.address());
    let status = async |method: Method, path: &str| http.send(method, path, &[], "").await.status;
    for route in routes::ALL {
        let path = route.path(&["fake", "fake"][..route.template.matches('{').count()]);
        assert_eq!(status(route.method.clone(), &path).await, 403, "{path}");
    }
    assert_eq!(daemon.ps().len(), 2, "nothing of it was done");
    assert_eq!(status(Method::GET, "/healthz").await, 200);
    assert_eq!(status(Method::GET, "/readyz").await, 200);
    assert_eq!(status(Method::GET, "/nothing").await, 404);
    assert_eq!(over_socket(&daemon, "GET", "/healthz", "").0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readyz_waits_for_required_servers() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let gate = dir.path().join("gate");
    // A server that answers nothing until the gate is there.
    let script = format!(
        "while [ ! -e '{}' ]; do sleep 0.05; done; exec '{}' legacy",
        gate.display(),
        ostler_testkit::fake::path().display()
    );
    let config =
        format!("[servers.slow]\ncommand = \"sh\"\nargs = [\"-c\", \"{script}\"]\nrequired = true\n");
    let daemon = Daemon::start(&config, &[]);
    let http = Http::new(daemon.address());
    let ready = async |http: Arc<Http>| http.send(Method::GET, "/readyz", &[], "").await.status;
    assert_eq!(ready(Arc::clone(&http)).await, 503);
    assert_eq!(daemon.status()["ready"], false);
    std::fs::write(&gate, "").expect("written");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while ready(Arc::clone(&http)).await != 200 {
        assert!(tokio::time::Instant::now() < deadline, "it never became ready");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
