//! The pool of a server: what [`ostler_domain::pool`] decides, done.
//!
//! ```text
//!   sessions ── lease ──► line ┐                       ┌─► instances (drivers of their own)
//!                              ├─► decisions ── effects┤
//!   instances ── followers ────┘                       └─► leases, refusals
//! ```
//!
//! Whoever has something to say takes the lock, tells the decisions, and does what follows: all of it is quick. What
//! takes time (a check, a reset, an end) is a task that comes back with another event. Nobody waits for another under the
//! lock, and a lease is never let go of there, as that takes the lock itself.

mod member;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ostler_domain::event::Happening;
use ostler_domain::pool::{self, Effect, Event, Fence, Figures, OnReturn, PoolSpec, Slot, Ticket};
use ostler_domain::{Era, InstanceId, ServerName};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::clock;
use crate::core::Core;
use crate::instance::{InstanceHandle, Lease, Owner, Unavailable};
use crate::order;
use crate::server::Server;

/// What instances of a pool differ in: nothing where Ostler speaks no MCP with them.
pub(crate) type Kind = Option<Era>;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Pool {
    name: ServerName,
    core: Mutex<Weak<Core>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    decisions: pool::Pool<Kind>,
    members: BTreeMap<Slot, Arc<InstanceHandle>>,
    /// Not started yet: what their server depends on does not serve.
    held: BTreeMap<Slot, AbortHandle>,
    /// Held while they are checked, so that nobody ends them meanwhile.
    checked: BTreeMap<Slot, Lease>,
    line: BTreeMap<Ticket, Waiting>,
    next_ticket: u64,
    timer: Option<AbortHandle>,
}

/// One who waits in line.
#[derive(Debug)]
struct Waiting {
    holder: Owner,
    told: oneshot::Sender<Result<Lease, Unavailable>>,
}

/// A lease's part in a pool: given back when dropped.
#[derive(Debug)]
pub(crate) struct Grip {
    pool: Arc<Pool>,
    slot: Slot,
    fence: Fence,
}

impl Grip {
    /// The number of the lease.
    pub(crate) fn fence(&self) -> u64 {
        self.fence.0
    }
}

impl Drop for Grip {
    fn drop(&mut self) {
        self.pool.tell(Event::Returned { slot: self.slot, fence: self.fence });
    }
}

/// A place in line: given up when dropped.
struct Place<'a> {
    pool: &'a Arc<Pool>,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // A lease that comes in this moment finds nobody, and goes back.
        let waiting = self.pool.lock().line.remove(&self.ticket);
        drop(waiting);
        self.pool.tell(Event::GivenUp(self.ticket));
    }
}

impl Pool {
    /// The pool of this server, with nothing in it.
    pub(crate) fn new(name: ServerName, spec: PoolSpec) -> Arc<Self> {
        let state = State {
            decisions: pool::Pool::new(spec, []),
            members: BTreeMap::new(),
            held: BTreeMap::new(),
            checked: BTreeMap::new(),
            line: BTreeMap::new(),
            next_ticket: 0,
            timer: None,
        };
        Arc::new(Self { name, core: Mutex::default(), state: Mutex::new(state) })
    }

    /// Keeps spares of this kind from now on.
    pub(crate) fn keep(self: &Arc<Self>, core: &Arc<Core>, kind: Kind) {
        self.know(core);
        self.tell(Event::Kept(kind));
        // Whoever asks for it need not wait for what went wrong before.
        self.tell(Event::Room);
    }

    /// An instance of this kind for `holder`, who waits in line for it if need be.
    ///
    /// # Errors
    /// [`Unavailable::Limit`], with the place in line and what is in the way.
    pub(crate) async fn lease(
        self: &Arc<Self>,
        core: &Arc<Core>,
        holder: Owner,
        kind: Kind,
    ) -> Result<Lease, Unavailable> {
        self.know(core);
        let (told, answer) = oneshot::channel();
        let (ticket, deadline) = {
            let mut state = self.lock();
            state.next_ticket += 1;
            let ticket = Ticket(state.next_ticket);
            state.line.insert(ticket, Waiting { holder, told });
            (ticket, clock::now().after(state.decisions.spec().wait))
        };
        let _place = Place { pool: self, ticket };
        self.tell(Event::Wanted { ticket, kind, deadline });
        answer.await.unwrap_or_else(|_| Err(self.refusal("the daemon is stopping")))
    }

    /// How it is to be from now on.
    pub(crate) fn configure(self: &Arc<Self>, spec: PoolSpec) {
        self.tell(Event::Configured(spec));
    }

    /// Serves nobody any more, and ends its spares.
    pub(crate) fn close(self: &Arc<Self>) {
        self.tell(Event::Closed);
    }

    /// Most instances, and what they are doing.
    pub(crate) fn figures(&self) -> (usize, Figures) {
        let state = self.lock();
        (state.decisions.spec().max, state.decisions.figures())
    }

    /// Whether a process that came back is never used again.
    pub(crate) fn is_clean_by_itself(&self) -> bool {
        self.lock().decisions.spec().on_return == OnReturn::Restart
    }

    fn know(&self, core: &Arc<Core>) {
        *self.core.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(core);
    }

    fn refusal(&self, why: impl std::fmt::Display) -> Unavailable {
        Unavailable::Limit(format!("no instance of `{}` for this session: {why}", self.name))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn core(&self) -> Option<Arc<Core>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    /// The server as it is in force now.
    fn server(self: &Arc<Self>, core: &Core) -> Option<Arc<Server>> {
        let table = core.registry.table();
        table.all().iter().find(|server| server.has_pool(self)).cloned()
    }

    /// Tells the decisions what happened, and does what follows.
    fn tell(self: &Arc<Self>, event: Event<Kind>) {
        // Before anything is started for it there is nothing to be done.
        let Some(core) = self.core() else { return };
        let mut state = self.lock();
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let checked = match &event {
                Event::Checked { slot, .. } => Some(*slot),
                _ => None,
            };
            state.note_return(&event);
            for effect in state.decisions.decide(event, clock::now()) {
                self.perform(&core, &mut state, effect, &mut events);
            }
            // Unless it was handed on.
            checked.and_then(|slot| state.checked.remove(&slot));
        }
    }

    fn perform(
        self: &Arc<Self>,
        core: &Arc<Core>,
        state: &mut State,
        effect: Effect<Kind>,
        events: &mut VecDeque<Event<Kind>>,
    ) {
        match effect {
            Effect::Create { slot, kind } => match self.create(core, state, slot, kind) {
                Ok(()) => {}
                Err(why) => events.extend(never_was(slot, &why)),
            },
            Effect::Check(slot) => self.check(core, state, slot, events),
            Effect::Hand { ticket, slot, fence } => self.hand(core, state, (ticket, slot, fence), events),
            Effect::Refuse { ticket, why } => {
                core.events.count(&format!("pool.{} refused", self.name));
                if let Some(waiting) = state.line.remove(&ticket) {
                    // One that is gone needs no telling.
                    let _ = waiting.told.send(Err(self.refusal(why)));
                }
            }
            Effect::Reset(slot) => self.reset(core, state, slot),
            Effect::Retire { slot, why } => {
                if let Some(held) = state.held.remove(&slot) {
                    held.abort();
                    events.push_back(Event::Gone(slot));
                } else if let Some(handle) = state.members.get(&slot).cloned() {
                    tokio::spawn(async move { handle.end(why.to_string()).await });
                }
            }
            Effect::Wake(at) => {
                let pool = Arc::clone(self);
                let timer = tokio::spawn(async move {
                    tokio::time::sleep_until(clock::instant(at)).await;
                    pool.tell(Event::Tick);
                });
                if let Some(earlier) = state.timer.replace(timer.abort_handle()) {
                    earlier.abort();
                }
            }
        }
    }

    fn create(
        self: &Arc<Self>,
        core: &Arc<Core>,
        state: &mut State,
        slot: Slot,
        kind: Kind,
    ) -> Result<(), Unavailable> {
        let server = self.server(core).ok_or_else(|| self.refusal("the server is not there any more"))?;
        if order::held_by(core, &server).is_none() {
            return self.start(core, state, (slot, kind), &server);
        }
        let (pool, core) = (Arc::clone(self), Arc::clone(core));
        let held = tokio::spawn(async move {
            let served = order::for_spare(&core, &server, server.patience()).await;
            pool.go_on(&core, (slot, kind), served);
        });
        state.held.insert(slot, held.abort_handle());
        Ok(())
    }

    /// What it depends on serves, or did not in time.
    fn go_on(
        self: &Arc<Self>,
        core: &Arc<Core>,
        (slot, kind): (Slot, Kind),
        served: Result<(), Unavailable>,
    ) {
        let begun = {
            let mut state = self.lock();
            if state.held.remove(&slot).is_none() {
                // It was given up meanwhile.
                return;
            }
            served.and_then(|()| self.create(core, &mut state, slot, kind))
        };
        if let Err(why) = begun {
            never_was(slot, &why).into_iter().for_each(|event| self.tell(event));
        }
    }

    fn start(
        self: &Arc<Self>,
        core: &Arc<Core>,
        state: &mut State,
        (slot, kind): (Slot, Kind),
        server: &Arc<Server>,
    ) -> Result<(), Unavailable> {
        let handle = server.create_spare(core, kind, state.decisions.figures().waiting > 0)?;
        state.members.insert(slot, Arc::clone(&handle));
        tokio::spawn(member::follow(Arc::clone(self), slot, handle, kind));
        Ok(())
    }

    fn check(
        self: &Arc<Self>,
        core: &Arc<Core>,
        state: &mut State,
        slot: Slot,
        events: &mut VecDeque<Event<Kind>>,
    ) {
        let held = state.members.get(&slot).and_then(InstanceHandle::lease);
        let (Some(held), Some(server)) = (held, self.server(core)) else {
            return events.push_back(Event::Checked { slot, fit: false });
        };
        let (pool, core, handle) = (Arc::clone(self), Arc::clone(core), Arc::clone(held.handle()));
        state.checked.insert(slot, held);
        tokio::spawn(async move {
            let fit = member::is_fit(&core, &server, &handle).await;
            pool.tell(Event::Checked { slot, fit });
        });
    }

    fn hand(
        self: &Arc<Self>,
        core: &Core,
        state: &mut State,
        (ticket, slot, fence): (Ticket, Slot, Fence),
        events: &mut VecDeque<Event<Kind>>,
    ) {
        let back = Event::Returned { slot, fence };
        let (Some(waiting), Some(mut lease)) = (state.line.remove(&ticket), state.checked.remove(&slot))
        else {
            return events.push_back(back);
        };
        lease.set_owner(waiting.holder.clone());
        let happening = Happening::Leased { holder: waiting.holder.to_string(), fence: fence.0 };
        core.events.record(&lease.id.to_string(), happening);
        lease.grip = Some(Grip { pool: Arc::clone(self), slot, fence });
        if let Err(Ok(mut lease)) = waiting.told.send(Ok(lease)) {
            // Dropped here, it would take the lock again.
            std::mem::forget(lease.grip.take());
            events.push_back(back);
        }
    }

    fn reset(self: &Arc<Self>, core: &Arc<Core>, state: &State, slot: Slot) {
        let OnReturn::Command(command, limit) = state.decisions.spec().on_return.clone() else { return };
        let (Some(handle), Some(server)) = (state.members.get(&slot).cloned(), self.server(core)) else {
            return;
        };
        let (pool, core) = (Arc::clone(self), Arc::clone(core));
        tokio::spawn(async move {
            let result = tokio::time::timeout(limit, member::reset(&core, &server, &handle, &command)).await;
            let result =
                result.unwrap_or_else(|_| Err(format!("not done after {limit:?} (pool.reset_time)")));
            if let Err(why) = &result {
                let happening = Happening::ResetFailed { why: why.clone() };
                core.events.record(&handle.id.to_string(), happening);
            }
            pool.tell(Event::Reset { slot, clean: result.is_ok() });
        });
    }

    /// Where an instance is a member: what it was measured to use.
    pub(crate) fn measured(self: &Arc<Self>, id: &InstanceId, rss: u64) {
        let slot = {
            let state = self.lock();
            state.members.iter().find(|(_, handle)| handle.id == *id).map(|(slot, _)| *slot)
        };
        if let Some(slot) = slot {
            self.tell(Event::Measured { slot, rss });
        }
    }
}

/// What is to be said of one that could not be started.
fn never_was(slot: Slot, why: &Unavailable) -> [Event<Kind>; 2] {
    [Event::Failed { slot, why: why.to_string() }, Event::Gone(slot)]
}

impl State {
    /// What comes back is nobody's.
    fn note_return(&self, event: &Event<Kind>) {
        if let Event::Returned { slot, fence } = event
            && self.decisions.fence(*slot) == Some(*fence)
            && let Some(handle) = self.members.get(slot)
        {
            handle.set_owner(Owner::Spare);
        }
    }
}
