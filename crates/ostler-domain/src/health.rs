//! Whether an instance is well, as a pure state machine: when to probe it, what the answers amount to.
//!
//! ```text
//!               Ready                 a failure                  `failures` in a row, or
//!     ┌─────┐ ───────▶ ┌────────────┐ ────────▶ ┌────────────┐  `unhealthy_after` without   ┌───────────┐
//!     │ Off │          │  Healthy   │           │  Degraded  │ ──────────────────────────▶ │ Unhealthy │
//!     └─────┘ ◀─────── └────────────┘ ◀──────── └────────────┘      a success              └───────────┘
//!              Ended,        ▲        `successes`                                                │
//!              anywhere      └───────── in a row ────────────────────────────────────────────────┘
//! ```
//!
//! What holds:
//! - At most one probe is out at a time, and each has a deadline: a late one is given up, and has failed.
//! - Nobody is unhealthy who was not degraded before, be it at the same moment.
//! - While calls run, probes of a policy that pauses for them are put off, one that is out may succeed but not
//!   fail, and the time does not count as time without a success: a busy server need not answer. Calls have
//!   deadlines of their own.
//! - Time in which nobody looked does not count either: an event more than [`LATE`] after the timer it should
//!   have followed (a stopped daemon, a machine that slept) gives a probe that is out its whole time again.
//! - Nobody is unhealthy of whom no probe has failed since the latest success.
//! - An answered call is a success like any other.
//! - An answer to a probe that is not the one that is out changes nothing.
//! - What is unwell stays watched: it may recover, and unhealthiness is said once.
//!
//! What follows from `Unhealthy` (a restart, by the restart policy) is the instance's business.

use std::time::Duration;

use crate::instance::Now;
use crate::server::{HealthSpec, Probe};
use crate::text::{clip, human};

/// How late an event may come before the delay counts as time in which nobody looked. Timers of a loaded daemon
/// are late by milliseconds.
pub const LATE: Duration = Duration::from_secs(1);

/// The part of a server's `health` that decisions depend on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthPolicy {
    /// From one probe to the next.
    pub interval: Duration,
    /// A probe without an answer for this long has failed.
    pub timeout: Duration,
    /// Failures in a row that make unhealthy; 0 counts as 1.
    pub failures: u32,
    /// Successes in a row that make well again; 0 counts as 1.
    pub successes: u32,
    /// Time without a success that makes unhealthy. Less than interval and timeout together counts as that.
    pub unhealthy_after: Duration,
    /// Whether running calls put probes off.
    pub pauses_for_calls: bool,
}

impl HealthPolicy {
    /// The policy of a server's configuration; `None` where it is not to be probed.
    pub fn of(spec: &HealthSpec) -> Option<Self> {
        (spec.probe != Probe::None).then_some(Self {
            interval: spec.interval,
            timeout: spec.timeout,
            failures: spec.failures,
            successes: spec.successes,
            unhealthy_after: spec.unhealthy_after,
            pauses_for_calls: spec.probe == Probe::Mcp,
        })
    }

    fn patience(&self) -> Duration {
        self.unhealthy_after.max(self.interval.saturating_add(self.timeout))
    }
}

/// Numbers the probes of one [`Health`]; never used twice, whatever becomes of the instance.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct ProbeId(pub u64);

/// How an instance is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Condition {
    /// Nobody asks: it is not ready.
    Off,
    /// As far as is known it is well.
    Healthy,
    /// A probe failed.
    Degraded,
    /// So many probes failed, or so much time passed, that it counts as useless.
    Unhealthy,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HealthEvent {
    /// A process of it became ready.
    Ready,
    /// It is no longer, for whatever reason.
    Ended,
    /// A probe was answered, or went wrong.
    Answered {
        /// Which.
        probe: ProbeId,
        /// Whether it succeeded, or why not.
        result: Result<(), String>,
    },
    /// Calls run now, or no longer.
    Calls {
        /// Whether any does.
        running: bool,
    },
    /// It gave a sign of life by itself: it answered a call.
    Alive,
    /// The time of the latest `Effect::Timer` has come.
    Timer,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HealthEffect {
    /// Send this probe.
    Probe(ProbeId),
    /// Give this probe up, and kill what it started.
    Abort(ProbeId),
    /// It is degraded now.
    Degraded {
        /// What is wrong.
        reason: String,
    },
    /// It is unhealthy now. Always after `Degraded`.
    Unhealthy {
        /// What is wrong.
        reason: String,
    },
    /// It is well again.
    Recovered {
        /// For how long it was not.
        after: Duration,
    },
    /// Send [`HealthEvent::Timer`] at this time, instead of at any time before; `None`: not at all.
    Timer(Option<Now>),
}

/// The health of one instance.
#[derive(Clone, Debug)]
pub struct Health {
    policy: HealthPolicy,
    condition: Condition,
    /// When it last was well and not known to be otherwise.
    unwell_since: Now,
    failures: u32,
    successes: u32,
    /// The latest success, moved on by the time in which none was to be expected.
    last_success: Now,
    next_probe: Now,
    out: Option<(ProbeId, Now)>,
    latest: ProbeId,
    /// Since when calls run, where they put probes off.
    paused: Option<Now>,
    calls: bool,
    timer: Option<Now>,
}

impl Health {
    /// Of an instance that is not ready.
    pub fn new(policy: HealthPolicy) -> Self {
        Self {
            policy,
            condition: Condition::Off,
            unwell_since: Now::default(),
            failures: 0,
            successes: 0,
            last_success: Now::default(),
            next_probe: Now::default(),
            out: None,
            latest: ProbeId::default(),
            paused: None,
            calls: false,
            timer: None,
        }
    }

    /// The same, which numbers its probes after `latest`.
    pub fn after(policy: HealthPolicy, latest: ProbeId) -> Self {
        Self { latest, ..Self::new(policy) }
    }

    /// The latest probe that was sent; the default before the first.
    pub fn latest_probe(&self) -> ProbeId {
        self.latest
    }

    /// How it is.
    pub fn condition(&self) -> Condition {
        self.condition
    }

    /// Failures in a row so far.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The armed timer: always the latest `HealthEffect::Timer`.
    pub fn timer(&self) -> Option<Now> {
        self.timer
    }

    /// Follows another policy from the next decision on. A probe that is out keeps its deadline.
    pub fn set_policy(&mut self, policy: HealthPolicy) {
        self.policy = policy;
    }

    /// Takes an event and says what is to be done about it, in order.
    pub fn decide(&mut self, event: HealthEvent, now: Now) -> Vec<HealthEffect> {
        let mut effects = Vec::new();
        self.forgive_delay(now);
        match event {
            HealthEvent::Ready => self.begin(now, &mut effects),
            HealthEvent::Ended => {
                self.end(&mut effects);
                self.calls = false;
            }
            HealthEvent::Calls { running } => self.calls = running,
            _ if self.condition == Condition::Off => {}
            HealthEvent::Answered { probe, result } => self.answered(probe, result, now, &mut effects),
            HealthEvent::Alive => self.succeeded(now, &mut effects),
            HealthEvent::Timer => {}
        }
        if self.condition != Condition::Off {
            self.pause(now);
            self.overdue(now, &mut effects);
            self.probe(now, &mut effects);
        }
        self.arm(&mut effects);
        effects
    }

    fn forgive_delay(&mut self, now: Now) {
        let Some(late) = self.timer.map(|at| now.since(at)).filter(|late| *late > LATE) else {
            return;
        };
        self.last_success = self.last_success.after(late);
        if let Some((_, deadline)) = &mut self.out {
            *deadline = now.after(self.policy.timeout);
        }
    }

    fn begin(&mut self, now: Now, effects: &mut Vec<HealthEffect>) {
        self.end(effects);
        self.condition = Condition::Healthy;
        self.last_success = now;
        self.next_probe = now.after(self.policy.interval);
    }

    fn end(&mut self, effects: &mut Vec<HealthEffect>) {
        effects.extend(self.out.take().map(|(probe, _)| HealthEffect::Abort(probe)));
        self.condition = Condition::Off;
        self.paused = None;
        (self.failures, self.successes) = (0, 0);
    }

    /// Stops or goes on with counting time.
    fn pause(&mut self, now: Now) {
        let pause = self.calls && self.policy.pauses_for_calls;
        match (pause, self.paused) {
            (true, None) => self.paused = Some(now),
            (false, Some(since)) => {
                let lost = now.since(since);
                // A success meanwhile may lie later than the pause's begin.
                self.last_success = self.last_success.after(lost).min(now.max(self.last_success));
                // The server needs its time for the probe that is out, too.
                if let Some((_, deadline)) = &mut self.out {
                    *deadline = deadline.after(lost);
                }
                self.paused = None;
            }
            _ => {}
        }
    }

    fn answered(
        &mut self,
        probe: ProbeId,
        result: Result<(), String>,
        now: Now,
        effects: &mut Vec<HealthEffect>,
    ) {
        if self.out.is_none_or(|(out, _)| out != probe) {
            return;
        }
        self.out = None;
        self.next_probe = now.after(self.policy.interval);
        match result {
            Ok(()) => self.succeeded(now, effects),
            // It is asked again as soon as it is not busy.
            Err(_) if self.paused.is_some() => self.next_probe = now,
            Err(why) => self.failed(&why, now, effects),
        }
    }

    fn succeeded(&mut self, now: Now, effects: &mut Vec<HealthEffect>) {
        self.failures = 0;
        self.successes = self.successes.saturating_add(1);
        self.last_success = now;
        if self.condition != Condition::Healthy && self.successes >= self.policy.successes {
            self.condition = Condition::Healthy;
            effects.push(HealthEffect::Recovered { after: now.since(self.unwell_since) });
        }
    }

    fn failed(&mut self, why: &str, now: Now, effects: &mut Vec<HealthEffect>) {
        self.successes = 0;
        self.failures = self.failures.saturating_add(1);
        let of = self.policy.failures.max(1);
        let reason = clip(format!("probe {} of {of} failed in a row: {why}", self.failures));
        self.worse(self.failures >= of, reason, now, effects);
    }

    fn worse(&mut self, unhealthy: bool, reason: String, now: Now, effects: &mut Vec<HealthEffect>) {
        if self.condition == Condition::Healthy {
            self.condition = Condition::Degraded;
            self.unwell_since = now;
            effects.push(HealthEffect::Degraded { reason: reason.clone() });
        }
        if unhealthy && self.condition == Condition::Degraded {
            self.condition = Condition::Unhealthy;
            effects.push(HealthEffect::Unhealthy { reason });
        }
    }

    /// Gives up a late probe, and the instance when nothing has succeeded for too long.
    fn overdue(&mut self, now: Now, effects: &mut Vec<HealthEffect>) {
        if self.paused.is_some() {
            return;
        }
        if let Some((probe, deadline)) = self.out
            && now >= deadline
        {
            self.out = None;
            self.next_probe = now.after(self.policy.interval);
            effects.push(HealthEffect::Abort(probe));
            self.failed(&format!("no answer within {}", human(self.policy.timeout)), now, effects);
        }
        let silent = now.since(self.last_success);
        if self.failures > 0 && silent >= self.policy.patience() && self.condition != Condition::Unhealthy {
            self.worse(true, format!("no probe has succeeded for {}", human(silent)), now, effects);
        }
    }

    fn probe(&mut self, now: Now, effects: &mut Vec<HealthEffect>) {
        if self.paused.is_none() && self.out.is_none() && now >= self.next_probe {
            self.latest = ProbeId(self.latest.0 + 1);
            self.out = Some((self.latest, now.after(self.policy.timeout)));
            effects.push(HealthEffect::Probe(self.latest));
        }
    }

    fn arm(&mut self, effects: &mut Vec<HealthEffect>) {
        let at = (self.condition != Condition::Off && self.paused.is_none()).then(|| {
            let next = self.out.map_or(self.next_probe, |(_, deadline)| deadline);
            match self.condition {
                Condition::Degraded if self.failures > 0 => {
                    next.min(self.last_success.after(self.policy.patience()))
                }
                _ => next,
            }
        });
        if at != self.timer {
            self.timer = at;
            effects.push(HealthEffect::Timer(at));
        }
    }
}
