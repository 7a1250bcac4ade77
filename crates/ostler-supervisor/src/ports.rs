//! Ports of instances: given before a process starts, and shown to be its own once it listens.
//!
//! Nothing keeps a stranger from binding a port between the two (a probe would only make the gap smaller), so the
//! kernel is asked whose the listening socket is. A port that turns out to be a stranger's is set aside, and the
//! instance is started again on another. The kernel does not tell when a process begins to listen: while anybody
//! waits for that, one look at all sockets serves all who wait, and nobody looks when nobody waits.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ostler_config::Config;
use ostler_domain::ports::{Allocator, PortError, PortFigures};
use ostler_domain::{Generation, InstanceId, PortWish};
use ostler_os::meter::TreeRoot;
use ostler_os::sockets::{Owner, Sockets};
use tokio::sync::oneshot;

use crate::clock;

/// The pause between two looks at who listens, at first and at most.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// Who holds a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// The instance.
    pub instance: InstanceId,
    /// Which of its processes.
    pub generation: Generation,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.instance)
    }
}

/// The ports of one process, by name.
pub type Given = Arc<BTreeMap<String, u16>>;

/// A port of an instance at which a stranger answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Theft {
    /// The port's name.
    pub name: String,
    /// Its number.
    pub port: u16,
    /// The stranger, where that can be seen.
    pub pid: Option<i32>,
}

impl fmt::Display for Theft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, port, .. } = self;
        match self.pid {
            Some(pid) => write!(f, "port {port} (`{name}`) is in use by process {pid}, which is not its own"),
            None => write!(f, "port {port} (`{name}`) is in use by somebody else"),
        }
    }
}

/// Somebody who waits for a process to listen.
#[derive(Debug)]
struct Waiter {
    tree: TreeRoot,
    ports: Given,
    done: oneshot::Sender<Result<(), Theft>>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Ports {
    allocator: Mutex<Allocator<Holder>>,
    /// Nobody looks while there is none.
    waiters: Mutex<Vec<Waiter>>,
}

impl Ports {
    /// All are free.
    pub fn new(config: &Config) -> Arc<Self> {
        let allocator = Allocator::new(config.ports.range, config.ports.expand, fixed(config));
        Arc::new(Self { allocator: Mutex::new(allocator), waiters: Mutex::default() })
    }

    /// Follows another configuration from now on.
    pub fn configure(&self, config: &Config) {
        self.lock().configure(config.ports.range, config.ports.expand, fixed(config));
    }

    /// How the ports are used.
    pub fn figures(&self) -> PortFigures {
        self.lock().figures()
    }

    /// Gives a process all the ports it wishes for, or none.
    ///
    /// # Errors
    /// The first wish that cannot be met, and why.
    pub fn allocate(&self, wishes: &BTreeMap<String, PortWish>, holder: &Holder) -> Result<Given, PortError> {
        if wishes.is_empty() {
            return Ok(Given::default());
        }
        self.lock().allocate(wishes, holder, clock::now()).map(Arc::new)
    }

    /// Takes back what a process held.
    pub fn release(&self, holder: &Holder) {
        self.lock().release(holder);
    }

    /// Takes back one port of a process.
    pub fn release_one(&self, port: u16, holder: &Holder) {
        self.lock().release_one(port, holder);
    }

    /// The ports that are held, and by whom.
    pub fn held(&self) -> Vec<(u16, Holder)> {
        self.lock().held().map(|(port, holder)| (port, holder.clone())).collect()
    }

    /// A stranger has this port: nobody gets it for a while.
    pub fn stolen(&self, port: u16) {
        self.lock().stolen(port, clock::now());
    }

    /// Resolves when the tree listens on every one of these ports.
    ///
    /// # Errors
    /// [`Theft`] as soon as somebody else is seen to listen on one of them.
    pub async fn listening(self: &Arc<Self>, tree: TreeRoot, ports: Given) -> Result<(), Theft> {
        let (done, answer) = oneshot::channel();
        let first = {
            let mut waiters = self.waiters();
            waiters.push(Waiter { tree, ports, done });
            waiters.len() == 1
        };
        if first {
            tokio::spawn(look(Arc::clone(self)));
        }
        // The task that looks ends only with the runtime, and everything with it.
        answer.await.unwrap_or(Ok(()))
    }

    /// Looks once for everybody who waits; whether anybody still does.
    fn look(&self) -> bool {
        let sockets = match Sockets::take() {
            Ok(sockets) => sockets,
            Err(error) => {
                tracing::warn!(%error, "it cannot be seen who listens; looking again");
                return true;
            }
        };
        // Not held while the processes are looked into.
        let waiting = std::mem::take(&mut *self.waiters());
        let mut left = Vec::new();
        for waiter in waiting.into_iter().filter(|waiter| !waiter.done.is_closed()) {
            match verdict(&sockets, waiter.tree, &waiter.ports) {
                Some(result) => drop(waiter.done.send(result)),
                None => left.push(waiter),
            }
        }
        let mut waiters = self.waiters();
        waiters.append(&mut left);
        !waiters.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Allocator<Holder>> {
        // Each change is whole whatever a panicking holder was doing.
        self.allocator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiters(&self) -> MutexGuard<'_, Vec<Waiter>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ports that servers ask for by number.
fn fixed(config: &Config) -> impl Iterator<Item = u16> {
    config.servers.iter().flat_map(|server| server.ports.values()).filter_map(|wish| match wish {
        PortWish::Fixed(port) => Some(*port),
        PortWish::Auto => None,
    })
}

/// `None` while it is to be waited on.
fn verdict(sockets: &Sockets, tree: TreeRoot, ports: &BTreeMap<String, u16>) -> Option<Result<(), Theft>> {
    let mut all = true;
    for (name, &port) in ports {
        match sockets.owner_of(port, tree) {
            Owner::Tree(_) => {}
            Owner::Other(pid) => return Some(Err(Theft { name: name.clone(), port, pid })),
            Owner::Nobody => all = false,
        }
    }
    all.then_some(Ok(()))
}

/// Whether somebody else listens on one of these ports now.
pub(crate) fn theft(tree: TreeRoot, ports: &BTreeMap<String, u16>) -> Option<Theft> {
    let sockets =
        Sockets::take().map_err(|error| tracing::warn!(%error, "it cannot be seen who listens")).ok()?;
    verdict(&sockets, tree, ports)?.err()
}

async fn look(ports: Arc<Ports>) {
    let mut pause = LOOK_EVERY.0;
    loop {
        let looked = tokio::task::spawn_blocking({
            let ports = Arc::clone(&ports);
            move || ports.look()
        });
        // It fails only when the runtime is going.
        let Ok(more) = looked.await else { return };
        if !more {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_EVERY.1);
    }
}
