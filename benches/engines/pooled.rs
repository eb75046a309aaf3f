//! A plugin through this crate's pool, on either engine.

use std::hint::black_box;

use bytes::Bytes;
use evalpool::{
    Evaluator, EvaluatorPool, Isolation,
    config::{EngineKind, Settings},
};

use crate::{TASKS, measure::Caller};

/// A pool on the default engine, with as many instances as there are callers.
pub(crate) fn direct(isolation: Isolation, change: impl FnOnce(&mut Settings)) -> EvaluatorPool {
    let mut settings = Settings::default();
    settings.engine.kind = EngineKind::Direct;
    settings.engine.isolation = isolation;
    settings.pool.max_instances_per_evaluator = TASKS;
    change(&mut settings);
    EvaluatorPool::from_settings(&settings).unwrap()
}

/// A pool on the `extism` engine, which compiles a plugin once for each instance in use: so it has the few instances of
/// the default settings.
pub(crate) fn adapter(isolation: Isolation, change: impl FnOnce(&mut Settings)) -> EvaluatorPool {
    let mut settings = Settings::default();
    settings.engine.kind = EngineKind::Extism;
    settings.engine.trusted = true;
    settings.engine.isolation = isolation;
    change(&mut settings);
    EvaluatorPool::from_settings(&settings).unwrap()
}

/// Evaluates.
pub(crate) struct PoolCaller {
    pub(crate) evaluator: Evaluator,
    pub(crate) input: &'static [u8],
}

impl Caller for PoolCaller {
    async fn call(&mut self) {
        let _ = black_box(self.evaluator.evaluate(Bytes::from_static(self.input)).await.unwrap());
    }
}
