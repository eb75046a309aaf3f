//! Who gets a permit when there are fewer than callers: by age, whether an instance is in use, idle, kept by a thread, or
//! not made yet. In paused time, where whoever is served without waiting is served at the same instant.

use std::{num::NonZeroUsize, sync::atomic::Ordering, time::Duration};

use evalpool::{Evaluator, EvaluatorPool, Isolation, PoolBuilder, Settings};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{evaluators, wait_behind};
use crate::support::{
    eventually,
    spy::{Act, Spy},
};

fn pool(spy: &Spy, capacity: usize, instances: usize, of_each: usize, isolation: Isolation) -> EvaluatorPool {
    let mut settings = Settings::default();
    settings.pool.capacity = capacity;
    settings.pool.max_instances = instances;
    settings.pool.max_instances_per_evaluator = of_each;
    settings.engine.isolation = isolation;
    settings.limits.exec_timeout = Duration::from_mins(10);
    spy.pool(|_| PoolBuilder::from(settings).park_after(0))
}

/// An evaluation whose guest runs until its gate is opened.
async fn hold(spy: &Spy, evaluator: &Evaluator, gate: &'static str) -> JoinHandle<()> {
    let before = spy.calls_started();
    let evaluator = evaluator.clone();
    let task = tokio::spawn(async move { drop(evaluator.evaluate(format!("hold {gate}")).await.unwrap()) });
    eventually("the guest runs", || spy.calls_started() > before).await;
    task
}

async fn calls(evaluator: &Evaluator, times: usize) {
    for _ in 0..times {
        evaluator.evaluate("").await.unwrap();
    }
}

async fn served_at_once(evaluator: &Evaluator) {
    let began = Instant::now();
    evaluator.evaluate("").await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO, "it waited");
}

/// What a thread keeps is idle: whoever needs its permit gets it without waiting until the thread gives it up by itself.
#[tokio::test(start_paused = true)]
async fn an_instance_that_a_thread_keeps_gives_way_at_once() {
    let spy = Spy::default();
    let pool = pool(&spy, 3, 3, 3, Isolation::Reuse);
    let all = evaluators(&pool, 3);
    calls(&all[0], 3).await;
    let running = [hold(&spy, &all[1], "one").await, hold(&spy, &all[1], "two").await];
    // For a build.
    served_at_once(&all[2]).await;
    // For one more instance.
    calls(&all[2], 3).await;
    served_at_once(&all[1]).await;
    // For one elsewhere, also where another is idle and younger.
    calls(&all[0], 3).await;
    spy.open_gate("one");
    spy.open_gate("two");
    for task in running {
        task.await.unwrap();
    }
    served_at_once(&all[2]).await;
    assert_eq!(spy.instances_live_max(), 3);
    pool.close().await;
    spy.assert_nothing_left();
}

/// Otherwise a hot evaluator keeps what others wait for.
#[tokio::test(start_paused = true)]
async fn a_thread_keeps_nothing_while_anybody_waits_for_it() {
    // What is waited for: a permit for a build, a permit for a second instance, a place. Who else runs, to that end.
    for (capacity, instances, others) in [(2, 2, vec![0]), (2, 3, vec![0, 1]), (1, 4, vec![])] {
        let spy = Spy::default();
        let pool = pool(&spy, capacity, instances, 2, Isolation::Reuse);
        let all = evaluators(&pool, 2);
        let mut running = Vec::new();
        for index in others {
            running.push(hold(&spy, &all[index], "others").await);
        }
        // Hot, and never kept by a thread so far.
        let hot = hold(&spy, &all[0], "hot").await;
        let waiting = wait_behind(&all[1]).await;
        let began = Instant::now();
        spy.open_gate("hot");
        hot.await.unwrap();
        waiting.await.unwrap().unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO, "the hot one's thread kept it: {capacity} {instances}");
        spy.open_gate("others");
        for task in running {
            task.await.unwrap();
        }
        pool.close().await;
        spy.assert_nothing_left();
    }
}

/// A runtime's own callers do not pass an instance on among themselves while an older caller elsewhere waits for a permit.
#[tokio::test(start_paused = true)]
async fn callers_of_a_hot_evaluator_do_not_starve_those_of_another() {
    for warm in [false, true] {
        let spy = Spy::default();
        let instances = 2 + usize::from(warm);
        let pool = pool(&spy, 2, instances, 2, Isolation::Reuse);
        let all = evaluators(&pool, 2);
        let blocked = if warm { Some(hold(&spy, &all[1], "blocked").await) } else { None };
        // Five callers of the hot one share its two instances, so there is always one that waits for them.
        spy.on_call((0..1000).map(|_| Act::Slow(Duration::from_millis(10))));
        let hot: Vec<_> = (0..5)
            .map(|_| {
                let evaluator = all[0].clone();
                tokio::spawn(async move { calls(&evaluator, 100).await })
            })
            .collect();
        sleep(Duration::from_millis(105)).await;
        let other = timeout(Duration::from_millis(100), all[1].evaluate("")).await;
        other.unwrap_or_else(|_| panic!("its turn comes, warm: {warm}")).unwrap();
        spy.open_gate("blocked");
        for task in hot.into_iter().chain(blocked) {
            task.await.unwrap();
        }
        assert!(spy.instances_live_max() <= instances);
        pool.close().await;
        spy.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn no_spare_is_made_while_a_build_waits() {
    let spy = Spy::default();
    let pool = pool(&spy, 2, 8, 4, Isolation::Fresh);
    let all = evaluators(&pool, 3);
    let mut running = Vec::new();
    // Both runtimes are leased, and the first is reserved for whoever comes next.
    for (index, gate) in [(0, "a"), (0, "b"), (1, "c"), (1, "d")] {
        running.push(hold(&spy, &all[index], gate).await);
    }
    let made = || spy.counts().instances_made.load(Ordering::SeqCst);
    let before = made();
    let waiting = wait_behind(&all[2]).await;
    for gate in ["c", "a"] {
        spy.open_gate(gate);
        sleep(Duration::from_millis(10)).await;
        assert_eq!(made(), before, "a spare was made");
    }
    for gate in ["b", "d"] {
        spy.open_gate(gate);
    }
    for task in running {
        task.await.unwrap();
    }
    waiting.await.unwrap().unwrap();
    pool.close().await;
    spy.assert_nothing_left();
}

/// A runtime that drains keeps only the instances that still run.
#[tokio::test(start_paused = true)]
async fn an_instance_that_a_draining_runtime_no_longer_uses_gives_way_at_once() {
    let spy = Spy::default();
    let pool = pool(&spy, 2, 2, 2, Isolation::Reuse);
    let all = evaluators(&pool, 2);
    let running = [hold(&spy, &all[0], "one").await, hold(&spy, &all[0], "two").await];
    let closing = tokio::spawn(all[0].close());
    let waiting = wait_behind(&all[1]).await;
    let began = Instant::now();
    spy.open_gate("one");
    waiting.await.unwrap().unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO, "it waited for the end of the other call");
    assert_eq!(spy.instances_live(), 2);
    spy.open_gate("two");
    for task in running {
        task.await.unwrap();
    }
    assert_eq!(closing.await.unwrap(), evalpool::CloseReport::Drained);
    pool.close().await;
    spy.assert_nothing_left();
}

/// Whom a reservation has held back wants a permit once the build that it was for has become younger.
#[tokio::test(start_paused = true)]
async fn a_caller_that_is_no_longer_held_back_gets_the_permit_of_an_idle_instance() {
    let spy = Spy::default();
    let pool = pool(&spy, 2, 3, 2, Isolation::Reuse);
    let all = evaluators(&pool, 3);
    let running = [hold(&spy, &all[0], "rest").await, hold(&spy, &all[1], "rest").await];
    let idle = hold(&spy, &all[1], "idle").await;
    spy.open_gate("idle");
    idle.await.unwrap();
    let elder = wait_behind(&all[2]).await;
    let caller = wait_behind(&all[0]).await;
    let younger = wait_behind(&all[2]).await;
    let began = Instant::now();
    elder.abort();
    caller.await.unwrap().unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO, "it waited beside an idle instance");
    spy.open_gate("rest");
    for task in running {
        task.await.unwrap();
    }
    younger.await.unwrap().unwrap();
    pool.close().await;
    spy.assert_nothing_left();
}

/// A spec may have fewer instances than the pool allows each evaluator; it never has more.
#[tokio::test(start_paused = true)]
async fn a_spec_bounds_its_own_instances() {
    for (asked, most) in [(1, 1), (2, 2), (9, 3)] {
        let spy = Spy::default();
        let pool = pool(&spy, 1, 8, 3, Isolation::Reuse);
        let spec = Spy::spec().instances(NonZeroUsize::new(asked).unwrap());
        let evaluator = pool.register("one", spec).unwrap();
        let mut running = Vec::new();
        for gate in ["a", "b", "c"].into_iter().take(most) {
            running.push(hold(&spy, &evaluator, gate).await);
        }
        let waits = wait_behind(&evaluator).await;
        assert_eq!(spy.instances_live(), most);
        for gate in ["a", "b", "c"] {
            spy.open_gate(gate);
        }
        waits.await.unwrap().unwrap();
        for call in running {
            call.await.unwrap();
        }
    }
}
