//! Whose turn it is to compile, and who gives way: on an engine that ends a compile when it is told to.

use std::{sync::atomic::Ordering, time::Duration};

use evalpool::{Error, Evaluator, EvaluatorPool, PoolBuilder, Settings, Source, Spec};
use tokio::{task::JoinHandle, time::Instant};

use crate::support::{
    eventually,
    spy::{Act, Spy},
    wasm,
};

/// A spy that ends compiles and shares code, and a pool on it with this many slots.
fn with_slots(build_concurrency: usize) -> (Spy, EvaluatorPool) {
    let spy = Spy::with_workers();
    let mut settings = Settings::default();
    settings.pool.build_concurrency = build_concurrency;
    settings.pool.negative_ttl = Duration::ZERO;
    (spy.clone(), spy.pool(|_| PoolBuilder::from(settings).park_after(0)))
}

/// A plugin of which there is one for each text.
fn bytes(text: &str) -> Vec<u8> {
    wasm(&format!(r#"(module (func (export "run")) (@custom "text" "{text}"))"#))
}

fn evaluator(pool: &EvaluatorPool, name: &str) -> Evaluator {
    evaluator_of(pool, name, name)
}

fn evaluator_of(pool: &EvaluatorPool, name: &str, text: &str) -> Evaluator {
    pool.evaluator(name, Spec::new(Source::bytes(bytes(text)))).unwrap()
}

fn call(evaluator: &Evaluator) -> JoinHandle<Result<(), Error>> {
    let evaluator = evaluator.clone();
    tokio::spawn(async move { evaluator.evaluate("").await.map(drop) })
}

async fn leave(call: JoinHandle<Result<(), Error>>) {
    call.abort();
    assert!(call.await.is_err_and(|error| error.is_cancelled()), "it had not ended");
}

/// Time is paused, so it goes on only once everything that can go on has done so.
async fn settle() {
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_build_that_nobody_waits_for_gives_way_when_another_wants_its_slot() {
    for leaves_first in [true, false] {
        let (spy, pool) = with_slots(1);
        spy.on_compile([Act::Never]);
        let began = Instant::now();
        let [unwanted, wanted] = ["unwanted", "wanted"].map(|name| evaluator(&pool, name));
        let caller = call(&unwanted);
        eventually("it compiles", || spy.working() == 1).await;
        let (caller, other) = if leaves_first {
            leave(caller).await;
            settle().await;
            assert_eq!(spy.working(), 1, "nobody wants its slot");
            (None, call(&wanted))
        } else {
            let other = call(&wanted);
            settle().await;
            assert_eq!(spy.working(), 1, "somebody waits for it");
            (Some(caller), other)
        };
        if let Some(caller) = caller {
            leave(caller).await;
        }
        other.await.unwrap().unwrap();
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        eventually("its place is given back", || pool.runtimes() == 1).await;
        // The next caller of what gave way finds nothing of it.
        unwanted.evaluate("").await.unwrap();
        pool.close().await;
        spy.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_build_that_is_joined_in_time_goes_on() {
    let (spy, pool) = with_slots(1);
    spy.on_compile([Act::Held]);
    let slow = evaluator(&pool, "slow");
    let first = call(&slow);
    eventually("it compiles", || spy.working() == 1).await;
    leave(first).await;
    let second = call(&slow);
    let other = call(&evaluator(&pool, "other"));
    settle().await;
    assert_eq!((spy.working(), spy.compiles()), (1, 1));
    spy.release();
    second.await.unwrap().unwrap();
    other.await.unwrap().unwrap();
    assert_eq!(spy.compiles(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_build_gives_way_only_once_nobody_waits_for_the_same_bytes_either() {
    for others_leave in [false, true] {
        let (spy, pool) = with_slots(1);
        spy.on_compile([Act::Held]);
        let [leads, follows] = ["leads", "follows"].map(|name| evaluator_of(&pool, name, "same"));
        let leader = call(&leads);
        eventually("it compiles", || spy.working() == 1).await;
        let follower = call(&follows);
        let wants_the_slot = evaluator(&pool, "third");
        let third = call(&wants_the_slot);
        settle().await;
        leave(leader).await;
        settle().await;
        assert_eq!((spy.working(), spy.compiles()), (1, 1), "the follower waits for it");
        if others_leave {
            leave(follower).await;
            third.await.unwrap().unwrap();
            assert_eq!(spy.compiles(), 2, "of the same bytes none was begun again");
            eventually("both places are given back", || pool.runtimes() == 1).await;
        } else {
            spy.release();
            follower.await.unwrap().unwrap();
            third.await.unwrap().unwrap();
        }
        pool.close().await;
        spy.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_with_the_same_bytes_compiles_when_the_first_has_failed_or_was_closed() {
    for act in [Act::Fail, Act::Panic, Act::Never] {
        let (spy, pool) = with_slots(1);
        spy.on_compile([Act::Slow(Duration::from_millis(100)), act.clone()]);
        let blocker = call(&evaluator(&pool, "blocker"));
        eventually("the slot is taken", || spy.working() == 1).await;
        let leader = evaluator_of(&pool, "leader", "same");
        let leading = call(&leader);
        settle().await;
        let follower = call(&evaluator_of(&pool, "follower", "same"));
        if act == Act::Never {
            eventually("it compiles", || spy.compiles() == 2).await;
            settle().await;
            leader.close().await;
        }
        assert!(leading.await.unwrap().is_err());
        follower.await.unwrap().unwrap();
        blocker.await.unwrap().unwrap();
        assert_eq!(spy.compiles(), 3);
        pool.close().await;
        spy.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_ends_a_compile_at_once() {
    for whole_pool in [false, true] {
        let (spy, pool) = with_slots(1);
        spy.on_compile([Act::Never]);
        let bomb = evaluator(&pool, "bomb");
        let caller = call(&bomb);
        eventually("it compiles", || spy.working() == 1).await;
        // Waits for the slot, and holds its place as well.
        let waiting = call(&evaluator(&pool, "waiting"));
        settle().await;
        let began = Instant::now();
        if whole_pool {
            pool.close().await;
            assert!(waiting.await.unwrap().is_err());
        } else {
            bomb.close().await;
            waiting.await.unwrap().unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        assert!(caller.await.unwrap().is_err());
        pool.close().await;
        spy.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_comes_back_however_its_build_ends() {
    let slow = Act::Slow(Duration::from_millis(700));
    for (compile, probe) in [
        (Act::Fail, None),
        (Act::Panic, None),
        (Act::Never, None),
        (Act::Succeed, Some(Act::Fail)),
        (Act::Succeed, Some(Act::Panic)),
        (Act::Succeed, Some(Act::Never)),
        // Both together take too long.
        (slow.clone(), Some(slow)),
    ] {
        let (spy, pool) = with_slots(1);
        let case = format!("{compile:?}, then {probe:?}");
        spy.on_compile([compile]);
        spy.on_instantiate(probe);
        let spec = Spec::new(Source::bytes(bytes("bad"))).build_timeout(Duration::from_secs(1));
        let began = Instant::now();
        let error = pool.evaluator("bad", spec).unwrap().evaluate("").await.expect_err(&case);
        assert!(began.elapsed() < Duration::from_millis(1_100), "{case}: {error} after {:?}", began.elapsed());
        evaluator(&pool, "next").evaluate("").await.unwrap();
        pool.close().await;
        spy.assert_nothing_left();
    }
}

#[test]
fn a_slot_comes_back_when_the_runtime_of_its_caller_ends() {
    let (spy, pool) = with_slots(1);
    spy.on_compile([Act::Never]);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    first.block_on(async {
        drop(call(&evaluator(&pool, "bad")));
        eventually("it compiles", || spy.working() == 1).await;
    });
    drop(first);
    runtime().block_on(async {
        evaluator(&pool, "next").evaluate("").await.unwrap();
        pool.close().await;
    });
    spy.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn there_are_never_more_compiles_than_slots() {
    let (spy, pool) = with_slots(2);
    // Spares that are made later are no builds.
    spy.interrupts_initialisers();
    spy.on_compile((0..40).map(|at| match at % 4 {
        0 => Act::Slow(Duration::from_millis(10)),
        1 => Act::Never,
        2 => Act::Fail,
        _ => Act::Succeed,
    }));
    let calls: Vec<_> = (0..40).map(|at| call(&evaluator(&pool, &format!("plugin-{at}")))).collect();
    for (at, call) in calls.into_iter().enumerate() {
        settle().await;
        if at % 3 == 0 {
            call.abort();
        }
        let _ = call.await;
    }
    assert_eq!(spy.counts().working_max.load(Ordering::SeqCst), 2);
    eventually("all slots are free", || spy.working() == 0).await;
    pool.close().await;
    spy.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_module_is_not_waited_for_because_somebody_links_it_with_what_never_compiles() {
    let (spy, pool) = with_slots(2);
    spy.on_compile([Act::Never]);
    let spec = Spec::new(Source::bytes(bytes("one"))).link("two", Source::bytes(bytes("two")));
    let never = call(&pool.evaluator("bomb", spec).unwrap());
    eventually("it is being compiled", || spy.working() == 1).await;
    for of_both in ["one", "two"] {
        evaluator(&pool, of_both).evaluate("").await.unwrap();
    }
    never.abort();
}
