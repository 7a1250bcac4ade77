//! The daemon's own types as the API shows them.

use std::collections::BTreeMap;
use std::sync::Arc;

use ostler_api::types::{KIND_PROCESS, KIND_SERVER};
use ostler_api::{
    AlertView, AuditView, CleanupView, DrainingView, EndView, EventView, FindingView, HeldView, InstanceView,
    LogLine, PoolView, ProcessLimits, ProcessView, RestartWhen, ServerView, SessionView,
};
use ostler_domain::alert::Alert;
use ostler_domain::text::without_secrets;
use ostler_domain::{Exit, RestartPolicy, Scope, ServerName, Upstream, UpstreamAt};
use ostler_os::Rungs;
use ostler_supervisor::audit::{Audit, Finding};
use ostler_supervisor::cleanup::{Job, Progress};
use ostler_supervisor::clock::{now, now_ms};
use ostler_supervisor::events::Entry;
use ostler_supervisor::{Ended, InstanceHandle, Owner, Reading, Server, Session, log};

use super::usage;
use crate::Gateway;

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn kind(server: &Server) -> String {
    if server.is_by_hand() { KIND_PROCESS } else { KIND_SERVER }.to_owned()
}

fn end(ended: Ended) -> EndView {
    let (code, signal) = match ended.exit {
        Exit::Code(code) => (Some(code), None),
        Exit::Signal(signal) => (None, Some(signal)),
        Exit::Unknown => (None, None),
    };
    EndView { code, signal, text: ended.exit.to_string(), ago_ms: now_ms().saturating_sub(ended.at_ms) }
}

/// One instance, with what its processes used when they were last measured.
fn instance(gateway: &Gateway, server: &Server, handle: &InstanceHandle, rungs: &Rungs) -> InstanceView {
    let snapshot = handle.snapshot();
    let is_of_these =
        |reading: &Arc<Reading>| snapshot.tree.is_some() && reading.generation == snapshot.generation;
    let measured = handle.reading().filter(is_of_these);
    let reading = measured.as_deref().cloned().unwrap_or_default();
    let sessions = gateway.supervisor.sessions().all().iter().filter(|session| session.holds(handle)).count();
    InstanceView {
        id: handle.id.to_string(),
        server: server.spec.name.to_string(),
        kind: kind(server),
        generation: snapshot.generation.0,
        state: snapshot.state.as_str().to_owned(),
        reason: snapshot.reason(),
        scope: server.spec.scope.as_str().to_owned(),
        owner: handle.owner().to_string(),
        era: handle.era().map(|era| era.as_str().to_owned()),
        pid: snapshot.pid,
        processes: reading.processes,
        sessions: u32::try_from(sessions).unwrap_or(u32::MAX),
        calls: snapshot
            .connection
            .as_ref()
            .map_or(0, |connection| u32::try_from(connection.open_calls()).unwrap_or(u32::MAX)),
        restarts: snapshot.restarts,
        rss_bytes: reading.rss_bytes,
        pss_bytes: reading.pss.is_some().then(|| reading.memory_bytes()),
        cpu_percent: reading.cpu_percent,
        cpu_ms: reading.cpu_ms,
        threads: reading.threads,
        fds: reading.fds.map(|fds| fds.all),
        fds_of_one: reading.fds.map(|fds| fds.of_one),
        measured_ago_ms: measured.as_ref().map(|reading| now_ms().saturating_sub(reading.at_ms)),
        limits: usage::limits(&server.spec.limits, measured.as_deref(), rungs),
        uptime_ms: snapshot.started_ms.map_or(0, |started| now_ms().saturating_sub(started)),
        ports: BTreeMap::clone(&snapshot.ports),
        next_try_ms: snapshot.next_try().map(millis),
        ended: snapshot.ended.map(end),
    }
}

/// How a server stands that has no instance of its own: that of the one whose instances it uses, if it does.
fn no_instance_state(gateway: &Gateway, server: &Server, idle: &str) -> String {
    let other = server.same_as().and_then(|name| gateway.supervisor.server(name.as_str()));
    let first = other.and_then(|other| other.instances().into_iter().next());
    match first {
        Some(handle) => handle.snapshot().state.as_str(),
        None if server.stopped() => "stopped",
        None => idle,
    }
    .to_owned()
}

/// The row of a server that has no instance.
fn no_instance(gateway: &Gateway, server: &Server) -> InstanceView {
    InstanceView {
        id: server.spec.name.to_string(),
        server: server.spec.name.to_string(),
        kind: kind(server),
        generation: 0,
        state: no_instance_state(gateway, server, "idle"),
        reason: server.same_as().map(|name| format!("it is the same as `{name}`, whose instances it uses")),
        scope: server.spec.scope.as_str().to_owned(),
        owner: match server.spec.scope {
            Scope::Session => "one for each session",
            Scope::Project => "one for each project",
            Scope::Shared | Scope::Principal => "on demand",
        }
        .to_owned(),
        era: None,
        pid: None,
        processes: 0,
        sessions: 0,
        calls: 0,
        restarts: 0,
        rss_bytes: 0,
        pss_bytes: None,
        cpu_percent: 0.0,
        cpu_ms: 0,
        threads: 0,
        fds: None,
        fds_of_one: None,
        measured_ago_ms: None,
        limits: Vec::new(),
        uptime_ms: 0,
        ports: BTreeMap::new(),
        next_try_ms: None,
        ended: None,
    }
}

/// The instances of these servers, measured together.
async fn measured(gateway: &Gateway, servers: &[Arc<Server>]) -> Vec<(Arc<Server>, Vec<InstanceView>)> {
    gateway.supervisor.monitor().measured().await;
    let rungs = ostler_os::limits::rungs();
    let views = |server: &Server| -> Vec<InstanceView> {
        server.instances().iter().map(|handle| instance(gateway, server, handle, &rungs)).collect()
    };
    servers.iter().map(|server| (Arc::clone(server), views(server))).collect()
}

/// The rows of `ostler ps`.
pub(crate) async fn instances(gateway: &Gateway) -> Vec<InstanceView> {
    let servers = gateway.supervisor.servers();
    let rows = measured(gateway, servers.all())
        .await
        .into_iter()
        // One that a reload took out is listed with what still runs of it.
        .filter(|(server, views)| !(server.has_left() && views.is_empty()))
        .flat_map(
            |(server, views)| if views.is_empty() { vec![no_instance(gateway, &server)] } else { views },
        );
    rows.collect()
}

/// These servers with their instances.
pub(crate) async fn servers(gateway: &Gateway, servers: &[Arc<Server>]) -> Vec<ServerView> {
    measured(gateway, servers)
        .await
        .into_iter()
        .map(|(server, views)| view(gateway, &server, views))
        .collect()
}

fn view(gateway: &Gateway, server: &Server, instances: Vec<InstanceView>) -> ServerView {
    let traits = server.traits();
    let launch = &server.spec.launch;
    ServerView {
        name: server.spec.name.to_string(),
        kind: kind(server),
        same_as: server.same_as().map(ToString::to_string),
        endpoint: server
            .spec
            .transport
            .is_mcp()
            .then(|| format!("{}/mcp/{}", gateway.base, server.spec.name)),
        scope: server.spec.scope.as_str().to_owned(),
        command: match &server.spec.upstream {
            Some(Upstream { at: UpstreamAt::Url(url), .. }) => vec![without_secrets(url)],
            _ => std::iter::once(&launch.command).chain(&launch.args).cloned().collect(),
        },
        required: server.spec.required,
        legacy: traits.legacy,
        modern: traits.modern,
        asks_back: traits.asks_back,
        state: instances.first().map_or_else(
            || no_instance_state(gateway, server, "on-demand"),
            |instance| instance.state.clone(),
        ),
        pool: server.pool_figures().map(|(max, now)| PoolView {
            max,
            starting: now.starting,
            spare: now.spare,
            leased: now.leased,
            resetting: now.resetting,
            leaving: now.leaving,
            waiting: now.waiting,
        }),
        instances,
    }
}

/// These processes started by hand. One that has just been removed is left out.
pub(super) async fn processes(gateway: &Gateway, servers: &[Arc<Server>]) -> Vec<ProcessView> {
    let measured = measured(gateway, servers).await.into_iter();
    measured.filter_map(|(server, views)| Some(process(&server, views.into_iter().next()?))).collect()
}

fn process(server: &Server, instance: InstanceView) -> ProcessView {
    let (launch, limits) = (&server.spec.launch, &server.spec.limits);
    ProcessView {
        name: server.spec.name.to_string(),
        command: std::iter::once(&launch.command).chain(&launch.args).cloned().collect(),
        cwd: launch.cwd.as_ref().map(|cwd| cwd.display().to_string()),
        restart: match server.spec.restart.policy {
            RestartPolicy::Never => RestartWhen::Never,
            RestartPolicy::OnFailure => RestartWhen::OnFailure,
            RestartPolicy::Always => RestartWhen::Always,
        },
        limits: ProcessLimits {
            memory_bytes: limits.memory,
            cpu: limits.cpu,
            pids: limits.pids,
            open_files: limits.open_files,
            nice: limits.nice,
        },
        instance,
    }
}

/// One session.
pub(crate) fn session(session: &Session) -> SessionView {
    SessionView {
        id: session.handle.to_string(),
        server: session.server().map(ToString::to_string),
        client: session.client.clone(),
        principal: session.principal.to_string(),
        state: session.state().as_str().to_owned(),
        isolated: session.isolated,
        instances: session.instances().iter().map(|(server, handle)| held(server, handle)).collect(),
        shares: session.shares().iter().map(ToString::to_string).collect(),
        age_ms: session.age_ms(),
        idle_ms: session.idle_ms(),
        calls: session.calls(),
        calls_begun: session.calls_begun(),
        tasks: session.tasks(),
        restarts: session.restarts,
    }
}

fn held(server: &ServerName, handle: &InstanceHandle) -> HeldView {
    let snapshot = handle.snapshot();
    HeldView {
        id: handle.id.to_string(),
        server: server.to_string(),
        own: matches!(*handle.owner(), Owner::Session(_)),
        state: snapshot.state.as_str().to_owned(),
        generation: snapshot.generation.0,
        pid: snapshot.pid,
        ports: BTreeMap::clone(&snapshot.ports),
    }
}

/// A session that is to end, and of which something runs.
pub(super) fn draining(session: &Session) -> DrainingView {
    DrainingView {
        id: session.handle.to_string(),
        state: session.state().as_str().to_owned(),
        calls: session.calls(),
        tasks: session.tasks(),
        cut_in_ms: session.cut_in_ms(),
    }
}

/// One event.
pub(super) fn event(entry: Entry) -> EventView {
    EventView {
        seq: entry.seq,
        unix_ms: entry.unix_ms,
        severity: entry.severity.as_str().to_owned(),
        kind: entry.kind.to_owned(),
        subject: entry.subject,
        message: entry.message,
    }
}

/// One alert.
pub(super) fn alert(alert: Alert) -> AlertView {
    AlertView {
        kind: alert.kind.as_str().to_owned(),
        severity: alert.severity.as_str().to_owned(),
        age_ms: millis(now().since(alert.since)),
        subject: alert.subject,
        message: alert.message,
        count: alert.count,
    }
}

/// An audit.
pub(super) fn audit(audit: &Audit) -> AuditView {
    let finding = |finding: &Finding| FindingView {
        kind: finding.kind().to_owned(),
        subject: finding.subject(),
        message: finding.to_string(),
    };
    AuditView {
        instances: audit.instances as u64,
        ports: audit.ports as u64,
        findings: audit.findings.iter().map(finding).collect(),
    }
}

/// One tree in the clean-up queue.
pub(super) fn cleanup(job: Job) -> CleanupView {
    let (progress, stuck) = match job.progress {
        Progress::Waiting => ("waiting", Vec::new()),
        Progress::Killing => ("killing", Vec::new()),
        Progress::Stuck(pids) => ("stuck", pids),
    };
    CleanupView {
        instance: job.instance.to_string(),
        progress: progress.to_owned(),
        stuck,
        tries: job.tries,
        age_ms: now_ms().saturating_sub(job.since_ms),
    }
}

/// One line of a log.
pub(super) fn line(instance: &str, line: &log::Line) -> LogLine {
    LogLine {
        seq: line.seq,
        unix_ms: line.unix_ms,
        instance: instance.to_owned(),
        stream: line.stream.as_str().to_owned(),
        text: line.text.to_string(),
    }
}
