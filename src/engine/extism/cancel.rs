//! Cancelling a call whose caller has left, as far as extism can.
//!
//! extism has a table of calls that can be cancelled. A call enters it a moment before its guest can be interrupted. A cancel
//! that comes before does nothing; one that comes in between is lost, and so is every later one, and the call's deadline.
//! So a cancel waits until the call has [settled](SETTLED), and is sent again until the call's thread says that the call
//! has returned. A call that has not begun when it is cancelled never does.
//!
//! **Best effort**: should the system keep the call's thread from running just there, and for that long, the cancel is lost,
//! and the call ends by itself or not at all. Its place stays counted until it does. So it is with a deadline.

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use extism::CancelHandle;
use tokio::time::sleep;

use crate::background::Background;

/// How long ago a call must have begun for a cancel to arrive: far longer than it takes, for a machine that is busy.
const SETTLED: Duration = Duration::from_millis(50);

/// How long a cancel is given before it is sent again.
const AGAIN: Duration = Duration::from_millis(5);

/// How long before its deadline a call may have returned and still be taken, by extism's timer, to be late.
const LATE: Duration = Duration::from_millis(20);

/// A call. Its thread has it until the call has returned.
pub(super) struct Call {
    handle: CancelHandle,
    timeout: Duration,
    began: OnceLock<Instant>,
    is_cancelled: AtomicBool,
}

/// What the caller has of a call. Cancels it when dropped, unless it has returned.
pub(super) struct CancelOnDrop(Weak<Call>, Background);

impl Call {
    /// A call that extism ends after `timeout`.
    pub(super) fn new(handle: CancelHandle, timeout: Duration, again_on: Background) -> (Arc<Self>, CancelOnDrop) {
        let call = Arc::new(Self { handle, timeout, began: OnceLock::new(), is_cancelled: AtomicBool::new(false) });
        let cancel = CancelOnDrop(Arc::downgrade(&call), again_on);
        (call, cancel)
    }

    /// The call is about to be made; false when it must not any more.
    pub(super) fn begin(&self) -> bool {
        self.began.get_or_init(Instant::now);
        !self.is_cancelled.load(Ordering::SeqCst)
    }

    /// How long ago the call was made.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.get().map(Instant::elapsed).unwrap_or_default()
    }

    /// Whether no interrupt can be on its way to a call that has returned by itself, neither a cancel's nor a deadline's:
    /// it would hit the next call.
    pub(super) fn is_clear(&self) -> bool {
        let early = self.timeout.saturating_sub(LATE.min(self.timeout / 4));
        !self.is_cancelled.load(Ordering::SeqCst) && self.elapsed() < early
    }

    /// Sends a cancel, if it would arrive. Says whether another may be needed.
    fn cancel(&self) -> bool {
        let elapsed = self.elapsed();
        if elapsed >= SETTLED {
            // Fails only when extism's timer thread is gone, and then so is the process.
            let _ = self.handle.cancel();
        }
        elapsed < self.timeout.saturating_add(SETTLED)
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let Some(call) = self.0.upgrade() else { return };
        // First: a call that returns knows of what was sent before. What is sent to one that has returned does nothing.
        call.is_cancelled.store(true, Ordering::SeqCst);
        // Here and now: a runtime that is shutting down takes no task, and waits for the call's thread.
        if call.cancel() {
            let call = self.0.clone();
            self.1.spawn(async move {
                while call.upgrade().is_some_and(|call| call.cancel()) {
                    sleep(AGAIN).await;
                }
            });
        }
    }
}
