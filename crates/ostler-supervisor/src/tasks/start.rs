//! The beginning and the end: what an earlier daemon left in the journal goes on, and nothing is begun once this one ends.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use ostler_config::{Config, JournalMode};
use ostler_domain::event::Happening;
use ostler_domain::task::queue::{Event, Queued};
use ostler_domain::task::{Lane, Priority, ProjectName, TaskId};
use ostler_store::journal::{
    Change, Interrupted, Journal, JournalError, JournalOptions, OpenReport, Outcome,
};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::clerk::{Clerk, ClerkError};
use super::desk::Desk;
use super::parts::lane_of;
use super::{Tasks, lanes};
use crate::clock;
use crate::core::Core;
use crate::quarters::House;
use crate::session::Session;
use crate::supervisor::Supervisor;
use crate::wait::until;

/// Tasks of an earlier daemon that enter the queue in one decision.
const CHUNK: usize = 10_000;

/// How long what runs is waited for at the end.
const CLOSING: Duration = Duration::from_secs(2);

/// Why there are no tasks.
#[derive(Debug, thiserror::Error)]
pub enum TasksError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Its thread.
    #[error("the task journal: {0}")]
    Clerk(#[from] ClerkError),
    /// The thread or the workers' files.
    #[error("tasks cannot be begun: {0}")]
    Io(#[from] std::io::Error),
}

fn options(config: &Config) -> JournalOptions {
    let tasks = &config.tasks;
    JournalOptions {
        durable: tasks.journal == JournalMode::Durable,
        result_inline: tasks.result_inline,
        result_max: tasks.result_max,
        // With what Ostler adds.
        payload_max: tasks.payload_max + 1024,
        keep: tasks.keep,
        keep_size: tasks.keep_size,
        ..JournalOptions::default()
    }
}

impl Tasks {
    /// Opens the journal in this state directory, and goes on with what an earlier daemon had accepted.
    ///
    /// # Errors
    /// [`TasksError`]; the journal's say what to do.
    pub(crate) async fn start(
        core: &Arc<Core>,
        supervisor: Weak<Supervisor>,
        state_dir: &Path,
        runtime_dir: &Path,
    ) -> Result<Arc<Self>, TasksError> {
        let config = core.config();
        let (dir, run) = (state_dir.to_owned(), runtime_dir.to_owned());
        let opening = tokio::task::spawn_blocking({
            let config = Arc::clone(&config);
            move || -> Result<(House, (Journal, OpenReport)), TasksError> {
                let house = House::open(&dir, &run)?;
                lanes::unpack(&house.workers)?;
                let journal = match config.tasks.journal {
                    JournalMode::Memory => (Journal::in_memory(options(&config))?, OpenReport::default()),
                    JournalMode::Durable => Journal::open(&dir, options(&config), clock::unix_ms())?,
                };
                Ok((house, journal))
            }
        });
        let (house, (journal, report)) =
            opening.await.map_err(|error| std::io::Error::other(error.to_string()))??;
        let tasks = Arc::new(Self {
            core: Arc::clone(core),
            supervisor,
            clerk: Clerk::start(journal, config.tasks.journal == JournalMode::Memory)?,
            desk: Mutex::new(Desk::new(config.tasks.queue.clone())),
            recent: Mutex::new(VecDeque::new()),
            origin_unix_ms: clock::unix_ms(),
            began: Instant::now(),
            house: Arc::new(house),
            nonces: Mutex::default(),
            belongings: Mutex::default(),
            limiting: tokio::sync::Mutex::new(Arc::clone(&config)),
            by_hand: Mutex::default(),
            written: Mutex::default(),
            begun: Notify::new(),
            closing: AtomicBool::new(false),
            quiet: Notify::new(),
        });
        tasks.tell_report(&report);
        tasks.limit_projects(&config).await?;
        tasks.put_back(report.interrupted).await?;
        tasks.take_up().await?;
        tokio::spawn(follow_reloads(Arc::downgrade(&tasks), core.registry.renewals()));
        Ok(tasks)
    }

    fn tell_report(&self, report: &OpenReport) {
        let say = |why: String| self.core.events.record("tasks", Happening::TaskJournal { why });
        if let Some(loss) = &report.loss {
            say(loss.to_string());
        }
        report.notes.iter().for_each(|note| say(note.clone()));
        for (seq, what) in &report.damaged {
            say(format!("the {what} of task number {seq} is damaged"));
        }
    }

    /// Attempts that ran when the daemon ended: tried again, or buried where that was the last.
    async fn put_back(&self, interrupted: Vec<Interrupted>) -> Result<(), ClerkError> {
        let why = "failed: the daemon ended while it ran";
        let spec = self.retry();
        let back = interrupted.into_iter().map(|task| {
            let seq = task.id.seq;
            let spent = task.attempt.saturating_sub(task.base) >= task.attempts_max.max(1);
            match spent {
                true => Change::Bury { seq, attempt: Some(task.attempt), why: why.to_owned() },
                false => {
                    // It may have been what ended the daemon.
                    let pause = spec.pause(seq, task.attempt).unwrap_or(spec.min);
                    let pause = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                    let not_before_unix_ms = clock::unix_ms().saturating_add(pause);
                    Change::Retry { seq, attempt: task.attempt, why: why.to_owned(), not_before_unix_ms }
                }
            }
        });
        let back: Vec<Change> = back.collect();
        for outcome in if back.is_empty() { Vec::new() } else { self.clerk.changes(back).await? } {
            if let Outcome::Refused(why) = outcome {
                tracing::warn!(%why, "an interrupted task could not be put back");
            }
        }
        Ok(())
    }

    /// What waits enters the queue, a chunk after the other.
    async fn take_up(self: &Arc<Self>) -> Result<(), ClerkError> {
        let sessions = self.supervisor().map(|supervisor| supervisor.sessions().all()).unwrap_or_default();
        let sessions: HashMap<&str, &Arc<Session>> =
            sessions.iter().map(|session| (&*session.handle, session)).collect();
        let mut left = Vec::new();
        let (give, mut chunks) = mpsc::channel(1);
        let reading = self.clerk.look(move |journal| read_waiting(journal, &give));
        let entering = async {
            while let Some(chunk) = chunks.recv().await {
                let enter = |waiting| self.take_up_one(waiting, &sessions, &mut left);
                let queued = Vec::into_iter(chunk).map(enter).collect();
                self.tell(Event::Restored(queued));
            }
        };
        self.desk().is_taking_up = true;
        let (read, ()) = tokio::join!(reading, entering);
        self.desk().is_taking_up = false;
        read?;
        self.tell(Event::Tick);
        self.cancel_all(&left, "its session ended").await;
        Ok(())
    }

    fn take_up_one(
        self: &Arc<Self>,
        waiting: Waiting,
        sessions: &HashMap<&str, &Arc<Session>>,
        left: &mut Vec<u64>,
    ) -> Queued {
        let Waiting { id, project, lane, priority, ready_unix_ms, deadline_unix_ms, attempt, session } =
            waiting;
        self.know(id);
        match session.map(|handle| sessions.get(&*handle)) {
            Some(Some(session)) => self.belongs(id, session),
            Some(None) => left.push(id.seq),
            None => {}
        }
        Queued {
            seq: id.seq,
            lane: lane_of(&lane, &project),
            project,
            priority,
            ready: self.moment(ready_unix_ms),
            deadline: deadline_unix_ms.map(|at| self.moment(at)),
            attempt,
        }
    }

    /// Begins nothing any more. What runs is interrupted, and tried again by the next daemon.
    pub(crate) fn begin_closing(self: &Arc<Self>) {
        self.closing.store(true, Ordering::Release);
        self.tell(Event::Closed);
    }

    /// Waits for what runs to be written down as it ended, and closes the journal.
    pub(crate) async fn close(self: &Arc<Self>) {
        let is_quiet = || (self.desk().queue.figures().running == 0).then_some(());
        let written = until(&self.quiet, is_quiet);
        // What cannot be written down in time is found interrupted by the next daemon.
        let _ = tokio::time::timeout(CLOSING, written).await;
        self.clerk.close().await;
    }
}

/// Projects and workers are as the configuration says, also after a reload.
async fn follow_reloads(tasks: Weak<Tasks>, mut renewals: crate::watch::Receiver<u64>) {
    while renewals.changed().await.is_ok() {
        let Some(tasks) = tasks.upgrade() else { return };
        let config = tasks.core.config();
        if let Err(error) = tasks.limit_projects(&config).await {
            tracing::error!(%error, "the limits of projects could not be changed; reload again");
        }
        tasks.restaff();
    }
}

/// A task that an earlier daemon accepted.
struct Waiting {
    id: TaskId,
    project: ProjectName,
    lane: Lane,
    priority: Priority,
    ready_unix_ms: u64,
    deadline_unix_ms: Option<u64>,
    attempt: u32,
    session: Option<Box<str>>,
}

/// Reads all that waits, in chunks: a million of them would else be held twice.
fn read_waiting(journal: &mut Journal, give: &mpsc::Sender<Vec<Waiting>>) -> Result<(), JournalError> {
    let mut chunk = Vec::with_capacity(CHUNK);
    // Of a million tasks few are of a project or lane that none before was of.
    let (mut projects, mut lanes) = (HashMap::new(), HashMap::new());
    let now = clock::unix_ms();
    journal.queued(|task| {
        let (Some(project), Some(lane)) = (known(&mut projects, task.project), known(&mut lanes, task.lane))
        else {
            return;
        };
        // One that was ready when it was accepted is so now, whatever has become of the clock.
        let submitted = task.submitted_unix_ms.min(now);
        let is_later = task.ready_unix_ms > task.submitted_unix_ms;
        chunk.push(Waiting {
            id: task.id.into(),
            project,
            lane,
            priority: Priority::try_from(task.priority).unwrap_or_default(),
            ready_unix_ms: if is_later { task.ready_unix_ms } else { submitted },
            deadline_unix_ms: task.deadline_unix_ms,
            attempt: task.attempt + 1,
            session: task.session.map(Box::from),
        });
        if chunk.len() == CHUNK {
            // It is taken as long as the daemon starts.
            let _ = give.blocking_send(std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK)));
        }
    })?;
    let _ = give.blocking_send(chunk);
    Ok(())
}

/// A name that was read before, or is read now.
fn known<T: Clone + FromStr>(all: &mut HashMap<String, T>, name: &str) -> Option<T> {
    if let Some(known) = all.get(name) {
        return Some(known.clone());
    }
    let read: T = name.parse().ok()?;
    all.insert(name.to_owned(), read.clone());
    Some(read)
}
