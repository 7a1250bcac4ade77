//! The model of a process, its sessions and what is due to each.

use std::collections::BTreeMap;

use super::texts::*;
use super::*;

/// Where the answer of a call goes in these tests.
type Sink = u64;

/// One thing the mux said, or is to say, as far as a reader on the other side could tell.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Said {
    /// This text goes to the process.
    Write(String),
    /// The process is told that this call is not wanted any more.
    WriteCancelled(Ticket),
    /// The process's request with this id is refused.
    WriteRefusal(String),
    /// The call gets this answer of the process.
    Finish(Sink, String),
    /// The call gets an error of Ostler's, for this id and with this code.
    FinishError(Sink, String, i64),
    /// The call is given this; whether it is a request of the process.
    Emit(Sink, String, Option<ReverseId>),
    /// The session is given this; whether it is a request of the process.
    ToSession(SessionKey, String, Option<ReverseId>),
    /// Noted.
    Stray,
    AsksBack,
    Refused,
    Dropped,
    Limit,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Waiting,
    Running,
    /// Its client gave up.
    Lingering,
}

#[derive(Clone, Debug)]
struct ModelCall {
    ticket: Ticket,
    session: Option<SessionKey>,
    id: &'static str,
    token: Option<&'static str>,
    kind: CallKind,
    logs: bool,
    phase: Phase,
    wire: String,
    since: u64,
    started: u64,
    active: u64,
}

#[derive(Clone, Debug)]
struct Ask {
    reverse: ReverseId,
    session: SessionKey,
    id: &'static str,
    token: Option<&'static str>,
    call: Option<Ticket>,
    asked: u64,
}

pub(super) struct World {
    mux: Mux<Sink>,
    settings: Settings,
    now: u64,
    next_ticket: Ticket,
    next_session: SessionKey,
    /// The attached sessions; a slot without one holds the key of the session that left.
    slots: Vec<(SessionKey, bool)>,
    calls: Vec<ModelCall>,
    asks: Vec<Ask>,
    asks_back: bool,
    last_reverse: ReverseId,
    /// How often each sink was finished.
    finished: BTreeMap<Sink, u32>,
    /// Makes each message unlike every other.
    serial: u64,
}

impl World {
    pub(super) fn new(settings: Settings, sessions: usize) -> Self {
        let mut world = Self {
            mux: Mux::new(settings.clone()),
            now: 1,
            next_ticket: 0,
            next_session: 100,
            slots: vec![(0, false); sessions],
            calls: Vec::new(),
            asks: Vec::new(),
            asks_back: settings.asks_back,
            last_reverse: settings.reverse_base,
            finished: BTreeMap::new(),
            serial: 0,
            settings,
        };
        for slot in 0..sessions {
            world.attach(slot);
        }
        world
    }

    pub(super) fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        self.serial += 1;
        let slot = step.a % self.slots.len();
        let (key, attached) = self.slots[slot];
        let mut out = Vec::new();
        let due = match step.what {
            What::Request => self.request(key, step.b, step.c, CallKind::Call, &mut out),
            What::Listen if self.modern() => self.request(key, step.b, step.c, CallKind::Listen, &mut out),
            What::Answer => self.answer(step.a, step.b, &mut out),
            What::StrayAnswer => self.stray_answer(step.b, &mut out),
            What::Progress => self.progress(step.a, step.b, &mut out),
            What::Cancel | What::CancelForeign if !self.modern() => self.cancel(key, step, &mut out),
            What::HangUp => self.hang_up(step.a, &mut out),
            What::Ask => self.ask(KEYS[step.b % KEYS.len()], key_or_none(step.c), &mut out),
            What::TakeBack => self.take_back(step.a, &mut out),
            What::Reply => self.reply(None, step.b, &mut out)?,
            What::ReplyForeign => self.reply(Some(key), step.b, &mut out)?,
            What::ReplyForged => self.reply_forged(key, step.b, &mut out)?,
            What::ReplyProgress => self.reply_progress(step.a, step.b, &mut out)?,
            What::Notify => self.notify("notifications/tools/list_changed", "{}", &mut out),
            What::Log => self.log(&mut out),
            What::SubscriptionNote => self.subscription_note(step.a, &mut out),
            What::EndListen if self.modern() => self.end_listen(step.a, &mut out),
            What::Attach if !attached && !self.settings.exclusive => {
                self.attach(slot);
                Vec::new()
            }
            What::Detach => self.detach(slot, &mut out),
            What::Undeliverable => self.undeliverable(step.a, &mut out),
            What::Time => self.time([1, 400, 999, 1_000, 5_000, 60_000, 61_000][step.b % 7], &mut out),
            // A process ends once; a run in which that happens early is still worth the steps before it.
            What::FailAll if step.b == 0 => self.fail_all(&mut out),
            _ => Vec::new(),
        };
        self.compare(due, out)?;
        self.account()
    }

    /// Ends everything: by answers, by time, or because the process is gone.
    pub(super) fn end(mut self, ending: usize) -> Result<(), TestCaseError> {
        let mut out = Vec::new();
        for turn in 0.. {
            prop_assert!(turn < 1_000, "calls never end: {:?}", self.calls);
            let due = match ending {
                0 if !(self.calls.is_empty() && self.asks.is_empty()) => self.fail_all(&mut out),
                1 if self.calls.iter().any(|call| call.phase != Phase::Waiting) => {
                    self.answer(turn, turn, &mut out)
                }
                2 if self.calls.iter().any(|call| call.kind == CallKind::Listen) => {
                    self.end_listen(0, &mut out)
                }
                _ => match self.mux.next_expiry_ms() {
                    Some(at) => self.time(at.saturating_sub(self.now).max(1), &mut out),
                    None => break,
                },
            };
            self.compare(due, std::mem::take(&mut out))?;
            self.account()?;
            self.serial += 1;
        }
        prop_assert!(self.calls.is_empty() && self.asks.is_empty(), "no clock runs, yet: {:?}", self.calls);
        for slot in 0..self.slots.len() {
            let due = self.detach(slot, &mut out);
            self.compare(due, std::mem::take(&mut out))?;
        }
        prop_assert!(self.mux.is_idle(), "left over: {:?}", self.mux);
        let opened: Vec<Sink> = (1..=self.next_ticket).collect();
        prop_assert_eq!(self.finished.keys().copied().collect::<Vec<_>>(), opened, "a sink was lost");
        prop_assert!(self.finished.values().all(|times| *times == 1), "a sink was ended twice");
        Ok(())
    }

    fn compare(&mut self, mut due: Vec<Said>, out: Vec<Out<Sink>>) -> Result<(), TestCaseError> {
        let mut said = Vec::new();
        for heard in out {
            if let Out::Emit { reverse: Some(id), .. } | Out::ToSession { reverse: Some(id), .. } = &heard {
                prop_assert!(*id > self.last_reverse, "the id of a reverse request came again");
                self.last_reverse = *id;
            }
            if let Out::Finish(sink, _) = &heard {
                *self.finished.entry(*sink).or_default() += 1;
            }
            said.push(said_by(heard));
        }
        said.sort();
        due.sort();
        prop_assert_eq!(said, due, "said, and due");
        Ok(())
    }

    /// What must hold at any moment.
    fn account(&self) -> Result<(), TestCaseError> {
        let open = |call: &&ModelCall| call.phase != Phase::Lingering && call.kind == CallKind::Call;
        prop_assert_eq!(self.mux.open_calls(), self.calls.iter().filter(open).count());
        prop_assert_eq!(self.mux.attached(), self.attached().len());
        let due =
            self.calls.iter().map(|call| self.due(call)).chain(self.asks.iter().map(|ask| ask.asked + 5_000));
        if let Some(due) = due.min().filter(|due| *due != u64::MAX) {
            prop_assert!(self.mux.next_expiry_ms().is_some_and(|at| at <= due), "a clock that nobody hears");
        }
        Ok(())
    }

    fn due(&self, call: &ModelCall) -> u64 {
        match (call.kind, call.phase) {
            (CallKind::Listen, _) => u64::MAX,
            (_, Phase::Waiting) => call.since + 5_000,
            (_, Phase::Running) => (call.active + 1_000).min(call.started + 5_000),
            (_, Phase::Lingering) => call.active.min(call.started + 5_000) + Mux::<Sink>::LINGER_MS,
        }
    }

    fn modern(&self) -> bool {
        self.settings.era == Era::Modern
    }

    fn attached(&self) -> Vec<SessionKey> {
        self.slots.iter().filter(|(_, attached)| *attached).map(|(key, _)| *key).collect()
    }

    /// Calls that the process may be working on.
    fn in_flight(&self) -> Vec<&ModelCall> {
        let mine = |call: &&ModelCall| call.phase != Phase::Waiting && call.kind == CallKind::Call;
        self.calls.iter().filter(mine).collect()
    }

    fn serial(&self) -> bool {
        let one_at_a_time = match self.settings.concurrency {
            Concurrency::Concurrent => false,
            Concurrency::Serial => true,
            Concurrency::Auto => self.asks_back && self.attached().len() > 1,
        };
        one_at_a_time && !self.modern() && !self.settings.exclusive
    }

    /// The session that certainly owns what names nobody, and the call on whose stream it is told.
    fn owner(&self) -> Option<(SessionKey, Option<Ticket>)> {
        let attached = self.attached();
        let in_flight = self.in_flight();
        match (attached.as_slice(), in_flight.as_slice()) {
            ([], _) => None,
            ([only], _) if in_flight.iter().all(|call| call.session == Some(*only)) => {
                let running = in_flight.iter().filter(|call| call.phase == Phase::Running);
                Some((*only, running.map(|call| call.ticket).min()))
            }
            (_, [call]) if call.phase == Phase::Running => Some((call.session?, Some(call.ticket))),
            _ => None,
        }
    }

    fn deliver(&self, to: (SessionKey, Option<Ticket>), text: String, reverse: Option<ReverseId>) -> Said {
        let running = |call: &&ModelCall| Some(call.ticket) == to.1 && call.phase == Phase::Running;
        match self.calls.iter().find(running) {
            Some(call) => Said::Emit(call.ticket, text, reverse),
            None => Said::ToSession(to.0, text, reverse),
        }
    }

    fn line(&mut self, text: String, out: &mut Vec<Out<Sink>>) {
        self.mux.server_line(Bytes::from(text), self.now, out);
    }

    /// Lets waiting calls start as the rules allow.
    fn admit(&mut self) -> Vec<Said> {
        let mut due = Vec::new();
        while !self.serial() || self.in_flight().is_empty() {
            let now = self.now;
            let Some(call) = self.calls.iter_mut().find(|call| call.phase == Phase::Waiting) else { break };
            (call.phase, call.started, call.active) = (Phase::Running, now, now);
            due.push(Said::Write(call.wire.clone()));
        }
        due
    }

    fn attach(&mut self, slot: usize) {
        self.next_session += 1;
        self.slots[slot] = (self.next_session, true);
        self.mux.attach(self.next_session);
    }

    fn request(
        &mut self,
        session: SessionKey,
        key: usize,
        how: usize,
        kind: CallKind,
        out: &mut Vec<Out<Sink>>,
    ) -> Vec<Said> {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        let (id, token) = (KEYS[key % KEYS.len()], key_or_none(how));
        let text = |id: &str, token: Option<&str>| request_text(how % 3, id, token, self.serial);
        let ticket_text = ticket.to_string();
        let wire = text(&ticket_text, token.map(|_| ticket_text.as_str()));
        let body = Bytes::from(text(id, token));
        let envelope = Envelope::parse(&body).unwrap();
        let session = (!self.modern()).then_some(session);
        let logs = self.modern() && how.is_multiple_of(4);
        let request = Request {
            ticket,
            session,
            client_id: body.slice(envelope.id.unwrap()),
            client_token: envelope.inner.meta.progress_token.map(|span| body.slice(span)),
            kind,
            special: None,
            wants_log: logs,
            wire: Message::from(wire.clone()),
            sink: ticket,
        };
        self.mux.request(request, self.now, out);
        let refused = |code| Said::FinishError(ticket, id.to_owned(), code);
        if self.calls.len() >= self.settings.max_calls {
            return vec![Said::Limit, refused(rpc::LIMIT_REACHED)];
        }
        if session.is_some_and(|session| !self.attached().contains(&session)) {
            return vec![refused(rpc::CALL_CANCELLED)];
        }
        let open =
            |call: &ModelCall| call.session == session && call.phase != Phase::Lingering && call.id == id;
        if session.is_some() && self.calls.iter().any(open) {
            return vec![refused(rpc::INVALID_REQUEST)];
        }
        let now = self.now;
        let phase = if kind == CallKind::Listen { Phase::Running } else { Phase::Waiting };
        let call = ModelCall {
            ticket,
            session,
            id,
            token,
            kind,
            logs,
            phase,
            wire: wire.clone(),
            since: now,
            started: now,
            active: now,
        };
        self.calls.push(call);
        if kind == CallKind::Listen { vec![Said::Write(wire)] } else { self.admit() }
    }

    /// The process answers one of the calls it was given, in whatever order.
    fn answer(&mut self, which: usize, how: usize, out: &mut Vec<Out<Sink>>) -> Vec<Said> {
        let given: Vec<usize> =
            (0..self.calls.len()).filter(|i| self.calls[*i].phase != Phase::Waiting).collect();
        let Some(at) = pick(&given, which) else { return Vec::new() };
        let call = self.calls.remove(at);
        let serial = self.serial;
        let subscription = call.kind == CallKind::Listen;
        let text = |id: &str| answer_text(how % 4, id, subscription, serial);
        self.line(text(&call.ticket.to_string()), out);
        let mut due = self.admit();
        if call.phase == Phase::Running {
            due.push(Said::Finish(call.ticket, text(call.id)));
        }
        due
    }

    /// An answer to nothing: an id that was never given, or one of a client.
    fn stray_answer(&mut self, key: usize, out: &mut Vec<Out<Sink>>) -> Vec<Said> {
        let ids = ["\"1\"", "1.0", "1e0", "999999", "\"x\"", "-1", "18446744073709551616"];
        self.line(answer_text(0, ids[key % ids.len()], false, self.serial), out);
        vec![Said::Stray]
    }

    fn progress(&mut self, which: usize, how: usize, out: &mut Vec<Out<Sink>>) -> Vec<Said> {
        let given: Vec<usize> =
            (0..self.calls.len()).filter(|i| self.calls[*i].phase != Phase::Waiting).collect();
        let Some(at) = pick(&given, which) else { return Vec::new() };
        let (now, serial) = (self.now, self.serial);
        let text = |token: &str| progress_text(how % 2, token, serial);
        self.line(text(&self.calls[at].ticket.to_string()), out);
        let call = &mut self.calls[at];
        call.active = now;
        match call.token.filter(|_| call.phase == Phase::Running) {
            Some(token) => vec![Said::Emit(call.ticket, text(token), None)],
            None => vec![Said::Stray],
        }
    }

    /// A session cancels one of its calls by its own id; or names an id that is, at best, another session's.
    fn cancel(&mut self, session: SessionKey, step: &Step, out: &mut Vec<Out<Sink>>) -> Vec<Said> {
        let open = |call: &&ModelCall| call.session == Some(session) && call.phase != Phase::Lingering;
        let mine: Vec<&'static str> = self.calls.iter().filter(open).map(|call| call.id).collect();
        let id = match step.what {
            What::Cancel if !mine.is_empty() => mine[step.b % mine.len()],
            _ => KEYS[step.b % KEYS.len()],
        };
        self.mux.cancel(session, &Bytes::from_static(id.as_bytes()), self.now, out);
        match self.calls.iter().filter(open).find(|call| call.id == id).map(|call| call.ticket) {
            Some(ticket) => self.given_up(ticket, rpc::CALL_CANCELLED),
            None => vec![Said::Stray],
        }
    }

    fn hang_up(&mut self, which: usize, out: &mut Vec<Out<Sink>>) -> Vec<Said> {
        let Some(ticket) = self.calls.get(which % self.calls.len().max(1)).map(|call| call.ticket) else {
            self.mux.cancel_ticket(which as u64, "the client hung up", self.now, out);
            return Vec::new();
        };
        self.mux.cancel_ticket(ticket, "the client hung up", self.now, out);
        self.given_up(ticket, rpc::CALL_CANCELLED)
    }

    /// What is due when a call ends without an answer of the process.
    fn given_up(&mut self, ticket: Ticket, code: i64) -> Vec<Said> {
        let mut due = self.ended_by(ticket, code);
        due.extend(self.admit());
        due
    }

    fn ended_by(&mut self, ticket: Ticket, code: i64) -> Vec<Said> {
        let Some(at) = self.calls.iter().position(|call| call.ticket == ticket) else { return Vec::new() };
        let mut due = Vec::new();
        if self.calls[at].phase == Phase::Lingering {
            return due;
        }
        due.push(Said::FinishError(ticket, self.calls[at].id.to_owned(), code));
        if self.calls[at].phase == Phase::Waiting {
            self.calls.remove(at);
            return due;
        }
        due.push(Said::WriteCancelled(ticket));
        due.extend(self.refuse_asks(|ask| ask.call == Some(ticket)));
        if self.modern() || self.calls[at].kind != CallKind::Call {
            self.calls.remove(at);
        } else {
            (self.calls[at].phase, self.calls[at].active) = (Phase::Lingering, self.now);
        }
        due
    }

    fn refuse_asks(&mut self, which: impl Fn(&Ask) -> bool) -> Vec<Said> {
        let (refused, kept) = std::mem::take(&mut self.asks).into_iter().partition(which);
        self.asks = kept;
        Vec::from_iter(refused).into_iter().map(|ask: Ask| Said::WriteRefusal(ask.id.to_owned())).collect()
    }

    /// The process sends a request of its own.
    fn ask(&mut self, id: &'static str, token: Option<&'static str>, out: &mut Vec<Out<Sink>>) -> Vec<Said> {
        let how = usize::from(self.serial.is_multiple_of(2));
        let text = |id: &str, token: Option<&str>, serial| request_text(how, id, token, serial);
        let serial = self.serial;
        self.line(text(id, token, serial), out);
        if self.modern() {
            return vec![Said::WriteRefusal(id.to_owned()), Said::Refused];
        }
        if self.attached().is_empty() {
            return vec![Said::WriteRefusal(id.to_owned()), Said::Dropped];
        }
        let mut due = Vec::new();
        if !std::mem::replace(&mut self.asks_back, true) {
            due.push(Said::AsksBack);
        }
        self.asks.retain(|ask| ask.id != id);
        let Some((session, ticket)) = self.owner() else {
            due.extend([Said::WriteRefusal(id.to_owned()), Said::Refused]);
            return due;
        };
        let reverse = self.last_reverse + 1;
        let reverse_text = reverse.to_string();
        let told = text(&reverse_text, token.map(|_| reverse_text.as_str()), serial);
        due.push(self.deliver((session, ticket), told, Some(reverse)));
        let call = ticket.filter(|_| self.in_flight().len() == 1);
        self.asks.push(Ask { reverse, session, id, token, call, asked: self.now });
        due
    }

    /// The process takes a request of its own back, or one that it never sent.
    fn take_back(&mut self, which: usize, out: &mut Vec<Out<Sink>>) -> Vec<Said> {
        let serial = self.serial;
        let text = |id: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id},"n":{serial}}}}}"#
            )
        };
        if self.asks.is_empty() {
            self.line(text("\"never\""), out);
            return vec![Said::Stray];
        }
        let ask = self.asks.remove(which % self.asks.len());
        self.line(text(ask.id), out);
        let running = |call: &&ModelCall| call.session == Some(ask.session) && call.phase == Phase::Running;
        let its_own = self.calls.iter().find(|call| Some(call.ticket) == ask.call).map(|call| call.ticket);
        let any = self.calls.iter().filter(running).map(|call| call.ticket).min();
        vec![self.deliver((ask.session, its_own.or(any)), text(&ask.reverse.to_string()), None)]
    }

    /// A session answers a request of the process: its owner, or (`by`) whoever that is.
    fn reply(
        &mut self,
        by: Option<SessionKey>,
        which: usize,
        out: &mut Vec<Out<Sink>>,
    ) -> Result<Vec<Said>, TestCaseError> {
        if self.asks.is_empty() {
            return Ok(Vec::new());
        }
        let at = which % self.asks.len();
        let ask = self.asks[at].clone();
        let by = by.unwrap_or(ask.session);
        let serial = self.serial;
        let text = |id: &str| answer_text(which % 4, id, false, serial);
        let body = Bytes::from(text(&ask.reverse.to_string()));
        let result = self.mux.answer(by, &body, &Envelope::parse(&body).unwrap(), out);
        prop_assert_eq!(result.is_ok(), by == ask.session, "only its own session may answer");
        if result.is_err() {
            return Ok(Vec::new());
        }
        self.asks.remove(at);
        Ok(vec![Said::Write(text(ask.id))])
    }

    /// Ids that look like those of requests of the process, and are none that waits.
    fn reply_forged(
        &mut self,
        by: SessionKey,
        which: usize,
        out: &mut Vec<Out<Sink>>,
    ) -> Result<Vec<Said>, TestCaseError> {
        let known =
            self.asks.get(which % self.asks.len().max(1)).map_or(self.last_reverse, |ask| ask.reverse);
        let next = self.last_reverse + 1;
        let forged = [
            format!("\"{known}\""),
            format!("{known}.0"),
            format!("{known}e0"),
            next.to_string(),
            "1".to_owned(),
        ];
        let id = &forged[which % forged.len()];
        let body = Bytes::from(answer_text(0, id, false, self.serial));
        prop_assert_eq!(self.mux.answer(by, &body, &Envelope::parse(&body).unwrap(), out), Err(NotWaiting));
        let body = Bytes::from(progress_text(0, id, self.serial));
        prop_assert_eq!(
            self.mux.notification(by, &body, &Envelope::parse(&body).unwrap(), out),
            Err(NotWaiting)
        );
        Ok(Vec::new())
    }

    fn reply_progress(
        &mut self,
        slot: usize,
        which: usize,
        out: &mut Vec<Out<Sink>>,
    ) -> Result<Vec<Said>, TestCaseError> {
        let Some(ask) = self.asks.get(which % self.asks.len().max(1)).cloned() else { return Ok(Vec::new()) };
        let by = if which.is_multiple_of(2) { ask.session } else { self.slots[slot % self.slots.len()].0 };
        let body = Bytes::from(progress_text(0, &ask.reverse.to_string(), self.serial));
        let result = self.mux.notification(by, &body, &Envelope::parse(&body).unwrap(), out);
        let token = ask.token.filter(|_| by == ask.session);
        prop_assert_eq!(result.is_ok(), token.is_some(), "progress on what is not its own");
        Ok(token.map(|token| Said::Write(progress_text(0, token, self.serial))).into_iter().collect())
    }

    /// The process says something that names nobody.
    fn notify(&mut self, method: &str, params: &str, out: &mut Vec<Out<Sink>>) -> Vec<Said> {
        let text =
            format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params},"n":{}}}"#, self.serial);
        self.line(text.clone(), out);
        match self.owner().filter(|_| !self.modern()) {
            Some(owner) => vec![self.deliver(owner, text, None)],
            None => vec![Said::Dropped],
        }
    }

    fn log(&mut self, out: &mut Vec<Out<Sink>>) -> Vec<Said> {
        let params = r#"{"level":"info","data":1}"#;
        if !self.modern() {
            return self.notify("notifications/message", params, out);
        }
        let text = format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{params},"n":{}}}"#,
            self.serial
        );
        self.line(text.clone(), out);
        let asked: Vec<Ticket> = self.calls.iter().filter(|call| call.logs).map(|call| call.ticket).collect();
        match asked.as_slice() {
            [one] => vec![Said::Emit(*one, text, None)],
            _ => vec![Said::Dropped],
        }
    }

    fn listens(&self) -> Vec<usize> {
        (0..self.calls.len()).filter(|at| self.calls[*at].kind == CallKind::Listen).collect()
    }

    fn subscription_note(&mut self, which: usize, out: &mut Vec<Out<Sink>>) -> Vec<Said> {
        let serial = self.serial;
        let text = |id: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{{"_meta":{{"io.modelcontextprotocol/subscriptionId": {id} }},"n":{serial}}}}}"#
            )
        };
        // A subscription that is none: unknown, or a call of another kind.
        let other =
            self.calls.iter().find(|call| call.kind == CallKind::Call).map_or(999_999, |call| call.ticket);
        let Some(at) = pick(&self.listens(), which) else {
            self.line(text(&other.to_string()), out);
            return vec![Said::Stray];
        };
        let call = self.calls[at].clone();
        self.line(text(&call.ticket.to_string()), out);
        vec![Said::Emit(call.ticket, text(call.id), None)]
    }

    fn end_listen(&mut self, which: usize, out: &mut Vec<Out<Sink>>) -> Vec<Said> {
        let Some(at) = pick(&self.listens(), which) else { return Vec::new() };
        let call = self.calls.remove(at);
        let ticket = call.ticket;
        self.line(
            format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{ticket}}}}}"#
            ),
            out,
        );
        let id = call.id;
        let text = format!(
            r#"{{"jsonrpc":"2.0","id":{id},"result":{{"resultType":"complete","_meta":{{"io.modelcontextprotocol/subscriptionId":{id}}}}}}}"#
        );
        vec![Said::Finish(ticket, text)]
    }

    fn detach(&mut self, slot: usize, out: &mut Vec<Out<Sink>>) -> Vec<Said> {
        let (key, attached) = self.slots[slot];
        self.mux.detach(key, self.now, out);
        if !attached {
            return Vec::new();
        }
        self.slots[slot].1 = false;
        let mine: Vec<Ticket> =
            self.calls.iter().filter(|call| call.session == Some(key)).map(|call| call.ticket).collect();
        let mut due = Vec::new();
        for ticket in mine {
            due.extend(self.ended_by(ticket, rpc::CALL_CANCELLED));
        }
        due.extend(self.refuse_asks(|ask| ask.session == key));
        due.extend(self.admit());
        due
    }

    fn undeliverable(&mut self, which: usize, out: &mut Vec<Out<Sink>>) -> Vec<Said> {
        let Some(reverse) = self.asks.get(which % self.asks.len().max(1)).map(|ask| ask.reverse) else {
            self.mux.undeliverable(self.last_reverse + 1, "nobody is there", out);
            return Vec::new();
        };
        self.mux.undeliverable(reverse, "nobody is there", out);
        self.refuse_asks(|ask| ask.reverse == reverse)
    }

    fn time(&mut self, passed: u64, out: &mut Vec<Out<Sink>>) -> Vec<Said> {
        self.now += passed;
        self.mux.expire(self.now, out);
        let now = self.now;
        let over: Vec<(Ticket, Phase)> = self
            .calls
            .iter()
            .filter(|call| self.due(call) <= now)
            .map(|call| (call.ticket, call.phase))
            .collect();
        let mut due = Vec::new();
        for (ticket, phase) in over {
            if phase == Phase::Lingering {
                self.calls.retain(|call| call.ticket != ticket);
            } else {
                due.push(Said::Limit);
                due.extend(self.ended_by(ticket, rpc::CALL_TIMED_OUT));
            }
        }
        due.extend(self.refuse_asks(|ask| ask.asked + 5_000 <= now));
        due.extend(self.admit());
        due
    }

    fn fail_all(&mut self, out: &mut Vec<Out<Sink>>) -> Vec<Said> {
        self.mux.fail_all("the process is gone", out);
        self.asks.clear();
        let ended = std::mem::take(&mut self.calls).into_iter().filter(|call| call.phase != Phase::Lingering);
        ended.map(|call| Said::FinishError(call.ticket, call.id.to_owned(), rpc::INSTANCE_LOST)).collect()
    }
}

fn pick(from: &[usize], which: usize) -> Option<usize> {
    from.get(which % from.len().max(1)).copied()
}

/// Reads one thing the mux said; what it says in its own words counts by its code alone.
fn said_by(out: Out<Sink>) -> Said {
    let text = |message: &Message| String::from_utf8(message.to_bytes().to_vec()).unwrap();
    match out {
        Out::Write(message) | Out::Reply(message) => {
            let text = text(&message);
            let envelope = Envelope::parse(text.as_bytes()).unwrap();
            let part = |span: Option<std::ops::Range<usize>>| text[span.unwrap()].to_owned();
            match envelope.kind {
                Kind::Notification if &*envelope.method == "notifications/cancelled" => {
                    Said::WriteCancelled(part(envelope.inner.request_id).parse().unwrap())
                }
                Kind::Error(rpc::METHOD_NOT_FOUND) => Said::WriteRefusal(part(envelope.id)),
                _ => Said::Write(text),
            }
        }
        Out::Finish(sink, Answer { kind, message }) => {
            let text = text(&message);
            let envelope = Envelope::parse(text.as_bytes()).unwrap();
            assert_eq!(envelope.kind, kind);
            match kind {
                Kind::Error(code) if code != SERVER_CODE => {
                    Said::FinishError(sink, text[envelope.id.unwrap()].to_owned(), code)
                }
                _ => Said::Finish(sink, text),
            }
        }
        Out::Emit { ticket, message, reverse } => Said::Emit(ticket, text(&message), reverse),
        Out::ToSession { session, message, reverse } => Said::ToSession(session, text(&message), reverse),
        Out::Note(note) => match note {
            Note::Stray(_) => Said::Stray,
            Note::AsksBack => Said::AsksBack,
            Note::RequestRefused { .. } => Said::Refused,
            Note::NotificationDropped { .. } | Note::Unheard => Said::Dropped,
            Note::LimitReached(_) => Said::Limit,
            Note::Rubbish(line) => panic!("not rubbish: {line:?}"),
        },
    }
}
