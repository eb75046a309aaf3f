//! The guards: each stands for one step of the accounting, and undoes it in its drop.

use std::{fmt, sync::Arc, time::Duration};

use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use super::{
    Age, BuildId, Generation, Inner, Lending, PlaceId, Refused, Resident, Ticket,
    state::Grant,
    sync::{Mutex, MutexGuard, PoisonError},
};
use crate::{error::Error, metrics::CloseReason};

/// A caller's position in a queue. Dropping it leaves the queue; an answer that was on its way is passed on.
pub(super) struct Waiter<R: Resident> {
    pub(super) registry: Arc<Inner<R>>,
    pub(super) generation: Generation,
    pub(super) age: Age,
    pub(super) answer: oneshot::Receiver<Result<Lease<R>, Refused>>,
}

impl<R: Resident> Drop for Waiter<R> {
    fn drop(&mut self) {
        if self.answer.is_terminated() {
            return;
        }
        self.registry.apply(|state, effects| state.leave(self.generation, self.age, Instant::now(), effects));
    }
}

/// The right to use a runtime: while it is held, the runtime is not closed under it.
pub(crate) struct Lease<R: Resident> {
    registry: Arc<Inner<R>>,
    /// `None` only inside `drop`.
    resident: Option<R>,
    generation: Generation,
    place: PlaceId,
    holds: Holds<R>,
    pub(super) build: Option<Duration>,
    /// Its instance may be lent when it ends.
    hot: bool,
}

/// What a lease has of its one instance.
enum Holds<R: Resident> {
    /// It is in the runtime's pool, set aside.
    Idle,
    /// It is still to be made.
    Permit(Permit<R>),
    /// The holder has taken either.
    Taken,
}

/// What a lease gives its holder to work with.
pub(crate) enum Claim<R: Resident> {
    /// Take an instance out of the runtime's pool.
    Idle,
    /// Make one.
    Make(Permit<R>),
}

impl<R: Resident> Lease<R> {
    pub(super) fn new(registry: Arc<Inner<R>>, grant: Grant<R>) -> Self {
        let Grant { resident, generation, place, idle, build, hot } = grant;
        let holds = if idle { Holds::Idle } else { Holds::Permit(Permit { place: resident.place().clone() }) };
        Self { registry, resident: Some(resident), generation, place, holds, build, hot }
    }

    pub(crate) fn resident(&self) -> Option<&R> {
        self.resident.as_ref()
    }

    /// What to work with; `None` the second time.
    pub(crate) fn claim(&mut self) -> Option<Claim<R>> {
        match std::mem::replace(&mut self.holds, Holds::Taken) {
            Holds::Idle => Some(Claim::Idle),
            Holds::Permit(permit) => Some(Claim::Make(permit)),
            Holds::Taken => None,
        }
    }

    /// Ends the lease by lending its instance to this thread, if the runtime is called without pause and nobody waits.
    ///
    /// # Errors
    ///
    /// The lease, otherwise.
    pub(crate) fn lend(mut self, lending: &Arc<Lending<R>>) -> Result<Ticket, Self> {
        if !self.hot {
            return Err(self);
        }
        let lent = self.registry.apply(|state, _| state.lend(self.generation, self.place, lending, Instant::now()));
        let Some(ticket) = lent else { return Err(self) };
        // What it held is the loan's.
        self.resident = None;
        Ok(ticket)
    }

    /// Ends the lease; its instance is in the runtime's pool again.
    pub(crate) fn give_back(mut self) {
        self.holds = Holds::Idle;
    }
}

impl<R: Resident> Drop for Lease<R> {
    fn drop(&mut self) {
        // This clone first: whoever closes the runtime must hold the last one, to drop it where it may take long. Without
        // one, the lease has ended before.
        let Some(resident) = self.resident.take() else { return };
        drop(resident);
        // A permit that was not used goes back before the lease, so that the next in line finds it.
        let back = matches!(std::mem::replace(&mut self.holds, Holds::Taken), Holds::Idle);
        self.registry.apply(|state, effects| {
            state.lease_returned(self.generation, self.place, back, Instant::now(), effects);
        });
    }
}

impl<R: Resident> fmt::Debug for Lease<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// What a builder gets when its turn comes: both at once, for a builder that held one and waited for the other could
/// deadlock with its like.
pub(crate) struct Admission<R: Resident> {
    pub(crate) place: Place<R>,
    pub(crate) permit: Permit<R>,
}

/// One runtime's right to exist, from before its compile until after its last engine object. Shared by everything
/// that keeps the runtime alive; the last clone to go gives the place back.
pub(crate) struct Place<R: Resident> {
    inner: Arc<PlaceInner<R>>,
}

impl<R: Resident> Clone for Place<R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

pub(super) struct PlaceInner<R: Resident> {
    registry: Arc<Inner<R>>,
    generation: Generation,
    id: PlaceId,
    record: Mutex<Record>,
    /// Says whether the close was forced; its end says that all is gone.
    gone: watch::Sender<bool>,
}

/// What is known of a close before it has happened.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// The engine has made a compiled plugin.
    opened: bool,
    forced: bool,
    closing: Option<(CloseReason, Instant)>,
}

impl<R: Resident> Place<R> {
    pub(super) fn new(registry: Arc<Inner<R>>, generation: Generation, id: PlaceId, gone: watch::Sender<bool>) -> Self {
        Self { inner: Arc::new(PlaceInner { registry, generation, id, record: Mutex::default(), gone }) }
    }

    /// The engine has made a compiled plugin: from here on there is something to close.
    pub(crate) fn opened(&self) {
        self.inner.record().opened = true;
    }

    /// The decision to close, and why. The first one counts.
    pub(crate) fn closing(&self, reason: CloseReason) {
        self.inner.record().closing.get_or_insert((reason, Instant::now()));
    }

    /// Guests had to be interrupted.
    pub(crate) fn forced(&self) {
        self.inner.record().forced = true;
    }

    /// Makes an ordinary lease of a loan of this place's runtime. Nothing else may be done with the loan afterwards.
    pub(crate) fn surface(&self, resident: R, lending: &Lending<R>, ticket: &Ticket) -> Lease<R> {
        let PlaceInner { registry, generation, id, .. } = &*self.inner;
        registry.apply(|state, _| state.surface(*generation, lending, ticket));
        Lease {
            registry: registry.clone(),
            resident: Some(resident),
            generation: *generation,
            place: *id,
            holds: Holds::Taken,
            build: None,
            hot: false,
        }
    }

    /// Whether nobody holds a lease on the runtime.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.inner.registry.lock().is_at_rest(self.inner.generation, self.inner.id)
    }

    /// Takes a permit for a spare instance, if nobody else wants it. [`spare_ended`](Self::spare_ended) must follow.
    pub(crate) fn reserve_spare(&self) -> Option<Permit<R>> {
        let PlaceInner { registry, generation, id, .. } = &*self.inner;
        let reserved = registry.apply(|state, _| state.reserve_spare(*generation, *id));
        reserved.then(|| Permit { place: self.clone() })
    }

    /// The making of a spare instance ended. `ready`: it is in the runtime's pool.
    pub(crate) fn spare_ended(&self, ready: bool) {
        let PlaceInner { registry, generation, id, .. } = &*self.inner;
        registry.apply(|state, effects| state.spare_ended(*generation, *id, ready, Instant::now(), effects));
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
            self.registry.metrics.closed(reason, record.forced, since.elapsed());
        }
        self.gone.send_replace(record.forced);
        // Counted first, given on second; `gone` ends last, when this has returned and the fields are dropped. Until then
        // it can be waited for, so that nobody who does sees a gauge that is behind.
        self.registry.apply(|state, effects| state.place_released(self.id, Instant::now(), effects));
        self.registry.lock().forget(self.id);
    }
}

/// One instance's right to exist, from before it is made until after it is dropped. Keeps its runtime's place.
pub(crate) struct Permit<R: Resident> {
    pub(super) place: Place<R>,
}

impl<R: Resident> Drop for Permit<R> {
    fn drop(&mut self) {
        let PlaceInner { registry, generation, id, .. } = &*self.place.inner;
        registry.apply(|state, effects| state.permit_released(*generation, *id, Instant::now(), effects));
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

    /// Waits until all are released; tells whether any close was forced. Cancel safe.
    pub(crate) async fn wait(&mut self) -> bool {
        let mut forced = false;
        for gone in &mut self.0 {
            while gone.changed().await.is_ok() {}
            forced |= *gone.borrow();
        }
        forced
    }
}

/// The one build of a generation. Dropping it without an outcome, as when its task panics or its tokio goes, reports
/// that to those who wait; the next caller tries again.
pub(crate) struct BuildTicket<R: Resident> {
    pub(super) registry: Arc<Inner<R>>,
    pub(super) generation: Generation,
    pub(super) id: BuildId,
    pub(super) done: bool,
}

impl<R: Resident> BuildTicket<R> {
    /// The plugin is fetched, which took `fetched`: waits for a place and a permit. `None` when nobody wants the build any more.
    pub(crate) async fn admit(&self, fetched: Duration) -> Option<Admission<R>> {
        let (to, admission) = oneshot::channel();
        let wanted = self
            .registry
            .apply(|state, effects| state.enqueue(self.generation, self.id, fetched, to, Instant::now(), effects));
        if !wanted {
            return None;
        }
        admission.await.ok()
    }

    /// The build succeeded, with one idle instance in its pool.
    ///
    /// # Errors
    ///
    /// Gives the runtime back when its generation was retired meanwhile: the caller must close it.
    pub(crate) fn publish(mut self, resident: R) -> Result<(), R> {
        let place = resident.place().inner.id;
        let published = self
            .registry
            .apply(|state, effects| state.publish(self.generation, place, resident, Instant::now(), effects));
        self.done = true;
        self.registry.metrics.build_ended(match &published {
            Ok(()) => Ok(()),
            Err(_) => Err(&Error::Cancelled),
        });
        published
    }

    /// The build failed; call it once what it had made is closed.
    pub(crate) fn fail(mut self, error: &Error) {
        self.done = true;
        self.report(error);
    }

    /// The build ended before it had begun, because nobody wants it any more.
    pub(crate) fn abandon(mut self) {
        self.done = true;
    }

    fn report(&self, error: &Error) {
        self.registry.metrics.build_ended(Err(error));
        self.registry.apply(|state, effects| {
            state.build_failed(self.generation, self.id, error, Instant::now(), effects);
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
