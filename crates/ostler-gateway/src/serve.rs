//! Connections: accepting them, bounding them, ending them.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt as _;

use crate::reply::{Reply, ReplyBody};
use crate::{Gateway, api, mcp};

/// Pause after the kernel refused a connection, for example because of too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a request came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    /// The network: `Host` and `Origin` are checked, and there is no management API.
    Tcp,
    /// The unix socket: the peer's credentials were checked.
    Unix,
}

/// Serves the TCP listener until `closing` says so; then lets running requests finish.
pub async fn tcp(gateway: Arc<Gateway>, listener: TcpListener, mut closing: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(gateway.supervisor.config().gateway.max_connections));
    let house = House::new(gateway, Door::Tcp);
    loop {
        let place = Arc::clone(&places).acquire_owned();
        let accepted = tokio::select! {
            _ = closing.changed() => return,
            accepted = async { (place.await, listener.accept().await) } => accepted,
        };
        match accepted {
            (Ok(place), Ok((stream, _))) => {
                // An answer is one small write: waiting to gather more would only delay it.
                let _ = stream.set_nodelay(true);
                spawn(&house, stream, place, &closing);
            }
            (_, Err(error)) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            (Err(_), _) => return,
        }
    }
}

/// Serves the unix socket until `closing` says so. Peers other than the daemon's own user and root are sent away.
pub async fn unix(gateway: Arc<Gateway>, listener: UnixListener, mut closing: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(gateway.supervisor.config().gateway.max_connections));
    let house = House::new(gateway, Door::Unix);
    loop {
        let place = Arc::clone(&places).acquire_owned();
        let accepted = tokio::select! {
            _ = closing.changed() => return,
            accepted = async { (place.await, listener.accept().await) } => accepted,
        };
        match accepted {
            (Ok(place), Ok((stream, _))) => match ostler_os::peercred::peer_credentials(&stream) {
                Ok(peer) if peer.is_owner() => spawn(&house, stream, place, &closing),
                Ok(peer) => {
                    tracing::warn!(uid = peer.uid, pid = peer.pid, "another user's connection refused")
                }
                Err(error) => tracing::warn!(%error, "a connection without credentials refused"),
            },
            (_, Err(error)) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            (Err(_), _) => return,
        }
    }
}

/// What is behind a door. Cheap to clone: the routes are made once.
#[derive(Clone)]
struct House {
    gateway: Arc<Gateway>,
    door: Door,
    routes: Router,
}

impl House {
    fn new(gateway: Arc<Gateway>, door: Door) -> Self {
        Self { routes: api::router(&gateway, door), gateway, door }
    }
}

fn spawn<S>(
    house: &House,
    stream: S,
    place: tokio::sync::OwnedSemaphorePermit,
    closing: &watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let house = house.clone();
    let mut closing = closing.clone();
    tokio::spawn(async move {
        let config = house.gateway.supervisor.config();
        let settings = &config.gateway;
        let mut stream = TimeoutStream::new(stream);
        // A client that does not read is cut off, and with it all that waits for it.
        stream.set_write_timeout(Some(settings.write_timeout));
        let mut http = http1::Builder::new();
        // No `pipeline_flush`: with it hyper copies every body and buffers without bound for a client that does
        // not read.
        http.timer(TokioTimer::new()).header_read_timeout(settings.header_timeout);
        let service = service_fn(|request| handle(house.clone(), request));
        let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service);
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            _ = closing.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a connection ended early");
        }
        drop(place);
    });
}

async fn handle(house: House, request: Request<Incoming>) -> Result<Reply, Infallible> {
    if let Some(server) = request.uri().path().strip_prefix("/mcp/") {
        let server = server.to_owned();
        return Ok(mcp::handle(&house.gateway, house.door, &server, request).await);
    }
    let reply = house.routes.oneshot(request.map(axum::body::Body::new)).await?;
    Ok(reply.map(ReplyBody::from))
}

/// Creates the unix socket at `path` with mode 0600. One that a dead daemon left is replaced; the caller holds
/// the lock that makes sure it is dead.
///
/// # Errors
/// When the old socket cannot be removed or the new one cannot be made.
pub fn bind_unix(path: &std::path::Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}
