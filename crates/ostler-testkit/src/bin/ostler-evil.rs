//! The evil child: an MCP server over stdio that misbehaves as told. For tests of what supervises it.
//!
//! `ostler-evil [WORD...]`, each word with or without `--`; they combine freely:
//!
//! | word             | what it does                                                                              |
//! |------------------|-------------------------------------------------------------------------------------------|
//! | `legacy`         | answers `server/discover` with -32601                                                     |
//! | `late`           | does `double-fork`, `clean-env-fork`, `fork-many`, the floods, the hogs, `close-stdio`,    |
//! |                  | `exit-early` only after the handshake, not at its start                                   |
//! | `double-fork`    | leaves a grandchild in a session of its own that ignores signals and has no stdio         |
//! | `clean-env-fork` | the same with an empty environment; it carries the test's mark as an argument             |
//! | `ignore-term`    | ignores SIGTERM, SIGHUP and SIGINT                                                        |
//! | `ignore-eof`     | lives on when its standard input ends                                                     |
//! | `sigstop`        | stops itself after the handshake                                                          |
//! | `exit-early`     | exits with 3 before the handshake                                                         |
//! | `never-answer`   | reads and says nothing                                                                    |
//! | `flood-stdout`   | rubbish lines without end                                                                 |
//! | `flood-stderr`   | the same on standard error                                                                |
//! | `close-stdio`    | lets go of 0, 1 and 2 and lives on                                                        |
//! | `wrapper`        | the leader only starts the real server and waits for it                                   |
//! | `npx-like`       | the leader starts `sh -c`, which starts the real server                                   |
//! | `fork-many N`    | up to N processes, some in sessions of their own; each starts again what dies below it    |
//! | `hog-memory N`   | takes N MiB, and keeps them                                                               |
//! | `hog-cpu`        | a thread for each processor that does nothing but run                                     |
//! | `hog-files`      | opens files for as long as it may, and goes on trying                                     |
//! | `fork-bomb N`    | starts processes for as long as it may, N at most, and goes on trying                     |
//!
//! It answers `initialize`, `server/discover`, `ping`, `tools/list` and `tools/call` of its one tool, `echo`. A
//! call of the tool `hang`, which it does not list, is never answered.

use std::io::{self, BufRead as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, Stdio};

use ostler_testkit::mark::MARK_VARIABLE;
use rustix::process::{Signal, WaitOptions};
use serde_json::{Value, json};

/// Set for a process that has its signal dispositions already.
const ARMED: &str = "armed";

/// A line of rubbish: not JSON, and long enough that a flood is one.
const RUBBISH: &str = "rubbish rubbish rubbish rubbish rubbish rubbish rubbish rubbish rubbish rubbish";

fn main() -> ExitCode {
    let words: Vec<String> =
        std::env::args().skip(1).map(|word| word.trim_start_matches("--").to_owned()).collect();
    match words.first().map(String::as_str) {
        Some("fork-and-leave") => return fork_and_leave(&words[1..]),
        Some("orphan") => orphan(),
        Some("idle") => idle(),
        Some("forker") => forker(number(&words[1..])),
        _ => {}
    }
    let evil = Evil { words };
    if evil.is("wrapper") {
        return wait_for(&mut again(evil.without("wrapper")));
    }
    if evil.is("npx-like") {
        let mut shell = Command::new("sh");
        // The `exit` keeps the shell from replacing itself by its last command.
        shell.args(["-c", r#""$0" "$@"; exit $?"#]).arg(this()).args(evil.without("npx-like"));
        return wait_for(&mut shell);
    }
    if evil.is("ignore-term") && !evil.is(ARMED) {
        let mut words = evil.words.clone();
        words.push(ARMED.to_owned());
        let error = deaf(&words).exec();
        panic!("cannot run sh: {error}");
    }
    evil.serve()
}

fn this() -> std::path::PathBuf {
    std::env::current_exe().expect("a program knows its file")
}

/// This program again.
fn again(words: impl IntoIterator<Item = String>) -> Command {
    let mut command = Command::new(this());
    command.args(words);
    command
}

/// This program again, ignoring signals: ignored ones stay so over exec, and a shell ignores them without
/// `unsafe`.
fn deaf(words: &[String]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", r#"trap "" TERM HUP INT; exec "$0" "$@""#]).arg(this()).args(words);
    command
}

fn wait_for(command: &mut Command) -> ExitCode {
    let status = command.status().expect("the real server starts");
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

fn number(words: &[String]) -> usize {
    words.first().and_then(|word| word.parse().ok()).expect("a number of processes follows")
}

/// For ever, and for nothing.
fn idle() -> ! {
    loop {
        std::thread::park();
    }
}

/// The middle one of a double fork: its parent is gone from the orphan's ancestors as soon as this returns.
#[expect(clippy::zombie_processes, reason = "leaving it behind is what this is for")]
fn fork_and_leave(words: &[String]) -> ExitCode {
    let mut orphan = deaf(&[&["orphan".to_owned()], words].concat());
    if !words.is_empty() {
        orphan.env_clear();
    }
    orphan.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    orphan.spawn().expect("the orphan starts");
    ExitCode::SUCCESS
}

fn orphan() -> ! {
    rustix::process::setsid().expect("no group leader");
    idle()
}

/// One of many: keeps `budget - 1` processes below it alive.
fn forker(budget: usize) -> ! {
    let mut random = [0_u8; 1];
    getrandom::fill(&mut random).expect("random bytes");
    if random[0] < 128 {
        let _ = rustix::process::setsid();
    }
    keep_alive(budget - 1)
}

/// Keeps `count` forkers alive, in two subtrees: whatever dies is started again.
fn keep_alive(count: usize) -> ! {
    let start = |budget: usize| -> Option<(Child, usize)> {
        let words = ["forker".to_owned(), budget.to_string()];
        Some((again(words).stdin(Stdio::null()).stdout(Stdio::null()).spawn().ok()?, budget))
    };
    let budgets = [count / 2, count - count / 2];
    let mut children: Vec<_> = budgets.into_iter().filter(|&budget| budget > 0).filter_map(start).collect();
    while let Ok(Some((pid, _))) = rustix::process::wait(WaitOptions::empty()) {
        let died = children.iter().position(|(child, _)| rustix::process::Pid::from_child(child) == pid);
        if let Some((_, budget)) = died.map(|at| children.swap_remove(at)) {
            children.extend(start(budget));
        }
    }
    idle()
}

/// Takes so many MiB, piece by piece.
fn hog_memory(mib: usize) -> ! {
    let mut taken = Vec::new();
    for _ in 0..mib {
        // Written to, as the kernel gives only what is used.
        taken.push(std::hint::black_box(vec![1_u8; 1 << 20]));
    }
    idle()
}

fn hog_cpu() {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    for _ in 0..processors {
        std::thread::spawn(|| {
            loop {
                std::hint::spin_loop();
            }
        });
    }
}

/// A refusal is followed by the next try after this.
const TRY_AGAIN: std::time::Duration = std::time::Duration::from_millis(1);

fn hog_files() -> ! {
    let mut open = Vec::new();
    loop {
        match std::fs::File::open("/dev/null") {
            Ok(file) => open.push(file),
            Err(_) => std::thread::park_timeout(TRY_AGAIN),
        }
    }
}

/// Never more than `most`, so that a test whose limits fail does not take the machine with it.
fn fork_bomb(most: usize) -> ! {
    let mut children = Vec::new();
    while children.len() < most {
        let mut child = again(["idle".to_owned()]);
        match child.stdin(Stdio::null()).stdout(Stdio::null()).spawn() {
            Ok(child) => children.push(child),
            Err(_) => std::thread::park_timeout(TRY_AGAIN),
        }
    }
    idle()
}

struct Evil {
    words: Vec<String>,
}

impl Evil {
    fn is(&self, word: &str) -> bool {
        self.words.iter().any(|given| given == word)
    }

    fn without(&self, word: &str) -> Vec<String> {
        self.words.iter().filter(|given| *given != word).cloned().collect()
    }

    fn serve(&self) -> ExitCode {
        if !self.is("late") {
            self.misbehave();
        }
        let mut ready = false;
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            let Ok(request) = serde_json::from_str::<Value>(&line) else {
                continue;
            };
            if self.is("never-answer") {
                continue;
            }
            let handshake = self.answer(&request);
            if handshake && !ready {
                ready = true;
                if self.is("late") {
                    self.misbehave();
                }
                if self.is("sigstop") {
                    let me = rustix::process::getpid();
                    rustix::process::kill_process(me, Signal::STOP).expect("may stop itself");
                }
            }
        }
        if self.is("ignore-eof") || self.is("close-stdio") {
            idle();
        }
        ExitCode::SUCCESS
    }

    fn misbehave(&self) {
        if self.is("double-fork") {
            let status =
                again(["fork-and-leave".to_owned()]).stdin(Stdio::null()).stdout(Stdio::null()).status();
            assert!(status.expect("starts").success());
        }
        if self.is("clean-env-fork") {
            let mark = std::env::var(MARK_VARIABLE).unwrap_or_default();
            let words = ["fork-and-leave".to_owned(), format!("{MARK_VARIABLE}={mark}")];
            let status = again(words).stdin(Stdio::null()).stdout(Stdio::null()).status();
            assert!(status.expect("starts").success());
        }
        if let Some(count) = self.number_of("fork-many") {
            std::thread::spawn(move || keep_alive(count));
        }
        self.hog();
        if self.is("flood-stdout") {
            std::thread::spawn(|| while writeln!(io::stdout(), "{RUBBISH}").is_ok() {});
        }
        if self.is("flood-stderr") {
            std::thread::spawn(|| while writeln!(io::stderr(), "{RUBBISH}").is_ok() {});
        }
        if self.is("close-stdio") {
            // Something has to be there, or the next file opened would become standard output.
            let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").expect("opens");
            rustix::stdio::dup2_stdin(&null).expect("replaced");
            rustix::stdio::dup2_stdout(&null).expect("replaced");
            rustix::stdio::dup2_stderr(&null).expect("replaced");
        }
        if self.is("exit-early") {
            std::process::exit(3);
        }
    }

    /// The number that follows a word, where that was given.
    fn number_of(&self, word: &str) -> Option<usize> {
        let at = self.words.iter().position(|given| given == word)?;
        Some(number(&self.words[at + 1..]))
    }

    fn hog(&self) {
        if let Some(mib) = self.number_of("hog-memory") {
            std::thread::spawn(move || hog_memory(mib));
        }
        if let Some(most) = self.number_of("fork-bomb") {
            std::thread::spawn(move || fork_bomb(most));
        }
        if self.is("hog-cpu") {
            hog_cpu();
        }
        if self.is("hog-files") {
            std::thread::spawn(|| hog_files());
        }
    }

    /// Answers one request; whether it was the handshake and succeeded.
    fn answer(&self, request: &Value) -> bool {
        let Some(id) = request.get("id").filter(|id| !id.is_null()) else {
            return false;
        };
        let Some(method) = request["method"].as_str() else {
            return false;
        };
        if method == "tools/call" && request["params"]["name"] == "hang" {
            return false;
        }
        let result = match method {
            "initialize" => Ok(initialize(request)),
            "server/discover" if !self.is("legacy") => Ok(discover()),
            "ping" => Ok(json!({})),
            "tools/list" => Ok(tools()),
            "tools/call" => echo(request),
            _ => Err((-32601, format!("no method `{method}`"))),
        };
        let answer = match &result {
            Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
            Err((code, message)) => {
                json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
            }
        };
        let mut stdout = io::stdout().lock();
        let _ = writeln!(stdout, "{answer}").and_then(|()| stdout.flush());
        result.is_ok() && matches!(method, "initialize" | "server/discover")
    }
}

fn info() -> Value {
    json!({"name": "ostler-evil", "version": env!("CARGO_PKG_VERSION")})
}

fn initialize(request: &Value) -> Value {
    let asked = request["params"]["protocolVersion"].as_str().unwrap_or("2025-11-25");
    json!({"protocolVersion": asked, "capabilities": {"tools": {}}, "serverInfo": info()})
}

/// `DiscoverResult` of revision 2026-07-28.
fn discover() -> Value {
    json!({
        "resultType": "complete",
        "supportedVersions": ["2026-07-28"],
        "capabilities": {"tools": {}},
        "ttlMs": 0,
        "cacheScope": "private",
        "_meta": {"io.modelcontextprotocol/serverInfo": info()},
    })
}

/// Fields of the modern era do not disturb a legacy client.
fn tools() -> Value {
    json!({
        "resultType": "complete",
        "ttlMs": 0,
        "cacheScope": "private",
        "tools": [{
            "name": "echo",
            "description": "Says what it was told.",
            "inputSchema": {
                "type": "object",
                "properties": {"message": {"type": "string"}},
                "required": ["message"],
            },
        }],
    })
}

fn echo(request: &Value) -> Result<Value, (i32, String)> {
    match request["params"]["name"].as_str() {
        Some("echo") => {
            let message = &request["params"]["arguments"]["message"];
            let text = message.as_str().map_or_else(|| message.to_string(), str::to_owned);
            Ok(
                json!({"resultType": "complete", "content": [{"type": "text", "text": text}], "isError": false}),
            )
        }
        other => Err((-32602, format!("no tool {other:?}"))),
    }
}
