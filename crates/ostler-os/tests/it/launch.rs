//! How a server is started: what it gets, what it does not get, and what is said when it does not start.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;

use ostler_os::meter::{Detail, Meter, TreeRoot, TreeUsage};
use ostler_os::sockets::{self, Listener, Owner};
use ostler_os::{Exit, GuardEvent, SpawnError, SpawnFailure, Spawner, env};
use ostler_testkit::mark::Mark as TestMark;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use super::{DEADLINE, next, read_all, request, see, spawn, spawner, started, testbed, until_empty};

async fn failure(program: &str, args: &[&str], cwd: Option<&str>) -> SpawnFailure {
    let mark = TestMark::new();
    let mut request = request(&mark, program, args);
    request.cwd = cwd.map(Into::into);
    let mut tree = spawner().spawn(request).expect("a guard starts");
    let event = next(&mut tree.events).await;
    assert_eq!(until_empty(&mut tree.events).await, []);
    match event {
        GuardEvent::SpawnFailed(failure) => failure,
        other => panic!("{other:?} instead of SpawnFailed"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_program_is_named_with_the_path_searched() {
    let missing = failure("no-such-server", &[], None).await;
    assert_eq!(missing.kind, ErrorKind::NotFound);
    let path = std::env::var("PATH").expect("PATH is set");
    assert_eq!(
        missing.message,
        format!(
            "`no-such-server` was not found in PATH={path}; install it, or give its full path as `command`"
        )
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_reason_not_to_start_has_its_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = |name: &str, text: &str, mode| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
        path.to_str().expect("text").to_owned()
    };
    let no_interpreter = script("a", "#!/no/such/interpreter\n", 0o755);
    let not_executable = script("c", "#!/bin/sh\n", 0o644);

    let said = failure(&no_interpreter, &[], None).await;
    assert!(
        said.kind == ErrorKind::NotFound && said.message.contains("the interpreter it names"),
        "{said:?}"
    );
    let said = failure(&not_executable, &[], None).await;
    assert!(said.kind == ErrorKind::PermissionDenied && said.message.contains("chmod +x"), "{said:?}");
    let said = failure("true", &[], Some("/no/such/folder")).await;
    assert!(said.message.contains("the working directory `/no/such/folder`"), "{said:?}");
    let long = "x".repeat(200_000); // one argument may take 128 KiB
    let said = failure("true", &[&long], None).await;
    assert!(said.message.contains("longer than the kernel allows"), "{said:?}");
}

#[tokio::test]
async fn a_missing_guard_is_an_error_at_once() {
    let mark = TestMark::new();
    let error = Spawner::new("/no/such/guard").spawn(request(&mark, "true", &[])).expect_err("no guard");
    assert!(matches!(error, SpawnError::Guard { .. }), "{error:?}");
    assert!(error.to_string().contains("/no/such/guard"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_too_long_to_hand_over_is_an_error_and_leaves_nothing() {
    let mark = TestMark::new();
    let long = "x".repeat(4 * 1024 * 1024);
    let error = spawner().spawn(request(&mark, "true", &[&long])).expect_err("too long");
    assert!(matches!(error, SpawnError::Handover(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_life_is_told_in_order() {
    let mark = TestMark::new();
    let mut tree = spawn(&mark, "sh", &["-c", "exit 7"]);
    let (pid, start_time) = started(&mut tree.events).await;
    assert!(pid > 0 && start_time > 0 && tree.guard_start > 0 && tree.guard_start <= start_time);
    assert_eq!(next(&mut tree.events).await, GuardEvent::LeaderExited(Exit::Code(7)));
    assert_eq!(next(&mut tree.events).await, GuardEvent::TreeEmpty);
    assert_eq!(tree.events.recv().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_talks_over_pipes_and_its_end_of_file_is_true() {
    let mark = TestMark::new();
    let mut tree = spawn(&mark, "sh", &["-c", "cat; echo err >&2; exec >&- 2>&-; exec sleep 600"]);
    tree.stdin.write_all(b"hello").await.expect("written");
    drop(tree.stdin);
    // The server lives on, the guard as well, and still this ends: nobody else holds the pipes.
    assert_eq!(read_all(tree.stdout).await, "hello");
    assert_eq!(read_all(tree.stderr).await, "err\n");
    assert_eq!(mark.count(), 1);
    tree.control.kill();
    until_empty(&mut tree.events).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_inherits_three_descriptors_and_no_more() {
    // As a daemon might have from its parent: not close-on-exec.
    let leaky = rustix::io::dup(std::fs::File::open("/dev/null").expect("opens")).expect("duplicated");
    let mark = TestMark::new();
    // Many at once, so that one could catch what is meant for another.
    let trees: Vec<_> = (0..16).map(|_| spawn(&mark, testbed(), &["fds"])).collect();
    for mut tree in trees {
        let listing = read_all(tree.stdout).await;
        let mut lines: Vec<_> = listing.lines().map(|line| line.split('[').next().unwrap_or(line)).collect();
        lines.sort_unstable();
        assert_eq!(lines, ["0 pipe:", "1 pipe:", "2 pipe:"], "{listing}");
        until_empty(&mut tree.events).await;
    }
    drop(leaky);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guard_keeps_nothing_open_that_is_not_its_own() {
    let leaky = rustix::io::dup(std::fs::File::open("/dev/zero").expect("opens")).expect("duplicated");
    let mark = TestMark::new();
    let mut tree = spawn(&mark, "sleep", &["600"]);
    started(&mut tree.events).await;
    let entries = std::fs::read_dir(format!("/proc/{}/fd", tree.guard_pid)).expect("readable");
    let targets = entries.flatten().filter_map(|entry| {
        let fd: i32 = entry.file_name().to_str()?.parse().ok()?;
        Some((fd, std::fs::read_link(entry.path()).ok()?.display().to_string()))
    });
    // 2 is the daemon's standard error, whatever that is here; a file of its tree's own cgroup is for killing it.
    let own = |target: &str| target.contains(&tree.mark.to_string());
    let mut kinds: Vec<_> =
        targets.filter(|(fd, target)| *fd != 2 && !own(target)).map(|(_, target)| target).collect();
    kinds.iter_mut().for_each(|kind| kind.truncate(kind.find(":[").unwrap_or(kind.len())));
    kinds.sort_unstable();
    assert_eq!(kinds, ["/dev/null", "/dev/null", "anon_inode:", "socket"].map(fix_anon));
    tree.control.kill();
    until_empty(&mut tree.events).await;
    drop(leaky);
}

/// A signalfd shows as `anon_inode:[signalfd]`.
fn fix_anon(kind: &str) -> String {
    kind.trim_end_matches(':').to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_environment_is_what_was_given_and_the_mark() {
    let mark = TestMark::new();
    let set = BTreeMap::from([("MODE".to_owned(), "test".to_owned())]);
    let source = [("PATH", "/usr/bin:/bin"), ("SECRET_TOKEN", "s"), ("KEPT", "k")];
    let source = source.map(|(name, value)| (name.into(), value.into()));
    let mut request = request(&mark, "env", &[]);
    request.env = env::clean(&["KEPT".to_owned()], &set, source);
    request.env.push(("OSTLER_INSTANCE".into(), "of somebody else".into()));
    let expected = format!("KEPT=k\nMODE=test\nOSTLER_INSTANCE={}\nPATH=/usr/bin:/bin\n", request.mark);
    let mut tree = spawner().spawn(request).expect("a guard starts");
    let listing = read_all(tree.stdout).await;
    let mut lines: Vec<_> = listing.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines.join("\n") + "\n", expected);
    until_empty(&mut tree.events).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_signal_is_blocked_or_ignored_in_it() {
    let mark = TestMark::new();
    let mut tree = spawn(&mark, "grep", &["-E", "^Sig(Blk|Ign)", "/proc/self/status"]);
    let listing = read_all(tree.stdout).await;
    assert_eq!(listing, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
    until_empty(&mut tree.events).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_starts_in_its_working_directory() {
    let mark = TestMark::new();
    let folder = tempfile::tempdir().expect("a folder");
    let mut request = request(&mark, "pwd", &["-P"]);
    request.cwd = Some(folder.path().into());
    let mut tree = spawner().spawn(request).expect("a guard starts");
    let real = folder.path().canonicalize().expect("real");
    assert_eq!(read_all(tree.stdout).await.trim_end(), real.to_str().expect("text"));
    until_empty(&mut tree.events).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_is_counted_without_its_guard() {
    let mark = TestMark::new();
    let mut tree = spawn(&mark, "sh", &["-c", "sleep 600 & sleep 601 & wait"]);
    let (leader, _) = started(&mut tree.events).await;
    see(&mark, "both", |marked| marked.iter().filter(|one| one.command.starts_with("sleep")).count() == 2)
        .await;
    let mut meter = Meter::default();
    let root = TreeRoot { guard_pid: tree.guard_pid, guard_start: tree.guard_start };
    let mut measure = || meter.sample(&[root], Detail { fds: true, pss: true }).expect("/proc").remove(0);
    let usage = measure();
    assert_eq!((usage.processes, usage.threads, usage.pids[0]), (3, 3, leader));
    assert!(!usage.pids.contains(&tree.guard_pid));
    assert!(usage.rss_bytes > 100_000 && usage.guard_rss_bytes > 100_000, "{usage:?}");
    assert!(usage.pss_bytes.is_some_and(|pss| pss > 10_000 && pss < usage.rss_bytes), "{usage:?}");
    assert!(
        usage.fds.is_some_and(|fds| (9..=30).contains(&fds)),
        "three each, and a few of the shell's: {usage:?}"
    );
    tree.control.kill();
    until_empty(&mut tree.events).await;
    assert_eq!(measure(), TreeUsage::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_belongs_to_the_tree_that_listens_on_it_however_deep() {
    let mark = TestMark::new();
    let testbed = testbed();
    let script = "(\"$0\" listen &); sleep 600";
    let mut tree = spawn(&mark, "sh", &["-c", script, testbed.to_str().expect("text")]);
    let (leader, _) = started(&mut tree.events).await;
    let mut line = String::new();
    let read = tokio::time::timeout(DEADLINE, BufReader::new(&mut tree.stdout).read_line(&mut line)).await;
    read.expect("before the deadline").expect("text");
    let port: u16 = line.trim().parse().expect("a port");
    let root = TreeRoot { guard_pid: tree.guard_pid, guard_start: tree.guard_start };
    let listeners = sockets::listeners(root).expect("/proc");
    let [Listener { port: found, addr, pid }] = listeners[..] else { panic!("{listeners:?}") };
    assert_eq!((found, addr), (port, std::net::Ipv4Addr::LOCALHOST.into()));
    assert_ne!(pid, leader, "an orphan of the leader's");
    assert_eq!(sockets::owner_of(port, root).expect("/proc"), Owner::Tree(pid));
    let mut other = spawn(&mark, "sleep", &["600"]);
    started(&mut other.events).await;
    let elsewhere = TreeRoot { guard_pid: other.guard_pid, guard_start: other.guard_start };
    assert_eq!(sockets::owner_of(port, elsewhere).expect("/proc"), Owner::Other(Some(pid)));
    tree.control.kill();
    until_empty(&mut tree.events).await;
    assert_eq!(sockets::owner_of(port, root).expect("/proc"), Owner::Nobody);
    other.control.kill();
    until_empty(&mut other.events).await;
}
