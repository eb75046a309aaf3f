//! How fast a body or an answer must move.

use std::time::Duration;

use tokio::time::Instant;

use crate::clock::later;

/// How long a body or an answer may pause, and the time over which its least rate is averaged.
pub(in crate::service) const ALLOWANCE: Duration = Duration::from_secs(15);

/// A least rate and a total time. Bytes pay for time at the least rate, and no more than [`ALLOWANCE`] can be paid ahead:
/// so a client that was fast cannot stall for long afterwards, and one byte now and then pays for nothing.
#[derive(Debug, Clone, Copy)]
pub(in crate::service) struct Pace {
    /// Bytes a second.
    rate: u64,
    due: Instant,
    end: Instant,
}

impl Pace {
    /// Begins now, with a full allowance.
    pub(super) fn new(rate: u64, time: Duration) -> Self {
        let now = Instant::now();
        Self { rate, due: now + ALLOWANCE, end: later(now, time) }
    }

    /// Counts bytes that have moved.
    pub(in crate::service) fn moved(&mut self, bytes: usize) {
        let paid = Duration::from_secs_f64(bytes as f64 / self.rate.max(1) as f64);
        self.due = (self.due + paid.min(ALLOWANCE)).min(Instant::now() + ALLOWANCE);
    }

    /// Until when it keeps its rate if nothing more moves.
    pub(in crate::service) fn due(&self) -> Instant {
        self.due
    }

    /// When it is over, if nothing more moves.
    pub(in crate::service) fn deadline(&self) -> Instant {
        self.due.min(self.end)
    }

    /// Does not count time for which the server made the client wait.
    pub(in crate::service) fn excuse(&mut self, time: Duration) {
        self.due = (self.due + time).min(Instant::now() + ALLOWANCE);
    }
}
