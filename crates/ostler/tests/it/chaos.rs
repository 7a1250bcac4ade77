//! Chaos: processes are killed and stopped, programs are not there, the disk is full, the configuration changes, all at
//! random and under the load of many clients. Every call is answered or refused; and when it is over, the daemon is as
//! it was before: processes, files, threads (but [`MORE_THREADS`]), ports, sessions, zombies, and its memory within [`MORE_MEMORY`].
//!
//! `OSTLER_CHAOS_SECONDS` says how long it lasts, `OSTLER_CHAOS_SEED` replays what the test does (what the kernel
//! makes of it is its own). A full disk needs the right to mount; without it the test says so and leaves it out.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ostler_testkit::dice::Dice;
use ostler_testkit::mark::{MARK_VARIABLE, Mark};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::cli::{done, over_socket};
use crate::client::{Http, Reply, Session, initialize, modern, post_modern, tool_call};
use crate::support::{Daemon, wait_until};

/// How long it lasts unless `OSTLER_CHAOS_SECONDS` says otherwise.
const SECONDS: u64 = 100;

/// Clients at once.
const CLIENTS: u64 = 24;

/// How much larger the daemon may be afterwards: its event log (1 MiB), lines of output of new instances, and what the
/// allocator keeps of the load.
const MORE_MEMORY: u64 = 32 << 20;

/// Threads that may be there besides: the runtime's for work that blocks end after a while without any, and the measurements of
/// every few seconds keep as many awake as ever ran at the same time and take turns since. Three were seen where much
/// happened at once; what leaks is a thread for each of some hundred restarts.
const MORE_THREADS: usize = 6;

/// Room for the ledger and its journal, and little more.
const DISK: &str = "size=16m,mode=0700";

/// Servers that clients call, with their era.
const CALLED: [(&str, bool); 6] = [
    ("shared", false),
    ("modern", true),
    ("mine", false),
    ("own", false),
    ("flaky", false),
    ("needs", false),
];

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// A state directory that can be full.
struct Disk(PathBuf);

impl Disk {
    /// `None`, with the reason told, where nothing may be mounted.
    fn mount(at: &Path) -> Option<Self> {
        fs::create_dir_all(at).expect("a folder");
        let mut command = Command::new("mount");
        let output =
            command.args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(at).output().expect("`mount` runs");
        if output.status.success() {
            return Some(Self(at.to_owned()));
        }
        eprintln!("NOT TESTED: a full disk: {}", String::from_utf8_lossy(&output.stderr));
        None
    }

    fn fill(&self) {
        let Ok(mut file) = fs::File::create(self.0.join("fill")) else { return };
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn free(&self) {
        let _ = fs::remove_file(self.0.join("fill"));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// What the configuration says in the `version`th version of it. The first is that of the beginning and the end.
fn config(dir: &Path, version: u64) -> String {
    let fake = ostler_testkit::fake::path();
    let fake = fake.display();
    let mut dice = Dice::seeded(version);
    let mut changed = |name: &str| {
        if version > 0 && dice.below(3) == 0 { format!("{name}-{version}") } else { name.to_owned() }
    };
    let idle = 2000 + version % 7;
    let mut text = format!(
        "[limits]\nprocesses = 60\nsession_instances = 60\nper_type = 20\nshutdown = \"20s\"\n[sessions]\nidle = \"4s\"\n\
         [defaults]\nidle = \"{idle}ms\"\ninherit_env = [\"{MARK_VARIABLE}\"]\nstop = {{ grace = \"1s\", drain = \"1s\" }}\n\
         timeouts = {{ handshake = \"5s\", call_idle = \"3s\", call_max = \"6s\" }}\n\
         restart = {{ max = 1000, window = \"1s\", backoff = {{ min = \"20ms\", max = \"300ms\" }} }}\n\
         health = {{ interval = \"500ms\", timeout = \"500ms\", failures = 2, unhealthy_after = \"2s\" }}\n"
    );
    let mut server = |name: &str, era: &str, lines: &str| {
        let word = changed(name);
        text += &format!("[servers.{name}]\ncommand = \"{fake}\"\nargs = [\"{era}\", \"{word}\"]\n{lines}\n");
    };
    server("shared", "legacy", "scope = \"shared\"");
    server("modern", "modern", "scope = \"shared\"");
    server("mine", "legacy", "start = \"on-demand\"");
    server("own", "legacy", "scope = \"session\"");
    server("needs", "legacy", "scope = \"shared\"\ndepends_on = [\"shared\"]");
    if version % 2 == 1 {
        server("extra", "legacy", "scope = \"shared\"");
    }
    text += &format!(
        "[servers.flaky]\ncommand = \"{}\"\nargs = [\"legacy\"]\nscope = \"shared\"\n\
         [servers.port]\ncommand = \"{fake}\"\nargs = [\"listen\", \"{{port.main}}\"]\ntransport = \"none\"\n\
         scope = \"shared\"\nports = {{ main = \"auto\" }}\nhealth = {{ probe = \"none\" }}\n",
        dir.join("flaky").display()
    );
    text
}

/// Counts what came of the calls and what was done to the daemon.
#[derive(Default)]
struct Tally(std::sync::Mutex<BTreeMap<&'static str, u64>>);

impl Tally {
    fn count(&self, what: &'static str) {
        *self.0.lock().expect("nobody panics in here").entry(what).or_default() += 1;
    }

    fn of(&self, what: &str) -> u64 {
        self.0.lock().expect("nobody panics in here").get(what).copied().unwrap_or_default()
    }
}

/// Everything that does harm.
struct Harm<'a> {
    daemon: &'a Daemon,
    disk: Option<&'a Disk>,
    dice: Dice,
    tally: &'a Tally,
    version: u64,
    /// Processes that go on, and things that are undone, at their times.
    later: Vec<(Instant, Undo)>,
}

enum Undo {
    GoOn(Pid),
    FreeDisk,
    ProgramBack,
}

impl Harm<'_> {
    fn go_on(mut self, until: Instant, stop: &AtomicBool) {
        while Instant::now() < until && !stop.load(Ordering::Relaxed) {
            self.act();
            let pause = Duration::from_millis(20 + self.dice.below(300));
            std::thread::park_timeout(pause);
            self.undo(Instant::now());
        }
        self.undo(Instant::now() + Duration::from_secs(3600));
    }

    fn undo(&mut self, now: Instant) {
        let (due, later) = std::mem::take(&mut self.later).into_iter().partition(|(at, _)| *at <= now);
        self.later = later;
        let due: Vec<(Instant, Undo)> = due;
        for (_, undo) in due {
            match undo {
                // It may be gone, and restarted under another number.
                Undo::GoOn(pid) => signal(pid, Signal::CONT),
                Undo::FreeDisk => self.disk.into_iter().for_each(Disk::free),
                Undo::ProgramBack => self.program(true),
            }
        }
    }

    fn program(&self, there: bool) {
        let link = self.daemon.dir().join("flaky");
        let _ = fs::remove_file(&link);
        if there {
            symlink(ostler_testkit::fake::path(), link).expect("a link");
        }
    }

    fn victim(&mut self) -> Option<Pid> {
        let (_, body) = over_socket(self.daemon, "GET", "/api/v1/instances", "");
        let rows: Vec<Value> = serde_json::from_str(&body).expect("an array");
        let pids: Vec<i32> = rows.iter().filter_map(|row| i32::try_from(row["pid"].as_i64()?).ok()).collect();
        let pid = (!pids.is_empty()).then(|| *self.dice.pick(&pids))?;
        Pid::from_raw(pid)
    }

    fn act(&mut self) {
        let soon = Instant::now() + Duration::from_millis(100 + self.dice.below(1500));
        match self.dice.below(100) {
            0..40 => {
                if let Some(pid) = self.victim() {
                    self.tally.count("killed");
                    signal(pid, Signal::KILL);
                }
            }
            40..50 => {
                // The daemon finds what a killed guard leaves.
                let guard = self.victim().and_then(|pid| parent(pid.as_raw_nonzero().get()));
                if let Some(guard) = guard.filter(|guard| is_guard_of(*guard, self.daemon.pid())) {
                    self.tally.count("guards killed");
                    signal(guard, Signal::KILL);
                }
            }
            50..65 => {
                if let Some(pid) = self.victim() {
                    self.tally.count("stopped");
                    signal(pid, Signal::STOP);
                    // Some stay so, until a probe finds out.
                    if self.dice.below(2) == 0 {
                        self.later.push((soon, Undo::GoOn(pid)));
                    }
                }
            }
            65..75 => {
                self.tally.count("programs taken away");
                self.program(false);
                self.later.push((soon, Undo::ProgramBack));
            }
            75..85 => {
                if let Some(disk) = self.disk {
                    self.tally.count("disks filled");
                    disk.fill();
                    self.later.push((soon, Undo::FreeDisk));
                }
            }
            85..97 => self.reload(),
            _ => {
                self.tally.count("bad files");
                self.daemon.rewrite("[servers.x]\ncomand = 1\n");
                assert_eq!(over_socket(self.daemon, "POST", "/api/v1/reload", "").0, 422);
            }
        }
    }

    /// The file alone may be enough: it is followed.
    fn reload(&mut self) {
        self.tally.count("reloads");
        self.version = self.dice.bits() >> 40;
        self.daemon.rewrite(&config(self.daemon.dir(), self.version));
        if self.dice.below(2) == 0 {
            let (status, body) = over_socket(self.daemon, "POST", "/api/v1/reload", "");
            assert_eq!(status, 200, "{body}");
        }
    }
}

/// To a process that may be gone.
fn signal(pid: Pid, signal: Signal) {
    let _ = kill_process(pid, signal);
}

fn status_of(pid: i32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}

fn parent(pid: i32) -> Option<Pid> {
    Pid::from_raw(status_of(pid, "PPid:")?.parse().ok()?)
}

/// Whether it is no server, but a guard of this daemon: the parent of one whose guard is dead is the daemon itself.
fn is_guard_of(pid: Pid, daemon: u32) -> bool {
    let raw = pid.as_raw_nonzero().get();
    let arguments = fs::read(format!("/proc/{raw}/cmdline")).unwrap_or_default();
    raw.unsigned_abs() != daemon && arguments.starts_with(b"ostler\0")
}

/// One who calls servers until told to stop.
struct Client {
    http: Arc<Http>,
    dice: Dice,
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
}

impl Client {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    async fn use_servers(mut self) {
        while self.goes_on() {
            let (server, is_modern) = *self.dice.pick(&CALLED);
            if is_modern {
                let (request, wanted) = self.request();
                self.judge(post_modern(&self.http, server, &modern(request)).await, &wanted).await;
            } else {
                self.legacy(server).await;
            }
        }
    }

    /// A call, and what its answer says.
    fn request(&mut self) -> (Value, String) {
        let word = format!("{:x}", self.dice.bits());
        let id = self.dice.below(1 << 20);
        let request = match self.dice.below(3) {
            0 => tool_call(id, "sleep", &json!({"ms": self.dice.below(400), "tag": word})),
            1 => tool_call(id, "progress", &json!({"steps": 3, "gap_ms": self.dice.below(50), "tag": word})),
            _ => tool_call(id, "echo", &json!({"text": word})),
        };
        (request, word)
    }

    async fn legacy(&mut self, server: &str) {
        let mut reply = self.http.post(server, &[], &initialize()).await;
        let messages = reply.rest().await;
        let Some(id) = reply.header("mcp-session-id").map(str::to_owned) else {
            assert!(
                reply.status >= 400 && messages[0]["error"].is_object(),
                "{}: {messages:?}",
                reply.status
            );
            return self.tally.count("sessions refused");
        };
        self.tally.count("sessions");
        let session = Session { http: Arc::clone(&self.http), server: server.to_owned(), id };
        for _ in 0..self.dice.below(12) {
            let (request, wanted) = self.request();
            let over = self.judge(session.send(&request).await, &wanted).await;
            if over || !self.goes_on() {
                break;
            }
        }
        // Some leave without a word.
        if self.dice.below(4) > 0 {
            session.end().await;
        }
    }

    /// Every call is answered with what was asked, or refused with a reason. Whether the session is over.
    async fn judge(&self, mut reply: Reply, wanted: &str) -> bool {
        let messages = reply.rest().await;
        let last = messages.last();
        let answer = last.unwrap_or_else(|| panic!("a call was lost (status {})", reply.status));
        if let Some(text) = answer["result"]["content"][0]["text"].as_str() {
            assert_eq!(text, wanted, "somebody else's answer: {answer}");
            self.tally.count("answered");
            return false;
        }
        let why = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(!why.is_empty(), "neither answer nor reason (status {}): {answer}", reply.status);
        self.tally.count("refused");
        reply.status == 404
    }
}

/// What must be the same afterwards.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Figures {
    /// Processes of servers.
    processes: usize,
    /// Children of the daemon: guards, and the forge.
    children: usize,
    zombies: usize,
    files: usize,
    threads: usize,
    ports: u64,
    sessions: u64,
}

impl Figures {
    fn are_as(&self, before: &Self) -> bool {
        let threads = before.threads;
        (threads..=threads + MORE_THREADS).contains(&self.threads) && Self { threads, ..*self } == *before
    }
}

fn figures(daemon: &Daemon, mark: &Mark) -> Figures {
    let pid = daemon.pid();
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
    let (children, zombies) = children(pid);
    let status = daemon.status();
    let figure = |name: &str| status[name].as_u64().expect("a figure");
    Figures {
        processes: mark.processes().iter().filter(|process| !process.command.contains("ostler up")).count(),
        children,
        zombies,
        files: count("fd"),
        threads: count("task"),
        ports: figure("ports_held"),
        sessions: figure("sessions"),
    }
}

fn children(of: u32) -> (usize, usize) {
    let pids = fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mine: Vec<i32> =
        pids.filter(|pid| status_of(*pid, "PPid:").is_some_and(|ppid| ppid == of.to_string())).collect();
    let zombies =
        mine.iter().filter(|pid| status_of(**pid, "State:").is_some_and(|state| state.starts_with('Z')));
    (mine.len(), zombies.count())
}

/// All that starts with the daemon serves, and nothing else runs.
fn at_rest(daemon: &Daemon) -> bool {
    let rows = daemon.ps();
    let up = |row: &Value| row["state"] == "ready";
    ["shared", "modern", "flaky", "needs", "port"]
        .iter()
        .all(|name| rows.iter().any(|row| row["server"] == *name && up(row)))
        && rows.iter().filter(|row| row["pid"].is_number()).count() == 5
}

/// Lets many clients call servers until told to stop; returns when every call has come to its end.
async fn load(daemon: &Daemon, seed: u64, tally: &Arc<Tally>, stop: &Arc<AtomicBool>) {
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| Client {
            http: Http::new(daemon.address()),
            dice: Dice::seeded(seed ^ (number + 1).wrapping_mul(0xA24B_AED4_963E_E407)),
            tally: Arc::clone(tally),
            stop: Arc::clone(stop),
        })
        .map(|client| tokio::spawn(client.use_servers()))
        .collect();
    let ended = futures_util::future::join_all(clients).await;
    stop.store(true, Ordering::Relaxed);
    for result in ended {
        result.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn after_chaos_everything_is_as_before_and_no_call_was_lost() {
    let seed = number("OSTLER_CHAOS_SEED").unwrap_or_else(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        u64::from(since.subsec_nanos()) ^ (since.as_secs() << 20)
    });
    let seconds = number("OSTLER_CHAOS_SECONDS").unwrap_or(SECONDS);
    eprintln!("chaos for {seconds} s, seed {seed} (OSTLER_CHAOS_SEED)");
    let mark = Mark::new();
    let (name, value) = mark.env();
    let mut disk = None;
    let mut daemon = Daemon::start_with("", &[(name.as_str(), value.as_str())], |dir| {
        disk = Disk::mount(&dir.join("state"));
        symlink(ostler_testkit::fake::path(), dir.join("flaky")).expect("a link");
        fs::write(dir.join("ostler.toml"), with_listen(&config(dir, 0))).expect("written");
    });
    let (tally, stop) = (Arc::<Tally>::default(), Arc::<AtomicBool>::default());
    let settled = |daemon: &Daemon| wait_until("the daemon is at rest", || at_rest(daemon));
    settled(&daemon);
    // A load without harm first: what a first use takes for good is not lost.
    let warm = Arc::<AtomicBool>::default();
    let ending = tokio::spawn({
        let warm = Arc::clone(&warm);
        async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            warm.store(true, Ordering::Relaxed);
        }
    });
    load(&daemon, seed ^ 1, &tally, &warm).await;
    ending.await.expect("it does not panic");
    settled(&daemon);
    wait_until("all sessions are over", || daemon.status()["sessions"] == 0);
    let (before, rss) = (figures(&daemon, &mark), daemon.status()["rss_bytes"].as_u64().expect("bytes"));

    let until = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        let harm = Harm {
            daemon: &daemon,
            disk: disk.as_ref(),
            dice: Dice::seeded(seed),
            tally: &tally,
            version: 0,
            later: Vec::new(),
        };
        let harming = scope.spawn({
            let stop = Arc::clone(&stop);
            move || {
                let done =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| harm.go_on(until, &stop)));
                // Whatever came of it, the clients end too.
                stop.store(true, Ordering::Relaxed);
                done
            }
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(load(&daemon, seed, &tally, &stop));
        });
        harming.join().expect("caught").unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    eprintln!("seed {seed}: {:?}", tally.0.lock().expect("nobody panics in there"));

    for process in mark.processes() {
        Pid::from_raw(process.pid).into_iter().for_each(|pid| signal(pid, Signal::CONT));
    }
    daemon.rewrite(&config(daemon.dir(), 0));
    done(&daemon, &["reload"]);
    settled(&daemon);
    let mut last = None;
    wait_until(&format!("seed {seed}: the daemon is as it was: {before:?}"), || {
        let now = figures(&daemon, &mark);
        let back = now.are_as(&before);
        if last.as_ref() != Some(&now) {
            eprintln!("seed {seed}: {now:?}");
        }
        last = Some(now);
        back
    });
    let mut grown = 0;
    wait_until(&format!("seed {seed}: its memory is near what it was, {rss}"), || {
        grown = daemon.status()["rss_bytes"].as_u64().expect("bytes").saturating_sub(rss);
        grown <= MORE_MEMORY
    });
    eprintln!("seed {seed}: grown by {grown} bytes");
    for what in ["killed", "stopped", "programs taken away", "reloads", "answered", "refused"] {
        assert!(tally.of(what) > 0, "it was tested: {what}");
    }
    assert!(disk.is_none() || tally.of("disks filled") > 0, "it was tested");
    assert!(tally.of("answered") > 10 * seconds, "most is answered: {}", tally.of("answered"));
    done(&daemon, &["down"]);
    assert!(daemon.wait().success());
    mark.wait_empty(Duration::from_secs(5)).expect("no process is left");
}

fn with_listen(config: &str) -> String {
    format!("[gateway]\nlisten = \"127.0.0.1:0\"\n{config}")
}
