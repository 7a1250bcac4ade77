//! The journal on a thread of its own. What gathers while it writes is the next group: one wait for the disk serves all
//! who come meanwhile.
//!
//! A journal in memory waits for nothing, and to wake the thread takes longer than to write. So, as long as little is to be
//! written and the thread has nothing to do, whoever asks writes: see [`Shared::at_once`].

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ostler_store::journal::{CHANGES_MAX, Change, Journal, JournalError, Outcome, Refusal};
use tokio::sync::{mpsc, oneshot};

use crate::clock;

/// Jobs that may wait for the thread; who has one more waits.
const JOBS: usize = 4096;
/// Most changes of one group: so many tasks wait for the disk together.
const GROUP: usize = 1024;
/// Most that whoever asks writes at once.
const SMALL: usize = 4;
/// From so many that ask within this time on it is worth to wake the thread, which writes while others do something else.
const MANY: u32 = 100;
const PACE: Duration = Duration::from_millis(10);
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

/// The journal, for its thread and for those who write at once.
struct Shared {
    /// None once it is closed.
    journal: Mutex<Option<Journal>>,
    /// Jobs that the thread was given and has not done: nobody writes before them what was asked for after them.
    given: AtomicUsize,
    pace: Mutex<Pace>,
}

/// How many ask, and what is due.
struct Pace {
    /// When the thread forgot old tasks.
    pruned: Instant,
    since: Instant,
    asked: u32,
    /// Whether there were many in the time before.
    were_many: bool,
}

impl Pace {
    fn new() -> Self {
        Self { pruned: Instant::now(), since: Instant::now(), asked: 0, were_many: false }
    }

    /// Whether the thread is to forget old tasks.
    fn is_prune_due(&self) -> bool {
        self.pruned.elapsed() >= PRUNE_EVERY
    }

    /// One more asks; whether these are many.
    fn is_high(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since);
        if passed >= PACE {
            self.were_many = self.asked >= MANY && passed < 2 * PACE;
            (self.since, self.asked) = (now, 0);
        }
        self.asked = self.asked.saturating_add(1);
        self.were_many || self.asked > MANY
    }
}

impl Shared {
    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes this here and now, and does what follows; gives it back where it is for the thread.
    fn at_once(&self, changes: Vec<Change>, then: Then) -> Option<(Vec<Change>, Then)> {
        let mut pace = self.pace();
        let is_for_thread = pace.is_high(Instant::now()) || pace.is_prune_due() || weigh(&changes) > SMALL;
        drop(pace);
        if !is_for_thread
            && let Ok(mut journal) = self.journal.try_lock()
            && self.given.load(Ordering::Acquire) == 0
            && let Some(journal) = journal.as_mut()
        {
            let outcomes = apply(journal, &changes);
            then(journal, outcomes);
            return None;
        }
        Some((changes, then))
    }
}

/// Work for the journal's thread.
#[derive(Clone)]
pub(super) struct Clerk {
    jobs: mpsc::Sender<Job>,
    shared: Arc<Shared>,
    is_in_memory: bool,
}

impl std::fmt::Debug for Clerk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clerk").finish_non_exhaustive()
    }
}

impl Clerk {
    /// Gives the journal a thread.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn start(journal: Journal, is_in_memory: bool) -> std::io::Result<Self> {
        let (jobs, waiting) = mpsc::channel(JOBS);
        let shared = Arc::new(Shared {
            journal: Mutex::new(Some(journal)),
            given: AtomicUsize::new(0),
            pace: Mutex::new(Pace::new()),
        });
        let own = Arc::clone(&shared);
        std::thread::Builder::new().name("ostler-tasks".into()).spawn(move || keep(&own, waiting))?;
        Ok(Self { jobs, shared, is_in_memory })
    }

    async fn give(&self, job: Job) -> Result<(), ClerkError> {
        let place = self.jobs.reserve().await.map_err(|_| ClerkError::Closed)?;
        self.shared.given.fetch_add(1, Ordering::AcqRel);
        place.send(job);
        Ok(())
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
        let left = match self.is_in_memory {
            true => self.shared.at_once(changes, then),
            false => Some((changes, then)),
        };
        if let Some((changes, then)) = left {
            self.give(Job::Changes(changes, then)).await?;
        }
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
        self.give(job).await?;
        let found = answered.await.map_err(|_| ClerkError::Closed)?;
        found.map_err(|error| ClerkError::Journal(Arc::new(error)))
    }

    /// Closes the journal once all that waits is done.
    pub(super) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.give(Job::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }
}

/// The outcome of one change.
pub(super) fn only(outcomes: Result<Vec<Outcome>, ClerkError>) -> Result<Outcome, ClerkError> {
    // Each change has its outcome.
    Ok(outcomes?.pop().unwrap_or(Outcome::Refused(Refusal::NoTask(0))))
}

fn keep(shared: &Shared, mut waiting: mpsc::Receiver<Job>) {
    while let Some(first) = waiting.blocking_recv() {
        let mut own = shared.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Some(first);
        while let Some(job) = next.take() {
            let Some(journal) = own.as_mut() else { return };
            let mut done = 1;
            match job {
                Job::Changes(changes, then) => {
                    (next, done) = write(journal, (changes, then), &mut waiting);
                }
                Job::Look(look) => look(journal),
                Job::Close(done) => {
                    if let Some(Err(error)) = own.take().map(Journal::close) {
                        tracing::warn!(%error, "the task journal was not closed cleanly; it is looked through at the next start");
                    }
                    let _ = done.send(());
                    return;
                }
            }
            shared.given.fetch_sub(done, Ordering::AcqRel);
        }
        if let Some(journal) = own.as_mut().filter(|_| shared.pace().is_prune_due()) {
            prune(journal);
            shared.pace().pruned = Instant::now();
        }
    }
}

fn weigh(changes: &[Change]) -> usize {
    changes.iter().map(Change::weight).sum()
}

/// Writes what has gathered; gives the first job that is none of that, and of how many jobs that was.
fn write(
    journal: &mut Journal,
    (mut changes, then): (Vec<Change>, Then),
    waiting: &mut mpsc::Receiver<Job>,
) -> (Option<Job>, usize) {
    let mut all = vec![(changes.len(), then)];
    let mut next = None;
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
    let jobs = all.len();
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
    (next, jobs)
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

#[cfg(test)]
mod tests {
    use ostler_store::journal::JournalOptions;

    use super::*;

    fn shared() -> Shared {
        let journal = Journal::in_memory(JournalOptions::default()).expect("opens");
        Shared {
            journal: Mutex::new(Some(journal)),
            given: AtomicUsize::new(0),
            pace: Mutex::new(Pace::new()),
        }
    }

    /// Something that the journal refuses, so many times; whether it was asked here and now.
    fn is_at_once(shared: &Shared, changes: usize) -> bool {
        let change = Change::Commit { seq: 1, attempt: 1, result: bytes::Bytes::new() };
        let (said, heard) = std::sync::mpsc::channel();
        let then: Then = Box::new(move |_, outcomes| {
            said.send(outcomes.map(|outcomes| outcomes.len()).ok()).expect("somebody listens");
        });
        let left = shared.at_once(vec![change; changes], then);
        assert_eq!(heard.try_recv().ok(), left.is_none().then_some(Some(changes)));
        left.is_none()
    }

    #[test]
    fn little_is_written_by_who_asks_and_never_past_what_waits() {
        let shared = shared();
        assert!(is_at_once(&shared, 1) && is_at_once(&shared, SMALL));
        assert!(!is_at_once(&shared, SMALL + 1), "it takes long");
        shared.given.store(1, Ordering::Release);
        assert!(!is_at_once(&shared, 1), "something was asked for before");
        shared.given.store(0, Ordering::Release);
        assert!(is_at_once(&shared, 1));
        let reading = shared.journal.lock().expect("nobody panicked");
        assert!(!is_at_once(&shared, 1), "somebody else has it, and is not waited for");
        drop(reading);
        let long_ago = Instant::now().checked_sub(PRUNE_EVERY).expect("the machine runs for longer");
        shared.pace().pruned = long_ago;
        assert!(!is_at_once(&shared, 1), "the thread forgets old tasks");
        shared.pace().pruned = Instant::now();
        assert!(is_at_once(&shared, 1));
        *shared.journal.lock().expect("nobody panicked") = None;
        assert!(!is_at_once(&shared, 1), "it is closed");
    }

    #[test]
    fn the_thread_has_it_while_many_ask() {
        let mut pace = Pace::new();
        let begun = pace.since;
        let high = (0..=MANY).map(|_| pace.is_high(begun)).position(|high| high);
        assert_eq!(high, Some(MANY as usize));
        // The next time begins as the last one was.
        assert!(pace.is_high(begun + PACE));
        assert!(!pace.is_high(begun + 2 * PACE), "that one had few");
        pace.asked = MANY;
        assert!(!pace.is_high(begun + 4 * PACE), "many, and then nobody");
    }

    /// By both ways in turn: what was asked for later is never done before.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_finds_what_was_asked_for_before() {
        let journal = Journal::in_memory(JournalOptions::default()).expect("opens");
        let clerk = Clerk::start(journal, true).expect("a thread");
        let (told, mut heard) = mpsc::unbounded_channel();
        let mut answers = Vec::new();
        for n in 0..2000_usize {
            let told = told.clone();
            // Some are for the thread, those behind them for whoever asks.
            let size = if n % 5 == 0 { SMALL + 1 } else { 1 };
            let changes = vec![Change::Commit { seq: 1, attempt: 1, result: bytes::Bytes::new() }; size];
            let then = move |_: &mut Journal, _| {
                told.send(n).expect("somebody listens");
                Ok(())
            };
            answers.push(clerk.ask(changes, then).await.expect("it is there"));
            if n % 50 == 0 {
                clerk.look(|_| Ok(())).await.expect("it is there");
            }
        }
        for answer in answers {
            answer.await.expect("it is answered").expect("it is done");
        }
        drop(told);
        let mut order = Vec::new();
        heard.recv_many(&mut order, 2000).await;
        assert!(order.is_sorted() && order.len() == 2000, "{order:?}");
        clerk.close().await;
        assert!(matches!(clerk.changes(vec![]).await, Err(ClerkError::Closed)));
    }
}
