//! `externref` wherever WebAssembly 2.0 has it. Hosts pass no such references, so each is null.

use evalpool::{Source, Spec};

use super::super::{
    Case,
    Expected::{Error, Output},
    case,
};
use crate::support::wasm;

pub(super) fn cases() -> Vec<Case> {
    let plugin = |parts: &str| Spec::new(Source::bytes(wasm(&format!("(module {parts})"))));
    // Returns 0, which is a success, if what `body` gives is null.
    let is_null = |parts: &str, body: &str| {
        plugin(&format!(r#"{parts} (func (export "run") (result i32) (i32.eqz (ref.is_null {body})))"#))
    };
    let null = |name, parts: &str, body: &str| case(name, is_null(parts, body), "", Output(b""));
    let trap = |name, parts: &str, body: &str, words| case(name, is_null(parts, body), "", Error("guest_trap", words));
    let holder = Source::bytes(wasm(
        r#"(module (memory 1) (table (export "table") 3 externref) (global (export "global") (mut externref) (ref.null extern))
            (func (export "same") (param externref) (result externref) (local.get 0)))"#,
    ));
    let linked = r#"(import "holder" "table" (table $t 1 externref)) (import "holder" "global" (global $g (mut externref)))
        (import "holder" "same" (func $same (param externref) (result externref)))"#;
    let again = Case {
        inputs: vec![vec![]; 3],
        ..null(
            "a reference in each instance",
            "(table $t 4 externref)",
            "(block (result externref) (table.set $t (i32.const 1) (ref.null extern)) (table.get $t (i32.const 1)))",
        )
    };
    vec![
        case("a table of references that nobody uses", plugin(r#"(table 1 externref) (func (export "run") (result i32) (i32.const 0))"#), "", Output(b"")),
        null("a reference", "", "(ref.null extern)"),
        null("a reference in types", "(func $same (param externref) (result externref) (local.get 0))", "(call $same (ref.null extern))"),
        null("a reference in a type with numbers", "(func $both (param i32 externref f64) (result externref i32) (local.get 1) (local.get 0))", "(block (result externref) (call $both (i32.const 1) (ref.null extern) (f64.const 2)) (drop))"),
        null("a reference in an indirect call", "(type $same (func (param externref) (result externref))) (table funcref (elem $f)) (func $f (type $same) (local.get 0))", "(call_indirect (type $same) (ref.null extern) (i32.const 0))"),
        trap("an indirect call by another type", "(table funcref (elem $f)) (func $f (param externref))", "(block (result funcref) (call_indirect (param funcref) (ref.null func) (i32.const 0)) (ref.null func))", "indirect call type mismatch"),
        null("a reference in a local", "(func $held (result externref) (local externref) (local.set 0 (ref.null extern)) (local.get 0))", "(call $held)"),
        null("a reference in a local that is not set", "(func $held (result externref) (local externref) (local.get 0))", "(call $held)"),
        null("a reference in a global", "(global externref (ref.null extern))", "(global.get 0)"),
        null("a reference in a global that is set", "(global $g (mut externref) (ref.null extern))", "(block (result externref) (global.set $g (ref.null extern)) (global.get $g))"),
        null("a reference in an exported global and table", r#"(global (export "g") externref (ref.null extern)) (table (export "t") 2 externref)"#, "(table.get 0 (i32.const 1))"),
        null("a reference that is selected", "", "(select (result externref) (ref.null extern) (ref.null extern) (i32.const 1))"),
        null("a reference from a block and a branch", "", "(block (result externref) (drop (br_if 0 (ref.null extern) (i32.const 0))) (if (result externref) (i32.const 1) (then (ref.null extern)) (else (ref.null extern))))"),
        null("a reference that a loop keeps", "(global $g (mut i32) (i32.const 100)) (func $f)
            (func $held (result externref) (local externref) (loop (call $f) (global.set $g (i32.sub (global.get $g) (i32.const 1))) (br_if 0 (global.get $g))) (local.get 0))", "(call $held)"),
        null("references in a table that is set, filled, copied and grown", "(table $t 2 20 externref) (table $f 1 funcref) (table $u 3 externref)",
            "(block (result externref)
                (table.set $t (i32.const 0) (ref.null extern))
                (table.fill $t (i32.const 0) (ref.null extern) (i32.const 2))
                (table.copy $u $t (i32.const 1) (i32.const 0) (i32.const 2))
                (if (i32.ne (table.grow $t (ref.null extern) (i32.const 3)) (i32.const 2)) (then unreachable))
                (if (i32.ne (table.grow $t (ref.null extern) (i32.const 100)) (i32.const -1)) (then unreachable))
                (if (i32.ne (table.size $t) (i32.const 5)) (then unreachable))
                (table.get $t (i32.const 4)))"),
        trap("a reference beyond its table", "(table $t 2 externref)", "(table.get $t (i32.const 2))", "undefined element: out of bounds table access"),
        null("references in segments", "(table $t 3 externref) (elem (table $t) (i32.const 1) externref (ref.null extern)) (elem $passive externref (ref.null extern) (ref.null extern)) (elem declare externref (ref.null extern))",
            "(block (result externref) (table.init $t $passive (i32.const 0) (i32.const 0) (i32.const 2)) (elem.drop $passive) (table.get $t (i32.const 1)))"),
        again,
        case("references in a linked module", is_null(linked, "(block (result externref) (table.set $t (i32.const 2) (call $same (global.get $g))) (table.get $t (i32.const 2)))").link("holder", holder), "", Output(b"")),
    ]
}
