//! Whatever a worker is sent, it answers or ends with a clear error.

use std::process::Command;

use ostler_worker::protocol::{FromWorker, Level};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::driver::{Driver, builtin};
use crate::libraries::{node, python};

/// Lines that are nearly right, and some that are not at all.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        Just("null".to_owned()),
        Just("-1".to_owned()),
        Just("1e999".to_owned()),
        Just("4294967296".to_owned()),
        Just("\"\\ud800\"".to_owned()),
        Just("\"x\"".to_owned()),
        Just("{}".to_owned()),
        Just("[[1]]".to_owned()),
        Just("{\"code\":5}".to_owned()),
        Just("{\"code\":\"return\"}".to_owned()),
        Just("{\"argv\":[\"true\"]}".to_owned()),
        Just("{\"time_ms\":-5}".to_owned()),
        Just("[".repeat(3_000) + &"]".repeat(3_000)),
        "[0-9]{5000}",
    ];
    let msg = prop_oneof![Just("task"), Just("cancel"), Just("result"), Just("toString"), Just("__proto__")];
    let kind =
        prop_oneof![Just("\"execute-code\""), Just("\"execute-function\""), Just("\"__proto__\""), Just("7")];
    let member =
        prop_oneof![Just("id"), Just("attempt"), Just("payload"), Just("limits"), Just("allow"), Just("msg")];
    let bent = (
        msg,
        kind,
        value.clone(),
        prop::collection::vec((member, value), 0..3),
        any::<prop::sample::Index>(),
    );
    let bent = bent.prop_map(|(msg, kind, payload, more, cut)| {
        let mut line =
            format!("{{\"msg\":\"{msg}\",\"id\":\"t5\",\"attempt\":1,\"type\":{kind},\"payload\":{payload}");
        for (name, value) in more {
            line.push_str(&format!(",\"{name}\":{value}"));
        }
        line.push('}');
        let mut line = line.into_bytes();
        if cut.index(4) == 0 {
            line.truncate(cut.index(line.len()));
        }
        line
    });
    let any = prop::collection::vec(any::<u8>(), 0..60);
    prop_oneof![4 => bent, 1 => any].prop_map(|mut line: Vec<u8>| {
        line.retain(|byte| *byte != b'\n');
        line
    })
}

fn survives(command: impl Fn() -> Command, probe: &str, rounds: usize) {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut driver = Driver::start(command());
    let mut ends = 0;
    for round in 0..rounds {
        let line = line().new_tree(&mut runner).unwrap().current();
        driver.write(&line);
        // Refused while the line before is still being worked on.
        let is_alive = loop {
            let asked = format!(
                "{{\"msg\":\"task\",\"id\":\"probe\",\"attempt\":{round},\"type\":\"execute-code\",\"payload\":{{\"code\":\"{probe}\"}}}}"
            );
            driver.write(asked.as_bytes());
            match answered(&mut driver) {
                Some(true) => break true,
                Some(false) => {}
                None => break false,
            }
        };
        if !is_alive {
            let shown = String::from_utf8_lossy(&line[..line.len().min(300)]).into_owned();
            assert!(driver.logs.iter().any(|(level, _)| *level == Level::Error), "no word of why: {shown}");
            assert_eq!(driver.exit().code(), Some(2), "{shown}");
            driver = Driver::start(command());
            ends += 1;
        }
    }
    assert!(ends > 0 && ends < rounds, "{ends} of {rounds} ended it");
}

/// Whether the probe was done; none: the worker has ended.
fn answered(driver: &mut Driver) -> Option<bool> {
    loop {
        match driver.next()? {
            FromWorker::Result(result) if result.id == "probe" => return Some(result.ok),
            _ => {}
        }
    }
}

#[test]
fn the_built_in_worker_survives() {
    survives(builtin, "return 1", 300);
}

#[test]
fn the_python_worker_survives() {
    let Some(_) = python("stock") else { return };
    survives(|| python("stock").unwrap(), "return 1", 25);
}

#[test]
fn the_node_worker_survives() {
    let Some(_) = node("stock.mjs") else { return };
    survives(|| node("stock.mjs").unwrap(), "return 1", 15);
}
