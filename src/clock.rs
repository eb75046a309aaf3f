//! Deadlines that cannot overflow: a caller's "no limit" may be the longest duration there is.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, error::Elapsed};

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

/// tokio's `timeout_at`, but it makes its timer only if the future is not ready at once: a timer touches words that all
/// threads share.
pub(crate) async fn timeout_at<F: Future>(deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    match poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await {
        Poll::Ready(output) => Ok(output),
        Poll::Pending => tokio::time::timeout_at(deadline, future).await,
    }
}
