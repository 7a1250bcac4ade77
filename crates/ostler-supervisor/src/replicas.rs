//! Looks after the number of replicas of a shared server, while it has any.

use std::sync::Arc;

use ostler_domain::event::Happening;
use ostler_domain::replicas::{ReplicasSpec, Scaler, Seen, Step};
use ostler_domain::{Era, State};

use crate::core::Core;
use crate::instance::driver::Inbox;
use crate::instance::{InstanceHandle, Owner};
use crate::order;
use crate::server::{Server, Standing};

/// One task for a server, from its first instance to its last.
pub(crate) fn follow(core: &Arc<Core>, server: &Arc<Server>) {
    let (core, server) = (Arc::clone(core), Arc::clone(server));
    tokio::spawn(async move {
        // In which era it serves is not known before.
        crate::select::select! {
            () = server.until(|standing| !matches!(standing, Standing::Idle | Standing::Coming)) => {}
            () = server.until_ending() => {}
        }
        let mut scalers = [(Era::Legacy, Scaler::default()), (Era::Modern, Scaler::default())];
        while !server.end_scaling() {
            let latest = core.registry.latest(&server);
            let Some(spec) = latest.spec.replicas.clone().filter(|_| !latest.stopped()) else {
                tokio::time::sleep(ReplicasSpec::default().interval).await;
                continue;
            };
            for (era, scaler) in &mut scalers {
                look(&core, &latest, &spec, *era, scaler).await;
            }
            crate::select::select! {
                () = tokio::time::sleep(spec.interval) => {}
                () = server.until_ending() => {}
            }
        }
    });
}

/// One look at the replicas that serve this era, and what follows from it.
async fn look(core: &Arc<Core>, server: &Arc<Server>, spec: &ReplicasSpec, era: Era, scaler: &mut Scaler) {
    let replicas: Vec<Arc<InstanceHandle>> = server
        .all_instances()
        .into_iter()
        .filter(|handle| *handle.owner() == Owner::All && !handle.is_retired() && handle.era() == Some(era))
        .filter(|handle| !matches!(handle.snapshot().state, State::Stopped | State::Failed { .. }))
        .collect();
    if replicas.is_empty() {
        // Nobody has asked for this era, or what there was has ended: who asks next has one started.
        return;
    }
    let calls = |handle: &InstanceHandle| handle.snapshot().connection.as_ref().map_or(0, |c| c.open_calls());
    let seen = Seen {
        replicas: replicas.len(),
        starting: replicas.iter().filter(|handle| !handle.snapshot().state.serves()).count(),
        calls: replicas.iter().map(|handle| calls(handle)).sum(),
    };
    let scaled = |up: bool, replicas: usize| Happening::Scaled { up, replicas, calls: seen.calls };
    match scaler.decide(spec, seen) {
        Step::Up(more) => {
            if let Some(why) = order::held_by(core, server) {
                tracing::warn!(server = %server.spec.name, %why, "no further replica");
                return;
            }
            let made = (0..more).map_while(|_| match server.create_replica(core, era) {
                Ok(_) => Some(()),
                Err(why) => {
                    tracing::warn!(server = %server.spec.name, %why, "no further replica");
                    None
                }
            });
            let made = made.count();
            if made > 0 {
                core.events.record(server.spec.name.as_str(), scaled(true, seen.replicas + made));
            }
        }
        Step::Down => {
            // The latest that nobody uses: a session that it serves keeps it.
            let free = |handle: &&Arc<InstanceHandle>| calls(handle) == 0 && !handle.is_held();
            if let Some(handle) = replicas.iter().rev().find(free) {
                let reason = "there are more replicas than needed (replicas)".to_owned();
                handle.wish(Inbox::EndIfFree(reason, scaled(false, seen.replicas - 1))).await;
            }
        }
        Step::Stay => {}
    }
}
