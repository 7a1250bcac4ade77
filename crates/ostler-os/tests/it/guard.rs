//! A guard that is killed, stopped, or shouted at.

use std::process::Command;
use std::time::Duration;

use ostler_os::{Exit, GuardEvent, sweep, tree};
use ostler_testkit::evil;
use ostler_testkit::mark::Mark as TestMark;
use rustix::process::Signal;

use super::{
    DEADLINE, SWEEPS, assert_nothing_left, is_orphan, kill, see, spawn, spawn_evil, started, testbed,
    until_empty,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_guard_leaves_is_swept() {
    let _sweeps = SWEEPS.write().await;
    for words in [
        &["double-fork", "ignore-eof", "ignore-term"][..],
        &["clean-env-fork", "ignore-eof", "ignore-term"],
        &["npx-like", "ignore-eof", "ignore-term", "double-fork"],
    ] {
        let mark = TestMark::new();
        let mut tree = spawn_evil(&mark, words).await;
        started(&mut tree.events).await;
        see(&mark, "an orphan", |marked| marked.iter().any(is_orphan)).await;
        kill(tree.guard_pid, Signal::KILL);
        assert_eq!(until_empty(&mut tree.events).await, [GuardEvent::GuardDied(Exit::Signal(9))]);
        assert_nothing_left(&mark, (tree.guard_pid, tree.guard_start));
        assert_eq!(sweep::orphans().expect("/proc"), [] as [i32; 0], "reaped, too");
    }
}

/// In a pid namespace whose session leader is outside (a container's exec, a sandbox), a process's own session
/// is 0.
#[test]
fn a_killed_guard_is_swept_in_a_session_from_outside_the_pid_namespace() {
    let _orphans = SWEEPS.blocking_read();
    let inside = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    let unshare = |user: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(user).args(inside);
        command
    };
    let works = |user: &&[&str]| unshare(user).arg("true").output().is_ok_and(|out| out.status.success());
    let Some(user) = [&[][..], &["--user", "--map-root-user"]].into_iter().find(works) else {
        eprintln!("SKIPPED: `unshare --pid` is not permitted here, not even with a user namespace");
        return;
    };
    let mark = TestMark::new();
    let (name, value) = mark.env();
    let mut command = unshare(user);
    command.arg(testbed()).arg("sweep").arg(evil::path()).args(["double-fork", "ignore-eof", "ignore-term"]);
    let output = command.env(name, value).output().expect("unshare starts");
    assert!(output.status.success(), "{output:#?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "empty\n", "{output:#?}");
    let left = mark.wait_for(DEADLINE, <[_]>::is_empty);
    assert!(left.is_ok(), "{left:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_forks_of_a_killed_guard_are_swept() {
    let _sweeps = SWEEPS.write().await;
    let mark = TestMark::new();
    let mut tree = spawn_evil(&mark, &["fork-many", "40"]).await;
    started(&mut tree.events).await;
    see(&mark, "many", |marked| marked.len() >= 41).await;
    kill(tree.guard_pid, Signal::KILL);
    until_empty(&mut tree.events).await;
    assert_nothing_left(&mark, (tree.guard_pid, tree.guard_start));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guards_that_die_together_spare_the_living() {
    let _sweeps = SWEEPS.write().await;
    let (mark, living) = (TestMark::new(), TestMark::new());
    let mut spared = spawn_evil(&living, &["double-fork", "ignore-eof"]).await;
    started(&mut spared.events).await;
    see(&living, "an orphan", |marked| marked.iter().any(is_orphan)).await;
    let mut trees = Vec::new();
    for _ in 0..6 {
        trees.push(spawn_evil(&mark, &["double-fork", "ignore-eof"]).await);
    }
    for tree in &mut trees {
        started(&mut tree.events).await;
    }
    see(&mark, "orphans", |marked| marked.iter().filter(|one| is_orphan(one)).count() == 6).await;
    trees.iter().for_each(|tree| kill(tree.guard_pid, Signal::KILL));
    // Guards that start while the sweeps run are not taken for orphans.
    let mut fresh = spawn_evil(&living, &["ignore-eof"]).await;
    for tree in &mut trees {
        assert_eq!(until_empty(&mut tree.events).await, [GuardEvent::GuardDied(Exit::Signal(9))]);
    }
    assert_eq!(mark.processes(), []);
    started(&mut fresh.events).await;
    assert_eq!(living.wait_count(3, DEADLINE).expect("all three live").len(), 3);
    for mut tree in [spared, fresh] {
        tree.control.kill();
        let events = until_empty(&mut tree.events).await;
        assert_eq!(events, [GuardEvent::LeaderExited(Exit::Signal(9))], "not killed by a sweep before");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_killed_at_any_moment_leaves_nothing() {
    let _sweeps = SWEEPS.write().await;
    for round in 0..30_u64 {
        let mark = TestMark::new();
        let mut tree = spawn_evil(&mark, &["double-fork", "ignore-eof"]).await;
        // From before it has read its command to long after the orphan was made.
        tokio::time::sleep(Duration::from_micros(round * 700)).await;
        tree.control.kill_guard();
        let events = until_empty(&mut tree.events).await;
        assert_eq!(events.last(), Some(&GuardEvent::GuardDied(Exit::Signal(9))), "round {round}");
        assert_nothing_left(&mark, (tree.guard_pid, tree.guard_start));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_spares_children_of_other_code() {
    let _sweeps = SWEEPS.write().await;
    let mark = TestMark::new();
    let mut own = std::process::Command::new("sleep").arg("600").spawn().expect("sleep starts");
    let mut tree = spawn_evil(&mark, &["double-fork"]).await;
    started(&mut tree.events).await;
    tree.control.kill_guard();
    until_empty(&mut tree.events).await;
    assert_eq!(own.try_wait().expect("ours"), None, "it lives");
    own.kill().expect("ours");
    own.wait().expect("ours");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_its_server_has_stopped_still_obeys() {
    let mark = TestMark::new();
    let mut tree = spawn(&mark, testbed(), &["stop-parent"]);
    let guard = tree.guard_pid;
    // It may be stopped before it has reported anything.
    let is_stopped = |pid| tree::read(pid).expect("/proc").is_some_and(|process| process.state == b'T');
    see(&mark, "a stopped guard", |_| is_stopped(guard)).await;
    tree.control.kill();
    let events = until_empty(&mut tree.events).await;
    assert_eq!(events.last(), Some(&GuardEvent::LeaderExited(Exit::Signal(9))));
    assert_nothing_left(&mark, (tree.guard_pid, tree.guard_start));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_of_a_terminal_and_of_a_service_manager_do_not_reach_it() {
    let mark = TestMark::new();
    let mut tree = spawn_evil(&mark, &["ignore-eof"]).await;
    let (leader, _) = started(&mut tree.events).await;
    let session = |pid| tree::read(pid).expect("/proc").expect("alive").session;
    let own = session(std::process::id().cast_signed());
    let guards = session(tree.guard_pid);
    assert_ne!(guards, own, "no terminal's group contains it");
    assert_eq!(session(leader), leader, "nor the server");
    for signal in
        [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::PIPE, Signal::TSTP, Signal::USR1]
    {
        kill(tree.guard_pid, signal);
    }
    // It is there, and does its work.
    tree.control.terminate();
    assert_eq!(until_empty(&mut tree.events).await, [GuardEvent::LeaderExited(Exit::Signal(15))]);
    assert_nothing_left(&mark, (tree.guard_pid, tree.guard_start));
}
