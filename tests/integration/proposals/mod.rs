//! What WebAssembly has beyond its second version, on `direct`: it runs, and is bounded. Proposals that stay off are refused
//! by their names: see `source::inspect`.

mod bounds;
mod collected;

use evalpool::{EvaluatorPool, Plugin, Response, Source, Spec, config::EngineKind};

use crate::support::{builder, wasm};

/// A plugin that gives 0, which is a success, if `body` comes to what it should.
fn plugin(parts: &str, body: &str) -> Spec {
    Spec::new(Source::bytes(wasm(&format!(r#"(module {parts} (func (export "run") (result i32) {body}))"#))))
}

fn pool() -> EvaluatorPool {
    builder(EngineKind::Direct).capacity(4).build().unwrap()
}

async fn evaluate(spec: Spec) -> Result<Response, evalpool::Error> {
    let pool = pool();
    let ended = pool.evaluator("plugin", spec).unwrap().evaluate("").await;
    pool.close().await;
    ended
}

/// Each of these gives 0.
async fn all_come_to_what_they_should(plugins: &[(&str, Spec)]) {
    let pool = pool();
    for (name, spec) in plugins {
        let ended = pool.evaluator("plugin", spec.clone()).unwrap().evaluate("").await;
        assert!(ended.is_ok(), "{name}: {ended:?}");
    }
    pool.close().await;
}

#[test]
fn what_takes_more_than_a_memory_for_each_module_is_known() {
    for (parts, wide) in [
        ("(memory 1) (table 1 funcref) (global (mut f64) (f64.const 0))", false),
        ("(memory i64 1)", false),
        ("(table i64 1 funcref)", false),
        ("(type $f (func)) (table 1 (ref null $f)) (func (param (ref $f)))", false),
        ("(memory 1) (memory 1)", true),
        (r#"(import "a" "b" (memory 1)) (memory 1)"#, true),
        ("(tag)", true),
        ("(table 1 exnref)", true),
        ("(table 1 externref)", true),
        ("(func (param (ref extern)))", true),
        ("(type (struct))", true),
        ("(type (array i8))", true),
        ("(rec (type (func)))", true),
        ("(table 1 anyref)", true),
        ("(global i31ref (ref.null i31))", true),
        ("(func (param eqref))", true),
        ("(func (result nullexternref) unreachable)", true),
    ] {
        let plugin = Plugin::new(wasm(&format!("(module {parts})")).into(), None).unwrap();
        assert_eq!(plugin.interface().is_wide(), wide, "{parts}");
    }
}

#[tokio::test]
async fn relaxed_simd_comes_to_the_same_on_each_machine() {
    let lane =
        "(i8x16.extract_lane_u 0 (i8x16.relaxed_swizzle (i8x16.splat (i32.const 7)) (i8x16.splat (i32.const 16))))";
    // What rounds once, and what rounds twice, differ here. The one that rounds once is the deterministic one.
    let fused = "(f32x4.extract_lane 0 (f32x4.relaxed_madd (f32x4.splat (f32.const 0x1.000002p0))
        (f32x4.splat (f32.const 0x1.000002p0)) (f32x4.splat (f32.const -0x1.000004p0))))";
    all_come_to_what_they_should(&[
        ("an index beyond the lanes", plugin("", lane)),
        ("a product and a sum", plugin("", &format!("(f32.ne {fused} (f32.const 0x1p-46))"))),
    ])
    .await;
}

#[tokio::test]
async fn wide_arithmetic_has_128_bits() {
    let wide = "(local $low i64) (local $high i64)
        (i64.mul_wide_u (i64.const -1) (i64.const -1)) (local.set $high) (local.set $low)
        (i64.add128 (local.get $low) (local.get $high) (i64.const -1) (i64.const 0)) (local.set $high) (local.set $low)
        (i32.or (i64.ne (local.get $low) (i64.const 0)) (i64.ne (local.get $high) (i64.const -1)))";
    all_come_to_what_they_should(&[("a product and a sum", plugin("", wide))]).await;
}

#[tokio::test]
async fn functions_are_called_by_reference() {
    let parts = "(type $number (func (result i32))) (func $zero (type $number) (i32.const 0)) (elem declare func $zero)
        (func $call (param (ref $number)) (result i32) (call_ref $number (local.get 0)))
        (table $typed 1 (ref null $number)) (func $store (table.set $typed (i32.const 0) (ref.func $zero)))";
    all_come_to_what_they_should(&[
        ("as an argument", plugin(parts, "(call $call (ref.func $zero))")),
        ("from a table", plugin(parts, "(call $store) (call_ref $number (table.get $typed (i32.const 0)))")),
        ("in a tail call", plugin(parts, "(return_call_ref $number (ref.func $zero))")),
    ])
    .await;
    let ended = evaluate(plugin(parts, "(call_ref $number (table.get $typed (i32.const 0)))")).await.unwrap_err();
    assert_eq!(ended.kind(), "guest_trap");
}

#[tokio::test]
async fn a_plugin_has_several_memories_and_exchanges_what_is_in_them() {
    let parts = r#"(memory $a 1) (memory $b 2) (memory $c 1 5) (memory $d (export "d") 1)
        (data (memory $b) (i32.const 65536) "moved") (data $later "later")"#;
    let body = "(memory.copy $d $b (i32.const 9) (i32.const 65536) (i32.const 5))
        (memory.init $c $later (i32.const 0) (i32.const 0) (i32.const 5))
        (memory.fill $a (i32.const 0) (i32.const 1) (i32.const 65536))
        (if (i32.ne (memory.grow $c (i32.const 4)) (i32.const 1)) (then unreachable))
        (if (i32.ne (memory.grow $c (i32.const 1)) (i32.const -1)) (then unreachable))
        (if (i32.ne (memory.size $d) (i32.const 1)) (then unreachable))
        (i32.or (i32.ne (i32.load8_u $d (i32.const 13)) (i32.const 100))
            (i32.ne (i32.load8_u $c (i32.const 4)) (i32.const 114)))";
    all_come_to_what_they_should(&[("four memories", plugin(parts, body))]).await;
}

#[tokio::test]
async fn a_memory_of_64_bits_is_as_another_and_ends_where_it_ends() {
    let parts = r#"(memory i64 1) (data (i64.const 65530) "x") (table $t i64 3 funcref)"#;
    let body = "(if (i64.ne (memory.grow (i64.const 2)) (i64.const 1)) (then unreachable))
        (i64.store (i64.const 196600) (i64.const 5))
        (if (i64.ne (table.size $t) (i64.const 3)) (then unreachable))
        (i32.sub (i32.wrap_i64 (i64.load (i64.const 196600)))
            (i32.sub (i32.load8_u (i64.const 65530)) (i32.const 115)))";
    all_come_to_what_they_should(&[("a memory of 64 bits", plugin(parts, body))]).await;
    for beyond in ["65536", "65529", "0x100000000", "-1", "-8", "0x7fffffffffffffff"] {
        let ended = evaluate(plugin(parts, &format!("(i32.wrap_i64 (i64.load (i64.const {beyond})))"))).await;
        let ended = ended.unwrap_err().to_string();
        assert!(ended.contains("out of bounds memory access"), "{beyond}: {ended}");
    }
}

#[tokio::test]
async fn an_exception_goes_to_whoever_catches_it() {
    let parts = "(tag $number (param i32)) (tag $other)
        (func $throw (param i32) (throw $number (local.get 0)))
        (func $through (param i32) (result i32) (block $caught (result exnref)
            (try_table (catch_all_ref $caught) (call $throw (local.get 0))) (return (i32.const 9))) (throw_ref))
        (func $deep (param $left i32) (param $number i32) (if (i32.eqz (local.get $left)) (then (call $throw (local.get $number))))
            (call $deep (i32.sub (local.get $left) (i32.const 1)) (local.get $number)))";
    let caught =
        |call: &str| format!("(block $caught (result i32) (try_table (catch $number $caught) {call}) (i32.const 9))");
    all_come_to_what_they_should(&[
        ("at once", plugin(parts, &caught("(throw $number (i32.const 0))"))),
        ("from a function", plugin(parts, &caught("(call $throw (i32.const 0))"))),
        ("thrown again", plugin(parts, &caught("(drop (call $through (i32.const 0)))"))),
        ("from far below", plugin(parts, &caught("(call $deep (i32.const 3000) (i32.const 0))"))),
        (
            "by a catch of all",
            plugin(parts, "(block $caught (try_table (catch_all $caught) (throw $other)) unreachable) (i32.const 0)"),
        ),
    ])
    .await;
    let ended = evaluate(plugin(parts, &caught("(throw $other)"))).await.unwrap_err();
    assert_eq!(ended.kind(), "guest_trap");
    assert!(ended.to_string().contains("it threw an exception that nothing caught"), "{ended}");
    let parts = format!("{parts} (func $begin (throw $other)) (start $begin)");
    let ended = evaluate(plugin(&parts, "(i32.const 0)")).await.unwrap_err();
    assert_eq!(ended.kind(), "invalid_plugin");
    assert!(ended.to_string().contains("initialisation threw an exception that nothing caught"), "{ended}");
}

#[tokio::test]
async fn an_exception_crosses_from_a_linked_module_and_not_into_the_host() {
    let library =
        wasm(r#"(module (tag $t (export "tag") (param i64)) (func (export "fail") (throw $t (i64.const 40))))"#);
    let linked = |body: &str| {
        let parts = r#"(import "library" "tag" (tag $t (param i64))) (import "library" "fail" (func $fail))"#;
        plugin(parts, body).link("library", Source::bytes(library.clone()))
    };
    let caught = "(i32.wrap_i64 (i64.sub
        (block $caught (result i64) (try_table (catch $t $caught) (call $fail)) (i64.const 0)) (i64.const 40)))";
    all_come_to_what_they_should(&[("a linked module's", linked(caught))]).await;
    assert_eq!(evaluate(linked("(call $fail) (i32.const 0)")).await.unwrap_err().kind(), "guest_trap");
    // What ends a guest is no exception that it could catch.
    let parts = r#"(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)"#;
    for (ends, kind) in [("(call $exit (i32.const 3))", "guest_exit"), ("unreachable", "guest_trap")] {
        let body = format!("(block $caught (try_table (catch_all $caught) {ends})) (i32.const 0)");
        assert_eq!(evaluate(plugin(parts, &body)).await.unwrap_err().kind(), kind);
    }
}

/// The engine that cannot bound them is handed none.
#[tokio::test]
async fn the_extism_engine_refuses_them_by_their_names() {
    let pool = builder(EngineKind::Extism).capacity(4).build().unwrap();
    for (parts, proposal) in [
        ("(memory i64 1)", "memory64"),
        ("(memory 1) (memory 1)", "multiple memories"),
        ("(tag)", "exceptions"),
        ("(type (struct))", "gc"),
        ("(type $f (func)) (func (param (ref $f)))", "function references"),
    ] {
        let own = plugin(parts, "(i32.const 0)");
        let linked = plugin("", "(i32.const 0)").link("other", Source::bytes(wasm(&format!("(module {parts})"))));
        for spec in [own, linked] {
            let refused = pool.evaluator("plugin", spec).unwrap().evaluate("").await.unwrap_err();
            assert_eq!(refused.kind(), "invalid_plugin");
            let refused = refused.to_string();
            assert!(refused.contains(proposal) && refused.contains("the extism engine"), "{parts}: {refused}");
        }
    }
    pool.close().await;
}
