//! How often runtimes are used: what [`Eviction::Lfu`](crate::config::Eviction::Lfu) goes by.
//!
//! A count per runtime, remembered for a while after its eviction. Counts fade: whenever four times as many runtimes were
//! evicted as there are places, a period begins, and a count is halved once for each period that has passed when it is
//! looked at. `benches/eviction` has what was compared, and the figures.

use lru::LruCache;

use super::super::RevisionId;
use crate::config::Eviction;

/// A use more or less makes no difference to what is used all the time.
const MOST: u8 = 7;

/// Periods and the memory of evicted runtimes, in places.
const PERIOD: usize = 4;

/// How often one runtime is used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Often {
    count: u8,
    period: u64,
}

/// The counts of what was evicted, and the period.
#[derive(Debug)]
pub(super) struct Uses {
    policy: Eviction,
    period: u64,
    /// Evictions in this period.
    evicted: usize,
    /// Evictions in a period, and counts that are remembered.
    most: usize,
    /// How many of the least recently used may go.
    among: usize,
    gone: LruCache<RevisionId, Often>,
}

impl Often {
    pub(super) fn used(&mut self, times: u64, period: u64) {
        let times = u8::try_from(times).unwrap_or(MOST);
        self.count = self.in_period(period).saturating_add(times).min(MOST);
        self.period = period;
    }

    fn in_period(self, period: u64) -> u8 {
        let halvings = u32::try_from(period.saturating_sub(self.period)).unwrap_or(u32::MAX);
        self.count.checked_shr(halvings).unwrap_or(0)
    }
}

impl Uses {
    pub(super) fn new(policy: Eviction, capacity: usize) -> Self {
        Self {
            policy,
            period: 0,
            evicted: 0,
            most: capacity.saturating_mul(PERIOD),
            among: (capacity / 4).max(12),
            gone: LruCache::unbounded(),
        }
    }

    pub(super) fn period(&self) -> u64 {
        self.period
    }

    /// A runtime is built: it goes on from where it was.
    pub(super) fn back(&mut self, revision: RevisionId) -> Often {
        let mut often = self.gone.pop(&revision).unwrap_or(Often { count: 0, period: self.period });
        often.used(1, self.period);
        often
    }

    pub(super) fn evicted(&mut self, revision: RevisionId, often: Often) {
        if self.policy == Eviction::Lru {
            return;
        }
        self.evicted += 1;
        if self.evicted >= self.most {
            self.evicted = 0;
            self.period += 1;
        }
        self.gone.push(revision, often);
        if self.gone.len() > self.most {
            self.gone.pop_lru();
        }
    }

    /// The one that goes, of those that may: least recently used first, with how often each is used.
    pub(super) fn victim(&self, mut may: impl Iterator<Item = (RevisionId, Often)>) -> Option<RevisionId> {
        let victim = match self.policy {
            Eviction::Lru => may.next(),
            // The first of equals.
            Eviction::Lfu => may.take(self.among).min_by_key(|(_, often)| often.in_period(self.period)),
        };
        victim.map(|(revision, _)| revision)
    }
}
