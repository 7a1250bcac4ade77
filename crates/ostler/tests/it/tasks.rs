//! Tasks: submitted over the management API, done by real workers.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::cli::over_socket;
use crate::support::{Daemon, wait_until};

fn daemon(more: &str) -> Daemon {
    let fake = ostler_testkit::fake::path();
    let config = format!(
        "[servers.fake]\ncommand = \"{}\"\nargs = [\"legacy\"]\nscope = \"shared\"\n\
         [tasks]\nbackoff = {{ min = \"1ms\", max = \"5ms\" }}\n{more}",
        fake.display()
    );
    Daemon::start(&config, &[])
}

pub(crate) fn api(daemon: &Daemon, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let (status, answer) = over_socket(daemon, method, path, &body);
    (status, serde_json::from_str(&answer).unwrap_or(Value::Null))
}

/// Submits a task that is accepted; its name.
pub(crate) fn submit(daemon: &Daemon, kind: &str, payload: Value, more: Value) -> String {
    let mut task = json!({"type": kind, "payload": payload});
    task.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    let (status, answer) = api(daemon, "POST", "/api/v1/tasks", &task);
    assert_eq!(status, 202, "{answer}");
    answer["id"].as_str().expect("an id").to_owned()
}

/// The task once it has ended.
pub(crate) fn ended(daemon: &Daemon, id: &str) -> Value {
    let (status, task) = api(daemon, "GET", &format!("/api/v1/tasks/{id}?wait_ms=30000"), &Value::Null);
    assert_eq!(status, 200, "{task}");
    task
}

fn result(daemon: &Daemon, id: &str) -> Value {
    let task = ended(daemon, id);
    assert_eq!(task["state"], "succeeded", "{task}");
    let (status, result) = api(daemon, "GET", &format!("/api/v1/tasks/{id}/result"), &Value::Null);
    assert_eq!(status, 200, "{result}");
    result
}

fn done(daemon: &Daemon, kind: &str, payload: Value) -> Value {
    let id = submit(daemon, kind, payload, json!({}));
    result(daemon, &id)
}

/// Why a task that must not succeed did not.
fn why(daemon: &Daemon, kind: &str, payload: Value, more: Value) -> String {
    let id = submit(daemon, kind, payload, more);
    let task = ended(daemon, &id);
    assert_eq!(task["state"], "dead", "{task}");
    task["why"].as_str().expect("a reason").to_owned()
}

#[test]
fn each_type_is_done() {
    let daemon = daemon("");
    assert_eq!(done(&daemon, "execute-code", json!({"code": "return 1 + 1"})), json!(2));
    let double = json!({"function": "(n) => n * 2", "args": [21]});
    assert_eq!(done(&daemon, "execute-function", double), json!(42));
    let shell = done(&daemon, "shell-command", json!({"argv": ["echo", "hello"]}));
    assert_eq!(shell["stdout"], "hello\n", "{shell}");
    let echo = json!({"server": "fake", "tool": "echo", "arguments": {"text": "mine"}});
    let called = done(&daemon, "mcp-tool", echo);
    assert_eq!(called["content"][0]["text"], "mine", "{called}");
    let python = json!({"language": "python", "code": "return sum(range(5))"});
    assert_eq!(done(&daemon, "execute-code", python), json!(10));
}

#[test]
fn what_fails_is_tried_again_and_then_a_dead_letter_that_can_be_revived() {
    let daemon = daemon("");
    let id = submit(&daemon, "shell-command", json!({"argv": ["false"]}), json!({}));
    let task = ended(&daemon, &id);
    assert_eq!((&task["state"], &task["attempt"]), (&json!("dead"), &json!(3)), "{task}");
    assert_eq!(task["attempts"].as_array().map(Vec::len), Some(2), "{task}");
    let (status, again) = api(&daemon, "POST", &format!("/api/v1/tasks/{id}/retry"), &Value::Null);
    assert!(status < 300, "{status} {again}");
    wait_until("it was tried again", || ended(&daemon, &id)["attempt"] == 6);
    // What makes no sense is not tried again.
    let id = submit(&daemon, "execute-code", json!({"code": "("}), json!({}));
    assert_eq!(ended(&daemon, &id)["attempt"], 1);
}

#[test]
fn one_that_takes_too_long_is_ended_with_all_that_it_started() {
    let daemon = daemon("");
    let once = json!({"attempts": 1, "timeout_ms": 300});
    let said = why(&daemon, "execute-code", json!({"code": "for(;;);"}), once.clone());
    assert!(said.starts_with("timeout"), "{said}");
    let sleeping = json!({"argv": ["sh", "-c", "setsid sleep 3600 & echo $!; wait"]});
    let said = why(&daemon, "shell-command", sleeping, once);
    assert!(said.starts_with("timeout"), "{said}");
    wait_until("no sleep is left", || {
        let rows = daemon.ps();
        rows.iter()
            .filter(|row| row["server"] == "worker-shell.default")
            .all(|row| row["processes"].as_u64() <= Some(3))
    });
}

#[test]
fn a_worker_that_dies_costs_its_task_one_attempt() {
    let daemon = daemon("");
    let id = submit(&daemon, "shell-command", json!({"argv": ["sleep", "0.5"]}), json!({}));
    let row = daemon.wait_row("worker-shell.default", "it has a worker", |row| row["state"] == "ready");
    wait_until("it runs", || {
        api(&daemon, "GET", &format!("/api/v1/tasks/{id}"), &Value::Null).1["state"] == "running"
    });
    let pid = i32::try_from(row["pid"].as_i64().expect("a pid")).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::KILL).expect("it runs");
    let task = ended(&daemon, &id);
    assert_eq!((&task["state"], &task["attempt"]), (&json!("succeeded"), &json!(2)), "{task}");
    let why = task["attempts"][0]["why"].as_str().expect("a reason");
    assert!(why.contains("its worker ended"), "{why}");
}

#[test]
fn who_is_cancelled_ends_queued_or_running() {
    let daemon = daemon("[projects.slow]\nrunning = 1\n");
    let slow =
        || submit(&daemon, "shell-command", json!({"argv": ["sleep", "3600"]}), json!({"project": "slow"}));
    let (running, queued) = (slow(), slow());
    let state =
        |id: &str| api(&daemon, "GET", &format!("/api/v1/tasks/{id}"), &Value::Null).1["state"].clone();
    wait_until("it runs", || state(&running) == "running");
    for id in [&queued, &running] {
        let (status, answer) = api(&daemon, "POST", &format!("/api/v1/tasks/{id}/cancel"), &Value::Null);
        assert!(status < 300, "{answer}");
        assert_eq!(ended(&daemon, id)["state"], "cancelled");
    }
    // The worker is free for another.
    assert_eq!(done(&daemon, "shell-command", json!({"argv": ["true"]}))["status"], 0);
}

#[test]
fn no_project_has_more_running_than_it_may_and_a_full_queue_says_so() {
    let daemon =
        daemon("queued = 5\nproject_queued = 5\nbatch = 5\n[projects.p]\nrunning = 1\n[workers]\nmin = 2\n");
    let task = json!({"type": "shell-command", "payload": {"argv": ["sleep", "0.05"]}, "project": "p"});
    let (status, batch) = api(
        &daemon,
        "POST",
        "/api/v1/batches",
        &json!({"tasks": [task, task, task, task], "batch": {"project": "p"}}),
    );
    assert_eq!(status, 202, "{batch}");
    let (status, full) =
        api(&daemon, "POST", "/api/v1/batches", &json!({"tasks": [task, task, task, task, task]}));
    assert_eq!(status, 429, "{full}");
    assert!(full["error"].as_str().is_some_and(|error| error.contains("tasks.")), "{full}");
    let id = batch["id"].as_str().expect("an id");
    wait_until("all have ended", || {
        let (_, usage) = api(&daemon, "GET", "/api/process-pool/project-usage", &Value::Null);
        assert!(usage["p"]["running"].as_u64().is_none_or(|running| running <= 1), "{usage}");
        api(&daemon, "GET", &format!("/api/v1/batches/{id}"), &Value::Null).1["tasks"]["succeeded"] == 4
    });
}

#[test]
fn what_was_accepted_survives_the_daemon() {
    let mut daemon = daemon("");
    let sleep = json!({"argv": ["sleep", "0.2"]});
    let running = submit(&daemon, "shell-command", sleep, json!({}));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    let later = u64::try_from(now).expect("in range") + 500;
    let delayed =
        submit(&daemon, "execute-code", json!({"code": "return 7"}), json!({"not_before_unix_ms": later}));
    let path = format!("/api/v1/tasks/{running}");
    wait_until("it runs", || api(&daemon, "GET", &path, &Value::Null).1["state"] != "queued");
    daemon.signal(Signal::KILL);
    daemon.wait();
    daemon.start_again(&[]);
    assert_eq!(result(&daemon, &delayed), json!(7));
    assert_eq!(ended(&daemon, &running)["state"], "succeeded");
}

#[test]
fn the_same_key_finds_the_same_task() {
    let daemon = daemon("");
    let first = submit(&daemon, "execute-code", json!({"code": "1"}), json!({"key": "k"}));
    let task = json!({"type": "execute-code", "payload": {"code": "1"}, "key": "k"});
    let (_, again) = api(&daemon, "POST", "/api/v1/tasks", &task);
    assert_eq!((again["id"].as_str(), &again["earlier"]), (Some(first.as_str()), &json!(true)));
    let other = json!({"type": "execute-code", "payload": {"code": "2"}, "key": "k"});
    assert_eq!(api(&daemon, "POST", "/api/v1/tasks", &other).0, 409);
}

/// The process `ostler worker` among the descendants of this one.
fn worker_below(ancestor: i64) -> Pid {
    let read = |pid: i64, file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let parent = |pid: &i64| read(*pid, "stat")?.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok();
    let is_worker =
        |pid: &i64| read(*pid, "cmdline").is_some_and(|line| line.split('\0').nth(1) == Some("worker"));
    let processes = std::fs::read_dir("/proc").expect("it is there").flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i64>().ok());
    let found =
        pids.find(|pid| is_worker(pid) && std::iter::successors(Some(*pid), parent).any(|up| up == ancestor));
    found.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).expect("a worker")
}

#[test]
fn a_worker_that_says_nothing_is_ended() {
    let daemon = daemon("[workers]\nheartbeat = \"2s\"\n");
    let id = submit(&daemon, "shell-command", json!({"argv": ["sleep", "3600"]}), json!({"attempts": 1}));
    let row = daemon.wait_row("worker-shell.default", "it has a worker", |row| row["state"] == "ready");
    wait_until("it runs", || {
        api(&daemon, "GET", &format!("/api/v1/tasks/{id}"), &Value::Null).1["state"] == "running"
    });
    // What the daemon started is its sandbox.
    let worker = worker_below(row["pid"].as_i64().expect("a pid"));
    kill_process(worker, Signal::STOP).expect("it runs");
    let task = ended(&daemon, &id);
    assert_eq!(task["state"], "dead", "{task}");
    assert!(task["why"].as_str().is_some_and(|why| why.contains("workers.heartbeat")), "{task}");
}
