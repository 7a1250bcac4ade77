//! The journal on a thread of its own. What gathers while it writes is the next group: one wait for the disk serves all
//! who come meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ostler_store::journal::{CHANGES_MAX, Change, Journal, JournalError, Outcome, Refusal};
use tokio::sync::{mpsc, oneshot};

use crate::clock;

/// Jobs that may wait for the thread; who has one more waits.
const JOBS: usize = 4096;
/// Most changes of one group: so many tasks wait for the disk together.
const GROUP: usize = 1024;
/// How often, at most, ended tasks are looked through for those to be forgotten: while something is to be done anyway.
const PRUNE_EVERY: Duration = Duration::from_secs(5);

/// Why something could not be written down or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClerkError {
    /// The journal said so; the same to all of a group.
    #[error("{0}")]
    Journal(Arc<JournalError>),
    /// Its thread has ended, as the daemon does.
    #[error("the task journal is closed")]
    Closed,
}

/// What follows from changes once they are on disk: on the journal's thread, so it may look something up.
type Then = Box<dyn FnOnce(&mut Journal, Result<Vec<Outcome>, ClerkError>) + Send>;

/// What comes when a change is on disk.
pub(super) type Answer<T> = oneshot::Receiver<Result<T, ClerkError>>;

enum Job {
    Changes(Vec<Change>, Then),
    Look(Box<dyn FnOnce(&mut Journal) + Send>),
    Close(oneshot::Sender<()>),
}

/// Work for the journal's thread.
#[derive(Clone, Debug)]
pub(super) struct Clerk {
    jobs: mpsc::Sender<Job>,
}

impl Clerk {
    /// Gives the journal a thread.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn start(journal: Journal) -> std::io::Result<Self> {
        let (jobs, waiting) = mpsc::channel(JOBS);
        std::thread::Builder::new().name("ostler-tasks".into()).spawn(move || keep(journal, waiting))?;
        Ok(Self { jobs })
    }

    /// Makes these changes, in one group with what others want changed; returns when they are on disk.
    pub(super) async fn changes(&self, changes: Vec<Change>) -> Result<Vec<Outcome>, ClerkError> {
        self.changes_then(changes, |_, outcomes| outcomes).await
    }

    /// The same of one change.
    pub(super) async fn change(&self, change: Change) -> Result<Outcome, ClerkError> {
        self.change_then(change, |_, outcome| outcome).await
    }

    /// The same, and looks something up at once.
    pub(super) async fn change_then<T: Send + 'static>(
        &self,
        change: Change,
        then: impl FnOnce(&mut Journal, Outcome) -> T + Send + 'static,
    ) -> Result<T, ClerkError> {
        let one = |journal: &mut Journal, outcomes| Ok(then(journal, only(outcomes)?));
        self.changes_then(vec![change], one).await
    }

    async fn changes_then<T: Send + 'static>(
        &self,
        changes: Vec<Change>,
        then: impl FnOnce(&mut Journal, Result<Vec<Outcome>, ClerkError>) -> Result<T, ClerkError>
        + Send
        + 'static,
    ) -> Result<T, ClerkError> {
        self.ask(changes, then).await?.await.map_err(|_| ClerkError::Closed)?
    }

    /// Has these changes made after all that was asked for before; the answer comes when they are on disk.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        changes: Vec<Change>,
        then: impl FnOnce(&mut Journal, Result<Vec<Outcome>, ClerkError>) -> Result<T, ClerkError>
        + Send
        + 'static,
    ) -> Result<Answer<T>, ClerkError> {
        let (answer, answered) = oneshot::channel();
        let then: Then = Box::new(move |journal, outcomes| {
            // Whoever asked may have gone.
            let _ = answer.send(then(journal, outcomes));
        });
        self.jobs.send(Job::Changes(changes, then)).await.map_err(|_| ClerkError::Closed)?;
        Ok(answered)
    }

    /// Looks something up, after all that was to be changed before.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Journal) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, ClerkError> {
        let (answer, answered) = oneshot::channel();
        let job = Job::Look(Box::new(move |journal| {
            // Whoever asked may have gone.
            let _ = answer.send(look(journal));
        }));
        self.jobs.send(job).await.map_err(|_| ClerkError::Closed)?;
        let found = answered.await.map_err(|_| ClerkError::Closed)?;
        found.map_err(|error| ClerkError::Journal(Arc::new(error)))
    }

    /// Closes the journal once all that waits is done.
    pub(super) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.jobs.send(Job::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }
}

/// The outcome of one change.
pub(super) fn only(outcomes: Result<Vec<Outcome>, ClerkError>) -> Result<Outcome, ClerkError> {
    // Each change has its outcome.
    Ok(outcomes?.pop().unwrap_or(Outcome::Refused(Refusal::NoTask(0))))
}

fn keep(mut journal: Journal, mut waiting: mpsc::Receiver<Job>) {
    let mut pruned = Instant::now();
    while let Some(first) = waiting.blocking_recv() {
        let mut next = Some(first);
        while let Some(job) = next.take() {
            match job {
                Job::Changes(changes, then) => {
                    next = write(&mut journal, (changes, then), &mut waiting);
                }
                Job::Look(look) => look(&mut journal),
                Job::Close(done) => {
                    if let Err(error) = journal.close() {
                        tracing::warn!(%error, "the task journal was not closed cleanly; it is looked through at the next start");
                    }
                    let _ = done.send(());
                    return;
                }
            }
        }
        if pruned.elapsed() >= PRUNE_EVERY {
            prune(&mut journal);
            pruned = Instant::now();
        }
    }
}

/// Writes what has gathered; gives the first job that is none of that.
fn write(
    journal: &mut Journal,
    (mut changes, then): (Vec<Change>, Then),
    waiting: &mut mpsc::Receiver<Job>,
) -> Option<Job> {
    let mut all = vec![(changes.len(), then)];
    let mut next = None;
    let weigh = |changes: &[Change]| changes.iter().map(Change::weight).sum::<usize>();
    let mut weight = weigh(&changes);
    while weight < GROUP {
        match waiting.try_recv() {
            // Refused alone if it has to be, and not with those before it.
            Ok(Job::Changes(more, then)) if weight + weigh(&more) > CHANGES_MAX => {
                next = Some(Job::Changes(more, then));
                break;
            }
            Ok(Job::Changes(more, then)) => {
                weight += weigh(&more);
                all.push((more.len(), then));
                changes.extend(more);
            }
            Ok(other) => {
                next = Some(other);
                break;
            }
            Err(_) => break,
        }
    }
    match journal.apply(&changes, clock::unix_ms()) {
        Ok(outcomes) => {
            if let Some(error) = journal.take_trouble() {
                tracing::warn!(%error, "the task journal has all that it was given, and is not in order otherwise");
            }
            let mut outcomes = outcomes.into_iter();
            for (count, then) in all {
                then(journal, Ok(outcomes.by_ref().take(count).collect()));
            }
        }
        // What one of them is refused for is not for the others to bear.
        Err(_) if all.len() > 1 => {
            let mut changes = changes.into_iter();
            for (count, then) in all {
                let outcomes = apply(journal, &changes.by_ref().take(count).collect::<Vec<_>>());
                then(journal, outcomes);
            }
        }
        Err(error) => {
            let error = failed(error.into());
            all.into_iter().for_each(|(_, then)| then(journal, Err(error.clone())));
        }
    }
    next
}

fn apply(journal: &mut Journal, changes: &[Change]) -> Result<Vec<Outcome>, ClerkError> {
    journal.apply(changes, clock::unix_ms()).map_err(|error| failed(error.into()))
}

fn failed(error: Arc<JournalError>) -> ClerkError {
    tracing::error!(%error, "the task journal could not be written");
    ClerkError::Journal(error)
}

fn prune(journal: &mut Journal) {
    if let Err(error) = journal.prune(clock::unix_ms()) {
        tracing::warn!(%error, "old tasks could not be forgotten");
    }
}
