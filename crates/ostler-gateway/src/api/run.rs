//! `POST /api/v1/run`: many calls of tools in one go, as one answer or told as it goes on.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{Request, StatusCode};
use ostler_api::{RunEvent, RunMany};
use tokio::sync::mpsc;

use super::events::{reply, wants_stream};
use super::{App, Failure, read, sessions};
use crate::Gateway;
use crate::run::{NoRun, Run};

/// Events that may wait for a slow reader; further ones of progress are left out, since the next says more.
const EVENTS: usize = 16;

/// `POST /api/v1/run`.
pub(super) async fn run(State(gateway): App, request: Request<Body>) -> Result<Response, Failure> {
    let (head, body) = request.into_parts();
    let wanted: RunMany = read(&gateway, body).await?;
    let run = Run::of(&gateway, &gateway.local, wanted).map_err(refused)?;
    if !wants_stream(&head.headers) {
        return Ok(Json(run.make(&gateway, &gateway.local, Box::new(|_| {})).await).into_response());
    }
    let (sender, receiver) = mpsc::channel(EVENTS);
    tokio::spawn(follow(gateway, run, sender));
    Ok(reply(receiver))
}

pub(crate) fn refused(why: NoRun) -> Failure {
    match why {
        NoRun::Invalid(error) => Failure { status: StatusCode::BAD_REQUEST, error, hint: None },
        NoRun::Session(why) => sessions::refused(why),
    }
}

/// Runs and tells, until the reader is gone: that cancels what is left.
async fn follow(gateway: Arc<Gateway>, run: Run, out: mpsc::Sender<Bytes>) {
    let keepalive = gateway.supervisor.config().gateway.keepalive;
    let progress = out.clone();
    let tell = Box::new(move |further| {
        let _ = progress.try_send(event(&RunEvent::Progress(further)));
    });
    let mut report = std::pin::pin!(run.make(&gateway, &gateway.local, tell));
    loop {
        // At first, too: headers alone do not reach every reader before the first byte of a body.
        let _ = out.try_send(Bytes::from_static(b":\n\n"));
        tokio::select! {
            report = report.as_mut() => {
                let _ = out.send(event(&RunEvent::Report(report))).await;
                return;
            }
            () = out.closed() => return,
            () = tokio::time::sleep(keepalive) => {}
        }
    }
}

/// One server-sent event. Plain data: it always has a JSON form, and that has no line ends.
fn event(event: &RunEvent) -> Bytes {
    format!("data: {}\n\n", serde_json::to_string(event).unwrap_or_default()).into()
}
