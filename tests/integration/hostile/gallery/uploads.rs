//! Uploads: what is no module, and modules that are bombs in one of their sections, as text.

use super::{
    Comes::{Nothing, Refused, Somehow},
    Hostile, module, numbered, upload, wasm,
};

pub(super) fn all() -> Vec<Hostile> {
    [uploads(), sections(), bombs()].into_iter().flatten().collect()
}

/// What is no WebAssembly module.
fn uploads() -> Vec<Hostile> {
    let mut cut = wasm(r#"(module (func (export "run")))"#);
    cut.pop();
    let mut flipped = wasm(r#"(module (func (export "run") (drop (i32.const 0))))"#);
    let at = flipped.windows(2).rposition(|pair| pair == [0x41, 0x00]).unwrap();
    flipped[at] = 0x43;
    // A section that claims four gigabytes.
    let claims = [&b"\0asm\x01\0\0\0\x01"[..], b"\xff\xff\xff\xff\x0f"].concat();
    // A vector of four billion types, in five bytes.
    let counts = [&b"\0asm\x01\0\0\0\x01\x05"[..], b"\xff\xff\xff\xff\x0f"].concat();
    vec![
        upload("nothing at all", *b""),
        upload(
            "a manifest that names a file of the host",
            *br#"{"wasm":[{"path":"/etc/passwd"}],"allowed_paths":{"/":"/"}}"#,
        ),
        upload("the same in TOML", *b"[[wasm]]\npath = \"/etc/passwd\"\n"),
        upload("WebAssembly as text", *b"(module (func (export \"run\")))"),
        upload("a gzip archive", *b"\x1f\x8b\x08\0\0\0\0\0\0\x03"),
        upload("a zip archive", *b"PK\x03\x04\x14\0\0\0"),
        upload("a component", *b"\0asm\x0d\0\x01\0"),
        upload("a version from the future", *b"\0asm\x02\0\0\0"),
        upload("a module that ends in the middle", cut),
        upload("a body that only a compile can tell", flipped),
        upload("a section of four gigabytes", claims),
        upload("four billion types", counts),
    ]
}

/// Bombs in every section, and features that no plugin needs.
fn sections() -> Vec<Hostile> {
    let bad = Refused("invalid_plugin");
    let repeat = |each: &str, times: usize| each.repeat(times);
    let run_only = r#"(func (export "run"))"#;
    let with = |rest: &str| format!("(module {rest} {run_only})");
    let deep = format!("(module (func (export \"run\") {} {}))", repeat("(block ", 5_000), repeat(")", 5_000));
    let table = format!("(module (func (export \"run\") (block (br_table {} (i32.const 7)))))", repeat("0 ", 10_000));
    vec![
        module("shared memory", &with("(memory 1 1 shared)"), bad),
        module("a first memory of 4 GiB", &with("(memory 65536)"), Refused("out_of_memory")),
        module("a first memory just over the limit", &with("(memory 129)"), Refused("out_of_memory")),
        module("a table of ten million", &with("(table 10000000 funcref)"), bad),
        module("fifty tables", &with(&repeat("(table 9900 funcref)", 50)), bad),
        module("a data segment beyond the memory", &with("(memory 1) (data (i32.const 65536) \"x\")"), bad),
        module(
            "an element segment beyond the table",
            &with("(table 1 funcref) (func $f) (elem (i32.const 1) $f)"),
            bad,
        ),
        module("an import that nobody has", &with("(import \"env\" \"mystery\" (func))"), bad),
        module("an import of another type", &with("(import \"extism:host/env\" \"alloc\" (func (param i32)))"), bad),
        module("the kernel's memory as an import", &with("(import \"extism:host/env\" \"memory\" (memory 1))"), bad),
        module(
            "a global as an import",
            &with("(import \"extism:host/env\" \"extism_context\" (global externref))"),
            bad,
        ),
        module("a table as an import", &with("(import \"extism:host/env\" \"alloc\" (table 1 funcref))"), bad),
        module("too many locals", &format!("(module (func (export \"run\") (local {})))", repeat("i64 ", 50_001)), bad),
        module(
            "as many locals as may be",
            &format!("(module (func (export \"run\") (local {})))", repeat("i64 ", 49_000)),
            Nothing,
        ),
        module("blocks five thousand deep", &deep, Nothing),
        module("a branch table of ten thousand", &table, Nothing),
        module("too many parameters", &with(&format!("(func (param {}))", repeat("i32 ", 1_001))), bad),
        module("three thousand functions", &with(&repeat("(func)", 3_000)), Nothing),
        module(
            "two thousand exports",
            &with(&numbered(2_000, |at| format!("(func (export \"e{at}\") (param i32))"))),
            Nothing,
        ),
        module("fifty thousand globals", &with(&repeat("(global i32 (i32.const 1))", 50_000)), bad),
        module(
            "two thousand types",
            &with(&numbered(2_000, |at| format!("(type (func (param {})))", repeat("i64 ", at % 500)))),
            bad,
        ),
        module(
            "a name of a hundred thousand letters",
            &format!("(module (func (export \"{}\") (param i32)) {run_only})", repeat("x", 100_001)),
            bad,
        ),
        module("no entry point", "(module (func (export \"run\") (param i32)))", Refused("entry_point_missing")),
    ]
}

/// What keeps a compiler busy for long, or has it take gigabytes, where nothing ends it.
fn bombs() -> Vec<Hostile> {
    let bad = Refused("invalid_plugin");
    let run = |locals: usize, body: &str| {
        let locals = "i32 ".repeat(locals);
        format!("(module (global $g (mut i32) (i32.const 0)) (func (export \"run\") (local {locals}) {body}))")
    };
    let again = "(br_if 0 (global.get $g))";
    let change = |count: usize| -> String {
        (0..count)
            .map(|at| format!("(local.set {at} (i32.add (local.get {at}) (i32.const 1)))"))
            .collect::<Vec<_>>()
            .concat()
    };
    let thousand = "i32 ".repeat(1_000);
    let (zeros, drops) = ("(i32.const 0)".repeat(1_000), "drop ".repeat(1_000));
    let deep = format!("{} {} {}", "(loop ".repeat(1_000), change(1_000), format!("{again})").repeat(1_000));
    let late = format!("{} {}", format!("(block {again})").repeat(10_000), change(20_000));
    let table =
        format!("(block (result {thousand}) {zeros} (br_table {}(global.get $g))) {drops}", "0 ".repeat(20_000));
    let calls = format!(
        "(module (func $f (param {thousand}) (result {thousand}) unreachable)
            (func (export \"run\") {zeros} {} {drops}))",
        "(call $f)".repeat(2_000)
    );
    vec![
        module("a thousand locals that a thousand loops change", &run(1_000, &deep), Somehow),
        module(
            "a thousand locals and three thousand ways back",
            &run(1_000, &format!("(loop {} {})", change(1_000), again.repeat(3_000))),
            Somehow,
        ),
        module(
            "one local that is set, or not, thirty thousand times",
            &run(1, &"(if (local.get 0) (then (local.set 0 (global.get $g))))".repeat(30_000)),
            Somehow,
        ),
        module("thirty thousand loops", &run(0, &"(loop)".repeat(30_000)), Somehow),
        module("twenty thousand locals after ten thousand branches", &run(20_000, &late), Somehow),
        module("a million instructions in one function", &run(1, &change(1).repeat(250_000)), Somehow),
        module("two million values, passed to calls", &calls, Somehow),
        module("twenty million values, carried by a branch table", &run(0, &table), Somehow),
        module(
            "three hundred thousand functions",
            &format!("(module (func (export \"run\")) {})", "(func)".repeat(300_000)),
            Somehow,
        ),
        module(
            "a million elements of one function",
            &format!("(module (func $f (export \"run\")) (elem func {}))", "$f ".repeat(1_000_000)),
            bad,
        ),
        module(
            "a constant of a million instructions",
            &format!(
                "(module (global i32 i32.const 0 {}) (func (export \"run\")))",
                "i32.const 1 i32.add ".repeat(510_000)
            ),
            bad,
        ),
    ]
}
