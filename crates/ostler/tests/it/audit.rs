//! `ostler doctor` and a daemon: whether its account is true, and what a killed one has left.

use rustix::process::{Pid, Signal, kill_process};

use crate::cli::{done, err, json_of, out};
use crate::support::{Daemon, wait_until};

const TREE: &str = "[servers.tree]\ncommand = \"sh\"\nargs = [\"-c\", \"sleep 1000 & sleep 1001\"]\n\
     transport = \"none\"\nscope = \"shared\"\n";

/// The pids below this one, from the kernel.
fn below(pid: u32) -> Vec<u32> {
    let scan = ostler_os::tree::Scan::take().expect("/proc");
    let mut found = Vec::new();
    scan.descendants(pid.cast_signed(), &mut found);
    found
        .into_iter()
        .filter(|process| !process.is_zombie())
        .map(|process| process.pid.unsigned_abs())
        .collect()
}

fn lives(pid: &u32) -> bool {
    ostler_os::tree::read(pid.cast_signed()).expect("/proc").is_some_and(|process| !process.is_zombie())
}

fn state(pid: u32) -> u8 {
    ostler_os::tree::read(pid.cast_signed()).expect("/proc").expect("it is there").state
}

fn leader(daemon: &Daemon) -> u32 {
    let row = daemon.wait_row("tree", "it runs with both its children", |row| {
        row["processes"] == 3 && row["pid"].is_u64()
    });
    row["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("a pid")
}

#[test]
fn a_process_is_known_by_its_pid_and_all_agrees_with_the_kernel() {
    let daemon = Daemon::start(TREE, &[]);
    let leader = leader(&daemon);
    let child = below(leader)[0];
    let sheet = done(&daemon, &["status", &child.to_string()]);
    assert!(sheet.contains("tree.1"), "{sheet}");
    let stranger = daemon.cli(&["status", &std::process::id().to_string()]);
    assert_eq!(stranger.status.code(), Some(1), "{}", out(&stranger));
    let doctor = json_of(&daemon, &["doctor", "--json"]);
    assert_eq!(doctor["daemon"], serde_json::json!({ "instances": 1, "ports": 0, "findings": [] }));
    assert!(
        done(&daemon, &["doctor"]).contains("its account of 1 instances and 0 ports agrees"),
        "in words, too"
    );
}

#[test]
fn what_a_daemon_left_that_was_killed_with_its_guards_is_reaped_without_a_daemon() {
    let mut daemon = Daemon::start(TREE, &[]);
    let leader = leader(&daemon);
    let guard = ostler_os::tree::read(leader.cast_signed()).expect("/proc").expect("it runs").ppid;
    // The kernel ends the leader with its guard, and nobody else.
    let left = below(leader);
    // Stopped, it cannot clean up after the guard, nor can the forge when it is gone; killed, it never will.
    daemon.signal(Signal::STOP);
    wait_until("all of it stands still", || state(daemon.pid()) == b'T');
    let scan = ostler_os::tree::Scan::take().expect("/proc");
    let helpers: Vec<i32> = scan.children(daemon.pid().cast_signed()).map(|child| child.pid).collect();
    assert!(helpers.len() == 2 && helpers.contains(&guard), "the guard and the forge: {helpers:?}");
    for &helper in &helpers {
        kill_process(Pid::from_raw(helper).expect("a pid"), Signal::KILL).expect("it lived");
    }
    wait_until("they are gone", || !helpers.iter().any(|&pid| lives(&pid.unsigned_abs())));
    daemon.signal(Signal::KILL);
    daemon.wait();
    assert!(left.iter().all(lives), "nobody was there to end them");

    let doctor = daemon.cli(&["doctor", "--reap"]);
    assert_eq!(doctor.status.code(), Some(0), "{}{}", out(&doctor), err(&doctor));
    assert!(
        out(&doctor).contains(&format!("reaped     {} processes ended, 0 could", left.len())),
        "{left:?}: {}",
        out(&doctor)
    );
    assert!(!left.iter().any(lives), "{left:?}");
    let again = daemon.cli(&["doctor", "--reap"]);
    assert!(out(&again).contains("reaped     nothing was left"), "{}", out(&again));
}
