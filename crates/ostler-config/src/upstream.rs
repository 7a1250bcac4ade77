//! Where a server is reached that is not spoken with over its standard input and output: at a port of its own
//! process, or at an address elsewhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ostler_domain::{Transport, Upstream, UpstreamAt};

use crate::diagnostic::{Diagnostic, nearest};
use crate::server::{Builder, Stop, transport};
use crate::source::Place;

/// Headers that the transports set themselves, in lower case.
const OWN_HEADERS: &[&str] = &[
    "accept",
    "connection",
    "content-length",
    "content-type",
    "host",
    "last-event-id",
    "mcp-method",
    "mcp-name",
    "mcp-protocol-version",
    "mcp-session-id",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// How a server is reached. A server with a `url` and no `transport` has the one that its scheme says.
pub(crate) fn transport_of(builder: &Builder<'_>) -> Transport {
    let said = transport(builder.values.word("transport"));
    match builder.values.text("url") {
        Some((url, _)) if !builder.values.is_said("transport") => {
            if is_web_socket(url) {
                Transport::WebSocket
            } else {
                Transport::Http
            }
        }
        _ => said,
    }
}

fn is_web_socket(url: &str) -> bool {
    url.starts_with("ws://") || url.starts_with("wss://")
}

/// Builds what `url`, `endpoint` and `headers` say; `None` for a server that is not reached over the network.
pub(crate) fn build(builder: &mut Builder<'_>) -> Result<Option<Upstream>, Stop> {
    let transport = transport_of(builder);
    if !transport.is_network() {
        return match given(builder) {
            None => Ok(None),
            Some((key, place)) => {
                let message = format!(
                    "`{key}` is not for `{}`: its transport is {}",
                    builder.raw.name,
                    transport.as_str()
                );
                let help = "it is for the transports `http`, `sse` and `websocket`";
                builder.out.error(Diagnostic::at(place, message).help(help));
                Err(Stop::Wrong)
            }
        };
    }
    let headers = headers(builder);
    let at = match text(builder, "url") {
        Some((url, place)) => address(builder, transport, &url, &place),
        None => port(builder, transport),
    };
    Ok(Some(Upstream { at: at?, headers: headers? }))
}

/// A key that only a server on the network has.
fn given(builder: &Builder<'_>) -> Option<(&'static str, Place)> {
    let keys = ["url", "headers", "endpoint.port", "endpoint.path"];
    keys.into_iter().find_map(|key| Some((key, builder.raw.values.get(key)?.place.clone())))
}

fn text(builder: &Builder<'_>, path: &str) -> Option<(String, Place)> {
    builder.values.text(path).map(|(text, place)| (text.to_owned(), place.clone()))
}

/// An address elsewhere. Nothing of a process goes with it.
fn address(
    builder: &mut Builder<'_>,
    transport: Transport,
    url: &str,
    place: &Place,
) -> Result<UpstreamAt, Stop> {
    let name = builder.raw.name.clone();
    for key in ["command", "ports", "endpoint.port", "endpoint.path"] {
        if let Some(found) = builder.raw.values.get(key) {
            let message = format!("server `{name}` has a `url` and `{key}`");
            let error = Diagnostic::at(found.place.clone(), message).other(place.clone(), "the address");
            let help = "with `url` Ostler starts no process; a server it starts is reached at `endpoint`";
            builder.out.error(error.help(help));
            return Err(Stop::Wrong);
        }
    }
    let url = builder.expand(url, place)?;
    let schemes =
        if transport == Transport::WebSocket { ["ws://", "wss://"] } else { ["http://", "https://"] };
    let rest = schemes.iter().find_map(|scheme| url.strip_prefix(scheme)).unwrap_or_default();
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let plain = url.bytes().all(|byte| byte.is_ascii_graphic()) && !url.contains('#');
    if authority.is_empty() || authority.starts_with(':') || authority.contains('@') || !plain {
        let error = Diagnostic::at(
            place.clone(),
            format!("`url` is not an address of transport `{}`", transport.as_str()),
        );
        let error =
            error.expected(format!("`{0}HOST[:PORT]/PATH` or `{1}HOST[:PORT]/PATH`", schemes[0], schemes[1]));
        builder.out.error(match authority.contains('@') {
            true => error
                .help("give a user and password as a header: `headers = { Authorization = \"Basic ...\" }`"),
            false => error,
        });
        return Err(Stop::Wrong);
    }
    Ok(UpstreamAt::Url(url))
}

/// One of the ports of the server's own process.
fn port(builder: &mut Builder<'_>, transport: Transport) -> Result<UpstreamAt, Stop> {
    let (server, known) = (builder.raw.name.clone(), builder.values.ports("ports").to_vec());
    let path = match text(builder, "endpoint.path") {
        Some((path, place)) => {
            let path = builder.expand(&path, &place)?;
            if !path.starts_with('/')
                || path.contains('#')
                || !path.bytes().all(|byte| byte.is_ascii_graphic())
            {
                let error = Diagnostic::at(place, "`path` is not a path");
                builder.out.error(error.expected("a text with `/` first and no white space, such as `/mcp`"));
                return Err(Stop::Wrong);
            }
            path
        }
        None => default_path(transport).to_owned(),
    };
    let names = || known.iter().map(|(name, _, _)| name.as_str());
    if let Some((wanted, place)) = text(builder, "endpoint.port") {
        if names().any(|name| name == wanted) {
            return Ok(UpstreamAt::Port { name: wanted, path });
        }
        let error = Diagnostic::at(place, format!("server `{server}` has no port `{wanted}`"));
        let near = nearest(&wanted, names());
        builder.out.error(error.nearest(near).expected("the name of one of its `ports`"));
        return Err(Stop::Wrong);
    }
    match known.as_slice() {
        [(name, _, _)] => Ok(UpstreamAt::Port { name: name.clone(), path }),
        [] => {
            let message = format!("server `{server}` has no port at which it could be reached");
            let error = Diagnostic::at(builder.raw.place.clone(), message);
            let help = "give it one and tell it: `ports = { mcp = \"auto\" }`, `args = [\"--port\", \"{port.mcp}\"]`; \
                        or `url` for a server that runs elsewhere";
            builder.out.error(error.help(help));
            Err(Stop::Wrong)
        }
        several => {
            let place = several[0].2.clone();
            let error = Diagnostic::at(place, format!("server `{server}` has several ports"));
            let list: Vec<_> = names().map(|name| format!("`{name}`")).collect();
            let help = format!(
                "say which one speaks MCP: `endpoint = {{ port = ... }}` with one of {}",
                list.join(", ")
            );
            builder.out.error(error.help(help));
            Err(Stop::Wrong)
        }
    }
}

/// What the SDKs' examples and most servers use.
fn default_path(transport: Transport) -> &'static str {
    match transport {
        Transport::Sse => "/sse",
        Transport::WebSocket => "/ws",
        _ => "/mcp",
    }
}

fn headers(builder: &mut Builder<'_>) -> Result<BTreeMap<String, String>, Stop> {
    let mut found = BTreeMap::new();
    let mut wrong = None;
    for (name, value, place) in builder.values.map("headers").to_vec() {
        let lower = name.to_ascii_lowercase();
        let is_own = OWN_HEADERS.contains(&lower.as_str()) || lower.starts_with("sec-websocket-");
        if is_own || lower.starts_with("mcp-param-") {
            let error = Diagnostic::at(place, format!("the header `{name}` is set by Ostler itself"));
            builder.out.error(error.help("remove it"));
            wrong = Some(Stop::Wrong);
            continue;
        }
        match builder.expand(&value, &place) {
            Ok(value) if value.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t')) => {
                if found.insert(lower, value).is_some() {
                    let error = Diagnostic::at(place, format!("the header `{name}` is given twice"));
                    builder.out.error(error.help("upper and lower case are the same in a header's name"));
                    wrong = Some(Stop::Wrong);
                }
            }
            Ok(_) => {
                let error = Diagnostic::at(place, format!("the header `{name}` holds what a header cannot"));
                builder.out.error(error.expected("visible ASCII characters, spaces and tabs"));
                wrong = Some(Stop::Wrong);
            }
            Err(stop) => wrong = Some(stop),
        }
    }
    wrong.map_or(Ok(found), Err)
}

/// Whether an address leads to the daemon that reads it: its listener, and the path of its MCP endpoints.
pub(crate) fn is_ostler_itself(url: &str, listen: SocketAddr) -> bool {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let Some((host, port)) = authority.rsplit_once(':') else { return false };
    let host = host.trim_matches(['[', ']']);
    let is_here = match host.parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback() || ip.is_unspecified() || ip == listen.ip(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    };
    is_here && port.parse() == Ok(listen.port()) && (path == "/mcp" || path.starts_with("/mcp/"))
}

/// Whether HTTP takes this as a header's name (RFC 9110, 5.6.2: a token).
pub(crate) fn is_header(name: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ostler_is_not_its_own_server() {
        let listen = "127.0.0.1:7320".parse().unwrap();
        for (url, itself) in [
            ("http://127.0.0.1:7320/mcp/github", true),
            ("http://localhost:7320/mcp", true),
            ("http://[::1]:7320/mcp/a?b", true),
            ("http://127.0.0.1:7321/mcp/github", false),
            ("http://127.0.0.1:7320/other", false),
            ("https://example.org:7320/mcp/github", false),
            ("https://example.org/mcp", false),
        ] {
            assert_eq!(is_ostler_itself(url, listen), itself, "{url}");
        }
    }
}
