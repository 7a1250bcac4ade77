//! One attempt that is running: its limits, what it says, and whether it is to stop.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use crate::protocol::{
    Allow, Attempt, ErrorKind, FromWorker, HEARTBEAT_MS, Level, Log, MAX_LOG_TEXT, MAX_LOGS, MAX_MESSAGE,
    MAX_TRACE, MAX_VALUE, Task, TaskError, ToWorker, bounded,
};
use crate::wire::Wire;

/// How long a task may take that says nothing about it.
const TIME: Duration = Duration::from_secs(300);
/// How much memory a task may have that says nothing about it.
const MEMORY: u64 = 256 << 20;
/// How large a value may be where a task says nothing about it.
const OUTPUT: u64 = 1 << 20;
/// The longest time that can be asked for.
const MAX_TIME: Duration = Duration::from_secs(366 * 24 * 3600);
/// How often, at most, a running task looks whether a message has come.
const LOOK: Duration = Duration::from_millis(5);

/// How an attempt ends: a value, or why there is none.
pub(crate) type Outcome = Result<Box<RawValue>, TaskError>;

/// Why a running attempt is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Its time is over.
    Timeout,
    /// It was cancelled.
    Cancelled,
    /// Nobody is there any more who would hear the answer.
    Alone,
}

#[derive(Debug)]
pub(crate) struct Job {
    wire: Rc<RefCell<Wire>>,
    about: Attempt,
    pub(crate) memory: u64,
    pub(crate) output: usize,
    pub(crate) allow: Allow,
    time: Duration,
    deadline: Instant,
    next_look: Cell<Instant>,
    next_beat: Cell<Instant>,
    stop: Cell<Option<Stop>>,
    /// Told to finish and end.
    shutdown: Cell<bool>,
    logs: Cell<u32>,
}

impl Job {
    /// An attempt that begins now.
    pub(crate) fn new(wire: Rc<RefCell<Wire>>, task: &Task) -> Self {
        let now = Instant::now();
        let time = task.limits.time_ms.map_or(TIME, Duration::from_millis).min(MAX_TIME);
        let output = task.limits.output.unwrap_or(OUTPUT).min(MAX_VALUE as u64);
        Self {
            wire,
            about: Attempt { id: task.id.clone(), attempt: task.attempt },
            memory: task.limits.memory.unwrap_or(MEMORY),
            output: usize::try_from(output).unwrap_or(MAX_VALUE),
            allow: task.allow.clone(),
            time,
            deadline: now + time,
            next_look: Cell::new(now + LOOK),
            next_beat: Cell::new(now + Duration::from_millis(HEARTBEAT_MS)),
            stop: Cell::new(None),
            shutdown: Cell::new(false),
            logs: Cell::new(0),
        }
    }

    pub(crate) fn about(&self) -> &Attempt {
        &self.about
    }

    /// Whether the worker is to end after this one.
    pub(crate) fn is_last(&self) -> bool {
        self.shutdown.get()
    }

    /// Whether it is to stop. Cheap; to be asked often. Once it is, it stays so.
    pub(crate) fn check(&self) -> Option<Stop> {
        if self.stop.get().is_some() {
            return self.stop.get();
        }
        let now = Instant::now();
        if now >= self.next_look.get() {
            self.next_look.set(now + LOOK);
            self.listen();
        }
        if now >= self.deadline && self.stop.get().is_none() {
            self.stop.set(Some(Stop::Timeout));
        }
        if now >= self.next_beat.get() {
            self.say(&FromWorker::Heartbeat(self.about.clone()));
        }
        self.stop.get()
    }

    /// How long nothing needs to be done for the attempt's sake, unless a message comes.
    pub(crate) fn quiet(&self) -> Duration {
        let next = self.next_beat.get().min(self.deadline);
        next.saturating_duration_since(Instant::now())
    }

    /// Hears what has come.
    pub(crate) fn listen(&self) {
        let mut wire = self.wire.borrow_mut();
        while let Some(message) = wire.try_next() {
            match message {
                ToWorker::Cancel(about) if about == self.about => self.stop.set(Some(Stop::Cancelled)),
                ToWorker::Shutdown => self.shutdown.set(true),
                // It may be of an attempt that ended while this was on its way.
                ToWorker::Cancel(_) | ToWorker::Unknown(_) => {}
                ToWorker::Task(task) => {
                    let about = Attempt { id: task.id, attempt: task.attempt };
                    let why =
                        format!("this worker is busy with {}; it does one task at a time", self.about.id);
                    wire.refuse(&about, ErrorKind::Refused, why, true);
                }
            }
        }
        if wire.ended().is_some() {
            self.stop.set(Some(Stop::Alone));
        }
    }

    /// Writes down what the task says.
    pub(crate) fn log(&self, level: Level, text: &str) {
        let logs = self.logs.get();
        self.logs.set(logs.saturating_add(1));
        if logs >= MAX_LOGS {
            return;
        }
        self.say_log(level, bounded(text, MAX_LOG_TEXT));
    }

    /// Tells what was not written down, once the attempt is over.
    pub(crate) fn settle(&self) {
        let dropped = self.logs.get().saturating_sub(MAX_LOGS);
        if dropped > 0 {
            let text = format!("{dropped} more messages were dropped: a task may write {MAX_LOGS}");
            self.say_log(Level::Warn, text);
        }
    }

    fn say_log(&self, level: Level, text: String) {
        let (id, attempt) = (Some(self.about.id.clone()), Some(self.about.attempt));
        self.say(&FromWorker::Log(Log { id, attempt, level, text }));
    }

    fn say(&self, message: &FromWorker) {
        self.wire.borrow_mut().send(message);
        self.next_beat.set(Instant::now() + Duration::from_millis(HEARTBEAT_MS));
    }

    /// The error of an attempt that was stopped.
    pub(crate) fn stopped(&self, stop: Stop) -> TaskError {
        match stop {
            Stop::Timeout => error(ErrorKind::Timeout, &format!("not done in {} ms", self.time.as_millis())),
            Stop::Cancelled => error(ErrorKind::Cancelled, "cancelled while it ran"),
            Stop::Alone => error(ErrorKind::Cancelled, "the daemon is gone"),
        }
    }

    /// A value as it is sent, if it is within its limit.
    pub(crate) fn value(&self, json: String) -> Outcome {
        if json.len() > self.output {
            let (size, max) = (json.len(), self.output);
            return Err(error(
                ErrorKind::Output,
                &format!("the result has {size} bytes as JSON; {max} are allowed (`limits.output`)"),
            ));
        }
        RawValue::from_string(json)
            .map_err(|why| error(ErrorKind::Output, &format!("the result is no JSON: {why}")))
    }

    /// A value that Rust made.
    pub(crate) fn value_of(&self, value: &impl serde::Serialize) -> Outcome {
        match serde_json::to_string(value) {
            Ok(json) => self.value(json),
            Err(why) => Err(error(ErrorKind::Output, &format!("the result is no JSON: {why}"))),
        }
    }
}

/// An error, which says whether another attempt may end better by its kind.
pub(crate) fn error(kind: ErrorKind, message: &str) -> TaskError {
    let retry = matches!(kind, ErrorKind::Failed | ErrorKind::Timeout | ErrorKind::Memory);
    TaskError { kind, message: bounded(message, MAX_MESSAGE), trace: None, detail: None, retry }
}

/// An error with a trace.
pub(crate) fn traced(kind: ErrorKind, message: &str, trace: &str) -> TaskError {
    let trace = Some(bounded(trace, MAX_TRACE)).filter(|trace| !trace.is_empty());
    TaskError { trace, ..error(kind, message) }
}

/// Reads a payload.
///
/// # Errors
/// `invalid`, which says what is wrong with it.
pub(crate) fn payload<'p, T: serde::Deserialize<'p>>(task: &'p Task) -> Result<T, TaskError> {
    serde_json::from_str(task.payload.get()).map_err(|why| {
        error(ErrorKind::Invalid, &format!("the payload of `{}` is not as it should be: {why}", task.kind))
    })
}
