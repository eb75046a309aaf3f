//! Bombs of each kind are refused, and what toolchains make is let through.

use super::*;

fn module(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

fn run(locals: usize, body: &str) -> Vec<u8> {
    module(&format!(
        "(module (global $g (mut i32) (i32.const 0)) (func (export \"run\") (local {}) {body}))",
        "i32 ".repeat(locals)
    ))
}

fn each(times: usize, text: impl Fn(usize) -> String) -> String {
    (0..times).map(text).collect()
}

fn refused(wasm: &[u8]) -> String {
    let began = std::time::Instant::now();
    let error = check(wasm).unwrap_err();
    assert_eq!(error.kind(), "invalid_plugin");
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?} for {error}", began.elapsed());
    error.to_string()
}

const CHANGE: fn(usize) -> String = |at| format!("(local.set {at} (i32.add (local.get {at}) (i32.const 1)))");
const AGAIN: &str = "(br_if 0 (global.get $g))";

#[test]
fn real_plugins_are_far_below_the_bounds() {
    for (name, wasm) in [
        ("rust", &include_bytes!("../../../tests/plugins/rust/totals.wasm")[..]),
        ("assemblyscript", include_bytes!("../../../tests/plugins/assemblyscript/words.wasm")),
        ("c", include_bytes!("../../../tests/plugins/c/text.wasm")),
    ] {
        let effort = measure(wasm).unwrap();
        assert!(effort.total < MODULE / 100 && effort.largest < FUNCTION / 100, "{name}: {effort:?}");
    }
}

/// The shape of Go's functions: a loop around a table of all places where a call may return to, which fall through.
#[test]
fn a_large_state_machine_is_let_through() {
    let states = 3_000;
    let table = each(states, |at| format!("{at} "));
    let body = format!(
        "(loop $all {} (br_table {table} (global.get $g)) {})",
        "(block ".repeat(states),
        each(states, |at| format!(
            ") (local.set {} (global.get $g)) (global.set $g (local.get {})) (br_if $all (global.get $g))",
            at % 14,
            at % 14
        ))
    );
    let effort = measure(&run(14, &body)).unwrap();
    assert!(effort.largest < FUNCTION / 2, "{effort:?}");
}

#[test]
fn many_locals_that_many_loops_change_are_refused() {
    let loops = format!("{} {} {}", "(loop ".repeat(1_000), each(1_000, CHANGE), format!("{AGAIN})").repeat(1_000));
    assert!(refused(&run(1_000, &loops)).contains("its function 0 would take too long to compile"));
    let branches = format!("(loop {} {})", each(1_000, CHANGE), AGAIN.repeat(3_000));
    assert!(refused(&run(1_000, &branches)).contains("where its branches meet"));
    let row = each(30_000, |_| "(if (local.get 0) (then (local.set 0 (global.get $g))))".into());
    assert!(refused(&run(1, &row)).contains("where its branches meet"));
}

#[test]
fn many_loops_and_many_locals_times_branches_are_refused() {
    assert!(refused(&run(0, &"(loop)".repeat(30_000))).contains("as many loops"));
    let late = format!("{} {}", format!("(block {AGAIN})").repeat(10_000), each(20_000, CHANGE));
    assert!(refused(&run(20_000, &late)).contains("locals times branches"));
}

#[test]
fn a_very_long_function_is_refused() {
    assert!(refused(&run(1, &CHANGE(0).repeat(300_000))).contains("as many instructions"));
}

#[test]
fn values_by_the_thousand_are_refused() {
    let (types, zeros, drops) = ("i32 ".repeat(1_000), "(i32.const 0)".repeat(1_000), "drop ".repeat(1_000));
    let calls = format!(
        "(module (func $f (param {types}) (result {types}) {}) (func (export \"run\") {zeros} {} {drops}))",
        each(1_000, |at| format!("(local.get {at})")),
        "(call $f)".repeat(1_000)
    );
    assert!(refused(&module(&calls)).contains("parameters and results of its calls"));
    let blocks =
        format!("{zeros} {} {drops}", format!("(loop (param {types}) (result {types}) {AGAIN})").repeat(1_000));
    assert!(refused(&run(0, &blocks)).contains("its function 0"));
    let table =
        format!("(block (result {types}) {zeros} (br_table {} 0 (global.get $g))) {drops}", "0 ".repeat(20_000));
    assert!(refused(&run(0, &table)).contains("parameters and results of its blocks"));
}

#[test]
fn references_that_many_loops_or_calls_keep_are_refused() {
    let with = |locals: usize, stack: usize, body: &str| {
        module(&format!(
            "(module (global $g (mut i32) (i32.const 0)) (func $f) (func (export \"run\") (local {}) {} {body} {}))",
            "externref ".repeat(locals),
            "(ref.null extern)".repeat(stack),
            "drop ".repeat(stack)
        ))
    };
    let (loops, calls) = (format!("(loop {AGAIN})").repeat(300), "(call $f)".repeat(10_000));
    for (locals, stack) in [(300, 0), (0, 300)] {
        assert!(refused(&with(locals, stack, &loops)).contains("the references that it keeps"));
    }
    for (locals, stack) in [(3_000, 0), (0, 3_000)] {
        assert!(refused(&with(locals, stack, &calls)).contains("the references that it keeps"));
    }
    for (locals, stack, body) in [(30, 30, &loops), (100, 100, &calls)] {
        assert!(measure(&with(locals, stack, body)).unwrap().largest < FUNCTION);
    }
}

#[test]
fn very_many_functions_and_long_constants_are_refused() {
    let functions = format!("(module {})", "(func)".repeat(300_000));
    assert!(refused(&module(&functions)).contains("many functions"));
    let constant = format!("(module (global i32 i32.const 0 {}))", "i32.const 1 i32.add ".repeat(600_000));
    assert!(refused(&module(&constant)).contains("constant expressions"));
}

#[test]
fn a_body_that_is_not_valid_is_refused() {
    let wasm = module("(module (func (result i32) i32.const 0))");
    let at = wasm.windows(2).rposition(|pair| pair == [0x41, 0x00]).unwrap();
    let mut broken = wasm.clone();
    broken[at] = 0x42;
    assert!(refused(&broken).contains("type mismatch"));
    assert!(check(&wasm).is_ok());
}
