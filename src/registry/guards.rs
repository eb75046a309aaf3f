//! The guards: each stands for one step of the accounting and undoes it when dropped.

use std::{convert::Infallible, fmt, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, oneshot, watch},
    time::Instant,
};
use tracing::Span;

use super::{
    Age, BuildId, CloseReason, PlaceId, Refused, Resident, RevisionId, Shell,
    state::{Grant, Returned, RoomId},
    sync::{Mutex, MutexGuard, PoisonError},
};
use crate::{error::Error, memory::MemoryAccount, turns::TenantId};

/// A caller's position in a queue. Dropping it leaves the queue, and passes on an answer that was on its way.
pub(super) struct Waiter<R: Resident> {
    pub(super) registry: Arc<Shell<R>>,
    pub(super) revision: RevisionId,
    pub(super) age: Age,
    pub(super) answer: oneshot::Receiver<Result<Lease<R>, Refused>>,
}

impl<R: Resident> Drop for Waiter<R> {
    fn drop(&mut self) {
        if self.answer.is_terminated() {
            return;
        }
        self.registry.apply(|state| state.leave(self.revision, self.age, Instant::now()));
    }
}

/// A build's position in the queue for room. Dropping it leaves the queue.
pub(super) struct InRoomQueue<R: Resident> {
    pub(super) registry: Arc<Shell<R>>,
    pub(super) id: RoomId,
}

impl<R: Resident> Drop for InRoomQueue<R> {
    fn drop(&mut self) {
        self.registry.apply(|state| state.leave_room(self.id, Instant::now()));
    }
}

/// The right to use a runtime: while it is held, the runtime is not closed under it.
pub(crate) struct Lease<R: Resident> {
    registry: Arc<Shell<R>>,
    /// `None` only inside `drop`.
    resident: Option<R>,
    revision: RevisionId,
    place: PlaceId,
    holds: Holds<R>,
    /// How long the build took that the caller waited for; zero for a hit.
    pub(crate) build: Duration,
    /// Whether the caller waited for it.
    pub(crate) waited: bool,
    /// Its runtime is called without pause.
    hot: bool,
    /// Uses beyond the one it was granted for, and the last of them.
    used_again: u64,
    last_used: Option<Instant>,
}

/// What a lease holds of its one instance.
enum Holds<R: Resident> {
    /// The instance is in the runtime's pool, set aside.
    Idle,
    /// The instance is still to be made.
    Permit(InstancePermit<R>),
    /// The holder has taken one or the other.
    Taken,
}

/// Where the lease's holder gets its instance.
pub(crate) enum Claim<R: Resident> {
    /// Take an instance out of the runtime's pool.
    Idle,
    /// Make one.
    Make(InstancePermit<R>),
}

impl<R: Resident> Lease<R> {
    pub(super) fn new(registry: Arc<Shell<R>>, grant: Grant<R>) -> Self {
        let Grant { resident, revision, place, idle, build, hot } = grant;
        let holds = if idle { Holds::Idle } else { Holds::Permit(InstancePermit { place: resident.place().clone() }) };
        Self {
            registry,
            resident: Some(resident),
            revision,
            place,
            holds,
            build,
            waited: false,
            hot,
            used_again: 0,
            last_used: None,
        }
    }

    pub(crate) fn resident(&self) -> Option<&R> {
        self.resident.as_ref()
    }

    /// Where to get the instance; `None` the second time.
    pub(crate) fn claim(&mut self) -> Option<Claim<R>> {
        match std::mem::replace(&mut self.holds, Holds::Taken) {
            Holds::Idle => Some(Claim::Idle),
            Holds::Permit(permit) => Some(Claim::Make(permit)),
            Holds::Taken => None,
        }
    }

    pub(crate) fn revision(&self) -> RevisionId {
        self.revision
    }

    /// Whether its runtime is called without a pause.
    pub(crate) fn is_hot(&self) -> bool {
        self.hot
    }

    /// Whether a hot lease may be [parked](super::thread_cache) rather than ended: nobody waits for anything.
    pub(crate) fn may_park(&self) -> bool {
        self.registry.apply(|state| state.may_park(self.revision, self.place))
    }

    /// The lease was parked, and serves another use.
    pub(crate) fn use_again(&mut self, now: Instant) {
        self.used_again += 1;
        self.last_used = Some(now);
    }

    /// Its instance is in the runtime's pool again: the lease is to be ended.
    pub(crate) fn give_back(&mut self) {
        self.holds = Holds::Idle;
    }

    /// Takes the lease apart, for its end to be accounted for. `None` when that has happened.
    pub(super) fn end(&mut self) -> Option<Returned> {
        // This clone first: the end of the last lease lets others evict the runtime and wait for its end.
        drop(self.resident.take()?);
        // A permit that was not used goes back before the lease, so that the next in line finds it.
        let back = matches!(std::mem::replace(&mut self.holds, Holds::Taken), Holds::Idle);
        let Self { revision, place, used_again, last_used, .. } = *self;
        Some(Returned { revision, place, back, used_again, last_used })
    }
}

impl<R: Resident> Drop for Lease<R> {
    fn drop(&mut self) {
        if let Some(returned) = self.end() {
            self.registry.apply(|state| state.leases_returned(&[returned], Instant::now()));
        }
    }
}

impl<R: Resident> fmt::Debug for Lease<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("revision", &self.revision).finish_non_exhaustive()
    }
}

/// What a builder gets when its turn comes. Both at once: two builders that each held one and waited for the other would
/// deadlock.
pub(crate) struct Admission<R: Resident> {
    pub(crate) place: Place<R>,
    pub(crate) permit: InstancePermit<R>,
    pub(crate) compiling: Compiling<R>,
}

/// A build's share of what can compile. Dropping it says that its compile has ended, or does not hold up others.
pub(crate) struct Compiling<R: Resident> {
    pub(super) registry: Arc<Shell<R>>,
    pub(super) tenant: TenantId,
}

impl<R: Resident> Drop for Compiling<R> {
    fn drop(&mut self) {
        self.registry.apply(|state| state.compiled(self.tenant, Instant::now()));
    }
}

/// One runtime's right to exist, from before its compile until after its last engine object is dropped. Everything that
/// keeps the runtime alive holds a clone; dropping the last clone gives the place back.
#[derive(Clone)]
pub(crate) struct Place<R: Resident> {
    pub(super) inner: Arc<PlaceInner<R>>,
}

pub(super) struct PlaceInner<R: Resident> {
    pub(super) registry: Arc<Shell<R>>,
    revision: RevisionId,
    id: PlaceId,
    record: Mutex<Record>,
    /// Holds whether the close was forced. Its end means that all is gone.
    gone: watch::Sender<bool>,
}

/// What is known of a close before it has happened.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// The engine has made a compiled plugin.
    opened: bool,
    forced: bool,
    closing: Option<(CloseReason, Instant)>,
    /// Of the close, which ends with this.
    span: Option<Span>,
}

impl<R: Resident> Place<R> {
    pub(super) fn new(registry: Arc<Shell<R>>, revision: RevisionId, id: PlaceId, gone: watch::Sender<bool>) -> Self {
        Self { inner: Arc::new(PlaceInner { registry, revision, id, record: Mutex::default(), gone }) }
    }

    /// The account of the plugin that has this place.
    pub(crate) fn memory(&self) -> MemoryAccount {
        let registry = self.inner.registry.clone();
        let budget = registry.lock().memory();
        MemoryAccount::new(budget, self.inner.revision.tenant, registry)
    }

    /// The engine has made a compiled plugin: from now on there is something to close.
    pub(crate) fn opened(&self) {
        self.inner.record().opened = true;
    }

    /// Notes the decision to close, why, and the close's span. The first call counts.
    pub(crate) fn closing(&self, reason: CloseReason, span: Span) {
        let mut record = self.inner.record();
        record.closing.get_or_insert((reason, Instant::now()));
        record.span.get_or_insert(span);
    }

    /// Notes that guests had to be interrupted.
    pub(crate) fn forced(&self) {
        self.inner.record().forced = true;
    }

    /// Whether nobody holds a lease on the runtime.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.inner.registry.lock().is_at_rest(self.inner.revision, self.inner.id)
    }

    /// Takes a permit for a spare instance, if nobody else wants one. [`spare_ended`](Self::spare_ended) must follow.
    pub(crate) fn reserve_spare(&self) -> Option<InstancePermit<R>> {
        let PlaceInner { registry, revision, id, .. } = &*self.inner;
        let reserved = registry.apply(|state| state.reserve_spare(*revision, *id));
        reserved.then(|| InstancePermit { place: self.clone() })
    }

    /// The making of a spare instance ended. `ready`: it is in the runtime's pool.
    pub(crate) fn spare_ended(&self, ready: bool) {
        let PlaceInner { registry, revision, id, .. } = &*self.inner;
        registry.apply(|state| state.spare_ended(*revision, *id, ready, Instant::now()));
    }
}

impl<R: Resident> PlaceInner<R> {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Resident> Drop for PlaceInner<R> {
    fn drop(&mut self) {
        let record = std::mem::take(&mut *self.record());
        if record.opened {
            let (reason, since) = record.closing.unwrap_or_else(|| (CloseReason::Invalid, Instant::now()));
            self.registry.metrics.closed(reason.as_str(), record.forced, since.elapsed());
        }
        if let Some(span) = record.span {
            span.record("evalpool.close.how", if record.forced { "forced" } else { "drained" });
        }
        self.gone.send_replace(record.forced);
        // The order: count, hand the place on, then end `gone`, which happens when the fields are dropped after this. So
        // whoever waits for `gone` never sees a gauge that lags behind.
        self.registry.apply(|state| state.place_released(self.revision, self.id, Instant::now()));
        self.registry.lock().forget(self.id);
    }
}

/// One instance's right to exist, from before it is made until after it is dropped. Holds its runtime's place.
pub(crate) struct InstancePermit<R: Resident> {
    pub(super) place: Place<R>,
}

impl<R: Resident> Drop for InstancePermit<R> {
    fn drop(&mut self) {
        let PlaceInner { registry, revision, id, .. } = &*self.place.inner;
        registry.apply(|state| state.permit_released(*revision, *id, Instant::now()));
    }
}

/// Ends when places are released.
#[must_use]
pub(crate) struct Gone(pub(super) Vec<watch::Receiver<bool>>);

impl Gone {
    /// How many places are still held.
    pub(crate) fn remaining(&self) -> usize {
        self.0.iter().filter(|gone| gone.has_changed().is_ok()).count()
    }

    /// Waits until all are released, and returns whether any close was forced. Cancel safe.
    pub(crate) async fn wait(&mut self) -> bool {
        let mut forced = false;
        for gone in &mut self.0 {
            while gone.changed().await.is_ok() {}
            forced |= *gone.borrow();
        }
        forced
    }
}

/// Who still wants a build.
#[derive(Clone)]
pub(crate) struct Interest<R: Resident> {
    registry: Arc<Shell<R>>,
    revision: RevisionId,
    id: BuildId,
}

impl<R: Resident> Interest<R> {
    /// Takes the build out of the registry if nobody waits for it, and says whether it is out: then its outcome will be
    /// seen by nobody, and the next caller starts another.
    pub(crate) fn renounce(&self) -> bool {
        self.registry.apply(|state| state.renounce(self.revision, self.id, Instant::now()))
    }

    /// Whether other builds of its tenant wait for what this one has.
    pub(crate) fn holds_up_own(&self) -> bool {
        self.registry.lock().holds_up_builds(self.revision.tenant)
    }

    /// Notified whenever somebody leaves any build, or one has to wait for its own tenant.
    pub(crate) fn left(&self) -> Arc<Notify> {
        self.registry.left.clone()
    }
}

/// The one build of a revision. Dropping it without an outcome (its task panicked, or its tokio runtime ended) fails those
/// who wait; the next caller tries again.
pub(crate) struct BuildTicket<R: Resident> {
    pub(super) registry: Arc<Shell<R>>,
    pub(super) revision: RevisionId,
    pub(super) id: BuildId,
    pub(super) unwanted: oneshot::Receiver<Infallible>,
    pub(super) done: bool,
}

impl<R: Resident> BuildTicket<R> {
    /// Ends when the revision is retired, the pool shut down or the build [renounced](Interest::renounce): nobody sees its
    /// outcome then.
    pub(crate) async fn unwanted(&mut self) {
        let _ = (&mut self.unwanted).await;
    }

    /// The plugin is fetched, which took `fetched`. Waits for a place and a permit; `None` when nobody wants the build any
    /// more.
    pub(crate) async fn admit(&self, fetched: Duration) -> Option<Admission<R>> {
        let (to, admission) = oneshot::channel();
        let wanted = self.registry.apply(|state| state.enqueue(self.revision, self.id, fetched, to, Instant::now()));
        if !wanted {
            return None;
        }
        admission.await.ok()
    }

    pub(crate) fn interest(&self) -> Interest<R> {
        Interest { registry: self.registry.clone(), revision: self.revision, id: self.id }
    }

    /// The build succeeded. Its runtime has one idle instance.
    ///
    /// # Errors
    ///
    /// Gives the runtime back when its revision was retired meanwhile: the caller must close it.
    pub(crate) fn publish(mut self, resident: R) -> Result<(), R> {
        let place = resident.place().inner.id;
        let published = self.registry.apply(|state| state.publish(self.revision, place, resident, Instant::now()));
        self.done = true;
        if published.is_err() {
            self.registry.metrics.build_ended(Err(&Error::Cancelled));
        }
        published
    }

    /// The build failed. Call this once all that it had made is closed.
    pub(crate) fn fail(mut self, error: &Error) {
        self.done = true;
        self.report(error);
    }

    /// The build ended before it began, because nobody wants it any more.
    pub(crate) fn abandon(mut self) {
        self.done = true;
    }

    fn report(&self, error: &Error) {
        self.registry.metrics.build_ended(Err(error));
        self.registry.apply(|state| {
            state.build_failed(self.revision, self.id, error, Instant::now());
        });
    }
}

impl<R: Resident> Drop for BuildTicket<R> {
    fn drop(&mut self) {
        if !self.done {
            self.report(&Error::Internal { reason: "the build ended without an outcome; try again", cause: None });
        }
    }
}

#[cfg(test)]
mod tests;
