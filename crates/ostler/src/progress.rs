//! What `ostler up` prints: each server as it starts, then where it is to be found.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use ostler_domain::instance::State;
use ostler_supervisor::{InstanceHandle, Server, Supervisor};
use tokio::time::Instant;

use crate::config::say;

/// Follows the first start of every eager server until each serves or has failed for now, then prints the table
/// of endpoints. Bounded by the servers' own deadlines.
pub(crate) async fn follow(supervisor: &Supervisor, base: &str) {
    let began = Instant::now();
    let mut waits = Vec::new();
    for server in supervisor.servers() {
        for handle in server.instances() {
            say(&format!("starting  {}\n", server.spec.name));
            waits.push(follow_one(Arc::clone(server), handle, began));
        }
    }
    futures_util::future::join_all(waits).await;
    say(&table(supervisor, base));
}

async fn follow_one(server: Arc<Server>, handle: Arc<InstanceHandle>, began: Instant) {
    let patience = server.patience() + Duration::from_secs(1);
    let settled = handle.until(|snapshot| {
        snapshot.state.serves()
            || matches!(snapshot.state, State::Backoff { .. } | State::Failed { .. } | State::Broken { .. })
    });
    let name = &server.spec.name;
    let line = match tokio::time::timeout(patience, settled).await {
        Ok(snapshot) if snapshot.state.serves() => {
            let era = handle.era().map_or("", |era| era.as_str());
            format!("ready     {name} ({era}, {:.1} s)\n", began.elapsed().as_secs_f64())
        }
        Ok(snapshot) => {
            let state = snapshot.state.as_str();
            let reason = snapshot.reason().unwrap_or_default();
            format!("{state:<9} {name}: {reason}\n          `ostler logs {name}` shows what it wrote\n")
        }
        Err(_) => format!("slow      {name}: still starting after {} s\n", patience.as_secs()),
    };
    say(&line);
}

fn table(supervisor: &Supervisor, base: &str) -> String {
    let rows: Vec<(String, String, String)> = supervisor
        .servers()
        .iter()
        .map(|server| {
            let instances = server.instances();
            let state = instances.first().map_or("on demand", |handle| handle.snapshot().state.as_str());
            (server.spec.name.to_string(), state.to_owned(), server.spec.scope.as_str().to_owned())
        })
        .collect();
    let width = |column: fn(&(String, String, String)) -> &String, title: &str| {
        rows.iter().map(|row| column(row).len()).chain([title.len()]).max().unwrap_or(0)
    };
    let widths = HashMap::from([
        ("server", width(|row| &row.0, "SERVER")),
        ("state", width(|row| &row.1, "STATE")),
        ("scope", width(|row| &row.2, "SCOPE")),
    ]);
    let (server_w, state_w, scope_w) = (widths["server"], widths["state"], widths["scope"]);
    let mut text =
        format!("\n{:<server_w$}  {:<state_w$}  {:<scope_w$}  ENDPOINT\n", "SERVER", "STATE", "SCOPE");
    for (name, state, scope) in &rows {
        let _ = writeln!(text, "{name:<server_w$}  {state:<state_w$}  {scope:<scope_w$}  {base}/mcp/{name}");
    }
    text.push_str("\nstdio clients: `ostler connect SERVER`    stop: Ctrl-C or `ostler down`\n");
    text
}
