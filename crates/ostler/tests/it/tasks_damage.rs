//! A daemon whose task journal was damaged: it starts and says what is lost, or refuses with the way out, and no result that it
//! gives is another than it was. `ostler-store` has the same at thousands of offsets, without a daemon.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cli::over_socket;
use crate::support::Daemon;

const JOURNAL: &str = "tasks.db";
const WAL: &str = "tasks.db-wal";
const HEAD: &str = "tasks.head";
const RESULTS: &str = "results";

/// What is done to a file, at so many thousandths of it.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Flip(u64),
    Cut(u64),
    Remove,
}

/// Each copy of the journal with what happens to it; results are named by their place in the list of files.
const CASES: [&[(&str, Harm)]; 13] = [
    &[(WAL, Harm::Cut(500))],
    &[(WAL, Harm::Flip(330))],
    &[(WAL, Harm::Flip(990))],
    &[(WAL, Harm::Remove)],
    &[(JOURNAL, Harm::Flip(0))],
    &[(JOURNAL, Harm::Flip(400))],
    &[(JOURNAL, Harm::Flip(700)), (WAL, Harm::Flip(700))],
    &[(JOURNAL, Harm::Cut(500))],
    &[(JOURNAL, Harm::Cut(0))],
    &[(JOURNAL, Harm::Remove), (WAL, Harm::Remove)],
    &[(HEAD, Harm::Flip(300)), (WAL, Harm::Flip(800))],
    &[(RESULTS, Harm::Flip(500))],
    &[(RESULTS, Harm::Cut(500))],
];

fn api(daemon: &Daemon, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let (status, answer) = over_socket(daemon, method, path, &body);
    (status, serde_json::from_str(&answer).unwrap_or(Value::Null))
}

/// Tasks whose results are all different, some of them files; their results by their ids, none where there is none.
fn work(daemon: &Daemon, from: usize, truth: &mut BTreeMap<String, Value>) {
    let task = |number: usize| match number % 8 {
        6 => json!({"type": "execute-code", "payload": {"code": "throw new Error('no')"}, "attempts": 1}),
        7 => {
            json!({"type": "execute-code", "payload": {"code": "return 'late'"}, "delay_ms": 3_600_000})
        }
        _ => {
            let times = if number % 8 == 5 { 3000 } else { 3 };
            let code = format!("return '{number}:' + 'x'.repeat({times})");
            json!({"type": "execute-code", "payload": {"code": code}})
        }
    };
    let tasks: Vec<Value> = (from..from + 24).map(task).collect();
    let (status, batch) = api(daemon, "POST", "/api/v1/batches", &json!({"tasks": tasks}));
    assert_eq!(status, 202, "{batch}");
    for (at, task) in batch["tasks"].as_array().expect("an array").iter().enumerate() {
        let id = task["id"].as_str().expect("an id");
        let wait = if at % 8 == 7 { 0 } else { 30_000 };
        let (_, task) = api(daemon, "GET", &format!("/api/v1/tasks/{id}?wait_ms={wait}"), &Value::Null);
        let expected = ["succeeded", "dead", "queued"][(at % 8).saturating_sub(5)];
        assert_eq!(task["state"], expected, "{task}");
        let (status, result) = api(daemon, "GET", &format!("/api/v1/tasks/{id}/result"), &Value::Null);
        truth.insert(id.to_owned(), if status == 200 { result } else { Value::Null });
    }
}

/// The journal's files below `from` in the place of those below `to`.
fn put(from: &Path, to: &Path) {
    for entry in fs::read_dir(to).expect("lists") {
        let entry = entry.expect("reads");
        if entry.file_name().to_string_lossy().starts_with("tasks.") {
            let path = entry.path();
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.expect("removes");
        }
    }
    let _ = fs::remove_dir_all(to.join(RESULTS));
    fs::create_dir(to.join(RESULTS)).expect("makes");
    for name in [JOURNAL, WAL, HEAD] {
        fs::copy(from.join(name), to.join(name)).expect("copies");
    }
    for result in results(from) {
        fs::copy(&result, to.join(RESULTS).join(result.file_name().expect("a name"))).expect("copies");
    }
}

fn results(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join(RESULTS)).expect("lists");
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.expect("reads").path()).collect();
    all.sort();
    all
}

fn harm(dir: &Path, name: &str, harm: Harm) {
    let path = if name == RESULTS { results(dir)[1].clone() } else { dir.join(name) };
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("opens");
    let at = |thousandths: u64| (file.metadata().expect("is there").len() - 1) * thousandths / 1000;
    match harm {
        Harm::Cut(thousandths) => file.set_len(at(thousandths)).expect("cuts"),
        Harm::Remove => fs::remove_file(&path).expect("removes"),
        Harm::Flip(thousandths) => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at(thousandths)).expect("reads");
            file.write_all_at(&[byte[0] ^ 0x55], at(thousandths)).expect("writes");
        }
    }
}

/// Compares what a daemon says of the tasks with what was true. Whether something is missing or not what it was.
fn compare(daemon: &Daemon, truth: &BTreeMap<String, Value>, what: &str) -> bool {
    let mut differs = false;
    for (id, expected) in truth {
        let (status, task) = api(daemon, "GET", &format!("/api/v1/tasks/{id}"), &Value::Null);
        if status != 200 {
            assert!(status == 404 || task.to_string().contains("damaged"), "{what}: {id}: {status} {task}");
            differs = true;
            continue;
        }
        if task["state"] != "succeeded" {
            differs |= !expected.is_null();
            continue;
        }
        let (status, result) = api(daemon, "GET", &format!("/api/v1/tasks/{id}/result"), &Value::Null);
        if status == 200 {
            assert_eq!(result, *expected, "{what}: {id}");
        } else {
            assert!(result.to_string().contains("damaged"), "{what}: {id}: {status} {result}");
            differs = true;
        }
    }
    differs
}

#[test]
fn a_damaged_journal_is_told_or_refused_and_gives_no_wrong_result() {
    let mut daemon = Daemon::start("[tasks]\nresult_inline = \"1KiB\"\n", &[]);
    let mut truth = BTreeMap::new();
    work(&daemon, 0, &mut truth);
    // A part is folded in, the rest is in the log.
    daemon.signal(Signal::TERM);
    daemon.wait();
    daemon.start_again(&[]);
    work(&daemon, 24, &mut truth);
    daemon.signal(Signal::KILL);
    daemon.wait();
    let sound = tempfile::tempdir().expect("a directory");
    fs::create_dir(sound.path().join(RESULTS)).expect("makes");
    put(&daemon.state_dir(), sound.path());
    assert!(results(sound.path()).len() > 3);

    let (mut told, mut refused) = (0, 0);
    for case in CASES {
        let what = format!("{case:?}");
        put(sound.path(), &daemon.state_dir());
        case.iter().for_each(|(name, how)| harm(&daemon.state_dir(), name, *how));
        let said_before = daemon.stderr().len();
        if daemon.try_start_again(&[]) {
            let differs = compare(&daemon, &truth, &what);
            let of_journal = |event: &&Value| event["kind"] == "task-journal";
            let events: Vec<Value> = daemon.events().iter().filter(of_journal).cloned().collect();
            assert!(!differs || !events.is_empty(), "{what}: something is lost in silence");
            told += usize::from(!events.is_empty());
            daemon.signal(Signal::KILL);
            daemon.wait();
        } else {
            assert!(!daemon.wait().success(), "{what}");
            let said = daemon.stderr().split_off(said_before);
            let has_way_out = said.contains("begin with an empty one") || said.contains("move");
            assert!(said.contains(JOURNAL) && has_way_out, "{what}: {said}");
            refused += 1;
        }
    }
    assert!(told >= 6 && refused >= 2 && told + refused >= 11, "{told} told, {refused} refused");
}
