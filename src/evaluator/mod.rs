//! The handle that users hold: it takes one evaluation from data to response, and caches instances for the threads that
//! call it without a pause.

mod call;
mod entry_point;
mod evaluate;

use std::{
    collections::BTreeSet,
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use tokio::time::Instant;

pub(crate) use self::call::Call;
use self::call::block;
pub use self::entry_point::EntryPoint;
use crate::{
    clock,
    close::{Close, CloseReport},
    config::Input,
    data::Data,
    engine::{BoxFuture, inside_host_function},
    error::Error,
    executable::Executable,
    info::EvaluatorInfo,
    registry::{CloseReason, Gone, RevisionId, RuntimeState, ThreadCache},
    response::{EvaluatorId, Response},
    revision::{PoolInner, Revision},
    runtime::Parked,
    tenants::Meter,
};

/// A handle on one evaluator. Cheap to clone: clones are the same evaluator.
///
/// When the last clone of an evaluator that is not registered with its pool is dropped, its runtime closes in the
/// background.
#[derive(Clone)]
pub struct Evaluator {
    inner: Arc<EvaluatorInner>,
}

struct EvaluatorInner {
    pool: Arc<PoolInner>,
    id: EvaluatorId,
    name: Arc<str>,
    /// Its tenant is that of its current revision, or of its last. Changed under the lock of `ids`.
    meter: Meter,
    /// `None` once closed. Changed under the lock of `ids`.
    revision: ArcSwapOption<Revision>,
    /// What its revisions' runtimes are registered under: its own id, and those of revisions that were prepared under
    /// another before they replaced one of its own.
    ids: Mutex<BTreeSet<u64>>,
    /// Instances that stay with the threads that use them.
    parked: Arc<ThreadCache<Box<Parked>>>,
    /// Without those on instances that were parked, which the cache counts.
    evaluations: AtomicU64,
    made: Instant,
    /// When the last evaluation but for those began: milliseconds since `made`, and one; 0 for never.
    last_used: AtomicU64,
}

impl Evaluator {
    pub(crate) fn new(pool: Arc<PoolInner>, id: u64, revision: Arc<Revision>) -> Self {
        revision.set_owner(id);
        Self {
            inner: Arc::new(EvaluatorInner {
                meter: pool.tenants.meter(revision.tenant(), &revision.name, id),
                pool,
                id: EvaluatorId(id),
                name: revision.name.clone(),
                ids: Mutex::new(BTreeSet::from([id, revision.id.evaluator])),
                revision: ArcSwapOption::new(Some(revision)),
                parked: Arc::default(),
                evaluations: AtomicU64::new(0),
                made: Instant::now(),
                last_used: AtomicU64::new(0),
            }),
        }
    }

    /// The name it was made with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Whether it has data of its own, into which that of a call is merged.
    #[cfg(feature = "service")]
    pub(crate) fn has_data(&self) -> bool {
        self.inner.revision.load().as_ref().is_some_and(|revision| revision.spec.data.is_some())
    }

    /// Whether its clients may see its insides.
    #[cfg(feature = "service")]
    pub(crate) fn is_debugged(&self) -> bool {
        self.inner.revision.load().as_ref().is_some_and(|revision| revision.spec.debug)
    }

    /// What its current revision gets of a client's request.
    #[cfg(feature = "service")]
    pub(crate) fn wanted_input(&self) -> Input {
        self.inner.revision.load().as_ref().map_or_else(Input::default, |revision| self.inner.wanted(revision))
    }

    /// Distinguishes it from other evaluators of that name.
    #[must_use]
    pub fn id(&self) -> EvaluatorId {
        self.inner.id
    }

    /// A handle on the entry point of this name, which calls of it run instead of the default one. Whether the plugin has
    /// it is known once the plugin is built: an evaluation says so.
    ///
    /// ```no_run
    /// # async fn example(evaluator: evalpool::Evaluator) -> Result<(), evalpool::Error> {
    /// let price = evaluator.entry_point("price");
    /// let response = price.evaluate(r#"{"item":"tea"}"#).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn entry_point(&self, name: impl Into<Arc<str>>) -> EntryPoint {
        EntryPoint::new(self.clone(), name.into())
    }

    /// Runs the plugin once, by its default entry point: merges the data, leases the runtime (and builds it if it is cold),
    /// runs the guest.
    ///
    /// Waits in three places, each bounded: for a place or an instance (`limits.wait_timeout`), for the build
    /// (`limits.build_timeout`), for the guest (`limits.exec_timeout`). Must be polled on a tokio runtime with its
    /// timer enabled; elsewhere use [`evaluate_blocking`](Self::evaluate_blocking).
    ///
    /// **The guest runs on the thread that polls the future**, and returns to its executor each millisecond. One instruction
    /// may keep the thread for longer: `memory.fill` and `memory.copy` of a whole memory run to their end, 10 to 30 ms for
    /// 64 MiB and up to a second for 1 GiB. If that is too long for what else your runtime does, spawn evaluations of
    /// strangers' plugins on a tokio runtime of their own, with more threads than cores, and abort the task when its caller
    /// leaves. The README has an example. (On `extism`, each guest has a blocking thread.)
    ///
    /// **Dropping the future** gives up its place in every queue, stops the guest promptly, and discards the instance
    /// that the guest was using. It does not undo what the guest had already done through host functions.
    ///
    /// # Errors
    ///
    /// Before the guest runs: [`Closed`](Error::Closed), [`ShuttingDown`](Error::ShuttingDown),
    /// [`Saturated`](Error::Saturated), [`WaitTimeout`](Error::WaitTimeout), [`PayloadTooLarge`](Error::PayloadTooLarge),
    /// [`InvalidRequest`](Error::InvalidRequest), [`QuotaExceeded`](Error::QuotaExceeded), and all that a build fails with.
    /// From the guest:
    /// [`GuestTrap`](Error::GuestTrap), [`GuestError`](Error::GuestError), [`GuestExit`](Error::GuestExit),
    /// [`OutOfMemory`](Error::OutOfMemory), [`OutOfFuel`](Error::OutOfFuel), [`OutputTooLarge`](Error::OutputTooLarge),
    /// [`ExecTimeout`](Error::ExecTimeout). [`Internal`](Error::Internal) for a panic in a host function.
    pub async fn evaluate(&self, data: impl Into<Data>) -> Result<Response, Error> {
        self.evaluate_from(&data.into(), Call::by(None)).await
    }

    /// The same with a context: a value that host functions can ask for while they serve this call, by its type:
    /// [`context`](crate::engine::Guest#method.context). What several calls share, pass as an `Arc` and ask for as one.
    ///
    /// No other call sees it, nor does an initialiser. It is dropped when the evaluation ends, however it ends; on the
    /// `extism` engine, where a guest may go on for a while after its caller has left, when the guest has ended.
    ///
    /// ```no_run
    /// # async fn example(pool: evalpool::EvaluatorPool) -> Result<(), evalpool::Error> {
    /// use evalpool::{HostFunction, Spec, engine::{Val, ValType}};
    ///
    /// struct Customer {
    ///     name: String,
    /// }
    ///
    /// let whose = HostFunction::new("whose", [], [ValType::I64], |guest, _| {
    ///     let customer = guest.context::<Customer>()?;
    ///     Ok(vec![Val::I64(guest.write(customer.name.as_bytes())?.cast_signed())])
    /// });
    /// let evaluator = pool.evaluator("price", Spec::file("price.wasm").host_function(whose))?;
    /// evaluator.evaluate_with("tea", Customer { name: "Ada".into() }).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`evaluate`](Self::evaluate).
    pub async fn evaluate_with<C>(&self, data: impl Into<Data>, context: C) -> Result<Response, Error>
    where
        C: Send + Sync + 'static,
    {
        self.evaluate_from(&data.into(), Call::by(None).with(context)).await
    }

    /// The same for callers without tokio. Blocks this thread until the evaluation has ended, for at most the sum of
    /// its three bounds. The guest runs on it, too; the timers are those of a tokio runtime of this crate's own.
    ///
    /// Do not call it from a task: it blocks the thread that drives the task.
    ///
    /// # Errors
    ///
    /// As [`evaluate`](Self::evaluate).
    pub fn evaluate_blocking(&self, data: impl Into<Data>) -> Result<Response, Error> {
        self.block_on(data.into(), None)
    }

    fn block_on(&self, data: Data, entry_point: Option<Arc<str>>) -> Result<Response, Error> {
        let (inside, this) = (inside_host_function(), self.clone());
        block(async move {
            let call = Call { inside, ..Call::by(entry_point.as_deref()) };
            this.evaluate_from(&data, call).await
        })?
    }

    /// Refuses new work, lets calls in flight finish for `pool.grace`, interrupts the rest, and returns when the
    /// runtime is gone: see [`Close`]. A registered evaluator stays listed until it is
    /// [removed](crate::EvaluatorPool::remove).
    pub fn close(&self) -> impl Future<Output = CloseReport> + Send + 'static {
        self.close_with(self.inner.pool.pool.grace)
    }

    /// The same with this grace.
    pub fn close_with(&self, grace: Duration) -> impl Future<Output = CloseReport> + Send + 'static {
        self.inner.close(Some(grace));
        CloseReport::after(self.gone(), grace)
    }

    /// Drains and closes the runtime, if there is one, and returns when it is gone. The evaluator stays usable: its
    /// next call builds the runtime anew.
    ///
    /// Dropping the future does not stop the closing.
    pub async fn unload(&self) -> CloseReport {
        let pool = &self.inner.pool;
        let grace = pool.pool.grace;
        let gone = match self.revision() {
            Ok(revision) => pool.registry.unload(revision.id, grace),
            Err(_) => self.gone(),
        };
        CloseReport::after(gone, grace).await
    }

    /// Whether it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.revision.load().is_none()
    }

    /// The compiled plugin with its entry point, building the runtime if need be.
    ///
    /// # Errors
    ///
    /// As [`evaluate`](Self::evaluate), before the guest runs.
    pub async fn executable(&self) -> Result<Executable, Error> {
        let revision = self.revision()?;
        drop(revision.lease(&self.inner.pool).await?);
        let info = revision.info().ok_or(Error::Internal { reason: "a runtime of an unknown plugin", cause: None })?;
        Ok(Executable::new(self.inner.pool.clone(), revision.clone(), info.clone()))
    }

    /// Builds the runtime ahead of the first call, as [`EvaluatorPool::warm`](crate::EvaluatorPool::warm) does for many. If
    /// it is live already, it counts as used now.
    ///
    /// Cancel safe: a build that has begun goes on.
    ///
    /// # Errors
    ///
    /// All that a build fails with, and the waits before it: see [`evaluate`](Self::evaluate).
    pub async fn warm(&self) -> Result<(), Error> {
        self.revision()?.lease(&self.inner.pool).await.map(drop)
    }

    fn revision(&self) -> Result<Arc<Revision>, Error> {
        self.inner.revision.load_full().ok_or_else(|| self.closed(false))
    }

    fn closed(&self, interrupted: bool) -> Error {
        Error::Closed { name: self.inner.name.to_string(), interrupted }
    }

    pub(crate) fn belongs_to(&self, tenant: &str) -> bool {
        self.inner.meter.belongs_to(tenant)
    }

    /// Whom it belongs to now.
    #[cfg(feature = "service")]
    pub(crate) fn tenant(&self) -> Arc<str> {
        self.inner.meter.tenant()
    }

    pub(crate) fn revision_id(&self) -> Option<RevisionId> {
        self.inner.revision.load().as_ref().map(|revision| revision.id)
    }

    /// What ends when every runtime of this evaluator, whatever its revision, is gone.
    fn gone(&self) -> Gone {
        let ids = self.inner.ids().clone();
        self.inner.pool.registry.gone(|revision| ids.contains(&revision.evaluator))
    }

    /// Swaps the revision and gives the old one; `None` when the evaluator is closed.
    pub(crate) fn replace(&self, revision: Arc<Revision>) -> Option<Arc<Revision>> {
        let mut ids = self.inner.ids();
        let current = self.inner.revision.load_full()?;
        ids.insert(revision.id.evaluator);
        self.inner.meter.move_to(revision.tenant(), revision.id.evaluator);
        // What either logs meanwhile is kept for nobody.
        current.set_owner(0);
        revision.set_owner(self.id().0);
        self.inner.revision.store(Some(revision));
        Some(current)
    }

    pub(crate) fn info(&self, state: RuntimeState, instances: usize) -> EvaluatorInfo {
        let inner = &*self.inner;
        let (parked, last_parked) = inner.parked.history();
        let last_used = inner.last_used.load(Ordering::Relaxed).checked_sub(1);
        let last_used = last_used.map(|passed| clock::later(inner.made, Duration::from_millis(passed)));
        let (tenant, usage) = inner.meter.read();
        let mut info = match inner.revision.load_full() {
            Some(revision) => revision.describe(inner.id, state, instances),
            None => EvaluatorInfo::closed(inner.name.to_string(), tenant.to_string(), inner.id, state, instances),
        };
        info.usage = usage;
        info.evaluations = inner.evaluations.load(Ordering::Relaxed) + parked;
        info.last_used = last_used.max(last_parked).map(|at| unix_millis().saturating_sub(millis(at.elapsed())));
        info
    }
}

impl Close for Evaluator {
    fn close(&self) -> BoxFuture<'static, CloseReport> {
        Box::pin(Evaluator::close(self))
    }

    fn close_with(&self, grace: Duration) -> BoxFuture<'static, CloseReport> {
        Box::pin(Evaluator::close_with(self, grace))
    }
}

impl EvaluatorInner {
    fn ids(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        // Nothing panics under it.
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wanted(&self, revision: &Revision) -> Input {
        revision.spec.input.unwrap_or(self.pool.engine.input)
    }

    /// The first close takes the revision out; what the spec holds, host functions among it, goes with it.
    fn close(&self, grace: Option<Duration>) {
        let revision = {
            let _changing = self.ids();
            self.revision.swap(None)
        };
        if let Some(revision) = revision {
            revision.retire(&self.pool, CloseReason::Closed, grace);
        }
    }
}

impl Drop for EvaluatorInner {
    fn drop(&mut self) {
        self.close(None);
    }
}

impl fmt::Debug for Evaluator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Evaluator").field("id", &self.inner.id).field("name", &self.inner.name).finish_non_exhaustive()
    }
}

fn unix_millis() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
