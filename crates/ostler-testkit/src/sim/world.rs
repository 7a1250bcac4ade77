//! What is true in a simulated world: which trees live, what the ledger holds, and what has happened so far.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use ostler_domain::ServerName;
use ostler_os::Mark;
use ostler_store::TreeRecord;
use ostler_supervisor::{Supervisor, clock};
use tokio::sync::Notify;

use super::chronicle::Chronicle;
use super::plan::Plan;

/// Lines of the trace kept when nobody asked for all of it.
const TRACE_TAIL: usize = 60;

/// One simulated world. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct World(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    plan: Plan,
    state: Mutex<State>,
    supervisor: OnceLock<Weak<Supervisor>>,
    broken: Notify,
}

/// What is true. Only the simulated system writes the first part, only the checks the second.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Every tree ever started, by its mark.
    pub(super) trees: BTreeMap<String, Tree>,
    /// The ledger.
    pub(super) rows: BTreeMap<String, TreeRecord>,
    /// A write to the ledger failed, so that it may hold what is gone.
    pub(super) ledger_failed: bool,
    /// A shutdown has come to its end: nothing may be started any more.
    pub(super) down: bool,
    next_pid: u32,
    /// When each server was last seen to serve.
    pub(super) served: BTreeMap<ServerName, Duration>,
    /// The number of the latest lease of each server's pool.
    pub(super) fences: BTreeMap<String, u64>,
    /// Instances that were leased.
    pub(super) leased: BTreeSet<String>,
    /// Everything is being stopped, in order.
    pub(super) stopping: bool,
    pub(super) chronicle: Chronicle,
    trace: Trace,
    violation: Option<String>,
    over: bool,
}

/// One tree: a guard and what is below it.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    /// Whose it is, by the ledger.
    pub(super) record: TreeRecord,
    /// Its guard.
    pub(super) guard_pid: u32,
    /// Its first process, once started.
    pub(super) leader_pid: Option<u32>,
    /// Whether the guard or a process below it lives.
    pub(super) alive: bool,
    /// Whether it has answered a handshake.
    pub(super) opened: bool,
    /// The ports it was given.
    pub(super) ports: Vec<String>,
}

/// What happened, as a number and, for people, as lines.
#[derive(Debug, Default)]
struct Trace {
    hash: u64,
    steps: u64,
    keep_all: bool,
    lines: VecDeque<String>,
}

impl Trace {
    fn push(&mut self, line: String) {
        self.steps += 1;
        // FNV-1a over all lines.
        self.hash = line.bytes().chain([b'\n']).fold(self.hash ^ 0xCBF2_9CE4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        self.lines.push_back(line);
        if !self.keep_all && self.lines.len() > TRACE_TAIL {
            self.lines.pop_front();
        }
    }
}

/// How a world ended.
pub(super) struct Ended {
    pub(super) hash: u64,
    pub(super) steps: u64,
    pub(super) spawns: usize,
    pub(super) lines: Vec<String>,
    pub(super) violation: Option<String>,
}

impl World {
    pub(super) fn new(plan: Plan, keep_trace: bool) -> Self {
        let state = State {
            next_pid: 100,
            trace: Trace { keep_all: keep_trace, ..Trace::default() },
            ..State::default()
        };
        Self(Arc::new(Inner {
            plan,
            state: Mutex::new(state),
            supervisor: OnceLock::new(),
            broken: Notify::new(),
        }))
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.0.plan
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on every step is checked against what this supervisor says.
    pub(super) fn watch(&self, supervisor: &Arc<Supervisor>) {
        let _ = self.0.supervisor.set(Arc::downgrade(supervisor));
    }

    pub(super) fn supervisor(&self) -> Option<Arc<Supervisor>> {
        self.0.supervisor.get().and_then(Weak::upgrade)
    }

    /// A step was taken: it is written down, and everything that must hold is checked.
    pub(super) fn step(&self, what: impl FnOnce() -> String) {
        {
            let mut state = self.lock();
            if state.over {
                return;
            }
            let line = format!("{:>10.3} {}", clock::now().0.as_secs_f64(), what());
            state.trace.push(line);
        }
        if let Err(violation) = super::check::step(self) {
            self.violate(violation);
        }
    }

    /// A promise was broken; only the first counts.
    pub(super) fn violate(&self, what: String) {
        let mut state = self.lock();
        if state.over || state.violation.is_some() {
            return;
        }
        let line = format!("{:>10.3} VIOLATION: {what}", clock::now().0.as_secs_f64());
        state.trace.push(line);
        state.violation = Some(what);
        drop(state);
        self.0.broken.notify_one();
    }

    /// Resolves when a promise was broken.
    pub(super) async fn broken(&self) {
        self.0.broken.notified().await;
    }

    /// What happens from now on is the runtime's end and of no interest.
    pub(super) fn finish(&self) -> Ended {
        let mut state = self.lock();
        state.over = true;
        Ended {
            hash: state.trace.hash,
            steps: state.trace.steps,
            spawns: state.trees.len(),
            lines: state.trace.lines.iter().cloned().collect(),
            violation: state.violation.take(),
        }
    }
}

impl State {
    /// A process id never given before: a reused one would hide a mix-up.
    pub(super) fn new_pid(&mut self) -> u32 {
        self.next_pid += 1;
        self.next_pid
    }

    /// The tree with this mark, for its process.
    pub(super) fn tree(&mut self, mark: Mark) -> Option<&mut Tree> {
        self.trees.get_mut(&mark.to_string())
    }

    /// The trees that live.
    pub(super) fn living(&self) -> impl Iterator<Item = &Tree> {
        self.trees.values().filter(|tree| tree.alive)
    }
}
