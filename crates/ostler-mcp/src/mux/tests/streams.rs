//! Over a transport where each call has a stream of its own, the stream says whose a message is.

use super::*;

const ASK: &str = r#"{"jsonrpc":"2.0","id":"q","method":"sampling/createMessage","params":{}}"#;
const CHANGED: &str = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;

/// Two sessions with a running call each: tickets 1 and 2.
fn two_calls() -> Mux<Ticket> {
    let mut mux = Mux::new(settings(Era::Legacy, false, Concurrency::Auto, false));
    let mut out = Vec::new();
    for ticket in [1, 2] {
        mux.attach(ticket * 10);
        let request = Request {
            ticket,
            session: Some(ticket * 10),
            client_id: Bytes::from_static(b"\"same\""),
            client_token: None,
            kind: CallKind::Call,
            special: None,
            wants_log: false,
            wire: Message::from(format!("call {ticket}")),
            sink: ticket,
        };
        mux.request(request, 0, &mut out);
    }
    assert_eq!(out.iter().filter(|out| matches!(out, Out::Write(_))).count(), 2, "both run at once");
    mux
}

fn on_stream(mux: &mut Mux<Ticket>, of: Ticket, message: &str) -> Vec<Out<Ticket>> {
    let mut out = Vec::new();
    mux.server_message(of, Bytes::copy_from_slice(message.as_bytes()), 1, &mut out);
    out
}

#[test]
fn what_comes_on_a_calls_stream_is_that_calls() {
    let mut mux = two_calls();
    for (of, message) in [(2, ASK), (1, CHANGED), (2, CHANGED)] {
        let out = on_stream(&mut mux, of, message);
        assert!(matches!(out[..], [Out::Emit { ticket, .. }] if ticket == of), "{out:?}");
    }
    assert!(!mux.serial(), "its calls may still overlap");
    // The same without a stream is nobody's.
    let mut out = Vec::new();
    mux.server_line(Bytes::from_static(CHANGED.as_bytes()), 1, &mut out);
    assert!(matches!(out[..], [Out::Note(Note::NotificationDropped { .. })]), "{out:?}");
}

#[test]
fn what_comes_beside_the_streams_of_calls_is_nobodys_even_while_one_call_runs() {
    for streams_per_call in [false, true] {
        let mut mux = two_calls();
        mux.settings.streams_per_call = streams_per_call;
        // The first is answered; what the server said in it may come after that, on another stream.
        on_stream(&mut mux, 1, r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
        let log = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"of the first"}}"#;
        let mut out = Vec::new();
        mux.server_line(Bytes::copy_from_slice(log.as_bytes()), 1, &mut out);
        let dropped = matches!(out[..], [Out::Note(Note::NotificationDropped { .. })]);
        assert_eq!(dropped, streams_per_call, "{out:?}");
    }
}

#[test]
fn what_comes_beside_the_streams_of_calls_is_nobodys_for_a_while_after_a_session_left() {
    let mut mux = two_calls();
    mux.settings.streams_per_call = true;
    let heard = |mux: &mut Mux<Ticket>, now_ms| {
        let mut out = Vec::new();
        mux.server_line(Bytes::from_static(CHANGED.as_bytes()), now_ms, &mut out);
        matches!(out[..], [Out::Emit { .. } | Out::ToSession { .. }])
    };
    // Its call is answered, so nothing of it runs any more; what the server said in it may still be on its way.
    on_stream(&mut mux, 1, r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
    mux.detach(10, 100, &mut Vec::new());
    assert!(!heard(&mut mux, 101));
    assert!(!heard(&mut mux, 99 + Mux::<Ticket>::LINGER_MS));
    assert!(heard(&mut mux, 100 + Mux::<Ticket>::LINGER_MS));
    // One that comes back alone hears what may be its own, but nothing of the other that left before it did.
    on_stream(&mut mux, 2, r#"{"jsonrpc":"2.0","id":2,"result":{}}"#);
    mux.detach(20, 200_000, &mut Vec::new());
    mux.attach(20);
    assert!(heard(&mut mux, 200_001));
    mux.attach(10);
    mux.detach(10, 200_002, &mut Vec::new());
    mux.detach(20, 200_003, &mut Vec::new());
    mux.attach(20);
    assert!(!heard(&mut mux, 200_004));
    assert!(heard(&mut mux, 200_002 + Mux::<Ticket>::LINGER_MS));
}

#[test]
fn a_stream_answers_no_call_but_its_own() {
    let mut mux = two_calls();
    let out = on_stream(&mut mux, 1, r#"{"jsonrpc":"2.0","id":2,"result":{}}"#);
    assert!(matches!(out[..], [Out::Note(Note::Stray("answer"))]), "{out:?}");
    let out = on_stream(&mut mux, 2, r#"{"jsonrpc":"2.0","id":2,"result":{}}"#);
    assert!(matches!(out[..], [Out::Finish(2, _)]), "{out:?}");
}

#[test]
fn what_comes_on_the_stream_of_a_cancelled_call_is_nobodys() {
    let mut mux = two_calls();
    mux.cancel_ticket(1, "cancelled", 1, &mut Vec::new());
    let out = on_stream(&mut mux, 1, ASK);
    let [Out::Reply(refusal), Out::Note(Note::RequestRefused { reason, .. })] = &out[..] else {
        panic!("{out:?}")
    };
    assert!(String::from_utf8_lossy(&refusal.to_bytes()).contains("-32601"));
    assert_eq!(*reason, "its call was cancelled");
    let out = on_stream(&mut mux, 1, CHANGED);
    assert!(matches!(out[..], [Out::Note(Note::NotificationDropped { .. })]), "{out:?}");
}

#[test]
fn a_modern_log_line_on_a_calls_stream_goes_to_that_call_if_it_asked_for_any() {
    let mut mux = Mux::new(settings(Era::Modern, false, Concurrency::Auto, false));
    let mut out = Vec::new();
    for ticket in [1, 2, 3] {
        let request = Request {
            ticket,
            session: None,
            client_id: Bytes::from_static(b"1"),
            client_token: None,
            kind: CallKind::Call,
            special: None,
            wants_log: ticket != 3,
            wire: Message::from(String::new()),
            sink: ticket,
        };
        mux.request(request, 0, &mut out);
    }
    let log = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}"#;
    let out = on_stream(&mut mux, 2, log);
    assert!(matches!(out[..], [Out::Emit { ticket: 2, .. }]), "{out:?}");
    let out = on_stream(&mut mux, 3, log);
    assert!(matches!(out[..], [Out::Note(Note::NotificationDropped { .. })]), "{out:?}");
}
