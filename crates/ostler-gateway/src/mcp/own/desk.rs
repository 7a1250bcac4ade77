//! Who asks, at which door, and so what may be done for him.
//!
//! The management API is on the unix socket only (ADR 4), and what does the same is there only as well. Over the
//! network remain the tools that give a client nothing which it has not already: to call tools of the servers, and to
//! make, see and end sessions of its own, by the key that only it knows.

use std::sync::Arc;

use ostler_api::{NewProcess, RunMany, ServerView};
use ostler_supervisor::session::is_handle;
use ostler_supervisor::{Caller, Session};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::tools::{Does, Tool};
use crate::Gateway;
use crate::api::{self, Failure, logs, processes, sessions, views};
use crate::mcp::check_key;
use crate::run::{Run, Tell};
use crate::serve::Door;

/// Most lines of a log at once: what is kept by default of each stream.
pub(super) const MAX_LINES: usize = 1_000;

/// Who asks, and where.
pub(super) struct Desk {
    pub(super) gateway: Arc<Gateway>,
    pub(super) door: Door,
    pub(super) caller: Caller,
    /// The key of the session that the request is of.
    pub(super) key: Option<String>,
}

/// Why something is not to be had here.
pub(super) fn elsewhere(what: &str) -> String {
    format!(
        "{what} not served over the network, as the management API is not: use `ostler connect ostler`, or the unix \
         socket in the runtime directory"
    )
}

impl From<Failure> for String {
    fn from(failure: Failure) -> Self {
        match failure.hint {
            Some(hint) => format!("{}; {hint}", failure.error),
            None => failure.error,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateArgs {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    isolated: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionArgs {
    session_id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatsArgs {
    #[serde(default)]
    session_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListArgs {
    #[serde(default)]
    kind: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NameArgs {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogArgs {
    name: String,
    #[serde(default)]
    lines: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PoolArgs {
    #[serde(default)]
    server: Option<String>,
}

impl Desk {
    /// Whether what shows all processes and sessions may be read here.
    pub(super) fn has_resources(&self) -> bool {
        self.door == Door::Unix
    }

    pub(super) fn capabilities(&self) -> Value {
        match self.has_resources() {
            true => json!({"tools": {}, "resources": {}}),
            false => json!({"tools": {}}),
        }
    }

    /// Does what a tool is for; its result as JSON.
    ///
    /// # Errors
    /// What failed, why, and what to do, for whoever reads it.
    pub(super) async fn call(&self, tool: &Tool, arguments: &[u8], tell: Tell) -> Result<String, String> {
        if !tool.is_served_at(self.door) {
            return Err(elsewhere(&format!("`{}` is", tool.name)));
        }
        match tool.does {
            Does::CreateSession => self.create_session(read(tool, arguments)?),
            Does::SessionStats => self.session_stats(read(tool, arguments)?),
            Does::CleanUpSession => self.clean_up_session(read(tool, arguments)?).await,
            Does::RunMany => self.run_many(read(tool, arguments)?, tell).await,
            Does::ListProcesses => self.list_processes(read(tool, arguments)?).await,
            Does::Spawn => {
                let wanted: NewProcess = read(tool, arguments)?;
                written(&processes::spawned(&self.gateway, wanted).await?)
            }
            Does::Stop => self.stop(read(tool, arguments)?).await,
            Does::Status => {
                let NameArgs { name } = read(tool, arguments)?;
                self.status(&name).await
            }
            Does::Logs => self.logs(read(tool, arguments)?),
            Does::PoolStats => self.pool_stats(read(tool, arguments)?).await,
            Does::SubmitTask => self.submit_task(read(tool, arguments)?).await,
            Does::GetTask => self.get_task(read(tool, arguments)?).await,
            Does::CancelTask => self.cancel_task(read(tool, arguments)?).await,
            Does::RunTasks => self.run_tasks(read(tool, arguments)?, tell).await,
        }
    }

    fn create_session(&self, CreateArgs { name, isolated }: CreateArgs) -> Result<String, String> {
        let opened = sessions::opened(&self.gateway, &self.caller, name, isolated)?;
        written(&json!({"session_id": opened.key, "id": opened.id}))
    }

    /// A session by its key; where the API is served also by the id that listings show.
    fn session(&self, id: &str) -> Result<Arc<Session>, String> {
        check_key(id)?;
        let supervisor = &self.gateway.supervisor;
        if is_handle(id) {
            return Ok(supervisor.session(&self.caller, id).map_err(sessions::refused)?);
        }
        if let Some(session) = supervisor.sessions().find(&self.caller.principal, id) {
            return Ok(session);
        }
        match self.door {
            Door::Unix => Ok(sessions::find(&self.gateway, id)?),
            Door::Tcp => Err(format!(
                "there is no session with the key `{id}`; over the network a session is known by its key only"
            )),
        }
    }

    fn session_stats(&self, StatsArgs { session_id }: StatsArgs) -> Result<String, String> {
        let table = self.gateway.supervisor.sessions();
        let chosen = match (session_id, self.door) {
            (Some(id), _) => vec![self.session(&id)?],
            (None, Door::Unix) => table.all(),
            (None, Door::Tcp) => return Err(elsewhere("the list of all sessions is")),
        };
        let shown: Vec<_> = chosen.iter().map(|session| views::session(session)).collect();
        written(&json!({"sessions": shown, "count": table.len(), "limit": table.limit()}))
    }

    async fn clean_up_session(&self, SessionArgs { session_id }: SessionArgs) -> Result<String, String> {
        let session = self.session(&session_id)?;
        let state = self.gateway.supervisor.drain_session(&session, "`cleanup_session` ended it").await;
        written(&json!({"session_id": session_id, "id": *session.handle, "state": state.as_str()}))
    }

    async fn run_many(&self, mut wanted: RunMany, tell: Tell) -> Result<String, String> {
        wanted.session_id = wanted.session_id.or_else(|| self.key.clone());
        let run = Run::of(&self.gateway, &self.caller, wanted).map_err(api::run::refused)?;
        written(&run.make(&self.gateway, &self.caller, tell).await)
    }

    async fn list_processes(&self, ListArgs { kind }: ListArgs) -> Result<String, String> {
        let mut rows = views::instances(&self.gateway).await;
        rows.retain(|row| kind.as_ref().is_none_or(|kind| row.kind == *kind));
        written(&json!({"processes": rows}))
    }

    async fn stop(&self, NameArgs { name }: NameArgs) -> Result<String, String> {
        let supervisor = &self.gateway.supervisor;
        match supervisor.instance(&name) {
            Some(handle) => supervisor.stop_instance(&handle).await,
            None => supervisor.stop_server(&*api::find_server(&self.gateway, &name)?).await,
        }
        self.status(&name).await
    }

    /// The rows of a server, a process started by hand, or one instance.
    async fn status(&self, name: &str) -> Result<String, String> {
        let mut rows = views::instances(&self.gateway).await;
        rows.retain(|row| row.id == name || row.server == name);
        if rows.is_empty() {
            // It says what is there; one that is just going has no rows.
            api::find_server(&self.gateway, name)?;
        }
        written(&json!({"processes": rows}))
    }

    fn logs(&self, LogArgs { name, lines }: LogArgs) -> Result<String, String> {
        let most = lines.unwrap_or(logs::DEFAULT_LINES);
        if !(1..=MAX_LINES).contains(&most) {
            return Err(format!("`lines` is {most}, and may be 1 to {MAX_LINES}"));
        }
        let handles = match self.gateway.supervisor.instance(&name) {
            Some(handle) => vec![handle],
            None => api::find_server(&self.gateway, &name)?.instances(),
        };
        written(&json!({"lines": logs::newest(&handles, most)}))
    }

    async fn pool_stats(&self, PoolArgs { server }: PoolArgs) -> Result<String, String> {
        let table = self.gateway.supervisor.servers();
        let servers = match server {
            Some(name) => vec![api::find_server(&self.gateway, &name)?],
            None => table.all().to_vec(),
        };
        let views = views::servers(&self.gateway, &servers).await;
        let pool = |view: ServerView| Some(json!({"server": view.name, "pool": view.pool?}));
        written(&json!({"pools": views.into_iter().filter_map(pool).collect::<Vec<_>>()}))
    }
}

fn read<T: DeserializeOwned>(tool: &Tool, arguments: &[u8]) -> Result<T, String> {
    serde_json::from_slice(arguments).map_err(|error| {
        format!(
            "the arguments of `{}` are not what it takes: {error}; `tools/list` describes them",
            tool.name
        )
    })
}

pub(super) fn written<T: Serialize>(result: &T) -> Result<String, String> {
    serde_json::to_string(result).map_err(|error| format!("the result cannot be written: {error}"))
}
