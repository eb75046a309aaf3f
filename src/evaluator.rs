//! The handle that users hold: it conducts one evaluation from data to response. Caches nothing.

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
use bytes::Bytes;
use tokio::{runtime::Handle, time::Instant};

use crate::{
    background, clock,
    close::{Close, CloseReport},
    data::Data,
    engine::{BoxFuture, inside_host_function},
    error::Error,
    executable::Executable,
    info::{EvaluatorInfo, State},
    metrics::{CloseReason, Lookup, Metrics},
    pool::{Core, Version},
    registry::{Generation, Gone, Lending, Refused},
    response::{EvaluatorId, Response, Timings},
    runtime::{Active, Ended, Runtime},
    source::Digest,
};

/// A handle on one evaluator. Cheap to clone: clones are the same evaluator.
///
/// When the last clone of an evaluator that is not registered with its pool is dropped, its runtime closes in the
/// background.
#[derive(Clone)]
pub struct Evaluator {
    inner: Arc<Inner>,
}

struct Inner {
    core: Arc<Core>,
    id: EvaluatorId,
    name: String,
    /// `None` once closed. Changed under the lock of `ids`.
    version: ArcSwapOption<Version>,
    /// Under which its versions' runtimes are registered: its own, and those of versions that were prepared under
    /// another before they replaced one of its own.
    ids: Mutex<BTreeSet<u64>>,
    /// Instances that stay with the threads that use them.
    lending: Arc<Lending<Runtime>>,
    /// Less those on instances that are lent.
    evaluations: AtomicU64,
    /// Of the last evaluation but for those: milliseconds since the Unix epoch; 0 for never.
    last_used: AtomicU64,
}

impl Evaluator {
    pub(crate) fn new(core: Arc<Core>, id: u64, name: &str, version: Arc<Version>) -> Self {
        Self {
            inner: Arc::new(Inner {
                core,
                id: EvaluatorId(id),
                name: name.to_owned(),
                ids: Mutex::new(BTreeSet::from([id, version.generation.evaluator])),
                version: ArcSwapOption::new(Some(version)),
                lending: Arc::default(),
                evaluations: AtomicU64::new(0),
                last_used: AtomicU64::new(0),
            }),
        }
    }

    /// The name it was made with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// What tells it from other evaluators of that name.
    #[must_use]
    pub fn id(&self) -> EvaluatorId {
        self.inner.id
    }

    /// Runs the plugin once: merges the data, leases the runtime (building it if it is cold), runs the guest.
    ///
    /// Waits in three places, each bounded: for a place or an instance (`limits.wait_timeout`), for the build
    /// (`limits.build_timeout`), for the guest (`limits.exec_timeout`). Must be polled on a tokio runtime with its
    /// timer enabled; elsewhere use [`evaluate_blocking`](Self::evaluate_blocking).
    ///
    /// **Dropping the future** gives up its place in every queue, stops the guest promptly, and discards the instance
    /// that the guest was using. It does not undo what the guest had already done through host functions.
    ///
    /// # Errors
    ///
    /// Before the guest runs: `closed`, `shutting_down`, `saturated`, `wait_timeout`, `payload_too_large`,
    /// `invalid_request`, and whatever a build fails with. From the guest: `guest_trap`, `guest_error`, `guest_exit`,
    /// `out_of_memory`, `out_of_fuel`, `output_too_large`, `exec_timeout`. `internal` for a panic in a host function.
    pub async fn evaluate(&self, data: impl Into<Data>) -> Result<Response, Error> {
        self.evaluate_unless(data.into(), inside_host_function()).await
    }

    async fn evaluate_unless(&self, data: Data, inside: bool) -> Result<Response, Error> {
        let inner = &*self.inner;
        let mut outcome = Outcome { metrics: &inner.core.metrics, is_known: false };
        let result = self.conduct(data, inside).await;
        outcome.is_known = true;
        inner.core.metrics.evaluated(result.as_ref().map(drop));
        result
    }

    async fn conduct(&self, data: Data, inside: bool) -> Result<Response, Error> {
        // An evaluation may end without having waited for anything: a caller in a loop must leave its thread now and then.
        tokio::task::consume_budget().await;
        let core = &self.inner.core;
        let began = Instant::now();
        // What is called without pause finds an instance on its thread. Where there is none the input is kept: the
        // evaluator's own data is asked for once a call, and before anything is held.
        let mut prepared = None;
        if self.inner.lending.is_open() {
            let (generation, input) = self.prepare(&data)?;
            if let Some(active) = Active::borrow(&self.inner.lending, generation, began) {
                core.metrics.lookup(Lookup::Hit);
                core.ensure_sweeping();
                return self.run(active, input, Duration::ZERO, began).await;
            }
            prepared = Some((generation, input));
        }
        // Not before: to ask counts references to the runtime, in a word that all its threads share.
        if Handle::try_current().is_err() {
            return Err(Error::no_tokio());
        }
        self.inner.evaluations.fetch_add(1, Ordering::Relaxed);
        self.inner.last_used.store(unix_millis(), Ordering::Relaxed);
        let deadline = clock::later(began, core.limits.wait_timeout);
        let mut age = None;
        loop {
            let version = self.version()?;
            let input = match prepared.take() {
                Some((generation, input)) if generation == version.generation => input,
                _ => self.input(&version, data.clone())?,
            };
            let leased = match version.lease_as(core, &mut age, deadline, inside).await {
                Ok(leased) => leased,
                // Replaced while it waited: the new plugin answers.
                Err(Error::Closed { .. }) if self.is_replaced(&version) => continue,
                Err(Error::Closed { .. }) => return Err(self.closed()),
                Err(error) => return Err(error),
            };
            // Whoever joins a build late waits for the rest of it only.
            let build = leased.build.min(began.elapsed());
            let active = Active::new(leased.lease, &self.inner.lending).await?;
            return self.run(active, input, build, began).await;
        }
    }

    /// The current version's input, and which version that is.
    fn prepare(&self, data: &Data) -> Result<(Generation, Bytes), Error> {
        let version = self.inner.version.load();
        let version = version.as_ref().ok_or_else(|| self.closed())?;
        Ok((version.generation, self.input(version, data.clone())?))
    }

    /// What the guest will be given: the call's own data, merged into the evaluator's.
    fn input(&self, version: &Version, data: Data) -> Result<Bytes, Error> {
        let data = match &version.spec.data {
            Some(provider) => provider.provide()?.merge(data),
            None => data,
        };
        data.into_input(self.inner.core.limits.input_size)
    }

    /// Runs the guest on an instance that waits for it.
    async fn run(
        &self,
        mut active: Active<'_>,
        input: Bytes,
        build: Duration,
        began: Instant,
    ) -> Result<Response, Error> {
        let core = &self.inner.core;
        let digest = active.runtime().map_or_else(|| Digest::of(&[]), |runtime| runtime.program().digest);
        let started = Instant::now();
        let wait = (started - began).saturating_sub(build);
        core.metrics.waited(wait);
        let ended = active.call(input, started).await;
        let exec = started.elapsed();
        core.metrics.executed(exec);
        drop(active);
        match ended {
            Ended::Output(output) => {
                Ok(Response { evaluator: self.inner.id, digest, output, timings: Timings { wait, build, exec } })
            }
            Ended::Failed(error) => Err(error),
            Ended::Stopped if core.registry.is_shut_down() => Err(Error::ShuttingDown),
            Ended::Stopped => Err(Error::Closed { name: self.inner.name.clone(), interrupted: true }),
        }
    }

    /// The same for callers without tokio. Blocks this thread until the evaluation has ended, for at most the sum of
    /// its three bounds; the evaluation runs on a small tokio runtime of this crate's own.
    ///
    /// Do not call it from a task: it blocks the thread that drives the task.
    ///
    /// # Errors
    ///
    /// As [`evaluate`](Self::evaluate).
    pub fn evaluate_blocking(&self, data: impl Into<Data>) -> Result<Response, Error> {
        let (data, inside, this) = (data.into(), inside_host_function(), self.clone());
        block(inside, async move { this.evaluate_unless(data, inside).await })?
    }

    /// Refuses new work, lets calls in flight finish for `pool.grace`, interrupts the rest, and returns when the
    /// runtime is gone: see [`Close`]. A registered evaluator stays listed until it is
    /// [removed](crate::EvaluatorPool::remove).
    pub fn close(&self) -> impl Future<Output = CloseReport> + Send + 'static {
        self.close_with(self.inner.core.pool.grace)
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
        let core = &self.inner.core;
        let grace = core.pool.grace;
        let gone = match self.version() {
            Ok(version) => core.registry.unload(version.generation, grace),
            Err(_) => self.gone(),
        };
        CloseReport::after(gone, grace).await
    }

    /// Whether it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.version.load().is_none()
    }

    /// The compiled plugin with its entry point, building the runtime if need be.
    ///
    /// # Errors
    ///
    /// As [`evaluate`](Self::evaluate), before the guest runs.
    pub async fn executable(&self) -> Result<Executable, Error> {
        let core = &self.inner.core;
        let version = self.version()?;
        match version.lease(core).await {
            Err(Error::Closed { .. }) => return Err(self.closed()),
            leased => drop(leased?),
        }
        let facts = version.facts().ok_or(Error::Internal { reason: "a runtime without facts", cause: None })?;
        Ok(Executable::new(core.clone(), version.clone(), facts.clone()))
    }

    fn version(&self) -> Result<Arc<Version>, Error> {
        self.inner.version.load_full().ok_or_else(|| self.closed())
    }

    fn is_replaced(&self, version: &Version) -> bool {
        self.generation().is_some_and(|current| current != version.generation)
    }

    fn closed(&self) -> Error {
        Error::Closed { name: self.inner.name.clone(), interrupted: false }
    }

    pub(crate) fn generation(&self) -> Option<Generation> {
        self.inner.version.load().as_ref().map(|version| version.generation)
    }

    /// What ends when every runtime of this evaluator, whatever its version, is gone.
    fn gone(&self) -> Gone {
        let ids = self.inner.ids().clone();
        self.inner.core.registry.gone(|generation| ids.contains(&generation.evaluator))
    }

    /// Swaps the version and gives the old one; `None` when the evaluator is closed.
    pub(crate) fn replace(&self, version: Arc<Version>) -> Option<Arc<Version>> {
        let mut ids = self.inner.ids();
        ids.insert(version.generation.evaluator);
        let current = self.inner.version.load_full()?;
        self.inner.version.store(Some(version));
        Some(current)
    }

    pub(crate) fn info(&self, state: State, instances: usize) -> EvaluatorInfo {
        let inner = &*self.inner;
        let (lent, last_lent) = inner.lending.history();
        let last_lent = last_lent.map_or(0, |at| unix_millis().saturating_sub(millis(at.elapsed())));
        let last_used = inner.last_used.load(Ordering::Relaxed).max(last_lent);
        let version = inner.version.load_full();
        let facts = version.as_ref().and_then(|version| version.facts());
        let spec = version.as_ref().map(|version| &version.spec);
        EvaluatorInfo {
            name: inner.name.clone(),
            id: inner.id,
            digest: facts.map(|facts| facts.digest).or_else(|| spec?.digest),
            entry_point: facts.map(|facts| facts.entry_point.clone()).or_else(|| spec?.entry_point.clone()),
            size_bytes: facts.map(|facts| facts.size),
            state,
            instances,
            evaluations: inner.evaluations.load(Ordering::Relaxed) + lent,
            last_used: (last_used > 0).then_some(last_used),
        }
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

impl EvaluatorInfo {
    pub(crate) fn of_version(name: &str, id: u64, version: &Version) -> Self {
        let facts = version.facts();
        Self {
            name: name.to_owned(),
            id: EvaluatorId(id),
            digest: facts.map(|facts| facts.digest),
            entry_point: facts.map(|facts| facts.entry_point.clone()),
            size_bytes: facts.map(|facts| facts.size),
            state: State::Live,
            instances: 1,
            evaluations: 0,
            last_used: None,
        }
    }
}

impl Inner {
    fn ids(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        // Nothing panics under it.
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first close takes the version out; what the spec holds, host functions among it, goes with it.
    fn close(&self, grace: Option<Duration>) {
        let version = {
            let _changing = self.ids();
            self.version.swap(None)
        };
        if let Some(version) = version {
            let refused = Refused::Error(Error::Closed { name: self.name.clone(), interrupted: false });
            version.retire(&self.core, CloseReason::Closed, grace, &refused);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close(None);
    }
}

impl fmt::Debug for Evaluator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Evaluator").field("id", &self.inner.id).field("name", &self.inner.name).finish_non_exhaustive()
    }
}

/// Counts an evaluation whose caller left before its outcome was known.
struct Outcome<'a> {
    metrics: &'a Metrics,
    is_known: bool,
}

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        if !self.is_known {
            self.metrics.evaluated(Err(&Error::Cancelled));
        }
    }
}

/// Runs a future on this crate's own runtime and waits for it here. `inside` a host function this may be a thread of
/// that runtime, which cannot wait for itself: then it is run on one of its own.
fn block<T: Send + 'static>(inside: bool, future: impl Future<Output = T> + Send + 'static) -> Result<T, Error> {
    let failed = |reason| Error::Internal { reason, cause: None };
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let run = async move {
        // Fails only when the thread that waits is gone.
        let _ = sender.send(future.await);
    };
    if inside {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Error::internal("no runtime could be made", error))?;
        let thread = std::thread::Builder::new().name("evalpool-nested".into());
        thread
            .spawn(move || runtime.block_on(run))
            .map_err(|error| Error::internal("no thread could be started", error))?;
    } else {
        background::own().ok_or(failed("no thread could be started"))?.spawn(run);
    }
    receiver.recv().map_err(|_| failed("a blocking evaluation panicked"))
}

fn unix_millis() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
