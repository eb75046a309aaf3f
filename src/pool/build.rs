//! One version of an evaluator, and how its runtime is built: source → checks → place → compiler → registry.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, timeout};

use super::Core;
use crate::{
    background, clock,
    compiler::{self, Blueprint},
    engine::{InstanceLimits, LinkedModule},
    error::Error,
    metrics::CloseReason,
    registry::{Age, BuildTicket, Generation, Leased, Refused},
    runtime::{Policy, Runtime},
    source::{Digest, Plugin, Source},
    spec::Spec,
};

/// A spec under a generation of its own.
pub(crate) struct Version {
    pub(crate) generation: Generation,
    pub(crate) spec: Spec,
    /// Known from the first successful look at the bytes.
    facts: OnceLock<Facts>,
    /// The plugin, where its bytes are in memory anyway, so that they are hashed and inspected once: of
    /// [`Source::Bytes`] from its first build on, of any other source until its first build, if it came with the spec.
    in_memory: Mutex<Option<Plugin>>,
    /// Set before the generation is taken out of the registry, and looked at after a build of it was begun: so either
    /// the builder sees it or the registry sees the build.
    retired: AtomicBool,
}

/// What is known of a plugin once its bytes were read.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) digest: Digest,
    pub(crate) entry_point: String,
    pub(crate) size: u64,
}

impl Version {
    pub(super) fn new(core: &Core, evaluator: u64, spec: Spec) -> Arc<Self> {
        let generation = Generation { evaluator, version: core.unique() };
        Arc::new(Self {
            generation,
            spec,
            facts: OnceLock::new(),
            in_memory: Mutex::default(),
            retired: AtomicBool::new(false),
        })
    }

    pub(crate) fn facts(&self) -> Option<&Facts> {
        self.facts.get()
    }

    /// Has the first build take `plugin` instead of loading the spec's source, which must hold the same bytes.
    pub(super) fn set_plugin(&self, plugin: Plugin) {
        *self.in_memory() = Some(plugin);
    }

    fn in_memory(&self) -> MutexGuard<'_, Option<Plugin>> {
        self.in_memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plugin, if its bytes are in memory. A source that is read at each build keeps nothing back.
    fn take_plugin(&self) -> Option<Plugin> {
        let mut in_memory = self.in_memory();
        if matches!(self.spec.source, Source::Bytes(_)) { in_memory.clone() } else { in_memory.take() }
    }

    /// A lease on the version's runtime, building it if need be.
    pub(crate) async fn lease(self: &Arc<Self>, core: &Arc<Core>) -> Result<Leased<Runtime>, Error> {
        let deadline = clock::deadline(core.limits.wait_timeout);
        self.lease_as(core, &mut None, deadline, false).await
    }

    /// The same for a caller that came before, and waits in queues until `deadline`; `inside` a host function it does
    /// not wait.
    pub(crate) async fn lease_as(
        self: &Arc<Self>,
        core: &Arc<Core>,
        age: &mut Option<Age>,
        deadline: Instant,
        inside: bool,
    ) -> Result<Leased<Runtime>, Error> {
        core.ensure_sweeping();
        let start = |ticket| background::spawn(build(core.clone(), self.clone(), ticket));
        core.registry.lease(self.generation, age, deadline, core.limits.build_timeout, !inside, start).await
    }

    /// Takes the version out of service for good.
    pub(crate) fn retire(&self, core: &Core, reason: CloseReason, grace: Option<Duration>, refused: &Refused) {
        self.retired.store(true, Ordering::SeqCst);
        core.registry.retire(self.generation, reason, grace, refused);
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }
}

async fn build(core: Arc<Core>, version: Arc<Version>, ticket: BuildTicket<Runtime>) {
    if version.is_retired() {
        return ticket.fail(&Error::Closed { name: String::new(), interrupted: false });
    }
    match attempt(&core, &version, &ticket).await {
        Ok(Some(runtime)) => {
            // Retired while it was built: nobody else has it, so dropping it closes it.
            if let Err(unwanted) = ticket.publish(runtime) {
                background::drop_elsewhere(unwanted);
            }
        }
        // Nobody waits any more and nothing was begun.
        Ok(None) => ticket.abandon(),
        Err(error) => {
            tracing::debug!(evaluator = version.generation.evaluator, error = %error.chain(), "a build failed");
            ticket.fail(&error);
        }
    }
}

async fn attempt(core: &Core, version: &Version, ticket: &BuildTicket<Runtime>) -> Result<Option<Runtime>, Error> {
    let spec = &version.spec;
    let kib = |bytes: u64| u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(core.fetching_total);
    let known = version.take_plugin();
    // What is in memory already costs nothing.
    let own = known.is_none().then_some(&spec.source);
    let sources = || own.into_iter().chain(spec.linked.iter().map(|(_, source)| source));
    let cost = kib(sources().map(|source| source.cost(core.limits.plugin_size)).sum());
    // Held until the build ends: what is fetched is in memory for as long.
    let mut fetched =
        core.fetching.acquire_many(cost).await.map_err(|error| Error::internal("fetching is over", error))?;
    let started = Instant::now();
    let within = core.limits.build_timeout;
    let load = async {
        let plugin = match known {
            Some(plugin) => plugin,
            None => spec.source.load(core.limits.plugin_size, spec.digest).await?,
        };
        let mut linked = Vec::with_capacity(spec.linked.len());
        for (name, source) in &spec.linked {
            linked.push((name.as_str(), source.load(core.limits.plugin_size, None).await?));
        }
        Ok::<_, Error>((plugin, linked))
    };
    let Ok(loaded) = timeout(within, load).await else {
        let slow = std::io::Error::other(format!("it was not read within {within:?}"));
        return Err(Error::SourceUnavailable { cause: Arc::new(slow) });
    };
    let (plugin, linked) = loaded?;
    let fetching = started.elapsed();
    core.metrics.fetched(fetching);
    // What was charged above the real size is given back.
    let held = sources()
        .zip(own.map(|_| &plugin).into_iter().chain(linked.iter().map(|(_, plugin)| plugin)))
        .filter(|(source, _)| source.cost(core.limits.plugin_size) > 0)
        .map(|(_, plugin)| plugin.bytes().len() as u64);
    drop(fetched.split(cost.saturating_sub(kib(held.sum())) as usize));
    let blueprint = blueprint(core, spec, plugin, &linked)?;
    core.compiler.check(&blueprint)?;
    let facts = Facts {
        digest: blueprint.plugin.digest(),
        entry_point: blueprint.entry_point.clone(),
        size: blueprint.plugin.bytes().len() as u64,
    };
    // A file may have changed since the last build; what was seen first is what was validated and is shown.
    let _ = version.facts.set(facts);
    let Some(admission) = ticket.admit(fetching).await else { return Ok(None) };
    let plugin = matches!(spec.source, Source::Bytes(_)).then(|| blueprint.plugin.clone());
    let runtime = core.compiler.build(blueprint, admission, core.limits.wait_timeout).await?;
    if let Some(plugin) = plugin {
        version.set_plugin(plugin);
    }
    Ok(Some(runtime))
}

fn blueprint(core: &Core, spec: &Spec, plugin: Plugin, linked: &[(&str, Plugin)]) -> Result<Blueprint, Error> {
    let entry_point = plugin.interface().resolve(spec.entry_point.as_deref())?;
    let wasi = spec.wasi.unwrap_or(core.engine.wasi);
    let linked = compiler::order_linked(linked.iter().map(|(name, plugin)| (*name, plugin)).collect())?;
    let all = || linked.iter().map(|(_, plugin)| *plugin).chain([&plugin]);
    for plugin in all() {
        compiler::check_imports(plugin.interface(), wasi, &spec.host_functions, &linked)?;
    }
    let wants_wasi = all().any(|plugin| plugin.interface().wants_wasi());
    let limits = InstanceLimits {
        memory: spec.memory.unwrap_or(core.limits.memory),
        table_elements: core.limits.table_elements,
        output_size: core.limits.output_size,
        exec_timeout: spec.exec_timeout.unwrap_or(core.limits.exec_timeout),
        build_timeout: core.limits.build_timeout,
        fuel: spec.fuel.unwrap_or(core.limits.fuel),
    };
    let policy = Policy {
        isolation: spec.isolation.unwrap_or(core.engine.isolation),
        max_uses: core.pool.max_uses,
        max_instances: core.pool.max_instances_per_evaluator.min(core.pool.max_instances),
        grace: core.pool.grace,
        exec_timeout: limits.exec_timeout,
        build_timeout: limits.build_timeout,
    };
    let hosts = spec.allowed_hosts.clone();
    Ok(Blueprint {
        entry_point,
        wasi: wants_wasi,
        linked: linked
            .iter()
            .map(|(name, plugin)| LinkedModule {
                name: (*name).to_owned(),
                wasm: plugin.bytes().clone(),
                digest: plugin.digest(),
            })
            .collect(),
        trusted: spec.trusted.unwrap_or(core.engine.trusted),
        config: spec.config.clone(),
        allowed_hosts: hosts.unwrap_or_else(|| core.engine.allowed_hosts.iter().cloned().collect()),
        host_functions: spec.host_functions.clone(),
        limits,
        policy,
        plugin,
    })
}
