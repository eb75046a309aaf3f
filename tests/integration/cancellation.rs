//! The cancellation matrix: a future is polled k times and dropped, for every k, while the engine does each thing that
//! an engine can do at each step. Whatever happens, everything that was opened is closed, every permit is home, and
//! the pool serves the next caller.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use futures_util::FutureExt;

use evalpool::{Isolation, PoolBuilder, Settings};

use crate::support::{
    eventually,
    measured::Measured,
    spy::{Act, Spy},
};

const ACTS: [Act; 6] =
    [Act::Succeed, Act::Slow(Duration::from_millis(5)), Act::Fail, Act::Panic, Act::Never, Act::Held];

/// More than any of the futures needs to be polled when nothing is held up.
const MOST_POLLS: usize = 12;

/// Polls a future `polls` times, letting everything else go on in between, then drops it. True when it ended by itself.
async fn poll_and_drop(polls: usize, future: impl Future) -> bool {
    let mut future = pin!(future);
    for _ in 0..polls {
        if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return true;
        }
        // Longer than the slow engine takes, and than blocking threads need to be heard of.
        tokio::time::sleep(Duration::from_millis(1)).await;
        tokio::task::yield_now().await;
    }
    false
}

/// At rest the gauges say what there is.
fn gauges_are_true(pool: &Measured, spy: &Spy) -> bool {
    pool.sum("evalpool_runtimes_live", "") == spy.runtimes_live()
        && pool.sum("evalpool_instances_live", "") == spy.instances_live()
        && pool.sum("evalpool_waiting", "") == 0
}

/// An engine that ends a compile when it is told to, or one that cannot.
fn spy(interrupts_compiles: bool) -> Spy {
    let spy = Spy::default();
    if interrupts_compiles {
        spy.interrupts_compiles();
    }
    spy
}

/// Of two runtimes at most, either as the pool has no more, or as their tenant may have no more.
fn pool(spy: &Spy, isolation: Isolation, bounded: bool) -> Measured {
    let mut settings = Settings::default();
    if spy.ends_compiles() {
        // The next caller needs the slot of what was dropped.
        settings.pool.build_concurrency = 1;
    }
    settings.pool.capacity = 2;
    if bounded {
        let bounds = &mut settings.tenants.default;
        (bounds.runtimes, bounds.instances, bounds.max_waiting) = (Some(2), Some(2), Some(1));
        bounds.build_concurrency = Some(if spy.ends_compiles() { 1 } else { 2 });
        (settings.pool.capacity, settings.pool.build_concurrency) = (8, 8);
    }
    settings.pool.negative_ttl = Duration::ZERO;
    settings.pool.grace = Duration::from_millis(20);
    settings.engine.isolation = isolation;
    settings.limits.build_timeout = Duration::from_secs(1);
    settings.limits.exec_timeout = Duration::from_secs(1);
    Measured::new(spy, |_| PoolBuilder::from(settings).park_after(0))
}

/// After the drop: what is held is released, and the pool must come to rest and be whole.
async fn comes_to_rest(case: &str, spy: &Spy, pool: &Measured) {
    spy.release();
    let next = pool.evaluator("acme/next", Spy::spec()).unwrap();
    // The acts that were not used up belong to the case, so the next caller may meet one: it must be answered.
    for _ in 0..8 {
        if next.evaluate("").await.is_ok() {
            break;
        }
    }
    next.evaluate("").await.unwrap_or_else(|error| panic!("{case}: the next caller got {error}"));
    // What never answers holds its place and is no object yet; everything else is counted as it is.
    if !case.contains("Never") {
        eventually(&format!("the gauges tell the truth: {case}"), || gauges_are_true(pool, spy)).await;
    }
    drop(next);
    let report = pool.close().await;
    // A compile that never answers cannot be interrupted: it, and nothing else, is reported and stays counted.
    if spy.runtimes_live() > 0 {
        assert!(case.contains("compile Never") || case.contains("probe Never"), "{case}: {report:?}, {:?}", **pool);
        assert!(!spy.ends_compiles(), "{case}");
        return;
    }
    assert_eq!(pool.runtimes(), 0, "{case}");
    assert!(gauges_are_true(pool, spy), "{case}: {}", pool.metrics.render());
    assert_eq!(spy.opens(), spy.closes(), "{case}");
    assert_eq!(spy.instances_live(), 0, "{case}");
    assert!(spy.runtimes_live_max() <= 2, "{case}");
    let acme = pool.tenant("acme").unwrap();
    assert_eq!((acme.runtimes, acme.instances, acme.waiting), (0, 0, 0), "{case}");
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Compile,
    Probe,
    Call,
}

fn tell(spy: &Spy, step: Step, act: &Act) -> String {
    match step {
        Step::Compile => spy.on_compile([act.clone()]),
        Step::Probe => spy.on_instantiate([act.clone()]),
        Step::Call => spy.on_call([act.clone()]),
    }
    format!("{step:?} {act:?}").to_lowercase().replace("never", "Never")
}

#[tokio::test(start_paused = true)]
async fn an_evaluation_dropped_at_any_await_leaves_the_pool_whole() {
    let engines = [(Isolation::Fresh, false), (Isolation::Reuse, false), (Isolation::Fresh, true)];
    for ((isolation, interrupts), bounded) in engines.into_iter().flat_map(|engine| [(engine, false), (engine, true)]) {
        for step in [Step::Compile, Step::Probe, Step::Call] {
            for act in &ACTS {
                for polls in 0..=MOST_POLLS {
                    let spy = spy(interrupts);
                    let told = tell(&spy, step, act);
                    let case =
                        format!("{told}, evaluate dropped after {polls} polls, {isolation:?}, {interrupts}, {bounded}");
                    let pool = pool(&spy, isolation, bounded);
                    let evaluator = pool.evaluator("acme/victim", Spy::spec()).unwrap();
                    let context = Arc::new(());
                    let ended = poll_and_drop(polls, evaluator.evaluate_with("", context.clone())).await;
                    assert_eq!(Arc::strong_count(&context), 1, "the context is kept: {case}");
                    assert_eq!(
                        pool.sum("evalpool_evaluations_total", r#"outcome="cancelled""#),
                        usize::from(polls > 0 && !ended),
                        "{case}"
                    );
                    drop(evaluator);
                    comes_to_rest(&case, &spy, &pool).await;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_preparation_dropped_at_any_await_leaves_the_pool_whole() {
    let steps = [Step::Compile, Step::Probe].into_iter().flat_map(|step| [(step, false), (step, true)]);
    for ((step, interrupts), bounded) in steps.flat_map(|step| [(step, false), (step, true)]) {
        for act in &ACTS {
            for polls in 0..=MOST_POLLS {
                let spy = spy(interrupts);
                let told = tell(&spy, step, act);
                let case = format!("{told}, prepare dropped after {polls} polls, {interrupts}, {bounded}");
                let pool = pool(&spy, Isolation::Fresh, bounded);
                poll_and_drop(polls, async { pool.prepare("acme/victim", Spy::spec()).await.map(drop) }).await;
                comes_to_rest(&case, &spy, &pool).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_dropped_at_any_await_closes_all_the_same() {
    for act in &ACTS {
        for polls in 0..=4 {
            for whole_pool in [false, true] {
                let spy = Spy::default();
                let case = format!("{}, close dropped after {polls} polls", tell(&spy, Step::Call, act));
                let pool = pool(&spy, Isolation::Reuse, false);
                let evaluator = pool.evaluator("acme/victim", Spy::spec()).unwrap();
                let mut call = pin!(evaluator.evaluate("").fuse());
                poll_and_drop(MOST_POLLS, call.as_mut()).await;
                if whole_pool {
                    poll_and_drop(polls, pool.close()).await;
                    // The call is interrupted after its grace, once it is polled again; or had ended before.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    let _ = poll_and_drop(MOST_POLLS, call).await;
                    pool.close().await;
                    spy.assert_nothing_left();
                    assert!(gauges_are_true(&pool, &spy), "{case}");
                } else {
                    poll_and_drop(polls, evaluator.close()).await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    let _ = poll_and_drop(MOST_POLLS, call).await;
                    comes_to_rest(&case, &spy, &pool).await;
                }
            }
        }
    }
}
