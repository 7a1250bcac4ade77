//! The worker protocol: JSON lines on standard input and output, described in `docs/worker-protocol.md`.
//!
//! Both sides use these types: [`ToWorker`] goes down, [`FromWorker`] comes up. Payloads and values stay raw: what
//! a task is about is nobody's business on the way.

mod lines;

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use lines::Lines;

/// The number of this protocol, said in [`Ready`]. A daemon ends a worker of another.
pub const VERSION: u32 = 1;
/// Most bytes of a line in either direction, its end included. A longer one is a break of the rules.
pub const MAX_LINE: usize = 16 << 20;
/// Most bytes of a result's value, whatever a task's limits say: so that its line is within [`MAX_LINE`].
pub const MAX_VALUE: usize = MAX_LINE - (64 << 10);
/// Most bytes of one log message's text; the rest is cut, and said to be.
pub const MAX_LOG_TEXT: usize = 16 << 10;
/// Most log messages of one attempt; the rest is counted, and told in one last message.
pub const MAX_LOGS: u32 = 1_000;
/// Most bytes of an error's message.
pub const MAX_MESSAGE: usize = 4 << 10;
/// Most bytes of an error's trace.
pub const MAX_TRACE: usize = 8 << 10;
/// While a task runs, a worker says something at least this often, else a [`Heartbeat`].
pub const HEARTBEAT_MS: u64 = 1_000;

/// What a worker says first, and once: that it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// [`VERSION`].
    pub protocol: u32,
    /// What it is, with its version, for people.
    pub name: String,
    /// The types of tasks that it does.
    pub types: Vec<String>,
    /// How many tasks at once: 1 in this version.
    pub at_once: u32,
    /// How often it says something at least while a task runs.
    pub heartbeat_ms: u64,
}

/// A task to be done: one attempt at it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// Its id; whatever the daemon likes.
    pub id: String,
    /// Which attempt at it this is, from 1.
    pub attempt: u32,
    /// Its type, one of [`Ready::types`].
    #[serde(rename = "type")]
    pub kind: String,
    /// What it is about; its shape is the type's.
    pub payload: Box<RawValue>,
    /// What it may use.
    #[serde(default)]
    pub limits: Limits,
    /// What it may reach.
    #[serde(default)]
    pub allow: Allow,
}

/// What an attempt may use. What is not said has the worker's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Milliseconds from the moment the worker reads the task.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub time_ms: Option<u64>,
    /// Bytes of memory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory: Option<u64>,
    /// Bytes of the result's value as JSON; [`MAX_VALUE`] at most.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub output: Option<u64>,
}

/// What an attempt may reach. What is not said is not allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allow {
    /// The network.
    #[serde(default)]
    pub network: bool,
    /// With the network: addresses of this machine and of private networks too.
    #[serde(default)]
    pub private: bool,
    /// Folders beside the worker's own.
    #[serde(default)]
    pub folders: Vec<String>,
}

/// Names one attempt: that it is to be cancelled, or that it is still running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The task.
    pub id: String,
    /// Which attempt.
    pub attempt: u32,
}

/// That an attempt is still running.
pub type Heartbeat = Attempt;

/// How far an attempt is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The task.
    pub id: String,
    /// Which attempt.
    pub attempt: u32,
    /// How much is done.
    pub done: f64,
    /// Of how much, where that is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub total: Option<f64>,
    /// For people; [`MAX_MESSAGE`] bytes at most.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
}

/// How serious a [`Log`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// For who looks for a fault.
    Debug,
    /// What is printed.
    Info,
    /// Something is not as it should be.
    Warn,
    /// Something failed.
    Error,
}

/// Something to be written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// The task it belongs to; none: the worker itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id: Option<String>,
    /// Which attempt.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attempt: Option<u32>,
    /// How serious it is.
    pub level: Level,
    /// What; [`MAX_LOG_TEXT`] bytes at most.
    pub text: String,
}

/// How an attempt ended. Exactly one is sent for each task, and nothing about that attempt after it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskResult {
    /// The task.
    pub id: String,
    /// Which attempt.
    pub attempt: u32,
    /// Whether it succeeded: then there is a value, else an error.
    pub ok: bool,
    /// What came of it.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "present")]
    pub value: Option<Box<RawValue>>,
    /// Why nothing came of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<TaskError>,
}

/// Why an attempt did not succeed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskError {
    /// In a word.
    pub kind: ErrorKind,
    /// For people; [`MAX_MESSAGE`] bytes at most.
    pub message: String,
    /// Where, as the language tells it; [`MAX_TRACE`] bytes at most.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace: Option<String>,
    /// What there is to be said beside, for programs: the output of a command that failed, say.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<Box<RawValue>>,
    /// Whether another attempt may end better.
    pub retry: bool,
}

/// Why an attempt did not succeed, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ErrorKind {
    /// It was tried and did not go well.
    Failed,
    /// What was asked for makes no sense: a payload of the wrong shape, a syntax error.
    Invalid,
    /// Its time was over.
    Timeout,
    /// It wanted more memory than it may have.
    Memory,
    /// It is not allowed, or not done here.
    Refused,
    /// What came of it is larger than it may be, or is no JSON.
    Output,
    /// It was cancelled.
    Cancelled,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed => "failed",
            Self::Invalid => "invalid",
            Self::Timeout => "timeout",
            Self::Memory => "memory",
            Self::Refused => "refused",
            Self::Output => "output",
            Self::Cancelled => "cancelled",
        })
    }
}

/// A message to a worker.
#[derive(Clone, Debug)]
pub enum ToWorker {
    /// Do this.
    Task(Task),
    /// Stop doing this, and answer.
    Cancel(Attempt),
    /// Finish what is running, and end.
    Shutdown,
    /// A message of a later protocol, to be passed over: its name.
    Unknown(String),
}

/// A message from a worker.
#[derive(Clone, Debug)]
pub enum FromWorker {
    /// It is there.
    Ready(Ready),
    /// How far an attempt is.
    Progress(Progress),
    /// Something to be written down.
    Log(Log),
    /// How an attempt ended.
    Result(TaskResult),
    /// An attempt is still running.
    Heartbeat(Heartbeat),
    /// A message of a later protocol, to be passed over: its name.
    Unknown(String),
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// It is longer than [`MAX_LINE`].
    #[error("a line of more than {MAX_LINE} bytes")]
    TooLong,
    /// It is no message.
    #[error("no message: {0} (a line is a JSON object with a text member `msg`)")]
    NoMessage(serde_json::Error),
    /// It is a message whose members are not what they should be.
    #[error("a `{name}` that is not as it should be: {error}")]
    Malformed {
        /// Its name.
        name: String,
        /// What is wrong.
        error: serde_json::Error,
        /// Which attempt it is about, where that much can be read.
        about: Option<Attempt>,
    },
    /// It contradicts itself.
    #[error("a `result` that is neither: `ok` goes with `value`, else there is an `error`")]
    Neither,
}

/// A member that is there has a value, which may be `null`.
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(from).map(Some)
}

#[derive(Deserialize)]
struct Head<'l> {
    #[serde(borrow)]
    msg: Cow<'l, str>,
}

fn head(line: &[u8]) -> Result<Cow<'_, str>, ProtocolError> {
    serde_json::from_slice::<Head<'_>>(line).map(|head| head.msg).map_err(ProtocolError::NoMessage)
}

fn body<'l, T: Deserialize<'l>>(name: &str, line: &'l [u8]) -> Result<T, ProtocolError> {
    serde_json::from_slice(line).map_err(|error| ProtocolError::Malformed {
        name: name.to_owned(),
        error,
        about: serde_json::from_slice(line).ok(),
    })
}

/// Writes a message as one line: its name first, then its members.
fn write<T: Serialize>(name: &str, body: &T, line: &mut Vec<u8>) {
    line.extend_from_slice(b"{\"msg\":\"");
    line.extend_from_slice(name.as_bytes());
    line.push(b'"');
    let at = line.len();
    // Nothing here can fail: every key is text, and a Vec takes all.
    let _ = serde_json::to_writer(&mut *line, body);
    // Each has members: the opening brace becomes the comma before the first.
    if let Some(brace) = line.get_mut(at) {
        *brace = b',';
    }
    line.push(b'\n');
}

impl ToWorker {
    /// Reads a line.
    ///
    /// # Errors
    /// When it is no message, or one that is not as it should be.
    pub fn parse(line: &[u8]) -> Result<Self, ProtocolError> {
        Ok(match &*head(line)? {
            "task" => Self::Task(body("task", line)?),
            "cancel" => Self::Cancel(body("cancel", line)?),
            "shutdown" => Self::Shutdown,
            other => Self::Unknown(other.to_owned()),
        })
    }

    /// Adds it to `line`, with the end of line.
    pub fn write(&self, line: &mut Vec<u8>) {
        match self {
            Self::Task(task) => write("task", task, line),
            Self::Cancel(attempt) => write("cancel", attempt, line),
            Self::Shutdown => line.extend_from_slice(b"{\"msg\":\"shutdown\"}\n"),
            Self::Unknown(_) => {}
        }
    }
}

impl FromWorker {
    /// Reads a line.
    ///
    /// # Errors
    /// When it is no message, or one that is not as it should be.
    pub fn parse(line: &[u8]) -> Result<Self, ProtocolError> {
        Ok(match &*head(line)? {
            "ready" => Self::Ready(body("ready", line)?),
            "progress" => Self::Progress(body("progress", line)?),
            "log" => Self::Log(body("log", line)?),
            "heartbeat" => Self::Heartbeat(body("heartbeat", line)?),
            "result" => {
                let result: TaskResult = body("result", line)?;
                if result.ok != result.value.is_some() || result.ok == result.error.is_some() {
                    return Err(ProtocolError::Neither);
                }
                Self::Result(result)
            }
            other => Self::Unknown(other.to_owned()),
        })
    }

    /// Adds it to `line`, with the end of line.
    pub fn write(&self, line: &mut Vec<u8>) {
        match self {
            Self::Ready(ready) => write("ready", ready, line),
            Self::Progress(progress) => write("progress", progress, line),
            Self::Log(log) => write("log", log, line),
            Self::Result(result) => write("result", result, line),
            Self::Heartbeat(attempt) => write("heartbeat", attempt, line),
            Self::Unknown(_) => {}
        }
    }
}

/// The beginning of a text, cut where a letter ends, and how many bytes were left out.
#[must_use]
pub fn cut(text: &str, max: usize) -> (&str, usize) {
    if text.len() <= max {
        return (text, 0);
    }
    let end = text.floor_char_boundary(max);
    (&text[..end], text.len() - end)
}

/// A text within its bound, which says what was left out.
#[must_use]
pub fn bounded(text: &str, max: usize) -> String {
    match cut(text, max.saturating_sub(48)) {
        _ if text.len() <= max => text.to_owned(),
        (kept, left_out) => format!("{kept} [{left_out} bytes left out]"),
    }
}

#[cfg(test)]
mod tests;
