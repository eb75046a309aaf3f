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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turns::TenantId;

    const CAPACITY: usize = 3;

    fn revision(number: u64) -> RevisionId {
        RevisionId { evaluator: 0, number, tenant: TenantId::default() }
    }

    #[test]
    fn a_period_begins_whenever_four_times_as_many_went_as_there_are_places() {
        let mut uses = Uses::new(Eviction::Lfu, CAPACITY);
        for number in 0..=36 {
            assert_eq!(uses.period(), number / 12);
            let often = uses.back(revision(number));
            uses.evicted(revision(number), often);
        }
    }

    #[test]
    fn as_many_that_went_are_remembered_and_they_go_on_from_where_they_were() {
        let mut uses = Uses::new(Eviction::Lfu, CAPACITY);
        let often = Often { count: 6, period: 1 };
        uses.period = 1;
        for number in 0..11 {
            uses.evicted(revision(number), often);
        }
        assert_eq!(uses.back(revision(0)).count, 7);
        for number in 11..24 {
            uses.evicted(revision(number), often);
        }
        // Two periods on, the count is a quarter of what it was.
        assert_eq!((uses.period(), uses.gone.len()), (3, 12));
        assert_eq!(uses.back(revision(12)).count, 2);
        assert_eq!(uses.back(revision(11)).count, 1, "forgotten");
        assert_eq!(uses.gone.len(), 11);
    }

    #[test]
    fn who_goes_by_the_last_use_alone_remembers_nothing() {
        let mut uses = Uses::new(Eviction::Lru, CAPACITY);
        let often = uses.back(revision(1));
        uses.evicted(revision(1), often);
        assert_eq!((uses.gone.len(), uses.evicted), (0, 0));
    }
}
