//! The order of servers: which is started before which, which may start now, which is held and by whom, and
//! which runs on without something it should have.
//!
//! ```text
//!     depends_on ── must be ready ──┐
//!                                   ├──▶ start       stop ──▶ when nothing that runs depends on it or wants it
//!     wants ──── ready or hopeless ─┘
//! ```
//!
//! A [`Graph`] holds no state: what is ready is handed in, so that it can be asked at any time and never
//! disagrees with the instances themselves.
//!
//! | file | subject |
//! |---|---|
//! | `cycle.rs` | finding a cycle |
//! | `plan.rs` | what may start, is held, is degraded, given how each server is |

mod cycle;
mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

pub use cycle::find_cycle;
pub use plan::{Blame, CAUSES_MAX, Degraded, Held, Plan, Standing};

use crate::ids::ServerName;
use crate::server::ServerSpec;

/// Servers and who waits for whom; without cycles.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    names: Vec<ServerName>,
    index: BTreeMap<ServerName, usize>,
    /// Whom each must have ready.
    needs: Vec<Vec<usize>>,
    /// Whom each would like to have ready. None is in `needs` as well.
    wants: Vec<Vec<usize>>,
    /// Who has each among its `needs` or `wants`.
    dependants: Vec<Vec<usize>>,
    /// All, each after everything it waits for; else in the order given.
    order: Vec<usize>,
    /// The wave of each: 0 for those that wait for nobody.
    wave: Vec<usize>,
}

/// Why servers cannot be put in order. Configuration is checked for both before, with the place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GraphError {
    /// A server waits for one that is not there.
    Unknown {
        /// Who waits.
        server: ServerName,
        /// For whom.
        name: ServerName,
    },
    /// Two servers have one name.
    Twice(ServerName),
    /// Servers wait for each other: each for the next, and the last for the first.
    Cycle(Vec<ServerName>),
}

impl fmt::Display for GraphError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { server, name } => {
                write!(f, "server `{server}` waits for `{name}`, which is not there: add it or take that out")
            }
            Self::Twice(name) => write!(f, "server `{name}` is there twice: rename one"),
            Self::Cycle(names) => {
                f.write_str("servers wait for each other, so none could start first: ")?;
                for name in names {
                    write!(f, "{name} -> ")?;
                }
                names.first().map_or(Ok(()), |first| write!(f, "{first}"))
            }
        }
    }
}

impl std::error::Error for GraphError {}

impl Graph {
    /// The order of these servers. One that is both depended on and wanted is depended on.
    ///
    /// # Errors
    ///
    /// When a name is unknown or given twice, or servers wait for each other.
    pub fn new<'a>(specs: impl IntoIterator<Item = &'a ServerSpec>) -> Result<Self, GraphError> {
        let specs: Vec<&ServerSpec> = specs.into_iter().collect();
        let mut index = BTreeMap::new();
        for (number, spec) in specs.iter().enumerate() {
            if index.insert(spec.name.clone(), number).is_some() {
                return Err(GraphError::Twice(spec.name.clone()));
            }
        }
        let resolve = |spec: &ServerSpec, names: &[ServerName]| -> Result<BTreeSet<usize>, GraphError> {
            let find = |name: &ServerName| {
                let unknown = || GraphError::Unknown { server: spec.name.clone(), name: name.clone() };
                index.get(name).copied().ok_or_else(unknown)
            };
            names.iter().map(find).collect()
        };
        let (mut needs, mut wants) = (Vec::new(), Vec::new());
        for spec in &specs {
            let hard = resolve(spec, &spec.depends_on)?;
            let soft = resolve(spec, &spec.wants)?;
            wants.push(soft.difference(&hard).copied().collect());
            needs.push(hard.into_iter().collect());
        }
        let names = specs.iter().map(|spec| spec.name.clone()).collect();
        Self::ordered(names, index, needs, wants)
    }

    fn ordered(
        names: Vec<ServerName>,
        index: BTreeMap<ServerName, usize>,
        needs: Vec<Vec<usize>>,
        wants: Vec<Vec<usize>>,
    ) -> Result<Self, GraphError> {
        let before: Vec<Vec<usize>> =
            needs.iter().zip(&wants).map(|(n, w)| [&n[..], &w[..]].concat()).collect();
        if let Some(cycle) = find_cycle(&before) {
            return Err(GraphError::Cycle(cycle.into_iter().map(|i| names[i].clone()).collect()));
        }
        let mut dependants = vec![Vec::new(); names.len()];
        for (node, list) in before.iter().enumerate() {
            list.iter().for_each(|other| dependants[*other].push(node));
        }
        let mut missing: Vec<usize> = before.iter().map(Vec::len).collect();
        let mut wave = vec![0; names.len()];
        let mut ready: BTreeSet<(usize, usize)> =
            missing.iter().enumerate().filter(|(_, n)| **n == 0).map(|(i, _)| (0, i)).collect();
        let mut order = Vec::with_capacity(names.len());
        while let Some((level, node)) = ready.pop_first() {
            order.push(node);
            wave[node] = level;
            for next in &dependants[node] {
                missing[*next] -= 1;
                if missing[*next] == 0 {
                    // Nodes come off wave by wave, so the last one waited for is of the latest wave.
                    ready.insert((level + 1, *next));
                }
            }
        }
        Ok(Self { names, index, needs, wants, dependants, order, wave })
    }

    /// How many servers it has.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The servers in waves: those of a wave wait only for those of waves before it, and for one of the wave
    /// just before. Within a wave they stand in the order given.
    pub fn waves(&self) -> Vec<Vec<&ServerName>> {
        let mut waves: Vec<Vec<&ServerName>> = Vec::new();
        for node in &self.order {
            if waves.len() <= self.wave[*node] {
                waves.push(Vec::new());
            }
            waves[self.wave[*node]].push(&self.names[*node]);
        }
        waves
    }

    /// The waves in which the servers are stopped: nobody before those that wait for it.
    pub fn stop_waves(&self) -> Vec<Vec<&ServerName>> {
        let mut waves = self.waves();
        waves.reverse();
        waves
    }

    /// The chain of servers whose starts, one after the other, take longest, and how long they take: what a
    /// start of everything cannot beat. `takes` gives the time of each alone.
    pub fn longest_path(&self, takes: impl Fn(&ServerName) -> Duration) -> (Duration, Vec<&ServerName>) {
        let mut until = vec![Duration::ZERO; self.len()];
        let mut from: Vec<Option<usize>> = vec![None; self.len()];
        for node in &self.order {
            let before = self.needs[*node].iter().chain(&self.wants[*node]).copied();
            from[*node] = before.max_by_key(|other| until[*other]);
            let waited = from[*node].map_or(Duration::ZERO, |other| until[other]);
            until[*node] = waited.saturating_add(takes(&self.names[*node]));
        }
        let last = self.order.iter().copied().max_by_key(|node| until[*node]);
        let mut path: Vec<_> =
            std::iter::successors(last, |node| from[*node]).map(|node| &self.names[node]).collect();
        path.reverse();
        (last.map_or(Duration::ZERO, |node| until[node]), path)
    }

    /// The servers that starting `targets` starts: themselves and all that they wait for, in an order in which
    /// they could be started one by one. Names that are not there are passed over.
    pub fn closure<'a>(&self, targets: impl IntoIterator<Item = &'a ServerName>) -> Vec<&ServerName> {
        let mut in_it = vec![false; self.len()];
        targets.into_iter().filter_map(|name| self.index.get(name)).for_each(|node| in_it[*node] = true);
        for node in self.order.iter().rev() {
            if in_it[*node] {
                self.needs[*node].iter().chain(&self.wants[*node]).for_each(|other| in_it[*other] = true);
            }
        }
        self.order.iter().filter(|node| in_it[**node]).map(|node| &self.names[*node]).collect()
    }

    /// The servers that wait for `name`, directly or through others, in the order of a start.
    pub fn dependants(&self, name: &ServerName) -> Vec<&ServerName> {
        let mut in_it = vec![false; self.len()];
        let mut found = Vec::new();
        for node in &self.order {
            let waits = self.needs[*node].iter().chain(&self.wants[*node]);
            if waits.clone().any(|other| in_it[*other] || self.names[*other] == *name) {
                in_it[*node] = true;
                found.push(&self.names[*node]);
            }
        }
        found
    }

    /// Of the servers that run, those that may be stopped now: nothing that runs waits for them, directly or
    /// through others. Stopping these, and asking again when they are gone, stops everything in order.
    pub fn stoppable(&self, runs: impl Fn(&ServerName) -> bool) -> Vec<&ServerName> {
        let running: Vec<bool> = self.names.iter().map(runs).collect();
        let mut kept = vec![false; self.len()];
        for node in self.order.iter().rev() {
            kept[*node] = self.dependants[*node].iter().any(|other| running[*other] || kept[*other]);
        }
        let stops = |node: &&usize| running[**node] && !kept[**node];
        self.order.iter().rev().filter(stops).map(|node| &self.names[*node]).collect()
    }
}
