//! The least that wasmtime takes for the same work: the same code on the same slots, and for each fresh evaluation a store,
//! an instance and a call. No limits, deadlines, permits or metrics.

use std::{hint::black_box, sync::Arc};

use evalpool::{
    Isolation,
    engine::{CompiledPlugin, direct::Compiled},
};
use tokio::runtime::Runtime;
use wasmtime::{Caller as Guest, InstancePre, Linker, Memory, ModuleExport, Store, TypedFunc};

use crate::{measure::Caller, plugins::Sample, support::direct_without_pool};

/// Where the kernel's memory says what the input and the output are: see its text.
const INPUT: [usize; 2] = [8, 16];
const OUTPUT: [usize; 2] = [24, 32];

/// Where the input is, and from where on guests get memory.
const INPUT_AT: usize = 128;
const FIRST_BLOCK: u64 = 1024;

/// A compiled plugin with the kernel in it, ready to be instantiated. A store's data is where the next block of memory is.
pub(crate) struct Bare {
    ready: InstancePre<u64>,
    memory: ModuleExport,
    sample: &'static Sample,
    /// Has the code and the slots.
    _plugin: Arc<dyn CompiledPlugin>,
}

impl Bare {
    pub(crate) fn new(runtime: &Runtime, sample: &'static Sample) -> Arc<Self> {
        let plugin = direct_without_pool(runtime, (sample.wasm)());
        let module = plugin.as_any().downcast_ref::<Compiled>().unwrap().module().unwrap().clone();
        let mut linker: Linker<u64> = Linker::new(module.engine());
        let environment = "extism:host/env";
        let alloc = |mut guest: Guest<'_, u64>, length: u64| {
            let at = *guest.data();
            *guest.data_mut() += length;
            at
        };
        linker.func_wrap(environment, "alloc", alloc).unwrap();
        linker.func_wrap(environment, "free", |_: u64| {}).unwrap();
        linker.func_wrap(environment, "length", |_: u64| 0_u64).unwrap();
        linker.define_unknown_imports_as_traps(&module).unwrap();
        let ready = linker.instantiate_pre(&module).unwrap();
        // What was added to the plugin comes last.
        let memory = module.get_export_index(module.exports().last().unwrap().name()).unwrap();
        Arc::new(Self { ready, memory, sample, _plugin: plugin })
    }

    async fn instantiate(&self) -> Ready {
        let mut store = Store::new(self.ready.module().engine(), FIRST_BLOCK);
        store.epoch_deadline_async_yield_and_update(1);
        store.set_epoch_deadline(1);
        let instance = self.ready.instantiate_async(&mut store).await.unwrap();
        let memory = instance.get_module_export(&mut store, &self.memory).unwrap().into_memory().unwrap();
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
