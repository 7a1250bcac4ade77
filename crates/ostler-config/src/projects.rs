//! `[projects.NAME]`: what the tasks of a project may do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ostler_domain::task::queue::ProjectLimits;

use crate::check::Checked;
use crate::diagnostic::{Diagnostic, Findings};
use crate::expand::{Env, Style, Variables};
use crate::keys;
use crate::sections::small;
use crate::server::{clean, expanded};
use crate::source::Place;
use crate::tasks::Tasks;
use crate::units::show_size;
use crate::values::{Values, defaults};
use crate::workers::{Workers, given_twice};

/// `[projects.NAME]`: what the tasks of a project may do.
#[derive(Clone, PartialEq, Debug)]
pub struct Project {
    /// `running`, `queued` and `weight`.
    pub limits: ProjectLimits,
    /// Whether what its tasks run may use the network.
    pub network: bool,
    /// Whether its HTTP requests may reach this machine and private networks.
    pub private: bool,
    /// Folders that its tasks may read and write beside their own; absolute.
    pub folders: Vec<PathBuf>,
    /// Bytes of memory that one of its tasks may use at most; absent: what its worker may.
    pub memory: Option<u64>,
    /// Longest that one attempt of its tasks may take; absent: `tasks.timeout_max`.
    pub timeout_max: Option<Duration>,
}

/// A project as one file gives it.
pub(crate) struct RawProject {
    /// A name that is one.
    pub(crate) name: String,
    /// Where it stands.
    pub(crate) place: Place,
    /// Its keys.
    pub(crate) values: Checked,
}

/// Builds all of them, and holds them against what goes for all.
pub(crate) fn build(
    raw: &[RawProject],
    tasks: &Tasks,
    workers: &Workers,
    env: Env<'_>,
    out: &mut Findings,
) -> BTreeMap<String, Project> {
    let base = defaults(keys::PROJECT);
    let mut projects: BTreeMap<String, Project> = BTreeMap::new();
    let mut first: BTreeMap<&str, &Place> = BTreeMap::new();
    for raw in raw {
        let Some(project) = one(raw, &base, env, out) else { continue };
        project.check(raw, tasks, workers, out);
        match first.get(raw.name.as_str()) {
            Some(place) if projects.get(&raw.name) != Some(&project) => {
                given_twice(&format!("project `{}`", raw.name), &raw.place, place, out);
            }
            Some(_) => {}
            None => {
                first.insert(&raw.name, &raw.place);
                projects.insert(raw.name.clone(), project);
            }
        }
    }
    let most = tasks.queue.projects;
    if let Some(raw) = raw.get(most)
        && projects.len() > most
    {
        let message = format!("there are {} projects of at most {most}", projects.len());
        out.error(Diagnostic::at(raw.place.clone(), message).help("raise `projects` in [tasks]"));
    }
    projects
}

fn one(raw: &RawProject, base: &Checked, env: Env<'_>, out: &mut Findings) -> Option<Project> {
    let values = Values { layers: &[&raw.values, base] };
    let count = |path| values.optional_count(path).map(|count| usize::try_from(count).unwrap_or(usize::MAX));
    let limits = ProjectLimits {
        running: count("running"),
        queued: count("queued"),
        weight: small(values.count("weight")),
    };
    Some(Project {
        limits,
        network: values.flag("network"),
        private: values.flag("private"),
        folders: folders(raw, &values, env, out)?,
        memory: values.optional_count("memory"),
        timeout_max: values.optional_duration("timeout_max"),
    })
}

/// The folders, absolute, and each once; `None` where one is wrong.
fn folders(raw: &RawProject, values: &Values<'_>, env: Env<'_>, out: &mut Findings) -> Option<Vec<PathBuf>> {
    let home = &raw.place.source.dir;
    let variables = Variables { style: Style::Ostler, folder: home, env };
    let mut folders = Vec::new();
    let mut is_right = true;
    for (text, place) in values.list("folders") {
        let Ok(said) = expanded(text, place, &variables, &raw.name, out) else {
            is_right = false;
            continue;
        };
        let folder = clean(&home.join(&said));
        let is_all = folder.canonicalize().unwrap_or_else(|_| folder.clone()).parent().is_none();
        if said.is_empty() || is_all {
            let what = if said.is_empty() { "no folder" } else { "the whole machine" };
            let message = format!("`{said}` gives the tasks of `{}` {what}", raw.name);
            let error = Diagnostic::at(place.clone(), message);
            out.error(error.expected("a folder with what they need"));
            is_right = false;
            continue;
        }
        if !folder.is_dir() {
            let message = format!("the folder `{}` does not exist", folder.display());
            let help = format!("tasks of `{}` have it once it does", raw.name);
            out.warning(Diagnostic::at(place.clone(), message).help(help));
        }
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    is_right.then_some(folders)
}

impl Project {
    fn check(&self, raw: &RawProject, tasks: &Tasks, workers: &Workers, out: &mut Findings) {
        let values = Values { layers: &[&raw.values] };
        let all = tasks.queue.queued;
        if let Some(queued) = self.limits.queued.filter(|queued| *queued > all) {
            let message = format!("{queued} tasks of `{}` could never wait: at most {all} do", raw.name);
            let error = Diagnostic::at(values.place("queued"), message);
            out.error(error.help("give no more than `queued` in [tasks]"));
        }
        let own = workers.own.values().map(|own| &own.settings);
        let stock = workers.stock.values().map(|stock| &stock.settings);
        let most = own.chain(stock).chain([&workers.all]).filter_map(|settings| settings.limits.memory).max();
        if let (Some(memory), Some(most)) = (self.memory, most)
            && memory > most
        {
            let message = format!("no worker has so much memory for a task of `{}`", raw.name);
            let warning = Diagnostic::at(values.place("memory"), message);
            let help = format!("the most is {}: raise `memory` in [workers]", show_size(most));
            out.warning(warning.help(help));
        }
    }
}

impl Default for Project {
    /// What goes for a project of which nothing is said.
    fn default() -> Self {
        Self {
            limits: ProjectLimits::default(),
            network: false,
            private: false,
            folders: Vec::new(),
            memory: None,
            timeout_max: None,
        }
    }
}
