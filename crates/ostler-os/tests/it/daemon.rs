//! A daemon that is killed: its guards end everything.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use ostler_os::reap::TreeRecord;
use ostler_testkit::evil;
use ostler_testkit::mark::{Mark as TestMark, Marked};

use super::{DEADLINE, SWEEPS, is_orphan, testbed};

/// Everything has to be gone this long after the daemon was killed: the promise.
const PROMISE: Duration = Duration::from_secs(2);

/// A daemon of the testbed, whose processes carry the mark.
pub(crate) struct Daemon {
    child: Child,
    /// What it says, read by a thread so that waiting for it has a deadline.
    lines: mpsc::Receiver<String>,
    /// The marks of its trees, which its guards carry as an argument.
    marks: Vec<String>,
}

impl Daemon {
    pub(crate) fn start(mark: &TestMark, count: usize, program: &str, words: &[&str]) -> Self {
        let (name, value) = mark.env();
        let mut command = Command::new(testbed());
        command.arg("daemon").arg(count.to_string()).arg(program).args(words).env(name, value);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the daemon starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
        });
        let mut daemon = Self { child, lines, marks: Vec::new() };
        daemon.marks = (0..count).map(|_| daemon.line()).collect();
        daemon
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("a line before the deadline")
    }

    pub(crate) fn evil(mark: &TestMark, count: usize, words: &[&str]) -> Self {
        Self::start(mark, count, evil::path().to_str().expect("text"), words)
    }

    /// Once all trees run.
    pub(crate) fn records(&self) -> Vec<TreeRecord> {
        self.marks.iter().map(|_| serde_json::from_str(&self.line()).expect("a record")).collect()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("ours");
        self.child.wait().expect("ours");
    }

    /// Its living guards.
    pub(crate) fn guards(&self) -> Vec<i32> {
        let entries = std::fs::read_dir("/proc").expect("/proc is readable").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = command.split(|&byte| byte == 0);
            words.any(|word| self.marks.iter().any(|mark| word == mark.as_bytes()))
        })
        .collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Within the promised time neither a marked process nor a guard is left.
pub(crate) fn assert_promise(mark: &TestMark, daemon: &Daemon, context: &str) {
    let left = mark.wait_for(PROMISE, |marked| marked.is_empty() && daemon.guards().is_empty());
    assert!(left.is_ok(), "{context}: left {left:#?}, guards {:?}", daemon.guards());
}

fn check(words: &[&str], at_its_worst: impl Fn(&[Marked]) -> bool) {
    let _orphans = SWEEPS.blocking_read();
    let mark = TestMark::new();
    let mut daemon = Daemon::evil(&mark, 3, words);
    daemon.records();
    mark.wait_for(DEADLINE, at_its_worst).expect("at its worst");
    if words != ["exit-early"] {
        assert_eq!(daemon.guards().len(), 3);
    }
    daemon.kill();
    assert_promise(&mark, &daemon, &words.join(" "));
}

#[test]
fn every_evil_child_ends_with_its_killed_daemon() {
    let orphans = |marked: &[Marked]| marked.iter().filter(|one| is_orphan(one)).count() == 3;
    let any = |_: &[Marked]| true;
    check(&["double-fork"], orphans);
    check(&["double-fork", "ignore-eof", "ignore-term"], orphans);
    check(&["clean-env-fork", "ignore-eof", "ignore-term"], orphans);
    check(&["ignore-eof"], any);
    check(&["sigstop"], any);
    check(&["never-answer", "ignore-eof"], any);
    check(&["flood-stdout", "ignore-eof"], any);
    check(&["flood-stderr", "ignore-eof"], any);
    check(&["close-stdio"], any);
    check(&["exit-early"], any);
    check(&["wrapper", "ignore-eof", "ignore-term"], |marked| marked.len() >= 6);
    check(&["npx-like", "ignore-eof", "ignore-term"], |marked| marked.len() >= 9);
    check(&["fork-many", "30", "ignore-eof", "ignore-term"], |marked| marked.len() >= 93);
}

#[test]
fn a_guard_its_server_has_stopped_sees_the_daemon_end() {
    let _orphans = SWEEPS.blocking_read();
    let mark = TestMark::new();
    let mut daemon = Daemon::start(&mark, 1, testbed().to_str().expect("text"), &["stop-parent"]);
    // It may be stopped before it has reported anything.
    let stopped =
        |pid| ostler_os::tree::read(pid).expect("/proc").is_some_and(|process| process.state == b'T');
    mark.wait_for(DEADLINE, |_| daemon.guards().into_iter().any(stopped)).expect("a stopped guard");
    daemon.kill();
    assert_promise(&mark, &daemon, "stop-parent");
}

#[test]
fn a_daemon_killed_at_any_moment_leaves_nothing() {
    let _orphans = SWEEPS.blocking_read();
    for round in 0..40_u32 {
        let mark = TestMark::new();
        // It says its marks, then starts guards; the delay goes from "none started" to "all run".
        let mut daemon = Daemon::evil(&mark, 4, &["double-fork", "ignore-eof"]);
        wait(Duration::from_micros(u64::from(round) * 500));
        daemon.kill();
        assert_promise(&mark, &daemon, &format!("after {} us", round * 500));
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the moment of death is what varies here; nothing is waited for"
)]
fn wait(time: Duration) {
    std::thread::sleep(time);
}
