//! What the event log is made of: typed happenings, each with a reason a person can act on.

use std::fmt;
use std::time::Duration;

use crate::alert::{Notify, Stage};
use crate::ids::{Generation, ServerName};
use crate::instance::{Cause, Exit, StopStep};
use crate::pressure::Level;
use crate::text::human;

/// How much a happening matters to somebody who did not ask.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// The ordinary course of things.
    Info,
    /// Something was refused, lost or had to be tried again.
    Warning,
    /// Something does not work and stays so until somebody acts or a slow retry succeeds.
    Error,
}

impl Severity {
    /// The word used in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Something worth telling: a transition of an instance, a refusal, a drop, a kill.
///
/// When it happened and to which instance, session or principal is the log's business; here is what and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Happening {
    /// A process is being started.
    Starting {
        /// Its generation.
        generation: Generation,
        /// Whether this is the single slow try of a broken instance.
        on_trial: bool,
    },
    /// The process runs; the handshake begins.
    Started {
        /// Its generation.
        generation: Generation,
        /// The leader's process id.
        pid: u32,
    },
    /// The handshake is done; calls are served.
    Ready {
        /// Time since the start was asked for.
        after: Duration,
    },
    /// The start did not work out: spawn or handshake failed or took too long.
    StartFailed {
        /// What happened.
        cause: Cause,
    },
    /// The leader of the tree ended.
    Exited {
        /// How.
        exit: Exit,
        /// Whether it was being stopped: then it may end in any way.
        asked: bool,
    },
    /// It will be started again.
    RestartScheduled {
        /// After this delay.
        in_: Duration,
        /// Which failure in a row this answers, from 1.
        attempt: u32,
        /// What happened.
        cause: Cause,
    },
    /// Somebody wants it restarted.
    RestartAsked {
        /// Why.
        reason: String,
    },
    /// Somebody wants it to stop while it is still being spawned, or to stay down while it is stopping for
    /// another reason.
    StopAsked {
        /// Why.
        reason: String,
    },
    /// Too many restarts: it is broken and tried slowly from now on.
    GaveUp {
        /// The time until the next try.
        next_try_in: Duration,
        /// The restarts allowed.
        max: u32,
        /// The window in which they are counted.
        window: Duration,
        /// Whether a slow try has just failed, and not the restarts of a window.
        on_trial: bool,
        /// The latest failure.
        cause: Cause,
    },
    /// It failed and its policy is not to restart it.
    Failed {
        /// What happened.
        cause: Cause,
    },
    /// It was well for the whole restart window: earlier failures are forgiven.
    Settled {
        /// For how long it has been well.
        after: Duration,
    },
    /// A rung of the stop ladder was taken.
    StopStep {
        /// Which.
        step: StopStep,
        /// How often SIGKILL was sent to this generation by now.
        kills: u32,
        /// Why it is ending.
        reason: String,
    },
    /// Its tree is verified empty and it stays down.
    Stopped {
        /// Why.
        reason: String,
    },
    /// Processes survived SIGKILL so far. They stay owned and are tried again.
    Stuck {
        /// Their ids, at most [`PIDS_MAX`](crate::text::PIDS_MAX).
        pids: Vec<u32>,
        /// How often SIGKILL was sent.
        kills: u32,
    },
    /// It serves, but is not well.
    Degraded {
        /// What is wrong.
        reason: String,
    },
    /// It serves nobody well any more and is ended.
    Unhealthy {
        /// What is wrong.
        reason: String,
    },
    /// It is well again.
    Recovered {
        /// After this time.
        after: Duration,
    },
    /// A wish was not followed.
    Refused {
        /// What was wished for.
        what: String,
        /// Why not, and what to do.
        why: String,
    },
    /// Things were dropped at a limit.
    Dropped {
        /// What, and the limit's name.
        what: String,
        /// How many.
        count: u64,
    },
    /// A limit of its own was hit: it was killed, refused or held back there.
    LimitHit {
        /// Which limit and what came of it, with the figures.
        what: String,
    },
    /// A limit of the daemon, the machine's memory or a disk came nearer to its end, or less near.
    Pressure {
        /// How near it is now.
        level: Level,
        /// Of what, with the figures.
        what: String,
    },
    /// Something is done to an instance to make room for others.
    Relief {
        /// What, to which, and what for.
        what: String,
    },
    /// A stranger listens on a port that an instance was given.
    PortStolen {
        /// Which port, and who.
        what: String,
    },
    /// A client's call was answered with an error before it reached the server.
    CallRefused {
        /// Why, and what to do.
        reason: String,
    },
    /// A server's own request (sampling, elicitation, roots) was refused.
    ReverseRequestRefused {
        /// Its method.
        method: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A session began.
    SessionStarted {
        /// The client, as it names itself.
        client: String,
    },
    /// A session ended.
    SessionEnded {
        /// Why.
        reason: String,
    },
    /// A session is to end, and something of it still runs.
    SessionDraining {
        /// Why.
        reason: String,
        /// What runs, in words.
        running: String,
    },
    /// A session could get no instance of its own, and uses its principal's from now on.
    SessionShares {
        /// The server.
        server: ServerName,
        /// Why.
        why: String,
    },
    /// A session had an instance before the daemon was restarted, and has another now.
    SessionRenewed {
        /// The instance.
        instance: String,
    },
    /// Sessions of before the daemon was restarted were taken up.
    SessionsTakenUp {
        /// Those that go on.
        kept: usize,
        /// Those that would have ended meanwhile, or for which there is no room.
        ended: usize,
    },
    /// A process that an earlier daemon or a killed guard left behind was ended.
    OrphanReaped {
        /// Its id.
        pid: u32,
        /// How it was known to be ours.
        evidence: String,
    },
    /// Lines on standard output that were no protocol messages.
    StdoutRubbish {
        /// How many since the last such happening.
        count: u64,
        /// The beginning of the first of them.
        sample: String,
    },
    /// A reload brought this server in.
    ServerAdded,
    /// A reload took this server out: its instances drain and stop.
    ServerRemoved,
    /// A reload changed what its processes are: they drain and stop, and others come.
    ServerReplaced {
        /// The keys that differ.
        what: String,
    },
    /// A reload changed its definition, and nothing that runs was touched.
    ServerChanged {
        /// The keys that differ.
        what: String,
    },
    /// Another configuration is in force.
    Reloaded {
        /// What that changed.
        what: String,
    },
    /// Another configuration was to be taken in, and was not; nothing was changed.
    ReloadFailed {
        /// Why not.
        why: String,
    },
    /// An instance of a pool was given to somebody.
    Leased {
        /// To whom.
        holder: String,
        /// The number of the lease; later ones of the pool are greater.
        fence: u64,
    },
    /// The command that was to make an instance of a pool clean did not.
    ResetFailed {
        /// Why.
        why: String,
    },
    /// A worker of tasks is there.
    WorkerStarted,
    /// A worker of tasks has ended, and nothing of it is left.
    WorkerTerminated {
        /// Why.
        why: String,
    },
    /// A worker of tasks did not start, or is of no use any more.
    WorkerError {
        /// Why.
        why: String,
    },
    /// A lane is to have more workers from now on, or fewer.
    WorkersScaled {
        /// As many as before.
        from: usize,
        /// As many as now.
        to: usize,
    },
    /// A task has succeeded.
    TaskComplete,
    /// A task has ended without success.
    TaskError {
        /// Why.
        why: String,
    },
    /// Tasks were not let in.
    QueueFull {
        /// The limit, and the figures.
        why: String,
    },
    /// What there is to be said of the task journal.
    TaskJournal {
        /// What.
        why: String,
    },
    /// A shared server has more instances from now on, or fewer.
    Scaled {
        /// Whether more.
        up: bool,
        /// So many.
        replicas: usize,
        /// Calls that run.
        calls: usize,
    },
    /// Something was learnt about the server's program and will be remembered.
    Learnt {
        /// What.
        what: String,
    },
    /// The registry and the kernel did not agree, which is a fault of Ostler's; it was repaired.
    Inconsistent {
        /// What was found, and what was done.
        what: String,
    },
    /// An alert was told.
    Alert(Box<Notify>),
}

impl Happening {
    /// A short, stable name for filters and machines.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Started { .. } => "started",
            Self::Ready { .. } => "ready",
            Self::StartFailed { .. } => "start-failed",
            Self::Exited { .. } => "exited",
            Self::RestartScheduled { .. } => "restart-scheduled",
            Self::RestartAsked { .. } => "restart-asked",
            Self::StopAsked { .. } => "stop-asked",
            Self::GaveUp { .. } => "gave-up",
            Self::Failed { .. } => "failed",
            Self::Settled { .. } => "settled",
            Self::StopStep { .. } => "stop-step",
            Self::Stopped { .. } => "stopped",
            Self::Stuck { .. } => "stuck",
            Self::Degraded { .. } => "degraded",
            Self::Unhealthy { .. } => "unhealthy",
            Self::Recovered { .. } => "recovered",
            Self::Refused { .. } => "refused",
            Self::Dropped { .. } => "dropped",
            Self::LimitHit { .. } => "limit-hit",
            Self::Pressure { .. } => "pressure",
            Self::Relief { .. } => "relief",
            Self::PortStolen { .. } => "port-stolen",
            Self::CallRefused { .. } => "call-refused",
            Self::ReverseRequestRefused { .. } => "reverse-request-refused",
            Self::SessionStarted { .. } => "session-started",
            Self::SessionEnded { .. } => "session-ended",
            Self::SessionDraining { .. } => "session-draining",
            Self::SessionShares { .. } => "session-shares",
            Self::SessionRenewed { .. } => "session-renewed",
            Self::SessionsTakenUp { .. } => "sessions-taken-up",
            Self::OrphanReaped { .. } => "orphan-reaped",
            Self::StdoutRubbish { .. } => "stdout-rubbish",
            Self::ServerAdded => "server-added",
            Self::ServerRemoved => "server-removed",
            Self::ServerReplaced { .. } => "server-replaced",
            Self::ServerChanged { .. } => "server-changed",
            Self::Reloaded { .. } => "reloaded",
            Self::ReloadFailed { .. } => "reload-failed",
            Self::Leased { .. } => "leased",
            Self::ResetFailed { .. } => "reset-failed",
            Self::WorkerStarted => "worker-started",
            Self::WorkerTerminated { .. } => "worker-terminated",
            Self::WorkerError { .. } => "worker-error",
            Self::WorkersScaled { from, to } if to > from => "scaled-up",
            Self::WorkersScaled { .. } => "scaled-down",
            Self::TaskComplete => "task-complete",
            Self::TaskError { .. } => "task-error",
            Self::QueueFull { .. } => "queue-full",
            Self::TaskJournal { .. } => "task-journal",
            Self::Scaled { up: true, .. } => "scaled-up",
            Self::Scaled { up: false, .. } => "scaled-down",
            Self::Learnt { .. } => "learnt",
            Self::Inconsistent { .. } => "inconsistent",
            Self::Alert(told) => match told.stage {
                Stage::Raised => "alert-raised",
                Stage::Repeated => "alert-repeated",
                Stage::Resolved => "alert-resolved",
            },
        }
    }

    /// How much it matters.
    pub fn severity(&self) -> Severity {
        match self {
            Self::GaveUp { .. }
            | Self::Failed { .. }
            | Self::Stuck { .. }
            | Self::Unhealthy { .. }
            | Self::Pressure { level: Level::Critical, .. } => Severity::Error,
            Self::Exited { exit, asked: false } if !exit.is_clean() => Severity::Warning,
            Self::StopStep { step: StopStep::Kill, kills, .. } if *kills > 1 => Severity::Error,
            Self::StopStep { step: StopStep::Kill, .. }
            | Self::StartFailed { .. }
            | Self::RestartScheduled { .. }
            | Self::Degraded { .. }
            | Self::Refused { .. }
            | Self::Dropped { .. }
            | Self::LimitHit { .. }
            | Self::Pressure { level: Level::Warning, .. }
            | Self::Relief { .. }
            | Self::PortStolen { .. }
            | Self::CallRefused { .. }
            | Self::ReverseRequestRefused { .. }
            | Self::OrphanReaped { .. }
            | Self::Inconsistent { .. }
            | Self::StdoutRubbish { .. }
            | Self::ReloadFailed { .. } => Severity::Warning,
            Self::Starting { .. }
            | Self::Started { .. }
            | Self::Ready { .. }
            | Self::Exited { .. }
            | Self::RestartAsked { .. }
            | Self::StopAsked { .. }
            | Self::Settled { .. }
            | Self::StopStep { .. }
            | Self::Stopped { .. }
            | Self::Recovered { .. }
            | Self::Pressure { level: Level::Normal, .. }
            | Self::SessionStarted { .. }
            | Self::SessionEnded { .. }
            | Self::SessionDraining { .. }
            | Self::SessionRenewed { .. }
            | Self::SessionsTakenUp { .. }
            | Self::ServerAdded
            | Self::ServerRemoved
            | Self::ServerReplaced { .. }
            | Self::ServerChanged { .. }
            | Self::Reloaded { .. }
            | Self::Leased { .. }
            | Self::Scaled { .. }
            | Self::WorkerStarted
            | Self::WorkerTerminated { .. }
            | Self::WorkersScaled { .. }
            | Self::TaskComplete
            | Self::Learnt { .. } => Severity::Info,
            Self::ResetFailed { .. }
            | Self::SessionShares { .. }
            | Self::WorkerError { .. }
            | Self::TaskError { .. }
            | Self::QueueFull { .. }
            | Self::TaskJournal { .. } => Severity::Warning,
            Self::Alert(told) if told.stage == Stage::Resolved => Severity::Info,
            Self::Alert(told) => told.alert.severity,
        }
    }
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting { generation, on_trial: false } => write!(f, "starting generation {generation}"),
            Self::Starting { generation, on_trial: true } => {
                write!(f, "starting generation {generation}, as the one slow try of a broken server")
            }
            Self::Started { generation, pid: 0 } => write!(f, "generation {generation} runs elsewhere"),
            Self::Started { generation, pid } => write!(f, "generation {generation} runs as process {pid}"),
            Self::Ready { after } => write!(f, "ready after {}", human(*after)),
            Self::StartFailed { cause } => write!(f, "did not start: {cause}"),
            Self::Exited { exit, .. } => write!(f, "the server {exit}"),
            Self::RestartScheduled { in_, attempt, cause } => {
                write!(f, "restarting in {} (failure {attempt} in a row): {cause}", human(*in_))
            }
            Self::RestartAsked { reason } => write!(f, "restart: {reason}"),
            Self::StopAsked { reason } => write!(f, "stop: {reason}"),
            Self::GaveUp { .. } => self.fmt_gave_up(f),
            Self::Failed { cause } => {
                write!(
                    f,
                    "failed, and its restart policy is `never`; start it by hand once this is mended: {cause}"
                )
            }
            Self::Settled { after } => write!(f, "well for {}, earlier failures are forgiven", human(*after)),
            Self::StopStep { step, kills, reason } => fmt_step(f, *step, *kills, reason),
            Self::Stopped { reason } => write!(f, "stopped, nothing of it runs: {reason}"),
            Self::Stuck { pids, kills } => write!(
                f,
                "processes {} survived SIGKILL (sent {kills} times), so the kernel holds them (a dead network mount, a \
                 driver); they are tried again until they are gone",
                List(pids)
            ),
            Self::Degraded { reason } => write!(f, "not well: {reason}"),
            Self::Unhealthy { reason } => write!(f, "unhealthy, so it is ended: {reason}"),
            Self::Recovered { after } => write!(f, "well again after {}", human(*after)),
            Self::Refused { what, why } => write!(f, "{what} refused: {why}"),
            Self::Dropped { what, count } => write!(f, "dropped {count}: {what}"),
            Self::LimitHit { what } => write!(f, "at its limit: {what}"),
            Self::Pressure { level, what } => write!(f, "{}: {what}", level.as_str()),
            Self::Relief { what } => write!(f, "to make room: {what}"),
            Self::PortStolen { what } => write!(f, "{what}; it gets another"),
            Self::CallRefused { reason } => write!(f, "call refused: {reason}"),
            Self::ReverseRequestRefused { method, reason } => {
                write!(f, "the server's request `{method}` refused: {reason}")
            }
            Self::SessionStarted { .. }
            | Self::SessionEnded { .. }
            | Self::SessionDraining { .. }
            | Self::SessionShares { .. }
            | Self::SessionRenewed { .. }
            | Self::SessionsTakenUp { .. } => self.fmt_session(f),
            Self::OrphanReaped { pid, evidence } => {
                write!(f, "ended left-over process {pid}, known by {evidence}")
            }
            Self::StdoutRubbish { count, sample } => write!(
                f,
                "{count} lines on standard output were no protocol messages and were skipped (a server may log to \
                 standard error only), first: {sample}"
            ),
            Self::ServerAdded => f.write_str("added to the configuration"),
            Self::ServerRemoved => {
                f.write_str("removed from the configuration: its instances drain and stop")
            }
            Self::ServerReplaced { what } => {
                write!(f, "changed in the configuration, so its instances are replaced: {what}")
            }
            Self::ServerChanged { what } => write!(f, "changed in the configuration, while it runs: {what}"),
            Self::Reloaded { what } => write!(f, "the configuration was taken in: {what}"),
            Self::ReloadFailed { why } => {
                write!(f, "the configuration was not taken in, nothing changes: {why}")
            }
            Self::Leased { holder, fence } => write!(f, "given to {holder}, as lease {fence} of its pool"),
            Self::Scaled { replicas, calls, .. } => {
                write!(f, "{replicas} replicas for {calls} calls that run")
            }
            Self::WorkerStarted => f.write_str("a worker is ready"),
            Self::WorkerTerminated { why } => write!(f, "a worker has ended: {why}"),
            Self::WorkerError { why } => write!(f, "a worker failed: {why}"),
            Self::WorkersScaled { from, to } => write!(f, "{to} workers, where there were {from}"),
            Self::TaskComplete => f.write_str("the task succeeded"),
            Self::TaskError { why } | Self::TaskJournal { why } => f.write_str(why),
            Self::QueueFull { why } => write!(f, "tasks were not let in: {why}"),
            Self::ResetFailed { why } => write!(f, "not made clean, and ended: {why}"),
            Self::Learnt { what } => write!(f, "learnt: {what}"),
            Self::Inconsistent { what } => write!(f, "the registry was wrong: {what}"),
            Self::Alert(told) => write!(f, "{told}"),
        }
    }
}

impl Happening {
    fn fmt_session(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SessionStarted { client } => write!(f, "session of {client} started"),
            Self::SessionEnded { reason } => write!(f, "session ended: {reason}"),
            Self::SessionDraining { reason, running } => {
                write!(f, "session is ending, and takes no new calls while {running}: {reason}")
            }
            Self::SessionShares { server, why } => write!(
                f,
                "session uses the instance of `{server}` that its principal's sessions share, from now on and until it \
                 ends (fallback): {why}"
            ),
            Self::SessionRenewed { instance } => write!(
                f,
                "session has {instance} now: what it had ended when the daemon was restarted, with its state"
            ),
            Self::SessionsTakenUp { kept, ended } => {
                write!(f, "{kept} sessions of before the restart go on, and {ended} have ended meanwhile")
            }
            _ => Ok(()),
        }
    }

    fn fmt_gave_up(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::GaveUp { next_try_in, max, window, on_trial, cause } = self else {
            return Ok(());
        };
        if *on_trial {
            f.write_str("still broken: the slow try failed")?;
        } else {
            write!(f, "broken: more than {max} restarts within {}", human(*window))?;
        }
        write!(f, "; next try in {}, or restart it by hand: {cause}", human(*next_try_in))
    }
}

fn fmt_step(f: &mut fmt::Formatter<'_>, step: StopStep, kills: u32, reason: &str) -> fmt::Result {
    match step {
        StopStep::Drain => f.write_str("stopping: waiting for running calls")?,
        StopStep::CloseStdin => f.write_str("stopping: standard input closed")?,
        StopStep::Terminate => f.write_str("stopping: SIGTERM to all its processes")?,
        StopStep::Kill if kills > 1 => write!(f, "stopping: SIGKILL to all its processes, attempt {kills}")?,
        StopStep::Kill => f.write_str("stopping: SIGKILL to all its processes")?,
    }
    write!(f, " ({reason})")
}

/// Numbers with commas between them.
struct List<'a>(&'a [u32]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, number) in self.0.iter().enumerate() {
            write!(f, "{}{number}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
