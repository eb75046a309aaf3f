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
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use extism::CancelHandle;
use tokio::time::sleep;

use crate::background;

/// How long ago a call must have begun for a cancel to arrive: far longer than it takes, for a machine that is busy.
const SETTLED: Duration = Duration::from_millis(50);

/// How long a cancel is given before it is sent again.
const AGAIN: Duration = Duration::from_millis(5);

/// How long before its deadline a call may have returned and still be taken, by extism's timer, to be late.
const LATE: Duration = Duration::from_millis(20);

struct Call {
    handle: CancelHandle,
    timeout: Duration,
    began: OnceLock<Instant>,
    is_cancelled: AtomicBool,
    has_returned: AtomicBool,
}

/// What the caller has of a call. Cancels it when dropped, unless it has returned.
pub(super) struct CancelOnDrop(Arc<Call>);

/// What the thread of a call has of it. Dropping it says that the call has returned.
pub(super) struct Running(Arc<Call>);

/// Both sides of a call that extism ends after `timeout`.
pub(super) fn sides(handle: CancelHandle, timeout: Duration) -> (CancelOnDrop, Running) {
    let (is_cancelled, has_returned) = (AtomicBool::new(false), AtomicBool::new(false));
    let call = Arc::new(Call { handle, timeout, began: OnceLock::new(), is_cancelled, has_returned });
    (CancelOnDrop(call.clone()), Running(call))
}

impl Call {
    fn elapsed(&self) -> Duration {
        self.began.get().map(Instant::elapsed).unwrap_or_default()
    }

    /// Sends a cancel, if it would arrive. Says whether another may be needed.
    fn cancel(&self) -> bool {
        let elapsed = self.elapsed();
        if elapsed >= SETTLED {
            // Fails only when extism's timer thread is gone, and then so is the process.
            let _ = self.handle.cancel();
        }
        !self.has_returned.load(Ordering::SeqCst) && elapsed < self.timeout.saturating_add(SETTLED)
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let call = self.0.clone();
        if call.has_returned.load(Ordering::SeqCst) {
            return;
        }
        // First: a call that returns knows of what was sent before. What is sent to one that has returned does nothing.
        call.is_cancelled.store(true, Ordering::SeqCst);
        if call.cancel() {
            background::spawn(async move {
                while call.cancel() {
                    sleep(AGAIN).await;
                }
            });
        }
    }
}

impl Running {
    /// The call is about to be made; false when it must not any more.
    pub(super) fn begin(&self) -> bool {
        self.0.began.get_or_init(Instant::now);
        !self.0.is_cancelled.load(Ordering::SeqCst)
    }

    /// How long ago the call was made.
    pub(super) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// Whether no interrupt can be on its way to a call that has returned by itself, neither a cancel's nor a deadline's:
    /// it would hit the next call.
    pub(super) fn is_clear(&self) -> bool {
        let early = self.0.timeout.saturating_sub(LATE.min(self.0.timeout / 4));
        !self.0.is_cancelled.load(Ordering::SeqCst) && self.elapsed() < early
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.has_returned.store(true, Ordering::SeqCst);
    }
}
