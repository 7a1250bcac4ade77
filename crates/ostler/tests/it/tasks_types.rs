//! Each type of task, and each way that it can end: the daemon, its journal and real workers in their sandboxes.
//!
//! What the workers themselves say is tested where they are (`ostler-worker`); here it is what becomes of a task.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Daemon, wait_until};
use crate::tasks::{api, ended, submit};

/// How a task ends.
enum End {
    /// With a result of which this is true.
    Well(fn(&Value) -> bool),
    /// As a dead letter: the kind of its error, and a part of the message.
    Dead(&'static str, &'static str),
    /// Cancelled while it runs.
    Cancelled,
}

use End::{Cancelled, Dead, Well};

struct Row {
    kind: &'static str,
    payload: Value,
    more: Value,
    end: End,
}

fn row(kind: &'static str, payload: Value, more: Value, end: End) -> Row {
    Row { kind, payload, more, end }
}

/// Whether a worker has the niceness of workers, by itself and as a session where the kernel has those.
fn gives_way(value: &Value) -> bool {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("it is there");
    let after_name = stat.rsplit(')').next().expect("a name");
    // proc_pid_stat(5): the 19th, and the third is the first behind the name.
    let own: i32 = after_name.split_whitespace().nth(16).expect("a niceness").parse().expect("a number");
    let wanted = own.max(10);
    let said = value["stdout"].as_str().expect("text");
    let (process, session) = said.split_once('\n').expect("a line");
    process == wanted.to_string() && (session.is_empty() || session.ends_with(&format!(" nice {wanted}\n")))
}

/// A worker of one's own, of a few lines.
const OWN: &str = r#"
import time
from ostler_worker import Invalid, Worker
worker = Worker("own 1.0")
@worker.task("own")
def own(payload, task):
    do = payload.get("do")
    if do == "hang":
        time.sleep(3600)
    if do == "fill":
        bytearray(400 << 20)
    if do == "much":
        return "x" * 5000
    if do == "fail":
        raise ValueError("as asked")
    if do != "well":
        raise Invalid("`do` is none that is known")
    return [1, 2]
worker.run()
"#;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

fn daemon() -> Daemon {
    let config = format!(
        r#"
        [servers.fake]
        command = "{fake}"
        args = ["legacy"]
        scope = "shared"
        [workers]
        max = 2
        [workers.own]
        command = "python3"
        args = ["own.py"]
        cwd = "own"
        env = {{ PYTHONPATH = "{library}" }}
        see = ["{library}"]
        [projects.local]
        private = true
        folders = ["modules"]
        "#,
        fake = ostler_testkit::fake::path().display(),
        library = repository().join("workers/python").display(),
    );
    Daemon::start_with(&config, &[], |folder| {
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        write("own/own.py", OWN);
        write(
            "modules/mine.py",
            "import time\ndef main(n=20): return n + 1\ndef fails(): raise KeyError('mine')\ndef hangs(): time.sleep(3600)\n\
             def fills(): bytearray(400 << 20)\n",
        );
        write(
            "modules/mine.mjs",
            "export default (n = 20) => n + 1;\nexport const fails = () => { throw new Error('mine') };\n\
             export const hangs = () => new Promise((done) => setTimeout(done, 3600e3));\n\
             export const fills = () => { const all = []; for (;;) all.push(new Array(1000).fill(all.length)) };\n",
        );
    })
}

/// A server of HTTP on this machine: `/well`, `/much`; `/hang` gives no answer.
fn http_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut head = [0; 4096];
            let read = stream.read(&mut head).unwrap_or(0);
            let head = String::from_utf8_lossy(&head[..read]).into_owned();
            let body = match head.split(' ').nth(1) {
                Some("/well") => "well".to_owned(),
                Some("/much") => "x".repeat(5000),
                _ => {
                    kept.push(stream);
                    continue;
                }
            };
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    address
}

/// An hour, told from all others.
fn hour(mark: u32) -> String {
    format!("3600.{}{mark}", std::process::id())
}

fn is_running(hour: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("it is there").flatten();
    let mut lines =
        processes.filter_map(|process| std::fs::read_to_string(process.path().join("cmdline")).ok());
    lines.any(|line| line.split('\0').any(|word| word == hour))
}

/// What hangs, with processes of its own; each has the hour among its words.
fn hanging(hour: &str) -> [(&'static str, Value); 4] {
    let python = format!(
        "import subprocess\nsubprocess.Popen(['setsid', 'sleep', '{hour}'])\nwhile True:\n  try:\n    while True: pass\n  except BaseException: pass"
    );
    let node = format!(
        "const {{ spawn }} = require('child_process'); spawn('sleep', ['{hour}']); spawn('sleep', ['{hour}'], {{ detached: true }}); for (;;);"
    );
    let shell = format!("trap '' TERM; setsid sleep {hour} & sleep {hour}");
    [
        ("shell-command", json!({"argv": ["sh", "-c", shell]})),
        ("execute-code", json!({"language": "python", "code": python})),
        ("execute-code", json!({"language": "node", "code": node})),
        // It has no processes.
        ("execute-code", json!({"code": "for (;;);"})),
    ]
}

fn code_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let js = |code: &str| json!({ "code": code });
    let python = |code: &str| json!({"language": "python", "code": code});
    let node = |code: &str| json!({"language": "node", "code": code});
    let small = || json!({"memory_bytes": 40 << 20});
    let little = || json!({"output_bytes": 1000});
    let none = || json!({});
    for (payload, more, end) in [
        (js("return 1 + 1"), none(), Well(|value| *value == 2)),
        (js("throw new Error('mine')"), none(), Dead("failed", "mine")),
        (
            js("const a = []; for (;;) a.push(new Array(1000).fill(1))"),
            small(),
            Dead("memory", "limits.memory"),
        ),
        (js("return 'x'.repeat(5000)"), little(), Dead("output", "1000")),
        (js("("), none(), Dead("invalid", "SyntaxError")),
        (python("1 + 1"), none(), Well(|value| *value == 2)),
        (python("raise ValueError('mine')"), none(), Dead("failed", "ValueError: mine")),
        (python("import os; os._exit(3)"), none(), Dead("failed", "exit status 3")),
        (python("bytearray(400 << 20)"), small(), Dead("memory", "limits.memory")),
        (python("'x' * 5000"), little(), Dead("output", "1000")),
        (python("("), none(), Dead("invalid", "SyntaxError")),
        (node("return 1 + 1"), none(), Well(|value| *value == 2)),
        (node("throw new TypeError('mine')"), none(), Dead("failed", "TypeError: mine")),
        (
            node("const a = []; for (;;) a.push(new Array(1000).fill(a.length))"),
            small(),
            Dead("memory", "limits.memory"),
        ),
        (node("return 'x'.repeat(5000)"), little(), Dead("output", "1000")),
        (node("("), none(), Dead("invalid", "SyntaxError")),
    ] {
        rows.push(row("execute-code", payload, more, end));
    }
    for (payload, more, end) in [
        (json!({"function": "(a, b) => a * b", "args": [6, 7]}), none(), Well(|value| *value == 42)),
        (json!({"function": "() => { throw 'mine' }"}), none(), Dead("failed", "mine")),
        (
            json!({"function": "() => { const a = []; for (;;) a.push(new Array(1000).fill(1)) }"}),
            small(),
            Dead("memory", "limits.memory"),
        ),
        (json!({"function": "() => 'x'.repeat(5000)"}), little(), Dead("output", "1000")),
        (json!({"function": "5"}), none(), Dead("invalid", "no function")),
        (
            json!({"language": "python", "function": "lambda a, b: a * b", "args": [6, 7]}),
            none(),
            Well(|value| *value == 42),
        ),
        (
            json!({"language": "node", "function": "async (a, b) => a * b", "args": [6, 7]}),
            none(),
            Well(|value| *value == 42),
        ),
    ] {
        rows.push(row("execute-function", payload, more, end));
    }
    rows
}

fn module_rows(folder: &Path) -> Vec<Row> {
    let mut rows = Vec::new();
    for (file, failed, elsewhere) in [
        ("mine.py", "KeyError", Dead("refused", "allows")),
        ("mine.mjs", "Error: mine", Dead("invalid", "no module")),
    ] {
        let module = |function: Option<&str>| {
            let mut payload = json!({"module": folder.join("modules").join(file)});
            if let Some(function) = function {
                payload["function"] = function.into();
            }
            payload
        };
        let missing = json!({"module": folder.join("modules").join(format!("no-{file}"))});
        let with = |more: Value| {
            let mut all = json!({"project": "local"});
            all.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
            all
        };
        for (payload, more, end) in [
            (module(None), json!({}), Well(|value: &Value| *value == 21)),
            (module(Some("fails")), json!({}), Dead("failed", failed)),
            (module(Some("hangs")), json!({"timeout_ms": 1000}), Dead("timeout", "1000 ms")),
            (module(Some("hangs")), json!({}), Cancelled),
            (module(Some("fills")), json!({"memory_bytes": 40 << 20}), Dead("memory", "limits.memory")),
            (module(None), json!({"output_bytes": 1}), Dead("output", "2 bytes")),
            (missing, json!({}), Dead("invalid", "no module")),
        ] {
            rows.push(row("execute-module", payload, with(more), end));
        }
        // A project that does not allow the folder: it is not even there.
        rows.push(row("execute-module", module(None), json!({}), elsewhere));
    }
    rows
}

fn other_rows(http: &str) -> Vec<Row> {
    let local = || json!({"project": "local"});
    let get = |path: &str| json!({"url": format!("{http}{path}")});
    let tool = |tool: &str, arguments: Value| json!({"server": "fake", "tool": tool, "arguments": arguments});
    let own = |what: &str| json!({ "do": what });
    let much = |mut payload: Value| {
        payload["max_body"] = 1000.into();
        payload
    };
    vec![
        row(
            "http-request",
            get("/well"),
            local(),
            Well(|value| value["body"] == "well" && value["status"] == 200),
        ),
        row("http-request", get("/well"), json!({}), Dead("refused", "this machine's own")),
        row(
            "http-request",
            get("/hang"),
            json!({"project": "local", "timeout_ms": 1000}),
            Dead("timeout", "1000 ms"),
        ),
        row("http-request", get("/hang"), local(), Cancelled),
        // The one bound on what it holds, of memory as of output.
        row("http-request", much(get("/much")), local(), Dead("output", "max_body")),
        row("http-request", json!({"url": "no address"}), json!({}), Dead("invalid", "url")),
        row("http-request", json!({"url": "http://127.0.0.1:1/"}), local(), Dead("failed", "refused")),
        row(
            "shell-command",
            json!({"argv": ["echo", "a b"]}),
            json!({}),
            Well(|value| value["stdout"] == "a b\n"),
        ),
        row(
            "shell-command",
            json!({"argv": ["sh", "-c", "nice; cat /proc/self/autogroup || true"]}),
            json!({}),
            Well(gives_way),
        ),
        row("shell-command", json!({"argv": ["sh", "-c", "exit 3"]}), json!({}), Dead("failed", "status 3")),
        row(
            "shell-command",
            json!({"argv": ["python3", "-c", "import time; a = bytearray(200 << 20); time.sleep(60)"]}),
            json!({"memory_bytes": 60 << 20}),
            Dead("memory", "limits.memory"),
        ),
        row(
            "shell-command",
            json!({"argv": ["seq", "10000"]}),
            json!({"output_bytes": 1000}),
            Dead("output", "1000"),
        ),
        row("shell-command", json!({"argv": []}), json!({}), Dead("invalid", "argv")),
        row(
            "shell-command",
            json!({"argv": ["no-such-program"]}),
            json!({}),
            Dead("invalid", "no-such-program"),
        ),
        row(
            "mcp-tool",
            tool("echo", json!({"text": "a"})),
            json!({}),
            Well(|value| value["content"][0]["text"] == "a"),
        ),
        row("mcp-tool", tool("none", json!({})), json!({}), Dead("failed", "none")),
        row(
            "mcp-tool",
            tool("sleep", json!({"ms": 3_600_000})),
            json!({"timeout_ms": 1000}),
            Dead("timeout", "1s"),
        ),
        row("mcp-tool", tool("sleep", json!({"ms": 3_600_000})), json!({}), Cancelled),
        row(
            "mcp-tool",
            tool("big", json!({"bytes": 5000})),
            json!({"output_bytes": 1000}),
            Dead("output", "1000"),
        ),
        row("own", own("well"), json!({}), Well(|value| *value == json!([1, 2]))),
        row("own", own("fail"), json!({}), Dead("failed", "ValueError: as asked")),
        row("own", own("hang"), json!({"timeout_ms": 1000}), Dead("timeout", "1000 ms")),
        row("own", own("hang"), json!({}), Cancelled),
        row("own", own("fill"), json!({"memory_bytes": 40 << 20}), Dead("memory", "limits.memory")),
        row("own", own("much"), json!({"output_bytes": 1000}), Dead("output", "1000")),
        row("own", own("?"), json!({}), Dead("invalid", "none that is known")),
    ]
}

#[test]
fn each_type_ends_as_it_should_in_each_way() {
    let daemon = daemon();
    let (stopped, cancelled) = (hour(1), hour(2));
    let mut rows = code_rows();
    rows.extend(module_rows(daemon.dir()));
    rows.extend(other_rows(&http_server()));
    for (kind, payload) in hanging(&stopped) {
        rows.push(row(kind, payload, json!({"timeout_ms": 1500}), Dead("timeout", "1500 ms")));
    }
    for (kind, payload) in hanging(&cancelled) {
        rows.push(row(kind, payload, json!({}), Cancelled));
    }
    let path = |id: &str| format!("/api/v1/tasks/{id}");
    let submitted: Vec<(Row, String)> = rows
        .into_iter()
        .map(|mut row| {
            row.more["attempts"] = 1.into();
            let id = submit(&daemon, row.kind, row.payload.clone(), row.more.clone());
            (row, id)
        })
        .collect();
    let mut wrong = Vec::new();
    for (row, id) in &submitted {
        if let Cancelled = row.end {
            wait_until(&format!("{} runs: {}", row.kind, row.payload), || {
                api(&daemon, "GET", &path(id), &Value::Null).1["state"] == "running"
            });
            let (status, answer) = api(&daemon, "POST", &format!("{}/cancel", path(id)), &Value::Null);
            assert!(status < 300, "{answer}");
        }
    }
    for (row, id) in &submitted {
        let task = ended(&daemon, id);
        let why = task["why"].as_str().unwrap_or_default();
        let is_right = match &row.end {
            Cancelled => task["state"] == "cancelled",
            Dead(kind, part) => {
                task["state"] == "dead" && why.starts_with(&format!("{kind}: ")) && why.contains(part)
            }
            Well(is_right) => {
                let (_, result) = api(&daemon, "GET", &format!("{}/result", path(id)), &Value::Null);
                task["state"] == "succeeded" && is_right(&result)
            }
        };
        if !is_right {
            wrong.push(format!("{} {}: {} {why}", row.kind, row.payload, task["state"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    wait_until("nothing of them runs any more", || !is_running(&stopped) && !is_running(&cancelled));
}

#[test]
fn what_cannot_be_is_refused_when_it_is_submitted() {
    let daemon = daemon();
    for (kind, payload, part) in [
        ("no-such-type", json!({}), "execute-code"),
        ("execute-code", json!([1]), "object"),
        ("execute-code", json!({"language": "perl", "code": ""}), "perl"),
        ("mcp-tool", json!({"tool": "echo"}), "server"),
    ] {
        let (status, answer) =
            api(&daemon, "POST", "/api/v1/tasks", &json!({"type": kind, "payload": payload}));
        let said = answer["error"].as_str().unwrap_or_default();
        assert!(status == 400 && said.contains(part), "{kind}: {status} {answer}");
    }
}
