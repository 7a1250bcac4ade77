//! What of a session goes on, and when that makes it end. What is due when is decided in [`ostler_domain::session`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ostler_domain::event::Happening;
use ostler_domain::session::{Fate, Seen, SessionState, fate};
use tokio::sync::Notify;

use super::{Session, Sessions};
use crate::clock::now_ms;
use crate::events::Events;
use crate::wait::until;

/// What runs of a session, and when it was heard of.
#[derive(Debug)]
pub(super) struct Pulse {
    /// When its client was last heard of, in milliseconds of [`now_ms`].
    heard_ms: AtomicU64,
    /// The same without listening.
    asked_ms: AtomicU64,
    listening: AtomicU32,
    /// Requests of all kinds but listening, calls and tasks included.
    engaged: AtomicU32,
    calls: AtomicU32,
    calls_begun: AtomicU64,
    tasks: Mutex<Tasks>,
    /// Whether `ending` says how it ends.
    is_draining: AtomicBool,
    ending: Mutex<Option<Ending>>,
    ended: AtomicBool,
    /// Told when no call and no task runs any more.
    quiet: Notify,
    /// Told when it is to end, and when it has.
    over: Notify,
}

#[derive(Debug, Default)]
struct Tasks {
    running: BTreeMap<u64, Box<str>>,
    next: u64,
}

/// How a session ends that takes no new calls.
#[derive(Clone, Debug)]
struct Ending {
    reason: Arc<str>,
    /// `u64::MAX`: whenever nothing runs.
    until_ms: u64,
}

impl Default for Pulse {
    /// Just heard of.
    fn default() -> Self {
        Self {
            heard_ms: now_ms().into(),
            asked_ms: now_ms().into(),
            listening: AtomicU32::new(0),
            engaged: AtomicU32::new(0),
            calls: AtomicU32::new(0),
            calls_begun: AtomicU64::new(0),
            tasks: Mutex::default(),
            is_draining: AtomicBool::new(false),
            ending: Mutex::default(),
            ended: AtomicBool::new(false),
            quiet: Notify::new(),
            over: Notify::new(),
        }
    }
}

impl Pulse {
    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ending(&self) -> MutexGuard<'_, Option<Ending>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_engaged(&self) -> bool {
        self.engaged.load(Ordering::SeqCst) > 0
    }
}

/// Why a session begins no further call.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CallRefused {
    /// As many run as may.
    #[error("{0} calls of this session run already (limits.session_calls)")]
    Calls(usize),
    /// It is on its way to its end.
    #[error("this session is ending and takes no new calls: {0}")]
    Draining(Arc<str>),
}

/// Keeps a session from counting as idle.
#[derive(Debug)]
pub struct Busy {
    session: Arc<Session>,
    by: By,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    Listening,
    Word,
    Call,
    Task(u64),
}

impl Busy {
    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The same, for who keeps it.
    pub fn shared_session(&self) -> &Arc<Session> {
        &self.session
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let (session, pulse) = (&self.session, &self.session.pulse);
        session.hear(self.by);
        match self.by {
            By::Listening | By::Word => {}
            By::Call => {
                pulse.calls.fetch_sub(1, Ordering::Relaxed);
            }
            By::Task(number) => drop(pulse.tasks().running.remove(&number)),
        }
        if session.running() == 0 {
            pulse.quiet.notify_waiters();
        }
        let count = if self.by == By::Listening { &pulse.listening } else { &pulse.engaged };
        if count.fetch_sub(1, Ordering::SeqCst) == 1 {
            session.look();
        }
    }
}

impl Session {
    /// Notes that the client was heard of, and that something of it runs until the guard is dropped.
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.engage(By::Word)
    }

    /// The same for a client that only listens: the session is not idle, but may be stale.
    pub fn listen(self: &Arc<Self>) -> Busy {
        self.engage(By::Listening)
    }

    /// The same for a call.
    ///
    /// # Errors
    /// [`CallRefused`] at `limit` calls at the same time (`limits.session_calls`), and once it is draining.
    pub fn begin_call(self: &Arc<Self>, limit: usize) -> Result<Busy, CallRefused> {
        let most = u32::try_from(limit).unwrap_or(u32::MAX);
        let free = |calls: u32| (calls < most).then_some(calls + 1);
        let calls = &self.pulse.calls;
        calls
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, free)
            .map_err(|_| CallRefused::Calls(limit))?;
        let busy = self.engage(By::Call);
        self.check_draining()?;
        self.pulse.calls_begun.fetch_add(1, Ordering::Relaxed);
        Ok(busy)
    }

    /// The same for a task: something that goes on for the session, whether its client is there or not. How many there
    /// are is their queue's matter.
    pub fn begin_task(self: &Arc<Self>, name: &str) -> Busy {
        let number = {
            let mut tasks = self.pulse.tasks();
            tasks.next += 1;
            let number = tasks.next;
            tasks.running.insert(number, name.into());
            number
        };
        self.engage(By::Task(number))
    }

    fn engage(self: &Arc<Self>, by: By) -> Busy {
        self.hear(by);
        let pulse = &self.pulse;
        let count = if by == By::Listening { &pulse.listening } else { &pulse.engaged };
        count.fetch_add(1, Ordering::SeqCst);
        Busy { session: Arc::clone(self), by }
    }

    fn hear(self: &Arc<Self>, by: By) {
        let now = now_ms();
        self.pulse.heard_ms.store(now, Ordering::Relaxed);
        if by != By::Listening {
            self.pulse.asked_ms.store(now, Ordering::Relaxed);
        }
        self.common.records.touch(self);
    }

    /// Of one that begins and one that ends the session at the same time, one sees the other: each says first what it
    /// does, and then looks.
    fn check_draining(&self) -> Result<(), CallRefused> {
        if !self.pulse.is_draining.load(Ordering::SeqCst) {
            return Ok(());
        }
        let reason = self.pulse.ending().as_ref().map(|ending| Arc::clone(&ending.reason));
        reason.map_or(Ok(()), |reason| Err(CallRefused::Draining(reason)))
    }

    /// Calls that run.
    pub fn calls(&self) -> u32 {
        self.pulse.calls.load(Ordering::Relaxed)
    }

    /// Calls so far.
    pub fn calls_begun(&self) -> u64 {
        self.pulse.calls_begun.load(Ordering::Relaxed)
    }

    /// The names of the tasks that run, oldest first.
    pub fn tasks(&self) -> Vec<String> {
        self.pulse.tasks().running.values().map(ToString::to_string).collect()
    }

    /// Calls and tasks that run.
    pub fn running(&self) -> usize {
        self.calls() as usize + self.pulse.tasks().running.len()
    }

    /// Resolves when no call and no task runs.
    pub(crate) async fn until_quiet(&self) {
        until(&self.pulse.quiet, || (self.running() == 0).then_some(())).await;
    }

    /// Milliseconds since the client was last heard of; 0 while it is busy.
    pub fn idle_ms(&self) -> u64 {
        if self.pulse.is_engaged() || self.pulse.listening.load(Ordering::SeqCst) > 0 {
            return 0;
        }
        self.silent_ms()
    }

    /// The same, whether it is busy or not.
    pub(super) fn silent_ms(&self) -> u64 {
        now_ms().saturating_sub(self.pulse.heard_ms.load(Ordering::Relaxed))
    }

    /// Whether it has ended.
    pub fn ended(&self) -> bool {
        self.pulse.ended.load(Ordering::Acquire)
    }

    pub(super) fn set_ended(&self) {
        self.pulse.ended.store(true, Ordering::Release);
        self.pulse.over.notify_waiters();
    }

    /// Resolves when it has ended.
    pub async fn until_ended(&self) {
        until(&self.pulse.over, || self.ended().then_some(())).await;
    }

    /// Resolves when what runs of it is to be over by a certain time, or it has ended.
    pub(crate) async fn until_to_end(&self) {
        let is_to_end = || self.ended() || self.cut_in_ms().is_some();
        until(&self.pulse.over, || is_to_end().then_some(())).await;
    }

    /// How it stands.
    pub fn state(&self) -> SessionState {
        match (self.ended(), self.pulse.is_draining.load(Ordering::SeqCst)) {
            (true, _) => SessionState::Ended,
            (false, true) => SessionState::Draining,
            (false, false) => SessionState::Active,
        }
    }

    /// Where it is draining: milliseconds until what runs of it is cut; `None` where nothing is.
    pub fn cut_in_ms(&self) -> Option<u64> {
        let until = self.pulse.ending().as_ref()?.until_ms;
        (until != u64::MAX).then(|| until.saturating_sub(now_ms()))
    }

    /// It takes no new calls from now on. False where that is so already; the sooner end counts.
    fn drain(&self, reason: &str, until_ms: u64) -> bool {
        let is_new = {
            let mut ending = self.pulse.ending();
            let is_new = ending.is_none();
            let ending = ending.get_or_insert_with(|| Ending { reason: reason.into(), until_ms });
            ending.until_ms = ending.until_ms.min(until_ms);
            self.pulse.is_draining.store(true, Ordering::SeqCst);
            is_new
        };
        self.pulse.over.notify_waiters();
        is_new
    }

    /// It takes calls again.
    fn resume(&self) {
        let mut ending = self.pulse.ending();
        self.pulse.is_draining.store(false, Ordering::SeqCst);
        *ending = None;
    }

    fn fate(&self) -> Fate {
        let pulse = &self.pulse;
        let draining = pulse.is_draining.load(Ordering::SeqCst);
        let seen = Seen {
            now: now_ms(),
            age: self.age_ms(),
            heard: pulse.heard_ms.load(Ordering::Relaxed),
            asked: pulse.asked_ms.load(Ordering::Relaxed),
            running: pulse.is_engaged(),
            listening: pulse.listening.load(Ordering::SeqCst) > 0,
            owns: self.owns.load(Ordering::SeqCst),
            draining: draining.then(|| pulse.ending().as_ref().map(|ending| ending.until_ms)).flatten(),
        };
        fate(&self.common.life, &seen)
    }

    /// Sees to it that the session is looked at when something is due. To be called when something of it has ended, and
    /// when it gets what may be due later.
    pub(super) fn look(self: &Arc<Self>) {
        match self.fate() {
            Fate::Open => {}
            Fate::Later(due) => self.common.agenda.by(self, due),
            Fate::Over(_) | Fate::Drained { .. } | Fate::Drain(_) => self.common.agenda.by(self, now_ms()),
        }
    }

    /// What runs, in words.
    fn what_runs(&self) -> String {
        let (calls, tasks) = (self.calls() as usize, self.running().saturating_sub(self.calls() as usize));
        let count = |count: usize, one: &str| match count {
            0 => None,
            1 => Some(format!("1 {one}")),
            count => Some(format!("{count} {one}s")),
        };
        let parts: Vec<String> = [count(calls, "call"), count(tasks, "task")].into_iter().flatten().collect();
        match (parts.as_slice(), calls + tasks) {
            ([], _) => "a request of it runs".to_owned(),
            (parts, 1) => format!("{} of it runs", parts.join(" and ")),
            (parts, _) => format!("{} of it run", parts.join(" and ")),
        }
    }
}

impl Sessions {
    /// Ends a session: at once where nothing of it runs, else when that is done, and after `grace` at the latest. How it
    /// stands then.
    pub(crate) async fn drain(
        &self,
        session: &Arc<Session>,
        reason: &str,
        grace: Duration,
        events: &Events,
    ) -> SessionState {
        let grace = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let is_new = session.drain(reason, now_ms().saturating_add(grace));
        if !session.pulse.is_engaged() {
            self.finish(session, reason, events).await;
            return SessionState::Ended;
        }
        if is_new {
            tell_draining(session, reason, events);
        }
        session.look();
        session.state()
    }

    async fn finish(&self, session: &Session, reason: &str, events: &Events) {
        if self.end(&session.id, reason).await {
            events.record(&session.handle, Happening::SessionEnded { reason: reason.to_owned() });
        }
    }

    /// Ends sessions as their time comes. Never returns.
    pub(crate) async fn follow(&self, events: &Events) {
        loop {
            while let Some(session) = self.common.agenda.take() {
                self.see_to(&session, events).await;
            }
            self.common.agenda.until_due().await;
        }
    }

    async fn see_to(&self, session: &Arc<Session>, events: &Events) {
        match session.fate() {
            Fate::Open => {}
            Fate::Later(due) => self.common.agenda.by(session, due),
            Fate::Over(why) => {
                let reason = why.to_string();
                session.drain(&reason, u64::MAX);
                if session.pulse.is_engaged() {
                    // It was heard of in this very moment.
                    session.resume();
                    return session.look();
                }
                self.finish(session, &reason, events).await;
            }
            Fate::Drain(why) => {
                let reason = why.to_string();
                if session.drain(&reason, u64::MAX) {
                    tell_draining(session, &reason, events);
                }
                session.look();
            }
            Fate::Drained { cut } => {
                let reason = session.pulse.ending().as_ref().map(|ending| Arc::clone(&ending.reason));
                let mut reason = reason.as_deref().unwrap_or("it was draining").to_owned();
                if cut {
                    events.count("sessions.grace");
                    reason = format!(
                        "{reason}; {} still, and the grace was over (sessions.grace)",
                        session.what_runs()
                    );
                }
                self.finish(session, &reason, events).await;
            }
        }
    }
}

fn tell_draining(session: &Session, reason: &str, events: &Events) {
    let (reason, running) = (reason.to_owned(), session.what_runs());
    events.record(&session.handle, Happening::SessionDraining { reason, running });
}
