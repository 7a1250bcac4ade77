//! Reads the configuration again and has it taken in: for a person's wish, a signal, and a changed file.

use std::fmt;
use std::sync::Arc;

use ostler_config::{Config, ConfigErrors};
use ostler_domain::event::Happening;

use super::{ReloadRefused, Report};
use crate::supervisor::{Caller, Supervisor};

/// Reads the configuration again from where the daemon was started with.
pub type Source = Box<dyn Fn() -> Result<Config, ConfigErrors> + Send + Sync>;

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadFailed {
    /// The configuration cannot be used. Everything that is wrong with it.
    #[error("the configuration cannot be used:\n{}", .0.render(false))]
    Config(ConfigErrors),
    /// It is sound, and not taken in all the same.
    #[error(transparent)]
    Refused(#[from] ReloadRefused),
}

/// See the module's documentation.
pub struct Reloader {
    supervisor: Arc<Supervisor>,
    caller: Caller,
    source: Source,
    /// Held from reading to the end, so that what was read later is taken in later.
    turn: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").field("caller", &self.caller).finish_non_exhaustive()
    }
}

impl Reloader {
    /// Takes what `source` reads in; what starts then starts on behalf of `caller`.
    pub fn new(supervisor: Arc<Supervisor>, caller: Caller, source: Source) -> Arc<Self> {
        Arc::new(Self { supervisor, caller, source, turn: tokio::sync::Mutex::default() })
    }

    /// Reads the configuration and takes it in; with `dry_run` only says what that would do. See
    /// [`Supervisor::reload`]. A failure is an event, except where nothing was to be done anyway.
    ///
    /// # Errors
    /// [`ReloadFailed`]; nothing was changed then.
    pub async fn reload(self: &Arc<Self>, dry_run: bool) -> Result<Report, ReloadFailed> {
        let reloader = Arc::clone(self);
        // In a task of its own, so that its turn lasts as long as what it began.
        let reloading = tokio::spawn(async move { reloader.read_and_reload(dry_run).await });
        // It fails only when the runtime ends, and all with it.
        let result = reloading.await.unwrap_or(Err(ReloadRefused::Stopping.into()));
        if let Err(failed) = &result
            && !dry_run
        {
            let why = failed.to_string();
            self.supervisor.events().record("daemon", Happening::ReloadFailed { why });
        }
        result
    }

    async fn read_and_reload(self: Arc<Self>, dry_run: bool) -> Result<Report, ReloadFailed> {
        let _turn = self.turn.lock().await;
        let reader = Arc::clone(&self);
        let read = tokio::task::spawn_blocking(move || (reader.source)());
        let config = match read.await {
            Ok(config) => config.map_err(ReloadFailed::Config)?,
            // The runtime is going.
            Err(_) => return Err(ReloadRefused::Stopping.into()),
        };
        for warning in &config.warnings {
            tracing::warn!("{}", warning.render(false));
        }
        Ok(self.supervisor.reload(config, dry_run, &self.caller).await?)
    }
}
