//! `alerts.webhook`: each alert is posted as JSON.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, Uri};
use ostler_config::Alerts as Settings;
use ostler_domain::alert::Notify;

use super::sink::{Failure, Sink, body};
use crate::web::WebClient;

/// A connection that was not used for this long is closed.
const IDLE: Duration = Duration::from_secs(30);

/// Keeps its connection from one alert to the next.
#[derive(Debug, Default)]
pub(super) struct Webhook(Option<(String, WebClient<Full<Bytes>>)>);

impl Webhook {
    async fn client(&mut self, url: &str, uri: &Uri) -> Result<WebClient<Full<Bytes>>, Failure> {
        if let Some((known, client)) = &self.0
            && known == url
        {
            return Ok(client.clone());
        }
        let client = WebClient::new(uri, IDLE).await.map_err(Failure::Ever)?;
        self.0 = Some((url.to_owned(), client.clone()));
        Ok(client)
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
        let client = self.client(url, &uri).await?;
        let request = Request::post(uri)
            .header("content-type", "application/json")
            .header("user-agent", concat!("ostler/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(body(told).to_string())))
            .map_err(|error| never(&error))?;
        let answer = client.send(request).await.map_err(Failure::Now)?;
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
