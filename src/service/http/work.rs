//! Requests in flight, which a shutdown waits for.

use tokio::sync::watch;

#[derive(Debug, Clone, Copy, Default)]
struct WorkState {
    in_flight: usize,
    draining: bool,
}

/// Counts requests in flight, and refuses new ones while the server drains.
#[derive(Debug, Default)]
pub(in crate::service) struct Work {
    /// One value holds both, so that each request is either counted or refused.
    state: watch::Sender<WorkState>,
    /// Of its own: whoever waits for it is not woken by each request.
    draining: watch::Sender<bool>,
}

impl Work {
    /// Counts a request until the guard is dropped. `None` while the server drains.
    pub(super) fn begin(&self) -> Option<InFlight> {
        let begun = self.state.send_if_modified(|state| {
            let admitted = !state.draining;
            state.in_flight += usize::from(admitted);
            admitted
        });
        // Not `then_some`: that would make and drop a guard for a refused request, and count it down.
        begun.then(|| InFlight(self.state.clone()))
    }

    /// Counts what a request began and what may outlive its handler, until the guard is dropped.
    pub(super) fn part(&self) -> InFlight {
        self.state.send_modify(|state| state.in_flight += 1);
        InFlight(self.state.clone())
    }

    pub(super) fn is_draining(&self) -> bool {
        self.state.borrow().draining
    }

    /// Refuses new requests from now on.
    pub(in crate::service) fn drain(&self) {
        self.state.send_modify(|state| state.draining = true);
        self.draining.send_replace(true);
    }

    /// Waits until new requests are refused.
    pub(super) async fn draining(&self) {
        // Cannot fail: `self` holds the sender.
        let _ = self.draining.subscribe().wait_for(|draining| *draining).await;
    }

    /// Waits until no request is in flight, nor any part of one whose client has left.
    pub(in crate::service) async fn idle(&self) {
        // Cannot fail: `self` holds the sender.
        let _ = self.state.subscribe().wait_for(|state| state.in_flight == 0).await;
    }
}

/// A request in flight, or a part of one.
pub(super) struct InFlight(watch::Sender<WorkState>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.send_modify(|state| state.in_flight = state.in_flight.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_server_is_idle_once_every_request_and_every_part_of_one_has_ended() {
        let work = Work::default();
        let is_idle = || work.idle().now_or_never().is_some();
        assert!(is_idle());
        let request = work.begin().unwrap();
        let parts = [work.part(), work.part()];
        drop(request);
        assert!(!is_idle(), "its guest runs on");
        work.drain();
        assert!(work.is_draining() && work.begin().is_none());
        let late = work.part();
        drop(parts);
        assert!(!is_idle(), "what was begun before may have parts yet");
        drop(late);
        assert!(is_idle(), "and nothing is counted that was refused");
    }
}
