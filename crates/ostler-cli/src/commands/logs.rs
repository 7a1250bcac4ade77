//! `logs` and `events`: what was said and what happened, once or as it comes.

use std::time::Duration;

use ostler_api::{Client, LogQuery, routes};

use super::{print, print_json};
use crate::args::{EventsArgs, LogsArgs};
use crate::exit::Failure;
use crate::render;
use crate::target::Target;

/// How often `events -f` asks for new ones.
const EVENT_POLL: Duration = Duration::from_millis(500);

pub(super) async fn logs(client: &Client, args: LogsArgs) -> Result<(), Failure> {
    let query = LogQuery { n: args.lines, follow: args.follow };
    let (mut lines, mixed) = match Target::find(client, &args.id).await? {
        Target::Server(name) => (client.server_logs(&name, query).await?, true),
        Target::Instance(id) => (client.instance_logs(&id, query).await?, false),
    };
    if args.json {
        while let Some(line) = lines.next_raw().await? {
            print_json(&line)?;
        }
    } else {
        while let Some(line) = lines.next().await? {
            print(render::log_line(&line, mixed).as_bytes())?;
        }
    }
    Ok(())
}

pub(super) async fn events(client: &Client, args: EventsArgs) -> Result<(), Failure> {
    if args.json {
        let query = args.lines.map(|n| format!("n={n}")).unwrap_or_default();
        return print_json(&client.raw(&routes::EVENTS_LIST, &[], &query).await?);
    }
    let mut seen = None;
    let mut wanted = args.lines;
    loop {
        for event in client.events(seen, wanted).await? {
            seen = Some(event.seq);
            print(render::event(&event).as_bytes())?;
        }
        if !args.follow {
            return Ok(());
        }
        wanted = None;
        tokio::time::sleep(EVENT_POLL).await;
    }
}
