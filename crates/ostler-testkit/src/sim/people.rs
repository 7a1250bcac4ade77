//! Who uses a simulated daemon: clients of both eras, and people who start and stop things at the worst moment.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ostler_domain::{Era, Scope};
use ostler_mcp::mux::{Answer, CallKind, Request};
use ostler_mcp::{Kind, Message};
use ostler_supervisor::connection::{CallSink, First};
use ostler_supervisor::{Caller, Connection, Server, Session, Supervisor};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::process::STUCK_AFTER;
use super::world::World;
use crate::dice::Dice;

/// Added to every bound, for the small delays that no bound is made of.
const MARGIN: Duration = Duration::from_secs(10);

/// One who uses the daemon.
pub(super) struct Somebody {
    pub(super) world: World,
    pub(super) supervisor: Arc<Supervisor>,
    pub(super) name: String,
    pub(super) dice: Dice,
    /// When to stop wanting things.
    pub(super) until: Instant,
}

/// How long anything of a server may take from its start to its end, whatever its processes do.
pub(super) fn longest(world: &World, server: &Server) -> Duration {
    let deadlines = &server.spec.deadlines;
    let held = world.plan().temperaments.get(server.spec.name.as_str()).map_or(0, |temper| temper.held_ms);
    let starting = Duration::from_secs(30) + deadlines.spawn + deadlines.handshake;
    let stopping = deadlines.drain + deadlines.stdin_grace + deadlines.term_grace + deadlines.kill;
    let disk = Duration::from_millis(world.plan().disk_slow * 8);
    // A killed tree keeps its slot until it is reported as stuck.
    let queue = STUCK_AFTER * u32::try_from(world.plan().config.limits.processes.min(8)).unwrap_or(8);
    starting + stopping + Duration::from_millis(held) + disk + queue + MARGIN
}

impl Somebody {
    fn caller(&mut self) -> Caller {
        let principal = if self.dice.chance(60) { "ann" } else { "bob" };
        let project = if self.dice.chance(60) { "red" } else { "blue" };
        Caller { principal: principal.into(), project: project.into() }
    }

    fn server(&mut self) -> Arc<Server> {
        let servers = self.supervisor.servers();
        Arc::clone(self.dice.pick(servers.all()))
    }

    async fn rest(&mut self) {
        let pause = self.world.plan().pause(&mut self.dice);
        tokio::time::sleep(pause).await;
    }

    fn done(&self) -> bool {
        Instant::now() >= self.until
    }

    fn say(&self, what: impl FnOnce() -> String) {
        self.world.step(|| format!("{}: {}", self.name, what()));
    }

    /// Nobody waits for ever: what takes longer than `bound` is a broken promise.
    async fn within<T>(&self, what: &str, bound: Duration, work: impl Future<Output = T>) -> Option<T> {
        let result = tokio::time::timeout(bound, work).await;
        if result.is_err() {
            self.world.violate(format!("{}: {what} had no end within {bound:?}", self.name));
        }
        result.ok()
    }

    /// In a world in which nothing goes wrong, nobody is refused.
    fn refused(&self, what: &str, why: &str) {
        self.say(|| format!("{what} refused: {why}"));
        if self.world.plan().kind && !self.world.lock().down {
            self.world
                .violate(format!("{}: {what} refused in a world where nothing goes wrong: {why}", self.name));
        }
    }

    // ---- people -------------------------------------------------------------------------------------------

    /// A person with the command line.
    pub(super) async fn meddle(mut self) {
        loop {
            self.rest().await;
            if self.done() {
                return;
            }
            let server = self.server();
            let bound = longest(&self.world, &server) * 3;
            if self.dice.chance(40) {
                self.meddle_with_server(&server, bound).await;
            } else {
                self.meddle_with_instance(&server, bound).await;
            }
        }
    }

    async fn meddle_with_server(&mut self, server: &Arc<Server>, bound: Duration) {
        let supervisor = Arc::clone(&self.supervisor);
        let name = server.spec.name.clone();
        if self.dice.chance(60) {
            let caller = self.caller();
            self.say(|| format!("start {name}"));
            let bound = bound * 4;
            let started =
                self.within("start of a server", bound, supervisor.start_server(server, &caller)).await;
            self.say(|| format!("start {name}: {started:?}"));
        } else {
            self.say(|| format!("stop {name}"));
            self.within("stop of a server", bound, supervisor.stop_server(server)).await;
            self.say(|| format!("stop {name}: done"));
        }
    }

    async fn meddle_with_instance(&mut self, server: &Arc<Server>, bound: Duration) {
        let instances = server.instances();
        if instances.is_empty() {
            return;
        }
        let handle = Arc::clone(self.dice.pick(&instances));
        let supervisor = Arc::clone(&self.supervisor);
        let bound = bound + Duration::from_secs(90);
        let id = &handle.id;
        match self.dice.below(3) {
            0 => {
                self.say(|| format!("start {id}"));
                self.within("start of an instance", bound, supervisor.start_instance(&handle)).await;
            }
            1 => {
                self.say(|| format!("stop {id}"));
                self.within("stop of an instance", bound, supervisor.stop_instance(&handle)).await;
            }
            _ => {
                self.say(|| format!("restart {id}"));
                self.within("restart of an instance", bound, supervisor.restart_instance(&handle)).await;
            }
        }
        self.say(|| format!("{id} is {}", handle.snapshot().state.as_str()));
    }

    // ---- clients ------------------------------------------------------------------------------------------

    /// A program that uses servers.
    pub(super) async fn use_servers(mut self) {
        loop {
            self.rest().await;
            if self.done() {
                return;
            }
            let modern = |name: &str| self.world.plan().temperaments.get(name).is_some_and(|it| it.modern);
            let supervisor = Arc::clone(&self.supervisor);
            let server = Arc::clone(self.dice.clone().pick(supervisor.servers().all()));
            if !server.spec.transport.is_mcp() {
                self.dice.bits();
                if server.spec.scope == Scope::Session {
                    self.keyed(&server).await;
                }
                continue;
            }
            let fits = modern(server.spec.name.as_str());
            self.dice.bits();
            // A client of the wrong era now and then; where nothing goes wrong, none.
            let era = fits ^ (!self.world.plan().kind && self.dice.chance(15));
            if era && server.spec.scope == Scope::Session {
                self.keyed(&server).await;
            } else if era {
                self.modern(&server).await;
            } else {
                self.legacy(&server).await;
            }
        }
    }

    async fn legacy(&mut self, server: &Arc<Server>) {
        let supervisor = Arc::clone(&self.supervisor);
        let caller = self.caller();
        let params = ostler_mcp::version::shared_initialize_params();
        self.say(|| format!("opens a session of {}", server.spec.name));
        let opening = supervisor.open_session(server, &caller, &params);
        let vanishes = !self.world.plan().kind && self.dice.chance(15);
        let opened = if vanishes {
            let patience = self.world.plan().pause(&mut self.dice);
            match tokio::time::timeout(patience, opening).await {
                Ok(opened) => opened,
                Err(_) => return self.say(|| "vanishes".to_owned()),
            }
        } else {
            let bound = longest(&self.world, server) * 4;
            match self.within("opening a session", bound, opening).await {
                Some(opened) => opened,
                None => return,
            }
        };
        let session = match opened {
            Ok((session, _)) => session,
            Err(error) => return self.refused("a session", &error.to_string()),
        };
        let on = session.instance().map(|handle| handle.id.to_string()).unwrap_or_default();
        self.say(|| format!("has session {} on {on}", session.handle));
        self.talk(server, &session).await;
        if self.dice.chance(70) {
            let ending = supervisor.end_session(&session, "the client said so");
            self.within("ending a session", longest(&self.world, server), ending).await;
            self.say(|| format!("has ended session {}", session.handle));
        } else {
            self.say(|| format!("leaves session {} behind", session.handle));
        }
    }

    async fn talk(&mut self, server: &Arc<Server>, session: &Arc<Session>) {
        for _ in 0..self.dice.below(6) {
            if self.dice.chance(40) {
                self.rest().await;
            }
            if self.done() || session.ended() {
                return;
            }
            let Ok(_busy) = session.begin_call(self.supervisor.config().limits.session_calls) else {
                return;
            };
            let connecting = session.connection(server.patience());
            let bound = server.patience() + MARGIN;
            match self.within("a connection", bound, connecting).await {
                Some(Ok(connection)) => self.call(server, &connection, Some(session)).await,
                Some(Err(error)) => self.refused("a call", &error.to_string()),
                None => return,
            }
        }
    }

    async fn modern(&mut self, server: &Arc<Server>) {
        let caller = self.caller();
        let supervisor = Arc::clone(&self.supervisor);
        let bound = longest(&self.world, server) * 4;
        self.say(|| format!("makes a modern request to {}", server.spec.name));
        let handle = match self.within("finding an instance", bound, supervisor.modern(server, &caller)).await
        {
            Some(Ok(handle)) => handle,
            Some(Err(error)) => return self.refused("a modern request", &error.to_string()),
            None => return,
        };
        let bound = server.patience() + MARGIN;
        let connecting = handle.connection(server.patience());
        match self.within("a connection", bound, connecting).await {
            Some(Ok((connection, snapshot))) if snapshot.era == Some(Era::Modern) => {
                self.call(server, &connection, None).await;
            }
            Some(Ok(_)) => self.refused("a modern request", "the instance is legacy"),
            Some(Err(error)) => self.refused("a modern request", &error.to_string()),
            None => {}
        }
    }

    /// A request of a session that has a key, and an instance for itself.
    async fn keyed(&mut self, server: &Arc<Server>) {
        let (caller, supervisor) = (self.caller(), Arc::clone(&self.supervisor));
        let key = *self.dice.pick(&["", "one", "two", "three"]);
        let session = match supervisor.session(&caller, key) {
            Ok(session) => session,
            Err(why) => return self.refused("a session", &why.to_string()),
        };
        let Ok(busy) = session.begin_call(supervisor.config().limits.session_calls) else { return };
        let name = &server.spec.name;
        self.say(|| format!("wants an instance of {name} for session {}", session.handle));
        let finding = supervisor.own_instance(&session, server, &caller);
        let waiting = server.spec.pool.as_ref().map_or(Duration::ZERO, |pool| pool.wait);
        let found = if !self.world.plan().kind && self.dice.chance(20) {
            let patience = self.world.plan().pause(&mut self.dice);
            match tokio::time::timeout(patience, finding).await {
                Ok(found) => Some(found),
                Err(_) => return self.say(|| "vanishes".to_owned()),
            }
        } else {
            let bound = longest(&self.world, server) * 4 + waiting;
            self.within("finding an instance", bound, finding).await
        };
        match found {
            Some(Ok(own)) => {
                self.say(|| format!("has {} for session {}", own.handle.id, session.handle));
                if let Some(connection) = own.snapshot.connection.clone() {
                    self.call(server, &connection, None).await;
                }
            }
            Some(Err(error)) => self.refused("an instance of a session's own", &error.to_string()),
            None => {}
        }
        drop(busy);
        if self.dice.chance(30) {
            let bound = longest(&self.world, server);
            if self.dice.chance(50) {
                self.within("giving an instance back", bound, session.give_up(name)).await;
            } else {
                let ending = supervisor.end_session(&session, "the client said so");
                self.within("ending a session", bound, ending).await;
            }
        }
    }

    /// One call. It is answered, with what was asked, or refused; and that in time.
    async fn call(&mut self, server: &Server, connection: &Connection, session: Option<&Arc<Session>>) {
        let nonce = self.dice.bits() >> 12;
        let (sink, first) = CallSink::new();
        let request = request(connection, session, nonce, sink);
        let ticket = request.ticket;
        self.say(|| format!("call {nonce}"));
        let sending = connection.call(request, server.spec.call_idle);
        match self.within("sending a call", server.spec.call_idle + MARGIN, sending).await {
            Some(Ok(())) => {}
            Some(Err(error)) => return self.refused("a call", &error.to_string()),
            None => return,
        }
        if !self.world.plan().kind && self.dice.chance(10) {
            let patience = self.world.plan().pause(&mut self.dice);
            if tokio::time::timeout(patience, first).await.is_err() && session.is_none() {
                connection.hung_up(ticket);
            }
            return;
        }
        // A call may wait as long as it may run.
        let bound = server.spec.call_max * 2 + MARGIN;
        match self.within("a call", bound, answer(first)).await {
            Some(Some(answer)) => self.judge(nonce, &answer),
            Some(None) => self.refused("a call", "the connection is closed"),
            None => {}
        }
    }

    fn judge(&self, nonce: u64, answer: &Answer) {
        let text = answer.message.to_bytes();
        let message: Value = serde_json::from_slice(&text).unwrap_or_default();
        if answer.kind != Kind::Result {
            return self.refused("a call", message["error"]["message"].as_str().unwrap_or_default());
        }
        self.say(|| format!("call {nonce} answered"));
        if message["result"]["heard"] != json!(nonce) || message["id"] != json!(nonce) {
            let text = String::from_utf8_lossy(&text);
            self.world.violate(format!("{}: asked {nonce} and was answered {text}", self.name));
        }
    }
}

fn request(
    connection: &Connection,
    session: Option<&Arc<Session>>,
    nonce: u64,
    sink: CallSink,
) -> Request<CallSink> {
    let ticket = connection.ticket();
    let wire = json!({"jsonrpc": "2.0", "id": ticket, "method": "tools/call", "params": {"nonce": nonce}});
    Request {
        ticket,
        session: session.map(|session| session.key),
        client_id: Bytes::from(nonce.to_string()),
        client_token: None,
        kind: CallKind::Call,
        special: None,
        wants_log: false,
        wire: Message::from(wire.to_string()),
        sink,
    }
}

/// The answer to a call, whatever comes ahead of it.
async fn answer(first: oneshot::Receiver<First>) -> Option<Answer> {
    match first.await.ok()? {
        First::Answer(answer) => Some(answer),
        First::Stream(mut stream) => {
            while stream.messages.recv().await.is_some() {}
            stream.answer.await.ok()
        }
    }
}
