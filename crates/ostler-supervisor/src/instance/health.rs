//! Health of one instance: performs what [`ostler_domain::health`] decides.

use std::sync::Arc;
use std::time::Duration;

use ostler_domain::health::{Condition, Health, HealthEffect, HealthEvent, HealthPolicy, ProbeId};
use ostler_domain::{HealthSpec, Probe};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::driver::Inbox;
use super::probe::{self, Pulse, Subject};
use crate::clock;

/// What the driver is to do about an instance's health.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is not well, for this reason, or is again.
    Ailing(Option<String>),
    /// It is to be ended.
    Unhealthy(String),
}

/// The health of one instance. Does nothing where it is not to be probed.
pub(super) struct Watch {
    health: Option<Health>,
    probe: Probe,
    /// The probe that is out.
    out: Option<AbortHandle>,
    /// What the heartbeat showed last; with the probe while one is out.
    pulse: Arc<tokio::sync::Mutex<Pulse>>,
    timer: Option<Instant>,
    /// After this it is looked whether the calls that put probes off are over: nobody tells of that.
    interval: Duration,
    /// The latest probe by earlier definitions.
    asked: ProbeId,
}

impl Watch {
    pub(super) fn new(spec: &HealthSpec) -> Self {
        Self {
            health: HealthPolicy::of(spec).map(Health::new),
            probe: spec.probe.clone(),
            out: None,
            pulse: Arc::default(),
            timer: None,
            interval: spec.interval,
            asked: ProbeId::default(),
        }
    }

    /// By another definition than `before`; to be told [`HealthEvent::Ready`] where the instance is. An answer to an
    /// earlier probe is no answer to a later one.
    pub(super) fn after(before: &Self, spec: &HealthSpec) -> Self {
        let asked = before.health.as_ref().map_or(before.asked, Health::latest_probe);
        let mut watch = Self::new(spec);
        watch.health = HealthPolicy::of(spec).map(|policy| Health::after(policy, asked));
        watch.asked = asked;
        watch
    }

    /// When [`Self::decide`] is to be told of a timer.
    pub(super) fn timer(&self) -> Option<Instant> {
        self.timer
    }

    /// Takes in what happened; probes go to `subject` and report to `inbox`.
    pub(super) fn decide(
        &mut self,
        event: HealthEvent,
        subject: impl Fn() -> Subject,
        inbox: &mpsc::Sender<Inbox>,
    ) -> Vec<Verdict> {
        let Some(health) = &mut self.health else { return Vec::new() };
        let mut verdicts = Vec::new();
        for effect in health.decide(event, clock::now()) {
            match effect {
                HealthEffect::Probe(id) => {
                    let task = tokio::spawn(ask(
                        id,
                        self.probe.clone(),
                        subject(),
                        Arc::clone(&self.pulse),
                        inbox.clone(),
                    ));
                    self.out = Some(task.abort_handle());
                }
                HealthEffect::Abort(_) => {
                    if let Some(out) = self.out.take() {
                        out.abort();
                    }
                }
                HealthEffect::Degraded { reason } => verdicts.push(Verdict::Ailing(Some(reason))),
                HealthEffect::Unhealthy { reason } => verdicts.push(Verdict::Unhealthy(reason)),
                HealthEffect::Recovered { .. } => verdicts.push(Verdict::Ailing(None)),
                HealthEffect::Timer(at) => self.timer = at.map(clock::instant),
            }
        }
        if health.condition() == Condition::Off {
            self.timer = None;
        } else if health.timer().is_none() && self.timer.is_none_or(|at| at <= Instant::now()) {
            self.timer = Some(Instant::now() + self.interval);
        }
        verdicts
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(out) = self.out.take() {
            out.abort();
        }
    }
}

async fn ask(
    id: ProbeId,
    probe: Probe,
    subject: Subject,
    pulse: Arc<tokio::sync::Mutex<Pulse>>,
    inbox: mpsc::Sender<Inbox>,
) {
    // One probe is out at a time, so this waits for nobody.
    let result = probe::probe(&probe, &subject, &mut *pulse.lock().await).await;
    let _ = inbox.send(Inbox::Probed(id, result)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_busy_instance_is_looked_at_again() {
        let interval = Duration::from_secs(30);
        let mut watch = Watch::new(&HealthSpec { probe: Probe::Mcp, interval, ..HealthSpec::default() });
        let (inbox, _heard) = mpsc::channel(1);
        let tell = |watch: &mut Watch, event| {
            watch.decide(event, || unreachable!("nothing is asked while calls run"), &inbox);
        };
        assert_eq!(watch.timer(), None, "it is not ready");
        tell(&mut watch, HealthEvent::Ready);
        for _ in 0..3 {
            let due = watch.timer().expect("whatever it serves");
            assert_eq!(due, Instant::now() + interval);
            tokio::time::sleep_until(due).await;
            tell(&mut watch, HealthEvent::Calls { running: true });
            tell(&mut watch, HealthEvent::Timer);
        }
        tell(&mut watch, HealthEvent::Ended);
        assert_eq!(watch.timer(), None, "it is gone");
    }
}
