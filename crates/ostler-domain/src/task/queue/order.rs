//! Whose turn it is: priorities that rise, fair shares, running limits.
//!
//! What one project has in one lane is a *flow*. A flow holds a row for each priority, ordered by when its tasks were
//! ready; since all of a row rise alike, its first is the one that has risen most, and a flow is judged by the first of
//! each of its rows. A lane holds the flows that could begin something, by the priority they have risen to (a *level*)
//! and by their turn at it. So to find the next task nothing is searched, however many wait.

use std::collections::BTreeSet;

use super::room::place_in;
use super::{
    Effect, FlowIx, LANES_SWEPT, Lane, LaneFigures, LaneIx, NEVER, Nanos, Priority, ProjectIx, Queue,
    Running, WorkerId, nanos,
};
use crate::instance::Now;

const LEVELS: usize = Priority::COUNT;

/// What one attempt costs a project of weight 1, on the clock of a level. Large enough for the weights to divide it
/// (to 0.1 %), small enough for 10,000 attempts a second to take 50 years to reach the end of the clock.
const TURN: u64 = 1 << 20;

/// Names a row: a flow, and one of its priorities.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Row(u32);

impl Row {
    pub(super) fn new(flow: FlowIx, priority: Priority) -> Self {
        Self(flow << 4 | u32::from(priority.get()))
    }

    pub(super) fn flow(self) -> FlowIx {
        self.0 >> 4
    }

    fn priority(self) -> usize {
        (self.0 & 0xF) as usize
    }
}

/// Where a flow stands in its lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stand {
    level: usize,
    /// On the clock of that level: the lowest is next.
    turn: u64,
}

/// The first of a flow, and how far it has risen.
#[derive(Clone, Copy, Debug)]
struct First {
    level: usize,
    key: (Nanos, u64),
}

#[derive(Clone, Debug)]
pub(super) struct Flow {
    project: ProjectIx,
    pub(super) lane: LaneIx,
    /// By priority, what is ready, by when it was and by number.
    rows: [BTreeSet<(Nanos, u64)>; LEVELS],
    /// A bit for each row that has something in it.
    filled: u16,
    /// `None` where it could begin nothing.
    stand: Option<Stand>,
    /// When it is to be looked at again, as it may have risen: at that time or, where what made it rise has left, before.
    rise: Nanos,
    /// By level, its turn after the last one it had there.
    after: [u64; LEVELS],
}

impl Flow {
    pub(super) fn new(project: ProjectIx, lane: LaneIx) -> Self {
        Self {
            project,
            lane,
            rows: [const { BTreeSet::new() }; LEVELS],
            filled: 0,
            stand: None,
            rise: NEVER,
            after: [0; LEVELS],
        }
    }

    /// Its filled rows: the priority, and the first.
    fn firsts(&self) -> impl Iterator<Item = (usize, (Nanos, u64))> {
        let row = |(priority, row): (usize, &BTreeSet<_>)| {
            if self.filled & (1 << priority) == 0 { None } else { row.first().map(|key| (priority, *key)) }
        };
        self.rows.iter().enumerate().filter_map(row)
    }

    /// The one whose turn it is among its own: risen the most, ready for longest, the lowest number.
    fn first(&self, now: Nanos, ageing: Nanos) -> Option<First> {
        let risen = |(priority, key): (usize, (Nanos, u64))| {
            let steps = now.saturating_sub(key.0).checked_div(ageing).unwrap_or(0);
            let level = priority.saturating_add(usize::try_from(steps).unwrap_or(LEVELS)).min(LEVELS - 1);
            First { level, key }
        };
        self.firsts().map(risen).min_by_key(|first| (LEVELS - first.level, first.key))
    }

    /// When one of its tasks rises above that level, if nothing changes.
    fn rises_at(&self, level: usize, ageing: Nanos) -> Nanos {
        if level + 1 >= LEVELS || ageing == 0 {
            return NEVER;
        }
        let at = |(priority, (ready, _)): (usize, (Nanos, u64))| {
            ready.saturating_add(ageing.saturating_mul((level + 1 - priority) as u64))
        };
        self.firsts().map(at).min().unwrap_or(NEVER)
    }

    fn ready(&self) -> usize {
        self.rows.iter().map(BTreeSet::len).sum()
    }
}

/// What is known of a lane.
#[derive(Clone, Debug)]
pub(super) struct LaneBook {
    pub(super) name: Lane,
    /// By level, the flows that could begin something, by their turn.
    levels: [BTreeSet<(u64, FlowIx)>; LEVELS],
    /// By level, the turn that was last.
    clocks: [u64; LEVELS],
    /// The lowest is taken first: where there is little to do, it is always the same few who do it, and the others can
    /// be ended.
    free: BTreeSet<WorkerId>,
    /// Flows in `levels`.
    pub(super) standing: usize,
    pub(super) queued: usize,
    pub(super) running: usize,
}

impl LaneBook {
    fn new(name: Lane) -> Self {
        Self {
            name,
            levels: [const { BTreeSet::new() }; LEVELS],
            clocks: [0; LEVELS],
            free: BTreeSet::new(),
            standing: 0,
            queued: 0,
            running: 0,
        }
    }

    pub(super) fn figures(&self) -> LaneFigures {
        LaneFigures { queued: self.queued, running: self.running, free: self.free.len() }
    }

    fn is_idle(&self) -> bool {
        self.queued == 0 && self.running == 0 && self.free.is_empty()
    }

    /// The highest level that has a flow, and the flow whose turn it is there.
    fn next(&self) -> Option<(Stand, FlowIx)> {
        let first = |(level, flows): (usize, &BTreeSet<(u64, FlowIx)>)| {
            flows.first().map(|(turn, flow)| (Stand { level, turn: *turn }, *flow))
        };
        self.levels.iter().enumerate().rev().find_map(first)
    }
}

impl Queue {
    pub(super) fn flow(&self, ix: FlowIx) -> &Flow {
        &self.flows[ix as usize]
    }

    fn flow_mut(&mut self, ix: FlowIx) -> &mut Flow {
        &mut self.flows[ix as usize]
    }

    pub(super) fn book(&self, ix: LaneIx) -> &LaneBook {
        &self.lanes[ix as usize]
    }

    pub(super) fn book_mut(&mut self, ix: LaneIx) -> &mut LaneBook {
        &mut self.lanes[ix as usize]
    }

    pub(super) fn intern_lane(&mut self, lane: &Lane) -> LaneIx {
        if let Some(ix) = self.by_lane.get(lane) {
            return *ix;
        }
        if self.by_lane.len() >= self.lanes_swept {
            self.forget_idle_lanes();
            // So that what is swept is as much as what is kept, and each lane pays for one.
            self.lanes_swept = LANES_SWEPT.max(self.by_lane.len() * 2);
        }
        let ix = place_in(&mut self.lanes, &mut self.unused_lanes, LaneBook::new(lane.clone()));
        self.by_lane.insert(lane.clone(), ix);
        ix
    }

    /// Forgets the lanes that neither a task nor a worker is in. What is lost is how the turns of projects stood there.
    fn forget_idle_lanes(&mut self) {
        let idle = |(_, ix): &(&Lane, &LaneIx)| self.book(**ix).is_idle();
        let idle: BTreeSet<LaneIx> = self.by_lane.iter().filter(idle).map(|(_, ix)| *ix).collect();
        for ix in &idle {
            self.by_lane.remove(&self.lanes[*ix as usize].name);
        }
        self.wanting.retain(|ix| !idle.contains(ix));
        self.forget_flows_in(&idle);
        self.unused_lanes.extend(idle);
    }

    pub(super) fn project_of(&self, flow: FlowIx) -> ProjectIx {
        self.flow(flow).project
    }

    pub(super) fn worker_free(&mut self, lane: &Lane, worker: WorkerId) {
        let lane = self.intern_lane(lane);
        self.book_mut(lane).free.insert(worker);
        self.staffed.insert(lane);
    }

    pub(super) fn worker_gone(&mut self, worker: WorkerId) {
        let lanes = &mut self.lanes;
        self.staffed.retain(|ix| {
            let free = &mut lanes[*ix as usize].free;
            free.remove(&worker);
            !free.is_empty()
        });
    }

    /// Begins all that can begin.
    pub(super) fn begin_all(&mut self, effects: &mut Vec<Effect>) {
        let mut from = 0;
        while let Some(lane) = self.staffed.range(from..).next().copied() {
            while self.begin(lane, effects) {}
            if self.book(lane).free.is_empty() {
                self.staffed.remove(&lane);
            }
            from = lane + 1;
        }
    }

    /// How many more workers of a lane would have something to do, or `enough` if there are more: tasks that wait only
    /// because their project is at its limit do not count.
    pub fn startable(&self, lane: &Lane, enough: usize) -> usize {
        let Some(book) = self.by_lane.get(lane).map(|ix| self.book(*ix)) else { return 0 };
        let mut found = 0;
        // Each flow there counts for one at least, so no more than `enough` are looked at.
        for (_, ix) in book.levels.iter().flatten() {
            if found >= enough {
                break;
            }
            let flow = self.flow(*ix);
            found += flow.ready().min(self.room(flow.project));
        }
        found.min(enough)
    }

    /// What comes after a task of the same project, lane and priority, as it looks now: the first ones that are ready.
    /// Whoever has to look one up can have these with it.
    pub fn following(&self, seq: u64, most: usize) -> impl Iterator<Item = u64> {
        let row = self.running.get(&seq).map(|task| task.row).or(self.waiting.get(&seq).map(|task| task.row));
        let ready = row.into_iter().flat_map(|row| &self.flow(row.flow()).rows[row.priority()]);
        ready.map(|(_, seq)| *seq).filter(move |other| *other != seq).take(most)
    }

    /// Puts a task that is ready into its row.
    pub(super) fn put(&mut self, row: Row, key: (Nanos, u64)) {
        let flow = self.flow_mut(row.flow());
        flow.rows[row.priority()].insert(key);
        flow.filled |= 1 << row.priority();
        // Behind the first of its row it changes nothing.
        if flow.rows[row.priority()].first() == Some(&key) {
            self.refresh(row.flow());
        }
    }

    /// Takes a task out of its row, wherever it is in it.
    pub(super) fn take(&mut self, row: Row, key: (Nanos, u64)) {
        let flow = self.flow_mut(row.flow());
        let was_first = flow.rows[row.priority()].first() == Some(&key);
        flow.rows[row.priority()].remove(&key);
        if flow.rows[row.priority()].is_empty() {
            flow.filled &= !(1 << row.priority());
        }
        if was_first {
            self.refresh(row.flow());
        }
    }

    /// Finds anew where a flow stands, as its tasks, the time or the room of its project have changed.
    pub(super) fn refresh(&mut self, ix: FlowIx) {
        let (now, ageing) = (self.now, nanos(Now(self.spec.ageing)));
        let flow = &self.flows[ix as usize];
        let first = if self.room(flow.project) == 0 { None } else { flow.first(now, ageing) };
        let lane = flow.lane;
        let book = &mut self.lanes[lane as usize];
        // Who comes to a level begins where its clock is, or where his last turn there left him if that is later. So
        // nothing is saved up; and for who stands there already nothing changes, as the clock is not beyond him.
        let stand = first.map(|first| Stand {
            level: first.level,
            turn: book.clocks[first.level].max(flow.after[first.level]),
        });
        if stand != flow.stand {
            if let Some(old) = flow.stand {
                book.levels[old.level].remove(&(old.turn, ix));
                book.standing -= 1;
            }
            if let Some(new) = stand {
                book.levels[new.level].insert((new.turn, ix));
                book.standing += 1;
                if flow.stand.is_none() && book.standing == 1 {
                    self.wanting.push(lane);
                }
            }
        }
        let rise = first.map_or(NEVER, |first| flow.rises_at(first.level, ageing));
        self.flow_mut(ix).stand = stand;
        // An earlier look is left as it is: after each start the next task is younger, and would only move it.
        if rise < self.flow(ix).rise {
            self.clear_rise(ix);
            self.rises.insert((rise, ix));
            self.flow_mut(ix).rise = rise;
        }
    }

    pub(super) fn clear_rise(&mut self, ix: FlowIx) {
        let rise = std::mem::replace(&mut self.flow_mut(ix).rise, NEVER);
        if rise != NEVER {
            self.rises.remove(&(rise, ix));
        }
    }

    pub(super) fn refresh_project(&mut self, project: ProjectIx) {
        for at in 0..self.project(project).flows.len() {
            self.refresh(self.project(project).flows[at]);
        }
    }

    pub(super) fn refresh_all(&mut self) {
        for flow in 0..self.flows.len() {
            self.refresh(u32::try_from(flow).expect("flows are named by such numbers"));
        }
    }

    /// Moves up what has waited for so long.
    pub(super) fn raise(&mut self) {
        while let Some((at, ix)) = self.rises.first().copied()
            && at <= self.now
        {
            self.clear_rise(ix);
            self.refresh(ix);
        }
    }

    /// Begins the next task of a lane, if it has one and a worker for it.
    fn begin(&mut self, lane: LaneIx, effects: &mut Vec<Effect>) -> bool {
        let book = self.book(lane);
        let (Some(worker), Some((stand, ix))) = (book.free.first().copied(), book.next()) else {
            return false;
        };
        let flow = self.flow(ix);
        let project = flow.project;
        let Some(first) = flow.first(self.now, nanos(Now(self.spec.ageing))) else { return false };
        let seq = first.key.1;
        let Some(task) = self.waiting.remove(&seq) else { return false };
        if task.deadline != NEVER {
            self.deadlines.remove(&(task.deadline, seq));
        }
        let cost = TURN / u64::from(self.project(project).weight());
        self.flow_mut(ix).after[stand.level] = stand.turn + cost;
        let book = self.book_mut(lane);
        book.clocks[stand.level] = stand.turn;
        book.free.remove(&worker);
        book.queued -= 1;
        book.running += 1;
        let of = self.project_mut(project);
        of.queued -= 1;
        of.running += 1;
        of.assigned += 1;
        self.counts.assigned += 1;
        let Running { attempt, .. } = *self.running.entry(seq).or_insert(Running {
            attempt: task.attempt,
            worker,
            row: task.row,
            deadline: task.deadline,
            cancelled: false,
        });
        effects.push(Effect::Assign { seq, attempt, worker });
        self.take(task.row, first.key);
        if self.room(project) == 0 {
            self.refresh_project(project);
        }
        true
    }
}
