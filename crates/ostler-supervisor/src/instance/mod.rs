//! An instance as the rest of the daemon sees it: a snapshot to read and wishes to send.
//!
//! One task, the `driver`, owns the instance. It feeds [`ostler_domain::instance::Instance::decide`] and
//! performs the effects; whatever takes time runs as a task of its own and reports back by event. Readers take
//! the latest [`Snapshot`] from a watch and never wait for the driver.

mod ailments;
pub(crate) mod driver;
pub mod handshake;
mod health;
mod lease;
mod probe;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::watch;
use arc_swap::{ArcSwap, ArcSwapOption};
use ostler_domain::instance::{Event, Exit, State};
use ostler_domain::{Era, Generation, InstanceId};
use ostler_mcp::version::InitializeResult;
use ostler_os::Mark;
use ostler_os::meter::TreeRoot;
use tokio::sync::{mpsc, oneshot};

use crate::clock::{now, now_ms};
use crate::connection::Connection;
use crate::log::Log;
use crate::monitor::Reading;
use crate::ports::Given;
use crate::tasks::link::Link;
use driver::Inbox;
pub(crate) use lease::Holds;
pub use lease::Lease;
pub(crate) use probe::is_well;

/// Whose an instance is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Owner {
    /// Everyone's (scope `shared`).
    All,
    /// A principal's (scope `principal`, and modern requests in scope `session`).
    Principal(Arc<str>),
    /// A project's (scope `project`).
    Project(Arc<str>),
    /// One session's (scope `session`), by the session's public handle.
    Session(Arc<str>),
    /// Nobody's: it waits in a pool for a session.
    Spare,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Principal(name) | Self::Project(name) => f.write_str(name),
            Self::Session(handle) => write!(f, "session {handle}"),
            Self::Spare => f.write_str("nobody yet"),
        }
    }
}

/// How a process of an instance ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    /// How.
    pub exit: Exit,
    /// When, in milliseconds of [`now_ms`].
    pub at_ms: u64,
}

/// The process tree of an instance, as the kernel knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuardedTree {
    /// Its guard.
    pub root: TreeRoot,
    /// Its mark.
    pub mark: Mark,
}

/// What an instance is like now.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its state.
    pub state: State,
    /// Which of its processes it is about.
    pub generation: Generation,
    /// The server's first process, while it runs.
    pub pid: Option<u32>,
    /// Its processes, while there are any.
    pub tree: Option<GuardedTree>,
    /// When the process started, in milliseconds of [`now_ms`].
    pub started_ms: Option<u64>,
    /// The connection, while calls are served.
    pub connection: Option<Arc<Connection>>,
    /// Of a worker: its pipes, while its process runs.
    pub(crate) link: Option<Arc<Link>>,
    /// The era of its process, once known; kept across restarts.
    pub era: Option<Era>,
    /// What the process answered to `initialize`.
    pub initialized: Option<Arc<InitializeResult>>,
    /// The ports its process was given, by name.
    pub ports: Given,
    /// Restarts since it was created.
    pub restarts: u32,
    /// How the latest process that ended did so; kept across restarts.
    pub ended: Option<Ended>,
    /// Set when the server said it does not serve the era it was started for.
    pub wrong_era: Option<Era>,
    /// Whether it is stopped again when it is of no use: nobody but clients wanted it.
    pub on_demand: bool,
    /// The instance is over: it was removed, and nothing of it runs.
    pub removed: bool,
}

impl Snapshot {
    fn new() -> Self {
        Self {
            state: State::Stopped,
            generation: Generation::default(),
            pid: None,
            tree: None,
            started_ms: None,
            connection: None,
            link: None,
            era: None,
            initialized: None,
            ports: Given::default(),
            restarts: 0,
            ended: None,
            wrong_era: None,
            on_demand: true,
            removed: false,
        }
    }

    /// Whether its driver has not taken up its first wish yet, to start.
    pub(crate) fn is_new(&self) -> bool {
        matches!(self.state, State::Stopped) && self.generation == Generation::default()
    }

    /// Why it is in its state, where there is a reason to give.
    pub fn reason(&self) -> Option<String> {
        match &self.state {
            State::Degraded { reason, .. } => Some(reason.clone()),
            State::Backoff { cause, .. } | State::Failed { cause } | State::Broken { cause, .. } => {
                Some(cause.to_string())
            }
            _ => None,
        }
    }

    /// How long until the next try, while it waits for one.
    pub fn next_try(&self) -> Option<Duration> {
        match &self.state {
            State::Backoff { until, .. } => Some(until.since(now())),
            State::Broken { next_try, .. } => Some(next_try.since(now())),
            _ => None,
        }
    }
}

/// Why an instance cannot serve.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unavailable {
    /// It waits for its next try.
    #[error("`{instance}` is {state}: {reason}; the next try is in {} ms", next_try.as_millis())]
    Waiting {
        /// The instance.
        instance: InstanceId,
        /// Its state.
        state: &'static str,
        /// What happened.
        reason: String,
        /// Until the next try.
        next_try: Duration,
    },
    /// It is stopped, or failed for good.
    #[error("`{instance}` is {state}{reason}; `ostler start {server}` starts it", server = instance.server)]
    Down {
        /// The instance.
        instance: InstanceId,
        /// Its state.
        state: &'static str,
        /// What happened, after a colon.
        reason: String,
    },
    /// It did not become ready in time.
    #[error("`{instance}` is still starting after {} ms; `ostler logs {instance}` may say why", waited.as_millis())]
    Slow {
        /// The instance.
        instance: InstanceId,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The server does not serve this era.
    #[error("server `{0}` does not serve {era} clients", era = .1.as_str())]
    WrongEra(ostler_domain::ServerName, Era),
    /// What it depends on does not serve.
    #[error("`{server}` cannot be started now: {why}")]
    Held {
        /// The server.
        server: ostler_domain::ServerName,
        /// Each dependency that does not serve, and its state.
        why: String,
    },
    /// A limit of the daemon was reached.
    #[error("{0}")]
    Limit(String),
}

/// An instance, for its users.
#[derive(Debug)]
pub struct InstanceHandle {
    /// Its name.
    pub id: InstanceId,
    /// Whose it is. An instance of a pool has one after another.
    owner: ArcSwap<Owner>,
    /// The era it was created for; `None` until the first handshake finds it out.
    pub wanted_era: Option<Era>,
    /// The last lines of its streams.
    pub log: Arc<Log>,
    inbox: mpsc::Sender<Inbox>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    last_used_ms: AtomicU64,
    /// What it used when it was last measured.
    reading: ArcSwapOption<Reading>,
    /// The number of its place.
    pub(crate) place: u64,
    /// Sessions that use it, and callers that wait for it to become ready.
    holds: Holds,
}

impl InstanceHandle {
    /// What it is like now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    /// Follows what it is like.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    /// Whose it is.
    pub fn owner(&self) -> Arc<Owner> {
        self.owner.load_full()
    }

    pub(crate) fn set_owner(&self, owner: Owner) {
        self.owner.store(Arc::new(owner));
    }

    /// Ends it for good.
    pub(crate) async fn end(&self, reason: String) {
        self.wish(Inbox::Remove(reason)).await;
    }

    /// The era it has, or was created for.
    pub fn era(&self) -> Option<Era> {
        self.snapshot.borrow().era.or(self.wanted_era)
    }

    /// Notes that it is used now; an idle one may be stopped.
    pub fn touch(&self) {
        self.last_used_ms.store(now_ms(), Ordering::Relaxed);
    }

    pub(crate) fn last_used_ms(&self) -> u64 {
        self.last_used_ms.load(Ordering::Relaxed)
    }

    /// What it used when it was last measured. It may be of an earlier process: see [`Reading::generation`].
    pub fn reading(&self) -> Option<Arc<Reading>> {
        self.reading.load_full()
    }

    pub(crate) fn set_reading(&self, reading: Reading) {
        self.reading.store(Some(Arc::new(reading)));
    }

    /// Whether a session uses it, or somebody waits for it to become ready.
    pub(crate) fn is_held(&self) -> bool {
        self.holds.count() > 0
    }

    /// How little it has to do: of two that serve the same, the lesser is the one to give something to. A legacy session
    /// stays where it is put, so what counts is how many are there; a modern call ends, so what runs just now.
    pub(crate) fn load(&self) -> impl Ord + use<> {
        let snapshot = self.snapshot();
        let calls = snapshot.connection.as_ref().map_or(0, |connection| connection.open_calls());
        let holds = self.holds.count();
        let work = if self.era() == Some(Era::Legacy) { (holds, calls) } else { (calls, holds) };
        (self.is_retired(), !snapshot.state.serves(), work)
    }

    /// Ends it for good once no call of a client runs: nobody gets hold of it any more, new calls are refused, and
    /// those that run after `patience` are told `reason`. `free` is awaited when none runs, while it is still there.
    pub(crate) async fn retire(&self, patience: Duration, reason: &str, free: impl Future<Output = ()>) {
        self.holds.retire();
        if let Some(connection) = self.snapshot().connection.clone()
            && tokio::time::timeout(patience, connection.drain()).await.is_err()
        {
            connection.fail(reason.to_owned());
        }
        free.await;
        self.wish(Inbox::Remove(reason.to_owned())).await;
        self.until(|snapshot| snapshot.removed).await;
    }

    /// Asks it to stop, and says which generation that ends; [`Self::stopped`] waits for its end.
    pub(crate) async fn wish_stop(&self, reason: &str) -> Generation {
        // With the wish: whoever asks later may be told of a generation that somebody else has started since.
        let (answer, stopping) = oneshot::channel();
        self.wish(Inbox::Stop(reason.to_owned(), answer)).await;
        // An error means that the driver is gone: nothing runs.
        stopping.await.unwrap_or_else(|_| self.snapshot().generation)
    }

    /// After [`Self::wish_stop`]: returns when nothing runs of what ran, or was on its way, at that time.
    pub(crate) async fn stopped(&self, stopping: Generation) {
        // A later generation, should somebody else want it back, begins with a verified end of this one.
        self.until(|snapshot| matches!(snapshot.state, State::Stopped) || snapshot.generation > stopping)
            .await;
    }

    /// Returns when every wish sent before is decided and shows in the snapshot.
    pub(crate) async fn decided(&self) {
        let (answer, decided) = oneshot::channel();
        self.wish(Inbox::Ask(answer)).await;
        // An error means that the driver is gone: nothing runs.
        let _ = decided.await;
    }

    /// Sends a wish to the driver. A driver that is gone has nothing left to do.
    pub(crate) async fn wish(&self, wish: Inbox) {
        let _ = self.inbox.send(wish).await;
    }

    /// A person wants it started, and does not have to sit out a back-off.
    pub(crate) async fn wish_start(&self) {
        let event = match self.snapshot().state {
            State::Backoff { .. } | State::Broken { .. } | State::Failed { .. } => {
                Event::Restart { reason: "asked for by a person".to_owned() }
            }
            _ => Event::Start,
        };
        self.wish(Inbox::Wish(event)).await;
    }

    /// The connection of a serving instance, waiting for one that is on its way for up to `patience`.
    ///
    /// # Errors
    /// [`Unavailable`], with the reason.
    pub async fn connection(
        &self,
        patience: Duration,
    ) -> Result<(Arc<Connection>, Arc<Snapshot>), Unavailable> {
        self.touch();
        let found = |snapshot: &Arc<Snapshot>| {
            let connection = snapshot.connection.as_ref()?;
            Some((Arc::clone(connection), Arc::clone(snapshot)))
        };
        self.wait(patience, found).await
    }

    /// What it is like once it serves, waiting for one that is on its way for up to `patience`.
    ///
    /// # Errors
    /// [`Unavailable`], with the reason.
    pub async fn serving(&self, patience: Duration) -> Result<Arc<Snapshot>, Unavailable> {
        self.touch();
        let found = |snapshot: &Arc<Snapshot>| snapshot.state.serves().then(|| Arc::clone(snapshot));
        self.wait(patience, found).await
    }

    /// The first that is found in a snapshot, waiting for an instance that is on its way for up to `patience`.
    async fn wait<T>(
        &self,
        patience: Duration,
        found: impl Fn(&Arc<Snapshot>) -> Option<T>,
    ) -> Result<T, Unavailable> {
        if let Some(found) = found(&self.snapshot()) {
            return Ok(found);
        }
        let _waiting = self.wait_for_it();
        let mut watch = self.snapshot.clone();
        let ready = async {
            loop {
                let snapshot = Arc::clone(&watch.borrow_and_update());
                if let Some(found) = found(&snapshot) {
                    return Ok(found);
                }
                if let Some(why) = self.hopeless(&snapshot, patience) {
                    return Err(why);
                }
                if watch.changed().await.is_err() {
                    return Err(self.down(&snapshot));
                }
            }
        };
        match tokio::time::timeout(patience, ready).await {
            Ok(result) => result,
            Err(_) => Err(Unavailable::Slow { instance: self.id.clone(), waited: patience }),
        }
    }

    /// Why waiting on is of no use, where it is of none.
    fn hopeless(&self, snapshot: &Arc<Snapshot>, patience: Duration) -> Option<Unavailable> {
        if let Some(era) = snapshot.wrong_era {
            return Some(Unavailable::WrongEra(self.id.server.clone(), era));
        }
        if snapshot.removed {
            return Some(self.down(snapshot));
        }
        match &snapshot.state {
            State::Stopped if snapshot.is_new() => None,
            State::Stopped | State::Failed { .. } => Some(self.down(snapshot)),
            State::Backoff { .. } | State::Broken { .. } => {
                let next_try = snapshot.next_try().unwrap_or_default();
                (next_try > patience).then(|| Unavailable::Waiting {
                    instance: self.id.clone(),
                    state: snapshot.state.as_str(),
                    reason: snapshot.reason().unwrap_or_default(),
                    next_try,
                })
            }
            _ => None,
        }
    }

    fn down(&self, snapshot: &Snapshot) -> Unavailable {
        Unavailable::Down {
            instance: self.id.clone(),
            state: if snapshot.removed { "removed" } else { snapshot.state.as_str() },
            reason: snapshot.reason().map(|reason| format!(": {reason}")).unwrap_or_default(),
        }
    }

    /// Resolves with the first snapshot that `wanted` accepts, or the last one there will be.
    pub async fn until(&self, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut watch = self.snapshot.clone();
        loop {
            let snapshot = Arc::clone(&watch.borrow_and_update());
            if wanted(&snapshot) || snapshot.removed || watch.changed().await.is_err() {
                return snapshot;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A handle whose driver is the test.
    fn handle_of(inbox: mpsc::Sender<Inbox>, snapshot: watch::Receiver<Arc<Snapshot>>) -> InstanceHandle {
        InstanceHandle {
            id: InstanceId { server: "one".parse().expect("a name"), number: 1 },
            owner: ArcSwap::from_pointee(Owner::All),
            wanted_era: None,
            log: Arc::new(Log::new(1)),
            inbox,
            snapshot,
            last_used_ms: AtomicU64::new(0),
            reading: ArcSwapOption::empty(),
            place: 0,
            holds: Holds::default(),
        }
    }

    /// The driver has not taken up its first wish when a person asks for the end: what is published then is
    /// `Stopped`, and is no answer.
    #[tokio::test]
    async fn stopped_is_not_said_while_a_start_is_still_queued() {
        let (inbox, mut wishes) = mpsc::channel(8);
        let (publish, snapshot) = watch::channel(Arc::new(Snapshot::new()));
        let handle = Arc::new(handle_of(inbox, snapshot));
        let stopping = tokio::spawn({
            let handle = Arc::clone(&handle);
            async move {
                let stopping = handle.wish_stop("a person").await;
                handle.stopped(stopping).await;
            }
        });
        let Some(Inbox::Stop(_, answer)) = wishes.recv().await else { panic!("it asks which one that ends") };
        tokio::task::yield_now().await;
        assert!(!stopping.is_finished(), "nothing was decided yet");
        // The queued start, and then the stop: it is on its way down.
        let ready = State::Ready { since: now() };
        let running = Snapshot { generation: Generation(1), state: ready, ..Snapshot::new() };
        publish.send_replace(Arc::new(running.clone()));
        answer.send(Generation(1)).expect("it waits for this");
        tokio::task::yield_now().await;
        assert!(!stopping.is_finished(), "it still runs");
        publish.send_replace(Arc::new(Snapshot { state: State::Stopped, ..running }));
        stopping.await.expect("it does not panic");
    }

    #[tokio::test]
    async fn who_waits_for_an_instance_uses_it() {
        let (inbox, _wishes) = mpsc::channel(8);
        let (_publish, snapshot) = watch::channel(Arc::new(Snapshot::new()));
        let handle = handle_of(inbox, snapshot);
        // One look at it, after which it waits; then it is dropped.
        let waits = tokio::time::timeout(Duration::ZERO, async {
            tokio::join!(handle.connection(Duration::from_secs(60)), async { assert!(handle.is_held()) })
        });
        assert!(waits.await.is_err(), "nothing became ready");
        assert!(!handle.is_held(), "a client that vanished does not wait");
    }
}
