//! Both engines give the same answers: output, or kind and message, case by case on the same bytes. Where they are meant
//! to differ, the case says how, and the `direct` engine's documentation why.

use std::{
    io::{Read, Write},
    net::TcpListener,
    time::Duration,
};

use evalpool::{
    EvaluatorPool, HostFunction, HostFunctionError, Isolation, Source, Spec,
    config::{EngineKind, LimitSettings},
    engine::{Val, ValType},
};

use proptest::{
    prelude::{Just, Strategy, any},
    prop_assert_eq, prop_oneof,
    test_runner::{Config, TestRunner},
};

use crate::support::{CALL_HOST, ENGINES, GREET, TEXT, TOTALS, WORDS, wasm};

/// What an evaluation came to: its output, or its error's kind and text.
type Answer = Result<Vec<u8>, (String, String)>;

fn pool(engine: EngineKind) -> EvaluatorPool {
    let limits = LimitSettings {
        exec_timeout: Duration::from_millis(300),
        build_timeout: Duration::from_secs(5),
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

const IMPORTS: &str = r#"
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

fn kernel_cases() -> Vec<Case> {
    let large: Vec<u8> = (0..16_u32 << 20).map(|at| (at % 251) as u8).collect();
    vec![
        case("no output", env("i32.const 0"), "x", Output(b"")),
        case("echo", env("(call $echo) i32.const 0"), "abc", Output(b"abc")),
        case("echo of nothing", env("(call $echo) i32.const 0"), "", Output(b"")),
        case(
            "echo of bytes that are no text",
            env("(call $echo) i32.const 0"),
            &b"\xff\x00\xfe0123456789"[..],
            Output(b"\xff\x00\xfe0123456789"),
        ),
        case("echo of 16 MiB", env("(call $echo) i32.const 0"), large, Same),
        case(
            "input length",
            env("(call $out (call $input_length)) i32.const 0"),
            "abc",
            Output(&[3, 0, 0, 0, 0, 0, 0, 0]),
        ),
        case(
            "input offset",
            env("(call $out (call $input_offset)) i32.const 0"),
            "abc",
            Output(&[77, 0, 0, 0, 0, 0, 0, 0]),
        ),
        case("no input has no offset", env("(call $out (call $input_offset)) i32.const 0"), "", Output(&[0; 8])),
        case("input through its offset", env("(call $block (call $input_offset)) i32.const 0"), "abc", Output(b"abc")),
        case(
            "input beyond its end",
            env("(call $out (i64.extend_i32_u (call $input8 (i64.const 3)))) i32.const 0"),
            "abc",
            Output(&[0; 8]),
        ),
        case(
            "eight bytes across the input's end",
            env("(call $out (call $input64 (i64.const 0))) i32.const 0"),
            "abc",
            Output(&[0; 8]),
        ),
        case(
            "input at a wild offset",
            env("(call $out (call $input64 (i64.const -9))) i32.const 0"),
            "abc",
            Output(&[0; 8]),
        ),
        case(
            "input set by the guest",
            env("(call $input_set (call $digits) (i64.const 4)) (call $out (call $input_length)) i32.const 0"),
            "",
            Output(&[4, 0, 0, 0, 0, 0, 0, 0]),
        ),
        case(
            "input set to nowhere",
            env("(call $input_set (i64.const 1) (i64.const 4)) (call $out (call $input_length)) i32.const 0"),
            "ab",
            Output(&[2, 0, 0, 0, 0, 0, 0, 0]),
        ),
        case(
            "input freed",
            env("(call $free (call $input_offset)) (call $out (call $input_length)) i32.const 0"),
            "ab",
            Output(&[0; 8]),
        ),
        case("alloc of nothing", env("(call $out (call $alloc (i64.const 0))) i32.const 0"), "", Output(&[0; 8])),
        case(
            "alloc gives length",
            env("(call $out (call $length (call $alloc (i64.const 300)))) i32.const 0"),
            "",
            Output(&[44, 1, 0, 0, 0, 0, 0, 0]),
        ),
        case(
            "length without a walk",
            env("(call $out (call $length_unsafe (call $alloc (i64.const 300)))) i32.const 0"),
            "",
            Output(&[44, 1, 0, 0, 0, 0, 0, 0]),
        ),
        case(
            "length of what is not a block",
            env("(call $out (call $length (i64.add (call $alloc (i64.const 30)) (i64.const 1)))) i32.const 0"),
            "",
            Output(&[0; 8]),
        ),
        case("length of nothing", env("(call $out (call $length (i64.const 0))) i32.const 0"), "", Output(&[0; 8])),
        case(
            "length at a wild offset",
            env("(call $out (call $length (i64.const -1))) i32.const 0"),
            "",
            Output(&[0; 8]),
        ),
        case(
            "length of a freed block",
            with_functions(
                "(global $p (mut i64) (i64.const 0))",
                "(global.set $p (call $alloc (i64.const 9))) (call $free (global.get $p)) (call $out (call $length (global.get $p))) i32.const 0",
            ),
            "",
            Output(&[0; 8]),
        ),
        case(
            "free of what is not a block",
            env("(call $free (i64.const 5)) (call $free (i64.const -5)) (call $free (i64.const 0)) i32.const 0"),
            "",
            Output(b""),
        ),
        case(
            "alloc beyond the memory limit",
            env("(drop (call $alloc (i64.const 100000000))) i32.const 0"),
            "",
            Error("out_of_memory", "out of memory"),
        ),
        case(
            "allocs without end",
            env("(loop $again (drop (call $alloc (i64.const 1000000))) (br $again)) i32.const 0"),
            "",
            Error("out_of_memory", "out of memory"),
        ),
        case(
            "load below the memory",
            env(
                "(call $out (i64.add (call $load64 (i64.const 3)) (i64.extend_i32_u (call $load8 (i64.const 3))))) i32.const 0",
            ),
            "",
            Output(&[0; 8]),
        ),
        case(
            "load beyond the memory",
            env(
                "(call $out (i64.add (call $load64 (i64.const 99999999)) (i64.extend_i32_u (call $load8 (i64.const -1))))) i32.const 0",
            ),
            "",
            Output(&[0; 8]),
        ),
        case(
            "store beyond the memory",
            env(
                "(call $store64 (i64.const 99999999) (i64.const 7)) (call $store8 (i64.const -1) (i32.const 7)) i32.const 0",
            ),
            "",
            Output(b""),
        ),
        case(
            "load at the memory's very end",
            env("(call $out (i64.extend_i32_u (call $load8 (i64.const 65536)))) i32.const 0"),
            "",
            Output(&[0; 8]),
        ),
        case(
            "memory bytes",
            env("(call $out (call $memory_bytes)) i32.const 0"),
            "",
            Output(&[192, 255, 0, 0, 0, 0, 0, 0]),
        ),
        case(
            "output that is read back",
            env(
                "(call $output_set (call $digits) (i64.const 5)) (call $out (i64.add (call $output_length) (call $output_offset))) i32.const 0",
            ),
            "",
            Same,
        ),
        case(
            "a part of a block as output",
            env("(call $output_set (i64.add (call $digits) (i64.const 2)) (i64.const 3)) i32.const 0"),
            "",
            Output(b"234"),
        ),
        case(
            "output at nothing keeps the last",
            env(
                "(call $output_set (call $digits) (i64.const 2)) (call $output_set (i64.const 0) (i64.const 0)) i32.const 0",
            ),
            "",
            Output(b"01"),
        ),
        case(
            "output beyond the memory keeps the last",
            env(
                "(call $output_set (call $digits) (i64.const 2)) (call $output_set (call $digits) (i64.const 9999999)) i32.const 0",
            ),
            "",
            Output(b"01"),
        ),
        case(
            "reset forgets the input",
            env("(call $reset) (call $out (call $input_length)) i32.const 0"),
            "ab",
            Output(&[0; 8]),
        ),
        case(
            "reset frees and clears",
            env("(drop (call $digits)) (call $reset) (call $block (call $alloc (i64.const 3))) i32.const 0"),
            "",
            Output(&[0; 3]),
        ),
        case("error is none at first", env("(call $out (call $error_get)) i32.const 0"), "", Output(&[0; 8])),
        case(
            "an error with code 0",
            env("(call $error_set (call $message)) i32.const 0"),
            "",
            Error("guest_error", "message"),
        ),
        case(
            "an error with a code",
            env("(call $error_set (call $message)) i32.const 3"),
            "",
            Error("guest_error", "message"),
        ),
        case(
            "an error taken back",
            env("(call $error_set (call $message)) (call $error_set (i64.const 0)) i32.const 0"),
            "",
            Output(b""),
        ),
        case(
            "an error that is no text",
            env("(call $error_set (call $not_text)) i32.const 1"),
            "",
            Error("guest_error", "invalid utf-8"),
        ),
        case(
            "an error that is no block",
            env("(call $error_set (i64.const 99)) i32.const 4"),
            "",
            Error("guest_error", "it returned 4"),
        ),
        case(
            "an error, then a trap",
            env("(call $error_set (call $message)) unreachable"),
            "",
            Error("guest_error", "message"),
        ),
        case("a code", env("i32.const 7"), "", Error("guest_error", "it returned 7")),
        case("a negative code", env("i32.const -7"), "", Error("guest_error", "it returned -7")),
        case(
            "output of a call that failed is not given",
            env("(call $echo) i32.const 1"),
            "x",
            Error("guest_error", "it returned 1"),
        ),
    ]
}

fn environment_cases() -> Vec<Case> {
    let configured = |body: &str| env(body).with_config("colour", "blue").with_config("naïve", "é");
    let vars = "(if (i64.eqz (call $input_length)) (then (call $var_set (call $colour) (call $digits))))
        (if (i64.eq (call $input_length) (i64.const 2)) (then (call $var_set (call $colour) (i64.const 0))))
        (call $block (call $var_get (call $colour))) i32.const 0";
    let three = |isolation| Case {
        name: "a variable is kept, read and removed",
        spec: env(vars).with_isolation(isolation),
        inputs: vec![vec![], vec![1], vec![1, 2], vec![1]],
        expected: Output(b""),
    };
    vec![
        case("config", configured("(call $block (call $config_get (call $colour))) i32.const 0"), "", Output(b"blue")),
        case("config that is not set", configured("(call $out (call $config_get (call $shape))) i32.const 0"), "", Output(&[0; 8])),
        case("config by a key that is no text", configured("(drop (call $config_get (call $not_text))) i32.const 0"), "", Error("guest_error", "invalid utf-8")),
        case("config by a wild key", configured("(drop (call $config_get (i64.const 12345))) i32.const 0"), "", Error("guest_error", "invalid handle offset for config key: 12345")),
        case("config by no key", configured("(call $out (call $config_get (i64.const 0))) i32.const 0"), "", Output(&[0; 8])),
        three(Isolation::Fresh),
        three(Isolation::Reuse),
        Case { name: "a variable survives a call", spec: env(vars).with_isolation(Isolation::Reuse), inputs: vec![vec![], vec![1]], expected: Output(b"0123456789") },
        Case { name: "a variable does not survive its instance", spec: env(vars), inputs: vec![vec![], vec![1]], expected: Output(b"") },
        case("a variable by a wild name", env("(call $var_set (i64.const 999) (call $digits)) i32.const 0"), "", Error("guest_error", "invalid handle offset for var key: 999")),
        case("a variable of a wild value", env("(call $var_set (call $colour) (i64.const 999)) i32.const 0"), "", Error("guest_error", "invalid handle offset for var value: 999")),
        case("variables without end", env("(call $var_set (call $colour) (call $alloc (i64.const 2000000))) i32.const 0"), "", Error("guest_error", "Variable store is full")),
        case("logs", env("(call $log_trace (call $message)) (call $log_debug (call $message)) (call $log_info (call $message))
             (call $log_warn (call $message)) (call $log_error (call $message)) (call $log_error (call $not_text)) i32.const 0"), "", Output(b"")),
        case("the log's level", env("(call $out (i64.extend_i32_s (call $log_level))) i32.const 0"), "", Same),
        case("http without hosts", env("(drop (call $http (call $digits) (i64.const 0))) i32.const 0"), "", Same),
        case("http by a wild request", env("(drop (call $http (i64.const 999) (i64.const 0))) i32.const 0"), "", Error("guest_error", "invalid handle offset for http request: 999")),
        case("no status before a request", env("(call $out (i64.extend_i32_u (call $status))) i32.const 0"), "", Output(&[0; 8])),
        case("no headers before a request", env("(call $block (call $headers)) i32.const 0"), "", Output(b"{}")),
    ]
}

fn ending_cases() -> Vec<Case> {
    let wasi = |name: &str, ty: &str, body: &str| {
        let text = format!(
            "(module (import \"wasi_snapshot_preview1\" \"{name}\" (func $f {ty})) {IMPORTS} (func (export \"run\") (result i32) {body}))"
        );
        // Imports come first in a module.
        Spec::new(Source::bytes(wasm(&text)))
    };
    vec![
        case("unreachable", env("unreachable"), "", Error("guest_trap", "unreachable")),
        case("division by zero", env("(i32.div_s (i32.const 1) (i32.const 0))"), "", Error("guest_trap", "integer divide by zero")),
        case("an access out of bounds", env("(i32.load (i32.const -1))"), "", Error("guest_trap", "out of bounds memory access")),
        case("an indirect call of nothing", with_functions("(table 1 funcref)", "(call_indirect (result i32) (i32.const 0))"), "", Error("guest_trap", "uninitialized element")),
        case("endless recursion", with_functions("(func $again (call $again))", "(call $again) i32.const 0"), "", Error("guest_trap", "call stack exhausted")),
        case("an endless loop", env("(loop br 0) i32.const 0"), "", Error("exec_timeout", "stopped after 300ms")),
        case("out of memory", env("(drop (memory.grow (i32.const 2000))) i32.const 0"), "", Error("out_of_memory", "out of memory")),
        case("out of fuel", env("(loop br 0) i32.const 0").with_fuel(Some(100_000)), "", Error("out_of_fuel", "ran out of fuel")),
        case("within its fuel", env("(call $echo) i32.const 0").with_fuel(Some(1_000_000)), "abc", Output(b"abc")),
        case("exit 0", wasi("proc_exit", "(param i32)", "(call $echo) (call $f (i32.const 0)) i32.const 9"), "abc", Output(b"abc")),
        case("exit 3", wasi("proc_exit", "(param i32)", "(call $f (i32.const 3)) i32.const 0"), "", Error("guest_exit", "exited with code 3")),
        case("an error, then exit 0", wasi("proc_exit", "(param i32)", "(call $error_set (call $message)) (call $f (i32.const 0)) i32.const 0"), "", Error("guest_error", "message")),
        case("a clock", wasi("clock_time_get", "(param i32 i64 i32) (result i32)",
            "(if (call $f (i32.const 0) (i64.const 1) (i32.const 64)) (then unreachable))
             (if (i64.lt_u (i64.load (i32.const 64)) (i64.const 1700000000000000000)) (then unreachable)) i32.const 0"), "", Output(b"")),
        case("a clock that only goes on", wasi("clock_time_get", "(param i32 i64 i32) (result i32)",
            "(drop (call $f (i32.const 1) (i64.const 1) (i32.const 64))) (drop (call $f (i32.const 1) (i64.const 1) (i32.const 72)))
             (if (i64.lt_u (i64.load (i32.const 72)) (i64.load (i32.const 64))) (then unreachable)) i32.const 0"), "", Output(b"")),
        case("randomness", wasi("random_get", "(param i32 i32) (result i32)",
            "(if (call $f (i32.const 64) (i32.const 16)) (then unreachable))
             (if (i64.eq (i64.load (i32.const 64)) (i64.load (i32.const 72))) (then unreachable)) i32.const 0"), "", Output(b"")),
        case("no arguments", wasi("args_sizes_get", "(param i32 i32) (result i32)", "(if (call $f (i32.const 64) (i32.const 68)) (then unreachable)) (i32.load (i32.const 64))"), "", Output(b"")),
        case("no environment", wasi("environ_sizes_get", "(param i32 i32) (result i32)", "(if (call $f (i32.const 64) (i32.const 68)) (then unreachable)) (i32.load (i32.const 64))"), "", Output(b"")),
        case("nothing preopened", wasi("fd_prestat_get", "(param i32 i32) (result i32)", "(call $f (i32.const 3) (i32.const 64))"), "", Error("guest_error", "it returned 8")),
    ]
}

fn module_cases() -> Vec<Case> {
    let from_text = |text: &str| Spec::new(Source::bytes(wasm(text)));
    let output = r#"(import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
        (import "extism:host/env" "store_u64" (func $store64 (param i64 i64)))
        (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
        (func $out (param $x i64) (local $p i64)
            (local.set $p (call $alloc (i64.const 8)))
            (call $store64 (local.get $p) (local.get $x))
            (call $output_set (local.get $p) (i64.const 8)))"#;
    // Each initialiser that runs appends its digit.
    let steps = |exports: &str| {
        format!(
            r#"(module {output} (global $n (mut i64) (i64.const 0))
                (func $step (param i64) (global.set $n (i64.add (i64.mul (global.get $n) (i64.const 10)) (local.get 0))))
                {exports}
                (func (export "run") (call $out (global.get $n))))"#
        )
    };
    let start = "(func $s (call $step (i64.const 1))) (start $s)";
    let initialize = r#"(func (export "_initialize") (call $step (i64.const 2)))"#;
    let ctors = r#"(func (export "__wasm_call_ctors") (call $step (i64.const 3)))"#;
    let haskell = r#"(func (export "hs_init") (param i32 i32) (call $step (i64.const 4)))"#;
    let typed = r#"(func (export "_initialize") (param i32))"#;
    let doubles = Source::bytes(wasm(
        r#"(module (func (export "twice") (param i64) (result i64) (i64.mul (local.get 0) (i64.const 2))))"#,
    ));
    let adds = Source::bytes(wasm(
        r#"(module (import "doubles" "twice" (func $twice (param i64) (result i64)))
            (func (export "plus") (param i64) (result i64) (i64.add (call $twice (local.get 0)) (i64.const 1))))"#,
    ));
    let linked = format!(
        r#"(module (import "adds" "plus" (func $plus (param i64) (result i64))) {output} (func (export "run") (call $out (call $plus (i64.const 20)))))"#
    );
    let host = |name: &str, ty: &str, body: &str| {
        from_text(&format!(
            r#"(module (import "extism:host/user" "{name}" (func $f {ty})) {output} (func (export "run") {body}))"#
        ))
    };
    let sum = HostFunction::new(
        "sum",
        [ValType::I32, ValType::I64, ValType::F32, ValType::F64],
        [ValType::F64],
        |_, args| {
            let [Val::I32(a), Val::I64(b), Val::F32(c), Val::F64(d)] = args else { return Ok(vec![]) };
            Ok(vec![Val::F64(f64::from(*a) + *b as f64 + f64::from(*c) + d)])
        },
    );
    let slow = HostFunction::bytes_async("host_upper", |input| async move {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(input.to_ascii_uppercase())
    });
    let stuck = HostFunction::bytes_async("host_upper", |_| std::future::pending());
    let refuses = HostFunction::bytes("host_upper", |_| Err(HostFunctionError::new("not for you")));
    let other = HostFunction::new("answer", [], [ValType::I64], |_, _| Ok(vec![Val::I64(42)])).in_module("env");
    let broken = HostFunction::new("answer", [], [ValType::I64], |_, _| Ok(vec![]));
    vec![
        case("a start function", from_text(&steps(start)), "", Output(&[1, 0, 0, 0, 0, 0, 0, 0])),
        case("a reactor", from_text(&steps(initialize)), "", Output(&[2, 0, 0, 0, 0, 0, 0, 0])),
        case("start, then reactor", from_text(&steps(&format!("{start} {initialize}"))), "", Output(&[12, 0, 0, 0, 0, 0, 0, 0])),
        case("constructors", from_text(&steps(ctors)), "", Output(&[3, 0, 0, 0, 0, 0, 0, 0])),
        case("constructors go before a reactor", from_text(&steps(&format!("{initialize} {ctors}"))), "", Output(&[3, 0, 0, 0, 0, 0, 0, 0])),
        case("Haskell", from_text(&steps(haskell)), "", Output(&[4, 0, 0, 0, 0, 0, 0, 0])),
        case("Haskell as a reactor", from_text(&steps(&format!("{haskell} {initialize}"))), "", Output(&[24, 0, 0, 0, 0, 0, 0, 0])),
        case("an initialiser of another type", from_text(&steps(typed)), "", Error("invalid_plugin", "")),
        case("a command", from_text(&format!(r#"(module {output} (func (export "_start") (call $out (i64.const 5))))"#)).with_entry_point("_start"), "", Output(&[5, 0, 0, 0, 0, 0, 0, 0])),
        case("linked modules, in any order", from_text(&linked).with_module("adds", adds.clone()).with_module("doubles", doubles.clone()), "", Output(&[41, 0, 0, 0, 0, 0, 0, 0])),
        case("a linked module that is missing", from_text(&linked).with_module("adds", adds), "", Error("invalid_plugin", "doubles")),
        case("a linked module without the export", from_text(&linked).with_module("adds", doubles), "", Error("invalid_plugin", "")),
        case("a host function of all types", host("sum", "(param i32 i64 f32 f64) (result f64)",
            "(call $out (i64.trunc_f64_s (call $f (i32.const 1) (i64.const 2) (f32.const 3) (f64.const 4))))").with_host_function(sum), "", Output(&[10, 0, 0, 0, 0, 0, 0, 0])),
        case("a host function in another module", from_text(&format!(r#"(module (import "env" "answer" (func $f (result i64))) {output} (func (export "run") (call $out (call $f))))"#)).with_host_function(other), "", Output(&[42, 0, 0, 0, 0, 0, 0, 0])),
        case("a host function of another type", host("host_upper", "(param i32)", "").with_host_function(slow.clone()), "", Error("invalid_plugin", "")),
        case("a host function that breaks its word", host("answer", "(result i64)", "(call $out (call $f))").with_host_function(broken), "", Error("internal", "broke its declaration")),
        case("a host function that waits", fixture(CALL_HOST, "call_host").with_host_function(slow), "quiet", Output(b"QUIET")),
        case("a host function that never answers", fixture(CALL_HOST, "call_host").with_host_function(stuck), "quiet", Error("exec_timeout", "300ms")),
        case("a host function that refuses", fixture(CALL_HOST, "call_host").with_host_function(refuses), "x", Error("guest_error", "not for you")),
    ]
}

fn fixture_cases() -> Vec<Case> {
    let nested = format!("{}1{}", "[".repeat(100), "]".repeat(100));
    vec![
        case("greet", fixture(GREET, "greet"), r#"{"name":"Ada"}"#, Output(br#"{"greeting":"Hello, Ada!"}"#)),
        case("greet of what is not JSON", fixture(GREET, "greet"), "x", Same),
        case("C: upper", fixture(TEXT, "upper"), "abc", Output(b"ABC")),
        case("C: vowels", fixture(TEXT, "count_vowels"), "education", Same),
        case("C: its own error", fixture(TEXT, "fail"), "my words", Error("guest_error", "my words")),
        Case {
            name: "C: state that stays",
            spec: fixture(TEXT, "counter").with_isolation(Isolation::Reuse),
            inputs: vec![vec![]; 3],
            expected: Output(b"3"),
        },
        Case {
            name: "C: state that does not",
            spec: fixture(TEXT, "counter"),
            inputs: vec![vec![]; 3],
            expected: Output(b"1"),
        },
        case("AssemblyScript: words", fixture(WORDS, "word_count"), "the naïve café", Same),
        case("AssemblyScript: bytes that are no text", fixture(WORDS, "word_count"), &b"a \xff b"[..], Same),
        Case {
            name: "AssemblyScript: variables",
            spec: fixture(WORDS, "remember").with_isolation(Isolation::Reuse),
            inputs: vec![b"a".to_vec(), b"b".to_vec()],
            expected: Output(b"ab"),
        },
        case(
            "AssemblyScript: config",
            fixture(WORDS, "setting").with_config("colour", "blue"),
            "colour",
            Output(b"blue"),
        ),
        case("AssemblyScript: config that is not set", fixture(WORDS, "setting"), "colour", Same),
        case(
            "Rust: JSON in and out",
            fixture(TOTALS, "transform"),
            r#"{"items":[{"price":2.5,"qty":3},{"price":1.0,"qty":3}]}"#,
            Same,
        ),
        case("Rust: JSON of another shape", fixture(TOTALS, "transform"), r#"{"items":3}"#, Same),
        case("Rust: nested JSON", fixture(TOTALS, "transform"), nested, Same),
        case("Rust: echo", fixture(TOTALS, "echo"), "é".repeat(10_000), Same),
        case("Rust: logs", fixture(TOTALS, "log_it"), "a line", Same),
    ]
}

#[tokio::test]
async fn both_engines_give_the_same_answers() {
    let cases: Vec<Case> = [kernel_cases(), environment_cases(), ending_cases(), module_cases(), fixture_cases()]
        .into_iter()
        .flatten()
        .collect();
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

/// Answers each connection with what `answer` makes of the request's head and body.
fn http_server(answer: impl Fn(&str) -> String + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let read = stream.read(&mut buffer).unwrap_or(0);
                request.extend_from_slice(&buffer[..read]);
                let text = String::from_utf8_lossy(&request);
                let Some((head, body)) = text.split_once("\r\n\r\n") else {
                    if read == 0 {
                        break;
                    }
                    continue;
                };
                let length =
                    head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
                if body.len() >= length.unwrap_or(0) {
                    let _ = stream.write_all(answer(&text).as_bytes());
                    break;
                }
            }
        }
    });
    port
}

/// Makes the request that its input is, a body of `colour` with it if it is longer than 100 bytes, and gives status,
/// headers and body.
const REQUESTER: &str = "
    (call $body (call $http (call $copy_of_input)
        (if (result i64) (i64.gt_u (call $input_length) (i64.const 100)) (then (call $colour)) (else (i64.const 0)))))
    i32.const 0";
const REQUESTER_FUNCTIONS: &str = "
    (func $copy_of_input (result i64) (call $echo) (call $output_offset))
    (func $body (param $b i64)
        (if (i32.eq (call $status) (i32.const 201)) (then (call $block (call $headers))) (else
        (if (i32.eq (call $status) (i32.const 404)) (then (call $out (i64.const 404))) (else
            (call $block (local.get $b)))))))";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_engines_speak_http_alike() {
    let port = http_server(|request| {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let tagged = head.to_lowercase().contains("x-tag: yes");
        match path {
            "/missing" => "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno".to_owned(),
            "/headers" => {
                "HTTP/1.1 201 Created\r\nx-one: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()
            }
            "/away" => {
                "HTTP/1.1 302 Found\r\nlocation: /here\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()
            }
            "/large" => format!(
                "HTTP/1.1 200 OK\r\ncontent-length: 40000000\r\nconnection: close\r\n\r\n{}",
                "x".repeat(40_000_000)
            ),
            "/never" => {
                std::thread::sleep(Duration::from_secs(1));
                String::new()
            }
            _ => {
                let text = format!("{method} {path} {tagged} {body}");
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}", text.len())
            }
        }
    });
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    let requests = [
        (format!(r#"{{"url":"{}"}}"#, url("/get")), Output(b"GET /get false ")),
        (
            format!(
                r#"{{"url":"{}","method":"put","headers":{{"x-tag":"yes","x-long":"{}"}}}}"#,
                url("/put"),
                "y".repeat(60)
            ),
            Output(b"PUT /put true colour"),
        ),
        (format!(r#"{{"url":"{}"}}"#, url("/missing")), Output(&[148, 1, 0, 0, 0, 0, 0, 0])),
        (
            format!(r#"{{"url":"{}"}}"#, url("/headers")),
            Output(br#"{"connection":"close","content-length":"0","x-one":"1"}"#),
        ),
        (format!(r#"{{"url":"{}"}}"#, url("/away")), Output(b"GET /here false ")),
        (
            format!(r#"{{"url":"{}"}}"#, url("/large")),
            Error("guest_error", "exceeds the configured maximum number of bytes"),
        ),
        (format!(r#"{{"url":"{}"}}"#, url("/never")), Error("exec_timeout", "")),
        (
            r#"{"url":"http://example.org/"}"#.to_owned(),
            Error("guest_error", "HTTP request to http://example.org/ is not allowed"),
        ),
        (r#"{"url":"no url"}"#.to_owned(), Error("guest_error", "Invalid URL")),
        (r#"{"uri":"x"}"#.to_owned(), Error("guest_error", "unknown field `uri`")),
    ];
    for (request, expected) in requests {
        let spec = with_functions(REQUESTER_FUNCTIONS, REQUESTER).with_allowed_hosts(["127.0.0.1"]);
        let mut given = Vec::new();
        for engine in ENGINES {
            let pool = pool(engine);
            given.push(answers(&pool, spec.clone(), &[request.as_bytes()]).await.remove(0));
            pool.close().await;
        }
        for answer in &given {
            match (&expected, answer) {
                (Output(output), Ok(given)) => assert_eq!(given, output, "{request:.200}"),
                (Error(kind, part), Err((given, text))) => {
                    assert!(given == kind && text.contains(part), "{request:.200}: {given} {text}")
                }
                _ => panic!("{request:.200}: {answer:?}"),
            }
        }
    }
}

/// A step of a small random plugin. Offsets are never shown, since where a freed block is used again is each
/// allocator's own affair; nor is memory read that nothing was written to, or that was freed.
#[derive(Debug, Clone)]
enum Step {
    Alloc(usize, u32),
    Free(usize),
    Length(usize),
    Load(usize, i64),
    Input(i64),
    Byte(i64),
    Output(u32),
    Say,
    Remember(usize),
    Recall(usize),
    Configured(usize),
    Code(i8),
    Trap,
    Divide,
    Grow(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let slot = 0..4_usize;
    prop_oneof![
        5 => (slot.clone(), 8..5000_u32).prop_map(|(slot, size)| Step::Alloc(slot, size)),
        2 => slot.clone().prop_map(Step::Free),
        2 => slot.clone().prop_map(Step::Length),
        3 => (slot.clone(), 0..8_i64).prop_map(|(slot, at)| Step::Load(slot, at)),
        3 => (0..40_i64).prop_map(Step::Input),
        3 => (-20..40_i64).prop_map(Step::Byte),
        3 => (0..9_u32).prop_map(Step::Output),
        1 => Just(Step::Say),
        1 => slot.clone().prop_map(Step::Remember),
        1 => slot.clone().prop_map(Step::Recall),
        1 => slot.prop_map(Step::Configured),
        1 => any::<i8>().prop_map(Step::Code),
        1 => Just(Step::Trap),
        1 => Just(Step::Divide),
        1 => (0..3000_u32).prop_map(Step::Grow),
    ]
}

fn plugin(steps: &[Step]) -> String {
    let mut body = String::new();
    for step in steps {
        let add = |what: String| format!("(local.set $sum (i64.add (i64.mul (local.get $sum) (i64.const 31)) {what}))");
        body += &match step {
            Step::Alloc(slot, size) => format!(
                "(local.set $b{slot} (call $alloc (i64.const {size})))
                 (call $store64 (local.get $b{slot}) (i64.or (local.get $sum) (i64.const 0x6161616161616161)))"
            ),
            Step::Free(slot) => format!("(call $free (local.get $b{slot})) (local.set $b{slot} (i64.const 0))"),
            Step::Length(slot) => add(format!("(call $length (local.get $b{slot}))")),
            Step::Load(slot, at) => {
                add(format!("(i64.extend_i32_u (call $load8 (i64.add (local.get $b{slot}) (i64.const {at}))))"))
            }
            Step::Input(at) => add(format!("(call $input64 (i64.const {at}))")),
            Step::Byte(at) => add(format!("(i64.extend_i32_u (call $input8 (i64.const {at})))")),
            Step::Output(size) => format!("(call $output_set (call $digits) (i64.const {size}))"),
            Step::Say => "(call $error_set (call $message))".to_owned(),
            Step::Remember(slot) => {
                format!("(call $var_set (call $colour) (local.get $b{slot})) (local.set $b{slot} (i64.const 0))")
            }
            Step::Recall(slot) => format!("(local.set $b{slot} (call $var_get (call $colour)))"),
            Step::Configured(slot) => format!("(local.set $b{slot} (call $config_get (call $shape)))"),
            Step::Code(code) => format!(
                "(if (i64.eq (i64.rem_u (local.get $sum) (i64.const 3)) (i64.const 1)) (then (return (i32.const {code}))))"
            ),
            Step::Trap => {
                "(if (i64.eq (i64.rem_u (local.get $sum) (i64.const 5)) (i64.const 1)) (then unreachable))".to_owned()
            }
            Step::Divide => {
                "(local.set $sum (i64.div_u (i64.const 1000000) (i64.rem_u (local.get $sum) (i64.const 7))))".to_owned()
            }
            Step::Grow(pages) => format!("(drop (memory.grow (i32.const {pages})))"),
        };
        body.push('\n');
    }
    format!(
        "(module {IMPORTS} (func (export \"run\") (result i32)
            (local $sum i64) (local $b0 i64) (local $b1 i64) (local $b2 i64) (local $b3 i64)
            {body}
            (if (i64.eqz (i64.and (local.get $sum) (i64.const 1))) (then (call $out (local.get $sum))))
            i32.const 0))"
    )
}

/// `EVALPOOL_CONFORMANCE_CASES` plugins of random steps, 24 unless said otherwise. A failing one is shrunk and printed.
#[test]
fn both_engines_give_the_same_answers_to_random_plugins() {
    let cases = std::env::var("EVALPOOL_CONFORMANCE_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(24);
    let (extism, direct) = (pool(EngineKind::Extism), pool(EngineKind::Direct));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let inputs = proptest::collection::vec(any::<u8>(), 0..40);
    TestRunner::new(config)
        .run(&(proptest::collection::vec(step(), 1..30), inputs), |(steps, input)| {
            let spec = Spec::new(Source::bytes(wasm(&plugin(&steps)))).with_config("shape", "eight by");
            let inputs = [&input[..], b"other"];
            let theirs = runtime.block_on(answers(&extism, spec.clone(), &inputs));
            let ours = runtime.block_on(answers(&direct, spec, &inputs));
            prop_assert_eq!(ours, theirs);
            Ok(())
        })
        .unwrap();
    runtime.block_on(async { tokio::join!(extism.close(), direct.close()) });
}
