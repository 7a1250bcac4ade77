//! Which workers do a task, and how those are started.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ostler_config::{Config, Sandbox, WorkerSettings};
use ostler_domain::task::Lane;
use ostler_domain::task::worker::WorkerSpec;
use ostler_domain::{
    Launch, Probe, ResourceLimits, Restart, RestartPolicy, Scope, ServerSpec, StartMode, Transport,
};
use ostler_os::limits::own_nice;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{TaskError, call};
use crate::core::Core;
use crate::quarters::{Quarters, Terms, Walls};

const CODE: &str = Lane::CODE;
const SHELL: &str = Lane::SHELL;
const HTTP: &str = Lane::HTTP;
const PYTHON: &str = Lane::PYTHON;
const NODE: &str = Lane::NODE;
const CALL: &str = Lane::CALL;

/// A worker ends when it is told to or when its input ends: it has so long until SIGKILL.
const STOP: Duration = Duration::from_secs(2);

/// The niceness of workers of which none is said: the daemon, which a task's next step waits for, gets a processor first.
const NICE: i8 = 10;

/// Where Python looks for modules.
const MODULES: &str = "PYTHONPATH";

/// The files of the Python worker, by their paths.
const PYTHON_FILES: [(&str, &str); 8] = [
    (
        "python/ostler_worker/__init__.py",
        include_str!("../../../../workers/python/ostler_worker/__init__.py"),
    ),
    (
        "python/ostler_worker/__main__.py",
        include_str!("../../../../workers/python/ostler_worker/__main__.py"),
    ),
    ("python/ostler_worker/forked.py", include_str!("../../../../workers/python/ostler_worker/forked.py")),
    ("python/ostler_worker/inline.py", include_str!("../../../../workers/python/ostler_worker/inline.py")),
    ("python/ostler_worker/stock.py", include_str!("../../../../workers/python/ostler_worker/stock.py")),
    ("python/ostler_worker/task.py", include_str!("../../../../workers/python/ostler_worker/task.py")),
    ("python/ostler_worker/wire.py", include_str!("../../../../workers/python/ostler_worker/wire.py")),
    ("python/ostler_worker/worker.py", include_str!("../../../../workers/python/ostler_worker/worker.py")),
];
/// The same of the Node worker.
const NODE_FILES: [(&str, &str); 7] = [
    ("node/child.mjs", include_str!("../../../../workers/node/child.mjs")),
    ("node/errors.mjs", include_str!("../../../../workers/node/errors.mjs")),
    ("node/index.mjs", include_str!("../../../../workers/node/index.mjs")),
    ("node/package.json", include_str!("../../../../workers/node/package.json")),
    ("node/parent.mjs", include_str!("../../../../workers/node/parent.mjs")),
    ("node/stock.mjs", include_str!("../../../../workers/node/stock.mjs")),
    ("node/wire.mjs", include_str!("../../../../workers/node/wire.mjs")),
];

/// Writes the workers that are part of this program to `folder`, from where Python and Node run them.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn unpack(folder: &Path) -> std::io::Result<()> {
    for (name, text) in PYTHON_FILES.iter().chain(&NODE_FILES) {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        if std::fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
            std::fs::write(&path, text)?;
        }
    }
    Ok(())
}

/// Who does the tasks of a lane.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Staff {
    /// The daemon itself, so many at once.
    Calls { at_once: u32 },
    /// Workers.
    Workers(Box<Workers>),
}

/// How the workers of a lane are.
#[derive(Clone, Debug)]
pub(super) struct Workers {
    pub(super) launch: Launch,
    pub(super) spec: WorkerSpec,
    pub(super) limits: ResourceLimits,
    /// How long they have to say that they are there.
    pub(super) ready: Duration,
    /// How long one that has a task may say nothing.
    pub(super) heartbeat: Duration,
    pub(super) quarters: Arc<Quarters>,
}

/// Whether those who live there are to be replaced is a matter of their terms.
impl PartialEq for Workers {
    fn eq(&self, other: &Self) -> bool {
        let Self { launch, spec, limits, ready, heartbeat, quarters } = self;
        (launch, spec, limits) == (&other.launch, &other.spec, &other.limits)
            && (ready, heartbeat) == (&other.ready, &other.heartbeat)
            && quarters.terms == other.quarters.terms
    }
}

impl Workers {
    /// The server whose instances they are.
    pub(super) fn server(&self, core: &Core, name: &str) -> Result<ServerSpec, TaskError> {
        let name = name.parse().map_err(|error| TaskError::Invalid(format!("{error}")))?;
        let mut spec = ServerSpec::new(name, "");
        spec.launch = self.launch.clone();
        spec.transport = Transport::Worker;
        spec.health.probe = Probe::None;
        spec.scope = Scope::Shared;
        spec.start = StartMode::OnDemand;
        // How many there are, and when another is tried, is the crew's to decide.
        spec.restart = Restart { policy: RestartPolicy::Never, ..Restart::default() };
        spec.limits = self.limits;
        spec.deadlines.handshake = self.ready + STOP;
        spec.deadlines.drain = Duration::ZERO;
        spec.deadlines.stdin_grace = Duration::ZERO;
        spec.deadlines.term_grace = STOP;
        spec.deadlines.kill = core.config().limits.cleanup_time;
        Ok(spec)
    }
}

/// The lane of tool calls.
pub(super) fn call_lane() -> Lane {
    lane(CALL)
}

fn lane(name: &str) -> Lane {
    name.parse().unwrap_or_else(|error| unreachable!("`{name}` is a lane: {error}"))
}

/// What of a payload says which lane it needs.
#[derive(Debug, Default, Deserialize)]
struct Hint {
    #[serde(default)]
    language: Option<String>,
    #[serde(default)]
    module: Option<String>,
    #[serde(default)]
    path: Option<String>,
}

/// The lane of a task of this type, which may be one that the configuration registers.
///
/// # Errors
/// [`TaskError::Invalid`], with the types there are.
pub(super) fn of(
    kind: &str,
    payload: &RawValue,
    workers: &ostler_config::Workers,
) -> Result<Lane, TaskError> {
    if !payload.get().starts_with('{') {
        return Err(TaskError::Invalid(format!("the payload of a task of type `{kind}` must be an object")));
    }
    let hint = || serde_json::from_str::<Hint>(payload.get()).unwrap_or_default();
    let name = match kind {
        "execute-code" | "execute-function" => match hint().language.as_deref() {
            None | Some("javascript") => CODE,
            Some("python") => PYTHON,
            Some("node") => NODE,
            Some(other) => {
                return Err(TaskError::Invalid(format!(
                    "`{kind}` knows `language` \"javascript\" (built in), \"python\" and \"node\", not \"{other}\""
                )));
            }
        },
        "execute-module" => {
            let Hint { language, module, path } = hint();
            let named = module.or(path).unwrap_or_default();
            match language.as_deref() {
                Some("python") => PYTHON,
                Some("node" | "javascript") => NODE,
                None if named.ends_with(".py") => PYTHON,
                None => NODE,
                Some(other) => {
                    return Err(TaskError::Invalid(format!(
                        "`{kind}` knows `language` \"python\" and \"node\", not \"{other}\""
                    )));
                }
            }
        }
        "shell-command" => SHELL,
        "http-request" => HTTP,
        "mcp-tool" => {
            serde_json::from_str::<call::Payload>(payload.get())
                .map_err(|error| TaskError::Invalid(format!("the payload of an `mcp-tool`: {error}")))?;
            CALL
        }
        other => workers.lane_of(other).ok_or_else(|| {
            let own: BTreeSet<&String> = workers.own.values().flat_map(|own| &own.types).collect();
            let more: String = own.iter().map(|kind| format!(", {kind}")).collect();
            TaskError::Invalid(format!(
                "there is no task type `{other}`: there are execute-code, execute-function, execute-module, \
                 http-request, shell-command, mcp-tool{more}"
            ))
        })?,
    };
    Ok(lane(name))
}

/// Whether a lane has the same workers for all projects: a task can leave nothing there for the next.
pub(super) fn are_shared(lane: &Lane) -> bool {
    matches!(lane.as_str(), CODE | HTTP | CALL)
}

/// Whether the workers of a lane end all that a task began, also what tried to get away: they run no processes, or are the
/// subreapers of those. The others end with a task that was ended by force, and with them all that is below them.
pub(super) fn end_all_they_began(lane: &Lane) -> bool {
    matches!(lane.base(), CODE | HTTP | SHELL | PYTHON)
}

/// What a worker may use.
pub(super) fn limits(settings: &WorkerSettings) -> ResourceLimits {
    // Below the daemon's own it would need a privilege.
    let by_default = || i8::try_from(own_nice()).unwrap_or_default().max(NICE);
    ResourceLimits { nice: Some(settings.limits.nice.unwrap_or_else(by_default)), ..settings.limits }
}

/// What the workers of this lane may reach, by what the configuration says of it and of its project.
pub(super) fn terms(config: &Config, lane: &Lane, settings: &WorkerSettings) -> Terms {
    let base = lane.base();
    let walls = match (settings.sandbox, base) {
        (Sandbox::Off, _) => Walls::Never,
        (Sandbox::Auto, HTTP) => Walls::WherePossible,
        (Sandbox::Auto, _) => Walls::Always,
    };
    let project = lane.project().and_then(|project| config.projects.get(project));
    let own = config.workers.own.get(base);
    let stock = config.workers.stock.get(base);
    let see = own.map(|own| &own.see).or(stock.map(|stock| &stock.see));
    Terms {
        walls,
        network: have_network(config, base, lane.project()),
        folders: project.map(|project| project.folders.clone()).unwrap_or_default(),
        see: see.cloned().unwrap_or_default(),
    }
}

/// Whether the workers of a lane have the network for this project.
pub(super) fn have_network(config: &Config, base: &str, project: Option<&str>) -> bool {
    base == HTTP
        || config.workers.own.get(base).is_some_and(|own| own.network)
        || project.and_then(|project| config.projects.get(project)).is_some_and(|project| project.network)
}

/// Whether the tasks of a lane are accepted only where there is a sandbox for them.
pub(super) fn need_walls(config: &Config, lane: &Lane) -> bool {
    let settings = config.workers.settings(lane.base());
    settings.is_some_and(|settings| terms(config, lane, settings).walls == Walls::Always)
}

/// Adds what the configuration sets. Where Python looks for modules is added to: its worker is one.
pub(super) fn add_env(env: &mut BTreeMap<String, String>, said: &BTreeMap<String, String>) {
    for (name, value) in said {
        match env.get_mut(name) {
            Some(own) if name == MODULES => *own = format!("{own}:{value}"),
            _ => drop(env.insert(name.clone(), value.clone())),
        }
    }
}

/// How the workers of a lane that is built in are started; `None` for others.
pub(super) fn built_in(lane: &str, folder: &Path) -> Option<Launch> {
    let own = || std::env::current_exe().unwrap_or_else(|_| "ostler".into()).to_string_lossy().into_owned();
    let (command, args, env) = match lane {
        CODE | SHELL | HTTP => (own(), vec!["worker".to_owned()], BTreeMap::new()),
        PYTHON => {
            let home = folder.join("python").to_string_lossy().into_owned();
            let env = BTreeMap::from([
                (MODULES.to_owned(), home),
                ("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned()),
            ]);
            ("python3".to_owned(), vec!["-m".to_owned(), "ostler_worker".to_owned()], env)
        }
        NODE => {
            let script = folder.join("node/stock.mjs").to_string_lossy().into_owned();
            ("node".to_owned(), vec![script], BTreeMap::new())
        }
        _ => return None,
    };
    Some(Launch { command, args, env, inherit_env: Vec::new(), cwd: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_holds_and_modules_are_looked_for_in_both_places() {
        let texts = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let mut env = texts(&[(MODULES, "/own"), ("TZ", "UTC")]);
        add_env(&mut env, &texts(&[(MODULES, "/more"), ("TZ", "CET"), ("LEVEL", "1")]));
        assert_eq!(env, texts(&[(MODULES, "/own:/more"), ("TZ", "CET"), ("LEVEL", "1")]));
    }
}
