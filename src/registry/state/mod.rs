//! The registry's rules as a plain state machine: no clock, no lock, no task, no foreign code.
//!
//! Every method takes what happened and pushes what must now be done onto `effects`, for the shell to do after it has
//! let go of the lock. Considered and not taken: an actor task that owns the state (two thread hops for each
//! evaluation, and nobody left to answer when its tokio goes), and a concurrent cache crate with a semaphore beside it
//! (the bound then counts what is cached, not what exists: builds in flight and runtimes still closing escape it).
//!
//! # Who waits for what, and in which order
//!
//! A caller waits either on a build of its revision or on a live runtime of it; never in two places. Behind them
//! two queues are ordered by age: `build_queue`, builds that need a place and a permit at once (a builder that held one
//! and waited for the other could deadlock), and `permit_waiters`, live runtimes whose eldest waiter needs a permit. A
//! runtime's own idle instance goes to its own eldest waiter, unless permits are used up and an elder contends
//! elsewhere: then the idle instance is reaped for the elder.
//!
//! # Invariants, after every method
//!
//! - `places.len() ≤ capacity` and `instances ≤ max_instances`.
//! - No build waits for a place while an unleased runtime could be evicted for it.
//! - Nobody contends for a permit while an idle instance could be reaped for it.

mod dispatch;
mod entries;
mod parking;
mod retire;
mod view;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    time::Duration,
};

use lru::LruCache;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use self::entries::{Build, Draining, Failure, Live, Phase, Waiter, insert_by_age};
use super::{CloseReason, Limits, Refused, Resident, RevisionId};
use crate::{clock, error::Error};

/// How many failed builds are remembered at most.
const MAX_FAILURES: usize = 4096;

/// The order in which callers came. Unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Age(u64);

/// One right to have a runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PlaceId(u64);

/// One attempt at building a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BuildId(u64);

/// What a lease consists of, before the shell has made a guard of it.
pub(super) struct Grant<R> {
    pub(super) resident: R,
    pub(super) revision: RevisionId,
    pub(super) place: PlaceId,
    /// The runtime has an idle instance set aside for this lease; otherwise the lease has a permit to make one.
    pub(super) idle: bool,
    /// How long the build took that this caller waited for.
    pub(super) build: Option<Duration>,
    /// The runtime is called without pause: instead of ending, the lease may be parked.
    pub(super) hot: bool,
}

/// A lease that ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Returned {
    pub(super) revision: RevisionId,
    pub(super) place: PlaceId,
    /// Its instance is in the runtime's pool again.
    pub(super) back: bool,
    /// Uses beyond the one that it was granted for, and the last of them, if it was parked in between.
    pub(super) used_again: u64,
    pub(super) last_used: Option<Instant>,
}

pub(super) type Answer<R> = Result<Grant<R>, Refused>;
type AnswerSender<R> = oneshot::Sender<Result<super::Lease<R>, Refused>>;
pub(super) type AnswerReceiver<R> = oneshot::Receiver<Result<super::Lease<R>, Refused>>;
pub(super) type AdmissionSender<R> = oneshot::Sender<super::Admission<R>>;

/// What the shell has to do once the lock is released.
pub(super) enum Effect<R: Resident> {
    Answer {
        to: AnswerSender<R>,
        answer: Answer<R>,
    },
    Admit {
        to: AdmissionSender<R>,
        revision: RevisionId,
        place: PlaceId,
        gone: watch::Sender<bool>,
    },
    /// The runtime is out of the registry: it drains, then closes. `unused` is set for an eviction.
    Retire {
        resident: R,
        reason: CloseReason,
        unused: Option<Duration>,
        idle: usize,
        leased: bool,
        grace: Option<Duration>,
    },
    /// A runtime that drains already is to be closed with this grace, if that ends sooner.
    ShortenGrace {
        resident: R,
        grace: Duration,
    },
    /// The last lease of a retired runtime came back.
    Drained {
        resident: R,
    },
    /// One idle instance of this runtime is to be dropped.
    Reap {
        resident: R,
    },
    /// What threads have parked of these is to be taken out, and its leases ended in one step.
    Reclaim {
        residents: Vec<R>,
    },
}

pub(super) type Effects<R> = Vec<Effect<R>>;

/// How a request for a lease went.
pub(super) enum Requested<R: Resident> {
    /// Parked leases are being reclaimed first: ask again.
    Again,
    Granted(Grant<R>),
    Refused(Error),
    /// Joined a build in progress.
    Joined(AnswerReceiver<R>),
    /// Waits for an instance of a live runtime.
    Queued(AnswerReceiver<R>),
    /// Nobody was building it: the caller must start the build, and waits for it like any other.
    Start(BuildId, AnswerReceiver<R>),
}

pub(super) struct RegistryState<R: Resident> {
    limits: Limits,
    shut_down: bool,
    /// Unbounded: the bound is on places, and a victim is never dropped under the lock.
    live: LruCache<RevisionId, Live<R>>,
    builds: HashMap<RevisionId, Build<R>>,
    draining: HashMap<PlaceId, Draining<R>>,
    places: HashSet<PlaceId>,
    /// What ends when a place is released and the gauges say so: a little longer than the place itself.
    gone: HashMap<PlaceId, (RevisionId, watch::Receiver<bool>)>,
    /// Draining with nothing left that could hold their places for long: no lease, and no guest that still runs.
    closing: usize,
    /// Permits out.
    instances: usize,
    /// The sum of `idle` over live runtimes.
    idle: usize,
    /// The sum of `reaping` over live and draining runtimes.
    reaping: usize,
    /// Live runtimes with leases that threads may have parked. Empty while anybody waits for a permit or a place.
    parking: Vec<RevisionId>,
    build_queue: BTreeMap<Age, RevisionId>,
    permit_waiters: BTreeMap<Age, RevisionId>,
    reserved: Vec<RevisionId>,
    failures: LruCache<RevisionId, Failure>,
    waiting_capacity: usize,
    waiting_instance: usize,
    waiting_fetch: usize,
    waiting_build: usize,
    next: u64,
    /// Grows with every change; orders what is published.
    pub(super) version: u64,
}

impl<R: Resident> RegistryState<R> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            shut_down: false,
            live: LruCache::unbounded(),
            builds: HashMap::new(),
            draining: HashMap::new(),
            places: HashSet::new(),
            gone: HashMap::new(),
            closing: 0,
            instances: 0,
            idle: 0,
            reaping: 0,
            parking: Vec::new(),
            build_queue: BTreeMap::new(),
            permit_waiters: BTreeMap::new(),
            reserved: Vec::new(),
            failures: LruCache::unbounded(),
            waiting_capacity: 0,
            waiting_instance: 0,
            waiting_fetch: 0,
            waiting_build: 0,
            next: 0,
            version: 0,
        }
    }

    fn unique(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// An age for a caller that has just come.
    pub(super) fn age(&mut self) -> Age {
        Age(self.unique())
    }

    /// A caller wants a lease on `revision`. One that may not wait is refused instead.
    pub(super) fn request(
        &mut self,
        revision: RevisionId,
        age: Age,
        now: Instant,
        may_wait: bool,
        effects: &mut Effects<R>,
    ) -> Requested<R> {
        if self.shut_down {
            return Requested::Refused(Error::ShuttingDown);
        }
        // Whoever waits for a fetch waits for a place next, unless one is in sight.
        let waiting = self.waiting_capacity + self.waiting_instance + self.waiting_fetch;
        let full = waiting >= self.limits.max_waiting;
        let refused = |reason| Requested::Refused(Error::Saturated { reason });
        let eldest = self.eldest_build();
        // The caller's own thread had nothing parked; another thread's instance may be unused.
        if self.parking.contains(&revision) && self.live.peek(&revision).is_some_and(|live| live.idle == 0) {
            self.reclaim(revision, effects);
            return Requested::Again;
        }
        if let Some(live) = self.live.get_mut(&revision) {
            let hot = live.called(now, self.limits.park_after);
            if !live.holds_back(age, eldest) && live.waiters.is_empty() {
                if live.idle > 0 {
                    live.idle -= 1;
                    self.idle -= 1;
                    return Requested::Granted(Grant { hot, ..live.grant(revision, true, None) });
                }
                let free = self.instances < self.limits.max_instances;
                // Permits go by age: while anyone contends for one, this caller queues behind.
                if free && self.permit_waiters.is_empty() && live.instances < self.limits.max_instances_per_runtime {
                    live.instances += 1;
                    self.instances += 1;
                    return Requested::Granted(Grant { hot, ..live.grant(revision, false, None) });
                }
            }
            if !may_wait {
                return refused("a call from inside a host function does not wait, and no instance is free");
            }
            if full {
                return refused("no instance is free and as many callers wait as may");
            }
            let (to, answer) = oneshot::channel();
            insert_by_age(&mut live.waiters, Waiter { age, to });
            self.waiting_instance += 1;
            self.await_permit(revision);
            self.dispatch(now, effects);
            return Requested::Queued(answer);
        }
        if !may_wait {
            return refused("a call from inside a host function does not wait, and its evaluator is cold");
        }
        if full && !self.parking.is_empty() {
            // A runtime whose leases are all parked could be evicted.
            self.reclaim_all(effects);
            return Requested::Again;
        }
        let in_sight = !full || self.places_in_sight(0);
        if let Some(build) = self.builds.get_mut(&revision) {
            let waiting = match build.phase {
                Phase::Queued { .. } if full => None,
                Phase::Queued { .. } => Some(&mut self.waiting_capacity),
                Phase::Fetching => in_sight.then_some(&mut self.waiting_fetch),
                Phase::Placed { .. } => Some(&mut self.waiting_build),
            };
            let Some(waiting) = waiting else {
                return refused("no runtime is free and as many callers wait as may");
            };
            *waiting += 1;
            let (to, answer) = oneshot::channel();
            insert_by_age(&mut build.waiters, Waiter { age, to });
            // An elder that comes back makes the build as old as itself.
            if let Phase::Queued { age: queued, .. } = &mut build.phase
                && age < *queued
            {
                self.build_queue.remove(queued);
                *queued = age;
                self.build_queue.insert(age, revision);
                self.dispatch(now, effects);
            }
            return Requested::Joined(answer);
        }
        if let Some(error) = self.remembered(revision, now) {
            return Requested::Refused(error);
        }
        if full && !self.places_in_sight(1) {
            return refused("no runtime is free and as many callers wait as may");
        }
        let id = BuildId(self.unique());
        let (to, answer) = oneshot::channel();
        let waiters = VecDeque::from([Waiter { age, to }]);
        self.builds.insert(revision, Build { id, fetched: Duration::ZERO, phase: Phase::Fetching, waiters });
        self.waiting_fetch += 1;
        Requested::Start(id, answer)
    }

    /// Whether all builds that have no place yet, and `more`, would get one without waiting for a lease to end.
    fn places_in_sight(&self, more: usize) -> bool {
        let unplaced = self.builds.values().filter(|build| !matches!(build.phase, Phase::Placed { .. })).count();
        let evictable = self.live.iter().filter(|(_, live)| live.evictable(None)).count();
        self.limits.capacity - self.places.len() + self.closing + evictable >= unplaced + more
    }

    fn eldest_build(&self) -> Option<Age> {
        self.build_queue.first_key_value().map(|(age, _)| *age)
    }

    fn remembered(&mut self, revision: RevisionId, now: Instant) -> Option<Error> {
        let failure = self.failures.get(&revision)?;
        if now < failure.until {
            return Some(failure.error.clone());
        }
        self.failures.pop(&revision);
        None
    }

    /// A caller that waited has left, or was answered just now.
    pub(super) fn leave(&mut self, revision: RevisionId, age: Age, now: Instant, effects: &mut Effects<R>) {
        if let Some(build) = self.builds.get_mut(&revision) {
            let before = build.waiters.len();
            build.waiters.retain(|waiter| waiter.age != age);
            let left = before - build.waiters.len();
            match (&mut build.phase, build.waiters.front()) {
                (Phase::Queued { age, .. }, Some(eldest)) => {
                    self.waiting_capacity -= left;
                    // A build is as old as its eldest caller that is still there.
                    self.build_queue.remove(age);
                    *age = eldest.age;
                    self.build_queue.insert(*age, revision);
                    self.dispatch(now, effects);
                }
                // Nobody wants it and it has cost nothing yet: its builder sees its channel close, and ends.
                (Phase::Queued { age, .. }, None) => {
                    self.waiting_capacity -= left;
                    self.build_queue.remove(age);
                    self.builds.remove(&revision);
                    self.dispatch(now, effects);
                }
                (Phase::Fetching, _) => self.waiting_fetch -= left,
                (Phase::Placed { .. }, _) => self.waiting_build -= left,
            }
        } else if let Some(live) = self.live.peek_mut(&revision) {
            let before = live.waiters.len();
            live.waiters.retain(|waiter| waiter.age != age);
            self.waiting_instance -= before - live.waiters.len();
            self.await_permit(revision);
            self.dispatch(now, effects);
        }
    }

    /// Whether a caller's build has its place, so that it ends by itself within its own budget.
    pub(super) fn is_placed(&self, revision: RevisionId) -> bool {
        self.builds.get(&revision).is_some_and(|build| matches!(build.phase, Phase::Placed { .. }))
    }

    /// A build's plugin is fetched, which took `fetched`, and now needs a place and a permit. False when nobody wants it any more.
    pub(super) fn enqueue(
        &mut self,
        revision: RevisionId,
        id: BuildId,
        fetched: Duration,
        to: AdmissionSender<R>,
        now: Instant,
        effects: &mut Effects<R>,
    ) -> bool {
        let Some(build) = self.builds.get_mut(&revision).filter(|build| build.id == id) else { return false };
        let Some(eldest) = build.waiters.front().map(|waiter| waiter.age) else {
            self.builds.remove(&revision);
            return false;
        };
        build.fetched = fetched;
        build.phase = Phase::Queued { age: eldest, to };
        self.waiting_fetch -= build.waiters.len();
        self.waiting_capacity += build.waiters.len();
        self.build_queue.insert(eldest, revision);
        self.dispatch(now, effects);
        true
    }

    /// A build succeeded: its runtime, with one idle instance, joins the registry and serves those who wait for it.
    ///
    /// # Errors
    ///
    /// Gives the runtime back when it was retired meanwhile.
    pub(super) fn publish(
        &mut self,
        revision: RevisionId,
        place: PlaceId,
        resident: R,
        now: Instant,
        effects: &mut Effects<R>,
    ) -> Result<(), R> {
        let build = match self.builds.remove(&revision) {
            Some(build) if matches!(build.phase, Phase::Placed { place: held, .. } if held == place) => build,
            other => {
                if let Some(build) = other {
                    self.builds.insert(revision, build);
                }
                return Err(resident);
            }
        };
        let Phase::Placed { since, .. } = build.phase else { return Err(resident) };
        self.waiting_build -= build.waiters.len();
        self.waiting_instance += build.waiters.len();
        self.idle += 1;
        let live = Live {
            resident,
            place,
            leases: 0,
            instances: 1,
            idle: 1,
            reaping: 0,
            sparing: false,
            waiters: build.waiters,
            streak: 0,
            reserved: false,
            awaits_permit: None,
            opened: now,
            last_used: now,
            uses: 0,
        };
        self.live.push(revision, live);
        self.serve(revision, Some(build.fetched + (now - since)), effects);
        self.dispatch(now, effects);
        Ok(())
    }

    /// A build failed. All who waited learn why; a failure that would come again is remembered.
    pub(super) fn build_failed(
        &mut self,
        revision: RevisionId,
        id: BuildId,
        error: &Error,
        now: Instant,
        effects: &mut Effects<R>,
    ) {
        if self.builds.get(&revision).is_none_or(|build| build.id != id) {
            return;
        }
        let Some(build) = self.builds.remove(&revision) else { return };
        self.drop_build(revision, build, &Refused::Error(error.clone()), effects);
        if matches!(error, Error::InvalidPlugin { .. } | Error::EntryPointMissing { .. })
            && !self.limits.negative_ttl.is_zero()
        {
            self.failures
                .push(revision, Failure { error: error.clone(), until: clock::later(now, self.limits.negative_ttl) });
            if self.failures.len() > MAX_FAILURES {
                self.failures.pop_lru();
            }
        }
        self.dispatch(now, effects);
    }

    /// Leases ended.
    pub(super) fn leases_returned(&mut self, leases: &[Returned], now: Instant, effects: &mut Effects<R>) {
        for lease in leases {
            self.lease_returned(lease, now, effects);
        }
        for lease in leases {
            self.serve(lease.revision, None, effects);
        }
        self.dispatch(now, effects);
        // The dispatch may have reaped elsewhere what was held back here for an elder.
        for lease in leases {
            self.serve(lease.revision, None, effects);
        }
    }

    fn lease_returned(&mut self, lease: &Returned, now: Instant, effects: &mut Effects<R>) {
        let Returned { revision, place, back, used_again, last_used } = *lease;
        // Peeked at first: a lease on a runtime that drains must not freshen its successor.
        if let Some(live) = self.live.peek_mut(&revision).filter(|live| live.place == place) {
            live.leases -= 1;
            live.uses += used_again;
            if back {
                live.idle += 1;
                self.idle += 1;
            }
            self.used(revision, last_used.unwrap_or(now));
        } else if let Some(draining) = self.draining.get_mut(&place) {
            draining.leases -= 1;
            draining.idle += usize::from(back);
            if draining.leases == 0 {
                self.closing += usize::from(draining.ends_soon());
                effects.extend(draining.resident.take().map(|resident| Effect::Drained { resident }));
            }
        }
    }

    /// An instance, or the wish to make one, is gone for good.
    pub(super) fn permit_released(
        &mut self,
        revision: RevisionId,
        place: PlaceId,
        now: Instant,
        effects: &mut Effects<R>,
    ) {
        self.instances -= 1;
        if let Some(live) = self.live.peek_mut(&revision).filter(|live| live.place == place) {
            live.instances -= 1;
            let reaped = live.reaping.min(1);
            live.reaping -= reaped;
            self.reaping -= reaped;
            self.await_permit(revision);
        } else if let Some(draining) = self.draining.get_mut(&place) {
            let reaped = draining.reaping.min(1);
            draining.reaping -= reaped;
            self.reaping -= reaped;
            draining.instances -= 1;
            self.closing += usize::from(draining.ends_soon());
        }
        self.dispatch(now, effects);
    }

    /// The last engine object of a runtime is gone.
    pub(super) fn place_released(&mut self, place: PlaceId, now: Instant, effects: &mut Effects<R>) {
        self.places.remove(&place);
        if let Some(draining) = self.draining.remove(&place) {
            self.closing -= usize::from(draining.soon);
            self.reaping -= draining.reaping;
        }
        self.dispatch(now, effects);
    }

    /// Whether a live runtime has no lease out.
    pub(super) fn is_at_rest(&self, revision: RevisionId, place: PlaceId) -> bool {
        self.live.peek(&revision).is_some_and(|live| live.place == place && live.leases == 0)
    }

    /// Takes a permit for a spare instance that nobody waits for, if one can be had without taking it from anybody.
    pub(super) fn reserve_spare(&mut self, revision: RevisionId, place: PlaceId) -> bool {
        let free =
            self.instances < self.limits.max_instances && self.permit_waiters.is_empty() && self.build_queue.is_empty();
        let live = self.live.peek_mut(&revision).filter(|live| live.place == place);
        match live {
            Some(live)
                if free
                    && !live.reserved
                    && !live.sparing
                    && live.idle == 0
                    && live.instances < self.limits.max_instances_per_runtime =>
            {
                live.sparing = true;
                live.instances += 1;
                self.instances += 1;
                true
            }
            _ => false,
        }
    }

    /// The making of a spare instance ended. `ready`: it is in its runtime's pool.
    pub(super) fn spare_ended(
        &mut self,
        revision: RevisionId,
        place: PlaceId,
        ready: bool,
        now: Instant,
        effects: &mut Effects<R>,
    ) {
        let Some(live) = self.live.peek_mut(&revision).filter(|live| live.place == place) else { return };
        live.sparing = false;
        if ready {
            live.idle += 1;
            self.idle += 1;
            self.serve(revision, None, effects);
            self.dispatch(now, effects);
            self.serve(revision, None, effects);
        }
    }
}
