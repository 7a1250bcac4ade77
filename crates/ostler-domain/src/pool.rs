//! Pools: instances of a server that are started ahead, leased to one holder at a time, and clean when they are.
//!
//! ```text
//!          Create          Ready         Check            Checked, Hand
//!  (room) ───────► Starting ────► Spare ───────► Checking ─────────────► Leased
//!     ▲               │ failed    ▲ │ worn, old,    │ unfit                │ Returned
//!     │               ▼           │ ▼ too many      ▼                      ▼
//!     └──── Gone ── Leaving ◄─────┼─┴───────────────┴─────── restart ── on_return
//!                     ▲           │                          reuse ──► Spare
//!                     └─ Resetting┴◄──────────────────────── command
//! ```
//!
//! [`Pool::decide`] is told what happened and says what to do. It counts every instance from the decision to create it
//! to the word that nothing of it runs, so there are never more than `max`. Who waits stands in one line and is served
//! in its order. Each lease has a number of its own, its *fence*: what comes back under an old one changes nothing.

mod decide;
mod member;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use crate::instance::Now;
use crate::text::{human, human_bytes};
use member::Member;

/// Most that wait in one line, by default (`pool.waiting`).
pub const WAITING: usize = 100;

/// After an instance could not be created or did not become ready: until another is tried, doubled each time.
const SETBACK_MIN: Duration = Duration::from_secs(1);
/// The longest of these waits.
const SETBACK_MAX: Duration = Duration::from_secs(60);

/// How a server's pool is to be, as the configuration says.
#[derive(Clone, PartialEq, Debug)]
pub struct PoolSpec {
    /// Instances kept ready for nobody yet.
    pub spare: usize,
    /// Most instances, whatever they are doing.
    pub max: usize,
    /// How long a session waits in line at most.
    pub wait: Duration,
    /// Most sessions in line.
    pub waiting: usize,
    /// What is done with an instance that comes back.
    pub on_return: OnReturn,
    /// So many leases, and an instance is replaced.
    pub max_uses: Option<u32>,
    /// So old, and an instance is replaced once it is free.
    pub max_age: Option<Duration>,
    /// So many bytes of memory, and an instance is replaced once it is free.
    pub max_rss: Option<u64>,
    /// The share, from 0 to 1, by which `max_uses` and `max_age` are less at most, by chance: so that those that were
    /// started together are not replaced together.
    pub jitter: f64,
    /// A spare beyond `spare` that nobody took for so long is ended (`idle` of the server).
    pub idle: Duration,
}

impl Default for PoolSpec {
    fn default() -> Self {
        Self {
            spare: 1,
            max: 5,
            wait: Duration::from_secs(30),
            waiting: WAITING,
            on_return: OnReturn::Restart,
            max_uses: None,
            max_age: None,
            max_rss: None,
            jitter: 0.1,
            idle: Duration::from_secs(300),
        }
    }
}

/// What is done with an instance that comes back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum OnReturn {
    /// It is ended, and the next holder has a new one.
    #[default]
    Restart,
    /// The next holder has it as it is.
    Reuse,
    /// This command makes it clean within that time; where it does not, the instance is ended.
    Command(Vec<String>, Duration),
}

/// Names a member of one pool; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Slot(pub u64);

/// Names one who waits; from the caller, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Ticket(pub u64);

/// Numbers the leases of a pool: a later one is greater.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Fence(pub u64);

/// What happened. `K` is what instances of a server differ in: their era.
#[derive(Clone, PartialEq, Debug)]
pub enum Event<K> {
    /// Somebody wants an instance until then at the latest.
    Wanted {
        /// Who.
        ticket: Ticket,
        /// Of which kind.
        kind: K,
        /// When it is of no use any more.
        deadline: Now,
    },
    /// Who waited does so no more.
    GivenUp(Ticket),
    /// An instance has begun to serve.
    Ready(Slot),
    /// An instance will not serve, or could not be created; nothing of it may be left ([`Event::Gone`] says so).
    Failed {
        /// Which.
        slot: Slot,
        /// Why.
        why: String,
    },
    /// The check of a spare has ended.
    Checked {
        /// Which.
        slot: Slot,
        /// Whether it serves.
        fit: bool,
    },
    /// A holder is done with it.
    Returned {
        /// Which.
        slot: Slot,
        /// The holder's lease.
        fence: Fence,
    },
    /// The command that makes an instance clean has ended.
    Reset {
        /// Which.
        slot: Slot,
        /// Whether it did.
        clean: bool,
    },
    /// Nothing of an instance runs any more.
    Gone(Slot),
    /// The server has turned out to have no instances of this kind.
    Unserved {
        /// Which.
        kind: K,
        /// Why.
        why: String,
    },
    /// Spares of this kind are to be kept, too.
    Kept(K),
    /// What an instance was measured to use, in bytes.
    Measured {
        /// Which.
        slot: Slot,
        /// Memory in bytes.
        rss: u64,
    },
    /// There may be room where there was none: what failed may be tried again at once.
    Room,
    /// The time that [`Effect::Wake`] named has come.
    Tick,
    /// The pool is to be otherwise from now on.
    Configured(PoolSpec),
    /// No spares are wanted and nobody is served any more. Leases last until they are given back.
    Closed,
}

/// What is to be done.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect<K> {
    /// Create an instance.
    Create {
        /// Its name here.
        slot: Slot,
        /// Of this kind.
        kind: K,
    },
    /// Find out whether a spare serves, and say [`Event::Checked`].
    Check(Slot),
    /// Give an instance to who waits.
    Hand {
        /// To whom.
        ticket: Ticket,
        /// Which.
        slot: Slot,
        /// The lease.
        fence: Fence,
    },
    /// Tell who waits that there is none.
    Refuse {
        /// Whom.
        ticket: Ticket,
        /// Why.
        why: Refused,
    },
    /// Run the command that makes it clean, and say [`Event::Reset`].
    Reset(Slot),
    /// End an instance, and say [`Event::Gone`].
    Retire {
        /// Which.
        slot: Slot,
        /// Why.
        why: Why,
    },
    /// Say [`Event::Tick`] then; it replaces an earlier one.
    Wake(Now),
}

/// Why somebody got no instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The line is full.
    LineFull {
        /// So many wait.
        waiting: usize,
    },
    /// The deadline has passed.
    Late {
        /// The place in the line, from 1.
        position: usize,
        /// Instances that others hold.
        leased: usize,
        /// Most instances.
        max: usize,
        /// What went wrong lately, if something did.
        trouble: Option<String>,
    },
    /// There is none, none could be made, and nobody has one to give back.
    Failed(String),
    /// The pool is closed.
    Closed,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LineFull { waiting } => {
                write!(f, "{waiting} sessions wait in line already (pool.waiting): try again later")
            }
            Self::Late { position, leased, max, trouble } => {
                write!(
                    f,
                    "no instance came free in time (pool.wait): place {position} in line, \
                     {leased} of at most {max} are held (pool.max)"
                )?;
                trouble.as_ref().map_or(Ok(()), |trouble| write!(f, "; the latest trouble: {trouble}"))
            }
            Self::Failed(why) => write!(f, "no instance could be started: {why}"),
            Self::Closed => f.write_str("the server is ending"),
        }
    }
}

/// Why an instance is ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// Its holder is done with it, and the next has a clean one.
    Returned,
    /// It had so many leases.
    Worn(u32),
    /// It is so old.
    Old(Duration),
    /// It uses so much memory, in bytes.
    Large(u64),
    /// It did not stand the check.
    Unfit,
    /// It will not serve.
    Failed,
    /// It could not be made clean.
    Dirty,
    /// There are more spares than wanted.
    Surplus,
    /// One of another kind is wanted more.
    MakesRoom,
    /// The pool is closed.
    Closed,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Returned => f.write_str("its session is done with it"),
            Self::Worn(uses) => write!(f, "it was used {uses} times (pool.max_uses)"),
            Self::Old(age) => write!(f, "it is {} old (pool.max_age)", human(*age)),
            Self::Large(rss) => write!(f, "it uses {} (pool.max_rss)", human_bytes(*rss)),
            Self::Unfit => f.write_str("it did not answer when it was to be used"),
            Self::Failed => f.write_str("it failed before anybody used it"),
            Self::Dirty => f.write_str("its reset failed (pool.on_return)"),
            Self::Surplus => f.write_str("nobody needs it (pool.spare, pool.idle)"),
            Self::MakesRoom => f.write_str("another kind of instance is waited for"),
            Self::Closed => f.write_str("the server is ending"),
        }
    }
}

/// How a pool stands: its members by what they do, and its line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// On their way up.
    pub starting: usize,
    /// Ready for anybody, those being checked included.
    pub spare: usize,
    /// Held.
    pub leased: usize,
    /// Being made clean.
    pub resetting: usize,
    /// On their way down.
    pub leaving: usize,
    /// Sessions in line.
    pub waiting: usize,
}

/// One who waits.
#[derive(Clone, Debug)]
struct Waiter<K> {
    ticket: Ticket,
    kind: K,
    deadline: Now,
}

/// Creating did not do lately.
#[derive(Clone, Debug)]
struct Setback {
    why: String,
    times: u32,
    until: Now,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Pool<K> {
    spec: PoolSpec,
    /// The kinds that spares are kept of: those that were wanted.
    kinds: BTreeSet<K>,
    members: BTreeMap<Slot, Member<K>>,
    line: VecDeque<Waiter<K>>,
    next_slot: u64,
    next_fence: u64,
    setback: Option<Setback>,
    wake: Option<Now>,
    closed: bool,
}

impl<K: Copy + Ord> Pool<K> {
    /// An empty pool that keeps spares of these kinds, and of each that somebody wants. The first [`Event::Tick`]
    /// begins.
    pub fn new(spec: PoolSpec, kinds: impl IntoIterator<Item = K>) -> Self {
        Self {
            spec,
            kinds: kinds.into_iter().collect(),
            members: BTreeMap::new(),
            line: VecDeque::new(),
            next_slot: 0,
            next_fence: 0,
            setback: None,
            wake: None,
            closed: false,
        }
    }

    /// How it is to be.
    pub fn spec(&self) -> &PoolSpec {
        &self.spec
    }

    /// The place in the line, from 1, of one who waits.
    pub fn position(&self, ticket: Ticket) -> Option<usize> {
        self.line.iter().position(|waiter| waiter.ticket == ticket).map(|place| place + 1)
    }

    /// The lease on a member, while somebody holds it.
    pub fn fence(&self, slot: Slot) -> Option<Fence> {
        self.members.get(&slot).and_then(Member::fence)
    }

    /// What went wrong lately, until something went right.
    pub fn trouble(&self) -> Option<&str> {
        self.setback.as_ref().map(|setback| setback.why.as_str())
    }

    /// How it stands.
    pub fn figures(&self) -> Figures {
        let mut figures = Figures { waiting: self.line.len(), ..Figures::default() };
        for member in self.members.values() {
            *member.place_in(&mut figures) += 1;
        }
        figures
    }
}
