//! How a command ends: its exit code, and the error and hint it prints.

use std::io;
use std::process::ExitCode;

use ostler_api::{ClientError, PathError};

/// The exit codes of every command. Scripts rely on them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: it failed.
    Failed,
    /// 2: the command line or the configuration is wrong; nothing was done.
    Usage,
    /// 3: no daemon answers.
    NoDaemon,
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NoDaemon => 3,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The daemon could not be asked, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The runtime directory cannot be used.
    #[error(transparent)]
    Path(#[from] PathError),
    /// No server or instance has the name that was given.
    #[error("no server or instance is called `{id}`")]
    Unknown {
        /// What was given.
        id: String,
        /// The name it most resembles, if any does.
        nearest: Option<String>,
    },
    /// It was done as asked, but did not come out as wanted.
    #[error("{error}")]
    Outcome {
        /// What failed and why.
        error: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The command line holds a value that cannot be used.
    #[error("{error}")]
    Usage {
        /// What is wrong with it.
        error: String,
        /// What to give instead.
        hint: Option<String>,
    },
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
    /// Whoever read the output has enough of it, as `head` does. Not an error.
    #[error("the reader of the output has gone")]
    ReaderGone,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::ReaderGone } else { Self::Output(error) }
    }
}

impl Failure {
    /// The exit code that says so.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Client(ClientError::NoDaemon { .. }) => Exit::NoDaemon,
            Self::Path(_) | Self::Usage { .. } => Exit::Usage,
            Self::ReaderGone => Exit::Done,
            Self::Client(_) | Self::Unknown { .. } | Self::Outcome { .. } | Self::Output(_) => Exit::Failed,
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Client(error) => error.hint(),
            Self::Path(error) => Some(error.hint()),
            Self::Unknown { nearest: Some(name), .. } => Some(format!("did you mean `{name}`?")),
            Self::Unknown { nearest: None, .. } => Some("`ostler ps` lists what there is".to_owned()),
            Self::Outcome { hint, .. } | Self::Usage { hint, .. } => hint.clone(),
            Self::Output(_) | Self::ReaderGone => None,
        }
    }

    /// What is printed on standard error: `error: ...` and, where there is one, `hint: ...`. Empty for
    /// [`Failure::ReaderGone`].
    pub fn report(&self) -> String {
        if matches!(self, Self::ReaderGone) {
            return String::new();
        }
        let mut report = format!("error: {self}\n");
        if let Some(hint) = self.hint() {
            report.push_str(&format!("hint: {hint}\n"));
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_failures_say_and_how_they_exit() {
        let failures: [Failure; 7] = [
            ClientError::NoDaemon { socket: PathBuf::from("/run/user/1000/ostler/api.sock") }.into(),
            ClientError::Api {
                status: 404,
                error: "no session is called `s9`".to_owned(),
                hint: Some("`ostler sessions` lists them".to_owned()),
            }
            .into(),
            ClientError::Timeout { action: "stopServer", after: Duration::from_secs(600) }.into(),
            ClientError::Protocol("missing field `id`".to_owned()).into(),
            PathError::Unsafe {
                path: PathBuf::from("/tmp/ostler-1000"),
                reason: "it belongs to another user",
            }
            .into(),
            io::Error::from(io::ErrorKind::StorageFull).into(),
            io::Error::from(io::ErrorKind::BrokenPipe).into(),
        ];
        let text: Vec<String> =
            failures.iter().map(|f| format!("{}exit code {}\n", f.report(), f.exit().code())).collect();
        insta::assert_snapshot!(text.join("\n"));
    }
}
