//! A plugin that is built and not published yet.

use std::sync::Arc;

use super::EvaluatorPool;
use crate::{
    engine::{InitState, SnapshotInfo},
    evaluator::Evaluator,
    info::EvaluatorInfo,
    registry::{CloseReason, RuntimeState},
    response::EvaluatorId,
    revision::Revision,
    runtime::BuildTimes,
    tenants::Seat,
};

/// A plugin that is built and validated, and not registered yet. Dropping it closes what was built.
#[must_use = "dropping it closes what was built; call `publish`"]
pub struct Prepared {
    pub(super) pool: EvaluatorPool,
    pub(super) id: u64,
    /// No evaluator has had this id before.
    pub(super) is_new: bool,
    /// `None` once published.
    pub(super) revision: Option<Arc<Revision>>,
    pub(super) took: BuildTimes,
    pub(super) init: InitState,
    pub(super) snapshot: Option<SnapshotInfo>,
    /// Its tenant may have one more evaluator.
    pub(super) _seat: Option<Seat>,
}

impl Prepared {
    /// How long its build took.
    #[must_use]
    pub fn took(&self) -> BuildTimes {
        self.took
    }

    /// How its instances were initialised when it was built.
    #[must_use]
    pub fn init_state(&self) -> &InitState {
        &self.init
    }

    /// What its initialisers drew, if it may be initialised once.
    #[must_use]
    pub fn snapshot_info(&self) -> Option<SnapshotInfo> {
        self.snapshot
    }

    /// What it will be registered as.
    #[must_use]
    pub fn info(&self) -> Option<EvaluatorInfo> {
        let mut info = self.revision.as_ref()?.describe(EvaluatorId(self.id), RuntimeState::Live, 1);
        info.init.note(&self.init, self.snapshot);
        Some(info)
    }

    /// Registers it, in place of the evaluator of that name if there is one. The swap is atomic: calls in flight finish
    /// on the old plugin, which then closes; later ones use the new. True when a plugin was replaced.
    #[expect(clippy::must_use_candidate, reason = "called for what it does")]
    pub fn publish(mut self) -> (Evaluator, bool) {
        let Some(revision) = self.revision.take() else { unreachable!("publish consumes it") };
        let inner = &self.pool.inner;
        let (evaluator, replaced, old, _closed) = {
            let mut names = self.pool.names();
            // Swapped under the names' lock, so that two publications agree on which was last.
            let replaced = names
                .get(&*revision.name)
                .and_then(|evaluator| evaluator.replace(revision.clone()).map(|old| (evaluator.clone(), old)));
            if let Some((evaluator, old)) = replaced {
                (evaluator, true, Some(old), None)
            } else {
                // Whom it was to replace was taken out meanwhile, and waits at its close for all that has its id. So the plugin
                // gets a new one, and is built anew at its first call.
                let (id, own, old) = if self.is_new {
                    (self.id, revision, None)
                } else {
                    let id = inner.unique();
                    (id, revision.under(inner, id), Some(revision))
                };
                let evaluator = Evaluator::new(inner.clone(), id, own);
                let closed = names.insert(evaluator.name().to_owned(), evaluator.clone());
                inner.metrics.note_registered(names.len());
                // What was closed and is still listed is dropped after the lock.
                (evaluator, false, old, closed)
            }
        };
        inner.metrics.show();
        if let Some(old) = old {
            old.retire(inner, CloseReason::Replaced, None);
        }
        (evaluator, replaced)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(revision) = self.revision.take() {
            revision.retire(&self.pool.inner, CloseReason::Invalid, None);
        }
    }
}
