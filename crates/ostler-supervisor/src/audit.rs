//! The audit: what Ostler believes to run, compared with what the kernel says.
//!
//! There should never be anything to find: the kernel reports every end, and each is acted on at once. What is found
//! all the same is repaired, and told, because then there is a fault to be mended. A thing is a finding only when two looks
//! with a pause in between both show it, as between two reports of the kernel every account is a moment behind.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ostler_domain::event::Happening;
use ostler_domain::{Generation, InstanceId};
use ostler_os::meter::TreeRoot;

use crate::core::Core;
use crate::instance::InstanceHandle;
use crate::instance::driver::Inbox;
use crate::ports::Holder;
use crate::registry::Registry;

/// Between the two looks. A report of the kernel is acted on within milliseconds.
const PAUSE: Duration = Duration::from_secs(1);

/// Something that is not as it should be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Finding {
    /// The registry has a process whose guard is gone. Repaired: what is left of it is ended, and it counts as ended.
    DeadEntry {
        /// The instance.
        instance: InstanceId,
        /// Which process of it.
        generation: Generation,
        /// The guard that is gone.
        guard: u32,
    },
    /// A child of the daemon that belongs to no instance. Repaired: it is ended, with all that it started.
    UnknownChild {
        /// Its pid.
        pid: u32,
    },
    /// A port is held for a process that is no more. Repaired: it is free.
    LeakedPort {
        /// The port.
        port: u16,
        /// For whom.
        instance: InstanceId,
        /// Which process of it.
        generation: Generation,
    },
}

impl Finding {
    /// A short, stable name for machines.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::DeadEntry { .. } => "dead-entry",
            Self::UnknownChild { .. } => "unknown-child",
            Self::LeakedPort { .. } => "leaked-port",
        }
    }

    /// What it is about: an instance, or the daemon.
    pub fn subject(&self) -> String {
        match self {
            Self::DeadEntry { instance, .. } | Self::LeakedPort { instance, .. } => instance.to_string(),
            Self::UnknownChild { .. } => "daemon".to_owned(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeadEntry { instance, generation, guard } => write!(
                f,
                "generation {generation} of {instance} was taken to run, but its guard {guard} is gone; it counts as \
                 ended now"
            ),
            Self::UnknownChild { pid } => {
                write!(f, "process {pid} is a child of the daemon and belongs to no instance; it was ended")
            }
            Self::LeakedPort { port, instance, generation } => write!(
                f,
                "port {port} was held for generation {generation} of {instance}, which is no more; it is free now"
            ),
        }
    }
}

/// What an audit looked at, and found.
#[derive(Clone, Debug)]
pub struct Audit {
    /// Instances with a process.
    pub instances: usize,
    /// Ports that are held.
    pub ports: usize,
    /// What was not as it should be. All of it is repaired, or is being.
    pub findings: Vec<Finding>,
}

/// Looks, repairs and tells.
///
/// # Errors
/// When `/proc` cannot be read; nothing was repaired then.
pub(crate) async fn audit(core: &Arc<Core>) -> io::Result<Audit> {
    let mut audit = look(core).await?;
    if !audit.findings.is_empty() {
        tokio::time::sleep(PAUSE).await;
        let again: BTreeSet<Finding> = look(core).await?.findings.into_iter().collect();
        audit.findings.retain(|finding| again.contains(finding));
    }
    for finding in &audit.findings {
        core.events.record(&finding.subject(), Happening::Inconsistent { what: finding.to_string() });
    }
    // What the kernel holds takes longer; it goes on, and the next audit finds what is left.
    let _ = tokio::time::timeout(core.config().limits.cleanup_time, repair(core, &audit.findings)).await;
    Ok(audit)
}

/// An audit every `registry.check`. Never returns.
pub(crate) async fn regularly(core: Arc<Core>) {
    loop {
        tokio::time::sleep(core.config().registry.check).await;
        if let Err(error) = audit(&core).await {
            tracing::warn!(%error, "the registry cannot be compared with the kernel");
        }
    }
}

async fn look(core: &Arc<Core>) -> io::Result<Audit> {
    let entries: Vec<_> = core.registry.instances().filter_map(|handle| entry(&handle)).collect();
    let ports = core.ports.held();
    let mut findings = leaked(&ports, &core.registry);
    let (launcher, trees) =
        (Arc::clone(&core.launcher), entries.iter().map(|(.., tree)| *tree).collect::<Vec<_>>());
    let looked = tokio::task::spawn_blocking(move || launcher.look(&trees)).await;
    let kernel = looked.map_err(io::Error::other)??;
    let dead = entries.iter().zip(kernel.living).filter(|(_, lives)| !lives);
    findings.extend(dead.map(|((instance, generation, tree), _)| Finding::DeadEntry {
        instance: instance.clone(),
        generation: *generation,
        guard: tree.guard_pid.unsigned_abs(),
    }));
    findings.extend(kernel.strays.into_iter().map(|pid| Finding::UnknownChild { pid }));
    Ok(Audit { instances: entries.len(), ports: ports.len(), findings })
}

/// An instance that has a process, by its own account.
fn entry(handle: &InstanceHandle) -> Option<(InstanceId, Generation, TreeRoot)> {
    let snapshot = handle.snapshot();
    Some((handle.id.clone(), snapshot.generation, snapshot.tree?.root))
}

/// The ports whose holders are no more, by the registry's account.
fn leaked(ports: &[(u16, Holder)], registry: &Registry) -> Vec<Finding> {
    let gone = |holder: &Holder| {
        let handle = registry.instance(&holder.instance.to_string());
        handle.is_none_or(|handle| {
            let snapshot = handle.snapshot();
            // One that is just being started is not published yet.
            snapshot.generation > holder.generation
                || (snapshot.generation == holder.generation && snapshot.state.is_empty())
        })
    };
    let leaked = ports.iter().filter(|(_, holder)| gone(holder));
    let finding = |(port, holder): &(u16, Holder)| Finding::LeakedPort {
        port: *port,
        instance: holder.instance.clone(),
        generation: holder.generation,
    };
    leaked.map(finding).collect()
}

async fn repair(core: &Arc<Core>, findings: &[Finding]) {
    let mut strays = false;
    for finding in findings {
        match finding {
            Finding::DeadEntry { instance, generation, .. } => {
                if let Some(handle) = core.registry.instance(&instance.to_string()) {
                    handle.wish(Inbox::Vanished(*generation)).await;
                }
            }
            Finding::UnknownChild { .. } => strays = true,
            Finding::LeakedPort { instance, generation, .. } => {
                let holder = Holder { instance: instance.clone(), generation: *generation };
                core.ports.release(&holder);
            }
        }
    }
    if strays && let Ok(turn) = Arc::clone(&core.strays).try_lock_owned() {
        let launcher = Arc::clone(&core.launcher);
        let ending = move || {
            launcher.end_strays();
            drop(turn);
        };
        // It fails only when the runtime is going.
        let _ = tokio::task::spawn_blocking(ending).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, mpsc};

    use ostler_os::{Mark, SpawnError, SpawnRequest};

    use super::*;
    use crate::events::Events;
    use crate::launch::{KernelView, Launched, Launcher};
    use crate::ledger::Ledger;
    use crate::log_file::LogFiles;
    use crate::ports::Ports;

    /// Ends strays as long as the other end of this is there.
    #[derive(Debug)]
    struct Slow(AtomicUsize, Mutex<mpsc::Receiver<()>>);

    impl Launcher for Slow {
        fn launch(&self, _request: SpawnRequest) -> Result<Launched, SpawnError> {
            Err(SpawnError::Channels(io::ErrorKind::Unsupported.into()))
        }

        fn look(&self, _trees: &[TreeRoot]) -> io::Result<KernelView> {
            Ok(KernelView::default())
        }

        fn end_strays(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
            assert!(self.1.lock().expect("nobody panics").recv().is_err());
        }

        fn end_marked(&self, _mark: Mark) {}
    }

    #[tokio::test]
    async fn strays_are_ended_by_one_at_a_time_however_many_audits_find_them() {
        let (held, hold) = mpsc::channel();
        let slow = Arc::new(Slow(AtomicUsize::new(0), Mutex::new(hold)));
        let launcher: Arc<dyn Launcher> = Arc::clone(&slow) as _;
        let (ledger, _jobs) = Ledger::queued("test".to_owned());
        let events = Arc::new(Events::default());
        let files = LogFiles::new(None, Arc::clone(&events));
        let core = Core::new(&Arc::default(), launcher, ledger, events, files);
        let found = [Finding::UnknownChild { pid: 7 }];
        let begun = async {
            while slow.0.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            // The next audit: it finds the same, and does not wait for it.
            repair(&core, &found).await;
            drop(held);
        };
        let both = async { tokio::join!(repair(&core, &found), begun) };
        tokio::time::timeout(Duration::from_secs(30), both).await.expect("nobody waits for another");
        assert_eq!(slow.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_port_that_is_held_for_nobody_is_found() {
        let ports = Ports::new(&ostler_config::Config::default());
        let holder = Holder {
            instance: InstanceId { server: "one".parse().expect("a name"), number: 1 },
            generation: Generation(2),
        };
        let wishes = [("viewer".to_owned(), ostler_domain::PortWish::Auto)].into();
        let given = ports.allocate(&wishes, &holder).expect("a port");
        let found = leaked(&ports.held(), &Registry::default());
        let port = given["viewer"];
        assert_eq!(
            found,
            [Finding::LeakedPort { port, instance: holder.instance.clone(), generation: Generation(2) }]
        );
        assert_eq!(found[0].subject(), "one.1");
    }
}
