//! On the real engine, a host function that blocks shows a parked instance in the middle of its use, within one poll.

use std::{
    sync::{Mutex, mpsc},
    time::Duration,
};

use evalpool::{
    CloseReport, Evaluator, EvaluatorPool, HostFunction, Isolation, RuntimeState, Source, Spec, config::EngineKind,
    engine::SlotCounts,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::time::sleep;

use super::call;
use crate::support::{builder, eventually, on_threads, wasm};

/// `direct` drops a guest that trapped while it is being called, and its permit with it.
#[tokio::test]
async fn a_guest_that_is_gone_before_its_lease_ends_is_counted_once() {
    let text = r#"(module (import "extism:host/env" "input_length" (func $length (result i64)))
        (func (export "run") (if (i64.ne (call $length) (i64.const 0)) (then unreachable))))"#;
    let builder = builder(EngineKind::Direct).isolation(Isolation::Reuse);
    let pool = builder.max_instances(8).capacity(2).park_after(0).build().unwrap();
    let evaluator = pool.evaluator("one", Spec::new(Source::bytes(wasm(text)))).unwrap();
    for _ in 0..3 {
        call(&evaluator, 3).await;
        assert_eq!(evaluator.evaluate("trap").await.unwrap_err().kind(), "guest_trap");
        let runtime = &pool.snapshot().runtimes[0];
        assert_eq!((runtime.instances, runtime.busy), (0, 0));
    }
    assert_eq!(pool.close().await, CloseReport::Drained);
    assert_eq!(pool.slots().unwrap().live, SlotCounts::default());
}

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
            let builder = builder(EngineKind::Direct).isolation(Isolation::Reuse);
            builder.max_instances(8).capacity(2).park_after(0).build().unwrap()
        });
        let spec = Spec::new(Source::bytes(guest)).host_function(stay);
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
        assert_eq!(within.pool.snapshot().runtimes[0].busy, 1);
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
            within.pool.snapshot().runtimes.iter().any(|runtime| runtime.state == RuntimeState::Draining)
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
