//! SIGKILL at each state of an instance's life, and at random moments.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::client::{Opening, Pending};
use super::world::{PROMISE, Scope, World};
use super::zoo::{Manners, Species};
use crate::support::wait_until;

/// Names the seed of the random moments, to run a failed test again.
const SEED_VARIABLE: &str = "OSTLER_TEST_SEED";

/// How often a daemon is killed at a random moment, in each way.
const ROUNDS: u64 = 8;

/// The latest random moment. A start and a handshake take some ten milliseconds, so most of these hit them.
const LATEST: Duration = Duration::from_millis(250);

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
        "backoff" => "restart = { policy = \"always\", max = 1000, backoff = { min = \"1m\", max = \"1m\" } }",
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
        let mut lives = Self { world: World::new(scope, &LIVES, "", keys), calls: Vec::new(), stops: Vec::new() };
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
        let (species, mark) = self.world.servers.iter().find(|(species, _)| species.name == name).expect("one of them");
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

/// Servers that get somewhere else every time.
const RESTLESS: [Species; 5] = [
    Species::new("wraps", &["npx-like", "double-fork", "ignore-term", "ignore-eof"], 0, Manners::Answers),
    Species::new("forks", &["fork-many", "6", "double-fork"], 0, Manners::Answers),
    Species::new("hides", &["clean-env-fork", "ignore-eof"], 0, Manners::Answers),
    Species::new("dies", &["exit-early", "double-fork", "clean-env-fork"], 0, Manners::Dies),
    Species::new("waits", &["never-answer", "ignore-term", "double-fork"], 0, Manners::Silent),
];

fn restless_keys(_: &Species) -> &'static str {
    "stop = { grace = \"100ms\", drain = \"50ms\" }\nrestart = { policy = \"always\", max = 1000, \
     backoff = { min = \"5ms\", max = \"20ms\" } }"
}

/// The same daemon again and again: clients come, a server is stopped, some clients vanish, and at some moment in
/// all this the end comes.
fn at_random_moments(context: &str, end: impl Fn(&mut World)) {
    let mut random = Random::seeded(context);
    let mut world = World::new(Scope::Session, &RESTLESS, "", restless_keys);
    for round in 0..ROUNDS {
        let address = world.daemon.address();
        for (species, _) in &world.servers {
            for _ in 0..=random.below(2) {
                world.waiting.push(Opening::begin(&address, species.name));
            }
        }
        let mut stop = (random.below(2) == 0).then(|| {
            let mut stop = world.daemon.ostler();
            stop.args(["stop", "wraps"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            stop.spawn().expect("ostler runs")
        });
        if random.below(3) == 0 {
            world.waiting.truncate(2);
        }
        // A random moment, not a wait for something.
        let moment = LATEST.mul_f64(random.below(1000) as f64 / 1000.0);
        std::thread::park_timeout(moment);
        end(&mut world);
        world.assert_empties(PROMISE, &format!("{context}, round {round}, {moment:?} ({})", random.name()));
        world.clients_vanish();
        if let Some(stop) = &mut stop {
            stop.wait().expect("without a daemon it ends");
        }
    }
}

#[test]
fn daemon_killed_at_random_moments() {
    at_random_moments("SIGKILL of the daemon", |world| {
        world.daemon.signal(Signal::KILL);
        world.assert_empties(PROMISE, "after SIGKILL of the daemon");
        world.daemon.wait();
        world.daemon.start_again(&[]);
    });
}

#[test]
fn both_killed_at_random_moments() {
    at_random_moments("SIGKILL of daemon and guards", |world| {
        world.kill_both();
        world.daemon.start_again(&[]);
        world.assert_nothing_lives("the next daemon has started");
    });
}

#[test]
fn daemon_terminated_at_random_moments() {
    at_random_moments("SIGTERM of the daemon", |world| {
        world.daemon.signal(Signal::TERM);
        let status = world.daemon.wait();
        world.assert_nothing_lives("the daemon has ended");
        assert!(status.success(), "{status}: {}", world.daemon.stderr());
        world.daemon.start_again(&[]);
    });
}

/// A client in the middle of a call that vanishes: its session lasts as long as the call may, and not longer.
fn client_vanishes_in_a_call(scope: Scope) {
    const SERVER: [Species; 1] =
        [Species::new("hangs", &["ignore-eof", "double-fork", "clean-env-fork"], 3, Manners::Answers)];
    let keys = |_: &Species| {
        "idle = \"1s\"\ntimeouts = { call_idle = \"1s\" }\nstop = { grace = \"1s\", drain = \"1s\" }"
    };
    let mut world = World::new(scope, &SERVER, "[sessions]\nidle = \"1s\"\n", keys);
    world.populate(scope);
    let call = world.clients[0].call("hang", "for ever");
    world.daemon.wait_row("hangs", "the call runs", |row| row["calls"] == 1);
    drop(call);
    world.clients_vanish();
    // One second each for the call, the session, the instance and its ladder.
    world.assert_empties(Duration::from_secs(10), "after the client vanished in a call");
}

#[test]
fn client_vanishes_in_a_call_shared() {
    client_vanishes_in_a_call(Scope::Shared);
}

#[test]
fn client_vanishes_in_a_call_session() {
    client_vanishes_in_a_call(Scope::Session);
}

/// "Stopped" is true however a stop and a client that wants a start meet: nothing runs at that moment, and what
/// the client asked for does not come up later.
#[test]
fn a_stop_that_meets_a_start_is_true() {
    let mut random = Random::seeded("stop meets start");
    let world = World::new(Scope::Session, &RESTLESS[..3], "", restless_keys);
    let address = world.daemon.address();
    for round in 0..4 * ROUNDS {
        let (species, mark) = &world.servers[usize::try_from(round).expect("small") % world.servers.len()];
        let mut stop = world.daemon.ostler();
        stop.args(["stop", species.name]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let stop = stop.spawn().expect("ostler runs");
        let moment = Duration::from_micros(random.below(30_000));
        std::thread::park_timeout(moment);
        let opening = Opening::begin(&address, species.name);
        let output = stop.wait_with_output().expect("ours");
        let left = mark.processes();
        let context = format!("`{}`, round {round}, {moment:?} ({})", species.name, random.name());
        assert!(output.status.success(), "{context}: {output:?}");
        assert_eq!(left, [], "{context}");
        opening.answer();
        assert_eq!(mark.processes(), [], "{context}: after the client was answered");
        // So that the next client may start it. How that comes out is not the question: an instance that is just
        // being removed is told as one that is not up.
        world.daemon.cli(&["start", species.name]);
    }
}

/// Numbers from a seed that a failed test prints (splitmix64).
struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    fn seeded(context: &str) -> Self {
        let given = std::env::var(SEED_VARIABLE).ok().map(|text| text.parse().expect("a number"));
        let seed = given.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        let random = Self { seed, state: seed };
        println!("{context}: {}", random.name());
        random
    }

    fn name(&self) -> String {
        format!("{SEED_VARIABLE}={}", self.seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }
}
