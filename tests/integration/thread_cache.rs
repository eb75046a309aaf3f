//! Instances that threads keep stay the registry's: they count, they are evicted in the order of use, drained and closed, and
//! the gauges show them.
//!
//! The spy's pools park from the second call on. A host function that blocks shows a parked instance in the middle of its
//! use.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use evalpool::{
    CloseReport, Data, Evaluator, EvaluatorPool, HostFunction, Isolation, RuntimeState, Settings, Source, Spec,
    config::EngineKind, data::PerCall, engine::SlotCounts,
};
use futures_util::FutureExt;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::time::sleep;

use crate::support::{
    eventually, on_threads,
    spy::{Act, Spy},
    wasm,
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
    call(&evaluator, 100).await;
    let info = pool.info("one").unwrap();
    assert_eq!((info.evaluations, info.instances), (100, 1));
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let since = unix.as_millis() - u128::from(info.last_used.unwrap());
    assert!(since < 60_000, "{since} ms");
    let runtime = &pool.snapshot()[0];
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
    let evaluator = pool.evaluator("one", Spy::spec().with_data(PerCall(data))).unwrap();
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

#[tokio::test]
async fn max_uses_and_a_trap_end_a_parked_instance() {
    let mut settings = Settings::default();
    settings.pool.max_uses = 10;
    settings.engine.isolation = Isolation::Reuse;
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.settings(settings));
    let evaluator = pool.evaluator("one", Spy::spec()).unwrap();
    call(&evaluator, 25).await;
    assert_eq!(spy.counts().instances_made.load(Ordering::SeqCst), 3);
    assert_eq!(evaluator.evaluate("trap").await.unwrap_err().kind(), "guest_trap");
    call(&evaluator, 1).await;
    assert_eq!(spy.counts().instances_made.load(Ordering::SeqCst), 4);
    pool.close().await;
    spy.assert_nothing_left();
}

/// `direct` drops a guest that trapped while it is being called, and its permit with it.
#[tokio::test]
async fn a_guest_that_is_gone_before_its_lease_ends_is_counted_once() {
    let text = r#"(module (import "extism:host/env" "input_length" (func $length (result i64)))
        (func (export "run") (if (i64.ne (call $length) (i64.const 0)) (then unreachable))))"#;
    let builder = EvaluatorPool::builder().engine_kind(EngineKind::Direct).isolation(Isolation::Reuse);
    let pool = builder.max_instances(8).capacity(2).park_after(0).build().unwrap();
    let evaluator = pool.evaluator("one", Spec::new(Source::bytes(wasm(text)))).unwrap();
    for _ in 0..3 {
        call(&evaluator, 3).await;
        assert_eq!(evaluator.evaluate("trap").await.unwrap_err().kind(), "guest_trap");
        let runtime = &pool.snapshot()[0];
        assert_eq!((runtime.instances, runtime.busy), (0, 0));
    }
    assert_eq!(pool.close().await, CloseReport::Drained);
    assert_eq!(pool.slots().unwrap().live, SlotCounts::default());
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
        assert_eq!(pool.snapshot()[0].busy, 0);
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
    let pool = spy.pool(|builder| builder.settings(settings));
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

// ---- From within one poll --------------------------------------------------------------------------------------------

/// A pool with one hot evaluator, whose guest stays in its host function when told so.
struct Within {
    pool: EvaluatorPool,
    evaluator: Evaluator,
    metrics: PrometheusHandle,
    /// The guest is in its host function.
    inside: mpsc::Receiver<()>,
    /// It may go on.
    go_on: mpsc::Sender<()>,
}

impl Within {
    fn new() -> Self {
        let (entered, inside) = mpsc::channel();
        let (go_on, wait) = mpsc::channel::<()>();
        let (entered, wait) = (Mutex::new(entered), Mutex::new(wait));
        let stay = HostFunction::bytes("stay", move |input| {
            if input == b"stay" {
                entered.lock().unwrap().send(()).unwrap();
                wait.lock().unwrap().recv().unwrap();
            }
            Ok(Vec::new())
        });
        let guest = wasm(
            r#"(module
                (import "extism:host/env" "input_length" (func $length (result i64)))
                (import "extism:host/env" "input_load_u8" (func $load (param i64) (result i32)))
                (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
                (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
                (import "extism:host/user" "stay" (func $stay (param i64) (result i64)))
                (func (export "run") (local $at i64) (local $block i64)
                    (local.set $block (call $alloc (call $length)))
                    (block $copied (loop $next
                        (br_if $copied (i64.ge_u (local.get $at) (call $length)))
                        (call $store (i64.add (local.get $block) (local.get $at)) (call $load (local.get $at)))
                        (local.set $at (i64.add (local.get $at) (i64.const 1)))
                        (br $next)))
                    (drop (call $stay (local.get $block)))))"#,
        );
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = recorder.handle();
        let pool = metrics::with_local_recorder(&recorder, || {
            let builder = EvaluatorPool::builder().engine_kind(EngineKind::Direct).isolation(Isolation::Reuse);
            builder.max_instances(8).capacity(2).park_after(0).build().unwrap()
        });
        let spec = Spec::new(Source::bytes(guest)).with_host_function(stay);
        let evaluator = pool.register("one", spec).unwrap();
        Self { pool, evaluator, metrics, inside, go_on }
    }

    /// Calls until the instance is parked, then once more, which stays.
    async fn begin(&self) -> tokio::task::JoinHandle<Result<(), evalpool::Error>> {
        let evaluator = self.evaluator.clone();
        // On one thread from the first to the last, and not on the test's own.
        let task = tokio::spawn(async move {
            call(&evaluator, 3).await;
            evaluator.evaluate("stay").await.map(drop)
        });
        while self.inside.try_recv().is_err() {
            sleep(Duration::from_millis(1)).await;
        }
        task
    }

    fn gauge(&self, series: &str) -> usize {
        let rendered = self.metrics.render();
        let line = rendered.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("no {series}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }
}

#[test]
fn an_instance_in_use_is_seen_by_the_gauges_and_no_longer_once_it_is_idle() {
    let within = Within::new();
    on_threads(async {
        let task = within.begin().await;
        let busy = r#"evalpool_instances_live{state="busy"}"#;
        eventually("it is sampled", || within.gauge(busy) == 1).await;
        assert_eq!(within.pool.snapshot()[0].busy, 1);
        within.go_on.send(()).unwrap();
        task.await.unwrap().unwrap();
        assert_eq!(within.gauge(busy), 0, "at rest, at once");
        assert_eq!(within.gauge(r#"evalpool_instances_live{state="idle"}"#), 1);
        within.pool.close().await;
        assert_eq!(within.gauge(r#"evalpool_instances_live{state="idle"}"#), 0);
    });
}

#[test]
fn a_runtime_is_not_closed_under_a_parked_lease() {
    let within = Within::new();
    on_threads(async {
        let task = within.begin().await;
        let closing = tokio::spawn(within.evaluator.close_with(Duration::from_mins(1)));
        eventually("it drains", || {
            within.pool.snapshot().iter().any(|runtime| runtime.state == RuntimeState::Draining)
        })
        .await;
        assert_eq!(within.evaluator.evaluate("").await.unwrap_err().kind(), "closed");
        assert_eq!(within.pool.runtimes(), 1);
        within.go_on.send(()).unwrap();
        task.await.unwrap().unwrap();
        assert_eq!(closing.await.unwrap(), CloseReport::Drained);
        assert_eq!(within.pool.runtimes(), 0);
    });
}

#[test]
fn an_instance_in_use_is_neither_evicted_nor_given_to_another() {
    let within = Within::new();
    on_threads(async {
        let task = within.begin().await;
        let other = within.pool.register("other", Spec::new(Source::bytes(wasm(r#"(module (func (export "run")))"#))));
        let third = within.pool.register("third", Spec::new(Source::bytes(wasm(r#"(module (func (export "run")))"#))));
        let (other, third) = (other.unwrap(), third.unwrap());
        for evaluator in [&other, &third, &other] {
            call(evaluator, 2).await;
        }
        assert_eq!(within.pool.info("one").unwrap().state, RuntimeState::Live);
        within.evaluator.evaluate("").await.unwrap();
        assert_eq!(within.pool.info("one").unwrap().instances, 2);
        within.go_on.send(()).unwrap();
        task.await.unwrap().unwrap();
        assert_eq!(within.pool.close().await, CloseReport::Drained);
    });
}
