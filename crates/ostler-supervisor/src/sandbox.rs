//! Whether workers can have sandboxes on this machine.
//!
//! What a sandbox is made of is [`ostler_os::sandbox`]'s. It is tried once, with everything that a worker's has, behind a guard as a
//! worker is: a machine that builds that one builds the others. Where it cannot be built, code is refused, and the reason names
//! what is missing and the way out; nothing runs without a sandbox because there is none.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use ostler_os::SpawnRequest;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::launch::Launcher;
use crate::program::Program;

pub use ostler_os::sandbox::{Allowed, Bubblewrap, PROGRAM, Unavailable};

/// How long the trial may take. It takes some hundredths of a second.
const TRIAL: Duration = Duration::from_secs(10);

/// After so long a machine that had none is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// What is said of one that takes longer.
const TOO_LONG: &str = "it did not end within 10 s";

/// What builds sandboxes here, looked for when the first is wanted.
#[derive(Debug)]
pub struct Sandboxes {
    path: OsString,
    exe: PathBuf,
    tried: Mutex<Option<Tried>>,
}

/// What came of a trial.
#[derive(Debug)]
struct Tried {
    at: Instant,
    found: Result<Arc<Bubblewrap>, Unavailable>,
}

impl Tried {
    /// Where there were none, somebody may have seen to it since.
    fn holds(&self) -> bool {
        self.found.is_ok() || self.at.elapsed() < TRY_AGAIN
    }
}

impl Sandboxes {
    /// `path` is where `bwrap` is looked for, a list of folders as in `PATH`; `exe` is Ostler's own program: what takes the last
    /// step into a sandbox, and `ostler worker`.
    pub fn new(path: impl Into<OsString>, exe: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), exe: exe.into(), tried: Mutex::default() }
    }

    /// What builds them. The first call tries it out. That it works stays so until this daemon ends; that it does not, for a while.
    ///
    /// # Errors
    /// Why there are none.
    pub async fn get(&self, launcher: &dyn Launcher) -> Result<Arc<Bubblewrap>, Unavailable> {
        // Held over the trial: who comes meanwhile waits for what comes of it.
        let mut tried = self.tried.lock().await;
        if let Some(tried) = tried.as_ref().filter(|tried| tried.holds()) {
            return tried.found.clone();
        }
        let found = self.find(launcher).await.map(Arc::new);
        *tried = Some(Tried { at: Instant::now(), found: found.clone() });
        found
    }

    async fn find(&self, launcher: &dyn Launcher) -> Result<Bubblewrap, Unavailable> {
        let found = Bubblewrap::find(&self.path, &self.exe)?;
        let (_own, trial) = trial(&found)?;
        let trial = program(trial).ok_or_else(|| Unavailable::of("the path of a program is no UTF-8"))?;
        match tokio::time::timeout(TRIAL, trial.run(launcher)).await {
            Ok(Ok(())) => Ok(found),
            Ok(Err(trouble)) => Err(Unavailable::of(&trouble.into_text())),
            Err(_) => Err(Unavailable::of(TOO_LONG)),
        }
    }

    /// The same for a program that is no daemon and has no guards, `ostler doctor`: where `bwrap` is, if it works. Blocks, 10 s at
    /// most.
    ///
    /// # Errors
    /// Why there are none.
    pub fn try_here(&self) -> Result<PathBuf, Unavailable> {
        let found = Bubblewrap::find(&self.path, &self.exe)?;
        let (_own, trial) = trial(&found)?;
        let mut command = Command::new(&trial.program);
        command.args(&trial.args).env_clear().envs(trial.env).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let (done, outcome) = mpsc::channel();
        // What takes too long ends with this program: bubblewrap is told to.
        std::thread::spawn(move || done.send(command.output()));
        match outcome.recv_timeout(TRIAL) {
            Ok(Ok(output)) if output.status.success() => Ok(found.bwrap().to_owned()),
            Ok(Ok(output)) => Err(Unavailable::of(&String::from_utf8_lossy(&output.stderr))),
            Ok(Err(error)) => Err(Unavailable::of(&error.to_string())),
            Err(_) => Err(Unavailable::of(TOO_LONG)),
        }
    }
}

/// A sandbox to try, and the folder that it is to have.
fn trial(found: &Bubblewrap) -> Result<(Scratch, SpawnRequest), Unavailable> {
    let own = Scratch::make().map_err(|error| Unavailable::of(&format!("no folder for a trial: {error}")))?;
    let trial = found.trial(&own.0, crate::random::mark());
    Ok((own, trial.map_err(|refused| Unavailable::of(&refused.to_string()))?))
}

fn program(request: SpawnRequest) -> Option<Program> {
    let args = request.args.into_iter().map(|arg| arg.into_string().ok()).collect::<Option<_>>()?;
    let program = request.program.into_string().ok()?;
    Some(Program { program, args, env: request.env, cwd: request.cwd })
}

/// A folder of this user's alone, which goes with everything in it.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let name = format!("ostler-trial-{}", crate::random::mark());
        let path = Path::canonicalize(&std::env::temp_dir())?.join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use ostler_os::meter::TreeRoot;
    use ostler_os::{Exit, GuardEvent, Mark, SpawnError};
    use tokio::net::unix::pipe;
    use tokio::sync::mpsc;

    use super::*;
    use crate::launch::{Control, Input, KernelView, Launched, Output};

    /// Starts programs that end so, and have said so.
    #[derive(Debug)]
    struct Ends {
        exit: Exit,
        says: &'static str,
        started: AtomicUsize,
    }

    #[derive(Debug)]
    struct Nothing;

    impl Control for Nothing {
        fn terminate(&self) {}

        fn kill(&self) {}
    }

    impl Launcher for Ends {
        fn launch(&self, request: SpawnRequest) -> Result<Launched, SpawnError> {
            self.started.fetch_add(1, Ordering::Relaxed);
            let (tell, events) = mpsc::channel(1);
            tell.try_send(GuardEvent::LeaderExited(self.exit)).expect("room");
            let (stderr_end, stderr) = pipe::pipe().expect("a pipe");
            let stderr_end = stderr_end.into_nonblocking_fd().expect("an end");
            io::Write::write_all(&mut std::fs::File::from(stderr_end), self.says.as_bytes()).expect("room");
            Ok(Launched {
                stdin: Input::Nobody,
                stdout: Output::Nobody,
                stderr: stderr.into(),
                control: Box::new(Nothing),
                events,
                guard_pid: 0,
                guard_start: 0,
                mark: request.mark,
            })
        }

        fn look(&self, _trees: &[TreeRoot]) -> io::Result<KernelView> {
            Ok(KernelView::default())
        }

        fn end_strays(&self) {}

        fn end_marked(&self, _mark: Mark) {}
    }

    /// A folder with something that is called `bwrap`.
    fn path() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("bwrap");
        std::fs::write(&file, "").expect("written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("set");
        folder
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_of_the_first_trial_stays_and_a_failure_for_a_while() {
        let folder = path();
        for (exit, says, expected) in [
            (Exit::Code(0), "", None),
            (
                Exit::Code(1),
                "bwrap: No permissions to create new namespace",
                Some("user.max_user_namespaces"),
            ),
        ] {
            let launcher = Ends { exit, says, started: AtomicUsize::new(0) };
            let sandboxes = Sandboxes::new(folder.path(), "/bin/sh");
            for _ in 0..2 {
                match (sandboxes.get(&launcher).await, expected) {
                    (Ok(_), None) => {}
                    (Err(why), Some(part)) => {
                        let why = why.to_string();
                        assert!(why.contains(part) && why.contains(says) && why.contains("\"off\""), "{why}");
                    }
                    (other, _) => panic!("{other:?}"),
                }
            }
            assert_eq!(launcher.started.load(Ordering::Relaxed), 1);
            tokio::time::advance(TRY_AGAIN).await;
            let _ = sandboxes.get(&launcher).await;
            let expected = if expected.is_some() { 2 } else { 1 };
            assert_eq!(launcher.started.load(Ordering::Relaxed), expected);
        }
    }

    #[tokio::test]
    async fn without_bubblewrap_nothing_is_tried() {
        let launcher = Ends { exit: Exit::Code(0), says: "", started: AtomicUsize::new(0) };
        let sandboxes = Sandboxes::new("/nowhere", "/bin/sh");
        assert_eq!(sandboxes.get(&launcher).await, Err(Unavailable::NoBubblewrap));
        assert_eq!(sandboxes.try_here(), Err(Unavailable::NoBubblewrap));
        assert_eq!(launcher.started.load(Ordering::Relaxed), 0);
    }
}
