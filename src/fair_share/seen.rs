//! Who takes how much of the threads' time, noted where nobody waits for another's writes.

#[cfg(test)]
use std::cell::Cell;
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::processor_time;
use crate::{
    stripes::{own_slot, slots},
    turns::TenantId,
};

/// For how long a thread adds up before it judges.
const PERIOD: Duration = Duration::from_millis(20);

/// For how many periods is remembered what was: guests that run long may fill one, and the others come in the next.
const RECENT: usize = 5;

/// Tenants that a thread tells apart in a period.
const MOST_TENANTS: usize = 64;

/// A slot for each thread or few.
pub(super) struct Seen {
    slots: Box<[Slot]>,
    /// What this thread has used of a processor, and for how long it has waited for one.
    clocks: fn(Instant) -> (Duration, Duration),
}

/// Alone on its cache lines, and on those that the processor fetches with them.
#[derive(Default)]
#[repr(align(128))]
struct Slot(Mutex<Period>);

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Period> {
        // Nothing panics under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Period {
    busy: Option<Busy>,
    /// The last ones.
    recent: [Past; RECENT],
    began: Option<Instant>,
    /// What the clocks of the thread were then.
    clocks: (Duration, Duration),
    total: Duration,
    /// In all periods.
    ever: Duration,
    by: Vec<(TenantId, Duration)>,
}

/// What is remembered of a period.
#[derive(Debug, Clone, Copy, Default)]
struct Past {
    length: Duration,
    /// What the thread had of a processor, and how long it waited for one.
    processor: Duration,
    waited: Duration,
    /// What it did for tenants, for how many, and for which if that was one.
    total: Duration,
    tenants: u32,
    alone: Option<TenantId>,
}

/// What was last seen of a thread that was busy.
#[derive(Debug, Clone, Copy)]
struct Busy {
    at: Instant,
    tenants: u32,
    /// The one tenant that it worked for.
    alone: Option<TenantId>,
}

impl Default for Seen {
    fn default() -> Self {
        Self { slots: (0..slots()).map(|_| Slot::default()).collect(), clocks: thread_clocks }
    }
}

#[cfg(test)]
impl Seen {
    /// Of threads that always have a processor, whatever the clock of the test is.
    pub(super) fn of_busy_threads() -> Self {
        fn clocks(now: Instant) -> (Duration, Duration) {
            thread_local! {
                static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
            }
            let began = BEGAN.get().unwrap_or(now);
            BEGAN.set(Some(began));
            (now - began, Duration::ZERO)
        }
        Self { clocks, ..Self::default() }
    }
}

/// What this thread has used of a processor, and for how long it has waited for one. Where the system does not tell that, it
/// is as if it slept.
fn thread_clocks(_now: Instant) -> (Duration, Duration) {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let waited = told.split_whitespace().nth(1).and_then(|nanos| nanos.parse().ok());
    (processor_time(), Duration::from_nanos(waited.unwrap_or(0)))
}

impl Seen {
    /// Adds to what this thread has done. Gives a tenant when a period is over in which that took more than its share.
    pub(super) fn add(&self, tenant: TenantId, used: Duration, now: Instant) -> Option<TenantId> {
        self.slots.get(own_slot())?.lock().add(tenant, used, now, self.clocks)
    }

    /// What all tenants have used so far.
    pub(super) fn total(&self) -> Duration {
        self.slots.iter().map(|slot| slot.lock().ever).sum()
    }

    /// How many threads were busy just now for others than this tenant, and for how many tenants.
    pub(super) fn busy_for_others(&self, tenant: TenantId, now: Instant) -> (usize, u32) {
        let busy = self.slots.iter().filter_map(|slot| slot.lock().busy);
        busy.filter(|busy| busy.alone != Some(tenant) && now < busy.at + PERIOD * 3)
            .fold((0, 0), |(threads, tenants), busy| (threads + 1, busy.tenants.max(tenants)))
    }
}

impl Period {
    fn add(
        &mut self,
        tenant: TenantId,
        used: Duration,
        now: Instant,
        clocks: impl Fn(Instant) -> (Duration, Duration),
    ) -> Option<TenantId> {
        let began = *self.began.get_or_insert_with(|| {
            self.clocks = clocks(now);
            now
        });
        self.total += used;
        self.ever += used;
        if let Some((_, sum)) = self.by.iter_mut().find(|(known, _)| *known == tenant) {
            *sum += used;
        } else if self.by.len() < MOST_TENANTS {
            self.by.push((tenant, used));
        }
        if now - began < PERIOD {
            return None;
        }
        let (clocks, before) = (clocks(now), self.clocks);
        let (processor, waited) = (clocks.0.saturating_sub(before.0), clocks.1.saturating_sub(before.1));
        let unfair = self.judge(now, now - began, processor, waited);
        (self.began, self.clocks, self.total) = (Some(now), clocks, Duration::ZERO);
        self.by.clear();
        unfair
    }

    /// What is around guests takes time too, so a quarter of the processor's is much. A thread is busy that does not sleep: it
    /// may share its processor with others, with builds above all. Where it was without one, that may be in the figure of any
    /// one tenant, so it is taken off the largest.
    fn judge(&mut self, now: Instant, length: Duration, processor: Duration, waited: Duration) -> Option<TenantId> {
        let tenants = u32::try_from(self.by.len()).unwrap_or(u32::MAX);
        let (first, most) = self.by.iter().copied().max_by_key(|(_, used)| *used)?;
        let alone = self.by.first().filter(|_| tenants == 1).map(|(tenant, _)| *tenant);
        self.recent.rotate_right(1);
        self.recent[0] = Past { length, processor, waited, total: self.total, tenants, alone };
        self.busy = self.busy_of_late(now);
        let without = length.saturating_sub(processor);
        let [most, total] = [most, self.total].map(|used| used.saturating_sub(without));
        let is_unfair = total * 4 >= processor && tenants > 1 && most * 3 > total && most * tenants * 2 > total * 3;
        is_unfair.then_some(first)
    }

    /// By all that is remembered: within one period a thread may have nothing to do for a moment.
    fn busy_of_late(&self, now: Instant) -> Option<Busy> {
        let sum = |of: fn(&Past) -> Duration| self.recent.iter().map(of).sum::<Duration>();
        let (length, processor) = (sum(|past| past.length), sum(|past| past.processor));
        let is_busy =
            (processor + sum(|past| past.waited)) * 4 >= length * 3 && sum(|past| past.total) * 4 >= processor;
        let tenants = self.recent.iter().map(|past| past.tenants).max()?;
        let [Past { alone, .. }, ..] = self.recent;
        let is_alone = self.recent.iter().all(|past| past.tenants == 0 || past.alone == alone);
        is_busy.then_some(Busy { at: now, tenants, alone: alone.filter(|_| is_alone) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is judged of a period in which tenants took turns of so many hundredths of it, while the thread was without a
    /// processor for some; and whether the thread was busy.
    fn judged(turns: &[(u64, u32)], without: u32) -> (bool, Option<Busy>) {
        judged_of(turns, without, 0)
    }

    /// The same where it waited for one in so much of that.
    fn judged_of(turns: &[(u64, u32)], without: u32, waited: u32) -> (bool, Option<Busy>) {
        let (mut period, began) = (Period::default(), Instant::now());
        let first = TenantId(turns[0].0);
        assert!(period.add(first, Duration::ZERO, began, |_| (PERIOD, PERIOD)).is_none());
        for (tenant, used) in turns {
            let added = period.add(TenantId(*tenant), PERIOD * *used / 100, began, |_| (PERIOD, PERIOD));
            assert!(added.is_none(), "it is not over");
        }
        let ended = (PERIOD * (200 - without) / 100, PERIOD * (100 + waited) / 100);
        let is_unfair = period.add(first, Duration::ZERO, began + PERIOD, |_| ended);
        assert!(period.by.is_empty() && period.total.is_zero(), "the next begins with nothing");
        (is_unfair.is_some(), period.busy)
    }

    #[test]
    fn one_tenant_beside_others_is_unfair_with_half_as_much_again_as_its_share_and_a_third_of_all() {
        let is_unfair = |turns: &[(u64, u32)]| judged(turns, 0).0;
        assert!(!is_unfair(&[(1, 100)]), "alone");
        assert!(!is_unfair(&[(1, 70), (2, 30)]));
        assert!(is_unfair(&[(1, 80), (2, 20)]));
        assert!(!is_unfair(&[(1, 20), (2, 4)]), "there is time for both");
        let many: Vec<(u64, u32)> = (2..32).map(|tenant| (tenant, 2)).collect();
        assert!(!is_unfair(&[&many[..], &[(1, 29)]].concat()));
        assert!(is_unfair(&[&many[..], &[(1, 31)]].concat()));
    }

    #[test]
    fn it_is_not_a_tenants_fault_that_the_thread_was_without_a_processor() {
        let ten: Vec<(u64, u32)> = (2..12).map(|tenant| (tenant, 4)).collect();
        let long = [&ten[..], &[(1, 60)]].concat();
        assert!(judged(&long, 0).0 && !judged(&long, 56).0);
        assert!(judged(&[(1, 95), (2, 5)], 70).0, "it shows all the same");
    }

    #[test]
    fn a_thread_is_busy_that_does_not_sleep_and_works_for_guests() {
        assert!(judged(&[(1, 24)], 0).1.is_none());
        assert!(judged(&[(1, 40)], 40).1.is_none(), "it sleeps");
        assert_eq!(judged_of(&[(1, 40)], 60, 50).1.unwrap().alone, Some(TenantId(1)), "it shares its processor");
        let busy = judged(&[(1, 20), (2, 20)], 0).1.unwrap();
        assert_eq!((busy.tenants, busy.alone), (2, None));

        let (seen, now) = (Seen::of_busy_threads(), Instant::now());
        for at in [now, now + PERIOD] {
            seen.add(TenantId(1), PERIOD, at);
        }
        let busy = |tenant, later| seen.busy_for_others(TenantId(tenant), now + PERIOD + later);
        assert_eq!(busy(1, Duration::ZERO), (0, 0));
        assert_eq!(busy(2, Duration::ZERO), (1, 1));
        assert_eq!(busy(2, PERIOD * 3), (0, 0), "that was long ago");
    }
}
