//! How many tasks of a project may run, changed while tasks run: in such an order that the journal proves that no project
//! ever ran more than it might.
//!
//! A limit that is lowered holds in the queue first, and is written down once all that had been assigned by then has begun in the
//! journal; one that is raised is written down first.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, MutexGuard, PoisonError};

use ostler_config::Config;
use ostler_domain::task::ProjectName;
use ostler_domain::task::queue::{Event, ProjectLimits, QueueSpec};
use ostler_store::journal::Change;

use super::clerk::ClerkError;
use super::{ProjectView, TaskError, Tasks};
use crate::wait::until;

/// A project and what holds for it from now on; `None`: what holds for all of which nothing is said.
type Wanted = (ProjectName, Option<ProjectLimits>);

impl Tasks {
    /// So many tasks of a project may run from now on, until the daemon ends; `None`: as the configuration says.
    ///
    /// # Errors
    /// [`TaskError::Invalid`], and what the journal says.
    pub async fn set_project_limit(
        self: &Arc<Self>,
        project: &str,
        running: Option<usize>,
    ) -> Result<ProjectView, TaskError> {
        let name: ProjectName =
            project.parse().map_err(|error| TaskError::Invalid(format!("the project: {error}")))?;
        let config = self.limiting.lock().await;
        let most = config.tasks.queue.projects;
        if self.desk().queue.project_figures(&name).is_none() && self.written().len() >= most {
            return Err(TaskError::Full(format!("{most} projects are known (tasks.projects)")));
        }
        {
            let mut by_hand = self.by_hand.lock().unwrap_or_else(PoisonError::into_inner);
            match running {
                Some(running) => drop(by_hand.insert(name.clone(), running)),
                None => drop(by_hand.remove(&name)),
            }
        }
        let limits = self.limits_of(&config, &name);
        self.limit(vec![(name.clone(), limits)], &config, None).await?;
        let figures = self.desk().queue.project_figures(&name).unwrap_or_default();
        Ok(ProjectView { name: project.to_owned(), figures, is_set: running.is_some() })
    }

    /// What this configuration says of the queue and of projects holds from now on. What a person has said since the start is kept.
    pub(super) async fn limit_projects(self: &Arc<Self>, new: &Arc<Config>) -> Result<(), ClerkError> {
        let mut config = self.limiting.lock().await;
        // Also of those of which nothing is said any more, and of those of which nothing ever was.
        let earlier =
            self.clerk.look(|journal| Ok(journal.limits())).await?.into_iter().map(|(name, _)| name);
        let names = new.projects.keys().cloned().chain(earlier).filter_map(|name| name.parse().ok());
        let wanted: BTreeMap<ProjectName, Option<ProjectLimits>> =
            names.map(|name: ProjectName| (name.clone(), self.limits_of(new, &name))).collect();
        self.written().extend(wanted.keys().cloned());
        let spec = (config.tasks.queue != new.tasks.queue).then(|| {
            (new.tasks.queue.project_running < config.tasks.queue.project_running, &new.tasks.queue)
        });
        self.limit(wanted.into_iter().collect(), new, spec).await?;
        *config = Arc::clone(new);
        Ok(())
    }

    /// Writes down what holds for these projects, where that was never done: before their first task is.
    pub(super) async fn name_projects(&self, projects: BTreeSet<ProjectName>) -> Result<(), ClerkError> {
        if projects.iter().all(|name| self.written().contains(name)) {
            return Ok(());
        }
        let config = self.limiting.lock().await;
        let fresh: Vec<ProjectName> =
            projects.into_iter().filter(|name| !self.written().contains(name)).collect();
        let changes = fresh.iter().map(|name| change(name, self.limits_of(&config, name).as_ref(), &config));
        self.clerk.changes(changes.collect()).await?;
        self.written().extend(fresh);
        Ok(())
    }

    fn written(&self) -> MutexGuard<'_, HashSet<ProjectName>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the configuration and persons say of a project.
    fn limits_of(&self, config: &Config, name: &ProjectName) -> Option<ProjectLimits> {
        let configured = config.projects.get(name.as_str()).map(|own| own.limits);
        let by_hand = self.by_hand.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        match by_hand {
            Some(running) => Some(ProjectLimits { running: Some(running), ..configured.unwrap_or_default() }),
            None => configured,
        }
    }

    /// Has all this hold. `spec` is what else is said of the queue, and whether fewer may run by it.
    async fn limit(
        self: &Arc<Self>,
        wanted: Vec<Wanted>,
        config: &Config,
        spec: Option<(bool, &QueueSpec)>,
    ) -> Result<(), ClerkError> {
        let changes = wanted.iter().map(|(name, limits)| change(name, limits.as_ref(), config)).collect();
        let (lowered, raised): (Vec<Wanted>, Vec<Wanted>) = {
            let desk = self.desk();
            wanted.into_iter().partition(|(name, limits)| {
                // What holds of one that the queue does not know yet is nothing that could be exceeded.
                desk.queue
                    .project_figures(name)
                    .is_none_or(|now| running(limits.as_ref(), config) <= now.running_max)
            })
        };
        if let Some((true, spec)) = spec {
            self.tell(Event::Configured(spec.clone()));
        }
        self.hold(lowered);
        self.all_begun().await;
        self.clerk.changes(changes).await?;
        self.hold(raised);
        if let Some((false, spec)) = spec {
            self.tell(Event::Configured(spec.clone()));
        }
        Ok(())
    }

    fn hold(self: &Arc<Self>, wanted: Vec<Wanted>) {
        for (project, limits) in wanted {
            self.tell(Event::ProjectLimits { project, limits });
        }
    }

    /// This attempt has begun in the journal, or never will.
    pub(super) fn has_begun(&self, seq: u64) {
        self.desk().beginning.remove(&seq);
        self.begun.notify_waiters();
    }

    /// Waits until all that is assigned now has begun in the journal.
    async fn all_begun(&self) {
        let mut waited: HashSet<u64> = self.desk().beginning.clone();
        let begun = || {
            let desk = self.desk();
            waited.retain(|seq| desk.beginning.contains(seq));
            waited.is_empty().then_some(())
        };
        until(&self.begun, begun).await;
    }
}

/// How many may run.
fn running(limits: Option<&ProjectLimits>, config: &Config) -> usize {
    limits.and_then(|limits| limits.running).unwrap_or(config.tasks.queue.project_running)
}

fn change(name: &ProjectName, limits: Option<&ProjectLimits>, config: &Config) -> Change {
    let running = u32::try_from(running(limits, config)).unwrap_or(u32::MAX);
    Change::Limit { project: name.as_str().to_owned(), running: Some(running) }
}
