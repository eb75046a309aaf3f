//! Ends a compile from another thread.

use std::{
    process::Child,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Terms;

/// Why a compile was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Why {
    /// Its time was over.
    Timeout,
    /// Nobody wants it any more.
    Unwanted,
}

/// A worker's process. Its pipes are elsewhere.
pub(super) type Process = Arc<Mutex<Child>>;

/// What ends the compiles of one plugin: whoever waits for them has it, and the thread that does the work.
#[derive(Default)]
pub(in super::super) struct Stop(Mutex<State>);

#[derive(Default)]
struct State {
    why: Option<Why>,
    /// The worker that is at work, and the module that it has begun with.
    worker: Option<(Process, Option<Terms>)>,
}

impl Stop {
    /// Ends the work now and whatever would follow. Says which module a worker had begun with, if any. The first reason
    /// counts.
    pub(in super::super) fn stop(&self, why: Why) -> Option<Terms> {
        let mut state = self.state();
        state.why.get_or_insert(why);
        let (process, begun) = state.worker.take()?;
        kill(&process);
        begun
    }

    pub(super) fn why(&self) -> Option<Why> {
        self.state().why
    }

    /// From here on, `stop` kills this worker. False: it has been called before.
    pub(super) fn watch(&self, process: &Process) -> bool {
        let mut state = self.state();
        if state.why.is_some() {
            return false;
        }
        state.worker = Some((process.clone(), None));
        true
    }

    pub(super) fn begun(&self, terms: Terms) {
        if let Some((_, begun)) = &mut self.state().worker {
            *begun = Some(terms);
        }
    }

    /// The worker has nothing to do with this plugin any more.
    pub(super) fn forget(&self) {
        self.state().worker = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Neither blocks nor waits for the process to end: the thread that reads from it does.
pub(super) fn kill(process: &Process) {
    // It cannot fail for a child of ours that was not waited for, and does nothing to one that was.
    let _ = process.lock().unwrap_or_else(PoisonError::into_inner).kill();
}
