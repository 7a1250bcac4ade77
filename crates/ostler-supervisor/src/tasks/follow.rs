//! What those hear who wait for a task or follow it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use ostler_worker::protocol::{Level, Progress};
use tokio::sync::{Notify, broadcast};

use crate::clock;
use crate::wait::until;

/// News that one who reads slowly may be behind.
const NEWS: usize = 64;

/// A line of a task's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TaskLogLine {
    /// Which of its task's lines it is, from 1 in the order in which they came.
    pub seq: u64,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The attempt.
    pub attempt: u32,
    /// How serious it is.
    pub level: Level,
    /// What.
    pub text: String,
}

/// What becomes of a task.
#[derive(Clone, PartialEq, Debug)]
pub enum TaskNews {
    /// An attempt has begun.
    Began(u32),
    /// How far it is.
    Progress(Progress),
    /// Something it said.
    Log(TaskLogLine),
    /// There will be another attempt: one failed, and why is in the log; or somebody wants the task done again.
    Retry,
    /// It has ended.
    Ended,
}

/// What is known of a task that is followed or runs, beside its record.
#[derive(Debug)]
pub(super) struct Follow {
    /// Made for the first who listens: most tasks have nobody.
    news: OnceLock<broadcast::Sender<TaskNews>>,
    /// Who waits for its end alone: that is what most do, and it is to cost little.
    waiting: AtomicUsize,
    over: Notify,
    state: Mutex<Said>,
    lines: usize,
}

#[derive(Debug, Default)]
struct Said {
    progress: Option<Progress>,
    log: VecDeque<TaskLogLine>,
    /// Lines that there were, with those that are not kept.
    lines: u64,
    ended: bool,
    /// How often it has ended: it may be revived.
    ends: u64,
    /// Its result, while somebody waits for it.
    result: Option<Bytes>,
}

impl Said {
    fn push(&mut self, line: TaskLogLine, most: usize) {
        if self.log.len() >= most {
            self.log.pop_front();
        }
        if most > 0 {
            self.log.push_back(line);
        }
    }
}

impl Follow {
    pub(super) fn new(lines: usize) -> Arc<Self> {
        Arc::new(Self {
            news: OnceLock::new(),
            waiting: AtomicUsize::new(0),
            over: Notify::new(),
            state: Mutex::default(),
            lines,
        })
    }

    /// Somebody waits for its next end, from now on.
    pub(super) fn expect(self: &Arc<Self>) -> Expecting {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        Expecting { follow: Arc::clone(self), ends: self.lock().ends }
    }

    /// What comes from now on.
    pub(super) fn listen(&self) -> broadcast::Receiver<TaskNews> {
        self.news.get_or_init(|| broadcast::Sender::new(NEWS)).subscribe()
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    pub(super) fn is_heard(&self) -> bool {
        self.is_awaited() || self.news.get().is_some_and(|news| news.receiver_count() > 0)
    }

    pub(super) fn progress(&self) -> Option<Progress> {
        self.lock().progress.clone()
    }

    pub(super) fn log(&self) -> Vec<TaskLogLine> {
        self.lock().log.iter().cloned().collect()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    pub(super) fn say(&self, news: TaskNews) {
        {
            let mut said = self.lock();
            match &news {
                // It may have been revived.
                TaskNews::Began(_) => (said.progress, said.ended) = (None, false),
                TaskNews::Progress(progress) => said.progress = Some(progress.clone()),
                TaskNews::Ended => said.ended = true,
                // Also where somebody revived it.
                TaskNews::Retry => said.ended = false,
                TaskNews::Log(_) => {}
            }
        }
        self.tell(news);
    }

    /// It has ended, with this result where it has one that is not large.
    pub(super) fn end(&self, result: Option<Bytes>) {
        {
            let mut said = self.lock();
            said.ends += 1;
            said.result = result.filter(|_| self.is_awaited());
        }
        self.over.notify_waiters();
        self.say(TaskNews::Ended);
    }

    /// A line of its log.
    pub(super) fn write(&self, attempt: u32, level: Level, text: String) {
        let mut said = self.lock();
        said.lines += 1;
        let line = TaskLogLine { seq: said.lines, unix_ms: clock::unix_ms(), attempt, level, text };
        said.push(line.clone(), self.lines);
        // Under the lock, so that they are told in their order.
        self.tell(TaskNews::Log(line));
    }

    fn tell(&self, news: TaskNews) {
        if let Some(listeners) = self.news.get() {
            // They may have gone.
            let _ = listeners.send(news);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who waits for a task's end.
#[derive(Debug)]
pub(super) struct Expecting {
    follow: Arc<Follow>,
    ends: u64,
}

impl Expecting {
    /// Waits for it; its result, where it has one that is not large.
    pub(super) async fn end(&self) -> Option<Bytes> {
        let ended = || {
            let said = self.follow.lock();
            (said.ends != self.ends).then(|| said.result.clone())
        };
        until(&self.follow.over, ended).await
    }
}

impl Drop for Expecting {
    fn drop(&mut self) {
        if self.follow.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.follow.lock().result = None;
        }
    }
}
