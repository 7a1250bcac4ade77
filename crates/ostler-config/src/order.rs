//! What servers say of each other: which is started before which, and which has which fixed port.

use std::collections::BTreeMap;

use ostler_domain::{PortWish, ServerName, graph};

use crate::check::Checked;
use crate::diagnostic::{Diagnostic, Findings, nearest};
use crate::server::{self, RawServer};
use crate::source::Place;
use crate::values::Values;

/// The keys that name other servers.
const KEYS: [&str; 2] = ["depends_on", "wants"];

/// Checks the servers against each other. All are looked at, wrong ones too: that one is wrong must not make
/// another's dependency unknown.
///
/// `defaults` is what `[defaults]` says, `base` the documented defaults.
pub(crate) fn check(servers: &[RawServer], defaults: &Checked, base: &Checked, out: &mut Findings) {
    // The first of several with one name counts; that they differ is noted elsewhere.
    let mut known: BTreeMap<&ServerName, (usize, bool)> = BTreeMap::new();
    for (index, raw) in servers.iter().enumerate() {
        let entry = known.entry(&raw.name).or_insert((index, false));
        if !entry.1 && server::enabled(raw, base) {
            *entry = (index, true);
        }
    }
    let used: Vec<&RawServer> = servers
        .iter()
        .enumerate()
        .filter(|(index, raw)| known.get(&raw.name) == Some(&(*index, true)))
        .map(|(_, raw)| raw)
        .collect();
    let scope = |index: usize| Values { layers: &[&servers[index].values, defaults, base] }.word("scope");
    for raw in &used {
        names(raw, base, &known, &scope, out);
    }
    cycle(&used, base, out);
    fixed_ports(&used, defaults, base, out);
}

/// The names a server gives under one of [`KEYS`], with their places.
fn said<'a>(raw: &'a RawServer, base: &'a Checked, key: &str) -> Vec<(String, Place)> {
    Values { layers: &[&raw.values, base] }.list(key).to_vec()
}

fn names(
    raw: &RawServer,
    base: &Checked,
    known: &BTreeMap<&ServerName, (usize, bool)>,
    scope: &dyn Fn(usize) -> &'static str,
    out: &mut Findings,
) {
    for key in KEYS {
        for (name, place) in said(raw, base, key) {
            if out.full() {
                return;
            }
            match name.parse::<ServerName>().ok().and_then(|name| known.get(&name)) {
                Some((index, true)) => {
                    let scope = scope(*index);
                    if matches!(scope, "session" | "project") {
                        let message = format!("`{}` cannot wait for `{name}`", raw.name);
                        let help = format!(
                            "`{name}` has an instance for each {scope}, started for its clients; give it the scope \
                             `shared` or `principal`"
                        );
                        out.error(Diagnostic::at(place, message).help(help));
                    }
                }
                Some((_, false)) => {
                    let message = format!("server `{name}` is not enabled, and `{}` needs it", raw.name);
                    let help = format!("enable it, or take it out of `{key}`");
                    out.error(Diagnostic::at(place, message).help(help));
                }
                None => {
                    let message = format!("there is no server `{}`", name.escape_debug());
                    let others = known.keys().filter(|n| ***n != raw.name).map(|n| n.as_str());
                    let error = Diagnostic::at(place, message).nearest(nearest(&name, others));
                    out.error(error.expected("the name of a server of this configuration"));
                }
            }
        }
    }
}

/// Refuses servers that wait for each other.
fn cycle(used: &[&RawServer], base: &Checked, out: &mut Findings) {
    let index: BTreeMap<&str, usize> =
        used.iter().enumerate().map(|(index, raw)| (raw.name.as_str(), index)).collect();
    let before: Vec<Vec<(usize, Place)>> = used
        .iter()
        .map(|raw| {
            let all = KEYS.iter().flat_map(|key| said(raw, base, key));
            all.filter_map(|(name, place)| Some((*index.get(name.as_str())?, place))).collect()
        })
        .collect();
    let edges: Vec<Vec<usize>> = before.iter().map(|list| list.iter().map(|(i, _)| *i).collect()).collect();
    let Some(cycle) = graph::find_cycle(&edges) else {
        return;
    };
    let (first, second) = (cycle[0], cycle[1 % cycle.len()]);
    let names: Vec<_> = cycle.iter().chain([&first]).map(|i| used[*i].name.as_str()).collect();
    let place = before[first].iter().find(|(i, _)| *i == second).map(|(_, place)| place.clone());
    let message = format!("servers wait for each other: {}", names.join(" -> "));
    let error = Diagnostic::at(place.unwrap_or_else(|| used[first].place.clone()), message);
    out.error(error.help("none of them could ever be started first; take one of these dependencies out"));
}

/// Refuses a fixed port that two servers, or two names of one, want; warns of one that only the first of a
/// server's instances can have.
fn fixed_ports(used: &[&RawServer], defaults: &Checked, base: &Checked, out: &mut Findings) {
    let mut first: BTreeMap<u16, (&ServerName, Place)> = BTreeMap::new();
    for raw in used {
        let values = Values { layers: &[&raw.values, defaults, base] };
        let scope = values.word("scope");
        for (_, wish, place) in values.ports("ports") {
            let PortWish::Fixed(port) = wish else { continue };
            if matches!(scope, "session" | "project") {
                let message = format!("only one {scope} at a time can have `{}`", raw.name);
                let help = format!(
                    "each {scope} has an instance, and one can have port {port}; `\"auto\"` serves all"
                );
                out.warning(Diagnostic::at(place.clone(), message).help(help));
            }
            match first.get(port) {
                None => drop(first.insert(*port, (&raw.name, place.clone()))),
                Some((owner, other)) => {
                    let message = format!("port {port} of `{}` belongs to `{owner}` already", raw.name);
                    let error = Diagnostic::at(place.clone(), message).other(other.clone(), "given here");
                    out.error(error.help("give it another, or `\"auto\"`"));
                }
            }
        }
    }
}
