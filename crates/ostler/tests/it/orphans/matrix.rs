//! Every server of the zoo, in the scopes `shared` and `session`, after every end.
//!
//! One daemon for each scope and end, with the whole zoo on it.

use std::time::Duration;

use rustix::process::Signal;

use super::world::{PROMISE, Scope, World};
use super::zoo::{Manners, Species, ZOO};
use crate::support::wait_until;

/// For a client that vanished: its session (5 s) and then its instance (1 s) have to be silent for long enough,
/// and the ladder takes 2 s. The rest is for a machine on which the floods of the zoo go on.
const VANISHED: Duration = Duration::from_secs(25);

/// Nothing is ended for being unused, so that only the end under test ends anything.
const LASTING: &str = "";

/// What is unused ends soon; not so soon that a client on a loaded machine loses its session between two words.
const HASTY: &str = "[sessions]\nidle = \"5s\"\n";

/// Short ladders. What dies early is started again and again, and so is met at any point of its life.
fn keys(species: &Species) -> &'static str {
    match species.manners {
        Manners::Dies => {
            "stop = { grace = \"1s\", drain = \"1s\" }\nrestart = { policy = \"always\", max = 1000, \
             backoff = { min = \"50ms\", max = \"100ms\" } }"
        }
        _ => "stop = { grace = \"1s\", drain = \"1s\" }\nrestart = { policy = \"never\" }",
    }
}

/// The same, and unused instances end soon.
fn hasty_keys(species: &Species) -> &'static str {
    match species.manners {
        Manners::Dies => {
            "idle = \"1s\"\nstop = { grace = \"1s\", drain = \"1s\" }\nrestart = { policy = \"always\", max = 1000, \
             backoff = { min = \"50ms\", max = \"100ms\" } }"
        }
        _ => "idle = \"1s\"\nstop = { grace = \"1s\", drain = \"1s\" }\nrestart = { policy = \"never\" }",
    }
}

/// No process is started again.
fn final_keys(_: &Species) -> &'static str {
    "stop = { grace = \"1s\", drain = \"1s\" }\nrestart = { policy = \"never\" }"
}

fn populated(scope: Scope, general: &str, keys: impl Fn(&Species) -> &'static str) -> World {
    let mut world = World::new(scope, &ZOO, general, keys);
    world.populate(scope);
    world
}

/// (a)
fn the_clients_vanish(scope: Scope) {
    let mut world = populated(scope, HASTY, hasty_keys);
    world.clients_vanish();
    world.assert_empties(VANISHED, "after all clients vanished");
    wait_until("no instance is listed", || world.daemon.ps().iter().all(|row| row["state"] == "idle"));
    assert_eq!(world.daemon.status()["sessions"], 0);
}

/// (b)
fn ostler_stop(scope: Scope) {
    let world = populated(scope, LASTING, keys);
    std::thread::scope(|threads| {
        for (species, mark) in &world.servers {
            let daemon = &world.daemon;
            threads.spawn(move || {
                let output = daemon.cli(&["stop", species.name]);
                // First of all, and without a wait: it was said to be stopped.
                let left = mark.processes();
                assert!(output.status.success(), "{}: {output:?}", species.name);
                assert_eq!(left, [], "`ostler stop {}` has returned", species.name);
            });
        }
    });
    world.assert_empties(Duration::ZERO, "after `ostler stop` of everything");
}

/// (c)
fn ostler_down(scope: Scope) {
    let mut world = populated(scope, LASTING, keys);
    let output = world.daemon.cli(&["down"]);
    world.assert_nothing_lives("`ostler down` has returned");
    assert!(output.status.success(), "{output:?}");
    assert!(world.daemon.wait().success());
    world.assert_empties(Duration::ZERO, "after `ostler down`");
}

/// (d)
fn sigterm(scope: Scope) {
    let mut world = populated(scope, LASTING, keys);
    world.daemon.signal(Signal::TERM);
    let status = world.daemon.wait();
    world.assert_nothing_lives("the daemon has ended after SIGTERM");
    assert!(status.success(), "{status}");
    world.assert_empties(Duration::ZERO, "after SIGTERM");
}

/// (e)
fn sigkill_of_the_daemon(scope: Scope) {
    let mut world = populated(scope, LASTING, keys);
    world.daemon.signal(Signal::KILL);
    world.assert_empties(PROMISE, "after SIGKILL of the daemon");
    world.daemon.wait();
}

/// (f)
fn sigkill_of_the_guards(scope: Scope) {
    let world = populated(scope, LASTING, final_keys);
    let lasting = ZOO.iter().filter(|species| species.manners != Manners::Dies).count();
    assert!(world.kill_guards() >= lasting, "each has a guard, but for those that have died");
    world.assert_empties(PROMISE, "after SIGKILL of every guard");
    let serves = |row: &serde_json::Value| row["state"] == "ready";
    wait_until("what happened is known", || !world.daemon.ps().iter().any(serves));
    for (species, _) in world.servers.iter().filter(|(species, _)| species.manners != Manners::Dies) {
        // With a client of its own that was never served, the instance goes with that client: then none is listed.
        let over = |row: &serde_json::Value| row["state"] == "failed" || row["state"] == "idle";
        let row = world.daemon.wait_row(species.name, "it failed", over);
        assert_eq!(row["processes"], 0, "{row}");
    }
}

/// (g), the daemon and its guards at one moment.
fn sigkill_of_both(scope: Scope) {
    let mut world = populated(scope, LASTING, keys);
    world.kill_both();
    for (species, mark) in world.servers.iter().filter(|(species, _)| species.leaves_orphans()) {
        assert_ne!(mark.count(), 0, "`{}` left nothing, so this tests nothing", species.name);
    }
    world.daemon.start_again(&[]);
    world.assert_nothing_lives("the next daemon has started");
    world.assert_empties(Duration::ZERO, "after the next start");
}

/// Both scopes of one end, as two tests that can run at the same time.
macro_rules! ends {
    ($($end:ident),* $(,)?) => {$(
        mod $end {
            use super::Scope;

            #[test]
            fn shared() {
                super::$end(Scope::Shared);
            }

            #[test]
            fn session() {
                super::$end(Scope::Session);
            }
        }
    )*};
}

ends!(
    the_clients_vanish,
    ostler_stop,
    ostler_down,
    sigterm,
    sigkill_of_the_daemon,
    sigkill_of_the_guards,
    sigkill_of_both,
);
