//! WebSocket, subprotocol `mcp`: a text frame for each message, in both directions. The connection is the session:
//! its end is the end.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::SplitSink;
use futures_util::{SinkExt as _, StreamExt as _};
use http::HeaderValue;
use ostler_mcp::{Message, on_one_line};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message as Ws, Utf8Bytes};

use super::body::{Unread, count};
use super::{Context, FAREWELL, Target};
use crate::connection::Frame;
use crate::web::{connect, describe, tls};

/// How long the server may take to accept the connection and to become a WebSocket.
const OPENING: Duration = Duration::from_secs(30);
const PROTOCOL: &str = "sec-websocket-protocol";

/// What a WebSocket runs on.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

type Socket = WebSocketStream<Box<dyn Wire>>;
type Sink = SplitSink<Socket, Ws>;

/// Carries messages until there are none to come.
///
/// # Errors
/// Why it could not begin, or not go on.
pub(super) async fn run(
    target: Target,
    first: Message,
    messages: mpsc::Receiver<Message>,
    context: Context,
) -> Result<(), String> {
    let opened = tokio::time::timeout(OPENING, open(&target, context.max_message)).await;
    let socket = opened
        .map_err(|_| format!("the server did not become a WebSocket within {OPENING:?}"))?
        .map_err(|why| format!("the server could not be reached: {why}"))?;
    let (mut sink, mut stream) = socket.split();
    let frames = context.frames.clone();
    let mut reading = JoinSet::new();
    reading.spawn(async move {
        while let Some(frame) = stream.next().await {
            match frame {
                Ok(Ws::Text(text)) => match count(on_one_line(Bytes::from(text)), &context.budget).await {
                    Ok(text) => context.give(Frame::Message { text, of: None }).await,
                    Err(Unread::NoMemory | Unread::Broken(_) | Unread::TooLong(_)) => {
                        return "there is no memory for what the server says (gateway.body_memory)"
                            .to_owned();
                    }
                },
                Ok(Ws::Close(_)) => return "the server closed the connection".to_owned(),
                // Pings are answered below this; binary frames are no messages of MCP.
                Ok(_) => {}
                Err(error) => return format!("the connection to the server broke off: {}", describe(&error)),
            }
        }
        "the server closed the connection".to_owned()
    });
    // A server that takes nothing must not keep a connection that is over.
    crate::select::select! {
        ended = send(&mut sink, first, messages, &mut reading) => ended?,
        () = frames.closed() => {}
    }
    let _ = tokio::time::timeout(FAREWELL, sink.send(Ws::Close(None))).await;
    Ok(())
}

/// Sends messages until there are none to come.
async fn send(
    sink: &mut Sink,
    first: Message,
    mut messages: mpsc::Receiver<Message>,
    reading: &mut JoinSet<String>,
) -> Result<(), String> {
    let mut next = Some(first);
    loop {
        if let Some(message) = next.take() {
            // It came as text from the gateway, which checked that.
            let Ok(text) = Utf8Bytes::try_from(message.to_bytes()) else { continue };
            crate::select::select! {
                sent = sink.send(Ws::Text(text)) => if let Err(error) = sent {
                    return Err(format!("the server could not be reached: {}", describe(&error)));
                },
                Some(ended) = reading.join_next() => return Err(ended.unwrap_or_default()),
            }
        }
        crate::select::select! {
            message = messages.recv() => match message {
                Some(message) => next = Some(message),
                None => return Ok(()),
            },
            Some(ended) = reading.join_next() => return Err(ended.unwrap_or_default()),
        }
    }
}

async fn open(target: &Target, max_message: usize) -> Result<Socket, String> {
    let mut request = target.uri.clone().into_client_request().map_err(|error| describe(&error))?;
    for (name, value) in &target.headers {
        request.headers_mut().insert(name, value.clone());
    }
    request.headers_mut().insert(PROTOCOL, HeaderValue::from_static("mcp"));
    let secure = target.uri.scheme_str() == Some("wss");
    let host = target.uri.host().unwrap_or_default();
    let port = target.uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let tcp = connect(host, port).await?;
    let wire: Box<dyn Wire> = if secure {
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|error| describe(&error))?;
        let connector = TlsConnector::from(std::sync::Arc::new(tls().await?));
        Box::new(connector.connect(name, tcp).await.map_err(|error| describe(&error))?)
    } else {
        Box::new(tcp)
    };
    let config =
        WebSocketConfig::default().max_message_size(Some(max_message)).max_frame_size(Some(max_message));
    let opened = tokio_tungstenite::client_async_with_config(request, wire, Some(config)).await;
    opened.map(|(socket, _)| socket).map_err(|error| describe(&error))
}
