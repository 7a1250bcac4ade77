//! `alerts.webhook`: each alert is posted as JSON.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use ostler_config::Alerts as Settings;
use ostler_domain::alert::Notify;

use super::sink::{Failure, Sink, body};
use crate::web::{describe, tls};

/// A connection that was not used for this long is closed.
const IDLE: Duration = Duration::from_secs(30);

/// Posts to one address, plain or with TLS, as that says.
#[derive(Clone, Debug)]
enum Poster {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

impl Poster {
    async fn new(uri: &Uri) -> Result<Self, Failure> {
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_idle_timeout(IDLE);
        if uri.scheme_str() != Some("https") {
            return Ok(Self::Plain(builder.build_http()));
        }
        let https = HttpsConnectorBuilder::new().with_tls_config(tls().await.map_err(Failure::Ever)?);
        Ok(Self::Tls(builder.build(https.https_only().enable_http1().build())))
    }
}

/// Keeps its connection from one alert to the next.
#[derive(Debug, Default)]
pub(super) struct Webhook(Option<(String, Poster)>);

impl Webhook {
    async fn poster(&mut self, url: &str, uri: &Uri) -> Result<Poster, Failure> {
        if let Some((known, poster)) = &self.0
            && known == url
        {
            return Ok(poster.clone());
        }
        let poster = Poster::new(uri).await?;
        self.0 = Some((url.to_owned(), poster.clone()));
        Ok(poster)
    }
}

impl Sink for Webhook {
    const NAME: &str = "webhook";

    fn is_wanted(&self, settings: &Settings) -> bool {
        settings.webhook.is_some()
    }

    async fn tell(&mut self, settings: &Settings, told: &Notify) -> Result<(), Failure> {
        let Some(url) = &settings.webhook else { return Ok(()) };
        let never = |error: &dyn std::fmt::Display| Failure::Ever(format!("its address: {error}"));
        let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| never(&error))?;
        let poster = self.poster(url, &uri).await?;
        let request = Request::post(uri)
            .header("content-type", "application/json")
            .header("user-agent", concat!("ostler/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(body(told).to_string())))
            .map_err(|error| never(&error))?;
        let sent = match poster {
            Poster::Plain(client) => client.request(request).await,
            Poster::Tls(client) => client.request(request).await,
        };
        let answer = sent.map_err(|error| Failure::Now(describe(&error)))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            // It would be refused again, but for these two: RFC 9110, 15.5.9, and RFC 6585, 4.
            status
                if status.is_client_error()
                    && status != StatusCode::REQUEST_TIMEOUT
                    && status != StatusCode::TOO_MANY_REQUESTS =>
            {
                Err(Failure::Ever(format!("it was refused with {status}")))
            }
            status => Err(Failure::Now(format!("it was answered with {status}"))),
        }
    }
}
