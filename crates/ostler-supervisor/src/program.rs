//! A small program of a person's that is run to its end: a probe, an alert's command.

use std::ffi::OsString;
use std::path::PathBuf;

use ostler_os::{Exit, GuardEvent, Limits, SpawnRequest};

use crate::instance::driver::convert;
use crate::launch::{Launcher, Output};

/// Bytes at the end of its error output that are told when it fails.
const MAX_OUTPUT: usize = 500;

/// What to run.
#[derive(Debug)]
pub(crate) struct Program {
    /// A path, or a name looked up in the `PATH` of `env`.
    pub(crate) program: String,
    pub(crate) args: Vec<String>,
    /// All of its environment.
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) cwd: Option<PathBuf>,
}

/// Why it did not do its work.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It could not be started.
    NotStarted(String),
    /// It ended with another status than 0, or by a signal.
    Ended(String),
}

impl Trouble {
    /// In words.
    pub(crate) fn into_text(self) -> String {
        match self {
            Self::NotStarted(why) | Self::Ended(why) => why,
        }
    }
}

impl Program {
    /// Runs it behind a guard, like a server: when this is dropped, it ends with all that it started.
    pub(crate) async fn run(self, launcher: &dyn Launcher) -> Result<(), Trouble> {
        let name = self.program;
        let request = SpawnRequest {
            program: name.clone().into(),
            args: self.args.into_iter().map(Into::into).collect(),
            env: self.env,
            cwd: self.cwd,
            limits: Limits::default(),
            mark: crate::random::mark(),
        };
        let mut launched =
            launcher.launch(request).map_err(|error| Trouble::NotStarted(format!("`{name}`: {error}")))?;
        // Both are read, or one that says much would stand still.
        let (said, _) = tokio::join!(tail(&launched.stderr), tail(&launched.stdout));
        while let Some(event) = launched.events.recv().await {
            match event {
                GuardEvent::LeaderExited(Exit::Code(0)) => return Ok(()),
                GuardEvent::LeaderExited(exit) => {
                    return Err(Trouble::Ended(format!("`{name}` {}{said}", convert(exit))));
                }
                GuardEvent::SpawnFailed(failure) => return Err(Trouble::NotStarted(failure.message)),
                _ => {}
            }
        }
        Err(Trouble::Ended(format!("`{name}` ended, and its guard with it")))
    }
}

/// The last of what it writes there, once it has closed that.
async fn tail(output: &Output) -> String {
    let (mut kept, mut chunk) = (Vec::new(), [0; 1024]);
    while output.readable().await.is_ok() {
        match output.try_read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => kept.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        kept.drain(..kept.len().saturating_sub(MAX_OUTPUT));
    }
    let said = String::from_utf8_lossy(&kept);
    let said = said.trim();
    if said.is_empty() { String::new() } else { format!(": {said}") }
}
