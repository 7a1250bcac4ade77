//! `OSTLER_SECTION__KEY` variables: any key set from the environment, over what the files say.

use std::collections::{BTreeMap, BTreeSet};

use crate::check::{Checked, Checker, Found};
use crate::diagnostic::{Diagnostic, Findings, nearest};
use crate::expand::Env;
use crate::keys::{self, Groups, Key, Kind, Named};
use crate::node::{Node, Value};
use crate::source::{Place, Source};
use crate::toml;

/// What every such variable starts with.
const PREFIX: &str = "OSTLER_";

/// The variables that name a key of this configuration, set or not.
#[derive(Default)]
pub(crate) struct Known(BTreeSet<String>);

/// Applies the variables of one section: `OSTLER_GATEWAY__LISTEN`.
pub(crate) fn section(
    name: &str,
    groups: Groups,
    env: Env<'_>,
    values: &mut Checked,
    known: &mut Known,
    out: &mut Findings,
) {
    for (path, key) in keys::leaves(groups) {
        let variable = variable(&[name, &path]);
        if let Some(text) = env(&variable)
            && let Some(found) = read(&variable, key, &text, out)
        {
            values.insert(path, found);
        }
        known.0.insert(variable);
    }
}

/// Applies the variables of tables by name: `OSTLER_SERVERS__GITHUB__SCOPE`. A name may be there more than once.
pub(crate) fn named(
    section: &str,
    named: &Named,
    tables: &mut [(String, &mut Checked)],
    env: Env<'_>,
    known: &mut Known,
    out: &mut Findings,
) {
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, _) in tables.iter() {
        names.entry(segment(name)).or_default().insert(name.clone());
    }
    for (segment, spelled) in &names {
        for (path, key) in keys::leaves(named.each) {
            let variable = variable(&[section, segment, &path]);
            let text = env(&variable);
            known.0.insert(variable.clone());
            let Some(text) = text else { continue };
            if spelled.len() > 1 {
                let list: Vec<_> = spelled.iter().map(|n| format!("`{n}`")).collect();
                let error = at_name(&variable, format!("`{variable}` could mean {}", list.join(" or ")));
                out.error(error.help("set the key in the file instead"));
                continue;
            }
            let Some(found) = read(&variable, key, &text, out) else {
                continue;
            };
            for (_, values) in tables.iter_mut().filter(|(name, _)| spelled.contains(name)) {
                values.insert(path.clone(), found.clone());
            }
        }
    }
}

/// Refuses variables that look like a key and are none. Those without `__` belong to the program itself.
pub(crate) fn unknown(names: &[String], known: &Known, out: &mut Findings) {
    for name in names {
        if !name.starts_with(PREFIX) || !name.contains("__") || known.0.contains(name) {
            continue;
        }
        let error = at_name(name, format!("`{name}` names no key of the configuration"));
        let inner = format!("{name}__");
        let longer = known.0.iter().find(|k| k.starts_with(&inner));
        let near = nearest(name, known.0.iter().map(String::as_str));
        let shape = "`OSTLER_SECTION__KEY` or `OSTLER_SERVERS__NAME__KEY`, the server being in a file";
        out.error(match (longer, near) {
            (Some(k), _) => error.help(format!("it names a table; set its keys one by one, such as `{k}`")),
            (None, Some(_)) => error.nearest(near),
            (None, None) => error.expected(shape),
        });
    }
}

/// `OSTLER_` and the parts, which may be paths.
fn variable(parts: &[&str]) -> String {
    let path = parts.join("__").replace('.', "__").to_uppercase();
    format!("{PREFIX}{path}")
}

/// A name as it stands in a variable: upper case, `_` for what a variable's name cannot hold.
fn segment(name: &str) -> String {
    name.to_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_")
}

fn at_name(variable: &str, message: String) -> Diagnostic {
    // The value may be a secret, and is not the trouble here.
    Diagnostic::at(Place::new(&Source::variable(variable, "..."), 0..variable.len()), message)
}

fn read(variable: &str, key: &Key, text: &str, out: &mut Findings) -> Option<Found> {
    if matches!(key.kind, Kind::Later) {
        let message = format!("`{}` is not available in this version yet", key.name);
        out.error(at_name(variable, message).help("unset the variable for now"));
        return None;
    }
    // Variables meant for a server are where secrets are: they are not shown.
    let shown = if matches!(key.kind, Kind::TextMap | Kind::HeaderMap) { "..." } else { text };
    let source = Source::variable(variable, shown);
    let from = variable.len() + 1;
    let node = match node(&key.kind, text) {
        Ok(node) => node.moved(&|range| range.start + from..range.end + from),
        Err((range, why)) => {
            let place = Place::new(&source, range.start + from..range.end + from);
            let error = Diagnostic::at(place, format!("`{variable}` cannot be read: {why}"));
            out.error(error.expected(crate::check::expected(&key.kind)));
            return None;
        }
    };
    let mut checker = Checker { source: &source, out };
    let value = checker.value(key, &node)?;
    Some(Found { value, place: checker.place(&node) })
}

/// A variable's text as the value its key takes.
fn node(kind: &Kind, text: &str) -> Result<Node, (std::ops::Range<usize>, String)> {
    let plain = || Value::Text(text.to_owned());
    let value = match kind {
        Kind::Bool => text.parse().map_or_else(|_| plain(), Value::Bool),
        Kind::Count { .. } | Kind::Integer { .. } => text.parse().map_or_else(|_| plain(), Value::Int),
        Kind::Fraction | Kind::Number { .. } => text.parse().map_or_else(|_| plain(), Value::Float),
        Kind::TextMap | Kind::HeaderMap | Kind::Ports => return toml::parse_value(text),
        Kind::TextList if text.trim_start().starts_with('[') => return toml::parse_value(text),
        Kind::TextList => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Value::List(items.map(|i| Node::new(0..text.len(), Value::Text(i.to_owned()))).collect())
        }
        _ => plain(),
    };
    Ok(Node::new(0..text.len(), value))
}
