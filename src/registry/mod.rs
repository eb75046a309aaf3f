//! The capacity-bounded LRU that owns every runtime: hard bound, single-flight builds, admission, negative cache.
//!
//! The rules are in [`state`], a plain state machine. Around it stands a shell: one lock, the guards that make every
//! step of the accounting happen exactly once, and the effects, which the shell executes after it has released the lock.
//! The registry keeps anything that is a [`Resident`]; it knows neither plugins nor engines.
//!
//! # The guards
//!
//! | guard | stands for | when the last of it is dropped |
//! |---|---|---|
//! | [`Lease`] | the right to use a runtime and one instance of it | the instance or its permit was given back before |
//! | [`InstancePermit`] | one instance, from before it is made | the next in line gets it |
//! | [`Place`] | one runtime, from before its compile | its close is counted, the first in the queue gets it |
//! | [`Compiling`] | one build, until its compile has ended | the next build is admitted |
//! | [`BuildTicket`] | the one build of a revision | unless published, those who wait are told |
//!
//! Where nobody waits for anything, instances and their leases stay with the threads that use them: see
//! [`thread_cache`].
//!
//! A permit holds its place. Engines keep the guards beside the objects that they make, so the registry counts what exists,
//! even if nobody waits for it any more.

mod counts;
mod guards;
#[cfg(test)]
mod interleavings;
mod room;
mod state;
mod sync;
mod thread_cache;

use std::{
    hash::{Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tracing::Span;

pub use self::counts::RuntimeState;
use self::guards::Waiter;
use self::room::GivesWay;
use self::state::{Effect, RegistryState, Requested, Returned};
use self::sync::{Mutex, MutexGuard, PoisonError, timeout_at};
pub(crate) use self::{
    counts::{CloseReason, Counts, Lookup},
    guards::{Admission, BuildTicket, Claim, Compiling, Gone, InstancePermit, Interest, Lease, Place},
    state::{Age, BuildId, PlaceId, Quotas, TenantHolds},
    thread_cache::{Epoch, ThreadCache},
};
use crate::{
    background::Background,
    clock,
    config::Eviction,
    error::Error,
    memory::{MemoryBudget, Weight},
    metrics::Metrics,
    turns::{TenantId, Weights},
};

/// Names one version of an evaluator: what is built, kept, evicted and closed. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RevisionId {
    pub(crate) evaluator: u64,
    pub(crate) number: u64,
    /// Whom it belongs to.
    pub(crate) tenant: TenantId,
}

impl Hash for RevisionId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // It says all.
        self.number.hash(state);
    }
}

/// The registry's bounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) capacity: usize,
    pub(crate) eviction: Eviction,
    pub(crate) max_instances: usize,
    /// Builds that may be ahead of the end of their compile: as many as can compile, and one that is ready to.
    pub(crate) compiling: usize,
    pub(crate) max_waiting: usize,
    pub(crate) negative_ttl: Duration,
    /// Calls without a pause after which a runtime's instances stay with the threads that use them.
    pub(crate) park_after: u32,
}

/// What the registry keeps. None of its methods may block, and but for `weight` and `in_full` they are called without the
/// registry's lock.
pub(crate) trait Resident: Clone + Send + Sync + 'static {
    /// Its place, which it keeps for as long as it exists.
    fn place(&self) -> &Place<Self>;

    /// How many instances it may have at once.
    fn max_instances(&self) -> usize;

    /// It has left the registry: drop what is idle, let what is leased drain, then close. `idle` instances in its pool are
    /// free; the others are set aside for leases that have not taken them yet. `leased` says whether there is anything to
    /// wait for; if so, [`drained`](Self::drained) follows. After `grace`, guests are interrupted; `None` leaves the grace
    /// to the runtime.
    fn retire(self, idle: usize, leased: bool, grace: Option<Duration>);

    /// It is draining: interrupt its guests after this grace, if that is sooner than it would have been.
    fn shorten_grace(&self, grace: Duration);

    /// What closing it would give back.
    fn weight(&self) -> Weight;

    /// The last lease came back.
    fn drained(&self);

    /// Drop one idle instance.
    fn reap(&self);

    /// Take out what threads have [parked](thread_cache) of it, or only what is unused: put the instances back where a
    /// lease will look for them, and give the leases, which the caller ends.
    fn reclaim(&self, only_unused: bool) -> Vec<Lease<Self>>;

    /// The span of its close, which begins now, if anybody wants it. `unused` is set for an eviction.
    fn close_span(&self, _reason: CloseReason, _unused: Option<Duration>) -> Span {
        Span::none()
    }

    /// When a parked instance was last taken into use: leases that are still in use have not told yet.
    fn last_parked_use(&self) -> Option<Instant>;
}

/// Why a caller that waited got no lease.
#[derive(Debug, Clone)]
pub(crate) enum Refused {
    Error(Error),
    /// The runtime was evicted in the meantime: ask again.
    Retry,
}

/// One runtime at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot<R> {
    pub(crate) revision: RevisionId,
    pub(crate) state: RuntimeState,
    pub(crate) instances: usize,
    pub(crate) leases: usize,
    pub(crate) uses: u64,
    pub(crate) opened: Option<Instant>,
    pub(crate) last_used: Option<Instant>,
    /// `None` while it is built, and while it drains without a lease.
    pub(crate) resident: Option<R>,
    /// What it held when it began to drain, in bytes, if there is no resident to ask.
    pub(crate) held: u64,
}

/// All that the registry has at one moment.
pub(crate) struct View<R> {
    pub(crate) counts: Counts,
    /// How long the caller has waited that has waited longest.
    pub(crate) oldest_wait: Duration,
    pub(crate) runtimes: Vec<Snapshot<R>>,
}

/// The registry. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Registry<R: Resident> {
    inner: Arc<Shell<R>>,
}

/// The lock around the state, and what executes its effects.
struct Shell<R: Resident> {
    /// Held for map and queue operations only: never across an await, and effects are executed after it.
    state: Mutex<RegistryState<R>>,
    metrics: Metrics,
    memory: Arc<MemoryBudget>,
    background: Background,
    /// Notified whenever somebody leaves a build that has its place.
    left: Arc<Notify>,
}

impl<R: Resident> Registry<R> {
    pub(crate) fn new(limits: Limits, memory: Arc<MemoryBudget>, metrics: Metrics, background: Background) -> Self {
        metrics.set_capacity(limits.capacity);
        Counts::default().show(0, &metrics);
        Self {
            inner: Arc::new(Shell {
                state: Mutex::new(RegistryState::new(limits, memory.clone())),
                metrics,
                memory,
                background,
                left: Arc::default(),
            }),
        }
    }

    /// A lease on a revision's runtime, with an instance or the permit to make one. If the runtime does not exist and nobody
    /// is building it, `start` is called. It must have somebody work on the ticket, and must not block.
    ///
    /// `age` is the caller's position in every queue. It is set at the first call; pass it in again to keep the position.
    ///
    /// Cancel safe: dropping the future gives up the caller's place in whatever queue it is in.
    ///
    /// # Errors
    ///
    /// `saturated`, `wait_timeout` when `deadline` passes in a queue (a build in progress is waited for beyond it, for
    /// at most `build_timeout` more), `shutting_down`, or the error of the build.
    pub(crate) async fn lease(
        &self,
        revision: RevisionId,
        age: &mut Option<Age>,
        deadline: Instant,
        build_timeout: Duration,
        may_wait: bool,
        start: impl Fn(BuildTicket<R>),
    ) -> Result<Lease<R>, Error> {
        let began = Instant::now();
        let mut now = began;
        loop {
            let (requested, age) = self.inner.apply(|state| {
                let age = *age.get_or_insert_with(|| state.looked_up(revision));
                (state.request(revision, age, began, now, may_wait), age)
            });
            let count = |result: Lookup| self.inner.metrics.lookup(result.as_str());
            let (lookup, answer, build) = match requested {
                // What threads had parked is back: decide again.
                Requested::Again => {
                    now = Instant::now();
                    continue;
                }
                Requested::Granted(grant) => {
                    count(Lookup::Hit);
                    return Ok(Lease::new(self.inner.clone(), grant));
                }
                Requested::Refused(error) => {
                    count(Lookup::Refused);
                    return Err(error);
                }
                Requested::Queued(answer) => (Lookup::Hit, answer, None),
                Requested::Joined(answer) => (Lookup::Coalesced, answer, None),
                Requested::Start(id, unwanted, answer) => (Lookup::Miss, answer, Some((id, unwanted))),
            };
            count(lookup);
            // The guard first: should `start` panic, this caller must not stay in the queue.
            let waiter = Waiter { registry: self.inner.clone(), revision, age, answer };
            if let Some((id, unwanted)) = build {
                start(BuildTicket { registry: self.inner.clone(), revision, id, unwanted, done: false });
            }
            if let Some(lease) = self.wait(waiter, began, deadline, build_timeout).await? {
                return Ok(lease);
            }
            now = Instant::now();
        }
    }

    /// `None`: ask again.
    async fn wait(
        &self,
        mut waiter: Waiter<R>,
        began: Instant,
        deadline: Instant,
        build_timeout: Duration,
    ) -> Result<Option<Lease<R>>, Error> {
        let mut answer = timeout_at(deadline, &mut waiter.answer).await;
        if answer.is_err() && self.inner.lock().is_placed(waiter.revision) {
            answer = timeout_at(clock::deadline(build_timeout), &mut waiter.answer).await;
        }
        match answer {
            Ok(Ok(Ok(mut lease))) => {
                lease.waited = true;
                Ok(Some(lease))
            }
            Ok(Ok(Err(Refused::Error(error)))) => Err(error),
            Ok(Ok(Err(Refused::Retry))) => Ok(None),
            Ok(Err(_)) => Err(Error::Internal { reason: "a waiting caller was forgotten", cause: None }),
            Err(_) => {
                let bound = self.inner.lock().bound_of(waiter.revision);
                Err(bound.unwrap_or_else(|| Error::WaitTimeout { after: began.elapsed() }))
            }
        }
    }

    /// Takes a revision out, whatever it is doing. Callers that wait for it get `refused`.
    pub(crate) fn retire(&self, revision: RevisionId, reason: CloseReason, grace: Option<Duration>, refused: &Refused) {
        self.inner.apply(|state| {
            state.is_not_wanted_again(revision);
            state.retire(revision, reason, grace, refused, Instant::now());
        });
    }

    /// Retires a revision that stays registered: callers that wait for it ask again. The result ends when the places that
    /// it has now are released.
    pub(crate) fn unload(&self, revision: RevisionId, grace: Duration) -> Gone {
        self.inner.apply(|state| {
            let gone = Gone(state.gone(|held| held == revision));
            state.retire(revision, CloseReason::Closed, Some(grace), &Refused::Retry, Instant::now());
            gone
        })
    }

    pub(crate) fn is_shut_down(&self) -> bool {
        self.inner.lock().is_shut_down()
    }

    /// Refuses everything from now on and retires all there is.
    pub(crate) fn shut_down(&self, grace: Option<Duration>) {
        self.inner.apply(|state| state.shut_down(grace, Instant::now()));
    }

    /// Ends when the places that these revisions hold now are released.
    pub(crate) fn gone(&self, which: impl Fn(RevisionId) -> bool) -> Gone {
        Gone(self.inner.lock().gone(which))
    }

    /// Evicts runtimes that were not used for `ttl(revision)`.
    pub(crate) fn sweep(&self, ttl: impl Fn(RevisionId) -> Duration) {
        self.inner.apply(|state| state.sweep(Instant::now(), ttl));
    }

    /// Ends the leases of parked instances that were not used since this was last called, and no longer counts on places
    /// whose close is overdue.
    pub(crate) fn look_after(&self) {
        let residents = self.inner.lock().parking();
        self.inner.metrics.set_parking(residents.len());
        let leases = residents.iter().flat_map(|(_, resident)| resident.reclaim(true)).collect();
        self.inner.end_leases(leases, |state| state.give_up_overdue(Instant::now()));
    }

    /// Shows how far apart lookups of the same revision are.
    pub(crate) fn show_reuse(&self) {
        let within = self.inner.lock().take_reuse();
        self.inner.metrics.reused(within);
    }

    /// How long the caller has waited that has waited longest.
    pub(crate) fn oldest_wait(&self) -> Duration {
        self.inner.lock().oldest_wait(Instant::now())
    }

    /// Makes room if guests have grown beyond the bound in bytes.
    pub(crate) fn weigh(&self) {
        self.inner.apply(|state| state.weigh(Instant::now()));
    }

    /// Ends the leases of all parked instances: the gauges are exact from here on until the next call.
    pub(crate) fn settle(&self) {
        self.inner.apply(RegistryState::reclaim_all);
    }

    /// What tenants may have from now on.
    pub(crate) fn set_quotas(&self, quotas: Quotas, weights: Weights) {
        self.inner.apply(|state| state.set_quotas(quotas, weights, Instant::now()));
    }

    /// What a tenant has.
    pub(crate) fn held_by(&self, tenant: TenantId) -> TenantHolds {
        self.inner.lock().held_by(tenant)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.inner.lock().counts()
    }

    /// Copies some words for each runtime under the lock.
    pub(crate) fn view(&self) -> View<R> {
        let state = self.inner.lock();
        let (counts, oldest_wait) = (state.counts(), state.oldest_wait(Instant::now()));
        View { counts, oldest_wait, runtimes: state.snapshot() }
    }

    /// The runtimes that exist, and the bytes that each holds, as if it shared none.
    pub(crate) fn held(&self) -> Vec<(RevisionId, u64)> {
        self.inner.lock().held()
    }
}

impl<R: Resident> Shell<R> {
    fn lock(&self) -> MutexGuard<'_, RegistryState<R>> {
        // The state's methods do not panic halfway. If one did, going on is better than refusing every caller for ever.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one way to change the state: change it under the lock, then publish the gauges, then execute the effects.
    fn apply<T>(self: &Arc<Self>, change: impl FnOnce(&mut RegistryState<R>) -> T) -> T {
        let (result, effects, version, counts) = {
            let mut state = self.lock();
            let result = change(&mut state);
            state.version += 1;
            #[cfg(test)]
            state.assert_invariants();
            (result, std::mem::take(&mut state.effects), state.version, state.counts())
        };
        self.publish(version, counts);
        for effect in effects {
            self.execute(effect);
        }
        result
    }

    fn publish(&self, version: u64, counts: Counts) {
        // Foreign code, which must not take the effects with it if it panics.
        let _ = catch_unwind(AssertUnwindSafe(|| counts.show(version, &self.metrics)));
    }

    fn execute(self: &Arc<Self>, effect: Effect<R>) {
        match effect {
            // A receiver that is gone gives the lease back, and dropping that passes it on.
            Effect::Answer { to, answer } => drop(to.send(answer.map(|grant| Lease::new(self.clone(), grant)))),
            Effect::Admit { to, revision, place, gone } => {
                let place = Place::new(self.clone(), revision, place, gone);
                let permit = InstancePermit { place: place.clone() };
                let compiling = Compiling { registry: self.clone(), tenant: revision.tenant };
                drop(to.send(Admission { place, permit, compiling }));
            }
            Effect::Built => self.metrics.build_ended(Ok(())),
            Effect::Retire { resident, reason, unused, idle, leased, grace } => {
                if let Some(unused) = unused {
                    self.metrics.evicted(reason.as_str(), unused);
                }
                resident.place().closing(reason, resident.close_span(reason, unused));
                resident.retire(idle, leased, grace);
            }
            Effect::ShortenGrace { resident, grace } => resident.shorten_grace(grace),
            Effect::Left => self.left.notify_waiters(),
            // If the build has left, the charge goes back, and the next change gives the room to another.
            Effect::Room { to, granted } => drop(to.send(granted)),
            Effect::Drained { resident } => resident.drained(),
            Effect::Reap { resident } => resident.reap(),
            Effect::GiveWay { bytes } => {
                self.background.drop_elsewhere(GivesWay { registry: self.clone(), bytes });
            }
            Effect::Reclaim { residents } => {
                let leases = residents.iter().flat_map(|(_, resident)| resident.reclaim(false)).collect();
                let used: Vec<_> =
                    residents.iter().filter_map(|(id, resident)| Some((*id, resident.last_parked_use()?))).collect();
                self.end_leases(leases, |state| state.reclaimed(&used));
            }
        }
    }

    /// Ends leases that were parked, all in one step: what the state decides next, it decides knowing all of them.
    fn end_leases(self: &Arc<Self>, mut leases: Vec<Lease<R>>, before: impl FnOnce(&mut RegistryState<R>)) {
        let returned: Vec<Returned> = leases.iter_mut().filter_map(Lease::end).collect();
        self.apply(|state| {
            before(state);
            state.leases_returned(&returned, Instant::now());
        });
    }
}
