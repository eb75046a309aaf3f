//! Places, permits, queues and what is remembered.

use super::*;

#[test]
fn a_failure_is_forgotten_when_its_time_is_over_and_not_before() {
    let mut world = World::new(LIMITS);
    let a = revision(A);
    world.wants_place(a);
    let id = world.builds[&a];
    world.step(|state, now| state.build_failed(a, id, &Error::invalid_plugin("told to fail"), now));
    let failed = world.now;
    let remembered = |world: &mut World, after| world.state.remembered(a, failed + after).is_some();
    assert!(remembered(&mut world, LIMITS.negative_ttl.saturating_sub(Duration::from_nanos(1))));
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
    world.gone(a);
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
    world.gone(a);
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
    assert!(matches!(granted, Requested::Granted(super::super::Grant { idle: false, .. })));
    assert!(world.may_park(a));
    world.step(|state, _| state.reclaim_all());
    assert!(matches!(world.call(a), Requested::Queued(_)));
    world.reclaimed(&[]);
    assert_eq!(world.asked(), [Reclaim(a), Grant(a)]);
}

#[test]
fn a_grace_is_shortened_for_those_that_drain_under_the_same_revision() {
    let mut world = World::new(LIMITS);
    let (a, b) = (revision(A), revision(B));
    world.leased([a, b]);
    world.retire(a, None);
    world.retire(b, None);
    assert_eq!(world.asked(), [Retire(a), Retire(b)]);
    world.retire(a, Some(Duration::ZERO));
    assert_eq!(world.asked(), [ShortenGrace(a)]);
}

#[test]
fn a_caller_has_parked_instances_reclaimed_only_if_its_runtime_has_no_idle_one() {
    let mut world = World::new(LIMITS);
    let a = revision(A);
    world.live(a, NOTHING, 2, 1);
    assert!(world.may_park(a));
    assert!(matches!(world.call(a), Requested::Granted(super::super::Grant { idle: true, .. })));
    assert_eq!(world.asked(), []);
    assert!(matches!(world.call(a), Requested::Again));
    assert_eq!(world.asked(), [Reclaim(a)]);
}

#[test]
fn a_runtime_is_hot_once_a_call_comes_within_ten_milliseconds_of_the_one_before() {
    let mut world = World::new(LIMITS);
    let a = revision(A);
    world.live(a, NOTHING, 1, 0);
    for (pause, hot) in [(10, false), (9, true), (1, true), (10, false)] {
        // The call itself is a step.
        world.now += Duration::from_millis(pause - 1);
        let Requested::Granted(grant) = world.call(a) else { panic!("it has an idle instance") };
        assert_eq!(grant.hot, hot, "{pause}");
        world.returned(a, true);
    }
}

#[test]
fn a_lease_is_not_parked_while_callers_of_its_runtime_wait() {
    let mut world = World::new(LIMITS);
    let a = revision(A);
    world.live(a, NOTHING, 4, 4);
    assert!(matches!(world.call(a), Requested::Queued(_)), "it has all that it may");
    assert!(!world.may_park(a));
    world.retire(a, None);
    assert_eq!(world.asked(), [Retire(a), Asked::Refuse]);
    assert_eq!(world.state.counts().waiting_instance, 0);
}

#[test]
fn no_more_builds_are_admitted_than_can_compile() {
    let mut world = World::new(Limits { compiling: 1, ..LIMITS });
    let (a, b) = (revision(A), revision(B));
    world.wants_place(a);
    world.wants_place(b);
    assert_eq!(world.asked(), [Admit(a)]);
    // A build that waits for a slot waits for its build, and for no place.
    let counts = world.state.counts();
    assert_eq!((counts.waiting_capacity, counts.waiting_build), (0, 2));
    world.step(|state, now| state.compiled(a.tenant, now));
    assert_eq!(world.asked(), [Admit(b)]);
}

#[test]
fn a_caller_whose_build_could_compile_is_counted_as_one_that_waits_for_a_place() {
    let mut world = World::new(Limits { capacity: 1, ..LIMITS });
    world.live(revision(A), NOTHING, 1, 1);
    world.wants_place(revision(B));
    let counts = world.state.counts();
    assert_eq!((counts.waiting_capacity, counts.waiting_build), (1, 0));
}

#[test]
fn a_reservation_ends_with_its_runtime_and_no_other_does() {
    let mut world = World::new(Limits { capacity: 2, ..LIMITS });
    let (a, b) = (revision(A), revision(B));
    world.leased([a, b]);
    world.wants_place(revision(C));
    world.wants_place(revision(4));
    let reserved = |world: &World| world.state.reserved.iter().map(|(revision, _)| *revision).collect::<Vec<_>>();
    assert_eq!(reserved(&world), [a, b]);
    world.retire(a, None);
    assert_eq!(reserved(&world), [b]);
}

#[test]
fn the_sweep_forgets_failures_whose_time_is_over() {
    let mut world = World::new(LIMITS);
    let a = revision(A);
    world.wants_place(a);
    let id = world.builds[&a];
    world.step(|state, now| state.build_failed(a, id, &Error::invalid_plugin("told to fail"), now));
    let failed = world.now;
    for (after, left) in [(Duration::ZERO, 1), (LIMITS.negative_ttl, 0)] {
        world.state.sweep(failed + after, |_| Duration::MAX);
        assert_eq!(world.state.failures.len(), left);
    }
}

#[test]
fn the_sweep_closes_what_was_unused_for_its_time_and_nothing_else() {
    let mut world = World::new(LIMITS);
    let (a, b) = (revision(A), revision(B));
    world.live(a, NOTHING, 1, 0);
    let used = world.now;
    world.live(b, NOTHING, 1, 1);
    let ttl = Duration::from_secs(1);
    let sweep = |world: &mut World, after: Duration| {
        world.step(|state, _| state.sweep(used + after, |_| ttl));
        world.asked()
    };
    assert_eq!(sweep(&mut world, ttl.saturating_sub(Duration::from_nanos(1))), []);
    assert_eq!(sweep(&mut world, ttl), [Retire(a)]);
    assert_eq!(sweep(&mut world, 9 * ttl), [], "the other is leased");
}

#[test]
fn the_end_of_a_lease_is_a_use_for_the_reuse_distances_only_if_it_was_parked_in_between() {
    for (used_again, within_one) in [(0, 1), (1, 0)] {
        let mut world = World::new(LIMITS);
        let (a, b) = (revision(A), revision(B));
        world.leased([a, b]);
        world.state.take_reuse();
        let place = world.places[&a];
        let returned = Returned { revision: a, place, back: true, used_again, last_used: None };
        world.step(|state, now| state.leases_returned(&[returned], now));
        world.call(b);
        assert_eq!(world.state.take_reuse()[..2], [within_one, 1]);
    }
}

#[test]
fn a_spare_is_made_only_of_what_nobody_wants() {
    let (a, b, c) = (revision(A), revision(B), revision(C));
    let may = |limits: Limits, memory, change: &dyn Fn(&mut World)| {
        let mut world = World::with_memory(limits, memory);
        world.live(a, Weight { instance: 10, ..NOTHING }, 1, 1);
        change(&mut world);
        world.may_have_spare(a)
    };
    assert!(may(LIMITS, u64::MAX, &|_| {}));
    assert!(!may(Limits { max_instances: 1, ..LIMITS }, u64::MAX, &|_| {}), "there is no permit");
    assert!(!may(LIMITS, u64::MAX, &|world| world.returned(a, true)), "it has an idle instance");
    assert!(may(LIMITS, u64::MAX, &|world| (1..3).for_each(|_| drop(world.call(a)))));
    assert!(!may(LIMITS, u64::MAX, &|world| (1..4).for_each(|_| drop(world.call(a)))), "it has all that it may");
    assert!(may(LIMITS, 10, &|_| {}));
    assert!(!may(LIMITS, 9, &|_| {}), "there is no room for it");
    let mut world = World::new(Limits { capacity: 2, ..LIMITS });
    world.leased([b, a]);
    // The other is reserved for it.
    world.wants_place(c);
    assert!(!world.may_have_spare(a), "a build waits for a place");
    let mut world = World::new(LIMITS);
    world.live(a, NOTHING, 1, 1);
    assert!(world.may_have_spare(a));
    assert!(!world.may_have_spare(a), "one is being made");
}

#[test]
fn a_builder_of_a_build_that_was_dropped_does_not_publish_in_place_of_the_next() {
    let mut world = World::new(LIMITS);
    let a = revision(A);
    let fake = || Fake(a, Arc::new(Mutex::new(NOTHING)));
    world.wants_place(a);
    let (first, first_build) = (world.places[&a], world.builds[&a]);
    world.retire(a, None);
    world.wants_place(a);
    let second = world.places[&a];
    assert!(world.step(|state, now| state.renounce(a, first_build, now)), "it is out already");
    assert!(world.step(|state, now| state.publish(a, first, fake(), now)).is_err());
    assert!(world.step(|state, now| state.publish(a, second, fake(), now)).is_ok());
}

#[test]
fn nothing_is_dropped_for_a_permit_before_what_is_parked_is_known() {
    // All that the pool may have, or all that the tenant may.
    for (max_instances, instances) in [(3, None), (LIMITS.max_instances, Some(3))] {
        let mut world = World::new(Limits { max_instances, ..LIMITS });
        world.quotas(TenantBounds { instances, ..bounds() });
        let (a, b, c) = (revision(A), revision(B), revision(C));
        world.live(a, NOTHING, 1, 0);
        world.leased([b, c]);
        assert!(world.may_park(b));
        assert!(matches!(world.call(c), Requested::Queued(_)));
        assert_eq!(world.asked(), [Reclaim(b)]);
        world.reclaimed(&[b]);
        assert_eq!(world.asked(), [Reap(a)]);
    }
}

#[test]
fn a_build_for_which_there_is_no_place_takes_no_callers_instance() {
    let mut world = World::new(Limits { capacity: 2, max_instances: 2, ..LIMITS });
    let (a, b) = (revision(A), revision(B));
    world.leased([a, b]);
    // It is to get the first one's place.
    world.wants_place(revision(C));
    assert!(matches!(world.call(b), Requested::Queued(_)));
    world.returned(b, true);
    assert_eq!(world.asked(), [Grant(b)]);
}

#[test]
fn what_is_parked_stays_so_while_a_build_needs_nothing_of_it() {
    let mut world = World::new(LIMITS);
    world.live(revision(A), NOTHING, 1, 1);
    assert!(world.may_park(revision(A)));
    world.wants_place(revision(B));
    assert_eq!(world.asked(), [Admit(revision(B))]);
}

#[test]
fn nothing_is_reclaimed_for_who_is_refused_for_a_failure_that_is_remembered() {
    let mut world = World::new(Limits { capacity: 1, max_waiting: 0, ..LIMITS });
    let (a, b) = (revision(A), revision(B));
    world.wants_place(b);
    let id = world.builds[&b];
    world.step(|state, now| state.build_failed(b, id, &Error::invalid_plugin("told to fail"), now));
    world.dropped(b);
    world.gone(b);
    world.step(|state, now| state.compiled(b.tenant, now));
    world.live(a, NOTHING, 1, 1);
    assert!(world.may_park(a));
    assert!(matches!(world.call(b), Requested::Refused(Error::InvalidPlugin { .. })));
    assert_eq!(world.asked(), []);
    assert!(matches!(world.call(revision(C)), Requested::Again), "its place may be free");
    assert_eq!(world.asked(), [Reclaim(a)]);
}

#[test]
fn an_instance_that_comes_back_to_a_runtime_on_its_way_out_is_dropped() {
    let mut world = World::new(LIMITS);
    let a = revision(A);
    world.live(a, NOTHING, 2, 2);
    world.retire(a, None);
    world.asked();
    for _ in 0..2 {
        world.returned(a, true);
        assert_eq!(world.asked(), [Reap(a)]);
    }
    assert_eq!((world.state.reaping, world.state.closing), (2, 1));
    world.dropped(a);
    world.dropped(a);
    world.gone(a);
    assert_eq!((world.state.reaping, world.state.closing), (0, 0));
}

#[test]
fn a_runtime_is_at_rest_while_it_serves_and_none_of_its_leases_is_out() {
    let mut world = World::new(LIMITS);
    let a = revision(A);
    world.live(a, NOTHING, 1, 1);
    let place = world.places[&a];
    assert!(!world.state.is_at_rest(a, place));
    world.returned(a, true);
    assert!(world.state.is_at_rest(a, place) && !world.state.is_at_rest(a, PlaceId(u64::MAX)));
    world.retire(a, None);
    assert!(!world.state.is_at_rest(a, place));
}

#[test]
fn who_cannot_wait_for_what_is_being_reclaimed_takes_a_free_permit() {
    let a = revision(A);
    let requested = |limits, may_wait| {
        let mut world = World::new(limits);
        world.live(a, NOTHING, 1, 1);
        assert!(world.may_park(a));
        world.step(|state, _| state.reclaim_all());
        let age = world.state.looked_up(a);
        world.step(|state, now| state.request(a, age, now, now, may_wait))
    };
    assert!(matches!(requested(LIMITS, false), Requested::Granted(_)), "from inside a host function");
    assert!(matches!(requested(Limits { max_waiting: 0, ..LIMITS }, true), Requested::Granted(_)), "the queue is full");
    assert!(matches!(requested(LIMITS, true), Requested::Queued(_)));
}

#[test]
fn a_place_that_is_released_and_forgotten_is_waited_for_by_nobody() {
    let mut world = World::new(LIMITS);
    let a = revision(A);
    world.live(a, NOTHING, 1, 0);
    let place = world.places[&a];
    let held = |world: &World| world.state.gone(|revision| revision == a).len();
    assert_eq!((held(&world), world.state.gone(|revision| revision != a).len()), (1, 0));
    world.retire(a, None);
    world.dropped(a);
    world.gone(a);
    world.state.forget(place);
    assert_eq!(held(&world), 0);
}
