//! Processes started by hand: servers made at run time, which offer clients nothing and are in no configuration.
//!
//! One that has ended stays listed, with its log, until a person removes it or a new one needs its place: the
//! running and the ended together are at most `limits.adhoc`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use ostler_domain::event::Happening;
use ostler_domain::instance::State;
use ostler_domain::{
    Generation, Launch, Probe, ResourceLimits, Restart, RestartPolicy, Scope, ServerName, ServerSpec,
    StartMode, Transport,
};
use ostler_os::mark::MARK_VARIABLE;

use crate::admission::{Counted, Place, Refusal};
use crate::instance::Unavailable;
use crate::server::Server;
use crate::supervisor::{Supervisor, until_started};

/// The key of the configuration that bounds the processes started by hand.
const LIMIT: &str = "limits.adhoc";

/// What runs the text of a process that asked for a shell.
const SHELL: [&str; 2] = ["sh", "-c"];

/// What limits may be, as in the configuration: bytes of memory, cores, processes, open files.
const MEMORY: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 50;
const CPU: std::ops::RangeInclusive<f64> = 0.01..=4096.0;
const PIDS: std::ops::RangeInclusive<u32> = 1..=4_194_304;
const OPEN_FILES: std::ops::RangeInclusive<u32> = 8..=1_048_576;
const NICE: std::ops::RangeInclusive<i8> = -20..=19;

/// A process that somebody wants started.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct AdHocSpec {
    /// Its name; absent: its program's, with a number where that is taken.
    pub name: Option<String>,
    /// The program and its arguments, given as they are. With `shell` one text, which `sh` reads.
    pub command: Vec<String>,
    /// Whether the command is a text for the shell.
    pub shell: bool,
    /// Working directory, absolute; the daemon's own when absent.
    pub cwd: Option<PathBuf>,
    /// Variables set for it, beyond the allow-list taken from the daemon's environment.
    pub env: BTreeMap<String, String>,
    /// Further variables of the daemon's environment that it may inherit, by name.
    pub inherit_env: Vec<String>,
    /// Which exits are followed by a restart.
    pub restart: RestartPolicy,
    /// Restarts after which it counts as broken and is tried slowly; absent: [`Restart::default`]'s.
    pub max_restarts: Option<u32>,
    /// What it may use.
    pub limits: ResourceLimits,
}

/// Why a process was not started. Nothing of it is left.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpawnRefused {
    /// What was asked for cannot be: what is wrong, and what to give instead.
    #[error("{0}")]
    Invalid(String),
    /// Something has the name.
    #[error("{0}")]
    Taken(String),
    /// `limits.adhoc` processes run.
    #[error("{0}")]
    Full(String),
    /// Nothing is started now.
    #[error("{0}")]
    Closed(String),
}

fn invalid(why: impl Into<String>) -> SpawnRefused {
    SpawnRefused::Invalid(why.into())
}

impl AdHocSpec {
    /// How it is started, if what was asked for makes sense.
    fn launch(&self) -> Result<Launch, SpawnRefused> {
        let mut words = self.command.clone();
        if words.iter().any(|word| word.contains('\0')) {
            return Err(invalid("the command holds a NUL character, which no program can be given"));
        }
        if self.shell {
            let [text] = &*self.command else {
                return Err(invalid(format!(
                    "a command for the shell is one text, not {} words; quote it",
                    self.command.len()
                )));
            };
            words = SHELL.map(String::from).to_vec();
            words.push(text.clone());
        }
        let mut words = words.into_iter();
        let Some(command) = words.next().filter(|program| !program.is_empty()) else {
            return Err(invalid("no program is named; give one as the first word of the command"));
        };
        if let Some(cwd) = self.cwd.as_ref().filter(|cwd| !cwd.is_absolute()) {
            return Err(invalid(format!(
                "the working directory `{}` is not absolute; the daemon has another one than you",
                cwd.display()
            )));
        }
        for name in self.env.keys().chain(&self.inherit_env) {
            check_variable(name)?;
        }
        if let Some((name, _)) = self.env.iter().find(|(_, value)| value.contains('\0')) {
            return Err(invalid(format!("the value of the variable `{name}` holds a NUL character")));
        }
        check_limits(&self.limits)?;
        let Self { cwd, env, inherit_env, .. } = self.clone();
        Ok(Launch { command, args: words.collect(), env, inherit_env, cwd })
    }

    /// The whole definition, as a server's.
    fn server(&self, name: ServerName, launch: Launch) -> ServerSpec {
        let mut spec = ServerSpec::new(name, "");
        spec.launch = launch;
        spec.transport = Transport::None;
        spec.health.probe = Probe::None;
        spec.scope = Scope::Shared;
        spec.start = StartMode::OnDemand;
        let max = self.max_restarts.unwrap_or(Restart::default().max);
        spec.restart = Restart { policy: self.restart, max, ..Restart::default() };
        spec.limits = self.limits;
        spec
    }
}

fn check_variable(name: &str) -> Result<(), SpawnRefused> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(invalid(format!("`{}` cannot be the name of a variable", name.escape_debug())));
    }
    if name == MARK_VARIABLE {
        return Err(invalid(format!("`{name}` is Ostler's own, by which it knows its processes")));
    }
    Ok(())
}

fn check_limits(limits: &ResourceLimits) -> Result<(), SpawnRefused> {
    fn within<T: PartialOrd + std::fmt::Display>(
        name: &str,
        value: Option<T>,
        range: &std::ops::RangeInclusive<T>,
    ) -> Result<(), SpawnRefused> {
        match value {
            Some(value) if !range.contains(&value) => {
                Err(invalid(format!("{name} is {value}; it may be {} to {}", range.start(), range.end())))
            }
            _ => Ok(()),
        }
    }
    within("the memory limit (bytes)", limits.memory, &MEMORY)?;
    within("the CPU limit (cores)", limits.cpu, &CPU)?;
    within("the limit of processes", limits.pids, &PIDS)?;
    within("the limit of open files", limits.open_files, &OPEN_FILES)?;
    within("the nice value", limits.nice, &NICE)
}

/// A name made of a program's file name: what a name may not hold becomes a dash.
fn name_of(command: &str) -> String {
    let file = command.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let name: String = file.chars().map(|c| if legal(c) { c } else { '-' }).collect();
    // Room for the number of the ten-thousandth.
    let name: String = name.trim_start_matches(['-', '.']).chars().take(ServerName::MAX_LEN - 6).collect();
    if name.is_empty() { "process".to_owned() } else { name }
}

/// The name of a new process beside these servers.
fn choose(servers: &[Arc<Server>], wanted: Option<&str>, command: &str) -> Result<ServerName, SpawnRefused> {
    let holder = |name: &str| servers.iter().find(|server| server.spec.name.as_str() == name);
    let parse = |name: &str| name.parse::<ServerName>().map_err(|error| invalid(error.to_string()));
    let Some(wanted) = wanted else {
        let base = name_of(command);
        // Of one more numbers than there are servers, one is free.
        let numbered = (2..).take(servers.len()).map(|number| format!("{base}-{number}"));
        let mut names = std::iter::once(base.clone()).chain(numbered);
        let free = names.find(|name| holder(name).is_none());
        return parse(&free.unwrap_or(base));
    };
    let name = parse(wanted)?;
    match holder(wanted) {
        None => Ok(name),
        Some(server) if server.is_by_hand() => Err(SpawnRefused::Taken(format!(
            "a process called `{name}` exists already; choose another name, or `ostler rm {name}`"
        ))),
        Some(_) => Err(SpawnRefused::Taken(format!(
            "`{name}` is a server of the configuration; choose another name"
        ))),
    }
}

/// When nothing of it runs and nothing is planned: when its last process ended, 0 where it never had one.
fn ended_at(server: &Server) -> Option<u64> {
    let instances = server.instances();
    let [handle] = &*instances else { return None };
    let snapshot = handle.snapshot();
    let over = matches!(snapshot.state, State::Stopped | State::Failed { .. });
    (over && snapshot.generation != Generation::default())
        .then(|| snapshot.ended.map_or(0, |ended| ended.at_ms))
}

impl Supervisor {
    /// Starts a process by hand. Returns when it runs, or has failed to for now: the server says which.
    ///
    /// # Errors
    /// [`SpawnRefused`], with the reason; nothing was started then.
    pub async fn spawn_process(&self, wanted: AdHocSpec) -> Result<Arc<Server>, SpawnRefused> {
        let launch = wanted.launch()?;
        // Known before an ended process has to go for it; the name is taken below.
        choose(self.servers().all(), wanted.name.as_deref(), &launch.command)?;
        check_program(launch.clone()).await?;
        let place = self.place().await.map_err(|refusal| self.told(&launch, refusal))?;
        let registry = &self.core.registry;
        let server = registry.change(|servers| {
            if registry.is_closed() {
                return Err(SpawnRefused::Closed("the daemon is stopping; nothing is started".to_owned()));
            }
            let name = choose(servers, wanted.name.as_deref(), &launch.command)?;
            let mut spec = wanted.server(name, launch);
            spec.deadlines.kill = self.core.config().limits.cleanup_time;
            let server = Server::by_hand(spec);
            servers.push(Arc::clone(&server));
            Ok(server)
        })?;
        // No await in between: a caller that goes away leaves no server that was never started.
        let handle = server
            .start_admitted(&self.core, place)
            .map_err(|error: Unavailable| SpawnRefused::Closed(error.to_string()))?;
        until_started(&handle, Generation::default(), server.patience()).await;
        Ok(server)
    }

    /// The process started by hand with this name.
    pub fn process(&self, name: &str) -> Option<Arc<Server>> {
        self.server(name).filter(|server| server.is_by_hand())
    }

    /// Stops a process started by hand and takes it off the list; returns when nothing of it runs.
    pub async fn remove_process(&self, server: &Arc<Server>) {
        self.forget(server, "removed by a person").await;
    }

    /// In a task of its own, so that a caller that goes away leaves none half removed.
    async fn forget(&self, server: &Arc<Server>, reason: &'static str) {
        let (core, server) = (Arc::clone(&self.core), Arc::clone(server));
        let forgetting = tokio::spawn(async move {
            server.remove_all(reason).await;
            core.registry.change(|servers| servers.retain(|known| !Arc::ptr_eq(known, &server)));
        });
        // It fails only when the runtime ends, and all with it.
        let _ = forgetting.await;
    }

    /// A place for one more; where there is none, the process that ended first makes room.
    async fn place(&self) -> Result<Place, Refusal> {
        loop {
            let refusal = match self.core.admission.admit(Counted::AdHoc) {
                Ok(place) => return Ok(place),
                Err(refusal) => refusal,
            };
            let table = self.servers();
            let ended = table.all().iter().filter(|server| server.is_by_hand());
            let oldest =
                ended.filter_map(|server| Some((ended_at(server)?, server))).min_by_key(|(at, _)| *at);
            let Some((_, oldest)) = oldest.filter(|_| refusal.limit == LIMIT) else {
                return Err(refusal);
            };
            self.forget(oldest, "it ended, and a new process needs its place").await;
            let what = format!("the ended process `{}` and its log ({LIMIT})", oldest.spec.name);
            self.core.events.record(oldest.spec.name.as_str(), Happening::Dropped { what, count: 1 });
        }
    }

    /// A refusal is counted and recorded.
    fn told(&self, launch: &Launch, refusal: Refusal) -> SpawnRefused {
        self.core.events.count(refusal.limit);
        let what = format!("starting `{}` by hand", name_of(&launch.command));
        self.core.events.record("daemon", Happening::Refused { what, why: refusal.why.clone() });
        if refusal.limit == LIMIT {
            SpawnRefused::Full(refusal.why)
        } else {
            SpawnRefused::Closed(refusal.why)
        }
    }
}

/// Whether the program and the working directory are there, asked on a thread that may block.
async fn check_program(launch: Launch) -> Result<(), SpawnRefused> {
    let look = tokio::task::spawn_blocking(move || {
        let env = ostler_os::env::clean(&launch.inherit_env, &launch.env, std::env::vars_os());
        ostler_os::guard::look_up(launch.command.as_ref(), &env, launch.cwd.as_deref())
    });
    match look.await {
        Ok(found) => found.map(drop).map_err(|failure| invalid(failure.message)),
        Err(error) => Err(SpawnRefused::Closed(format!("the program could not be looked up: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(command: &[&str]) -> AdHocSpec {
        AdHocSpec { command: command.iter().map(|&word| word.to_owned()).collect(), ..AdHocSpec::default() }
    }

    fn why(spec: &AdHocSpec) -> String {
        spec.launch().expect_err("refused").to_string()
    }

    #[test]
    fn arguments_stay_arguments_and_a_shell_is_only_used_when_asked_for() {
        let plain = spec(&["echo", "$HOME; rm -rf /", ""]).launch().expect("sound");
        assert_eq!(
            (&*plain.command, &*plain.args),
            ("echo", &["$HOME; rm -rf /".to_owned(), String::new()][..])
        );
        let shell = AdHocSpec { shell: true, ..spec(&["echo $HOME"]) }.launch().expect("sound");
        assert_eq!((&*shell.command, &*shell.args), ("sh", &["-c".to_owned(), "echo $HOME".to_owned()][..]));
        assert!(why(&AdHocSpec { shell: true, ..spec(&["echo", "x"]) }).contains("quote it"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_name() {
        assert!(why(&spec(&[])).contains("no program"));
        assert!(why(&spec(&["", "x"])).contains("no program"));
        assert!(why(&spec(&["a\0b"])).contains("NUL"));
        assert!(why(&AdHocSpec { cwd: Some("here".into()), ..spec(&["x"]) }).contains("not absolute"));
        let with = |name: &str, value: &str| AdHocSpec {
            env: BTreeMap::from([(name.to_owned(), value.to_owned())]),
            ..spec(&["x"])
        };
        assert!(why(&with("A=B", "")).contains("`A=B`"));
        assert!(why(&with("", "")).contains("name of a variable"));
        assert!(why(&with("A", "\0")).contains("`A`"));
        assert!(why(&with(MARK_VARIABLE, "x")).contains(MARK_VARIABLE));
        let limited = |limits: ResourceLimits| why(&AdHocSpec { limits, ..spec(&["x"]) });
        let none = ResourceLimits::default();
        assert!(limited(ResourceLimits { memory: Some(1), ..none }).contains("memory"));
        assert!(limited(ResourceLimits { cpu: Some(f64::NAN), ..none }).contains("CPU"));
        assert!(limited(ResourceLimits { pids: Some(0), ..none }).contains("processes"));
        assert!(limited(ResourceLimits { open_files: Some(1), ..none }).contains("open files"));
        assert!(limited(ResourceLimits { nice: Some(20), ..none }).contains("-20 to 19"));
    }

    #[test]
    fn names_come_from_the_program_and_are_numbered_when_taken() {
        for (command, name) in [
            ("/usr/bin/sleep", "sleep"),
            ("sleep", "sleep"),
            ("./.hidden tool", "hidden-tool"),
            ("/", "process"),
            ("é", "process"),
        ] {
            assert_eq!(name_of(command), name, "{command}");
        }
        assert!(name_of(&"x".repeat(500)).parse::<ServerName>().is_ok());
        let mut servers: Vec<Arc<Server>> = Vec::new();
        for expected in ["sleep", "sleep-2", "sleep-3"] {
            let name = choose(&servers, None, "sleep").expect("free");
            assert_eq!(name.as_str(), expected);
            let launch = spec(&["sleep"]).launch().expect("sound");
            servers.push(Server::by_hand(spec(&["sleep"]).server(name, launch)));
        }
        let configured = ServerSpec::new("db".parse().expect("a name"), "x");
        servers.push(Server::new(configured, ostler_domain::Traits::default(), Arc::default()));
        let refused = |name: &str| choose(&servers, Some(name), "x").expect_err("refused");
        assert!(matches!(refused("sleep-2"), SpawnRefused::Taken(why) if why.contains("ostler rm sleep-2")));
        assert!(matches!(refused("db"), SpawnRefused::Taken(why) if why.contains("configuration")));
        assert!(matches!(refused("a b"), SpawnRefused::Invalid(_)));
        assert_eq!(choose(&servers, Some("mine"), "x").expect("free").as_str(), "mine");
    }
}
