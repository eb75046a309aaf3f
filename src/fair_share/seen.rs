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

/// Tenants that a thread tells apart in a period.
const MOST_TENANTS: usize = 64;

/// A slot for each thread or few.
pub(super) struct Seen {
    slots: Box<[Slot]>,
    /// What this thread has used of a processor, and for how long it has waited for one.
    clocks: fn() -> (Duration, Duration),
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
    began: Option<Instant>,
    /// What the clocks of the thread were then.
    clocks: (Duration, Duration),
    total: Duration,
    by: Vec<(TenantId, Duration)>,
}

/// What was last seen of a thread that was busy for a period.
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
        fn clocks() -> (Duration, Duration) {
            thread_local! {
                static CALLS: Cell<u32> = const { Cell::new(0) };
            }
            (PERIOD * CALLS.with(|calls| calls.replace(calls.get() + 1)), Duration::ZERO)
        }
        Self { clocks, ..Self::default() }
    }
}

/// What this thread has used of a processor, and for how long it has waited for one. Where the system does not tell that, it
/// is as if it slept.
fn thread_clocks() -> (Duration, Duration) {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let waited = told.split_whitespace().nth(1).and_then(|nanos| nanos.parse().ok());
    (processor_time(), Duration::from_nanos(waited.unwrap_or(0)))
}

impl Seen {
    /// Adds to what this thread has done. True when a period is over in which one tenant took more than its share.
    pub(super) fn add(&self, tenant: TenantId, used: Duration, now: Instant) -> bool {
        self.slots.get(own_slot()).is_some_and(|slot| slot.lock().add(tenant, used, now, self.clocks))
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
        clocks: impl Fn() -> (Duration, Duration),
    ) -> bool {
        let began = *self.began.get_or_insert_with(|| {
            self.clocks = clocks();
            now
        });
        self.total += used;
        if let Some((_, sum)) = self.by.iter_mut().find(|(known, _)| *known == tenant) {
            *sum += used;
        } else if self.by.len() < MOST_TENANTS {
            self.by.push((tenant, used));
        }
        if now - began < PERIOD {
            return false;
        }
        let (clocks, before) = (clocks(), self.clocks);
        let (processor, waited) = (clocks.0.saturating_sub(before.0), clocks.1.saturating_sub(before.1));
        let is_unfair = self.judge(now, now - began, processor, waited);
        (self.began, self.clocks, self.total) = (Some(now), clocks, Duration::ZERO);
        self.by.clear();
        is_unfair
    }

    /// What is around guests takes time too, so a quarter of the processor's is much. A thread is busy that does not sleep: it
    /// may share its processor with others, with builds above all. Where it was without one, that may be in the figure of any
    /// one tenant, so it is taken off the largest.
    fn judge(&mut self, now: Instant, length: Duration, processor: Duration, waited: Duration) -> bool {
        let tenants = u32::try_from(self.by.len()).unwrap_or(u32::MAX);
        let most = self.by.iter().map(|(_, used)| *used).max().unwrap_or_default();
        let alone = self.by.first().filter(|_| tenants == 1).map(|(tenant, _)| *tenant);
        let is_busy = (processor + waited) * 4 >= length * 3 && self.total * 4 >= processor;
        self.busy = is_busy.then_some(Busy { at: now, tenants, alone });
        let without = length.saturating_sub(processor);
        let [most, total] = [most, self.total].map(|used| used.saturating_sub(without));
        total * 4 >= processor && tenants > 1 && most * 3 > total && most * tenants * 2 > total * 3
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
        assert!(!period.add(first, Duration::ZERO, began, || (PERIOD, PERIOD)));
        for (tenant, used) in turns {
            assert!(!period.add(TenantId(*tenant), PERIOD * *used / 100, began, || (PERIOD, PERIOD)), "it is not over");
        }
        let ended = (PERIOD * (200 - without) / 100, PERIOD * (100 + waited) / 100);
        let is_unfair = period.add(first, Duration::ZERO, began + PERIOD, || ended);
        assert!(period.by.is_empty() && period.total.is_zero(), "the next begins with nothing");
        (is_unfair, period.busy)
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
