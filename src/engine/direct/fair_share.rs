//! Guests that run long give way to short ones.
//!
//! A guest returns to the executor at every tick. That alone would put sixty endless guests in front of each short
//! one, a tick each. So from its second tick on a guest needs a turn: there are as many as cores, handed on in order,
//! and who waits for one is not in the executor's queue. A guest that holds a turn lets everything that is ready run
//! before it goes on. So whoever comes waits for about one tick, however many run long.
//!
//! Considered and not taken: priorities in the executor (tokio has none), and an executor of its own for long guests
//! (threads, and a guest cannot move once it has begun).

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// The longest that a guest waits for a turn. Turns are held by futures, and nobody can be made to poll a future: who
/// holds turns and does not go on costs the others time, and no more than this.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// The turns of one engine.
pub(super) struct FairShare {
    permits: Arc<Semaphore>,
}

impl FairShare {
    pub(super) fn new(at_once: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(at_once)) }
    }

    /// For a guest that has not run yet.
    pub(super) fn begin(&self) -> RunPermit {
        RunPermit { permits: self.permits.clone(), slot: Arc::default(), ticks: 0 }
    }
}

/// One guest's.
pub(super) struct RunPermit {
    permits: Arc<Semaphore>,
    slot: Arc<PermitSlot>,
    ticks: u32,
}

/// Alone on its cache lines: each call counts a reference to it, and those of guests that were made one after the other
/// would lie side by side.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct PermitSlot {
    permit: Mutex<Option<OwnedSemaphorePermit>>,
    /// It waits at a tick: for its turn, or for others to go first.
    at_tick: AtomicBool,
}

impl RunPermit {
    /// Resolves when the guest, whose tick is over, may go on.
    pub(super) fn tick(&mut self) -> impl Future<Output = ()> + Send + 'static {
        self.ticks = self.ticks.saturating_add(1);
        let (runs_long, permits, slot) = (self.ticks > 1, self.permits.clone(), self.slot.clone());
        async move {
            slot.at_tick.store(true, Ordering::Relaxed);
            if runs_long {
                slot.put(None);
                let next = timeout(LONGEST_WAIT, permits.acquire_owned()).await;
                // Never closed; without a turn it goes on all the same.
                slot.put(next.ok().and_then(Result::ok));
            }
            tokio::task::yield_now().await;
            slot.at_tick.store(false, Ordering::Relaxed);
        }
    }

    /// For whoever runs the guest.
    pub(super) fn slot(&self) -> Arc<PermitSlot> {
        self.slot.clone()
    }

    /// The guest has returned: its next call is a new one.
    pub(super) fn rest(&mut self) {
        if self.ticks > 1 {
            self.slot.put(None);
        }
        self.ticks = 0;
    }
}

impl PermitSlot {
    /// Whenever the guest waits for anything but its tick (a host function, a sleep of WASI's), it gives its turn away.
    pub(super) async fn run<F: Future>(&self, guest: F) -> F::Output {
        let mut guest = pin!(guest);
        poll_fn(|context| {
            let polled = guest.as_mut().poll(context);
            if polled.is_pending() && !self.at_tick.load(Ordering::Relaxed) {
                self.put(None);
            }
            polled
        })
        .await
    }

    fn put(&self, permit: Option<OwnedSemaphorePermit>) {
        let before = std::mem::replace(&mut *self.permit.lock().unwrap_or_else(PoisonError::into_inner), permit);
        // Outside the lock: it wakes another.
        drop(before);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::join_all};

    use super::*;

    #[tokio::test]
    async fn who_runs_long_waits_for_a_turn_and_in_order() {
        let share = FairShare::new(1);
        let (mut first, mut second) = (share.begin(), share.begin());
        for guest in [&mut first, &mut second] {
            guest.tick().await;
        }
        first.tick().await;
        let mut waiting = Box::pin(second.tick());
        assert!((&mut waiting).now_or_never().is_none());
        tokio::task::yield_now().await;
        assert!((&mut waiting).now_or_never().is_none(), "the first holds the only turn");
        let again = first.tick();
        join_all([Box::pin(again) as std::pin::Pin<Box<dyn Future<Output = ()>>>, waiting]).now_or_never();
        first.rest();
        second.tick().await;
    }

    #[tokio::test]
    async fn a_guest_that_is_gone_leaves_its_turn() {
        let share = FairShare::new(1);
        let mut first = share.begin();
        first.tick().await;
        first.tick().await;
        drop(first);
        let mut second = share.begin();
        second.tick().await;
        second.tick().await;
    }
    #[tokio::test(start_paused = true)]
    async fn who_sleeps_holds_no_turn_and_who_is_not_polled_holds_none_for_ever() {
        let share = FairShare::new(1);
        let mut sleeper = share.begin();
        sleeper.tick().await;
        sleeper.tick().await;
        let slot = sleeper.slot();
        assert!(slot.run(tokio::time::sleep(Duration::from_mins(1))).now_or_never().is_none());
        let mut second = share.begin();
        second.tick().await;
        assert!(second.tick().now_or_never().is_none(), "it yields once");
        second.tick().await;
        // The second holds the turn now, and nobody polls it.
        let mut third = share.begin();
        third.tick().await;
        third.tick().await;
    }
}
