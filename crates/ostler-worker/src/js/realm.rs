//! One realm: a QuickJS runtime with its one context.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rquickjs::function::MutFn;
use rquickjs::promise::PromiseState;
use rquickjs::{Array, Context, Ctx, Error, Function, Object, Persistent, Promise, Runtime, Value};

use crate::job::{Job, Outcome, error, traced};
use crate::protocol::{ErrorKind, Level, TaskError};

/// Bytes of the stack that code may use; well below what a thread has.
const STACK: usize = 512 << 10;
/// A task that took longer may have left much behind: it is collected before the next.
const LONG: Duration = Duration::from_millis(1);
/// Short ones leave little each: collected once in so many.
const COLLECT: u32 = 256;

/// Bytes beside a task's own for the sources that are kept compiled: 64 of them of a kilobyte at most, and some ten bytes for each
/// of theirs.
const KEPT: usize = 1 << 20;

/// What is to be run.
pub(super) struct Call<'c> {
    pub(super) source: &'c str,
    /// An expression that is a function, whose arguments are `args`; else the body of one.
    pub(super) is_function: bool,
    /// As JSON.
    pub(super) args: Option<&'c str>,
}

/// The functions that `realm.js` gives.
struct Entry {
    compile_code: Persistent<Function<'static>>,
    compile_function: Persistent<Function<'static>>,
    call: Persistent<Function<'static>>,
    apply: Persistent<Function<'static>>,
    describe: Persistent<Function<'static>>,
}

pub(super) struct Realm {
    // In this order: what is held of a context is to be gone before it.
    entry: Entry,
    context: Context,
    runtime: Runtime,
    /// The task that is running.
    job: Rc<RefCell<Option<Rc<Job>>>>,
    /// Bytes in use before the first task.
    base: usize,
    uses: u32,
}

impl Realm {
    /// A realm; `shared`: for one task after another.
    pub(super) fn new(shared: bool) -> rquickjs::Result<Self> {
        let runtime = Runtime::new()?;
        runtime.set_max_stack_size(STACK);
        let context = Context::full(&runtime)?;
        let job: Rc<RefCell<Option<Rc<Job>>>> = Rc::default();
        let sink = Rc::clone(&job);
        let entry = context.with(|ctx| Entry::make(&ctx, sink, shared))?;
        runtime.run_gc();
        let asked = Rc::clone(&job);
        runtime.set_interrupt_handler(Some(Box::new(move || {
            asked.borrow().as_ref().is_some_and(|job| job.check().is_some())
        })));
        let base = usize::try_from(runtime.memory_usage().malloc_size).unwrap_or(0);
        Ok(Self { entry, context, runtime, job, base, uses: 0 })
    }

    /// How many tasks ran in it.
    pub(super) fn uses(&self) -> u32 {
        self.uses
    }

    /// Runs a task; also says whether the next may run here.
    pub(super) fn run(&mut self, job: &Rc<Job>, call: &Call<'_>) -> (Outcome, bool) {
        self.uses += 1;
        let begun = Instant::now();
        let memory = usize::try_from(job.memory).unwrap_or(usize::MAX);
        self.runtime.set_memory_limit(self.base.saturating_add(memory).saturating_add(KEPT));
        *self.job.borrow_mut() = Some(Rc::clone(job));
        let outcome = self.context.with(|ctx| self.entry.run(&ctx, job, call));
        // What it left to be done later is not done in another task's time.
        let is_over = !self.runtime.is_job_pending();
        *self.job.borrow_mut() = None;
        if begun.elapsed() > LONG || self.uses.is_multiple_of(COLLECT) {
            self.runtime.run_gc();
        }
        let outcome = match job.check() {
            // Whatever came of it: it did not end by itself.
            Some(stop) => Err(job.stopped(stop)),
            None => outcome,
        };
        let is_out_of_memory = outcome.as_ref().is_err_and(|error| error.kind == ErrorKind::Memory);
        (outcome, is_over && job.check().is_none() && !is_out_of_memory)
    }
}

impl Entry {
    fn make(ctx: &Ctx<'_>, job: Rc<RefCell<Option<Rc<Job>>>>, shared: bool) -> rquickjs::Result<Self> {
        let host = Function::new(
            ctx.clone(),
            MutFn::new(move |level: u32, text: String| {
                let level = match level {
                    0 => Level::Debug,
                    1 => Level::Info,
                    2 => Level::Warn,
                    _ => Level::Error,
                };
                if let Some(job) = job.borrow().as_ref() {
                    job.log(level, &text);
                }
            }),
        )?;
        let begin: Function<'_> = ctx.eval(include_str!("realm.js"))?;
        let made: Object<'_> = begin.call((host, shared))?;
        let keep = |name: &str| -> rquickjs::Result<Persistent<Function<'static>>> {
            Ok(Persistent::save(ctx, made.get::<_, Function<'_>>(name)?))
        };
        Ok(Self {
            compile_code: keep("compileCode")?,
            compile_function: keep("compileFunction")?,
            call: keep("call")?,
            apply: keep("apply")?,
            describe: keep("describe")?,
        })
    }

    fn run(&self, ctx: &Ctx<'_>, job: &Job, call: &Call<'_>) -> Outcome {
        let (compile, start) = if call.is_function {
            (&self.compile_function, &self.apply)
        } else {
            (&self.compile_code, &self.call)
        };
        let compiled = compile.clone().restore(ctx).and_then(|compile| compile.call((call.source,)));
        let compiled: Function<'_> = compiled.map_err(|why| self.thrown(ctx, &why, ErrorKind::Invalid))?;
        let started =
            start.clone().restore(ctx).and_then(|start| start.call::<_, Value<'_>>((compiled, call.args)));
        let started = started.map_err(|why| self.thrown(ctx, &why, ErrorKind::Failed))?;
        let value = match started.as_promise() {
            Some(promise) => self.settled(ctx, promise)?,
            None => started,
        };
        let json = ctx.json_stringify(value).map_err(|why| self.thrown(ctx, &why, ErrorKind::Output))?;
        let json = json.map_or_else(|| Ok("null".to_owned()), |json| json.to_string());
        job.value(json.map_err(|why| self.thrown(ctx, &why, ErrorKind::Output))?)
    }

    /// What a promise comes to, once all that it waits for is done.
    fn settled<'js>(&self, ctx: &Ctx<'js>, promise: &Promise<'js>) -> Result<Value<'js>, TaskError> {
        while promise.state() == PromiseState::Pending {
            if !ctx.execute_pending_job() {
                return Err(error(
                    ErrorKind::Failed,
                    "the promise that was returned can never be settled: nothing is left to run \
                     (there are no timers and no input here)",
                ));
            }
        }
        let result = promise.result::<Value<'js>>().unwrap_or(Err(Error::WouldBlock));
        result.map_err(|why| self.thrown(ctx, &why, ErrorKind::Failed))
    }

    /// An error that JavaScript threw, as the kind that it is where it was thrown.
    fn thrown(&self, ctx: &Ctx<'_>, why: &Error, kind: ErrorKind) -> TaskError {
        if !matches!(why, Error::Exception) {
            let is_memory = matches!(why, Error::Allocation);
            return error(if is_memory { ErrorKind::Memory } else { kind }, &why.to_string());
        }
        let thrown = ctx.catch();
        // QuickJS throws this where there is no room even for an error; code hardly ever does.
        if thrown.is_null() {
            return error(ErrorKind::Memory, &format!("{MEMORY}, or it threw null"));
        }
        let described =
            self.describe.clone().restore(ctx).and_then(|describe| describe.call::<_, Array<'_>>((thrown,)));
        let part = |at: usize| described.as_ref().ok().and_then(|parts| parts.get::<String>(at).ok());
        let (name, message) = (part(0).unwrap_or_default(), part(1).unwrap_or_default());
        if name == "InternalError" && message == "out of memory" {
            return error(ErrorKind::Memory, MEMORY);
        }
        let text = match (name.as_str(), message.as_str()) {
            ("", "") => "something was thrown that cannot be shown".to_owned(),
            ("", message) => message.to_owned(),
            (name, "") => name.to_owned(),
            (name, message) => format!("{name}: {message}"),
        };
        traced(kind, &text, &place(&part(2).unwrap_or_default()))
    }
}

/// A trace in which lines are those of the task's source, and without what is ours.
fn place(trace: &str) -> String {
    let mut placed = String::new();
    for line in trace.lines().filter(|line| !line.contains("(eval_script:")) {
        let known = line.split_once("<input>:").and_then(|(before, after)| {
            let (number, rest) = after.split_once(':')?;
            let number: u32 = number.parse().ok()?;
            Some(format!("{before}line {}:{rest}", number.saturating_sub(BEFORE).max(1)))
        });
        placed.push_str(known.as_deref().unwrap_or(line));
        placed.push('\n');
    }
    placed
}

/// Lines that QuickJS sees before the source of `execute-code`: the function's head, and `"use strict"`.
const BEFORE: u32 = 3;
const MEMORY: &str = "it needs more memory than it may have (`limits.memory`)";
