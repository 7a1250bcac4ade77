//! Server-sent events: what goes out, one event a message.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use ostler_mcp::{Message, SHARE_FROM};
use ostler_supervisor::session::{Busy, Session};
use ostler_supervisor::stream::{Next, Reader};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Pieces of a stream that may wait for the connection. Small: what a slow client has not read yet waits in
/// the bounded stream behind it.
const PIECES: usize = 4;

/// How long a client is told to wait before it comes back to a stream, in milliseconds.
const RETRY_MS: u32 = 500;

/// How a legacy stream is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// Its number in the session; with a message's number it is the event's id.
    pub(super) number: u64,
    /// Whether the client is primed to come back (2025-11-25): an empty event with an id, and `retry`.
    pub(super) primed: bool,
    /// After this long the connection is closed and the client comes back; zero for never.
    pub(super) hold: Duration,
    /// After this long without a message a comment is sent.
    pub(super) keepalive: Duration,
}

/// The channel of a stream's body.
pub(super) fn channel() -> (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>) {
    mpsc::channel(PIECES)
}

/// Sends a message as one event. A large one goes out in its own pieces, without a copy.
///
/// # Errors
/// When the client is gone.
pub(super) async fn send(
    out: &mpsc::Sender<Bytes>,
    id: Option<(u64, u64)>,
    message: &Message,
) -> Result<(), Gone> {
    let mut head = BytesMut::with_capacity(64);
    head.put_slice(b"event: message\n");
    if let Some((stream, number)) = id {
        head.put_slice(format!("id: {stream}-{number}\n").as_bytes());
    }
    head.put_slice(b"data: ");
    if message.len() < SHARE_FROM {
        for part in message.parts() {
            head.put_slice(part);
        }
        head.put_slice(b"\n\n");
        return out.send(head.freeze()).await.map_err(|_| Gone);
    }
    out.send(head.freeze()).await.map_err(|_| Gone)?;
    for part in message.parts() {
        out.send(part.clone()).await.map_err(|_| Gone)?;
    }
    out.send(Bytes::from_static(b"\n\n")).await.map_err(|_| Gone)
}

/// The client is gone.
#[derive(Debug)]
pub(super) struct Gone;

/// Sends a comment that keeps the connection open.
pub(super) async fn keep_alive(out: &mpsc::Sender<Bytes>) -> Result<(), Gone> {
    out.send(Bytes::from_static(b":\n\n")).await.map_err(|_| Gone)
}

/// Sends a legacy stream until it ends, the client is gone, another connection takes it over, or the time to
/// hold it is over.
pub(super) async fn pump(
    session: Arc<Session>,
    mut reader: Reader,
    manner: Manner,
    out: mpsc::Sender<Bytes>,
    busy: Busy,
) {
    let ended = sent(&mut reader, manner, &out).await;
    if matches!(ended, Ok(true)) && manner.number != 0 {
        session.stream_read(manner.number);
    }
    drop((reader, busy));
}

/// True when the stream was sent to its end.
async fn sent(reader: &mut Reader, manner: Manner, out: &mpsc::Sender<Bytes>) -> Result<bool, Gone> {
    if manner.primed {
        let prime = format!("id: {}-{}\nretry: {RETRY_MS}\ndata: \n\n", manner.number, reader.at());
        out.send(prime.into()).await.map_err(|_| Gone)?;
    } else {
        // Headers alone do not reach every client before the first byte of a body.
        keep_alive(out).await?;
    }
    let close_at = (!manner.hold.is_zero() && manner.primed).then(|| Instant::now() + manner.hold);
    loop {
        tokio::select! {
            next = reader.next() => match next {
                Next::Message(number, message) => send(out, Some((manner.number, number)), &message).await?,
                Next::End => return Ok(true),
                Next::Superseded => return Ok(false),
            },
            () = out.closed() => return Err(Gone),
            () = sleep_until(close_at) => return Ok(false),
            () = tokio::time::sleep(manner.keepalive) => keep_alive(out).await?,
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Reads `<stream>-<message>` of a `Last-Event-ID`.
pub(super) fn parse_event_id(text: &[u8]) -> Option<(u64, u64)> {
    let (stream, number) = std::str::from_utf8(text).ok()?.split_once('-')?;
    Some((stream.parse().ok()?, number.parse().ok()?))
}
