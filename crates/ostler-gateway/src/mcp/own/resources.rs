//! What can be read of Ostler: the same as some of its tools say, at addresses.

use serde_json::{Value, json};

use super::desk::Desk;
use super::tools;

/// What legacy revisions answer for a resource that is not there ("Resources", "Error Handling").
pub(super) const NOT_FOUND: i64 = -32002;

const JSON: &str = "application/json";

/// Resources: address, name, and what it holds.
const LISTED: [(&str, &str, &str); 3] = [
    ("ostler://sessions", "sessions", "All sessions, as `get_session_stats` shows them."),
    ("ostler://processes", "processes", "All instances, as `list_processes` shows them."),
    ("ostler://pools", "pools", "All pools, as `get_pool_stats` shows them."),
];

/// The same for patterns of addresses.
const TEMPLATES: [(&str, &str, &str); 2] = [
    (
        "ostler://processes/{name}",
        "process",
        "A server, a process started by hand, or an instance, as `get_process_status` shows it.",
    ),
    (
        "ostler://processes/{name}/logs",
        "process-logs",
        "The newest lines of its log, as `get_process_logs` shows them.",
    ),
];

/// What `resources/list` says.
pub(super) fn listed() -> Value {
    let shown = |(uri, name, about): &(&str, &str, &str)| json!({"uri": uri, "name": name, "description": about, "mimeType": JSON});
    LISTED.iter().map(shown).collect()
}

/// What `resources/templates/list` says.
pub(super) fn templates() -> Value {
    let shown = |(uri, name, about): &(&str, &str, &str)| json!({"uriTemplate": uri, "name": name, "description": about, "mimeType": JSON});
    TEMPLATES.iter().map(shown).collect()
}

/// The tool that says what is at an address, and with which arguments.
fn tool_of(uri: &str) -> Option<(&'static str, Value)> {
    let path: Vec<&str> = uri.strip_prefix("ostler://")?.split('/').collect();
    let named = |name: &str| {
        let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
        json!({"name": name})
    };
    match path[..] {
        ["sessions"] => Some(("get_session_stats", json!({}))),
        ["processes"] => Some(("list_processes", json!({}))),
        ["pools"] => Some(("get_pool_stats", json!({}))),
        ["processes", name] => Some(("get_process_status", named(name))),
        ["processes", name, "logs"] => Some(("get_process_logs", named(name))),
        _ => None,
    }
}

/// What is at an address, as `resources/read` says it.
///
/// # Errors
/// Why there is nothing.
pub(super) async fn read(desk: &Desk, uri: &str) -> Result<Value, String> {
    let found = tool_of(uri).and_then(|(name, arguments)| Some((tools::find(name)?, arguments)));
    let Some((tool, arguments)) = found else {
        return Err(format!(
            "no resource `{uri}`; `resources/list` and `resources/templates/list` say which there are"
        ));
    };
    let text = desk.call(tool, arguments.to_string().as_bytes(), Box::new(|_| {})).await?;
    Ok(json!({"uri": uri, "mimeType": JSON, "text": text}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_has_its_tool_and_no_other_has() {
        for (uri, ..) in LISTED.iter().chain(&TEMPLATES) {
            let (name, _) = tool_of(uri).unwrap_or_else(|| panic!("{uri}"));
            assert!(tools::find(name).is_some(), "{uri}: {name}");
        }
        let (_, arguments) = tool_of("ostler://processes/a%2Fb/logs").expect("a log");
        assert_eq!(arguments["name"], "a/b");
        for uri in ["ostler://", "ostler://processes/a/b", "http://processes", "ostler://sessions/"] {
            assert!(tool_of(uri).is_none(), "{uri}");
        }
    }
}
