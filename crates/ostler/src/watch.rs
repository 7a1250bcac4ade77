//! A configuration file that changes is taken in by itself (`reload.watch`).

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

/// Takes the configuration in whenever one of `files` changes, while `reload.watch` says so. Returns when the files
/// cannot be followed any more, which is told.
pub(crate) async fn follow(files: Vec<PathBuf>, supervisor: Arc<Supervisor>, reloader: Arc<Reloader>) {
    if let Err(error) = follow_on(files, &supervisor, &reloader).await {
        let what = "following the configuration's files (reload.watch)".to_owned();
        let why = format!("{error}; `ostler reload` takes changes in");
        supervisor.events().record("daemon", Happening::Refused { what, why });
    }
}

async fn follow_on(
    files: Vec<PathBuf>,
    supervisor: &Supervisor,
    reloader: &Arc<Reloader>,
) -> std::io::Result<()> {
    let mut watch = FileWatch::new(files)?;
    loop {
        watch.changed().await?;
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
