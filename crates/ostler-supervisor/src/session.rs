//! Sessions: who they are, which instances they hold, when they end.
//!
//! A session is one client's conversation. A legacy one is about one server and known by a secret that the daemon made;
//! a modern one is known by a key of its principal's (ADR 9), and may use several servers. Either holds at most one
//! instance of each.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use ostler_domain::ServerName;
use ostler_mcp::mux::SessionKey;
use ostler_mcp::version;
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
/// Servers of which one session may have an instance for itself.
pub(crate) const MAX_SEATS: usize = 64;
/// Why what a session had for itself is ended with it.
const ENDED: &str = "its session ended";
/// Longest for the connection to an instance of a pool to let go of a session that has ended.
const DETACH: Duration = Duration::from_secs(5);
/// Sessions that a reload ended of which it is known why; more than a daemon holds by default.
const FAREWELLS: usize = 2048;

/// One client's conversation.
#[derive(Debug)]
pub struct Session {
    /// Names it on connections.
    pub key: SessionKey,
    /// What its client shows: a legacy one the secret that it was given (`Mcp-Session-Id`), a modern one its key.
    pub id: Box<str>,
    /// Names it in listings.
    pub handle: Arc<str>,
    /// What only a legacy session has.
    bound: Option<Bound>,
    /// Whose it is.
    pub principal: Arc<str>,
    /// Name and version the client gave.
    pub client: Option<String>,
    /// The revision agreed on.
    pub version: String,
    /// Its holds on instances, until it ends: also while an instance has no process to be attached to.
    seats: Mutex<BTreeMap<ServerName, Seat>>,
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
    /// Told when it has ended.
    over: Notify,
}

/// The server that a legacy session is about.
#[derive(Debug)]
struct Bound {
    server: ServerName,
    instance: Arc<InstanceHandle>,
}

/// A session's hold on its instance of one server. Locked while that is found or started, so that two calls of the
/// session do not start two.
pub(crate) type Seat = Arc<tokio::sync::Mutex<Option<Lease>>>;

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

impl Busy {
    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The same, for who keeps it.
    pub fn shared_session(&self) -> &Arc<Session> {
        &self.session
    }
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

    /// Resolves when it has ended.
    pub async fn until_ended(&self) {
        loop {
            // Listening before the look, so that the end does not fall in between.
            let mut over = std::pin::pin!(self.over.notified());
            over.as_mut().enable();
            if self.ended() {
                return;
            }
            over.await;
        }
    }

    /// Milliseconds since the client was last heard of; 0 while it is busy.
    pub fn idle_ms(&self) -> u64 {
        if self.busy.load(Ordering::Relaxed) > 0 {
            return 0;
        }
        now_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed))
    }

    /// The server it is about, where it is a legacy one.
    pub fn server(&self) -> Option<&ServerName> {
        self.bound.as_ref().map(|bound| &bound.server)
    }

    /// The instance that serves it, where it is a legacy one.
    pub fn instance(&self) -> Option<&Arc<InstanceHandle>> {
        self.bound.as_ref().map(|bound| &bound.instance)
    }

    /// The instances that it holds, by server. One that is being found or started is left out.
    pub fn instances(&self) -> Vec<(ServerName, Arc<InstanceHandle>)> {
        let seats = self.seats();
        let held = seats.iter().filter_map(|(server, seat)| {
            let seat = seat.try_lock().ok()?;
            Some((server.clone(), Arc::clone(seat.as_ref()?.handle())))
        });
        held.collect()
    }

    /// Whether it holds this instance.
    pub fn holds(&self, handle: &InstanceHandle) -> bool {
        self.instances().iter().any(|(_, held)| std::ptr::eq(&raw const **held, handle))
    }

    /// Its place for an instance of this server; `None` once it has ended, or when it has [`MAX_SEATS`].
    pub(crate) fn seat(&self, server: &ServerName) -> Option<Seat> {
        let mut seats = self.seats();
        let full = seats.len() >= MAX_SEATS && !seats.contains_key(server);
        (!full && !self.ended()).then(|| Arc::clone(seats.entry(server.clone()).or_default()))
    }

    /// Gives back its instance of this server; false when it has none.
    pub async fn give_up(self: &Arc<Self>, server: &ServerName) -> bool {
        let seat = self.seats().get(server).cloned();
        let Some(seat) = seat else { return false };
        let lease = seat.lock().await.take();
        let held = lease.is_some();
        leave(lease, self.key, "its session gave it back").await;
        held
    }

    fn seats(&self) -> MutexGuard<'_, BTreeMap<ServerName, Seat>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
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
        let Some(instance) = self.instance() else {
            return Err(Unavailable::Limit(format!(
                "session {} is about no server in particular",
                self.handle
            )));
        };
        let (connection, _) = instance.connection(patience).await?;
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
        self.over.notify_waiters();
        self.outbox.end();
        self.lock().ended.clear();
        // Who is just starting one finds the session ended, and leaves it himself.
        let seats = std::mem::take(&mut *self.seats());
        for seat in seats.into_values() {
            let key = self.key;
            match seat.try_lock() {
                Ok(mut seat) => leave(seat.take(), key, ENDED).await,
                Err(_) => {
                    let seat = Arc::clone(&seat);
                    tokio::spawn(async move { leave(seat.lock().await.take(), key, ENDED).await });
                }
            }
        }
    }
}

/// Lets go of an instance. One that was the session's alone is on its way down when this returns.
async fn leave(lease: Option<Lease>, key: SessionKey, reason: &str) {
    let Some(lease) = lease else { return };
    let handle = Arc::clone(lease.handle());
    // This ends its calls with an error, and with each its stream. Not waited for: the connection of a server
    // that reads nothing takes no word either, and nobody's end may depend on that.
    let connection = handle.snapshot().connection.clone();
    if lease.is_of_pool() {
        tokio::spawn(give_back(lease, connection, key));
        return;
    }
    drop(lease);
    if let Some(connection) = connection {
        tokio::spawn(async move { connection.detach(key).await });
    }
    if let Owner::Session(_) = *handle.owner() {
        handle.end(reason.to_owned()).await;
    }
}

/// Gives an instance back to its pool once it knows nothing of the session any more. One that does not hear of its end
/// is of no use to the next.
async fn give_back(lease: Lease, connection: Option<Arc<Connection>>, key: SessionKey) {
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

/// What the keys begin with that the daemon makes.
const HANDLE: &str = "ses_";

/// Whether a key looks like one that the daemon made: such a one is never opened by being used.
pub fn is_handle(key: &str) -> bool {
    key.strip_prefix(HANDLE)
        .is_some_and(|rest| rest.len() == 32 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// What a modern session is found by: names of two principals never meet, and none is a legacy session's secret.
fn id_of(principal: &str, key: &str) -> Box<str> {
    format!("{principal}\n{key}").into()
}

/// Why there is no session of a key.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoSession {
    /// There are as many as there may be.
    #[error("{0} sessions exist already (limits.sessions)")]
    Full(usize),
    /// It has ended, for this reason where that is known; or it is another principal's, or never was.
    #[error("no such session: {}", .0.as_deref().map_or_else(|| "it ended, expired or was never made".to_owned(), |why| format!("it ended, because {why}")))]
    Ended(Option<Arc<str>>),
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

    /// Adds a legacy session in the place taken for it.
    pub fn open(&self, place: Place<'_>, opening: Opening) -> Arc<Session> {
        let Opening { server, key, principal, client, version, instance } = opening;
        let bound = Bound { server: server.clone(), instance: Arc::clone(instance.handle()) };
        let seat = Arc::new(tokio::sync::Mutex::new(Some(instance)));
        let session = Arc::new(Session {
            bound: Some(bound),
            seats: Mutex::new(BTreeMap::from([(server, seat)])),
            client,
            version,
            ..self.blank(key, format!("{:032x}", crate::random::bits128()).into(), principal)
        });
        // The place now belongs to the session, until it ends.
        std::mem::forget(place);
        self.write().insert(session.id.clone(), Arc::clone(&session));
        self.changed.notify_one();
        session
    }

    /// This principal's modern session of this key, and whether it is new. One whose key looks like a handle
    /// ([`is_handle`]) is never new.
    ///
    /// # Errors
    /// [`NoSession`], with the reason.
    pub fn find_or_open(&self, principal: &Arc<str>, key: &str) -> Result<(Arc<Session>, bool), NoSession> {
        let id = id_of(principal, key);
        if let Some(session) = self.get(&id) {
            return Ok((session, false));
        }
        if is_handle(key) {
            return Err(NoSession::Ended(self.farewell(&id)));
        }
        self.add(principal, id, key).map(|(session, is_new)| (session, is_new))
    }

    /// A new modern session of this principal, and the handle that is its key.
    ///
    /// # Errors
    /// [`NoSession::Full`].
    pub fn open_with_handle(&self, principal: &Arc<str>) -> Result<(Arc<Session>, String), NoSession> {
        let key = format!("{HANDLE}{:032x}", crate::random::bits128());
        let (session, _) = self.add(principal, id_of(principal, &key), &key)?;
        Ok((session, key))
    }

    fn add(&self, principal: &Arc<str>, id: Box<str>, key: &str) -> Result<(Arc<Session>, bool), NoSession> {
        let place = self.reserve().ok_or(NoSession::Full(self.limit))?;
        let mut table = self.write();
        // Of two calls that open it at the same time, one finds the other's.
        if let Some(session) = table.get(&id) {
            return Ok((Arc::clone(session), false));
        }
        let name = (!key.is_empty() && !is_handle(key)).then(|| key.to_owned());
        let session =
            Session { client: name, ..self.blank(self.next_key(), id.clone(), Arc::clone(principal)) };
        let session = Arc::new(session);
        std::mem::forget(place);
        table.insert(id, Arc::clone(&session));
        drop(table);
        self.changed.notify_one();
        Ok((session, true))
    }

    /// A modern session that holds nothing.
    fn blank(&self, key: SessionKey, id: Box<str>, principal: Arc<str>) -> Session {
        let presence = Arc::<Presence>::default();
        Session {
            key,
            id,
            handle: handle_of(key),
            bound: None,
            principal,
            client: None,
            version: version::MODERN.to_owned(),
            seats: Mutex::default(),
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
            over: Notify::new(),
        }
    }

    /// This principal's modern session of this key, where there is one. None is opened.
    pub fn known(&self, principal: &str, key: &str) -> Option<Arc<Session>> {
        self.get(&id_of(principal, key))
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
