//! Room in bytes: what is dropped for whom, and when.

use super::*;

#[test]
fn room_that_is_on_its_way_is_asked_for_once_and_nothing_is_lost_for_what_cannot_be_had() {
    let mut world = World::with_memory(LIMITS, 640);
    let a = revision(A);
    world.live(revision(B), NOTHING, 1, 0);
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
    assert_eq!(world.asked(), [Reap(a), Reap(a), Retire(a)], "what weighs nothing stays");
}

#[test]
fn beyond_the_bound_as_much_is_dropped_as_leads_below_it_though_it_is_too_little_for_who_waits() {
    // A little below: a 64th of the bound.
    for (held, dropped) in [(640, 0), (660, 3)] {
        let mut world = World::with_memory(LIMITS, 640);
        let a = revision(A);
        world.live(a, instances(40), 4, 0);
        let _held = world.state.memory().charge(MemoryKind::Code, held);
        world.want_room(320);
        assert_eq!(world.asked(), vec![Reap(a); dropped]);
        world.weigh();
        assert_eq!(world.asked(), [], "all are on their way");
    }
}

#[test]
fn beyond_the_bound_a_runtime_goes_only_if_that_leads_below_it() {
    for (held, goes) in [(20, true), (19, false)] {
        let mut world = World::with_memory(LIMITS, 640);
        let a = revision(A);
        world.live(a, code(held), 1, 0);
        let _held = world.state.memory().charge(MemoryKind::Code, 660);
        world.want_room(320);
        assert_eq!(world.asked().contains(&Retire(a)), goes, "{held}");
    }
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
    let may_park = |world: &mut World| {
        let may = world.may_park(a);
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
fn why_there_is_no_room_is_the_tenants_own_bound_only_if_that_is_what_is_missing() {
    use crate::memory::NoRoom;

    let mut world = World::with_memory(LIMITS, 640);
    let tenant = TenantId(1);
    assert_eq!(world.state.no_room(tenant, 1_000), NoRoom::Pool);
    world.quotas(TenantBounds { memory: Some(100), ..bounds() });
    assert_eq!(world.state.no_room(tenant, 100), NoRoom::Pool);
    assert_eq!(world.state.no_room(tenant, 101), NoRoom::Tenant(100));
}

#[tokio::test(start_paused = true)]
async fn whoever_no_longer_waits_for_room_has_left_the_queue() {
    use super::super::super::Registry;
    use crate::{background::Background, memory::MakeRoom, metrics::Metrics};

    let budget = MemoryBudget::new(100);
    let registry: Registry<Fake> = Registry::new(LIMITS, budget.clone(), Metrics::new(), Background::default());
    let waiting = || registry.inner.lock().room_queue.len();
    let _held = budget.charge(MemoryKind::Code, 100);
    let mut left = registry.inner.clone().make_room(TenantId(1), 1);
    assert!(futures_util::poll!(left.as_mut()).is_pending());
    assert_eq!(waiting(), 1);
    drop(left);
    assert_eq!(waiting(), 0);
    assert!(registry.inner.clone().make_room(TenantId(1), 1).await.is_err(), "none comes within its time");
    assert_eq!(waiting(), 0);
}
