//! Tenants' bounds: what each may have, and what goes for it.

use super::*;

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
fn a_spare_that_is_ready_after_its_tenants_bound_was_lowered_goes_at_the_next_look() {
    let mut world = World::new(LIMITS);
    let a = revision(A);
    world.live(a, NOTHING, 1, 1);
    let place = world.places[&a];
    assert!(world.may_have_spare(a));
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
fn an_instance_that_comes_back_goes_to_the_oldest_caller_of_a_tenant_at_its_bound() {
    let mut world = World::new(LIMITS);
    world.quotas(TenantBounds { instances: Some(2), ..bounds() });
    let (a, b) = (revision(A), revision(B));
    world.leased([a, b]);
    for revision in [b, a] {
        assert!(matches!(world.call(revision), Requested::Queued(_)));
    }
    world.returned(a, true);
    assert_eq!(world.asked(), [Reap(a)]);
    world.dropped(a);
    assert_eq!(world.asked(), [Grant(b)]);
    world.returned(b, true);
    assert_eq!(world.asked(), [Reap(b)]);
    world.dropped(b);
    assert_eq!(world.asked(), [Grant(a)]);
}

#[test]
fn an_instance_above_a_bound_that_was_lowered_goes_when_its_lease_ends() {
    let mut world = World::new(LIMITS);
    let a = revision(A);
    world.live(a, NOTHING, 3, 3);
    world.quotas(TenantBounds { instances: Some(2), ..bounds() });
    assert_eq!(world.asked(), []);
    world.returned(a, true);
    assert_eq!(world.asked(), [Reap(a)]);
    world.returned(a, true);
    assert_eq!(world.asked(), []);
}

#[test]
fn what_is_parked_is_reclaimed_when_a_bound_is_lowered_below_what_its_tenant_has() {
    for (bound, reclaimed) in [(3, false), (2, false), (1, true)] {
        let mut world = World::new(LIMITS);
        let a = revision(A);
        world.live(a, NOTHING, 2, 2);
        assert!(world.may_park(a));
        world.quotas(TenantBounds { instances: Some(bound), ..bounds() });
        assert_eq!(world.asked().contains(&Reclaim(a)), reclaimed, "{bound}");
    }
}

#[test]
fn a_spare_is_not_made_of_the_permit_that_a_build_of_its_tenant_will_need() {
    for (bound, may) in [(2, false), (3, true)] {
        let mut world = World::new(Limits { compiling: 1, ..LIMITS });
        world.quotas(TenantBounds { instances: Some(bound), ..bounds() });
        let a = revision(A);
        world.live(a, NOTHING, 1, 1);
        // Another tenant has the slot in which the build could compile.
        world.wants_place(of_tenant(2, 9));
        world.wants_place(revision(B));
        assert_eq!(world.may_have_spare(a), may, "{bound}");
    }
}

#[test]
fn no_instance_goes_for_a_build_that_its_tenant_may_not_compile_yet() {
    let mut world = World::new(LIMITS);
    world.quotas(TenantBounds { instances: Some(2), build_concurrency: Some(1), ..bounds() });
    let (a, b, c) = (revision(A), revision(B), revision(C));
    world.live(a, NOTHING, 1, 0);
    world.wants_place(b);
    world.wants_place(c);
    assert_eq!(world.asked(), [Admit(b)]);
    world.step(|state, now| state.compiled(b.tenant, now));
    assert_eq!(world.asked(), [Reap(a)]);
    world.dropped(a);
    assert_eq!(world.asked(), [Admit(c)]);
}

#[test]
fn a_runtime_above_a_bound_that_was_lowered_goes_at_the_next_look_after_its_last_lease() {
    let mut world = World::new(LIMITS);
    let (a, b) = (revision(A), revision(B));
    world.leased([a, b]);
    world.quotas(TenantBounds { runtimes: Some(1), ..bounds() });
    world.weigh();
    assert_eq!(world.asked(), []);
    world.returned(a, true);
    world.weigh();
    assert_eq!(world.asked(), [Retire(a)]);
    world.weigh();
    assert_eq!(world.asked(), []);
}

#[test]
fn an_instance_goes_straight_to_the_oldest_caller_of_its_own_runtime() {
    let mut world = World::new(LIMITS);
    world.quotas(TenantBounds { instances: Some(2), ..bounds() });
    let (a, b) = (revision(A), revision(B));
    world.leased([a, b]);
    assert!(matches!(world.call(a), Requested::Queued(_)));
    world.returned(a, true);
    assert_eq!(world.asked(), [Grant(a)]);
}

#[test]
fn a_tenant_with_all_its_runtimes_and_instances_gives_up_an_unused_one_for_its_build() {
    let mut world = World::new(LIMITS);
    world.quotas(TenantBounds { runtimes: Some(2), instances: Some(2), ..bounds() });
    let (a, b, c) = (revision(A), revision(B), revision(C));
    world.live(a, NOTHING, 1, 0);
    world.live(b, NOTHING, 1, 1);
    world.wants_place(c);
    assert_eq!(world.asked(), [Retire(a)]);
    world.dropped(a);
    assert_eq!(world.asked(), []);
    world.gone(a);
    assert_eq!(world.asked(), [Admit(c)]);
}

#[test]
fn a_tenant_parks_what_it_may_have_and_nothing_while_it_has_too_much() {
    let a = revision(A);
    let may_park = |instances, memory, held| {
        let mut world = World::new(LIMITS);
        world.live(a, NOTHING, 2, 2);
        let _held = world.state.memory().give_room(a.tenant, held);
        world.quotas(TenantBounds { instances: Some(instances), memory: Some(memory), ..bounds() });
        world.may_park(a)
    };
    assert!(may_park(2, 100, 99));
    assert!(may_park(3, 100, 99));
    assert!(!may_park(1, 100, 99), "too many instances");
    assert!(!may_park(2, 100, 100), "too many bytes");
}

#[test]
fn what_a_closing_runtime_gives_back_is_counted_on_by_its_own_tenant() {
    let mut world = World::new(LIMITS);
    world.quotas(TenantBounds { instances: Some(3), ..bounds() });
    let (a, b, c) = (revision(A), revision(B), revision(C));
    world.live(a, NOTHING, 1, 0);
    world.live(b, NOTHING, 1, 0);
    world.live(c, NOTHING, 1, 1);
    world.retire(a, None);
    assert_eq!(world.asked(), [Retire(a)]);
    assert!(matches!(world.call(c), Requested::Queued(_)));
    assert_eq!(world.asked(), []);
    world.dropped(a);
    assert_eq!(world.asked(), [Grant(c)]);
}

#[test]
fn a_tenant_none_of_whose_callers_may_wait_is_refused_if_no_place_is_in_sight() {
    let mut world = World::new(Limits { capacity: 1, ..LIMITS });
    world.quotas(TenantBounds { max_waiting: Some(0), ..bounds() });
    assert!(matches!(world.call(revision(A)), Requested::Start(..)));
    let mut world = World::new(Limits { capacity: 1, ..LIMITS });
    world.live(of_tenant(2, 9), NOTHING, 1, 1);
    world.quotas(TenantBounds { max_waiting: Some(0), ..bounds() });
    assert!(matches!(world.call(revision(A)), Requested::Refused(Error::QuotaExceeded { .. })));
}
