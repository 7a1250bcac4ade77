//! The queue: which task is next, and on which worker.
//!
//! Who is told [`Queue::decide`] what happened performs the effects, in their order. It holds of each waiting task only
//! what deciding needs; what the task is to do stays in the journal. The rules are in `docs/tasks-queue.md`:
//!
//! 1. A task waits from when it is ready, and rises one priority for each `ageing` that it has waited, up to 10.
//! 2. A free worker takes from the highest priority that any project has which is below its running limit.
//! 3. Between the projects of that priority: start-time fair queueing (Goyal and others, 1996), each attempt costing
//!    1 / weight. Each priority of each lane has a clock of its own: nobody saves up by being idle, at a limit, or served
//!    at another priority meanwhile.
//! 4. Within the project: whoever was ready first, then the lower number.
//!
//! | file | subject |
//! |---|---|
//! | `decide.rs` | what follows from what happened |
//! | `order.rs` | whose turn it is: priorities, fair shares, limits |
//! | `room.rs` | who is let in, and the table of projects |

mod decide;
mod order;
mod room;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::{Lane, Priority, ProjectName, WorkerId};
use crate::instance::Now;
use order::{Flow, LaneBook, Row};
use room::Project;
pub use room::{Full, Limit, ProjectFigures};

/// How long a task waits for each step that it rises, by default (`tasks.ageing`).
pub const AGEING: Duration = Duration::from_secs(30);
/// Most tasks that wait, by default (`tasks.queued`).
pub const QUEUED: usize = 100_000;
/// Most tasks of one project that wait, by default (`tasks.project_queued`): no project fills the queue alone.
pub const PROJECT_QUEUED: usize = QUEUED / 2;
/// Most tasks of one project that run, by default (`tasks.project_running`).
pub const PROJECT_RUNNING: usize = 16;
/// Most projects known at once, by default (`tasks.projects`).
pub const PROJECTS: usize = 10_000;
/// The largest weight; a larger one counts as this.
pub const WEIGHT_MAX: u32 = 1000;
/// Most tasks that expire or become ready in one decision. The rest follows in the next ones, at once: whoever holds
/// a lock over a decision is not held up by a million deadlines that pass together.
pub const STEP: usize = 1000;

/// How the queue is to be, as the configuration says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueueSpec {
    /// How long a task waits for each step that it rises; zero: it never does, and what is less urgent may starve.
    pub ageing: Duration,
    /// Most tasks that wait, of all projects.
    pub queued: usize,
    /// Most tasks of one project that run, where the project has no limit of its own.
    pub project_running: usize,
    /// Most tasks of one project that wait, where the project has no limit of its own.
    pub project_queued: usize,
    /// Most projects known at once.
    pub projects: usize,
}

impl Default for QueueSpec {
    fn default() -> Self {
        Self {
            ageing: AGEING,
            queued: QUEUED,
            project_running: PROJECT_RUNNING,
            project_queued: PROJECT_QUEUED,
            projects: PROJECTS,
        }
    }
}

/// What a project is allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProjectLimits {
    /// Most of its tasks that run; 0: none begins. `None`: as [`QueueSpec::project_running`].
    pub running: Option<usize>,
    /// Most of its tasks that wait. `None`: as [`QueueSpec::project_queued`].
    pub queued: Option<usize>,
    /// Its share beside others: one of weight 2 begins two tasks where one of weight 1 begins one. From 1 to
    /// [`WEIGHT_MAX`].
    pub weight: u32,
}

impl Default for ProjectLimits {
    fn default() -> Self {
        Self { running: None, queued: None, weight: 1 }
    }
}

/// A task as it enters the queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Queued {
    /// Its number.
    pub seq: u64,
    /// Whose workers it needs.
    pub lane: Lane,
    /// Whose it is.
    pub project: ProjectName,
    /// How urgent it is.
    pub priority: Priority,
    /// When it may begin; it waits, and ages, from then. For a task of an earlier daemon this lies in the past, so the
    /// driver's origin of time must lie before its own start.
    pub ready: Now,
    /// When it must have begun.
    pub deadline: Option<Now>,
    /// The number of its next attempt, from 1.
    pub attempt: u32,
}

/// How an attempt ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// The task is over, well or not.
    Over,
    /// It is to be tried again, from then on.
    Retry {
        /// When it may begin.
        ready: Now,
    },
    /// It never began, and the journal knows nothing of it: its number is that of the next one.
    NotBegun {
        /// When that may begin.
        ready: Now,
    },
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Tasks were accepted for which room was reserved ([`Queue::reserve`]). All are taken in.
    Submitted(Vec<Queued>),
    /// Tasks were accepted before: at the start, or again by a person. All are taken in, whatever the limits are. At the
    /// start in several of these, and workers only after the last, so that what is read first does not begin first. One
    /// whose last attempt is still being ended is taken in when that is over.
    Restored(Vec<Queued>),
    /// A task is not wanted any more.
    Cancelled(u64),
    /// A worker would take a task. A new attempt may begin before the last one of the same worker is in the journal.
    WorkerFree {
        /// Of which kind it is.
        lane: Lane,
        /// Which.
        worker: WorkerId,
    },
    /// A worker takes no more. What it was running ends with [`Event::Ended`], as always.
    WorkerGone(WorkerId),
    /// An attempt has ended: nothing of it runs, and the journal knows.
    Ended {
        /// The task.
        seq: u64,
        /// The attempt; one that is not running changes nothing.
        attempt: u32,
        /// How.
        how: How,
    },
    /// A project has limits of its own from now on; `None`: it has none any more.
    ProjectLimits {
        /// Which.
        project: ProjectName,
        /// Its limits.
        limits: Option<ProjectLimits>,
    },
    /// The queue is to be otherwise from now on.
    Configured(QueueSpec),
    /// Nothing begins any more, and nobody is let in. What runs ends as always.
    Closed,
    /// The time that [`Effect::Wake`] named has come.
    Tick,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Begin an attempt, and say [`Event::Ended`] when it is over.
    Assign {
        /// The task.
        seq: u64,
        /// The attempt.
        attempt: u32,
        /// Who is to do it; it is not free any more.
        worker: WorkerId,
    },
    /// A task has not begun by its deadline, or could not any more: it is out of the queue.
    Expire {
        /// The task.
        seq: u64,
    },
    /// A cancelled task did not run, or is not tried again: it is out of the queue.
    Dropped {
        /// The task.
        seq: u64,
    },
    /// A cancelled task runs: end the attempt, and say [`Event::Ended`].
    Stop {
        /// The task.
        seq: u64,
        /// The attempt.
        attempt: u32,
        /// Where.
        worker: WorkerId,
    },
    /// Say [`Event::Tick`] then, which may be now; it replaces an earlier one.
    Wake(Now),
}

/// Where a task is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// It may not begin yet.
    Delayed,
    /// It waits for a worker, or for its project to be below its limit.
    Ready,
    /// This attempt runs.
    Running {
        /// Its number.
        attempt: u32,
        /// Where.
        worker: WorkerId,
    },
}

/// How the queue stands, and what it has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// Tasks that wait, delayed ones included.
    pub queued: usize,
    /// Of these, the ones that may not begin yet.
    pub delayed: usize,
    /// Attempts that run.
    pub running: usize,
    /// Places reserved.
    pub reserved: usize,
    /// Projects known.
    pub projects: usize,
    /// Attempts begun.
    pub assigned: u64,
    /// Attempts that ended, to be tried again.
    pub retried: u64,
    /// Tasks that expired.
    pub expired: u64,
    /// Tasks that were cancelled.
    pub cancelled: u64,
    /// Tasks not let in, as the queue was full or closed.
    pub refused_by_queue: u64,
    /// Tasks not let in, as their project had too many, or there were too many projects.
    pub refused_by_project: u64,
    /// Tasks told of that were in the queue already.
    pub ignored: u64,
}

/// How one lane stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LaneFigures {
    /// Tasks that wait, delayed ones included.
    pub queued: usize,
    /// Attempts that run.
    pub running: usize,
    /// Workers without a task.
    pub free: usize,
}

/// Nanoseconds since the driver's origin; 584 years fit. Half the size of a [`Duration`], in every task.
type Nanos = u64;

const NEVER: Nanos = u64::MAX;

/// As many lanes are kept before those that have nothing are looked for; with parts for projects there may be many.
const LANES_SWEPT: usize = 1024;

fn nanos(now: Now) -> Nanos {
    u64::try_from(now.0.as_nanos()).unwrap_or(NEVER - 1).min(NEVER - 1)
}

fn now_of(nanos: Nanos) -> Now {
    Now(Duration::from_nanos(nanos))
}

/// A task that waits: 32 bytes with its number, as there may be a million.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    ready: Nanos,
    /// [`NEVER`] where there is none.
    deadline: Nanos,
    row: Row,
    attempt: u32,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    attempt: u32,
    worker: WorkerId,
    row: Row,
    deadline: Nanos,
    cancelled: bool,
}

/// Names a place in the table of flows.
type FlowIx = u32;
/// Names a place in the table of projects.
type ProjectIx = u32;
/// Names a place in the table of lanes.
type LaneIx = u32;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Queue {
    spec: QueueSpec,
    now: Nanos,
    closed: bool,
    /// What waits, by number. New ones have the highest, so this grows at one end and stays in the cache.
    waiting: BTreeMap<u64, Waiting>,
    running: HashMap<u64, Running>,
    /// What was accepted again while its last attempt is being ended: no more than what runs.
    again: BTreeMap<u64, Queued>,
    /// What is not ready yet, by when it will be.
    delayed: BTreeSet<(Nanos, u64)>,
    /// Whatever is up to here is in the row of its flow, the rest in `delayed`.
    horizon: (Nanos, u64),
    deadlines: BTreeSet<(Nanos, u64)>,
    /// When flows rise to the next priority.
    rises: BTreeSet<(Nanos, FlowIx)>,
    flows: Vec<Flow>,
    unused_flows: Vec<FlowIx>,
    projects: Vec<Project>,
    unused_projects: Vec<ProjectIx>,
    by_name: HashMap<ProjectName, ProjectIx>,
    lanes: Vec<LaneBook>,
    unused_lanes: Vec<LaneIx>,
    by_lane: HashMap<Lane, LaneIx>,
    /// Lanes that have a worker without a task.
    staffed: BTreeSet<LaneIx>,
    /// Lanes in which something has become startable where nothing was ([`Queue::take_wanting`]).
    wanting: Vec<LaneIx>,
    /// At so many lanes those that have nothing are forgotten.
    lanes_swept: usize,
    reserved: usize,
    wake: Option<Nanos>,
    counts: Figures,
}

impl Queue {
    /// An empty queue.
    pub fn new(spec: QueueSpec) -> Self {
        Self {
            spec,
            now: 0,
            closed: false,
            waiting: BTreeMap::new(),
            running: HashMap::new(),
            again: BTreeMap::new(),
            delayed: BTreeSet::new(),
            horizon: (0, 0),
            deadlines: BTreeSet::new(),
            rises: BTreeSet::new(),
            flows: Vec::new(),
            unused_flows: Vec::new(),
            projects: Vec::new(),
            unused_projects: Vec::new(),
            by_name: HashMap::new(),
            lanes: Vec::new(),
            unused_lanes: Vec::new(),
            by_lane: HashMap::new(),
            staffed: BTreeSet::new(),
            wanting: Vec::new(),
            lanes_swept: LANES_SWEPT,
            reserved: 0,
            wake: None,
            counts: Figures::default(),
        }
    }

    /// How it is to be.
    pub fn spec(&self) -> &QueueSpec {
        &self.spec
    }

    /// How it stands.
    pub fn figures(&self) -> Figures {
        Figures {
            queued: self.waiting.len(),
            delayed: self.delayed.len(),
            running: self.running.len(),
            reserved: self.reserved,
            projects: self.by_name.len(),
            ..self.counts
        }
    }

    /// Where a task is, if it is here.
    pub fn place(&self, seq: u64) -> Option<Place> {
        if let Some(running) = self.running.get(&seq) {
            return Some(Place::Running { attempt: running.attempt, worker: running.worker });
        }
        let waiting = self.waiting.get(&seq)?;
        Some(if self.is_delayed(waiting.ready, seq) { Place::Delayed } else { Place::Ready })
    }

    /// How a lane stands.
    pub fn lane(&self, lane: &Lane) -> LaneFigures {
        self.by_lane.get(lane).map_or_else(LaneFigures::default, |ix| self.book(*ix).figures())
    }

    /// All lanes that a task or a worker is in, and some that had one, in no order.
    pub fn lanes(&self) -> impl Iterator<Item = (&Lane, LaneFigures)> {
        self.by_lane.iter().map(|(name, ix)| (name, self.book(*ix).figures()))
    }

    /// Whether something could begin in a lane if it had a worker for it.
    pub fn wants(&self, lane: &Lane) -> bool {
        self.by_lane.get(lane).is_some_and(|ix| self.book(*ix).standing > 0)
    }

    /// The lanes in which something could begin since this was asked last, where before nothing could. Whoever staffs lanes looks at
    /// these.
    pub fn take_wanting(&mut self) -> Vec<Lane> {
        let wanting = std::mem::take(&mut self.wanting);
        let still = wanting.into_iter().map(|ix| self.book(ix)).filter(|book| book.standing > 0);
        still.map(|book| book.name.clone()).collect()
    }

    fn is_delayed(&self, ready: Nanos, seq: u64) -> bool {
        (ready, seq) > self.horizon
    }
}
