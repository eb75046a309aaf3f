//! The least that wasmtime takes for the same work: one engine with slots, and for each fresh evaluation a store, a
//! kernel of its own, the plugin's instance, and a call. No limits, deadlines, permits or metrics.

use std::{hint::black_box, sync::Arc};

use evalpool::Isolation;
use wasmtime::{
    Caller as Guest, Config, Enabled, Engine, Extern, Instance, InstanceAllocationStrategy, Linker, Memory, Module,
    ModuleExport, PoolingAllocationConfig, Store, TypedFunc,
};

use crate::{measure::Caller, plugins::Sample};

const KERNEL: &[u8] = include_bytes!("../../src/engine/direct/prepare/kernel.wasm");

/// Where the kernel's memory says what the input and the output are: see its text.
const INPUT: [usize; 2] = [8, 16];
const OUTPUT: [usize; 2] = [24, 32];

/// Where the input is, and from where on guests get memory.
const INPUT_AT: usize = 128;
const FIRST_BLOCK: u64 = 1024;

/// A compiled plugin and all that its instances need. A store's data is where the next block of memory is.
pub(crate) struct Bare {
    engine: Engine,
    kernel: Module,
    plugin: Module,
    linker: Linker<u64>,
    imports: Vec<(Option<ModuleExport>, String, String)>,
    sample: &'static Sample,
}

impl Bare {
    pub(crate) fn new(sample: &'static Sample) -> Arc<Self> {
        let mut slots = PoolingAllocationConfig::new();
        slots
            .max_memory_size(64 << 20)
            .table_elements(100_000)
            .linear_memory_keep_resident(64 << 10)
            .pagemap_scan(Enabled::Auto);
        let mut config = Config::new();
        config
            .allocation_strategy(InstanceAllocationStrategy::Pooling(slots))
            .memory_reservation(64 << 20)
            .epoch_interruption(true);
        let engine = Engine::new(&config).unwrap();
        let kernel = Module::new(&engine, KERNEL).unwrap();
        let plugin = Module::new(&engine, (sample.wasm)()).unwrap();
        let mut linker: Linker<u64> = Linker::new(&engine);
        let environment = "extism:host/env";
        let alloc = |mut guest: Guest<'_, u64>, length: u64| {
            let at = *guest.data();
            *guest.data_mut() += length;
            at
        };
        linker.func_wrap(environment, "alloc", alloc).unwrap();
        linker.func_wrap(environment, "free", |_: u64| {}).unwrap();
        linker.func_wrap(environment, "length", |_: u64| 0_u64).unwrap();
        linker.define_unknown_imports_as_traps(&plugin).unwrap();
        let imports = plugin
            .imports()
            .map(|import| {
                (kernel.get_export_index(import.name()), import.name().to_owned(), import.module().to_owned())
            })
            .collect();
        Arc::new(Self { engine, kernel, plugin, linker, imports, sample })
    }

    async fn instantiate(&self) -> Ready {
        let mut store = Store::new(&self.engine, FIRST_BLOCK);
        store.epoch_deadline_async_yield_and_update(1);
        store.set_epoch_deadline(1);
        let kernel = Instance::new_async(&mut store, &self.kernel, &[]).await.unwrap();
        let memory = kernel.get_memory(&mut store, "memory").unwrap();
        let mut externs: Vec<Extern> = Vec::with_capacity(self.imports.len());
        for (export, name, module) in &self.imports {
            externs.push(match export {
                Some(export) => kernel.get_module_export(&mut store, export).unwrap(),
                None => self.linker.get(&mut store, module, name).unwrap(),
            });
        }
        let instance = Instance::new_async(&mut store, &self.plugin, &externs).await.unwrap();
        let run = instance.get_typed_func(&mut store, self.sample.entry_point).unwrap();
        Ready { store, memory, run }
    }
}

struct Ready {
    store: Store<u64>,
    memory: Memory,
    run: TypedFunc<(), i32>,
}

impl Ready {
    async fn call(&mut self, input: &[u8]) {
        *self.store.data_mut() = FIRST_BLOCK;
        self.memory.write(&mut self.store, INPUT_AT, input).unwrap();
        for (word, value) in INPUT.into_iter().zip([INPUT_AT, input.len()]) {
            self.memory.write(&mut self.store, word, &(value as u64).to_le_bytes()).unwrap();
        }
        assert_eq!(self.run.call_async(&mut self.store, ()).await.unwrap(), 0);
        let bytes = self.memory.data(&self.store);
        let [at, length] =
            OUTPUT.map(|word| usize::try_from(u64::from_le_bytes(*bytes[word..].first_chunk().unwrap())).unwrap());
        let _ = black_box(bytes[at..at + length].to_vec());
    }
}

/// Calls an instance of its own, made for each call or kept.
pub(crate) struct BareCaller {
    bare: Arc<Bare>,
    isolation: Isolation,
    kept: Option<Ready>,
}

impl BareCaller {
    pub(crate) fn new(bare: Arc<Bare>, isolation: Isolation) -> Self {
        Self { bare, isolation, kept: None }
    }
}

impl Caller for BareCaller {
    async fn call(&mut self) {
        let mut ready = match self.kept.take() {
            Some(ready) => ready,
            None => self.bare.instantiate().await,
        };
        ready.call(self.bare.sample.input).await;
        if self.isolation == Isolation::Reuse {
            self.kept = Some(ready);
        }
    }
}
