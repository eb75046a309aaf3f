//! The builder of a pool.

use std::{fmt, sync::Arc, time::Duration};

use tokio::runtime::Handle;

use super::EvaluatorPool;
use crate::{
    background::Background,
    compiler::check_choices,
    config::{
        EngineKind, EngineSettings, Eviction, Isolation, LimitSettings, PoolSettings, Settings, SettingsError,
        TenantSettings, Vars,
    },
    engine::Engine,
    error::Error,
    revision::PoolInner,
    spec::setters,
};

/// After how many calls without a pause instances stay with the threads that use them. Enough that it is no
/// coincidence, and few enough that any load which gains from it gets there at once.
const PARK_AFTER: u32 = 32;

/// Sets up an [`EvaluatorPool`]. Begins with the default settings, or `from` some. The order of the calls makes no
/// difference.
#[derive(Clone)]
#[must_use]
pub struct PoolBuilder {
    settings: Settings,
    capacity: Option<usize>,
    max_instances: Option<usize>,
    engine: Option<Arc<dyn Engine>>,
    background: Option<Handle>,
    park_after: u32,
}

impl PoolBuilder {
    setters! {
        /// Runtimes that may exist at once. Default 256.
        fn capacity(runtimes: usize) => capacity = Some(runtimes);
        /// Instances that may exist at once, over all runtimes; at least the capacity. Default 1024, or the capacity if
        /// that is more.
        fn max_instances(instances: usize) => max_instances = Some(instances);
        /// Instances of one runtime. Default: cores × 2.
        fn max_instances_per_evaluator(instances: usize) => settings.pool.max_instances_per_evaluator = instances;
        /// Callers that may wait for a runtime or an instance. The pool refuses the next one with
        /// [`Saturated`](crate::Error::Saturated). Default 4096.
        fn max_waiting(callers: usize) => settings.pool.max_waiting = callers;
        /// Compiles that may run at once. Builds beyond these, and one that is ready to compile, hold nothing while they wait.
        /// Default: the cores.
        fn build_concurrency(compiles: usize) => settings.pool.build_concurrency = compiles;
        /// Which runtime is closed for a newcomer. Default [`Eviction::Lru`].
        fn eviction(policy: Eviction) => settings.pool.eviction = policy;
        /// What tenants may have at most. Default: as much as there is, and each its share where that is too little for all.
        fn tenants(bounds: TenantSettings) => settings.tenants = bounds;
        /// How long the pool keeps an unused runtime. Default 10 minutes.
        fn idle_ttl(ttl: Duration) => settings.pool.idle_ttl = ttl;
        /// How long calls in flight may continue after a close. Then they are interrupted, and fail with
        /// [`Closed`](crate::Error::Closed), or with [`ShuttingDown`](crate::Error::ShuttingDown) if the pool was closed.
        /// Default 10 seconds.
        fn grace(grace: Duration) => settings.pool.grace = grace;
        /// Whether an instance serves one evaluation or many, unless a spec says otherwise. Default
        /// [`Isolation::Fresh`].
        fn isolation(isolation: Isolation) => settings.engine.isolation = isolation;
        /// What one plugin and one evaluation may use, unless a spec says otherwise.
        fn limits(limits: LimitSettings) => settings.limits = limits;
        /// Which engine, by name. Default [`EngineKind::Direct`], or the engine that this build has.
        fn engine_kind(kind: EngineKind) => settings.engine.kind = kind;
        /// The tokio runtime that does what callers may wait for together: it builds and closes runtimes, makes spare
        /// instances, evicts what is idle. Default: one of this crate's own, which all pools of the process share, and which
        /// starts when it is first needed. It is never the runtime of a caller, which may stand still while others wait.
        ///
        /// Set it to have no more threads than your own, to have your [`Source::from_fn`](crate::Source::from_fn) run where
        /// it finds what is yours, or, in tests, to pause its time. The runtime needs its timer, for sources over HTTP its
        /// I/O, and threads that drive it at all times: a `current_thread` one does its work only while you block on it.
        ///
        /// If it ends before the pool, builds that are under way fail with [`Internal`](crate::Error::Internal) and can be
        /// tried again, closes go on, and from then on the crate's own does the work. Guests run in the tasks of their
        /// callers, whatever is set here.
        fn background(runtime: Handle) => background = Some(runtime);
        /// After how many calls without a pause a reused instance stays with its thread. For tests of what follows.
        #[doc(hidden)]
        fn park_after(calls: u32) => park_after = calls;
    }

    /// Your own engine, in place of the one that `engine.kind` names.
    pub fn engine(mut self, engine: impl Engine) -> Self {
        self.engine = Some(Arc::new(engine));
        self
    }

    /// Makes the pool. The `direct` engine reserves the address space of all instances now and starts its ticker
    /// thread; `extism` compiles nothing before the first build. The pool's metrics go to the recorder that is installed
    /// now.
    ///
    /// # Errors
    ///
    /// The first setting that is out of its range, or the reason why the engine cannot be made.
    pub fn build(self) -> Result<EvaluatorPool, SettingsError> {
        let mut settings = self.settings;
        let PoolSettings { capacity, max_instances, .. } = &mut settings.pool;
        *capacity = self.capacity.unwrap_or(*capacity);
        *max_instances = self.max_instances.unwrap_or((*max_instances).max(self.capacity.unwrap_or(0)));
        settings.validate()?;
        let engine = match self.engine {
            Some(engine) => engine,
            None => make_engine(&settings.pool, &settings.limits, &settings.engine)?,
        };
        let background = Background::on(self.background);
        Ok(EvaluatorPool::new(PoolInner::new(settings, engine, self.park_after, background)))
    }
}

impl Default for PoolBuilder {
    fn default() -> Self {
        Self::from(Settings::default())
    }
}

impl From<Settings> for PoolBuilder {
    fn from(settings: Settings) -> Self {
        Self { settings, capacity: None, max_instances: None, engine: None, background: None, park_after: PARK_AFTER }
    }
}

/// Makes the engine that the settings name. Fails also if that engine would refuse every plugin for its allowed hosts.
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
        // As if trusted: a spec may still say that its plugin is.
        made.check(true, &engine.allowed_hosts)?;
        check_choices(&*made, engine.vars == Vars::Kept, engine.init)?;
        Ok(made)
    })
    .map_err(|error| SettingsError::engine(engine.kind, &error.chain()))
}

impl fmt::Debug for PoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}
