//! The wasmtime engines, with and without fuel, and what all guests on one of them share.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, OnceLock},
};

use wasmtime::{Config, Engine, Linker, Module};

use super::{
    abi,
    cache::{self, Cache},
    classify,
    fair_share::FairShare,
    kernel::KernelModule,
    slots::{self, SlotLayout},
    stack,
    state::GuestState,
    ticker::Ticker,
};
use crate::{
    config::{EngineSettings, LimitSettings, PoolSettings},
    engine::InstanceLimits,
    error::Error,
    source::{Digest, effort},
};

/// The engine that counts no fuel, and the one that does.
pub(super) struct EngineVariants {
    pub(super) layout: SlotLayout,
    cache: Arc<Cache>,
    share: Arc<FairShare>,
    /// One that counts no fuel, then one for specs that limit it. Made when first needed.
    made: [OnceLock<Result<Arc<EngineVariant>, Error>>; 2],
}

/// One wasmtime engine and what all guests on it share.
pub(super) struct EngineVariant {
    pub(super) engine: Engine,
    pub(super) kernel: KernelModule,
    pub(super) abi: Linker<GuestState>,
    pub(super) ticker: Arc<Ticker>,
    pub(super) share: Arc<FairShare>,
    cache: Arc<Cache>,
    /// wasmtime's version and settings.
    version: u64,
}

impl EngineVariants {
    /// Makes the engine that counts no fuel.
    pub(super) fn new(pool: &PoolSettings, limits: &LimitSettings, engine: &EngineSettings) -> Result<Self, Error> {
        let layout = SlotLayout::new(pool, limits, slots::available()).map_err(Error::invalid_request)?;
        let cache = Cache::open(&engine.code_cache, engine.code_cache_size)
            .map_err(|error| Error::invalid_request(format!("engine.code_cache cannot be used: {error}")))?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (cache, share) = (Arc::new(cache), Arc::new(FairShare::new(cores)));
        let this = Self { layout, cache, share, made: Default::default() };
        this.get(false)?;
        Ok(this)
    }

    /// The engines that exist.
    pub(super) fn made(&self) -> impl Iterator<Item = &EngineVariant> {
        self.made.iter().filter_map(|made| Some(&**made.get()?.as_ref().ok()?))
    }

    /// The engine that counts fuel, or the one that does not. Blocks while it makes it.
    pub(super) fn get(&self, fueled: bool) -> Result<Arc<EngineVariant>, Error> {
        let make = || EngineVariant::new(self.layout, fueled, self.share.clone(), self.cache.clone());
        self.made[usize::from(fueled)].get_or_init(make).clone()
    }
}

impl EngineVariant {
    fn new(layout: SlotLayout, fueled: bool, share: Arc<FairShare>, cache: Arc<Cache>) -> Result<Arc<Self>, Error> {
        let failed = |error: wasmtime::Error| Error::internal("the engine cannot be made", format!("{error:#}"));
        let mut config = Config::new();
        config
            .epoch_interruption(true)
            .consume_fuel(fueled)
            // No more than `source::inspect` lets through.
            .wasm_exceptions(false)
            .wasm_function_references(false)
            .wasm_gc(false)
            .wasm_memory64(false)
            .wasm_multi_memory(false)
            .wasm_relaxed_simd(false)
            .wasm_tail_call(true)
            .wasm_extended_const(true)
            .wasm_backtrace_max_frames(Some(stack::FRAMES))
            .max_wasm_stack(512 << 10);
        layout.apply(&mut config);
        let engine = Engine::new(&config).map_err(failed)?;
        let kernel = KernelModule::compile(&engine)?;
        let mut abi = Linker::new(&engine);
        abi::link(&mut abi).map_err(failed)?;
        let ticker =
            Ticker::start(engine.weak()).map_err(|error| Error::internal("no thread for the ticker", error))?;
        let mut version = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut version);
        Ok(Arc::new(Self { kernel, abi, ticker: Arc::new(ticker), share, cache, version: version.finish(), engine }))
    }

    /// Compiles a module, or loads its code from the cache. Blocks.
    pub(super) fn module(&self, digest: Digest, wasm: &[u8], limits: &InstanceLimits) -> Result<Module, Error> {
        let key = cache::Key { plugin: digest, engine: self.version };
        if let Some(module) = self.cache.load(&self.engine, key) {
            return Ok(module);
        }
        effort::check(wasm)?;
        let module = Module::new(&self.engine, wasm).map_err(|error| classify::invalid(&error, limits))?;
        self.cache.keep(key, &module);
        Ok(module)
    }
}
