//! Telling one sink, with patience.

use std::sync::Arc;
use std::time::Duration;

use ostler_config::Alerts as Settings;
use ostler_domain::alert::Notify;
use ostler_domain::event::Happening;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Alerts;
use crate::clock;

/// Longest for one try at telling.
const TELL_LIMIT: Duration = Duration::from_secs(10);

/// The pause before the first further try; each is twice as long as the one before.
const RETRY_MIN: Duration = Duration::from_secs(1);

/// No pause is longer.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Why a telling did not arrive.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may the next time.
    Now(String),
    /// It never will.
    Ever(String),
}

/// A way in which alerts are told.
pub(super) trait Sink {
    /// Its key in `[alerts]`.
    const NAME: &str;

    /// Whether anybody wants to be told in this way.
    fn is_wanted(&self, settings: &Settings) -> bool;

    /// Tells once. Dropped when it takes longer than [`TELL_LIMIT`].
    fn tell(
        &mut self,
        settings: &Settings,
        told: &Notify,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Tells this sink whatever comes, one after the other.
pub(super) async fn follow<S: Sink>(
    alerts: Arc<Alerts>,
    mut queue: mpsc::Receiver<Arc<Notify>>,
    mut sink: S,
) {
    while let Some(told) = queue.recv().await {
        if sink.is_wanted(&alerts.settings())
            && let Err(why) = tell(&alerts, &told, &mut sink).await
        {
            alerts.events.count("alerts.retries");
            let what = format!("the alert \"{told}\" did not reach the {}: {why}", S::NAME);
            alerts.events.record("alerts", Happening::Dropped { what, count: 1 });
        }
    }
}

/// Until it arrives, or `alerts.retries` further tries have failed; the latest failure then.
async fn tell(alerts: &Alerts, told: &Notify, sink: &mut impl Sink) -> Result<(), String> {
    let (mut tries, mut pause) = (0, RETRY_MIN);
    loop {
        // Each time: they may have been changed meanwhile.
        let settings = alerts.settings();
        let why = match tokio::time::timeout(TELL_LIMIT, sink.tell(&settings, told)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Failure::Ever(why))) => return Err(why),
            Ok(Err(Failure::Now(why))) => why,
            Err(_) => format!("it took longer than {} s", TELL_LIMIT.as_secs()),
        };
        tries += 1;
        if tries > settings.retries {
            return Err(format!("{why} ({tries} tries, alerts.retries)"));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

/// What machines are told.
pub(super) fn body(told: &Notify) -> Value {
    let alert = &told.alert;
    let age = clock::now().since(alert.since).as_millis();
    json!({
        "stage": told.stage.as_str(),
        "kind": alert.kind.as_str(),
        "subject": alert.subject,
        "severity": alert.severity.as_str(),
        "message": alert.message,
        "since_unix_ms": clock::unix_ms().saturating_sub(u64::try_from(age).unwrap_or(u64::MAX)),
        "count": alert.count,
    })
}
