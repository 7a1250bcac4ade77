//! Who is let in, and the table of projects.

use std::collections::BTreeSet;
use std::fmt;

use super::order::Flow;
use super::{FlowIx, LaneIx, ProjectIx, ProjectLimits, ProjectName, Queue, WEIGHT_MAX};

/// A limit that was reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// Tasks that wait, of all projects.
    Queued,
    /// Tasks that wait, of the project.
    ProjectQueued,
    /// Projects.
    Projects,
}

/// Why tasks were not let in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Full {
    /// A limit is reached.
    Limit {
        /// Which.
        limit: Limit,
        /// Whose tasks they are.
        project: ProjectName,
        /// So many there are, those about to enter included.
        there: usize,
        /// So many were to be added.
        wanted: usize,
        /// So many there may be.
        max: usize,
    },
    /// The queue is closed.
    Closed,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Limit { limit, project, there, wanted, max } = self else {
            return f.write_str("the daemon is ending and takes no more tasks: submit again once it is back");
        };
        match limit {
            Limit::Queued => {
                write!(f, "the queue is full: {there} tasks wait of at most {max} (tasks.queued)")?
            }
            Limit::ProjectQueued => write!(
                f,
                "project `{project}` has {there} tasks waiting of at most {max} (projects.{project}.queued, or \
                 tasks.project_queued)"
            )?,
            Limit::Projects => {
                write!(
                    f,
                    "{there} projects have tasks or limits already, of at most {max} (tasks.projects)"
                )?;
            }
        }
        if *wanted > *max && *limit != Limit::Projects {
            write!(f, "; {wanted} at once never fit: submit fewer, or raise the limit")
        } else {
            f.write_str("; try again later, or raise the limit")
        }
    }
}

impl std::error::Error for Full {}

/// How one project stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ProjectFigures {
    /// Its tasks that wait, delayed ones included.
    pub queued: usize,
    /// Places reserved for it.
    pub reserved: usize,
    /// Its attempts that run.
    pub running: usize,
    /// Its attempts begun since the queue knows it.
    pub assigned: u64,
    /// Most of its tasks that run.
    pub running_max: usize,
    /// Most of its tasks that wait.
    pub queued_max: usize,
    /// Its share beside others.
    pub weight: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Project {
    name: ProjectName,
    /// Its own, where it has such.
    limits: Option<ProjectLimits>,
    pub(super) queued: usize,
    pub(super) reserved: usize,
    pub(super) running: usize,
    pub(super) assigned: u64,
    /// One for each lane that it had tasks in.
    pub(super) flows: Vec<FlowIx>,
}

impl Project {
    fn new(name: ProjectName) -> Self {
        Self { name, limits: None, queued: 0, reserved: 0, running: 0, assigned: 0, flows: Vec::new() }
    }

    pub(super) fn weight(&self) -> u32 {
        self.limits.unwrap_or_default().weight.clamp(1, WEIGHT_MAX)
    }

    /// Whether nothing is known of it but how its turns stood.
    fn is_idle(&self) -> bool {
        self.queued == 0 && self.reserved == 0 && self.running == 0 && self.limits.is_none()
    }
}

impl Queue {
    /// Keeps places for so many tasks, or for none: whoever writes them to the journal then says
    /// [`Event::Submitted`](super::Event::Submitted) with those that were new, and [`Queue::release`] for the others.
    ///
    /// # Errors
    ///
    /// The limit that is reached.
    pub fn reserve(&mut self, project: &ProjectName, tasks: usize) -> Result<(), Full> {
        let found = self.admit(project, tasks);
        match &found {
            Ok(ix) => {
                self.project_mut(*ix).reserved += tasks;
                self.reserved += tasks;
            }
            Err(Full::Closed | Full::Limit { limit: Limit::Queued, .. }) => {
                self.counts.refused_by_queue += tasks as u64;
            }
            Err(Full::Limit { .. }) => self.counts.refused_by_project += tasks as u64,
        }
        found.map(drop)
    }

    fn admit(&mut self, project: &ProjectName, wanted: usize) -> Result<ProjectIx, Full> {
        if self.closed {
            return Err(Full::Closed);
        }
        let full = |limit, there, max| Full::Limit { limit, project: project.clone(), there, wanted, max };
        let there = self.waiting.len() + self.reserved;
        if there.saturating_add(wanted) > self.spec.queued {
            return Err(full(Limit::Queued, there, self.spec.queued));
        }
        let known = self.by_name.get(project).copied();
        let (there, max) = known.map_or((0, self.spec.project_queued), |ix| {
            let project = self.project(ix);
            (project.queued + project.reserved, self.queued_max(ix))
        });
        if there.saturating_add(wanted) > max {
            return Err(full(Limit::ProjectQueued, there, max));
        }
        if known.is_none() && self.by_name.len() >= self.spec.projects {
            self.forget_idle_projects();
            if self.by_name.len() >= self.spec.projects {
                return Err(full(Limit::Projects, self.by_name.len(), self.spec.projects));
            }
        }
        Ok(self.intern_project(project))
    }

    /// Gives places back that [`Queue::reserve`] kept.
    pub fn release(&mut self, project: &ProjectName, tasks: usize) {
        if let Some(ix) = self.by_name.get(project).copied() {
            let project = self.project_mut(ix);
            let tasks = tasks.min(project.reserved);
            project.reserved -= tasks;
            self.reserved -= tasks;
        }
    }

    /// How a project stands, if it is known: it has tasks, limits of its own, or had tasks not long ago.
    pub fn project_figures(&self, project: &ProjectName) -> Option<ProjectFigures> {
        self.by_name.get(project).map(|ix| self.figures_of(*ix))
    }

    /// All projects that are known, in no order.
    pub fn projects(&self) -> impl Iterator<Item = (&ProjectName, ProjectFigures)> {
        self.by_name.iter().map(|(name, ix)| (name, self.figures_of(*ix)))
    }

    fn figures_of(&self, ix: ProjectIx) -> ProjectFigures {
        let project = self.project(ix);
        ProjectFigures {
            queued: project.queued,
            reserved: project.reserved,
            running: project.running,
            assigned: project.assigned,
            running_max: self.running_max(ix),
            queued_max: self.queued_max(ix),
            weight: project.weight(),
        }
    }

    pub(super) fn project(&self, ix: ProjectIx) -> &Project {
        &self.projects[ix as usize]
    }

    pub(super) fn project_mut(&mut self, ix: ProjectIx) -> &mut Project {
        &mut self.projects[ix as usize]
    }

    fn running_max(&self, ix: ProjectIx) -> usize {
        let own = self.project(ix).limits.and_then(|limits| limits.running);
        own.unwrap_or(self.spec.project_running)
    }

    fn queued_max(&self, ix: ProjectIx) -> usize {
        let own = self.project(ix).limits.and_then(|limits| limits.queued);
        own.unwrap_or(self.spec.project_queued)
    }

    /// How many more of its tasks may begin now.
    pub(super) fn room(&self, ix: ProjectIx) -> usize {
        self.running_max(ix).saturating_sub(self.project(ix).running)
    }

    pub(super) fn set_limits(&mut self, name: &ProjectName, limits: Option<ProjectLimits>) {
        let ix = self.intern_project(name);
        self.project_mut(ix).limits = limits;
        self.refresh_project(ix);
    }

    pub(super) fn intern_project(&mut self, name: &ProjectName) -> ProjectIx {
        if let Some(ix) = self.by_name.get(name) {
            return *ix;
        }
        let project = Project::new(name.clone());
        let ix = place_in(&mut self.projects, &mut self.unused_projects, project);
        self.by_name.insert(name.clone(), ix);
        ix
    }

    /// The flow of a project in a lane.
    pub(super) fn intern_flow(&mut self, project: ProjectIx, lane: LaneIx) -> FlowIx {
        let found = self.project(project).flows.iter().find(|ix| self.flow(**ix).lane == lane);
        if let Some(ix) = found {
            return *ix;
        }
        let ix = place_in(&mut self.flows, &mut self.unused_flows, Flow::new(project, lane));
        self.project_mut(project).flows.push(ix);
        ix
    }

    /// Takes the flows of these lanes out, in which there is nothing.
    pub(super) fn forget_flows_in(&mut self, lanes: &BTreeSet<LaneIx>) {
        for at in 0..self.projects.len() {
            let all = std::mem::take(&mut self.projects[at].flows);
            let (gone, kept): (Vec<FlowIx>, Vec<FlowIx>) =
                all.into_iter().partition(|flow| lanes.contains(&self.flow(*flow).lane));
            self.projects[at].flows = kept;
            for flow in &gone {
                self.clear_rise(*flow);
            }
            self.unused_flows.extend(gone);
        }
    }

    /// Makes room in the table. What is lost is how the turns of these projects stood, which is one turn at most; all at
    /// once, so that the next so many names cost nothing.
    fn forget_idle_projects(&mut self) {
        let idle = |(_, ix): &(&ProjectName, &ProjectIx)| self.project(**ix).is_idle();
        let idle: Vec<ProjectIx> = self.by_name.iter().filter(idle).map(|(_, ix)| *ix).collect();
        for ix in idle {
            let flows = std::mem::take(&mut self.project_mut(ix).flows);
            for flow in &flows {
                // It may be due to be looked at, though it has nothing that could rise.
                self.clear_rise(*flow);
            }
            self.unused_flows.extend(flows);
            self.by_name.remove(&self.projects[ix as usize].name);
            self.unused_projects.push(ix);
        }
    }
}

/// Puts something where nothing is any more, or at the end.
pub(super) fn place_in<T>(table: &mut Vec<T>, unused: &mut Vec<u32>, it: T) -> u32 {
    if let Some(ix) = unused.pop() {
        table[ix as usize] = it;
        return ix;
    }
    table.push(it);
    u32::try_from(table.len() - 1).expect("bounded by the number of projects and lanes")
}
