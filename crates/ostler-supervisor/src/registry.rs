//! The registry: which servers there are, by name, and the instances below them, by id and pid.
//!
//! Readers take the table as it is at that moment and wait for nobody; it is replaced, never changed in place.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::instance::InstanceHandle;
use crate::server::Server;
use crate::watch;
use arc_swap::ArcSwap;

/// How far up a process's guard is looked for.
const MAX_ANCESTORS: usize = 10_000;

/// The servers at one moment.
#[derive(Debug, Default)]
pub struct Table {
    order: Vec<Arc<Server>>,
    by_name: HashMap<String, Arc<Server>>,
}

impl Table {
    fn of(order: Vec<Arc<Server>>) -> Self {
        let current = order.iter().filter(|server| !server.has_left());
        let by_name = current.map(|server| (server.spec.name.to_string(), Arc::clone(server))).collect();
        Self { order, by_name }
    }

    /// All servers: those of the configuration in its order, then those started by hand, then those that a reload
    /// took out and that have not ended yet ([`Server::has_left`]).
    pub fn all(&self) -> &[Arc<Server>] {
        &self.order
    }

    /// The server with this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Server>> {
        self.by_name.get(name)
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Registry {
    table: ArcSwap<Table>,
    /// Held while the next table is made.
    changing: Mutex<()>,
    /// The daemon is stopping: nothing is added any more.
    closed: AtomicBool,
    /// Counts the reloads that put other servers into the table.
    renewals: watch::Sender<u64>,
}

impl Registry {
    /// The servers as they are now.
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// The server with this name.
    pub fn server(&self, name: &str) -> Option<Arc<Server>> {
        self.table.load().get(name).cloned()
    }

    /// The instance with this id, `<server>.<number>`.
    pub fn instance(&self, id: &str) -> Option<Arc<InstanceHandle>> {
        let (server, number) = id.rsplit_once('.')?;
        let number: u32 = number.parse().ok()?;
        // Of the latest first; those that have left keep their instances until these have ended.
        let table = self.table();
        let named = table.all().iter().filter(|known| known.spec.name.as_str() == server);
        named.flat_map(|server| server.instances()).find(|handle| handle.id.number == number)
    }

    /// The version of this server that is in force: itself, where there is none.
    pub(crate) fn latest(&self, server: &Arc<Server>) -> Arc<Server> {
        let known = self.server(server.instances_name().as_str());
        known.filter(|known| known.is_same(server)).unwrap_or_else(|| Arc::clone(server))
    }

    /// The server that is in force under the name of this one: itself, where there is none.
    pub(crate) fn in_place_of(&self, server: &Arc<Server>) -> Arc<Server> {
        self.server(server.spec.name.as_str()).unwrap_or_else(|| Arc::clone(server))
    }

    /// Tells of each reload that put other servers into the table, after it did.
    pub(crate) fn renewals(&self) -> watch::Receiver<u64> {
        self.renewals.subscribe()
    }

    /// Tells whoever follows a server by its name to look again.
    pub(crate) fn renewed(&self) {
        self.renewals.send_modify(|count| *count += 1);
    }

    /// All instances of all servers.
    pub fn instances(&self) -> impl Iterator<Item = Arc<InstanceHandle>> {
        let table = self.table();
        let servers: Vec<_> = table.all().to_vec();
        servers.into_iter().flat_map(|server| server.instances())
    }

    /// The instance to whose tree this process belongs, its guard included.
    pub fn by_pid(&self, pid: u32) -> Option<Arc<InstanceHandle>> {
        let guards: HashMap<i32, Arc<InstanceHandle>> = self
            .instances()
            .filter_map(|handle| Some((handle.snapshot().tree?.root.guard_pid, handle)))
            .collect();
        // Whatever a process of a tree does, its guard is among its ancestors.
        let parent = |pid: &i32| ostler_os::tree::read(*pid).ok().flatten().map(|process| process.ppid);
        let line = std::iter::successors(i32::try_from(pid).ok(), parent).take(MAX_ANCESTORS);
        line.filter(|pid| *pid > 0).find_map(|pid| guards.get(&pid).cloned())
    }

    /// From now on nobody adds a server: what the table has after this is all that there is to stop.
    pub(crate) fn close(&self) {
        // Behind the lock: whoever is adding one is done with it, and it is in the table.
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::close`] was called. It stays as it is while [`Self::change`] runs.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Replaces the table by what `change` makes of the one before.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Vec<Arc<Server>>) -> T) -> T {
        // What it guards is whole whatever a panicking holder was doing: tables are replaced at one stroke.
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut servers = self.table.load().order.clone();
        let result = change(&mut servers);
        self.table.store(Arc::new(Table::of(servers)));
        result
    }
}
