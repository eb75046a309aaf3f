//! Makes guests that run long give way to short ones.
//!
//! A guest returns to the executor at each tick. That alone would put sixty endless guests in front of a short one, a
//! tick each. So from its second tick on a guest needs a permit. There are as many permits as cores, handed on by turns
//! that go round by [tenant](crate::turns), and a guest that waits for one is not in the executor's queue. A guest with a
//! permit lets all other ready tasks run before it goes on. So a new guest waits for about one tick, however many run long.
//!
//! Considered and not taken: priorities in the executor (tokio has none), and a second executor for long guests (it
//! needs threads, and a guest that has begun cannot move).

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::oneshot, time::timeout};

use crate::turns::{TenantId, Turns, Weights};

/// The longest that a guest waits for a permit. A permit is held by a future, which its owner may never poll again:
/// that costs others this much time and no more.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// The permits of one engine.
pub(super) struct FairShare {
    state: Mutex<State>,
}

struct State {
    free: usize,
    waiting: Turns<u64, oneshot::Sender<Permit>>,
    /// How many have waited: the age of the next one.
    waited: u64,
}

/// The right to run long. Dropping it hands it on.
struct Permit(Option<Arc<FairShare>>);

/// Leaves the queue when it is dropped.
struct Waiting {
    share: Arc<FairShare>,
    tenant: TenantId,
    age: u64,
}

impl FairShare {
    pub(super) fn new(at_once: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { free: at_once, waiting: Turns::default(), waited: 0 }) })
    }

    /// For a guest of this tenant that has not run yet.
    pub(super) fn begin(self: &Arc<Self>, tenant: TenantId) -> RunPermit {
        RunPermit { share: self.clone(), tenant, slot: Arc::default(), ticks: 0 }
    }

    pub(super) fn set_weights(&self, weights: Weights) {
        self.state().waiting.set_weights(weights);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Queue operations only.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A permit, once it is this tenant's turn. Cancel safe.
    async fn acquire(self: Arc<Self>, tenant: TenantId) -> Option<Permit> {
        let (waiting, permit) = {
            let mut state = self.state();
            if state.free > 0 {
                state.free -= 1;
                drop(state);
                return Some(Permit(Some(self)));
            }
            let (to, permit) = oneshot::channel();
            state.waited += 1;
            let age = state.waited;
            state.waiting.enter(tenant, usize::MAX, age, to);
            (Waiting { share: self.clone(), tenant, age }, permit)
        };
        // A permit that comes when nobody waits for it any more is dropped with the channel, and handed on.
        let permit = permit.await.ok();
        drop(waiting);
        permit
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.share.state().waiting.leave(self.tenant, self.age);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(share) = self.0.take() else { return };
        loop {
            let next = {
                let mut state = share.state();
                let next = state.waiting.take();
                state.free += usize::from(next.is_none());
                next
            };
            // Outside the lock: this wakes another guest, unless it is gone.
            match next.map(|next| next.send(Permit(Some(share.clone())))) {
                Some(Err(mut back)) => back.0 = None,
                Some(Ok(())) | None => return,
            }
        }
    }
}

/// One guest's claim to a permit. It holds one only while it runs long.
pub(super) struct RunPermit {
    share: Arc<FairShare>,
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
    /// Resolves when the guest, whose tick is over, may go on.
    pub(super) fn tick(&mut self) -> impl Future<Output = ()> + Send + 'static {
        self.ticks = self.ticks.saturating_add(1);
        let (runs_long, share, slot) = (self.ticks > 1, self.share.clone(), self.slot.clone());
        let tenant = self.tenant;
        async move {
            slot.at_tick.store(true, Ordering::Relaxed);
            if runs_long {
                slot.put(None);
                let next = timeout(LONGEST_WAIT, share.acquire(tenant)).await;
                // After the longest wait it goes on without one.
                slot.put(next.ok().flatten());
            }
            tokio::task::yield_now().await;
            slot.at_tick.store(false, Ordering::Relaxed);
        }
    }

    /// The slot to run the guest in.
    pub(super) fn slot(&self) -> Arc<PermitSlot> {
        self.slot.clone()
    }

    /// The guest has returned, and its next call begins at the first tick.
    pub(super) fn rest(&mut self) {
        if self.ticks > 1 {
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
    use futures_util::{FutureExt, future::join_all};

    use super::*;

    #[tokio::test]
    async fn guests_that_run_long_wait_for_a_permit_in_order() {
        let share = FairShare::new(1);
        let (mut first, mut second) = (share.begin(TenantId(1)), share.begin(TenantId(1)));
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
            let mut guest = share.begin(TenantId(1));
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

    #[tokio::test(start_paused = true)]
    async fn a_tenants_one_guest_gets_every_other_turn_beside_twenty_of_another() {
        let share = FairShare::new(1);
        let (turns, mut guests) = (Arc::<Mutex<Vec<u64>>>::default(), tokio::task::JoinSet::new());
        for tenant in std::iter::repeat_n(1, 20).chain([2]) {
            let (share, turns) = (share.clone(), turns.clone());
            guests.spawn(async move {
                let permit = share.clone().acquire(TenantId(tenant)).await;
                drop(permit);
                loop {
                    let permit = share.clone().acquire(TenantId(tenant)).await;
                    turns.lock().unwrap().push(tenant);
                    if turns.lock().unwrap().len() > 100 {
                        return;
                    }
                    tokio::task::yield_now().await;
                    drop(permit);
                }
            });
        }
        guests.join_next().await;
        let turns = turns.lock().unwrap();
        let second = turns[50..100].iter().filter(|tenant| **tenant == 2).count();
        assert!((24..=26).contains(&second), "{second} of 50");
    }
}
