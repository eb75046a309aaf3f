//! What the engines tell of an evaluation.

use std::time::Duration;

use evalpool::{
    HostFunction, HttpUsage, Isolation, Source, Spec, Usage,
    config::EngineKind,
    data::Static,
    engine::{Val, ValType},
};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    conformance::{IMPORTS, http::http_server},
    support::{builder, wasm},
};

/// A plugin that has all of Extism's imports and `note` of the host's.
fn plugin(run: &str) -> Spec {
    let text = format!(
        r#"(module (import "extism:host/user" "note" (func $note (param i64) (result i64))) {IMPORTS}
            (func (export "run") (result i32) {run} i32.const 0))"#
    );
    let note = HostFunction::new("note", [ValType::I64], [ValType::I64], |_, args| Ok(args.to_vec()));
    Spec::new(Source::bytes(wasm(&text))).host_function(note)
}

/// What the second of two evaluations used.
async fn used(engine: EngineKind, spec: Spec, input: &str) -> Usage {
    let pool = builder(engine).build().unwrap();
    let evaluator = pool.evaluator("used", spec).unwrap();
    evaluator.evaluate(input.to_owned()).await.unwrap();
    let usage = evaluator.evaluate(input.to_owned()).await.unwrap().usage();
    pool.close().await;
    usage
}

async fn bytes_host_calls_and_times_are_told(engine: EngineKind) {
    let note = "(drop (call $note (i64.const 0)))";
    for isolation in [Isolation::Fresh, Isolation::Reuse] {
        let spec = plugin(&format!("{note} {note} (drop (call $alloc (i64.const 10))) {note} (call $echo)"));
        let usage = used(engine, spec.isolation(isolation), "a few words").await;
        assert_eq!((usage.bytes_in, usage.bytes_out, usage.host_calls), (11, 11, 3));
        assert!(Duration::ZERO < usage.guest && usage.guest <= usage.total, "{usage:?}");
        assert_eq!(usage.fuel, None, "nobody counts what nothing limits");
    }
}

async fn fuel_is_told_where_it_is_limited(engine: EngineKind) {
    let spin = "(local $n i32) (loop $next
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $next (i32.lt_u (local.get $n) (i32.const 1000))))";
    let fuel = async |limit| used(engine, plugin(spin).fuel(Some(limit)), "").await.fuel.unwrap();
    let (tight, ample) = (fuel(10_000).await, fuel(1_000_000).await);
    assert_eq!(tight, ample);
    assert!((5_000..10_000).contains(&tight), "{tight}");
}

async fn an_input_is_counted_with_the_evaluators_own_data(engine: EngineKind) {
    let spec = plugin("(call $echo)").data(Static(json!({"a": 1}).into()));
    let pool = builder(engine).build().unwrap();
    let usage = pool.evaluator("used", spec).unwrap().evaluate(json!({"b": 2})).await.unwrap().usage();
    assert_eq!((usage.bytes_in, usage.bytes_out), (13, 13));
    pool.close().await;
}

on_each_engine!(
    bytes_host_calls_and_times_are_told,
    fuel_is_told_where_it_is_limited,
    an_input_is_counted_with_the_evaluators_own_data,
    a_guest_that_fails_counts_with_what_it_used,
);

#[tokio::test]
async fn memory_is_told_at_its_largest_on_direct() {
    const PAGE: u64 = 65_536;
    let small = used(EngineKind::Direct, plugin(""), "").await.peak_memory.unwrap();
    let large = used(EngineKind::Direct, plugin("(drop (memory.grow (i32.const 10)))"), "").await.peak_memory.unwrap();
    // The plugin's own memory and the kernel's begin with a page each.
    assert!((2 * PAGE..3 * PAGE).contains(&small), "{small}");
    assert_eq!(large - small, 10 * PAGE);
    // A reused instance has what it grew to before.
    let again = plugin("(drop (memory.grow (i32.const 10)))").isolation(Isolation::Reuse);
    assert_eq!(used(EngineKind::Direct, again, "").await.peak_memory.unwrap() - small, 20 * PAGE);
    assert_eq!(used(EngineKind::Extism, plugin("").trusted(true), "").await.peak_memory, None);
}

#[tokio::test]
async fn http_is_told_on_direct() {
    let port = http_server(|request| {
        let body = request.split_once("\r\n\r\n").unwrap().1.repeat(3);
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    });
    let request = "(call $echo) (drop (call $http (call $output_offset) (call $colour)))";
    let spec = plugin(&format!("{request} {request}")).allowed_hosts(["127.0.0.1"]);
    let url = format!(r#"{{"url":"http://127.0.0.1:{port}/","method":"POST"}}"#);
    let http = used(EngineKind::Direct, spec, &url).await.http.unwrap();
    assert_eq!((http.requests, http.bytes_out, http.bytes_in), (2, 12, 36));
    assert_eq!(used(EngineKind::Direct, plugin(""), "").await.http, Some(HttpUsage::default()));
    assert_eq!(used(EngineKind::Extism, plugin("").trusted(true), "").await.http, None);
}

/// While a guest waits, others have its thread.
#[tokio::test]
async fn what_a_guest_waits_for_is_not_its_time_on_direct() {
    const WAIT: Duration = Duration::from_millis(300);
    let waits = HostFunction::new_async("note", [ValType::I64], [ValType::I64], |_, _| {
        Box::pin(async {
            sleep(WAIT).await;
            Ok(vec![Val::I64(0)])
        })
    });
    let text = r#"(module (import "extism:host/user" "note" (func $note (param i64) (result i64)))
        (func (export "run") (drop (call $note (i64.const 0)))))"#;
    let spec = || Spec::new(Source::bytes(wasm(text))).host_function(waits.clone());
    let usage = used(EngineKind::Direct, spec(), "").await;
    assert!(usage.total >= WAIT && usage.guest + WAIT / 2 < usage.total, "{usage:?}");
    let usage = used(EngineKind::Extism, spec(), "").await;
    assert!(usage.guest >= WAIT, "there it has a thread meanwhile: {usage:?}");
}

/// The guest calls the host three times, and then does this.
fn comes_to(end: &str) -> Spec {
    let note = "(drop (call $note (i64.const 0)))";
    plugin(&format!("{note} {note} {note} {end}"))
}

async fn a_guest_that_fails_counts_with_what_it_used(engine: EngineKind) {
    let pool = builder(engine).build().unwrap();
    for end in ["unreachable", "(call $error_set (call $message))", "(loop br 0)"] {
        let evaluator = pool.register("fails", comes_to(end).fuel(Some(20_000_000))).unwrap();
        evaluator.evaluate("four").await.map(drop).unwrap_or_default();
        let totals = pool.info("fails").unwrap().usage;
        assert_eq!((totals.evaluations, totals.bytes_in, totals.host_calls), (1, 4, 3), "{end}");
        assert!(Duration::ZERO < totals.guest && totals.guest <= totals.total, "{totals:?}");
        assert_eq!(totals.fuel == 20_000_000, end.starts_with("(loop"), "{totals:?}");
        assert!(totals.fuel > 0 || engine == EngineKind::Extism, "{totals:?}");
        assert!(pool.remove("fails").await);
    }
    pool.close().await;
}

#[tokio::test]
async fn a_guest_that_is_stopped_counts_with_what_it_used_on_direct() {
    const LONG: Duration = Duration::from_millis(100);
    let pool = builder(EngineKind::Direct).build().unwrap();
    let spec = || comes_to("(drop (memory.grow (i32.const 10))) (loop br 0)").fuel(Some(1 << 60));
    let late = pool.register("late", spec().exec_timeout(LONG)).unwrap();
    assert_eq!(late.evaluate("x").await.unwrap_err().kind(), "exec_timeout");
    let left = pool.register("left", spec()).unwrap();
    left.warm().await.unwrap();
    assert!(tokio::time::timeout(LONG, left.evaluate("x")).await.is_err());
    for (name, outcome) in [("late", "exec_timeout"), ("left", "cancelled")] {
        let totals = pool.info(name).unwrap().usage;
        assert_eq!((totals.outcomes.get(outcome), totals.host_calls, totals.bytes_in), (Some(&1), 3, 1));
        assert!(totals.fuel > 0 && totals.guest > LONG / 10 && totals.total >= LONG, "{totals:?}");
    }
    pool.close().await;
}
