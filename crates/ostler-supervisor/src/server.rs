//! One configured server: what is known of it, and its instances.
//!
//! A [`Server`] never changes. What becomes of it in time, its instances above all, it has in common with every
//! `Server` that follows it while the definition changes in nothing that its processes depend on (`Server::renewed`)
//! and with every other name for the same thing (`Server::alias`). One that is to run otherwise is another server
//! (see [`crate::reload`]).

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::watch;
use arc_swap::ArcSwap;
use ostler_domain::event::Happening;
use ostler_domain::instance::State;
use ostler_domain::pool::Figures;
use ostler_domain::{Era, InstanceId, ServerName, ServerSpec, Traits};
use ostler_mcp::session_tools::OwnNames;
use ostler_mcp::session_tools::list::Page;
use ostler_mcp::version;

use crate::admission::{Counted, Place};
use crate::core::Core;
use crate::identity::identity;
use crate::instance::driver::{Creation, Driver, Inbox};
use crate::instance::handshake::{Heard, Need};
use crate::instance::{InstanceHandle, Lease, Owner, Snapshot, Unavailable};
use crate::ledger::LedgerError;
use crate::pool::Pool;
use crate::quarters::Quarters;
use crate::replicas;

/// See the module's documentation.
#[derive(Debug)]
pub struct Server {
    /// Its definition.
    pub spec: ServerSpec,
    common: Arc<Common>,
}

/// Why a server is there.
#[derive(Clone, Debug)]
enum Origin {
    /// The configuration names it.
    Configured,
    /// A person started it.
    ByHand,
    /// It runs the workers of a lane, which live so.
    Tasks(Arc<Quarters>),
}

/// What all versions of a server, and all its names, have in common.
#[derive(Debug)]
struct Common {
    /// The name its instances have.
    name: ServerName,
    identity: String,
    traits: Mutex<Traits>,
    /// What of the names that Ostler gives to arguments and tools its own tools have.
    own_names: ArcSwap<OwnNames>,
    instances: Mutex<Vec<Arc<InstanceHandle>>>,
    /// The number of the latest instance by its name, also of servers before it: ids are never used twice.
    latest_number: Arc<AtomicU32>,
    /// A person stopped it: clients do not start it again.
    stopped: AtomicBool,
    /// It is going for good: nobody starts it again.
    ending: watch::Sender<bool>,
    /// A reload took it out of the configuration, or put another in its place.
    left: AtomicBool,
    /// It left, and nothing runs any more, neither of it nor of those before it.
    gone: watch::Sender<bool>,
    /// All that has to be gone before anything of it may run is.
    vacant: watch::Sender<bool>,
    origin: Origin,
    pool: Option<Arc<Pool>>,
    standing: watch::Sender<Standing>,
    /// What is wrong with its dependencies.
    trouble: watch::Sender<Option<String>>,
    /// Whether a task follows those.
    followed: AtomicBool,
    /// Starts of it that wait for its dependencies.
    awaiting: AtomicUsize,
    /// Whether somebody looks after the number of its replicas.
    scaled: AtomicBool,
}

/// A start that waits for dependencies, until it is dropped.
#[derive(Debug)]
pub(crate) struct Awaiting(Arc<Common>);

impl Drop for Awaiting {
    fn drop(&mut self) {
        self.0.awaiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a server stands, all its instances taken together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Standing {
    /// Nobody has asked for it yet.
    #[default]
    Idle,
    /// An instance is on its way.
    Coming,
    /// An instance serves.
    Serving,
    /// An instance serves and is not well.
    Degraded(String),
    /// It does not serve: the state, and the reason where there is one.
    Down(&'static str, Option<String>),
}

impl Standing {
    /// Whether it serves.
    pub fn serves(&self) -> bool {
        matches!(self, Self::Serving | Self::Degraded(_))
    }

    /// Whether waiting for it may be of use soon.
    pub fn is_coming(&self) -> bool {
        matches!(self, Self::Idle | Self::Coming)
    }

    /// Of several instances, the one that is best off counts.
    fn of(snapshots: impl Iterator<Item = Arc<Snapshot>>, stopped: bool) -> Self {
        let mut best = if stopped { Self::Down("stopped", None) } else { Self::Idle };
        for snapshot in snapshots {
            let standing = match &snapshot.state {
                State::Ready { .. } => Self::Serving,
                State::Degraded { reason, .. } => Self::Degraded(reason.clone()),
                State::Starting { .. } => Self::Coming,
                State::Stopped if snapshot.is_new() => Self::Coming,
                state => Self::Down(state.as_str(), snapshot.reason()),
            };
            if standing.rank() > best.rank() || matches!(best, Self::Idle) {
                best = standing;
            }
        }
        best
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Idle | Self::Down(..) => 0,
            Self::Coming => 1,
            Self::Degraded(_) => 2,
            Self::Serving => 3,
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("not started"),
            Self::Coming => f.write_str("starting"),
            Self::Serving => f.write_str("ready"),
            Self::Degraded(reason) => write!(f, "degraded ({reason})"),
            Self::Down(state, Some(reason)) => write!(f, "{state} ({reason})"),
            Self::Down(state, None) => f.write_str(state),
        }
    }
}

/// What a search for an instance came to.
enum Found {
    /// It serves the era.
    Fitting(Lease),
    /// It may turn out to.
    Undetermined(Lease),
    /// It did, and is going for good; another may be created when it is gone.
    Ending(Arc<InstanceHandle>),
}

/// What a new instance is wanted for.
struct Wanted<'a> {
    owner: &'a Owner,
    /// The era it has to serve, where that is known.
    era: Option<Era>,
    /// The parameters of a client's `initialize`, for an instance of its own.
    initialize: Option<Arc<str>>,
    /// Whether it is stopped again when it is of no use.
    on_demand: bool,
}

impl Server {
    /// Its instances are numbered on from `numbers` ([`crate::registry::Registry::numbers`]).
    pub(crate) fn new(spec: ServerSpec, traits: Traits, numbers: Arc<AtomicU32>) -> Arc<Self> {
        Self::make(spec, traits, numbers, Origin::Configured)
    }

    /// One that no configuration names: a person started it.
    pub(crate) fn by_hand(spec: ServerSpec) -> Arc<Self> {
        Self::make(spec, Traits::default(), Arc::default(), Origin::ByHand)
    }

    /// One whose instances are the workers of a lane.
    pub(crate) fn of_workers(
        spec: ServerSpec,
        quarters: Arc<Quarters>,
        latest_number: Arc<AtomicU32>,
    ) -> Arc<Self> {
        Self::make(spec, Traits::default(), latest_number, Origin::Tasks(quarters))
    }

    fn make(spec: ServerSpec, traits: Traits, latest_number: Arc<AtomicU32>, origin: Origin) -> Arc<Self> {
        let common = Common {
            name: spec.name.clone(),
            identity: identity(&spec),
            traits: Mutex::new(traits),
            own_names: ArcSwap::default(),
            instances: Mutex::default(),
            latest_number,
            stopped: AtomicBool::new(false),
            ending: watch::Sender::new(false),
            left: AtomicBool::new(false),
            gone: watch::Sender::new(false),
            vacant: watch::Sender::new(true),
            origin,
            pool: spec.pool.clone().map(|pool| Pool::new(spec.name.clone(), pool)),
            standing: watch::Sender::default(),
            trouble: watch::Sender::default(),
            followed: AtomicBool::new(false),
            awaiting: AtomicUsize::new(0),
            scaled: AtomicBool::new(false),
        };
        Arc::new(Self { spec, common: Arc::new(common) })
    }

    /// The same server with a definition that changes nothing of what its processes are.
    pub(crate) fn renewed(&self, spec: ServerSpec) -> Arc<Self> {
        Arc::new(Self { spec, common: Arc::clone(&self.common) })
    }

    /// The pool of its instances, where sessions have one each and do not start them.
    pub(crate) fn pool(&self) -> Option<&Arc<Pool>> {
        self.common.pool.as_ref()
    }

    /// Whether this is its pool.
    pub(crate) fn has_pool(&self, pool: &Arc<Pool>) -> bool {
        self.pool().is_some_and(|own| Arc::ptr_eq(own, pool))
    }

    /// Most instances of its pool, and what they are doing.
    pub fn pool_figures(&self) -> Option<(usize, Figures)> {
        self.pool().map(|pool| pool.figures())
    }

    /// After a reload renewed it: its pool is to be as it says now.
    pub(crate) fn renew_pool(&self) {
        if let (Some(pool), Some(spec)) = (self.pool(), &self.spec.pool) {
            pool.configure(spec.clone());
        }
    }

    /// Starts an instance for nobody yet. `wanted`: somebody waits in line, so that room may be made.
    pub(crate) fn create_spare(
        self: &Arc<Self>,
        core: &Arc<Core>,
        era: Option<Era>,
        wanted: bool,
    ) -> Result<Arc<InstanceHandle>, Unavailable> {
        let mut instances = self.lock();
        let wanted = Wanted { owner: &Owner::Spare, era, initialize: None, on_demand: wanted };
        self.create(core, &mut instances, wanted)
    }

    /// One worker more.
    pub(crate) fn create_worker(
        self: &Arc<Self>,
        core: &Arc<Core>,
    ) -> Result<Arc<InstanceHandle>, Unavailable> {
        let mut instances = self.lock();
        let wanted = Wanted { owner: &Owner::All, era: None, initialize: None, on_demand: false };
        self.create(core, &mut instances, wanted)
    }

    /// One replica more.
    pub(crate) fn create_replica(
        self: &Arc<Self>,
        core: &Arc<Core>,
        era: Era,
    ) -> Result<Arc<InstanceHandle>, Unavailable> {
        let mut instances = self.lock();
        let wanted = Wanted { owner: &Owner::All, era: Some(era), initialize: None, on_demand: false };
        self.create(core, &mut instances, wanted)
    }

    /// Nobody looks after the number of its replicas any more, unless there are some again.
    pub(crate) fn end_scaling(&self) -> bool {
        let instances = self.lock();
        let ends = instances.is_empty() || self.is_ending();
        if ends {
            self.common.scaled.store(false, Ordering::Release);
        }
        ends
    }

    /// Another name for `leader`, whose instances are its own.
    pub(crate) fn alias(leader: &Self, spec: ServerSpec) -> Arc<Self> {
        leader.renewed(spec)
    }

    /// Another server in the place of this one. Where a person stopped this one, it is stopped too.
    pub(crate) fn succeeded_by(&self, successor: &Self) {
        let (old, new) = (&self.common, &successor.common);
        new.stopped.store(old.stopped.load(Ordering::Relaxed), Ordering::Relaxed);
        successor.note();
    }

    /// It starts nothing before [`Self::vacate`].
    pub(crate) fn occupy(&self) {
        self.common.vacant.send_replace(false);
    }

    /// All that had to be gone before anything of it may run is.
    pub(crate) fn vacate(&self) {
        self.common.vacant.send_replace(true);
    }

    /// It left, and nothing runs any more, neither of it nor of those before it.
    pub(crate) fn set_gone(&self) {
        self.common.gone.send_replace(true);
    }

    /// Whether [`Self::set_gone`] was called.
    pub(crate) fn is_gone(&self) -> bool {
        *self.common.gone.borrow()
    }

    /// Resolves after [`Self::set_gone`].
    pub(crate) async fn until_gone(&self) {
        let mut gone = self.common.gone.subscribe();
        // The sender lives as long as `self`.
        let _ = gone.wait_for(|gone| *gone).await;
    }

    /// Resolves when all that has to be gone before anything of it may run is.
    pub(crate) async fn until_vacant(&self) {
        let mut vacant = self.common.vacant.subscribe();
        // The sender lives as long as `self`.
        let _ = vacant.wait_for(|vacant| *vacant).await;
    }

    /// The same for one who waits as long as for an instance.
    ///
    /// # Errors
    /// [`Unavailable::Held`] when it takes longer.
    pub(crate) async fn await_vacant(&self) -> Result<(), Unavailable> {
        if tokio::time::timeout(self.patience(), self.until_vacant()).await.is_ok() {
            return Ok(());
        }
        let why = "what ran before the configuration was changed is still ending".to_owned();
        Err(Unavailable::Held { server: self.spec.name.clone(), why })
    }

    /// Whether the two are one: versions of one server, or names of it.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.common, &other.common)
    }

    /// Where it is only another name: the name of the server that it is.
    pub fn same_as(&self) -> Option<&ServerName> {
        (self.common.name != self.spec.name).then_some(&self.common.name)
    }

    /// The name that its instances have.
    pub(crate) fn instances_name(&self) -> &ServerName {
        &self.common.name
    }

    /// A reload takes it out of the configuration, or puts another in its place.
    pub(crate) fn leave(&self) {
        self.common.left.store(true, Ordering::Relaxed);
        self.refuse();
    }

    /// Whether a reload took it out of the configuration, or put another in its place. It is listed until nothing of
    /// it runs, and its name is not its any more.
    pub fn has_left(&self) -> bool {
        self.common.left.load(Ordering::Relaxed)
    }

    /// Whether nobody follows its dependencies yet; from now on the caller does.
    pub(crate) fn begin_following(&self) -> bool {
        !self.common.followed.swap(true, Ordering::Relaxed)
    }

    /// It is to be started when its dependencies serve; until then none of them is stopped for others.
    pub(crate) fn await_dependencies(&self) -> Awaiting {
        self.common.awaiting.fetch_add(1, Ordering::Relaxed);
        Awaiting(Arc::clone(&self.common))
    }

    /// Whether a start of it waits for its dependencies.
    pub(crate) fn is_awaiting(&self) -> bool {
        self.common.awaiting.load(Ordering::Relaxed) > 0
    }

    /// Resolves when it is going for good.
    pub(crate) async fn until_ending(&self) {
        let mut ending = self.common.ending.subscribe();
        // The sender lives as long as `self`.
        let _ = ending.wait_for(|ending| *ending).await;
    }

    /// The same, with what earlier daemons learnt about it.
    pub(crate) async fn remembered(core: &Arc<Core>, spec: ServerSpec) -> Result<Arc<Self>, LedgerError> {
        let traits = core.ledger.traits(identity(&spec)).await?.unwrap_or_default();
        let numbers = core.registry.numbers(&spec.name);
        Ok(Self::new(spec, traits, numbers))
    }

    /// How it stands now.
    pub fn standing(&self) -> Standing {
        self.common.standing.borrow().clone()
    }

    /// Follows how it stands.
    pub fn watch(&self) -> watch::Receiver<Standing> {
        self.common.standing.subscribe()
    }

    /// Resolves when it stands as `wanted`.
    pub(crate) async fn until(&self, wanted: impl Fn(&Standing) -> bool) {
        // The sender lives as long as `self`.
        let _ = self.watch().wait_for(wanted).await;
    }

    /// To be called after every change of an instance: publishes how the server stands by now.
    pub(crate) fn note(&self) {
        // Under the lock: of two that note at the same time, the later sees what the earlier saw and more.
        let instances = self.lock();
        let standing = Standing::of(instances.iter().map(|handle| handle.snapshot()), self.stopped());
        publish(&self.common.standing, standing);
    }

    /// Follows what is wrong with its dependencies.
    pub(crate) fn watch_trouble(&self) -> watch::Receiver<Option<String>> {
        self.common.trouble.subscribe()
    }

    pub(crate) fn set_trouble(&self, trouble: Option<String>) {
        publish(&self.common.trouble, trouble);
    }

    fn is_ending(&self) -> bool {
        *self.common.ending.borrow()
    }

    /// Lets nobody start it any more, a person included.
    pub(crate) fn refuse(&self) {
        self.common.ending.send_replace(true);
        if let Some(pool) = self.pool() {
            pool.close();
        }
    }

    /// Stops every instance for good and lets no new one be started; returns when nothing of it runs.
    pub(crate) async fn remove_all(&self, reason: &str) {
        self.refuse();
        let handles = self.all_instances();
        for handle in &handles {
            handle.wish(Inbox::Remove(reason.to_owned())).await;
        }
        for handle in handles {
            handle.until(|snapshot| snapshot.removed).await;
        }
    }

    /// What was learnt by running it.
    pub fn traits(&self) -> Traits {
        *self.common.traits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What of the names that Ostler gives to arguments and tools its own tools have, as it last said.
    pub fn own_names(&self) -> Arc<OwnNames> {
        self.common.own_names.load_full()
    }

    /// It listed some of its tools; `None` where the page cannot be read.
    pub fn listed_tools(&self, page: Option<&Page<'_>>) {
        self.common.own_names.rcu(|known| {
            let mut known = OwnNames::clone(known);
            match page {
                Some(page) => known.learn(page),
                None => known.miss_page(),
            }
            known
        });
    }

    /// A new process of it was asked for its tools.
    pub(crate) fn heard_tools(&self, heard: &Heard) {
        self.common.own_names.rcu(|known| {
            let mut known = if heard.whole { OwnNames::default() } else { OwnNames::clone(known) };
            known.add(&heard.names);
            known
        });
    }

    /// Its instances, in the order of their creation. Where it is only another name ([`Self::same_as`]), they are
    /// the other's: whoever asks every server sees each instance once.
    pub fn instances(&self) -> Vec<Arc<InstanceHandle>> {
        if self.same_as().is_some() { Vec::new() } else { self.all_instances() }
    }

    /// Its instances, under whichever name.
    pub(crate) fn all_instances(&self) -> Vec<Arc<InstanceHandle>> {
        self.lock().clone()
    }

    /// Whether a caller with this owner needs no new instance; in this era, where it has one.
    pub(crate) fn has_instance_of(&self, owner: &Owner, era: Option<Era>) -> bool {
        let fits = |handle: &Arc<InstanceHandle>| {
            handle.era().is_none_or(|own| era.is_none_or(|wanted| own == wanted))
                && handle.snapshot().wrong_era.is_none()
        };
        let mut instances = self.all_instances().into_iter();
        instances.any(|handle| *handle.owner() == *owner && !handle.is_retired() && fits(&handle))
    }

    /// Whether a person stopped it, or it is going for good.
    pub fn stopped(&self) -> bool {
        self.common.stopped.load(Ordering::Relaxed) || self.is_ending()
    }

    /// A person's wish is no help to what is going for good.
    fn check_ending(&self) -> Result<(), Unavailable> {
        if self.is_ending() {
            let name = &self.spec.name;
            let why = if self.has_left() {
                "a reload took it out of the configuration, or put another in its place"
            } else {
                "Ostler or it is ending"
            };
            return Err(Unavailable::Limit(format!("server `{name}` is going for good: {why}")));
        }
        Ok(())
    }

    /// Whether a person started it by hand, and no configuration names it.
    pub fn is_by_hand(&self) -> bool {
        matches!(self.common.origin, Origin::ByHand)
    }

    /// Whether its instances are workers of tasks.
    pub fn has_workers(&self) -> bool {
        self.quarters().is_some()
    }

    /// How its workers live, where they are such.
    pub(crate) fn quarters(&self) -> Option<&Arc<Quarters>> {
        match &self.common.origin {
            Origin::Tasks(quarters) => Some(quarters),
            _ => None,
        }
    }

    /// Whether the configuration names it, so that a reload may change it.
    pub fn is_configured(&self) -> bool {
        matches!(self.common.origin, Origin::Configured)
    }

    /// How long a caller waits for an instance to become ready: as long as a start may take.
    pub fn patience(&self) -> Duration {
        self.spec.deadlines.spawn + self.spec.deadlines.handshake
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<InstanceHandle>>> {
        self.common.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known of the server, and remembers it across restarts of the daemon.
    pub(crate) fn learn(&self, core: &Arc<Core>, change: impl FnOnce(&mut Traits)) {
        let traits = {
            let mut traits = self.common.traits.lock().unwrap_or_else(PoisonError::into_inner);
            let before = *traits;
            change(&mut traits);
            if *traits == before {
                return;
            }
            *traits
        };
        core.events.record(self.spec.name.as_str(), Happening::Learnt { what: describe(traits) });
        let (ledger, identity) = (core.ledger.clone(), self.common.identity.clone());
        tokio::spawn(async move {
            if let Err(error) = ledger.remember(identity, traits).await {
                tracing::warn!(%error, "what was learnt about a server could not be remembered");
            }
        });
    }

    /// An instance is over.
    pub(crate) fn forget(&self, id: &InstanceId) {
        let mut instances = self.lock();
        instances.retain(|handle| handle.id != *id);
        drop(instances);
        self.note();
    }

    /// The instance for this owner in this era; created, and asked to start, where there is none. Two callers
    /// at the same time get the same one.
    ///
    /// `None` after a wait: what is there may have changed, and the caller is to begin again.
    ///
    /// # Errors
    /// When the server does not serve the era, a person stopped it, or `limits.processes` is reached.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        core: &Arc<Core>,
        owner: &Owner,
        era: Era,
        initialize: Option<Arc<str>>,
    ) -> Result<Option<Lease>, Unavailable> {
        let undetermined = match self.find_or_create(core, owner, era, initialize)? {
            Found::Fitting(lease) => return Ok(Some(lease)),
            Found::Undetermined(lease) => lease,
            Found::Ending(handle) => {
                self.until_removed(&handle).await?;
                return Ok(None);
            }
        };
        let known = undetermined.until(|snapshot| {
            snapshot.era.is_some()
                || snapshot.wrong_era.is_some()
                || matches!(
                    snapshot.state,
                    State::Backoff { .. } | State::Broken { .. } | State::Failed { .. }
                )
        });
        let known = tokio::time::timeout(self.patience(), known).await;
        let silent = known.is_ok_and(|snapshot| snapshot.era.is_none() && !snapshot.removed);
        // It cannot say what it is: whoever asks for its connection is told why.
        Ok((silent || undetermined.era().is_none()).then_some(undetermined))
    }

    /// Waits until an instance that is going for good is gone.
    async fn until_removed(&self, handle: &InstanceHandle) -> Result<(), Unavailable> {
        let patience = self.patience();
        let removed = handle.until(|snapshot| snapshot.removed);
        match tokio::time::timeout(patience, removed).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Unavailable::Slow { instance: handle.id.clone(), waited: patience }),
        }
    }

    fn find_or_create(
        self: &Arc<Self>,
        core: &Arc<Core>,
        owner: &Owner,
        era: Era,
        initialize: Option<Arc<str>>,
    ) -> Result<Found, Unavailable> {
        let mut instances = self.lock();
        let of_use = |handle: &&Arc<InstanceHandle>| {
            let snapshot = handle.snapshot();
            *handle.owner() == *owner && !snapshot.removed && snapshot.wrong_era.is_none()
        };
        let mine = || instances.iter().filter(of_use);
        let ending = |handle: &Arc<InstanceHandle>| Found::Ending(Arc::clone(handle));
        // Of replicas the one with the least to do.
        let fitting = mine().filter(|handle| handle.era() == Some(era));
        if let Some(handle) = fitting.min_by_key(|handle| handle.load()) {
            return Ok(handle.lease().map_or_else(|| ending(handle), Found::Fitting));
        }
        if let Some(handle) = mine().find(|handle| handle.era().is_none()) {
            return Ok(handle.lease().map_or_else(|| ending(handle), Found::Undetermined));
        }
        // It is what the caller asked for, or whoever asks for its connection is told what it turned out to be.
        let handle =
            self.create(core, &mut instances, Wanted { owner, era: Some(era), initialize, on_demand: true })?;
        Ok(handle.lease().map_or_else(|| ending(&handle), Found::Fitting))
    }

    /// The instance for this owner of a server that Ostler speaks no MCP with; created, and asked to start, where there is
    /// none.
    ///
    /// # Errors
    /// As [`Self::acquire`].
    pub(crate) fn acquire_plain(
        self: &Arc<Self>,
        core: &Arc<Core>,
        owner: &Owner,
    ) -> Result<Lease, Unavailable> {
        let mut instances = self.lock();
        let mine = instances.iter().find(|handle| *handle.owner() == *owner && !handle.is_retired());
        let handle = match mine {
            Some(handle) => Arc::clone(handle),
            None => {
                let wanted = Wanted { owner, era: None, initialize: None, on_demand: true };
                self.create(core, &mut instances, wanted)?
            }
        };
        let ending = || Unavailable::Limit(format!("`{}` is just ending", handle.id));
        handle.lease().ok_or_else(ending)
    }

    /// Starts an instance that no client has asked for yet, in whichever era the server turns out to have. False after a
    /// wait for an earlier one to go: by now, what it needs may not serve any more.
    pub(crate) async fn start_eagerly(
        self: &Arc<Self>,
        core: &Arc<Core>,
        owner: &Owner,
    ) -> Result<bool, Unavailable> {
        if !*self.common.vacant.borrow() {
            self.until_vacant().await;
            return Ok(false);
        }
        let era = self.only_era();
        if let Some(pool) = self.pool() {
            // Most servers of today are of the legacy era, and the others say so at once.
            let kind = self.spec.transport.is_mcp().then(|| era.unwrap_or(Era::Legacy));
            pool.keep(core, kind);
            return Ok(true);
        }
        let mine = {
            let mut instances = self.lock();
            let mine = instances.iter().find(|handle| *handle.owner() == *owner).cloned();
            let Some(mine) = mine else {
                let wanted = Wanted { owner, era, initialize: None, on_demand: false };
                return self.create(core, &mut instances, wanted).map(|_| true);
            };
            mine
        };
        if let Some(lease) = mine.lease() {
            lease.wish(Inbox::Keep).await;
            return Ok(true);
        }
        self.until_removed(&mine).await?;
        // On another thread it is gone from the list a moment later.
        tokio::task::yield_now().await;
        Ok(false)
    }

    /// The era it has, where it is known to have no other.
    pub(crate) fn only_era(&self) -> Option<Era> {
        let traits = self.traits();
        match (traits.legacy, traits.modern) {
            (_, Some(false)) => Some(Era::Legacy),
            (Some(false), _) => Some(Era::Modern),
            _ => None,
        }
    }

    fn create(
        self: &Arc<Self>,
        core: &Arc<Core>,
        instances: &mut Vec<Arc<InstanceHandle>>,
        wanted: Wanted<'_>,
    ) -> Result<Arc<InstanceHandle>, Unavailable> {
        let era = wanted.era;
        let traits = self.traits();
        let refused = match era {
            Some(Era::Legacy) => traits.legacy == Some(false),
            Some(Era::Modern) => traits.modern == Some(false),
            None => false,
        };
        if let Some(era) = era.filter(|_| refused) {
            return Err(Unavailable::WrongEra(self.spec.name.clone(), era));
        }
        self.startable()?;
        if let Owner::Session(_) = wanted.owner {
            self.check_own_instances(core, instances)?;
        }
        let latest = core.registry.latest(self);
        let counted = match wanted.owner {
            _ if self.is_by_hand() => Counted::AdHoc,
            _ if self.has_workers() => Counted::Worker(&latest.spec.type_name),
            Owner::Session(_) | Owner::Spare => Counted::Session(&latest.spec.type_name),
            Owner::All | Owner::Principal(_) | Owner::Project(_) => Counted::Server(&latest.spec.type_name),
        };
        let place = core.admission.admit(counted).map_err(|refusal| {
            core.events.count(refusal.limit);
            // For those who come back: what starts by itself does not.
            if let Some(need) = refusal.need.filter(|_| wanted.on_demand) {
                core.monitor.make_room(need, refusal.let_in);
            }
            Unavailable::Limit(refusal.why)
        })?;
        Ok(self.create_in(&latest, core, instances, wanted, place))
    }

    /// Whether one more session may have an instance for itself. One counts until nothing of it runs.
    fn check_own_instances(&self, core: &Core, instances: &[Arc<InstanceHandle>]) -> Result<(), Unavailable> {
        let most = core.config().limits.session_instances;
        let own = instances.iter().filter(|handle| matches!(*handle.owner(), Owner::Session(_)));
        if own.count() < most {
            return Ok(());
        }
        core.events.count("limits.session_instances");
        Err(Unavailable::Limit(format!(
            "{most} sessions have an instance of `{}` for themselves already (limits.session_instances); \
             `ostler sessions` lists them, and `ostler sessions rm` ends one",
            self.spec.name
        )))
    }

    /// Whether clients may start it.
    fn startable(&self) -> Result<(), Unavailable> {
        self.check_ending()?;
        let name = &self.spec.name;
        if self.stopped() {
            return Err(Unavailable::Limit(format!(
                "server `{name}` was stopped; `ostler start {name}` starts it"
            )));
        }
        Ok(())
    }

    /// Starts its one instance, which has a place already.
    pub(crate) fn start_admitted(
        self: &Arc<Self>,
        core: &Arc<Core>,
        place: Place,
    ) -> Result<Arc<InstanceHandle>, Unavailable> {
        let mut instances = self.lock();
        self.startable()?;
        let wanted = Wanted { owner: &Owner::All, era: None, initialize: None, on_demand: false };
        Ok(self.create_in(self, core, &mut instances, wanted, place))
    }

    /// Under the lock of the instances, so that a change of the definition that `latest` does not have yet finds the
    /// new instance in the list and tells it.
    fn create_in(
        &self,
        latest: &Arc<Self>,
        core: &Arc<Core>,
        instances: &mut Vec<Arc<InstanceHandle>>,
        wanted: Wanted<'_>,
        place: Place,
    ) -> Arc<InstanceHandle> {
        let Wanted { owner, era, initialize, on_demand } = wanted;
        let traits = self.traits();
        let params = initialize.unwrap_or_else(|| version::shared_initialize_params().into());
        let (need, wanted_era) = match (era, traits.modern) {
            (Some(Era::Legacy), _) => (Need::Legacy(params), era),
            (Some(Era::Modern), Some(true)) => (Need::Modern, era),
            // A modern client of a server nobody has met: it may turn out to be legacy, and then serves those.
            (Some(Era::Modern) | None, _) => (Need::Either(params), None),
        };
        let number = self.common.latest_number.fetch_add(1, Ordering::Relaxed) + 1;
        let creation = Creation {
            id: InstanceId { server: self.common.name.clone(), number },
            owner: owner.clone(),
            wanted_era,
            need,
            on_demand,
            place,
        };
        let handle = Driver::create(core, latest, creation);
        instances.push(Arc::clone(&handle));
        if latest.spec.replicas.is_some() && !self.common.scaled.swap(true, Ordering::AcqRel) {
            replicas::follow(core, latest);
        }
        // Its driver notes how the server stands from its first step on.
        self.common.standing.send_if_modified(|standing| {
            let changed = *standing == Standing::Idle;
            if changed {
                *standing = Standing::Coming;
            }
            changed
        });
        handle
    }

    /// Lets clients start it again, and starts what there is of it. False as of [`Self::start_eagerly`].
    pub(crate) async fn start(
        self: &Arc<Self>,
        core: &Arc<Core>,
        owner: Option<&Owner>,
    ) -> Result<bool, Unavailable> {
        self.check_ending()?;
        self.common.stopped.store(false, Ordering::Relaxed);
        self.note();
        for handle in self.all_instances() {
            handle.wish_start().await;
        }
        match owner {
            Some(owner) => self.start_eagerly(core, owner).await,
            None => Ok(true),
        }
    }

    /// Stops every instance and keeps clients from starting new ones; returns when nothing of it runs.
    pub(crate) async fn stop(&self, reason: &str) {
        self.common.stopped.store(true, Ordering::Relaxed);
        let handles = self.all_instances();
        let mut stopping = Vec::with_capacity(handles.len());
        for handle in handles {
            let generation = handle.wish_stop(reason).await;
            stopping.push((handle, generation));
        }
        for (handle, generation) in stopping {
            handle.stopped(generation).await;
        }
    }
}

/// Wakes those who follow it only when it is another value.
fn publish<T: PartialEq>(shown: &watch::Sender<T>, value: T) {
    shown.send_if_modified(|shown| {
        let changed = *shown != value;
        *shown = value;
        changed
    });
}

fn describe(traits: Traits) -> String {
    let era = |name: &str, known: Option<bool>| match known {
        Some(true) => Some(format!("serves {name} clients")),
        Some(false) => Some(format!("does not serve {name} clients")),
        None => None,
    };
    let asks =
        traits.asks_back.then(|| "asks back, so calls of several sessions go one at a time".to_owned());
    let parts: Vec<String> =
        [era("legacy", traits.legacy), era("modern", traits.modern), asks].into_iter().flatten().collect();
    parts.join("; ")
}
