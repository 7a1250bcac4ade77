//! Many calls of tools at once, as they are asked for and reported.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

/// Calls of tools that are to be made in one go. A field that is not listed here is refused.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunMany {
    /// The calls, 1 to 100.
    pub calls: Vec<RunCall>,
    /// Whether several run at the same time. Without it, each begins when the one before it is over.
    #[serde(default)]
    pub concurrent: bool,
    /// How many run at the same time at most, 1 to 16; absent: 4. Only with `concurrent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The session of every call that names none. When it ends, the whole run is cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
}

/// One call of a tool.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunCall {
    /// The server's name, as `ostler ps` lists it.
    pub server: String,
    /// The tool's name.
    pub tool: String,
    /// Its arguments, an object, passed on exactly as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub arguments: Option<Box<RawValue>>,
    /// The session to call it in: a key, as in the header `Ostler-Session`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
}

/// What became of the calls.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RunReport {
    /// Calls that went well.
    pub ok: u32,
    /// Calls that did not, those that were not begun included.
    pub failed: u32,
    /// Milliseconds it took.
    pub took_ms: u64,
    /// Each call, in the order in which they were given.
    pub results: Vec<RunResult>,
}

/// What became of one call.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RunResult {
    /// Its place among the calls, from 0.
    pub index: u32,
    /// The server.
    pub server: String,
    /// The tool.
    pub tool: String,
    /// Whether it went well: the tool answered, and did not say `isError`.
    pub ok: bool,
    /// Whether it was begun. One that was not has had no effect.
    pub begun: bool,
    /// What the tool answered, exactly as it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub result: Option<Box<RawValue>>,
    /// Why it has no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RunError>,
    /// Milliseconds it took.
    pub took_ms: u64,
}

/// Why a call has no answer.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RunError {
    /// The code of JSON-RPC: the server's, or one of Ostler's own (-31001 to -31004).
    pub code: i64,
    /// What failed, why, what to do.
    pub message: String,
    /// What the server added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub data: Option<Box<RawValue>>,
}

/// How far a run is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RunProgress {
    /// Calls that are over, and what the running ones say of themselves as a fraction. It only grows.
    pub progress: f64,
    /// How many calls there are.
    pub total: u32,
    /// How many of them are over.
    pub done: u32,
    /// What happened, for people.
    pub message: String,
}

/// What a run says to who follows it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunEvent {
    /// It is further than before.
    Progress(RunProgress),
    /// It is over; the last event.
    Report(RunReport),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_on_is_kept_as_it_is() {
        let call = r#"{"server":"s","tool":"t","arguments":{"n": 1180591620717411303424, "b":1,"a":2}}"#;
        let read: RunCall = serde_json::from_str(call).expect("a call");
        let arguments = read.arguments.as_ref().expect("arguments").get();
        assert_eq!(arguments, r#"{"n": 1180591620717411303424, "b":1,"a":2}"#);
        assert_eq!(serde_json::to_string(&read).expect("JSON"), call);
        let text = format!(
            r#"{{"report":{{"ok":1,"failed":0,"took_ms":1,"results":[{{"index":0,"server":"s","tool":"t","ok":true,"begun":true,"result":{arguments},"took_ms":1}}]}}}}"#
        );
        let event: RunEvent = serde_json::from_str(&text).expect("an event");
        assert_eq!(serde_json::to_string(&event).expect("JSON"), text);
        assert!(serde_json::from_str::<RunCall>(r#"{"server":"s","tool":"t","args":{}}"#).is_err());
    }
}
