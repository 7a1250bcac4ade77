//! Many calls of tools in one go: for Ostler's own MCP server, the management API and the command line alike.
//!
//! A run has no task of its own: it is a future, and whoever drops it cancels every call that runs. What a call is, in
//! either era, is [`ostler_supervisor::tool_call`]'s.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use ostler_api::{RunCall, RunError, RunMany, RunProgress, RunReport, RunResult};
use ostler_mcp::{on_one_line, rpc};
use ostler_supervisor::session::{Busy, NoSession};
use ostler_supervisor::tool_call::Progress;
use ostler_supervisor::{CallFailed, Caller, Session, ToolCall, ToolResult};

use crate::Gateway;
use crate::mcp::check_key;

/// Most calls of one run.
pub(crate) const MAX_CALLS: usize = 100;
/// Calls of a concurrent run at the same time, where it does not say how many.
pub(crate) const AT_ONCE: u32 = 4;
/// Most of them.
pub(crate) const MAX_AT_ONCE: u32 = 16;
/// Most bytes of results of one run: they are held until the last call is over.
pub(crate) const MAX_RESULTS: usize = 16 << 20;
/// How much further a run has to be for that to be told, while no call ends.
const STEP: f64 = 0.01;
/// The most that a call which is not over counts.
const ALMOST: f64 = 0.99;

/// Who hears how far a run is. Not waited for.
pub(crate) type Tell = Box<dyn FnMut(RunProgress) + Send>;

/// Why a run cannot be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum NoRun {
    /// What is asked for makes no sense, or is more than may be.
    #[error("{0}")]
    Invalid(String),
    /// The session that it is of.
    #[error(transparent)]
    Session(#[from] NoSession),
}

/// A run that may be: what is asked for makes sense, and its session is there.
pub(crate) struct Run {
    calls: Vec<RunCall>,
    at_once: usize,
    /// The key of its session, and the session, which is not idle while it runs.
    home: Option<(String, Busy)>,
}

impl Run {
    /// What `caller` asks for. Nothing is called yet.
    ///
    /// # Errors
    /// [`NoRun`], with the limit or the reason.
    pub(crate) fn of(gateway: &Gateway, caller: &Caller, wanted: RunMany) -> Result<Self, NoRun> {
        let at_once =
            check(&wanted).inspect_err(|_| gateway.supervisor.events().count("run_many refused"))?;
        let home = match wanted.session_id {
            Some(key) => {
                let busy = gateway.supervisor.session(caller, &key)?.busy();
                Some((key, busy))
            }
            None => None,
        };
        Ok(Self { calls: wanted.calls, at_once, home })
    }

    /// Makes the calls and waits for all. One that fails stops no other; the end of the run's session stops all.
    pub(crate) async fn make(self, gateway: &Gateway, caller: &Caller, tell: Tell) -> RunReport {
        let Self { calls, at_once, home } = self;
        let (key, busy) = home.unzip();
        let started = Instant::now();
        let tally = Tally::new(&calls, tell);
        let calls = calls.into_iter().map(|call| named(call, key.as_ref())).enumerate();
        let calls = stream::iter(calls).map(|(index, call)| one(gateway, caller, index, call, &tally));
        tokio::select! {
            // First the end of the session: no call may begin in another of the same name.
            biased;
            () = ended(busy.as_ref().map(Busy::session)) => {}
            () = calls.buffer_unordered(at_once).collect() => {}
        }
        let why =
            busy.as_ref().map(|busy| format!("the session {} of this run ended", busy.session().handle));
        tally.report(&why.unwrap_or_default(), millis(started))
    }
}

/// How many calls run at the same time.
fn check(wanted: &RunMany) -> Result<usize, NoRun> {
    let invalid = |why: String| Err(NoRun::Invalid(why));
    if !(1..=MAX_CALLS).contains(&wanted.calls.len()) {
        return invalid(format!("`calls` holds {} calls, and may hold 1 to {MAX_CALLS}", wanted.calls.len()));
    }
    let sessions = wanted.calls.iter().map(|call| &call.session_id).chain([&wanted.session_id]);
    if let Some(why) = sessions.flatten().find_map(|key| check_key(key).err()) {
        return invalid(format!("`session_id`: {why}"));
    }
    let is_object = |call: &RunCall| call.arguments.as_ref().is_none_or(|raw| raw.get().starts_with('{'));
    if let Some(index) = wanted.calls.iter().position(|call| !is_object(call)) {
        return invalid(format!("the `arguments` of call {index} must be an object"));
    }
    match (wanted.concurrent, wanted.limit) {
        (false, None) => Ok(1),
        (false, Some(_)) => invalid("`limit` is of use with `concurrent` only".to_owned()),
        (true, None) => Ok(AT_ONCE as usize),
        (true, Some(limit @ 1..=MAX_AT_ONCE)) => Ok(limit as usize),
        (true, Some(limit)) => invalid(format!("`limit` is {limit}, and may be 1 to {MAX_AT_ONCE}")),
    }
}

async fn ended(session: Option<&Session>) {
    match session {
        Some(session) => session.until_ended().await,
        None => std::future::pending().await,
    }
}

/// A call as the supervisor makes it; of the run's session where it names none.
fn named(call: RunCall, key: Option<&String>) -> ToolCall {
    let RunCall { server, tool, arguments, session_id } = call;
    ToolCall { server, tool, arguments, session: session_id.or_else(|| key.cloned()) }
}

async fn one(gateway: &Gateway, caller: &Caller, index: usize, call: ToolCall, tally: &Tally) {
    let started = Instant::now();
    tally.begin(index);
    let mut heard = |progress: Progress| tally.heard(index, &progress);
    let result = call.run(&gateway.supervisor, caller, &mut heard).await;
    let refused = tally.end(index, result, millis(started));
    if refused {
        gateway.supervisor.events().count("run_many.results");
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// What has become of the calls so far.
struct Tally(Mutex<State>);

struct State {
    results: Vec<RunResult>,
    /// What the tools answered. Kept as it came until all is over: it counts against `gateway.body_memory` so long.
    answers: Vec<Bytes>,
    /// How much of each call is over, from 0 to 1.
    parts: Vec<f64>,
    done: u32,
    /// Bytes of results held.
    bytes: usize,
    told: f64,
    tell: Tell,
}

impl Tally {
    fn new(calls: &[RunCall], tell: Tell) -> Self {
        let blank = |(index, call): (usize, &RunCall)| RunResult {
            index: index as u32,
            server: call.server.clone(),
            tool: call.tool.clone(),
            ok: false,
            begun: false,
            result: None,
            error: None,
            took_ms: 0,
        };
        Self(Mutex::new(State {
            results: calls.iter().enumerate().map(blank).collect(),
            answers: vec![Bytes::new(); calls.len()],
            parts: vec![0.0; calls.len()],
            done: 0,
            bytes: 0,
            told: 0.0,
            tell,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, index: usize) {
        self.lock().results[index].begun = true;
    }

    /// A server says how far a call is.
    fn heard(&self, index: usize, progress: &Progress) {
        let mut state = self.lock();
        let part = progress.total.filter(|total| *total > 0.0).map_or(0.0, |total| progress.progress / total);
        // What a server says may be anything, and is never less than before.
        let before = state.parts[index];
        state.parts[index] = if part.is_finite() { part.clamp(before, ALMOST) } else { before };
        let said = progress.message.as_deref().unwrap_or("goes on");
        let text = format!("{}: {said}", state.name(index));
        state.tell(text, STEP);
    }

    /// A call is over; whether its result was too much to be held.
    fn end(&self, index: usize, result: Result<ToolResult, CallFailed>, took_ms: u64) -> bool {
        let mut state = self.lock();
        let mut refused = false;
        let result = result.and_then(|answer| {
            refused = state.bytes + answer.result.len() > MAX_RESULTS;
            if refused {
                return Err(too_large(answer.result.len()));
            }
            Ok(answer)
        });
        state.results[index].took_ms = took_ms;
        let how = match result {
            Ok(answer) => {
                state.bytes += answer.result.len();
                state.results[index].ok = !answer.is_error;
                state.answers[index] = answer.result;
                if answer.is_error { "says that it failed".to_owned() } else { "went well".to_owned() }
            }
            Err(failed) => {
                let how = format!("failed: {failed}");
                state.results[index].error = Some(error(failed));
                how
            }
        };
        state.parts[index] = 1.0;
        state.done += 1;
        let text = format!(
            "{} of {} done: {} {how}, {took_ms} ms",
            state.done,
            state.results.len(),
            state.name(index)
        );
        state.tell(text, 0.0);
        refused
    }

    /// The account. What is not over is cancelled, for this reason.
    fn report(self, why: &str, took_ms: u64) -> RunReport {
        let state = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let State { mut results, answers, parts, .. } = state;
        for ((result, answer), part) in results.iter_mut().zip(answers).zip(parts) {
            if part < 1.0 {
                let what = if result.begun { "cancelled" } else { "not begun" };
                result.error = Some(error(CallFailed::new(rpc::CALL_CANCELLED, format!("{what}: {why}"))));
            } else if result.error.is_none() {
                // It may go out as a server-sent event, which is one line.
                match serde_json::from_slice(&on_one_line(answer)) {
                    Ok(raw) => result.result = Some(raw),
                    Err(why) => {
                        let why = format!("its result cannot be read: {why}");
                        result.ok = false;
                        result.error = Some(error(CallFailed::new(rpc::INVALID_REQUEST, why)));
                    }
                }
            }
        }
        let ok = results.iter().filter(|result| result.ok).count();
        RunReport { ok: ok as u32, failed: (results.len() - ok) as u32, took_ms, results }
    }
}

impl State {
    fn name(&self, index: usize) -> String {
        let RunResult { server, tool, .. } = &self.results[index];
        format!("call {index} ({server}/{tool})")
    }

    /// Tells how far the run is, where that is more than `step` further than was told before.
    fn tell(&mut self, message: String, step: f64) {
        let progress: f64 = self.parts.iter().sum();
        if progress > self.told + step {
            self.told = progress;
            let total = self.results.len() as u32;
            (self.tell)(RunProgress { progress, total, done: self.done, message });
        }
    }
}

fn too_large(bytes: usize) -> CallFailed {
    let why = format!(
        "its result of {bytes} bytes is dropped: the results of one run are at most {MAX_RESULTS} bytes together; \
         call the tool by itself"
    );
    CallFailed::new(rpc::LIMIT_REACHED, why)
}

fn error(failed: CallFailed) -> RunError {
    RunError { code: failed.code, message: failed.message, data: failed.data }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::value::RawValue;

    use super::*;

    fn calls(count: usize) -> Vec<RunCall> {
        let call =
            RunCall { server: "s".to_owned(), tool: "t".to_owned(), arguments: None, session_id: None };
        vec![call; count]
    }

    fn refused(wanted: &RunMany) -> String {
        check(wanted).expect_err("it is refused").to_string()
    }

    #[test]
    fn limits_are_named_where_they_are_passed() {
        let run = |count| RunMany { calls: calls(count), ..RunMany::default() };
        assert_eq!(check(&run(100)), Ok(1));
        assert!(refused(&run(0)).contains("1 to 100") && refused(&run(101)).contains("1 to 100"));
        let at_once = |limit| RunMany { concurrent: true, limit, ..run(1) };
        assert_eq!(check(&at_once(None)), Ok(4));
        assert_eq!(check(&at_once(Some(16))), Ok(16));
        assert!(refused(&at_once(Some(17))).contains("1 to 16") && check(&at_once(Some(0))).is_err());
        assert!(refused(&RunMany { limit: Some(2), ..run(1) }).contains("`concurrent`"));
        let spaced = RunMany { session_id: Some("a b".to_owned()), ..run(1) };
        assert!(refused(&spaced).contains("visible ASCII"));
        let mut listed = run(2);
        listed.calls[1].arguments = Some(RawValue::from_string("[]".to_owned()).expect("JSON"));
        assert!(refused(&listed).contains("call 1"));
    }

    fn answer(text: &str) -> Result<ToolResult, CallFailed> {
        Ok(ToolResult { result: text.to_owned().into(), is_error: false })
    }

    #[test]
    fn progress_only_grows_and_results_stand_in_order() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        let tally = Tally::new(&calls(3), Box::new(move |p| tell.lock().expect("sound").push(p.progress)));
        let says = |progress: f64, total| Progress { progress, total, message: None };
        tally.begin(0);
        tally.begin(2);
        for progress in [says(1.0, Some(2.0)), says(0.0, Some(2.0)), says(9.0, Some(2.0)), says(1.0, None)] {
            tally.heard(0, &progress);
        }
        tally.heard(2, &says(f64::MAX, Some(f64::MIN_POSITIVE)));
        assert!(!tally.end(2, answer("{\"c\":1}"), 5));
        assert!(tally.end(0, answer(&format!("\"{}\"", "x".repeat(MAX_RESULTS))), 5));
        let report = tally.report("it ended", 9);
        assert_eq!(*told.lock().expect("sound"), [0.5, 0.99, 1.99, 2.0]);
        assert_eq!((report.ok, report.failed), (1, 2));
        let message = |index: usize| report.results[index].error.as_ref().expect("an error").message.clone();
        assert!(message(0).contains("16777216 bytes together"));
        assert_eq!(message(1), "not begun: it ended");
        assert_eq!(report.results[2].result.as_ref().expect("a result").get(), "{\"c\":1}");
    }
}
