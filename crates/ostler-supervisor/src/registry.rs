//! The registry: which servers there are, by name, and the instances below them, by id and pid.
//!
//! Readers take the table as it is at that moment and wait for nobody; it is replaced, never changed in place.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::instance::InstanceHandle;
use crate::server::Server;
use crate::watch;
use arc_swap::ArcSwap;
use ostler_domain::ServerName;

/// How far up a process's guard is looked for.
const MAX_ANCESTORS: usize = 10_000;

/// Names whose numbers are remembered. Beyond that one that no server has is forgotten, and what is new is numbered on
/// from its number.
const MAX_NAMES: usize = 4096;

/// The number of the latest instance by each name, so that no id is used twice, also not by a server that was removed and
/// comes back.
#[derive(Debug, Default)]
struct Numbers {
    latest: BTreeMap<ServerName, Arc<AtomicU32>>,
    /// The highest of those forgotten.
    floor: u32,
}

impl Numbers {
    fn of(&mut self, name: &ServerName) -> Arc<AtomicU32> {
        if let Some(number) = self.latest.get(name) {
            return Arc::clone(number);
        }
        if self.latest.len() >= MAX_NAMES {
            self.forget_one();
        }
        let number = Arc::new(AtomicU32::new(self.floor));
        self.latest.insert(name.clone(), Arc::clone(&number));
        number
    }

    /// Forgets the lowest that no server uses. Those in use are as many as the configuration has servers.
    fn forget_one(&mut self) {
        let unused = self.latest.iter().filter(|(_, number)| Arc::strong_count(number) == 1);
        let unused = unused.map(|(name, number)| (number.load(Ordering::Relaxed), name.clone()));
        if let Some((number, name)) = unused.min() {
            self.latest.remove(&name);
            self.floor = self.floor.max(number);
        }
    }
}

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
    numbers: Mutex<Numbers>,
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

    /// The number of the latest instance of a configured server of this name, to be counted on by the next.
    pub(crate) fn numbers(&self, name: &ServerName) -> Arc<AtomicU32> {
        // Whole at every step.
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner).of(name)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_used_twice_by_one_name_however_many_names_there_were() {
        let registry = Registry::default();
        let name = |name: &str| -> ServerName { name.parse().expect("a name") };
        let used = |of: &str, by: u32| registry.numbers(&name(of)).fetch_add(by, Ordering::Relaxed);
        assert_eq!(used("tool", 3), 0);
        assert_eq!(used("tool", 0), 3, "it was gone in between");
        let kept = registry.numbers(&name("kept"));
        for number in 0..=MAX_NAMES {
            used(&format!("n{number}"), 3);
        }
        assert!(used("tool", 0) >= 3, "it may be forgotten, and is then above what it was");
        kept.store(7, Ordering::Relaxed);
        assert_eq!(used("kept", 0), 7, "what is in use is not forgotten");
        assert_eq!(registry.numbers.lock().expect("nobody panics").latest.len(), MAX_NAMES);
    }
}
