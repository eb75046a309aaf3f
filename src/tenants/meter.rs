//! What one evaluator's evaluations use, added up without a word that all threads write.
//!
//! Most evaluators are called seldom, or by one thread, and have one set of sums. When others come to it again and again,
//! each thread gets sums of its own, which are added up when somebody reads them. A set is changed as a whole, under a lock
//! that its thread takes alone: that is two writes to a line of its own, however many figures there are.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError},
    time::Duration,
};

use crate::{
    error::ErrorKind,
    stripes::{own_slot, slots},
    usage::{HttpUsage, Usage, UsageTotals},
};

/// How often one set of sums may change from thread to thread before each gets its own.
const MOST_MOVES: u32 = 64;

/// The counters of one evaluator.
#[derive(Debug, Default)]
pub(super) struct Counters {
    first: Stripe,
    /// Once there are several threads, theirs.
    others: OnceLock<Box<[Stripe]>>,
    /// Where to tell that something was added, as whom.
    tells: Option<(Arc<Changed>, u64)>,
}

/// The meters that something was added to since somebody looked.
#[derive(Debug, Default)]
pub(super) struct Changed(Mutex<HashSet<u64>>);

/// Alone on its cache lines, and on those that the processor fetches with them.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe(Mutex<Sums>);

/// Sums over evaluations. Times in nanoseconds: enough for centuries.
#[derive(Debug, Default)]
struct Sums {
    ok: u64,
    /// Those that failed, by why.
    failed: Vec<(ErrorKind, u64)>,
    guest: u64,
    total: u64,
    bytes_in: u64,
    bytes_out: u64,
    host_calls: u64,
    http: HttpUsage,
    fuel: u64,
    /// Which slot's thread added last, and how often it was another one. Only of the first set.
    last: usize,
    moves: u32,
    /// It was told that something was added. So that is told once for each set, however much is added.
    is_told: bool,
}

impl Changed {
    fn lock(&self) -> MutexGuard<'_, HashSet<u64>> {
        // Set operations.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self) -> HashSet<u64> {
        std::mem::take(&mut *self.lock())
    }

    pub(super) fn forget(&self, meter: u64) {
        self.lock().remove(&meter);
    }
}

impl Stripe {
    fn lock(&self) -> MutexGuard<'_, Sums> {
        // Nothing panics under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counters {
    /// Counters that tell when something was added to them that was not [looked](Self::look) at.
    pub(super) fn new(tells: Option<(Arc<Changed>, u64)>) -> Self {
        Self { tells, ..Self::default() }
    }

    /// Adds an evaluation that has ended.
    pub(super) fn add(&self, outcome: Result<(), ErrorKind>, usage: &Usage) {
        let own = own_slot();
        if let Some(stripe) = self.others.get().and_then(|others| others.get(own)) {
            return self.add_to(&mut stripe.lock(), outcome, usage);
        }
        let mut first = match self.first.0.try_lock() {
            Ok(first) => first,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                self.spread();
                self.first.lock()
            }
        };
        self.add_to(&mut first, outcome, usage);
        if first.last != own {
            (first.last, first.moves) = (own, first.moves + 1);
            if first.moves > MOST_MOVES {
                self.spread();
            }
        }
    }

    fn add_to(&self, sums: &mut Sums, outcome: Result<(), ErrorKind>, usage: &Usage) {
        sums.add(outcome, usage);
        if !std::mem::replace(&mut sums.is_told, true)
            && let Some((changed, meter)) = &self.tells
        {
            changed.lock().insert(*meter);
        }
    }

    fn spread(&self) {
        self.others.get_or_init(|| (0..slots()).map(|_| Stripe::default()).collect());
    }

    fn all(&self) -> impl Iterator<Item = MutexGuard<'_, Sums>> {
        [&self.first].into_iter().chain(self.others.get().into_iter().flatten()).map(Stripe::lock)
    }

    /// All that was added so far. Exact for evaluations that had ended before.
    pub(super) fn totals(&self) -> UsageTotals {
        self.all().fold(UsageTotals::default(), |totals, sums| sums.plus(totals))
    }

    /// The same. What is added from now on is told again.
    pub(super) fn look(&self) -> UsageTotals {
        self.all().fold(UsageTotals::default(), |totals, mut sums| {
            sums.is_told = false;
            sums.plus(totals)
        })
    }

    /// The same as `totals`, and begins anew. What is added meanwhile is in either, once.
    pub(super) fn take(&self) -> UsageTotals {
        self.all().fold(UsageTotals::default(), |totals, mut sums| std::mem::take(&mut *sums).plus(totals))
    }
}

impl Sums {
    fn add(&mut self, outcome: Result<(), ErrorKind>, usage: &Usage) {
        match outcome {
            Ok(()) => self.ok += 1,
            Err(kind) => match self.failed.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, count)) => *count += 1,
                None => self.failed.push((kind, 1)),
            },
        }
        self.guest = self.guest.saturating_add(nanoseconds(usage.guest));
        self.total = self.total.saturating_add(nanoseconds(usage.total));
        self.bytes_in += usage.bytes_in;
        self.bytes_out += usage.bytes_out;
        self.host_calls = self.host_calls.saturating_add(usage.host_calls);
        self.http.add(usage.http.unwrap_or_default());
        self.fuel = self.fuel.saturating_add(usage.fuel.unwrap_or_default());
    }

    fn plus(&self, mut totals: UsageTotals) -> UsageTotals {
        let failed = self.failed.iter().map(|(kind, count)| (kind.as_str(), *count));
        totals.add(&UsageTotals {
            evaluations: self.ok + failed.clone().map(|(_, count)| count).sum::<u64>(),
            outcomes: failed.chain((self.ok > 0).then_some(("ok", self.ok))).collect(),
            guest: Duration::from_nanos(self.guest),
            total: Duration::from_nanos(self.total),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            host_calls: self.host_calls,
            http: self.http,
            fuel: self.fuel,
        });
        totals
    }
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(time.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn threads_get_sums_of_their_own_when_they_come_to_one_evaluator_again_and_again() {
        let counters = Counters::default();
        let add = || counters.add(Ok(()), &Usage::default());
        let elsewhere = || thread::scope(|scope| scope.spawn(add).join().unwrap());
        (0..1000).for_each(|_| add());
        elsewhere();
        assert!(counters.others.get().is_none(), "one thread does not need them, nor does a visitor make it so");
        for _ in 0..MOST_MOVES {
            add();
            elsewhere();
        }
        assert!(counters.others.get().is_some());
        let before = counters.first.lock().ok;
        add();
        assert_eq!(counters.first.lock().ok, before, "it is not written to any more");
        assert_eq!(counters.totals().evaluations, 1002 + 2 * u64::from(MOST_MOVES));
        assert_eq!(counters.take().outcomes, [("ok", 1002 + 2 * u64::from(MOST_MOVES))].into());
        assert_eq!(counters.totals(), UsageTotals::default());
    }

    #[test]
    fn sums_fill_a_pair_of_cache_lines() {
        assert_eq!(size_of::<Stripe>(), 128);
    }
}
