//! `pool` and `projects`: the workers, and whose tasks they do.

use ostler_api::{Client, routes};

use super::{print, print_json};
use crate::args::{ProjectsArgs, ProjectsCommand};
use crate::exit::Failure;
use crate::render;

pub(super) async fn pool(client: &Client, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&client.raw(&routes::POOL, &[], "").await?);
    }
    print(render::pool(&client.pool().await?).as_bytes())
}

pub(super) async fn projects(client: &Client, args: ProjectsArgs) -> Result<(), Failure> {
    let Some(command) = args.command else {
        if args.json {
            return print_json(&client.raw(&routes::PROJECTS, &[], "").await?);
        }
        return print(render::projects(&client.projects().await?).as_bytes());
    };
    let ProjectsCommand::Set { name, max_running, json } = command;
    let project = client.limit_project(&name, max_running.0).await?;
    if json {
        return print_json(&serde_json::to_vec(&project).map_err(std::io::Error::from)?);
    }
    print(render::limited(&project).as_bytes())
}
