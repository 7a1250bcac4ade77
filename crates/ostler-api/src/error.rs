//! Why a request to the daemon failed.

use std::path::PathBuf;
use std::time::Duration;

/// Why a request to the daemon failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens on the socket.
    #[error("no Ostler daemon answers on {}", socket.display())]
    NoDaemon {
        /// The socket that was tried.
        socket: PathBuf,
    },
    /// The socket is there but may not be used, or the system refused the connection for a reason of its own.
    #[error("cannot connect to {}: {source}", socket.display())]
    Connect {
        /// The socket that was tried.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The daemon answered that it cannot or will not.
    #[error("{error}")]
    Api {
        /// The HTTP status.
        status: u16,
        /// What failed and why.
        error: String,
        /// What to do about it, where there is something.
        hint: Option<String>,
    },
    /// The answer was cut off, or is not what this version understands.
    #[error("the daemon's answer cannot be used: {0}")]
    Protocol(String),
    /// No answer came in time.
    #[error("the daemon did not answer within {} s ({action})", after.as_secs())]
    Timeout {
        /// What was asked: the operation's name.
        action: &'static str,
        /// How long was waited.
        after: Duration,
    },
}

impl ClientError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoDaemon { .. } => Some("start it with `ostler up FILE`".to_owned()),
            Self::Connect { .. } => {
                Some("the socket belongs to the user who runs the daemon; be that user".to_owned())
            }
            Self::Api { hint, .. } => hint.clone(),
            Self::Protocol(_) => Some(
                "compare `ostler --version` with `ostler status`; restart the daemon if they differ"
                    .to_owned(),
            ),
            Self::Timeout { .. } => {
                Some("see what it is doing with `ostler ps` and `ostler events`".to_owned())
            }
        }
    }
}
