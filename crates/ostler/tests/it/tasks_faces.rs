//! Tasks as their users meet them: the command line, the API, and the MCP tools. That each does what it says is in
//! `tasks.rs`; here is that all say the same, and refuse what makes no sense.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Output, Stdio};

use ostler_api::types::tasks::{BATCH_BODY_MAX, LISTED_MAX, TASK_BODY_MAX};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cli::{done, err, json_of, out, over_socket};
use crate::client::{JSON, LEGACY, MODERN, initialize, modern, tool_call, with_token};
use crate::own_server::{call, given, local, refused};
use crate::support::{Daemon, PATIENCE, wait_until};

const NONE: Value = Value::Null;

fn daemon(more: &str) -> Daemon {
    let fake = ostler_testkit::fake::path();
    // What the sandbox keeps from tasks is not what these tests are about.
    let config = format!(
        "[servers.fake]\ncommand = \"{}\"\nargs = [\"modern\"]\nscope = \"shared\"\n\
         [workers]\nsandbox = \"off\"\n{more}",
        fake.display()
    );
    Daemon::start(&config, &[])
}

fn api(daemon: &Daemon, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let (status, answer) = over_socket(daemon, method, path, &body);
    (status, serde_json::from_str(&answer).unwrap_or(NONE))
}

/// What a request is refused with: the status and the error.
fn not(daemon: &Daemon, method: &str, path: &str, body: &Value) -> (u16, String) {
    let (status, answer) = api(daemon, method, path, body);
    (
        status,
        answer["error"].as_str().unwrap_or_else(|| panic!("{path} {body}: {status} {answer}")).to_owned(),
    )
}

fn get(daemon: &Daemon, path: &str) -> Value {
    let (status, answer) = api(daemon, "GET", path, &NONE);
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

fn task(daemon: &Daemon, id: &str) -> Value {
    get(daemon, &format!("/api/v1/tasks/{id}"))
}

fn submit(daemon: &Daemon, body: &Value) -> String {
    let (status, answer) = api(daemon, "POST", "/api/v1/tasks", body);
    assert_eq!(status, 202, "{body}: {answer}");
    answer["id"].as_str().expect("an id").to_owned()
}

/// A task that gives this number, of a project.
fn quick(project: &str, number: u64) -> Value {
    json!({"type": "execute-code", "payload": {"code": format!("return {number}")}, "project": project})
}

/// One that does not end by itself.
fn endless(project: &str) -> Value {
    json!({"type": "shell-command", "payload": {"argv": ["sleep", "100000"]}, "project": project})
}

/// Nothing more of a project begins until this is cancelled: it may run one task, and this is it.
fn plug(daemon: &Daemon, project: &str) -> String {
    done(daemon, &["projects", "set", project, "--max-running", "1"]);
    let plug = submit(daemon, &endless(project));
    wait_until("it runs", || task(daemon, &plug)["state"] == "running");
    plug
}

fn unplug(daemon: &Daemon, project: &str, plug: &str) {
    done(daemon, &["projects", "set", project, "--max-running", "default"]);
    done(daemon, &["task", "cancel", plug]);
}

fn ids(listed: &Value) -> Vec<String> {
    let all = listed["tasks"].as_array().unwrap_or_else(|| panic!("no list: {listed}"));
    all.iter().map(|task| task["id"].as_str().expect("an id").to_owned()).collect()
}

/// `ostler ARGS` that ends with this status.
fn ends(daemon: &Daemon, args: &[&str], status: i32) -> Output {
    let output = daemon.cli(args);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {}{}", out(&output), err(&output));
    output
}

#[test]
fn the_command_line_submits_shows_waits_and_ends() {
    let daemon = daemon("");
    let echo = ends(&daemon, &["task", "submit", "shell-command", "--wait", "--", "echo", "--json"], 0);
    let result: Value = serde_json::from_slice(&echo.stdout).expect("JSON");
    assert_eq!((&result["stdout"], &result["status"]), (&json!("--json\n"), &json!(0)));

    let submitted = json_of(
        &daemon,
        &["task", "submit", "execute-code", "--code", "console.log('said'); return 42", "--json"],
    );
    let id = submitted["id"].as_str().expect("an id");
    assert_eq!(done(&daemon, &["task", "wait", id]), "42\n");
    assert_eq!(json_of(&daemon, &["task", "wait", id, "--json"])["state"], "succeeded");
    let shown = done(&daemon, &["task", "show", id]);
    assert!(shown.contains("succeeded") && shown.contains("42") && shown.contains("execute-code"), "{shown}");
    assert!(done(&daemon, &["task", "logs", id, "-f"]).trim_end().ends_with(" 1 info  said"));
    assert_eq!(json_of(&daemon, &["task", "logs", id, "--json"])["text"], "said");

    let failed =
        ends(&daemon, &["task", "submit", "shell-command", "--attempts=1", "--wait", "--", "false"], 1);
    assert!(
        err(&failed).contains("is dead: failed: ") && err(&failed).contains("hint: "),
        "{}",
        err(&failed)
    );
    let dead = done(&daemon, &["task", "ls", "-q", "--state", "dead"]);
    let dead = dead.trim();
    assert!(!dead.contains('\n') && dead != id, "one: {dead}");
    assert_eq!(done(&daemon, &["task", "retry", dead]), format!("{dead} is queued\n"));
    ends(&daemon, &["task", "wait", dead], 1);
    let again = json_of(&daemon, &["task", "show", dead, "--json"]);
    assert_eq!((&again["attempt"], &again["attempts"][0]["attempt"]), (&json!(2), &json!(1)), "{again}");
    assert!(done(&daemon, &["task", "show", dead]).contains("attempt 1 on worker-shell."));

    plug(&daemon, "p");
    let waits = done(&daemon, &["task", "submit", "execute-code", "--code", "", "--project", "p"]);
    let waits = waits.trim();
    let late = ends(&daemon, &["task", "wait", waits, "--for", "1ms"], 1);
    assert!(err(&late).contains("has not ended in that time, and goes on"), "{}", err(&late));
    let said = done(&daemon, &["task", "cancel", waits, "--why", "not needed"]);
    assert_eq!(said, format!("{waits} is cancelled\n"));
    assert!(done(&daemon, &["task", "show", waits]).contains("not needed"));
    ends(&daemon, &["task", "cancel", waits], 1);
    ends(&daemon, &["task", "show", "t1-ffffffff"], 1);
    ends(&daemon, &["task", "submit", "no-such-type", "{}"], 1);
    ends(&daemon, &["task", "submit", "execute-code"], 2);
    let table = done(&daemon, &["task", "ls"]);
    assert_eq!(table.lines().count(), 6, "{table}");
}

#[test]
fn the_command_line_does_batches_projects_and_the_pool() {
    let daemon = daemon("");
    let file = |name: &str, text: &str| {
        let path = daemon.dir().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("plain").to_owned()
    };
    let three = file(
        "three.jsonl",
        "{\"type\": \"execute-code\", \"payload\": {\"code\": \"return 1\"}}\n\n\
         {\"type\": \"execute-function\", \"payload\": {\"function\": \"n => n\", \"args\": [2]}, \"project\": \"q\"}\n\
         {\"type\": \"execute-code\", \"payload\": {\"code\": \"throw 3\"}, \"attempts\": 1}\n",
    );
    let made = json_of(
        &daemon,
        &["task", "submit", "--batch", &three, "--project", "p", "--name", "three", "--json"],
    );
    let batch = made["id"].as_str().expect("an id");
    let waited = ends(&daemon, &["task", "wait", batch], 1);
    assert!(out(&waited).contains("3 of 3 ended (2 succeeded, 1 dead)"), "{}", out(&waited));
    assert!(
        err(&waited).contains("1 of 3 tasks of ") && err(&waited).contains("--state dead"),
        "{}",
        err(&waited)
    );
    let listed = done(&daemon, &["task", "ls", "-q", "--batch", batch]);
    let newest_first: Vec<&str> = made["tasks"]
        .as_array()
        .expect("tasks")
        .iter()
        .rev()
        .filter_map(|task| task["id"].as_str())
        .collect();
    assert_eq!(listed.lines().collect::<Vec<_>>(), newest_first);
    assert_eq!(done(&daemon, &["task", "ls", "-q", "--project", "q"]).trim(), newest_first[1]);
    assert!(done(&daemon, &["task", "ls", "--batches"]).contains("three"));
    assert_eq!(json_of(&daemon, &["task", "show", batch, "--json"])["tasks"]["dead"], 1);
    let slip = file("slip.jsonl", "{\"type\": \"execute-code\"}\n{\"typ\": \"x\"}\n");
    assert!(err(&ends(&daemon, &["task", "submit", "--batch", &slip], 2)).contains("line 2 of "));
    let refused = file(
        "refused.jsonl",
        "{\"type\":\"execute-code\",\"payload\":{}}\n{\"type\":\"x\",\"payload\":{}}\n",
    );
    assert!(err(&ends(&daemon, &["task", "submit", "--batch", &refused], 1)).contains("task 1: "));
    assert_eq!(get(&daemon, "/api/v1/tasks")["tasks"].as_array().map(Vec::len), Some(3), "all or none");

    let said = done(&daemon, &["projects", "set", "p", "--max-running", "3"]);
    assert_eq!(said, "project p: at most 3 running, until the daemon ends; 0 run, 0 wait\n");
    let rows = json_of(&daemon, &["projects", "--json"]);
    let row = |name: &str| {
        rows.as_array().expect("rows").iter().find(|row| row["name"] == name).expect("there").clone()
    };
    assert_eq!((&row("p")["running_max"], &row("p")["running_max_from"]), (&json!(3), &json!("set")));
    assert_eq!((&row("q")["running_max"], &row("q")["running_max_from"]), (&json!(16), &json!("default")));
    let said = done(&daemon, &["projects", "set", "p", "--max-running", "default"]);
    assert!(said.contains("at most 16 running, as the configuration says"), "{said}");
    ends(&daemon, &["projects", "set", "not a name", "--max-running", "1"], 1);
    let pool = json_of(&daemon, &["pool", "--json"]);
    assert_eq!(
        (&pool["tasks"]["succeeded"], &pool["lanes"][0]["name"]),
        (&json!(2), &json!("code")),
        "{pool}"
    );
    let table = done(&daemon, &["pool"]);
    assert!(table.contains("code") && table.contains("3 of 3 ended"), "{table}");
}

#[test]
fn what_is_waited_for_comes_with_the_answer() {
    let daemon = daemon("");
    let wait = |wait_ms: u32, task: &Value| {
        let (status, answer) = api(&daemon, "POST", &format!("/api/v1/tasks?wait_ms={wait_ms}"), task);
        assert_eq!(status, 202, "{answer}");
        answer
    };
    let answer =
        wait(30_000, &json!({"type": "execute-code", "payload": {"code": "return [4, \"2\"]"}, "key": "k"}));
    assert_eq!((&answer["state"], &answer["result"]), (&json!("succeeded"), &json!([4, "2"])), "{answer}");
    // One that has ended long since is told as well.
    let again =
        wait(30_000, &json!({"type": "execute-code", "payload": {"code": "return [4, \"2\"]"}, "key": "k"}));
    assert_eq!((&again["earlier"], &again["result"]), (&json!(true), &answer["result"]), "{again}");
    let dead = wait(30_000, &json!({"type": "execute-code", "payload": {"code": "throw 3"}, "attempts": 1}));
    assert_eq!((&dead["state"], &dead["result"]), (&json!("dead"), &Value::Null), "{dead}");
    assert!(dead["why"].as_str().is_some_and(|why| why.starts_with("failed: ")), "{dead}");
    let slow = wait(1, &json!({"type": "shell-command", "payload": {"argv": ["sleep", "3600"]}}));
    assert!(slow["result"].is_null() && slow["state"] != "succeeded", "{slow}");
}

#[test]
fn every_member_is_checked_and_every_refusal_says_which() {
    let daemon = daemon("");
    let task = |more: Value| {
        let mut task = quick("p", 1);
        task.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        task
    };
    let past = json!({"deadline_unix_ms": 1, "not_before_unix_ms": 2});
    for (more, says) in [
        (json!({"prioritty": 1}), "unknown field `prioritty`"),
        (json!({"type": "no-such"}), "there is no task type `no-such`: there are execute-code, "),
        (json!({"type": 7}), "invalid type"),
        (json!({"payload": [1]}), "must be an object"),
        (json!({"payload": NONE}), "must be an object"),
        (json!({"payload": {"code": "1", "language": "cobol"}}), "not \"cobol\""),
        (json!({"priority": 11}), "`priority`"),
        (json!({"priority": -1}), "invalid value"),
        (json!({"delay_ms": 1, "not_before_unix_ms": 1}), "one too many"),
        (json!({"timeout_ms": 100_000_000_000_u64}), "tasks.timeout_max"),
        (json!({"timeout_ms": 0}), "`timeout_ms`"),
        (json!({"memory_bytes": 0}), "`memory_bytes`"),
        (json!({"output_bytes": 1_u64 << 40}), "tasks.result_max"),
        (json!({"output_bytes": 0}), "`output_bytes` is 0"),
        (json!({"attempts": 0}), "`attempts` is 0"),
        (json!({"attempts": 1001}), "1 to 1000"),
        (json!({"project": "no spaces"}), "the project: "),
        (json!({"session_id": ""}), "`session_id`: "),
        (json!({"key": "k".repeat(10_000)}), "key"),
        (json!({"type": "mcp-tool", "payload": {"tool": "x"}}), "missing field `server`"),
        (past, "deadline"),
    ] {
        let (status, error) = not(&daemon, "POST", "/api/v1/tasks", &task(more.clone()));
        assert!(status == 400 && error.contains(says), "{more}: {status} {error}");
        let batch = json!({"tasks": [quick("p", 1), task(more.clone())]});
        assert_eq!(not(&daemon, "POST", "/api/v1/batches", &batch).0, 400, "{more}");
    }
    for (batch, says) in [
        (json!({"tasks": []}), "one task at least"),
        (json!({"tasks": [quick("p", 1)], "name": "x"}), "unknown field `name`"),
        (json!({"tasks": [quick("p", 1)], "batch": {"nmae": "x"}}), "unknown field `nmae`"),
        (json!({"tasks": [quick("p", 1), task(json!({"priority": 99}))]}), "task 1: `priority`"),
    ] {
        let (status, error) = not(&daemon, "POST", "/api/v1/batches", &batch);
        assert!(status == 400 && error.contains(says), "{batch}: {status} {error}");
    }
    assert_eq!(get(&daemon, "/api/v1/tasks")["tasks"], json!([]), "nothing of it was accepted");
    let large = json!({"type": "execute-code", "payload": {"code": "x".repeat(1 << 20)}});
    let (status, error) = not(&daemon, "POST", "/api/v1/batches", &json!({"tasks": [quick("p", 1), large]}));
    assert!(status == 400 && error.starts_with("task 1: ") && error.contains("tasks.payload_max"), "{error}");
    let put = |body: &Value| not(&daemon, "PUT", "/api/v1/projects/p/limit", body);
    assert!(put(&json!({"runing": 1})).1.contains("unknown field `runing`"));
    assert_eq!(put(&json!({"running": -1})).0, 400);
    for path in [
        "tasks/t1",
        "tasks/x/logs",
        "batches/t1-00000000",
        "tasks?state=gone",
        "tasks?batch=x",
        "tasks?limit=x",
    ] {
        assert_eq!(over_socket(&daemon, "GET", &format!("/api/v1/{path}"), "").0, 400, "{path}");
    }
    for path in [
        "tasks/t1-00000000",
        "tasks/t1-00000000/events",
        "tasks/t1-00000000/logs",
        "batches/b1-00000000",
        "tasks?batch=b1-00000000",
    ] {
        assert_eq!(not(&daemon, "GET", &format!("/api/v1/{path}"), &NONE).0, 404, "{path}");
    }
    for path in ["tasks/t1-00000000/cancel", "tasks/t1-00000000/retry", "batches/b1-00000000/cancel"] {
        assert_eq!(not(&daemon, "POST", &format!("/api/v1/{path}"), &NONE).0, 404, "{path}");
    }
    // One whose number is right and whose name is not is another's.
    let id = submit(&daemon, &quick("p", 1));
    let other = format!("{}-{:08x}", id.split('-').next().expect("a number"), 7);
    assert_eq!(not(&daemon, "GET", &format!("/api/v1/tasks/{other}"), &NONE).0, 404);
}

#[test]
fn the_api_waits_pages_and_refuses_what_comes_too_late() {
    let daemon = daemon("");
    let holding = plug(&daemon, "p");
    let first = submit(&daemon, &quick("p", 1));
    let held = |id: &str| get(&daemon, &format!("/api/v1/tasks/{id}?wait_ms=1"))["state"].clone();
    assert_eq!(held(&first), "queued");
    let result = format!("/api/v1/tasks/{first}/result");
    let (status, error) = not(&daemon, "GET", &result, &NONE);
    assert!(status == 409 && error.contains("has no result: it is queued"), "{status} {error}");
    // Paging, over tasks of two projects.
    let more: Vec<String> =
        (2..=5).map(|n| submit(&daemon, &quick(if n == 3 { "r" } else { "p" }, n))).collect();
    let (mut seen, mut below) = (Vec::new(), String::new());
    loop {
        let page = get(&daemon, &format!("/api/v1/tasks?limit=2{below}"));
        let found = ids(&page);
        assert!(found.len() <= 2, "{page}");
        seen.extend(found);
        let Some(next) = page["below"].as_u64() else { break };
        below = format!("&below={next}");
    }
    let newest_first: Vec<String> = [&holding, &first].into_iter().chain(&more).rev().cloned().collect();
    assert_eq!(seen, newest_first);
    get(&daemon, &format!("/api/v1/tasks/{}?wait_ms=60000", more[1]));
    for (filter, found) in [
        ("project=r", 1),
        ("state=queued", 4),
        ("type=execute-code", 5),
        ("state=queued&project=r", 0),
        ("session=s1", 0),
    ] {
        assert_eq!(ids(&get(&daemon, &format!("/api/v1/tasks?{filter}"))).len(), found, "{filter}");
    }
    // Who waits is told at once.
    let waiting =
        daemon.ostler().args(["task", "wait", &first]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    unplug(&daemon, "p", &holding);
    assert_eq!(out(&waiting.expect("it starts").wait_with_output().expect("it ends")), "1\n");
    let (status, result) =
        over_socket(&daemon, "GET", &format!("/api/v1/tasks/{}/result?wait_ms=60000", more[0]), "");
    assert_eq!((status, result.as_str()), (200, "2"));
    for (verb, says) in [("cancel", "succeeded"), ("retry", "succeeded")] {
        let (status, error) = not(&daemon, "POST", &format!("/api/v1/tasks/{first}/{verb}"), &NONE);
        assert!(status == 409 && error.contains(says), "{verb}: {status} {error}");
    }
    // The same key finds the same batch; of a task, the same task.
    let batch =
        json!({"tasks": [quick("p", 7), endless("p")], "batch": {"name": "n", "key": "k", "project": "p"}});
    let (status, made) = api(&daemon, "POST", "/api/v1/batches", &batch);
    assert_eq!((status, &made["earlier"]), (202, &json!(false)));
    let (_, again) = api(&daemon, "POST", "/api/v1/batches", &batch);
    assert_eq!((&again["earlier"], &again["id"], &again["tasks"]), (&json!(true), &made["id"], &json!([])));
    let other = json!({"tasks": [quick("p", 8)], "batch": {"key": "k", "project": "p"}});
    assert_eq!(not(&daemon, "POST", "/api/v1/batches", &other).0, 409);
    let keyed = |number| {
        let mut task = quick("p", number);
        task["key"] = "k".into();
        api(&daemon, "POST", "/api/v1/tasks", &task)
    };
    let (first, again) = (keyed(1).1, keyed(1).1);
    assert_eq!((&first["id"], &again["earlier"]), (&again["id"], &json!(true)));
    assert_eq!(keyed(2).0, 409);
    // A batch is waited for, and what is left of it cancelled.
    let path = format!("/api/v1/batches/{}", made["id"].as_str().expect("an id"));
    wait_until("one of two is done and one runs", || {
        get(&daemon, &path)["tasks"]["succeeded"] == 1 && get(&daemon, &path)["tasks"]["running"] == 1
    });
    assert_eq!(get(&daemon, &format!("{path}?wait_ms=1"))["ended"], false);
    let (status, cancelled) = api(&daemon, "POST", &format!("{path}/cancel?why=too%20late"), &NONE);
    assert_eq!(
        (status, &cancelled["ended"], &cancelled["tasks"]["cancelled"]),
        (200, &json!(true), &json!(1)),
        "{cancelled}"
    );
    assert_eq!(get(&daemon, &format!("{path}?wait_ms=60000"))["tasks"]["succeeded"], 1);
    let endless = task(&daemon, made["tasks"][1]["id"].as_str().expect("an id"));
    assert_eq!(endless["why"], "too late");
    assert_eq!(
        get(&daemon, "/api/v1/pool")["lanes"]
            .as_array()
            .expect("lanes")
            .iter()
            .map(|lane| lane["running"].as_u64())
            .sum::<Option<u64>>(),
        Some(0),
        "who cancels hears of it when it does not run any more"
    );
}

#[test]
fn listings_come_in_pages_however_much_is_asked_for() {
    let daemon = daemon("");
    let mut later = quick("p", 1);
    later["delay_ms"] = 3_600_000.into();
    for count in [1, LISTED_MAX] {
        let (status, batch) =
            api(&daemon, "POST", "/api/v1/batches", &json!({"tasks": vec![later.clone(); count]}));
        assert_eq!(status, 202, "{batch}");
    }
    let page = get(&daemon, "/api/v1/tasks?limit=1000000");
    assert_eq!(ids(&page).len(), LISTED_MAX);
    let rest = get(&daemon, &format!("/api/v1/tasks?limit=1000000&below={}", page["below"]));
    assert_eq!((ids(&rest).len(), &rest["below"]), (1, &NONE));

    let page = get(&daemon, "/api/v1/batches?limit=1");
    assert_eq!(page["batches"][0]["tasks"]["queued"], LISTED_MAX, "the newest first: {page}");
    let rest = get(&daemon, &format!("/api/v1/batches?limit=2&below={}", page["below"]));
    assert_eq!((&rest["batches"][0]["tasks"]["queued"], &rest["below"]), (&json!(1), &NONE), "{rest}");
}

#[test]
fn a_full_queue_is_429_with_the_limit_and_when_to_come_again() {
    let daemon = daemon("[tasks]\nqueued = 3\nproject_queued = 2\n");
    plug(&daemon, "p");
    submit(&daemon, &quick("p", 1));
    submit(&daemon, &quick("p", 1));
    for (body, path, limit) in [
        (quick("p", 1), "tasks", "tasks.project_queued"),
        (json!({"tasks": [quick("q", 1), quick("r", 1)]}), "batches", "tasks.queued"),
    ] {
        let answer = raw(&daemon, "POST", &format!("/api/v1/{path}"), &body.to_string());
        assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
        assert!(answer.to_lowercase().contains("\r\nretry-after: ") && answer.contains(limit), "{answer}");
    }
    let refused = ends(&daemon, &["task", "submit", "execute-code", "--code", "", "--project", "p"], 1);
    assert!(err(&refused).contains("tasks.project_queued"), "{}", err(&refused));
    assert_eq!(
        get(&daemon, "/api/v1/tasks")["tasks"].as_array().map(Vec::len),
        Some(3),
        "nothing of it was taken"
    );
    assert_eq!(get(&daemon, "/api/v1/pool")["done"]["refused"], 3);
}

/// The whole answer, headers and all.
fn raw(daemon: &Daemon, method: &str, path: &str, body: &str) -> String {
    let mut stream = UnixStream::connect(daemon.socket()).expect("the socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: ostler\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn a_body_over_its_limit_is_refused_and_one_that_says_so_before_it_is_sent() {
    let daemon = daemon("");
    let asks = |path: &str, how: &str| {
        let mut stream = UnixStream::connect(daemon.socket()).expect("the socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        write!(stream, "POST /api/v1/{path} HTTP/1.1\r\nHost: ostler\r\nConnection: close\r\n{how}\r\n\r\n")
            .expect("sent");
        stream
    };
    for (path, most) in [("tasks", TASK_BODY_MAX), ("batches", BATCH_BODY_MAX)] {
        let mut announced = asks(path, &format!("Content-Length: {}", most + 1));
        let mut answer = String::new();
        announced.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.contains(&format!("may have {most}")) && answer.contains("in parts"), "{answer}");

        let mut chunked = asks(path, "Transfer-Encoding: chunked");
        let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
        // It may be refused before all of it is sent.
        let _ = (0..=most / 0x10000).try_for_each(|_| chunked.write_all(chunk.as_bytes()));
        let mut start = [0; 12];
        chunked.read_exact(&mut start).expect("an answer");
        assert_eq!(&start, b"HTTP/1.1 413", "{path}");
    }
    submit(&daemon, &quick("p", 1));
}

/// The data of a stream of server-sent events, until it ends.
fn news(stream: &mut BufReader<UnixStream>) -> impl Iterator<Item = Value> {
    stream
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
}

fn follow(daemon: &Daemon, id: &str) -> BufReader<UnixStream> {
    let mut stream = UnixStream::connect(daemon.socket()).expect("the socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    write!(stream, "GET /api/v1/tasks/{id}/events HTTP/1.1\r\nHost: ostler\r\nConnection: close\r\n\r\n")
        .expect("sent");
    BufReader::new(stream)
}

#[test]
fn a_stream_tells_progress_log_and_end_and_then_ends() {
    let daemon = daemon("");
    let holding = plug(&daemon, "p");
    let steps =
        json!({"server": "fake", "tool": "progress", "arguments": {"steps": 3, "gap_ms": 0, "tag": "x"}});
    let stepping = submit(&daemon, &json!({"type": "mcp-tool", "payload": steps, "project": "p"}));
    let saying = json!({"code": "console.warn('one'); console.log('two'); throw new Error('no more')"});
    let saying =
        submit(&daemon, &json!({"type": "execute-code", "payload": saying, "project": "p", "attempts": 1}));
    let (mut steps, mut says) = (follow(&daemon, &stepping), follow(&daemon, &saying));
    for (stream, id) in [(&mut steps, &stepping), (&mut says, &saying)] {
        let first = news(stream).next().expect("its state");
        assert_eq!(
            (&first["state"]["id"], &first["state"]["state"]),
            (&json!(id), &json!("queued")),
            "{first}"
        );
    }
    unplug(&daemon, "p", &holding);
    let all: Vec<Value> = news(&mut steps).collect();
    assert_eq!(all[0]["state"]["state"], "running", "{all:?}");
    let progress: Vec<f64> = all.iter().filter_map(|news| news["progress"]["done"].as_f64()).collect();
    assert!(progress.last() == Some(&3.0) && progress.is_sorted(), "{all:?}");
    assert_eq!(all.last().expect("the end")["state"]["state"], "succeeded");
    let all: Vec<Value> = news(&mut says).collect();
    let lines: Vec<(&Value, &Value)> = all
        .iter()
        .filter(|news| !news["log"].is_null())
        .map(|news| (&news["log"]["level"], &news["log"]["text"]))
        .collect();
    assert_eq!(lines, [(&json!("warn"), &json!("one")), (&json!("info"), &json!("two"))]);
    let last = &all.last().expect("the end")["state"];
    assert!(
        last["state"] == "dead" && last["why"].as_str().is_some_and(|why| why.contains("no more")),
        "{last}"
    );
    // Of one that has ended: its state, and the end.
    let after: Vec<Value> = news(&mut follow(&daemon, &stepping)).collect();
    assert!(after.len() == 1 && after[0]["state"]["state"] == "succeeded", "{after:?}");
    let logs = get(&daemon, &format!("/api/v1/tasks/{saying}/logs?n=1"));
    assert_eq!((logs.as_array().map(Vec::len), &logs[0]["text"]), (Some(1), &json!("two")));
}

#[test]
fn who_reads_slowly_is_told_what_was_missed_and_how_it_ended() {
    let daemon = daemon("");
    let holding = plug(&daemon, "p");
    // More than a connection holds, in more lines than are held for one who reads.
    let much = json!({"code": "for (let n = 0; n < 900; n += 1) console.log('x'.repeat(2000)); return 1"});
    let id = submit(&daemon, &json!({"type": "execute-code", "payload": much, "project": "p"}));
    let mut slow = follow(&daemon, &id);
    assert_eq!(news(&mut slow).next().expect("its state")["state"]["state"], "queued");
    unplug(&daemon, "p", &holding);
    get(&daemon, &format!("/api/v1/tasks/{id}?wait_ms=60000"));
    let all: Vec<Value> = news(&mut slow).collect();
    let lines = all.iter().filter(|news| !news["log"].is_null()).count() as u64;
    let missed: u64 = all.iter().filter_map(|news| news["gap"]["missed"].as_u64()).sum();
    assert!(missed > 0 && lines > 0 && lines + missed >= 900, "{lines} lines, {missed} missed");
    assert_eq!(all.last().expect("the end")["state"]["state"], "succeeded");
}

#[test]
fn the_earlier_systems_paths_mean_what_they_meant() {
    let daemon = daemon("min = 2\nmax = 2\n");
    let set = json!({"projectId": "my-project", "limit": 1});
    let (status, answer) = api(&daemon, "POST", "/api/process-pool/project-limit", &set);
    assert_eq!((status, &answer["projectId"], &answer["limit"]), (200, &json!("my-project"), &json!(1)));
    assert!(answer["message"].is_string());
    for wrong in [json!({"limit": 1}), json!({"projectId": "p"}), json!({"projectId": "p", "limit": -1})] {
        assert_eq!(not(&daemon, "POST", "/api/process-pool/project-limit", &wrong).0, 400, "{wrong}");
    }
    let running: Vec<String> = (0..2).map(|_| submit(&daemon, &endless("my-project"))).collect();
    wait_until("one runs and two workers are there", || {
        let stats = get(&daemon, "/api/process-pool/stats");
        stats["workers"] == json!({"total": 2, "available": 1, "busy": 1})
    });
    let stats = get(&daemon, "/api/process-pool/stats");
    assert_eq!(stats["projectUsage"], json!({"my-project": 1}));
    assert_eq!(stats["tasks"], json!({"queued": 1, "total": 2, "completed": 0, "failed": 0, "avgTime": 0}));
    assert!(stats["load"] == json!(1.0) && stats["uptime"].as_u64() > Some(0), "{stats}");
    assert_eq!(
        get(&daemon, "/api/process-pool/project-usage")["my-project"],
        json!({"used": 1, "limit": 1, "available": 0})
    );
    for id in running.iter().rev() {
        done(&daemon, &["task", "cancel", id]);
    }
    get(&daemon, &format!("/api/v1/tasks/{}?wait_ms=60000", submit(&daemon, &quick("my-project", 1))));
    let after = get(&daemon, "/api/process-pool/stats");
    assert_eq!(
        (&after["tasks"]["completed"], &after["tasks"]["queued"], &after["projectUsage"]),
        (&json!(1), &json!(0), &json!({}))
    );
    assert_eq!(get(&daemon, "/api/process-pool/project-usage")["my-project"]["available"], 1);
}

/// A modern client's call of a tool, sent and not waited for.
fn calling(daemon: &Daemon, tool: &str, arguments: &Value) -> UnixStream {
    let body = modern(with_token(tool_call(1, tool, arguments), &json!("p"))).to_string();
    let mut head = format!("POST /mcp/ostler HTTP/1.1\r\nHost: ostler\r\nContent-Length: {}\r\n", body.len());
    let all =
        [&JSON[..], &[("mcp-protocol-version", MODERN), ("mcp-method", "tools/call"), ("mcp-name", tool)]]
            .concat();
    for (name, value) in all {
        head += &format!("{name}: {value}\r\n");
    }
    let mut stream = UnixStream::connect(daemon.socket()).expect("the socket");
    write!(stream, "{head}\r\n{body}").expect("sent");
    stream
}

#[test]
fn the_tools_submit_see_run_and_cancel() {
    let daemon = daemon("");
    let submitted = call(&daemon, "submit_task", &quick("p", 6));
    let id = given(&submitted)["id"].clone();
    let seen = call(&daemon, "get_task", &json!({"id": id, "wait_ms": 60_000}));
    assert_eq!((&given(&seen)["task"]["state"], &given(&seen)["result"]), (&json!("succeeded"), &json!(6)));
    let endless_one = call(&daemon, "submit_task", &endless("p"));
    let open = given(&endless_one)["id"].clone();
    let cancelled = call(&daemon, "cancel_task", &json!({"id": open, "why": "enough"}));
    assert_eq!(
        (&given(&cancelled)["task"]["state"], &given(&cancelled)["task"]["why"]),
        (&json!("cancelled"), &json!("enough"))
    );
    for (tool, arguments, says) in [
        ("submit_task", json!({"type": "x", "payload": {}}), "there is no task type `x`"),
        ("submit_task", json!({"type": "execute-code", "payloda": {}}), "unknown field `payloda`"),
        ("get_task", json!({"id": "t1-ffffffff"}), "there is no task t1-ffffffff"),
        ("get_task", json!({"id": "x"}), "x"),
        ("cancel_task", json!({"id": id}), "succeeded"),
        ("run_tasks", json!({"tasks": []}), "1 to 100"),
        ("run_tasks", json!({"tasks": vec![quick("p", 1); 101]}), "1 to 100"),
    ] {
        let answer = call(&daemon, tool, &arguments);
        assert!(refused(&answer).contains(says), "{tool} {arguments}: {answer}");
    }
    let fails = json!({"type": "execute-code", "payload": {"code": "throw 1"}, "attempts": 1});
    let ran = call(
        &daemon,
        "run_tasks",
        &json!({"tasks": [quick("p", 1), fails, quick("p", 3)], "batch": {"name": "run"}}),
    );
    let ran = given(&ran);
    let of =
        |index: usize| (ran["tasks"][index]["task"]["state"].clone(), ran["tasks"][index]["result"].clone());
    assert_eq!(
        (of(0), of(1).0, of(2)),
        ((json!("succeeded"), json!(1)), json!("dead"), (json!("succeeded"), json!(3)))
    );
    assert_eq!((&ran["batch"]["name"], &ran["batch"]["tasks"]["succeeded"]), (&json!("run"), &json!(2)));

    // Whoever hangs up cancels what is left.
    let mixed = json!({"tasks": [quick("hung", 1), endless("hung"), endless("hung")]});
    let mut hearing = calling(&daemon, "run_tasks", &mixed);
    let mut heard = BufReader::new(hearing.try_clone().expect("a second handle"));
    hearing.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    let told = news(&mut heard)
        .find(|message| message["params"]["progress"] == 1.0)
        .expect("it is told how far it is");
    assert_eq!(
        (&told["params"]["total"], &told["params"]["progressToken"]),
        (&json!(3), &json!("p")),
        "{told}"
    );
    hearing.flush().expect("open so far");
    let all = ids(&get(&daemon, "/api/v1/tasks?project=hung"));
    assert_eq!(all.len(), 3);
    hearing.shutdown(std::net::Shutdown::Both).expect("it hangs up");
    wait_until("none is left", || {
        all.iter()
            .all(|id| !["queued", "running"].contains(&task(&daemon, id)["state"].as_str().expect("a state")))
    });
    let states: BTreeSet<String> = all.iter().map(|id| task(&daemon, id)["why"].to_string()).collect();
    assert_eq!(states, BTreeSet::from(["null".to_owned(), "\"whoever ran it has gone\"".to_owned()]));
}

#[test]
fn tasks_of_a_session_end_with_it() {
    let mut daemon = daemon("min = 2\n[sessions]\ngrace = \"1h\"\n");
    let opened = call(&daemon, "create_session", &json!({"name": "mine"}));
    let session = given(&opened)["id"].as_str().expect("an id").to_owned();
    let of_session = |mut task: Value| {
        task["session_id"] = "mine".into();
        task
    };
    let running = submit(&daemon, &of_session(endless("p")));
    let waiting = submit(
        &daemon,
        &of_session(json!({"type": "execute-code", "payload": {"code": ""}, "delay_ms": 3_600_000})),
    );
    let later = json!({"type": "execute-code", "payload": {"code": ""}, "delay_ms": 3_600_000});
    let other = submit(&daemon, &later);
    // A batch's session is that of its tasks; a request's session that of what its tools submit.
    let batch = json!({"tasks": [later, endless("p")], "batch": {"session_id": "mine"}});
    let (_, batch) = api(&daemon, "POST", "/api/v1/batches", &batch);
    let in_session = [("mcp-protocol-version", LEGACY), ("ostler-session", "mine")];
    let (_, _, told) = local(&daemon, &in_session, &tool_call(1, "submit_task", &later));
    let told = given(&told)["id"].as_str().expect("an id");
    let (_, _, ran) =
        local(&daemon, &in_session, &tool_call(1, "run_tasks", &json!({"tasks": [quick("p", 1)]})));
    let ran = &given(&ran)["tasks"][0]["task"];
    assert_eq!((&ran["session"], &ran["state"]), (&json!(session), &json!("succeeded")), "{ran}");
    wait_until("it runs", || task(&daemon, &running)["state"] == "running");
    let mine = ids(&get(&daemon, &format!("/api/v1/tasks?session={session}")));
    assert_eq!(mine.len(), 6, "{mine:?}");
    let at = format!("/api/v1/sessions/{session}");
    let of_batch: Vec<&str> = batch["tasks"]
        .as_array()
        .expect("its tasks")
        .iter()
        .map(|task| task["id"].as_str().expect("an id"))
        .collect();
    let [batch_waits, batch_runs] = of_batch[..] else { panic!("{batch}") };
    let runs = BTreeSet::from([running.as_str(), batch_runs]);
    let shown = |of: &Value| -> BTreeSet<String> {
        of["tasks"]
            .as_array()
            .expect("its tasks")
            .iter()
            .map(|id| id.as_str().expect("an id").to_owned())
            .collect()
    };
    wait_until("those are shown that run", || shown(&get(&daemon, &at)).iter().eq(runs.iter()));
    // What waits ends at once, what runs has the grace.
    let (status, draining) = api(&daemon, "DELETE", &at, &NONE);
    assert_eq!((status, shown(&draining).len()), (202, 2), "{draining}");
    let ended = |daemon: &Daemon, id: &str| {
        let task = get(daemon, &format!("/api/v1/tasks/{id}?wait_ms=60000"));
        assert_eq!(task["state"], "cancelled", "{task}");
        task["why"].as_str().expect("a reason").to_owned()
    };
    for id in [batch_waits, &waiting, told] {
        assert_eq!(ended(&daemon, id), format!("its session {session} ended"));
    }
    for id in runs {
        assert_eq!(task(&daemon, id)["state"], "running");
        done(&daemon, &["task", "cancel", id]);
    }
    wait_until("nothing keeps it", || over_socket(&daemon, "GET", &at, "").0 == 404);
    assert_eq!(task(&daemon, &other)["state"], "queued", "it is of none");

    // It ended while no daemon ran: nobody was there to hear of it.
    let last = submit(
        &daemon,
        &of_session(json!({"type": "execute-code", "payload": {"code": ""}, "delay_ms": 3_600_000})),
    );
    done(&daemon, &["down"]);
    assert!(daemon.wait().success());
    daemon.rewrite("[sessions]\nidle = \"1ms\"\n");
    daemon.start_again(&[]);
    assert_eq!(ended(&daemon, &last), "its session ended");
    assert_eq!(task(&daemon, &other)["state"], "queued");
    // What a legacy client submits does not end with its conversation.
    let (_, head, _) = local(&daemon, &[], &initialize());
    let header = head
        .lines()
        .find_map(|line| line.to_lowercase().strip_prefix("mcp-session-id: ").map(str::to_owned))
        .expect("an id");
    let headers = [("mcp-protocol-version", LEGACY), ("mcp-session-id", header.as_str())];
    let (_, _, answer) = local(&daemon, &headers, &tool_call(1, "submit_task", &endless("p")));
    let id = given(&answer)["id"].as_str().expect("an id").to_owned();
    assert_eq!(
        task(&daemon, &id)["session"],
        NONE,
        "that is the client's conversation, and no session by a key"
    );
    done(&daemon, &["task", "cancel", &id]);
    daemon.signal(Signal::TERM);
    daemon.wait();
}

#[test]
fn a_task_that_runs_longer_than_the_grace_of_its_session_ends_with_it() {
    let daemon = daemon("[sessions]\ngrace = \"1ms\"\n");
    let opened = call(&daemon, "create_session", &json!({"name": "mine"}));
    let session = given(&opened)["id"].as_str().expect("an id").to_owned();
    let mut endless = endless("p");
    endless["session_id"] = "mine".into();
    let id = submit(&daemon, &endless);
    wait_until("it runs", || task(&daemon, &id)["state"] == "running");
    over_socket(&daemon, "DELETE", &format!("/api/v1/sessions/{session}"), "");
    let ended = get(&daemon, &format!("/api/v1/tasks/{id}?wait_ms=60000"));
    assert_eq!(ended["state"], "cancelled", "{ended}");
    assert_eq!(ended["why"], format!("its session {session} ended"));
}

/// `ostler events -f` of these kinds, from now on.
fn hearing(daemon: &Daemon, kinds: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut command = daemon.ostler();
    command
        .args(["events", "-f", "--json", "-n", "1", "--kind", kinds])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("ostler runs");
    let output = BufReader::new(child.stdout.take().expect("piped"));
    (child, output)
}

#[test]
fn every_event_of_the_earlier_system_is_told() {
    let daemon = daemon(
        "interval = \"100ms\"\nidle = \"100ms\"\nmax = 3\n[workers.code]\nmax_tasks = 1\n\
         [workers.broken]\ncommand = \"/nonexistent/worker\"\n[tasks]\nqueued = 40\n",
    );
    let (mut child, mut events) = hearing(&daemon, "task-complete,worker-started");
    let next = |events: &mut BufReader<_>, kind: &str| {
        let event = events
            .by_ref()
            .lines()
            .map_while(Result::ok)
            .find(|line| line.contains(&format!("\"kind\":\"{kind}\"")));
        serde_json::from_str::<Value>(&event.expect("an event")).expect("an object")
    };
    // The first is kept: so it is told whether or not the other end was there before.
    let first = submit(&daemon, &quick("p", 1));
    assert_eq!(next(&mut events, "worker-started")["subject"], "worker-code.1");
    let second = submit(&daemon, &quick("p", 2));
    let told = BTreeSet::from([first, second.clone()]);
    let complete = loop {
        let event = next(&mut events, "task-complete");
        assert!(told.contains(event["subject"].as_str().expect("a task")), "{event}");
        if event["subject"] == json!(second) {
            break event;
        }
    };
    assert_eq!((&complete["severity"], &complete["message"]), (&json!("info"), &json!("the task succeeded")));
    child.kill().expect("it runs");
    child.wait().expect("it ends");

    submit(&daemon, &json!({"type": "broken", "payload": {}}));
    submit(&daemon, &json!({"type": "shell-command", "payload": {"argv": ["false"]}, "attempts": 1}));
    let naps = vec![json!({"type": "shell-command", "payload": {"argv": ["sleep", "0.3"]}}); 12];
    assert_eq!(api(&daemon, "POST", "/api/v1/batches", &json!({"tasks": naps})).0, 202);
    let many = vec![quick("p", 1); 21];
    assert_eq!(api(&daemon, "POST", "/api/v1/batches", &json!({"tasks": many})).0, 429);
    let kept = |kind: &str, subject: &str| {
        let about = |event: &Value| event["subject"].as_str().is_some_and(|about| about.starts_with(subject));
        daemon.events().into_iter().find(|event| event["kind"] == kind && about(event))
    };
    for (kind, subject, says) in [
        ("worker-terminated", "worker-code.", "workers.max_tasks"),
        ("worker-error", "worker-broken", "/nonexistent/worker"),
        ("task-error", "t", "failed: "),
        ("queue-full", "tasks", "queued"),
        ("scaled-up", "worker-shell", "2 workers, where there were 1"),
        ("scaled-down", "worker-shell", "workers, where there were"),
    ] {
        wait_until(kind, || kept(kind, subject).is_some());
        let event = kept(kind, subject).expect("it was there");
        assert!(event["message"].as_str().is_some_and(|message| message.contains(says)), "{event}");
    }
    assert_eq!(kept("task-complete", ""), None, "there may be a thousand in a second");
}

/// However many tasks fail, what the log keeps of other things stays.
#[test]
fn a_flood_of_tasks_pushes_nothing_out_of_the_event_log() {
    let daemon = daemon("[workers.code]\nmax_tasks = 5\n");
    let fails = vec![json!({"type": "execute-code", "payload": {"code": "throw 1"}, "attempts": 1}); 200];
    let (status, batch) = api(&daemon, "POST", "/api/v1/batches", &json!({"tasks": fails}));
    assert_eq!(status, 202);
    let before = daemon.events().len();
    let batch =
        get(&daemon, &format!("/api/v1/batches/{}?wait_ms=60000", batch["id"].as_str().expect("an id")));
    assert_eq!(batch["tasks"]["dead"], 200, "{batch}");
    let grown = daemon.events().len() - before;
    assert!(grown < 40, "{grown} events: {:?}", daemon.events());
    let not_kept = daemon.status()["counters"]["events.not_kept.task-error"].as_u64().expect("a count");
    assert!(not_kept >= 198, "{not_kept}");
}
