//! JSON-RPC answers that Ostler itself gives, and the codes it uses.

use crate::message::Message;

/// The message is not JSON.
pub const PARSE_ERROR: i64 = -32700;
/// The message is no valid request.
pub const INVALID_REQUEST: i64 = -32600;
/// No such method, or not for this session.
pub const METHOD_NOT_FOUND: i64 = -32601;
/// The parameters are wrong or incomplete.
pub const INVALID_PARAMS: i64 = -32602;
/// HTTP headers and body disagree (2026-07-28, "Server Validation").
pub const HEADER_MISMATCH: i64 = -32020;
/// The client lacks a capability that the request needs (2026-07-28, "Error Codes").
pub const MISSING_CAPABILITY: i64 = -32021;
/// The protocol version is not served here (2026-07-28, "Error Codes").
pub const UNSUPPORTED_VERSION: i64 = -32022;

// Codes of Ostler's own lie outside -32768..-32000, as 2026-07-28 asks ("Error Codes").

/// The instance ended while the call ran, or cannot be had.
pub const INSTANCE_LOST: i64 = -31001;
/// A limit was reached; the message names it.
pub const LIMIT_REACHED: i64 = -31002;
/// The call took longer than `timeouts.call_idle` or `timeouts.call_max` allow.
pub const CALL_TIMED_OUT: i64 = -31003;
/// The client cancelled the call.
pub const CALL_CANCELLED: i64 = -31004;
/// The HTTP server of a legacy MCP server, or another, refused `server/discover` without a word of JSON-RPC. To the
/// handshake that is "method not found".
pub const PROBE_REFUSED: i64 = -31005;

/// An error answer to the request whose id is `id`, exactly as sent; `null` where there was none.
pub fn error(id: Option<&[u8]>, code: i64, message: &str) -> Message {
    error_with_data(id, code, message, None)
}

/// The same with a `data` member, which must be valid JSON.
pub fn error_with_data(id: Option<&[u8]>, code: i64, message: &str, data: Option<&str>) -> Message {
    let id = id.map_or("null".into(), String::from_utf8_lossy);
    let text = serde_json::Value::from(message);
    let data = data.map(|data| format!(",\"data\":{data}")).unwrap_or_default();
    Message::from(format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{{\"code\":{code},\"message\":{text}{data}}}}}"
    ))
}

/// A result answer to the request whose id is `id`; `result` must be valid JSON.
pub fn result(id: &[u8], result: &str) -> Message {
    let id = String::from_utf8_lossy(id);
    Message::from(format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{result}}}"))
}

/// `notifications/cancelled` for the request `id` (exactly as sent), with a reason.
pub fn cancelled(id: &str, reason: &str) -> Message {
    let reason = serde_json::Value::from(reason);
    Message::from(format!(
        "{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/cancelled\",\"params\":{{\"requestId\":{id},\"reason\":{reason}}}}}"
    ))
}
