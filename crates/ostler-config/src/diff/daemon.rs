//! The sections of the whole daemon, before and after.

use super::Apply::{DaemonRestart, Live};
use super::{Bytes, Compare, KeyChange};
use crate::config::{Config, Gateway};
use crate::sections::{Alerts, Limits, Metrics, Ports, Registry, Reload, Sessions};

/// The keys that differ, section by section.
pub(super) fn changes(old: &Config, new: &Config) -> Vec<KeyChange> {
    let Config {
        gateway: old_gateway,
        limits: old_limits,
        sessions: Sessions { idle, stale, max_age, grace },
        ports: Ports { range, expand },
        metrics: Metrics { interval },
        alerts: old_alerts,
        registry: Registry { check },
        reload: Reload { watch },
        tasks,
        workers,
        projects,
        servers: _,
        sources: _,
        warnings: _,
    } = old;
    let mut found = gateway(old_gateway, &new.gateway);
    found.extend(limits(old_limits, &new.limits));
    let mut compare = Compare::new("");
    let c = &mut compare;
    c.shown("sessions.idle", DaemonRestart, idle, &new.sessions.idle);
    c.shown("sessions.stale", DaemonRestart, stale, &new.sessions.stale);
    c.shown("sessions.max_age", DaemonRestart, max_age, &new.sessions.max_age);
    c.shown("sessions.grace", DaemonRestart, grace, &new.sessions.grace);
    c.shown("ports.range", Live, range, &new.ports.range);
    c.shown("ports.expand", Live, expand, &new.ports.expand);
    c.shown("metrics.interval", Live, interval, &new.metrics.interval);
    alerts(c, old_alerts, &new.alerts);
    c.shown("registry.check", Live, check, &new.registry.check);
    c.shown("reload.watch", Live, watch, &new.reload.watch);
    found.extend(compare.found);
    found.extend(super::tasks::tasks(tasks, &new.tasks));
    found.extend(super::tasks::workers(workers, &new.workers));
    found.extend(super::tasks::projects(projects, &new.projects));
    found
}

/// The configuration in force once `new` is taken in while the daemon runs on: what only a restart of the daemon
/// changes is as it was.
pub(super) fn in_force(old: &Config, new: Config) -> Config {
    let Limits { sessions, session_calls, instance_calls, .. } = old.limits;
    Config {
        gateway: old.gateway.clone(),
        sessions: old.sessions.clone(),
        limits: Limits { sessions, session_calls, instance_calls, ..new.limits },
        tasks: super::tasks::in_force(&old.tasks, new.tasks),
        ..new
    }
}

/// Connections are accepted, and buffers made, by what the daemon was started with.
fn gateway(old: &Gateway, new: &Gateway) -> Vec<KeyChange> {
    let Gateway {
        listen,
        allow_remote,
        allowed_hosts,
        allowed_origins,
        max_body,
        body_memory,
        header_timeout,
        body_timeout,
        write_timeout,
        sse_after,
        stream_hold,
        replay_events,
        replay_bytes,
        keepalive,
        max_connections,
    } = old;
    let bytes = |count: usize| Bytes(count as u64);
    let mut compare = Compare::new("gateway.");
    let c = &mut compare;
    c.shown("listen", DaemonRestart, listen, &new.listen);
    c.shown("allow_remote", DaemonRestart, allow_remote, &new.allow_remote);
    c.shown("allowed_hosts", DaemonRestart, allowed_hosts, &new.allowed_hosts);
    c.shown("allowed_origins", DaemonRestart, allowed_origins, &new.allowed_origins);
    c.shown("max_body", DaemonRestart, &bytes(*max_body), &bytes(new.max_body));
    c.shown("body_memory", DaemonRestart, &bytes(*body_memory), &bytes(new.body_memory));
    c.shown("header_timeout", DaemonRestart, header_timeout, &new.header_timeout);
    c.shown("body_timeout", DaemonRestart, body_timeout, &new.body_timeout);
    c.shown("write_timeout", DaemonRestart, write_timeout, &new.write_timeout);
    c.shown("sse_after", DaemonRestart, sse_after, &new.sse_after);
    c.shown("stream_hold", DaemonRestart, stream_hold, &new.stream_hold);
    c.shown("replay_events", DaemonRestart, replay_events, &new.replay_events);
    c.shown("replay_bytes", DaemonRestart, &bytes(*replay_bytes), &bytes(new.replay_bytes));
    c.shown("keepalive", DaemonRestart, keepalive, &new.keepalive);
    c.shown("max_connections", DaemonRestart, max_connections, &new.max_connections);
    compare.found
}

/// What is counted anew with each decision changes at once; tables of sessions and calls are made at the start.
fn limits(old: &Limits, new: &Limits) -> Vec<KeyChange> {
    let Limits {
        sessions,
        session_calls,
        session_instances,
        instance_calls,
        processes,
        per_type,
        memory,
        adhoc,
        warning,
        critical,
        emergency,
        startup,
        shutdown,
        cleanups,
        cleanup_time,
        cleanup_tries,
    } = old;
    let mut compare = Compare::new("limits.");
    let c = &mut compare;
    c.shown("sessions", DaemonRestart, sessions, &new.sessions);
    c.shown("session_calls", DaemonRestart, session_calls, &new.session_calls);
    c.shown("session_instances", Live, session_instances, &new.session_instances);
    c.shown("instance_calls", DaemonRestart, instance_calls, &new.instance_calls);
    c.shown("processes", Live, processes, &new.processes);
    c.shown("per_type", Live, per_type, &new.per_type);
    c.shown("memory", Live, &Bytes(*memory), &Bytes(new.memory));
    c.shown("adhoc", Live, adhoc, &new.adhoc);
    c.shown("warning", Live, warning, &new.warning);
    c.shown("critical", Live, critical, &new.critical);
    c.shown("emergency", Live, emergency, &new.emergency);
    c.shown("startup", Live, startup, &new.startup);
    c.shown("shutdown", Live, shutdown, &new.shutdown);
    c.shown("cleanups", Live, cleanups, &new.cleanups);
    c.shown("cleanup_time", Live, cleanup_time, &new.cleanup_time);
    c.shown("cleanup_tries", Live, cleanup_tries, &new.cleanup_tries);
    compare.found
}

/// An address or a command may hold a token.
fn alerts(c: &mut Compare, old: &Alerts, new: &Alerts) {
    let Alerts { webhook, command, repeat, retries } = old;
    c.hidden("alerts.webhook", Live, webhook, &new.webhook);
    c.hidden("alerts.command", Live, command, &new.command);
    c.shown("alerts.repeat", Live, repeat, &new.repeat);
    c.shown("alerts.retries", Live, retries, &new.retries);
}
