//! Making room: who may be stopped for others, and stopping them.

use std::sync::Arc;
use std::time::Duration;

use ostler_domain::State;
use ostler_domain::event::Happening;
use ostler_domain::instance::Now;
use ostler_domain::pressure::{Action, Candidate, Measure, Need, Occupation, relieve};

use crate::core::Core;
use crate::instance::driver::Inbox;
use crate::instance::{InstanceHandle, Owner};
use crate::order;
use crate::registry::Table;
use crate::server::Server;
use crate::session::Sessions;

/// Somebody was refused a place, when so many had been let in: what nobody uses is stopped, so that the next try may
/// succeed. Nobody is disturbed.
pub(super) async fn slots(core: &Arc<Core>, need: &Need, let_in: u64) {
    let Need::Slots { count, type_name } = need else { return };
    // In this order: what ends in between is seen.
    let coming = places_coming(core, type_name.as_deref());
    let count = count.saturating_sub(coming + core.admission.free(type_name.as_deref()));
    if count == 0 {
        return;
    }
    let why = match type_name {
        Some(name) => format!("another instance of type `{name}` was asked for (limits.per_type)"),
        None => "another instance was asked for (limits.processes)".to_owned(),
    };
    let relief = relieve(&Need::Slots { count, type_name: type_name.clone() }, &candidates(core), false);
    // Somebody has got a place since: mostly who was refused, with another try. Who was not asks again.
    if core.admission.let_in() != let_in {
        return;
    }
    for action in &relief.actions {
        perform(core, None, action, &why).await;
    }
}

/// Memory is short. Gives what is still missing, in bytes, when all is done that may be.
pub(super) async fn memory(core: &Arc<Core>, sessions: &Sessions, need: &Need, why: &str) -> u64 {
    let relief = relieve(need, &candidates(core), core.config().limits.emergency);
    for action in &relief.actions {
        perform(core, Some(sessions), action, why).await;
    }
    relief.short
}

/// Places that will be free soon anyway, of one type or of all: of those that are ending for good. One that SIGKILL did
/// not end may stay for ever.
fn places_coming(core: &Core, type_name: Option<&str>) -> usize {
    let survivors = core.cleanup.survivors();
    let table = core.registry.table();
    let counted = |handle: &InstanceHandle| match *handle.owner() {
        // See `admission::Bounds`.
        Owner::Session(_) | Owner::Spare => type_name.is_none(),
        Owner::All | Owner::Principal(_) | Owner::Project(_) => true,
    };
    let servers = table.all().iter().filter(|server| server.is_configured());
    let of_type = servers.filter(|server| type_name.is_none_or(|name| server.spec.type_name == name));
    let instances = of_type.flat_map(|server| server.instances());
    let ending = instances.filter(|handle| handle.is_retired() && !handle.snapshot().removed);
    ending.filter(|handle| counted(handle) && !survivors.contains(&handle.id)).count()
}

async fn perform(core: &Core, sessions: Option<&Sessions>, action: &Action, why: &str) {
    let Some(handle) = core.registry.instance(&action.id.to_string()) else { return };
    let what = format!("{action}: {why}");
    match action.measure {
        // Somebody may have begun to use it, or it may have shrunk: its driver looks once more, and tells what it does.
        Measure::RetireSpare | Measure::StopIdle => {
            handle.wish(Inbox::EndIfFree(what.clone(), Happening::Relief { what })).await;
            // From then on it is seen to be ending, and nobody else is stopped for the same place.
            handle.decided().await;
        }
        Measure::RestartOverLimit | Measure::RestartBusy => {
            let busy = action.measure == Measure::RestartBusy;
            handle.wish(Inbox::RestartOver { reason: what, busy }).await;
        }
        Measure::StopLeased | Measure::StopBusy => {
            core.events.record(&action.id.to_string(), Happening::Relief { what: what.clone() });
            handle.wish(Inbox::Remove(what.clone())).await;
            // Its sessions have lost what they were about. Their clients begin anew, and are told why they cannot.
            if let Some(sessions) = sessions {
                end_sessions(core, sessions, &handle, &what).await;
            }
        }
    }
}

async fn end_sessions(core: &Core, sessions: &Sessions, handle: &InstanceHandle, reason: &str) {
    for session in sessions.all() {
        if session.holds(handle) && sessions.end(&session.id, reason).await {
            let reason = reason.to_owned();
            core.events.record(&session.handle, Happening::SessionEnded { reason });
        }
    }
}

/// All instances that may be thought of, in the order of the table.
fn candidates(core: &Core) -> Vec<Candidate> {
    let table = core.registry.table();
    let instances = table.all().iter().flat_map(|server| {
        let kept = is_kept(&table, server);
        server.instances().into_iter().filter_map(move |handle| candidate(server, &handle, kept))
    });
    instances.collect()
}

fn candidate(server: &Server, handle: &InstanceHandle, kept: bool) -> Option<Candidate> {
    let snapshot = handle.snapshot();
    let is_new = snapshot.generation == ostler_domain::Generation::default();
    // Not what is on its way up, or on its way out.
    if snapshot.removed
        || is_new
        || handle.is_retired()
        || matches!(snapshot.state, State::Starting { .. } | State::Stopping { .. })
    {
        return None;
    }
    let reading = handle.reading().filter(|reading| reading.generation == snapshot.generation);
    let memory = reading.filter(|_| snapshot.tree.is_some()).map_or(0, |reading| reading.memory_bytes());
    Some(Candidate {
        id: handle.id.clone(),
        type_name: server.spec.type_name.clone(),
        occupation: occupation(server, handle),
        since: Now(Duration::from_millis(handle.last_used_ms())),
        memory,
        own_limit: server.spec.limits.memory,
        kept,
    })
}

fn occupation(server: &Server, handle: &InstanceHandle) -> Occupation {
    if matches!(*handle.owner(), Owner::Spare) {
        return if handle.is_held() { Occupation::Leased } else { Occupation::Spare };
    }
    if !server.spec.transport.is_mcp() {
        // Who uses a plain process cannot be seen.
        return Occupation::Leased;
    }
    let connection = handle.snapshot().connection.clone();
    let (calls, attached) =
        connection.map_or((0, 0), |connection| (connection.open_calls(), connection.attached()));
    if calls > 0 {
        Occupation::Busy
    } else if attached > 0 || handle.is_held() {
        Occupation::Leased
    } else {
        Occupation::Idle
    }
}

/// Whether it runs, or is going to without anybody's doing.
fn may_run(handle: &InstanceHandle) -> bool {
    let snapshot = handle.snapshot();
    match snapshot.state {
        State::Stopped => snapshot.is_new() && !snapshot.removed,
        State::Failed { .. } => false,
        State::Starting { .. }
        | State::Ready { .. }
        | State::Degraded { .. }
        | State::Backoff { .. }
        | State::Stopping { .. }
        | State::Broken { .. } => true,
    }
}

/// Whether it must not be stopped for others: nobody would start it again, or somebody counts on it.
fn is_kept(table: &Table, server: &Server) -> bool {
    let needs_it = |other: &Arc<Server>| {
        order::names(table.all(), server).any(|name| order::needs(other, name))
            && (other.is_awaiting() || other.all_instances().iter().any(|handle| may_run(handle)))
    };
    let required = table.all().iter().any(|named| named.is_same(server) && named.spec.required);
    // Who uses a plain process cannot be seen; those of a pool are.
    let unseen = !server.spec.transport.is_mcp() && server.pool().is_none();
    required || unseen || table.all().iter().any(needs_it)
}

#[cfg(test)]
mod tests {
    use ostler_domain::{ServerSpec, Traits};

    use super::*;
    use crate::registry::Registry;

    #[test]
    fn what_a_start_waits_for_is_not_stopped_for_others() {
        let server = |name: &str, needs: &[&str]| {
            let mut spec = ServerSpec::new(name.parse().expect("a name"), name);
            spec.depends_on = needs.iter().map(|name| name.parse().expect("a name")).collect();
            Server::new(spec, Traits::default(), Arc::default())
        };
        let (needed, user) = (server("needed", &[]), server("user", &["needed"]));
        let registry = Registry::default();
        registry.change(|table| *table = vec![Arc::clone(&needed), Arc::clone(&user)]);
        let table = registry.table();
        assert!(!is_kept(&table, &needed));
        let start = user.await_dependencies();
        assert!(is_kept(&table, &needed) && !is_kept(&table, &user));
        drop(start);
        assert!(!is_kept(&table, &needed));
    }
}
