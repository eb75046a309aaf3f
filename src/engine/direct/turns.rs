//! Guests that run long give way to short ones.
//!
//! A guest returns to the executor at every tick. That alone would put sixty endless guests in front of each short
//! one, a tick each. So from its second tick on a guest needs a turn: there are as many as cores, handed on in order,
//! and who waits for one is not in the executor's queue. A guest that holds a turn lets everything that is ready run
//! before it goes on. So whoever comes waits for about one tick, however many run long.
//!
//! Considered and not taken: priorities in the executor (tokio has none), and an executor of its own for long guests
//! (threads, and a guest cannot move once it has begun).

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The turns of one engine.
pub(super) struct Turns {
    turns: Arc<Semaphore>,
}

impl Turns {
    pub(super) fn new(at_once: usize) -> Self {
        Self { turns: Arc::new(Semaphore::new(at_once)) }
    }

    /// For a guest that has not run yet.
    pub(super) fn begin(&self) -> Turn {
        Turn { turns: self.turns.clone(), held: Arc::default(), ticks: 0 }
    }
}

/// One guest's.
pub(super) struct Turn {
    turns: Arc<Semaphore>,
    held: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
    ticks: u32,
}

impl Turn {
    /// Resolves when the guest, whose tick is over, may go on.
    pub(super) fn tick(&mut self) -> impl Future<Output = ()> + Send + 'static {
        self.ticks = self.ticks.saturating_add(1);
        let (runs_long, turns, held) = (self.ticks > 1, self.turns.clone(), self.held.clone());
        async move {
            if runs_long {
                put(&held, None);
                // Never closed.
                let next = turns.acquire_owned().await.ok();
                put(&held, next);
            }
            tokio::task::yield_now().await;
        }
    }

    /// The guest waits for something else, or has returned. It keeps its age until [`rest`](Self::rest).
    pub(super) fn release(&self) {
        put(&self.held, None);
    }

    /// The guest has returned: its next call is a new one.
    pub(super) fn rest(&mut self) {
        if self.ticks > 1 {
            self.release();
        }
        self.ticks = 0;
    }
}

fn put(held: &Mutex<Option<OwnedSemaphorePermit>>, permit: Option<OwnedSemaphorePermit>) {
    let before = std::mem::replace(&mut *held.lock().unwrap_or_else(PoisonError::into_inner), permit);
    // Outside the lock: it wakes another.
    drop(before);
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::join_all};

    use super::*;

    #[tokio::test]
    async fn who_runs_long_waits_for_a_turn_and_in_order() {
        let turns = Turns::new(1);
        let (mut first, mut second) = (turns.begin(), turns.begin());
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
        let turns = Turns::new(1);
        let mut first = turns.begin();
        first.tick().await;
        first.tick().await;
        drop(first);
        let mut second = turns.begin();
        second.tick().await;
        second.tick().await;
    }
}
