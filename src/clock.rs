//! Deadlines that cannot overflow: a caller's "no limit" may be the longest duration there is.

use std::time::Duration;

use tokio::time::Instant;

/// Longer than any process lives, and short enough to be added to any instant.
const FOR_EVER: Duration = Duration::from_hours(24 * 365 * 30);

/// `from` and `duration` later, or thirty years later if that is sooner.
pub(crate) fn later(from: Instant, duration: Duration) -> Instant {
    from.checked_add(duration.min(FOR_EVER)).unwrap_or(from)
}

/// The deadline of something that may take this long from now.
pub(crate) fn deadline(duration: Duration) -> Instant {
    later(Instant::now(), duration)
}
