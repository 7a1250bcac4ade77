//! Which lanes have workers, and parts of lanes: so many at once, each as long as it has something to do.
//!
//! A lane in which a task can leave something for the next (files, a changed program) has a part for each project that has
//! something to do, with workers of its own. How many have workers at once is bounded (`workers.parts`): the others
//! stand in line until one that has nothing to do gives its place up, or one that has had its place for a while.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ostler_domain::event::Happening;
use ostler_domain::instance::Now;
use ostler_domain::task::worker::{self, Crew};
use ostler_domain::task::{Lane, ProjectName, WorkerId, queue};

use super::desk::{Desk, ENOUGH, LaneDesk, Told};
use super::lanes::Staff;
use super::{LaneView, TaskError, Tasks, lanes};
use crate::server::Server;

/// How long a part keeps its place while others stand in line and it has something to do.
const TURN: Duration = Duration::from_secs(10);

/// From so many in line on, those that want nothing any more are looked for at each doubling.
const LINE: usize = 1024;

/// The lane that a task of this kind of workers and project waits in.
pub(super) fn lane_of(kind: &Lane, project: &ProjectName) -> Lane {
    if lanes::are_shared(kind) { kind.clone() } else { kind.part(project) }
}

impl Tasks {
    /// Looks at the lanes in which something could begin now: those without workers get some.
    pub(super) fn staff_wanting(self: &Arc<Self>, desk: &mut Desk, told: &mut VecDeque<Told>) {
        if desk.is_taking_up {
            return;
        }
        for lane in desk.queue.take_wanting() {
            self.want(desk, lane, told);
        }
    }

    fn want(self: &Arc<Self>, desk: &mut Desk, lane: Lane, told: &mut VecDeque<Told>) {
        if let Some(number) = desk.by_lane.get(&lane).copied() {
            wake(desk, number, told);
        } else if lane.project().is_none() {
            self.open_or_say(desk, &lane, told);
        } else if desk.in_line.insert(lane.clone()) {
            desk.line.push_back(lane);
            if desk.line.len() >= LINE && desk.line.len().is_power_of_two() {
                leave_those_who_want(desk);
            }
            self.let_in(desk, told);
        }
    }

    /// Gives places to those who stand in line, as many as there are.
    pub(super) fn let_in(self: &Arc<Self>, desk: &mut Desk, told: &mut VecDeque<Told>) {
        while let Some(lane) = desk.line.front() {
            if desk.queue.wants(lane) && desk.parts() >= self.core.config().workers.parts {
                self.make_room(desk, told);
                return;
            }
            let Some(lane) = desk.line.pop_front() else { return };
            desk.in_line.remove(&lane);
            if desk.queue.wants(&lane) {
                self.open_or_say(desk, &lane, told);
            }
        }
    }

    /// Has as many give their places up as stand in line: those that have nothing to do, then those that have had theirs longest.
    fn make_room(self: &Arc<Self>, desk: &mut Desk, told: &mut VecDeque<Told>) {
        let mut wanted = desk.line.len();
        let mut others: Vec<(bool, Now, u32)> = Vec::new();
        for (number, lane) in desk.lanes.iter().filter(|(_, lane)| lane.name.project().is_some()) {
            if lane.closing {
                wanted = wanted.saturating_sub(1);
                continue;
            }
            let is_busy = desk.queue.wants(&lane.name) || desk.queue.lane(&lane.name).running > 0;
            others.push((is_busy, if is_busy { lane.made } else { lane.used }, *number));
        }
        others.sort_unstable();
        for (is_busy, since, number) in others.into_iter().take(wanted) {
            if !is_busy || self.now() >= since.after(TURN) {
                self.core.events.count("parts of lanes that gave their place up");
                close(desk, number, told);
                continue;
            }
            let tasks = Arc::clone(self);
            let timer = self.at(since.after(TURN), move || tasks.look_at_the_line());
            if let Some(earlier) = desk.line_timer.replace(timer) {
                earlier.abort();
            }
            return;
        }
    }

    fn look_at_the_line(self: &Arc<Self>) {
        self.go_on(VecDeque::from([Told::Line]));
    }

    fn open_or_say(self: &Arc<Self>, desk: &mut Desk, lane: &Lane, told: &mut VecDeque<Told>) {
        if let Err(error) = self.staff(lane).and_then(|staff| self.open(desk, lane, staff, told)) {
            tracing::warn!(%error, lane = lane.as_str(), "tasks wait for workers that there are none of");
            let happening = Happening::WorkerError { why: error.to_string() };
            let subject = self.server_name(lane);
            self.core.events.record_seldom(&subject, &subject, happening);
        }
    }

    fn open(
        self: &Arc<Self>,
        desk: &mut Desk,
        lane: &Lane,
        staff: Staff,
        told: &mut VecDeque<Told>,
    ) -> Result<(), TaskError> {
        desk.latest += 1;
        let (number, now) = (desk.latest, self.now());
        let mut crew = None;
        let mut server = None;
        match &staff {
            Staff::Calls { at_once } => {
                for slot in 1..=*at_once {
                    let worker = WorkerId::of(number, slot);
                    told.push_back(Told::Queue(queue::Event::WorkerFree { lane: lane.clone(), worker }));
                }
            }
            Staff::Workers(workers) => {
                let spec = workers.server(&self.core, &self.server_name(lane))?;
                let numbers = self.core.registry.numbers(&spec.name);
                let made = Server::of_workers(spec, Arc::clone(&workers.quarters), numbers);
                self.core.registry.change(|table| table.push(Arc::clone(&made)));
                server = Some(made);
                crew = Some(Crew::new(workers.spec.clone(), number, now));
                let waiting = desk.queue.startable(lane, ENOUGH);
                told.push_back(Told::Crew(number, worker::Event::Tick { waiting }));
            }
        }
        desk.by_lane.insert(lane.clone(), number);
        desk.lanes.insert(number, LaneDesk::new(lane.clone(), staff, crew, server, now));
        Ok(())
    }

    /// What the server of a lane's workers is called: its name as far as a server may have it, and no other's.
    fn server_name(&self, lane: &Lane) -> String {
        const ROOM: usize = 58;
        let legal = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-');
        let project = lane.project().map(|project| project.replace(|letter| !legal(letter), "-"));
        let mut name = match project {
            Some(project) => format!("worker-{}.{project}", lane.base()),
            None => format!("worker-{}", lane.base()),
        };
        name.truncate(ROOM);
        let table = self.core.registry.table();
        let is_taken = |name: &str| table.all().iter().any(|server| server.spec.name.as_str() == name);
        let mut others = (2_u32..).map(|number| format!("{name}.{number}"));
        if is_taken(&name) { others.find(|other| !is_taken(other)).unwrap_or(name) } else { name }
    }

    /// Closes a part that has had nothing to do for as long as its workers may be idle, once it is down to its least. Whether it did.
    pub(super) fn close_if_idle(&self, desk: &mut Desk, number: u32, told: &mut VecDeque<Told>) -> bool {
        let Some(lane) = desk.lanes.get(&number) else { return true };
        let Staff::Workers(workers) = &lane.staff else { return false };
        let target = lane.crew.as_ref().map_or(0, |crew| crew.figures().target);
        let is_idle = lane.name.project().is_some()
            && !lane.closing
            && target <= workers.spec.scale.min
            && !desk.queue.wants(&lane.name)
            && desk.queue.lane(&lane.name).running == 0
            && self.now() >= lane.used.after(workers.spec.idle);
        if is_idle {
            close(desk, number, told);
        }
        is_idle
    }

    /// Forgets a lane that is closed and has no worker any more; who stands in line may have its place.
    pub(super) fn forget_if_over(self: &Arc<Self>, desk: &mut Desk, number: u32, told: &mut VecDeque<Told>) {
        let over = |lane: &LaneDesk| {
            let figures = lane.crew.as_ref().map(Crew::figures).unwrap_or_default();
            let there = figures.starting + figures.free + figures.busy + figures.leaving;
            lane.closing && there == 0
        };
        if !desk.lanes.get(&number).is_some_and(over) {
            return;
        }
        let Some(lane) = desk.lanes.remove(&number) else { return };
        desk.by_lane.remove(&lane.name);
        if let Some(timer) = lane.timer {
            timer.abort();
        }
        if let Some(server) = lane.server {
            self.core.registry.change(|table| table.retain(|known| !known.is_same(&server)));
        }
        if desk.queue.wants(&lane.name) {
            self.want(desk, lane.name, told);
        }
        self.let_in(desk, told);
    }

    /// After the configuration was changed: lanes whose workers are to be otherwise close, and get others where they have something
    /// to do; those that had no workers may have some now.
    pub(super) fn restaff(self: &Arc<Self>) {
        let mut desk = self.desk();
        let mut told = VecDeque::from([Told::Line]);
        let differs = |lane: &LaneDesk| match &lane.staff {
            Staff::Calls { .. } => false,
            Staff::Workers(_) => self.staff(&lane.name).ok().as_ref() != Some(&lane.staff),
        };
        let differing = desk.lanes.iter().filter(|(_, lane)| differs(lane)).map(|(number, _)| *number);
        for number in differing.collect::<Vec<_>>() {
            close(&mut desk, number, &mut told);
        }
        self.change_calls(&mut desk, &mut told);
        let waiting = desk.queue.lanes().filter(|(lane, _)| desk.queue.wants(lane));
        for lane in waiting.map(|(lane, _)| lane.clone()).collect::<Vec<_>>() {
            if !desk.by_lane.contains_key(&lane) {
                self.want(&mut desk, lane, &mut told);
            }
        }
        drop(desk);
        self.go_on(told);
    }

    /// So many calls at once as the configuration says. One too many goes on to its end.
    fn change_calls(&self, desk: &mut Desk, told: &mut VecDeque<Told>) {
        for (number, lane) in &mut desk.lanes {
            let (Staff::Calls { at_once: old }, Ok(Staff::Calls { at_once })) =
                (&lane.staff, self.staff(&lane.name))
            else {
                continue;
            };
            let slot = |slot| WorkerId::of(*number, slot);
            for more in *old + 1..=at_once {
                let free = queue::Event::WorkerFree { lane: lane.name.clone(), worker: slot(more) };
                told.push_back(Told::Queue(free));
            }
            (at_once + 1..=*old)
                .for_each(|less| told.push_back(Told::Queue(queue::Event::WorkerGone(slot(less)))));
            lane.staff = Staff::Calls { at_once };
        }
    }

    /// Whether there is a place of this number for calls.
    pub(super) fn has_call_place(&self, worker: WorkerId) -> bool {
        let desk = self.desk();
        let found = desk.lanes.get(&worker.crew());
        found.is_some_and(|lane| matches!(lane.staff, Staff::Calls { at_once } if worker.number() <= at_once))
    }

    /// The lanes that have workers, and those that something waits in, by name.
    pub(super) fn lane_views(&self, desk: &Desk) -> Vec<LaneView> {
        let view = |name: &Lane, workers, trouble| {
            let figures = desk.queue.lane(name);
            let (queued, running) = (figures.queued, figures.running);
            LaneView { name: name.as_str().to_owned(), workers, queued, running, trouble }
        };
        let staffed = desk.lanes.values().map(|lane| {
            let trouble = lane.crew.as_ref().and_then(|crew| crew.trouble().map(str::to_owned));
            view(&lane.name, lane.crew.as_ref().map(Crew::figures), trouble)
        });
        let others = desk
            .queue
            .lanes()
            .filter(|(name, figures)| figures.queued > 0 && !desk.by_lane.contains_key(*name));
        let others = others.map(|(name, _)| {
            let why = match self.staff(name) {
                Err(error) => Some(error.to_string()),
                Ok(_) if desk.in_line.contains(name) => {
                    Some("it waits for others to give their place up (workers.parts)".to_owned())
                }
                Ok(_) => None,
            };
            view(name, Some(worker::Figures::default()), why)
        });
        let mut all: Vec<LaneView> = staffed.chain(others).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }
}

/// Who stood in line for tasks that were cancelled since goes.
fn leave_those_who_want(desk: &mut Desk) {
    let Desk { queue, line, in_line, .. } = desk;
    line.retain(|lane| queue.wants(lane) || !in_line.remove(lane));
}

/// Its workers end, each when it is done with its task.
fn close(desk: &mut Desk, number: u32, told: &mut VecDeque<Told>) {
    if let Some(lane) = desk.lanes.get_mut(&number) {
        lane.closing = true;
        told.push_back(Told::Crew(number, worker::Event::Closed));
    }
}

/// A lane without any worker has one as soon as something waits.
fn wake(desk: &Desk, number: u32, told: &mut VecDeque<Told>) {
    let Some(lane) = desk.lanes.get(&number) else { return };
    let Some(crew) = &lane.crew else { return };
    let figures = crew.figures();
    if !lane.closing && figures.starting + figures.free + figures.busy == 0 {
        let waiting = desk.queue.startable(&lane.name, ENOUGH);
        told.push_back(Told::Crew(number, worker::Event::Tick { waiting }));
    }
}
