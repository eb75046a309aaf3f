//! Cancelling a call whose caller has left, as far as extism can.
//!
//! extism has a table of calls that can be cancelled. A call enters it a moment before its guest begins, and a cancel that
//! comes before does nothing. So a cancel is sent again and again, until the call's thread says that the call has returned
//! or the call's own deadline, which extism keeps, has passed. A call that has not begun when it is cancelled never does.
//!
//! **Best effort**: a cancel that comes between a call's entry into the table and its first instruction, a few of the
//! processor's own away, is lost, and extism then forgets the call and its deadline. Such a call ends by itself or not at
//! all. Its place stays counted until it does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use extism::CancelHandle;
use tokio::time::sleep;

use crate::{background, clock};

/// How long a cancel is given to arrive before it is sent again.
const AGAIN: Duration = Duration::from_millis(5);

/// How long before its deadline a call may have returned and still be taken, by extism's timer, to be late.
const LATE: Duration = Duration::from_millis(20);

/// What the two sides of a call know of it.
#[derive(Default)]
struct State {
    is_cancelled: AtomicBool,
    has_returned: AtomicBool,
}

/// Cancels the call when dropped, unless it has returned.
pub(super) struct CancelOnDrop {
    handle: CancelHandle,
    timeout: Duration,
    state: Arc<State>,
}

/// The call, on its thread. Dropping it says that the call has returned.
pub(super) struct Running {
    state: Arc<State>,
    timeout: Duration,
    since: Instant,
}

impl CancelOnDrop {
    /// For a call that ends itself after `timeout`.
    pub(super) fn new(handle: CancelHandle, timeout: Duration) -> Self {
        Self { handle, timeout, state: Arc::default() }
    }

    /// To be taken to the thread of the call.
    pub(super) fn running(&self) -> Running {
        Running { state: self.state.clone(), timeout: self.timeout, since: Instant::now() }
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let (handle, state) = (self.handle.clone(), self.state.clone());
        if state.has_returned.load(Ordering::SeqCst) {
            return;
        }
        // First: a call that returns knows of what was sent before. What is sent to one that has returned does nothing.
        state.is_cancelled.store(true, Ordering::SeqCst);
        // Fails only when extism's timer thread is gone, and then so is the process.
        let _ = handle.cancel();
        let until = clock::deadline(self.timeout);
        background::spawn(async move {
            while !state.has_returned.load(Ordering::SeqCst) && tokio::time::Instant::now() < until {
                sleep(AGAIN).await;
                let _ = handle.cancel();
            }
        });
    }
}

impl Running {
    /// The call is about to be made; false when it must not any more.
    pub(super) fn begin(&mut self) -> bool {
        self.since = Instant::now();
        !self.state.is_cancelled.load(Ordering::SeqCst)
    }

    /// How long ago the call was made.
    pub(super) fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }

    /// Whether no interrupt can be on its way to a call that has returned by itself, neither a cancel's nor a deadline's:
    /// it would hit the next call.
    pub(super) fn is_clear(&self) -> bool {
        let early = self.timeout.saturating_sub(LATE.min(self.timeout / 4));
        !self.state.is_cancelled.load(Ordering::SeqCst) && self.elapsed() < early
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.state.has_returned.store(true, Ordering::SeqCst);
    }
}
