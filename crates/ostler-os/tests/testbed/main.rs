//! What the tests of `ostler-os` start: a guard, a daemon made to be killed, and servers that need `unsafe`.

mod hostile;

use std::io::Write as _;

use ostler_os::reap::TreeRecord;
use ostler_os::sandbox::confine;
use ostler_os::{GuardEvent, Guarded, Limits, Mark, SpawnRequest, Spawner, boot, guard};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(guard::GUARD_ARGUMENT | guard::FORGE_ARGUMENT) => guard::main(),
        Some(confine::CONFINE_ARGUMENT) => confine::main(),
        Some("hostile") => hostile::run(&arguments[1..]),
        Some("daemon") => daemon(&arguments[1..]),
        Some("sweep") => sweep(&arguments[1..]),
        Some("fds") => fds(),
        Some("zombie-leader") => zombie_leader(),
        Some("stop-parent") => stop_parent(),
        Some("hog-memory") => hog_memory(&arguments[1]),
        Some("hog-folder") => hog_folder(&arguments[1], &arguments[2]),
        Some("hog-pids") => hog_pids(&arguments[1]),
        Some("hog-files") => hog_files(),
        Some("hog-cpu") => hog_cpu(),
        Some("listen") => listen(),
        other => panic!("unknown: {other:?}"),
    }
}

/// `daemon COUNT PROGRAM [ARGUMENT...]`: starts that many trees and stays until it is killed. Says the marks of
/// all, a line each, before it starts the first, then a [`TreeRecord`] as JSON for each leader that runs.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn daemon(arguments: &[String]) {
    let count: usize = arguments[0].parse().expect("a number of trees");
    let spawner = Spawner::default();
    let marks: Vec<Mark> = (0..count).map(|_| Mark::random()).collect();
    marks.iter().for_each(|mark| say(&mark.to_string()));
    let mut trees = Vec::new();
    for mark in marks {
        let request = SpawnRequest {
            program: (&arguments[1]).into(),
            args: arguments[2..].iter().map(Into::into).collect(),
            env: std::env::vars_os().collect(),
            cwd: None,
            mark,
            limits: Limits::default(),
        };
        trees.push(spawner.spawn(request).expect("spawns"));
    }
    for tree in &mut trees {
        let record = started(tree).await;
        say(&serde_json::to_string(&record).expect("encodes"));
    }
    std::future::pending().await
}

/// `sweep PROGRAM [ARGUMENT...]`: starts a tree, kills its guard, and says "empty" when it is told so.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn sweep(arguments: &[String]) {
    let request = SpawnRequest {
        program: (&arguments[0]).into(),
        args: arguments[1..].iter().map(Into::into).collect(),
        env: std::env::vars_os().collect(),
        cwd: None,
        mark: Mark::random(),
        limits: Limits::default(),
    };
    let mut tree = Spawner::default().spawn(request).expect("spawns");
    started(&mut tree).await;
    // Until the server says its first word, and so has left the children that it means to leave.
    tree.stdin.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n").await.expect("it reads");
    tree.stdout.read_u8().await.expect("it answers");
    let guard = rustix::process::Pid::from_raw(tree.guard_pid).expect("a pid");
    rustix::process::kill_process(guard, rustix::process::Signal::KILL).expect("ours");
    while !matches!(tree.events.recv().await, Some(GuardEvent::TreeEmpty)) {}
    let left = ostler_os::sweep::orphans().expect("/proc is readable");
    assert!(left.is_empty(), "said to be empty: {left:?}");
    say("empty");
}

async fn started(tree: &mut Guarded) -> TreeRecord {
    match tree.events.recv().await {
        Some(GuardEvent::Started { pid, start_time }) => TreeRecord {
            mark: tree.mark.to_string(),
            guard_pid: tree.guard_pid,
            guard_start: tree.guard_start,
            leader_pid: Some(pid),
            leader_start: Some(start_time),
            boot_id: boot::boot_id().expect("a boot id"),
        },
        other => panic!("not started: {other:?}"),
    }
}

fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).expect("the test reads");
}

/// Prints the open descriptors, but not the one they are listed with.
fn fds() {
    let entries: Vec<_> = std::fs::read_dir("/proc/self/fd").expect("lists").flatten().collect();
    for entry in entries {
        let target =
            std::fs::read_link(entry.path()).map(|path| path.display().to_string()).unwrap_or_default();
        if !target.ends_with("/fd") {
            say(&format!("{} {target}", entry.file_name().display()));
        }
    }
}

/// Its first thread ends, another lives on: the process then looks like a zombie.
#[expect(unsafe_code, reason = "the standard library cannot end the first thread alone")]
fn zombie_leader() {
    // Out of the server's process group, unless it is the server itself.
    let _ = rustix::process::setsid();
    std::thread::spawn(|| {
        loop {
            std::thread::park();
        }
    });
    say("thread started");
    // SAFETY: ends this thread without running destructors; nothing is shared with the other.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

/// Stops its guard, ignores the end of its input, and lives on.
fn stop_parent() {
    let parent = rustix::process::getppid().expect("a parent");
    rustix::process::kill_process(parent, rustix::process::Signal::STOP).expect("the same user");
    say("stopped");
    stay()
}

/// `hog-memory MIB`: takes that much memory, says so, and stays.
fn hog_memory(mib: &str) {
    let mut taken = Vec::new();
    for _ in 0..mib.parse().expect("a number of MiB") {
        // Not zero, so that every page is really taken.
        taken.push(vec![1_u8; 1 << 20]);
    }
    say(&format!("took {}", taken.len()));
    stay()
}

/// `hog-folder FILE MIB`: writes so much into a file in memory, says so, and stays.
fn hog_folder(file: &str, mib: &str) {
    let mut file = std::fs::File::create(file).expect("made");
    for _ in 0..mib.parse().expect("a number of MiB") {
        file.write_all(&[1_u8; 1 << 20]).expect("written");
    }
    say("wrote it");
    stay()
}

/// `hog-pids MAX`: a fork bomb that ends at MAX at the latest. Says how many processes it became, itself among
/// them, and then tries once more for each line it reads.
#[expect(unsafe_code, reason = "the standard library does not fork")]
fn hog_pids(max: &str) {
    let max: usize = max.parse().expect("a number");
    // SAFETY: this process has one thread, so a fork is a plain copy of it; the child only waits.
    let fork = || unsafe { libc::fork() };
    let mut processes = 1;
    while processes < max {
        match fork() {
            0 => stay(),
            -1 => break,
            _ => processes += 1,
        }
    }
    say(&format!("became {processes}"));
    while std::io::stdin().read_line(&mut String::new()).is_ok_and(|length| length > 0) {
        match fork() {
            0 => stay(),
            -1 => say("refused"),
            _ => say("forked"),
        }
    }
}

/// Opens files until it may not, says how many were open at most, the standard streams among them, and stays.
fn hog_files() {
    let mut files = Vec::new();
    let error = loop {
        match std::fs::File::open("/dev/null") {
            Ok(file) => files.push(file),
            Err(error) => break error,
        }
    };
    let count = files.len() + 3;
    // Room for what saying it needs.
    files.truncate(files.len().saturating_sub(4));
    say(&format!("opened {count}: {}", error.raw_os_error().unwrap_or_default()));
    stay()
}

/// Uses two processors without end.
fn hog_cpu() {
    let burn = || {
        loop {
            std::hint::spin_loop();
        }
    };
    std::thread::spawn(burn);
    burn()
}

/// Listens on a port of its own choice, says which, and stays.
fn listen() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    say(&socket.local_addr().expect("bound").port().to_string());
    stay()
}

fn stay() -> ! {
    loop {
        std::thread::park();
    }
}
