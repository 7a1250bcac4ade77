//! Modern requests (revisions from 2026-07-28): no session; each request is a POST of its own whose headers
//! repeat part of its body, and closing its connection cancels it.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::core::{BROKEN, Call, Core, StreamEnd};
use super::message::ModernHead;

pub(crate) const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");

/// Makes a modern call and answers it. Dropping the future closes the connection, which is the cancellation.
pub(crate) async fn call(core: &Core, mut call: Call, head: &ModernHead) {
    let connection = match core.connect().await {
        Ok(connection) => connection,
        Err(absent) => return core.refuse(&call.id, &absent.to_string()).await,
    };
    let sent = call.sent.take();
    let Ok(reply) = connection.post(headers(head), call.body.clone(), sent).await else {
        return core.refuse(&call.id, BROKEN).await;
    };
    let Some(events) = core.answer(&call, reply, 0).await else {
        return;
    };
    match core.follow(&call.id, events, 0).await {
        StreamEnd::Answered => {}
        StreamEnd::Unanswered { .. } => core.refuse(&call.id, BROKEN).await,
        StreamEnd::TooLarge => core.refuse(&call.id, "the answer is over the limit of 64 MiB").await,
    }
}

/// The headers of a modern request. The daemon refuses one whose headers and body differ.
fn headers(head: &ModernHead) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(PROTOCOL_VERSION, value(&head.version));
    headers.insert(METHOD, value(&head.method));
    if let Some(name) = &head.name {
        headers.insert(NAME, value(name));
    }
    headers
}

/// A text as a header's value. What is not plain visible ASCII, would lose a space at its ends, or looks
/// encoded already is sent as `=?base64?...?=` (SEP-2243).
fn value(text: &str) -> HeaderValue {
    let visible = text.bytes().all(|b| (0x20..0x7f).contains(&b));
    let trimmed = text.trim_matches(' ') == text;
    let looks_encoded = text.starts_with("=?base64?") && text.ends_with("?=");
    if visible
        && trimmed
        && !looks_encoded
        && !text.is_empty()
        && let Ok(value) = HeaderValue::from_str(text)
    {
        return value;
    }
    let encoded = format!("=?base64?{}?=", BASE64_STANDARD.encode(text));
    HeaderValue::from_str(&encoded).unwrap_or(HeaderValue::from_static("=?base64??="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_plain_are_encoded() {
        let cases = [
            ("get_weather", "get_weather"),
            ("two words", "two words"),
            (" padded", "=?base64?IHBhZGRlZA==?="),
            ("日本", "=?base64?5pel5pys?="),
            ("a\nb", "=?base64?YQpi?="),
            ("=?base64?YQ==?=", "=?base64?PT9iYXNlNjQ/WVE9PT89?="),
            ("", "=?base64??="),
        ];
        for (text, header) in cases {
            assert_eq!(value(text), header, "{text:?}");
        }
    }
}
