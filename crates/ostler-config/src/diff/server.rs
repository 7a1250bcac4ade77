//! One server, before and after.

use ostler_domain::pool::PoolSpec;
use ostler_domain::replicas::ReplicasSpec;
use ostler_domain::{
    Concurrency, Deadlines, HealthSpec, Launch, Probe, ResourceLimits, Restart, RestartPolicy, ServerSpec,
    StartMode, Upstream, UpstreamAt,
};

use super::Apply::{Live, Replace};
use super::{Bytes, Compare, KeyChange};

/// The keys that differ, in the order of the documentation's subjects.
pub(super) fn changes(old: &ServerSpec, new: &ServerSpec) -> Vec<KeyChange> {
    let mut compare = Compare::new("");
    let c = &mut compare;
    let ServerSpec {
        name: _,
        type_name,
        launch: old_launch,
        transport,
        upstream,
        depends_on,
        wants,
        ports,
        health: old_health,
        limits: old_limits,
        scope,
        start,
        required,
        concurrency,
        restart: old_restart,
        deadlines: old_deadlines,
        call_idle,
        call_max,
        idle,
        log_lines,
        log_files,
        log_file_bytes,
        tell_session,
        fallback,
        pool: old_pool,
        replicas: old_replicas,
    } = old;
    launch(c, old_launch, &new.launch);
    // Who shares an instance, and what counts as the same one, is settled when it is started.
    c.shown("type", Replace, type_name, &new.type_name);
    c.shown("transport", Replace, transport.as_str(), new.transport.as_str());
    endpoint(c, upstream.as_ref(), new.upstream.as_ref());
    c.shown("scope", Replace, scope.as_str(), new.scope.as_str());
    c.shown("ports", Replace, ports, &new.ports);
    c.shown("concurrency", Replace, concurrency_word(*concurrency), concurrency_word(new.concurrency));
    c.shown("depends_on", Live, depends_on, &new.depends_on);
    c.shown("wants", Live, wants, &new.wants);
    c.shown("start", Live, start_word(*start), start_word(new.start));
    c.shown("required", Live, required, &new.required);
    restart(c, old_restart, &new.restart);
    deadlines(c, old_deadlines, &new.deadlines);
    c.shown("timeouts.call_idle", Live, call_idle, &new.call_idle);
    c.shown("timeouts.call_max", Live, call_max, &new.call_max);
    c.shown("idle", Live, idle, &new.idle);
    health(c, old_health, &new.health);
    limits(c, old_limits, &new.limits);
    // The rings and files of a process are made with it.
    c.shown("log_lines", Replace, log_lines, &new.log_lines);
    c.shown("log_files", Replace, log_files, &new.log_files);
    c.shown("log_file_bytes", Replace, &Bytes(*log_file_bytes), &Bytes(new.log_file_bytes));
    c.shown("tell_session", Replace, tell_session, &new.tell_session);
    c.shown("fallback", Live, fallback.as_str(), new.fallback.as_str());
    pool(c, old_pool.as_ref(), new.pool.as_ref());
    replicas(c, old_replicas.as_ref(), new.replicas.as_ref());
    compare.found
}

/// Whether there is a pool at all decides how instances are started; how it is to be, it is told while it runs.
fn pool(c: &mut Compare, old: Option<&PoolSpec>, new: Option<&PoolSpec>) {
    let (Some(old), Some(new)) = (old, new) else {
        return c.shown("pool", Replace, &old.is_some(), &new.is_some());
    };
    // `idle` is the server's, and compared there.
    let PoolSpec { spare, max, wait, waiting, on_return, max_uses, max_age, max_rss, jitter, idle: _ } = old;
    c.shown("pool.spare", Live, spare, &new.spare);
    c.shown("pool.max", Live, max, &new.max);
    c.shown("pool.wait", Live, wait, &new.wait);
    c.shown("pool.waiting", Live, waiting, &new.waiting);
    c.hidden("pool.on_return", Live, on_return, &new.on_return);
    c.shown("pool.max_uses", Live, max_uses, &new.max_uses);
    c.shown("pool.max_age", Live, max_age, &new.max_age);
    c.shown("pool.max_rss", Live, &max_rss.map(Bytes), &new.max_rss.map(Bytes));
    c.shown("pool.jitter", Live, jitter, &new.jitter);
}

/// Told while they run. Those that there are without the table stay: there is one.
fn replicas(c: &mut Compare, old: Option<&ReplicasSpec>, new: Option<&ReplicasSpec>) {
    let (Some(old), Some(new)) = (old, new) else {
        return c.shown("replicas", Replace, &old.is_some(), &new.is_some());
    };
    let ReplicasSpec { min, max, calls, up, down, interval } = old;
    c.shown("replicas.min", Live, min, &new.min);
    c.shown("replicas.max", Live, max, &new.max);
    c.shown("replicas.calls", Live, calls, &new.calls);
    c.shown("replicas.up", Live, up, &new.up);
    c.shown("replicas.down", Live, down, &new.down);
    c.shown("replicas.interval", Live, interval, &new.interval);
}

pub(super) fn launch(c: &mut Compare, old: &Launch, new: &Launch) {
    let Launch { command, args, env, inherit_env, cwd } = old;
    c.hidden("command", Replace, command, &new.command);
    c.hidden("args", Replace, args, &new.args);
    // Of variables the names are shown; the values are where secrets are.
    let mut names: Vec<&String> = env.keys().chain(new.env.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        c.hidden(&format!("env.{name}"), Replace, &env.get(name), &new.env.get(name));
    }
    c.shown("inherit_env", Replace, inherit_env, &new.inherit_env);
    c.hidden("cwd", Replace, cwd, &new.cwd);
}

/// Addresses and headers are where secrets are, too.
fn endpoint(c: &mut Compare, old: Option<&Upstream>, new: Option<&Upstream>) {
    let part = |upstream: Option<&Upstream>| match upstream.map(|upstream| upstream.at.clone()) {
        Some(UpstreamAt::Url(url)) => (Some(url), None, None),
        Some(UpstreamAt::Port { name, path }) => (None, Some(name), Some(path)),
        None => (None, None, None),
    };
    let ((old_url, old_port, old_path), (url, port, path)) = (part(old), part(new));
    c.hidden("url", Replace, &old_url, &url);
    c.shown("endpoint.port", Replace, &old_port, &port);
    c.shown("endpoint.path", Replace, &old_path, &path);
    let headers =
        |upstream: Option<&Upstream>| upstream.map(|upstream| upstream.headers.clone()).unwrap_or_default();
    c.hidden("headers", Replace, &headers(old), &headers(new));
}

fn restart(c: &mut Compare, old: &Restart, new: &Restart) {
    let Restart { policy, max, window, backoff_min, backoff_max, jitter } = old;
    c.shown("restart.policy", Live, policy_word(*policy), policy_word(new.policy));
    c.shown("restart.max", Live, max, &new.max);
    c.shown("restart.window", Live, window, &new.window);
    c.shown("restart.backoff.min", Live, backoff_min, &new.backoff_min);
    c.shown("restart.backoff.max", Live, backoff_max, &new.backoff_max);
    c.shown("restart.backoff.jitter", Live, jitter, &new.jitter);
}

fn deadlines(c: &mut Compare, old: &Deadlines, new: &Deadlines) {
    // No key sets `kill`, and `stop.grace` sets two.
    let Deadlines { spawn, handshake, drain, stdin_grace, term_grace, kill: _ } = old;
    let grace = stdin_grace.saturating_add(*term_grace);
    c.shown("stop.grace", Live, &grace, &new.stdin_grace.saturating_add(new.term_grace));
    c.shown("stop.drain", Live, drain, &new.drain);
    c.shown("timeouts.spawn", Live, spawn, &new.spawn);
    c.shown("timeouts.handshake", Live, handshake, &new.handshake);
}

fn health(c: &mut Compare, old: &HealthSpec, new: &HealthSpec) {
    let HealthSpec { probe, interval, timeout, failures, successes, unhealthy_after } = old;
    if probe.as_str() != new.probe.as_str() {
        c.shown("health.probe", Live, probe.as_str(), new.probe.as_str());
    } else {
        c.hidden(&format!("health.{}", target_key(&new.probe)), Live, probe, &new.probe);
    }
    c.shown("health.interval", Live, interval, &new.interval);
    c.shown("health.timeout", Live, timeout, &new.timeout);
    c.shown("health.failures", Live, failures, &new.failures);
    c.shown("health.successes", Live, successes, &new.successes);
    c.shown("health.unhealthy_after", Live, unhealthy_after, &new.unhealthy_after);
}

/// The key that says where a probe goes. `port` is a short way to say the first two.
fn target_key(probe: &Probe) -> &'static str {
    match probe {
        Probe::Tcp { .. } => "address",
        Probe::Http { .. } => "url",
        Probe::Exec { .. } => "command",
        Probe::Heartbeat(_) => "file",
        Probe::Mcp | Probe::None => "probe",
    }
}

fn limits(c: &mut Compare, old: &ResourceLimits, new: &ResourceLimits) {
    let ResourceLimits { memory, memory_warning, cpu, pids, open_files, nice } = old;
    c.shown("limits.memory", Replace, &memory.map(Bytes), &new.memory.map(Bytes));
    c.shown("limits.memory_warning", Live, &Bytes(*memory_warning), &Bytes(new.memory_warning));
    c.shown("limits.cpu", Replace, cpu, &new.cpu);
    c.shown("limits.pids", Replace, pids, &new.pids);
    c.shown("limits.open_files", Replace, open_files, &new.open_files);
    c.shown("limits.nice", Replace, nice, &new.nice);
}

fn concurrency_word(concurrency: Concurrency) -> &'static str {
    match concurrency {
        Concurrency::Auto => "auto",
        Concurrency::Serial => "serial",
        Concurrency::Concurrent => "concurrent",
    }
}

fn start_word(start: StartMode) -> &'static str {
    match start {
        StartMode::Eager => "eager",
        StartMode::OnDemand => "on-demand",
    }
}

fn policy_word(policy: RestartPolicy) -> &'static str {
    match policy {
        RestartPolicy::Never => "never",
        RestartPolicy::OnFailure => "on-failure",
        RestartPolicy::Always => "always",
    }
}
