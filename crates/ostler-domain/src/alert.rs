//! Alerts: what needs a person, told once, told again while it stays, and told when it is over.
//!
//! ```text
//!            raise: Raised          tick, every `repeat`: Repeated
//!     ┌────┐ ────────────▶ ┌────────┐ ──────┐
//!     │ -- │               │ active │ ◀─────┘
//!     └────┘ ◀──────────── └────────┘
//!       ▲     resolve:      │      ▲ raise: nothing yet, told at `repeat` after the latest
//!       │     Resolved      ▼      │ telling, if it is still active then
//!       │                  ┌────────┐
//!       └───────────────── │ recent │
//!          `repeat` later  └────────┘
//! ```
//!
//! What holds of each alert, that is of each pair of kind and subject:
//! - It is told (raised or repeated) at most once in `repeat`, unless it got worse than what was told.
//! - `Resolved` follows `Raised`, and nothing else; between the two there are only `Repeated`.
//! - None that stays longer than `repeat` is kept silent, unless the table is full, which is an alert itself.
//! - One of a kind that [lapses](AlertKind::lapses) is over when it was not raised for `repeat`, or for two of the
//!   looks at which that is noticed ([`Alerts::set_looks`]), whichever is longer.

mod meaning;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::event::Severity;
use crate::instance::Now;
use crate::text::clip;

pub use meaning::{Change, meaning};

/// The most alerts that are kept, the recent ones included. One more is dropped and counted, and
/// [`AlertKind::TableFull`] is raised.
pub const ALERTS_MAX: usize = 1000;

/// The shortest time between two tellings of one alert; a shorter `alerts.repeat` counts as this.
pub const REPEAT_MIN: Duration = Duration::from_secs(1);

/// What kind of trouble it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum AlertKind {
    /// So many processes run that new ones are, or soon will be, refused.
    ProcessLimit,
    /// So much memory is used that new processes are, or soon will be, refused.
    MemoryPressure,
    /// A server does not run and does not come up by itself soon.
    ProcessFailure,
    /// An instance uses, or was ended for using, more than it may.
    ResourceViolation,
    /// A tree of processes could not be ended.
    CleanupFailure,
    /// There is little room for state and logs.
    Disk,
    /// There are more alerts than are kept.
    TableFull,
}

impl AlertKind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::ProcessLimit,
        Self::MemoryPressure,
        Self::ProcessFailure,
        Self::ResourceViolation,
        Self::CleanupFailure,
        Self::Disk,
        Self::TableFull,
    ];

    /// A short, stable name for filters and machines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ProcessLimit => "process-limit",
            Self::MemoryPressure => "memory-pressure",
            Self::ProcessFailure => "process-failure",
            Self::ResourceViolation => "resource-violation",
            Self::CleanupFailure => "cleanup-failure",
            Self::Disk => "disk",
            Self::TableFull => "table-full",
        }
    }

    /// Whether it is noticed in moments, and nobody notices its end: it is over when it has not been raised for
    /// a while.
    pub fn lapses(self) -> bool {
        matches!(self, Self::ResourceViolation)
    }
}

/// One alert, as it was when it was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alert {
    /// What kind of trouble it is.
    pub kind: AlertKind,
    /// Whose: a server, an instance, or a limit.
    pub subject: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, and what to do.
    pub message: String,
    /// Since when.
    pub since: Now,
    /// How often it was raised since.
    pub count: u64,
}

/// What is told of an alert.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    /// It began.
    Raised,
    /// It is still there, or got worse.
    Repeated,
    /// It is over.
    Resolved,
}

impl Stage {
    /// The word used in listings and by the sinks.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raised => "raised",
            Self::Repeated => "repeated",
            Self::Resolved => "resolved",
        }
    }
}

/// Something to be told to every sink.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notify {
    /// What happened to it.
    pub stage: Stage,
    /// The alert.
    pub alert: Alert,
}

impl fmt::Display for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Alert { kind, subject, message, count, .. } = &self.alert;
        write!(f, "{} {} of {subject}: {message}", kind.as_str(), self.stage.as_str())?;
        if *count > 1 { write!(f, " ({count} times)") } else { Ok(()) }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    alert: Alert,
    active: bool,
    /// When it was last raised.
    raised: Now,
    /// Whether `Raised` was told and `Resolved` was not.
    announced: bool,
    /// When it was last told, and how bad it was then.
    told: Option<(Now, Severity)>,
}

type Key = (AlertKind, String);

/// All alerts.
#[derive(Clone, Debug)]
pub struct Alerts {
    repeat: Duration,
    /// Between two looks at what lapses.
    looks: Duration,
    max: usize,
    table: BTreeMap<Key, Entry>,
    dropped: u64,
}

impl Alerts {
    /// None yet. One that stays is told again after `repeat`.
    pub fn new(repeat: Duration) -> Self {
        Self::with_max(repeat, ALERTS_MAX)
    }

    /// As [`Alerts::new`], with another bound than [`ALERTS_MAX`].
    pub fn with_max(repeat: Duration, max: usize) -> Self {
        Self {
            repeat: repeat.max(REPEAT_MIN),
            looks: Duration::ZERO,
            max,
            table: BTreeMap::new(),
            dropped: 0,
        }
    }

    /// Uses another time from now on.
    pub fn set_repeat(&mut self, repeat: Duration) {
        self.repeat = repeat.max(REPEAT_MIN);
    }

    /// What lapses is looked at so seldom, from now on: what is wrong at each look stays raised in between.
    pub fn set_looks(&mut self, every: Duration) {
        self.looks = every;
    }

    /// After how long what lapses is over.
    fn lapse(&self) -> Duration {
        self.repeat.max(self.looks.saturating_mul(2))
    }

    /// Something is wrong, or still is. To be called as often as it is noticed.
    pub fn raise(
        &mut self,
        kind: AlertKind,
        subject: &str,
        severity: Severity,
        message: &str,
        now: Now,
    ) -> Vec<Notify> {
        let mut out = Vec::new();
        let key = (kind, clip(subject.to_owned()));
        if kind != AlertKind::TableFull && !self.table.contains_key(&key) && !self.make_room(now) {
            self.dropped += 1;
            let message = format!(
                "more than {} alerts at once; {} were dropped, so look at the servers themselves",
                self.max, self.dropped
            );
            self.enter((AlertKind::TableFull, "alerts".into()), Severity::Error, message, now, &mut out);
        } else {
            self.enter(key, severity, clip(message.to_owned()), now, &mut out);
        }
        out
    }

    fn enter(&mut self, key: Key, severity: Severity, message: String, now: Now, out: &mut Vec<Notify>) {
        let repeat = self.repeat;
        let entry = self.table.entry(key).or_insert_with_key(|(kind, subject)| Entry {
            alert: Alert {
                kind: *kind,
                subject: subject.clone(),
                severity,
                message: String::new(),
                since: now,
                count: 0,
            },
            active: false,
            raised: now,
            announced: false,
            told: None,
        });
        if !entry.active {
            (entry.active, entry.alert.since, entry.alert.count) = (true, now, 0);
        }
        entry.raised = now;
        entry.alert.count = entry.alert.count.saturating_add(1);
        (entry.alert.severity, entry.alert.message) = (severity, message);
        out.extend(entry.tell(repeat, now));
    }

    /// Whether there is room for one more, after the oldest recent alert was forgotten if need be.
    fn make_room(&mut self, now: Now) -> bool {
        self.forget(now);
        if self.kept() < self.max {
            return true;
        }
        let recent = self.table.iter().filter(|(key, entry)| !entry.active && key.0 != AlertKind::TableFull);
        let oldest = recent.min_by_key(|(_, entry)| entry.told.map(|(at, _)| at)).map(|(key, _)| key.clone());
        oldest.is_some_and(|key| self.table.remove(&key).is_some())
    }

    /// How many are kept, the one about the table itself not counted.
    fn kept(&self) -> usize {
        let full = self.table.keys().filter(|(kind, _)| *kind == AlertKind::TableFull).count();
        self.table.len() - full
    }

    /// It is over. To be called as often as that is noticed; nothing happens where nothing was wrong.
    pub fn resolve(&mut self, kind: AlertKind, subject: &str, now: Now) -> Vec<Notify> {
        self.resolve_if(now, |alert| alert.kind == kind && alert.subject == subject)
    }

    /// Whatever was wrong with a subject is over, as it is no more.
    pub fn resolve_subject(&mut self, subject: &str, now: Now) -> Vec<Notify> {
        self.resolve_if(now, |alert| alert.subject == subject)
    }

    fn resolve_if(&mut self, now: Now, which: impl Fn(&Alert) -> bool) -> Vec<Notify> {
        let mut out = Vec::new();
        for entry in self.table.values_mut().filter(|entry| which(&entry.alert)) {
            out.extend(entry.resolve());
        }
        self.settle(now, &mut out);
        out
    }

    /// Time has passed: what stays is told again. To be called at [`Alerts::due`].
    pub fn tick(&mut self, now: Now) -> Vec<Notify> {
        let (repeat, lapse) = (self.repeat, self.lapse());
        let pass = |entry: &mut Entry| match entry.lapses_at(lapse) {
            Some(at) if at <= now => entry.resolve(),
            _ => entry.tell(repeat, now),
        };
        let mut out: Vec<_> = self.table.values_mut().filter_map(pass).collect();
        self.settle(now, &mut out);
        out
    }

    /// Forgets what was over long ago, and sees whether the table is full no more.
    fn settle(&mut self, now: Now, out: &mut Vec<Notify>) {
        let active = self.table.values().filter(|e| e.active && e.alert.kind != AlertKind::TableFull).count();
        if active < self.max {
            let full = self.table.values_mut().filter(|e| e.active && e.alert.kind == AlertKind::TableFull);
            out.extend(full.filter_map(Entry::resolve));
        }
        self.forget(now);
    }

    fn forget(&mut self, now: Now) {
        let repeat = self.repeat;
        self.table
            .retain(|_, entry| entry.active || entry.told.is_some_and(|(at, _)| at.after(repeat) > now));
    }

    /// When [`Alerts::tick`] has something to do next; `None`: not until something is raised.
    pub fn due(&self) -> Option<Now> {
        let told = self.table.values().filter_map(|entry| entry.told).map(|(at, _)| at.after(self.repeat));
        told.chain(self.table.values().filter_map(|entry| entry.lapses_at(self.lapse()))).min()
    }

    /// Those that are active, by kind and subject.
    pub fn active(&self) -> impl Iterator<Item = &Alert> {
        self.table.values().filter(|entry| entry.active).map(|entry| &entry.alert)
    }

    /// How many were dropped because the table was full.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

impl Entry {
    /// Tells it, if it is active and its time has come, or if it is worse than what was told.
    fn tell(&mut self, repeat: Duration, now: Now) -> Option<Notify> {
        let severity = self.alert.severity;
        let due = match self.told {
            None => true,
            Some((at, worst)) => severity > worst || at.after(repeat) <= now,
        };
        if !self.active || !due {
            return None;
        }
        let stage = if self.announced { Stage::Repeated } else { Stage::Raised };
        (self.announced, self.told) = (true, Some((now, severity)));
        Some(Notify { stage, alert: self.alert.clone() })
    }

    /// When it is over, unless it is raised again.
    fn lapses_at(&self, lapse: Duration) -> Option<Now> {
        (self.active && self.alert.kind.lapses()).then(|| self.raised.after(lapse))
    }

    /// Ends it; told if its beginning was.
    fn resolve(&mut self) -> Option<Notify> {
        self.active = false;
        let announced = std::mem::take(&mut self.announced);
        announced.then(|| Notify { stage: Stage::Resolved, alert: self.alert.clone() })
    }
}
