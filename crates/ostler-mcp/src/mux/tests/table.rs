//! Rules of the mux one at a time.

use super::*;

/// A call without progress token whose id is `id`; its sink is its ticket.
pub(super) fn plain_request(ticket: Ticket, session: Option<SessionKey>, id: &str) -> Request<u64> {
    Request {
        ticket,
        session,
        client_id: Bytes::copy_from_slice(id.as_bytes()),
        client_token: None,
        kind: CallKind::Call,
        special: None,
        wants_log: false,
        wire: Message::from(format!(r#"{{"jsonrpc":"2.0","id":{ticket},"method":"tools/call"}}"#)),
        sink: ticket,
    }
}

fn special(ticket: Ticket, session: SessionKey, special: Special) -> Request<u64> {
    Request { special: Some(special), ..plain_request(ticket, Some(session), &ticket.to_string()) }
}

/// A mux with these sessions attached, whose outcomes are read as short words.
struct Scene {
    mux: Mux<u64>,
    now: u64,
}

impl Scene {
    fn new(settings: Settings, sessions: std::ops::RangeInclusive<SessionKey>) -> Self {
        let mut mux = Mux::new(settings);
        sessions.for_each(|session| mux.attach(session));
        Self { mux, now: 0 }
    }

    fn does(&mut self, act: impl FnOnce(&mut Mux<u64>, u64, &mut Vec<Out<u64>>)) -> Vec<String> {
        let mut out = Vec::new();
        act(&mut self.mux, self.now, &mut out);
        let mut heard: Vec<String> = out.into_iter().map(word).collect();
        heard.sort();
        heard
    }

    fn request(&mut self, request: Request<u64>) -> Vec<String> {
        self.does(|mux, now, out| mux.request(request, now, out))
    }

    fn line(&mut self, line: &str) -> Vec<String> {
        self.does(|mux, now, out| mux.server_line(Bytes::copy_from_slice(line.as_bytes()), now, out))
    }

    fn answer(&mut self, session: SessionKey, id: ReverseId) -> Result<Vec<String>, NotWaiting> {
        let body = Bytes::from(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#));
        let mut out = Vec::new();
        self.mux.answer(session, &body, &Envelope::parse(&body).unwrap(), &mut out)?;
        Ok(out.into_iter().map(word).collect())
    }

    fn expire(&mut self, now: u64) -> Vec<String> {
        self.now = now;
        self.does(|mux, now, out| mux.expire(now, out))
    }
}

/// What was said, in a word or two: where it goes, and the method, or the id with `=` or the error's code.
fn word(out: Out<u64>) -> String {
    let text = |message: &Message| {
        let bytes = message.to_bytes();
        let envelope = Envelope::parse(&bytes).unwrap();
        let id = String::from_utf8_lossy(envelope.id_text(&bytes).unwrap_or_default()).into_owned();
        match envelope.kind {
            Kind::Error(code) => format!("{id}!{code}"),
            Kind::Result => format!("{id}="),
            Kind::Request | Kind::Notification => envelope.method.into(),
        }
    };
    match out {
        Out::Write(message) | Out::Reply(message) => format!("write {}", text(&message)),
        Out::Finish(sink, answer) => format!("finish {sink} {}", text(&answer.message)),
        Out::Emit { ticket, message, .. } => format!("emit {ticket} {}", text(&message)),
        Out::ToSession { session, message, .. } => format!("session {session} {}", text(&message)),
        Out::Note(note) => {
            let debug = format!("{note:?}");
            format!("note {}", debug.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default())
        }
    }
}

const NONE: [&str; 0] = [];

const SAMPLING: &str = r#"{"jsonrpc":"2.0","id":"s","method":"sampling/createMessage","params":{}}"#;

fn auto() -> Settings {
    settings(Era::Legacy, false, Concurrency::Auto, false)
}

fn concurrent() -> Settings {
    settings(Era::Legacy, false, Concurrency::Concurrent, false)
}

/// The ids of reverse requests of one generation, of `asks` requests.
fn reverse_ids(base: ReverseId, asks: u32) -> Vec<ReverseId> {
    let mut mux: Mux<u64> = Mux::new(Settings { reverse_base: base, ..auto() });
    mux.attach(1);
    let mut ids = Vec::new();
    for ask in 0..asks {
        let mut out = Vec::new();
        let line = format!(r#"{{"jsonrpc":"2.0","id":{ask},"method":"roots/list"}}"#);
        mux.server_line(Bytes::from(line), 0, &mut out);
        ids.extend(out.iter().filter_map(|out| match out {
            Out::ToSession { reverse, .. } => *reverse,
            _ => None,
        }));
    }
    ids
}

#[test]
fn ids_of_reverse_requests_do_not_come_again_in_a_later_generation() {
    let mut ids: Vec<ReverseId> =
        (1..5u64).flat_map(|generation| reverse_ids(generation << 32, 200)).collect();
    assert_eq!(ids.len(), 800);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 800);
}

#[test]
fn an_answer_meant_for_an_earlier_generation_is_refused() {
    let old = reverse_ids(1 << 32, 1)[0];
    let mut scene = Scene::new(Settings { reverse_base: 2 << 32, ..auto() }, 1..=1);
    scene.line(SAMPLING);
    assert_eq!(scene.answer(1, old), Err(NotWaiting));
    assert_eq!(scene.answer(1, (2 << 32) + 1).unwrap(), ["write \"s\"="]);
}

#[test]
fn more_reverse_requests_than_the_limit_are_refused() {
    assert_eq!(reverse_ids(0, 300).len(), Mux::<u64>::MAX_REVERSE);
}

#[test]
fn what_a_call_asked_may_be_answered_after_the_call() {
    // `roots/list` belongs to no call, yet comes while one runs.
    let mut scene = Scene::new(auto(), 1..=1);
    scene.request(plain_request(1, Some(1), "1"));
    assert_eq!(scene.line(SAMPLING), ["emit 1 sampling/createMessage", "note AsksBack"]);
    assert_eq!(scene.line(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#), ["finish 1 1="]);
    assert_eq!(scene.answer(1, (7 << 32) + 1).unwrap(), ["write \"s\"="]);
}

#[test]
fn of_two_calls_of_a_session_the_end_of_one_does_not_end_what_the_other_asked() {
    for cancelled in [false, true] {
        let mut scene = Scene::new(auto(), 1..=1);
        scene.request(plain_request(1, Some(1), "1"));
        scene.request(plain_request(2, Some(1), "2"));
        scene.line(SAMPLING);
        if cancelled {
            let heard = scene.does(|mux, now, out| mux.cancel(1, &"1".into(), now, out));
            assert_eq!(heard, ["finish 1 1!-31004", "write notifications/cancelled"]);
        } else {
            scene.line(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
        }
        assert_eq!(scene.answer(1, (7 << 32) + 1).unwrap(), ["write \"s\"="], "cancelled: {cancelled}");
    }
}

#[test]
fn a_reverse_request_nobody_answers_is_refused_in_the_end() {
    let mut scene = Scene::new(auto(), 1..=1);
    scene.line(SAMPLING);
    assert_eq!(scene.mux.next_expiry_ms(), Some(5_000));
    assert_eq!(scene.expire(4_999), NONE);
    assert_eq!(scene.expire(5_000), ["write \"s\"!-32601"]);
    assert_eq!(scene.answer(1, (7 << 32) + 1), Err(NotWaiting));
}

#[test]
fn a_late_answer_is_none_to_the_next_request_with_the_same_id() {
    let mut scene = Scene::new(concurrent(), 1..=2);
    scene.request(plain_request(1, Some(1), "1"));
    scene.line(SAMPLING);
    scene.line(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
    scene.request(plain_request(2, Some(2), "1"));
    assert_eq!(scene.line(SAMPLING), ["emit 2 sampling/createMessage"]);
    assert_eq!(scene.answer(1, (7 << 32) + 1), Err(NotWaiting));
    assert_eq!(scene.answer(2, (7 << 32) + 2).unwrap(), ["write \"s\"="]);
}

#[test]
fn a_call_waits_for_its_turn_no_longer_than_a_call_may_last() {
    let mut scene = Scene::new(settings(Era::Legacy, false, Concurrency::Serial, true), 1..=2);
    assert_eq!(scene.request(plain_request(1, Some(1), "1")), ["write tools/call"]);
    assert_eq!(scene.request(plain_request(2, Some(2), "1")), NONE);
    let ended = ["finish 1 1!-31003", "note LimitReached", "write notifications/cancelled"];
    assert_eq!(scene.expire(1_000), ended);
    assert_eq!(scene.mux.next_expiry_ms(), Some(5_000));
    assert_eq!(scene.expire(5_000), ["finish 2 1!-31003", "note LimitReached"]);
    assert_eq!(scene.mux.open_calls(), 0);
}

#[test]
fn progress_does_not_keep_a_cancelled_call_lingering_for_ever() {
    let mut scene = Scene::new(settings(Era::Legacy, false, Concurrency::Serial, true), 1..=2);
    scene.request(plain_request(1, Some(1), "1"));
    scene.does(|mux, now, out| mux.cancel(1, &"1".into(), now, out));
    let progress =
        r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1}}"#;
    let over = 5_000 + Mux::<u64>::LINGER_MS;
    for now in (0..over).step_by(1_000) {
        scene.expire(now);
        scene.line(progress);
    }
    scene.request(plain_request(2, Some(2), "1"));
    assert_eq!(scene.expire(over), ["write tools/call"]);
}

#[test]
fn a_request_that_comes_after_its_session_ended_is_refused_and_keeps_nothing() {
    let mut scene = Scene::new(auto(), 1..=1);
    scene.does(|mux, now, out| mux.detach(1, now, out));
    for (ticket, what) in
        [Special::SetLevel("info".into()), Special::Subscribe("x".into())].into_iter().enumerate()
    {
        let ticket = ticket as u64;
        assert_eq!(scene.request(special(ticket, 1, what)), [format!("finish {ticket} {ticket}!-31004")]);
    }
    assert!(scene.mux.is_idle());
}

#[test]
fn a_session_cannot_cancel_on_the_wire() {
    let mut scene = Scene::new(auto(), 1..=2);
    scene.request(plain_request(1, Some(1), "1"));
    let body = Bytes::from_static(
        br#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#,
    );
    let mut out = Vec::new();
    let result = scene.mux.notification(2, &body, &Envelope::parse(&body).unwrap(), &mut out);
    assert_eq!((result, out.len()), (Err(NotWaiting), 0));
}

#[test]
fn pings_are_answered_without_the_other_side() {
    let mut scene = Scene::new(settings(Era::Legacy, false, Concurrency::Serial, true), 1..=2);
    scene.request(plain_request(1, Some(1), "1"));
    assert_eq!(scene.request(special(2, 2, Special::Ping)), ["finish 2 2="]);
    assert_eq!(scene.line(r#"{"jsonrpc":"2.0","id":"p","method":"ping"}"#), ["write \"p\"="]);
    let mut scene = Scene::new(concurrent(), 1..=2);
    assert_eq!(scene.request(special(2, 2, Special::Ping)), ["write tools/call"]);
}

#[test]
fn a_resource_update_reaches_those_who_subscribed_and_no_others() {
    let mut scene = Scene::new(auto(), 1..=3);
    let updated = r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"x"}}"#;
    assert_eq!(scene.line(updated), ["note NotificationDropped"]);
    scene.request(special(1, 1, Special::Subscribe("x".into())));
    scene.request(special(2, 2, Special::Subscribe("x".into())));
    scene.request(special(3, 3, Special::Subscribe("y".into())));
    let both = ["session 1 notifications/resources/updated", "session 2 notifications/resources/updated"];
    assert_eq!(scene.line(updated), both);
    // The process is told only when nobody is left.
    assert_eq!(scene.request(special(4, 1, Special::Unsubscribe("x".into()))), ["finish 4 4="]);
    assert_eq!(scene.line(updated), both[1..]);
    let left = scene.does(|mux, now, out| mux.detach(2, now, out));
    let gone = ["finish 2 2!-31004", "write notifications/cancelled", "write resources/unsubscribe"];
    assert_eq!(left, gone);
    assert_eq!(scene.line(updated), ["note NotificationDropped"]);
    assert_eq!(scene.request(special(5, 3, Special::Unsubscribe("y".into()))), ["write tools/call"]);
}

#[test]
fn a_log_level_is_one_session_s_own() {
    let mut scene = Scene::new(concurrent(), 1..=2);
    assert_eq!(scene.request(special(1, 1, Special::SetLevel("debug".into()))), ["write tools/call"]);
    scene.line(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
    // The process says enough already; telling it would silence it for session 1.
    assert_eq!(scene.request(special(2, 2, Special::SetLevel("error".into()))), ["finish 2 2="]);
    let log = |level: &str| {
        format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{"level":"{level}","data":1}}}}"#
        )
    };
    scene.request(plain_request(3, Some(2), "3"));
    assert_eq!(scene.line(&log("info")), NONE);
    assert_eq!(scene.line(&log("error")), ["emit 3 notifications/message"]);
    scene.request(plain_request(4, Some(1), "4"));
    assert_eq!(scene.line(&log("error")), ["note NotificationDropped"]);
    scene.line(r#"{"jsonrpc":"2.0","id":3,"result":{}}"#);
    assert_eq!(scene.line(&log("debug")), ["emit 4 notifications/message"]);
}

#[test]
fn members_that_differ_in_case_alone_cannot_name_the_call_of_another_session() {
    let mut scene = Scene::new(concurrent(), 1..=2);
    scene.request(plain_request(1, Some(1), "1"));
    scene.request(plain_request(2, Some(2), "1"));
    assert_eq!(scene.line(r#"{"jsonrpc":"2.0","id":1,"Id":2,"result":{}}"#), ["note Rubbish"]);
}

#[test]
fn an_id_does_not_keep_the_message_it_came_in() {
    let body = Bytes::from(format!(r#"{{"jsonrpc":"2.0","id":"a","pad":"{}"}}"#, "x".repeat(1 << 20)));
    let mut request = plain_request(1, Some(1), "");
    (request.client_id, request.client_token) = (body.slice(21..24), Some(body.slice(21..24)));
    let mut scene = Scene::new(auto(), 1..=1);
    scene.request(request);
    assert!(body.is_unique());

    let pad = "x".repeat(1 << 20);
    let line = Bytes::from(format!(
        r#"{{"jsonrpc":"2.0","id":"a","method":"roots/list","params":{{"pad":"{pad}"}}}}"#
    ));
    scene.does(|mux, now, out| mux.server_line(line.clone(), now, out));
    assert!(line.is_unique());
}

#[test]
fn a_cancelled_list_makes_nobody_wait_and_a_cancelled_call_does() {
    for (method, lingers) in [("tools/list", false), ("tools/call", true)] {
        let settings = Settings { concurrency: Concurrency::Serial, ..concurrent() };
        let mut scene = Scene::new(settings, 1..=2);
        scene.request(Request { kind: CallKind::of(method), ..plain_request(1, Some(1), "1") });
        scene.does(|mux, now, out| mux.detach(1, now, out));
        let next = scene.request(plain_request(2, Some(2), "1"));
        assert_eq!(next.is_empty(), lingers, "{method}: {next:?}");
    }
}
