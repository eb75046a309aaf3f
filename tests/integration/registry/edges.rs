//! Who is let in where nobody may wait, what is not counted because it never began, and when what is idle goes.

use std::{collections::BTreeSet, time::Duration};

use evalpool::{Isolation, PoolBuilder, RuntimeState, Settings};
use futures_util::future::join3;
use tokio::time::sleep;

use super::{evaluators, start, states, wait_behind};
use crate::support::{
    measured::Measured,
    spy::{Act, Spy},
};

#[tokio::test(start_paused = true)]
async fn where_nobody_may_wait_no_more_newcomers_come_than_there_are_places() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(2).max_waiting(0));
    let all = evaluators(&pool, 3);
    // All three come before any of them has its plugin.
    let (one, two, three) = join3(all[0].evaluate(""), all[1].evaluate(""), all[2].evaluate("")).await;
    assert_eq!((one.is_ok(), two.is_ok(), three.unwrap_err().kind().as_str()), (true, true, "saturated"));
    // While one of them is being built, its place is not there for others.
    pool.close().await;
    let pool = spy.pool(|builder| builder.capacity(2).max_waiting(0));
    let all = evaluators(&pool, 3);
    spy.on_compile([Act::Slow(Duration::from_secs(1))]);
    let building = wait_behind(&all[0]).await;
    let (two, three) = tokio::join!(all[1].evaluate(""), all[2].evaluate(""));
    assert_eq!((two.is_ok(), three.unwrap_err().kind().as_str()), (true, "saturated"));
    building.await.unwrap().unwrap();
}

/// All leases of the runtime that goes are kept by a thread, which does not use them.
#[tokio::test(start_paused = true)]
async fn where_nobody_may_wait_a_place_that_a_thread_keeps_is_given() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1).max_waiting(0).isolation(Isolation::Reuse));
    let all = evaluators(&pool, 2);
    for _ in 0..3 {
        all[0].evaluate("").await.unwrap();
    }
    all[1].evaluate("").await.unwrap();
    assert_eq!(states(&pool), [RuntimeState::Cold, RuntimeState::Live]);
}

#[tokio::test(start_paused = true)]
async fn a_build_that_nobody_wants_any_more_is_not_counted() {
    let spy = Spy::default();
    let pool = Measured::new(&spy, |builder| builder.capacity(1));
    let all = evaluators(&pool, 2);
    spy.on_call([Act::Held]);
    let running = start(&spy, &all[0]).await;
    let left = wait_behind(&all[1]).await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    spy.release();
    running.await.unwrap().unwrap();
    sleep(Duration::from_millis(1)).await;
    assert_eq!((pool.sum("evalpool_builds_total", ""), spy.compiles()), (1, 1));
}

/// What became idle together would be built anew together.
#[tokio::test(start_paused = true)]
async fn what_became_idle_together_goes_within_a_tenth_of_its_time_and_not_together() {
    const ALL: usize = 40;
    let spy = Spy::default();
    let mut settings = Settings::default();
    settings.pool.capacity = ALL;
    settings.pool.idle_ttl = Duration::from_hours(10);
    let pool = spy.pool(|_| PoolBuilder::from(settings).park_after(0));
    for evaluator in evaluators(&pool, ALL) {
        evaluator.evaluate("").await.unwrap();
    }
    sleep(Duration::from_hours(10) - Duration::from_secs(1)).await;
    assert_eq!(spy.closes(), 0);
    let mut closed = BTreeSet::new();
    for _ in 0..6 {
        sleep(Duration::from_mins(10)).await;
        closed.insert(spy.closes());
    }
    sleep(Duration::from_mins(2)).await;
    closed.insert(spy.closes());
    assert!(closed.len() > 4 && spy.closes() == ALL, "{closed:?}");
}

/// Where making one costs more than handing the work to another thread.
#[tokio::test(start_paused = true)]
async fn a_spare_instance_is_made_at_once_for_a_busy_evaluator() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.isolation(Isolation::Fresh));
    let evaluator = pool.register("one", Spy::spec()).unwrap();
    let began = tokio::time::Instant::now();
    evaluator.evaluate("").await.unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!((spy.instances_live(), began.elapsed()), (1, Duration::ZERO));
}
