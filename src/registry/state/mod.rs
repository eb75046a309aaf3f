//! The registry's rules as a plain state machine: no clock, no lock, no task, no foreign code.
//!
//! Each method is told what happened and notes as [`Effect`]s what must be done about it. The shell does that after it
//! has released the lock. Considered and not taken: an actor task that owns the state (each evaluation would hop threads
//! twice, and when the task's tokio runtime ends, callers would wait for ever), and a concurrent cache crate with a
//! semaphore beside it (it would bound what is cached rather than what exists: builds in flight and runtimes that still
//! close would not count).
//!
//! # Who waits for what, and in which order
//!
//! A caller waits either on a build of its revision or on a live runtime of it, never on both. Two queues stand behind
//! them, ordered by age. `build_queue` holds the builds that need a place and a permit; they get both at once, since a
//! builder that held one and waited for the other could deadlock. They get them when they can compile, or are the one that
//! compiles next (`compiling`): until then, their victims stay live and serve. `permit_waiters` holds the live runtimes whose oldest
//! waiter needs a permit. A runtime gives an idle instance to its own oldest waiter first. There is one exception: when no
//! permit is left and an older caller or build waits for one elsewhere, the idle instance is reaped for it.
//!
//! # Invariants, once a method has returned and its effects are executed
//!
//! - `places.len() ≤ capacity` and `instances ≤ max_instances`.
//! - No build that could compile waits for a place while an unleased runtime could be evicted for it.
//! - Nobody waits for a permit while an idle instance could be reaped for it, and no caller of a runtime waits beside an
//!   idle instance of it but behind a reservation.
//! - Nothing is parked, and no spare is made, while anybody waits for a permit, a place that it could use, or room in bytes.
//! - No tenant has more than it may, or waits at a bound for what its own idle instances and unused runtimes could give.
//! - No build waits for room that idle instances and unleased runtimes could give.

mod builds;
mod dispatch;
mod entries;
mod instances;
#[cfg(test)]
mod invariants;
mod leases;
mod memory;
mod own;
mod parking;
mod places;
mod quotas;
mod retire;
mod reuse;
#[cfg(test)]
pub(super) mod tests;
mod uses;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use lru::LruCache;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use self::{
    entries::{Build, Draining, Failure, Live},
    memory::WantsRoom,
    places::Places,
    quotas::Holdings,
    reuse::Reuse,
    uses::Uses,
};
pub(crate) use self::{
    memory::RoomId,
    quotas::{Quotas, TenantHolds},
};
use super::{CloseReason, Limits, Refused, Resident, RevisionId};
use crate::{
    error::Error,
    memory::{Granted, MemoryBudget},
    turns::{TenantId, Turns, Weights},
};

/// The order in which callers came. Unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Age(u64);

/// One right to have a runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PlaceId(u64);

/// One attempt at building a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BuildId(u64);

/// A lease, before the shell has made a guard of it.
pub(super) struct Grant<R> {
    pub(super) resident: R,
    pub(super) revision: RevisionId,
    pub(super) place: PlaceId,
    /// An idle instance of the runtime is set aside for this lease. Otherwise the lease has a permit to make one.
    pub(super) idle: bool,
    /// How long the build took that this caller waited for; zero for a hit.
    pub(super) build: Duration,
    /// The runtime is called without a pause, so the lease may be parked instead of ended.
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

/// One thing that the shell does once it has released the lock.
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
    /// A build has ended well: noted before its callers are answered, who may look at the count.
    Built,
    /// The runtime has left the registry: it drains, then closes. `unused` is set for an eviction.
    Retire {
        resident: R,
        reason: CloseReason,
        unused: Option<Duration>,
        idle: usize,
        leased: bool,
        grace: Option<Duration>,
    },
    /// A runtime that is draining gets this grace, if that ends sooner than the one it has.
    ShortenGrace {
        resident: R,
        grace: Duration,
    },
    /// Somebody has left a build that has its place.
    Left,
    /// The last lease of a retired runtime came back.
    Drained {
        resident: R,
    },
    /// Drop one idle instance of this runtime.
    Reap {
        resident: R,
    },
    /// There is room for a build.
    Room {
        to: oneshot::Sender<Granted>,
        granted: Granted,
    },
    /// Drop so many bytes of what is kept although nobody uses it.
    GiveWay {
        bytes: u64,
    },
    /// Take out what threads have parked of these runtimes, and end all the leases in one step.
    Reclaim {
        residents: Vec<(RevisionId, R)>,
    },
}

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
    /// Nobody was building it: the caller must start the build, and then waits for it like any other.
    Start(BuildId, oneshot::Receiver<Infallible>, AnswerReceiver<R>),
}

pub(super) struct RegistryState<R: Resident> {
    limits: Limits,
    shut_down: bool,
    /// Unbounded: `capacity` bounds places, and a victim must not be dropped under the lock.
    live: LruCache<RevisionId, Live<R>>,
    builds: HashMap<RevisionId, Build<R>>,
    draining: HashMap<PlaceId, Draining<R>>,
    places: Places,
    quotas: Quotas,
    holdings: Holdings,
    weights: Weights,
    uses: Uses,
    reuse: Reuse,
    /// A channel for each place that closes once the place is released and the gauges show it.
    gone: HashMap<PlaceId, (RevisionId, watch::Receiver<bool>)>,
    /// Draining runtimes that will give their places back soon: no lease is out, no guest runs, and none is overdue.
    closing: usize,
    /// Permits out.
    instances: usize,
    /// The sum of `idle` over live runtimes.
    idle: usize,
    /// The sum of `reaping` over live and draining runtimes.
    reaping: usize,
    /// Live runtimes with leases that threads may have parked. Empty while anybody waits for a permit or a place.
    parking: BTreeSet<RevisionId>,
    /// Reclaims that are under way: what they bring back is not known yet.
    reclaiming: usize,
    /// Builds that were admitted and whose compile has not ended.
    compiling: usize,
    build_queue: Turns<Age, RevisionId>,
    permit_waiters: Turns<Age, RevisionId>,
    /// Each with the tenant of the build that is to get its place.
    reserved: Vec<(RevisionId, TenantId)>,
    /// Builds that are compiled and wait for room in bytes.
    room_queue: BTreeMap<RoomId, WantsRoom>,
    memory: Arc<MemoryBudget>,
    /// Bytes of what is kept although nobody uses it that are being dropped.
    giving_way: u64,
    failures: LruCache<RevisionId, Failure>,
    waiting_capacity: usize,
    waiting_instance: usize,
    waiting_fetch: usize,
    waiting_build: usize,
    next: u64,
    /// Grows with every change, and orders what is published.
    pub(super) version: u64,
    /// What the shell is to do once it has released the lock.
    pub(super) effects: Vec<Effect<R>>,
}

impl<R: Resident> RegistryState<R> {
    pub(super) fn new(limits: Limits, memory: Arc<MemoryBudget>) -> Self {
        Self {
            limits,
            shut_down: false,
            live: LruCache::unbounded(),
            builds: HashMap::new(),
            draining: HashMap::new(),
            places: Places::default(),
            quotas: Quotas::default(),
            holdings: Holdings::default(),
            weights: Weights::default(),
            uses: Uses::new(limits.eviction, limits.capacity),
            reuse: Reuse::default(),
            gone: HashMap::new(),
            closing: 0,
            instances: 0,
            idle: 0,
            reaping: 0,
            parking: BTreeSet::new(),
            reclaiming: 0,
            compiling: 0,
            build_queue: Turns::default(),
            permit_waiters: Turns::default(),
            reserved: Vec::new(),
            room_queue: BTreeMap::new(),
            memory,
            giving_way: 0,
            failures: LruCache::unbounded(),
            waiting_capacity: 0,
            waiting_instance: 0,
            waiting_fetch: 0,
            waiting_build: 0,
            next: 0,
            version: 0,
            effects: Vec::new(),
        }
    }

    fn unique(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The age of a caller that has just come.
    pub(super) fn age(&mut self) -> Age {
        Age(self.unique())
    }
}
