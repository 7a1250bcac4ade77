//! What a legacy session over HTTP is known by (2025-11-25, Streamable HTTP, "Session Management").

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

/// The session's name, given by the server.
pub(super) const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
/// The first revision whose requests name it in a header.
const FIRST_WITH_HEADER: &str = "2025-06-18";

/// What the answer to `initialize` said of the session.
#[derive(Debug, Default)]
pub(super) struct Session(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    id: Option<HeaderValue>,
    version: Option<HeaderValue>,
}

impl Session {
    /// The head of the answer to `initialize`.
    pub(super) fn named(&self, headers: &HeaderMap) {
        self.lock().id = headers.get(SESSION_ID).cloned();
    }

    /// The answer to `initialize`.
    pub(super) fn agreed(&self, answer: &[u8]) {
        #[derive(Deserialize)]
        struct Answer {
            result: Agreed,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Agreed {
            protocol_version: String,
        }
        let Ok(Answer { result }) = serde_json::from_slice(answer) else { return };
        let named = Some(result.protocol_version).filter(|version| version.as_str() >= FIRST_WITH_HEADER);
        self.lock().version = named.and_then(|version| HeaderValue::try_from(version).ok());
    }

    /// What its requests say.
    pub(super) fn headers(&self) -> HeaderMap {
        let known = self.lock();
        let mut headers = HeaderMap::new();
        headers.extend(known.id.clone().map(|id| (SESSION_ID, id)));
        headers.extend(known.version.clone().map(|version| (VERSION, version)));
        headers
    }

    /// Whether the server gave it a name.
    pub(super) fn is_named(&self) -> bool {
        self.lock().id.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
