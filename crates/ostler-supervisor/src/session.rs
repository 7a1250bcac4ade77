//! Sessions of legacy clients: who they are, what instance serves them, when they end.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use ostler_domain::ServerName;
use ostler_mcp::mux::SessionKey;
use tokio::sync::Notify;

use crate::clock::now_ms;
use crate::connection::Connection;
use crate::instance::{InstanceHandle, Lease, Owner, Unavailable};
use crate::lull::Lull;
use crate::stream::{Keep, Presence, ReplayStream};

/// Ended call streams kept for a client that lost the end of one.
const ENDED_STREAMS: usize = 16;
/// An ended stream that holds more than this is not kept once it was read to its end.
const ENDED_STREAM_BYTES: usize = 64 * 1024;
/// Longest for the connection to an instance of a pool to let go of a session that has ended.
const DETACH: Duration = Duration::from_secs(5);
/// Sessions that a reload ended of which it is known why; more than a daemon holds by default.
const FAREWELLS: usize = 2048;

/// One client's conversation.
#[derive(Debug)]
pub struct Session {
    /// Names it on connections.
    pub key: SessionKey,
    /// The secret the client shows (`Mcp-Session-Id`).
    pub id: Box<str>,
    /// Names it in listings.
    pub handle: Arc<str>,
    /// The server it talks to.
    pub server: ServerName,
    /// Whose it is.
    pub principal: Arc<str>,
    /// Name and version the client gave.
    pub client: Option<String>,
    /// The revision agreed on.
    pub version: String,
    /// The instance that serves it.
    pub instance: Arc<InstanceHandle>,
    /// Its hold on the instance, until it ends: also while the instance has no process to be attached to.
    lease: Mutex<Option<Lease>>,
    /// When it began, in milliseconds of [`now_ms`].
    pub created_ms: u64,
    /// Messages that belong to none of its calls.
    pub outbox: Arc<ReplayStream>,
    keep: Keep,
    presence: Arc<Presence>,
    last_ms: AtomicU64,
    busy: AtomicU32,
    calls: AtomicU32,
    ended: AtomicBool,
    attached: tokio::sync::Mutex<u64>,
    streams: Mutex<Streams>,
    went_idle: Arc<Notify>,
    /// Told when no call runs any more.
    quiet: Notify,
}

#[derive(Debug, Default)]
struct Streams {
    open: HashMap<u64, Arc<ReplayStream>>,
    ended: VecDeque<(u64, Arc<ReplayStream>)>,
    next: u64,
}

/// Keeps a session from counting as idle.
#[derive(Debug)]
pub struct Busy {
    session: Arc<Session>,
    call: bool,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.session.last_ms.store(now_ms(), Ordering::Relaxed);
        if self.call && self.session.calls.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.session.quiet.notify_waiters();
        }
        if self.session.busy.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.session.went_idle.notify_one();
        }
    }
}

impl Session {
    /// Notes that the client was heard of, and that it is busy until the guard is dropped.
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.last_ms.store(now_ms(), Ordering::Relaxed);
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy { session: Arc::clone(self), call: false }
    }

    /// The same for a call; `None` at `limit` calls at the same time (`limits.session_calls`).
    pub fn begin_call(self: &Arc<Self>, limit: usize) -> Option<Busy> {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let free = |calls: u32| (calls < limit).then_some(calls + 1);
        self.calls.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free).ok()?;
        let mut busy = self.busy();
        busy.call = true;
        Some(busy)
    }

    /// Calls that run.
    pub fn calls(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Resolves when no call runs.
    pub(crate) async fn until_quiet(&self) {
        loop {
            // Listening before the look, so that no end falls in between.
            let mut quiet = std::pin::pin!(self.quiet.notified());
            quiet.as_mut().enable();
            if self.calls() == 0 {
                return;
            }
            quiet.await;
        }
    }

    /// Milliseconds since the client was last heard of; 0 while it is busy.
    pub fn idle_ms(&self) -> u64 {
        if self.busy.load(Ordering::Relaxed) > 0 {
            return 0;
        }
        now_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed))
    }

    /// Whether it has ended.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// The connection to its instance, which knows of this session.
    ///
    /// # Errors
    /// [`Unavailable`], with the reason.
    pub async fn connection(&self, patience: Duration) -> Result<Arc<Connection>, Unavailable> {
        let (connection, _) = self.instance.connection(patience).await?;
        let mut attached = self.attached.lock().await;
        if *attached != connection.generation().0 {
            // A connection that is closed already refuses the call itself.
            let _ = connection.attach(self.key, Arc::clone(&self.outbox)).await;
            *attached = connection.generation().0;
        }
        drop(attached);
        if self.ended() {
            connection.detach(self.key).await;
        }
        Ok(connection)
    }

    /// A new stream for the messages of one call, and its number.
    pub fn open_stream(&self) -> (u64, Arc<ReplayStream>) {
        let stream = Arc::new(ReplayStream::of(self.keep, Arc::clone(&self.presence)));
        let mut streams = self.lock();
        streams.next += 1;
        let number = streams.next;
        streams.open.insert(number, Arc::clone(&stream));
        (number, stream)
    }

    /// The stream with this number: 0 is the session's own, others are calls'. `None` for one that never was
    /// or is not kept any more.
    pub fn stream(&self, number: u64) -> Option<Arc<ReplayStream>> {
        if number == 0 {
            return Some(Arc::clone(&self.outbox));
        }
        let streams = self.lock();
        let ended = || streams.ended.iter().find(|(known, _)| *known == number).map(|(_, stream)| stream);
        streams.open.get(&number).or_else(ended).cloned()
    }

    /// A call's stream has got its last message.
    pub fn stream_ended(&self, number: u64) {
        let mut streams = self.lock();
        if let Some(stream) = streams.open.remove(&number) {
            stream.end();
            streams.ended.push_back((number, stream));
            if streams.ended.len() > ENDED_STREAMS {
                streams.ended.pop_front();
            }
        }
    }

    /// A client has read a stream to its end: a large one is not kept.
    pub fn stream_read(&self, number: u64) {
        let large = |stream: &ReplayStream| stream.kept_bytes() > ENDED_STREAM_BYTES;
        self.lock().ended.retain(|(known, stream)| *known != number || !large(stream));
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what it holds. Only the table calls this, once.
    async fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.outbox.end();
        self.lock().ended.clear();
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner).take();
        let pooled = lease.as_ref().is_some_and(Lease::is_of_pool);
        // This ends its calls with an error, and with each its stream. Not waited for: the connection of a server
        // that reads nothing takes no word either, and nobody's end may depend on that.
        let (connection, key) = (self.instance.snapshot().connection.clone(), self.key);
        if pooled {
            tokio::spawn(give_back(lease, connection, key));
            return;
        }
        drop(lease);
        if let Some(connection) = connection {
            tokio::spawn(async move { connection.detach(key).await });
        }
        if let Owner::Session(_) = *self.instance.owner() {
            self.instance.end("its session ended".to_owned()).await;
        }
    }
}

/// Gives an instance back to its pool once it knows nothing of the session any more. One that does not hear of its end
/// is of no use to the next.
async fn give_back(lease: Option<Lease>, connection: Option<Arc<Connection>>, key: SessionKey) {
    let Some(lease) = lease else { return };
    if let Some(connection) = connection
        && tokio::time::timeout(DETACH, connection.detach(key)).await.is_err()
    {
        lease.end("it reads nothing, and was to leave its session".to_owned()).await;
    }
}

/// What a new session is made of.
#[derive(Debug)]
pub struct Opening {
    /// The server it talks to, by the name the client used.
    pub server: ServerName,
    /// Names it on connections; from [`Sessions::next_key`].
    pub key: SessionKey,
    /// Whose it is.
    pub principal: Arc<str>,
    /// Name and version the client gave.
    pub client: Option<String>,
    /// The revision agreed on.
    pub version: String,
    /// Its hold on the instance that serves it.
    pub instance: Lease,
}

/// All sessions.
#[derive(Debug)]
pub struct Sessions {
    by_id: RwLock<HashMap<Box<str>, Arc<Session>>>,
    reserved: AtomicU32,
    next_key: AtomicU64,
    limit: usize,
    idle: Duration,
    keep: Keep,
    changed: Arc<Notify>,
    lull: Arc<Lull>,
    /// Why the daemon ended sessions whose clients may still ask for them, by their secrets; the latest.
    farewells: Mutex<VecDeque<(Box<str>, Arc<str>)>>,
}

/// A place in the table, for a session that is being opened.
#[derive(Debug)]
pub struct Place<'a>(&'a Sessions);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.reserved.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Sessions {
    /// A table of at most `limit` sessions, each ended after `idle` without a word from its client.
    pub fn new(limit: usize, idle: Duration, keep: Keep, lull: Arc<Lull>) -> Self {
        Self {
            by_id: RwLock::default(),
            reserved: AtomicU32::new(0),
            next_key: AtomicU64::new(0),
            limit,
            idle,
            keep,
            changed: Arc::new(Notify::new()),
            lull,
            farewells: Mutex::default(),
        }
    }

    /// A key never given before.
    pub fn next_key(&self) -> SessionKey {
        self.next_key.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Most sessions there may be.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How long a silent session is kept.
    pub fn idle(&self) -> Duration {
        self.idle
    }

    /// How many there are, those being opened included.
    pub fn len(&self) -> usize {
        self.reserved.load(Ordering::Relaxed) as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a place before anything is started for the session; `None` at the limit (`limits.sessions`).
    pub fn reserve(&self) -> Option<Place<'_>> {
        let limit = u32::try_from(self.limit).unwrap_or(u32::MAX);
        let free = |count: u32| (count < limit).then_some(count + 1);
        self.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free).ok()?;
        Some(Place(self))
    }

    /// Adds a session in the place taken for it.
    pub fn open(&self, place: Place<'_>, opening: Opening) -> Arc<Session> {
        let presence = Arc::<Presence>::default();
        let session = Arc::new(Session {
            key: opening.key,
            id: format!("{:032x}", crate::random::bits128()).into(),
            handle: handle_of(opening.key),
            server: opening.server,
            principal: opening.principal,
            client: opening.client,
            version: opening.version,
            instance: Arc::clone(opening.instance.handle()),
            lease: Mutex::new(Some(opening.instance)),
            created_ms: now_ms(),
            outbox: Arc::new(ReplayStream::of(self.keep, Arc::clone(&presence))),
            keep: self.keep,
            presence,
            last_ms: now_ms().into(),
            busy: AtomicU32::new(0),
            calls: AtomicU32::new(0),
            ended: AtomicBool::new(false),
            attached: tokio::sync::Mutex::new(0),
            streams: Mutex::default(),
            went_idle: Arc::clone(&self.changed),
            quiet: Notify::new(),
        });
        // The place now belongs to the session, until it ends.
        std::mem::forget(place);
        self.write().insert(session.id.clone(), Arc::clone(&session));
        self.changed.notify_one();
        session
    }

    /// The session that shows this secret.
    pub fn get(&self, id: &str) -> Option<Arc<Session>> {
        self.by_id.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Why the session that showed this secret was ended by the daemon, if it was and that was not long ago.
    pub fn farewell(&self, id: &str) -> Option<Arc<str>> {
        let farewells = self.farewells.lock().unwrap_or_else(PoisonError::into_inner);
        farewells.iter().find(|(known, _)| **known == *id).map(|(_, reason)| Arc::clone(reason))
    }

    /// Remembers why a session is ended: its client is told when it asks again.
    pub(crate) fn bid_farewell(&self, id: &str, reason: &Arc<str>) {
        let mut farewells = self.farewells.lock().unwrap_or_else(PoisonError::into_inner);
        if farewells.len() == FAREWELLS {
            farewells.pop_front();
        }
        farewells.push_back((id.into(), Arc::clone(reason)));
    }

    /// All of them, oldest first.
    pub fn all(&self) -> Vec<Arc<Session>> {
        let mut all: Vec<_> =
            self.by_id.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_unstable_by_key(|session| session.key);
        all
    }

    /// Ends a session; `false` when it was not there. Its instance, where it had one of its own, is on its way
    /// down when this returns.
    pub async fn end(&self, id: &str) -> bool {
        let Some(session) = self.write().remove(id) else { return false };
        self.reserved.fetch_sub(1, Ordering::Relaxed);
        // A task of its own: nobody finds the session any more, so a caller that is dropped here (a client that
        // does not wait for the answer to its DELETE) must not leave it half ended.
        let ending = tokio::spawn(async move { session.end().await });
        // It fails only when the runtime is going, and everything with it.
        let _ = ending.await;
        self.lull.freed();
        true
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<Box<str>, Arc<Session>>> {
        self.by_id.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends silent sessions as their time comes; calls `told` for each. Never returns. One timer serves all
    /// sessions: it is set to the moment at which the first of them may be over.
    pub async fn end_idle(&self, told: impl Fn(&Session)) {
        let idle_ms = u64::try_from(self.idle.as_millis()).unwrap_or(u64::MAX);
        loop {
            let mut next = None;
            for session in self.all() {
                if session.busy.load(Ordering::Relaxed) > 0 {
                    continue;
                }
                let left = idle_ms.saturating_sub(session.idle_ms());
                if left == 0 {
                    told(&session);
                    self.end(&session.id).await;
                } else {
                    next = Some(next.map_or(left, |next: u64| next.min(left)));
                }
            }
            match next {
                // What becomes idle later is over later, so this timer need not be moved.
                Some(left) => tokio::time::sleep(Duration::from_millis(left)).await,
                None => self.changed.notified().await,
            }
        }
    }
}

/// The public handle of a session.
pub(crate) fn handle_of(key: SessionKey) -> Arc<str> {
    format!("s{key}").into()
}
