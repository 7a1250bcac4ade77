//! Reload: another configuration is taken in while the daemon runs.
//!
//! ```text
//!   files ── read ──► Config ── diff ──► Plan ──► another table of servers, at one stroke
//!     ▲                │ bad                        │
//!  Reloader            ▼                            ├─ renewed:  the same instances, told of the new definition
//!  (one at a time)  nothing changes                 ├─ leaving:  drain, sessions end, stop; dependants first
//!                                                   └─ new ones: start once all that has left is gone
//! ```
//!
//! A server that differs in nothing its processes depend on goes on under the new definition; any other that differs is
//! replaced by another [`Server`] of that name, which lets its clients wait until nothing runs of the old one. What is
//! to leave stays in the table until it is gone, so that nothing that runs is ever without a place there. What survives
//! its killing (the kernel holds it) is not waited for without end: its parting goes on by itself, beside later reloads.

mod plan;
mod reloader;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use futures_util::future::{join, join_all, select_all};
use ostler_config::{Apply, Config, KeyChange, ServerChange};
use ostler_domain::event::Happening;
use ostler_domain::{Scope, ServerName};
use tokio::time::Instant;

use crate::core::Core;
use crate::instance::driver::Inbox;
use crate::instance::{InstanceHandle, Owner};
use crate::order;
use crate::server::Server;
use crate::session::Session;
use crate::supervisor::{Caller, Supervisor, begin, shared_owner};
pub(crate) use plan::servers;
use plan::{Estranged, Plan};
pub use reloader::{ReloadFailed, Reloader, Source};

/// What a reload did, or would do.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    /// Nothing was done: this is what would be.
    pub dry_run: bool,
    /// Keys of the whole daemon that differ. Those that only a restart of the daemon changes are as they were.
    pub daemon: Vec<KeyChange>,
    /// Each server: those of the new configuration in its order, then those that are gone.
    pub servers: Vec<ServerReport>,
    /// Servers that were removed or replaced and of which something still runs, though their time to end is over. They
    /// go on ending, and what is to come in their places starts after that.
    pub ending: Vec<ServerName>,
}

/// What a reload does to one server.
#[derive(Clone, PartialEq, Debug)]
pub struct ServerReport {
    /// Its name.
    pub name: ServerName,
    /// What is done.
    pub fate: Fate,
    /// The keys that differ, where it was there before and is still.
    pub keys: Vec<KeyChange>,
}

/// What becomes of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Nothing.
    Unchanged,
    /// It is new.
    Added,
    /// It is gone: its calls end, then its sessions and its processes.
    Removed,
    /// Its definition differs, and nothing that runs is touched.
    Changed,
    /// As removed, and then started anew by its new definition.
    Replaced,
}

impl Fate {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
            Self::Replaced => "replaced",
        }
    }
}

impl ServerReport {
    fn keys(&self) -> String {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        if keys.is_empty() { "whose process it shares".to_owned() } else { keys.join(", ") }
    }

    fn happening(&self) -> Option<Happening> {
        match self.fate {
            Fate::Unchanged => None,
            Fate::Added => Some(Happening::ServerAdded),
            Fate::Removed => Some(Happening::ServerRemoved),
            Fate::Changed => Some(Happening::ServerChanged { what: self.keys() }),
            Fate::Replaced => Some(Happening::ServerReplaced { what: self.keys() }),
        }
    }
}

impl Report {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.daemon.is_empty() && self.servers.iter().all(|server| server.fate == Fate::Unchanged)
    }
}

/// In a line.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fates = [Fate::Added, Fate::Removed, Fate::Replaced, Fate::Changed, Fate::Unchanged];
        let counts =
            fates.map(|fate| (fate, self.servers.iter().filter(|server| server.fate == fate).count()));
        let counts: Vec<String> = counts
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(fate, count)| format!("{count} {}", fate.as_str()))
            .collect();
        write!(f, "servers: {}", if counts.is_empty() { "none".to_owned() } else { counts.join(", ") })?;
        for (how, later) in [("changed", false), ("only after a restart of the daemon", true)] {
            let keys = self.daemon.iter().filter(|key| (key.apply == Apply::DaemonRestart) == later);
            let keys: Vec<String> = keys.map(ToString::to_string).collect();
            if !keys.is_empty() {
                write!(f, "; {how}: {}", keys.join(", "))?;
            }
        }
        if !self.ending.is_empty() {
            let names: Vec<&str> = self.ending.iter().map(ServerName::as_str).collect();
            write!(f, "; still ending: {}", names.join(", "))?;
        }
        Ok(())
    }
}

/// Why a sound configuration was not taken in. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReloadRefused {
    /// The daemon is stopping.
    #[error("the daemon is stopping; its configuration is not changed any more")]
    Stopping,
    /// A process that was started by hand has a new server's name.
    #[error(
        "`{0}` is the name of a process that was started by hand; `ostler rm {0}` it, or name the server otherwise"
    )]
    Taken(ServerName),
}

impl Supervisor {
    /// Takes in another configuration; with `dry_run` only says what that would do. One at a time: another one waits
    /// for this one's end. Returns when everything that has to go is gone, or has taken longer than it may
    /// ([`Report::ending`]); what is new is on its way up then, on behalf of `caller` where nobody has asked for it.
    ///
    /// # Errors
    /// [`ReloadRefused`]; nothing was changed then.
    pub async fn reload(
        self: &Arc<Self>,
        config: Config,
        dry_run: bool,
        caller: &Caller,
    ) -> Result<Report, ReloadRefused> {
        let (supervisor, caller) = (Arc::clone(self), caller.clone());
        // In a task of its own, so that a caller that goes away leaves none half done.
        let reloading = tokio::spawn(async move { supervisor.reload_whole(config, dry_run, &caller).await });
        // It fails only when the runtime ends, and all with it.
        reloading.await.unwrap_or(Err(ReloadRefused::Stopping))
    }

    async fn reload_whole(
        self: &Arc<Self>,
        config: Config,
        dry_run: bool,
        caller: &Caller,
    ) -> Result<Report, ReloadRefused> {
        let _turn = self.reloading.lock().await;
        let core = &self.core;
        let plan = Arc::new(Plan::make(core, config).await?);
        let mut report = Report { dry_run, ..plan.report.clone() };
        if dry_run || report.is_empty() {
            return if core.registry.is_closed() { Err(ReloadRefused::Stopping) } else { Ok(report) };
        }
        self.switch(&plan)?;
        for server in &report.servers {
            if let Some(happening) = server.happening() {
                core.events.record(server.name.as_str(), happening);
            }
        }
        for server in &plan.renewed {
            server.renew_pool();
            for handle in server.all_instances() {
                handle.wish(Inbox::Renewed(Arc::clone(server))).await;
            }
        }
        plan.table.iter().for_each(|server| order::follow_dependencies(core, server));
        let kept: Vec<bool> = plan.successors.iter().map(|(old, _)| old.has_left() && is_kept(old)).collect();
        report.ending = self.part(&plan).await;
        for ((_, new), kept) in plan.successors.iter().zip(kept) {
            if (kept || new.spec.is_eager()) && !new.stopped() {
                begin(core, new, caller);
            }
        }
        let eager = plan.fresh.iter().chain(&plan.roused);
        let wanted = eager.filter(|server| server.spec.is_eager() && !server.stopped());
        wanted.for_each(|server| begin(core, server, caller));
        plan.needier.iter().for_each(|(server, names)| demand(core, server, names, caller));
        core.events.record("daemon", Happening::Reloaded { what: report.to_string() });
        Ok(report)
    }

    /// Puts the new table and the new limits in force, at one stroke. What begins waits from then on for all that has to
    /// be gone before, be it from this reload or an earlier one.
    fn switch(&self, plan: &Plan) -> Result<(), ReloadRefused> {
        let core = &self.core;
        let waits = core.registry.change(|table| {
            if core.registry.is_closed() {
                return Err(ReloadRefused::Stopping);
            }
            // What was started by hand since the plan was made may have taken a name.
            let others: Vec<Arc<Server>> =
                table.iter().filter(|server| !server.is_configured()).cloned().collect();
            if let Some(taken) = others.iter().find(|server| plan.adds(&server.spec.name)) {
                return Err(ReloadRefused::Taken(taken.spec.name.clone()));
            }
            let earlier = table.iter().filter(|server| server.has_left()).cloned();
            let left: Vec<Arc<Server>> =
                plan.leaving.iter().map(|(server, _)| Arc::clone(server)).chain(earlier).collect();
            plan.leaving.iter().for_each(|(server, _)| server.leave());
            plan.successors.iter().for_each(|(old, new)| old.succeeded_by(new));
            let waits: Vec<Wait> = plan.beginning().map(|new| Wait::of(plan, new, &left)).collect();
            core.configure(Arc::new(plan.config.clone()));
            *table = plan.table.iter().cloned().chain(others).chain(left).collect();
            Ok(waits)
        })?;
        waits.into_iter().for_each(Wait::follow);
        core.registry.renewed();
        Ok(())
    }

    /// Ends what has left, in a task of its own, and waits for that as long as one after the other comes to its end in
    /// time. Those that did not.
    async fn part(self: &Arc<Self>, plan: &Arc<Plan>) -> Vec<ServerName> {
        let mut parting = tokio::spawn({
            let (supervisor, plan) = (Arc::clone(self), Arc::clone(plan));
            async move { supervisor.end_leaving(&plan).await }
        });
        let patience = plan.patience();
        loop {
            let leaving = plan.leaving.iter().map(|(server, _)| server);
            let ending: Vec<&Arc<Server>> = leaving.filter(|server| !server.is_gone()).collect();
            let next = ending.iter().map(|server| Box::pin(server.until_gone()));
            let next = async {
                match ending.is_empty() {
                    true => std::future::pending().await,
                    false => drop(select_all(next).await),
                }
            };
            crate::select::select! {
                // It fails only when the runtime is going.
                _ = &mut parting => return Vec::new(),
                () = next => {}
                () = tokio::time::sleep(patience) => {
                    return ending.iter().map(|server| server.spec.name.clone()).collect();
                }
            }
        }
    }

    /// Ends what has left, each as soon as nothing that depends on it runs.
    async fn end_leaving(self: &Arc<Self>, plan: &Plan) {
        let estranged = plan.estranged.iter().map(|estranged| self.end_estranged(estranged));
        let leaving: Vec<Arc<Server>> = plan.leaving.iter().map(|(server, _)| Arc::clone(server)).collect();
        let ends = order::in_reverse(&leaving, plan.before.all(), |server| self.end(plan, server));
        join(ends, join_all(estranged)).await;
        join_all(leaving.iter().map(|server| server.until_gone())).await;
    }

    /// Ends a server that has left, and takes it off the table.
    async fn end(&self, plan: &Plan, server: Arc<Server>) {
        let reason = plan.reason(&server);
        let handles = server.all_instances();
        let retired = handles.iter().map(|handle| self.retire(&server, handle, &reason));
        join_all(retired).await;
        server.remove_all(&reason).await;
        let registry = Arc::clone(&self.core.registry);
        let gone = async move {
            // One that had no turn yet hands its place on when it is free.
            server.until_vacant().await;
            registry.change(|table| table.retain(|known| !Arc::ptr_eq(known, &server)));
            server.set_gone();
        };
        // Not waited for by what it depends on: nothing of it runs.
        tokio::spawn(gone);
    }

    async fn retire(&self, server: &Server, handle: &Arc<InstanceHandle>, reason: &Arc<str>) {
        handle.retire(server.spec.deadlines.drain, reason, self.end_sessions(handle, reason)).await;
    }

    /// Ends the sessions that an instance serves; their clients are told why when they ask again.
    async fn end_sessions(&self, handle: &Arc<InstanceHandle>, reason: &Arc<str>) {
        for session in self.sessions().all() {
            if session.holds(handle) {
                self.dismiss(&session, reason).await;
            }
        }
    }

    /// Ends the sessions that use a server under a name that is not its own any more, each once none of its calls runs.
    async fn end_estranged(&self, (leader, name, reason): &Estranged) {
        let patience = Instant::now() + leader.spec.deadlines.drain;
        for session in self.sessions().all() {
            if session.server() == Some(name) {
                let _ = tokio::time::timeout_at(patience, session.until_quiet()).await;
                self.dismiss(&session, reason).await;
            }
        }
    }

    async fn dismiss(&self, session: &Session, reason: &Arc<str>) {
        self.end_session(session, reason).await;
    }
}

/// Starts what a server that is up needs from now on, as for one that is started; in a task of its own.
fn demand(core: &Arc<Core>, server: &Arc<Server>, names: &[ServerName], caller: &Caller) {
    if server.stopped() || server.all_instances().is_empty() {
        // It is, when it starts.
        return;
    }
    let budget = Instant::now() + core.config().limits.startup;
    let (core, server, names, caller) =
        (Arc::clone(core), Arc::clone(server), names.to_vec(), caller.clone());
    tokio::spawn(async move {
        let owners = |server: &Server| shared_owner(server, &caller);
        crate::select::select! {
            () = server.until_ending() => {}
            () = order::demand_all(&core, &names, &owners, budget) => {}
        }
    });
}

/// A server that is to begin, and those that have to be gone before.
struct Wait {
    new: Arc<Server>,
    before: Vec<Arc<Server>>,
}

impl Wait {
    /// What `new` has to wait for, of those that have `left`. It starts nothing from now on.
    fn of(plan: &Plan, new: &Arc<Server>, left: &[Arc<Server>]) -> Self {
        let before: Vec<Arc<Server>> =
            left.iter().filter(|left| plan.precedes(left, new)).map(Arc::clone).collect();
        if !before.is_empty() {
            new.occupy();
        }
        Self { new: Arc::clone(new), before }
    }

    /// Lets it begin when they are gone.
    fn follow(self) {
        if self.before.is_empty() {
            return;
        }
        tokio::spawn(async move {
            join_all(self.before.iter().map(|before| before.until_gone())).await;
            self.new.vacate();
        });
    }
}

/// Whether somebody wanted it up besides the clients that use it: the daemon's start, a person, or what depends on it.
fn is_kept(server: &Server) -> bool {
    server.all_instances().iter().any(|handle| {
        !handle.snapshot().on_demand
            && !matches!(*handle.owner(), Owner::Session(_) | Owner::Spare)
            && server.spec.scope != Scope::Session
    })
}

/// As the plan has it, from what the comparison says.
fn keys_of(change: &ServerChange) -> Vec<KeyChange> {
    match change {
        ServerChange::Changed(keys) => keys.clone(),
        ServerChange::Unchanged | ServerChange::Added | ServerChange::Removed => Vec::new(),
    }
}

/// What was learnt of a server; a ledger that cannot be read costs a handshake more, and no reload.
async fn traits(core: &Core, server: &ostler_domain::ServerSpec) -> ostler_domain::Traits {
    match core.ledger.traits(crate::identity::identity(server)).await {
        Ok(traits) => traits.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(%error, server = %server.name, "what was learnt about a server could not be read");
            ostler_domain::Traits::default()
        }
    }
}
