//! JavaScript, in QuickJS: `execute-code` and `execute-function`.
//!
//! **What is kept apart.** A new realm for each task costs a quarter of a millisecond, many times what a small task
//! does. So tasks follow each other in one realm in which there is nothing to leave anything in: every built-in
//! object and the global object are frozen before the first (`realm.js`), what keeps state of its own is taken away,
//! and code is strict, so that an attempt to change them is an error. A realm serves until a task leaves something
//! running, is stopped, runs out of memory, or [`USES`] are over; then there is another, of another QuickJS runtime.
//! A task that wants to change built-ins or to make globals says `"fresh": true` and has a realm for itself.
//!
//! Code reaches nothing but its arguments, `console` and what the language has: no files, network, timers, modules.

mod realm;

use std::rc::Rc;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::job::{Job, Outcome, error, payload};
use crate::protocol::{ErrorKind, Task, TaskError};
use realm::{Call, Realm};

/// So many tasks, one after another, in one realm.
const USES: u32 = 10_000;

/// `execute-code`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Code<'p> {
    /// The body of an async function: `return` gives the result.
    code: String,
    /// What it finds as `args`.
    #[serde(borrow, default)]
    args: Option<&'p RawValue>,
    #[serde(default)]
    language: Option<String>,
    /// Whether it has a realm for itself.
    #[serde(default)]
    fresh: bool,
}

/// `execute-function`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Function<'p> {
    /// An expression that is a function.
    function: String,
    /// Its arguments.
    #[serde(borrow, default)]
    args: Vec<&'p RawValue>,
    #[serde(default)]
    language: Option<String>,
    /// Whether it has a realm for itself.
    #[serde(default)]
    fresh: bool,
}

/// Has a realm ready for the next task.
#[derive(Default)]
pub(crate) struct Engine {
    realm: Option<Realm>,
}

impl Engine {
    /// Makes the next realm while there is nothing else to do.
    pub(crate) fn prepare(&mut self) {
        if self.realm.is_none() {
            self.realm = Realm::new(true).ok();
        }
    }

    pub(crate) fn code(&mut self, job: &Rc<Job>, task: &Task) -> Outcome {
        let asked: Code<'_> = payload(task)?;
        is_javascript(asked.language.as_deref())?;
        let args = asked.args.map(RawValue::get);
        self.run(job, asked.fresh, &Call { source: &asked.code, is_function: false, args })
    }

    pub(crate) fn function(&mut self, job: &Rc<Job>, task: &Task) -> Outcome {
        let asked: Function<'_> = payload(task)?;
        is_javascript(asked.language.as_deref())?;
        let mut args = String::from("[");
        for (at, arg) in asked.args.iter().enumerate() {
            if at > 0 {
                args.push(',');
            }
            args.push_str(arg.get());
        }
        args.push(']');
        self.run(job, asked.fresh, &Call { source: &asked.function, is_function: true, args: Some(&args) })
    }

    fn run(&mut self, job: &Rc<Job>, fresh: bool, call: &Call<'_>) -> Outcome {
        let kept = if fresh { None } else { self.realm.take() };
        let realm = match kept {
            Some(realm) => Ok(realm),
            None => Realm::new(!fresh),
        };
        let mut realm = realm.map_err(|why| {
            error(ErrorKind::Failed, &format!("no room for JavaScript in this worker: {why}"))
        })?;
        let (outcome, is_clean) = realm.run(job, call);
        if !fresh && is_clean && realm.uses() < USES {
            self.realm = Some(realm);
        }
        outcome
    }
}

fn is_javascript(language: Option<&str>) -> Result<(), TaskError> {
    match language {
        None | Some("javascript") => Ok(()),
        Some(other) => Err(error(
            ErrorKind::Invalid,
            &format!(
                "this worker knows `language` javascript, not {other}; Python and Node have workers of their own"
            ),
        )),
    }
}
