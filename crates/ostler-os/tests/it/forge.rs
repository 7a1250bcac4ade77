//! The forge: guards come from it, are as those that are started as programs, and do not need it to live on.

use ostler_os::{Exit, GuardEvent, Spawner, sweep, tree};
use ostler_testkit::mark::Mark as TestMark;
use rustix::process::Signal;

use super::daemon::Daemon;
use super::{DEADLINE, SWEEPS, kill, request, see, spawner, started, until_empty};

fn forge(spawner: &Spawner) -> i32 {
    spawner.forge_pid().expect("guards come from a forge here")
}

fn words(pid: i32) -> Vec<String> {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).expect("it lives");
    String::from_utf8_lossy(&command).trim_end_matches('\0').split('\0').map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guards_are_children_of_the_daemon_with_their_mark_as_argument() {
    let (mark, spawner) = (TestMark::new(), spawner());
    let mut trees = Vec::new();
    for _ in 0..3 {
        let request = request(&mark, "sleep", &["600"]);
        let expected = request.mark;
        let mut tree = spawner.spawn(request).expect("a guard starts");
        started(&mut tree.events).await;
        assert_eq!(words(tree.guard_pid), ["ostler", "guard", &expected.to_string()]);
        let process = tree::read(tree.guard_pid).expect("/proc").expect("alive");
        assert_eq!(process.ppid, std::process::id().cast_signed(), "a guard's parent is the daemon");
        trees.push((tree, process.session));
    }
    let maker = forge(&spawner);
    for (tree, session) in &trees {
        assert_eq!(*session, maker, "they share one session, which is not the daemon's");
        let group =
            rustix::process::getpgid(rustix::process::Pid::from_raw(tree.guard_pid)).expect("it lives");
        assert_eq!(group.as_raw_nonzero().get(), tree.guard_pid, "and each has a group of its own");
    }
    assert_eq!(words(maker)[..2], ["ostler", "forge"]);
    assert!(trees.iter().all(|(tree, _)| tree.guard_pid != maker));
    for (mut tree, _) in trees {
        tree.control.kill();
        until_empty(&mut tree.events).await;
    }
    assert_eq!(mark.processes(), []);
}

/// Addresses that the dynamic linker has written, and nobody writes again, are most of what a guard would have for
/// itself that was started as a program. A hundred guards have them once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guards_share_what_loading_the_program_wrote() {
    let (mark, spawner) = (TestMark::new(), spawner());
    let mut tree = spawner.spawn(request(&mark, "sleep", &["600"])).expect("a guard starts");
    started(&mut tree.events).await;
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", tree.guard_pid)).expect("it lives");
    let program = super::testbed().display().to_string();
    let (mut is_relocated, mut shared, mut private) = (false, 0, 0);
    let (mut dirty_shared, mut dirty_private) = (0, 0);
    for line in smaps.lines() {
        let figure = |name| {
            line.strip_prefix(name).and_then(|kib| kib.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        };
        if line.split(' ').nth(1).is_some_and(|mode| mode.len() == 4) {
            is_relocated = line.contains(" r--p ") && line.ends_with(&program);
        }
        dirty_shared = figure("Shared_Dirty:").unwrap_or(dirty_shared);
        dirty_private = figure("Private_Dirty:").unwrap_or(dirty_private);
        // Not the file's own pages: those are dirty as well while a program that was just built is not on disk yet.
        if is_relocated && figure("Anonymous:").is_some_and(|kib| kib > 0) {
            shared += dirty_shared;
            private += dirty_private;
        }
    }
    assert!(shared > 0 && private == 0, "{shared} KiB shared, {private} KiB not:\n{smaps}");
    tree.control.kill();
    until_empty(&mut tree.events).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guards_outlive_their_forge_and_another_takes_its_place() {
    let _sweeps = SWEEPS.write().await;
    let (mark, spawner) = (TestMark::new(), spawner());
    let mut before = spawner.spawn(request(&mark, "sleep", &["600"])).expect("a guard starts");
    started(&mut before.events).await;
    let first = forge(&spawner);
    kill(first, Signal::KILL);
    let mut during = spawner.spawn(request(&mark, "sleep", &["600"])).expect("a guard starts without it");
    started(&mut during.events).await;
    assert_eq!(spawner.forge_pid(), None, "the dead one was noticed");
    assert_eq!(tree::read(first).expect("/proc"), None, "and reaped");
    let mut after = spawner.spawn(request(&mark, "sleep", &["600"])).expect("a guard starts");
    started(&mut after.events).await;
    assert_ne!(forge(&spawner), first);
    see(&mark, "three servers", |marked| marked.len() == 3).await;
    for mut tree in [before, during, after] {
        tree.control.kill();
        assert_eq!(until_empty(&mut tree.events).await, [GuardEvent::LeaderExited(Exit::Signal(9))]);
    }
    assert_eq!(mark.processes(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forge_that_does_not_answer_is_replaced() {
    let _sweeps = SWEEPS.write().await;
    let (mark, spawner) = (TestMark::new(), spawner());
    let mut one = spawner.spawn(request(&mark, "sleep", &["600"])).expect("a guard starts");
    started(&mut one.events).await;
    let stopped = forge(&spawner);
    kill(stopped, Signal::STOP);
    let mut other = spawner.spawn(request(&mark, "sleep", &["600"])).expect("a guard starts all the same");
    started(&mut other.events).await;
    assert_eq!(tree::read(stopped).expect("/proc"), None, "ended and reaped");
    for mut tree in [one, other] {
        tree.control.kill();
        until_empty(&mut tree.events).await;
    }
    assert_eq!(mark.processes(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_spares_the_forge() {
    let _sweeps = SWEEPS.write().await;
    let (mark, spawner) = (TestMark::new(), spawner());
    let mut tree = spawner.spawn(request(&mark, "sleep", &["600"])).expect("a guard starts");
    started(&mut tree.events).await;
    let maker = forge(&spawner);
    tree.control.kill_guard();
    until_empty(&mut tree.events).await;
    assert_eq!(sweep::orphans().expect("/proc"), [] as [i32; 0]);
    let mut again = spawner.spawn(request(&mark, "sleep", &["600"])).expect("a guard starts");
    started(&mut again.events).await;
    assert_eq!(forge(&spawner), maker, "the same one");
    again.control.kill();
    until_empty(&mut again.events).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_forge_ends_with_its_spawner_and_is_reaped() {
    let (mark, spawner) = (TestMark::new(), spawner());
    let clone = spawner.clone();
    let mut tree = spawner.spawn(request(&mark, "sleep", &["600"])).expect("a guard starts");
    started(&mut tree.events).await;
    let maker = forge(&spawner);
    drop(spawner);
    assert_eq!(clone.forge_pid(), Some(maker), "as long as one is left");
    drop(clone);
    assert_eq!(tree::read(maker).expect("/proc"), None);
    // The guard needs neither.
    tree.control.kill();
    assert_eq!(until_empty(&mut tree.events).await, [GuardEvent::LeaderExited(Exit::Signal(9))]);
}

#[test]
fn the_forge_ends_with_the_daemon() {
    let _orphans = SWEEPS.blocking_read();
    let mark = TestMark::new();
    let mut daemon = Daemon::start(&mark, 2, "sleep", &["600"]);
    daemon.records();
    let of_daemon = |process: &tree::Process| process.ppid == daemon.pid();
    let scan = tree::Scan::take().expect("/proc");
    let forges: Vec<(i32, u64)> = scan
        .processes()
        .iter()
        .filter(|process| of_daemon(process) && words(process.pid).get(1).is_some_and(|word| word == "forge"))
        .map(tree::Process::id)
        .collect();
    assert_eq!(forges.len(), 1);
    daemon.kill();
    mark.wait_for(DEADLINE, <[_]>::is_empty).expect("none left");
    let pidfd = ostler_os::pidfd::open(forges[0].0);
    if let Ok(pidfd) = pidfd {
        let deadline = u32::try_from(DEADLINE.as_millis()).expect("fits");
        ostler_os::pidfd::wait_any(&[pidfd], deadline).expect("waited");
    }
    assert!(!super::is_alive(forges[0]));
}
