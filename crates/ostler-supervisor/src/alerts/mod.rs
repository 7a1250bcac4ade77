//! Alerts: what needs a person, and the ways in which one is told.
//!
//! Whoever notices trouble calls `Alerts::raise`, as often as he notices it, and `Alerts::resolve` when it is over;
//! [`ostler_domain::alert`] decides what is told and when. What is told goes into the event log, which is written to
//! the daemon's own log as well, and to the sinks of `[alerts]`: a webhook and a command, each with a queue and a task
//! of its own, so that a slow one delays neither the other nor whoever noticed the trouble.

mod command;
mod sink;
mod webhook;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use ostler_config::{Alerts as Settings, Config};
use ostler_domain::alert::{self, Alert, AlertKind, Change, Notify};
use ostler_domain::event::{Happening, Severity};
use tokio::sync::Notify as Wake;
use tokio::sync::mpsc;

use crate::clock;
use crate::events::{Events, is_power_of_ten};
use crate::launch::Launcher;

use command::Command;
use sink::Sink as _;
use webhook::Webhook;

/// Tellings that wait for one sink. What comes when so many wait is not told there, counted as `alerts.queue`, and now
/// and then an event.
pub const SINK_QUEUE: usize = 100;

/// See the module's documentation.
#[derive(Debug)]
pub struct Alerts {
    table: Mutex<alert::Alerts>,
    settings: ArcSwap<Settings>,
    events: Arc<Events>,
    /// Something was raised: the time of the next telling may have changed.
    raised: Wake,
    sinks: [Queue; 2],
}

/// The way to a sink.
#[derive(Debug)]
struct Queue {
    /// The key of the sink in `[alerts]`.
    name: &'static str,
    sender: mpsc::Sender<Arc<Notify>>,
    /// How many tellings in a row found no room.
    lost: AtomicU64,
}

impl Queue {
    fn new(name: &'static str) -> (Self, mpsc::Receiver<Arc<Notify>>) {
        let (sender, receiver) = mpsc::channel(SINK_QUEUE);
        (Self { name, sender, lost: AtomicU64::new(0) }, receiver)
    }
}

impl Alerts {
    /// None yet. Starts the tasks that tell the sinks, and what stays again.
    pub(crate) fn start(config: &Config, events: &Arc<Events>, launcher: &Arc<dyn Launcher>) -> Arc<Self> {
        let (webhook, for_webhook) = Queue::new(Webhook::NAME);
        let (command, for_command) = Queue::new(Command::NAME);
        let alerts = Arc::new(Self::to(config, Arc::clone(events), [webhook, command]));
        tokio::spawn(sink::follow(Arc::clone(&alerts), for_webhook, Webhook::default()));
        tokio::spawn(sink::follow(Arc::clone(&alerts), for_command, Command(Arc::clone(launcher))));
        let told_again = Arc::clone(&alerts);
        tokio::spawn(async move { told_again.repeat().await });
        alerts
    }

    fn to(config: &Config, events: Arc<Events>, sinks: [Queue; 2]) -> Self {
        let mut table = alert::Alerts::new(config.alerts.repeat);
        table.set_looks(config.metrics.interval);
        let settings = ArcSwap::from_pointee(config.alerts.clone());
        Self { table: Mutex::new(table), settings, events, raised: Wake::new(), sinks }
    }

    /// Uses these settings from now on.
    pub fn configure(&self, config: &Config) {
        let mut table = self.lock();
        table.set_repeat(config.alerts.repeat);
        table.set_looks(config.metrics.interval);
        drop(table);
        self.settings.store(Arc::new(config.alerts.clone()));
        self.raised.notify_one();
    }

    fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Something is wrong with `subject`, or still is. To be called as often as it is noticed.
    pub(crate) fn raise(&self, kind: AlertKind, subject: &str, severity: Severity, message: &str) {
        let mut table = self.lock();
        let told = table.raise(kind, subject, severity, message, clock::now());
        self.tell(told);
        drop(table);
        self.raised.notify_one();
    }

    /// It is over. To be called as often as that is noticed; nothing happens where nothing was wrong.
    pub(crate) fn resolve(&self, kind: AlertKind, subject: &str) {
        let mut table = self.lock();
        let told = table.resolve(kind, subject, clock::now());
        self.tell(told);
    }

    /// `subject` is no more, and with it whatever was wrong.
    pub(crate) fn resolve_subject(&self, subject: &str) {
        let mut table = self.lock();
        let told = table.resolve_subject(subject, clock::now());
        self.tell(told);
    }

    /// Does what a happening to an instance means for its alerts.
    pub(crate) fn hear(&self, subject: &str, happening: &Happening, cleanup_tries: u32) {
        for change in alert::meaning(happening, cleanup_tries) {
            match *change {
                Change::Raise(kind, severity) => self.raise(kind, subject, severity, &happening.to_string()),
                Change::Resolve(kind) => self.resolve(kind, subject),
            }
        }
    }

    /// Those that are active now, the worst first.
    pub fn active(&self) -> Vec<Alert> {
        let mut active: Vec<Alert> = self.lock().active().cloned().collect();
        active.sort_by_key(|alert| std::cmp::Reverse(alert.severity));
        active
    }

    /// How many are active now.
    pub fn count(&self) -> usize {
        self.lock().active().count()
    }

    /// Tells again what stays. Never returns.
    async fn repeat(&self) {
        loop {
            let due = self.lock().due().map(clock::instant);
            let raised = self.raised.notified();
            let is_due = match due {
                Some(at) => tokio::time::timeout_at(at, raised).await.is_err(),
                None => {
                    raised.await;
                    false
                }
            };
            if is_due {
                let mut table = self.lock();
                let told = table.tick(clock::now());
                self.tell(told);
            }
        }
    }

    /// Under the lock, so that what is told of one alert is told in order.
    fn tell(&self, told: Vec<Notify>) {
        for notify in told {
            let shared = Arc::new(notify.clone());
            let subject = notify.alert.subject.clone();
            self.events.record(&subject, Happening::Alert(Box::new(notify)));
            for sink in &self.sinks {
                self.queue(sink, Arc::clone(&shared));
            }
        }
    }

    fn queue(&self, sink: &Queue, told: Arc<Notify>) {
        if sink.sender.try_send(told).is_ok() {
            sink.lost.store(0, Ordering::Relaxed);
            return;
        }
        self.events.count("alerts.queue");
        let count = sink.lost.fetch_add(1, Ordering::Relaxed) + 1;
        if is_power_of_ten(count) {
            let what = format!("alerts for the {}, for which {SINK_QUEUE} wait (alerts.queue)", sink.name);
            self.events.record("alerts", Happening::Dropped { what, count });
        }
    }

    fn lock(&self) -> MutexGuard<'_, alert::Alerts> {
        // An entry is whole whatever a panicking holder was doing.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_an_event_now_and_then() {
        let events = Arc::new(Events::default());
        let (full, _waiting) = Queue::new("webhook");
        let (quick, mut told) = Queue::new("command");
        let alerts = Alerts::to(&Config::default(), Arc::clone(&events), [full, quick]);
        for n in 0..SINK_QUEUE + 15 {
            alerts.raise(AlertKind::ProcessFailure, &format!("s{n}"), Severity::Error, "x");
            told.try_recv().expect("there was room");
        }
        let dropped: Vec<String> = events
            .after(0, usize::MAX)
            .into_iter()
            .filter(|event| event.kind == "dropped")
            .map(|event| event.message)
            .collect();
        let of = "alerts for the webhook, for which 100 wait (alerts.queue)";
        assert_eq!(dropped, [format!("dropped 1: {of}"), format!("dropped 10: {of}")]);
        assert_eq!(events.counters()["alerts.queue"], 15);
    }
}
