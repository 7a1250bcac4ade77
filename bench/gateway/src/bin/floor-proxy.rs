//! The floor of the comparison: the least a Streamable HTTP front for one stdio server can do.
//!
//! Each POST body becomes one line to the child with its id replaced, each line of the child finds its way back
//! through a pending map. Session ids are minted and never checked; nothing is authenticated, bounded in time,
//! supervised or logged. It has the runtime a real gateway has (tokio, two workers, hyper), so that what a
//! gateway takes beyond it is the gateway's own.
//!
//! Tasks: one per connection (hyper); one writer (queue -> child's stdin); one reader (child's stdout -> pending
//! map -> the waiting request).

use bytes::{Bytes, BytesMut};
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot};

/// Lines waiting for the child; beyond them, connections wait.
const QUEUED_LINES: usize = 1024;
const READ_BYTES: usize = 64 << 10;

#[derive(Parser)]
struct Arguments {
    /// Port on 127.0.0.1; 0 takes a free one. The first line printed is the address.
    #[arg(long)]
    port: u16,
    /// The stdio server and its arguments.
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

/// A request on its way: the id its client gave it, and who waits.
struct Pending {
    id: Box<str>,
    reply: oneshot::Sender<Bytes>,
}

struct Proxy {
    lines: mpsc::Sender<Vec<u8>>,
    pending: Mutex<HashMap<u64, Pending>>,
    next_id: AtomicU64,
    next_session: AtomicU64,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: Option<&'a str>,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let mut child = Command::new(&arguments.command[0])
        .args(&arguments.command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (stdin, stdout) =
        child.stdin.take().zip(child.stdout.take()).ok_or("the child's pipes were not made")?;
    let (lines, queue) = mpsc::channel(QUEUED_LINES);
    let proxy = Arc::new(Proxy {
        lines,
        pending: Mutex::default(),
        next_id: AtomicU64::new(1),
        next_session: AtomicU64::new(1),
    });
    let listener = TcpListener::bind(("127.0.0.1", arguments.port)).await?;
    println!("{}", listener.local_addr()?);
    let writer = tokio::spawn(write_lines(stdin, queue));
    let reader = tokio::spawn(read_lines(stdout, Arc::clone(&proxy)));
    tokio::select! {
        accepted = accept(listener, proxy) => accepted?,
        ended = writer => ended??,
        ended = reader => ended??,
        status = child.wait() => return Err(format!("the server ended: {}", status?).into()),
    }
    Ok(())
}

async fn accept(listener: TcpListener, proxy: Arc<Proxy>) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let proxy = Arc::clone(&proxy);
        tokio::spawn(async move {
            let service = service_fn(|request| handle(&proxy, request));
            // A client that goes away ends its connection, and nothing else.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn handle(proxy: &Proxy, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() != Method::POST {
        return Ok(empty(StatusCode::METHOD_NOT_ALLOWED));
    }
    let Ok(body) = request.into_body().collect().await else {
        return Ok(empty(StatusCode::BAD_REQUEST));
    };
    let body = body.to_bytes();
    Ok(forward(proxy, &body).await.unwrap_or_else(empty))
}

async fn forward(proxy: &Proxy, body: &[u8]) -> Result<Response<Full<Bytes>>, StatusCode> {
    let envelope: Envelope<'_> = serde_json::from_slice(body).map_err(|_| StatusCode::BAD_REQUEST)?;
    let Some(id) = envelope.id else {
        proxy.lines.send(line(body)).await.map_err(|_| StatusCode::BAD_GATEWAY)?;
        return Ok(empty(StatusCode::ACCEPTED));
    };
    let number = proxy.next_id.fetch_add(1, Ordering::Relaxed);
    let (reply, answer) = oneshot::channel();
    let pending = Pending { id: id.get().into(), reply };
    proxy.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(number, pending);
    let message = line(&replace(body, id, number.to_string().as_bytes()));
    proxy.lines.send(message).await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    let answer = answer.await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    let mut response = Response::new(Full::new(answer));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if envelope.method == Some("initialize") {
        let session = proxy.next_session.fetch_add(1, Ordering::Relaxed);
        response.headers_mut().insert("mcp-session-id", HeaderValue::from(session));
    }
    Ok(response)
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn line(message: &[u8]) -> Vec<u8> {
    let mut line = Vec::with_capacity(message.len() + 1);
    line.extend_from_slice(message);
    line.push(b'\n');
    line
}

/// `message` with its part `old` replaced by `new`; `old` must be borrowed from `message`.
fn replace(message: &[u8], old: &RawValue, new: &[u8]) -> Vec<u8> {
    let start = old.get().as_ptr() as usize - message.as_ptr() as usize;
    let end = start + old.get().len();
    [&message[..start], new, &message[end..]].concat()
}

/// Writes all lines that wait in one go. The first line wakes this task before the other connections that are
/// ready had their turn, so it lets them go first: one write per turn of the runtime instead of one per line.
async fn write_lines(mut stdin: ChildStdin, mut queue: mpsc::Receiver<Vec<u8>>) -> std::io::Result<()> {
    let mut output = Vec::with_capacity(READ_BYTES);
    while let Some(first) = queue.recv().await {
        output.extend_from_slice(&first);
        tokio::task::yield_now().await;
        while output.len() < READ_BYTES
            && let Ok(next) = queue.try_recv()
        {
            output.extend_from_slice(&next);
        }
        stdin.write_all(&output).await?;
        output.clear();
    }
    Ok(())
}

async fn read_lines(mut stdout: ChildStdout, proxy: Arc<Proxy>) -> std::io::Result<()> {
    let mut input = BytesMut::with_capacity(READ_BYTES);
    while stdout.read_buf(&mut input).await? > 0 {
        while let Some(length) = memchr::memchr(b'\n', &input) {
            let message = input.split_to(length + 1);
            resolve(&proxy, &message[..length]);
        }
        input.reserve(READ_BYTES);
    }
    Ok(())
}

/// Gives one message of the child to the request that waits for it; what none waits for is dropped.
fn resolve(proxy: &Proxy, message: &[u8]) {
    let Ok(Envelope { id: Some(id), .. }) = serde_json::from_slice(message) else {
        return;
    };
    let Ok(number) = id.get().parse() else { return };
    let pending = proxy.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    if let Some(Pending { id: original, reply }) = pending {
        let _ = reply.send(replace(message, id, original.as_bytes()).into());
    }
}
