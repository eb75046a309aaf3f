//! When a newcomer is let in, what gives way for it, and how long anybody waits.

use std::time::Duration;

use evalpool::{
    Isolation, RuntimeState, Source, Spec,
    config::{Eviction, LimitSettings},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{evaluators, start, states, wait_behind};
use crate::support::{
    spy::{Act, Spy},
    wasm,
};

fn how_many(states: &[RuntimeState], state: RuntimeState) -> usize {
    states.iter().filter(|is| **is == state).count()
}

#[tokio::test(start_paused = true)]
async fn builds_that_cannot_compile_yet_take_nobodys_place() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(6).build_concurrency(1));
    let all = evaluators(&pool, 12);
    for evaluator in &all[..6] {
        evaluator.evaluate("").await.unwrap();
    }
    spy.on_compile((0..6).map(|_| Act::Held));
    let mut waiting = vec![];
    for evaluator in &all[6..] {
        waiting.push(wait_behind(evaluator).await);
    }
    assert_eq!(spy.compiles(), 7, "one compiles");
    assert_eq!(how_many(&states(&pool)[..], RuntimeState::Live), 4, "and one is ready to");
    for evaluator in &all[2..6] {
        evaluator.evaluate("").await.unwrap();
    }
    assert_eq!(spy.compiles(), 7, "the others serve on");
    spy.release();
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    pool.close().await;
    spy.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn builds_that_wait_for_the_same_code_keep_nobody_else_from_compiling() {
    let spy = Spy::default();
    spy.shares_code();
    spy.on_compile([Act::Held]);
    let pool = spy.pool(|builder| builder.capacity(12).build_concurrency(2));
    let mut waiting = vec![];
    for evaluator in &evaluators(&pool, 8) {
        waiting.push(wait_behind(evaluator).await);
    }
    let other = Spec::new(Source::bytes(wasm(r#"(module (memory 1) (func (export "run")))"#)));
    pool.register("other", other).unwrap().evaluate("").await.unwrap();
    spy.release();
    for task in waiting {
        task.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_hot_runtime_serves_whom_it_can_once_more_before_it_goes() {
    let spy = Spy::default();
    spy.on_call([Act::Held, Act::Slow(Duration::from_millis(10))]);
    let pool = spy.pool(|builder| builder.capacity(1).isolation(Isolation::Reuse).max_instances_per_evaluator(1));
    let all = evaluators(&pool, 2);
    let busy = start(&spy, &all[0]).await;
    let newcomer = wait_behind(&all[1]).await;
    let behind = wait_behind(&all[0]).await;
    let far_behind = wait_behind(&all[0]).await;
    spy.release();
    busy.await.unwrap().unwrap();
    let served = behind.await.unwrap().unwrap();
    assert_eq!(served.bytes(), "#2", "by the runtime that it waited for");
    newcomer.await.unwrap().unwrap();
    let rebuilt = far_behind.await.unwrap().unwrap();
    assert_eq!(
        (rebuilt.bytes().as_ref(), spy.compiles()),
        (b"#1".as_slice(), 3),
        "after one evaluation, not after two"
    );
}

#[tokio::test(start_paused = true)]
async fn of_a_thousand_on_sixteen_places_nobody_waits_longer_than_three_times_the_mean() {
    let spy = Spy::default();
    let patient = LimitSettings { wait_timeout: Duration::from_mins(10), ..LimitSettings::default() };
    let pool = spy.pool(|builder| builder.capacity(16).build_concurrency(2).limits(patient));
    spy.on_compile((0..20_000).map(|_| Act::Slow(Duration::from_millis(4))));
    let mut callers = JoinSet::new();
    for evaluator in evaluators(&pool, 1000) {
        callers.spawn(async move {
            let mut waits = vec![];
            for _ in 0..4 {
                let began = Instant::now();
                evaluator.evaluate("").await.unwrap();
                waits.push(began.elapsed());
                // Until it is evicted.
                sleep(Duration::from_millis(100)).await;
            }
            waits
        });
    }
    let waits = callers.join_all().await.concat();
    let mean = waits.iter().sum::<Duration>() / u32::try_from(waits.len()).unwrap();
    let longest = waits.iter().max().unwrap();
    assert!(*longest <= 3 * mean, "{longest:?} at most, {mean:?} on average");
    assert!(spy.runtimes_live_max() <= 16);
}

/// How many of a hot runtime's calls had to build it, between those of a scan.
async fn rebuilds(eviction: Eviction) -> usize {
    let spy = Spy::default();
    spy.on_compile((0..200).map(|_| Act::Slow(Duration::from_millis(1))));
    let pool = spy.pool(|builder| builder.capacity(4).eviction(eviction));
    let all: Vec<_> = (0..60).map(|at| pool.register(&format!("one/{at}"), Spy::spec()).unwrap()).collect();
    let (hot, scan) = all.split_first().unwrap();
    for _ in 0..4 {
        hot.evaluate("").await.unwrap();
    }
    let mut rebuilds = 0;
    for once in scan.chunks(5) {
        for evaluator in once {
            evaluator.evaluate("").await.unwrap();
        }
        rebuilds += usize::from(!hot.evaluate("").await.unwrap().timings().build.is_zero());
    }
    rebuilds
}

#[tokio::test(start_paused = true)]
async fn what_is_called_once_displaces_what_is_called_often_by_lru_and_not_by_lfu() {
    assert_eq!(rebuilds(Eviction::Lru).await, 12);
    assert_eq!(rebuilds(Eviction::Lfu).await, 0);
}
