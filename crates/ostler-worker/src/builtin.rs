//! The worker that is built in: reads a task, does it, answers.

use std::cell::RefCell;
use std::process::ExitCode;
use std::rc::Rc;

use crate::http::Http;
use crate::job::{Job, Outcome, error};
use crate::js::Engine;
use crate::protocol::{
    ErrorKind, FromWorker, HEARTBEAT_MS, Level, Ready, Task, TaskResult, ToWorker, VERSION,
};
use crate::shell;
use crate::wire::{Ended, Wire};

/// The types of tasks it does.
const TYPES: [&str; 4] = ["execute-code", "execute-function", "http-request", "shell-command"];
/// Exit status after a break of the protocol's rules.
const BROKE_RULES: u8 = 2;
/// Exit status when what a task left behind could not be ended.
const LEFTOVERS: u8 = 3;

/// Does tasks from standard input until it is closed or a `shutdown` comes.
///
/// To be called in a process of its own, before it has children or threads: everything that a command leaves behind
/// becomes a child of this process, and is ended.
#[must_use]
pub fn run() -> ExitCode {
    let wire = Rc::new(RefCell::new(Wire::new()));
    let mut worker = Worker { engine: Engine::default(), http: Http::default() };
    if let Err(why) = shell::adopt_descendants() {
        wire.borrow_mut().log(
            Level::Warn,
            &format!(
                "what a command leaves behind cannot be found here ({why}); only its process group is ended"
            ),
        );
    }
    wire.borrow_mut().send(&FromWorker::Ready(ready()));
    loop {
        worker.engine.prepare();
        let next = wire.borrow_mut().next();
        match next {
            Some(ToWorker::Task(task)) => {
                let job = Rc::new(Job::new(Rc::clone(&wire), &task));
                let outcome = worker.perform(&job, &task);
                job.settle();
                let left = outcome.as_ref().is_err_and(|error| error.message.starts_with(shell::LEFT));
                wire.borrow_mut().send(&FromWorker::Result(result(&job, outcome)));
                if left {
                    return ExitCode::from(LEFTOVERS);
                }
                if job.is_last() {
                    return ExitCode::SUCCESS;
                }
            }
            Some(ToWorker::Shutdown) => return ExitCode::SUCCESS,
            Some(ToWorker::Cancel(_) | ToWorker::Unknown(_)) => {}
            None => return farewell(&mut wire.borrow_mut()),
        }
    }
}

fn ready() -> Ready {
    Ready {
        protocol: VERSION,
        name: concat!("ostler worker ", env!("CARGO_PKG_VERSION")).to_owned(),
        types: TYPES.map(str::to_owned).to_vec(),
        at_once: 1,
        heartbeat_ms: HEARTBEAT_MS,
    }
}

fn result(job: &Job, outcome: Outcome) -> TaskResult {
    let about = job.about().clone();
    let ok = outcome.is_ok();
    let (value, error) = match outcome {
        Ok(value) => (Some(value), None),
        Err(error) => (None, Some(error)),
    };
    TaskResult { id: about.id, attempt: about.attempt, ok, value, error }
}

fn farewell(wire: &mut Wire) -> ExitCode {
    let Some(Ended::Rules(why)) = wire.ended().cloned() else { return ExitCode::SUCCESS };
    wire.log(Level::Error, &format!("this worker ends: it was sent {why}"));
    ExitCode::from(BROKE_RULES)
}

struct Worker {
    engine: Engine,
    http: Http,
}

impl Worker {
    fn perform(&mut self, job: &Rc<Job>, task: &Task) -> Outcome {
        match task.kind.as_str() {
            "execute-code" => self.engine.code(job, task),
            "execute-function" => self.engine.function(job, task),
            "http-request" => self.http.request(job, task),
            "shell-command" => shell::command(job, task),
            other => Err(error(
                ErrorKind::Invalid,
                &format!("this worker does no `{other}`; it does {}", TYPES.join(", ")),
            )),
        }
    }
}
