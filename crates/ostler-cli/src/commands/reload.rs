//! `reload`: have the daemon read its configuration again, and say what changed.

use std::fmt::Write as _;

use ostler_api::{Client, ClientError, KeyChangeView, ReloadView};

use super::{print, print_json};
use crate::args::ReloadArgs;
use crate::exit::Failure;

/// The status with which a configuration that cannot be used is refused.
const UNUSABLE: u16 = 422;

pub(super) async fn reload(client: &Client, args: &ReloadArgs) -> Result<(), Failure> {
    let view = client.reload(args.dry_run).await.map_err(|error| match error {
        ClientError::Api { status: UNUSABLE, error, hint } => Failure::Usage { error, hint },
        error => error.into(),
    })?;
    if args.json {
        let json = serde_json::to_vec(&view).map_err(|error| Failure::Outcome {
            error: format!("the answer cannot be written: {error}"),
            hint: None,
        })?;
        return print_json(&json);
    }
    print(text(&view).as_bytes())
}

/// A line for each thing that changes, and one that counts what does not.
fn text(view: &ReloadView) -> String {
    let mut text = String::new();
    for key in &view.daemon {
        let later =
            if key.apply == "daemon-restart" { ": only when the daemon is started again" } else { "" };
        let _ = writeln!(text, "daemon: {}{later}", shown(key));
    }
    let mut unchanged = 0;
    for server in &view.servers {
        let what = match server.change.as_str() {
            "unchanged" => {
                unchanged += 1;
                continue;
            }
            "changed" => "changed while it runs",
            other => other,
        };
        let keys: Vec<String> = server.keys.iter().map(shown).collect();
        let keys = if keys.is_empty() { String::new() } else { format!(": {}", keys.join(", ")) };
        let _ = writeln!(text, "server {}: {what}{keys}", server.name);
    }
    for name in &view.ending {
        let _ = writeln!(text, "server {name}: still ending; what comes in its place starts after that");
    }
    let servers = if unchanged == 1 { "server" } else { "servers" };
    let dry = if view.dry_run { " (nothing was done)" } else { "" };
    let _ = writeln!(text, "{unchanged} {servers} unchanged{dry}");
    text
}

fn shown(key: &KeyChangeView) -> String {
    match (&key.old, &key.new) {
        (Some(old), Some(new)) => format!("{} {old} -> {new}", key.key),
        _ => key.key.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ostler_api::ServerReloadView;

    #[test]
    fn a_line_for_each_change() {
        let key = |key: &str, values: Option<(&str, &str)>, apply: &str| KeyChangeView {
            key: key.to_owned(),
            old: values.map(|(old, _)| old.to_owned()),
            new: values.map(|(_, new)| new.to_owned()),
            apply: apply.to_owned(),
        };
        let server = |name: &str, change: &str, keys: Vec<KeyChangeView>| ServerReloadView {
            name: name.to_owned(),
            change: change.to_owned(),
            keys,
        };
        let idle = || key("idle", Some(("1s", "2s")), "live");
        let view = ReloadView {
            dry_run: true,
            daemon: vec![
                key("limits.processes", Some(("15", "20")), "live"),
                key("gateway.listen", Some(("127.0.0.1:1", "127.0.0.1:2")), "daemon-restart"),
            ],
            servers: vec![
                server("keeps", "unchanged", vec![]),
                server("comes", "added", vec![]),
                server("tool", "replaced", vec![key("args", None, "replace"), idle()]),
                server("soft", "changed", vec![idle()]),
                server("goes", "removed", vec![]),
            ],
            ending: vec!["goes".to_owned()],
        };
        insta::assert_snapshot!(text(&view));
    }
}
