//! The end at random moments, from a seed that is printed.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::process::Stdio;
use std::time::Duration;

use ostler_testkit::dice::Dice;
use rustix::process::Signal;

use super::client::Opening;
use super::world::{PROMISE, Scope, World};
use super::zoo::{Manners, Species};
use crate::support::wait_until;

/// Names the seed of the random moments, to run a failed test again.
const SEED_VARIABLE: &str = "OSTLER_TEST_SEED";

/// How often a daemon is killed at a random moment, in each way.
const ROUNDS: u64 = 8;

/// The latest random moment. A start and a handshake take some ten milliseconds, so most of these hit them.
const LATEST: Duration = Duration::from_millis(250);

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
            wait_until("without its daemon `ostler stop` ends", || stop.try_wait().expect("ours").is_some());
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

/// "Stopped" is true however a stop and a client that wants a start meet: nothing runs at that moment, and what
/// the client asked for does not come up later.
#[test]
fn a_stop_that_meets_a_start_is_true() {
    let mut random = Random::seeded("stop meets start");
    let world = World::new(Scope::Session, &RESTLESS[..3], "", restless_keys);
    let address = world.daemon.address();
    for round in 0..4 * ROUNDS {
        let (species, mark) = &world.servers[usize::try_from(round).expect("small") % world.servers.len()];
        let moment = Duration::from_micros(random.below(30_000));
        let (output, left, opening) = std::thread::scope(|threads| {
            let stop = threads.spawn(|| (world.daemon.cli(&["stop", species.name]), mark.processes()));
            std::thread::park_timeout(moment);
            let opening = Opening::begin(&address, species.name);
            let (output, left) = stop.join().expect("it does not panic");
            (output, left, opening)
        });
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

/// Clients that say goodbye and are gone before they are answered: what they asked for is done to its end, or, when
/// it was not heard at all, their sessions end as silent ones. Nothing is left in between.
#[test]
fn a_goodbye_is_heard_whoever_waits_for_the_answer() {
    let mut random = Random::seeded("goodbye");
    let mut world = World::new(Scope::Session, &RESTLESS[..3], "[sessions]\nidle = \"5s\"\n", restless_keys);
    let address = world.daemon.address();
    for round in 0..4 * ROUNDS {
        let (species, _) = &world.servers[usize::try_from(round).expect("small") % world.servers.len()];
        let client = Opening::begin(&address, species.name).finish();
        let hanging = (random.below(2) == 0).then(|| client.call("hang", "for ever"));
        let goodbye = client.delete();
        std::thread::park_timeout(Duration::from_micros(random.below(600)));
        drop(goodbye);
        drop(hanging);
    }
    world.clients_vanish();
    world.assert_empties(Duration::from_secs(20), &format!("after every goodbye ({})", random.name()));
    assert_eq!(world.daemon.status()["sessions"], 0);
}

/// Numbers from a seed that a failed test prints.
struct Random {
    seed: u64,
    dice: Dice,
}

impl Random {
    fn seeded(context: &str) -> Self {
        let given = std::env::var(SEED_VARIABLE).ok().map(|text| text.parse().expect("a number"));
        let seed = given.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        let random = Self { seed, dice: Dice::seeded(seed) };
        println!("{context}: {}", random.name());
        random
    }

    fn name(&self) -> String {
        format!("{SEED_VARIABLE}={}", self.seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.dice.below(bound)
    }
}
