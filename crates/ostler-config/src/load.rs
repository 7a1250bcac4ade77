//! Reads files, merges them, applies the environment and builds the configuration.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ostler_domain::task::{Lane, ProjectName};
use ostler_domain::{ServerName, ServerSpec, Upstream, UpstreamAt};

use crate::check::{Checked, Checker, FILE};
use crate::config::{Config, Gateway};
use crate::diagnostic::{ConfigErrors, Diagnostic, Findings, MAX_FOUND};
use crate::expand::{Env, Style};
use crate::keys::{Groups, Named};
use crate::node::{Entry, Node};
use crate::overrides::{self, Known};
use crate::projects::{self, RawProject};
use crate::sections::{Alerts, Limits, Metrics, Ports, Registry, Reload, Sessions};
use crate::server::{self, RESERVED_NAME, RawServer};
use crate::source::{Format, MAX_FILE_BYTES, Place, Source};
use crate::tasks::Tasks;
use crate::values::defaults;
use crate::workers::Workers;
use crate::{foreign, json, keys, order, toml, upstream};

/// Reads configuration files and returns the desired state they describe together.
///
/// `env` gives the value of an environment variable; it answers `${env:NAME}` and the `OSTLER_SECTION__KEY`
/// variables of every key. A variable that looks like a key and is none can only be noticed by
/// [`load_with`], which knows what is set.
///
/// # Errors
///
/// Everything that is wrong with the files and variables, all at once.
pub fn load(files: &[PathBuf], env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigErrors> {
    load_with(files, env, &[])
}

/// As [`load`], and refuses variables of `names` that look like a key (`OSTLER_..__..`) and are none. `names`
/// are those of the variables that are set.
///
/// # Errors
///
/// Everything that is wrong with the files and variables, all at once.
pub fn load_with(
    files: &[PathBuf],
    env: &dyn Fn(&str) -> Option<String>,
    names: &[String],
) -> Result<Config, ConfigErrors> {
    let mut loader = Loader::new(env);
    for file in files {
        match read(file) {
            Ok(text) => loader.file(file, &text, Format::of(file, &text)),
            Err(why) => {
                let name = file.display().to_string();
                let message = format!("cannot read `{name}`: {why}");
                loader.out.error(Diagnostic::of_file(name, message));
            }
        }
    }
    loader.finish(files.to_vec(), names)
}

/// As [`load`], from one text called `name`.
///
/// # Errors
///
/// Everything that is wrong with the text and variables, all at once.
pub fn load_str(
    name: &str,
    text: &str,
    format: Format,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, ConfigErrors> {
    let mut loader = Loader::new(env);
    loader.file(Path::new(name), text, format);
    loader.finish(vec![PathBuf::from(name)], &[])
}

/// A file's text, read no further than the limit; or why not.
fn read(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("it is larger than {} MiB", MAX_FILE_BYTES >> 20));
    }
    String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        format!("line {line} is not UTF-8 text")
    })
}

/// Sorts problems as a reader meets them: file by file, from the top, variables at the end.
fn in_reading_order(found: &mut [Diagnostic], sources: &[PathBuf]) {
    let file = |d: &Diagnostic| {
        sources.iter().position(|s| s.display().to_string() == d.file).unwrap_or(sources.len())
    };
    found.sort_by_cached_key(|d| (file(d), d.line, d.column));
}

/// What has been read so far.
struct Loader<'a> {
    env: Env<'a>,
    out: Findings,
    /// What each of [`SECTIONS`] says.
    sections: BTreeMap<&'static str, Checked>,
    servers: Vec<RawServer>,
    workers: Vec<RawServer>,
    projects: Vec<RawProject>,
}

/// The tables but those by name, with their keys.
const SECTIONS: &[(&str, Groups)] = &[
    ("gateway", keys::GATEWAY),
    ("limits", keys::LIMITS),
    ("sessions", keys::SESSIONS),
    ("defaults", keys::DEFAULTS),
    ("ports", keys::PORTS),
    ("metrics", keys::METRICS),
    ("alerts", keys::ALERTS),
    ("registry", keys::REGISTRY),
    ("reload", keys::RELOAD),
    ("tasks", keys::TASKS),
    ("workers", keys::WORKERS),
];

impl<'a> Loader<'a> {
    fn new(env: Env<'a>) -> Self {
        Self {
            env,
            out: Findings::default(),
            sections: SECTIONS.iter().map(|(name, _)| (*name, Checked::new())).collect(),
            servers: Vec::new(),
            workers: Vec::new(),
            projects: Vec::new(),
        }
    }

    fn file(&mut self, path: &Path, text: &str, format: Format) {
        let source = Source::file(path, text);
        let (root, what) = match format {
            Format::Toml => (toml::parse(&source.text), "TOML"),
            Format::Json => (json::parse(&source.text), "JSON"),
        };
        match (root, format) {
            (Err((range, why)), _) => {
                let bare = source.text.get(range.start..).is_some_and(|t| t.starts_with(char::is_alphabetic));
                let place = Place::new(&source, range);
                let error = Diagnostic::at(place, format!("this is not {what}: {why}"));
                self.out.error(if bare { error.help("a text stands in quotes: `\"...\"`") } else { error });
            }
            (Ok(root), Format::Toml) => self.own(&source, &root),
            (Ok(root), Format::Json) => {
                let found = foreign::servers(&source, &root, self.env, &mut self.out);
                self.servers.extend(found);
            }
        }
    }

    /// Takes in an `ostler.toml`.
    fn own(&mut self, source: &Arc<Source>, root: &Node) {
        let mut all = Checked::new();
        Checker { source, out: &mut self.out }.table(keys::ROOT, root, FILE, "", &mut all);
        for (path, found) in all {
            let Some((section, key)) = path.split_once('.') else {
                continue;
            };
            let Some(into) = self.sections.get_mut(section) else {
                continue;
            };
            match into.get(key) {
                Some(first) if !first.value.same(&found.value) => {
                    let error = Diagnostic::at(found.place, format!("`{path}` has two values"));
                    let error = error.other(first.place.clone(), "the other is here");
                    self.out.error(error.help("keep one of the two"));
                }
                Some(_) => {}
                None => drop(into.insert(key.to_owned(), found)),
            }
        }
        self.named("servers", &keys::SERVERS, source, root);
        self.named("workers", &keys::ALL_WORKERS, source, root);
        self.named("projects", &keys::PROJECTS, source, root);
    }

    /// Takes in the tables by name of one section.
    fn named(&mut self, section: &'static str, named: &Named, source: &Arc<Source>, root: &Node) {
        let Some(tables) = root.get(section) else {
            return;
        };
        let Some(entries) = tables.entries() else {
            let place = Place::new(source, tables.range.clone());
            let error = Diagnostic::at(place, format!("`{section}` cannot be {}", tables.kind()));
            self.out.error(error.expected(format!("a table for each {}: `[{section}.NAME]`", named.what)));
            return;
        };
        for entry in entries.iter().filter(|entry| named.is_one(entry)) {
            if self.out.full() {
                return;
            }
            let place = Place::new(source, entry.key_range.clone());
            let mut values = Checked::new();
            let title = format!("[{section}.{}]", entry.key);
            Checker { source, out: &mut self.out }.table(named.each, &entry.node, &title, "", &mut values);
            match section {
                "projects" => self.own_project(entry, place, values),
                _ => self.own_server(section, named, entry, place, values),
            }
        }
    }

    /// A server, or a kind of workers.
    fn own_server(&mut self, section: &str, named: &Named, entry: &Entry, place: Place, values: Checked) {
        let is_server = section == "servers";
        if is_server && entry.key == RESERVED_NAME {
            let message = format!("the name `{RESERVED_NAME}` is reserved for Ostler's own MCP server");
            self.out.error(Diagnostic::at(place, message).help("give the server another name"));
            return;
        }
        let Ok(name) = entry.key.parse::<ServerName>() else {
            let usable = foreign::usable_name(&entry.key);
            let message = format!("`{}` cannot be the name of a {}", entry.key, named.what);
            let error = Diagnostic::at(place, message).nearest(usable.as_ref().map(ServerName::as_str));
            self.out.error(error.expected("1 to 64 of A-Z a-z 0-9 _ - . with a letter, digit or _ first"));
            return;
        };
        let raw = RawServer {
            name,
            folder: place.source.dir.clone(),
            place,
            values,
            has_command: entry.node.get("command").is_some(),
            style: Style::Ostler,
            default_cwd: None,
        };
        if is_server { self.servers.push(raw) } else { self.workers.push(raw) }
    }

    fn own_project(&mut self, entry: &Entry, place: Place, values: Checked) {
        if entry.key.parse::<ProjectName>().is_ok() {
            self.projects.push(RawProject { name: entry.key.clone(), place, values });
            return;
        }
        let message = format!("`{}` cannot be the name of a project", entry.key.escape_debug());
        self.out.error(Diagnostic::at(place, message).expected("1 to 64 visible ASCII characters"));
    }

    /// Applies the variables `OSTLER_SECTION__KEY`; `names` are those that are set, where that is known.
    fn overrides(&mut self, names: &[String]) {
        let (env, out) = (self.env, &mut self.out);
        let mut known = Known::default();
        for (name, groups) in SECTIONS {
            let said = self.sections.entry(name).or_default();
            overrides::section(&name.to_uppercase(), groups, env, said, &mut known, out);
        }
        let mut servers: Vec<_> = self.servers.iter_mut().map(table_of).collect();
        overrides::named("SERVERS", &keys::SERVERS, &mut servers, env, &mut known, out);
        // Those that are part of Ostler are there without a table.
        let is_said = |name: &str| self.workers.iter().any(|raw| raw.name.as_str() == name);
        let unsaid = Lane::STOCK.into_iter().filter(|name| !is_said(name));
        let mut unsaid: Vec<_> = unsaid.filter_map(said_by_variables).collect();
        let mut workers: Vec<_> = self.workers.iter_mut().chain(&mut unsaid).map(table_of).collect();
        overrides::named("WORKERS", &keys::ALL_WORKERS, &mut workers, env, &mut known, out);
        self.workers.extend(unsaid.into_iter().filter(|raw| !raw.values.is_empty()));
        let mut projects: Vec<_> =
            self.projects.iter_mut().map(|raw| (raw.name.clone(), &mut raw.values)).collect();
        overrides::named("PROJECTS", &keys::PROJECTS, &mut projects, env, &mut known, out);
        overrides::unknown(names, &known, out);
    }

    fn finish(mut self, sources: Vec<PathBuf>, names: &[String]) -> Result<Config, ConfigErrors> {
        self.overrides(names);
        let (env, out) = (self.env, &mut self.out);
        let sections = std::mem::take(&mut self.sections);
        let said = |name: &str| &sections[name];
        let gateway = Gateway::build(said("gateway"), out);
        let limits = Limits::build(said("limits"), out);
        let sessions = Sessions::build(said("sessions"));
        let ports = Ports::build(said("ports"), out);
        let metrics = Metrics::build(said("metrics"));
        let alerts = Alerts::build(said("alerts"), out);
        let registry = Registry::build(said("registry"));
        let reload = Reload::build(said("reload"));
        let tasks = Tasks::build(said("tasks"), out);
        let workers = Workers::build(&self.workers, said("workers"), env, out);
        let projects = projects::build(&self.projects, &tasks, &workers, env, out);
        let mut servers = self.build_servers(said("defaults"), gateway.listen);
        for server in &mut servers {
            server.deadlines.kill = limits.cleanup_time;
        }
        if self.out.full() {
            let message = format!("more than {MAX_FOUND} problems; the rest was not looked at");
            self.out.errors.push(Diagnostic::of_file("configuration".into(), message));
        }
        let Findings { mut errors, mut warnings } = self.out;
        in_reading_order(&mut errors, &sources);
        in_reading_order(&mut warnings, &sources);
        if errors.is_empty() {
            Ok(Config {
                gateway,
                limits,
                sessions,
                ports,
                metrics,
                alerts,
                registry,
                reload,
                tasks,
                workers,
                projects,
                servers,
                sources,
                warnings,
            })
        } else {
            Err(ConfigErrors { errors, warnings })
        }
    }

    /// The enabled servers. One that several files give is taken once if it is the same in all of them.
    fn build_servers(&mut self, said: &Checked, listen: SocketAddr) -> Vec<ServerSpec> {
        let base = defaults(keys::SERVER);
        let mut specs: Vec<ServerSpec> = Vec::new();
        let mut first: BTreeMap<ServerName, (usize, Place)> = BTreeMap::new();
        for raw in self.servers.iter().filter(|raw| server::enabled(raw, &base)) {
            let Some(spec) = server::build(raw, said, &base, self.env, &mut self.out) else {
                continue;
            };
            if let Some(Upstream { at: UpstreamAt::Url(url), .. }) = &spec.upstream
                && upstream::is_ostler_itself(url, listen)
            {
                itself(raw, &mut self.out);
                continue;
            }
            match first.get(&raw.name) {
                None => {
                    first.insert(raw.name.clone(), (specs.len(), raw.place.clone()));
                    specs.push(spec);
                }
                Some((index, _)) if specs[*index] == spec => {}
                Some((_, place)) => {
                    let message = format!("server `{}` is given twice, and differently", raw.name);
                    let error = Diagnostic::at(raw.place.clone(), message);
                    let help = format!("rename one of the two; the other is at {}", place.display());
                    self.out.error(error.other(place.clone(), "first given here").help(help));
                }
            }
        }
        order::check(&self.servers, said, &base, &mut self.out);
        specs
    }
}

fn table_of(raw: &mut RawServer) -> (String, &mut Checked) {
    (raw.name.to_string(), &mut raw.values)
}

/// A kind of workers of which no file says anything.
fn said_by_variables(name: &str) -> Option<RawServer> {
    let source = Source::variable(&format!("OSTLER_WORKERS__{}__...", name.to_uppercase()), "...");
    Some(RawServer {
        name: name.parse().ok()?,
        folder: source.dir.clone(),
        place: Place::new(&source, 0..0),
        values: Checked::new(),
        has_command: false,
        style: Style::Ostler,
        default_cwd: None,
    })
}

/// A client's file lists what it reaches through Ostler as well; in Ostler's own such an address would lead in a
/// circle.
fn itself(raw: &RawServer, out: &mut Findings) {
    let message = format!("server `{}` is skipped: it is Ostler itself", raw.name);
    let place = raw.values.get("url").map_or_else(|| raw.place.clone(), |found| found.place.clone());
    let help = "list the server that the address leads to instead";
    match raw.style {
        Style::Foreign => out.warning(Diagnostic::at(place, message).help(help)),
        Style::Ostler => {
            let message = format!("`url` of server `{}` leads to Ostler itself", raw.name);
            out.error(Diagnostic::at(place, message).help(help));
        }
    }
}
