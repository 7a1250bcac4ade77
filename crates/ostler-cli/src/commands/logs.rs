//! `logs` and `events`: what was said and what happened, once or as it comes.

use ostler_api::{Client, EventQuery, LogQuery, routes};

use super::{print, print_json};
use crate::args::{EventsArgs, LogsArgs};
use crate::exit::Failure;
use crate::render;
use crate::target::Target;

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
    let EventsArgs { json, follow, lines, since, kind, subject, severity } = args;
    let query = EventQuery { since, n: lines, kind, subject, severity };
    if follow {
        return followed(client, &query, json).await;
    }
    if json {
        return print_json(&client.raw(&routes::EVENTS_LIST, &[], &query.to_string()).await?);
    }
    let events: String = client.events(&query).await?.iter().map(render::event).collect();
    print(events.as_bytes())
}

/// Ends with the daemon.
async fn followed(client: &Client, query: &EventQuery, json: bool) -> Result<(), Failure> {
    let mut events = client.follow_events(query).await?;
    if json {
        while let Some(event) = events.next_raw().await? {
            print_json(&event)?;
        }
    } else {
        while let Some(event) = events.next().await? {
            print(render::event(&event).as_bytes())?;
        }
    }
    Ok(())
}
