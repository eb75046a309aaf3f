//! What a tenant at its bound leaves alone: what others could have, and what it could still have itself.

use std::time::Duration;

use evalpool::{
    Bound, Evaluator, EvaluatorPool, PoolBuilder, RuntimeState,
    config::{TenantBounds, TenantSettings},
};
use tokio::time::{sleep, timeout};

use super::{
    LONG, SOON, assert_exceeded, at_once, bounds, call, evaluator, for_acme, pool, pool_with, start, state, wait_behind,
};
use crate::support::spy::{Act, Spy};

#[tokio::test(start_paused = true)]
async fn builds_that_wait_for_their_own_tenant_are_in_sight_of_nobody_elses_place() {
    let spy = Spy::default();
    let most = |builder: PoolBuilder| builder.capacity(3).max_instances(16).max_waiting(3).build_concurrency(4);
    let pool = pool_with(&spy, for_acme(|acme| acme.runtimes = Some(1)), most);
    let [a, b, c, d] = ["acme/a", "acme/b", "acme/c", "acme/d"].map(|name| evaluator(&pool, name));
    spy.on_call([Act::Never]);
    let _runs = start(&spy, &a).await;
    let _waiting = [wait_behind(&b).await, wait_behind(&c).await, wait_behind(&d).await];
    // The queue is full of those, and two places are free.
    at_once(&evaluator(&pool, "other/a")).await;
    at_once(&evaluator(&pool, "other/b")).await;
}

#[tokio::test(start_paused = true)]
async fn of_many_that_come_at_once_no_more_begin_than_have_a_place_in_sight() {
    let spy = Spy::default();
    let pool = pool(&spy, |acme| {
        acme.max_waiting = Some(0);
        acme.runtimes = Some(2);
    });
    let idle = evaluator(&pool, "acme/idle");
    at_once(&idle).await;
    let calls = ["acme/a", "acme/b", "acme/c", "acme/d"].map(|name| call(&evaluator(&pool, name)));
    let mut outcomes = Vec::new();
    for call in calls {
        outcomes.push(call.await.unwrap());
    }
    // One has the free place, and one that of the idle runtime.
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 2, "{outcomes:?}");
    for outcome in outcomes.into_iter().filter(Result::is_err) {
        assert_exceeded(outcome, Bound::MaxWaiting, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn builds_that_wait_to_compile_keep_no_caller_from_an_instance_that_is_free() {
    let spy = Spy::default();
    let pool = pool(&spy, |acme| {
        acme.build_concurrency = Some(1);
        acme.max_waiting = Some(1);
    });
    let [hot, b, c] = ["acme/hot", "acme/b", "acme/c"].map(|name| evaluator(&pool, name));
    at_once(&hot).await;
    spy.on_compile([Act::Never]);
    let _compiles = wait_behind(&b).await;
    let _queued = wait_behind(&c).await;
    spy.on_call([LONG]);
    let _runs = start(&spy, &hot).await;
    at_once(&hot).await;
}

/// A tenant that has the two runtimes that it may have, the second used last, and a third evaluator.
async fn two_of_two(spy: &Spy) -> (EvaluatorPool, [Evaluator; 3]) {
    let pool = pool(spy, |acme| acme.runtimes = Some(2));
    let evaluators = ["acme/a", "acme/b", "acme/c"].map(|name| evaluator(&pool, name));
    at_once(&evaluators[0]).await;
    at_once(&evaluators[1]).await;
    (pool, evaluators)
}

#[tokio::test(start_paused = true)]
async fn what_closes_anyway_is_waited_for_before_another_runtime_goes() {
    let spy = Spy::default();
    let (pool, [a, _, c]) = two_of_two(&spy).await;
    spy.keeps_permits(1);
    let closing = tokio::spawn(async move { a.unload().await });
    sleep(Duration::from_millis(1)).await;
    let waits = wait_behind(&c).await;
    spy.let_go_of_permits();
    assert!(waits.await.unwrap().is_ok());
    assert_eq!(state(&pool, "acme/b"), RuntimeState::Live);
    closing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_does_not_end_its_close_is_not_waited_for() {
    let spy = Spy::default();
    let (pool, [_, _, c]) = two_of_two(&spy).await;
    spy.keeps_permits(1);
    timeout(SOON * 10, c.evaluate("")).await.expect("b's place is as good").unwrap();
    assert_eq!(state(&pool, "acme/b"), RuntimeState::Cold);
}

#[tokio::test(start_paused = true)]
async fn what_is_too_much_once_a_bound_is_lowered_goes_also_if_threads_have_kept_it() {
    let spy = Spy::default();
    let pool = pool(&spy, |_| {});
    let evaluators = ["acme/a", "acme/b", "acme/c"].map(|name| evaluator(&pool, name));
    spy.on_call((0..6).map(|_| Act::Slow(SOON)));
    for evaluator in &evaluators {
        // Two at once, and once more from a thread that keeps what it uses.
        let calls = [call(evaluator), call(evaluator)];
        for call in calls {
            call.await.unwrap().unwrap();
        }
        at_once(evaluator).await;
    }
    let has = || pool.tenant("acme").map(|acme| (acme.runtimes, acme.instances)).unwrap();
    assert_eq!(has(), (3, 6));
    let lower = |set: fn(&mut TenantBounds)| TenantSettings { default: bounds(set), ..Default::default() };
    for (settings, runtimes, instances) in [
        (lower(|each| each.instances = Some(4)), 3, 4),
        (lower(|each| each.runtimes = Some(2)), 2, 4),
        (lower(|each| each.instances = Some(1)), 2, 1),
        (lower(|each| each.runtimes = Some(1)), 1, 1),
    ] {
        // These are kept by their thread when the bound comes.
        for evaluator in evaluators.iter().filter(|evaluator| state(&pool, evaluator.name()) == RuntimeState::Live) {
            at_once(evaluator).await;
        }
        pool.set_tenants(settings).unwrap();
        sleep(SOON).await;
        let (has_runtimes, has_instances) = has();
        assert_eq!(has_runtimes, runtimes);
        assert!(has_instances <= instances, "{has_instances} of {instances}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_evaluator_that_is_closed_and_still_listed_can_be_registered_anew() {
    let spy = Spy::default();
    let pool = pool(&spy, |acme| acme.evaluators = Some(1));
    evaluator(&pool, "acme/a").close().await;
    at_once(&evaluator(&pool, "acme/a")).await;
    assert_eq!(pool.tenant("acme").unwrap().evaluators, 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_holds_just_as_much_as_it_may_gives_up_its_own_for_more() {
    let spy = Spy::default();
    let pool = pool(&spy, |acme| acme.memory = Some(100));
    spy.weighs(30, 20);
    let [a, b, c] = ["acme/a", "acme/b", "acme/c"].map(|name| evaluator(&pool, name));
    let holds = || pool.tenant("acme").unwrap().memory_bytes;
    at_once(&a).await;
    at_once(&b).await;
    assert_eq!(holds(), 100);
    spy.on_call([LONG, LONG, LONG]);
    // First the idle instance of `b` goes, then `b`.
    let _running = [start(&spy, &a).await, start(&spy, &a).await];
    assert_eq!((holds(), state(&pool, "acme/b")), (100, RuntimeState::Live));
    let third = call(&a);
    sleep(SOON).await;
    assert_eq!((spy.calls_started(), holds()), (5, 90));
    assert_eq!(state(&pool, "acme/b"), RuntimeState::Cold);
    // There is no room for another, whoever waits; and none is held up by that who needs none.
    assert_exceeded(c.evaluate("").await, Bound::Memory, 100);
    at_once(&evaluator(&pool, "other/a")).await;
    third.abort();
}

#[tokio::test(start_paused = true)]
async fn a_compile_that_nobody_waits_for_ends_when_its_tenant_wants_to_compile() {
    let spy = Spy::default();
    spy.interrupts_compiles();
    let pool = pool(&spy, |acme| acme.build_concurrency = Some(1));
    let (a, b) = (evaluator(&pool, "acme/a"), evaluator(&pool, "acme/b"));
    spy.on_compile([Act::Never]);
    wait_behind(&a).await.abort();
    at_once(&b).await;
}
