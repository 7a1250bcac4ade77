//! The end at each state of an instance's life, not only when it is ready.

use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::client::{Opening, Pending};
use super::world::{PROMISE, Scope, World};
use super::zoo::{Manners, Species};
use crate::support::wait_until;

/// One server for each state; each is brought there and stays there until it is killed.
const LIVES: [Species; 9] = [
    Species::new("handshake", &["never-answer", "ignore-term", "double-fork"], 2, Manners::Silent),
    Species::new("ready", &["double-fork", "ignore-eof", "ignore-term"], 2, Manners::Answers),
    Species::new("in-a-call", &["double-fork", "ignore-eof"], 2, Manners::Answers),
    Species::new("backoff", &["exit-early", "double-fork"], 0, Manners::Dies),
    Species::new("broken", &["exit-early", "double-fork"], 0, Manners::Dies),
    Species::new("drain", &["double-fork", "ignore-eof"], 2, Manners::Answers),
    Species::new("close-stdin", &["double-fork", "ignore-eof"], 2, Manners::Answers),
    Species::new("terminate", &["double-fork", "ignore-eof", "ignore-term"], 2, Manners::Answers),
    Species::new("degraded", &["late", "close-stdio", "clean-env-fork", "ignore-term"], 2, Manners::Falls),
];

/// What keeps each in its state for long enough.
fn keys(species: &Species) -> &'static str {
    match species.name {
        "backoff" => {
            "restart = { policy = \"always\", max = 1000, backoff = { min = \"1m\", max = \"1m\" } }"
        }
        "broken" => {
            // A client that will not be served in time is told so, and its instance goes: so wait for long.
            "timeouts = { handshake = \"1h\" }\nrestart = { policy = \"always\", max = 1, backoff = { min = \"10ms\", max = \"1m\", jitter = 0.0 } }"
        }
        "drain" => "stop = { drain = \"1m\", grace = \"1m\" }",
        // SIGTERM comes after a fifth.
        "close-stdin" => "stop = { grace = \"5m\" }",
        "terminate" => "stop = { grace = \"20s\" }",
        _ => "restart = { policy = \"never\" }",
    }
}

/// The world with every instance in its own state.
struct Lives {
    world: World,
    /// Calls that are not answered.
    calls: Vec<Pending>,
    /// `ostler stop` that wait.
    stops: Vec<Child>,
}

impl Lives {
    fn begin(scope: Scope) -> Self {
        let mut lives =
            Self { world: World::new(scope, &LIVES, "", keys), calls: Vec::new(), stops: Vec::new() };
        let address = lives.world.daemon.address();
        for species in &LIVES[..LIVES.len() - 1] {
            let opening = Opening::begin(&address, species.name);
            if species.manners != Manners::Answers {
                lives.world.waiting.push(opening);
                continue;
            }
            let client = opening.finish();
            if matches!(species.name, "in-a-call" | "drain") {
                lives.calls.push(client.call("hang", "for ever"));
            }
            lives.world.clients.push(client);
        }
        lives.bring_up("handshake");
        lives.bring_up("ready");
        for name in ["in-a-call", "drain"] {
            lives.world.daemon.wait_row(name, "the call runs", |row| row["calls"] == 1);
        }
        for name in ["drain", "close-stdin", "terminate"] {
            lives.bring_up(name);
            let mut stop = lives.world.daemon.ostler();
            stop.args(["stop", name]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            lives.stops.push(stop.spawn().expect("ostler runs"));
        }
        lives.wait_state("handshake", "starting");
        lives.wait_state("ready", "ready");
        lives.wait_state("backoff", "backoff");
        lives.wait_state("broken", "broken");
        lives.wait_step("drain", "waiting for running calls");
        lives.wait_step("close-stdin", "standard input closed");
        lives.wait_step("terminate", "SIGTERM");
        // The last: it is killed after a second.
        let degraded = Opening::begin(&address, "degraded");
        lives.wait_state("degraded", "degraded");
        lives.world.waiting.push(degraded);
        lives
    }

    fn bring_up(&self, name: &str) {
        let (species, mark) =
            self.world.servers.iter().find(|(species, _)| species.name == name).expect("one of them");
        let seen = mark.wait_for(crate::support::PATIENCE, |seen| species.at_its_worst(seen));
        seen.unwrap_or_else(|seen| panic!("`{name}` never got to its worst: {seen:#?}"));
    }

    fn wait_state(&self, name: &str, state: &str) {
        self.world.daemon.wait_row(name, &format!("`{name}` is {state}"), |row| row["state"] == state);
    }

    fn wait_step(&self, name: &str, step: &str) {
        let instance = format!("{name}.1");
        wait_until(&format!("`{name}` is stopping: {step}"), || {
            self.world.daemon.events().iter().any(|event| {
                event["subject"] == instance.as_str()
                    && event["kind"] == "stop-step"
                    && event["message"].as_str().is_some_and(|text| text.contains(step))
            })
        });
    }
}

impl Drop for Lives {
    fn drop(&mut self) {
        // Without their daemon they end by themselves; this is for a test that failed before it was killed.
        for stop in &mut self.stops {
            let _ = stop.kill();
            let _ = stop.wait();
        }
    }
}

fn daemon_killed(scope: Scope) {
    let mut lives = Lives::begin(scope);
    lives.world.daemon.signal(Signal::KILL);
    lives.world.assert_empties(PROMISE, "after SIGKILL of the daemon");
    lives.world.daemon.wait();
}

/// The guards only: what runs now is gone in time, and what was being stopped is stopped.
fn guards_killed(scope: Scope) {
    let mut lives = Lives::begin(scope);
    assert!(lives.world.kill_guards() >= 6, "those that wait for their next try have none");
    lives.world.assert_empties(PROMISE, "after SIGKILL of every guard");
    for stop in &mut lives.stops {
        let mut status = None;
        wait_until("`ostler stop` returns", || {
            status = stop.try_wait().expect("ours");
            status.is_some()
        });
        assert!(status.expect("it ended").success());
    }
}

fn both_killed(scope: Scope) {
    let mut lives = Lives::begin(scope);
    lives.world.kill_both();
    assert!(!lives.world.living().is_empty(), "nothing is left, so this tests nothing");
    lives.world.daemon.start_again(&[]);
    lives.world.assert_nothing_lives("the next daemon has started");
    lives.world.assert_empties(Duration::ZERO, "after the next start");
}

#[test]
fn daemon_killed_in_every_state_shared() {
    daemon_killed(Scope::Shared);
}

#[test]
fn daemon_killed_in_every_state_session() {
    daemon_killed(Scope::Session);
}

#[test]
fn guards_killed_in_every_state_shared() {
    guards_killed(Scope::Shared);
}

#[test]
fn guards_killed_in_every_state_session() {
    guards_killed(Scope::Session);
}

#[test]
fn both_killed_in_every_state_shared() {
    both_killed(Scope::Shared);
}

#[test]
fn both_killed_in_every_state_session() {
    both_killed(Scope::Session);
}

/// A client in the middle of a call that vanishes: its session lasts as long as the call may, and not longer.
fn client_vanishes_in_a_call(scope: Scope) {
    const SERVER: [Species; 1] =
        [Species::new("hangs", &["ignore-eof", "double-fork", "clean-env-fork"], 3, Manners::Answers)];
    let keys = |_: &Species| "idle = \"1s\"\ntimeouts = { call_idle = \"1s\" }\nstop = { grace = \"1s\", drain = \"1s\" }";
    let mut world = World::new(scope, &SERVER, "[sessions]\nidle = \"5s\"\n", keys);
    world.populate(scope);
    let call = world.clients[0].call("hang", "for ever");
    world.daemon.wait_row("hangs", "the call runs", |row| row["calls"] == 1);
    drop(call);
    world.clients_vanish();
    // Five seconds for the session, one each for the call, the instance and its ladder, and some for the machine.
    world.assert_empties(Duration::from_secs(20), "after the client vanished in a call");
}

#[test]
fn client_vanishes_in_a_call_shared() {
    client_vanishes_in_a_call(Scope::Shared);
}

#[test]
fn client_vanishes_in_a_call_session() {
    client_vanishes_in_a_call(Scope::Session);
}

/// A server that reads nothing, and so much waiting for it that nothing more can be told to its connection: its
/// session ends like any other, and holds up nobody else's end.
#[test]
fn client_vanishes_from_a_server_that_reads_nothing() {
    const SERVERS: [Species; 2] = [
        Species::new("deaf", &["sigstop", "double-fork"], 2, Manners::Falls),
        Species::new("bystander", &["double-fork", "ignore-eof"], 2, Manners::Answers),
    ];
    /// More than a pipe and the bytes that may wait for it (64 KiB and 256 KiB).
    const LARGE: [usize; 4] = [128 * 1024; 4];
    /// More than may wait for a connection's task (1024).
    const MANY: usize = 1500;
    let keys = |_: &Species| "stop = { grace = \"1s\", drain = \"1s\" }";
    let mut world = World::new(Scope::Session, &SERVERS, "[sessions]\nidle = \"5s\"\n", keys);
    world.populate(Scope::Session);
    let mut told: Vec<_> = LARGE.iter().map(|&bytes| world.clients[0].tell(bytes)).collect();
    for _ in 0..MANY {
        told.push(world.clients[0].tell(0));
        // Few connections at a time; a message that was taken stays when its client goes.
        if told.len() > 64 {
            told.remove(0);
        }
    }
    drop(told);
    world.clients_vanish();
    world.assert_empties(Duration::from_secs(20), "after the clients of a deaf server and another vanished");
}
