//! What the decisions say, done: of the queue, and of the crew of each lane.
//!
//! Whoever has something to say takes the lock, tells the decisions, and does what follows: all of it is quick. What takes
//! time (the journal, a worker, a call) is a task that comes back with another event.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use ostler_domain::event::Happening;
use ostler_domain::instance::Now;
use ostler_domain::task::queue::{self, Queue, QueueSpec};
use ostler_domain::task::worker::{self, Crew};
use ostler_domain::task::{Lane, WorkerId};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::follow::Follow;
use super::lanes::Staff;
use super::shelf::Shelf;
use super::{Tasks, attempt, crew};
use crate::server::Server;

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Make this attempt.
    Run { seq: u64, attempt: u32 },
    /// End this attempt: its task is not wanted any more.
    Stop { seq: u64, attempt: u32 },
}

/// Orders that may wait for a worker: one to run, and one to stop that.
const ORDERS: usize = 4;

/// A lane as it is staffed.
#[derive(Debug)]
pub(super) struct LaneDesk {
    pub(super) name: Lane,
    pub(super) staff: Staff,
    /// None where no process is needed.
    pub(super) crew: Option<Crew>,
    pub(super) server: Option<Arc<Server>>,
    workers: HashMap<WorkerId, mpsc::Sender<Order>>,
    /// Why those leave that were told to.
    leaving: HashMap<WorkerId, String>,
    pub(super) timer: Option<AbortHandle>,
    pub(super) made: Now,
    /// When it was made, or last had something to do.
    pub(super) used: Now,
    /// Its workers end, and it is forgotten then.
    pub(super) closing: bool,
}

impl LaneDesk {
    pub(super) fn new(
        name: Lane,
        staff: Staff,
        crew: Option<Crew>,
        server: Option<Arc<Server>>,
        now: Now,
    ) -> Self {
        Self {
            name,
            staff,
            crew,
            server,
            workers: HashMap::new(),
            leaving: HashMap::new(),
            timer: None,
            made: now,
            used: now,
            closing: false,
        }
    }

    /// What its events are about.
    fn subject(&self) -> String {
        self.server.as_ref().map_or_else(|| self.name.to_string(), |server| server.spec.name.to_string())
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) queue: Queue,
    /// The lanes that have workers, by numbers that are never used twice.
    pub(super) lanes: BTreeMap<u32, LaneDesk>,
    pub(super) by_lane: HashMap<Lane, u32>,
    pub(super) latest: u32,
    /// Parts of lanes that have something to do and wait for a place.
    pub(super) line: VecDeque<Lane>,
    pub(super) in_line: HashSet<Lane>,
    pub(super) line_timer: Option<AbortHandle>,
    /// What an earlier daemon left is being read: nobody has workers before the last of it is there, so that what is urgent
    /// begins first.
    pub(super) is_taking_up: bool,
    /// Calls that run, by task and attempt.
    calls: HashMap<(u64, u32), AbortHandle>,
    pub(super) follows: HashMap<u64, Arc<Follow>>,
    /// Tasks with an attempt that was assigned and has not begun in the journal yet.
    pub(super) beginning: HashSet<u64>,
    /// Tasks whose deadlines have passed, which somebody is burying while there are any.
    expired: Vec<u64>,
    is_burying: bool,
    pub(super) shelf: Shelf,
    timer: Option<AbortHandle>,
}

/// What is to be told next.
pub(super) enum Told {
    Queue(queue::Event),
    Crew(u32, worker::Event),
    /// Who stands in line may have a place now.
    Line,
}

impl Desk {
    pub(super) fn new(spec: QueueSpec) -> Self {
        Self {
            queue: Queue::new(spec),
            lanes: BTreeMap::new(),
            by_lane: HashMap::new(),
            latest: 0,
            line: VecDeque::new(),
            in_line: HashSet::new(),
            line_timer: None,
            calls: HashMap::new(),
            follows: HashMap::new(),
            beginning: HashSet::new(),
            is_taking_up: false,
            expired: Vec::new(),
            is_burying: false,
            shelf: Shelf::default(),
            timer: None,
        }
    }

    /// Some of those whose deadlines have passed; with none, whoever asks stops asking.
    pub(super) fn take_expired(&mut self, most: usize) -> Option<Vec<u64>> {
        let rest = self.expired.split_off(self.expired.len().min(most));
        let taken = std::mem::replace(&mut self.expired, rest);
        self.is_burying = !taken.is_empty();
        self.is_burying.then_some(taken)
    }

    fn orders_of(&self, worker: WorkerId) -> Option<&mpsc::Sender<Order>> {
        self.lanes.get(&worker.crew())?.workers.get(&worker)
    }

    /// Parts of lanes that have a place.
    pub(super) fn parts(&self) -> usize {
        self.lanes.values().filter(|lane| lane.name.project().is_some()).count()
    }
}

impl Tasks {
    /// Tells the queue something, and does what follows.
    pub(super) fn tell(self: &Arc<Self>, event: queue::Event) {
        let ended = matches!(event, queue::Event::Ended { .. });
        self.go_on(VecDeque::from([Told::Queue(event)]));
        if ended {
            self.quiet.notify_waiters();
        }
    }

    /// Tells the crew that a worker belongs to something.
    pub(super) fn tell_crew(self: &Arc<Self>, worker: WorkerId, event: worker::Event) {
        self.go_on(VecDeque::from([Told::Crew(worker.crew(), event)]));
    }

    /// A worker takes nothing any more, and will be gone soon.
    pub(super) fn worker_ends(self: &Arc<Self>, worker: WorkerId) {
        let lane = worker.crew();
        if let Some(lane) = self.desk().lanes.get_mut(&lane) {
            lane.workers.remove(&worker);
        }
        self.go_on(VecDeque::from([
            Told::Queue(queue::Event::WorkerGone(worker)),
            Told::Crew(lane, worker::Event::Ending(worker)),
        ]));
    }

    /// There is no such worker any more.
    pub(super) fn worker_gone(self: &Arc<Self>, worker: WorkerId) {
        let lane = worker.crew();
        if let Some(lane) = self.desk().lanes.get_mut(&lane) {
            lane.workers.remove(&worker);
            lane.leaving.remove(&worker);
        }
        self.go_on(VecDeque::from([
            Told::Queue(queue::Event::WorkerGone(worker)),
            Told::Crew(lane, worker::Event::Gone(worker)),
        ]));
    }

    /// Why a worker has no orders any more.
    pub(super) fn why_retired(&self, worker: WorkerId) -> String {
        let desk = self.desk();
        let why = desk.lanes.get(&worker.crew()).and_then(|lane| lane.leaving.get(&worker).cloned());
        why.unwrap_or_else(|| "it has no orders any more".to_owned())
    }

    pub(super) fn go_on(self: &Arc<Self>, mut told: VecDeque<Told>) {
        let mut desk = self.desk();
        while let Some(next) = told.pop_front() {
            let now = self.now();
            match next {
                Told::Queue(event) => {
                    for effect in desk.queue.decide(event, now) {
                        self.follow_queue(&mut desk, effect, &mut told);
                    }
                    self.staff_wanting(&mut desk, &mut told);
                }
                Told::Crew(number, event) => {
                    let Some(lane) = desk.lanes.get_mut(&number) else { continue };
                    if let worker::Event::Finished(_) = event {
                        lane.used = now;
                    }
                    let Some(crew) = lane.crew.as_mut() else { continue };
                    for effect in crew.decide(event, now) {
                        self.follow_crew(&mut desk, number, effect, &mut told);
                    }
                    self.forget_if_over(&mut desk, number, &mut told);
                }
                Told::Line => self.let_in(&mut desk, &mut told),
            }
        }
    }

    fn follow_queue(self: &Arc<Self>, desk: &mut Desk, effect: queue::Effect, told: &mut VecDeque<Told>) {
        match effect {
            queue::Effect::Assign { seq, attempt, worker } => self.assign(desk, (seq, attempt), worker, told),
            queue::Effect::Expire { seq } => {
                desk.shelf.take(seq);
                desk.expired.push(seq);
                if !std::mem::replace(&mut desk.is_burying, true) {
                    tokio::spawn(attempt::expire(Arc::clone(self)));
                }
            }
            queue::Effect::Dropped { seq } => drop(desk.shelf.take(seq)),
            queue::Effect::Stop { seq, attempt, worker } => {
                if let Some(call) = desk.calls.get(&(seq, attempt)) {
                    call.abort();
                } else if let Some(orders) = desk.orders_of(worker) {
                    // One that takes no more orders is ending, and its attempt with it.
                    let _ = orders.try_send(Order::Stop { seq, attempt });
                }
            }
            queue::Effect::Wake(at) => {
                let tasks = Arc::clone(self);
                let timer = self.at(at, move || tasks.tell(queue::Event::Tick));
                if let Some(earlier) = desk.timer.replace(timer) {
                    earlier.abort();
                }
            }
        }
    }

    fn assign(
        self: &Arc<Self>,
        desk: &mut Desk,
        (seq, attempt): (u64, u32),
        worker: WorkerId,
        told: &mut VecDeque<Told>,
    ) {
        desk.beginning.insert(seq);
        let lane = worker.crew();
        let now = self.now();
        let has_crew = desk.lanes.get_mut(&lane).is_some_and(|lane| {
            lane.used = now;
            lane.crew.is_some()
        });
        // A slot of the lane of calls: that lane is never forgotten.
        if !has_crew && desk.lanes.contains_key(&lane) {
            let call = tokio::spawn(super::call::make(Arc::clone(self), (seq, attempt), worker));
            desk.calls.insert((seq, attempt), call.abort_handle());
            // Also where it is aborted.
            let tasks = Arc::clone(self);
            tokio::spawn(async move {
                let aborted = call.await.is_err();
                tasks.call_over(seq, attempt, worker, aborted).await;
            });
            return;
        }
        told.push_back(Told::Crew(lane, worker::Event::Began(worker)));
        let order = Order::Run { seq, attempt };
        let sent = desk.orders_of(worker).is_some_and(|orders| orders.try_send(order).is_ok());
        if !sent {
            // Not under the lock, which is held here.
            let tasks = Arc::clone(self);
            tokio::spawn(async move { attempt::lost(&tasks, seq, attempt) });
        }
    }

    pub(super) fn forget_call(&self, seq: u64, attempt: u32) {
        self.desk().calls.remove(&(seq, attempt));
    }

    fn follow_crew(
        self: &Arc<Self>,
        desk: &mut Desk,
        number: u32,
        effect: worker::Effect,
        told: &mut VecDeque<Told>,
    ) {
        let Some(lane) = desk.lanes.get_mut(&number) else { return };
        match effect {
            worker::Effect::Start(worker) => self.start_worker(lane, (number, worker), told),
            worker::Effect::Free(worker) => {
                let lane = lane.name.clone();
                told.push_back(Told::Queue(queue::Event::WorkerFree { lane, worker }));
            }
            worker::Effect::Retire { worker, why } => {
                told.push_back(Told::Queue(queue::Event::WorkerGone(worker)));
                // It ends when it has no orders any more.
                if lane.workers.remove(&worker).is_some() {
                    lane.leaving.insert(worker, why.to_string());
                }
            }
            worker::Effect::Scaled { from, to } => {
                let happening = Happening::WorkersScaled { from, to };
                self.core.events.record(&lane.subject(), happening);
            }
            worker::Effect::Wake(at) => {
                let tasks = Arc::clone(self);
                let timer = self.at(at, move || tasks.tick_crew(number));
                if let Some(earlier) = lane.timer.replace(timer) {
                    earlier.abort();
                }
            }
        }
    }

    fn tick_crew(self: &Arc<Self>, number: u32) {
        let mut told = VecDeque::new();
        {
            let mut desk = self.desk();
            if !self.close_if_idle(&mut desk, number, &mut told) {
                let waiting = desk.lanes.get(&number).map_or(0, |at| desk.queue.startable(&at.name, ENOUGH));
                told.push_back(Told::Crew(number, worker::Event::Tick { waiting }));
            }
        }
        self.go_on(told);
    }

    fn start_worker(
        self: &Arc<Self>,
        at: &mut LaneDesk,
        (lane, worker): (u32, WorkerId),
        told: &mut VecDeque<Told>,
    ) {
        let made = match at.server.clone() {
            Some(server) => server.create_worker(&self.core).map_err(|why| why.to_string()),
            None => Err("its lane has no workers".to_owned()),
        };
        match made {
            Ok(handle) => {
                let (orders, heard) = mpsc::channel(ORDERS);
                at.workers.insert(worker, orders);
                let staff = at.staff.clone();
                tokio::spawn(crew::run(Arc::clone(self), worker, handle, heard, staff));
            }
            Err(why) => {
                let happening = Happening::WorkerError { why: why.clone() };
                let subject = at.subject();
                self.core.events.record_seldom(&subject, &subject, happening);
                told.push_back(Told::Crew(lane, worker::Event::Failed { worker, why }));
                told.push_back(Told::Crew(lane, worker::Event::Gone(worker)));
            }
        }
    }

    /// Says something then.
    pub(super) fn at(&self, at: Now, say: impl FnOnce() + Send + 'static) -> AbortHandle {
        let instant = self.instant(at);
        tokio::spawn(async move {
            tokio::time::sleep_until(instant).await;
            say();
        })
        .abort_handle()
    }
}

/// As many waiting tasks are counted, at most.
pub(super) const ENOUGH: usize = 1024;
