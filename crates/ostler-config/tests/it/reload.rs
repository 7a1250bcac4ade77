//! What changes from one configuration to the next.

use std::collections::BTreeSet;

use ostler_config::{Apply, Config, ServerChange, diff, in_force, json_schema};
use proptest::prelude::*;

use crate::toml;

fn config(text: &str) -> Config {
    toml(text).unwrap_or_else(|e| panic!("{text}\n{e}"))
}

const BASE: &str = r#"
[servers.keeps]
command = "k"
[servers.tool]
command = "tool"
env = { TOKEN = "old-secret", MODE = "x" }
restart = { max = 5 }
[servers.goes]
command = "g"
"#;

const NEXT: &str = r#"
[gateway]
listen = "127.0.0.1:0"
[limits]
memory = "2GiB"
processes = 20
[alerts]
webhook = "https://example.org/new-secret"
[servers.comes]
command = "c"
[servers.tool]
command = "tool"
args = ["--token", "new-secret"]
env = { TOKEN = "new-secret", MODE = "x" }
restart = { max = 7 }
ports = { web = "auto" }
limits = { memory = "1GiB" }
[servers.keeps]
command = "k"
"#;

#[test]
fn a_reload_is_told_line_by_line_without_secrets() {
    let found = diff(&config(BASE), &config(NEXT));
    insta::assert_snapshot!(found);
    assert!(!found.to_string().contains("secret"));
    assert!(!found.is_empty());
    let later: Vec<_> = found.needs_daemon_restart().map(|k| k.key.as_str()).collect();
    assert_eq!(later, ["gateway.listen"]);
}

#[test]
fn what_can_change_while_a_server_runs_does_not_replace_it() {
    let one = |text: &str| {
        let old = "[servers.a]\ncommand = 'a'";
        let mut found = diff(&config(old), &config(&format!("{old}\n{text}")));
        found.servers.remove(0).1
    };
    let change = one("restart.max = 1\nidle = '1s'");
    assert!(!change.replaces());
    assert_eq!(change.to_string(), "changed while it runs: restart.max 5 -> 1, idle 300s -> 1s");
    assert!(one("idle = '1s'\nargs = ['x']").replaces());
    assert_eq!(one("restart.max = 5"), ServerChange::Unchanged, "the default, said");
}

#[test]
fn the_same_again_is_no_change_and_nobody_is_touched() {
    let found = diff(&config(NEXT), &config(NEXT));
    assert!(found.is_empty());
    assert_eq!(found.to_string(), "3 servers unchanged");
    let moved = diff(&config("[servers.a]\ncommand='a'\n[servers.b]\ncommand='b'"), &{
        config("# other lines, another order\n[servers.b]\ncommand='b'\n[servers.a]\ncommand='a'")
    });
    assert!(moved.is_empty());
}

/// For each key of a section another value than the default.
const SECTION_VALUES: &[(&str, &str)] = &[
    ("gateway.listen", "'127.0.0.1:1'"),
    ("gateway.allow_remote", "true"),
    ("gateway.allowed_hosts", "['x']"),
    ("gateway.allowed_origins", "['https://x']"),
    ("gateway.max_body", "'1MiB'"),
    ("gateway.body_memory", "'1GiB'"),
    ("gateway.header_timeout", "'1s'"),
    ("gateway.body_timeout", "'1s'"),
    ("gateway.write_timeout", "'1s'"),
    ("gateway.sse_after", "'1s'"),
    ("gateway.stream_hold", "'1s'"),
    ("gateway.replay_events", "1"),
    ("gateway.replay_bytes", "'2MiB'"),
    ("gateway.keepalive", "'1s'"),
    ("gateway.max_connections", "1"),
    ("limits.sessions", "1"),
    ("limits.session_calls", "1"),
    ("limits.session_instances", "1"),
    ("limits.instance_calls", "1"),
    ("limits.processes", "1"),
    ("limits.per_type", "1"),
    ("limits.memory", "'1GiB'"),
    ("limits.adhoc", "1"),
    ("limits.warning", "0.5"),
    ("limits.critical", "1.0"),
    ("limits.emergency", "true"),
    ("limits.startup", "'1s'"),
    ("limits.shutdown", "'1s'"),
    ("limits.cleanups", "1"),
    ("limits.cleanup_time", "'1s'"),
    ("limits.cleanup_tries", "1"),
    ("sessions.idle", "'1s'"),
    ("sessions.stale", "'1s'"),
    ("sessions.max_age", "'1s'"),
    ("sessions.grace", "'1s'"),
    ("ports.range", "'1-2'"),
    ("ports.expand", "'1-2'"),
    ("metrics.interval", "'1s'"),
    ("alerts.webhook", "'http://x'"),
    ("alerts.command", "['x']"),
    ("alerts.repeat", "'1s'"),
    ("alerts.retries", "1"),
    ("registry.check", "'1s'"),
    ("reload.watch", "false"),
    ("tasks.journal", "'memory'"),
    ("tasks.queued", "200000"),
    ("tasks.project_queued", "1"),
    ("tasks.project_running", "1"),
    ("tasks.projects", "1"),
    ("tasks.ageing", "'1s'"),
    ("tasks.timeout", "'1s'"),
    ("tasks.timeout_max", "'1h'"),
    ("tasks.attempts", "1"),
    ("tasks.backoff.min", "'2s'"),
    ("tasks.backoff.max", "'2s'"),
    ("tasks.backoff.jitter", "0"),
    ("tasks.payload_max", "'2MiB'"),
    ("tasks.result_inline", "'1KiB'"),
    ("tasks.result_max", "'1MiB'"),
    ("tasks.keep", "'1h'"),
    ("tasks.keep_size", "'2GiB'"),
    ("tasks.batch", "1"),
    ("tasks.logs", "1"),
    ("tasks.calls", "1"),
    ("workers.parts", "1"),
    ("workers.min", "0"),
    ("workers.max", "1024"),
    ("workers.up", "0.9"),
    ("workers.down", "0.1"),
    ("workers.interval", "'1s'"),
    ("workers.max_tasks", "1"),
    ("workers.max_age", "'1h'"),
    ("workers.max_rss", "'100MiB'"),
    ("workers.jitter", "0"),
    ("workers.idle", "'1s'"),
    ("workers.heartbeat", "'5s'"),
    ("workers.ready", "'1s'"),
    ("workers.memory", "'1GiB'"),
    ("workers.cpu", "1"),
    ("workers.pids", "1"),
    ("workers.open_files", "100"),
    ("workers.nice", "7"),
    ("workers.sandbox", "'off'"),
];

/// The same for what `[workers.NAME]` has beside those of `[workers]`.
const WORKER_VALUES: &[(&str, &str)] = &[
    ("command", "'other'"),
    ("args", "['x']"),
    ("env|env.A", "{ A = 'x' }"),
    ("inherit_env", "['X']"),
    ("cwd", "'/'"),
    ("types", "['x']"),
    ("network", "true"),
    ("see", "['/usr']"),
];

/// The same for a project.
const PROJECT_VALUES: &[(&str, &str)] = &[
    ("running", "0"),
    ("queued", "1"),
    ("weight", "2"),
    ("network", "true"),
    ("private", "true"),
    ("folders", "['/usr']"),
    ("memory", "'1MiB'"),
    ("timeout_max", "'1s'"),
];

/// The same for each key of a server, with the keys that must come with it. The name after `|` is that under
/// which the change is told, if it is not the key's.
const SERVER_VALUES: &[(&str, &str)] = &[
    ("command", "'other'"),
    ("args", "['x']"),
    ("env|env.A", "{ A = 'x' }"),
    ("cwd", "'/'"),
    ("transport", "'none'"),
    ("endpoint.port", "'p'\ntransport = 'http'\nports = { p = 'auto', q = 'auto' }"),
    ("endpoint.path", "'/x'\ntransport = 'http'\nports = { p = 'auto' }"),
    ("url", "'http://x/'"),
    ("headers", "{ A = 'x' }\ntransport = 'http'\nports = { p = 'auto' }"),
    ("enabled|", "false"),
    ("required", "true"),
    ("type", "'x'"),
    ("depends_on", "['b']"),
    ("wants", "['b']"),
    ("ports", "{ p = 'auto' }"),
    ("scope", "'shared'"),
    ("start", "'on-demand'"),
    ("concurrency", "'serial'"),
    ("inherit_env", "['X']"),
    ("restart.policy", "'never'"),
    ("restart.max", "1"),
    ("restart.window", "'1s'"),
    ("restart.backoff.min", "'1s'"),
    ("restart.backoff.max", "'1s'"),
    ("restart.backoff.jitter", "1"),
    ("stop.grace", "'1s'"),
    ("stop.drain", "'1s'"),
    ("timeouts.spawn", "'1s'"),
    ("timeouts.handshake", "'1s'"),
    ("timeouts.call_idle", "'1s'"),
    ("timeouts.call_max", "'1s'"),
    ("idle", "'1s'"),
    ("log_lines", "1"),
    ("log_files", "1"),
    ("log_file_bytes", "'1MiB'"),
    ("health.probe", "'none'"),
    ("health.interval", "'1s'"),
    ("health.timeout", "'1s'"),
    ("health.failures", "1"),
    ("health.successes", "2"),
    ("health.unhealthy_after", "'1h'"),
    ("health.address|health.probe", "'x:1'\nhealth.probe = 'tcp'"),
    ("health.url|health.probe", "'http://x'\nhealth.probe = 'http'"),
    ("health.command|health.probe", "['x']\nhealth.probe = 'exec'"),
    ("health.file|health.probe", "'/x'\nhealth.probe = 'heartbeat'"),
    ("health.port|ports", "'p'\nhealth.probe = 'tcp'\nports = { p = 'auto' }"),
    ("limits.memory", "'1GiB'"),
    ("limits.memory_warning", "'1GiB'"),
    ("limits.cpu", "1"),
    ("limits.pids", "1"),
    ("limits.open_files", "10"),
    ("limits.nice", "1"),
    ("tell_session", "true"),
    ("fallback", "'shared'"),
    ("pool.spare|pool", "0\nscope = 'session'"),
    ("pool.max|pool", "2\nscope = 'session'"),
    ("pool.wait|pool", "'1s'\nscope = 'session'"),
    ("pool.waiting|pool", "1\nscope = 'session'"),
    ("pool.on_return|pool", "'reuse'\nscope = 'session'"),
    ("pool.reset|pool", "['x']\npool.on_return = 'command'\nscope = 'session'"),
    ("pool.reset_time|pool", "'1s'\npool.reset = ['x']\npool.on_return = 'command'\nscope = 'session'"),
    ("pool.max_uses|pool", "1\nscope = 'session'"),
    ("pool.max_age|pool", "'1s'\nscope = 'session'"),
    ("pool.max_rss|pool", "'1MiB'\nscope = 'session'"),
    ("pool.jitter|pool", "0\nscope = 'session'"),
    ("replicas.min|replicas", "2\nscope = 'shared'"),
    ("replicas.max|replicas", "2\nscope = 'shared'"),
    ("replicas.calls|replicas", "1\nscope = 'shared'"),
    ("replicas.up|replicas", "0.9\nscope = 'shared'"),
    ("replicas.down|replicas", "0.1\nscope = 'shared'"),
    ("replicas.interval|replicas", "'1s'\nscope = 'shared'"),
];

/// Every key of the schema has a value above, and a change of it is told under its name.
#[test]
fn a_change_of_any_key_is_noticed() {
    let mut missing: BTreeSet<String> = crate::documentation::keys(&json_schema())
        .into_iter()
        .map(|key| key.path)
        .filter(|path| !path.starts_with("defaults."))
        .collect();
    for (key, value) in SECTION_VALUES {
        let found = diff(&config(""), &config(&format!("{key} = {value}"))).daemon;
        assert_eq!(found.iter().map(|k| k.key.as_str()).collect::<Vec<_>>(), [*key]);
        assert!(missing.remove(*key), "{key} is no key, or is here twice");
    }
    let keys = |config: &Config, next: &Config| {
        diff(config, next).daemon.into_iter().map(|key| key.key).collect::<Vec<_>>()
    };
    let worker = |keys: &str| config(&format!("[workers.a]\n{keys}"));
    let settings = SECTION_VALUES.iter().filter_map(|(key, value)| {
        Some((key.strip_prefix("workers.").filter(|key| *key != "parts")?, value))
    });
    // `parts` is of all kinds together.
    for (entry, value) in settings.chain(WORKER_VALUES.iter().map(|(key, value)| (*key, value))) {
        let (key, told) = entry.split_once('|').unwrap_or((entry, entry));
        let command = if key == "command" { "" } else { "command = 'a'\n" };
        let next = worker(&format!("{command}{key} = {value}"));
        assert_eq!(keys(&worker("command = 'a'"), &next), [format!("workers.a.{told}")]);
        assert!(missing.remove(&format!("workers.NAME.{key}")), "{key} is no key, or is here twice");
    }
    for (key, value) in PROJECT_VALUES {
        let next = config(&format!("[projects.a]\n{key} = {value}"));
        assert_eq!(keys(&config(""), &next), [format!("projects.a.{key}")]);
        assert_eq!(keys(&next, &config("[projects.a]")), [format!("projects.a.{key}")]);
        assert!(missing.remove(&format!("projects.NAME.{key}")), "{key} is no key, or is here twice");
    }
    let server = |keys: &str| config(&format!("[servers.b]\ncommand = 'b'\n[servers.a]\n{keys}"));
    for (entry, value) in SERVER_VALUES {
        let (key, told) = entry.split_once('|').unwrap_or((entry, entry));
        let command = if matches!(key, "command" | "url") { "" } else { "command = 'a'\n" };
        let found = diff(&server("command = 'a'"), &server(&format!("{command}{key} = {value}")));
        let (_, change) = found.servers.iter().find(|(name, _)| name.as_str() == "a").unwrap();
        match change {
            ServerChange::Changed(keys) => {
                assert!(keys.iter().any(|k| k.key == told), "{key}: {keys:?}");
            }
            other => assert_eq!((other, key), (&ServerChange::Removed, "enabled")),
        }
        assert!(missing.remove(&format!("servers.NAME.{key}")), "{key} is no key, or is here twice");
    }
    assert_eq!(missing, BTreeSet::new(), "these have no value above");
}

/// A pool is told of each of its keys while it runs; whether there is one, it is not.
#[test]
fn a_pool_is_changed_while_it_runs() {
    let server =
        |keys: &str| config(&format!("[servers.a]\ncommand = 'a'\nscope = 'session'\npool = {{ {keys} }}"));
    let before = server("");
    let pools = SERVER_VALUES.iter().filter_map(|(key, value)| Some((key.strip_prefix("pool.")?, value)));
    for (key, value) in pools {
        let key = key.trim_end_matches("|pool");
        let keys = value.replace("\nscope = 'session'", "").replace("\npool.", ", ");
        let found = diff(&before, &server(&format!("{key} = {keys}")));
        let [(_, ServerChange::Changed(changes))] = &*found.servers else { panic!("{key}: {found}") };
        let told = if key.starts_with("reset") { "pool.on_return" } else { &format!("pool.{key}") };
        assert_eq!(
            changes.iter().map(|c| (c.key.as_str(), c.apply)).collect::<Vec<_>>(),
            [(told, Apply::Live)]
        );
    }
}

/// What is in force after a reload differs from before in nothing that needs a restart, and from the file in nothing
/// else.
#[test]
fn what_needs_a_restart_of_the_daemon_is_not_in_force_before_it() {
    let before = config("");
    for (key, value) in SECTION_VALUES {
        let file = config(&format!("{key} = {value}\n[servers.new]\ncommand = 'x'"));
        let now = in_force(&before, file.clone());
        assert_eq!(diff(&before, &now).needs_daemon_restart().count(), 0, "{key}");
        let left = diff(&now, &file);
        assert!(left.daemon.iter().all(|key| key.apply == Apply::DaemonRestart), "{left}");
        assert_eq!(left.servers.iter().filter(|(_, change)| *change != ServerChange::Unchanged).count(), 0);
        let live = diff(&before, &file).daemon.iter().all(|key| key.apply != Apply::DaemonRestart);
        assert_eq!(left.is_empty(), live, "{key}");
    }
}

/// A few servers with a few keys each, as a file.
fn any_config() -> impl Strategy<Value = Config> {
    let key =
        prop::sample::select(vec!["args = ['x']", "idle = '9s'", "restart.max = 2", "scope = 'shared'"]);
    let server = prop::option::of(prop::collection::btree_set(key, 0..3));
    (prop::collection::vec(server, 4), prop::option::of(1_u32..4)).prop_map(|(servers, processes)| {
        let mut text = processes.map(|n| format!("[limits]\nprocesses = {n}\n")).unwrap_or_default();
        for (number, keys) in servers.iter().enumerate() {
            if let Some(keys) = keys {
                text.push_str(&format!("[servers.s{number}]\ncommand = 'c'\n"));
                keys.iter().for_each(|key| text.push_str(&format!("{key}\n")));
            }
        }
        config(&text)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_diff_is_exact_and_the_way_back_is_its_mirror(old in any_config(), new in any_config()) {
        let there = diff(&old, &new);
        let back = diff(&new, &old);
        prop_assert!(diff(&old, &old).is_empty());
        let spec = |config: &Config, name: &str| config.servers.iter().find(|s| s.name.as_str() == name).cloned();
        for number in 0..4 {
            let name = format!("s{number}");
            let find = |d: &ostler_config::Diff| {
                d.servers.iter().find(|(n, _)| n.as_str() == name).map(|(_, change)| change.clone())
            };
            match (spec(&old, &name), spec(&new, &name)) {
                (None, None) => prop_assert_eq!((find(&there), find(&back)), (None, None)),
                (None, Some(_)) => {
                    prop_assert_eq!(find(&there), Some(ServerChange::Added));
                    prop_assert_eq!(find(&back), Some(ServerChange::Removed));
                }
                (Some(_), None) => {
                    prop_assert_eq!(find(&there), Some(ServerChange::Removed));
                    prop_assert_eq!(find(&back), Some(ServerChange::Added));
                }
                (Some(a), Some(b)) if a == b => prop_assert_eq!(find(&there), Some(ServerChange::Unchanged)),
                (Some(a), Some(b)) => {
                    let (Some(ServerChange::Changed(one)), Some(ServerChange::Changed(two))) = (find(&there), find(&back)) else {
                        return Err(TestCaseError::fail(format!("{name}: {there}")));
                    };
                    let mirror: Vec<_> = two.iter().map(|k| (k.key.clone(), k.values.clone().map(|(x, y)| (y, x)))).collect();
                    prop_assert_eq!(one.iter().map(|k| (k.key.clone(), k.values.clone())).collect::<Vec<_>>(), mirror);
                    let replaces = a.launch != b.launch || a.scope != b.scope;
                    prop_assert_eq!(find(&there).unwrap().replaces(), replaces);
                }
            }
        }
        prop_assert_eq!(there.daemon.len(), usize::from(old.limits != new.limits));
        prop_assert!(there.daemon.iter().all(|k| k.apply == Apply::Live));
    }
}
