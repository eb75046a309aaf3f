//! Whatever fails after the engine has opened something closes it: each failure point by name, on the spy.

#[cfg(feature = "service")]
mod traces;

use std::time::Duration;

use evalpool::EvaluatorPool;
use metrics_exporter_prometheus::PrometheusBuilder;

use crate::support::{
    eventually,
    spy::{Act, Spy},
};

/// One failing evaluation through a pool of capacity 1 whose failures are not remembered.
async fn fail_once(spy: &Spy, expected: &str) {
    let pool = forgetful(spy);
    let error = pool.evaluator("bad", Spy::spec()).unwrap().evaluate("").await.unwrap_err();
    assert_eq!(error.kind(), expected);
    // Closed before the error was returned: nothing is awaited here.
    spy.assert_nothing_left();
    assert_eq!(pool.runtimes(), 0);
}

fn forgetful(spy: &Spy) -> EvaluatorPool {
    let mut settings = evalpool::Settings::default();
    settings.pool.capacity = 1;
    settings.pool.negative_ttl = Duration::ZERO;
    spy.pool(|_| evalpool::PoolBuilder::from(settings).park_after(0))
}

#[tokio::test(start_paused = true)]
async fn a_failing_compile_opens_nothing() {
    let spy = Spy::default();
    spy.on_compile([Act::Fail]);
    fail_once(&spy, "invalid_plugin").await;
    assert_eq!(spy.opens(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_compile_is_an_error_and_gives_its_place_back() {
    let spy = Spy::default();
    spy.on_compile([Act::Panic]);
    fail_once(&spy, "internal").await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_probe_closes_what_was_compiled() {
    let spy = Spy::default();
    spy.on_instantiate([Act::Fail]);
    fail_once(&spy, "invalid_plugin").await;
    assert_eq!(spy.opens(), 1);
    assert_ne!(spy.closed_on(), [std::thread::current().id()], "on the thread that drives other tasks");
}

#[tokio::test(start_paused = true)]
async fn a_panicking_probe_closes_what_was_compiled() {
    let spy = Spy::default();
    spy.on_instantiate([Act::Panic]);
    let pool = forgetful(&spy);
    let error = pool.evaluator("bad", Spy::spec()).unwrap().evaluate("").await.unwrap_err();
    assert_eq!(error.kind(), "internal");
    // A panic unwinds through the guard's drop, which does not wait for the close that it starts.
    eventually("what was compiled is closed", || spy.closes() == 1 && pool.runtimes() == 0).await;
    assert_ne!(spy.closed_on(), [std::thread::current().id()], "on the thread that drives other tasks");
    spy.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn an_entry_point_that_vanishes_closes_what_was_compiled() {
    let spy = Spy::default();
    spy.entry_points_vanish();
    fail_once(&spy, "entry_point_missing").await;
    assert_eq!(spy.opens(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_guard_closes_is_counted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let spy = Spy::default();
    let pool = metrics::with_local_recorder(&recorder, || forgetful(&spy));
    let counted = |series: &str| {
        let rendered = metrics.render();
        let line = rendered.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_else(|| panic!("no {series}")).trim().parse::<usize>().unwrap()
    };
    let evaluator = pool.evaluator("bad", Spy::spec()).unwrap();
    let mut closed = 0;
    // By its close, by its drop, and what was never opened.
    for (compile, instantiate, opens) in [
        (Act::Succeed, Some(Act::Fail), true),
        (Act::Succeed, Some(Act::Panic), true),
        (Act::Fail, None, false),
        (Act::Panic, None, false),
    ] {
        spy.on_compile([compile]);
        spy.on_instantiate(instantiate);
        evaluator.evaluate("").await.unwrap_err();
        closed += usize::from(opens);
        eventually("it is closed", || pool.runtimes() == 0).await;
        assert_eq!(counted(r#"evalpool_closes_total{reason="invalid",how="drained"}"#), closed);
        assert_eq!(counted("evalpool_close_seconds_count"), closed);
    }
    assert_eq!(counted(r#"evalpool_builds_total{outcome="invalid_plugin"}"#), 2);
    assert_eq!(counted(r#"evalpool_builds_total{outcome="internal"}"#), 2);
    assert_eq!((spy.opens(), spy.closes()), (closed, closed));
}

/// A slot lasts until the compile has ended, and until the probe has, where nothing interrupts that.
#[tokio::test(start_paused = true)]
async fn no_more_compile_at_once_than_may() {
    for (interrupts, concurrency) in [(false, 1), (true, 1), (false, 2), (true, 2)] {
        let mut settings = evalpool::Settings::default();
        settings.pool.capacity = 6;
        // Without spares, which are made beside the slots.
        settings.engine.isolation = evalpool::Isolation::Reuse;
        settings.pool.build_concurrency = concurrency;
        let spy = Spy::default();
        if interrupts {
            spy.interrupts_initialisers();
        }
        let slow = || (0..6).map(|_| Act::Slow(Duration::from_millis(10)));
        spy.on_compile(slow());
        spy.on_instantiate(slow());
        let pool = spy.pool(|_| evalpool::PoolBuilder::from(settings).park_after(0));
        let all: Vec<_> = (0..6).map(|index| pool.evaluator(&format!("e{index}"), Spy::spec()).unwrap()).collect();
        let began = tokio::time::Instant::now();
        for evaluated in futures_util::future::join_all(all.iter().map(|evaluator| evaluator.evaluate(""))).await {
            evaluated.unwrap();
        }
        let most = spy.counts().working_max.load(std::sync::atomic::Ordering::SeqCst);
        assert_eq!(most, concurrency, "{interrupts}");
        // One after the other, in their slots; an initialiser that can be interrupted is outside of its slot.
        let in_slots =
            Duration::from_millis(if interrupts { 10 } else { 20 }) * 6 / u32::try_from(concurrency).unwrap();
        let outside = Duration::from_millis(if interrupts { 10 } else { 0 });
        assert_eq!(began.elapsed().as_millis(), (in_slots + outside).as_millis(), "{interrupts} {concurrency}");
    }
}

/// A compile that nobody waits for any more still has its slot.
#[tokio::test(start_paused = true)]
async fn a_compile_over_its_time_keeps_its_slot_until_it_ends() {
    let mut settings = evalpool::Settings::default();
    settings.pool.capacity = 4;
    settings.pool.build_concurrency = 1;
    settings.limits.wait_timeout = Duration::from_secs(1);
    let spy = Spy::default();
    spy.on_compile([Act::Held]);
    let pool = spy.pool(|_| evalpool::PoolBuilder::from(settings).park_after(0));
    let [slow, other] = ["slow", "other"].map(|name| pool.evaluator(name, Spy::spec()).unwrap());
    assert_eq!(slow.evaluate("").await.unwrap_err().kind(), "build_timeout");
    assert_eq!(other.evaluate("").await.unwrap_err().kind(), "wait_timeout");
    assert_eq!(spy.compiles(), 1);
    spy.release();
    eventually("the slot comes back", || pool.runtimes() == 0).await;
    other.evaluate("").await.unwrap();
    pool.close().await;
    spy.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_compile_over_its_time_is_reported_at_once_and_closed_when_it_ends() {
    let spy = Spy::default();
    spy.on_compile([Act::Held]);
    let pool = forgetful(&spy);
    let error = pool.evaluator("bad", Spy::spec()).unwrap().evaluate("").await.unwrap_err();
    assert_eq!(error.kind(), "build_timeout");
    assert_eq!(pool.runtimes(), 1, "the compile goes on and holds its place");
    spy.release();
    eventually("the compile has ended", || pool.runtimes() == 0).await;
    assert_eq!(spy.opens(), 1);
    spy.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_during_a_build_leaves_nothing_behind() {
    for (compile, instantiate) in [(Act::Held, Act::Succeed), (Act::Succeed, Act::Held)] {
        let spy = Spy::default();
        spy.on_compile([compile]);
        spy.on_instantiate([instantiate]);
        let pool = forgetful(&spy);
        let evaluator = pool.evaluator("left", Spy::spec()).unwrap();
        tokio::time::timeout(Duration::from_millis(10), evaluator.evaluate("")).await.unwrap_err();
        spy.release();
        eventually("the build has ended", || spy.counts().instances_made.load(std::sync::atomic::Ordering::SeqCst) > 0)
            .await;
        // Nobody waits, and the runtime is there, idle, for the next call.
        assert_eq!(evaluator.evaluate("x").await.unwrap().bytes(), "x#1");
        assert_eq!(spy.opens(), 1);
        pool.close().await;
        spy.assert_nothing_left();
    }
}

/// The bound is on what exists: a place lasts for as long as the engine keeps the permit that it was given.
#[tokio::test(start_paused = true)]
async fn a_place_lasts_as_long_as_what_the_engine_keeps_under_it() {
    let spy = Spy::default();
    spy.keeps_permits(usize::MAX);
    let pool = forgetful(&spy);
    let evaluator = pool.evaluator("kept", Spy::spec()).unwrap();
    evaluator.evaluate("").await.unwrap();
    assert_eq!(pool.slots().unwrap().live.instances, spy.instances_live() as u64);
    assert_eq!(evaluator.unload().await, evalpool::CloseReport::Unfinished { remaining: 1 });
    assert_eq!((spy.closes(), pool.runtimes()), (1, 1));
    spy.let_go_of_permits();
    assert_eq!(pool.runtimes(), 0);
    evaluator.evaluate("").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn two_hundred_failing_builds_on_the_spy_close_all_that_they_open() {
    let spy = Spy::default();
    spy.entry_points_vanish();
    for round in 0..200 {
        spy.on_compile([if round % 4 == 3 { Act::Fail } else { Act::Succeed }]);
        spy.on_instantiate((round % 4 != 3).then_some(if round % 4 == 2 { Act::Fail } else { Act::Succeed }));
        let pool = forgetful(&spy);
        pool.evaluator("bad", Spy::spec()).unwrap().evaluate("").await.unwrap_err();
    }
    assert_eq!(spy.opens(), 150);
    spy.assert_nothing_left();
}
