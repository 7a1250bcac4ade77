//! Which servers are the same thing under two names.
//!
//! The *identity* of a server names the program it runs: command, arguments, environment, working directory, and so
//! the credentials in them. What is learnt about one program is true of every server with its identity; and where
//! nothing else speaks against it ([`may_share`]), one process serves them all.

use std::collections::HashMap;

use ostler_domain::{Scope, ServerSpec};
use sha2::{Digest as _, Sha256};

/// Names the program that a server runs.
pub(crate) fn identity(spec: &ServerSpec) -> String {
    let launch = &spec.launch;
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        // With its length, so that no two lists of texts look alike.
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    };
    add(&launch.command);
    launch.args.iter().for_each(|arg| add(arg));
    for (name, value) in &launch.env {
        add(name);
        add(value);
    }
    launch.inherit_env.iter().for_each(|name| add(name));
    add(&launch.cwd.as_deref().map(|cwd| cwd.display().to_string()).unwrap_or_default());
    // One that is reached over the network, perhaps on another machine: where, and as whom.
    if let Some(upstream) = &spec.upstream {
        add(spec.transport.as_str());
        add(&format!("{:?}", upstream.at));
        for (name, value) in &upstream.headers {
            add(name);
            add(value);
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What of a server its instances depend on; two that are equal here may have one.
fn essence(spec: &ServerSpec) -> ServerSpec {
    let mut essence = spec.clone();
    // A type that was not said is the name.
    if essence.type_name == essence.name.as_str() {
        essence.type_name.clear();
    }
    essence.name = NOBODY.parse().unwrap_or_else(|error| unreachable!("{NOBODY}: {error}"));
    essence.required = false;
    essence
}

/// A name that stands for none.
const NOBODY: &str = "nobody";

/// Whether two servers of the configuration may share their instances: everybody may use both (`scope = "shared"`),
/// clients reach both through Ostler, and they differ in nothing but their names and whether they are required. Two
/// plain processes that look alike are meant to be two; and of other scopes nobody said that they are everyone's.
pub(crate) fn may_share(one: &ServerSpec, other: &ServerSpec) -> bool {
    one.scope == Scope::Shared && one.transport.is_mcp() && essence(one) == essence(other)
}

/// For each of these servers the earlier one whose instances it shares, by its place in the list.
pub(crate) fn leaders(specs: &[ServerSpec]) -> Vec<Option<usize>> {
    let mut first: HashMap<String, Vec<usize>> = HashMap::new();
    let leader = |(place, spec): (usize, &ServerSpec)| {
        let alike = first.entry(identity(spec)).or_default();
        let leader = alike.iter().copied().find(|&earlier| may_share(&specs[earlier], spec));
        if leader.is_none() {
            alike.push(place);
        }
        leader
    };
    specs.iter().enumerate().map(leader).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ostler_domain::Transport;

    fn spec(name: &str) -> ServerSpec {
        let mut spec = ServerSpec::new(name.parse().expect("a name"), "tool");
        spec.scope = Scope::Shared;
        spec
    }

    fn changed(name: &str, change: impl FnOnce(&mut ServerSpec)) -> ServerSpec {
        let mut spec = spec(name);
        change(&mut spec);
        spec
    }

    #[test]
    fn two_names_for_the_same_thing_share_and_whatever_differs_keeps_them_apart() {
        assert!(may_share(&spec("a"), &spec("b")));
        assert!(may_share(&spec("a"), &changed("b", |b| b.required = true)));
        let typed = |name: &str, kind: &str| changed(name, |spec| spec.type_name = kind.to_owned());
        assert!(may_share(&typed("a", "t"), &typed("b", "t")));
        assert!(!may_share(&typed("a", "t"), &typed("b", "u")));
        assert!(!may_share(&typed("a", "t"), &spec("b")));
        let apart: [fn(&mut ServerSpec); 8] = [
            |b| b.launch.args.push("x".to_owned()),
            |b| drop(b.launch.env.insert("TOKEN".to_owned(), "another".to_owned())),
            |b| b.launch.inherit_env.push("TOKEN".to_owned()),
            |b| b.launch.cwd = Some("/".into()),
            |b| b.limits.memory = Some(1 << 30),
            |b| b.depends_on.push("c".parse().expect("a name")),
            |b| b.scope = Scope::Principal,
            |b| b.transport = Transport::None,
        ];
        for (number, change) in apart.into_iter().enumerate() {
            assert!(!may_share(&spec("a"), &changed("b", change)), "change {number}");
        }
        let (mut one, mut two) = (spec("a"), spec("b"));
        (one.transport, two.transport) = (Transport::None, Transport::None);
        assert!(!may_share(&one, &two), "two plain processes");
        (one, two) = (spec("a"), spec("b"));
        (one.scope, two.scope) = (Scope::Principal, Scope::Principal);
        assert!(!may_share(&one, &two), "nobody said that they are everyone's");
    }

    #[test]
    fn the_first_of_those_that_share_leads() {
        let other = changed("other", |other| other.launch.command = "else".to_owned());
        let specs = [spec("a"), other, spec("b"), spec("c")];
        assert_eq!(leaders(&specs), [None, None, Some(0), Some(0)]);
    }

    #[test]
    fn what_is_joined_otherwise_has_another_identity() {
        let args = |args: &[&str]| {
            changed("a", |spec| spec.launch.args = args.iter().map(|&arg| arg.to_owned()).collect())
        };
        assert_ne!(identity(&args(&["ab", "c"])), identity(&args(&["a", "bc"])));
        assert_eq!(identity(&args(&["a"])), identity(&ServerSpec { required: true, ..args(&["a"]) }));
    }
}
