//! Whose turn it is, over thousands of tasks: fair shares, and how long the least urgent waits at most.

use std::collections::BTreeMap;
use std::time::Duration;

use ostler_domain::Now;
use ostler_domain::task::WorkerId;
use ostler_domain::task::queue::{Effect, Event, How, Place, Queue, QueueSpec, Queued};

use crate::support::{Dice, at};
use crate::task_queue::{free, limits, task};

/// A lane with so many workers that are never without a task, some of which fail, die or are cancelled.
struct Mill {
    queue: Queue,
    dice: Dice,
    now: Now,
    busy: Vec<(u64, u32, WorkerId)>,
    owners: BTreeMap<u64, String>,
    begun: Vec<(u64, String)>,
    next_worker: u64,
}

impl Mill {
    fn new(workers: u64, seed: u64) -> Self {
        let spec = QueueSpec { project_running: 1000, ..QueueSpec::default() };
        let mut mill = Self {
            queue: Queue::new(spec),
            dice: Dice(seed),
            now: at(1000),
            busy: Vec::new(),
            owners: BTreeMap::new(),
            begun: Vec::new(),
            next_worker: workers,
        };
        for worker in 1..=workers {
            mill.tell(free(worker));
        }
        mill
    }

    fn tell(&mut self, event: Event) {
        for effect in self.queue.decide(event, self.now) {
            if let Effect::Assign { seq, attempt, worker } = effect {
                self.busy.push((seq, attempt, worker));
                self.begun.push((seq, self.owners[&seq].clone()));
            }
        }
    }

    fn submit(&mut self, tasks: Vec<Queued>) {
        for task in &tasks {
            self.owners.insert(task.seq, task.project.as_str().to_owned());
            self.queue.reserve(&task.project, 1).expect("there is room");
        }
        self.tell(Event::Submitted(tasks));
    }

    /// One attempt ends, and its worker or the one that takes its place is free.
    fn end_one(&mut self, faults: bool) {
        self.now = self.now.after(Duration::from_millis(1 + self.dice.below(20)));
        let which = self.dice.index(self.busy.len());
        let (seq, attempt, mut worker) = self.busy.swap_remove(which);
        if faults && self.dice.chance(10) {
            self.tell(Event::WorkerGone(worker));
            self.next_worker += 1;
            worker = WorkerId(self.next_worker);
        }
        let failed = faults && attempt < 3 && self.dice.chance(20);
        let ready = self.now.after(Duration::from_millis(self.dice.below(3000)));
        let how = if failed { How::Retry { ready } } else { How::Over };
        // The worker is free before the journal knows of the end, or after: both happen.
        let ended = Event::Ended { seq, attempt, how };
        let mut both = [ended, free(worker.0)];
        if self.dice.chance(50) {
            both.reverse();
        }
        both.into_iter().for_each(|event| self.tell(event));
    }

    /// The shares of the attempts begun since then.
    fn shares(&self, since: usize) -> BTreeMap<&str, f64> {
        let mut shares = BTreeMap::new();
        let part = 1.0 / (self.begun.len() - since) as f64;
        for (_, owner) in &self.begun[since..] {
            *shares.entry(owner.as_str()).or_default() += part;
        }
        shares
    }

    fn assert_shares(&self, since: usize, expected: &[(&str, f64)]) {
        let shares = self.shares(since);
        for (name, expected) in expected {
            let share = shares.get(name).copied().unwrap_or_default();
            let off = (share / expected - 1.0).abs();
            assert!(off < 0.05, "{name} has {share:.4} and not {expected:.4} of {shares:?}");
        }
    }
}

/// So many tasks of one project and priority, numbered from there.
fn many(first: u64, count: u64, name: &str, priority: u8, ready: u64) -> Vec<Queued> {
    (first..first + count).map(|seq| task(seq, name, priority, ready)).collect()
}

#[test]
fn over_10_000_tasks_shares_are_as_the_weights_say_within_5_percent() {
    for (seed, faults) in [(1, false), (2, true), (3, true)] {
        let mut mill = Mill::new(7, seed);
        for (at, (name, weight)) in [("a", 1), ("b", 1), ("c", 2), ("d", 4)].into_iter().enumerate() {
            mill.tell(limits(name, None, weight));
            // In turn, and of one project after another: neither matters.
            mill.submit(many(at as u64 * 9_000, 9_000, name, 5, 1000));
        }
        while mill.begun.len() < 10_000 {
            mill.end_one(faults);
            if mill.begun.len().is_multiple_of(1000) {
                mill.assert_shares(0, &[("a", 0.125), ("b", 0.125), ("c", 0.25), ("d", 0.5)]);
            }
        }
    }
}

/// On one level all the time, or on another one from there.
#[test]
fn who_was_idle_or_at_its_limit_saves_nothing_up() {
    for rises in [false, true] {
        let mut mill = Mill::new(4, 7);
        let ageing = |mill: &mut Mill, ageing| {
            let spec = QueueSpec { ageing, ..mill.queue.spec().clone() };
            mill.queue.decide(Event::Configured(spec), mill.now);
        };
        if !rises {
            ageing(&mut mill, Duration::ZERO);
        }
        mill.tell(limits("b", Some(0), 1));
        mill.submit(many(0, 20_000, "a", 5, 1000));
        mill.submit(many(20_000, 20_000, "b", 5, 1000));
        while mill.begun.len() < 5_000 {
            mill.end_one(false);
        }
        mill.assert_shares(0, &[("a", 1.0)]);
        mill.tell(limits("b", None, 1));
        let ready = mill.now.0.as_secs();
        // As urgent as the others have become meanwhile, though it comes only now.
        mill.submit(many(40_000, 20_000, "c", if rises { 10 } else { 5 }, ready));
        if rises {
            ageing(&mut mill, Duration::from_nanos(1));
        }
        let since = mill.begun.len();
        let thirds = [("a", 1.0 / 3.0), ("b", 1.0 / 3.0), ("c", 1.0 / 3.0)];
        while mill.begun.len() < since + 3_000 {
            mill.end_one(false);
            if mill.begun.len() == since + 300 {
                mill.assert_shares(since, &thirds);
            }
        }
        mill.assert_shares(since, &thirds);
    }
}

/// Two that meet on a level again and again, one of which is served on another level meanwhile.
#[test]
fn who_is_served_at_another_priority_meanwhile_saves_nothing_up() {
    let mut mill = Mill::new(1, 9);
    mill.submit(many(0, 5_000, "a", 5, 1000));
    mill.submit(many(10_000, 5_000, "b", 5, 1000));
    mill.submit(many(20_000, 2_000, "b", 9, 1000));
    while mill.begun.len() < 2_001 {
        mill.end_one(false);
    }
    // All of these were urgent ones; at 5 both begin where they would have begun.
    mill.assert_shares(1, &[("b", 1.0)]);
    let since = mill.begun.len();
    while mill.begun.len() < since + 400 {
        mill.end_one(false);
    }
    mill.assert_shares(since, &[("a", 0.5), ("b", 0.5)]);
}

/// `docs/tasks-queue.md`: a task that has risen to 10, of a project below its limit, with `k` of its own before it, is the
/// (k + 1) * W / w + N - 1st to begin in its lane at the latest. Here against projects that never stop to submit what is
/// most urgent, with weights of their own, while attempts fail and workers die.
#[test]
fn the_least_urgent_task_waits_no_longer_than_the_bound() {
    for seed in 0..20 {
        let mut mill = Mill::new(3, seed);
        let weights: Vec<u64> = (0..6).map(|_| 1 + mill.dice.below(5)).collect();
        for (name, weight) in weights.iter().enumerate() {
            mill.tell(limits(&format!("p{name}"), None, u32::try_from(*weight).expect("small")));
        }
        mill.tell(Event::Configured(QueueSpec {
            ageing: Duration::from_millis(500),
            ..mill.queue.spec().clone()
        }));
        let mut next = 0;
        let mut flood = |mill: &mut Mill, name: usize, priority, count| {
            let mut tasks = many(next, count, &format!("p{name}"), priority, 0);
            next += count;
            tasks.iter_mut().for_each(|task| task.ready = mill.now);
            mill.submit(tasks);
        };
        (0..6).for_each(|name| flood(&mut mill, name, 10, 60));
        let victim = mill.dice.index(6);
        let seq = 360;
        flood(&mut mill, victim, 0, 1);
        let risen = mill.now.after(Duration::from_secs(5));
        let mut bound = None;
        while mill.queue.place(seq) == Some(Place::Ready) {
            for name in 0..6 {
                let priority = 10 - u8::try_from(mill.dice.below(2)).expect("small");
                let count = u64::from(mill.dice.chance(40));
                flood(&mut mill, name, priority, count);
            }
            mill.end_one(true);
            if mill.now >= risen && bound.is_none() {
                // Whoever of its own was ready before it; a retried one comes later.
                let own = format!("p{victim}");
                let before = |other: &u64| {
                    mill.owners[other] == own && matches!(mill.queue.place(*other), Some(Place::Ready))
                };
                let k = (0..seq).filter(before).count() as u64;
                let all: u64 = weights.iter().sum();
                bound = Some(mill.begun.len() as u64 + ((k + 1) * all).div_ceil(weights[victim]) + 6 - 1);
            }
            assert!(
                bound.is_none_or(|bound| mill.begun.len() as u64 <= bound),
                "seed {seed}: it still waits"
            );
        }
        assert!(mill.begun.iter().any(|(begun, _)| *begun == seq));
    }
}

#[test]
fn without_ageing_the_least_urgent_waits_as_long_as_there_is_anything_else() {
    let mut mill = Mill::new(1, 5);
    mill.tell(Event::Configured(QueueSpec { ageing: Duration::ZERO, ..mill.queue.spec().clone() }));
    mill.submit(vec![task(1, "b", 1, 0), task(2, "a", 0, 0)]);
    for seq in 3..50 {
        mill.now = mill.now.after(Duration::from_secs(3600));
        mill.submit(many(seq, 1, "b", 1, mill.now.0.as_secs()));
        mill.end_one(false);
        assert_eq!(mill.queue.place(2), Some(Place::Ready));
    }
    mill.end_one(false);
    assert_eq!(mill.queue.place(2), Some(Place::Running { attempt: 1, worker: WorkerId(1) }));
}
