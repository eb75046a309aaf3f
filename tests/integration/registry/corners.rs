//! The hard corners, and the rule for each. Each has a test whose name begins with its number: those that a spy can show
//! in paused time are here, the others in `lifecycle` and `engine`.
//!
//! 1. Replacing at capacity 1 needs two runtimes. The newcomer queues like any other, and may evict its own idle
//!    predecessor; if it then fails, the old plugin stays registered, cold.
//! 2. A runtime that is never idle would starve newcomers. While one waits, new leases on the chosen victim queue behind
//!    it, by age.
//! 3. Builds are shared by evaluator and revision: a new upload never joins the build of the old one, nor its failure that
//!    is remembered.
//! 4. A caller that waits for an instance holds no lease; draining wakes it.
//! 5. A builder reserves its place and its probe instance together, or the two bounds would deadlock.
//! 6. The last lease that is dropped hands the place to the first in the queue: no wake-up is lost.
//! 7. Closing owns its place, so the caller that evicts may leave.
//! 8. When every caller leaves a build, it finishes, and its runtime ends idle.
//! 9. Only what would fail again is remembered: never a timeout, a panic, saturation or a fetch.
//! 10. Bytes that are being fetched are bounded in sum, since they come before a place is taken.
//! 11. The guard spans publication: what was built and is not published is closed.
//! 12. Spare instances use permits that nobody wants, and are reaped first.
//! 13. The permit lives in the instance and is released last.
//! 14. A host function that evaluates on its own pool never waits: a nested call is `saturated`.
//! 15. A host function that blocks for ever cannot be interrupted. Close reports what remains after its deadline, and the
//!     place stays counted.
//! 16. Access to the compiled plugin is through a lease, and cannot outlive the close.
//! 17. Registered is not live: dropping the last handle of an evaluator that is not registered closes its runtime.
//! 18. Without any tokio left, a thread of this crate's own drops what is heavy.
//! 19. Close says what happened: drained, forced after its grace, or not ended by its deadline.

use std::time::Duration;

use evalpool::{CloseReport, Isolation, RuntimeState, Source, Spec, config::LimitSettings};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{evaluators, start, states, wait_behind};
use crate::support::{
    eventually, on_threads,
    spy::{Act, Spy},
    wasm,
};

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
    spy.on_compile([Act::Starve]);
    let starved = pool.evaluator("starved", Spy::spec()).unwrap();
    for _ in 0..2 {
        assert_eq!(starved.evaluate("").await.unwrap_err().kind(), "out_of_fuel");
        assert_eq!(spy.compiles(), 5);
    }
}

#[tokio::test(start_paused = true)]
async fn corner_9_a_build_that_took_too_long_is_tried_again_and_so_is_a_file_that_was_not_there() {
    let spy = Spy::default();
    // Compiling, then initialising.
    spy.on_compile([Act::Slow(Duration::from_secs(2)), Act::Succeed, Act::Succeed]);
    spy.on_instantiate([Act::Slow(Duration::from_secs(2)), Act::Succeed]);
    let limits = LimitSettings { build_timeout: Duration::from_secs(1), ..Default::default() };
    let pool = spy.pool(|builder| builder.capacity(4).limits(limits));
    let slow = pool.evaluator("slow", Spy::spec()).unwrap();
    for _ in 0..2 {
        assert_eq!(slow.evaluate("").await.unwrap_err().kind(), "build_timeout");
    }
    slow.evaluate("").await.unwrap();
    assert_eq!(spy.compiles(), 3);

    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("late.wasm");
    let late = pool.evaluator("late", Spec::new(Source::File(path.clone()))).unwrap();
    assert_eq!(late.evaluate("").await.unwrap_err().kind(), "source_unavailable");
    std::fs::write(&path, wasm(r#"(module (func (export "run")))"#)).unwrap();
    late.evaluate("").await.unwrap();
    // Nor is a shortage remembered.
    let crowded = spy.pool(|builder| builder.capacity(1).max_waiting(0));
    let [one, two] = ["one", "two"].map(|name| crowded.evaluator(name, Spy::spec()).unwrap());
    spy.on_call([Act::Held]);
    let running = start(&spy, &one).await;
    assert_eq!(two.evaluate("").await.unwrap_err().kind(), "saturated");
    spy.release();
    running.await.unwrap().unwrap();
    two.evaluate("").await.unwrap();
}

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
async fn corner_19_a_close_interrupts_calls_after_their_grace_and_says_so() {
    let spy = Spy::default();
    spy.on_call([Act::Never, Act::Never]);
    let pool = spy.pool(|builder| {
        builder
            .capacity(2)
            .grace(Duration::from_secs(1))
            .limits(LimitSettings { exec_timeout: Duration::from_mins(10), ..Default::default() })
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

/// An evaluator that is unloaded under a call has two runtimes for a while. What it is now is shown, not what it was.
#[tokio::test(start_paused = true)]
async fn an_evaluator_that_drains_and_is_built_anew_shows_what_it_is_now() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(2));
    let evaluator = pool.register("name", Spy::spec()).unwrap();
    spy.on_call([Act::Held]);
    let running = start(&spy, &evaluator).await;
    let unloading = tokio::spawn({
        let evaluator = evaluator.clone();
        async move { evaluator.unload().await }
    });
    eventually("it drains", || states(&pool) == [RuntimeState::Draining]).await;
    spy.on_compile([Act::Slow(Duration::from_secs(1))]);
    let next = wait_behind(&evaluator).await;
    assert_eq!(states(&pool), [RuntimeState::Building]);
    next.await.unwrap().unwrap();
    assert_eq!((states(&pool), pool.runtimes()), (vec![RuntimeState::Live], 2));
    assert_eq!(pool.slots().unwrap().live.instances, spy.instances_live() as u64);
    assert!(spy.instances_live() > 0);
    spy.release();
    running.await.unwrap().unwrap();
    unloading.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_build_says_how_long_its_compile_and_its_first_instance_took() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1));
    spy.on_compile([Act::Slow(Duration::from_secs(2))]);
    spy.on_instantiate([Act::Slow(Duration::from_secs(1))]);
    let took = pool.prepare("slow", Spy::spec()).await.unwrap().took();
    assert_eq!((took.compile, took.init), (Duration::from_secs(2), Duration::from_secs(1)));
    pool.close().await;
}
