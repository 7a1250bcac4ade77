//! The stop ladder: drain, close standard input, SIGTERM, SIGKILL, SIGKILL again.

use std::time::Duration;

use super::decide::Turn;
use super::{AfterStop, Cause, Effect, State, StopStep, TimerKind, Tree};
use crate::event::Happening;

/// The shortest interval between two SIGKILLs, for a `Deadlines::kill` that is next to nothing.
pub const KILL_RETRY_MIN: Duration = Duration::from_millis(100);

/// The longest interval between two SIGKILLs. A process that survives one is in the kernel (a dead network
/// file system, a broken driver); it goes when that lets go of it, and killing it more often helps nobody.
pub const KILL_RETRY_MAX: Duration = Duration::from_secs(60);

impl Turn<'_> {
    /// Leaves a state in which something runs, because somebody wants it stopped or restarted.
    pub(super) fn begin_stop(&mut self, then: AfterStop) {
        let (serving, since) = match self.it.state {
            State::Ready { since } => (true, Some(since)),
            State::Degraded { .. } => (true, None),
            _ => (false, None),
        };
        if let Some(since) = since {
            self.note_health(since);
        }
        if self.it.tree == Tree::Asked {
            return self.await_spawn(then);
        }
        let first = if serving { StopStep::Drain } else { StopStep::CloseStdin };
        self.enter(then);
        if !serving {
            self.fail_unfinished();
        }
        self.climb(first);
    }

    /// Stops what is still being spawned: it stays owned, and the ladder begins when it is there. The spawn
    /// deadline keeps running and leads to SIGKILL.
    fn await_spawn(&mut self, then: AfterStop) {
        if let AfterStop::Stop { reason } = &then {
            self.record(Happening::StopAsked { reason: reason.clone() });
        }
        self.fail_pending(format!("the server {} before it was running", ending(&then)));
        let deadline = self.it.timer.map_or(self.now, |(_, at)| at);
        self.arm(TimerKind::StopStep, deadline);
        self.it.state = State::Stopping { step: StopStep::CloseStdin, deadline, then };
    }

    /// Gives up a start that failed or took too long: what runs is ended with little ceremony.
    pub(super) fn give_up_start(&mut self, cause: Cause) {
        self.start_failed(cause.clone());
        self.fail_pending(cause.to_string());
        if self.it.tree == Tree::Asked {
            self.enter(AfterStop::ByPolicy { cause });
            self.climb(StopStep::Kill);
        } else {
            self.effects.push(Effect::CloseStdin { generation: self.it.generation });
            self.clear_remains(AfterStop::ByPolicy { cause });
        }
    }

    /// Ends what is left of a tree that serves nobody: SIGTERM, a short grace, SIGKILL.
    pub(super) fn clear_remains(&mut self, then: AfterStop) {
        let deadlines = &self.it.policy.deadlines;
        let grace = deadlines.term_grace.min(deadlines.stdin_grace);
        self.enter(then);
        self.effects.push(Effect::Terminate { generation: self.it.generation });
        self.stand_on(StopStep::Terminate, grace);
    }

    /// Becomes `Stopping`; the caller takes the first rung right after.
    fn enter(&mut self, then: AfterStop) {
        self.it.state = State::Stopping { step: StopStep::Drain, deadline: self.now, then };
    }

    /// The deadline of a rung has passed.
    pub(super) fn next_step(&mut self, step: StopStep) {
        let next = match step {
            StopStep::Drain => {
                self.fail_unfinished();
                StopStep::CloseStdin
            }
            // The spawn never answered: there is nobody to be polite to.
            StopStep::CloseStdin if self.it.tree == Tree::Asked => StopStep::Kill,
            StopStep::CloseStdin => StopStep::Terminate,
            StopStep::Terminate | StopStep::Kill => StopStep::Kill,
        };
        self.climb(next);
    }

    /// No call runs any more: no need to wait for the drain deadline.
    pub(super) fn drained(&mut self) {
        if matches!(self.it.state, State::Stopping { step: StopStep::Drain, .. }) {
            self.climb(StopStep::CloseStdin);
        }
    }

    /// Fails the calls that are still waiting, saying what the stop is for.
    pub(super) fn fail_unfinished(&mut self) {
        if let State::Stopping { then, .. } = &self.it.state {
            let reason = format!("the server {} before the call was answered", ending(then));
            self.fail_pending(reason);
        }
    }

    /// Takes a rung of the ladder.
    pub(super) fn climb(&mut self, step: StopStep) {
        let generation = self.it.generation;
        let deadlines = self.it.policy.deadlines.clone();
        let (effect, grace) = match step {
            StopStep::Drain => (Effect::Drain { generation }, deadlines.drain),
            StopStep::CloseStdin => (Effect::CloseStdin { generation }, deadlines.stdin_grace),
            StopStep::Terminate => (Effect::Terminate { generation }, deadlines.term_grace),
            StopStep::Kill => {
                self.it.kills = self.it.kills.saturating_add(1);
                (Effect::Kill { generation }, kill_interval(deadlines.kill, self.it.kills))
            }
        };
        self.effects.push(effect);
        self.stand_on(step, grace);
    }

    /// Stands on a rung until its deadline.
    fn stand_on(&mut self, step: StopStep, grace: Duration) {
        let until = self.now.after(grace);
        self.arm(TimerKind::StopStep, until);
        let mut why = None;
        if let State::Stopping { step: at, deadline, then } = &mut self.it.state {
            (*at, *deadline) = (step, until);
            why = Some(reason_of(then));
        }
        if let Some(reason) = why {
            self.record(Happening::StopStep { step, kills: self.it.kills, reason });
        }
    }

    /// Changes what follows the stop under way.
    pub(super) fn change_then(&mut self, new: AfterStop) {
        let State::Stopping { then, .. } = &mut self.it.state else {
            return;
        };
        if *then == new {
            return;
        }
        let what = match &new {
            AfterStop::Restart { reason } => Some(Happening::RestartAsked { reason: reason.clone() }),
            AfterStop::Stop { reason } => Some(Happening::StopAsked { reason: reason.clone() }),
            AfterStop::ByPolicy { .. } => None,
        };
        *then = new;
        if let Some(what) = what {
            self.record(what);
        }
    }
}

/// The pause after the `kills`-th SIGKILL: doubled with each, within the two limits.
fn kill_interval(first: Duration, kills: u32) -> Duration {
    let doublings = kills.saturating_sub(1).min(16);
    first.max(KILL_RETRY_MIN).saturating_mul(1 << doublings).min(KILL_RETRY_MAX.max(first))
}

/// Why the instance is ending, for the event log.
fn reason_of(then: &AfterStop) -> String {
    match then {
        AfterStop::Stop { reason } | AfterStop::Restart { reason } => reason.clone(),
        AfterStop::ByPolicy { cause } => cause.to_string(),
    }
}

/// What a caller is told: "the server ..."
fn ending(then: &AfterStop) -> String {
    match then {
        AfterStop::Stop { reason } => format!("was stopped ({reason})"),
        AfterStop::Restart { reason } => format!("was restarted ({reason})"),
        AfterStop::ByPolicy { .. } => "ended".to_owned(),
    }
}
