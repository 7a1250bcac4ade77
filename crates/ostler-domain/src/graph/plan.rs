//! What is to be done now, given how each server is.

use std::fmt;

use super::Graph;
use crate::ids::ServerName;

/// The most causes told of one held or degraded server; there may be as many as servers.
pub const CAUSES_MAX: usize = 8;

/// How a server is, as far as others wait for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Standing {
    /// It runs and is ready.
    Ready,
    /// It is on its way.
    Starting,
    /// It shall be started as soon as it may.
    Waiting,
    /// It does not come up for now: it failed, is in a long back-off or broken. It may be `Ready` later.
    Failed,
    /// Nobody wants it to run: stopped by a person, or for clients that have not come.
    Stopped,
}

impl Standing {
    /// How it is, as part of a sentence: "`db` has failed".
    fn words(self) -> &'static str {
        match self {
            Self::Ready => "is ready",
            Self::Starting => "is starting",
            Self::Waiting => "waits to be started",
            Self::Failed => "has failed",
            Self::Stopped => "is stopped",
        }
    }
}

/// One reason why a server is held or degraded: another server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Blame {
    /// Which: a server that is waited for directly.
    pub server: ServerName,
    /// How it is.
    pub standing: Standing,
    /// The server it is so because of, where it waits or is degraded itself.
    pub root: Option<ServerName>,
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.root, self.standing) {
            (None, standing) => write!(f, "`{}` {}", self.server, standing.words()),
            (Some(root), Standing::Ready) => write!(f, "`{}` is degraded by `{root}`", self.server),
            (Some(root), standing) => write!(f, "`{}` {} for `{root}`", self.server, standing.words()),
        }
    }
}

/// A server that shall be started and may not be yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// Which.
    pub server: ServerName,
    /// Whom it waits for: at most [`CAUSES_MAX`], at least one.
    pub because: Vec<Blame>,
    /// For how many others it waits besides.
    pub more: usize,
    /// Whether it waits for something that does not come by itself, such as a server that failed. Else it is
    /// only a matter of time.
    pub blocked: bool,
}

/// A server that is ready, without something it should have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Degraded {
    /// Which.
    pub server: ServerName,
    /// Who is missing: at most [`CAUSES_MAX`], at least one.
    pub because: Vec<Blame>,
    /// How many others are missing besides.
    pub more: usize,
}

/// What is to be done now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Servers that wait to be started and may be, all at the same time.
    pub start: Vec<ServerName>,
    /// Those that wait and may not.
    pub held: Vec<Held>,
    /// Those that are ready and should say that they are degraded. A ready one that is not named here is well
    /// as far as others are concerned.
    pub degraded: Vec<Degraded>,
}

fn reasons(f: &mut fmt::Formatter<'_>, because: &[Blame], more: usize) -> fmt::Result {
    for (index, blame) in because.iter().enumerate() {
        write!(f, "{}{blame}", if index == 0 { "" } else { ", " })?;
    }
    if more > 0 { write!(f, ", and {more} more") } else { Ok(()) }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not started: ", self.server)?;
        reasons(f, &self.because, self.more)
    }
}

impl fmt::Display for Degraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is degraded: ", self.server)?;
        reasons(f, &self.because, self.more)
    }
}

/// What is known of a server while the plan is made, its dependencies being known already.
#[derive(Clone, Copy)]
struct Known {
    standing: Standing,
    /// It waits, and for something that does not come by itself.
    blocked: bool,
    /// Whom it waits for, or is degraded by, in the end.
    root: Option<usize>,
}

impl Graph {
    /// What is to be done, `standing` being how each server is.
    ///
    /// A server may start when all it depends on are ready, and none that it wants may still come up by itself:
    /// a wanted server that failed, is stopped, or is held by such a one keeps nobody waiting. A ready server is
    /// degraded by each that it depends on or wants and that is not ready, and through each that it depends on
    /// and that is degraded so itself.
    pub fn plan(&self, standing: impl Fn(&ServerName) -> Standing) -> Plan {
        let mut plan = Plan::default();
        let mut known: Vec<Known> = self
            .names
            .iter()
            .map(|name| Known { standing: standing(name), blocked: false, root: None })
            .collect();
        for node in &self.order {
            let server = &self.names[*node];
            match known[*node].standing {
                Standing::Waiting => {
                    let (waits, blocked) = self.waits_for(*node, &known);
                    known[*node].blocked = blocked;
                    known[*node].root = waits.first().map(|other| known[*other].root.unwrap_or(*other));
                    if waits.is_empty() {
                        plan.start.push(server.clone());
                    } else {
                        let (because, more) = self.blame(&waits, &known);
                        plan.held.push(Held { server: server.clone(), because, more, blocked });
                    }
                }
                Standing::Ready => {
                    let misses = self.misses(*node, &known);
                    known[*node].root = misses.first().map(|other| known[*other].root.unwrap_or(*other));
                    if !misses.is_empty() {
                        let (because, more) = self.blame(&misses, &known);
                        plan.degraded.push(Degraded { server: server.clone(), because, more });
                    }
                }
                Standing::Starting | Standing::Failed | Standing::Stopped => {}
            }
        }
        plan
    }

    /// Whom a server still waits for, what blocks it first, and whether anything does.
    fn waits_for(&self, node: usize, known: &[Known]) -> (Vec<usize>, bool) {
        let hopeless = |other: &usize| match known[*other].standing {
            Standing::Failed | Standing::Stopped => true,
            Standing::Waiting => known[*other].blocked,
            Standing::Ready | Standing::Starting => false,
        };
        let not_ready = |other: &&usize| known[**other].standing != Standing::Ready;
        let needs = self.needs[node].iter().filter(not_ready);
        let wants = self.wants[node].iter().filter(not_ready).filter(|other| !hopeless(other));
        let mut waits: Vec<usize> = needs.chain(wants).copied().collect();
        waits.sort_by_key(|other| !hopeless(other));
        let blocked = waits.first().is_some_and(hopeless);
        (waits, blocked)
    }

    /// Whom a ready server is without.
    fn misses(&self, node: usize, known: &[Known]) -> Vec<usize> {
        let down = |other: &&usize| known[**other].standing != Standing::Ready;
        let ill = |other: &&usize| down(other) || known[**other].root.is_some();
        let needs = self.needs[node].iter().filter(ill);
        needs.chain(self.wants[node].iter().filter(down)).copied().collect()
    }

    /// The first of these servers with how they are, and how many more there are.
    fn blame(&self, nodes: &[usize], known: &[Known]) -> (Vec<Blame>, usize) {
        let one = |node: &usize| Blame {
            server: self.names[*node].clone(),
            standing: known[*node].standing,
            root: known[*node].root.map(|root| self.names[root].clone()),
        };
        (nodes.iter().take(CAUSES_MAX).map(one).collect(), nodes.len().saturating_sub(CAUSES_MAX))
    }
}
