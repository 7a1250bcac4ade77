//! A configuration file that changes is taken in by itself (`reload.watch`).

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ostler_domain::event::Happening;
use ostler_os::files::FileWatch;
use ostler_supervisor::{Reloader, Supervisor};
use tokio::time::{Instant, timeout_at};

/// A file is read once it has been left alone for so long: a program that saves it may take several steps.
const QUIET: Duration = Duration::from_millis(200);

/// A file that is not left alone is read after so long all the same.
const AT_THE_LATEST: Duration = Duration::from_secs(2);

/// Of a file: device, number, length, and the time of the latest change, be it of its contents or its name.
type Stamp = (u64, u64, u64, i64, i64);

/// What tells whether files are the same as before, of each where there is one.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Stamps(Vec<Option<Stamp>>);

impl Stamps {
    /// As they are now.
    pub(crate) fn of(files: &[PathBuf]) -> Self {
        let stamp = |file: &PathBuf| {
            let file = std::fs::metadata(file).ok()?;
            Some((file.dev(), file.ino(), file.len(), file.ctime(), file.ctime_nsec()))
        };
        Self(files.iter().map(stamp).collect())
    }
}

/// Takes the configuration in whenever one of `files` changes, while `reload.watch` says so; `read` is how they were before
/// the daemon read them. Returns when the files cannot be followed any more, which is told.
pub(crate) async fn follow(
    files: Vec<PathBuf>,
    read: Stamps,
    supervisor: Arc<Supervisor>,
    reloader: Arc<Reloader>,
) {
    if let Err(error) = follow_on(files, &read, &supervisor, &reloader).await {
        let what = "following the configuration's files (reload.watch)".to_owned();
        let why = format!("{error}; `ostler reload` takes changes in");
        supervisor.events().record("daemon", Happening::Refused { what, why });
    }
}

async fn follow_on(
    files: Vec<PathBuf>,
    read: &Stamps,
    supervisor: &Supervisor,
    reloader: &Arc<Reloader>,
) -> std::io::Result<()> {
    let mut watch = FileWatch::new(files.clone())?;
    // While the daemon started nobody followed them.
    let mut changed = Stamps::of(&files) != *read;
    loop {
        if !std::mem::take(&mut changed) {
            watch.changed().await?;
        }
        let latest = Instant::now() + AT_THE_LATEST;
        while let Ok(changed) = timeout_at((Instant::now() + QUIET).min(latest), watch.changed()).await {
            changed?;
        }
        if supervisor.config().reload.watch {
            // What comes of it is an event, and in the log.
            drop(reloader.reload(false).await);
        }
    }
}
