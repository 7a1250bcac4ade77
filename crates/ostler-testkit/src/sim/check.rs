//! What must hold after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ostler_domain::instance::State::Stopping;
use ostler_domain::pool::OnReturn;
use ostler_domain::{Scope, ServerName};
use ostler_supervisor::events::Entry;
use ostler_supervisor::{InstanceHandle, Owner, Server, Session, Snapshot, Supervisor, clock};

use super::world::{State, Tree, World};

/// The reason given for the last stop.
pub(super) const THE_END: &str = "the end";

/// Between a dependency being seen to serve and the start it allows, the dependency may be gone again.
const ORDER_GRACE: Duration = Duration::from_millis(50);

/// Everything that can be said at any moment.
///
/// # Errors
/// The promise that was broken.
pub(super) fn step(world: &World) -> Result<(), String> {
    let Some(supervisor) = world.supervisor() else { return Ok(()) };
    let mut state = world.lock();
    note_serving(&mut state, &supervisor);
    read_events(&mut state, &supervisor)?;
    trees(&state)?;
    sessions(&state, &supervisor)?;
    exclusive(&supervisor)?;
    limits(&state, &supervisor)?;
    for server in supervisor.servers().all() {
        for handle in server.instances() {
            instance(&state, &handle, server.spec.transport.is_mcp())?;
        }
    }
    Ok(())
}

fn read_events(state: &mut State, supervisor: &Supervisor) -> Result<(), String> {
    for entry in supervisor.events().after(state.chronicle.read, usize::MAX) {
        state.chronicle.read(&entry)?;
        lease(state, supervisor, &entry)?;
        order(state, supervisor, &entry)?;
    }
    Ok(())
}

fn note_serving(state: &mut State, supervisor: &Supervisor) {
    for server in supervisor.servers().all() {
        if server.standing().serves() {
            state.served.insert(server.spec.name.clone(), clock::now().0);
        }
    }
}

/// A server comes up after what it needs, and at the end it goes first.
fn order(state: &State, supervisor: &Supervisor, entry: &Entry) -> Result<(), String> {
    let name = entry.subject.rsplit_once('.').map_or("", |(server, _)| server);
    let Some(server) = supervisor.server(name) else { return Ok(()) };
    if entry.kind == "starting" && is_first(&entry.message) {
        let recently = clock::now().0.saturating_sub(ORDER_GRACE);
        let up = |needed: &&ServerName| state.served.get(*needed).is_some_and(|at| *at >= recently);
        if let Some(needed) = server.spec.depends_on.iter().find(|needed| !up(needed)) {
            return Err(format!("{} starts before `{needed}`, which it needs, serves", entry.subject));
        }
    }
    if state.stopping && entry.kind.starts_with("stop") && entry.message.contains(THE_END) {
        let first = |tree: &&Tree| {
            let dependant = supervisor.server(tree.record.instance.server.as_str());
            dependant.is_some_and(|dependant| dependant.spec.depends_on.contains(&server.spec.name))
        };
        if let Some(dependant) = state.living().find(first) {
            return Err(format!(
                "{} is stopped before {}, which needs it",
                entry.subject,
                self::name(dependant)
            ));
        }
    }
    Ok(())
}

fn is_first(message: &str) -> bool {
    message.split(|c: char| !c.is_ascii_digit()).any(|number| number == "1")
}

/// A later lease of a pool has a greater number, and what one session had and is not used again is not another's.
fn lease(state: &mut State, supervisor: &Supervisor, entry: &Entry) -> Result<(), String> {
    if entry.kind != "leased" {
        return Ok(());
    }
    let numbers =
        entry.message.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u64>().ok());
    let fence = numbers.last().ok_or_else(|| format!("a lease without a number: {}", entry.message))?;
    let server = entry.subject.rsplit_once('.').map_or("", |(server, _)| server);
    if let Some(before) = state.fences.insert(server.to_owned(), fence)
        && before >= fence
    {
        return Err(format!("lease {fence} of {server} follows lease {before}"));
    }
    let spec = supervisor.server(server).and_then(|server| server.spec.pool.clone());
    let is_second = !state.leased.insert(entry.subject.clone());
    if is_second && spec.is_some_and(|pool| pool.on_return == OnReturn::Restart) {
        return Err(format!("{} is handed out a second time as it is", entry.subject));
    }
    Ok(())
}

/// What sessions have for themselves is theirs alone.
fn exclusive(supervisor: &Supervisor) -> Result<(), String> {
    let mut held = BTreeMap::new();
    for session in supervisor.sessions().all() {
        for (server, handle) in session.instances() {
            let is_own = supervisor.server(server.as_str()).is_some_and(|it| it.spec.scope == Scope::Session);
            if !is_own {
                continue;
            }
            if let Some(other) = held.insert(handle.id.clone(), Arc::clone(&session.handle)) {
                return Err(format!("{} is session {other}'s and session {}'s", handle.id, session.handle));
            }
            if *handle.owner() != Owner::Session(Arc::clone(&session.handle)) {
                return Err(format!(
                    "{} is held by {} and shown as {}'s",
                    handle.id,
                    session.handle,
                    handle.owner()
                ));
            }
        }
    }
    Ok(())
}

/// A legacy session has an instance, or it is over. A modern one gets another when it next asks.
fn sessions(state: &State, supervisor: &Supervisor) -> Result<(), String> {
    let lost = |session: &&Arc<Session>| session.instance().is_some_and(|handle| handle.snapshot().removed);
    match supervisor.sessions().all().iter().find(lost) {
        Some(session) if !state.stopping => {
            Err(format!("session {} goes on, and what it holds is gone for good", session.handle))
        }
        _ => Ok(()),
    }
}

fn name(tree: &Tree) -> String {
    format!("{} g{}", tree.record.instance, tree.record.generation)
}

/// One generation of an instance at a time, no port twice, nothing after the end.
fn trees(state: &State) -> Result<(), String> {
    let mut instances = BTreeMap::new();
    let mut ports = BTreeSet::new();
    for tree in state.living() {
        if state.down {
            return Err(format!("{} lives after the shutdown", name(tree)));
        }
        if let Some(other) = instances.insert(&tree.record.instance, tree) {
            return Err(format!("{} and {} live at the same time", name(other), name(tree)));
        }
        if let Some(port) = tree.ports.iter().find(|port| !ports.insert(port.as_str())) {
            return Err(format!("port {port} of {} is given to another tree too", name(tree)));
        }
    }
    Ok(())
}

fn limits(state: &State, supervisor: &Supervisor) -> Result<(), String> {
    let config = supervisor.config();
    let limits = &config.limits;
    let living = state.living().count();
    if living > limits.processes {
        return Err(format!("{living} trees live, and limits.processes is {}", limits.processes));
    }
    let sessions = supervisor.sessions().len();
    if sessions > limits.sessions {
        return Err(format!("{sessions} sessions, and limits.sessions is {}", limits.sessions));
    }
    let known: usize = supervisor.servers().all().iter().map(|server| server.instances().len()).sum();
    if known != supervisor.live_instances() {
        return Err(format!("{known} instances, counted as {}", supervisor.live_instances()));
    }
    Ok(())
}

/// What an instance shows is true of its processes.
fn instance(state: &State, handle: &Arc<InstanceHandle>, is_mcp: bool) -> Result<(), String> {
    let snapshot = handle.snapshot();
    let mine = || state.trees.values().filter(|tree| tree.record.instance == handle.id);
    let says = format!("{} g{} is `{}`", handle.id, snapshot.generation, snapshot.state.as_str());
    if (snapshot.state.is_empty() || snapshot.removed)
        && let Some(tree) = mine().find(|tree| tree.alive)
    {
        return Err(format!("{says}, and {} lives", name(tree)));
    }
    let current = mine().find(|tree| tree.record.generation == snapshot.generation);
    if snapshot.state.serves()
        && !current.is_some_and(|tree| if is_mcp { tree.opened } else { tree.leader_pid.is_some() })
    {
        return Err(format!("{says}, and its process never answered the handshake"));
    }
    current_only(&snapshot, current).map_err(|what| format!("{says}, and {what}"))
}

/// Nothing of an earlier generation is shown as this one's.
fn current_only(snapshot: &Snapshot, current: Option<&Tree>) -> Result<(), String> {
    if snapshot.pid.is_some() && snapshot.pid != current.and_then(|tree| tree.leader_pid) {
        return Err(format!("its pid {:?} is not its process's", snapshot.pid));
    }
    let shown = snapshot.tree.map(|tree| tree.root.guard_pid);
    if shown.is_some() && shown != current.map(|tree| tree.guard_pid.cast_signed()) {
        return Err(format!("its guard {shown:?} is not its own"));
    }
    match &snapshot.connection {
        Some(connection) if connection.generation() != snapshot.generation => {
            Err(format!("its connection leads to generation {}", connection.generation()))
        }
        Some(_) | None => Ok(()),
    }
}

/// What must hold once a shutdown has said that nothing runs, and everybody had time to notice.
///
/// # Errors
/// The promise that was broken.
pub(super) fn end(world: &World, supervisor: &Supervisor) -> Result<(), String> {
    let state = world.lock();
    if let Some(tree) = state.living().next() {
        return Err(format!("{} is left after the shutdown", name(tree)));
    }
    if supervisor.live_instances() != 0 {
        return Err(format!("{} instances are left after the shutdown", supervisor.live_instances()));
    }
    if supervisor.budget().used() != 0 {
        return Err(format!("{} bytes of bodies are still held", supervisor.budget().used()));
    }
    let unfinished = state.chronicle.unfinished();
    if !unfinished.is_empty() {
        return Err(format!("no outcome is recorded for {}", unfinished.join(", ")));
    }
    match state.rows.values().next() {
        Some(row) if !state.ledger_failed => {
            Err(format!("the ledger still holds {} g{}", row.instance, row.generation))
        }
        _ => Ok(()),
    }
}

/// What must hold when nobody has wanted anything for long: only what starts by itself may be there.
///
/// # Errors
/// The promise that was broken.
pub(super) fn quiet(world: &World, supervisor: &Supervisor) -> Result<(), String> {
    for server in supervisor.servers().all() {
        let eager = server.spec.is_eager();
        let instances = server.instances();
        for handle in &instances {
            // What a person started stays until a person stops it, and what others need as long as they may come.
            // So do the spares of a pool from its first session on.
            let spare = server.spec.pool.as_ref().is_some_and(|pool| pool.spare > 0);
            let wanted =
                eager || spare || world.plan().people > 0 || is_needed(supervisor, &server.spec.name);
            if !wanted || matches!(*handle.owner(), Owner::Session(_)) {
                let state = handle.snapshot().state.as_str();
                return Err(format!("{} is `{state}` long after anybody wanted it", handle.id));
            }
        }
        let serves = instances.iter().any(|handle| handle.snapshot().state.serves());
        if eager && world.plan().kind && !serves {
            return Err(format!(
                "{} starts with the daemon, has no reason to end, and is gone",
                server.spec.name
            ));
        }
    }
    if world.plan().kind {
        spares(supervisor)?;
    }
    if !supervisor.sessions().is_empty() {
        return Err(format!("{} sessions are left, all idle", supervisor.sessions().len()));
    }
    Ok(())
}

/// A pool that was begun has exactly its spares again; where they grow old, those that replace some may be there too.
fn spares(supervisor: &Supervisor) -> Result<(), String> {
    for server in supervisor.servers().all() {
        let Some(pool) = &server.spec.pool else { continue };
        let instances = server.instances();
        let leaves = |handle: &&Arc<InstanceHandle>| matches!(handle.snapshot().state, Stopping { .. });
        let is_spare = |handle: &&Arc<InstanceHandle>| {
            *handle.owner() == Owner::Spare && handle.snapshot().state.serves()
        };
        let all = instances.len() - instances.iter().filter(leaves).count();
        let ready = instances.iter().filter(is_spare).count();
        let most = if pool.max_age.is_some() { pool.spare * 2 } else { pool.spare };
        let begun = server.spec.is_eager() || !instances.is_empty();
        if begun && (ready < pool.spare || all > most) {
            let name = &server.spec.name;
            return Err(format!("{name} has {ready} spares and {all} instances, not {}", pool.spare));
        }
    }
    Ok(())
}

fn is_needed(supervisor: &Supervisor, name: &ServerName) -> bool {
    let needs =
        |server: &Arc<Server>| server.spec.depends_on.contains(name) || server.spec.wants.contains(name);
    supervisor.servers().all().iter().any(needs)
}
