//! `ps`, `status`, `sessions`, `alerts`: ask once, print.

use ostler_api::{Client, routes};

use super::{print, print_json};
use crate::args::{SessionsArgs, SessionsCommand, StatusArgs};
use crate::exit::Failure;
use crate::render;
use crate::target::Target;

pub(super) async fn ps(client: &Client, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&client.raw(&routes::INSTANCES, &[], "").await?);
    }
    print(render::instances(&client.instances().await?).as_bytes())
}

pub(super) async fn status(client: &Client, args: StatusArgs) -> Result<(), Failure> {
    let Some(id) = args.id else {
        if args.json {
            return print_json(&client.raw(&routes::STATUS, &[], "").await?);
        }
        return print(render::daemon(&client.status().await?).as_bytes());
    };
    let target = Target::find(client, &id).await?;
    match (&target, args.json) {
        (Target::Server(name), true) => print_json(&client.raw(&routes::SERVER, &[name], "").await?),
        (Target::Instance(id), true) => print_json(&client.raw(&routes::INSTANCE, &[id], "").await?),
        (Target::Server(name), false) => print(render::server(&client.server(name).await?).as_bytes()),
        (Target::Instance(id), false) => print(render::instance(&client.instance(id).await?).as_bytes()),
    }
}

pub(super) async fn alerts(client: &Client, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&client.raw(&routes::ALERTS, &[], "").await?);
    }
    print(render::alerts(&client.alerts().await?).as_bytes())
}

pub(super) async fn sessions(client: &Client, args: SessionsArgs) -> Result<(), Failure> {
    if let Some(SessionsCommand::Rm { id }) = args.command {
        let draining = client.remove_session(&id).await?;
        return print(render::removed_session(&id, draining.as_ref()).as_bytes());
    }
    if args.json {
        return print_json(&client.raw(&routes::SESSIONS, &[], "").await?);
    }
    print(render::sessions(&client.sessions().await?).as_bytes())
}
