//! `OSTLER_SECTION__KEY` variables.

use std::collections::BTreeMap;
use std::time::Duration;

use ostler_config::{Config, ConfigErrors, load_with};
use ostler_domain::{PortWish, Probe, Scope};

const FILE: &str = r#"
[servers.git-hub]
command = "npx"
args = ["-y", "x"]
[servers.other]
command = "other"
scope = "project"
"#;

/// Loads [`FILE`] with these variables set, and nothing else.
fn check(variables: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ostler.toml");
    std::fs::write(&path, FILE).unwrap();
    let set: BTreeMap<String, String> =
        variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let names: Vec<_> = set.keys().cloned().collect();
    load_with(&[path], &|name| set.get(name).cloned(), &names)
}

fn messages(result: Result<Config, ConfigErrors>) -> Vec<String> {
    result.unwrap_err().errors.into_iter().map(|e| e.message).collect()
}

#[test]
fn variables_override_the_file() {
    let config = check(&[
        ("OSTLER_GATEWAY__LISTEN", "127.0.0.1:0"),
        ("OSTLER_GATEWAY__ALLOW_REMOTE", "true"),
        ("OSTLER_GATEWAY__ALLOWED_HOSTS", "a.example.org, b.example.org"),
        ("OSTLER_SESSIONS__IDLE", "2s"),
        ("OSTLER_LIMITS__PROCESSES", "3"),
        ("OSTLER_DEFAULTS__SCOPE", "shared"),
        ("OSTLER_DEFAULTS__RESTART__BACKOFF__JITTER", "0.5"),
        ("OSTLER_SERVERS__GIT_HUB__ARGS", r#"["a,b", "c"]"#),
        ("OSTLER_SERVERS__GIT_HUB__ENV", r#"{ A = "1", "b.c" = "2" }"#),
        ("OSTLER_SERVERS__OTHER__SCOPE", "session"),
        ("OSTLER_PORTS__RANGE", "1-2"),
        ("OSTLER_LIMITS__PER_TYPE", "7"),
        ("OSTLER_RELOAD__WATCH", "false"),
        ("OSTLER_SERVERS__GIT_HUB__PORTS", "{ web = 'auto', x = 80 }"),
        ("OSTLER_SERVERS__GIT_HUB__LIMITS__NICE", "-3"),
        ("OSTLER_SERVERS__GIT_HUB__LIMITS__CPU", "0.5"),
        ("OSTLER_SERVERS__GIT_HUB__HEALTH__PROBE", "none"),
        ("OSTLER_SERVERS__OTHER__RESTART__MAX", "1"),
    ])
    .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config.gateway.listen.port(), 0);
    assert!(config.gateway.allow_remote);
    assert_eq!(config.gateway.allowed_hosts, ["a.example.org", "b.example.org"]);
    assert_eq!(config.sessions.idle, Duration::from_secs(2));
    assert_eq!(config.limits.processes, 3);
    let [hub, other] = &config.servers[..] else { panic!("{:?}", config.servers) };
    assert_eq!((hub.scope, other.scope), (Scope::Shared, Scope::Session));
    assert_eq!((hub.restart.jitter, hub.restart.max, other.restart.max), (0.5, 5, 1));
    assert_eq!(hub.launch.args, ["a,b", "c"]);
    assert_eq!(hub.launch.env.len(), 2);
    assert_eq!((config.ports.range.to_string(), config.limits.per_type), ("1-2".into(), 7));
    assert!(!config.reload.watch);
    assert_eq!((hub.ports["web"], hub.ports["x"]), (PortWish::Auto, PortWish::Fixed(80)));
    assert_eq!((hub.limits.nice, hub.limits.cpu), (Some(-3), Some(0.5)));
    assert_eq!((&hub.health.probe, &other.health.probe), (&Probe::None, &Probe::Mcp));
}

#[test]
fn a_server_can_be_switched_off() {
    let config = check(&[("OSTLER_SERVERS__OTHER__ENABLED", "false")]).unwrap();
    assert_eq!(config.servers.len(), 1);
}

#[test]
fn variables_of_the_program_itself_are_left_alone() {
    let own = [
        "OSTLER_RUNTIME_DIR",
        "OSTLER_STATE_DIR",
        "OSTLER_LOG",
        "OSTLER_INSTANCE",
        "OSTLER_SOCKET",
        "PATH__X",
    ];
    let variables: Vec<_> = own.iter().map(|name| (*name, "x")).collect();
    assert!(check(&variables).is_ok());
}

#[test]
fn unknown_variables_are_named_with_the_nearest() {
    let errors = check(&[
        ("OSTLER_GATEWAY__LISTN", "x"),
        ("OSTLER_SERVERS__OTHER__RESTART", "x"),
        ("OSTLER_A__B", "c"),
    ])
    .unwrap_err();
    insta::assert_snapshot!(errors);
}

#[test]
fn wrong_values_point_into_the_variable() {
    let errors = check(&[
        ("OSTLER_GATEWAY__LISTEN", "localhost:80"),
        ("OSTLER_LIMITS__SESSIONS", "many"),
        ("OSTLER_SESSIONS__IDLE", "10"),
        ("OSTLER_SERVERS__OTHER__SANDBOX", "x"),
        ("OSTLER_SERVERS__OTHER__ARGS", "[1"),
        ("OSTLER_SERVERS__OTHER__ENV", "{ TOKEN = hidden }"),
    ])
    .unwrap_err();
    insta::assert_snapshot!(errors);
}

#[test]
fn a_variable_that_could_mean_two_servers_is_refused() {
    let text = "[servers.a-b]\ncommand='x'\n[servers.'a.b']\ncommand='y'";
    let env = |name: &str| (name == "OSTLER_SERVERS__A_B__SCOPE").then(|| "shared".to_owned());
    let result = ostler_config::load_str("o.toml", text, ostler_config::Format::Toml, &env);
    assert_eq!(messages(result), ["`OSTLER_SERVERS__A_B__SCOPE` could mean `a-b` or `a.b`"]);
}
