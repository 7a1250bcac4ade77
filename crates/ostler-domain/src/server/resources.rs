//! What one instance of a server may use.

/// From this size, in bytes, the memory of an instance is warned of where nothing else is said: the 500 MiB
/// that the systems Ostler unites allowed a process. It is a warning and no limit, as some servers need more.
pub const MEMORY_WARNING: u64 = 500 << 20;

/// `[servers.NAME.limits]`: bounds of one instance, its whole tree taken together unless said otherwise.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ResourceLimits {
    /// Memory in bytes that it may not exceed; absent: only `limits.memory` of the daemon bounds it.
    pub memory: Option<u64>,
    /// Memory in bytes from which a warning is raised.
    pub memory_warning: u64,
    /// CPU time it may use, in cores (1.5: one and a half); absent: no bound.
    pub cpu: Option<f64>,
    /// Processes and threads it may have at once; absent: no bound.
    pub pids: Option<u32>,
    /// Files each of its processes may have open; absent: what the daemon's own processes may.
    pub open_files: Option<u32>,
    /// Its nice value, -20 (first) to 19 (last); absent: the daemon's own.
    pub nice: Option<i8>,
}

impl Default for ResourceLimits {
    fn default() -> Self {
        Self {
            memory: None,
            memory_warning: MEMORY_WARNING,
            cpu: None,
            pids: None,
            open_files: None,
            nice: None,
        }
    }
}
