//! What comes from the process.

use bytes::Bytes;
use ostler_domain::Era;

use super::{Answer, Call, CallKind, Mux, Note, Out, Reverse, SessionKey, Ticket, severity};
use crate::envelope::{Envelope, Kind, subscription_in_result};
use crate::message::{Message, unpinned};
use crate::rpc;

/// Whose a message is that names nobody.
enum Owner {
    /// The only call in flight.
    Call(Ticket),
    /// The only session attached.
    Session(SessionKey),
    /// Nobody can be said to own it.
    Unknown(&'static str),
}

impl<S> Mux<S> {
    /// One message that came on the stream which answers this call, over a transport that has such streams.
    pub fn server_message(&mut self, of: Ticket, message: Bytes, now_ms: u64, out: &mut Vec<Out<S>>) {
        self.on_stream_of = Some(of);
        self.server_line(message, now_ms, out);
        self.on_stream_of = None;
    }

    /// One line that the process wrote.
    pub fn server_line(&mut self, line: Bytes, now_ms: u64, out: &mut Vec<Out<S>>) {
        let Ok(envelope) = Envelope::parse(&line) else {
            out.push(Out::Note(Note::Rubbish(line)));
            return;
        };
        match envelope.kind {
            Kind::Result | Kind::Error(_) => self.server_answer(&line, &envelope, now_ms, out),
            Kind::Request => self.server_request(&line, &envelope, now_ms, out),
            Kind::Notification => self.server_notification(&line, &envelope, now_ms, out),
        }
    }

    fn server_answer(&mut self, line: &Bytes, envelope: &Envelope, now_ms: u64, out: &mut Vec<Out<S>>) {
        let answers = ticket(envelope.id_text(line));
        // A stream that belongs to one call answers no other.
        let mine = answers.filter(|answers| self.on_stream_of.is_none_or(|stream| stream == *answers));
        let call = mine.and_then(|ticket| self.remove(ticket));
        let (Some(call), Some(id)) = (call, envelope.id.clone()) else {
            out.push(Out::Note(Note::Stray("answer")));
            return;
        };
        if let Some(sink) = call.sink {
            let message = match subscription_span(&call.kind, envelope, line) {
                Some(inside) => splice_two(line, id, inside, &call.client_id),
                None => Message::splice(line, &[(id, &call.client_id)]),
            };
            out.push(Out::Finish(sink, Answer { kind: envelope.kind, message }));
        }
        self.admit(now_ms, out);
    }

    fn server_request(&mut self, line: &Bytes, envelope: &Envelope, now_ms: u64, out: &mut Vec<Out<S>>) {
        let Some(id_span) = envelope.id.clone() else { return };
        let server_id = unpinned(line.slice(id_span.clone()));
        if &*envelope.method == "ping" {
            out.push(Out::Reply(rpc::result(&server_id, "{}")));
            return;
        }
        if self.settings.era == Era::Modern {
            // 2026-07-28, stdio: "The server MUST NOT write JSON-RPC requests to stdout".
            self.refuse(envelope, &server_id, "a modern server asks through its results", out);
            return;
        }
        if self.sessions.is_empty() {
            // It asks for nobody's call, so nothing is learnt of how it asks.
            let text = format!("`{}` cannot be passed on: no session is attached", envelope.method);
            out.push(Out::Reply(rpc::error(Some(&server_id), rpc::METHOD_NOT_FOUND, &text)));
            out.push(Out::Note(Note::Unheard));
            return;
        }
        if !self.settings.asks_back && self.on_stream_of.is_none() {
            self.settings.asks_back = true;
            out.push(Out::Note(Note::AsksBack));
        }
        // A process that uses an id again does not wait for the first answer any more; were that let through, it
        // would count as the answer to this request.
        self.reverse.retain(|_, reverse| reverse.server_id != server_id);
        let (session, ticket) = match self.owner() {
            Owner::Call(ticket) => match self.calls.get(&ticket).and_then(|call| call.session) {
                Some(session) => (session, Some(ticket)),
                None => return self.refuse(envelope, &server_id, "the call has no session", out),
            },
            Owner::Session(session) => (session, self.first_call_of(session)),
            Owner::Unknown(why) => return self.refuse(envelope, &server_id, why, out),
        };
        if self.reverse.len() >= Self::MAX_REVERSE {
            out.push(Out::Note(Note::LimitReached("requests of the server")));
            return self.refuse(envelope, &server_id, "256 requests of this server wait already", out);
        }
        let id = self.take_reverse_id();
        let text = id.to_string();
        let token = envelope.inner.meta.progress_token.clone();
        let message = match token.clone() {
            Some(token) => splice_two(line, id_span, token, text.as_bytes()),
            None => Message::splice(line, &[(id_span, text.as_bytes())]),
        };
        let server_token = token.map(|span| unpinned(line.slice(span)));
        let certain = ticket.filter(|_| self.in_flight == 1 || self.on_stream_of.is_some());
        self.reverse
            .insert(id, Reverse { session, server_id, server_token, ticket: certain, asked_ms: now_ms });
        self.wake_at(now_ms.saturating_add(self.settings.call_max_ms));
        self.deliver(session, ticket, message, Some(id), out);
    }

    fn refuse(&mut self, envelope: &Envelope, id: &[u8], reason: &'static str, out: &mut Vec<Out<S>>) {
        let text = format!("`{}` cannot be passed on: {reason}", envelope.method);
        out.push(Out::Reply(rpc::error(Some(id), rpc::METHOD_NOT_FOUND, &text)));
        out.push(Out::Note(Note::RequestRefused { method: envelope.method.clone(), reason }));
    }

    fn server_notification(&mut self, line: &Bytes, envelope: &Envelope, now_ms: u64, out: &mut Vec<Out<S>>) {
        match &*envelope.method {
            "notifications/progress" => self.progress(line, envelope, now_ms, out),
            "notifications/cancelled" => self.server_cancelled(line, envelope, out),
            _ if envelope.inner.meta.subscription_id.is_some() => self.subscribed(line, envelope, out),
            "notifications/resources/updated" if !self.alone() => self.resource_updated(line, envelope, out),
            "notifications/message" => self.log_message(line, envelope, now_ms, out),
            _ if self.settings.era == Era::Modern => {
                // A modern change notification belongs to a subscription and says so.
                self.drop_notification(envelope, "it names no subscription", out);
            }
            _ => self.pass_to_owner(line, envelope, now_ms, out),
        }
    }

    fn progress(&mut self, line: &Bytes, envelope: &Envelope, now_ms: u64, out: &mut Vec<Out<S>>) {
        let span = envelope.inner.progress_token.clone();
        let ticket = ticket(span.clone().map(|span| &line[span]));
        let call = ticket.and_then(|ticket| self.calls.get_mut(&ticket));
        let (Some(call), Some(ticket), Some(span)) = (call, ticket, span) else {
            out.push(Out::Note(Note::Stray("progress")));
            return;
        };
        call.active_ms = now_ms;
        if let (Some(token), Some(_)) = (&call.client_token, &call.sink) {
            let message = Message::splice(line, &[(span, token)]);
            out.push(Out::Emit { ticket, message, reverse: None });
        } else {
            out.push(Out::Note(Note::Stray("progress")));
        }
    }

    /// The process takes back a request of its own, or (modern) ends a subscription.
    fn server_cancelled(&mut self, line: &Bytes, envelope: &Envelope, out: &mut Vec<Out<S>>) {
        let Some(span) = envelope.inner.request_id.clone() else {
            out.push(Out::Note(Note::Stray("cancellation")));
            return;
        };
        let named = line.slice(span.clone());
        if let Some(ticket) = ticket(Some(&named))
            && self.calls.get(&ticket).is_some_and(|call| call.kind == CallKind::Listen)
            && let Some(Call { sink: Some(sink), client_id, .. }) = self.remove(ticket)
        {
            let result = format!(
                "{{\"resultType\":\"complete\",\"_meta\":{{\"io.modelcontextprotocol/subscriptionId\":{}}}}}",
                String::from_utf8_lossy(&client_id)
            );
            let message = rpc::result(&client_id, &result);
            out.push(Out::Finish(sink, Answer { kind: Kind::Result, message }));
            return;
        }
        let asked = self.reverse.iter().find(|(_, r)| r.server_id == named).map(|(id, _)| *id);
        let Some((id, reverse)) = asked.and_then(|id| self.reverse.remove_entry(&id)) else {
            out.push(Out::Note(Note::Stray("cancellation")));
            return;
        };
        let message = Message::splice(line, &[(span, id.to_string().as_bytes())]);
        let ticket = reverse.ticket.filter(|ticket| self.calls.contains_key(ticket));
        let ticket = ticket.or_else(|| self.first_call_of(reverse.session));
        self.deliver(reverse.session, ticket, message, None, out);
    }

    fn subscribed(&mut self, line: &Bytes, envelope: &Envelope, out: &mut Vec<Out<S>>) {
        let span = envelope.inner.meta.subscription_id.clone();
        let ticket = ticket(span.clone().map(|span| &line[span]));
        let call = ticket.and_then(|ticket| self.calls.get(&ticket));
        match (ticket, call, span) {
            (Some(ticket), Some(call), Some(span)) if call.kind == CallKind::Listen => {
                let message = Message::splice(line, &[(span, &call.client_id)]);
                out.push(Out::Emit { ticket, message, reverse: None });
            }
            _ => out.push(Out::Note(Note::Stray("subscription notification"))),
        }
    }

    /// Each session that asked for this resource is told; that is exact, and no broadcast.
    fn resource_updated(&mut self, line: &Bytes, envelope: &Envelope, out: &mut Vec<Out<S>>) {
        let watchers = envelope.inner.uri.as_deref().and_then(|uri| self.resources.get(uri)).cloned();
        let Some(watchers) = watchers else {
            return self.drop_notification(envelope, "no session subscribed to this resource", out);
        };
        let message = Message::from(unpinned(line.clone()));
        for session in watchers {
            self.deliver(session, None, message.clone(), None, out);
        }
    }

    fn log_message(&mut self, line: &Bytes, envelope: &Envelope, now_ms: u64, out: &mut Vec<Out<S>>) {
        if self.settings.era == Era::Modern {
            // Servers must not log for a request without a level, so the only one with a level owns it.
            let on_stream_of = self.on_stream_of;
            let mut asked = self.loggers.iter().filter(|asked| on_stream_of.is_none_or(|of| of == **asked));
            match (asked.next(), asked.next()) {
                (Some(ticket), None) => {
                    let message = Message::from(unpinned(line.clone()));
                    out.push(Out::Emit { ticket: *ticket, message, reverse: None });
                }
                (None, _) => self.drop_notification(envelope, "no running call asked for log messages", out),
                _ => self.drop_notification(envelope, "several running calls asked for log messages", out),
            }
            return;
        }
        let rank = envelope.inner.level.as_deref().and_then(severity);
        let owner = match self.owner_of_notification(now_ms) {
            Owner::Call(ticket) => self.calls.get(&ticket).and_then(|call| call.session),
            Owner::Session(session) => Some(session),
            Owner::Unknown(_) => None,
        };
        let wanted = owner.and_then(|session| self.level_of(session));
        if !self.alone() && rank.zip(wanted).is_some_and(|(rank, wanted)| rank < wanted) {
            return;
        }
        self.pass_to_owner(line, envelope, now_ms, out);
    }

    fn pass_to_owner(&mut self, line: &Bytes, envelope: &Envelope, now_ms: u64, out: &mut Vec<Out<S>>) {
        let message = Message::from(unpinned(line.clone()));
        match self.owner_of_notification(now_ms) {
            Owner::Call(ticket) => match self.calls.get(&ticket).and_then(|call| call.session) {
                Some(session) => self.deliver(session, Some(ticket), message, None, out),
                None => self.drop_notification(envelope, "the call has no session", out),
            },
            Owner::Session(session) => {
                let ticket = self.first_call_of(session);
                self.deliver(session, ticket, message, None, out);
            }
            Owner::Unknown(why) => self.drop_notification(envelope, why, out),
        }
    }

    fn drop_notification(&mut self, envelope: &Envelope, reason: &'static str, out: &mut Vec<Out<S>>) {
        let unheard = self.settings.era == Era::Legacy && self.sessions.is_empty();
        out.push(Out::Note(if unheard {
            Note::Unheard
        } else {
            Note::NotificationDropped { method: envelope.method.clone(), reason }
        }));
    }

    fn deliver(
        &mut self,
        session: SessionKey,
        ticket: Option<Ticket>,
        message: Message,
        reverse: Option<u64>,
        out: &mut Vec<Out<S>>,
    ) {
        let running = ticket.filter(|t| self.calls.get(t).is_some_and(|call| call.sink.is_some()));
        out.push(match running {
            Some(ticket) => Out::Emit { ticket, message, reverse },
            None => Out::ToSession { session, message, reverse },
        });
    }

    fn alone(&self) -> bool {
        self.settings.exclusive
    }

    /// Whose a notification is that names nobody. Where several sessions share the process, or did a moment ago, one that
    /// came where none of their calls' messages come is nobody's: the call it was meant for may have been answered
    /// meanwhile, on another stream. A request is not so: its call waits for the answer.
    fn owner_of_notification(&self, now_ms: u64) -> Owner {
        let shared = !self.alone() && (self.sessions.len() > 1 || self.another_just_left(now_ms));
        if shared && self.settings.streams_per_call && self.on_stream_of.is_none() {
            return Owner::Unknown("it came on the stream of no call");
        }
        self.owner()
    }

    /// Whose a message is that names nobody. Certain with one session attached and nothing left over from
    /// another, or with one call in flight; else nobody's.
    fn owner(&self) -> Owner {
        if let Some(ticket) = self.on_stream_of {
            return match self.calls.get(&ticket) {
                Some(call) if call.kind.is_call() && call.sink.is_some() => Owner::Call(ticket),
                Some(call) if call.kind.is_call() => Owner::Unknown("its call was cancelled"),
                _ => Owner::Unknown("it came on the stream of no running call"),
            };
        }
        let mut sessions = self.sessions.keys();
        match (sessions.next(), sessions.next()) {
            (None, _) => Owner::Unknown("no session is attached"),
            (Some(only), None) if !self.left_over(*only) => Owner::Session(*only),
            _ if self.in_flight == 1 => self.only_call(),
            _ if self.in_flight == 0 => {
                Owner::Unknown("several sessions share the process and no call is running")
            }
            _ => Owner::Unknown("several calls are running on the shared process"),
        }
    }

    /// Whether any session but the only one attached left so lately that what was meant for it may still come.
    fn another_just_left(&self, now_ms: u64) -> bool {
        let last = self.left.filter(|(who, _)| !self.sessions.contains_key(who)).map(|(_, at_ms)| at_ms);
        let at_ms = last.or(self.left_before_ms);
        at_ms.is_some_and(|at_ms| now_ms < at_ms.saturating_add(Self::LINGER_MS))
    }

    fn only_call(&self) -> Owner {
        let call = self.calls.iter().find(|(_, call)| call.kind.is_call());
        match call {
            Some((ticket, call)) if call.sink.is_some() => Owner::Call(*ticket),
            _ => Owner::Unknown("its call was cancelled"),
        }
    }

    /// Whether a call of another session may still be running on the process.
    fn left_over(&self, session: SessionKey) -> bool {
        self.sessions.get(&session).is_none_or(|mine| mine.in_flight < self.in_flight)
    }

    /// The call on whose stream a session is told what may belong to any of its calls: the oldest.
    fn first_call_of(&self, session: SessionKey) -> Option<Ticket> {
        self.sessions.get(&session)?.open.first().copied()
    }
}

/// The ticket that an id or token on the wire stands for: exactly the digits Ostler wrote.
fn ticket(text: Option<&[u8]>) -> Option<Ticket> {
    std::str::from_utf8(text?).ok()?.parse().ok()
}

fn subscription_span(kind: &CallKind, envelope: &Envelope, line: &[u8]) -> Option<std::ops::Range<usize>> {
    let result = envelope.result.as_ref().filter(|_| *kind == CallKind::Listen)?;
    subscription_in_result(line, result)
}

/// Replaces two places by the same text, whichever comes first.
fn splice_two(
    line: &Bytes,
    one: std::ops::Range<usize>,
    other: std::ops::Range<usize>,
    text: &[u8],
) -> Message {
    if one.start < other.start {
        Message::splice(line, &[(one, text), (other, text)])
    } else {
        Message::splice(line, &[(other, text), (one, text)])
    }
}
