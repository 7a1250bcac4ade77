//! What follows from what happened.

use super::member::{Doing, Member};
use super::{
    Effect, Event, Fence, OnReturn, Pool, Refused, SETBACK_MAX, SETBACK_MIN, Setback, Slot, Ticket, Waiter,
    Why,
};
use crate::instance::Now;

impl<K: Copy + Ord> Pool<K> {
    /// What is to be done, in this order. What comes too late, or of a member that is not known, changes nothing.
    pub fn decide(&mut self, event: Event<K>, now: Now) -> Vec<Effect<K>> {
        let mut effects = Vec::new();
        match event {
            Event::Wanted { ticket, kind, deadline } => self.wanted(ticket, kind, deadline, &mut effects),
            Event::GivenUp(ticket) => self.line.retain(|waiter| waiter.ticket != ticket),
            Event::Ready(slot) => self.ready(slot, now, &mut effects),
            Event::Failed { slot, why } => self.failed(slot, why, now, &mut effects),
            Event::Checked { slot, fit } => self.checked(slot, fit, now, &mut effects),
            Event::Returned { slot, fence } => self.returned(slot, fence, now, &mut effects),
            Event::Reset { slot, clean } => self.reset(slot, clean, now, &mut effects),
            Event::Gone(slot) => {
                self.members.remove(&slot);
            }
            Event::Unserved { kind, why } => self.unserved(kind, &why, now, &mut effects),
            Event::Kept(kind) => {
                self.kinds.insert(kind);
            }
            Event::Measured { slot, rss } => {
                if let Some(member) = self.members.get_mut(&slot) {
                    member.measured(rss);
                }
            }
            Event::Room => {
                if let Some(setback) = &mut self.setback {
                    setback.until = now;
                }
            }
            Event::Tick => self.wake = None,
            Event::Configured(spec) => self.spec = spec,
            Event::Closed => self.closed = true,
        }
        self.settle(now, &mut effects);
        effects
    }

    fn wanted(&mut self, ticket: Ticket, kind: K, deadline: Now, effects: &mut Vec<Effect<K>>) {
        if self.closed {
            effects.push(Effect::Refuse { ticket, why: Refused::Closed });
        } else if self.line.len() >= self.spec.waiting {
            let why = Refused::LineFull { waiting: self.line.len() };
            effects.push(Effect::Refuse { ticket, why });
        } else {
            self.kinds.insert(kind);
            self.line.push_back(Waiter { ticket, kind, deadline });
        }
    }

    fn unserved(&mut self, kind: K, why: &str, now: Now, effects: &mut Vec<Effect<K>>) {
        self.kinds.remove(&kind);
        let of_kind = |member: &Member<K>| {
            member.kind == kind && !matches!(member.doing, Doing::Leaving | Doing::Leased(_))
        };
        for slot in self.slots(of_kind) {
            self.retire(slot, Why::Failed, now, effects);
        }
        self.line.retain(|waiter| {
            if waiter.kind == kind {
                let why = Refused::Failed(why.to_owned());
                effects.push(Effect::Refuse { ticket: waiter.ticket, why });
            }
            waiter.kind != kind
        });
    }

    fn doing(&self, slot: Slot) -> Option<Doing> {
        self.members.get(&slot).map(|member| member.doing)
    }

    fn turn(&mut self, slot: Slot, doing: Doing, now: Now) {
        if let Some(member) = self.members.get_mut(&slot) {
            member.turn(doing, now);
        }
    }

    fn retire(&mut self, slot: Slot, why: Why, now: Now, effects: &mut Vec<Effect<K>>) {
        self.turn(slot, Doing::Leaving, now);
        effects.push(Effect::Retire { slot, why });
    }

    fn ready(&mut self, slot: Slot, now: Now, effects: &mut Vec<Effect<K>>) {
        if self.doing(slot) != Some(Doing::Starting) {
            return;
        }
        self.setback = None;
        self.turn(slot, Doing::Spare, now);
        let kind = self.members.get(&slot).map(|member| member.kind);
        if let Some((other, why)) = kind.and_then(|kind| self.outgoing(kind).first().copied()) {
            self.retire(other, why, now, effects);
        }
    }

    /// What its holder has is the holder's to give back.
    fn failed(&mut self, slot: Slot, why: String, now: Now, effects: &mut Vec<Effect<K>>) {
        match self.doing(slot) {
            None | Some(Doing::Leased(_) | Doing::Leaving) => {}
            Some(_) => {
                let times = self.setback.as_ref().map_or(0, |setback| setback.times);
                let wait = SETBACK_MIN.saturating_mul(1 << times.min(10)).min(SETBACK_MAX);
                self.setback = Some(Setback { why, times: times + 1, until: now.after(wait) });
                self.retire(slot, Why::Failed, now, effects);
            }
        }
    }

    /// The first in line gets what is fit, whoever it was checked for.
    fn checked(&mut self, slot: Slot, fit: bool, now: Now, effects: &mut Vec<Effect<K>>) {
        let Some(member) = self.members.get_mut(&slot).filter(|member| member.doing == Doing::Checking)
        else {
            return;
        };
        if !fit {
            return self.retire(slot, Why::Unfit, now, effects);
        }
        let first = self.line.iter().position(|waiter| waiter.kind == member.kind && waiter.deadline > now);
        match first.and_then(|place| self.line.remove(place)) {
            Some(waiter) => {
                self.next_fence += 1;
                let fence = Fence(self.next_fence);
                member.lease(fence, now);
                effects.push(Effect::Hand { ticket: waiter.ticket, slot, fence });
            }
            // Since the check it is as unused as before.
            None => member.doing = Doing::Spare,
        }
    }

    fn returned(&mut self, slot: Slot, fence: Fence, now: Now, effects: &mut Vec<Effect<K>>) {
        let Some(member) = self.members.get(&slot).filter(|member| member.fence() == Some(fence)) else {
            return;
        };
        match (&self.spec.on_return, member.is_due(&self.spec, now)) {
            _ if self.closed => self.retire(slot, Why::Closed, now, effects),
            (OnReturn::Restart, _) => self.retire(slot, Why::Returned, now, effects),
            (_, Some(why)) => self.retire(slot, why, now, effects),
            (OnReturn::Reuse, None) => self.turn(slot, Doing::Spare, now),
            (OnReturn::Command(..), None) => {
                self.turn(slot, Doing::Resetting, now);
                effects.push(Effect::Reset(slot));
            }
        }
    }

    fn reset(&mut self, slot: Slot, clean: bool, now: Now, effects: &mut Vec<Effect<K>>) {
        match (self.doing(slot), clean) {
            (Some(Doing::Resetting), true) => self.turn(slot, Doing::Spare, now),
            (Some(Doing::Resetting), false) => self.retire(slot, Why::Dirty, now, effects),
            _ => {}
        }
    }

    /// Everything that follows from how things stand now.
    fn settle(&mut self, now: Now, effects: &mut Vec<Effect<K>>) {
        self.dismiss_the_late(now, effects);
        self.retire_the_unwanted(now, effects);
        self.replace_the_due(now, effects);
        self.check_for_the_line(now, effects);
        self.create(now, effects);
        self.refuse_the_hopeless(effects);
        self.set_wake(now, effects);
    }

    fn dismiss_the_late(&mut self, now: Now, effects: &mut Vec<Effect<K>>) {
        let leased = self.count(|member| member.fence().is_some());
        let trouble = self.trouble().map(str::to_owned);
        let (max, closed) = (self.spec.max, self.closed);
        let mut position = 0;
        self.line.retain(|waiter| {
            position += 1;
            if !closed && waiter.deadline > now {
                return true;
            }
            let why = if closed {
                Refused::Closed
            } else {
                Refused::Late { position, leased, max, trouble: trouble.clone() }
            };
            effects.push(Effect::Refuse { ticket: waiter.ticket, why });
            false
        });
    }

    /// Spares beyond what is wanted: at once where there are too many instances, else after a while.
    fn retire_the_unwanted(&mut self, now: Now, effects: &mut Vec<Effect<K>>) {
        if self.closed {
            let free = |member: &Member<K>| !matches!(member.doing, Doing::Leased(_) | Doing::Leaving);
            for slot in self.slots(free) {
                self.retire(slot, Why::Closed, now, effects);
            }
            return;
        }
        for kind in self.kinds.clone() {
            // The oldest first: they are the most likely to be stale.
            for slot in self.oldest_spares(kind) {
                let unused =
                    self.members.get(&slot).is_some_and(|member| now.since(member.since) >= self.spec.idle);
                let (coming, over) = (self.coming(kind), self.staying() > self.spec.max);
                if (unused && coming > self.demand(kind)) || (over && coming > self.waiting(kind)) {
                    self.retire(slot, Why::Surplus, now, effects);
                }
            }
        }
    }

    /// Where there is room, the replacement comes first; where none is wanted, none is waited for.
    fn replace_the_due(&mut self, now: Now, effects: &mut Vec<Effect<K>>) {
        for kind in self.kinds.clone() {
            let enough = self.oldest_spares(kind).len() >= self.demand(kind);
            for (slot, why) in self.outgoing(kind).into_iter().filter(|_| enough) {
                self.retire(slot, why, now, effects);
            }
        }
        for slot in self.slots(|member| member.doing == Doing::Spare) {
            let Some(why) = self.members.get(&slot).and_then(|member| member.is_due(&self.spec, now)) else {
                continue;
            };
            let kind = self.members.get(&slot).map(|member| member.kind);
            let is_wanted = kind.is_some_and(|kind| self.coming(kind) <= self.demand(kind));
            if is_wanted && self.members.len() < self.spec.max {
                self.turn(slot, Doing::Outgoing(why), now);
            } else {
                self.retire(slot, why, now, effects);
            }
        }
    }

    fn check_for_the_line(&mut self, now: Now, effects: &mut Vec<Effect<K>>) {
        for kind in self.kinds.clone() {
            let checking = self.count(|member| member.kind == kind && member.doing == Doing::Checking);
            let unserved = self.waiting(kind).saturating_sub(checking);
            for slot in self.oldest_spares(kind).into_iter().take(unserved) {
                // It stays as long unused as it was.
                if let Some(member) = self.members.get_mut(&slot) {
                    member.turn(Doing::Checking, member.since.min(now));
                }
                effects.push(Effect::Check(slot));
            }
        }
    }

    fn create(&mut self, now: Now, effects: &mut Vec<Effect<K>>) {
        if self.closed || self.setback.as_ref().is_some_and(|setback| now < setback.until) {
            return;
        }
        // First for those in line, in its order, then spares.
        let mut kinds: Vec<K> = self.line.iter().map(|waiter| waiter.kind).collect();
        kinds.dedup();
        kinds.extend(self.kinds.iter().copied());
        for (turn, kind) in kinds.iter().enumerate() {
            let for_line = turn + self.kinds.len() < kinds.len();
            let wanted = if for_line { self.waiting(*kind) } else { self.demand(*kind) };
            while self.coming(*kind) < wanted {
                if self.members.len() >= self.spec.max {
                    if for_line {
                        self.make_room(*kind, now, effects);
                    }
                    break;
                }
                self.next_slot += 1;
                let slot = Slot(self.next_slot);
                self.members.insert(slot, Member::new(slot, *kind, now));
                effects.push(Effect::Create { slot, kind: *kind });
            }
        }
    }

    /// One that is being replaced, or a spare that nobody in line wants, gives its place to one that is waited for;
    /// unless one is on its way out already.
    fn make_room(&mut self, kind: K, now: Now, effects: &mut Vec<Effect<K>>) {
        let missing = self.waiting(kind).saturating_sub(self.coming(kind));
        let leaving = self.count(|member| member.doing == Doing::Leaving);
        for _ in leaving..missing {
            let able = self.members.iter().find_map(|(slot, member)| match member.doing {
                Doing::Outgoing(why) => Some((*slot, why)),
                Doing::Spare
                    if member.kind != kind && self.coming(member.kind) > self.waiting(member.kind) =>
                {
                    Some((*slot, Why::MakesRoom))
                }
                _ => None,
            });
            let Some((slot, why)) = able else { return };
            self.retire(slot, why, now, effects);
        }
    }

    /// Nobody waits for what cannot come: nothing is there, nothing is on its way out or to be given back, and what
    /// was tried failed.
    fn refuse_the_hopeless(&mut self, effects: &mut Vec<Effect<K>>) {
        let Some(setback) = self.setback.as_ref().filter(|_| self.members.is_empty()) else { return };
        for waiter in self.line.drain(..) {
            let why = Refused::Failed(setback.why.clone());
            effects.push(Effect::Refuse { ticket: waiter.ticket, why });
        }
    }

    fn set_wake(&mut self, now: Now, effects: &mut Vec<Effect<K>>) {
        let deadlines = self.line.iter().map(|waiter| waiter.deadline);
        let retry = self.setback.as_ref().map(|setback| setback.until).filter(|until| *until > now);
        let spares = self.members.values().filter(|member| member.doing == Doing::Spare);
        let ages = spares.clone().filter_map(|member| member.age_is_up(&self.spec));
        let idle = self.spec.idle;
        let surplus = |member: &&Member<K>| self.coming(member.kind) > self.demand(member.kind);
        let idles = spares.filter(surplus).map(|member| member.since.after(idle));
        let next = deadlines.chain(retry).chain(ages).chain(idles).filter(|at| *at > now).min();
        if let Some(at) = next
            && self.wake.is_none_or(|known| at < known || known <= now)
        {
            self.wake = Some(at);
            effects.push(Effect::Wake(at));
        }
    }

    fn count(&self, of: impl Fn(&Member<K>) -> bool) -> usize {
        self.members.values().filter(|member| of(member)).count()
    }

    fn slots(&self, of: impl Fn(&Member<K>) -> bool) -> Vec<Slot> {
        self.members.iter().filter(|(_, member)| of(member)).map(|(slot, _)| *slot).collect()
    }

    /// Those that are being replaced, and why.
    fn outgoing(&self, kind: K) -> Vec<(Slot, Why)> {
        let outgoing = |(slot, member): (&Slot, &Member<K>)| match member.doing {
            Doing::Outgoing(why) if member.kind == kind => Some((*slot, why)),
            _ => None,
        };
        self.members.iter().filter_map(outgoing).collect()
    }

    /// Those that have been spares for longest first.
    fn oldest_spares(&self, kind: K) -> Vec<Slot> {
        let spare = |member: &Member<K>| member.kind == kind && member.doing == Doing::Spare;
        let mut spares: Vec<(Now, Slot)> = Vec::new();
        for (slot, member) in self.members.iter().filter(|(_, member)| spare(member)) {
            spares.push((member.since, *slot));
        }
        spares.sort_unstable();
        spares.into_iter().map(|(_, slot)| slot).collect()
    }

    fn waiting(&self, kind: K) -> usize {
        self.line.iter().filter(|waiter| waiter.kind == kind).count()
    }

    /// Instances of a kind that are to be there for those in line and as spares.
    fn demand(&self, kind: K) -> usize {
        self.waiting(kind) + self.spec.spare
    }

    fn coming(&self, kind: K) -> usize {
        self.count(|member| member.kind == kind && member.is_coming())
    }

    /// Members that are not on their way out.
    fn staying(&self) -> usize {
        self.count(|member| member.doing != Doing::Leaving)
    }
}
