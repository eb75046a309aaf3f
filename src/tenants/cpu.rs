//! The processor time of one tenant's guests: a token bucket.
//!
//! It is kept as one number, the moment at which all that was used is paid for. What is used moves that moment on by as much
//! time as the tenant gets so much in. Calls are refused while it lies ahead; it never lies further back than the burst.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::error::{Bound, Error};

/// What was left unused for so long can be used at once. In nanoseconds.
const BURST: u64 = 5_000_000_000;

const SECOND: u64 = 1_000_000_000;

/// What one tenant's guests may use, and have used.
#[derive(Debug)]
pub(crate) struct CpuTime {
    /// Nanoseconds a second; 0 if it is not bounded.
    rate: AtomicU64,
    /// In nanoseconds since a burst before `began`.
    paid_at: AtomicU64,
    began: Instant,
}

impl CpuTime {
    pub(super) fn new(rate: Option<Duration>) -> Self {
        let this = Self { rate: AtomicU64::new(0), paid_at: AtomicU64::new(0), began: Instant::now() };
        this.set(rate);
        this
    }

    pub(super) fn set(&self, rate: Option<Duration>) {
        let new = rate.map_or(0, nanos);
        let old = self.rate.swap(new, Ordering::Relaxed);
        if old == new || old == 0 || new == 0 {
            return;
        }
        // What was used stays used, and is paid for as fast as the tenant gets it now.
        let oldest = self.at(Instant::now()) - BURST;
        let _ = self.paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| {
            let used = u128::from(paid.saturating_sub(oldest)) * u128::from(old) / u128::from(new);
            Some(oldest.saturating_add(u64::try_from(used).unwrap_or(u64::MAX)))
        });
    }

    fn at(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.began)).saturating_add(BURST)
    }

    /// Whether a guest may begin to run.
    ///
    /// # Errors
    ///
    /// [`Error::QuotaExceeded`], which says when it may.
    pub(crate) fn check(&self, now: Instant) -> Result<(), Error> {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return Ok(());
        }
        match self.paid_at.load(Ordering::Relaxed).checked_sub(self.at(now)) {
            None | Some(0) => Ok(()),
            Some(ahead) => Err(Error::QuotaExceeded {
                tenant: "".into(),
                bound: Bound::CpuPerSecond,
                limit: rate,
                retry_after: Duration::from_nanos(ahead),
            }),
        }
    }

    /// Charges what a guest runs while it is made: the time of its polls.
    pub(crate) async fn charged<T>(&self, making: impl Future<Output = T>) -> T {
        if self.rate.load(Ordering::Relaxed) == 0 {
            return making.await;
        }
        let mut making = pin!(making);
        poll_fn(|context| {
            let began = Instant::now();
            let polled = making.as_mut().poll(context);
            self.charge(began.elapsed());
            polled
        })
        .await
    }

    /// A guest has run so long.
    pub(crate) fn charge(&self, ran: Duration) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 || ran.is_zero() {
            return;
        }
        let pays = u128::from(nanos(ran)) * u128::from(SECOND) / u128::from(rate);
        let (pays, oldest) = (u64::try_from(pays).unwrap_or(u64::MAX), self.at(Instant::now()) - BURST);
        // Each charge is added once, in whatever order.
        let _ = self
            .paid_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| Some(paid.max(oldest).saturating_add(pays)));
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn refused_for(cpu: &CpuTime) -> Option<Duration> {
        cpu.check(Instant::now()).err().and_then(|error| error.retry_after())
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_as_much_as_the_tenant_has_each_second() {
        let cpu = CpuTime::new(Some(Duration::from_millis(100)));
        cpu.charge(Duration::from_millis(500));
        assert_eq!(refused_for(&cpu), None, "five seconds' worth");
        cpu.charge(Duration::from_millis(100));
        assert_eq!(refused_for(&cpu), Some(Duration::from_secs(1)));
        advance(Duration::from_millis(999)).await;
        assert_eq!(refused_for(&cpu), Some(Duration::from_millis(1)));
        advance(Duration::from_millis(1)).await;
        assert_eq!(refused_for(&cpu), None);
        advance(Duration::from_hours(1)).await;
        cpu.charge(Duration::from_millis(501));
        assert_eq!(refused_for(&cpu), Some(Duration::from_millis(10)), "no more is saved than a burst");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_that_gets_more_from_now_on_pays_what_it_has_used_sooner() {
        let cpu = CpuTime::new(Some(Duration::from_millis(1)));
        cpu.charge(Duration::from_secs(5));
        assert_eq!(refused_for(&cpu), Some(Duration::from_secs(4995)));
        cpu.set(Some(Duration::from_millis(500)));
        assert_eq!(refused_for(&cpu), Some(Duration::from_secs(5)));
        cpu.set(Some(Duration::from_secs(1)));
        assert_eq!(refused_for(&cpu), None, "a burst");
        cpu.charge(Duration::from_nanos(1));
        assert!(refused_for(&cpu).is_some(), "which is used up");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_bounded_is_not_counted_and_a_new_bound_begins_anew() {
        let cpu = CpuTime::new(None);
        cpu.charge(Duration::from_hours(1));
        cpu.set(Some(Duration::from_secs(2)));
        assert_eq!(refused_for(&cpu), None);
        cpu.charge(Duration::from_secs(20));
        assert_eq!(refused_for(&cpu), Some(Duration::from_secs(5)), "two cores");
        cpu.set(None);
        assert_eq!(refused_for(&cpu), None);
        cpu.set(Some(Duration::MAX));
        cpu.charge(Duration::MAX);
        cpu.set(Some(Duration::from_millis(1)));
        cpu.charge(Duration::MAX);
        assert!(refused_for(&cpu).is_some());
    }
}
