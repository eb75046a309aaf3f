//! What is in flight, for a shutdown to wait for.

use tokio::sync::watch;

#[derive(Debug, Clone, Copy, Default)]
struct WorkState {
    in_flight: usize,
    draining: bool,
}

/// Counts requests, and stops letting more in.
#[derive(Debug, Default)]
pub(in crate::service) struct Work {
    /// Both in one place: a request is either counted or refused, never neither.
    state: watch::Sender<WorkState>,
}

impl Work {
    /// Counts a request until the guard is dropped; `None` while draining.
    pub(super) fn begin(&self) -> Option<InFlight<'_>> {
        let begun = self.state.send_if_modified(|state| {
            let admitted = !state.draining;
            state.in_flight += usize::from(admitted);
            admitted
        });
        // Not `then_some`: a guard that is made and dropped would count what was never begun.
        begun.then(|| InFlight(self))
    }

    pub(super) fn is_draining(&self) -> bool {
        self.state.borrow().draining
    }

    /// Lets nothing in any more.
    pub(in crate::service) fn drain(&self) {
        self.state.send_modify(|state| state.draining = true);
    }

    /// Waits until nothing is in flight.
    pub(in crate::service) async fn idle(&self) {
        // The sender is here, so this ends for no other reason.
        let _ = self.state.subscribe().wait_for(|state| state.in_flight == 0).await;
    }
}

/// A request in flight.
pub(super) struct InFlight<'a>(&'a Work);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.in_flight = state.in_flight.saturating_sub(1));
    }
}
