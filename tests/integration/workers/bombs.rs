//! Modules of a few kilobytes to a few megabytes that keep a compiler busy for minutes, or have it take gigabytes. The
//! benches look at them too, so they need nothing of the tests around them.

fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("a test's module is well formed")
}

fn each(times: usize, text: impl Fn(usize) -> String) -> String {
    (0..times).map(text).collect()
}

fn run(locals: usize, body: &str) -> Vec<u8> {
    wasm(&format!(
        "(module (global $g (mut i32) (i32.const 0)) (func (export \"run\") (local {}) {body}))",
        "i32 ".repeat(locals)
    ))
}

const CHANGE: fn(usize) -> String = |at| format!("(local.set {at} (i32.add (local.get {at}) (i32.const 1)))");
const AGAIN: &str = "(br_if 0 (global.get $g))";

/// Many locals that are changed in many nested loops: 20 KB.
pub(super) fn nested_loops() -> Vec<u8> {
    run(2_000, &format!("{} {} {}", "(loop ".repeat(1_000), each(2_000, CHANGE), format!("{AGAIN})").repeat(1_000)))
}

/// One function that goes on and on: a megabyte.
pub(super) fn long_function() -> Vec<u8> {
    let row = each(200_000, |_| "(if (local.get 0) (then (local.set 0 (global.get $g))))".into());
    run(1, &row)
}

/// Hundreds of thousands of functions, each of which needs little.
pub(super) fn many_functions() -> Vec<u8> {
    wasm(&format!("(module (func (export \"run\")) {})", "(func)".repeat(600_000)))
}

/// Vector instructions of which each becomes many of the processor's.
pub(super) fn vectors() -> Vec<u8> {
    let body =
        "(local.set 0 (i8x16.popcnt (i16x8.q15mulr_sat_s (i64x2.mul (local.get 0) (local.get 1)) (local.get 1))))";
    let function = format!("(func (local v128 v128) {})", body.repeat(5_000));
    wasm(&format!("(module (func (export \"run\")) {})", function.repeat(60)))
}

/// Each of them, with its name.
pub(super) fn all() -> [(&'static str, Vec<u8>); 4] {
    [("loops", nested_loops()), ("long", long_function()), ("many", many_functions()), ("vectors", vectors())]
}

/// Large for what it does, but not hostile: takes a moment to compile.
pub(super) fn honest(functions: usize) -> Vec<u8> {
    let functions = each(functions, |at| {
        format!("(func (param i32) (result i32) (i32.mul (i32.add (local.get 0) (i32.const {at})) (i32.const 3)))")
    });
    wasm(&format!("(module (func (export \"run\")) {functions})"))
}
