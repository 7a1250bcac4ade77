//! How near a limit is.

/// The part of a threshold by which a share must fall below it before the level falls, so that what hovers
/// about a threshold does not raise an alert with each measurement.
pub const HYSTERESIS: f64 = 0.05;

/// How near a limit is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum Level {
    /// Far enough.
    #[default]
    Normal,
    /// So near that somebody should know.
    Warning,
    /// So near that room must be made.
    Critical,
}

impl Level {
    /// The word used in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// From which share of a limit which level begins.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Thresholds {
    /// The share from which it is `Warning`.
    pub warning: f64,
    /// The share from which it is `Critical`; not less than `warning`.
    pub critical: f64,
}

impl Thresholds {
    /// For the kernel's stall figures (PSI): the share of the last ten seconds in which some task waited for
    /// memory. Critical at 60 %, the default at which systemd-oomd acts; warned of at a third of that.
    pub const STALL: Self = Self { warning: 0.2, critical: 0.6 };
}

impl Default for Thresholds {
    /// 75 % and 90 %.
    fn default() -> Self {
        Self { warning: 0.75, critical: 0.9 }
    }
}

/// Watches one share, and remembers its level.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Gauge {
    thresholds: Thresholds,
    level: Level,
}

impl Gauge {
    /// At `Normal`.
    pub fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, level: Level::Normal }
    }

    /// The level of the latest measurement.
    pub fn level(&self) -> Level {
        self.level
    }

    /// From which share which level begins.
    pub fn thresholds(&self) -> Thresholds {
        self.thresholds
    }

    /// Uses other thresholds from the next measurement on.
    pub fn set_thresholds(&mut self, thresholds: Thresholds) {
        self.thresholds = thresholds;
    }

    /// Takes the use of a limit; the level if it changed. A limit of 0 is reached by any use.
    pub fn measure(&mut self, used: u64, limit: u64) -> Option<Level> {
        // Dividing by zero gives infinity, but for nothing used of nothing.
        self.measure_share(if used == 0 { 0.0 } else { used as f64 / limit as f64 })
    }

    /// Takes a share; the level if it changed. What is no number changes nothing.
    pub fn measure_share(&mut self, share: f64) -> Option<Level> {
        if share.is_nan() {
            return None;
        }
        let reaches =
            |threshold: f64, had: bool| share >= if had { threshold * (1.0 - HYSTERESIS) } else { threshold };
        let level = if reaches(self.thresholds.critical, self.level == Level::Critical) {
            Level::Critical
        } else if reaches(self.thresholds.warning, self.level >= Level::Warning) {
            Level::Warning
        } else {
            Level::Normal
        };
        let changed = level != self.level;
        self.level = level;
        changed.then_some(level)
    }
}
