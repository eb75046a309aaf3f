//! What the revisions of a pool share, and the task that looks after it.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};
use tracing::Level;

use crate::{
    background::Background,
    compiler::Compiler,
    config::{EngineSettings, LimitSettings, PoolSettings, Settings, TenantBounds, TenantSettings},
    engine::{CompileWorkerCounts, Engine, FairShare, LogSink, Slots, VariableBudget},
    memory::MemoryBudget,
    metrics::Metrics,
    registry::{Limits, Quotas, Registry, RevisionId, TenantHolds},
    response::EvaluatorId,
    runtime::{Directory, Runtime},
    tenants::{TenantInfo, Tenants},
    turns::{TenantId, Weights},
};

/// Fetched plugins that may wait for a place, in bytes, or one plugin of the largest size if that is more.
const FETCHING: u64 = 128 * 1024 * 1024;

/// How often instances that their threads no longer use are taken back, and the recorder is told of calls.
const RECLAIMING: Duration = Duration::from_millis(100);

/// How often the gauge of the oldest wait is set if nobody asks: to find it takes the registry's lock.
const SHOWING_WAITS: Duration = Duration::from_secs(1);

/// What the revisions of a pool share.
pub(crate) struct PoolInner {
    pub(crate) registry: Registry<Runtime>,
    pub(crate) compiler: Compiler,
    pub(crate) metrics: Metrics,
    pub(crate) memory: Arc<MemoryBudget>,
    pub(crate) tenants: Arc<Tenants>,
    /// Whose turn it is, if the engine's guests take turns.
    pub(crate) share: Option<FairShare>,
    /// What revisions are called.
    pub(crate) identities: Arc<Directory>,
    pub(crate) pool: PoolSettings,
    pub(crate) limits: LimitSettings,
    pub(crate) engine: EngineSettings,
    pub(super) background: Background,
    /// Bytes of variables that all evaluators may keep.
    pub(super) variables: Arc<VariableBudget>,
    /// KiB of plugins that may be in memory before they have a place.
    pub(super) fetching: Semaphore,
    /// The most that one fetch is charged, in the same unit.
    pub(super) fetching_total: u32,
    sweeping: AtomicBool,
    next: AtomicU64,
    /// What turns tenants' names into numbers: keyed, so that nobody can choose another's.
    tenant_keys: RandomState,
    /// Where plugins' lines go beside the log. Nowhere unless that is said.
    logs: OnceLock<Arc<KeepLog>>,
}

/// Takes a line: whose, of which tenant, how urgent, and its text.
type KeepLog = dyn Fn(EvaluatorId, &str, Level, &str) + Send + Sync;

impl PoolInner {
    /// Takes its metric handles from the recorder that is installed now.
    pub(crate) fn new(settings: Settings, engine: Arc<dyn Engine>, park_after: u32, background: Background) -> Self {
        let Settings { pool, limits, engine: settings, tenants, usage, metrics: shown, .. } = settings;
        let metrics = Metrics::new();
        let bounds = Limits {
            capacity: pool.capacity,
            eviction: pool.eviction,
            max_instances: pool.max_instances,
            // One more has its place ready when a slot comes free.
            compiling: pool.build_concurrency.saturating_add(1),
            max_waiting: pool.max_waiting,
            negative_ttl: pool.negative_ttl,
            park_after,
        };
        let memory = MemoryBudget::new(pool.memory);
        let fetching_total = u32::try_from(FETCHING.max(limits.plugin_size).div_ceil(1024)).unwrap_or(u32::MAX);
        let this = Self {
            registry: Registry::new(bounds, memory.clone(), metrics.clone(), background.clone()),
            memory,
            identities: Arc::default(),
            tenants: Tenants::new(usage.interval, &shown),
            share: engine.fair_share(),
            compiler: Compiler::new(engine, pool.build_concurrency, metrics.clone(), background.clone()),
            background,
            metrics,
            pool,
            limits,
            variables: Arc::new(VariableBudget::new(settings.vars_size)),
            engine: settings,
            fetching: Semaphore::new(fetching_total as usize),
            fetching_total,
            sweeping: AtomicBool::new(false),
            next: AtomicU64::new(1),
            tenant_keys: RandomState::new(),
            logs: OnceLock::new(),
        };
        this.set_bounds(tenants);
        this
    }

    /// Gives what plugins with [`debug`](crate::Spec::debug) log from their next build on to this as well.
    #[cfg(feature = "service")]
    pub(crate) fn keep_logs(&self, keep: impl Fn(EvaluatorId, &str, Level, &str) + Send + Sync + 'static) {
        // One that is there stays.
        let _ = self.logs.set(Arc::new(keep));
    }

    /// What takes the lines of a plugin that belongs to this tenant, while its revision is the evaluator's that `owner` names.
    pub(super) fn log_sink(&self, owner: Arc<AtomicU64>, tenant: &str) -> Option<LogSink> {
        let (keep, tenant) = (self.logs.get()?.clone(), tenant.to_owned());
        Some(LogSink::new(move |level, text| match owner.load(Ordering::SeqCst) {
            0 => {}
            evaluator => keep(EvaluatorId(evaluator), &tenant, level, text),
        }))
    }

    /// What tenants may have from now on.
    pub(crate) fn set_bounds(&self, bounds: TenantSettings) {
        let named = bounds.named.keys().map(|name| (self.tenant(name), bounds.of(name)));
        let weight = |bounds: TenantBounds| bounds.weight.unwrap_or(1);
        let weights = named.clone().map(|(tenant, bounds)| (tenant, weight(bounds)));
        let weights = Weights::new(weight(bounds.default), weights);
        if let Some(share) = &self.share {
            share.set_weights(weights.clone());
        }
        self.registry.set_quotas(Quotas::new(bounds.default, named), weights);
        self.tenants.set_bounds(bounds);
    }

    /// A tenant, with what it has now.
    pub(crate) fn with_what_it_has(&self, info: TenantInfo) -> TenantInfo {
        let tenant = self.tenant(&info.name);
        let TenantHolds { runtimes, instances, waiting, .. } = self.registry.held_by(tenant);
        TenantInfo { runtimes, instances, waiting, memory_bytes: self.memory.held_by(tenant), ..info }
    }

    /// Of 64 bits: two tenants share one as good as never, and then share their turns.
    pub(crate) fn tenant(&self, name: &str) -> TenantId {
        TenantId(self.tenant_keys.hash_one(name))
    }

    pub(crate) fn unique(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Shows the engine's compile workers in their metrics.
    fn show_workers(&self) {
        if let Some(CompileWorkerCounts { idle, busy, ended }) = self.compiler.workers() {
            self.metrics.set_compile_workers([idle, busy], ended);
        }
    }

    /// The engine's slots, which are shown in their gauges too.
    pub(crate) fn slots(&self) -> Option<Slots> {
        self.registry.show_reuse();
        self.metrics.tell();
        self.show_workers();
        self.metrics.set_oldest_wait(self.registry.oldest_wait());
        let slots = self.weigh();
        self.metrics.set_memory(self.memory.uses());
        let slots = slots?;
        let Slots { live, warm, kernels_beside, .. } = slots;
        self.metrics.set_slots(
            [live.instances, live.memories, live.tables, live.stacks],
            [warm.memories, warm.tables, warm.stacks],
            kernels_beside,
        );
        Some(slots)
    }

    /// Notes what free slots keep, and makes room if guests have grown beyond the bound.
    fn weigh(&self) -> Option<Slots> {
        let slots = self.compiler.slots();
        self.memory.set_slots(slots.map_or(0, |slots| slots.kept));
        self.registry.weigh();
        slots
    }

    /// Starts the sweep at the first use. It ends with the pool.
    pub(crate) fn ensure_sweeping(self: &Arc<Self>) {
        // Load first: every evaluation passes here, and a store would contend for the cache line.
        if self.sweeping.load(Ordering::Relaxed) || self.sweeping.swap(true, Ordering::Relaxed) {
            return;
        }
        self.background.spawn(Sweep(Arc::downgrade(self)).run(self.pool.idle_ttl));
    }

    /// Up to a tenth later than the TTL, by revision: what became idle together is not closed together.
    fn idle_ttl(&self, revision: RevisionId) -> Duration {
        let ttl = self.pool.idle_ttl;
        let lot = revision.number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54;
        ttl.saturating_add(ttl / 10_240 * u32::try_from(lot).unwrap_or(0))
    }
}

impl Drop for PoolInner {
    fn drop(&mut self) {
        self.registry.show_reuse();
        self.metrics.tell();
    }
}

/// The task that takes back what threads no longer use, reports what was used, gives up on closes that are overdue, and
/// evicts what is idle for too long. When a runtime that the pool was given ends, the next call starts it again.
struct Sweep(Weak<PoolInner>);

impl Sweep {
    async fn run(self, ttl: Duration) {
        let pause = (ttl / 8).clamp(Duration::from_millis(10), Duration::from_secs(30));
        let (mut swept, mut shown) = (Instant::now(), Instant::now());
        loop {
            tokio::time::sleep(pause.min(RECLAIMING)).await;
            let Some(inner) = self.0.upgrade() else { return };
            inner.registry.look_after();
            if shown.elapsed() >= SHOWING_WAITS {
                shown = Instant::now();
                inner.metrics.set_oldest_wait(inner.registry.oldest_wait());
            }
            inner.registry.show_reuse();
            inner.metrics.tell();
            inner.weigh();
            inner.tenants.report_due();
            if swept.elapsed() >= pause {
                swept = Instant::now();
                inner.slots();
                inner.registry.sweep(|revision| inner.idle_ttl(revision));
            }
        }
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.sweeping.store(false, Ordering::Relaxed);
        }
    }
}
