//! Makes guests that run long give way to short ones.
//!
//! A guest returns to the executor at each tick. That alone would put sixty endless guests in front of a short one, a
//! tick each. So from its second tick on a guest needs a [permit](crate::fair_share), and while it waits for one it is not in
//! the executor's queue. A guest with a permit lets all other ready tasks run before it goes on. So a new guest waits for
//! about one tick, however many run long.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::time::Instant;

use super::ticker::TICK;
use crate::{
    fair_share::{FairShare, Permit},
    turns::TenantId,
};

/// One guest's claim to a permit. It holds one only while it runs long.
pub(super) struct RunPermit {
    share: FairShare,
    tenant: TenantId,
    slot: Arc<PermitSlot>,
    ticks: u32,
}

/// Alone on its cache lines: each call counts a reference to it, and slots of guests that were made one after the other
/// would lie side by side.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct PermitSlot {
    permit: Mutex<Option<Permit>>,
    /// The guest waits at a tick: for a permit, or for others to go first.
    at_tick: AtomicBool,
}

impl RunPermit {
    /// For a guest of this tenant that has not run yet.
    pub(super) fn new(share: FairShare, tenant: TenantId) -> Self {
        Self { share, tenant, slot: Arc::default(), ticks: 0 }
    }

    /// Resolves when the guest, whose tick is over, may go on.
    pub(super) fn tick(&mut self) -> impl Future<Output = ()> + Send + 'static {
        self.ticks = self.ticks.saturating_add(1);
        let (share, slot, tenant) = (self.share.clone(), self.slot.clone(), self.tenant);
        let runs_long = self.ticks > 1;
        async move {
            slot.at_tick.store(true, Ordering::Relaxed);
            if runs_long {
                slot.put(None);
                share.note(tenant, TICK, Instant::now());
                if share.paces(tenant) {
                    share.wait_for_others(tenant).await;
                }
                let permit = share.acquire_after_others(tenant).await;
                slot.put(Some(permit));
            } else {
                tokio::task::yield_now().await;
            }
            slot.at_tick.store(false, Ordering::Relaxed);
        }
    }

    /// The slot to run the guest in.
    pub(super) fn slot(&self) -> Arc<PermitSlot> {
        self.slot.clone()
    }

    /// The guest has returned, and its next call begins at the first tick.
    pub(super) fn rest(&mut self) {
        if self.ticks > 0 {
            self.slot.put(None);
        }
        self.ticks = 0;
    }
}

impl PermitSlot {
    /// Runs the guest. While it waits for anything but its tick (a host function, WASI's sleep), it gives its permit
    /// away.
    pub(super) async fn run<F: Future>(&self, guest: impl FnOnce() -> F) -> F::Output {
        let mut guest = pin!(guest());
        poll_fn(|context| {
            let polled = guest.as_mut().poll(context);
            if polled.is_pending() && !self.at_tick.load(Ordering::Relaxed) {
                self.put(None);
            }
            polled
        })
        .await
    }

    fn put(&self, permit: Option<Permit>) {
        let before = std::mem::replace(&mut *self.permit.lock().unwrap_or_else(PoisonError::into_inner), permit);
        // Outside the lock: this may wake another guest.
        drop(before);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{FutureExt, future::join_all};

    use super::*;
    use crate::fair_share::LONGEST_WAIT;

    #[tokio::test]
    async fn guests_that_run_long_wait_for_a_permit_in_order() {
        let share = FairShare::new(1);
        let (mut first, mut second) =
            (RunPermit::new(share.clone(), TenantId(1)), RunPermit::new(share.clone(), TenantId(1)));
        for guest in [&mut first, &mut second] {
            guest.tick().await;
        }
        first.tick().await;
        let mut waiting = Box::pin(second.tick());
        assert!((&mut waiting).now_or_never().is_none());
        tokio::task::yield_now().await;
        assert!((&mut waiting).now_or_never().is_none(), "the first holds the only permit");
        let again = first.tick();
        join_all([Box::pin(again) as std::pin::Pin<Box<dyn Future<Output = ()>>>, waiting]).now_or_never();
        first.rest();
        second.tick().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_sleeps_or_is_gone_holds_no_permit_and_one_that_is_not_polled_holds_none_for_ever() {
        let share = FairShare::new(1);
        let runs_long = async || {
            let mut guest = RunPermit::new(share.clone(), TenantId(1));
            guest.tick().await;
            guest.tick().await;
            guest
        };
        let began = tokio::time::Instant::now();
        let sleeper = runs_long().await;
        assert!(sleeper.slot().run(|| tokio::time::sleep(Duration::from_mins(1))).now_or_never().is_none());
        drop(runs_long().await);
        let _not_polled = runs_long().await;
        assert_eq!(began.elapsed(), Duration::ZERO, "nobody has waited");
        runs_long().await;
        assert!(began.elapsed() >= LONGEST_WAIT);
    }
}
