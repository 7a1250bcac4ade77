//! `[workers]` and `[workers.NAME]`: who does the tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use ostler_domain::task::scale::ScaleSpec;
use ostler_domain::task::worker::WorkerSpec;
use ostler_domain::task::{Lane, STOCK_TYPES};
use ostler_domain::{Launch, ResourceLimits};

use crate::check::Checked;
use crate::diagnostic::{Diagnostic, Findings, nearest};
use crate::expand::{Env, Variables};
use crate::keys;
use crate::sections::small;
use crate::server::{Builder, RawServer, clean, show};
use crate::source::Place;
use crate::units::show_size;
use crate::values::{Values, defaults};

/// A worker that is well says something once a second while it has a task; less than two of these would kill a good one.
const HEARTBEAT_MIN: Duration = Duration::from_secs(2);

/// The most workers of one kind, as the table of keys has it.
const WORKERS_MAX: usize = 1024;

/// Keys of `[workers.NAME]` that of Ostler's own workers only those take that an interpreter runs.
const INTERPRETER_KEYS: &[&str] = &["command", "env", "inherit_env", "see"];

/// Keys of `[workers.NAME]` that none of Ostler's own workers takes.
const CUSTOM_KEYS: &[&str] = &["args", "cwd", "types", "network"];

/// `[workers]` and `[workers.NAME]`: who does the tasks.
#[derive(Clone, PartialEq, Debug)]
pub struct Workers {
    /// How those of each lane are that says nothing else.
    pub all: WorkerSettings,
    /// Parts of lanes, each of one project, that have workers at once.
    pub parts: usize,
    /// The lanes of [`Lane::STOCK`] that say something else.
    pub stock: BTreeMap<String, StockWorkers>,
    /// The lanes of custom types, each with what it says and the rest of `all`.
    pub own: BTreeMap<String, WorkerServer>,
}

/// How the workers of one lane are.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkerSettings {
    /// How many, and when one is replaced.
    pub spec: WorkerSpec,
    /// One that is silent for so long while it has a task hangs.
    pub heartbeat: Duration,
    /// Longest from its start to its saying that it is there.
    pub ready: Duration,
    /// What a worker and all that it starts may use. `memory` is given, and no warning comes before it.
    pub limits: ResourceLimits,
    /// Whether what a task runs is confined.
    pub sandbox: Sandbox,
}

/// Whether what a task runs is confined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sandbox {
    /// It is; where the machine cannot, it is not run.
    Auto,
    /// It is not.
    Off,
}

impl Sandbox {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Off => "off",
        }
    }
}

/// What the configuration says of one of Ostler's own lanes.
#[derive(Clone, PartialEq, Debug)]
pub struct StockWorkers {
    /// How they are.
    pub settings: WorkerSettings,
    /// The interpreter that runs them, in place of the one in `PATH`; of `python` and `node` alone.
    pub command: Option<String>,
    /// Variables set for them; of `python` and `node` alone.
    pub env: BTreeMap<String, String>,
    /// Variables of the daemon's environment that they inherit besides; of `python` and `node` alone.
    pub inherit_env: Vec<String>,
    /// Files and folders that they see in their sandbox besides, absolute; of `python` and `node` alone.
    pub see: Vec<PathBuf>,
}

/// The workers of a custom type.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkerServer {
    /// How they are.
    pub settings: WorkerSettings,
    /// What is started; without `cwd` in a private folder.
    pub launch: Launch,
    /// The types of tasks that they do; at least one, and no other lane's.
    pub types: Vec<String>,
    /// Whether they may use the network.
    pub network: bool,
    /// Files and folders that they see in their sandbox besides, absolute.
    pub see: Vec<PathBuf>,
}

impl Workers {
    /// How the workers of a lane are; `None` where there is no such lane of workers.
    pub fn settings(&self, lane: &str) -> Option<&WorkerSettings> {
        let stock = self.stock.get(lane).map(|workers| &workers.settings);
        let own = || self.own.get(lane).map(|workers| &workers.settings);
        stock.or_else(own).or_else(|| Lane::STOCK.contains(&lane).then_some(&self.all))
    }

    /// The lane of a custom type of task.
    pub fn lane_of(&self, kind: &str) -> Option<&str> {
        let mut lanes = self.own.iter();
        lanes.find(|(_, workers)| workers.types.iter().any(|own| own == kind)).map(|(lane, _)| lane.as_str())
    }

    /// Builds all of them; `said` is `[workers]` itself.
    pub(crate) fn build(raw: &[RawServer], said: &Checked, env: Env<'_>, out: &mut Findings) -> Self {
        let base = defaults(keys::WORKER);
        let all = WorkerSettings::build(&Values { layers: &[said, &base] }, out);
        let parts = Values { layers: &[said, &defaults(keys::WORKERS)] }.count("parts");
        let mut workers = Self { all, parts, stock: BTreeMap::new(), own: BTreeMap::new() };
        let mut first: BTreeMap<&str, &Place> = BTreeMap::new();
        for raw in raw {
            let variables = Variables { style: raw.style, folder: &raw.folder, env };
            let values = Values { layers: &[&raw.values, said, &base] };
            let mut builder = Builder { raw, values, variables, out: &mut *out };
            let name = raw.name.as_str();
            let same = if name == Lane::CALL {
                let message = format!("`{}` has no workers", Lane::CALL);
                let help = "`calls` in [tasks] says how many tools are called at once";
                out.error(Diagnostic::at(raw.place.clone(), message).help(help));
                continue;
            } else if Lane::STOCK.contains(&name) {
                builder.stock().is_none_or(|built| entry(&mut workers.stock, name, built))
            } else {
                builder.custom().is_none_or(|built| entry(&mut workers.own, name, built))
            };
            match first.get(name) {
                Some(place) if !same => given_twice(&format!("workers `{name}`"), &raw.place, place, out),
                Some(_) => {}
                None => drop(first.insert(name, &raw.place)),
            }
        }
        types_apart(raw, &workers, out);
        workers
    }
}

/// Puts in what is not there yet. Whether it is the same as what is there then.
fn entry<T: PartialEq + Clone>(into: &mut BTreeMap<String, T>, name: &str, built: T) -> bool {
    *into.entry(name.to_owned()).or_insert_with(|| built.clone()) == built
}

/// The error for a table that two files give, and differently.
pub(crate) fn given_twice(what: &str, place: &Place, first: &Place, out: &mut Findings) {
    let error = Diagnostic::at(place.clone(), format!("{what} is given twice, and differently"));
    let help = format!("keep one of the two; the other is at {}", first.display());
    out.error(error.other(first.clone(), "first given here").help(help));
}

/// Refuses a type of tasks that two lanes have.
fn types_apart(raw: &[RawServer], workers: &Workers, out: &mut Findings) {
    let mut first: BTreeMap<&str, (&str, Place)> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for raw in raw.iter().filter(|raw| seen.insert(&raw.name)) {
        let Some(built) = workers.own.get(raw.name.as_str()) else { continue };
        for kind in &built.types {
            let place = place_of_type(raw, kind);
            let (owner, other) =
                first.entry(kind.as_str()).or_insert_with(|| (raw.name.as_str(), place.clone()));
            if *owner != raw.name.as_str() {
                let message = format!("tasks of type `{kind}` are for `{owner}` already");
                let error = Diagnostic::at(place, message).other(other.clone(), "given here");
                out.error(error.help("give it another name, as one type is done by one kind of workers"));
            }
        }
    }
}

fn place_of_type(raw: &RawServer, kind: &str) -> Place {
    let empty = Checked::new();
    let values = Values { layers: &[&raw.values, &empty] };
    let items = values.get("types").map(|_| values.list("types")).unwrap_or_default();
    items.iter().find(|(text, _)| text == kind).map_or(&raw.place, |(_, place)| place).clone()
}

impl WorkerSettings {
    fn build(values: &Values<'_>, out: &mut Findings) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let min = values.count("min");
        let max = values.optional_count("max").and_then(|max| usize::try_from(max).ok());
        let memory = values.count("memory") as u64;
        let settings = Self {
            spec: WorkerSpec {
                scale: ScaleSpec {
                    min,
                    max: max.unwrap_or_else(|| processors.max(min).min(WORKERS_MAX)),
                    up: values.fraction("up"),
                    down: values.fraction("down"),
                    interval: values.duration("interval"),
                },
                max_tasks: Some(small(values.count("max_tasks"))).filter(|tasks| *tasks > 0),
                max_age: values.optional_duration("max_age"),
                max_rss: values.optional_count("max_rss"),
                jitter: values.fraction("jitter"),
                idle: values.duration("idle"),
            },
            heartbeat: values.duration("heartbeat"),
            ready: values.duration("ready"),
            limits: ResourceLimits {
                memory: Some(memory),
                memory_warning: memory,
                cpu: values.optional_number("cpu"),
                pids: Some(small(values.count("pids"))),
                open_files: Some(small(values.count("open_files"))),
                nice: values.optional_integer("nice").and_then(|n| i8::try_from(n).ok()),
            },
            sandbox: if values.word("sandbox") == "off" { Sandbox::Off } else { Sandbox::Auto },
        };
        settings.check(values, out);
        settings
    }

    /// What is wrong in `[workers]` is found again for each lane: the same error of the same place is told once.
    fn check(&self, values: &Values<'_>, out: &mut Findings) {
        let mut refuse = |keys: [&str; 2], message: String, help: &str| {
            out.error(Diagnostic::at(values.place_of_first_said(keys), message).help(help));
        };
        let ScaleSpec { min, max, up, down, .. } = self.spec.scale;
        if min > max {
            let message = format!("there are to be at least {min} workers of at most {max}");
            refuse(["min", "max"], message, "give `min` no more than `max`");
        }
        if down >= up {
            let message = format!("one worker less from {down} of the load, and one more from {up}");
            refuse(["down", "up"], message, "give `down` less than `up`");
        }
        if let (Some(rss), Some(memory)) = (self.spec.max_rss, self.limits.memory)
            && rss >= memory
        {
            let (rss, memory) = (show_size(rss), show_size(memory));
            let message =
                format!("a worker is killed at {memory}, before it would be replaced for having {rss}");
            refuse(["max_rss", "memory"], message, "give `max_rss` less than `memory`");
        }
        if self.heartbeat < HEARTBEAT_MIN {
            let message = "a worker that is well would be taken for one that hangs".to_owned();
            let error = Diagnostic::at(values.place("heartbeat"), message);
            let least =
                format!("at least `\"{}\"`: a worker says something once a second", show(HEARTBEAT_MIN));
            out.error(error.expected(least));
        }
    }
}

impl Builder<'_> {
    /// One of Ostler's own lanes.
    fn stock(&mut self) -> Option<StockWorkers> {
        let raw = self.raw;
        let name = raw.name.as_str();
        let is_interpreted = matches!(name, Lane::PYTHON | Lane::NODE);
        let interpreters = if is_interpreted { &[] } else { INTERPRETER_KEYS };
        let refused = CUSTOM_KEYS.iter().chain(interpreters);
        let refused: Vec<_> =
            refused.filter_map(|key| raw.values.get(*key).map(|found| (*key, &found.place))).collect();
        for (key, place) in &refused {
            let message = format!("`{key}` cannot be said of `{name}`, which is part of Ostler");
            let help = match *key {
                "network" => {
                    "say `network = true` in [projects.NAME] for the project whose tasks need it".to_owned()
                }
                _ => format!("workers of your own need another name: `[workers.my-{name}]`"),
            };
            self.out.error(Diagnostic::at((*place).clone(), message).help(help));
        }
        let command = self.has_command().then(|| {
            let command = self.command();
            command.map(|command| self.anchored(command, None))
        });
        let (env, inherit_env) = (self.env(), self.inherit_env());
        let see = self.see();
        let settings = WorkerSettings::build(&self.values, self.out);
        let is_right = refused.is_empty();
        let (command, env, inherit_env) = (command.transpose().ok()?, env.ok()?, inherit_env.ok()?);
        is_right.then_some(StockWorkers { settings, command, env, inherit_env, see: see? })
    }

    /// A lane of custom types.
    fn custom(&mut self) -> Option<WorkerServer> {
        let settings = WorkerSettings::build(&self.values, self.out);
        let types = self.types();
        let name = &self.raw.name;
        if !self.has_command() {
            let message = format!("the workers `{name}` have no command");
            let error = Diagnostic::at(self.raw.place.clone(), message);
            let error = error.expected("`command`: the program that does these tasks, such as `\"python3\"`");
            self.out.error(match nearest(name.as_str(), Lane::STOCK) {
                None => {
                    error.help(format!("the kinds that are part of Ostler are {}", Lane::STOCK.join(", ")))
                }
                near => error.nearest(near),
            });
            return None;
        }
        let (launch, see) = (self.launch().ok(), self.see());
        let network = self.values.flag("network");
        Some(WorkerServer { settings, launch: launch?, types: types?, network, see: see? })
    }

    /// What its workers are to see besides, absolute; `None` where something of it is wrong.
    fn see(&mut self) -> Option<Vec<PathBuf>> {
        let items = self.values.list("see").to_vec();
        let mut paths = Vec::new();
        let mut is_right = true;
        for (text, place) in items {
            match self.expand(&text, &place) {
                Ok(said) if said.is_empty() => {
                    let error = Diagnostic::at(place, "an empty text is no path".to_owned());
                    self.out.error(error.expected("a file or a folder"));
                    is_right = false;
                }
                Ok(said) => paths.push(clean(&self.raw.folder.join(said))),
                Err(_) => is_right = false,
            }
        }
        is_right.then_some(paths)
    }

    /// Whether it has a command at all, be it a wrong one that is noted already.
    fn has_command(&self) -> bool {
        self.raw.has_command || self.raw.values.contains_key("command")
    }

    /// The types of tasks that these workers do; a type given twice counts once.
    fn types(&mut self) -> Option<Vec<String>> {
        let said = self.values.get("types").map(|_| self.values.list("types").to_vec());
        let named = || vec![(self.raw.name.to_string(), self.raw.place.clone())];
        let items = said.unwrap_or_else(named);
        let mut types = Vec::new();
        let mut is_right = true;
        for (kind, place) in items {
            let wrong = if STOCK_TYPES.contains(&kind.as_str()) {
                let error = format!("tasks of type `{kind}` are done by Ostler's own workers");
                Some(Diagnostic::at(place, error).help("give the type another name"))
            } else if kind.parse::<Lane>().is_err() {
                let error = format!("`{}` cannot be a type of tasks", kind.escape_debug());
                Some(Diagnostic::at(place, error).expected("1 to 64 of A-Z a-z 0-9 _ - ."))
            } else {
                None
            };
            match wrong {
                Some(error) => {
                    self.out.error(error);
                    is_right = false;
                }
                None if types.contains(&kind) => {}
                None => types.push(kind),
            }
        }
        if types.is_empty() && is_right {
            let message = format!("the workers `{}` do no type of tasks", self.raw.name);
            let error = Diagnostic::at(self.values.place("types"), message);
            self.out.error(error.help("name at least one, or leave `types` out for one called as they are"));
            return None;
        }
        is_right.then_some(types)
    }
}

impl Default for Workers {
    /// The documented defaults.
    fn default() -> Self {
        Self::build(&[], &Checked::new(), &|_| None, &mut Findings::default())
    }
}
