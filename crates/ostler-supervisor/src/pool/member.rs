//! What takes time with one instance of a pool.

use std::sync::Arc;
use std::time::Duration;

use ostler_domain::instance::State;
use ostler_domain::pool::{Event, Slot};
use ostler_domain::{Era, ports};

use super::{Kind, Pool};
use crate::core::Core;
use crate::instance::{InstanceHandle, Snapshot, is_well};
use crate::program::Program;
use crate::server::Server;

/// Longest for a spare to answer the question whether it serves: whoever wants it is waiting.
const CHECK: Duration = Duration::from_secs(2);

/// Tells the pool what becomes of a member, until nothing of it is left.
pub(super) async fn follow(pool: Arc<Pool>, slot: Slot, handle: Arc<InstanceHandle>, kind: Kind) {
    let mut watch = handle.watch();
    let mut told = None;
    loop {
        let snapshot = Arc::clone(&watch.borrow_and_update());
        if snapshot.removed {
            return pool.gone(slot);
        }
        let now = standing(&snapshot, kind);
        if now != told {
            told.clone_from(&now);
            if let Some(standing) = now {
                pool.stands(slot, standing);
            }
        }
        if watch.changed().await.is_err() {
            return pool.gone(slot);
        }
    }
}

/// How a member stands, as far as the pool is concerned.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Standing {
    Ready,
    Failed(String),
    /// The server is of another era.
    Unserved(Era),
}

fn standing(snapshot: &Snapshot, kind: Kind) -> Option<Standing> {
    if let Some(era) = snapshot.wrong_era {
        return Some(Standing::Unserved(era));
    }
    match (&snapshot.state, kind, snapshot.era) {
        (state, Some(wanted), Some(is)) if state.serves() && wanted != is => Some(Standing::Unserved(wanted)),
        (state, ..) if state.serves() => Some(Standing::Ready),
        (State::Failed { .. } | State::Broken { .. }, ..) => {
            Some(Standing::Failed(snapshot.reason().unwrap_or_else(|| "it failed".to_owned())))
        }
        _ => None,
    }
}

impl Pool {
    fn gone(self: &Arc<Self>, slot: Slot) {
        self.lock().members.remove(&slot);
        self.tell(Event::Gone(slot));
    }

    fn stands(self: &Arc<Self>, slot: Slot, standing: Standing) {
        match standing {
            Standing::Ready => self.tell(Event::Ready(slot)),
            Standing::Failed(why) => self.tell(Event::Failed { slot, why }),
            Standing::Unserved(era) => {
                let why = format!("the server does not serve {} clients", era.as_str());
                self.tell(Event::Unserved { kind: Some(era), why });
                let other = match era {
                    Era::Legacy => Era::Modern,
                    Era::Modern => Era::Legacy,
                };
                self.tell(Event::Kept(Some(other)));
            }
        }
    }
}

/// Whether it serves: one question, in the way its health is asked where that is quick.
pub(super) async fn is_fit(core: &Core, server: &Server, handle: &InstanceHandle) -> bool {
    let snapshot = handle.snapshot();
    if !snapshot.state.serves() {
        return false;
    }
    matches!(tokio::time::timeout(CHECK, is_well(core, server, handle, &snapshot)).await, Ok(Ok(())))
}

/// Runs the command that makes it clean.
pub(super) async fn reset(
    core: &Core,
    server: &Server,
    handle: &InstanceHandle,
    command: &[String],
) -> Result<(), String> {
    let snapshot = handle.snapshot();
    let filled = |text: &String| ports::substitute(text, |name| snapshot.ports.get(name).copied());
    let words: Vec<String> = command.iter().map(filled).collect();
    let [program, args @ ..] = words.as_slice() else { return Err("the command is empty".to_owned()) };
    let launch = &server.spec.launch;
    let mut env = core.environment(&server.spec, &snapshot.ports);
    env.push(("OSTLER_INSTANCE".into(), handle.id.to_string().into()));
    if let Some(pid) = snapshot.pid {
        env.push(("OSTLER_PID".into(), pid.to_string().into()));
    }
    let program = Program { program: program.clone(), args: args.to_vec(), env, cwd: launch.cwd.clone() };
    program.run(&*core.launcher).await.map_err(|trouble| format!("the reset {}", trouble.into_text()))
}
