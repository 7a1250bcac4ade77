//! Errors as a person reads them.

use ostler_config::{Format, MAX_RENDERED, Severity, load};

use crate::{env, json, toml};

/// The rendered errors of a TOML text.
fn refused(text: &str) -> String {
    toml(text).unwrap_err().render(false)
}

/// The rendered errors of a JSON text.
fn refused_json(text: &str) -> String {
    json("/s/mcp.json", text).unwrap_err().render(false)
}

#[test]
fn unknown_keys() {
    insta::assert_snapshot!(refused(
        r#"[gatway]
[gateway]
listn = "127.0.0.1:1"
[servers.a]
command = "a"
grace = "10s"
xyz = 1
restart = { polcy = "never" }
"#
    ));
}

#[test]
fn keys_of_later_releases() {
    insta::assert_snapshot!(refused(
        r#"[servers.a]
command = "a"
[defaults]
sandbox = {}
"#
    ));
}

#[test]
fn pools() {
    insta::assert_snapshot!(refused(
        r#"[servers.a]
command = "a"
pool = {}
[servers.b]
url = "http://127.0.0.1:1/mcp"
scope = "session"
pool = { spare = 2 }
[servers.c]
command = "c"
scope = "session"
pool = { spare = 9, max = 8 }
[servers.d]
command = "d"
scope = "session"
pool = { on_return = "command" }
[servers.e]
command = "e"
scope = "session"
pool = { reset = ["clean", "{port.x}"], on_return = "command" }
"#
    ));
}

#[test]
fn replicas() {
    insta::assert_snapshot!(refused(
        r#"[servers.a]
command = "a"
scope = "session"
replicas = {}
[servers.b]
url = "http://127.0.0.1:1/mcp"
scope = "shared"
replicas = { max = 2 }
[servers.c]
command = "c"
scope = "shared"
replicas = { min = 9, max = 8 }
[servers.d]
command = "d"
scope = "shared"
replicas = { up = 0.1 }
[servers.e]
command = "e"
scope = "shared"
transport = "none"
replicas = {}
"#
    ));
}

#[test]
fn servers_on_the_network() {
    insta::assert_snapshot!(refused(
        r#"[servers.a]
command = "a"
transport = "http"
[servers.b]
command = "b"
transport = "sse"
ports = { one = "auto", two = "auto" }
[servers.c]
command = "c"
transport = "http"
ports = { web = "auto" }
endpoint = { port = "wbe", path = "mcp" }
[servers.d]
url = "ftp://example.org"
[servers.e]
url = "https://me:secret@example.org/mcp"
headers = { "Not a name" = "x", Accept = "x", X = "a\nb", y = "1", Y = "2" }
[servers.f]
url = "http://example.org/mcp"
command = "f"
[servers.g]
command = "g"
headers = { A = "x" }
[servers.h]
url = "http://127.0.0.1:7320/mcp/a"
[servers.i]
url = "http://example.org/"
transport = "websocket"
[servers.j]
url = "http://example.org/"
transport = "stdio"
"#
    ));
}

#[test]
fn servers_that_wait_for_each_other() {
    insta::assert_snapshot!(refused(
        r#"[servers.web]
command = "web"
depends_on = ["queue"]
[servers.queue]
command = "queue"
wants = ["auth"]
[servers.auth]
command = "auth"
depends_on = [
  "db",
  "web",
]
[servers.db]
command = "db"
"#
    ));
}

#[test]
fn a_server_that_waits_for_itself() {
    let errors = toml("[servers.a]\ncommand = 'a'\nwants = ['a']").unwrap_err().errors;
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(errors[0].message, "servers wait for each other: a -> a");
    assert_eq!((errors[0].line, errors[0].column), (3, 10));
}

#[test]
fn servers_that_nobody_can_wait_for() {
    insta::assert_snapshot!(refused(
        r#"[defaults]
scope = "session"
[servers.a]
command = "a"
depends_on = ["databse", "c d", "off", "each"]
[servers.database]
command = "d"
[servers.off]
command = "o"
enabled = false
[servers.each]
command = "e"
"#
    ));
}

#[test]
fn a_dependency_on_a_server_that_is_wrong_itself_is_no_second_error() {
    let text = "[servers.a]\ncommand = 'a'\ndepends_on = ['b']\n[servers.b]\ncommand = ''";
    assert_eq!(toml(text).unwrap_err().errors.len(), 1);
}

#[test]
fn ports_that_cannot_be() {
    insta::assert_snapshot!(refused(
        r#"[ports]
range = "8001"
expand = "9000-8000"
[servers.a]
command = "a"
args = ["{port.vewer}", "${env:HOME}{port.x}"]
env = { P = "{port.nothing-like-it}" }
ports = { viewer = "auto", Web = 1, a = 0, b = "any", c = 70000, d = 5000 }
health = { probe = "tcp", port = "viewr" }
[servers.b]
command = "b"
ports = { e = 5000 }
"#
    ));
}

#[test]
fn figures_that_do_not_go_together() {
    insta::assert_snapshot!(refused(
        r#"[limits]
warning = 0.9
[ports]
expand = "8500-9500"
[alerts]
webhook = "example.org/hook"
command = [""]
[servers.a]
command = "a"
type = "a b"
limits = { cpu = 0, nice = -21, pids = 0 }
health = { interval = "2m", timeout = "2m" }
"#
    ));
}

#[test]
fn probes_that_cannot_work() {
    insta::assert_snapshot!(refused(
        r#"[servers.a]
command = "a"
health.probe = "tcp"
[servers.b]
command = "b"
health = { probe = "http", url = "https://x" }
[servers.c]
command = "c"
health.probe = "exec"
[servers.d]
command = "d"
transport = "none"
health.probe = "mcp"
[servers.e]
command = "e"
health = { probe = "tcp", address = "localhost" }
[servers.f]
command = "f"
health.probe = "ping"
"#
    ));
}

#[test]
fn wrong_values() {
    insta::assert_snapshot!(refused(
        r#"[gateway]
listen = "localhost:7320"
allow_remote = "yes"
max_body = 64
header_timeout = 10
body_timeout = "10sec"
write_timeout = "0s"
keepalive = "soon"
replay_bytes = "1mib"
replay_events = 0
allowed_hosts = "example.org"
[servers.a]
command = "a"
scope = "sesion"
args = ["a", 1]
env = { A = 1 }
restart.backoff.jitter = 1.5
"#
    ));
}

#[test]
fn values_that_do_not_go_together() {
    insta::assert_snapshot!(refused(
        r#"[gateway]
listen = "0.0.0.0:7320"
max_body = "1GiB"
allowed_hosts = ["https://example.org"]
allowed_origins = ["example.org", "*"]
[defaults]
restart.backoff.min = "1m"
[servers.a]
command = ""
[servers.b]
args = []
[servers."c d"]
command = "c"
[servers.ostler]
command = "d"
"#
    ));
}

#[test]
fn variables_without_a_value() {
    insta::assert_snapshot!(refused(
        r#"[servers.a]
command = "a"
args = ["--token", "x${env:NO_SUCH}y", "${HOME}", "${input:key}", "${env:A"]
env = { B = "\u0041${env:NO_SUCH}", "C=D" = "" }
"#
    ));
}

#[test]
fn text_that_is_not_toml_or_json() {
    let toml = refused("[servers.a]\ncommand = npx\n");
    let json = refused_json("{\"mcpServers\": {\n  \"a\": {\"command\" \"npx\"}\n}}");
    insta::assert_snapshot!(format!("{toml}\n\n{json}"));
}

#[test]
fn json_without_servers_and_with_wrong_ones() {
    let none = refused_json("{\n  \"mcpServer\": {}\n}");
    let wrong = refused_json(
        r#"{"mcpServers": {
  "a": {"command": 1, "comand": "a"},
  "b": "npx",
  "c": {"args": []},
  "d": {"command": "d", "ostler": {"scop": "shared"}},
  "e": {"command": "e"},
  "e": {"command": "f"}
}}"#,
    );
    insta::assert_snapshot!(format!("{none}\n\n{wrong}"));
}

#[test]
fn a_server_given_twice_names_both_places() {
    let dir = tempfile::tempdir().unwrap();
    let one = dir.path().join("one.toml");
    let two = dir.path().join("two.json");
    std::fs::write(&one, "[gateway]\nkeepalive = '1s'\n[servers.db]\ncommand = 'a'\n").unwrap();
    std::fs::write(&two, r#"{"mcpServers": {"db": {"command": "b"}}}"#).unwrap();
    let three = dir.path().join("three.toml");
    std::fs::write(&three, "gateway.keepalive = '2s'\n").unwrap();
    let text = load(&[one, two, three], &env).unwrap_err().render(false);
    insta::assert_snapshot!(text.replace(&format!("{}/", dir.path().display()), ""));
}

#[test]
fn warnings_of_another_tools_file() {
    let config = json(
        "/s/mcp.json",
        r#"{"mcpServers": {
  "a": {"url": "https://example.org/mcp"},
  "b": {"command": "b", "args": ["${input:key}"]},
  "c": {"command": "c", "arguments": [], "timeout": 60},
  "d d": {"command": "npx -y d", "args": []}
}}"#,
    )
    .unwrap();
    assert!(config.warnings.iter().all(|w| w.severity == Severity::Warning));
    let texts: Vec<_> = config.warnings.iter().map(|w| w.render(false)).collect();
    insta::assert_snapshot!(texts.join("\n\n"));
}

#[test]
fn an_error_knows_its_place_and_what_was_meant() {
    let errors = toml("[gateway]\n  listn = '127.0.0.1:1'").unwrap_err().errors;
    let [error] = &errors[..] else { panic!("{errors:?}") };
    assert_eq!((error.file.as_str(), error.line, error.column), ("/etc/ostler.toml", 2, 3));
    assert_eq!(error.nearest.as_deref(), Some("listen"));
    assert!(error.expected.as_ref().is_some_and(|e| e.contains("`listen`")), "{error:?}");
}

#[test]
fn colour_only_when_asked() {
    let errors = toml("x = 1").unwrap_err();
    assert!(!errors.render(false).contains('\u{1b}'));
    assert!(errors.render(true).contains('\u{1b}'));
}

#[test]
fn a_files_control_characters_do_not_reach_the_terminal() {
    let errors = toml("[servers.\"\\u001b[31mred\"]\n\"\\u001b]0;x\\u0007\" = '${env:\\u001b}'").unwrap_err();
    assert!(!errors.render(false).contains('\u{1b}'), "{:?}", errors.render(false));
}

#[test]
fn a_long_line_is_shown_near_its_mark_only() {
    let padding = "\"x\", ".repeat(50_000);
    let text = format!(
        "{{\"mcpServers\": {{\"a\": {{\"command\": \"a\", \"args\": [{padding}1, {padding}\"x\"]}}}}}}"
    );
    let errors = json("/s/mcp.json", &text).unwrap_err();
    let rendered = errors.render(false);
    assert!(rendered.len() < 2000, "{} bytes", rendered.len());
    let column = text.find(", 1, ").unwrap() + 3;
    assert!(rendered.contains(&format!("/s/mcp.json:1:{column}")), "{rendered}");
}

#[test]
fn many_errors_are_counted_not_listed() {
    let text: String = (0..MAX_RENDERED + 7).map(|i| format!("unknown{i} = 1\n")).collect();
    let errors = ostler_config::load_str("a.toml", &text, Format::Toml, &env).unwrap_err();
    assert_eq!(errors.errors.len(), MAX_RENDERED + 7);
    assert!(errors.render(false).ends_with("and 7 more problems"));
}

#[test]
fn a_file_of_nothing_but_errors_is_given_up_on() {
    use ostler_config::MAX_FOUND;
    let keys: String = (0..200_000).map(|i| format!("unknown{i} = 1\n")).collect();
    let entries: Vec<_> =
        (0..20_000).map(|i| format!("\"s{i}\": {{\"command\": \"a\", \"odd\": 1}}")).collect();
    let servers = format!("{{\"mcpServers\": {{{}}}}}", entries.join(",\n"));
    for errors in [toml(&keys).unwrap_err(), json("/s/mcp.json", &servers).unwrap_err()] {
        let found = errors.errors.len() + errors.warnings.len();
        assert!(found <= MAX_FOUND + 10, "{found} problems were looked for");
        let last = errors.errors.iter().any(|e| e.message.ends_with("the rest was not looked at"));
        assert!(last, "{}", errors.render(false));
    }
}
