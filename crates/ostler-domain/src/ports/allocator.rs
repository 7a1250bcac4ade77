//! Who has which port.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::{PortRange, PortWish};
use crate::instance::Now;
use crate::text::human;

/// How long a port that a stranger was seen to use is not given out. Whoever took it in the moment between
/// another's choosing and binding it is mostly short-lived itself; who stays is found again.
pub const QUARANTINE: Duration = Duration::from_secs(60);

/// How the ports of the ranges are used. Each is counted once: a reserved one never as held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortFigures {
    /// All there are.
    pub total: usize,
    /// Those a holder has.
    pub held: usize,
    /// Those in quarantine.
    pub quarantined: usize,
    /// Those kept for servers that ask for them by number.
    pub reserved: usize,
    /// Those that can be given out.
    pub free: usize,
}

/// Why ports were not given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PortError {
    /// None is left.
    Exhausted {
        /// The port that was asked for, by name.
        name: String,
        /// The usual range.
        range: PortRange,
        /// The further one.
        expand: Option<PortRange>,
        /// How they are used.
        figures: PortFigures,
        /// When the next quarantine ends, if there is one.
        next_free_in: Option<Duration>,
    },
    /// A fixed one is held already.
    Held {
        /// The port that was asked for, by name.
        name: String,
        /// Its number.
        port: u16,
        /// Who has it.
        by: String,
    },
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { name, port, by } => {
                write!(f, "port {port} for `{name}` is held by {by}: stop that, or ask for \"auto\"")
            }
            Self::Exhausted { name, range, expand, figures, next_free_in } => {
                write!(f, "no port is free for `{name}`: of the {} in {range}", figures.total)?;
                if let Some(expand) = expand {
                    write!(f, " and {expand}")?;
                }
                write!(
                    f,
                    ", {} are held, {} reserved as fixed ports and {} in quarantine",
                    figures.held, figures.reserved, figures.quarantined
                )?;
                if let Some(next) = next_free_in {
                    write!(f, " (the next is free in {})", human(*next))?;
                }
                f.write_str("; stop something, widen ports.range or set ports.expand")
            }
        }
    }
}

impl std::error::Error for PortError {}

/// Gives out ports, none to two. `H` is whoever holds one: it should tell generations apart, so that what an
/// earlier one gives back late is not taken from the next.
///
/// It knows nothing of the kernel. That a port is really the holder's own, its user finds out once the process
/// listens, and says [`Allocator::stolen`] if a stranger does instead.
#[derive(Clone, Debug)]
pub struct Allocator<H> {
    range: PortRange,
    expand: Option<PortRange>,
    reserved: BTreeSet<u16>,
    held: BTreeMap<u16, H>,
    quarantine: BTreeMap<u16, Now>,
    /// Where the search goes on: a port that was just given back is the last to be given again.
    next: u16,
}

impl<H: Clone + Eq + fmt::Display> Allocator<H> {
    /// Of the ports of `range`, and when those are taken of `expand`. Nobody gets one of `reserved` but who
    /// asks for it by number.
    pub fn new(range: PortRange, expand: Option<PortRange>, reserved: impl IntoIterator<Item = u16>) -> Self {
        Self {
            range,
            expand,
            reserved: reserved.into_iter().collect(),
            held: BTreeMap::new(),
            quarantine: BTreeMap::new(),
            next: range.first(),
        }
    }

    /// Changes what is given out from now on. What is held stays held, wherever it lies.
    pub fn configure(
        &mut self,
        range: PortRange,
        expand: Option<PortRange>,
        reserved: impl IntoIterator<Item = u16>,
    ) {
        (self.range, self.expand) = (range, expand);
        self.reserved = reserved.into_iter().collect();
    }

    /// Gives a holder all the ports it wishes for, by name, or none. A fixed one is given even when a stranger
    /// was seen to use it: no other will do, and the stranger may be gone.
    ///
    /// # Errors
    ///
    /// The first wish that cannot be met, and why.
    pub fn allocate(
        &mut self,
        wishes: &BTreeMap<String, PortWish>,
        holder: &H,
        now: Now,
    ) -> Result<BTreeMap<String, u16>, PortError> {
        self.quarantine.retain(|_, until| *until > now);
        let cursor = self.next;
        let mut given = BTreeMap::new();
        // Fixed ones first, so that no free one of the same call takes them.
        let fixed = |(_, wish): &(&String, &PortWish)| matches!(wish, PortWish::Fixed(_));
        let (first, then): (Vec<_>, Vec<_>) = wishes.iter().partition(fixed);
        for (name, wish) in first.into_iter().chain(then) {
            let found = match wish {
                PortWish::Fixed(port) => self.fixed(name, *port),
                PortWish::Auto => self.free(name, now),
            };
            match found {
                Ok(port) => {
                    self.held.insert(port, holder.clone());
                    given.insert(name.clone(), port);
                }
                Err(error) => {
                    given.values().for_each(|port| drop(self.held.remove(port)));
                    self.next = cursor;
                    return Err(error);
                }
            }
        }
        Ok(given)
    }

    fn fixed(&self, name: &str, port: u16) -> Result<u16, PortError> {
        match self.held.get(&port) {
            None => Ok(port),
            Some(by) => Err(PortError::Held { name: name.to_owned(), port, by: by.to_string() }),
        }
    }

    fn free(&mut self, name: &str, now: Now) -> Result<u16, PortError> {
        let is_free = |port: &u16| {
            !self.reserved.contains(port)
                && !self.held.contains_key(port)
                && !self.quarantine.contains_key(port)
        };
        let start = if self.range.contains(self.next) { self.next } else { self.range.first() };
        let round = (start..=self.range.last()).chain(self.range.first()..start);
        let further = self.expand.map(|range| range.first()..=range.last());
        match round.chain(further.into_iter().flatten()).find(is_free) {
            Some(port) => {
                if self.range.contains(port) {
                    self.next = port.wrapping_add(1);
                }
                Ok(port)
            }
            None => Err(PortError::Exhausted {
                name: name.to_owned(),
                range: self.range,
                expand: self.expand,
                figures: self.figures(),
                next_free_in: self.next_free_in(now),
            }),
        }
    }

    /// When the next quarantine of a port that could then be given out ends.
    fn next_free_in(&self, now: Now) -> Option<Duration> {
        let counts = |port: &u16| {
            self.in_ranges(*port) && !self.reserved.contains(port) && !self.held.contains_key(port)
        };
        self.quarantine.iter().filter(|(port, _)| counts(port)).map(|(_, until)| until.since(now)).min()
    }

    /// A stranger was seen to use a port: whoever held it holds it no more, and is returned, and nobody gets it
    /// for [`QUARANTINE`] unless by number. A port of no range is only taken away.
    pub fn stolen(&mut self, port: u16, now: Now) -> Option<H> {
        if self.in_ranges(port) {
            self.quarantine.insert(port, now.after(QUARANTINE));
        }
        self.held.remove(&port)
    }

    /// Takes back one port, if this holder has it; whether it had.
    pub fn release_one(&mut self, port: u16, holder: &H) -> bool {
        let theirs = self.held.get(&port) == Some(holder);
        if theirs {
            self.held.remove(&port);
        }
        theirs
    }

    /// Takes back all ports of a holder, and says which they were.
    pub fn release(&mut self, holder: &H) -> Vec<u16> {
        self.release_if(|other| other == holder)
    }

    /// Takes back all ports of all holders of which `gone` says so: what a consistency check found leaked.
    pub fn release_if(&mut self, gone: impl Fn(&H) -> bool) -> Vec<u16> {
        let mut released = Vec::new();
        self.held.retain(|port, holder| {
            let leaves = gone(holder);
            if leaves {
                released.push(*port);
            }
            !leaves
        });
        released
    }

    /// Who has a port.
    pub fn holder(&self, port: u16) -> Option<&H> {
        self.held.get(&port)
    }

    /// All ports that are held, from the lowest.
    pub fn held(&self) -> impl Iterator<Item = (u16, &H)> {
        self.held.iter().map(|(port, holder)| (*port, holder))
    }

    /// How the ports of the ranges are used, quarantines that ended since the last [`Allocator::allocate`]
    /// still counted.
    pub fn figures(&self) -> PortFigures {
        let mut figures = PortFigures::default();
        let ranges = [Some(self.range), self.expand];
        for port in ranges.into_iter().flatten().flat_map(|range| range.first()..=range.last()) {
            figures.total += 1;
            if self.reserved.contains(&port) {
                figures.reserved += 1;
            } else if self.held.contains_key(&port) {
                figures.held += 1;
            } else if self.quarantine.contains_key(&port) {
                figures.quarantined += 1;
            } else {
                figures.free += 1;
            }
        }
        figures
    }

    fn in_ranges(&self, port: u16) -> bool {
        self.range.contains(port) || self.expand.is_some_and(|range| range.contains(port))
    }
}
