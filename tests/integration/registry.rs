//! Capacity, order, single flight, waiting and closing, on the spy, where rare orders of events can be forced.

use std::{sync::Arc, time::Duration};

use evalpool::{CloseReport, Evaluator, EvaluatorPool, Isolation, RuntimeState};
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

/// Hard corner 1.
#[tokio::test(start_paused = true)]
async fn corner_1_replacing_at_capacity_one_evicts_its_predecessor_and_keeps_it_registered() {
    let spy = Spy::default();
    // Reused instances, so that no spare is made that would take the failure meant for the probe.
    let pool = spy.pool(|builder| builder.capacity(1).isolation(Isolation::Reuse));
    let evaluator = pool.register("only", Spy::spec()).unwrap();
    evaluator.evaluate("").await.unwrap();
    spy.on_instantiate([Act::Fail]);
    let error = pool.prepare("only", Spy::spec()).await.err().unwrap();
    assert_eq!(error.kind(), "invalid_plugin");
    assert_eq!(states(&pool), [RuntimeState::Cold]);
    evaluator.evaluate("still the old one").await.unwrap();
    let (replaced, was) = pool.prepare("only", Spy::spec()).await.unwrap().publish();
    assert!(was);
    assert_eq!(replaced.id(), evaluator.id());
    evaluator.evaluate("the new one").await.unwrap();
    assert_eq!(spy.runtimes_live_max(), 1);
    pool.close().await;
    spy.assert_nothing_left();
}

/// Hard corner 2.
#[tokio::test(start_paused = true)]
async fn corner_2_a_runtime_under_steady_calls_does_not_starve_a_newcomer() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1).isolation(Isolation::Reuse).max_instances_per_evaluator(2));
    let all = evaluators(&pool, 2);
    let steady: Vec<_> = (0..2)
        .map(|_| {
            let evaluator = all[0].clone();
            spy.on_call((0..1000).map(|_| Act::Slow(Duration::from_millis(10))));
            tokio::spawn(async move {
                for _ in 0..100 {
                    evaluator.evaluate("").await.unwrap();
                    // The two overlap: without the claim there is never a moment without a lease.
                    sleep(Duration::from_millis(3)).await;
                }
            })
        })
        .collect();
    sleep(Duration::from_millis(25)).await;
    timeout(Duration::from_millis(100), all[1].evaluate("")).await.expect("its turn comes").unwrap();
    for task in steady {
        task.await.unwrap();
    }
}

/// Hard corner 3.
#[tokio::test(start_paused = true)]
async fn corner_3_a_new_upload_joins_neither_the_build_nor_the_failure_of_the_old() {
    let spy = Spy::default();
    spy.on_compile([Act::Fail, Act::Held, Act::Succeed]);
    let pool = spy.pool(|builder| builder.capacity(4));
    let evaluator = pool.register("name", Spy::spec()).unwrap();
    assert_eq!(evaluator.evaluate("").await.unwrap_err().kind(), "invalid_plugin");
    assert_eq!(evaluator.evaluate("").await.unwrap_err().kind(), "invalid_plugin");
    assert_eq!(spy.compiles(), 1, "the failure was remembered");
    pool.register("name", Spy::spec()).unwrap();
    let stuck = wait_behind(&evaluator).await;
    pool.prepare("name", Spy::spec()).await.unwrap().publish();
    stuck.await.unwrap().expect("whoever waited for the old build is answered by the new plugin");
    spy.release();
    pool.close().await;
    spy.assert_nothing_left();
}

/// Hard corner 5.
#[test]
fn corner_5_builders_reserve_place_and_probe_at_once_so_the_two_bounds_do_not_deadlock() {
    on_threads(async {
        let spy = Spy::default();
        let pool = spy.pool(|builder| builder.capacity(3).max_instances(3).max_instances_per_evaluator(3));
        let all = evaluators(&pool, 9);
        let mut tasks = JoinSet::new();
        for round in 0..24 {
            let evaluator = all[round % all.len()].clone();
            tasks.spawn(async move {
                for _ in 0..50 {
                    evaluator.evaluate("").await.unwrap();
                }
            });
        }
        timeout(Duration::from_mins(1), tasks.join_all()).await.expect("no deadlock");
        assert!(spy.runtimes_live_max() <= 3);
        pool.close().await;
        spy.assert_nothing_left();
    });
}

/// Hard corner 7.
#[tokio::test(start_paused = true)]
async fn corner_7_the_caller_that_evicts_may_leave_and_the_place_still_comes_back() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1));
    let all = evaluators(&pool, 2);
    all[0].evaluate("").await.unwrap();
    spy.on_compile([Act::Held]);
    timeout(Duration::from_millis(5), all[1].evaluate("")).await.unwrap_err();
    spy.release();
    all[0].evaluate("").await.unwrap();
    pool.close().await;
    spy.assert_nothing_left();
}

/// Hard corner 9.
#[tokio::test(start_paused = true)]
async fn corner_9_only_what_would_fail_again_is_remembered_and_not_for_ever() {
    let spy = Spy::default();
    spy.on_compile([Act::Panic, Act::FailOnce, Act::Fail]);
    let pool = spy.pool(|builder| builder.capacity(1));
    let evaluator = pool.evaluator("name", Spy::spec()).unwrap();
    for (kind, compiles) in [("internal", 1), ("internal", 2), ("invalid_plugin", 3), ("invalid_plugin", 3)] {
        assert_eq!(evaluator.evaluate("").await.unwrap_err().kind(), kind);
        assert_eq!(spy.compiles(), compiles);
    }
    sleep(Duration::from_secs(6)).await;
    evaluator.evaluate("").await.unwrap();
    assert_eq!(spy.compiles(), 4);
}

/// Hard corner 11.
#[tokio::test(start_paused = true)]
async fn corner_11_a_prepared_plugin_that_is_not_published_is_closed() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(2));
    let evaluator = pool.register("name", Spy::spec()).unwrap();
    evaluator.evaluate("").await.unwrap();
    drop(pool.prepare("name", Spy::spec()).await.unwrap());
    eventually("it is closed", || spy.closes() == 1).await;
    assert_eq!(states(&pool), [RuntimeState::Live]);
    evaluator.evaluate("").await.unwrap();
    assert_eq!(spy.compiles(), 2);
}

/// Hard corner 12.
#[tokio::test(start_paused = true)]
async fn corner_12_spare_instances_give_way_to_whoever_wants_their_permit() {
    let spy = Spy::default();
    spy.on_call([Act::Succeed, Act::Held, Act::Held, Act::Held]);
    let pool = spy.pool(|builder| builder.capacity(2).max_instances(3).max_instances_per_evaluator(3));
    let all = evaluators(&pool, 2);
    all[0].evaluate("").await.unwrap();
    eventually("a spare is made", || spy.instances_live() == 1 && spy.opens() == 1).await;
    let running = [start(&spy, &all[1]).await, start(&spy, &all[1]).await, start(&spy, &all[1]).await];
    assert_eq!(spy.instances_live(), 3, "the spare of the first was reaped for the third call of the second");
    spy.release();
    for task in running {
        task.await.unwrap().unwrap();
    }
    pool.close().await;
    spy.assert_nothing_left();
}

/// Hard corner 17.
#[tokio::test(start_paused = true)]
async fn corner_17_an_unregistered_evaluator_closes_with_its_last_handle_and_a_registered_one_does_not() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(2));
    let first = pool.evaluator("loose", Spy::spec()).unwrap();
    let second = first.clone();
    first.evaluate("").await.unwrap();
    drop(first);
    second.evaluate("").await.unwrap();
    drop(second);
    eventually("the last handle closes it", || spy.closes() == 1).await;
    drop(pool.register("kept", Spy::spec()).unwrap());
    pool.get("kept").unwrap().evaluate("").await.unwrap();
    assert_eq!(states(&pool), [RuntimeState::Live]);
    drop(pool);
    eventually("the pool closes what it owns", || spy.closes() == 2).await;
    spy.assert_nothing_left();
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
    assert_eq!(evaluator.close().await, CloseReport::Drained);
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
async fn corner_19_a_close_interrupts_calls_after_their_grace_and_says_so() {
    let spy = Spy::default();
    spy.on_call([Act::Never, Act::Never]);
    let pool = spy.pool(|builder| {
        builder
            .capacity(2)
            .grace(Duration::from_secs(1))
            .limits(evalpool::config::LimitSettings { exec_timeout: Duration::from_mins(10), ..Default::default() })
    });
    let all = evaluators(&pool, 2);
    let running = [start(&spy, &all[0]).await, start(&spy, &all[1]).await];
    assert_eq!(all[0].close().await, CloseReport::Forced);
    assert_eq!(pool.close().await, CloseReport::Forced);
    let [first, second] = running;
    assert_eq!(first.await.unwrap().unwrap_err().kind(), "closed");
    assert_eq!(second.await.unwrap().unwrap_err().kind(), "shutting_down");
    assert_eq!(all[1].evaluate("").await.unwrap_err().kind(), "shutting_down");
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
    let pool = spy.pool(|builder| builder.settings(settings));
    let evaluator = pool.evaluator("name", Spy::spec()).unwrap();
    for expected in ["#1", "#2", "#1", "#2"] {
        assert_eq!(evaluator.evaluate("").await.unwrap().bytes(), expected);
    }
}
