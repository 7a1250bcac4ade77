//! `ostler up`: configuration, build, run, drain.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ostler_api::{RuntimeDir, StateDir};
use ostler_cli::{Exit, Global, UpArgs};
use ostler_config::Config;
use ostler_gateway::{Gateway, serve};
use ostler_os::Spawner;
use ostler_supervisor::reload::Source;
use ostler_supervisor::{Caller, Reloader, Supervisor};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch::channel;
use tracing_subscriber::EnvFilter;

use crate::config::{complain, load, read, sources};
use crate::lock::{self, LockError};
use crate::{progress, watch};

/// Most threads that serve requests. More do not help: the work is moving bytes between processes.
const MAX_WORKERS: usize = 4;
/// Processors for each of them: the others are for the servers and workers that they wait for.
const PROCESSORS_EACH: usize = 2;
/// How long a thread for work that blocks is kept: longer than the minute after which, at the least, there is some.
const BLOCKING_KEPT: Duration = Duration::from_secs(90);
/// Most threads for work that blocks; what comes beyond that waits. Names of servers elsewhere are looked up on them, which may take
/// long.
const MAX_BLOCKING: usize = 64;

/// Why the daemon did not come up.
#[derive(Debug, thiserror::Error)]
enum UpError {
    #[error("cannot listen on {address}: {source}; another program may use it (gateway.listen)")]
    Listen { address: std::net::SocketAddr, source: io::Error },
    #[error("cannot make the socket {path}: {source}")]
    Socket { path: String, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Endpoint { path: String, source: io::Error },
    #[error("cannot handle signals: {0}")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Path(#[from] ostler_api::PathError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Supervisor(#[from] ostler_supervisor::StartError),
}

/// Runs the daemon until it is told to stop.
pub(crate) fn up(global: &Global, args: &UpArgs) -> Exit {
    let Some(files) = sources(&args.files) else { return Exit::Usage };
    let stamps = watch::Stamps::of(&files);
    let Some(config) = load(&files) else { return Exit::Usage };
    start_logging();
    ostler_os::own::give_back_large_memory();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = processors.div_ceil(PROCESSORS_EACH).min(MAX_WORKERS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_keep_alive(BLOCKING_KEPT)
        .max_blocking_threads(MAX_BLOCKING)
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(global, args, (files, stamps), config)),
        Err(error) => {
            complain(&format!("error: cannot start the runtime: {error}\n"));
            return Exit::Failed;
        }
    };
    match result {
        Ok(true) => Exit::Done,
        Ok(false) => Exit::Failed,
        Err(error) => {
            complain(&format!("error: {error}\n"));
            Exit::Failed
        }
    }
}

/// The daemon's own log goes to standard error; `OSTLER_LOG` says how much.
fn start_logging() {
    let filter = EnvFilter::try_from_env("OSTLER_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// True when everything was stopped.
async fn run(
    global: &Global,
    args: &UpArgs,
    (files, stamps): (Vec<PathBuf>, watch::Stamps),
    config: Config,
) -> Result<bool, UpError> {
    let runtime_dir = RuntimeDir::resolve(global.runtime_dir.as_deref())?;
    let state_dir = StateDir::resolve()?;
    runtime_dir.ensure()?;
    state_dir.ensure()?;
    // The locks come before all else: with both, no other daemon uses the socket or the ledger.
    let _runtime_lock = lock::take(runtime_dir.root(), &runtime_dir.lock())?;
    let _state_lock = lock::take(state_dir.root(), &state_dir.root().join("lock"))?;
    let mut stop = Stop::listen().map_err(UpError::Signals)?;

    let address = config.gateway.listen;
    let tcp = TcpListener::bind(address).await.map_err(|source| UpError::Listen { address, source })?;
    let bound = tcp.local_addr().map_err(|source| UpError::Listen { address, source })?;
    let socket = runtime_dir.socket();
    let unix = serve::bind_unix(&socket)
        .map_err(|source| UpError::Socket { path: socket.display().to_string(), source })?;

    let spawner = Spawner::default();
    spawner.warm();
    let supervisor =
        Supervisor::start(Arc::new(config), state_dir.root(), runtime_dir.root(), spawner).await?;
    let base = format!("http://{bound}");
    let source: Source = Box::new({
        let files = files.clone();
        move || read(&files)
    });
    let reloader = Reloader::new(Arc::clone(&supervisor), local_caller(), source);
    let following =
        tokio::spawn(watch::follow(files, stamps, Arc::clone(&supervisor), Arc::clone(&reloader)));
    let gateway = Gateway::new(Arc::clone(&supervisor), reloader, local_caller(), base.clone());
    let (close, closing) = channel(false);
    tokio::spawn(serve::tcp(Arc::clone(&gateway), tcp, closing.clone()));
    tokio::spawn(serve::unix(Arc::clone(&gateway), unix, closing));
    write_endpoint(&runtime_dir.endpoint(), &base)
        .map_err(|source| UpError::Endpoint { path: runtime_dir.endpoint().display().to_string(), source })?;

    supervisor.serves_at(&socket);
    if !args.no_eager {
        supervisor.start_eager(&gateway.local);
    }
    let watching = tokio::spawn({
        let (supervisor, base) = (Arc::clone(&supervisor), base);
        async move {
            progress::follow(&supervisor, &base).await;
            // Of what starting took, little is needed again. It fails only when the runtime is going.
            let _ = tokio::task::spawn_blocking(ostler_os::own::give_back_memory).await;
        }
    });
    let reason = stop.asked(&gateway).await;
    watching.abort();
    following.abort();
    let _ = std::fs::remove_file(runtime_dir.endpoint());
    let all_stopped = supervisor.shutdown(reason).await;
    close.send_replace(true);
    let _ = std::fs::remove_file(&socket);
    if !all_stopped {
        complain("error: some processes did not stop in time; their guards go on ending them\n");
    }
    Ok(all_stopped)
}

/// Who calls on this machine: the user the daemon runs for.
fn local_caller() -> Caller {
    let user = std::env::var("USER").ok().filter(|user| !user.is_empty());
    Caller { principal: user.unwrap_or_else(|| "local".to_owned()).into(), project: "default".into() }
}

/// Says where the listener is; written whole or not at all.
fn write_endpoint(path: &Path, base: &str) -> io::Result<()> {
    let json = serde_json::json!({ "http": base, "pid": std::process::id() });
    let draft = path.with_extension("new");
    std::fs::write(&draft, format!("{json}\n"))?;
    std::fs::rename(&draft, path)
}

/// The ways in which a daemon is told to stop.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    /// Whether it was started in a terminal, which may be closed.
    in_terminal: bool,
}

impl Stop {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            in_terminal: io::stdin().is_terminal(),
        })
    }

    /// Resolves with the reason. SIGHUP means that the terminal was closed, where there was one; else it asks for a
    /// reload.
    async fn asked(&mut self, gateway: &Gateway) -> &'static str {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return "interrupted (SIGINT)",
                _ = self.terminate.recv() => return "the daemon was terminated (SIGTERM)",
                () = gateway.shutdown.notified() => return "`ostler down`",
                _ = self.hangup.recv() => {
                    // The kernel hangs a terminal up before it says so: what was one is none any more.
                    if self.in_terminal && !io::stdin().is_terminal() {
                        return "its terminal was closed (SIGHUP)";
                    }
                    let reloader = Arc::clone(&gateway.reloader);
                    // What comes of it is an event, and in the log.
                    tokio::spawn(async move { drop(reloader.reload(false).await) });
                }
            }
        }
    }
}
