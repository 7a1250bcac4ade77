//! A daemon of the test's own, and the ways to talk to it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything in a test may take before it counts as failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running `ostler up` in directories of its own. Ended, with all it runs, when dropped.
pub(crate) struct Daemon {
    dir: TempDir,
    child: Option<Child>,
    /// The words of a command that starts its arguments in its own place, where the daemon is not to be started by
    /// itself.
    below: &'static [&'static str],
}

impl Daemon {
    /// Starts a daemon with this configuration (TOML); `listen` is added. Variables are added to its environment.
    pub(crate) fn start(config: &str, env: &[(&str, &str)]) -> Self {
        Self::start_with(config, env, |_| {})
    }

    /// The same, after `prepare` has put things into the folder of the configuration.
    pub(crate) fn start_with(config: &str, env: &[(&str, &str)], prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        write_config(dir.path(), config);
        prepare(dir.path());
        let mut daemon = Self { dir, child: None, below: &[] };
        daemon.start_again(env);
        daemon
    }

    /// The same by a command that starts its arguments in its own place.
    pub(crate) fn start_below(below: &'static [&'static str], config: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        write_config(dir.path(), config);
        let mut daemon = Self { dir, child: None, below };
        daemon.start_again(&[]);
        daemon
    }

    /// Writes another configuration over the one it was started with.
    pub(crate) fn rewrite(&self, config: &str) {
        write_config(self.dir.path(), config);
    }

    /// Starts a daemon once more in the same directories.
    pub(crate) fn start_again(&mut self, env: &[(&str, &str)]) {
        assert!(self.try_start_again(env), "the daemon ended: {}", self.stderr());
    }

    /// The same; false where it has ended instead of listening.
    pub(crate) fn try_start_again(&mut self, env: &[(&str, &str)]) -> bool {
        let _ = std::fs::remove_file(self.endpoint_file());
        let log = |name: &str| {
            let path = self.dir.path().join(name);
            std::fs::OpenOptions::new().create(true).append(true).open(path).expect("a log file")
        };
        let ostler = self.ostler();
        let mut words = self.below.iter().map(std::ffi::OsStr::new).chain([ostler.get_program()]);
        let mut command = Command::new(words.next().expect("the program at least"));
        command.args(words).envs(ostler.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.arg("up").arg(self.dir.path().join("ostler.toml")).envs(env.iter().copied());
        command.stdin(Stdio::null()).stdout(log("out")).stderr(log("err"));
        self.child = Some(command.spawn().expect("ostler starts"));
        wait_until("the daemon listens", || self.endpoint_file().exists() || self.ended());
        self.endpoint_file().exists()
    }

    fn endpoint_file(&self) -> PathBuf {
        self.run_dir().join("endpoint.json")
    }

    /// The daemon's state directory.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The command `ostler`, aimed at this daemon.
    pub(crate) fn ostler(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ostler"));
        command.env("OSTLER_RUNTIME_DIR", self.run_dir()).env("OSTLER_STATE_DIR", self.state_dir());
        command
    }

    /// Runs `ostler ARGS` to its end, which must come within [`PATIENCE`] (else its status is 124).
    pub(crate) fn cli(&self, args: &[&str]) -> Output {
        let ostler = self.ostler();
        let mut bounded = Command::new("timeout");
        bounded.arg(PATIENCE.as_secs().to_string()).arg(ostler.get_program()).args(args);
        bounded.envs(ostler.get_envs().filter_map(|(name, value)| Some((name, value?))));
        bounded.stdin(Stdio::null()).output().expect("`timeout` (coreutils) runs")
    }

    /// The rows of `ostler ps --json`.
    pub(crate) fn ps(&self) -> Vec<Value> {
        let output = self.cli(&["ps", "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("an array")
    }

    /// The events so far.
    pub(crate) fn events(&self) -> Vec<Value> {
        let output = self.cli(&["events", "--json", "-n", "2000"]);
        serde_json::from_slice(&output.stdout).expect("an array")
    }

    /// `ostler status --json`: the daemon as a whole.
    pub(crate) fn status(&self) -> Value {
        serde_json::from_slice(&self.cli(&["status", "--json"]).stdout).expect("an object")
    }

    /// Waits until a row of `ps` for this server satisfies `wanted`, and returns it.
    pub(crate) fn wait_row(&self, server: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        wait_until(what, || {
            found = self.ps().into_iter().find(|row| row["server"] == server && wanted(row));
            found.is_some()
        });
        found.expect("it was found")
    }

    /// The address of the listener, `127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> String {
        let text = std::fs::read_to_string(self.endpoint_file()).expect("the endpoint file");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        value["http"].as_str().expect("an address").trim_start_matches("http://").to_owned()
    }

    /// The socket of the management API.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir().join("api.sock")
    }

    /// The daemon's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Sends the daemon a signal by its number.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid().cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, signal)
            .expect("the daemon is there: it is not reaped before `wait`");
    }

    /// Waits until the daemon has ended.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let mut status = None;
        wait_until("the daemon ends", || {
            status = child.try_wait().expect("it can be waited for");
            status.is_some()
        });
        status.expect("it ended")
    }

    fn ended(&self) -> bool {
        // A zombie counts: it has ended, and is reaped later.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
    }

    /// What the daemon wrote on standard error.
    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("err")).unwrap_or_default()
    }

    /// What the daemon wrote on standard output.
    pub(crate) fn stdout(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("out")).unwrap_or_default()
    }

    /// The daemon's directory.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The guards end the servers; nothing of a failed test stays.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn write_config(dir: &Path, config: &str) {
    let text = if config.contains("[gateway]") {
        config.replacen("[gateway]", "[gateway]\nlisten = \"127.0.0.1:0\"", 1)
    } else {
        format!("[gateway]\nlisten = \"127.0.0.1:0\"\n{config}")
    };
    std::fs::write(dir.join("ostler.toml"), text).expect("the configuration is written");
}

/// Asks the listener at `address` for `path`; gives the status and the body.
pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the daemon listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("the daemon reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer in time");
    let (head, body) = answer.split_once("\r\n\r\n").expect("headers end with an empty line");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

/// Waits until `done` says so. Looks often; the time is only a bound.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
