//! Real hogs under real limits. What the machine has no rung for is skipped, with the reason.

use std::path::{Path, PathBuf};

use ostler_os::{Exit, GuardEvent, Guarded, LimitHit, LimitKind, Limits, Readings, Rung, Spawner, limits};
use ostler_testkit::mark::Mark as TestMark;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use super::daemon::Daemon;
use super::{
    DEADLINE, Events, SWEEPS, assert_nothing_left, kill, next, request, started, testbed, until_empty,
};

/// Prints why a test is skipped.
fn skip(what: &str) {
    println!("skipped: {what} on this machine:\n{}", limits::rungs());
}

fn hog(mark: &TestMark, words: &[&str], limits: Limits) -> Guarded {
    let mut request = request(mark, testbed(), words);
    request.limits = limits;
    Spawner::new(testbed()).spawn(request).expect("a guard starts")
}

/// The next line the hog says.
async fn line(from: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> String {
    let mut line = String::new();
    let read = tokio::time::timeout(DEADLINE, from.read_line(&mut line)).await;
    read.expect("a line before the deadline").expect("text");
    line.trim_end().to_owned()
}

async fn hit(events: &mut Events) -> LimitHit {
    match next(events).await {
        GuardEvent::LimitHit(hit) => hit,
        other => panic!("{other:?} instead of a limit that was hit"),
    }
}

/// The cgroups of this name, or of a name that begins so, below the mounts of all hierarchies.
fn cgroups(beginning: &str) -> Vec<PathBuf> {
    fn look(directory: &Path, beginning: &str, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().starts_with(beginning) {
                    found.push(entry.path());
                }
                look(&entry.path(), beginning, found);
            }
        }
    }
    let mut found = Vec::new();
    look(Path::new("/sys/fs/cgroup"), beginning, &mut found);
    found
}

/// Ends the tree; gives what is said of it till then.
async fn end(tree: Guarded, mark: &TestMark) -> Vec<GuardEvent> {
    tree.control.kill();
    ended(tree, mark).await
}

/// Once the tree has ended.
async fn ended(mut tree: Guarded, mark: &TestMark) -> Vec<GuardEvent> {
    let events = until_empty(&mut tree.events).await;
    assert_nothing_left(mark, (tree.guard_pid, tree.guard_start));
    assert_eq!(cgroups(&tree.mark.to_string()), [] as [PathBuf; 0], "removed before it is said to be empty");
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_hog_is_killed_and_named() {
    if limits::rungs().memory == Rung::Sampled {
        return skip("no memory controller");
    }
    let mark = TestMark::new();
    let allowed = 64 << 20;
    let limited = Limits { memory: Some(allowed), ..Limits::default() };
    let mut tree = hog(&mark, &["hog-memory", "256"], limited);
    started(&mut tree.events).await;
    let hit = hit(&mut tree.events).await;
    assert_eq!((hit.limit, hit.allowed, hit.from_above), (LimitKind::Memory, Some(allowed), false));
    let peak = hit.reached.expect("the kernel says it");
    assert!(peak > allowed / 2 && peak <= allowed, "{peak}");
    assert!(hit.to_string().starts_with("killed for memory: limit 64 MiB, peak "), "{hit}");
    // Killing the whole tree counts some of it twice, so it may be told twice; but before the end.
    let mut told = ended(tree, &mark).await;
    assert_eq!(told.pop(), Some(GuardEvent::LeaderExited(Exit::Signal(9))), "after it, and the last");
    assert!(told.len() <= 1 && told.iter().all(|event| matches!(event, GuardEvent::LimitHit(_))), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_within_the_limit_is_given() {
    let mark = TestMark::new();
    let limited = Limits { memory: Some(64 << 20), ..Limits::default() };
    let mut tree = hog(&mark, &["hog-memory", "32"], limited);
    started(&mut tree.events).await;
    assert_eq!(line(&mut BufReader::new(&mut tree.stdout)).await, "took 32");
    if limits::rungs().memory != Rung::Sampled {
        let readings = limits::readings(tree.mark);
        let charged = readings.memory_bytes.expect("counted");
        assert!((32 << 20..=64 << 20).contains(&charged), "{readings:?}");
        assert_eq!(readings.oom_kills, Some(0));
    }
    let events = end(tree, &mark).await;
    assert_eq!(events, [GuardEvent::LeaderExited(Exit::Signal(9))], "no limit is blamed for another's kill");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_bomb_is_bounded_and_named_while_it_lives() {
    if limits::rungs().pids == Rung::Sampled {
        return skip("no pids controller");
    }
    let mark = TestMark::new();
    let limited = Limits { pids: Some(24), ..Limits::default() };
    let mut tree = hog(&mark, &["hog-pids", "200"], limited);
    started(&mut tree.events).await;
    let mut said = BufReader::new(&mut tree.stdout);
    assert_eq!(line(&mut said).await, "became 24");
    for _ in 0..20 {
        tree.stdin.write_all(b"\n").await.expect("it reads");
        assert_eq!(line(&mut said).await, "refused");
    }
    let readings = limits::readings(tree.mark);
    assert_eq!((readings.pids, readings.pids_refused), (Some(24), Some(21)));
    let named = if limits::rungs().pids == Rung::CgroupV2 {
        hit(&mut tree.events).await
    } else {
        // Version 1 does not tell the guard while it happens.
        readings.hits_since(&Readings::default(), &limited)[0]
    };
    assert_eq!((named.limit, named.allowed), (LimitKind::Pids, Some(24)));
    let told = end(tree, &mark).await;
    let again = told.iter().filter(|event| matches!(event, GuardEvent::LimitHit(_))).count();
    assert!((1..ostler_os::guard::MAX_HITS / 2).contains(&again), "not for each of twenty: {told:?}");
    let last = told.iter().position(|event| matches!(event, GuardEvent::LeaderExited(_)));
    assert!(
        matches!(told[last.expect("it ended") - 1], GuardEvent::LimitHit(hit) if hit.times == 21),
        "{told:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_hog_gets_no_more_than_its_limit() {
    let mark = TestMark::new();
    let mut tree = hog(&mark, &["hog-files"], Limits { open_files: Some(40), ..Limits::default() });
    started(&mut tree.events).await;
    assert_eq!(line(&mut BufReader::new(&mut tree.stdout)).await, format!("opened 40: {}", libc::EMFILE));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", tree.guard_pid)).expect("readable");
    let own = limits.lines().find(|line| line.starts_with("Max open files")).expect("listed");
    assert!(!own.contains(" 40 "), "the guard is not under it: {own}");
    end(tree, &mark).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn niceness_is_the_servers_not_the_guards() {
    let mark = TestMark::new();
    let mut tree = hog(&mark, &["hog-memory", "1"], Limits { nice: Some(7), ..Limits::default() });
    let (leader, _) = started(&mut tree.events).await;
    let nice = |pid| {
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::getpriority_process(Some(pid)).expect("alive")
    };
    assert_eq!(nice(leader), 7);
    assert_ne!(nice(tree.guard_pid), 7);
    // Of the session, too, where the kernel shares out processors by sessions.
    let of_session = |pid| std::fs::read_to_string(format!("/proc/{pid}/autogroup"));
    match of_session(leader) {
        Ok(shares) => {
            assert!(shares.ends_with(" nice 7\n"), "{shares}");
            assert_ne!(of_session(tree.guard_pid).expect("there, too"), shares);
        }
        Err(error) => skip(&format!("no niceness of sessions: {error}")),
    }
    end(tree, &mark).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cpu_hog_is_held_back_and_that_is_counted() {
    if limits::rungs().cpu == Rung::Sampled {
        return skip("no cpu controller");
    }
    let mark = TestMark::new();
    let mut tree = hog(&mark, &["hog-cpu"], Limits { cpu: Some(0.2), ..Limits::default() });
    started(&mut tree.events).await;
    let throttled = || limits::readings(tree.mark).throttled_periods.expect("counted");
    let held_back = async {
        while throttled() < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, held_back).await.expect("held back before the deadline");
    end(tree, &mark).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_start_leaves_no_cgroup() {
    let mark = TestMark::new();
    let script = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(script.path(), "#!/no/such/interpreter\n").expect("written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(script.path(), mode).expect("set");
    let path = script.into_temp_path();
    let mut request = request(&mark, &path, &[]);
    request.limits = Limits { memory: Some(64 << 20), pids: Some(9), ..Limits::default() };
    let mut tree = Spawner::new(testbed()).spawn(request).expect("a guard starts");
    match next(&mut tree.events).await {
        GuardEvent::SpawnFailed(failure) => assert!(failure.message.contains("interpreter"), "{failure}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(ended(tree, &mark).await, []);
}

/// Names the rung that must be found for memory, cpu and pids: so that `scripts/test-vm.sh` cannot pass by skipping.
const EXPECT_VARIABLE: &str = "OSTLER_EXPECT_RUNG";

#[test]
fn the_rung_is_the_one_that_was_made_for_it() {
    let rungs = limits::claim();
    match std::env::var(EXPECT_VARIABLE) {
        Ok(wanted) => {
            for rung in [rungs.memory, rungs.cpu, rungs.pids] {
                assert_eq!(rung.to_string(), wanted, "{rungs}");
            }
        }
        Err(_) => println!("nothing special was made; found:\n{rungs}"),
    }
    assert_eq!(limits::rungs(), rungs, "what was found stays");
}

#[test]
fn a_daemon_that_hands_out_controllers_lives_below_them() {
    if limits::claim().memory != Rung::CgroupV2 {
        return skip("no cgroup v2 with controllers");
    }
    let groups = std::fs::read_to_string("/proc/self/cgroup").expect("readable");
    let own = groups.lines().find_map(|line| line.strip_prefix("0::")).expect("listed");
    if own == "/" {
        return println!("skipped: the topmost cgroup may hold processes, so there is nothing to move");
    }
    let own = Path::new("/sys/fs/cgroup").join(own.trim_start_matches('/'));
    assert!(own.ends_with("daemon"), "{}", own.display());
    let home = own.parent().expect("its home");
    assert!(
        home.file_name()
            .expect("named")
            .to_string_lossy()
            .starts_with(&home_of(std::process::id().cast_signed()))
    );
    let given = std::fs::read_to_string(home.join("cgroup.subtree_control")).expect("readable");
    assert!(["memory", "pids", "cpu"].iter().all(|one| given.contains(one)), "{given}");
}

/// The home of a daemon: what it is called begins so.
fn home_of(daemon: i32) -> String {
    format!("ostler-{daemon}-")
}

#[test]
fn guards_remove_the_cgroups_of_a_killed_daemon() {
    if limits::rungs().kill == Rung::Signals {
        return skip("no cgroup v2");
    }
    let mark = TestMark::new();
    let mut daemon = Daemon::start(&mark, 2, "sleep", &["600"]);
    let records = daemon.records();
    let home = home_of(daemon.pid());
    for record in &records {
        assert_eq!(cgroups(&record.mark).len(), 1, "or else this tests nothing");
    }
    daemon.kill();
    mark.wait_empty(DEADLINE).expect("ended by the guards");
    let guards =
        |record: &ostler_os::reap::TreeRecord| super::is_alive((record.guard_pid, record.guard_start));
    let began = std::time::Instant::now();
    while records.iter().any(guards) && began.elapsed() < DEADLINE {
        std::thread::yield_now();
    }
    // Where the daemon had to move into its home, only the next daemon can remove that.
    let left: Vec<_> = cgroups(&home).into_iter().filter(|home| !home.join("daemon").exists()).collect();
    assert_eq!(left, [] as [PathBuf; 0]);
    for record in &records {
        assert_eq!(cgroups(&record.mark), [] as [PathBuf; 0]);
    }
}

#[test]
fn the_next_daemon_removes_what_daemon_and_guard_left() {
    if limits::rungs().kill == Rung::Signals {
        return skip("no cgroup v2");
    }
    let _orphans = SWEEPS.blocking_read();
    let mark = TestMark::new();
    let mut daemon = Daemon::start(&mark, 2, "sleep", &["600"]);
    let records = daemon.records();
    let home = home_of(daemon.pid());
    kill(daemon.pid(), rustix::process::Signal::STOP);
    records.iter().for_each(|record| kill(record.guard_pid, rustix::process::Signal::KILL));
    daemon.kill();
    assert_ne!(cgroups(&home), [] as [PathBuf; 0], "or else this tests nothing");
    ostler_os::reap::reap(&records).expect("reaped");
    assert_eq!(mark.processes(), []);
    assert_eq!(cgroups(&home), [] as [PathBuf; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_removes_what_a_killed_guard_left() {
    let _sweeps = SWEEPS.write().await;
    let mark = TestMark::new();
    let limited = Limits { memory: Some(64 << 20), pids: Some(9), ..Limits::default() };
    let mut tree = hog(&mark, &["hog-memory", "1"], limited);
    started(&mut tree.events).await;
    kill(tree.guard_pid, rustix::process::Signal::KILL);
    assert_eq!(ended(tree, &mark).await, [GuardEvent::GuardDied(Exit::Signal(9))]);
}
