//! What must be known of a JSON-RPC message to pass it on; the rest of it stays as it is.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

/// An id exactly as it was written: `1`, `"1"`, `1.5`.
pub(crate) type Id = Box<str>;

/// The key of `_meta` that makes a request a modern one, and names its revision.
const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
/// The modern revision taken for a `server/discover` that names none.
const MODERN_VERSION: &str = "2026-07-28";

/// JSON-RPC: the text is not JSON.
pub(crate) const PARSE_ERROR: i32 = -32700;
/// JSON-RPC: the JSON is not a message.
pub(crate) const INVALID_REQUEST: i32 = -32600;
/// Ostler: the call could not be made, or its answer was lost. First of the range JSON-RPC leaves to servers.
pub(crate) const UNAVAILABLE: i32 = -32000;

/// The kinds of message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Wants an answer.
    Request { id: Id, method: String },
    /// Wants none.
    Notification { method: String },
    /// Is one; `failed` if it carries an error.
    Response { id: Option<Id>, failed: bool },
}

/// What the HTTP headers of a modern request repeat of its body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ModernHead {
    /// For `MCP-Protocol-Version`.
    pub(crate) version: String,
    /// For `Mcp-Method`.
    pub(crate) method: String,
    /// For `Mcp-Name`, where the method has one.
    pub(crate) name: Option<String>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Params<'a> {
    #[serde(borrow, rename = "_meta")]
    meta: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    uri: Option<&'a RawValue>,
    #[serde(borrow, rename = "requestId")]
    request_id: Option<&'a RawValue>,
}

/// Why a text is not a message.
#[derive(Debug)]
pub(crate) struct Malformed {
    /// The JSON-RPC error code for it.
    pub(crate) code: i32,
    /// What is wrong.
    pub(crate) reason: String,
}

/// What kind of message a text is.
pub(crate) fn kind(text: &[u8]) -> Result<Kind, Malformed> {
    read(text).map(|(kind, _)| kind)
}

fn read(text: &[u8]) -> Result<(Kind, Option<&RawValue>), Malformed> {
    if text.trim_ascii_start().first() == Some(&b'[') {
        let reason = "batches are not part of MCP; send each message on a line of its own".to_owned();
        return Err(Malformed { code: INVALID_REQUEST, reason });
    }
    let envelope: Envelope<'_> = serde_json::from_slice(text).map_err(|e| Malformed {
        code: if e.is_data() { INVALID_REQUEST } else { PARSE_ERROR },
        reason: e.to_string(),
    })?;
    let id = envelope.id.map(|id| Id::from(id.get()));
    let answer = envelope.result.is_some() || envelope.error.is_some();
    let kind = match (envelope.method, id) {
        (Some(method), Some(id)) => Kind::Request { id, method: method.into_owned() },
        (Some(method), None) => Kind::Notification { method: method.into_owned() },
        (None, id) if answer || id.is_some() => Kind::Response { id, failed: envelope.error.is_some() },
        (None, _) => {
            let reason = "it has neither a method nor a result".to_owned();
            return Err(Malformed { code: INVALID_REQUEST, reason });
        }
    };
    Ok((kind, envelope.params))
}

/// A message from the client, with what is needed to send it on.
#[derive(Clone, Debug)]
pub(crate) struct FromClient {
    /// The message as it was written.
    pub(crate) body: Bytes,
    /// Its kind.
    pub(crate) kind: Kind,
    /// What a modern request's headers repeat; `None` for every other message.
    pub(crate) modern: Option<ModernHead>,
    /// What a `notifications/cancelled` cancels.
    pub(crate) cancels: Option<Id>,
}

impl FromClient {
    /// Reads a line of the client.
    pub(crate) fn parse(body: Bytes) -> Result<Self, Malformed> {
        let (kind, params) = read(&body)?;
        let params: Params<'_> =
            params.and_then(|params| serde_json::from_str(params.get()).ok()).unwrap_or_default();
        let (modern, cancels) = match &kind {
            Kind::Request { method, .. } => (modern_head(method, &params), None),
            Kind::Notification { method } if method == "notifications/cancelled" => {
                (None, params.request_id.map(|id| Id::from(id.get())))
            }
            Kind::Notification { .. } | Kind::Response { .. } => (None, None),
        };
        Ok(Self { body, kind, modern, cancels })
    }
}

fn modern_head(method: &str, params: &Params<'_>) -> Option<ModernHead> {
    let named = params.meta.and_then(|meta| {
        let meta: std::collections::HashMap<Cow<'_, str>, &RawValue> =
            serde_json::from_str(meta.get()).ok()?;
        meta.get(META_VERSION).and_then(|version| text(version))
    });
    let version = match named {
        Some(version) => version,
        None if method == "server/discover" => MODERN_VERSION.to_owned(),
        None => return None,
    };
    let name = match method {
        "tools/call" | "prompts/get" => params.name.and_then(text),
        "resources/read" => params.uri.and_then(text),
        _ => None,
    };
    Some(ModernHead { version, method: method.to_owned(), name })
}

fn text(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// The revision an answer to `initialize` settles on; `None` if the answer is an error or names none.
pub(crate) fn negotiated_version(answer: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        result: Initialized,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Initialized {
        protocol_version: String,
    }
    serde_json::from_slice::<Answer>(answer).ok().map(|answer| answer.result.protocol_version)
}

/// A JSON-RPC error; without an id where the message it answers had none that could be read.
pub(crate) fn error(id: Option<&str>, code: i32, message: &str) -> Bytes {
    let message = serde_json::Value::from(message);
    let id = id.unwrap_or("null");
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":{message}}}}}"#).into()
}

/// The error of an HTTP answer that is not a success, as an answer to `id`. A JSON-RPC error in the body is
/// kept, with our id where it has none; any other body is quoted.
pub(crate) fn error_from_http(id: &str, status: u16, body: &Bytes) -> Bytes {
    #[derive(Deserialize)]
    struct Told<'a> {
        #[serde(borrow)]
        id: Option<&'a RawValue>,
        #[serde(borrow)]
        error: &'a RawValue,
        jsonrpc: Option<Cow<'a, str>>,
        hint: Option<Cow<'a, str>>,
    }
    if let Ok(told) = serde_json::from_slice::<Told<'_>>(body) {
        if told.jsonrpc.is_some() && told.error.get().starts_with('{') {
            if told.id.is_some_and(|theirs| theirs.get() == id) {
                return body.clone();
            }
            return format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{}}}"#, told.error.get()).into();
        }
        if let Some(reason) = text(told.error) {
            let hint = told.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
            return error(Some(id), UNAVAILABLE, &format!("{reason}{hint}"));
        }
    }
    let quoted: String = String::from_utf8_lossy(body).trim().chars().take(300).collect();
    error(Some(id), UNAVAILABLE, &format!("the daemon answered with HTTP status {status}: {quoted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &'static str) -> FromClient {
        FromClient::parse(Bytes::from_static(text.as_bytes())).expect("a message")
    }

    #[test]
    fn ids_are_kept_as_written() {
        for id in ["1", "\"1\"", "1.5", "1180591620717411303424", "\"a\\u0041\""] {
            let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#);
            assert_eq!(
                kind(text.as_bytes()).expect("kind"),
                Kind::Request { id: id.into(), method: "ping".into() }
            );
        }
    }

    #[test]
    fn eras_are_told_apart_by_the_request() {
        assert!(
            parse(r#"{"id":1,"method":"tools/call","params":{"name":"x","_meta":{"progressToken":1}}}"#)
                .modern
                .is_none()
        );
        let modern = parse(
            r#"{"id":1,"method":"tools/call","params":{"name":"x y","_meta":{"io.modelcontextprotocol/protocolVersion":"2027-01-01"}}}"#,
        );
        let head = ModernHead {
            version: "2027-01-01".into(),
            method: "tools/call".into(),
            name: Some("x y".into()),
        };
        assert_eq!(modern.modern, Some(head));
        let discover = parse(r#"{"id":1,"method":"server/discover"}"#).modern.expect("modern");
        assert_eq!((discover.version.as_str(), discover.name), ("2026-07-28", None));
    }

    #[test]
    fn a_cancel_names_its_call_exactly() {
        let cancel = parse(r#"{"method":"notifications/cancelled","params":{"requestId":"7"}}"#);
        assert_eq!(cancel.cancels.as_deref(), Some("\"7\""));
    }

    #[test]
    fn what_is_no_message_is_said() {
        for (text, code) in [
            ("{", PARSE_ERROR),
            ("[]", INVALID_REQUEST),
            ("[1,\"ping\",null,null,null]", INVALID_REQUEST),
            ("{}", INVALID_REQUEST),
            (r#"{"id":1,"id":2,"method":"x"}"#, INVALID_REQUEST),
        ] {
            assert_eq!(kind(text.as_bytes()).expect_err(text).code, code, "{text}");
        }
    }

    #[test]
    fn http_errors_become_answers_to_the_call() {
        let own = |body: &'static str| {
            String::from_utf8(error_from_http("\"a\"", 400, &Bytes::from_static(body.as_bytes())).to_vec())
                .expect("text")
        };
        let kept = r#"{"jsonrpc":"2.0","id":"a","error":{"code":-32601,"message":"x"}, "extra":1}"#;
        assert_eq!(own(kept), kept);
        assert_eq!(
            own(r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"x","data":[ 1 ]}}"#),
            r#"{"jsonrpc":"2.0","id":"a","error":{"code":-32600,"message":"x","data":[ 1 ]}}"#
        );
        assert_eq!(
            own(r#"{"error":"no such server","hint":"see ps"}"#),
            r#"{"jsonrpc":"2.0","id":"a","error":{"code":-32000,"message":"no such server (see ps)"}}"#
        );
        assert_eq!(
            own("Bad \"Request\""),
            r#"{"jsonrpc":"2.0","id":"a","error":{"code":-32000,"message":"the daemon answered with HTTP status 400: Bad \"Request\""}}"#
        );
    }
}
