//! The workers of one lane: how many there are, and when one is replaced.
//!
//! ```text
//!          Start           Ready              Began
//!  (room) ───────► Starting ────► Free ◄──────────────► Busy
//!                     │ Failed     │ too many, worn       │ Gone: it died, its task is tried again
//!                     ▼            ▼                      ▼
//!                   Leaving ◄── Retire                  (out)
//! ```
//!
//! [`Crew::decide`] is told what happened and says what to do, as [`crate::pool`] does for sessions. A worker that is worn
//! serves until its replacement is ready; so that there is one more than wanted for that time, and only one: those that
//! wear out together are replaced one after another.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::WorkerId;
use super::scale::{ScaleSpec, Scaler, Seen, Step};
use crate::instance::Now;
use crate::instance::backoff::spread;
use crate::text::{human, human_bytes};
use crate::wear::{Bounds, Wear, Worn};

/// After a worker did not start, or died before it finished a task: until another is tried, doubled each time.
const SETBACK_MIN: Duration = Duration::from_secs(1);
/// The longest of these waits.
const SETBACK_MAX: Duration = Duration::from_secs(60);

/// How the workers of a lane are to be, as the configuration says.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkerSpec {
    /// How many.
    pub scale: ScaleSpec,
    /// So many tasks, and a worker is replaced.
    pub max_tasks: Option<u32>,
    /// So old, and a worker is replaced.
    pub max_age: Option<Duration>,
    /// So many bytes of memory, and a worker is replaced.
    pub max_rss: Option<u64>,
    /// The share, from 0 to 1, by which `max_tasks` and `max_age` are less at most, by chance.
    pub jitter: f64,
    /// A worker beyond the least that had nothing to do for so long may be ended.
    pub idle: Duration,
}

impl WorkerSpec {
    /// The defaults, on a machine with so many processors.
    pub fn of(processors: usize) -> Self {
        Self {
            scale: ScaleSpec::of(processors),
            max_tasks: Some(100),
            max_age: None,
            max_rss: None,
            jitter: 0.1,
            idle: Duration::from_secs(60),
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds { max_uses: self.max_tasks, max_age: self.max_age, max_rss: self.max_rss, jitter: self.jitter }
    }
}

/// What happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A worker has begun to serve.
    Ready(WorkerId),
    /// A worker will not serve, or could not be started.
    Failed {
        /// Which.
        worker: WorkerId,
        /// Why.
        why: String,
    },
    /// A worker was given a task.
    Began(WorkerId),
    /// A worker is done with its task, whatever came of that, and could take another.
    Finished(WorkerId),
    /// A worker is being ended for the sake of its task, which took too long or is not wanted any more.
    Ending(WorkerId),
    /// Nothing of a worker runs any more.
    Gone(WorkerId),
    /// What a worker was measured to use.
    Measured {
        /// Which.
        worker: WorkerId,
        /// Memory in bytes.
        rss: u64,
    },
    /// The time that [`Effect::Wake`] named has come; or something waits and there is no worker at all.
    Tick {
        /// Tasks that another worker could begin now ([`super::queue::Queue::startable`]).
        waiting: usize,
    },
    /// They are to be otherwise from now on.
    Configured(WorkerSpec),
    /// None is wanted any more; each ends when it is done with its task.
    Closed,
}

/// What is to be done.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Start a worker.
    Start(WorkerId),
    /// Tell the queue that a worker is free.
    Free(WorkerId),
    /// Tell the queue that a worker is gone, end it, and say [`Event::Gone`].
    Retire {
        /// Which.
        worker: WorkerId,
        /// Why.
        why: Why,
    },
    /// There are to be so many from now on.
    Scaled {
        /// As many as before.
        from: usize,
        /// As many as now.
        to: usize,
    },
    /// Say [`Event::Tick`] then; it replaces an earlier one.
    Wake(Now),
}

/// Why a worker is ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// It had so many tasks.
    Worn(u32),
    /// It is so old.
    Old(Duration),
    /// It uses so much memory, in bytes.
    Large(u64),
    /// It will not serve.
    Failed,
    /// There are more than wanted.
    Surplus,
    /// The lane is closed.
    Closed,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worn(tasks) => write!(f, "it has had {tasks} tasks (workers.max_tasks)"),
            Self::Old(age) => write!(f, "it is {} old (workers.max_age)", human(*age)),
            Self::Large(rss) => write!(f, "it uses {} (workers.max_rss)", human_bytes(*rss)),
            Self::Failed => f.write_str("it failed before it had a task"),
            Self::Surplus => f.write_str("there is too little to do for it (workers.down, workers.idle)"),
            Self::Closed => f.write_str(
                "its lane has nothing to do, is to be otherwise, or others need its place (workers.parts)",
            ),
        }
    }
}

/// How many workers do what.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// As many as there are to be.
    pub target: usize,
    /// On their way up.
    pub starting: usize,
    /// Without a task.
    pub free: usize,
    /// With one.
    pub busy: usize,
    /// On their way down.
    pub leaving: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Doing {
    Starting,
    /// The queue was told, or is about to be.
    Free {
        told: bool,
    },
    Busy,
    Leaving,
}

#[derive(Clone, Debug)]
struct Worker {
    doing: Doing,
    /// Since when it does that.
    since: Now,
    /// Whether it has done what it is there for at least once.
    proven: bool,
    /// It is to be replaced, and serves until then.
    outgoing: Option<Why>,
    wear: Wear,
}

/// Starting did not do lately.
#[derive(Clone, Debug)]
struct Setback {
    why: String,
    times: u32,
    until: Now,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Crew {
    spec: WorkerSpec,
    workers: BTreeMap<WorkerId, Worker>,
    scaler: Scaler,
    target: usize,
    next: u64,
    /// When the number is looked at next.
    look: Option<Now>,
    /// Until when the time spent on tasks has been added up.
    counted: Now,
    /// Worker-seconds spent on tasks since the last look, and when that was.
    spent: f64,
    looked: Now,
    setback: Option<Setback>,
    wake: Option<Now>,
    closed: bool,
}

impl Crew {
    /// No workers yet; the first [`Event::Tick`] begins. The crews of one daemon have different numbers, so that no two
    /// workers have one name.
    pub fn new(spec: WorkerSpec, number: u32, now: Now) -> Self {
        Self {
            target: spec.scale.min,
            spec,
            workers: BTreeMap::new(),
            scaler: Scaler::default(),
            next: WorkerId::of(number, 0).0,
            look: None,
            counted: now,
            spent: 0.0,
            looked: now,
            setback: None,
            wake: None,
            closed: false,
        }
    }

    /// How they are to be.
    pub fn spec(&self) -> &WorkerSpec {
        &self.spec
    }

    /// What went wrong lately, until something went right.
    pub fn trouble(&self) -> Option<&str> {
        self.setback.as_ref().map(|setback| setback.why.as_str())
    }

    /// How many do what.
    pub fn figures(&self) -> Figures {
        Figures {
            target: if self.closed { 0 } else { self.target },
            starting: self.count(|worker| worker.doing == Doing::Starting),
            free: self.count(|worker| matches!(worker.doing, Doing::Free { .. })),
            busy: self.busy(),
            leaving: self.count(|worker| worker.doing == Doing::Leaving),
        }
    }

    /// What is to be done, in this order. What comes of a worker that is not known changes nothing.
    pub fn decide(&mut self, event: Event, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.spent += now.since(self.counted).as_secs_f64() * as_float(self.busy());
        self.counted = self.counted.max(now);
        match event {
            Event::Ready(id) => self.ready(id, now),
            Event::Failed { worker, why } => self.failed(worker, why, now, &mut effects),
            Event::Began(id) => self.turn(id, Doing::Busy, now),
            Event::Finished(id) => self.finished(id, now),
            Event::Ending(id) => self.turn(id, Doing::Leaving, now),
            Event::Gone(id) => self.gone(id, now),
            Event::Measured { worker, rss } => {
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.wear.measured(rss);
                }
            }
            Event::Tick { waiting } => self.tick(waiting, now, &mut effects),
            Event::Configured(spec) => {
                self.target = self.target.clamp(spec.scale.min, spec.scale.max.max(spec.scale.min));
                self.spec = spec;
            }
            Event::Closed => self.closed = true,
        }
        self.settle(now, &mut effects);
        effects
    }

    /// What is on its way out stays so.
    fn turn(&mut self, id: WorkerId, doing: Doing, now: Now) {
        if let Some(worker) = self.workers.get_mut(&id).filter(|worker| worker.doing != Doing::Leaving) {
            (worker.doing, worker.since) = (doing, now);
        }
    }

    fn ready(&mut self, id: WorkerId, now: Now) {
        if self.workers.get(&id).is_some_and(|worker| worker.doing == Doing::Starting) {
            self.turn(id, Doing::Free { told: false }, now);
        }
    }

    fn finished(&mut self, id: WorkerId, now: Now) {
        if let Some(worker) = self.workers.get_mut(&id).filter(|worker| worker.doing == Doing::Busy) {
            worker.proven = true;
            worker.wear.used();
            self.setback = None;
            self.turn(id, Doing::Free { told: false }, now);
        }
    }

    fn failed(&mut self, id: WorkerId, why: String, now: Now, effects: &mut Vec<Effect>) {
        if self.workers.get(&id).is_some_and(|worker| worker.doing == Doing::Starting) {
            self.set_back(why, now);
            self.retire(id, Why::Failed, now, effects);
        }
    }

    /// One that dies of its first task, or of nothing, would else be started again and again without a pause.
    fn gone(&mut self, id: WorkerId, now: Now) {
        let Some(worker) = self.workers.remove(&id) else { return };
        if worker.doing != Doing::Leaving && !worker.proven {
            self.set_back("it died before it had finished a task".to_owned(), now);
        }
    }

    fn set_back(&mut self, why: String, now: Now) {
        let times = self.setback.as_ref().map_or(0, |setback| setback.times).saturating_add(1);
        let until = now.after(spread(SETBACK_MIN, SETBACK_MAX, 0.0, times, 0));
        self.setback = Some(Setback { why, times, until });
    }

    fn retire(&mut self, id: WorkerId, why: Why, now: Now, effects: &mut Vec<Effect>) {
        self.turn(id, Doing::Leaving, now);
        effects.push(Effect::Retire { worker: id, why });
    }

    fn tick(&mut self, waiting: usize, now: Now, effects: &mut Vec<Effect>) {
        self.wake = None;
        let has_none = self.target == 0 && waiting > 0;
        if !has_none && self.look.is_some_and(|at| at > now) {
            return;
        }
        let time = now.since(self.looked).as_secs_f64();
        let busy = if time > 0.0 { self.spent / time } else { as_float(self.busy()) };
        let starting = self.count(|worker| worker.doing == Doing::Starting);
        let seen = Seen { workers: self.target, starting, busy, waiting, idle: self.has_idle(now) };
        let from = self.target;
        self.target = match self.scaler.decide(&self.spec.scale, seen) {
            Step::Up(more) => from + more,
            Step::Down => from - 1,
            Step::Stay => from,
        };
        if self.target != from && !self.closed {
            effects.push(Effect::Scaled { from, to: self.target });
        }
        (self.spent, self.looked) = (0.0, now);
        self.look = Some(now.after(self.spec.scale.interval));
    }

    fn has_idle(&self, now: Now) -> bool {
        let idle = |worker: &Worker| {
            matches!(worker.doing, Doing::Free { .. }) && now.since(worker.since) >= self.spec.idle
        };
        self.count(idle) > 0
    }

    /// Everything that follows from how things stand now.
    fn settle(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.retire_the_surplus(now, effects);
        self.replace_the_worn(now, effects);
        self.start(now, effects);
        for (id, worker) in &mut self.workers {
            if worker.doing == (Doing::Free { told: false }) {
                worker.doing = Doing::Free { told: true };
                effects.push(Effect::Free(*id));
            }
        }
        self.set_wake(now, effects);
    }

    /// Those that do not serve yet first, then those that had nothing to do for longest. Who has a task keeps it.
    fn retire_the_surplus(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let target = if self.closed { 0 } else { self.target };
        let outgoing = self.count(|worker| worker.stays() && worker.outgoing.is_some());
        let allowed = if self.closed { 0 } else { target + outgoing };
        let mut surplus = self.count(Worker::stays).saturating_sub(allowed);
        let mut order: Vec<(bool, Now, WorkerId)> = Vec::new();
        for (id, worker) in &self.workers {
            match worker.doing {
                Doing::Starting => order.push((false, worker.since, *id)),
                Doing::Free { .. } => order.push((true, worker.since, *id)),
                Doing::Busy | Doing::Leaving => {}
            }
        }
        order.sort_unstable();
        let why = if self.closed { Why::Closed } else { Why::Surplus };
        for (_, _, id) in order {
            if surplus == 0 {
                return;
            }
            surplus -= 1;
            self.retire(id, why, now, effects);
        }
    }

    /// Names the next to be replaced, and ends it once there are enough without it.
    fn replace_the_worn(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if !self.workers.values().any(|worker| worker.stays() && worker.outgoing.is_some()) {
            let bounds = self.spec.bounds();
            let due = self.workers.iter().filter(|(_, worker)| worker.serves());
            let due = due.filter_map(|(id, worker)| worker.wear.is_due(&bounds, now).map(|why| (*id, why)));
            let Some((id, why)) = due.min_by_key(|(id, _)| *id) else { return };
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.outgoing = Some(match why {
                    Worn::Uses(tasks) => Why::Worn(tasks),
                    Worn::Age(age) => Why::Old(age),
                    Worn::Rss(rss) => Why::Large(rss),
                });
            }
        }
        let fit = self.count(|worker| worker.serves() && worker.outgoing.is_none());
        let free = |(id, worker): (&WorkerId, &Worker)| match worker.doing {
            Doing::Free { .. } => worker.outgoing.map(|why| (*id, why)),
            _ => None,
        };
        if fit >= self.target
            && let Some((id, why)) = self.workers.iter().find_map(free)
        {
            self.retire(id, why, now, effects);
        }
    }

    fn start(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.closed || self.setback.as_ref().is_some_and(|setback| now < setback.until) {
            return;
        }
        let there = self.count(|worker| worker.stays() && worker.outgoing.is_none());
        for _ in there..self.target {
            self.next += 1;
            let id = WorkerId(self.next);
            let wear = Wear::new(self.next, now);
            let worker = Worker { doing: Doing::Starting, since: now, proven: false, outgoing: None, wear };
            self.workers.insert(id, worker);
            effects.push(Effect::Start(id));
        }
    }

    fn set_wake(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.closed {
            return;
        }
        let bounds = self.spec.bounds();
        let ages = self.workers.values().filter(|worker| worker.serves() && worker.outgoing.is_none());
        let ages = ages.filter_map(|worker| worker.wear.age_is_up(&bounds));
        let setback = self.setback.as_ref().map(|setback| setback.until);
        let next = ages.chain(setback).chain(self.look).filter(|at| *at > now).min();
        if let Some(at) = next
            && self.wake.is_none_or(|known| at < known || known <= now)
        {
            self.wake = Some(at);
            effects.push(Effect::Wake(at));
        }
    }

    fn count(&self, of: impl Fn(&Worker) -> bool) -> usize {
        self.workers.values().filter(|worker| of(worker)).count()
    }

    fn busy(&self) -> usize {
        self.count(|worker| worker.doing == Doing::Busy)
    }
}

impl Worker {
    fn stays(&self) -> bool {
        self.doing != Doing::Leaving
    }

    fn serves(&self) -> bool {
        matches!(self.doing, Doing::Free { .. } | Doing::Busy)
    }
}

fn as_float(count: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "workers are few enough")]
    let count = count as f64;
    count
}
