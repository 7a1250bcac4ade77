//! What every HTTP(S) client of the daemon needs.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

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
pub(crate) fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}
