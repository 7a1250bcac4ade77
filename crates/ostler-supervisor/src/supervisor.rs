//! The supervisor: all servers, all sessions, start-up and shutdown.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ostler_config::Config;
use ostler_domain::event::Happening;
use ostler_domain::instance::Event;
use ostler_domain::ports::PortFigures;
use ostler_domain::session::{Life, SessionState};
use ostler_domain::{Era, Fallback, Generation, Scope, ServerName};
use ostler_mcp::mux::SessionKey;
use ostler_mcp::version::InitializeResult;
use ostler_os::Spawner;
use ostler_store::TreeRecord;
use tokio::time::Instant;

use crate::alerts::Alerts;
use crate::audit::{self, Audit};
use crate::budget::Budget;
use crate::cleanup;
use crate::core::Core;
use crate::events::Events;
use crate::instance::driver::Inbox;
use crate::instance::{InstanceHandle, Lease, Owner, Snapshot, Unavailable};
use crate::launch::Launcher;
use crate::ledger::{Ledger, LedgerError};
use crate::log_file::LogFiles;
use crate::monitor::machine::Machine;
use crate::monitor::{self, Monitor, Watcher};
use crate::order;
use crate::registry::{Registry, Table};
use crate::reload;
use crate::server::{Server, Standing};
use crate::session::{NoSession, Opening, Session, Sessions, TakenUp, handle_of};
use crate::stream::Keep;
use crate::tasks::{Tasks, TasksError};

/// How long a person's start or restart of one instance is waited for; it goes on after that.
const START_PATIENCE: Duration = Duration::from_secs(90);

/// Who calls, and for which project.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The principal.
    pub principal: Arc<str>,
    /// The project.
    pub project: Arc<str>,
}

/// Why the supervisor could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory's store.
    #[error("the store in the state directory cannot be used: {0}")]
    Ledger(#[from] LedgerError),
    /// The task journal.
    #[error(transparent)]
    Tasks(#[from] TasksError),
    /// The kernel.
    #[error("cannot read the boot id: {0}")]
    BootId(#[source] std::io::Error),
    /// The kernel.
    #[error("cannot look for processes that an earlier daemon left: {0}")]
    Reap(#[source] std::io::Error),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Supervisor {
    pub(crate) core: Arc<Core>,
    sessions: Arc<Sessions>,
    tasks: OnceLock<Arc<Tasks>>,
    /// Held while the configuration is changed.
    pub(crate) reloading: Arc<tokio::sync::Mutex<()>>,
}

impl Supervisor {
    /// Opens the store, ends what an earlier daemon left, and gets every server ready to be started. No worker sees what is in
    /// these two folders.
    ///
    /// # Errors
    /// When the store cannot be used, or `/proc` cannot be read.
    pub async fn start(
        config: Arc<Config>,
        state_dir: &Path,
        runtime_dir: &Path,
        spawner: Spawner,
    ) -> Result<Arc<Self>, StartError> {
        let boot_id = ostler_os::boot::boot_id().map_err(StartError::BootId)?;
        let (ledger, left) = Ledger::open(state_dir, boot_id)?;
        let events = Arc::new(Events::default());
        reap(&ledger, &events, left).await?;
        let log_files = LogFiles::new(Some(state_dir.join("logs")), Arc::clone(&events));
        let supervisor = Self::assemble(config, Arc::new(spawner), ledger, events, log_files).await?;
        tokio::spawn({
            let lull = Arc::clone(&supervisor.core.lull);
            async move { lull.follow().await }
        });
        supervisor.take_up_sessions().await?;
        let tasks =
            Tasks::start(&supervisor.core, Arc::downgrade(&supervisor), state_dir, runtime_dir).await?;
        // Nobody else sets it.
        let _ = supervisor.tasks.set(tasks);
        supervisor.monitor_by(Arc::new(monitor::machine::System::default()), vec![state_dir.to_owned()]);
        tokio::spawn(audit::regularly(Arc::clone(&supervisor.core)));
        Ok(supervisor)
    }

    /// Takes up the sessions of an earlier daemon, and writes down what becomes of all from now on.
    async fn take_up_sessions(&self) -> Result<(), StartError> {
        let found = self.sessions.take_up(self.core.ledger.sessions().await?);
        if found != TakenUp::default() {
            let TakenUp { kept, ended } = found;
            self.core.events.record("daemon", Happening::SessionsTakenUp { kept, ended });
        }
        let (core, sessions) = (Arc::clone(&self.core), Arc::clone(&self.sessions));
        tokio::spawn(async move { sessions.write_down(&core.ledger, &core.events).await });
        Ok(())
    }

    /// Measures by `machine` from now on, and watches the space where these folders are.
    pub fn monitor_by(&self, machine: Arc<dyn Machine>, folders: Vec<PathBuf>) {
        let (core, sessions) = (Arc::clone(&self.core), Arc::clone(&self.sessions));
        tokio::spawn(Watcher::new(core, sessions, machine, folders).run());
    }

    /// The same on whatever starts processes and keeps the ledger. Nothing is reaped, nothing is measured, and memory is
    /// not given back.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn assemble(
        config: Arc<Config>,
        launcher: Arc<dyn Launcher>,
        ledger: Ledger,
        events: Arc<Events>,
        log_files: LogFiles,
    ) -> Result<Arc<Self>, StartError> {
        let core = Core::new(&config, launcher, ledger, events, log_files);
        let servers = reload::servers(&core, &config).await?;
        core.registry.change(|table| *table = servers);
        for server in core.registry.table().all() {
            order::follow_dependencies(&core, server);
        }
        let keep = Keep { events: config.gateway.replay_events, bytes: config.gateway.replay_bytes };
        let sessions =
            Arc::new(Sessions::new(config.limits.sessions, life(&config), keep, Arc::clone(&core.lull)));
        tokio::spawn({
            let (sessions, events) = (Arc::clone(&sessions), Arc::clone(&core.events));
            async move { sessions.follow(&events).await }
        });
        Ok(Arc::new(Self { core, sessions, tasks: OnceLock::new(), reloading: Arc::default() }))
    }

    /// Servers that ask for it are told from now on that the management API is served here.
    pub fn serves_at(&self, socket: &Path) {
        // The first word counts: a daemon has one socket.
        let _ = self.core.socket.set(socket.to_owned());
    }

    /// Starts every server that does not wait for a client, on behalf of `caller`, each as soon as what it
    /// depends on serves. Returns at once.
    pub fn start_eager(&self, caller: &Caller) {
        for server in self.servers().all().iter().filter(|server| server.spec.is_eager()) {
            begin(&self.core, server, caller);
        }
    }

    /// The configuration in force now. A reload may put another in its place at any time.
    pub fn config(&self) -> Arc<Config> {
        self.core.config()
    }

    /// The event log.
    pub fn events(&self) -> &Arc<Events> {
        &self.core.events
    }

    /// What needs a person.
    pub fn alerts(&self) -> &Arc<Alerts> {
        &self.core.alerts
    }

    /// Compares the registry with the kernel, and repairs what does not agree.
    ///
    /// # Errors
    /// When `/proc` cannot be read; nothing was repaired then.
    pub async fn audit(&self) -> std::io::Result<Audit> {
        audit::audit(&self.core).await
    }

    /// The bytes that bodies may hold.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.core.budget
    }

    /// The tasks; none where they were not started.
    pub fn tasks(&self) -> Option<&Arc<Tasks>> {
        self.tasks.get()
    }

    /// The table of sessions.
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    /// All servers as they are now.
    pub fn servers(&self) -> Arc<Table> {
        self.core.registry.table()
    }

    /// Servers and instances by name, id and pid.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.core.registry
    }

    /// How the ports are used.
    pub fn ports(&self) -> PortFigures {
        self.core.ports.figures()
    }

    /// The trees that are being cleaned up.
    pub fn cleanups(&self) -> Vec<cleanup::Job> {
        self.core.cleanup.jobs()
    }

    /// What everything uses.
    pub fn monitor(&self) -> &Arc<Monitor> {
        &self.core.monitor
    }

    /// Instances that exist now.
    pub fn live_instances(&self) -> usize {
        self.core.admission.servers()
    }

    /// The server with this name.
    pub fn server(&self, name: &str) -> Option<Arc<Server>> {
        self.core.registry.server(name)
    }

    /// The instance with this name.
    pub fn instance(&self, id: &str) -> Option<Arc<InstanceHandle>> {
        self.core.registry.instance(id)
    }

    /// Whether every required server serves, or would on demand.
    pub fn ready(&self) -> bool {
        self.not_ready().is_empty()
    }

    /// The required servers that neither serve nor would on demand, each with how it stands.
    pub fn not_ready(&self) -> Vec<String> {
        let table = self.servers();
        let required = table.all().iter().filter(|server| server.spec.required && !server.has_left());
        let missing = required.filter_map(|server| {
            let standing = server.standing();
            let on_demand = standing == Standing::Idle && !server.spec.is_eager();
            (!standing.serves() && !on_demand).then(|| format!("`{}` is {standing}", server.spec.name))
        });
        missing.collect()
    }

    /// Opens a legacy session: finds or starts its instance and waits until that is ready.
    ///
    /// # Errors
    /// [`Unavailable`], with the reason; nothing is left behind then.
    pub async fn open_session(
        &self,
        server: &Arc<Server>,
        caller: &Caller,
        initialize: &str,
    ) -> Result<(Arc<Session>, Arc<InitializeResult>), Unavailable> {
        let Some(place) = self.sessions.reserve() else {
            self.core.events.count("limits.sessions");
            return Err(Unavailable::Limit(format!(
                "{} sessions exist already (limits.sessions)",
                self.sessions.limit()
            )));
        };
        let key = self.sessions.next_key();
        let (server, instance, shared) = self.legacy(server, caller, key, initialize).await?;
        // A client that vanishes while its instance starts leaves nothing behind. What is of a pool goes back there.
        let abandoned = Abandoned((!instance.is_of_pool()).then(|| Arc::clone(instance.handle())));
        let (connection, snapshot) = instance.connection(server.patience()).await?;
        abandoned.keep();
        let Some(initialized) = snapshot.initialized.clone() else {
            return Err(Unavailable::WrongEra(server.spec.name.clone(), Era::Legacy));
        };
        let (version, client) = ostler_mcp::version::initialize_request_info(initialize.as_bytes());
        let version = initialized.version_for(version.as_deref().unwrap_or_default()).to_owned();
        let principal = Arc::clone(&caller.principal);
        let opening = Opening { server: server.spec.name.clone(), key, principal, client, version, instance };
        let session = self.sessions.open(place, opening);
        drop(connection);
        // From here on a reload that retires the instance finds the session and ends it; one that did so before does
        // not know of it.
        let handle = session.instance().map(Arc::clone);
        let retired = handle.as_ref().is_none_or(|handle| handle.is_retired());
        let replaced = retired || !self.core.registry.in_place_of(&server).is_same(&server);
        let connected = match replaced {
            true => Err(Unavailable::Limit(format!("`{}` is just being replaced", server.spec.name))),
            false => session.connection(server.patience()).await,
        };
        if let Err(unavailable) = connected {
            // Its client will never hear of it.
            self.sessions.end(&session.id, "it could not be begun").await;
            return Err(unavailable);
        }
        let client = session.client.clone().unwrap_or_else(|| "an unnamed client".to_owned());
        self.core.events.record(&session.handle, Happening::SessionStarted { client });
        if let Some(why) = shared {
            self.share(&session, &server.spec.name, why);
        }
        Ok((session, initialized))
    }

    /// The instance for a legacy session; and why it is none for itself, where it should be.
    async fn legacy(
        &self,
        server: &Arc<Server>,
        caller: &Caller,
        key: SessionKey,
        initialize: &str,
    ) -> Result<(Arc<Server>, Lease, Option<String>), Unavailable> {
        let found = self
            .acquire(server, caller, Some(Era::Legacy), |server| match server.spec.scope {
                Scope::Session => (Owner::Session(handle_of(key)), Some(Arc::from(initialize))),
                _ => (shared_owner(server, caller), None),
            })
            .await;
        let why = match found {
            Err(Unavailable::Limit(why)) if falls_back(server) => why,
            found => return found.map(|(server, lease)| (server, lease, None)),
        };
        let shared = |server: &Server| (shared_owner(server, caller), None);
        match self.acquire(server, caller, Some(Era::Legacy), shared).await {
            Ok((server, lease)) => Ok((server, lease, Some(why))),
            Err(_) => Err(Unavailable::Limit(why)),
        }
    }

    /// It could get no instance for itself, and uses the shared one.
    pub(crate) fn share(&self, session: &Session, server: &ServerName, why: String) {
        session.share(server);
        self.core.events.count("fallback");
        self.core.events.record(&session.handle, Happening::SessionShares { server: server.clone(), why });
    }

    /// The instance for a modern request, held for as long as the request needs it.
    ///
    /// # Errors
    /// [`Unavailable`], with the reason.
    pub async fn modern(&self, server: &Arc<Server>, caller: &Caller) -> Result<Lease, Unavailable> {
        let owner = |server: &Server| (shared_owner(server, caller), None);
        self.acquire(server, caller, Some(Era::Modern), owner).await.map(|(_, lease)| lease)
    }

    /// The same for a call that Ostler makes itself, and can make in either era.
    pub(crate) async fn shared_of_any_era(
        &self,
        server: &Arc<Server>,
        caller: &Caller,
    ) -> Result<Lease, Unavailable> {
        let owner = |server: &Server| (shared_owner(server, caller), None);
        self.acquire_any_era(server, caller, owner).await
    }

    /// An instance of the modern era, or of the legacy one where the server has no other.
    pub(crate) async fn acquire_any_era(
        &self,
        server: &Arc<Server>,
        caller: &Caller,
        owner: impl Fn(&Server) -> (Owner, Option<Arc<str>>),
    ) -> Result<Lease, Unavailable> {
        if server.only_era() != Some(Era::Legacy) {
            match self.acquire(server, caller, Some(Era::Modern), &owner).await {
                Err(Unavailable::WrongEra(_, Era::Modern)) => {}
                other => return other.map(|(_, lease)| lease),
            }
        }
        self.acquire(server, caller, Some(Era::Legacy), &owner).await.map(|(_, lease)| lease)
    }

    /// This caller's modern session of this key; the one that it has without saying a key, where that is empty. Opened where
    /// it is not there yet.
    ///
    /// # Errors
    /// [`NoSession`], with the reason.
    pub fn session(&self, caller: &Caller, key: &str) -> Result<Arc<Session>, NoSession> {
        self.session_as(caller, key, true)
    }

    /// The same. Where it is opened, it gets instances for itself if `isolated` says so.
    ///
    /// # Errors
    /// [`NoSession`], with the reason.
    pub fn session_as(&self, caller: &Caller, key: &str, isolated: bool) -> Result<Arc<Session>, NoSession> {
        let found = self.sessions.find_or_open(&caller.principal, key, isolated);
        if let Err(NoSession::Full(_)) = &found {
            self.core.events.count("limits.sessions");
        }
        let (session, is_new) = found?;
        if is_new {
            let client = session.client.clone().unwrap_or_else(|| "a client that names none".to_owned());
            self.core.events.record(&session.handle, Happening::SessionStarted { client });
        }
        Ok(session)
    }

    /// A new modern session of this caller, and the handle that is its key.
    ///
    /// # Errors
    /// [`NoSession::Full`].
    pub fn session_with_handle(&self, caller: &Caller) -> Result<(Arc<Session>, String), NoSession> {
        self.session_with_handle_as(caller, true)
    }

    /// The same. It gets instances for itself if `isolated` says so.
    ///
    /// # Errors
    /// [`NoSession::Full`].
    pub fn session_with_handle_as(
        &self,
        caller: &Caller,
        isolated: bool,
    ) -> Result<(Arc<Session>, String), NoSession> {
        let opened = self.sessions.open_with_handle(&caller.principal, isolated);
        let Ok((session, key)) = opened else {
            self.core.events.count("limits.sessions");
            return opened;
        };
        let client = "a client that has its handle".to_owned();
        self.core.events.record(&session.handle, Happening::SessionStarted { client });
        Ok((session, key))
    }

    /// The instance for whoever `owner` says, which also gives the parameters of `initialize` for an instance of its
    /// own; a new one only while what the server needs serves. Where a reload puts another server in the place of this
    /// one meanwhile, it is that one's.
    pub(crate) async fn acquire(
        &self,
        server: &Arc<Server>,
        caller: &Caller,
        era: Option<Era>,
        owner: impl Fn(&Server) -> (Owner, Option<Arc<str>>),
    ) -> Result<(Arc<Server>, Lease), Unavailable> {
        loop {
            let server = self.core.registry.in_place_of(server);
            match self.acquire_of(&server, caller, era, owner(&server)).await {
                Ok(Some(lease)) => return Ok((server, lease)),
                Ok(None) => {}
                // Each time round, a reload has put another there: no more often than people reload.
                Err(_) if server.has_left() && !self.core.registry.in_place_of(&server).has_left() => {}
                Err(unavailable) => return Err(unavailable),
            }
        }
    }

    /// The same of exactly this server. `None` after a wait: what is there may have changed.
    async fn acquire_of(
        &self,
        server: &Arc<Server>,
        caller: &Caller,
        era: Option<Era>,
        (owner, initialize): (Owner, Option<Arc<str>>),
    ) -> Result<Option<Lease>, Unavailable> {
        if server.spec.transport.is_mcp() != era.is_some() {
            let name = &server.spec.name;
            return Err(Unavailable::Limit(format!(
                "`{name}` was changed by a reload, and is used in another way now"
            )));
        }
        server.await_vacant().await?;
        // Again after each wait: what served before it may be down.
        self.await_dependencies(server, caller, &owner, era).await?;
        if let Some(pool) = server.pool().filter(|_| matches!(owner, Owner::Session(_))) {
            return pool.lease(&self.core, owner, era).await.map(Some);
        }
        match era {
            Some(era) => server.acquire(&self.core, &owner, era, initialize).await,
            None => server.acquire_plain(&self.core, &owner).map(Some),
        }
    }

    /// Before a new instance is started. One whose dependencies fail later serves on, degraded.
    async fn await_dependencies(
        &self,
        server: &Arc<Server>,
        caller: &Caller,
        owner: &Owner,
        era: Option<Era>,
    ) -> Result<(), Unavailable> {
        if server.spec.depends_on.is_empty() || server.has_instance_of(owner, era) {
            return Ok(());
        }
        let owners = |server: &Server| shared_owner(server, caller);
        order::for_client(&self.core, server, &owners, server.patience()).await
    }

    /// Ends a session at once, whatever runs of it.
    pub async fn end_session(&self, session: &Session, reason: &str) -> bool {
        let ended = self.sessions.end(&session.id, reason).await;
        if ended {
            let reason = reason.to_owned();
            self.core.events.record(&session.handle, Happening::SessionEnded { reason });
        }
        ended
    }

    /// Ends a session: at once where nothing of it runs. Else it takes no new calls from now on, and is over when those that
    /// run are, or after `sessions.grace`. How it stands then.
    pub async fn drain_session(&self, session: &Arc<Session>, reason: &str) -> SessionState {
        let grace = self.config().sessions.grace;
        self.sessions.drain(session, reason, grace, &self.core.events).await
    }

    /// Starts a server: a shared instance where its scope has one. Returns when it serves or will not soon.
    ///
    /// # Errors
    /// [`Unavailable`] when it may not be started.
    pub async fn start_server(&self, server: &Arc<Server>, caller: &Caller) -> Result<(), Unavailable> {
        let has_shared = server.spec.scope != Scope::Session || server.pool().is_some();
        let owner = has_shared.then(|| shared_owner(server, caller));
        loop {
            server.await_vacant().await?;
            self.await_dependencies(server, caller, &shared_owner(server, caller), None).await?;
            if server.start(&self.core, owner.as_ref()).await? {
                break;
            }
        }
        for handle in server.all_instances() {
            until_started(&handle, Generation::default(), server.patience()).await;
        }
        Ok(())
    }

    /// Stops a server; returns when nothing of it runs.
    pub async fn stop_server(&self, server: &Server) {
        server.stop("asked for by a person").await;
    }

    /// Starts one instance; returns when it serves or will not soon.
    pub async fn start_instance(&self, handle: &InstanceHandle) {
        handle.wish_start().await;
        until_started(handle, Generation::default(), START_PATIENCE).await;
    }

    /// Stops one instance; returns when nothing of it runs.
    pub async fn stop_instance(&self, handle: &InstanceHandle) {
        let stopping = handle.wish_stop("asked for by a person").await;
        handle.stopped(stopping).await;
    }

    /// Restarts one instance; returns when the new process serves or will not soon.
    pub async fn restart_instance(&self, handle: &InstanceHandle) {
        let before = handle.snapshot().generation;
        handle.wish(Inbox::Wish(Event::Restart { reason: "asked for by a person".to_owned() })).await;
        until_started(handle, before, START_PATIENCE).await;
    }

    /// Stops everything; returns when nothing runs, or after `limits.shutdown`. True when nothing runs.
    pub async fn shutdown(&self, reason: &str) -> bool {
        self.core.registry.close();
        let table = self.servers();
        if let Some(tasks) = self.tasks() {
            tasks.begin_closing();
        }
        // Before anything stops: nobody starts again what is needed by what has not stopped yet.
        table.all().iter().for_each(|server| server.refuse());
        let stopping = order::stop_all(table.all(), reason);
        let stopped = tokio::time::timeout(self.core.config().limits.shutdown, stopping).await.is_ok();
        if let Some(tasks) = self.tasks() {
            tasks.close().await;
        }
        self.sessions.write_all(&self.core.ledger, &self.core.events).await;
        self.core.log_files.flush().await;
        stopped
    }
}

/// Starts a server that does not wait for a client, on behalf of `caller`, as soon as nothing runs any more of what it
/// took the place of, and what it depends on serves.
pub(crate) fn begin(core: &Arc<Core>, server: &Arc<Server>, caller: &Caller) {
    if server.same_as().is_some() {
        return;
    }
    let (core, server, caller) = (Arc::clone(core), Arc::clone(server), caller.clone());
    tokio::spawn(async move {
        crate::select::select! {
            () = server.until_ending() => return,
            () = server.until_vacant() => {}
        }
        if server.stopped() {
            // By a person, while it had to wait.
            return;
        }
        let budget = Instant::now() + core.config().limits.startup;
        let owners = |server: &Server| shared_owner(server, &caller);
        order::start(&core, &server, &owners, budget).await;
    });
}

/// After a wish: returns when a generation after `before` serves, or nothing is on its way to that, or `patience` is
/// over.
pub(crate) async fn until_started(handle: &InstanceHandle, before: Generation, patience: Duration) {
    let started = async {
        // Until its driver has taken up the wish, it looks as it did before.
        handle.decided().await;
        let over = |now: &Snapshot| now.state.is_empty() || (now.state.serves() && now.generation > before);
        handle.until(over).await;
    };
    let _ = tokio::time::timeout(patience, started).await;
}

fn life(config: &Config) -> Life {
    let ostler_config::Sessions { idle, stale, max_age, grace: _ } = config.sessions;
    Life { idle, stale, max_age }
}

/// Whether a session that can get no instance of this server for itself uses the shared one.
pub(crate) fn falls_back(server: &Server) -> bool {
    server.spec.scope == Scope::Session && server.spec.fallback == Fallback::Shared
}

/// Ends an instance that was started for one session when the client is gone before it was ready.
struct Abandoned(Option<Arc<InstanceHandle>>);

impl Abandoned {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        let exclusive = |handle: &Arc<InstanceHandle>| matches!(*handle.owner(), Owner::Session(_));
        if let Some(handle) = self.0.take().filter(exclusive) {
            tokio::spawn(async move {
                handle.wish(Inbox::Remove("its client vanished before it was ready".to_owned())).await;
            });
        }
    }
}

/// Whose instance serves a caller that has no instance of its own.
pub(crate) fn shared_owner(server: &Server, caller: &Caller) -> Owner {
    match server.spec.scope {
        Scope::Shared => Owner::All,
        // A modern request has no session: it counts as its principal's.
        Scope::Principal | Scope::Session => Owner::Principal(Arc::clone(&caller.principal)),
        Scope::Project => Owner::Project(Arc::clone(&caller.project)),
    }
}

/// Ends what an earlier daemon left, without being one. To be called only where no daemon uses `state_dir`. Returns the
/// processes that were ended, and those that could not be.
///
/// # Errors
/// When the store cannot be used, or `/proc` cannot be read.
pub async fn reap_left(state_dir: &Path) -> Result<(Vec<u32>, Vec<u32>), StartError> {
    let boot_id = ostler_os::boot::boot_id().map_err(StartError::BootId)?;
    let (ledger, left) = Ledger::open(state_dir, boot_id)?;
    reap(&ledger, &Events::default(), left).await
}

/// Ends the trees that an earlier daemon left, and forgets those that are gone. The processes that were ended, and
/// those that could not be.
async fn reap(
    ledger: &Ledger,
    events: &Events,
    left: Vec<TreeRecord>,
) -> Result<(Vec<u32>, Vec<u32>), StartError> {
    if left.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let records: Vec<ostler_os::reap::TreeRecord> = left.iter().map(convert).collect();
    let report = tokio::task::spawn_blocking(move || ostler_os::reap::reap(&records))
        .await
        .map_err(|error| StartError::Reap(std::io::Error::other(error)))?
        .map_err(StartError::Reap)?;
    let killed: Vec<u32> = report.killed.iter().map(|(pid, _)| pid.unsigned_abs()).collect();
    if !report.killed.is_empty() || !report.remaining.is_empty() {
        tracing::warn!(?killed, remaining = ?report.remaining, "an earlier daemon left processes");
        for &pid in &killed {
            events.record(
                "daemon",
                Happening::OrphanReaped { pid, evidence: "the ledger of an earlier daemon".to_owned() },
            );
        }
    }
    if report.remaining.is_empty() {
        for record in left {
            ledger.remove(record.mark).await?;
        }
    }
    Ok((killed, report.remaining.into_iter().map(i32::unsigned_abs).collect()))
}

fn convert(record: &TreeRecord) -> ostler_os::reap::TreeRecord {
    let pid = |key: &ostler_store::ProcessKey| key.pid.cast_signed();
    ostler_os::reap::TreeRecord {
        mark: record.mark.clone(),
        guard_pid: record.guard.as_ref().map_or(0, pid),
        guard_start: record.guard.map_or(0, |guard| guard.start),
        leader_pid: record.leader.as_ref().map(pid),
        leader_start: record.leader.map(|leader| leader.start),
        boot_id: record.boot_id.clone(),
    }
}
