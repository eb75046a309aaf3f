//! Code that runs before anybody has called anything.

use super::{
    Comes::{Nothing, Refused},
    Hostile, IMPORTS, module,
};

pub(super) fn all() -> Vec<Hostile> {
    [initialisers(), busy_initialisers()].into_iter().flatten().collect()
}

fn initialisers() -> Vec<Hostile> {
    let bad = Refused("invalid_plugin");
    let start = |body: &str| format!("(module (memory 1) (func $s {body}) (start $s) (func (export \"run\")))");
    let export = |name: &str, ty: &str, body: &str| {
        format!("(module (memory 1) (func (export \"{name}\") {ty} {body}) (func (export \"run\")))")
    };
    let calls_host =
        |body: &str, rest: &str| format!("(module {IMPORTS} (func $s {body}) {rest} (func (export \"run\")))");
    let asks = "(drop (call $config_get (call $colour))) (call $var_set (call $colour) (call $digits))
        (drop (call $var_get (call $colour)))";
    let exits = r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1) (func $s (call $exit (i32.const 0))) (start $s) (func (export "run")))"#;
    vec![
        module("a start that traps", &start("unreachable"), bad),
        module("a start that never ends", &start("(loop br 0)"), Refused("build_timeout")),
        module("a start that recurses", "(module (func $s (call $s)) (start $s) (func (export \"run\")))", bad),
        module(
            "a start that takes all memory",
            &start("(loop (drop (memory.grow (i32.const 16))) (br 0))"),
            Refused("out_of_memory"),
        ),
        module("a start that exits", exits, bad),
        module("an _initialize that never ends", &export("_initialize", "", "(loop br 0)"), Refused("build_timeout")),
        module("an _initialize of another type", &export("_initialize", "(param i32)", ""), bad),
        module(
            "constructors that never end",
            &export("__wasm_call_ctors", "", "(loop br 0)"),
            Refused("build_timeout"),
        ),
        module("constructors that trap", &export("__wasm_call_ctors", "", "unreachable"), bad),
        module(
            "a start that writes to the log",
            &calls_host("(call $log_error (call $message))", "(start $s)"),
            Nothing,
        ),
        module("a start that calls the host", &calls_host(asks, "(start $s)"), Nothing),
        module("an _initialize that calls the host", &calls_host(asks, "(export \"_initialize\" (func $s))"), Nothing),
        module(
            "constructors that call the host",
            &calls_host(asks, "(export \"__wasm_call_ctors\" (func $s))"),
            Nothing,
        ),
        module(
            "Haskell that never starts",
            &export("hs_init", "(param i32 i32)", "(loop br 0)"),
            Refused("build_timeout"),
        ),
    ]
}

/// Initialisers that are busy in a way that counting instructions does not tell.
fn busy_initialisers() -> Vec<Hostile> {
    let late = Refused("build_timeout");
    let start = |body: &str| format!("(module (memory 1) (func $s {body}) (start $s) (func (export \"run\")))");
    vec![
        module(
            "a start that fills its memory again and again",
            &start("(loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 65536)) (br 0))"),
            late,
        ),
        module(
            "a start that copies a little again and again",
            &start("(loop (memory.copy (i32.const 8) (i32.const 0) (i32.const 700)) (br 0))"),
            late,
        ),
        module(
            "a start that fills its table again and again",
            "(module (table 10000 funcref) (elem declare func $s) (func $s (loop (table.fill (i32.const 0) (ref.func $s) (i32.const 10000)) (br 0)))
                (start $s) (func (export \"run\")))",
            late,
        ),
        module(
            "an _initialize that asks for the time without end",
            r#"(module (import "wasi_snapshot_preview1" "clock_time_get" (func $f (param i32 i64 i32) (result i32)))
                (memory (export "memory") 1) (func (export "_initialize") (loop (drop (call $f (i32.const 0) (i64.const 1) (i32.const 64))) (br 0)))
                (func (export "run")))"#,
            late,
        ),
        module(
            "constructors that draw much at random, through a table",
            r#"(module (import "wasi_snapshot_preview1" "random_get" (func $f (param i32 i32) (result i32)))
                (memory (export "memory") 100) (type $t (func (param i32 i32) (result i32))) (table funcref (elem $f))
                (func (export "__wasm_call_ctors") (loop (drop (call_indirect (type $t) (i32.const 0) (i32.const 1000000) (i32.const 0))) (br 0)))
                (func (export "run")))"#,
            late,
        ),
        module(
            "a start that gives WASI long paths without end",
            r#"(module (import "wasi_snapshot_preview1" "path_create_directory" (func $f (param i32 i32 i32) (result i32)))
                (memory (export "memory") 100) (func $s (loop (drop (call $f (i32.const 3) (i32.const 0) (i32.const 6000000))) (br 0)))
                (start $s) (func (export "run")))"#,
            late,
        ),
    ]
}
