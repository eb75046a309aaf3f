//! A plugin on the `extism` crate without this one: its `CompiledPlugin`, and its own pool.

use std::{hint::black_box, sync::Arc, time::Duration};

use evalpool::{Isolation, config::LimitSettings};
use extism::{CompiledPlugin, Manifest, Plugin, PluginBuilder, Pool, Wasm};
use tokio::task::spawn_blocking;

use crate::{measure::Caller, plugins::Sample};

/// With the limits that the pool sets, so that the guest does the same work.
fn builder(sample: &Sample) -> PluginBuilder<'static> {
    let limits = LimitSettings::default();
    let manifest = Manifest::new([Wasm::data((sample.wasm)())])
        .with_timeout(limits.exec_timeout)
        .with_memory_max(u32::try_from(limits.memory / 65_536).unwrap());
    PluginBuilder::new(manifest).with_cache_disabled()
}

pub(crate) fn compile(sample: &Sample) -> Arc<CompiledPlugin> {
    Arc::new(builder(sample).compile().unwrap())
}

/// As its documentation and tests write it: with the default number of instances, each built when first needed.
pub(crate) fn pool(sample: &'static Sample) -> Pool {
    Pool::new(move || builder(sample).build())
}

fn call(plugin: &mut Plugin, sample: &Sample) {
    black_box(plugin.call::<&[u8], &[u8]>(sample.entry_point, sample.input).unwrap());
}

/// Calls a `Plugin` of its own, made for each call or kept.
pub(crate) struct PluginCaller {
    pub(crate) compiled: Arc<CompiledPlugin>,
    pub(crate) sample: &'static Sample,
    pub(crate) isolation: Isolation,
    /// Whether the call runs where it may block, as a service must have it, or holds up the worker of its caller.
    pub(crate) spawns: bool,
    pub(crate) kept: Option<Plugin>,
}

impl Caller for PluginCaller {
    async fn call(&mut self) {
        let (compiled, kept, sample) = (self.compiled.clone(), self.kept.take(), self.sample);
        let keeps = self.isolation == Isolation::Reuse;
        let work = move || {
            let mut plugin = kept.unwrap_or_else(|| Plugin::new_from_compiled(&compiled).unwrap());
            call(&mut plugin, sample);
            keeps.then_some(plugin)
        };
        self.kept = if self.spawns { spawn_blocking(work).await.unwrap() } else { work() };
    }
}

/// Takes a plugin from extism's pool, where it may block, and calls it.
pub(crate) struct ExtismPoolCaller {
    pub(crate) pool: Pool,
    pub(crate) sample: &'static Sample,
}

impl Caller for ExtismPoolCaller {
    async fn call(&mut self) {
        let (pool, sample) = (self.pool.clone(), self.sample);
        let work = move || {
            let mut plugin = pool.get(Duration::from_mins(1)).unwrap().unwrap();
            call(&mut plugin, sample);
        };
        spawn_blocking(work).await.unwrap();
    }
}
