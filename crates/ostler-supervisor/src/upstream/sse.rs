//! HTTP with server-sent events, the transport of revision 2024-11-05: one stream (GET) carries everything the server
//! says, and names the address to which messages are posted. The stream is the session: its end is the end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::ACCEPT;
use http::{HeaderMap, Method, StatusCode, Uri};
use ostler_mcp::{Envelope, Kind, Message, Sse};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::body::{Events, Unread, is, refusal};
use super::client::{Client, EVENTS, Pieces};
use super::lane::{self, Undelivered};
use super::{Context, Target};
use crate::connection::Frame;

/// How long the server may take to open the stream and name the address.
const OPENING: Duration = Duration::from_secs(30);
/// How long the POST of a request that was answered or cancelled may still take.
const HANDED: Duration = Duration::from_secs(1);
/// Longest address that a server may name, in bytes.
const MAX_ADDRESS: usize = 8 * 1024;

/// Carries messages until there are none to come.
///
/// # Errors
/// Why it could not begin, or not go on.
pub(super) async fn run(
    target: Target,
    first: Message,
    mut messages: mpsc::Receiver<Message>,
    context: Context,
) -> Result<(), String> {
    let client = Client::new(&target.uri, target.headers).await?;
    let opened = tokio::time::timeout(OPENING, open(&client, &target.uri, &context)).await;
    let (mut events, address) =
        opened.map_err(|_| format!("the server did not open its stream within {OPENING:?}"))??;
    let (lane, items) = mpsc::channel(lane::WAITING);
    let mut helpers = JoinSet::new();
    helpers.spawn(lane::run(client.clone(), address.clone(), items, context.clone()));
    let unanswered = Unanswered::default();
    let mut posting = Posting {
        client,
        address,
        context: context.clone(),
        unanswered: unanswered.clone(),
        requests: JoinSet::new(),
        lane,
    };
    // A task of its own: a stream is not read by turns.
    let mut stream = JoinSet::new();
    stream.spawn(async move { follow(&mut events, &context, &unanswered).await });
    posting.take(first).await;
    loop {
        crate::select::select! {
            message = messages.recv() => match message {
                Some(message) => posting.take(message).await,
                None => break,
            },
            Some(ended) = stream.join_next() => return Err(ended.unwrap_or_else(|_| "Ostler is ending".to_owned())),
            Some(_) = posting.requests.join_next(), if !posting.requests.is_empty() => {}
        }
    }
    // Closing the stream ends the session.
    Ok(())
}

/// The requests that were neither answered nor cancelled, by their ids. Some servers accept a POST only once they have
/// answered it on the stream, so it has as long as its call has; but no longer.
#[derive(Clone, Debug, Default)]
struct Unanswered(Arc<Mutex<HashMap<Bytes, oneshot::Sender<()>>>>);

impl Unanswered {
    /// A request begins; resolves when it is over.
    fn begin(&self, id: Bytes) -> oneshot::Receiver<()> {
        let (over, heard) = oneshot::channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, over);
        heard
    }

    fn over(&self, id: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

struct Posting {
    client: Client,
    address: Uri,
    context: Context,
    unanswered: Unanswered,
    requests: JoinSet<()>,
    lane: mpsc::Sender<lane::Item>,
}

impl Posting {
    async fn take(&mut self, message: Message) {
        let text = message.to_bytes();
        let Ok(envelope) = Envelope::parse(&text) else { return };
        let id = envelope.id_text(&text).map(Bytes::copy_from_slice);
        match (envelope.kind, id) {
            (Kind::Request, Some(id)) => self.request(id, message),
            // What comes after it must not overtake it.
            (Kind::Notification, _) if &*envelope.method == "notifications/initialized" => {
                let posted = lane::post(&self.client, &self.address, HeaderMap::new(), message).await;
                if let Err(Undelivered { why, .. }) = posted {
                    self.context.note(&format!("`notifications/initialized` could not be delivered: {why}"));
                }
            }
            (Kind::Notification, _) if &*envelope.method == "notifications/cancelled" => {
                if let Some(of) = envelope.inner.request_id.clone() {
                    self.unanswered.over(&text[of]);
                }
                let _ = self.lane.send((HeaderMap::new(), message)).await;
            }
            _ => drop(self.lane.send((HeaderMap::new(), message)).await),
        }
    }

    /// Its answer comes on the stream; here only that there will be none.
    fn request(&mut self, id: Bytes, message: Message) {
        let (client, address, context) = (self.client.clone(), self.address.clone(), self.context.clone());
        let (unanswered, over) = (self.unanswered.clone(), self.unanswered.begin(id.clone()));
        self.requests.spawn(async move {
            let mut posting = std::pin::pin!(lane::accepted(&client, &address, HeaderMap::new(), message));
            let posted = crate::select::select! {
                posted = &mut posting => posted,
                _ = over => {
                    // What becomes of it does not matter any more, but its connection is of further use.
                    let _ = tokio::time::timeout(HANDED, posting).await;
                    return;
                }
            };
            if let Err(Undelivered { why, .. }) = posted {
                unanswered.over(&id);
                context.broken(&id, &format!("the server could not be reached: {why}")).await;
            }
        });
    }
}

/// Opens the stream and waits for the address.
async fn open(client: &Client, uri: &Uri, context: &Context) -> Result<(Events, Uri), String> {
    let headers = HeaderMap::from_iter([(ACCEPT, EVENTS)]);
    let answer = client.send(Method::GET, uri, &headers, Pieces::default()).await;
    let answer = answer.map_err(|why| format!("the server could not be reached: {why}"))?;
    if answer.status() != StatusCode::OK || !is(answer.headers(), "text/event-stream") {
        return Err(format!("the server offers no stream of events: {}", refusal(answer).await.0));
    }
    let mut events = Events::new(answer.into_body(), context.max_message, &context.budget);
    loop {
        match events.next().await {
            Ok(Some(Sse::Event { name, data })) if &*name == "endpoint" => {
                return Ok((events, address(uri, &data)?));
            }
            Ok(Some(_)) => {}
            Ok(None) => return Err("the server closed its stream before it named an address".to_owned()),
            Err(Unread::Broken(why)) => return Err(format!("the server's stream broke off: {why}")),
            Err(_) => {
                return Err("there is no memory for what the server says (gateway.body_memory)".to_owned());
            }
        }
    }
}

/// The address to post to: another path of the same server, never another server, which would get the headers'
/// secrets and everything the clients say.
fn address(stream: &Uri, named: &[u8]) -> Result<Uri, String> {
    let text = std::str::from_utf8(named).unwrap_or_default().trim();
    let wrong = |why: &str| Err(format!("the server named an address that cannot be used: {why}"));
    if text.is_empty() || text.len() > MAX_ADDRESS {
        return wrong("it is empty or too long");
    }
    let (Some(scheme), Some(authority)) = (stream.scheme_str(), stream.authority()) else {
        return wrong("the stream has none itself");
    };
    let whole = if text.contains("://") {
        text.to_owned()
    } else if text.starts_with('/') {
        format!("{scheme}://{authority}{text}")
    } else {
        let folder = stream.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{text}")
    };
    match whole.parse::<Uri>() {
        Ok(uri) if uri.scheme_str() == Some(scheme) && uri.authority() == Some(authority) => Ok(uri),
        Ok(uri) => {
            wrong(&format!("{} is another server", uri.authority().map_or("it", |other| other.as_str())))
        }
        Err(error) => wrong(&error.to_string()),
    }
}

/// Passes on what the server says; returns why there is no more.
async fn follow(events: &mut Events, context: &Context, unanswered: &Unanswered) -> String {
    loop {
        match events.next().await {
            Ok(Some(Sse::Event { name, data })) if &*name == "message" && !data.is_empty() => {
                if let Ok(envelope) = Envelope::parse(&data)
                    && matches!(envelope.kind, Kind::Result | Kind::Error(_))
                    && let Some(id) = envelope.id_text(&data)
                {
                    unanswered.over(id);
                }
                context.give(Frame::Message { text: data, of: None }).await;
            }
            Ok(Some(Sse::TooLong(bytes))) => drop(context.too_long(bytes)),
            Ok(Some(_)) => {}
            Ok(None) => return "the server closed its stream of events".to_owned(),
            Err(Unread::Broken(why)) => return format!("the server's stream of events broke off: {why}"),
            Err(_) => return "there is no memory for what the server says (gateway.body_memory)".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_the_same_servers() {
        let stream: Uri = "http://127.0.0.1:8001/api/sse?x=1".parse().unwrap();
        for (named, meant) in [
            ("/messages?sessionId=1", "http://127.0.0.1:8001/messages?sessionId=1"),
            (" messages ", "http://127.0.0.1:8001/api/messages"),
            ("http://127.0.0.1:8001/m", "http://127.0.0.1:8001/m"),
        ] {
            assert_eq!(address(&stream, named.as_bytes()).unwrap().to_string(), meant);
        }
        for other in [
            "http://127.0.0.1:8002/m",
            "https://127.0.0.1:8001/m",
            "http://example.org/",
            "//example.org/m",
            "",
        ] {
            let found = address(&stream, other.as_bytes());
            let same = found.as_ref().is_ok_and(|uri| uri.authority() == stream.authority());
            assert!(found.is_err() || same, "{other}: {found:?}");
        }
    }
}
