//! Making room: who may be stopped for others, and stopping them.

use std::sync::Arc;
use std::time::Duration;

use ostler_domain::State;
use ostler_domain::event::Happening;
use ostler_domain::instance::{Event, Now};
use ostler_domain::pressure::{Action, Candidate, Measure, Need, Occupation, relieve};

use crate::core::Core;
use crate::instance::InstanceHandle;
use crate::instance::driver::Inbox;
use crate::order;
use crate::registry::Table;
use crate::server::{Server, Standing};
use crate::session::Sessions;

/// Somebody was refused a place: what nobody uses is stopped, so that the next try may succeed. Nobody is disturbed.
pub(super) async fn slots(core: &Arc<Core>, need: &Need) {
    let relief = relieve(need, &candidates(core), false);
    let why = match need {
        Need::Slots { type_name: Some(name), .. } => {
            format!("another instance of type `{name}` was asked for (limits.per_type)")
        }
        _ => "another instance was asked for (limits.processes)".to_owned(),
    };
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

async fn perform(core: &Core, sessions: Option<&Sessions>, action: &Action, why: &str) {
    let Some(handle) = core.registry.instance(&action.id.to_string()) else { return };
    let what = format!("{action}: {why}");
    match action.measure {
        // Somebody may have begun to use it: its driver looks once more, and tells what it does.
        Measure::RetireSpare | Measure::StopIdle => handle.wish(Inbox::GiveRoom(what)).await,
        Measure::RestartOverLimit | Measure::RestartBusy => {
            core.events.record(&action.id.to_string(), Happening::Relief { what: what.clone() });
            handle.wish(Inbox::Wish(Event::Restart { reason: what })).await;
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
        if session.instance.id == handle.id && sessions.end(&session.id).await {
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

/// Whether it must not be stopped for others: nobody would start it again, or somebody counts on it.
fn is_kept(table: &Table, server: &Server) -> bool {
    let needs_it = |other: &Arc<Server>| {
        order::names(table.all(), server).any(|name| order::needs(other, name))
            && !matches!(other.standing(), Standing::Idle | Standing::Down(..))
    };
    let required = table.all().iter().any(|named| named.is_same(server) && named.spec.required);
    required || !server.spec.transport.is_mcp() || table.all().iter().any(needs_it)
}
