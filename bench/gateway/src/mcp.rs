//! The few MCP messages of the benchmark, and the check that an echo is one's own.

use serde::Deserialize;
use std::borrow::Cow;
use std::fmt::Write as _;

/// The legacy revision the clients ask for; every peer of the comparison speaks it.
pub const PROTOCOL_VERSION: &str = "2025-06-18";

/// The first id of a session's calls. All sessions count from here, so that the same ids are in flight in all of
/// them; seven digits, so that the length of a call never changes within a run.
pub const FIRST_CALL_ID: u32 = 1_000_000;

/// Bytes of text in one call.
pub const TEXT_BYTES: usize = 64;

/// Sent as the first message of a session.
pub fn initialize() -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":0,"method":"initialize","params":{{"protocolVersion":"{PROTOCOL_VERSION}","capabilities":{{}},"clientInfo":{{"name":"bench-load","version":"1"}}}}}}"#
    )
}

/// Sent when `initialize` was answered; ends the handshake.
pub const INITIALIZED: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

/// Builds the calls of one session and recognises their answers.
pub struct Caller {
    session: usize,
    tool: String,
    next_id: u32,
    message: String,
    text: String,
}

impl Caller {
    /// Calls of session number `session` to `tool`, which must echo its argument `text`.
    pub fn new(session: usize, tool: &str) -> Self {
        Self {
            session,
            tool: tool.to_owned(),
            next_id: FIRST_CALL_ID,
            message: String::new(),
            text: String::new(),
        }
    }

    /// The next call. Its id is the same in all sessions at the same count, its text is unique to session and
    /// call, so that an answer delivered to the wrong session cannot go unnoticed.
    pub fn next_call(&mut self) -> &str {
        let id = self.next_id;
        self.next_id += 1;
        self.text.clear();
        let _ = write!(self.text, "session {:06} call {id:08} ", self.session);
        while self.text.len() < TEXT_BYTES {
            self.text.push('.');
        }
        self.message.clear();
        let _ = write!(
            self.message,
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{}","arguments":{{"text":"{}"}}}}}}"#,
            self.tool, self.text
        );
        &self.message
    }

    /// Checks that `message` is the answer to the call made last.
    ///
    /// # Errors
    /// Says what it is instead: not JSON, an error, another call's id, or another text.
    pub fn check(&self, message: &[u8]) -> Result<(), String> {
        let reply: Reply = serde_json::from_slice(message)
            .map_err(|error| format!("not an answer ({error}): {}", excerpt(message)))?;
        let Some(result) = reply.result else {
            return Err(format!("an error: {}", excerpt(message)));
        };
        if reply.id != Some(self.next_id - 1) {
            return Err(format!(
                "the answer to another call, not {}: {}",
                self.next_id - 1,
                excerpt(message)
            ));
        }
        match result.content.as_slice() {
            [one] if one.text == self.text => Ok(()),
            _ => Err(format!("another text, not {:?}: {}", self.text, excerpt(message))),
        }
    }
}

#[derive(Deserialize)]
struct Reply<'a> {
    id: Option<u32>,
    #[serde(borrow)]
    result: Option<CallResult<'a>>,
}

#[derive(Deserialize)]
struct CallResult<'a> {
    #[serde(borrow)]
    content: Vec<Content<'a>>,
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
}

/// The beginning of a message, for an error a person reads.
pub fn excerpt(message: &[u8]) -> String {
    const LONGEST: usize = 200;
    String::from_utf8_lossy(&message[..message.len().min(LONGEST)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(id: u32, text: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[{{"type":"text","text":"{text}"}}]}}}}"#)
    }

    #[test]
    fn only_the_own_echo_passes() {
        let mut mine = Caller::new(1, "echo");
        let mut other = Caller::new(2, "echo");
        mine.next_call();
        other.next_call();
        assert_eq!(mine.check(echo(FIRST_CALL_ID, &mine.text).as_bytes()), Ok(()));
        let foreign = mine.check(echo(FIRST_CALL_ID, &other.text).as_bytes());
        assert!(foreign.is_err_and(|reason| reason.starts_with("another text")));
        let late = mine.check(echo(FIRST_CALL_ID - 1, &mine.text).as_bytes());
        assert!(late.is_err_and(|reason| reason.starts_with("the answer to another call")));
        let refused = mine.check(br#"{"jsonrpc":"2.0","id":1000000,"error":{"code":-32601,"message":"no"}}"#);
        assert!(refused.is_err_and(|reason| reason.starts_with("an error")));
    }

    #[test]
    fn calls_of_a_session_have_one_length() {
        let mut caller = Caller::new(3, "echo");
        let first = caller.next_call().len();
        caller.next_id = 9_999_998;
        assert_eq!(caller.next_call().len(), first);
        assert_eq!(caller.text.len(), TEXT_BYTES);
    }
}
