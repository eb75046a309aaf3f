//! The primitives that the registry stands on, in one place, so that a scheduler that tries out interleavings can
//! replace them by its own (`--cfg evalpool_shuttle`, for this crate's tests alone).
//!
//! Channels and watches are tokio's in both: they never block a thread, so the scheduler sees all that matters of them
//! at the locks around them.

#[cfg(not(all(test, evalpool_shuttle)))]
mod primitives {
    pub(in crate::registry) use std::sync::{Mutex, MutexGuard, PoisonError};

    pub(in crate::registry) use tokio::time::timeout_at;

    pub(in crate::registry) use crate::stripes::{own_slot, slots};
}

#[cfg(all(test, evalpool_shuttle))]
mod primitives {
    use std::{
        future::{Future, poll_fn},
        pin::pin,
        task::Poll,
    };

    pub(in crate::registry) use std::sync::PoisonError;

    use shuttle::rand::{Rng, thread_rng};
    pub(in crate::registry) use shuttle::sync::{Mutex, MutexGuard};
    use tokio::time::Instant;

    /// Time is the scheduler's to make: whenever the future is not ready, the deadline may have passed, or not.
    pub(in crate::registry) async fn timeout_at<F: Future>(_deadline: Instant, future: F) -> Result<F::Output, ()> {
        let mut future = pin!(future);
        poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending if thread_rng().gen_ratio(1, 8) => Poll::Ready(Err(())),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    pub(in crate::registry) fn slots() -> usize {
        2
    }

    /// The scheduler's tasks share one thread: any slot will do.
    pub(in crate::registry) fn own_slot() -> usize {
        thread_rng().gen_range(0..slots())
    }
}

pub(super) use self::primitives::{Mutex, MutexGuard, PoisonError, own_slot, slots, timeout_at};
