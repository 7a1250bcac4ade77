//! `ostler.toml`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ostler_config::{Config, Gateway, load};
use ostler_domain::{Concurrency, RestartPolicy, Scope, ServerSpec, StartMode};

use crate::{env, only, toml, warnings};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn nothing_said_is_every_documented_default() {
    let config = toml("").unwrap();
    assert_eq!(config.gateway, Gateway::default());
    assert_eq!(config.gateway.listen.to_string(), "127.0.0.1:7320");
    assert!(!config.gateway.allow_remote);
    assert_eq!(config.gateway.max_body, 64 << 20);
    assert_eq!(config.gateway.body_memory, 256 << 20);
    assert_eq!(config.gateway.header_timeout, 10 * SECOND);
    assert_eq!(config.gateway.body_timeout, 30 * SECOND);
    assert_eq!(config.gateway.write_timeout, 30 * SECOND);
    assert_eq!(config.gateway.sse_after, Duration::from_millis(30));
    assert_eq!(config.gateway.stream_hold, Duration::ZERO);
    assert_eq!(config.gateway.replay_events, 256);
    assert_eq!(config.gateway.replay_bytes, 1 << 20);
    assert_eq!(config.gateway.keepalive, 15 * SECOND);
    assert_eq!(config.gateway.max_connections, 4096);
    assert_eq!(config.limits.sessions, 1000);
    assert_eq!(config.limits.session_calls, 64);
    assert_eq!(config.limits.instance_calls, 1024);
    assert_eq!(config.limits.processes, 15);
    assert_eq!(config.sessions.idle, 600 * SECOND);
    assert!(config.servers.is_empty() && config.warnings.is_empty());
}

#[test]
fn a_server_with_only_a_command_is_the_domains_default() {
    let spec = only(toml("[servers.time]\ncommand = \"mcp-time\""));
    assert_eq!(spec, ServerSpec::new("time".parse().unwrap(), "mcp-time"));
}

const EVERYTHING: &str = r#"
[gateway]
listen = "0.0.0.0:80"
allow_remote = true
allowed_hosts = ["mcp.example.org", "mcp.example.org:8443"]
allowed_origins = ["https://example.org"]
max_body = "1MiB"
body_memory = "2MB"
header_timeout = "1s"
body_timeout = "2s"
write_timeout = "3s"
sse_after = "0s"
stream_hold = "1m"
replay_events = 10
replay_bytes = "10KiB"
keepalive = "4s"
max_connections = 5

[limits]
sessions = 1
session_calls = 2
instance_calls = 3
processes = 4

[sessions]
idle = "1h30m"

[servers.github]
command = "npx"
args = ["-y", "@modelcontextprotocol/server-github", "${env:NONE:-public}"]
env = { GITHUB_TOKEN = "${env:TOKEN}" }
inherit_env = ["HTTPS_PROXY"]
cwd = "."
transport = "stdio"
enabled = true
required = true
scope = "session"
start = "on-demand"
concurrency = "serial"
restart = { policy = "always", max = 0, window = "1m", backoff = { min = "1s", max = "2s", jitter = 1 } }
stop = { grace = "20s", drain = "0s" }
timeouts = { spawn = "1s", handshake = "2s", call_idle = "3s", call_max = "4s" }
idle = "10s"
log_lines = 7
"#;

#[test]
fn every_key_is_read() {
    let config = toml(EVERYTHING).unwrap();
    let gateway = &config.gateway;
    assert_eq!(gateway.listen.to_string(), "0.0.0.0:80");
    assert!(gateway.allow_remote);
    assert_eq!(gateway.allowed_hosts, ["mcp.example.org", "mcp.example.org:8443"]);
    assert_eq!(gateway.allowed_origins, ["https://example.org"]);
    assert_eq!((gateway.max_body, gateway.body_memory), (1 << 20, 2_000_000));
    assert_eq!((gateway.header_timeout, gateway.body_timeout), (SECOND, 2 * SECOND));
    assert_eq!((gateway.write_timeout, gateway.keepalive), (3 * SECOND, 4 * SECOND));
    assert_eq!((gateway.sse_after, gateway.stream_hold), (Duration::ZERO, 60 * SECOND));
    assert_eq!((gateway.replay_events, gateway.replay_bytes), (10, 10 << 10));
    assert_eq!(gateway.max_connections, 5);
    let limits = &config.limits;
    assert_eq!((limits.sessions, limits.session_calls), (1, 2));
    assert_eq!((limits.instance_calls, limits.processes), (3, 4));
    assert_eq!(config.sessions.idle, 5400 * SECOND);
    check_server(&config);
}

fn check_server(config: &Config) {
    let server = &config.servers[0];
    assert_eq!(server.launch.command, "npx");
    assert_eq!(server.launch.args, ["-y", "@modelcontextprotocol/server-github", "public"]);
    assert_eq!(server.launch.env["GITHUB_TOKEN"], "s3cret");
    assert_eq!(server.launch.inherit_env, ["HTTPS_PROXY"]);
    assert_eq!(server.launch.cwd.as_deref(), Some(Path::new("/etc")));
    assert!(server.required);
    assert_eq!((server.scope, server.start), (Scope::Session, StartMode::OnDemand));
    assert_eq!(server.concurrency, Concurrency::Serial);
    assert_eq!((server.restart.policy, server.restart.max), (RestartPolicy::Always, 0));
    assert_eq!(server.restart.window, 60 * SECOND);
    assert_eq!((server.restart.backoff_min, server.restart.backoff_max), (SECOND, 2 * SECOND));
    assert_eq!(server.restart.jitter, 1.0);
    assert_eq!((server.deadlines.stdin_grace, server.deadlines.term_grace), (4 * SECOND, 16 * SECOND));
    assert_eq!((server.deadlines.drain, server.deadlines.spawn), (Duration::ZERO, SECOND));
    assert_eq!(server.deadlines.handshake, 2 * SECOND);
    assert_eq!((server.call_idle, server.call_max), (3 * SECOND, 4 * SECOND));
    assert_eq!((server.idle, server.log_lines), (10 * SECOND, 7));
}

#[test]
fn defaults_fill_in_what_a_server_does_not_say_key_by_key() {
    let config = toml(
        r#"
        [defaults]
        scope = "shared"
        restart.max = 9
        restart.backoff.jitter = 0.5
        timeouts.handshake = "5s"
        [servers.a]
        command = "a"
        [servers.b]
        command = "b"
        scope = "project"
        restart = { backoff = { min = "2s" } }
        "#,
    )
    .unwrap();
    let [a, b] = &config.servers[..] else { panic!("{:?}", config.servers) };
    assert_eq!((a.scope, b.scope), (Scope::Shared, Scope::Project));
    assert_eq!((a.restart.max, b.restart.max), (9, 9));
    assert_eq!((a.restart.backoff_min, b.restart.backoff_min), (Duration::from_millis(100), 2 * SECOND));
    assert_eq!((b.restart.jitter, b.deadlines.handshake), (0.5, 5 * SECOND));
}

#[test]
fn a_server_that_is_not_enabled_is_left_out_with_what_it_would_need() {
    let config = toml("[servers.a]\ncommand = \"${env:NONE}\"\nenabled = false").unwrap();
    assert!(config.servers.is_empty());
}

#[test]
fn servers_keep_the_order_of_the_file() {
    let text = "[servers.z]\ncommand='z'\n[servers.a]\ncommand='a'\n[servers.m]\ncommand='m'";
    let names: Vec<_> = toml(text).unwrap().servers.iter().map(|s| s.name.to_string()).collect();
    assert_eq!(names, ["z", "a", "m"]);
}

#[test]
fn relative_paths_start_from_the_file() {
    let spec = only(toml("[servers.a]\ncommand = './bin/a'\nargs = ['./x']"));
    assert_eq!(spec.launch.command, "/etc/bin/a");
    assert_eq!((spec.launch.args, spec.launch.cwd), (vec!["./x".to_owned()], None));
    let spec = only(toml("[servers.a]\ncommand = 'bin/a'\ncwd = '${workspaceFolder}/../usr'"));
    assert_eq!(spec.launch.command, "/etc/../usr/bin/a");
}

#[test]
fn doubtful_things_are_warned_of() {
    let config = toml("[servers.a]\ncommand = 'npx -y some-server'\ncwd = 'no/such'").unwrap();
    assert_eq!(
        warnings(&config),
        [
            "`npx -y some-server` is taken as the name of one program",
            "the working directory `/etc/no/such` does not exist"
        ]
    );
}

#[test]
fn several_files_make_one_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let files = [
        write(
            "ostler.toml",
            "[gateway]\nlisten = '127.0.0.1:1'\n[defaults]\nscope = 'shared'\n[servers.a]\ncommand = 'a'",
        ),
        write("more.toml", "[gateway]\nlisten = '127.0.0.1:1'\nkeepalive = '1s'\n[servers.a]\ncommand = 'a'"),
        write("claude.json", r#"{"mcpServers": {"b": {"command": "b"}, "a": {"command": "a"}}}"#),
    ];
    let config = load(&files, &env).unwrap_or_else(|e| panic!("{e}"));
    let names: Vec<_> = config.servers.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(config.servers.iter().all(|s| s.scope == Scope::Shared));
    assert_eq!((config.gateway.listen.port(), config.gateway.keepalive), (1, SECOND));
    assert_eq!(config.sources, files);
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_the_others_are_still_checked() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.toml");
    std::fs::write(&bad, "[gatway]").unwrap();
    let latin = dir.path().join("latin.toml");
    std::fs::write(&latin, b"# one\n# caf\xe9").unwrap();
    let none = dir.path().join("none.toml");
    let errors = load(&[none.clone(), bad, latin, dir.path().to_owned()], &env).unwrap_err().errors;
    let messages: Vec<_> = errors.iter().map(|e| e.message.as_str()).collect();
    assert_eq!(errors.len(), 4, "{messages:?}");
    assert!(messages[0].contains("No such file"), "{messages:?}");
    assert_eq!((errors[0].file.as_str(), errors[0].line), (none.to_str().unwrap(), 0));
    assert_eq!((errors[1].line, errors[1].column), (1, 2));
    assert!(messages[2].ends_with("line 2 is not UTF-8 text"), "{messages:?}");
    assert!(messages[3].contains("directory"), "{messages:?}");
}
