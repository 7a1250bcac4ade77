//! The task that owns the two ends of a connection.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use ostler_domain::event::Happening;
use ostler_domain::instance::Now;
use ostler_domain::text::human_bytes;
use ostler_mcp::mux::{Mux, Note, Out, SessionKey};
use ostler_mcp::{Line, Lines, Message, SHARE_FROM, rpc};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep};

use super::ends::{Frame, Reader, Writer};
use super::outgoing::HIGH_WATER;
use super::replies::{REPLIES_MAX, Replies};
use super::{CallSink, News, Order, Parts, Shared, ToProcess, counter};
use crate::clock::{self, now_ms};
use crate::events::is_power_of_ten;
use crate::launch::Output;
use crate::log::Stream;
use crate::stream::ReplayStream;

/// Messages taken from callers at a time, so that one write carries many.
const BATCH: usize = 64;
/// Bytes read before callers get their turn again.
const READ_TURN: usize = 512 * 1024;
/// After so many lines of rubbish in a row the process is read slowly: it must not take a whole CPU.
const RUBBISH_PATIENCE: u64 = 1_000;
/// The pause between reads of a process that writes only rubbish, or asks and does not read what it is answered.
const FLOOD_PAUSE: Duration = Duration::from_millis(50);
/// A process that ends closes its pipes before its guard can say how it ended, and its last answers may still
/// be on their way when the guard has said so. Of the two, the first waits so long for the second.
const END_PATIENCE: Duration = Duration::from_millis(500);
/// How long a request of the process waits for a client that reads none of its streams. A client that comes
/// back to a stream does so within a second or two; one that is gone must not hold up the sessions whose
/// calls wait behind the call that asked.
const REVERSE_PATIENCE: Duration = Duration::from_secs(15);

/// Everything one connection knows.
pub(super) struct Task {
    parts: Parts,
    state: Arc<Shared>,
    mux: Mux<CallSink>,
    streams: HashMap<SessionKey, Arc<ReplayStream>>,
    writer: Writer,
    /// What the process asked for and the writer has no room for.
    replies: Replies,
    /// Emptied after each use; kept for its capacity.
    out: Vec<Out<CallSink>>,
    lines: Lines,
    stdout_open: bool,
    /// Answers to requests that came to nothing on the network, and when they are passed on, unless more is known
    /// by then. At most one a call.
    broken: VecDeque<(Instant, Bytes)>,
    /// A large line that waits for memory before it is passed on; reading stands still meanwhile.
    parked: Option<Bytes>,
    /// Until when a process that floods is not read.
    slow_until: Option<Instant>,
    /// When to look whether the clients that the process waits for are there; set while it may wait for one.
    roll_call: Option<Instant>,
    rubbish_in_a_row: u64,
    rubbish: u64,
    /// How often each kind of thing was refused or dropped, so that not each is told.
    dropped: HashMap<String, u64>,
    /// The connection ends.
    ending: Option<Ending>,
    /// Set once the connection is over: the error every call gets.
    failed: Option<String>,
    draining: Option<Vec<oneshot::Sender<()>>>,
    /// Nobody gives orders any more.
    let_go: bool,
    /// Nobody sends messages any more.
    callers_gone: bool,
}

/// The end of a connection that is not failed yet.
struct Ending {
    /// When its calls end at the latest.
    at: Instant,
    /// With this error.
    reason: String,
    /// Whether the driver said so: then nothing better is to come, and only the last answers are waited for.
    told: bool,
}

/// Counted for each answer to a request of the process that was dropped: see [`Replies`].
const UNREAD_REPLIES: &str = "answers to the server";

/// Why no answer can come any more, where nothing better is known.
const OUTPUT_CLOSED: &str = "the server closed its output";

/// What woke the task.
enum Wake {
    Order(Option<Order>),
    Messages(usize),
    Writable,
    Readable(io::Result<()>),
    Memory(crate::budget::Reservation),
    Clock,
}

impl Task {
    pub(super) fn new(parts: Parts, writer: Writer, state: Arc<Shared>) -> Self {
        let mux = Mux::new(parts.settings.clone());
        let lines = Lines::new(parts.max_message);
        Self {
            parts,
            state,
            mux,
            streams: HashMap::new(),
            writer,
            replies: Replies::default(),
            out: Vec::new(),
            lines,
            stdout_open: true,
            broken: VecDeque::new(),
            parked: None,
            slow_until: None,
            roll_call: None,
            rubbish_in_a_row: 0,
            rubbish: 0,
            dropped: HashMap::new(),
            ending: None,
            failed: None,
            draining: None,
            let_go: false,
            callers_gone: false,
        }
    }

    /// Runs until nobody holds the connection and, where the driver said that it ends, the last answers are read.
    pub(super) async fn run(
        mut self,
        mut reader: Reader,
        mut callers: mpsc::Receiver<ToProcess>,
        mut orders: mpsc::Receiver<Order>,
    ) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut alarm = Box::pin(tokio::time::sleep(Duration::ZERO));
        loop {
            match self.wait(&mut reader, &mut callers, &mut orders, &mut batch, alarm.as_mut()).await {
                Wake::Order(Some(order)) => self.obey(order),
                Wake::Order(None) => self.let_go = true,
                // Orders may still wait: their end is the end.
                Wake::Messages(0) => self.callers_gone = true,
                Wake::Messages(_) => {
                    batch.drain(..).for_each(|message| self.take(message));
                    self.gather(&mut callers, &mut batch).await;
                }
                Wake::Writable => {}
                Wake::Readable(ready) => self.read(&mut reader, ready),
                Wake::Memory(reservation) => self.unpark(reservation),
                Wake::Clock => self.tick(),
            }
            self.write();
            self.publish();
            if self.failed.is_some() {
                reader.stop();
            }
            if self.let_go && self.ending.is_none() {
                break;
            }
        }
        if self.failed.is_none() {
            self.fail("the instance was removed".to_owned());
        }
    }

    async fn wait(
        &self,
        reader: &mut Reader,
        callers: &mut mpsc::Receiver<ToProcess>,
        orders: &mut mpsc::Receiver<Order>,
        batch: &mut Vec<ToProcess>,
        mut alarm: Pin<&mut Sleep>,
    ) -> Wake {
        let reading = self.stdout_open && self.parked.is_none() && self.slow_until.is_none();
        let taking = !self.callers_gone && self.writer.len() < HIGH_WATER;
        let parked = self.parked.as_ref().map_or(0, Bytes::len);
        let clock = self.next_clock();
        // Set anew only when it changes: arming a timer costs more than passing a message on.
        if let Some(at) = clock.filter(|at| *at != alarm.deadline()) {
            alarm.as_mut().reset(at);
        }
        crate::select::select! {
            order = orders.recv(), if !self.let_go => Wake::Order(order),
            ready = reader.readable(), if reading => Wake::Readable(ready),
            count = callers.recv_many(batch, BATCH), if taking => Wake::Messages(count),
            () = self.writer.writable(), if !self.writer.is_empty() => Wake::Writable,
            memory = self.parts.budget.reserve(parked), if parked > 0 => Wake::Memory(memory),
            () = alarm, if clock.is_some() => Wake::Clock,
        }
    }

    /// With several calls running, lets their tasks bring what they have, so that one write carries it all. With
    /// one call there is nothing to wait for.
    async fn gather(&mut self, callers: &mut mpsc::Receiver<ToProcess>, batch: &mut Vec<ToProcess>) {
        if self.mux.open_calls() < 2 {
            return;
        }
        tokio::task::yield_now().await;
        while batch.len() < BATCH
            && let Ok(message) = callers.try_recv()
        {
            batch.push(message);
        }
        batch.drain(..).for_each(|message| self.take(message));
    }

    fn next_clock(&self) -> Option<Instant> {
        let calls = self.mux.next_expiry_ms().map(|at| clock::instant(Now(Duration::from_millis(at))));
        let ending = self.ending.as_ref().map(|ending| ending.at);
        let broken = self.broken.front().map(|(at, _)| *at);
        calls.into_iter().chain(self.slow_until).chain(self.roll_call).chain(ending).chain(broken).min()
    }

    fn tick(&mut self) {
        if self.slow_until.is_some_and(|until| until <= Instant::now()) {
            self.slow_until = None;
        }
        if self.mux.next_expiry_ms().is_some_and(|at| at <= now_ms()) {
            self.with_mux(|mux, now, out| mux.expire(now, out));
        }
        if self.roll_call.is_some_and(|at| at <= Instant::now()) {
            self.call_roll();
        }
        while let Some((_, answer)) = self.broken.pop_front_if(|(at, _)| *at <= Instant::now()) {
            self.with_mux(|mux, now, out| mux.server_line(answer, now, out));
        }
        if let Some(ending) = self.ending.take_if(|ending| ending.at <= Instant::now()) {
            self.fail(ending.reason);
        }
    }

    /// Refuses the requests of the process whose clients are gone.
    fn call_roll(&mut self) {
        let now = Instant::now();
        let (mut gone, mut next) = (Vec::new(), None::<Instant>);
        for (id, session) in self.mux.asked() {
            let absent = self.streams.get(&session).and_then(|stream| stream.presence().absent_since());
            match absent.unwrap_or(now) + REVERSE_PATIENCE {
                over if over <= now => gone.push(id),
                later => next = Some(next.map_or(later, |next| next.min(later))),
            }
        }
        gone.sort_unstable();
        self.roll_call = next;
        for id in gone {
            self.undelivered(Some(id), "the client is gone");
        }
    }

    /// Calls the account and performs what it says.
    fn with_mux<T>(&mut self, act: impl FnOnce(&mut Mux<CallSink>, u64, &mut Vec<Out<CallSink>>) -> T) -> T {
        let mut out = std::mem::take(&mut self.out);
        let result = act(&mut self.mux, now_ms(), &mut out);
        for action in out.drain(..) {
            self.perform(action);
        }
        self.out = out;
        result
    }

    fn perform(&mut self, action: Out<CallSink>) {
        match action {
            Out::Write(message) => self.writer.push(message),
            Out::Reply(message) => self.reply(message),
            Out::Finish(sink, answer) => sink.finish(answer),
            Out::Emit { ticket, message, reverse } => {
                let delivered = self.mux.sink(ticket).is_some_and(|sink| sink.emit(message).is_ok());
                if delivered {
                    self.asked(reverse);
                } else {
                    self.undelivered(reverse, "the client does not read its stream");
                }
            }
            Out::ToSession { session, message, reverse } => match self.streams.get(&session) {
                Some(stream) if reverse.is_none() || stream.connected() => {
                    stream.push(message);
                    self.asked(reverse);
                }
                _ => self.undelivered(reverse, "the session has no open stream"),
            },
            Out::Note(note) => self.note(note),
        }
    }

    /// A request of the process, if it was one, is on its way to its client.
    fn asked(&mut self, reverse: Option<u64>) {
        if reverse.is_some() {
            self.roll_call.get_or_insert_with(|| Instant::now() + REVERSE_PATIENCE);
        }
    }

    fn undelivered(&mut self, reverse: Option<u64>, why: &'static str) {
        self.count("undelivered");
        let Some(id) = reverse else { return };
        let mut out = Vec::new();
        self.mux.undeliverable(id, why, &mut out);
        for action in out {
            self.perform(action);
        }
        self.request_refused("request".to_owned(), why);
    }

    /// Tells of the first that was refused for this reason, and then of each tenfold.
    fn request_refused(&mut self, method: String, reason: &'static str) {
        let (_, worth_telling) = self.seen(format!("request refused: {reason}"));
        if worth_telling {
            let happening = Happening::ReverseRequestRefused { method, reason: reason.to_owned() };
            self.parts.events.record(&self.parts.instance.to_string(), happening);
        }
    }

    /// Answers a request of the process. One that asks and does not read is read on, slowly.
    fn reply(&mut self, message: Message) {
        if self.writer.len() >= HIGH_WATER {
            // Much is read at a time: it may have made room since.
            self.write();
        }
        if self.replies.push(message, &mut self.writer) {
            return;
        }
        self.slow_until = Some(Instant::now() + FLOOD_PAUSE);
        self.count(UNREAD_REPLIES);
        let (count, worth_telling) = self.seen(UNREAD_REPLIES.to_owned());
        if worth_telling {
            let waiting = human_bytes(REPLIES_MAX as u64);
            let what = format!("answers to requests of the server, which has left {waiting} of them unread");
            self.parts.events.record(&self.parts.instance.to_string(), Happening::Dropped { what, count });
        }
    }

    fn count(&self, name: &str) {
        self.parts.events.count(name);
    }

    /// Notes one more of a kind; how many there were, and whether that is worth telling.
    fn seen(&mut self, kind: String) -> (u64, bool) {
        let seen = self.dropped.entry(kind).or_default();
        *seen += 1;
        (*seen, is_power_of_ten(*seen))
    }

    /// Counts a note; tells of the first of its kind and then of each tenfold.
    fn note(&mut self, note: Note) {
        let name = counter(&note);
        self.count(&name);
        let (seen, worth_telling) = self.seen(name);
        let subject = self.parts.instance.to_string();
        let tell = |happening| self.parts.events.record(&subject, happening);
        match note {
            Note::Rubbish(line) => self.rubbish_line(&line),
            Note::AsksBack => self.tell_driver(News::AsksBack),
            Note::RequestRefused { method, reason } => self.request_refused(method.into(), reason),
            Note::NotificationDropped { method, reason } if worth_telling => {
                tell(Happening::Dropped { what: format!("`{method}` of the server: {reason}"), count: seen });
            }
            Note::LimitReached(limit) if worth_telling => {
                tell(Happening::CallRefused { reason: format!("`{limit}` was reached {seen} times") });
            }
            Note::NotificationDropped { .. } | Note::LimitReached(_) | Note::Stray(_) | Note::Unheard => {}
        }
    }

    fn rubbish_line(&mut self, line: &[u8]) {
        self.rubbish += 1;
        self.rubbish_in_a_row += 1;
        let text = String::from_utf8_lossy(&line[..line.len().min(crate::log::MAX_LINE)]);
        self.parts.log.push(Stream::Stdout, &text);
        if is_power_of_ten(self.rubbish) {
            let sample = text.chars().take(80).collect();
            let happening = Happening::StdoutRubbish { count: self.rubbish, sample };
            self.parts.events.record(&self.parts.instance.to_string(), happening);
        }
    }

    fn take(&mut self, message: ToProcess) {
        match message {
            ToProcess::Call(request) => self.call(request),
            ToProcess::Attach(session, stream) => {
                self.streams.insert(session, stream);
                self.mux.attach(session);
            }
            ToProcess::Detach(session) => {
                self.streams.remove(&session);
                self.with_mux(|mux, now, out| mux.detach(session, now, out));
            }
            ToProcess::Cancel(session, id) => {
                self.with_mux(|mux, now, out| mux.cancel(session, &id, now, out));
            }
            ToProcess::HungUp(ticket) => {
                self.with_mux(|mux, now, out| mux.cancel_ticket(ticket, "the client hung up", now, out));
            }
            ToProcess::Notification(session, body, envelope, done) => {
                let result = self.with_mux(|mux, _, out| mux.notification(session, &body, &envelope, out));
                let _ = done.send(result);
            }
            ToProcess::Answer(session, body, envelope, done) => {
                let result = self.with_mux(|mux, _, out| mux.answer(session, &body, &envelope, out));
                let _ = done.send(result);
            }
            ToProcess::Tell(message) => self.writer.push(message),
            ToProcess::Era(era) => self.mux.set_era(era),
        }
    }

    fn call(&mut self, request: ostler_mcp::mux::Request<CallSink>) {
        let over = self.failed.as_ref().or(self.ending.as_ref().map(|ending| &ending.reason));
        let refusal = match (over, &self.draining) {
            (Some(reason), _) => Some(reason.as_str()),
            (None, Some(_)) => Some("the instance is stopping"),
            (None, None) => None,
        };
        if let Some(reason) = refusal {
            let code = rpc::INSTANCE_LOST;
            let message = rpc::error(Some(&request.client_id), code, reason);
            let kind = ostler_mcp::Kind::Error(code);
            request.sink.finish(ostler_mcp::mux::Answer { kind, message });
            return;
        }
        self.with_mux(|mux, now, out| mux.request(request, now, out));
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Drain(done) => self.draining.get_or_insert_default().push(done),
            Order::Deadlines(idle_ms, max_ms) => self.mux.set_deadlines(idle_ms, max_ms, now_ms()),
            Order::CloseStdin => {
                self.write();
                self.writer = Writer::Closed;
            }
            // What was said first says most: later orders only clear up.
            Order::Fail(_) if self.failed.is_some() || self.ending.as_ref().is_some_and(|end| end.told) => {}
            Order::Fail(reason) if self.stdout_open => {
                self.broken.clear();
                self.ending = Some(Ending { at: Instant::now() + END_PATIENCE, reason, told: true });
            }
            Order::Fail(reason) => self.fail(reason),
        }
    }

    fn fail(&mut self, reason: String) {
        self.ending = None;
        self.broken.clear();
        if let Writer::Queue(..) = self.writer {
            self.writer = Writer::Closed;
        }
        self.with_mux(|mux, _, out| mux.fail_all(&reason, out));
        self.failed = Some(reason);
    }

    /// Reads what is there, up to a turn's worth.
    fn read(&mut self, reader: &mut Reader, ready: io::Result<()>) {
        if ready.is_err() {
            self.stdout_open = false;
            return;
        }
        match reader {
            Reader::Pipe(stdout) => self.read_lines(stdout),
            Reader::Queue(_, frames) if frames.is_empty() => self.output_ended(OUTPUT_CLOSED),
            Reader::Queue(_, frames) => frames.drain(..).for_each(|frame| self.pass_frame(frame)),
        }
        if self.rubbish_in_a_row > RUBBISH_PATIENCE {
            self.slow_until = Some(Instant::now() + FLOOD_PAUSE);
        }
    }

    fn pass_frame(&mut self, frame: Frame) {
        match frame {
            Frame::Message { text, of: Some(ticket) } => {
                self.with_mux(|mux, now, out| mux.server_message(ticket, text, now, out));
            }
            Frame::Message { text, of: None } => self.pass(text),
            // It ends, and all its calls with it: what the driver said of that says more.
            Frame::Broken(_) if self.ending.as_ref().is_some_and(|ending| ending.told) => {}
            Frame::Broken(answer) => self.broken.push_back((Instant::now() + END_PATIENCE, answer)),
            Frame::Closed(why) if self.stdout_open => self.output_ended(&why),
            Frame::Closed(_) => {}
        }
    }

    fn read_lines(&mut self, stdout: &Output) {
        let mut read = 0;
        while read < READ_TURN && self.parked.is_none() {
            match stdout.try_read_buf(self.lines.space()) {
                Ok(0) => return self.output_ended(OUTPUT_CLOSED),
                Ok(count) => {
                    read += count;
                    self.pass_lines();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::warn!(instance = %self.parts.instance, %error, "standard output cannot be read");
                    return self.output_ended(OUTPUT_CLOSED);
                }
            }
        }
    }

    fn pass_lines(&mut self) {
        while self.parked.is_none() {
            match self.lines.next_line() {
                Some(Line::Complete(line)) if line.len() < SHARE_FROM => self.pass(line),
                Some(Line::Complete(line)) => match self.parts.budget.try_reserve(line.len()) {
                    Some(reservation) => self.pass(reservation.hold(line)),
                    None => {
                        self.count("gateway.body_memory");
                        self.parked = Some(line);
                    }
                },
                Some(Line::TooLong(length)) => {
                    self.count("gateway.max_body");
                    let what = format!("a message of the server of {length} bytes (gateway.max_body)");
                    let subject = self.parts.instance.to_string();
                    self.parts.events.record(&subject, Happening::Dropped { what, count: 1 });
                }
                None => return,
            }
        }
    }

    fn unpark(&mut self, reservation: crate::budget::Reservation) {
        if let Some(line) = self.parked.take() {
            self.pass(reservation.hold(line));
            self.pass_lines();
        }
    }

    fn pass(&mut self, line: Bytes) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let before = self.rubbish;
        self.with_mux(|mux, now, out| mux.server_line(line, now, out));
        if self.rubbish == before {
            self.rubbish_in_a_row = 0;
        }
    }

    /// The process closed its output: no answer can come any more, whether or not it lives on.
    fn output_ended(&mut self, reason: &str) {
        self.stdout_open = false;
        let lines = std::mem::replace(&mut self.lines, Lines::new(self.parts.max_message));
        if let Some(rest) = lines.rest() {
            self.pass(rest);
        }
        match self.ending.take_if(|ending| ending.told) {
            // The last answer has been read.
            Some(ending) => self.fail(ending.reason),
            None => self.closed(reason, News::OutputClosed),
        }
    }

    fn closed(&mut self, reason: &str, news: News) {
        if self.failed.is_some() {
            // It was closed from this side.
            return;
        }
        let at = Instant::now() + END_PATIENCE;
        self.ending.get_or_insert_with(|| Ending { at, reason: reason.to_owned(), told: false });
        self.tell_driver(news);
    }

    /// There is room for each kind of news once, and one of a kind is enough.
    fn tell_driver(&self, news: News) {
        let _ = self.parts.news.try_send(news);
    }

    fn write(&mut self) {
        loop {
            // A process that closed its input: its end is reported by the guard.
            if self.writer.write().is_err() {
                self.closed("the server does not take requests any more", News::InputClosed);
            }
            if !self.replies.pass_on(&mut self.writer) {
                return;
            }
        }
    }

    fn publish(&mut self) {
        let open = self.mux.open_calls();
        self.state.open_calls.store(open, Ordering::Relaxed);
        self.state.attached.store(self.mux.attached(), Ordering::Relaxed);
        if open == 0
            && let Some(waiting) = &mut self.draining
        {
            for done in waiting.drain(..) {
                let _ = done.send(());
            }
        }
    }
}
