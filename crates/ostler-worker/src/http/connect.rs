//! Connections: a name becomes addresses, those that may be reached are tried.

use std::cell::OnceCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use url::{Host, Url};

use super::policy::not_public;
use crate::job::{Job, error};
use crate::protocol::{ErrorKind, TaskError};

/// Whom to trust: the system's authorities, read when they are needed first.
#[derive(Default)]
pub(super) struct Trust(OnceCell<Arc<ClientConfig>>);

impl Trust {
    fn config(&self) -> Result<Arc<ClientConfig>, String> {
        if let Some(config) = self.0.get() {
            return Ok(Arc::clone(config));
        }
        let loaded = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (good, _) = roots.add_parsable_certificates(loaded.certs);
        if good == 0 {
            let why = loaded.errors.first().map_or_else(String::new, |error| format!(": {error}"));
            return Err(format!(
                "there are no certificates of authorities to check the server's with (SSL_CERT_FILE names them; on \
                 Debian: the package ca-certificates){why}"
            ));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|why| why.to_string())?;
        let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
        Ok(Arc::clone(self.0.get_or_init(|| config)))
    }
}

/// Connects to where a URL leads.
///
/// # Errors
/// `refused` where that is not allowed, `failed` where it does not succeed.
pub(super) async fn connect(job: &Job, url: &Url, trust: &Trust) -> Result<Stream, TaskError> {
    let tcp = reach(job, url).await?;
    let failed = |why: String| error(ErrorKind::Failed, &format!("{}: {why}", host(url)));
    let _ = tcp.set_nodelay(true);
    if url.scheme() != "https" {
        return Ok(Stream::Plain(tcp));
    }
    let name = match url.host() {
        Some(Host::Ipv4(v4)) => ServerName::from(IpAddr::V4(v4)),
        Some(Host::Ipv6(v6)) => ServerName::from(IpAddr::V6(v6)),
        Some(Host::Domain(name)) => {
            ServerName::try_from(name.to_owned()).map_err(|why| failed(why.to_string()))?
        }
        None => return Err(failed("no host".to_owned())),
    };
    let tls = TlsConnector::from(trust.config().map_err(failed)?);
    let stream = tls.connect(name, tcp).await.map_err(|why| failed(why.to_string()))?;
    Ok(Stream::Tls(Box::new(stream)))
}

/// The first of a host's addresses that may be reached and answers.
async fn reach(job: &Job, url: &Url) -> Result<TcpStream, TaskError> {
    let host = host(url);
    let failed = |why: &dyn std::fmt::Display| error(ErrorKind::Failed, &format!("{host}: {why}"));
    let port = url.port_or_known_default().unwrap_or(80);
    let addresses: Vec<SocketAddr> = match url.host() {
        Some(Host::Ipv4(v4)) => vec![(v4, port).into()],
        Some(Host::Ipv6(v6)) => vec![(v6, port).into()],
        Some(Host::Domain(name)) => {
            tokio::net::lookup_host((name, port)).await.map_err(|why| failed(&why))?.collect()
        }
        None => Vec::new(),
    };
    let (mut refused, mut last) = (None, None);
    for address in addresses {
        if let Some(why) = not_public(address.ip()).filter(|_| !job.allow.private) {
            refused = Some((address.ip(), why));
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(tcp) => return Ok(tcp),
            Err(why) => last = Some(why),
        }
    }
    if let Some(why) = last {
        return Err(failed(&why));
    }
    let Some((address, why)) = refused else { return Err(failed(&"it has no address")) };
    Err(error(
        ErrorKind::Refused,
        &format!("{host}: {address} is {why}; the task's project has to allow private addresses"),
    ))
}

fn host(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

/// A connection, plain or with TLS.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
