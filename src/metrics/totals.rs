//! What was counted since the pool began, for whoever asks the pool itself. A recorder can be told things, and not be asked.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use metrics::Counter;
use serde::Serialize;

use super::{Metrics, Series};

/// What a pool has counted since it was made, by the words of its metrics' labels. Only words that something was counted
/// under are there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PoolTotals {
    /// Evaluations that ended: `ok`, or the word of an [`ErrorKind`](crate::ErrorKind).
    pub evaluations: BTreeMap<&'static str, u64>,
    /// Lookups of a runtime: `hit`, `miss` (it was to be built), `coalesced` (its build was under way), `refused`.
    pub lookups: BTreeMap<&'static str, u64>,
    /// Builds that ended: `ok`, or the word of an [`ErrorKind`](crate::ErrorKind).
    pub builds: BTreeMap<&'static str, u64>,
    /// Runtimes that were evicted: `capacity`, `memory`, `idle`.
    pub evictions: BTreeMap<&'static str, u64>,
    /// Runtimes that were closed, evicted ones included, by reason: as evictions, and `replaced`, `closed`, `shutdown`,
    /// `invalid`.
    pub closes: BTreeMap<&'static str, u64>,
    /// Of the closes, those whose guests had to be interrupted.
    pub closes_forced: u64,
}

/// A recorder's counter, and what it was told.
#[derive(Clone)]
pub(super) struct Total {
    told: Counter,
    sum: Arc<AtomicU64>,
}

impl Total {
    pub(super) fn of(told: Counter) -> Self {
        Self { told, sum: Arc::default() }
    }

    pub(super) fn increment(&self, more: u64) {
        self.sum.fetch_add(more, Ordering::Relaxed);
        self.told.increment(more);
    }

    /// The same for what is counted elsewhere, by its sum so far; what comes late and is less changes nothing.
    pub(super) fn raise_to(&self, sum: u64) {
        let before = self.sum.fetch_max(sum, Ordering::Relaxed);
        self.told.increment(sum.saturating_sub(before));
    }
}

/// What was counted under each word, in all these series together.
fn sums<'a>(series: impl IntoIterator<Item = &'a Series<Total>>) -> BTreeMap<&'static str, u64> {
    let mut sums = BTreeMap::new();
    for (word, total) in series.into_iter().flatten() {
        let sum = total.sum.load(Ordering::Relaxed);
        if sum > 0 {
            *sums.entry(*word).or_default() += sum;
        }
    }
    sums
}

impl Metrics {
    /// What the recorder was told of so far: [`tell`](Metrics::tell) first.
    pub(crate) fn totals(&self) -> PoolTotals {
        PoolTotals {
            evaluations: sums([&self.evaluations]),
            lookups: sums([&self.lookups]),
            builds: sums([&self.builds]),
            evictions: sums([&self.evictions]),
            closes: sums([&self.closes_drained, &self.closes_forced]),
            closes_forced: sums([&self.closes_forced]).into_values().sum(),
        }
    }
}
