//! What every HTTP(S) client of the daemon needs.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::uri::InvalidUri;
use http::{Request, Response, Uri};
use http_body::Body;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower::Service as _;

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// After so long without a word, and then as often, the kernel asks whether the other end of a connection is still
/// there. A stream may be silent for hours; one whose server vanished must not be waited for as long.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Such questions without an answer, after which the connection is lost.
const UNANSWERED: u32 = 3;
/// Most connections to one server kept without a request.
const MAX_IDLE: usize = 32;

/// hyper's pooled client, plain or with TLS. Redirections are not followed: they could lead elsewhere with secrets.
#[derive(Debug)]
pub(crate) enum WebClient<B> {
    Plain(legacy::Client<HttpConnector, B>),
    Tls(legacy::Client<HttpsConnector<HttpConnector>, B>),
}

/// Not derived: bodies need not be `Clone`.
impl<B> Clone for WebClient<B> {
    fn clone(&self) -> Self {
        match self {
            Self::Plain(client) => Self::Plain(client.clone()),
            Self::Tls(client) => Self::Tls(client.clone()),
        }
    }
}

impl<B> WebClient<B>
where
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    /// A client for servers at addresses like this one, which closes a connection without a request after `idle`.
    ///
    /// # Errors
    /// When TLS is needed and the system's certificates cannot be read.
    pub(crate) async fn new(uri: &Uri, idle: Duration) -> Result<Self, String> {
        let tcp = tcp();
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(idle).pool_max_idle_per_host(MAX_IDLE);
        if uri.scheme_str() != Some("https") {
            return Ok(Self::Plain(builder.build(tcp)));
        }
        let https = HttpsConnectorBuilder::new().with_tls_config(tls().await?).https_only().enable_http1();
        Ok(Self::Tls(builder.build(https.wrap_connector(tcp))))
    }

    /// Sends a request; resolves with the head of its answer.
    ///
    /// # Errors
    /// What went wrong on the way, for people.
    pub(crate) async fn send(&self, request: Request<B>) -> Result<Response<Incoming>, String> {
        let sent = match self {
            Self::Plain(client) => client.request(request).await,
            Self::Tls(client) => client.request(request).await,
        };
        sent.map_err(|error| describe(&error))
    }
}

/// What connections are made with, for an address of any scheme.
fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE));
    tcp.set_keepalive_retries(Some(UNANSWERED));
    tcp
}

/// A connection to this host, which stands as in an address, for what is no client of HTTP.
///
/// # Errors
/// What went wrong on the way, for people.
pub(crate) async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let there: Uri =
        format!("http://{host}:{port}/").parse().map_err(|error: InvalidUri| describe(&error))?;
    let connected = tcp().call(there).await;
    connected.map(TokioIo::into_inner).map_err(|error| describe(&error))
}

/// The system's certificates, which say whom to trust.
///
/// # Errors
/// When there are none.
pub(crate) async fn tls() -> Result<ClientConfig, String> {
    // Files are read.
    let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let loaded = loaded.map_err(|_| "Ostler is ending".to_owned())?;
    let mut roots = RootCertStore::empty();
    let (good, _) = roots.add_parsable_certificates(loaded.certs);
    if good == 0 {
        let why = loaded.errors.first().map_or_else(String::new, |error| format!(": {error}"));
        return Err(format!(
            "the system has no certificates of authorities to check the server's with (on Debian: the package \
             ca-certificates){why}"
        ));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| describe(&error))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// An error and what led to it, in one line.
pub(crate) fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = Some(error);
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        if is_of_certificate(cause) {
            text.push_str(" (trusted are the system's authorities; the variable SSL_CERT_FILE names others)");
        }
        next = cause.source();
    }
    text
}

/// Whether the other side's certificate is what is wrong.
fn is_of_certificate(error: &(dyn Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
        return true;
    }
    // Such an error tells what is inside it as its own, and of the sources only that one's.
    let inside = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    inside.is_some_and(|inside| is_of_certificate(inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_asks_whether_the_other_end_is_there() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let there = listener.local_addr().unwrap().port();
        let stream = connect("127.0.0.1", there).await.unwrap();
        let here = stream.local_addr().unwrap().port();
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        let ports = [format!(":{here:04X}"), format!(":{there:04X}")];
        let mine = rows.skip(1).find(|row| row[1].ends_with(&ports[0]) && row[2].ends_with(&ports[1]));
        let clock = mine.expect("the connection")[5].to_owned();
        assert!(clock.starts_with("02:"), "the clock of keepalive runs: {clock}");
    }
}
