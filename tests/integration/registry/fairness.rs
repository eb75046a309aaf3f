//! Places, compile slots and instances go round by tenant: who calls more gets no more while others wait.

use std::{sync::Arc, time::Duration};

use evalpool::{Evaluator, EvaluatorPool, Isolation, PoolBuilder, config::LimitSettings};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};

use super::start;
use crate::support::spy::{Act, Spy};

const TURN: Duration = Duration::from_millis(10);

fn of_tenant(pool: &EvaluatorPool, tenant: &str, count: usize) -> Vec<Evaluator> {
    (0..count).map(|at| pool.register(&format!("{tenant}/{at}"), Spy::spec()).unwrap()).collect()
}

/// Everything takes a turn, and everybody is patient.
fn pool(spy: &Spy, set: impl FnOnce(PoolBuilder) -> PoolBuilder) -> EvaluatorPool {
    spy.on_compile((0..50_000).map(|_| Act::Slow(TURN)));
    let patient = LimitSettings { wait_timeout: Duration::from_mins(10), ..LimitSettings::default() };
    spy.pool(|builder| set(builder.limits(patient).isolation(Isolation::Reuse).build_concurrency(1)))
}

fn call(evaluator: &Evaluator) -> JoinHandle<()> {
    let evaluator = evaluator.clone();
    tokio::spawn(async move {
        evaluator.evaluate("").await.unwrap();
    })
}

#[tokio::test(start_paused = true)]
async fn a_cold_call_waits_for_a_few_builds_of_a_tenant_that_wants_a_hundred() {
    let spy = Spy::default();
    let pool = pool(&spy, |builder| builder.capacity(4));
    let flood: Vec<_> = of_tenant(&pool, "flood", 100).iter().map(call).collect();
    sleep(TURN * 3).await;
    let [small] = &of_tenant(&pool, "small", 1)[..] else { unreachable!() };
    let began = Instant::now();
    small.evaluate("").await.unwrap();
    // The one that compiles, the one that is ready to, one whose turn was due at once, its own.
    assert!(began.elapsed() <= TURN * 5, "{:?}", began.elapsed());
    assert!(flood.iter().filter(|task| !task.is_finished()).count() > 80, "the others still wait");
    for task in flood {
        task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_few_instances_of_a_tenant_whose_hundred_callers_take_all_of_them() {
    let spy = Spy::default();
    let pool = pool(&spy, |builder| builder.capacity(2).max_instances(2).max_instances_per_evaluator(2));
    let (flood, small) = (of_tenant(&pool, "flood", 1), of_tenant(&pool, "small", 1));
    for evaluator in [&flood[0], &small[0]] {
        evaluator.evaluate("").await.unwrap();
    }
    spy.on_call((0..200).map(|_| Act::Slow(TURN)));
    let flood: Vec<_> = (0..100).map(|_| call(&flood[0])).collect();
    sleep(TURN * 3).await;
    let began = Instant::now();
    small[0].evaluate("").await.unwrap();
    assert!(began.elapsed() <= TURN * 3, "{:?}", began.elapsed());
    assert!(flood.iter().filter(|task| !task.is_finished()).count() > 80, "the others still wait");
    for task in flood {
        task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_one_tenant_calls_once_does_not_flush_what_another_uses() {
    let spy = Spy::default();
    let pool = pool(&spy, |builder| builder.capacity(8));
    let (used, flood) = (of_tenant(&pool, "used", 4), of_tenant(&pool, "flood", 100));
    for evaluator in &used {
        evaluator.evaluate("").await.unwrap();
    }
    for once in &flood {
        once.evaluate("").await.unwrap();
    }
    for evaluator in &used {
        let response = evaluator.evaluate("").await.unwrap();
        assert_eq!(response.timings().build, Duration::ZERO, "it is still live");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_alone_has_all_places_and_what_it_leaves_unused_for_long_is_anybodys() {
    let spy = Spy::default();
    let pool = pool(&spy, |builder| builder.capacity(4));
    let (first, second) = (of_tenant(&pool, "first", 4), of_tenant(&pool, "second", 4));
    for evaluator in &first {
        evaluator.evaluate("").await.unwrap();
    }
    assert_eq!(pool.runtimes(), 4);
    sleep(Duration::from_secs(61)).await;
    for _ in 0..2 {
        for evaluator in &second {
            evaluator.evaluate("").await.unwrap();
        }
    }
    assert_eq!(spy.compiles(), 8, "the second has all four in turn");
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_gets_its_place_from_a_tenant_that_keeps_all_of_them_busy() {
    let spy = Spy::default();
    let pool = pool(&spy, |builder| builder.capacity(2));
    let (busy, small) = (of_tenant(&pool, "busy", 2), of_tenant(&pool, "small", 1));
    spy.on_call([Act::Held, Act::Slow(TURN)]);
    let held = start(&spy, &busy[0]).await;
    let slow = start(&spy, &busy[1]).await;
    timeout(TURN * 5, small[0].evaluate("")).await.expect("once the first of them ends").unwrap();
    spy.release();
    held.await.unwrap().unwrap();
    slow.await.unwrap().unwrap();
}

/// Calls by each of 49 tenants in a minute, each of which goes round three evaluators of its own.
async fn calls_in_a_minute(flood: usize) -> Vec<usize> {
    let spy = Spy::default();
    let pool = Arc::new(pool(&spy, |builder| builder.capacity(100)));
    let end = Instant::now() + Duration::from_mins(1);
    let mut flooding = JoinSet::new();
    for evaluator in of_tenant(&pool, "flood", flood) {
        flooding.spawn(async move {
            while Instant::now() < end {
                evaluator.evaluate("").await.unwrap();
                sleep(TURN).await;
            }
        });
    }
    let mut others = JoinSet::new();
    for tenant in 0..49 {
        let own = of_tenant(&pool, &format!("tenant-{tenant}"), 3);
        others.spawn(async move {
            let mut calls = 0;
            for evaluator in own.iter().cycle() {
                if Instant::now() >= end {
                    break;
                }
                evaluator.evaluate("").await.unwrap();
                calls += 1;
                sleep(TURN).await;
            }
            calls
        });
    }
    let calls = others.join_all().await;
    flooding.join_all().await;
    calls
}

#[tokio::test(start_paused = true)]
async fn forty_nine_tenants_keep_what_they_have_alone_beside_one_that_floods() {
    let alone = calls_in_a_minute(0).await;
    let beside = calls_in_a_minute(1000).await;
    let sum = |calls: &[usize]| calls.iter().sum::<usize>();
    assert!(sum(&beside) * 10 >= sum(&alone) * 8, "{} beside it, {} alone", sum(&beside), sum(&alone));
    let (least, most) = (beside.iter().min().unwrap(), beside.iter().max().unwrap());
    assert!(least * 10 >= most * 8, "from {least} to {most}");
}
