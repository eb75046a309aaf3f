//! The `CompiledPlugin`s of one plugin: each instance in use has one to itself.
//!
//! An instance that is dropped gives its own back to a list of free ones, unless an interrupt may be on its way to it. Of
//! those, at most as many are kept as there are instances in use, and one when there are none: so what a burst has made
//! goes with it, and a plugin at rest has one. Together they are never more than the instances that were in use at once.

use std::{
    any::Any,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use extism::{DebugOptions, Manifest, Plugin, PluginBuilder, Wasm};
use wasmtime_of_extism::ProfilingStrategy;

use super::{
    blocking, errors, functions,
    instance::{ExtismInstance, Guest},
};
use crate::{
    background::Background,
    engine::{BoxFuture, CompileRequest, CompiledPlugin, HostFunction, Instance, InstanceLimits, Permit},
    error::Error,
    source::check_wasm2,
};

/// Fuel that extism's kernel uses for a plugin that does nothing. `limits.fuel` is the guest's own.
pub(super) const KERNEL_FUEL: u64 = 545;

/// The engine's compiled plugin; reach it through [`CompiledPlugin::as_any`].
pub struct Compiled {
    shared: Arc<Shared>,
}

impl Compiled {
    /// Compiles the first, if it is WebAssembly that extism bounds. Blocks.
    pub(super) fn new(request: CompileRequest) -> Result<Self, Error> {
        for wasm in request.linked.iter().map(|linked| &linked.wasm).chain([&request.wasm]) {
            check_wasm2(wasm, "extism")?;
        }
        let limits = request.limits;
        let linked = request.linked.iter().map(|linked| Wasm::data(linked.wasm.clone()).with_name(&linked.name));
        // extism takes the last one for the plugin.
        let modules = linked.chain([Wasm::data(request.wasm)]);
        let mut manifest = Manifest::new(modules)
            .with_memory_max(u32::try_from(limits.memory / 65_536).unwrap_or(u32::MAX))
            .with_allowed_hosts(request.allowed_hosts.iter().cloned())
            .with_config(request.config.iter().map(|(key, value)| (key.clone(), value.clone())));
        // Rounded up: one that ends early would not be known for a timeout.
        manifest.timeout_ms =
            Some(u64::try_from(limits.exec_timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX));
        manifest.memory.max_http_response_bytes = Some(limits.output_size);
        let shared = Shared {
            free: Mutex::default(),
            manifest,
            wasi: request.wasi,
            host_functions: request.host_functions,
            limits,
            background: Background::current(),
            _permit: request.permit,
        };
        let first = shared.compile()?;
        shared.free().plugins.push(first);
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The manifest that the plugin was compiled with.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.shared.manifest
    }
}

impl CompiledPlugin for Compiled {
    fn has_entry_point(&self, name: &str) -> bool {
        // extism knows a plugin's exports only once it has an instance; the bytes were inspected before.
        !name.is_empty()
    }

    fn instantiate(&self, permit: Permit) -> BoxFuture<'_, Result<Box<dyn Instance>, Error>> {
        let shared = self.shared.clone();
        Box::pin(blocking("initialising did not finish", move || {
            let limits = shared.limits;
            let exclusive = Exclusive::take(shared)?;
            let guest = Guest::new(exclusive, limits, permit)?;
            Ok(Box::new(ExtismInstance::new(guest)) as Box<dyn Instance>)
        }))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// What makes one more `CompiledPlugin` of the same plugin, and those that there are.
struct Shared {
    free: Mutex<Free>,
    manifest: Manifest,
    wasi: bool,
    host_functions: Arc<[HostFunction]>,
    limits: InstanceLimits,
    /// That of the pool, which compiles.
    background: Background,
    /// Last: it counts for as long as there is code.
    _permit: Permit,
}

#[derive(Default)]
struct Free {
    plugins: Vec<extism::CompiledPlugin>,
    /// Instances that have one to themselves.
    in_use: usize,
}

impl Shared {
    fn compile(&self) -> Result<extism::CompiledPlugin, Error> {
        let functions: Vec<_> = self.host_functions.iter().map(functions::translate).collect::<Result<_, _>>()?;
        let mut builder = PluginBuilder::new(&self.manifest)
            .with_wasi(self.wasi)
            .with_functions(functions)
            .with_http_response_headers(true)
            .with_cache_disabled()
            // Each field by its name: their defaults come from the environment.
            .with_debug_options(DebugOptions {
                profiling_strategy: ProfilingStrategy::None,
                coredump: None,
                memdump: None,
                debug_info: false,
            });
        if let Some(fuel) = self.limits.fuel {
            builder = builder.with_fuel_limit(fuel.saturating_add(KERNEL_FUEL));
        }
        builder.compile().map_err(|error| errors::invalid(&error, &self.limits))
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        // Nothing panics under this lock; a poisoned one still holds a sound list.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A `CompiledPlugin` that one instance uses alone. Goes back to the free ones when dropped.
pub(super) struct Exclusive {
    compiled: Option<extism::CompiledPlugin>,
    /// Last: what it holds counts for as long as there is code.
    shared: Arc<Shared>,
}

impl Exclusive {
    /// A free one, or one more. Blocks while that is compiled.
    fn take(shared: Arc<Shared>) -> Result<Self, Error> {
        let free = {
            let mut free = shared.free();
            free.in_use += 1;
            free.plugins.pop()
        };
        let mut taken = Self { compiled: free, shared };
        if taken.compiled.is_none() {
            taken.compiled = Some(taken.shared.compile()?);
        }
        Ok(taken)
    }

    /// A plugin, which is linked and, for a reactor, initialised. Blocks while that lasts.
    pub(super) fn instantiate(&self) -> Result<Plugin, Error> {
        match &self.compiled {
            Some(compiled) => {
                Plugin::new_from_compiled(compiled).map_err(|error| errors::invalid(&error, &self.shared.limits))
            }
            None => Err(Error::Internal { reason: "a plugin was instantiated without its code", cause: None }),
        }
    }

    /// Where guests are dropped, and cancels are sent again.
    pub(super) fn background(&self) -> Background {
        self.shared.background.clone()
    }

    /// An interrupt may be on its way to it: no other instance gets it.
    pub(super) fn discard(&mut self) {
        self.compiled = None;
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        // A panic passes extism by, which may still interrupt the call at its deadline.
        let reusable = self.compiled.take().filter(|_| !std::thread::panicking());
        let surplus = {
            let mut free = self.shared.free();
            free.in_use -= 1;
            free.plugins.extend(reusable);
            let kept = free.in_use.max(1).min(free.plugins.len());
            free.plugins.split_off(kept)
        };
        // Unmapping code takes a while: not under the lock.
        drop(surplus);
    }
}
