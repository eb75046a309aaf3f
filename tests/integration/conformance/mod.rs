//! Both engines give the same answers: output, or kind and message, case by case on the same bytes. Where they are meant
//! to differ, the case says how, and the `direct` engine's documentation why.

mod cases;
mod http;
mod random;

use std::time::Duration;

use evalpool::{
    EvaluatorPool, Source, Spec,
    config::{EngineKind, LimitSettings},
};

use crate::support::wasm;

/// What an evaluation came to: its output, or its error's kind and text.
type Answer = Result<Vec<u8>, (String, String)>;

fn pool(engine: EngineKind) -> EvaluatorPool {
    let limits = LimitSettings {
        // Long, for a machine that is busy; what is to end by it says so itself.
        exec_timeout: Duration::from_secs(20),
        build_timeout: Duration::from_secs(20),
        memory: 48 << 20,
        ..LimitSettings::default()
    };
    EvaluatorPool::builder().engine_kind(engine).capacity(2).max_instances(4).limits(limits).build().unwrap()
}

/// The answers to each input in turn, by one evaluator.
async fn answers(pool: &EvaluatorPool, spec: Spec, inputs: &[&[u8]]) -> Vec<Answer> {
    let evaluator = pool.evaluator("case", spec).unwrap();
    let mut answers = Vec::new();
    for input in inputs {
        let answer = evaluator.evaluate(input.to_vec()).await;
        answers.push(match answer {
            Ok(response) => Ok(response.bytes().to_vec()),
            Err(error) => Err((error.kind().to_string(), error.to_string())),
        });
    }
    evaluator.close().await;
    answers
}

/// What a case must come to on both engines.
enum Expected {
    Output(&'static [u8]),
    /// A kind, and a part of the message.
    Error(&'static str, &'static str),
    /// Whatever it is, the same.
    Same,
}

use Expected::{Error, Output, Same};

struct Case {
    name: &'static str,
    spec: Spec,
    /// One evaluator answers them in turn; what is expected is the last answer.
    inputs: Vec<Vec<u8>>,
    expected: Expected,
}

fn case(name: &'static str, spec: Spec, input: impl Into<Vec<u8>>, expected: Expected) -> Case {
    Case { name, spec, inputs: vec![input.into()], expected }
}

fn fixture(bytes: &'static [u8], entry_point: &str) -> Spec {
    Spec::new(Source::bytes(bytes)).with_entry_point(entry_point)
}

/// A plugin of a few lines, with everything that Extism provides at hand. `out` gives the 8 bytes of a number as
/// output; `text` makes a block of a data segment.
fn env(body: &str) -> Spec {
    with_functions("", body)
}

fn with_functions(functions: &str, body: &str) -> Spec {
    Spec::new(Source::bytes(wasm(&format!(
        "(module {IMPORTS} {functions} (func (export \"run\") (result i32) {body}))"
    ))))
}

/// Everything that `extism:host/env` has, and a few functions over it.
pub(crate) const IMPORTS: &str = r#"
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "free" (func $free (param i64)))
    (import "extism:host/env" "length" (func $length (param i64) (result i64)))
    (import "extism:host/env" "length_unsafe" (func $length_unsafe (param i64) (result i64)))
    (import "extism:host/env" "load_u8" (func $load8 (param i64) (result i32)))
    (import "extism:host/env" "load_u64" (func $load64 (param i64) (result i64)))
    (import "extism:host/env" "store_u8" (func $store8 (param i64 i32)))
    (import "extism:host/env" "store_u64" (func $store64 (param i64 i64)))
    (import "extism:host/env" "input_length" (func $input_length (result i64)))
    (import "extism:host/env" "input_offset" (func $input_offset (result i64)))
    (import "extism:host/env" "input_load_u8" (func $input8 (param i64) (result i32)))
    (import "extism:host/env" "input_load_u64" (func $input64 (param i64) (result i64)))
    (import "extism:host/env" "input_set" (func $input_set (param i64 i64)))
    (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
    (import "extism:host/env" "output_offset" (func $output_offset (result i64)))
    (import "extism:host/env" "output_length" (func $output_length (result i64)))
    (import "extism:host/env" "error_set" (func $error_set (param i64)))
    (import "extism:host/env" "error_get" (func $error_get (result i64)))
    (import "extism:host/env" "reset" (func $reset))
    (import "extism:host/env" "memory_bytes" (func $memory_bytes (result i64)))
    (import "extism:host/env" "config_get" (func $config_get (param i64) (result i64)))
    (import "extism:host/env" "var_get" (func $var_get (param i64) (result i64)))
    (import "extism:host/env" "var_set" (func $var_set (param i64 i64)))
    (import "extism:host/env" "log_info" (func $log_info (param i64)))
    (import "extism:host/env" "log_warn" (func $log_warn (param i64)))
    (import "extism:host/env" "log_error" (func $log_error (param i64)))
    (import "extism:host/env" "log_debug" (func $log_debug (param i64)))
    (import "extism:host/env" "log_trace" (func $log_trace (param i64)))
    (import "extism:host/env" "get_log_level" (func $log_level (result i32)))
    (import "extism:host/env" "http_request" (func $http (param i64 i64) (result i64)))
    (import "extism:host/env" "http_status_code" (func $status (result i32)))
    (import "extism:host/env" "http_headers" (func $headers (result i64)))
    (memory (export "memory") 1)
    (data (i32.const 0) "colour" "shape" "message" "\ff\fe\fd" "0123456789")
    (func $out (param $x i64) (local $p i64)
        (local.set $p (call $alloc (i64.const 8)))
        (call $store64 (local.get $p) (local.get $x))
        (call $output_set (local.get $p) (i64.const 8)))
    (func $block (param $p i64) (call $output_set (local.get $p) (call $length (local.get $p))))
    (func $text (param $from i32) (param $n i32) (result i64) (local $p i64) (local $i i32)
        (local.set $p (call $alloc (i64.extend_i32_u (local.get $n))))
        (loop $each
            (call $store8 (i64.add (local.get $p) (i64.extend_i32_u (local.get $i)))
                (i32.load8_u (i32.add (local.get $from) (local.get $i))))
            (br_if $each (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (local.get $n))))
        (local.get $p))
    (func $colour (result i64) (call $text (i32.const 0) (i32.const 6)))
    (func $shape (result i64) (call $text (i32.const 6) (i32.const 5)))
    (func $message (result i64) (call $text (i32.const 11) (i32.const 7)))
    (func $not_text (result i64) (call $text (i32.const 18) (i32.const 3)))
    (func $digits (result i64) (call $text (i32.const 21) (i32.const 10)))
    (func $echo (local $p i64) (local $i i64)
        (local.set $p (call $alloc (call $input_length)))
        (block $done (loop $each
            (br_if $done (i64.ge_u (i64.add (local.get $i) (i64.const 8)) (call $input_length)))
            (call $store64 (i64.add (local.get $p) (local.get $i)) (call $input64 (local.get $i)))
            (local.set $i (i64.add (local.get $i) (i64.const 8)))
            (br $each)))
        (block $done (loop $each
            (br_if $done (i64.ge_u (local.get $i) (call $input_length)))
            (call $store8 (i64.add (local.get $p) (local.get $i)) (call $input8 (local.get $i)))
            (local.set $i (i64.add (local.get $i) (i64.const 1)))
            (br $each)))
        (call $output_set (local.get $p) (call $input_length)))
"#;

#[tokio::test]
async fn both_engines_give_the_same_answers() {
    let cases = cases::all();
    assert!(cases.len() >= 60, "{}", cases.len());
    let (extism, direct) = (pool(EngineKind::Extism), pool(EngineKind::Direct));
    let mut wrong = Vec::new();
    for Case { name, spec, inputs, expected } in cases {
        let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
        let theirs = answers(&extism, spec.clone(), &inputs).await;
        let ours = answers(&direct, spec, &inputs).await;
        let is_expected = match (expected, ours.last().unwrap()) {
            (Same, _) => true,
            (Output(output), Ok(given)) => given == output,
            (Error(kind, part), Err((given, text))) => given == kind && text.contains(part),
            _ => false,
        };
        // The words of a refusal are each engine's own; its kind is not.
        let bare = |answers: &[Answer]| -> Vec<Answer> {
            let bare = |answer: &Answer| match answer {
                Err((kind, _)) if kind == "invalid_plugin" => Err((kind.clone(), String::new())),
                answer => answer.clone(),
            };
            answers.iter().map(bare).collect()
        };
        if !is_expected || bare(&ours) != bare(&theirs) {
            wrong.push(format!(
                "{name}:\n    extism {:.300}\n    direct {:.300}",
                format!("{theirs:?}"),
                format!("{ours:?}")
            ));
        }
    }
    extism.close().await;
    direct.close().await;
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}
