//! What a tenant's share does to others: to those whose own runtimes are busy, and to those who wait behind them.

use std::time::Duration;

use evalpool::{Evaluator, EvaluatorPool, PoolBuilder, config::LimitSettings};
use tokio::time::{sleep, timeout};

use super::{start, wait_behind};
use crate::support::spy::{Act, Spy};

const SOON: Duration = Duration::from_millis(100);

fn of_tenant(pool: &EvaluatorPool, tenant: &str, count: usize) -> Vec<Evaluator> {
    (0..count).map(|at| pool.register(&format!("{tenant}/{at}"), Spy::spec()).unwrap()).collect()
}

/// Everybody is patient.
fn pool(spy: &Spy, set: impl FnOnce(PoolBuilder) -> PoolBuilder) -> EvaluatorPool {
    let patient = Duration::from_secs(50);
    let patient = LimitSettings { wait_timeout: patient, exec_timeout: patient, ..LimitSettings::default() };
    spy.pool(|builder| set(builder.limits(patient)))
}

fn is_cold(pool: &EvaluatorPool, name: &str) -> bool {
    pool.info(name).unwrap().state == evalpool::RuntimeState::Cold
}

#[tokio::test(start_paused = true)]
async fn a_reservation_for_one_tenant_is_not_taken_for_anothers() {
    let spy = Spy::default();
    let pool = pool(&spy, |builder| builder.capacity(2).build_concurrency(4));
    let (first, second) = (of_tenant(&pool, "first", 2), of_tenant(&pool, "second", 2));
    spy.on_call([Act::Slow(Duration::from_secs(1)), Act::Slow(Duration::from_secs(20))]);
    let soon_idle = start(&spy, &first[0]).await;
    let _busy = start(&spy, &second[0]).await;
    // Each has its share, so each waits for its own.
    let left = wait_behind(&first[1]).await;
    let waits = wait_behind(&second[1]).await;
    left.abort();
    soon_idle.await.unwrap().unwrap();
    // The one who waits may not have this runtime.
    timeout(SOON, first[0].evaluate("")).await.expect("it is warm and idle").unwrap();
    waits.abort();
}

#[tokio::test(start_paused = true)]
async fn a_place_that_was_found_for_one_who_has_none_is_not_taken_by_one_who_has_its_share() {
    let spy = Spy::default();
    let pool = pool(&spy, |builder| builder.capacity(2).build_concurrency(4));
    let (busy, idle, none) = (of_tenant(&pool, "busy", 2), of_tenant(&pool, "idle", 1), of_tenant(&pool, "none", 1));
    idle[0].evaluate("").await.unwrap();
    spy.on_call([Act::Slow(Duration::from_secs(40))]);
    let _holds = start(&spy, &busy[0]).await;
    let waits = wait_behind(&busy[1]).await;
    assert!(!is_cold(&pool, "idle/0"), "it is left its share");
    spy.on_call([Act::Slow(SOON / 2), Act::Slow(Duration::from_secs(40))]);
    timeout(SOON, none[0].evaluate("")).await.expect("it has no place, and one was idle").unwrap();
    waits.abort();
}

#[tokio::test(start_paused = true)]
async fn who_has_less_than_its_share_does_not_wait_behind_those_who_wait_for_their_own() {
    let spy = Spy::default();
    let pool = pool(&spy, |builder| builder.capacity(3).build_concurrency(1));
    let one = of_tenant(&pool, "one", 2);
    let two = of_tenant(&pool, "two", 2);
    let (idle, none) = (of_tenant(&pool, "idle", 1), of_tenant(&pool, "none", 1));
    idle[0].evaluate("").await.unwrap();
    spy.on_call((0..9).map(|_| Act::Slow(Duration::from_secs(40))));
    let _holds = (start(&spy, &one[0]).await, start(&spy, &two[0]).await);
    let waits = (wait_behind(&one[1]).await, wait_behind(&two[1]).await);
    assert!(!is_cold(&pool, "idle/0"));
    let _none = start_within(&spy, &none[0]).await;
    drop(waits);
}

async fn start_within(spy: &Spy, evaluator: &Evaluator) -> tokio::task::JoinHandle<()> {
    let (before, evaluator) = (spy.calls_started(), evaluator.clone());
    let task = tokio::spawn(async move { drop(evaluator.evaluate("").await) });
    sleep(SOON).await;
    assert!(spy.calls_started() > before, "it has no place, and one is idle");
    task
}

#[tokio::test(start_paused = true)]
async fn no_more_wait_than_may_though_runtimes_are_idle_that_are_not_theirs_to_take() {
    let spy = Spy::default();
    let pool = pool(&spy, |builder| builder.capacity(2).max_waiting(2));
    let (busy, idle) = (of_tenant(&pool, "busy", 2), of_tenant(&pool, "idle", 1));
    idle[0].evaluate("").await.unwrap();
    spy.on_call([Act::Slow(Duration::from_secs(40))]);
    let _holds = start(&spy, &busy[0]).await;
    let _waits = (wait_behind(&busy[1]).await, wait_behind(&busy[1]).await);
    let refused = timeout(SOON, busy[1].evaluate("")).await.expect("it is refused at once");
    assert_eq!(refused.unwrap_err().kind(), "saturated");
}

#[tokio::test(start_paused = true)]
async fn two_newcomers_at_once_leave_another_tenant_its_share() {
    let spy = Spy::default();
    let pool = pool(&spy, |builder| builder.capacity(4).build_concurrency(4));
    let (has, wants) = (of_tenant(&pool, "has", 3), of_tenant(&pool, "wants", 3));
    for evaluator in has.iter().chain(&wants[..1]) {
        evaluator.evaluate("").await.unwrap();
    }
    // The first of them closes slowly.
    spy.keeps_permits(1);
    let waiting = (wait_behind(&wants[1]).await, wants[2].evaluate("").await.unwrap());
    spy.let_go_of_permits();
    waiting.0.await.unwrap().unwrap();
    assert_eq!((0..3).filter(|at| !is_cold(&pool, &format!("has/{at}"))).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_one_place_for_another_does_not_take_a_third() {
    let spy = Spy::default();
    let pool = pool(&spy, |builder| builder.capacity(4).build_concurrency(4));
    let (has, wants) = (of_tenant(&pool, "has", 2), of_tenant(&pool, "wants", 4));
    for evaluator in has.iter().chain(&wants[..1]) {
        evaluator.evaluate("").await.unwrap();
    }
    spy.on_call([Act::Slow(Duration::from_secs(1))]);
    let holds = start(&spy, &wants[1]).await;
    spy.keeps_permits(1);
    let waiting = (wait_behind(&wants[2]).await, wait_behind(&wants[3]).await);
    spy.let_go_of_permits();
    holds.await.unwrap().unwrap();
    waiting.0.await.unwrap().unwrap();
    waiting.1.await.unwrap().unwrap();
    assert_eq!((0..2).filter(|at| !is_cold(&pool, &format!("has/{at}"))).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn builds_that_wait_for_the_same_code_take_nobodys_place_before_it_is_there() {
    let spy = Spy::with_workers();
    let pool = pool(&spy, |builder| builder.capacity(6).build_concurrency(1));
    let all = of_tenant(&pool, "one", 12);
    for evaluator in &all[..6] {
        evaluator.evaluate("").await.unwrap();
    }
    spy.on_compile([Act::Held]);
    let mut waiting = vec![];
    for evaluator in &all[6..] {
        waiting.push(wait_behind(evaluator).await);
    }
    let live = (0..6).filter(|at| !is_cold(&pool, &format!("one/{at}"))).count();
    assert!(live >= 4, "{live} of 6 serve while one compiles");
    spy.release();
    for task in waiting {
        task.await.unwrap().unwrap();
    }
}
