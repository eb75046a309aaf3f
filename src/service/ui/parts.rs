//! Values in parts by evaluator, each under a lock of its own, so that calls seldom wait for each other.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::EvaluatorId;

pub(super) const PARTS: usize = 16;

pub(super) struct Parts<T>([Mutex<T>; PARTS]);

impl<T> Parts<T> {
    pub(super) fn new(part: impl Fn() -> T) -> Self {
        Self(std::array::from_fn(|_| Mutex::new(part())))
    }

    /// The part of an evaluator. There always is one.
    pub(super) fn of(&self, evaluator: EvaluatorId) -> Option<MutexGuard<'_, T>> {
        let at = usize::try_from(evaluator.0 % PARTS as u64).unwrap_or_default();
        self.0.get(at).map(lock)
    }

    /// Each part, locked while it is looked at.
    pub(super) fn each(&self) -> impl Iterator<Item = MutexGuard<'_, T>> {
        self.0.iter().map(lock)
    }
}

pub(super) fn lock<T>(part: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics under it.
    part.lock().unwrap_or_else(PoisonError::into_inner)
}
