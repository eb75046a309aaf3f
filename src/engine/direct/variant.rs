//! The wasmtime engines, with and without fuel, with plain and with wide slots, and what all guests on one of them share.
//!
//! A plugin that uses references that are collected, exceptions or several memories needs more slots of each instance: one
//! for the heap, one for each memory. Such plugins run on an engine of their own, whose slots are wide, and which is made
//! when the first of them is built. It compiles to the same code; no other plugin pays address space for it, and at
//! `pool.max_instances` instances none is refused a slot on either.
//!
//! Considered and not taken:
//!
//! - One engine whose slots are wide for all: simpler, but a pool of 1,024 instances with 64 MiB each reserves 576 GiB
//!   for memories instead of 384, used or not, and where address space is short (`ulimit -v`) that is refused at start.
//! - One engine with a reserve of heaps for a part of the instances: whoever finds the reserve empty would be refused
//!   though `pool.max_instances` has room for it.

use std::{
    io::ErrorKind,
    sync::{Arc, OnceLock, atomic::AtomicU64},
};

use tokio::sync::Semaphore;
use wasmtime::{Engine, Linker};

use super::{
    abi,
    cache::Cache,
    classify,
    code::{Code, InUse, Room},
    in_memory::Keeps,
    kernel::KernelModule,
    prepare::Subject,
    refresh::Refreshes,
    sealed::MAPPED,
    slots::{self, SlotLayout},
    stack,
    state::GuestState,
    ticker::Ticker,
    tunables::{self, Kind},
    workers::{Terms, Workers},
};
use crate::{
    config::{CodeCache, EngineSettings, LimitSettings, PoolSettings},
    engine::{CompilePriority, FairShare, InstanceLimits},
    error::Error,
    host_limits::sure_memory,
    source::Digest,
};

/// Code that is kept in memory takes at most this part of `pool.memory`: what runs is worth more.
const MOST_CACHE: u64 = 4;

/// The engines that there may be.
pub(super) struct EngineVariants {
    pub(super) layout: SlotLayout,
    pub(super) code: Arc<Code>,
    pub(super) share: FairShare,
    /// Plugins compiled so far that have no kernel in their own module.
    pub(super) kernels_beside: AtomicU64,
    refreshes: Arc<Refreshes>,
    /// One that counts no fuel, then one for specs that limit it; the same with wide slots. Made when first needed.
    made: [OnceLock<Arc<EngineVariant>>; 4],
}

/// One wasmtime engine and what all guests on it share.
pub(super) struct EngineVariant {
    pub(super) engine: Engine,
    pub(super) kernel: KernelModule,
    pub(super) abi: Linker<GuestState>,
    pub(super) ticker: Arc<Ticker>,
    pub(super) share: FairShare,
    pub(super) code: Arc<Code>,
    pub(super) refreshes: Arc<Refreshes>,
    kind: Kind,
    /// Slots for linked modules that no instance has taken.
    pub(super) linked: Arc<Semaphore>,
    /// Whether large code can be mapped.
    maps: bool,
    version: u64,
}

/// How many bytes of code are kept at most.
fn most_kept(pool: &PoolSettings, engine: &EngineSettings) -> u64 {
    match engine.code_cache {
        CodeCache::Off => 0,
        CodeCache::Memory => engine.code_cache_size.min(pool.memory / MOST_CACHE),
        CodeCache::Folder(_) => engine.code_cache_size,
    }
}

/// How many modules that nobody runs are kept mapped at most: each holds a file.
pub(super) fn most_mapped(pool: &PoolSettings, engine: &EngineSettings) -> u64 {
    match engine.code_cache {
        CodeCache::Memory => most_kept(pool, engine) / MAPPED,
        CodeCache::Off | CodeCache::Folder(_) => 0,
    }
}

impl EngineVariants {
    /// Makes the engine that counts no fuel.
    pub(super) fn new(pool: &PoolSettings, limits: &LimitSettings, engine: &EngineSettings) -> Result<Self, Error> {
        let layout = SlotLayout::new(pool, limits, slots::available()).map_err(Error::invalid_request)?;
        layout.check_promise(sure_memory()).map_err(Error::invalid_request)?;
        let kept = most_mapped(pool, engine);
        let mappings = slots::check_mappings(pool, kept, slots::most_mappings()).map_err(Error::invalid_request)?;
        if let Some(warning) = mappings {
            tracing::warn!("{warning}");
        }
        let cache = Cache::open(&engine.code_cache, most_kept(pool, engine))
            .map_err(|error| Error::invalid_request(format!("engine.code_cache cannot be used: {error}")))?;
        let workers = Workers::new(&engine.compile_workers, limits.compile_memory, layout.memory());
        let code = Code::new(cache, workers, pool.negative_ttl, limits.compile_memory);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (code, share) = (Arc::new(code), FairShare::new(cores));
        let (kernels_beside, refreshes) = (AtomicU64::new(0), Refreshes::new());
        let this = Self { layout, code, share, kernels_beside, refreshes, made: Default::default() };
        this.get(Kind { fueled: false, wide: false })?;
        Ok(this)
    }

    /// The engines that exist.
    pub(super) fn made(&self) -> impl Iterator<Item = &EngineVariant> {
        self.made.iter().filter_map(|made| made.get().map(|made| &**made))
    }

    /// The engine of this kind. Blocks while it makes it. A failure is not remembered: the system may have what it takes
    /// later.
    pub(super) fn get(&self, kind: Kind) -> Result<Arc<EngineVariant>, Error> {
        let made = &self.made[usize::from(kind.fueled) + 2 * usize::from(kind.wide)];
        if let Some(made) = made.get() {
            return Ok(made.clone());
        }
        let lacks = |why| Error::overloaded("no address space for wide slots", why, &ErrorKind::OutOfMemory.into());
        let layout = if kind.wide { self.layout.widened(slots::available()).map_err(lacks)? } else { self.layout };
        // Two that want it at once may both make one, of which one stays.
        let new = EngineVariant::new(layout, kind, self.share.clone(), self.code.clone(), self.refreshes.clone())?;
        Ok(made.get_or_init(|| new).clone())
    }
}

impl EngineVariant {
    fn new(
        layout: SlotLayout,
        kind: Kind,
        share: FairShare,
        code: Arc<Code>,
        refreshes: Arc<Refreshes>,
    ) -> Result<Arc<Self>, Error> {
        let failed = |error: wasmtime::Error| {
            classify::shortage(&error)
                .unwrap_or_else(|| Error::internal("the engine cannot be made", format!("{error:#}")))
        };
        let mut config = tunables::config(kind.fueled, layout.memory());
        config.wasm_backtrace_max_frames(Some(stack::FRAMES)).max_wasm_stack(512 << 10);
        layout.apply(&mut config);
        let engine = Engine::new(&config).map_err(failed)?;
        let kernel = KernelModule::compile(&engine).map_err(failed)?;
        let mut abi = Linker::new(&engine);
        abi::link(&mut abi).map_err(failed)?;
        let ticker = Ticker::start(engine.weak())
            .map_err(|error| Error::overloaded("no thread for the ticker", &error, &error))?;
        let (version, maps) = (tunables::version(&engine), kernel.can_be_mapped(&engine));
        let linked = Arc::new(Semaphore::new(usize::try_from(layout.linked()).unwrap_or(Semaphore::MAX_PERMITS)));
        let ticker = Arc::new(ticker);
        Ok(Arc::new(Self { engine, kernel, abi, ticker, share, code, refreshes, kind, linked, maps, version }))
    }

    /// How the module with this digest is compiled for this engine, with the kernel in it if it `links`.
    pub(super) fn terms(&self, digest: Digest, links: bool, limits: &InstanceLimits) -> Terms {
        let Self { kind, maps, version: engine, .. } = *self;
        Terms {
            digest,
            kind,
            links,
            recorded: false,
            restored: None,
            engine,
            maps,
            within: limits.build_timeout,
            priority: CompilePriority::Normal,
            keeps: Keeps::Anywhere,
        }
    }

    /// The code of a module, charged to `room`, whose `stop` ends it. Blocks.
    pub(super) fn module(
        &self,
        terms: Terms,
        subject: Subject<'_>,
        limits: &InstanceLimits,
        room: &mut Room<'_>,
    ) -> Result<InUse, Error> {
        self.code.module(&self.engine, terms, subject, limits, room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_kept_in_a_quarter_of_the_memory_at_most_or_in_a_folder_of_any_size() {
        let pool = PoolSettings { memory: 4 << 20, ..PoolSettings::default() };
        let kept = |code_cache: CodeCache, code_cache_size| {
            let engine = EngineSettings { code_cache, code_cache_size, ..EngineSettings::default() };
            (most_kept(&pool, &engine), most_mapped(&pool, &engine))
        };
        assert_eq!(kept(CodeCache::Memory, 1 << 30), (1 << 20, 4));
        assert_eq!(kept(CodeCache::Memory, 512 << 10), (512 << 10, 2));
        assert_eq!(kept(CodeCache::Folder("x".into()), 1 << 30), (1 << 30, 0));
        assert_eq!(kept(CodeCache::Off, 1 << 30), (0, 0));
    }
}
