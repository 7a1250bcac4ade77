//! The loop of the worker that is built in.

use ostler_worker::protocol::{ErrorKind, FromWorker, MAX_LINE, VERSION};
use serde_json::json;

use crate::driver::Driver;

#[test]
fn it_says_what_it_does() {
    let driver = Driver::builtin();
    assert_eq!((driver.ready.protocol, driver.ready.at_once), (VERSION, 1));
    assert_eq!(driver.ready.types, ["execute-code", "execute-function", "http-request", "shell-command"]);
}

#[test]
fn it_ends_when_it_is_told_to_and_when_nobody_is_there() {
    let mut driver = Driver::builtin();
    driver.write(br#"{"msg":"shutdown"}"#);
    assert!(driver.exit().success());
    let mut driver = Driver::builtin();
    driver.close();
    assert!(driver.exit().success());
    // While it is busy, it is not to answer first: there is nobody who hears it.
    let mut driver = Driver::builtin();
    driver.begin("execute-code", &json!({"code": "console.log('begun'); for (;;);"}), &json!({}));
    driver.until_log("begun");
    driver.close();
    assert!(driver.exit().success());
}

#[test]
fn a_shutdown_lets_the_task_finish() {
    let mut driver = Driver::builtin();
    let code = "console.log('begun'); for (let i = 0; i < 3e6; i++); return 'done'";
    driver.begin("execute-code", &json!({"code": code}), &json!({}));
    driver.write(br#"{"msg":"shutdown"}"#);
    assert_eq!(driver.ended().value(), "done");
    assert!(driver.exit().success());
}

#[test]
fn while_it_is_busy_it_is_alive_and_does_no_other() {
    let mut driver = Driver::builtin();
    driver.begin("execute-code", &json!({"code": "console.log('begun'); for (;;);"}), &json!({}));
    driver.until_log("begun");
    driver.write(br#"{"msg":"task","id":"t2","attempt":7,"type":"execute-code","payload":{"code":""}}"#);
    driver.until(|message| match message {
        FromWorker::Result(result) if result.id == "t2" && result.attempt == 7 => {
            let error = result.error.as_ref().unwrap();
            assert!(error.kind == ErrorKind::Refused && error.retry, "{error:?}");
            Some(())
        }
        _ => None,
    });
    driver.until(|message| {
        matches!(message, FromWorker::Heartbeat(beat) if beat.id == "t1-00000001").then_some(())
    });
    // That of another attempt is not meant.
    driver.write(br#"{"msg":"cancel","id":"t1-00000001","attempt":99}"#);
    driver.cancel();
    driver.ended().is(ErrorKind::Cancelled, "");
    // One that comes late is passed over.
    driver.cancel();
    assert_eq!(driver.run("execute-code", &json!({"code": "return 1"})).value(), 1);
}

#[test]
fn what_it_does_not_know_is_passed_over_and_what_makes_no_sense_ends_it() {
    let mut driver = Driver::builtin();
    driver.write(br#"{"msg":"of-a-later-version","id":[]}"#);
    driver.write(b"   ");
    driver.run("no-such-type", &json!({})).is(ErrorKind::Invalid, "`no-such-type`");
    driver.write(br#"{"msg":"task","id":"t1-00000001","attempt":2,"type":"x"}"#);
    let why = driver.until(|message| match message {
        FromWorker::Result(result) if result.attempt == 2 => result.error.clone(),
        _ => None,
    });
    assert!(why.kind == ErrorKind::Invalid && why.message.contains("payload"), "{why:?}");
    driver.write(b"rubbish");
    let said = driver.until(|message| match message {
        FromWorker::Log(log) => Some(log.text.clone()),
        _ => None,
    });
    assert!(said.contains("this worker ends"), "{said}");
    assert_eq!(driver.exit().code(), Some(2));
}

#[test]
fn a_line_without_end_ends_it() {
    let mut driver = Driver::builtin();
    driver.write(&vec![b'x'; MAX_LINE + 1]);
    assert_eq!(driver.exit().code(), Some(2));
}

#[test]
fn many_messages_of_one_task_are_bounded() {
    let mut driver = Driver::builtin();
    let code = "for (let i = 0; i < 5000; i++) console.log('x'.repeat(100000))";
    driver.run("execute-code", &json!({"code": code}));
    assert_eq!(driver.logs.len(), 1_001);
    assert!(driver.logs.iter().all(|(_, text)| text.len() <= 16 << 10));
    assert!(driver.logs[1_000].1.contains("4000 more messages were dropped"), "{:?}", driver.logs[1_000]);
}
