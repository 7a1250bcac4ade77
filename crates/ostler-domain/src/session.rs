//! When a session ends.
//!
//! ```text
//!                      ┌─ asked to end while something runs; too old while something runs ─┐
//!   active ────────────┤                                                                   ▼
//!      │               └────────────────────────────────────────────────────────────── draining
//!      └─ silent, stale, too old, asked to end: nothing runs ──► ended ◄── nothing runs any more, or too late ┘
//! ```
//!
//! [`fate`] says what is due, and when to look again. Whoever asks it looks then, and whenever something of the session
//! has ended; between these nothing changes.

use std::fmt;
use std::time::Duration;

/// How long sessions last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Life {
    /// Without a word from its client (`sessions.idle`).
    pub idle: Duration,
    /// Without a call, where it has an instance for itself, though its client is connected (`sessions.stale`).
    pub stale: Duration,
    /// In all, where it has an instance for itself (`sessions.max_age`).
    pub max_age: Duration,
}

/// How a session stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionState {
    /// It takes calls.
    Active,
    /// It takes no new ones, and ends when those are done that run.
    Draining,
    /// It is over.
    Ended,
}

impl SessionState {
    /// The word used in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Ended => "ended",
        }
    }
}

/// What is known of a session at one moment; times in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The moment, on the clock of the times below.
    pub now: u64,
    /// How long ago it began.
    pub age: u64,
    /// When its client was last heard of.
    pub heard: u64,
    /// The same without streams on which its client listened only.
    pub asked: u64,
    /// Whether a call, a task or another request of it runs.
    pub running: bool,
    /// Whether its client listens.
    pub listening: bool,
    /// Whether it has an instance for itself.
    pub owns: bool,
    /// Where it is draining: when that is to be over; `u64::MAX` for whenever nothing runs.
    pub draining: Option<u64>,
}

/// Why a session is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Overdue {
    /// Nothing was heard of its client.
    Idle(Duration),
    /// Its client is connected, and asks for nothing.
    Stale(Duration),
    /// It is as old as one may become.
    Age(Duration),
}

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle(time) => write!(f, "silent for {} s (sessions.idle)", time.as_secs()),
            Self::Stale(time) => {
                write!(
                    f,
                    "it called nothing for {} s, and has an instance for itself (sessions.stale)",
                    time.as_secs()
                )
            }
            Self::Age(time) => {
                write!(f, "it is {} s old, and has an instance for itself (sessions.max_age)", time.as_secs())
            }
        }
    }
}

/// What is to become of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It is over.
    Over(Overdue),
    /// It was draining, and is over. `cut`: something still runs, and the grace is over.
    Drained {
        /// Whether something still runs.
        cut: bool,
    },
    /// It is over once nothing of it runs; no new call of it may begin.
    Drain(Overdue),
    /// To be looked at again then, unless something happens before.
    Later(u64),
    /// To be looked at again when something of it has ended.
    Open,
}

/// What is to become of a session that is seen like this.
pub fn fate(life: &Life, seen: &Seen) -> Fate {
    if let Some(until) = seen.draining {
        return match seen.running {
            false => Fate::Drained { cut: false },
            true if until <= seen.now => Fate::Drained { cut: true },
            true if until == u64::MAX => Fate::Open,
            true => Fate::Later(until),
        };
    }
    let owned = |due: u64| seen.owns.then_some(due);
    let age = owned(seen.now.saturating_add(millis(life.max_age).saturating_sub(seen.age)));
    if seen.running {
        return match age {
            Some(due) if due <= seen.now => Fate::Drain(Overdue::Age(life.max_age)),
            Some(due) => Fate::Later(due),
            None => Fate::Open,
        };
    }
    let stale = owned(seen.asked.saturating_add(millis(life.stale)));
    let idle = (!seen.listening).then(|| seen.heard.saturating_add(millis(life.idle)));
    let of_each = [
        idle.map(|due| (due, Overdue::Idle(life.idle))),
        stale.map(|due| (due, Overdue::Stale(life.stale))),
        age.map(|due| (due, Overdue::Age(life.max_age))),
    ];
    match of_each.into_iter().flatten().min_by_key(|(due, _)| *due) {
        Some((due, why)) if due <= seen.now => Fate::Over(why),
        Some((due, _)) => Fate::Later(due),
        None => Fate::Open,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Life = Life {
        idle: Duration::from_millis(10),
        stale: Duration::from_millis(30),
        max_age: Duration::from_millis(100),
    };

    /// Silent since 5, and 5 old by then.
    fn seen(now: u64) -> Seen {
        Seen {
            now,
            age: now,
            heard: 5,
            asked: 5,
            running: false,
            listening: false,
            owns: false,
            draining: None,
        }
    }

    fn over(why: Overdue) -> Fate {
        Fate::Over(why)
    }

    #[test]
    fn a_silent_session_ends_after_its_time_and_not_before() {
        assert_eq!(fate(&LIFE, &seen(5)), Fate::Later(15));
        assert_eq!(fate(&LIFE, &seen(14)), Fate::Later(15));
        assert_eq!(fate(&LIFE, &seen(15)), over(Overdue::Idle(LIFE.idle)));
        assert_eq!(fate(&LIFE, &Seen { running: true, ..seen(1000) }), Fate::Open);
        // Who listens is there; only an instance of his own is not held for ever.
        assert_eq!(fate(&LIFE, &Seen { listening: true, ..seen(1000) }), Fate::Open);
    }

    #[test]
    fn one_that_has_an_instance_ends_when_it_calls_nothing_though_its_client_listens() {
        let listening = |now| Seen { owns: true, listening: true, ..seen(now) };
        assert_eq!(fate(&LIFE, &listening(34)), Fate::Later(35));
        assert_eq!(fate(&LIFE, &listening(35)), over(Overdue::Stale(LIFE.stale)));
        // Heard of by listening, which is no call.
        assert_eq!(fate(&LIFE, &Seen { heard: 35, ..listening(35) }), over(Overdue::Stale(LIFE.stale)));
        assert_eq!(fate(&LIFE, &Seen { running: true, ..listening(35) }), Fate::Later(100));
        assert_eq!(fate(&LIFE, &Seen { heard: 90, asked: 90, ..listening(95) }), Fate::Later(100));
        let old = Seen { heard: 99, asked: 99, ..listening(100) };
        assert_eq!(fate(&LIFE, &old), over(Overdue::Age(LIFE.max_age)));
        assert_eq!(fate(&LIFE, &Seen { owns: false, ..old }), Fate::Open);
    }

    #[test]
    fn what_runs_is_not_cut_for_its_age_and_nothing_new_begins() {
        let old = Seen { owns: true, running: true, ..seen(100) };
        assert_eq!(fate(&LIFE, &old), Fate::Drain(Overdue::Age(LIFE.max_age)));
        let draining = |now| Seen { draining: Some(u64::MAX), now, ..old };
        assert_eq!(fate(&LIFE, &draining(100_000)), Fate::Open);
        assert_eq!(fate(&LIFE, &Seen { running: false, ..draining(101) }), Fate::Drained { cut: false });
    }

    #[test]
    fn one_that_drains_ends_when_nothing_runs_or_its_grace_is_over() {
        let draining = |now| Seen { running: true, draining: Some(50), ..seen(now) };
        assert_eq!(fate(&LIFE, &draining(49)), Fate::Later(50));
        assert_eq!(fate(&LIFE, &draining(50)), Fate::Drained { cut: true });
        assert_eq!(fate(&LIFE, &Seen { running: false, ..draining(20) }), Fate::Drained { cut: false });
    }
}
