//! Slots for threads: where each writes what is its own, so that none waits for another's cache line.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread::available_parallelism,
};

/// How many slots to make: mostly more than threads that use them.
pub(crate) fn slots() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| available_parallelism().map_or(1, usize::from).saturating_mul(4).clamp(8, 64))
}

/// Which of `count` slots is this thread's.
pub(crate) fn own_slot(count: usize) -> usize {
    own_number() % count.max(1)
}

/// This thread's number. Threads are numbered as they come, so that the threads of one executor, which begin together, have
/// different slots.
pub(crate) fn own_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    // A thread that is ending has no number any more; any slot will do.
    NUMBER.try_with(|number| *number).unwrap_or(0)
}
