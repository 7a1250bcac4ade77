//! The simulated operating system, as the drivers see it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ostler_os::meter::TreeRoot;
use ostler_os::{Mark, SpawnError, SpawnRequest};
use ostler_supervisor::launch::{Control, Input, KernelView, Launched, Launcher, Output};
use tokio::sync::{Notify, mpsc};

use super::pipe::{InputEnd, OutputEnd, Pipe};
use super::process::{Birth, Process};
use super::world::{Tree, World};
use crate::dice::Dice;

/// Errors of Linux that a spawn may meet: EAGAIN, ENOMEM, EMFILE.
const SPAWN_ERRORS: [i32; 3] = [11, 12, 24];
/// As many reports as a real guard's queue holds (`ostler-os`, `EVENT_QUEUE`).
const EVENT_QUEUE: usize = 16;
/// Variables of this form carry a port.
const PORT_PREFIX: &str = "PORT_";

/// Starts simulated processes.
#[derive(Debug)]
pub(super) struct System {
    world: World,
}

impl System {
    pub(super) fn new(world: World) -> Self {
        Self { world }
    }

    /// Enters the tree into the world, or says what is wrong with starting it.
    fn enter(&self, request: &SpawnRequest) -> Option<Tree> {
        let mark = request.mark.to_string();
        let mut state = self.world.lock();
        let Some(record) = state.rows.get(&mark).cloned() else {
            drop(state);
            self.world.violate(format!("the tree {mark} was started without being in the ledger"));
            return None;
        };
        let ports = request.env.iter().filter(|(name, _)| name.to_string_lossy().starts_with(PORT_PREFIX));
        let ports = ports.map(|(_, value)| value.to_string_lossy().into_owned()).collect();
        let guard_pid = state.new_pid();
        let tree = Tree { record, guard_pid, leader_pid: None, alive: true, opened: false, ports };
        state.trees.insert(mark, tree.clone());
        Some(tree)
    }
}

impl Launcher for System {
    fn launch(&self, request: SpawnRequest) -> Result<Launched, SpawnError> {
        let plan = self.world.plan();
        let mark = request.mark;
        let mut dice = Dice::of(plan.seed, &mark.to_string());
        let server = request.args.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let temperament = plan.temperaments.get(&server).cloned().unwrap_or_default();
        if dice.chance(temperament.launch_fails) {
            let error = io::Error::from_raw_os_error(*dice.pick(&SPAWN_ERRORS));
            self.world.step(|| format!("{server}: launch fails: {error}"));
            return Err(SpawnError::Channels(error));
        }
        let Some(tree) = self.enter(&request) else {
            return Err(SpawnError::Channels(io::ErrorKind::Other.into()));
        };
        let wake = Arc::new(Notify::new());
        let pipe = |name: &str| Pipe::new(Dice::of(plan.seed, &format!("{mark} {name}")), Arc::clone(&wake));
        let (stdin, stdout, stderr) = (pipe("stdin"), pipe("stdout"), pipe("stderr"));
        let orders = Arc::new(Orders { wake: Arc::clone(&wake), ..Orders::default() });
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let name = format!("{} g{}", tree.record.instance, tree.record.generation);
        self.world.step(|| format!("{name}: launched behind guard {}", tree.guard_pid));
        let birth = Birth {
            world: self.world.clone(),
            mark,
            name: name.clone(),
            temperament,
            dice,
            stdin: stdin.clone(),
            stdout: stdout.clone(),
            stderr: stderr.clone(),
            orders: Arc::clone(&orders),
            events,
        };
        tokio::spawn(Process::new(birth).run());
        Ok(Launched {
            stdin: Input::Simulated(Box::new(InputEnd(stdin))),
            stdout: Output::Simulated(Box::new(OutputEnd(stdout))),
            stderr: Output::Simulated(Box::new(OutputEnd(stderr))),
            control: Box::new(Hold { orders, name, mark: mark.to_string(), world: self.world.clone() }),
            events: receiver,
            guard_pid: tree.guard_pid.cast_signed(),
            guard_start: u64::from(tree.guard_pid),
            mark,
        })
    }

    fn look(&self, trees: &[TreeRoot]) -> io::Result<KernelView> {
        let state = self.world.lock();
        let lives =
            |tree: &TreeRoot| state.living().any(|living| living.guard_pid.cast_signed() == tree.guard_pid);
        Ok(KernelView { living: trees.iter().map(lives).collect(), strays: Vec::new() })
    }

    fn end_strays(&self) {}

    fn end_marked(&self, _: Mark) {}
}

/// What the daemon wants of a tree.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// How often SIGTERM was ordered.
    pub(super) terminates: AtomicU32,
    /// Whether SIGKILL was ordered.
    pub(super) kill: AtomicBool,
    /// Whether the daemon has let go.
    pub(super) gone: AtomicBool,
    /// Wakes the process.
    pub(super) wake: Arc<Notify>,
}

/// The daemon's hold on a tree.
#[derive(Debug)]
struct Hold {
    orders: Arc<Orders>,
    name: String,
    mark: String,
    world: World,
}

impl Hold {
    /// An order for a tree of a generation that another has followed comes from somebody who lives in the past.
    fn ordered(&self, order: &str) {
        let stale = {
            let state = self.world.lock();
            let newer = |tree: &&Tree| {
                state.trees.get(&self.mark).is_some_and(|own| {
                    tree.record.instance == own.record.instance
                        && tree.record.generation > own.record.generation
                })
            };
            state.trees.values().find(newer).map(|tree| tree.record.generation)
        };
        if let Some(newer) = stale {
            self.world.violate(format!("{}: {order}, although generation {newer} was started", self.name));
        }
        self.world.step(|| format!("{}: {order}", self.name));
        self.orders.wake.notify_one();
    }
}

impl Control for Hold {
    fn terminate(&self) {
        self.orders.terminates.fetch_add(1, Ordering::Relaxed);
        self.ordered("SIGTERM");
    }

    fn kill(&self) {
        self.orders.kill.store(true, Ordering::Relaxed);
        self.ordered("SIGKILL");
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.orders.gone.store(true, Ordering::Relaxed);
        self.orders.wake.notify_one();
        let alive = self.world.lock().trees.get(&self.mark).is_some_and(|tree| tree.alive);
        if alive {
            self.world.violate(format!("{}: the daemon let go of a living tree", self.name));
        }
    }
}
