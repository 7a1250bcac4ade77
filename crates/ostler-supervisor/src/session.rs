//! Sessions: who they are, which instances they hold, when they end.
//!
//! A session is one client's conversation. A legacy one is about one server and known by a secret that the daemon made;
//! a modern one is known by a key of its principal's (ADR 9), and may use several servers. Either holds at most one
//! instance of each.

mod agenda;
mod life;
mod records;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use ostler_domain::ServerName;
use ostler_domain::session::{Life, SessionState};
use ostler_mcp::mux::SessionKey;
use ostler_mcp::version;
use sha2::{Digest as _, Sha256};

use self::agenda::{Agenda, Appointment};
use self::life::Pulse;
pub use self::life::{Busy, CallRefused};
use self::records::Records;
pub use self::records::TakenUp;
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
/// Sessions that have ended of which it is known why; more than a daemon holds by default.
const FAREWELLS: usize = 2048;

/// One client's conversation.
#[derive(Debug)]
pub struct Session {
    /// Names it on connections.
    pub key: SessionKey,
    /// Finds it in the table. Of a legacy one the secret that its client was given (`Mcp-Session-Id`); of a modern one
    /// made of whose it is and the key that its client shows, which where it is a handle is hashed.
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
    /// When this daemon made it or took it up, in milliseconds of [`now_ms`].
    created_ms: u64,
    /// How old it was then.
    earlier_ms: u64,
    /// Whether it gets instances for itself where that is what the server's scope says.
    pub isolated: bool,
    /// Restarts of the daemon that it has outlived.
    pub restarts: u32,
    /// Whether it had an instance for itself before the last of these.
    lost: AtomicBool,
    /// Whether it has had an instance for itself since.
    owns: AtomicBool,
    /// Servers of which it uses what its principal's sessions share, as it could get no instance for itself.
    shares: Mutex<BTreeSet<ServerName>>,
    /// Messages that belong to none of its calls.
    pub outbox: Arc<ReplayStream>,
    keep: Keep,
    presence: Arc<Presence>,
    attached: tokio::sync::Mutex<u64>,
    streams: Mutex<Streams>,
    pulse: Pulse,
    appointment: Appointment,
    /// When it was last written down, in milliseconds of [`now_ms`].
    noted_ms: AtomicU64,
    common: Arc<Common>,
}

/// What all sessions have in common.
#[derive(Debug)]
struct Common {
    life: Life,
    agenda: Agenda,
    records: Records,
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

impl Session {
    /// Milliseconds since it began.
    pub fn age_ms(&self) -> u64 {
        now_ms().saturating_sub(self.created_ms).saturating_add(self.earlier_ms)
    }

    /// Whether its key is a handle: such a session is never begun anew by being used.
    pub fn has_handle(&self) -> bool {
        self.bound.is_none() && self.id.starts_with(HASHED)
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

    /// Whether its client may call: it has not ended, and is not about to.
    pub fn is_active(&self) -> bool {
        self.state() == SessionState::Active
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
        self.give_up_if(server, |_| true, "its session gave it back").await
    }

    /// The same where `is_meant` says so.
    pub(crate) async fn give_up_if(
        self: &Arc<Self>,
        server: &ServerName,
        is_meant: impl Fn(&Lease) -> bool,
        reason: &str,
    ) -> bool {
        let seat = self.seats().get(server).cloned();
        let Some(seat) = seat else { return false };
        let lease = seat.lock().await.take_if(|lease| is_meant(lease));
        let held = lease.is_some();
        if held && !self.holds_own() {
            self.owns.store(false, Ordering::SeqCst);
            if self.holds_own() {
                // It has got another in this moment.
                self.owns.store(true, Ordering::SeqCst);
                self.look();
            }
        }
        leave(lease, self.key, reason).await;
        held
    }

    /// Whether it may have an instance for itself. One that is being found or started counts.
    fn holds_own(&self) -> bool {
        let own = |seat: &Seat| {
            seat.try_lock().map_or(true, |seat| {
                seat.as_ref().is_some_and(|lease| matches!(*lease.owner(), Owner::Session(_)))
            })
        };
        self.seats().values().any(own)
    }

    /// It has an instance for itself, and is not to keep it for ever. True where it lost one when the daemon was
    /// restarted, and was not asked before.
    pub(crate) fn note_own(self: &Arc<Self>) -> bool {
        if !self.owns.swap(true, Ordering::SeqCst) {
            self.common.records.note(self);
            self.look();
        }
        self.lost.swap(false, Ordering::Relaxed)
    }

    /// Whether it uses what its principal's sessions share of this server, as it could get no instance for itself.
    pub(crate) fn shares_of(&self, server: &ServerName) -> bool {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner).contains(server)
    }

    /// It does from now on, until it ends: what it does there is not to be found elsewhere with the next call. False at
    /// [`MAX_SEATS`].
    pub(crate) fn share(&self, server: &ServerName) -> bool {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let is_room = shares.len() < MAX_SEATS;
        if is_room {
            shares.insert(server.clone());
        }
        is_room
    }

    /// The servers of which it uses what its principal's sessions share, as it could get no instance for itself.
    pub fn shares(&self) -> Vec<ServerName> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn seats(&self) -> MutexGuard<'_, BTreeMap<ServerName, Seat>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.set_ended();
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
    keep: Keep,
    lull: Arc<Lull>,
    common: Arc<Common>,
    /// Why sessions have ended whose clients may still ask for them, by their ids; the latest.
    farewells: Mutex<VecDeque<(Box<str>, Arc<str>)>>,
}

/// What the keys begin with that the daemon makes.
const HANDLE: &str = "ses_";

/// Whether a key looks like one that the daemon made: such a one is never opened by being used.
pub fn is_handle(key: &str) -> bool {
    key.strip_prefix(HANDLE)
        .is_some_and(|rest| rest.len() == 32 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// What the ids of sessions begin with whose keys are handles.
const HASHED: char = '#';

/// What a modern session is found by: names of two principals never meet, and none is a legacy session's secret. Of a
/// handle, which opens the session, only the hash is kept (see [`records`]).
fn id_of(principal: &str, key: &str) -> Box<str> {
    let id = format!("{principal}\n{key}");
    if !is_handle(key) {
        return id.into();
    }
    let mut hashed = String::from(HASHED);
    for byte in &Sha256::digest(id)[..16] {
        // A string takes whatever it is given.
        let _ = write!(hashed, "{byte:02x}");
    }
    hashed.into()
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
    /// A table of at most `limit` sessions, each of which lasts as `life` says.
    pub fn new(limit: usize, life: Life, keep: Keep, lull: Arc<Lull>) -> Self {
        Self {
            by_id: RwLock::default(),
            reserved: AtomicU32::new(0),
            next_key: AtomicU64::new(0),
            limit,
            keep,
            lull,
            common: Arc::new(Common { life, agenda: Agenda::default(), records: Records::default() }),
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
        self.common.life.idle
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
        match session.holds_own() {
            true => drop(session.note_own()),
            false => session.look(),
        }
        session
    }

    /// This principal's modern session of this key, and whether it is new: one that gets instances for itself if
    /// `isolated` says so. One whose key looks like a handle ([`is_handle`]) is never new.
    ///
    /// # Errors
    /// [`NoSession`], with the reason.
    pub fn find_or_open(
        &self,
        principal: &Arc<str>,
        key: &str,
        isolated: bool,
    ) -> Result<(Arc<Session>, bool), NoSession> {
        let id = id_of(principal, key);
        if let Some(session) = self.get(&id) {
            return Ok((session, false));
        }
        if is_handle(key) {
            return Err(NoSession::Ended(self.farewell(&id)));
        }
        self.add(principal, id, key, isolated)
    }

    /// This principal's modern session of this key, where there is one.
    pub fn find(&self, principal: &str, key: &str) -> Option<Arc<Session>> {
        self.get(&id_of(principal, key))
    }

    /// Why this principal's modern session of this key ended, if it did and that was not long ago.
    pub fn why_ended(&self, principal: &str, key: &str) -> Option<Arc<str>> {
        self.farewell(&id_of(principal, key))
    }

    /// A new modern session of this principal, and the handle that is its key.
    ///
    /// # Errors
    /// [`NoSession::Full`].
    pub fn open_with_handle(
        &self,
        principal: &Arc<str>,
        isolated: bool,
    ) -> Result<(Arc<Session>, String), NoSession> {
        let key = format!("{HANDLE}{:032x}", crate::random::bits128());
        let (session, _) = self.add(principal, id_of(principal, &key), &key, isolated)?;
        Ok((session, key))
    }

    fn add(
        &self,
        principal: &Arc<str>,
        id: Box<str>,
        key: &str,
        isolated: bool,
    ) -> Result<(Arc<Session>, bool), NoSession> {
        let place = self.reserve().ok_or(NoSession::Full(self.limit))?;
        let mut table = self.write();
        // Of two calls that open it at the same time, one finds the other's.
        if let Some(session) = table.get(&id) {
            return Ok((Arc::clone(session), false));
        }
        let name = (!key.is_empty() && !is_handle(key)).then(|| key.to_owned());
        let blank = self.blank(self.next_key(), id.clone(), Arc::clone(principal));
        let session = Arc::new(Session { client: name, isolated, ..blank });
        std::mem::forget(place);
        table.insert(id, Arc::clone(&session));
        drop(table);
        self.common.records.note(&session);
        session.look();
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
            earlier_ms: 0,
            isolated: true,
            restarts: 0,
            lost: AtomicBool::new(false),
            owns: AtomicBool::new(false),
            shares: Mutex::default(),
            outbox: Arc::new(ReplayStream::of(self.keep, Arc::clone(&presence))),
            keep: self.keep,
            presence,
            attached: tokio::sync::Mutex::new(0),
            streams: Mutex::default(),
            pulse: Pulse::default(),
            appointment: Appointment::default(),
            noted_ms: now_ms().into(),
            common: Arc::clone(&self.common),
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

    /// Why the session with this id has ended, if that was not long ago.
    pub fn farewell(&self, id: &str) -> Option<Arc<str>> {
        let farewells = self.farewells.lock().unwrap_or_else(PoisonError::into_inner);
        farewells.iter().find(|(known, _)| **known == *id).map(|(_, reason)| Arc::clone(reason))
    }

    /// Remembers why a session is ended: its client is told when it asks again.
    fn bid_farewell(&self, id: &str, reason: &Arc<str>) {
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
    /// down when this returns. Whoever asks for it is told the reason.
    pub async fn end(&self, id: &str, reason: &str) -> bool {
        let Some(session) = self.write().remove(id) else { return false };
        self.reserved.fetch_sub(1, Ordering::Relaxed);
        session.set_ended();
        self.common.agenda.strike(&session);
        self.common.records.strike(&session);
        // One with a name is begun anew by being used.
        if session.bound.is_some() || session.has_handle() {
            self.bid_farewell(id, &reason.into());
        }
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
}

#[cfg(test)]
mod principals;

/// The public handle of a session.
pub(crate) fn handle_of(key: SessionKey) -> Arc<str> {
    format!("s{key}").into()
}
