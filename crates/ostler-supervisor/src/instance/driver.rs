//! The task that owns one instance.
//!
//! In: wishes of people and clients, reports of the guard, results of its own effects, one timer.
//! Out: effects, the snapshot, the event log. Every report carries its generation; the pure core drops the
//! stale ones. Effects that take time (the spawn, the handshake, draining) run as tasks that report back, so
//! the driver never waits for a process.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use crate::watch;
use futures_util::future::join_all;
use ostler_domain::event::{Happening, Severity};
use ostler_domain::health::{HealthEvent, ProbeId};
use ostler_domain::instance::{Effect, Event, Exit, Instance, Policy, State, TimerKind};
use ostler_domain::{Era, Generation, InstanceId, Launch, PortWish, Transport, ports};
use ostler_mcp::mux::Settings;
use ostler_os::meter::TreeRoot;
use ostler_os::{GuardEvent, Limits, Mark, SpawnRequest};
use ostler_store::{ProcessKey, TreeRecord};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::ailments::{Ailment, Ailments};
use super::handshake::{self, Failed, Need, Opened};
use super::health::{Verdict, Watch};
use super::probe::Subject;
use super::{Ended, GuardedTree, Holds, InstanceHandle, Owner, Snapshot};
use crate::admission::Place;
use crate::capture::{LAST_WORDS, capture};
use crate::cleanup::Slot;
use crate::clock;
use crate::connection::{Connection, News, Parts};
use crate::core::Core;
use crate::launch::{Control, Launched};
use crate::log::{Log, Stream};
use crate::monitor::Found;
use crate::ports::{Given, Holder};
use crate::quarters::Room;
use crate::server::Server;
use crate::tasks::link::Link;
use crate::upstream::Target;

/// Wishes and reports that may wait for a driver.
const QUEUE: usize = 256;

/// How long a server that closed its input or output has to end by itself.
const CLOSED_GRACE: Duration = Duration::from_secs(1);

/// What is wrong with a server on the network that cannot speak by itself.
const STREAM_LOST: &str = "the stream on which the server speaks by itself is lost";

/// What a driver is told.
#[derive(Debug)]
pub(crate) enum Inbox {
    /// A wish of a person or a client.
    Wish(Event),
    /// Stop, and say which generation that ends.
    Stop(String, oneshot::Sender<Generation>),
    /// It is needed by more than who asked first: start it, and do not retire it for want of use.
    Keep,
    /// Stop for good: nobody will need it again.
    Remove(String),
    /// Its server's definition changed, in nothing that its process depends on.
    Renewed(Arc<Server>),
    /// Say when everything that was sent before this is decided and published.
    Ask(oneshot::Sender<()>),
    /// The guard was started, or could not be.
    Born(Generation, Result<Box<Launched>, String>),
    /// The guard reported something.
    Guard(Generation, GuardEvent),
    /// The handshake came to an end; a plain process with ports has none, but listens.
    Opened(Generation, Result<Option<Opened>, Failed>),
    /// No call runs any more.
    Drained(Generation),
    /// The connection noticed something.
    News(Generation, News),
    /// A probe of its health was answered, or went wrong.
    Probed(ProbeId, Result<(), String>),
    /// The tree of this generation may be killed now.
    MayKill(Generation, Slot),
    /// The monitor found something about the process of this generation.
    Measured(Generation, Found),
    /// Stop for good, for this reason, and say this, unless it is in use.
    EndIfFree(String, Happening),
    /// Room is needed, for this reason: restart, if it is over its own limit of memory and no call runs, or that does
    /// not matter.
    RestartOver { reason: String, busy: bool },
    /// The server closed its input or output a while ago; it had time to end by itself.
    StillThere(Generation),
    /// An audit found its guard gone, and nobody had said so.
    Vanished(Generation),
}

/// The processes of the current generation.
struct Running {
    generation: Generation,
    mark: Mark,
    control: Box<dyn Control>,
    /// None for a plain process, with which nobody talks.
    connection: Option<Arc<Connection>>,
    /// Of a worker: its pipes, which another task speaks over.
    link: Option<Arc<Link>>,
    /// Said by the guard when the program could not be started.
    spawn_failure: Option<String>,
    leader_exited: bool,
    /// Its guard, as the kernel knows it.
    tree: TreeRoot,
    /// While it is being killed.
    slot: Option<Slot>,
    /// Who was reported to have survived that.
    stuck: Vec<u32>,
    /// It is to be killed for being over a limit of its own.
    over_limit: bool,
    /// Its guard is gone, and what is left is being ended.
    vanished: bool,
}

impl Running {
    /// A plain process that has no port to listen on is as ready as it will be when it runs.
    fn is_ready_at_once(&self, ports: &Given) -> bool {
        self.connection.is_none() && self.link.is_none() && ports.is_empty()
    }
}

pub(crate) struct Driver {
    core: Arc<Core>,
    server: Arc<Server>,
    id: InstanceId,
    owner: Owner,
    need: Need,
    on_demand: bool,
    machine: Instance,
    log: Arc<Log>,
    handle: std::sync::Weak<InstanceHandle>,
    inbox: mpsc::Receiver<Inbox>,
    to_self: mpsc::Sender<Inbox>,
    running: Option<Running>,
    /// The generation being spawned, and whether it is to be killed as soon as it is there.
    spawning: Option<(Generation, bool)>,
    /// The private folder of a worker: it goes with this, when nothing of it runs.
    room: Option<Room>,
    /// Where the generation being spawned will be reached over the network.
    target: Option<Target>,
    timer: Option<(Generation, TimerKind, Instant)>,
    snapshot: Snapshot,
    publish: watch::Sender<Arc<Snapshot>>,
    /// What is wrong with what it depends on.
    trouble: watch::Receiver<Option<String>>,
    ailments: Ailments,
    health: Watch,
    /// Given back when nothing of the instance is left.
    place: Option<Place>,
    removing: bool,
}

/// What a new instance is for.
pub(crate) struct Creation {
    pub(crate) id: InstanceId,
    pub(crate) owner: Owner,
    pub(crate) wanted_era: Option<Era>,
    pub(crate) need: Need,
    pub(crate) on_demand: bool,
    pub(crate) place: Place,
}

impl Driver {
    /// Creates an instance, starts its task, and asks it to start: before the handle is known to anybody, so that
    /// whoever wants it stopped is always the later one.
    pub(crate) fn create(core: &Arc<Core>, server: &Arc<Server>, creation: Creation) -> Arc<InstanceHandle> {
        let (to_self, inbox) = mpsc::channel(QUEUE);
        let snapshot = Snapshot::new();
        let (publish, watch) = watch::channel(Arc::new(snapshot.clone()));
        let file = core.log_files.of(&server.spec);
        let log = Arc::new(Log::new(server.spec.log_lines).with_file(file, creation.id.to_string()));
        let handle = Arc::new(InstanceHandle {
            id: creation.id.clone(),
            owner: arc_swap::ArcSwap::from_pointee(creation.owner.clone()),
            wanted_era: creation.wanted_era,
            log: Arc::clone(&log),
            inbox: to_self.clone(),
            snapshot: watch,
            last_used_ms: clock::now_ms().into(),
            reading: arc_swap::ArcSwapOption::empty(),
            place: creation.place.number(),
            holds: Holds::default(),
        });
        let started = to_self.try_send(Inbox::Wish(Event::Start));
        debug_assert!(started.is_ok(), "a new queue has room");
        let driver = Self {
            core: Arc::clone(core),
            server: Arc::clone(server),
            id: creation.id,
            owner: creation.owner,
            need: creation.need,
            on_demand: creation.on_demand,
            machine: Instance::new(policy(server)),
            log,
            handle: Arc::downgrade(&handle),
            inbox,
            to_self,
            running: None,
            spawning: None,
            room: None,
            target: None,
            timer: None,
            snapshot,
            publish,
            trouble: server.watch_trouble(),
            ailments: Ailments::default(),
            health: Watch::new(&server.spec.health),
            place: Some(creation.place),
            removing: false,
        };
        tokio::spawn(driver.run());
        handle
    }

    async fn run(mut self) {
        self.dependencies_changed();
        loop {
            let timer = self.timer.map(|(_, _, at)| at);
            let (idle, health) = (self.idle_at(), self.health.timer());
            crate::select::select! {
                // The driver holds a sender itself: the channel does not end.
                Some(message) = self.inbox.recv() => self.hear(message),
                () = sleep_until(timer) => self.ring(),
                () = sleep_until(idle) => self.retire_if_idle(),
                () = sleep_until(health) => self.health_timer(),
                // Its sender lives in the server, which `self` holds.
                Ok(()) = self.trouble.changed() => self.dependencies_changed(),
            }
            self.show();
            if self.removing && self.machine.state().is_empty() && self.nothing_runs() {
                break;
            }
        }
        // Before it is said that the instance is over: whoever waits for that may want the place.
        drop(self.place.take());
        self.snapshot.removed = true;
        self.publish.send_replace(Arc::new(self.snapshot.clone()));
        self.core.alerts.resolve_subject(&self.id.to_string());
        self.server.forget(&self.id);
        self.core.lull.freed();
    }

    fn nothing_runs(&self) -> bool {
        self.running.is_none() && self.spawning.is_none()
    }

    /// When an instance that was started on demand has been of no use for long enough.
    fn idle_at(&self) -> Option<Instant> {
        if !self.on_demand
            || self.removing
            || !matches!(self.owner, Owner::All | Owner::Principal(_) | Owner::Project(_))
        {
            return None;
        }
        let handle = self.handle.upgrade()?;
        let idle = self.server.spec.idle;
        let used = handle.last_used_ms() + u64::try_from(idle.as_millis()).unwrap_or(u64::MAX / 2);
        let wait = used.saturating_sub(clock::now_ms());
        // One that is in use is looked at again after another idle time.
        let wait =
            if self.in_use() { Duration::from_millis(wait).max(idle) } else { Duration::from_millis(wait) };
        Some(Instant::now() + wait.max(Duration::from_millis(1)))
    }

    fn in_use(&self) -> bool {
        self.handle.upgrade().is_some_and(|handle| handle.is_held())
            || self.connection().is_some_and(|connection| connection.open_calls() + connection.attached() > 0)
    }

    fn retire_if_idle(&mut self) {
        let idle_ms = u64::try_from(self.server.spec.idle.as_millis()).unwrap_or(u64::MAX);
        let unused = |handle: &InstanceHandle| {
            clock::now_ms().saturating_sub(handle.last_used_ms()) >= idle_ms && handle.holds.retire_if_free()
        };
        if !self.in_use() && self.handle.upgrade().is_none_or(|handle| unused(&handle)) {
            self.remove(format!("unused for {} s (idle)", idle_ms / 1000));
        }
    }

    fn end_if_free(&mut self, reason: String, happening: Happening) {
        let free = |handle: Arc<InstanceHandle>| handle.holds.retire_if_free();
        if !self.removing && !self.in_use() && self.handle.upgrade().is_none_or(free) {
            self.record(happening);
            self.remove(reason);
        }
    }

    fn restart_if_over(&mut self, reason: String, even_busy: bool) {
        let generation = self.machine.generation();
        let reading = self.handle.upgrade().and_then(|handle| handle.reading());
        let reading = reading.filter(|reading| reading.generation == generation);
        let limit = self.server.spec.limits.memory;
        let over = reading.is_some_and(|reading| limit.is_some_and(|limit| reading.memory_bytes() > limit));
        let busy = self.connection().is_some_and(|connection| connection.open_calls() > 0);
        if over && !self.removing && self.machine.state().serves() && (even_busy || !busy) {
            self.record(Happening::Relief { what: reason.clone() });
            self.decide(Event::Restart { reason });
        }
    }

    fn remove(&mut self, reason: String) {
        self.removing = true;
        if let Some(handle) = self.handle.upgrade() {
            handle.holds.retire();
        }
        self.decide(Event::Stop { reason });
    }

    fn renew(&mut self, server: Arc<Server>) {
        let spec = &server.spec;
        self.machine.set_policy(policy(&server));
        if let Some(connection) = self.connection() {
            connection.set_deadlines(millis(spec.call_idle), millis(spec.call_max));
        }
        if self.server.spec.health != spec.health {
            // What the old probes found says nothing of what the new ones will.
            self.health = Watch::after(&self.health, &spec.health);
            self.ail(Ailment::Health, None);
            if self.machine.state().serves() {
                self.server = Arc::clone(&server);
                self.health(HealthEvent::Ready);
            }
        }
        self.server = server;
    }

    fn ring(&mut self) {
        if let Some((generation, kind, _)) = self.timer.take() {
            self.decide(Event::Timer { generation, kind });
        }
    }

    fn hear(&mut self, message: Inbox) {
        match message {
            Inbox::Wish(event) if !self.removing => self.decide(event),
            Inbox::Keep if !self.removing => {
                self.on_demand = false;
                // One that waits for its next try needs no telling.
                if !matches!(self.machine.state(), State::Backoff { .. } | State::Broken { .. }) {
                    self.decide(Event::Start);
                }
            }
            Inbox::Wish(_) | Inbox::Keep => {}
            Inbox::Stop(reason, answer) => {
                if !self.removing {
                    self.decide(Event::Stop { reason });
                }
                let _ = answer.send(self.machine.generation());
            }
            Inbox::Remove(reason) => self.remove(reason),
            Inbox::Renewed(server) => self.renew(server),
            // Everything before it has been published: see `run`.
            Inbox::Ask(answer) => drop(answer.send(())),
            Inbox::Born(generation, Ok(guarded)) => self.born(generation, *guarded),
            Inbox::Born(generation, Err(why)) => {
                self.spawning = None;
                self.give_ports_back(generation);
                self.decide(Event::SpawnFailed { generation, why });
            }
            Inbox::Guard(generation, event) => self.guard_said(generation, event),
            Inbox::Opened(generation, result) => self.opened(generation, result),
            Inbox::Drained(generation) => self.decide(Event::Drained { generation }),
            Inbox::News(_, News::AsksBack) => self.server.learn(&self.core, |traits| traits.asks_back = true),
            Inbox::News(generation, News::StreamLost) => {
                self.stream(generation, Some(STREAM_LOST.to_owned()))
            }
            Inbox::News(generation, News::StreamBack) => self.stream(generation, None),
            Inbox::News(generation, News::OutputClosed) => self.closed(generation, "output"),
            Inbox::News(generation, News::InputClosed) => self.closed(generation, "input"),
            Inbox::Probed(probe, result) => self.health(HealthEvent::Answered { probe, result }),
            Inbox::MayKill(generation, slot) => self.kill(generation, slot),
            Inbox::Measured(generation, found) => self.measured(generation, found),
            Inbox::EndIfFree(reason, happening) => self.end_if_free(reason, happening),
            Inbox::RestartOver { reason, busy } => self.restart_if_over(reason, busy),
            Inbox::StillThere(generation) => self.with_running(generation, |_, running| {
                if !running.leader_exited {
                    running.control.kill();
                }
            }),
            Inbox::Vanished(generation) => self.vanished(generation),
        }
    }

    fn decide(&mut self, event: Event) {
        let effects = self.machine.decide(event, clock::now(), crate::random::bits64());
        for effect in effects {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Spawn { generation } => self.spawn(generation),
            Effect::Handshake { generation } => self.handshake(generation),
            Effect::Drain { generation } => self.with_running(generation, |driver, running| {
                let (connection, done) = (running.connection.clone(), driver.to_self.clone());
                tokio::spawn(async move {
                    if let Some(connection) = connection {
                        connection.drain().await;
                    }
                    let _ = done.send(Inbox::Drained(generation)).await;
                });
            }),
            Effect::CloseStdin { generation } => {
                self.with_connection(generation, Connection::close_stdin);
            }
            Effect::Terminate { generation } => {
                self.with_running(generation, |_, running| running.control.terminate());
            }
            Effect::Kill { generation } => {
                if let Some((spawning, kill)) = &mut self.spawning
                    && *spawning == generation
                {
                    *kill = true;
                }
                self.with_running(generation, |driver, _| driver.queue_kill(generation));
            }
            Effect::FailPending { generation, reason } => {
                self.with_connection(generation, |connection| connection.fail(reason));
            }
            Effect::Timer { generation, kind, at } => {
                self.timer = Some((generation, kind, clock::instant(at)));
            }
            Effect::CancelTimer => self.timer = None,
            Effect::Record(happening) => self.record(happening),
        }
    }

    /// To the instance's own log and to the event log.
    fn record(&self, happening: Happening) {
        self.log.push(Stream::Ostler, &happening.to_string());
        let (core, subject) = (&self.core, self.id.to_string());
        match (self.server.spec.transport, happening.severity()) {
            // Workers come and go with their tasks; that they do is told in fewer words.
            (Transport::Worker, Severity::Info) => core.events.pass(&subject, &happening),
            (Transport::Worker, _) => {
                core.events.record_seldom(self.server.spec.name.as_str(), &subject, happening.clone());
            }
            _ => core.events.record(&subject, happening.clone()),
        }
        core.alerts.hear(&subject, &happening, core.config().limits.cleanup_tries);
    }

    fn with_running(&self, generation: Generation, act: impl FnOnce(&Self, &Running)) {
        if let Some(running) = self.running.as_ref().filter(|running| running.generation == generation) {
            act(self, running);
        }
    }

    /// Has the tree killed as soon as there is a slot for that.
    fn queue_kill(&self, generation: Generation) {
        let (cleanup, id, to_self) = (Arc::clone(&self.core.cleanup), self.id.clone(), self.to_self.clone());
        tokio::spawn(async move {
            let slot = cleanup.slot(id.clone()).await;
            if to_self.send(Inbox::MayKill(generation, slot)).await.is_err() {
                cleanup.done(&id);
            }
        });
    }

    fn kill(&mut self, generation: Generation, slot: Slot) {
        match &mut self.running {
            Some(running) if running.generation == generation => {
                self.core.cleanup.killing(&self.id);
                running.control.kill();
                if running.stuck.is_empty() {
                    running.slot = Some(slot);
                } else {
                    // Its guard does not say so twice: the slot would be gone until the kernel lets go.
                    self.core.cleanup.stuck(&self.id, &running.stuck);
                }
            }
            Some(_) => {}
            // It ended while it waited.
            None => self.core.cleanup.done(&self.id),
        }
    }

    fn with_connection(&self, generation: Generation, act: impl FnOnce(&Connection)) {
        self.with_running(generation, |_, running| {
            if let Some(connection) = &running.connection {
                act(connection);
            }
        });
    }

    /// The connection to the process that runs now.
    fn connection(&self) -> Option<&Arc<Connection>> {
        self.running.as_ref()?.connection.as_ref()
    }

    fn spawn(&mut self, generation: Generation) {
        self.spawning = Some((generation, false));
        match self.find_place(generation) {
            Ok(target) => self.target = target,
            Err(why) => {
                let born = Inbox::Born(generation, Err(why));
                let to_self = self.to_self.clone();
                tokio::spawn(async move { to_self.send(born).await });
                return;
            }
        }
        if self.server.spec.is_remote() {
            // Nothing is started, so nothing is written down that would have to be ended.
            let born = Inbox::Born(generation, Ok(Box::new(crate::launch::elsewhere(crate::random::mark()))));
            let to_self = self.to_self.clone();
            tokio::spawn(async move { to_self.send(born).await });
            return;
        }
        let request = self.request();
        let record = TreeRecord {
            mark: request.mark.to_string(),
            instance: self.id.clone(),
            generation,
            guard: None,
            leader: None,
            boot_id: self.core.ledger.boot_id().to_owned(),
            daemon_id: self.core.ledger.daemon_id().to_owned(),
            started_unix_ms: clock::unix_ms(),
        };
        let (core, done) = (Arc::clone(&self.core), self.to_self.clone());
        let quarters = self.server.quarters().cloned();
        self.room = quarters.as_ref().map(|quarters| quarters.room());
        let room = self.room.as_ref().map(|room| room.path().to_owned());
        let server = Arc::clone(&self.server);
        tokio::spawn(async move {
            let request = match quarters.zip(room) {
                Some((quarters, room)) => {
                    quarters.request(&*core.launcher, request, &server.spec.launch, room).await
                }
                None => Ok(request),
            };
            let born = match request {
                Ok(request) => start(&core, request, record).await,
                Err(why) => Err(why),
            };
            let _ = done.send(Inbox::Born(generation, born)).await;
        });
    }

    /// Its ports, and where it will be reached over the network, if it is.
    fn find_place(&mut self, generation: Generation) -> Result<Option<Target>, String> {
        let spec = &self.server.spec;
        let ports = self.core.ports.allocate(&spec.ports, &self.holder(generation));
        self.snapshot.ports = ports.map_err(|error| error.to_string())?;
        Target::of(spec, &self.snapshot.ports)
    }

    /// As what it holds ports.
    fn holder(&self, generation: Generation) -> Holder {
        Holder { instance: self.id.clone(), generation }
    }

    fn request(&self) -> SpawnRequest {
        let (launch, limits) = (&self.server.spec.launch, &self.server.spec.limits);
        let ports = &self.snapshot.ports;
        let filled = |text: &String| ports::substitute(text, |name| ports.get(name).copied());
        SpawnRequest {
            program: launch.command.clone().into(),
            args: launch.args.iter().map(|arg| filled(arg).into()).collect(),
            env: self.core.environment(&self.server.spec, ports),
            cwd: launch.cwd.clone(),
            limits: Limits {
                memory: limits.memory,
                cpu: limits.cpu,
                pids: limits.pids,
                open_files: limits.open_files.map(u64::from),
                nice: limits.nice.map(i32::from),
            },
            mark: crate::random::mark(),
        }
    }

    fn born(&mut self, generation: Generation, guarded: Launched) {
        let kill = self.spawning.take().is_some_and(|(_, kill)| kill);
        let mut captures = vec![tokio::spawn(capture(guarded.stderr, Stream::Stderr, Arc::clone(&self.log)))];
        let mut link = None;
        let connection = if self.server.spec.transport == Transport::Stdio {
            Some(Connection::open(guarded.stdin, guarded.stdout, self.parts(generation)))
        } else if self.server.spec.transport == Transport::Worker {
            link = Some(Arc::new(Link::new(guarded.stdin, guarded.stdout)));
            None
        } else {
            // Nobody writes to a plain process, or to one that listens: its input is at its end from the start.
            drop(guarded.stdin);
            captures.push(tokio::spawn(capture(guarded.stdout, Stream::Stdout, Arc::clone(&self.log))));
            let target = self.target.take();
            target.map(|target| Connection::open_upstream(target, self.parts(generation)))
        };
        self.listen(generation, guarded.events, captures);
        if kill {
            guarded.control.kill();
        }
        let tree = TreeRoot { guard_pid: guarded.guard_pid, guard_start: guarded.guard_start };
        // A server that runs elsewhere has none.
        self.snapshot.tree = (tree.guard_pid != 0).then_some(GuardedTree { root: tree, mark: guarded.mark });
        self.snapshot.link.clone_from(&link);
        self.running = Some(Running {
            generation,
            mark: guarded.mark,
            control: guarded.control,
            connection,
            link,
            spawn_failure: None,
            leader_exited: false,
            tree,
            slot: None,
            stuck: Vec::new(),
            over_limit: false,
            vanished: false,
        });
    }

    /// What a connection to the new process is made of.
    fn parts(&self, generation: Generation) -> Parts {
        let settings = Settings {
            // Until the handshake says otherwise.
            era: Era::Legacy,
            exclusive: match &self.owner {
                Owner::Session(_) => true,
                // What it says late to one session, the next must not hear.
                Owner::Spare => self.server.pool().is_some_and(|pool| pool.is_clean_by_itself()),
                Owner::All | Owner::Principal(_) | Owner::Project(_) => false,
            },
            concurrency: self.server.spec.concurrency,
            asks_back: self.server.traits().asks_back,
            streams_per_call: self.server.spec.transport == Transport::Http,
            max_calls: self.core.config().limits.instance_calls,
            call_idle_ms: millis(self.server.spec.call_idle),
            call_max_ms: millis(self.server.spec.call_max),
            // Below 2^53, which every JSON reader keeps exact.
            reverse_base: (generation.0 & 0xF_FFFF) << 32,
        };
        // Room for each kind of news once.
        let (news, mut heard) = mpsc::channel(5);
        let to_self = self.to_self.clone();
        tokio::spawn(async move {
            while let Some(news) = heard.recv().await {
                let _ = to_self.send(Inbox::News(generation, news)).await;
            }
        });
        Parts {
            instance: self.id.clone(),
            generation,
            settings,
            max_message: self.core.config().gateway.max_body,
            budget: Arc::clone(&self.core.budget),
            log: Arc::clone(&self.log),
            events: Arc::clone(&self.core.events),
            news,
        }
    }

    /// Passes the guard's reports on, in order; that nothing runs any more once its last words are in the log.
    fn listen(
        &self,
        generation: Generation,
        mut events: mpsc::Receiver<GuardEvent>,
        captures: Vec<JoinHandle<()>>,
    ) {
        let to_self = self.to_self.clone();
        tokio::spawn(async move {
            let mut captures = Some(captures);
            while let Some(event) = events.recv().await {
                if matches!(event, GuardEvent::TreeEmpty)
                    && let Some(captures) = captures.take()
                {
                    let _ = tokio::time::timeout(LAST_WORDS, join_all(captures)).await;
                }
                if to_self.send(Inbox::Guard(generation, event)).await.is_err() {
                    return;
                }
            }
        });
    }

    fn guard_said(&mut self, generation: Generation, event: GuardEvent) {
        let Some(running) = self.running.as_mut().filter(|running| running.generation == generation) else {
            return;
        };
        match event {
            GuardEvent::Started { pid, start_time } => {
                let pid = pid.unsigned_abs();
                let (ledger, mark) = (self.core.ledger.clone(), running.mark.to_string());
                tokio::spawn(async move {
                    warn_ledger(ledger.set_leader(mark, ProcessKey { pid, start: start_time }).await);
                });
                self.snapshot.pid = Some(pid).filter(|pid| *pid != 0);
                self.snapshot.started_ms = Some(clock::now_ms());
                let ready = running.is_ready_at_once(&self.snapshot.ports);
                self.decide(Event::Spawned { generation, pid });
                // Now, not by a task: it may have ended already, and one that ends with status 0 before it was ready
                // would count as failed.
                if ready {
                    self.ready(generation);
                }
            }
            GuardEvent::SpawnFailed(failure) => running.spawn_failure = Some(failure.message),
            GuardEvent::LeaderExited(exit) => {
                running.leader_exited = true;
                self.snapshot.pid = None;
                let exit = convert(exit);
                self.snapshot.ended = Some(Ended { exit, at_ms: clock::now_ms() });
                self.decide(Event::LeaderExited { generation, exit });
            }
            GuardEvent::GuardDied(_) => {
                self.core.events.record(
                    &self.id.to_string(),
                    Happening::Refused {
                        what: "guarding".to_owned(),
                        why: "the guard was killed; its tree is being ended".to_owned(),
                    },
                );
                if !std::mem::replace(&mut running.leader_exited, true) {
                    self.snapshot.ended = Some(Ended { exit: Exit::Unknown, at_ms: clock::now_ms() });
                    self.decide(Event::LeaderExited { generation, exit: Exit::Unknown });
                }
            }
            GuardEvent::LimitHit(hit) => self.record(Happening::LimitHit { what: hit.to_string() }),
            GuardEvent::Stuck { pids } => {
                let pids: Vec<u32> = pids.into_iter().map(i32::unsigned_abs).collect();
                // The next in the queue may have more luck.
                running.slot = None;
                self.core.cleanup.stuck(&self.id, &pids);
                running.stuck.clone_from(&pids);
                self.decide(Event::Stuck { generation, pids });
            }
            GuardEvent::TreeEmpty => self.tree_empty(generation),
        }
    }

    /// Ends what is left of a tree without a guard, and goes on as if the guard's end had been reported.
    fn vanished(&mut self, generation: Generation) {
        let running = self.running.as_mut().filter(|running| running.generation == generation);
        // Once, however many audits find it: what the kernel holds takes its time.
        if running.is_none_or(|running| std::mem::replace(&mut running.vanished, true)) {
            return;
        }
        self.with_running(generation, |driver, running| {
            let (core, mark, to_self) = (Arc::clone(&driver.core), running.mark, driver.to_self.clone());
            tokio::spawn(async move {
                // It fails only when the runtime is going.
                let _ = tokio::task::spawn_blocking(move || core.launcher.end_marked(mark)).await;
                for event in [GuardEvent::GuardDied(ostler_os::Exit::Unknown), GuardEvent::TreeEmpty] {
                    let _ = to_self.send(Inbox::Guard(generation, event)).await;
                }
            });
        });
    }

    fn tree_empty(&mut self, generation: Generation) {
        let Some(running) = self.running.take() else { return };
        self.core.cleanup.done(&self.id);
        let (ledger, mark) = (self.core.ledger.clone(), running.mark.to_string());
        tokio::spawn(async move { warn_ledger(ledger.remove(mark).await) });
        if let Some(connection) = &running.connection {
            connection.fail("the instance ended".to_owned());
        }
        self.snapshot.pid = None;
        self.snapshot.tree = None;
        self.snapshot.link = None;
        self.snapshot.started_ms = None;
        self.give_ports_back(generation);
        self.ailments.forget_process();
        self.health(HealthEvent::Ended);
        match running.spawn_failure {
            // Unless its guard died on the way: then its end was reported as an exit, and this is its last.
            Some(why) if !running.leader_exited => self.decide(Event::SpawnFailed { generation, why }),
            _ => self.decide(Event::TreeEmpty { generation }),
        }
    }

    fn handshake(&mut self, generation: Generation) {
        self.with_running(generation, |driver, running| {
            let (tree, ports) = (running.tree, Arc::clone(&driver.snapshot.ports));
            if running.is_ready_at_once(&ports) {
                // See `guard_said`.
                return;
            }
            let (connection, done) = (running.connection.clone(), driver.to_self.clone());
            let link = running.link.clone();
            let (need, core) = (driver.need.clone(), Arc::clone(&driver.core));
            let on_network = driver.server.spec.transport.is_network();
            tokio::spawn(async move {
                let listens = || async move {
                    // One that runs elsewhere has no port of this machine.
                    if ports.is_empty() { Ok(()) } else { core.ports.listening(tree, ports).await }
                };
                let result = match connection {
                    Some(connection) if !on_network => handshake::open(&connection, &need).await.map(Some),
                    // Spoken with once it is seen to listen where it was told to: nobody else is told anything.
                    Some(connection) => match listens().await {
                        Ok(()) => handshake::open(&connection, &need).await.map(Some),
                        Err(theft) => Err(Failed::Theft(theft)),
                    },
                    None => match link {
                        Some(link) => link.until_ready().await.map(|()| None).map_err(Failed::Other),
                        None => listens().await.map(|()| None).map_err(Failed::Theft),
                    },
                };
                let _ = done.send(Inbox::Opened(generation, result)).await;
            });
        });
    }

    fn opened(&mut self, generation: Generation, result: Result<Option<Opened>, Failed>) {
        if generation != self.machine.generation() {
            return;
        }
        match result {
            Ok(None) => self.ready(generation),
            Ok(Some(opened)) => {
                self.snapshot.era = Some(opened.era);
                self.snapshot.initialized = opened.initialized;
                self.server.learn(&self.core, |traits| match opened.era {
                    Era::Legacy => {
                        traits.legacy = Some(true);
                        traits.modern = opened.modern.or(traits.modern);
                    }
                    Era::Modern => traits.modern = Some(true),
                });
                if let Some(tools) = &opened.tools {
                    self.server.heard_tools(tools);
                }
                // From now on restarts need no probe.
                if let Need::Either(params) = &self.need {
                    let params = Arc::clone(params);
                    self.need = match opened.era {
                        Era::Legacy => Need::Legacy(params),
                        Era::Modern => Need::Modern,
                    };
                }
                self.ready(generation);
            }
            Err(Failed::WrongEra(era)) => {
                self.snapshot.wrong_era = Some(era);
                self.server.learn(&self.core, |traits| match era {
                    Era::Legacy => (traits.legacy, traits.modern) = (Some(false), Some(true)),
                    Era::Modern => traits.modern = Some(false),
                });
                self.remove(format!("the server does not serve {} clients", era.as_str()));
            }
            Err(Failed::Theft(theft)) => {
                self.core.ports.stolen(theft.port);
                self.decide(Event::Restart { reason: theft.to_string() });
            }
            Err(Failed::Other(why)) => self.decide(Event::HandshakeFailed { generation, why }),
        }
    }

    /// Its process is gone: others may have its ports. One that a stranger has is set aside: most likely the
    /// process ended because of that.
    fn give_ports_back(&mut self, generation: Generation) {
        let ports = std::mem::take(&mut self.snapshot.ports);
        if ports.is_empty() {
            return;
        }
        let (held, holder) = (Arc::clone(&self.core.ports), self.holder(generation));
        // The next process asks for the same again.
        let fixed = |name: &String| matches!(self.server.spec.ports.get(name), Some(PortWish::Fixed(_)));
        ports.iter().filter(|(name, _)| fixed(name)).for_each(|(_, port)| held.release_one(*port, &holder));
        let (events, id) = (Arc::clone(&self.core.events), self.id.to_string());
        tokio::spawn(async move {
            let nobody = TreeRoot { guard_pid: 0, guard_start: 0 };
            let looked = tokio::task::spawn_blocking(move || crate::ports::theft(nobody, &ports)).await;
            if let Ok(Some(theft)) = looked {
                held.stolen(theft.port);
                events.record(&id, Happening::PortStolen { what: theft.to_string() });
            }
            held.release(&holder);
        });
    }

    /// It serves from now on, be it not as well as it could.
    fn ready(&mut self, generation: Generation) {
        self.decide(Event::HandshakeDone { generation });
        self.show_ailments();
        if self.machine.state().serves() {
            self.health(HealthEvent::Ready);
        }
    }

    fn health_timer(&mut self) {
        let running = self.connection().is_some_and(|connection| connection.open_calls() > 0);
        self.health(HealthEvent::Calls { running });
        self.health(HealthEvent::Timer);
    }

    /// What is to be done about its health.
    fn health(&mut self, event: HealthEvent) {
        let subject = || Subject {
            connection: self.running.as_ref().and_then(|running| running.connection.clone()),
            era: self.snapshot.era,
            ports: Arc::clone(&self.snapshot.ports),
            launch: self.server.spec.launch.clone(),
            log: Arc::clone(&self.log),
            launcher: Arc::clone(&self.core.launcher),
        };
        let verdicts = self.health.decide(event, subject, &self.to_self);
        for verdict in verdicts {
            match verdict {
                Verdict::Ailing(reason) => self.ail(Ailment::Health, reason),
                Verdict::Unhealthy(reason) => {
                    let generation = self.machine.generation();
                    self.decide(Event::Unhealthy { generation, reason });
                }
            }
        }
    }

    /// What the monitor found about its processes.
    fn measured(&mut self, generation: Generation, found: Found) {
        if self
            .running
            .as_ref()
            .is_none_or(|running| running.generation != generation || running.leader_exited)
        {
            return;
        }
        match found {
            Found::High(reason) => self.ail(Ailment::Memory, reason),
            Found::Hit(what) => self.record(Happening::LimitHit { what }),
            Found::Over { what, at_once: true } => {
                // As the kernel would: what grows does not wait for calls to end. In its turn, though, and told once: it
                // is found over its limit in each pass until then.
                let running = self.running.as_mut();
                if running.is_some_and(|running| !std::mem::replace(&mut running.over_limit, true)) {
                    self.record(Happening::LimitHit { what: format!("{what}, so it is killed") });
                    self.queue_kill(generation);
                }
            }
            Found::Over { what, at_once: false } => {
                self.record(Happening::LimitHit { what: what.clone() });
                self.decide(Event::Unhealthy { generation, reason: what });
            }
        }
    }

    /// The stream of a server on the network is lost, or there again.
    fn stream(&mut self, generation: Generation, trouble: Option<String>) {
        if self.running.as_ref().is_some_and(|running| running.generation == generation) {
            self.ail(Ailment::Stream, trouble);
        }
    }

    fn dependencies_changed(&mut self) {
        let trouble = self.trouble.borrow_and_update().clone();
        self.ail(Ailment::Dependency, trouble);
    }

    /// Something is wrong with it, or no longer.
    fn ail(&mut self, ailment: Ailment, reason: Option<String>) {
        if self.ailments.set(ailment, reason) {
            self.show_ailments();
        }
    }

    fn show_ailments(&mut self) {
        let generation = self.machine.generation();
        match self.ailments.reason() {
            Some(reason) => self.decide(Event::Degraded { generation, reason }),
            None => self.decide(Event::Recovered { generation }),
        }
    }

    /// A process that closed its input or output serves nobody, though it may live on. It is given a moment to
    /// end by itself, then killed, so that the restart policy can do its work.
    fn closed(&mut self, generation: Generation, end: &str) {
        if self
            .running
            .as_ref()
            .is_none_or(|running| running.generation != generation || running.leader_exited)
        {
            return;
        }
        self.ail(Ailment::Closed, Some(format!("the server closed its {end}")));
        let to_self = self.to_self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(CLOSED_GRACE).await;
            let _ = to_self.send(Inbox::StillThere(generation)).await;
        });
    }

    /// Publishes what changed.
    fn show(&mut self) {
        let state = self.machine.state().clone();
        let serving = self.running.as_ref().filter(|_| state.serves());
        self.snapshot.connection = serving.and_then(|running| running.connection.clone());
        if state != self.snapshot.state || self.machine.generation() != self.snapshot.generation {
            self.core.monitor.changed();
        }
        self.snapshot.state = state;
        self.snapshot.generation = self.machine.generation();
        self.snapshot.restarts = self.machine.restarts();
        self.snapshot.on_demand = self.on_demand;
        self.publish.send_replace(Arc::new(self.snapshot.clone()));
        self.server.note();
    }
}

/// All of the environment of a server that has these ports, and of its probes.
pub(crate) fn environment(launch: &Launch, ports: &BTreeMap<String, u16>) -> Vec<(OsString, OsString)> {
    let filled = |text: &String| ports::substitute(text, |name| ports.get(name).copied());
    let mut set: BTreeMap<String, String> =
        launch.env.iter().map(|(name, value)| (name.clone(), filled(value))).collect();
    set.extend(ports.iter().map(|(name, port)| (ports::port_variable(name), port.to_string())));
    ostler_os::env::clean(&launch.inherit_env, &set, std::env::vars_os())
}

fn policy(server: &Server) -> Policy {
    Policy { restart: server.spec.restart.clone(), deadlines: server.spec.deadlines.clone() }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Writes the tree down, then starts its guard.
async fn start(core: &Core, request: SpawnRequest, record: TreeRecord) -> Result<Box<Launched>, String> {
    let mark = record.mark.clone();
    core.ledger.insert(record).await.map_err(|error| format!("it could not be written down: {error}"))?;
    match core.launcher.launch(request) {
        Ok(guarded) => {
            let guard = ProcessKey { pid: guarded.guard_pid.unsigned_abs(), start: guarded.guard_start };
            let ledger = core.ledger.clone();
            tokio::spawn(async move { warn_ledger(ledger.set_guard(mark, guard).await) });
            Ok(Box::new(guarded))
        }
        Err(error) => {
            warn_ledger(core.ledger.remove(mark).await);
            Err(error.to_string())
        }
    }
}

/// A tree's record only helps the next daemon; that it could not be changed must not stop this one.
fn warn_ledger(result: Result<(), crate::ledger::LedgerError>) {
    if let Err(error) = result {
        tracing::warn!(%error, "the ledger of running trees could not be changed");
    }
}

pub(crate) fn convert(exit: ostler_os::Exit) -> Exit {
    match exit {
        ostler_os::Exit::Code(code) => Exit::Code(code),
        ostler_os::Exit::Signal(signal) => Exit::Signal(signal),
        ostler_os::Exit::Unknown => Exit::Unknown,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        // A timer of the runtime rounds up to the next millisecond, or the one after.
        Some(at) if at <= Instant::now() => {}
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
