//! What each process tree uses, measured when somebody looks.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ostler_os::stats::{Snapshot, TreeStats};

/// Remembers the last look, so that the share of the CPU since then can be told.
#[derive(Debug, Default)]
pub struct Usage {
    last: Mutex<HashMap<i32, (Instant, Duration)>>,
}

/// What one tree uses.
#[derive(Clone, Debug, Default)]
pub(crate) struct TreeUsage {
    pub(crate) stats: TreeStats,
    /// Share of one CPU since the last look, in per cent; 0 at the first.
    pub(crate) cpu_percent: f64,
}

impl Usage {
    /// Measures the trees of these guards in one pass over `/proc`, on a thread that may block.
    pub(crate) async fn measure(&self, guards: Vec<i32>) -> HashMap<i32, TreeUsage> {
        let looked = tokio::task::spawn_blocking(move || {
            let snapshot = Snapshot::take()?;
            Ok::<_, std::io::Error>(guards.into_iter().map(|guard| (guard, snapshot.tree(guard))).collect())
        });
        let trees: HashMap<i32, TreeStats> = match looked.await {
            Ok(Ok(trees)) => trees,
            Ok(Err(error)) => {
                tracing::warn!(%error, "process trees cannot be measured");
                HashMap::new()
            }
            Err(_) => HashMap::new(),
        };
        let now = Instant::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *last);
        let mut found = HashMap::with_capacity(trees.len());
        for (guard, stats) in trees {
            let cpu_percent = before.get(&guard).map_or(0.0, |(at, cpu)| {
                let wall = now.duration_since(*at).as_secs_f64();
                let used = stats.cpu_time.saturating_sub(*cpu).as_secs_f64();
                if wall > 0.0 { used / wall * 100.0 } else { 0.0 }
            });
            last.insert(guard, (now, stats.cpu_time));
            found.insert(guard, TreeUsage { stats, cpu_percent: (cpu_percent * 10.0).round() / 10.0 });
        }
        found
    }
}
