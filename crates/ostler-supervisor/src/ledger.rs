//! The store on a thread of its own: SQLite blocks, the runtime must not.

use std::path::Path;
use std::sync::Arc;

use ostler_domain::Traits;
use ostler_store::{ProcessKey, Store, StoreError, TreeRecord};
use tokio::sync::{mpsc, oneshot};

type Job = Box<dyn FnOnce(&mut Store) + Send>;

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
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        std::thread::Builder::new()
            .name("ostler-store".to_owned())
            .spawn(move || {
                while let Some(job) = queue.blocking_recv() {
                    job(&mut store);
                }
            })
            .map_err(LedgerError::Thread)?;
        let daemon_id = format!("{:032x}", crate::random::bits128()).into();
        Ok((Self { jobs, daemon_id, boot_id: boot_id.into() }, left))
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
        job: impl FnOnce(&mut Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move |store| drop(done.send(job(store))));
        self.jobs.send(job).await.map_err(|_| LedgerError::Gone)?;
        Ok(result.await.map_err(|_| LedgerError::Gone)??)
    }

    /// Writes a tree down before it is started.
    ///
    /// # Errors
    /// When the store cannot be written; the tree must not be started then.
    pub async fn insert(&self, tree: TreeRecord) -> Result<(), LedgerError> {
        self.run(move |store| store.trees_insert(&tree)).await
    }

    /// Adds the guard to a tree's record.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn set_guard(&self, mark: String, guard: ProcessKey) -> Result<(), LedgerError> {
        self.run(move |store| store.trees_set_guard(&mark, guard)).await.map(drop)
    }

    /// Adds the leader to a tree's record.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn set_leader(&self, mark: String, leader: ProcessKey) -> Result<(), LedgerError> {
        self.run(move |store| store.trees_set_leader(&mark, leader)).await.map(drop)
    }

    /// Forgets a tree that is verified empty.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn remove(&self, mark: String) -> Result<(), LedgerError> {
        self.run(move |store| store.trees_remove(&mark)).await.map(drop)
    }

    /// What was learnt about the server with this identity.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn traits(&self, identity: String) -> Result<Option<Traits>, LedgerError> {
        self.run(move |store| store.traits_get(&identity)).await
    }

    /// Remembers what was learnt about the server with this identity.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn remember(&self, identity: String, traits: Traits) -> Result<(), LedgerError> {
        self.run(move |store| store.traits_put(&identity, traits, crate::clock::unix_ms())).await.map(drop)
    }
}
