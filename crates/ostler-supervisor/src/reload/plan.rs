//! What a reload is going to do, worked out before anything is done.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ostler_config::{Config, ServerChange, diff, in_force};
use ostler_domain::{Deadlines, ServerName, ServerSpec, StartMode};

use super::{Fate, ReloadRefused, Report, ServerReport, keys_of, traits};
use crate::core::Core;
use crate::identity;
use crate::ledger::LedgerError;
use crate::order;
use crate::registry::Table;
use crate::server::Server;

/// Added to the deadlines of a server that ends: for the order to its guard, the kernel and a full queue for killing.
/// Little depends on it: what takes longer is said to be still ending, and waited for by nobody else.
const ENDING_GRACE: Duration = Duration::from_secs(1);

/// The servers of a configuration that is the first one.
///
/// # Errors
/// When what was learnt about them cannot be read.
pub(crate) async fn servers(core: &Arc<Core>, config: &Config) -> Result<Vec<Arc<Server>>, LedgerError> {
    let mut servers: Vec<Arc<Server>> = Vec::with_capacity(config.servers.len());
    for (spec, leader) in config.servers.iter().zip(identity::leaders(&config.servers)) {
        servers.push(match leader {
            Some(leader) => Server::alias(&servers[leader], spec.clone()),
            None => Server::remembered(core, spec.clone()).await?,
        });
    }
    Ok(servers)
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Plan {
    /// What is in force afterwards.
    pub(super) config: Config,
    pub(super) report: Report,
    /// The servers before, with all their names.
    pub(super) before: Arc<Table>,
    /// The servers afterwards, in the order of the configuration.
    pub(super) table: Vec<Arc<Server>>,
    /// New versions of servers whose instances go on.
    pub(super) renewed: Vec<Arc<Server>>,
    /// Of those, the ones that are to start with the daemon from now on.
    pub(super) roused: Vec<Arc<Server>>,
    /// Of those, the ones that need or want servers that they did not before, with these servers' names.
    pub(super) needier: Vec<(Arc<Server>, Vec<ServerName>)>,
    /// Servers that were not there before and have instances of their own.
    pub(super) fresh: Vec<Arc<Server>>,
    /// Servers that end, each with the reason its clients are told. Those that left in an earlier reload and are not gone
    /// yet are not among them: that reload looks after them.
    pub(super) leaving: Vec<(Arc<Server>, Arc<str>)>,
    /// Servers in whose place another comes: some of those, and other names of servers that leave or go on.
    pub(super) successors: Vec<(Arc<Server>, Arc<Server>)>,
    /// Names that mean another server from now on than the one they meant, which goes on: its sessions by that name
    /// end, with this reason.
    pub(super) estranged: Vec<Estranged>,
}

/// The server that a name meant, the name, and why it does so no more.
pub(super) type Estranged = (Arc<Server>, ServerName, Arc<str>);

/// What is known of a server of the new configuration while the plan is made.
struct Next<'a> {
    spec: &'a ServerSpec,
    change: &'a ServerChange,
    old: Option<&'a Arc<Server>>,
}

impl Next<'_> {
    /// Whether its instances can go on, where it has any of its own.
    fn goes_on(&self) -> Option<&Arc<Server>> {
        self.old.filter(|old| old.same_as().is_none() && !self.change.replaces())
    }
}

impl Plan {
    pub(super) async fn make(core: &Arc<Core>, config: Config) -> Result<Self, ReloadRefused> {
        let before = core.config();
        let difference = diff(&before, &config);
        let config = in_force(&before, config);
        let table = core.registry.table();
        let changes: HashMap<&ServerName, &ServerChange> =
            difference.servers.iter().map(|(name, change)| (name, change)).collect();
        let mut next = Vec::with_capacity(config.servers.len());
        for spec in &config.servers {
            let old = table.get(spec.name.as_str());
            if old.is_some_and(|old| !old.is_configured()) {
                return Err(ReloadRefused::Taken(spec.name.clone()));
            }
            next.push(Next {
                spec,
                change: changes.get(&spec.name).copied().unwrap_or(&ServerChange::Added),
                old,
            });
        }
        let mut plan = Self::empty(&table, Report { daemon: difference.daemon.clone(), ..Report::default() });
        plan.place(core, &next).await;
        plan.dismiss_the_gone(&table, &config);
        plan.config = config;
        Ok(plan)
    }

    fn empty(before: &Arc<Table>, report: Report) -> Self {
        Self {
            config: Config::default(),
            report,
            before: Arc::clone(before),
            table: Vec::new(),
            renewed: Vec::new(),
            roused: Vec::new(),
            needier: Vec::new(),
            fresh: Vec::new(),
            leaving: Vec::new(),
            successors: Vec::new(),
            estranged: Vec::new(),
        }
    }

    /// Whether a server of this name was not there before.
    pub(super) fn adds(&self, name: &ServerName) -> bool {
        self.report.servers.iter().any(|server| server.fate == Fate::Added && server.name == *name)
    }

    /// The servers that are new and have instances of their own: nothing of them has run yet.
    pub(super) fn beginning(&self) -> impl Iterator<Item = &Arc<Server>> {
        self.fresh.iter().chain(self.successors.iter().map(|(_, new)| new))
    }

    /// Whether nothing of `new` may run before the server that has left is gone.
    pub(super) fn precedes(&self, left: &Server, new: &Server) -> bool {
        // Its name may have been another one for what has left; and two that would share a process are never two.
        let was = self.successors.iter().any(|(old, heir)| heir.is_same(new) && old.is_same(left));
        was || left.spec.name == new.spec.name || identity::may_share(&left.spec, &new.spec)
    }

    /// How long the next of those that leave may take to be gone, once it is its turn: as long as its calls and its way
    /// down may.
    pub(super) fn patience(&self) -> Duration {
        let ending = self.leaving.iter().map(|(server, _)| server);
        let ending = ending.chain(self.estranged.iter().map(|(leader, ..)| leader));
        let down = ending.map(|server| {
            let Deadlines { drain, stdin_grace, term_grace, kill, .. } = server.spec.deadlines;
            [stdin_grace, term_grace, kill, ENDING_GRACE].into_iter().fold(drain, Duration::saturating_add)
        });
        down.max().unwrap_or(ENDING_GRACE)
    }

    /// Why a server that leaves does so.
    pub(super) fn reason(&self, server: &Server) -> Arc<str> {
        let reason = self.leaving.iter().find(|(left, _)| left.is_same(server)).map(|(_, reason)| reason);
        reason.map_or_else(|| "a reload".into(), Arc::clone)
    }

    /// Finds or makes the server for each definition: first those that have instances of their own.
    async fn place(&mut self, core: &Arc<Core>, next: &[Next<'_>]) {
        let leaders = leaders(next);
        let mut placed: Vec<Option<Arc<Server>>> = vec![None; next.len()];
        for (place, it) in next.iter().enumerate().filter(|(place, _)| leaders[*place] == *place) {
            placed[place] = Some(self.own(core, it).await);
        }
        for (place, it) in next.iter().enumerate() {
            let server = match &placed[leaders[place]] {
                Some(leader) if leaders[place] != place => self.share(it, leader),
                Some(own) => Arc::clone(own),
                None => continue,
            };
            self.table.push(server);
        }
        // In the order of the configuration, whoever leads whom.
        let order = |name: &ServerName| next.iter().position(|it| it.spec.name == *name);
        self.report.servers.sort_by_key(|server| order(&server.name));
    }

    /// A server with instances of its own.
    async fn own(&mut self, core: &Arc<Core>, it: &Next<'_>) -> Arc<Server> {
        if let Some(old) = it.goes_on() {
            let fate = match *it.change == ServerChange::Unchanged {
                true => Fate::Unchanged,
                false => Fate::Changed,
            };
            if old.spec == *it.spec {
                self.tell(it, fate);
                return Arc::clone(old);
            }
            // Also where none of its own keys differs: it has some from the whole daemon (`limits.cleanup_time`).
            let server = old.renewed(it.spec.clone());
            self.renewed.push(Arc::clone(&server));
            let needs = it.spec.depends_on.iter().chain(&it.spec.wants);
            let more: Vec<ServerName> = needs.filter(|name| !order::needs(old, name)).cloned().collect();
            if !more.is_empty() {
                self.needier.push((Arc::clone(&server), more));
            }
            if old.spec.start != StartMode::Eager && it.spec.start == StartMode::Eager {
                self.roused.push(Arc::clone(&server));
            }
            self.tell(it, fate);
            return server;
        }
        let numbers = core.registry.numbers(&it.spec.name);
        let server = Server::new(it.spec.clone(), traits(core, it.spec).await, numbers);
        match it.old {
            None => {
                self.tell(it, Fate::Added);
                self.fresh.push(Arc::clone(&server));
            }
            Some(old) => {
                let reason = self.tell(it, Fate::Replaced);
                if old.same_as().is_some() {
                    self.estranged.push((Arc::clone(old), it.spec.name.clone(), reason));
                } else {
                    self.leaving.push((Arc::clone(old), reason));
                }
                self.successors.push((Arc::clone(old), Arc::clone(&server)));
            }
        }
        server
    }

    /// A server that is another name of `leader`.
    fn share(&mut self, it: &Next<'_>, leader: &Arc<Server>) -> Arc<Server> {
        let server = Server::alias(leader, it.spec.clone());
        let fate = match it.old {
            None => Fate::Added,
            Some(old) if old.is_same(leader) => match it.change {
                ServerChange::Changed(_) => Fate::Changed,
                _ => Fate::Unchanged,
            },
            Some(_) => Fate::Replaced,
        };
        let reason = self.tell(it, fate);
        if let Some(old) = it.old.filter(|_| fate == Fate::Replaced) {
            if old.same_as().is_some() {
                // Its instances are another name's, and may go on: the sessions under this one end.
                self.estranged.push((Arc::clone(old), it.spec.name.clone(), reason));
            } else {
                self.leaving.push((Arc::clone(old), reason));
            }
        }
        server
    }

    /// The servers that the new configuration does not have.
    fn dismiss_the_gone(&mut self, table: &Table, config: &Config) {
        let named = |server: &&Arc<Server>| config.servers.iter().any(|spec| spec.name == server.spec.name);
        let gone = table
            .all()
            .iter()
            .filter(|server| server.is_configured() && !server.has_left() && !named(server));
        for server in gone {
            let name = &server.spec.name;
            let reason: Arc<str> = format!("`{name}` was removed from the configuration").into();
            self.report.servers.push(ServerReport {
                name: name.clone(),
                fate: Fate::Removed,
                keys: Vec::new(),
            });
            if server.same_as().is_some() {
                self.estranged.push((Arc::clone(server), name.clone(), reason));
            } else {
                self.leaving.push((Arc::clone(server), reason));
            }
        }
    }

    /// Puts a server's fate into the report; the reason that the clients of a replaced one are told.
    fn tell(&mut self, it: &Next<'_>, fate: Fate) -> Arc<str> {
        let report = ServerReport { name: it.spec.name.clone(), fate, keys: keys_of(it.change) };
        let reason = format!("`{}` was changed in the configuration ({})", it.spec.name, report.keys());
        self.report.servers.push(report);
        reason.into()
    }
}

/// For each server of the new configuration the one whose instances it uses: its own place, or another's. Among those
/// that may share, one whose instances go on comes first.
fn leaders(next: &[Next<'_>]) -> Vec<usize> {
    let specs: Vec<ServerSpec> = next.iter().map(|it| it.spec.clone()).collect();
    let first: Vec<usize> = identity::leaders(&specs)
        .into_iter()
        .enumerate()
        .map(|(place, leader)| leader.unwrap_or(place))
        .collect();
    (0..next.len())
        .map(|place| {
            let mut group = (0..next.len()).filter(|&other| first[other] == first[place]);
            group.find(|&other| next[other].goes_on().is_some()).unwrap_or(first[place])
        })
        .collect()
}
