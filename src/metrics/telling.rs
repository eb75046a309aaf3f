//! A recorder is foreign code, and is told things under no lock: it may call the pool from its own methods.
//!
//! One thread at a time tells it of one thing, so that nothing is told in the wrong order. Another that comes meanwhile waits,
//! so that it finds all told when it goes on. It does not wait where that could be for ever: if the recorder itself has called
//! it, or for longer than [`PATIENCE`]. What it came for is told all the same, by the thread that is at it.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long a thread waits for another's recorder: that may wait for this thread.
const PATIENCE: Duration = Duration::from_millis(100);

thread_local! {
    /// This thread is inside a recorder.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// What a recorder is to be told, and whose turn it is to tell it.
#[derive(Debug, Default)]
pub(super) struct Telling<T> {
    turn: Mutex<Turn<T>>,
    over: Condvar,
}

#[derive(Debug, Default)]
struct Turn<T> {
    noted: T,
    told: Option<T>,
    /// A thread is at it.
    is_taken: bool,
    /// How often a thread came to have it told, and for how many of them, from the first on, that was done.
    came: u64,
    served: u64,
    waiting: usize,
}

/// What is under these locks stays whole: nothing panics under them.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Copy> Telling<T> {
    /// Changes what is to be told. [`tell`](Self::tell) follows.
    pub(super) fn note(&self, note: impl FnOnce(&mut T)) {
        note(&mut lock(&self.turn).noted);
    }

    /// The same, and has it told: `tell` gets what is noted, and what it got before.
    pub(super) fn tell(&self, note: impl FnOnce(&mut T), tell: impl Fn(T, Option<T>)) {
        let was_inside = INSIDE.get();
        let mut turn = lock(&self.turn);
        note(&mut turn.noted);
        turn.came += 1;
        let own = turn.came;
        if turn.is_taken && !was_inside {
            turn.waiting += 1;
            let waited = self.over.wait_timeout_while(turn, PATIENCE, |turn| turn.is_taken && turn.served < own);
            turn = waited.unwrap_or_else(PoisonError::into_inner).0;
            turn.waiting -= 1;
        }
        if turn.is_taken || turn.served == turn.came {
            return;
        }
        turn.is_taken = true;
        let mut panic = None;
        loop {
            let (came, noted) = (turn.came, turn.noted);
            let told = turn.told.replace(noted);
            drop(turn);
            INSIDE.set(true);
            panic = catch_unwind(AssertUnwindSafe(|| tell(noted, told))).err().or(panic);
            INSIDE.set(was_inside);
            turn = lock(&self.turn);
            turn.served = came;
            // Again for those who did not wait. One who does wait has the next turn.
            if turn.came == came || turn.waiting > 0 {
                break;
            }
        }
        turn.is_taken = false;
        // To wake nobody is a system call as well.
        if turn.waiting > 0 {
            self.over.notify_all();
        }
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}
