//! The store on a thread of its own: SQLite blocks, the runtime must not.

use std::path::Path;
use std::sync::Arc;

use ostler_domain::Traits;
use ostler_store::{ProcessKey, SessionChange, SessionRecord, Store, StoreError, TreeRecord};
use tokio::sync::{mpsc, oneshot};

/// Work for the ledger's keeper.
pub type Job = Box<dyn FnOnce(&mut dyn Records) + Send>;

/// What the ledger writes to: the [`Store`], or what a simulation has in its place.
#[allow(clippy::missing_errors_doc, reason = "they are the store's, each under the same name")]
pub trait Records: Send {
    /// See [`Store::trees_insert`].
    fn trees_insert(&mut self, tree: &TreeRecord) -> Result<(), StoreError>;
    /// See [`Store::trees_set_guard`].
    fn trees_set_guard(&mut self, mark: &str, guard: ProcessKey) -> Result<bool, StoreError>;
    /// See [`Store::trees_set_leader`].
    fn trees_set_leader(&mut self, mark: &str, leader: ProcessKey) -> Result<bool, StoreError>;
    /// See [`Store::trees_remove`].
    fn trees_remove(&mut self, mark: &str) -> Result<bool, StoreError>;
    /// See [`Store::traits_get`].
    fn traits_get(&mut self, identity: &str) -> Result<Option<Traits>, StoreError>;
    /// See [`Store::traits_put`].
    fn traits_put(&mut self, identity: &str, traits: Traits, now_unix_ms: u64) -> Result<usize, StoreError>;
    /// See [`Store::sessions_write`].
    fn sessions_write(&mut self, changes: &[SessionChange]) -> Result<usize, StoreError>;
    /// See [`Store::sessions_all`].
    fn sessions_all(&mut self) -> Result<Vec<SessionRecord>, StoreError>;
}

impl Records for Store {
    fn trees_insert(&mut self, tree: &TreeRecord) -> Result<(), StoreError> {
        self.trees_insert(tree)
    }

    fn trees_set_guard(&mut self, mark: &str, guard: ProcessKey) -> Result<bool, StoreError> {
        self.trees_set_guard(mark, guard)
    }

    fn trees_set_leader(&mut self, mark: &str, leader: ProcessKey) -> Result<bool, StoreError> {
        self.trees_set_leader(mark, leader)
    }

    fn trees_remove(&mut self, mark: &str) -> Result<bool, StoreError> {
        self.trees_remove(mark)
    }

    fn traits_get(&mut self, identity: &str) -> Result<Option<Traits>, StoreError> {
        self.traits_get(identity)
    }

    fn traits_put(&mut self, identity: &str, traits: Traits, now_unix_ms: u64) -> Result<usize, StoreError> {
        self.traits_put(identity, traits, now_unix_ms)
    }

    fn sessions_write(&mut self, changes: &[SessionChange]) -> Result<usize, StoreError> {
        self.sessions_write(changes)
    }

    fn sessions_all(&mut self) -> Result<Vec<SessionRecord>, StoreError> {
        self.sessions_all()
    }
}

/// Why the ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The store said so.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its thread did not start.
    #[error("cannot start the store's thread: {0}")]
    Thread(#[source] std::io::Error),
    /// Its thread has ended.
    #[error("the store's thread has ended")]
    Gone,
}

/// Jobs that may wait for the store.
const QUEUE: usize = 1024;

/// The store, for tasks. Ends its thread when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Ledger {
    jobs: mpsc::Sender<Job>,
    daemon_id: Arc<str>,
    boot_id: Arc<str>,
}

impl Ledger {
    /// Opens the store in `state_dir` and starts its thread. Also returns the trees that earlier daemons left
    /// in it.
    ///
    /// # Errors
    /// As [`Store::open`]; the text names the file and the way out.
    pub fn open(state_dir: &Path, boot_id: String) -> Result<(Self, Vec<TreeRecord>), LedgerError> {
        let mut store = Store::open(state_dir)?;
        let left = store.trees_all()?;
        let (ledger, mut queue) = Self::queued(boot_id);
        std::thread::Builder::new()
            .name("ostler-store".to_owned())
            .spawn(move || {
                while let Some(job) = queue.blocking_recv() {
                    job(&mut store);
                }
            })
            .map_err(LedgerError::Thread)?;
        Ok((ledger, left))
    }

    /// A ledger whose jobs, in order, are the caller's to run on some [`Records`]; each tells its asker the result.
    pub fn queued(boot_id: String) -> (Self, mpsc::Receiver<Job>) {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let daemon_id = format!("{:032x}", crate::random::bits128()).into();
        (Self { jobs, daemon_id, boot_id: boot_id.into() }, queue)
    }

    /// Names this run of the daemon in the ledger.
    pub fn daemon_id(&self) -> &str {
        &self.daemon_id
    }

    /// Names this boot of the machine in the ledger.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut dyn Records) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move |records| drop(done.send(job(records))));
        self.jobs.send(job).await.map_err(|_| LedgerError::Gone)?;
        Ok(result.await.map_err(|_| LedgerError::Gone)??)
    }

    /// Writes a tree down before it is started.
    ///
    /// # Errors
    /// When the store cannot be written; the tree must not be started then.
    pub async fn insert(&self, tree: TreeRecord) -> Result<(), LedgerError> {
        self.run(move |records| records.trees_insert(&tree)).await
    }

    /// Adds the guard to a tree's record.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn set_guard(&self, mark: String, guard: ProcessKey) -> Result<(), LedgerError> {
        self.run(move |records| records.trees_set_guard(&mark, guard)).await.map(drop)
    }

    /// Adds the leader to a tree's record.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn set_leader(&self, mark: String, leader: ProcessKey) -> Result<(), LedgerError> {
        self.run(move |records| records.trees_set_leader(&mark, leader)).await.map(drop)
    }

    /// Forgets a tree that is verified empty.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn remove(&self, mark: String) -> Result<(), LedgerError> {
        self.run(move |records| records.trees_remove(&mark)).await.map(drop)
    }

    /// Writes down what became of sessions. Returns how many were left out.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn write_sessions(&self, changes: Vec<SessionChange>) -> Result<usize, LedgerError> {
        self.run(move |records| records.sessions_write(&changes)).await
    }

    /// The sessions that an earlier daemon had.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn sessions(&self) -> Result<Vec<SessionRecord>, LedgerError> {
        self.run(|records| records.sessions_all()).await
    }

    /// What was learnt about the server with this identity.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn traits(&self, identity: String) -> Result<Option<Traits>, LedgerError> {
        self.run(move |records| records.traits_get(&identity)).await
    }

    /// Remembers what was learnt about the server with this identity.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn remember(&self, identity: String, traits: Traits) -> Result<(), LedgerError> {
        self.run(move |records| records.traits_put(&identity, traits, crate::clock::unix_ms()))
            .await
            .map(drop)
    }
}
