//! Makes guests that run long give way to short ones.
//!
//! A guest returns to the executor at each tick. That alone would put sixty endless guests in front of a short one, a
//! tick each. So from its second tick on a guest needs a [permit](crate::fair_share), and while it waits for one it is not in
//! the executor's queue. A guest with a permit lets all other ready tasks run before it goes on. So a new guest waits for
//! about one tick, however many run long.
//!
//! A collector returns to the executor as well, at each piece of its work, and asks at once to go on. No tick tells of that:
//! it shows by the guest's waker, which is used while the guest is polled. It counts as a tick.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Wake, Waker, ready},
};

use tokio::time::Instant;

use super::ticker::TICK;
use crate::{
    engine::BoxFuture,
    fair_share::{FairShare, Permit},
    turns::TenantId,
};

/// One guest's claim to a permit. It holds one only while it runs long.
pub(super) struct RunPermit {
    slot: Arc<PermitSlot>,
    ticks: u32,
}

/// Alone on its cache lines: each call counts a reference to it, and slots of guests that were made one after the other
/// would lie side by side.
#[repr(align(128))]
pub(super) struct PermitSlot {
    share: FairShare,
    tenant: TenantId,
    permit: Mutex<Option<Permit>>,
    /// The guest has had its first tick, and needs a permit.
    runs_long: AtomicBool,
    /// The guest waits at a tick: for a permit, or for others to go first.
    at_tick: AtomicBool,
}

impl RunPermit {
    /// For a guest of this tenant that has not run yet.
    pub(super) fn new(share: FairShare, tenant: TenantId) -> Self {
        let slot = PermitSlot {
            share,
            tenant,
            permit: Mutex::default(),
            runs_long: AtomicBool::new(false),
            at_tick: AtomicBool::new(false),
        };
        Self { slot: Arc::new(slot), ticks: 0 }
    }

    /// Resolves when the guest, whose tick is over, may go on.
    pub(super) fn tick(&mut self) -> impl Future<Output = ()> + Send + 'static {
        self.ticks = self.ticks.saturating_add(1);
        let slot = self.slot.clone();
        let runs_long = self.ticks > 1;
        async move {
            slot.at_tick.store(true, Ordering::Relaxed);
            if runs_long {
                slot.share.note(slot.tenant, TICK, Instant::now());
                slot.runs_long.store(true, Ordering::Relaxed);
                slot.acquire().await;
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
            self.slot.runs_long.store(false, Ordering::Relaxed);
            self.slot.put(None);
        }
        self.ticks = 0;
    }
}

impl PermitSlot {
    /// Runs the guest. While it waits for anything but its tick (a host function, WASI's sleep), it gives its permit
    /// away; and if it only lets others go first, it takes one again.
    pub(super) async fn run<F: Future>(&self, guest: impl FnOnce() -> F) -> F::Output {
        let mut guest = pin!(guest());
        let mut again: Option<BoxFuture<'_, ()>> = None;
        poll_fn(|context| {
            if let Some(acquired) = &mut again {
                ready!(acquired.as_mut().poll(context));
                again = None;
            }
            let (polled, yielded) = if self.runs_long.load(Ordering::Relaxed) {
                let seen = Arc::new(Seen { waker: context.waker().clone(), woken: AtomicBool::new(false) });
                let polled = guest.as_mut().poll(&mut Context::from_waker(&seen.clone().into()));
                (polled, seen.woken.load(Ordering::Relaxed))
            } else {
                (guest.as_mut().poll(context), false)
            };
            if polled.is_pending() && !self.at_tick.load(Ordering::Relaxed) {
                self.put(None);
                // It has asked to be polled again, and then waits there.
                again = yielded.then(|| Box::pin(self.acquire()) as _);
            }
            polled
        })
        .await
    }

    async fn acquire(&self) {
        self.put(None);
        if self.share.paces(self.tenant) {
            self.share.wait_for_others(self.tenant).await;
        }
        let permit = self.share.acquire_after_others(self.tenant).await;
        self.put(Some(permit));
    }

    fn put(&self, permit: Option<Permit>) {
        let before = std::mem::replace(&mut *self.permit.lock().unwrap_or_else(PoisonError::into_inner), permit);
        // Outside the lock: this may wake another guest.
        drop(before);
    }
}

/// The waker of one poll, which tells whether it was used within it.
struct Seen {
    waker: Waker,
    woken: AtomicBool,
}

impl Wake for Seen {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Relaxed);
        self.waker.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::{task::Poll, time::Duration};

    use futures_util::{FutureExt, future::join_all};

    use super::*;
    use crate::fair_share::LONGEST_WAIT;

    /// A guest that has had two ticks.
    async fn runs_long(share: &FairShare) -> RunPermit {
        let mut guest = RunPermit::new(share.clone(), TenantId(1));
        guest.tick().await;
        guest.tick().await;
        guest
    }

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

    #[tokio::test]
    async fn a_guest_that_collects_waits_for_a_permit_at_each_piece_of_its_work() {
        let share = FairShare::new(1);
        let runs_long = || runs_long(&share);
        let collects = || {
            let mut pieces = 3;
            poll_fn(move |context| {
                pieces -= 1;
                context.waker().wake_by_ref();
                if pieces == 0 { Poll::Ready(()) } else { Poll::Pending }
            })
        };
        let mut first = runs_long().await;
        let slot = first.slot();
        let mut first_runs = Box::pin(slot.run(collects));
        assert!((&mut first_runs).now_or_never().is_none(), "it lets others go first");
        let mut other = runs_long().await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
            assert!((&mut first_runs).now_or_never().is_none(), "another holds the only permit");
        }
        other.rest();
        first_runs.await;
        first.rest();
        runs_long().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_sleeps_or_is_gone_holds_no_permit_and_one_that_is_not_polled_holds_none_for_ever() {
        let share = FairShare::new(1);
        let runs_long = || runs_long(&share);
        let began = tokio::time::Instant::now();
        let sleeper = runs_long().await;
        assert!(sleeper.slot().run(|| tokio::time::sleep(Duration::from_mins(1))).now_or_never().is_none());
        drop(runs_long().await);
        let _not_polled = runs_long().await;
        assert_eq!(began.elapsed(), Duration::ZERO, "nobody has waited");
        runs_long().await;
        assert!(began.elapsed() >= LONGEST_WAIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_has_returned_has_given_its_permit_back_and_its_next_call_begins_at_the_first_tick() {
        let share = FairShare::new(1);
        let began = Instant::now();
        let mut first = runs_long(&share).await;
        first.rest();
        let second = runs_long(&share).await;
        first.tick().await;
        assert_eq!(began.elapsed(), Duration::ZERO, "nobody has waited");
        first.tick().await;
        assert!(began.elapsed() >= LONGEST_WAIT, "the second holds the only permit");
        drop(second);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_gives_way_at_its_ticks_waits_for_nobody_where_nobody_else_runs_and_keeps_its_permit() {
        let share = FairShare::new(1);
        let began = Instant::now();
        let mut guest = runs_long(&share).await;
        for _ in 0..3 {
            let tick = guest.tick();
            guest.slot().run(|| tick).await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        runs_long(&share).await;
        assert!(began.elapsed() >= LONGEST_WAIT, "another waits for it");
    }
}
