//! The pool: the evaluators registered by name, their replacement, and the close of all.
//!
//! # Registered is not live
//!
//! An evaluator made with [`EvaluatorPool::evaluator`] belongs to its handles: when the last one is dropped, its
//! runtime closes. One made with [`register`](EvaluatorPool::register) or [`prepare`](EvaluatorPool::prepare) belongs
//! to the pool until it is [removed](EvaluatorPool::remove). Either is *cold* until its first call, and again after an
//! eviction.
//!
//! # Replacing
//!
//! [`prepare`](EvaluatorPool::prepare) builds a plugin without publishing it; [`Prepared::publish`] swaps it in. A server
//! stores the plugin in between: if that fails, dropping the [`Prepared`] closes what was built, and the old plugin stays.
//! Considered and not taken: a `replace` that takes a closure for the storing (a user callback in the middle of the swap),
//! and building under the old name (a failed upload would cost the evaluator its good plugin).

mod builder;
mod prepared;
#[cfg(feature = "service")]
mod search;
mod snapshot;

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream};

pub use self::{builder::PoolBuilder, prepared::Prepared};
use crate::{
    close::{Close, CloseReport},
    config::{Settings, SettingsError, TenantSettings},
    engine::{BoxFuture, CompileWorkerCounts, InitState, Slots},
    error::Error,
    evaluator::Evaluator,
    info::EvaluatorInfo,
    memory::MemoryUse,
    registry::RuntimeState,
    revision::{PoolInner, Revision, tenant_of},
    runtime::{BuildTimes, Runtime},
    source::Plugin,
    spec::Spec,
    tenants::{TenantInfo, UsageSeries},
    units::unfit_name,
};

/// A capacity-bounded pool of evaluators. Cheap to clone: clones are the same pool.
///
/// When the last clone is dropped, evaluators that are registered and have no handle left are closed in the
/// background. To wait for the end, [`close`](Self::close) it.
#[derive(Clone)]
pub struct EvaluatorPool {
    inner: Arc<PoolInner>,
    names: Arc<Mutex<BTreeMap<String, Evaluator>>>,
}

impl EvaluatorPool {
    /// A builder with the default settings.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::default()
    }

    /// A pool with these settings.
    ///
    /// # Errors
    ///
    /// The first setting that is out of its range.
    pub fn from_settings(settings: &Settings) -> Result<Self, SettingsError> {
        PoolBuilder::from(settings.clone()).build()
    }

    fn new(inner: PoolInner) -> Self {
        Self { inner: Arc::new(inner), names: Arc::default() }
    }

    fn names(&self) -> MutexGuard<'_, BTreeMap<String, Evaluator>> {
        // Only map operations happen under this lock.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An evaluator that belongs to its handles. The name is for people and errors; it need not be unique.
    ///
    /// Nothing is fetched or compiled before the first call.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`]; [`Error::InvalidRequest`] for a spec that no build could use; [`Error::QuotaExceeded`] when its
    /// tenant has as many evaluators as it may.
    pub fn evaluator(&self, name: &str, spec: Spec) -> Result<Evaluator, Error> {
        check_name(name)?;
        spec.check()?;
        let _seat = self.inner.tenants.seat(tenant_of(name, &spec))?;
        let id = self.inner.unique();
        Ok(Evaluator::new(self.inner.clone(), id, Revision::new(&self.inner, id, name, spec)))
    }

    /// An evaluator that belongs to the pool until it is removed, in place of any other of that name.
    ///
    /// Nothing is fetched or compiled before the first call. To validate the plugin first, and keep the old one if the new
    /// one is bad, use [`prepare`](Self::prepare).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`]; [`Error::InvalidRequest`] for a spec that no build could use; [`Error::QuotaExceeded`] when its
    /// tenant has as many evaluators as it may.
    pub fn register(&self, name: &str, spec: Spec) -> Result<Evaluator, Error> {
        check_name(name)?;
        spec.check()?;
        Ok(self.prepared(name, spec, true)?.0.publish().0)
    }

    /// The same for what was registered before this process began: also if its tenant may have fewer by now.
    #[cfg(feature = "service")]
    pub(crate) fn register_again(&self, name: &str, spec: Spec) -> Result<Evaluator, Error> {
        check_name(name)?;
        spec.check()?;
        Ok(self.prepared(name, spec, false)?.0.publish().0)
    }

    /// Fetches, compiles and validates a plugin under the guard, without publishing it.
    ///
    /// Cancel safe: dropping the future closes whatever was built.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`], or why the plugin was refused. What is registered under the name stays as it is.
    pub async fn prepare(&self, name: &str, spec: Spec) -> Result<Prepared, Error> {
        self.prepare_with(name, spec, None).await
    }

    /// The same for a caller that has the plugin that the spec's source holds: the first build takes it instead of reading
    /// the source. Unless the source itself is in memory, its bytes are dropped when that build has ended.
    pub(crate) async fn prepare_with(&self, name: &str, spec: Spec, plugin: Option<Plugin>) -> Result<Prepared, Error> {
        check_name(name)?;
        spec.check()?;
        let (mut prepared, revision) = self.prepared(name, spec, true)?;
        if let Some(plugin) = plugin {
            revision.set_plugin(plugin);
        }
        // The lease is for the build's sake: it ends here, and the runtime stays, idle.
        let lease = revision.lease(&self.inner).await?;
        if let Some(program) = lease.resident().map(Runtime::program) {
            (prepared.took, prepared.init) = (program.took, program.compiled.init_state());
            prepared.snapshot = program.compiled.snapshot_info();
        }
        Ok(prepared)
    }

    fn prepared(&self, name: &str, spec: Spec, bounded: bool) -> Result<(Prepared, Arc<Revision>), Error> {
        // A revision belongs to the evaluator that will have it, so that closing that one waits for this as well.
        let (listed, tenant) = (self.get(name), tenant_of(name, &spec));
        // One that is closed and still listed counts until it is replaced.
        let is_one_more = !listed.as_ref().is_some_and(|evaluator| evaluator.belongs_to(tenant));
        let open = listed.filter(|evaluator| !evaluator.is_closed());
        let seat = (bounded && is_one_more).then(|| self.inner.tenants.seat(tenant)).transpose()?;
        let (id, is_new) = open.map_or_else(|| (self.inner.unique(), true), |evaluator| (evaluator.id().0, false));
        let revision = Revision::new(&self.inner, id, name, spec);
        let prepared = Prepared {
            pool: self.clone(),
            id,
            is_new,
            revision: Some(revision.clone()),
            took: BuildTimes::default(),
            init: InitState::Each,
            snapshot: None,
            _seat: seat,
        };
        Ok((prepared, revision))
    }

    /// The evaluator registered under a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Evaluator> {
        self.names().get(name).cloned()
    }

    /// Unregisters the evaluator of a name and closes it. False when there is none.
    ///
    /// Dropping the future does not stop the closing.
    pub async fn remove(&self, name: &str) -> bool {
        match self.take(name) {
            Some(evaluator) => {
                evaluator.close().await;
                true
            }
            None => false,
        }
    }

    /// Unregisters the evaluator of a name and returns it, open: from now on it belongs to its handles.
    /// Use this to unregister now and await the close later.
    #[must_use]
    pub fn take(&self, name: &str) -> Option<Evaluator> {
        let mut names = self.names();
        let taken = names.remove(name);
        self.inner.metrics.note_registered(names.len());
        drop(names);
        self.inner.metrics.show();
        taken
    }

    /// What is registered under a name.
    #[must_use]
    pub fn info(&self, name: &str) -> Option<EvaluatorInfo> {
        self.infos(&[self.get(name)?]).pop()
    }

    /// What is registered, in the order of names, from the one after `after`, at most `limit`.
    #[must_use]
    pub fn list(&self, after: Option<&str>, limit: usize) -> Vec<EvaluatorInfo> {
        use std::ops::Bound;

        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let evaluators: Vec<Evaluator> = self
            .names()
            .range::<str, _>((from, Bound::Unbounded))
            .take(limit)
            .map(|(_, evaluator)| evaluator.clone())
            .collect();
        self.infos(&evaluators)
    }

    /// What each of these is and does.
    pub(crate) fn infos(&self, evaluators: &[Evaluator]) -> Vec<EvaluatorInfo> {
        let mut all = self.inner.registry.view().runtimes;
        // An evaluator that was unloaded and built anew has two: the later in this order is shown.
        all.sort_by_key(|runtime| runtime.state != RuntimeState::Draining);
        let runtimes: BTreeMap<_, _> = all.into_iter().map(|runtime| (runtime.revision, runtime)).collect();
        evaluators
            .iter()
            .map(|evaluator| {
                let runtime = evaluator.revision_id().and_then(|revision| runtimes.get(&revision));
                let state = runtime.map_or(RuntimeState::Cold, |runtime| runtime.state);
                let mut info = evaluator.info(state, runtime.map_or(0, |runtime| runtime.instances));
                if let Some(resident) = runtime.and_then(|runtime| runtime.resident.as_ref()) {
                    let compiled = &resident.program().compiled;
                    info.init.note(&compiled.init_state(), compiled.snapshot_info());
                }
                info
            })
            .collect()
    }

    /// A tenant that has an evaluator, or had one: see [`TenantInfo`].
    #[must_use]
    pub fn tenant(&self, name: &str) -> Option<TenantInfo> {
        self.inner.tenants.info(name).map(|tenant| self.inner.with_what_it_has(tenant))
    }

    /// The tenants, in the order of names, from the one after `after`, at most `limit`.
    #[must_use]
    pub fn tenants(&self, after: Option<&str>, limit: usize) -> Vec<TenantInfo> {
        let tenants = self.inner.tenants.list(after, limit).into_iter();
        tenants.map(|tenant| self.inner.with_what_it_has(tenant)).collect()
    }

    /// What tenants may have from now on. What is unused and too much is closed; what is in use ends as it would have.
    ///
    /// # Errors
    ///
    /// The first bound that is out of its range; then nothing changes.
    pub fn set_tenants(&self, bounds: TenantSettings) -> Result<(), SettingsError> {
        bounds.validate()?;
        self.inner.set_bounds(bounds);
        Ok(())
    }

    /// What this tenant may have.
    #[cfg(feature = "service")]
    pub(crate) fn bounds_of(&self, tenant: &str) -> crate::config::TenantBounds {
        self.inner.tenants.bounds(tenant)
    }

    /// Those who use the most processor time, as many as [the settings](crate::config::MetricSettings) say: by default none.
    /// Call it at each scrape, and show its text behind what your exporter renders.
    ///
    /// Reads what those evaluators have used that were called since the last time, some microseconds for each. No evaluation
    /// waits for that.
    #[must_use]
    pub fn usage_series(&self) -> UsageSeries {
        let held = || self.inner.registry.held().into_iter().map(|(revision, bytes)| (revision.evaluator, bytes));
        self.inner.tenants.series(|| held().collect())
    }

    /// Writes the usage lines that are written at each [`usage.interval`](crate::config::UsageSettings) at once, for what
    /// was used since the last ones. Without that setting it does nothing.
    ///
    /// A line is an event of [`tracing`](https://docs.rs/tracing) at the level `info` and the target `evalpool::usage`. Its
    /// message is a JSON object: `target` once more, `node` (this machine's name), `tenant`, `evaluator`, `id` (of the
    /// evaluator), `from` and `to` (RFC 3339, UTC), and `usage`, the [`UsageTotals`](crate::UsageTotals) of that time. Only
    /// evaluators have one that ended an evaluation in it. An evaluator that is dropped or gets another tenant has its
    /// line a moment later.
    ///
    /// What is used is reported at each interval, and when the last handle on the pool and its evaluators is dropped. A
    /// program that may end before calls this at its end, after [`close`](Self::close); one that is killed loses what was
    /// used since the last interval. May block, as the subscriber does.
    pub fn report_usage(&self) {
        self.inner.tenants.report();
    }

    /// How many runtimes exist: being built, live and draining. Never more than the capacity.
    #[must_use]
    pub fn runtimes(&self) -> usize {
        let counts = self.inner.registry.counts();
        counts.building + counts.live + counts.draining
    }

    /// Brings the metrics up to date: the gauges of the engine's slots, those of instances that are idle but still kept by
    /// the threads that used them, and what is counted of calls of these instances. All of that happens by itself, within a
    /// fifth of a second and with each idle sweep. Call this before you show the metrics: then they have every evaluation
    /// whose response was there before. Returns the engine's slots, if it is one that has them: `direct`.
    #[expect(clippy::must_use_candidate, reason = "called for what it does")]
    pub fn slots(&self) -> Option<Slots> {
        self.inner.registry.settle();
        self.inner.slots()
    }

    /// What all runtimes hold now, in bytes: see [`pool.memory`](crate::config::PoolSettings::memory). Quick, and never
    /// blocks.
    #[must_use]
    pub fn memory(&self) -> MemoryUse {
        self.inner.memory.uses()
    }

    /// The processes in which the `direct` engine compiles; `None` if it compiles in this one.
    #[must_use]
    pub fn compile_workers(&self) -> Option<CompileWorkerCounts> {
        self.inner.compiler.workers()
    }

    /// Builds the runtimes of registered evaluators ahead of their first calls, `build_concurrency` at a time. Returns how
    /// each build went, in the order of `names`. More names than fit evict one another.
    ///
    /// Cancel safe: builds that have begun go on.
    pub async fn warm<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Vec<(&'a str, Result<(), Error>)> {
        let width = self.inner.pool.build_concurrency;
        let warm = |name: &'a str| async move {
            let outcome = match self.get(name) {
                Some(evaluator) => evaluator.executable().await.map(drop),
                None => Err(Error::NotFound { name: name.to_owned() }),
            };
            (name, outcome)
        };
        let names: Vec<&str> = names.into_iter().collect();
        stream::iter(names).map(warm).buffered(width).collect().await
    }

    /// Refuses new work, lets calls in flight finish for `pool.grace`, interrupts the rest, and returns when every runtime is
    /// gone: see [`Close`]. Evaluations afterwards fail with [`Error::ShuttingDown`].
    pub fn close(&self) -> impl Future<Output = CloseReport> + Send + 'static {
        self.close_with(self.inner.pool.grace)
    }

    /// The same with this grace.
    pub fn close_with(&self, grace: Duration) -> impl Future<Output = CloseReport> + Send + 'static {
        let (registry, metrics) = (self.inner.registry.clone(), self.inner.metrics.clone());
        registry.shut_down(Some(grace));
        let closing = CloseReport::after(registry.gone(|_| true), grace);
        async move {
            let report = closing.await;
            registry.show_reuse();
            metrics.tell();
            report
        }
    }
}

impl Close for EvaluatorPool {
    fn close(&self) -> BoxFuture<'static, CloseReport> {
        Box::pin(EvaluatorPool::close(self))
    }

    fn close_with(&self, grace: Duration) -> BoxFuture<'static, CloseReport> {
        Box::pin(EvaluatorPool::close_with(self, grace))
    }
}

impl fmt::Debug for EvaluatorPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EvaluatorPool").field("counts", &self.inner.registry.counts()).finish_non_exhaustive()
    }
}

/// The rule for names: 1 to 128 of `A-Z a-z 0-9 . _ - /`, no `..`.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let invalid = |reason| Err(Error::InvalidName { name: name.chars().take(128).collect(), reason });
    unfit_name(name).map_or(Ok(()), invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_held_to_their_rule() {
        for name in ["a", "A-z_0.9/b", ".", "/", &"x".repeat(128)] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
        for name in ["", "a..b", "a b", "ä", "a\0", "a%2Fb", &"x".repeat(129)] {
            assert_eq!(check_name(name).unwrap_err().kind(), "invalid_name", "{name:?}");
        }
    }
}
