//! Hostile programs in sandboxes. What they try succeeds outside of one, which is tried as well: or else its failure inside would
//! prove nothing.

use std::ffi::OsStr;
use std::io::Write as _;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ostler_os::sandbox::{Allowed, Bubblewrap, Confined, PROGRAM, SCRATCH_BYTES, See, WORK};
use ostler_os::{Exit, GuardEvent, Guarded, LimitKind, Limits, Mark, Readings, Rung, limits};
use ostler_testkit::evil;
use ostler_testkit::mark::Mark as TestMark;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::OnceCell;

use super::daemon::Daemon;
use super::{
    DEADLINE, SWEEPS, TESTBED_VARIABLE, assert_nothing_left, kill, read_all, see, spawn, spawner, started,
    testbed, until_empty,
};

/// Where the evil child is inside.
const EVIL: &str = "/ostler/evil";

/// What builds sandboxes. Where that cannot be these tests fail, and say what to do; nothing on a machine that they were brought to, and
/// that has nothing else.
async fn bubblewrap() -> Option<Bubblewrap> {
    static FOUND: OnceCell<Option<Bubblewrap>> = OnceCell::const_new();
    FOUND.get_or_init(find).await.clone()
}

async fn find() -> Option<Bubblewrap> {
    let path = std::env::var_os("PATH").expect("PATH is set");
    let found = match Bubblewrap::find(&path, &testbed()) {
        Ok(found) => found,
        // These tests were brought to a machine that has nothing else.
        Err(why) if std::env::var_os(TESTBED_VARIABLE).is_some() => {
            println!("SKIPPED, NO SANDBOX IS TESTED HERE: {why}");
            return None;
        }
        Err(why) => panic!("{why}"),
    };
    let own = folder();
    let mut tree =
        spawner().spawn(found.trial(&real(&own), Mark::random()).expect("a trial")).expect("a guard");
    let said = read_all(&mut tree.stderr).await;
    if until_empty(&mut tree.events).await.contains(&GuardEvent::LeaderExited(Exit::Code(0))) {
        return Some(found);
    }
    let why = ostler_os::sandbox::Unavailable::of(&said);
    assert!(std::env::var_os(TESTBED_VARIABLE).is_some(), "{why}");
    println!("SKIPPED, NO SANDBOX CAN BE BUILT HERE: {why}");
    None
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn real(folder: &TempDir) -> PathBuf {
    folder.path().canonicalize().expect("real")
}

/// A sandbox for a program of the testbed; nothing is allowed.
fn confined(mark: &TestMark, own: &TempDir, words: &[&str]) -> Confined {
    let (name, value) = mark.env();
    Confined {
        program: PROGRAM.into(),
        args: words.iter().map(Into::into).collect(),
        env: vec![(name.into(), value.into())],
        own: real(own),
        allowed: Allowed::default(),
        see: Vec::new(),
        start_in: None,
        hidden: Vec::new(),
        scratch_bytes: SCRATCH_BYTES,
        limits: Limits::default(),
        mark: Mark::random(),
    }
}

fn spawn_confined(found: &Bubblewrap, confined: &Confined) -> Guarded {
    spawner().spawn(found.request(confined).expect("can be")).expect("a guard starts")
}

/// What a hostile program says of its attempts, inside or outside.
async fn said(mut tree: Guarded, mark: &TestMark) -> Vec<String> {
    let (said, complaints) = tokio::join!(read_all(&mut tree.stdout), read_all(&mut tree.stderr));
    let ended = until_empty(&mut tree.events).await;
    assert_nothing_left(mark, (tree.guard_pid, tree.guard_start));
    assert!(ended.contains(&GuardEvent::LeaderExited(Exit::Code(0))), "{ended:?}: {complaints}");
    said.lines().map(str::to_owned).collect()
}

/// Makes each attempt outside, where it must succeed, and inside, where it must fail with this error.
async fn refuses(found: &Bubblewrap, change: impl Fn(&mut Confined), attempts: &[(String, i32)]) {
    let mut words = vec!["hostile"];
    words.extend(attempts.iter().map(|(attempt, _)| attempt.as_str()));
    let mark = TestMark::new();
    for line in said(spawn(&mark, testbed(), &words), &mark).await {
        assert!(line.contains(": ok"), "it proves nothing: outside of a sandbox it fails too: {line}");
    }
    assert_eq!(inside(found, change, &words).await, expected(attempts));
}

fn expected(attempts: &[(String, i32)]) -> Vec<String> {
    attempts.iter().map(|(attempt, errno)| format!("{attempt}: errno {errno}")).collect()
}

async fn inside(found: &Bubblewrap, change: impl Fn(&mut Confined), words: &[&str]) -> Vec<String> {
    let (mark, own) = (TestMark::new(), folder());
    let mut confined = confined(&mark, &own, words);
    change(&mut confined);
    said(spawn_confined(found, &confined), &mark).await
}

/// Somebody outside, with a secret.
struct Victim {
    child: Child,
    secret: String,
}

impl Victim {
    fn start() -> Self {
        let secret = format!("ostler-secret-{}", Mark::random());
        let mut command = Command::new("sleep");
        command.arg("600").env("SECRET", &secret).stdin(Stdio::null());
        Self { child: command.spawn().expect("sleep starts"), secret }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whoever listens on this machine, in each of the ways.
struct Listeners {
    tcp: TcpListener,
    udp: UdpSocket,
    _unix: UnixListener,
    _abstract: UnixListener,
    folder: TempDir,
    name: String,
}

impl Listeners {
    fn listen() -> Self {
        let folder = folder();
        let name = format!("ostler-{}", Mark::random());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("binds");
        let answers = udp.try_clone().expect("cloned");
        // Ends with the test: nobody waits for it.
        std::thread::spawn(move || {
            let mut asked = [0; 8];
            while let Ok((_, from)) = answers.recv_from(&mut asked) {
                let _ = answers.send_to(b"answer", from);
            }
        });
        Self {
            tcp: TcpListener::bind("127.0.0.1:0").expect("binds"),
            udp,
            _unix: UnixListener::bind(folder.path().join("socket")).expect("binds"),
            _abstract: UnixListener::bind_addr(&address).expect("binds"),
            folder,
            name,
        }
    }

    /// Ways to them, and what comes of each without a network.
    fn attempts(&self) -> Vec<(String, i32)> {
        let (tcp, udp) = (self.tcp.local_addr().expect("bound"), self.udp.local_addr().expect("bound"));
        vec![
            (format!("tcp={tcp}"), libc::ECONNREFUSED),
            (format!("udp={udp}"), libc::ECONNREFUSED),
            (format!("abstract={}", self.name), libc::ECONNREFUSED),
            (format!("unix={}", real(&self.folder).join("socket").display()), libc::ENOENT),
        ]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_outside_can_be_reached() {
    let Some(found) = bubblewrap().await else { return };
    let (victim, listeners, outside) = (Victim::start(), Listeners::listen(), folder());
    let file = real(&outside).join("secret");
    std::fs::write(&file, "secret").expect("written");
    let mut attempts = listeners.attempts();
    attempts.extend([
        (format!("read={}", file.display()), libc::ENOENT),
        (format!("list={}", real(&outside).display()), libc::ENOENT),
        (format!("write={}", real(&outside).join("file").display()), libc::ENOENT),
        (format!("secret={}", victim.secret), libc::ENOENT),
        (format!("read=/proc/{}/cmdline", victim.child.id()), libc::ENOENT),
        ("read=/etc/hostname".to_owned(), libc::ENOENT),
        ("list=/var/lib".to_owned(), libc::ENOENT),
    ]);
    refuses(&found, |_| {}, &attempts).await;
    // Where this machine itself has no way to the outside, these prove nothing; elsewhere they do.
    let attempts = [("tcp=192.0.2.1:9", libc::ENETUNREACH), ("tcp=[2001:db8::1]:9", libc::ENETUNREACH)];
    let attempts = attempts.map(|(attempt, errno)| (attempt.to_owned(), errno));
    let words = ["hostile", &attempts[0].0, &attempts[1].0];
    assert_eq!(inside(&found, |_| {}, &words).await, expected(&attempts));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kernel_is_kept_apart() {
    let Some(found) = bubblewrap().await else { return };
    let attempts = |list: &[(&str, i32)]| {
        list.iter().map(|&(attempt, errno)| (attempt.to_owned(), errno)).collect::<Vec<_>>()
    };
    // Whoever it belongs to is told that it is read-only, others that it is not theirs.
    let of_root = if rustix::process::geteuid().is_root() { libc::EROFS } else { libc::EACCES };
    // Not for every user, nor in every kernel, so not tried outside.
    let not_tried = attempts(&[
        (&format!("socket={}", libc::AF_VSOCK), libc::EAFNOSUPPORT),
        (&format!("socket={}", libc::AF_ALG), libc::EAFNOSUPPORT),
        (&format!("socket={}", libc::AF_PACKET), libc::EAFNOSUPPORT),
        ("mount=/tmp", libc::EPERM),
        ("user-namespace", libc::EPERM),
        ("open-to-write=/proc/sys/kernel/core_pattern", of_root),
        ("open-to-write=/proc/self/oom_score_adj", libc::EROFS),
        ("write=/dev/file", libc::EROFS),
        ("write=/file", libc::EROFS),
        ("write=/usr/file", libc::EROFS),
        ("write=/etc/file", libc::EROFS),
        ("open-to-write=/etc/passwd", libc::EACCES),
        ("read=/etc/shadow", libc::ENOENT),
        ("list=/root", libc::ENOENT),
        ("list=/home", libc::ENOENT),
        ("list=/sys", libc::ENOENT),
    ]);
    let words: Vec<_> =
        std::iter::once("hostile").chain(not_tried.iter().map(|(attempt, _)| attempt.as_str())).collect();
    assert_eq!(inside(&found, |_| {}, &words).await, expected(&not_tried));
    let tried = attempts(&[
        ("keys", libc::EPERM),
        ("fill=/tmp/ostler-fill", libc::ENOSPC),
        ("fill=/dev/shm/ostler-fill", libc::ENOSPC),
    ]);
    refuses(&found, |confined| confined.scratch_bytes = 1 << 20, &tried).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_inside_is_what_is_meant_to_be() {
    let Some(found) = bubblewrap().await else { return };
    let lists = inside(
        &found,
        |_| {},
        &["hostile", "list=/", "list=/ostler", "list=/run", "list=/tmp", "list=/ostler/work"],
    )
    .await;
    assert!(lists[0].starts_with("list=/: ok bin dev etc lib"), "{lists:?}");
    assert!(lists[0].ends_with(" ostler proc run sbin tmp usr var"), "{lists:?}");
    assert_eq!(
        lists[1..],
        ["list=/ostler: ok bin work", "list=/run: ok", "list=/tmp: ok", "list=/ostler/work: ok"]
    );
    let script = "id -un; pwd; echo $HOME $$; uname -n; env | cut -d= -f1 | tr '\\n' ' '";
    let shell = |confined: &mut Confined| {
        confined.program = "sh".into();
        confined.env.push(("GIVEN".into(), "1".into()));
    };
    let said = inside(&found, shell, &["-c", script]).await;
    assert_eq!(said[..2], ["worker", WORK]);
    assert!(said[2].starts_with(WORK) && said[2].len() < WORK.len() + 4, "a number of its own: {said:?}");
    assert_eq!(said[3], "worker");
    let (test_mark, _) = TestMark::new().env();
    let mut names = [
        "GIVEN",
        "HOME",
        "LANG",
        "LOGNAME",
        "OSTLER_INSTANCE",
        "PATH",
        "SHELL",
        "TMPDIR",
        "USER",
        test_mark.as_str(),
    ]
    .to_vec();
    names.sort_unstable();
    let mut seen: Vec<_> =
        said[4].split(' ').filter(|name| !["", "PWD", "OLDPWD", "_", "SHLVL"].contains(name)).collect();
    seen.sort_unstable();
    assert_eq!(seen, names);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_project_allows_is_there_and_the_daemon_is_not() {
    let Some(found) = bubblewrap().await else { return };
    let (listeners, shared) = (Listeners::listen(), folder());
    let shared = real(&shared);
    let daemon = shared.join("daemon");
    std::fs::create_dir(&daemon).expect("made");
    let _daemon = UnixListener::bind(daemon.join("ostler.sock")).expect("binds");
    std::fs::write(shared.join("given"), "given").expect("written");
    let allowed = Allowed::new(true, std::slice::from_ref(&shared)).expect("can be");
    let allow = |confined: &mut Confined| {
        confined.allowed = allowed.clone();
        confined.hidden = vec![daemon.clone()];
    };
    let own = [
        format!("read={}", shared.join("given").display()),
        format!("write={}", shared.join("left").display()),
        "write=file".to_owned(),
    ];
    let network: Vec<String> = listeners.attempts().into_iter().take(3).map(|(attempt, _)| attempt).collect();
    let words: Vec<_> =
        std::iter::once("hostile").chain(own.iter().chain(&network).map(String::as_str)).collect();
    let lines = inside(&found, allow, &words).await;
    assert!(lines.len() == 6 && lines.iter().all(|line| line.contains(": ok")), "{lines:?}");
    assert_eq!(std::fs::read_to_string(shared.join("left")).expect("there"), "was here");
    let daemons = [
        (format!("unix={}", daemon.join("ostler.sock").display()), libc::ENOENT),
        (format!("write={}", daemon.join("file").display()), libc::EROFS),
    ];
    refuses(&found, allow, &daemons).await;
}

async fn line(from: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> String {
    let mut line = String::new();
    let read = tokio::time::timeout(DEADLINE, from.read_line(&mut line)).await;
    read.expect("a line before the deadline").expect("text");
    line.trim_end().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_bomb_is_bounded_and_ended() {
    let Some(found) = bubblewrap().await else { return };
    if limits::rungs().pids == Rung::Sampled {
        return println!("skipped: no pids controller on this machine");
    }
    let (mark, own) = (TestMark::new(), folder());
    let mut confined = confined(&mark, &own, &["hog-pids", "200"]);
    confined.limits.pids = Some(24);
    let mut tree = spawn_confined(&found, &confined);
    started(&mut tree.events).await;
    let mut said = BufReader::new(&mut tree.stdout);
    assert_eq!(line(&mut said).await, "became 22", "with the two of bubblewrap");
    tree.stdin.write_all(b"\n").await.expect("it reads");
    assert_eq!(line(&mut said).await, "refused");
    let hits = limits::readings(tree.mark).hits_since(&Readings::default(), &confined.limits);
    assert!(
        hits.iter().any(|hit| hit.limit == LimitKind::Pids && hit.allowed == Some(24)),
        "named: {hits:?}"
    );
    tree.control.kill();
    until_empty(&mut tree.events).await;
    assert_nothing_left(&mark, (tree.guard_pid, tree.guard_start));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wants_all_memory_is_ended_and_named() {
    let Some(found) = bubblewrap().await else { return };
    if limits::rungs().memory == Rung::Sampled {
        return println!("skipped: no memory controller on this machine");
    }
    // Of its own, and as a folder.
    for words in [&["hog-memory", "256"][..], &["hog-folder", "/dev/shm/hog", "256"]] {
        let (mark, own) = (TestMark::new(), folder());
        let mut confined = confined(&mark, &own, words);
        (confined.limits.memory, confined.scratch_bytes) = (Some(64 << 20), 512 << 20);
        let mut tree = spawn_confined(&found, &confined);
        let events = until_empty(&mut tree.events).await;
        let hit = events.iter().find_map(|event| match event {
            GuardEvent::LimitHit(hit) => Some(hit),
            _ => None,
        });
        let hit = hit.unwrap_or_else(|| panic!("not named: {events:?}"));
        assert_eq!((hit.limit, hit.allowed), (LimitKind::Memory, Some(64 << 20)));
        let killed = [Exit::Code(137), Exit::Signal(9)].map(GuardEvent::LeaderExited);
        assert!(killed.iter().any(|killed| events.contains(killed)), "{events:?}");
        assert_nothing_left(&mark, (tree.guard_pid, tree.guard_start));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_hears_that_it_is_to_end() {
    let Some(found) = bubblewrap().await else { return };
    let (mark, own) = (TestMark::new(), folder());
    let script = "trap 'echo heard; exit 7' TERM; echo there; while :; do sleep 600 & wait $!; done";
    let mut confined = confined(&mark, &own, &["-c", script]);
    confined.program = "sh".into();
    let mut tree = spawn_confined(&found, &confined);
    started(&mut tree.events).await;
    let mut said = BufReader::new(&mut tree.stdout);
    assert_eq!(line(&mut said).await, "there");
    tree.control.terminate();
    assert_eq!(line(&mut said).await, "heard");
    assert_eq!(until_empty(&mut tree.events).await, [GuardEvent::LeaderExited(Exit::Code(7))]);
    assert_nothing_left(&mark, (tree.guard_pid, tree.guard_start));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_does_not_care_for_sigterm_is_ended_by_it_by_default() {
    let Some(found) = bubblewrap().await else { return };
    let (mark, own) = (TestMark::new(), folder());
    let mut confined = confined(&mark, &own, &["hog-memory", "1"]);
    confined.limits = Limits::default();
    let mut tree = spawn_confined(&found, &confined);
    assert_eq!(line(&mut BufReader::new(&mut tree.stdout)).await, "took 1");
    tree.control.terminate();
    let events = until_empty(&mut tree.events).await;
    assert!(events.contains(&GuardEvent::LeaderExited(Exit::Code(128 + libc::SIGTERM))), "{events:?}");
}

/// An evil child in a sandbox: what is left when its first process has ended, or when nobody watches it any more.
fn evil_one(mark: &TestMark, own: &TempDir, evil: &Path, words: &[&str]) -> Confined {
    let mut confined = confined(mark, own, words);
    confined.program = EVIL.into();
    confined.see = vec![See { from: evil.to_owned(), to: EVIL.into() }];
    confined
}

const EVIL_WORDS: [&str; 3] = ["double-fork", "ignore-eof", "ignore-term"];

fn has_orphan(marked: &[ostler_testkit::mark::Marked]) -> bool {
    marked.iter().any(super::is_orphan)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_outlives_a_killed_guard() {
    let Some(found) = bubblewrap().await else { return };
    let evil = tokio::task::spawn_blocking(evil::path).await.expect("built");
    let _sweeps = SWEEPS.write().await;
    let (mark, own) = (TestMark::new(), folder());
    let mut tree = spawn_confined(&found, &evil_one(&mark, &own, &evil, &EVIL_WORDS));
    started(&mut tree.events).await;
    see(&mark, "an orphan", has_orphan).await;
    kill(tree.guard_pid, rustix::process::Signal::KILL);
    assert_eq!(until_empty(&mut tree.events).await, [GuardEvent::GuardDied(Exit::Signal(9))]);
    assert_nothing_left(&mark, (tree.guard_pid, tree.guard_start));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_outlives_the_first_process() {
    let Some(found) = bubblewrap().await else { return };
    let (mark, own) = (TestMark::new(), folder());
    let script = "(setsid sh -c 'trap \"\" TERM HUP; echo left; exec sleep 600' &) ; read line";
    let mut confined = confined(&mark, &own, &["-c", script]);
    confined.program = "sh".into();
    let mut tree = spawn_confined(&found, &confined);
    started(&mut tree.events).await;
    let mut said = BufReader::new(&mut tree.stdout);
    assert_eq!(line(&mut said).await, "left");
    drop(tree.stdin);
    until_empty(&mut tree.events).await;
    assert_nothing_left(&mark, (tree.guard_pid, tree.guard_start));
    let mut rest = Vec::new();
    said.read_to_end(&mut rest).await.expect("closed by all");
}

#[test]
fn nobody_outlives_a_killed_daemon() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("built");
    let Some(found) = runtime.block_on(bubblewrap()) else { return };
    let _orphans = SWEEPS.blocking_read();
    let (mark, own) = (TestMark::new(), folder());
    let request = found.request(&evil_one(&mark, &own, &evil::path(), &EVIL_WORDS)).expect("can be");
    let text = |word: &OsStr| word.to_str().expect("text").to_owned();
    let words: Vec<String> = request.args.iter().map(|word| text(word)).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut daemon = Daemon::start(&mark, 1, &text(&request.program), &words);
    daemon.records();
    mark.wait_for(DEADLINE, has_orphan).expect("an orphan");
    daemon.kill();
    super::daemon::assert_promise(&mark, &daemon, "in a sandbox");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_started_inside_is_said() {
    let Some(found) = bubblewrap().await else { return };
    let (mark, own) = (TestMark::new(), folder());
    let mut file = std::fs::File::create(own.path().join("broken")).expect("made");
    file.write_all(b"#!/no/such/interpreter\n").expect("written");
    let mut confined = confined(&mark, &own, &[]);
    confined.program = format!("{WORK}/broken").into();
    let mut tree = spawn_confined(&found, &confined);
    let said = read_all(&mut tree.stderr).await;
    assert!(said.contains("`/ostler/work/broken` cannot be started in the sandbox: "), "{said}");
    let ended = until_empty(&mut tree.events).await;
    assert!(ended.contains(&GuardEvent::LeaderExited(Exit::Code(126))), "{ended:?}");
}
