//! A task's news as server-sent events: its state first, then what comes, until it has ended.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use ostler_api::{TaskGapView, TaskNews};
use ostler_domain::task::TaskId;
use ostler_supervisor::tasks::{Following, TaskError, TaskNews as Told, Tasks};
use tokio::sync::{broadcast, mpsc};

use super::{refused, tasks, views};
use crate::Gateway;
use crate::api::{Failure, events};

/// Events that may wait for the connection; what a slow reader has not read waits where it is told, and is counted
/// there when it is dropped.
const PIECES: usize = 1;

/// Somebody who follows a task.
struct Reader {
    tasks: Arc<Tasks>,
    id: TaskId,
    following: Following,
}

impl Reader {
    /// How the task stands, and whether it has ended.
    async fn state(&self) -> Result<(TaskNews, bool), TaskError> {
        let task = views::brief(&self.tasks, self.tasks.get(self.id).await?).await?;
        let ended = task.has_ended();
        Ok((TaskNews::State(Box::new(task)), ended))
    }

    /// The same as events. Where it has ended, what was said before comes before: the stream ends with it.
    async fn standing(&mut self) -> Result<(String, bool), TaskError> {
        let (state, ended) = self.state().await?;
        let mut text = String::new();
        while ended && let Some(told) = self.following.at_hand() {
            text += &match told {
                Ok(news) => said(news).map(|news| event(&news)).unwrap_or_default(),
                Err(missed) => gap(missed),
            };
        }
        text += &event(&state);
        Ok((text, ended))
    }
}

/// The stream of a task's news.
///
/// # Errors
/// When there is no such task.
pub(super) async fn reply(gateway: &Gateway, id: TaskId) -> Result<Response, Failure> {
    // Followed from before the first look, so that nothing falls in between.
    let tasks = tasks(gateway)?;
    let reader = Reader { tasks: Arc::clone(tasks), id, following: tasks.follow(id) };
    let first = reader.state().await.map_err(refused)?;
    let keepalive = gateway.supervisor.config().gateway.keepalive;
    let (sender, receiver) = mpsc::channel(PIECES);
    tokio::spawn(send(reader, first, keepalive, sender));
    Ok(events::reply(receiver))
}

/// Sends a task's news until it has ended or the reader is gone.
async fn send(
    mut reader: Reader,
    (first, mut ended): (TaskNews, bool),
    keepalive: Duration,
    out: mpsc::Sender<Bytes>,
) {
    // Headers alone do not reach every reader before the first byte of a body.
    let mut text = format!(":\n\n{}", event(&first));
    loop {
        if out.send(std::mem::take(&mut text).into()).await.is_err() || ended {
            return;
        }
        let told = tokio::select! {
            told = reader.following.next() => told,
            () = tokio::time::sleep(keepalive) => {
                text.push_str(":\n\n");
                continue;
            }
            () = out.closed() => return,
        };
        match told {
            Ok(news) => {
                if let Some(news) = said(news) {
                    text += &event(&news);
                    continue;
                }
            }
            // Its end may be among what was missed.
            Err(broadcast::error::RecvError::Lagged(missed)) => text += &gap(missed),
            Err(broadcast::error::RecvError::Closed) => return,
        }
        let Ok((standing, has_ended)) = reader.standing().await else { return };
        text += &standing;
        ended = has_ended;
    }
}

/// What the task itself said; `None`: it stands otherwise than before.
fn said(news: Told) -> Option<TaskNews> {
    match news {
        Told::Progress(progress) => Some(TaskNews::Progress(views::progress(progress))),
        Told::Log(line) => Some(TaskNews::Log(views::line(line))),
        Told::Began(_) | Told::Retry | Told::Ended => None,
    }
}

fn gap(missed: u64) -> String {
    event(&TaskNews::Gap(TaskGapView { missed }))
}

/// One server-sent event. Plain data: it always has a JSON form, and that has no line ends.
fn event(news: &TaskNews) -> String {
    format!("data: {}\n\n", serde_json::to_string(news).unwrap_or_default())
}
