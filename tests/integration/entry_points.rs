//! An evaluator is a plugin; a call names its entry point. One runtime serves all of them.

use evalpool::{Error, EvaluatorPool, Isolation, Source, Spec, config::EngineKind};

use crate::support::{TEXT, builder, wasm};

/// `set` remembers its input's first byte, `get` outputs what is remembered, and `stop` traps. It exports what a toolchain
/// would as well.
const REMEMBERS: &str = r#"(module
    (import "extism:host/env" "input_load_u8" (func $input (param i64) (result i32)))
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
    (import "extism:host/env" "output_set" (func $output (param i64 i64)))
    (global $kept (mut i32) (i32.const 45))
    (func (export "set") (global.set $kept (call $input (i64.const 0))))
    (func (export "get") (local $at i64)
        (local.set $at (call $alloc (i64.const 1)))
        (call $store (local.get $at) (global.get $kept))
        (call $output (local.get $at) (i64.const 1)))
    (func (export "stop") unreachable)
    (func (export "__wasm_call_dtors") (global.set $kept (i32.const 33))))"#;

fn pool(engine: EngineKind) -> EvaluatorPool {
    builder(engine).capacity(1).build().unwrap()
}

fn remembers(isolation: Isolation) -> Spec {
    Spec::new(Source::bytes(wasm(REMEMBERS))).isolation(isolation)
}

/// The kind, the name that was asked for, and those to choose from.
fn missing(error: &Error) -> (Option<&str>, Vec<&str>) {
    let Error::EntryPointMissing { entry_point, available } = error else { panic!("{error}") };
    (entry_point.as_deref(), available.iter().map(String::as_str).collect())
}

async fn in_reuse_entry_points_share_what_an_instance_remembers_and_in_fresh_nothing(engine: EngineKind) {
    let pool = pool(engine);
    for (isolation, remembered) in [(Isolation::Reuse, "7"), (Isolation::Fresh, "-")] {
        let evaluator = pool.register("kept", remembers(isolation)).unwrap();
        assert_eq!(evaluator.entry_point("get").name(), "get");
        let (set, get) = (evaluator.entry_point("set"), evaluator.entry_point("get"));
        for _ in 0..3 {
            set.evaluate("7").await.unwrap();
            assert_eq!(get.evaluate("").await.unwrap().bytes(), remembered, "{isolation:?}");
        }
    }
    assert_eq!(pool.runtimes(), 1);
    pool.close().await;
}

async fn a_call_that_names_none_runs_the_default_and_the_others_run_beside_it(engine: EngineKind) {
    let pool = pool(engine);
    let evaluator = pool.register("text", Spec::new(Source::bytes(TEXT)).entry_point("upper")).unwrap();
    assert_eq!(evaluator.evaluate("tea").await.unwrap().bytes(), "TEA");
    let vowels = evaluator.entry_point("count_vowels").evaluate("tea").await.unwrap();
    assert_eq!(vowels.json::<serde_json::Value>().unwrap()["count"], 2);
    assert_eq!(evaluator.evaluate("tea").await.unwrap().bytes(), "TEA");
    assert_eq!(evaluator.executable().await.unwrap().entry_point(), Some("upper"));
    pool.close().await;
}

async fn one_that_does_not_exist_is_told_with_those_that_do_and_costs_no_instance(engine: EngineKind) {
    let pool = pool(engine);
    let evaluator = pool.register("kept", remembers(Isolation::Reuse)).unwrap();
    evaluator.entry_point("set").evaluate("7").await.unwrap();
    let names = ["set", "get", "stop"];
    // What a toolchain exports for its own use is not for callers.
    for unknown in ["price", "", "__wasm_call_dtors", "memory"] {
        let error = evaluator.entry_point(unknown).evaluate("").await.unwrap_err();
        assert_eq!(missing(&error), (Some(unknown), names.to_vec()));
    }
    // The plugin has no default.
    assert_eq!(missing(&evaluator.evaluate("").await.unwrap_err()), (None, names.to_vec()));
    assert_eq!(evaluator.executable().await.unwrap().entry_point(), None);
    // The instance is the one that remembers.
    assert_eq!(evaluator.entry_point("get").evaluate("").await.unwrap().bytes(), "7");
    pool.close().await;
}

async fn an_instance_that_one_entry_point_left_unsound_serves_no_other(engine: EngineKind) {
    let pool = pool(engine);
    let evaluator = pool.register("kept", remembers(Isolation::Reuse)).unwrap();
    evaluator.entry_point("set").evaluate("7").await.unwrap();
    assert_eq!(evaluator.entry_point("stop").evaluate("").await.unwrap_err().kind(), "guest_trap");
    assert_eq!(evaluator.entry_point("get").evaluate("").await.unwrap().bytes(), "-");
    pool.close().await;
}

async fn a_plugin_without_any_is_not_built(engine: EngineKind) {
    let pool = pool(engine);
    let nothing = Spec::new(Source::bytes(wasm(r#"(module (memory (export "memory") 1))"#)));
    let evaluator = pool.register("nothing", nothing).unwrap();
    let error = evaluator.entry_point("run").evaluate("").await.unwrap_err();
    assert_eq!(missing(&error), (None, vec![]));
    assert_eq!(pool.runtimes(), 0);
    pool.close().await;
}

on_each_engine!(
    in_reuse_entry_points_share_what_an_instance_remembers_and_in_fresh_nothing,
    a_call_that_names_none_runs_the_default_and_the_others_run_beside_it,
    one_that_does_not_exist_is_told_with_those_that_do_and_costs_no_instance,
    an_instance_that_one_entry_point_left_unsound_serves_no_other,
    a_plugin_without_any_is_not_built,
);

#[test]
fn without_tokio_an_entry_point_is_called_as_well() {
    let pool = pool(EngineKind::Direct);
    let evaluator = pool.register("text", Spec::new(Source::bytes(TEXT)).entry_point("upper")).unwrap();
    let response = evaluator.entry_point("count_vowels").evaluate_blocking("tea").unwrap();
    assert_eq!(response.json::<serde_json::Value>().unwrap()["count"], 2);
}
