//! The JSON files of other MCP clients, as their users have them.

use std::collections::BTreeMap;
use std::path::Path;

use ostler_config::ConfigErrors;
use ostler_domain::{Concurrency, Scope, Transport, UpstreamAt};

use crate::{env, json, only, warnings};

#[test]
fn claude_desktop() {
    let config = json(
        "/home/ann/.config/Claude/claude_desktop_config.json",
        r#"{
  "globalShortcut": "Ctrl+Space",
  "mcpServers": {
    "filesystem": {
      "command": "npx",
      "args": ["-y", "@modelcontextprotocol/server-filesystem", "/home/ann/Desktop"]
    },
    "github": {
      "command": "docker",
      "args": ["run", "-i", "--rm", "-e", "GITHUB_TOKEN", "ghcr.io/github/github-mcp-server"],
      "env": { "GITHUB_TOKEN": "ghp_x" }
    }
  }
}"#,
    )
    .unwrap();
    let [filesystem, github] = &config.servers[..] else { panic!("{:?}", config.servers) };
    assert_eq!(filesystem.name.as_str(), "filesystem");
    assert_eq!(filesystem.launch.args[2], "/home/ann/Desktop");
    assert_eq!(filesystem.launch.cwd, None, "a file for the whole user names no project");
    assert_eq!(github.launch.env["GITHUB_TOKEN"], "ghp_x");
    assert_eq!(warnings(&config), [""; 0]);
}

#[test]
fn cursor_and_cline_with_their_own_keys() {
    let config = json(
        "/src/shop/.cursor/mcp.json",
        r#"{
  // Cursor tolerates comments
  "mcpServers": {
    "db": {
      "type": "stdio",
      "command": "${workspaceFolder}/bin/db-mcp",
      "args": ["--port", "5432",],
      "env": { "PORT": 5432, "VERBOSE": true, "UNSET": null, "TOKEN": "${env:TOKEN}" },
      "disabled": false,
      "alwaysAllow": ["query"],
      "autoApprove": [],
      "timeout": 60,
    },
    "off": { "command": "off", "args": ["${env:NONE}"], "disabled": true },
    "remote": { "url": "https://mcp.example.org/mcp", "headers": { "Authorization": "Bearer ${env:TOKEN}", "X-Retry": 3 } },
    "circle": { "url": "http://localhost:7320/mcp/db" },
  },
}"#,
    )
    .unwrap();
    let [db, remote] = &config.servers[..] else { panic!("{:?}", config.servers) };
    let upstream = remote.upstream.as_ref().unwrap();
    assert_eq!(remote.transport, Transport::Http);
    assert_eq!(upstream.at, UpstreamAt::Url("https://mcp.example.org/mcp".into()));
    assert_eq!(
        upstream.headers,
        BTreeMap::from([
            ("authorization".to_owned(), "Bearer s3cret".to_owned()),
            ("x-retry".to_owned(), "3".to_owned()),
        ])
    );
    assert!(remote.is_remote() && remote.launch.command.is_empty());
    assert_eq!(db.launch.command, "/src/shop/bin/db-mcp");
    let env: Vec<_> = db.launch.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(env, [("PORT", "5432"), ("TOKEN", "s3cret"), ("VERBOSE", "true")]);
    assert_eq!(db.launch.cwd.as_deref(), Some(Path::new("/src/shop")));
    assert_eq!(
        warnings(&config),
        ["`timeout` of server `db` is not used", "server `circle` is skipped: it is Ostler itself"]
    );
}

#[test]
fn the_users_own_cursor_file_means_no_project() {
    let spec = only(json("/home/ann/.cursor/mcp.json", r#"{"mcpServers": {"a": {"command": "a"}}}"#));
    assert_eq!(spec.launch.cwd, None);
}

#[test]
fn claude_code_project_file() {
    let config = json(
        "/src/shop/.mcp.json",
        r#"{"mcpServers": {
            "shop": {"type": "stdio", "command": "./tools/mcp", "args": ["${TOKEN}", "${NONE:-x}", "${NONE}"], "env": {}},
            "sentry": {"type": "http", "url": "https://mcp.sentry.dev/mcp"},
            "old": {"type": "sse", "url": "https://example.org/sse"},
            "fast": {"type": "ws", "url": "wss://example.org/mcp", "command": "not-this"},
            "none": {"type": "http"},
            "odd": {"type": "carrier-pigeon", "url": "https://example.org/"}
        }}"#,
    )
    .unwrap();
    let [shop, sentry, old, fast] = &config.servers[..] else { panic!("{:?}", config.servers) };
    assert_eq!((sentry.transport, old.transport, fast.transport), {
        (Transport::Http, Transport::Sse, Transport::WebSocket)
    });
    assert!(sentry.is_remote() && old.is_remote() && fast.is_remote());
    assert_eq!(shop.launch.command, "/src/shop/tools/mcp");
    assert_eq!(shop.launch.args, ["s3cret", "x", "${NONE}"]);
    assert_eq!(
        warnings(&config),
        [
            "`${NONE}` stays as it is",
            "server `none` is skipped: it has no address",
            "server `odd` is skipped: `type` is `carrier-pigeon`"
        ]
    );
}

#[test]
fn claude_code_user_file_with_projects() {
    let config = json(
        "/home/ann/.claude.json",
        r#"{
            "numStartups": 12,
            "mcpServers": {"memory": {"command": "npx", "args": ["-y", "@modelcontextprotocol/server-memory"]}},
            "projects": {
                "/src/shop": {"history": [{"display": "hi"}], "mcpServers": {"db": {"command": "db", "cwd": "sub"}}},
                "/src/blog": {"mcpServers": {"db": {"command": "other"}}},
                "/src/none": {"allowedTools": []}
            }
        }"#,
    )
    .unwrap();
    let [memory, db] = &config.servers[..] else { panic!("{:?}", config.servers) };
    assert_eq!((memory.name.as_str(), memory.launch.cwd.as_deref()), ("memory", None));
    assert_eq!(db.launch.cwd.as_deref(), Some(Path::new("/src/shop/sub")));
    assert_eq!(
        warnings(&config),
        [
            "the working directory `/src/shop/sub` does not exist",
            "server `db` of project `/src/blog` is skipped"
        ]
    );
}

#[test]
fn vs_code_workspace_file() {
    let config = json(
        "/src/shop/.vscode/mcp.json",
        r#"{
  "inputs": [{ "type": "promptString", "id": "key", "description": "API key", "password": true }],
  "servers": {
    "playwright": { "type": "stdio", "command": "npx", "args": ["-y", "@microsoft/mcp-server-playwright"] },
    "perplexity": { "command": "npx", "args": ["server-perplexity"], "env": { "KEY": "${input:key}" } },
    "fetch": { "command": "uvx", "args": ["mcp-server-fetch"], "cwd": "${workspaceFolder}", "envFile": ".env" },
    "github": { "type": "http", "url": "https://api.githubcopilot.com/mcp" }
  }
}"#,
    )
    .unwrap();
    let names: Vec<_> = config.servers.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["playwright", "fetch", "github"]);
    assert!(
        config
            .servers
            .iter()
            .all(|s| s.is_remote() || s.launch.cwd.as_deref() == Some(Path::new("/src/shop")))
    );
    assert_eq!(
        warnings(&config),
        [
            "server `perplexity` is skipped: it needs `${input:key}`",
            "the working directory `/src/shop` does not exist",
            "`envFile` of server `fetch` is not used"
        ]
    );
}

#[test]
fn vs_code_settings_and_zed() {
    let text = r#"{"editor.fontSize": 12, "mcp": {"servers": {"a": {"command": "a"}}}}"#;
    assert_eq!(only(json("/s/settings.json", text)).launch.command, "a");
    let text = r#"{"context_servers": {
        "a": {"source": "custom", "command": {"path": "a", "args": ["x"], "env": {"B": "c"}}},
        "b": {"source": "extension", "enabled": true, "settings": {}}}}"#;
    let spec = only(json("/s/settings.json", text));
    assert_eq!((spec.launch.command.as_str(), &spec.launch.args[..]), ("a", &["x".to_owned()][..]));
    assert_eq!(spec.launch.env["B"], "c");
}

#[test]
fn a_list_of_entries_alone() {
    assert_eq!(only(json("/s/.mcp.json", r#"{"a": {"command": "a"}}"#)).name.as_str(), "a");
}

#[test]
fn ostlers_own_keys_in_an_entry() {
    let text =
        r#"{"mcpServers": {"a": {"command": "a", "ostler": {"scope": "session", "concurrency": "serial"}}}}"#;
    let spec = only(json("/s/a.json", text));
    assert_eq!((spec.scope, spec.concurrency), (Scope::Session, Concurrency::Serial));
}

#[test]
fn names_that_ostler_cannot_use_are_changed_and_its_own_are_left_out() {
    let text = r#"{"mcpServers": {
        "My Server (dev)": {"command": "a"},
        "@acme/tool": {"command": "b"},
        "ostler": {"command": "c"},
        "via": {"command": "/usr/bin/ostler", "args": ["connect", "x"]}}}"#;
    let config = json("/s/a.json", text).unwrap();
    let names: Vec<_> = config.servers.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["My-Server--dev", "acme-tool"]);
    assert_eq!(
        warnings(&config),
        [
            "server `My Server (dev)` is called `My-Server--dev`",
            "server `@acme/tool` is called `acme-tool`",
            "server `ostler` is skipped: the name is reserved for Ostler's own MCP server",
            "server `via` is skipped: it is Ostler itself"
        ]
    );
}

#[test]
fn a_byte_order_mark_and_an_unknown_extension_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("servers");
    std::fs::write(&path, "\u{feff}{\"mcpServers\": {\"a\": {\"command\": \"a\"}}}").unwrap();
    let config: Result<_, ConfigErrors> = ostler_config::load(&[path], &env);
    assert_eq!(only(config).name.as_str(), "a");
}
