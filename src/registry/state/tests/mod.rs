//! The state by itself. What it asks for is noted and not done, so that a test sees what it decides in between: an instance
//! or a runtime that goes is gone when the test says so.

mod bounds;
mod bytes;
mod queues;

use std::{collections::HashMap, mem, sync::Mutex};

use super::*;
use crate::{
    config::{Eviction, TenantBounds},
    memory::{MemoryKind, Weight},
};

/// A runtime with nothing in it but its weight.
#[derive(Clone)]
pub(in crate::registry) struct Fake(RevisionId, Arc<Mutex<Weight>>);

impl Resident for Fake {
    fn place(&self) -> &super::super::Place<Self> {
        unreachable!("it has none: nothing is done")
    }

    fn max_instances(&self) -> usize {
        4
    }

    fn retire(self, _idle: usize, _leased: bool, _grace: Option<Duration>) {}

    fn shorten_grace(&self, _grace: Duration) {}

    fn weight(&self) -> Weight {
        *self.1.lock().unwrap()
    }

    fn drained(&self) {}

    fn reap(&self) {}

    fn reclaim(&self, _only_unused: bool) -> Vec<super::super::Lease<Self>> {
        Vec::new()
    }

    fn last_parked_use(&self) -> Option<Instant> {
        None
    }
}

/// What the state asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Admit(RevisionId),
    Grant(RevisionId),
    Refuse,
    Reap(RevisionId),
    Reclaim(RevisionId),
    Retire(RevisionId),
    ShortenGrace(RevisionId),
    GiveWay(u64),
    Room,
}

use Asked::{Admit, GiveWay, Grant, Reap, Reclaim, Retire, Room, ShortenGrace};

pub(super) struct World {
    pub(super) state: RegistryState<Fake>,
    pub(super) now: Instant,
    places: HashMap<RevisionId, PlaceId>,
    builds: HashMap<RevisionId, BuildId>,
    asked: Vec<Asked>,
}

pub(in crate::registry) const LIMITS: Limits = Limits {
    capacity: 4,
    eviction: Eviction::Lru,
    max_instances: 8,
    compiling: 2,
    max_waiting: 8,
    negative_ttl: Duration::from_secs(1),
    park_after: 0,
};

/// Of the first tenant.
pub(in crate::registry) fn revision(number: u64) -> RevisionId {
    of_tenant(1, number)
}

pub(super) fn of_tenant(tenant: u64, number: u64) -> RevisionId {
    RevisionId { evaluator: number, number, tenant: TenantId(tenant) }
}

pub(super) const NOTHING: Weight = Weight { instances: 0, instance: 0, code: 0, shared: 0, code_in_full: 0 };

fn instances(instances: u64) -> Weight {
    Weight { instances, ..NOTHING }
}

fn code(code: u64) -> Weight {
    Weight { code, code_in_full: code, ..NOTHING }
}

impl World {
    pub(super) fn new(limits: Limits) -> Self {
        Self::with_memory(limits, u64::MAX)
    }

    fn with_memory(limits: Limits, memory: u64) -> Self {
        Self {
            state: RegistryState::new(limits, MemoryBudget::new(memory)),
            now: Instant::now(),
            places: HashMap::new(),
            builds: HashMap::new(),
            asked: Vec::new(),
        }
    }

    /// One thing happens, a little after the one before.
    fn step<T>(&mut self, what: impl FnOnce(&mut RegistryState<Fake>, Instant) -> T) -> T {
        self.now += Duration::from_millis(1);
        let happened = what(&mut self.state, self.now);
        self.state.assert_invariants();
        for effect in mem::take(&mut self.state.effects) {
            if let Effect::Reclaim { residents } = effect {
                self.asked.extend(residents.into_iter().map(|(revision, _)| Reclaim(revision)));
                continue;
            }
            self.asked.extend(match effect {
                Effect::Admit { revision, place, .. } => {
                    self.places.insert(revision, place);
                    Some(Admit(revision))
                }
                Effect::Answer { answer, .. } => Some(answer.map_or(Asked::Refuse, |grant| Grant(grant.revision))),
                Effect::Reap { resident } => Some(Reap(resident.0)),
                Effect::Retire { resident, .. } => Some(Retire(resident.0)),
                Effect::ShortenGrace { resident, .. } => Some(ShortenGrace(resident.0)),
                Effect::GiveWay { bytes } => Some(GiveWay(bytes)),
                Effect::Room { .. } => Some(Room),
                Effect::Built | Effect::Left | Effect::Drained { .. } | Effect::Reclaim { .. } => None,
            });
        }
        happened
    }

    /// What was asked for since this was last called.
    fn asked(&mut self) -> Vec<Asked> {
        mem::take(&mut self.asked)
    }

    fn call(&mut self, revision: RevisionId) -> Requested<Fake> {
        let age = self.state.looked_up(revision);
        self.call_as(revision, age)
    }

    fn call_as(&mut self, revision: RevisionId, age: Age) -> Requested<Fake> {
        let requested = self.step(|state, now| state.request(revision, age, now, now, true));
        if let Requested::Start(id, ..) = &requested {
            self.builds.insert(revision, *id);
        }
        requested
    }

    /// A caller comes, and the plugin is fetched for it: the build waits for its place.
    fn wants_place(&mut self, revision: RevisionId) {
        assert!(matches!(self.call(revision), Requested::Start(..)));
        let id = self.builds[&revision];
        let (to, _) = oneshot::channel();
        assert!(self.step(|state, now| state.enqueue(revision, id, Duration::ZERO, to, now)));
    }

    /// A runtime with so many instances, of which so many are leased.
    pub(super) fn live(&mut self, revision: RevisionId, weight: Weight, instances: usize, leased: usize) {
        self.wants_place(revision);
        let (place, fake) = (self.places[&revision], Fake(revision, Arc::new(Mutex::new(weight))));
        assert!(self.step(|state, now| state.publish(revision, place, fake, now)).is_ok());
        self.step(|state, now| state.compiled(revision.tenant, now));
        for _ in 1..instances {
            assert!(matches!(self.call(revision), Requested::Granted(_)));
        }
        for _ in leased..instances {
            self.returned(revision, true);
        }
        self.asked();
    }

    /// Runtimes with one instance each, which is leased.
    fn leased(&mut self, revisions: [RevisionId; 2]) {
        for revision in revisions {
            self.live(revision, NOTHING, 1, 1);
        }
    }

    /// A lease ends; its instance is `back` in the pool, or has gone before.
    pub(super) fn returned(&mut self, revision: RevisionId, back: bool) {
        let returned = Returned { revision, place: self.places[&revision], back, used_again: 0, last_used: None };
        self.step(|state, now| state.leases_returned(&[returned], now));
    }

    /// An instance is gone.
    fn dropped(&mut self, revision: RevisionId) {
        let place = self.places[&revision];
        self.step(|state, now| state.permit_released(revision, place, now));
    }

    /// Its place is given back.
    fn gone(&mut self, revision: RevisionId) {
        let place = self.places[&revision];
        self.step(|state, now| state.place_released(revision, place, now));
    }

    /// Whether its leases may be parked. From then on they count as if they were.
    fn may_park(&mut self, revision: RevisionId) -> bool {
        let place = self.places[&revision];
        self.step(|state, _| state.may_park(revision, place))
    }

    /// Whether one more instance of it may be made that nobody has asked for. From then on it counts as being made.
    fn may_have_spare(&mut self, revision: RevisionId) -> bool {
        let place = self.places[&revision];
        self.step(|state, _| state.reserve_spare(revision, place))
    }

    /// What was parked is back, and these leases end.
    fn reclaimed(&mut self, ended: &[RevisionId]) {
        let returned = |revision: &RevisionId| Returned {
            revision: *revision,
            place: self.places[revision],
            back: true,
            used_again: 0,
            last_used: None,
        };
        let returned: Vec<_> = ended.iter().map(returned).collect();
        self.step(|state, now| {
            state.reclaimed(&[]);
            state.leases_returned(&returned, now);
        });
    }

    fn retire(&mut self, revision: RevisionId, grace: Option<Duration>) {
        self.step(|state, now| state.retire(revision, CloseReason::Closed, grace, &Refused::Retry, now));
    }

    fn quotas(&mut self, bounds: TenantBounds) {
        self.step(|state, now| state.set_quotas(Quotas::new(bounds, []), Weights::default(), now));
    }

    fn want_room(&mut self, bytes: u64) -> RoomId {
        let (to, _) = oneshot::channel();
        self.step(|state, now| state.want_room(TenantId(1), bytes, to, now))
    }

    fn leave_room(&mut self, id: RoomId) {
        self.step(|state, now| state.leave_room(id, now));
    }

    /// The registry looks at everything again.
    fn weigh(&mut self) {
        self.step(RegistryState::weigh);
    }
}

fn bounds() -> TenantBounds {
    TenantBounds::default()
}

const A: u64 = 1;
const B: u64 = 2;
const C: u64 = 3;
