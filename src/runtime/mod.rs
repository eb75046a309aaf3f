//! One live compiled plugin with its pool of instances. Knows no names and no LRU.
//!
//! # The life of a runtime
//!
//! ```text
//!   compiler ──publish──▶ live ──retire──▶ draining ──▶ closing ──▶ gone
//!                          │                │   after `grace`, guests are interrupted
//!                          └─ leases ───────┘   until the last lease is back
//! ```
//!
//! A runtime closes when its last owner drops it. Leases, spare tasks and the closing task own it, and each instance holds
//! its place. Whoever drops it last hands it to a thread that may block, so that heavy objects are dropped where that may
//! take long. Closing and spare tasks run on the pool's background runtime. If that ends before a closing task, the task goes
//! on elsewhere.
//!
//! # Why deadpool's unmanaged pool
//!
//! An instance is made under a permit that the registry has granted, with its own time limit, on a task of its own.
//! deadpool's managed pool would make it inside `get`, where no permit can be handed in, a cancelled `get` gives its
//! slot away while the work goes on, and failures of `recycle` vanish. The unmanaged pool keeps what is idle, last in
//! first out: nothing else is left to do. A `Vec` under a lock would do as well; deadpool's pool was taken because it bounds
//! its size by itself and is known in the field. Idle instances are taken out with `try_remove` rather than by `close`,
//! which would drop them under the pool's own lock.

mod checkout;
mod identity;
mod report;

use std::{
    ops::Deref,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use deadpool::unmanaged::Pool;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};
use tracing::Span;

pub(crate) use self::{
    checkout::{Checkout, Ended, Invocation, Parked},
    identity::{Directory, Identity},
    report::Report,
};
use crate::{
    background::{self, Background},
    clock,
    config::Isolation,
    engine::{self, CompiledPlugin, Contained},
    error::Error,
    memory::{MemoryAccount, Weight},
    metrics::Metrics,
    registry::{CloseReason, InstancePermit, Lease, Place, Resident, ThreadCache},
    source::{Digest, EntryPoints},
    spans,
    tenants::CpuTime,
    words::words,
};

words! {
    /// Why an instance was dropped rather than given back.
    pub(crate) enum Discard {
        /// It served its one evaluation.
        Used = "used",
        MaxUses = "max_uses",
        Timeout = "timeout",
        Cancelled = "cancelled",
        /// Whatever left it unsound but for a panic.
        Trap = "trap",
        Panic = "panic",
        /// A close interrupted it.
        Closed = "closed",
    }
}

/// How long a runtime must be left alone before a spare is made for it, where spares wait.
const SPARE_DELAY: Duration = Duration::from_millis(1);

/// A compiled plugin together with the entry points that are known to exist in it.
pub(crate) struct Program {
    pub(crate) compiled: Contained<dyn CompiledPlugin>,
    pub(crate) entry_points: EntryPoints,
    pub(crate) digest: Digest,
    pub(crate) report: Report,
    pub(crate) memory: MemoryAccount,
    pub(crate) took: BuildTimes,
    /// A spare instance is made once the runtime is at rest, rather than at once.
    pub(crate) spares_wait: bool,
}

/// How long a build took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuildTimes {
    /// Compiling, or loading code that was compiled before.
    pub compile: Duration,
    /// Making the first instance, whose initialisers run.
    pub init: Duration,
}

/// How a runtime treats its instances.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) isolation: Isolation,
    /// Evaluations after which a reused instance is replaced.
    pub(crate) max_uses: u64,
    /// Instances at once.
    pub(crate) max_instances: usize,
    /// How long calls in flight may go on once the runtime is retired.
    pub(crate) grace: Duration,
    /// How long one evaluation's guest may run.
    pub(crate) exec_timeout: Duration,
    /// How long making an instance may take.
    pub(crate) build_timeout: Duration,
    /// What guests of its tenant may use.
    pub(crate) cpu: Arc<CpuTime>,
}

/// A live compiled plugin. Cheap to clone; dropping the last clone closes it, on a thread that may block.
#[derive(Clone)]
pub(crate) struct Runtime {
    /// `None` only inside `drop`.
    inner: Option<Arc<RuntimeInner>>,
}

/// A runtime, for as long as another keeps it.
pub(crate) struct WeakRuntime(Weak<RuntimeInner>);

impl WeakRuntime {
    pub(crate) fn upgrade(&self) -> Option<Runtime> {
        self.0.upgrade().map(|inner| Runtime { inner: Some(inner) })
    }
}

impl Deref for Runtime {
    type Target = RuntimeInner;

    fn deref(&self) -> &RuntimeInner {
        let Some(inner) = &self.inner else { unreachable!("taken by its drop alone") };
        inner
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Of clones that are dropped at one moment, one is the last.
        if let Some(last) = self.inner.take().and_then(Arc::into_inner) {
            last.background.clone().drop_elsewhere(last);
        }
    }
}

/// Dropped in this order: instances, then what they were made from, then the place.
pub(crate) struct RuntimeInner {
    idle: Pool<Instance>,
    program: Program,
    policy: Policy,
    metrics: Metrics,
    background: Background,
    /// True once guests are to be interrupted.
    stop: watch::Sender<bool>,
    /// When the close interrupts guests. It only ever moves forward.
    deadline: watch::Sender<Option<Instant>>,
    drained: Notify,
    /// Where threads have parked instances of this runtime, once any has.
    parking: OnceLock<Arc<ThreadCache<Box<Parked>>>>,
    /// A task waits for the runtime to come to rest, to make a spare.
    spare_awaited: AtomicBool,
    place: Place<Runtime>,
}

/// One sandboxed guest. Its permit is kept by the engine, beside what it stands for.
struct Instance {
    guest: Contained<dyn engine::Instance>,
    uses: u64,
}

impl RuntimeInner {
    fn close_by(&self, deadline: Instant) {
        self.deadline.send_if_modified(|current| {
            let sooner = current.is_none_or(|current| deadline < current);
            if sooner {
                *current = Some(deadline);
            }
            sooner
        });
    }

    /// Ends at the deadline of the close, also if that moves meanwhile.
    async fn grace_over(&self) {
        let mut moved = self.deadline.subscribe();
        loop {
            let deadline = *moved.borrow_and_update();
            let Some(deadline) = deadline else { return };
            // An error would mean that the sender is gone, and `self` holds it.
            if timeout_at(deadline, moved.changed()).await.is_err() {
                return;
            }
        }
    }
}

impl Runtime {
    /// A runtime with one idle instance, its probe.
    pub(crate) fn new(
        program: Program,
        probe: Contained<dyn engine::Instance>,
        policy: Policy,
        metrics: Metrics,
        background: Background,
        place: Place<Runtime>,
    ) -> Self {
        let idle = Pool::new(policy.max_instances);
        let runtime = Self {
            inner: Some(Arc::new(RuntimeInner {
                idle,
                program,
                policy,
                metrics,
                background,
                stop: watch::Sender::new(false),
                deadline: watch::Sender::new(None),
                drained: Notify::new(),
                parking: OnceLock::new(),
                spare_awaited: AtomicBool::new(false),
                place,
            })),
        };
        runtime.put_back(Instance { guest: probe, uses: 0 });
        runtime
    }

    /// What does not keep it from closing.
    pub(crate) fn downgrade(&self) -> WeakRuntime {
        WeakRuntime(self.inner.as_ref().map(Arc::downgrade).unwrap_or_default())
    }

    /// Ends once its close has begun.
    pub(crate) async fn retired(&self) {
        // An error would mean that the sender is gone, and `self` holds it.
        let _ = self.deadline.subscribe().wait_for(Option::is_some).await;
    }

    fn is(&self, other: &Self) -> bool {
        self.inner.as_ref().zip(other.inner.as_ref()).is_some_and(|(one, two)| Arc::ptr_eq(one, two))
    }

    pub(crate) fn program(&self) -> &Program {
        &self.program
    }

    /// Puts an instance into the pool. It has room for all that the registry permits.
    fn put_back(&self, instance: Instance) {
        if let Err((instance, _)) = self.idle.try_add(instance) {
            drop(instance);
        }
    }

    /// Whether threads may park its instances in this cache: in one only, so that a reclaim knows where to look.
    fn parks_in(&self, cache: &Arc<ThreadCache<Box<Parked>>>) -> bool {
        cache.open();
        Arc::ptr_eq(self.parking.get_or_init(|| cache.clone()), cache)
    }

    async fn make_instance(&self, permit: InstancePermit<Runtime>) -> Result<Instance, Error> {
        let after = self.policy.build_timeout;
        let permit = engine::Permit::new(permit);
        let making = self.policy.cpu.charged(self.program.compiled.instantiate(permit));
        match clock::timeout_at(clock::deadline(after), making).await {
            Ok(Ok(guest)) => Ok(Instance { guest: guest.into(), uses: 0 }),
            Ok(Err(error)) => Err(self.program.report.failure(error)),
            Err(_) => Err(Error::build_timeout(after)),
        }
    }

    /// Makes the instance for the next evaluation, on no caller's time, if nobody else wants its permit.
    fn prepare_spare(self) {
        if !self.program.spares_wait {
            return self.make_spare();
        }
        // If the caller asks again at once, waking another thread costs more than the spare saves. So one task tries after
        // a while, and gives up if the runtime is in use again.
        let awaited = &self.spare_awaited;
        if awaited.load(Ordering::Relaxed) || awaited.swap(true, Ordering::Relaxed) {
            return;
        }
        // Weak: a close must not wait for this task.
        let weak = self.downgrade();
        self.background.spawn(async move {
            tokio::time::sleep(SPARE_DELAY).await;
            if let Some(runtime) = weak.upgrade() {
                runtime.spare_awaited.store(false, Ordering::Relaxed);
                if runtime.place.is_at_rest() {
                    runtime.make_spare();
                }
            }
        });
    }

    fn make_spare(self) {
        let (permit, background) = (self.place.reserve_spare(), self.background.clone());
        let mut spare = Spare { runtime: Some(self), reserved: permit.is_some(), ready: false };
        let Some(permit) = permit else { return };
        background.spawn(async move {
            // A failure is not reported here: the next evaluation makes its own instance, and meets it.
            if let Some(runtime) = &spare.runtime
                && let Ok(instance) = runtime.make_instance(permit).await
            {
                runtime.put_back(instance);
                spare.ready = true;
            }
            drop(spare);
        });
    }
}

/// A spare instance in the making. Its drop accounts for the end, wherever that happens.
struct Spare {
    /// `None` only inside `drop`.
    runtime: Option<Runtime>,
    reserved: bool,
    ready: bool,
}

impl Drop for Spare {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        if self.reserved {
            runtime.place.spare_ended(self.ready);
        }
    }
}

impl Resident for Runtime {
    fn place(&self) -> &Place<Self> {
        &self.place
    }

    fn retire(self, idle: usize, leased: bool, grace: Option<Duration>) {
        self.close_by(clock::deadline(grace.unwrap_or(self.policy.grace)));
        let background = self.background.clone();
        background.spawn(Closing { runtime: Some(self), leased, rescued: false }.run(idle));
    }

    fn shorten_grace(&self, grace: Duration) {
        self.close_by(clock::deadline(grace));
    }

    fn weight(&self) -> Weight {
        self.program().memory.weight()
    }

    fn close_span(&self, reason: CloseReason, unused: Option<Duration>) -> Span {
        let Identity { evaluator, tenant, revision, .. } = &*self.program.report.of;
        spans::if_wanted(|| spans::close(evaluator, tenant, revision.number, reason.as_str(), unused))
    }

    fn drained(&self) {
        self.drained.notify_one();
    }

    fn reap(&self) {
        drop(self.idle.try_remove());
    }

    fn max_instances(&self) -> usize {
        self.policy.max_instances
    }

    fn last_parked_use(&self) -> Option<Instant> {
        self.parking.get().and_then(|cache| cache.history().1)
    }

    fn reclaim(&self, only_unused: bool) -> Vec<Lease<Self>> {
        let Some(cache) = self.parking.get() else { return Vec::new() };
        let is_ours = |parked: &Parked| parked.lease.resident().is_some_and(|it| it.is(self));
        let parked = if only_unused { cache.reclaim_unused() } else { cache.reclaim(|parked| is_ours(parked)) };
        parked.into_iter().map(|parked| parked.unpark()).collect()
    }
}

/// The close of one runtime. Owns it, so that the caller that asked for the close may leave. If its task is dropped because
/// the tokio runtime under it ends, the close goes on elsewhere.
struct Closing {
    /// `None` once there is nothing left to do.
    runtime: Option<Runtime>,
    leased: bool,
    rescued: bool,
}

impl Closing {
    async fn run(mut self, idle: usize) {
        let Some(inner) = &self.runtime else { return };
        // Idle instances serve nobody any more, so their memory need not wait for the calls in flight, nor for a spare that
        // is being made. Only these: the others are set aside for leases that are just beginning.
        for _ in 0..idle {
            drop(inner.idle.try_remove());
        }
        if self.leased {
            let in_time = tokio::select! {
                biased;
                () = inner.drained.notified() => true,
                () = inner.grace_over() => false,
            };
            if !in_time {
                inner.place.forced();
                inner.stop.send_replace(true);
                inner.drained.notified().await;
            }
            self.leased = false;
        }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        if self.leased {
            match background::own() {
                Ok(own) if !self.rescued => {
                    drop(own.spawn(Closing { runtime: Some(runtime), leased: true, rescued: true }.run(0)));
                }
                // Nobody can wait for its grace.
                _ => drop(runtime.stop.send_replace(true)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_for_a_discard_has_its_series() {
        let words: Vec<&str> = Discard::ALL.iter().map(|reason| reason.as_str()).collect();
        assert!(crate::metrics::has_values("evalpool_instances_discarded_total", &words));
    }
}
