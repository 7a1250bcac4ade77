//! Standard input and output: lines in, lines out.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::protocol::{
    Attempt, ErrorKind, FromWorker, Lines, Log, MAX_LOG_TEXT, ProtocolError, TaskError, TaskResult, ToWorker,
    bounded,
};

/// Read at once.
const READ: usize = 64 << 10;
/// Room for one message that is kept from one to the next; a larger one's is given back.
const KEEP: usize = 1 << 20;

/// Why a worker hears nothing more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its input is closed: who started it is gone, or has no more for it.
    Input,
    /// Its output is closed: nobody listens.
    Output,
    /// It was told something that it cannot make sense of.
    Rules(String),
}

/// The two ends.
#[derive(Debug)]
pub(crate) struct Wire {
    lines: Lines,
    buffer: Box<[u8]>,
    line: Vec<u8>,
    ended: Option<Ended>,
}

impl Wire {
    pub(crate) fn new() -> Self {
        Self {
            lines: Lines::default(),
            buffer: vec![0; READ].into_boxed_slice(),
            line: Vec::new(),
            ended: None,
        }
    }

    /// What is waited on for the next message.
    pub(crate) fn input() -> BorrowedFd<'static> {
        rustix::stdio::stdin()
    }

    pub(crate) fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// The next message, waiting for it. None: there is none any more.
    pub(crate) fn next(&mut self) -> Option<ToWorker> {
        loop {
            if let Some(message) = self.held() {
                return Some(message);
            }
            if self.ended.is_some() {
                return None;
            }
            self.read();
        }
    }

    /// The next message, if one has come.
    pub(crate) fn try_next(&mut self) -> Option<ToWorker> {
        loop {
            if let Some(message) = self.held() {
                return Some(message);
            }
            if self.ended.is_some() || !is_ready(Self::input(), PollFlags::IN, Some(&Timespec::default())) {
                return None;
            }
            self.read();
        }
    }

    /// A message that is held already. A task that cannot be read is answered, since it can be.
    fn held(&mut self) -> Option<ToWorker> {
        while self.ended.is_none() {
            let parsed = match self.lines.next_line() {
                Ok(Some(line)) => ToWorker::parse(line),
                Ok(None) => return None,
                Err(error) => Err(error),
            };
            match parsed {
                Ok(message) => return Some(message),
                Err(ProtocolError::Malformed { name, error, about: Some(about) }) if name == "task" => {
                    self.refuse(
                        &about,
                        ErrorKind::Invalid,
                        format!("the task is not as it should be: {error}"),
                        false,
                    );
                }
                Err(error) => self.ended = Some(Ended::Rules(error.to_string())),
            }
        }
        None
    }

    /// Answers a task that is not begun.
    pub(crate) fn refuse(&mut self, about: &Attempt, kind: ErrorKind, message: String, retry: bool) {
        self.send(&FromWorker::Result(TaskResult {
            id: about.id.clone(),
            attempt: about.attempt,
            ok: false,
            value: None,
            error: Some(TaskError { kind, message, trace: None, detail: None, retry }),
        }));
    }

    /// Says something of the worker itself.
    pub(crate) fn log(&mut self, level: crate::protocol::Level, text: &str) {
        let text = bounded(text, MAX_LOG_TEXT);
        self.send(&FromWorker::Log(Log { id: None, attempt: None, level, text }));
    }

    pub(crate) fn send(&mut self, message: &FromWorker) {
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        message.write(&mut line);
        let mut rest = &line[..];
        while !rest.is_empty() && self.ended != Some(Ended::Output) {
            match rustix::io::write(rustix::stdio::stdout(), rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                // Whoever has the other end of a shared description may have made it so.
                Err(Errno::AGAIN) => {
                    is_ready(rustix::stdio::stdout(), PollFlags::OUT, None);
                }
                Err(_) => self.ended = Some(Ended::Output),
            }
        }
        if line.capacity() <= KEEP {
            self.line = line;
        }
    }

    fn read(&mut self) {
        match rustix::io::read(Self::input(), &mut *self.buffer) {
            Ok(0) => self.ended = Some(Ended::Input),
            Ok(read) => self.lines.push(&self.buffer[..read]),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                is_ready(Self::input(), PollFlags::IN, None);
            }
            Err(_) => self.ended = Some(Ended::Input),
        }
    }
}

/// Whether a descriptor can be read or written, or has nothing more to give, waiting so long for it.
pub(crate) fn is_ready(what: impl AsFd, flags: PollFlags, wait: Option<&Timespec>) -> bool {
    let mut asked = [PollFd::new(&what, flags)];
    poll(&mut asked, wait).is_ok_and(|ready| ready > 0)
}
