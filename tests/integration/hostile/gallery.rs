//! The gallery: each plugin with its trick, and what must come of it.

/// Everything that Extism provides, and a few functions over it.
pub(super) const IMPORTS: &str = include_str!("../support/imports.wat");

pub(super) fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("a test's module is well formed")
}

/// What must come of a hostile plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comes {
    /// It is refused, with this kind.
    Refused(&'static str),
    /// Each evaluation ends with this kind.
    Ends(&'static str),
    /// Its trick does nothing; an evaluation succeeds.
    Nothing,
    /// Refused, ended or nothing: the engine's own affair, as long as the fault is the plugin's and it is in time.
    Somehow,
}

/// What comes of it on the `extism` engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnExtism {
    Same,
    Other(Comes),
}

pub(super) struct Hostile {
    pub(super) trick: &'static str,
    pub(super) bytes: Vec<u8>,
    pub(super) comes: Comes,
    pub(super) on_extism: OnExtism,
}

use Comes::{Ends, Nothing, Refused};
use OnExtism::{Other, Same};

pub(super) fn upload(trick: &'static str, bytes: impl Into<Vec<u8>>) -> Hostile {
    Hostile { trick, bytes: bytes.into(), comes: Refused("invalid_plugin"), on_extism: Same }
}

pub(super) fn module(trick: &'static str, text: &str, comes: Comes, on_extism: OnExtism) -> Hostile {
    Hostile { trick, bytes: wasm(text), comes, on_extism }
}

/// A module that runs this, with all of Extism's functions at hand.
pub(super) fn run(trick: &'static str, body: &str, comes: Comes, on_extism: OnExtism) -> Hostile {
    module(trick, &format!("(module {IMPORTS} (func (export \"run\") (result i32) {body}))"), comes, on_extism)
}

/// The same, with more around it.
pub(super) fn parts(trick: &'static str, rest: &str, body: &str, comes: Comes, on_extism: OnExtism) -> Hostile {
    let text = format!("(module {IMPORTS} {rest} (func (export \"run\") (result i32) {body}))");
    module(trick, &text, comes, on_extism)
}

/// A module that runs this, with one function of WASI as `$f`.
pub(super) fn wasi(trick: &'static str, name: &str, ty: &str, body: &str, comes: Comes) -> Hostile {
    let text = format!(
        "(module (import \"wasi_snapshot_preview1\" \"{name}\" (func $f {ty})) {IMPORTS}
            (func (export \"run\") (result i32) {body}))"
    );
    module(trick, &text, comes, Same)
}

/// The text of each, for as many.
pub(super) fn numbered(times: usize, each: impl Fn(usize) -> String) -> String {
    (0..times).map(each).collect::<Vec<_>>().join("\n")
}

pub(super) fn all() -> Vec<Hostile> {
    [
        uploads(),
        sections(),
        bombs(),
        initialisers(),
        busy_initialisers(),
        endless(),
        greedy(),
        amplified(),
        wild(),
        endings(),
    ]
    .into_iter()
    .flatten()
    .collect()
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
        module("64-bit memory", &with("(memory i64 1)"), bad, Same),
        module("shared memory", &with("(memory 1 1 shared)"), bad, Same),
        module("two memories", &with("(memory 1) (memory 1)"), bad, Same),
        module("garbage-collected types", &with("(type (struct (field i32)))"), bad, Same),
        module("exceptions", &with("(tag (param i32))"), bad, Same),
        module("a first memory of 4 GiB", &with("(memory 65536)"), bad, Same),
        module("a first memory just over the limit", &with("(memory 129)"), bad, Same),
        module("a table of ten million", &with("(table 10000000 funcref)"), bad, Same),
        module("fifty tables", &with(&repeat("(table 9900 funcref)", 50)), bad, Same),
        module("a data segment beyond the memory", &with("(memory 1) (data (i32.const 65536) \"x\")"), bad, Same),
        module(
            "an element segment beyond the table",
            &with("(table 1 funcref) (func $f) (elem (i32.const 1) $f)"),
            bad,
            Same,
        ),
        module("an import that nobody has", &with("(import \"env\" \"mystery\" (func))"), bad, Same),
        module(
            "an import of another type",
            &with("(import \"extism:host/env\" \"alloc\" (func (param i32)))"),
            bad,
            Same,
        ),
        module(
            "the kernel's memory as an import",
            &with("(import \"extism:host/env\" \"memory\" (memory 1))"),
            bad,
            Same,
        ),
        module(
            "a global as an import",
            &with("(import \"extism:host/env\" \"extism_context\" (global externref))"),
            bad,
            Same,
        ),
        module("a table as an import", &with("(import \"extism:host/env\" \"alloc\" (table 1 funcref))"), bad, Same),
        module(
            "too many locals",
            &format!("(module (func (export \"run\") (local {})))", repeat("i64 ", 50_001)),
            bad,
            Same,
        ),
        module(
            "as many locals as may be",
            &format!("(module (func (export \"run\") (local {})))", repeat("i64 ", 49_000)),
            Nothing,
            Same,
        ),
        module("blocks five thousand deep", &deep, Nothing, Same),
        module("a branch table of ten thousand", &table, Nothing, Same),
        module("too many parameters", &with(&format!("(func (param {}))", repeat("i32 ", 1_001))), bad, Same),
        module("three thousand functions", &with(&repeat("(func)", 3_000)), Nothing, Same),
        module(
            "two thousand exports",
            &with(&numbered(2_000, |at| format!("(func (export \"e{at}\") (param i32))"))),
            Nothing,
            Same,
        ),
        module("fifty thousand globals", &with(&repeat("(global i32 (i32.const 1))", 50_000)), bad, Same),
        module(
            "two thousand types",
            &with(&numbered(2_000, |at| format!("(type (func (param {})))", repeat("i64 ", at % 500)))),
            bad,
            Same,
        ),
        module(
            "a name of a hundred thousand letters",
            &format!("(module (func (export \"{}\") (param i32)) {run_only})", repeat("x", 100_001)),
            bad,
            Same,
        ),
        module("no entry point", "(module (func (export \"run\") (param i32)))", Refused("entry_point_missing"), Same),
    ]
}

/// What would keep a compiler busy for minutes, or have it take gigabytes.
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
        module("a thousand locals that a thousand loops change", &run(1_000, &deep), bad, Same),
        module(
            "a thousand locals and three thousand ways back",
            &run(1_000, &format!("(loop {} {})", change(1_000), again.repeat(3_000))),
            bad,
            Same,
        ),
        module(
            "one local that is set, or not, thirty thousand times",
            &run(1, &"(if (local.get 0) (then (local.set 0 (global.get $g))))".repeat(30_000)),
            bad,
            Same,
        ),
        module("thirty thousand loops", &run(0, &"(loop)".repeat(30_000)), bad, Same),
        module("twenty thousand locals after ten thousand branches", &run(20_000, &late), bad, Same),
        module("a million instructions in one function", &run(1, &change(1).repeat(250_000)), bad, Same),
        module("two million values, passed to calls", &calls, bad, Same),
        module("twenty million values, carried by a branch table", &run(0, &table), bad, Same),
        module(
            "three hundred thousand functions",
            &format!("(module (func (export \"run\")) {})", "(func)".repeat(300_000)),
            bad,
            Same,
        ),
        module(
            "a million elements of one function",
            &format!("(module (func $f (export \"run\")) (elem func {}))", "$f ".repeat(1_000_000)),
            bad,
            Same,
        ),
        module(
            "a constant of a million instructions",
            &format!(
                "(module (global i32 i32.const 0 {}) (func (export \"run\")))",
                "i32.const 1 i32.add ".repeat(510_000)
            ),
            bad,
            Same,
        ),
    ]
}

/// Code that runs before anybody has called anything.
pub(super) fn initialisers() -> Vec<Hostile> {
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
        module("a start that traps", &start("unreachable"), bad, Same),
        module("a start that never ends", &start("(loop br 0)"), Refused("build_timeout"), Same),
        module("a start that recurses", "(module (func $s (call $s)) (start $s) (func (export \"run\")))", bad, Same),
        module(
            "a start that takes all memory",
            &start("(loop (drop (memory.grow (i32.const 16))) (br 0))"),
            // extism's linker has no limit yet: growing gives −1, and the loop goes on.
            bad,
            Other(Refused("build_timeout")),
        ),
        module("a start that exits", exits, bad, Same),
        module(
            "an _initialize that never ends",
            &export("_initialize", "", "(loop br 0)"),
            Refused("build_timeout"),
            Same,
        ),
        module("an _initialize of another type", &export("_initialize", "(param i32)", ""), bad, Same),
        module(
            "constructors that never end",
            &export("__wasm_call_ctors", "", "(loop br 0)"),
            Refused("build_timeout"),
            Same,
        ),
        module("constructors that trap", &export("__wasm_call_ctors", "", "unreachable"), bad, Same),
        module(
            "a start that writes to the log",
            &calls_host("(call $log_error (call $message))", "(start $s)"),
            Nothing,
            Same,
        ),
        // extism would follow a pointer that leads nowhere.
        module("a start that calls the host", &calls_host(asks, "(start $s)"), Nothing, Other(bad)),
        module(
            "an _initialize that calls the host",
            &calls_host(asks, "(export \"_initialize\" (func $s))"),
            Nothing,
            Other(bad),
        ),
        module(
            "constructors that call the host",
            &calls_host(asks, "(export \"__wasm_call_ctors\" (func $s))"),
            Nothing,
            Other(bad),
        ),
        module(
            "Haskell that never starts",
            &export("hs_init", "(param i32 i32)", "(loop br 0)"),
            Refused("build_timeout"),
            Same,
        ),
    ]
}

/// Initialisers that are busy in a way that fuel does not tell.
pub(super) fn busy_initialisers() -> Vec<Hostile> {
    let late = Refused("build_timeout");
    let start = |body: &str| format!("(module (memory 1) (func $s {body}) (start $s) (func (export \"run\")))");
    vec![
        module(
            "a start that fills its memory again and again",
            &start("(loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 65536)) (br 0))"),
            late,
            Same,
        ),
        module(
            "a start that copies a little again and again",
            &start("(loop (memory.copy (i32.const 8) (i32.const 0) (i32.const 700)) (br 0))"),
            late,
            Same,
        ),
        module(
            "a start that fills its table again and again",
            "(module (table 10000 funcref) (elem declare func $s) (func $s (loop (table.fill (i32.const 0) (ref.func $s) (i32.const 10000)) (br 0)))
                (start $s) (func (export \"run\")))",
            late,
            Same,
        ),
        module(
            "an _initialize that asks for the time without end",
            r#"(module (import "wasi_snapshot_preview1" "clock_time_get" (func $f (param i32 i64 i32) (result i32)))
                (memory (export "memory") 1) (func (export "_initialize") (loop (drop (call $f (i32.const 0) (i64.const 1) (i32.const 64))) (br 0)))
                (func (export "run")))"#,
            late,
            Same,
        ),
        module(
            "constructors that draw much at random, through a table",
            r#"(module (import "wasi_snapshot_preview1" "random_get" (func $f (param i32 i32) (result i32)))
                (memory (export "memory") 100) (type $t (func (param i32 i32) (result i32))) (table funcref (elem $f))
                (func (export "__wasm_call_ctors") (loop (drop (call_indirect (type $t) (i32.const 0) (i32.const 1000000) (i32.const 0))) (br 0)))
                (func (export "run")))"#,
            late,
            Same,
        ),
        module(
            "a start that gives WASI long paths without end",
            r#"(module (import "wasi_snapshot_preview1" "path_create_directory" (func $f (param i32 i32 i32) (result i32)))
                (memory (export "memory") 100) (func $s (loop (drop (call $f (i32.const 3) (i32.const 0) (i32.const 6000000))) (br 0)))
                (start $s) (func (export "run")))"#,
            late,
            Same,
        ),
    ]
}

/// `poll_oneoff` for one clock, a year from now.
const POLL: &str = "(param i32 i32 i32 i32) (result i32)";
const SUBSCRIBE: &str =
    "(i32.store (i32.const 1016) (i32.const 1)) (i64.store (i32.const 1024) (i64.const 31536000000000000))";
const SLEEP: &str = "(call $f (i32.const 1000) (i32.const 2000) (i32.const 1) (i32.const 3000))";

/// What does not end by itself.
fn endless() -> Vec<Hostile> {
    let late = Ends("exec_timeout");
    vec![
        run("an empty loop", "(loop br 0) i32.const 0", late, Same),
        run("a loop that calls the host", "(loop (drop (call $alloc (i64.const 0))) (br 0)) i32.const 0", late, Same),
        run(
            "a loop that allocates and frees",
            "(loop (call $free (call $alloc (i64.const 5))) (br 0)) i32.const 0",
            late,
            Same,
        ),
        run(
            "a loop that fills all memory",
            "(drop (memory.grow (i32.const 63))) (loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 4000000)) (br 0)) i32.const 0",
            late,
            Same,
        ),
        run(
            "a loop that copies all memory",
            "(drop (memory.grow (i32.const 63))) (loop (memory.copy (i32.const 0) (i32.const 2000000) (i32.const 2000000)) (br 0)) i32.const 0",
            late,
            Same,
        ),
        module(
            "a loop of tail calls",
            "(module (func $f (return_call $g)) (func $g (return_call $f)) (func (export \"run\") (call $f)))",
            late,
            Same,
        ),
        module(
            "a loop through a table",
            "(module (table funcref (elem $f)) (type $t (func)) (func $f (return_call_indirect (type $t) (i32.const 0))) (func (export \"run\") (call $f)))",
            late,
            Same,
        ),
        run("a log without end", "(loop (call $log_error (call $message)) (br 0)) i32.const 0", late, Same),
        run(
            "variables set without end",
            "(loop (call $var_set (call $colour) (call $digits)) (br 0)) i32.const 0",
            late,
            Same,
        ),
        run(
            "a reset without end",
            "(loop (drop (call $alloc (i64.const 60000))) (call $reset) (br 0)) i32.const 0",
            late,
            Same,
        ),
        wasi(
            "a clock read without end",
            "clock_time_get",
            "(param i32 i64 i32) (result i32)",
            "(loop (drop (call $f (i32.const 0) (i64.const 1) (i32.const 64))) (br 0)) i32.const 0",
            late,
        ),
        wasi("a yield without end", "sched_yield", "(result i32)", "(loop (drop (call $f)) (br 0)) i32.const 0", late),
        wasi(
            "randomness without end",
            "random_get",
            "(param i32 i32) (result i32)",
            "(loop (drop (call $f (i32.const 0) (i32.const 65536))) (br 0)) i32.const 0",
            late,
        ),
        Hostile {
            // It is told that it was interrupted, and does not sleep again.
            on_extism: Other(Nothing),
            ..wasi("a sleep of a year", "poll_oneoff", POLL, &format!("{SUBSCRIBE} (drop {SLEEP}) i32.const 0"), late)
        },
        wasi(
            "a sleep of a year, again and again",
            "poll_oneoff",
            POLL,
            &format!("{SUBSCRIBE} (loop (br_if 0 (i32.eq {SLEEP} (i32.const 27)))) i32.const 0"),
            late,
        ),
    ]
}

/// What takes all that it can get.
fn greedy() -> Vec<Hostile> {
    let full = Ends("out_of_memory");
    vec![
        run("memory at once", "(drop (memory.grow (i32.const 60000))) i32.const 0", full, Same),
        run("memory bit by bit", "(loop (drop (memory.grow (i32.const 1))) (br 0)) i32.const 0", full, Same),
        run("the kernel's memory at once", "(drop (call $alloc (i64.const 3000000000))) i32.const 0", full, Same),
        run("the kernel's memory bit by bit", "(loop (drop (call $alloc (i64.const 65536))) (br 0)) i32.const 0", full, Same),
        run("the kernel's books", "(loop (drop (call $alloc (i64.const 200))) (br 0)) i32.const 0", full, Same),
        run("more than there are offsets", "(drop (call $alloc (i64.const -1))) i32.const 0", full, Same),
        run("four gigabytes and a little", "(drop (call $alloc (i64.const 0x100000005))) i32.const 0", full, Same),
        run("both memories", "(drop (memory.grow (i32.const 100))) (drop (call $alloc (i64.const 4000000))) i32.const 0", full, Same),
        module("a table that grows", "(module (table 1 funcref) (func (export \"run\") (result i32)
            (i32.ne (table.grow (ref.null func) (i32.const 100000000)) (i32.const -1))))", Nothing, Same),
        module("the stack", "(module (func $f (call $f)) (func (export \"run\") (call $f)))", Ends("guest_trap"), Same),
        module("the stack, with a large frame", &format!("(module (func $f (param i64) (local {}) (call $f (local.get 0))) (func (export \"run\") (call $f (i64.const 1))))", "i64 ".repeat(10_000)), Ends("guest_trap"), Same),
        run("one variable of everything", "(call $var_set (call $colour) (call $alloc (i64.const 3000000))) i32.const 0", Ends("guest_error"), Same),
        run("output over its limit", "(call $output_set (call $alloc (i64.const 2000000)) (i64.const 2000000)) i32.const 0", Ends("output_too_large"), Same),
        run("an error of two megabytes", "(local $p i64) (local.set $p (call $alloc (i64.const 2000000))) (call $error_set (local.get $p)) i32.const 1", Ends("guest_error"), Same),
        wasi("randomness over all memory and beyond", "random_get", "(param i32 i32) (result i32)", "(drop (call $f (i32.const 0) (i32.const -1))) i32.const 0", Ends("guest_error")),
    ]
    .into_iter()
    // What WASI makes of a buffer outside memory is its own affair, as long as it ends.
    .filter(|hostile| !hostile.trick.starts_with("randomness over"))
    .collect()
}

/// Calls that would have the host do or hold much for little.
fn amplified() -> Vec<Hostile> {
    // extism takes it, as large as the guest's memory may be and no larger.
    let taken = |hostile: Hostile| Hostile { on_extism: Other(Nothing), ..hostile };
    vec![
        run(
            "a request of much that is little",
            "(drop (call $http (call $alloc (i64.const 100000)) (i64.const 0))) i32.const 0",
            Ends("guest_error"),
            Same,
        ),
        taken(run(
            "a variable with a name of a megabyte",
            "(drop (call $var_get (call $alloc (i64.const 1000000)))) i32.const 0",
            Ends("guest_error"),
            Same,
        )),
        taken(wasi(
            "randomness of four megabytes at once",
            "random_get",
            "(param i32 i32) (result i32)",
            "(if (i32.lt_u (memory.size) (i32.const 80)) (then (drop (memory.grow (i32.const 80)))))
             (drop (call $f (i32.const 0) (i32.const 4000000))) i32.const 0",
            Ends("guest_error"),
        )),
        wasi(
            "a wait for a hundred thousand clocks",
            "poll_oneoff",
            "(param i32 i32 i32 i32) (result i32)",
            "(if (i32.lt_u (memory.size) (i32.const 100)) (then (drop (memory.grow (i32.const 110)))))
             (drop (call $f (i32.const 0) (i32.const 5000000) (i32.const 100000) (i32.const 100))) i32.const 0",
            Nothing,
        ),
        wasi(
            "sockets that are not there, again and again",
            "sock_shutdown",
            "(param i32 i32) (result i32)",
            "(local $i i32) (loop $l (drop (call $f (i32.const 3) (i32.const 1)))
                (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 100)))) i32.const 0",
            Nothing,
        ),
    ]
}

/// Pointers to nowhere.
fn wild() -> Vec<Hostile> {
    let error = Ends("guest_error");
    vec![
        run(
            "output of −1 bytes",
            "(call $output_set (call $alloc (i64.const 8)) (i64.const -1)) i32.const 0",
            error,
            Same,
        ),
        run(
            "output that wraps around into memory",
            "(call $output_set (call $alloc (i64.const 8)) (i64.const -5)) i32.const 0",
            error,
            Same,
        ),
        run(
            "output at the end and beyond",
            "(call $output_set (i64.const 65536) (i64.const 1)) i32.const 0",
            error,
            // extism's kernel begins with more memory than this.
            Other(Nothing),
        ),
        run(
            "output far outside",
            "(call $output_set (i64.const 4000000000) (i64.const 10)) i32.const 0",
            Nothing,
            Same,
        ),
        run("an error far outside", "(call $error_set (i64.const 4000000000)) i32.const 0", Nothing, Same),
        run(
            "an error in the middle of a block",
            "(call $error_set (i64.add (call $message) (i64.const 2))) i32.const 0",
            Nothing,
            Same,
        ),
        run("an error that is no text", "(call $error_set (call $not_text)) i32.const 0", error, Same),
        run("a config key nowhere", "(drop (call $config_get (i64.const -8))) i32.const 0", error, Same),
        run("a variable's name nowhere", "(drop (call $var_get (i64.const 123456789))) i32.const 0", error, Same),
        run("a variable's value nowhere", "(call $var_set (call $colour) (i64.const -1)) i32.const 0", error, Same),
        run("a request nowhere", "(drop (call $http (i64.const -1) (i64.const -1))) i32.const 0", error, Same),
        run(
            "a request to a host that is not allowed",
            "(drop (call $http (call $digits) (i64.const 0))) i32.const 0",
            error,
            Same,
        ),
        run(
            "frees of everything",
            "(local $i i64) (loop $l (call $free (local.get $i)) (br_if $l (i64.lt_u (local.tee $i (i64.add (local.get $i) (i64.const 1))) (i64.const 10000)))) i32.const 0",
            Nothing,
            Same,
        ),
        run(
            "stores everywhere",
            "(local $i i64) (loop $l (call $store64 (local.get $i) (i64.const -1)) (br_if $l (i64.lt_u (local.tee $i (i64.add (local.get $i) (i64.const 7))) (i64.const 70000)))) i32.const 0",
            Nothing,
            Same,
        ),
        run(
            "stores far outside",
            "(call $store64 (i64.const -1) (i64.const 1)) (call $store8 (i64.const 4294967295) (i32.const 1)) i32.const 0",
            Nothing,
            Same,
        ),
        run(
            "input that is set to nowhere, then read",
            "(call $input_set (i64.const 70) (i64.const -3)) (drop (call $input64 (i64.const 1000000000))) i32.const 0",
            Ends("guest_trap"),
            Same,
        ),
        run("an indirect call of nothing", "(drop (i32.load (i32.const -4))) i32.const 0", Ends("guest_trap"), Same),
    ]
}

/// Ways to end.
fn endings() -> Vec<Hostile> {
    let trap = Ends("guest_trap");
    vec![
        run("unreachable", "unreachable", trap, Same),
        run("a division by zero", "(i32.div_u (i32.const 1) (i32.const 0))", trap, Same),
        run("a number that is none", "(i32.trunc_f32_s (f32.const nan))", trap, Same),
        run("a code", "i32.const 77", Ends("guest_error"), Same),
        run("a code and an error", "(call $error_set (call $message)) i32.const -1", Ends("guest_error"), Same),
        run("an error, then a trap", "(call $error_set (call $message)) unreachable", Ends("guest_error"), Same),
        wasi("an exit", "proc_exit", "(param i32)", "(call $f (i32.const 1)) i32.const 0", Ends("guest_exit")),
        wasi("an exit with 0", "proc_exit", "(param i32)", "(call $f (i32.const 0)) i32.const 0", Nothing),
        wasi(
            "a write to standard output",
            "fd_write",
            "(param i32 i32 i32 i32) (result i32)",
            "(i32.store (i32.const 1000) (i32.const 0)) (i32.store (i32.const 1004) (i32.const 60000)) (drop (call $f (i32.const 1) (i32.const 1000) (i32.const 1) (i32.const 2000))) i32.const 0",
            Nothing,
        ),
        wasi(
            "a file of the host",
            "path_open",
            "(param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)",
            "(i32.eqz (call $f (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 6) (i32.const 0) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 2000)))",
            Nothing,
        ),
    ]
}
