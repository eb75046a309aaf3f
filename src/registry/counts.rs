//! What the registry counts and shows, and the words that it counts under.

use serde::Serialize;

use crate::{
    metrics::{Metrics, RegistryCounts},
    words::words,
};

words! {
    /// Why a runtime was closed.
    pub(crate) enum CloseReason {
        Capacity = "capacity",
        /// For room in bytes.
        Memory = "memory",
        Idle = "idle",
        Replaced = "replaced",
        Closed = "closed",
        Shutdown = "shutdown",
        /// By the guard of its build, or because its build was no longer wanted.
        Invalid = "invalid",
    }
}

words! {
    /// How a lookup of a runtime ended.
    pub(crate) enum Lookup {
        Hit = "hit",
        Miss = "miss",
        Coalesced = "coalesced",
        Refused = "refused",
    }
}

impl CloseReason {
    pub(crate) fn is_eviction(self) -> bool {
        matches!(self, CloseReason::Capacity | CloseReason::Memory | CloseReason::Idle)
    }
}

/// What an evaluator's runtime is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RuntimeState {
    /// There is no runtime: the next call builds it.
    Cold,
    /// It is being built, or is about to be.
    Building,
    /// It serves calls.
    Live,
    /// It is closing, and waits for its last calls to finish.
    Draining,
}

/// Runtimes, instances and callers at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) building: usize,
    pub(crate) live: usize,
    pub(crate) draining: usize,
    pub(crate) idle: usize,
    pub(crate) busy: usize,
    pub(crate) waiting_capacity: usize,
    pub(crate) waiting_instance: usize,
    pub(crate) waiting_build: usize,
}

impl Counts {
    pub(super) fn show(self, version: u64, metrics: &Metrics) {
        let counts = RegistryCounts {
            runtimes: [self.building, self.live, self.draining],
            instances: [self.idle, self.busy],
            waiting: [self.waiting_capacity, self.waiting_instance, self.waiting_build],
        };
        metrics.set_counts(version, counts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::has_values;

    #[test]
    fn every_word_has_its_series() {
        let closes: Vec<&str> = CloseReason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert!(has_values("evalpool_closes_total", &closes));
        let evictions: Vec<&str> =
            CloseReason::ALL.iter().filter(|reason| reason.is_eviction()).map(|reason| reason.as_str()).collect();
        assert!(has_values("evalpool_evictions_total", &evictions));
        let lookups: Vec<&str> = Lookup::ALL.iter().map(|lookup| lookup.as_str()).collect();
        assert!(has_values("evalpool_lookups_total", &lookups));
    }
}
