//! Extism's plugins on wasmtime itself.
//!
//! One wasmtime engine for all runtimes. Its pooling allocator has a slot for every instance that the pool permits, so
//! that memories, tables and stacks have a hard bound for the whole process, and making an instance maps nothing new.
//! The guest side of Extism that PDKs speak is ours: the kernel and the rest of `extism:host/env`.
//!
//! How it keeps the rules of [an engine](super):
//!
//! - **Dropping a call's future stops the guest**: guests run as futures, on fibers. At each tick a guest returns to
//!   its executor, initialisers included; dropping the future unwinds it. No thread is blocked or waited for.
//! - **A deadline ends a guest within two ticks**, by the store's own clock check at the tick; nothing of it is shared
//!   with another store.
//! - **Dropping the last object gives everything back**: slots at once, code with the module.
//!
//! Considered and not taken: a wasmtime engine for each plugin (31 of them exhaust the address space, and no slot is
//! shared), and fuel for interruption (it costs guests up to a third; epochs cost about a thousandth). Fuel is counted
//! only for specs that limit it, by a second engine that is made when first needed.
//!
//! # What differs from the `extism` engine
//!
//! - An initialiser runs once for each instance, not twice; one that fails is `invalid_plugin` at validation, also
//!   `__wasm_call_ctors` and `hs_init`, which Extism runs at the first call. It may call the host, which on `extism`
//!   refuses the plugin, unless it only writes to the log.
//! - `limits.memory` counts all memories of an instance together, from the first page on; Extism's count starts afresh
//!   after initialising. `memory.grow` beyond a module's own declared maximum gives −1, as WebAssembly has it, where
//!   Extism ends the call as out of memory.
//! - A guest may store anywhere in the kernel's memory; on `extism`, what would reach a block's header, or lies behind the
//!   last block, is not stored.
//! - `input_load_u64` just below offset 0 gives 0; Extism reads what is in front of the input.
//! - The allocator takes the best free block, Extism's the first; offsets may differ once blocks were freed.
//! - Names of variables and of settings are at most 64 KiB; a plugin is linked with at most two modules.
//! - `poll_oneoff` sleeps for as long as it is asked to; on `extism`, for who is not trusted, it says after a millisecond
//!   that it was interrupted.
//! - An instance that ran `_start`, or exited with 0, is not used again.

mod abi;
mod allocator;
mod cache;
mod classify;
mod compiled;
mod fair_share;
mod functions;
mod instance;
mod kernel;
mod modules;
mod slots;
mod state;
mod ticker;
mod variant;
mod wasi;

use std::{fmt, sync::Arc};

pub use self::compiled::Compiled;
use self::variant::EngineVariants;
use super::{BoxFuture, CompileRequest, CompiledPlugin, Engine, Slots, host::panic_text};
use crate::{
    config::{EngineSettings, LimitSettings, PoolSettings},
    error::Error,
};

/// Runs plugins on wasmtime.
pub struct DirectEngine {
    variants: Arc<EngineVariants>,
}

impl DirectEngine {
    /// An engine with slots for `pool.max_instances` instances of at most `limits.memory`. Reserves their address
    /// space and starts one thread, the ticker.
    ///
    /// # Errors
    ///
    /// `invalid_request` when the slots do not fit into the address space, or the folder for compiled code cannot be
    /// used; `internal` when the system refuses the reservation or the thread.
    pub fn new(pool: &PoolSettings, limits: &LimitSettings, engine: &EngineSettings) -> Result<Self, Error> {
        Ok(Self { variants: Arc::new(EngineVariants::new(pool, limits, engine)?) })
    }
}

impl Engine for DirectEngine {
    fn compile(&self, request: CompileRequest) -> BoxFuture<'_, Result<Box<dyn CompiledPlugin>, Error>> {
        Box::pin(async move {
            let variants = self.variants.clone();
            let compile = move || Compiled::new(variants.get(request.limits.fuel.is_some())?, request);
            let compiled = tokio::task::spawn_blocking(compile).await;
            let compiled = compiled.map_err(|error| match error.try_into_panic() {
                // A compiler that gives up in the middle has met a plugin that it cannot compile, and would again.
                Ok(panic) => Error::InvalidPlugin {
                    reason: "the compiler cannot cope with it".into(),
                    cause: Some(Arc::from(Box::from(panic_text(&*panic)))),
                },
                Err(error) => Error::internal("compiling did not finish", error),
            })??;
            Ok(Box::new(compiled) as Box<dyn CompiledPlugin>)
        })
    }

    fn interrupts_initialisers(&self) -> bool {
        true
    }

    fn instances_are_cheap(&self) -> bool {
        true
    }

    fn slots(&self) -> Option<Slots> {
        let mut slots = Slots::default();
        for variant in self.variants.made() {
            let Some(metrics) = variant.engine.pooling_allocator_metrics() else { continue };
            slots.live.instances += metrics.core_instances();
            slots.live.memories += metrics.memories() as u64;
            slots.live.tables += metrics.tables() as u64;
            slots.live.stacks += metrics.stacks() as u64;
            slots.warm.memories += u64::from(metrics.unused_warm_memories());
            slots.warm.tables += u64::from(metrics.unused_warm_tables());
            slots.warm.stacks += u64::from(metrics.unused_warm_stacks());
        }
        Some(slots)
    }
}

impl fmt::Debug for DirectEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectEngine").field("layout", &self.variants.layout).finish_non_exhaustive()
    }
}
