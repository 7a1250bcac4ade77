//! What follows an empty tree: stay stopped, start again, wait, or slow down.

use super::decide::Turn;
use super::{AfterStop, Cause, State, TimerKind, backoff};
use crate::event::Happening;
use crate::server::RestartPolicy;

impl Turn<'_> {
    /// The tree of a stopping instance is verified empty.
    pub(super) fn settle(&mut self, then: AfterStop) {
        match then {
            AfterStop::Stop { reason } => self.become_stopped(reason),
            AfterStop::Restart { .. } => self.spawn(),
            AfterStop::ByPolicy { cause } => self.judge(cause),
        }
    }

    /// Stays stopped because somebody wanted it; earlier failures are forgiven.
    pub(super) fn become_stopped(&mut self, reason: String) {
        self.cancel();
        self.it.history.clear();
        self.it.state = State::Stopped;
        self.record(Happening::Stopped { reason });
    }

    /// Whether the policy answers this end with a restart, soon or late.
    pub(super) fn policy_restarts(&self, cause: &Cause) -> bool {
        match self.it.policy.restart.policy {
            RestartPolicy::Never => false,
            RestartPolicy::OnFailure => cause.is_failure(),
            RestartPolicy::Always => true,
        }
    }

    /// Nothing is left of an instance that nobody stopped: the restart policy decides.
    pub(super) fn judge(&mut self, cause: Cause) {
        if !self.policy_restarts(&cause) {
            self.cancel();
            if cause.is_failure() {
                self.it.state = State::Failed { cause: cause.clone() };
                self.record(Happening::Failed { cause });
            } else {
                self.it.state = State::Stopped;
                self.record(Happening::Stopped { reason: cause.to_string() });
            }
            return;
        }
        let restart = self.it.policy.restart.clone();
        if cause.is_failure() {
            self.it.history.failures = self.it.history.failures.saturating_add(1);
        }
        if self.it.history.on_trial || !self.it.history.admit(&restart, self.now) {
            return self.become_broken(cause);
        }
        let failures = self.it.history.failures;
        let delay = backoff::backoff_delay(&restart, failures, self.entropy);
        let until = self.now.after(delay);
        self.record(Happening::RestartScheduled {
            in_: delay,
            attempt: failures.max(1),
            cause: cause.clone(),
        });
        self.arm(TimerKind::Backoff, until);
        self.it.state = State::Backoff { until, failures, cause };
    }

    fn become_broken(&mut self, cause: Cause) {
        let restart = &self.it.policy.restart;
        let (max, window) = (restart.max, restart.window);
        let pause = backoff::broken_pause(restart);
        let next_try = self.now.after(pause);
        let on_trial = self.it.history.on_trial;
        self.record(Happening::GaveUp { next_try_in: pause, max, window, on_trial, cause: cause.clone() });
        self.arm(TimerKind::Retry, next_try);
        self.it.state = State::Broken { next_try, cause };
    }
}
