//! The daemon's side, as far as tests need it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use ostler_worker::protocol::{ErrorKind, FromWorker, Level, Ready, TaskError, TaskResult};
use serde_json::{Value, json};

/// Nothing here takes so long, not on a busy machine either.
const DEADLINE: Duration = Duration::from_secs(60);

/// A worker and what it said.
pub(crate) struct Driver {
    child: Child,
    stdin: Option<ChildStdin>,
    said: Receiver<Result<FromWorker, String>>,
    pub(crate) ready: Ready,
    attempt: u32,
    /// What was written down since the last task began.
    pub(crate) logs: Vec<(Level, String)>,
    pub(crate) folder: tempfile::TempDir,
}

/// How a task ended.
#[derive(Debug)]
pub(crate) struct Ended(pub(crate) TaskResult);

impl Ended {
    pub(crate) fn value(&self) -> Value {
        let value = self.0.value.as_ref().unwrap_or_else(|| panic!("no value: {self:?}"));
        serde_json::from_str(value.get()).unwrap()
    }

    pub(crate) fn error(&self) -> &TaskError {
        self.0.error.as_ref().unwrap_or_else(|| panic!("no error: {self:?}"))
    }

    #[track_caller]
    pub(crate) fn is(&self, kind: ErrorKind, part: &str) {
        let error = self.error();
        assert!(error.kind == kind && error.message.contains(part), "not {kind} with {part:?}: {error:?}");
    }
}

pub(crate) fn builtin() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ostler-worker-testbed"))
}

/// A file of `workers/`.
pub(crate) fn workers(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../workers")).canonicalize().unwrap().join(path)
}

impl Driver {
    pub(crate) fn start(mut command: Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        command.current_dir(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (tell, said) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.split(b'\n') {
                let Ok(line) = line else { break };
                let message = FromWorker::parse(&line);
                let message = message.map_err(|why| format!("{why}: {}", String::from_utf8_lossy(&line)));
                if tell.send(message).is_err() {
                    break;
                }
            }
        });
        let stdin = child.stdin.take();
        let first = said.recv_timeout(DEADLINE);
        let Ok(Ok(FromWorker::Ready(ready))) = first else { panic!("not ready: {first:?}") };
        Self { child, stdin, said, ready, attempt: 0, logs: Vec::new(), folder }
    }

    pub(crate) fn builtin() -> Self {
        Self::start(builtin())
    }

    /// Writes a line; whether it was taken.
    pub(crate) fn write(&mut self, line: &[u8]) -> bool {
        let Some(stdin) = &mut self.stdin else { return false };
        stdin.write_all(line).and_then(|()| stdin.write_all(b"\n")).and_then(|()| stdin.flush()).is_ok()
    }

    /// Begins a task. `more`: `limits`, `allow`.
    pub(crate) fn begin(&mut self, kind: &str, payload: &Value, more: &Value) {
        self.attempt += 1;
        self.logs.clear();
        // In this order, as the daemon writes it.
        let mut line = format!(
            "{{\"msg\":\"task\",\"id\":\"t1-00000001\",\"attempt\":{},\"type\":{},\"payload\":{payload}",
            self.attempt,
            json!(kind)
        );
        for (name, value) in more.as_object().into_iter().flatten() {
            line.push_str(&format!(",{}:{value}", json!(name)));
        }
        line.push('}');
        self.write(line.as_bytes());
    }

    pub(crate) fn cancel(&mut self) {
        let line = json!({"msg": "cancel", "id": "t1-00000001", "attempt": self.attempt}).to_string();
        self.write(line.as_bytes());
    }

    /// The next message; none: the worker's output has ended.
    pub(crate) fn next(&mut self) -> Option<FromWorker> {
        match self.said.recv_timeout(DEADLINE) {
            Ok(Ok(message)) => {
                if let FromWorker::Log(log) = &message {
                    self.logs.push((log.level, log.text.clone()));
                }
                Some(message)
            }
            Ok(Err(why)) => panic!("the worker broke the rules: {why}"),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the worker says nothing"),
        }
    }

    /// Until a message that is wanted.
    pub(crate) fn until<T>(&mut self, mut wanted: impl FnMut(&FromWorker) -> Option<T>) -> T {
        // A worker that only says that it is alive is not waited for either.
        let until = Instant::now() + DEADLINE;
        loop {
            let message = self.next().expect("the worker ended");
            assert!(Instant::now() < until, "not in time; the last was {message:?}");
            if let Some(found) = wanted(&message) {
                return found;
            }
        }
    }

    /// Until the task writes something down that begins so.
    pub(crate) fn until_log(&mut self, begins: &str) -> String {
        self.until(|message| match message {
            FromWorker::Log(log) if log.text.starts_with(begins) => Some(log.text.clone()),
            FromWorker::Result(result) => panic!("ended before it said {begins:?}: {result:?}"),
            _ => None,
        })
    }

    /// How the task that was begun last ends.
    pub(crate) fn ended(&mut self) -> Ended {
        let attempt = self.attempt;
        self.until(|message| match message {
            FromWorker::Result(result) if result.attempt == attempt => Some(Ended(result.clone())),
            _ => None,
        })
    }

    pub(crate) fn task(&mut self, kind: &str, payload: &Value, more: &Value) -> Ended {
        self.begin(kind, payload, more);
        self.ended()
    }

    /// A task without limits of its own.
    pub(crate) fn run(&mut self, kind: &str, payload: &Value) -> Ended {
        self.task(kind, payload, &json!({}))
    }

    pub(crate) fn close(&mut self) {
        self.stdin = None;
    }

    /// Its exit status, once it has ended by itself.
    pub(crate) fn exit(mut self) -> ExitStatus {
        while self.next().is_some() {}
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "its output has ended, but it has not");
            std::thread::yield_now();
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// How many processes have this text in their environment.
pub(crate) fn marked(mark: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let environs = processes.filter_map(|process| std::fs::read(process.path().join("environ")).ok());
    environs.filter(|environ| environ.windows(mark.len()).any(|part| part == mark.as_bytes())).count()
}

/// A text that no other test has.
pub(crate) fn mark() -> String {
    let folder = tempfile::tempdir().unwrap();
    format!("ostler-mark-{}", folder.path().file_name().unwrap().to_string_lossy())
}
