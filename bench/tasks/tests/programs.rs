//! The benchmark's programs against a stand-in of a few lines: what they print is what happened.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

const LOAD: &str = env!("CARGO_BIN_EXE_task-load");
const ROUND_TRIP: &str = env!("CARGO_BIN_EXE_round-trip");

/// What the stand-in says to a request: the path that was asked for, and the body.
type Say = fn(&str, &Value) -> Value;

/// A daemon whose tasks are done when they are submitted; ends with this process.
fn daemon(name: &str, say: Say) -> PathBuf {
    let path = std::env::temp_dir().join(format!("bench-tasks-{name}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(&stream, say));
        }
    });
    path
}

fn serve(stream: &UnixStream, say: Say) -> Option<()> {
    let mut input = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if input.read_until(b'\n', &mut head).ok()? == 0 {
                return None;
            }
        }
        let head = String::from_utf8(head).ok()?;
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a number"))];
        input.read_exact(&mut body).ok()?;
        let path = head.split(' ').nth(1)?;
        let answer = say(path, &serde_json::from_slice(&body).unwrap_or_default()).to_string();
        write!(&mut &*stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len()).ok()?;
    }
}

/// Its tasks give back what they are given.
fn good(path: &str, body: &Value) -> Value {
    match path {
        path if path.starts_with("/api/v1/tasks?wait_ms=") => {
            let number = &body["payload"]["args"][0];
            let result = if number.is_null() { json!({"status": 0}) } else { number.clone() };
            json!({"id": "t1-0", "state": "succeeded", "result": result})
        }
        "/api/v1/batches" => {
            let many = body["tasks"].as_array().expect("tasks").len();
            json!({"id": format!("b{many}-0"), "earlier": false, "tasks": []})
        }
        path if path.starts_with("/api/v1/batches/b") => {
            let many: u64 = path[17..].split('-').next().expect("a number").parse().expect("a number");
            json!({"id": "b1-0", "ended": true, "tasks": {"succeeded": many}})
        }
        other => panic!("asked for {other}"),
    }
}

/// One whose batches are never whole, and whose second task has another's result.
fn bad(path: &str, body: &Value) -> Value {
    match path {
        path if path.starts_with("/api/v1/batches/b") => {
            json!({"id": "b1-0", "ended": true, "tasks": {"dead": 1}})
        }
        path if path.starts_with("/api/v1/tasks?") && body["payload"]["args"][0] == 2 => {
            json!({"id": "t2-0", "state": "succeeded", "result": 7})
        }
        path => good(path, body),
    }
}

fn measured(socket: &PathBuf, cells: &[Value]) -> Vec<Value> {
    let mut command = Command::new(LOAD);
    command.arg("--socket").arg(socket).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut load = command.spawn().expect("it starts");
    let mut input = load.stdin.take().expect("piped");
    for cell in cells {
        writeln!(input, "{cell}").expect("it reads");
    }
    drop(input);
    let output = load.wait_with_output().expect("it ends");
    assert!(output.status.success());
    let read = |line: Result<String, _>| serde_json::from_str(&line.expect("text")).expect("JSON");
    let mut said: Vec<Value> = output.stdout.as_slice().lines().map(read).collect();
    assert_eq!(said.remove(0), json!({"ready": true}));
    said
}

fn cell(kind: &str, window: usize, batch: usize) -> Value {
    json!({"kind": kind, "window": window, "batch": batch, "seconds": 0.2, "warmup": 0.05})
}

#[test]
fn each_cell_is_answered_with_what_came_of_it() {
    let socket = daemon("good", good);
    let cells = [cell("noop", 8, 0), cell("true", 2, 0), cell("noop", 1, 50)];
    let answers = measured(&socket, &cells);
    assert_eq!(answers.len(), 3);
    for answer in &answers {
        assert_eq!(answer["errors"], 0, "{answer}");
        assert!(answer["tasks"].as_u64() > Some(0) && answer["per_s"].as_f64() > Some(0.0), "{answer}");
    }
    assert_eq!(answers[2]["tasks"].as_u64().expect("a number") % 50, 0, "whole batches");
    let _ = std::fs::remove_file(socket);
}

#[test]
fn a_wrong_result_is_an_error_and_so_is_half_a_batch() {
    let socket = daemon("bad", bad);
    let answers = measured(&socket, &[cell("noop", 4, 0), cell("noop", 1, 5)]);
    assert_eq!(answers[0]["errors"], 1, "only the second task's is wrong: {}", answers[0]);
    assert!(
        answers[0]["first_error"].as_str().expect("text").contains("a wrong result of 2: "),
        "{}",
        answers[0]
    );
    assert_eq!(answers[1]["tasks"], 0, "{}", answers[1]);
    assert!(answers[1]["errors"].as_u64() > Some(0), "{}", answers[1]);
    let _ = std::fs::remove_file(socket);
}

/// A worker in the shell: gives back the number of the task, and a wrong one of the task that it is told.
fn worker(wrong: u64) -> String {
    format!(
        r#"echo '{{"msg":"ready"}}'; n=0; while read -r line; do n=${{line#*'"args":['}}; n=${{n%%]*}};
        [ "$n" = {wrong} ] && n=0; echo "{{\"msg\":\"result\",\"ok\":true,\"value\":$n}}"; done"#
    )
}

fn round_trips(wrong: u64) -> std::process::Output {
    let arguments = ["--seconds", "0.01", "--", "sh", "-c", &worker(wrong)];
    Command::new(ROUND_TRIP).args(arguments).output().expect("it starts")
}

#[test]
fn a_round_trip_is_measured_beside_an_echo_over_both_media() {
    let output = round_trips(0);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let apart = ["socketpair, apart", "pipes, apart"];
    let has_two = std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1);
    for medium in ["socketpair", "pipes"].into_iter().chain(apart.into_iter().filter(|_| has_two)) {
        for who in ["worker", "echo"] {
            assert!(report[medium][who]["p50_us"].as_f64() > Some(0.0), "{report}");
            assert!(report[medium][who]["round_trips"].as_u64() >= Some(500), "{report}");
        }
    }
}

#[test]
fn a_worker_with_a_wrong_answer_is_not_measured() {
    let output = round_trips(7);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("task 7 was answered with"), "{said}");
}
