//! The cases: kernel and references (each in its own file), environment, endings, modules, and plugins made with official PDKs.

mod kernel;
mod references;

use std::time::Duration;

use evalpool::{
    HostFunction, HostFunctionError, Isolation, Source, Spec,
    engine::{Val, ValType},
};

use super::{
    Case, Expected,
    Expected::{Error, Output, Same},
    IMPORTS, case, env, fixture, with_functions,
};
use crate::support::{CALL_HOST, GREET, TEXT, TOTALS, WORDS, wasm};

pub(super) fn all() -> Vec<Case> {
    [kernel::cases(), references::cases(), environment_cases(), ending_cases(), module_cases(), fixture_cases()]
        .into_iter()
        .flatten()
        .collect()
}

/// Sets a variable to its own name, which is one block.
const TWICE: &str = "(func $twice (param $p i64) (call $var_set (local.get $p) (local.get $p)))";

/// Keeps a block's offset, for what is done with the block later.
pub(super) const KEPT: &str = "(global $kept (mut i64) (i64.const 0))
    (func $keep (param $p i64) (result i64) (global.set $kept (local.get $p)) (local.get $p))";

fn environment_cases() -> Vec<Case> {
    let configured = |body: &str| env(body).config("colour", "blue").config("naïve", "é");
    let vars = "(if (i64.eqz (call $input_length)) (then (call $var_set (call $colour) (call $digits))))
        (if (i64.eq (call $input_length) (i64.const 2)) (then (call $var_set (call $colour) (i64.const 0))))
        (call $block (call $var_get (call $colour))) i32.const 0";
    let three = |isolation| Case {
        name: "a variable is kept, read and removed",
        spec: env(vars).isolation(isolation),
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
        Case { name: "a variable survives a call", spec: env(vars).isolation(Isolation::Reuse), inputs: vec![vec![], vec![1]], expected: Output(b"0123456789") },
        Case { name: "a variable does not survive its instance", spec: env(vars), inputs: vec![vec![], vec![1]], expected: Output(b"") },
        case("a variable by a wild name", env("(call $var_set (i64.const 999) (call $digits)) i32.const 0"), "", Error("guest_error", "invalid handle offset for var key: 999")),
        case("a variable of a wild value", env("(call $var_set (call $colour) (i64.const 999)) i32.const 0"), "", Error("guest_error", "invalid handle offset for var value: 999")),
        case("a variable whose name is its value", with_functions(TWICE, "(call $twice (call $colour)) (call $block (call $var_get (call $colour))) i32.const 0"), "", Output(b"colour")),
        case("what names and sets a variable is freed", with_functions(KEPT, "(call $var_set (call $keep (call $colour)) (call $digits)) (call $out (call $length (global.get $kept))) i32.const 0"), "", Output(&[0; 8])),
        case("what sets a variable is freed", with_functions(KEPT, "(call $var_set (call $colour) (call $keep (call $digits))) (call $out (call $length (global.get $kept))) i32.const 0"), "", Output(&[0; 8])),
        case("what removes a variable is freed", with_functions(KEPT, "(call $var_set (call $keep (call $colour)) (i64.const 0)) (call $out (call $length (global.get $kept))) i32.const 0"), "", Output(&[0; 8])),
        case("a variable by a name that was freed", with_functions(KEPT, "(drop (call $config_get (call $keep (call $colour)))) (drop (call $var_get (global.get $kept))) i32.const 0"), "", Error("guest_error", "invalid handle offset for var key")),
        case("a variable of a value that was freed", with_functions(KEPT, "(call $free (call $keep (call $digits))) (call $var_set (call $shape) (global.get $kept)) i32.const 0"), "", Error("guest_error", "invalid handle offset for var value")),
        case("the block that was read is what is written to", with_functions(KEPT, "(call $var_set (call $colour) (call $digits)) (drop (call $keep (call $digits))) (call $free (global.get $kept))
             (call $block (call $var_get (call $colour))) i32.const 0"), "", Output(b"0123456789")),
        case("a message logged twice", with_functions(KEPT, "(call $log_info (call $keep (call $message))) (call $log_info (global.get $kept)) i32.const 0"), "", Same),
        case("variables without end", env("(call $var_set (call $colour) (call $alloc (i64.const 2000000))) i32.const 0"), "", Error("guest_error", "Variable store is full")),
        case("logs", env("(call $log_trace (call $message)) (call $log_debug (call $message)) (call $log_info (call $message))
             (call $log_warn (call $message)) (call $log_error (call $message)) (call $log_error (call $not_text)) i32.const 0"), "", Output(b"")),
        case("the log's level", env("(call $out (i64.extend_i32_s (call $log_level))) i32.const 0"), "", Same),
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
        case("an endless loop", env("(loop br 0) i32.const 0").exec_timeout(Duration::from_millis(300)), "", Error("exec_timeout", "longer than limits.exec_timeout, 300 ms")),
        case("out of memory", env("(drop (memory.grow (i32.const 2000))) i32.const 0"), "", Error("out_of_memory", "out of memory")),
        case("out of fuel", env("(loop br 0) i32.const 0").fuel(Some(100_000)), "", Error("out_of_fuel", "ran out of fuel")),
        case("within its fuel", env("(call $echo) i32.const 0").fuel(Some(1_000_000)), "abc", Output(b"abc")),
        case("exit 0", wasi("proc_exit", "(param i32)", "(call $echo) (call $f (i32.const 0)) i32.const 9"), "abc", Output(b"abc")),
        case("exit 3", wasi("proc_exit", "(param i32)", "(call $f (i32.const 3)) i32.const 0"), "", Error("guest_exit", "exited with code 3")),
        case("an error, then exit 0", wasi("proc_exit", "(param i32)", "(call $error_set (call $message)) (call $f (i32.const 0)) i32.const 0"), "", Error("guest_error", "message")),
        case("a clock", wasi("clock_time_get", "(param i32 i64 i32) (result i32)",
            "(if (call $f (i32.const 0) (i64.const 1) (i32.const 64)) (then unreachable))
             (if (i64.lt_u (i64.load (i32.const 64)) (i64.const 1700000000000000000)) (then unreachable)) i32.const 0"), "", Output(b"")),
        case("a clock that only goes on", wasi("clock_time_get", "(param i32 i64 i32) (result i32)",
            "(drop (call $f (i32.const 1) (i64.const 1) (i32.const 64))) (drop (call $f (i32.const 1) (i64.const 1) (i32.const 72)))
             (if (i64.lt_u (i64.load (i32.const 72)) (i64.load (i32.const 64))) (then unreachable)) i32.const 0"), "", Output(b"")),
        case("how fine clocks are", wasi("clock_res_get", "(param i32 i32) (result i32)",
            "(drop (call $f (i32.const 0) (i32.const 64))) (drop (call $f (i32.const 1) (i32.const 72)))
             (if (i32.or (i64.eqz (i64.load (i32.const 64))) (i64.eqz (i64.load (i32.const 72)))) (then unreachable)) i32.const 0"), "", Output(b"")),
        case("randomness", wasi("random_get", "(param i32 i32) (result i32)",
            "(if (call $f (i32.const 64) (i32.const 16)) (then unreachable))
             (if (i64.eq (i64.load (i32.const 64)) (i64.load (i32.const 72))) (then unreachable)) i32.const 0"), "", Output(b"")),
        case("no arguments", wasi("args_sizes_get", "(param i32 i32) (result i32)", "(if (call $f (i32.const 64) (i32.const 68)) (then unreachable)) (i32.load (i32.const 64))"), "", Output(b"")),
        case("no environment", wasi("environ_sizes_get", "(param i32 i32) (result i32)", "(if (call $f (i32.const 64) (i32.const 68)) (then unreachable)) (i32.load (i32.const 64))"), "", Output(b"")),
        case("nothing preopened", wasi("fd_prestat_get", "(param i32 i32) (result i32)", "(call $f (i32.const 3) (i32.const 64))"), "", Error("guest_error", "it returned 8")),
    ]
}

/// Traps when its instance has called it before.
const ONCE: &str = "(global $ran (mut i32) (i32.const 0))
    (func $once (if (global.get $ran) (then unreachable)) (global.set $ran (i32.const 1)))";

/// Three calls of one evaluator that uses its instances again.
fn again(name: &'static str, text: &str, entry_point: &str, expected: Expected) -> Case {
    let spec = Spec::new(Source::bytes(wasm(text))).entry_point(entry_point).isolation(Isolation::Reuse);
    Case { name, spec, inputs: vec![vec![]; 3], expected }
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
        case("a command", from_text(&format!(r#"(module {output} (func (export "_start") (call $out (i64.const 5))))"#)).entry_point("_start"), "", Output(&[5, 0, 0, 0, 0, 0, 0, 0])),
        again("a command called again", &format!(r#"(module {output} {ONCE}
            (func (export "_start") (call $once) (call $out (i64.const 5))))"#), "_start", Output(&[5, 0, 0, 0, 0, 0, 0, 0])),
        again("a command that exits, called again", &format!(r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32))) {output} {ONCE}
            (memory (export "memory") 1)
            (func (export "_start") (call $once) (call $out (i64.const 5)) (call $exit (i32.const 0))))"#), "_start", Output(&[5, 0, 0, 0, 0, 0, 0, 0])),
        Case { inputs: vec![vec![]; 2], ..again("what is not a command, called again", &format!("(module {output} {ONCE} (func (export \"run\") (call $once)))"), "run", Error("guest_trap", "unreachable")) },
        case("linked modules, in any order", from_text(&linked).link("adds", adds.clone()).link("doubles", doubles.clone()), "", Output(&[41, 0, 0, 0, 0, 0, 0, 0])),
        case("a linked module that is missing", from_text(&linked).link("adds", adds), "", Error("invalid_plugin", "doubles")),
        case("a linked module without the export", from_text(&linked).link("adds", doubles), "", Error("invalid_plugin", "")),
        case("a host function of all types", host("sum", "(param i32 i64 f32 f64) (result f64)",
            "(call $out (i64.trunc_f64_s (call $f (i32.const 1) (i64.const 2) (f32.const 3) (f64.const 4))))").host_function(sum), "", Output(&[10, 0, 0, 0, 0, 0, 0, 0])),
        case("a host function in another module", from_text(&format!(r#"(module (import "env" "answer" (func $f (result i64))) {output} (func (export "run") (call $out (call $f))))"#)).host_function(other), "", Output(&[42, 0, 0, 0, 0, 0, 0, 0])),
        case("a host function of another type", host("host_upper", "(param i32)", "").host_function(slow.clone()), "", Error("invalid_plugin", "")),
        case("a host function that breaks its word", host("answer", "(result i64)", "(call $out (call $f))").host_function(broken), "", Error("internal", "broke its declaration")),
        case("a host function that waits", fixture(CALL_HOST, "call_host").host_function(slow), "quiet", Output(b"QUIET")),
        case("a host function that never answers", fixture(CALL_HOST, "call_host").host_function(stuck).exec_timeout(Duration::from_millis(300)), "quiet", Error("exec_timeout", "limits.exec_timeout, 300 ms")),
        case("a host function that refuses", fixture(CALL_HOST, "call_host").host_function(refuses), "x", Error("guest_error", "not for you")),
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
            spec: fixture(TEXT, "counter").isolation(Isolation::Reuse),
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
            spec: fixture(WORDS, "remember").isolation(Isolation::Reuse),
            inputs: vec![b"a".to_vec(), b"b".to_vec()],
            expected: Output(b"ab"),
        },
        case("AssemblyScript: config", fixture(WORDS, "setting").config("colour", "blue"), "colour", Output(b"blue")),
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
