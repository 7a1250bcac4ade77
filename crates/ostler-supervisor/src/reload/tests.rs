//! Reloads of servers whose processes end when the test says so.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ostler_domain::{Scope, ServerSpec, StartMode, Transport};
use ostler_os::meter::TreeRoot;
use ostler_os::{Exit, GuardEvent, Mark, SpawnError, SpawnRequest};
use tokio::sync::mpsc;

use super::*;
use crate::events::Events;
use crate::launch::{Control, Input, KernelView, Launched, Launcher, Output};
use crate::ledger::Ledger;
use crate::log_file::LogFiles;

/// How long anything may take, in time that passes only when everybody waits.
const PATIENCE: Duration = Duration::from_secs(3600);

/// A process.
#[derive(Debug)]
struct Life {
    program: String,
    /// Whether it was told to end.
    told: bool,
    /// While it lives.
    says: Option<mpsc::Sender<GuardEvent>>,
}

impl Life {
    fn end(&mut self) {
        if let Some(says) = self.says.take() {
            let _ = says.try_send(GuardEvent::LeaderExited(Exit::Code(0)));
            let _ = says.try_send(GuardEvent::TreeEmpty);
        }
    }
}

/// All processes, and the programs that the kernel holds: they survive everything.
#[derive(Debug, Default)]
struct Lives {
    all: Vec<Life>,
    held: BTreeSet<String>,
    /// Some program ran twice at the same time.
    beside: bool,
}

/// Starts processes that do nothing.
#[derive(Clone, Debug, Default)]
struct Stage(Arc<Mutex<Lives>>);

impl Stage {
    fn lock(&self) -> MutexGuard<'_, Lives> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, program: &str) {
        self.lock().held.insert(program.to_owned());
    }

    fn release(&self, program: &str) {
        let mut lives = self.lock();
        lives.held.remove(program);
        lives.all.iter_mut().filter(|life| life.told && life.program == program).for_each(Life::end);
    }

    /// Every program that was started, in order.
    fn started(&self) -> Vec<String> {
        self.lock().all.iter().map(|life| life.program.clone()).collect()
    }

    async fn until_started(&self, program: &str) {
        until(program, || self.started().iter().any(|started| started == program)).await;
    }
}

impl Launcher for Stage {
    fn launch(&self, request: SpawnRequest) -> Result<Launched, SpawnError> {
        let (says, events) = mpsc::channel(4);
        let _ = says.try_send(GuardEvent::Started { pid: 0, start_time: 0 });
        let mut lives = self.lock();
        let program = request.program.to_string_lossy().into_owned();
        lives.beside |= lives.all.iter().any(|life| life.says.is_some() && life.program == program);
        lives.all.push(Life { program, told: false, says: Some(says) });
        let control = Box::new(Reins { stage: self.clone(), number: lives.all.len() - 1 });
        Ok(Launched {
            stdin: Input::Nobody,
            stdout: Output::Nobody,
            stderr: Output::Nobody,
            control,
            events,
            guard_pid: 0,
            guard_start: 0,
            mark: request.mark,
        })
    }

    fn look(&self, _trees: &[TreeRoot]) -> io::Result<KernelView> {
        Ok(KernelView::default())
    }

    fn end_strays(&self) {}

    fn end_marked(&self, _mark: Mark) {}
}

#[derive(Debug)]
struct Reins {
    stage: Stage,
    number: usize,
}

impl Control for Reins {
    fn terminate(&self) {
        self.kill();
    }

    fn kill(&self) {
        let mut lives = self.stage.lock();
        let held = lives.held.clone();
        let life = &mut lives.all[self.number];
        life.told = true;
        if !held.contains(&life.program) {
            life.end();
        }
    }
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let looking = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("it did not come to: {what}"));
}

fn me() -> Caller {
    Caller { principal: "me".into(), project: "mine".into() }
}

/// A plain process.
fn plain(name: &str, program: &str) -> ServerSpec {
    let mut spec = shared(name, program);
    spec.transport = Transport::None;
    spec
}

/// A server of everyone's, which never says a word.
fn shared(name: &str, program: &str) -> ServerSpec {
    let mut spec = ServerSpec::new(name.parse().expect("a name"), program);
    spec.scope = Scope::Shared;
    spec
}

fn config(servers: &[&ServerSpec]) -> Config {
    Config { servers: servers.iter().map(|&spec| spec.clone()).collect(), ..Config::default() }
}

/// A supervisor of these servers, with what starts with the daemon on its way; its ledger is in `dir`.
async fn supervisor(dir: &std::path::Path, servers: &[&ServerSpec]) -> (Arc<Supervisor>, Stage) {
    let (stage, events) = (Stage::default(), Arc::new(Events::default()));
    let mut store = ostler_store::Store::open(dir).expect("a store");
    let (ledger, mut jobs) = Ledger::queued("test".to_owned());
    tokio::spawn(async move {
        while let Some(job) = jobs.recv().await {
            job(&mut store);
        }
    });
    let files = LogFiles::new(None, Arc::clone(&events));
    let launcher = Arc::new(stage.clone());
    let assembled = Supervisor::assemble(Arc::new(config(servers)), launcher, ledger, events, files);
    let supervisor = assembled.await.expect("no server has to be remembered");
    supervisor.start_eager(&me());
    (supervisor, stage)
}

/// Reloads. The names that are still ending.
async fn reload(supervisor: &Arc<Supervisor>, config: Config) -> Vec<String> {
    let caller = me();
    let reload = tokio::time::timeout(PATIENCE, supervisor.reload(config, false, &caller)).await;
    let report = reload.expect("nobody waits without end").expect("it is taken in");
    report.ending.iter().map(ToString::to_string).collect()
}

#[tokio::test(start_paused = true)]
async fn what_does_not_end_is_waited_for_by_its_successors_only() {
    let dir = tempfile::tempdir().expect("a folder");
    let (supervisor, stage) = supervisor(dir.path(), &[&plain("tool", "a")]).await;
    stage.until_started("a").await;
    stage.hold("a");
    assert_eq!(reload(&supervisor, config(&[&plain("tool", "b"), &plain("comes", "x")])).await, ["tool"]);
    stage.until_started("x").await;
    // However many reloads lie between, be it that it is gone in one of them.
    assert!(!reload(&supervisor, config(&[&plain("tool", "c")])).await.is_empty());
    reload(&supervisor, config(&[&plain("other", "y")])).await;
    reload(&supervisor, config(&[&plain("other", "y"), &plain("tool", "d")])).await;
    stage.until_started("y").await;
    let tool = supervisor.server("tool").expect("it is configured");
    assert!(supervisor.start_server(&tool, &me()).await.is_err(), "its place is not free");
    assert!(supervisor.instance("tool.1").is_some(), "what runs has its place in the table");
    assert_eq!(stage.started(), ["a", "x", "y"]);
    let told = supervisor.events().after(0, usize::MAX);
    let first = told.iter().find(|event| event.kind == "reloaded").expect("it is told");
    assert!(first.message.ends_with("; still ending: tool"), "{}", first.message);
    stage.release("a");
    stage.until_started("d").await;
    assert_eq!(stage.started(), ["a", "x", "y", "d"]);
    assert!(supervisor.instance("tool.1").is_none() && supervisor.instance("tool.2").is_some());
    until("nothing is left of those before", || supervisor.servers().all().len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_parts_from_what_goes_waits_for_its_end() {
    let dir = tempfile::tempdir().expect("a folder");
    let (supervisor, stage) = supervisor(dir.path(), &[&shared("one", "a"), &shared("two", "a")]).await;
    // Before it runs: it says nothing, so it is killed soon.
    stage.hold("a");
    stage.until_started("a").await;
    assert_eq!(reload(&supervisor, config(&[&shared("two", "a")])).await, ["one"]);
    let two = supervisor.server("two").expect("it is configured");
    assert!(supervisor.start_server(&two, &me()).await.is_err(), "its place is not free");
    assert_eq!(stage.started(), ["a"]);
    stage.release("a");
    until("it has a process of its own", || supervisor.instance("two.1").is_some()).await;
    until("it is started", || stage.started().len() > 1).await;
    assert!(!stage.lock().beside, "never two");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_parts_stays_stopped_and_what_comes_back_uses_no_id_twice() {
    let dir = tempfile::tempdir().expect("a folder");
    let (one, two) = (shared("one", "a"), shared("two", "a"));
    let (supervisor, stage) = supervisor(dir.path(), &[&one, &two]).await;
    stage.until_started("a").await;
    supervisor.stop_server(&supervisor.server("two").expect("it is configured")).await;
    reload(&supervisor, config(&[&one, &shared("two", "b")])).await;
    let two = supervisor.server("two").expect("it is configured");
    assert!(two.stopped() && two.same_as().is_none());
    supervisor.start_server(&two, &me()).await.expect("a person may");
    stage.until_started("b").await;
    assert!(supervisor.instance("two.1").is_some());
    reload(&supervisor, config(&[&one])).await;
    assert!(supervisor.instance("two.1").is_none());
    reload(&supervisor, config(&[&one, &shared("two", "c")])).await;
    stage.until_started("c").await;
    assert!(supervisor.instance("two.1").is_none() && supervisor.instance("two.2").is_some());
}

#[tokio::test(start_paused = true)]
async fn what_goes_on_goes_by_all_of_its_new_definition() {
    let dir = tempfile::tempdir().expect("a folder");
    let (mut web, mut db) = (plain("web", "w"), plain("db", "d"));
    db.start = StartMode::OnDemand;
    let (supervisor, stage) = supervisor(dir.path(), &[&web, &db]).await;
    stage.until_started("w").await;
    web.depends_on = vec![db.name.clone()];
    reload(&supervisor, config(&[&web, &db])).await;
    stage.until_started("d").await;
    assert_eq!(stage.started(), ["w", "d"]);
    // As the loader does it.
    web.deadlines.kill = Duration::from_secs(77);
    let mut config = config(&[&web, &db]);
    config.limits.cleanup_time = web.deadlines.kill;
    let report = supervisor.reload(config, false, &me()).await.expect("it is taken in");
    assert!(report.servers.iter().all(|server| server.fate == Fate::Unchanged), "{report}");
    let web = supervisor.server("web").expect("it is configured");
    assert_eq!(web.spec.deadlines.kill, Duration::from_secs(77), "it has it from the whole daemon");
    assert_eq!(stage.started(), ["w", "d"], "nothing was touched");
}
