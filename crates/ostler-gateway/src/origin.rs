//! Which `Host` and `Origin` are let in: without this check a web page anywhere could reach the gateway by DNS
//! rebinding (both revisions, "Security Warning").

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, StatusCode};
use ostler_config::Gateway as Settings;
use ostler_mcp::rpc;

use crate::reply::Refusal;

/// Checks both headers of a request that came over the network.
///
/// # Errors
/// 403 with the header and the key that would allow it.
pub fn check(headers: &HeaderMap, settings: &Settings) -> Result<(), Refusal> {
    let refuse = |what: &str, value: &[u8], key: &str| {
        let value = String::from_utf8_lossy(value);
        let message = format!("{what} `{value}` is not allowed here (gateway.{key})");
        Err(Refusal::new(StatusCode::FORBIDDEN, rpc::INVALID_REQUEST, message))
    };
    let host = headers.get(HOST).map_or(&b""[..], |host| host.as_bytes());
    if !host_allowed(host, settings) {
        return refuse("Host", host, "allowed_hosts");
    }
    match headers.get(ORIGIN).map(|origin| origin.as_bytes()) {
        Some(origin) if !origin_allowed(origin, settings) => refuse("Origin", origin, "allowed_origins"),
        _ => Ok(()),
    }
}

fn host_allowed(host: &[u8], settings: &Settings) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let name = without_port(host);
    is_loopback(name)
        || settings
            .allowed_hosts
            .iter()
            .any(|allowed| allowed.eq_ignore_ascii_case(host) || allowed.eq_ignore_ascii_case(name))
}

fn origin_allowed(origin: &[u8], settings: &Settings) -> bool {
    let Ok(origin) = std::str::from_utf8(origin) else { return false };
    let local = ["http://", "https://"]
        .iter()
        .filter_map(|scheme| origin.strip_prefix(scheme))
        .any(|host| is_loopback(without_port(host)));
    local
        || settings
            .allowed_origins
            .iter()
            .any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin))
}

fn is_loopback(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost")
        || name == "[::1]"
        || name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if !name.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') =>
        {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        let settings = Settings {
            allowed_hosts: vec!["box.lan".to_owned()],
            allowed_origins: vec!["https://app.example".to_owned()],
            ..Settings::default()
        };
        check(&headers, &settings).is_ok()
    }

    #[test]
    fn only_local_and_named_hosts_and_origins_come_in() {
        for host in
            ["localhost", "LOCALHOST:1", "127.0.0.1:7320", "127.1.2.3", "[::1]:80", "[::1]", "box.lan:7320"]
        {
            assert!(verdict(host, None), "{host}");
        }
        for host in
            ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "10.0.0.1", "[::2]"]
        {
            assert!(!verdict(host, None), "{host}");
        }
        for origin in ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:9", "https://app.example"]
        {
            assert!(verdict("localhost", Some(origin)), "{origin}");
        }
        for origin in [
            "null",
            "http://evil.example",
            "http://localhost.evil.example",
            "file://",
            "https://app.example.evil",
        ] {
            assert!(!verdict("localhost", Some(origin)), "{origin}");
        }
    }
}
