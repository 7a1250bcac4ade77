//! Daemon and guards killed together: the next daemon finds what they left by what was recorded.

use ostler_os::reap::{self, TreeRecord};
use ostler_os::tree;
use ostler_testkit::mark::{Mark as TestMark, Marked};
use rustix::process::Signal;

use super::daemon::Daemon;
use super::{DEADLINE, SWEEPS, is_orphan, kill};

/// Kills daemon and guards so that neither can clean up after the other.
fn kill_both(daemon: &mut Daemon, records: &[TreeRecord]) {
    // A stopped daemon does not sweep.
    kill(daemon.pid(), Signal::STOP);
    records.iter().for_each(|record| kill(record.guard_pid, Signal::KILL));
    daemon.kill();
}

fn check(words: &[&str], wanted: impl Fn(&[Marked]) -> bool) {
    let _orphans = SWEEPS.blocking_read();
    let mark = TestMark::new();
    let mut daemon = Daemon::evil(&mark, 3, words);
    let records = daemon.records();
    mark.wait_for(DEADLINE, wanted).expect("at its worst");
    kill_both(&mut daemon, &records);
    assert_ne!(mark.count(), 0, "{words:?}: nothing to reap, so this tests nothing");
    let report = reap::reap(&records).expect("reaped");
    assert_eq!(mark.processes(), [], "{words:?}");
    assert_eq!(report.remaining, [] as [i32; 0]);
    assert!(!report.killed.is_empty());
    let again = reap::reap(&records).expect("reaped");
    assert_eq!((again.killed.len(), again.rounds), (0, 1), "nothing is found any more");
}

fn orphans(marked: &[Marked]) -> bool {
    marked.iter().filter(|one| is_orphan(one)).count() == 3
}

#[test]
fn orphans_are_found_by_their_mark() {
    check(&["double-fork", "ignore-eof"], orphans);
}

#[test]
fn orphans_without_an_environment_are_found_by_their_limit() {
    check(&["clean-env-fork", "ignore-eof"], orphans);
}

#[test]
fn real_servers_behind_wrappers_are_found() {
    check(&["npx-like", "ignore-eof", "ignore-term"], |marked| {
        marked.iter().filter(|one| one.command.ends_with("armed") && !one.command.starts_with("sh ")).count()
            == 3
    });
}

#[test]
fn many_that_start_each_other_again_are_ended() {
    check(&["fork-many", "30"], |marked| marked.len() >= 93);
}

#[test]
fn a_guard_that_lives_is_ended_after_its_tree() {
    let _orphans = SWEEPS.blocking_read();
    let mark = TestMark::new();
    let mut daemon = Daemon::evil(&mark, 2, &["clean-env-fork", "ignore-eof"]);
    let records = daemon.records();
    let ready = |marked: &[Marked]| marked.iter().filter(|one| is_orphan(one)).count() == 2;
    mark.wait_for(DEADLINE, ready).expect("orphans without environment");
    // Frozen as a whole, so that it is the reaper that ends it.
    kill(daemon.pid(), Signal::STOP);
    records.iter().for_each(|record| kill(record.guard_pid, Signal::STOP));
    reap::reap(&records).expect("reaped");
    let living = |record: &TreeRecord| super::is_alive((record.guard_pid, record.guard_start));
    assert!(!records.iter().any(living), "no guard");
    daemon.kill();
    assert_eq!(mark.processes(), []);
}

#[test]
fn members_of_the_leaders_session_are_found_without_mark_and_parent() {
    let _orphans = SWEEPS.blocking_read();
    let mark = TestMark::new();
    // Its child has no environment and loses its parent, but stays in the session.
    let (name, value) = mark.env();
    let script = format!("env -i sleep 600 {name}={value} & wait");
    let script = script.replace("sleep 600", r#"sh -c 'sleep 600; :'"#);
    let mut daemon = Daemon::start(&mark, 1, "sh", &["-c", &script]);
    let records = daemon.records();
    let unmarked = |marked: &[Marked]| marked.iter().any(|one| one.command.starts_with("sh -c sleep"));
    let seen = mark.wait_for(DEADLINE, unmarked).expect("runs");
    let child = seen.iter().find(|one| one.command.starts_with("sh -c sleep")).expect("just seen").pid;
    let start_time = tree::read(child).expect("/proc").expect("alive").start_time;
    kill_both(&mut daemon, &records);
    assert!(super::is_alive((child, start_time)), "nothing to reap, so this tests nothing");
    let report = reap::reap(&records).expect("reaped");
    assert!(report.killed.contains(&(child, start_time)), "{report:?}");
    assert_eq!(mark.processes(), []);
}

#[test]
fn a_number_that_belongs_to_somebody_else_now_is_left_alone() {
    let _orphans = SWEEPS.blocking_read();
    let mut stranger = std::process::Command::new("sleep").arg("600").spawn().expect("sleep starts");
    let pid = stranger.id().cast_signed();
    let start = tree::read(pid).expect("/proc").expect("alive").start_time;
    let record = TreeRecord {
        mark: ostler_os::Mark::random().to_string(),
        guard_pid: pid,
        guard_start: start - 1,
        leader_pid: Some(pid),
        leader_start: Some(start - 1),
        boot_id: ostler_os::boot::boot_id().expect("a boot id"),
    };
    let report = reap::reap(&[record]).expect("reaped");
    assert_eq!(report.killed, []);
    assert_eq!(stranger.try_wait().expect("ours"), None, "it lives");
    stranger.kill().expect("ours");
    stranger.wait().expect("ours");
}

#[test]
fn a_marked_process_whose_first_thread_ended_is_found() {
    let mark = ostler_os::Mark::random();
    let mut command = std::process::Command::new(super::testbed());
    command.arg("zombie-leader").env("OSTLER_INSTANCE", mark.to_string());
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().expect("starts");
    let pid = child.id().cast_signed();
    let unused = TestMark::new();
    let half_dead =
        |_: &[Marked]| tree::read(pid).expect("/proc").is_some_and(|process| process.state == b'Z');
    unused.wait_for(DEADLINE, half_dead).expect("the first thread's end");
    let found = reap::find_marked(&[mark]).expect("/proc");
    child.kill().expect("ours");
    child.wait().expect("ours");
    assert_eq!(found.iter().map(|process| process.pid).collect::<Vec<_>>(), [pid]);
    assert_eq!(reap::find_marked(&[mark]).expect("/proc"), []);
}
