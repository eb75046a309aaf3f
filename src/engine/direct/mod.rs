//! Runs Extism's plugins on wasmtime itself.
//!
//! All runtimes of a kind share one wasmtime engine. Its pooling allocator reserves a slot for every instance that the pool
//! permits: memories, tables and stacks have a hard bound for the whole process, and a new instance maps nothing. We
//! implement what Extism's PDKs import: the kernel and the rest of `extism:host/env`.
//!
//! How it keeps the rules of [an engine](super):
//!
//! - **Dropping a call's future stops the guest.** A guest runs as a future, on a fiber, and returns to its executor at
//!   each tick, in its initialisers too. Dropping the future unwinds it. No thread blocks or is waited for.
//! - **A deadline ends a guest within two ticks.** Its store checks the clock at each tick and shares nothing with
//!   other stores.
//! - **Dropping the last object gives everything back**: the slots at once, the code with the module.
//!
//! Considered and not taken: a wasmtime engine for each plugin (31 of them exhaust the address space, and they share no
//! slots), and interrupting guests by fuel (it costs them up to a third; epochs cost about a thousandth). Fuel is
//! counted only for specs that limit it, by a second engine that is made when first needed, as is one whose instances have
//! a collected heap or several memories: see `variant`.
//!
//! Where it differs from Extism on purpose is listed at the end of this page, under
//! [what differs from Extism](#what-differs-from-extism).
//!
//! # Files
//!
//! Imports point down this list only. A test keeps that true.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod` | the engine: has plugins compiled, counts its slots |
//! | `compiled` | a compiled plugin: its modules and what its instances share |
//! | `instance` | one guest: its store, its calls |
//! | `modules` | a plugin's modules: where each import comes from, instantiation, initialisers |
//! | `once` | plugins that are initialised once: from an instance's state to what others begin with |
//! | `variant` | the wasmtime engines, by fuel and by slots, and what all guests on one of them share |
//! | `code` | a module's code: in use already, kept, or compiled now |
//! | `refresh` | how much it may take to make snapshots anew |
//! | `workers` | processes that compile |
//! | `in_process` | compiles in this process, where there are none |
//! | `functions` | the embedder's host functions, in wasmtime's terms |
//! | `abi` | the host's part of `extism:host/env`: allocation, settings, variables, logs, HTTP |
//! | `wasi` | WASI preview 1 with nothing behind it |
//! | `kernel` | the memory through which guest and host exchange bytes |
//! | `state` | what the host keeps for one guest, and for one plugin |
//! | `clock` | a guest's monotonic clock |
//! | `drawn` | what initialisers draw of time and chance |
//! | `streams` | what a guest writes to WASI's standard output and error |
//! | `http` | the client behind `http_request`, and what it may reach |
//! | `log` | how much plugins may log, and where it goes |
//! | `stack` | where a guest was when it failed |
//! | `allocator` | which parts of the kernel's memory are allocated |
//! | `cache` | compiled code, kept in memory or in a folder |
//! | `in_memory` | the part of it that is kept in memory |
//! | `sealed` | compiled code on its way to wasmtime, large code in a file that nobody can write to |
//! | `classify` | why the host ended a guest; how a guest ended, as our errors |
//! | `fair_share` | makes guests that run long give way to short ones |
//! | `ticker` | the thread that makes running guests return to their executor |
//! | `slots` | how much address space the slots of all instances take |
//! | `tunables` | the settings of an engine that change its code |
//! | `prepare` | what is done to a module before it is compiled |
//!
#![doc = include_str!("DIFFERENCES.md")]

mod abi;
mod allocator;
mod cache;
mod classify;
mod clock;
mod code;
mod compiled;
mod drawn;
mod fair_share;
mod functions;
mod http;
mod in_memory;
mod in_process;
mod instance;
mod kernel;
mod log;
mod modules;
mod once;
mod prepare;
mod refresh;
mod sealed;
mod slots;
mod stack;
mod state;
mod streams;
mod ticker;
mod tunables;
mod variant;
mod wasi;
mod workers;

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

pub use self::compiled::Compiled;
use self::workers::Stop;
pub use self::workers::inside::init_compile_workers;
use self::{compiled::compiling, http::Clients, tunables::Kind, variant::EngineVariants};
use super::{BoxFuture, CompileRequest, CompileWorkerCounts, CompiledPlugin, Engine, Slots};
use crate::{
    config::{EngineSettings, LimitSettings, PoolSettings},
    error::Error,
    fair_share::FairShare,
};

/// Files that compiled code holds at most while nobody runs it. Code that runs has at most one a runtime.
#[cfg(feature = "service")]
pub(crate) fn files_of_kept_code(pool: &PoolSettings, engine: &EngineSettings) -> u64 {
    variant::most_mapped(pool, engine)
}

/// Runs plugins on wasmtime.
pub struct DirectEngine {
    variants: Arc<EngineVariants>,
    clients: Arc<Clients>,
}

impl DirectEngine {
    /// An engine with slots for `pool.max_instances` instances of at most `limits.memory`. Reserves their address
    /// space and starts one thread, the ticker.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRequest`] when the slots do not fit into the address space, the folder for compiled code cannot be
    /// used, or the user agent is no header's value; [`Error::Internal`] when the system refuses the reservation or the
    /// thread.
    pub fn new(pool: &PoolSettings, limits: &LimitSettings, engine: &EngineSettings) -> Result<Self, Error> {
        let clients = Clients::new(engine).map_err(Error::invalid_request)?;
        Ok(Self { variants: Arc::new(EngineVariants::new(pool, limits, engine)?), clients: Arc::new(clients) })
    }
}

impl Engine for DirectEngine {
    fn compile(&self, request: CompileRequest) -> BoxFuture<'_, Result<Box<dyn CompiledPlugin>, Error>> {
        Box::pin(async move {
            let (variants, clients) = (self.variants.clone(), self.clients.clone());
            let within = request.limits.build_timeout;
            // Plain slots have no room for linked modules.
            let wide = request.wide || !request.linked.is_empty();
            let kind = Kind { fueled: request.limits.fuel.is_some(), wide };
            let compile = move |stop: &Stop| Compiled::new(variants.get(kind)?, &clients, request, stop);
            let compiled = compiling(&self.variants.code, within, compile).await?;
            if !compiled.has_kernel() {
                self.variants.kernels_beside.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Box::new(compiled) as Box<dyn CompiledPlugin>)
        })
    }

    fn interrupts_compiles(&self) -> bool {
        self.variants.code.workers.is_some()
    }

    fn shares_code(&self) -> bool {
        true
    }

    fn fair_share(&self) -> Option<FairShare> {
        Some(self.variants.share.clone())
    }

    fn compile_workers(&self) -> Option<CompileWorkerCounts> {
        Some(self.variants.code.workers.as_ref()?.counts())
    }

    fn interrupts_initialisers(&self) -> bool {
        true
    }

    fn instances_are_cheap(&self) -> bool {
        true
    }

    fn keeps_variables(&self) -> bool {
        true
    }

    fn initialises_once(&self) -> bool {
        true
    }

    fn slots(&self) -> Option<Slots> {
        let kernels_beside = self.variants.kernels_beside.load(Ordering::Relaxed);
        let mut slots = Slots { kernels_beside, ..Slots::default() };
        for variant in self.variants.made() {
            let Some(metrics) = variant.engine.pooling_allocator_metrics() else { continue };
            slots.live.instances += metrics.core_instances();
            slots.live.memories += metrics.memories() as u64;
            slots.live.tables += metrics.tables() as u64;
            slots.live.stacks += metrics.stacks() as u64;
            slots.warm.memories += u64::from(metrics.unused_warm_memories());
            slots.warm.tables += u64::from(metrics.unused_warm_tables());
            slots.warm.stacks += u64::from(metrics.unused_warm_stacks());
            slots.kept += (metrics.unused_memory_bytes_resident() + metrics.unused_table_bytes_resident()) as u64;
        }
        Some(slots)
    }
}

impl fmt::Debug for DirectEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectEngine").field("layout", &self.variants.layout).finish_non_exhaustive()
    }
}
