//! The state by itself. What it asks for is noted and not done, so that a test sees what it decides in between: an instance
//! or a runtime that goes is gone when the test says so.

use std::{collections::HashMap, mem, sync::Mutex};

use super::*;
use crate::{
    config::{Eviction, TenantBounds},
    memory::{MemoryKind, Weight},
};

/// A runtime with nothing in it but its weight.
#[derive(Clone)]
pub(super) struct Fake(RevisionId, Arc<Mutex<Weight>>);

impl Resident for Fake {
    fn place(&self) -> &super::super::Place<Self> {
        unreachable!("it has none: nothing is done")
    }

    fn max_instances(&self) -> usize {
        8
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
    Retire(RevisionId),
    ShortenGrace(RevisionId),
    GiveWay(u64),
    Room,
}

use Asked::{Admit, GiveWay, Grant, Reap, Retire, Room, ShortenGrace};

pub(super) struct World {
    pub(super) state: RegistryState<Fake>,
    pub(super) now: Instant,
    places: HashMap<RevisionId, PlaceId>,
    builds: HashMap<RevisionId, BuildId>,
    asked: Vec<Asked>,
}

pub(super) const LIMITS: Limits = Limits {
    capacity: 4,
    eviction: Eviction::Lru,
    max_instances: 8,
    compiling: 2,
    max_waiting: 8,
    negative_ttl: Duration::from_secs(1),
    park_after: 0,
};

/// Of the first tenant.
pub(super) fn revision(number: u64) -> RevisionId {
    of_tenant(1, number)
}

pub(super) fn of_tenant(tenant: u64, number: u64) -> RevisionId {
    RevisionId { evaluator: number, number, tenant: TenantId(tenant) }
}

const NOTHING: Weight = Weight { instances: 0, instance: 0, code: 0, shared: 0, code_in_full: 0 };

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
    fn live(&mut self, revision: RevisionId, weight: Weight, instances: usize, leased: usize) {
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

    /// A lease ends; its instance is `back` in the pool, or has gone before.
    fn returned(&mut self, revision: RevisionId, back: bool) {
        let returned = Returned { revision, place: self.places[&revision], back, used_again: 0, last_used: None };
        self.step(|state, now| state.leases_returned(&[returned], now));
    }

    /// An instance is gone.
    fn dropped(&mut self, revision: RevisionId) {
        let place = self.places[&revision];
        self.step(|state, now| state.permit_released(revision, place, now));
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

#[test]
fn room_that_is_on_its_way_is_asked_for_once_and_nothing_is_lost_for_what_cannot_be_had() {
    let mut world = World::with_memory(LIMITS, 640);
    let a = revision(A);
    world.live(a, instances(300), 3, 0);
    let _held = world.state.memory().charge(MemoryKind::Code, 640);
    let first = world.want_room(50);
    assert_eq!(world.asked(), [Reap(a)]);
    world.weigh();
    assert_eq!(world.asked(), []);
    world.leave_room(first);
    // Of its three instances, one is on its way already.
    let too_much = world.want_room(301);
    assert_eq!(world.asked(), []);
    world.leave_room(too_much);
    world.want_room(300);
    assert_eq!(world.asked(), [Reap(a), Reap(a), Retire(a)]);
}

#[test]
fn beyond_the_bound_as_much_is_dropped_as_leads_below_it_though_it_is_too_little_for_who_waits() {
    let mut world = World::with_memory(LIMITS, 640);
    let a = revision(A);
    world.live(a, instances(45), 3, 0);
    let _held = world.state.memory().charge(MemoryKind::Code, 660);
    world.want_room(320);
    assert_eq!(world.asked(), [Reap(a), Reap(a)]);
}

#[test]
fn what_is_kept_unused_and_could_not_be_dropped_is_not_asked_for_again_until_something_changes() {
    let mut world = World::with_memory(LIMITS, 640);
    let (_held, unused) = {
        let memory = world.state.memory();
        (memory.charge(MemoryKind::Code, 540), memory.charge(MemoryKind::Unused, 100))
    };
    world.want_room(50);
    assert_eq!(world.asked(), [GiveWay(60)]);
    world.step(|state, now| state.gave_way(60, 0, now));
    assert_eq!(world.asked(), []);
    world.weigh();
    assert_eq!(world.asked(), [GiveWay(60)]);
    drop(unused);
    world.step(|state, now| state.gave_way(60, 100, now));
    assert_eq!(world.asked(), [Room]);
}

#[test]
fn nothing_is_parked_while_too_much_is_held_or_somebody_waits_for_room() {
    let mut world = World::with_memory(LIMITS, 640);
    let a = revision(A);
    world.live(a, NOTHING, 1, 1);
    let place = world.places[&a];
    let mut may_park = |world: &mut World| {
        let may = world.state.may_park(a, place);
        world.state.parking.clear();
        may
    };
    assert!(may_park(&mut world));
    let held = world.state.memory().charge(MemoryKind::Code, 641);
    assert!(!may_park(&mut world), "too much is held");
    drop(held);
    let _held = world.state.memory().charge(MemoryKind::Code, 640);
    assert!(may_park(&mut world));
    let room = world.want_room(1);
    assert!(!may_park(&mut world), "somebody waits for room");
    world.leave_room(room);
    assert!(may_park(&mut world));
}

#[test]
fn a_tenant_at_its_bound_loses_one_idle_instance_for_one_caller() {
    let mut world = World::new(LIMITS);
    world.quotas(TenantBounds { instances: Some(3), ..bounds() });
    let (a, b) = (revision(A), revision(B));
    world.live(a, NOTHING, 2, 0);
    world.live(b, NOTHING, 1, 1);
    assert!(matches!(world.call(b), Requested::Queued(_)));
    assert_eq!(world.asked(), [Reap(a)]);
    world.weigh();
    assert_eq!(world.asked(), []);
    world.dropped(a);
    assert_eq!(world.asked(), [Grant(b)]);
}

#[test]
fn of_a_tenant_that_holds_too_much_only_what_frees_something_is_closed_and_no_more_than_is_missing() {
    let mut world = World::new(LIMITS);
    world.quotas(TenantBounds { memory: Some(1_000), ..bounds() });
    let (a, b, c) = (revision(A), revision(B), revision(C));
    world.live(a, NOTHING, 1, 0);
    world.live(b, code(60), 1, 0);
    world.live(c, code(60), 1, 0);
    let _held = world.state.memory().give_room(TenantId(1), 1_000);
    let first = world.want_room(40);
    assert_eq!(world.asked(), [Retire(b)], "the one that was used longest ago holds nothing");
    world.weigh();
    assert_eq!(world.asked(), [], "it is closing");
    world.leave_room(first);
    let too_much = world.want_room(121);
    assert_eq!(world.asked(), [], "the other is not enough");
    world.leave_room(too_much);
    world.want_room(120);
    assert_eq!(world.asked(), [Retire(c)], "and now just enough");
}

#[test]
fn of_a_tenant_that_holds_too_much_only_as_many_instances_go_as_are_missing() {
    let mut world = World::new(LIMITS);
    world.quotas(TenantBounds { memory: Some(1_000), ..bounds() });
    let a = revision(A);
    world.live(a, instances(40), 4, 0);
    let _held = world.state.memory().give_room(TenantId(1), 1_000);
    world.want_room(20);
    assert_eq!(world.asked(), [Reap(a), Reap(a)]);
    world.weigh();
    assert_eq!(world.asked(), []);
}

#[test]
fn a_spare_that_is_ready_after_its_tenants_bound_was_lowered_goes_at_the_next_look() {
    let mut world = World::new(LIMITS);
    let a = revision(A);
    world.live(a, NOTHING, 1, 1);
    let place = world.places[&a];
    assert!(world.step(|state, _| state.reserve_spare(a, place)));
    world.quotas(TenantBounds { instances: Some(1), ..bounds() });
    world.step(|state, now| state.spare_ended(a, place, true, now));
    assert_eq!(world.asked(), []);
    world.weigh();
    assert_eq!(world.asked(), [Reap(a)]);
}

#[test]
fn where_nobody_may_wait_a_tenant_within_its_bounds_is_refused_if_no_place_is_in_sight() {
    let mut world = World::new(Limits { capacity: 1, max_waiting: 0, ..LIMITS });
    world.quotas(TenantBounds { runtimes: Some(2), ..bounds() });
    world.live(revision(A), NOTHING, 1, 1);
    assert!(matches!(world.call(revision(B)), Requested::Refused(Error::Saturated { .. })));
    world.returned(revision(A), true);
    assert!(matches!(world.call(revision(B)), Requested::Start(..)), "its place is in sight");
}

#[test]
fn a_failure_is_forgotten_when_its_time_is_over_and_not_before() {
    let mut world = World::new(LIMITS);
    let a = revision(A);
    world.wants_place(a);
    let id = world.builds[&a];
    world.step(|state, now| state.build_failed(a, id, &Error::invalid_plugin("told to fail"), now));
    let failed = world.now;
    let remembered = |world: &mut World, after| world.state.remembered(a, failed + after).is_some();
    assert!(remembered(&mut world, LIMITS.negative_ttl - Duration::from_nanos(1)));
    assert!(!remembered(&mut world, LIMITS.negative_ttl));
}

#[test]
fn a_permit_goes_to_the_older_of_a_caller_and_a_build() {
    for caller_first in [true, false] {
        let mut world = World::new(Limits { max_instances: 1, ..LIMITS });
        let (a, b) = (revision(A), revision(B));
        world.live(a, NOTHING, 1, 1);
        let ages = [world.state.looked_up(a), world.state.looked_up(b)];
        let (of_a, of_b) = if caller_first { (ages[0], ages[1]) } else { (ages[1], ages[0]) };
        assert!(matches!(world.call_as(a, of_a), Requested::Queued(_)));
        assert!(matches!(world.call_as(b, of_b), Requested::Start(..)));
        let (to, _) = oneshot::channel();
        let id = world.builds[&b];
        world.step(|state, now| state.enqueue(b, id, Duration::ZERO, to, now));
        assert_eq!(world.asked(), []);
        world.dropped(a);
        assert_eq!(world.asked(), [if caller_first { Grant(a) } else { Admit(b) }]);
    }
}

#[test]
fn a_place_that_comes_back_by_itself_costs_nobody_a_runtime() {
    let mut world = World::new(Limits { capacity: 2, ..LIMITS });
    let (a, b, c) = (revision(A), revision(B), revision(C));
    world.live(a, NOTHING, 1, 1);
    world.live(b, NOTHING, 1, 0);
    world.retire(a, None);
    world.dropped(a);
    world.returned(a, false);
    world.asked();
    world.wants_place(c);
    assert_eq!(world.asked(), []);
    let place = world.places[&a];
    world.step(|state, now| state.place_released(a, place, now));
    assert_eq!(world.asked(), [Admit(c)]);
}

#[test]
fn a_build_is_as_old_as_the_oldest_caller_that_joins_it() {
    let mut world = World::new(Limits { capacity: 1, ..LIMITS });
    let (a, b, c) = (revision(A), revision(B), revision(C));
    world.live(a, NOTHING, 1, 1);
    let elder = world.state.looked_up(c);
    world.wants_place(b);
    world.wants_place(c);
    let younger = world.call(c);
    assert!(matches!(younger, Requested::Joined(_)));
    assert!(matches!(world.call_as(c, elder), Requested::Joined(_)));
    world.retire(a, None);
    world.dropped(a);
    world.returned(a, false);
    world.asked();
    let place = world.places[&a];
    world.step(|state, now| state.place_released(a, place, now));
    assert_eq!(world.asked(), [Admit(c)]);
}

#[test]
fn whoever_waits_for_a_fetch_counts_as_one_that_waits() {
    let mut world = World::new(Limits { capacity: 1, max_waiting: 1, ..LIMITS });
    world.live(revision(A), NOTHING, 1, 1);
    assert!(matches!(world.call(revision(B)), Requested::Start(..)));
    assert!(matches!(world.call(revision(C)), Requested::Refused(Error::Saturated { .. })));
}

#[test]
fn a_caller_gets_a_free_permit_at_once_unless_parked_instances_are_coming_back() {
    let mut world = World::new(LIMITS);
    let a = revision(A);
    world.live(a, NOTHING, 1, 1);
    let granted = world.call(a);
    assert!(matches!(granted, Requested::Granted(super::Grant { idle: false, .. })));
    let place = world.places[&a];
    assert!(world.state.may_park(a, place));
    world.step(|state, _| state.reclaim_all());
    assert!(matches!(world.call(a), Requested::Queued(_)));
    world.step(|state, now| {
        state.reclaimed(&[]);
        state.leases_returned(&[], now);
    });
    assert_eq!(world.asked(), [Grant(a)]);
}

#[test]
fn a_grace_is_shortened_for_those_that_drain_under_the_same_revision() {
    let mut world = World::new(LIMITS);
    let (a, b) = (revision(A), revision(B));
    for revision in [a, b] {
        world.live(revision, NOTHING, 1, 1);
    }
    world.retire(a, None);
    world.retire(b, None);
    assert_eq!(world.asked(), [Retire(a), Retire(b)]);
    world.retire(a, Some(Duration::ZERO));
    assert_eq!(world.asked(), [ShortenGrace(a)]);
}
