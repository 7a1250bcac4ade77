//! The simulation: the real supervisor, its real drivers and the real domain, on an operating system made of dice.
//!
//! ```text
//!   people, clients (people.rs) ──▶ ostler-supervisor ──launch──▶ System (system.rs) ──▶ Process (process.rs)
//!                                     │  ▲                                                 guard, server, descendants
//!                                     ▼  └─ pipes (pipe.rs), reports, orders ──────────────┘
//!                                  ledger (records.rs)
//!                     every step ──▶ World (world.rs) ──▶ check.rs, chronicle.rs
//! ```
//!
//! A *seed* decides everything ([`plan::Plan`], and a pair of [`Dice`] for each actor): the configuration, who
//! wants what when, and how the processes, the guard, the kernel and the disk behave. Time is tokio's, paused, so it
//! jumps to the next thing that happens; there is one thread, no real process, file or socket. So a seed replays
//! exactly, to the last line of its trace.
//!
//! After every step (what the simulated system does or is told, what the event log or a snapshot says) everything in
//! `check.rs` must hold. `docs/simulation.md` says what that is and how to follow a failing seed.

mod check;
mod chronicle;
mod people;
mod pipe;
pub mod plan;
mod process;
mod records;
mod system;
mod world;

use std::cell::RefCell;
use std::sync::{Arc, Once};
use std::time::Duration;

use ostler_supervisor::events::Events;
use ostler_supervisor::ledger::Ledger;
use ostler_supervisor::log_file::LogFiles;
use ostler_supervisor::{Caller, InstanceHandle, Supervisor, clock, random};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::dice::Dice;
use people::{Somebody, longest};
use plan::Plan;
use system::System;
use world::World;

/// What came of a seed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// A number for all that happened: equal for equal runs.
    pub hash: u64,
    /// Steps taken, each of them checked.
    pub steps: u64,
    /// Trees that were started.
    pub spawns: usize,
    /// What happened, in order: all of it, or the end.
    pub trace: Vec<String>,
    /// The first promise that was broken.
    pub violation: Option<String>,
}

/// Runs a seed; keeps the last lines of its trace, or, with `keep_trace`, all of them.
///
/// # Panics
/// When no runtime can be made, or within another runtime.
pub fn run(seed: u64, keep_trace: bool) -> Report {
    run_plan(Plan::of(seed), keep_trace)
}

/// Runs a plan that was changed by hand.
///
/// # Panics
/// As [`run`].
pub fn run_plan(plan: Plan, keep_trace: bool) -> Report {
    note_panics();
    PANICS.with_borrow_mut(Vec::clear);
    let seed = plan.seed;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap_or_else(|error| panic!("a runtime for the simulation: {error}"));
    let world = World::new(plan, keep_trace);
    runtime.block_on(async {
        clock::simulated::begin();
        random::simulated::begin(Dice::of(seed, "daemon").bits());
        tokio::select! {
            biased;
            () = world.broken() => {}
            () = life(&world) => {}
        }
    });
    for panic in PANICS.with_borrow_mut(std::mem::take) {
        world.violate(format!("a task panicked: {panic}"));
    }
    let ended = world.finish();
    drop(runtime);
    clock::simulated::end();
    random::simulated::end();
    Report {
        seed,
        hash: ended.hash,
        steps: ended.steps,
        spawns: ended.spawns,
        trace: ended.lines,
        violation: ended.violation,
    }
}

thread_local! {
    /// What panicked on this thread: tokio catches it in tasks, and it must not go unheard.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
            before(panic);
        }));
    });
}

/// A daemon's life: it starts, is used, is left alone perhaps, and is shut down.
async fn life(world: &World) {
    let Some(supervisor) = assemble(world).await else { return };
    world.watch(&supervisor);
    let watching = tokio::spawn(follow_events(world.clone(), Arc::clone(&supervisor)));
    supervisor.start_eager(&Caller { principal: "ann".into(), project: "red".into() });
    let plan = world.plan().clone();
    let mut crowd = crowd(world, &supervisor);
    tokio::time::sleep(plan.horizon).await;
    world.step(|| "the horizon is reached".to_owned());
    if plan.quiet {
        while crowd.join_next().await.is_some() {}
        tokio::time::sleep(quiet_time(world, &supervisor)).await;
        world.step(|| "a quiet time has passed".to_owned());
        if let Err(violation) = check::quiet(world, &supervisor) {
            return world.violate(violation);
        }
    }
    shut_down(world, &supervisor).await;
    if world.lock().down {
        while crowd.join_next().await.is_some() {}
    }
    watching.abort();
}

async fn assemble(world: &World) -> Option<Arc<Supervisor>> {
    let (ledger, jobs) = Ledger::queued("simulated".to_owned());
    tokio::spawn(records::keep(world.clone(), jobs));
    let config = Arc::new(world.plan().config.clone());
    let system = Arc::new(System::new(world.clone()));
    let events = Arc::new(Events::default());
    let log_files = LogFiles::new(None, Arc::clone(&events));
    match Supervisor::assemble(config, system, ledger, events, log_files).await {
        Ok(supervisor) => Some(supervisor),
        Err(error) => {
            world.violate(format!("the supervisor does not start: {error}"));
            None
        }
    }
}

/// Everybody who uses the daemon. Some go on while it is being shut down.
fn crowd(world: &World, supervisor: &Arc<Supervisor>) -> JoinSet<()> {
    let plan = world.plan();
    let mut crowd = JoinSet::new();
    let mut dice = Dice::of(plan.seed, "crowd");
    let mut somebody = |name: String| {
        let longer = if plan.quiet { Duration::ZERO } else { dice.millis(0, 40_000) };
        Somebody {
            world: world.clone(),
            supervisor: Arc::clone(supervisor),
            dice: Dice::of(plan.seed, &name),
            until: Instant::now() + plan.horizon + longer,
            name,
        }
    };
    for number in 1..=plan.clients {
        crowd.spawn(somebody(format!("client {number}")).use_servers());
    }
    for number in 1..=plan.people {
        crowd.spawn(somebody(format!("person {number}")).meddle());
    }
    crowd
}

/// So long that whatever nobody wants must be gone: sessions first, then their calls, then their instances.
fn quiet_time(world: &World, supervisor: &Supervisor) -> Duration {
    let of_server = |server: &Arc<ostler_supervisor::Server>| {
        server.spec.call_max * 2 + server.spec.idle * 3 + longest(world, server) * 4
    };
    world.plan().config.sessions.idle
        + supervisor.servers().all().iter().map(of_server).max().unwrap_or_default()
}

async fn shut_down(world: &World, supervisor: &Arc<Supervisor>) {
    world.lock().stopping = true;
    world.step(|| "shutdown".to_owned());
    let servers = supervisor.servers();
    let slowest = servers.all().iter().map(|server| longest(world, server)).max().unwrap_or_default();
    let allowed = supervisor.config().limits.shutdown;
    let bound = allowed + Duration::from_secs(1);
    let Ok(nothing_runs) = tokio::time::timeout(bound, supervisor.shutdown(check::THE_END)).await else {
        return world.violate(format!("the shutdown had no end within {bound:?}"));
    };
    if !nothing_runs {
        // It gave up on something that takes longer than it has. The daemon ends now, and the guards end the rest:
        // that is `ostler-os`, and tested there.
        if slowest < allowed {
            world.violate("the shutdown gave up on what takes less time than it has".to_owned());
        }
        return world.step(|| "shutdown: gave up".to_owned());
    }
    world.lock().down = true;
    world.step(|| "shutdown: nothing runs".to_owned());
    // The ledger may lag behind; nothing else may still happen.
    tokio::time::sleep(slowest).await;
    if let Err(violation) = check::end(world, supervisor) {
        world.violate(violation);
    }
}

/// What the event log says is a step, and what a snapshot says as well.
async fn follow_events(world: World, supervisor: Arc<Supervisor>) {
    let mut events = supervisor.events().watch();
    let mut known = std::collections::BTreeSet::new();
    let mut followers = JoinSet::new();
    while events.changed().await.is_ok() {
        let seq = *events.borrow_and_update();
        world.step(|| {
            let last = supervisor.events().after(seq - 1, 1);
            last.first()
                .map_or_else(String::new, |entry| format!("event: {}: {}", entry.subject, entry.message))
        });
        for handle in supervisor.servers().all().iter().flat_map(|server| server.instances()) {
            if known.insert(handle.id.clone()) {
                followers.spawn(follow_snapshots(world.clone(), handle));
            }
        }
    }
}

async fn follow_snapshots(world: World, handle: Arc<InstanceHandle>) {
    let mut snapshots = handle.watch();
    let mut last = String::new();
    loop {
        let now = {
            let snapshot = snapshots.borrow_and_update();
            let removed = if snapshot.removed { ", removed" } else { "" };
            format!("{} g{} is {}{removed}", handle.id, snapshot.generation, snapshot.state.as_str())
        };
        if now != last {
            world.step(|| now.clone());
            last = now;
        }
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}
