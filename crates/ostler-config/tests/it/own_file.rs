//! `ostler.toml`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ostler_config::{Config, Gateway, load};
use ostler_domain::{
    Concurrency, Fallback, HealthSpec, Heartbeat, PortRange, PortWish, Probe, ResourceLimits, RestartPolicy,
    Scope, ServerSpec, StartMode, Transport, UpstreamAt,
};

use crate::{env, json, only, toml, warnings};

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
    assert_eq!(config.limits.session_instances, 10);
    let sessions = &config.sessions;
    assert_eq!((sessions.idle, sessions.stale), (600 * SECOND, 1800 * SECOND));
    assert_eq!((sessions.max_age, sessions.grace), (86_400 * SECOND, 30 * SECOND));
    check_default_sections(&config);
    assert!(config.servers.is_empty() && config.warnings.is_empty());
}

fn check_default_sections(config: &Config) {
    let limits = &config.limits;
    assert_eq!((limits.per_type, limits.memory, limits.adhoc), (3, 4 << 30, 100));
    assert_eq!((limits.warning, limits.critical, limits.emergency), (0.75, 0.9, false));
    assert_eq!((limits.startup, limits.shutdown), (60 * SECOND, 30 * SECOND));
    assert_eq!((limits.cleanups, limits.cleanup_time, limits.cleanup_tries), (5, 10 * SECOND, 3));
    assert_eq!((config.ports.range.first(), config.ports.range.last()), (8001, 9000));
    assert_eq!((config.ports.range, config.ports.expand), (PortRange::default(), None));
    assert_eq!(config.metrics.interval, 5 * SECOND);
    assert_eq!((&config.alerts.webhook, config.alerts.command.len()), (&None, 0));
    assert_eq!((config.alerts.repeat, config.alerts.retries), (300 * SECOND, 3));
    assert_eq!((config.registry.check, config.reload.watch), (30 * SECOND, true));
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
session_instances = 8
instance_calls = 3
processes = 4
per_type = 5
memory = "1GiB"
adhoc = 0
warning = 0.5
critical = 1
emergency = true
startup = "1s"
shutdown = "2s"
cleanups = 6
cleanup_time = "3s"
cleanup_tries = 7

[sessions]
idle = "1h30m"
stale = "2h"
max_age = "48h"
grace = "0s"

[ports]
range = "10000-10009"
expand = " 20000 - 20000 "

[metrics]
interval = "1s"

[alerts]
webhook = "https://example.org/hook"
command = ["notify", "me"]
repeat = "1m"
retries = 0

[registry]
check = "10s"

[reload]
watch = false

[servers.cache]
command = "cache"
transport = "none"

[servers.db]
command = "db"
transport = "socket"
health = { probe = "tcp", address = "127.0.0.1:{port.sql}" }
ports = { sql = 5432 }

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
fallback = "shared"
restart = { policy = "always", max = 0, window = "1m", backoff = { min = "1s", max = "2s", jitter = 1 } }
stop = { grace = "20s", drain = "0s" }
timeouts = { spawn = "1s", handshake = "2s", call_idle = "3s", call_max = "4s" }
idle = "10s"
log_lines = 7
log_files = 2
log_file_bytes = "1MiB"
type = "forge"
depends_on = ["db", "db"]
wants = ["cache"]
ports = { web = "auto", admin = 9900 }
limits = { memory = "1GiB", memory_warning = "800MiB", cpu = 1.5, pids = 64, open_files = 256, nice = -5 }

[servers.github.health]
probe = "http"
interval = "1s"
timeout = "2s"
failures = 4
successes = 5
unhealthy_after = "6s"
port = "web"
"#;

#[test]
fn where_a_server_on_the_network_is() {
    let config = toml(
        r#"[servers.a]
command = "a"
transport = "http"
ports = { web = "auto" }
[servers.b]
command = "b"
args = ["{port.mcp}"]
transport = "sse"
ports = { mcp = 9000, viewer = "auto" }
endpoint = { port = "mcp", path = "/events?x=1" }
headers = { Authorization = "Bearer ${env:TOKEN}" }
[servers.c]
url = "wss://example.org"
"#,
    )
    .unwrap();
    let [a, b, c] = &config.servers[..] else { panic!("{:?}", config.servers) };
    let at = |spec: &ServerSpec| spec.upstream.as_ref().unwrap().at.clone();
    let port = |name: &str, path: &str| UpstreamAt::Port { name: name.into(), path: path.into() };
    assert_eq!((a.transport, at(a)), (Transport::Http, port("web", "/mcp")));
    assert_eq!((b.transport, at(b)), (Transport::Sse, port("mcp", "/events?x=1")));
    assert_eq!(b.upstream.as_ref().unwrap().headers["authorization"], "Bearer s3cret");
    assert_eq!((c.transport, at(c)), (Transport::WebSocket, UpstreamAt::Url("wss://example.org".into())));
    assert!(!b.is_remote() && c.is_remote());
    assert!([a, b, c].iter().all(|spec| spec.health.probe == Probe::Mcp));
    assert_eq!(a.deadlines.stdin_grace, Duration::from_millis(200), "nothing but a farewell");
}

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
    assert_eq!(limits.session_instances, 8);
    let sessions = &config.sessions;
    assert_eq!((sessions.idle, sessions.stale), (5400 * SECOND, 7200 * SECOND));
    assert_eq!((sessions.max_age, sessions.grace), (172_800 * SECOND, Duration::ZERO));
    check_sections(&config);
    check_server(&config);
    check_lifecycle(&config);
    assert_eq!(warnings(&config), ["only one session at a time can have `github`"]);
}

fn check_sections(config: &Config) {
    let limits = &config.limits;
    assert_eq!((limits.per_type, limits.memory, limits.adhoc), (5, 1 << 30, 0));
    assert_eq!((limits.warning, limits.critical, limits.emergency), (0.5, 1.0, true));
    assert_eq!((limits.startup, limits.shutdown), (SECOND, 2 * SECOND));
    assert_eq!((limits.cleanups, limits.cleanup_time, limits.cleanup_tries), (6, 3 * SECOND, 7));
    assert_eq!(config.ports.range, PortRange::new(10_000, 10_009).unwrap());
    assert_eq!(config.ports.expand, PortRange::new(20_000, 20_000));
    assert_eq!(config.metrics.interval, SECOND);
    assert_eq!(config.alerts.webhook.as_deref(), Some("https://example.org/hook"));
    assert_eq!(config.alerts.command, ["notify", "me"]);
    assert_eq!((config.alerts.repeat, config.alerts.retries), (60 * SECOND, 0));
    assert_eq!((config.registry.check, config.reload.watch), (10 * SECOND, false));
}

fn check_lifecycle(config: &Config) {
    let [cache, db, github] = &config.servers[..] else { panic!("{:?}", config.servers) };
    assert_eq!((cache.transport, db.transport, github.transport), {
        (Transport::None, Transport::Socket, Transport::Stdio)
    });
    assert_eq!((&cache.health.probe, cache.type_name.as_str()), (&Probe::None, "cache"));
    assert_eq!(db.health.probe, Probe::Tcp { address: "127.0.0.1:{port.sql}".into() });
    assert_eq!(github.type_name, "forge");
    let names = |list: &[ostler_domain::ServerName]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!((names(&github.depends_on), names(&github.wants)), (vec!["db".into()], vec!["cache".into()]));
    let ports: Vec<_> = github.ports.iter().map(|(name, wish)| (name.as_str(), *wish)).collect();
    assert_eq!(ports, [("admin", PortWish::Fixed(9900)), ("web", PortWish::Auto)]);
    let health = HealthSpec {
        probe: Probe::Http { url: "http://127.0.0.1:{port.web}/".into() },
        interval: SECOND,
        timeout: 2 * SECOND,
        failures: 4,
        successes: 5,
        unhealthy_after: 6 * SECOND,
    };
    assert_eq!(github.health, health);
    let limits = ResourceLimits {
        memory: Some(1 << 30),
        memory_warning: 800 << 20,
        cpu: Some(1.5),
        pids: Some(64),
        open_files: Some(256),
        nice: Some(-5),
    };
    assert_eq!(github.limits, limits);
    assert_eq!((github.log_files, github.log_file_bytes), (2, 1 << 20));
}

#[test]
fn each_probe_takes_what_it_needs() {
    let probe = |health: &str| {
        let text =
            format!("[servers.a]\ncommand='a'\ncwd='/'\nports={{ p = 'auto' }}\nhealth = {{ {health} }}");
        only(toml(&text)).health.probe
    };
    assert_eq!(probe(""), Probe::Mcp);
    assert_eq!(probe("probe='none'"), Probe::None);
    assert_eq!(probe("probe='tcp', port='p'"), Probe::Tcp { address: "127.0.0.1:{port.p}".into() });
    assert_eq!(probe("probe='tcp', address='[::1]:80'"), Probe::Tcp { address: "[::1]:80".into() });
    let url = "http://localhost:{port.p}/${env:NONE:-up}";
    let expected = Probe::Http { url: "http://localhost:{port.p}/up".into() };
    assert_eq!(probe(&format!("probe='http', url='{url}'")), expected);
    let expected = Probe::Exec { command: vec!["check".into(), "{port.p}".into()] };
    assert_eq!(probe("probe='exec', command=['check', '{port.p}']"), expected);
    assert_eq!(probe("probe='heartbeat'"), Probe::Heartbeat(Heartbeat::Line));
    assert_eq!(probe("probe='heartbeat', file='run/beat'"), {
        Probe::Heartbeat(Heartbeat::File("/run/beat".into()))
    });
}

#[test]
fn what_another_probe_would_need_is_warned_of_where_the_server_says_it() {
    let text = "[defaults]\nhealth.command = ['x']\n[servers.a]\ncommand='a'\nhealth.url = 'http://x'";
    assert_eq!(warnings(&toml(text).unwrap()), ["`url` is not used: the probe of `a` is `mcp`"]);
}

#[test]
fn a_fixed_port_of_a_server_with_many_instances_is_warned_of() {
    let text = "[servers.a]\ncommand='a'\nscope='session'\nports={ p = 80, q = 'auto' }";
    assert_eq!(warnings(&toml(text).unwrap()), ["only one session at a time can have `a`"]);
}

#[test]
fn a_limit_on_memory_is_warned_of_in_time() {
    let warning = |limits: &str| {
        toml(&format!("[servers.a]\ncommand='a'\nlimits = {{ {limits} }}"))
            .map(|c| c.servers[0].limits.memory_warning)
    };
    assert_eq!(warning(""), Ok(500 << 20));
    assert_eq!(warning("memory = '400MiB'"), Ok(300 << 20));
    assert_eq!(warning("memory = '4GiB', memory_warning = '1GiB'"), Ok(1 << 30));
    let error = warning("memory = '1GiB', memory_warning = '1GiB'").unwrap_err();
    assert_eq!(error.errors[0].message, "`a` would be warned of only when it is over its limit");
}

#[test]
fn a_port_of_a_server_without_any_is_an_error_here_and_plain_text_in_another_tools_file() {
    let errors = toml("[servers.a]\ncommand='a'\nargs=['{port.x}']").unwrap_err().errors;
    assert_eq!(errors[0].message, "server `a` has no port `x`");
    let text = r#"{"mcpServers": {"a": {"command": "a", "args": ["{port.x}"]}}}"#;
    assert_eq!(only(json("/s/a.json", text)).launch.args, ["{port.x}"]);
}

#[test]
fn who_is_not_probed_may_have_any_times() {
    let text = "[servers.a]\ncommand='a'\nhealth = { probe = 'none', interval = '1h' }";
    assert_eq!(only(toml(text)).health.probe, Probe::None);
}

#[test]
fn ports_are_named_in_arguments_and_variables_and_stay_for_the_spawn() {
    let spec = only(toml(
        "[servers.a]\ncommand='a'\nargs=['--port={port.web}']\nenv={ U = 'x{port.web}${env:TOKEN}' }\nports={ web = 'auto' }",
    ));
    assert_eq!(spec.launch.args, ["--port={port.web}"]);
    assert_eq!(spec.launch.env["U"], "x{port.web}s3cret");
}

#[test]
fn servers_may_wait_for_those_that_stand_later_or_in_other_files() {
    let dir = tempfile::tempdir().unwrap();
    let toml = dir.path().join("a.toml");
    std::fs::write(&toml, "[servers.a]\ncommand='a'\ndepends_on=['c', 'b']\n[servers.b]\ncommand='b'")
        .unwrap();
    let json = dir.path().join("b.json");
    std::fs::write(&json, r#"{"mcpServers": {"c": {"command": "c", "ostler": {"wants": ["b"]}}}}"#).unwrap();
    let config = load(&[toml, json], &env).unwrap_or_else(|e| panic!("{e}"));
    let waits: Vec<_> = config.servers.iter().map(|s| (s.depends_on.len(), s.wants.len())).collect();
    assert_eq!(waits, [(2, 0), (0, 0), (0, 1)]);
}

fn check_server(config: &Config) {
    let server = &config.servers[2];
    assert_eq!(server.launch.command, "npx");
    assert_eq!(server.launch.args, ["-y", "@modelcontextprotocol/server-github", "public"]);
    assert_eq!(server.launch.env["GITHUB_TOKEN"], "s3cret");
    assert_eq!(server.launch.inherit_env, ["HTTPS_PROXY"]);
    assert_eq!(server.launch.cwd.as_deref(), Some(Path::new("/etc")));
    assert!(server.required);
    assert_eq!((server.scope, server.start), (Scope::Session, StartMode::OnDemand));
    assert_eq!((server.concurrency, server.fallback), (Concurrency::Serial, Fallback::Shared));
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
