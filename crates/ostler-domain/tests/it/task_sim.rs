//! Lives of a queue by chance, each from a seed: workers that die and hang, attempts that fail, what is said twice or too
//! late, limits that change, cancels, deadlines, and daemons that crash. A model that knows all of it, slowly and simply,
//! says after each step what must hold:
//!
//! - Nothing begins too early, too late, twice at once, on a worker that is not free or of another lane, beyond its
//!   project's limit, or after it ended. Each attempt of a task has the next number.
//! - What begins has the highest priority that is to be had, counting how long it waited, and is the first of its project.
//! - No worker is left without a task while there is one for it.
//! - What has passed its deadline has expired. In the end each task ended, once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ostler_domain::Now;
use ostler_domain::task::queue::{Effect, Event, How, Place, ProjectLimits, Queue, QueueSpec, Queued};
use ostler_domain::task::retry::RetrySpec;
use ostler_domain::task::{Lane, Priority, ProjectName, WorkerId};

use crate::support::{Dice, secs};
use crate::task_queue::project;

const SEEDS: u64 = 120;
const STEPS: usize = 300;

#[derive(Clone, Debug, PartialEq)]
enum State {
    Waiting,
    Running { attempt: u32, worker: WorkerId, until: Now },
}

/// A task, as the journal would know it.
#[derive(Clone, Debug)]
struct Task {
    told: Queued,
    state: State,
    cancelled: bool,
    /// Accepted again while its last attempt is being ended.
    again: Option<Queued>,
}

struct World {
    dice: Dice,
    queue: Queue,
    spec: QueueSpec,
    now: Now,
    wake: Option<Now>,
    /// Those that have not ended.
    tasks: BTreeMap<u64, Task>,
    limits: BTreeMap<ProjectName, ProjectLimits>,
    lanes: Vec<Lane>,
    projects: Vec<ProjectName>,
    /// Free ones, as the queue was told.
    free: BTreeMap<WorkerId, Lane>,
    /// All, and whether they have a task.
    workers: BTreeMap<WorkerId, (Lane, Option<u64>)>,
    next_worker: u64,
    next_seq: u64,
    retry: RetrySpec,
    ended: BTreeSet<u64>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let ageing = if dice.chance(10) { Duration::ZERO } else { secs(1 + dice.below(40)) };
        let spec = QueueSpec {
            ageing,
            queued: 200,
            project_queued: 90,
            project_running: 1 + dice.index(4),
            projects: 5,
        };
        let lanes = ["builtin", "python", "call"].iter().take(1 + dice.index(3));
        Self {
            queue: Queue::new(spec.clone()),
            spec,
            now: Now(secs(1_000_000)),
            wake: None,
            tasks: BTreeMap::new(),
            limits: BTreeMap::new(),
            lanes: lanes.map(|name| name.parse().expect("a name")).collect(),
            projects: (0..1 + dice.below(7)).map(|n| project(&format!("p{n}"))).collect(),
            free: BTreeMap::new(),
            workers: BTreeMap::new(),
            next_worker: 0,
            next_seq: 0,
            retry: RetrySpec::default(),
            ended: BTreeSet::new(),
            dice,
        }
    }

    fn running_max(&self, project: &ProjectName) -> usize {
        self.limits.get(project).and_then(|limits| limits.running).unwrap_or(self.spec.project_running)
    }

    fn running(&self, project: &ProjectName) -> usize {
        let runs =
            |task: &&Task| matches!(task.state, State::Running { .. }) && task.told.project == *project;
        self.tasks.values().filter(runs).count()
    }

    /// How many more of each project may begin.
    fn room(&self) -> BTreeMap<&ProjectName, usize> {
        let mut room: BTreeMap<&ProjectName, usize> =
            self.projects.iter().map(|project| (project, self.running_max(project))).collect();
        for task in self.tasks.values().filter(|task| task.state != State::Waiting) {
            let room = room.get_mut(&task.told.project).expect("all are there");
            *room = room.saturating_sub(1);
        }
        room
    }

    fn effective(&self, task: &Queued) -> u128 {
        let steps =
            self.now.since(task.ready).as_nanos().checked_div(self.spec.ageing.as_nanos()).unwrap_or(0);
        (u128::from(task.priority.get()) + steps).min(10)
    }

    /// What could begin in a lane now.
    fn eligible(&self, lane: &Lane) -> impl Iterator<Item = &Queued> {
        let room = self.room();
        self.tasks.values().filter(|task| task.state == State::Waiting).map(|task| &task.told).filter(
            move |task| {
                task.lane == *lane
                    && task.ready <= self.now
                    && self.is_in_time(task)
                    && room[&task.project] > 0
            },
        )
    }

    fn is_in_time(&self, task: &Queued) -> bool {
        task.deadline.is_none_or(|deadline| self.now < deadline && task.ready < deadline)
    }

    fn tell(&mut self, event: Event) {
        if event == Event::Tick {
            self.wake = None;
        }
        let effects = self.queue.decide(event, self.now);
        effects.into_iter().for_each(|effect| self.perform(effect));
        self.check();
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Assign { seq, attempt, worker } => self.begun(seq, attempt, worker),
            Effect::Expire { seq } => {
                let task = &self.tasks[&seq];
                assert_eq!(task.state, State::Waiting, "task {seq} expires");
                assert!(!self.is_in_time(&task.told), "task {seq} expires early");
                self.end(seq);
            }
            Effect::Dropped { seq } => {
                assert!(self.tasks[&seq].cancelled, "task {seq} is dropped");
                self.end(seq);
            }
            Effect::Stop { seq, attempt, worker } => {
                let task = self.tasks.get_mut(&seq).expect("it is known");
                assert!(task.cancelled);
                let State::Running { attempt: runs, worker: on, until } = &mut task.state else {
                    panic!("task {seq} does not run")
                };
                assert_eq!((*runs, *on), (attempt, worker));
                *until = self.now;
            }
            Effect::Wake(at) => {
                assert!(at >= self.now);
                self.wake = Some(at);
            }
        }
    }

    fn begun(&mut self, seq: u64, attempt: u32, worker: WorkerId) {
        let told = self.tasks[&seq].told.clone();
        assert_eq!(self.tasks[&seq].state, State::Waiting, "task {seq} begins");
        assert_eq!(attempt, told.attempt, "attempts of task {seq} are numbered one by one");
        assert!(told.ready <= self.now, "task {seq} begins before it is ready");
        assert!(self.is_in_time(&told), "task {seq} begins after its deadline");
        assert_eq!(
            self.free.remove(&worker),
            Some(told.lane.clone()),
            "{worker:?} is not free for task {seq}"
        );
        let (running, max) = (self.running(&told.project), self.running_max(&told.project));
        assert!(running < max, "{:?} runs {running} of at most {max}", told.project);
        self.assert_first(&told);
        let until = self.now.after(Duration::from_millis(self.dice.below(20_000)));
        self.workers.get_mut(&worker).expect("it is known").1 = Some(seq);
        self.tasks.get_mut(&seq).expect("it is known").state = State::Running { attempt, worker, until };
    }

    fn assert_first(&self, told: &Queued) {
        let level = self.effective(told);
        for other in self.eligible(&told.lane) {
            let theirs = self.effective(other);
            assert!(theirs <= level, "{told:?} at {level} begins before {other:?} at {theirs}");
            let first = other.project != told.project
                || theirs < level
                || (other.ready, other.seq) >= (told.ready, told.seq);
            assert!(first, "{told:?} begins before {other:?} of its own project");
        }
    }

    fn end(&mut self, seq: u64) {
        assert!(self.ended.insert(seq), "task {seq} ends twice");
        self.tasks.remove(&seq);
    }

    fn check(&self) {
        let of = |state: fn(&State) -> bool| self.tasks.values().filter(|task| state(&task.state)).count();
        let figures = self.queue.figures();
        assert_eq!(figures.queued, of(|state| *state == State::Waiting));
        assert_eq!(figures.running, of(|state| matches!(state, State::Running { .. })));
        assert_eq!(figures.reserved, 0);
        for task in self.tasks.values().filter(|task| task.state == State::Waiting) {
            assert!(self.is_in_time(&task.told), "{:?} should have expired", task.told);
            let place = if task.told.ready > self.now { Place::Delayed } else { Place::Ready };
            assert_eq!(self.queue.place(task.told.seq), Some(place));
        }
        for lane in &self.lanes {
            let figures = self.queue.lane(lane);
            assert_eq!(figures.free, self.free.values().filter(|of| *of == lane).count());
            let (could, would) = (self.eligible(lane).count(), self.startable(lane));
            assert!(figures.free == 0 || could == 0, "a worker of {lane} is idle and {could} tasks wait");
            assert_eq!(self.queue.startable(lane, 1000), would);
        }
    }

    /// What more workers of a lane could begin.
    fn startable(&self, lane: &Lane) -> usize {
        let mut room = self.room();
        let could = |task: &&Queued| {
            let left = room.get_mut(&task.project).expect("all are there");
            let fits = *left > 0;
            *left = left.saturating_sub(1);
            fits
        };
        self.eligible(lane).filter(could).count()
    }

    fn submit(&mut self) {
        let count = [1, 1, 1, 8][self.dice.index(4)];
        let project = self.projects[self.dice.index(self.projects.len())].clone();
        let waiting = self.tasks.values().filter(|task| task.state == State::Waiting);
        let own = waiting.clone().filter(|task| task.told.project == project).count();
        let max =
            self.limits.get(&project).and_then(|limits| limits.queued).unwrap_or(self.spec.project_queued);
        let fits = waiting.count() + count <= self.spec.queued && own + count <= max;
        match self.queue.reserve(&project, count) {
            // There may be too many projects.
            Err(_) => assert!(!fits || self.projects.len() > self.spec.projects, "{project} is refused"),
            Ok(()) => {
                assert!(fits, "{project} has {own} and gets {count} more");
                if self.dice.chance(10) {
                    // The journal could not take them.
                    return self.queue.release(&project, count);
                }
                let tasks: Vec<Queued> = (0..count).map(|_| self.task(&project)).collect();
                for told in &tasks {
                    self.tasks.insert(
                        told.seq,
                        Task { told: told.clone(), state: State::Waiting, cancelled: false, again: None },
                    );
                }
                self.tell(Event::Submitted(tasks));
            }
        }
    }

    fn task(&mut self, project: &ProjectName) -> Queued {
        self.next_seq += 1;
        let delay = if self.dice.chance(30) { self.dice.below(60_000) } else { 0 };
        let ready = self.now.after(Duration::from_millis(delay));
        let patience = Duration::from_millis(self.dice.below(200_000));
        Queued {
            seq: self.next_seq,
            lane: self.lanes[self.dice.index(self.lanes.len())].clone(),
            project: project.clone(),
            priority: Priority::try_from(u8::try_from(self.dice.below(11)).expect("small"))
                .expect("up to 10"),
            ready,
            deadline: self.dice.chance(25).then(|| self.now.after(patience)),
            attempt: 1,
        }
    }

    fn start_worker(&mut self) {
        self.next_worker += 1;
        let (worker, lane) =
            (WorkerId(self.next_worker), self.lanes[self.dice.index(self.lanes.len())].clone());
        self.workers.insert(worker, (lane, None));
        self.is_free(worker);
    }

    fn is_free(&mut self, worker: WorkerId) {
        let (lane, _) = self.workers[&worker].clone();
        self.free.insert(worker, lane.clone());
        self.tell(Event::WorkerFree { lane, worker });
    }

    /// A worker dies, or is killed since it hangs; what it ran is tried again or is over.
    fn kill_worker(&mut self) {
        if self.workers.is_empty() {
            return;
        }
        let at = self.dice.index(self.workers.len());
        let worker = *self.workers.keys().nth(at).expect("within");
        let (_, task) = self.workers.remove(&worker).expect("it is known");
        self.free.remove(&worker);
        self.tell(Event::WorkerGone(worker));
        if let Some(seq) = task {
            self.attempt_ended(seq, false);
        }
    }

    fn attempt_ended(&mut self, seq: u64, well: bool) {
        let task = self.tasks.get_mut(&seq).expect("it is known");
        let State::Running { attempt, .. } = task.state else { panic!("task {seq} does not run") };
        if let Some(again) = task.again.take() {
            *task = Task { told: again, state: State::Waiting, cancelled: false, again: None };
            let how = if well { How::Over } else { How::Retry { ready: self.now } };
            return self.tell(Event::Ended { seq, attempt, how });
        }
        if self.dice.chance(10) {
            // Its worker was gone, or the journal could not take its beginning.
            let ready = self.now.after(secs(self.dice.below(3)));
            task.state = State::Waiting;
            task.told = Queued { attempt, ready, ..task.told.clone() };
            return self.tell(Event::Ended { seq, attempt, how: How::NotBegun { ready } });
        }
        let pause = self.retry.pause(seq, attempt).filter(|_| !well);
        let ready = self.now.after(pause.unwrap_or_default());
        let how = if pause.is_some() { How::Retry { ready } } else { How::Over };
        if pause.is_none() {
            self.end(seq);
        } else {
            task.state = State::Waiting;
            task.told = Queued { attempt: attempt + 1, ready, ..task.told.clone() };
        }
        self.tell(Event::Ended { seq, attempt, how });
    }

    /// Whatever is due by then happens, in its order.
    fn wait(&mut self, until: Now) {
        loop {
            let ends = self.tasks.iter().filter_map(|(seq, task)| match task.state {
                State::Running { until, .. } => Some((until, *seq)),
                _ => None,
            });
            let end = ends.min().filter(|(at, _)| *at <= until);
            let wake = self.wake.filter(|at| *at <= until);
            match (end, wake) {
                (Some((at, seq)), wake) if wake.is_none_or(|wake| at < wake) => {
                    self.now = self.now.max(at);
                    self.finish(seq);
                }
                (_, Some(at)) => {
                    self.now = self.now.max(at);
                    self.tell(Event::Tick);
                }
                _ => break,
            }
        }
        self.now = self.now.max(until);
        // Deadlines and delays up to here have been told of by then.
        self.tell(Event::Tick);
    }

    /// An attempt comes to its end on a worker that lives on.
    fn finish(&mut self, seq: u64) {
        let State::Running { worker, .. } = self.tasks[&seq].state else { panic!("task {seq} does not run") };
        let well = self.dice.chance(70);
        self.workers.get_mut(&worker).expect("it lives").1 = None;
        if self.dice.chance(50) {
            self.is_free(worker);
            self.attempt_ended(seq, well);
        } else {
            self.attempt_ended(seq, well);
            self.is_free(worker);
        }
    }

    /// Cancels a task; one that runs may be wanted again before it has ended.
    fn cancel(&mut self) {
        let Some(seq) = self.any_task() else { return };
        match self.tasks.get_mut(&seq) {
            Some(Task { again: Some(_), .. }) => return,
            Some(task) => task.cancelled = true,
            None => {}
        }
        self.tell(Event::Cancelled(seq));
        if self.dice.chance(50)
            && let Some(task) = self.tasks.get_mut(&seq)
            && let State::Running { attempt, .. } = task.state
        {
            let again = Queued { attempt: attempt + 1, ready: self.now, deadline: None, ..task.told.clone() };
            task.again = Some(again.clone());
            self.tell(Event::Restored(vec![again]));
        }
    }

    /// Mostly one that has not ended.
    fn any_task(&mut self) -> Option<u64> {
        if self.tasks.is_empty() || self.dice.chance(20) {
            return (self.next_seq > 0).then(|| 1 + self.dice.below(self.next_seq));
        }
        self.tasks.keys().nth(self.dice.index(self.tasks.len())).copied()
    }

    /// What was said before is said again, of an attempt that is over, or of one that is not yet.
    fn babble(&mut self) {
        let Some(seq) = self.any_task() else { return };
        let how = if self.dice.chance(50) { How::Over } else { How::Retry { ready: self.now } };
        let running = self.tasks.get(&seq).and_then(|task| match task.state {
            State::Running { attempt, .. } => Some(attempt),
            State::Waiting => None,
        });
        for attempt in (0..5).filter(|attempt| running != Some(*attempt)) {
            self.tell(Event::Ended { seq, attempt, how });
        }
        if let Some(task) = self.tasks.get(&seq) {
            self.tell(Event::Submitted(vec![task.told.clone()]));
        }
        if let Some((worker, lane)) =
            self.free.first_key_value().map(|(worker, lane)| (*worker, lane.clone()))
        {
            self.tell(Event::WorkerFree { lane, worker });
        }
    }

    fn change_limits(&mut self) {
        let project = self.projects[self.dice.index(self.projects.len())].clone();
        let own = ProjectLimits {
            running: self.dice.chance(70).then(|| self.dice.index(4)),
            queued: self.dice.chance(30).then(|| self.dice.index(60)),
            weight: u32::try_from(self.dice.below(6)).expect("small"),
        };
        let limits = self.dice.chance(60).then_some(own);
        match limits {
            Some(limits) => self.limits.insert(project.clone(), limits),
            None => self.limits.remove(&project),
        };
        self.tell(Event::ProjectLimits { project, limits });
    }

    fn configure(&mut self) {
        self.spec.project_running = self.dice.index(5);
        self.spec.ageing = secs(self.dice.below(60));
        self.tell(Event::Configured(self.spec.clone()));
    }

    /// The daemon and its workers are gone; another is filled from the journal, where what ran is to be tried again.
    fn crash(&mut self) {
        self.queue = Queue::new(self.spec.clone());
        self.wake = None;
        self.free.clear();
        self.workers.clear();
        let mut restored = Vec::new();
        for task in self.tasks.values_mut() {
            if let State::Running { attempt, .. } = task.state {
                task.told.attempt = attempt + 1;
                task.told = task.again.take().unwrap_or_else(|| task.told.clone());
                task.state = State::Waiting;
            }
            if task.state == State::Waiting {
                // A cancel that was told of and not carried out is the driver's to repeat.
                task.cancelled = false;
                restored.push(task.told.clone());
            }
        }
        let limits: Vec<_> = self.limits.clone().into_iter().collect();
        self.queue
            .decide(Event::Restored(restored), self.now)
            .into_iter()
            .for_each(|effect| self.perform(effect));
        for (project, limits) in limits {
            self.queue.decide(Event::ProjectLimits { project, limits: Some(limits) }, self.now);
        }
        self.check();
    }

    fn step(&mut self) {
        match self.dice.below(100) {
            0..35 => self.submit(),
            35..42 => self.start_worker(),
            42..46 => self.kill_worker(),
            46..80 => {
                let until = self.now.after(Duration::from_millis(self.dice.below(8_000)));
                self.wait(until);
            }
            80..86 => self.cancel(),
            86..91 => self.babble(),
            91..97 => self.change_limits(),
            97..99 => self.configure(),
            _ => self.crash(),
        }
    }

    /// With workers in every lane and no project held up, everything ends.
    fn come_to_rest(&mut self) {
        for project in self.projects.clone() {
            self.limits.remove(&project);
            self.tell(Event::ProjectLimits { project, limits: None });
        }
        self.spec.project_running = 2;
        self.tell(Event::Configured(self.spec.clone()));
        for _ in 0..12 {
            self.start_worker();
        }
        for (at, lane) in self.lanes.clone().into_iter().enumerate() {
            let worker = WorkerId(1_000_000 + at as u64);
            self.workers.insert(worker, (lane, None));
            self.is_free(worker);
        }
        for _ in 0..200 {
            if !self.tasks.is_empty() {
                let until = self.now.after(secs(60));
                self.wait(until);
            }
        }
        assert!(self.tasks.is_empty(), "{} tasks never end", self.tasks.len());
        assert_eq!(self.ended.len() as u64, self.next_seq);
        assert_eq!(self.queue.figures().queued + self.queue.figures().running, 0);
    }
}

#[test]
fn whatever_happens_the_queue_keeps_its_promises() {
    for seed in 0..SEEDS {
        let live = move || {
            let mut world = World::new(seed);
            (0..STEPS).for_each(|_| world.step());
            world.come_to_rest();
        };
        if let Err(panic) = std::panic::catch_unwind(live) {
            println!("this was seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
