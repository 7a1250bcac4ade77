//! The messages that no answer is due for (notifications, answers to the server's own requests): one at a time, so
//! that they arrive in the order in which they were sent. Progress must not overtake the answer it belongs to.

use std::time::Duration;

use http::{HeaderMap, Uri};
use ostler_mcp::Message;
use tokio::sync::mpsc;

use super::Context;
use super::body::refusal;
use super::client::Client;

/// How long the server may take to accept one.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many may wait.
pub(super) const WAITING: usize = 64;

/// A message and the headers it is posted with.
pub(super) type Item = (HeaderMap, Message);

/// Posts what comes until nothing more does. What the server does not accept is told in the instance's log: there
/// is nobody else to tell.
pub(super) async fn run(client: Client, uri: Uri, mut items: mpsc::Receiver<Item>, context: Context) {
    while let Some((headers, message)) = items.recv().await {
        if let Err(why) = post(&client, &uri, headers, message).await {
            context.events.count("upstream.undelivered");
            context.note(&format!("a message could not be delivered: {why}"));
        }
    }
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
) -> Result<(), String> {
    let posted = async {
        let answer = client.post(uri, headers, message).await?;
        if answer.status().is_success() { Ok(()) } else { Err(refusal(answer).await.0) }
    };
    match tokio::time::timeout(PATIENCE, posted).await {
        Ok(result) => result,
        Err(_) => Err(format!("the server did not accept it within {PATIENCE:?}")),
    }
}
