//! Host functions that are called by hostile plugins.

use std::sync::{Arc, Mutex};

use evalpool::{
    Error, Evaluator, HostFunction, Isolation, Source, Spec,
    config::EngineKind,
    engine::{GuestMemory, Val, ValType},
};

use super::{gallery::IMPORTS, settings, tells_of_the_host};
use crate::support::wasm;

/// Calls `upper` with what its input says, as eight bytes, or with the beginning of a block, or its middle, and gives
/// what it gave.
fn caller() -> Vec<u8> {
    wasm(&format!(
        r#"(module
            (import "extism:host/user" "upper" (func $upper (param i64) (result i64)))
            {IMPORTS}
            (func (export "run") (result i32) (local $at i64)
                (local.set $at (call $input64 (i64.const 0)))
                (if (i64.eq (local.get $at) (i64.const 0x6e6967656265726f)) (then (local.set $at (call $message))))
                (if (i64.eq (local.get $at) (i64.const 0x656c6464696d6e69)) (then (local.set $at (i64.add (call $message) (i64.const 3)))))
                (call $block (call $upper (local.get $at)))
                i32.const 0))"#
    ))
}

/// `upper`, and all that it was given.
fn upper() -> (HostFunction, Arc<Mutex<Vec<Vec<u8>>>>) {
    let given = Arc::new(Mutex::new(Vec::new()));
    let kept = given.clone();
    let function = HostFunction::bytes("upper", move |input| {
        kept.lock().unwrap().push(input.to_vec());
        Ok(input.to_ascii_uppercase())
    });
    (function, given)
}

async fn call(evaluator: &Evaluator, input: [u8; 8]) -> Result<Vec<u8>, Error> {
    evaluator.evaluate(input.to_vec()).await.map(|response| response.bytes().to_vec())
}

async fn a_host_function_is_given_blocks_and_nothing_else(engine: EngineKind) {
    let pool = evalpool::EvaluatorPool::from_settings(&settings(engine, Isolation::Reuse)).unwrap();
    let (function, given) = upper();
    let spec = Spec::new(Source::bytes(caller())).with_host_function(function);
    let evaluator = pool.evaluator("caller", spec).unwrap();
    assert_eq!(call(&evaluator, *b"orebegin").await.unwrap(), b"MESSAGE");
    for wild in [0, 1, 8, 64, 70, 65_535, 65_536, 1 << 31, 1 << 32, 1 << 62, u64::MAX - 7, u64::MAX] {
        match call(&evaluator, wild.to_le_bytes()).await {
            Ok(output) => assert!(output.is_empty(), "{wild}: {output:?}"),
            Err(error) => {
                assert_eq!(error.kind(), "guest_error", "{wild}: {error}");
                assert!(!tells_of_the_host(&error.to_string()), "{error}");
            }
        }
    }
    assert_eq!(call(&evaluator, *b"inmiddle").await.unwrap_err().kind(), "guest_error");
    let given = given.lock().unwrap().clone();
    assert!(given.iter().all(|bytes| bytes.is_empty() || bytes == b"message"), "{given:?}");
    pool.close().await;
}

async fn what_a_host_function_gives_is_held_to_the_guests_memory(engine: EngineKind) {
    let pool = evalpool::EvaluatorPool::from_settings(&settings(engine, Isolation::Reuse)).unwrap();
    let much = HostFunction::bytes("upper", |_| Ok(vec![7; 16 << 20]));
    let evaluator = pool.evaluator("caller", Spec::new(Source::bytes(caller())).with_host_function(much)).unwrap();
    for _ in 0..2 {
        let error = call(&evaluator, *b"orebegin").await.unwrap_err();
        // extism's error names neither memory nor a limit.
        let kind = if engine == EngineKind::Direct { "out_of_memory" } else { "guest_error" };
        assert_eq!(error.kind(), kind, "{error}");
    }
    pool.close().await;
}

/// The plugin stores all ones over what extism's kernel has in front of the blocks that it was given, and asks how long
/// they are.
async fn the_headers_of_blocks_that_a_host_function_made_cannot_be_forged(engine: EngineKind) {
    let pool = evalpool::EvaluatorPool::from_settings(&settings(engine, Isolation::Reuse)).unwrap();
    let two = |memory: &mut dyn GuestMemory, _: &[Val]| {
        memory.write(&[1; 100])?;
        memory.write(&[])?;
        Ok(vec![Val::I64(memory.write(&[2; 200])?.cast_signed())])
    };
    let text = format!(
        r#"(module (import "extism:host/user" "two" (func $two (param i64) (result i64))) {IMPORTS}
            (func $forge (param $p i64) (result i64)
                (call $store64 (i64.sub (local.get $p) (i64.const 8)) (i64.const -1))
                (call $store64 (i64.sub (local.get $p) (i64.const 12)) (i64.const -1))
                (call $length (local.get $p)))
            (func (export "run") (result i32) (local $p i64)
                (local.set $p (call $two (i64.const 0)))
                (i32.or
                    (i64.ne (call $forge (local.get $p)) (i64.const 200))
                    (i64.ne (call $forge (i64.sub (local.get $p) (i64.const 112))) (i64.const 100)))))"#
    );
    let spec = Spec::new(Source::bytes(wasm(&text)));
    let ours = HostFunction::new("two", [ValType::I64], [ValType::I64], two);
    let evaluator = pool.evaluator("ours", spec.clone().with_host_function(ours)).unwrap();
    for _ in 0..3 {
        evaluator.evaluate("x").await.unwrap();
    }
    if engine == EngineKind::Extism {
        let theirs = extism::Function::new(
            "two",
            [extism::PTR],
            [extism::PTR],
            extism::UserData::new(()),
            |plugin, _, outputs, _| {
                plugin.memory_new(&[1_u8; 100][..])?;
                plugin.memory_set_val(&mut outputs[0], &[2_u8; 200][..])
            },
        );
        let evaluator = pool.evaluator("theirs", spec.with_host_function(theirs)).unwrap();
        for _ in 0..3 {
            evaluator.evaluate("x").await.unwrap();
        }
    }
    pool.close().await;
}

on_each_engine!(
    the_headers_of_blocks_that_a_host_function_made_cannot_be_forged,
    a_host_function_is_given_blocks_and_nothing_else,
    what_a_host_function_gives_is_held_to_the_guests_memory,
);
