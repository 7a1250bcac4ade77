//! What follows from what happened.

use super::{
    Effect, Event, How, NEVER, Nanos, Queue, QueueSpec, Queued, Row, Running, STEP, Waiting, nanos, now_of,
};
use crate::instance::Now;

impl Queue {
    /// What is to be done, in this order. What comes too late, or of a task that is not known, changes nothing. A time
    /// before the last one counts as that one.
    pub fn decide(&mut self, event: Event, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.now = self.now.max(nanos(now));
        self.ripen();
        match event {
            Event::Submitted(tasks) => {
                for task in tasks {
                    self.release(&task.project, 1);
                    self.enter(&task);
                }
            }
            Event::Restored(tasks) => tasks.iter().for_each(|task| self.enter(task)),
            Event::Cancelled(seq) => self.cancelled(seq, &mut effects),
            Event::WorkerFree { lane, worker } => self.worker_free(&lane, worker),
            Event::WorkerGone(worker) => self.worker_gone(worker),
            Event::Ended { seq, attempt, how } => self.ended(seq, attempt, how, &mut effects),
            Event::ProjectLimits { project, limits } => self.set_limits(&project, limits),
            Event::Configured(spec) => self.configured(spec),
            Event::Closed => self.closed = true,
            Event::Tick => self.wake = None,
        }
        self.settle(&mut effects);
        effects
    }

    fn configured(&mut self, spec: QueueSpec) {
        self.spec = spec;
        self.refresh_all();
    }

    /// Puts what has become ready into its row.
    fn ripen(&mut self) {
        let mut moved = 0;
        while let Some(key) = self.delayed.first().copied()
            && key.0 <= self.now
        {
            if moved == STEP {
                return;
            }
            moved += 1;
            self.delayed.pop_first();
            self.horizon = key;
            if let Some(row) = self.waiting.get(&key.1).map(|task| task.row) {
                self.put(row, key);
            }
        }
        self.horizon = (self.now, u64::MAX);
    }

    fn enter(&mut self, task: &Queued) {
        match self.running.get(&task.seq) {
            // Revived: its last attempt is over in the journal, and is still being ended.
            Some(running) if running.attempt < task.attempt => {
                self.again.insert(task.seq, task.clone());
                return;
            }
            None if !self.waiting.contains_key(&task.seq) => {}
            _ => {
                self.counts.ignored += 1;
                return;
            }
        }
        let project = self.intern_project(&task.project);
        let lane = self.intern_lane(&task.lane);
        let row = Row::new(self.intern_flow(project, lane), task.priority);
        let deadline = task.deadline.map_or(NEVER, nanos);
        self.wait(task.seq, Waiting { ready: nanos(task.ready), deadline, row, attempt: task.attempt });
    }

    fn wait(&mut self, seq: u64, mut task: Waiting) {
        // What could not begin before its deadline need not wait for it.
        if task.ready >= task.deadline {
            task.deadline = 0;
        }
        self.waiting.insert(seq, task);
        if task.deadline != NEVER {
            self.deadlines.insert((task.deadline, seq));
        }
        let flow = task.row.flow();
        let (project, lane) = (self.project_of(flow), self.flow(flow).lane);
        self.project_mut(project).queued += 1;
        self.book_mut(lane).queued += 1;
        let key = (task.ready, seq);
        if self.is_delayed(task.ready, seq) {
            self.delayed.insert(key);
        } else {
            self.put(task.row, key);
        }
    }

    /// Takes out what does not run; whether it was there.
    fn leave(&mut self, seq: u64) -> bool {
        let Some(task) = self.waiting.remove(&seq) else { return false };
        if task.deadline != NEVER {
            self.deadlines.remove(&(task.deadline, seq));
        }
        let flow = task.row.flow();
        let (project, lane) = (self.project_of(flow), self.flow(flow).lane);
        self.project_mut(project).queued -= 1;
        self.book_mut(lane).queued -= 1;
        let key = (task.ready, seq);
        if !self.delayed.remove(&key) {
            self.take(task.row, key);
        }
        true
    }

    fn cancelled(&mut self, seq: u64, effects: &mut Vec<Effect>) {
        if self.again.remove(&seq).is_some() {
            effects.push(Effect::Dropped { seq });
            self.counts.cancelled += 1;
        } else if let Some(Running { attempt, worker, cancelled, .. }) = self.running.get_mut(&seq) {
            if !std::mem::replace(cancelled, true) {
                effects.push(Effect::Stop { seq, attempt: *attempt, worker: *worker });
                self.counts.cancelled += 1;
            }
        } else if self.leave(seq) {
            effects.push(Effect::Dropped { seq });
            self.counts.cancelled += 1;
        }
    }

    fn ended(&mut self, seq: u64, attempt: u32, how: How, effects: &mut Vec<Effect>) {
        if self.running.get(&seq).is_none_or(|running| running.attempt != attempt) {
            return;
        }
        let Some(Running { row, deadline, cancelled, .. }) = self.running.remove(&seq) else { return };
        let flow = row.flow();
        let (project, lane) = (self.project_of(flow), self.flow(flow).lane);
        self.book_mut(lane).running -= 1;
        let had_room = self.room(project) > 0;
        self.project_mut(project).running -= 1;
        let again = self.again.remove(&seq);
        match how {
            _ if again.is_some() => again.iter().for_each(|task| self.enter(task)),
            How::Retry { .. } | How::NotBegun { .. } if cancelled => effects.push(Effect::Dropped { seq }),
            How::Retry { ready } => {
                self.counts.retried += 1;
                let attempt = attempt.saturating_add(1);
                self.wait(seq, Waiting { ready: nanos(ready), deadline, row, attempt });
            }
            How::NotBegun { ready } => {
                self.wait(seq, Waiting { ready: nanos(ready), deadline, row, attempt });
            }
            How::Over => {}
        }
        if !had_room {
            self.refresh_project(project);
        }
    }

    /// Everything that follows from how things stand now.
    fn settle(&mut self, effects: &mut Vec<Effect>) {
        self.raise();
        // While deadlines that have passed are left over, nothing begins: it might be one of those.
        if self.expire(effects) && !self.closed {
            self.begin_all(effects);
        }
        self.set_wake(effects);
    }

    /// Ends what has not begun by its deadline; whether that was all.
    fn expire(&mut self, effects: &mut Vec<Effect>) -> bool {
        for _ in 0..STEP {
            match self.deadlines.first().copied() {
                Some((at, seq)) if at <= self.now => {
                    self.leave(seq);
                    self.counts.expired += 1;
                    effects.push(Effect::Expire { seq });
                }
                _ => return true,
            }
        }
        self.deadlines.first().is_none_or(|(at, _)| *at > self.now)
    }

    fn set_wake(&mut self, effects: &mut Vec<Effect>) {
        let first = |next: Option<&(Nanos, u64)>| next.map_or(NEVER, |(at, _)| *at);
        let at = first(self.delayed.first()).min(first(self.deadlines.first())).max(self.now);
        let is_news = self.wake.is_none_or(|known| at < known || known < self.now);
        if at != NEVER && is_news {
            self.wake = Some(at);
            effects.push(Effect::Wake(now_of(at)));
        }
    }
}
