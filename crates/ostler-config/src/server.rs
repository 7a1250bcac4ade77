//! One server: from checked values to its specification.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ostler_domain::ports::port_refs;
use ostler_domain::{
    Concurrency, Deadlines, Fallback, Launch, ResourceLimits, Restart, RestartPolicy, Scope, ServerName,
    ServerSpec, StartMode, Transport,
};

use crate::check::{Checked, is_variable, not_a_variable};
use crate::diagnostic::{Diagnostic, Findings, nearest};
use crate::expand::{Env, Style, Trouble, Variables, expand};
use crate::health;
use crate::pool;
use crate::replicas;
use crate::source::Place;
use crate::upstream;
use crate::values::Values;

/// The part of `stop.grace` between closing standard input and SIGTERM: a fifth. Most servers end by
/// themselves when their input does, and those that do not deserve the larger part for their clean-up.
const STDIN_SHARE: u32 = 5;

/// The same for a server on the network, at most: its session is taken back, which is one request, and no sign
/// for its process to end.
const FAREWELL: Duration = Duration::from_millis(200);

/// The name under which Ostler's own MCP server is reached.
pub(crate) const RESERVED_NAME: &str = "ostler";

/// A server as one file gives it.
pub(crate) struct RawServer {
    pub(crate) name: ServerName,
    /// Where the name stands.
    pub(crate) place: Place,
    /// Its keys, by the paths of a server's table.
    pub(crate) values: Checked,
    /// Whether it has a command at all, be it a wrong one that is noted already.
    pub(crate) has_command: bool,
    pub(crate) style: Style,
    /// `${workspaceFolder}`, and what a relative `cwd` starts from.
    pub(crate) folder: PathBuf,
    /// The working directory where none is given.
    pub(crate) default_cwd: Option<PathBuf>,
}

/// Why a server was not built.
pub(crate) enum Stop {
    /// Something is wrong with it, which is noted.
    Wrong,
    /// It needs what only its client knows, which is noted as a warning.
    Skip,
}

/// Whether a server is used at all.
pub(crate) fn enabled(raw: &RawServer, base: &Checked) -> bool {
    Values { layers: &[&raw.values, base] }.flag("enabled")
}

/// Builds a server's specification; `None` when it is wrong or skipped, which is then noted.
pub(crate) fn build(
    raw: &RawServer,
    said: &Checked,
    base: &Checked,
    env: Env<'_>,
    out: &mut Findings,
) -> Option<ServerSpec> {
    let values = Values { layers: &[&raw.values, said, base] };
    let variables = Variables { style: raw.style, folder: &raw.folder, env };
    let mut builder = Builder { raw, values, variables, out };
    let transport = upstream::transport_of(&builder);
    let upstream = upstream::build(&mut builder);
    let launch = match builder.values.is_said("url") {
        // It runs elsewhere.
        true => Ok(Launch::default()),
        false => builder.launch(),
    };
    let restart = builder.restart();
    let type_name = builder.type_name();
    let health = health::build(&mut builder, launch.as_ref().ok().and_then(|l| l.cwd.as_deref()));
    let limits = builder.resources();
    let pool = pool::build(&mut builder);
    let replicas = replicas::build(&mut builder);
    let (Ok(launch), Ok(upstream), Some(restart), Ok(type_name)) = (launch, upstream, restart, type_name)
    else {
        return None;
    };
    let (Ok(health), Ok(limits), Ok(pool), Ok(replicas)) = (health, limits, pool, replicas) else {
        return None;
    };
    let values = builder.values;
    let grace = values.duration("stop.grace");
    let stdin_grace = match transport {
        Transport::Stdio => grace / STDIN_SHARE,
        transport if transport.is_network() => (grace / STDIN_SHARE).min(FAREWELL),
        // A plain process has no input whose end could be a goodbye.
        _ => Duration::ZERO,
    };
    let deadlines = Deadlines {
        spawn: values.duration("timeouts.spawn"),
        handshake: values.duration("timeouts.handshake"),
        drain: values.duration("stop.drain"),
        stdin_grace,
        term_grace: grace.saturating_sub(stdin_grace),
        ..Deadlines::default()
    };
    Some(ServerSpec {
        name: raw.name.clone(),
        type_name,
        launch,
        transport,
        upstream,
        depends_on: names(values.list("depends_on")),
        wants: names(values.list("wants")),
        ports: values.ports("ports").iter().map(|(name, wish, _)| (name.clone(), *wish)).collect(),
        health,
        limits,
        scope: scope(values.word("scope")),
        start: start(values.word("start")),
        required: values.flag("required"),
        concurrency: concurrency(values.word("concurrency")),
        restart,
        deadlines,
        call_idle: values.duration("timeouts.call_idle"),
        call_max: values.duration("timeouts.call_max"),
        idle: values.duration("idle"),
        log_lines: values.count("log_lines"),
        log_files: values.count("log_files") as u32,
        log_file_bytes: values.count("log_file_bytes") as u64,
        tell_session: values.flag("tell_session"),
        fallback: fallback(values.word("fallback")),
        pool,
        replicas,
    })
}

fn fallback(word: &str) -> Fallback {
    match word {
        "shared" => Fallback::Shared,
        _ => Fallback::Refuse,
    }
}

/// Names of servers; `order` has refused what is none. A name given twice counts once.
fn names(items: &[(String, Place)]) -> Vec<ServerName> {
    let mut found: Vec<ServerName> = Vec::new();
    for name in items.iter().filter_map(|(name, _)| name.parse().ok()) {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

pub(crate) fn transport(word: &str) -> Transport {
    match word {
        "http" => Transport::Http,
        "sse" => Transport::Sse,
        "websocket" => Transport::WebSocket,
        "socket" => Transport::Socket,
        "none" => Transport::None,
        _ => Transport::Stdio,
    }
}

pub(crate) fn scope(word: &str) -> Scope {
    match word {
        "shared" => Scope::Shared,
        "project" => Scope::Project,
        "session" => Scope::Session,
        _ => Scope::Principal,
    }
}

fn start(word: &str) -> StartMode {
    if word == "on-demand" { StartMode::OnDemand } else { StartMode::Eager }
}

fn concurrency(word: &str) -> Concurrency {
    match word {
        "serial" => Concurrency::Serial,
        "concurrent" => Concurrency::Concurrent,
        _ => Concurrency::Auto,
    }
}

fn policy(word: &str) -> RestartPolicy {
    match word {
        "never" => RestartPolicy::Never,
        "always" => RestartPolicy::Always,
        _ => RestartPolicy::OnFailure,
    }
}

pub(crate) struct Builder<'a> {
    pub(crate) raw: &'a RawServer,
    pub(crate) values: Values<'a>,
    pub(crate) variables: Variables<'a>,
    pub(crate) out: &'a mut Findings,
}

impl Builder<'_> {
    pub(crate) fn launch(&mut self) -> Result<Launch, Stop> {
        // Everything is looked at before giving up, so that all of a server's errors are told at once.
        let command = self.command();
        let args = self.args();
        let env = self.env();
        let inherit_env = self.inherit_env();
        let cwd = self.cwd();
        let (command, args, env, inherit_env, cwd) = (command?, args?, env?, inherit_env?, cwd?);
        let command = self.anchored(command, cwd.as_deref());
        Ok(Launch { command, args, env, inherit_env, cwd })
    }

    pub(crate) fn command(&mut self) -> Result<String, Stop> {
        let Some((text, place)) = self.values.text("command").map(|(t, p)| (t.to_owned(), p.clone())) else {
            if self.raw.has_command {
                return Err(Stop::Wrong);
            }
            let message = format!("server `{}` has no command", self.raw.name);
            let error = Diagnostic::at(self.raw.place.clone(), message);
            self.out.error(error.expected("`command`: the program to run, such as `\"npx\"`"));
            return Err(Stop::Wrong);
        };
        let command = self.expand(&text, &place)?;
        if command.trim().is_empty() {
            let error = Diagnostic::at(place, format!("the command of `{}` is empty", self.raw.name));
            self.out.error(error.expected("the program to run, such as `\"npx\"`"));
            return Err(Stop::Wrong);
        }
        if self.values.list("args").is_empty()
            && let Some((program, rest)) = command.split_once(' ')
            && !program.contains(['/', '\\'])
        {
            let warning = Diagnostic::at(place, format!("`{command}` is taken as the name of one program"));
            let list: Vec<_> = rest.split_whitespace().map(|a| format!("\"{a}\"")).collect();
            let help =
                format!("no shell is involved: give \"{program}\" and the arguments [{}]", list.join(", "));
            self.out.warning(warning.help(help));
        }
        Ok(command)
    }

    /// A relative path to a program starts from the working directory, or else the file's folder: never from
    /// wherever the daemon was started.
    pub(crate) fn anchored(&self, command: String, cwd: Option<&Path>) -> String {
        let path = Path::new(&command);
        if path.is_absolute() || !command.contains('/') {
            return command;
        }
        let base = cwd.unwrap_or(&self.raw.folder);
        clean(&base.join(path)).display().to_string()
    }

    fn args(&mut self) -> Result<Vec<String>, Stop> {
        let items = self.values.list("args").to_vec();
        let args: Vec<_> = items.iter().map(|(text, place)| self.expand_ports(text, place)).collect();
        args.into_iter().collect()
    }

    pub(crate) fn env(&mut self) -> Result<BTreeMap<String, String>, Stop> {
        let entries = self.values.map("env").to_vec();
        let pairs: Vec<_> = entries
            .iter()
            .map(|(name, text, place)| Ok((name.clone(), self.expand_ports(text, place)?)))
            .collect();
        pairs.into_iter().collect()
    }

    pub(crate) fn inherit_env(&mut self) -> Result<Vec<String>, Stop> {
        let items = self.values.list("inherit_env");
        match items.iter().find(|(name, _)| !is_variable(name)) {
            None => Ok(self.values.texts("inherit_env")),
            Some((name, place)) => {
                self.out.error(not_a_variable(place.clone(), name));
                Err(Stop::Wrong)
            }
        }
    }

    fn cwd(&mut self) -> Result<Option<PathBuf>, Stop> {
        let Some((text, place)) = self.values.text("cwd").map(|(t, p)| (t.to_owned(), p.clone())) else {
            return Ok(self.raw.default_cwd.clone());
        };
        let cwd = clean(&self.raw.folder.join(self.expand(&text, &place)?));
        if !cwd.is_dir() {
            let message = format!("the working directory `{}` does not exist", cwd.display());
            let mut warning = Diagnostic::at(place, message);
            warning = match text.strip_prefix("~/") {
                Some(rest) => warning.help(format!("`~` is not replaced: write `${{userHome}}/{rest}`")),
                None => warning.help(format!("`{}` cannot start before it does", self.raw.name)),
            };
            self.out.warning(warning);
        }
        Ok(Some(cwd))
    }

    fn type_name(&mut self) -> Result<String, Stop> {
        let Some((text, place)) = self.values.text("type") else {
            return Ok(self.raw.name.to_string());
        };
        if text.parse::<ServerName>().is_ok() {
            return Ok(text.to_owned());
        }
        let error = Diagnostic::at(place.clone(), format!("`{}` cannot be a type", text.escape_debug()));
        self.out.error(error.expected("1 to 64 of A-Z a-z 0-9 _ - . with a letter, digit or _ first"));
        Err(Stop::Wrong)
    }

    fn resources(&mut self) -> Result<ResourceLimits, Stop> {
        let values = &self.values;
        let memory = values.optional_count("limits.memory");
        let mut memory_warning = values.count("limits.memory_warning") as u64;
        if let Some(limit) = memory {
            if !values.is_said("limits.memory_warning") {
                memory_warning = limit / 4 * 3;
            } else if memory_warning >= limit {
                let message =
                    format!("`{}` would be warned of only when it is over its limit", self.raw.name);
                let error = Diagnostic::at(values.place("limits.memory_warning"), message);
                self.out
                    .error(error.help("give less than `memory`, or leave it out for three quarters of that"));
                return Err(Stop::Wrong);
            }
        }
        let small = |path| values.optional_count(path).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        Ok(ResourceLimits {
            memory,
            memory_warning,
            cpu: values.optional_number("limits.cpu"),
            pids: small("limits.pids"),
            open_files: small("limits.open_files"),
            nice: values.optional_integer("limits.nice").and_then(|n| i8::try_from(n).ok()),
        })
    }

    fn restart(&mut self) -> Option<Restart> {
        let values = &self.values;
        let restart = Restart {
            policy: policy(values.word("restart.policy")),
            max: u32::try_from(values.count("restart.max")).unwrap_or(u32::MAX),
            window: values.duration("restart.window"),
            backoff_min: values.duration("restart.backoff.min"),
            backoff_max: values.duration("restart.backoff.max"),
            jitter: values.fraction("restart.backoff.jitter"),
        };
        if restart.backoff_min <= restart.backoff_max {
            return Some(restart);
        }
        let path =
            if values.is_said("restart.backoff.min") { "restart.backoff.min" } else { "restart.backoff.max" };
        let message = format!("the back-off of `{}` starts above its longest delay", self.raw.name);
        let (min, max) = (restart.backoff_min, restart.backoff_max);
        let error = Diagnostic::at(values.place(path), message);
        self.out.error(error.help(format!("`min` is {}, `max` is {}", show(min), show(max))));
        None
    }

    /// Replaces a value's variables, and refuses what the operating system could not be given.
    pub(crate) fn expand(&mut self, text: &str, place: &Place) -> Result<String, Stop> {
        expanded(text, place, &self.variables, self.raw.name.as_str(), self.out)
    }

    /// As [`Builder::expand`], for a value in which `{port.NAME}` stands for a port. It is left there, as which
    /// number it means is known only when a process is started.
    pub(crate) fn expand_ports(&mut self, text: &str, place: &Place) -> Result<String, Stop> {
        let expanded = self.expand(text, place)?;
        if self.values.get("ports").is_none() {
            // Workers have none at all.
            return Ok(expanded);
        }
        let known = self.values.ports("ports");
        if self.raw.style == Style::Foreign && known.is_empty() {
            return Ok(expanded);
        }
        for (range, name) in port_refs(&expanded) {
            if known.iter().any(|(port, _, _)| port == name) {
                continue;
            }
            let at = if expanded == text { place.within(text, range) } else { place.clone() };
            let error = Diagnostic::at(at, format!("server `{}` has no port `{name}`", self.raw.name));
            self.out.error(match nearest(name, known.iter().map(|(port, _, _)| port.as_str())) {
                None => error.help(format!("give it one: `ports = {{ {name} = \"auto\" }}`")),
                near => error.nearest(near),
            });
            return Err(Stop::Wrong);
        }
        Ok(expanded)
    }
}

/// A text of `name` with its variables replaced; refuses what the operating system could not be given.
pub(crate) fn expanded(
    text: &str,
    place: &Place,
    variables: &Variables<'_>,
    name: &str,
    out: &mut Findings,
) -> Result<String, Stop> {
    let found = match expand(text, variables) {
        Ok(found) => found,
        Err((range, why)) => return Err(trouble(place.within(text, range), why, variables.style, name, out)),
    };
    for (range, name) in found.left {
        let warning = Diagnostic::at(place.within(text, range), format!("`${{{name}}}` stays as it is"));
        let help = "no such variable is set in the environment Ostler was started from";
        out.warning(warning.help(help));
    }
    if found.text.contains('\0') {
        let error = Diagnostic::at(place.clone(), "a value for a process cannot contain a zero byte");
        out.error(error);
        return Err(Stop::Wrong);
    }
    Ok(found.text)
}

fn trouble(place: Place, trouble: Trouble, style: Style, server: &str, out: &mut Findings) -> Stop {
    match trouble {
        Trouble::ClientOnly(name) if style == Style::Foreign => {
            let message = format!("server `{server}` is skipped: it needs `${{{name}}}`");
            let help = "only the client that owns this file can fill that in; give the value as `${env:NAME}` in ostler.toml";
            out.warning(Diagnostic::at(place, message).help(help));
            return Stop::Skip;
        }
        Trouble::Unset(name) => {
            let error = Diagnostic::at(place, format!("the environment variable `{name}` is not set"));
            let help = format!("set it, or give a default: `${{env:{name}:-default}}`");
            out.error(error.help(help));
        }
        Trouble::Open => {
            let error = Diagnostic::at(place, "`${` is not closed").expected("`}`");
            out.error(error.help("write `$${` for a plain `${`"));
        }
        Trouble::ClientOnly(name) | Trouble::Unknown(name) => {
            let error = Diagnostic::at(place, format!("`${{{name}}}` is not a variable"));
            let error = error
                .expected("`${env:NAME}`, `${env:NAME:-default}`, `${workspaceFolder}` or `${userHome}`");
            let plain = "write `$${` for a plain `${`";
            out.error(match crate::expand::is_name(&name) {
                true => error.nearest(Some(&format!("${{env:{name}}}"))).help(plain),
                false => error.help(plain),
            });
        }
    }
    Stop::Wrong
}

/// A path without `.` parts. `..` stays, as what it means depends on links.
pub(crate) fn clean(path: &Path) -> PathBuf {
    path.components().collect()
}

/// A duration with its unit, in whole milliseconds or seconds.
pub(crate) fn show(duration: Duration) -> String {
    match duration.as_millis() {
        millis if millis % 1000 == 0 => format!("{}s", millis / 1000),
        millis => format!("{millis}ms"),
    }
}
