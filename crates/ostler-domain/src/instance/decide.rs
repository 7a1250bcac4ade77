//! Which event does what in which state.

use super::{
    AfterStop, Cause, Effect, Event, Exit, Instance, Now, StartPhase, State, StopStep, TimerKind, Tree,
};
use crate::event::Happening;
use crate::text::{PIDS_MAX, clip, human};

/// One decision under way: the instance, what came in, and the effects so far.
pub(super) struct Turn<'a> {
    pub(super) it: &'a mut Instance,
    pub(super) now: Now,
    pub(super) entropy: u64,
    pub(super) effects: Vec<Effect>,
}

/// See [`Instance::decide`].
pub(super) fn decide(it: &mut Instance, event: Event, now: Now, entropy: u64) -> Vec<Effect> {
    // An ended generation is as stale as an older one: its tree was verified empty, so whatever is still
    // said about it was said late. Timers outlive the tree (back-off) and are checked against the armed one.
    let stale = event.generation().is_some_and(|generation| {
        let ended = it.tree == Tree::Empty && !matches!(event, Event::Timer { .. });
        generation != it.generation || ended
    });
    if stale {
        return Vec::new();
    }
    let mut turn = Turn { it, now, entropy, effects: Vec::new() };
    turn.take(event);
    turn.effects
}

impl Turn<'_> {
    fn take(&mut self, event: Event) {
        match event {
            Event::Start => self.start(),
            Event::Stop { reason } => self.stop(clip(reason)),
            Event::Restart { reason } => self.restart(clip(reason)),
            Event::Spawned { pid, .. } => self.spawned(pid),
            Event::SpawnFailed { why, .. } => self.spawn_failed(clip(why)),
            Event::HandshakeDone { .. } => self.handshake_done(),
            Event::HandshakeFailed { why, .. } => self.handshake_failed(clip(why)),
            Event::Drained { .. } => self.drained(),
            Event::LeaderExited { exit, .. } => self.leader_exited(exit),
            Event::TreeEmpty { .. } => self.tree_empty(),
            Event::Stuck { pids, .. } => self.stuck(pids),
            Event::Degraded { reason, .. } => self.degraded(clip(reason)),
            Event::Unhealthy { reason, .. } => self.unhealthy(clip(reason)),
            Event::Recovered { .. } => self.recovered(),
            Event::Timer { kind, .. } => self.timer_fired(kind),
        }
    }

    // ---- wishes -------------------------------------------------------------------------------------------

    fn start(&mut self) {
        match &self.it.state {
            State::Stopped | State::Failed { .. } => self.spawn(),
            State::Starting { .. } | State::Ready { .. } | State::Degraded { .. } => {}
            State::Backoff { until, cause, .. } => {
                let why =
                    format!("it is waiting {} before the next try ({cause})", human(until.since(self.now)));
                self.refuse_start(why);
            }
            State::Broken { next_try, cause } => {
                let wait = human(next_try.since(self.now));
                self.refuse_start(format!("it restarted too often; the next try is in {wait} ({cause})"));
            }
            State::Stopping { then, .. } => {
                let comes_back = match then {
                    AfterStop::Stop { .. } => false,
                    AfterStop::Restart { .. } => true,
                    AfterStop::ByPolicy { cause } => self.policy_restarts(cause),
                };
                if !comes_back {
                    self.change_then(AfterStop::Restart {
                        reason: "started again while stopping".to_owned(),
                    });
                }
            }
        }
    }

    fn refuse_start(&mut self, why: String) {
        let why = format!("{why}; a restart does not wait");
        self.record(Happening::Refused { what: "start".to_owned(), why });
    }

    fn stop(&mut self, reason: String) {
        match self.it.state {
            State::Stopped => {}
            State::Backoff { .. } | State::Failed { .. } | State::Broken { .. } => {
                self.become_stopped(reason)
            }
            State::Starting { .. } | State::Ready { .. } | State::Degraded { .. } => {
                self.begin_stop(AfterStop::Stop { reason });
            }
            State::Stopping { .. } => self.change_then(AfterStop::Stop { reason }),
        }
    }

    fn restart(&mut self, reason: String) {
        match self.it.state {
            State::Stopped | State::Failed { .. } | State::Backoff { .. } | State::Broken { .. } => {
                self.record(Happening::RestartAsked { reason });
                self.spawn();
            }
            State::Starting { .. } | State::Ready { .. } | State::Degraded { .. } => {
                self.record(Happening::RestartAsked { reason: reason.clone() });
                self.begin_stop(AfterStop::Restart { reason });
            }
            State::Stopping { .. } => self.change_then(AfterStop::Restart { reason }),
        }
    }

    // ---- starting -----------------------------------------------------------------------------------------

    /// Asks for the next generation. Only called where nothing of this one is left.
    pub(super) fn spawn(&mut self) {
        debug_assert_eq!(
            self.it.tree,
            Tree::Empty,
            "a generation is spawned only after the one before is gone"
        );
        let on_trial = matches!(self.it.state, State::Broken { .. });
        self.it.history.on_trial |= on_trial;
        self.it.generation = self.it.generation.next();
        self.it.tree = Tree::Asked;
        self.it.spawned_at = self.now;
        self.it.kills = 0;
        self.it.stuck.clear();
        self.it.start_failed = false;
        let generation = self.it.generation;
        self.record(Happening::Starting { generation, on_trial });
        self.effects.push(Effect::Spawn { generation });
        let deadline = self.now.after(self.it.policy.deadlines.spawn);
        self.arm(TimerKind::Spawn, deadline);
        self.it.state = State::Starting { phase: StartPhase::Spawn, deadline };
    }

    fn spawned(&mut self, pid: u32) {
        if self.it.tree != Tree::Asked {
            return;
        }
        self.it.tree = Tree::Alive;
        let generation = self.it.generation;
        self.record(Happening::Started { generation, pid });
        match self.it.state {
            State::Starting { .. } => {
                let deadline = self.now.after(self.it.policy.deadlines.handshake);
                self.effects.push(Effect::Handshake { generation });
                self.arm(TimerKind::Handshake, deadline);
                self.it.state = State::Starting { phase: StartPhase::Handshake, deadline };
            }
            // It came after all: what was owed to it is due now.
            State::Stopping { step: StopStep::Kill, .. } => self.effects.push(Effect::Kill { generation }),
            State::Stopping { .. } => self.climb(StopStep::CloseStdin),
            _ => {}
        }
    }

    fn spawn_failed(&mut self, why: String) {
        // A tree that was seen alive ends with `TreeEmpty`; a failure report cannot vouch for it.
        if self.it.tree != Tree::Asked {
            return;
        }
        self.it.tree = Tree::Empty;
        let cause = Cause::SpawnFailed { why };
        match self.it.state.clone() {
            State::Starting { .. } => {
                self.fail_pending(cause.to_string());
                self.start_failed(cause.clone());
                self.judge(cause);
            }
            State::Stopping { then, .. } => {
                self.start_failed(cause);
                self.settle(then);
            }
            _ => {}
        }
    }

    /// Records that this generation did not start. Once: one that is given up may fail on top of that.
    pub(super) fn start_failed(&mut self, cause: Cause) {
        if !std::mem::replace(&mut self.it.start_failed, true) {
            self.record(Happening::StartFailed { cause });
        }
    }

    fn handshake_done(&mut self) {
        if !matches!(self.it.state, State::Starting { phase: StartPhase::Handshake, .. }) {
            return;
        }
        self.it.state = State::Ready { since: self.now };
        self.record(Happening::Ready { after: self.now.since(self.it.spawned_at) });
        self.arm_settled();
    }

    fn handshake_failed(&mut self, why: String) {
        if matches!(self.it.state, State::Starting { phase: StartPhase::Handshake, .. }) {
            self.give_up_start(Cause::HandshakeFailed { why });
        }
    }

    // ---- serving ------------------------------------------------------------------------------------------

    fn degraded(&mut self, reason: String) {
        match &mut self.it.state {
            State::Ready { since } => {
                let since = *since;
                self.note_health(since);
                self.cancel();
                self.it.state = State::Degraded { since: self.now, reason: reason.clone() };
                self.record(Happening::Degraded { reason });
            }
            // The latest reason is shown; a figure in it may change with each probe, so it is not recorded.
            State::Degraded { reason: shown, .. } => *shown = reason,
            _ => {}
        }
    }

    /// It still runs, so it is stopped as politely as any other, and judged like one that ended by itself.
    fn unhealthy(&mut self, why: String) {
        if self.it.state.serves() {
            self.record(Happening::Unhealthy { reason: why.clone() });
            self.begin_stop(AfterStop::ByPolicy { cause: Cause::Unhealthy { why } });
        }
    }

    fn recovered(&mut self) {
        if let State::Degraded { since, .. } = self.it.state {
            self.it.state = State::Ready { since: self.now };
            self.record(Happening::Recovered { after: self.now.since(since) });
            self.arm_settled();
        }
    }

    /// Arms the timer after which earlier failures are forgiven, or none when there are none.
    fn arm_settled(&mut self) {
        if self.it.history.is_clear() {
            self.cancel();
        } else {
            self.arm(TimerKind::Settled, self.now.after(self.it.policy.restart.window));
        }
    }

    /// Forgives earlier failures when the instance was well for the whole window. Called wherever health
    /// ends as well as by the timer, so that a timer which comes late makes no difference.
    pub(super) fn note_health(&mut self, since: Now) {
        let well = self.now.since(since);
        if well >= self.it.policy.restart.window && !self.it.history.is_clear() {
            self.it.history.clear();
            self.record(Happening::Settled { after: well });
        }
    }

    // ---- ending -------------------------------------------------------------------------------------------

    fn leader_exited(&mut self, exit: Exit) {
        if self.it.tree == Tree::Leaderless {
            return;
        }
        self.it.tree = Tree::Leaderless;
        let state = self.it.state.clone();
        match state {
            State::Starting { .. } => self.ended(Cause::ExitedEarly(exit)),
            State::Ready { since } => {
                self.note_health(since);
                self.ended(Cause::Exited(exit));
            }
            State::Degraded { .. } => self.ended(Cause::Exited(exit)),
            State::Stopping { step, then, .. } => {
                self.fail_pending(format!("the server {exit} while it was being stopped"));
                self.record(Happening::Exited { exit, asked: true });
                // Nobody is left to finish calls, and the rest of the tree is nothing a client can reach.
                if step == StopStep::Drain {
                    self.clear_remains(then);
                }
            }
            _ => {}
        }
    }

    /// The leader is gone without having been told to: fail its calls and clear what it left behind.
    fn ended(&mut self, cause: Cause) {
        if let Cause::Exited(exit) | Cause::ExitedEarly(exit) = cause {
            self.record(Happening::Exited { exit, asked: false });
        }
        self.fail_pending(cause.to_string());
        self.clear_remains(AfterStop::ByPolicy { cause });
    }

    fn tree_empty(&mut self) {
        self.it.tree = Tree::Empty;
        let cause = match self.it.state.clone() {
            State::Stopping { step, then, .. } => {
                if step == StopStep::Drain {
                    self.fail_unfinished();
                }
                return self.settle(then);
            }
            State::Starting { .. } => Cause::ExitedEarly(Exit::Unknown),
            State::Ready { since } => {
                self.note_health(since);
                Cause::Exited(Exit::Unknown)
            }
            _ => Cause::Exited(Exit::Unknown),
        };
        self.record(Happening::Exited { exit: Exit::Unknown, asked: false });
        self.fail_pending(cause.to_string());
        self.judge(cause);
    }

    fn stuck(&mut self, mut pids: Vec<u32>) {
        pids.truncate(PIDS_MAX);
        let killing = matches!(self.it.state, State::Stopping { step: StopStep::Kill, .. });
        if killing && pids != self.it.stuck {
            self.it.stuck.clone_from(&pids);
            self.record(Happening::Stuck { pids, kills: self.it.kills });
        }
    }

    // ---- timers -------------------------------------------------------------------------------------------

    fn timer_fired(&mut self, kind: TimerKind) {
        let Some((armed, at)) = self.it.timer else { return };
        if armed != kind {
            return;
        }
        if self.now < at {
            // The clock's grain, or the echo of an earlier timer of this kind.
            self.effects.push(Effect::Timer { generation: self.it.generation, kind, at });
            return;
        }
        self.it.timer = None;
        match (kind, self.it.state.clone()) {
            (TimerKind::Spawn, _) => {
                let cause = Cause::SpawnTimeout { after: self.it.policy.deadlines.spawn };
                self.give_up_start(cause);
            }
            (TimerKind::Handshake, _) => {
                let cause = Cause::HandshakeTimeout { after: self.it.policy.deadlines.handshake };
                self.give_up_start(cause);
            }
            (TimerKind::StopStep, State::Stopping { step, .. }) => self.next_step(step),
            (TimerKind::Backoff | TimerKind::Retry, _) => {
                self.it.restarts = self.it.restarts.saturating_add(1);
                self.spawn();
            }
            (TimerKind::Settled, State::Ready { since }) => self.note_health(since),
            (TimerKind::StopStep | TimerKind::Settled, _) => {}
        }
    }

    // ---- small things -------------------------------------------------------------------------------------

    pub(super) fn record(&mut self, happening: Happening) {
        self.effects.push(Effect::Record(happening));
    }

    pub(super) fn fail_pending(&mut self, reason: String) {
        self.effects.push(Effect::FailPending { generation: self.it.generation, reason });
    }

    pub(super) fn arm(&mut self, kind: TimerKind, at: Now) {
        self.it.timer = Some((kind, at));
        self.effects.push(Effect::Timer { generation: self.it.generation, kind, at });
    }

    pub(super) fn cancel(&mut self) {
        if self.it.timer.take().is_some() {
            self.effects.push(Effect::CancelTimer);
        }
    }
}
