//! The `CompiledPlugin`s of one plugin: each instance in use has one for itself.
//!
//! # Slots
//!
//! Each has a wasmtime engine with a pooling allocator whose slots are those of one instance. That bounds tables, which
//! extism does not, and each memory. It also makes a fresh instance with one call in 0.12 ms instead of 0.20 (the Rust
//! fixture, two cores), and takes 530 MiB of address space for each instead of 16.6 GB (a gigabyte with initialisers, for
//! there are slots for two). The price is in mappings: a seat keeps 22 of them also while nobody sits on it, instead of
//! 4, so that Linux's 65,530 are enough for 2,900 seats. Compiling one more seat costs what it did: 4 ms for a small
//! plugin, 50 for the Rust fixture.
//!
//! # Fuel
//!
//! A deadline ends each call, and each initialiser (see `stop` and `interrupt`). Behind that stands fuel, for what is
//! not known: who has no limit of it and is not trusted gets so much that the deadline comes first, and instructions are
//! priced by the time that they take, so that fuel is close to time: what compiles to nothing is free, and what can be
//! slow costs as much as the table of prices allows. The fuel of a timeout of 2 s is burnt in 2.2 s by loads, 2.5 by
//! divisions, 4.2 by an empty loop (processor time; on a slow machine in as many times more as it is slower). What moves
//! much memory with one instruction, or waits for it, or calls the host, takes far longer.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use extism::{Manifest, PluginBuilder, Wasm};
use wasmtime_of_extism::{Config, OperatorCost, PoolingAllocationConfig};

use super::{
    cache::CodeCache,
    errors,
    fence::{self, Part, Surroundings},
    functions,
    given::{self, Call},
};
use crate::{
    engine::{CompileRequest, HostFunction, InstanceLimits, Permit, http::Http},
    error::Error,
    source::Digest,
};

/// Fuel that no guest can use up in a second, at the prices of [`prices`].
const FUEL_PER_SECOND: u64 = 10_000_000_000;

/// Bytes of variables that one instance may keep (extism's own default).
const MAX_VAR_BYTES: u64 = 1024 * 1024;

/// What extism's kernel begins with, in bytes. Its memory is in a slot like the plugin's.
const KERNEL_MEMORY: u64 = 1 << 20;

/// Instances that one plugin is made of: the kernel's, and the plugin's own twice, since extism has the linker make one
/// before it makes the one that it calls.
const INSTANCES: usize = 3;

/// Tables of one module. Toolchains make one.
const TABLES: u32 = 4;

/// Guards spare bounds checks on constant offsets and nothing else.
const GUARD: u64 = 32 << 20;

/// Everything needed to make one more `CompiledPlugin` of the same plugin. The permit goes last.
pub(super) struct Recipe {
    manifest: Manifest,
    digest: Digest,
    wasi: bool,
    trusted: bool,
    /// Whether any of its modules has code that runs before it is called.
    initialises: bool,
    host_functions: Arc<[HostFunction]>,
    http: Arc<Http>,
    limits: InstanceLimits,
    /// For init and for each call: what the limits say, or else, for who is not trusted, so much that a guest meets
    /// its deadline first.
    fuel: Option<u64>,
    cache: Arc<CodeCache>,
    _permit: Permit,
}

impl Recipe {
    pub(super) fn new(request: CompileRequest, cache: Arc<CodeCache>) -> Result<Self, Error> {
        let limits = request.limits;
        let pages = u32::try_from(limits.memory / 65_536).unwrap_or(u32::MAX);
        let (modules, initialises) = modules(&request)?;
        let mut manifest = Manifest::new(modules)
            .with_timeout(limits.exec_timeout)
            .with_memory_max(pages)
            .with_allowed_hosts(request.allowed_hosts.iter().cloned())
            .with_config(request.config.iter().map(|(key, value)| (key.clone(), value.clone())));
        manifest.memory.max_var_bytes = Some(MAX_VAR_BYTES);
        Ok(Self {
            manifest,
            digest: request.digest,
            wasi: request.wasi,
            trusted: request.trusted,
            initialises,
            host_functions: request.host_functions,
            http: Arc::new(Http::new(&request.allowed_hosts, limits.output_size)),
            limits,
            fuel: fuel(&limits, request.trusted),
            cache,
            _permit: request.permit,
        })
    }

    fn compile(&self) -> Result<Place, Error> {
        let mut config = Config::new();
        let cached = config.enable_incremental_compilation(self.cache.clone());
        if let Err(error) = cached {
            return Err(Error::internal("the code cache cannot be used", error.to_string()));
        }
        self.slots(&mut config);
        if self.fuel.is_some() && self.limits.fuel.is_none() {
            config.operator_cost(prices());
        }
        let call = Call::new();
        let mut functions = functions::given(&call, &self.http, self.digest, self.initialises);
        functions.extend(given::fence(&call));
        functions.extend((self.wasi && !self.trusted).then(|| given::wait(&call)));
        // Last: what an embedder declares goes before what there is.
        for function in self.host_functions.iter() {
            functions.push(functions::translate(function, &call)?);
        }
        let mut builder = PluginBuilder::new(&self.manifest)
            .with_wasi(self.wasi)
            .with_functions(functions)
            .with_cache_disabled()
            .with_wasmtime_config(config);
        if let Some(fuel) = self.fuel {
            builder = builder.with_fuel_limit(fuel);
        }
        let compiled = builder.compile().map_err(|error| errors::invalid(&error, &self.limits))?;
        Ok(Place { compiled, call })
    }

    /// Slots for the memories and tables of one instance and no more: that bounds them, and takes little address space.
    fn slots(&self, config: &mut Config) {
        // One more, whole, to interrupt its initialisers.
        let plugins: u32 = if self.initialises { 2 } else { 1 };
        let modules = u32::try_from(INSTANCES + self.manifest.wasm.len() - 1).unwrap_or(u32::MAX);
        let modules = modules.saturating_mul(plugins);
        let memory = self.limits.memory.max(KERNEL_MEMORY);
        let mut slots = PoolingAllocationConfig::new();
        slots
            .total_core_instances(modules)
            // One more each for the references that extism keeps for a guest.
            .total_memories(modules.saturating_add(plugins))
            .total_gc_heaps(plugins)
            .total_tables(modules.saturating_mul(TABLES))
            .total_stacks(0)
            .max_memories_per_module(1)
            .max_tables_per_module(TABLES)
            .max_memory_size(usize::try_from(memory).unwrap_or(usize::MAX))
            .table_elements(usize::try_from(self.limits.table_elements.max(1)).unwrap_or(usize::MAX));
        config.allocation_strategy(slots).memory_reservation(memory).memory_guard_size(GUARD);
    }
}

/// A plugin's modules as extism takes them, and whether any has code that runs before it is called. Those with a name are
/// to be imported from, and the last one is the plugin.
fn modules(request: &CompileRequest) -> Result<(Vec<Wasm>, bool), Error> {
    let surroundings = Surroundings { linked: &request.linked, functions: &request.host_functions };
    let mut modules = vec![Wasm::data(fence::module()?).with_name(fence::FENCE)];
    let mut initialises = false;
    for linked in request.linked.iter() {
        let fenced = fence::fenced(&linked.wasm, Part::Linked, &surroundings)?;
        initialises |= fenced.initialises;
        modules.push(Wasm::data(fenced.wasm).with_name(&linked.name));
    }
    let plugin = Part::Plugin { entry_point: &request.entry_point };
    let fenced = fence::fenced(&request.wasm, plugin, &surroundings)?;
    modules.push(Wasm::data(fenced.wasm));
    Ok((modules, initialises | fenced.initialises))
}

/// What the limits say, or else, for who is not trusted, what the longer of both timeouts is worth.
fn fuel(limits: &InstanceLimits, trusted: bool) -> Option<u64> {
    let longest = limits.build_timeout.max(limits.exec_timeout);
    let backstop = FUEL_PER_SECOND.saturating_mul(u64::try_from(longest.as_millis()).unwrap_or(u64::MAX)) / 1000;
    limits.fuel.or_else(|| (!trusted).then_some(backstop))
}

/// What instructions cost of the fuel that stands for time. A limit that was asked for counts instructions instead.
fn prices() -> OperatorCost {
    const SLOWEST: u8 = u8::MAX;
    OperatorCost {
        LocalGet: 0,
        LocalSet: 0,
        LocalTee: 0,
        I32Const: 0,
        I64Const: 0,
        F32Const: 0,
        F64Const: 0,
        Br: 4,
        BrIf: 4,
        BrTable: 8,
        Call: 10,
        CallIndirect: 15,
        ReturnCall: 10,
        ReturnCallIndirect: 15,
        I32DivS: 4,
        I32DivU: 4,
        I32RemS: 4,
        I32RemU: 4,
        I64DivS: 8,
        I64DivU: 8,
        I64RemS: 8,
        I64RemU: 8,
        MemoryGrow: SLOWEST,
        MemoryCopy: SLOWEST,
        MemoryFill: SLOWEST,
        MemoryInit: SLOWEST,
        TableGrow: SLOWEST,
        TableCopy: SLOWEST,
        TableFill: SLOWEST,
        TableInit: SLOWEST,
        ..OperatorCost::new()
    }
}

/// A `CompiledPlugin`, and what its functions know of the call that runs in it.
struct Place {
    compiled: extism::CompiledPlugin,
    call: Call,
}

/// What a compiled plugin and its instances share.
pub(super) struct Shared {
    /// Those that no instance is using.
    free: Mutex<Vec<Arc<Place>>>,
    recipe: Recipe,
}

impl Shared {
    /// Compiles the first. Blocks.
    pub(super) fn new(recipe: Recipe) -> Result<Self, Error> {
        let first = recipe.compile()?;
        Ok(Self { free: Mutex::new(vec![Arc::new(first)]), recipe })
    }

    pub(super) fn manifest(&self) -> &Manifest {
        &self.recipe.manifest
    }

    pub(super) fn fuel(&self) -> Option<u64> {
        self.recipe.fuel
    }

    pub(super) fn limits(&self) -> &InstanceLimits {
        &self.recipe.limits
    }

    /// Whether it has initialisers.
    pub(super) fn initialises(&self) -> bool {
        self.recipe.initialises
    }

    fn free(&self) -> MutexGuard<'_, Vec<Arc<Place>>> {
        // Nothing panics under this lock; a poisoned one still holds a sound list.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A free one, or one more. Blocks while that is compiled.
    pub(super) fn take_seat(self: &Arc<Self>) -> Result<Seat, Error> {
        let free = self.free().pop();
        let place = match free {
            Some(place) => place,
            None => Arc::new(self.recipe.compile()?),
        };
        Ok(Seat { occupied: Occupied { place, shared: self.clone() }, is_spoiled: false })
    }
}

/// What is held of a seat for as long as it is used.
#[derive(Clone)]
pub(super) struct Occupied {
    place: Arc<Place>,
    /// Last: what it holds counts for as long as the place exists.
    shared: Arc<Shared>,
}

impl Occupied {
    /// The plugin, and what its functions know of the call that runs in it.
    pub(super) fn compiled(&self) -> (&extism::CompiledPlugin, &Call) {
        (&self.place.compiled, &self.place.call)
    }
}

/// A `CompiledPlugin` that one instance uses alone. Goes back to the others when dropped.
pub(super) struct Seat {
    occupied: Occupied,
    is_spoiled: bool,
}

impl Seat {
    pub(super) fn occupied(&self) -> &Occupied {
        &self.occupied
    }

    pub(super) fn limits(&self) -> &InstanceLimits {
        self.occupied.shared.limits()
    }

    /// An interrupt may be on its way to it: nobody else gets it.
    pub(super) fn spoil(&mut self) {
        self.is_spoiled = true;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Who panics knows of nothing that may be on its way.
        if !self.is_spoiled && !thread::panicking() {
            self.occupied.shared.free().push(self.occupied.place.clone());
        }
    }
}
