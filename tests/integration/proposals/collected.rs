//! References that are collected: structures, arrays, small numbers, casts.

use evalpool::{HostFunction, Isolation, Source, Spec};

use super::{all_come_to_what_they_should, evaluate, plugin, pool};
use crate::support::wasm;

/// Lists, pairs that name each other, and an array of bytes.
pub(super) const TYPES: &str =
    "(rec (type $node (sub (struct (field $value i32) (field $next (mut (ref null $node))))))
        (type $named (sub $node (struct (field $value i32) (field $next (mut (ref null $node))) (field f64)))))
    (type $bytes (array (mut i8))) (type $nodes (array (mut (ref null $node))))
    (func $list (param $n i32) (result (ref null $node)) (local $list (ref null $node))
        (loop $each
            (local.set $list (struct.new $node (local.get $n) (local.get $list)))
            (br_if $each (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
        (local.get $list))
    (func $sum (param $list (ref null $node)) (result i32) (local $sum i32)
        (loop $each
            (if (ref.is_null (local.get $list)) (then (return (local.get $sum))))
            (local.set $sum (i32.add (local.get $sum) (struct.get $node $value (local.get $list))))
            (local.set $list (struct.get $node $next (local.get $list)))
            (br $each))
        unreachable)";

/// Makes so many pairs that name each other, and keeps none.
pub(super) const PAIRS: &str = "(func $pairs (param $n i32) (local $one (ref null $node))
    (loop $each
        (local.set $one (struct.new $node (local.get $n) (ref.null $node)))
        (struct.set $node $next (local.get $one) (struct.new $node (i32.const 0) (local.get $one)))
        (br_if $each (local.tee $n (i32.sub (local.get $n) (i32.const 1))))))";

#[tokio::test]
async fn structures_arrays_and_casts_are_there() {
    let parts = format!(
        r#"{TYPES} (data $text "abc") (global $kept (mut (ref null $node)) (ref.null $node))
        (table $table 3 anyref)"#
    );
    let plugin = |body: &str| plugin(&parts, body);
    all_come_to_what_they_should(&[
        ("a list", plugin("(i32.sub (call $sum (call $list (i32.const 100))) (i32.const 5050))")),
        (
            "a list in a global, after much else",
            plugin("(global.set $kept (call $list (i32.const 100))) (drop (call $list (i32.const 500000))) (drop (call $list (i32.const 500000)))
                (i32.sub (call $sum (global.get $kept)) (i32.const 5050))"),
        ),
        (
            "an array from data",
            plugin("(i32.sub (array.get_u $bytes (array.new_data $bytes $text (i32.const 0) (i32.const 3)) (i32.const 2)) (i32.const 99))"),
        ),
        (
            "arrays that are filled and copied",
            plugin("(local $a (ref $bytes)) (local $b (ref $bytes))
                (local.set $a (array.new $bytes (i32.const 1) (i32.const 50)))
                (local.set $b (array.new_default $bytes (i32.const 50)))
                (array.fill $bytes (local.get $a) (i32.const 10) (i32.const 7) (i32.const 20))
                (array.copy $bytes $bytes (local.get $b) (i32.const 5) (local.get $a) (i32.const 0) (i32.const 40))
                (i32.sub (i32.add (array.get_u $bytes (local.get $b) (i32.const 15)) (array.get_u $bytes (local.get $b) (i32.const 44))) (i32.const 8))"),
        ),
        (
            "casts",
            plugin("(table.set $table (i32.const 1) (struct.new_default $named))
                (if (i32.eqz (ref.test (ref $node) (table.get $table (i32.const 1)))) (then unreachable))
                (if (ref.test (ref $node) (ref.i31 (i32.const 5))) (then unreachable))
                (struct.get $node $value (ref.cast (ref $node) (table.get $table (i32.const 1))))"),
        ),
        ("small numbers", plugin("(i32.sub (i31.get_s (ref.i31 (i32.const -5))) (i32.const -5))")),
        ("a reference outside and in again", plugin("(ref.is_null (any.convert_extern (extern.convert_any (call $list (i32.const 1)))))")),
    ])
    .await;
    // Where its bodies alone say that a plugin has any, its instances have a heap as well.
    let alone = [
        ("(drop (array.len (ref.null array))) (i32.const 0)", "null reference"),
        ("(drop (ref.cast (ref i31) (ref.null any))) (i32.const 0)", "cast failure"),
        ("(drop (ref.cast (ref array) (ref.i31 (i32.const 0)))) (i32.const 0)", "cast failure"),
        (
            "(block $c (result exnref) (try_table (catch_all_ref $c) unreachable) unreachable) (throw_ref)",
            "unreachable",
        ),
    ];
    for (body, why) in alone {
        let ended = evaluate(super::plugin("", body)).await.unwrap_err();
        assert!(ended.kind() == "guest_trap" && ended.to_string().contains(why), "{body}: {ended}");
    }
    let ended = evaluate(plugin("(drop (ref.cast (ref $named) (call $list (i32.const 1)))) (i32.const 0)")).await;
    assert!(ended.unwrap_err().to_string().contains("cast failure"));
}

/// Many times `limits.memory` in all.
#[tokio::test]
async fn what_nothing_names_any_more_is_collected_even_where_it_names_itself() {
    let text = format!("{TYPES} {PAIRS}");
    let spec = plugin(&text, "(call $pairs (i32.const 1000000)) (i32.const 0)").memory(8 << 20);
    all_come_to_what_they_should(&[("pairs", spec)]).await;
}

#[tokio::test]
async fn a_heap_is_fresh_with_its_instance_and_kept_with_it() {
    let parts = format!("{TYPES} (global $kept (mut (ref null $node)) (ref.null $node))");
    // Fails if its instance was called three times.
    let body = "(global.set $kept (struct.new $node (i32.const 1) (global.get $kept))) (i32.eq (call $sum (global.get $kept)) (i32.const 3))";
    let pool = pool();
    for (isolation, third) in [(Isolation::Fresh, true), (Isolation::Reuse, false)] {
        let evaluator = pool.evaluator("kept", plugin(&parts, body).isolation(isolation)).unwrap();
        for _ in 0..2 {
            evaluator.evaluate("").await.unwrap();
        }
        assert_eq!(evaluator.evaluate("").await.is_ok(), third, "{isolation:?}");
    }
    pool.close().await;
}

#[tokio::test]
async fn references_cross_between_linked_modules_and_live_while_the_host_is_called() {
    let node = "(type $node (struct (field (mut i32))))";
    let holder =
        format!(r#"(module {node} (func (export "make") (result (ref $node)) (struct.new $node (i32.const 4))))"#);
    let parts = format!(
        r#"{node} (import "holder" "make" (func $make (result (ref $node))))
        (import "extism:host/user" "wait" (func $wait (param i64) (result i64)))
        (func $much (local $n i32) (loop $each (drop (call $make))
            (br_if $each (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 100000)))))"#
    );
    let body = "(local $kept (ref $node)) (local.set $kept (call $make)) (drop (call $wait (i64.const 0))) (call $much)
        (i32.sub (struct.get $node 0 (local.get $kept)) (i32.const 4))";
    let wait = HostFunction::bytes_async("wait", |_| async {
        tokio::task::yield_now().await;
        Ok(vec![])
    });
    let spec: Spec = plugin(&parts, body).link("holder", Source::bytes(wasm(&holder))).host_function(wait);
    all_come_to_what_they_should(&[("a linked module's", spec.clone()), ("with fuel", spec.fuel(Some(100_000_000)))])
        .await;
}
