//! One worker: from its start over its tasks to its end.

use std::sync::Arc;
use std::time::Duration;

use ostler_domain::event::Happening;
use ostler_domain::instance::State;
use ostler_domain::task::WorkerId;
use ostler_domain::task::worker::Event;
use ostler_worker::protocol::{
    Attempt, ErrorKind, FromWorker, Limits, Lines, Log, TaskResult, ToWorker, VERSION,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::Tasks;
use super::attempt::{self, Begun, Ending, Job};
use super::desk::Order;
use super::follow::TaskNews;
use super::lanes::{self, Staff};
use crate::instance::{InstanceHandle, Snapshot};
use crate::launch::{Input, Output};
use crate::log::Stream;

/// How long after its time, or after it was told to stop, an attempt may go on: then its worker is ended.
const GRACE: Duration = Duration::from_secs(2);
/// Longest for a worker to take a task that it was given.
const TAKES: Duration = Duration::from_secs(10);
/// Longest for a worker to begin, after what it is given to say that it is there.
const BEGINS: Duration = Duration::from_secs(30);
/// Longest for nothing of a worker to run, before its task goes on all the same.
const GONE: Duration = Duration::from_secs(10);
/// Read at once.
const CHUNK: usize = 64 << 10;

/// Runs a worker until it has no orders any more, or is of no use.
pub(super) async fn run(
    tasks: Arc<Tasks>,
    worker: WorkerId,
    handle: Arc<InstanceHandle>,
    mut orders: mpsc::Receiver<Order>,
    staff: Staff,
) {
    let desk = Bench { tasks: Arc::clone(&tasks), worker, handle: Arc::clone(&handle) };
    // Its pipes are closed after this: end of input is a farewell, for one that reads.
    let (why, left) = match desk.serve(&mut orders, &staff).await {
        Ok(()) => (tasks.why_retired(worker), None),
        Err(Useless { why, left }) => {
            desk.note_self(Happening::WorkerError { why: why.clone() });
            (why, left)
        }
    };
    orders.close();
    while let Ok(order) = orders.try_recv() {
        if let Order::Run { seq, attempt } = order {
            attempt::lost(&tasks, seq, attempt);
        }
    }
    handle.end(why.clone()).await;
    let gone = handle.until(|snapshot| snapshot.removed);
    if let Some(Left { seq, attempt, begun, ending }) = left {
        // While something of it may still run, its task is not tried again, and its project has no place back; but what the
        // kernel does not let go of holds up no task for ever.
        if timeout(GONE, gone).await.is_err() {
            tasks.core.events.count("tasks that went on while a worker would not end");
        }
        attempt::end(&tasks, seq, attempt, begun, ending).await;
    }
    handle.until(|snapshot| snapshot.removed).await;
    desk.note_self(Happening::WorkerTerminated { why });
    tasks.worker_gone(worker);
}

struct Bench {
    tasks: Arc<Tasks>,
    worker: WorkerId,
    handle: Arc<InstanceHandle>,
}

/// A worker that is of no use any more.
struct Useless {
    why: String,
    /// The attempt that it was about.
    left: Option<Left>,
}

/// An attempt that is over when nothing of its worker runs any more.
struct Left {
    seq: u64,
    attempt: u32,
    begun: Option<Begun>,
    ending: Ending,
}

impl From<String> for Useless {
    fn from(why: String) -> Self {
        Self { why, left: None }
    }
}

/// How far an attempt came.
enum Came {
    /// The worker answered, and may go on.
    ToItsEnd(Ending),
    /// The worker is of no use any more.
    NoFurther(Ending, String),
}

impl Bench {
    async fn serve(&self, orders: &mut mpsc::Receiver<Order>, staff: &Staff) -> Result<(), Useless> {
        let Staff::Workers(workers) = staff else { return Ok(()) };
        let mut wire = match self.greet(workers.ready).await {
            Ok(wire) => wire,
            Err(why) => {
                self.tasks.tell_crew(self.worker, Event::Failed { worker: self.worker, why: why.clone() });
                return Err(why.into());
            }
        };
        self.note_self(Happening::WorkerStarted);
        self.tasks.tell_crew(self.worker, Event::Ready(self.worker));
        loop {
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    None => {
                        let mut line = Vec::new();
                        ToWorker::Shutdown.write(&mut line);
                        // One that does not take it is ended all the same.
                        let _ = timeout(GRACE, wire.send(&line)).await;
                        return Ok(());
                    }
                    Some(Order::Run { seq, attempt }) => {
                        self.attempt(&mut wire, orders, (seq, attempt), workers.heartbeat).await?;
                    }
                    // It was over already.
                    Some(Order::Stop { .. }) => {}
                },
                said = wire.next() => match said {
                    Ok(FromWorker::Log(log)) => self.note(&log),
                    // Of an attempt that is over, or of a later protocol.
                    Ok(_) => {}
                    Err(broken) => {
                        // Nothing is given to it while it is looked into why.
                        self.tasks.worker_ends(self.worker);
                        return Err(self.died(&broken).await.1.into());
                    }
                },
            }
        }
    }

    /// Workers come and go by the thousand: of what is told of them not all is kept.
    fn note_self(&self, happening: Happening) {
        let id = &self.handle.id;
        self.tasks.core.events.record_seldom(id.server.as_str(), &id.to_string(), happening);
    }

    /// Waits until it has said that it is there.
    async fn greet(&self, patience: Duration) -> Result<Wire, String> {
        let over = |snapshot: &Snapshot| {
            snapshot.removed || matches!(snapshot.state, State::Failed { .. } | State::Broken { .. })
        };
        let begun = self.handle.until(|snapshot| snapshot.link.is_some() || over(snapshot));
        // A person may have stopped it.
        let Ok(snapshot) = timeout(patience + BEGINS, begun).await else {
            return Err("it did not begin".to_owned());
        };
        let Some(link) = snapshot.link.clone() else {
            return Err(snapshot.reason().unwrap_or_else(|| "it could not be started".to_owned()));
        };
        let Some((input, output)) = link.take() else { return Err("its pipes are gone".to_owned()) };
        let mut wire = Wire::new(input, output);
        let ready = match timeout(patience, wire.next()).await {
            Ok(Ok(FromWorker::Ready(ready))) if ready.protocol == VERSION => Ok(()),
            Ok(Ok(FromWorker::Ready(ready))) => Err(format!(
                "it speaks version {} of the worker protocol, and Ostler {VERSION}",
                ready.protocol
            )),
            Ok(Ok(_)) => Err("its first word was not `ready`".to_owned()),
            Ok(Err(broken)) => Err(self.died(&broken).await.1),
            Err(_) => Err(format!("it did not say `ready` within {patience:?} (workers.ready)")),
        };
        link.answered(ready.clone());
        ready.map(|()| wire)
    }

    async fn attempt(
        &self,
        wire: &mut Wire,
        orders: &mut mpsc::Receiver<Order>,
        (seq, attempt): (u64, u32),
        heartbeat: Duration,
    ) -> Result<(), Useless> {
        let name = self.handle.id.to_string();
        let Some(mut job) = attempt::begin_at_once(&self.tasks, seq, attempt, &name).await else {
            self.finished();
            return Ok(());
        };
        let begun = job.begun.take();
        let came = match self.make(wire, orders, &job, heartbeat).await {
            Came::ToItsEnd(Ending::Failure(failure))
                if is_forced(failure.kind) && !lanes::end_all_they_began(&job.record.lane) =>
            {
                let why =
                    format!("its task was ended by force, and may have left something: {}", failure.message);
                Came::NoFurther(Ending::Failure(failure), why)
            }
            came => came,
        };
        match came {
            Came::ToItsEnd(ending) => {
                // The next task need not wait for the disk.
                let tasks = Arc::clone(&self.tasks);
                tokio::spawn(async move { attempt::end(&tasks, seq, attempt, begun, ending).await });
                self.finished();
                Ok(())
            }
            Came::NoFurther(ending, why) => {
                self.tasks.tell_crew(self.worker, Event::Ending(self.worker));
                Err(Useless { why, left: Some(Left { seq, attempt, begun, ending }) })
            }
        }
    }

    async fn make(
        &self,
        wire: &mut Wire,
        orders: &mut mpsc::Receiver<Order>,
        job: &Job,
        heartbeat: Duration,
    ) -> Came {
        let about = Attempt { id: self.tasks.shown(job.record.id.seq), attempt: job.attempt };
        let mut line = Vec::new();
        self.task(job, &about).write(&mut line);
        match timeout(TAKES, wire.send(&line)).await {
            Ok(Ok(())) => {}
            Ok(Err(broken)) => {
                let (kind, why) = self.died(&broken.to_string()).await;
                return Came::NoFurther(Ending::failed(kind, why.clone(), true), why);
            }
            Err(_) => {
                let why = "it does not read its input".to_owned();
                return Came::NoFurther(Ending::failed(ErrorKind::Failed, why.clone(), true), why);
            }
        }
        let limit = Duration::from_millis(job.stored.timeout_ms);
        let mut deadline = Instant::now() + limit + GRACE;
        let mut silent = Instant::now() + heartbeat;
        let (mut open, mut stopped) = (true, false);
        let follow = self.tasks.follow_of(job.record.id.seq);
        loop {
            tokio::select! {
                // Before what it says: one that never stops to speak is ended all the same.
                biased;
                () = tokio::time::sleep_until(deadline) => {
                    let (kind, why) = match stopped {
                        true => (ErrorKind::Cancelled, "it did not stop when its task was cancelled".to_owned()),
                        false => (ErrorKind::Timeout, format!("it took longer than {limit:?} (timeout)")),
                    };
                    return Came::NoFurther(Ending::failed(kind, why.clone(), true), why);
                }
                order = orders.recv(), if open => match order {
                    None => open = false,
                    Some(Order::Stop { seq, attempt }) if seq == job.record.id.seq && attempt == job.attempt => {
                        let mut line = Vec::new();
                        ToWorker::Cancel(about.clone()).write(&mut line);
                        stopped = true;
                        deadline = deadline.min(Instant::now() + GRACE);
                        // One that does not take it is over its deadline soon.
                        let _ = timeout(GRACE, wire.send(&line)).await;
                    }
                    Some(_) => {}
                },
                said = wire.next() => {
                    silent = Instant::now() + heartbeat;
                    match said {
                        Ok(FromWorker::Result(result)) if is_about(&result.id, result.attempt, &about) => {
                            return Came::ToItsEnd(ending(result));
                        }
                        Ok(FromWorker::Progress(progress)) if is_about(&progress.id, progress.attempt, &about) => {
                            follow.say(TaskNews::Progress(progress));
                        }
                        Ok(FromWorker::Log(log)) => self.log(log, &about, &follow),
                        Ok(_) => {}
                        Err(broken) => {
                            let (kind, why) = self.died(&broken).await;
                            return Came::NoFurther(Ending::failed(kind, why.clone(), true), why);
                        }
                    }
                }
                // After what it may have said while the daemon did not listen.
                () = tokio::time::sleep_until(silent) => {
                    let why = format!("it said nothing for {heartbeat:?} (workers.heartbeat)");
                    return Came::NoFurther(Ending::failed(ErrorKind::Timeout, why.clone(), true), why);
                }
            }
        }
    }

    fn task(&self, job: &Job, about: &Attempt) -> ToWorker {
        ToWorker::Task(ostler_worker::protocol::Task {
            id: about.id.clone(),
            attempt: about.attempt,
            kind: job.record.kind.as_ref().to_owned(),
            payload: job.stored.payload.clone(),
            limits: Limits {
                time_ms: Some(job.stored.timeout_ms),
                memory: job.stored.memory,
                output: job.stored.output,
            },
            allow: self.tasks.allowed(job.record.lane.as_str(), job.record.project.as_str()),
        })
    }

    /// What it uses, and that it could take another.
    fn finished(&self) {
        if let Some(reading) = self.handle.reading() {
            let rss = reading.memory_bytes();
            self.tasks.tell_crew(self.worker, Event::Measured { worker: self.worker, rss });
        }
        self.tasks.tell_crew(self.worker, Event::Finished(self.worker));
    }

    fn log(&self, log: Log, about: &Attempt, follow: &super::follow::Follow) {
        match (&log.id, log.attempt) {
            (Some(id), Some(attempt)) if is_about(id, attempt, about) => {
                follow.write(attempt, log.level, log.text);
            }
            (None, _) => self.note(&log),
            _ => {}
        }
    }

    fn note(&self, log: &Log) {
        self.handle.log.push(Stream::Stdout, &log.text);
    }

    /// Why its process ended, or what it said that makes no sense.
    async fn died(&self, broken: &str) -> (ErrorKind, String) {
        let over = |snapshot: &Snapshot| snapshot.removed || snapshot.state.is_empty();
        let snapshot = match timeout(GRACE, self.handle.until(over)).await {
            Ok(snapshot) => snapshot,
            Err(_) => return (ErrorKind::Failed, format!("its worker {broken}")),
        };
        let why = snapshot.reason().unwrap_or_else(|| broken.to_owned());
        let kind = if why.contains("memory") { ErrorKind::Memory } else { ErrorKind::Failed };
        (kind, format!("its worker ended: {why}"))
    }
}

/// Whether a worker ended its task itself, before that was done.
fn is_forced(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Timeout | ErrorKind::Cancelled | ErrorKind::Memory)
}

fn is_about(id: &str, attempt: u32, about: &Attempt) -> bool {
    id == about.id && attempt == about.attempt
}

fn ending(result: TaskResult) -> Ending {
    match (result.value, result.error) {
        (Some(value), _) => Ending::Success(Box::<str>::from(value).into_string().into_bytes().into()),
        (None, Some(error)) => Ending::Failure(error),
        // The protocol's reader lets no such result through.
        (None, None) => Ending::failed(ErrorKind::Failed, "neither a value nor an error", false),
    }
}

/// A worker's pipes, and what has come of an unfinished line.
struct Wire {
    input: Input,
    output: Output,
    lines: Lines,
    chunk: Box<[u8]>,
}

impl Wire {
    fn new(input: Input, output: Output) -> Self {
        Self { input, output, lines: Lines::default(), chunk: vec![0; CHUNK].into_boxed_slice() }
    }

    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// What went wrong, in words that follow "the worker".
    async fn next(&mut self) -> Result<FromWorker, String> {
        loop {
            match self.lines.next_line() {
                Ok(Some(line)) => {
                    return FromWorker::parse(line).map_err(|error| format!("broke the protocol: {error}"));
                }
                Ok(None) => {}
                Err(error) => return Err(format!("broke the protocol: {error}")),
            }
            let read = self.output.readable().await.and_then(|()| self.output.try_read(&mut self.chunk));
            match read {
                Ok(0) => return Err("closed its output".to_owned()),
                Ok(read) => self.lines.push(&self.chunk[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(format!("cannot be heard: {error}")),
            }
        }
    }

    /// Gives it these bytes; waits until it has taken all.
    async fn send(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            self.input.writable().await?;
            match self.input.try_write_vectored(&[std::io::IoSlice::new(bytes)]) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
