//! Tasks, their workers and projects.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ostler_config::{
    Apply, Config, JournalMode, Project, Sandbox, ServerChange, TASK_BYTES_MAX, Tasks, Workers, diff,
    in_force, load, load_with,
};
use ostler_domain::ResourceLimits;
use ostler_domain::task::queue::{ProjectLimits, QueueSpec};
use ostler_domain::task::retry::RetrySpec;
use ostler_domain::task::scale::ScaleSpec;
use ostler_domain::task::worker::WorkerSpec;
use ostler_domain::task::{Lane, STOCK_TYPES};

use crate::{env, toml, warnings};

const SECOND: Duration = Duration::from_secs(1);

fn config(text: &str) -> Config {
    toml(text).unwrap_or_else(|e| panic!("{text}\n{e}"))
}

fn refused(text: &str) -> String {
    toml(text).unwrap_err().render(false)
}

#[test]
fn nothing_said_is_every_documented_default() {
    let Config { tasks, workers, projects, .. } = config("");
    assert_eq!((&tasks, &workers), (&Tasks::default(), &Workers::default()));
    assert_eq!((tasks.journal, &tasks.queue), (JournalMode::Durable, &QueueSpec::default()));
    assert_eq!(tasks.retry, RetrySpec::default());
    assert_eq!((tasks.timeout, tasks.timeout_max), (300 * SECOND, 86_400 * SECOND));
    assert_eq!((tasks.payload_max, tasks.result_inline, tasks.result_max), (1 << 20, 64 << 10, 15 << 20));
    assert_eq!((tasks.keep, tasks.keep_size), (7 * 86_400 * SECOND, 1 << 30));
    assert_eq!((tasks.batch, tasks.logs, tasks.calls), (10_000, 1000, 16));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    assert_eq!(workers.all.spec, WorkerSpec::of(processors));
    assert_eq!((workers.all.heartbeat, workers.all.ready), (10 * SECOND, 10 * SECOND));
    let limits = ResourceLimits {
        memory: Some(512 << 20),
        memory_warning: 512 << 20,
        cpu: None,
        pids: Some(64),
        open_files: Some(256),
        nice: None,
    };
    assert_eq!((workers.all.limits, workers.all.sandbox), (limits, Sandbox::Auto));
    assert!(workers.stock.is_empty() && workers.own.is_empty() && projects.is_empty());
    assert_eq!(config("[projects.p]").projects["p"], Project::default());
}

const EVERYTHING: &str = r#"
[tasks]
journal = "memory"
queued = 1000
project_queued = 900
project_running = 4
projects = 5
ageing = "0s"
timeout = "1m"
timeout_max = "2m"
attempts = 7
backoff = { min = "0s", max = "2s", jitter = 0 }
payload_max = "2MiB"
result_inline = "0B"
result_max = "3MiB"
keep = "1h"
keep_size = "4MiB"
batch = 800
logs = 9
calls = 10

[workers]
min = 0
max = 3
up = 0.9
down = 0.1
interval = "1s"
max_tasks = 0
max_age = "1h"
max_rss = "100MiB"
jitter = 0.3
idle = "4s"
heartbeat = "5s"
ready = "6s"
memory = "1GiB"
cpu = 1.5
pids = 7
open_files = 64
nice = -3
sandbox = "off"

[workers.resize]
command = "./bin/resize"
args = ["${env:TOKEN}", "{port.x}"]
env = { A = "${userHome}" }
inherit_env = ["PATH"]
cwd = "/"
types = ["resize", "thumb", "resize"]
network = true
min = 2
memory = "2GiB"

[workers.python]
command = "venv/bin/python"
env = { PYTHONPATH = "/lib" }
inherit_env = ["LANG"]
max = 1

[projects."/home/ann"]
running = 0
queued = 11
weight = 2
network = true
private = true
folders = ["/usr", "../usr/./lib", "/usr"]
memory = "1GiB"
timeout_max = "3m"
"#;

#[test]
fn every_key_is_read() {
    let config = config(EVERYTHING);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let tasks = Tasks {
        journal: JournalMode::Memory,
        queue: QueueSpec {
            ageing: Duration::ZERO,
            queued: 1000,
            project_running: 4,
            project_queued: 900,
            projects: 5,
        },
        retry: RetrySpec { attempts: 7, min: Duration::ZERO, max: 2 * SECOND, jitter: 0.0 },
        timeout: 60 * SECOND,
        timeout_max: 120 * SECOND,
        payload_max: 2 << 20,
        result_inline: 0,
        result_max: 3 << 20,
        keep: 3600 * SECOND,
        keep_size: 4 << 20,
        batch: 800,
        logs: 9,
        calls: 10,
    };
    assert_eq!(config.tasks, tasks);
    check_workers(&config.workers);
    let project = Project {
        limits: ProjectLimits { running: Some(0), queued: Some(11), weight: 2 },
        network: true,
        private: true,
        folders: vec![PathBuf::from("/usr"), PathBuf::from("/etc/../usr/lib")],
        memory: Some(1 << 30),
        timeout_max: Some(180 * SECOND),
    };
    assert_eq!(config.projects, BTreeMap::from([("/home/ann".to_owned(), project)]));
}

fn check_workers(workers: &Workers) {
    let all = &workers.all;
    let spec = WorkerSpec {
        scale: ScaleSpec { min: 0, max: 3, up: 0.9, down: 0.1, interval: SECOND },
        max_tasks: None,
        max_age: Some(3600 * SECOND),
        max_rss: Some(100 << 20),
        jitter: 0.3,
        idle: 4 * SECOND,
    };
    assert_eq!((&all.spec, all.heartbeat, all.ready), (&spec, 5 * SECOND, 6 * SECOND));
    assert_eq!((all.limits.memory, all.limits.cpu), (Some(1 << 30), Some(1.5)));
    assert_eq!((all.limits.pids, all.limits.open_files, all.limits.nice), (Some(7), Some(64), Some(-3)));
    assert_eq!(all.sandbox, Sandbox::Off);
    // A lane has what it says, and the rest of all.
    let resize = &workers.own["resize"];
    assert_eq!((resize.settings.spec.scale.min, resize.settings.spec.scale.max), (2, 3));
    assert_eq!((resize.settings.limits.memory, resize.settings.limits.pids), (Some(2 << 30), Some(7)));
    let launch = &resize.launch;
    assert_eq!((launch.command.as_str(), launch.cwd.as_deref()), ("/bin/resize", Some(Path::new("/"))));
    assert_eq!(
        (&launch.args[..], &launch.env["A"]),
        (&["s3cret".into(), "{port.x}".into()][..], &"/home/ann".into())
    );
    assert_eq!((&launch.inherit_env[..], resize.network), (&["PATH".to_owned()][..], true));
    assert_eq!(resize.types, ["resize", "thumb"]);
    assert_eq!((workers.lane_of("thumb"), workers.lane_of("shell-command")), (Some("resize"), None));
    let python = &workers.stock["python"];
    assert_eq!((python.settings.spec.scale.max, python.settings.ready), (1, 6 * SECOND));
    assert_eq!(python.command.as_deref(), Some("/etc/venv/bin/python"));
    assert_eq!(
        (python.env["PYTHONPATH"].as_str(), &python.inherit_env[..]),
        ("/lib", &["LANG".to_owned()][..])
    );
    assert_eq!(workers.settings("python"), Some(&python.settings));
    assert_eq!(workers.settings("resize"), Some(&resize.settings));
    assert_eq!((workers.settings("code"), workers.settings("call")), (Some(all), None));
}

#[test]
fn a_kind_of_workers_is_its_own_type_of_tasks_unless_it_says_others() {
    let config = config("[workers.resize]\ncommand = 'r'");
    assert_eq!(config.workers.own["resize"].types, ["resize"]);
    assert_eq!(config.workers.own["resize"].settings, config.workers.all);
}

/// What is not said gives way to what is.
#[test]
fn defaults_fit_what_is_said() {
    let tasks = |text: &str| config(&format!("[tasks]\n{text}")).tasks;
    let small = tasks("queued = 9\nresult_max = '1KiB'\ntimeout_max = '1s'");
    assert_eq!((small.queue.project_queued, small.batch), (4, 9));
    assert_eq!((small.result_inline, small.timeout), (1024, SECOND));
    assert_eq!(tasks("queued = 1").queue.project_queued, 1);
    assert_eq!(tasks("queued = 10_000_000").queue.project_queued, 50_000);
    let workers = config("[workers]\nmin = 1000").workers;
    assert_eq!(workers.all.spec.scale.max, 1000);
    assert_eq!(tasks(&format!("result_max = '{TASK_BYTES_MAX}B'")).result_max as u64, TASK_BYTES_MAX);
}

#[test]
fn tasks_that_cannot_be() {
    insta::assert_snapshot!(refused(
        r#"[tasks]
journal = "disk"
queued = 100
project_queued = 101
batch = 200
timeout = "2h"
timeout_max = "1h"
backoff = { min = "2s", max = "1s" }
payload_max = "16MiB"
result_inline = "2MiB"
result_max = "1.5MiB"
keep_size = "1MiB"
attempts = 0
running = 5
"#
    ));
}

#[test]
fn workers_that_cannot_be() {
    insta::assert_snapshot!(refused(
        r#"[workers]
min = 4
max = 3
down = 0.9
heartbeat = "1s"
command = "x"
idel = "1s"
[workers.ready]
command = "x"
[workers.resize]
max_rss = "512MiB"
[workers.pyton]
max = 9
[workers.call]
max = 1
[workers.shell]
command = "sh"
types = ["sh"]
network = true
[workers.node]
command = ""
args = ["x"]
[workers."a b"]
command = "x"
[workers.a]
command = "a ${env:NO_SUCH}"
types = ["execute-code", "x y"]
[workers.b]
command = "b"
types = []
[workers.c]
command = "c"
types = ["d"]
[workers.d]
command = "d"
timout = "1s"
"#
    ));
}

#[test]
fn projects_that_cannot_be() {
    let none = refused("workers = 1\nprojects = 'x'");
    let wrong = refused(
        r#"[tasks]
queued = 10
projects = 2
[projects.a]
running = -1
weight = 0
folders = ["/", "", "${env:NO_SUCH}", "/usr/.."]
[projects."b c"]
[projects.d]
memory = "64KiB"
max = 1
[projects.e]
queued = 11
[projects.f]
[projects]
g = 1
"#,
    );
    insta::assert_snapshot!(format!("{none}\n\n{wrong}"));
}

#[test]
fn what_is_doubtful_of_a_project_is_warned_of() {
    let text = "[workers.node]\nmemory = '1GiB'\n[projects.a]\nmemory = '2GiB'\nfolders = ['no/such']";
    let config = config(text);
    assert_eq!(
        warnings(&config),
        ["no worker has so much memory for a task of `a`", "the folder `/etc/no/such` does not exist"]
    );
    assert_eq!(config.warnings[0].help.as_deref(), Some("the most is 1GiB: raise `memory` in [workers]"));
    assert!(
        warnings(&self::config("[workers.node]\nmemory = '2GiB'\n[projects.a]\nmemory = '2GiB'")).is_empty()
    );
}

#[test]
fn variables_override_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ostler.toml");
    std::fs::write(&path, "[workers.re-size]\ncommand = 'r'\n[projects.a]\nrunning = 1\n").unwrap();
    let check = |variables: &[(&str, &str)]| {
        let set: BTreeMap<_, _> = variables.iter().copied().collect();
        let names: Vec<_> = set.keys().map(|name| (*name).to_owned()).collect();
        load_with(std::slice::from_ref(&path), &|name| set.get(name).map(|v| (*v).to_owned()), &names)
    };
    let config = check(&[
        ("OSTLER_TASKS__JOURNAL", "memory"),
        ("OSTLER_TASKS__BACKOFF__MAX", "9s"),
        ("OSTLER_WORKERS__MAX", "7"),
        ("OSTLER_WORKERS__RE_SIZE__MAX", "8"),
        ("OSTLER_WORKERS__RE_SIZE__TYPES", "a, b"),
        ("OSTLER_WORKERS__NODE__COMMAND", "/opt/node"),
        ("OSTLER_PROJECTS__A__RUNNING", "6"),
    ])
    .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((config.tasks.journal, config.tasks.retry.max), (JournalMode::Memory, 9 * SECOND));
    let workers = &config.workers;
    let max = |lane: &str| workers.settings(lane).map(|settings| settings.spec.scale.max);
    assert_eq!((max("code"), max("re-size"), max("node")), (Some(7), Some(8), Some(7)));
    assert_eq!(workers.own["re-size"].types, ["a", "b"]);
    // Ostler's own are there without a table in a file, and are not touched without a variable.
    assert_eq!(workers.stock["node"].command.as_deref(), Some("/opt/node"));
    assert_eq!(workers.stock.len(), 1);
    assert_eq!(config.projects["a"].limits.running, Some(6));
    let wrong = check(&[
        ("OSTLER_PROJECTS__B__RUNNING", "6"),
        ("OSTLER_WORKERS__SHELL__TYPES", "x"),
        ("OSTLER_WORKERS__PYTHON__MAX", "many"),
    ]);
    let messages: Vec<_> = wrong.unwrap_err().errors.into_iter().map(|e| e.message).collect();
    assert_eq!(
        messages,
        [
            "`OSTLER_PROJECTS__B__RUNNING` names no key of the configuration",
            "`max` cannot be a text",
            "`types` cannot be said of `shell`, which is part of Ostler",
        ]
    );
}

#[test]
fn several_files_may_say_the_same_of_workers_and_projects() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let one = write(
        "one.toml",
        "[workers]\nmax = 2\n[workers.w]\ncommand = 'w'\n[workers.node]\nmax = 1\n[projects.p]\nweight = 2\n",
    );
    let same = write(
        "same.toml",
        "[workers.w]\ncommand = 'w'\nmax = 2\n[workers.node]\nmax = 1\n[projects.p]\nweight = 2\nprivate = false\n",
    );
    let config = load(&[one.clone(), same], &env).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((config.workers.own.len(), config.workers.stock.len(), config.projects.len()), (1, 1, 1));
    let other = write(
        "other.toml",
        "[workers]\nmax = 3\n[workers.w]\ncommand = 'x'\n[workers.node]\nmax = 2\n[projects.p]\nweight = 3\n",
    );
    let errors = load(&[one, other], &env).unwrap_err().errors;
    let messages: Vec<_> = errors.iter().map(|e| (e.message.as_str(), e.line)).collect();
    assert_eq!(
        messages,
        [
            ("`workers.max` has two values", 2),
            ("workers `w` is given twice, and differently", 3),
            ("workers `node` is given twice, and differently", 5),
            ("project `p` is given twice, and differently", 7),
        ]
    );
}

const BASE: &str = r#"
[tasks]
keep = "1d"
[workers]
max = 3
[workers.w]
command = "w"
env = { TOKEN = "old-secret" }
[workers.node]
max = 2
[workers.gone]
command = "g"
[projects.p]
running = 1
"#;

const NEXT: &str = r#"
[tasks]
keep = "2d"
queued = 5000000
[workers]
max = 3
memory = "1GiB"
[workers.w]
command = "w"
env = { TOKEN = "new-secret" }
[workers.node]
max = 4
memory = "512MiB"
[workers.comes]
command = "c"
[projects.q]
network = true
"#;

#[test]
fn a_reload_is_told_once_for_each_key_and_for_each_lane() {
    let (old, new) = (config(BASE), config(NEXT));
    let found = diff(&old, &new);
    insta::assert_snapshot!(found);
    let lanes: Vec<_> =
        found.lanes.iter().map(|(lane, change)| (lane.as_str(), change.to_string())).collect();
    insta::assert_debug_snapshot!(lanes);
    let replaced = found.lanes.iter().filter(|(_, change)| change.replaces());
    assert_eq!(
        replaced.map(|(lane, _)| lane.as_str()).collect::<Vec<_>>(),
        ["code", "shell", "http", "python", "w"]
    );
    let now = in_force(&old, new.clone());
    assert_eq!((now.tasks.keep, now.tasks.queue.queued), (86_400 * SECOND, 5_000_000));
    let same = diff(&old, &old);
    assert!(same.is_empty() && same.lanes.iter().all(|(_, change)| *change == ServerChange::Unchanged));
}

/// The keys of a worker by how a change of them takes effect; every other of `[workers]` and `[tasks]` is live.
#[test]
fn what_a_worker_and_the_journal_are_started_with_is_not_live() {
    let found = diff(&config("[workers.resize]\ncommand = 'x'"), &config(EVERYTHING)).daemon;
    let by = |apply: Apply, table: &str| -> Vec<String> {
        let keys = found.iter().filter(|key| key.apply == apply);
        keys.filter_map(|key| key.key.strip_prefix(table)).map(str::to_owned).collect()
    };
    assert_eq!(
        by(Apply::Replace, "workers."),
        [
            "memory",
            "cpu",
            "pids",
            "open_files",
            "nice",
            "sandbox",
            "python.command",
            "python.env.PYTHONPATH",
            "python.inherit_env",
            "resize.command",
            "resize.args",
            "resize.env.A",
            "resize.inherit_env",
            "resize.cwd",
            "resize.types",
            "resize.network",
            "resize.memory",
        ]
    );
    assert_eq!(
        by(Apply::DaemonRestart, "tasks."),
        ["journal", "payload_max", "result_inline", "result_max", "keep", "keep_size"]
    );
    assert_eq!((by(Apply::Live, "tasks.").len(), by(Apply::Live, "projects./home/ann.").len()), (14, 8));
}

/// What is Ostler's own keeps its names.
#[test]
fn no_custom_type_takes_the_name_of_one_that_is_ostlers() {
    for kind in STOCK_TYPES {
        let text = format!("[workers.mine]\ncommand = 'x'\ntypes = ['{kind}']");
        assert!(toml(&text).is_err(), "{kind}");
        assert!(toml(&format!("[workers.{kind}]\ncommand = 'x'")).is_err(), "{kind}");
    }
    for lane in Lane::STOCK {
        let built = config(&format!("[workers.{lane}]\nmax = 1")).workers;
        assert_eq!(built.settings(lane).map(|settings| settings.spec.scale.max), Some(1), "{lane}");
        assert!(built.own.is_empty());
        assert!(toml(&format!("[workers.{lane}]\ntypes = ['mine']")).is_err(), "{lane}");
    }
}
