//! Closing: on every path, once, and never under a lease. Hard corners carry their number in `registry::corners`.

use std::{
    thread,
    time::{Duration, Instant},
};

use evalpool::{Close, CloseReport, Isolation, RuntimeState, Source, Spec, config::LimitSettings};
use tokio::{task::JoinSet, time::timeout};

use crate::support::{
    GREET, eventually, on_threads,
    process::{alone, resident_mib},
    spy::{Act, Spy},
};

/// Waits on a plain thread, where there is no tokio.
fn eventually_here(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_holds_something_closable_can_release_it_without_knowing_what_it_is() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(4));
    let evaluator = pool.register("name", Spy::spec()).unwrap();
    let executable = evaluator.executable().await.unwrap();
    let held: [Box<dyn Close>; 3] = [Box::new(executable), Box::new(evaluator.clone()), Box::new(pool.clone())];
    evaluator.evaluate("").await.unwrap();
    assert_eq!(held[0].close().await, CloseReport::Drained);
    assert_eq!((spy.opens(), spy.closes()), (1, 1));
    evaluator.evaluate("built anew").await.unwrap();
    assert_eq!(held[1].close_with(Duration::ZERO).await, CloseReport::Drained);
    assert_eq!(evaluator.evaluate("").await.unwrap_err().kind(), "closed");
    assert_eq!(held[2].close().await, CloseReport::Drained);
    assert_eq!(pool.evaluator("late", Spy::spec()).unwrap().evaluate("").await.unwrap_err().kind(), "shutting_down");
    spy.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn closing_from_many_tasks_at_once_closes_once_and_all_wait_for_the_end() {
    let spy = Spy::default();
    spy.on_call([Act::Slow(Duration::from_secs(3))]);
    let pool = spy.pool(|builder| builder.capacity(1));
    let evaluator = pool.evaluator("name", Spy::spec()).unwrap();
    let running = tokio::spawn({
        let evaluator = evaluator.clone();
        async move { evaluator.evaluate("").await }
    });
    eventually("the guest runs", || spy.calls_started() == 1).await;
    let mut closers = JoinSet::new();
    for _ in 0..10 {
        let (evaluator, spy) = (evaluator.clone(), spy.clone());
        closers.spawn(async move {
            assert_eq!(evaluator.close().await, CloseReport::Drained);
            assert_eq!(spy.closes(), 1, "closed when the call returned");
        });
    }
    while let Some(closer) = closers.join_next().await {
        closer.unwrap();
    }
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn dropping_the_close_future_does_not_stop_the_closing() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(2));
    let first = pool.evaluator("first", Spy::spec()).unwrap();
    first.evaluate("").await.unwrap();
    drop(first.close());
    eventually("it is closed", || spy.closes() == 1).await;
    let second = pool.evaluator("second", Spy::spec()).unwrap();
    second.evaluate("").await.unwrap();
    drop(pool.close());
    eventually("all is closed", || spy.closes() == 2).await;
    spy.assert_nothing_left();
}

#[test]
fn corner_4_who_waits_for_an_instance_holds_no_lease_and_draining_wakes_it() {
    on_threads(async {
        for close in [true, false] {
            let spy = Spy::default();
            spy.on_call([Act::Held]);
            let pool =
                spy.pool(|builder| builder.capacity(2).max_instances_per_evaluator(1).isolation(Isolation::Reuse));
            let evaluator = pool.evaluator("name", Spy::spec()).unwrap();
            let call = || {
                tokio::spawn({
                    let evaluator = evaluator.clone();
                    async move { evaluator.evaluate("").await }
                })
            };
            let running = call();
            eventually("the first runs", || spy.calls_started() == 1).await;
            let waiting = call();
            tokio::time::sleep(Duration::from_millis(20)).await;
            if close {
                let closing = evaluator.close();
                assert_eq!(waiting.await.unwrap().unwrap_err().kind(), "closed");
                assert_eq!(spy.closes(), 0, "the first still has its lease");
                spy.release();
                assert_eq!(closing.await, CloseReport::Drained);
            } else {
                let unloading = tokio::spawn({
                    let evaluator = evaluator.clone();
                    async move { evaluator.unload().await }
                });
                waiting.await.unwrap().expect("it is answered by a runtime of its own");
                assert_eq!((spy.opens(), spy.closes()), (2, 0));
                spy.release();
                assert_eq!(unloading.await.unwrap(), CloseReport::Drained);
            }
            running.await.unwrap().unwrap();
            pool.close().await;
            spy.assert_nothing_left();
        }
    });
}

#[test]
fn corner_6_no_wake_up_is_lost_when_leases_end_and_callers_come_and_go() {
    on_threads(async {
        let spy = Spy::default();
        let pool = spy.pool(|builder| builder.capacity(1).max_instances(2).max_instances_per_evaluator(2));
        let evaluators: Vec<_> = (0..4).map(|name| pool.evaluator(&name.to_string(), Spy::spec()).unwrap()).collect();
        let mut tasks = JoinSet::new();
        for task in 0..16_u64 {
            let evaluator = evaluators[(task % 4) as usize].clone();
            tasks.spawn(async move {
                for call in 0..100 {
                    if (task + call) % 3 == 0 {
                        let patience = Duration::from_micros(call * 7 % 200);
                        let _ = timeout(patience, evaluator.evaluate("")).await;
                    } else {
                        evaluator.evaluate("").await.unwrap();
                    }
                }
            });
        }
        timeout(Duration::from_mins(1), tasks.join_all()).await.expect("nobody is forgotten");
        assert_eq!(spy.runtimes_live_max(), 1);
        assert!(spy.instances_live_max() <= 2, "{} instances existed", spy.instances_live_max());
        pool.close().await;
        spy.assert_nothing_left();
    });
}

#[tokio::test(start_paused = true)]
async fn corner_8_when_everybody_leaves_a_build_it_finishes_and_ends_idle() {
    let spy = Spy::default();
    spy.on_compile([Act::Held]);
    let pool = spy.pool(|builder| builder.capacity(1));
    let evaluator = pool.register("name", Spy::spec()).unwrap();
    for _ in 0..3 {
        timeout(Duration::from_millis(1), evaluator.evaluate("")).await.unwrap_err();
    }
    spy.release();
    eventually("the build has ended", || pool.list(None, 1)[0].state == RuntimeState::Live).await;
    evaluator.evaluate("").await.unwrap();
    assert_eq!(spy.compiles(), 1);
}

#[test]
fn corner_10_bytes_being_fetched_are_bounded_in_sum() {
    if !alone("lifecycle::corner_10_bytes_being_fetched_are_bounded_in_sum") {
        return;
    }
    on_threads(async {
        // A module with a custom section of 16 MiB: valid, and large to fetch.
        let mut module = GREET.to_vec();
        module.extend([0, 0x85, 0x80, 0x80, 0x08, 4]);
        module.extend(b"pad!");
        module.extend(vec![0; 16 << 20]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.wasm");
        std::fs::write(&path, &module).unwrap();
        drop(module);
        let spy = Spy::default();
        spy.on_call([Act::Held]);
        let pool = spy.pool(|builder| {
            // Reading and hashing this much takes a busy machine its time.
            let long = Duration::from_mins(10);
            let times =
                LimitSettings { exec_timeout: long, build_timeout: long, wait_timeout: long, ..Default::default() };
            builder.capacity(1).limits(times)
        });
        let mut tasks = JoinSet::new();
        for name in 0..40 {
            let spec = Spec::new(Source::file(&path)).entry_point("greet");
            let evaluator = pool.evaluator(&name.to_string(), spec).unwrap();
            tasks.spawn(async move { evaluator.evaluate("").await.map(drop) });
        }
        eventually("one runs, and those that fit are fetched", || spy.calls_started() == 1).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let resident = resident_mib();
        println!("{resident} MiB resident with 39 plugins of 16 MiB waiting");
        assert!(resident < 400, "{resident} MiB: what is fetched is not bounded");
        spy.release();
        for task in tasks.join_all().await {
            task.unwrap();
        }
        pool.close().await;
    });
}

#[test]
fn corner_13_instances_that_exist_never_exceed_their_bound() {
    on_threads(async {
        let spy = Spy::default();
        let pool = spy.pool(|builder| builder.capacity(3).max_instances(5).max_instances_per_evaluator(4));
        let evaluators: Vec<_> = (0..6).map(|name| pool.evaluator(&name.to_string(), Spy::spec()).unwrap()).collect();
        let mut tasks = JoinSet::new();
        for task in 0..24 {
            let evaluator = evaluators[task % 6].clone();
            tasks.spawn(async move {
                for _ in 0..50 {
                    evaluator.evaluate("").await.unwrap();
                }
            });
        }
        timeout(Duration::from_mins(1), tasks.join_all()).await.expect("no deadlock");
        assert!(spy.instances_live_max() <= 5, "{} instances existed", spy.instances_live_max());
        pool.close().await;
        spy.assert_nothing_left();
    });
}

#[test]
#[cfg(feature = "service")]
fn corner_16_whoever_looks_at_the_compiled_plugin_holds_its_close_off() {
    on_threads(async {
        let pool = crate::support::builder(evalpool::config::EngineKind::Direct).capacity(1).build().unwrap();
        let evaluator = pool.evaluator("greet", Spec::new(Source::bytes(GREET))).unwrap();
        let executable = evaluator.executable().await.unwrap();
        assert_eq!((executable.digest(), executable.entry_point()), (evalpool::Digest::of(GREET), Some("greet")));
        let closing = executable
            .with_compiled(|compiled| {
                assert!(compiled.as_any().is::<evalpool::engine::direct::Compiled>());
                let closing = evaluator.close();
                thread::sleep(Duration::from_millis(30));
                assert_eq!(pool.runtimes(), 1, "not closed under the lease");
                closing
            })
            .await
            .unwrap();
        assert_eq!(closing.await, CloseReport::Drained);
        assert_eq!(executable.with_compiled(|_| ()).await.unwrap_err().kind(), "closed");
    });
}

#[test]
fn corner_18_without_any_tokio_left_what_is_dropped_is_still_closed() {
    let spy = Spy::default();
    let (pool, evaluator) = on_threads(async {
        let pool = spy.pool(|builder| builder.capacity(4));
        let evaluator = pool.evaluator("loose", Spy::spec()).unwrap();
        evaluator.evaluate("").await.unwrap();
        pool.register("kept", Spy::spec()).unwrap().evaluate("").await.unwrap();
        (pool, evaluator)
    });
    drop(evaluator);
    eventually_here("the last handle closes its runtime", || spy.closes() == 1);
    drop(pool);
    eventually_here("the pool closes what it owns", || spy.closes() == 2);
    eventually_here("and nothing is left", || spy.runtimes_live() == 0 && spy.instances_live() == 0);
}

/// Evaluating, building and closing, all without a runtime of the caller's.
#[test]
fn a_caller_without_tokio_is_served_by_a_runtime_of_the_pools_own() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1));
    let [one, two] = ["one", "two"].map(|name| pool.evaluator(name, Spy::spec()).unwrap());
    for evaluator in [&one, &two, &one] {
        assert_eq!(evaluator.evaluate_blocking("x").unwrap().bytes(), "x#1");
    }
    assert_eq!(spy.opens(), 3);
    drop((one, two, pool));
    eventually_here("the last handles close it", || spy.closes() == 3);
    spy.assert_nothing_left();
}

#[test]
fn a_tokio_that_goes_in_the_middle_of_everything_takes_nothing_with_it() {
    for in_compile in [true, false] {
        let spy = Spy::default();
        if in_compile {
            spy.on_compile([Act::Held]);
        } else {
            spy.on_call([Act::Never]);
        }
        let pool = spy.pool(|builder| builder.capacity(2));
        let evaluator = pool.evaluator("name", Spy::spec()).unwrap();
        on_threads(async {
            let evaluator = evaluator.clone();
            tokio::spawn(async move { evaluator.evaluate("").await });
            eventually("it is under way", || spy.compiles() == 1).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        });
        spy.release();
        // On another tokio, the pool is as good as new.
        on_threads(async {
            evaluator.evaluate("x").await.unwrap();
            pool.close().await;
        });
        eventually_here("nothing is left", || spy.runtimes_live() == 0 && spy.instances_live() == 0);
        assert_eq!(spy.opens(), spy.closes());
    }
}

#[test]
fn what_is_dropped_while_a_panic_unwinds_is_closed() {
    let spy = Spy::default();
    let panicked = thread::spawn({
        let spy = spy.clone();
        move || {
            on_threads(async {
                let pool = spy.pool(|builder| builder.capacity(2));
                let evaluator = pool.evaluator("name", Spy::spec()).unwrap();
                evaluator.evaluate("").await.unwrap();
                panic!("the caller's own bug");
            });
        }
    });
    panicked.join().unwrap_err();
    eventually_here("it is closed", || spy.opens() == 1 && spy.closes() == 1 && spy.runtimes_live() == 0);
}

#[tokio::test(start_paused = true)]
async fn warming_builds_ahead_and_says_what_could_not_be_built() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(4));
    for name in ["a", "b", "c"] {
        pool.register(name, Spy::spec()).unwrap();
    }
    let outcomes = pool.warm(["a", "b", "nobody"]).await;
    let words: Vec<_> =
        outcomes.iter().map(|(name, outcome)| (*name, outcome.as_ref().err().map(evalpool::Error::kind))).collect();
    assert_eq!(words[0], ("a", None));
    assert_eq!(words[1], ("b", None));
    assert_eq!(words[2].1.unwrap(), "not_found");
    let snapshot = pool.snapshot().runtimes;
    assert_eq!(snapshot.len(), 2);
    assert!(snapshot.iter().all(|runtime| runtime.state == RuntimeState::Live && runtime.busy == 0));
    assert_eq!(spy.compiles(), 2);
    pool.get("a").unwrap().evaluate("").await.unwrap();
    assert_eq!(spy.compiles(), 2);
}

/// The grace goes on although the executor that was to wait for it has ended.
#[test]
fn a_close_interrupts_a_guest_after_its_grace_although_its_own_executor_has_ended() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1));
    let evaluator = pool.register("one", Spy::spec()).unwrap();
    spy.on_call([Act::Never]);
    let calling = thread::spawn({
        let evaluator = evaluator.clone();
        move || on_threads(async move { evaluator.evaluate("").await.unwrap_err() })
    });
    eventually_here("the guest runs", || spy.calls_started() == 1);
    let ends = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    ends.block_on(async { drop(evaluator.close_with(Duration::from_millis(100))) });
    drop(ends);
    assert_eq!(calling.join().unwrap().kind(), "closed");
    eventually_here("it is closed", || spy.closes() == 1);
    spy.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn who_was_taken_out_of_its_name_has_nothing_in_common_with_who_comes_after() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(4).grace(Duration::from_secs(1)));
    let first = pool.register("name", Spy::spec()).unwrap();
    first.evaluate("").await.unwrap();
    // Prepared while the first one has the name, and published when it has not.
    let prepared = pool.prepare("name", Spy::spec()).await.unwrap();
    assert_eq!(prepared.info().unwrap().id, first.id(), "it would replace that one");
    assert!(pool.take("name").is_some());
    let (second, replaced) = prepared.publish();
    assert!(!replaced && second.id() != first.id());
    assert_eq!(pool.info("name").unwrap().digest, first.executable().await.unwrap().digest().into());
    second.evaluate("").await.unwrap();
    let closed = tokio::time::timeout(Duration::from_mins(1), first.close()).await;
    assert!(closed.is_ok(), "it waits for its own runtime, and not for that of its successor");
    second.evaluate("").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_prepared_tells_how_long_its_build_took() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder);
    let [compile, init] = [2, 1].map(Duration::from_secs);
    spy.on_compile([Act::Slow(compile)]);
    spy.on_instantiate([Act::Slow(init)]);
    let took = pool.prepare("name", Spy::spec()).await.unwrap().took();
    assert_eq!((took.compile, took.init), (compile, init));
}
