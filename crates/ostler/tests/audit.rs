//! The audit on real processes, with a launcher that keeps the guard's end to itself. A program of its own: the test
//! itself is the daemon here, and what it adopts must be nobody else's.

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ostler_config::Config;
use ostler_domain::{Scope, ServerSpec, Transport};
use ostler_os::meter::TreeRoot;
use ostler_os::tree::Process;
use ostler_os::{GuardEvent, Mark, SpawnError, SpawnRequest, Spawner};
use ostler_supervisor::audit::Finding;
use ostler_supervisor::events::Events;
use ostler_supervisor::launch::{KernelView, Launched, Launcher};
use ostler_supervisor::ledger::Ledger;
use ostler_supervisor::log_file::LogFiles;
use ostler_supervisor::{Caller, Supervisor};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;

/// How long anything may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts real processes, and says nothing of how they end.
#[derive(Debug)]
struct Deaf(Spawner);

impl Launcher for Deaf {
    fn launch(&self, request: SpawnRequest) -> Result<Launched, SpawnError> {
        let mut launched = self.0.launch(request)?;
        let (sender, receiver) = mpsc::channel(16);
        let mut events = std::mem::replace(&mut launched.events, receiver);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if matches!(event, GuardEvent::Started { .. }) && sender.send(event).await.is_err() {
                    return;
                }
            }
            // As long as the driver listens, nothing ends.
            sender.closed().await;
        });
        Ok(launched)
    }

    fn look(&self, trees: &[TreeRoot]) -> io::Result<KernelView> {
        self.0.look(trees)
    }

    fn end_strays(&self) {
        self.0.end_strays();
    }

    fn end_marked(&self, mark: Mark) {
        self.0.end_marked(mark);
    }
}

async fn supervisor(dir: &Path) -> Arc<Supervisor> {
    ostler_os::become_subreaper().expect("a subreaper");
    let mut spec = ServerSpec::new("job".parse().expect("a name"), "sleep");
    spec.launch.args = vec!["1000".to_owned()];
    (spec.transport, spec.scope) = (Transport::None, Scope::Shared);
    spec.restart.backoff_min = Duration::from_millis(1);
    let config = Config { servers: vec![spec], ..Config::default() };
    let (ledger, left) = Ledger::open(dir, ostler_os::boot::boot_id().expect("a boot")).expect("a ledger");
    assert_eq!(left, []);
    let events = Arc::new(Events::default());
    let files = LogFiles::new(None, Arc::clone(&events));
    let launcher = Arc::new(Deaf(Spawner::new(env!("CARGO_BIN_EXE_ostler"))));
    Supervisor::assemble(Arc::new(config), launcher, ledger, events, files).await.expect("it starts")
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).expect("a pid"), Signal::KILL).expect("it lived");
}

fn exists(pid: u32) -> bool {
    ostler_os::tree::read(pid.cast_signed()).expect("/proc").is_some_and(|process| !process.is_zombie())
}

async fn until(done: impl Fn() -> bool) {
    let looking = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_kernel_contradicts_is_found_told_and_repaired() {
    let dir = tempfile::tempdir().expect("a directory");
    let supervisor = supervisor(dir.path()).await;
    let caller = Caller { principal: "me".into(), project: "mine".into() };
    let server = supervisor.server("job").expect("it is configured");
    supervisor.start_server(&server, &caller).await.expect("it may start");
    let handle = supervisor.instance("job.1").expect("it has started");
    let before = handle.snapshot();
    let (pid, guard) =
        (before.pid.expect("it runs"), before.tree.expect("it runs").root.guard_pid.unsigned_abs());
    assert_eq!(supervisor.registry().by_pid(pid).map(|found| found.id.to_string()).as_deref(), Some("job.1"));
    assert!(supervisor.registry().by_pid(std::process::id()).is_none());

    let audit = supervisor.audit().await.expect("/proc");
    assert_eq!((audit.instances, audit.findings), (1, vec![]), "all is well");

    // A child in a session of its own that no guard is for.
    let mut stray = Command::new("setsid").args(["sleep", "1000"]).spawn().expect("setsid(1) runs");
    let of_its_own = |process: Option<Process>| process.is_some_and(|it| it.session == it.pid);
    until(|| of_its_own(ostler_os::tree::read(stray.id().cast_signed()).expect("/proc"))).await;
    let audit = supervisor.audit().await.expect("/proc");
    assert_eq!(audit.findings, [Finding::UnknownChild { pid: stray.id() }]);
    // It was reaped as well, so that there is nothing to wait for.
    assert!(!exists(stray.id()));
    let waited = stray.wait();
    assert!(waited.is_err(), "nothing is left to wait for: {waited:?}");

    kill(guard);
    until(|| !exists(guard)).await;
    let expected = Finding::DeadEntry { instance: handle.id.clone(), generation: before.generation, guard };
    let audit = supervisor.audit().await.expect("/proc");
    assert!(audit.findings.contains(&expected), "{:?}", audit.findings);
    // It counts as ended, so that it is started again.
    until(|| handle.snapshot().pid.is_some_and(|now| now != pid)).await;
    assert!(!exists(pid));
    let told: Vec<String> = supervisor
        .events()
        .after(0, 1000)
        .into_iter()
        .filter(|event| event.kind == "inconsistent")
        .map(|event| event.subject)
        .collect();
    assert_eq!(told, ["daemon", "job.1"]);

    // The end of this one is kept quiet as well.
    let guard = handle.snapshot().tree.expect("it runs").root.guard_pid.unsigned_abs();
    let stopping = tokio::spawn({
        let supervisor = Arc::clone(&supervisor);
        async move { supervisor.shutdown("the end of the test").await }
    });
    until(|| !exists(guard)).await;
    supervisor.audit().await.expect("/proc");
    assert!(stopping.await.expect("it does not panic"), "the audit let the shutdown come to its end");
}
