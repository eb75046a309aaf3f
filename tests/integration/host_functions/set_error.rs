//! A host function that sets the guest's error and lets the guest go on: as if the guest had set it.

use evalpool::{
    Evaluator, HostFunction, Isolation, Source, Spec,
    config::EngineKind,
    engine::{Val, ValType},
};

use super::imports;
use crate::support::{builder, wasm};

/// `warn` sets the guest's error to what the guest gives it, and returns.
fn warn() -> HostFunction {
    HostFunction::new("warn", [ValType::I64], [], |guest, args| {
        let [Val::I64(offset)] = args else { return Ok(vec![]) };
        let message = guest.read(offset.cast_unsigned())?;
        guest.set_error(str::from_utf8(&message)?)?;
        Ok(vec![])
    })
}

/// Calls `warn` with "message", or with nothing, and then does each thing that a guest can do.
fn guest() -> Vec<u8> {
    let imports = imports(r#"(import "extism:host/user" "warn" (func $warn (param i64)))"#);
    let warned = "(call $warn (call $message))";
    wasm(&format!(
        r#"(module {imports}
            (global $count (mut i64) (i64.const 0))
            (func (export "go_on") {warned} (global.set $count (i64.add (global.get $count) (i64.const 1))))
            (func (export "count") (call $out (global.get $count)))
            (func (export "read") {warned} (call $block (call $error_get)) (call $error_set (i64.const 0)))
            (func (export "clear") {warned} (call $error_set (i64.const 0)))
            (func (export "replace") {warned} (call $error_set (call $digits)))
            (func (export "is_replaced") (call $error_set (call $digits)) {warned})
            (func (export "is_cleared") {warned} (call $warn (i64.const 0)))
            (func (export "trap") {warned} unreachable)
            (func (export "return_1") (result i32) {warned} i32.const 1))"#
    ))
}

/// The output, or the error's kind and text.
async fn comes_to(evaluator: &Evaluator, entry_point: &str) -> Result<Vec<u8>, String> {
    match evaluator.entry_point(entry_point).evaluate("").await {
        Ok(response) => Ok(response.bytes().to_vec()),
        Err(error) => Err(format!("{}: {error}", error.kind())),
    }
}

async fn the_guest_goes_on_and_the_evaluation_fails_unless_the_guest_clears_it(engine: EngineKind) {
    let pool = builder(engine).build().unwrap();
    let spec = Spec::new(Source::bytes(guest())).host_function(warn()).isolation(Isolation::Reuse);
    let evaluator = pool.evaluator("warned", spec).unwrap();
    let reported = |message: &str| Err(format!("guest_error: the plugin reported an error: {message}"));
    // The instance went on to its end, can be used again, and its next call has no error.
    for count in 1_u64..4 {
        assert_eq!(comes_to(&evaluator, "go_on").await, reported("message"));
        assert_eq!(comes_to(&evaluator, "count").await, Ok(count.to_le_bytes().to_vec()));
    }
    for (entry_point, expected) in [
        ("read", Ok(b"message".to_vec())),
        ("clear", Ok(vec![])),
        ("replace", reported("0123456789")),
        ("is_replaced", reported("message")),
        ("is_cleared", Ok(vec![])),
        ("return_1", reported("message")),
        ("trap", reported("message")),
    ] {
        assert_eq!(comes_to(&evaluator, entry_point).await, expected, "{entry_point}");
    }
    pool.close().await;
}

#[tokio::test]
async fn an_error_that_is_set_is_held_to_the_guests_memory() {
    let pool = builder(EngineKind::Direct).build().unwrap();
    let warn = HostFunction::new("warn", [ValType::I64], [], |guest, _| {
        guest.set_error(&"long".repeat(1 << 20))?;
        Ok(vec![])
    });
    let spec = Spec::new(Source::bytes(guest())).host_function(warn).memory(1 << 20);
    let error = pool.evaluator("warned", spec).unwrap().entry_point("go_on").evaluate("").await.unwrap_err();
    assert_eq!(error.kind(), "out_of_memory");
    pool.close().await;
}

on_each_engine!(the_guest_goes_on_and_the_evaluation_fails_unless_the_guest_clears_it);
