//! What comes from sessions.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Mux, Note, Out, Request, ReverseId, Session, SessionKey, Special, Ticket, Waiting};
use super::{finish_error, severity};
use crate::envelope::{Envelope, Kind};
use crate::message::{Message, unpinned};
use crate::mux::Answer;
use crate::rpc;

/// A client's answer or progress names a request that is not its own, or none that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no request of the server with this id waits for this session")]
pub struct NotWaiting;

impl<S> Mux<S> {
    /// A session begins to use the process.
    pub fn attach(&mut self, session: SessionKey) {
        let Self { sessions, calls, .. } = self;
        sessions.entry(session).or_insert_with(|| {
            // A session that comes back may have left calls behind.
            let left = |call: &&super::Call<S>| call.session == Some(session) && call.kind.is_call();
            Session { in_flight: calls.values().filter(left).count(), ..Session::default() }
        });
    }

    /// A session leaves: its calls are cancelled, what the process asked of it is refused.
    pub fn detach(&mut self, session: SessionKey, now_ms: u64, out: &mut Vec<Out<S>>) {
        let Some(Session { open, .. }) = self.sessions.remove(&session) else { return };
        if let Some((_, before_ms)) = self.left.replace((session, now_ms)).filter(|(who, _)| *who != session)
        {
            self.left_before_ms = Some(before_ms);
        }
        let reason = "the session ended";
        let (mine, others): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|w| w.request.session == Some(session));
        self.waiting = others;
        for Waiting { request, .. } in mine {
            self.by_client.remove(&(session, request.client_id.clone()));
            out.push(finish_error(request.sink, &request.client_id, rpc::CALL_CANCELLED, reason));
        }
        for ticket in open {
            self.abandon(ticket, rpc::CALL_CANCELLED, reason, now_ms, out);
        }
        self.refuse_waiting(|reverse| reverse.session == session, reason, out);
        self.drop_subscriptions(session, out);
        self.admit(now_ms, out);
    }

    /// Takes the session off every resource; the process is told of those nobody else watches.
    fn drop_subscriptions(&mut self, session: SessionKey, out: &mut Vec<Out<S>>) {
        let mut unwatched = Vec::new();
        self.resources.retain(|uri, watchers| {
            let before = watchers.len();
            watchers.retain(|watcher| *watcher != session);
            if watchers.is_empty() && before > 0 {
                unwatched.push(uri.clone());
            }
            !watchers.is_empty()
        });
        for uri in unwatched {
            // Its answer is a stray by design: nobody waits for it.
            let id = self.take_reverse_id();
            let uri = serde_json::Value::from(&*uri);
            out.push(Out::Write(Message::from(format!(
                "{{\"jsonrpc\":\"2.0\",\"id\":\"ostler-{id}\",\"method\":\"resources/unsubscribe\",\"params\":{{\"uri\":{uri}}}}}"
            ))));
        }
    }

    pub(super) fn take_reverse_id(&mut self) -> ReverseId {
        self.next_reverse += 1;
        self.next_reverse
    }

    /// A request for the process. Every outcome, refusals included, comes out at the request's sink.
    pub fn request(&mut self, mut request: Request<S>, now_ms: u64, out: &mut Vec<Out<S>>) {
        if self.calls.len() + self.waiting.len() >= self.settings.max_calls {
            out.push(Out::Note(Note::LimitReached("limits.instance_calls")));
            let why = format!(
                "{} calls run or wait on this instance already (limits.instance_calls)",
                self.settings.max_calls
            );
            out.push(finish_error(request.sink, &request.client_id, rpc::LIMIT_REACHED, &why));
            return;
        }
        request.client_id = unpinned(request.client_id);
        request.client_token = request.client_token.map(unpinned);
        if let Some(session) = request.session {
            if !self.sessions.contains_key(&session) {
                // It was on its way when its session ended: nobody would ever cancel it.
                let why = "the session ended";
                out.push(finish_error(request.sink, &request.client_id, rpc::CALL_CANCELLED, why));
                return;
            }
            let key = (session, request.client_id.clone());
            if self.by_client.contains_key(&key) {
                let why = "another request of this session with the same id is still running";
                out.push(finish_error(request.sink, &request.client_id, rpc::INVALID_REQUEST, why));
                return;
            }
            self.by_client.insert(key, request.ticket);
        }
        let Some(request) = self.answer_here(request, out) else { return };
        if request.kind.is_call() && self.serial() && (self.in_flight > 0 || !self.waiting.is_empty()) {
            self.wake_at(now_ms.saturating_add(self.settings.call_max_ms));
            self.waiting.push_back(Waiting { since_ms: now_ms, request });
        } else {
            out.push(Out::Write(self.register(request, now_ms)));
        }
    }

    /// Requests whose effect on a shared process would reach other sessions are accounted for, and answered
    /// here where the process need not or must not see them.
    fn answer_here(&mut self, request: Request<S>, out: &mut Vec<Out<S>>) -> Option<Request<S>> {
        let (Some(session), Some(special)) = (request.session, &request.special) else {
            return Some(request);
        };
        if self.settings.exclusive {
            return Some(request);
        }
        let forward = match special {
            Special::Ping => !self.serial(),
            Special::SetLevel(level) => self.set_level(session, level),
            Special::Subscribe(uri) => {
                if self.resources.len() >= Self::MAX_RESOURCES && !self.resources.contains_key(uri) {
                    out.push(Out::Note(Note::LimitReached("resource subscriptions")));
                    let why = "too many resource subscriptions on this instance (10000)";
                    self.by_client.remove(&(session, request.client_id.clone()));
                    out.push(finish_error(request.sink, &request.client_id, rpc::LIMIT_REACHED, why));
                    return None;
                }
                let watchers = self.resources.entry(uri.clone()).or_default();
                if !watchers.contains(&session) {
                    watchers.push(session);
                }
                true
            }
            Special::Unsubscribe(uri) => {
                let watchers = self.resources.get_mut(uri);
                let others = watchers.is_some_and(|watchers| {
                    watchers.retain(|watcher| *watcher != session);
                    !watchers.is_empty()
                });
                if !others {
                    self.resources.remove(uri);
                }
                !others
            }
        };
        if forward {
            return Some(request);
        }
        self.by_client.remove(&(session, request.client_id.clone()));
        let message = rpc::result(&request.client_id, "{}");
        out.push(Out::Finish(request.sink, Answer { kind: Kind::Result, message }));
        None
    }

    /// Keeps the session's level; true when the process must be told: it is to say more than before, or the
    /// level is none that is known and the process is to judge it.
    fn set_level(&mut self, session: SessionKey, level: &str) -> bool {
        let Some(rank) = severity(level) else { return true };
        self.sessions.entry(session).or_default().level = Some(rank);
        if self.sessions.len() == 1 || self.process_level.is_none_or(|told| rank < told) {
            self.process_level = Some(rank);
            return true;
        }
        false
    }

    /// `notifications/cancelled` of a session for its own request `client_id`.
    pub fn cancel(&mut self, session: SessionKey, client_id: &Bytes, now_ms: u64, out: &mut Vec<Out<S>>) {
        let Some(ticket) = self.by_client.get(&(session, client_id.clone())).copied() else {
            out.push(Out::Note(Note::Stray("cancellation")));
            return;
        };
        self.cancel_ticket(ticket, "the client cancelled the call", now_ms, out);
    }

    /// Cancels a call, running or waiting: by its client's word, or because a modern client hung up.
    pub fn cancel_ticket(&mut self, ticket: Ticket, reason: &str, now_ms: u64, out: &mut Vec<Out<S>>) {
        if !self.calls.contains_key(&ticket) {
            let at = self.waiting.iter().position(|waiting| waiting.request.ticket == ticket);
            if let Some(Waiting { request, .. }) = at.and_then(|at| self.waiting.remove(at)) {
                if let Some(session) = request.session {
                    self.by_client.remove(&(session, request.client_id.clone()));
                }
                out.push(finish_error(request.sink, &request.client_id, rpc::CALL_CANCELLED, reason));
            }
            return;
        }
        self.abandon(ticket, rpc::CALL_CANCELLED, reason, now_ms, out);
        self.admit(now_ms, out);
    }

    /// A notification of a session, other than `notifications/cancelled`.
    ///
    /// # Errors
    /// [`NotWaiting`] for progress on a request of the process that is not this session's, and for a
    /// cancellation, which [`Mux::cancel`] is for.
    pub fn notification(
        &mut self,
        session: SessionKey,
        body: &Bytes,
        envelope: &Envelope,
        out: &mut Vec<Out<S>>,
    ) -> Result<(), NotWaiting> {
        match &*envelope.method {
            // The gateway shook hands with the process itself.
            "notifications/initialized" => {}
            // Its `requestId` is a client's word; on the wire it would name the call of another session.
            "notifications/cancelled" => return Err(NotWaiting),
            "notifications/progress" => {
                let token = envelope.inner.progress_token.clone().ok_or(NotWaiting)?;
                let reverse = self.owned_reverse(session, &body[token.clone()]).ok_or(NotWaiting)?;
                let server_token = reverse.server_token.as_ref().ok_or(NotWaiting)?;
                out.push(Out::Write(Message::splice(body, &[(token, server_token)])));
            }
            _ => out.push(Out::Write(Message::from(body.clone()))),
        }
        Ok(())
    }

    /// A session's answer to a request of the process.
    ///
    /// # Errors
    /// [`NotWaiting`] when no request with this id waits for this session.
    pub fn answer(
        &mut self,
        session: SessionKey,
        body: &Bytes,
        envelope: &Envelope,
        out: &mut Vec<Out<S>>,
    ) -> Result<(), NotWaiting> {
        let span = envelope.id.clone().ok_or(NotWaiting)?;
        self.owned_reverse(session, &body[span.clone()]).ok_or(NotWaiting)?;
        let id = reverse_id(&body[span.clone()]).ok_or(NotWaiting)?;
        let reverse = self.reverse.remove(&id).ok_or(NotWaiting)?;
        out.push(Out::Write(Message::splice(body, &[(span, &reverse.server_id)])));
        Ok(())
    }

    fn owned_reverse(&self, session: SessionKey, id: &[u8]) -> Option<&super::Reverse> {
        self.reverse.get(&reverse_id(id)?).filter(|reverse| reverse.session == session)
    }

    /// The requests of the process that wait for a session's answer, and that session.
    pub fn asked(&self) -> impl Iterator<Item = (ReverseId, SessionKey)> + '_ {
        self.reverse.iter().map(|(id, reverse)| (*id, reverse.session))
    }

    /// A request of the process did not reach its session, or will not be answered by it.
    pub fn undeliverable(&mut self, id: ReverseId, reason: &str, out: &mut Vec<Out<S>>) {
        if let Some(reverse) = self.reverse.remove(&id) {
            out.push(Out::Reply(rpc::error(Some(&reverse.server_id), rpc::METHOD_NOT_FOUND, reason)));
        }
    }

    /// Whether any session but this one is attached; for what may only go to a process had alone.
    pub fn shared_with_others(&self, session: SessionKey) -> bool {
        self.sessions.keys().any(|key| *key != session)
    }

    /// The level below which a session does not want log messages.
    pub(super) fn level_of(&self, session: SessionKey) -> Option<u8> {
        self.sessions.get(&session).and_then(|session: &Session| session.level)
    }
}

/// A reverse id as text: exactly the digits that were sent out.
fn reverse_id(text: &[u8]) -> Option<ReverseId> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
