//! The pool on the real engines: the bound, the gauges, replacement, and what the metrics say.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use evalpool::{CloseReport, EvaluatorPool, Fault, PoolBuilder, Source, Spec, config::EngineKind};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{ENGINES, GREET, TOTALS, builder, on_threads, spy::Spy, wasm};

fn greet() -> Spec {
    Spec::new(Source::bytes(GREET))
}

/// A pool whose metrics are its own, and where to read them.
fn measured(engine: EngineKind, capacity: usize) -> (EvaluatorPool, PrometheusHandle) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let builder = builder(engine).park_after(0).capacity(capacity);
    let pool = metrics::with_local_recorder(&recorder, || builder.build());
    (pool.unwrap(), handle)
}

/// The sum of a metric's series whose line holds every one of `parts`.
fn sum(rendered: &str, name: &str, parts: &[&str]) -> u64 {
    rendered
        .lines()
        .filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && parts.iter().all(|part| line.contains(part))
        })
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[test]
fn fifty_evaluators_share_four_places_on_each_real_engine() {
    ENGINES.into_iter().for_each(fifty_evaluators_share_four_places);
}

fn fifty_evaluators_share_four_places(engine: EngineKind) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    on_threads(async {
        let (pool, metrics) = measured(engine, 4);
        let evaluators: Arc<Vec<_>> =
            Arc::new((0..50).map(|index| pool.evaluator(&format!("e{index}"), greet()).unwrap()).collect());
        let (most, watching) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
        let watcher = std::thread::spawn({
            let (pool, most, watching) = (pool.clone(), most.clone(), watching.clone());
            move || {
                while watching.load(Ordering::SeqCst) {
                    most.fetch_max(pool.runtimes(), Ordering::SeqCst);
                }
            }
        });
        let mut tasks = JoinSet::new();
        for task in 0..8 {
            let (evaluators, mut random) = (evaluators.clone(), StdRng::seed_from_u64(seed.wrapping_add(task)));
            tasks.spawn(async move {
                for call in 0..25 {
                    let evaluator = &evaluators[random.random_range(0..evaluators.len())];
                    let name = format!("{task}/{call}");
                    let response = evaluator.evaluate(json!({"name": name})).await.unwrap();
                    assert_eq!(response.json::<Value>().unwrap()["greeting"], format!("Hello, {name}!"));
                    assert_eq!(response.evaluator(), evaluator.id());
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
        watching.store(false, Ordering::SeqCst);
        watcher.join().unwrap();
        assert!((1..=4).contains(&most.load(Ordering::SeqCst)), "{most:?}");
        assert_eq!(pool.close().await, CloseReport::Drained);
        assert_eq!(pool.runtimes(), 0);

        let rendered = metrics.render();
        let built = sum(&rendered, "evalpool_builds_total", &["outcome=\"ok\""]);
        assert!(built > 4);
        assert_eq!(sum(&rendered, "evalpool_closes_total", &[]), built);
        assert_eq!(sum(&rendered, "evalpool_closes_total", &["reason=\"invalid\""]), 0);
        assert_eq!(sum(&rendered, "evalpool_evaluations_total", &["outcome=\"ok\""]), 200);
        assert_eq!(sum(&rendered, "evalpool_evaluations_total", &[]), 200);
        for gauge in ["evalpool_runtimes_live", "evalpool_instances_live", "evalpool_waiting"] {
            assert_eq!(sum(&rendered, gauge, &[]), 0, "{gauge}");
        }
    });
}

#[test]
fn every_metric_exists_from_the_start() {
    let (_pool, metrics) = measured(EngineKind::Direct, 7);
    let rendered = metrics.render();
    assert_eq!(sum(&rendered, "evalpool_runtimes_capacity", &[]), 7);
    for metric in evalpool::metrics::CATALOGUE {
        let Some((label, values)) = metric.label else {
            assert!(rendered.contains(metric.name), "{}", metric.name);
            continue;
        };
        for value in values {
            let series = format!("{label}=\"{value}\"");
            assert!(
                rendered.lines().any(|line| line.starts_with(metric.name) && line.contains(&series)),
                "{} {series}",
                metric.name
            );
        }
    }
}

#[test]
fn at_rest_the_gauges_equal_what_exists() {
    on_threads(async {
        let (pool, metrics) = measured(EngineKind::Direct, 8);
        let evaluators: Vec<_> = (0..3).map(|index| pool.register(&format!("e{index}"), greet()).unwrap()).collect();
        for evaluator in &evaluators {
            evaluator.evaluate(json!({"name": "Ada"})).await.unwrap();
        }
        crate::support::eventually("each runtime has its spare", || {
            let rendered = metrics.render();
            sum(&rendered, "evalpool_instances_live", &["state=\"idle\""]) == 3
                && sum(&rendered, "evalpool_instances_live", &["state=\"busy\""]) == 0
        })
        .await;
        let rendered = metrics.render();
        assert_eq!(sum(&rendered, "evalpool_runtimes_live", &["state=\"live\""]), 3);
        assert_eq!(sum(&rendered, "evalpool_evaluators_registered", &[]), 3);
        assert_eq!(sum(&rendered, "evalpool_lookups_total", &["result=\"miss\""]), 3);
        pool.close().await;
    });
}

#[test]
fn a_replaced_plugin_finishes_its_calls_and_the_new_one_answers_the_next_on_each_engine() {
    ENGINES.into_iter().for_each(a_replaced_plugin_finishes_its_calls);
}

fn a_replaced_plugin_finishes_its_calls(engine: EngineKind) {
    let answer = |text: &str| {
        wasm(&format!(
            r#"(module
                (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
                (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
                (import "extism:host/env" "output_set" (func $output (param i64 i64)))
                (func (export "run") (result i32) (local $at i64)
                    (local.set $at (call $alloc (i64.const 1)))
                    (call $store (local.get $at) (i32.const {}))
                    (call $output (local.get $at) (i64.const 1))
                    i32.const 0))"#,
            text.as_bytes()[0]
        ))
    };
    on_threads(async {
        let (pool, _) = measured(engine, 4);
        pool.prepare("name", Spec::new(Source::bytes(answer("a")))).await.unwrap().publish();
        let stop = Arc::new(AtomicBool::new(false));
        let callers: Vec<_> = (0..4)
            .map(|_| {
                let (pool, stop) = (pool.clone(), stop.clone());
                tokio::spawn(async move {
                    let mut seen = String::new();
                    while !stop.load(Ordering::SeqCst) {
                        let response = pool.get("name").unwrap().evaluate("").await.unwrap();
                        let letter = char::from(response.bytes()[0]);
                        if !seen.ends_with(letter) {
                            seen.push(letter);
                        }
                    }
                    seen
                })
            })
            .collect();
        for text in ["b", "c", "d"] {
            let (_, replaced) = pool.prepare("name", Spec::new(Source::bytes(answer(text)))).await.unwrap().publish();
            assert!(replaced);
            // Published means that every later call sees it.
            assert_eq!(pool.get("name").unwrap().evaluate("").await.unwrap().bytes(), text);
        }
        stop.store(true, Ordering::SeqCst);
        for caller in callers {
            let seen = caller.await.unwrap();
            assert!(seen.is_ascii() && seen.as_bytes().is_sorted(), "never back to an older one: {seen}");
        }
        pool.close().await;
        assert_eq!(pool.runtimes(), 0);
    });
}

#[tokio::test]
async fn an_evaluator_is_built_ahead_of_its_first_call() {
    let pool = builder(EngineKind::Direct).capacity(1).build().unwrap();
    let warm = pool.evaluator("warm", greet()).unwrap();
    assert_eq!(pool.runtimes(), 0);
    warm.warm().await.unwrap();
    warm.warm().await.unwrap();
    assert_eq!(pool.runtimes(), 1);
    let response = warm.evaluate(json!({"name": "Ada"})).await.unwrap();
    assert_eq!(response.timings().build, std::time::Duration::ZERO);
    let bad = pool.evaluator("bad", Spec::bytes("no plugin")).unwrap();
    assert_eq!(bad.warm().await.unwrap_err().fault(), Fault::Plugin);
    warm.close().await;
    assert_eq!(warm.warm().await.unwrap_err().fault(), Fault::Caller);
    pool.close().await;
}

#[tokio::test]
async fn an_output_is_text_if_it_is_utf_8() {
    let pool = builder(EngineKind::Direct).capacity(1).build().unwrap();
    let echo = pool.evaluator("echo", Spec::bytes(TOTALS).entry_point("echo")).unwrap();
    assert_eq!(echo.evaluate("größe").await.unwrap().text().unwrap(), "größe");
    let error = echo.evaluate(b"\xff").await.unwrap().text().unwrap_err();
    assert_eq!((error.kind().as_str(), error.fault()), ("guest_error", Fault::Plugin));
    pool.close().await;
}

#[test]
fn the_order_in_which_a_builder_is_told_makes_no_difference() {
    let spy = Spy::default();
    let build = |builder: PoolBuilder| builder.engine(spy.clone()).build().map(drop).map_err(|error| error.to_string());
    assert_eq!(build(PoolBuilder::default().capacity(5000)), Ok(()), "as many instances as runtimes");
    let refused = build(PoolBuilder::default().capacity(8).max_instances(4)).unwrap_err();
    assert!(refused.contains("max_instances"), "{refused}");
    assert_eq!(build(PoolBuilder::default().max_instances(4).capacity(8)), Err(refused));
}
