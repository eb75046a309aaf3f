//! How far apart lookups of the same evaluator are, as a counter for each capacity.
//!
//! A histogram would say the same, but an exporter has to be told its bounds, and one that was not keeps each value apart.

use std::sync::atomic::Ordering;

use super::Metrics;

/// How many bounds there are: the powers of two from 1 on.
pub(crate) const REUSE_BOUNDS: usize = 17;

/// The bounds, and all.
pub(super) const REUSE_WITHIN: &[&str; REUSE_BOUNDS + 1] = &[
    "1", "2", "4", "8", "16", "32", "64", "128", "256", "512", "1024", "2048", "4096", "8192", "16384", "32768",
    "65536", "+Inf",
];

impl Metrics {
    /// Of how many runtimes threads had parked instances of late.
    pub(crate) fn set_parking(&self, runtimes: usize) {
        let bound = runtimes.saturating_sub(1).checked_ilog2().map_or(0, |log| log as usize + 1);
        self.parked_within.store(bound, Ordering::Relaxed);
    }

    /// Lookups within each bound, and in all.
    pub(crate) fn reused(&self, within: [u64; REUSE_BOUNDS + 1]) {
        for ((_, counter), more) in self.reuse.iter().zip(within).filter(|(_, more)| *more > 0) {
            counter.increment(more);
        }
    }

    /// Calls of instances that their threads had parked. Such runtimes are called without a pause: between two calls of one
    /// there may be calls of all the others, and hardly of any more.
    pub(super) fn reused_parked(&self, calls: u64) {
        for (_, counter) in self.reuse.iter().skip(self.parked_within.load(Ordering::Relaxed)) {
            counter.increment(calls);
        }
    }
}
