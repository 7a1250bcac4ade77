//! Admission: whether one more instance may be started. Whoever is let in holds a place until nothing of it runs.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ostler_domain::pressure::{self, Level, Load, Need, Used};

/// What of the daemon's limits counts instances.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Instances of configured servers (`limits.processes`).
    pub processes: usize,
    /// Of these, of one type (`limits.per_type`); those that one session has for itself are not counted by type.
    pub per_type: usize,
    /// Processes started by hand (`limits.adhoc`).
    pub adhoc: usize,
}

/// What a new instance counts as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counted<'a> {
    /// An instance of a configured server of this type, which several sessions may use.
    Server(&'a str),
    /// An instance of a configured server of this type that one session has for itself.
    Session(&'a str),
    /// A process started by hand.
    AdHoc,
    /// A worker of the lane whose type this is; how many there are is decided elsewhere (`workers.max`).
    Worker(&'a str),
}

/// The type as which all processes started by hand are measured: each has a name of its own.
pub(crate) const BY_HAND: &str = "";

/// What one instance of a type takes, in bytes of memory, as far as some were measured.
pub type Sizes = BTreeMap<Box<str>, u64>;

/// How much memory there is for more instances, as it was last measured.
#[derive(Clone, PartialEq, Debug)]
pub struct MemoryLoad {
    /// What all processes use, of `limits.memory`.
    pub used: Used,
    /// How near that is to its limit, or the machine to being out of memory.
    pub level: Level,
    /// Why it is critical, where that is the machine's doing.
    pub shortage: Option<String>,
    /// What others of a type take, and one more is expected to.
    pub sizes: Sizes,
}

impl Default for MemoryLoad {
    /// Nothing was measured, so nothing is in the way.
    fn default() -> Self {
        let used = Used { used: 0, limit: u64::MAX };
        Self { used, level: Level::Normal, shortage: None, sizes: Sizes::new() }
    }
}

#[derive(Debug, Default)]
struct Counts {
    servers: usize,
    by_type: HashMap<Box<str>, usize>,
    adhoc: usize,
    memory: MemoryLoad,
    /// What is expected of those let in, by the numbers of their places, until they are measured as they serve.
    forecasts: BTreeMap<u64, Forecast>,
    /// The number of the next place.
    next: u64,
}

/// What one that was let in is expected to take.
#[derive(Debug)]
struct Forecast {
    /// Bytes in all.
    bytes: u64,
    /// Bytes that it was measured to take already.
    measured: u64,
}

/// How far one is that was let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// It is starting, and takes so many bytes already.
    Starting(u64),
    /// What it takes is what it was measured to take, or nothing of it runs.
    Settled,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Admission {
    bounds: Mutex<Bounds>,
    counts: Mutex<Counts>,
}

/// A refusal: the limit's name, for its counter, and why, for whoever asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The key of the configuration.
    pub limit: &'static str,
    /// The figures, and what to do.
    pub why: String,
    /// What would make room, where stopping what nobody uses could.
    pub need: Option<Need>,
    /// How many had been let in by then (`Admission::let_in`).
    pub let_in: u64,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    number: u64,
    of: Kind,
}

impl Place {
    /// Distinct for each place.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

/// What a place was taken for.
#[derive(Debug)]
enum Kind {
    Server(Box<str>),
    Session,
    AdHoc,
    Worker,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.admission.lock();
        counts.forecasts.remove(&self.number);
        match &self.of {
            Kind::Worker => {}
            Kind::AdHoc => counts.adhoc -= 1,
            Kind::Session => counts.servers -= 1,
            Kind::Server(name) => {
                counts.servers -= 1;
                if let Some(count) = counts.by_type.get_mut(name) {
                    *count -= 1;
                    if *count == 0 {
                        counts.by_type.remove(name);
                    }
                }
            }
        }
    }
}

impl Admission {
    /// Nobody is in yet.
    pub fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds: Mutex::new(bounds), counts: Mutex::default() })
    }

    /// Follows other bounds from now on. Who is in stays in.
    pub fn set_bounds(&self, bounds: Bounds) {
        *self.bounds.lock().unwrap_or_else(PoisonError::into_inner) = bounds;
    }

    /// The bounds it follows.
    pub fn bounds(&self) -> Bounds {
        *self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Instances of configured servers that have a place.
    pub fn servers(&self) -> usize {
        self.lock().servers
    }

    /// Places that are free: those of one type, or all.
    pub(crate) fn free(&self, type_name: Option<&str>) -> usize {
        let bounds = self.bounds();
        let counts = self.lock();
        let all = bounds.processes.saturating_sub(counts.servers);
        type_name.map_or(all, |name| {
            let of_type = counts.by_type.get(name).copied().unwrap_or(0);
            all.min(bounds.per_type.saturating_sub(of_type))
        })
    }

    /// Notes what was measured: from now on it counts. On top of it is expected what those have yet to take that are
    /// not `seen` to be settled, by the numbers of their places.
    pub(crate) fn set_memory(&self, memory: MemoryLoad, seen: &[(u64, Seen)]) {
        let mut counts = self.lock();
        counts.memory = memory;
        for (number, seen) in seen {
            match *seen {
                Seen::Settled => drop(counts.forecasts.remove(number)),
                Seen::Starting(bytes) => {
                    if let Some(forecast) = counts.forecasts.get_mut(number) {
                        forecast.measured = bytes;
                    }
                }
            }
        }
    }

    /// How many were let in so far.
    pub(crate) fn let_in(&self) -> u64 {
        self.lock().next
    }

    /// Takes a place.
    ///
    /// # Errors
    /// [`Refusal`], with the limit that is reached.
    pub fn admit(self: &Arc<Self>, counted: Counted<'_>) -> Result<Place, Refusal> {
        let bounds = self.bounds();
        let mut counts = self.lock();
        if matches!(counted, Counted::AdHoc) && counts.adhoc >= bounds.adhoc {
            let why = format!(
                "{} processes started by hand exist already (limits.adhoc); `ostler stop` one",
                bounds.adhoc
            );
            return Err(Refusal { limit: "limits.adhoc", why, need: None, let_in: counts.next });
        }
        let load = counts.load(&counted, &bounds);
        pressure::admit(&load).map_err(|refusal| counts.refusal(&refusal))?;
        counts.next += 1;
        let number = counts.next;
        if load.expected > 0 {
            counts.forecasts.insert(number, Forecast { bytes: load.expected, measured: 0 });
        }
        let of = match counted {
            Counted::AdHoc => {
                counts.adhoc += 1;
                Kind::AdHoc
            }
            Counted::Worker(_) => Kind::Worker,
            Counted::Session(_) => {
                counts.servers += 1;
                Kind::Session
            }
            Counted::Server(name) => {
                counts.servers += 1;
                *counts.by_type.entry(name.into()).or_default() += 1;
                Kind::Server(name.into())
            }
        };
        Ok(Place { admission: Arc::clone(self), number, of })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Counts are whole whatever a panicking holder was doing.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    /// What one more of this kind would come on top of. What does not count for it is far from its limit.
    fn load(&self, counted: &Counted<'_>, bounds: &Bounds) -> Load {
        let free = Used { used: 0, limit: u64::MAX };
        let used = |used: usize, limit: usize| Used { used: used as u64, limit: limit as u64 };
        let type_name = match counted {
            Counted::Server(name) | Counted::Session(name) | Counted::Worker(name) => *name,
            Counted::AdHoc => BY_HAND,
        };
        let of_type = self.by_type.get(type_name).copied().unwrap_or(0);
        let counted_by_type = matches!(counted, Counted::Server(_));
        let memory = Used {
            used: self.memory.used.used.saturating_add(self.expected()),
            limit: self.memory.used.limit,
        };
        Load {
            processes: match counted {
                Counted::AdHoc | Counted::Worker(_) => free,
                Counted::Server(_) | Counted::Session(_) => used(self.servers, bounds.processes),
            },
            of_type: if counted_by_type { used(of_type, bounds.per_type) } else { free },
            type_name: type_name.to_owned(),
            memory,
            memory_level: self.memory.level,
            expected: self.memory.sizes.get(type_name).copied().unwrap_or(0),
        }
    }

    /// Bytes that those let in have yet to take.
    fn expected(&self) -> u64 {
        let yet = self.forecasts.values().map(|forecast| forecast.bytes.saturating_sub(forecast.measured));
        yet.fold(0, u64::saturating_add)
    }

    fn refusal(&self, refusal: &pressure::Refusal) -> Refusal {
        let need = match refusal {
            pressure::Refusal::Processes(_) => Some(Need::Slots { count: 1, type_name: None }),
            pressure::Refusal::OfType { type_name, .. } => {
                Some(Need::Slots { count: 1, type_name: Some(type_name.clone()) })
            }
            // The monitor makes room for memory without being asked.
            pressure::Refusal::Memory { .. } => None,
        };
        let why = match (refusal, &self.memory.shortage) {
            (pressure::Refusal::Memory { .. }, Some(shortage)) => {
                format!("{shortage}: end a session, stop a server or another program of this machine")
            }
            _ => refusal.to_string(),
        };
        Refusal { limit: refusal.limit(), why, need, let_in: self.next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Arc<Admission> {
        Admission::new(Bounds { processes: 3, per_type: 2, adhoc: 1 })
    }

    fn limit(result: Result<Place, Refusal>) -> &'static str {
        result.expect_err("refused").limit
    }

    #[test]
    fn each_limit_refuses_by_its_name_and_a_place_given_back_is_free_again() {
        let admission = admission();
        let one = admission.admit(Counted::Server("a")).expect("free");
        let _two = admission.admit(Counted::Server("a")).expect("free");
        assert_eq!(limit(admission.admit(Counted::Server("a"))), "limits.per_type");
        let _own = admission.admit(Counted::Session("s")).expect("not counted by type");
        assert_eq!(limit(admission.admit(Counted::Server("c"))), "limits.processes");
        let _hand = admission.admit(Counted::AdHoc).expect("counted apart");
        assert_eq!(limit(admission.admit(Counted::AdHoc)), "limits.adhoc");
        assert_eq!(admission.servers(), 3);
        drop(one);
        let _again = admission.admit(Counted::Server("a")).expect("free again");
    }

    fn load(used: u64, level: Level) -> MemoryLoad {
        let sizes = Sizes::from([("a".into(), 30)]);
        MemoryLoad { used: Used { used, limit: 100 }, level, shortage: None, sizes }
    }

    #[test]
    fn memory_that_is_short_refuses_everything_and_says_why() {
        let admission = admission();
        admission.set_memory(load(95, Level::Critical), &[]);
        for counted in [Counted::Server("a"), Counted::Session("s"), Counted::AdHoc] {
            let refusal = admission.admit(counted).expect_err("short");
            assert_eq!(refusal.limit, "limits.memory");
            assert!(refusal.why.contains("use 95 B of 100 B"), "{}", refusal.why);
        }
        let shortage = Some("the machine is short of it".to_owned());
        admission.set_memory(MemoryLoad { shortage, ..load(1, Level::Critical) }, &[]);
        let refusal = admission.admit(Counted::AdHoc).expect_err("short");
        assert!(refusal.why.starts_with("the machine is short of it: "), "{}", refusal.why);
        admission.set_memory(load(1, Level::Warning), &[]);
        assert!(admission.admit(Counted::AdHoc).is_ok());
    }

    #[test]
    fn those_let_in_are_expected_to_be_as_large_as_others_until_they_are_measured() {
        let admission = Admission::new(Bounds { processes: 9, per_type: 9, adhoc: 9 });
        admission.set_memory(load(45, Level::Normal), &[]);
        let one = admission.admit(Counted::Server("a")).expect("75 of 100 then");
        assert_eq!(limit(admission.admit(Counted::Server("a"))), "limits.memory");
        let _other = admission.admit(Counted::Server("b")).expect("nothing is known of this type");
        // A pass that sees it starting, or not at all: it has yet to grow.
        admission.set_memory(load(50, Level::Normal), &[(one.number(), Seen::Starting(5))]);
        assert_eq!(limit(admission.admit(Counted::Server("a"))), "limits.memory", "50, 25 and 30");
        admission.set_memory(load(50, Level::Normal), &[]);
        assert_eq!(limit(admission.admit(Counted::Server("a"))), "limits.memory");
        admission.set_memory(load(50, Level::Normal), &[(one.number(), Seen::Settled)]);
        let two = admission.admit(Counted::Server("a")).expect("the first was smaller than expected");
        assert_eq!(limit(admission.admit(Counted::Session("a"))), "limits.memory");
        drop(two);
        let _own = admission.admit(Counted::Session("a")).expect("what is gone is not expected any more");
    }

    #[test]
    fn what_one_session_has_and_what_is_started_by_hand_is_expected_to_have_a_size_too() {
        let admission = Admission::new(Bounds { processes: 9, per_type: 9, adhoc: 9 });
        let sizes = Sizes::from([("a".into(), 30), (BY_HAND.into(), 40)]);
        admission.set_memory(MemoryLoad { sizes, ..load(35, Level::Normal) }, &[]);
        let _own = admission.admit(Counted::Session("a")).expect("65 of 100 then");
        assert_eq!(limit(admission.admit(Counted::AdHoc)), "limits.memory");
        let _other = admission.admit(Counted::Session("a")).expect("95 of 100 then");
        assert_eq!(limit(admission.admit(Counted::Session("a"))), "limits.memory");
    }

    #[test]
    fn a_refusal_says_what_would_make_room() {
        let admission = admission();
        let _places = [Counted::Server("a"), Counted::Server("a"), Counted::Session("s")]
            .map(|counted| admission.admit(counted).expect("free"));
        let need = |counted| admission.admit(counted).expect_err("full").need;
        assert_eq!(need(Counted::Session("s")), Some(Need::Slots { count: 1, type_name: None }));
        admission.set_bounds(Bounds { processes: 9, ..admission.bounds() });
        let of_type = Some(Need::Slots { count: 1, type_name: Some("a".to_owned()) });
        assert_eq!(need(Counted::Server("a")), of_type);
        assert_eq!((admission.free(None), admission.free(Some("a")), admission.free(Some("b"))), (6, 0, 2));
    }
}
