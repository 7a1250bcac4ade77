//! The JSON shapes in which MCP clients list servers.
//!
//! ```text
//! {"mcpServers": {NAME: ENTRY}}              Claude Desktop, Claude Code (.mcp.json), Cursor, Windsurf, Cline, Gemini
//! {"projects": {PATH: {"mcpServers": ...}}}  Claude Code (~/.claude.json)
//! {"servers": {NAME: ENTRY}, "inputs": []}   VS Code (.vscode/mcp.json)
//! {"mcp": {"servers": {NAME: ENTRY}}}        VS Code (settings.json)
//! {"context_servers": {NAME: ENTRY}}         Zed
//! {NAME: ENTRY}                              an entry list alone
//! ```
//!
//! These files belong to other tools, so what is not understood in them is a warning and not an error.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ostler_domain::ServerName;

use crate::check::{Checked, Checker, Found, Typed};
use crate::diagnostic::{Diagnostic, Findings, nearest};
use crate::expand::{Env, Style};
use crate::keys::{self, Kind};
use crate::node::{Entry, Node, Value};
use crate::server::{RESERVED_NAME, RawServer};
use crate::source::{Place, Source};

/// Keys that hold lists of servers, at the top of a file.
const SHAPES: &[&str] = &["mcpServers", "servers", "mcp", "context_servers", "projects"];

/// Keys that only concern the client that owns the file, or only describe.
const IGNORED: &[&str] = &[
    "alwaysAllow",
    "autoApprove",
    "description",
    "dev",
    "gallery",
    "icon",
    "metadata",
    "name",
    "source",
    "trust",
    "version",
];

/// Keys that give a remote server's address.
const REMOTE_KEYS: &[&str] = &["url", "serverUrl", "httpUrl"];

/// Keys that are read, for the nearest name of an unknown one.
const READ: &[&str] = &[
    "command",
    "args",
    "env",
    "cwd",
    "type",
    "transport",
    "disabled",
    "enabled",
    "url",
    "headers",
    "ostler",
];

/// The words with which clients name transports, and Ostler's own for them. Those of servers that they start
/// themselves need none.
const TRANSPORTS: &[(&str, Option<&str>)] = &[
    ("stdio", None),
    ("local", None),
    ("http", Some("http")),
    ("streamable-http", Some("http")),
    ("streamable_http", Some("http")),
    ("streamableHttp", Some("http")),
    ("sse", Some("sse")),
    ("ws", Some("websocket")),
    ("websocket", Some("websocket")),
];

/// A list of servers found in a file.
struct Listing<'a> {
    entries: &'a [Entry],
    folder: PathBuf,
    default_cwd: Option<PathBuf>,
    /// Whether a name may be taken already: what several projects call the same is not a mistake.
    per_project: bool,
}

/// Reads every server of a file.
pub(crate) fn servers(source: &Arc<Source>, root: &Node, env: Env<'_>, out: &mut Findings) -> Vec<RawServer> {
    let mut found: Vec<RawServer> = Vec::new();
    for listing in listings(source, root, env, out) {
        Checker { source, out }.duplicates(listing.entries, "the list of servers");
        let mut seen = BTreeSet::new();
        for entry in listing.entries {
            if out.full() {
                return found;
            }
            if !seen.insert(entry.key.as_str()) {
                continue;
            }
            let mut reader = Reader { source, listing: &listing, entry, out };
            let Some(server) = reader.server() else { continue };
            let taken = if listing.per_project { found.iter().find(|s| s.name == server.name) } else { None };
            match taken {
                Some(first) => {
                    let message = format!(
                        "server `{}` of project `{}` is skipped",
                        server.name,
                        listing.folder.display()
                    );
                    let warning = Diagnostic::at(server.place, message)
                        .other(first.place.clone(), "the name is taken here");
                    out.warning(warning.help("give it another name in ostler.toml to use it"));
                }
                None => found.push(server),
            }
        }
    }
    found
}

/// The lists of servers in a file.
fn listings<'a>(source: &Arc<Source>, root: &'a Node, env: Env<'_>, out: &mut Findings) -> Vec<Listing<'a>> {
    let folder = source.project_dir().to_owned();
    let default_cwd = project_cwd(source, &folder, env);
    let mut found = Vec::new();
    let mut add =
        |node: &'a Node, what: &str, folder: &Path, cwd: Option<PathBuf>, per_project, out: &mut Findings| {
            match node.entries() {
                Some(entries) => {
                    found.push(Listing { entries, folder: folder.to_owned(), default_cwd: cwd, per_project });
                }
                None => out.error(
                    Diagnostic::at(
                        Place::new(source, node.range.clone()),
                        format!("`{what}` cannot be {}", node.kind()),
                    )
                    .expected("an object with one entry for each server"),
                ),
            }
        };
    for key in ["mcpServers", "servers", "context_servers"] {
        if let Some(node) = root.get(key) {
            add(node, key, &folder, default_cwd.clone(), false, out);
        }
    }
    for key in ["servers", "mcpServers"] {
        if let Some(node) = root.get("mcp").and_then(|mcp| mcp.get(key)) {
            add(node, key, &folder, default_cwd.clone(), false, out);
        }
    }
    for project in root.get("projects").and_then(Node::entries).unwrap_or_default() {
        if let Some(node) = project.node.get("mcpServers") {
            let folder = Path::new(&project.key);
            add(node, "mcpServers", folder, Some(folder.to_owned()), true, out);
        }
    }
    if SHAPES.iter().any(|key| root.get(key).is_some()) {
        return found;
    }
    if root.entries().is_some_and(|entries| !entries.is_empty() && entries.iter().all(|e| is_entry(&e.node)))
    {
        add(root, "the file", &folder, default_cwd, false, out);
    } else {
        out.error(no_shape(source, root));
    }
    found
}

fn is_entry(node: &Node) -> bool {
    node.get("command").is_some() || REMOTE_KEYS.iter().any(|key| node.get(key).is_some())
}

fn no_shape(source: &Arc<Source>, root: &Node) -> Diagnostic {
    let misspelt = root
        .entries()
        .unwrap_or_default()
        .iter()
        .find_map(|e| Some((e, nearest(&e.key, SHAPES.iter().copied())?)));
    let range = misspelt.map_or(root.range.start..root.range.start, |(e, _)| e.key_range.clone());
    Diagnostic::at(Place::new(source, range), "no list of MCP servers in this file")
        .expected("`mcpServers` (Claude, Cursor), `servers` (VS Code) or `context_servers` (Zed)")
        .nearest(misspelt.map(|(_, name)| name))
}

/// The working directory that a project's file means: clients start its servers in the project's folder. A
/// file for the whole user (in the home directory) means none.
fn project_cwd(source: &Source, folder: &Path, env: Env<'_>) -> Option<PathBuf> {
    let of_project =
        source.dir != folder || Path::new(&source.name).file_name().is_some_and(|n| n == ".mcp.json");
    let home = env("HOME").is_some_and(|home| Path::new(&home) == folder);
    (of_project && !home).then(|| folder.to_owned())
}

/// Reads one entry.
struct Reader<'a> {
    source: &'a Arc<Source>,
    listing: &'a Listing<'a>,
    entry: &'a Entry,
    out: &'a mut Findings,
}

impl Reader<'_> {
    fn server(&mut self) -> Option<RawServer> {
        let entry = self.entry;
        let Some(entries) = entry.node.entries() else {
            let error = Diagnostic::at(
                self.at(&entry.node),
                format!("server `{}` cannot be {}", entry.key, entry.node.kind()),
            );
            self.out.error(error.expected("an object with `command` and `args`"));
            return None;
        };
        let off = matches!(entry.node.get("disabled"), Some(Node { value: Value::Bool(true), .. }))
            || matches!(entry.node.get("enabled"), Some(Node { value: Value::Bool(false), .. }));
        if !off && self.skipped(&entry.node) {
            return None;
        }
        let name = self.name()?;
        Checker { source: self.source, out: self.out }
            .duplicates(entries, &format!("server `{}`", entry.key));
        let mut values = Checked::new();
        for inner in entries {
            if self.out.full() {
                return None;
            }
            self.key(inner, &mut values);
        }
        self.transport(&mut values);
        if let Some(own) = entry.node.get("ostler") {
            let mut checker = Checker { source: self.source, out: self.out };
            checker.table(keys::SERVER, own, &format!("`ostler` of server `{}`", entry.key), "", &mut values);
        }
        if off {
            values.insert("enabled".into(), Found { value: Typed::Bool(false), place: self.key_place() });
        }
        Some(RawServer {
            name,
            place: self.key_place(),
            values,
            has_command: entry.node.get("command").is_some()
                || entry.node.get("ostler").is_some_and(|o| o.get("command").is_some()),
            style: Style::Foreign,
            folder: self.listing.folder.clone(),
            default_cwd: self.listing.default_cwd.clone(),
        })
    }

    fn at(&self, node: &Node) -> Place {
        Place::new(self.source, node.range.clone())
    }

    fn key_place(&self) -> Place {
        Place::new(self.source, self.entry.key_range.clone())
    }

    fn skip(&mut self, place: Place, why: &str, help: &str) -> bool {
        let message = format!("server `{}` is skipped: {why}", self.entry.key);
        self.out.warning(Diagnostic::at(place, message).help(help));
        true
    }

    /// Whether the entry is one that this version cannot run, which is then noted.
    fn skipped(&mut self, node: &Node) -> bool {
        let command = node.get("command");
        for key in ["type", "transport"] {
            match node.get(key) {
                Some(kind) if transport_word(kind).is_none() => {
                    let why = format!(
                        "`{key}` is {}",
                        kind.text().map_or_else(|| kind.kind().into(), |t| format!("`{t}`"))
                    );
                    let known: Vec<_> = TRANSPORTS.iter().map(|(word, _)| format!("`{word}`")).collect();
                    return self.skip(self.at(kind), &why, &format!("known are {}", known.join(", ")));
                }
                _ => {}
            }
        }
        if let Some((kind, _)) = network_word(node).filter(|_| !is_remote(node)) {
            let help = "give its address as `url`";
            return self.skip(self.at(kind), "it has no address", help);
        }
        if command.is_none()
            && let Some(source) = node.get("source").filter(|s| s.text() == Some("extension"))
        {
            return self.skip(
                self.at(source),
                "an extension of the editor starts it",
                "give its command to use it",
            );
        }
        let program = command.and_then(Node::text).and_then(|c| Path::new(c).file_name());
        let first = match node.get("args").map(|a| &a.value) {
            Some(Value::List(items)) => items.first().and_then(Node::text),
            _ => None,
        };
        if program.is_some_and(|p| p == "ostler") && first == Some("connect") {
            let place = self.key_place();
            return self.skip(
                place,
                "it is Ostler itself",
                "list the server that `ostler connect` leads to instead",
            );
        }
        false
    }

    /// The entry's name; one that Ostler cannot use as it is gets the nearest that it can.
    fn name(&mut self) -> Option<ServerName> {
        let text = &self.entry.key;
        if text == RESERVED_NAME {
            let place = self.key_place();
            self.skip(place, "the name is reserved for Ostler's own MCP server", "give it another name");
            return None;
        }
        if let Ok(name) = text.parse() {
            return Some(name);
        }
        match usable_name(text) {
            Some(name) => {
                let warning = Diagnostic::at(self.key_place(), format!("server `{text}` is called `{name}`"));
                let help = "a name is used in addresses: 1 to 64 of A-Z a-z 0-9 _ - . are possible";
                self.out.warning(warning.help(help));
                Some(name)
            }
            None => {
                let error =
                    Diagnostic::at(self.key_place(), format!("`{text}` cannot be the name of a server"));
                self.out.error(error.expected("1 to 64 of A-Z a-z 0-9 _ - . with a letter or digit first"));
                None
            }
        }
    }

    fn key(&mut self, inner: &Entry, values: &mut Checked) {
        match inner.key.as_str() {
            // Zed once nested the whole launch in `command`.
            "command" if inner.node.entries().is_some() => {
                for (from, to) in [("path", "command"), ("args", "args"), ("env", "env")] {
                    if let Some(node) = inner.node.get(from) {
                        self.launch_key(to, node, values);
                    }
                }
            }
            // Where an entry has a command and an address, its type says which of them is meant.
            name @ ("command" | "args" | "env" | "cwd") => {
                if !is_remote(&self.entry.node) {
                    self.launch_key(name, &inner.node, values);
                }
            }
            name if name == "headers" || REMOTE_KEYS.contains(&name) => {
                if is_remote(&self.entry.node) {
                    let own = if name == "headers" { name } else { "url" };
                    self.launch_key(own, &inner.node, values);
                }
            }
            name @ ("disabled" | "enabled") if !matches!(inner.node.value, Value::Bool(_)) => {
                let error =
                    Diagnostic::at(self.at(&inner.node), format!("`{name}` cannot be {}", inner.node.kind()));
                self.out.error(error.expected("`true` or `false`"));
            }
            "disabled" | "enabled" | "type" | "transport" | "ostler" => {}
            name if IGNORED.contains(&name) || name.starts_with(['_', '$', '/']) => {}
            name => {
                let place = Place::new(self.source, inner.key_range.clone());
                let warning =
                    Diagnostic::at(place, format!("`{name}` of server `{}` is not used", self.entry.key));
                let near = nearest(name, READ.iter().copied());
                self.out.warning(match (name, near) {
                    ("timeout", _) => {
                        warning.help("Ostler's own is `\"ostler\": {\"timeouts\": {\"call_idle\": \"60s\"}}`")
                    }
                    ("envFile", _) => warning
                        .help("give the variables in `env`, or start Ostler with them and use `${env:NAME}`"),
                    (_, Some(_)) => warning.nearest(near),
                    _ => warning.help("Ostler's own keys go into an object `ostler` of the entry"),
                });
            }
        }
    }

    /// Of a server with an address, how it is reached where the entry says so.
    fn transport(&mut self, values: &mut Checked) {
        if let Some((node, word)) = network_word(&self.entry.node).filter(|_| values.contains_key("url")) {
            values.insert("transport".into(), Found { value: Typed::Choice(word), place: self.at(node) });
        }
    }

    /// A key that means what Ostler's own of the same name does.
    fn launch_key(&mut self, name: &str, node: &Node, values: &mut Checked) {
        let Some(key) = keys::find(keys::SERVER, name) else {
            return;
        };
        if matches!(node.value, Value::Null) {
            return;
        }
        let spelled = matches!(key.kind, Kind::TextMap | Kind::HeaderMap).then(|| self.spelled(node));
        let mut checker = Checker { source: self.source, out: self.out };
        if let Some(value) = checker.value(key, spelled.as_ref().unwrap_or(node)) {
            values.insert(name.to_owned(), Found { value, place: checker.place(node) });
        }
    }

    /// Variables as texts: clients take numbers and booleans too, and `null` for one that is not set.
    fn spelled(&self, node: &Node) -> Node {
        let Some(entries) = node.entries() else {
            return node.clone();
        };
        let entries = entries.iter().filter(|e| e.node.value != Value::Null).map(|e| {
            let mut e = e.clone();
            if matches!(e.node.value, Value::Int(_) | Value::Float(_) | Value::Bool(_)) {
                let text = self.source.text.get(e.node.range.clone()).unwrap_or_default();
                e.node.value = Value::Text(text.to_owned());
            }
            e
        });
        Node::new(node.range.clone(), Value::Map(entries.collect()))
    }
}

/// Whether the entry means a server that runs elsewhere.
fn is_remote(node: &Node) -> bool {
    REMOTE_KEYS.iter().any(|key| node.get(key).is_some())
        && (node.get("command").is_none() || network_word(node).is_some())
}

/// What the entry says of its transport where that is one over the network, with Ostler's word for it.
fn network_word(node: &Node) -> Option<(&Node, &'static str)> {
    let said = ["type", "transport"].into_iter().filter_map(|key| node.get(key));
    said.filter_map(|kind| Some((kind, transport_word(kind)??))).next()
}

/// Ostler's word for a client's transport, where it needs one; `None` for one that is not known.
fn transport_word(node: &Node) -> Option<Option<&'static str>> {
    let text = node.text()?;
    TRANSPORTS.iter().find(|(word, _)| *word == text).map(|(_, own)| *own)
}

/// The nearest name that Ostler can use: what it cannot hold becomes a dash.
pub(crate) fn usable_name(text: &str) -> Option<ServerName> {
    let dashed = text.replace(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')), "-");
    let trimmed = dashed.trim_start_matches(['-', '.']).trim_end_matches('-');
    trimmed.get(..trimmed.len().min(ServerName::MAX_LEN))?.parse().ok()
}
