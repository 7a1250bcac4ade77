//! What Ostler answers to calls of tools itself, in the shape of revision 2026-07-28.

use serde_json::{Value, json};

use super::ARGUMENT;
use crate::message::Message;
use crate::rpc;

/// A session was made, or ended: its key. `id` is the request's, exactly as sent.
pub fn session(id: &[u8], key: &str) -> Message {
    let content = json!({ ARGUMENT: key });
    result(id, &content.to_string(), Some(&content))
}

/// The call failed, and the model that made it is to read why and what to do.
pub fn failed(id: &[u8], why: &str) -> Message {
    result(id, why, None)
}

fn result(id: &[u8], text: &str, structured: Option<&Value>) -> Message {
    let mut result = json!({
        "resultType": "complete",
        "content": [{"type": "text", "text": text}],
        "isError": structured.is_none(),
    });
    if let Some(structured) = structured {
        result["structuredContent"] = structured.clone();
    }
    rpc::result(id, &result.to_string())
}
