//! No text makes the loader panic, and no error fails to render.

use ostler_config::{Format, json_schema, load_str};
use proptest::prelude::*;

use crate::env;

const TOML: &str = r#"[gateway]
listen = "127.0.0.1:0"
max_body = "1MiB"
[defaults]
scope = "shared"
[servers.gïthub]
command = "${env:HOME}/npx"
args = ["-y", "ä${workspaceFolder}"]
env = { A = "${env:NONE:-b}" }
restart = { max = 5, backoff = { min = "1s", jitter = 0.2 } }
stop.grace = "10s"
[servers.db]
command = "db"
ports = { sql = "auto", web = 80 }
args = ["{port.sql}"]
depends_on = ["cache"]
health = { probe = "tcp", port = "sql", unhealthy_after = "1m" }
limits = { nice = -1, cpu = 0.5, memory = "1GiB" }
[servers.cache]
command = "cache"
transport = "none"
[ports]
range = "8001-9000"
"#;

const JSON: &str = r#"{ // ä
"mcpServers": {"a": {"command": "${HOME}/a", "args": ["${input:x}", "ö"], "env": {"A": 1, "B": null},
  "ostler": {"scope": "session", "stop": {"grace": "1s"}}, "disabled": false}},
"servers": {"b b": {"type": "stdio", "command": "b",}, "c": {"url": "http://x"}},
"projects": {"/p": {"mcpServers": {"d": {"command": {"path": "d", "args": []}}}}}, }"#;

/// Loads a text both ways and renders what comes of it. Every problem must lie within the text.
fn check(text: &str) -> Result<(), TestCaseError> {
    for format in [Format::Toml, Format::Json] {
        let found = match load_str("/s/.vscode/x", text, format, &env) {
            Ok(config) => config.warnings,
            Err(errors) => {
                prop_assert!(!errors.errors.is_empty());
                prop_assert!(!errors.render(false).is_empty());
                errors.errors
            }
        };
        for problem in found {
            prop_assert!(problem.line <= text.matches('\n').count() + 1, "{problem:?}");
            prop_assert!(!problem.render(true).is_empty());
        }
    }
    Ok(())
}

/// A valid text with a few stretches cut out, doubled or overwritten.
fn mutated(original: &'static str) -> impl Strategy<Value = String> {
    let edit = (any::<prop::sample::Index>(), 0_usize..12, r#"[\[\]{}"'$:,.=\\#/a-z0-9 \nä]{0,4}"#);
    prop::collection::vec(edit, 1..6).prop_map(move |edits| {
        let mut text: Vec<char> = original.chars().collect();
        for (index, length, with) in edits {
            let from = index.index(text.len() + 1);
            let to = (from + length).min(text.len());
            text.splice(from..to, with.chars());
        }
        text.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text(text in any::<String>()) {
        check(&text)?;
    }

    #[test]
    fn text_of_the_right_characters(text in r#"([\[\]{}"'$:,.=\\#/\n ]|command|servers|gateway|\$\{env:|ä|1){0,80}"#) {
        check(&text)?;
    }

    #[test]
    fn mutated_toml(text in mutated(TOML)) {
        check(&text)?;
    }

    #[test]
    fn mutated_json(text in mutated(JSON)) {
        check(&text)?;
    }

    /// Any value of any type for any key: an error or a configuration, never a panic.
    #[test]
    fn any_value_for_any_key(
        key in prop::sample::select(documented_keys()),
        value in prop::sample::select(vec![
            "1", "-1", "1.5", "nan", "inf", "9223372036854775807", "true", "''", "'1s'", "'0s'", "'9e9'", "[]",
            "[[]]", "['a', 'b']", "{}", "{ a = 'b' }", "{ a = {} }", "1979-05-27", "'${env:A:-b}'", "'${'", "\"\\u0000\"",
        ]),
    ) {
        check(&format!("{} = {value}\n", key.replace("NAME", "x")))?;
    }
}

/// Every key of the schema, by path.
fn documented_keys() -> Vec<String> {
    crate::documentation::keys(&json_schema()).into_iter().map(|k| k.path).collect()
}

#[test]
fn the_originals_are_valid_but_for_what_is_meant_to_be_wrong() {
    let toml = load_str("/s/x", TOML, Format::Toml, &env).unwrap_err();
    assert_eq!(toml.errors.len(), 1, "the name with a diaeresis only: {toml}");
    let json = load_str("/s/x", JSON, Format::Json, &env).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(json.servers.len(), 3, "{:?}", json.warnings);
}

#[test]
fn deep_nesting_is_an_error() {
    for text in ["[".repeat(100_000), "{\"a\":".repeat(100_000), format!("a = {}", "[".repeat(100_000))] {
        for format in [Format::Toml, Format::Json] {
            assert!(load_str("/s/x", &text, format, &env).is_err());
        }
    }
}
