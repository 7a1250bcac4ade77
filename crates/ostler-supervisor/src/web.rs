//! HTTP(S) requests of the daemon's own.

use std::error::Error;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Uri;
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};

/// A connection that was not used for this long is closed.
const IDLE: Duration = Duration::from_secs(30);

/// A client for requests with bodies that are at hand.
pub(crate) type WebClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// An error with all that caused it: the outermost says only that a request could not be sent.
pub(crate) fn whole(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// A client for this address and others of its scheme.
///
/// # Errors
/// For `https://`, when the system has no certificates of authorities to check a server's against.
pub(crate) fn client(uri: &Uri) -> io::Result<WebClient> {
    let tls = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let tls = if uri.scheme_str() == Some("https") {
        tls.with_native_roots().map_err(|error| {
            let why = format!(
                "{error}; `https://` needs the certificates of authorities (on Debian the package ca-certificates)"
            );
            io::Error::new(error.kind(), why)
        })?
    } else {
        // Nobody is trusted who need not be.
        tls.with_root_certificates(RootCertStore::empty())
    };
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls.with_no_client_auth())
        .https_or_http()
        .enable_http1();
    Ok(Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).build(connector.build()))
}
