//! Host functions that are called by hostile plugins.

use std::sync::{Arc, Mutex};

use evalpool::{Error, Evaluator, HostFunction, Isolation, Source, Spec};

use super::{LONG, gallery::IMPORTS, settings, tells_of_the_host};
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

#[tokio::test]
async fn a_host_function_is_given_blocks_and_nothing_else() {
    let pool = evalpool::EvaluatorPool::from_settings(&settings(Isolation::Reuse, LONG)).unwrap();
    let (function, given) = upper();
    let spec = Spec::new(Source::bytes(caller())).host_function(function);
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

#[tokio::test]
async fn what_a_host_function_gives_is_held_to_the_guests_memory() {
    let pool = evalpool::EvaluatorPool::from_settings(&settings(Isolation::Reuse, LONG)).unwrap();
    let much = HostFunction::bytes("upper", |_| Ok(vec![7; 16 << 20]));
    let evaluator = pool.evaluator("caller", Spec::new(Source::bytes(caller())).host_function(much)).unwrap();
    for _ in 0..2 {
        let error = call(&evaluator, *b"orebegin").await.unwrap_err();
        assert_eq!(error.kind(), "out_of_memory", "{error}");
    }
    pool.close().await;
}
