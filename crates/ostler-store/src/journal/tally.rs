//! How many tasks there are of what, kept in memory and counted anew at each opening.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::ROW_BYTES;
use super::record::{Body, TaskRecord, TaskState};
use super::row::Glance;

/// Tasks by state, in the order of [`TaskState::ALL`].
pub type Counts = [u64; 5];

/// What a batch has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BatchTally {
    pub(super) counts: Counts,
    /// Its tasks have numbers from here ...
    pub(super) first: u64,
    /// ... to here, perhaps among others.
    pub(super) last: u64,
}

impl Default for BatchTally {
    fn default() -> Self {
        Self { counts: [0; 5], first: u64::MAX, last: 0 }
    }
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Tally {
    pub(super) states: Counts,
    pub(super) projects: HashMap<String, Counts>,
    pub(super) batches: HashMap<u64, BatchTally>,
    /// What ended tasks take up.
    pub(super) ended_bytes: u64,
}

/// A task came, went, or changed its state. Entered once its change is on disk.
pub(super) struct Shift {
    seq: u64,
    project: String,
    batch: Option<u64>,
    from: Option<(TaskState, u64)>,
    to: Option<(TaskState, u64)>,
}

impl Shift {
    pub(super) fn new(task: &TaskRecord, from: Option<(TaskState, u64)>, to: Option<TaskState>) -> Self {
        Self {
            seq: task.id.seq,
            project: task.project.clone(),
            batch: task.batch,
            from,
            to: to.map(|state| (state, bytes(task))),
        }
    }
}

/// What a task takes up, roughly.
pub(super) fn bytes(task: &TaskRecord) -> u64 {
    taken(task.payload, task.result)
}

fn taken(payload: Body, result: Option<Body>) -> u64 {
    ROW_BYTES + payload.len + result.map_or(0, |result| result.len)
}

impl Tally {
    /// Counts a task that was read at opening.
    pub(super) fn count(&mut self, task: &Glance<'_>) {
        let state = task.state as usize;
        self.states[state] += 1;
        match self.projects.get_mut(task.project) {
            Some(counts) => counts[state] += 1,
            None => self.projects.entry(task.project.to_owned()).or_default()[state] += 1,
        }
        if let Some(batch) = task.batch {
            self.batches.entry(batch).or_default().enter(task.seq, state);
        }
        if task.state.has_ended() {
            self.ended_bytes += taken(task.payload, task.result);
        }
    }

    pub(super) fn enter(&mut self, shift: Shift) {
        let Shift { seq, project, batch, from, to } = shift;
        let mut project = match self.projects.entry(project) {
            Entry::Occupied(project) => project,
            Entry::Vacant(project) => project.insert_entry(Counts::default()),
        };
        let project_counts = project.get_mut();
        if let Some((state, bytes)) = from {
            self.states[state as usize] -= 1;
            project_counts[state as usize] -= 1;
            if state.has_ended() {
                self.ended_bytes = self.ended_bytes.saturating_sub(bytes);
            }
            if let Some(batch) = batch.and_then(|batch| self.batches.get_mut(&batch)) {
                batch.counts[state as usize] -= 1;
            }
        }
        if let Some((state, bytes)) = to {
            self.states[state as usize] += 1;
            project_counts[state as usize] += 1;
            if state.has_ended() {
                self.ended_bytes += bytes;
            }
            if let Some(batch) = batch {
                self.batches.entry(batch).or_default().enter(seq, state as usize);
            }
        }
        if project.get().iter().all(|count| *count == 0) {
            project.remove();
        }
    }
}

impl BatchTally {
    fn enter(&mut self, seq: u64, state: usize) {
        self.counts[state] += 1;
        self.first = self.first.min(seq);
        self.last = self.last.max(seq);
    }
}
