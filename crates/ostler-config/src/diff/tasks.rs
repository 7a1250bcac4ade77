//! Tasks, workers and projects, before and after.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ostler_domain::task::Lane;
use ostler_domain::task::queue::{ProjectLimits, QueueSpec};
use ostler_domain::task::retry::RetrySpec;
use ostler_domain::task::scale::ScaleSpec;
use ostler_domain::task::worker::WorkerSpec;
use ostler_domain::{Launch, ResourceLimits};

use super::Apply::{DaemonRestart, Live, Replace};
use super::{Bytes, Compare, KeyChange, ServerChange};
use crate::projects::Project;
use crate::tasks::Tasks;
use crate::workers::{StockWorkers, WorkerServer, WorkerSettings, Workers};

/// `[tasks]`. What the journal is opened with only a restart changes.
pub(super) fn tasks(old: &Tasks, new: &Tasks) -> Vec<KeyChange> {
    let Tasks {
        journal,
        queue: QueueSpec { ageing, queued, project_running, project_queued, projects },
        retry: RetrySpec { attempts, min, max, jitter },
        timeout,
        timeout_max,
        payload_max,
        result_inline,
        result_max,
        keep,
        keep_size,
        batch,
        logs,
        calls,
    } = old;
    let bytes = |count: usize| Bytes(count as u64);
    let mut compare = Compare::new("tasks.");
    let c = &mut compare;
    c.shown("journal", DaemonRestart, journal.as_str(), new.journal.as_str());
    c.shown("queued", Live, queued, &new.queue.queued);
    c.shown("project_queued", Live, project_queued, &new.queue.project_queued);
    c.shown("project_running", Live, project_running, &new.queue.project_running);
    c.shown("projects", Live, projects, &new.queue.projects);
    c.shown("ageing", Live, ageing, &new.queue.ageing);
    c.shown("timeout", Live, timeout, &new.timeout);
    c.shown("timeout_max", Live, timeout_max, &new.timeout_max);
    c.shown("attempts", Live, attempts, &new.retry.attempts);
    c.shown("backoff.min", Live, min, &new.retry.min);
    c.shown("backoff.max", Live, max, &new.retry.max);
    c.shown("backoff.jitter", Live, jitter, &new.retry.jitter);
    c.shown("payload_max", DaemonRestart, &bytes(*payload_max), &bytes(new.payload_max));
    c.shown("result_inline", DaemonRestart, &bytes(*result_inline), &bytes(new.result_inline));
    c.shown("result_max", DaemonRestart, &bytes(*result_max), &bytes(new.result_max));
    c.shown("keep", DaemonRestart, keep, &new.keep);
    c.shown("keep_size", DaemonRestart, &Bytes(*keep_size), &Bytes(new.keep_size));
    c.shown("batch", Live, batch, &new.batch);
    c.shown("logs", Live, logs, &new.logs);
    c.shown("calls", Live, calls, &new.calls);
    compare.found
}

/// `[tasks]` as it is in force while the daemon runs on.
pub(super) fn in_force(old: &Tasks, new: Tasks) -> Tasks {
    let Tasks { journal, payload_max, result_inline, result_max, keep, keep_size, .. } = *old;
    Tasks { journal, payload_max, result_inline, result_max, keep, keep_size, ..new }
}

/// What workers of one lane are started with, and how they are kept.
struct Crew<'a> {
    settings: &'a WorkerSettings,
    launch: Launch,
    types: &'a [String],
    network: bool,
    see: &'a [PathBuf],
}

impl Workers {
    fn crew(&self, lane: &str) -> Option<Crew<'_>> {
        if let Some(WorkerServer { settings, launch, types, network, see }) = self.own.get(lane) {
            return Some(Crew { settings, launch: launch.clone(), types, network: *network, see });
        }
        let launch = match self.stock.get(lane) {
            Some(StockWorkers { settings: _, command, env, inherit_env, see: _ }) => Launch {
                command: command.clone().unwrap_or_default(),
                env: env.clone(),
                inherit_env: inherit_env.clone(),
                ..Launch::default()
            },
            None => Launch::default(),
        };
        let see = self.stock.get(lane).map_or(&[][..], |stock| &stock.see);
        Some(Crew { settings: self.settings(lane)?, launch, types: &[], network: false, see })
    }
}

/// Each lane of either.
pub(super) fn lanes(old: &Workers, new: &Workers) -> Vec<(String, ServerChange)> {
    let own: BTreeSet<&str> = old.own.keys().chain(new.own.keys()).map(String::as_str).collect();
    let change = |lane: &str| match (old.crew(lane), new.crew(lane)) {
        (Some(old), Some(new)) => match crew(&old, &new) {
            keys if keys.is_empty() => ServerChange::Unchanged,
            keys => ServerChange::Changed(keys),
        },
        (None, Some(_)) => ServerChange::Added,
        (_, None) => ServerChange::Removed,
    };
    Lane::STOCK.into_iter().chain(own).map(|lane| (lane.to_owned(), change(lane))).collect()
}

/// `[workers]` and `[workers.NAME]`. What a lane has from `[workers]` is told there, once.
pub(super) fn workers(old: &Workers, new: &Workers) -> Vec<KeyChange> {
    let mut all = Compare::new("");
    settings(&mut all, &old.all, &new.all);
    all.shown("parts", Live, &old.parts, &new.parts);
    let all = all.found;
    let under =
        |table: &str, key: &KeyChange| KeyChange { key: format!("{table}.{}", key.key), ..key.clone() };
    let mut found: Vec<_> = all.iter().map(|key| under("workers", key)).collect();
    for (lane, change) in lanes(old, new) {
        let table = format!("workers.{lane}");
        match change {
            ServerChange::Unchanged => {}
            ServerChange::Changed(keys) => {
                found.extend(keys.iter().filter(|key| !all.contains(key)).map(|key| under(&table, key)));
            }
            ServerChange::Added | ServerChange::Removed => {
                let is_there = change == ServerChange::Added;
                let values = Some(((!is_there).to_string(), is_there.to_string()));
                found.push(KeyChange { key: table, values, apply: Live });
            }
        }
    }
    found
}

fn crew(old: &Crew<'_>, new: &Crew<'_>) -> Vec<KeyChange> {
    let mut compare = Compare::new("");
    let c = &mut compare;
    super::server::launch(c, &old.launch, &new.launch);
    c.shown("types", Replace, &old.types.to_vec(), &new.types.to_vec());
    c.shown("network", Replace, &old.network, &new.network);
    c.hidden("see", Replace, &old.see.to_vec(), &new.see.to_vec());
    settings(c, old.settings, new.settings);
    compare.found
}

/// What a worker is started with stays with it; how many there are and when one is replaced is asked each time anew.
fn settings(c: &mut Compare, old: &WorkerSettings, new: &WorkerSettings) {
    let WorkerSettings { spec, heartbeat, ready, limits, sandbox } = old;
    let WorkerSpec { scale, max_tasks, max_age, max_rss, jitter, idle } = spec;
    let ScaleSpec { min, max, up, down, interval } = scale;
    let ResourceLimits { memory, memory_warning: _, cpu, pids, open_files, nice } = limits;
    c.shown("min", Live, min, &new.spec.scale.min);
    c.shown("max", Live, max, &new.spec.scale.max);
    c.shown("up", Live, up, &new.spec.scale.up);
    c.shown("down", Live, down, &new.spec.scale.down);
    c.shown("interval", Live, interval, &new.spec.scale.interval);
    c.shown("max_tasks", Live, max_tasks, &new.spec.max_tasks);
    c.shown("max_age", Live, max_age, &new.spec.max_age);
    c.shown("max_rss", Live, &max_rss.map(Bytes), &new.spec.max_rss.map(Bytes));
    c.shown("jitter", Live, jitter, &new.spec.jitter);
    c.shown("idle", Live, idle, &new.spec.idle);
    c.shown("heartbeat", Live, heartbeat, &new.heartbeat);
    c.shown("ready", Live, ready, &new.ready);
    c.shown("memory", Replace, &memory.map(Bytes), &new.limits.memory.map(Bytes));
    c.shown("cpu", Replace, cpu, &new.limits.cpu);
    c.shown("pids", Replace, pids, &new.limits.pids);
    c.shown("open_files", Replace, open_files, &new.limits.open_files);
    c.shown("nice", Replace, nice, &new.limits.nice);
    c.shown("sandbox", Replace, sandbox.as_str(), new.sandbox.as_str());
}

/// `[projects.NAME]`. A project that is not there is one of which nothing is said.
pub(super) fn projects(old: &BTreeMap<String, Project>, new: &BTreeMap<String, Project>) -> Vec<KeyChange> {
    let unsaid = Project::default();
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let mut found = Vec::new();
    for name in names {
        let new = new.get(name).unwrap_or(&unsaid);
        let Project { limits, network, private, folders, memory, timeout_max } =
            old.get(name).unwrap_or(&unsaid);
        let ProjectLimits { running, queued, weight } = limits;
        let mut compare = Compare::new(format!("projects.{name}."));
        let c = &mut compare;
        c.shown("running", Live, running, &new.limits.running);
        c.shown("queued", Live, queued, &new.limits.queued);
        c.shown("weight", Live, weight, &new.limits.weight);
        c.shown("network", Live, network, &new.network);
        c.shown("private", Live, private, &new.private);
        c.hidden("folders", Live, folders, &new.folders);
        c.shown("memory", Live, &memory.map(Bytes), &new.memory.map(Bytes));
        c.shown("timeout_max", Live, timeout_max, &new.timeout_max);
        found.extend(compare.found);
    }
    found
}
