//! What an error says to the plugin's author: which limit was passed and what it is set to, and the plugin's own words whole.

use std::time::Duration;

use evalpool::{
    Error, Source, Spec,
    config::{EngineKind, LimitSettings},
};

use crate::support::{TEXT, builder, patient, wasm};

/// How one evaluation fails under these limits.
async fn failure(engine: EngineKind, limits: LimitSettings, spec: Spec, input: String) -> Error {
    let pool = builder(engine).capacity(1).limits(limits).build().unwrap();
    let error = pool.evaluator("failing", spec).unwrap().evaluate(input).await.unwrap_err();
    pool.close().await;
    error
}

fn from_text(text: &str) -> Spec {
    Spec::new(Source::bytes(wasm(text)))
}

async fn a_limit_that_was_passed_is_named_with_its_value(engine: EngineKind) {
    let limits = LimitSettings { memory: 4 << 20, output_size: 1024, ..patient() };
    let output = r#"(module (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
        (import "extism:host/env" "output_set" (func $set (param i64 i64)))
        (func (export "run") (call $set (call $alloc (i64.const 1025)) (i64.const 1025))))"#;
    let grows = r#"(module (memory 1) (func (export "run") (drop (memory.grow (i32.const 1000)))))"#;
    let spins = from_text(r#"(module (func (export "run") (loop (br 0))))"#);
    for (spec, message) in [
        (from_text(output), "the plugin's output is over limits.output_size, 1 KiB"),
        (
            from_text(grows),
            "the plugin ran out of memory; limits.memory is 4 MiB, for all memories of an instance, with that for input and \
             output, from their first page on",
        ),
        (
            spins.exec_timeout(Duration::from_millis(1500)),
            "the plugin ran longer than limits.exec_timeout, 1.5 s, and was stopped",
        ),
        (
            from_text(r#"(module (memory 100) (func (export "run")))"#),
            "the plugin needs 6.2 MiB to start; limits.memory is 4 MiB",
        ),
    ] {
        assert_eq!(failure(engine, limits.clone(), spec, String::new()).await.to_string(), message);
    }
}

async fn a_plugins_own_message_is_whole_or_says_that_it_is_cut(engine: EngineKind) {
    let fail = || Spec::new(Source::bytes(TEXT)).entry_point("fail");
    let said = "é".repeat(32 << 10);
    let whole = failure(engine, patient(), fail(), said.clone()).await;
    assert_eq!(whole.to_string(), format!("the plugin reported an error: {said}"));
    let cut = failure(engine, patient(), fail(), format!("{said}x")).await;
    assert_eq!(cut.to_string(), format!("the plugin reported an error: {said}… (cut; 65537 bytes in all)"));
}

on_each_engine! {
    a_limit_that_was_passed_is_named_with_its_value,
    a_plugins_own_message_is_whole_or_says_that_it_is_cut,
}

#[tokio::test]
async fn an_initialiser_that_does_not_end_is_told_its_limit() {
    let limits = LimitSettings { build_timeout: Duration::from_millis(1500), ..patient() };
    let spec = from_text(r#"(module (func $spin (loop (br 0))) (start $spin) (func (export "run")))"#);
    let error = failure(EngineKind::Direct, limits, spec, String::new()).await;
    assert_eq!(error.to_string(), "the plugin was not compiled and initialised within limits.build_timeout, 1.5 s");
}

/// It is the host that ends the guest, which has reported nothing.
#[tokio::test]
async fn a_call_of_wasi_that_no_guest_may_make_is_a_trap() {
    let no_memory = r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (func (export "run") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;
    let error = failure(EngineKind::Direct, patient(), from_text(no_memory), String::new()).await;
    assert_eq!((error.kind().as_str(), error.last_words().unwrap().stack().len()), ("guest_trap", 1), "{error}");
    assert!(error.to_string().starts_with("the plugin trapped: "), "{error}");
}
