//! Servers that take all they can get, beside a quiet one: each is limited or killed, and named; the quiet one answers
//! every call. How fast it does is a benchmark's business (`bench/run.py hogs`).

use serde_json::{Value, json};

use crate::client::{Http, Session, text};
use crate::support::{Daemon, PATIENCE, wait_until};

/// The hogs, with the limit that each runs into and the words by which it is named: by what the kernel holds it
/// with, or, where there is nothing of the kind, by the daemon's measuring.
const HOGS: [(&str, &str, &str, [&str; 2]); 4] = [
    (
        "memory",
        "hog-memory\", \"2000",
        "memory = \"64MiB\"",
        ["killed for memory: limit 64 MiB", "over its memory limit: "],
    ),
    ("forks", "fork-bomb\", \"3000", "pids = 40", ["kept from starting processes ", " of 40; "]),
    ("cpu", "hog-cpu", "cpu = 0.25", ["held back by its cpu limit of 0.25 cores in ", " of 0.25 cores for "]),
    ("files", "hog-files", "open_files = 64", ["out of open files: limit 64 a process, 64 open", "\0"]),
];

fn config() -> String {
    let (fake, evil) = (ostler_testkit::fake::path(), ostler_testkit::evil::path());
    let mut config = format!(
        "[metrics]\ninterval = \"200ms\"\n[servers.quiet]\ncommand = \"{}\"\nargs = [\"legacy\"]\nscope = \"shared\"\n",
        fake.display()
    );
    for (name, words, limits, _) in HOGS {
        config += &format!(
            "[servers.{name}]\ncommand = \"{}\"\nargs = [\"late\", \"legacy\", \"{words}\"]\nscope = \"shared\"\n\
             stop = {{ grace = \"200ms\" }}\nlimits = {{ {limits} }}\n",
            evil.display()
        );
    }
    config
}

/// The event that names this hog, once there is one.
fn named<'a>(events: &'a [Value], name: &str, words: &[&str]) -> Option<&'a str> {
    let is_it = |event: &&Value| event["kind"] == "limit-hit" && event["subject"] == format!("{name}.1");
    let mut messages = events.iter().filter(is_it).filter_map(|event| event["message"].as_str());
    messages.find(|message| words.iter().any(|words| message.contains(words)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_hog_is_named_and_its_quiet_neighbour_answers_every_call() {
    let daemon = Daemon::start(&config(), &[]);
    let session = Session::open(&Http::new(daemon.address()), "quiet").await;
    let began = std::time::Instant::now();
    let mut calls = 0_u64;
    loop {
        for _ in 0..20 {
            calls += 1;
            let said = format!("call {calls}");
            let answer = session.call(calls, "echo", &json!({ "text": said })).await;
            assert_eq!(text(&answer), said, "{answer}");
        }
        let events = daemon.events();
        let unnamed: Vec<&str> = HOGS
            .iter()
            .filter(|(name, _, _, words)| named(&events, name, words).is_none())
            .map(|(name, ..)| *name)
            .collect();
        if unnamed.is_empty() {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "not named in {PATIENCE:?}: {unnamed:?}: {events:#?}");
    }
    let quiet = daemon.wait_row("quiet", "it is there", |_| true);
    assert_eq!(
        (&quiet["state"], &quiet["restarts"], &quiet["generation"]),
        (&json!("ready"), &json!(0), &json!(1))
    );
    let forks = daemon.wait_row("forks", "it is measured", |row| row["threads"].as_u64() > Some(0));
    assert!(forks["threads"].as_u64() <= Some(40), "{forks}");
}

/// Starts its arguments where no cgroup is to be seen: as root, or as root of a user namespace.
const WITHOUT_CGROUPS: [&[&str]; 2] = [
    &["unshare", "--mount", "sh", "-c", HIDE, "sh"],
    &["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", HIDE, "sh"],
];

const HIDE: &str = "mount -t tmpfs none /sys/fs/cgroup && exec \"$@\"";

#[test]
fn what_nothing_in_the_kernel_holds_is_measured_and_killed() {
    let works = |below: &&&'static [&'static str]| {
        let tried = std::process::Command::new(below[0]).args(&below[1..]).arg("true").output();
        tried.is_ok_and(|output| output.status.success())
    };
    let Some(below) = WITHOUT_CGROUPS.iter().find(works) else {
        return eprintln!("SKIPPED: `unshare --mount` is not permitted here, not even with a user namespace");
    };
    let hogs = [
        ("memory", "hog-memory\", \"150", "memory = \"64MiB\""),
        ("forks", "fork-bomb\", \"200", "pids = 40"),
    ];
    let mut config = "[metrics]\ninterval = \"200ms\"\n".to_owned();
    for (name, words, limits) in hogs {
        config += &format!(
            "[servers.{name}]\ncommand = \"{}\"\nargs = [\"late\", \"legacy\", \"{words}\"]\nscope = \"shared\"\n\
             limits = {{ {limits} }}\n",
            ostler_testkit::evil::path().display()
        );
    }
    let daemon = Daemon::start_below(below, &config);
    let status = daemon.cli(&["status", "memory.1"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("sampled"), "{status:?}");
    for (name, words) in [("memory", "over its memory limit: "), ("forks", " of 40; ")] {
        let mut message = None;
        wait_until(&format!("`{name}` is over its limit"), || {
            message = named(&daemon.events(), name, &[words]).map(str::to_owned);
            message.is_some()
        });
        assert!(
            message.as_deref().is_some_and(|message| message.ends_with(", so it is killed")),
            "{message:?}"
        );
        // The guard says that nothing is left of its tree, and it is a failure like any other.
        let row = daemon.wait_row(name, "it is tried again", |row| row["generation"].as_u64() > Some(1));
        assert!(row["restarts"].as_u64() > Some(0), "{row}");
    }
}
