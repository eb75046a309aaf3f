//! The guard and the validation. The only caller of [`Engine::compile`].
//!
//! From the moment the engine has made a compiled plugin until the runtime is published, a [`Guard`] owns it. Two things
//! can fail in between: the probe instance cannot be made (which tries links, data segments, `start` and initialisers),
//! or the entry point is not there. Then the guard closes what was opened before the error is returned. On a panic, or
//! when the task is dropped, it does so in its drop. On success it is disarmed and hands ownership on.
//!
//! A compile runs on a task of its own, which holds its place, its permit and its slot among `build_concurrency`. If the
//! engine can end it, that happens when its time is up, when its revision is retired, or when nobody waits for it any more
//! and another build wants its slot. Otherwise the task holds them until the compile has really ended, and only the wait
//! for it ends.

mod once;
mod slots;
mod snapshots;

use std::{convert::Infallible, future::Future, pin::pin, sync::Arc, time::Duration};

use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout},
};
use tracing::{Instrument, Span};

use self::{
    once::{Contents, Once},
    slots::{BuildSlot, BuildSlots, Renounce},
};
use crate::{
    background::Background,
    config::{Init, Wasi},
    engine::{
        self, CompileRequest, CompileWorkerCounts, CompiledPlugin, Contained, Engine, HostFunction, Instance, Slots,
        abi_names,
    },
    error::Error,
    metrics::Metrics,
    registry::{Admission, Compiling, InstancePermit, Interest, Place},
    runtime::{BuildTimes, Policy, Program, Report, Runtime},
    source::{EntryPoints, Interface, Plugin},
    spans::phase,
};

/// A plugin that has passed all that can be checked without an engine, and how to run it.
#[derive(Debug, Clone)]
pub(crate) struct Blueprint {
    pub(crate) plugin: Plugin,
    pub(crate) entry_points: EntryPoints,
    /// With a permit for nothing, until there is a place.
    pub(crate) request: CompileRequest,
    pub(crate) report: Report,
    pub(crate) policy: Policy,
}

/// Refuses imports that nothing will provide, before they cost anyone a place or a compile.
///
/// # Errors
///
/// `invalid_plugin`, naming the first such import.
pub(crate) fn check_imports(
    interface: &Interface,
    wasi: Wasi,
    functions: &[HostFunction],
    linked: &[(&str, &Plugin)],
) -> Result<(), Error> {
    for import in interface.imports() {
        let (module, name) = (import.module.as_str(), import.name.as_str());
        let provided = match module {
            abi_names::MODULE => abi_names::NAMES.contains(&name),
            // WASI has many functions, and the engine knows them.
            "wasi_snapshot_preview1" => wasi == Wasi::Auto,
            // The engine knows what a linked module exports.
            _ => linked.iter().any(|(name, _)| *name == module),
        };
        let by_host = || functions.iter().any(|function| function.is(module, name));
        if !provided && !by_host() {
            return Err(Error::invalid_plugin(match module {
                "wasi_snapshot_preview1" => format!("it imports {module}::{name}, and WASI is off"),
                _ => format!("it imports {module}::{name}, which this host does not provide"),
            }));
        }
    }
    Ok(())
}

/// Whether a linked module cannot have this name, because another module is imported by it.
pub(crate) fn is_taken(name: &str) -> bool {
    ["", "main", "extism:host/env", "wasi_snapshot_preview1"].contains(&name)
}

/// Sorts linked modules so that each comes after those that it imports from.
///
/// # Errors
///
/// `invalid_request` for a name that cannot be linked, `invalid_plugin` for modules that import from each other.
pub(crate) fn order_linked<'a>(mut modules: Vec<(&'a str, &'a Plugin)>) -> Result<Vec<(&'a str, &'a Plugin)>, Error> {
    for (at, (name, _)) in modules.iter().enumerate() {
        if is_taken(name) || modules[..at].iter().any(|(other, _)| other == name) {
            return Err(Error::invalid_request(format!("a linked module cannot be named {name:?}: the name is taken")));
        }
    }
    let mut ordered: Vec<(&str, &Plugin)> = Vec::with_capacity(modules.len());
    while !modules.is_empty() {
        let is_ready = |plugin: &Plugin| {
            let waits_for = |from: &str| modules.iter().any(|(name, _)| *name == from);
            !plugin.interface().imports().iter().any(|import| waits_for(&import.module))
        };
        let Some(ready) = modules.iter().position(|(_, plugin)| is_ready(plugin)) else {
            let names: Vec<&str> = modules.iter().map(|(name, _)| *name).collect();
            return Err(Error::invalid_plugin(format!("the modules {} import from each other", names.join(", "))));
        };
        ordered.push(modules.remove(ready));
    }
    Ok(ordered)
}

/// Refuses to keep variables, or to initialise plugins once, on an engine that cannot.
///
/// # Errors
///
/// `invalid_request`, saying what to do.
pub(crate) fn check_choices(engine: &dyn Engine, keeps_variables: bool, init: Init) -> Result<(), Error> {
    let lacks = |what, set| {
        Err(Error::invalid_request(format!("this engine cannot {what}: set {set}, or choose the direct engine")))
    };
    if keeps_variables && !engine.keeps_variables() {
        return lacks("keep variables from one evaluation to the next", "vars = fresh");
    }
    if init == Init::Once && !engine.initialises_once() {
        return lacks("initialise a plugin once for all its instances", "init = each");
    }
    Ok(())
}

/// Compiles and validates, a bounded number at a time.
pub(crate) struct Compiler {
    engine: Arc<dyn Engine>,
    slots: Arc<BuildSlots>,
    contents: Contents,
    metrics: Metrics,
    background: Background,
}

impl Compiler {
    pub(crate) fn new(engine: Arc<dyn Engine>, concurrency: usize, metrics: Metrics, background: Background) -> Self {
        Self { engine, slots: BuildSlots::new(concurrency), contents: Contents::default(), metrics, background }
    }

    /// The engine's slots, if it has any.
    pub(crate) fn slots(&self) -> Option<Slots> {
        self.engine.slots()
    }

    /// The processes in which the engine compiles, if it does.
    pub(crate) fn workers(&self) -> Option<CompileWorkerCounts> {
        self.engine.compile_workers()
    }

    /// Refuses what the engine does not run, before it costs anyone a place or a compile.
    ///
    /// # Errors
    ///
    /// `invalid_request`, saying what to set.
    pub(crate) fn check(&self, blueprint: &Blueprint) -> Result<(), Error> {
        let request = &blueprint.request;
        self.engine.check(request.trusted, &request.allowed_hosts)?;
        check_choices(&*self.engine, request.variables.is_some(), request.init)
    }

    /// Whether others with the same bytes find the code that is made for this.
    fn shares(&self, request: &CompileRequest) -> bool {
        self.engine.shares_code() && request.linked.is_empty()
    }

    /// Waits while the same bytes are compiled for another build: this one finds their code then, and has no use for a place
    /// before. Cancel safe.
    pub(crate) async fn follow(&self, request: &CompileRequest, interest: Interest<Runtime>) {
        if self.shares(request) {
            self.contents.compiled(request.digest, Arc::new(move || interest.renounce())).await;
        }
    }

    /// Compiles a plugin into a runtime, or closes what was opened for it.
    ///
    /// Cancel safe: what is in progress ends, or runs to its end, and is closed.
    ///
    /// # Errors
    ///
    /// `invalid_plugin`, `entry_point_missing`, `build_timeout`, `wait_timeout` when no slot came free within `wait`,
    /// `internal` for a panic, or `cancelled` once the build is `unwanted`: its revision was retired, or nobody waited for
    /// it and it has given way to another.
    pub(crate) async fn build(
        &self,
        blueprint: Blueprint,
        admission: Admission<Runtime>,
        interest: Interest<Runtime>,
        unwanted: impl Future<Output = ()>,
        wait: Duration,
    ) -> Result<Runtime, Error> {
        let internal = |error: tokio::task::JoinError| Error::internal("the build did not finish", error.to_string());
        let mut unwanted = pin!(unwanted);
        let Admission { place, permit, compiling } = admission;
        // The build holds its place while it waits for its turn, so it does not wait for ever.
        let turn = tokio::select! {
            turn = timeout(wait, self.turn(&blueprint.request, interest.clone(), compiling)) => turn,
            () = &mut unwanted => return Err(Error::Cancelled),
        };
        let (turn, renounce) = turn.map_err(|_| Error::WaitTimeout { after: wait })?;
        let after = blueprint.request.limits.build_timeout;
        let (engine, metrics, background) = (self.engine.clone(), self.metrics.clone(), self.background.clone());
        let attempt = async move { attempt(&*engine, blueprint, (place, permit), metrics, background, turn).await };
        let attempt = attempt.instrument(Span::current());
        if !self.engine.interrupts_compiles() {
            return match timeout(after, tokio::spawn(attempt)).await {
                Ok(built) => built.map_err(internal)?,
                Err(_) => Err(Error::build_timeout(after)),
            };
        }
        let mut work = AbortOnDrop(tokio::spawn(attempt));
        tokio::select! {
            built = &mut work.0 => built.map_err(internal)?,
            () = &mut unwanted => {
                work.0.abort();
                // It holds its place until it is gone. If it has just ended well, nobody gets to see it.
                drop((&mut work.0).await);
                Err(Error::Cancelled)
            }
            // Which it hears of above.
            never = give_way_to_own(&interest, renounce) => match never {},
        }
    }

    /// Waits until nobody else compiles the same, then for a slot.
    async fn turn(
        &self,
        request: &CompileRequest,
        interest: Interest<Runtime>,
        compiling: Compiling<Runtime>,
    ) -> (Turn, Option<Arc<Renounce>>) {
        let left = interest.left();
        let renounce: Arc<Renounce> = {
            let interest = interest.clone();
            Arc::new(move || interest.renounce())
        };
        let (once, compiling) = if self.shares(request) {
            if let Some(once) = self.contents.try_only(request.digest) {
                (once, Some(compiling))
            } else {
                // It will find the code. Until then, others can compile.
                drop(compiling);
                (self.contents.only(request.digest, renounce).await, None)
            }
        } else {
            (Once::default(), Some(compiling))
        };
        let renounce = self.engine.interrupts_compiles().then(|| {
            let followers = once.followers();
            Arc::new(move || followers.renounce() && interest.renounce()) as Arc<Renounce>
        });
        let slot = self.slots.acquire(renounce.clone(), &left).await;
        (Turn { once, slot: (slot, compiling) }, renounce)
    }
}

/// Gives the build up once nobody waits for it and its tenant, which is at its bound, wants to build something else.
async fn give_way_to_own(interest: &Interest<Runtime>, renounce: Option<Arc<Renounce>>) -> Infallible {
    let left = interest.left();
    loop {
        let mut changed = pin!(left.notified());
        // Before looking, or a change in between would be missed.
        changed.as_mut().enable();
        if interest.holds_up_own()
            && let Some(renounce) = &renounce
            && renounce()
        {
            return std::future::pending().await;
        }
        changed.await;
    }
}

/// The right to compile, and to be the only one who compiles this.
struct Turn {
    once: Once,
    /// In this order: whoever is admitted finds the slot free.
    slot: (BuildSlot, Option<Compiling<Runtime>>),
}

/// Ends a task when it is dropped.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn attempt(
    engine: &dyn Engine,
    blueprint: Blueprint,
    (place, permit): (Place<Runtime>, InstancePermit<Runtime>),
    metrics: Metrics,
    background: Background,
    Turn { once, slot }: Turn,
) -> Result<Runtime, Error> {
    let Blueprint { plugin, entry_points, request, report, policy } = blueprint;
    let within = request.limits.build_timeout;
    let memory = place.memory();
    let request = CompileRequest { permit: engine::Permit::new(place.clone()), memory: memory.clone(), ..request };
    let started = Instant::now();
    let compiled = Contained::from(engine.compile(request).instrument(phase!("compile")).await?);
    let compile = started.elapsed();
    metrics.build_phase("compile", compile);
    // Those with the same bytes find the code.
    drop(once);
    // If the engine can interrupt initialisers, a slow one keeps no other plugin from compiling.
    let _slot = (!engine.interrupts_initialisers()).then_some(slot);
    let mut guard = Guard::new(compiled, place, background.clone());

    let started = Instant::now();
    let probe = policy.cpu.charged(guard.compiled().instantiate(engine::Permit::new(permit)));
    let probe = probe.instrument(phase!("probe"));
    let probe = if engine.interrupts_compiles() {
        // What the compile has left of the time is for the initialisers.
        timeout(within.saturating_sub(compile), probe).await.unwrap_or_else(|_| Err(Error::build_timeout(within)))
    } else {
        probe.await
    };
    let probe = match probe {
        Ok(probe) => probe,
        Err(error) => return Err(guard.close(report.failure(error)).await),
    };
    let init = started.elapsed();
    metrics.build_phase("probe", init);
    guard.keep(probe.into());

    // What was read of the plugin, and what the engine made of it, agree.
    let unknown = entry_points.iter().find(|name| !guard.compiled().has_entry_point(name));
    if let Some(error) = unknown.map(|name| entry_points.missing(Some(name))) {
        return Err(guard.close(error).await);
    }
    Ok(guard.disarm(|compiled, probe, place| {
        let spares_wait = engine.instances_are_cheap();
        let (digest, took) = (plugin.digest(), BuildTimes { compile, init });
        let program = Program { compiled, entry_points, digest, report, memory, took, spares_wait };
        Runtime::new(program, probe, policy, metrics, background, place)
    }))
}

/// Owns what the engine has opened until a runtime does.
struct Guard {
    /// `None` once disarmed or closed.
    opened: Option<Opened>,
    background: Background,
}

/// In the order in which it is given back.
struct Opened {
    probe: Option<Contained<dyn Instance>>,
    compiled: Contained<dyn CompiledPlugin>,
    place: Place<Runtime>,
}

impl Guard {
    fn new(compiled: Contained<dyn CompiledPlugin>, place: Place<Runtime>, background: Background) -> Self {
        place.opened();
        Self { opened: Some(Opened { probe: None, compiled, place }), background }
    }

    fn compiled(&self) -> &dyn CompiledPlugin {
        match &self.opened {
            Some(opened) => &*opened.compiled,
            None => unreachable!("a guard is consumed when it is disarmed or closed"),
        }
    }

    fn keep(&mut self, probe: Contained<dyn Instance>) {
        if let Some(opened) = &mut self.opened {
            opened.probe = Some(probe);
        }
    }

    /// Closes what was opened, waits until that is done, and hands the error on.
    async fn close(mut self, error: Error) -> Error {
        tracing::debug!(error = %error.chain(), "closing what a failed build had opened");
        if let Some(opened) = self.opened.take() {
            // Dropping compiled code unmaps it, which takes a while.
            let _ = spawn_blocking(move || drop(opened)).await;
        }
        error
    }

    /// Hands ownership on.
    fn disarm(
        mut self,
        assemble: impl FnOnce(Contained<dyn CompiledPlugin>, Contained<dyn Instance>, Place<Runtime>) -> Runtime,
    ) -> Runtime {
        match self.opened.take() {
            Some(Opened { probe: Some(probe), compiled, place }) => assemble(compiled, probe, place),
            _ => unreachable!("a guard is disarmed once, after its probe was kept"),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(opened) = self.opened.take() {
            self.background.drop_elsewhere(opened);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_task_ends_when_nobody_waits_for_it_any_more() {
        let (held, gone) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        drop(AbortOnDrop(task));
        assert!(gone.await.is_err());
    }
}
