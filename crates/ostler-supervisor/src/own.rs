//! By whom a session's calls are served where a server's scope is `session`: by an instance that it has for itself, or by
//! what its principal's sessions share.

use std::sync::Arc;

use ostler_domain::event::Happening;
use ostler_domain::instance::State;
use ostler_domain::{Era, Scope, ServerName};
use ostler_mcp::version;

use crate::instance::{InstanceHandle, Lease, Owner, Snapshot, Unavailable};
use crate::server::Server;
use crate::session::{MAX_SEATS, Session};
use crate::supervisor::{Caller, Supervisor, falls_back};

/// How often an instance is looked for that another call of the session, whose client has vanished, gives back meanwhile.
const TRIES: usize = 3;

/// Who can be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Eras {
    /// A modern client.
    Modern,
    /// Ostler itself.
    Any,
}

/// An instance that a session has for itself, and serves.
#[derive(Debug)]
pub struct Own {
    /// The instance.
    pub handle: Arc<InstanceHandle>,
    /// What it is like.
    pub snapshot: Arc<Snapshot>,
    /// The number of the lease, where it is of a pool: later ones are greater.
    pub fence: Option<u64>,
}

/// By whom a call of a session is served.
#[derive(Debug)]
pub enum ServedBy {
    /// By the session's own instance.
    Own(Own),
    /// By the one that sessions of its principal share.
    Shared(Lease),
}

impl Supervisor {
    /// The instance for a modern call of a session of a server with scope `session`: its own, unless the session is not
    /// isolated, or none can be had and the server's `fallback` allows the shared one.
    ///
    /// # Errors
    /// [`Unavailable`], with the reason.
    pub async fn instance_for(
        &self,
        session: &Arc<Session>,
        server: &Arc<Server>,
        caller: &Caller,
    ) -> Result<ServedBy, Unavailable> {
        self.instance_in(Eras::Modern, session, server, caller).await
    }

    /// The same for a call that Ostler makes itself, and can make in either era.
    ///
    /// # Errors
    /// [`Unavailable`], with the reason.
    pub(crate) async fn instance_of_any_era(
        &self,
        session: &Arc<Session>,
        server: &Arc<Server>,
        caller: &Caller,
    ) -> Result<ServedBy, Unavailable> {
        self.instance_in(Eras::Any, session, server, caller).await
    }

    async fn instance_in(
        &self,
        eras: Eras,
        session: &Arc<Session>,
        server: &Arc<Server>,
        caller: &Caller,
    ) -> Result<ServedBy, Unavailable> {
        let name = &server.spec.name;
        let shared = async || match eras {
            Eras::Modern => self.modern(server, caller).await,
            Eras::Any => self.shared_of_any_era(server, caller).await,
        };
        if !session.isolated || session.shares_of(name) {
            return shared().await.map(ServedBy::Shared);
        }
        let why = match self.own(eras, session, server, caller).await {
            Err(Unavailable::Limit(why)) if falls_back(server) && session.is_active() => why,
            found => return found.map(ServedBy::Own),
        };
        // What the shared one lacks is not the caller's trouble: it asked for its own.
        let Ok(lease) = shared().await else { return Err(Unavailable::Limit(why)) };
        self.share(session, name, why);
        Ok(ServedBy::Shared(lease))
    }

    /// The instance of a server that a session has for itself; found or started, and waited for until it serves. It is
    /// the session's until that gives it up or ends; where all who wait for it are gone before it has served, it is ended
    /// again. Also of servers that Ostler speaks no MCP with.
    ///
    /// # Errors
    /// [`Unavailable`], with the reason.
    pub async fn own_instance(
        &self,
        session: &Arc<Session>,
        server: &Arc<Server>,
        caller: &Caller,
    ) -> Result<Own, Unavailable> {
        let own = self.own(Eras::Modern, session, server, caller).await?;
        match own.snapshot.era {
            // A modern client could not speak with it.
            Some(Era::Legacy) => Err(Unavailable::WrongEra(server.spec.name.clone(), Era::Modern)),
            _ => Ok(own),
        }
    }

    async fn own(
        &self,
        eras: Eras,
        session: &Arc<Session>,
        server: &Arc<Server>,
        caller: &Caller,
    ) -> Result<Own, Unavailable> {
        let name = &server.spec.name;
        if server.spec.scope != Scope::Session {
            let scope = server.spec.scope.as_str();
            return Err(Unavailable::Limit(format!(
                "no session has an instance of `{name}` for itself: its scope is `{scope}`, not `session`"
            )));
        }
        if !session.isolated {
            return Err(Unavailable::Limit(format!(
                "session {} has no instances for itself: it was opened as not isolated",
                session.handle
            )));
        }
        let mut tries = 1;
        loop {
            let (handle, fence, is_new) = self.seated(eras, session, server, caller).await?;
            let vanished = Vanished::new(session, name, &handle);
            let served = handle.serving(server.patience()).await;
            vanished.stayed();
            match served {
                Ok(snapshot) => return Ok(Own { handle, snapshot, fence }),
                // Another call began it, and its client vanished in this moment.
                Err(_) if handle.is_retired() && !is_new && !session.ended() && tries < TRIES => tries += 1,
                Err(unavailable) => {
                    let is_lost = |lease: &Lease| Arc::ptr_eq(lease.handle(), &handle) && is_lost(lease);
                    session.give_up_if(name, is_lost, "it will not serve its session any more").await;
                    return Err(unavailable);
                }
            }
        }
    }

    /// What sits in the session's place for this server, found or started; its fence, and whether it is new.
    async fn seated(
        &self,
        eras: Eras,
        session: &Arc<Session>,
        server: &Arc<Server>,
        caller: &Caller,
    ) -> Result<(Arc<InstanceHandle>, Option<u64>, bool), Unavailable> {
        let name = &server.spec.name;
        let Some(seat) = session.seat(name) else {
            return Err(Unavailable::Limit(format!(
                "session {} has ended, or has instances of {MAX_SEATS} servers already",
                session.handle
            )));
        };
        let mut seat = seat.lock().await;
        if seat.as_ref().is_some_and(|lease| lease.is_retired()) {
            // It was ended under the session, which begins anew.
            seat.take();
        }
        let is_new = seat.is_none();
        if is_new {
            let owner = Owner::Session(Arc::clone(&session.handle));
            let owner = |_: &Server| (owner.clone(), Some(Arc::from(version::unasked_initialize_params())));
            let era = server.spec.transport.is_mcp().then_some(Era::Modern);
            let lease = match eras {
                Eras::Any => self.acquire_any_era(server, caller, owner).await?,
                Eras::Modern => self.acquire(server, caller, era, owner).await?.1,
            };
            if session.note_own() {
                let instance = lease.id.to_string();
                self.core.events.record(&session.handle, Happening::SessionRenewed { instance });
            }
            *seat = Some(lease);
        }
        if session.ended() {
            drop(seat);
            session.give_up(name).await;
            return Err(Unavailable::Limit(format!("session {} has just ended", session.handle)));
        }
        let Some(lease) = &*seat else { return Err(Unavailable::Limit("it is gone".to_owned())) };
        Ok((Arc::clone(lease.handle()), lease.fence(), is_new))
    }
}

/// Whether an instance is of no use to its session any more: the next call gets another. One that is broken may come
/// back by itself; where there is a pool, one of that is the better choice.
fn is_lost(lease: &Lease) -> bool {
    let snapshot = lease.snapshot();
    let failed = match snapshot.state {
        State::Failed { .. } => true,
        State::Broken { .. } => lease.is_of_pool(),
        _ => false,
    };
    failed || snapshot.removed || snapshot.wrong_era.is_some() || lease.is_retired()
}

/// One who waits for an instance of his session. Where he is gone before it has served at all (this is dropped), it is
/// ended, unless others wait for it too.
struct Vanished(Option<(Arc<Session>, ServerName, Arc<InstanceHandle>)>);

impl Vanished {
    fn new(session: &Arc<Session>, server: &ServerName, handle: &Arc<InstanceHandle>) -> Self {
        Self(Some((Arc::clone(session), server.clone(), Arc::clone(handle))))
    }

    fn stayed(mut self) {
        self.0 = None;
    }
}

impl Drop for Vanished {
    fn drop(&mut self) {
        let Some((session, server, handle)) = self.0.take() else { return };
        let snapshot = handle.snapshot();
        if snapshot.state.serves() || snapshot.restarts > 0 {
            // It is the session's, whether it serves just now or not.
            return;
        }
        tokio::spawn(async move {
            // The session's own hold is the one that is left.
            let is_alone = |lease: &Lease| Arc::ptr_eq(lease.handle(), &handle) && lease.holders() == 1;
            let reason = "its client vanished before it was ready";
            session.give_up_if(&server, is_alone, reason).await;
        });
    }
}
