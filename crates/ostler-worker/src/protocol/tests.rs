use proptest::prelude::*;

use super::*;

fn line_of(message: &FromWorker) -> String {
    let mut line = Vec::new();
    message.write(&mut line);
    String::from_utf8(line).unwrap()
}

#[test]
fn messages_are_as_documented() {
    let error =
        TaskError { kind: ErrorKind::Timeout, message: "m".into(), trace: None, detail: None, retry: true };
    let result = TaskResult { id: "t1".into(), attempt: 2, ok: false, value: None, error: Some(error) };
    assert_eq!(
        line_of(&FromWorker::Result(result)),
        "{\"msg\":\"result\",\"id\":\"t1\",\"attempt\":2,\"ok\":false,\
         \"error\":{\"kind\":\"timeout\",\"message\":\"m\",\"retry\":true}}\n"
    );
    let value = RawValue::from_string("{\"a\": 1.50}".into()).unwrap();
    let result = TaskResult { id: "t1".into(), attempt: 2, ok: true, value: Some(value), error: None };
    assert_eq!(
        line_of(&FromWorker::Result(result)),
        "{\"msg\":\"result\",\"id\":\"t1\",\"attempt\":2,\"ok\":true,\"value\":{\"a\": 1.50}}\n"
    );
    let task = br#"{"attempt":1,"x":[],"id":"t9","payload":{"n": 1e400},"type":"any","msg":"task"}"#;
    let Ok(ToWorker::Task(task)) = ToWorker::parse(task) else { panic!("a task") };
    assert_eq!((task.id.as_str(), task.kind.as_str(), task.payload.get()), ("t9", "any", "{\"n\": 1e400}"));
    assert_eq!((task.limits, task.allow), (Limits::default(), Allow::default()));
    let mut line = Vec::new();
    ToWorker::Shutdown.write(&mut line);
    assert!(matches!(ToWorker::parse(&line), Ok(ToWorker::Shutdown)));
}

#[test]
fn a_null_is_a_value() {
    let line = br#"{"msg":"result","id":"t1","attempt":1,"ok":true,"value":null}"#;
    let parsed = FromWorker::parse(line);
    let Ok(FromWorker::Result(TaskResult { value: Some(value), .. })) = parsed else { panic!("{parsed:?}") };
    assert_eq!(value.get(), "null");
}

#[test]
fn what_breaks_the_rules_is_told_apart() {
    let neither = br#"{"msg":"result","id":"t1","attempt":1,"ok":false,"value":1}"#;
    assert!(matches!(FromWorker::parse(neither), Err(ProtocolError::Neither)));
    let malformed = ToWorker::parse(br#"{"msg":"task","id":"t1","attempt":3,"type":7,"payload":0}"#);
    let Err(ProtocolError::Malformed { about: Some(about), .. }) = malformed else { panic!("{malformed:?}") };
    assert_eq!((about.id.as_str(), about.attempt), ("t1", 3));
    assert!(matches!(ToWorker::parse(b"[1]"), Err(ProtocolError::NoMessage(_))));
    assert!(matches!(ToWorker::parse(br#"{"msg":"later"}"#), Ok(ToWorker::Unknown(name)) if name == "later"));
}

#[test]
fn a_long_line_is_refused_before_it_is_held_whole() {
    let mut lines = Lines::default();
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..15 {
        lines.push(&piece);
        assert!(matches!(lines.next_line(), Ok(None)));
    }
    lines.push(&piece);
    assert!(matches!(lines.next_line(), Err(ProtocolError::TooLong)));
}

#[test]
fn a_cut_text_says_so() {
    assert_eq!(cut("aä", 2), ("a", 2));
    let long = "ä".repeat(100);
    let kept = bounded(&long, 100);
    assert!(kept.len() <= 100 && kept.contains("bytes left out"), "{kept}");
}

proptest! {
    #[test]
    fn lines_are_the_same_however_they_come(
        texts in prop::collection::vec("[a-z]{1,9}", 0..8),
        cuts in prop::collection::vec(1usize..7, 1..40),
    ) {
        let whole: Vec<u8> = texts.iter().flat_map(|text| format!("{text}\n\n").into_bytes()).collect();
        let mut lines = Lines::default();
        let mut got = Vec::new();
        let mut rest = &whole[..];
        for size in cuts.iter().cycle() {
            if rest.is_empty() { break }
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            rest = after;
            lines.push(piece);
            while let Some(line) = lines.next_line().unwrap() {
                got.push(String::from_utf8(line.to_vec()).unwrap());
            }
        }
        prop_assert_eq!(got, texts);
        prop_assert!(!lines.is_within_line());
    }

    #[test]
    fn no_line_is_too_strange(line in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = ToWorker::parse(&line);
        let _ = FromWorker::parse(&line);
    }
}
