//! What tasks begin with, at hand: those submitted lately, and of a long queue those that are next.
//!
//! A task that begins soon after its submission is not read from the journal at all. One that has waited long may have
//! given its place to newer ones; whoever has to read it has those that follow it read with it, so that a long queue costs
//! one look at the journal for many of its tasks.

use std::collections::{BTreeMap, BTreeSet};

use ostler_domain::task::queue::{Place, Queue};

use super::attempt::Kept;

/// Most bytes of tasks kept from their submission to their start; the oldest give place to newer ones.
const RECENT: usize = 16 << 20;
/// Most bytes of tasks that were read before they begin.
const AHEAD: usize = 4 << 20;
/// Most tasks that are read with one that begins.
const FOLLOWING: usize = 64;
/// Most bytes of those that are read with one that begins.
pub(super) const READ: usize = 256 << 10;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    recent: Pile,
    ahead: Pile,
    /// Being read.
    reading: BTreeSet<u64>,
}

#[derive(Debug, Default)]
struct Pile {
    tasks: BTreeMap<u64, Kept>,
    bytes: usize,
}

impl Pile {
    fn put(&mut self, seq: u64, kept: Kept) {
        self.take(seq);
        self.bytes += kept.size();
        self.tasks.insert(seq, kept);
    }

    fn take(&mut self, seq: u64) -> Option<Kept> {
        let kept = self.tasks.remove(&seq)?;
        self.bytes -= kept.size();
        Some(kept)
    }
}

impl Shelf {
    /// Keeps what was just submitted.
    pub(super) fn keep(&mut self, seq: u64, kept: Kept) {
        self.recent.put(seq, kept);
        while self.recent.bytes > RECENT
            && let Some((oldest, _)) = self.recent.tasks.first_key_value()
        {
            let oldest = *oldest;
            self.recent.take(oldest);
        }
    }

    /// Takes what a task begins with, if it is here.
    pub(super) fn take(&mut self, seq: u64) -> Option<Kept> {
        self.recent.take(seq).or_else(|| self.ahead.take(seq))
    }

    /// The tasks to be read with this one, which is not here. Whoever asks says [`Shelf::put_read`] of them.
    pub(super) fn ask_with(&mut self, queue: &Queue, seq: u64) -> Vec<u64> {
        let is_missing = |seq: &u64| {
            let is_here = self.recent.tasks.contains_key(seq) || self.ahead.tasks.contains_key(seq);
            !is_here && !self.reading.contains(seq)
        };
        let missing: Vec<u64> = queue.following(seq, FOLLOWING).filter(is_missing).collect();
        self.reading.extend(&missing);
        missing
    }

    /// What came of reading those: what has begun or gone meanwhile is of no use, and what there is no room for is read
    /// again when it begins.
    pub(super) fn put_read(&mut self, queue: &Queue, asked: &[u64], read: Vec<(u64, Kept)>) {
        self.reading.retain(|seq| !asked.contains(seq));
        for (seq, kept) in read {
            let waits = matches!(queue.place(seq), Some(Place::Ready | Place::Delayed));
            if waits && self.ahead.bytes + kept.size() <= AHEAD {
                self.ahead.put(seq, kept);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ostler_domain::instance::Now;
    use ostler_domain::task::queue::{Event, QueueSpec, Queued};
    use ostler_domain::task::{Lane, Priority, ProjectName, WorkerId};
    use ostler_store::journal::Id;
    use serde_json::value::to_raw_value;

    use super::super::attempt::{Head, Stored};
    use super::*;

    fn lane() -> Lane {
        "code".parse().expect("a lane")
    }

    fn project() -> ProjectName {
        "p".parse().expect("a project")
    }

    fn kept(seq: u64, bytes: usize) -> Kept {
        let head = Head {
            id: Id { seq, nonce: 0 },
            kind: "k".into(),
            lane: lane(),
            project: project(),
            principal: "p".into(),
        };
        let payload = to_raw_value(&"x".repeat(bytes)).expect("a text is JSON");
        Kept { head, stored: Stored { payload, timeout_ms: 1, memory: None, output: None } }
    }

    fn queue(tasks: u64) -> Queue {
        let mut queue = Queue::new(QueueSpec { project_running: 1000, ..QueueSpec::default() });
        let task = |seq| Queued {
            seq,
            lane: lane(),
            project: project(),
            priority: Priority::default(),
            ready: Now(Duration::ZERO),
            deadline: None,
            attempt: 1,
        };
        queue.decide(Event::Restored((1..=tasks).map(task).collect()), Now(Duration::from_secs(1)));
        queue
    }

    fn begin(queue: &mut Queue) {
        queue.decide(Event::WorkerFree { lane: lane(), worker: WorkerId(1) }, Now(Duration::from_secs(1)));
    }

    #[test]
    fn the_newest_stay_and_no_more_than_there_is_room_for() {
        let mut shelf = Shelf::default();
        let half = RECENT / 2;
        (1..=3).for_each(|seq| shelf.keep(seq, kept(seq, half - 1000)));
        assert!(shelf.take(1).is_none());
        assert!(shelf.take(3).is_some() && shelf.take(2).is_some());
        assert_eq!(shelf.recent.bytes, 0);
        // One that has no room at all drives the others out, and goes itself.
        shelf.keep(4, kept(4, RECENT + 1));
        assert!(shelf.take(4).is_none() && shelf.recent.bytes == 0);
    }

    #[test]
    fn what_follows_is_read_once_and_put_by_only_while_it_waits() {
        let (mut shelf, mut queue) = (Shelf::default(), queue(200));
        shelf.keep(3, kept(3, 1));
        begin(&mut queue);
        let asked = shelf.ask_with(&queue, 1);
        assert_eq!(asked.first_chunk(), Some(&[2, 4, 5]));
        assert_eq!(asked.len(), FOLLOWING - 1);
        begin(&mut queue);
        // The second asks for none of those that the first has read.
        assert!(shelf.ask_with(&queue, 2).iter().all(|seq| !asked.contains(seq)));
        shelf.put_read(&queue, &asked, asked.iter().map(|seq| (*seq, kept(*seq, 1))).collect());
        assert!(shelf.take(2).is_none(), "it has begun");
        assert!(shelf.take(4).is_some() && shelf.take(4).is_none());
        // What did not come is asked for again.
        shelf.put_read(&queue, &[], Vec::new());
        queue.decide(Event::Cancelled(5), Now(Duration::from_secs(1)));
        assert!(shelf.take(5).is_some(), "the desk takes what was dropped");
    }

    #[test]
    fn what_was_read_ahead_is_bounded() {
        let (mut shelf, queue) = (Shelf::default(), queue(3));
        let read = (1..=3).map(|seq| (seq, kept(seq, AHEAD / 2 - 1000))).collect();
        shelf.put_read(&queue, &[1, 2, 3], read);
        assert!(shelf.take(1).is_some() && shelf.take(2).is_some() && shelf.take(3).is_none());
        assert_eq!(shelf.ahead.bytes, 0);
    }
}
