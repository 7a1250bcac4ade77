//! What happens to an instance, as its alerts see it.

use super::AlertKind;
use crate::event::{Happening, Severity};
use crate::instance::StopStep;

/// What a happening changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Something is wrong, or still is.
    Raise(AlertKind, Severity),
    /// That is over, if it was.
    Resolve(AlertKind),
}

/// What a happening to an instance means for its alerts. `cleanup_tries`: how often a tree may survive SIGKILL
/// before a person should know.
pub fn meaning(happening: &Happening, cleanup_tries: u32) -> &'static [Change] {
    use AlertKind::{CleanupFailure, ProcessFailure, ResourceViolation};
    match happening {
        // Each comes after its tree was seen empty.
        Happening::GaveUp { .. } | Happening::Failed { .. } => {
            &[Change::Resolve(CleanupFailure), Change::Raise(ProcessFailure, Severity::Error)]
        }
        Happening::Stopped { .. } => &[Change::Resolve(CleanupFailure), Change::Resolve(ProcessFailure)],
        Happening::RestartScheduled { .. } | Happening::Starting { .. } => &[Change::Resolve(CleanupFailure)],
        Happening::Ready { .. } => &[Change::Resolve(ProcessFailure)],
        Happening::LimitHit { .. } => &[Change::Raise(ResourceViolation, Severity::Warning)],
        // With this one begins the try after those.
        Happening::StopStep { step: StopStep::Kill, kills, .. } if *kills > cleanup_tries => {
            &[Change::Raise(CleanupFailure, Severity::Error)]
        }
        _ => &[],
    }
}
