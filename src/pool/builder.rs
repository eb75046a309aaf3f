//! Puts a pool together.

use std::{fmt, sync::Arc, time::Duration};

use super::EvaluatorPool;
use crate::{
    config::{EngineKind, EngineSettings, Isolation, LimitSettings, PoolSettings, Settings, SettingsError},
    engine::Engine,
    error::Error,
    revision::PoolInner,
};

/// Calls without a pause after which instances stay with the threads that use them: enough not to be a chance, and soon
/// enough for any load that would notice.
const PARK_AFTER: u32 = 32;

/// Sets up an [`EvaluatorPool`]. Every setting has a default: see [`Settings`].
#[derive(Clone)]
#[must_use]
pub struct PoolBuilder {
    settings: Settings,
    engine: Option<Arc<dyn Engine>>,
    park_after: u32,
}

impl PoolBuilder {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, engine: None, park_after: PARK_AFTER }
    }

    /// Runtimes that may exist at once. Raises `max_instances` to as many, if it is less. Default 256.
    pub fn capacity(mut self, runtimes: usize) -> Self {
        self.settings.pool.capacity = runtimes;
        self.settings.pool.max_instances = self.settings.pool.max_instances.max(runtimes);
        self
    }

    /// Instances that may exist at once, over all runtimes; at least the capacity. Default 1024.
    pub fn max_instances(mut self, instances: usize) -> Self {
        self.settings.pool.max_instances = instances;
        self
    }

    /// Instances of one runtime. Default: cores × 2.
    pub fn max_instances_per_evaluator(mut self, instances: usize) -> Self {
        self.settings.pool.max_instances_per_evaluator = instances;
        self
    }

    /// Callers that may wait for a runtime or an instance. Default 4096.
    pub fn max_waiting(mut self, callers: usize) -> Self {
        self.settings.pool.max_waiting = callers;
        self
    }

    /// How long an unused runtime is kept. Default 10 minutes.
    pub fn idle_ttl(mut self, ttl: Duration) -> Self {
        self.settings.pool.idle_ttl = ttl;
        self
    }

    /// How long calls in flight may go on after a close before they are interrupted. Default 10 seconds.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.settings.pool.grace = grace;
        self
    }

    /// Whether instances are used again, unless a spec says otherwise. Default [`Isolation::Fresh`].
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.settings.engine.isolation = isolation;
        self
    }

    /// What one plugin and one evaluation may use, unless a spec says otherwise.
    pub fn limits(mut self, limits: LimitSettings) -> Self {
        self.settings.limits = limits;
        self
    }

    /// All settings at once, in place of what was set before.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Which engine, by name. Default [`EngineKind::Direct`], or the one that this build has.
    pub fn engine_kind(mut self, kind: EngineKind) -> Self {
        self.settings.engine.kind = kind;
        self
    }

    /// The engine, in place of the one that `engine.kind` names.
    pub fn engine(mut self, engine: impl Engine) -> Self {
        self.engine = Some(Arc::new(engine));
        self
    }

    /// After how many calls without a pause a reused instance stays with its thread: for tests of what then happens.
    #[doc(hidden)]
    pub fn park_after(mut self, calls: u32) -> Self {
        self.park_after = calls;
        self
    }

    /// Makes the pool. The `direct` engine reserves the address space of all instances now and starts its ticker thread;
    /// `extism` compiles nothing before the first build. Takes its metric handles from the recorder that is installed now.
    ///
    /// # Errors
    ///
    /// The first setting that is out of its range, or why the engine cannot be made.
    pub fn build(self) -> Result<EvaluatorPool, SettingsError> {
        let Settings { pool, limits, engine, .. } = {
            self.settings.validate()?;
            self.settings
        };
        let chosen = match self.engine {
            Some(chosen) => chosen,
            None => make_engine(&pool, &limits, &engine)?,
        };
        Ok(EvaluatorPool::new(PoolInner::new(pool, limits, engine, chosen, self.park_after)))
    }
}

/// The engine that the settings name. Fails when it cannot be made, or would refuse every plugin for its allowed hosts.
fn make_engine(
    pool: &PoolSettings,
    limits: &LimitSettings,
    engine: &EngineSettings,
) -> Result<Arc<dyn Engine>, SettingsError> {
    let _ = (pool, limits);
    let made: Result<Arc<dyn Engine>, Error> = match engine.kind {
        #[cfg(feature = "extism")]
        EngineKind::Extism => crate::engine::extism::ExtismEngine::new().map(|made| Arc::new(made) as _),
        #[cfg(feature = "direct")]
        EngineKind::Direct => {
            crate::engine::direct::DirectEngine::new(pool, limits, engine).map(|made| Arc::new(made) as _)
        }
        #[cfg(not(all(feature = "extism", feature = "direct")))]
        _ => Err(Error::invalid_request("this build does not have it; give the builder an engine")),
    };
    made.and_then(|made| {
        // A spec may still say that its plugin is trusted.
        made.check(true, &engine.allowed_hosts)?;
        Ok(made)
    })
    .map_err(|error| SettingsError::engine(engine.kind, &error.chain()))
}

impl fmt::Debug for PoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}
