//! Alerts: what needs a person, and the ways in which one is told.
//!
//! Whoever notices trouble calls `Alerts::raise`, as often as he notices it, and `Alerts::resolve` when it is over;
//! [`ostler_domain::alert`] decides what is told and when. What is told goes into the event log, which is written to
//! the daemon's own log as well, and to the sinks of `[alerts]`: a webhook and a command, each with a queue and a task
//! of its own, so that a slow one delays neither the other nor whoever noticed the trouble.

mod command;
mod sink;
mod webhook;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use ostler_config::Alerts as Settings;
use ostler_domain::alert::{self, Alert, AlertKind, Change, Notify};
use ostler_domain::event::{Happening, Severity};
use tokio::sync::Notify as Wake;
use tokio::sync::mpsc;

use crate::clock;
use crate::events::Events;
use crate::launch::Launcher;

use command::Command;
use webhook::Webhook;

/// Tellings that wait for one sink. What comes when so many wait is not told there, and counted as `alerts.queue`.
pub const SINK_QUEUE: usize = 100;

/// See the module's documentation.
#[derive(Debug)]
pub struct Alerts {
    table: Mutex<alert::Alerts>,
    settings: ArcSwap<Settings>,
    events: Arc<Events>,
    /// Something was raised: the time of the next telling may have changed.
    raised: Wake,
    sinks: [mpsc::Sender<Arc<Notify>>; 2],
}

impl Alerts {
    /// None yet. Starts the tasks that tell the sinks, and what stays again.
    pub(crate) fn start(
        settings: &Settings,
        events: &Arc<Events>,
        launcher: &Arc<dyn Launcher>,
    ) -> Arc<Self> {
        let (webhook, for_webhook) = mpsc::channel(SINK_QUEUE);
        let (command, for_command) = mpsc::channel(SINK_QUEUE);
        let alerts = Arc::new(Self {
            table: Mutex::new(alert::Alerts::new(settings.repeat)),
            settings: ArcSwap::from_pointee(settings.clone()),
            events: Arc::clone(events),
            raised: Wake::new(),
            sinks: [webhook, command],
        });
        tokio::spawn(sink::follow(Arc::clone(&alerts), for_webhook, Webhook::default()));
        tokio::spawn(sink::follow(Arc::clone(&alerts), for_command, Command(Arc::clone(launcher))));
        let told_again = Arc::clone(&alerts);
        tokio::spawn(async move { told_again.repeat().await });
        alerts
    }

    /// Uses these settings from now on.
    pub fn configure(&self, settings: &Settings) {
        self.lock().set_repeat(settings.repeat);
        self.settings.store(Arc::new(settings.clone()));
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
                if sink.try_send(Arc::clone(&shared)).is_err() {
                    self.events.count("alerts.queue");
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, alert::Alerts> {
        // An entry is whole whatever a panicking holder was doing.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
