//! Stopping a guest whose caller has left.
//!
//! extism looks a cancelled call up in a table that the call enters a moment before its guest is armed to be
//! interrupted, and takes it out of the table as it cancels. So a cancel that comes before the call is in the table does
//! nothing; one that comes between the two is lost, and so is every later one, as is the call's own deadline if it
//! comes there. Therefore:
//!
//! - a call is cancelled once its guest has begun, which the [fence](super::fence) tells; and a guest that is to begin
//!   when it is cancelled or late already does not;
//! - a cancel that comes as a call returns by itself may be on its way still, and hit whatever is then called: see
//!   [`Running::is_clear`].
//!
//! Considered and not taken: to cancel again and again from some while after the call was made (a thread that is kept
//! from running for longer loses all of it), and to let fuel end such calls (which may take days: see `interrupt`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
    },
    time::{Duration, Instant},
};

use extism::CancelHandle;

/// How long before its deadline a call may have returned and still be taken, by extism's timer, to be late.
const LATE: Duration = Duration::from_millis(20);

#[derive(Default)]
struct State {
    cancelled: AtomicBool,
    /// Whether a cancel arrives.
    begun: AtomicBool,
    /// Whether one has been sent.
    sent: AtomicBool,
}

/// Stops a call when dropped, unless disarmed before.
pub(super) struct StopOnDrop {
    handle: Option<CancelHandle>,
    state: Arc<State>,
}

/// What the thread of the call has of it.
pub(super) struct Running {
    state: Arc<State>,
    since: Instant,
}

/// What is asked when a guest begins.
pub(super) struct Beginning(Arc<State>);

impl StopOnDrop {
    pub(super) fn new(handle: CancelHandle) -> Self {
        Self { handle: Some(handle), state: Arc::default() }
    }

    /// To be taken to the thread of the call.
    pub(super) fn running(&self) -> Running {
        Running { state: self.state.clone(), since: Instant::now() }
    }

    /// The call has returned: nothing is left to stop.
    pub(super) fn disarm(mut self) {
        self.handle = None;
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let Some(handle) = self.handle.take() else { return };
        // Before looking whether it began: a call that has not sees this and never does.
        self.state.cancelled.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.state.begun.load(Ordering::SeqCst) {
            // First: a call that returns knows of what was sent before. What is sent to one that has returned does nothing.
            self.state.sent.store(true, Ordering::SeqCst);
            // Fails only when extism's timer thread is gone, and then so is the process.
            let _ = handle.cancel();
        }
    }
}

impl Running {
    /// The call is about to be made; false when it must not any more.
    pub(super) fn begin(&mut self) -> bool {
        self.since = Instant::now();
        !self.state.cancelled.load(Ordering::SeqCst)
    }

    /// How long ago the call was made.
    pub(super) fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }

    pub(super) fn beginning(&self) -> Beginning {
        Beginning(self.state.clone())
    }

    /// Whether no interrupt can be on its way to a call that has returned by itself, neither a cancel's nor a deadline's.
    pub(super) fn is_clear(&self, timeout: Duration) -> bool {
        let early = timeout.saturating_sub(LATE.min(timeout / 4));
        !self.state.sent.load(Ordering::SeqCst) && self.elapsed() < early
    }
}

impl Beginning {
    /// The guest begins; false when it must not, as it has been cancelled.
    pub(super) fn begin(&self) -> bool {
        self.0.begun.store(true, Ordering::SeqCst);
        // One of the two sides sees what the other has said.
        fence(Ordering::SeqCst);
        !self.0.cancelled.load(Ordering::SeqCst)
    }
}
