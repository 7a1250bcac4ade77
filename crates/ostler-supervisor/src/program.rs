//! A small program of a person's that is run to its end: a probe, an alert's command.

use std::ffi::OsString;
use std::path::PathBuf;

use futures_util::future::join;
use ostler_os::{Exit, GuardEvent, Limits, SpawnRequest};
use tokio::sync::mpsc;

use crate::capture::LAST_WORDS;
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
        let (mut said, mut aside) = (Tail::default(), Tail::default());
        let end = {
            // Both are read, or one that says much would stand still.
            let reads = join(said.follow(&launched.stderr), aside.follow(&launched.stdout));
            let mut reads = std::pin::pin!(reads);
            let (end, open) = crate::select::select! {
                end = end_of(&mut launched.events) => (end, true),
                _ = &mut reads => (end_of(&mut launched.events).await, false),
            };
            if open && !matches!(end, Some(Ok(Exit::Code(0)))) {
                // What it has started may keep its output open as long as it likes: its own end counts.
                let _ = tokio::time::timeout(LAST_WORDS, reads).await;
            }
            end
        };
        match end {
            Some(Ok(Exit::Code(0))) => Ok(()),
            Some(Ok(exit)) => Err(Trouble::Ended(format!("`{name}` {}{}", convert(exit), said.words()))),
            Some(Err(why)) => Err(Trouble::NotStarted(why)),
            None => Err(Trouble::Ended(format!("`{name}` ended, and its guard with it"))),
        }
    }
}

/// How it ended, or why it could not be started; `None` where nobody knows.
async fn end_of(events: &mut mpsc::Receiver<GuardEvent>) -> Option<Result<Exit, String>> {
    loop {
        match events.recv().await? {
            GuardEvent::LeaderExited(exit) => return Some(Ok(exit)),
            GuardEvent::SpawnFailed(failure) => return Some(Err(failure.message)),
            _ => {}
        }
    }
}

/// The last of what is written to an output.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    /// Reads until that is closed. Cancel-safe.
    async fn follow(&mut self, output: &Output) {
        let mut chunk = [0; 1024];
        while output.readable().await.is_ok() {
            match output.try_read(&mut chunk) {
                Ok(0) => break,
                Ok(length) => self.0.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
            self.0.drain(..self.0.len().saturating_sub(MAX_OUTPUT));
        }
    }

    /// It, after a colon, where there is any.
    fn words(&self) -> String {
        let said = String::from_utf8_lossy(&self.0);
        let said = said.trim();
        if said.is_empty() { String::new() } else { format!(": {said}") }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;
    use std::time::Duration;

    use ostler_os::meter::TreeRoot;
    use ostler_os::{Mark, SpawnError};
    use tokio::net::unix::pipe;

    use super::*;
    use crate::launch::{Control, Input, KernelView, Launched};

    /// Has one program ready, which was started already.
    #[derive(Debug)]
    struct Ready(Mutex<Option<Launched>>);

    impl Launcher for Ready {
        fn launch(&self, _request: SpawnRequest) -> Result<Launched, SpawnError> {
            let mut launched = self.0.lock().expect("nobody panics");
            launched.take().ok_or(SpawnError::Channels(io::ErrorKind::Unsupported.into()))
        }

        fn look(&self, _trees: &[TreeRoot]) -> io::Result<KernelView> {
            Ok(KernelView::default())
        }

        fn end_strays(&self) {}

        fn end_marked(&self, _mark: Mark) {}
    }

    #[derive(Debug)]
    struct Nothing;

    impl Control for Nothing {
        fn terminate(&self) {}

        fn kill(&self) {}
    }

    #[tokio::test]
    async fn its_own_end_counts_though_another_holds_its_output_open() {
        for (exit, expected) in
            [(Exit::Code(0), None), (Exit::Code(7), Some("`job` exited with status 7: why"))]
        {
            // The test is who holds them open.
            let (held_stderr, stderr) = pipe::pipe().expect("a pipe");
            let (_held_stdout, stdout) = pipe::pipe().expect("a pipe");
            held_stderr.writable().await.expect("it is open");
            held_stderr.try_write(b"why").expect("room");
            let (says, events) = mpsc::channel(1);
            says.try_send(GuardEvent::LeaderExited(exit)).expect("room");
            let launched = Launched {
                stdin: Input::Nobody,
                stdout: stdout.into(),
                stderr: stderr.into(),
                control: Box::new(Nothing),
                events,
                guard_pid: 0,
                guard_start: 0,
                mark: crate::random::mark(),
            };
            let (program, args, env) = ("job".to_owned(), Vec::new(), Vec::new());
            let run = Program { program, args, env, cwd: None };
            let launcher = Ready(Mutex::new(Some(launched)));
            let ended = tokio::time::timeout(Duration::from_secs(30), run.run(&launcher)).await;
            let why = ended.expect("it has ended").err().map(Trouble::into_text);
            assert_eq!(why.as_deref(), expected);
        }
    }
}
