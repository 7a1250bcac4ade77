//! Pools: scenes by hand, and lives by chance against a world that is as slow and as broken as real ones.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ostler_domain::Now;
use ostler_domain::pool::{
    Effect, Event, Fence, Figures, OnReturn, Pool, PoolSpec, Refused, Slot, Ticket, Why,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::support::{at, secs};

const ANY: u8 = 0;

fn spec(spare: usize, max: usize) -> PoolSpec {
    PoolSpec { spare, max, jitter: 0.0, ..PoolSpec::default() }
}

fn pool(spec: PoolSpec) -> Pool<u8> {
    Pool::new(spec, [ANY])
}

fn wanted(ticket: u64, deadline: u64) -> Event<u8> {
    Event::Wanted { ticket: Ticket(ticket), kind: ANY, deadline: at(deadline) }
}

fn hand(ticket: u64, slot: u64, fence: u64) -> Effect<u8> {
    Effect::Hand { ticket: Ticket(ticket), slot: Slot(slot), fence: Fence(fence) }
}

fn create(slot: u64) -> Effect<u8> {
    Effect::Create { slot: Slot(slot), kind: ANY }
}

fn retire(slot: u64, why: Why) -> Effect<u8> {
    Effect::Retire { slot: Slot(slot), why }
}

fn returned(slot: u64, fence: u64) -> Event<u8> {
    Event::Returned { slot: Slot(slot), fence: Fence(fence) }
}

/// All but the timer.
fn after(pool: &mut Pool<u8>, event: Event<u8>, now: u64) -> Vec<Effect<u8>> {
    let mut effects = pool.decide(event, at(now));
    effects.retain(|effect| !matches!(effect, Effect::Wake(_)));
    effects
}

fn fit(slot: u64) -> Event<u8> {
    Event::Checked { slot: Slot(slot), fit: true }
}

#[test]
fn a_spare_is_checked_handed_out_ended_and_followed_by_another() {
    let mut pool = pool(spec(1, 3));
    assert_eq!(after(&mut pool, Event::Tick, 0), [create(1)]);
    assert_eq!(after(&mut pool, Event::Ready(Slot(1)), 1), []);
    // The next spare is not started before the first is really taken.
    assert_eq!(after(&mut pool, wanted(7, 30), 2), [Effect::Check(Slot(1)), create(2)]);
    assert_eq!(after(&mut pool, fit(1), 2), [hand(7, 1, 1)]);
    assert_eq!(pool.fence(Slot(1)), Some(Fence(1)));
    assert_eq!(after(&mut pool, Event::Ready(Slot(2)), 3), []);
    assert_eq!(after(&mut pool, returned(1, 1), 4), [retire(1, Why::Returned)]);
    assert_eq!(pool.figures(), Figures { spare: 1, leaving: 1, ..Figures::default() });
    assert_eq!(after(&mut pool, Event::Gone(Slot(1)), 5), []);
}

#[test]
fn what_comes_back_under_an_old_lease_changes_nothing() {
    let mut pool = pool(PoolSpec { on_return: OnReturn::Reuse, ..spec(0, 1) });
    assert_eq!(after(&mut pool, wanted(1, 30), 0), [create(1)]);
    assert_eq!(after(&mut pool, Event::Ready(Slot(1)), 0), [Effect::Check(Slot(1))]);
    assert_eq!(after(&mut pool, fit(1), 0), [hand(1, 1, 1)]);
    assert_eq!(after(&mut pool, wanted(2, 30), 0), []);
    assert_eq!(after(&mut pool, returned(1, 1), 1), [Effect::Check(Slot(1))]);
    assert_eq!(after(&mut pool, fit(1), 1), [hand(2, 1, 2)]);
    assert_eq!(after(&mut pool, returned(1, 1), 2), []);
    assert_eq!(pool.fence(Slot(1)), Some(Fence(2)));
}

#[test]
fn the_line_has_places_an_end_and_deadlines() {
    let mut pool = pool(PoolSpec { waiting: 2, ..spec(0, 1) });
    after(&mut pool, wanted(1, 90), 0);
    after(&mut pool, Event::Ready(Slot(1)), 0);
    after(&mut pool, fit(1), 0);
    after(&mut pool, wanted(2, 10), 0);
    after(&mut pool, wanted(3, 20), 0);
    assert_eq!((pool.position(Ticket(2)), pool.position(Ticket(3))), (Some(1), Some(2)));
    let full = Effect::Refuse { ticket: Ticket(4), why: Refused::LineFull { waiting: 2 } };
    assert_eq!(after(&mut pool, wanted(4, 30), 0), [full]);
    let late = Refused::Late { position: 1, leased: 1, max: 1, trouble: None };
    assert_eq!(after(&mut pool, Event::Tick, 10), [Effect::Refuse { ticket: Ticket(2), why: late }]);
    after(&mut pool, Event::GivenUp(Ticket(3)), 11);
    assert_eq!(pool.figures().waiting, 0);
}

#[test]
fn what_cannot_be_started_is_tried_less_and_less_and_nobody_waits_for_it() {
    let mut pool = pool(spec(0, 2));
    assert_eq!(after(&mut pool, wanted(1, 900), 0), [create(1)]);
    let failed = |slot| Event::Failed { slot: Slot(slot), why: "no such program".to_owned() };
    assert_eq!(after(&mut pool, failed(1), 0), [retire(1, Why::Failed)]);
    let refused = |ticket| Effect::Refuse {
        ticket: Ticket(ticket),
        why: Refused::Failed("no such program".to_owned()),
    };
    assert_eq!(after(&mut pool, Event::Gone(Slot(1)), 0), [refused(1)]);
    // Until the next try is due, nobody is let in to wait for it.
    assert_eq!(after(&mut pool, wanted(2, 900), 0), [refused(2)]);
    assert_eq!(after(&mut pool, wanted(3, 900), 1), [create(2)]);
    after(&mut pool, failed(2), 1);
    after(&mut pool, Event::Gone(Slot(2)), 1);
    assert_eq!(after(&mut pool, wanted(4, 900), 2), [refused(4)]);
    assert_eq!(after(&mut pool, wanted(5, 900), 3), [create(3)]);
    assert_eq!(pool.trouble(), Some("no such program"));
    after(&mut pool, Event::Ready(Slot(3)), 3);
    assert_eq!(pool.trouble(), None);
}

#[test]
fn a_spare_that_is_due_serves_until_its_replacement_is_ready() {
    let mut pool = pool(PoolSpec { max_age: Some(secs(100)), ..spec(1, 2) });
    after(&mut pool, Event::Tick, 0);
    after(&mut pool, Event::Ready(Slot(1)), 0);
    assert_eq!(after(&mut pool, Event::Tick, 100), [create(2)]);
    assert_eq!(after(&mut pool, Event::Ready(Slot(2)), 101), [retire(1, Why::Old(secs(100)))]);
}

#[test]
fn what_is_worn_or_too_large_is_not_handed_out_again() {
    let settings =
        PoolSpec { on_return: OnReturn::Reuse, max_uses: Some(2), max_rss: Some(50), ..spec(0, 1) };
    let mut pool = pool(settings);
    after(&mut pool, wanted(1, 30), 0);
    after(&mut pool, Event::Ready(Slot(1)), 0);
    after(&mut pool, fit(1), 0);
    after(&mut pool, returned(1, 1), 0);
    after(&mut pool, wanted(2, 30), 0);
    after(&mut pool, fit(1), 0);
    assert_eq!(after(&mut pool, returned(1, 2), 0), [retire(1, Why::Worn(2))]);
    after(&mut pool, Event::Gone(Slot(1)), 0);
    after(&mut pool, wanted(3, 30), 0);
    after(&mut pool, Event::Ready(Slot(2)), 0);
    after(&mut pool, fit(2), 0);
    after(&mut pool, Event::Measured { slot: Slot(2), rss: 51 }, 0);
    assert_eq!(after(&mut pool, returned(2, 3), 0), [retire(2, Why::Large(51))]);
}

#[test]
fn a_spare_that_nobody_took_is_ended_after_a_while_where_it_is_one_too_many() {
    let mut pool = pool(PoolSpec { on_return: OnReturn::Reuse, ..spec(1, 3) });
    after(&mut pool, Event::Tick, 0);
    after(&mut pool, Event::Ready(Slot(1)), 0);
    after(&mut pool, wanted(1, 30), 0);
    after(&mut pool, fit(1), 0);
    after(&mut pool, Event::Ready(Slot(2)), 0);
    after(&mut pool, returned(1, 1), 10);
    assert_eq!(pool.decide(Event::Tick, at(30)), [Effect::Wake(at(300))]);
    assert_eq!(after(&mut pool, Event::Tick, 300), [retire(2, Why::Surplus)]);
    assert_eq!(after(&mut pool, Event::Tick, 9999), []);
}

#[test]
fn a_spare_of_another_kind_makes_room_for_one_that_is_waited_for() {
    let mut pool = pool(spec(1, 1));
    after(&mut pool, Event::Tick, 0);
    after(&mut pool, Event::Ready(Slot(1)), 0);
    let other = Event::Wanted { ticket: Ticket(1), kind: 9, deadline: at(30) };
    assert_eq!(after(&mut pool, other, 0), [retire(1, Why::MakesRoom)]);
    let other = Effect::Create { slot: Slot(2), kind: 9 };
    assert_eq!(after(&mut pool, Event::Gone(Slot(1)), 0), [other]);
}

#[test]
fn nobody_waits_for_a_kind_that_there_is_not() {
    let mut pool = pool(spec(1, 2));
    after(&mut pool, wanted(1, 30), 0);
    let unserved = Event::Unserved { kind: ANY, why: "it is of another era".to_owned() };
    let refused = Refused::Failed("it is of another era".to_owned());
    let refused = Effect::Refuse { ticket: Ticket(1), why: refused };
    assert_eq!(after(&mut pool, unserved, 0), [retire(1, Why::Failed), retire(2, Why::Failed), refused]);
    after(&mut pool, Event::Gone(Slot(1)), 0);
    assert_eq!(after(&mut pool, Event::Gone(Slot(2)), 0), []);
    assert_eq!(after(&mut pool, Event::Kept(9), 0), [Effect::Create { slot: Slot(3), kind: 9 }]);
}

#[test]
fn a_closed_pool_keeps_its_leases_and_nothing_else() {
    let mut pool = pool(spec(1, 2));
    after(&mut pool, Event::Tick, 0);
    after(&mut pool, Event::Ready(Slot(1)), 0);
    after(&mut pool, wanted(1, 30), 0);
    after(&mut pool, fit(1), 0);
    after(&mut pool, wanted(2, 30), 0);
    let refused = Effect::Refuse { ticket: Ticket(2), why: Refused::Closed };
    assert_eq!(after(&mut pool, Event::Closed, 1), [refused, retire(2, Why::Closed)]);
    assert_eq!(after(&mut pool, returned(1, 1), 2), [retire(1, Why::Closed)]);
    after(&mut pool, Event::Gone(Slot(1)), 3);
    after(&mut pool, Event::Gone(Slot(2)), 3);
    assert_eq!(pool.figures(), Figures::default());
}

/// What happens to a world next.
#[derive(Clone, Debug)]
enum Turn {
    Want {
        kind: u8,
        patience: u64,
    },
    GiveUp(Index),
    /// Something that was ordered comes to its end, well or not.
    Done {
        which: Index,
        well: bool,
    },
    Return(Index),
    /// A holder that was told it is over comes back once more.
    ReturnOld(Index),
    /// Something is said of an instance that nobody waits for any more.
    Stray {
        which: Index,
        well: bool,
    },
    /// An instance dies by itself, verified.
    Die(Index),
    Measure {
        which: Index,
        rss: u64,
    },
    Wait(u64),
    Configure {
        spare: usize,
        max: usize,
    },
    Room,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = prop_oneof![
        6 => (0..2_u8, 1..60_u64).prop_map(|(kind, patience)| Turn::Want { kind, patience }),
        1 => any::<Index>().prop_map(Turn::GiveUp),
        12 => (any::<Index>(), prop::bool::weighted(0.85)).prop_map(|(which, well)| Turn::Done { which, well }),
        5 => any::<Index>().prop_map(Turn::Return),
        1 => any::<Index>().prop_map(Turn::ReturnOld),
        2 => (any::<Index>(), any::<bool>()).prop_map(|(which, well)| Turn::Stray { which, well }),
        1 => any::<Index>().prop_map(Turn::Die),
        1 => (any::<Index>(), 0..200_u64).prop_map(|(which, rss)| Turn::Measure { which, rss }),
        3 => (1..40_u64).prop_map(Turn::Wait),
        1 => (0..3_usize, 1..6_usize).prop_map(|(spare, max)| Turn::Configure { spare, max }),
        1 => Just(Turn::Room),
    ];
    prop::collection::vec(turn, 1..200)
}

fn settings() -> impl Strategy<Value = PoolSpec> {
    let on_return = prop_oneof![
        Just(OnReturn::Restart),
        Just(OnReturn::Reuse),
        Just(OnReturn::Command(vec!["x".to_owned()], secs(1)))
    ];
    let bounds = (prop::option::of(1..4_u32), prop::option::of(20..200_u64), prop::option::of(Just(100)));
    ((0..3_usize, 1..6_usize), on_return, bounds, 0.0..0.5_f64).prop_map(
        |((spare, max), on_return, (max_uses, max_age, max_rss), jitter)| PoolSpec {
            on_return,
            waiting: 6,
            max_uses,
            max_age: max_age.map(secs),
            max_rss,
            jitter,
            idle: secs(50),
            ..spec(spare, max)
        },
    )
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Start(Slot),
    Check(Slot),
    Reset(Slot),
    End(Slot),
}

/// What is really so, as the pool cannot see it.
#[derive(Debug)]
struct World {
    pool: Pool<u8>,
    now: Now,
    wake: Option<Now>,
    orders: Vec<Order>,
    kinds: BTreeMap<Slot, u8>,
    dirty: BTreeSet<Slot>,
    held: BTreeMap<Slot, (Ticket, Fence)>,
    old: Vec<(Slot, Fence)>,
    line: VecDeque<(Ticket, u8, Now)>,
    latest: Fence,
    next_ticket: u64,
    /// The most instances that there may be, while a smaller maximum is not reached yet.
    bound: usize,
}

impl World {
    fn new(spec: PoolSpec) -> Self {
        let mut world = Self {
            bound: spec.max,
            pool: pool(spec),
            now: at(0),
            wake: None,
            orders: Vec::new(),
            kinds: BTreeMap::new(),
            dirty: BTreeSet::new(),
            held: BTreeMap::new(),
            old: Vec::new(),
            line: VecDeque::new(),
            latest: Fence(0),
            next_ticket: 0,
        };
        world.tell(Event::Tick);
        world
    }

    fn tell(&mut self, event: Event<u8>) {
        for effect in self.pool.decide(event, self.now) {
            self.perform(effect);
        }
        self.bound = self.kinds.len().min(self.bound).max(self.pool.spec().max);
        assert!(self.kinds.len() <= self.bound, "{} instances, {} are allowed", self.kinds.len(), self.bound);
        assert!(self.line.iter().all(|(_, _, deadline)| *deadline > self.now), "somebody waits too long");
        assert_eq!(self.pool.figures().waiting, self.line.len());
        assert_eq!(self.pool.figures().leased, self.held.len());
    }

    fn perform(&mut self, effect: Effect<u8>) {
        match effect {
            Effect::Create { slot, kind } => {
                assert!(self.kinds.insert(slot, kind).is_none(), "{slot:?} was created twice");
                assert!(self.kinds.len() <= self.bound, "more than {} instances", self.bound);
                self.orders.push(Order::Start(slot));
            }
            Effect::Check(slot) => self.orders.push(Order::Check(slot)),
            Effect::Reset(slot) => self.orders.push(Order::Reset(slot)),
            Effect::Retire { slot, .. } => {
                assert!(self.held.remove(&slot).is_none(), "{slot:?} is taken from its holder");
                self.orders.retain(|order| !matches!(order, Order::Start(other) if *other == slot));
                self.orders.push(Order::End(slot));
            }
            Effect::Hand { ticket, slot, fence } => self.handed(ticket, slot, fence),
            Effect::Refuse { ticket, why } => {
                self.line.retain(|(other, ..)| *other != ticket);
                if let Refused::Late { leased, .. } = why {
                    assert!(leased <= self.kinds.len());
                }
            }
            Effect::Wake(at) => {
                assert!(at > self.now, "woken for what has come already");
                self.wake = Some(at);
            }
        }
    }

    fn handed(&mut self, ticket: Ticket, slot: Slot, fence: Fence) {
        let kind = self.kinds.get(&slot).expect("what is handed out is there");
        let place =
            self.line.iter().position(|(_, wanted, _)| wanted == kind).expect("somebody waits for it");
        let (first, ..) = self.line.remove(place).expect("it is there");
        assert_eq!(first, ticket, "another was first in line");
        assert!(!self.dirty.contains(&slot), "{slot:?} is handed out dirty");
        assert!(fence > self.latest, "leases are numbered upwards");
        self.latest = fence;
        assert!(self.held.insert(slot, (ticket, fence)).is_none(), "{slot:?} has two holders");
        if *self.pool.spec() != (PoolSpec { on_return: OnReturn::Reuse, ..self.pool.spec().clone() }) {
            self.dirty.insert(slot);
        }
    }

    fn turn(&mut self, turn: Turn) {
        match turn {
            Turn::Want { kind, patience } => {
                self.next_ticket += 1;
                let (ticket, deadline) = (Ticket(self.next_ticket), self.now.after(secs(patience)));
                self.line.push_back((ticket, kind, deadline));
                self.tell(Event::Wanted { ticket, kind, deadline });
            }
            Turn::GiveUp(which) if !self.line.is_empty() => {
                let (ticket, ..) = self.line.remove(which.index(self.line.len())).expect("within");
                self.tell(Event::GivenUp(ticket));
            }
            Turn::Done { which, well } if !self.orders.is_empty() => {
                let order = self.orders.remove(which.index(self.orders.len()));
                self.done(order, well);
            }
            Turn::Return(which) if !self.held.is_empty() => self.give_back(which.index(self.held.len())),
            Turn::ReturnOld(which) if !self.old.is_empty() => {
                let (slot, fence) = self.old[which.index(self.old.len())];
                self.tell(Event::Returned { slot, fence });
            }
            Turn::Stray { which, well } if !self.held.is_empty() => {
                let slot = *self.held.keys().nth(which.index(self.held.len())).expect("within");
                self.tell(Event::Ready(slot));
                self.tell(Event::Checked { slot, fit: well });
                self.tell(Event::Reset { slot, clean: well });
                self.tell(Event::Failed { slot, why: "its process crashed".to_owned() });
            }
            Turn::Die(which) if !self.kinds.is_empty() => {
                let slot = *self.kinds.keys().nth(which.index(self.kinds.len())).expect("within");
                self.gone(slot);
            }
            Turn::Measure { which, rss } if !self.kinds.is_empty() => {
                let slot = *self.kinds.keys().nth(which.index(self.kinds.len())).expect("within");
                self.tell(Event::Measured { slot, rss });
            }
            Turn::Wait(seconds) => self.wait(secs(seconds)),
            Turn::Configure { spare, max } => {
                self.bound = self.bound.max(max);
                let spec = PoolSpec { spare, max, ..self.pool.spec().clone() };
                self.tell(Event::Configured(spec));
            }
            Turn::Room => self.tell(Event::Room),
            _ => {}
        }
    }

    fn give_back(&mut self, which: usize) {
        let (slot, (_, fence)) =
            self.held.iter().nth(which).map(|(slot, held)| (*slot, *held)).expect("within");
        self.held.remove(&slot);
        self.old.push((slot, fence));
        self.tell(Event::Returned { slot, fence });
    }

    fn gone(&mut self, slot: Slot) {
        self.kinds.remove(&slot);
        self.held.remove(&slot);
        self.orders.retain(|order| {
            let (Order::Start(of) | Order::Check(of) | Order::Reset(of) | Order::End(of)) = order;
            *of != slot
        });
        self.tell(Event::Gone(slot));
    }

    fn done(&mut self, order: Order, well: bool) {
        match order {
            Order::Start(slot) if well => self.tell(Event::Ready(slot)),
            Order::Start(slot) => self.tell(Event::Failed { slot, why: "it is broken".to_owned() }),
            Order::Check(slot) => self.tell(Event::Checked { slot, fit: well }),
            Order::Reset(slot) => {
                if well {
                    self.dirty.remove(&slot);
                }
                self.tell(Event::Reset { slot, clean: well });
            }
            Order::End(slot) => self.gone(slot),
        }
    }

    fn wait(&mut self, time: Duration) {
        let until = self.now.after(time);
        while let Some(wake) = self.wake.filter(|wake| *wake <= until) {
            self.now = wake;
            self.wake = None;
            self.tell(Event::Tick);
        }
        self.now = until;
    }

    /// All that was ordered is done well, whatever that leads to.
    fn finish_orders(&mut self) {
        for _ in 0..1000 {
            let Some(order) = self.orders.pop() else { return };
            self.done(order, true);
        }
        panic!("it never comes to rest: {:?}", self.pool);
    }

    /// All leases are given back and all in line have what they wanted, or have waited long enough.
    fn come_to_rest(&mut self) {
        for _ in 0..200 {
            self.finish_orders();
            while !self.held.is_empty() {
                self.give_back(0);
            }
            self.finish_orders();
            self.wait(secs(1));
        }
        assert_eq!(self.pool.figures().waiting, 0, "in line for ever: {:?}", self.pool);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Exclusive, clean, fair, never too many: `World` asserts it at every step. In the end spares are as many as wanted
    /// and, once it is closed, nothing is left.
    #[test]
    fn whatever_happens_a_pool_keeps_its_promises(settings in settings(), turns in turns()) {
        let mut world = World::new(settings);
        for turn in turns {
            world.turn(turn);
        }
        // Without replacements by age, rest is possible.
        let spec = PoolSpec { max_age: None, max_rss: None, ..world.pool.spec().clone() };
        world.tell(Event::Configured(spec));
        world.come_to_rest();
        let figures = world.pool.figures();
        let kinds = if world.next_ticket == 0 { 1 } else { 2 };
        let (spare, max) = (world.pool.spec().spare, world.pool.spec().max);
        prop_assert!(figures.spare >= spare.min(max), "{figures:?} of {:?}", world.pool.spec());
        prop_assert!(figures.spare <= (spare * kinds).min(max), "{figures:?} of {:?}", world.pool.spec());
        prop_assert_eq!(Figures { spare: 0, ..figures }, Figures::default());
        world.tell(Event::Closed);
        world.finish_orders();
        prop_assert_eq!(world.pool.figures(), Figures::default());
        prop_assert!(world.kinds.is_empty());
    }
}
