//! What tasks cannot do, and what their project allows them: the sandbox of workers, as the daemon uses it.
//!
//! Where bubblewrap is missing these fail, and say what to install: nothing of the sandbox would be shown by passing.

use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Daemon, wait_until};
use crate::tasks::{api, ended, submit};

const SECRET: &str = "this-is-the-secret-of-the-test";

/// Runs each attempt, and says of each how it was refused, or that it was not. No attempt changes anything where it is not refused: this is run by root
/// on machines of people, and a sandbox may be broken. So nothing is written, sent far, ended or mounted: what would be is asked for in a way that
/// has no effect.
const ATTEMPTS: &str = r#"
import errno, glob, os, socket

def connect(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as it:
        it.settimeout(5)
        it.connect(address)

def environments():
    found = [open(name, "rb").read() for name in glob.glob("/proc/[0-9]*/environ")]
    if not any(args["secret"].encode() in one for one in found):
        raise FileNotFoundError(errno.ENOENT, "none")

def open_to_write(path):
    # Neither made, nor cut, nor written to.
    os.close(os.open(path, os.O_WRONLY))

def make_in(folder):
    # A file without a name, which goes when it is closed.
    os.close(os.open(folder, os.O_WRONLY | os.O_TMPFILE, 0o600))

def link(path):
    os.symlink(path, "link")
    try:
        return open("link").read()
    finally:
        os.unlink("link")

def may_signal():
    os.kill(args["pid"], 0)

def call(name, *words):
    import ctypes
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*words) != 0:
        raise OSError(ctypes.get_errno(), name)

up = "../" * 20
attempts = {
    "read a file of the daemon's user": lambda: open(args["file"]).read(),
    "read it by ..": lambda: open(up + args["file"][1:]).read(),
    "read it by a link": lambda: link(args["file"]),
    "read it by a link of another process": lambda: open("/proc/1/root" + args["file"]).read(),
    "read the journal": lambda: open(args["journal"], "rb").read(),
    "list the daemon's folder": lambda: os.listdir(args["folder"]),
    "read the daemon's environment": lambda: open("/proc/%d/environ" % args["pid"], "rb").read(),
    "find the secret in any environment": environments,
    "use the daemon's socket": lambda: connect(socket.AF_UNIX, args["socket"]),
    "signal the daemon": may_signal,
    "reach a listener of this machine": lambda: connect(socket.AF_INET, ("127.0.0.1", args["tcp"])),
    "find a way to other machines": lambda: connect(socket.AF_INET, ("198.51.100.1", args["udp"]), socket.SOCK_DGRAM),
    "reach an abstract socket": lambda: connect(socket.AF_UNIX, "\0" + args["abstract"]),
    "reach the host of a virtual machine": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "read the machine's /tmp": lambda: open(args["tmp"]).read(),
    "write over a program": lambda: open_to_write("/usr/bin/env"),
    "write into the root": lambda: make_in("/"),
    "write a setting of the kernel": lambda: open_to_write("/proc/sys/kernel/core_pattern"),
    "mount something": lambda: call("mount", b"none", b"/no/such/folder", b"tmpfs", 0, None),
    "make a namespace": lambda: call("unshare", 0x10000000),
    "read a disk": lambda: os.open("/dev/vda", os.O_RDONLY),
}
said = {}
for name, attempt in attempts.items():
    try:
        attempt()
        said[name] = "done"
    except OSError as error:
        said[name] = errno.errorcode.get(error.errno, str(error))
said
"#;

/// How each is refused.
const REFUSED: [(&str, &[&str]); 21] = [
    ("read a file of the daemon's user", &["ENOENT"]),
    ("read it by ..", &["ENOENT"]),
    ("read it by a link", &["ENOENT"]),
    ("read it by a link of another process", &["ENOENT", "EACCES"]),
    ("read the journal", &["ENOENT"]),
    ("list the daemon's folder", &["ENOENT"]),
    ("read the daemon's environment", &["ENOENT"]),
    ("find the secret in any environment", &["ENOENT"]),
    ("use the daemon's socket", &["ENOENT"]),
    ("signal the daemon", &["ESRCH"]),
    ("reach a listener of this machine", &["ECONNREFUSED"]),
    ("find a way to other machines", &["ENETUNREACH"]),
    ("reach an abstract socket", &["ECONNREFUSED"]),
    ("reach the host of a virtual machine", &["EAFNOSUPPORT"]),
    ("read the machine's /tmp", &["ENOENT"]),
    ("write over a program", &["EROFS"]),
    ("write into the root", &["EROFS"]),
    ("write a setting of the kernel", &["EROFS"]),
    ("mount something", &["EPERM"]),
    ("make a namespace", &["EPERM"]),
    ("read a disk", &["ENOENT"]),
];

/// Something outside that a task is to find out nothing about.
struct Outside {
    tcp: TcpListener,
    udp: UdpSocket,
    abstract_name: String,
    abstract_listener: UnixListener,
    file: tempfile::NamedTempFile,
}

impl Outside {
    fn new() -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let abstract_name = format!("ostler-test-{}", tcp.local_addr().expect("bound").port());
        let address = SocketAddr::from_abstract_name(&abstract_name).expect("a name");
        let abstract_listener = UnixListener::bind_addr(&address).expect("bound");
        tcp.set_nonblocking(true).expect("set");
        udp.set_nonblocking(true).expect("set");
        abstract_listener.set_nonblocking(true).expect("set");
        let file = tempfile::NamedTempFile::new_in("/tmp").expect("a file");
        std::fs::write(file.path(), SECRET).expect("written");
        Self { tcp, udp, abstract_name, abstract_listener, file }
    }

    fn args(&self, daemon: &Daemon) -> Value {
        json!({
            "secret": SECRET, "pid": daemon.pid(), "socket": daemon.socket(), "folder": daemon.dir(),
            "file": daemon.dir().join("secret"), "journal": daemon.state_dir().join("tasks.db"),
            "tcp": self.tcp.local_addr().expect("bound").port(),
            "udp": self.udp.local_addr().expect("bound").port(),
            "abstract": self.abstract_name, "tmp": self.file.path(),
        })
    }

    fn assert_nobody_came(&self) {
        let blocked = |error: std::io::Error| error.kind() == ErrorKind::WouldBlock;
        assert!(self.tcp.accept().is_err_and(blocked), "somebody came");
        assert!(self.udp.recv(&mut [0; 8]).is_err_and(blocked), "somebody came");
        assert!(self.abstract_listener.accept().is_err_and(blocked), "somebody came");
    }
}

fn daemon(config: &str) -> Daemon {
    let prepare = |folder: &Path| {
        std::fs::write(folder.join("secret"), SECRET).expect("written");
        std::fs::create_dir(folder.join("shared")).expect("made");
        std::fs::write(folder.join("shared/there"), "shared").expect("written");
    };
    let daemon = Daemon::start_with(config, &[("A_SECRET", SECRET)], prepare);
    let doctor = daemon.cli(&["doctor"]);
    let said = String::from_utf8_lossy(&doctor.stdout);
    let line = said.lines().find(|line| line.starts_with("sandbox")).unwrap_or_default();
    assert!(
        line.contains("builds those of workers"),
        "the sandbox cannot be tested here; install bubblewrap, or do what this says: {line}"
    );
    daemon
}

fn python(daemon: &Daemon, project: &str, code: &str, args: &Value) -> Value {
    let payload = json!({"language": "python", "code": code, "args": args});
    let id = submit(daemon, "execute-code", payload, json!({"project": project, "attempts": 1}));
    let task = ended(daemon, &id);
    let (_, result) = api(daemon, "GET", &format!("/api/v1/tasks/{id}/result"), &Value::Null);
    assert_eq!(task["state"], "succeeded", "{task}");
    result
}

fn shell(daemon: &Daemon, project: &str, script: &str, more: Value) -> Value {
    let mut options = json!({"project": project, "attempts": 1});
    options.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    let id = submit(daemon, "shell-command", json!({"argv": ["sh", "-c", script], "check": false}), options);
    let task = ended(daemon, &id);
    let (_, result) = api(daemon, "GET", &format!("/api/v1/tasks/{id}/result"), &Value::Null);
    json!({"task": task, "result": result})
}

#[test]
fn a_task_cannot_get_out() {
    let outside = Outside::new();
    let daemon = daemon("");
    let args = outside.args(&daemon);
    let said = python(&daemon, "default", ATTEMPTS, &args);
    let wrong: Vec<String> = REFUSED
        .iter()
        .filter(|(name, ways)| !said[name].as_str().is_some_and(|way| ways.contains(&way)))
        .map(|(name, _)| format!("{name}: {}", said[name]))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(said.as_object().map(serde_json::Map::len), Some(REFUSED.len()), "{said}");
    outside.assert_nobody_came();

    // The same from Node and from a command, in short.
    let secret = daemon.dir().join("secret");
    let script = format!("cat {}; cat /proc/{}/environ; env; ls /", secret.display(), daemon.pid());
    let came = shell(&daemon, "default", &script, json!({}));
    let all = came.to_string();
    assert!(
        !all.contains(SECRET) && !came["result"]["stdout"].as_str().unwrap_or("root").contains("root"),
        "{all}"
    );
    let node = json!({
        "language": "node",
        "code": "try { return require('fs').readFileSync(args.file, 'utf8') } catch (error) { return error.code + ' ' + (process.env.A_SECRET ?? '') }",
        "args": {"file": secret},
    });
    let id = submit(&daemon, "execute-code", node, json!({"attempts": 1}));
    assert_eq!(ended(&daemon, &id)["state"], "succeeded");
    assert_eq!(api(&daemon, "GET", &format!("/api/v1/tasks/{id}/result"), &Value::Null).1, "ENOENT ");
}

#[test]
fn a_fork_bomb_stays_in_its_worker_and_the_next_task_is_served() {
    let daemon = daemon("[workers]\nmax = 1\n");
    // Of a bounded size, should nothing else bound it.
    let bomb = "import os, time\nprint('begun')\nfor _ in range(300):\n  try:\n    if os.fork() == 0: time.sleep(60); os._exit(0)\n  except OSError: time.sleep(0.01)\ntime.sleep(60)";
    let payload = json!({"language": "python", "code": bomb});
    let id = submit(&daemon, "execute-code", payload, json!({"attempts": 1, "timeout_ms": 1500}));
    let most = std::cell::Cell::new(0);
    let served = shell(&daemon, "other", "echo well", json!({}));
    assert_eq!(served["result"]["stdout"], "well\n", "{served}");
    wait_until("it has ended", || {
        for row in daemon.ps() {
            most.set(most.get().max(row["processes"].as_u64().unwrap_or(0)));
        }
        let (_, task) = api(&daemon, "GET", &format!("/api/v1/tasks/{id}"), &Value::Null);
        task["state"] == "dead"
    });
    assert!(most.get() <= 80, "{} processes", most.get());
    let why = ended(&daemon, &id)["why"].clone();
    assert!(why.as_str().is_some_and(|why| why.starts_with("timeout: ")), "{why}");
    assert_eq!(python(&daemon, "default", "1 + 1", &Value::Null), 2);
}

#[test]
fn a_project_gets_what_it_is_allowed_and_shares_no_worker() {
    let outside = Outside::new();
    let config = "[workers]\nidle = \"1s\"\ninterval = \"1s\"\nparts = 3\n\
         [projects.net]\nnetwork = true\n[projects.folder]\nfolders = [\"shared\"]\n";
    let daemon = daemon(config);
    let args = outside.args(&daemon);
    let shared = daemon.dir().join("shared").canonicalize().expect("real");
    let args = {
        let mut args = args;
        args["shared"] = json!(shared.join("there"));
        args["new"] = json!(shared.join("new"));
        args["left"] = json!(format!("/tmp/ostler-test-left-{}", std::process::id()));
        args
    };
    let code = r#"
import errno, os, socket
def way(attempt):
    try:
        return attempt() or "done"
    except OSError as error:
        return errno.errorcode[error.errno]
def reach():
    socket.create_connection(("127.0.0.1", args["tcp"]), 5).close()
def write():
    open(args["new"], "w").write("new")
def seen():
    found = os.path.exists(args["left"]) or os.path.exists("left")
    open(args["left"], "w").close()
    open("left", "w").close()
    return str(found)
[way(reach), way(lambda: open(args["shared"]).read()), way(write), way(lambda: open(args["file"]).read()), way(seen)]
"#;
    let expected = [
        ("net", json!(["done", "ENOENT", "ENOENT", "ENOENT", "False"])),
        ("folder", json!(["ECONNREFUSED", "shared", "done", "ENOENT", "False"])),
        ("neither", json!(["ECONNREFUSED", "ENOENT", "ENOENT", "ENOENT", "False"])),
        // One after the other there is room for all, though not at once.
        ("net/2", json!(["ECONNREFUSED", "ENOENT", "ENOENT", "ENOENT", "False"])),
    ];
    for (project, expected) in expected {
        assert_eq!(python(&daemon, project, code, &args), expected, "{project}");
        if project == "net" {
            outside.tcp.accept().expect("it came");
        }
    }
    assert_eq!(std::fs::read_to_string(shared.join("new")).expect("it was written"), "new");
    outside.assert_nobody_came();
    // What is allowed after a reload is so for who was there before.
    daemon.rewrite(&format!("{config}[projects.neither]\nnetwork = true\n"));
    let reload = daemon.cli(&["reload"]);
    assert!(reload.status.success(), "{}", String::from_utf8_lossy(&reload.stderr));
    wait_until("it may use the network", || python(&daemon, "neither", code, &args)[0] == "done");
    // Who has nothing to do any more has no workers, and no folder.
    wait_until("the parts are closed", || {
        let lanes = api(&daemon, "GET", "/api/v1/pool", &Value::Null).1["lanes"].clone();
        lanes.as_array().is_some_and(Vec::is_empty)
    });
    wait_until("their folders are gone", || entries(&daemon).is_empty());
    assert!(daemon.ps().is_empty(), "{:?}", daemon.ps());
}

#[test]
fn one_project_does_not_keep_its_place_from_another_for_ever() {
    let daemon = daemon("[tasks]\nproject_queued = 100\n[workers]\nmax = 1\nparts = 1\n");
    let busy: Vec<Value> =
        (0..60).map(|_| json!({"type": "shell-command", "payload": {"argv": ["sleep", "0.5"]}})).collect();
    let (status, batch) =
        api(&daemon, "POST", "/api/v1/batches", &json!({"tasks": busy, "batch": {"project": "busy"}}));
    assert_eq!(status, 202, "{batch}");
    let served = shell(&daemon, "other", "echo well", json!({}));
    assert_eq!(served["result"]["stdout"], "well\n", "{served}");
    let id = batch["id"].as_str().expect("an id");
    let tasks = api(&daemon, "GET", &format!("/api/v1/batches/{id}"), &Value::Null).1["tasks"].clone();
    assert!(tasks["queued"].as_u64() > Some(0), "{tasks}");
    wait_until("the first goes on", || {
        let now = api(&daemon, "GET", &format!("/api/v1/batches/{id}"), &Value::Null).1["tasks"].clone();
        now["succeeded"].as_u64() > tasks["succeeded"].as_u64()
    });
}

/// The private folders of workers.
fn entries(daemon: &Daemon) -> Vec<std::path::PathBuf> {
    let found = std::fs::read_dir(daemon.state_dir().join("private")).expect("it is there");
    found.flatten().map(|entry| entry.path()).collect()
}

#[test]
fn what_a_killed_daemon_left_is_removed() {
    let mut daemon = daemon("");
    let script = "mkdir -p a/b && touch a/b/c && chmod 0 a/b a && touch here";
    let done = shell(&daemon, "default", script, json!({}));
    assert_eq!(done["result"]["status"], 0, "{done}");
    let before = entries(&daemon);
    assert!(before.iter().any(|folder| folder.join("here").exists()), "{before:?}");
    daemon.signal(Signal::KILL);
    daemon.wait();
    daemon.start_again(&[]);
    wait_until("they are gone", || before.iter().all(|folder| !folder.exists()));
    assert_eq!(shell(&daemon, "default", "ls", json!({}))["result"]["stdout"], "");
}

#[test]
fn without_bubblewrap_code_is_refused_and_what_waits_is_said() {
    let mut daemon = daemon("");
    let code = json!({"type": "execute-code", "payload": {"code": "return 1"}});
    // Accepted while there was one.
    let later = json!({"type": "execute-code", "payload": {"code": "return 1"}, "delay_ms": 1500});
    let (status, accepted) = api(&daemon, "POST", "/api/v1/tasks", &later);
    assert_eq!(status, 202, "{accepted}");
    daemon.signal(Signal::KILL);
    daemon.wait();
    let empty = daemon.dir().join("shared").display().to_string();
    daemon.start_again(&[("PATH", &empty)]);
    let (status, refused) = api(&daemon, "POST", "/api/v1/tasks", &code);
    let said = refused["error"].as_str().unwrap_or_default();
    assert_eq!(status, 503, "{refused}");
    for part in ["bubblewrap", "apt-get install", "workers.sandbox"] {
        assert!(said.contains(part), "{said}");
    }
    // What is there already waits, and it is said why.
    wait_until("the pool says why", || {
        let lanes = api(&daemon, "GET", "/api/v1/pool", &Value::Null).1["lanes"].clone();
        let trouble = |lane: &Value| lane["trouble"].as_str().is_some_and(|why| why.contains("bubblewrap"));
        lanes.as_array().is_some_and(|lanes| lanes.iter().any(trouble))
    });
    let id = accepted["id"].as_str().expect("an id");
    let (_, task) = api(&daemon, "GET", &format!("/api/v1/tasks/{id}"), &Value::Null);
    assert_eq!((&task["state"], &task["attempt"]), (&json!("queued"), &json!(0)), "{task}");
    // Requests need none, as they run no code.
    let get = json!({"type": "http-request", "payload": {"url": "http://127.0.0.1:1/"}, "attempts": 1});
    let (status, accepted) = api(&daemon, "POST", "/api/v1/tasks", &get);
    assert_eq!(status, 202, "{accepted}");
    let why = ended(&daemon, accepted["id"].as_str().expect("an id"))["why"].clone();
    assert!(why.as_str().is_some_and(|why| why.starts_with("refused: ")), "{why}");
}
