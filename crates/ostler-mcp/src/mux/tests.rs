//! The mux against a model: a plain account of the same promises, kept with lists and no shortcuts, driven with
//! random interleavings of sessions that all use the same ids and progress tokens.
//!
//! After each step everything the mux said is compared with what the model says is due, byte for byte, so that a
//! message that goes astray, comes twice, is lost or is changed makes the step fail.

mod model;
mod streams;
mod table;
mod texts;

use bytes::Bytes;
use ostler_domain::{Concurrency, Era};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use self::model::World;
use super::*;
use crate::envelope::Envelope;

/// How the process of a run is shared.
fn settings(era: Era, exclusive: bool, concurrency: Concurrency, asks_back: bool) -> Settings {
    Settings {
        era,
        exclusive,
        concurrency,
        asks_back,
        streams_per_call: false,
        max_calls: 12,
        call_idle_ms: 1_000,
        call_max_ms: 5_000,
        reverse_base: 7 << 32,
    }
}

/// A step of a run; the numbers choose among what there is at that moment.
#[derive(Clone, Debug)]
struct Step {
    what: What,
    a: usize,
    b: usize,
    c: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Request,
    Listen,
    Answer,
    StrayAnswer,
    Progress,
    Cancel,
    CancelForeign,
    HangUp,
    Ask,
    TakeBack,
    Reply,
    ReplyForeign,
    ReplyForged,
    ReplyProgress,
    Notify,
    Log,
    SubscriptionNote,
    EndListen,
    Attach,
    Detach,
    Undeliverable,
    Time,
    FailAll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let weighted = [
        (30, What::Request),
        (4, What::Listen),
        (18, What::Answer),
        (1, What::StrayAnswer),
        (10, What::Progress),
        (4, What::Cancel),
        (2, What::CancelForeign),
        (3, What::HangUp),
        (10, What::Ask),
        (2, What::TakeBack),
        (6, What::Reply),
        (3, What::ReplyForeign),
        (2, What::ReplyForged),
        (4, What::ReplyProgress),
        (4, What::Notify),
        (4, What::Log),
        (3, What::SubscriptionNote),
        (1, What::EndListen),
        (4, What::Attach),
        (3, What::Detach),
        (1, What::Undeliverable),
        (5, What::Time),
        (1, What::FailAll),
    ];
    let weighted: Vec<_> = weighted.into_iter().map(|(weight, what)| (weight, Just(what))).collect();
    let what = proptest::strategy::Union::new_weighted(weighted);
    let step = (what, 0usize..60, 0usize..60, 0usize..60).prop_map(|(what, a, b, c)| Step { what, a, b, c });
    proptest::collection::vec(step, 1..150)
}

/// Runs the steps, then ends everything in the way `ending` chooses, and looks whether anything is left.
fn run(settings: Settings, sessions: usize, steps: &[Step], ending: usize) -> Result<(), TestCaseError> {
    let mut world = World::new(settings, sessions);
    for step in steps {
        world.step(step).map_err(|fail| in_step(step, fail))?;
    }
    world.end(ending)
}

fn in_step(step: &Step, fail: TestCaseError) -> TestCaseError {
    TestCaseError::fail(format!("in {step:?}: {fail}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_legacy_process_with_calls_that_overlap(steps in steps(), sessions in 1usize..5, ending in 0usize..3) {
        run(settings(Era::Legacy, false, Concurrency::Concurrent, false), sessions, &steps, ending)?;
    }

    #[test]
    fn a_legacy_process_with_one_call_at_a_time(steps in steps(), sessions in 1usize..5, ending in 0usize..3) {
        run(settings(Era::Legacy, false, Concurrency::Serial, false), sessions, &steps, ending)?;
    }

    #[test]
    fn a_legacy_process_that_is_found_to_ask_back(steps in steps(), sessions in 1usize..5, ending in 0usize..3) {
        run(settings(Era::Legacy, false, Concurrency::Auto, false), sessions, &steps, ending)?;
    }

    #[test]
    fn a_legacy_process_known_to_ask_back(steps in steps(), sessions in 2usize..5, ending in 0usize..3) {
        run(settings(Era::Legacy, false, Concurrency::Auto, true), sessions, &steps, ending)?;
    }

    #[test]
    fn a_legacy_process_of_one_session_alone(steps in steps(), ending in 0usize..3) {
        run(settings(Era::Legacy, true, Concurrency::Auto, false), 1, &steps, ending)?;
    }

    #[test]
    fn a_modern_process(steps in steps(), sessions in 1usize..5, ending in 0usize..3) {
        run(settings(Era::Modern, false, Concurrency::Auto, false), sessions, &steps, ending)?;
    }

    /// Whatever a process writes, nothing panics, and no session hears of it but through its own calls.
    #[test]
    fn a_process_may_write_anything(
        lines in proptest::collection::vec(wild_line(), 1..40), calls in 0u64..4, legacy in any::<bool>(),
    ) {
        let era = if legacy { Era::Legacy } else { Era::Modern };
        let mut mux: Mux<u64> = Mux::new(settings(era, false, Concurrency::Auto, false));
        let mut out = Vec::new();
        for session in 1..3 {
            mux.attach(session);
        }
        for ticket in 1..=calls {
            let session = legacy.then_some(ticket % 2 + 1);
            mux.request(table::plain_request(ticket, session, &format!("\"c{ticket}\"")), 0, &mut out);
        }
        let mut ended = 0;
        for line in lines {
            out.clear();
            mux.server_line(Bytes::from(line), 1, &mut out);
            for heard in &out {
                match heard {
                    Out::Finish(sink, answer) => {
                        ended += 1;
                        let text = answer.message.to_bytes();
                        let envelope = Envelope::parse(&text).unwrap();
                        let expected = format!("\"c{sink}\"");
                        prop_assert_eq!(envelope.id_text(&text), Some(expected.as_bytes()));
                    }
                    Out::Emit { ticket, .. } => prop_assert!(mux.sink(*ticket).is_some()),
                    Out::ToSession { session, .. } => prop_assert!((1..3).contains(session)),
                    Out::Write(message) | Out::Reply(message) => {
                        Envelope::parse(&message.to_bytes()).unwrap();
                    }
                    Out::Note(_) => {}
                }
            }
        }
        prop_assert_eq!(mux.open_calls() + ended, usize::try_from(calls).unwrap());
        mux.fail_all("over", &mut Vec::new());
        mux.detach(1, 2, &mut Vec::new());
        mux.detach(2, 2, &mut Vec::new());
        prop_assert!(mux.is_idle());
    }
}

/// Arbitrary bytes, and messages of a process with some of their bytes changed.
fn wild_line() -> impl Strategy<Value = Vec<u8>> {
    const SEEDS: [&str; 9] = [
        r#"{"jsonrpc":"2.0","id":1,"result":{"_meta":{"io.modelcontextprotocol/subscriptionId":1}}}"#,
        r#"{"jsonrpc":"2.0","id":2,"error":{"code":-32601,"message":"no"}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":0.5}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#,
        r#"{"jsonrpc":"2.0","id":"s1","method":"sampling/createMessage","params":{"_meta":{"progressToken":9}}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"file:///x"}}"#,
        r#"{"jsonrpc":"2.0","method":"x","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":2}}}"#,
        r#"{"jsonrpc":"2.0","id":3,"method":"ping"}"#,
    ];
    let changed = (0..SEEDS.len(), proptest::collection::vec((any::<u8>(), 0usize..120, 0u8..4), 0..4))
        .prop_map(|(seed, changes)| changes.into_iter().fold(SEEDS[seed].as_bytes().to_vec(), change));
    prop_oneof![1 => proptest::collection::vec(any::<u8>(), 0..80), 4 => changed]
}

fn change(mut line: Vec<u8>, (byte, at, how): (u8, usize, u8)) -> Vec<u8> {
    let at = at.min(line.len().saturating_sub(1));
    match how {
        0 if !line.is_empty() => line[at] = byte,
        1 => line.insert(at, byte),
        2 if !line.is_empty() => drop(line.remove(at)),
        _ => line.truncate(at),
    }
    line
}
