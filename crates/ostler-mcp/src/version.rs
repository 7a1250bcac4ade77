//! The protocol's revisions, and the opening of a conversation in both eras.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::envelope::Kind;
use crate::message::Message;
use crate::mux::{Answer, Ticket};
use crate::rpc;

/// Legacy revisions, oldest first.
pub const LEGACY: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
/// The modern revision.
pub const MODERN: &str = "2026-07-28";

/// Whether this is a legacy revision Ostler knows.
pub fn is_legacy(version: &str) -> bool {
    LEGACY.contains(&version)
}

/// The parameters of the `initialize` that the gateway sends for itself to a process which several sessions
/// will share: a fixed set of capabilities, since the sessions are not known yet.
pub fn shared_initialize_params() -> String {
    format!(
        "{{\"protocolVersion\":\"2025-11-25\",\"capabilities\":{{\"roots\":{{\"listChanged\":true}},\"sampling\":{{}},\
         \"elicitation\":{{}}}},\"clientInfo\":{{\"name\":\"ostler\",\"version\":\"{}\"}}}}",
        env!("CARGO_PKG_VERSION")
    )
}

/// The same for a process of one session that has no client to ask: it has no capabilities.
pub fn unasked_initialize_params() -> String {
    format!(
        "{{\"protocolVersion\":\"2025-11-25\",\"capabilities\":{{}},\
         \"clientInfo\":{{\"name\":\"ostler\",\"version\":\"{}\"}}}}",
        env!("CARGO_PKG_VERSION")
    )
}

/// `initialize` with these parameters, which must be a JSON object.
pub fn initialize(ticket: Ticket, params: &str) -> Message {
    Message::from(format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":{ticket},\"method\":\"initialize\",\"params\":{params}}}"
    ))
}

/// `notifications/initialized`.
pub fn initialized() -> Message {
    Message::from("{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}".to_owned())
}

/// A request of the gateway's own to a modern process; `params` are further members, each followed by a comma.
pub fn modern_request(ticket: Ticket, method: &str, params: &str) -> Message {
    Message::from(format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":{ticket},\"method\":\"{method}\",\"params\":{{{params}\"_meta\":{{\
         \"io.modelcontextprotocol/protocolVersion\":\"{MODERN}\",\
         \"io.modelcontextprotocol/clientInfo\":{{\"name\":\"ostler\",\"version\":\"{}\"}},\
         \"io.modelcontextprotocol/clientCapabilities\":{{}}}}}}}}",
        env!("CARGO_PKG_VERSION")
    ))
}

/// What an answer to `server/discover` says of a process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Discovery {
    /// It serves [`MODERN`].
    Modern,
    /// It is modern, but serves only these other revisions.
    OtherModern(Vec<String>),
    /// It is not modern: any answer that is not a recognised modern one (2026-07-28, stdio, "Backward
    /// Compatibility").
    Legacy,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DiscoverAnswer {
    result: Option<DiscoverResult>,
    error: Option<RpcError>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DiscoverResult {
    supported_versions: Vec<String>,
}

#[derive(Deserialize)]
struct RpcError {
    data: Option<Supported>,
}

#[derive(Deserialize)]
struct Supported {
    supported: Option<Vec<String>>,
}

/// Reads the answer to the probe.
pub fn discovery(answer: &Answer) -> Discovery {
    let parsed: Option<DiscoverAnswer> = serde_json::from_slice(&answer.message.to_bytes()).ok();
    let versions = match answer.kind {
        Kind::Error(rpc::UNSUPPORTED_VERSION) => {
            parsed.and_then(|a| a.error).and_then(|e| e.data).and_then(|d| d.supported).unwrap_or_default()
        }
        // A server that demands a capability or complains of headers knows the modern revision.
        Kind::Error(rpc::HEADER_MISMATCH | rpc::MISSING_CAPABILITY) => return Discovery::Modern,
        Kind::Result => match parsed.and_then(|a| a.result) {
            Some(result) => result.supported_versions,
            None => return Discovery::Legacy,
        },
        _ => return Discovery::Legacy,
    };
    if versions.iter().any(|version| version == MODERN) {
        Discovery::Modern
    } else {
        Discovery::OtherModern(versions)
    }
}

/// The result of an `initialize` that the gateway made, kept to answer clients with.
#[derive(Clone, Debug)]
pub struct InitializeResult {
    raw: Box<str>,
    version: Box<str>,
    /// Where the version's text, quotes included, stands in `raw`.
    version_at: std::ops::Range<usize>,
}

impl InitializeResult {
    /// Reads the answer to `initialize`; `None` for an error, or a result without a protocol version.
    pub fn read(answer: &Answer) -> Option<Self> {
        #[derive(Deserialize)]
        struct Outer<'a> {
            #[serde(borrow)]
            result: &'a RawValue,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Inner<'a> {
            #[serde(borrow)]
            protocol_version: &'a RawValue,
        }
        let bytes = answer.message.to_bytes();
        let outer: Outer<'_> = serde_json::from_slice(&bytes).ok()?;
        let raw = outer.result.get();
        let inner: Inner<'_> = serde_json::from_str(raw).ok()?;
        let version: Box<str> = serde_json::from_str(inner.protocol_version.get()).ok()?;
        let start = inner.protocol_version.get().as_ptr() as usize - raw.as_ptr() as usize;
        let version_at = start..start + inner.protocol_version.get().len();
        Some(Self { raw: raw.into(), version, version_at })
    }

    /// The revision the process agreed to.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The revision a client that asked for `requested` is told: its own when Ostler knows it and it is no
    /// newer than the process's, else the process's.
    pub fn version_for<'a>(&'a self, requested: &'a str) -> &'a str {
        if is_legacy(requested) && requested <= &*self.version { requested } else { &self.version }
    }

    /// The answer to a client's `initialize` with this id, which asked for `requested`.
    pub fn answer(&self, id: &[u8], requested: &str) -> Message {
        let mut text = String::with_capacity(self.raw.len() + 64);
        text.push_str(&self.raw[..self.version_at.start]);
        let _ = write!(text, "\"{}\"", self.version_for(requested));
        text.push_str(&self.raw[self.version_at.end..]);
        rpc::result(id, &text)
    }
}

/// `protocolVersion` and `clientInfo` of a client's `initialize` parameters, for the session's record.
pub fn initialize_request_info(params: &[u8]) -> (Option<String>, Option<String>) {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        protocol_version: Option<String>,
        client_info: Option<Info>,
    }
    #[derive(Deserialize)]
    struct Info {
        name: Option<String>,
        version: Option<String>,
    }
    let Ok(params) = serde_json::from_slice::<Params>(params) else { return (None, None) };
    let client = params.client_info.map(|info| {
        let (name, version) = (info.name.unwrap_or_default(), info.version.unwrap_or_default());
        format!("{name} {version}").trim().chars().take(128).collect()
    });
    (params.protocol_version, client)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: Kind, text: &str) -> Answer {
        Answer { kind, message: Message::from(text.to_owned()) }
    }

    #[test]
    fn a_probe_tells_the_eras_apart() {
        let modern =
            r#"{"jsonrpc":"2.0","id":1,"result":{"supportedVersions":["2026-07-28"],"capabilities":{}}}"#;
        assert_eq!(discovery(&answer(Kind::Result, modern)), Discovery::Modern);
        let other = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32022,"message":"","data":{"supported":["2027-01-01"]}}}"#;
        let expected = Discovery::OtherModern(vec!["2027-01-01".to_owned()]);
        assert_eq!(discovery(&answer(Kind::Error(-32022), other)), expected);
        for code in [-32601, -32602, -32600, -32000] {
            assert_eq!(discovery(&answer(Kind::Error(code), "{}")), Discovery::Legacy, "{code}");
        }
        assert_eq!(discovery(&answer(Kind::Result, r#"{"result":{}}"#)), Discovery::Legacy);
    }

    #[test]
    fn a_client_is_told_its_own_revision_where_that_is_known_and_not_newer() {
        let raw = r#"{"jsonrpc":"2.0","id":1,"result":{"x":1.0,"protocolVersion":"2025-06-18","capabilities":{ "odd" : {} }}}"#;
        let result = InitializeResult::read(&answer(Kind::Result, raw)).unwrap();
        for (asked, told) in [
            ("2024-11-05", "2024-11-05"),
            ("2025-06-18", "2025-06-18"),
            ("2025-11-25", "2025-06-18"),
            ("1999-01-01", "2025-06-18"),
        ] {
            let text = String::from_utf8(result.answer(b"\"q\"", asked).to_bytes().to_vec()).unwrap();
            let expected = format!(
                r#"{{"jsonrpc":"2.0","id":"q","result":{{"x":1.0,"protocolVersion":"{told}","capabilities":{{ "odd" : {{}} }}}}}}"#
            );
            assert_eq!(text, expected, "asked for {asked}");
        }
    }
}
