//! How many workers a lane has and when one is replaced: scenes by hand, and hours of work of every kind.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ostler_domain::Now;
use ostler_domain::task::queue::{self, How, Queue, QueueSpec, Queued};
use ostler_domain::task::scale::{ScaleSpec, Scaler, Seen, Step};
use ostler_domain::task::worker::{Crew, Effect, Event, Figures, Why, WorkerSpec};
use ostler_domain::task::{Lane, WorkerId};

use crate::support::{Dice, at, secs};
use crate::task_queue::{lane, task};

fn seen(workers: usize, busy: f64, waiting: usize) -> Seen {
    Seen { workers, busy, waiting, ..Seen::default() }
}

#[test]
fn more_workers_come_as_the_waiting_need_them_and_at_most_twice_as_many() {
    let spec = ScaleSpec::of(16);
    let mut scaler = Scaler::default();
    for (workers, busy, waiting, expected) in [
        (1, 0.79, 50, Step::Stay),
        (1, 0.8, 0, Step::Up(1)),
        (1, 1.0, 50, Step::Up(1)),
        (4, 3.2, 2, Step::Up(2)),
        (4, 4.0, 50, Step::Up(4)),
        (14, 14.0, 50, Step::Up(2)),
        (16, 16.0, 50, Step::Stay),
        (0, 0.0, 0, Step::Up(1)),
        (20, 20.0, 9, Step::Down),
    ] {
        assert_eq!(
            scaler.decide(&spec, seen(workers, busy, waiting)),
            expected,
            "{workers} {busy} {waiting}"
        );
    }
    let starting = Seen { starting: 1, ..seen(4, 4.0, 50) };
    assert_eq!(scaler.decide(&spec, starting), Step::Stay);
}

#[test]
fn one_worker_less_follows_two_looks_by_which_the_others_would_have_done() {
    let spec = ScaleSpec::of(16);
    let mut scaler = Scaler::default();
    let mut twice = |spec: &ScaleSpec, seen: Seen| [scaler.decide(spec, seen), scaler.decide(spec, seen)];
    assert_eq!(twice(&spec, seen(4, 0.9, 0)), [Step::Stay, Step::Stay]);
    assert_eq!(twice(&spec, seen(4, 0.8, 1)), [Step::Stay, Step::Stay]);
    assert_eq!(twice(&spec, seen(4, 0.8, 0)), [Step::Stay, Step::Down]);
    let idle = |workers, busy| Seen { idle: true, ..seen(workers, busy, 0) };
    assert_eq!(twice(&spec, idle(4, 1.2)), [Step::Stay, Step::Down]);
    // Not where the others would have too much to do, nor below the least.
    assert_eq!(twice(&spec, idle(4, 2.5)), [Step::Stay, Step::Stay]);
    assert_eq!(twice(&spec, idle(1, 0.0)), [Step::Stay, Step::Stay]);
    let none = ScaleSpec { min: 0, ..spec };
    assert_eq!(twice(&none, idle(1, 0.0)), [Step::Down, Step::Stay]);
    assert_eq!(twice(&none, seen(0, 0.0, 0)), [Step::Stay, Step::Stay]);
    assert_eq!(twice(&none, seen(0, 0.0, 1)), [Step::Up(1), Step::Up(1)]);
}

#[test]
fn a_step_down_that_is_soon_taken_back_makes_the_next_one_wait_twice_as_long() {
    let spec = ScaleSpec::of(2);
    let mut scaler = Scaler::default();
    let mut waits = Vec::new();
    for _ in 0..9 {
        assert_eq!(scaler.decide(&spec, seen(1, 1.0, 1)), Step::Up(1));
        waits.push(1 + (0..1000).take_while(|_| scaler.decide(&spec, seen(2, 0.0, 0)) == Step::Stay).count());
    }
    assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 128, 128]);
    // A long rest forgives.
    (0..1000).for_each(|_| assert_eq!(scaler.decide(&spec, seen(1, 0.5, 0)), Step::Stay));
    assert_eq!(scaler.decide(&spec, seen(1, 1.0, 1)), Step::Up(1));
    assert_eq!((0..1000).take_while(|_| scaler.decide(&spec, seen(2, 0.0, 0)) == Step::Stay).count(), 1);
}

/// What was too much in one step, as more waited than there will be, is taken back once; then there is rest.
#[test]
fn under_a_load_that_stays_the_same_the_number_comes_to_rest_and_turns_round_once_at_most() {
    let spec = ScaleSpec::of(12);
    for from in 1..=12 {
        for load in 0..=1300 {
            let (mut scaler, mut workers, mut steps) = (Scaler::default(), from, Vec::new());
            let load = f64::from(load) / 100.0;
            for look in 0..100 {
                let busy = load.min(workers as f64);
                // More than they can do: the rest waits.
                let waiting = ((load - busy) * 5.0).ceil() as usize;
                let idle = busy + 1.0 <= workers as f64;
                match scaler.decide(&spec, Seen { idle, ..seen(workers, busy, waiting) }) {
                    Step::Up(more) => (workers, _) = (workers + more, steps.push((look, "up"))),
                    Step::Down => (workers, _) = (workers - 1, steps.push((look, "down"))),
                    Step::Stay => {}
                }
            }
            let ways: Vec<_> = steps.iter().map(|(_, way)| *way).collect();
            let turns = ways.windows(2).filter(|pair| pair[0] != pair[1]).count();
            assert!(turns == 0 || (turns == 1 && ways[0] == "up"), "from {from} at {load}: {steps:?}");
            assert!(steps.last().is_none_or(|(look, _)| *look < 50), "from {from} at {load}: {steps:?}");
            assert!((1..=12).contains(&workers) && (workers as f64 * spec.up > load || workers == 12));
        }
    }
}

fn spec() -> WorkerSpec {
    WorkerSpec { jitter: 0.0, ..WorkerSpec::of(4) }
}

fn w(number: u64) -> WorkerId {
    WorkerId(number)
}

/// All but the timer.
fn after(crew: &mut Crew, event: Event, now: u64) -> Vec<Effect> {
    let mut effects = crew.decide(event, at(now));
    effects.retain(|effect| !matches!(effect, Effect::Wake(_)));
    effects
}

const TICK: Event = Event::Tick { waiting: 0 };

/// A crew with its first worker at work.
fn crew(spec: WorkerSpec) -> Crew {
    let mut crew = Crew::new(spec, 0, at(0));
    assert_eq!(after(&mut crew, TICK, 0), [Effect::Start(w(1))]);
    assert_eq!(after(&mut crew, Event::Ready(w(1)), 0), [Effect::Free(w(1))]);
    crew
}

fn one_task(crew: &mut Crew, worker: u64, now: u64) -> Vec<Effect> {
    assert_eq!(after(crew, Event::Began(w(worker)), now), []);
    after(crew, Event::Finished(w(worker)), now)
}

#[test]
fn a_worn_worker_serves_until_its_replacement_is_ready() {
    let mut crew = crew(WorkerSpec { max_tasks: Some(2), ..spec() });
    assert_eq!(one_task(&mut crew, 1, 1), [Effect::Free(w(1))]);
    assert_eq!(one_task(&mut crew, 1, 1), [Effect::Start(w(2)), Effect::Free(w(1))]);
    assert_eq!(one_task(&mut crew, 1, 2), [Effect::Free(w(1))]);
    after(&mut crew, Event::Began(w(1)), 3);
    // It has a task: that comes to its end first.
    assert_eq!(after(&mut crew, Event::Ready(w(2)), 3), [Effect::Free(w(2))]);
    let retire = Effect::Retire { worker: w(1), why: Why::Worn(2) };
    assert_eq!(after(&mut crew, Event::Finished(w(1)), 4), [retire]);
    assert_eq!(crew.figures(), Figures { target: 1, free: 1, leaving: 1, ..Figures::default() });
    assert_eq!(after(&mut crew, Event::Gone(w(1)), 5), []);
}

#[test]
fn a_worker_that_is_old_or_large_is_replaced_one_after_another() {
    let old = WorkerSpec { max_age: Some(secs(100)), ..spec() };
    let mut first = crew(WorkerSpec { scale: ScaleSpec { min: 1, ..spec().scale }, ..old });
    assert_eq!(after(&mut first, TICK, 100), [Effect::Start(w(2))]);
    let retire = Effect::Retire { worker: w(1), why: Why::Old(secs(100)) };
    assert_eq!(after(&mut first, Event::Ready(w(2)), 101), [retire, Effect::Free(w(2))]);

    let large = WorkerSpec { max_rss: Some(50), scale: ScaleSpec { min: 2, ..spec().scale }, ..spec() };
    let mut crew = Crew::new(large, 0, at(0));
    after(&mut crew, TICK, 0);
    for worker in [1, 2] {
        after(&mut crew, Event::Ready(w(worker)), 0);
    }
    assert_eq!(after(&mut crew, Event::Measured { worker: w(1), rss: 50 }, 1), []);
    assert_eq!(after(&mut crew, Event::Measured { worker: w(1), rss: 51 }, 1), [Effect::Start(w(3))]);
    assert_eq!(after(&mut crew, Event::Measured { worker: w(2), rss: 99 }, 1), []);
    let retire = |worker, rss| Effect::Retire { worker: w(worker), why: Why::Large(rss) };
    assert_eq!(after(&mut crew, Event::Ready(w(3)), 2), [retire(1, 51), Effect::Free(w(3))]);
    assert_eq!(after(&mut crew, Event::Gone(w(1)), 3), [Effect::Start(w(4))]);
    assert_eq!(after(&mut crew, Event::Ready(w(4)), 4), [retire(2, 99), Effect::Free(w(4))]);
}

#[test]
fn those_that_began_together_wear_out_at_different_times() {
    let scale = ScaleSpec { min: 50, max: 50, ..spec().scale };
    let mut crew = Crew::new(WorkerSpec { scale, jitter: 0.3, ..spec() }, 0, at(0));
    after(&mut crew, TICK, 0);
    let mut worn = BTreeSet::new();
    for number in 1..=50 {
        after(&mut crew, Event::Ready(w(number)), 0);
        let tasks = (1..=100)
            .find(|_| one_task(&mut crew, number, 0).iter().any(|effect| matches!(effect, Effect::Start(_))));
        worn.extend(tasks);
        let replacement = 50 + number;
        after(&mut crew, Event::Ready(w(replacement)), 0);
        after(&mut crew, Event::Gone(w(number)), 0);
    }
    assert!(worn.len() > 10 && worn.iter().all(|tasks| (70..=100).contains(tasks)), "{worn:?}");
}

#[test]
fn what_does_not_start_or_dies_of_its_first_task_is_tried_less_and_less() {
    let mut crew = Crew::new(spec(), 3, at(0));
    let first = 3 << 32 | 1;
    assert_eq!(after(&mut crew, TICK, 0), [Effect::Start(w(first))]);
    let failed = Event::Failed { worker: w(first), why: "no such program".to_owned() };
    assert_eq!(after(&mut crew, failed, 0), [Effect::Retire { worker: w(first), why: Why::Failed }]);
    assert_eq!(crew.trouble(), Some("no such program"));
    assert_eq!(after(&mut crew, Event::Gone(w(first)), 0), []);
    assert_eq!(crew.decide(TICK, at(0)), [Effect::Wake(at(1))]);
    assert_eq!(after(&mut crew, TICK, 1), [Effect::Start(w(first + 1))]);
    after(&mut crew, Event::Ready(w(first + 1)), 1);
    after(&mut crew, Event::Began(w(first + 1)), 1);
    assert_eq!(after(&mut crew, Event::Gone(w(first + 1)), 2), []);
    assert_eq!(after(&mut crew, TICK, 3), []);
    assert_eq!(after(&mut crew, TICK, 4), [Effect::Start(w(first + 2))]);
    after(&mut crew, Event::Ready(w(first + 2)), 4);
    one_task(&mut crew, first + 2, 4);
    assert_eq!(crew.trouble(), None);
    // One that has shown what it can is followed at once, as is one that was ended for its task's sake.
    assert_eq!(after(&mut crew, Event::Gone(w(first + 2)), 4), [Effect::Start(w(first + 3))]);
    after(&mut crew, Event::Ready(w(first + 3)), 4);
    after(&mut crew, Event::Began(w(first + 3)), 4);
    assert_eq!(after(&mut crew, Event::Ending(w(first + 3)), 5), [Effect::Start(w(first + 4))]);
    assert_eq!(after(&mut crew, Event::Gone(w(first + 3)), 5), []);
}

#[test]
fn a_closed_crew_lets_end_what_runs() {
    let mut crew = crew(spec());
    after(
        &mut crew,
        Event::Configured(WorkerSpec { scale: ScaleSpec { min: 2, ..spec().scale }, ..spec() }),
        0,
    );
    after(&mut crew, Event::Began(w(1)), 0);
    let closed = |worker| Effect::Retire { worker: w(worker), why: Why::Closed };
    assert_eq!(after(&mut crew, Event::Closed, 1), [closed(2)]);
    assert_eq!(after(&mut crew, Event::Ready(w(2)), 2), []);
    assert_eq!(after(&mut crew, Event::Finished(w(1)), 2), [closed(1)]);
    after(&mut crew, Event::Gone(w(1)), 2);
    after(&mut crew, Event::Gone(w(2)), 2);
    assert_eq!(crew.decide(TICK, at(99)), []);
    assert_eq!(crew.figures(), Figures::default());
}

#[test]
fn a_lane_without_workers_has_one_as_soon_as_something_waits() {
    let scale = ScaleSpec { min: 0, ..spec().scale };
    let mut crew = Crew::new(WorkerSpec { scale, ..spec() }, 0, at(0));
    assert_eq!(after(&mut crew, TICK, 0), []);
    let scaled = Effect::Scaled { from: 0, to: 1 };
    assert_eq!(after(&mut crew, Event::Tick { waiting: 9 }, 1), [scaled, Effect::Start(w(1))]);
    assert_eq!(after(&mut crew, Event::Tick { waiting: 9 }, 2), []);
    after(&mut crew, Event::Ready(w(1)), 3);
    one_task(&mut crew, 1, 4);
    assert_eq!(after(&mut crew, TICK, 63), []);
    let retire = Effect::Retire { worker: w(1), why: Why::Surplus };
    assert_eq!(after(&mut crew, TICK, 74), [Effect::Scaled { from: 1, to: 0 }, retire]);
}

/// Hours of a lane: its queue, its crew, and tasks that arrive and last as chance has it.
struct Hours {
    dice: Dice,
    queue: Queue,
    crew: Crew,
    now: Now,
    lane: Lane,
    /// What happens when.
    agenda: BTreeMap<(Now, u64), What>,
    next: u64,
    alive: BTreeSet<WorkerId>,
    scaled: Vec<(Now, i64)>,
    ended: u64,
}

enum What {
    Arrive,
    Ready(WorkerId),
    Finish { seq: u64, worker: WorkerId },
    Die(WorkerId),
    Tick,
}

impl Hours {
    fn new(seed: u64, spec: WorkerSpec) -> Self {
        let mut hours = Self {
            dice: Dice(seed),
            queue: Queue::new(QueueSpec { project_running: 1000, ..QueueSpec::default() }),
            crew: Crew::new(spec, 0, at(0)),
            now: at(0),
            lane: lane(),
            agenda: BTreeMap::new(),
            next: 0,
            alive: BTreeSet::new(),
            scaled: Vec::new(),
            ended: 0,
        };
        hours.crew(TICK);
        hours.plan(Duration::ZERO, What::Arrive);
        hours
    }

    fn plan(&mut self, after: Duration, what: What) {
        self.next += 1;
        self.agenda.insert((self.now.after(after), self.next), what);
    }

    /// Exponential, with that mean.
    fn draw(&mut self, mean: Duration) -> Duration {
        let share = (self.dice.below(1 << 30) + 1) as f64 / (1 << 30) as f64;
        mean.mul_f64(-share.ln())
    }

    fn crew(&mut self, event: Event) {
        for effect in self.crew.decide(event, self.now) {
            match effect {
                Effect::Start(worker) => {
                    assert!(self.alive.insert(worker), "{worker:?} is started twice");
                    let most = self.crew.spec().scale.max + 1;
                    let there = self.crew.figures();
                    assert!(there.starting + there.free + there.busy <= most, "{there:?}");
                    let takes = Duration::from_millis(50 + self.dice.below(2000));
                    self.plan(takes, What::Ready(worker));
                }
                Effect::Free(worker) => {
                    let lane = self.lane.clone();
                    self.queue(queue::Event::WorkerFree { lane, worker });
                }
                Effect::Retire { worker, .. } => {
                    self.queue(queue::Event::WorkerGone(worker));
                    self.plan(Duration::from_millis(100), What::Die(worker));
                }
                Effect::Scaled { from, to } => {
                    self.scaled.push((
                        self.now,
                        i64::try_from(to).expect("few") - i64::try_from(from).expect("few"),
                    ));
                }
                Effect::Wake(at) => self.plan(at.since(self.now), What::Tick),
            }
        }
    }

    fn queue(&mut self, event: queue::Event) {
        for effect in self.queue.decide(event, self.now) {
            if let queue::Effect::Assign { seq, worker, .. } = effect {
                assert!(self.alive.contains(&worker));
                self.crew(Event::Began(worker));
                self.next += 1;
                let ends = self.ends(seq);
                self.plan(ends, What::Finish { seq, worker });
            }
        }
    }

    /// How long a task lasts follows from its number.
    fn ends(&self, seq: u64) -> Duration {
        let share = (Dice(seq).below(1 << 30) + 1) as f64 / (1 << 30) as f64;
        LASTS.mul_f64(-share.ln())
    }

    fn run(&mut self, until: Now, load: impl Fn(Now) -> f64) {
        while let Some(entry) = self.agenda.first_entry()
            && entry.key().0 <= until
        {
            let ((now, _), what) = entry.remove_entry();
            self.now = now;
            self.happen(what, load(now));
        }
    }

    fn happen(&mut self, what: What, load: f64) {
        match what {
            What::Arrive => {
                self.next += 1;
                let task = Queued { ready: self.now, ..task(self.next, "a", 5, 0) };
                self.queue.reserve(&task.project, 1).expect("there is room");
                self.queue(queue::Event::Submitted(vec![task]));
                let pause = self.draw(LASTS.div_f64(load));
                self.plan(pause, What::Arrive);
            }
            What::Ready(worker) if self.alive.contains(&worker) => self.crew(Event::Ready(worker)),
            What::Finish { seq, worker } if self.alive.contains(&worker) => {
                self.ended += 1;
                self.queue(queue::Event::Ended { seq, attempt: 1, how: How::Over });
                if self.dice.chance(1) {
                    self.happen(What::Die(worker), load);
                } else {
                    self.crew(Event::Finished(worker));
                }
            }
            What::Die(worker) => {
                self.queue(queue::Event::WorkerGone(worker));
                self.alive.remove(&worker);
                self.crew(Event::Gone(worker));
            }
            What::Tick => {
                let waiting = self.queue.startable(&self.lane, 16);
                self.crew(Event::Tick { waiting });
            }
            What::Ready(_) | What::Finish { .. } => {}
        }
    }

    /// How often the number of workers turned round since then.
    fn turns(&self, since: Now) -> usize {
        let ways: Vec<i64> =
            self.scaled.iter().filter(|(at, _)| *at > since).map(|(_, by)| by.signum()).collect();
        ways.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }
}

/// The mean of how long tasks last, in these hours.
const LASTS: Duration = Duration::from_millis(700);

/// Even only in the mean: what arrives and how long it lasts is by chance, and a worker dies now and then.
#[test]
fn in_hours_of_even_work_the_number_of_workers_comes_to_rest() {
    for halves in 1..=13 {
        let load = f64::from(halves) / 2.0;
        let mut hours = Hours::new(u64::try_from(halves).expect("small"), WorkerSpec::of(8));
        hours.run(at(2 * 3600), |_| load);
        let (turns, early) = (hours.turns(at(0)), hours.turns(at(0)) - hours.turns(at(3600)));
        // The number is looked at 720 times.
        assert!(turns <= 16, "{turns} turns at {load}: {:?}", hours.scaled);
        assert!(turns - early <= 6, "{turns} turns at {load}, {early} in the first hour: {:?}", hours.scaled);
        let expected = 2.0 * 3600.0 * load / LASTS.as_secs_f64();
        let share = hours.ended as f64 / expected;
        assert!((0.95..1.05).contains(&share), "{} of {expected} were done at {load}", hours.ended);
    }
}

#[test]
fn the_number_of_workers_follows_the_work() {
    let mut hours = Hours::new(99, WorkerSpec::of(8));
    let load = |now: Now| if (at(600)..at(1200)).contains(&now) { 6.5 } else { 0.05 };
    hours.run(at(600), load);
    assert_eq!(hours.crew.figures().target, 1);
    // 1, 2, 4, 8: three looks, after that which found the work.
    hours.run(at(660), load);
    assert_eq!(hours.crew.figures().target, 8);
    hours.run(at(1200), load);
    assert_eq!(hours.crew.figures().target, 8);
    hours.run(at(3600), load);
    assert_eq!(hours.crew.figures().target, 1);
    assert_eq!(hours.alive.len(), 1);
}
