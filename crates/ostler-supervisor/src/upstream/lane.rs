//! The messages that no answer is due for (notifications, answers to the server's own requests): one at a time, so
//! that they arrive in the order in which they were sent. Progress must not overtake the answer it belongs to.
//!
//! They are of many calls, so the order is kept only as long as the server accepts them in reasonable time: one whose
//! POST hangs is left to itself after its turn.

use std::time::Duration;

use http::{HeaderMap, StatusCode, Uri};
use ostler_mcp::Message;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Context;
use super::body::refusal;
use super::client::Client;
use super::session::SESSION_ID;

/// How long the server may take to accept one.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one that is not accepted holds up those behind it.
const TURN: Duration = Duration::from_secs(1);
/// How many may have outstayed their turn. While there are so many, the next ones wait.
const HANGING: usize = 32;
/// How many may wait.
pub(super) const WAITING: usize = 64;

/// A message and the headers it is posted with.
pub(super) type Item = (HeaderMap, Message);

/// A message was not accepted.
#[derive(Debug)]
pub(super) struct Undelivered {
    /// For people.
    pub(super) why: String,
    /// The server does not know the session any more.
    pub(super) session_lost: bool,
}

/// Posts what comes until nothing more does, or the server does not know the session any more; whether that is so.
/// What the server does not accept is told in the instance's log: there is nobody else to tell.
pub(super) async fn run(client: Client, uri: Uri, mut items: mpsc::Receiver<Item>, context: Context) -> bool {
    let mut hanging = JoinSet::new();
    loop {
        crate::select::select! {
            item = items.recv(), if hanging.len() < HANGING => {
                let Some((headers, message)) = item else { return false };
                let (client, uri, context) = (client.clone(), uri.clone(), context.clone());
                let mut posting =
                    Box::pin(async move { deliver(&client, &uri, headers, message, &context).await });
                match tokio::time::timeout(TURN, &mut posting).await {
                    Ok(true) => return true,
                    Ok(false) => {}
                    Err(_) => drop(hanging.spawn(posting)),
                }
            }
            Some(session_lost) = hanging.join_next(), if !hanging.is_empty() => {
                if matches!(session_lost, Ok(true)) {
                    return true;
                }
            }
        }
    }
}

/// Whether the server does not know the session any more.
async fn deliver(
    client: &Client,
    uri: &Uri,
    headers: HeaderMap,
    message: Message,
    context: &Context,
) -> bool {
    let Err(Undelivered { why, session_lost }) = post(client, uri, headers, message).await else {
        return false;
    };
    context.events.count("upstream.undelivered");
    context.note(&format!("a message could not be delivered: {why}"));
    session_lost
}

/// Posts one.
///
/// # Errors
/// When the server does not accept it, or not in time.
pub(super) async fn post(
    client: &Client,
    uri: &Uri,
    headers: HeaderMap,
    message: Message,
) -> Result<(), Undelivered> {
    match tokio::time::timeout(PATIENCE, accepted(client, uri, headers, message)).await {
        Ok(result) => result,
        Err(_) => {
            let why = format!("the server did not accept it within {PATIENCE:?}");
            Err(Undelivered { why, session_lost: false })
        }
    }
}

/// Posts one, however long the server takes to accept it.
///
/// # Errors
/// When the server does not accept it.
pub(super) async fn accepted(
    client: &Client,
    uri: &Uri,
    headers: HeaderMap,
    message: Message,
) -> Result<(), Undelivered> {
    let had_session = headers.contains_key(SESSION_ID);
    let answer = client.post(uri, headers, message).await;
    let answer = answer.map_err(|why| Undelivered { why, session_lost: false })?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let session_lost = had_session && status == StatusCode::NOT_FOUND;
    Err(Undelivered { why: refusal(answer).await.0, session_lost })
}
