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

/// Which of [`slots`] is this thread's. Threads get theirs as they come, so that the threads of one executor, which begin
/// together, have different slots.
pub(crate) fn own_slot() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        // Divided here: a division takes as long as the rest.
        static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) % slots();
    }
    // A thread that is ending has none any more; any slot will do.
    OWN.try_with(|own| *own).unwrap_or(0)
}
