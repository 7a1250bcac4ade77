//! What every driver needs.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use ostler_config::Config;
use ostler_domain::ServerSpec;

use crate::admission::{Admission, Bounds};
use crate::alerts::Alerts;
use crate::budget::Budget;
use crate::cleanup::Cleanup;
use crate::events::Events;
use crate::instance::driver::environment;
use crate::launch::Launcher;
use crate::ledger::Ledger;
use crate::log_file::LogFiles;
use crate::lull::Lull;
use crate::monitor::Monitor;
use crate::ports::Ports;
use crate::registry::Registry;

/// The variable that tells a server where the management API is served (`tell_session`).
const SOCKET_VARIABLE: &str = "OSTLER_SOCKET";

/// Shared by all drivers; nothing in it is locked for long.
#[derive(Debug)]
pub(crate) struct Core {
    config: ArcSwap<Config>,
    pub(crate) launcher: Arc<dyn Launcher>,
    pub(crate) ledger: Ledger,
    pub(crate) log_files: LogFiles,
    pub(crate) budget: Arc<Budget>,
    pub(crate) events: Arc<Events>,
    pub(crate) alerts: Arc<Alerts>,
    pub(crate) lull: Arc<Lull>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) cleanup: Arc<Cleanup>,
    pub(crate) ports: Arc<Ports>,
    pub(crate) monitor: Arc<Monitor>,
    /// Held while processes that belong to nobody are ended: what takes longer than an audit waits for is not begun anew by
    /// each of them.
    pub(crate) strays: Arc<tokio::sync::Mutex<()>>,
    /// Where the management API is served, once it is.
    pub(crate) socket: OnceLock<PathBuf>,
}

impl Core {
    pub(crate) fn new(
        config: &Arc<Config>,
        launcher: Arc<dyn Launcher>,
        ledger: Ledger,
        events: Arc<Events>,
        log_files: LogFiles,
    ) -> Arc<Self> {
        Arc::new(Self {
            budget: Budget::new(config.gateway.body_memory),
            config: ArcSwap::new(Arc::clone(config)),
            alerts: Alerts::start(config, &events, &launcher),
            launcher,
            ledger,
            log_files,
            events,
            lull: Arc::default(),
            registry: Arc::default(),
            admission: Admission::new(bounds(config)),
            cleanup: Cleanup::new(config.limits.cleanups),
            ports: Ports::new(config),
            monitor: Arc::default(),
            strays: Arc::default(),
            socket: OnceLock::new(),
        })
    }

    /// The environment of a process of this server that has these ports.
    pub(crate) fn environment(
        &self,
        spec: &ServerSpec,
        ports: &BTreeMap<String, u16>,
    ) -> Vec<(OsString, OsString)> {
        let mut env = environment(&spec.launch, ports);
        if let Some(socket) = self.socket.get().filter(|_| spec.tell_session) {
            env.push((SOCKET_VARIABLE.into(), socket.into()));
        }
        env
    }

    /// The configuration in force now. A reload may put another in its place at any time.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// Follows another configuration from now on, as far as it is about the whole daemon. Who has a place, a port or
    /// a slot keeps it.
    pub(crate) fn configure(&self, config: Arc<Config>) {
        self.admission.set_bounds(bounds(&config));
        self.ports.configure(&config);
        self.cleanup.set_slots(config.limits.cleanups);
        self.alerts.configure(&config);
        self.config.store(config);
        self.monitor.changed();
    }
}

fn bounds(config: &Config) -> Bounds {
    let limits = &config.limits;
    Bounds { processes: limits.processes, per_type: limits.per_type, adhoc: limits.adhoc }
}
