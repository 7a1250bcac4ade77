//! Which session a modern request is of: by the key that it shows (ADR 9).

use http::StatusCode;
use http::header::{COOKIE, HeaderMap};
use ostler_mcp::rpc;

use super::header;
use crate::reply::Refusal;

/// The header that names a session.
const SESSION: &str = "ostler-session";
/// The cookie that does.
const SESSION_COOKIE: &str = "ostler_session";
/// The longest key.
const KEY_MAX: usize = 128;

/// Whether a text may be the key of a session.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_key(key: &str) -> Result<(), String> {
    if (1..=KEY_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(format!("the key of a session must be 1 to {KEY_MAX} visible ASCII characters"))
}

/// The server and the key of a path below `/mcp/`: `{server}` or `{server}/s/{key}`.
pub(super) fn of_path(path: &str) -> (&str, Option<&str>) {
    match path.split_once("/s/") {
        Some((server, key)) => (server, Some(key)),
        None => (path, None),
    }
}

/// The key that a request shows in its path, or else in its header.
pub(super) fn find(path: Option<&str>, headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let of_header = || header(headers, SESSION).map(|key| String::from_utf8_lossy(key).into_owned());
    checked(path.map(decoded).or_else(of_header))
}

/// The key that a request shows in a cookie: browsers send it unasked, so whatever else names a session counts before it.
pub(super) fn of_cookie(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    checked(cookie(headers))
}

fn checked(key: Option<String>) -> Result<Option<String>, Refusal> {
    match key.as_deref().map_or(Ok(()), check_key) {
        Ok(()) => Ok(key),
        Err(message) => Err(Refusal::new(StatusCode::BAD_REQUEST, rpc::INVALID_REQUEST, message)),
    }
}

/// A segment of a path, its `%XX` replaced. What is none stays, and is refused where it is not a visible character.
fn decoded(segment: &str) -> String {
    percent_encoding::percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

fn cookie(headers: &HeaderMap) -> Option<String> {
    let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == SESSION_COOKIE).map(|(_, value)| value.to_owned())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().expect("a name"), HeaderValue::from_static(value)))
            .collect()
    }

    fn key(path: Option<&str>, pairs: &[(&'static str, &'static str)]) -> Option<String> {
        find(path, &headers(pairs)).expect("a key or none")
    }

    #[test]
    fn the_path_counts_before_the_header_and_a_cookie_is_neither() {
        let both = [("ostler-session", "h"), ("cookie", "a=b; ostler_session=c")];
        assert_eq!(key(Some("p"), &both).as_deref(), Some("p"));
        assert_eq!(key(None, &both).as_deref(), Some("h"));
        assert_eq!(key(None, &both[1..]), None);
        assert_eq!(of_cookie(&headers(&both)).expect("a key").as_deref(), Some("c"));
        assert_eq!(of_cookie(&headers(&[("cookie", "session=c")])).expect("none"), None);
        assert_eq!(key(Some("a%2Fb"), &[]).as_deref(), Some("a/b"));
        assert_eq!(of_path("fake/s/a/s/b"), ("fake", Some("a/s/b")));
        assert_eq!(of_path("fake"), ("fake", None));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for path in ["", "a%20b", "%00", "%FF", &"k".repeat(KEY_MAX + 1)] {
            let refusal = find(Some(path), &headers(&[])).expect_err("no key");
            assert_eq!(refusal.status, StatusCode::BAD_REQUEST, "{path}");
        }
        assert!(find(None, &headers(&[("ostler-session", "a b")])).is_err());
        assert!(of_cookie(&headers(&[("cookie", "ostler_session=")])).is_err());
    }
}
