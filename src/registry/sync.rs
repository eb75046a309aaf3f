//! The primitives that the registry stands on, in one place, so that a scheduler that tries out interleavings can
//! replace them by its own (`--cfg evalpool_shuttle`, for this crate's tests alone).
//!
//! Channels and watches are tokio's in both: they never block a thread, so the scheduler sees all that matters of them
//! at the locks around them.

#[cfg(not(all(test, evalpool_shuttle)))]
mod primitives {
    pub(in crate::registry) use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::{
        sync::{
            OnceLock,
            atomic::{AtomicUsize, Ordering},
        },
        thread::available_parallelism,
    };

    pub(in crate::registry) use tokio::time::timeout_at;

    /// How many slots a thread cache has: mostly more than threads that call its evaluator.
    pub(in crate::registry) fn slots() -> usize {
        static COUNT: OnceLock<usize> = OnceLock::new();
        *COUNT.get_or_init(|| available_parallelism().map_or(1, usize::from).saturating_mul(4).clamp(8, 64))
    }

    /// Which of `count` slots is this thread's. Threads are numbered as they come, so that the threads of one executor,
    /// which begin together, have different slots.
    pub(in crate::registry) fn own_slot(count: usize) -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed);
        }
        // A thread that is ending has no number any more; any slot will do.
        NUMBER.try_with(|number| *number).unwrap_or(0) % count.max(1)
    }
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
    pub(in crate::registry) fn own_slot(count: usize) -> usize {
        thread_rng().gen_range(0..count)
    }
}

pub(super) use self::primitives::{Mutex, MutexGuard, PoisonError, own_slot, slots, timeout_at};
