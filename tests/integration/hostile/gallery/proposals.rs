//! What WebAssembly has beyond its second version, turned against the host.

use super::{
    Comes::{Ends, Nothing, Refused, Somehow},
    Hostile, module, numbered,
};

pub(super) fn all() -> Vec<Hostile> {
    [memories(), heaps(), references(), exceptions(), types()].into_iter().flatten().collect()
}

const BAD: super::Comes = Refused("invalid_plugin");

fn with(trick: &'static str, rest: &str, comes: super::Comes) -> Hostile {
    module(trick, &format!("(module {rest} (func (export \"run\")))"), comes)
}

fn run(trick: &'static str, rest: &str, body: &str, comes: super::Comes) -> Hostile {
    module(trick, &format!("(module {rest} (func (export \"run\") {body}))"), comes)
}

fn memories() -> Vec<Hostile> {
    let too_large = Refused("out_of_memory");
    let memory = "(memory i64 1)";
    vec![
        with("64-bit memory", memory, Nothing),
        with("64-bit memory of all there is", "(memory i64 0x1000000000000)", too_large),
        with("64-bit memory, and shared", "(memory i64 1 1 shared)", BAD),
        with("a 64-bit memory just over the limit", "(memory i64 129)", too_large),
        with("data at the end of 64 bits", "(memory i64 1) (data (i64.const -1) \"xx\")", BAD),
        with("a 64-bit table of all there is", "(table i64 0xffffffffffffffff funcref)", BAD),
        run(
            "64-bit memory that grows by all there is",
            memory,
            "(drop (memory.grow (i64.const -1)))",
            Ends("out_of_memory"),
        ),
        run("a load at the end of 64 bits", memory, "(drop (i64.load (i64.const -4)))", Ends("guest_trap")),
        run(
            "a load whose place wraps around",
            memory,
            "(drop (i64.load offset=0xfffffffffffffff0 (i64.const 32)))",
            Ends("guest_trap"),
        ),
        run(
            "a fill of 64 bits",
            memory,
            "(memory.fill (i64.const 1) (i32.const 1) (i64.const -1))",
            Ends("guest_trap"),
        ),
        with("four memories", &"(memory 1)".repeat(4), Nothing),
        with("five memories", &"(memory 0)".repeat(5), BAD),
        with("a hundred memories", &"(memory 0)".repeat(100), BAD),
        with("four memories that are too large together", &"(memory 33)".repeat(4), too_large),
        with("a memory with pages of one byte", "(memory 1 (pagesize 1))", BAD),
        with("a stack of its own", "(type $f (func)) (type (cont $f))", BAD),
    ]
}

/// References, arrays of bytes and of anything.
const TYPES: &str = "(rec (type $node (struct (field (mut (ref null $node)))))) (type $bytes (array (mut i8)))
    (type $all (array (mut anyref)))";

/// A number, a reference and an array.
const LOCALS: &str = "(local $n i32) (local $list (ref null $node)) (local $bytes (ref null $bytes))";

fn again(step: &str) -> String {
    format!("(loop $each {step} (br $each))")
}

fn forever(step: &str) -> String {
    format!("{LOCALS} {}", again(step))
}

fn heaps() -> Vec<Hostile> {
    let large = "(local.set $bytes (array.new_default $bytes (i32.const 3000000)))";
    vec![
        run(
            "a list without end",
            TYPES,
            &forever("(local.set $list (struct.new $node (local.get $list)))"),
            Ends("out_of_memory"),
        ),
        run(
            "a list that nobody keeps, without end",
            TYPES,
            &forever("(drop (struct.new_default $node))"),
            Ends("exec_timeout"),
        ),
        run(
            "pairs that hold each other, without end",
            TYPES,
            &forever(
                "(local.set $list (struct.new_default $node)) (struct.set $node 0 (local.get $list) (struct.new $node (local.get $list)))",
            ),
            Ends("exec_timeout"),
        ),
        run(
            "a heap that is full, and collected again and again",
            TYPES,
            &format!(
                "{LOCALS} (loop $fill
                (local.set $list (struct.new $node (local.get $list)))
                (br_if $fill (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 110000))))
                {}",
                again("(drop (struct.new_default $node))")
            ),
            Ends("exec_timeout"),
        ),
        run("an array of 4 GiB", TYPES, "(drop (array.new_default $bytes (i32.const -1)))", Ends("out_of_memory")),
        run(
            "an array of 2 GiB of references",
            TYPES,
            "(drop (array.new_default $all (i32.const 0x20000000)))",
            Ends("out_of_memory"),
        ),
        run("large arrays without end", TYPES, &forever(large), Ends("exec_timeout")),
        run(
            "an array that is filled without end",
            TYPES,
            &format!(
                "{LOCALS} {large} {}",
                again("(array.fill $bytes (local.get $bytes) (i32.const 0) (i32.const 1) (i32.const 3000000))")
            ),
            Ends("exec_timeout"),
        ),
    ]
}

/// Accesses, roots and initialisers.
fn references() -> Vec<Hostile> {
    let roots = format!("{TYPES} {}", numbered(4, |at| format!("(table $t{at} 10000 anyref)")));
    let fill =
        numbered(4, |at| format!("(table.fill $t{at} (i32.const 0) (struct.new_default $node) (i32.const 10000))"));
    vec![
        run(
            "an array copied beyond its end",
            TYPES,
            "(local $a (ref $bytes)) (local.set $a (array.new_default $bytes (i32.const 30)))
                (array.copy $bytes $bytes (local.get $a) (i32.const 1) (local.get $a) (i32.const 0) (i32.const -1))",
            Ends("guest_trap"),
        ),
        run(
            "an array from data that is not there",
            &format!("{TYPES} (data $d \"abc\")"),
            "(drop (array.new_data $bytes $d (i32.const 2) (i32.const -1)))",
            Ends("guest_trap"),
        ),
        run("a field of nothing", TYPES, "(drop (struct.get $node 0 (ref.null $node)))", Ends("guest_trap")),
        run(
            "a cast to what it is not",
            TYPES,
            "(drop (ref.cast (ref $node) (ref.i31 (i32.const 1))))",
            Ends("guest_trap"),
        ),
        run(
            "forty thousand places at which a collection begins",
            &roots,
            &format!("{LOCALS} {fill} {}", again("(local.set $list (struct.new_default $node))")),
            Ends("exec_timeout"),
        ),
        run(
            "a table of references that grows beyond the limit",
            "(table 1 anyref)",
            "(if (i32.ne (table.grow (ref.i31 (i32.const 1)) (i32.const 10000)) (i32.const -1)) (then unreachable))",
            Nothing,
        ),
        with(
            "a global of a large array",
            &format!("{TYPES} (global (ref $bytes) (array.new_default $bytes (i32.const 100000000)))"),
            Refused("out_of_memory"),
        ),
        with(
            "a list without end at the start",
            &format!(
                "{TYPES} (func $begin {}) (start $begin)",
                forever("(local.set $list (struct.new $node (local.get $list)))")
            ),
            Refused("out_of_memory"),
        ),
        with(
            "garbage without end at the start",
            &format!("{TYPES} (func $begin {}) (start $begin)", forever("(drop (struct.new_default $node))")),
            Refused("build_timeout"),
        ),
        with(
            "six thousand globals that are structures",
            &format!("{TYPES} {}", "(global (ref $node) (struct.new_default $node))".repeat(6_000)),
            BAD,
        ),
    ]
}

fn exceptions() -> Vec<Hostile> {
    let tag = "(tag $t (param i64)) (func $throw (throw $t (i64.const 1)))
        (func $deep (param i32) (if (i32.eqz (local.get 0)) (then (call $throw))) (call $deep (i32.sub (local.get 0) (i32.const 1))))
        (func $handlers (param i32) (block $caught (try_table (catch_all $caught) (call $handlers (i32.add (local.get 0) (i32.const 1))))))";
    let catch = |call: &str| format!("(block $caught (try_table (catch_all $caught) {call}))");
    let (begin, end) = ("(block (try_table (catch_all 0)".repeat(1_000), "))".repeat(1_000));
    let nested = format!("{begin} {} {end}", "(call $throw)".repeat(1_000));
    vec![
        with("exceptions", "(tag (param i32))", Nothing),
        run("an exception that nobody catches", tag, "(call $throw)", Ends("guest_trap")),
        run(
            "exceptions without end",
            tag,
            &format!("(loop $each {} (br $each))", catch("(call $throw)")),
            Ends("exec_timeout"),
        ),
        run(
            "exceptions from far below without end",
            tag,
            &format!("(loop $each {} (br $each))", catch("(call $deep (i32.const 5000))")),
            Ends("exec_timeout"),
        ),
        run("a trap, which nothing catches", tag, &catch("unreachable"), Ends("guest_trap")),
        run("a stack of handlers that is too deep", tag, "(call $handlers (i32.const 0))", Ends("guest_trap")),
        run("an endless loop within a handler", tag, &catch("(loop (br 0))"), Ends("exec_timeout")),
        run("an exception that is nothing", tag, "(throw_ref (ref.null exn))", Ends("guest_trap")),
        run("a thousand calls within a thousand handlers", tag, &nested, Somehow),
        with("a throw at the start", "(tag $t) (func $begin (throw $t)) (start $begin)", BAD),
        with("a tag with a result", "(type $f (func (result i32))) (tag (type $f))", BAD),
        with("ten thousand tags", &"(tag)".repeat(10_000), Nothing),
        with("ten thousand tags and one", &"(tag)".repeat(10_001), BAD),
        module(
            "exceptions as they were before",
            "(module (tag $t) (func (export \"run\") try throw $t catch_all end))",
            BAD,
        ),
    ]
}

fn types() -> Vec<Hostile> {
    let chain = numbered(66, |at| match at {
        0 => "(type $t0 (sub (struct)))".to_owned(),
        at => format!("(type $t{at} (sub $t{} (struct)))", at - 1),
    });
    let group = |count: usize| {
        format!(
            "(rec {})",
            numbered(count, |at| format!("(type $t{at} (struct (field (ref null $t{}))))", (at + 1) % count))
        )
    };
    vec![
        with("forty-nine thousand types in one group", &group(49_000), Nothing),
        with("sixty thousand types in one group", &group(60_000), BAD),
        with(
            "fifty thousand types, each in a group",
            &numbered(50_000, |at| format!("(type (array (mut i{})))", [32, 64][at % 2])),
            Nothing,
        ),
        with(
            "a structure of ten thousand fields",
            &format!("(type (struct {}))", "(field i64)".repeat(10_000)),
            Nothing,
        ),
        with(
            "a structure of ten thousand fields and one",
            &format!("(type (struct {}))", "(field i64)".repeat(10_001)),
            BAD,
        ),
        with("types of types of types", &chain, BAD),
        with("a type that is its own base", "(rec (type $t (sub $t (struct))))", BAD),
        run(
            "a call of no function by reference",
            "(type $f (func))",
            "(call_ref $f (ref.null $f))",
            Ends("guest_trap"),
        ),
    ]
}
