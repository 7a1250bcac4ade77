//! What `ostler up` prints: each server as it starts, then where it is to be found.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use ostler_supervisor::server::Standing;
use ostler_supervisor::{Server, Supervisor};
use tokio::time::{Instant, timeout};

use crate::config::say;

/// Follows the first start of every eager server until each serves or has failed for now, then prints the table
/// of endpoints. Bounded by the servers' own deadlines and the start-up time.
pub(crate) async fn follow(supervisor: &Supervisor, base: &str) {
    let began = Instant::now();
    let patience = supervisor.config().limits.startup;
    let servers = supervisor.servers();
    let eager = servers.all().iter().filter(|server| server.spec.is_eager());
    futures_util::future::join_all(eager.map(|server| follow_one(server, patience, began))).await;
    say(&table(supervisor, base));
}

async fn follow_one(server: &Server, patience: Duration, began: Instant) {
    let name = &server.spec.name;
    let mut standings = server.watch();
    let held = timeout(patience, standings.wait_for(|standing| *standing != Standing::Idle)).await.is_err();
    if held {
        say(&format!("held      {name}: it waits for what it depends on (`ostler events` says more)\n"));
        return;
    }
    say(&format!("starting  {name}\n"));
    let patience = server.patience() + Duration::from_secs(1);
    let settled = timeout(patience, standings.wait_for(|standing| *standing != Standing::Coming)).await;
    let line = match settled {
        Ok(Ok(standing)) if standing.serves() => {
            let era = server.instances().first().and_then(|handle| handle.era()).map(|era| era.as_str());
            let era = era.map(|era| format!("{era}, ")).unwrap_or_default();
            format!("ready     {name} ({era}{:.1} s)\n", began.elapsed().as_secs_f64())
        }
        Ok(Ok(standing)) => match &*standing {
            Standing::Down(state, reason) => {
                let reason = reason.as_deref().unwrap_or("it ended");
                format!("{state:<9} {name}: {reason}\n          `ostler logs {name}` shows what it wrote\n")
            }
            other => format!("{name}: {other}\n"),
        },
        // The daemon stops.
        Ok(Err(_)) => return,
        Err(_) => format!("slow      {name}: still starting after {} s\n", patience.as_secs()),
    };
    say(&line);
}

fn table(supervisor: &Supervisor, base: &str) -> String {
    let rows: Vec<(String, String, String, String)> = supervisor
        .servers()
        .all()
        .iter()
        .map(|server| {
            let instances = server.instances();
            let state = instances.first().map_or("on demand", |handle| handle.snapshot().state.as_str());
            let (name, scope) = (server.spec.name.to_string(), server.spec.scope.as_str().to_owned());
            let endpoint =
                if server.spec.transport.is_mcp() { format!("{base}/mcp/{name}") } else { "-".to_owned() };
            (name, state.to_owned(), scope, endpoint)
        })
        .collect();
    if rows.is_empty() {
        let there = format!("ready     at {base}, with no servers; it does tasks (`ostler task submit`)");
        return format!("{there}\nstop: Ctrl-C or `ostler down`\n");
    }
    let width = |column: fn(&(String, String, String, String)) -> &String, title: &str| {
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
    for (name, state, scope, endpoint) in &rows {
        let _ = writeln!(text, "{name:<server_w$}  {state:<state_w$}  {scope:<scope_w$}  {endpoint}");
    }
    text.push_str("\nstdio clients: `ostler connect SERVER`    stop: Ctrl-C or `ostler down`\n");
    text
}
