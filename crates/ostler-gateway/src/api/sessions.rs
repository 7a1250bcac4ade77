//! `/api/v1/sessions`: clients' conversations, and the instances that they have for themselves.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{Request, StatusCode};
use ostler_api::{NewSession, OpenedSession, OwnInstanceView};
use ostler_domain::session::SessionState;
use ostler_supervisor::session::NoSession;
use ostler_supervisor::{Caller, Session};

use super::{App, Failure, find_server, missing, read, views};
use crate::Gateway;
use crate::mcp::check_key;

pub(crate) fn find(gateway: &Gateway, handle: &str) -> Result<Arc<Session>, Failure> {
    let all = gateway.supervisor.sessions().all();
    all.into_iter().find(|session| *session.handle == *handle).ok_or_else(|| Failure {
        hint: Some("`ostler sessions` lists them".to_owned()),
        ..missing("session", handle)
    })
}

/// `GET /api/v1/sessions`.
pub(super) async fn list(State(gateway): App) -> Response {
    let all = gateway.supervisor.sessions().all();
    Json(all.iter().map(|session| views::session(session)).collect::<Vec<_>>()).into_response()
}

/// `GET /api/v1/sessions/{id}`.
pub(super) async fn one(State(gateway): App, Path(handle): Path<String>) -> Result<Response, Failure> {
    Ok(Json(views::session(&*find(&gateway, &handle)?)).into_response())
}

/// `POST /api/v1/sessions`.
pub(super) async fn open(State(gateway): App, request: Request<Body>) -> Result<Response, Failure> {
    let NewSession { key, isolated } = read(&gateway, request.into_body()).await?;
    Ok(Json(opened(&gateway, &gateway.local, key, isolated)?).into_response())
}

/// The caller's session of this name; a new one with a handle, where none is said.
pub(crate) fn opened(
    gateway: &Gateway,
    caller: &Caller,
    key: Option<String>,
    isolated: Option<bool>,
) -> Result<OpenedSession, Failure> {
    let (session, key) = match key {
        Some(key) => {
            check_key(&key).map_err(|error| Failure {
                status: StatusCode::BAD_REQUEST,
                error,
                hint: None,
            })?;
            let isolation = isolated.unwrap_or(true);
            (gateway.supervisor.session_as(caller, &key, isolation).map_err(refused)?, key)
        }
        None => {
            let isolation = isolated.unwrap_or(true);
            gateway.supervisor.session_with_handle_as(caller, isolation).map_err(refused)?
        }
    };
    if let Some(isolated) = isolated.filter(|isolated| *isolated != session.isolated) {
        let error = format!(
            "session {} was opened with `isolated` as {}, and stays so until it ends",
            session.handle, !isolated
        );
        let hint = Some(format!("`ostler sessions rm {}` ends it; or choose another key", session.handle));
        return Err(Failure { status: StatusCode::CONFLICT, error, hint });
    }
    Ok(OpenedSession { id: session.handle.to_string(), key })
}

pub(crate) fn refused(why: NoSession) -> Failure {
    let status = match why {
        NoSession::Full(_) => StatusCode::SERVICE_UNAVAILABLE,
        NoSession::Ended(_) => StatusCode::NOT_FOUND,
    };
    Failure { status, error: why.to_string(), hint: None }
}

/// `DELETE /api/v1/sessions/{id}`.
pub(super) async fn end(State(gateway): App, Path(handle): Path<String>) -> Result<Response, Failure> {
    let session = find(&gateway, &handle)?;
    Ok(match gateway.supervisor.drain_session(&session, "a person ended it").await {
        SessionState::Active | SessionState::Draining => {
            (StatusCode::ACCEPTED, Json(views::draining(&session))).into_response()
        }
        SessionState::Ended => StatusCode::NO_CONTENT.into_response(),
    })
}

/// `POST /api/v1/sessions/{id}/instances/{name}`.
pub(super) async fn instance(
    State(gateway): App,
    Path((handle, name)): Path<(String, String)>,
) -> Result<Response, Failure> {
    let (session, server) = (find(&gateway, &handle)?, find_server(&gateway, &name)?);
    // It is not silent while somebody waits on its behalf.
    let _busy = session.busy();
    if !session.is_active() {
        return Err(Failure {
            status: StatusCode::CONFLICT,
            error: format!("session {handle} is ending, and gets no instances any more"),
            hint: None,
        });
    }
    let own = gateway.supervisor.own_instance(&session, &server, &gateway.local).await;
    let own = own.map_err(|why| Failure {
        status: StatusCode::SERVICE_UNAVAILABLE,
        error: why.to_string(),
        hint: Some(format!("`ostler status {}` says how it stands", server.spec.name)),
    })?;
    let view = OwnInstanceView {
        session: session.handle.to_string(),
        server: server.spec.name.to_string(),
        instance: own.handle.id.to_string(),
        generation: own.snapshot.generation.0,
        fence: own.fence,
        pid: own.snapshot.pid,
        state: own.snapshot.state.as_str().to_owned(),
        ports: (*own.snapshot.ports).clone(),
    };
    Ok(Json(view).into_response())
}

/// `DELETE /api/v1/sessions/{id}/instances/{name}`.
pub(super) async fn give_up(
    State(gateway): App,
    Path((handle, name)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    let (session, server) = (find(&gateway, &handle)?, find_server(&gateway, &name)?);
    if session.give_up(&server.spec.name).await {
        return Ok(StatusCode::NO_CONTENT);
    }
    let error = format!("session {handle} has no instance of `{name}` for itself");
    Err(Failure { status: StatusCode::NOT_FOUND, error, hint: None })
}
