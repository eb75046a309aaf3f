//! The monotonic clock of a guest.

use std::time::{Duration, Instant};

use wasmtime_wasi::{HostMonotonicClock, clocks::MonotonicClock};

/// A guest's monotonic clock. One that begins with a snapshot goes on where the initialisers left it: time does not go back.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Clock {
    before: Duration,
    /// When the guest first called WASI.
    begun: Option<Instant>,
}

impl Clock {
    /// The clock that WASI has, from now on.
    pub(super) fn start(&mut self) -> impl HostMonotonicClock + use<> {
        self.begun = Some(Instant::now());
        Monotonic { before: self.before, clock: MonotonicClock::new() }
    }

    /// One that goes on from here.
    pub(super) fn after(&self) -> Self {
        let passed = self.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        Self { before: self.before.saturating_add(passed), begun: None }
    }
}

struct Monotonic {
    before: Duration,
    clock: MonotonicClock,
}

impl HostMonotonicClock for Monotonic {
    fn resolution(&self) -> u64 {
        self.clock.resolution()
    }

    fn now(&self) -> u64 {
        self.clock.now().saturating_add(u64::try_from(self.before.as_nanos()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_goes_on_where_the_one_before_it_was_and_is_as_fine_as_wasis() {
        let mut clock = Clock { before: Duration::from_hours(1), begun: None };
        let first = clock.start();
        let (began, hour) = (first.now(), 3_600_000_000_000);
        assert!(began >= hour && began < 2 * hour);
        let next = clock.after().start();
        assert!(next.now() >= hour && Clock::default().start().now() < hour);
        assert_eq!(first.resolution(), MonotonicClock::new().resolution());
    }
}
