//! Tasks that belong to a session: it is not idle while one of them is open, and they end with it. Those that wait end as
//! soon as it is to end; those that run have the time that its calls have (`sessions.grace`).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use ostler_domain::session::SessionState;
use ostler_domain::task::TaskId;
use ostler_domain::task::queue::Place;
use tokio::task::AbortHandle;

use super::{TaskError, Tasks};
use crate::session::{Busy, Session};

/// What is open of each session, by its number and by the task's.
#[derive(Debug, Default)]
pub(super) struct Belongings {
    sessions: HashMap<Arc<str>, Belonging>,
    of: HashMap<u64, Arc<str>>,
}

#[derive(Debug)]
struct Belonging {
    session: Arc<Session>,
    open: HashSet<u64>,
    end: AbortHandle,
    _busy: Busy,
}

impl Drop for Belonging {
    fn drop(&mut self) {
        self.end.abort();
    }
}

/// Whether a session takes new tasks.
///
/// # Errors
/// [`TaskError::State`] when it is ending.
pub(super) fn check(session: &Session) -> Result<(), TaskError> {
    match session.state() {
        SessionState::Active => Ok(()),
        _ => Err(TaskError::State(format!("session {} is ending, and takes no new tasks", session.handle))),
    }
}

impl Tasks {
    /// This task belongs to this session until it has ended.
    pub(super) fn belongs(self: &Arc<Self>, id: TaskId, session: &Arc<Session>) {
        let mut all = self.belongings.lock().unwrap_or_else(PoisonError::into_inner);
        all.of.insert(id.seq, Arc::clone(&session.handle));
        let belonging = all.sessions.entry(Arc::clone(&session.handle)).or_insert_with(|| {
            let (tasks, watched) = (Arc::clone(self), Arc::clone(session));
            let end = tokio::spawn(async move {
                watched.until_to_end().await;
                tasks.end_waiting(&watched).await;
                watched.until_ended().await;
                tasks.end_with(&watched).await;
            });
            Belonging {
                session: Arc::clone(session),
                open: HashSet::new(),
                end: end.abort_handle(),
                _busy: session.busy(),
            }
        });
        belonging.open.insert(id.seq);
    }

    /// The session that this task belongs to, while it is open.
    pub(super) fn session_of(&self, seq: u64) -> Option<Arc<Session>> {
        let all = self.belongings.lock().unwrap_or_else(PoisonError::into_inner);
        all.sessions.get(all.of.get(&seq)?).map(|belonging| Arc::clone(&belonging.session))
    }

    /// The task has ended.
    pub(super) fn belongs_no_more(&self, seq: u64) {
        let mut all = self.belongings.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(session) = all.of.remove(&seq) else { return };
        let Some(belonging) = all.sessions.get_mut(&session) else { return };
        belonging.open.remove(&seq);
        let gone = belonging.open.is_empty().then(|| all.sessions.remove(&session));
        // Not under the lock: the session may look whether it is idle now.
        drop(all);
        drop(gone);
    }

    /// Those of a session that is to end which do not run: it is not kept for them.
    async fn end_waiting(self: &Arc<Self>, session: &Session) {
        let mut waiting: Vec<u64> = {
            let all = self.belongings.lock().unwrap_or_else(PoisonError::into_inner);
            all.sessions
                .get(&session.handle)
                .map(|mine| mine.open.iter().copied().collect())
                .unwrap_or_default()
        };
        {
            let desk = self.desk();
            waiting.retain(|seq| !matches!(desk.queue.place(*seq), Some(Place::Running { .. })));
        }
        self.cancel_all(&waiting, &ended_with(session)).await;
    }

    async fn end_with(self: &Arc<Self>, session: &Session) {
        let mine = {
            let mut all = self.belongings.lock().unwrap_or_else(PoisonError::into_inner);
            all.sessions.remove(&session.handle)
        };
        // Kept until all is done: its end is who does it.
        let Some(mine) = mine else { return };
        let open: Vec<u64> = mine.open.iter().copied().collect();
        self.cancel_all(&open, &ended_with(session)).await;
    }
}

/// Why they end.
fn ended_with(session: &Session) -> String {
    format!("its session {} ended", session.handle)
}
