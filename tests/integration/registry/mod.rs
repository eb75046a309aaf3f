//! Capacity, order, single flight, waiting and closing, on the spy, where rare orders of events can be forced.

mod admission;
mod corners;
mod edges;
mod fairness;
mod permits;
mod shares;

use std::{sync::Arc, time::Duration};

use evalpool::{CloseReport, Evaluator, EvaluatorPool, Isolation, PoolBuilder, RuntimeState};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use crate::support::{
    eventually, on_threads,
    spy::{Act, Spy},
};

fn evaluators(pool: &EvaluatorPool, count: usize) -> Vec<Evaluator> {
    (0..count).map(|index| pool.register(&format!("e{index}"), Spy::spec()).unwrap()).collect()
}

fn states(pool: &EvaluatorPool) -> Vec<RuntimeState> {
    pool.list(None, 100).into_iter().map(|info| info.state).collect()
}

/// Starts an evaluation and returns once its guest runs.
async fn start(spy: &Spy, evaluator: &Evaluator) -> JoinHandle<Result<evalpool::Response, evalpool::Error>> {
    let before = spy.calls_started();
    let evaluator = evaluator.clone();
    let task = tokio::spawn(async move { evaluator.evaluate("").await });
    eventually("the guest runs", || spy.calls_started() > before).await;
    task
}

/// Starts an evaluation that cannot begin yet, and returns once it waits.
async fn wait_behind(evaluator: &Evaluator) -> JoinHandle<Result<evalpool::Response, evalpool::Error>> {
    let evaluator = evaluator.clone();
    let task = tokio::spawn(async move { evaluator.evaluate("").await });
    // With time paused, this returns when every task has gone as far as it can.
    sleep(Duration::from_millis(1)).await;
    assert!(!task.is_finished());
    task
}

#[test]
fn fifty_evaluators_share_four_places_and_every_answer_is_right() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    on_threads(async {
        let spy = Spy::default();
        let pool = spy.pool(|builder| builder.capacity(4));
        let evaluators = Arc::new(evaluators(&pool, 50));
        let mut tasks = JoinSet::new();
        for task in 0..8 {
            let (evaluators, mut random) = (evaluators.clone(), StdRng::seed_from_u64(seed.wrapping_add(task)));
            tasks.spawn(async move {
                for call in 0..200 {
                    let evaluator = &evaluators[random.random_range(0..evaluators.len())];
                    let input = format!("{task}/{call}");
                    let response = evaluator.evaluate(input.clone()).await.unwrap();
                    assert_eq!(response.bytes(), &format!("{input}#1"));
                    assert_eq!(response.evaluator(), evaluator.id());
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
        assert!(spy.runtimes_live_max() <= 4, "{} runtimes existed", spy.runtimes_live_max());
        assert!(spy.opens() > 50, "evictions happened");
        assert_eq!(pool.close().await, CloseReport::Drained);
        spy.assert_nothing_left();
        assert_eq!(pool.runtimes(), 0);
    });
}

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_is_the_one_that_goes() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(2));
    let all = evaluators(&pool, 3);
    for index in [0, 1, 0, 2] {
        all[index].evaluate("").await.unwrap();
    }
    assert_eq!(states(&pool), [RuntimeState::Live, RuntimeState::Cold, RuntimeState::Live]);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_first_calls_at_once_compile_once() {
    let spy = Spy::default();
    spy.on_compile([Act::Slow(Duration::from_secs(1))]);
    let pool = spy.pool(|builder| builder.capacity(2).max_instances_per_evaluator(100));
    let evaluator = pool.evaluator("one", Spy::spec()).unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..100 {
        let evaluator = evaluator.clone();
        tasks.spawn(async move { evaluator.evaluate("x").await.unwrap() });
    }
    assert_eq!(tasks.join_all().await.len(), 100);
    assert_eq!(spy.compiles(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_counts_only_when_its_victim_is_gone() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1));
    let all = evaluators(&pool, 2);
    for _ in 0..20 {
        for evaluator in &all {
            evaluator.evaluate("").await.unwrap();
        }
    }
    assert_eq!(spy.runtimes_live_max(), 1);
    assert_eq!(spy.opens(), 40);
}

#[tokio::test(start_paused = true)]
async fn when_every_runtime_is_in_use_admission_waits_and_then_gives_up() {
    let spy = Spy::default();
    spy.on_call([Act::Held]);
    let pool = spy.pool(|builder| {
        builder.capacity(1).limits(evalpool::config::LimitSettings {
            wait_timeout: Duration::from_secs(2),
            exec_timeout: Duration::from_mins(1),
            ..Default::default()
        })
    });
    let all = evaluators(&pool, 2);
    let busy = start(&spy, &all[0]).await;
    let began = tokio::time::Instant::now();
    assert_eq!(all[1].evaluate("").await.unwrap_err().kind(), "wait_timeout");
    assert_eq!(began.elapsed().as_secs(), 2);
    let waiting = wait_behind(&all[1]).await;
    spy.release();
    busy.await.unwrap().unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_more_than_may_wait_is_saturated_at_once() {
    let spy = Spy::default();
    spy.on_call([Act::Held]);
    let pool = spy.pool(|builder| builder.capacity(1).max_waiting(2));
    let all = evaluators(&pool, 4);
    let busy = start(&spy, &all[0]).await;
    let waiting = [wait_behind(&all[1]).await, wait_behind(&all[2]).await];
    let began = tokio::time::Instant::now();
    assert_eq!(all[3].evaluate("").await.unwrap_err().kind(), "saturated");
    assert_eq!(all[0].evaluate("").await.unwrap_err().kind(), "saturated", "an instance is waited for just the same");
    assert_eq!(began.elapsed(), Duration::ZERO);
    spy.release();
    busy.await.unwrap().unwrap();
    for task in waiting {
        task.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_may_wait_and_a_free_place_is_still_given() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1).max_waiting(0));
    let all = evaluators(&pool, 3);
    for evaluator in &all {
        evaluator.evaluate("").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn callers_that_leave_the_queue_make_room_in_it() {
    let spy = Spy::default();
    spy.on_call([Act::Held]);
    let pool = spy.pool(|builder| builder.capacity(1).max_waiting(1));
    let all = evaluators(&pool, 3);
    let busy = start(&spy, &all[0]).await;
    let left = wait_behind(&all[1]).await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    let waiting = wait_behind(&all[2]).await;
    spy.release();
    busy.await.unwrap().unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(spy.compiles(), 2, "nobody wanted the one that was left, so it was not built");
}

#[tokio::test(start_paused = true)]
async fn closed_means_closed_and_eviction_is_not_close() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(2));
    let evaluator = pool.register("name", Spy::spec()).unwrap();
    evaluator.evaluate("").await.unwrap();
    assert_eq!(evaluator.unload().await, CloseReport::Drained);
    assert_eq!(spy.closes(), 1);
    evaluator.evaluate("rebuilt").await.unwrap();
    assert!(!evaluator.is_closed());
    assert_eq!(evaluator.close().await, CloseReport::Drained);
    assert!(evaluator.is_closed());
    assert_eq!(evaluator.close().await, CloseReport::Drained);
    assert_eq!(evaluator.evaluate("").await.unwrap_err().kind(), "closed");
    assert_eq!(evaluator.executable().await.unwrap_err().kind(), "closed");
    assert_eq!((spy.opens(), spy.closes()), (2, 2));
    assert!(pool.remove("name").await);
    assert!(!pool.remove("name").await);
}

#[tokio::test(start_paused = true)]
async fn a_close_lets_calls_finish_within_their_grace() {
    let spy = Spy::default();
    spy.on_call([Act::Slow(Duration::from_secs(2))]);
    let pool = spy.pool(|builder| builder.capacity(1));
    let evaluator = pool.evaluator("name", Spy::spec()).unwrap();
    let running = start(&spy, &evaluator).await;
    assert_eq!(evaluator.close().await, CloseReport::Drained);
    assert_eq!(running.await.unwrap().unwrap().bytes(), "#1");
    spy.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn what_is_unused_for_its_time_is_closed_and_stays_usable() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(2).idle_ttl(Duration::from_mins(1)));
    let all = evaluators(&pool, 2);
    all[0].evaluate("").await.unwrap();
    sleep(Duration::from_secs(45)).await;
    all[1].evaluate("").await.unwrap();
    sleep(Duration::from_secs(40)).await;
    assert_eq!(states(&pool), [RuntimeState::Cold, RuntimeState::Live]);
    all[0].evaluate("").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_saw_trouble_is_never_used_again() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1).isolation(Isolation::Reuse));
    let evaluator = pool.evaluator("name", Spy::spec()).unwrap();
    assert_eq!(evaluator.evaluate("").await.unwrap().bytes(), "#1");
    assert_eq!(evaluator.evaluate("").await.unwrap().bytes(), "#2");
    for trouble in [Act::Fail, Act::Panic, Act::Never] {
        spy.on_call([trouble]);
        evaluator.evaluate("").await.unwrap_err();
        assert_eq!(evaluator.evaluate("").await.unwrap().bytes(), "#1");
    }
    spy.on_call([Act::Never]);
    timeout(Duration::from_millis(1), evaluator.evaluate("")).await.unwrap_err();
    assert_eq!(evaluator.evaluate("").await.unwrap().bytes(), "#1");
    assert_eq!(spy.opens(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reused_instance_is_replaced_after_its_uses() {
    let mut settings = evalpool::Settings::default();
    settings.pool.max_uses = 2;
    settings.engine.isolation = Isolation::Reuse;
    let spy = Spy::default();
    let pool = spy.pool(|_| PoolBuilder::from(settings).park_after(0));
    let evaluator = pool.evaluator("name", Spy::spec()).unwrap();
    for expected in ["#1", "#2", "#1", "#2"] {
        assert_eq!(evaluator.evaluate("").await.unwrap().bytes(), expected);
    }
}
