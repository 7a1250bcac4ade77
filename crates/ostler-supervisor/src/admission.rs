//! Admission: whether one more instance may be started. Whoever is let in holds a place until nothing of it runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    /// An instance of a configured server that one session has for itself.
    Session,
    /// A process started by hand.
    AdHoc,
}

#[derive(Debug, Default)]
struct Counts {
    servers: usize,
    by_type: HashMap<Box<str>, usize>,
    adhoc: usize,
    /// Why nothing may be started at all, while that is so.
    closed: Option<String>,
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
}

/// A place, given back when dropped.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    of: Kind,
}

/// What a place was taken for.
#[derive(Debug)]
enum Kind {
    Server(Box<str>),
    Session,
    AdHoc,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.admission.lock();
        match &self.of {
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

    /// Lets nothing in, for this reason, until called with `None`.
    pub fn close(&self, reason: Option<String>) {
        self.lock().closed = reason;
    }

    /// Takes a place.
    ///
    /// # Errors
    /// [`Refusal`], with the limit that is reached.
    pub fn admit(self: &Arc<Self>, counted: Counted<'_>) -> Result<Place, Refusal> {
        let bounds = self.bounds();
        let mut counts = self.lock();
        if let Some(reason) = &counts.closed {
            return Err(Refusal { limit: "limits.memory", why: reason.clone() });
        }
        let of = match counted {
            Counted::AdHoc if counts.adhoc >= bounds.adhoc => {
                let why = format!(
                    "{} processes started by hand exist already (limits.adhoc); `ostler stop` one",
                    bounds.adhoc
                );
                return Err(Refusal { limit: "limits.adhoc", why });
            }
            Counted::AdHoc => {
                counts.adhoc += 1;
                Kind::AdHoc
            }
            Counted::Session => {
                counts.take(&bounds)?;
                Kind::Session
            }
            Counted::Server(name) => {
                counts.take_type(name, &bounds)?;
                Kind::Server(name.into())
            }
        };
        Ok(Place { admission: Arc::clone(self), of })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Counts are whole whatever a panicking holder was doing.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn take(&mut self, bounds: &Bounds) -> Result<(), Refusal> {
        if self.servers >= bounds.processes {
            let why = format!("{} instances exist already (limits.processes)", bounds.processes);
            return Err(Refusal { limit: "limits.processes", why });
        }
        self.servers += 1;
        Ok(())
    }

    fn take_type(&mut self, name: &str, bounds: &Bounds) -> Result<(), Refusal> {
        let of_type = self.by_type.get(name).copied().unwrap_or(0);
        if of_type >= bounds.per_type {
            let why = format!("{of_type} instances of type `{name}` exist already (limits.per_type)");
            return Err(Refusal { limit: "limits.per_type", why });
        }
        self.take(bounds)?;
        *self.by_type.entry(name.into()).or_default() += 1;
        Ok(())
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
        let _own = admission.admit(Counted::Session).expect("not counted by type");
        assert_eq!(limit(admission.admit(Counted::Server("c"))), "limits.processes");
        let _hand = admission.admit(Counted::AdHoc).expect("counted apart");
        assert_eq!(limit(admission.admit(Counted::AdHoc)), "limits.adhoc");
        assert_eq!(admission.servers(), 3);
        drop(one);
        let _again = admission.admit(Counted::Server("a")).expect("free again");
    }

    #[test]
    fn while_it_is_closed_nobody_gets_in() {
        let admission = admission();
        admission.close(Some("memory is short".to_owned()));
        let refusal = admission.admit(Counted::Server("a")).expect_err("closed");
        assert_eq!(refusal.why, "memory is short");
        admission.close(None);
        assert!(admission.admit(Counted::Server("a")).is_ok());
    }
}
