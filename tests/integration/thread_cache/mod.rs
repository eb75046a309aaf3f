//! Instances that threads keep stay the registry's: they count, they are evicted in the order of use, drained and closed, and
//! the gauges show them.
//!
//! The spy's pools park from the second call on.

#[cfg(feature = "service")]
mod within;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use evalpool::{
    CloseReport, Data, Evaluator, EvaluatorPool, Isolation, PoolBuilder, RuntimeState, Settings,
    data::{PerCall, Static},
};
use futures_util::FutureExt;
use serde_json::json;
use tokio::time::sleep;

use crate::support::{
    eventually, on_threads,
    spy::{Act, Spy},
};

fn spied(capacity: usize) -> (Spy, EvaluatorPool) {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(capacity).isolation(Isolation::Reuse));
    (spy, pool)
}

async fn call(evaluator: &Evaluator, times: usize) {
    for _ in 0..times {
        evaluator.evaluate("").await.unwrap();
    }
}

fn states(evaluators: &[&Evaluator], pool: &EvaluatorPool) -> Vec<RuntimeState> {
    evaluators.iter().map(|evaluator| pool.info(evaluator.name()).unwrap().state).collect()
}

#[tokio::test(start_paused = true)]
async fn a_use_that_the_registry_did_not_see_counts_for_the_order_of_eviction() {
    let (_spy, pool) = spied(2);
    let [one, two, three] = ["one", "two", "three"].map(|name| pool.register(name, Spy::spec()).unwrap());
    for evaluator in [&one, &two, &one] {
        call(evaluator, 3).await;
        sleep(Duration::from_millis(1)).await;
    }
    call(&three, 1).await;
    assert_eq!(states(&[&one, &two, &three], &pool), [RuntimeState::Live, RuntimeState::Cold, RuntimeState::Live]);
}

#[tokio::test(start_paused = true)]
async fn an_evaluator_that_stays_in_use_is_not_swept_and_one_that_does_not_is() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.isolation(Isolation::Reuse).idle_ttl(Duration::from_secs(1)));
    let [used, unused] = ["used", "unused"].map(|name| pool.register(name, Spy::spec()).unwrap());
    call(&unused, 3).await;
    for _ in 0..1000 {
        call(&used, 1).await;
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(states(&[&used, &unused], &pool), [RuntimeState::Live, RuntimeState::Cold]);
    assert_eq!(spy.opens(), 2);
}

#[tokio::test]
async fn every_use_is_counted_and_shown() {
    let (_spy, pool) = spied(2);
    let evaluator = pool.register("one", Spy::spec()).unwrap();
    assert_eq!(pool.info("one").unwrap().last_used, None);
    call(&evaluator, 100).await;
    let info = pool.info("one").unwrap();
    assert_eq!((info.evaluations, info.instances), (100, 1));
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let since = unix.as_millis() - u128::from(info.last_used.unwrap());
    assert!(since < 60_000, "{since} ms");
    let runtime = &pool.snapshot().runtimes[0];
    assert_eq!((runtime.uses, runtime.busy, runtime.instances), (100, 0, 1));
}

#[test]
fn an_evaluators_own_data_is_asked_for_once_a_call() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counting = asked.clone();
    let data = move || {
        counting.fetch_add(1, Ordering::SeqCst);
        Ok(Data::from("x"))
    };
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.isolation(Isolation::Reuse));
    let evaluator = pool.evaluator("one", Spy::spec().data(PerCall(data))).unwrap();
    on_threads(async {
        let callers = (0..4).map(|_| {
            let evaluator = evaluator.clone();
            tokio::spawn(async move { call(&evaluator, 50).await })
        });
        futures_util::future::join_all(callers).await;
        assert_eq!(asked.load(Ordering::SeqCst), 200);
        pool.close().await;
    });
}

/// Data that was asked for before a replacement is not given to the plugin that replaced.
#[tokio::test]
async fn a_plugin_that_is_replaced_while_its_data_is_made_has_its_successor_asked_for_data() {
    let (spy, pool) = spied(4);
    let replace = Arc::new(AtomicBool::new(false));
    let (replacing, replaced) = (replace.clone(), pool.clone());
    let data = move || {
        if replacing.swap(false, Ordering::SeqCst) {
            replaced.register("one", Spy::spec().data(Static("new".into()))).unwrap();
        }
        Ok(Data::from("old"))
    };
    let evaluator = pool.register("one", Spy::spec().data(PerCall(data))).unwrap();
    for _ in 0..3 {
        assert!(evaluator.evaluate(()).await.unwrap().bytes().starts_with(b"old#"));
    }
    // Nothing is parked of it any more, so that the call leases.
    drop(pool.snapshot());
    replace.store(true, Ordering::SeqCst);
    assert_eq!(evaluator.evaluate(()).await.unwrap().bytes(), "new#1");
    pool.close().await;
    spy.assert_nothing_left();
}

#[tokio::test]
async fn max_uses_and_a_trap_end_a_parked_instance() {
    let mut settings = Settings::default();
    settings.pool.max_uses = 10;
    settings.engine.isolation = Isolation::Reuse;
    let spy = Spy::default();
    let pool = spy.pool(|_| PoolBuilder::from(settings).park_after(0));
    let evaluator = pool.evaluator("one", Spy::spec()).unwrap();
    call(&evaluator, 25).await;
    assert_eq!(spy.counts().instances_made.load(Ordering::SeqCst), 3);
    assert_eq!(evaluator.evaluate("trap").await.unwrap_err().kind(), "guest_trap");
    call(&evaluator, 1).await;
    assert_eq!(spy.counts().instances_made.load(Ordering::SeqCst), 4);
    pool.close().await;
    spy.assert_nothing_left();
}

#[test]
fn many_threads_that_share_one_instance_each_get_their_turn() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.isolation(Isolation::Reuse).max_instances_per_evaluator(1));
    on_threads(async {
        let evaluator = pool.evaluator("one", Spy::spec()).unwrap();
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let evaluator = evaluator.clone();
                tokio::spawn(async move { call(&evaluator, 500).await })
            })
            .collect();
        for caller in callers {
            caller.await.unwrap();
        }
        assert_eq!(spy.instances_live_max(), 1);
        assert_eq!(pool.close().await, CloseReport::Drained);
    });
    spy.assert_nothing_left();
}

#[tokio::test]
async fn the_next_call_after_a_replacement_has_the_new_plugin_and_after_a_close_none() {
    let (spy, pool) = spied(4);
    let evaluator = pool.register("one", Spy::spec()).unwrap();
    call(&evaluator, 5).await;
    pool.register("one", Spy::spec()).unwrap();
    assert_eq!(evaluator.evaluate("x").await.unwrap().bytes(), "x#1", "the first call on an instance of its own");
    call(&evaluator, 5).await;
    evaluator.close().await;
    assert_eq!(evaluator.evaluate("").await.unwrap_err().kind(), "closed");
    assert_eq!(pool.runtimes(), 0);
    spy.assert_nothing_left();
}

/// While a plugin is replaced, both of its revisions are called: neither is given the other's instances.
#[test]
fn two_revisions_that_are_called_at_once_keep_their_instances_apart() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.isolation(Isolation::Reuse).capacity(8));
    on_threads(async {
        let evaluator = pool.register("one", Spy::spec()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let (evaluator, stop) = (evaluator.clone(), stop.clone());
                tokio::spawn(async move {
                    while !stop.load(Ordering::SeqCst) {
                        evaluator.evaluate("").await.unwrap();
                    }
                })
            })
            .collect();
        for _ in 0..1_000 {
            let prepared = pool.prepare("one", Spy::spec()).await.unwrap();
            let (_, replaced) = prepared.publish();
            assert!(replaced);
        }
        stop.store(true, Ordering::SeqCst);
        for caller in callers {
            caller.await.unwrap();
        }
        eventually("the old ones are gone", || pool.runtimes() == 1).await;
        assert_eq!(pool.snapshot().runtimes[0].busy, 0);
        assert_eq!(pool.close().await, CloseReport::Drained);
    });
    spy.assert_nothing_left();
}

#[tokio::test]
async fn a_place_and_a_permit_are_reclaimed_for_callers_that_need_them() {
    let spy = Spy::default();
    let mut settings = Settings::default();
    settings.pool.capacity = 2;
    settings.pool.max_instances = 2;
    settings.engine.isolation = Isolation::Reuse;
    let pool = spy.pool(|_| PoolBuilder::from(settings).park_after(0));
    let [one, two, three] = ["one", "two", "three"].map(|name| pool.register(name, Spy::spec()).unwrap());
    for _ in 0..20 {
        for evaluator in [&one, &two, &three] {
            call(evaluator, 3).await;
        }
        // Two instances of one: the other runtime's has to go.
        spy.on_call([Act::Slow(Duration::from_millis(2)), Act::Slow(Duration::from_millis(2))]);
        let (first, second) = tokio::join!(one.evaluate(""), one.evaluate(""));
        first.and(second).unwrap();
    }
    assert!(spy.runtimes_live_max() <= 2 && spy.instances_live_max() <= 2);
    pool.close().await;
    spy.assert_nothing_left();
}

#[test]
fn without_tokio_a_guest_that_waits_is_an_error_and_no_panic() {
    let (spy, pool) = spied(2);
    let evaluator = pool.evaluator("one", Spy::spec()).unwrap();
    let cold = evaluator.evaluate("").now_or_never().unwrap();
    assert_eq!(cold.unwrap_err().kind(), "invalid_request");
    on_threads(async { call(&evaluator, 3).await });
    let calls = std::thread::spawn(move || {
        spy.on_call([Act::Never]);
        evaluator.evaluate("").now_or_never().expect("it does not wait").map(drop)
    });
    // Parked on another thread, or on this one, by chance: an error either way.
    assert_eq!(calls.join().unwrap().unwrap_err().kind(), "invalid_request");
    on_threads(async { pool.close().await });
}

#[tokio::test]
async fn what_an_evaluators_own_data_takes_is_time_that_its_caller_waits_also_where_an_instance_is_at_hand() {
    let (_spy, pool) = spied(1);
    let takes = Duration::from_millis(2);
    let data = PerCall(move || {
        std::thread::sleep(takes);
        Ok(Data::from(json!({})))
    });
    let evaluator = pool.register("one", Spy::spec().data(data)).unwrap();
    for _ in 0..4 {
        let timings = evaluator.evaluate(json!({})).await.unwrap().timings();
        assert!(timings.wait >= takes, "{timings:?}");
    }
}
