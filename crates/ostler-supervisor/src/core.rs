//! What every driver needs.

use std::sync::Arc;

use ostler_config::Config;

use crate::admission::Admission;
use crate::alerts::Alerts;
use crate::budget::Budget;
use crate::cleanup::Cleanup;
use crate::events::Events;
use crate::launch::Launcher;
use crate::ledger::Ledger;
use crate::log_file::LogFiles;
use crate::lull::Lull;
use crate::monitor::Monitor;
use crate::ports::Ports;
use crate::registry::Registry;

/// Shared by all drivers; nothing in it is locked for long.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: Arc<Config>,
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
}
