//! What `/api/process-pool/*` sends and takes: the paths and names of the system that people come from, for its clients.
//! Whoever writes a new client uses `/api/v1/pool` and `/api/v1/projects`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The pool of workers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProcessPoolStats {
    /// The workers.
    pub workers: ProcessPoolWorkers,
    /// The tasks.
    pub tasks: ProcessPoolTasks,
    /// Running and waiting tasks for each worker, 1 at most.
    pub load: f64,
    /// Running tasks of each project that has any.
    pub project_usage: BTreeMap<String, u64>,
    /// Milliseconds since the pool was started.
    pub uptime: u64,
}

/// Workers of all kinds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ProcessPoolWorkers {
    /// All of them.
    pub total: u64,
    /// Those without a task.
    pub available: u64,
    /// Those with one.
    pub busy: u64,
}

/// Tasks, as far as the journal keeps them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProcessPoolTasks {
    /// They wait.
    pub queued: u64,
    /// All of them.
    pub total: u64,
    /// They ended with a result.
    pub completed: u64,
    /// They ended without one.
    pub failed: u64,
    /// Mean time of the newest that ended with a result, in milliseconds.
    pub avg_time: u64,
}

impl ProcessPoolStats {
    /// What the pool's load is called there: running and waiting tasks for each worker, 1 at most.
    #[expect(clippy::cast_precision_loss, reason = "a share, of counts far below 2^53")]
    pub fn load(busy: u64, queued: u64, workers: u64) -> f64 {
        if workers == 0 { 0.0 } else { ((busy + queued) as f64 / workers as f64).min(1.0) }
    }
}

/// How many tasks of a project may run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProcessPoolLimit {
    /// The project.
    pub project_id: String,
    /// So many; 0: none begins.
    pub limit: u64,
}

/// That a limit was set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProcessPoolLimitSet {
    /// The same for people.
    pub message: String,
    /// The project.
    pub project_id: String,
    /// So many of its tasks may run.
    pub limit: u64,
}

/// Each project that has tasks or limits of its own.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct ProcessPoolUsage(pub BTreeMap<String, ProcessPoolProject>);

/// One project.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ProcessPoolProject {
    /// Its tasks that run.
    pub used: u64,
    /// Most of them.
    pub limit: u64,
    /// So many more may run.
    pub available: u64,
}

impl ProcessPoolProject {
    /// Of a project with so many running tasks, and this limit.
    pub fn of(used: u64, limit: u64) -> Self {
        Self { used, limit, available: limit.saturating_sub(used) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_that_other_peoples_scripts_read() {
        let stats = ProcessPoolStats {
            workers: ProcessPoolWorkers { total: 4, available: 3, busy: 1 },
            tasks: ProcessPoolTasks { queued: 2, total: 9, completed: 5, failed: 1, avg_time: 12 },
            load: ProcessPoolStats::load(1, 2, 4),
            project_usage: BTreeMap::from([("p".to_owned(), 1)]),
            uptime: 77,
        };
        assert_eq!(
            serde_json::to_string(&stats).expect("JSON"),
            r#"{"workers":{"total":4,"available":3,"busy":1},"tasks":{"queued":2,"total":9,"completed":5,"failed":1,"avgTime":12},"load":0.75,"projectUsage":{"p":1},"uptime":77}"#
        );
        let limit: ProcessPoolLimit =
            serde_json::from_str(r#"{"projectId":"p","limit":5}"#).expect("a limit");
        assert_eq!((limit.project_id.as_str(), limit.limit), ("p", 5));
        let usage = ProcessPoolUsage(BTreeMap::from([("p".to_owned(), ProcessPoolProject::of(7, 5))]));
        assert_eq!(
            serde_json::to_string(&usage).expect("JSON"),
            r#"{"p":{"used":7,"limit":5,"available":0}}"#
        );
    }

    #[test]
    fn load_is_a_share() {
        assert!(ProcessPoolStats::load(0, 5, 0).abs() < f64::EPSILON);
        assert!((ProcessPoolStats::load(4, 100, 4) - 1.0).abs() < f64::EPSILON);
    }
}
