//! What is wrong with an instance that serves. It is degraded while there is anything.

use std::collections::BTreeMap;

/// The kinds of things that may be wrong, each at most once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Ailment {
    /// What it depends on does not serve.
    Dependency,
    /// It closed its input or output.
    Closed,
    /// The stream on which it speaks by itself is lost.
    Stream,
    /// Probes of its health failed.
    Health,
    /// It uses much memory.
    Memory,
}

impl Ailment {
    /// Whether it ends with the process.
    fn is_of_process(self) -> bool {
        self != Self::Dependency
    }
}

#[derive(Debug, Default)]
pub(super) struct Ailments(BTreeMap<Ailment, String>);

impl Ailments {
    /// Sets or clears one; whether that changed anything.
    pub(super) fn set(&mut self, ailment: Ailment, reason: Option<String>) -> bool {
        match reason {
            Some(reason) => self.0.insert(ailment, reason.clone()) != Some(reason),
            None => self.0.remove(&ailment).is_some(),
        }
    }

    /// The process is gone, and what was wrong with it.
    pub(super) fn forget_process(&mut self) {
        self.0.retain(|ailment, _| !ailment.is_of_process());
    }

    /// All of them in words; `None` when nothing is wrong.
    pub(super) fn reason(&self) -> Option<String> {
        let reasons: Vec<&str> = self.0.values().map(String::as_str).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_well_when_nothing_is_left() {
        let mut ailments = Ailments::default();
        assert!(ailments.set(Ailment::Closed, Some("closed".into())));
        assert!(!ailments.set(Ailment::Closed, Some("closed".into())), "known");
        assert!(ailments.set(Ailment::Dependency, Some("no db".into())));
        assert_eq!(ailments.reason().as_deref(), Some("no db; closed"));
        ailments.forget_process();
        assert_eq!(ailments.reason().as_deref(), Some("no db"));
        assert!(ailments.set(Ailment::Dependency, None));
        assert_eq!(ailments.reason(), None);
    }
}
