//! Reload, over the API.

use axum::Json;
use axum::extract::{Query, State};
use http::StatusCode;
use ostler_api::{KeyChangeView, ReloadView, ServerReloadView};
use ostler_config::{Apply, KeyChange};
use ostler_supervisor::reload::{ReloadFailed, ServerReport};
use ostler_supervisor::{ReloadRefused, Report};
use serde::Deserialize;

use super::{App, Failure};

#[derive(Debug, Deserialize)]
pub(super) struct ReloadQuery {
    #[serde(default)]
    dry_run: bool,
}

pub(super) async fn reload(
    State(gateway): App,
    Query(query): Query<ReloadQuery>,
) -> Result<Json<ReloadView>, Failure> {
    gateway.reloader.reload(query.dry_run).await.map(|report| Json(view(&report))).map_err(Failure::from)
}

impl From<ReloadFailed> for Failure {
    fn from(failed: ReloadFailed) -> Self {
        let (status, hint) = match &failed {
            ReloadFailed::Config(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, Some("nothing was changed; the daemon runs on as it did"))
            }
            ReloadFailed::Refused(ReloadRefused::Taken(_)) => (StatusCode::CONFLICT, None),
            ReloadFailed::Refused(ReloadRefused::Stopping) => (StatusCode::SERVICE_UNAVAILABLE, None),
        };
        Self { status, error: failed.to_string(), hint: hint.map(str::to_owned) }
    }
}

fn view(report: &Report) -> ReloadView {
    ReloadView {
        dry_run: report.dry_run,
        daemon: report.daemon.iter().map(key).collect(),
        servers: report.servers.iter().map(server).collect(),
        ending: report.ending.iter().map(ToString::to_string).collect(),
    }
}

fn server(server: &ServerReport) -> ServerReloadView {
    ServerReloadView {
        name: server.name.to_string(),
        change: server.fate.as_str().to_owned(),
        keys: server.keys.iter().map(key).collect(),
    }
}

fn key(change: &KeyChange) -> KeyChangeView {
    let (old, new) = change.values.clone().unzip();
    let apply = match change.apply {
        Apply::Live => "live",
        Apply::Replace => "replace",
        Apply::DaemonRestart => "daemon-restart",
    };
    KeyChangeView { key: change.key.clone(), old, new, apply: apply.to_owned() }
}
