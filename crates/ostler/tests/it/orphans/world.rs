//! A daemon with many servers, and what must hold of it.

use std::path::Path;
use std::time::Duration;

use ostler_testkit::mark::{Mark, Marked};
use rustix::process::{Pid, Signal};

use super::client::{Client, Opening};
use super::zoo::{Manners, Species};
use crate::support::{Daemon, PATIENCE, wait_until};

/// Everything has to be gone this long after the daemon was killed: the promise.
pub(crate) const PROMISE: Duration = Duration::from_secs(2);

/// The two scopes of the proof.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scope {
    Shared,
    Session,
}

/// A daemon, its servers, and clients of all of them.
pub(crate) struct World {
    pub(crate) daemon: Daemon,
    pub(crate) servers: Vec<(Species, Mark)>,
    /// Clients that wait for a session, or have one.
    pub(crate) waiting: Vec<Opening>,
    pub(crate) clients: Vec<Client>,
}

impl World {
    /// A daemon that has started none of these servers yet. `general` are sections for all, `own` are further
    /// keys of each server.
    pub(crate) fn new(
        scope: Scope,
        species: &[Species],
        general: &str,
        own: impl Fn(&Species) -> &'static str,
    ) -> Self {
        let servers: Vec<(Species, Mark)> = species.iter().map(|one| (*one, Mark::new())).collect();
        let scope = match scope {
            Scope::Shared => "shared",
            Scope::Session => "session",
        };
        let mut config = format!(
            "[limits]\nprocesses = 100\n{general}\n[defaults]\nscope = {scope:?}\nstart = \"on-demand\"\n"
        );
        for (species, mark) in &servers {
            config.push_str(&species.section(mark, own(species)));
        }
        let daemon = Daemon::start(&config, &[]);
        Self { daemon, servers, waiting: Vec::new(), clients: Vec::new() }
    }

    /// Brings clients to every server, two each where they share, and waits until each is at its worst.
    pub(crate) fn populate(&mut self, scope: Scope) {
        let address = self.daemon.address();
        let each = if scope == Scope::Shared { 2 } else { 1 };
        let mut openings = Vec::new();
        for (species, _) in &self.servers {
            for _ in 0..each {
                let opening = Opening::begin(&address, species.name);
                match species.manners {
                    Manners::Answers | Manners::Falls => openings.push((species.manners, opening)),
                    Manners::Silent | Manners::Dies => self.waiting.push(opening),
                }
            }
        }
        for (manners, opening) in openings {
            let client = opening.finish();
            if manners == Manners::Answers {
                client.check();
            }
            self.clients.push(client);
        }
        for (species, mark) in &self.servers {
            let seen = mark.wait_for(PATIENCE, |seen| species.at_its_worst(seen));
            seen.unwrap_or_else(|seen| panic!("`{}` never got to its worst: {seen:#?}", species.name));
        }
        for (species, _) in self.servers.iter().filter(|(species, _)| species.manners == Manners::Dies) {
            wait_until("it has died once", || {
                let name = format!("{}.1", species.name);
                self.daemon.events().iter().any(|event| event["subject"] == name && event["kind"] == "exited")
            });
        }
    }

    /// All clients are gone from one moment to the next; no DELETE, no word.
    pub(crate) fn clients_vanish(&mut self) {
        self.waiting.clear();
        self.clients.clear();
    }

    /// The living processes of all servers, each after its server's name.
    pub(crate) fn living(&self) -> Vec<(&'static str, Vec<Marked>)> {
        let seen = self.servers.iter().map(|(species, mark)| (species.name, mark.processes()));
        seen.filter(|(_, seen)| !seen.is_empty()).collect()
    }

    /// What must hold at the very moment something is said to be over: no waiting here.
    pub(crate) fn assert_nothing_lives(&self, context: &str) {
        let living = self.living();
        assert!(living.is_empty(), "{context}: {living:#?}\nthe daemon: {}", self.daemon.stderr());
    }

    /// Within the deadline nothing of any server lives, and neither does a guard.
    pub(crate) fn assert_empties(&self, deadline: Duration, context: &str) {
        let end = std::time::Instant::now() + deadline;
        loop {
            let last = std::time::Instant::now() >= end;
            let (living, guards) = (self.living(), self.guards());
            if living.is_empty() && guards.is_empty() {
                return;
            }
            assert!(
                !last,
                "{context}, {deadline:?} later: {living:#?}\nguards {guards:?}\nthe daemon: {}",
                self.daemon.stderr()
            );
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// The guards that this daemon, or an earlier one in the same directory, started.
    pub(crate) fn guards(&self) -> Vec<i32> {
        guards_of(self.daemon.dir())
    }

    /// Kills the guards and the daemon so that neither can clean up after the other: a stopped daemon does not
    /// sweep up after its guards.
    pub(crate) fn kill_both(&mut self) {
        self.daemon.signal(Signal::STOP);
        // Stopped is what it is once none of its threads is about to do anything, such as starting a guard.
        let stat = format!("/proc/{}/stat", self.daemon.pid());
        wait_until("the daemon stands still", || {
            let stat = std::fs::read_to_string(&stat).expect("it is not reaped");
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        });
        self.kill_guards();
        self.daemon.signal(Signal::KILL);
        self.daemon.wait();
    }

    /// SIGKILL for every guard there is.
    pub(crate) fn kill_guards(&self) -> usize {
        let guards = self.guards();
        for &guard in &guards {
            // One that has ended since is fine.
            let _ = rustix::process::kill_process(Pid::from_raw(guard).expect("a pid"), Signal::KILL);
        }
        guards.len()
    }
}

/// A guard has the daemon's standard error, which is a file in the daemon's directory.
fn guards_of(dir: &Path) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("/proc is readable").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_guard = |pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|&byte| byte == 0).nth(1) == Some(b"guard")
            && std::fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|file| file.starts_with(dir))
    };
    pids.filter(is_guard).collect()
}
