//! The monitor on a machine that shows what the test wants.

use std::io;
use std::path::PathBuf;

use ostler_config::Config;
use ostler_domain::Severity;
use ostler_domain::alert::AlertKind;
use ostler_os::meter::TreeRoot;
use ostler_os::pressure::Space;
use ostler_os::{Mark, SpawnError, SpawnRequest};

use super::machine::{Look, Looking};
use super::pressure::Coming;
use super::*;
use crate::admission::Counted;
use crate::events::Events;
use crate::launch::{KernelView, Launched, Launcher};
use crate::ledger::Ledger;
use crate::log_file::LogFiles;
use crate::supervisor::Supervisor;

const MIB: u64 = 1 << 20;

/// Starts nothing.
#[derive(Debug)]
struct Nothing;

impl Launcher for Nothing {
    fn launch(&self, _request: SpawnRequest) -> Result<Launched, SpawnError> {
        Err(SpawnError::Channels(io::ErrorKind::Unsupported.into()))
    }

    fn look(&self, _trees: &[TreeRoot]) -> io::Result<KernelView> {
        Ok(KernelView::default())
    }

    fn end_strays(&self) {}

    fn end_marked(&self, _mark: Mark) {}
}

/// Shows a file system with so many bytes free and a machine that rests, and counts the looks and the pulses.
#[derive(Debug, Default)]
struct Painted {
    free: AtomicU64,
    looks: AtomicU64,
    pulses: AtomicU64,
}

impl Machine for Painted {
    fn rungs(&self) -> Rungs {
        ostler_os::limits::rungs()
    }

    fn pulse(&self, _work: bool) -> Option<machine::Pulse> {
        self.pulses.fetch_add(1, Ordering::Relaxed);
        Some(rest::tests::pulse())
    }

    fn look(&self, ask: Ask) -> Looking<'_> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        let free_bytes = self.free.load(Ordering::Relaxed);
        let space = Space { total_bytes: 1000 << 30, free_bytes, total_inodes: 0, free_inodes: 0 };
        let spaces = ask.folders.into_iter().map(|folder| (folder, space)).collect();
        Box::pin(async move { Ok(Look { spaces, ..Look::default() }) })
    }
}

pub(super) async fn supervisor() -> Arc<Supervisor> {
    let (ledger, _jobs) = Ledger::queued("test".to_owned());
    let config = Arc::new(Config::default());
    let events = Arc::new(Events::default());
    let log_files = LogFiles::new(None, Arc::clone(&events));
    let assembled = Supervisor::assemble(config, Arc::new(Nothing), ledger, events, log_files);
    assembled.await.expect("no server has to be remembered")
}

/// The messages of events of this kind.
pub(super) fn told(supervisor: &Supervisor, kind: &str) -> Vec<String> {
    let events = supervisor.events().after(0, usize::MAX).into_iter();
    events.filter(|event| event.kind == kind).map(|event| event.message).collect()
}

#[test]
fn what_is_shared_counts_once_as_far_as_that_is_known() {
    let pss = Pss { bytes: 60, of_rss: 100, at_cpu_ms: 0 };
    let reading = |rss_bytes, pss| Reading { rss_bytes, pss, ..Reading::default() }.memory_bytes();
    assert_eq!(reading(100, None), 100);
    assert_eq!(reading(100, Some(pss)), 60);
    assert_eq!(reading(130, Some(pss)), 90, "what it grew by is its own");
    assert_eq!(reading(70, Some(pss)), 30);
    assert_eq!(reading(10, Some(pss)), 0);
}

#[tokio::test(start_paused = true)]
async fn who_looks_waits_for_a_pass_that_began_afterwards_and_not_for_ever() {
    let monitor = Arc::new(Monitor::default());
    let begun = Instant::now();
    monitor.measured().await;
    assert_eq!(begun.elapsed(), PATIENCE, "nobody measures");
    // One pass is under way.
    assert_eq!(monitor.begun.fetch_add(1, Ordering::AcqRel), 0);
    let waits = tokio::spawn({
        let monitor = Arc::clone(&monitor);
        async move { monitor.measured().await }
    });
    tokio::task::yield_now().await;
    monitor.done.send_replace(1);
    tokio::task::yield_now().await;
    assert!(!waits.is_finished(), "that one may have been past what is asked for");
    monitor.done.send_replace(2);
    waits.await.expect("it ends");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fills_up_is_told_and_that_it_is_over() {
    let supervisor = supervisor().await;
    let machine = Arc::new(Painted::default());
    machine.free.store(100 * MIB, Ordering::Relaxed);
    supervisor.monitor_by(Arc::clone(&machine) as Arc<dyn Machine>, vec![PathBuf::from("/state")]);
    let interval = supervisor.config().metrics.interval;
    tokio::time::sleep(interval * 2).await;
    let expected = "critical: the file system of `/state` has 100 MiB of 1000 GiB left";
    assert_eq!(told(&supervisor, "pressure"), [expected]);
    let alerts = supervisor.alerts().active();
    let alert = alerts.first().expect("raised");
    assert_eq!((alert.kind, alert.subject.as_str()), (AlertKind::Disk, "disk /state"));
    assert_eq!(alert.severity, Severity::Error);
    let gauge = supervisor.monitor().overview().gauges.last().cloned().expect("shown");
    assert_eq!((gauge.name.as_str(), gauge.level), ("disk /state", Level::Critical));

    machine.free.store(8192 * MIB, Ordering::Relaxed);
    tokio::time::sleep(interval * (u32::try_from(SPACE_EVERY).expect("small") + 1)).await;
    let last = told(&supervisor, "pressure").pop();
    assert_eq!(last.as_deref(), Some("normal: the file system of `/state` has 8 GiB of 1000 GiB left"));
    assert_eq!(supervisor.alerts().count(), 0);
    assert_eq!(
        machine.looks.load(Ordering::Relaxed),
        2,
        "nothing runs: there is only the disk, now and then"
    );
}

#[tokio::test(start_paused = true)]
async fn while_all_rests_it_is_looked_seldom_until_something_changes() {
    let supervisor = supervisor().await;
    let (core, machine) = (Arc::clone(&supervisor.core), Arc::new(Painted::default()));
    let interval = core.config().metrics.interval;
    core.monitor.changes.store(7, Ordering::SeqCst);
    let painted = Arc::clone(&machine) as Arc<dyn Machine>;
    let sessions = Arc::clone(supervisor.sessions());
    let mut watcher = Watcher::new(Arc::clone(&core), sessions, painted, Vec::new());
    (watcher.rest, watcher.passes) = (Some(rest::tests::rest(rest::tests::pulse(), 0, 0)), 1);
    tokio::spawn(watcher.run());
    let seen = || (machine.pulses.load(Ordering::Relaxed), core.monitor.begun.load(Ordering::Relaxed));
    tokio::time::sleep(interval * 3 / 2).await;
    assert_eq!(seen(), (1, 0), "it rests");
    tokio::time::sleep(interval * 3).await;
    assert_eq!(seen(), (1, 0), "and nobody looks whether it does");
    tokio::time::sleep(interval).await;
    assert_eq!(seen(), (2, 0));
    core.monitor.changed();
    tokio::time::sleep(interval * 11 / 10).await;
    assert_eq!(seen(), (3, 1), "what changed is measured after one interval");
    core.monitor.changed();
    tokio::time::sleep(interval).await;
    assert_eq!(seen(), (4, 2));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_short_of_memory_is_left_alone() {
    let supervisor = supervisor().await;
    let core = &supervisor.core;
    let mut pressure = Pressure::new(&core.config().limits, Vec::new());
    let nothing = trees::Total::default();
    let mut see = async |look: Look| {
        pressure.judge(core, supervisor.sessions(), &nothing, &look, &Coming::default()).await
    };
    let refusal = || core.admission.admit(Counted::Session("x")).err().map(|refusal| refusal.why);

    let stalled = |some_avg10| Some(MemoryStall { some_avg10, full_avg10: 0.0 });
    see(Look { stall: stalled(70.0), ..Look::default() }).await;
    let why = refusal().expect("nobody is let in");
    assert!(why.starts_with("processes of this machine wait for memory 70 % of the time: "), "{why}");
    let first = told(&supervisor, "pressure").remove(0);
    assert_eq!(first, "critical: in 70 % of the last 10 s something on this machine waited for memory");
    see(Look { stall: stalled(1.0), ..Look::default() }).await;
    assert_eq!(refusal(), None);

    // Where the kernel does not tell stalls.
    let memory = |available_bytes| Some(Memory { total_bytes: 1000 * MIB, available_bytes });
    see(Look { memory: memory(40 * MIB), ..Look::default() }).await;
    let why = refusal().expect("nobody is let in");
    assert!(why.starts_with("only 40 MiB of the machine's memory are left: "), "{why}");
    see(Look { memory: memory(400 * MIB), ..Look::default() }).await;
    assert_eq!(refusal(), None);
    assert_eq!(supervisor.alerts().count(), 0);
}
