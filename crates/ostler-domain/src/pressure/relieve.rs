//! What makes room, in which order.

use std::cmp::Reverse;
use std::fmt;

use crate::ids::InstanceId;
use crate::instance::Now;
use crate::text::human_bytes;

/// Who needs an instance, from nobody on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Occupation {
    /// Nobody yet: it was started ahead of need.
    Spare,
    /// Nobody any more, or nobody yet of those it was started for.
    Idle,
    /// Somebody holds it, and no call runs.
    Leased,
    /// Calls run.
    Busy,
}

/// An instance that might give room.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Which.
    pub id: InstanceId,
    /// Its server's type.
    pub type_name: String,
    /// Who needs it.
    pub occupation: Occupation,
    /// Since when that is so.
    pub since: Now,
    /// Memory of its tree in bytes.
    pub memory: u64,
    /// Memory in bytes that it may use, where it has a limit of its own.
    pub own_limit: Option<u64>,
    /// Whether it must not be stopped for others, such as one that is `required`. It may be restarted.
    pub kept: bool,
}

impl Candidate {
    /// By how many bytes it is over its own limit.
    fn excess(&self) -> u64 {
        self.own_limit.map_or(0, |limit| self.memory.saturating_sub(limit))
    }
}

/// What room is needed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Need {
    /// So many instances fewer.
    Slots {
        /// How many.
        count: usize,
        /// Of this type; absent: of any.
        type_name: Option<String>,
    },
    /// So many bytes of memory.
    Bytes(u64),
}

/// What is done to an instance; in the order in which it is resorted to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Measure {
    /// Stop one that was started ahead of need.
    RetireSpare,
    /// Stop one that nobody uses.
    StopIdle,
    /// Restart one that is over its own limit and serves no call.
    RestartOverLimit,
    /// Stop one that somebody holds. Only with `emergency`.
    StopLeased,
    /// Restart one that is over its own limit in the middle of its calls. Only with `emergency`.
    RestartBusy,
    /// Stop one in the middle of its calls. Only with `emergency`.
    StopBusy,
}

impl Measure {
    /// Whether it is done only where `limits.emergency` allows it.
    pub fn is_emergency(self) -> bool {
        self >= Self::StopLeased
    }

    /// Whether the instance is started again.
    pub fn restarts(self) -> bool {
        matches!(self, Self::RestartOverLimit | Self::RestartBusy)
    }
}

/// One thing to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Action {
    /// What.
    pub measure: Measure,
    /// To which instance.
    pub id: InstanceId,
    /// Memory of its tree in bytes.
    pub memory: u64,
    /// Its own limit in bytes, where that is why.
    pub over: Option<u64>,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.measure {
            Measure::RetireSpare => "stop the spare instance",
            Measure::StopIdle => "stop the unused instance",
            Measure::RestartOverLimit => "restart",
            Measure::StopLeased => "emergency: stop the instance that sessions hold,",
            Measure::RestartBusy => "emergency: restart in the middle of calls",
            Measure::StopBusy => "emergency: stop in the middle of calls",
        };
        write!(f, "{what} {} ({}", self.id, human_bytes(self.memory))?;
        match self.over {
            Some(limit) => write!(f, ", its own limit is {})", human_bytes(limit)),
            None => f.write_str(")"),
        }
    }
}

/// What is to be done to make room.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Relief {
    /// In this order; none of it is needless.
    pub actions: Vec<Action>,
    /// What is still missing when all is done: instances or bytes, as the need was. 0: it is enough.
    pub short: u64,
}

/// What to do to make room: spares first, then idle instances, then, for memory, those over their own limit;
/// with `emergency` and for memory also leased and busy ones. Of those alike the largest first (over its limit:
/// the one by most), of equally large ones that which is so longest.
pub fn relieve(need: &Need, candidates: &[Candidate], emergency: bool) -> Relief {
    let (mut missing, of_type) = match need {
        Need::Slots { count, type_name } => (*count as u64, type_name.as_deref()),
        Need::Bytes(bytes) => (*bytes, None),
    };
    let for_memory = matches!(need, Need::Bytes(_));
    let mut able: Vec<(Measure, &Candidate)> = candidates
        .iter()
        .filter(|c| of_type.is_none_or(|wanted| c.type_name == wanted))
        .filter_map(|c| Some((measure(c, for_memory)?, c)))
        .filter(|(measure, _)| emergency || !measure.is_emergency())
        .collect();
    able.sort_by_key(|(measure, c)| {
        let size = if measure.restarts() { c.excess() } else { c.memory };
        (*measure, Reverse(size), c.since, &c.id)
    });
    let mut relief = Relief::default();
    for (measure, c) in able {
        if missing == 0 {
            break;
        }
        let gain = match (for_memory, measure.restarts()) {
            (false, _) => 1,
            (true, false) => c.memory,
            // It comes back, and is taken to stay below its limit then.
            (true, true) => c.excess(),
        };
        if gain == 0 {
            continue;
        }
        missing = missing.saturating_sub(gain);
        let over = measure.restarts().then_some(c.own_limit).flatten();
        relief.actions.push(Action { measure, id: c.id.clone(), memory: c.memory, over });
    }
    relief.short = missing;
    relief
}

/// What may be done to an instance, if anything. For mere room among the instances no one is disturbed.
fn measure(c: &Candidate, for_memory: bool) -> Option<Measure> {
    let over = for_memory && c.excess() > 0;
    match c.occupation {
        Occupation::Spare if !c.kept => Some(Measure::RetireSpare),
        Occupation::Idle if !c.kept => Some(Measure::StopIdle),
        Occupation::Spare | Occupation::Idle | Occupation::Leased if over => Some(Measure::RestartOverLimit),
        Occupation::Busy if over => Some(Measure::RestartBusy),
        Occupation::Leased if for_memory && !c.kept => Some(Measure::StopLeased),
        Occupation::Busy if for_memory && !c.kept => Some(Measure::StopBusy),
        _ => None,
    }
}
