//! What each process tree uses, measured when somebody looks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ostler_os::meter::{Detail, Meter, TreeRoot, TreeUsage};

/// Remembers the last look, so that the share of the CPU since then can be told.
#[derive(Debug, Default)]
pub struct Usage {
    meter: Arc<Mutex<Meter>>,
}

impl Usage {
    /// Measures the trees of these guards in one pass over `/proc`, on a thread that may block.
    pub(crate) async fn measure(&self, guards: Vec<i32>) -> HashMap<i32, TreeUsage> {
        let meter = Arc::clone(&self.meter);
        let looked = tokio::task::spawn_blocking(move || {
            let roots: Vec<TreeRoot> =
                guards.iter().map(|&guard_pid| TreeRoot { guard_pid, guard_start: 0 }).collect();
            // What a look that panicked has left is overwritten by the next.
            let mut meter = meter.lock().unwrap_or_else(PoisonError::into_inner);
            let usage = meter.sample(&roots, Detail::default())?;
            Ok::<HashMap<_, _>, std::io::Error>(guards.into_iter().zip(usage).collect())
        });
        match looked.await {
            Ok(Ok(mut trees)) => {
                trees
                    .values_mut()
                    .for_each(|usage| usage.cpu_percent = (usage.cpu_percent * 10.0).round() / 10.0);
                trees
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "process trees cannot be measured");
                HashMap::new()
            }
            Err(_) => HashMap::new(),
        }
    }
}
